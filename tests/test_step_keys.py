"""
One key, one use: what counts as a use, and where a context may not be used at all.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import memable
from running import INSTANCE, kinds_of, observe_twice, run_body, workflow_of


async def work(value: str = "done") -> str:
    await trio.lowlevel.checkpoint()
    return value


async def fail() -> None:
    raise ValueError("no")


# Duplicates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [work, fail])
@pytest.mark.parametrize("operation", ["step", "step_in_thread"])
async def test_key_used_a_second_time_is_refused(first: Any, operation: str):
    """
    A key that a step has used, successfully or not, is a DuplicateKeyError the second time, live as on a replay.
    """

    async def body(ctx: memable.Context) -> None:
        with contextlib.suppress(memable.StepFailedError):
            await ctx.step("k", first)
        with pytest.raises(memable.DuplicateKeyError, match="key 'k': this run has used the key before"):
            await getattr(ctx, operation)("k", int if operation == "step_in_thread" else work)

    state = await run_body(body)
    assert isinstance(state, memable.Blocked)
    assert state.key == "k"


async def test_key_used_at_once_in_two_tasks_is_refused():
    """
    The second of two tasks that use a key at once gets a DuplicateKeyError; the first one's outcome is recorded.
    """
    store = memable.InMemoryStore()
    refused: list[str] = []

    async def body(ctx: memable.Context) -> None:
        async def one() -> None:
            try:
                await ctx.step("k", work)
            except memable.DuplicateKeyError as error:
                refused.append(error.key)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            nursery.start_soon(one)

    assert isinstance(await run_body(body, store=store), memable.Blocked)
    assert refused == ["k"]
    assert kinds_of(store) == ["instance_started", "step_completed", "instance_blocked"]


async def test_key_in_use_stays_in_use_when_another_use_was_refused(autojump_clock: MockClock):
    """
    A refused second use does not free the key of the first.
    """
    refused: list[str] = []

    async def body(ctx: memable.Context) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ctx.step, "k", trio.sleep, 60)
            for _ in range(3):
                await trio.sleep(1)
                with pytest.raises(memable.DuplicateKeyError, match="key 'k'") as caught:
                    await ctx.step("k", work)
                refused.append(caught.value.key)

    assert isinstance(await run_body(body), memable.Blocked)
    assert refused == ["k"] * 3


async def test_key_of_a_recorded_step_is_used_once_per_run():
    """
    A memo hit is a use like any other: a replay asks for each key once, too.
    """
    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []

    async def body(ctx: memable.Context) -> None:
        for _ in range(1 + len(copies)):
            await ctx.step("k", work)
        copies.append(store.crashed_copy())

    assert await run_body(body, store=store) == memable.Completed()
    assert isinstance(await run_body(body, store=copies[0]), memable.Blocked)


async def test_key_of_a_refused_use_is_free_again():
    """
    A use that was refused does not count as one: what is Blocked is the code, not the key.
    """
    errors: list[str] = []

    async def body(ctx: memable.Context) -> None:
        for _ in range(2):
            with pytest.raises(memable.WorkflowCodeError, match="key 'k'") as caught:
                await ctx.step("k", 3)  # type: ignore[arg-type] # the mistake that is tested
            errors.append(type(caught.value).__name__)

    await run_body(body)
    assert errors == ["MisuseError", "MisuseError"]


async def test_key_of_a_step_may_become_one_of_a_thread():
    """
    Both kinds of steps are steps: an outcome recorded by one is returned by the other.
    """
    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []
    seen: list[str] = []

    async def body(ctx: memable.Context) -> None:
        if copies:
            seen.append(await ctx.step_in_thread("k", str, "never"))
        else:
            seen.append(await ctx.step("k", work))
        copies.append(store.crashed_copy())

    await run_body(body, store=store)
    await run_body(body, store=copies[0])
    assert seen == ["done", "done"]


@pytest.mark.parametrize("key", ["", "_k", "a/b", "a\n", "\ud800", "x" * 256, 1, None, b"k"])
async def test_key_that_breaks_the_rule_blocks_the_instance(key: Any):
    """
    A key that breaks the rule is wrong code wherever it is given, found before anything runs.
    """

    async def never() -> None:
        raise AssertionError("it ran")

    state = await run_body(lambda ctx: ctx.step(key, never))
    assert isinstance(state, memable.Blocked)
    assert state.key is None
    assert state.error.type == "memable.InvalidKeyError"


# Inside a step ---------------------------------------------------------------------------------------------------


async def nested_step(ctx: memable.Context) -> None:
    await ctx.step("inner", work)


async def nested_thread(ctx: memable.Context) -> None:
    await ctx.step_in_thread("inner", int)


async def nested_status(ctx: memable.Context) -> None:
    ctx.set_status("inside")


async def nested_task(ctx: memable.Context) -> None:
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(nested_step, ctx)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


async def nested_from_thread(ctx: memable.Context) -> None:
    await trio.to_thread.run_sync(lambda: trio.from_thread.run(nested_step, ctx))


@pytest.mark.parametrize("fn", [nested_step, nested_thread, nested_status, nested_task, nested_from_thread])
async def test_context_inside_a_step_is_refused(fn: Any):
    """
    Using the context inside a step, in a task of it or in a thread of it, is a NestedStepError; nothing is recorded.
    """
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        with pytest.raises(memable.NestedStepError, match=r"key 'outer': ctx.* was called inside this step") as caught:
            await ctx.step("outer", fn, ctx)
        assert caught.value.key == "outer"

    state = await run_body(body, store=store, default_retry=memable.RetryPolicy.fixed(3, 0.0))
    assert isinstance(state, memable.Blocked)
    assert (state.key, state.error.type) == ("outer", "memable.NestedStepError")
    assert kinds_of(store) == ["instance_started", "instance_blocked"]


async def test_context_inside_a_blocking_step_is_refused():
    """
    A blocking step that comes back from its thread to use the context is refused as well.
    """

    def nested(ctx: memable.Context) -> None:
        trio.from_thread.run(nested_step, ctx)

    state = await run_body(lambda ctx: ctx.step_in_thread("outer", nested, ctx))
    assert isinstance(state, memable.Blocked)
    assert (state.key, state.error.type) == ("outer", "memable.NestedStepError")


@pytest.mark.parametrize("answer", ["value", "error"])
async def test_context_inside_a_step_that_catches_the_refusal(answer: str):
    """
    A step that catches the refusal and goes on has no outcome all the same.
    """
    store = memable.InMemoryStore()

    async def stubborn(ctx: memable.Context) -> str:
        refused = False
        try:
            await ctx.step("inner", work)
        except Exception:  # noqa: BLE001 - whatever it is
            refused = True
        assert refused
        if answer == "error":
            raise ValueError("went on")
        return "went on"

    async def body(ctx: memable.Context) -> None:
        with pytest.raises(memable.NestedStepError, match="key 'outer'"):
            await ctx.step("outer", stubborn, ctx)

    assert isinstance(await run_body(body, store=store), memable.Blocked)
    assert kinds_of(store) == ["instance_started", "instance_blocked"]


async def test_context_inside_a_step_does_not_spoil_its_siblings(autojump_clock: MockClock):
    """
    A step that executes while another one is refused keeps its outcome: its work is done.
    """
    store = memable.InMemoryStore()

    async def slow() -> str:
        await trio.sleep(5)
        return "slow"

    async def stubborn(ctx: memable.Context) -> None:
        with pytest.raises(memable.NestedStepError, match="outer"):
            await ctx.step("inner", work)

    async def body(ctx: memable.Context) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ctx.step, "slow", slow)
            await trio.sleep(1)
            with pytest.raises(memable.NestedStepError, match="outer"):
                await ctx.step("outer", stubborn, ctx)

    assert isinstance(await run_body(body, store=store), memable.Blocked)
    assert kinds_of(store) == ["instance_started", "step_completed", "instance_blocked"]


async def test_context_facts_may_be_read_inside_a_step():
    """
    What a context says about its instance may be read inside a step, the step's id included.
    """

    async def read(ctx: memable.Context) -> list[object]:
        return [ctx.workflow_name, ctx.instance_id, ctx.step_id("k"), ctx.leaving]

    async def body(ctx: memable.Context) -> bool:
        return await ctx.step("k", read, ctx) == ["w", "i", ctx.step_id("k"), None]

    assert await observe_twice(body) == (True, True)


async def test_context_is_free_again_behind_a_step():
    """
    Once a step has ended, its task may use the context; so may tasks that it did not start.
    """

    async def body(ctx: memable.Context) -> None:
        await ctx.step("a", work)
        with pytest.raises(memable.StepFailedError, match="no"):
            await ctx.step("b", fail)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ctx.step, "c", work)
        await ctx.step_in_thread("d", int)

    assert await run_body(body) == memable.Completed()


# After the run ---------------------------------------------------------------------------------------------------


async def test_context_after_its_run_is_refused():
    """
    A context that leaked out of its run does nothing any more, and records nothing.
    """
    store = memable.InMemoryStore()
    contexts: list[memable.Context] = []

    async def body(ctx: memable.Context) -> None:
        contexts.append(ctx)

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await (await engine.invoke(workflow, instance_id=INSTANCE)).result()
        (ctx,) = contexts
        for call in (lambda: ctx.step("k", work), lambda: ctx.step_in_thread("k", int)):
            with trio.testing.assert_checkpoints(), pytest.raises(memable.RunEndedError, match="ended") as caught:
                await call()
        assert str(caught.value) == (
            "workflow 'w', instance 'i': ctx.step_in_thread did nothing: this run has ended; use the context only "
            "inside the workflow's body and its nurseries"
        )
        with pytest.raises(memable.RunEndedError, match=r"ctx\.set_status did nothing"):
            ctx.set_status("late")
        assert await engine.state(workflow, INSTANCE) == memable.Completed()
    assert kinds_of(store) == ["instance_started", "instance_completed"]


async def test_context_of_an_earlier_run_is_refused_in_a_later_one():
    """
    A context of an earlier run stays refused while the instance runs again.
    """
    contexts: list[memable.Context] = []

    async def body(ctx: memable.Context) -> None:
        contexts.append(ctx)
        with pytest.raises(memable.RunEndedError, match="this run has ended"):
            await contexts[0].step("k", work)

    async def first(ctx: memable.Context) -> None:
        contexts.append(ctx)
        raise ValueError("once")

    store = memable.InMemoryStore()
    await run_body(first, store=store)
    async with memable.open_engine(store, workflows=[workflow := workflow_of(body)]) as engine:
        assert await (await engine.resume(workflow, INSTANCE)).result() is None


async def test_step_that_outlives_its_run_is_not_recorded(autojump_clock: MockClock):
    """
    A step in a task that outlives the body records nothing after the run has ended.
    """
    store = memable.InMemoryStore()
    errors: list[str] = []

    async def leak(ctx: memable.Context) -> None:
        with pytest.raises(memable.RunEndedError, match="this run has ended") as caught:
            await ctx.step("slow", trio.sleep, 60)
        errors.append(caught.value.operation)

    async with trio.open_nursery() as nursery:

        async def body(ctx: memable.Context) -> None:
            nursery.start_soon(leak, ctx)
            await trio.sleep(1)

        assert await run_body(body, store=store) == memable.Completed()
    assert errors == ["step"]
    assert kinds_of(store) == ["instance_started", "instance_completed"]


async def test_step_that_outlives_its_run_is_not_tried_again(autojump_clock: MockClock):
    """
    A step whose backoff outlives its run makes no other attempt.
    """
    calls: list[int] = []

    async def fail_always() -> None:
        calls.append(1)
        raise OSError

    async def leak(ctx: memable.Context) -> None:
        with pytest.raises(memable.RunEndedError, match="this run has ended"):
            await ctx.step("k", fail_always, retry=memable.RetryPolicy.fixed(5, 10.0))

    async with trio.open_nursery() as nursery:

        async def body(ctx: memable.Context) -> None:
            nursery.start_soon(leak, ctx)
            await trio.sleep(1)

        assert await run_body(body) == memable.Completed()
    assert calls == [1]
