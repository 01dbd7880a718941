"""
Durable sleeps: when they end, after restarts too, and that nothing is polled meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest
import trio
from trio.testing import MockClock

import memable
from running import INSTANCE, ending_of, kinds_of, observe_twice, run_body, workflow_of
from stores import Gate, HookedStore, Place
from waits import HOUR, P, settle, suspended

MAX_PARKED = pytest.mark.parametrize("max_parked", [0, 1000])


async def utc_now(ctx: memable.Context, engine: memable.Engine) -> datetime:
    """Return what memable takes the time for."""
    metadata = await engine.metadata(ctx.workflow_name, ctx.instance_id)
    assert metadata is not None
    return metadata.created_at


@MAX_PARKED
async def test_sleep_lasts_as_long_as_it_says(place: Place, max_parked: int, autojump_clock: MockClock):
    """
    A sleep of thirty days takes thirty days of the clock, and nothing of it when the clock jumps.
    """
    workflow = workflow_of(lambda ctx: ctx.sleep("s", 30 * 86_400))
    began = trio.current_time()
    async with memable.open_engine(place.store(), workflows=[workflow], max_parked=max_parked) as engine:
        await (await engine.invoke(workflow, instance_id=INSTANCE)).result()
    assert trio.current_time() - began == pytest.approx(30 * 86_400)


@MAX_PARKED
async def test_sleep_deadline_is_kept_over_restarts(place: Place, max_parked: int, autojump_clock: MockClock):
    """
    The deadline of a sleep is fixed when it is first reached: neither a crash nor changed code moves it.
    """
    ended: list[float] = []

    def sleeping(seconds: float) -> memable.Workflow[[], None]:
        async def body(ctx: memable.Context) -> None:
            await ctx.sleep("s", seconds)
            ended.append(trio.current_time())

        return workflow_of(body)

    began = trio.current_time()
    for seconds in (100.0, 5_000.0, 1.0):
        workflow = sleeping(seconds)
        async with memable.open_engine(place.store(), workflows=[workflow], max_parked=max_parked) as engine:
            invocation = await engine.invoke(workflow, instance_id=INSTANCE)
            await suspended(engine)
            await trio.sleep(20)
            if seconds == 1.0:
                await invocation.result()
            place = place.crash()
    assert ended == [pytest.approx(began + 100)]


@MAX_PARKED
async def test_sleep_deadline_that_passed_while_down_is_due_at_once(
    place: Place, max_parked: int, autojump_clock: MockClock
):
    """
    A sleep whose deadline passed while no engine ran ends as soon as one does.
    """
    workflow = workflow_of(lambda ctx: ctx.sleep("s", 100))
    async with memable.open_engine(place.store(), workflows=[workflow], max_parked=max_parked) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        place = place.crash()
    await trio.sleep(500)
    reopened_at = trio.current_time()
    async with memable.open_engine(place.store(), workflows=[workflow], max_parked=max_parked) as engine:
        assert await ending_of(await engine.get("w", INSTANCE)) == memable.Completed()
        assert trio.current_time() == pytest.approx(reopened_at)


async def test_sleep_that_has_ended_is_not_slept_again(autojump_clock: MockClock):
    """
    A replay passes a sleep that has ended without any time going by; it is a checkpoint all the same.
    """

    async def body(ctx: memable.Context) -> float:
        began = trio.current_time()
        with trio.testing.assert_checkpoints():
            await ctx.sleep("s", 100)
        return trio.current_time() - began

    live, replayed = await observe_twice(body)
    assert (live, replayed) == (pytest.approx(100), 0)


@MAX_PARKED
async def test_sleep_of_zero_ends_at_once(max_parked: int, autojump_clock: MockClock):
    """
    A sleep of no time, or until an instant that has passed, ends at once and yields.
    """

    async def body(ctx: memable.Context) -> None:
        with trio.testing.assert_checkpoints():
            await ctx.sleep("zero", 0)
        await ctx.sleep_until("past", datetime(1990, 1, 1, tzinfo=UTC))
        await ctx.sleep_until("first", datetime.min.replace(tzinfo=UTC))

    began = trio.current_time()
    assert await run_body(body, max_parked=max_parked) == memable.Completed()
    assert trio.current_time() == pytest.approx(began)


@MAX_PARKED
@pytest.mark.parametrize("seconds", [math.inf, 1e300])
async def test_sleep_for_ever_lasts(seconds: float, max_parked: int, autojump_clock: MockClock):
    """
    A sleep without end has no deadline, or one that no calendar has; it can be seen and cancelled.
    """
    workflow = workflow_of(lambda ctx: ctx.sleep("s", seconds))
    store = memable.InMemoryStore()
    async with memable.open_engine(store, workflows=[workflow], max_parked=max_parked) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        state = await suspended(engine)
        assert state.waits == ("s",)
        assert (state.deadline is None) == (seconds == math.inf)
        assert str(state)
    async with memable.open_engine(store, workflows=[workflow], max_parked=max_parked) as engine:
        assert await suspended(engine) == state
        assert await engine.cancel(workflow, INSTANCE)


async def test_sleep_until_an_instant_ends_there(place: Place, autojump_clock: MockClock):
    """
    ``sleep_until`` ends at the instant that was given when it was first reached, in whatever time zone.
    """
    ended: list[float] = []
    later = timedelta(hours=5)
    offset = timezone(timedelta(hours=-7))
    targets: list[datetime] = []

    async def body(ctx: memable.Context) -> None:
        target = (await utc_now(ctx, engine) + later).astimezone(offset)
        targets.append(target)
        await ctx.sleep_until("s", target)
        ended.append(trio.current_time())

    workflow = workflow_of(body)
    began = trio.current_time()
    async with memable.open_engine(place.store(), workflows=[workflow], max_parked=0) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        state = await suspended(engine)
        assert state.deadline is not None
        assert abs((state.deadline - targets[0]).total_seconds()) < 1e-5
        later = timedelta(days=1)
        await (await engine.get("w", INSTANCE)).result()
    assert ended == [pytest.approx(began + 5 * HOUR, abs=0.01)]


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda ctx: ctx.sleep("s", -1), "a sleep of -1; give seconds, at least 0"),
        (lambda ctx: ctx.sleep("s", math.nan), "a sleep of nan"),
        (lambda ctx: ctx.sleep("s", timedelta(1)), "a sleep of datetime.timedelta"),
        (lambda ctx: ctx.sleep("s", True), "a sleep of True"),
        (lambda ctx: ctx.sleep("s", "5"), "a sleep of '5'"),
        (lambda ctx: ctx.sleep_until("s", datetime(2050, 1, 1)), "takes an aware datetime"),  # noqa: DTZ001 - the mistake
        (lambda ctx: ctx.sleep_until("s", 5), "takes an aware datetime, not 5"),
        (lambda ctx: ctx.sleep("no/key", 5), "without '/'"),
    ],
)
async def test_sleep_misused_blocks(
    call: Callable[[memable.Context], Awaitable[object]], problem: str, autojump_clock: MockClock
):
    """
    Arguments that make no sense block the instance and say what to write.
    """
    store = memable.InMemoryStore()
    state = await run_body(call, store=store)
    assert isinstance(state, memable.Blocked)
    assert state.error.matches(memable.WorkflowCodeError)
    assert problem in state.error.message
    assert "wait_started" not in kinds_of(store)


async def test_sleep_twice_with_one_key_blocks(autojump_clock: MockClock):
    """
    A sleep in a loop needs a key for each turn.
    """

    async def body(ctx: memable.Context) -> None:
        for _ in range(2):
            await ctx.sleep("s", 1)

    state = await run_body(body)
    assert isinstance(state, memable.Blocked)
    assert state.error.matches(memable.DuplicateKeyError)


@MAX_PARKED
async def test_sleeping_state_says_until_when(max_parked: int, autojump_clock: MockClock):
    """
    A sleeping instance is Suspended until its deadline, parked, passivated and at the next open.
    """
    store = memable.InMemoryStore()
    workflow = workflow_of(lambda ctx: ctx.sleep("s", HOUR))
    seen: list[memable.Suspended] = []
    async with memable.open_engine(store, workflows=[workflow], max_parked=max_parked) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        seen.append(await suspended(engine))
        metadata = await engine.metadata("w", INSTANCE)
    async with memable.open_engine(store) as engine:
        seen.append(await suspended(engine))
    (state,) = set(seen)
    assert metadata is not None
    assert state.deadline is not None
    assert (state.deadline - metadata.created_at).total_seconds() == pytest.approx(HOUR, abs=0.01)


@pytest.mark.slow
@MAX_PARKED
async def test_many_sleepers_wake_in_the_order_of_their_deadlines(max_parked: int, autojump_clock: MockClock):
    """
    Ten thousand sleeping instances wake each at its deadline, the nearest first.
    """
    count = 10_000 if max_parked else 500
    woken: list[int] = []
    late: list[float] = []

    @memable.workflow
    async def sleeper(ctx: memable.Context, n: int) -> None:
        await ctx.sleep("s", 1 + n)
        woken.append(n)
        late.append(trio.current_time() - began - 1 - n)

    async with memable.open_engine(memable.InMemoryStore(), workflows=[sleeper], max_parked=max_parked) as engine:
        began = trio.current_time()
        for k in range(count):
            n = k * 7_919 % count
            await engine.invoke(sleeper, n, instance_id=str(n))
        await engine.wait_all()
        await trio.sleep(count + 2)
    assert woken == list(range(count))
    assert max(map(abs, late)) < 0.05


async def test_sleepers_that_are_due_together_all_wake(place: Place, autojump_clock: MockClock):
    """
    Hundreds of sleeps that ended while no engine ran are all over as soon as one does.
    """
    woken: list[int] = []

    @memable.workflow
    async def sleeper(ctx: memable.Context, n: int) -> None:
        await ctx.sleep("s", 10 + n)
        woken.append(n)
        if len(woken) == 600:
            all_woken.set()

    all_woken = trio.Event()
    async with memable.open_engine(place.store(), workflows=[sleeper], max_parked=10) as engine:
        for n in range(600):
            await engine.invoke(sleeper, n, instance_id=str(n))
    await trio.sleep(1_000)
    began = trio.current_time()
    async with memable.open_engine(place.store(), workflows=[sleeper], max_parked=10) as engine:
        with trio.fail_after(5):
            await all_woken.wait()
        await engine.wait_all()
    assert sorted(woken) == list(range(600))
    assert trio.current_time() - began < 1


async def test_sleep_wakes_while_the_store_is_busy(autojump_clock: MockClock):
    """
    A deadline that passes while the record of the wait is on its way to the disk ends the sleep right after it.
    """
    gate = Gate("wait_started")
    store = HookedStore(before_append=gate.pass_)
    workflow = workflow_of(lambda ctx: ctx.sleep("s", 10))
    async with memable.open_engine(store, workflows=[workflow], max_parked=0) as engine:
        began = trio.current_time()
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        await gate.is_reached.wait()
        await trio.sleep(50)
        gate.is_open.set()
        assert await ending_of(invocation) == memable.Completed()
        assert trio.current_time() - began == pytest.approx(50)


async def test_sleep_that_the_body_cancelled_may_be_begun_again(autojump_clock: MockClock):
    """
    A sleep that a cancel scope of the body's ended may be begun again with its key; its deadline stays.
    """

    async def body(ctx: memable.Context) -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ctx.sleep, "s", 100)
                await settle()
                scope.cancel()
        await trio.sleep(60)
        await ctx.sleep("s", 100)

    began = trio.current_time()
    assert await run_body(body) == memable.Completed()
    assert trio.current_time() - began == pytest.approx(100)


async def test_sleeps_in_parallel_end_each_at_its_time(autojump_clock: MockClock):
    """
    Several branches sleep at once, each to its own deadline, restarts or not.
    """
    ended: dict[int, float] = {}

    async def branch(ctx: memable.Context, n: int) -> None:
        await ctx.sleep("s", 10 * n)
        ended.setdefault(n, trio.current_time() - began)
        if n == 2:
            await ctx.suspend(P, timeout=100)

    workflow = workflow_of(lambda ctx: ctx.fan_out_settled("f", branch, range(4)))
    for max_parked in (0, 1000):
        ended.clear()
        async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow], max_parked=max_parked) as engine:
            began = trio.current_time()
            invocation = await engine.invoke(workflow, instance_id=INSTANCE)
            assert await ending_of(invocation) == memable.Completed()
            assert trio.current_time() - began == pytest.approx(120)
        assert ended == {n: pytest.approx(10 * n) for n in range(4)}
