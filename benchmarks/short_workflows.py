"""
Workflows of a single step, from their start to their result.
"""

from __future__ import annotations

from statistics import median

import trio
from figures import Figure, Settings, ratio_of
from limits import BareFile
from logs import LogReader
from workflows import count, time_concurrent, time_sequential

import memable

IN_TURN = 300
AT_ONCE = 1_000


def measure(settings: Settings) -> list[Figure]:
    return trio.run(_measure, settings)


async def _measure(settings: Settings) -> list[Figure]:
    in_turn: list[float] = []
    bare: list[float] = []
    at_once: list[float] = []
    directory = settings.directory / "short"
    file = BareFile(settings.directory / "short.bare")
    async with memable.open_engine(directory, workflows=[count]) as engine:
        log = LogReader(directory)
        await time_sequential(engine, 1, "warm-up")
        for turn in range(settings.rounds):
            log.skip()
            took = 0.0
            for number in range(IN_TURN):
                took += await time_sequential(engine, 1, f"turn-{turn}-{number}")
            in_turn.append(took)
            bare.append(file.append(log.new_batches()))
            at_once.append(await time_concurrent(engine, AT_ONCE, 1, f"once-{turn}"))
    file.close()
    return [
        Figure(
            "1-step workflows, in turn",
            median(in_turn) / IN_TURN * 1e6,
            "µs each",
            "write + fdatasync of the same bytes",
            median(bare) / IN_TURN * 1e6,
            ratio_of(in_turn, bare),
            note="3 syncs each",
        ),
        Figure(
            f"1-step workflows, {AT_ONCE:,} at once",
            median(at_once) / AT_ONCE * 1e6,
            "µs each",
            note=f"{AT_ONCE / median(at_once):,.0f}/s",
        ),
    ]
