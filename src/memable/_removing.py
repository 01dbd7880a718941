"""
Removes instances that have ended: when somebody says so, or when their retention is over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable

import trio

from ._entry import Entry
from ._errors import InstanceNotFoundError, StorageError
from ._header import InstanceHeader
from ._keys import SEPARATOR
from ._records import InstanceRetired
from ._retry import Inherit
from ._services import Services
from ._supervisor import Supervisor
from ._timers import Timer

#: So many instances are removed in one batch, so that no single append holds up the rest.
MAX_BATCH = 1_000
#: An instance that somebody is just looking after when it is due is tried again after so many seconds.
BUSY_DELAY_S = 1.0


class Removals:
    """
    Removes instances of one engine's store, and knows when each is due.
    """

    def __init__(self, services: Services, supervisor: Supervisor, retention: float | None) -> None:
        """
        Bind to an engine.

        Args:
            services: The engine's.
            supervisor: Knows the workflows, and what is kept in memory.
            retention: Seconds for which ended instances of workflows that say nothing else are kept; None for ever.
        """
        self._services = services
        self._supervisor = supervisor
        self._retention = retention
        # For each workflow what is to be removed and when: it ends in the order in which it is due.
        self._due: dict[str, deque[tuple[float, InstanceHeader]]] = {}
        self._timers: dict[str, Timer] = {}
        self._work = trio.Event()
        self._kept_for_parents: dict[tuple[str, str], list[InstanceHeader]] = {}

    # Retention -----------------------------------------------------------------------------------------------

    async def watch(self, workflows: Collection[str]) -> None:
        """
        Remove what has ended of *workflows*, which are registered now, when it is due. Not a checkpoint.
        """
        headers = [
            header
            for header in await self._services.store.headers()
            if header.status.is_terminal and header.workflow in workflows
        ]
        for header in sorted(headers, key=lambda header: header.completed_at or 0.0):
            self.note_end(header)

    def note_end(self, header: InstanceHeader) -> None:
        """
        Take note that an instance has ended: its retention begins, and it is no reason to keep its children.
        """
        for child in self._kept_for_parents.pop((header.workflow, header.instance_id), ()):
            self._schedule(child, self._services.clock.now())
        retention_s = self._retention_of(header.workflow)
        if retention_s is not None and header.completed_at is not None:
            self._schedule(header, header.completed_at + retention_s)

    def _retention_of(self, workflow: str) -> float | None:
        definition = self._supervisor.definitions.get(workflow)
        if definition is None:
            # What it would say is not known.
            return None
        return self._retention if isinstance(definition.retention, Inherit) else definition.retention

    def _schedule(self, header: InstanceHeader, due: float) -> None:
        queue = self._due.setdefault(header.workflow, deque())
        queue.append((due, header))
        if len(queue) == 1:
            self._arm(header.workflow, due)

    def _arm(self, workflow: str, due: float) -> None:
        def fire() -> None:
            self._timers.pop(workflow, None)
            self._work.set()

        known = self._timers.pop(workflow, None)
        if known is not None:
            known.cancel()
        self._timers[workflow] = self._services.timers.arm(due, fire)

    async def run(self) -> None:
        """
        Remove what is due until cancelled. The one task for it.
        """
        while True:
            await self._work.wait()
            self._work = trio.Event()
            # What was begun is brought to its end; a store that fails stops the engine by itself.
            with trio.CancelScope(shield=True):
                try:
                    while headers := self._take_due():
                        await self._remove_due(headers)
                except StorageError:
                    return
            for workflow, queue in self._due.items():
                if queue:
                    self._arm(workflow, queue[0][0])

    def _take_due(self) -> list[InstanceHeader]:
        now = self._services.clock.now()
        found: list[InstanceHeader] = []
        for queue in self._due.values():
            while queue and queue[0][0] <= now and len(found) < MAX_BATCH:
                found.append(queue.popleft()[1])
        return found

    async def _remove_due(self, headers: Iterable[InstanceHeader]) -> None:
        now = self._services.clock.now()
        entries: dict[Entry, None] = {}
        for header in headers:
            retention_s = self._retention_of(header.workflow)
            if retention_s is None or header.completed_at is None or header.completed_at + retention_s > now:
                # It was resumed meanwhile, and is noted again when it ends.
                continue
            if header is not await self._services.store.find(header.workflow, header.instance_id):
                # Somebody deleted it.
                continue
            parent = await self._live_parent(header)
            if parent is not None:
                self._kept_for_parents.setdefault((parent.workflow, parent.instance_id), []).append(header)
                continue
            entry = self._supervisor.entry_of(header)
            if entry.busy or entry.is_live:
                self._due[header.workflow].appendleft((now + BUSY_DELAY_S, header))
                continue
            entries[entry] = None
        await self._retire(entries)

    # Removing ------------------------------------------------------------------------------------------------

    async def remove(self, entry: Entry) -> bool:
        """
        Remove an instance that has ended, and the attached children of it that have.

        Returns:
            Whether it is removed; if not, it has not ended, or is the child of a parent that has not.
        """
        while entry.busy or (entry.is_live and entry.header.status.is_terminal):
            await entry.wait_change(entry.version)
        if entry.is_removed:
            raise InstanceNotFoundError(workflow=entry.workflow, instance_id=entry.instance_id)
        if not entry.header.status.is_terminal or await self._live_parent(entry.header) is not None:
            return False
        await self._remove_with_children(entry)
        return True

    @trio.lowlevel.enable_ki_protection
    async def _remove_with_children(self, entry: Entry) -> None:
        entry.busy = True
        try:
            entries = await self._ended_below(entry)
        finally:
            entry.busy = False
        await self._retire(dict.fromkeys((entry, *entries)))

    async def _ended_below(self, entry: Entry) -> list[Entry]:
        found: list[Entry] = []
        if entry.header.has_children:
            journal = await self._supervisor.load(entry)
            for path, workflow in journal.children.items():
                child = await self._supervisor.find_child(workflow, entry.instance_id + SEPARATOR + path)
                if child is not None and child.header.status.is_terminal and not child.busy and not child.is_live:
                    found.append(child)
                    found.extend(await self._ended_below(child))
        return found

    async def _live_parent(self, header: InstanceHeader) -> InstanceHeader | None:
        """Return the parent that a child is kept for, if there is one that has not ended."""
        name = header.parent_name
        parent = None if name is None else await self._services.store.find(*name)
        return None if parent is None or parent.status.is_terminal else parent

    async def _retire(self, entries: dict[Entry, None]) -> None:
        if not entries:
            return
        for entry in entries:
            entry.busy = True
        try:
            at = self._services.clock.now()
            await self._supervisor.append(
                *(InstanceRetired(instance=entry.header.number, seq=entry.header.seq + 1, at=at) for entry in entries)
            )
            for entry in entries:
                self._supervisor.drop_entry(entry)
        finally:
            for entry in entries:
                entry.busy = False
                entry.notify()
