"""
One workflow of tiny steps, each durable before the next begins.
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

#: Few at a time, and many turns: a disk is not the same a second later.
STEPS = 250
TURNS_A_ROUND = 4
GOAL_RATIO = 2.0
GOAL_UNSYNCED_US = 60.0


def measure(settings: Settings) -> list[Figure]:
    return [*trio.run(_synced, settings), trio.run(_unsynced, settings)]


async def _synced(settings: Settings) -> list[Figure]:
    ours: list[float] = []
    bare: list[float] = []
    in_place: list[float] = []
    threaded: list[float] = []
    directory = settings.directory / "sequential"
    file = BareFile(settings.directory / "sequential.bare")
    turns = settings.rounds * TURNS_A_ROUND
    async with _engine(directory, "fsync") as engine:
        log = LogReader(directory)
        await time_sequential(engine, STEPS, "warm-up")
        batches = log.new_batches()
        allocated = BareFile(settings.directory / "in-place.bare", sum(map(len, batches)) * (turns + 1) * 2)
        for number in range(turns):
            # In turns, and each first in its turn: what slows the disk down for a while slows down all.
            if number % 2:
                bare.append(file.append(batches))
                ours.append(await time_sequential(engine, STEPS, f"turn-{number}"))
            else:
                ours.append(await time_sequential(engine, STEPS, f"turn-{number}"))
                bare.append(file.append(batches))
            threaded.append(await file.append_in_thread(batches))
            in_place.append(allocated.append(batches))
            batches = log.new_batches()
        allocated.close()
    file.close()

    def against(what: str, raw: list[float], goal: float | None = None) -> Figure:
        ratio = ratio_of(ours, raw)
        return Figure(
            "sequential steps",
            median(ours) / STEPS * 1e6,
            "µs a step",
            what,
            median(raw) / STEPS * 1e6,
            ratio,
            None if goal is None else at_most(ratio, goal, "times"),
        )

    return [
        against("write + fdatasync of the same bytes", bare, GOAL_RATIO),
        against("the same into blocks that are there already", in_place),
        against("the same in a thread, from a trio task", threaded),
    ]


async def _unsynced(settings: Settings) -> Figure:
    ours: list[float] = []
    bare: list[float] = []
    directory = settings.directory / "sequential-os"
    file = BareFile(settings.directory / "sequential-os.bare")
    async with _engine(directory, "os") as engine:
        log = LogReader(directory)
        await time_sequential(engine, STEPS, "warm-up")
        for number in range(settings.rounds * TURNS_A_ROUND):
            batches = log.new_batches()
            bare.append(file.append(batches, sync=False))
            ours.append(await time_sequential(engine, STEPS, f"turn-{number}"))
    file.close()
    value = median(ours) / STEPS * 1e6
    return Figure(
        'sequential steps, durability="os"',
        value,
        "µs a step",
        "write of the same bytes",
        median(bare) / STEPS * 1e6,
        ratio_of(ours, bare),
        at_most(value, GOAL_UNSYNCED_US, "µs"),
    )


def _engine(directory: Path, durability: Literal["fsync", "os"]) -> AbstractAsyncContextManager[memable.Engine]:
    return memable.open_engine(memable.FileStore(directory, durability=durability), workflows=[count])
