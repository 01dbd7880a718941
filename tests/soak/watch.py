"""
A store that notes what it acknowledges, and so knows what must be found again.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import attrs

from memable._clock import Clock
from memable._header import InstanceHeader, header_of
from memable._records import InstanceRecord, InstanceRetired, InstanceStarted
from memable._store._protocol import OpenStore, Store


@attrs.define(eq=False)
class Append:
    """
    One call of ``append``.
    """

    records: tuple[InstanceRecord, ...]
    place: int
    "How many appends there were before it."
    is_acknowledged: bool = False


@attrs.define(eq=False)
class WatchedStore:
    """
    Passes everything on to a store, and notes what is asked of it and acknowledged.
    """

    inner: Store
    headers: dict[int, InstanceHeader] = attrs.field(factory=dict)
    "By number: as they were when the store was opened, with all acknowledged records since."
    appends: list[Append] = attrs.field(factory=list)
    "In the order of the calls, which is the order in the log."
    durable_count: int = 0
    "So many of the appends were acknowledged and synced, without asking whether they need be."
    is_open: bool = False
    _folded: int = 0
    "So many of the appends are in the headers."

    @classmethod
    def of(cls, inner: Store, headers: Iterable[InstanceHeader]) -> WatchedStore:
        """
        Return one that begins with copies of those headers.
        """
        return cls(inner, {header.number: copy.copy(header) for header in headers})

    def open(self, clock: Clock) -> AbstractAsyncContextManager[OpenStore]:
        return self._open(clock)

    @asynccontextmanager
    async def _open(self, clock: Clock) -> AsyncIterator[OpenStore]:
        async with self.inner.open(clock) as opened:
            self.is_open = True
            watched: Any = _WatchedOpenStore(self, opened)
            yield watched

    def in_flight(self) -> list[InstanceRecord]:
        """
        Return the records that were given to the store, which has not answered yet.
        """
        return [record for append in self.appends if not append.is_acknowledged for record in append.records]

    def note_sync(self) -> None:
        """
        Note that the end of the log was synced.
        """
        acknowledged = 0
        for append in self.appends:
            if not append.is_acknowledged:
                break
            acknowledged += 1
        self.durable_count = acknowledged

    def acknowledge(self, append: Append) -> None:
        """
        Take note that an append has returned.
        """
        append.is_acknowledged = True
        # Those before it in the log are durable as well, whoever is told first.
        while self._folded <= append.place:
            for record in self.appends[self._folded].records:
                self._fold(record)
            self._folded += 1

    def _fold(self, record: InstanceRecord) -> None:
        if isinstance(record, InstanceStarted):
            self.headers[record.instance] = header_of(record)
        elif isinstance(record, InstanceRetired):
            self.headers.pop(record.instance, None)
        else:
            self.headers[record.instance].apply(record)


@attrs.define(eq=False)
class _WatchedOpenStore:
    watch: WatchedStore
    inner: OpenStore

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def append(self, records: Sequence[InstanceRecord]) -> None:
        append = Append(tuple(records), len(self.watch.appends))
        self.watch.appends.append(append)
        try:
            await self.inner.append(records)
        except ValueError:
            # Another one was first: nothing was queued, before anybody else could call.
            assert self.watch.appends.pop() is append
            raise
        self.watch.acknowledge(append)
