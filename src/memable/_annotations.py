"""
What a function's annotations say about its arguments and its result.

Decided here: whose annotations count (behind partials, methods, decorators and classes), how annotations given as
strings are resolved, and that nothing said means ``inspect.Signature.empty``. Nothing is called, and what is
remembered about a function does not keep it alive.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, ref

from ._errors import MisuseError
from ._qualified_name import qualified_name

EMPTY: Any = inspect.Signature.empty
"Stands for an annotation that is absent."

_AWAITABLES = (collections.abc.Awaitable, collections.abc.Coroutine)
_POSITIONAL = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
)


class AnnotationCache:
    """
    Remembers what the annotations of functions say, as long as those functions live.
    """

    def __init__(self) -> None:
        # By the function's id, with a reference that drops the entry when the function goes: a dictionary with weak
        # keys takes four times as long to be asked, which each step would pay for.
        self._returns: dict[int, tuple[ref[Any], Any]] = {}
        self._parameters: WeakKeyDictionary[Any, dict[tuple[int, bool], tuple[Any, ...]]] = WeakKeyDictionary()

    def return_annotation(self, fn: Callable[..., Any]) -> Any:
        """
        Return what the function `return_annotation` returns.
        """
        target = fn if type(fn) is types.FunctionType else _undress(fn)
        if type(target) is not types.FunctionType:
            return return_annotation(target)
        # The likely case of a function without annotations; a decorated one has its __wrapped__ in its __dict__.
        if not target.__annotations__ and not target.__dict__:
            return EMPTY
        known = self._returns.get(id(target))
        if known is not None and known[0]() is target:
            return known[1]
        found = return_annotation(target)
        self._returns[id(target)] = (ref(target, self._forget(id(target))), found)
        return found

    def _forget(self, key: int) -> Callable[[ref[Any]], None]:
        returns = self._returns

        def forget(gone: ref[Any]) -> None:
            # Another function may have its id by now.
            if key in returns and returns[key][0] is gone:
                del returns[key]

        return forget

    def parameter_annotations(
        self,
        fn: Callable[..., Any],
        skip_first: bool,
        count: int | None = None,
    ) -> tuple[Any, ...]:
        """
        Return what the function `parameter_annotations` returns.
        """
        if type(fn) is not types.FunctionType:
            return parameter_annotations(fn, skip_first, count)
        known = self._parameters.setdefault(fn, {})
        asked = (-1 if count is None else count, skip_first)
        if asked not in known:
            known[asked] = parameter_annotations(fn, skip_first, count)
        return known[asked]


def return_annotation(fn: Callable[..., Any]) -> Any:
    """
    Return the annotation of what *fn* gives, or `EMPTY` if there is none.

    For an ``async def`` that is what awaiting gives; so it is for a plain function annotated as returning an
    ``Awaitable[T]`` or a ``Coroutine[Any, Any, T]``. A class gives its instances.

    Raises:
        MisuseError: The annotation names something that cannot be found. Pass ``returns=``, or make the name
            importable.
    """
    target = _annotated(fn)
    if isinstance(target, type):
        return target
    annotation = _resolved(target, "return", "the return annotation")
    if not inspect.iscoroutinefunction(target) and typing.get_origin(annotation) in _AWAITABLES:
        annotation = typing.get_args(annotation)[-1]
    return _without_variable(annotation)


def parameter_annotations(
    fn: Callable[..., Any],
    skip_first: bool,
    count: int | None = None,
) -> tuple[Any, ...]:
    """
    Return the annotations of the positional parameters of *fn*, `EMPTY` for each that has none.

    Args:
        fn: The function.
        skip_first: Leave out the first parameter: the context.
        count: For how many arguments, after the one that is left out; a ``*args`` then stands for as many as are
            needed. Without it, once for each parameter.

    Returns:
        At most *count* annotations; fewer if *fn* takes fewer arguments.

    Raises:
        MisuseError: An annotation names something that cannot be found. Make the name importable.
    """
    target = _annotated(fn)
    source = getattr(target, "__init__") if isinstance(target, type) else target  # noqa: B009 - unknown to mypy
    found: list[Any] = []
    for parameter in _positional(fn):
        annotation = _without_variable(_resolved(source, parameter.name, f"the annotation of {parameter.name!r}"))
        repeats = 1
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL and count is not None:
            repeats = max(0, count + skip_first - len(found))
        found += [annotation] * repeats
    return tuple(found[skip_first:][:count])


def _positional(fn: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (ValueError, TypeError):
        # Some functions written in C do not tell.
        return []
    return [parameter for parameter in parameters if parameter.kind in _POSITIONAL]


def _undress(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function inside partials and bound methods."""
    while True:
        if isinstance(fn, functools.partial):
            fn = fn.func
        elif isinstance(fn, types.MethodType):
            fn = fn.__func__
        else:
            return fn


def _annotated(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function or class whose annotations describe *fn*."""
    fn = _undress(fn)
    if isinstance(fn, type):
        return fn
    try:
        fn = _undress(inspect.unwrap(fn))
    except ValueError:
        # Its __wrapped__ leads back to itself.
        return fn
    if isinstance(fn, (type, types.FunctionType, types.BuiltinFunctionType)):
        return fn
    call = getattr(type(fn), "__call__", None)  # noqa: B004 - wanted is the method, not whether there is one
    return inspect.unwrap(call) if isinstance(call, types.FunctionType) else fn


def _resolved(target: Callable[..., Any], name: str, what: str) -> Any:
    """Return the annotation *name* of *target* with names in strings resolved."""
    try:
        raw = getattr(target, "__annotations__", {}).get(name, EMPTY)
        if isinstance(raw, type) and typing.get_origin(raw) is None:
            return raw
        # One at a time: another annotation that cannot be resolved must not matter.
        bearer = types.SimpleNamespace(__annotations__={name: raw})
        hints = typing.get_type_hints(
            bearer, getattr(target, "__globals__", {}), _local_names(target), include_extras=True
        )
    except Exception as error:
        raise MisuseError(
            problem=(
                f"{what} of {qualified_name(target)} cannot be resolved ({type(error).__name__}: {error}); "
                f"mend it, make the name importable in the module of the function, or pass returns= to a step"
            )
        ) from error
    return hints[name]


def _local_names(target: Callable[..., Any]) -> dict[str, Any]:
    """Return the names that annotations of *target* may use beside its module's."""
    names = {variable.__name__: variable for variable in getattr(target, "__type_params__", ())}
    code, closure = getattr(target, "__code__", None), getattr(target, "__closure__", None)
    for name, cell in zip(code.co_freevars if code else (), closure or (), strict=False):
        # A cell is still empty while the function around it has not assigned the name.
        with_value = [cell.cell_contents] if _is_filled(cell) else []
        names.update((name, value) for value in with_value)
    return names


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - reading it is the only way to know
    except ValueError:
        return False
    return True


def _without_variable(annotation: Any) -> Any:
    """Return the bound of a type variable, or `EMPTY` for one without; anything else as it is, None as its class."""
    if annotation is None:
        return type(None)
    if not isinstance(annotation, typing.TypeVar):
        return annotation
    return EMPTY if annotation.__bound__ is None else annotation.__bound__
