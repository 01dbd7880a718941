"""
What workflow authors write: ``@workflow``.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, ParamSpec, TypeVar, overload

from ._errors import MisuseError
from ._keys import check_key
from ._numbers import is_number
from ._retry import INHERIT, Inherit

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Workflow(Generic[P, R_co]):
    """
    A named definition, made by ``@memable.workflow``. Calling it runs the plain function.

    Attributes:
        name: What its instances are recorded under.
        fn: The function that was decorated.
        retention: Seconds for which ended instances are kept; None for ever; ``INHERIT`` as the engine says.
    """

    def __init__(
        self,
        fn: Callable[P, Awaitable[R_co]],
        *,
        name: str | None = None,
        retention: float | Inherit | None = INHERIT,
    ) -> None:
        """
        Check and keep a definition.

        Raises:
            InvalidKeyError: The name breaks the rule for names.
            MisuseError: *fn* is no async function that takes a context and positional arguments.
            ValueError: *retention* is negative or NaN.
        """
        given = getattr(fn, "__name__", None) if name is None else name
        if given is None:
            raise MisuseError(problem=f"{fn!r} has no __name__; give one with @memable.workflow(name=...)")
        self.name: str = check_key("workflow name", given)
        self.fn: Callable[P, Awaitable[R_co]] = fn
        self.retention: float | Inherit | None = check_retention(retention)
        self.signature: inspect.Signature = _check_signature(self.name, fn)
        self._argument_counts: range = _argument_counts(self.signature)
        functools.update_wrapper(self, fn)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R_co]:
        return self.fn(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<memable.Workflow {self.name!r}>"

    def check_arguments(self, args: Sequence[object]) -> None:
        """
        Check that there are as many arguments, the context aside, as the function takes.

        Raises:
            TypeError: There are not.
        """
        if len(args) not in self._argument_counts:
            self.signature.bind(*args)


def check_retention(seconds: object) -> float | Inherit | None:
    """
    Return *seconds* if it may be a retention.

    Raises:
        ValueError: It is negative or NaN.
    """
    if seconds is None or isinstance(seconds, Inherit):
        return seconds
    if not is_number(seconds) or math.isnan(seconds) or seconds < 0:
        raise ValueError(f"retention must be a number of seconds, at least 0, or None for ever, not {seconds!r}")
    return seconds


def _check_signature(name: str, fn: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of *fn* without its context, after checking that it can be a workflow."""
    plain: Any = fn
    while isinstance(plain, functools.partial):
        plain = plain.func
    called = type(plain).__call__ if callable(plain) else None
    if not inspect.iscoroutinefunction(plain) and not inspect.iscoroutinefunction(called):
        raise MisuseError(
            workflow=name, problem=f"{fn!r} is not an async function; a workflow is written 'async def {name}(ctx)'"
        )
    signature = inspect.signature(fn)
    parameters = list(signature.parameters.values())
    if not parameters or parameters[0].kind not in _POSITIONAL:
        raise MisuseError(
            workflow=name, problem="its function takes no context; write it as 'async def name(ctx, ...)'"
        )
    # A *args in first place takes the context and everything behind it.
    rest = parameters if parameters[0].kind is inspect.Parameter.VAR_POSITIONAL else parameters[1:]
    for parameter in rest:
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.default is inspect.Parameter.empty:
            raise MisuseError(
                workflow=name,
                problem=f"parameter {parameter.name!r} can only be given by keyword, but arguments of a workflow are "
                "positional; make it positional or give it a default",
            )
    return signature.replace(parameters=rest)


def _argument_counts(signature: inspect.Signature) -> range:
    """Return how many positional arguments fit: to ask the signature each time takes as long as half a step."""
    parameters = signature.parameters.values()
    named = [parameter for parameter in parameters if parameter.kind in _POSITIONAL[:2]]
    needed = [parameter for parameter in named if parameter.default is inspect.Parameter.empty]
    takes_more = any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters)
    return range(len(needed), sys.maxsize if takes_more else len(named) + 1)


_POSITIONAL = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
)


@overload
def workflow(fn: Callable[P, Awaitable[R]], /) -> Workflow[P, R]: ...


@overload
def workflow(
    *, name: str | None = None, retention: float | Inherit | None = INHERIT
) -> Callable[[Callable[P, Awaitable[R]]], Workflow[P, R]]: ...


def workflow(
    fn: Callable[P, Awaitable[R]] | None = None,
    /,
    *,
    name: str | None = None,
    retention: float | Inherit | None = INHERIT,
) -> Workflow[P, R] | Callable[[Callable[P, Awaitable[R]]], Workflow[P, R]]:
    """
    Define a workflow: a durable async function whose first parameter is a ``memable.Context``.

    Args:
        fn: The function, when used as ``@memable.workflow`` without arguments.
        name: What its instances are recorded under; the function's ``__name__`` if left out. Instances in flight
            find their code by it, so keep it when you rename the function.
        retention: Seconds for which an ended instance is kept; None keeps for ever; left out, as the engine says.

    Raises:
        InvalidKeyError: The name breaks the rule for names.
        MisuseError: It is no async function that takes a context and positional arguments.
        ValueError: *retention* is negative or NaN.

    Replay:
        Code outside steps runs any number of times. The same input and the same memos must lead to the same keys;
        effects belong into steps.
    """
    if fn is not None:
        return Workflow(fn, name=name, retention=retention)
    return lambda decorated: Workflow(decorated, name=name, retention=retention)
