"""
What time it is for an engine and its store.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

import memable
from memable._clock import LONGEST_NAP_S, TOLERANCE_S, TrioClock, WallClock, current_clock, sleep_until
from running import workflow_of
from stores import HookedStore


@attrs.define
class System:
    """
    A computer's two clocks, one of which somebody sets.
    """

    wall_s: float = 1_000_000.0
    monotonic_s: float = 50.0

    def wall(self) -> float:
        return self.wall_s

    def monotonic(self) -> float:
        return self.monotonic_s

    def pass_time(self, seconds: float) -> None:
        self.wall_s += seconds
        self.monotonic_s += seconds

    def clock(self) -> WallClock:
        return WallClock(wall=self.wall, monotonic=self.monotonic)


# The system's clock ------------------------------------------------------------------------------------------------


def test_wall_clock_follows_the_system():
    """
    Now is what the system's wall clock says, forward jumps included.
    """
    system = System()
    clock = system.clock()
    assert clock.now() == system.wall_s
    system.pass_time(10)
    assert clock.now() == system.wall_s
    system.wall_s += 86400
    assert clock.now() == system.wall_s
    assert not clock.is_virtual


def test_wall_clock_without_sources_is_the_systems():
    """
    By default now is the time of day.
    """
    before = time.time()
    now = WallClock().now()
    assert before <= now <= time.time()


def test_wall_clock_behind_the_store_goes_on_by_the_monotonic_clock(caplog: pytest.LogCaptureFixture):
    """
    Where the wall clock is behind the store's last record, now goes on from there, and says so once, loudly.
    """
    system = System()
    clock = system.clock()
    recorded = system.wall_s + 3600
    clock.not_before(recorded)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "the system's clock is 3600.000 s behind the newest time in use" in caplog.text
    assert clock.now() == recorded
    system.pass_time(10)
    assert clock.now() == recorded + 10
    system.wall_s -= 500
    system.monotonic_s += 5
    assert clock.now() == recorded + 15
    assert len(caplog.records) == 1


def test_wall_clock_that_has_caught_up_is_followed_again(caplog: pytest.LogCaptureFixture):
    """
    Once the wall clock is past what the monotonic clock has made of the time, now follows it again.
    """
    system = System()
    clock = system.clock()
    recorded = system.wall_s + 3600
    clock.not_before(recorded)
    system.pass_time(10)
    # Past the record, but not past what has been told since.
    system.wall_s = recorded + 5
    assert clock.now() == recorded + 10
    system.pass_time(1)
    system.wall_s = recorded + 20
    assert clock.now() == recorded + 20
    system.pass_time(1)
    assert clock.now() == recorded + 21
    assert len(caplog.records) == 1


def test_wall_clock_that_is_set_back_never_takes_now_back(caplog: pytest.LogCaptureFixture):
    """
    A system clock that is set back while an engine runs does not take now back; each time it is, is logged once.
    """
    system = System()
    clock = system.clock()
    told = [clock.now()]
    for jump in (-100.0, 0.0, -5.0, 300.0, -10.0):
        system.wall_s += jump
        system.pass_time(1)
        told.append(clock.now())
    assert told == sorted(told)
    assert len(caplog.records) == 2


def test_wall_clock_behind_by_rounding_only_is_not_logged(caplog: pytest.LogCaptureFixture):
    """
    A record that is later than now by no more than a rounding is nothing to be loud about.
    """
    system = System()
    clock = system.clock()
    clock.not_before(system.wall_s + TOLERANCE_S / 2)
    assert clock.now() == system.wall_s + TOLERANCE_S / 2
    assert caplog.records == []


def test_wall_clock_takes_records_of_the_past_as_they_are(caplog: pytest.LogCaptureFixture):
    """
    A store whose last record is in the past changes nothing.
    """
    system = System()
    clock = system.clock()
    clock.not_before(system.wall_s - 1000)
    assert clock.now() == system.wall_s
    assert caplog.records == []


def test_wall_clock_goes_on_from_the_latest_of_several_records():
    """
    A later record moves now on although the clock is behind already; an earlier one does not move it back.
    """
    system = System()
    clock = system.clock()
    clock.not_before(system.wall_s + 100)
    system.pass_time(10)
    clock.not_before(system.wall_s + 300)
    clock.not_before(system.wall_s + 200)
    assert clock.now() == system.wall_s + 300
    system.pass_time(1)
    assert clock.now() == system.wall_s + 300


@pytest.mark.parametrize("autojump", [False, True])
async def test_sleep_until_a_time_that_has_passed_is_a_checkpoint(autojump: bool):
    """
    Nothing to wait for is a checkpoint still.
    """
    clock = System().clock() if autojump else TrioClock(0.0)
    with trio.testing.assert_checkpoints():
        await sleep_until(clock, 0.0)


async def test_sleep_until_notices_that_the_systems_clock_was_set(autojump_clock: MockClock):
    """
    Under the system's clock, a sleeper looks at it once a minute: a jump is noticed within that.
    """
    system = System()
    clock = system.clock()
    woken: list[float] = []

    async def sleep() -> None:
        await sleep_until(clock, system.wall_s + 30 * 86400)
        woken.append(trio.current_time() - began)

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleep)
        await trio.sleep(90)
        system.wall_s += 31 * 86400
    assert woken == [pytest.approx(2 * LONGEST_NAP_S)]


def test_engine_under_the_systems_clock_uses_it():
    """
    Under trio's own clock, timestamps are the system's time, and file stores work in threads.
    """

    async def main() -> memable.WorkflowMetadata | None:
        assert not current_clock().is_virtual
        async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
            await (await engine.invoke(workflow, instance_id="i")).result()
            return await engine.metadata(workflow, "i")

    async def body(ctx: memable.Context) -> None:
        pass

    workflow = workflow_of(body)
    before = time.time()
    metadata = trio.run(main)
    assert metadata is not None
    # Datetimes have microseconds.
    assert before - 1e-6 <= metadata.created_at.timestamp() <= time.time() + 1e-6


def test_engine_with_a_store_from_the_future_goes_on_from_there(caplog: pytest.LogCaptureFixture):
    """
    An engine over a store whose last record is in the future makes later records still, and logs it.
    """
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        pass

    workflow = workflow_of(body)

    async def start(instance_id: str) -> memable.WorkflowMetadata | None:
        async with memable.open_engine(store, workflows=[workflow]) as engine:
            await (await engine.invoke(workflow, instance_id=instance_id)).result()
            return await engine.metadata(workflow, instance_id)

    async def in_a_year() -> memable.WorkflowMetadata | None:
        current_clock()
        await trio.sleep(365 * 86400)
        return await start("first")

    first = trio.run(in_a_year, clock=MockClock(autojump_threshold=0))
    assert first is not None
    assert caplog.records == []
    second = trio.run(start, "second")
    assert second is not None
    assert first.updated_at <= second.created_at
    assert (second.created_at - first.updated_at).total_seconds() < 3600
    assert "going on from" in caplog.text


# Any other clock ---------------------------------------------------------------------------------------------------


async def test_virtual_clock_is_the_wall_time_at_first_use_plus_the_time_since(autojump_clock: MockClock):
    """
    Under any other clock than trio's own, now is the wall time at memable's first use plus the trio time since.
    """
    before = time.time()
    clock = current_clock()
    began = clock.now()
    assert clock.is_virtual
    assert before - 1e-3 <= began <= time.time() + 1e-3
    await trio.sleep(30 * 86400)
    assert clock.now() == pytest.approx(began + 30 * 86400, abs=1e-3)


async def test_virtual_clock_goes_on_over_several_engines(autojump_clock: MockClock):
    """
    Engines of one trio run share one virtual time, and it goes on between them.
    """
    store = memable.InMemoryStore()
    created: list[float] = []

    async def body(ctx: memable.Context) -> None:
        pass

    workflow = workflow_of(body)
    for _ in range(3):
        async with memable.open_engine(store, workflows=[workflow]) as engine:
            invocation = await engine.invoke(workflow)
            metadata = await engine.metadata(workflow, invocation.instance_id)
        assert metadata is not None
        created.append(metadata.created_at.timestamp())
        await trio.sleep(86400)
    assert [later - created[0] for later in created] == [pytest.approx(day * 86400, abs=1e-3) for day in range(3)]


async def test_virtual_backoff_of_a_month_passes_at_once_across_engines(autojump_clock: MockClock):
    """
    With autojump a backoff of 30 days passes in a test at once, also when the engine is restarted within it.
    """
    calls: list[float] = []

    async def flaky() -> None:
        calls.append(trio.current_time())
        if len(calls) == 1:
            raise ValueError

    async def body(ctx: memable.Context) -> None:
        await ctx.step("flaky", flaky, retry=memable.RetryPolicy.fixed(1, 30 * 86400.0))

    workflow = workflow_of(body)
    store = memable.InMemoryStore()
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await (await engine.invoke(workflow, instance_id="i")).wait()
    for _ in range(2):
        await trio.sleep(10 * 86400)
        async with memable.open_engine(store, workflows=[workflow]) as engine:
            assert isinstance(await (await engine.get(workflow, "i")).wait(), memable.Suspended)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await (await engine.get(workflow, "i")).result()
    assert calls[1] - calls[0] == pytest.approx(30 * 86400, abs=1e-3)


async def test_virtual_clock_is_not_before_the_store(autojump_clock: MockClock):
    """
    Under a virtual clock, too, now goes on from the store's last record, and never back.
    """
    clock = current_clock()
    began = clock.now()
    clock.not_before(began - 1000)
    assert clock.now() == began
    clock.not_before(began + 1000)
    assert clock.now() == pytest.approx(began + 1000)


async def test_attempt_that_fell_due_while_the_engine_was_closed_is_due_at_once(autojump_clock: MockClock):
    """
    A backoff whose time passed while the engine was closed is over at the next open.
    """
    calls: list[int] = []

    async def flaky() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError

    async def body(ctx: memable.Context) -> None:
        await ctx.step("flaky", flaky, retry=memable.RetryPolicy.fixed(1, 100.0))

    workflow = workflow_of(body)
    store = memable.InMemoryStore()
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await (await engine.invoke(workflow, instance_id="i")).wait()
    await trio.sleep(1000)
    began = trio.current_time()
    async with memable.open_engine(HookedStore(store), workflows=[workflow]) as engine:
        await (await engine.get(workflow, "i")).result()
    assert trio.current_time() == began


def test_clock_of_a_users_own_class_is_virtual():
    """
    A clock of the user's own is followed by the time that it tells trio.
    """

    class Own(trio.abc.Clock):
        def start_clock(self) -> None:
            pass

        def current_time(self) -> float:
            return 7.0

        def deadline_to_sleep_time(self, deadline: float) -> float:
            return 0.0 if deadline <= 7.0 else 3600.0

    async def main() -> Any:
        clock = current_clock()
        return clock.is_virtual, clock.now()

    is_virtual, now = trio.run(main, clock=Own())
    assert is_virtual
    assert now == pytest.approx(time.time(), abs=3600)
