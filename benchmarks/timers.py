"""
Instances that sleep, woken by a real clock: how late.
"""

from __future__ import annotations

import time
from statistics import median

import trio
from figures import Figure, Settings, at_most

import memable

SLEEPERS = 200
#: Apart from each other, so that none waits for the sync of another.
FIRST_S = 1.0
APART_S = 0.02
GOAL_MS = 10.0


@memable.workflow
async def sleeper(ctx: memable.Context, seconds: float) -> float:
    await ctx.sleep("nap", seconds)
    return time.time()


def measure(settings: Settings) -> list[Figure]:
    figures = []
    for max_parked, what in ((SLEEPERS, "parked"), (0, "passivated")):
        lateness_ms = trio.run(_measure, settings, max_parked, what)
        figures.append(
            Figure(
                f"{SLEEPERS} timers, {what}, median lateness",
                median(lateness_ms),
                "ms",
                goal=at_most(median(lateness_ms), GOAL_MS, "ms"),
                note=f"at most {max(lateness_ms):.1f}, a sync included",
            )
        )
    return figures


async def _measure(settings: Settings, max_parked: int, what: str) -> list[float]:
    async with memable.open_engine(settings.directory / what, workflows=[sleeper], max_parked=max_parked) as engine:
        for number in range(SLEEPERS):
            await engine.invoke(sleeper, FIRST_S + number * APART_S, instance_id=str(number))
        lateness_ms = []
        for number in range(SLEEPERS):
            woken_at = await (await engine.get(sleeper, str(number))).result()
            (nap,) = [one for one in await engine.history(sleeper, str(number)) if one.kind == "sleep"]
            assert nap.started_at is not None
            due = nap.started_at.timestamp() + FIRST_S + number * APART_S
            lateness_ms.append((woken_at - due) * 1e3)
    return lateness_ms
