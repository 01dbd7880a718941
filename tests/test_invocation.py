"""
Handles: waiting for states and results.
"""

from __future__ import annotations

import gc
import signal
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

import memable
from memable._entry import Entry, Sleeper
from running import workflow_of
from stores import HookedStore, Place


@attrs.frozen
class Greeting:
    text: str
    times: int


async def fail() -> None:
    raise ValueError("flaky")


@memable.workflow
async def greet(ctx: memable.Context, name: str) -> Greeting:
    await trio.sleep(1)
    return Greeting(f"hello {name}", 2)


@memable.workflow
async def backing_off(ctx: memable.Context) -> str:
    ctx.set_status("trying")
    try:
        await ctx.step("flaky", fail, retry=memable.RetryPolicy.fixed(1, 100))
    except memable.StepFailedError:
        return "gave up"
    raise AssertionError


@memable.workflow
async def endless(ctx: memable.Context) -> None:
    await trio.sleep_forever()


async def test_invocation_names_its_instance(autojump_clock: object):
    """
    A handle tells the names of workflow and instance, also in its repr.
    """
    async with memable.open_engine(memable.InMemoryStore(), workflows=[greet]) as engine:
        invocation = await engine.invoke(greet, "Ada", instance_id="i")
        assert (invocation.workflow_name, invocation.instance_id) == ("greet", "i")
        assert repr(invocation) == "<memable.Invocation of workflow 'greet', instance 'i'>"


async def test_result_is_decoded_by_the_workflows_annotation(place: Place, autojump_clock: object):
    """
    Result gives the value as its annotated type, live and years later; without the workflow, plain JSON.
    """
    async with memable.open_engine(place.store(), workflows=[greet]) as engine:
        assert await (await engine.invoke(greet, "Ada", instance_id="i")).result() == Greeting("hello Ada", 2)
    async with memable.open_engine(place.store(), workflows=[greet]) as engine:
        assert await (await engine.get(greet, "i")).result() == Greeting("hello Ada", 2)


async def test_result_of_another_type_than_now_annotated_says_so(place: Place, autojump_clock: object):
    """
    An output that was recorded as another type is a TypeMismatchError that names the instance.
    """

    @memable.workflow(name="greet")
    async def changed(ctx: memable.Context, name: str) -> int:
        return 3

    async with memable.open_engine(place.store(), workflows=[greet]) as engine:
        await (await engine.invoke(greet, "Ada", instance_id="i")).result()
    async with memable.open_engine(place.store(), workflows=[changed]) as engine:
        with pytest.raises(
            memable.TypeMismatchError, match=r"workflow 'greet', instance 'i': .*builtins\.int"
        ) as caught:
            await (await engine.get(changed, "i")).result()
        assert (caught.value.workflow, caught.value.instance_id) == ("greet", "i")


async def test_result_that_cannot_be_stored_fails_the_instance(place: Place, autojump_clock: object):
    """
    A body that returns what is not of its annotated type has failed with a SerializationError.
    """

    @memable.workflow
    async def wrong(ctx: memable.Context) -> int:
        return "three"  # type: ignore[return-value]

    async with memable.open_engine(place.store(), workflows=[wrong]) as engine:
        invocation = await engine.invoke(wrong, instance_id="i")
        with pytest.raises(memable.WorkflowFailedError, match=r"SerializationError.*'wrong', instance 'i'") as caught:
            await invocation.result()
        assert caught.value.matches(memable.SerializationError)


async def test_result_raises_what_the_instance_ended_with(place: Place, autojump_clock: object):
    """
    Failed, Cancelled and Blocked each have their exception with the facts in it; live and at a later open the same.
    """

    @memable.workflow
    async def work(ctx: memable.Context, how: str) -> None:
        match how:
            case "failed":
                raise ConnectionError("no line")
            case "blocked":
                await ctx.step("k", trio.sleep, 0)
                await ctx.step("k", trio.sleep, 0)
            case _:
                await trio.sleep_forever()

    async with memable.open_engine(place.store(), workflows=[work]) as engine:
        for how in ("failed", "blocked", "cancelled"):
            await engine.invoke(work, how, instance_id=how)
        await trio.testing.wait_all_tasks_blocked()
        await engine.cancel(work, "cancelled", reason="why")
        crashed = place.crash()
        for attempt in range(2):
            async with memable.open_engine(crashed.store()) as other:
                seen = engine if attempt == 0 else other
                with pytest.raises(memable.WorkflowFailedError, match="failed with ConnectionError: no line") as failed:
                    await (await seen.get(work, "failed")).result()
                assert failed.value.matches(OSError)
                assert not failed.value.matches(ValueError)
                with pytest.raises(memable.WorkflowBlockedError, match=r"key 'k': blocked by memable\.Dupl") as blocked:
                    await (await seen.get(work, "blocked")).result()
                assert blocked.value.key == "k"
                with pytest.raises(memable.WorkflowCancelledError, match=r"was cancelled \(why\)") as cancelled:
                    await (await seen.get(work, "cancelled")).result()
                assert cancelled.value.reason == "why"


async def test_wait_returns_at_a_suspension_and_result_waits_through_it(place: Place, autojump_clock: object):
    """
    Wait returns as soon as the instance is Suspended, result only at the end.
    """
    async with memable.open_engine(place.store(), workflows=[backing_off]) as engine:
        began = trio.current_time()
        invocation = await engine.invoke(backing_off, instance_id="i")
        state = await invocation.wait()
        assert isinstance(state, memable.Suspended)
        assert (state.key, state.status, state.waits) == ("flaky", "trying", ("flaky",))
        metadata = await engine.metadata(backing_off, "i")
        assert metadata is not None
        assert state.deadline is not None
        assert (state.deadline - metadata.created_at).total_seconds() == pytest.approx(100, abs=0.001)
        assert trio.current_time() == began
        assert await invocation.result() == "gave up"
        assert trio.current_time() == pytest.approx(began + 100)
        assert await invocation.wait() == memable.Completed("trying")


async def test_wait_and_result_of_an_ended_instance_return_at_once(place: Place, autojump_clock: object):
    """
    Each method of a handle is a checkpoint, and has nothing to wait for once the instance has ended.
    """
    async with memable.open_engine(place.store(), workflows=[greet]) as engine:
        invocation = await engine.invoke(greet, "Ada", instance_id="i")
        await invocation.result()
    async with memable.open_engine(place.store(), workflows=[greet]) as engine:
        began = trio.current_time()
        with trio.testing.assert_checkpoints():
            invocation = await engine.get(greet, "i")
        for method in (invocation.wait, invocation.result, invocation.state):
            with trio.testing.assert_checkpoints():
                await method()
        assert trio.current_time() == began


@pytest.mark.parametrize("pauses", [0, 1, 2, 3, 5, 8, 13])
async def test_wait_and_result_are_checkpoints_however_far_the_instance_is(
    pauses: int, place: Place, autojump_clock: object
):
    """
    Each method of a handle yields, and lets others run, at whatever moment of an instance it is called.
    """

    @memable.workflow
    async def quick(ctx: memable.Context) -> int:
        await ctx.step("one", trio.lowlevel.checkpoint)
        return 1

    for method in ("wait", "result"):
        async with memable.open_engine(place.store(), workflows=[quick]) as engine:
            invocation = await engine.invoke(quick, instance_id=method)
            for _ in range(pauses):
                await trio.lowlevel.checkpoint()
            with trio.testing.assert_checkpoints():
                await getattr(invocation, method)()


@pytest.mark.parametrize("method", ["wait", "result"])
async def test_waiting_that_is_cancelled_leaves_the_instance_alone(method: str, place: Place, autojump_clock: object):
    """
    A cancelled wait or result does not cancel the instance.
    """
    async with memable.open_engine(place.store(), workflows=[greet]) as engine:
        invocation = await engine.invoke(greet, "Ada")
        with trio.move_on_after(0.5) as scope:
            await getattr(invocation, method)()
        assert scope.cancelled_caught
        assert await invocation.result() == Greeting("hello Ada", 2)


async def test_handles_on_one_instance_agree(place: Place, autojump_clock: object):
    """
    Any number of handles on one instance, dropped and made again, see the same.
    """
    async with memable.open_engine(place.store(), workflows=[greet]) as engine:
        await engine.invoke(greet, "Ada", instance_id="i")
        gc.collect()
        results: list[Any] = []

        async def wait() -> None:
            results.append(await (await engine.get("greet", "i")).result())

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(wait)
    assert results == [Greeting("hello Ada", 2)] * 10


async def test_handle_sees_the_run_that_a_resume_begins(place: Place, autojump_clock: object):
    """
    A handle on an instance that was resumed waits for the new run.
    """
    runs: list[int] = []

    @memable.workflow
    async def work(ctx: memable.Context) -> int:
        runs.append(1)
        await trio.sleep(1)
        if len(runs) == 1:
            raise ValueError
        return len(runs)

    async with memable.open_engine(place.store(), workflows=[work]) as engine:
        invocation = await engine.invoke(work, instance_id="i")
        assert isinstance(await invocation.wait(), memable.Failed)
        await engine.resume(work, "i")
        assert await invocation.state() == memable.Started()
        assert await invocation.result() == 2


@pytest.mark.parametrize("method", ["state", "wait", "result"])
@pytest.mark.parametrize("slow", ["before_load", "after_load"])
@pytest.mark.parametrize("ticks", range(8))
async def test_handle_read_while_the_instance_is_resumed_sees_before_or_after(
    ticks: int, slow: str, method: str, autojump_clock: object
):
    """
    Reading an instance whose journal is on its way while somebody resumes it gives its old or its new state.
    """
    store = memable.InMemoryStore()
    runs: list[int] = []

    @memable.workflow
    async def work(ctx: memable.Context) -> int:
        runs.append(1)
        return len(runs)

    async with memable.open_engine(store, workflows=[work]) as engine:
        await (await engine.invoke(work, instance_id="i")).result()

    async def slowly(_number: int) -> None:
        for _ in range(3):
            await trio.lowlevel.checkpoint()

    seen: list[Any] = []
    hooked = HookedStore(store, **{slow: slowly})
    async with memable.open_engine(hooked, workflows=[work]) as engine, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def read() -> None:
            invocation = await engine.get(work, "i")
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            seen.append(await getattr(invocation, method)())

        nursery.start_soon(lambda: engine.resume(work, "i", anew=True))
    assert seen[0] in ([1, 2] if method == "result" else [memable.Completed(), memable.Started()])


@pytest.mark.parametrize("waiting", ["result", "wait"])
async def test_handle_on_an_instance_that_does_not_run_waits_for_somebody_to_resume_it(
    waiting: str, place: Place, autojump_clock: object
):
    """
    Waiting for an instance that is recorded as running, but does not run here, ends when somebody resumes it.
    """
    async with memable.open_engine(place.store(), workflows=[greet], shutdown_timeout=0) as engine:
        await engine.invoke(greet, "Ada", instance_id="i")
    async with memable.open_engine(place.store(), workflows=[greet], resume_on_start=False) as engine:
        invocation = await engine.get(greet, "i")
        with trio.move_on_after(3600) as scope:
            await getattr(invocation, waiting)()
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(getattr(invocation, waiting))
            await engine.resume(greet, "i")


async def test_body_may_wait_for_another_instance(place: Place, autojump_clock: object):
    """
    A body may hold a handle on another instance and wait for its result.
    """
    seen: list[Greeting] = []

    async def body(ctx: memable.Context) -> None:
        seen.append(await (await engine.invoke(greet, "Ada", instance_id="other")).result())

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow, greet]) as engine:
        await (await engine.invoke(workflow)).result()
    assert seen == [Greeting("hello Ada", 2)]


def test_control_c_just_before_a_handle_sleeps_leaves_nobody_to_be_woken(monkeypatch: pytest.MonkeyPatch):
    """
    A regression: who was interrupted there was woken by the next change of the instance, whatever it did by then.
    """
    original = Entry.add_sleeper
    interrupts = iter([True])

    def add_sleeper(self: Entry, *, is_for_end: bool = False) -> Sleeper:
        sleeper = original(self, is_for_end=is_for_end)
        if next(interrupts, False):
            signal.raise_signal(signal.SIGINT)
        return sleeper

    monkeypatch.setattr(Entry, "add_sleeper", add_sleeper)
    point = memable.SuspendPoint("p", int)

    @memable.workflow
    async def waiting(ctx: memable.Context) -> int:
        return await ctx.suspend(point)

    async def main() -> int:
        async with memable.open_engine(memable.InMemoryStore(), workflows=[waiting]) as engine:
            invocation = await engine.invoke(waiting, instance_id="i")
            await trio.sleep(1)
            with pytest.raises(KeyboardInterrupt):
                await invocation.result()
            await engine.signal(waiting, "i", point, 7)
            await trio.sleep(1)
            return await invocation.result()

    assert trio.run(main, clock=MockClock(autojump_threshold=0)) == 7
