"""
Stores for tests of the engine: in memory and in a directory, and one that fails, waits or is interrupted on purpose.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import attrs
import trio

import memable
from memable._clock import Clock
from memable._header import InstanceHeader
from memable._records import InstanceRecord
from memable._states import MetadataStatus
from memable._store._protocol import OpenStore, Store


class Place(Protocol):
    """
    Somewhere that a store is kept.
    """

    def store(self) -> Store:
        """
        Return the store, to be opened.
        """
        ...

    def crash(self) -> Place:
        """
        Return another place, with what would be found here if the process were killed now.
        """
        ...


@attrs.frozen
class MemoryPlace:
    """
    A store in memory.
    """

    kept: memable.InMemoryStore = attrs.field(factory=memable.InMemoryStore)

    def store(self) -> Store:
        return self.kept

    def crash(self) -> Place:
        return MemoryPlace(self.kept.crashed_copy())


@attrs.define
class DirectoryPlace:
    """
    A store in a directory.
    """

    directory: Path
    copies: int = 0

    def store(self) -> Store:
        return memable.FileStore(self.directory, durability="os")

    def crash(self) -> Place:
        self.copies += 1
        copy = self.directory.with_name(f"{self.directory.name}-{self.copies}")
        shutil.copytree(self.directory, copy)
        return DirectoryPlace(copy)


async def _nothing(*_: object) -> None:
    pass


@attrs.define(eq=False)
class HookedStore:
    """
    A store that calls back before it does something. Once a hook has raised, it takes nothing any more.
    """

    inner: Store = attrs.field(factory=memable.InMemoryStore)
    before_append: Callable[[Sequence[InstanceRecord]], Awaitable[None]] = _nothing
    before_load: Callable[[int], Awaitable[None]] = _nothing
    after_load: Callable[[int], Awaitable[None]] = _nothing
    on_close: Callable[[], Any] = lambda: None

    def open(self, clock: Clock) -> AbstractAsyncContextManager[OpenStore]:
        return self._open(clock)

    @asynccontextmanager
    async def _open(self, clock: Clock) -> AsyncIterator[OpenStore]:
        async with self.inner.open(clock) as opened:
            hooked = _HookedOpenStore(self, opened)
            try:
                yield hooked
            finally:
                # Closing brings to its end what was begun.
                with trio.CancelScope(shield=True):
                    async with hooked.turns:
                        self.on_close()


@attrs.define(eq=False)
class _HookedOpenStore:
    hooks: HookedStore
    inner: OpenStore
    failure: Exception | None = None
    # Keeps appends in the order of the calls while hooks wait.
    turns: trio.Lock = attrs.field(factory=trio.Lock)

    @property
    def store_id(self) -> str:
        return self.inner.store_id

    @property
    def location(self) -> str:
        return self.inner.location

    @property
    def session(self) -> int:
        return self.inner.session

    @property
    def after_crash(self) -> bool:
        return self.inner.after_crash

    def has_crashed(self, session: int) -> bool:
        return self.inner.has_crashed(session)

    async def allocate_number(self) -> int:
        return await self.inner.allocate_number()

    async def append(self, records: Sequence[InstanceRecord]) -> None:
        with trio.CancelScope(shield=True):
            async with self.turns:
                if self.failure is not None:
                    raise self.failure
                try:
                    await self.hooks.before_append(records)
                except Exception as error:
                    self.failure = error
                    raise
                await self.inner.append(records)

    async def load(self, number: int) -> Sequence[InstanceRecord]:
        await self.hooks.before_load(number)
        records = await self.inner.load(number)
        await self.hooks.after_load(number)
        return records

    async def find(self, workflow: str, instance_id: str) -> InstanceHeader | None:
        return await self.inner.find(workflow, instance_id)

    async def live(self) -> Sequence[InstanceHeader]:
        return await self.inner.live()

    async def headers(
        self,
        *,
        after: int = 0,
        limit: int | None = None,
        workflow: str | None = None,
        status: MetadataStatus | None = None,
    ) -> Sequence[InstanceHeader]:
        return await self.inner.headers(after=after, limit=limit, workflow=workflow, status=status)

    async def ended(self, workflow: str, *, until: float, limit: int) -> Sequence[InstanceHeader]:
        return await self.inner.ended(workflow, until=until, limit=limit)

    async def first_end(self, workflow: str) -> float | None:
        return await self.inner.first_end(workflow)

    async def maintain(self) -> None:
        await self.inner.maintain()


def disk_full() -> memable.StorageError:
    """
    Return what a store raises that cannot write.
    """
    return memable.StorageError(location="the test's store", problem="no space left")


def failing_at(kind: str, inner: Store | None = None) -> HookedStore:
    """
    Return a store that fails to write the first record of that kind, and everything after it.
    """

    async def fail(records: Sequence[InstanceRecord]) -> None:
        if any(record.kind == kind for record in records):
            raise disk_full()

    return HookedStore(memable.InMemoryStore() if inner is None else inner, before_append=fail)


@attrs.define(eq=False)
class Gate:
    """
    Holds up each append of a record of one kind until it is opened. Give ``pass_`` as the hook.
    """

    kind: str
    is_reached: trio.Event = attrs.field(factory=trio.Event)
    is_open: trio.Event = attrs.field(factory=trio.Event)

    async def pass_(self, records: Sequence[InstanceRecord]) -> None:
        if any(record.kind == self.kind for record in records):
            self.is_reached.set()
            await self.is_open.wait()
