"""
What an engine keeps in memory of an instance.
"""

from __future__ import annotations

import trio

from memable._entry import Entry
from memable._sleeping import message_for, sleep_unless_cancelled


async def test_entry_wakes_all_who_wait_for_a_change():
    """
    Each change wakes everybody who waits at that moment.
    """
    entry = Entry("w", "i")
    woken: list[int] = []

    async def wait() -> None:
        await entry.wait_change(entry.version)
        woken.append(entry.version)

    for version in (1, 2):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            entry.notify()
        assert woken == [version] * 3
        woken.clear()


async def test_beginning_of_a_run_wakes_all_but_those_that_wait_for_an_end():
    """
    Whoever only waits for an end would look in vain, a thousand times of a thousand workflows at once.
    """
    entry = Entry("w", "i")
    woken: list[str] = []

    async def wait() -> None:
        await entry.wait_change(entry.version)
        woken.append("any change")

    @trio.lowlevel.enable_ki_protection
    async def wait_for_end() -> None:
        await sleep_unless_cancelled(message_for(entry.add_sleeper(is_for_end=True).abort))
        woken.append("end")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(wait_for_end)
        await trio.testing.wait_all_tasks_blocked()
        entry.note_prepared()
        await trio.testing.wait_all_tasks_blocked()
        assert woken == ["any change"]
        entry.notify()
    assert woken == ["any change", "end"]


async def test_entry_does_not_wait_for_a_change_that_was():
    """
    A change between looking and waiting is not missed.
    """
    entry = Entry("w", "i")
    version = entry.version
    entry.notify()
    with trio.testing.assert_no_checkpoints():
        await entry.wait_change(version)


async def test_entry_forgets_who_was_cancelled_while_waiting():
    """
    Whoever is cancelled while it waits for a change is not woken by it, and the others are.
    """
    entry = Entry("w", "i")
    woken: list[str] = []

    async def wait(name: str, scope: trio.CancelScope) -> None:
        with scope:
            await entry.wait_change(entry.version)
            woken.append(name)

    impatient = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "impatient", impatient)
        nursery.start_soon(wait, "patient", trio.CancelScope())
        await trio.testing.wait_all_tasks_blocked()
        impatient.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert impatient.cancelled_caught
        entry.notify()
    assert woken == ["patient"]
    entry.notify()
