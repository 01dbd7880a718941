"""
Strategies of crashes, signals and passing time; and signals as values.
"""

from __future__ import annotations

import json
import math
from datetime import date
from typing import Any

import attrs
import pytest
import trio.testing
from hypothesis import find, given, settings
from hypothesis import strategies as st

import memable
from memable.testing import (
    Crash,
    CrashPlan,
    Effects,
    Signal,
    clock_jumps,
    crash_plans,
    explore_crashes,
    signals,
)


@attrs.frozen
class Decision:
    by: str
    on: date


APPROVAL = memable.SuspendPoint("approval", bool)
DECISION = memable.SuspendPoint("decision", Decision)
ANYTHING = memable.SuspendPoint("anything", Any)


@memable.workflow
async def approve(ctx: memable.Context) -> bool:
    return await ctx.suspend(APPROVAL, timeout=3600)


# Plans ---------------------------------------------------------------------------------------------------------------


@given(crash_plans(max_crashes=2, max_moment=7))
def test_crash_plans_keep_their_limits(plan: CrashPlan) -> None:
    """
    A plan has no more crashes than asked for, none later, and is its recipe.
    """
    assert len(plan.crashes) <= 2
    assert all(0 <= crash.moment <= 7 for crash in plan.crashes)
    assert CrashPlan.parse(str(plan)) == plan


@given(crash_plans(stops=False, passivates=False))
def test_crash_plans_without_stops_only_kill(plan: CrashPlan) -> None:
    """
    Stops and passivation can be left out.
    """
    assert not plan.passivates
    assert not any(crash.is_stop for crash in plan.crashes)


def test_crash_plans_shrink_to_fewer_and_earlier_crashes() -> None:
    """
    What is found is shrunk to the fewest crashes, at the earliest moments, that show it.
    """
    assert find(crash_plans(), lambda _: True) == CrashPlan()
    assert find(crash_plans(), lambda plan: any(one.moment > 4 for one in plan.crashes)) == CrashPlan((Crash(5),))
    stopped = find(crash_plans(), lambda plan: any(one.is_stop for one in plan.crashes))
    assert stopped == CrashPlan((Crash(0, is_stop=True),))


def test_crash_plans_find_what_a_sweep_finds() -> None:
    """
    A plan is one schedule of an exploration: a step that is not idempotent is found by some.
    """
    effects = Effects()

    async def charge() -> str:
        effects.record("charge")
        return "receipt"

    @memable.workflow
    async def order(ctx: memable.Context) -> str:
        return await ctx.step("charge", charge)

    async def scenario(engine: memable.Engine) -> str:
        return await (await engine.invoke(order, instance_id="o-1")).result()

    def is_wrong(plan: CrashPlan) -> bool:
        return not explore_crashes(scenario, workflows=[order], only=plan)

    found = find(crash_plans(), is_wrong, settings=settings(max_examples=1000, derandomize=True, database=None))
    assert len(found.crashes) == 1
    assert not found.passivates
    sweep = explore_crashes(scenario, workflows=[order])
    assert str(found) == sweep.problems[0].recipe


@pytest.mark.parametrize("number", [-1, 1.5, True, None])
def test_crash_plans_refuse_bad_limits(number: Any) -> None:
    """
    A limit is an int of at least 0.
    """
    with pytest.raises(ValueError, match="max_crashes must be an int, at least 0"):
        crash_plans(max_crashes=number)
    with pytest.raises(ValueError, match="max_moment must be an int, at least 0"):
        crash_plans(max_moment=number)


# Signals -------------------------------------------------------------------------------------------------------------


@given(signals(APPROVAL, DECISION, ANYTHING))
def test_signals_are_of_their_points_type(signal: Signal[Any]) -> None:
    """
    What is sent to a point is of its type; where that is anything, it is JSON.
    """
    assert signal.point in {APPROVAL, DECISION, ANYTHING}
    if signal.point is ANYTHING:
        json.dumps(signal.payload, allow_nan=False)
    else:
        assert isinstance(signal.payload, signal.point.type)
    assert 0 <= signal.after <= 60


@given(signals(APPROVAL, payloads={APPROVAL: st.just(value=True)}, after=st.just(5.0), early=["keep"]))
def test_signals_take_strategies_of_the_users(signal: Signal[bool]) -> None:
    """
    Payloads, delays and what becomes of early ones can be given.
    """
    assert signal == Signal(APPROVAL, payload=True, after=5.0, early="keep")


def test_signals_shrink_to_the_simplest() -> None:
    """
    What is found is shrunk to the first point, the simplest payload, at once, refused where it is early.
    """
    assert find(signals(APPROVAL, DECISION), lambda _: True) == Signal(APPROVAL, payload=False)


def test_signals_refuse_what_is_no_point() -> None:
    """
    Points are needed; payloads are for those.
    """
    wrong: Any = "approval"
    with pytest.raises(ValueError, match=r"at least one memable\.SuspendPoint"):
        signals()
    with pytest.raises(TypeError, match="signals takes suspend points, and payloads for those, not 'approval'"):
        signals(wrong)
    with pytest.raises(TypeError, match=r"not memable\.SuspendPoint"):
        signals(APPROVAL, payloads={DECISION: st.none()})  # type: ignore[dict-item] # the mistake
    with pytest.raises(ValueError, match="early is one or both"):
        signals(APPROVAL, early=[])


async def test_signal_send_tells_what_became_of_it(autojump_clock: trio.testing.MockClock) -> None:
    """
    Who sends a signal is told whether it was accepted, rejected or superseded, after the time it takes.
    """
    async with memable.open_engine(memable.InMemoryStore(), workflows=[approve]) as engine:
        await engine.invoke(approve, instance_id="a")
        begun = trio.current_time()
        assert await Signal(APPROVAL, payload=True, after=5.0).send(engine, approve, "a") == "accepted"
        assert trio.current_time() == begun + 5
        assert await Signal(APPROVAL, payload=False).send(engine, "approve", "a") == "superseded"
        await engine.invoke(approve, instance_id="b")
        await engine.cancel(approve, "b")
        assert await Signal(APPROVAL, payload=False, early="keep").send(engine, approve, "b") == "rejected"
        with pytest.raises(memable.InstanceNotFoundError, match="'c'"):
            await Signal(APPROVAL, payload=False).send(engine, approve, "c")


def test_signal_is_not_sent_before_now() -> None:
    """
    A signal cannot be sent in the past.
    """
    with pytest.raises(ValueError, match="after"):
        Signal(APPROVAL, payload=True, after=-1.0)


# Times ---------------------------------------------------------------------------------------------------------------


@given(clock_jumps(90.0, longest=100.0))
def test_clock_jumps_keep_their_limit(seconds: float) -> None:
    """
    A time that passes is a finite number of seconds, none longer than asked for.
    """
    assert isinstance(seconds, float)
    assert 0 <= seconds <= 100


@pytest.mark.parametrize("seconds", [0.0, 0.001, 89.999, 90.0, 90.001, 3600.0, 86400.0, 30 * 86400.0])
def test_clock_jumps_try_what_matters(seconds: float) -> None:
    """
    The times around a deadline, an instant, an hour, a day and a month are tried.
    """
    assert find(clock_jumps(90), lambda found: found == seconds) == seconds


def test_clock_jumps_shrink_to_nothing() -> None:
    """
    What is found is shrunk to no time, or to a time that is short or simple.
    """
    assert find(clock_jumps(90), lambda _: True) == 0
    assert 90 < find(clock_jumps(90), lambda found: found > 90) <= 91


@pytest.mark.parametrize("seconds", [-1.0, math.inf, math.nan, True, "1"])
def test_clock_jumps_refuse_bad_times(seconds: Any) -> None:
    """
    A deadline and a limit are finite, and not in the past.
    """
    with pytest.raises(ValueError, match="finite number of seconds, at least 0"):
        clock_jumps(seconds)
    with pytest.raises(ValueError, match="finite number of seconds, at least 0"):
        clock_jumps(longest=seconds)
