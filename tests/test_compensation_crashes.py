"""
Compensations when the process dies, when the code has lost them, and when an instance is cancelled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import trio

import memable
from crashing import bring_to_end, journal_in
from memable.testing import Effects, ProblemKind, explore_crashes
from running import INSTANCE, ending_of, run_body, workflow_of
from stores import Place
from test_compensate import GO, Undo, nothing, register

Body = Callable[[memable.Context], Awaitable[object]]


# Crashes -----------------------------------------------------------------------------------------------------------


def deduplicated(order: list[str]) -> list[str]:
    """
    Return what happened, without what happened again at once because its record was lost.
    """
    return [name for index, name in enumerate(order) if index == 0 or order[index - 1] != name]


def check_undone(effects: Effects, names: list[str], crashes: int) -> None:
    """
    Check that everything registered was undone in order, and nothing again after its outcome was durable.
    """
    order = [effect.name for effect in effects]
    assert deduplicated(order) == names, order
    assert all(order.count(name) <= 1 + crashes for name in names), order


async def fail_at_last(engine: memable.Engine) -> list[memable.HistoryEntry]:
    """
    Bring the instance to its end, which is the body's failure, and return what happened to it.
    """
    state = await bring_to_end(engine)
    assert isinstance(state, memable.Failed)
    assert state.error.message == "first cause"
    return await engine.history("w", INSTANCE)


def explore(body: Body, check: Callable[[Any], object], *, depth: int = 1, **options: Any) -> int:
    """
    Explore crashes of a body that fails, and orderly stops if there is no more than one. Return how many schedules.
    """
    # A compensation may run again, and the history has the times.
    allowed: list[ProblemKind] = ["effect-repeated", "different-results"]
    report = explore_crashes(
        **{"scenario": fail_at_last, "allow": allowed, **options},
        workflows=[workflow_of(body)],
        check=check,
        depth=depth,
        stops=depth == 1,
    )
    assert report, report
    assert all(result.outcome.kind == "returned" for result in report.results), report
    return len(report.schedules)


@pytest.mark.parametrize("depth", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_compensations_survive_a_crash_at_each_append(depth: int):
    """
    Whenever the process dies, each compensation runs in its order, and again only if its outcome was not durable yet.
    """
    effects = Effects()

    async def undo(name: str) -> None:
        effects.record(name)

    async def body(ctx: memable.Context) -> None:
        await register(ctx, undo, "a", "b", "c")
        raise ValueError("first cause")

    assert explore(body, lambda _: check_undone(effects, ["c", "b", "a"], depth), depth=depth) > 30


def test_compensations_that_are_retried_survive_a_crash_at_each_append():
    """
    A crash neither refills the budget of a compensation nor loses the failure of one that has failed for good.
    """
    effects, limit = Effects(), 3

    async def undo(name: str) -> None:
        effects.record(name)
        raise ConnectionError

    async def body(ctx: memable.Context) -> None:
        for name in ("a", "b"):
            await ctx.compensate(name, undo, name, retry=memable.RetryPolicy.fixed(limit - 1, 60))
        raise ValueError("first cause")

    def check(entries: list[memable.HistoryEntry]) -> None:
        tried = [(entry.key, entry.attempt) for entry in entries if entry.kind == "compensation"]
        assert tried == [(key, attempt) for key in ("b", "a") for attempt in range(1, limit + 1)]
        assert all(limit <= effects.count(name) <= limit + 1 for name in ("a", "b"))

    assert explore(body, check) > 40


@pytest.mark.parametrize("shape", ["fan_out", "nursery", "caught"])
def test_compensations_registered_in_branches_survive_a_crash_at_each_append(shape: str):
    """
    What children of a fan-out have registered is registered again by a run over their memos, done or not.
    """
    effects = Effects()

    async def act() -> None:
        pass

    async def undo(name: str) -> None:
        effects.record(name)

    async def child(ctx: memable.Context, item: int) -> int:
        await ctx.step("do", act)
        await ctx.compensate("undo", undo, f"undo {item}")
        if shape == "caught" and item == 1:
            raise LookupError
        return item

    async def body(ctx: memable.Context) -> None:
        match shape:
            case "fan_out":
                assert await ctx.fan_out("f", child, [0, 1], limit=1) == [0, 1]
            case "caught":
                await ctx.fan_out_settled("f", child, [0, 1], limit=1)
            case "nursery":
                async with trio.open_nursery() as nursery:
                    for item in range(2):
                        nursery.start_soon(partial(ctx.compensate, f"undo {item}", undo, f"undo {item}"))
        await ctx.step("then", act)
        raise ValueError("first cause")

    def check(entries: list[memable.HistoryEntry]) -> None:
        registered = [entry.key for entry in entries if entry.kind == "compensate" and entry.key is not None]
        newest_first = [f"undo {path.split('/')[1]}" if "/" in path else path for path in reversed(registered)]
        assert len(newest_first) == 2
        assert deduplicated([effect.name for effect in effects]) == newest_first

    assert explore(body, check) > 25


@pytest.mark.slow
def test_compensations_with_once_survive_a_crash_at_each_append():
    """
    A compensation with once=True and a probe happens exactly once, whenever the process dies.
    """
    effects = Effects()

    async def undo(name: str) -> None:
        effects.record(name)

    async def probe(name: str) -> None:
        if not effects.count(name):
            raise memable.NotDoneError

    async def body(ctx: memable.Context) -> None:
        for name in ("a", "b"):
            await ctx.compensate(name, undo, name, once=True, probe=probe)
        raise ValueError("first cause")

    def check(_entries: list[memable.HistoryEntry]) -> None:
        assert [effect.name for effect in effects] == ["b", "a"]

    assert explore(body, check, depth=2, allow=["different-results"]) > 100


@pytest.mark.parametrize("waits", [False, True])
def test_cancellation_with_compensations_survives_a_crash_at_each_append(waits: bool):
    """
    Once requested, a cancellation is carried out, compensations included, whenever the process dies.
    """
    effects = Effects()

    async def undo(name: str) -> None:
        effects.record(name)

    async def body(ctx: memable.Context) -> None:
        await register(ctx, undo, "a", "b")
        if waits:
            await ctx.suspend(GO)
        await trio.sleep_forever()

    async def scenario(engine: memable.Engine) -> list[memable.HistoryEntry]:
        await engine.invoke("w", instance_id=INSTANCE)
        await trio.testing.wait_all_tasks_blocked()
        assert await engine.cancel("w", INSTANCE, reason="why") in (True, False)
        assert await engine.state("w", INSTANCE) == memable.Cancelled("why")
        return await engine.history("w", INSTANCE)

    def check(entries: list[memable.HistoryEntry]) -> None:
        check_undone(effects, ["b", "a"], 1)
        assert [entry.kind for entry in entries].count("cancel") == 1

    assert explore(body, check, scenario=scenario, max_parked=0) > 25


# Lost --------------------------------------------------------------------------------------------------------------


async def failed_and_crashed(body: Body) -> memable.InMemoryStore:
    """
    Return what a crash leaves just before the first compensation of *body*, which registers a, b and c, and fails.
    """
    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []

    async def undo(_name: str) -> None:
        copies.append(store.crashed_copy())

    async def old(ctx: memable.Context) -> None:
        await register(ctx, undo, "a", "b", "c")
        await body(ctx)

    await run_body(old, store=store)
    return copies[0]


async def fail(ctx: memable.Context) -> None:
    raise ValueError("first cause")


@pytest.mark.parametrize("how", ["open", "resume"])
async def test_lost_compensation_blocks_after_the_others_have_run(how: str, autojump_clock: object):
    """
    What the code does not register any more is CompensationLostError; mended code finishes at the next open or resume.
    """
    store, undo = await failed_and_crashed(fail), Undo()
    names = ["a", "c"]

    async def body(ctx: memable.Context) -> None:
        await register(ctx, undo, *names)
        raise LookupError("other cause")

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        state = await ending_of(await engine.get(workflow, INSTANCE))
        assert isinstance(state, memable.Blocked)
        assert state.error.type == "memable.CompensationLostError"
        assert state.key == "b"
        assert "'b'" in state.error.message
        assert undo.done == ["c", "a"]
        with pytest.raises(memable.WorkflowBlockedError, match="b"):
            await (await engine.get(workflow, INSTANCE)).result()
        names.append("b")
        if how == "resume":
            state = await ending_of(await engine.resume(workflow, INSTANCE))
    if how == "open":
        async with memable.open_engine(store, workflows=[workflow]) as engine:
            state = await ending_of(await engine.get(workflow, INSTANCE))
    assert isinstance(state, memable.Failed)
    assert state.error.message == "first cause"
    assert undo.done == ["c", "a", "b"]


async def test_lost_compensations_are_all_named(autojump_clock: object):
    """
    The error names all that are lost, in the order in which they were registered.
    """
    store = await failed_and_crashed(fail)

    async def body(ctx: memable.Context) -> None:
        pass

    state = await run_body(body, store=store)
    assert isinstance(state, memable.Blocked)
    assert "compensations 'a', 'b', 'c' were registered" in state.error.message


async def test_lost_compensation_of_a_body_that_fails_earlier_now_is_found(autojump_clock: object):
    """
    A body that fails before it gets to its compensations again is run once more, over its memos only.
    """
    store = memable.InMemoryStore()
    undo = Undo()
    fails: list[int] = []

    async def act() -> None:
        if fails:
            raise ConnectionError("unreachable")

    async def body(ctx: memable.Context) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(register, ctx, undo, "a")

            @nursery.start_soon
            async def work() -> None:
                await ctx.step("first", act)
                if fails:
                    await ctx.step("new", act)
                await register(ctx, undo, "b")
                await trio.sleep_forever()

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow], shutdown_timeout=0) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.testing.wait_all_tasks_blocked()
    fails.append(1)
    state = await run_body(body, store=store)
    # The new step stands before what was registered, so no run over memos gets there.
    assert isinstance(state, memable.Blocked)
    assert state.error.type == "memable.CompensationLostError"
    assert state.key == "b"
    assert undo.done == ["a"]
    fails.clear()
    state = await run_body(body, store=store)
    assert isinstance(state, memable.Failed)
    assert "unreachable" in state.error.traceback
    assert undo.done == ["a", "b"]


async def test_lost_compensation_can_be_begun_anew(autojump_clock: object):
    """
    anew=True is the way out of a compensation that no code can undo any more.
    """
    store = await failed_and_crashed(fail)

    async def body(ctx: memable.Context) -> None:
        await ctx.step("fine", nothing)

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        assert isinstance(await ending_of(await engine.get(workflow, INSTANCE)), memable.Blocked)
        with pytest.raises(memable.InstanceCompensatedError, match="anew=True"):
            await engine.resume(workflow, INSTANCE, forget=["b"])
        assert await ending_of(await engine.resume(workflow, INSTANCE, anew=True)) == memable.Completed()


async def test_compensation_that_is_done_is_not_missed(autojump_clock: object):
    """
    A compensation that has an outcome needs no code any more.
    """
    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []
    undo = Undo()

    async def old(ctx: memable.Context) -> None:
        async def first(name: str) -> None:
            copies.append(store.crashed_copy())

        await register(ctx, first, "a", "b")
        raise ValueError

    await run_body(old, store=store)

    async def body(ctx: memable.Context) -> None:
        await register(ctx, undo, "a")

    # At the second copy "b" is done.
    assert isinstance(await run_body(body, store=copies[1]), memable.Failed)
    assert undo.done == ["a"]


async def test_new_compensation_is_not_registered_once_they_run(autojump_clock: object):
    """
    Code that registers more than before does not add to what is being undone.
    """
    store, undo = await failed_and_crashed(fail), Undo()

    async def body(ctx: memable.Context) -> None:
        await register(ctx, undo, "new", "a", "b", "c")

    async def mended(ctx: memable.Context) -> None:
        await register(ctx, undo, "a", "b", "c", "new")

    state = await run_body(body, store=store)
    # The new one stands before the recorded ones, so no run over memos gets there.
    assert isinstance(state, memable.Blocked)
    assert isinstance(await run_body(mended, store=store), memable.Failed)
    assert undo.done == ["c", "b", "a"]
    assert "new" not in journal_in(store).compensations


async def test_compensations_are_kept_while_the_recovery_limit_blocks(autojump_clock: object):
    """
    The recovery limit blocks an instance that dies in its compensations again and again; resumed, it goes on.
    """
    store, undo = memable.InMemoryStore(), Undo()
    is_mended = False

    async def deadly(name: str) -> None:
        if not is_mended:
            await trio.sleep_forever()
        await undo(name)

    async def body(ctx: memable.Context) -> None:
        await register(ctx, deadly, "a")
        raise ValueError("first cause")

    workflow = workflow_of(body)
    for expected in (memable.Started, memable.Started, memable.Blocked):
        async with memable.open_engine(store, workflows=[workflow], shutdown_timeout=0, max_recoveries=2) as engine:
            await engine.invoke(workflow, instance_id=INSTANCE)
            await trio.testing.wait_all_tasks_blocked()
            state = await engine.state(workflow, INSTANCE)
            assert isinstance(state, expected)
            crashed = store.crashed_copy()
        store = crashed
    assert isinstance(state, memable.Blocked)
    assert state.error.type == "memable.RecoveryLimitError"
    is_mended = True
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        state = await ending_of(await engine.resume(workflow, INSTANCE))
    assert isinstance(state, memable.Failed)
    assert state.error.message == "first cause"
    assert undo.done == ["a"]


# Cancelling --------------------------------------------------------------------------------------------------------


STATES = ["running", "parked", "passivated", "blocked", "interrupted", "recovered"]


@pytest.mark.parametrize("kind", STATES)
async def test_cancel_compensates_whatever_the_instance_does(kind: str, place: Place, autojump_clock: object):
    """
    In each state that is not terminal, cancel undoes what was registered, in reverse order, and keeps its reason.
    """
    undo = Undo()

    async def body(ctx: memable.Context) -> None:
        await ctx.step("one", nothing)
        await register(ctx, undo, "a", "b")
        match kind:
            case "parked" | "passivated":
                await ctx.suspend(GO)
            case "blocked":
                await ctx.step("_", nothing)
            case _:
                await trio.sleep_forever()

    workflow = workflow_of(body)
    max_parked = 0 if kind == "passivated" else 1000
    opened = partial(memable.open_engine, workflows=[workflow], max_parked=max_parked, shutdown_timeout=0)
    async with opened(place.store()) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.testing.wait_all_tasks_blocked()
        if kind in ("interrupted", "recovered"):
            crashed = place.crash()
        else:
            assert await engine.cancel(workflow, INSTANCE, reason="why") is True
            assert await engine.cancel(workflow, INSTANCE, reason="again") is False
            assert await engine.state(workflow, INSTANCE) == memable.Cancelled("why")
    if kind in ("interrupted", "recovered"):
        async with opened(crashed.store(), resume_on_start=kind == "recovered") as engine:
            assert await engine.cancel(workflow, INSTANCE, reason="why") is True
            assert await engine.state(workflow, INSTANCE) == memable.Cancelled("why")
    assert undo.done == ["b", "a"]


async def test_cancel_compensates_an_instance_in_backoff_or_asleep(autojump_clock: object):
    """
    A retry's backoff, a durable sleep and a durable scope are waits: the instance is undone without an end to them.
    """
    undo = Undo()

    async def flaky() -> None:
        raise ConnectionError

    async def body(ctx: memable.Context) -> None:
        await register(ctx, undo, ctx.instance_id)
        match ctx.instance_id:
            case "backoff":
                await ctx.step("flaky", flaky, retry=memable.RetryPolicy.fixed(9, 1e6))
            case "sleep":
                await ctx.sleep("nap", 1e6)
            case "scope":
                async with ctx.move_on_after("limit", 1e6):
                    await ctx.suspend(GO)

    for max_parked in (0, 1000):
        workflow = workflow_of(body)
        began = trio.current_time()
        async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow], max_parked=max_parked) as engine:
            for name in ("backoff", "sleep", "scope"):
                await (await engine.invoke(workflow, instance_id=name)).wait()
                assert await engine.cancel(workflow, name)
        assert trio.current_time() - began < 1
    assert undo.done == ["backoff", "sleep", "scope"] * 2


async def test_cancel_of_an_unregistered_instance_is_carried_out_once_it_is_registered(autojump_clock: object):
    """
    Compensations need the code: a request without it is durable, and carried out when the workflow is registered.
    """
    store, undo = memable.InMemoryStore(), Undo()

    async def body(ctx: memable.Context) -> None:
        await register(ctx, undo, "a", "b")
        await ctx.suspend(GO)

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await (await engine.invoke(workflow, instance_id=INSTANCE)).wait()
    async with memable.open_engine(store) as engine:
        with trio.move_on_after(5) as scope:
            await engine.cancel("w", INSTANCE, reason="why")
        assert scope.cancelled_caught
        assert undo.tried == []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.cancel, "w", INSTANCE)
            await trio.testing.wait_all_tasks_blocked()
            engine.register(workflow)
        assert await engine.state(workflow, INSTANCE) == memable.Cancelled("why")
    assert undo.done == ["b", "a"]


async def test_cancel_that_is_pending_is_not_overtaken_by_a_resume(autojump_clock: object):
    """
    A durable request is carried out even if somebody resumes the interrupted instance first.
    """
    store, undo = memable.InMemoryStore(), Undo()
    copies: list[memable.InMemoryStore] = []

    async def body(ctx: memable.Context) -> None:
        await register(ctx, undo, "a")
        try:
            await trio.sleep_forever()
        finally:
            copies.append(store.crashed_copy())

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.testing.wait_all_tasks_blocked()
        await engine.cancel(workflow, INSTANCE, reason="why")
    async with memable.open_engine(copies[0], workflows=[workflow], resume_on_start=False) as engine:
        assert await ending_of(await engine.resume(workflow, INSTANCE)) == memable.Cancelled("why")
    assert undo.done == ["a", "a"]


async def test_cancelled_instance_that_is_resumed_anew_lives_again(autojump_clock: object):
    """
    The request is carried out once: an instance that begins anew is not cancelled by it.
    """
    undo = Undo()
    rounds: list[int] = []

    async def body(ctx: memable.Context) -> None:
        rounds.append(1)
        await register(ctx, undo, "a")
        if len(rounds) == 1:
            await trio.sleep_forever()

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.testing.wait_all_tasks_blocked()
        assert await engine.cancel(workflow, INSTANCE)
        with pytest.raises(memable.InstanceCompensatedError, match="anew"):
            await engine.resume(workflow, INSTANCE)
        assert await ending_of(await engine.resume(workflow, INSTANCE, anew=True)) == memable.Completed()
    assert undo.done == ["a"]


async def test_cancel_of_an_instance_blocked_in_the_compensations_of_a_failure_returns_false(autojump_clock: object):
    """
    An instance that undoes a failure ends as Failed, cancelled or not: that was decided before.
    """
    store, undo = await failed_and_crashed(fail), Undo()
    names = ["a", "c"]

    async def body(ctx: memable.Context) -> None:
        await register(ctx, undo, *names)

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        assert isinstance(await ending_of(await engine.get(workflow, INSTANCE)), memable.Blocked)
        names.append("b")
        assert await engine.cancel(workflow, INSTANCE) is False
        assert isinstance(await engine.state(workflow, INSTANCE), memable.Failed)
    assert undo.done == ["c", "a", "b"]


async def test_cancel_of_an_instance_with_an_unknown_outcome_compensates(autojump_clock: object):
    """
    An instance that is Blocked at an effect is cancelled without an answer to it: the effect does not run.
    """
    store, undo = memable.InMemoryStore(), Undo()
    copies: list[memable.InMemoryStore] = []

    async def effect() -> None:
        copies.append(store.crashed_copy())

    async def body(ctx: memable.Context) -> None:
        await register(ctx, undo, "a")
        await ctx.step("pay", effect, once=True)

    workflow = workflow_of(body)
    await run_body(body, store=store)
    async with memable.open_engine(copies[0], workflows=[workflow]) as engine:
        assert isinstance(await ending_of(await engine.get(workflow, INSTANCE)), memable.Blocked)
        assert await engine.cancel(workflow, INSTANCE)
        assert await engine.state(workflow, INSTANCE) == memable.Cancelled()
    assert len(copies) == 1
    assert undo.done == ["a"]


async def test_cancelled_instance_with_an_unknown_outcome_waits_for_an_answer(autojump_clock: object):
    """
    A compensation of a cancelled instance whose outcome is unknown is not asked about anew at each open.
    """
    store, undo = memable.InMemoryStore(), Undo()
    copies: list[memable.InMemoryStore] = []

    async def effect() -> None:
        copies.append(store.crashed_copy())

    async def body(ctx: memable.Context) -> None:
        await register(ctx, undo, "a")
        await ctx.compensate("pay back", effect, once=True)
        await ctx.suspend(GO)

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await (await engine.invoke(workflow, instance_id=INSTANCE)).wait()
        await engine.cancel(workflow, INSTANCE, reason="why")
    undo.done.clear()
    for _ in range(2):
        async with memable.open_engine(copies[0], workflows=[workflow]) as engine:
            assert isinstance(await ending_of(await engine.get(workflow, INSTANCE)), memable.Blocked)
            count = len(copies[0]._records)
    async with memable.open_engine(copies[0], workflows=[workflow]) as engine:
        assert len(copies[0]._records) == count
        await engine.settle(workflow, INSTANCE, "pay back", value=None)
        assert await ending_of(await engine.get(workflow, INSTANCE)) == memable.Cancelled("why")
    assert len(copies) == 1
    assert undo.done == ["a"]


async def test_cancel_of_an_unregistered_instance_with_an_unknown_outcome_is_carried_out(autojump_clock: object):
    """
    Somebody who cancels an instance that waits for an answer does not want it to wait for that.
    """
    store, undo = memable.InMemoryStore(), Undo()
    copies: list[memable.InMemoryStore] = []

    async def effect() -> None:
        copies.append(store.crashed_copy())

    async def body(ctx: memable.Context) -> None:
        await register(ctx, undo, "a")
        await ctx.step("pay", effect, once=True)

    workflow = workflow_of(body)
    await run_body(body, store=store)
    async with memable.open_engine(copies[0], workflows=[workflow]) as engine:
        assert isinstance(await ending_of(await engine.get(workflow, INSTANCE)), memable.Blocked)
    async with memable.open_engine(copies[0]) as engine:
        with trio.move_on_after(5):
            with suppress(memable.WorkflowBlockedError):
                await engine.cancel("w", INSTANCE, reason="why")
        assert undo.done == []
    async with memable.open_engine(copies[0], workflows=[workflow]) as engine:
        assert await ending_of(await engine.get(workflow, INSTANCE)) == memable.Cancelled("why")
    assert undo.done == ["a"]


async def test_cancel_undoes_children_and_their_parent(autojump_clock: object):
    """
    A parent that is cancelled cancels its children first; each undoes its own.
    """
    undo = Undo()

    @memable.workflow
    async def inner(ctx: memable.Context) -> None:
        await register(ctx, undo, "inner")
        await trio.sleep_forever()

    async def body(ctx: memable.Context) -> None:
        await register(ctx, undo, "outer")
        await ctx.call("call", inner)

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow, inner]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.testing.wait_all_tasks_blocked()
        assert await engine.cancel(workflow, INSTANCE)
        assert isinstance(await engine.state(inner, f"{INSTANCE}/call"), memable.Cancelled)
    assert undo.done == ["inner", "outer"]


async def test_cancel_of_a_parked_run_finds_what_earlier_runs_have_registered(autojump_clock: object):
    """
    A run in memory that did not run children again, since they were done, is followed by one over memos for them.
    """
    store, undo = memable.InMemoryStore(), Undo()
    then = memable.SuspendPoint("then", bool)
    runs: list[int] = []

    async def child(ctx: memable.Context, item: int) -> int:
        runs.append(item)
        await ctx.compensate("undo", undo, f"child {item}")
        return item

    async def body(ctx: memable.Context) -> None:
        await register(ctx, undo, "first")
        await ctx.fan_out("f", child, [0, 1], limit=1)
        await ctx.suspend(GO)
        await register(ctx, undo, "last")
        await ctx.suspend(then)

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await (await engine.invoke(workflow, instance_id=INSTANCE)).wait()
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        invocation = await engine.signal(workflow, INSTANCE, GO, True)
        assert isinstance(await invocation.wait(), memable.Suspended)
        assert runs == [0, 1]
        assert await engine.cancel(workflow, INSTANCE)
    assert undo.done == ["last", "child 1", "child 0", "first"]
    assert runs == [0, 1, 0, 1]
