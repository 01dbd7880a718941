"""
Lets a workflow crash and recover, in virtual time, and tells what happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import attrs
import trio
from trio.testing import MockClock

import memable

#: The steps, and how long each takes, in seconds.
_STEPS = {"download:v1": 3.0, "parse:v1": 2.0, "summarise:v1": 4.0, "publish:v1": 1.0}
#: When the process is killed, in seconds after the start: within a step.
_CRASH_AFTER_S = 7.0
#: How long it takes until there is another process.
_DOWN_S = 2.0


@attrs.frozen
class Call:
    """
    One call of a step's function.
    """

    key: str
    began_s: float
    ended_s: float | None
    "None if it was cut short."


@attrs.frozen
class CrashStory:
    """
    What became of an instance whose process was killed. Times are seconds after its start.
    """

    keys: Sequence[str]
    "The steps, in the order in which they are asked for."
    first_run: Sequence[Call]
    crashed_s: float
    restarted_s: float
    second_run: Sequence[Call]
    memos: dict[str, float]
    "When the outcome of each step was recorded."

    @property
    def served(self) -> list[str]:
        """The steps whose memos the second run was given."""
        return [key for key, at_s in self.memos.items() if at_s < self.crashed_s]


def crash_and_recover() -> CrashStory:
    """
    Run a workflow of a few steps, kill it within one of them, and let another engine go on from what is left.
    """
    return trio.run(_crash_and_recover, clock=MockClock(autojump_threshold=0))


async def _crash_and_recover() -> CrashStory:
    begin_s = trio.current_time()
    calls: list[Call] = []

    async def work(key: str) -> str:
        began_s = trio.current_time() - begin_s
        ended_s = None
        try:
            await trio.sleep(_STEPS[key])
            ended_s = trio.current_time() - begin_s
        finally:
            calls.append(Call(key, began_s, ended_s))
        return key

    @memable.workflow
    async def report(ctx: memable.Context) -> None:
        for key in _STEPS:
            await ctx.step(key, work, key)

    async def live(store: memable.InMemoryStore) -> list[memable.HistoryEntry]:
        async with memable.open_engine(store, workflows=[report]) as engine:
            await (await engine.invoke(report, instance_id="r")).result()
            return await engine.history(report, "r")

    store = memable.InMemoryStore()
    async with trio.open_nursery() as process:
        process.start_soon(partial(live, store))
        await trio.sleep(_CRASH_AFTER_S)
        # A copy has what a kill would leave; what becomes of the original does not matter any more.
        left = store.crashed_copy()
        process.cancel_scope.cancel()
    first_run = list(calls)
    calls.clear()
    await trio.sleep(_DOWN_S)
    return _told(first_run, await live(left), list(calls))


def _told(first_run: list[Call], history: list[memable.HistoryEntry], second_run: list[Call]) -> CrashStory:
    begin = history[0].started_at
    seconds = {
        (entry.kind, entry.key): (moment - begin).total_seconds()
        for entry in history
        for moment in (entry.ended_at,)
        if moment is not None and begin is not None
    }
    return CrashStory(
        keys=list(_STEPS),
        first_run=first_run,
        crashed_s=_CRASH_AFTER_S,
        restarted_s=seconds["run", None],
        second_run=second_run,
        memos={key: seconds["step", key] for key in _STEPS},
    )
