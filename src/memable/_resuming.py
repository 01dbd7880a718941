"""
Runs an instance again: after it ended, was blocked or was interrupted, over its memos or some of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import attrs
import trio

from ._entry import Entry
from ._errors import EngineStoppedError, InstanceBusyError, InstanceCompensatedError, UnknownKeyError
from ._header import InstanceHeader
from ._instances import Instances
from ._journal import FailureMemo, Journal
from ._keys import SEPARATOR
from ._records import InstanceCompleted, InstanceRecord, InstanceResumed, InstanceRetired
from ._services import Services
from ._states import MetadataStatus
from ._supervisor import Supervisor

_LOST = (MetadataStatus.FAILED, MetadataStatus.CANCELLED)


@attrs.define
class _Plan:
    """What is to be recorded at once, and done then."""

    records: list[InstanceRecord] = attrs.field(factory=list[InstanceRecord])
    removed: list[Entry] = attrs.field(factory=list[Entry])
    "Child instances that are forgotten."
    orphans: list[Entry] = attrs.field(factory=list[Entry])
    "Child instances that are forgotten, and have not ended."
    resumed: list[Entry] = attrs.field(factory=list[Entry])
    "Child instances that run again."


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
        plan = _Plan()
        try:
            for path in dict.fromkeys(dropped):
                await self._retire(plan, entry, journal.children[path], path)
            await self._carry_out(plan, entry, journal, forgotten, anew=anew)
        finally:
            for child in (*plan.removed, *plan.resumed):
                child.busy = False
                child.notify()

    async def _carry_out(
        self, plan: _Plan, entry: Entry, journal: Journal, forgotten: tuple[str, ...], *, anew: bool
    ) -> None:
        header = entry.header
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
        plan.records.append(record)
        await self._resume_children(plan, entry, journal)
        await self._instances.append(*plan.records)
        for removed in plan.removed:
            self._supervisor.drop_entry(removed)
        self._supervisor.start(entry, journal=journal)
        for child in plan.resumed:
            self._supervisor.start(child)
        for orphan in plan.orphans:
            # Not before: cut short, this would leave a child cancelled that nobody has forgotten.
            self._supervisor.start_work(partial(self._supervisor.cancel_child, orphan, "its parent has forgotten it"))

    async def _retire(self, plan: _Plan, entry: Entry, workflow: str, path: str) -> None:
        """Plan to remove a child instance and its own children; what has not ended is cancelled afterwards."""
        child = await self._supervisor.find_child(workflow, entry.instance_id + SEPARATOR + path)
        if child is None:
            return
        if child.busy or child.is_live or not child.header.status.is_terminal:
            plan.orphans.append(child)
            return
        child.busy = True
        plan.removed.append(child)
        journal = await self._instances.load(child)
        for inner, inner_workflow in journal.children.items():
            await self._retire(plan, child, inner_workflow, inner)
        at = self._services.clock.now()
        plan.records.append(InstanceRetired(instance=child.header.number, seq=child.header.seq + 1, at=at))

    async def _resume_children(self, plan: _Plan, entry: Entry, journal: Journal) -> None:
        """Plan to resume the children that are lost, and that the parent is about to wait for again."""
        if journal.compensating is not None or journal.cancel_requested is not None:
            # It is only unwound: what was cancelled with it would go on without it.
            return
        for path, workflow in journal.children.items():
            # Those of unknown workflows stay as they are: the parent's call says what is missing.
            if workflow not in self._supervisor.definitions or journal.is_decided(path):
                continue
            child = await self._supervisor.find_child(workflow, entry.instance_id + SEPARATOR + path)
            if child is None or child.busy or child.is_live or not self._is_lost(child.header):
                continue
            child.busy = True
            plan.resumed.append(child)
            inner = await self._instances.load(child)
            # What has undone its effects begins anew, and what only was interrupted goes on.
            anew = inner.ending is not None and inner.compensating is not None
            if anew:
                for inner_path, inner_workflow in inner.children.items():
                    await self._retire(plan, child, inner_workflow, inner_path)
            record = InstanceResumed(
                instance=child.header.number,
                seq=child.header.seq + 1,
                at=self._services.clock.now(),
                session=self._services.store.session,
                cleared=_cleared(inner),
                anew=anew,
            )
            inner.apply(record)
            plan.records.append(record)
            await self._resume_children(plan, child, inner)

    def _is_lost(self, header: InstanceHeader) -> bool:
        """Tell whether a child that does not run here will not run by itself."""
        is_interrupted = header.status is MetadataStatus.RUNNING and header.session != self._services.store.session
        return header.status in _LOST or is_interrupted


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
