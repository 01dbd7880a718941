"""
Recognises calls of a step that cannot work, before anything of them has run where that can be told.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from types import (
    AsyncGeneratorType,
    BuiltinFunctionType,
    BuiltinMethodType,
    CoroutineType,
    FunctionType,
    MappingProxyType,
    MethodType,
)
from typing import Any, Literal, TypeAlias

from ._numbers import is_number
from ._related import related_to
from ._retry import Inherit, RetryPolicy

Operation: TypeAlias = Literal["step", "step_in_thread"]
"What the author called."

#: What Python says of a call that does not fit the signature.
_REFUSED_CALL = re.compile(r"Context\.(?P<method>\w+)\(\) (?P<problem>(?:got|missing|takes) .*)")

#: More decorators than this around one function are a mistake, or a circle.
MAX_WRAPPERS = 100


def find_misuse(operation: Operation, fn: object, unknown: Mapping[str, object] = MappingProxyType({})) -> str | None:
    """
    Return what is wrong with the function or the options of a call and what to write instead, or None.

    Closes *fn* if it is a coroutine that nobody will await.
    """
    if unknown:
        if inspect.iscoroutine(fn):
            fn.close()
        names = ", ".join(map(repr, unknown))
        return (
            f"ctx.{operation} has no option {names}; for a keyword argument of the function write "
            f"functools.partial(function, ...)"
        )
    if type(fn) is FunctionType and fn.__code__.co_flags & inspect.CO_COROUTINE:
        # The usual case, told without the cost of looking further.
        return None if operation == "step" else _async_in_thread(fn)
    return _find_wrong_function(operation, fn)


def find_misused_setting(timeout: object, retry: object, limiter: object) -> str | None:
    """
    Return what is wrong with how the function is to be run and what to write instead, or None.
    """
    if timeout is not None and not _is_timeout(timeout):
        return f"timeout is {timeout!r}; give seconds, at least 0, or None for no limit"
    if retry is not None and not isinstance(retry, (RetryPolicy, Inherit)):
        return f"retry is {retry!r}; give a memable.RetryPolicy, None for no retries, or leave it out"
    if limiter is not None and not hasattr(limiter, "acquire_on_behalf_of"):
        return f"limiter is {limiter!r}; give a trio.CapacityLimiter, or leave it out"
    return None


def find_misused_call(exc: BaseException | None) -> str | None:
    """
    Return what is wrong with a call of a context's method whose arguments Python has refused, or None.

    Args:
        exc: What left the body.
    """
    for leaf in () if exc is None else related_to(exc):
        # Nothing of the method has run: the exception was raised where it was called.
        if type(leaf) is TypeError and (found := _REFUSED_CALL.match(str(leaf))) is not None:
            return f"ctx.{found['method']}() {found['problem']}; see help(memable.Context.{found['method']})"
    return None


def find_misused_effect(once: object, probe: object, timeout: object) -> str | None:
    """
    Return what is wrong with how an effect that must not repeat is asked for and what to write instead, or None.
    """
    if not isinstance(once, bool):
        return f"once is {once!r}; give True for an effect that must not repeat, or leave it out"
    if not once:
        return None if probe is None else "a probe asks for the outcome of an effect; give once=True with it"
    if timeout is not None:
        return (
            "timeout with once=True would cut an effect short, and nobody would know whether it happened; leave it "
            "out, and let the function itself give up in time"
        )
    if probe is None:
        return None
    problem = find_misuse("step", probe)
    return None if problem is None else f"the probe: {problem}"


def find_misused_arguments(fn: Callable[..., Any], args: tuple[object, ...]) -> str | None:
    """
    Return what is wrong with the arguments of a function whose call has raised a ``TypeError``, or None.
    """
    try:
        # Of a wrapper itself: what it wraps may take other arguments.
        signature = inspect.signature(fn, follow_wrapped=False)
    except (TypeError, ValueError):
        # Some functions written in C do not tell.
        return None
    try:
        signature.bind(*args)
    except TypeError as error:
        return f"the arguments given for {_name(fn)} do not fit its signature {signature} ({error})"
    return None


def find_misused_result(operation: Operation, result: object) -> str | None:
    """
    Return what is wrong with what the function gave when it was called, or None.

    Closes *result* if it is a coroutine that nobody will await.
    """
    if operation == "step":
        # A class of Python's own is told from the others more quickly.
        if type(result) is CoroutineType or isinstance(result, Awaitable):
            return None
        return (
            f"the function given to ctx.step returned a {type(result).__name__}, which cannot be awaited; write it as "
            f"'async def', or use ctx.step_in_thread for a blocking function"
        )
    if not isinstance(result, (Coroutine, AsyncGeneratorType)):
        return None
    if isinstance(result, Coroutine):
        result.close()
    return (
        f"the function given to ctx.step_in_thread returned a {type(result).__name__}; use ctx.step for an async "
        f"function"
    )


def _find_wrong_function(operation: Operation, fn: object) -> str | None:
    if inspect.iscoroutine(fn):
        name = fn.__name__
        fn.close()
        return f"{name}(...) was called instead of passed; write ctx.{operation}(key, {name}, ...) with its arguments"
    if not callable(fn):
        kind = "an awaitable" if isinstance(fn, Awaitable) else f"a {type(fn).__name__}"
        return f"{kind} was given instead of a function; write ctx.{operation}(key, function, *args)"
    if inspect.isasyncgenfunction(fn):
        return f"{_name(fn)} is an async generator; wrap it in an async function that collects what it yields"
    if operation == "step_in_thread":
        return _async_in_thread(fn) if _is_async(_without_partials(fn)) else None
    return _find_sync_function(fn)


def _async_in_thread(fn: Callable[..., Any]) -> str:
    return (
        f"{_name(fn)} is an async function, which cannot run in a thread; write ctx.step(key, {_name(fn)}, ...) for it"
    )


def _find_sync_function(fn: Callable[..., Any]) -> str | None:
    """Return what is wrong with *fn* as the function of ``ctx.step``, if it is surely a sync one."""
    plain: Any = _without_partials(fn)
    for _ in range(MAX_WRAPPERS):
        # A wrapper around an async function is usually one itself. Objects that claim to have every attribute wrap
        # nothing, so only what is really there counts.
        if "__wrapped__" not in getattr(plain, "__dict__", ()):
            break
        plain = _without_partials(plain.__wrapped__)
    if _is_async(plain):
        return None
    if isinstance(plain, MethodType):
        plain = plain.__func__
    is_plain = isinstance(plain, (FunctionType, BuiltinFunctionType, BuiltinMethodType))
    if is_plain and getattr(plain, "__name__", "") != "<lambda>" and not _says_awaitable(plain):
        return (
            f"{_name(fn)} is not an async function; write ctx.step_in_thread(key, {_name(fn)}, ...) for a blocking "
            f"one, or annotate it '-> Awaitable[...]' if it returns one"
        )
    # A lambda or an object with __call__: only its result will tell.
    return None


def _is_async(fn: Callable[..., Any]) -> bool:
    # What calling an object does is up to its class; a class itself is called to make an instance.
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__)


def _says_awaitable(fn: Any) -> bool:
    said = str(getattr(fn, "__annotations__", {}).get("return", ""))
    return "Awaitable" in said or "Coroutine" in said


def _without_partials(fn: Any) -> Any:
    while isinstance(fn, functools.partial):
        fn = fn.func
    return fn


def _name(fn: object) -> str:
    plain = _without_partials(fn)
    name = getattr(plain, "__name__", None)
    return name if isinstance(name, str) else type(plain).__name__


def _is_timeout(timeout: object) -> bool:
    # An int may be too large for the float that the deadline is.
    return is_number(timeout) and (0 <= timeout <= sys.float_info.max or timeout == math.inf)
