"""
Retry policies: which arguments make sense, the delays, and what of an exception counts.
"""

from __future__ import annotations

import copy
import math
import pickle
import sys
from typing import Any

import attrs
import pytest

import memable
from memable._retry import INHERIT, Inherit, RetryPolicy, is_retryable

POLICY = RetryPolicy()


def timeout(key: str = "k") -> memable.StepTimeoutError:
    return memable.StepTimeoutError(
        workflow="w",
        instance_id="i",
        key=key,
        error=memable.ErrorInfo("builtins.TimeoutError", "late"),
        attempts=1,
        retryable=True,
    )


# Arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-1, -0.5, math.nan, -math.inf, True, 1.5, "3", None])
def test_policy_refuses_a_senseless_number_of_retries(value: Any):
    """
    The number of retries is an int of at least 0, or infinite.
    """
    for make in (RetryPolicy.fixed, RetryPolicy.exponential):
        with pytest.raises(ValueError, match=r"max_retries must be an int, at least 0, or math\.inf, not "):
            make(value, 1.0)


@pytest.mark.parametrize("value", [-1, -0.5, math.nan, math.inf, True, "3", None, 10**400])
def test_policy_refuses_a_senseless_delay(value: Any):
    """
    Delays are finite numbers of seconds, at least 0.
    """
    for make in (RetryPolicy.fixed, RetryPolicy.exponential):
        with pytest.raises(ValueError, match="delay must be a finite number of seconds, at least 0, not "):
            make(1, value)
    with pytest.raises(ValueError, match="max_delay must be a finite number of seconds, at least 0, not "):
        RetryPolicy.exponential(1, 1.0, max_delay=value)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, True, "0.5"])
def test_policy_refuses_a_senseless_jitter(value: Any):
    """
    Jitter is a fraction.
    """
    for make in (RetryPolicy.fixed, RetryPolicy.exponential):
        with pytest.raises(ValueError, match="jitter must be a number from 0 to 1, not "):
            make(1, 1.0, jitter=value)


@pytest.mark.parametrize("value", [0.5, math.nan, math.inf, True, "2", 10**400])
def test_policy_refuses_a_senseless_multiplier(value: Any):
    """
    Delays never shrink, and their multiplier is finite.
    """
    with pytest.raises(ValueError, match="multiplier must be a finite number, at least 1, not "):
        RetryPolicy(multiplier=value)


async def ask(exc: BaseException) -> bool:
    return False


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (3, "an exception type, a tuple of those or a predicate"),
        ("OSError", "an exception type, a tuple of those or a predicate"),
        (int, "an exception type, a tuple of those or a predicate"),
        ((OSError, int), "an exception type, a tuple of those or a predicate"),
        ((OSError, "x"), "an exception type, a tuple of those or a predicate"),
        ([OSError], "an exception type, a tuple of those or a predicate"),
        (ask, "a predicate that is not async"),
    ],
)
def test_policy_refuses_a_senseless_retry_on(value: Any, problem: str):
    """
    ``retry_on`` is an exception type, a tuple of those, or a predicate whose answer is no coroutine.
    """
    with pytest.raises(ValueError, match=f"retry_on must be {problem}, not "):
        RetryPolicy.fixed(1, 1.0, retry_on=value)


@pytest.mark.parametrize("value", [None, OSError, (OSError, KeyError), (), bool, lambda exc: True])
def test_policy_takes_every_kind_of_retry_on(value: Any):
    """
    Types, tuples of them and predicates are taken; ``bool`` is a class, but no exception.
    """
    if value is bool:
        with pytest.raises(ValueError, match="retry_on"):
            RetryPolicy.fixed(1, 1.0, retry_on=value)
    else:
        assert RetryPolicy.exponential(1, 1.0, retry_on=value).retry_on is value


def test_policy_is_a_frozen_value():
    """
    Policies are equal by value, cannot be changed, and can be pickled and copied.
    """
    policy = RetryPolicy.exponential(3, 0.5, max_delay=8.0, jitter=0.1, retry_on=OSError, retry_timeouts=False)
    assert policy == RetryPolicy(
        max_retries=3,
        delay=0.5,
        multiplier=2.0,
        max_delay=8.0,
        jitter=0.1,
        retry_on=OSError,
        retry_timeouts=False,
    )
    assert pickle.loads(pickle.dumps(policy)) == copy.deepcopy(policy) == policy  # noqa: S301 - its own
    with pytest.raises(attrs.exceptions.FrozenInstanceError, match=r"can.t set attribute"):
        policy.delay = 1.0  # type: ignore[misc] # the mistake that is tested


def test_policy_positional_arguments_are_the_two_of_the_contract():
    """
    A policy's options are keyword-only behind the number of retries and the first delay.
    """
    with pytest.raises(TypeError, match="positional"):
        RetryPolicy.fixed(1, 1.0, 0.5)  # type: ignore[misc] # the mistake that is tested
    with pytest.raises(TypeError, match="positional"):
        RetryPolicy(1)  # type: ignore[misc] # the mistake that is tested


def test_inherit_is_one_value():
    """
    ``INHERIT`` is a value of its own, prints as what to write, and stays itself in copies.
    """
    assert INHERIT is Inherit.INHERIT is memable.INHERIT
    assert repr(INHERIT) == "memable.INHERIT"
    assert pickle.loads(pickle.dumps(INHERIT)) is copy.deepcopy(INHERIT) is INHERIT  # noqa: S301 - its own


# Delays ----------------------------------------------------------------------------------------------------------


def test_delay_of_a_fixed_policy_is_always_the_same():
    """
    A fixed policy waits the same before each retry.
    """
    policy = RetryPolicy.fixed(3, 45.0)
    assert [policy.delay_before_retry(n, 0.5) for n in (0, 1, 2, 1_000)] == [45.0] * 4


def test_delay_of_an_exponential_policy_doubles_up_to_its_limit():
    """
    Delay n from 0 is ``min(max_delay, base * 2**n)``; the limit is 30 s if nothing is said.
    """
    policy = RetryPolicy.exponential(9, 1.5)
    assert [policy.delay_before_retry(n, 0.0) for n in range(7)] == [1.5, 3.0, 6.0, 12.0, 24.0, 30.0, 30.0]
    assert RetryPolicy.exponential(9, 50, max_delay=20).delay_before_retry(0, 0.0) == 20.0


@pytest.mark.parametrize(("uniform", "delay"), [(0.0, 7.5), (0.25, 8.75), (0.5, 10.0), (0.75, 11.25)])
def test_delay_is_spread_by_jitter(uniform: float, delay: float):
    """
    Jitter multiplies a delay with a uniform factor in [1 - jitter, 1 + jitter], the limit notwithstanding.
    """
    assert RetryPolicy.fixed(1, 10.0, jitter=0.25).delay_before_retry(0, uniform) == delay


@pytest.mark.parametrize("index", [1_023, 1_024, 10**6, 10**400])
def test_delay_does_not_overflow(index: int):
    """
    After however many retries a delay is a finite number.
    """
    assert RetryPolicy.exponential(math.inf, 1.0).delay_before_retry(index, 0.0) == 30.0
    assert RetryPolicy.exponential(math.inf, 0.0).delay_before_retry(index, 0.0) == 0.0
    huge = RetryPolicy.exponential(math.inf, 1e308, max_delay=sys.float_info.max, jitter=1.0)
    assert huge.delay_before_retry(index, 0.99) == sys.float_info.max


def test_budget_counts_the_retries():
    """
    ``max_retries`` counts the attempts behind the first.
    """
    assert [RetryPolicy.fixed(2, 1.0).has_retry(attempt) for attempt in (1, 2, 3)] == [True, True, False]
    assert RetryPolicy.fixed(0, 1.0).has_retry(1) is False
    assert RetryPolicy.fixed(math.inf, 1.0).has_retry(10**9) is True


# What counts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "exc", "retryable"),
    [
        (None, ValueError(), True),
        (None, memable.PermanentError(), False),
        (None, memable.RetryableError(), True),
        (POLICY, ValueError(), True),
        (POLICY, timeout(), True),
        (RetryPolicy(retry_timeouts=False), timeout(), False),
        (RetryPolicy(retry_timeouts=False), TimeoutError(), True),
        (RetryPolicy(retry_on=TimeoutError), timeout(), True),
        (RetryPolicy(retry_on=KeyError), timeout(), False),
        (RetryPolicy(retry_on=KeyError), memable.RetryableError(), True),
        (RetryPolicy(retry_on=lambda exc: []), ValueError(), False),
        (RetryPolicy(retry_on=lambda exc: "yes"), ValueError(), True),  # type: ignore[arg-type, return-value] # truthy
        (POLICY, ExceptionGroup("g", [ValueError(), ExceptionGroup("h", [KeyError()])]), True),
        (POLICY, ExceptionGroup("g", [ValueError(), ExceptionGroup("h", [memable.PermanentError()])]), False),
    ],
)
def test_failure_is_retryable_as_the_policy_says(policy: RetryPolicy | None, exc: BaseException, retryable: bool):
    """
    A permanent leaf decides against, a retryable one for itself, and the policy on the rest; all must agree.
    """
    assert is_retryable(policy, exc) is retryable


def test_failure_of_a_subclass_counts_like_its_class():
    """
    Errors of the user's own that derive from PermanentError and RetryableError count as those.
    """

    class GoneError(memable.PermanentError, OSError):
        pass

    class BusyError(memable.RetryableError, OSError):
        pass

    assert is_retryable(RetryPolicy(retry_on=OSError), GoneError()) is False
    assert is_retryable(RetryPolicy(retry_on=KeyError), BusyError()) is True
