"""
One run of an instance's body: which keys it has used, what it may still do, what it waits for, and its records.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import math
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any, Literal, NoReturn, Protocol, TypeAlias, TypeVar, cast

import attrs
import trio

from ._activity import Activity, RunWatcher
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
from ._keys import SEPARATOR, ancestors, check_key
from ._ledger import Ledger
from ._records import (
    BranchStarted,
    CancelRequested,
    InstanceRecord,
    InstanceSuspended,
    RunStarted,
    WaitAbandoned,
)
from ._related import related_to
from ._replay import Replay
from ._services import Services
from ._sparse import NOTHING, put
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


@attrs.define(eq=False, weakref_slot=False)
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
    claims: dict[str, None] = attrs.field(default=NOTHING, init=False)
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
    awaitable = fn(*args)
    # They belong to the function: while it runs, it alone says how long they are kept.
    del args
    return await awaitable


class Run:
    """
    One attempt, in this process, at executing an instance's body.
    """

    __slots__ = (
        "_closing",
        "_compensator",
        "_decided",
        "_ended",
        "_failed_nurseries",
        "_header",
        "_held",
        "_left",
        "_may_have_turned_away",
        "_pausing",
        "_pending_message",
        "_recorded_message",
        "_state_left",
        "_undecided",
        "_watcher",
        "activity",
        "body_task",
        "cancel_request",
        "code_error",
        "compensations",
        "deciding",
        "ending",
        "host",
        "is_ending",
        "is_memo_only",
        "journal",
        "last_progress_at",
        "leaving",
        "ledger",
        "message",
        "open_scopes",
        "output",
        "place",
        "replay",
        "scope",
        "services",
        "turning_away",
    )

    def __init__(  # noqa: PLR0915 - a statement for each fact, and no other
        self,
        services: Services,
        host: Any,
        watcher: RunWatcher,
        header: InstanceHeader,
        journal: Journal,
        *,
        is_first: bool,
        is_memo_only: bool = False,
    ) -> None:
        """
        Prepare a run over a journal.

        Args:
            services: The engine's.
            host: Keeps the runs: what a run asks for child instances.
            watcher: Told when the run's state, as seen from outside, has changed.
            header: The instance's, live.
            journal: What is recorded so far.
            is_first: Whether the instance has never run before.
            is_memo_only: Whether the body only runs to register its compensations again: an operation without a memo
                does not return.
        """
        self.services: Services = services
        self.activity: Activity = Activity(watcher)
        self.ledger: Ledger = Ledger(services, journal, header.seq, watcher)
        self.replay: Replay = Replay(journal, is_first=is_first, is_memo_only=is_memo_only)
        self.host: Any = host
        self.journal: Journal = journal
        self.scope: trio.CancelScope = trio.CancelScope(shield=True)
        "Around the body, then around the compensations. Shielded: the engine alone decides when a run is unwound."
        self.leaving: Leaving | None = None
        self.code_error: WorkflowCodeError | None = None
        self.cancel_request: CancelRequested | None = journal.cancel_requested
        self.is_ending: bool = journal.compensating is not None
        "How the instance ends is decided: it is too late to cancel it."
        self.is_memo_only: bool = is_memo_only
        self.ending: InstanceRecord | None = None
        "The record that ended this run, once it is durable."
        self.output: Any = None
        "The annotated type of what the body returns."
        self.message: str | None = journal.message
        self.body_task: trio.lowlevel.Task | None = None
        self.place: Place = Place()
        "Of the body."
        self.deciding: dict[str, None] = NOTHING
        "Paths of waits whose outcome is on its way to the store."
        self.turning_away: dict[str, None] = NOTHING
        "Paths of waits of earlier runs that an expired scope is about to end."
        self.open_scopes: dict[str, OpenScope] = NOTHING
        "Durable cancel scopes that are entered, by path."
        self.compensations: dict[str, Any] = NOTHING
        "What is registered in this run, by path."
        self.last_progress_at: float = services.clock.now()
        self._header = header
        self._recorded_message = journal.message
        self._pending_message: str | None = None
        self._undecided: dict[str, None] = NOTHING
        self._closing: dict[str, trio.Event | None] = NOTHING
        "Paths whose outcome, on its way to the store, ends all that lies in them, and what tells that it is there."
        self._held: dict[trio.lowlevel.Task, None] = NOTHING
        self._pausing: dict[trio.lowlevel.Task, None] = NOTHING
        "Those that wait, within a fan-out, for its children."
        self._failed_nurseries: dict[trio.Nursery, bool] = NOTHING
        "Of fan-outs whose failure is recorded, outermost first, and whether their children are being unwound."
        self._left: trio.Event | None = None
        "Set when the body is being unwound. Made when somebody waits for it."
        self._state_left: WorkflowState | None = None
        self._may_have_turned_away = not is_first
        self._decided: trio.Event | None = None
        self._compensator: trio.lowlevel.Task | None = None
        self._ended = False
        self._watcher = watcher

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
        return self.replay.is_on

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
        return self.activity.is_waiting and self.leaving is None

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
        return self.is_waiting and not self.activity.has_foreign_wait and not self.deciding

    @property
    def may_be_passivated(self) -> bool:
        """
        Whether the run waits, is recorded as doing so, and nothing that concerns it is on its way to the store.
        """
        return self.is_passivable and self.ledger.is_suspended and self.ledger.is_settled

    @property
    def needs_suspension_record(self) -> bool:
        """
        Whether the run waits, may be found waiting at the next open, and that is not recorded yet.
        """
        return self.is_passivable and not self.ledger.is_suspended and not self.is_ending

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
        return sorted(self.activity.waits, key=lambda wait: wait.since)

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
            is_behind=self.replay.is_behind,
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
            if current_step.get() is not None:
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
        place.claims = put(place.claims, path, None)
        if self.services.observer is not None:
            journal = self.journal
            is_recorded = path in journal.memos or path in journal.compensations or path in journal.detached
            self.services.observer.on_asked(self, operation, path, is_recorded=is_recorded)
        self.replay.return_(path)
        if self.is_memo_only or self.open_scopes:
            self.last_progress_at = self.services.clock.now()
        return path

    def _other_kind(self, path: str, recorded: str, kind: str) -> KeyKindError:
        is_suspended_step = recorded == "a suspend point" and kind == "a step"
        cls = SuspendedStepConflictError if is_suspended_step else KeyKindError
        return cls(
            workflow=self.workflow_name, instance_id=self.instance_id, key=path, recorded=recorded, requested=kind
        )

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
            self.ledger.failure = error
            self.services.fail(error)
            await trio.lowlevel.checkpoint_if_cancelled()
            raise self.run_ended("fan_out") from None
        self.journal.restore_children(fan_out, full)

    def release(self, place: Place, path: str) -> None:
        """
        Give *path* back: its use has ended without a record.
        """
        place.claims.pop(path, None)
        self._may_have_turned_away = True

    def begin_deciding(self, path: str) -> None:
        """
        Take note that the outcome of a wait is on its way to the store: it takes no other.
        """
        self.deciding = put(self.deciding, path, None)

    def end_deciding(self, path: str) -> None:
        """
        Take note that the outcome of a wait is durable, or has come to nothing.
        """
        self.deciding.pop(path, None)
        if path not in self._undecided and self.activity.find_wait(path) is None:
            # The body has not got there: it is to be returned even if a scope around it has expired.
            memo = self.journal.memos.get(path) or self.journal.kept.get(path)
            if memo is not None:
                self.replay.hold(path, memo.seq)
        if self._decided is not None:
            self._decided.set()
            self._decided = None
        if not self.deciding:
            for scope in list(self.open_scopes.values()):
                scope.on_decided()
            if self.is_passivable and self.activity.find_wait(path) is None:
                # It began to wait meanwhile, and could be neither recorded as suspended nor unwound.
                self._watcher.note_change()

    async def wait_decided(self, path: str) -> None:
        """
        Wait until no outcome of a wait is on its way to the store. Not a checkpoint if none is.
        """
        if path not in self.deciding:
            return
        self.replay.begin_serving()
        self._undecided = put(self._undecided, path, None)
        try:
            while path in self.deciding:
                if self._decided is None:
                    self._decided = trio.Event()
                await self._decided.wait()
        finally:
            self.replay.end_serving()
            self._undecided.pop(path, None)

    def begin_closing(self, path: str) -> None:
        """
        Take note that the outcome of a fan-out, or of a child of one, is on its way to the store.
        """
        self._closing = put(self._closing, path, None)

    def end_closing(self, path: str) -> None:
        """
        Take note that such an outcome is durable, or has come to nothing.
        """
        waited_for = self._closing.pop(path, None)
        if waited_for is not None:
            waited_for.set()

    def is_closing_around(self, path: str) -> bool:
        """
        Tell whether the outcome of something that contains *path* is on its way to the store.
        """
        return bool(self._closing) and not self._closing.keys().isdisjoint(ancestors(path))

    async def wait_closed_around(self, path: str) -> None:
        """
        Wait until no outcome of something that contains *path* is on its way to the store.

        Not a checkpoint if none is.
        """
        while (containing := next(filter(self._closing.__contains__, ancestors(path)), None)) is not None:
            event = self._closing[containing]
            if event is None:
                event = self._closing[containing] = trio.Event()
            await event.wait()

    def turn_away(self, scope: OpenScope) -> None:
        """
        Take note that an expired scope ends the waits inside it: a signal that comes from now on is too late.
        """
        for path in self.activity.waits_within(scope):
            self.turning_away = put(self.turning_away, path, None)

    def is_in_expired_scope(self) -> bool:
        """
        Tell whether the current task is in a durable scope that has expired.
        """
        return any(scope.is_expired for scope in durable_scopes.get() if scope.run is self)

    async def deliver_cancellation(self) -> None:
        """
        Raise ``Cancelled`` if the caller was cancelled while its outcome was recorded. To be called once that is done.

        Not if it was by a durable scope: inside an expired one, a replay returns what is recorded, and so does this
        run. The scope cancels what comes next.
        """
        if not self.is_in_expired_scope():
            await trio.lowlevel.checkpoint_if_cancelled()

    async def serve_memo(self) -> None:
        """
        Let a memo that was asked for be returned. A checkpoint.

        Durable scopes that have expired cancel nothing before that: what is recorded inside them is still returned.
        """
        self.replay.begin_serving()
        try:
            await trio.lowlevel.checkpoint()
        finally:
            self.replay.end_serving()
        if self.open_scopes:
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

    async def proceed(self, operation: str, _work: object = None) -> None:
        """
        Leave the replay, since an operation without a memo is to begin. A checkpoint for cancellation only.

        Does not return in a run that only registers compensations.

        Args:
            operation: What the body called.
            _work: The step or child workflow that is about to begin, if one is, for runs that only look what is next.

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
        if self.replay.is_on:
            self.replay.is_on = False
            self._announce_pending()

    def refuse_late(self, operation: str) -> None:
        """
        Refuse an operation that has nothing to record, without leaving the replay.

        Raises:
            WorkflowCodeError: One was raised before in this run.
            RunEndedError: The run has ended, or is being unwound.
        """
        if self.code_error is not None:
            raise copy.copy(self.code_error)
        if self.is_over or self.leaving is not None:
            raise self.run_ended(operation)

    def begin_pause(self) -> bool:
        """
        Take note that the current task waits for the children of its fan-out; return whether it is a branch.
        """
        self._pausing = put(self._pausing, trio.lowlevel.current_task(), None)
        return self.activity.pause_branch()

    def end_pause(self, task: trio.lowlevel.Task, is_branch: bool) -> None:
        """
        Take note that a task does not wait for the children of its fan-out any more.
        """
        self._pausing.pop(task, None)
        self.activity.resume_branch(is_branch)

    async def _hold(self) -> None:
        """Wait until the body is unwound."""
        task = trio.lowlevel.current_task()
        is_branch = self.activity.pause_branch()
        self._held = put(self._held, task, None)
        try:
            self.check_memo_only()
            await self._wait_left()
            await trio.lowlevel.checkpoint_if_cancelled()
        finally:
            self._held.pop(task, None)
            self.activity.resume_branch(is_branch)

    async def _wait_left(self) -> None:
        if self._left is None:
            self._left = trio.Event()
            if self.leaving is not None:
                self._left.set()
        await self._left.wait()

    def check_memo_only(self, *, is_at_end: bool = False) -> None:
        """
        Unwind a body that only runs to register compensations, once there is nothing left to hope for.

        The children of a fan-out whose failure is recorded are unwound before: the body goes on behind it.

        Args:
            is_at_end: Whether the current task is about to end.
        """
        if not self.is_memo_only or self._ended or self.leaving is not None:
            return
        if not self.journal.compensations.keys() - self.compensations.keys():
            self.cancel("cancelled")
            return
        ending = trio.lowlevel.current_task() if is_at_end else None
        idle = [one for one, is_unwound in self._failed_nurseries.items() if not is_unwound]
        for nursery in reversed(idle):
            if not self._any_goes_on(nursery.child_tasks, ending):
                self._unwind_children(nursery)
        if not self._can_go_on(ending):
            self.cancel("cancelled")

    def lose_patience(self) -> None:
        """
        Unwind a body that only registers compensations, or first the children that hold it up, though it may go on.
        """
        for nursery, is_unwound in reversed(self._failed_nurseries.items()):
            if not is_unwound:
                self._unwind_children(nursery)
                return
        self.cancel("cancelled")

    def leave_behind(self, nursery: trio.Nursery) -> None:
        """
        Do not wait for the children of a fan-out whose failure is recorded, once none of them goes on.

        To be followed by ``end_children`` when the nursery is closed.
        """
        self._failed_nurseries = put(self._failed_nurseries, nursery, False)
        self.check_memo_only()

    def end_children(self, nursery: trio.Nursery) -> None:
        """
        Take note that the children of a fan-out have all ended.
        """
        self._failed_nurseries.pop(nursery, None)

    def _unwind_children(self, nursery: trio.Nursery) -> None:
        self._failed_nurseries[nursery] = True
        nursery.cancel_scope.cancel()
        self.last_progress_at = self.services.clock.now()

    def _can_go_on(self, ending: trio.lowlevel.Task | None) -> bool:
        """Tell whether a task of the body does anything but wait for one that does not go on."""
        if any(self._failed_nurseries.values()):
            # It goes on as soon as they are unwound.
            return True
        if not self.activity.has_busy_branch:
            return False
        return self.body_task is not None and self._any_goes_on((self.body_task,), ending)

    def _any_goes_on(self, tasks: Iterable[trio.lowlevel.Task], ending: trio.lowlevel.Task | None) -> bool:
        """Tell whether one of some tasks, or of those below them, does anything but wait for one that does not."""
        pending = list(tasks)
        while pending:
            task = pending.pop()
            if task is ending:
                continue
            # Who waits for that one only goes on as soon as it has ended.
            below = [child for nursery in task.child_nurseries for child in nursery.child_tasks if child is not ending]
            pending.extend(below)
            if task in self._held:
                continue
            if not below or not (task in self._pausing or waits_at_nursery(task)):
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

    async def record_awakening(self) -> None:
        """
        Record that the suspended instance runs. Brought to its end, whatever is cancelled.
        """
        await self.ledger.append((self._awakening(),))

    @trio.lowlevel.enable_ki_protection
    def begin_wait(self, wait: Wait) -> bool:
        """
        Take note that the current task is about to sleep, to be followed by that and by ``end_wait``.

        It is woken when the wait is, when its deadline passes (it is overdue then), and when the run is unwound.

        Returns:
            Whether there is anything to wait for; if not, the caller owes a checkpoint, and nothing else.
        """
        if self.leaving is not None or self.is_over:
            # Those that were waiting have been woken already: nobody would wake this one.
            return False
        if wait.deadline is not None and wait.deadline <= self.services.clock.now() and wait.path not in self.deciding:
            # Not to be seen as waiting: what was woken by its deadline has only got there again.
            wait.is_overdue = True
            return False
        wait.scopes = durable_scopes.get()
        # A deadline of trio's around it would begin anew: it must not count more often than the process dies.
        wait.is_pinned = -math.inf < trio.current_effective_deadline() < math.inf
        if wait.deadline is not None:
            wait.timer = self.services.timers.arm(wait.deadline, self._expire, wait)
        self.activity.begin_wait(wait)
        return True

    @trio.lowlevel.enable_ki_protection
    def end_wait(self, wait: Wait) -> None:
        """
        Take note that the task of a wait goes on.
        """
        self.activity.end_wait(wait)
        if wait.timer is not None:
            wait.timer.cancel()
            wait.timer = None

    def _expire(self, wait: Wait) -> None:
        if wait.path not in self.deciding:
            wait.is_overdue = True
            self.activity.wake(wait)

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
                    instance=self._header.number, seq=self.ledger.next_seq(), at=self.services.clock.now(), path=path
                )
                for path in self.journal.waiting_paths()
                if self.activity.find_wait(path) is None
            )
        waits = self._waits_in_order()
        first = waits[0]
        deadlines = [wait.deadline for wait in waits]
        deadlines += [scope.deadline for scope in self.open_scopes.values()]
        suspended = InstanceSuspended(
            instance=self._header.number,
            seq=self.ledger.next_seq(),
            at=self.services.clock.now(),
            path=first.path,
            wake_at=min((deadline for deadline in deadlines if deadline is not None), default=None),
            note=first.note,
            awaits_children=any(wait.is_for_child for wait in waits),
            status=self.take_status(),
        )
        return [*records, suspended]

    def _awakening(self) -> RunStarted:
        return RunStarted(
            instance=self._header.number,
            seq=self.ledger.next_seq(),
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
        if not self.replay.is_on:
            self._announce_pending()

    def _announce_pending(self) -> None:
        if self._pending_message is not None and self._pending_message != self.message:
            self.message = self._pending_message
            self._watcher.note_change()
        self._pending_message = None

    # Records -------------------------------------------------------------------------------------------------

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
        records = self.draft(operation, place, cls, **facts)
        await self.commit(operation, (*records, *beside))
        return cast("R", records[-1])

    def draft(
        self, operation: str, place: Place, cls: Callable[..., InstanceRecord], **facts: Any
    ) -> tuple[InstanceRecord, ...]:
        """
        Return a record of this instance, behind those of the beginnings that go with it. To be committed at once.

        Args:
            operation: What the body called.
            place: Where.
            cls: The record's class.
            **facts: The record's other fields.

        Raises:
            RunEndedError: The run has ended meanwhile.
        """
        beginnings = self.draft_beginnings(operation, place)
        if hasattr(cls, "status"):
            facts["status"] = self.take_status()
        record = cls(
            instance=self._header.number,
            seq=self.ledger.next_seq(),
            at=self.services.clock.now(),
            **facts,
        )
        return (*beginnings, record) if beginnings else (record,)

    def draft_beginnings(self, operation: str, place: Place) -> Sequence[InstanceRecord]:
        """
        Return the records of the beginnings that go with the next record of a place. To be committed at once.

        Raises:
            RunEndedError: The run has ended meanwhile.
        """
        if self.is_over:
            raise self.run_ended(operation)
        return () if place.beginning is None else self._beginnings(place)

    async def commit(self, operation: str, records: Sequence[InstanceRecord]) -> None:
        """
        Make what was drafted durable, and take it into the journal. Brought to its end, whatever is cancelled.

        Raises:
            RunEndedError: The store failed, and the caller is shielded. Nothing is acknowledged.
        """
        if not await self.ledger.append(records):
            await self.refuse_uncommitted(operation)

    async def refuse_uncommitted(self, operation: str) -> NoReturn:
        """
        Raise what follows from records that could not be made durable.

        Raises:
            RunEndedError: The caller is shielded from being unwound.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        raise self.run_ended(operation)

    async def record_beginnings(self, place: Place) -> None:
        """
        Make the beginning of a place durable by itself, if it is not recorded yet.
        """
        records = self._beginnings(place)
        if records:
            await self.ledger.append(records)

    def _beginnings(self, place: Place | None) -> list[InstanceRecord]:
        """Return the records that must come before the first one of a place."""
        records: list[InstanceRecord] = []
        while place is not None and place.beginning is not None:
            records.append(
                BranchStarted(instance=self._header.number, seq=0, at=self.services.clock.now(), **place.beginning)
            )
            place.beginning = None
            place = place.outer
        return [attrs.evolve(record, seq=self.ledger.next_seq()) for record in reversed(records)]

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
        if self._left is not None:
            self._left.set()
        self.activity.wake_all()
        self._watcher.note_change()

    def begin_body(self) -> None:
        """
        Take the current task for the one of the body.
        """
        self.body_task = trio.lowlevel.current_task()
        self.activity.enter_branch()
        current_run.set(self)

    def end_body(self) -> None:
        """
        Take note that the body has been left: contexts are of no use any more.
        """
        self._ended = True
        self.activity.leave_branch()
        self.body_task = None
        # Some may be in tasks of others, which the body has given its context to.
        self.activity.wake_all()
        if self.replay.is_on:
            self._announce_pending()

    def begin_compensations(self) -> None:
        """
        Let the current task, and no other, do steps again, in a scope of its own.
        """
        self.scope = trio.CancelScope(shield=True)
        if self.leaving != "stopping":
            self.leaving = None
            self._left = None
        else:
            self.scope.cancel()
        self._compensator = trio.lowlevel.current_task()
        self.activity.enter_branch()
        # Signals that waited for what becomes of the body are told now.
        self._watcher.note_change()

    def _is_compensating(self) -> bool:
        return self._compensator is not None and trio.lowlevel.current_task() is self._compensator

    @property
    def is_over(self) -> bool:
        """
        Whether nothing may be recorded any more by the current task.
        """
        return self._ended and not self._is_compensating()


#: Where a task is, as module and function, that waits at the end of a nursery for the tasks below it.
_WAITS_AT_NURSERY = ("trio._core._run", "_nested_child_finished")


def waits_at_nursery(task: trio.lowlevel.Task) -> bool:
    """
    Tell whether a task waits at the end of a nursery for the tasks below it.
    """
    return any(
        (frame.f_globals.get("__name__"), frame.f_code.co_name) == _WAITS_AT_NURSERY
        for frame, _ in task.iter_await_frames()
    )


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
