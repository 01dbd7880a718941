"""
Cancellation at every moment of a step: never swallowed, never recorded, never leaving a record half-made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import memable
from memable import RetryPolicy
from memable._records import InstanceRecord
from running import kinds_of, run_body
from stores import HookedStore


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


# By a scope of the user's ----------------------------------------------------------------------------------------


async def test_cancelled_step_is_not_recorded(autojump_clock: MockClock):
    """
    A cancel scope of the user's around a step cancels it; nothing is recorded, and the key may be used again.
    """
    store = memable.InMemoryStore()
    cancelled: list[bool] = []

    async def slow() -> str:
        try:
            await trio.sleep(60)
        finally:
            cancelled.append(trio.current_effective_deadline() == -float("inf"))
        return "slow"

    async def body(ctx: memable.Context) -> None:
        with trio.move_on_after(1) as scope:
            await ctx.step("k", slow)
        assert scope.cancelled_caught
        assert kinds_of(store) == ["instance_started"]
        assert await ctx.step("k", work) == "done"

    assert await run_body(body, store=store) == memable.Completed()
    assert kinds_of(store) == ["instance_started", "step_completed", "instance_completed"]
    assert cancelled == [True]


async def test_cancelled_step_does_not_start():
    """
    In a scope that is cancelled already a step without a memo does not run.
    """

    async def never() -> None:
        raise AssertionError("it ran")

    async def body(ctx: memable.Context) -> None:
        for operation, fn in ((ctx.step, never), (ctx.step_in_thread, int)):
            with trio.CancelScope() as scope:
                scope.cancel()
                await operation("k", fn)  # type: ignore[arg-type, operator] # one of each
            assert scope.cancelled_caught
        assert ctx.replaying is False

    assert await run_body(body) == memable.Completed()


async def test_cancelled_memo_hit_is_cancelled():
    """
    A memo hit is a checkpoint for cancellation, too; the memo can be asked for again.
    """
    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []
    caught: list[bool] = []

    async def body(ctx: memable.Context) -> None:
        if copies:
            with trio.CancelScope() as scope:
                scope.cancel()
                await ctx.step("k", work)
            caught.append(scope.cancelled_caught)
        assert await ctx.step("k", work) == "done"
        copies.append(store.crashed_copy())

    await run_body(body, store=store)
    assert await run_body(body, store=copies[0]) == memable.Completed()
    assert caught == [True]


@pytest.mark.parametrize("fn", [work, fail])
async def test_cancelled_append_is_brought_to_its_end(fn: Any, autojump_clock: MockClock):
    """
    Once the append has begun the outcome is recorded, and then Cancelled is delivered; the memo answers from then on.
    """
    store = slow_store()
    outcomes: list[object] = []
    calls: list[int] = []

    async def once() -> Any:
        calls.append(1)
        return await fn()

    async def body(ctx: memable.Context) -> None:
        with trio.move_on_after(0.5) as scope:
            await ctx.step("k", once)
        assert scope.cancelled_caught
        try:
            outcomes.append(await ctx.step("k", once))
        except memable.StepFailedError as error:
            outcomes.append(error.error.message)

    assert await run_body(body, store=store) == memable.Completed()
    assert outcomes == ["done" if fn is work else "no"]
    assert calls == [1]


async def test_cancelled_in_the_append_of_a_failed_attempt(autojump_clock: MockClock):
    """
    An attempt whose failure was being recorded when it was cancelled counts, and its backoff goes on.
    """
    store = slow_store()
    failures = [OSError()]
    called_at: list[float] = []

    async def fail_once() -> str:
        called_at.append(trio.current_time())
        if failures:
            raise failures.pop()
        return "done"

    async def body(ctx: memable.Context) -> None:
        policy = RetryPolicy.fixed(1, 10.0)
        with trio.move_on_after(0.5) as scope:
            await ctx.step("k", fail_once, retry=policy)
        assert scope.cancelled_caught
        assert await ctx.step("k", fail_once, retry=policy) == "done"

    assert await run_body(body, store=store) == memable.Completed()
    # That the suspended instance goes on is durable before it does, which takes this store a second.
    assert [later - called_at[0] for later in called_at] == [0.0, 11.0]


async def test_cancelled_backoff_keeps_its_due_time(autojump_clock: MockClock):
    """
    A backoff that was cancelled goes on where it was when the key is used again.
    """
    failures = [OSError()]
    called_at: list[float] = []

    async def fail_once() -> str:
        called_at.append(trio.current_time())
        if failures:
            raise failures.pop()
        return "done"

    async def body(ctx: memable.Context) -> None:
        policy = RetryPolicy.fixed(1, 10.0)
        with trio.move_on_after(4) as scope:
            await ctx.step("k", fail_once, retry=policy)
        assert scope.cancelled_caught
        assert await ctx.step("k", fail_once, retry=policy) == "done"

    assert await run_body(body) == memable.Completed()
    assert called_at == [0.0, 10.0]


async def test_cancelled_by_a_sibling_that_fails(autojump_clock: MockClock):
    """
    A step in a nursery is cancelled when another task of it fails; nothing of it is recorded.
    """
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        with pytest.RaisesGroup(memable.StepFailedError):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ctx.step, "slow", trio.sleep, 60)
                await trio.sleep(1)
                await ctx.step("fail", fail)

    assert await run_body(body, store=store) == memable.Completed()
    assert kinds_of(store) == ["instance_started", "step_failed", "instance_completed"]


async def test_cancelled_function_that_returns_is_recorded():
    """
    A function that returns in spite of its cancellation has done its work: that is recorded, then Cancelled raised.
    """
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        with trio.CancelScope() as scope:

            async def finish() -> str:
                scope.cancel()
                with trio.CancelScope(shield=True):
                    await trio.lowlevel.checkpoint()
                return "finished"

            await ctx.step("k", finish)
        assert scope.cancelled_caught
        assert await ctx.step("k", work) == "finished"

    assert await run_body(body, store=store) == memable.Completed()
    assert kinds_of(store) == ["instance_started", "step_completed", "instance_completed"]


async def test_cancelled_function_that_raises_another_error_is_not_recorded():
    """
    An exception that a cancelled function makes of its cancellation is no outcome: Cancelled is delivered.
    """
    store = memable.InMemoryStore()

    async def convert() -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            raise ConnectionError("closed") from None

    async def body(ctx: memable.Context) -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ctx.step, "k", convert)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught
        assert await ctx.step("k", work) == "done"

    assert await run_body(body, store=store) == memable.Completed()
    assert kinds_of(store) == ["instance_started", "step_completed", "instance_completed"]


async def test_cancelled_group_with_an_error_is_no_outcome(autojump_clock: MockClock):
    """
    Of a group of Cancelled and an error the scope takes its part, and the error comes out unrecorded, as in trio.
    """
    store = memable.InMemoryStore()

    async def fail_late() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("late")

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(fail_late)

    async def body(ctx: memable.Context) -> None:
        with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="late"), flatten_subgroups=True):
            with trio.move_on_after(1):
                await ctx.step("k", both)
        assert await ctx.step("k", work) == "done"

    assert await run_body(body, store=store) == memable.Completed()
    assert kinds_of(store) == ["instance_started", "step_completed", "instance_completed"]


async def test_cancelled_group_with_a_code_error_blocks_the_instance(autojump_clock: MockClock):
    """
    A code error beside Cancelled in a group is not lost: operations without a memo raise it again.
    """

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(misuse_late)
            await trio.sleep_forever()

    async def misuse_late() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise memable.WorkflowCodeError("the step is wrong")

    async def body(ctx: memable.Context) -> None:
        try:
            with trio.move_on_after(1):
                await ctx.step("k", both)
        except ExceptionGroup:
            pass
        await ctx.step("next", work)

    state = await run_body(body)
    assert isinstance(state, memable.Blocked)
    assert state.error.message == "the step is wrong"


async def test_cancelled_outer_scope_passes_through_a_shielded_function(autojump_clock: MockClock):
    """
    A shielded function is brought to its end, then the cancellation from outside is delivered.
    """
    store = memable.InMemoryStore()
    ended: list[float] = []

    async def shielded() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)
        ended.append(trio.current_time())
        await trio.sleep(60)

    async def body(ctx: memable.Context) -> None:
        with trio.move_on_after(1) as scope:
            await ctx.step("k", shielded)
        assert scope.cancelled_caught

    assert await run_body(body, store=store) == memable.Completed()
    assert (ended, kinds_of(store)) == ([5.0], ["instance_started", "instance_completed"])


async def test_cancelled_exception_that_was_kept_and_raised_late_harms_nobody():
    """
    A Cancelled that code kept and raises where nothing is cancelled fails its own instance only.
    """

    async def keep() -> None:
        kept: list[BaseException] = []
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as cancelled:
                kept.append(cancelled)
                raise
        raise kept[0]

    store = memable.InMemoryStore()
    state = await run_body(lambda ctx: ctx.step("k", keep), store=store)
    assert isinstance(state, memable.Failed)
    assert kinds_of(store) == ["instance_started", "instance_failed"]
