"""
Steps with once=True: effects that must not repeat, whatever is cancelled and whenever the process dies.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import memable
from crashing import bring_to_end, crashed_in_effect, journal_in, never, pay_once
from memable.testing import Effects, explore_crashes
from running import INSTANCE, ending_of, kinds_of, observe_twice, run_body, workflow_of
from stores import Gate, HookedStore, Place, failing_at

Body = Callable[[memable.Context], Awaitable[object]]

#: More schedule points than a run with one effect has.
MAX_TICKS = 40


def outcome_count(store: memable.InMemoryStore) -> int:
    kinds = kinds_of(store)
    return kinds.count("step_completed") + kinds.count("step_failed")


# The intent --------------------------------------------------------------------------------------------------------


async def test_once_records_an_intent_before_the_function_starts(autojump_clock: object):
    """
    The intent is durable before the function starts, and the outcome before the step returns.
    """
    store = memable.InMemoryStore()
    seen: list[list[str]] = []

    async def effect() -> str:
        seen.append(kinds_of(store))
        return "paid"

    async def body(ctx: memable.Context) -> None:
        assert await ctx.step("pay", effect, once=True) == "paid"
        seen.append(kinds_of(store))

    assert await run_body(body, store=store) == memable.Completed()
    assert [kinds[-1] for kinds in seen] == ["intent_recorded", "step_completed"]


async def test_once_does_not_run_if_the_intent_cannot_be_recorded(autojump_clock: object):
    """
    A store that does not take the intent keeps the effect from happening.
    """
    with pytest.raises(memable.StorageError, match="no space left"):
        await run_body(partial(pay_once, effect=never), store=failing_at("intent_recorded"))


async def test_once_with_a_memo_returns_it(autojump_clock: object):
    """
    A recorded outcome is returned without a probe, an intent or a run of the effect.
    """
    store = memable.InMemoryStore()
    calls: list[int] = []

    async def effect() -> int:
        calls.append(1)
        return 7

    async def body(ctx: memable.Context) -> None:
        assert await ctx.step("pay", effect, once=True, probe=effect) == 7
        await ctx.step("fail", fail, retry=None)

    async def fail() -> None:
        if len(calls) == 1:
            calls.append(2)
            raise ValueError

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await ending_of(await engine.invoke(workflow, instance_id=INSTANCE))
        assert await ending_of(await engine.resume(workflow, INSTANCE)) == memable.Completed()
    assert calls == [1, 2]


@pytest.mark.parametrize("is_thread", [False, True])
async def test_once_failure_is_the_outcome_whatever_the_policy(is_thread: bool, autojump_clock: object):
    """
    An effect that raises has failed: no policy retries it, RetryableError included, and a replay raises the same.
    """
    calls: list[int] = []
    told: list[tuple[str, int]] = []

    def fail() -> None:
        calls.append(1)
        raise memable.RetryableError("declined")

    async def fail_async() -> None:
        fail()

    async def body(ctx: memable.Context) -> None:
        retry = memable.RetryPolicy.fixed(5, 1)
        with pytest.raises(memable.StepFailedError, match="declined") as caught:
            if is_thread:
                await ctx.step_in_thread("pay", fail, once=True, retry=retry)
            else:
                await ctx.step("pay", fail_async, once=True, retry=retry)
        told.append((type(caught.value).__name__, caught.value.attempts))
        if len(told) == 1:
            raise ValueError

    store, workflow = memable.InMemoryStore(), workflow_of(body)
    async with memable.open_engine(
        store, workflows=[workflow], default_retry=memable.RetryPolicy.fixed(5, 1)
    ) as engine:
        await ending_of(await engine.invoke(workflow, instance_id=INSTANCE))
        assert await ending_of(await engine.resume(workflow, INSTANCE)) == memable.Completed()
    assert calls == [1]
    assert told == [("StepFailedError", 1)] * 2
    assert "attempt_failed" not in kinds_of(store)


# Crashes -----------------------------------------------------------------------------------------------------------


def check_once(entries: list[memable.HistoryEntry], effects: Effects) -> None:
    """
    Check that no effect happened twice, and that each intent has one outcome or is unknown.
    """
    effects.assert_at_most(1)
    steps = [entry for entry in entries if entry.kind == "step"]
    assert len({entry.key for entry in steps}) == len(steps)
    for entry in steps:
        if entry.ended_at is not None:
            assert effects.count(entry.key) == 1


@pytest.mark.parametrize(
    ("is_thread", "depth"), [(False, 1), (True, 1), pytest.param(False, 2, marks=pytest.mark.slow)]
)
def test_once_never_happens_twice_whenever_the_process_dies(depth: int, is_thread: bool):
    """
    Crashed anywhere, and crashed again, an effect without a probe happens once at most, and is unknown if cut short.
    """
    effects = Effects()

    async def effect(name: str) -> str:
        effects.record(name)
        await trio.lowlevel.checkpoint()
        return name

    def blocking(name: str) -> str:
        effects.record(name)
        return name

    async def body(ctx: memable.Context) -> None:
        await ctx.step("before", effect, "before", once=True)
        if is_thread:
            await ctx.step_in_thread("pay", blocking, "pay", once=True)
        else:
            await ctx.step("pay", effect, "pay", once=True)

    async def scenario(engine: memable.Engine) -> tuple[memable.WorkflowState, list[memable.HistoryEntry]]:
        return await bring_to_end(engine), await engine.history("w", INSTANCE)

    def check(found: tuple[memable.WorkflowState, list[memable.HistoryEntry]]) -> None:
        state, entries = found
        states.add(type(state))
        check_once(entries, effects)
        unknown = [entry.key for entry in entries if entry.kind == "step" and entry.ended_at is None]
        if isinstance(state, memable.Blocked):
            assert unknown == [state.key]
        else:
            assert (unknown, effects.count("before"), effects.count("pay")) == ([], 1, 1)

    states: set[type[memable.WorkflowState]] = set()
    report = explore_crashes(
        scenario,
        workflows=[workflow_of(body)],
        check=check,
        depth=depth,
        stops=depth == 1,
        allow=["blocked", "different-results"],
    )
    assert report, report
    assert len(report.schedules) > 20
    assert states == {memable.Blocked, memable.Completed}


@pytest.mark.slow
def test_once_with_a_probe_happens_exactly_once_whenever_the_process_dies():
    """
    With a probe that can tell, each future completes by itself, with the effect having happened exactly once.
    """
    effects = Effects()

    async def effect(name: str) -> str:
        effects.record(name)
        return f"{name} done"

    async def probe(name: str) -> str:
        # The process may die behind it, and it may be asked again.
        effects.record("probe", idempotency_key="probe")
        if not effects.count(name):
            raise memable.NotDoneError
        return f"{name} done"

    async def body(ctx: memable.Context) -> None:
        values = [await ctx.step(name, effect, name, once=True, probe=probe) for name in ("a", "b")]
        assert values == ["a done", "b done"]

    def check(state: memable.WorkflowState) -> None:
        assert state == memable.Completed()
        assert (effects.count("a"), effects.count("b")) == (1, 1)

    report = explore_crashes(bring_to_end, workflows=[workflow_of(body)], check=check, depth=2, stops=False)
    assert report, report
    assert len(report.schedules) > 100


@pytest.mark.parametrize("shape", [pytest.param("nursery", marks=pytest.mark.slow), "fan_out"])
def test_once_in_concurrent_branches_never_happens_twice(shape: str):
    """
    Effects in children of a fan-out and in tasks of a nursery each happen once at most, whenever the process dies.
    """
    effects = Effects()

    async def effect(name: str) -> None:
        effects.record(name)

    async def child(ctx: memable.Context, item: int) -> None:
        await ctx.step("pay", effect, f"pay {item}", once=True)

    async def body(ctx: memable.Context) -> None:
        if shape == "fan_out":
            await ctx.fan_out("f", child, [0, 1])
            return
        async with trio.open_nursery() as nursery:
            for item in range(2):
                nursery.start_soon(partial(ctx.step, f"pay {item}", effect, f"pay {item}", once=True))

    async def scenario(engine: memable.Engine) -> memable.WorkflowState:
        state = await bring_to_end(engine)
        rounds = 0
        while isinstance(state, memable.Blocked):
            assert state.key is not None
            name = "pay " + state.key.split("/")[1] if shape == "fan_out" else state.key
            if effects.count(name):
                await engine.settle("w", INSTANCE, state.key, value=None)
            else:
                await engine.settle("w", INSTANCE, state.key, rerun=True)
            state = await bring_to_end(engine)
            rounds += 1
            assert rounds <= 2
        return state

    def check(state: memable.WorkflowState) -> None:
        assert state == memable.Completed()
        assert (len(effects), effects.count("pay 0"), effects.count("pay 1")) == (2, 1, 1)

    depth = 2 if shape == "nursery" else 1
    report = explore_crashes(scenario, workflows=[workflow_of(body)], check=check, depth=depth, stops=depth == 1)
    assert report, report
    assert len(report.schedules) > 25


# Cancellation ------------------------------------------------------------------------------------------------------


class Effect:
    """
    An effect that takes some schedule points; knows how often it began, and how often it came to its end.
    """

    def __init__(self, *, is_thread: bool = False) -> None:
        self.began = self.ended = 0
        self.is_thread = is_thread

    async def step(self, ctx: memable.Context, key: str = "pay") -> str:
        if self.is_thread:
            return await ctx.step_in_thread(key, self.block, once=True)
        return await ctx.step(key, self.act, once=True)

    def block(self) -> str:
        self.began += 1
        trio.from_thread.run(trio.lowlevel.cancel_shielded_checkpoint)
        self.ended += 1
        return "done"

    async def act(self) -> str:
        self.began += 1
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        self.ended += 1
        return "done"


async def slowly(_records: object) -> None:
    """
    Give a cancellation time to come before what is written.
    """
    for _ in range(3):
        await trio.lowlevel.checkpoint()


async def _after(ticks: int, act: Callable[[], object]) -> None:
    for _ in range(ticks):
        await trio.lowlevel.cancel_shielded_checkpoint()
    act()


@pytest.mark.parametrize("is_thread", [False, True])
def test_once_cancelled_by_the_user_is_delivered_before_or_after_it(is_thread: bool):
    """
    A cancel scope of the user's, cancelled at any point, keeps the effect from beginning or comes after its end.
    """
    seen: set[tuple[int, bool]] = set()

    async def main(ticks: int) -> None:
        store = memable.InMemoryStore()
        effect = Effect(is_thread=is_thread)

        async def body(ctx: memable.Context) -> None:
            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:
                    nursery.start_soon(_after, ticks, scope.cancel)
                    await slowly(None)
                    await effect.step(ctx)
            seen.add((effect.began, scope.cancelled_caught))
            assert effect.began == effect.ended
            if scope.cancelled_caught:
                # The key is free, or has a memo.
                assert await effect.step(ctx) == "done"
            assert effect.ended == 1

        assert await run_body(body, store=HookedStore(store, before_append=slowly)) == memable.Completed()
        assert kinds_of(store).count("intent_recorded") == outcome_count(store) == 1

    for ticks in range(MAX_TICKS):
        trio.run(main, ticks, clock=MockClock(autojump_threshold=0))
    # How long a thread takes, nobody can say.
    assert {(0, True), (1, True)} <= seen <= {(0, True), (1, True), (1, False)}


@pytest.mark.parametrize("how", ["cancel", "stop", "block"])
@pytest.mark.parametrize("is_thread", [False, True])
def test_once_cancelled_with_its_instance_is_delivered_before_or_after_it(is_thread: bool, how: str):
    """
    An effect that has begun comes to its end and is recorded, whether its instance is cancelled or the engine stops.
    """
    seen: set[int] = set()

    async def main(ticks: int) -> None:
        store = memable.InMemoryStore()
        effect = Effect(is_thread=is_thread)

        async def body(ctx: memable.Context) -> None:
            for _ in range(4):
                await slowly(None)
            await effect.step(ctx)
            await trio.sleep_forever()

        workflow = workflow_of(body)
        hooked = HookedStore(store, before_append=slowly)
        async with memable.open_engine(hooked, workflows=[workflow], shutdown_timeout=0) as engine:
            await engine.invoke(workflow, instance_id=INSTANCE)
            for _ in range(ticks):
                await trio.lowlevel.cancel_shielded_checkpoint()
            match how:
                case "cancel":
                    await engine.cancel(workflow, INSTANCE)
                case "stop":
                    await engine.stop(timeout=0)
        assert effect.began == effect.ended <= 1
        assert kinds_of(store).count("intent_recorded") == outcome_count(store) == effect.began
        seen.add(effect.began)
        if how != "cancel":
            async with memable.open_engine(store, workflows=[workflow], shutdown_timeout=0):
                await trio.testing.wait_all_tasks_blocked()
        assert effect.ended <= 1

    for ticks in range(MAX_TICKS):
        trio.run(main, ticks, clock=MockClock(autojump_threshold=0))
    assert seen == {0, 1}


async def test_leaving_the_block_waits_for_an_effect_in_a_thread(autojump_clock: object):
    """
    A blocking effect that has begun is waited for when the block is left, beyond shutdown_timeout.
    """
    store = memable.InMemoryStore()
    began, go = trio.Event(), threading.Event()
    ended: list[int] = []

    def effect() -> None:
        trio.from_thread.run_sync(began.set)
        go.wait()
        ended.append(1)

    async def body(ctx: memable.Context) -> None:
        await ctx.step_in_thread("pay", effect, once=True)

    workflow = workflow_of(body)
    async with trio.open_nursery() as nursery:
        async with memable.open_engine(store, workflows=[workflow], shutdown_timeout=0) as engine:
            await engine.invoke(workflow, instance_id=INSTANCE)
            await began.wait()

            @nursery.start_soon
            async def release() -> None:
                await trio.testing.wait_all_tasks_blocked()
                assert ended == []
                go.set()

        assert ended == [1]
    assert kinds_of(store)[-1] == "step_completed"


async def test_leaving_the_block_by_an_exception_waits_for_an_effect(autojump_clock: object):
    """
    An exception in the block cancels runs at once, but for an effect that has begun.
    """
    store = memable.InMemoryStore()
    ended: list[float] = []

    async def effect() -> None:
        await trio.sleep(100)
        ended.append(trio.current_time())

    workflow = workflow_of(partial(pay_once, effect=effect))
    with pytest.raises(LookupError, match="block"):
        async with memable.open_engine(store, workflows=[workflow]) as engine:
            await engine.invoke(workflow, instance_id=INSTANCE)
            await trio.testing.wait_all_tasks_blocked()
            raise LookupError("block")
    assert len(ended) == 1
    assert kinds_of(store)[-1] == "step_completed"


async def test_once_keeps_its_run_from_being_passivated(autojump_clock: object):
    """
    A run is not passivated while an effect executes in one of its branches, and is afterwards.
    """
    point = memable.SuspendPoint("go", bool)
    runs: list[str] = []

    async def effect() -> None:
        runs.append("began")
        await trio.sleep(10)
        runs.append("ended")

    async def child(ctx: memable.Context, item: int) -> None:
        if item:
            await ctx.step("pay", effect, once=True)
        else:
            await ctx.suspend(point)

    async def body(ctx: memable.Context) -> None:
        runs.append("body")
        await ctx.fan_out("f", child, [0, 1])

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow], max_parked=0) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.sleep(5)
        assert runs == ["body", "began"]
        assert isinstance(await invocation.wait(), memable.Suspended)
        await engine.signal(workflow, INSTANCE, point, True, within="f/0")
        assert await ending_of(invocation) == memable.Completed()
    assert runs in (["body", "began", "ended", "body"], ["body", "began", "ended"])


async def test_once_that_catches_its_cancellation_in_vain_is_recorded(autojump_clock: object):
    """
    An effect does not see that it is cancelled: what it awaits goes on, and its value is recorded.
    """
    store = memable.InMemoryStore()
    caught: list[object] = []

    async def effect() -> str:
        try:
            await trio.sleep(10)
        except trio.Cancelled:
            caught.append(1)
            raise
        return "done"

    async def body(ctx: memable.Context) -> None:
        with trio.move_on_after(1) as scope:
            await ctx.step("pay", effect, once=True)
        assert scope.cancelled_caught
        assert await ctx.step("pay", effect, once=True) == "done"

    assert await run_body(body, store=store) == memable.Completed()
    assert caught == []


# Unknown outcomes --------------------------------------------------------------------------------------------------


async def test_unknown_outcome_blocks_at_the_key_until_somebody_answers(autojump_clock: object):
    """
    Without a probe the instance is Blocked at the key; opening the store again does not run it, resume does.
    """
    store = await crashed_in_effect(pay_once)
    runs: list[int] = []

    async def body(ctx: memable.Context) -> None:
        runs.append(1)
        await ctx.step("pay", never, once=True)

    workflow = workflow_of(body)
    for _ in range(3):
        async with memable.open_engine(store, workflows=[workflow]) as engine:
            state = await ending_of(await engine.get(workflow, INSTANCE))
            assert isinstance(state, memable.Blocked)
            assert state.key == "pay"
            assert state.error.type == "memable.OutcomeUnknownError"
            assert "outcome is unknown" in state.error.message
            await engine.wait_all()
    assert runs == [1]
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        assert isinstance(await ending_of(await engine.resume(workflow, INSTANCE)), memable.Blocked)
    assert runs == [1, 1]


async def test_unknown_outcome_is_a_code_error_that_a_broad_except_does_not_hide(autojump_clock: object):
    """
    OutcomeUnknownError is raised at the step, and again by the operations after it; nothing goes wrong unnoticed.
    """
    store = await crashed_in_effect(pay_once)
    told: list[str] = []

    async def body(ctx: memable.Context) -> None:
        for key in ("pay", "instead"):
            try:
                await ctx.step(key, never, once=True)
            except memable.OutcomeUnknownError as error:
                told.append(error.key)

    state = await run_body(body, store=store)
    assert isinstance(state, memable.Blocked)
    assert state.key == "pay"
    assert told == ["pay", "pay"]


async def test_unknown_outcome_is_decided_by_a_probe_that_a_deploy_adds(autojump_clock: object):
    """
    A probe that is added while the instance is Blocked decides at the next resume.
    """
    store = await crashed_in_effect(pay_once)
    assert isinstance(await run_body(partial(pay_once, effect=never), store=store), memable.Blocked)

    async def probe() -> str:
        return "found"

    async def body(ctx: memable.Context) -> None:
        assert await ctx.step("pay", never, once=True, probe=probe) == "found"

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        assert await ending_of(await engine.resume(workflow, INSTANCE)) == memable.Completed()


async def test_unknown_outcome_of_a_step_that_is_not_once_any_more_is_still_unknown(autojump_clock: object):
    """
    A deploy that takes once=True away does not run an effect again that may have happened.
    """
    store = await crashed_in_effect(pay_once)

    async def body(ctx: memable.Context) -> None:
        await ctx.step("pay", never)

    state = await run_body(body, store=store)
    assert isinstance(state, memable.Blocked)
    assert state.key == "pay"


async def test_unknown_outcome_whose_key_is_forgotten_runs_again(autojump_clock: object):
    """
    Forgetting the key is a decision of a person: the intent goes, and the effect runs as a new generation.
    """
    store = await crashed_in_effect(pay_once)
    ids: list[str] = []

    async def effect() -> str:
        return "again"

    async def body(ctx: memable.Context) -> None:
        ids.append(ctx.step_id("pay"))
        assert await ctx.step("pay", effect, once=True) == "again"

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        assert isinstance(await ending_of(await engine.get(workflow, INSTANCE)), memable.Blocked)
        assert await ending_of(await engine.resume(workflow, INSTANCE, forget=["pay"])) == memable.Completed()
    assert len(set(ids)) == 2


# Probes ------------------------------------------------------------------------------------------------------------


async def test_probe_gets_the_same_arguments_and_its_value_counts(autojump_clock: object):
    """
    The probe is given the step's arguments, and what it returns is the step's value, durable before it is returned.
    """
    store = await crashed_in_effect(lambda ctx, effect: ctx.step("pay", effect, once=True))
    asked: list[tuple[object, ...]] = []

    async def effect(number: int, text: str) -> str:
        raise AssertionError

    async def probe(number: int, text: str) -> str:
        asked.append((number, text))
        return f"{text}{number}"

    async def body(ctx: memable.Context) -> None:
        assert await ctx.step("pay", effect, 3, "x", once=True, probe=probe) == "x3"
        assert kinds_of(store)[-1] == "step_completed"

    assert await run_body(body, store=store) == memable.Completed()
    assert asked == [(3, "x")]


async def test_probe_that_says_not_done_runs_the_effect(autojump_clock: object):
    """
    NotDoneError from the probe runs the effect, under the intent that is recorded already.
    """
    store = await crashed_in_effect(pay_once)
    calls: list[str] = []

    async def probe() -> str:
        calls.append("probe")
        raise memable.NotDoneError

    async def effect() -> str:
        calls.append("effect")
        return "done"

    async def body(ctx: memable.Context) -> None:
        assert await ctx.step("pay", effect, once=True, probe=probe) == "done"

    assert await run_body(body, store=store) == memable.Completed()
    assert calls == ["probe", "effect"]
    assert kinds_of(store).count("intent_recorded") == 1


async def test_not_done_error_means_nothing_in_a_step_that_is_no_probe(autojump_clock: object):
    """
    A step that raises NotDoneError itself has failed.
    """

    async def effect() -> None:
        raise memable.NotDoneError

    async def body(ctx: memable.Context) -> None:
        with pytest.raises(memable.StepFailedError, match="NotDoneError"):
            await ctx.step("pay", effect, once=True)
        with pytest.raises(memable.StepFailedError, match="NotDoneError"):
            await ctx.step("ask", effect)

    assert await run_body(body) == memable.Completed()


@pytest.mark.parametrize("ends", ["value", "not done", "exhausted"])
async def test_probe_that_fails_is_retried_by_the_policy_of_the_step(ends: str, autojump_clock: object):
    """
    A probe that fails otherwise is asked again with the policy's delays, until it can tell or the budget is used up.
    """
    store = await crashed_in_effect(pay_once)
    asked: list[float] = []

    async def probe() -> str:
        asked.append(trio.current_time())
        if len(asked) <= 2 or ends == "exhausted":
            raise ConnectionError("unreachable")
        if ends == "not done":
            raise memable.NotDoneError
        return "done"

    async def effect() -> str:
        assert ends == "not done"
        return "done"

    async def body(ctx: memable.Context) -> None:
        retry = memable.RetryPolicy.exponential(2, 10)
        assert await ctx.step("pay", effect, once=True, probe=probe, retry=retry) == "done"

    state = await run_body(body, store=store)
    assert [round(later - sooner) for sooner, later in pairwise(asked)] == [10, 20]
    if ends == "exhausted":
        assert isinstance(state, memable.Blocked)
        assert state.key == "pay"
        assert "the probe failed with" in state.error.message
        assert "unreachable" in state.error.message
    else:
        assert state == memable.Completed()


async def test_probe_attempts_are_durable(autojump_clock: object):
    """
    Failed attempts of the probe survive a crash: neither is the budget refilled, nor does the backoff start again.
    """
    store = await crashed_in_effect(pay_once)
    asked: list[float] = []

    async def probe() -> str:
        asked.append(trio.current_time())
        raise ConnectionError

    async def body(ctx: memable.Context) -> None:
        await ctx.step("pay", never, once=True, probe=probe, retry=memable.RetryPolicy.fixed(2, 100))

    workflow = workflow_of(body)
    for _ in range(3):
        async with memable.open_engine(store, workflows=[workflow]) as engine:
            assert isinstance(await (await engine.get(workflow, INSTANCE)).wait(), memable.Suspended)
            await trio.sleep(40)
            store = store.crashed_copy()
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        assert isinstance(await ending_of(await engine.get(workflow, INSTANCE)), memable.Blocked)
    assert [round(at - asked[0]) for at in asked] == [0, 100, 200]


async def test_probe_without_a_policy_is_asked_once_a_run(autojump_clock: object):
    """
    Without a policy a probe that fails leaves the instance Blocked; as it may tell later, the next open asks it again.
    """
    store = await crashed_in_effect(pay_once)
    asked: list[int] = []

    async def probe() -> str:
        asked.append(1)
        if len(asked) < 3:
            raise ConnectionError
        return "found"

    async def body(ctx: memable.Context) -> None:
        assert await ctx.step("pay", never, once=True, probe=probe) == "found"

    for expected in (memable.Blocked, memable.Blocked, memable.Completed):
        assert isinstance(await run_body(body, store=store), expected)
    assert asked == [1, 1, 1]


async def test_probe_can_be_cancelled_and_is_asked_again(autojump_clock: object):
    """
    A question is no effect: a cancelled probe leaves the outcome unknown, and is asked again.
    """
    store = await crashed_in_effect(pay_once)
    asked: list[int] = []

    async def probe() -> str:
        asked.append(1)
        if len(asked) == 1:
            await trio.sleep_forever()
        return "found"

    async def body(ctx: memable.Context) -> None:
        with trio.move_on_after(1):
            await ctx.step("pay", never, once=True, probe=probe)
        assert await ctx.step("pay", never, once=True, probe=probe) == "found"

    assert await run_body(body, store=store) == memable.Completed()
    assert asked == [1, 1]


async def test_probe_whose_value_cannot_be_stored_leaves_the_outcome_unknown(autojump_clock: object):
    """
    A probe that returns something else than the step's type is wrong, not the effect: once mended, it is asked again.
    """
    store = await crashed_in_effect(pay_once)

    async def wrong_probe() -> Any:
        return 3

    async def probe() -> str:
        return "paid"

    async def ask(ctx: memable.Context, asked: Any) -> None:
        assert await ctx.step("pay", never, once=True, probe=asked) == "paid"

    state = await run_body(partial(ask, asked=wrong_probe), store=store)
    assert isinstance(state, memable.Blocked)
    assert state.error.matches(memable.OutcomeUnknownError)
    assert "expected builtins.str, got builtins.int" in state.error.message
    assert await run_body(partial(ask, asked=probe), store=store) == memable.Completed()


@pytest.mark.parametrize("has_probe", [False, True])
async def test_once_whose_value_cannot_be_stored_does_not_happen_again_by_a_resume(
    has_probe: bool, autojump_clock: object
):
    """
    An effect that happened stays so: a resume asks for its value, by the probe or by a person.
    """
    store = memable.InMemoryStore()
    happened: list[int] = []

    async def effect() -> str:
        happened.append(1)
        return 3 if has_wrong_type else "paid"  # type: ignore[return-value]

    async def probe() -> str:
        return "paid"

    async def body(ctx: memable.Context) -> str:
        return await ctx.step("pay", effect, once=True, probe=probe if has_probe else None)

    has_wrong_type = True
    workflow = memable.workflow(name="w")(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        assert isinstance(await ending_of(invocation), memable.Failed)
        has_wrong_type = False
        state = await ending_of(await engine.resume(workflow, INSTANCE))
        if not has_probe:
            assert isinstance(state, memable.Blocked)
            await engine.settle(workflow, INSTANCE, "pay", value="paid")
        assert await invocation.result() == "paid"
    assert happened == [1]


async def test_probe_that_uses_the_context_blocks(autojump_clock: object):
    """
    A probe is a step's function: using ctx inside it is NestedStepError, and the intent stays.
    """
    store = await crashed_in_effect(pay_once)

    async def body(ctx: memable.Context) -> None:
        async def probe() -> str:
            await ctx.step("inner", never)
            return "found"

        await ctx.step("pay", never, once=True, probe=probe)

    state = await run_body(body, store=store)
    assert isinstance(state, memable.Blocked)
    assert state.error.type == "memable.NestedStepError"
    assert "pay" in journal_in(store).intents


# Misuse and values -------------------------------------------------------------------------------------------------


async def ask() -> None:
    pass


def ask_in_vain() -> None:
    pass


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"once": True, "timeout": 3}, "timeout with once=True would cut an effect short"),
        ({"once": 1}, "once is 1; give True"),
        ({"probe": ask}, "give once=True with it"),
        ({"once": True, "probe": ask_in_vain}, "the probe: ask_in_vain is not an async function"),
        ({"once": True, "probe": 3}, "the probe: a int was given instead of a function"),
    ],
)
@pytest.mark.parametrize("is_thread", [False, True])
async def test_once_options_that_make_no_sense_are_a_misuse(
    options: dict[str, Any], problem: str, is_thread: bool, autojump_clock: object
):
    """
    What cannot work is refused before an intent is recorded; it is a TypeError, too.
    """
    store = memable.InMemoryStore()

    def blocking() -> None:
        raise AssertionError

    async def body(ctx: memable.Context) -> None:
        with pytest.raises(memable.WorkflowCodeError, match=problem) as caught:
            if is_thread:
                await ctx.step_in_thread("pay", blocking, **options)
            else:
                await ctx.step("pay", never, **options)
        assert isinstance(caught.value, TypeError)

    assert isinstance(await run_body(body, store=store), memable.Blocked)
    assert "intent_recorded" not in kinds_of(store)


async def test_once_with_arguments_that_do_not_fit_records_no_intent(autojump_clock: object):
    """
    Arguments that don't fit the function or the probe are found before the intent.
    """
    for options in ({}, {"probe": ask}):
        store = memable.InMemoryStore()

        async def takes_one(_: int) -> None:
            raise AssertionError

        async def body(ctx: memable.Context, options: Any = options, takes_one: Any = takes_one) -> None:
            fn: Any = takes_one if options else never
            await ctx.step("pay", fn, 1, once=True, **options)

        state = await run_body(body, store=store)
        assert isinstance(state, memable.Blocked)
        assert "do not fit its signature" in state.error.message
        assert "intent_recorded" not in kinds_of(store)


async def test_once_whose_annotation_cannot_be_stored_fails_without_an_effect(autojump_clock: object):
    """
    What the annotation already tells is found before the intent: a permanent failure, and nothing has happened.
    """
    store = memable.InMemoryStore()

    async def effect() -> trio.Event:
        raise AssertionError

    async def body(ctx: memable.Context) -> None:
        with pytest.raises(memable.SerializationError, match="cannot be stored"):
            await ctx.step("pay", effect, once=True)

    assert await run_body(body, store=store) == memable.Completed()
    assert "intent_recorded" not in kinds_of(store)


async def test_once_whose_value_cannot_be_stored_has_failed(autojump_clock: object):
    """
    An effect that happened and whose value cannot be stored is a permanent failure, now and on replay.
    """
    store = memable.InMemoryStore()
    calls: list[int] = []

    async def effect() -> int:
        calls.append(1)
        return "three"  # type: ignore[return-value]

    async def body(ctx: memable.Context) -> None:
        with pytest.raises(memable.SerializationError, match="cannot be stored"):
            await ctx.step("pay", effect, once=True, retry=memable.RetryPolicy.fixed(3, 1))
        if len(calls) == 1:
            calls.append(2)
            raise ValueError

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await ending_of(await engine.invoke(workflow, instance_id=INSTANCE))
        assert await ending_of(await engine.resume(workflow, INSTANCE)) == memable.Completed()
    assert calls == [1, 2]
    assert journal_in(store).intents == {}


async def test_once_with_a_code_error_inside_is_unknown(autojump_clock: object):
    """
    A code error inside an effect is no outcome: the instance is Blocked, and with mended code the outcome is unknown.
    """
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        async def effect() -> None:
            await ctx.step("inner", never)

        await ctx.step("pay", effect, once=True)

    state = await run_body(body, store=store)
    assert isinstance(state, memable.Blocked)
    assert state.error.type == "memable.NestedStepError"
    state = await run_body(partial(pay_once, effect=never), store=store)
    assert isinstance(state, memable.Blocked)
    assert state.error.type == "memable.OutcomeUnknownError"


async def test_once_interrupted_by_control_c_is_unknown(autojump_clock: object):
    """
    What is no Exception leaves the block, and the outcome of the effect that it tore apart is unknown.
    """
    store = memable.InMemoryStore()

    async def effect() -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await run_body(partial(pay_once, effect=effect), store=store)
    state = await run_body(partial(pay_once, effect=never), store=store)
    assert isinstance(state, memable.Blocked)
    assert state.key == "pay"


async def test_once_whose_outcome_cannot_be_recorded_is_unknown(autojump_clock: object):
    """
    An effect that happened when the store failed is unknown to the next engine.
    """
    store = memable.InMemoryStore()
    calls: list[int] = []

    async def effect() -> str:
        calls.append(1)
        return "done"

    with pytest.raises(memable.StorageError, match="no space left"):
        await run_body(partial(pay_once, effect=effect), store=failing_at("step_completed", store))
    assert isinstance(await run_body(partial(pay_once, effect=never), store=store), memable.Blocked)
    assert calls == [1]


async def test_once_key_is_used_once(autojump_clock: object):
    """
    The key of an effect under way, or done, is in use: a second use is DuplicateKeyError, and runs nothing.
    """
    effect = Effect()

    async def body(ctx: memable.Context) -> None:
        await effect.step(ctx)
        await effect.step(ctx)

    state = await run_body(body)
    assert isinstance(state, memable.Blocked)
    assert state.error.type == "memable.DuplicateKeyError"
    assert effect.ended == 1


async def test_once_intent_that_another_kind_of_operation_asks_for_is_refused(autojump_clock: object):
    """
    A key under which an effect was begun is a step's: used as a sleep it is KeyKindError.
    """
    store = await crashed_in_effect(pay_once)

    async def body(ctx: memable.Context) -> None:
        await ctx.sleep("pay", 1)

    state = await run_body(body, store=store)
    assert isinstance(state, memable.Blocked)
    assert state.error.type == "memable.KeyKindError"


async def test_once_survives_a_restart_of_a_real_store(place: Place, autojump_clock: object):
    """
    The intent is on disk: what a crash leaves there is unknown to the engine that opens it.
    """
    places: list[Place] = []

    async def effect() -> str:
        places.append(place.crash())
        return "done"

    workflow = workflow_of(partial(pay_once, effect=effect))
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        assert await ending_of(await engine.invoke(workflow, instance_id=INSTANCE)) == memable.Completed()
    async with memable.open_engine(places[0].store(), workflows=[workflow]) as engine:
        assert isinstance(await ending_of(await engine.get(workflow, INSTANCE)), memable.Blocked)
        await engine.settle(workflow, INSTANCE, "pay", value="settled")
        assert await ending_of(await engine.get(workflow, INSTANCE)) == memable.Completed()
    assert len(places) == 1


async def test_once_in_a_durable_scope_that_expires_ends_first(autojump_clock: object):
    """
    A durable deadline that passes during an effect cancels what comes behind it, live as on a replay.
    """

    async def effect() -> str:
        await trio.sleep(10)
        return "done"

    async def body(ctx: memable.Context) -> tuple[str | None, bool]:
        paid = None
        async with ctx.move_on_after("limit", 5) as scope:
            paid = await ctx.step("pay", effect, once=True)
            await ctx.step("never", never)
        return paid, scope.cancelled_caught

    assert await observe_twice(body) == (("done", True), ("done", True))


async def test_once_is_not_begun_while_the_run_is_unwound(autojump_clock: object):
    """
    Shielded or not, no effect begins once the instance is being cancelled, and the intent is not recorded.
    """
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True), pytest.raises(memable.RunEndedError, match="cancelled"):
                await ctx.step("pay", never, once=True)

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.testing.wait_all_tasks_blocked()
        assert await engine.cancel(workflow, INSTANCE)
    assert "intent_recorded" not in kinds_of(store)


async def test_cancel_waits_for_an_effect_whose_intent_is_on_its_way(autojump_clock: object):
    """
    A cancel that meets an intent on its way to the disk waits until the effect has its outcome.
    """
    store, gate = memable.InMemoryStore(), Gate("intent_recorded")
    effect = Effect()

    async def body(ctx: memable.Context) -> None:
        await effect.step(ctx)

    workflow = workflow_of(body)
    async with (
        memable.open_engine(HookedStore(store, before_append=gate.pass_), workflows=[workflow]) as engine,
        trio.open_nursery() as nursery,
    ):
        await engine.invoke(workflow, instance_id=INSTANCE)
        await gate.is_reached.wait()
        nursery.start_soon(engine.cancel, workflow, INSTANCE)
        await trio.testing.wait_all_tasks_blocked()
        gate.is_open.set()
    assert effect.began == effect.ended
    assert journal_in(store).intents == {}
    assert kinds_of(store)[-1] == "instance_cancelled"


async def test_once_waits_for_a_thread_before_its_intent(autojump_clock: object):
    """
    An effect that waits for a free thread has not begun: it can be cancelled, and no intent is recorded.
    """
    store = memable.InMemoryStore()
    limiter = trio.CapacityLimiter(1)
    calls: list[int] = []

    async def body(ctx: memable.Context) -> None:
        await limiter.acquire()
        with trio.move_on_after(1) as scope:
            await ctx.step_in_thread("pay", calls.append, 1, once=True, limiter=limiter)
        assert scope.cancelled_caught
        assert "intent_recorded" not in kinds_of(store)
        limiter.release()
        await ctx.step_in_thread("pay", calls.append, 1, once=True, limiter=limiter)
        assert limiter.borrowed_tokens == 0

    assert await run_body(body, store=store) == memable.Completed()
    assert calls == [1]


async def test_once_that_got_its_thread_too_late_does_not_begin(autojump_clock: object):
    """
    A run that is unwound while an effect waits for a thread, shielded, does not begin it.
    """
    store = memable.InMemoryStore()
    limiter = trio.CapacityLimiter(1)
    told: list[str] = []

    def effect() -> None:
        raise AssertionError

    async def body(ctx: memable.Context) -> None:
        with trio.CancelScope(shield=True):
            try:
                await ctx.step_in_thread("pay", effect, once=True, limiter=limiter)
            except memable.RunEndedError as error:
                told.append(str(error.leaving))

    workflow = workflow_of(body)
    await limiter.acquire()
    async with memable.open_engine(store, workflows=[workflow]) as engine, trio.open_nursery() as nursery:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(engine.cancel, workflow, INSTANCE)
        await trio.testing.wait_all_tasks_blocked()
        limiter.release()
    assert told == ["cancelled"]
    assert "intent_recorded" not in kinds_of(store)
