"""
From a signal to the body that goes on with it, parked and passivated, in units of what a bare sync takes.
"""

from __future__ import annotations

import time
from statistics import median

import trio
import trio.testing
from figures import Figure, Settings, at_most, ratio_of
from limits import BareFile
from logs import LogReader

import memable

SIGNALS = 100
IN_TURN = 5
MEMOS = 10
GOAL_PARKED_SYNCS = 2.0

APPROVAL = memable.SuspendPoint("approval", bool)

_resumed_at: list[float] = []


async def tiny(number: int) -> int:
    return number


@memable.workflow
async def approved(ctx: memable.Context, memos: int) -> bool:
    for number in range(memos):
        await ctx.step(f"step-{number}", tiny, number)
    is_approved = await ctx.suspend(APPROVAL)
    _resumed_at.append(time.perf_counter())
    return is_approved


def measure(settings: Settings) -> list[Figure]:
    return [
        trio.run(_measure, settings, "parked", SIGNALS),
        trio.run(_measure, settings, f"passivated, {MEMOS} memos", 0),
    ]


async def _measure(settings: Settings, how: str, max_parked: int) -> Figure:
    took: list[float] = []
    syncs: list[float] = []
    directory = settings.directory / f"signals-{max_parked}"
    file = BareFile(settings.directory / f"signals-{max_parked}.bare")
    async with memable.open_engine(directory, workflows=[approved], max_parked=max_parked) as engine:
        log = LogReader(directory)
        for turn in range(settings.rounds):
            names = [f"{turn}-{number}" for number in range(SIGNALS)]
            for name in names:
                await (await engine.invoke(approved, MEMOS, instance_id=name)).wait()
            # Those that are passivated are on their way out.
            await trio.testing.wait_all_tasks_blocked()
            log.skip()
            for first in range(0, SIGNALS, IN_TURN):
                # In turns, and few in each: a disk is not the same a second later.
                took.append(median([await _signal_s(engine, name) for name in names[first : first + IN_TURN]]))
                batches = log.new_batches()
                syncs.append(file.append(batches) / len(batches))
    file.close()
    ratio = ratio_of(took, syncs)
    return Figure(
        f"signal to resumption, {how}",
        median(took) * 1e6,
        "µs",
        "a write + fdatasync of as many bytes",
        median(syncs) * 1e6,
        ratio,
        at_most(ratio, GOAL_PARKED_SYNCS, "times") if max_parked else None,
    )


async def _signal_s(engine: memable.Engine, name: str) -> float:
    invocation = await engine.get(approved, name)
    _resumed_at.clear()
    began = time.perf_counter()
    await engine.signal(approved, name, APPROVAL, True)
    await invocation.result()
    return _resumed_at[0] - began
