"""
Giving back the space of a million instances whose retention is over, while a hundred workflows run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import trio
from big_store import SEGMENT_BYTES, write_store
from figures import Figure, Settings, at_most

import memable

FINISHED = 1_000_000
LIVE = 10_000
WORKFLOWS = 100
#: How long the workflows are watched before anything is removed.
UNDISTURBED_S = 10.0
GOAL_LATENCY_RATIO = 2.0
#: When nothing was given back for so long, all was.
QUIET_S = 10.0


@memable.workflow
async def order(ctx: memable.Context, number: int) -> str:
    raise NotImplementedError


async def _nothing() -> None:
    await trio.lowlevel.checkpoint()


def measure(settings: Settings) -> list[Figure]:
    directory = settings.directory / "store"
    write_store(directory, FINISHED, LIVE)
    # A fresh process, as that of a user would be.
    done = subprocess.run([sys.executable, __file__, directory], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    ratio = found["disturbed_s"] / found["undisturbed_s"]
    extra_goal = SEGMENT_BYTES + found["live_bytes"]
    return [
        Figure(
            f"step of {WORKFLOWS} workflows while {FINISHED:,} instances are removed and compacted",
            found["disturbed_s"] * 1e3,
            "ms",
            against="without that",
            raw=found["undisturbed_s"] * 1e3,
            ratio=ratio,
            goal=at_most(ratio, GOAL_LATENCY_RATIO, "times"),
        ),
        Figure(
            "extra disk space meanwhile, over the beginning",
            found["extra_bytes"] / 1e6,
            "MB",
            goal=at_most(found["extra_bytes"] / 1e6, extra_goal / 1e6, "MB"),
        ),
        Figure("time until all space was given back", found["took_s"], "s"),
        Figure(
            "size of the log after that",
            found["after_bytes"] / 1e6,
            "MB",
            note=f"{found['before_bytes'] / 1e6:,.0f} MB before; live {found['live_bytes'] / 1e6:.1f} MB",
        ),
    ]


def _log_bytes(directory: Path) -> int:
    total = 0
    for path in directory.iterdir():
        # A file may be removed between being listed and being looked at.
        try:
            if ".log" in path.name:
                total += path.stat().st_size
        except FileNotFoundError:
            pass
    return total


class _Probe:
    """Workflows that run steps without end, and what each step took."""

    def __init__(self) -> None:
        self.took: list[float] = []
        self.bytes: int = 0

        @memable.workflow(name="probe", retention=None)
        async def probe(ctx: memable.Context) -> None:
            count = 0
            while True:
                began = time.perf_counter()
                await ctx.step(str(count), _nothing)
                self.took.append(time.perf_counter() - began)
                count += 1

        self.workflow = probe

    def take(self) -> float:
        found, self.took = median(self.took), []
        return found


async def _measure(directory: Path) -> dict[str, float]:
    probe = _Probe()
    store = memable.FileStore(directory)
    before = _log_bytes(directory)
    peak = 0
    async with memable.open_engine(store, workflows=[probe.workflow], retention=1.0, shutdown_timeout=0) as engine:
        live = before * LIVE / (FINISHED + LIVE)
        for number in range(WORKFLOWS):
            await engine.invoke(probe.workflow, instance_id=f"probe-{number}-{time.time_ns()}")
        await trio.sleep(1.0)
        probe.take()
        await trio.sleep(UNDISTURBED_S)
        steps_before = len(probe.took)
        undisturbed = probe.take()
        began = time.perf_counter()
        engine.register(order)
        steps = 0
        last_change, smallest = began, before
        disturbed = 0.0
        # Until nothing is due, and no file has become smaller for a while.
        while not disturbed or time.perf_counter() - last_change < QUIET_S:
            await trio.sleep(0.25)
            steps = len(probe.took)
            size = _log_bytes(directory) - (steps + steps_before) * STEP_BYTES
            peak = max(peak, size)
            if size < smallest - 100_000:
                last_change, smallest = time.perf_counter(), size
                disturbed = 0.0
            is_removing = await engine.list_instances(order, status=memable.MetadataStatus.COMPLETED, limit=1)
            if not is_removing and not disturbed:
                disturbed = median(probe.took)
    after = smallest
    return {
        "undisturbed_s": undisturbed,
        "disturbed_s": disturbed,
        "before_bytes": before,
        "after_bytes": after,
        "extra_bytes": max(0, peak - before),
        "live_bytes": live,
        "took_s": last_change - began,
    }


#: What a step of a probe adds to the log, about.
STEP_BYTES = 156

if __name__ == "__main__":
    print(json.dumps(trio.run(_measure, Path(sys.argv[1]))))
