"""
The workloads that all engines run, on DBOS Transact. Runs in an environment of its own: see peers.py.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any

from dbos import DBOS

#: A wait that nobody ends while it is measured.
LONG_S = 86_400.0

_stamps: list[float] = []
_ended = threading.Event()
_parked: queue.SimpleQueue[int] = queue.SimpleQueue()


@DBOS.step()
async def tiny(number: int) -> int:
    return number


@DBOS.workflow()
async def count(steps: int) -> int:
    return await _steps(steps)


@DBOS.workflow()
async def replayed(steps: int) -> int:
    _stamps.append(time.perf_counter())
    total = await _steps(steps)
    _stamps.append(time.perf_counter())
    if not os.environ.get("REPLAYING"):
        # As a crash would: nothing is closed, nothing is written.
        os._exit(0)
    _ended.set()
    return total


@DBOS.workflow()
async def waiting(number: int) -> int:
    _parked.put(number)
    await DBOS.recv_async("approval", timeout_seconds=LONG_S)
    return number


async def _steps(steps: int) -> int:
    total = 0
    for number in range(steps):
        total += await tiny(number)
    return total


async def _one(steps: int) -> None:
    handle = await DBOS.start_workflow_async(count, steps)
    await handle.get_result()


async def at_once(workflows: int, steps: int) -> dict[str, float]:
    began = time.perf_counter()
    await asyncio.gather(*(_one(steps) for _ in range(workflows)))
    return {"seconds": time.perf_counter() - began}


async def in_turn(workflows: int, steps: int) -> dict[str, float]:
    began = time.perf_counter()
    for _ in range(workflows):
        await _one(steps)
    return {"seconds": time.perf_counter() - began}


async def crash(workflows: int, steps: int) -> dict[str, float]:
    handle = await DBOS.start_workflow_async(replayed, steps)
    await handle.get_result()
    raise AssertionError("the process should have died")


async def replay(workflows: int, steps: int) -> dict[str, float]:
    # DBOS recovers by itself, in the background.
    await asyncio.to_thread(_ended.wait)
    return {"seconds": _stamps[1] - _stamps[0]}


async def park(workflows: int, steps: int) -> dict[str, float]:
    before = _resident_bytes()
    for number in range(workflows):
        await DBOS.start_workflow_async(waiting, number)
    for _ in range(workflows):
        await asyncio.to_thread(_parked.get)
    # The last ones are on their way into their wait.
    await asyncio.sleep(1.0)
    return {"bytes_each": (_resident_bytes() - before) / workflows}


def _resident_bytes() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


WORKLOADS: dict[str, Any] = {"at_once": at_once, "in_turn": in_turn, "crash": crash, "replay": replay, "park": park}


async def _main(jobs: list[list[Any]]) -> list[dict[str, float]]:
    DBOS.launch()
    return [await WORKLOADS[name](workflows, steps) for name, workflows, steps in jobs]


if __name__ == "__main__":
    place, jobs = sys.argv[1], json.loads(sys.argv[2])
    DBOS(
        config={
            "name": "bench",
            "system_database_url": place if "://" in place else f"sqlite:///{place}.sqlite",
            # Nothing that another run left behind is taken up.
            "application_version": os.environ["BENCH_RUN"],
            "log_level": "ERROR",
        }
    )
    print(json.dumps(asyncio.run(_main(jobs))), flush=True)
    # Those that wait would be waited for.
    os._exit(0)
