"""
Instances that wait for a signal, passivated and parked: the memory of each, and what starting and ending them takes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import trio
import trio.testing
from figures import Figure, Settings, at_most
from machine import resident_bytes

import memable

FEW = 10_000
MANY = 100_000
WARM_UP = 2_000
#: So many are started at once: memory for more tasks would be counted for the instances, since it is not given back.
STARTERS = 100
SIGNALS = 50
#: When no task has run for so long, none is being unwound.
UNWOUND_S = 0.1
GOAL_PASSIVATED_BYTES = 600
GOAL_PARKED_BYTES = 6 * 1024

APPROVAL = memable.SuspendPoint("approval", bool)


@memable.workflow
async def approval(ctx: memable.Context, number: int) -> int:
    await ctx.suspend(APPROVAL)
    return number


def measure(settings: Settings) -> list[Figure]:
    sizes = (FEW, MANY) if settings.full else (FEW,)
    ways = ("passivated", "parked")
    return [figure for instances in sizes for how in ways for figure in _figures(settings, how, instances)]


def _figures(settings: Settings, how: str, instances: int) -> list[Figure]:
    found = _child(settings.directory / f"{how}-{instances}", instances, instances + WARM_UP if how == "parked" else 0)
    goal = GOAL_PARKED_BYTES if how == "parked" else GOAL_PASSIVATED_BYTES
    what = f"{instances:,} instances suspended, {how}"
    return [
        Figure(
            f"{what}, resident each", found["bytes_each"], "bytes", goal=at_most(found["bytes_each"], goal, "bytes")
        ),
        Figure(
            f"{what}, start to wait", found["start_s"] * 1e6, "µs each", note=f"{found['start_s'] * instances:.1f} s"
        ),
        Figure(f"{what}, signal to result", found["signal_s"] * 1e6, "µs"),
        Figure(
            f"{what}, others that a signal made run",
            found["others"],
            "instances",
            goal=at_most(found["others"], 0, "instances"),
        ),
    ]


def _child(directory: Path, instances: int, max_parked: int) -> dict[str, Any]:
    # A fresh process: memory that was used before and is free again would hide what is used now.
    command: list[str | Path] = [sys.executable, __file__, directory, str(instances), str(max_parked)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


async def _measure(directory: Path, instances: int, max_parked: int) -> dict[str, float]:
    store = memable.FileStore(directory, durability="os")
    async with memable.open_engine(store, workflows=[approval], max_parked=max_parked) as engine:
        # What the first ones make room for, such as tasks that start others, isn't counted for the rest.
        await _start(engine, "warm-up", WARM_UP)
        before = resident_bytes()
        start_began = time.perf_counter()
        await _start(engine, "counted", instances)
        start_s = (time.perf_counter() - start_began - UNWOUND_S) / instances
        bytes_each = (resident_bytes() - before) / instances
        took = []
        before_signals = await _newest_records(engine)
        signalled = [f"counted-{number}" for number in range(SIGNALS)]
        for instance_id in signalled:
            invocation = await engine.get(approval, instance_id)
            began = time.perf_counter()
            await engine.signal(approval, instance_id, APPROVAL, True)
            await invocation.result()
            took.append(time.perf_counter() - began)
        after_signals = await _newest_records(engine)
        changed = {instance_id for instance_id, at in after_signals.items() if before_signals[instance_id] != at}
        others = len(changed - {*signalled})
    return {"bytes_each": bytes_each, "start_s": start_s, "signal_s": median(took), "others": others}


async def _start(engine: memable.Engine, name: str, instances: int) -> None:
    async def start(first: int) -> None:
        for number in range(first, instances, STARTERS):
            await (await engine.invoke(approval, number, instance_id=f"{name}-{number}")).wait()

    async with trio.open_nursery() as nursery:
        for first in range(STARTERS):
            nursery.start_soon(start, first)
    # Until those that are too many are unwound.
    await trio.testing.wait_all_tasks_blocked(UNWOUND_S)


async def _newest_records(engine: memable.Engine) -> dict[str, datetime]:
    return {metadata.instance_id: metadata.updated_at for metadata in await engine.list_instances()}


if __name__ == "__main__":
    print(json.dumps(trio.run(_measure, Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
