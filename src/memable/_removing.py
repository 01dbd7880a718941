"""
Removes instances that have ended: when somebody says so, or when their retention is over.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import trio

from ._entry import Entry
from ._errors import InstanceNotFoundError
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
#: So many instances are removed at once: it takes some milliseconds, in which nobody else gets a turn.
AT_ONCE = 50
#: What is due and stays has to be asked past each time: for each batch of those, the next look waits so many seconds.
REST_S = 1.0
#: A date that has come by addition may not have come by subtraction: what is left for that reason is due so much later.
ROUNDING_S = 0.001
#: A retention of more seconds (some 30,000 years) is one for ever: times that far away cannot be reckoned with.
FOREVER_S = 1e12


class Removals:
    """
    Removes instances of one engine's store when they are due.

    Keeps nothing of those that have ended, however many: the store tells who of a workflow ended first, and one timer
    waits until the first of all is due.
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
        self._retentions: dict[str, float] = {}
        "In seconds, of the workflows that are watched and not kept for ever."
        self._timer: Timer | None = None
        "Fires when it is time to look for what is due."
        self._look_at = math.inf
        "When it fires."
        self._rests_until = -math.inf
        "It does not fire before."
        self._work = trio.Event()

    # Retention -----------------------------------------------------------------------------------------------

    async def watch(self, workflows: Collection[str]) -> None:
        """
        Remove what has ended of *workflows*, which are registered now, when it is due. Not a checkpoint.
        """
        for workflow in workflows:
            retention_s = self._retention_of(workflow)
            if retention_s is not None and retention_s <= FOREVER_S:
                self._retentions[workflow] = retention_s
                first = await self._services.store.first_end(workflow)
                if first is not None:
                    self._arm(first + retention_s)

    def note_end(self, header: InstanceHeader) -> None:
        """
        Take note that an instance has ended: its retention begins, and it is no reason to keep its children.
        """
        if header.has_children and self._retentions:
            # The store offers them from now on, and they may have been due for long.
            self._arm(self._services.clock.now())
        retention_s = self._retentions.get(header.workflow)
        if retention_s is not None and header.completed_at is not None:
            self._arm(header.completed_at + retention_s)

    def _retention_of(self, workflow: str) -> float | None:
        definition = self._supervisor.definitions[workflow]
        return self._retention if isinstance(definition.retention, Inherit) else definition.retention

    def _arm(self, at: float) -> None:
        """Look for what is due at that time, if not sooner."""
        at = max(at, self._rests_until)
        if self._timer is not None:
            if self._look_at <= at:
                return
            self._timer.cancel()
        self._look_at = at
        self._timer = self._services.timers.arm(at, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._work.set()

    async def run(self) -> None:
        """
        Remove what is due until cancelled. The one task for it.

        Raises:
            StorageError: The store failed.

        Cancellation:
            A batch that was begun is brought to its end; the rest of what is due is for the next open.
        """
        while True:
            await self._work.wait()
            self._work = trio.Event()
            for workflow, retention_s in list(self._retentions.items()):
                await self._remove_due(workflow, retention_s)

    async def _remove_due(self, workflow: str, retention_s: float) -> None:
        """Remove what is due of a workflow, and see to it that the rest is looked at when it is."""
        store, clock = self._services.store, self._services.clock
        until = clock.now() - retention_s
        passed: set[int] = set()
        "The numbers of those that are due, and cannot be removed now. The store goes on listing them in front."
        is_any_busy = False
        count = limit = 0
        while count == limit:
            began = trio.current_time()
            limit = len(passed) + AT_ONCE
            offered = await store.ended(workflow, until=until, limit=limit)
            count = len(offered)
            due = [header for header in offered if header.number not in passed]
            is_any_busy |= await self._remove_batch(due, passed)
            # Others get their turn, also where nothing was to be written: nobody waits for this.
            await trio.lowlevel.checkpoint()
            if not clock.is_virtual:
                await trio.sleep(trio.current_time() - began)
        first = await self._first_end(workflow, passed)
        now = clock.now()
        self._rests_until = max(self._rests_until, now + len(passed) // MAX_BATCH * REST_S)
        if is_any_busy:
            self._arm(now + BUSY_DELAY_S)
        if first is not None:
            self._arm(max(first + retention_s, now + ROUNDING_S))

    async def _first_end(self, workflow: str, passed: Collection[int]) -> float | None:
        """Return when the first of those ended that the store offers, of others than those that were passed."""
        store = self._services.store
        if not passed:
            return await store.first_end(workflow)
        offered = await store.ended(workflow, until=math.inf, limit=len(passed) + 1)
        return next((header.completed_at for header in offered if header.number not in passed), None)

    async def _remove_batch(self, headers: Iterable[InstanceHeader], passed: set[int]) -> bool:
        """
        Remove what has ended and is due, at once; add to *passed* what is to stay. Return whether any of it is busy.
        """
        taken: list[Entry] = []
        is_any_busy = False
        try:
            for header in headers:
                if await self._live_parent(header) is not None:
                    # Its parent was resumed. That one's end is when to look again.
                    passed.add(header.number)
                elif self._is_parent_busy(header) or not self._take(self._supervisor.entry_of(header), taken):
                    passed.add(header.number)
                    is_any_busy = True
            await self._retire(taken)
        finally:
            _let_go(taken)
        return is_any_busy

    def _is_parent_busy(self, header: InstanceHeader) -> bool:
        """Tell whether somebody is changing an instance that would keep this child if it were resumed."""
        name = header.parent_name
        parent = None if name is None else self._supervisor.known_entry(*name)
        return parent is not None and parent.busy

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
