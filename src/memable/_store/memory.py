"""
A store that keeps its records in memory: for tests, and for work that need not outlive the process.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import chain
from operator import itemgetter

import attrs
import trio

from .._clock import Clock
from .._errors import StorageError, StoreLockedError
from .._header import InstanceHeader
from .._records import InstanceRecord, InstanceRetired
from .._states import MetadataStatus
from ._index import HeaderIndex
from ._protocol import OpenStore

LOCATION = "InMemoryStore()"


@attrs.define(eq=False)
class _Kept:
    """What outlives an opening."""

    journals: dict[int, list[tuple[int, InstanceRecord]]] = attrs.field(
        factory=dict[int, "list[tuple[int, InstanceRecord]]"]
    )
    "Records by instance, each with its place among all records ever appended."
    record_count: int = 0
    "How many were ever appended."
    last_number: int = 0
    "The greatest number of an instance, retired ones included."
    newest_at: float | None = None
    "When the newest record was made."

    def add(self, record: InstanceRecord) -> None:
        number = record.instance
        self.record_count += 1
        self.last_number = max(self.last_number, number)
        self.newest_at = record.at if self.newest_at is None else max(self.newest_at, record.at)
        if type(record) is InstanceRetired:
            del self.journals[number]
        else:
            self.journals.setdefault(number, []).append((self.record_count, record))

    def records(self) -> list[InstanceRecord]:
        """Return all records in the order in which they were appended."""
        return [record for _, record in sorted(chain.from_iterable(self.journals.values()), key=itemgetter(0))]

    def copy(self) -> _Kept:
        return attrs.evolve(self, journals={number: journal.copy() for number, journal in self.journals.items()})


@attrs.define(eq=False)
class InMemoryStore:
    """
    Keeps records for as long as the object lives. May be opened again and again, by one engine at a time.

    Durability:
        None beyond the process.
    """

    _store_id: str = attrs.field(factory=lambda: uuid.uuid4().hex, init=False)
    _kept: _Kept = attrs.field(factory=_Kept, init=False, repr=False)
    _sessions: int = attrs.field(default=0, init=False)
    _crashed: frozenset[int] = attrs.field(default=frozenset(), init=False)
    "The sessions that were not closed in order."
    _is_open: bool = attrs.field(default=False, init=False)

    def open(self, clock: Clock) -> AbstractAsyncContextManager[OpenStore]:
        """
        Lock the store; unlock it when the block is left.

        Args:
            clock: Tells the time. It goes on from the store's newest record.

        Raises:
            StoreLockedError: Another engine has it open. Close that one first.
        """
        return self._open(clock)

    def crashed_copy(self) -> InMemoryStore:
        """
        Return another store that holds what this one holds now, as found after the process was killed.

        Lets a test restart an engine at any moment while the first one still runs.
        """
        copy = InMemoryStore()
        copy._store_id = self._store_id
        copy._kept = self._kept.copy()
        copy._sessions = self._sessions
        copy._crashed = self._crashed | {self._sessions} if self._is_open else self._crashed
        return copy

    @property
    def _records(self) -> list[InstanceRecord]:
        """All records that count, in the order in which they were appended, for tests."""
        return self._kept.records()

    @asynccontextmanager
    async def _open(self, clock: Clock) -> AsyncGenerator[OpenStore]:
        await trio.lowlevel.checkpoint()
        if self._is_open:
            raise StoreLockedError(
                location=LOCATION,
                problem="another engine of this process has it open; close that one first",
                pid=os.getpid(),
                host=socket.gethostname(),
            )
        if self._kept.newest_at is not None:
            clock.not_before(self._kept.newest_at)
        opened = _OpenInMemoryStore(
            store_id=self._store_id, session=self._sessions + 1, crashed=self._crashed, kept=self._kept
        )
        self._is_open = True
        self._sessions += 1
        try:
            yield opened
        finally:
            opened.closed = True
            self._is_open = False


def store_of(records: Iterable[InstanceRecord]) -> InMemoryStore:
    """
    Return a store that holds *records*, each instance's in their order, as found after it was closed in order.
    """
    store = InMemoryStore()
    for record in records:
        store._kept.add(record)  # noqa: SLF001 - this module's own
        store._sessions = max(store._sessions, getattr(record, "session", 0))  # noqa: SLF001 - this module's own
    return store


@attrs.define(eq=False)
class _OpenInMemoryStore:
    store_id: str
    session: int
    crashed: frozenset[int]
    kept: _Kept
    closed: bool = False
    _index: HeaderIndex = attrs.field(factory=HeaderIndex, init=False)

    def __attrs_post_init__(self) -> None:
        for record in self.kept.records():
            self._index.fold(record)
        self._index.last_number = self.kept.last_number

    @property
    def location(self) -> str:
        return LOCATION

    @property
    def after_crash(self) -> bool:
        return self.has_crashed(self.session - 1)

    def has_crashed(self, session: int) -> bool:
        return session in self.crashed

    async def allocate_number(self) -> int:
        return self._index.allocate_number()

    @trio.lowlevel.enable_ki_protection
    async def append(self, records: Sequence[InstanceRecord]) -> None:
        self._check_open()
        self._index.admit(records)
        for record in records:
            self._index.fold(record)
            self.kept.add(record)
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def load(self, number: int) -> Sequence[InstanceRecord]:
        self._check_open()
        await trio.lowlevel.checkpoint()
        return [record for _, record in self.kept.journals[number]]

    async def find(self, workflow: str, instance_id: str) -> InstanceHeader | None:
        return self._index.find(workflow, instance_id)

    async def live(self) -> Sequence[InstanceHeader]:
        return self._index.live()

    async def headers(
        self,
        *,
        after: int = 0,
        limit: int | None = None,
        workflow: str | None = None,
        status: MetadataStatus | None = None,
    ) -> Sequence[InstanceHeader]:
        return self._index.select(after=after, limit=limit, workflow=workflow, status=status)

    async def ended(self, workflow: str, *, until: float, limit: int) -> Sequence[InstanceHeader]:
        return self._index.ended(workflow, until, limit)

    async def first_end(self, workflow: str) -> float | None:
        return self._index.first_end(workflow)

    async def maintain(self) -> None:
        await trio.sleep_forever()

    def _check_open(self) -> None:
        if self.closed:
            raise StorageError(location=LOCATION, problem="the store is closed; open it again")
