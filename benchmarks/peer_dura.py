"""
The workloads that all engines run, on dura. Runs in an environment of its own: see peers.py.

dura leaves it to its host how workers are driven: here each asks for the next task until there is none, since the
wait between two looks of its own worker pool would be most of what is measured.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dura import ClaimedTask, DurableEngine, process_task

_stamps: list[float] = []


def count(engine: DurableEngine, task: ClaimedTask) -> int:
    total = 0
    for number in range(task.params):
        total += _tiny(engine, task, number)
    return total


def replayed(engine: DurableEngine, task: ClaimedTask) -> int:
    _stamps.append(time.perf_counter())
    total = count(engine, task)
    _stamps.append(time.perf_counter())
    if not os.environ.get("REPLAYING"):
        # As a crash would: nothing is closed, nothing is written.
        os._exit(0)
    return total


def waiting(engine: DurableEngine, task: ClaimedTask) -> None:
    engine.wait_for_event(run_id=task.run_id, task_id=task.task_id, step_name="wait", event_name=f"go-{task.task_id}")


def _tiny(engine: DurableEngine, task: ClaimedTask, number: int) -> int:
    return engine.checkpoint(task_id=task.task_id, step_name=f"step-{number}", fn=lambda: number)


HANDLERS = {"count": count, "replayed": replayed, "waiting": waiting}


def _work(engine: DurableEngine, worker_id: str, lease_s: int = 120) -> None:
    """
    Run all tasks that are there.
    """
    while (task := engine.claim_task(worker_id=worker_id, timeout_secs=lease_s)) is not None:
        process_task(engine, handlers=HANDLERS, task=task, worker_id=worker_id)


def at_once(engine: DurableEngine, workflows: int, steps: int) -> dict[str, float]:
    began = time.perf_counter()
    for _ in range(workflows):
        engine.spawn_task(name="count", params=steps)
    # More workers were tried: SQLite has one writer, so they only wait for each other.
    _work(engine, "0")
    seconds = time.perf_counter() - began
    assert "pending" not in engine.task_counts_by_state()
    return {"seconds": seconds}


def in_turn(engine: DurableEngine, workflows: int, steps: int) -> dict[str, float]:
    began = time.perf_counter()
    for _ in range(workflows):
        engine.spawn_task(name="count", params=steps)
        _work(engine, "0")
    return {"seconds": time.perf_counter() - began}


def crash(engine: DurableEngine, workflows: int, steps: int) -> dict[str, float]:
    engine.spawn_task(name="replayed", params=steps)
    # A lease that is over at once: nobody waits for the dead worker's.
    _work(engine, "0", lease_s=0)
    raise AssertionError("the process should have died")


def replay(engine: DurableEngine, workflows: int, steps: int) -> dict[str, float]:
    _work(engine, "1")
    return {"seconds": _stamps[1] - _stamps[0]}


def park(engine: DurableEngine, workflows: int, steps: int) -> dict[str, float]:
    before = _resident_bytes()
    for number in range(workflows):
        engine.spawn_task(name="waiting", params=number)
    _work(engine, "0")
    return {"bytes_each": (_resident_bytes() - before) / workflows}


def _resident_bytes() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


Workload = Callable[[DurableEngine, int, int], dict[str, float]]
WORKLOADS: dict[str, Workload] = {
    "at_once": at_once,
    "in_turn": in_turn,
    "crash": crash,
    "replay": replay,
    "park": park,
}


def _main(place: str, jobs: list[list[Any]]) -> list[dict[str, float]]:
    engine = DurableEngine(f"{place}.db")
    return [WORKLOADS[name](engine, workflows, steps) for name, workflows, steps in jobs]


if __name__ == "__main__":
    print(json.dumps(_main(sys.argv[1], json.loads(sys.argv[2]))))
