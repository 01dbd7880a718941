"""
Handles on instances, for those who started them and those who watch.
"""

from __future__ import annotations

from types import TracebackType
from typing import Generic, Self, TypeVar

import trio

from ._entry import Entry
from ._errors import EngineStoppedError, WorkflowBlockedError, WorkflowCancelledError, WorkflowFailedError
from ._instances import Instances
from ._sleeping import message_for, sleep_unless_cancelled
from ._states import Blocked, Cancelled, Failed, Suspended, WorkflowState

R_co = TypeVar("R_co", covariant=True)


class Invocation(Generic[R_co]):
    """
    A handle on one instance. Dropping it changes nothing.
    """

    __slots__ = ("_entry", "_instances")

    def __init__(self, instances: Instances, entry: Entry) -> None:
        """
        Bind a handle. Made by the engine only.
        """
        self._instances = instances
        self._entry = entry

    def __repr__(self) -> str:
        return f"<memable.Invocation of workflow {self.workflow_name!r}, instance {self.instance_id!r}>"

    @property
    def workflow_name(self) -> str:
        """
        Name of the workflow.
        """
        return self._entry.workflow

    @property
    def instance_id(self) -> str:
        """
        Id of the instance.
        """
        return self._entry.instance_id

    async def state(self) -> WorkflowState:
        """
        Return the live state, else the recorded one. A checkpoint.

        Raises:
            EngineStoppedError: The engine's block has been left.
            StorageError: The journal cannot be read.
        """
        await trio.lowlevel.checkpoint()
        return await self._instances.entry_state(self._entry)

    async def wait(self) -> WorkflowState:
        """
        Wait until the instance has ended, is Suspended or is Blocked, and return that state. A checkpoint.

        Raises:
            EngineStoppedError: The engine stopped before that.
            StorageError: The journal cannot be read.
        """
        return await self._wait_for((Suspended, Blocked), "Invocation.wait")

    async def result(self) -> R_co:
        """
        Wait for the end, through suspensions, and return what the body returned. A checkpoint.

        Raises:
            WorkflowFailedError: It ended as Failed.
            WorkflowCancelledError: It ended as Cancelled.
            WorkflowBlockedError: It is Blocked.
            TypeMismatchError: Its output is recorded as another type than its workflow is annotated with now.
            EngineStoppedError: The engine stopped before that.
            StorageError: The journal cannot be read.

        Cancellation:
            The instance goes on.
        """
        state = await self._wait_for((Blocked,), "Invocation.result")
        match state:
            case Failed(error):
                raise WorkflowFailedError(workflow=self.workflow_name, instance_id=self.instance_id, error=error)
            case Cancelled(reason):
                raise WorkflowCancelledError(workflow=self.workflow_name, instance_id=self.instance_id, reason=reason)
            case Blocked(key, error):
                raise WorkflowBlockedError(
                    workflow=self.workflow_name, instance_id=self.instance_id, key=key, error=error
                )
        value: R_co = await self._instances.entry_value(self._entry)
        return value

    def states(self) -> StatusStream:
        """
        Return the current state and each change as an async iterable: see ``StatusStream``.
        """
        return StatusStream(self._instances, self.workflow_name, self.instance_id)

    # Interrupted by control-C just before it sleeps, it would be woken while it does something else.
    @trio.lowlevel.enable_ki_protection
    async def _wait_for(self, classes: tuple[type[WorkflowState], ...], operation: str) -> WorkflowState:
        entry = self._entry
        if entry.run is not None and entry.is_executing and not entry.header.status.is_terminal:
            # It sleeps then, which is a checkpoint by itself.
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()
        while True:
            version = entry.version
            state = await self._instances.entry_state(entry)
            if state.is_terminal or isinstance(state, classes):
                return state
            if not self._instances.may_change(entry):
                raise EngineStoppedError(operation=f"{operation} on instance {self.instance_id!r}")
            if version == entry.version:
                # Not by way of functions of their own: what waits is to be small, there may be thousands.
                del state
                await sleep_unless_cancelled(message_for(entry.add_sleeper(is_for_end=True).abort))


class StatusStream:
    """
    The states of an instance: the current one at once, then each change, latest wins, until a terminal one.

    A slow reader skips states; it never blocks a workflow and never lets memory grow. An async iterable and an async
    context manager.
    """

    __slots__ = ("_entry", "_instance_id", "_instances", "_last", "_workflow")

    def __init__(self, instances: Instances, workflow: str, instance_id: str) -> None:
        """
        Bind a stream. Made by the engine only.
        """
        self._instances = instances
        self._workflow = workflow
        self._instance_id = instance_id
        self._entry: Entry | None = None
        self._last: WorkflowState | None = None

    async def __aenter__(self) -> Self:
        await trio.lowlevel.checkpoint()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await trio.lowlevel.cancel_shielded_checkpoint()

    def __aiter__(self) -> StatusStream:
        return self

    async def __anext__(self) -> WorkflowState:
        """
        Wait for the next state. A checkpoint.

        Raises:
            InstanceNotFoundError: At the first one: the store has no such instance.
            StaleRunningError: At the first one: recorded as running, but not running here.
            EngineStoppedError: The engine stopped before there was another state.
        """
        await trio.lowlevel.checkpoint()
        if self._entry is None:
            entry = await self._instances.entry(self._workflow, self._instance_id)
            self._instances.refuse_stale(entry)
            self._entry = entry
        if self._last is not None and self._last.is_terminal:
            raise StopAsyncIteration
        while True:
            version = self._entry.version
            state = await self._instances.entry_state(self._entry)
            if state != self._last:
                self._last = state
                return state
            if not await self._instances.wait_entry_change(self._entry, version):
                raise EngineStoppedError(operation=f"the states of instance {self._instance_id!r}")
