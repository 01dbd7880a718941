"""
Runs an instance again: after it ended, was blocked or was interrupted, over its memos or some of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import trio

from ._entry import Entry
from ._errors import EngineStoppedError, InstanceBusyError, InstanceCompensatedError, UnknownKeyError
from ._instances import Instances
from ._journal import FailureMemo, Journal
from ._keys import SEPARATOR
from ._records import InstanceCompleted, InstanceRecord, InstanceResumed, InstanceRetired
from ._services import Services
from ._states import MetadataStatus
from ._supervisor import Supervisor

_LOST = (MetadataStatus.FAILED, MetadataStatus.CANCELLED)


class Resumptions:
    """
    Resumes instances of one engine.
    """

    def __init__(self, services: Services, supervisor: Supervisor, instances: Instances) -> None:
        """
        Bind to the parts of an engine.
        """
        self._services = services
        self._supervisor = supervisor
        self._instances = instances

    async def resume(self, entry: Entry, forgotten: tuple[str, ...], *, anew: bool) -> None:
        """
        Run an instance again, unless it executes or there is nothing to do.

        Raises:
            UnknownKeyError: Something is to be forgotten that is not recorded.
            InstanceBusyError: It executes, so nothing can be forgotten.
            InstanceCompensatedError: Its compensations have begun.
            EngineStoppedError: The engine stopped before.
        """
        was_live = entry.is_live
        if not await self._claim(entry, changes=bool(forgotten) or anew):
            return
        try:
            await self._resume(entry, forgotten, anew)
        finally:
            entry.busy = False
            if was_live and not entry.is_live:
                # Nothing came of it: what was unwound for it runs again.
                self._supervisor.rerun(entry)
            self._supervisor.release(entry)

    async def _claim(self, entry: Entry, *, changes: bool) -> bool:
        """
        Make sure that nobody else changes the instance and that it does not run; return False if it executes.
        """
        while True:
            version, run = entry.version, entry.run
            if not entry.busy and not entry.is_live:
                entry.busy = True
                return True
            if not entry.busy and run is not None and run.leaving != "passivated":
                if run.is_waiting and not run.is_ending and run.cancel_request is None:
                    return await self._unwind(entry)
                if changes:
                    raise InstanceBusyError(
                        workflow=entry.workflow, instance_id=entry.instance_id, operation="forgetting what is recorded"
                    )
                return False
            if not await self._instances.wait_entry_change(entry, version):
                raise EngineStoppedError(operation=f"engine.resume of instance {entry.instance_id!r}")

    async def _unwind(self, entry: Entry) -> bool:
        """Unwind a run that waits, and keep it from running again meanwhile."""
        assert entry.run is not None
        entry.busy = True
        entry.run.cancel("passivated")
        try:
            while entry.is_live:
                await entry.wait_change(entry.version)
        except BaseException:
            # It is to run again once it is unwound: nobody else sees to that.
            entry.busy = False
            entry.is_woken = True
            if not entry.is_live:
                self._supervisor.rerun(entry)
            entry.notify()
            raise
        return True

    @trio.lowlevel.enable_ki_protection
    async def _resume(self, entry: Entry, forgotten: tuple[str, ...], anew: bool) -> None:
        header = entry.header
        if header.status is MetadataStatus.COMPLETED and not forgotten and not anew:
            return
        journal = await self._instances.load(entry)
        if journal.compensating is not None and not anew and (forgotten or header.status.is_terminal):
            raise InstanceCompensatedError(workflow=entry.workflow, instance_id=entry.instance_id)
        unknown = tuple(path for path in forgotten if not journal.knows(path))
        if unknown:
            known = tuple(sorted(journal.known_paths()))
            raise UnknownKeyError(workflow=entry.workflow, instance_id=entry.instance_id, keys=unknown, known=known)
        dropped = (
            list(journal.children) if anew else [child for path in forgotten for child in journal.children_below(path)]
        )
        retired: list[InstanceRecord] = []
        removed_entries: list[Entry] = []
        for path in dict.fromkeys(dropped):
            for removed, retirement in await self._retire(entry, journal.children[path], path):
                removed_entries.append(removed)
                retired.append(retirement)
        if self._supervisor.is_halted:
            raise EngineStoppedError(operation=f"engine.resume of instance {entry.instance_id!r}")
        record = InstanceResumed(
            instance=header.number,
            seq=header.seq + 1,
            at=self._services.clock.now(),
            session=self._services.store.session,
            cleared=_cleared(journal),
            forgotten=forgotten,
            anew=anew,
        )
        journal.apply(record)
        children = await self._resumed_children(entry, journal)
        await self._instances.append(*retired, record, *(child_record for _, child_record in children))
        for removed in removed_entries:
            self._supervisor.drop_entry(removed)
            removed.notify()
        self._supervisor.start(entry, journal=journal)
        for child, _ in children:
            child.busy = False
            self._supervisor.start(child)
            child.notify()

    async def _retire(self, entry: Entry, workflow: str, path: str) -> list[tuple[Entry, InstanceRecord]]:
        """Return the records that remove a child instance and its own children; they are cancelled first."""
        child = await self._supervisor.find_child(workflow, entry.instance_id + SEPARATOR + path)
        if child is None:
            return []
        await self._supervisor.cancel_child(child, "its parent has forgotten it")
        if not child.header.status.is_terminal:
            raise InstanceBusyError(
                workflow=child.workflow, instance_id=child.instance_id, operation="forgetting it with its parent"
            )
        journal = await self._instances.load(child)
        records: list[tuple[Entry, InstanceRecord]] = []
        for inner, inner_workflow in journal.children.items():
            records.extend(await self._retire(child, inner_workflow, inner))
        at = self._services.clock.now()
        records.append((child, InstanceRetired(instance=child.header.number, seq=child.header.seq + 1, at=at)))
        return records

    async def _resumed_children(self, entry: Entry, journal: Journal) -> list[tuple[Entry, InstanceRecord]]:
        """Return the children that failed or were cancelled, and that the parent is about to wait for again."""
        found: list[tuple[Entry, InstanceRecord]] = []
        for path, workflow in journal.children.items():
            child = None
            if path not in journal.memos:
                child = await self._supervisor.find_child(workflow, entry.instance_id + SEPARATOR + path)
            if child is None or child.header.status not in _LOST or child.busy or child.is_live:
                continue
            child.busy = True
            inner = await self._instances.load(child)
            record = InstanceResumed(
                instance=child.header.number,
                seq=child.header.seq + 1,
                at=self._services.clock.now(),
                session=self._services.store.session,
                cleared=_cleared(inner),
                anew=inner.compensating is not None,
            )
            inner.apply(record)
            found.append((child, record))
            found.extend(await self._resumed_children(child, inner))
        return found


def _cleared(journal: Journal) -> tuple[str, ...]:
    """Return the paths of the recorded failures that left the body when it ended, to be given another chance."""
    return tuple(_cleared_paths(journal))


def _cleared_paths(journal: Journal) -> Iterator[str]:
    ended = journal.ending or journal.blocked
    if ended is None or isinstance(ended, InstanceCompleted):
        return
    for path in ended.failed_paths:
        if isinstance(journal.memos.get(path), FailureMemo):
            yield path
