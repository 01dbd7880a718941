"""
Wraps functions of steps so that they fail, hang or are slow, by plan.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Generic, ParamSpec, TypeAlias, TypeVar, get_args

import attrs
import trio

from .._numbers import is_count, is_number
from ._effects import effect_listener

P = ParamSpec("P")
T = TypeVar("T")


def _check_error(_instance: object, _attribute: object, error: object) -> None:
    cls = error if isinstance(error, type) else type(error)
    if not issubclass(cls, Exception):
        raise TypeError(f"error must be an Exception or a class of one, not {error!r}")


def _check_seconds(_instance: object, _attribute: object, seconds: object) -> None:
    # NaN is not at least 0.
    if not is_number(seconds) or not seconds >= 0:
        raise ValueError(f"seconds must be a number, at least 0, not {seconds!r}")


@attrs.frozen
class Pass:
    """
    A call that does what the function does.
    """


@attrs.frozen
class Fail:
    """
    A call that raises.
    """

    error: Exception | type[Exception] = attrs.field(
        factory=lambda: ConnectionError("a fault of the test's"), validator=_check_error
    )
    "What it raises."
    after: bool = attrs.field(default=False, kw_only=True)
    "Whether the function is called first: a service did what it was asked for, and its answer was lost."


@attrs.frozen
class Hang:
    """
    A call that does not return until it is cancelled, by a step's ``timeout`` for instance.
    """

    after: bool = attrs.field(default=False, kw_only=True)
    "Whether the function is called first: a service did what it was asked for, and never answers."


@attrs.frozen
class Slow:
    """
    A call that waits before it does what the function does.
    """

    seconds: float = attrs.field(validator=_check_seconds)  # type: ignore[assignment] # the validator takes any object
    "By trio's clock, so they pass at once where time is virtual."


Conduct: TypeAlias = Pass | Fail | Hang | Slow
"What one call of a step's function does."


class FaultyStep(Generic[P, T]):
    """
    A step's function that fails, hangs or is slow by plan. It is made by ``by_plan``, ``fails``, ``hangs`` or ``slow``.

    It has the name and the annotations of the function that it wraps. How often it was called counts as part of the
    world outside: in ``explore_crashes`` it survives a crash, and begins anew with each schedule.
    """

    def __init__(self, fn: Callable[P, Awaitable[T]], plan: Iterable[Conduct], then: Conduct) -> None:
        """
        Begin with no call made.

        Raises:
            TypeError: *fn* cannot be called, or the plan is none.
        """
        given: object = fn
        if not callable(given):
            raise TypeError(f"fn must be an async function, not {fn!r}")
        self._plan: tuple[Conduct, ...] = tuple(plan)
        self._then: Conduct = then
        for conduct in (*self._plan, then):
            if not isinstance(conduct, get_args(Conduct)):
                raise TypeError(f"a plan is made of Pass(), Fail(), Hang() and Slow(seconds), not {conduct!r}")
        self._fn: Callable[P, Awaitable[T]] = fn
        self._calls = 0
        # Without the attributes of the function: another FaultyStep's would replace those of this one.
        functools.update_wrapper(self, fn, updated=())

    @property
    def calls(self) -> int:
        """
        How often it was called, before crashes and after them.
        """
        return self._calls

    def clear(self) -> None:
        """
        Begin the plan anew.
        """
        self._set_calls(0)

    def __repr__(self) -> str:
        """
        Return its name, and how often it was called.
        """
        return f"<FaultyStep {getattr(self._fn, '__qualname__', self._fn)!s}, called {self._calls} times>"

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """
        Do what the plan has for this call.
        """
        number = self._calls
        self._set_calls(number + 1)
        conduct = self._plan[number] if number < len(self._plan) else self._then
        match conduct:
            case Slow(seconds):
                await trio.sleep(seconds)
            case Fail(after=True) | Hang(after=True):
                await self._fn(*args, **kwargs)
            case _:
                pass
        match conduct:
            case Fail(error):
                # One exception may be raised often; where it was raised before says nothing.
                raise error() if isinstance(error, type) else error.with_traceback(None)
            case Hang():
                await trio.sleep_forever()
            case _:
                pass
        return await self._fn(*args, **kwargs)

    def _set_calls(self, count: int) -> None:
        listener = effect_listener.get()
        if listener is not None:
            listener.before_change(self)
        self._calls = count

    def take_down(self) -> object:
        """
        Return how often it was called.
        """
        return self._calls

    def bring_back(self, state: Any) -> None:
        """
        Go on from that number of calls.
        """
        self._calls = state


def by_plan(fn: Callable[P, Awaitable[T]], plan: Iterable[Conduct], *, then: Conduct = Pass()) -> FaultyStep[P, T]:
    """
    Return a step's function that does with each call what a plan has for it.

    Args:
        fn: The async function to wrap.
        plan: What the first call does, the second, and so on, whichever step makes it: ``Pass()``, ``Fail()``,
            ``Hang()`` or ``Slow(seconds)``.
        then: What calls beyond the plan do.

    Raises:
        TypeError: *fn* cannot be called, or the plan is none.

    Example:
        >>> import memable
        >>> import trio
        >>> from memable.testing import Fail, Slow, by_plan
        >>> async def fetch(url: str) -> str:
        ...     return "page of " + url
        >>> flaky = by_plan(fetch, [Fail(TimeoutError), Slow(5), Fail(ConnectionResetError, after=True)])
        >>> @memable.workflow
        ... async def crawl(ctx: memable.Context, url: str) -> str:
        ...     return await ctx.step("fetch", flaky, url, retry=memable.RetryPolicy())
        >>> async def main() -> str:
        ...     async with memable.open_engine(memable.InMemoryStore(), workflows=[crawl]) as engine:
        ...         return await (await engine.invoke(crawl, "example.org")).result()
        >>> trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
        'page of example.org'
        >>> flaky.calls
        2
    """
    return FaultyStep(fn, plan, then)


def fails(
    fn: Callable[P, Awaitable[T]],
    times: int | None = 1,
    *,
    error: Exception | type[Exception] | None = None,
    after: bool = False,
) -> FaultyStep[P, T]:
    """
    Return a step's function whose first calls fail.

    Args:
        fn: The async function to wrap.
        times: How many calls fail; None for all.
        error: What they raise; a ``ConnectionError`` unless given.
        after: Whether *fn* is called before: the service did it, and its answer was lost.

    Raises:
        TypeError: *fn* cannot be called, or *error* is no ``Exception``.
        ValueError: *times* is negative.

    Example:
        >>> from memable.testing import fails
        >>> async def charge() -> str:
        ...     return "receipt"
        >>> flaky = fails(charge, times=2, error=TimeoutError("no answer"))
        >>> lost = fails(charge, after=True)
    """
    return _first(fn, times, Fail(after=after) if error is None else Fail(error, after=after))


def hangs(fn: Callable[P, Awaitable[T]], times: int | None = 1, *, after: bool = False) -> FaultyStep[P, T]:
    """
    Return a step's function whose first calls do not return until they are cancelled, by a timeout for instance.

    Args:
        fn: The async function to wrap.
        times: How many calls hang; None for all.
        after: Whether *fn* is called before: the service did it, and never answers.

    Raises:
        TypeError: *fn* cannot be called.
        ValueError: *times* is negative.

    Example:
        >>> import trio
        >>> from memable.testing import hangs
        >>> async def charge() -> str:
        ...     return "receipt"
        >>> hanging = hangs(charge)
        >>> async def main() -> str:
        ...     with trio.move_on_after(30):
        ...         await hanging()
        ...     return await hanging()
        >>> trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
        'receipt'
    """
    return _first(fn, times, Hang(after=after))


def slow(fn: Callable[P, Awaitable[T]], seconds: float, times: int | None = None) -> FaultyStep[P, T]:
    """
    Return a step's function that waits before it begins.

    Args:
        fn: The async function to wrap.
        seconds: How long, by trio's clock.
        times: How many calls are slow; None for all.

    Raises:
        TypeError: *fn* cannot be called.
        ValueError: *times* or *seconds* is negative.

    Example:
        >>> from memable.testing import slow
        >>> async def charge() -> str:
        ...     return "receipt"
        >>> sluggish = slow(charge, 60.0, times=1)
    """
    return _first(fn, times, Slow(seconds))


def _first(fn: Callable[P, Awaitable[T]], times: int | None, conduct: Conduct) -> FaultyStep[P, T]:
    if times is None:
        return FaultyStep(fn, (), conduct)
    if not is_count(times, least=0):
        raise ValueError(f"times must be an int, at least 0, or None for always, not {times!r}")
    return FaultyStep(fn, (conduct,) * times, Pass())
