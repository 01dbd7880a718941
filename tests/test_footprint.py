"""
How much an instance keeps, in objects and in bytes: Python's garbage collector takes time for each object.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import memable
from memable._entry import Entry
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
    [(suspends, 10 * COUNT, 38), (suspends, 0, 10), (sleeps, 0, 16)],
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


# To measure the coverage takes memory, too, of each frame: with the slow ones it is not measured.
@pytest.mark.slow
@pytest.mark.parametrize(("max_parked", "limit"), [(10 * COUNT, 6 * 1024), (0, 600)], ids=["parked", "passivated"])
async def test_waiting_instance_takes_little_memory(
    max_parked: int, limit: int, tmp_path: Path, autojump_clock: object
):
    """
    An instance that waits takes no more bytes than the project's goal for it, what a file store knows of it included.
    """
    workflow = workflow_of(suspends)
    store = memable.FileStore(tmp_path / "store", durability="os")
    async with memable.open_engine(store, workflows=[workflow], max_parked=max_parked) as engine:

        async def add(name: str) -> int:
            for number in range(COUNT):
                await (await engine.invoke(workflow, instance_id=f"{name}-{number}")).wait()
            await settle()
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        await add("warm-up")
        tracemalloc.start()
        try:
            before = await add("before")
            assert await add("counted") - before <= COUNT * limit
        finally:
            tracemalloc.stop()


async def test_nothing_is_kept_of_an_instance_that_has_ended_and_nobody_asks_for(autojump_clock: object):
    """
    What finds an instance by its name holds those that run, and the others only as long as somebody else does.
    """

    def count_entries() -> int:
        gc.collect()
        # Whatever other tests have left.
        return sum(isinstance(one, Entry) and one.instance_id.startswith("kept-") for one in gc.get_objects())

    workflow = workflow_of(suspends)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        for number in range(5):
            await engine.invoke(workflow, instance_id=f"kept-{number}")
        await settle()
        assert count_entries() == 5
        invocations = [await engine.get(workflow, f"kept-{number}") for number in range(5)]
        for invocation in invocations[1:]:
            await engine.signal(workflow, invocation.instance_id, P, 1)
            await invocation.result()
        assert count_entries() == 5
        del invocation, invocations
        assert count_entries() == 1


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
