"""
Random workflows of effects that must not repeat, in processes that die at random moments: nothing happens twice.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

import memable
from crashing import World, bring_to_end, journal_in
from memable._records import IntentRecorded, StepCompleted, StepFailed
from running import INSTANCE, workflow_of
from stores import HookedStore

#: No run of these workflows has more crashable moments.
MAX_MOMENTS = 60


@attrs.frozen
class Effect:
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

    effects: tuple[Effect, ...]
    shape: str
    undoes: bool
    "Whether the effects are compensations of an instance that fails."


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    count = draw(st.integers(1, 3))
    effects = tuple(
        Effect(f"e{number}", draw(st.booleans()), draw(st.booleans()), draw(st.integers(0, 2)))
        for number in range(count)
    )
    return Plan(effects, draw(st.sampled_from(["sequence", "nursery", "fan_out"])), draw(st.booleans()))


def options_of(effect: Effect, world: World) -> dict[str, Any]:
    async def probe() -> str:
        asked = f"asked {effect.name}"
        world.effects[asked] += 1
        if world.effects[asked] <= effect.probe_failures:
            raise ConnectionError
        if not world.effects[effect.name]:
            raise memable.NotDoneError
        return effect.name

    retry = memable.RetryPolicy.fixed(1, 5)
    return {"once": True, "retry": retry, "probe": probe if effect.has_probe else None}


def function_of(effect: Effect, world: World) -> Callable[[], Awaitable[str]]:
    async def act() -> str:
        world.happen(effect.name)
        await trio.lowlevel.checkpoint()
        if effect.fails:
            raise ValueError(effect.name)
        return effect.name

    return act


def build(plan: Plan, world: World) -> memable.Workflow[..., Any]:
    async def perform(ctx: memable.Context, key: str, effect: Effect) -> None:
        fn, options = function_of(effect, world), options_of(effect, world)
        if plan.undoes:
            await ctx.compensate(key, fn, **options)
            return
        try:
            outcome = await ctx.step(key, fn, **options)
        except memable.StepFailedError as error:
            outcome = error.error.message
        assert outcome == effect.name

    async def child(ctx: memable.Context, item: int) -> None:
        await perform(ctx, "effect", plan.effects[item])

    async def body(ctx: memable.Context) -> None:
        match plan.shape:
            case "fan_out":
                await ctx.fan_out("f", child, range(len(plan.effects)))
            case "nursery":
                async with trio.open_nursery() as nursery:
                    for effect in plan.effects:
                        nursery.start_soon(perform, ctx, effect.name, effect)
            case _:
                for effect in plan.effects:
                    await perform(ctx, effect.name, effect)
        if plan.undoes:
            raise LookupError("first cause")

    return workflow_of(body)


def effect_at(plan: Plan, path: str) -> Effect:
    return plan.effects[int(path.split("/")[1]) if "/" in path else int(path[1:])]


def live(
    plan: Plan, store: memable.InMemoryStore, world: World, crash_at: int | None, *, settles: bool
) -> tuple[memable.InMemoryStore, World]:
    """
    Let a process live until it dies or is done; return what it leaves.
    """
    moments = 0
    left: list[tuple[memable.InMemoryStore, World]] = []

    def crash() -> None:
        nonlocal moments
        if moments == crash_at:
            seen = World(Counter(world.effects), copy.copy(world.order), copy.copy(world.told))
            left.append((store.crashed_copy(), seen))
        moments += 1

    async def before_append(_records: Sequence[object]) -> None:
        crash()

    async def main() -> None:
        workflow = build(plan, world)
        hooked = HookedStore(store, before_append=before_append)
        async with memable.open_engine(hooked, workflows=[workflow]) as engine:
            state = await bring_to_end(engine, world)
            while settles and isinstance(state, memable.Blocked):
                assert state.error.type == "memable.OutcomeUnknownError"
                assert state.key is not None
                effect = effect_at(plan, state.key)
                if not world.effects[effect.name]:
                    await engine.settle("w", INSTANCE, state.key, rerun=True)
                elif effect.fails:
                    await engine.settle("w", INSTANCE, state.key, error=ValueError(effect.name))
                else:
                    await engine.settle("w", INSTANCE, state.key, value=effect.name)
                state = await bring_to_end(engine, world)
            if not settles and isinstance(state, memable.Blocked):
                return
            assert isinstance(state, memable.Failed if plan.undoes else memable.Completed)

    world.crash = crash
    trio.run(main, clock=MockClock(autojump_threshold=0))
    world.crash = lambda: None
    return left[0] if left else (store, world)


def check(plan: Plan, store: memable.InMemoryStore, world: World) -> None:
    assert all(world.effects[effect.name] <= 1 for effect in plan.effects), world
    if not store._records:
        # It died before anything was durable.
        return
    journal = journal_in(store)
    intents = [record.path for record in store._records if isinstance(record, IntentRecorded)]
    for path in intents:
        # A value, an error, or unknown.
        assert (path in journal.intents) != isinstance(journal.memos.get(path), (StepCompleted, StepFailed))


@given(
    plan=plans(),
    crashes=st.lists(st.integers(0, MAX_MOMENTS), max_size=4),
    settles=st.booleans(),
)
def test_effects_happen_once_at_most_whatever_dies(plan: Plan, crashes: list[int], settles: bool):
    """
    Whatever dies when, no effect happens twice; each is known or unknown; answered truthfully, all happen exactly once.
    """
    store, world = memable.InMemoryStore(), World()
    for crash_at in crashes:
        store, world = live(plan, store, world, crash_at, settles=settles)
        check(plan, store, world)
    store, world = live(plan, store, world, None, settles=True)
    check(plan, store, world)
    assert all(world.effects[effect.name] == 1 for effect in plan.effects)
    assert journal_in(store).intents == {}
