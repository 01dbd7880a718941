"""
How many schedules a second ``explore_crashes`` runs, for a workflow of ten steps.

Processor time: nothing of it waits, and on a busy machine the wall clock counts what others do.
"""

from __future__ import annotations

import time
from statistics import median

from figures import Figure, Settings, at_least
from workflows import tiny

import memable

STEPS = 10
GOAL_A_SECOND = 200.0


def measure(settings: Settings) -> list[Figure]:
    # Not before: an application has no libraries for tests in memory, and Python's garbage collector would look at all
    # of them, again and again, while something else is measured.
    from memable.testing import Effects, explore_crashes  # noqa: PLC0415

    effects = Effects()

    async def counted(number: int) -> int:
        effects.record("call", idempotency_key=str(number))
        return await tiny(number)

    @memable.workflow
    async def ten_steps(ctx: memable.Context) -> int:
        return sum([await ctx.step(f"step-{number}", counted, number) for number in range(STEPS)])

    async def scenario(engine: memable.Engine) -> int:
        return await (await engine.invoke(ten_steps, instance_id="one")).result()

    rates: list[float] = []
    for _ in range(settings.rounds):
        began = time.process_time()
        report = explore_crashes(scenario, workflows=[ten_steps])
        rates.append(len(report.schedules) / (time.process_time() - began))
        assert report, report
    rate = median(rates)
    return [
        Figure(f"explored schedules of {STEPS} steps", rate, "a second", goal=at_least(rate, GOAL_A_SECOND, "a second"))
    ]
