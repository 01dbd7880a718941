"""
Whether and when a failed step is tried again: the attempt's number in, a delay or "stop" out.

Decided here: the delays of a policy, and what of an exception counts. Randomness arrives as an argument.
"""

from __future__ import annotations

import enum
import inspect
import math
import sys
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import attrs

from ._errors import PermanentError, RetryableError, StepTimeoutError
from ._numbers import is_count, is_number
from ._related import leaves_of

RetryOn: TypeAlias = type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool] | None
"Exception types, or a predicate, that tell which failures are worth another attempt. None: every ``Exception``."


class Inherit(enum.Enum):
    """
    Stands for "what the engine has as its default", where None has a meaning of its own.
    """

    INHERIT = enum.auto()

    def __repr__(self) -> str:
        return "memable.INHERIT"


INHERIT: Final = Inherit.INHERIT


def _check_seconds(instance: object, attribute: attrs.Attribute[float], value: object) -> None:
    if not is_number(value) or not 0 <= value <= sys.float_info.max:
        raise ValueError(f"{attribute.name} must be a finite number of seconds, at least 0, not {value!r}")


def _check_max_retries(instance: object, attribute: attrs.Attribute[float], value: object) -> None:
    if not is_count(value) and value != math.inf:
        raise ValueError(f"max_retries must be an int, at least 0, or math.inf, not {value!r}")


def _check_fraction(instance: object, attribute: attrs.Attribute[float], value: object) -> None:
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{attribute.name} must be a number from 0 to 1, not {value!r}")


def _check_multiplier(instance: object, attribute: attrs.Attribute[float], value: object) -> None:
    if not is_number(value) or not 1 <= value <= sys.float_info.max:
        raise ValueError(f"multiplier must be a finite number, at least 1, not {value!r}")


def _check_retry_on(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is None:
        return
    types = value if isinstance(value, tuple) else (value,)
    if all(isinstance(one, type) and issubclass(one, BaseException) for one in types):
        return
    if isinstance(value, (type, tuple)) or not callable(value):
        raise ValueError(f"retry_on must be an exception type, a tuple of those or a predicate, not {value!r}")
    if inspect.iscoroutinefunction(value):
        # What it returns would count as True.
        raise ValueError(f"retry_on must be a predicate that is not async, not {value!r}")


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """
    How often, when and after which failures a step is tried again.

    Delay n, counted from 0, is ``min(max_delay, delay * multiplier**n)`` seconds, times a uniform factor in
    [1 - jitter, 1 + jitter] (jitter keeps many clients from trying again in step; see Brooker, "Exponential Backoff
    And Jitter", 2015).

    Raises:
        ValueError: An argument is negative, NaN or otherwise senseless.
    """

    max_retries: float = attrs.field(default=3, validator=_check_max_retries)  # type: ignore[arg-type] # an int, too, is a number
    "How many attempts may follow the first one; may be ``math.inf``."
    delay: float = attrs.field(default=1.0, validator=_check_seconds)
    "Seconds before the first retry."
    multiplier: float = attrs.field(default=2.0, validator=_check_multiplier)
    "What each delay is multiplied with for the next one."
    max_delay: float = attrs.field(default=30.0, validator=_check_seconds)
    "No delay is longer than this, in seconds, jitter aside."
    jitter: float = attrs.field(default=0.0, validator=_check_fraction)
    "How far a delay may be off, as a fraction of it."
    retry_on: RetryOn = attrs.field(default=None, validator=_check_retry_on)
    "Which failures are worth another attempt; asked of each leaf of a group, and all must agree."
    retry_timeouts: bool = True
    "Whether an attempt that timed out is worth another one."

    @classmethod
    def fixed(
        cls,
        max_retries: float,
        delay: float,
        *,
        jitter: float = 0.0,
        retry_on: RetryOn = None,
        retry_timeouts: bool = True,
    ) -> RetryPolicy:
        """
        Return a policy that waits *delay* seconds before each of *max_retries* retries.
        """
        return cls(
            max_retries=max_retries,
            delay=delay,
            multiplier=1.0,
            max_delay=delay,
            jitter=jitter,
            retry_on=retry_on,
            retry_timeouts=retry_timeouts,
        )

    @classmethod
    def exponential(
        cls,
        max_retries: float,
        base: float,
        *,
        max_delay: float = 30.0,
        jitter: float = 0.0,
        retry_on: RetryOn = None,
        retry_timeouts: bool = True,
    ) -> RetryPolicy:
        """
        Return a policy whose delay begins at *base* seconds and doubles, up to *max_delay*.
        """
        return cls(
            max_retries=max_retries,
            delay=base,
            multiplier=2.0,
            max_delay=max_delay,
            jitter=jitter,
            retry_on=retry_on,
            retry_timeouts=retry_timeouts,
        )

    def delay_before_retry(self, index: int, uniform: float) -> float:
        """
        Return the seconds to wait before retry *index*, counted from 0.

        Args:
            index: Which retry it is.
            uniform: A random number, uniform in [0, 1).
        """
        try:
            delay = min(self.max_delay, self.delay * float(self.multiplier) ** index)
        except OverflowError:
            delay = self.max_delay if self.delay else 0.0
        return min(delay * (1 + self.jitter * (2 * uniform - 1)), sys.float_info.max)

    def has_retry(self, attempt: int) -> bool:
        """
        Tell whether the budget allows another attempt after *attempt*, counted from 1.
        """
        return attempt <= self.max_retries

    def agrees(self, leaf: BaseException) -> bool:
        """
        Tell whether this one exception is worth another attempt under this policy.
        """
        if isinstance(leaf, StepTimeoutError) and not self.retry_timeouts:
            return False
        if self.retry_on is None:
            return True
        if isinstance(self.retry_on, (type, tuple)):
            return isinstance(leaf, self.retry_on)
        return bool(self.retry_on(leaf))


def is_retryable(policy: RetryPolicy | None, exc: BaseException) -> bool:
    """
    Tell whether another attempt might mend the failure, the budget aside.

    ``PermanentError`` never, ``RetryableError`` always, anything else as the policy says (without one: always); one
    leaf that does not agree decides for a whole group.

    Raises:
        Exception: Whatever the user's predicate raises.
    """
    leaves = list(leaves_of(exc))
    if any(isinstance(leaf, PermanentError) for leaf in leaves):
        return False
    return all(isinstance(leaf, RetryableError) or policy is None or policy.agrees(leaf) for leaf in leaves)
