"""
The heap of deadlines, and the task that waits for the nearest.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from memable._clock import LONGEST_NAP_S, Clock, TrioClock
from memable._timers import BURST_COUNT, Timer, Timers


@attrs.define
class SettableClock:
    """
    A wall clock that goes with trio's, and that somebody sets.
    """

    offset_s: float = 1_000_000.0
    looks: int = 0
    "How often it was asked."

    @property
    def is_virtual(self) -> bool:
        return False

    def now(self) -> float:
        self.looks += 1
        return self.offset_s + trio.current_time()

    def not_before(self, unix_s: float) -> None:
        raise NotImplementedError


@asynccontextmanager
async def running(clock: Clock) -> AsyncGenerator[Timers]:
    timers = Timers(clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        yield timers
        nursery.cancel_scope.cancel()


@attrs.define
class Fired:
    """
    What has fired, and what trio's clock said then.
    """

    names: list[object] = attrs.field(factory=list)
    times: list[float] = attrs.field(factory=list)

    def __call__(self, name: object) -> Callable[[], None]:
        def fire() -> None:
            self.names.append(name)
            self.times.append(trio.current_time())

        return fire


async def test_timers_fire_in_the_order_of_their_deadlines(autojump_clock: MockClock):
    """
    Timers fire when the clock says so, not before, the nearest first, and those of one instant as they were armed.
    """
    clock = TrioClock(0.0)
    fired = Fired()
    async with running(clock) as timers:
        for name, at in (("c", 30.0), ("a", 10.0), ("b1", 20.0), ("b2", 20.0), ("month", 30 * 86400.0)):
            timers.arm(at, fired(name))
        assert len(timers) == 5
        await trio.sleep(31 * 86400)
        assert fired.names == ["a", "b1", "b2", "c", "month"]
        assert fired.times == [10.0, 20.0, 20.0, 30.0, 30 * 86400.0]
        assert len(timers) == 0


async def test_timer_that_is_past_fires_at_once_but_not_inside_arm(autojump_clock: MockClock):
    """
    A deadline that has passed fires in the next round of the loop.
    """
    fired = Fired()
    async with running(TrioClock(1000.0)) as timers:
        for at in (999.0, 1000.0, -math.inf):
            timers.arm(at, fired(at))
        assert fired.names == []
        await wait_all_tasks_blocked()
        assert fired.names == [-math.inf, 999.0, 1000.0]
        assert fired.times == [0.0] * 3


async def test_timer_armed_for_sooner_wakes_the_task(autojump_clock: MockClock):
    """
    While the task waits for one deadline, a nearer one is not missed.
    """
    fired = Fired()
    async with running(TrioClock(0.0)) as timers:
        timers.arm(100.0, fired("late"))
        await wait_all_tasks_blocked()
        timers.arm(10.0, fired("soon"))
        await trio.sleep(200)
    assert (fired.names, fired.times) == (["soon", "late"], [10.0, 100.0])


async def test_timer_fires_from_within_another(autojump_clock: MockClock):
    """
    What fires may arm and cancel timers, past ones included.
    """
    fired = Fired()
    async with running(TrioClock(0.0)) as timers:

        def first() -> None:
            fired("first")()
            victim.cancel()
            timers.arm(5.0, fired("second"))
            timers.arm(20.0, fired("third"))

        timers.arm(10.0, first)
        victim = timers.arm(10.0, fired("victim"))
        await trio.sleep(30)
    assert (fired.names, fired.times) == (["first", "second", "third"], [10.0, 10.0, 20.0])


async def test_timer_that_was_cancelled_does_not_fire(autojump_clock: MockClock):
    """
    A cancelled timer does not fire; cancelling again, or after it has fired, does nothing.
    """
    fired = Fired()
    async with running(TrioClock(0.0)) as timers:
        cancelled = timers.arm(10.0, fired("cancelled"))
        timer = timers.arm(20.0, fired("kept"))
        timers.arm(30.0, fired("last"))
        for _ in range(2):
            cancelled.cancel()
        assert len(timers) == 2
        await trio.sleep(25)
        assert fired.names == ["kept"]
        timer.cancel()
        assert len(timers) == 1
        await trio.sleep(25)
    assert fired.names == ["kept", "last"]


async def test_timer_that_was_cancelled_does_not_move_a_virtual_clock(mock_clock: MockClock):
    """
    Nobody waits for a deadline that was cancelled: not even the clock of a test jumps there.
    """
    async with running(TrioClock(0.0)) as timers:
        timer = timers.arm(30 * 86400.0, Fired()("never"))
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == 30 * 86400.0
        timer.cancel()
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf


async def test_timer_gives_what_it_was_armed_with(autojump_clock: MockClock):
    """
    What is given with a timer is given to what it calls.
    """
    timers, given = Timers(TrioClock(0.0)), list[tuple[str, int]]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        timers.arm(5.0, lambda name, number: given.append((name, number)), "a", 1)
        await trio.sleep(10.0)
        nursery.cancel_scope.cancel()
    assert given == [("a", 1)]


async def test_timers_that_were_cancelled_are_not_kept(autojump_clock: MockClock):
    """
    Cancelled timers never make up more than a quarter of the heap.
    """
    timers = Timers(TrioClock(0.0))
    lasting = [timers.arm(float(at), Fired()(at)) for at in range(10)]
    for at in range(10_000):
        timers.arm(1e9 - at, Fired()(at)).cancel()
        assert 3 * len(timers._heap) <= 4 * len(timers)
    assert len(timers) == len(lasting)
    for timer in lasting:
        timer.cancel()
    assert (len(timers), len(timers._heap)) == (0, 0)


async def test_timers_without_any_wait_without_a_deadline(mock_clock: MockClock):
    """
    While nothing is armed, nothing wakes up.
    """
    for clock in (SettableClock(), TrioClock(0.0)):
        async with running(clock):
            await wait_all_tasks_blocked()
            assert trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf


async def test_timers_of_a_virtual_clock_do_not_poll(mock_clock: MockClock):
    """
    A clock that nobody can set is not looked at before the deadline.
    """
    async with running(TrioClock(0.0)) as timers:
        timers.arm(86400.0, Fired()("x"))
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == 86400.0


async def test_timers_of_a_settable_clock_look_at_it_once_a_minute(autojump_clock: MockClock):
    """
    While a timer is armed, the system's clock is looked at once a minute, not more often.
    """
    clock = SettableClock()
    async with running(clock) as timers:
        timers.arm(clock.now() + 86400.0, Fired()("x"))
        await wait_all_tasks_blocked()
        clock.looks = 0
        await trio.sleep(100 * LONGEST_NAP_S + 1)
        # Once to see whether something is due, and once to see for how long to sleep.
        assert clock.looks == 200


async def test_timers_notice_that_the_clock_was_set_forward(autojump_clock: MockClock):
    """
    After a step of the system's clock, or a machine's sleep, what is due fires within a minute.
    """
    clock = SettableClock()
    fired = Fired()
    async with running(clock) as timers:
        timers.arm(clock.now() + 30 * 86400, fired("month"))
        timers.arm(clock.now() + 32 * 86400, fired("later"))
        await trio.sleep(90)
        clock.offset_s += 31 * 86400
        await trio.sleep(86400 - 120)
        assert (fired.names, fired.times) == (["month"], [2 * LONGEST_NAP_S])
        await trio.sleep(60)
    assert fired.names == ["month", "later"]


async def test_timers_do_not_fire_early_when_the_clock_was_set_back(autojump_clock: MockClock):
    """
    A timer fires once the clock says so: if that was set back meanwhile, as much later.
    """
    clock = SettableClock()
    fired = Fired()
    async with running(clock) as timers:
        timers.arm(clock.now() + 100, fired("x"))
        await trio.sleep(50)
        clock.offset_s -= 1000
        await trio.sleep(1000)
        assert fired.names == []
        await trio.sleep(100)
    assert fired.times == [1100.0]


async def test_timer_at_infinity_never_fires(autojump_clock: MockClock):
    """
    A deadline that never comes hinders nobody.
    """
    fired = Fired()
    for clock in (SettableClock(), TrioClock(0.0)):
        async with running(clock) as timers:
            timers.arm(math.inf, fired("never"))
            await trio.sleep(86400)
            assert len(timers) == 1
    assert fired.names == []


async def test_many_due_timers_leave_others_their_turn(autojump_clock: MockClock):
    """
    Very many timers that are due at once do not block the loop.
    """
    count = 10 * BURST_COUNT
    fired = Fired()
    seen: list[int] = []
    timers = Timers(TrioClock(0.0))
    for at in range(count):
        timers.arm(-float(at), fired(at))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        while len(fired.names) < count:
            await trio.lowlevel.checkpoint()
            seen.append(len(fired.names))
        nursery.cancel_scope.cancel()
    # Trio runs the two tasks in any order within a round, so that two bursts may follow each other.
    assert max(later - before for before, later in pairwise(seen)) <= 2 * BURST_COUNT


async def test_timers_stay_armed_while_nobody_runs_them(autojump_clock: MockClock):
    """
    What was armed before the task runs, or stayed when it was cancelled, fires when it runs again.
    """
    fired = Fired()
    timers = Timers(TrioClock(0.0))
    timers.arm(10.0, fired("early"))
    timers.arm(100.0, fired("late"))
    for _ in range(2):
        with trio.move_on_after(40):
            await timers.run()
    await trio.sleep(100)
    with trio.move_on_after(1):
        await timers.run()
    assert (fired.names, fired.times) == (["early", "late"], [10.0, 180.0])


async def test_what_a_timer_raises_leaves_the_task(autojump_clock: MockClock):
    """
    What fires must not raise; if it does, nobody hides it.
    """

    def fire() -> None:
        raise ZeroDivisionError("a bug")

    timers = Timers(TrioClock(0.0))
    timers.arm(1.0, fire)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        await timers.run()


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans(), st.integers(0, 5)), max_size=40))
def test_timers_fire_like_a_sorted_list(arms: list[tuple[int, bool, int]]):
    """
    Whatever is armed and cancelled when, what fires is what a sorted list says.
    """

    async def main() -> list[object]:
        fired = Fired()
        expected: list[tuple[float, int]] = []
        async with running(TrioClock(0.0)) as timers:
            for number, (delay, keep, pause) in enumerate(arms):
                at = trio.current_time() + delay
                timer: Timer = timers.arm(at, fired(number))
                if keep:
                    expected.append((at, number))
                else:
                    timer.cancel()
                await trio.sleep(pause)
            await trio.sleep(100)
            assert (len(timers), timers._heap) == (0, [])
        assert fired.names == [number for _, number in sorted(expected)]
        return fired.names

    trio.run(main, clock=MockClock(autojump_threshold=0))
