"""
Laws that hold for workflows whose keys are right, and the upgrade from old code to new.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
import trio

import memable
from memable.testing import Effects, assert_order_independent, assert_replays, explore_upgrade


async def one() -> int:
    return 1


async def text() -> str:
    return "one"


async def double(number: int) -> int:
    return 2 * number


# assert_replays ----------------------------------------------------------------------------------------------------


def test_assert_replays_passes_for_stable_keys():
    """
    A workflow with stable keys replays: in nurseries, fan-outs, children, waits and failures that it catches.
    """

    async def fail() -> None:
        raise ConnectionError("unreachable")

    @memable.workflow
    async def child(ctx: memable.Context, number: int) -> int:
        return await ctx.step("double", double, number)

    async def item(ctx: memable.Context, number: int) -> int:
        return await ctx.step("double", double, number)

    @memable.workflow
    async def everything(ctx: memable.Context, number: int) -> int:
        async with trio.open_nursery() as nursery:
            for index in range(3):
                nursery.start_soon(ctx.step, f"n{index}", double, index)
        await ctx.sleep("month", 30 * 86400)
        numbers = await ctx.fan_out("items", item, [1, 2, 3])
        try:
            await ctx.step("failing", fail)
        except memable.StepFailedError:
            numbers.append(await ctx.call("child", child, number))
        return sum(numbers)

    assert_replays(everything, 5, workflows=[child])


def test_assert_replays_names_keys_that_differ():
    """
    A key that is made from the clock is named, and what is asked for in its place.
    """

    @memable.workflow
    async def hourly(ctx: memable.Context) -> int:
        await ctx.sleep("wait", 100)
        return await ctx.step(f"fetch-{time.time() - id(ctx):.3f}", one)

    with pytest.raises(AssertionError, match=r"hourly/explored does not replay: it executes 'fetch-.*' again"):
        assert_replays(hourly)


def test_assert_replays_names_keys_that_are_not_asked_for_again():
    """
    A branch that depends on memory rather than on memos is found though no step runs again.
    """
    counter = itertools.count()

    @memable.workflow
    async def forgetful(ctx: memable.Context) -> None:
        await ctx.step("first", one)
        if next(counter) == 0:
            await ctx.step("only once", one)

    with pytest.raises(AssertionError, match="the second run does not ask for 'only once'"):
        assert_replays(forgetful)


def test_assert_replays_says_if_nothing_ends():
    """
    A workflow that does not end has not been replayed.
    """

    @memable.workflow
    async def waiting(ctx: memable.Context) -> bool:
        return await ctx.suspend(memable.SuspendPoint("approval", bool))

    with pytest.raises(AssertionError, match="no instance has ended: suspended at"):
        assert_replays(waiting)


# assert_order_independent --------------------------------------------------------------------------------------------


def test_order_independent_passes_for_branches_with_keys_of_their_own():
    """
    Branches whose keys and values depend on their items only may run in any order.
    """

    @memable.workflow
    async def branches(ctx: memable.Context) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(ctx.step, f"double-{number}", double, number)

    assert_order_independent(branches)


def test_order_independent_finds_values_that_depend_on_order():
    """
    A value that depends on which sibling was first is found, with the key and both values.
    """

    @memable.workflow
    async def racing(ctx: memable.Context) -> None:
        arrived: list[int] = []

        async def run(number: int) -> None:
            arrived.append(number)
            await ctx.step(f"place-{number}", double, len(arrived))

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(run, number)

    with pytest.raises(AssertionError, match=r"racing/explored, key 'place-\d': the value depends on the order"):
        assert_order_independent(racing)


# explore_upgrade -----------------------------------------------------------------------------------------------------


def version(name: str, *steps: tuple[str, Any]) -> memable.Workflow[[], None]:
    @memable.workflow(name=name)
    async def workflow(ctx: memable.Context) -> None:
        for key, fn in steps:
            await ctx.step(key, fn)

    return workflow


def test_upgrade_serves_kept_keys_and_runs_new_ones_once():
    """
    Each key that is kept is served, each new one runs once, wherever the old code was cut off.
    """
    effects = Effects()

    async def counted() -> int:
        effects.record("new", idempotency_key="new")
        return 1

    old = version("w", ("a", one), ("b", one), ("c", one))
    new = version("w", ("c", one), ("new", counted), ("a", one))
    report = explore_upgrade(old, new, check=lambda _: effects.assert_at_most(1))
    assert report, report
    assert {path for _, path in report.served} == {"a", "c"}
    assert {path for _, path in report.added} == {"new"}
    assert {path for _, path in report.orphaned} == {"b"}
    assert ("w/explored", "new") in report.executed
    stopped = [schedule for schedule in report.schedules if schedule.recipe.endswith("s")]
    assert stopped
    assert "asked for by the new code only:\n  w/explored: new" in str(report)


def test_upgrade_reports_changed_types():
    """
    A value whose type has changed leaves the instance Blocked: key, old and new type are named.
    """
    report = explore_upgrade(version("w", ("a", one), ("b", one)), version("w", ("a", text), ("b", one)))
    (problem,) = report.problems
    assert (problem.kind, problem.instance, problem.key) == ("blocked", "w/explored", "a")
    assert "asks for builtins.str" in problem.message
    assert "recorded is builtins.int" in problem.message
    # Where the old code had not got so far, the new code runs.
    assert problem.count < len(report.schedules)


def test_upgrade_refuses_other_names():
    """
    Two workflows of different names are no upgrade.
    """
    with pytest.raises(ValueError, match="have no workflow of the same name"):
        explore_upgrade(version("w"), version("v"))


def test_upgrade_replays_a_recipe():
    """
    One schedule of an upgrade can be run by its recipe.
    """
    old, new = version("w", ("a", one)), version("w", ("a", text))
    problem = explore_upgrade(old, new).problems[0]
    report = explore_upgrade(old, new, only=problem.recipe)
    assert [one.message for one in report.problems] == [problem.message]
    assert len(report.schedules) == 1


def test_upgrade_reports_a_parameter_without_a_default():
    """
    A new parameter without a default leaves what is in flight Blocked.
    """

    @memable.workflow(name="w")
    async def old(ctx: memable.Context, day: str) -> str:
        return await ctx.step("a", text)

    @memable.workflow(name="w")
    async def new(ctx: memable.Context, day: str, language: str) -> str:
        return await ctx.step("a", text)

    report = explore_upgrade(old, new, "mon")
    assert "blocked" in {one.kind for one in report.problems}


def test_upgrade_reports_what_the_new_code_fails_at():
    """
    New code that fails where the old code would have come to its end is a problem.
    """

    async def fail() -> None:
        raise ConnectionError("down")

    report = explore_upgrade(version("w", ("a", one)), version("w", ("a", one), ("b", fail)))
    assert [one.kind for one in report.problems] == ["different-results"]
    assert "failed" in report.problems[0].message
    assert len(report.results) > 1


def test_upgrade_reports_instances_that_nobody_runs_any_more():
    """
    A detached child whose workflow the new code does not have is left behind.
    """

    @memable.workflow
    async def slow(ctx: memable.Context) -> None:
        await ctx.sleep("long", 200_000)

    @memable.workflow(name="p")
    async def old(ctx: memable.Context) -> str:
        return await ctx.start("c", slow)

    @memable.workflow(name="p")
    async def new(ctx: memable.Context) -> str:
        return "x"

    async def scenario(engine: memable.Engine) -> memable.WorkflowState:
        return await (await engine.invoke("p", instance_id="i")).wait()

    report = explore_upgrade([old, slow], [new], scenario=scenario)
    assert "left-behind" in {one.kind for one in report.problems}


def test_assert_replays_finds_keys_from_the_clock():
    """
    The second run is a later one, so a key that is made from the time differs.
    """

    @memable.workflow
    async def hourly(ctx: memable.Context) -> int:
        return await ctx.step(f"fetch-{time.time():.0f}", one)

    with pytest.raises(AssertionError, match=r"it executes 'fetch-.*' again"):
        assert_replays(hourly)


def test_order_independent_ignores_what_it_is_told_to():
    """
    The value of a step that reads the clock may be left out.
    """

    async def now() -> float:
        return time.time()

    @memable.workflow
    async def dated(ctx: memable.Context) -> None:
        await ctx.step("now", now)

    with pytest.raises(AssertionError, match="key 'now'"):
        assert_order_independent(dated)
    assert_order_independent(dated, ignore=["now"])
