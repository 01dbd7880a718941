"""
One fan-out over very many items: its memory beyond the results, and its time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trio
from figures import Figure, Settings, at_most
from workflows import tiny

import memable

ITEMS = 100_000
LIMIT = 100
#: Beyond the results: what a few hundred tasks and a batch of records take.
GOAL_MB = 50.0


async def child(ctx: memable.Context, number: int) -> int:
    return await ctx.step("double", tiny, number)


def numbers() -> Iterator[int]:
    yield from range(ITEMS)


@memable.workflow
async def wide(ctx: memable.Context) -> int:
    results = await ctx.fan_out("double", child, numbers(), limit=LIMIT)
    return sum(results)


def measure(settings: Settings) -> list[Figure]:
    command = [sys.executable, __file__, settings.directory / "wide"]
    found = [
        json.loads(subprocess.run([*command, what], check=True, stdout=subprocess.PIPE, text=True).stdout)
        for what in ("time", "replay", "memory")
    ]
    timed, replayed, traced = found
    return [
        Figure(
            f"fan-out of {ITEMS:,}, one step each, limit {LIMIT}",
            timed["seconds"] / ITEMS * 1e6,
            "µs an item",
            note=f"{timed['seconds']:.1f} s",
        ),
        Figure(f"replay of a fan-out of {ITEMS:,}", replayed["seconds"] / ITEMS * 1e6, "µs an item"),
        Figure(
            f"fan-out of {ITEMS:,}, peak memory beyond what is left",
            traced["peak_mb"],
            "MB",
            goal=at_most(traced["peak_mb"], GOAL_MB, "MB"),
        ),
    ]


async def _measure(directory: Path, what: str) -> dict[str, Any]:
    if what == "memory":
        directory = directory.with_name("traced")
    store = memable.FileStore(directory, durability="os")
    async with memable.open_engine(store, workflows=[wide], resume_on_start=False) as engine:
        if what == "memory":
            tracemalloc.start()
        began = time.perf_counter()
        if what == "replay":
            invocation = await engine.resume(wide, "one", forget=["double/0"])
        else:
            invocation = await engine.invoke(wide, instance_id="one")
        assert await invocation.result() == sum(range(ITEMS))
        seconds = time.perf_counter() - began
        left, peak = tracemalloc.get_traced_memory() if what == "memory" else (0, 0)
    return {"seconds": seconds, "peak_mb": (peak - left) / 1e6}


if __name__ == "__main__":
    print(json.dumps(trio.run(_measure, Path(sys.argv[1]), sys.argv[2])))
