"""
Strategies of Hypothesis for what happens to workflows: crashes, signals, time that passes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, overload

from hypothesis import strategies as st

from .._numbers import is_count, is_number
from .._suspend_point import SuspendPoint
from ._crash_plan import Crash, CrashPlan
from ._signals import Signal

T = TypeVar("T")

#: Just before and just after a deadline: enough that rounded times tell the two apart.
JUST_S = 0.001
DAY_S = 86400.0
#: Times at which something may happen whatever the workflow: nothing, an instant, a minute, an hour, a day, a month.
USUAL_S = (0.0, JUST_S, 1.0, 60.0, 3600.0, DAY_S, 30 * DAY_S)


def crash_plans(
    *, max_crashes: int = 3, max_moment: int = 60, stops: bool = True, passivates: bool = True
) -> st.SearchStrategy[CrashPlan]:
    """
    Return a strategy of recipes for ``explore_crashes(only=...)``.

    It shrinks to fewer crashes at earlier moments. A moment that a life does not have is no crash.

    Args:
        max_crashes: How often the process dies at most.
        max_moment: At which moment of its life at the latest.
        stops: Whether it may also be stopped in order.
        passivates: Whether every wait may unwind the body.

    Raises:
        ValueError: A number is no int of at least 0.

    Example:
        >>> from hypothesis import find
        >>> from memable.testing import crash_plans
        >>> str(find(crash_plans(), lambda plan: len(plan.crashes) == 2))
        '0,0'
    """
    _check_counts(max_crashes=max_crashes, max_moment=max_moment)
    # A boolean that cannot be True is no choice: Hypothesis need not try it.
    crashes = st.builds(Crash, st.integers(0, max_moment), st.booleans() if stops else st.just(value=False))
    return st.builds(
        CrashPlan,
        st.lists(crashes, max_size=max_crashes).map(tuple),
        st.booleans() if passivates else st.just(value=False),
    )


@overload
def signals(
    point: SuspendPoint[T],
    /,
    *,
    payloads: Mapping[SuspendPoint[T], st.SearchStrategy[T]] = ...,
    after: st.SearchStrategy[float] | None = None,
    early: Sequence[Literal["reject", "keep"]] = ("reject", "keep"),
) -> st.SearchStrategy[Signal[T]]: ...


@overload
def signals(
    *points: SuspendPoint[Any],
    payloads: Mapping[SuspendPoint[Any], st.SearchStrategy[Any]] = ...,
    after: st.SearchStrategy[float] | None = None,
    early: Sequence[Literal["reject", "keep"]] = ("reject", "keep"),
) -> st.SearchStrategy[Signal[Any]]: ...


def signals(
    *points: SuspendPoint[Any],
    payloads: Mapping[SuspendPoint[Any], st.SearchStrategy[Any]] = {},
    after: st.SearchStrategy[float] | None = None,
    early: Sequence[Literal["reject", "keep"]] = ("reject", "keep"),
) -> st.SearchStrategy[Signal[Any]]:
    """
    Return a strategy of signals to send.

    It shrinks to the first point, the simplest payload, at once.

    Args:
        *points: Where they may be sent to.
        payloads: What may be sent to a point, where that is not whatever is of the point's type.
        after: After how many virtual seconds; up to a minute unless given. ``clock_jumps`` makes such.
        early: What may be asked for a signal that comes before the wait.

    Raises:
        TypeError: A point is none, or *payloads* is for a point that is not among them.
        ValueError: There is no point, or *early* has something else than ``"reject"`` and ``"keep"``.

    Example:
        >>> import memable
        >>> from hypothesis import find
        >>> from memable.testing import signals
        >>> APPROVAL = memable.SuspendPoint("approval", bool)
        >>> find(signals(APPROVAL), lambda signal: signal.payload)
        Signal(point=memable.SuspendPoint('approval', bool), payload=True, after=0.0, early='reject')
    """
    if not points:
        raise ValueError("signals takes at least one memable.SuspendPoint")
    given: tuple[object, ...] = (*points, *payloads)
    for point in given:
        if not isinstance(point, SuspendPoint) or point not in points:
            raise TypeError(f"signals takes suspend points, and payloads for those, not {point!r}")
    if not early or not set(early) <= {"reject", "keep"}:
        raise ValueError(f'early is one or both of "reject" and "keep", not {early!r}')
    delays = clock_jumps(longest=60.0) if after is None else after
    return st.one_of(
        [
            st.builds(
                Signal,
                st.just(point),
                payloads[point] if point in payloads else _values_of(point.type),
                delays,
                st.sampled_from(list(early)),
            )
            for point in points
        ]
    )


def clock_jumps(*deadlines: float, longest: float = 30 * DAY_S) -> st.SearchStrategy[float]:
    """
    Return a strategy of times that pass, in virtual seconds: those that matter more often than others.

    That is around each deadline (just before, at it, just after), nothing, an instant, a second, a minute, an hour, a
    day, a month. They do for the clock of a test as well as for ``downtime=`` of ``explore_crashes``. It shrinks to 0.

    Args:
        *deadlines: In how many seconds something is due, such as the timeout of a wait.
        longest: No time is longer, except around a deadline.

    Raises:
        ValueError: A number is not finite, or less than 0.

    Example:
        >>> from hypothesis import find
        >>> from memable.testing import clock_jumps
        >>> find(clock_jumps(3600.0), lambda seconds: seconds == 3600.001)
        3600.001
    """
    for seconds in (*deadlines, longest):
        if not is_number(seconds) or not 0 <= seconds < math.inf:
            raise ValueError(f"a time that passes must be a finite number of seconds, at least 0, not {seconds!r}")
    around = [near for due in deadlines for near in (due, due + JUST_S, max(0.0, due - JUST_S))]
    usual = [seconds for seconds in USUAL_S if seconds <= longest]
    # In order, so that a time shrinks to an earlier one.
    telling = sorted({0.0, *(float(near) for near in around), *usual})
    return st.sampled_from(telling) | st.floats(0.0, float(longest), allow_subnormal=False)


def _values_of(cls: Any) -> st.SearchStrategy[Any]:
    """Return a strategy of what is of a type; of JSON where anything is."""
    if cls is not Any and cls is not object:
        return st.from_type(cls)
    leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
    return st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)


def _check_counts(**numbers: object) -> None:
    for name, number in numbers.items():
        if not is_count(number, least=0):
            raise ValueError(f"{name} must be an int, at least 0, not {number!r}")
