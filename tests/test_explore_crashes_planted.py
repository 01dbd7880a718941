"""
``explore_crashes`` finds the bugs that people make, and says where they are.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import trio

import memable
from memable.testing import CrashReport, Effects, explore_crashes


def explore(workflow: memable.Workflow[[], Any], **options: Any) -> CrashReport[Any]:
    async def scenario(engine: memable.Engine) -> Any:
        return await (await engine.invoke(workflow, instance_id="i")).result()

    return explore_crashes(scenario, workflows=[workflow], **options)


def line_of(workflow: memable.Workflow[..., Any], line: int = 4) -> int:
    """Return the number of a line of a workflow, counted from its decorator."""
    return workflow.fn.__code__.co_firstlineno + line - 1


def kinds(report: CrashReport[Any]) -> set[str]:
    return {problem.kind for problem in report.problems}


def test_explore_finds_effect_outside_step():
    """
    An effect in a body, outside a step, is found, and its line is named.
    """
    effects = Effects()

    async def fetch() -> str:
        return "page"

    @memable.workflow
    async def careless(ctx: memable.Context) -> str:
        page = await ctx.step("fetch", fetch)
        effects.record("mail")
        return page

    report = explore(careless)
    (problem,) = report.problems
    assert problem.kind == "effect-outside-step"
    assert problem.instance == "careless/i"
    assert "'mail'" in problem.message
    assert f"{Path(__file__).name}:{line_of(careless)}, in careless" in problem.message


def test_explore_finds_key_from_the_clock():
    """
    A key that is made from the time is found, with what a later run asked for in its place.
    """

    async def fetch() -> str:
        return "page"

    @memable.workflow
    async def hourly(ctx: memable.Context) -> str:
        await ctx.step("begin", fetch)
        return await ctx.step(f"fetch-{time.time():.0f}", fetch)

    report = explore(hourly)
    assert "key-differs" in kinds(report)
    problem = report.problems[0]
    assert problem.kind == "key-differs"
    assert problem.key is not None
    assert problem.key.startswith("fetch-17672255")
    assert "asked for 'fetch-17672256" in problem.message
    assert "clock" in problem.message
    assert report.unneeded.keys() == {"hourly/i"}


def test_explore_finds_loop_that_reuses_a_key():
    """
    A loop whose rounds share a key is found: the message names the key and its place.
    """

    async def fetch(page: int) -> int:
        return page

    @memable.workflow
    async def pages(ctx: memable.Context) -> int:
        return sum([await ctx.step("fetch", fetch, page) for page in range(3)])

    report = explore(pages)
    problem = next(one for one in report.problems if one.kind == "blocked")
    assert problem.key == "fetch"
    assert "'fetch'" in problem.message
    assert f"at {Path(__file__).name}:{line_of(pages, 3)}" in problem.message


def test_explore_finds_step_that_is_not_idempotent():
    """
    A step whose effect happens twice is found; one that gives its service an idempotency key is not.
    """
    effects = Effects()

    async def charge() -> str:
        effects.record("charge")
        return "receipt"

    async def refund(key: str) -> str:
        effects.record("refund", idempotency_key=key)
        return "refunded"

    @memable.workflow
    async def order(ctx: memable.Context) -> str:
        await ctx.step("refund", refund, ctx.step_id("refund"))
        return await ctx.step("charge", charge)

    report = explore(order)
    (problem,) = report.problems
    assert (problem.kind, problem.key) == ("effect-repeated", "charge")
    assert report.executions["order/i: refund"] == 2


def test_explore_finds_swallowed_cancellation_of_a_body():
    """
    A body that goes on after its cancellation is found, and what it was in.
    """

    async def slow() -> str:
        await trio.sleep(10)
        return "page"

    async def save(page: str) -> str:
        return page

    @memable.workflow
    async def stubborn(ctx: memable.Context) -> str:
        try:
            page = await ctx.step("fetch", slow)
        except BaseException:  # noqa: BLE001 - the bug
            page = "nothing"
        return await ctx.step("save", save, page)

    report = explore(stubborn)
    (problem,) = report.problems
    assert (problem.kind, problem.key) == ("cancellation-swallowed", "fetch")
    assert "asked for 'save'" in problem.message


def test_explore_finds_swallowed_cancellation_of_a_child_task():
    """
    A task of the body's that swallows its cancellation is found, if the body then returns.
    """

    async def slow(key: str) -> str:
        await trio.sleep(10)
        return key

    @memable.workflow
    async def stubborn(ctx: memable.Context) -> list[str]:
        found: list[str] = []

        async def fetch(key: str) -> None:
            try:
                found.append(await ctx.step(key, slow, key))
            except BaseException:  # noqa: BLE001 - the bug
                found.append("nothing")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch, "a")
            nursery.start_soon(fetch, "b")
        return sorted(found)

    assert "cancellation-swallowed" in kinds(explore(stubborn))


def test_explore_finds_swallowed_cancellation_of_a_step():
    """
    A step that returns something else because it was cancelled is found: its memo is wrong for ever.
    """

    async def fetch() -> str:
        try:
            await trio.sleep(10)
        except BaseException:  # noqa: BLE001 - the bug
            return "nothing"
        return "page"

    @memable.workflow
    async def stubborn(ctx: memable.Context) -> str:
        return await ctx.step("fetch", fetch)

    report = explore(stubborn)
    problem = report.problems[0]
    assert (problem.kind, problem.key) == ("cancellation-swallowed", "fetch")
    assert "step 'fetch'" in problem.message


def test_explore_finds_finally_with_effects():
    """
    An effect in a ``finally`` block is found, and said to be in one.
    """
    effects = Effects()

    async def fetch() -> str:
        await trio.sleep(10)
        return "page"

    @memable.workflow
    async def tidy(ctx: memable.Context) -> str:
        try:
            return await ctx.step("fetch", fetch)
        finally:
            effects.record("release")

    report = explore(tidy)
    (problem,) = report.problems
    assert problem.kind == "effect-outside-step"
    assert "(in a finally block)" in problem.message
    assert "in tidy" in problem.message
