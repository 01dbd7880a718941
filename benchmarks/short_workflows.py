"""
Workflows of five steps, from their start to their result.
"""

from __future__ import annotations

from statistics import median

import trio
from figures import Figure, Settings, at_least, ratio_of
from limits import BareFile
from logs import LogReader
from workflows import count, time_concurrent, time_sequential

import memable

STEPS = 5
#: Few at a time, and many turns: a disk is not the same a second later.
IN_TURN = 10
PARTS = 10
AT_ONCE = 1_000
GOAL_PER_S = 4_000


def measure(settings: Settings) -> list[Figure]:
    return trio.run(_measure, settings)


async def _measure(settings: Settings) -> list[Figure]:
    in_turn: list[float] = []
    bare: list[float] = []
    at_once: list[float] = []
    sync_count = 0
    directory = settings.directory / "short"
    file = BareFile(settings.directory / "short.bare")
    async with memable.open_engine(directory, workflows=[count]) as engine:
        log = LogReader(directory)
        await time_sequential(engine, STEPS, "warm-up")
        await time_concurrent(engine, 10, STEPS, "warm-up")
        for turn in range(settings.rounds):
            log.skip()
            for part in range(PARTS):
                names = [f"turn-{turn}-{part}-{number}" for number in range(IN_TURN)]
                in_turn.append(sum([await time_sequential(engine, STEPS, name) for name in names]))
                batches = log.new_batches()
                sync_count = len(batches)
                bare.append(file.append(batches))
            at_once.append(await time_concurrent(engine, AT_ONCE, STEPS, f"once-{turn}"))
    file.close()
    rate = AT_ONCE / median(at_once)
    return [
        Figure(
            f"{STEPS}-step workflows, in turn",
            median(in_turn) / IN_TURN * 1e6,
            "µs each",
            "write + fdatasync of the same bytes",
            median(bare) / IN_TURN * 1e6,
            ratio_of(in_turn, bare),
            note=f"{sync_count / IN_TURN:.1f} syncs each",
        ),
        Figure(
            f"{STEPS}-step workflows, {AT_ONCE:,} at once",
            rate,
            "workflows/s",
            goal=at_least(rate, GOAL_PER_S, "workflows/s"),
        ),
    ]
