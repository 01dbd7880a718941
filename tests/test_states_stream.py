"""
Watching an instance: its state at once, then each change, the latest wins.
"""

from __future__ import annotations

from typing import Any

import pytest
import trio

import memable
from running import workflow_of
from stores import Place


async def nothing() -> None:
    pass


async def test_stream_gives_the_current_state_and_each_change(place: Place, autojump_clock: object):
    """
    A reader that keeps up sees every state, through suspension, and the stream ends after the terminal one.
    """
    calls: list[int] = []

    async def flaky() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError

    async def body(ctx: memable.Context) -> None:
        await trio.sleep(1)
        ctx.set_status("first")
        await ctx.step("step", trio.sleep, 1)
        ctx.set_status("second")
        await trio.sleep(1)
        await ctx.step("flaky", flaky, retry=memable.RetryPolicy.fixed(1, 100))
        await trio.sleep(1)

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        invocation = await engine.invoke(workflow, instance_id="i")
        first = [type(state).__name__ + f": {state.message}" async for state in invocation.states()]
        again = [state async for state in engine.subscribe(workflow, "i")]
    assert first == [
        "Started: None",
        "InProgress: first",
        "InProgress: second",
        "Suspended: second",
        "InProgress: second",
        "Completed: second",
    ]
    assert again == [memable.Completed("second")]


async def test_stream_skips_states_that_a_slow_reader_has_missed(place: Place, autojump_clock: object):
    """
    A slow reader never blocks the workflow: it gets the latest state whenever it looks.
    """

    async def body(ctx: memable.Context) -> None:
        for number in range(1000):
            ctx.set_status(str(number))
            await trio.sleep(1)

    workflow = workflow_of(body)
    seen: list[str | None] = []
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        began = trio.current_time()
        invocation = await engine.invoke(workflow)
        async for state in invocation.states():
            seen.append(state.message)
            await trio.sleep(300.5)
        assert trio.current_time() < began + 1000 + 2 * 301
    assert len(seen) <= 6
    assert seen[-1] == "999"


@pytest.mark.parametrize("ending", ["failed", "cancelled", "blocked"])
async def test_stream_ends_after_a_terminal_state_only(ending: str, place: Place, autojump_clock: object):
    """
    Failed and Cancelled end a stream; Blocked does not: the stream goes on when somebody mends it.
    """
    mended: list[bool] = []

    async def body(ctx: memable.Context) -> None:
        await trio.sleep(1)
        if not mended:
            match ending:
                case "failed":
                    raise ValueError("on purpose")
                case "blocked":
                    raise memable.MisuseError(problem="on purpose")
            await trio.sleep_forever()

    workflow = workflow_of(body)
    seen: list[str] = []
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine, trio.open_nursery() as nursery:
        invocation = await engine.invoke(workflow, instance_id="i")

        @nursery.start_soon
        async def watch() -> None:
            stream = invocation.states()
            seen.extend([type(state).__name__ async for state in stream])
            # It stays ended, whatever becomes of the instance.
            with pytest.raises(StopAsyncIteration):
                await anext(stream)

        await trio.sleep(5)
        if ending == "cancelled":
            await engine.cancel(workflow, "i")
        if ending == "blocked":
            mended.append(True)
            await engine.resume(workflow, "i")
    expected = {"failed": ["Failed"], "cancelled": ["Cancelled"], "blocked": ["Blocked", "Started", "Completed"]}
    assert seen == ["Started", *expected[ending]]


async def test_stream_tells_its_errors_at_the_first_iteration(place: Place, autojump_clock: object):
    """
    An unknown instance and a stale one are told at the first iteration, not before.
    """

    @memable.workflow
    async def endless(ctx: memable.Context) -> None:
        await trio.sleep_forever()

    async with memable.open_engine(place.store(), workflows=[endless], shutdown_timeout=0) as engine:
        await engine.invoke(endless, instance_id="i")
    async with memable.open_engine(place.store()) as engine:
        unknown = engine.subscribe("endless", "nobody")
        stale = engine.subscribe("endless", "i")
        handle = (await engine.get("endless", "i")).states()
        async with unknown, stale, handle:
            with pytest.raises(memable.InstanceNotFoundError, match="no such instance"):
                await anext(unknown)
            for stream in (stale, handle):
                for _ in range(2):
                    with pytest.raises(memable.StaleRunningError, match=r"engine\.resume"):
                        await anext(stream)


async def test_stream_may_be_made_before_its_instance(autojump_clock: object):
    """
    A stream of an instance that is started before the first iteration works.
    """

    async def body(ctx: memable.Context) -> None:
        pass

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        stream = engine.subscribe(workflow, "i")
        await engine.invoke(workflow, instance_id="i")
        assert [state async for state in stream][-1] == memable.Completed()


async def test_stream_is_a_context_manager_and_a_checkpoint(autojump_clock: object):
    """
    A stream is its own async context manager; entering it and each iteration are checkpoints.
    """

    async def body(ctx: memable.Context) -> None:
        pass

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        await (await engine.invoke(workflow, instance_id="i")).result()
        stream = engine.subscribe(workflow, "i")
        with trio.testing.assert_checkpoints():
            assert await stream.__aenter__() is stream
        assert aiter(stream) is stream
        with trio.testing.assert_checkpoints():
            await anext(stream)
        with trio.testing.assert_checkpoints(), pytest.raises(StopAsyncIteration):
            await anext(stream)
        # As that of trio's own context managers, its end is not cancelled.
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.__aexit__(None, None, None)
        assert not scope.cancelled_caught


async def test_stream_whose_reader_is_cancelled_goes_on(autojump_clock: object):
    """
    A cancelled iteration loses no state: the next one gives it.
    """

    async def body(ctx: memable.Context) -> None:
        await trio.sleep(10)

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        stream = (await engine.invoke(workflow)).states()
        await anext(stream)
        with trio.move_on_after(1) as scope:
            await anext(stream)
        assert scope.cancelled_caught
        assert [state async for state in stream] == [memable.Completed()]


async def test_streams_of_one_instance_are_independent(autojump_clock: object):
    """
    Any number of readers each see all states that they are quick enough for.
    """

    async def body(ctx: memable.Context) -> None:
        for number in range(3):
            ctx.set_status(str(number))
            await trio.sleep(1)

    workflow = workflow_of(body)
    seen: list[list[Any]] = []
    async with (
        memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine,
        trio.open_nursery() as nursery,
    ):
        invocation = await engine.invoke(workflow)

        async def watch() -> None:
            seen.append([state.message async for state in invocation.states()])

        for _ in range(3):
            nursery.start_soon(watch)
        nursery.start_soon(anext, invocation.states())
    assert all(messages[-4:] == ["0", "1", "2", "2"] for messages in seen)
    assert len(seen) == 3


async def test_status_messages_are_not_told_again_by_a_replay(place: Place, autojump_clock: object):
    """
    A run that replays does not announce the messages of its first run again, only the last one.
    """

    async def body(ctx: memable.Context) -> None:
        for number in range(5):
            ctx.set_status(str(number))
            await ctx.step(f"step-{number}", nothing)
        await trio.sleep(1)

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow], shutdown_timeout=0) as engine:
        await engine.invoke(workflow, instance_id="i")
        await trio.testing.wait_all_tasks_blocked()
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        seen = [state async for state in engine.subscribe(workflow, "i")]
    assert seen == [memable.InProgress("4"), memable.Completed("4")]


async def test_stream_read_inside_a_body_of_its_own_instance_gives_its_state(autojump_clock: object):
    """
    A body may look at its own instance.
    """
    seen: list[object] = []

    async def body(ctx: memable.Context) -> None:
        ctx.set_status("looking")
        async with engine.subscribe("w", ctx.instance_id) as stream:
            seen.append(await anext(stream))

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        await (await engine.invoke(workflow)).result()
    assert seen == [memable.InProgress("looking")]
