"""
Steps under a retry policy: how often they are attempted, and after which failures.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from trio.testing import MockClock

import memable
from failing import Flaky, failure_of
from memable import INHERIT, RetryPolicy
from running import kinds_of, observe_twice, run_body

# Attempts --------------------------------------------------------------------------------------------------------


async def test_retry_tries_again_until_the_function_returns(autojump_clock: MockClock):
    """
    Under a policy a step is attempted until it returns, with the policy's delays in between.
    """
    flaky = Flaky(OSError(), OSError(), OSError())
    policy = RetryPolicy.exponential(5, 1.0)
    assert await observe_twice(lambda ctx: ctx.step("k", flaky, retry=policy, returns=str)) == ("done", "done")
    assert flaky.delays == [1.0, 2.0, 4.0]


async def test_retry_gives_up_when_the_budget_is_used_up(autojump_clock: MockClock):
    """
    A policy that is used up makes the last failure a RetriesExhaustedError, the same on a replay.
    """
    flaky = Flaky(*(OSError(f"no {n}") for n in range(10)))

    async def body(ctx: memable.Context) -> tuple[type, dict[str, Any], str]:
        error = await failure_of(ctx.step("k", flaky, retry=RetryPolicy.fixed(2, 5.0)))
        return type(error), vars(error), str(error)

    live, replayed = await observe_twice(body)
    assert live == replayed
    assert live[0] is memable.RetriesExhaustedError
    assert (live[1]["attempts"], live[1]["retryable"], live[1]["error"].message) == (3, True, "no 2")
    assert "the step failed at all of its 3 attempts, at last with OSError: no 2" in live[2]
    assert flaky.delays == [5.0, 5.0]


async def test_retry_without_a_policy_is_one_attempt():
    """
    Without a policy a step is attempted once, and its failure is a plain StepFailedError.
    """
    flaky = Flaky(OSError())

    async def body(ctx: memable.Context) -> tuple[type, int]:
        error = await failure_of(ctx.step("k", flaky))
        return type(error), error.attempts

    live, replayed = await observe_twice(body)
    assert live == replayed == (memable.StepFailedError, 1)


@pytest.mark.parametrize(
    ("retry", "calls"), [(INHERIT, 3), (None, 1), (RetryPolicy.fixed(1, 0.0), 2), (RetryPolicy.fixed(0, 0.0), 1)]
)
async def test_retry_of_the_step_is_preferred_to_the_default(retry: Any, calls: int, autojump_clock: MockClock):
    """
    A step's own policy counts, None turns retries off, and what is left out is the engine's default.
    """
    flaky = Flaky(*(OSError() for _ in range(10)))
    await run_body(lambda ctx: failure_of(ctx.step("k", flaky, retry=retry)), default_retry=RetryPolicy.fixed(2, 1.0))
    assert flaky.calls == calls


async def test_retry_left_out_is_the_default(autojump_clock: MockClock):
    """
    A step that gives no policy is tried again under the engine's default.
    """
    flaky = Flaky(OSError())
    state = await run_body(lambda ctx: ctx.step("k", flaky), default_retry=RetryPolicy.fixed(2, 1.0))
    assert (state, flaky.calls) == (memable.Completed(), 2)


async def test_retry_budget_may_be_infinite(autojump_clock: MockClock):
    """
    With ``math.inf`` retries a step is attempted until it returns.
    """
    flaky = Flaky(*(OSError() for _ in range(200)))
    policy = RetryPolicy.exponential(math.inf, 1.0, max_delay=60.0)
    assert await run_body(lambda ctx: ctx.step("k", flaky, retry=policy)) == memable.Completed()
    assert flaky.delays[:7] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0]
    assert flaky.delays[-1] == 60.0


async def test_retry_delay_may_be_zero():
    """
    A delay of 0 tries again at once, without waiting.
    """
    flaky = Flaky(OSError(), OSError())
    assert await run_body(lambda ctx: ctx.step("k", flaky, retry=RetryPolicy.fixed(2, 0.0))) == memable.Completed()
    assert flaky.calls == 3


async def test_retry_jitter_stays_within_its_bounds(autojump_clock: MockClock):
    """
    Jitter changes each delay by at most its fraction of it.
    """
    flaky = Flaky(*(OSError() for _ in range(50)))
    policy = RetryPolicy.fixed(50, 10.0, jitter=0.5)
    assert await run_body(lambda ctx: ctx.step("k", flaky, retry=policy)) == memable.Completed()
    assert all(5.0 <= delay <= 15.0 for delay in flaky.delays)
    assert len(set(flaky.delays)) > 1


async def test_retry_attempts_share_one_step_id(autojump_clock: MockClock):
    """
    A retry does not change the step's id.
    """
    ids: list[str] = []

    async def body(ctx: memable.Context) -> None:
        async def fail_once() -> None:
            ids.append(ctx.step_id("k"))
            if len(ids) == 1:
                raise OSError

        await ctx.step("k", fail_once, retry=RetryPolicy.fixed(1, 1.0))

    assert await run_body(body) == memable.Completed()
    assert len(ids) == 2
    assert len(set(ids)) == 1


async def test_retry_of_a_thread_step(autojump_clock: MockClock):
    """
    A blocking step is tried again like any other.
    """
    failures = [OSError(), OSError()]

    def work() -> str:
        if failures:
            raise failures.pop()
        return "done"

    policy = RetryPolicy.fixed(3, 1.0)
    assert await observe_twice(lambda ctx: ctx.step_in_thread("k", work, retry=policy)) == ("done", "done")


# Which failures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retry_on", "exc", "is_retried"),
    [
        (None, ValueError(), True),
        (OSError, ConnectionError(), True),
        (OSError, ValueError(), False),
        ((OSError, KeyError), KeyError(), True),
        ((OSError, KeyError), ValueError(), False),
        ((), ValueError(), False),
        (lambda exc: "again" in str(exc), ValueError("again"), True),
        (lambda exc: "again" in str(exc), ValueError("no"), False),
        (None, memable.PermanentError(), False),
        (memable.PermanentError, memable.PermanentError(), False),
        (OSError, memable.RetryableError(), True),
        (lambda exc: False, memable.RetryableError(), True),
        (OSError, ExceptionGroup("g", [OSError(), ConnectionError()]), True),
        (OSError, ExceptionGroup("g", [OSError(), ValueError()]), False),
        (OSError, ExceptionGroup("g", [OSError(), memable.RetryableError()]), True),
        (None, ExceptionGroup("g", [OSError(), ExceptionGroup("h", [memable.PermanentError()])]), False),
        (None, ExceptionGroup("g", [memable.RetryableError(), memable.PermanentError()]), False),
        (ExceptionGroup, ExceptionGroup("g", [OSError()]), False),
    ],
)
async def test_retry_on_decides_which_failures_are_tried_again(retry_on: Any, exc: Exception, is_retried: bool):
    """
    ``retry_on`` is asked of each leaf, PermanentError never and RetryableError always retries; all leaves must agree.
    """
    flaky = Flaky(exc)
    await run_body(lambda ctx: ctx.step("k", flaky, retry=RetryPolicy.fixed(1, 0.0, retry_on=retry_on)))
    assert flaky.calls == 1 + is_retried


async def test_retry_of_a_permanent_failure_is_told_from_an_exhausted_budget():
    """
    A failure that is not worth another attempt is a plain StepFailedError that is not retryable.
    """

    async def body(ctx: memable.Context) -> tuple[type, bool, int]:
        flaky = Flaky(memable.PermanentError("gone"))
        error = await failure_of(ctx.step("k", flaky, retry=RetryPolicy.fixed(5, 0.0)))
        return type(error), error.retryable, error.attempts

    live, replayed = await observe_twice(body)
    assert live == replayed == (memable.StepFailedError, False, 1)


async def test_retry_without_a_policy_tells_what_is_permanent():
    """
    ``retryable`` tells a PermanentError from other failures, with or without a policy.
    """

    async def body(ctx: memable.Context) -> list[bool]:
        failures = [ValueError(), memable.RetryableError(), memable.PermanentError()]
        return [(await failure_of(ctx.step(f"k{n}", Flaky(failure)))).retryable for n, failure in enumerate(failures)]

    live, replayed = await observe_twice(body)
    assert live == replayed == [True, True, False]


async def test_retry_predicate_is_asked_of_each_leaf():
    """
    A predicate never sees a group, only its leaves.
    """
    asked: list[BaseException] = []
    leaves = [OSError("a"), OSError("b")]

    def agree(exc: BaseException) -> bool:
        asked.append(exc)
        return True

    flaky = Flaky(ExceptionGroup("g", [leaves[0], ExceptionGroup("h", [leaves[1]])]))
    await run_body(lambda ctx: ctx.step("k", flaky, retry=RetryPolicy.fixed(1, 0.0, retry_on=agree)))
    assert asked == leaves


async def test_retry_predicate_that_raises_blocks_the_instance():
    """
    A predicate that raises is wrong code: the instance is Blocked, and nothing is recorded of the attempt.
    """
    store = memable.InMemoryStore()

    def broken(exc: BaseException) -> bool:
        raise LookupError("no such table")

    flaky = Flaky(OSError())
    policy = RetryPolicy.fixed(3, 0.0, retry_on=broken)
    state = await run_body(lambda ctx: ctx.step("k", flaky, retry=policy), store=store)
    assert isinstance(state, memable.Blocked)
    assert state.key == "k"
    assert state.error.message == (
        "workflow 'w', instance 'i', key 'k': the retry_on predicate raised LookupError: no such table; it must "
        "return True or False"
    )
    assert "attempt_failed" not in kinds_of(store)
    assert flaky.calls == 1
