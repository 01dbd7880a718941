"""
What the tasks of a run do, as far as the engine knows them.
"""

from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from memable._activity import Activity
from memable._sleeping import message_for, sleep_unless_cancelled
from memable._wait import Wait


class Watcher:
    def note_change(self) -> None:
        pass

    def note_settled(self) -> None:
        pass


async def test_wait_that_is_cancelled_is_told_until_its_task_goes_on():
    """
    A regression: an instance was recorded as suspended there, and a crash right then left it so for ever.
    """
    activity = Activity(Watcher())
    wait = Wait("w")
    seen: list[bool] = []

    async def branch() -> None:
        activity.enter_branch()
        activity.begin_wait(wait)
        try:
            await sleep_unless_cancelled(message_for(wait))
        finally:
            seen.append(activity.has_cancelled_wait)
            activity.end_wait(wait)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(branch)
        await wait_all_tasks_blocked()
        assert activity.is_waiting
        assert not activity.has_cancelled_wait
        nursery.cancel_scope.cancel()
        assert activity.is_waiting
        assert activity.has_cancelled_wait
    assert seen == [True]
    assert not activity.is_waiting
    assert not activity.has_cancelled_wait


async def test_wait_that_is_over_is_not_taken_for_a_cancelled_one():
    """
    What ended otherwise has left the wait at once.
    """
    activity = Activity(Watcher())
    wait = Wait("w")

    async def branch() -> None:
        activity.enter_branch()
        activity.begin_wait(wait)
        await sleep_unless_cancelled(message_for(wait))
        activity.end_wait(wait)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(branch)
        await wait_all_tasks_blocked()
        activity.wake(wait)
        assert not activity.is_waiting
        assert not activity.has_cancelled_wait
