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

ITEMS = 10_000
ALL_ITEMS = 100_000
LIMIT = 100
#: Beyond the results: what a few hundred tasks and a batch of records take.
GOAL_MB = 50.0


async def child(ctx: memable.Context, number: int) -> int:
    return await ctx.step("double", tiny, number)


def numbers(count: int) -> Iterator[int]:
    yield from range(count)


@memable.workflow
async def wide(ctx: memable.Context, items: int) -> int:
    results = await ctx.fan_out("double", child, numbers(items), limit=LIMIT)
    return sum(results)


def measure(settings: Settings) -> list[Figure]:
    sizes = (ITEMS, ALL_ITEMS) if settings.full else (ITEMS,)
    return [figure for items in sizes for figure in _figures(settings.directory / f"wide-{items}", items)]


def _figures(directory: Path, items: int) -> list[Figure]:
    command: list[str | Path] = [sys.executable, __file__, directory, str(items)]
    found = [
        json.loads(subprocess.run([*command, what], check=True, stdout=subprocess.PIPE, text=True).stdout)
        for what in ("time", "replay", "memory")
    ]
    timed, replayed, traced = found
    return [
        Figure(
            f"fan-out of {items:,}, one step each, limit {LIMIT}",
            timed["seconds"] / items * 1e6,
            "µs an item",
            note=f"{timed['seconds']:.1f} s",
        ),
        Figure(f"replay of a fan-out of {items:,}", replayed["seconds"] / items * 1e6, "µs an item"),
        Figure(
            f"fan-out of {items:,}, peak memory beyond what is left",
            traced["peak_mb"],
            "MB",
            goal=at_most(traced["peak_mb"], GOAL_MB, "MB"),
        ),
    ]


async def _measure(directory: Path, items: int, what: str) -> dict[str, Any]:
    if what == "memory":
        directory = directory.with_name(f"{directory.name}-traced")
    store = memable.FileStore(directory, durability="os")
    async with memable.open_engine(store, workflows=[wide], resume_on_start=False) as engine:
        if what == "memory":
            tracemalloc.start()
        began = time.perf_counter()
        if what == "replay":
            invocation = await engine.resume(wide, "one", forget=["double/0"])
        else:
            invocation = await engine.invoke(wide, items, instance_id="one")
        assert await invocation.result() == sum(range(items))
        seconds = time.perf_counter() - began
        left, peak = tracemalloc.get_traced_memory() if what == "memory" else (0, 0)
    return {"seconds": seconds, "peak_mb": (peak - left) / 1e6}


if __name__ == "__main__":
    print(json.dumps(trio.run(_measure, Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
