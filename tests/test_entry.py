"""
What an engine keeps in memory of an instance.
"""

from __future__ import annotations

import trio

from memable._entry import Entry


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


async def test_entry_does_not_wait_for_a_change_that_was():
    """
    A change between looking and waiting is not missed.
    """
    entry = Entry("w", "i")
    version = entry.version
    entry.notify()
    with trio.testing.assert_no_checkpoints():
        await entry.wait_change(version)
