"""
Functions of steps that fail, hang or are slow by plan.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from datetime import date
from typing import Any, TypeVar

import pytest
import trio
from trio.testing import MockClock

import memable
from memable._annotations import return_annotation
from memable.testing import (
    CrashReport,
    Effects,
    Fail,
    FaultyStep,
    Hang,
    Pass,
    Slow,
    by_plan,
    explore_crashes,
    fails,
    hangs,
    slow,
)

T = TypeVar("T")

RETRY = memable.RetryPolicy(delay=1.0, max_delay=1.0)


async def fetch(page: int = 0) -> date:
    return date(2026, 1, 1 + page)


def run(fn: Callable[[], Awaitable[T]]) -> T:
    return trio.run(fn, clock=MockClock(autojump_threshold=0))


def explore(workflow: memable.Workflow[[], Any], **options: Any) -> CrashReport[Any]:
    async def scenario(engine: memable.Engine) -> Any:
        return await (await engine.invoke(workflow, instance_id="i")).result()

    return explore_crashes(scenario, workflows=[workflow], **options)


def test_fails_raises_so_often_and_then_does_its_work():
    """
    ``fails`` lets so many calls fail, and then the function is called.
    """
    flaky = fails(fetch, times=2, error=TimeoutError("late"))

    async def main() -> date:
        for _ in range(2):
            with pytest.raises(TimeoutError, match="late"):
                await flaky(1)
        return await flaky(1)

    assert run(main) == date(2026, 1, 2)
    assert flaky.calls == 3


def test_fails_with_a_connection_error_unless_told_otherwise():
    """
    What a faulty step raises is a ConnectionError, or what is given: an exception, or a class of one.
    """

    async def main() -> None:
        with pytest.raises(ConnectionError, match="a fault of the test's"):
            await fails(fetch)()
        with pytest.raises(KeyError, match=r"^$"):
            await fails(fetch, error=KeyError)()

    run(main)


def test_fails_after_the_call_loses_the_answer():
    """
    With ``after=True`` the function is called before the call fails or hangs.
    """
    effects = Effects()
    charge = effects.wrap(fetch, "charge")

    async def main() -> None:
        with pytest.raises(ConnectionError, match="fault"):
            await fails(charge, after=True)()
        with trio.move_on_after(5):
            await hangs(charge, after=True)()
        with trio.move_on_after(5):
            await hangs(charge)()

    run(main)
    assert effects.count("charge") == 2


def test_hangs_until_cancelled():
    """
    ``hangs`` waits until it is cancelled, so that a step's timeout is seen to work.
    """
    hanging = hangs(fetch)

    @memable.workflow
    async def patient(ctx: memable.Context) -> date:
        return await ctx.step("fetch", hanging, timeout=30.0, retry=RETRY)

    async def main() -> tuple[date, float]:
        async with memable.open_engine(memable.InMemoryStore(), workflows=[patient]) as engine:
            return await (await engine.invoke(patient)).result(), trio.current_time()

    assert run(main) == (date(2026, 1, 1), 31.0)
    assert hanging.calls == 2


def test_slow_waits_by_trios_clock():
    """
    ``slow`` waits before it calls the function: always, or as often as it is told.
    """
    always, once = slow(fetch, 5.0), slow(fetch, 7.0, times=1)

    async def main() -> float:
        for step in (always, once):
            await step()
            await step()
        return trio.current_time()

    assert run(main) == 5.0 + 5.0 + 7.0


def test_by_plan_does_what_the_plan_says_call_by_call():
    """
    ``by_plan`` takes one part of its plan for each call, and ``then`` for those beyond.
    """
    step = by_plan(fetch, [Pass(), Slow(2.0), Fail(OSError("gone")), Hang()], then=Fail(RuntimeError("over")))

    async def main() -> float:
        await step()
        await step()
        with pytest.raises(OSError, match="gone"):
            await step()
        with trio.move_on_after(3.0):
            await step()
        for _ in range(2):
            with pytest.raises(RuntimeError, match="over"):
                await step()
        return trio.current_time()

    assert run(main) == 2.0 + 3.0
    assert step.calls == 6
    assert repr(step) == "<FaultyStep fetch, called 6 times>"


def test_clear_begins_the_plan_anew():
    """
    After ``clear`` the first call is the first of the plan again.
    """
    flaky = fails(fetch)

    async def main() -> None:
        for _ in range(2):
            with pytest.raises(ConnectionError, match="fault"):
                await flaky()
            await flaky()
            flaky.clear()

    run(main)
    assert flaky.calls == 0


def test_faulty_step_keeps_name_and_annotations():
    """
    A wrapped function says of itself what the function says; wrapping twice keeps two plans.
    """
    inner = fails(fetch, times=2)
    outer: FaultyStep[[int], date] = slow(inner, 1.0)
    assert return_annotation(outer) is date
    assert outer.__name__ == "fetch"  # type: ignore[attr-defined] # taken over from the function
    assert inspect.signature(outer) == inspect.signature(fetch)

    async def main() -> None:
        with pytest.raises(ConnectionError, match="fault"):
            await outer(1)

    run(main)
    assert (inner.calls, outer.calls) == (1, 1)


def test_faulty_step_returns_values_of_the_annotated_type():
    """
    What a wrapped step has returned comes back as the type that its function is annotated with.
    """
    flaky = fails(fetch)

    @memable.workflow
    async def dated(ctx: memable.Context) -> bool:
        return isinstance(await ctx.step("fetch", flaky, retry=RETRY), date)

    report = explore(dated)
    assert report
    assert [result.outcome.value for result in report.results] == [True]


def test_faulty_step_of_a_blocking_function_is_refused_by_the_step():
    """
    A function that is not async is refused as if it were not wrapped.
    """

    def blocking() -> int:
        return 1

    wrong: Any = fails(blocking)  # type: ignore[arg-type] # it is the mistake

    @memable.workflow
    async def mistaken(ctx: memable.Context) -> None:
        await ctx.step("wrong", wrong)

    (result,) = explore(mistaken, allow=["blocked"]).results
    assert "is not an async function" in result.outcome.text


def test_faulty_step_calls_survive_crashes_and_begin_anew_with_each_schedule():
    """
    A call that failed is one that failed when the process has died, too; another schedule knows nothing of it.
    """
    effects = Effects()
    flaky = fails(effects.wrap(fetch, "fetch"), times=2)

    @memable.workflow
    async def stubborn(ctx: memable.Context) -> date:
        return await ctx.step("fetch", flaky, retry=memable.RetryPolicy(max_retries=2))

    report = explore(stubborn, allow=["effect-repeated"])
    assert report, str(report)
    assert report.is_exhaustive
    # Were a failure forgotten at a crash, there would be three of them, and two retries would not do.
    assert [result.outcome.kind for result in report.results] == ["returned"]
    # The world outside is again as it was before.
    assert flaky.calls == 0
    assert len(effects) == 0


def test_faulty_step_call_is_a_change_that_the_next_process_sees():
    """
    Dying after a call that failed and before its record is written is a schedule of its own.
    """
    flaky = fails(fetch, times=None)
    seen: list[int] = []

    @memable.workflow
    async def hopeless(ctx: memable.Context) -> str:
        try:
            await ctx.step("fetch", flaky, retry=memable.RetryPolicy(max_retries=1))
        except memable.RetriesExhaustedError:
            return "given up"
        return "done"

    async def scenario(engine: memable.Engine) -> str:
        result = await (await engine.invoke(hopeless, instance_id="i")).result()
        seen.append(flaky.calls)
        return result

    assert explore_crashes(scenario, workflows=[hopeless])
    # Without a crash there are two calls; a crash before the record of either costs one more.
    assert set(seen) == {2, 3}


def test_faulty_step_that_hangs_for_ever_is_reported():
    """
    A step without a timeout that hangs is a problem of the workflow, which the report names.
    """

    @memable.workflow
    async def trusting(ctx: memable.Context) -> date:
        return await ctx.step("fetch", hangs(fetch, times=None))

    report = explore(trusting)
    assert {problem.kind for problem in report.problems} == {"never-finishes"}


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: fails(fetch, times=-1), ValueError, "times must be an int, at least 0, or None for always, not -1"),
        (lambda: hangs(fetch, times=True), ValueError, "times must be an int"),
        (lambda: slow(fetch, -1.0), ValueError, "seconds must be a number, at least 0, not -1.0"),
        (lambda: slow(fetch, float("nan")), ValueError, "seconds must be a number, at least 0, not nan"),
        (lambda: fails(fetch, error=KeyboardInterrupt), TypeError, "error must be an Exception or a class of one"),
        (lambda: by_plan(fetch, [Fail]), TypeError, "a plan is made of Pass"),
        (lambda: by_plan(fetch, [], then=Hang), TypeError, "a plan is made of Pass.*not <class"),
        (lambda: by_plan(fetch(), []), TypeError, "fn must be an async function, not <coroutine"),
    ],
)
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_faulty_step_refuses_what_makes_no_sense(make: Callable[[], object], error: type[Exception], match: str):
    """
    A number, an error or a plan that cannot be meant is refused at once.
    """
    with pytest.raises(error, match=match):
        make()
