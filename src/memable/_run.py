"""
One run of an instance's body: which keys it has used, what it may still do, and how it ends.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Literal, TypeAlias, assert_never

import attrs
import trio

from ._clock import sleep_until
from ._decide import (
    Block,
    Cancel,
    Complete,
    Ending,
    Fail,
    Leave,
    RunFacts,
    decide_ending,
    fatal_leaves,
)
from ._error_info import describe_exception
from ._errors import (
    DuplicateKeyError,
    InvalidKeyError,
    MemableError,
    MisuseError,
    NestedStepError,
    RunEndedError,
    SerializationError,
    StorageError,
    WorkflowCodeError,
)
from ._journal import InstanceHeader, Journal
from ._keys import check_key
from ._records import (
    AttemptFailed,
    CancelRequested,
    InstanceBlocked,
    InstanceCancelled,
    InstanceCompleted,
    InstanceFailed,
    InstanceRecord,
    StepCompleted,
    StepFailed,
)
from ._services import Services
from ._states import InProgress, Started, Suspended, WorkflowState
from ._times import utc_datetime

logger = logging.getLogger("memable")

Leaving: TypeAlias = Literal["passivated", "stopping", "cancelled"]
"Why a body is being unwound."

StepRecord: TypeAlias = StepCompleted | AttemptFailed | StepFailed


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
        "_claims",
        "_ended",
        "_executing",
        "_header",
        "_on_change",
        "_pending_message",
        "_recorded_message",
        "_replaying",
        "_seq",
        "_unapplied",
        "_wait",
        "body_task",
        "cancel_request",
        "code_error",
        "ending",
        "is_ending",
        "journal",
        "leaving",
        "message",
        "output",
        "scope",
        "services",
    )

    def __init__(
        self,
        services: Services,
        header: InstanceHeader,
        journal: Journal,
        *,
        is_first: bool,
        on_change: Callable[[], None],
    ) -> None:
        """
        Prepare a run over a journal.

        Args:
            services: The engine's.
            header: The instance's, live.
            journal: What is recorded so far.
            is_first: Whether the instance has never run before.
            on_change: Called when the run's state, as seen from outside, has changed.
        """
        self.services: Services = services
        self.journal: Journal = journal
        self.scope: trio.CancelScope = trio.CancelScope(shield=True)
        "Around the body. Shielded: the engine alone decides when a run is unwound."
        self.leaving: Leaving | None = None
        self.code_error: WorkflowCodeError | None = None
        self.cancel_request: CancelRequested | None = journal.cancel_requested
        self.is_ending: bool = False
        "The record that ends this run is on its way: it is too late to cancel the instance."
        self.ending: InstanceRecord | None = None
        "The record that ended this run, once it is durable."
        self.output: Any = None
        "The annotated type of what the body returns."
        self.message: str | None = journal.message
        self.body_task: trio.lowlevel.Task | None = None
        self._header = header
        self._seq = header.seq
        self._unapplied: deque[StepRecord] = deque()
        self._claims: set[str] = set()
        self._replaying = not is_first
        self._recorded_message = journal.message
        self._pending_message: str | None = None
        self._executing = 0
        self._wait: tuple[str, float] | None = None
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
    def is_waiting(self) -> bool:
        """
        Whether every branch waits and no step executes.
        """
        return self._wait is not None and not self._executing

    def state(self) -> WorkflowState:
        """
        Return what the run looks like from outside.
        """
        if self._wait is not None and not self._executing:
            path, deadline = self._wait
            return Suspended(path, self.message, utc_datetime(deadline), (path,))
        return Started() if self.message is None else InProgress(self.message)

    def step_id(self, path: str) -> str:
        """
        Return a stable name for what happens under *path* in this generation, for services outside.
        """
        started = self.journal.started
        # A digest has a fixed length, whatever the key's: idempotency keys of services are often limited to 64.
        text = f"{self.services.store.store_id}/{started.instance}/{self.journal.generation(path)}/{path}"
        return hashlib.sha256(text.encode()).hexdigest()[:40]

    # Operations ----------------------------------------------------------------------------------------------

    def claim(self, operation: str, prefix: str, key: object, work: object = None) -> str:
        """
        Return the path of *key*, now in use by *operation*.

        Closes *work* if the claim is refused and it is a coroutine: nobody will await it.

        Raises:
            RunEndedError: The run has ended.
            NestedStepError: Called inside a step.
            InvalidKeyError: The key breaks the rule for keys.
            DuplicateKeyError: The key is in use, or was used, in this run.
        """
        try:
            if self._ended:
                raise self._run_ended(operation)
            self.refuse_nesting(operation)
            path = prefix + check_key("key", key)
            if path in self._claims:
                raise DuplicateKeyError(workflow=self.workflow_name, instance_id=self.instance_id, key=path)
        except MemableError as error:
            if inspect.iscoroutine(work):
                work.close()
            if isinstance(error, InvalidKeyError):
                error.workflow, error.instance_id = self.workflow_name, self.instance_id
            if isinstance(error, WorkflowCodeError) and not isinstance(error, NestedStepError):
                self.blame(error)
            raise error from None
        self._claims.add(path)
        return path

    def release(self, path: str) -> None:
        """
        Give *path* back: its use has ended without a record.
        """
        self._claims.discard(path)

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

    def _blame_misuse(self, problem: str) -> None:
        self.blame(MisuseError(problem=problem, workflow=self.workflow_name, instance_id=self.instance_id))

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

        Raises:
            WorkflowCodeError: One was raised before in this run: what the code asks for since then means nothing.
            RunEndedError: The run has ended, or is being unwound and the caller is shielded from it.
        """
        if self.code_error is not None:
            raise copy.copy(self.code_error)
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._ended or self.leaving is not None:
            raise self._run_ended(operation)
        if self._replaying:
            self._replaying = False
            self._announce_pending()

    def begin_execution(self) -> None:
        """
        Count a step as executing.
        """
        self._executing += 1
        if self._wait is not None:
            self._on_change()

    def end_execution(self) -> None:
        """
        Count a step as no longer executing.
        """
        self._executing -= 1
        if self._wait is not None:
            self._on_change()

    async def wait_until(self, path: str, unix_s: float) -> None:
        """
        Wait at *path* until the clock says *unix_s*. A checkpoint.
        """
        if self._wait is not None or trio.lowlevel.current_task() is not self.body_task:
            # A task that the engine does not know of: nobody can tell what the rest of the body does meanwhile.
            await sleep_until(self.services.clock, unix_s)
            return
        self._wait = (path, unix_s)
        self._on_change()
        try:
            await sleep_until(self.services.clock, unix_s)
        finally:
            self._wait = None
            self._on_change()

    def set_status(self, message: str) -> None:
        """
        Show *message* as the instance's status, unless an earlier run has done so before.
        """
        if self._ended:
            raise self._run_ended("set_status")
        self.refuse_nesting("set_status")
        self._pending_message = message
        if not self._replaying:
            self._announce_pending()

    def _announce_pending(self) -> None:
        if self._pending_message is not None and self._pending_message != self.message:
            self.message = self._pending_message
            self._on_change()
        self._pending_message = None

    def _run_ended(self, operation: str) -> RunEndedError:
        return RunEndedError(
            workflow=self.workflow_name,
            instance_id=self.instance_id,
            operation=operation,
            leaving=None if self._ended else self.leaving,
        )

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

    async def record_step(self, operation: str, record: StepRecord) -> None:
        """
        Make an outcome durable and take it into the journal.

        Raises:
            RunEndedError: The run has ended meanwhile, or the store failed and the caller is shielded. Nothing is
                acknowledged.
        """
        if self._ended:
            raise self._run_ended(operation)
        self._unapplied.append(record)
        if not await self._append(record):
            await trio.lowlevel.checkpoint_if_cancelled()
            raise self._run_ended(operation)
        # What was queued before is durable, too, but the tasks that wait for it are woken in no promised order.
        while self._unapplied and self._unapplied[0].seq <= record.seq:
            self.journal.apply(self._unapplied.popleft())

    async def _append(self, record: InstanceRecord) -> bool:
        try:
            await self.services.store.append((record,))
        except StorageError as error:
            # Not the body's business: the engine stops, and this run is unwound by it.
            self.services.fail(error)
            return False
        return True

    # The body ------------------------------------------------------------------------------------------------

    def cancel(self, leaving: Leaving) -> None:
        """
        Unwind the body.
        """
        if self.leaving is None and not self._ended:
            self.leaving = leaving
        self.scope.cancel()

    async def drive(self, body: Callable[[], Awaitable[object]]) -> list[BaseException]:
        """
        Call the body, and record how it ended. A run is driven once.

        Args:
            body: Sets ``output`` and calls the user's function with its context and input; may raise before it does.

        Returns:
            What left the body and is nobody's to handle, such as ``KeyboardInterrupt``; usually nothing.

        Cancellation:
            Only by ``cancel``.
        """
        value: object = None
        exc: BaseException | None = None
        returned = False
        self.body_task = trio.lowlevel.current_task()
        current_run.set(self)
        try:
            with self.scope:
                if not self.scope.cancel_called:
                    value = await body()
                    returned = True
            if inspect.iscoroutine(value):
                value.close()
                self._blame_misuse(f"the body returned the coroutine {value.__qualname__}(...); an await is missing")
        except BaseException as error:  # noqa: BLE001 - nothing of it is lost
            # Sorted leaf by leaf below: what is fatal is given to the engine, the rest is the instance's outcome.
            exc = error
        self._ended = True
        self.body_task = None
        if self._replaying:
            self._announce_pending()
        fatal = [] if exc is None else fatal_leaves(exc, trio.Cancelled)
        if not fatal:
            await self._end(exc, returned, value)
        return fatal

    async def _end(self, exc: BaseException | None, returned: bool, value: object) -> None:
        facts = RunFacts(
            workflow=self.workflow_name,
            instance_id=self.instance_id,
            failed_paths={path for path, memo in self.journal.memos.items() if isinstance(memo, StepFailed)},
            code_error=self.code_error,
            is_behind=self._replaying
            and not self._claims.issuperset(self.journal.memos.keys() | self.journal.attempts.keys()),
            is_stopping=self.leaving == "stopping",
            is_cancelled=self.cancel_request is not None,
            cancelled_type=trio.Cancelled,
        )
        ending = decide_ending(facts, exc)
        record = self._ending_record(ending, value)
        if record is None:
            if returned:
                logger.warning(
                    "workflow %r, instance %r: the body swallowed the cancellation of a shutdown; what it returned "
                    "is ignored, and it runs again at the next open",
                    self.workflow_name,
                    self.instance_id,
                )
            return
        self.is_ending = True
        if await self._append(record):
            self.ending = record
            if isinstance(record, (InstanceFailed, InstanceBlocked)):
                # A recovered instance may have nobody who asks for its result.
                became = "failed" if isinstance(record, InstanceFailed) else "is blocked"
                logger.warning(
                    "workflow %r, instance %r %s: %s", self.workflow_name, self.instance_id, became, record.error
                )

    def _ending_record(self, ending: Ending, value: object) -> InstanceRecord | None:
        common: dict[str, Any] = {
            "instance": self.journal.started.instance,
            "at": self.services.clock.now(),
            "status": self.take_status(),
        }
        match ending:
            case Leave():
                return None
            case Complete():
                try:
                    encoded = self.services.codec.encode(value, self.output)
                except SerializationError as error:
                    error.workflow, error.instance_id = self.workflow_name, self.instance_id
                    info = describe_exception(error)
                    return InstanceFailed(seq=self.next_seq(), error=info, **common)
                return InstanceCompleted(seq=self.next_seq(), value=encoded, **common)
            case Fail(error, failed_paths):
                return InstanceFailed(seq=self.next_seq(), error=error, failed_paths=failed_paths, **common)
            case Block(path, error, failed_paths):
                return InstanceBlocked(seq=self.next_seq(), path=path, error=error, failed_paths=failed_paths, **common)
            case Cancel(error, failed_paths):
                assert self.cancel_request is not None
                return InstanceCancelled(
                    seq=self.next_seq(),
                    reason=self.cancel_request.reason,
                    error=error,
                    failed_paths=failed_paths,
                    **common,
                )
            case _:
                assert_never(ending)
