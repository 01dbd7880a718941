"""
``@memable.workflow``: what can be one, what it is called, and what it remembers.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
from typing import Any

import pytest

import memable
from memable import INHERIT, Workflow, workflow


@workflow
async def greet(ctx: memable.Context, name: str, times: int = 1) -> str:
    """
    Greet somebody.
    """
    return f"hello {name}" * times


def test_workflow_is_named_after_its_function():
    """
    A workflow's name is its function's, unless another one is given.
    """

    @workflow(name="order", retention=60)
    async def place_order(ctx: memable.Context) -> None: ...

    assert (greet.name, place_order.name) == ("greet", "order")
    assert (greet.retention, place_order.retention) == (INHERIT, 60)
    assert repr(place_order) == "<memable.Workflow 'order'>"
    assert isinstance(greet, Workflow)


async def test_workflow_that_is_called_runs_the_plain_function():
    """
    Calling a workflow runs its function, keywords and all, without an engine.
    """
    ctx: Any = None
    assert await greet(ctx, "Ada", times=2) == "hello Adahello Ada"


def test_workflow_looks_like_its_function():
    """
    A workflow has the name, the documentation and the annotations of its function.
    """
    assert greet.__name__ == "greet"  # type: ignore[attr-defined] # as of a function
    assert inspect.getdoc(greet) == "Greet somebody."
    assert greet.__wrapped__ is greet.fn  # type: ignore[attr-defined] # as of a wrapper


def test_workflow_signature_is_that_of_its_input():
    """
    A workflow's signature is what has to be given to start it: its function's, without the context.
    """
    assert str(greet.signature) == "(name: 'str', times: 'int' = 1) -> 'str'"


@pytest.mark.parametrize("name", ["", "a/b", "_a", "a\n", "\ud800", "x" * 256, 3])
def test_workflow_name_that_breaks_the_rule_is_refused_at_definition(name: Any):
    """
    A name that breaks the rule for names is refused where the workflow is defined.
    """
    with pytest.raises(memable.InvalidKeyError, match=r"^workflow name ") as caught:

        @workflow(name=name)
        async def named(ctx: memable.Context) -> None: ...

    assert caught.value.component == "workflow name"


def test_workflow_name_that_is_the_functions_is_checked_as_well():
    """
    The name of a private function is no name for a workflow: it must be given one.
    """
    with pytest.raises(memable.InvalidKeyError, match="starts with '_'"):

        @workflow
        async def _private(ctx: memable.Context) -> None: ...


@pytest.mark.parametrize("retention", [None, 0, 1.5, math.inf, INHERIT])
def test_workflow_retention_is_kept(retention: Any):
    """
    A retention is seconds from 0 on, None for ever, or the engine's.
    """

    @workflow(retention=retention)
    async def kept(ctx: memable.Context) -> None: ...

    assert kept.retention is retention


@pytest.mark.parametrize("retention", [-1, math.nan, -math.inf, True, "1"])
def test_workflow_retention_that_is_senseless_is_refused(retention: Any):
    """
    A retention that is negative, NaN or no number is a ValueError.
    """
    with pytest.raises(ValueError, match="retention must be a number of seconds, at least 0, or None for ever, not "):

        @workflow(retention=retention)
        async def kept(ctx: memable.Context) -> None: ...


class Place:
    async def method(self, ctx: memable.Context, name: str) -> str:
        return name

    async def __call__(self, ctx: memable.Context) -> None: ...


async def with_rest(*args: Any) -> None: ...


async def with_rest_behind(ctx: memable.Context, *names: str) -> None: ...


async def with_keyword(ctx: memable.Context, *, loud: bool = False) -> None: ...


async def with_everything(ctx: memable.Context, /, name: str, *names: str, **more: Any) -> None: ...


@pytest.mark.parametrize(
    ("fn", "signature"),
    [
        (Place().method, "(name: 'str') -> 'str'"),
        (Place(), "() -> 'None'"),
        (functools.partial(Place().method), "(name: 'str') -> 'str'"),
        (with_rest, "(*args: 'Any') -> 'None'"),
        (with_rest_behind, "(*names: 'str') -> 'None'"),
        (with_keyword, "(*, loud: 'bool' = False) -> 'None'"),
        (functools.partial(with_keyword, loud=True), "(*, loud: 'bool' = True) -> 'None'"),
        (with_everything, "(name: 'str', *names: 'str', **more: 'Any') -> 'None'"),
    ],
    ids=["method", "object", "partial", "rest", "rest behind", "keyword", "partial keyword", "everything"],
)
def test_workflow_may_be_made_of(fn: Any, signature: str):
    """
    Whatever is async and takes a context in first place can be a workflow.
    """
    assert str(workflow(name="w")(fn).signature) == signature


async def with_default(ctx: memable.Context, name: str, title: str = "") -> None: ...


@pytest.mark.parametrize(
    ("fn", "counts"),
    [
        (Place().method, {1}),
        (Place(), {0}),
        (functools.partial(with_default, title="Ms"), {1}),
        (with_default, {1, 2}),
        (with_rest, {0, 1, 2, 3, 9}),
        (with_rest_behind, {0, 1, 2, 3, 9}),
        (with_keyword, {0}),
        (with_everything, {1, 2, 3, 9}),
    ],
    ids=["method", "object", "partial", "default", "rest", "rest behind", "keyword", "everything"],
)
def test_workflow_takes_as_many_arguments_as_its_signature(fn: Any, counts: set[int]):
    """
    What a workflow takes besides its context is what its signature binds, and it refuses the rest in the same words.
    """
    definition = workflow(name="w")(fn)
    for count in (0, 1, 2, 3, 9):
        args = (None,) * count
        if count in counts:
            definition.signature.bind(*args)
            definition.check_arguments(args)
            continue
        with pytest.raises(TypeError, match=r"too many positional|missing a required") as expected:
            definition.signature.bind(*args)
        with pytest.raises(TypeError, match=re.escape(str(expected.value))):
            definition.check_arguments(args)


def sync(ctx: memable.Context) -> None: ...


async def stream(ctx: memable.Context) -> Any:
    yield


async def nothing() -> None: ...


async def by_keyword(*, ctx: memable.Context) -> None: ...


async def needs_keyword(ctx: memable.Context, *, name: str) -> None: ...


@pytest.mark.parametrize(
    ("fn", "problem"),
    [
        (sync, "is not an async function; a workflow is written 'async def w(ctx)'"),
        (functools.partial(sync), "is not an async function"),
        (stream, "is not an async function"),
        (3, "is not an async function"),
        (Place, "is not an async function"),
        (nothing, "its function takes no context; write it as 'async def name(ctx, ...)'"),
        (by_keyword, "its function takes no context"),
        (
            needs_keyword,
            (
                "parameter 'name' can only be given by keyword, but arguments of a workflow are positional; make it "
                "positional or give it a default"
            ),
        ),
    ],
    ids=["sync", "partial", "generator", "number", "class", "no context", "by keyword", "needs keyword"],
)
def test_workflow_cannot_be_made_of(fn: Any, problem: str):
    """
    What cannot be a workflow is refused at its definition, with what to write.
    """
    with pytest.raises(memable.MisuseError, match=r"^workflow 'w': ") as caught:
        workflow(name="w")(fn)
    assert problem in str(caught.value)
    assert isinstance(caught.value, TypeError)


def test_workflow_of_a_nameless_function_needs_a_name():
    """
    A partial has no name of its own, so one must be given.
    """
    with pytest.raises(memable.MisuseError, match=r"has no __name__; give one with @memable\.workflow\(name=\.\.\.\)"):
        workflow(functools.partial(with_rest))


def test_definition_does_nothing_else():
    """
    Defining a workflow runs and registers nothing: two of the same name may be defined.
    """
    assert workflow(name="w")(with_rest) is not workflow(name="w")(with_rest)
