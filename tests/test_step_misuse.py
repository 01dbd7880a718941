"""
Calls of a step that cannot work: recognised before anything runs where that can be told, and told how to write them.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio

import memable
from memable._step_misuse import find_misuse, find_misused_result
from running import kinds_of, run_body


async def fetch(name: str = "") -> str:
    return name


def block(name: str = "") -> str:
    return name


def promise() -> Awaitable[str]:
    return fetch()


def promise_in_quotes() -> "Awaitable[str]":  # noqa: UP037 - as some write it
    return fetch()


async def stream() -> AsyncIterator[int]:
    yield 1


def count() -> Iterator[int]:
    yield 1


class AsyncCallable:
    async def __call__(self) -> str:
        return ""

    async def fetch(self) -> str:
        return ""


class SyncCallable:
    def __call__(self) -> str:
        return ""

    def block(self) -> str:
        return ""


class Anything:
    """Has every attribute, as proxies and mocks do."""

    def __getattr__(self, name: str) -> Anything:
        return Anything()

    async def __call__(self) -> str:
        return "anything"


@functools.wraps(fetch)
def wrapper(*args: Any) -> Any:
    return fetch(*args)


def names() -> Callable[[object], str]:
    """
    Return what gives each of some objects a name that is the same in every process: its repr without an address.
    """
    seen: Counter[str] = Counter()

    def name(given: object) -> str:
        text = re.sub(r" at 0x[0-9a-f]+", "", repr(given))
        seen[text] += 1
        return text if seen[text] == 1 else f"{text} {seen[text]}"

    return name


# What is told before the function runs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fn",
    [
        fetch,
        functools.partial(fetch, "a"),
        AsyncCallable(),
        AsyncCallable().fetch,
        functools.partial(AsyncCallable()),
        wrapper,
        functools.partial(wrapper),
        promise,
        promise_in_quotes,
        functools.partial(promise),
        lambda: fetch(),  # noqa: PLW0108 - a lambda is what is tested
        SyncCallable(),
        AsyncCallable,
        trio.sleep,
        Anything(),
    ],
    ids=names(),
)
def test_misuse_of_step_is_not_seen_where_there_may_be_none(fn: Callable[..., object]):
    """
    A function that is async, or may yet give an awaitable, is not refused by ``step``.
    """
    assert find_misuse("step", fn) is None


@pytest.mark.parametrize(
    ("fn", "problem"),
    [
        (
            block,
            (
                "block is not an async function; write ctx.step_in_thread(key, block, ...) for a blocking one, or "
                "annotate "
                "it '-> Awaitable[...]' if it returns one"
            ),
        ),
        (functools.partial(block, "a"), "block is not an async function; write ctx.step_in_thread(key, block, ...)"),
        (SyncCallable().block, "block is not an async function"),
        (functools.lru_cache(block), "block is not an async function"),
        (len, "len is not an async function"),
        ("".join, "join is not an async function"),
        (count, "count is not an async function"),
        (stream, "stream is an async generator; wrap it in an async function that collects what it yields"),
        (functools.partial(stream), "stream is an async generator"),
        ("text", "a str was given instead of a function; write ctx.step(key, function, *args)"),
        (None, "a NoneType was given instead of a function"),
    ],
    ids=names(),
)
def test_misuse_of_step_says_what_to_write(fn: object, problem: str):
    """
    What ``step`` surely cannot use is refused with what to write instead.
    """
    found = find_misuse("step", fn)
    assert found is not None
    assert found.startswith(problem)


@pytest.mark.parametrize(
    "fn",
    [
        block,
        functools.partial(block, "a"),
        len,
        SyncCallable(),
        SyncCallable().block,
        SyncCallable,
        int,
        AsyncCallable,
        lambda: 1,
    ],
    ids=names(),
)
def test_misuse_of_step_in_thread_is_not_seen_where_there_is_none(fn: Callable[..., object]):
    """
    A blocking function, an object or a class that is called like one is not refused by ``step_in_thread``.
    """
    assert find_misuse("step_in_thread", fn) is None


@pytest.mark.parametrize(
    ("fn", "problem"),
    [
        (fetch, "fetch is an async function, which cannot run in a thread; write ctx.step(key, fetch, ...) for it"),
        (functools.partial(fetch, "a"), "fetch is an async function"),
        (AsyncCallable(), "AsyncCallable is an async function"),
        (AsyncCallable().fetch, "fetch is an async function"),
        (functools.partial(AsyncCallable()), "AsyncCallable is an async function"),
        (stream, "stream is an async generator; wrap it in an async function that collects what it yields"),
        (functools.partial(stream), "stream is an async generator"),
        (3, "a int was given instead of a function; write ctx.step_in_thread(key, function, *args)"),
    ],
    ids=names(),
)
def test_misuse_of_step_in_thread_says_what_to_write(fn: object, problem: str):
    """
    What ``step_in_thread`` cannot use is refused with what to write instead.
    """
    found = find_misuse("step_in_thread", fn)
    assert found is not None
    assert found.startswith(problem)


@pytest.mark.parametrize("operation", ["step", "step_in_thread"])
def test_misuse_of_a_called_function_closes_its_coroutine(operation: Any):
    """
    A coroutine in place of a function is closed, so that Python does not warn of it later.
    """
    coroutine = fetch()
    assert find_misuse(operation, coroutine) == (
        f"fetch(...) was called instead of passed; write ctx.{operation}(key, fetch, ...) with its arguments"
    )
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


def test_misuse_of_another_awaitable_is_named():
    """
    An awaitable that is no coroutine is no function either.
    """

    class Future:
        def __await__(self) -> Iterator[None]:
            yield

    assert find_misuse("step", Future()) == (
        "an awaitable was given instead of a function; write ctx.step(key, function, *args)"
    )


def test_misuse_of_wrappers_in_a_circle_is_not_looked_for_for_ever():
    """
    A function that claims to wrap itself is judged as it is.
    """

    def circle() -> None: ...

    circle.__wrapped__ = circle  # type: ignore[attr-defined] # the mistake that is tested
    assert "circle is not an async function" in str(find_misuse("step", circle))


# What only the result tells --------------------------------------------------------------------------------------


def test_misuse_of_a_result_that_cannot_be_awaited():
    """
    A function given to ``step`` must return an awaitable.
    """
    assert find_misused_result("step", 1) == (
        "the function given to ctx.step returned a int, which cannot be awaited; write it as 'async def', or use "
        "ctx.step_in_thread for a blocking function"
    )


def test_misuse_of_a_coroutine_from_a_thread_closes_it():
    """
    A function given to ``step_in_thread`` must not return a coroutine; it is closed.
    """
    coroutine = fetch()
    assert find_misused_result("step_in_thread", coroutine) == (
        "the function given to ctx.step_in_thread returned a coroutine; use ctx.step for an async function"
    )
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


def test_misuse_of_an_async_generator_from_a_thread():
    """
    A function given to ``step_in_thread`` must not return an async generator either.
    """
    assert find_misused_result("step_in_thread", stream()) == (
        "the function given to ctx.step_in_thread returned a async_generator; use ctx.step for an async function"
    )


# In a workflow ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "fn", "problem"),
    [
        ("step", block, "block is not an async function"),
        ("step", lambda: 1, "returned a int, which cannot be awaited"),
        ("step", SyncCallable(), "returned a str, which cannot be awaited"),
        ("step", stream, "stream is an async generator"),
        ("step_in_thread", fetch, "fetch is an async function"),
        ("step_in_thread", stream, "stream is an async generator"),
        ("step_in_thread", lambda: fetch(), "returned a coroutine"),  # noqa: PLW0108 - a lambda is what is tested
        ("step_in_thread", promise, "returned a coroutine"),
    ],
)
async def test_misuse_blocks_the_instance_unrecorded(operation: str, fn: Callable[..., Any], problem: str):
    """
    A misused operation is a code error that is also a TypeError: nothing is recorded, and the instance is Blocked.
    """
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        with pytest.raises(TypeError, match=problem) as caught:
            await getattr(ctx, operation)("k", fn)
        assert isinstance(caught.value, memable.WorkflowCodeError)
        raise caught.value

    state = await run_body(body, store=store, default_retry=memable.RetryPolicy.fixed(3, 0.0))
    assert isinstance(state, memable.Blocked)
    assert state.key == "k"
    assert state.error.message.startswith("workflow 'w', instance 'i', key 'k': ")
    assert kinds_of(store) == ["instance_started", "instance_blocked"]


@pytest.mark.parametrize("operation", ["step", "step_in_thread"])
async def test_misuse_by_calling_instead_of_passing(operation: str):
    """
    A function that was called instead of passed never runs, and Python does not warn of its coroutine.
    """

    async def never() -> None:
        raise AssertionError("it ran")

    state = await run_body(lambda ctx: getattr(ctx, operation)("k", never()))
    assert isinstance(state, memable.Blocked)
    assert state.error.message == (
        "workflow 'w', instance 'i', key 'k': never(...) was called instead of passed; write "
        f"ctx.{operation}(key, never, ...) with its arguments"
    )


@pytest.mark.parametrize("key", ["bad/key", "used", 3])
async def test_misuse_by_calling_is_cleaned_up_after_a_refused_key(key: Any):
    """
    A coroutine that was given with a key that is refused is closed, too.
    """

    async def body(ctx: memable.Context) -> None:
        await ctx.step("used", fetch)
        await ctx.step(key, fetch())  # type: ignore[arg-type] # the mistake that is tested

    assert isinstance(await run_body(body), memable.Blocked)


async def test_misuse_by_calling_is_cleaned_up_after_the_run():
    """
    A coroutine that was given to a context whose run has ended is closed, too.
    """
    contexts: list[memable.Context] = []

    async def body(ctx: memable.Context) -> None:
        contexts.append(ctx)

    await run_body(body)
    with pytest.raises(memable.RunEndedError, match="this run has ended"):
        await contexts[0].step("k", fetch())  # type: ignore[arg-type] # the mistake that is tested


@pytest.mark.parametrize(
    ("operation", "fn", "args"),
    [
        ("step", fetch, ("a", "b")),
        ("step", functools.partial(fetch, "a"), ("b",)),
        ("step", AsyncCallable().fetch, (1,)),
        ("step_in_thread", block, ("a", "b")),
    ],
)
async def test_misuse_by_arguments_that_do_not_fit(operation: str, fn: Callable[..., Any], args: tuple[str, ...]):
    """
    Arguments that do not fit the function's signature are wrong code: the function cannot have run.
    """
    store = memable.InMemoryStore()
    state = await run_body(
        lambda ctx: getattr(ctx, operation)("k", fn, *args),
        store=store,
        default_retry=memable.RetryPolicy.fixed(3, 0.0),
    )
    assert isinstance(state, memable.Blocked)
    assert state.key == "k"
    assert "too many positional arguments" in state.error.message
    assert kinds_of(store) == ["instance_started", "instance_blocked"]


async def test_misuse_is_not_seen_in_a_type_error_of_the_function_itself():
    """
    A TypeError from inside the function, or from one that does not tell its signature, is a failure like any other.
    """

    async def fail(name: str) -> None:
        fetch(name, name)  # type: ignore[call-arg, unused-coroutine] # the mistake that is tested

    @functools.wraps(fetch)
    async def inject(client: str) -> None:
        raise TypeError(f"{client} is no client")

    async def body(ctx: memable.Context) -> None:
        with pytest.raises(memable.StepFailedError, match="takes from 0 to 1 positional arguments"):
            await ctx.step("a", fail, "x")
        with pytest.raises(memable.StepFailedError, match="x is no client"):
            await ctx.step("b", inject, "x")
        with pytest.raises(memable.StepFailedError, match="object is not iterable"):
            await ctx.step_in_thread("c", dict, 1)

    assert await run_body(body) == memable.Completed()


async def test_misuse_of_limiter():
    """
    What is no limiter is refused before the function runs.
    """
    state = await run_body(lambda ctx: ctx.step_in_thread("k", int, limiter=3))  # type: ignore[arg-type] # the mistake
    assert isinstance(state, memable.Blocked)
    assert state.error.message == (
        "workflow 'w', instance 'i', key 'k': limiter is 3; give a trio.CapacityLimiter, or leave it out"
    )


@pytest.mark.parametrize("retry", [3, "often", memable.RetryPolicy, object()])
async def test_misuse_of_retry(retry: Any):
    """
    What is no policy is refused before the function runs.
    """

    async def never() -> None:
        raise AssertionError("it ran")

    state = await run_body(lambda ctx: ctx.step("k", never, retry=retry))
    assert isinstance(state, memable.Blocked)
    assert state.error.message == (
        f"workflow 'w', instance 'i', key 'k': retry is {retry!r}; give a memable.RetryPolicy, None for no retries, or "
        "leave it out"
    )


async def test_misuse_of_an_annotation_that_cannot_be_found():
    """
    A return annotation that names nothing is wrong code: the instance is Blocked before the function runs.
    """

    async def never() -> "Nowhere":  # type: ignore[name-defined] # noqa: F821, UP037 - the mistake that is tested
        raise AssertionError("it ran")

    state = await run_body(lambda ctx: ctx.step("k", never))
    assert isinstance(state, memable.Blocked)
    assert state.key == "k"
    assert "Nowhere" in state.error.message
