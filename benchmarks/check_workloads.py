"""
Short workloads by which two revisions of memable are compared: see check.py. They use what every revision has.

Most are told in processor time, which is memable's own and no matter of the disk. Where waiting for the disk, or waking
up after it, is what is measured, the wall clock tells.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Literal, TypeAlias

import trio
from workflows import count, time_concurrent, time_sequential, wide

import memable

APPROVAL = memable.SuspendPoint("approval", bool)
#: Text of a size that a document has.
LARGE = "One line of a text, as long as most.\n" * 10_000

SIGNALS = 200
#: The least of a few is what a time is when nothing disturbs it.
REPEATS = 3

Clock: TypeAlias = Callable[[], float]


@memable.workflow
async def approved(ctx: memable.Context, number: int) -> int:
    await ctx.suspend(APPROVAL)
    return number


@memable.workflow
async def large(ctx: memable.Context, steps: int) -> int:
    return sum([len(await ctx.step(f"text-{number}", large_text)) for number in range(steps)])


async def large_text() -> str:
    return LARGE


async def synced(directory: Path, clock: Clock) -> float:
    async with _engine(directory, "fsync") as engine:
        await time_sequential(engine, 50, "warm-up")
        began = clock()
        await time_sequential(engine, 300, "one")
        return clock() - began


async def unsynced(directory: Path, clock: Clock) -> float:
    async with _engine(directory) as engine:
        await time_sequential(engine, 50, "warm-up")
        began = clock()
        await time_sequential(engine, 1_500, "one")
        return clock() - began


async def concurrent(directory: Path, clock: Clock) -> float:
    async with _engine(directory) as engine:
        await time_concurrent(engine, 20, 5, "warm-up")
        began = clock()
        await time_concurrent(engine, 200, 15, "one")
        return clock() - began


async def short(directory: Path, clock: Clock) -> float:
    async with _engine(directory) as engine:
        await time_concurrent(engine, 20, 5, "warm-up")
        began = clock()
        await time_concurrent(engine, 300, 5, "one")
        return clock() - began


async def replay(directory: Path, clock: Clock) -> float:
    steps = 3_000
    async with _engine(directory) as engine:
        await time_sequential(engine, steps, "one")
    async with _engine(directory) as engine:
        began = clock()
        for _ in range(3):
            await (await engine.resume(count, "one", forget=[f"step-{steps - 1}"])).result()
        return clock() - began


async def signal_parked(directory: Path, clock: Clock) -> float:
    return await _signal(directory, clock, 1_000)


async def signal_passivated(directory: Path, clock: Clock) -> float:
    return await _signal(directory, clock, 0)


async def _signal(directory: Path, clock: Clock, max_parked: int) -> float:
    async with _engine(directory, max_parked=max_parked) as engine:
        for number in range(SIGNALS):
            await (await engine.invoke(approved, number, instance_id=str(number))).wait()
        began = clock()
        for number in range(SIGNALS):
            await engine.signal(approved, str(number), APPROVAL, True)
            await (await engine.get(approved, str(number))).result()
        return clock() - began


async def fan_out(directory: Path, clock: Clock) -> float:
    async with _engine(directory) as engine:
        await (await engine.invoke(wide, 50, instance_id="warm-up")).result()
        began = clock()
        await (await engine.invoke(wide, 1_000, instance_id="one")).result()
        return clock() - began


async def values(directory: Path, clock: Clock) -> float:
    async with _engine(directory) as engine:
        await (await engine.invoke(large, 1, instance_id="warm-up")).result()
        began = clock()
        await (await engine.invoke(large, 30, instance_id="one")).result()
        return clock() - began


async def opening(directory: Path, clock: Clock) -> float:
    async with _engine(directory) as engine:
        await time_concurrent(engine, 1_000, 5, "one")
    (directory / "checkpoint").unlink(missing_ok=True)
    began = clock()
    async with _engine(directory):
        return clock() - began


def _engine(
    directory: Path, durability: Literal["fsync", "os"] = "os", max_parked: int = 1_000
) -> AbstractAsyncContextManager[memable.Engine]:
    store = memable.FileStore(directory, durability=durability)
    return memable.open_engine(store, workflows=[count, approved, wide, large], max_parked=max_parked)


Workload: TypeAlias = Callable[[Path, Clock], Awaitable[float]]
WORKLOADS: dict[str, tuple[Workload, Clock]] = {
    "sequential steps": (synced, time.perf_counter),
    'sequential steps, durability="os"': (unsynced, time.perf_counter),
    "processor time of sequential steps": (unsynced, time.process_time),
    "concurrent steps": (concurrent, time.process_time),
    "5-step workflows at once": (short, time.process_time),
    "replay": (replay, time.process_time),
    "signals, parked": (signal_parked, time.process_time),
    "signals, passivated": (signal_passivated, time.process_time),
    "fan-out": (fan_out, time.process_time),
    "large values": (values, time.process_time),
    "opening a store": (opening, time.process_time),
}


def _run(workload: Workload, directory: Path, clock: Clock) -> float:
    gc.collect()
    return trio.run(workload, directory, clock)


def main() -> None:
    source, parent, *names = sys.argv[1:]
    found = Path(memable.__file__)
    if not found.is_relative_to(source):
        sys.exit(f"memable was imported from {found}, not from {source}")
    took_s: dict[str, float] = {}
    for name in names:
        workload, clock = WORKLOADS[name]
        with tempfile.TemporaryDirectory(dir=parent) as directory:
            places = [Path(directory) / str(number) for number in range(REPEATS)]
            took_s[name] = min(_run(workload, place, clock) for place in places)
    print(json.dumps(took_s))


if __name__ == "__main__":
    main()
