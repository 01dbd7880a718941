"""
Compensations: steps that undo what an instance did, if it ends as Failed or Cancelled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import memable
from crashing import journal_in, never
from memable._records import StepFailed
from running import INSTANCE, ending_of, kinds_of, run_body, workflow_of
from stores import Gate, HookedStore, Place, failing_at

GO = memable.SuspendPoint("go", bool)


class Undo:
    """
    Undoes things; knows which, in which order.
    """

    def __init__(self) -> None:
        self.done: list[str] = []
        self.tried: list[str] = []

    async def __call__(self, name: str) -> None:
        self.tried.append(name)
        await trio.lowlevel.checkpoint()
        self.done.append(name)


async def nothing() -> None:
    pass


async def register(ctx: memable.Context, undo: Callable[[str], Awaitable[object]], *names: str) -> None:
    for name in names:
        await ctx.compensate(name, undo, name)


# When and in which order -------------------------------------------------------------------------------------------


async def test_compensations_run_in_reverse_order_when_the_instance_fails(place: Place, autojump_clock: object):
    """
    What was registered last runs first; the instance is Failed with the first cause once all have run.
    """
    undo = Undo()

    async def body(ctx: memable.Context) -> None:
        await register(ctx, undo, "a", "b", "c")
        raise ValueError("first cause")

    state = await run_body(body, store=place.store())
    assert isinstance(state, memable.Failed)
    assert state.error.message == "first cause"
    assert undo.done == ["c", "b", "a"]


@pytest.mark.parametrize("ends", ["completed", "blocked", "stopped"])
async def test_compensations_do_not_run_otherwise(ends: str, place: Place, autojump_clock: object):
    """
    Nothing is undone for an instance that is Completed or Blocked, or whose engine merely stops.
    """
    undo = Undo()

    async def body(ctx: memable.Context) -> None:
        await register(ctx, undo, "a")
        match ends:
            case "blocked":
                await ctx.step("_", nothing)
            case "stopped":
                await trio.sleep_forever()

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow], shutdown_timeout=0) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.testing.wait_all_tasks_blocked()
    assert undo.tried == []


async def test_compensations_are_durable_when_registered(autojump_clock: object):
    """
    The registration is durable when compensate returns, and compensate returns None.
    """
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        assert await ctx.compensate("a", nothing) is None  # type: ignore[func-returns-value]
        assert kinds_of(store)[-1] == "compensation_registered"

    assert await run_body(body, store=store) == memable.Completed()


async def test_compensations_run_in_the_order_over_the_whole_instance(autojump_clock: object):
    """
    Tasks of nurseries and children of fan-outs, done or not, register in one order; it is undone in reverse.
    """
    undo = Undo()
    order: list[str] = []

    async def add(ctx: memable.Context, key: str, name: str, delay: float) -> None:
        await trio.sleep(delay)
        await ctx.compensate(key, undo, name)
        order.append(name)

    async def child(ctx: memable.Context, item: int) -> None:
        await add(ctx, "undo", f"child {item}", 10 - item)
        if item == 0:
            raise ValueError("last child")

    async def body(ctx: memable.Context) -> None:
        await add(ctx, "first", "first", 0)
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(add, ctx, f"task {number}", f"task {number}", 3 - number)
        await ctx.fan_out("f", child, [0, 1, 2])

    state = await run_body(body)
    assert isinstance(state, memable.Failed)
    assert order == ["first", "task 2", "task 1", "task 0", "child 2", "child 1", "child 0"]
    assert undo.done == order[::-1]


async def test_compensations_of_a_failed_fan_out_that_the_body_catches_wait_for_the_end(autojump_clock: object):
    """
    A failure that the body catches undoes nothing; the end of the instance decides.
    """
    undo = Undo()

    async def child(ctx: memable.Context, item: int) -> None:
        await ctx.compensate("undo", undo, "child")
        raise ValueError

    async def body(ctx: memable.Context) -> None:
        with pytest.raises(memable.ChildFailedError, match="f"):
            await ctx.fan_out("f", child, [0])

    assert await run_body(body) == memable.Completed()
    assert undo.tried == []


# What they are -----------------------------------------------------------------------------------------------------


async def test_compensations_are_memoised_as_steps(autojump_clock: object):
    """
    Each has an outcome in the journal, under its key, with what it returned.
    """
    store = memable.InMemoryStore()

    async def undo() -> dict[str, int]:
        return {"a": 1}

    async def body(ctx: memable.Context) -> None:
        await ctx.compensate("a", undo)
        raise ValueError

    await run_body(body, store=store)
    assert "a" in journal_in(store).memos
    async with memable.open_engine(store) as engine:
        entries = [entry for entry in await engine.history("w", INSTANCE) if entry.key == "a"]
    assert [(entry.kind, entry.value) for entry in entries] == [("compensate", None), ("compensation", {"a": 1})]


async def test_compensations_are_retried_by_their_policy(autojump_clock: object):
    """
    A compensation is retried by its own policy, or else by the engine's, with the backoff of a step.
    """
    at: list[float] = []
    default: list[float] = []

    async def flaky(calls: list[float]) -> None:
        calls.append(trio.current_time())
        if len(calls) < 3:
            raise ConnectionError

    async def body(ctx: memable.Context) -> None:
        await ctx.compensate("default", flaky, default)
        await ctx.compensate("own", flaky, at, retry=memable.RetryPolicy.exponential(3, 10))
        raise ValueError

    state = await run_body(body, default_retry=memable.RetryPolicy.fixed(2, 100))
    assert isinstance(state, memable.Failed)
    assert [round(later - sooner) for sooner, later in pairwise(at)] == [10, 20]
    assert [round(later - sooner) for sooner, later in pairwise(default)] == [100, 100]


async def test_compensation_past_its_timeout_has_failed(autojump_clock: object):
    """
    A compensation's timeout is a step's: past it, it is cancelled and has failed, and the others run.
    """
    undo = Undo()

    async def body(ctx: memable.Context) -> None:
        await register(ctx, undo, "a")
        await ctx.compensate("slow", trio.sleep_forever, timeout=3)
        raise ValueError("first cause")

    state = await run_body(body)
    assert isinstance(state, memable.Failed)
    assert state.error.message == "first cause"
    assert undo.done == ["a"]


@pytest.mark.parametrize("how", ["fails", "is exhausted", "is unstorable"])
async def test_compensation_that_fails_for_good_does_not_stop_the_others(how: str, autojump_clock: object):
    """
    A failure is recorded, the others run, and the first cause stays the instance's error.
    """
    store, undo = memable.InMemoryStore(), Undo()
    tried: list[int] = []

    async def fail() -> object:
        tried.append(1)
        if how == "is unstorable":
            return {1, 2}
        raise ConnectionError("no way")

    async def body(ctx: memable.Context) -> None:
        await register(ctx, undo, "a")
        await ctx.compensate("b", fail, retry=memable.RetryPolicy.fixed(2, 1) if how == "is exhausted" else None)
        await register(ctx, undo, "c")
        raise ValueError("first cause")

    state = await run_body(body, store=store)
    assert isinstance(state, memable.Failed)
    assert (state.error.message, undo.done) == ("first cause", ["c", "a"])
    assert isinstance(journal_in(store).memos["b"], StepFailed)
    assert len(tried) == (3 if how == "is exhausted" else 1)


async def test_compensation_with_once_never_happens_twice(autojump_clock: object):
    """
    once=True and a probe work in a compensation as in a step.
    """
    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []
    calls: list[str] = []

    async def refund(amount: int) -> str:
        calls.append("refund")
        copies.append(store.crashed_copy())
        return "done"

    async def probe(amount: int) -> str:
        calls.append(f"probe {amount}")
        return "found"

    async def body(ctx: memable.Context) -> None:
        await ctx.compensate("refund", refund, 3, once=True, probe=probe)
        raise ValueError

    assert isinstance(await run_body(body, store=store), memable.Failed)
    assert isinstance(await run_body(body, store=copies[0]), memable.Failed)
    assert calls == ["refund", "probe 3"]


# Registering -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"timeout": -1}, "timeout is -1"),
        ({"retry": 3}, "retry is 3"),
        ({"once": True, "timeout": 1}, "cut an effect short"),
        ({"probe": nothing}, "give once=True"),
        ({"retries": 3}, r"has no option 'retries'"),
    ],
)
async def test_compensate_refuses_options_that_cannot_work(
    options: dict[str, Any], problem: str, autojump_clock: object
):
    """
    A misuse is found when it is registered, not when it is to run.
    """
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        await ctx.compensate("a", nothing, **options)

    state = await run_body(body, store=store)
    assert isinstance(state, memable.Blocked)
    assert problem.replace("\\", "") in state.error.message
    assert "compensation_registered" not in kinds_of(store)


async def test_compensate_refuses_what_is_no_async_function(autojump_clock: object):
    """
    A sync function, or a coroutine that was called instead of passed, is a misuse that says what to write.
    """

    def sync() -> None:
        raise AssertionError

    async def body(ctx: memable.Context) -> None:
        with pytest.raises(memable.MisuseError, match="is not an async function") as caught:
            await ctx.compensate("a", sync)  # type: ignore[arg-type]
        assert "step_in_thread" not in str(caught.value)
        with pytest.raises(memable.MisuseError, match=r"write ctx\.compensate\(key, nothing, \.\.\.\)"):
            await ctx.compensate("a", nothing())  # type: ignore[arg-type]

    assert isinstance(await run_body(body), memable.Blocked)


async def test_compensate_refuses_arguments_that_do_not_fit(autojump_clock: object):
    """
    Arguments that the function does not take are found when it is registered: later, nothing could be undone.
    """
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        await ctx.compensate("a", nothing, 1, 2)  # type: ignore[arg-type]

    state = await run_body(body, store=store)
    assert isinstance(state, memable.Blocked)
    assert "do not fit its signature" in state.error.message
    assert "compensation_registered" not in kinds_of(store)


async def test_compensate_refuses_an_annotation_that_cannot_be_stored(autojump_clock: object):
    """
    A function whose annotated value cannot be stored would fail before it undid anything: it is not registered.
    """

    async def undo() -> trio.Event:
        raise AssertionError

    async def body(ctx: memable.Context) -> None:
        await ctx.compensate("a", undo)

    state = await run_body(body)
    assert isinstance(state, memable.Blocked)
    assert "cannot be stored" in state.error.message


@pytest.mark.parametrize("first", ["step", "sleep", "compensate"])
async def test_compensate_shares_the_namespace_of_keys(first: str, autojump_clock: object):
    """
    A key is used once in a run: a compensation and a step, a sleep or another compensation need two.
    """

    async def use(ctx: memable.Context, kind: str) -> None:
        match kind:
            case "step":
                await ctx.step("k", nothing)
            case "sleep":
                await ctx.sleep("k", 0)
            case "compensate":
                await ctx.compensate("k", nothing)

    for second in ("step", "compensate"):

        async def body(ctx: memable.Context, second: str = second) -> None:
            await use(ctx, first)
            await use(ctx, second)

        state = await run_body(body)
        assert isinstance(state, memable.Blocked)
        assert state.error.type == "memable.DuplicateKeyError"


@pytest.mark.parametrize("kinds", [("step", "compensate"), ("compensate", "step")])
async def test_compensate_keeps_to_its_kind(kinds: tuple[str, str], autojump_clock: object):
    """
    A key recorded as a compensation is not used as a step by later code, nor the other way round: KeyKindError.
    """
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        operation: Any = getattr(ctx, used.pop(0))
        await operation("k", nothing)
        await trio.sleep_forever()

    used = [*kinds]
    workflow = workflow_of(body)
    for _ in kinds:
        async with memable.open_engine(store, workflows=[workflow], shutdown_timeout=0) as engine:
            await engine.invoke(workflow, instance_id=INSTANCE)
            await trio.testing.wait_all_tasks_blocked()
            state = await engine.state(workflow, INSTANCE)
    assert isinstance(state, memable.Blocked)
    assert state.error.type == "memable.KeyKindError"


async def test_compensate_is_a_checkpoint(autojump_clock: object):
    """
    Registering is a checkpoint, also where it was recorded by an earlier run, and also when it is refused.
    """
    rounds: list[int] = []

    async def body(ctx: memable.Context) -> None:
        rounds.append(1)
        with trio.testing.assert_checkpoints():
            await ctx.compensate("a", nothing)
        if len(rounds) == 2:
            with trio.testing.assert_checkpoints(), pytest.raises(memable.DuplicateKeyError, match="a"):
                await ctx.compensate("a", nothing)
        await trio.sleep_forever()

    store, workflow = memable.InMemoryStore(), workflow_of(body)
    for _ in range(2):
        async with memable.open_engine(store, workflows=[workflow], shutdown_timeout=0) as engine:
            await engine.invoke(workflow, instance_id=INSTANCE)
            await trio.testing.wait_all_tasks_blocked()
    assert len(rounds) == 2
    assert kinds_of(store).count("compensation_registered") == 1


def test_compensate_cancelled_at_any_point_registers_wholly_or_not_at_all():
    """
    Cancelled at any schedule point, the key is free again, or the compensation is registered and runs.
    """
    seen: set[bool] = set()

    async def slowly(_records: object) -> None:
        await trio.lowlevel.checkpoint()

    async def main(ticks: int) -> None:
        store, undo = memable.InMemoryStore(), Undo()

        async def body(ctx: memable.Context) -> None:
            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:

                    @nursery.start_soon
                    async def interrupt() -> None:
                        for _ in range(ticks):
                            await trio.lowlevel.cancel_shielded_checkpoint()
                        scope.cancel()

                    # Two, so that the first interruption comes before it, in whatever order trio runs its tasks.
                    await trio.lowlevel.checkpoint()
                    await trio.lowlevel.checkpoint()
                    await ctx.compensate("a", undo, "a")
            seen.add("compensation_registered" in kinds_of(store))
            raise ValueError

        await run_body(body, store=HookedStore(store, before_append=slowly))
        assert undo.done == ["a"] * kinds_of(store).count("compensation_registered")

    for ticks in range(13):
        for _ in range(3):
            trio.run(main, ticks, clock=MockClock(autojump_threshold=0))
    assert seen == {False, True}


# Code errors inside ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["plain", "wrapped", "grouped", "swallowed"])
async def test_compensation_that_uses_the_context_blocks_after_the_others_have_run(how: str, autojump_clock: object):
    """
    Using ctx inside a compensation is NestedStepError: the others run, then the instance is Blocked; mended, it ends.
    """
    store, undo = memable.InMemoryStore(), Undo()
    mended = False

    async def body(ctx: memable.Context) -> None:
        async def wrong() -> None:
            if mended:
                await undo("b")
                return
            try:
                await ctx.step("inner", never)
            except memable.NestedStepError as error:
                match how:
                    case "plain":
                        raise
                    case "wrapped":
                        raise ValueError("wrapped") from error
                    case "grouped":
                        raise ExceptionGroup("grouped", [error]) from None

        await register(ctx, undo, "a")
        await ctx.compensate("b", wrong)
        await register(ctx, undo, "c")
        raise ValueError("first cause")

    state = await run_body(body, store=store)
    assert isinstance(state, memable.Blocked)
    assert state.error.type == "memable.NestedStepError"
    assert state.key == "b"
    assert undo.done == ["c", "a"]
    mended = True
    state = await run_body(body, store=store)
    assert isinstance(state, memable.Failed)
    assert state.error.message == "first cause"
    assert undo.done == ["c", "a", "b"]


async def test_compensation_that_sets_the_status_blocks(autojump_clock: object):
    """
    ctx.set_status inside a compensation is as wrong as any other use of ctx there.
    """

    async def body(ctx: memable.Context) -> None:
        async def wrong() -> None:
            ctx.set_status("undoing")

        await ctx.compensate("a", wrong)
        raise ValueError

    state = await run_body(body)
    assert isinstance(state, memable.Blocked)
    assert state.error.type == "memable.NestedStepError"


async def test_compensation_interrupted_by_control_c_leaves_the_block(autojump_clock: object):
    """
    What is no Exception comes out of the block, and the next engine goes on with the compensations.
    """
    store, undo = memable.InMemoryStore(), Undo()
    interrupts = [KeyboardInterrupt()]

    async def interrupted() -> None:
        if interrupts:
            raise interrupts.pop()

    async def body(ctx: memable.Context) -> None:
        await register(ctx, undo, "a")
        await ctx.compensate("b", interrupted)
        await register(ctx, undo, "c")
        raise ValueError

    with pytest.raises(KeyboardInterrupt):
        await run_body(body, store=store)
    assert undo.done == ["c"]
    assert isinstance(await run_body(body, store=store), memable.Failed)
    assert undo.done == ["c", "a"]


# Other causes ------------------------------------------------------------------------------------------------------


async def test_output_that_cannot_be_stored_fails_the_instance_and_compensates(autojump_clock: object):
    """
    A body that returns what cannot be encoded has failed: what it did is undone.
    """
    undo = Undo()

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context) -> int:
        await register(ctx, undo, "a")
        return "text"  # type: ignore[return-value]

    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        state = await ending_of(await engine.invoke(workflow, instance_id=INSTANCE))
    assert isinstance(state, memable.Failed)
    assert state.error.type == "memable.SerializationError"
    assert undo.done == ["a"]


async def test_failed_instance_keeps_its_step_failure_as_its_error(autojump_clock: object):
    """
    A step that fails the instance is what the instance is Failed with, whatever the compensations did.
    """

    async def fail() -> None:
        raise ConnectionError("unreachable")

    async def body(ctx: memable.Context) -> None:
        await ctx.compensate("undo", fail)
        await ctx.step("do", fail)

    state = await run_body(body)
    assert isinstance(state, memable.Failed)
    assert "key 'do'" in state.error.message


# Resuming ----------------------------------------------------------------------------------------------------------


async def compensated(body: Callable[[memable.Context], Awaitable[object]]) -> memable.InMemoryStore:
    """
    Return a store with an instance of *body* that has ended.
    """
    store = memable.InMemoryStore()
    assert isinstance(await run_body(body, store=store), (memable.Failed, memable.Cancelled))
    return store


async def test_resume_after_compensations_needs_anew(autojump_clock: object):
    """
    What was undone does not go on from its memos: resume is InstanceCompensatedError, but anew=True begins again.
    """
    calls: list[str] = []

    async def do(name: str) -> None:
        calls.append(name)

    async def body(ctx: memable.Context) -> None:
        await ctx.step("do", do, "do")
        await ctx.compensate("undo", do, "undo")
        if len(calls) < 3:
            raise ValueError

    store, workflow = await compensated(body), workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        for options in ({}, {"forget": ["do"]}, {"forget": ["undo"]}):
            with pytest.raises(memable.InstanceCompensatedError, match="anew=True"):
                await engine.resume(workflow, INSTANCE, **options)  # type: ignore[arg-type]
        assert calls == ["do", "undo"]
        invocation = await engine.resume(workflow, INSTANCE, anew=True)
        assert await ending_of(invocation) == memable.Completed()
    assert calls == ["do", "undo", "do"]


async def test_resume_anew_compensates_anew(autojump_clock: object):
    """
    A second life that fails is undone a second time.
    """
    undo = Undo()

    async def body(ctx: memable.Context) -> None:
        await register(ctx, undo, "a", "b")
        raise ValueError

    store, workflow = await compensated(body), workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        assert isinstance(await ending_of(await engine.resume(workflow, INSTANCE, anew=True)), memable.Failed)
    assert undo.done == ["b", "a"] * 2


async def test_resume_while_compensations_run_is_a_handle_on_that(autojump_clock: object):
    """
    Resuming while compensations run changes nothing; to forget something then is InstanceBusyError.
    """
    undo = Undo()

    async def slow() -> None:
        await trio.sleep(10)
        undo.done.append("slow")

    async def body(ctx: memable.Context) -> None:
        await ctx.compensate("a", slow)
        raise ValueError

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.sleep(5)
        with pytest.raises(memable.InstanceBusyError, match="while the instance runs"):
            await engine.resume(workflow, INSTANCE, forget=["a"])
        with pytest.raises(memable.InstanceBusyError, match="while the instance runs"):
            await engine.resume(workflow, INSTANCE, anew=True)
        with pytest.raises(memable.InstanceBusyError, match="while it has not ended"):
            await engine.delete(workflow, INSTANCE)
        assert isinstance(await ending_of(await engine.resume(workflow, INSTANCE)), memable.Failed)
    assert undo.done == ["slow"]


# Meanwhile ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("waits", [False, True])
async def test_cancel_while_compensations_run_comes_too_late(waits: bool, autojump_clock: object):
    """
    How the instance ends is decided: cancel waits for that, and returns False.
    """
    undo = Undo()
    attempts: list[int] = []

    async def slow() -> None:
        attempts.append(1)
        if waits and len(attempts) == 1:
            raise ConnectionError
        await trio.sleep(10)
        await undo("slow")

    async def body(ctx: memable.Context) -> None:
        await ctx.compensate("a", slow, retry=memable.RetryPolicy.fixed(1, 10))
        raise ValueError

    store, workflow = memable.InMemoryStore(), workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.sleep(5)
        assert await engine.cancel(workflow, INSTANCE) is False
        assert isinstance(await invocation.state(), memable.Failed)
    assert undo.done == ["slow"]
    assert "cancel_requested" not in kinds_of(store)


async def test_signal_while_compensations_run_is_rejected(autojump_clock: object):
    """
    A signal to an instance that undoes what it did is rejected, at once, kept or not.
    """

    async def slow() -> None:
        await trio.sleep(10)

    async def body(ctx: memable.Context) -> None:
        await ctx.compensate("a", slow)
        raise ValueError

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.sleep(5)
        began = trio.current_time()
        for early in ("reject", "keep"):
            with pytest.raises(memable.SignalRejectedError, match="undoes what it did"):
                await engine.signal(workflow, INSTANCE, GO, True, early=early)  # type: ignore[arg-type]
        assert trio.current_time() == began


async def test_signal_that_meets_the_begin_of_compensations_is_rejected_at_once(autojump_clock: object):
    """
    A signal that comes while the end of the body is being recorded does not wait for the compensations.
    """
    told: list[float] = []
    gate = Gate("compensation_begun")

    async def slow() -> None:
        await trio.sleep(100)

    async def body(ctx: memable.Context) -> None:
        await ctx.compensate("a", slow)
        raise ValueError

    workflow = workflow_of(body)
    async with (
        memable.open_engine(HookedStore(before_append=gate.pass_), workflows=[workflow]) as engine,
        trio.open_nursery() as nursery,
    ):
        await engine.invoke(workflow, instance_id=INSTANCE)
        await gate.is_reached.wait()

        @nursery.start_soon
        async def signal() -> None:
            began = trio.current_time()
            with pytest.raises(memable.SignalRejectedError, match="undoes what it did"):
                await engine.signal(workflow, INSTANCE, GO, True)
            told.append(trio.current_time() - began)

        await trio.testing.wait_all_tasks_blocked()
        gate.is_open.set()
    assert told == [0]


async def test_backoff_of_a_compensation_is_a_wait(autojump_clock: object):
    """
    An instance in a compensation's backoff is Suspended there, and the block is left without waiting for it.
    """
    store, undo = memable.InMemoryStore(), Undo()
    at: list[float] = []

    async def flaky() -> None:
        at.append(trio.current_time())
        if len(at) == 1:
            raise ConnectionError
        await undo("flaky")

    async def body(ctx: memable.Context) -> None:
        await register(ctx, undo, "a")
        await ctx.compensate("flaky", flaky, retry=memable.RetryPolicy.fixed(1, 1000))
        raise ValueError

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        state = await (await engine.invoke(workflow, instance_id=INSTANCE)).wait()
        assert isinstance(state, memable.Suspended)
        assert state.key == "flaky"
    await trio.sleep(300)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        assert isinstance(await ending_of(await engine.get(workflow, INSTANCE)), memable.Failed)
    assert round(at[1] - at[0]) == 1000
    assert undo.done == ["flaky", "a"]


@pytest.mark.parametrize("max_parked", [0, 1000])
async def test_backoff_of_a_compensation_with_any_number_parked(max_parked: int, autojump_clock: object):
    """
    Whatever is passivated beside it, a compensation's backoff ends in time.
    """
    tried: list[str] = []

    async def flaky(name: str) -> None:
        tried.append(name)
        if tried.count(name) < 3:
            raise ConnectionError

    async def body(ctx: memable.Context) -> None:
        await ctx.compensate("flaky", flaky, ctx.instance_id, retry=memable.RetryPolicy.fixed(2, 100))
        raise ValueError

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow], max_parked=max_parked) as engine:
        for name in ("x", "y"):
            await engine.invoke(workflow, instance_id=name)
        for name in ("x", "y"):
            assert isinstance(await ending_of(await engine.get(workflow, name)), memable.Failed)
    assert sorted(tried) == ["x"] * 3 + ["y"] * 3


async def test_states_of_an_instance_that_compensates_end_with_its_end(autojump_clock: object):
    """
    A subscriber sees the instance going on while it is undone, and Failed at the end only.
    """
    undo = Undo()

    async def slow() -> None:
        await trio.sleep(1)

    async def body(ctx: memable.Context) -> None:
        await ctx.compensate("slow", slow)
        await register(ctx, undo, "a")
        ctx.set_status("working")
        raise ValueError

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        states = [state async for state in invocation.states()]
    assert isinstance(states[-1], memable.Failed)
    assert all(isinstance(state, (memable.Started, memable.InProgress)) for state in states[:-1])


async def test_stop_during_a_compensation_leaves_it_to_the_next_engine(autojump_clock: object):
    """
    A compensation is cancelled by a shutdown that does not wait, and runs at the next open; those done do not.
    """
    store, undo = memable.InMemoryStore(), Undo()

    async def slow(name: str) -> None:
        undo.tried.append(name)
        if len(undo.tried) == 2:
            await trio.sleep_forever()
        undo.done.append(name)

    async def body(ctx: memable.Context) -> None:
        await register(ctx, slow, "a", "b", "c")
        raise ValueError("first cause")

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow], shutdown_timeout=3) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.testing.wait_all_tasks_blocked()
    assert undo.done == ["c"]
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        state = await ending_of(await engine.get(workflow, INSTANCE))
    assert isinstance(state, memable.Failed)
    assert state.error.message == "first cause"
    assert undo.done == ["c", "b", "a"]
    assert undo.tried == ["c", "b", "b", "a"]


@pytest.mark.parametrize(
    "kind", ["compensation_registered", "compensation_begun", "step_completed", "attempt_failed", "instance_failed"]
)
async def test_store_that_fails_while_compensating_is_a_storage_error(kind: str, autojump_clock: object):
    """
    A store that takes no more stops the engine; the next one goes on where it was.
    """
    store, undo = memable.InMemoryStore(), Undo()
    calls: list[int] = []

    async def flaky() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError

    async def body(ctx: memable.Context) -> None:
        await register(ctx, undo, "a")
        await ctx.compensate("b", flaky, retry=memable.RetryPolicy.fixed(3, 1))
        raise ValueError("first cause")

    with pytest.raises(memable.StorageError, match="no space left"):
        await run_body(body, store=failing_at(kind, store))
    state = await run_body(body, store=store)
    assert isinstance(state, memable.Failed)
    assert state.error.message == "first cause"
    assert undo.done[-1] == "a"


@pytest.mark.parametrize("order", range(10))
async def test_cancel_that_meets_the_end_of_the_body_leaves_the_compensations_alone(order: int, autojump_clock: object):
    """
    A request that is recorded when the body has just ended cancels the instance, never its compensations.
    """
    store, undo = memable.InMemoryStore(), Undo()
    gate = Gate("cancel_requested")
    go = trio.Event()
    answers: list[bool] = []

    async def body(ctx: memable.Context) -> None:
        await register(ctx, undo, "a", "b")
        await go.wait()

    workflow = workflow_of(body)
    with trio.fail_after(10):
        async with (
            memable.open_engine(HookedStore(store, before_append=gate.pass_), workflows=[workflow]) as engine,
            trio.open_nursery() as nursery,
        ):
            await engine.invoke(workflow, instance_id=INSTANCE)

            @nursery.start_soon
            async def cancel() -> None:
                answers.append(await engine.cancel(workflow, INSTANCE, reason="why"))

            await gate.is_reached.wait()
            go.set()
            await trio.testing.wait_all_tasks_blocked()
            gate.is_open.set()
    assert undo.done == ["b", "a"]
    assert answers == [True]
    assert kinds_of(store)[-1] == "instance_cancelled"


async def test_compensations_of_many_instances_run_at_once(autojump_clock: object):
    """
    Instances are undone beside each other, each in its own order.
    """
    done: list[tuple[str, int]] = []

    async def undo(instance_id: str, number: int) -> None:
        await trio.sleep(number + 1)
        done.append((instance_id, number))

    async def body(ctx: memable.Context) -> None:
        for number in range(3):
            await ctx.compensate(f"undo {number}", undo, ctx.instance_id, number)
        raise ValueError

    workflow = workflow_of(body)
    began = trio.current_time()
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        for number in range(10):
            await engine.invoke(workflow, instance_id=str(number))
        await engine.wait_all()
    assert trio.current_time() == pytest.approx(began + 6)
    for number in range(10):
        assert [one for instance_id, one in done if instance_id == str(number)] == [2, 1, 0]


async def test_compensations_may_be_methods_partials_and_lambdas(autojump_clock: object):
    """
    Whatever may be a step's function may undo something.
    """
    done: list[str] = []

    class Service:
        async def refund(self, name: str) -> None:
            done.append(name)

    service = Service()

    async def body(ctx: memable.Context) -> None:
        await ctx.compensate("method", service.refund, "method")
        await ctx.compensate("partial", partial(service.refund, name="partial"))
        await ctx.compensate("lambda", lambda: service.refund("lambda"))
        raise ValueError

    assert isinstance(await run_body(body), memable.Failed)
    assert done == ["lambda", "partial", "method"]


# From inside -------------------------------------------------------------------------------------------------------


async def test_compensation_that_calls_the_engine_does_not_wait_for_itself(autojump_clock: object):
    """
    Inside a compensation, as in a body, cancel of its own instance, stop and wait_all do not wait for its end.
    """
    store = memable.InMemoryStore()
    told: list[object] = []

    async def undo() -> None:
        told.append(await engine.cancel(workflow, INSTANCE))
        with pytest.raises(RuntimeError, match="would wait for itself"):
            await engine.wait_all()
        with pytest.raises(memable.WorkflowCodeError, match="instance_id"):
            await engine.invoke(workflow)
        await engine.stop()
        told.append("stopped")

    async def body(ctx: memable.Context) -> None:
        await ctx.compensate("a", undo)
        raise ValueError("first cause")

    workflow = workflow_of(body)
    with trio.fail_after(10):
        async with memable.open_engine(store, workflows=[workflow]) as engine:
            invocation = await engine.invoke(workflow, instance_id=INSTANCE)
            await invocation.wait()
    assert told == [False, "stopped"]


async def test_compensation_that_meets_a_stopped_engine_is_left_to_the_next(autojump_clock: object):
    """
    A compensation that cannot start an instance because the engine stops has not failed: it runs at the next open.
    """
    store = memable.InMemoryStore()
    began: list[int] = []

    @memable.workflow
    async def other(ctx: memable.Context) -> None:
        pass

    async def undo() -> None:
        began.append(1)
        await trio.sleep(10)
        await engine.invoke(other, instance_id="other")

    async def body(ctx: memable.Context) -> None:
        await ctx.compensate("a", undo)
        raise ValueError("first cause")

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow, other]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.sleep(5)
    assert "step_failed" not in kinds_of(store)
    async with memable.open_engine(store, workflows=[workflow, other]) as engine:
        assert isinstance(await ending_of(await engine.get(workflow, INSTANCE)), memable.Failed)
        assert await ending_of(await engine.get(other, "other")) == memable.Completed()
    assert len(began) == 2


async def test_cancel_of_itself_that_was_asked_for_before_returns_false(autojump_clock: object):
    """
    A body that is being cancelled, and asks for it once more while it is shielded, does not wait for its own end.
    """
    told: list[bool] = []

    async def body(ctx: memable.Context) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                told.append(await engine.cancel(workflow, INSTANCE))

    workflow = workflow_of(body)
    with trio.fail_after(10):
        async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
            await engine.invoke(workflow, instance_id=INSTANCE)
            await trio.testing.wait_all_tasks_blocked()
            assert await engine.cancel(workflow, INSTANCE)
    assert told == [False]


async def test_leaving_the_block_waits_for_compensations(autojump_clock: object):
    """
    A normal exit waits for compensations that execute, as for any run.
    """
    undo = Undo()

    async def slow() -> None:
        await trio.sleep(100)
        await undo("slow")

    async def body(ctx: memable.Context) -> None:
        await register(ctx, undo, "a")
        await ctx.compensate("slow", slow)
        raise ValueError

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.testing.wait_all_tasks_blocked()
    assert undo.done == ["slow", "a"]


async def test_compensations_in_nested_fan_outs_are_registered_again(autojump_clock: object):
    """
    Children of children of fan-outs that are done, inside scopes that have expired, are found again after a crash.
    """
    store, undo = memable.InMemoryStore(), Undo()
    copies: list[memable.InMemoryStore] = []

    async def leaf(ctx: memable.Context, item: int) -> int:
        async with ctx.move_on_after("limit", 5) as scope:
            await ctx.compensate("undo", undo, f"leaf {item}")
            await ctx.sleep("long", 10)
        assert scope.cancelled_caught
        return item

    async def branch(ctx: memable.Context, item: int) -> list[int]:
        return await ctx.fan_out("inner", leaf, [2 * item, 2 * item + 1], limit=1)

    async def body(ctx: memable.Context) -> None:
        assert await ctx.fan_out("outer", branch, [0, 1], limit=1) == [[0, 1], [2, 3]]
        copies.append(store.crashed_copy())
        raise ValueError

    assert isinstance(await run_body(body, store=store), memable.Failed)
    expected = ["leaf 3", "leaf 2", "leaf 1", "leaf 0"]
    assert undo.done == expected
    assert isinstance(await run_body(body, store=copies[0]), memable.Failed)
    assert undo.done == expected * 2


async def test_resuming_what_is_compensating_leaves_its_cancelled_children_alone(place: Place, autojump_clock: object):
    """
    A regression: they ran again, though their parent would not wait for them, and went on when it had ended.
    """
    ran: list[str] = []

    @memable.workflow
    async def child(ctx: memable.Context) -> None:
        ran.append("child")
        await ctx.sleep("nap", 1_000_000)

    async def undo() -> None:
        ran.append("undo")

    def parent_that(has_undo: bool) -> memable.Workflow[[], None]:
        @memable.workflow(name="parent")
        async def parent(ctx: memable.Context) -> None:
            if has_undo:
                await ctx.compensate("undo", undo)
            await ctx.call("child", child)

        return parent

    good, bad = parent_that(has_undo=True), parent_that(has_undo=False)
    async with memable.open_engine(place.store(), workflows=[good, child]) as engine:
        await engine.invoke(good, instance_id="i")
        await trio.sleep(1)
    async with memable.open_engine(place.store(), workflows=[bad, child]) as engine:
        with pytest.raises(memable.WorkflowBlockedError, match="undo"):
            await engine.cancel(bad, "i")
        assert isinstance(await engine.state(child, "i/child"), memable.Cancelled)
    ran.clear()
    async with memable.open_engine(place.store(), workflows=[good, child], resume_on_start=False) as engine:
        invocation = await engine.resume(good, "i")
        assert isinstance(await invocation.wait(), memable.Cancelled)
        assert isinstance(await engine.state(child, "i/child"), memable.Cancelled)
    assert ran == ["undo"]
