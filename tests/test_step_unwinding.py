"""
Steps of a body that is unwound: because the instance is cancelled, the engine stops, or the store has failed.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

import memable
from memable import RetryPolicy
from memable._records import InstanceRecord
from running import INSTANCE, ending_of, kinds_of, run_body, run_to_end, workflow_of
from stores import HookedStore, failing_at


def slow_store() -> HookedStore:
    """Return a store whose appends take a second each."""

    async def wait(records: Sequence[InstanceRecord]) -> None:
        await trio.sleep(1)

    return HookedStore(before_append=wait)


async def work(value: str = "done") -> str:
    await trio.lowlevel.checkpoint()
    return value


async def fail() -> None:
    raise ValueError("no")


# By the engine ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["cancel", "stop"])
async def test_cancelled_by_the_engine_in_the_function(operation: str, autojump_clock: MockClock):
    """
    ``engine.cancel`` and the end of the engine cancel the function of a step; nothing of it is recorded.
    """
    store = memable.InMemoryStore()
    leaving: list[object] = []

    async def body(ctx: memable.Context) -> None:
        async def slow() -> None:
            try:
                await trio.sleep_forever()
            finally:
                leaving.append(ctx.leaving)

        await ctx.step("k", slow)

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.sleep(1)
        if operation == "cancel":
            assert await engine.cancel(workflow, INSTANCE, reason="enough")
            assert await engine.state(workflow, INSTANCE) == memable.Cancelled("enough")
        else:
            await engine.stop(timeout=0)
    assert leaving == ["cancelled" if operation == "cancel" else "stopping"]
    expected = ["instance_started", "cancel_requested", "instance_cancelled"]
    assert kinds_of(store) == (expected if operation == "cancel" else expected[:1])


async def test_cancelled_by_the_engine_in_the_append(autojump_clock: MockClock):
    """
    An outcome whose append had begun when the engine stopped is recorded; the next run has its memo.
    """
    store = slow_store()
    calls: list[int] = []

    async def once() -> None:
        calls.append(1)

    workflow = workflow_of(lambda ctx: ctx.step("k", once))
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.sleep(0.5)
        assert calls == [1]
        await engine.stop(timeout=0)
    kept = store.inner
    assert isinstance(kept, memable.InMemoryStore)
    assert kinds_of(kept) == ["instance_started", "step_completed"]
    assert await run_to_end(workflow, store=kept) == memable.Completed()
    assert calls == [1]


async def test_cancelled_by_the_engine_in_a_backoff(autojump_clock: MockClock):
    """
    ``engine.cancel`` ends a backoff at once.
    """
    workflow = workflow_of(lambda ctx: ctx.step("k", fail, retry=RetryPolicy.fixed(9, 1_000.0)))
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        assert isinstance(await invocation.wait(), memable.Suspended)
        assert await engine.cancel(workflow, INSTANCE)
        assert await invocation.wait() == memable.Cancelled()
    assert trio.current_time() < 1_000.0


@pytest.mark.parametrize("reason", ["cancelled", "stopping"])
async def test_cancelled_body_that_shields_itself_begins_nothing_new(reason: str, autojump_clock: MockClock):
    """
    While a body is unwound, an operation without a memo does not run, shielded or not; one with a memo is answered.
    """
    store = memable.InMemoryStore()
    seen: list[object] = []

    async def body(ctx: memable.Context) -> None:
        await ctx.step("before", work)
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                with pytest.raises(memable.RunEndedError, match=rf"being unwound \({reason}\)") as caught:
                    await ctx.step("cleanup", work)
                seen.append(caught.value.leaving)
                with pytest.raises(memable.RunEndedError, match=r"ctx.step_in_thread did nothing"):
                    await ctx.step_in_thread("cleanup in thread", int)

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.sleep(1)
        if reason == "cancelled":
            await engine.cancel(workflow, INSTANCE)
        else:
            await engine.stop(timeout=0)
    assert seen == [reason]
    assert kinds_of(store).count("step_completed") == 1


async def test_cancelled_instance_may_ask_for_memos(autojump_clock: MockClock):
    """
    A body that is unwound may still ask, shielded, for what is recorded.
    """
    store = memable.InMemoryStore()
    seen: list[str] = []
    with_memos = False

    async def body(ctx: memable.Context) -> None:
        if not with_memos:
            await ctx.step("k", work)
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                if with_memos:
                    seen.append(await ctx.step("k", work))

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow], shutdown_timeout=0) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.sleep(1)
    with_memos = True
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await trio.sleep(1)
        await engine.cancel(workflow, INSTANCE)
    assert seen == ["done"]


async def test_cancelled_shielded_failure_is_not_recorded(autojump_clock: MockClock):
    """
    A failure of a shielded step while the body is unwound is no outcome: the next run makes the attempt again.
    """
    store = memable.InMemoryStore()
    failures = [ValueError("disturbed")]

    async def shielded() -> str:
        await trio.sleep(5)
        if failures:
            raise failures.pop()
        return "done"

    async def body(ctx: memable.Context) -> None:
        with trio.CancelScope(shield=True):
            await ctx.step("k", shielded)

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.sleep(1)
        await engine.stop(timeout=0)
    assert kinds_of(store) == ["instance_started"]
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        assert await ending_of(await engine.get(workflow, INSTANCE)) == memable.Completed()


async def test_cancelled_shielded_value_is_recorded(autojump_clock: MockClock):
    """
    A value that a shielded step returns while the body is unwound is recorded.
    """
    store = memable.InMemoryStore()
    calls: list[int] = []

    async def shielded() -> None:
        calls.append(1)
        await trio.sleep(5)

    async def body(ctx: memable.Context) -> None:
        with trio.CancelScope(shield=True):
            await ctx.step("k", shielded)

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.sleep(1)
        await engine.stop(timeout=0)
    assert kinds_of(store) == ["instance_started", "step_completed"]
    assert await run_to_end(workflow, store=store) == memable.Completed()
    assert calls == [1]


async def test_cancelled_backoff_of_a_shielded_step_makes_no_other_attempt(autojump_clock: MockClock):
    """
    A backoff that is shielded from the end of the engine ends without another attempt.
    """
    calls: list[int] = []

    async def fail_always() -> None:
        calls.append(1)
        raise OSError

    async def body(ctx: memable.Context) -> None:
        async def shielded() -> None:
            with trio.CancelScope(shield=True):
                await ctx.step("k", fail_always, retry=RetryPolicy.fixed(9, 10.0))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(shielded)

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.sleep(5)
        await engine.stop(timeout=0)
    assert calls == [1]


# By a store that fails -------------------------------------------------------------------------------------------


async def test_failed_append_stops_the_engine_and_acknowledges_nothing():
    """
    A step whose outcome cannot be stored is never acknowledged: the engine stops, shielded bodies get RunEndedError.
    """
    seen: list[object] = []

    async def body(ctx: memable.Context) -> None:
        with trio.CancelScope(shield=True):
            with pytest.raises(memable.RunEndedError, match=r"unwound \(stopping\)"):
                await ctx.step("shielded", work)
            seen.append(ctx.leaving)
        try:
            await ctx.step("plain", work)
        except BaseException as error:
            seen.append(type(error))
            raise

    kept = memable.InMemoryStore()
    with pytest.raises(memable.StorageError, match="no space left"):
        await run_body(body, store=failing_at("step_completed", kept))
    assert seen == ["stopping", trio.Cancelled]
    assert kinds_of(kept) == ["instance_started"]


async def test_failed_append_of_the_end_leaves_the_instance_running():
    """
    An instance whose end cannot be stored has not ended: the next open runs it again, over its memos.
    """
    kept = memable.InMemoryStore()
    calls: list[int] = []

    async def once() -> None:
        calls.append(1)

    workflow = workflow_of(lambda ctx: ctx.step("k", once))
    with pytest.raises(memable.StorageError, match="no space left"):
        await run_to_end(workflow, store=failing_at("instance_completed", kept))
    assert await run_to_end(workflow, store=kept) == memable.Completed()
    assert calls == [1]
