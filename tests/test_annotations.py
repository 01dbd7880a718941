"""
What functions' annotations say about arguments and results.
"""

from __future__ import annotations

import functools
import gc
import inspect
import typing
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import Annotated, Any, TypeVar

import pytest

from memable._annotations import EMPTY, AnnotationCache, parameter_annotations, return_annotation
from memable._errors import MisuseError

T = TypeVar("T")
Bound = TypeVar("Bound", bound=int)


async def plain(a: int, b: list[Model], *rest: str) -> Model: ...


def bare(a, b=1): ...  # type: ignore[no-untyped-def]  # what a function without annotations gives


def of_awaitable() -> Awaitable[int]: ...


def of_coroutine() -> Coroutine[Any, Any, None]: ...


async def of_awaitable_twice() -> Awaitable[int]: ...


def of_nothing_known() -> Missing: ...  # type: ignore[name-defined]  # noqa: F821 - this is what is tested


def only_parameter_unknown(a: Missing) -> int: ...  # type: ignore[name-defined]  # noqa: F821 - this is what is tested


def of_missing_attribute() -> typing.Missing: ...  # type: ignore[name-defined]  # this is what is tested


def of_variable(a: T) -> T: ...


def of_bound(a: Bound) -> Bound: ...


def of_annotated() -> Annotated[int, "note"]: ...


def keyword_only(a: int, *, b: str) -> None: ...


class Model:
    def __init__(self, x: int, y: str = "") -> None: ...

    async def method(self, z: bytes) -> list[Model]: ...

    @classmethod
    def build(cls, n: float) -> Model: ...

    @staticmethod
    def free(n: float) -> dict[str, int]: ...

    def __call__(self, k: int) -> set[int]: ...


def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return inner


RETURNS: list[tuple[Callable[..., Any], object]] = [
    (plain, Model),
    (bare, EMPTY),
    (of_awaitable, int),
    (of_coroutine, type(None)),
    (of_awaitable_twice, Awaitable[int]),
    (of_variable, EMPTY),
    (of_bound, int),
    (of_annotated, Annotated[int, "note"]),
    (only_parameter_unknown, int),
    (functools.partial(plain, 1), Model),
    (functools.partial(functools.partial(plain, 1), []), Model),
    (Model(1).method, list[Model]),
    (functools.partial(Model(1).method, b""), list[Model]),
    (Model.build, Model),
    (Model.free, dict[str, int]),
    (Model(1), set[int]),
    (Model, Model),
    (int, int),
    (decorate(plain), Model),
    (decorate(decorate(of_awaitable)), int),
    (len, EMPTY),
    (lambda: 1, EMPTY),
]


@pytest.mark.parametrize(("fn", "expected"), RETURNS, ids=map(str, range(len(RETURNS))))
def test_return_annotation_is_found(fn: Callable[..., Any], expected: object) -> None:
    """
    The annotation of what a callable gives is found behind partials, methods, decorators and classes.
    """
    cache = AnnotationCache()
    assert return_annotation(fn) == expected
    assert cache.return_annotation(fn) == expected
    assert cache.return_annotation(fn) == expected


PARAMETERS: list[tuple[Callable[..., Any], bool, int | None, object]] = [
    (plain, False, None, (int, list[Model], str)),
    (plain, True, None, (list[Model], str)),
    (plain, True, 0, ()),
    (plain, True, 1, (list[Model],)),
    (plain, True, 4, (list[Model], str, str, str)),
    (plain, False, 4, (int, list[Model], str, str)),
    (bare, False, None, (EMPTY, EMPTY)),
    (bare, True, 5, (EMPTY,)),
    (keyword_only, False, None, (int,)),
    (of_variable, False, None, (EMPTY,)),
    (of_bound, False, None, (int,)),
    (functools.partial(plain, 1), False, None, (list[Model], str)),
    (Model(1).method, False, None, (bytes,)),
    (Model, False, None, (int, str)),
    (Model(1), False, None, (int,)),
    (decorate(plain), True, 2, (list[Model], str)),
    (type, False, None, ()),
]


@pytest.mark.parametrize(("fn", "skip_first", "count", "expected"), PARAMETERS, ids=map(str, range(len(PARAMETERS))))
def test_parameter_annotations_are_found(
    fn: Callable[..., Any], skip_first: bool, count: int | None, expected: object
) -> None:
    """
    The annotations of positional parameters are found, and a ``*args`` stands for as many as are needed.
    """
    cache = AnnotationCache()
    assert parameter_annotations(fn, skip_first, count) == expected
    assert cache.parameter_annotations(fn, skip_first, count) == expected
    assert cache.parameter_annotations(fn, skip_first, count) == expected


@pytest.mark.parametrize("fn", [of_nothing_known, of_missing_attribute])
def test_return_annotation_that_cannot_be_resolved_says_what_to_write(fn: Callable[..., Any]) -> None:
    """
    A name that is not there is a misuse, and the message names the function and both remedies.
    """
    with pytest.raises(
        MisuseError, match=r"of_\w+ cannot be resolved .*Missing.* make the name importable .* or pass returns="
    ):
        AnnotationCache().return_annotation(fn)


def test_parameter_annotation_that_cannot_be_resolved_names_the_parameter() -> None:
    """
    A parameter's annotation that names what is not there is a misuse.
    """
    with pytest.raises(MisuseError, match=r"the annotation of 'a' of .*only_parameter_unknown cannot be resolved"):
        parameter_annotations(only_parameter_unknown, False)


def test_annotation_may_name_what_the_function_closes_over() -> None:
    """
    A name in a string is looked up among the variables around the function as well, unless one is not set yet.
    """

    class Local: ...

    def fn() -> Local:
        return Local()

    def unset() -> int:
        return later  # type: ignore[has-type,used-before-def]  # this is what is tested

    assert return_annotation(fn) is Local
    assert return_annotation(unset) is int
    later = 1


def test_annotations_of_a_decorator_that_wraps_itself_are_its_own() -> None:
    """
    A ``__wrapped__`` that leads in a circle does not hang.
    """

    def fn() -> int: ...

    fn.__wrapped__ = fn  # type: ignore[attr-defined]  # this is what is tested
    assert return_annotation(fn) is int


def test_annotation_cache_keeps_no_function_alive() -> None:
    """
    What is remembered about a function goes away with it.
    """
    cache = AnnotationCache()

    def make() -> Callable[..., int]:
        def fn(a: int) -> int: ...

        return fn

    fn = make()
    cache.return_annotation(fn)
    cache.parameter_annotations(fn, False)
    seen = weakref.ref(fn)
    del fn
    gc.collect()
    assert seen() is None


def test_annotation_cache_never_takes_a_function_for_one_that_is_gone() -> None:
    """
    A new function often has the id of one that went away; what was remembered of that is not told of it.
    """
    cache = AnnotationCache()
    ids: set[int] = set()
    for number in range(200):
        annotation = [int, str, bytes][number % 3]

        def fn() -> None: ...

        fn.__annotations__["return"] = annotation
        ids.add(id(fn))
        assert cache.return_annotation(fn) is annotation
        assert cache.return_annotation(fn) is annotation
        del fn
    assert len(ids) < 200
    gc.collect()
    assert not cache._returns


def test_empty_is_what_inspect_says() -> None:
    """
    An annotation that is absent is the one that ``inspect`` has for it.
    """
    assert EMPTY is inspect.Signature.empty
