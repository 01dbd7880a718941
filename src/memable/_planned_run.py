"""
A run that executes nothing: it notes what its body asks for beyond its memos, and holds the tasks that do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import trio

from ._compensation import lost_compensations
from ._decide import Block, Complete, Fail, fatal_leaves, find_code_error
from ._definition import Workflow
from ._drive import decide_run
from ._error_info import ErrorInfo, describe_exception
from ._errors import (
    CompensationLostError,
    EngineStoppedError,
    TypeMismatchError,
    WorkflowCodeError,
)
from ._header import InstanceHeader
from ._journal import Journal, Memo
from ._keys import SEPARATOR
from ._plan import Miss, PlanOutcome
from ._plan_scratch import Assumed, NoWatcher, PlanHost, PlanReplay
from ._records import (
    CallCompleted,
    CallFailed,
    ChildStarted,
    CompensationRegistered,
    InstanceRecord,
    ScopeEnded,
    ScopeStarted,
    SignalReceived,
    SleepEnded,
    StepCompleted,
    SuspendTimedOut,
)
from ._run import Place, Run, waits_at_nursery
from ._services import Services
from ._sparse import put
from ._step import Step
from ._supervisor import call_body
from ._times import utc_datetime
from ._wait import Wait

_STEPS = frozenset(("step", "step_in_thread"))

#: What memable records by itself: the body goes on behind it.
_PASSED = frozenset(
    (SleepEnded, SuspendTimedOut, ScopeStarted, ScopeEnded, CompensationRegistered, CallCompleted, CallFailed)
)

#: Modules of trio's whose functions wait for another task, and for nothing outside the process.
_MEMORY_WAITS = frozenset(("trio._sync", "trio._channel", "trio._core._parking_lot", "trio._core._unbounded_queue"))


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
        host: PlanHost,
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
        super().__init__(services, host, NoWatcher(), header, journal, is_first=False)
        self._hits: dict[str, None] = {}
        self.replay = PlanReplay(journal, self._note_returned)
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
        assert isinstance(self.replay, PlanReplay)
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
        value = Assumed("typing.Any", b"null", path, self._assume[path])
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
