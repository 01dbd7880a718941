"""
The workflows that are measured.
"""

from __future__ import annotations

import time

import trio

import memable


async def tiny(number: int) -> int:
    """
    Do nothing worth speaking of: all that is measured is memable's.
    """
    return number


@memable.workflow
async def count(ctx: memable.Context, steps: int) -> int:
    total = 0
    for number in range(steps):
        total += await ctx.step(f"step-{number}", tiny, number)
    return total


@memable.workflow
async def wide(ctx: memable.Context, items: int) -> int:
    return sum(await ctx.fan_out("double", child, range(items), limit=100))


async def child(ctx: memable.Context, number: int) -> int:
    return await ctx.step("double", tiny, number)


async def time_sequential(engine: memable.Engine, steps: int, name: str) -> float:
    """
    Return the seconds that one workflow takes from its start to its result.
    """
    began = time.perf_counter()
    invocation = await engine.invoke(count, steps, instance_id=name)
    await invocation.result()
    return time.perf_counter() - began


async def time_concurrent(engine: memable.Engine, instances: int, steps: int, name: str) -> float:
    """
    Return the seconds that so many workflows take that start at once.
    """

    async def one(number: int) -> None:
        invocation = await engine.invoke(count, steps, instance_id=f"{name}-{number}")
        await invocation.result()

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for number in range(instances):
            nursery.start_soon(one, number)
    return time.perf_counter() - began
