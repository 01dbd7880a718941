"""
A process dies after 1,000 steps, and a fresh one runs the body again over its memos.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import trio
from figures import Figure, Settings, at_most
from workflows import tiny

import memable

STEPS = 1_000
GOAL_MS = 50.0

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
    crashed = settings.directory / "crashed"
    _child(crashed, "crash")
    results = []
    for number in range(settings.rounds):
        copy = settings.directory / f"replay-{number}"
        shutil.copytree(crashed, copy)
        results.append(_child(copy, "replay"))
    body = median(result["body_s"] for result in results) * 1e3
    whole = median(result["whole_s"] for result in results) * 1e3
    return [
        Figure(
            f"replay of {STEPS:,} memos, the body",
            body,
            "ms",
            f"{STEPS:,} bare checkpoints",
            median(result["bare_s"] for result in results) * 1e3,
            median(result["body_s"] / result["bare_s"] for result in results),
            goal=at_most(body, GOAL_MS, "ms"),
        ),
        Figure(f"replay of {STEPS:,} memos, open to result", whole, "ms"),
    ]


def _child(directory: Path, what: str) -> dict[str, Any]:
    # A fresh process, as after a crash: what is made on first use is part of what is measured.
    done = subprocess.run([sys.executable, __file__, directory, what], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout) if done.stdout else {}


async def _crash(directory: Path) -> None:
    async with memable.open_engine(memable.FileStore(directory, durability="os"), workflows=[replayed]) as engine:
        await (await engine.invoke(replayed, STEPS, instance_id="one")).result()


async def _replay(directory: Path) -> dict[str, float]:
    began = time.perf_counter()
    async with memable.open_engine(directory, workflows=[replayed]) as engine:
        await (await engine.get(replayed, "one")).result()
        whole_s = time.perf_counter() - began
    bare_began = time.perf_counter()
    for _ in range(STEPS):
        await trio.lowlevel.checkpoint()
    bare_s = time.perf_counter() - bare_began
    return {"body_s": _stamps[1] - _stamps[0], "whole_s": whole_s, "bare_s": bare_s}


if __name__ == "__main__":
    if sys.argv[2] == "crash":
        trio.run(_crash, Path(sys.argv[1]))
    else:
        print(json.dumps(trio.run(_replay, Path(sys.argv[1]))))
