"""
One workflow of 1,000 tiny steps, each durable before the next begins.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from statistics import median
from typing import Literal

import trio
from figures import Figure, Settings, at_most, ratio_of
from limits import BareFile
from logs import LogReader
from workflows import count, time_sequential

import memable

STEPS = 1_000
GOAL_RATIO = 4.0


def measure(settings: Settings) -> list[Figure]:
    return [*trio.run(_synced, settings), trio.run(_unsynced, settings)]


async def _synced(settings: Settings) -> list[Figure]:
    ours: list[float] = []
    bare: list[float] = []
    threaded: list[float] = []
    directory = settings.directory / "sequential"
    file = BareFile(settings.directory / "sequential.bare")
    async with _engine(directory, "fsync") as engine:
        log = LogReader(directory)
        await time_sequential(engine, STEPS, "warm-up")
        batches = log.new_batches()
        for number in range(settings.rounds):
            # In turns, and each first in its turn: what slows the disk down for a while slows down both.
            if number % 2:
                bare.append(file.append(batches))
                threaded.append(await file.append_in_thread(batches))
                ours.append(await time_sequential(engine, STEPS, f"round-{number}"))
            else:
                ours.append(await time_sequential(engine, STEPS, f"round-{number}"))
                threaded.append(await file.append_in_thread(batches))
                bare.append(file.append(batches))
            batches = log.new_batches()
    file.close()
    ratio = ratio_of(ours, bare)
    value = median(ours) / STEPS * 1e6
    return [
        Figure(
            "sequential steps",
            value,
            "µs a step",
            "write + fdatasync of the same bytes",
            median(bare) / STEPS * 1e6,
            ratio,
            at_most(ratio, GOAL_RATIO, "times"),
        ),
        Figure(
            "sequential steps",
            value,
            "µs a step",
            "the same in a thread, from a trio task",
            median(threaded) / STEPS * 1e6,
            ratio_of(ours, threaded),
        ),
    ]


async def _unsynced(settings: Settings) -> Figure:
    ours: list[float] = []
    bare: list[float] = []
    directory = settings.directory / "sequential-os"
    file = BareFile(settings.directory / "sequential-os.bare")
    async with _engine(directory, "os") as engine:
        log = LogReader(directory)
        await time_sequential(engine, STEPS, "warm-up")
        for number in range(settings.rounds):
            batches = log.new_batches()
            bare.append(file.append(batches, sync=False))
            ours.append(await time_sequential(engine, STEPS, f"round-{number}"))
    file.close()
    return Figure(
        'sequential steps, durability="os"',
        median(ours) / STEPS * 1e6,
        "µs a step",
        "write of the same bytes",
        median(bare) / STEPS * 1e6,
        ratio_of(ours, bare),
    )


def _engine(directory: Path, durability: Literal["fsync", "os"]) -> AbstractAsyncContextManager[memable.Engine]:
    return memable.open_engine(memable.FileStore(directory, durability=durability), workflows=[count])
