"""
Stopping an engine, waiting for its runs, and using it from inside them.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import trio

import memable
from memable import MetadataStatus
from running import workflow_of
from stores import Place


@memable.workflow
async def endless(ctx: memable.Context) -> None:
    await trio.sleep_forever()


@memable.workflow
async def sleepy(ctx: memable.Context, seconds: float) -> float:
    await trio.sleep(seconds)
    return seconds


async def fail() -> None:
    raise ValueError


@memable.workflow
async def backing_off(ctx: memable.Context) -> None:
    await ctx.step("flaky", fail, retry=memable.RetryPolicy.fixed(1, 100))


# Waiting for all ---------------------------------------------------------------------------------------------------


async def test_wait_all_returns_when_no_run_executes(place: Place, autojump_clock: object):
    """
    wait_all returns when the last executing run has ended; runs in a backoff do not count.
    """
    async with memable.open_engine(place.store(), workflows=[sleepy, backing_off]) as engine:
        began = trio.current_time()
        await engine.invoke(backing_off)
        for seconds in (1.0, 5.0, 3.0):
            await engine.invoke(sleepy, seconds)
        await engine.wait_all()
        assert trio.current_time() == pytest.approx(began + 5)


async def test_wait_all_waits_again_for_a_run_that_has_left_its_backoff(autojump_clock: object):
    """
    A run that executes again after its backoff counts again.
    """
    calls: list[int] = []

    async def flaky() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError
        await trio.sleep(50)

    async def body(ctx: memable.Context) -> None:
        await ctx.step("flaky", flaky, retry=memable.RetryPolicy.fixed(1, 100))

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        began = trio.current_time()
        await engine.invoke(workflow)
        await engine.wait_all()
        assert trio.current_time() == began
        await trio.sleep(101)
        await engine.wait_all()
        assert trio.current_time() == pytest.approx(began + 150)


async def test_wait_all_waits_for_what_is_started_meanwhile(autojump_clock: object):
    """
    Runs that begin while wait_all waits are waited for, too.
    """

    async def body(ctx: memable.Context) -> None:
        await trio.sleep(1)
        await engine.invoke(sleepy, 5.0, instance_id="inner")

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow, sleepy]) as engine:
        await engine.invoke(workflow)
        await engine.wait_all()
        assert await engine.state(sleepy, "inner") == memable.Completed()


async def test_wait_all_is_a_checkpoint_and_can_be_cancelled(autojump_clock: object):
    """
    wait_all is a checkpoint with nothing to wait for, and a cancelled one leaves the runs alone.
    """
    async with memable.open_engine(memable.InMemoryStore(), workflows=[sleepy]) as engine:
        with trio.testing.assert_checkpoints():
            await engine.wait_all()
        invocation = await engine.invoke(sleepy, 5.0)
        with trio.move_on_after(1) as scope:
            await engine.wait_all()
        assert scope.cancelled_caught
        assert await invocation.result() == 5.0


@pytest.mark.parametrize("where", ["body", "step", "nursery"])
async def test_wait_all_inside_a_body_is_refused(where: str, autojump_clock: object):
    """
    wait_all inside a body would wait for itself: RuntimeError.
    """

    async def wait() -> None:
        with pytest.raises(RuntimeError, match="would wait for itself"):
            await engine.wait_all()

    async def body(ctx: memable.Context) -> None:
        match where:
            case "body":
                await wait()
            case "step":
                await ctx.step("wait", wait)
            case _:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait)

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        assert await (await engine.invoke(workflow)).result() is None


# Stopping ----------------------------------------------------------------------------------------------------------


async def test_stop_waits_for_executing_runs(place: Place, autojump_clock: object):
    """
    Stop does what leaving the block does: runs come to their end, those in a backoff are not waited for.
    """
    async with memable.open_engine(place.store(), workflows=[sleepy, backing_off]) as engine:
        began = trio.current_time()
        invocation = await engine.invoke(sleepy, 5.0, instance_id="s")
        await engine.invoke(backing_off, instance_id="b")
        await engine.stop()
        assert trio.current_time() == pytest.approx(began + 5)
        assert await invocation.result() == 5.0
        assert isinstance(await engine.state(backing_off, "b"), memable.Suspended)
        metadata = await engine.metadata(backing_off, "b")
        assert metadata is not None
        assert metadata.status is MetadataStatus.SUSPENDED


async def test_stop_cancels_runs_past_its_timeout(place: Place, autojump_clock: object):
    """
    Past the timeout of stop the runs are cancelled and stay Running; the next open runs them again.
    """
    async with memable.open_engine(place.store(), workflows=[sleepy]) as engine:
        began = trio.current_time()
        invocation = await engine.invoke(sleepy, 50.0, instance_id="i")
        await engine.stop(timeout=5)
        assert trio.current_time() == pytest.approx(began + 5)
        assert await invocation.state() == memable.Started()
        with pytest.raises(memable.EngineStoppedError, match=r"Invocation\.result on instance 'i'"):
            await invocation.result()
    async with memable.open_engine(place.store(), workflows=[sleepy]) as engine:
        assert await (await engine.get(sleepy, "i")).result() == 50.0


async def test_stop_without_a_timeout_takes_that_of_the_engine(autojump_clock: object):
    """
    stop() waits as long as leaving the block would.
    """
    async with memable.open_engine(memable.InMemoryStore(), workflows=[endless], shutdown_timeout=7) as engine:
        began = trio.current_time()
        await engine.invoke(endless)
        await engine.stop()
        assert trio.current_time() == pytest.approx(began + 7)


async def test_stop_may_be_called_again(autojump_clock: object):
    """
    Stop is idempotent: called again, before, while and after the block is left, it has nothing more to do.
    """
    async with memable.open_engine(memable.InMemoryStore(), workflows=[sleepy]) as engine:
        await engine.invoke(sleepy, 1.0)
        await engine.stop()
        with trio.testing.assert_checkpoints():
            await engine.stop(timeout=0)
    await engine.stop()
    await engine.stop(timeout=1)


async def test_stops_at_once_take_the_shortest_timeout(autojump_clock: object):
    """
    Several stops at once all return, as soon as the most impatient of them has cancelled the runs.
    """
    returned: list[float] = []
    async with memable.open_engine(memable.InMemoryStore(), workflows=[endless]) as engine:
        began = trio.current_time()
        await engine.invoke(endless)

        async def stop(timeout: float) -> None:
            await engine.stop(timeout)
            returned.append(trio.current_time() - began)

        async with trio.open_nursery() as nursery:
            for timeout in (30, 3, math.inf):
                nursery.start_soon(stop, timeout)
    assert returned == [pytest.approx(3)] * 3


async def test_stop_that_is_cancelled_lets_the_runs_go_on(autojump_clock: object):
    """
    A cancelled stop does not cancel the runs; nothing new is accepted all the same.
    """
    async with memable.open_engine(memable.InMemoryStore(), workflows=[sleepy]) as engine:
        invocation = await engine.invoke(sleepy, 5.0)
        with trio.move_on_after(1) as scope:
            await engine.stop()
        assert scope.cancelled_caught
        with pytest.raises(memable.EngineStoppedError, match=r"engine\.invoke"):
            await engine.invoke(sleepy, 1.0)
        assert await invocation.result() == 5.0


@pytest.mark.parametrize("timeout", [-1, math.nan, "3", True])
async def test_stop_refuses_a_senseless_timeout(timeout: Any, autojump_clock: object):
    """
    A timeout that is no number of seconds is a ValueError, and nothing stops.
    """
    async with memable.open_engine(memable.InMemoryStore(), workflows=[sleepy]) as engine:
        with pytest.raises(ValueError, match="timeout must be a number of seconds, at least 0"):
            await engine.stop(timeout)
        assert await (await engine.invoke(sleepy, 1.0)).result() == 1.0


@pytest.mark.parametrize("where", ["body", "step"])
@pytest.mark.parametrize("timeout", [None, 3])
async def test_stop_inside_a_body_only_begins_the_stop(where: str, timeout: float | None, autojump_clock: object):
    """
    Stop inside a body returns at once; the body that called it comes to its end within the timeout.
    """
    went_on: list[float] = []

    async def stop() -> None:
        with trio.testing.assert_checkpoints():
            await engine.stop(timeout)
        await engine.stop(timeout)

    async def body(ctx: memable.Context) -> None:
        if where == "step":
            await ctx.step("stop", stop)
        else:
            await stop()
        await trio.sleep(2)
        went_on.append(trio.current_time())

    workflow = workflow_of(body)
    began = trio.current_time()
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow, endless]) as engine:
        if timeout is not None:
            await engine.invoke(endless)
        invocation = await engine.invoke(workflow)
        assert await invocation.result() is None
        with pytest.raises(memable.EngineStoppedError, match=r"engine\.invoke"):
            await engine.invoke(endless)
    assert went_on == [pytest.approx(began + 2)]
    assert trio.current_time() == pytest.approx(began + (2 if timeout is None else 3))


async def test_stop_wakes_those_who_wait(autojump_clock: object):
    """
    Whoever still waits for an instance that did not end when the engine stops gets an EngineStoppedError.
    """
    told: list[str] = []
    async with (
        memable.open_engine(memable.InMemoryStore(), workflows=[endless, backing_off]) as engine,
        trio.open_nursery() as nursery,
    ):

        async def wait(call: Any) -> None:
            with pytest.raises(memable.EngineStoppedError, match="the engine has stopped; open the store") as caught:
                await call()
            told.append(caught.value.operation)

        running = await engine.invoke(endless, instance_id="r")
        waiting = await engine.invoke(backing_off, instance_id="w")
        await waiting.wait()

        async def read(stream: memable.StatusStream) -> None:
            async for _ in stream:
                pass

        nursery.start_soon(wait, partial(read, running.states()))
        nursery.start_soon(wait, partial(read, engine.subscribe(backing_off, "w")))
        for call in (running.wait, running.result, waiting.result):
            nursery.start_soon(wait, call)
        await trio.testing.wait_all_tasks_blocked()
        assert told == []
        await engine.stop(timeout=1)
    assert sorted(told) == [
        "Invocation.result on instance 'r'",
        "Invocation.result on instance 'w'",
        "Invocation.wait on instance 'r'",
        "the states of instance 'r'",
        "the states of instance 'w'",
    ]


async def test_runs_that_end_while_the_engine_stops_are_told_to_those_who_wait(autojump_clock: object):
    """
    A result that comes in while the block is being left reaches a task outside that waits for it.
    """
    results: list[float] = []
    async with trio.open_nursery() as nursery:

        async def wait(invocation: memable.Invocation[float]) -> None:
            results.append(await invocation.result())

        async with memable.open_engine(memable.InMemoryStore(), workflows=[sleepy]) as engine:
            for seconds in (1.0, 2.0):
                nursery.start_soon(wait, await engine.invoke(sleepy, seconds))
    assert results == [1.0, 2.0]


async def test_calls_on_an_unknown_instance_say_so(place: Place, autojump_clock: object):
    """
    Every call on an instance that the store does not have is an InstanceNotFoundError; metadata gives None.
    """
    async with memable.open_engine(place.store(), workflows=[endless]) as engine:
        for call in (engine.get, engine.resume, engine.cancel, engine.state):
            with pytest.raises(memable.InstanceNotFoundError, match="workflow 'endless', instance 'nobody'") as caught:
                await call(endless, "nobody")
            assert isinstance(caught.value, LookupError)
        with pytest.raises(memable.InstanceNotFoundError, match="instance 'nobody'"):
            await anext(engine.subscribe(endless, "nobody"))
        assert await engine.metadata(endless, "nobody") is None
        assert await engine.metadata("unregistered", "nobody") is None


async def test_calls_refuse_invalid_names_and_ids(autojump_clock: object):
    """
    Every call refuses a name or an id that cannot be one.
    """
    async with memable.open_engine(memable.InMemoryStore(), workflows=[endless]) as engine:

        async def subscribe(workflow: Any, instance_id: Any) -> None:
            engine.subscribe(workflow, instance_id)

        for call in (engine.get, engine.state, engine.metadata, subscribe):
            with pytest.raises(memable.InvalidKeyError, match="instance id 3 is of type int"):
                await call(endless, 3)
            with pytest.raises(memable.InvalidKeyError, match="workflow name '_x'"):
                await call("_x", "i")
            with pytest.raises(memable.MisuseError, match="neither a workflow nor the name of one"):
                await call(endless.fn, "i")


@pytest.mark.parametrize("call", ["get", "state", "metadata", "list_instances"])
async def test_reading_is_a_checkpoint(call: str, autojump_clock: object):
    """
    Each method that looks at the store is a checkpoint.
    """
    async with memable.open_engine(memable.InMemoryStore(), workflows=[sleepy]) as engine:
        await engine.invoke(sleepy, 1.0, instance_id="i")
        args = () if call == "list_instances" else (sleepy, "i")
        with trio.testing.assert_checkpoints():
            await getattr(engine, call)(*args)


async def test_dropped_handles_change_nothing(place: Place, autojump_clock: object):
    """
    An instance whose handle nobody keeps runs to its end.
    """
    async with memable.open_engine(place.store(), workflows=[sleepy]) as engine:
        for number in range(5):
            await engine.invoke(sleepy, float(number))
        await engine.wait_all()
        statuses = [metadata.status for metadata in await engine.list_instances()]
    assert statuses == [MetadataStatus.COMPLETED] * 5
