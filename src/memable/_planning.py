"""
Runs the present code over an instance's memos with effects off, to tell what a run of it would do next.

The body runs over a copy of the journal, and what memable itself decides is recorded there, so that one sees what lies
behind it: that a scope is entered, that a sleep is over. Steps, waits and child instances hold the task that asks for
them. Once no task of the body goes on, it is unwound, and what it has asked for is told.
"""

from __future__ import annotations

import contextvars
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import attrs
import trio

from ._clock import Clock
from ._compensation import lost_compensations
from ._decide import Block, Complete, Fail, fatal_leaves, find_code_error
from ._definition import Workflow
from ._drive import decide_run
from ._encoded import Encoded
from ._entry import Entry
from ._error_info import ErrorInfo, describe_exception
from ._errors import (
    CompensationLostError,
    EngineStoppedError,
    InstanceNotFoundError,
    SerializationError,
    TypeMismatchError,
    WorkflowCodeError,
)
from ._header import InstanceHeader, header_of
from ._instances import Instances
from ._journal import Journal, Memo, journal_of
from ._keys import SEPARATOR
from ._plan import Miss, Plan, PlanMismatch, PlanOutcome, mismatch_of
from ._qualified_name import qualified_name
from ._records import (
    CallCompleted,
    CallFailed,
    ChildStarted,
    CompensationRegistered,
    InstanceRecord,
    InstanceRetired,
    InstanceStarted,
    ScopeEnded,
    ScopeStarted,
    SignalReceived,
    SleepEnded,
    StepCompleted,
    SuspendTimedOut,
)
from ._replay import Replay
from ._run import Place, Run, current_run, waits_at_nursery
from ._services import Services
from ._sparse import put
from ._states import MetadataStatus
from ._step import Step
from ._store._protocol import OpenStore
from ._supervisor import Supervisor, call_body
from ._timers import Timers
from ._times import utc_datetime
from ._values._codec import Codec
from ._wait import Wait

#: A body that has asked for nothing for so many seconds is given up: a task of it waits for something outside, which
#: may never come. Without effects there is little else for it to do.
PATIENCE_S = 5.0

#: While a task of the body waits for something outside, it is looked at again after so many seconds.
NAP_S = 0.01

_STEPS = frozenset(("step", "step_in_thread"))

#: What memable records by itself: the body goes on behind it.
_PASSED = frozenset(
    (SleepEnded, SuspendTimedOut, ScopeStarted, ScopeEnded, CompensationRegistered, CallCompleted, CallFailed)
)

#: Modules of trio's whose functions wait for another task, and for nothing outside the process.
_MEMORY_WAITS = frozenset(("trio._sync", "trio._channel", "trio._core._parking_lot", "trio._core._unbounded_queue"))


@attrs.frozen(weakref_slot=False)
class _Assumed(Encoded):
    """A value that the caller of the plan assumes."""

    path: str
    value: object


class _PlanCodec(Codec):
    """
    The engine's codec, which also reads what is assumed.
    """

    def __init__(self, codec: Codec) -> None:
        # What it knows of annotations is shared: it takes longer to find out than most bodies to run.
        self.__dict__.update(vars(codec))
        self.unfit: TypeMismatchError | None = None
        "The first assumed value that is of another type than the code asks for."

    def decode(self, encoded: Encoded, annotation: Any) -> Any:
        """
        Return a new value, equal to the one that was encoded or is assumed.
        """
        if not isinstance(encoded, _Assumed):
            return super().decode(encoded, annotation)
        try:
            return self.encode_and_read_back(encoded.value, annotation)[1]
        except SerializationError as error:
            mismatch = TypeMismatchError(
                expected=getattr(annotation, "__name__", str(annotation)),
                found=qualified_name(type(encoded.value)),
                problem=f"assume[{encoded.path!r}]: {error.problem}",
                key=encoded.path,
                is_given=True,
            )
            self.unfit = self.unfit or mismatch
            raise mismatch from None


class _PlanReplay(Replay):
    """
    Tells which memos are returned.
    """

    __slots__ = ("_note",)

    def __init__(self, journal: Journal, note: Callable[[str], None]) -> None:
        super().__init__(journal, is_first=False, is_memo_only=False)
        self._note = note

    @property
    def unasked(self) -> tuple[str, ...]:
        """
        What is recorded and was not asked for yet.
        """
        return tuple(sorted(self._unasked))

    def return_(self, path: str) -> None:
        """
        Take note that what is recorded at *path* was asked for, and is told.
        """
        self._note(path)
        super().return_(path)


class _Scratch:
    """
    What a plan records, on top of a journal that it does not change. As much of a store as a run uses.
    """

    def __init__(self, store: OpenStore, number: int, records: Sequence[InstanceRecord]) -> None:
        self._store = store
        self._number = number
        self._records = list(records)
        self._last_number = number
        self.store_id: str = store.store_id
        self.session: int = store.session

    async def allocate_number(self) -> int:
        """Return a number for a child instance, which nobody but this plan gets to see."""
        self._last_number += 1
        return self._last_number

    async def append(self, records: Sequence[InstanceRecord]) -> None:
        """Keep what the planned run records."""
        # A child's own records are told apart by its start, which follows its parent's.
        self._records.extend(
            record
            for record in records
            if record.instance == self._number and not isinstance(record, InstanceStarted | InstanceRetired)
        )
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def load(self, _number: int) -> Sequence[InstanceRecord]:
        """Return the journal with what was added."""
        await trio.lowlevel.checkpoint()
        return self._records


class _PlanHost:
    """
    What a planned run asks for child instances: those of the store, as they are, and those that it would start.
    """

    is_halted = False

    def __init__(self, instances: Instances, store: OpenStore, definitions: dict[str, Workflow[Any, Any]]) -> None:
        self._instances = instances
        self._store = store
        self._started: dict[tuple[str, str], Entry] = {}
        self._new: set[str] = set()
        self.definitions: dict[str, Workflow[Any, Any]] = definitions

    def is_new(self, instance_id: str) -> bool:
        """Tell whether the plan would start a child instance."""
        return instance_id in self._new

    async def find_child(self, workflow: str, instance_id: str) -> Entry | None:
        """Return a child instance that exists, or would by now."""
        started = self._started.get((workflow, instance_id))
        if started is not None:
            return started
        self._instances.refuse_closed("engine.plan")
        header = await self._store.find(workflow, instance_id)
        # Not the engine's own entry: nobody is told of who watches it.
        return None if header is None else Entry(workflow, instance_id, header)

    async def load(self, entry: Entry) -> Journal:
        """Return the journal of a child instance."""
        return await self._instances.load(entry)

    def expect_child(self, started: InstanceStarted) -> Entry:
        """Keep a child instance that would be started."""
        entry = Entry(started.workflow, started.instance_id, header_of(started))
        self._started[started.workflow, started.instance_id] = entry
        self._new.add(started.instance_id)
        return entry

    async def settle_child(self, entry: Entry, started: InstanceStarted) -> None:
        """Do not run it."""

    async def retire_orphan(self, entry: Entry) -> InstanceRetired:
        """Return the record that would remove a child that was forgotten."""
        header = entry.header
        return InstanceRetired(instance=header.number, seq=header.seq + 1, at=header.updated_at)

    async def cancel_child(self, entry: Entry, reason: str) -> None:
        """Do not cancel it."""


class _Watcher:
    """
    Whom a planned run tells of its states: nobody.
    """

    def note_change(self) -> None:
        """Announce nothing."""

    def note_settled(self) -> None:
        """Announce nothing."""


class PlannedRun(Run):
    """
    A run that executes nothing: what it asks for beyond its memos is noted, and holds the task.
    """

    __slots__ = (
        "_asked",
        "_assume",
        "_hits",
        "_misses",
        "_operations",
        "_stirred",
        "adopts",
        "assumed",
        "code_errors",
        "error",
        "is_broken",
        "is_stalled",
        "outcome",
        "progressed_at",
        "raised",
        "stopped",
        "value",
    )

    def __init__(
        self,
        services: Services,
        host: _PlanHost,
        header: InstanceHeader,
        journal: Journal,
        assume: Mapping[str, object],
        *,
        adopts: bool,
    ) -> None:
        """
        Prepare a run over a journal.

        Args:
            services: With a store that may be written.
            host: Answers for child instances.
            header: The instance's; not the live one.
            journal: A copy of what is recorded.
            assume: Values by path.
            adopts: Whether the code is not the engine's, so that the child workflows in it are not, either.
        """
        super().__init__(services, host, _Watcher(), header, journal, is_first=False)
        self._hits: dict[str, None] = {}
        self.replay = _PlanReplay(journal, self._note_returned)
        self._assume = assume
        self._asked: dict[trio.lowlevel.Task, str] = {}
        "What each task has asked for last."
        self._operations: dict[str, str] = {}
        self._misses: dict[str | None, Miss] = {}
        self._stirred = trio.Event()
        self.adopts = adopts
        self.assumed: dict[str, None] = {}
        self.code_errors: list[WorkflowCodeError] = []
        self.is_stalled: bool = False
        self.progressed_at: float = trio.current_time()
        self.raised: BaseException | None = None
        "What the body has raised, if it has."
        self.is_broken: bool = False
        "Whether that is a mistake of memable's."
        self.outcome: PlanOutcome | None = None
        "How the body has ended, if it has by itself."
        self.error: ErrorInfo | None = None
        "What it fails or is blocked with."
        self.value: Any = None
        "What it has returned."
        self.stopped = trio.Event()
        "Set when it has been left."

    @property
    def hits(self) -> tuple[str, ...]:
        """
        Paths of the memos that were served, in order.
        """
        wrong = {error.key for error in self.code_errors if isinstance(error, TypeMismatchError)}
        return tuple(path for path in self._hits if path not in wrong)

    @property
    def misses(self) -> tuple[Miss, ...]:
        """
        What was asked for and has no memo, in order.
        """
        return tuple(self._misses.values())

    @property
    def unasked(self) -> tuple[str, ...]:
        """
        What is recorded and was not asked for.
        """
        assert isinstance(self.replay, _PlanReplay)
        return self.replay.unasked

    # What it asks for ----------------------------------------------------------------------------------------

    def _note_returned(self, path: str) -> None:
        journal = self.journal
        is_kept = path in journal.kept or path in journal.compensations or path in journal.detached
        if path not in self._misses and (is_kept or path in journal.memos):
            self._hits[path] = None

    def claim(self, operation: str, place: Place, key: object, kind: str, work: object = None) -> str:
        """
        Return the path of *key*, now in use; pretend that it has a memo if one is assumed.
        """
        path = super().claim(operation, place, key, kind, work)
        self._asked[trio.lowlevel.current_task()] = path
        self._operations[path] = operation
        if path in self._assume:
            self._pretend(operation, path)
        self._stir()
        return path

    def _pretend(self, operation: str, path: str) -> None:
        facts: dict[str, Any] = {
            "instance": self.journal.started.instance,
            "seq": self.journal.seq,
            "at": self.services.clock.now(),
            "path": path,
        }
        memo: Memo
        value = _Assumed("typing.Any", b"null", path, self._assume[path])
        match operation:
            case "step" | "step_in_thread":
                memo = StepCompleted(value=value, started_at=facts["at"], **facts)
            case "suspend":
                memo = SignalReceived(value=value, **facts)
            case "call":
                memo = CallCompleted(value=value, **facts)
            case "sleep" | "sleep_until":
                memo = SleepEnded(**facts)
            case _:
                # It has no value of its own.
                return
        self.journal.memos = put(self.journal.memos, path, memo)
        self.assumed[path] = None
        self._hits.pop(path, None)

    def blame(self, error: WorkflowCodeError) -> WorkflowCodeError:
        """
        Remember that the code is wrong, and return *error* to be raised.
        """
        # What is raised again is a copy; and what is wrong with how it is unwound is not what is wrong with it.
        is_known = any(type(known) is type(error) and str(known) == str(error) for known in self.code_errors)
        if self.leaving is None and not is_known:
            self.code_errors.append(error)
        return super().blame(error)

    async def proceed(self, operation: str, _work: object = None) -> None:
        """
        Leave the replay; hold the task if a step is to begin.
        """
        await super().proceed(operation, _work)
        if isinstance(_work, Workflow) and self.adopts:
            self.host.definitions[_work.name] = _work
        if operation in _STEPS:
            path = self._asked[trio.lowlevel.current_task()]
            self._note(path, self._step_miss(operation, path, _work))
            await self._hold()
            raise self.run_ended(operation)

    def _step_miss(self, operation: str, path: str, step: object) -> Miss:
        failed = self.journal.attempts.get(path)
        attempt = 1 if failed is None else failed.attempt + 1
        due = failed is not None and failed.next_attempt_at > self.services.clock.now()
        deadline = utc_datetime(failed.next_attempt_at) if failed is not None and due else None
        is_unknown = path in self.journal.intents and isinstance(step, Step) and step.probe is None
        return Miss(path, operation, "unknown" if is_unknown else "runs", attempt, deadline)

    def draft(
        self, operation: str, place: Place, cls: Callable[..., InstanceRecord], **facts: Any
    ) -> tuple[InstanceRecord, ...]:
        """
        Return a record for the scratch journal; what memable records by itself is a miss that the body goes behind.
        """
        records = super().draft(operation, place, cls, **facts)
        if cls in _PASSED or (cls is ChildStarted and facts["detached"]):
            path: str = facts["path"]
            self._note(path, Miss(path, operation, "runs" if cls is ChildStarted else "passes"))
        return records

    def begin_wait(self, wait: Wait) -> bool:
        """
        Take note that the current task is about to sleep. It is held, as nothing wakes it.
        """
        begins = super().begin_wait(wait)
        if begins:
            self._note(wait.path, self._wait_miss(wait))
            self._held = put(self._held, trio.lowlevel.current_task(), None)
        return begins

    def end_wait(self, wait: Wait) -> None:
        """
        Take note that the task of a wait goes on: the run is unwound.
        """
        super().end_wait(wait)
        self._held.pop(trio.lowlevel.current_task(), None)

    def _expire(self, wait: Wait) -> None:
        """Do not end a wait whose deadline passes while the plan is made."""

    def _wait_miss(self, wait: Wait) -> Miss:
        operation = self._operations.get(wait.path) or self._operations[wait.path.rpartition(SEPARATOR)[0]]
        is_new = wait.is_for_child and self.host.is_new(self.instance_id + SEPARATOR + wait.path)
        deadline = None if wait.deadline is None else utc_datetime(wait.deadline)
        return Miss(wait.path, operation, "runs" if is_new else "waits", deadline=deadline)

    def refuse_call(self, operation: str) -> EngineStoppedError:
        """
        Return the error to raise for a call of the engine inside the body, at which the plan ends.
        """
        self._note(None, Miss(None, operation, "runs"))
        self.cancel("stopping")
        return EngineStoppedError(operation=f"{operation} inside a body that is only planned")

    def _note(self, path: str | None, miss: Miss) -> None:
        self._misses.setdefault(path, miss)
        self._stir()

    # How far it gets -----------------------------------------------------------------------------------------

    def check_memo_only(self, *, is_at_end: bool = False) -> None:  # noqa: ARG002 - the base class needs it
        """
        Take note that a task is held, or has ended.
        """
        self._stir()

    def _stir(self) -> None:
        self.progressed_at = trio.current_time()
        self._stirred.set()
        self._stirred = trio.Event()

    async def wait_stirred(self) -> None:
        """
        Wait until the body asks for something, or is held.
        """
        await self._stirred.wait()

    def goes_on(self, *, is_quiet: bool) -> bool:
        """
        Tell whether a task of the body may do anything by itself.

        Args:
            is_quiet: Whether no task of the whole process is about to: then whoever waits for one waits in vain.
        """
        # An expired scope cancels what is inside, soon. And the task of the body may not have begun.
        if self.body_task is None or any(scope.is_expired for scope in self.open_scopes.values()):
            return True
        pending = [self.body_task]
        while pending:
            task = pending.pop()
            below = [child for nursery in task.child_nurseries for child in nursery.child_tasks]
            pending.extend(below)
            waits = bool(below) and (task in self._pausing or waits_at_nursery(task))
            if not waits and task not in self._held and not (is_quiet and _waits_in_memory(task)):
                return True
        return False

    @trio.lowlevel.enable_ki_protection
    async def execute(self, definition: Workflow[..., Any]) -> None:
        """
        Run the body until it is left. Raises nothing.
        """
        self.begin_body()
        returned: object = None
        try:
            with self.scope:
                if not self.scope.cancel_called:
                    returned = await call_body(self, definition)
            if inspect.iscoroutine(returned):
                returned.close()
                self.misuse(f"the body returned the coroutine {returned.__qualname__}(...); an await is missing")
        except BaseException as exc:  # noqa: BLE001 - nothing of it is lost
            self.raised = exc
        self.end_body()
        try:
            if self.leaving is None and not (self.raised and fatal_leaves(self.raised, trio.Cancelled)):
                self._decide(returned)
        except BaseException as exc:  # noqa: BLE001 - comes out of the plan
            self.raised = exc
            self.is_broken = True
        self.stopped.set()

    def _decide(self, returned: object) -> None:
        """Find out what would be recorded of the end of the body."""
        exc = self.raised
        code_error = None if exc is None else find_code_error(exc)
        if code_error is not None:
            self.blame(code_error)
        match decide_run(self, exc, returned):
            case Complete(encoded):
                assert encoded is not None
                self.outcome = "completed"
                self.value = self.services.codec.decode(encoded, self.output)
            case Fail(error):
                lost = self._lost_compensations()
                self.outcome, self.error = "failed", error
                if lost:
                    self.outcome = "blocked"
                    self.error = describe_exception(
                        CompensationLostError(workflow=self.workflow_name, instance_id=self.instance_id, keys=lost)
                    )
            case Block(_, error, _, cause):
                self.outcome = "blocked"
                self.error = None if isinstance(cause, WorkflowCodeError) else error
            case _:
                raise AssertionError("nobody has unwound it")

    def _lost_compensations(self) -> tuple[str, ...]:
        """Return those that were registered, and that the code, which has failed, did not register again."""
        # Those within outcomes would be looked for in a run of their own.
        return tuple(path for path in lost_compensations(self) if not self.journal.is_within_outcome(path))


def _waits_in_memory(task: trio.lowlevel.Task) -> bool:
    """Tell whether a task waits for another one: for a lock, say, or at a channel."""
    return any(frame.f_globals.get("__name__") in _MEMORY_WAITS for frame, _ in task.iter_await_frames())


@attrs.frozen
class _ClockOf:
    """
    Another time of day than the engine's, which passes as its does.
    """

    _clock: Clock
    _ahead_s: float

    @property
    def is_virtual(self) -> bool:
        """
        Whether time passes by trio's clock alone.
        """
        return self._clock.is_virtual

    def now(self) -> float:
        """
        Return the time in seconds since 1970 (UTC).
        """
        return self._clock.now() + self._ahead_s

    def not_before(self, unix_s: float) -> None:
        """
        Never called: the plan's store holds nothing of its own.
        """


class Plans:
    """
    Plans instances of one engine.
    """

    def __init__(self, services: Services, supervisor: Supervisor, instances: Instances) -> None:
        """
        Bind to the parts of an engine.
        """
        self._services = services
        self._supervisor = supervisor
        self._instances = instances
        # Bodies see the context variables of whoever opened the engine, as their runs do.
        self._context = contextvars.copy_context()

    def refuse_inside(self, operation: str) -> None:
        """
        Refuse a call of the engine's inside a body that is only planned: what it does is no part of the body.

        Raises:
            EngineStoppedError: It is inside one.
        """
        run = current_run.get()
        # Its services are its own, but for what stops the engine.
        if isinstance(run, PlannedRun) and run.services.fail is self._services.fail and run.is_calling:
            raise run.refuse_call(operation)

    async def plan(
        self,
        entry: Entry,
        definition: Workflow[..., Any],
        assume: Mapping[str, object],
        at_unix_s: float | None,
    ) -> Plan:
        """
        Run the body of *definition* over the memos of an instance, and tell how far it gets.

        Raises:
            TypeMismatchError: An assumed value is not of the type that the code asks for.
            EngineStoppedError: The engine's block has been left meanwhile.
            BaseException: What the body raised and no workflow may handle, such as ``KeyboardInterrupt``.
        """
        run = await self._prepare(entry, definition, assume, at_unix_s)
        left_by: BaseException | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run.services.timers.run)
            self._context.run(partial(nursery.start_soon, name="memable.Engine.plan"), run.execute, definition)
            try:
                await _attend(run)
            except BaseException as error:  # noqa: BLE001 - raised below
                # The nursery would put it into a group.
                left_by = error
            run.cancel("stopping")
            with trio.CancelScope(shield=True):
                await run.stopped.wait()
            nursery.cancel_scope.cancel()
        if left_by is not None:
            raise left_by
        self._instances.refuse_closed("engine.plan")
        return _conclude(run)

    async def _prepare(
        self, entry: Entry, definition: Workflow[..., Any], assume: Mapping[str, object], at_unix_s: float | None
    ) -> PlannedRun:
        services = self._services
        try:
            records = await self._instances.records(entry)
        except KeyError:
            raise InstanceNotFoundError(workflow=entry.workflow, instance_id=entry.instance_id) from None
        journal = journal_of(records)
        # Whatever has ended it, it is to run again from the top.
        journal.ending = journal.compensating = journal.blocked = None
        journal.suspended = journal.cancel_requested = None
        journal.prune()
        registered = self._supervisor.definitions.get(definition.name)
        clock = services.clock
        if at_unix_s is not None:
            clock = _ClockOf(clock, at_unix_s - clock.now())
        scratch = _Scratch(services.store, entry.header.number, records)
        planned = attrs.evolve(
            services,
            store=cast("OpenStore", scratch),
            clock=clock,
            timers=Timers(clock),
            codec=_PlanCodec(services.codec),
            observer=None,
        )
        host = _PlanHost(self._instances, services.store, dict(self._supervisor.definitions))
        header = attrs.evolve(entry.header, status=MetadataStatus.RUNNING, seq=journal.seq)
        return PlannedRun(planned, host, header, journal, assume, adopts=registered is not definition)


async def _attend(run: PlannedRun) -> None:
    """Wait until the body has been left or does not go on, for as long as there is patience."""
    # It takes as long to import as memable, and only plans need it.
    from trio.testing import wait_all_tasks_blocked  # noqa: PLC0415 - see above

    while not run.stopped.is_set():
        is_quiet = False
        # Where others are always busy, that may never be.
        with trio.move_on_after(NAP_S):
            await wait_all_tasks_blocked()
            is_quiet = True
        if run.stopped.is_set() or not run.goes_on(is_quiet=is_quiet):
            return
        if trio.current_time() - run.progressed_at >= PATIENCE_S:
            run.is_stalled = True
            return
        if is_quiet:
            with trio.move_on_after(NAP_S):
                await run.wait_stirred()


def _conclude(run: PlannedRun) -> Plan:
    """Tell what came of a run that has been left."""
    codec = run.services.codec
    assert isinstance(codec, _PlanCodec)
    exc, run.raised = run.raised, None
    if exc is not None:
        fatal = [exc] if run.is_broken else fatal_leaves(exc, trio.Cancelled)
        if fatal:
            raise fatal[0] if len(fatal) == 1 else BaseExceptionGroup("several failures of a planned body", fatal)
    if codec.unfit is not None:
        codec.unfit.workflow, codec.unfit.instance_id = run.workflow_name, run.instance_id
        raise codec.unfit
    outcome, error = run.outcome, run.error
    mismatches: list[PlanMismatch] = []
    for code_error in run.code_errors:
        info = describe_exception(code_error)
        mismatch = mismatch_of(code_error, info)
        if mismatch is not None:
            mismatches.append(mismatch)
        else:
            error = error or info
    if run.code_errors:
        outcome = "blocked"
    unasked = run.unasked
    return Plan(
        workflow=run.workflow_name,
        instance_id=run.instance_id,
        outcome=outcome,
        hits=run.hits,
        misses=run.misses,
        orphaned=unasked if outcome == "completed" else (),
        unreached=() if outcome == "completed" else unasked,
        mismatches=tuple(mismatches),
        error=error,
        value=run.value,
        assumed=tuple(run.assumed),
        is_stalled=run.is_stalled,
    )
