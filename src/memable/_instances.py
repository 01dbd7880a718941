"""
Finds instances, live or recorded, and tells what is known of them: for the engine and for handles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ._entry import Entry
from ._errors import (
    EngineStoppedError,
    InstanceNotFoundError,
    StaleRunningError,
    TypeMismatchError,
)
from ._journal import Journal
from ._keys import check_instance_id
from ._listing import ended_state, suspended_state, unfinished_state
from ._records import InstanceCompleted, InstanceRecord
from ._services import Services
from ._states import MetadataStatus, WorkflowState
from ._supervisor import Supervisor


class Instances:
    """
    All instances of one engine's store. What ``Invocation`` and ``StatusStream`` ask their questions.
    """

    def __init__(self, services: Services, supervisor: Supervisor) -> None:
        """
        Bind to the parts of an engine.
        """
        self._services = services
        self._supervisor = supervisor
        self.is_closed: bool = False
        "The engine's block has been left."

    def close(self) -> None:
        """
        Refuse everything from now on.
        """
        self.is_closed = True

    def refuse_closed(self, operation: str) -> None:
        """
        Raise ``EngineStoppedError`` if the engine's block has been left.
        """
        if self.is_closed:
            raise EngineStoppedError(operation=operation)

    async def entry(self, workflow: str, instance_id: str) -> Entry:
        """
        Return what is kept of an instance whose start is durable.

        Raises:
            InstanceNotFoundError: The store has no such instance.
        """
        self.refuse_closed(f"looking for instance {instance_id!r}")
        found = await self.find_entry(workflow, check_instance_id(instance_id))
        if found is None:
            raise InstanceNotFoundError(workflow=workflow, instance_id=instance_id)
        return found

    async def find_entry(self, workflow: str, instance_id: str) -> Entry | None:
        """
        Return what is kept of an instance, once nobody is in the middle of starting or resuming it.
        """
        while (entry := self._supervisor.known_entry(workflow, instance_id)) is not None and entry.busy:
            if not await self.wait_entry_change(entry, entry.version):
                raise EngineStoppedError(operation=f"looking for instance {instance_id!r}")
        if entry is not None and entry.is_started:
            return entry
        header = await self._services.store.find(workflow, instance_id)
        return None if header is None else self._supervisor.entry_of(header)

    async def entry_state(self, entry: Entry) -> WorkflowState:
        """
        Return the live state of an instance, else the recorded one.
        """
        self.refuse_closed(f"the state of instance {entry.instance_id!r}")
        header = entry.header
        while True:
            if entry.is_removed:
                raise InstanceNotFoundError(workflow=entry.workflow, instance_id=entry.instance_id)
            if entry.run is not None and not header.status.is_terminal:
                return entry.run.state()
            if header.status is MetadataStatus.RUNNING:
                return unfinished_state(header)
            if header.status is MetadataStatus.SUSPENDED:
                journal = await self.load(entry)
                if journal.suspended is not None and journal.seq == header.seq:
                    return suspended_state(header, journal)
                continue
            if entry.ending is not None:
                return ended_state(header, entry.ending, self._services.aliases)
            if entry.is_live:
                # Its run is about to say. To look it up would take a while, in which it may be removed.
                await entry.wait_change(entry.version)
            else:
                await self._load_ending(entry)

    async def entry_value(self, entry: Entry) -> Any:
        """
        Return the decoded output of a Completed instance.

        Raises:
            TypeMismatchError: It is recorded as another type than its workflow is annotated with now.
        """
        ending = entry.ending
        assert isinstance(ending, InstanceCompleted)
        definition = self._supervisor.definitions.get(entry.workflow)
        annotation = Any if definition is None else self._services.annotations.return_annotation(definition.fn)
        try:
            return self._services.codec.decode(ending.value, annotation)
        except TypeMismatchError as error:
            error.workflow, error.instance_id = entry.workflow, entry.instance_id
            raise

    async def wait_entry_change(self, entry: Entry, version: int) -> bool:
        """
        Wait until an instance has changed since *version*; return False if the engine has stopped.
        """
        if not self.may_change(entry):
            return False
        await entry.wait_change(version)
        return True

    def may_change(self, entry: Entry) -> bool:
        """
        Tell whether there may be another change of an instance; if not, the engine has stopped.
        """
        return entry.is_live or not self._supervisor.is_halted

    def refuse_stale(self, entry: Entry) -> None:
        """
        Raise ``StaleRunningError`` if an instance is recorded as running, but is not running here.
        """
        is_running = entry.is_live or self._supervisor.is_recovering(entry.workflow)
        if entry.header.status is MetadataStatus.RUNNING and not is_running:
            raise StaleRunningError(workflow=entry.workflow, instance_id=entry.instance_id)

    async def _load_ending(self, entry: Entry) -> None:
        journal = await self.load(entry)
        if journal.seq == entry.header.seq:
            entry.ending = journal.ending or journal.blocked
        # Else somebody has resumed or cancelled it meanwhile.

    # The store -----------------------------------------------------------------------------------------------

    async def journal(self, entry: Entry) -> Journal:
        """
        Return the journal of an instance: its run's, if it runs here.
        """
        return await self.load(entry) if entry.run is None else entry.run.journal

    async def load(self, entry: Entry) -> Journal:
        """
        Return the journal of an instance as the store has it. A store that cannot be read stops the engine.
        """
        return await self._supervisor.load(entry)

    async def records(self, entry: Entry) -> Sequence[InstanceRecord]:
        """
        Return all records of an instance, oldest first. A store that cannot be read stops the engine.
        """
        return await self._supervisor.records(entry)

    async def append(self, *records: InstanceRecord) -> None:
        """
        Make records durable. A store that cannot be written stops the engine.
        """
        await self._supervisor.append(*records)
