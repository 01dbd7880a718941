"""
What a context tells: who the instance is, whether it replays, and its status.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import memable
from running import INSTANCE, ending_of, run_body, run_to_end, workflow_of


async def work(value: str = "done") -> str:
    await trio.lowlevel.checkpoint()
    return value


async def fail() -> None:
    raise ValueError("no")


class Loud(str):
    """A string of the user's own."""

    __slots__ = ()


async def test_context_names_its_instance():
    """
    A context knows the names of its workflow and its instance.
    """
    seen: list[tuple[str, str, str]] = []

    async def body(ctx: memable.Context) -> None:
        seen.append((ctx.workflow_name, ctx.instance_id, repr(ctx)))

    await run_body(body)
    assert seen == [("w", "i", "<memable.Context of workflow 'w', instance 'i'>")]


# Replaying -------------------------------------------------------------------------------------------------------


class Crashing:
    """A workflow of three steps that crashes behind a number of them, and runs again; notes what a probe tells."""

    def __init__(self, probe: Callable[[memable.Context], object]) -> None:
        self.probe = probe
        self.store = memable.InMemoryStore()
        self.copies: list[memable.InMemoryStore] = []
        self.seen: list[list[object]] = []

    async def body(self, ctx: memable.Context) -> None:
        seen: list[object] = [self.probe(ctx)]
        self.seen.append(seen)
        for key in ("a", "b", "c"):
            await ctx.step(key, work, key)
            seen.append(self.probe(ctx))
            if len(self.seen) == 1:
                self.copies.append(self.store.crashed_copy())


async def test_replaying_is_false_in_a_first_run():
    """
    An instance's first run does not replay.
    """
    crashing = Crashing(lambda ctx: ctx.replaying)
    await run_body(crashing.body, store=crashing.store)
    assert crashing.seen == [[False, False, False, False]]


@pytest.mark.parametrize("steps", [1, 2, 3])
async def test_replaying_is_true_until_the_first_operation_without_a_memo(steps: int):
    """
    A later run replays until the first operation that has no memo.
    """
    crashing = Crashing(lambda ctx: ctx.replaying)
    await run_body(crashing.body, store=crashing.store)
    await run_body(crashing.body, store=crashing.copies[steps - 1])
    assert crashing.seen[1] == [True] * (steps + 1) + [False] * (3 - steps)


async def test_replaying_is_true_in_a_run_after_a_crash_without_memos():
    """
    A run after a crash replays until its first operation, though there is nothing to return.
    """
    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []
    seen: list[bool] = []

    async def body(ctx: memable.Context) -> None:
        seen.append(ctx.replaying)
        copies.append(store.crashed_copy())
        await ctx.step("k", work)
        seen.append(ctx.replaying)

    await run_body(body, store=store)
    await run_body(body, store=copies[0])
    assert seen == [False, False, True, False]


async def test_replaying_ends_with_a_resumed_step():
    """
    A failed step that a resume runs again is an operation without a memo.
    """
    seen: list[bool] = []

    async def body(ctx: memable.Context) -> None:
        await ctx.step("a", work)
        seen.append(ctx.replaying)
        await ctx.step("f", fail_once)
        seen.append(ctx.replaying)

    failures = [ValueError("no")]

    async def fail_once() -> None:
        if failures:
            raise failures.pop()

    store = memable.InMemoryStore()
    await run_body(body, store=store)
    async with memable.open_engine(store, workflows=[workflow := workflow_of(body)]) as engine:
        await ending_of(await engine.resume(workflow, INSTANCE))
    assert seen == [False, True, False]


# Status ----------------------------------------------------------------------------------------------------------


async def test_status_is_shown_at_once():
    """
    A status message is the instance's state as soon as it is set.
    """
    states: list[memable.WorkflowState] = []

    async def body(ctx: memable.Context) -> None:
        states.append(await engine.state("w", INSTANCE))
        for message in ("half", "nearly", ""):
            ctx.set_status(message)
            states.append(await engine.state("w", INSTANCE))

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        assert await ending_of(await engine.invoke(workflow, instance_id=INSTANCE)) == memable.Completed("")
    assert states == [
        memable.Started(),
        memable.InProgress("half"),
        memable.InProgress("nearly"),
        memable.InProgress(""),
    ]


async def test_status_is_persisted_with_the_next_memo():
    """
    A status message survives a crash once a memo was recorded behind it, and not before.
    """
    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []

    async def body(ctx: memable.Context) -> None:
        ctx.set_status("half")
        copies.append(store.crashed_copy())
        await ctx.step("k", work)
        copies.append(store.crashed_copy())

    workflow = workflow_of(body)
    await run_body(body, store=store)
    messages = []
    for copy in copies:
        async with memable.open_engine(copy, workflows=[workflow], resume_on_start=False) as engine:
            metadata = await engine.metadata("w", INSTANCE)
            assert metadata is not None
            messages.append(metadata.message)
    assert messages == [None, "half"]


@pytest.mark.parametrize("ending", ["failed memo", "failed attempt", "completed", "failed", "blocked"])
async def test_status_is_persisted_with_any_record(ending: str, autojump_clock: MockClock):
    """
    A failure, a failed attempt and the end of the instance carry the status message as well.
    """
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        ctx.set_status("half")
        if ending == "failed memo":
            with pytest.raises(memable.StepFailedError, match="no"):
                await ctx.step("k", fail)
        elif ending == "failed attempt":
            with trio.move_on_after(1):
                await ctx.step("k", fail, retry=memable.RetryPolicy.fixed(1, 5.0))
        elif ending == "failed":
            raise ValueError("no")
        elif ending == "blocked":
            await ctx.step("a/b", work)

    await run_body(body, store=store)
    assert {getattr(record, "status", None) for record in store._records} == {None, "half"}


async def test_status_is_not_announced_again_while_replaying():
    """
    While a body replays, the messages that it sets anew are not shown; the last one is, as soon as it goes on.
    """
    crashing = Crashing(lambda ctx: None)
    shown: list[memable.WorkflowState] = []
    gate = trio.Event()

    async def body(ctx: memable.Context) -> None:
        if crashing.copies:
            shown.append(await engine.state("w", INSTANCE))
        for key in ("a", "b"):
            ctx.set_status(f"at {key}")
            if crashing.copies:
                shown.append(await engine.state("w", INSTANCE))
            await ctx.step(key, work)
        if not crashing.copies:
            crashing.copies.append(crashing.store.crashed_copy())
            return
        ctx.set_status("at c")
        shown.append(await engine.state("w", INSTANCE))
        await ctx.step("c", gate.wait)

    workflow = workflow_of(body)
    await run_body(body, store=crashing.store)
    async with memable.open_engine(crashing.copies[0], workflows=[workflow], resume_on_start=False) as engine:
        invocation = await engine.resume(workflow, INSTANCE)
        await trio.testing.wait_all_tasks_blocked()
        shown.append(await engine.state("w", INSTANCE))
        gate.set()
        assert await ending_of(invocation) == memable.Completed("at c")
    assert shown == [memable.InProgress("at b")] * 4 + [memable.InProgress("at c")]


async def test_status_set_behind_the_last_memo_is_announced_by_the_end():
    """
    A message that a replaying body sets before it returns is the message of the end.
    """
    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []

    async def body(ctx: memable.Context) -> None:
        await ctx.step("k", work)
        if copies:
            ctx.set_status("all done")
        copies.append(store.crashed_copy())

    assert await run_body(body, store=store) == memable.Completed(None)
    assert await run_body(body, store=copies[0]) == memable.Completed("all done")


async def test_status_of_a_str_subclass_is_plain_text():
    """
    A message of a subclass of str is recorded as the text that it holds.
    """
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        ctx.set_status(Loud("half"))
        await ctx.step("k", work)

    await run_body(body, store=store)
    (status,) = [record.status for record in store._records if getattr(record, "status", None) is not None]
    assert (type(status), status) == (str, "half")


@pytest.mark.parametrize("message", [None, 3, b"half", ["half"]])
async def test_status_that_is_no_text_is_a_misuse(message: Any):
    """
    A status message is a str; anything else is wrong code.
    """

    async def body(ctx: memable.Context) -> None:
        with pytest.raises(TypeError, match=f"set_status takes a str, not {type(message).__name__}"):
            ctx.set_status(message)

    state = await run_body(body)
    assert isinstance(state, memable.Blocked)
    assert state.error.type == "memable.MisuseError"


async def test_reason_of_a_str_subclass_is_plain_text(autojump_clock: MockClock):
    """
    The reason of a cancellation is recorded as the text that it holds, too.
    """
    store = memable.InMemoryStore()
    workflow = workflow_of(lambda ctx: trio.sleep_forever())  # noqa: ASYNC105 - awaited by the body
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        assert await engine.cancel(workflow, INSTANCE, reason=Loud("enough"))
    assert {type(record.reason) for record in store._records if hasattr(record, "reason")} == {str}


# Leaving ---------------------------------------------------------------------------------------------------------


async def test_leaving_is_none_while_the_body_is_not_unwound(autojump_clock: MockClock):
    """
    ``leaving`` tells why a body is unwound, and None until then; a scope of the user's is no reason.
    """
    seen: list[object] = []

    async def body(ctx: memable.Context) -> None:
        seen.append(ctx.leaving)
        with trio.move_on_after(1):
            try:
                await trio.sleep_forever()
            finally:
                seen.append(ctx.leaving)
        try:
            await trio.sleep_forever()
        finally:
            seen.append(ctx.leaving)

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.sleep(5)
        await engine.cancel(workflow, INSTANCE)
    assert seen == [None, None, "cancelled"]


async def test_context_may_be_used_in_any_task_of_the_body():
    """
    Tasks of the body use the same context, each with keys of its own.
    """

    @memable.workflow
    async def spread(ctx: memable.Context) -> list[str]:
        found: list[str] = []

        async def one(key: str) -> None:
            ctx.set_status(key)
            found.append(await ctx.step(key, work, key))

        async with trio.open_nursery() as nursery:
            for key in ("a", "b"):
                nursery.start_soon(one, key)
        return sorted(found)

    state = await run_to_end(spread)
    assert isinstance(state, memable.Completed)
