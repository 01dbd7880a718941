"""
Removes instances that have ended: when somebody says so, or when their retention is over.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from heapq import heappop, heappush
from itertools import count

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
        self._due: list[tuple[float, int, InstanceHeader]] = []
        "What is to be removed and when, as a heap; of what is due at once, the first noted first."
        self._counter = count()
        self._timer: Timer | None = None
        self._work = trio.Event()
        self._kept_for_parents: dict[tuple[str, str], list[InstanceHeader]] = {}

    # Retention -----------------------------------------------------------------------------------------------

    async def watch(self, workflows: Collection[str]) -> None:
        """
        Remove what has ended of *workflows*, which are registered now, when it is due. Not a checkpoint.
        """
        for header in await self._services.store.headers():
            if header.status.is_terminal and header.workflow in workflows:
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
        heappush(self._due, (due, next(self._counter), header))
        if self._due[0][2] is header:
            self._arm()

    def _arm(self) -> None:
        """Wait for what is due first."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._services.timers.arm(self._due[0][0], self._fire) if self._due else None

    def _fire(self) -> None:
        self._timer = None
        self._work.set()

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
            self._arm()

    def _take_due(self) -> list[InstanceHeader]:
        now = self._services.clock.now()
        found: list[InstanceHeader] = []
        while self._due and self._due[0][0] <= now and len(found) < MAX_BATCH:
            found.append(heappop(self._due)[2])
        return found

    @trio.lowlevel.enable_ki_protection
    async def _remove_due(self, headers: Iterable[InstanceHeader]) -> None:
        now = self._services.clock.now()
        taken: list[Entry] = []
        try:
            for header in headers:
                if not self._is_over(header, now):
                    # It was resumed meanwhile, and is noted again when it ends.
                    continue
                if header is not await self._services.store.find(header.workflow, header.instance_id):
                    # Somebody deleted it.
                    continue
                parent = await self._live_parent(header)
                if parent is not None:
                    self._kept_for_parents.setdefault((parent.workflow, parent.instance_id), []).append(header)
                    continue
                if not self._take(self._supervisor.entry_of(header), taken):
                    self._schedule(header, now + BUSY_DELAY_S)
            await self._retire(taken)
        finally:
            _let_go(taken)

    def _is_over(self, header: InstanceHeader, now: float) -> bool:
        retention_s = self._retention_of(header.workflow)
        return retention_s is not None and header.completed_at is not None and header.completed_at + retention_s <= now

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
        taken: list[Entry] = []
        try:
            self._take(entry, taken)
            # It grows by the children of those in it.
            for parent in taken:
                await self._take_children(parent, taken)
            await self._retire(taken)
        finally:
            _let_go(taken)

    async def _take_children(self, parent: Entry, taken: list[Entry]) -> None:
        if parent.header.has_children:
            journal = await self._supervisor.load(parent)
            for path, workflow in journal.children.items():
                child = await self._supervisor.find_child(workflow, parent.instance_id + SEPARATOR + path)
                if child is not None:
                    self._take(child, taken)

    def _take(self, entry: Entry, taken: list[Entry]) -> bool:
        """Keep others from changing an instance that is to be removed; return False if it is not to be now."""
        if entry.busy or entry.is_live or not entry.header.status.is_terminal:
            return False
        entry.busy = True
        taken.append(entry)
        return True

    async def _live_parent(self, header: InstanceHeader) -> InstanceHeader | None:
        """Return the parent that a child is kept for, if there is one that has not ended."""
        name = header.parent_name
        parent = None if name is None else await self._services.store.find(*name)
        return None if parent is None or parent.status.is_terminal else parent

    async def _retire(self, entries: Collection[Entry]) -> None:
        if not entries:
            return
        at = self._services.clock.now()
        await self._supervisor.append(
            *(InstanceRetired(instance=entry.header.number, seq=entry.header.seq + 1, at=at) for entry in entries)
        )
        for entry in entries:
            self._supervisor.drop_entry(entry)


def _let_go(entries: Iterable[Entry]) -> None:
    for entry in entries:
        entry.busy = False
        entry.notify()
