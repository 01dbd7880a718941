"""
The wait between two attempts at a step, and what a crash leaves of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

import memable
from failing import Flaky, failure_of
from memable import RetryPolicy
from running import INSTANCE, ending_of, kinds_of, run_body, workflow_of

# Backoff ---------------------------------------------------------------------------------------------------------


async def test_backoff_is_a_wait(autojump_clock: MockClock):
    """
    While a step of the body waits for its next attempt, the instance is Suspended at the step's key until then.
    """
    flaky = Flaky(OSError())
    store = memable.InMemoryStore()
    workflow = workflow_of(lambda ctx: ctx.step("k", flaky, retry=RetryPolicy.fixed(1, 3_600.0)))
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        state = await invocation.wait()
        assert isinstance(state, memable.Suspended)
        assert (state.key, state.waits) == ("k", ("k",))
        metadata = await engine.metadata("w", INSTANCE)
        assert metadata is not None
        assert metadata.status is memable.MetadataStatus.SUSPENDED
        assert state.deadline is not None
        assert (state.deadline - metadata.updated_at).total_seconds() == pytest.approx(3_600.0)
        assert await ending_of(invocation) == memable.Completed()


async def test_backoff_is_not_waited_for_when_the_block_is_left(autojump_clock: MockClock):
    """
    Leaving the engine's block does not wait for a backoff; the next open goes on with it.
    """
    flaky = Flaky(OSError())
    store = memable.InMemoryStore()
    workflow = workflow_of(lambda ctx: ctx.step("k", flaky, retry=RetryPolicy.fixed(1, 100.0)))
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await (await engine.invoke(workflow, instance_id=INSTANCE)).wait()
    assert trio.current_time() < 100.0
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        assert await ending_of(await engine.get("w", INSTANCE)) == memable.Completed()
    assert flaky.delays == [100.0]


async def test_backoff_is_no_wait_while_another_step_executes(autojump_clock: MockClock):
    """
    A run with a step executing in any of its tasks is not waiting, though its body waits for a retry.
    """
    flaky = Flaky(OSError())
    states: list[memable.WorkflowState] = []

    async def body(ctx: memable.Context) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ctx.step, "long", trio.sleep, 50)
            await ctx.step("k", flaky, retry=RetryPolicy.fixed(1, 100.0))

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        for moment in (10, 60, 110):
            await trio.sleep(moment - trio.current_time())
            states.append(await engine.state("w", INSTANCE))
    assert [type(state) for state in states] == [memable.Started, memable.Suspended, memable.Completed]


async def test_backoff_beside_an_executing_step_is_waited_for_when_the_block_is_left(autojump_clock: MockClock):
    """
    Leaving the engine's block waits for a step that executes, though the body itself is in a backoff.
    """
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ctx.step, "long", trio.sleep, 50)
            await ctx.step("k", Flaky(OSError()), retry=RetryPolicy.fixed(1, 100.0))

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.sleep(10)
    assert trio.current_time() == 50.0
    assert kinds_of(store) == ["instance_started", "attempt_failed", "step_completed", "instance_suspended"]


async def test_backoff_in_a_task_of_its_own_works(autojump_clock: MockClock):
    """
    A step in a task of a nursery is tried again, too; several backoffs go on at once.
    """
    flaky = [Flaky(OSError()) for _ in range(3)]

    async def body(ctx: memable.Context) -> None:
        async with trio.open_nursery() as nursery:
            for n, one in enumerate(flaky):
                nursery.start_soon(retry, ctx, f"k{n}", one)

    async def retry(ctx: memable.Context, key: str, fn: Callable[[], Awaitable[str]]) -> None:
        await ctx.step(key, fn, retry=RetryPolicy.fixed(1, 7.0))

    assert await run_body(body) == memable.Completed()
    assert [one.delays for one in flaky] == [[7.0]] * 3


async def crash_in_backoff(store: memable.InMemoryStore, workflow: memable.Workflow[[], None]) -> memable.InMemoryStore:
    """Start the workflow, and return what a crash leaves of the store 10 s into its first backoff."""
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await (await engine.invoke(workflow, instance_id=INSTANCE)).wait()
        await trio.sleep(10)
        return store.crashed_copy()


async def test_backoff_survives_a_crash(autojump_clock: MockClock):
    """
    A crash in the middle of a backoff neither restarts nor shortens it.
    """
    flaky = Flaky(OSError())
    workflow = workflow_of(lambda ctx: ctx.step("k", flaky, retry=RetryPolicy.fixed(1, 100.0)))
    crashed = await crash_in_backoff(memable.InMemoryStore(), workflow)
    await trio.sleep(20)
    async with memable.open_engine(crashed, workflows=[workflow]) as engine:
        assert await ending_of(await engine.get("w", INSTANCE)) == memable.Completed()
    assert flaky.delays == [100.0]


async def test_backoff_that_passed_while_the_process_was_down_is_due_at_once(autojump_clock: MockClock):
    """
    An attempt that was due while no engine ran is made as soon as one does.
    """
    flaky = Flaky(OSError())
    workflow = workflow_of(lambda ctx: ctx.step("k", flaky, retry=RetryPolicy.fixed(1, 100.0)))
    crashed = await crash_in_backoff(memable.InMemoryStore(), workflow)
    await trio.sleep(1_000)
    async with memable.open_engine(crashed, workflows=[workflow]) as engine:
        assert await ending_of(await engine.get("w", INSTANCE)) == memable.Completed()
    assert flaky.delays == [1_010.0]


async def test_retry_budget_survives_a_crash(autojump_clock: MockClock):
    """
    A crash does not refill the budget: the attempts before it count.
    """
    flaky = Flaky(*(OSError() for _ in range(10)))
    attempts: list[int] = []

    async def body(ctx: memable.Context) -> None:
        attempts.append((await failure_of(ctx.step("k", flaky, retry=RetryPolicy.fixed(2, 100.0)))).attempts)

    workflow = workflow_of(body)
    store = memable.InMemoryStore()
    for _ in range(2):
        async with memable.open_engine(store, workflows=[workflow]) as engine:
            await engine.invoke(workflow, instance_id=INSTANCE)
            await trio.sleep(60)
            store = store.crashed_copy()
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        assert await ending_of(await engine.get("w", INSTANCE)) == memable.Completed()
    assert (attempts, flaky.calls) == ([3], 3)


async def test_retry_interrupted_attempt_does_not_count(autojump_clock: MockClock):
    """
    An attempt during which the process died was no failure: it is made again under its number.
    """
    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []
    attempts: list[int] = []

    async def fail() -> None:
        copies.append(store.crashed_copy())
        raise OSError

    async def body(ctx: memable.Context) -> None:
        attempts.append((await failure_of(ctx.step("k", fail, retry=RetryPolicy.fixed(1, 1.0)))).attempts)

    workflow = workflow_of(body)
    await run_body(body, store=store)
    assert len(copies) == 2
    async with memable.open_engine(copies[1], workflows=[workflow]) as engine:
        assert await ending_of(await engine.get("w", INSTANCE)) == memable.Completed()
    assert attempts == [2, 2]


@pytest.mark.parametrize(
    ("later", "calls", "attempts", "kind"),
    [
        (None, 2, 2, memable.StepFailedError),
        (RetryPolicy.fixed(0, 1.0), 2, 2, memable.RetriesExhaustedError),
        (RetryPolicy.fixed(4, 1.0), 5, 5, memable.RetriesExhaustedError),
        (RetryPolicy.fixed(4, 1.0, retry_on=ValueError), 2, 2, memable.StepFailedError),
    ],
    ids=["none", "fewer", "more", "others"],
)
async def test_retry_policy_may_change_between_runs(
    later: RetryPolicy | None, calls: int, attempts: int, kind: type, autojump_clock: MockClock
):
    """
    The attempt that is due is made; whether another one follows is for the policy of the new code.
    """
    flaky = Flaky(*(OSError() for _ in range(10)))
    policies: list[RetryPolicy | None] = [RetryPolicy.fixed(2, 100.0)]
    seen: list[tuple[int, type]] = []

    async def body(ctx: memable.Context) -> None:
        error = await failure_of(ctx.step("k", flaky, retry=policies[0]))
        seen.append((error.attempts, type(error)))

    crashed = await crash_in_backoff(memable.InMemoryStore(), workflow_of(body))
    policies[0] = later
    async with memable.open_engine(crashed, workflows=[workflow_of(body)]) as engine:
        assert await ending_of(await engine.get("w", INSTANCE)) == memable.Completed()
    assert (seen, flaky.calls, flaky.delays[0]) == ([(attempts, kind)], calls, 100.0)


async def test_retry_resume_gives_a_fresh_budget(autojump_clock: MockClock):
    """
    A resume gives the step whose failure left the body its whole budget again.
    """
    flaky = Flaky(*(OSError() for _ in range(5)))
    store = memable.InMemoryStore()
    workflow = workflow_of(lambda ctx: ctx.step("k", flaky, retry=RetryPolicy.fixed(2, 1.0)))
    assert isinstance(
        await run_body(lambda ctx: ctx.step("k", flaky, retry=RetryPolicy.fixed(2, 1.0)), store=store), memable.Failed
    )
    assert flaky.calls == 3
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        assert await ending_of(await engine.resume("w", INSTANCE)) == memable.Completed()
    assert flaky.calls == 6


async def test_backoff_state_lasts_no_longer_than_the_wait(autojump_clock: MockClock):
    """
    Once the next attempt executes, the instance is no longer Suspended.
    """
    states: list[memable.WorkflowState] = []

    async def body(ctx: memable.Context) -> None:
        ctx.set_status("working")
        failures = [OSError()]

        async def fail_once() -> None:
            states.append(await engine.state("w", INSTANCE))
            if failures:
                raise failures.pop()

        await ctx.step("k", fail_once, retry=RetryPolicy.fixed(1, 5.0))

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        suspended = await invocation.wait()
        assert isinstance(suspended, memable.Suspended)
        assert suspended.status == "working"
        assert await ending_of(invocation) == memable.Completed("working")
    assert states == [memable.InProgress("working")] * 2
