"""
Instances that wait for a signal, passivated and parked: the memory of each, and what one signal takes.
"""

from __future__ import annotations

import gc
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

import memable

PASSIVATED = 100_000
PARKED = 10_000
#: So many are started at once: memory for more tasks would be counted for the instances, since it is not given back.
STARTERS = 100
SIGNALS = 50
GOAL_BYTES = 1024

APPROVAL = memable.SuspendPoint("approval", bool)


@memable.workflow
async def approval(ctx: memable.Context, number: int) -> int:
    await ctx.suspend(APPROVAL)
    return number


def measure(settings: Settings) -> list[Figure]:
    passivated = _child(settings.directory / "passivated", PASSIVATED, 0)
    parked = _child(settings.directory / "parked", PARKED, PARKED)
    return [
        Figure(
            f"{PASSIVATED:,} instances suspended, passivated, resident each",
            passivated["bytes_each"],
            "bytes",
            goal=at_most(passivated["bytes_each"], GOAL_BYTES, "bytes"),
        ),
        Figure("signal to result, passivated", passivated["signal_s"] * 1e6, "µs", note=f"among {PASSIVATED:,}"),
        Figure(f"{PARKED:,} instances suspended, parked, resident each", parked["bytes_each"], "bytes"),
        Figure("signal to result, parked", parked["signal_s"] * 1e6, "µs", note=f"among {PARKED:,}"),
        Figure(
            "instances that another one's signal made run",
            passivated["others"] + parked["others"],
            "instances",
            goal=at_most(passivated["others"] + parked["others"], 0, "instances"),
        ),
    ]


def _child(directory: Path, instances: int, max_parked: int) -> dict[str, Any]:
    # A fresh process: memory that was used before and is free again would hide what is used now.
    command = [sys.executable, __file__, directory, str(instances), str(max_parked)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def _resident_bytes() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


async def _measure(directory: Path, instances: int, max_parked: int) -> dict[str, float]:
    store = memable.FileStore(directory, durability="os")
    async with memable.open_engine(store, workflows=[approval], max_parked=max_parked) as engine:
        before = _resident_bytes()

        async def start(first: int) -> None:
            for number in range(first, instances, STARTERS):
                invocation = await engine.invoke(approval, number, instance_id=str(number))
                await invocation.wait()

        async with trio.open_nursery() as nursery:
            for first in range(STARTERS):
                nursery.start_soon(start, first)
        # Until those that are too many are unwound.
        await trio.testing.wait_all_tasks_blocked(0.1)
        bytes_each = (_resident_bytes() - before) / instances
        took = []
        before_signals = await _newest_records(engine)
        for number in range(SIGNALS):
            invocation = await engine.get(approval, str(number))
            began = time.perf_counter()
            await engine.signal(approval, str(number), APPROVAL, True)
            await invocation.result()
            took.append(time.perf_counter() - began)
        after_signals = await _newest_records(engine)
        changed = {instance_id for instance_id, at in after_signals.items() if before_signals[instance_id] != at}
        others = len(changed - {str(number) for number in range(SIGNALS)})
    return {"bytes_each": bytes_each, "signal_s": median(took), "others": others}


async def _newest_records(engine: memable.Engine) -> dict[str, datetime]:
    return {metadata.instance_id: metadata.updated_at for metadata in await engine.list_instances()}


if __name__ == "__main__":
    print(json.dumps(trio.run(_measure, Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
