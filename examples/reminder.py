"""
Durable timers: a trial subscription whose owner is reminded of its end.

    python examples/reminder.py        # a trial of ten seconds
    python examples/reminder.py 60     # of a minute

Kill it between two mails, and run it again, at once or later: a mail that is overdue goes out at once, and none goes
out twice. ``tests/test_examples.py`` runs the same workflow with a trial of 30 days under trio's ``MockClock``, across
restarts, in no time. Remove the directory ``reminder-data`` to begin anew.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import trio

import memable


@dataclass(frozen=True)
class Trial:
    """
    For whom, and for how long.
    """

    customer: str
    begins_at: datetime
    length: timedelta

    @property
    def ends_at(self) -> datetime:
        """
        When it is over.
        """
        return self.begins_at + self.length


async def send_mail(customer: str, text: str) -> None:
    print(f"to {customer}: {text}", flush=True)


@memable.workflow
async def accompany(ctx: memable.Context, trial: Trial) -> str:
    await ctx.step("mail-welcome:v1", send_mail, trial.customer, "welcome")

    # An instant: however long no process runs, it is not moved.
    await ctx.sleep_until("wait-for-half", trial.begins_at + trial.length / 2)
    await ctx.step("mail-half:v1", send_mail, trial.customer, "half of your trial is over")

    await ctx.sleep_until("wait-for-end", trial.ends_at)
    await ctx.step("mail-end:v1", send_mail, trial.customer, "your trial is over")

    # A duration: it begins when the workflow gets here for the first time, and goes on over restarts.
    await ctx.sleep("wait-grace-period", trial.length.total_seconds() / 10)
    await ctx.step("mail-farewell:v1", send_mail, trial.customer, "your data is removed")
    return "closed"


async def main(words: Sequence[str] = ()) -> None:
    length = timedelta(seconds=float(words[0]) if words else 10)
    async with memable.open_engine("reminder-data", workflows=[accompany]) as engine:
        # Whoever starts the workflow reads the clock; a body that did would read another time in each run.
        if await engine.metadata(accompany, "ada") is None:
            await engine.invoke(accompany, Trial("Ada", datetime.now(UTC), length), instance_id="ada")
        # Leaving the block does not wait for a workflow that sleeps. Awaiting its result does.
        print(await (await engine.get(accompany, "ada")).result())


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
