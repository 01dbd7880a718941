"""
What is true of every retry policy.
"""

from __future__ import annotations

import math
from typing import Any

from hypothesis import assume, example, given
from hypothesis import strategies as st

import memable
from memable._decide import GiveUp, TryAgain, decide_failure
from memable._related import leaves_of
from memable._retry import RetryPolicy, is_retryable

seconds = st.floats(0, 1e6) | st.integers(0, 10**6)
uniforms = st.floats(0, 1, exclude_max=True)
retry_counts = st.integers(0, 50) | st.just(math.inf)
policies = st.builds(
    RetryPolicy,
    max_retries=retry_counts,
    delay=seconds,
    multiplier=st.floats(1, 1e3),
    max_delay=seconds,
    jitter=st.floats(0, 1),
    retry_on=st.sampled_from([None, OSError, (KeyError, ConnectionError), lambda exc: isinstance(exc, KeyError)]),
    retry_timeouts=st.booleans(),
)
leaves = st.sampled_from([OSError, ConnectionError, KeyError, memable.PermanentError, memable.RetryableError]).map(
    lambda cls: cls("x")
)
exceptions: st.SearchStrategy[Any] = st.recursive(
    leaves, lambda inner: st.lists(inner, min_size=1, max_size=4).map(lambda some: ExceptionGroup("g", some))
)


@given(retries=retry_counts, base=seconds, limit=seconds, jitter=st.floats(0, 1), n=st.integers(0, 30), u=uniforms)
def test_delay_is_the_formula_of_the_contract(  # noqa: PLR0917 - the numbers of the formula
    retries: float, base: float, limit: float, jitter: float, n: int, u: float
):
    """
    Delay n from 0 is ``min(max_delay, base * 2**n)`` times a factor within the jitter.
    """
    delay = RetryPolicy.exponential(retries, base, max_delay=limit, jitter=jitter).delay_before_retry(n, u)
    plain = min(limit, base * 2**n)
    assert plain * (1 - jitter) * 0.999999 <= delay <= plain * (1 + jitter) * 1.000001


@given(policy=policies, n=st.integers(0, 10**9), u=uniforms)
@example(policy=RetryPolicy(delay=1e6, multiplier=1e3, jitter=1.0), n=10**9, u=0.999)  # a power beyond every float
def test_delay_is_finite_and_bounded(policy: RetryPolicy, n: int, u: float):
    """
    However many retries there were, a delay is within its limit, jitter aside, and not negative.
    """
    assert 0 <= policy.delay_before_retry(n, u) <= policy.max_delay * (1 + policy.jitter)


@given(policy=policies, n=st.integers(0, 1_000))
def test_delays_do_not_shrink(policy: RetryPolicy, n: int):
    """
    Without luck, each delay is at least as long as the one before.
    """
    assert policy.delay_before_retry(n, 0.5) <= policy.delay_before_retry(n + 1, 0.5)


@given(policy=policies.filter(lambda policy: policy.max_retries < math.inf), exc=exceptions, u=uniforms)
def test_budget_is_used_up_after_exactly_so_many_retries(policy: RetryPolicy, exc: Exception, u: float):
    """
    A failure that is worth it is tried again exactly ``max_retries`` times; any other, never.
    """
    attempt = 1
    while isinstance(
        decision := decide_failure(exc, timed_out=False, attempt=attempt, policy=policy, uniform=u), TryAgain
    ):
        attempt += 1
    assert isinstance(decision, GiveUp)
    assert attempt == (1 + policy.max_retries if is_retryable(policy, exc) else 1)


@given(policy=policies | st.none(), exc=exceptions)
def test_group_is_retryable_if_each_leaf_is(policy: RetryPolicy | None, exc: Exception):
    """
    A group is worth another attempt exactly if each of its leaves is, alone.
    """
    assert is_retryable(policy, exc) == all(is_retryable(policy, leaf) for leaf in leaves_of(exc))


@given(policy=policies, exc=exceptions)
def test_permanent_leaf_decides_for_the_whole(policy: RetryPolicy, exc: Exception):
    """
    One permanent leaf makes a failure permanent, whatever the policy and the other leaves say.
    """
    assume(any(isinstance(leaf, memable.PermanentError) for leaf in leaves_of(exc)))
    assert not is_retryable(policy, exc)
