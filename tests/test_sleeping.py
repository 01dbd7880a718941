"""
Sleeps of many tasks: how they are woken and cancelled.
"""

from __future__ import annotations

import types
from collections.abc import Generator
from typing import Any

import outcome
import trio
from trio.testing import wait_all_tasks_blocked

from memable._sleeping import Message, message_for, sleep_unless_cancelled


@types.coroutine
def sleep(message: Message) -> Generator[Message, outcome.Value[Any], Any]:
    """Sleep as an append does."""
    return (yield message).value


def refuse(_raise_cancel: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED


async def test_one_outcome_wakes_all_who_sleep_with_one_message():
    """
    Tasks that sleep at the same time with the same message are woken one by one, or by the same outcome.
    """
    message = message_for(refuse)
    tasks: list[trio.lowlevel.Task] = []
    told: list[object] = []

    async def wait() -> None:
        tasks.append(trio.lowlevel.current_task())
        told.append(await sleep(message))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        trio.lowlevel.reschedule(tasks[0], outcome.Value("first"))
        await wait_all_tasks_blocked()
        assert told == ["first"]
        both = outcome.Value("others")
        for task in tasks[1:]:
            trio.lowlevel.reschedule(task, both)
    assert told == ["first", "others", "others"]


async def test_sleep_is_not_ended_by_a_cancellation_that_its_message_refuses():
    message = message_for(refuse)
    told: list[object] = []
    sleeping: list[trio.lowlevel.Task] = []

    async def wait() -> None:
        sleeping.append(trio.lowlevel.current_task())
        told.append(await sleep(message))
        await trio.lowlevel.checkpoint()
        raise AssertionError("not cancelled")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
        assert told == []
        trio.lowlevel.reschedule(sleeping[0], outcome.Value(None))
    assert told == [None]


async def test_sleep_that_may_be_cancelled_asks_its_own_abort():
    """
    Of two tasks, each is cancelled by the function that it has given, and raises ``Cancelled`` if that lets it.
    """
    asked: list[str] = []
    scopes = {name: trio.CancelScope() for name in ("one", "other")}

    async def wait(name: str) -> None:
        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            asked.append(name)
            return trio.lowlevel.Abort.SUCCEEDED

        with scopes[name]:
            await sleep_unless_cancelled(message_for(abort))

    async with trio.open_nursery() as nursery:
        for name in scopes:
            nursery.start_soon(wait, name)
        await wait_all_tasks_blocked()
        scopes["other"].cancel()
        await wait_all_tasks_blocked()
        assert asked == ["other"]
        assert scopes["other"].cancelled_caught
        scopes["one"].cancel()
    assert asked == ["other", "one"]


async def test_sleep_that_may_be_cancelled_returns_what_it_is_woken_with():
    told: list[object] = []
    sleeping: list[trio.lowlevel.Task] = []

    async def wait() -> None:
        sleeping.append(trio.lowlevel.current_task())
        told.append(await sleep_unless_cancelled(message_for(refuse)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        trio.lowlevel.reschedule(sleeping[0], outcome.Value("woken"))
    assert told == ["woken"]
