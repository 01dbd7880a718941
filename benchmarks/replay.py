"""
A process dies after very many steps, and a fresh one runs the body again over its memos.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import trio
from figures import Figure, Settings, at_most, ratio_of
from workflows import tiny

import memable

SIZES = (1_000, 10_000)
GOAL_US = 10.0
#: A longer journal may cost more of the processor's caches, and no more than that.
GOAL_GROWTH = 1.25

_stamps: list[float] = []


@memable.workflow
async def replayed(ctx: memable.Context, steps: int) -> int:
    _stamps.append(time.perf_counter())
    total = 0
    for number in range(steps):
        total += await ctx.step(f"step-{number}", tiny, number)
    _stamps.append(time.perf_counter())
    if not ctx.replaying:
        # As a crash would: nothing is closed, nothing is written.
        os._exit(0)
    return total


def measure(settings: Settings) -> list[Figure]:
    crashed = {size: settings.directory / f"crashed-{size}" for size in SIZES}
    for size, directory in crashed.items():
        _child(directory, size, "crash")
    found: dict[int, list[dict[str, float]]] = {size: [] for size in SIZES}
    for number in range(settings.rounds):
        for size, directory in crashed.items():
            copy = settings.directory / f"replay-{size}-{number}"
            shutil.copytree(directory, copy)
            found[size].append(_child(copy, size, "replay"))
    few, many = (_us_each(found[size], size, "body_s") for size in SIZES)
    growth = ratio_of(many, few)
    return [
        *(figure for size in SIZES for figure in _figures(size, found[size])),
        Figure(
            f"replay of {SIZES[1]:,} memos, the body",
            median(many),
            "µs a memo",
            f"of {SIZES[0]:,} memos",
            median(few),
            growth,
            goal=at_most(growth, GOAL_GROWTH, "times"),
        ),
    ]


def _figures(size: int, found: Sequence[dict[str, float]]) -> list[Figure]:
    body, bare = (_us_each(found, size, what) for what in ("body_s", "bare_s"))
    return [
        Figure(
            f"replay of {size:,} memos, the body",
            median(body),
            "µs a memo",
            "bare checkpoints",
            median(bare),
            ratio_of(body, bare),
            goal=at_most(median(body), GOAL_US, "µs"),
        ),
        Figure(
            f"replay of {size:,} memos, open to result",
            median(one["whole_s"] for one in found) * 1e3,
            "ms",
        ),
    ]


def _us_each(found: Sequence[dict[str, float]], size: int, what: str) -> list[float]:
    return [one[what] / size * 1e6 for one in found]


def _child(directory: Path, size: int, what: str) -> dict[str, Any]:
    # A fresh process, as after a crash: what is made on first use is part of what is measured.
    command: list[str | Path] = [sys.executable, __file__, directory, str(size), what]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
    return found


async def _crash(directory: Path, size: int) -> None:
    async with memable.open_engine(memable.FileStore(directory, durability="os"), workflows=[replayed]) as engine:
        await (await engine.invoke(replayed, size, instance_id="one")).result()


async def _replay(directory: Path, size: int) -> dict[str, float]:
    began = time.perf_counter()
    async with memable.open_engine(directory, workflows=[replayed]) as engine:
        await (await engine.get(replayed, "one")).result()
        whole_s = time.perf_counter() - began
    bare_began = time.perf_counter()
    for _ in range(size):
        await trio.lowlevel.checkpoint()
    bare_s = time.perf_counter() - bare_began
    return {"body_s": _stamps[1] - _stamps[0], "whole_s": whole_s, "bare_s": bare_s}


if __name__ == "__main__":
    arguments = (Path(sys.argv[1]), int(sys.argv[2]))
    if sys.argv[3] == "crash":
        trio.run(_crash, *arguments)
    else:
        print(json.dumps(trio.run(_replay, *arguments)))
