"""
Random workflows of effects that must not repeat, in processes that die at random moments: nothing happens twice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import trio
from hypothesis import given
from hypothesis import strategies as st

import memable
from crashing import bring_to_end
from memable.testing import CrashPlan, Effects, crash_plans, explore_crashes
from running import INSTANCE, workflow_of

#: Few lives of these workflows have more moments at which they could end.
MAX_MOMENTS = 40
MAX_CRASHES = 4


@attrs.frozen
class Act:
    """
    A step that must not repeat.
    """

    name: str
    has_probe: bool
    fails: bool
    probe_failures: int
    "So often its probe cannot tell."


@attrs.frozen
class Plan:
    """
    A workflow.
    """

    acts: tuple[Act, ...]
    shape: str
    undoes: bool
    "Whether the acts are compensations of an instance that fails."


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    count = draw(st.integers(1, 3))
    acts = tuple(
        Act(f"e{number}", draw(st.booleans()), draw(st.booleans()), draw(st.integers(0, 2))) for number in range(count)
    )
    return Plan(acts, draw(st.sampled_from(["sequence", "nursery", "fan_out"])), draw(st.booleans()))


def options_of(act: Act, effects: Effects) -> dict[str, Any]:
    async def probe() -> str:
        asked = f"asked {act.name}"
        # The service does not mind being asked: every time is the same to it.
        effects.record(asked, idempotency_key=asked)
        if sum(1 for effect in effects if effect.name == asked) <= act.probe_failures:
            raise ConnectionError
        if not effects.count(act.name):
            raise memable.NotDoneError
        return act.name

    retry = memable.RetryPolicy.fixed(1, 5)
    return {"once": True, "retry": retry, "probe": probe if act.has_probe else None}


def function_of(act: Act, effects: Effects) -> Callable[[], Awaitable[str]]:
    async def perform() -> str:
        effects.record(act.name)
        await trio.lowlevel.checkpoint()
        if act.fails:
            raise ValueError(act.name)
        return act.name

    return perform


def build(plan: Plan, effects: Effects) -> memable.Workflow[..., Any]:
    async def perform(ctx: memable.Context, key: str, act: Act) -> None:
        fn, options = function_of(act, effects), options_of(act, effects)
        if plan.undoes:
            await ctx.compensate(key, fn, **options)
            return
        try:
            outcome = await ctx.step(key, fn, **options)
        except memable.StepFailedError as error:
            outcome = error.error.message
        assert outcome == act.name

    async def child(ctx: memable.Context, item: int) -> None:
        await perform(ctx, "act", plan.acts[item])

    async def body(ctx: memable.Context) -> None:
        match plan.shape:
            case "fan_out":
                await ctx.fan_out("f", child, range(len(plan.acts)))
            case "nursery":
                async with trio.open_nursery() as nursery:
                    for act in plan.acts:
                        nursery.start_soon(perform, ctx, act.name, act)
            case _:
                for act in plan.acts:
                    await perform(ctx, act.name, act)
        if plan.undoes:
            raise LookupError("first cause")

    return workflow_of(body)


def act_at(plan: Plan, path: str) -> Act:
    return plan.acts[int(path.split("/")[1]) if "/" in path else int(path[1:])]


async def settle(engine: memable.Engine, plan: Plan, effects: Effects) -> memable.WorkflowState:
    """
    Answer truthfully until nothing is unknown any more.
    """
    while isinstance(state := await bring_to_end(engine), memable.Blocked):
        assert state.error.type == "memable.OutcomeUnknownError"
        assert state.key is not None
        act = act_at(plan, state.key)
        if not effects.count(act.name):
            await engine.settle("w", INSTANCE, state.key, rerun=True)
        elif act.fails:
            await engine.settle("w", INSTANCE, state.key, error=ValueError(act.name))
        else:
            await engine.settle("w", INSTANCE, state.key, value=act.name)
    return state


@given(
    plan=plans(),
    crashes=crash_plans(max_crashes=MAX_CRASHES, max_moment=MAX_MOMENTS, passivates=False),
    settles=st.integers(0, MAX_CRASHES),
)
def test_effects_happen_once_at_most_whatever_dies(plan: Plan, crashes: CrashPlan, settles: int):
    """
    Whatever dies when, no effect happens twice; each is known or unknown; answered truthfully, all happen exactly once.
    """
    effects, lives = Effects(), list[int]()

    async def scenario(engine: memable.Engine) -> memable.WorkflowState:
        lives.append(len(lives))
        state = await bring_to_end(engine)
        if lives[-1] >= settles:
            state = await settle(engine, plan, effects)
        # Of each intent, the outcome is there or unknown.
        unknown = {
            entry.key
            for entry in await engine.history("w", INSTANCE)
            if entry.kind in {"step", "compensation"} and entry.ended_at is None
        }
        assert bool(unknown) == isinstance(state, memable.Blocked)
        return state

    def check(state: memable.WorkflowState) -> None:
        counts = {act.name: effects.count(act.name) for act in plan.acts}
        if isinstance(state, memable.Blocked):
            assert max(counts.values()) <= 1
        else:
            assert isinstance(state, memable.Failed if plan.undoes else memable.Completed)
            assert set(counts.values()) == {1}

    report = explore_crashes(
        scenario,
        workflows=[build(plan, effects)],
        outside=[lives],
        check=check,
        only=crashes,
        # What the check says is all that is to hold.
        allow=["blocked", "different-results"],
    )
    assert report, report
    assert report.schedules[0].outcome.kind == "returned", report
