"""
The workloads that all engines run, on memable: see peers.py.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio
import trio.testing
from machine import resident_bytes
from workflows import count, time_concurrent, time_sequential, tiny

import memable

APPROVAL = memable.SuspendPoint("approval", bool)
#: All that are measured here are parked, as the peers' are.
MAX_PARKED = 1_000_000

_stamps: list[float] = []


@memable.workflow
async def replayed(ctx: memable.Context, steps: int) -> int:
    _stamps.append(time.perf_counter())
    total = 0
    for number in range(steps):
        total += await ctx.step(f"step-{number}", tiny, number)
    _stamps.append(time.perf_counter())
    if not os.environ.get("REPLAYING"):
        # As a crash would: nothing is closed, nothing is written.
        os._exit(0)
    return total


@memable.workflow
async def waiting(ctx: memable.Context, number: int) -> int:
    await ctx.suspend(APPROVAL)
    return number


async def at_once(engine: memable.Engine, workflows: int, steps: int) -> dict[str, float]:
    return {"seconds": await time_concurrent(engine, workflows, steps, f"once-{time.time_ns()}")}


async def in_turn(engine: memable.Engine, workflows: int, steps: int) -> dict[str, float]:
    name = f"turn-{time.time_ns()}"
    return {"seconds": sum([await time_sequential(engine, steps, f"{name}-{one}") for one in range(workflows)])}


async def crash(engine: memable.Engine, workflows: int, steps: int) -> dict[str, float]:
    await (await engine.invoke(replayed, steps, instance_id="one")).result()
    raise AssertionError("the process should have died")


async def replay(engine: memable.Engine, workflows: int, steps: int) -> dict[str, float]:
    await (await engine.get(replayed, "one")).result()
    return {"seconds": _stamps[1] - _stamps[0]}


async def park(engine: memable.Engine, workflows: int, steps: int) -> dict[str, float]:
    before = resident_bytes()
    for number in range(workflows):
        await (await engine.invoke(waiting, number)).wait()
    await trio.testing.wait_all_tasks_blocked()
    return {"bytes_each": (resident_bytes() - before) / workflows}


Workload = Callable[[memable.Engine, int, int], Awaitable[dict[str, float]]]
WORKLOADS: dict[str, Workload] = {
    "at_once": at_once,
    "in_turn": in_turn,
    "crash": crash,
    "replay": replay,
    "park": park,
}


async def _main(place: Path, jobs: list[list[Any]]) -> list[dict[str, float]]:
    async with memable.open_engine(place, workflows=[count, replayed, waiting], max_parked=MAX_PARKED) as engine:
        return [await WORKLOADS[name](engine, workflows, steps) for name, workflows, steps in jobs]


if __name__ == "__main__":
    print(json.dumps(trio.run(_main, Path(sys.argv[1]), json.loads(sys.argv[2]))))
