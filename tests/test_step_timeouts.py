"""
Steps with a timeout: a cancel scope around each attempt.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import memable
from memable import RetryPolicy
from running import INSTANCE, kinds_of, observe_twice, run_body


async def timeout_of(awaitable: Any) -> memable.StepTimeoutError:
    with pytest.raises(memable.StepTimeoutError, match="its timeout of") as caught:
        await awaitable
    return caught.value


async def test_timeout_cancels_the_function(autojump_clock: MockClock):
    """
    A function that takes longer than its timeout is cancelled then, and the step fails with a StepTimeoutError.
    """

    async def body(ctx: memable.Context) -> tuple[type, dict[str, Any], str]:
        error = await timeout_of(ctx.step("k", trio.sleep, 60, timeout=2.5))
        return type(error), vars(error), str(error)

    live, replayed = await observe_twice(body)
    assert live == replayed
    assert live[0] is memable.StepTimeoutError
    assert live[1]["error"].type == "builtins.TimeoutError"
    assert live[1]["error"].message == "took longer than its timeout of 2.5 s"
    assert live[2].startswith("workflow 'w', instance 'i', key 'k': the step timed out with TimeoutError: took longer")
    assert trio.current_time() == 2.5


async def test_timeout_is_caught_as_what_the_language_calls_it(autojump_clock: MockClock):
    """
    A StepTimeoutError is a StepFailedError and a TimeoutError, live and on a replay.
    """

    async def body(ctx: memable.Context) -> tuple[bool, bool]:
        with pytest.raises(TimeoutError, match="its timeout of 1 s") as caught:
            await ctx.step("k", trio.sleep, 60, timeout=1)
        error = caught.value
        assert isinstance(error, memable.StepFailedError)
        return error.matches(TimeoutError), error.retryable

    assert await observe_twice(body) == ((True, True), (True, True))


async def test_timeout_applies_to_each_attempt(autojump_clock: MockClock):
    """
    The timeout is for one attempt: a retry has all of it again.
    """
    started: list[float] = []

    async def work() -> str:
        started.append(trio.current_time())
        await trio.sleep(60 if len(started) < 3 else 9)
        return "done"

    policy = RetryPolicy.fixed(5, 1.0)
    assert await observe_twice(lambda ctx: ctx.step("k", work, timeout=10, retry=policy)) == ("done", "done")
    assert started == [0.0, 11.0, 22.0]


async def test_timeout_at_the_last_attempt_is_both_errors(autojump_clock: MockClock):
    """
    A budget that ends with a timeout is a RetriesExhaustedError and a StepTimeoutError at once.
    """

    async def body(ctx: memable.Context) -> tuple[bool, int, str]:
        error = await timeout_of(ctx.step("k", trio.sleep, 60, timeout=1, retry=RetryPolicy.fixed(2, 1.0)))
        return isinstance(error, memable.RetriesExhaustedError), error.attempts, str(error)

    live, replayed = await observe_twice(body)
    assert live == replayed
    assert live[:2] == (True, 3)
    assert "failed at all of its 3 attempts, timing out at last with TimeoutError" in live[2]


async def test_timeout_before_another_failure_is_not_the_outcome(autojump_clock: MockClock):
    """
    Which error a used-up budget is, is decided by its last attempt.
    """
    attempts: list[int] = []

    async def work() -> None:
        attempts.append(1)
        if len(attempts) == 1:
            await trio.sleep(60)
        raise ValueError("at last")

    async def body(ctx: memable.Context) -> type:
        with pytest.raises(memable.RetriesExhaustedError, match="at last") as caught:
            await ctx.step("k", work, timeout=1, retry=RetryPolicy.fixed(1, 1.0))
        return type(caught.value)

    assert await observe_twice(body) == (memable.RetriesExhaustedError,) * 2


@pytest.mark.parametrize(
    ("policy", "calls"),
    [
        (RetryPolicy.fixed(2, 1.0, retry_timeouts=False), 1),
        (RetryPolicy.fixed(2, 1.0, retry_on=TimeoutError), 3),
        (RetryPolicy.fixed(2, 1.0, retry_on=memable.StepTimeoutError), 3),
        (RetryPolicy.fixed(2, 1.0, retry_on=ConnectionError), 1),
        (RetryPolicy.fixed(2, 1.0, retry_on=lambda exc: isinstance(exc, TimeoutError)), 3),
        (RetryPolicy.fixed(2, 1.0, retry_on=TimeoutError, retry_timeouts=False), 1),
    ],
)
async def test_timeout_is_retried_as_the_policy_says(policy: RetryPolicy, calls: int, autojump_clock: MockClock):
    """
    A timeout is retried like any failure, unless ``retry_timeouts`` turns that off.
    """
    made: list[int] = []

    async def work() -> None:
        made.append(1)
        await trio.sleep(60)

    await run_body(lambda ctx: timeout_of(ctx.step("k", work, timeout=1, retry=policy)))
    assert len(made) == calls


async def test_timeout_error_of_the_function_is_no_timeout_of_the_step(autojump_clock: MockClock):
    """
    A TimeoutError that the function itself raises is an ordinary failure, also for ``retry_timeouts``.
    """
    calls: list[int] = []

    async def work() -> None:
        calls.append(1)
        raise TimeoutError("the server's")

    async def body(ctx: memable.Context) -> type:
        with pytest.raises(memable.RetriesExhaustedError, match="the server's") as caught:
            await ctx.step("k", work, timeout=1, retry=RetryPolicy.fixed(1, 1.0, retry_timeouts=False))
        return type(caught.value)

    assert await observe_twice(body) == (memable.RetriesExhaustedError,) * 2
    assert len(calls) == 2


async def test_timeout_of_another_step_that_is_raised_again_is_an_ordinary_failure(autojump_clock: MockClock):
    """
    A step whose function raises another step's StepTimeoutError did not time out itself.
    """

    async def body(ctx: memable.Context) -> tuple[type, str]:
        timed_out = await timeout_of(ctx.step("slow", trio.sleep, 60, timeout=1))

        async def fail() -> None:
            raise timed_out

        with pytest.raises(memable.StepFailedError, match="key 'other'") as caught:
            await ctx.step("other", fail)
        return type(caught.value), caught.value.error.type

    live, replayed = await observe_twice(body)
    assert live == replayed == (memable.StepFailedError, "memable.StepTimeoutError")


async def test_timeout_that_the_function_swallows_is_no_failure(autojump_clock: MockClock):
    """
    As with any cancel scope of trio's: a function that returns in spite of its cancellation has returned.
    """

    async def work() -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(60)
        return "late"

    async def body(ctx: memable.Context) -> str:
        return await ctx.step("k", work, timeout=1)

    assert await observe_twice(body) == ("late", "late")


async def test_timeout_that_the_function_makes_another_error_of_is_that_failure(autojump_clock: MockClock):
    """
    A function that answers its timeout with an exception of its own fails with that one.
    """

    async def work() -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            raise ConnectionError("gave up") from None

    async def body(ctx: memable.Context) -> tuple[type, bool]:
        with pytest.raises(memable.StepFailedError, match="gave up") as caught:
            await ctx.step("k", work, timeout=1)
        return type(caught.value), caught.value.matches(ConnectionError)

    assert await observe_twice(body) == ((memable.StepFailedError, True),) * 2


async def test_timeout_with_a_failure_beside_it_is_that_failure(autojump_clock: MockClock):
    """
    Of a group of a cancellation by the timeout and a failure, the failure is what the step failed with.
    """

    async def fail_late() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("late")

    async def work() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(fail_late)

    async def body(ctx: memable.Context) -> tuple[type, bool]:
        with pytest.raises(memable.StepFailedError, match="the step failed") as caught:
            await ctx.step("k", work, timeout=1)
        return type(caught.value), caught.value.matches(ValueError)

    assert await observe_twice(body) == ((memable.StepFailedError, True),) * 2


async def test_timeout_does_not_hide_a_cancellation_from_outside(autojump_clock: MockClock):
    """
    Where a scope of the user's ends at the same moment, the step is cancelled and nothing is recorded.
    """
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        with trio.move_on_after(1) as scope:
            await ctx.step("k", trio.sleep, 60, timeout=1)
        assert scope.cancelled_caught
        await ctx.step("k", trio.sleep, 0)

    assert await run_body(body, store=store) == memable.Completed()
    assert kinds_of(store) == ["instance_started", "step_completed", "instance_completed"]


@pytest.mark.parametrize("timeout", [0, 0.0])
async def test_timeout_of_zero_lets_the_function_run_to_its_first_checkpoint(timeout: float):
    """
    A timeout of 0 cancels at the function's first checkpoint, as trio's own scopes do.
    """

    async def quick() -> str:
        return "quick"

    async def body(ctx: memable.Context) -> str:
        await timeout_of(ctx.step("slow", trio.sleep, 60, timeout=timeout))
        return await ctx.step("quick", quick, timeout=timeout)

    assert await observe_twice(body) == ("quick", "quick")


async def test_timeout_may_be_infinite(autojump_clock: MockClock):
    """
    A timeout of ``math.inf`` is none.
    """
    assert await run_body(lambda ctx: ctx.step("k", trio.sleep, 1e6, timeout=math.inf)) == memable.Completed()


@pytest.mark.parametrize("timeout", [-1, -0.001, math.nan, -math.inf, "1", True, 10**400, [1]])
@pytest.mark.parametrize("operation", ["step", "step_in_thread"])
async def test_timeout_that_is_no_number_of_seconds_is_a_misuse(operation: str, timeout: Any):
    """
    A timeout that is negative, NaN or no number is wrong code, found before the function runs.
    """
    called: list[int] = []

    async def work() -> None:
        called.append(1)

    async def body(ctx: memable.Context) -> None:
        fn = work if operation == "step" else lambda: called.append(1)
        await getattr(ctx, operation)("k", fn, timeout=timeout)

    state = await run_body(body)
    assert isinstance(state, memable.Blocked)
    assert state.key == "k"
    assert state.error.type == "memable.MisuseError"
    assert state.error.message.startswith("workflow 'w', instance 'i', key 'k': timeout is ")
    assert state.error.message.endswith("; give seconds, at least 0, or None for no limit")
    assert called == []


@pytest.mark.parametrize("settings", [{"timeout": -1}, {"retry": 3}, {"timeout": "soon", "retry": "often"}])
async def test_timeout_and_retry_do_not_matter_to_a_memo(settings: dict[str, Any]):
    """
    A recorded value is returned whatever timeout and retry the code gives now.
    """
    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []

    async def fetch() -> int:
        return 1

    async def body(ctx: memable.Context) -> None:
        assert await ctx.step("k", fetch, **settings if copies else {}) == 1
        copies.append(store.crashed_copy())

    await run_body(body, store=store)
    assert await run_body(body, store=copies[0]) == memable.Completed()
    assert len(copies) == 2


async def test_timeout_leaves_the_instance_failed(autojump_clock: MockClock):
    """
    A timeout that nobody catches fails the instance, and a resume runs the step again.
    """
    seconds = [60.0, 0.0]
    store = memable.InMemoryStore()

    async def work() -> None:
        await trio.sleep(seconds.pop(0))

    @memable.workflow
    async def slow(ctx: memable.Context) -> None:
        await ctx.step("k", work, timeout=1)

    async with memable.open_engine(store, workflows=[slow]) as engine:
        invocation = await engine.invoke(slow, instance_id=INSTANCE)
        with pytest.raises(memable.WorkflowFailedError, match="the step timed out") as caught:
            await invocation.result()
        assert caught.value.matches(TimeoutError)
        assert await (await engine.resume(slow, INSTANCE)).result() is None
