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
