"""
Code errors: what is wrong with the code is no outcome of the work, and never fails what is in flight.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import memable
from running import INSTANCE, ending_of, kinds_of, run_body, run_to_end, workflow_of


async def work(value: str = "done") -> str:
    await trio.lowlevel.checkpoint()
    return value


async def fail() -> None:
    raise ValueError("no")


async def misuse(ctx: memable.Context) -> None:
    """Do something wrong, and catch it as broadly as many do."""
    with suppress(Exception):
        await ctx.step("bad/key", work)


async def test_code_error_is_raised_again_by_what_has_no_memo():
    """
    After a code error, operations without a memo raise it again: a broad ``except`` takes no wrong branch.
    """
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        await misuse(ctx)
        errors = []
        for call in (lambda: ctx.step("a", work), lambda: ctx.step_in_thread("b", int), lambda: ctx.step("a", work)):
            with pytest.raises(memable.InvalidKeyError, match="key 'bad/key' has a '/' at position 3") as caught:
                await call()
            errors.append(caught.value)
        assert len(set(map(id, errors))) == 3

    state = await run_body(body, store=store)
    assert isinstance(state, memable.Blocked)
    assert state.error.type == "memable.InvalidKeyError"
    assert kinds_of(store) == ["instance_started", "instance_blocked"]


async def test_code_error_that_is_raised_again_has_the_same_facts():
    """
    The error that is raised again has the type, the attributes and the text of the first one.
    """

    async def body(ctx: memable.Context) -> None:
        with pytest.raises(memable.InvalidKeyError, match="is of type list, not str") as first:
            await ctx.step([1], work)  # type: ignore[arg-type] # the mistake that is tested
        with pytest.raises(memable.InvalidKeyError, match="is of type list, not str") as second:
            await ctx.step("k", work)
        assert second.value is not first.value
        assert vars(second.value) == vars(first.value)
        assert str(second.value) == str(first.value)
        raise second.value

    state = await run_body(body)
    assert isinstance(state, memable.Blocked)
    assert state.error.type == "memable.InvalidKeyError"


async def test_code_error_does_not_keep_memos_from_being_returned():
    """
    After a code error, operations that have a memo still return it.
    """
    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []
    seen: list[str] = []

    async def body(ctx: memable.Context) -> None:
        if copies:
            await misuse(ctx)
        seen.append(await ctx.step("k", work))
        with suppress(memable.StepFailedError):
            await ctx.step("f", fail)
        seen.append("failed")
        copies.append(store.crashed_copy())

    await run_body(body, store=store)
    assert isinstance(await run_body(body, store=copies[0]), memable.Blocked)
    assert seen == ["done", "failed"] * 2


async def test_code_error_that_was_swallowed_blocks_a_body_that_returns():
    """
    A body that swallowed a code error and returned is Blocked all the same.
    """
    state = await run_body(misuse)
    assert isinstance(state, memable.Blocked)


async def raise_it(error: Exception) -> None:
    raise error


async def raise_as_cause(error: Exception) -> None:
    raise ValueError("from it") from error


async def raise_as_context(error: Exception) -> None:
    try:
        raise error
    except Exception:  # noqa: BLE001 - whatever it is
        raise ValueError("after it") from None


async def raise_in_group(error: Exception) -> None:
    raise ExceptionGroup("g", [ValueError("beside it"), ExceptionGroup("h", [error])])


async def raise_in_a_task(error: Exception) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raise_as_cause, error)


@pytest.mark.parametrize("fn", [raise_it, raise_as_cause, raise_as_context, raise_in_group, raise_in_a_task])
@pytest.mark.parametrize("inside", ["step", "body"])
async def test_code_error_anywhere_in_an_exception_blocks_the_instance(
    inside: str, fn: Callable[[Exception], Awaitable[None]]
):
    """
    A code error among leaves, causes and contexts is no outcome: unrecorded by steps, and the instance is Blocked.
    """
    store = memable.InMemoryStore()
    error = memable.MisuseError(problem="wrong", key="somewhere")

    async def body(ctx: memable.Context) -> None:
        await (ctx.step("k", fn, error) if inside == "step" else fn(error))

    state = await run_body(body, store=store, default_retry=memable.RetryPolicy.fixed(3, 0.0))
    assert isinstance(state, memable.Blocked)
    assert (state.key, state.error.type, state.error.message) == (
        "somewhere",
        "memable.MisuseError",
        "key 'somewhere': wrong",
    )
    assert kinds_of(store) == ["instance_started", "instance_blocked"]


async def test_code_error_out_of_a_step_is_remembered():
    """
    A code error that passed through a step is raised again by operations without a memo.
    """

    async def body(ctx: memable.Context) -> None:
        with suppress(Exception):
            await ctx.step("k", raise_as_cause, memable.WorkflowCodeError("wrong"))
        with pytest.raises(memable.WorkflowCodeError, match=r"^wrong$"):
            await ctx.step("next", work)

    assert isinstance(await run_body(body), memable.Blocked)


async def test_code_error_ends_a_backoff_without_another_attempt(autojump_clock: MockClock):
    """
    A step that waits for its next attempt when a sibling meets a code error makes none.
    """
    calls: list[int] = []

    async def fail_always() -> None:
        calls.append(1)
        raise OSError

    async def body(ctx: memable.Context) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(misuse_later, ctx)
            with pytest.raises(memable.InvalidKeyError, match="bad/key"):
                await ctx.step("k", fail_always, retry=memable.RetryPolicy.fixed(3, 10.0))

    async def misuse_later(ctx: memable.Context) -> None:
        await trio.sleep(5)
        await misuse(ctx)

    assert isinstance(await run_body(body), memable.Blocked)
    assert calls == [1]


@pytest.mark.parametrize("key", ["bad/key", "k"])
async def test_code_error_is_a_checkpoint(key: str):
    """
    A refusal is a checkpoint, too: a loop that swallows it does not stop the world.
    """

    async def body(ctx: memable.Context) -> None:
        await ctx.step("k", work)
        for fn in (work, 3):
            with trio.testing.assert_checkpoints(), pytest.raises(memable.WorkflowCodeError, match="key"):
                await ctx.step(key, fn)  # type: ignore[arg-type] # the mistake that is tested
        with trio.testing.assert_checkpoints(), pytest.raises(memable.WorkflowCodeError, match="key"):
            await ctx.step("other", work)

    assert isinstance(await run_body(body), memable.Blocked)


async def test_code_error_in_an_endless_loop_can_be_cancelled(autojump_clock: MockClock):
    """
    A body that tries again for ever after a code error does not keep the engine from stopping.
    """
    tries: list[int] = []

    async def body(ctx: memable.Context) -> None:
        while True:
            with suppress(Exception):
                await ctx.step("bad/key", work)
            tries.append(1)
            if len(tries) == 10:
                engine_stops.set()

    engine_stops = trio.Event()
    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow], shutdown_timeout=0) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await engine_stops.wait()
    assert len(tries) >= 10


async def test_code_error_leaves_the_instance_to_go_on_with_mended_code():
    """
    Nothing is lost by a code error: with mended code the instance goes on, at the next open or by a resume.
    """
    for by_resume in (False, True):
        store = memable.InMemoryStore()
        calls: list[str] = []
        broken = True

        async def note(name: str, calls: list[str] = calls) -> None:
            calls.append(name)

        async def body(ctx: memable.Context) -> None:
            await ctx.step("a", note, "a")
            if broken:  # noqa: B023 - of this turn
                await ctx.step("bad/key", note, "b")
            await ctx.step("b", note, "b")

        workflow = workflow_of(body)
        async with memable.open_engine(store, workflows=[workflow]) as engine:
            state = await ending_of(await engine.invoke(workflow, instance_id=INSTANCE))
            assert isinstance(state, memable.Blocked)
            broken = False
            if by_resume:
                assert await (await engine.resume(workflow, INSTANCE)).result() is None
        if not by_resume:
            assert await run_to_end(workflow, store=store) == memable.Completed()
        assert calls == ["a", "b"]


# Code that changed under an instance in flight -------------------------------------------------------------------


class Change:
    """A body whose second part replaces what it did in its first run, after the memos ``a`` and, further on, ``b``."""

    def __init__(self) -> None:
        self.store = memable.InMemoryStore()
        self.copies: list[memable.InMemoryStore] = []

    async def run(self, later: Callable[[memable.Context], Awaitable[object]]) -> memable.WorkflowState:
        async def body(ctx: memable.Context) -> None:
            if self.copies:
                await later(ctx)
                return
            await ctx.step("a", work)
            with suppress(memable.StepFailedError):
                await ctx.step("f", fail)
            await ctx.step("b", work)
            self.copies.append(self.store.crashed_copy())

        assert await run_body(body, store=self.store) == memable.Completed()
        return await run_body(body, store=self.copies[0])


async def test_replay_that_fails_before_the_earlier_run_got_is_blocked():
    """
    New code that raises while it replays, with memos unasked, blocks the instance: a bad deploy fails nothing.
    """

    async def later(ctx: memable.Context) -> None:
        await ctx.step("a", work)
        raise KeyError("typo")

    state = await Change().run(later)
    assert isinstance(state, memable.Blocked)
    assert (state.key, state.error.type) == (None, "builtins.KeyError")


async def test_replay_that_fails_behind_all_memos_is_failed():
    """
    An exception that leaves the body once every memo was asked for is the instance's failure, replaying or not.
    """

    async def later(ctx: memable.Context) -> None:
        await ctx.step("a", work)
        with suppress(memable.StepFailedError):
            await ctx.step("f", fail)
        await ctx.step("b", work)
        raise KeyError("gone")

    state = await Change().run(later)
    assert isinstance(state, memable.Failed)
    assert state.error.type == "builtins.KeyError"


async def test_replay_that_got_further_than_its_memos_is_failed():
    """
    Once an operation without a memo has begun, the body is no longer replaying, and what it raises is its failure.
    """

    async def later(ctx: memable.Context) -> None:
        await ctx.step("a", work)
        await ctx.step("new", work)
        raise KeyError("gone")

    assert isinstance(await Change().run(later), memable.Failed)


@pytest.mark.parametrize("wrap", ["plain", "group", "cause"])
async def test_replay_that_ends_with_a_recorded_failure_is_failed(wrap: str):
    """
    A recorded failure that leaves the body fails the instance though memos lie unasked: it is what the work said.
    """

    async def later(ctx: memable.Context) -> None:
        if wrap == "plain":
            await ctx.step("f", fail)
        elif wrap == "group":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ctx.step, "f", fail)
        else:
            try:
                await ctx.step("f", fail)
            except memable.StepFailedError as error:
                raise RuntimeError("told by the failure") from error

    assert isinstance(await Change().run(later), memable.Failed)


async def test_replay_that_breaks_while_it_handles_a_recorded_failure_is_blocked():
    """
    An exception that only happens while a recorded failure is handled is no recorded failure: the code is wrong.
    """

    async def later(ctx: memable.Context) -> None:
        try:
            await ctx.step("f", fail)
        except memable.StepFailedError as error:
            error.no_such_attribute  # type: ignore[attr-defined] # noqa: B018 - the mistake that is tested

    change = Change()
    state = await change.run(later)
    assert isinstance(state, memable.Blocked)
    assert state.error.type == "builtins.AttributeError"


async def test_replay_that_returns_early_is_completed():
    """
    New code may leave steps out: a body that returns is Completed, whatever memos lie unasked.
    """
    assert await Change().run(lambda ctx: ctx.step("a", work)) == memable.Completed()


async def test_first_run_that_fails_is_failed():
    """
    In a first run there is no earlier run: what the body raises is its failure.
    """

    async def body(ctx: memable.Context) -> None:
        await ctx.step("a", work)
        raise KeyError("gone")

    state = await run_body(body)
    assert isinstance(state, memable.Failed)


@pytest.mark.parametrize("changed", ["input", "signature", "annotation"])
async def test_input_that_no_longer_fits_blocks_the_instance(changed: str):
    """
    An input that the new code cannot take blocks the instance before its body runs.
    """
    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []

    @memable.workflow(name="w")
    async def old(ctx: memable.Context, number: int) -> None:
        copies.append(store.crashed_copy())

    async def never(ctx: memable.Context, number: str) -> None:
        raise AssertionError("it ran")

    async def never_more(ctx: memable.Context, number: int, more: int) -> None:
        raise AssertionError("it ran")

    async def never_found(ctx: memable.Context, number: "Nowhere") -> None:  # type: ignore[name-defined] # noqa: F821, UP037
        raise AssertionError("it ran")

    assert await run_to_end(old, 1, store=store) == memable.Completed()
    fn: Any = {"input": never, "signature": never_more, "annotation": never_found}[changed]
    new = memable.workflow(name="w")(fn)
    async with memable.open_engine(copies[0], workflows=[new]) as engine:
        state = await ending_of(await engine.get("w", INSTANCE))
    assert isinstance(state, memable.Blocked)
    assert state.error.type == "memable." + ("TypeMismatchError" if changed == "input" else "MisuseError")
    assert state.error.message.startswith("workflow 'w', instance 'i'") or changed == "annotation"
