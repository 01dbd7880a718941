"""
How cost grows with steps, instances, children, memos and bytes: curves that show that nothing is quadratic.

Processor time, so that neither the disk nor other programs bend the curves.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TypeAlias

import trio
import trio.testing
from figures import Figure, Settings, at_most, exponent, number
from workflows import count, time_concurrent, wide

import memable

#: A little more than proportional is what the processor's caches make of it. Quadratic is 2.
GOAL_EXPONENT = 1.2
APPROVAL = memable.SuspendPoint("approval", bool)


@memable.workflow
async def waiting(ctx: memable.Context, number: int) -> int:
    await ctx.suspend(APPROVAL)
    return number


@memable.workflow
async def waiting_on(ctx: memable.Context, times: int) -> None:
    for turn in range(times):
        await ctx.suspend(memable.SuspendPoint(f"approval-{turn}", bool))


@memable.workflow
async def large(ctx: memable.Context, size: int) -> int:
    return len(await ctx.step("text", text_of, size))


async def text_of(size: int) -> str:
    return "x" * size


WORKFLOWS = (count, wide, waiting, waiting_on, large)


async def steps(directory: Path, size: int) -> float:
    async with _engine(directory) as engine:
        began = time.process_time()
        await (await engine.invoke(count, size, instance_id="one")).result()
        return time.process_time() - began


async def memos(directory: Path, size: int) -> float:
    # Opened again, and run again over all that it has but one.
    await steps(directory, size)
    began = time.process_time()
    async with _engine(directory) as engine:
        await (await engine.resume(count, "one", forget=[f"step-{size - 1}"])).result()
        return time.process_time() - began


async def instances(directory: Path, size: int) -> float:
    async with _engine(directory) as engine:
        began = time.process_time()
        for first in range(0, size, STARTERS):
            await time_concurrent(engine, min(STARTERS, size - first), 2, f"from-{first}")
        return time.process_time() - began


async def at_once(directory: Path, size: int) -> float:
    async with _engine(directory) as engine:
        began = time.process_time()
        await time_concurrent(engine, size, 2, "once")
        return time.process_time() - began


async def passivated(directory: Path, size: int) -> float:
    async with _engine(directory, max_parked=0) as engine:
        began = time.process_time()
        for number in range(size):
            await (await engine.invoke(waiting, number, instance_id=str(number))).wait()
        for number in range(size):
            await engine.signal(waiting, str(number), APPROVAL, True)
        for number in range(size):
            await (await engine.get(waiting, str(number))).result()
        return time.process_time() - began


async def waits(directory: Path, size: int) -> float:
    async with _engine(directory) as engine:
        began = time.process_time()
        invocation = await engine.invoke(waiting_on, size, instance_id="one")
        for turn in range(size):
            await invocation.wait()
            # Until it is recorded as suspended, too.
            await trio.testing.wait_all_tasks_blocked()
            await engine.signal(waiting_on, "one", memable.SuspendPoint(f"approval-{turn}", bool), True)
        await invocation.result()
        return time.process_time() - began


async def children(directory: Path, size: int) -> float:
    async with _engine(directory) as engine:
        began = time.process_time()
        await (await engine.invoke(wide, size, instance_id="one")).result()
        return time.process_time() - began


async def value_kib(directory: Path, size: int) -> float:
    async with _engine(directory) as engine:
        began = time.process_time()
        await (await engine.invoke(large, size * 1024, instance_id="one")).result()
        return time.process_time() - began


#: So many run at a time where many run in all.
STARTERS = 100
MAX_VALUE_BYTES = 1 << 30
#: The least of two processor times is as sure as the median of many.
MOST_ROUNDS = 2

Measured: TypeAlias = Callable[[Path, int], Awaitable[float]]
#: What grows, and from where.
CURVES: dict[str, tuple[Measured, int]] = {
    "steps of one instance": (steps, 1_000),
    "memos that are replayed": (memos, 1_000),
    "instances, a few at a time": (instances, 1_000),
    "instances at once": (at_once, 1_000),
    "passivated instances": (passivated, 1_000),
    "waits of one instance": (waits, 4_000),
    "items of a fan-out": (children, 1_000),
    "KiB of a value": (value_kib, 1_024),
}
#: How often it is quadrupled.
QUADRUPLINGS = 2
FULL_QUADRUPLINGS = 3


def measure(settings: Settings) -> list[Figure]:
    return [_curve(settings, what) for what in CURVES]


def _curve(settings: Settings, what: str) -> Figure:
    _, smallest = CURVES[what]
    quadruplings = FULL_QUADRUPLINGS if settings.full else QUADRUPLINGS
    sizes = [smallest * 4**power for power in range(quadruplings + 1)]
    totals = [
        min(_child(settings.directory, what, size, turn) for turn in range(min(settings.rounds, MOST_ROUNDS)))
        for size in sizes
    ]
    slope = exponent(sizes, totals)
    each = ", ".join(f"{size:,}: {number(total / size * 1e6)}" for size, total in zip(sizes, totals, strict=True))
    goal = at_most(slope, GOAL_EXPONENT, "as exponent")
    return Figure(f"growth with {what}", slope, "as exponent", goal=goal, note=f"µs each of {each}")


def _child(directory: Path, what: str, size: int, turn: int) -> float:
    # A fresh process: what one has left in memory is no concern of the next.
    place = directory / f"{list(CURVES).index(what)}-{size}-{turn}"
    command: list[str | Path] = [sys.executable, __file__, place, what, str(size)]
    took: float = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return took


def _engine(directory: Path, max_parked: int = 1_000) -> AbstractAsyncContextManager[memable.Engine]:
    store = memable.FileStore(directory, durability="os")
    return memable.open_engine(store, workflows=WORKFLOWS, max_parked=max_parked, max_value_bytes=MAX_VALUE_BYTES)


if __name__ == "__main__":
    run, _ = CURVES[sys.argv[2]]
    print(json.dumps(trio.run(run, Path(sys.argv[1]), int(sys.argv[3]))))
