"""
One run of an instance's body: which keys it has used, what it may still do, what it waits for, and its records.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import attrs
import trio

from ._decide import RunFacts
from ._errors import (
    DuplicateKeyError,
    InvalidKeyError,
    KeyKindError,
    MemableError,
    MisuseError,
    NestedStepError,
    RunEndedError,
    StorageError,
    SuspendedStepConflictError,
    WorkflowCodeError,
)
from ._header import InstanceHeader
from ._journal import Journal, journal_of
from ._keys import SEPARATOR, check_key
from ._records import (
    BranchStarted,
    CancelRequested,
    InstanceRecord,
    InstanceSuspended,
    RunStarted,
    SignalKept,
    WaitAbandoned,
)
from ._related import related_to
from ._services import Services
from ._states import InProgress, Started, Suspended, WorkflowState
from ._times import utc_datetime
from ._wait import Wait

Leaving: TypeAlias = Literal["passivated", "stopping", "cancelled"]
"Why a body is being unwound."

R = TypeVar("R", bound=InstanceRecord)

#: A run that is only to register compensations is given up if it has asked for nothing for so many seconds: its tasks
#: wait for each other, or for something outside that may never come.
MEMO_ONLY_PATIENCE_S = 60.0


class OpenScope(Protocol):
    """
    A durable cancel scope that the body is in.
    """

    @property
    def deadline(self) -> float | None:
        """
        When it expires, in seconds since 1970, if that is still to come.
        """
        ...

    @property
    def run(self) -> Run:
        """
        The run whose body it is in.
        """
        ...

    @property
    def is_expired(self) -> bool:
        """
        Whether its deadline has passed, or it is recorded as expired.
        """
        ...

    def on_progress(self) -> None:
        """
        Take note that the run has asked for a memo.
        """
        ...

    def on_decided(self) -> None:
        """
        Take note that no outcome of a wait is on its way to the store any more.
        """
        ...

    async def cancel_if_due(self) -> None:
        """
        Cancel what is inside if it has expired: an operation without a memo is about to begin there.
        """
        ...


@attrs.define(eq=False)
class Place:
    """
    Where in an instance keys are used: the body, or one child of a fan-out.
    """

    prefix: str = ""
    "What the paths of its keys begin with."
    outer: Place | None = None
    "The place of the fan-out that it is a child of."
    beginning: dict[str, Any] | None = None
    "For a child of a fan-out whose beginning is not recorded yet, what to record: it goes with its first record."
    claims: set[str] = attrs.field(factory=set[str], init=False)
    "Paths in use, or used."
    is_over: bool = attrs.field(default=False, init=False)


@attrs.define(eq=False)
class StepInProgress:
    """
    Marks the tasks that execute a step.
    """

    run: Run
    path: str
    code_error: WorkflowCodeError | None = None
    "The first code error that was raised in the step's function, caught there or not."


#: Inherited by the tasks of a step, so that a context used in one of them is recognised.
current_step: ContextVar[StepInProgress | None] = ContextVar("memable_current_step", default=None)
#: Inherited by the tasks of a body, so that the engine recognises calls from inside one.
current_run: ContextVar[Run | None] = ContextVar("memable_current_run", default=None)
#: The durable scopes that the current task is in, or was started in, outermost first.
durable_scopes: ContextVar[tuple[OpenScope, ...]] = ContextVar("memable_durable_scopes", default=())


@trio.lowlevel.disable_ki_protection
async def call_unprotected(fn: Callable[..., Awaitable[Any]], *args: object) -> Any:
    """
    Call the user's function so that control-C can interrupt it, unlike memable's own code around it.
    """
    return await fn(*args)


class Run:
    """
    One attempt, in this process, at executing an instance's body.
    """

    __slots__ = (
        "__weakref__",
        "_branches",
        "_busy",
        "_compensator",
        "_decided",
        "_ended",
        "_executing",
        "_foreign",
        "_header",
        "_held",
        "_in_flight",
        "_may_have_turned_away",
        "_on_change",
        "_pending_message",
        "_recorded_message",
        "_replaying",
        "_seq",
        "_serving",
        "_settled",
        "_state_left",
        "_unapplied",
        "_unasked",
        "_undecided",
        "_unserved",
        "_watched",
        "body_task",
        "cancel_request",
        "code_error",
        "compensations",
        "deciding",
        "ending",
        "failure",
        "host",
        "is_ending",
        "is_memo_only",
        "is_suspended_on_record",
        "journal",
        "last_progress_at",
        "leaving",
        "left",
        "message",
        "open_scopes",
        "output",
        "place",
        "scope",
        "services",
        "turning_away",
        "waits",
    )

    def __init__(
        self,
        services: Services,
        host: Any,
        header: InstanceHeader,
        journal: Journal,
        *,
        is_first: bool,
        is_memo_only: bool = False,
        on_change: Callable[[], None],
    ) -> None:
        """
        Prepare a run over a journal.

        Args:
            services: The engine's.
            host: Keeps the runs: what a run asks for child instances.
            header: The instance's, live.
            journal: What is recorded so far.
            is_first: Whether the instance has never run before.
            is_memo_only: Whether the body only runs to register its compensations again: an operation without a memo
                does not return.
            on_change: Called when the run's state, as seen from outside, has changed.
        """
        self.services: Services = services
        self.host: Any = host
        self.journal: Journal = journal
        self.scope: trio.CancelScope = trio.CancelScope(shield=True)
        "Around the body, then around the compensations. Shielded: the engine alone decides when a run is unwound."
        self.leaving: Leaving | None = None
        self.left: trio.Event = trio.Event()
        "Set when the body is being unwound."
        self.code_error: WorkflowCodeError | None = None
        self.cancel_request: CancelRequested | None = journal.cancel_requested
        self.is_ending: bool = journal.compensating is not None
        "How the instance ends is decided: it is too late to cancel it."
        self.is_memo_only: bool = is_memo_only
        self.ending: InstanceRecord | None = None
        "The record that ended this run, once it is durable."
        self.failure: StorageError | None = None
        "Why a record of it could not be made durable, if that is so."
        self.output: Any = None
        "The annotated type of what the body returns."
        self.message: str | None = journal.message
        self.body_task: trio.lowlevel.Task | None = None
        self.place: Place = Place()
        "Of the body."
        self.waits: dict[str, Wait] = {}
        "What is waited for, by path."
        self.deciding: set[str] = set()
        "Paths of waits whose outcome is on its way to the store."
        self.turning_away: set[str] = set()
        "Paths of waits of earlier runs that an expired scope is about to end."
        self.open_scopes: dict[str, OpenScope] = {}
        "Durable cancel scopes that are entered, by path."
        self.compensations: dict[str, Any] = {}
        "What is registered in this run, by path."
        self.last_progress_at: float = services.clock.now()
        self._header = header
        self._seq = header.seq
        self._unapplied: deque[InstanceRecord] = deque()
        self._unasked: set[str] = set() if is_first else journal.asked_paths()
        self._unserved: dict[str, int] = {} if is_first else _unserved_paths(journal, is_memo_only)
        self._replaying = not is_first
        self._recorded_message = journal.message
        self._pending_message: str | None = None
        self._serving = 0
        self._undecided: set[str] = set()
        self._executing = 0
        self._busy = 1
        self._foreign = 0
        self._branches: set[trio.lowlevel.Task] = set()
        self._watched: set[Wait] = set()
        self._held: set[trio.lowlevel.Task] = set()
        self.is_suspended_on_record = False
        self._state_left: WorkflowState | None = None
        self._may_have_turned_away = not is_first
        self._decided: trio.Event | None = None
        self._in_flight = 0
        self._settled: trio.Event | None = None
        self._compensator: trio.lowlevel.Task | None = None
        self._ended = False
        self._on_change = on_change

    # What others may know ------------------------------------------------------------------------------------

    @property
    def workflow_name(self) -> str:
        """
        Name of the workflow.
        """
        return self._header.workflow

    @property
    def instance_id(self) -> str:
        """
        Id of the instance.
        """
        return self._header.instance_id

    @property
    def replaying(self) -> bool:
        """
        Whether an earlier run has been here, as far as is known.
        """
        return self._replaying

    @property
    def has_ended(self) -> bool:
        """
        Whether the body has been left.
        """
        return self._ended

    @property
    def is_calling(self) -> bool:
        """
        Whether code of the user's runs in it: its body, or what follows that.
        """
        return not self._ended or (self._compensator is not None and self.ending is None)

    @property
    def is_waiting(self) -> bool:
        """
        Whether every branch waits and no step executes.
        """
        return not self._busy and not self._executing and bool(self.waits) and self.leaving is None

    @property
    def is_suspended(self) -> bool:
        """
        Whether the run waits, or has been unwound while it did, and nothing that it waited for has come since.
        """
        return self.is_waiting or (self._state_left is not None and self.journal.suspended is not None)

    @property
    def is_passivable(self) -> bool:
        """
        Whether the run may be unwound while it waits: no task waits that the engine does not know.
        """
        return self.is_waiting and not self._foreign and not self.deciding

    @property
    def may_be_passivated(self) -> bool:
        """
        Whether the run waits, is recorded as doing so, and nothing that concerns it is on its way to the store.
        """
        return self.is_passivable and self.is_suspended_on_record and not self._in_flight

    @property
    def needs_suspension_record(self) -> bool:
        """
        Whether the run waits, may be found waiting at the next open, and that is not recorded yet.
        """
        return self.is_passivable and not self.is_suspended_on_record and not self.is_ending

    def state(self) -> WorkflowState:
        """
        Return what the run looks like from outside.
        """
        if self.is_waiting:
            waits = self._waits_in_order()
            first = waits[0]
            deadline = None if first.deadline is None else utc_datetime(first.deadline)
            return Suspended(first.path, first.note or self.message, deadline, tuple(wait.path for wait in waits))
        if self._state_left is not None and self.is_suspended:
            return self._state_left
        return Started() if self.message is None else InProgress(self.message)

    def _waits_in_order(self) -> list[Wait]:
        """Return what is waited for, the longest-waiting first: as the journal has it, whenever this run got there."""
        waits = list(self.waits.values())
        if len(waits) > 1:
            places = {path: place for place, path in enumerate(self.journal.children)}
            waits.sort(key=lambda wait: (wait.since, places.get(wait.path, 0)))
        return waits

    def facts(self, exc: BaseException | None) -> RunFacts:
        """
        Return what the run knows of itself, for deciding what becomes of *exc*.
        """
        # Of the recorded failures only those that it names: there may be as many as a fan-out has children.
        related = () if exc is None else related_to(exc)
        named = {path for one in related if isinstance(path := getattr(one, "key", None), str)}
        memos = self.journal.memos
        return RunFacts(
            workflow=self.workflow_name,
            instance_id=self.instance_id,
            failed_paths={path for path in named if self.journal.has_failed(path)},
            inner_paths={path: inner for path in named if (inner := getattr(memos.get(path), "failed_paths", ()))},
            code_error=self.code_error,
            is_behind=self._replaying and bool(self._unasked),
            is_stopping=self.leaving in ("stopping", "passivated"),
            is_cancelled=self.cancel_request is not None,
            cancelled_type=trio.Cancelled,
        )

    def step_id(self, path: str) -> str:
        """
        Return a stable name for what happens under *path* in this generation, for services outside.
        """
        started = self.journal.started
        # A digest has a fixed length, whatever the key's: idempotency keys of services are often limited to 64.
        text = f"{self.services.store.store_id}/{started.instance}/{self.journal.generation(path)}/{path}"
        return hashlib.sha256(text.encode()).hexdigest()[:40]

    def has_unserved(self, prefix: str, after: int, before: float) -> bool:
        """
        Tell whether what earlier runs have recorded in a place was not all returned yet.

        Args:
            prefix: What the paths begin with.
            after: Only what was recorded after the record of this sequence number.
            before: Only what was recorded before the one of that.
        """
        return bool(self._serving) or any(
            path.startswith(prefix) and (not seq or after < seq < before) for path, seq in self._unserved.items()
        )

    def hold_served(self, path: str, seq: int) -> None:
        """
        Take note that a memo was asked for whose outcome is not told yet: that of a scope, until it is left.
        """
        self._unserved[path] = seq

    def end_served(self, path: str) -> None:
        """
        Take note that the outcome of what ``hold_served`` was called for is told.
        """
        self._unserved.pop(path, None)

    # Keys ----------------------------------------------------------------------------------------------------

    def claim(self, operation: str, place: Place, key: object, kind: str, work: object = None) -> str:
        """
        Return the path of *key*, now in use by *operation*.

        Closes *work* if the claim is refused and it is a coroutine: nobody will await it.

        Raises:
            RunEndedError: The run has ended.
            NestedStepError: Called inside a step.
            InvalidKeyError: The key breaks the rule for keys.
            DuplicateKeyError: The key is in use, or was used, in this run.
            KeyKindError: An earlier run has recorded the key as another kind of operation.
        """
        try:
            # First: also inside a compensation, which runs when the body has ended.
            self.refuse_nesting(operation)
            if self._ended or place.is_over:
                raise self.run_ended(operation)
            path = place.prefix + check_key("key", key)
            if path in place.claims:
                raise DuplicateKeyError(workflow=self.workflow_name, instance_id=self.instance_id, key=path)
            recorded = self.journal.kind_of(path)
            if recorded is not None and recorded != kind:
                raise self._other_kind(path, recorded, kind)
        except MemableError as error:
            if inspect.iscoroutine(work):
                work.close()
            if isinstance(error, InvalidKeyError):
                error.workflow, error.instance_id = self.workflow_name, self.instance_id
            if isinstance(error, WorkflowCodeError) and not isinstance(error, NestedStepError):
                self.blame(error)
            raise error from None
        place.claims.add(path)
        if self._unasked:
            self._unasked.discard(path)
        if self._unserved:
            self._unserved.pop(path, None)
        if self.is_memo_only or self.open_scopes:
            self.last_progress_at = self.services.clock.now()
        return path

    def _other_kind(self, path: str, recorded: str, kind: str) -> KeyKindError:
        is_suspended_step = recorded == "a suspend point" and kind == "a step"
        cls = SuspendedStepConflictError if is_suspended_step else KeyKindError
        return cls(
            workflow=self.workflow_name, instance_id=self.instance_id, key=path, recorded=recorded, requested=kind
        )

    def forget_asked(self, path: str) -> None:
        """
        Take note that what is recorded at *path* was asked for.
        """
        self._unasked.discard(path)
        self._unserved.pop(path, None)

    async def restore_children(self, fan_out: str) -> None:
        """
        Bring back what the journal has dropped of the children of a fan-out, if the body asks for it once more.

        That is so where the fan-out, or one around it, was cancelled before it had all its outcomes.

        Raises:
            RunEndedError: The store cannot be read, and the caller is shielded. The engine is about to stop.
        """
        if fan_out not in self.journal.thinned:
            return
        try:
            full = journal_of(await self.services.store.load(self._header.number))
        except StorageError as error:
            self.failure = error
            self.services.fail(error)
            await trio.lowlevel.checkpoint_if_cancelled()
            raise self.run_ended("fan_out") from None
        self.journal.restore_children(fan_out, full)

    def release(self, place: Place, path: str) -> None:
        """
        Give *path* back: its use has ended without a record.
        """
        place.claims.discard(path)
        self._may_have_turned_away = True

    def begin_deciding(self, path: str) -> None:
        """
        Take note that the outcome of a wait is on its way to the store: it takes no other.
        """
        self.deciding.add(path)

    def end_deciding(self, path: str) -> None:
        """
        Take note that the outcome of a wait is durable, or has come to nothing.
        """
        self.deciding.discard(path)
        if path not in self._undecided and path not in self.waits:
            # The body has not got there: it is to be returned even if a scope around it has expired.
            memo = self.journal.memos.get(path) or self.journal.kept.get(path)
            if memo is not None:
                self._unserved[path] = memo.seq
        if self._decided is not None:
            self._decided.set()
            self._decided = None
        if not self.deciding:
            for scope in list(self.open_scopes.values()):
                scope.on_decided()

    async def wait_decided(self, path: str) -> None:
        """
        Wait until no outcome of a wait is on its way to the store. Not a checkpoint if none is.
        """
        if path not in self.deciding:
            return
        self._serving += 1
        self._undecided.add(path)
        try:
            while path in self.deciding:
                if self._decided is None:
                    self._decided = trio.Event()
                await self._decided.wait()
        finally:
            self._serving -= 1
            self._undecided.discard(path)

    def turn_away(self, scope: OpenScope) -> None:
        """
        Take note that an expired scope ends the waits inside it: a signal that comes from now on is too late.
        """
        self.turning_away.update(wait.path for wait in self._watched if scope in wait.scopes)

    def is_in_expired_scope(self) -> bool:
        """
        Tell whether the current task is in a durable scope that has expired.
        """
        return any(scope.is_expired for scope in durable_scopes.get() if scope.run is self)

    async def serve_memo(self) -> None:
        """
        Let a memo that was asked for be returned. A checkpoint.

        Durable scopes that have expired cancel nothing before that: what is recorded inside them is still returned.
        """
        self._serving += 1
        try:
            await trio.lowlevel.checkpoint()
        finally:
            self._serving -= 1
        self.after_memo()

    def after_memo(self) -> None:
        """
        Take note that a memo was asked for, and is returned.
        """
        for scope in list(self.open_scopes.values()):
            scope.on_progress()

    def refuse_nesting(self, operation: str) -> None:
        """
        Refuse an operation that is called inside a step, be it of another run of the same engine.

        Raises:
            NestedStepError: It is. The run of the step is to blame.
        """
        step = current_step.get()
        if step is not None and step.run.services is self.services:
            run = step.run
            raise run.blame(
                NestedStepError(
                    workflow=run.workflow_name, instance_id=run.instance_id, key=step.path, operation=operation
                )
            )

    def misuse(self, problem: str, path: str | None = None) -> WorkflowCodeError:
        """
        Return the error to raise for a call that cannot work; the run is to blame.
        """
        return self.blame(
            MisuseError(problem=problem, workflow=self.workflow_name, instance_id=self.instance_id, key=path)
        )

    def blame(self, error: WorkflowCodeError) -> WorkflowCodeError:
        """
        Remember that the code is wrong, and return *error* to be raised.
        """
        step = current_step.get()
        if step is not None and step.run is self and step.code_error is None:
            step.code_error = error
        if self.code_error is None:
            self.code_error = error
        return error

    async def proceed(self, operation: str) -> None:
        """
        Leave the replay, since an operation without a memo is to begin. A checkpoint for cancellation only.

        Does not return in a run that only registers compensations.

        Raises:
            WorkflowCodeError: One was raised before in this run: what the code asks for since then means nothing.
            RunEndedError: The run has ended, or is being unwound and the caller is shielded from it.
        """
        if self.code_error is not None and not self._is_compensating():
            raise copy.copy(self.code_error)
        for scope in durable_scopes.get():
            if scope.run is self:
                await scope.cancel_if_due()
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.is_over or self.leaving is not None:
            raise self.run_ended(operation)
        if self.is_memo_only and not self._is_compensating():
            await self._hold()
            raise self.run_ended(operation)
        if self._replaying:
            self._replaying = False
            self._announce_pending()

    async def _hold(self) -> None:
        """Wait until the body is unwound."""
        task = trio.lowlevel.current_task()
        is_branch = self.pause_branch()
        self._held.add(task)
        try:
            self.check_memo_only()
            await self.left.wait()
            await trio.lowlevel.checkpoint_if_cancelled()
        finally:
            self._held.discard(task)
            self.resume_branch(is_branch)

    def check_memo_only(self) -> None:
        """
        Unwind a body that only runs to register compensations, once there is nothing left to hope for.
        """
        if not self.is_memo_only or self._ended or self.leaving is not None:
            return
        pending = self.journal.compensations.keys() - self.compensations.keys()
        if not pending or not self._can_go_on():
            self.cancel("cancelled")

    def _can_go_on(self) -> bool:
        """Tell whether a task of the body does anything but wait for one that does not go on."""
        if not self._busy:
            return False
        pending = [] if self.body_task is None else [self.body_task]
        while pending:
            task = pending.pop()
            below = [child for nursery in task.child_nurseries for child in nursery.child_tasks]
            pending.extend(below)
            if task in self._held:
                continue
            if not below or not _waits_for_tasks(task):
                return True
        return False

    def run_ended(self, operation: str) -> RunEndedError:
        """
        Return the error to raise for an operation that comes too late.
        """
        return RunEndedError(
            workflow=self.workflow_name,
            instance_id=self.instance_id,
            operation=operation,
            leaving=None if self._ended else self.leaving,
        )

    # Steps and waits -----------------------------------------------------------------------------------------

    def begin_execution(self) -> None:
        """
        Count a step as executing. To be followed by ``record_awakening`` if the instance is recorded as suspended.
        """
        self._executing += 1
        if self.waits:
            self._on_change()

    async def record_awakening(self) -> None:
        """
        Record that the suspended instance runs. Brought to its end, whatever is cancelled.
        """
        await self.append((self._awakening(),))

    def end_execution(self) -> None:
        """
        Count a step as no longer executing.
        """
        self._executing -= 1
        if self.waits:
            self._on_change()

    def add_branch(self) -> None:
        """
        Count a branch whose task is about to start.
        """
        self._busy += 1

    def enter_branch(self) -> None:
        """
        Take the current task for a branch that was counted before.
        """
        self._branches.add(trio.lowlevel.current_task())

    def end_branch(self) -> None:
        """
        Take note that the branch that is the current task has ended.
        """
        self._branches.discard(trio.lowlevel.current_task())
        self._busy -= 1
        self._on_change()

    def pause_branch(self) -> bool:
        """
        Take note that the current task does nothing but wait; return whether it is a branch.
        """
        is_branch = trio.lowlevel.current_task() in self._branches
        if is_branch:
            self._busy -= 1
        else:
            self._foreign += 1
        self._on_change()
        return is_branch

    def resume_branch(self, is_branch: bool) -> None:
        """
        Take note that a task which did nothing but wait goes on.
        """
        if is_branch:
            self._busy += 1
        else:
            self._foreign -= 1
        self._on_change()

    async def wait(self, wait: Wait) -> None:
        """
        Wait until ``wake`` ends the wait, its deadline passes (it is overdue then), or the run is unwound.

        A checkpoint.
        """
        if wait.deadline is not None and wait.deadline <= self.services.clock.now() and wait.path not in self.deciding:
            # Not to be seen as waiting: what was woken by its deadline has only got there again.
            wait.is_overdue = True
            await trio.lowlevel.checkpoint()
            return
        timer = None
        wait.event = trio.Event()
        if wait.is_listed:
            self._enter(wait)
        wait.scopes = durable_scopes.get()
        self._watched.add(wait)
        if wait.deadline is not None:

            def expire() -> None:
                if wait.path not in self.deciding:
                    wait.is_overdue = True
                    self.wake(wait)

            timer = self.services.timers.arm(wait.deadline, expire)
        try:
            await wait.event.wait()
        finally:
            self._watched.discard(wait)
            if timer is not None:
                timer.cancel()
            if wait.is_entered:
                self._leave(wait)

    def wake(self, wait: Wait) -> None:
        """
        End a wait. The branch counts as active at once, though its task goes on later.
        """
        if wait.is_entered:
            self._leave(wait)
        wait.event.set()

    def _enter(self, wait: Wait) -> None:
        wait.is_entered = True
        self.waits[wait.path] = wait
        wait.is_branch = self.pause_branch()

    def _leave(self, wait: Wait) -> None:
        wait.is_entered = False
        del self.waits[wait.path]
        self.resume_branch(wait.is_branch)

    def suspension(self) -> list[InstanceRecord]:
        """
        Return the records of what all branches wait for. To be queued before the next suspension of the caller.
        """
        records: list[InstanceRecord] = []
        if self._may_have_turned_away:
            # All branches wait, so what none of them waits for is not waited for any more: this run did not get there.
            self._may_have_turned_away = False
            records.extend(
                WaitAbandoned(
                    instance=self._header.number, seq=self.next_seq(), at=self.services.clock.now(), path=path
                )
                for path in self.journal.waiting_paths()
                if path not in self.waits
            )
        first = self._waits_in_order()[0]
        deadlines = [wait.deadline for wait in self.waits.values()]
        deadlines += [scope.deadline for scope in self.open_scopes.values()]
        suspended = InstanceSuspended(
            instance=self._header.number,
            seq=self.next_seq(),
            at=self.services.clock.now(),
            path=first.path,
            wake_at=min((deadline for deadline in deadlines if deadline is not None), default=None),
            note=first.note,
            awaits_children=any(wait.is_for_child for wait in self.waits.values()),
            status=self.take_status(),
        )
        return [*records, suspended]

    def _awakening(self) -> RunStarted:
        return RunStarted(
            instance=self._header.number,
            seq=self.next_seq(),
            at=self.services.clock.now(),
            session=self.services.store.session,
        )

    def set_status(self, message: str) -> None:
        """
        Show *message* as the instance's status, unless an earlier run has done so before.
        """
        self.refuse_nesting("set_status")
        if self._ended:
            raise self.run_ended("set_status")
        self._pending_message = message
        if not self._replaying:
            self._announce_pending()

    def _announce_pending(self) -> None:
        if self._pending_message is not None and self._pending_message != self.message:
            self.message = self._pending_message
            self._on_change()
        self._pending_message = None

    # Records -------------------------------------------------------------------------------------------------

    def next_seq(self) -> int:
        """
        Return the sequence number for a record that is queued before the next suspension.
        """
        self._seq += 1
        return self._seq

    def take_status(self) -> str | None:
        """
        Return the status message if no record has it yet, for one that is queued before the next suspension.
        """
        if self.message == self._recorded_message:
            return None
        self._recorded_message = self.message
        return self.message

    async def record(
        self,
        operation: str,
        place: Place,
        cls: Callable[..., R],
        *,
        beside: Sequence[InstanceRecord] = (),
        **facts: Any,
    ) -> R:
        """
        Make a record of this instance durable and take it into the journal. Brought to its end, whatever is cancelled.

        Args:
            operation: What the body called.
            place: Where. If its own beginning is not recorded yet, that goes with it.
            cls: The record's class.
            beside: Records of other instances, for the same batch.
            **facts: The record's other fields.

        Raises:
            RunEndedError: The run has ended meanwhile, or the store failed and the caller is shielded. Nothing is
                acknowledged.
        """
        if self.is_over:
            raise self.run_ended(operation)
        records = [] if place.beginning is None else self._beginnings(place)
        if hasattr(cls, "status"):
            facts["status"] = self.take_status()
        record = cls(
            instance=self._header.number,
            seq=self.next_seq(),
            at=self.services.clock.now(),
            **facts,
        )
        records.append(record)
        if not await self.append((*records, *beside)):
            await trio.lowlevel.checkpoint_if_cancelled()
            raise self.run_ended(operation)
        return record

    async def record_beginnings(self, place: Place) -> None:
        """
        Make the beginning of a place durable by itself, if it is not recorded yet.
        """
        records = self._beginnings(place)
        if records:
            await self.append(records)

    def _beginnings(self, place: Place | None) -> list[InstanceRecord]:
        """Return the records that must come before the first one of a place."""
        records: list[InstanceRecord] = []
        while place is not None and place.beginning is not None:
            records.append(
                BranchStarted(instance=self._header.number, seq=0, at=self.services.clock.now(), **place.beginning)
            )
            place.beginning = None
            place = place.outer
        return [attrs.evolve(record, seq=self.next_seq()) for record in reversed(records)]

    async def append(self, records: Sequence[InstanceRecord]) -> bool:
        """
        Make records durable, those of this instance in the order of their numbers, and take those into the journal.

        Returns:
            Whether they are; if not, the engine is about to stop.

        Cancellation:
            Brought to its end, whatever is cancelled.
        """
        newest = self.note_queued(records)
        try:
            await self.services.store.append(records)
        except StorageError as error:
            # Not the body's business: the engine stops, and this run is unwound by it.
            self.failure = error
            self.services.fail(error)
            return False
        finally:
            self.end_append()
        self.take_in(newest)
        return True

    def end_append(self) -> None:
        """
        Take note that what was queued with ``note_queued`` is not on its way any more.
        """
        self._in_flight -= 1
        if self._settled is not None and not self._in_flight:
            self._settled.set()
        if self.may_be_passivated:
            # It could not be while something was on its way.
            self._on_change()

    async def wait_settled(self) -> None:
        """
        Wait until nothing of this run is on its way to the store, so that the next one continues behind it.
        """
        while self._in_flight:
            self._settled = trio.Event()
            await self._settled.wait()

    def note_queued(self, records: Sequence[InstanceRecord]) -> int:
        """
        Take note of records that are about to be queued; return the sequence number of the newest of this instance.
        """
        self._in_flight += 1
        newest = 0
        number = self._header.number
        for record in records:
            if record.instance == number:
                self._unapplied.append(record)
                newest = record.seq
                if type(record) is InstanceSuspended:
                    self.is_suspended_on_record = True
                elif self.is_suspended_on_record and type(record) not in _STILL_SUSPENDED:
                    self.is_suspended_on_record = False
        return newest

    def take_in(self, newest: int) -> None:
        """
        Take the records up to the sequence number *newest*, which are durable, into the journal.
        """
        # What was queued before is durable, too, but the tasks that wait for it are woken in no promised order.
        while self._unapplied and self._unapplied[0].seq <= newest:
            self.journal.apply(self._unapplied.popleft())

    # Phases --------------------------------------------------------------------------------------------------

    def cancel(self, leaving: Leaving) -> None:
        """
        Unwind the body, or what follows it.
        """
        if self.ending is not None:
            return
        if self._ended:
            if leaving != "stopping":
                # It is the body that was meant, not the compensations that follow it.
                return
            self.leaving = leaving
        elif self.leaving is None:
            if leaving != "cancelled" and self.is_waiting:
                # Whoever looks at the instance is not to see that its tasks are unwound.
                self._state_left = self.state()
            self.leaving = leaving
        self.scope.cancel()
        self.left.set()
        for wait in list(self._watched):
            # Those in tasks that are shielded; all others are cancelled already.
            wait.event.set()
        self._on_change()

    def begin_body(self) -> None:
        """
        Take the current task for the one of the body.
        """
        self.body_task = trio.lowlevel.current_task()
        self._branches.add(self.body_task)
        current_run.set(self)

    def end_body(self) -> None:
        """
        Take note that the body has been left: contexts are of no use any more.
        """
        self._ended = True
        if self.body_task is not None:
            self._branches.discard(self.body_task)
        self.body_task = None
        for wait in list(self._watched):
            # In tasks of others, which the body has given its context to.
            wait.event.set()
        if self._replaying:
            self._announce_pending()

    def begin_compensations(self) -> None:
        """
        Let the current task, and no other, do steps again, in a scope of its own.
        """
        self.scope = trio.CancelScope(shield=True)
        if self.leaving != "stopping":
            self.leaving = None
            self.left = trio.Event()
        else:
            self.scope.cancel()
        self._compensator = trio.lowlevel.current_task()
        self._branches.add(self._compensator)
        # Signals that waited for what becomes of the body are told now.
        self._on_change()

    def _is_compensating(self) -> bool:
        return self._compensator is not None and trio.lowlevel.current_task() is self._compensator

    @property
    def is_over(self) -> bool:
        """
        Whether nothing may be recorded any more by the current task.
        """
        return self._ended and not self._is_compensating()


#: Records after which an instance is still suspended, if it was: the body has no part in them. What the body begins or
#: turns away from makes the recorded deadlines and waits untrue, and it might never be woken.
_STILL_SUSPENDED = frozenset((SignalKept, CancelRequested))

#: Where a task is, as module and function, that waits for the tasks below it.
_WAITS_FOR_TASKS = frozenset((("trio._core._run", "_nested_child_finished"), ("memable._fan_out", "_pause")))


def _waits_for_tasks(task: trio.lowlevel.Task) -> bool:
    """Tell whether a task waits at the end of a nursery, or within a fan-out, for the tasks below it."""
    return any(
        (frame.f_globals.get("__name__"), frame.f_code.co_name) in _WAITS_FOR_TASKS
        for frame, _ in task.iter_await_frames()
    )


def _unserved_paths(journal: Journal, is_memo_only: bool) -> dict[str, int]:
    """Return the paths of what a replay is to return inside an expired scope, with sequence numbers where known."""
    if not journal.scopes:
        return {}
    found: dict[str, int] = {}
    for records in (journal.scopes, journal.kept, journal.memos):
        found.update((path, record.seq) for path, record in records.items())
    found.update(journal.compensations)
    found.update(dict.fromkeys(journal.detached, 0))
    if is_memo_only:
        return found
    return {path: seq for path, seq in found.items() if not journal.is_within_outcome(path)}


def is_time(seconds: object) -> bool:
    """
    Tell whether *seconds* may be how long something waits: a number, at least 0, maybe infinite.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        return False
    return 0 <= seconds <= sys.float_info.max or seconds == float("inf")


def child_instance_id(run: Run, path: str) -> str:
    """
    Return the id of the child instance at *path*.
    """
    return run.instance_id + SEPARATOR + path
