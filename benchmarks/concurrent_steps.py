"""
1,000 workflows of 50 tiny steps at once: they share the writes and the syncs.
"""

from __future__ import annotations

from statistics import median

import trio
from figures import Figure, Settings, at_least, ratio_of
from limits import BareFile, trio_tasks
from logs import LogReader
from workflows import count, time_concurrent

import memable

INSTANCES = 1_000
STEPS = 50
ALL_STEPS = INSTANCES * STEPS
GOAL_STEPS_PER_S = 30_000


def measure(settings: Settings) -> list[Figure]:
    tasks: list[float] = []
    ours: list[float] = []
    ideal: list[float] = []
    batch_count = 0
    file = BareFile(settings.directory / "concurrent.bare")
    for number in range(settings.rounds):
        tasks.append(trio_tasks(INSTANCES, STEPS))
        took, batches = trio.run(_round, settings, number)
        ours.append(took)
        batch_count = len(batches)
        ideal.append(file.append(_evenly(b"".join(batches), STEPS)))
    file.close()
    rate = ALL_STEPS / median(ours)
    value = median(ours) / ALL_STEPS * 1e6
    return [
        Figure(
            f"{INSTANCES:,} x {STEPS} steps at once",
            rate,
            "steps/s",
            goal=at_least(rate, GOAL_STEPS_PER_S, "steps/s"),
            note=f"{batch_count} syncs",
        ),
        Figure(
            f"{INSTANCES:,} x {STEPS} steps at once",
            value,
            "µs a step",
            f"the same bytes in {STEPS} ideal batches",
            median(ideal) / ALL_STEPS * 1e6,
            ratio_of(ours, ideal),
        ),
        Figure(
            f"{INSTANCES:,} x {STEPS} steps at once",
            value,
            "µs a step",
            f"bare trio tasks, {STEPS} checkpoints each",
            median(tasks) / ALL_STEPS * 1e6,
            ratio_of(ours, tasks),
        ),
    ]


async def _round(settings: Settings, number: int) -> tuple[float, list[bytes]]:
    directory = settings.directory / f"concurrent-{number}"
    async with memable.open_engine(directory, workflows=[count]) as engine:
        log = LogReader(directory)
        await time_concurrent(engine, 10, STEPS, "warm-up")
        log.skip()
        return await time_concurrent(engine, INSTANCES, STEPS, "round"), log.new_batches()


def _evenly(data: bytes, count: int) -> list[bytes]:
    size = -(-len(data) // count)
    return [data[start : start + size] for start in range(0, len(data), size)]
