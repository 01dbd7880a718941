"""
How many objects an instance keeps: memory goes by that, and so does the time of Python's garbage collector.
"""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import memable
from running import ending_of, workflow_of
from waits import HOUR, P, settle

Body = Callable[[memable.Context], Awaitable[object]]

#: So many instances are counted together: what an engine keeps by itself is a small part of each one's share then.
COUNT = 100


async def one() -> int:
    return 1


async def suspends(ctx: memable.Context) -> None:
    await ctx.suspend(P)


async def sleeps(ctx: memable.Context) -> None:
    await ctx.sleep("night", HOUR)


async def returns(ctx: memable.Context) -> None:
    await ctx.step("a", one)


async def raises(ctx: memable.Context) -> None:
    raise ValueError("no")


async def fans_out(ctx: memable.Context) -> None:
    async def child(inner: memable.Context, item: int) -> int:
        return await inner.step("a", one)

    await ctx.fan_out("f", child, range(3))


async def count_kept(engine: memable.Engine, workflow: memable.Workflow[[], Any]) -> float:
    """
    Return how many objects the garbage collector looks at for each instance that waits.
    """

    async def add() -> int:
        for _ in range(COUNT):
            await (await engine.invoke(workflow)).wait()
        await settle()
        gc.collect()
        return len(gc.get_objects())

    # What is made only once is there after the first of them.
    before = await add()
    return (await add() - before) / COUNT


@pytest.mark.parametrize(
    ("body", "max_parked", "limit"),
    [(suspends, 10 * COUNT, 48), (suspends, 0, 12), (sleeps, 0, 18)],
    ids=["parked", "passivated", "sleeping"],
)
async def test_waiting_instance_keeps_few_objects(body: Body, max_parked: int, limit: int, autojump_clock: object):
    """
    An instance that waits keeps so few objects that ten thousand of them fit anywhere, the store's own included.

    A task of trio's that waits in a shielded scope takes 15 of them, and the store in memory 9.
    """
    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow], max_parked=max_parked) as engine:
        assert await count_kept(engine, workflow) <= limit


@pytest.mark.parametrize("body", [returns, raises, fans_out, suspends, sleeps])
async def test_instance_that_has_ended_leaves_no_cycles(body: Body, autojump_clock: object):
    """
    What a run has kept is gone as soon as it has ended, without the garbage collector.
    """
    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:

        async def run_some() -> None:
            for _ in range(COUNT):
                invocation = await engine.invoke(workflow)
                if body is suspends:
                    await invocation.wait()
                    await settle()
                    await engine.signal(workflow, invocation.instance_id, P, 1)
                await ending_of(invocation)

        await run_some()
        gc.collect()
        gc.disable()
        try:
            await run_some()
            left = gc.collect()
        finally:
            gc.enable()
        assert left < COUNT
