"""
Laws of workflows, over a table of small ones that has each operation: they replay, order and crashes change nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import attrs
import pytest
import trio

import memable
from memable.testing import (
    Effects,
    assert_order_independent,
    assert_replays,
    explore_crashes,
    explore_upgrade,
    fails,
    hangs,
    slow,
)

INSTANCE = "i"
APPROVAL = memable.SuspendPoint("approval", str)
#: Longer than the time for which no process runs after a crash.
LONG_S = 3600.0

effects = Effects()


# What steps do -----------------------------------------------------------------------------------------------------


async def act(name: str) -> str:
    """Do something outside, where a repetition is told by its key."""
    effects.record(name, idempotency_key=name)
    await trio.lowlevel.checkpoint()
    return name.upper()


def act_in_thread(name: str) -> str:
    effects.record(name, idempotency_key=name)
    return name.upper()


async def pay(name: str) -> str:
    """Do something outside that must not happen twice."""
    effects.record(name)
    return name.upper()


async def probe(name: str) -> str:
    if not effects.count(name):
        raise memable.NotDoneError
    return name.upper()


async def decline(name: str) -> str:
    raise LookupError(name)


flaky, hanging, sluggish = fails(act, 2), hangs(act, 1), slow(act, 5)


# Workflows ---------------------------------------------------------------------------------------------------------


@memable.workflow
async def child(ctx: memable.Context, name: str) -> str:
    return await ctx.step("act", act, name)


@memable.workflow
async def failing_child(ctx: memable.Context, name: str) -> str:
    await ctx.step("act", act, name)
    return await ctx.step("decline", decline, name)


async def item(ctx: memable.Context, name: str) -> str:
    return await ctx.step("act", act, name)


async def item_or_failure(ctx: memable.Context, name: str) -> str:
    return await ctx.step("act", decline if name == "b" else act, name)


async def nested(ctx: memable.Context, name: str) -> list[str]:
    return await ctx.fan_out("inner", item, [f"{name}1", f"{name}2"])


async def undone_item(ctx: memable.Context, name: str) -> str:
    await ctx.compensate("undo", act, f"undo {name}")
    return await ctx.step("act", act, name)


@memable.workflow
async def sequence(ctx: memable.Context) -> list[str]:
    return [await ctx.step(name, act, name) for name in ("a", "b", "c")]


@memable.workflow
async def thread(ctx: memable.Context) -> list[str]:
    return [await ctx.step_in_thread("a", act_in_thread, "a"), await ctx.step("b", act, "b")]


@memable.workflow
async def retried(ctx: memable.Context) -> list[str]:
    retry = memable.RetryPolicy.exponential(3, LONG_S, max_delay=4 * LONG_S)
    return [
        await ctx.step("flaky", flaky, "a", retry=retry),
        await ctx.step("hanging", hanging, "b", retry=retry, timeout=LONG_S),
    ]


@memable.workflow
async def caught(ctx: memable.Context) -> str:
    try:
        return await ctx.step("broken", decline, "a", retry=memable.RetryPolicy.fixed(1, 5))
    except memable.StepFailedError as failure:
        return await ctx.step("instead", act, failure.error.message)


@memable.workflow
async def failing(ctx: memable.Context) -> str:
    await ctx.step("a", act, "a")
    return await ctx.step("broken", decline, "b")


@memable.workflow
async def once(ctx: memable.Context) -> list[str]:
    return [
        await ctx.step("first", pay, "a", once=True, probe=probe),
        await ctx.step("second", pay, "b", once=True, probe=probe),
    ]


@memable.workflow
async def nursery(ctx: memable.Context) -> list[str]:
    found: dict[str, str] = {}

    async def run(name: str, seconds: float) -> None:
        if seconds:
            await ctx.sleep(f"sleep {name}", seconds)
        found[name] = await ctx.step(name, sluggish, name)

    async with trio.open_nursery() as branches:
        for number, name in enumerate("abc"):
            branches.start_soon(run, name, 10.0 * number)
    return [found[name] for name in "abc"]


@memable.workflow
async def fan_out(ctx: memable.Context) -> list[str]:
    return await ctx.fan_out("items", item, "abc", limit=2, item_key=str)


@memable.workflow
async def fan_out_nested(ctx: memable.Context) -> list[list[str]]:
    return await ctx.fan_out("outer", nested, "ab")


@memable.workflow
async def fan_out_settled(ctx: memable.Context) -> list[str]:
    found = await ctx.fan_out_settled("items", item_or_failure, "abc")
    return [one.value if isinstance(one, memable.ChildSucceeded) else "failed" for one in found]


@memable.workflow
async def fan_out_failing(ctx: memable.Context) -> str:
    try:
        await ctx.fan_out("items", item_or_failure, "ab", limit=1)
    except memable.ChildFailedError:
        return await ctx.step("instead", act, "c")
    raise AssertionError


@memable.workflow
async def fan_out_of_instances(ctx: memable.Context) -> list[str]:
    return await ctx.fan_out("items", child, "ab")


@memable.workflow
async def sleeping(ctx: memable.Context) -> str:
    await ctx.sleep("month", 30 * 86400)
    return await ctx.step("a", act, "a")


@memable.workflow
async def approved(ctx: memable.Context) -> list[str]:
    ctx.set_status("begun")
    answer = await ctx.suspend(APPROVAL, status="waiting", timeout=100 * LONG_S)
    return [answer, await ctx.step("a", act, "a")]


@memable.workflow
async def unapproved(ctx: memable.Context) -> str:
    try:
        return await ctx.suspend(APPROVAL, timeout=LONG_S)
    except memable.SuspendTimeoutError:
        return await ctx.step("instead", act, "a")


@memable.workflow
async def calling(ctx: memable.Context) -> list[str]:
    found = [await ctx.call("child", child, "a")]
    try:
        await ctx.call("failing", failing_child, "b")
    except memable.ChildFailedError:
        found.append(await ctx.step("instead", act, "c"))
    return found


@memable.workflow
async def starting(ctx: memable.Context) -> list[str]:
    await ctx.start("child", child, "a")
    return [await ctx.step("b", act, "b")]


@memable.workflow
async def scopes(ctx: memable.Context) -> list[str]:
    found: list[str] = []
    async with ctx.move_on_after("expires", LONG_S) as scope:
        await ctx.step("inside", act, "a")
        await ctx.suspend(APPROVAL)
    found.append(str(scope.cancelled_caught))
    try:
        async with ctx.fail_after("fails", LONG_S):
            await ctx.sleep("too long", 2 * LONG_S)
    except memable.ScopeTimeoutError:
        found.append(await ctx.step("instead", act, "b"))
    async with ctx.move_on_after("in time", 100 * LONG_S):
        found.append(await ctx.step("in time, too", act, "c"))
    return found


@memable.workflow
async def undone(ctx: memable.Context) -> None:
    for name in ("a", "b"):
        await ctx.compensate(f"undo {name}", act, f"undo {name}")
        await ctx.step(name, act, name)
    await ctx.compensate("pay back", pay, "pay back", once=True, probe=probe)
    await ctx.step("broken", decline, "c")


@memable.workflow
async def undone_in_branches(ctx: memable.Context) -> None:
    await ctx.fan_out("items", undone_item, "ab", limit=1)
    raise LookupError("first cause")


@memable.workflow
async def cancelled(ctx: memable.Context) -> None:
    await ctx.compensate("undo", act, "undo")
    await ctx.step("a", act, "a")
    await ctx.suspend(APPROVAL)


# The table ---------------------------------------------------------------------------------------------------------


Scenario = Callable[[memable.Engine], Awaitable[object]]


async def outcome_of(invocation: memable.Invocation[Any]) -> object:
    """Return the result, or the state if there is none, when all has ended."""
    with suppress(memable.WorkflowFailedError, memable.WorkflowCancelledError, memable.WorkflowBlockedError):
        return await invocation.result()
    state = await invocation.state()
    return state.error.type if isinstance(state, memable.Failed) else state


def to_its_end(workflow: memable.Workflow[..., Any]) -> Scenario:
    async def scenario(engine: memable.Engine) -> object:
        found = await outcome_of(await engine.invoke(workflow.name, instance_id=INSTANCE))
        await engine.wait_all()
        return found

    return scenario


async def approve(engine: memable.Engine) -> object:
    invocation = await engine.invoke("approved", instance_id=INSTANCE)
    if isinstance(await invocation.wait(), memable.Suspended):
        await engine.signal("approved", INSTANCE, APPROVAL, "yes")
    return await outcome_of(invocation)


async def cancel(engine: memable.Engine) -> object:
    invocation = await engine.invoke("cancelled", instance_id=INSTANCE)
    if isinstance(await invocation.wait(), memable.Suspended):
        await engine.cancel("cancelled", INSTANCE, reason="enough")
    return await outcome_of(invocation)


@attrs.frozen
class Example:
    """
    A workflow, and what is done with it.
    """

    workflow: memable.Workflow[..., Any]
    result: object
    "What the scenario returns."
    others: tuple[memable.Workflow[..., Any], ...] = ()
    given: Scenario | None = None

    @property
    def scenario(self) -> Scenario:
        """
        What the process does.
        """
        return self.given or to_its_end(self.workflow)

    @property
    def workflows(self) -> tuple[memable.Workflow[..., Any], ...]:
        """
        All that are needed.
        """
        return (self.workflow, *self.others)


EXAMPLES = [
    Example(sequence, ["A", "B", "C"]),
    Example(thread, ["A", "B"]),
    Example(retried, ["A", "B"]),
    Example(caught, "A"),
    Example(failing, "memable.StepFailedError"),
    Example(once, ["A", "B"]),
    Example(nursery, ["A", "B", "C"]),
    Example(fan_out, ["A", "B", "C"]),
    Example(fan_out_nested, [["A1", "A2"], ["B1", "B2"]]),
    Example(fan_out_settled, ["A", "failed", "C"]),
    Example(fan_out_failing, "C"),
    Example(fan_out_of_instances, ["A", "B"], (child,)),
    Example(sleeping, "A"),
    Example(approved, ["yes", "A"], given=approve),
    Example(unapproved, "A"),
    Example(calling, ["A", "C"], (child, failing_child)),
    Example(starting, ["B"], (child,)),
    Example(scopes, ["True", "B", "C"]),
    Example(undone, "memable.StepFailedError"),
    Example(undone_in_branches, "builtins.LookupError"),
    Example(cancelled, memable.Cancelled("enough"), given=cancel),
]
#: Those in which more than one task runs.
CONCURRENT = [
    *(nursery, fan_out, fan_out_nested, fan_out_settled, fan_out_of_instances),
    *(calling, starting, scopes, undone_in_branches),
]
every_example = pytest.mark.parametrize("example", EXAMPLES, ids=[one.workflow.name for one in EXAMPLES])


@every_example
def test_workflow_replays(example: Example):
    """
    A run over all memos executes no step, and asks for the same keys.
    """
    assert_replays(example.workflow, workflows=example.others, scenario=example.scenario)


@pytest.mark.parametrize(
    "example", [one for one in EXAMPLES if one.workflow in CONCURRENT], ids=lambda example: example.workflow.name
)
def test_workflow_does_not_depend_on_the_order_of_tasks(example: Example):
    """
    Whatever order trio takes ready tasks in, and wherever the process dies, the same values are recorded.
    """
    assert_order_independent(example.workflow, workflows=example.others, scenario=example.scenario, seeds=2)


@every_example
def test_workflow_ends_alike_wherever_its_process_dies(example: Example):
    """
    Wherever its process dies, or is stopped, a workflow ends as it does otherwise; an effect with once happens once.
    """

    def check(result: object) -> None:
        assert result == example.result
        effects.assert_at_most(1)

    report = explore_crashes(example.scenario, workflows=example.workflows, check=check)
    assert report, report
    assert report.is_exhaustive
    # No more often than the process dies, and once where it lives.
    for schedule in report.schedules:
        for name, count in schedule.executions.items():
            assert count <= report.schedules[0].executions[name] + len(schedule.plan.crashes), (schedule.recipe, name)


@every_example
def test_workflow_takes_over_from_itself(example: Example):
    """
    A deploy that changes nothing blocks nothing, and asks for the same keys.
    """
    # Orderly stops are in the exploration above.
    report = explore_upgrade(example.workflows, example.workflows, scenario=example.scenario, stops=False)
    assert report, report
    assert (report.added, report.orphaned) == (frozenset(), frozenset())
