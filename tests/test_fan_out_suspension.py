"""
What a crash leaves of instances whose fan-outs fail while others are recorded as suspended.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import memable
from memable._clock import Clock
from memable._records import InstanceRecord
from memable._testing._scheduling import seeded_scheduling

POINT = memable.SuspendPoint("p", bool)
HELD = ("fan_out_failed", "instance_suspended")


class HoldingStore:
    """
    Keeps what is appended at once, but lets those that append it go on only in a chosen order; copied before each.
    """

    def __init__(self) -> None:
        self.inner = memable.InMemoryStore()
        self.is_holding = False
        self.held: dict[str, list[trio.Event]] = {kind: [] for kind in HELD}
        self.copies: list[memable.InMemoryStore] = []

    def open(self, clock: Clock) -> AbstractAsyncContextManager[Any]:
        return self._open(clock)

    @asynccontextmanager
    async def _open(self, clock: Clock) -> AsyncIterator[Any]:
        async with self.inner.open(clock) as opened:
            yield _HoldingOpenStore(self, opened)


class _HoldingOpenStore:
    def __init__(self, store: HoldingStore, opened: Any) -> None:
        self._store, self._opened = store, opened

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened, name)

    async def append(self, records: Sequence[InstanceRecord]) -> None:
        store, kind = self._store, records[-1].kind
        store.copies.append(store.inner.crashed_copy())
        await self._opened.append(records)
        if store.is_holding and kind in HELD:
            event = trio.Event()
            store.held[kind].append(event)
            with trio.CancelScope(shield=True):
                await event.wait()


async def fail_while_suspensions_are_recorded() -> None:
    """
    Let two fan-outs fail right before and right after the parking task goes on to the next suspensions; crash; reopen.
    """
    go = trio.Event()

    async def child(ctx: memable.Context, item: str) -> None:
        if item == "waits":
            await ctx.suspend(POINT)
        await go.wait()
        raise ValueError

    @memable.workflow
    async def fans(ctx: memable.Context) -> None:
        with suppress(memable.ChildFailedError):
            await ctx.fan_out("f", child, ["waits", "fails"])

    @memable.workflow
    async def waits(ctx: memable.Context) -> None:
        await ctx.suspend(POINT)

    store = HoldingStore()
    async with memable.open_engine(store, workflows=[fans, waits]) as engine:
        for name in "12":
            await engine.invoke(fans, instance_id=name)
        await wait_all_tasks_blocked()
        store.is_holding = True
        await engine.invoke(waits)
        go.set()
        await wait_all_tasks_blocked()
        store.is_holding = False
        store.copies.clear()
        (first, second), (recorded,) = store.held["fan_out_failed"], store.held["instance_suspended"]
        for event in (first, recorded, second):
            event.set()
        await wait_all_tasks_blocked()
    assert store.copies
    for copy in store.copies:
        async with memable.open_engine(copy, workflows=[fans, waits]) as engine:
            await wait_all_tasks_blocked()
            for name in "12":
                assert await engine.state(fans, name) == memable.Completed(), name


# Not a test of pytest-trio's: the order of tasks is the seed's.
@pytest.mark.parametrize("seed", range(6))
def test_instance_is_not_found_suspended_where_it_was_being_cancelled(seed: int):
    """
    A regression: recorded as suspended at a child that the fan-out's failure was cancelling, it stayed so for ever.
    """
    with seeded_scheduling(seed):
        trio.run(fail_while_suspensions_are_recorded)
