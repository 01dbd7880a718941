"""
Opening a store with very many finished instances and some live ones: time, with and without a checkpoint, and memory.

SQLite, behind which most peers keep their instances, opens in the same time whatever is finished: it reads on demand.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import trio
from big_store import write_store
from figures import Figure, Settings, at_most

import memable

FINISHED = 1_000_000
LIVE = 10_000
GOAL_CHECKPOINT_S = 2.0
GOAL_SCAN_S = 30.0
GOAL_FINISHED_BYTES = 300
GOAL_LIVE_BYTES = 2048


@memable.workflow
async def order(ctx: memable.Context, number: int) -> str:
    raise NotImplementedError


def measure(settings: Settings) -> list[Figure]:
    directory = settings.directory / "store"
    write_store(directory, FINISHED, LIVE)
    # It makes the checkpoint.
    scanned = _child(directory)
    opened = [_child(directory) for _ in range(settings.rounds)]
    (directory / "checkpoint").unlink()
    # The slower one counts: two make no median.
    without_s = max(scanned["open_s"], _child(directory)["open_s"])
    # What live instances take is told apart by a store that has no others.
    alone = settings.directory / "live"
    write_store(alone, LIVE, LIVE * 10)
    alone_bytes = _child(alone)["bytes"]
    few = settings.directory / "few"
    write_store(few, LIVE, LIVE)
    few_bytes = _child(few)["bytes"]
    live_bytes = (alone_bytes - few_bytes) / (LIVE * 9)
    finished_bytes = (scanned["bytes"] - LIVE * live_bytes) / FINISHED
    store = f"{FINISHED:,} finished, {LIVE:,} live"
    with_s = median(found["open_s"] for found in opened)
    return [
        Figure(f"open, {store}, with a checkpoint", with_s, "s", goal=at_most(with_s, GOAL_CHECKPOINT_S, "s")),
        Figure(f"open, {store}, without", without_s, "s", goal=at_most(without_s, GOAL_SCAN_S, "s")),
        Figure(
            "resident, each finished instance",
            finished_bytes,
            "bytes",
            goal=at_most(finished_bytes, GOAL_FINISHED_BYTES, "bytes"),
        ),
        Figure("resident, each live instance", live_bytes, "bytes", goal=at_most(live_bytes, GOAL_LIVE_BYTES, "bytes")),
        Figure("size of the log", scanned["log_bytes"] / 1e6, "MB"),
        Figure("size of the checkpoint", opened[0]["checkpoint_bytes"] / 1e6, "MB"),
    ]


def _child(directory: Path) -> dict[str, Any]:
    # A fresh process: memory that was used before and is free again would hide what is used now.
    done = subprocess.run([sys.executable, __file__, directory], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def _resident_bytes() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


async def _open(directory: Path) -> dict[str, float]:
    # What opening anything loads does not count.
    async with memable.open_engine(memable.FileStore(directory.with_name("empty")), workflows=[order]):
        pass
    before = _resident_bytes()
    began = time.perf_counter()
    async with memable.open_engine(memable.FileStore(directory), workflows=[order]):
        open_s = time.perf_counter() - began
        taken = _resident_bytes() - before
    return {"open_s": open_s, "bytes": taken, **_sizes(directory)}


def _sizes(directory: Path) -> dict[str, int]:
    checkpoint = directory / "checkpoint"
    return {
        "log_bytes": sum(path.stat().st_size for path in directory.glob("*.log")),
        "checkpoint_bytes": checkpoint.stat().st_size if checkpoint.exists() else 0,
    }


if __name__ == "__main__":
    print(json.dumps(trio.run(_open, Path(sys.argv[1]))))
