"""
Steps that succeed: what is memoised, what runs again, and what the body sees of it.
"""

from __future__ import annotations

import functools
from typing import Any

import attrs
import pytest
import trio

import memable
from running import INSTANCE, ending_of, kinds_of, observe_twice, run_body, run_to_end, workflow_of


@attrs.define
class Order:
    lines: list[str]


@attrs.define
class BigOrder(Order):
    discount: int = 0


async def test_step_calls_its_function_with_the_arguments():
    """
    A step calls its function with the positional arguments behind it and returns its value.
    """
    seen: list[object] = []

    async def join(left: str, right: str) -> str:
        return left + right

    async def body(ctx: memable.Context) -> None:
        seen.append(await ctx.step("join", join, "a", "b"))

    await run_body(body)
    assert seen == ["ab"]


async def test_step_is_not_run_again_once_it_is_recorded():
    """
    A step whose outcome was recorded before a crash is not run again after it.
    """
    calls: list[int] = []

    async def fetch() -> int:
        calls.append(1)
        return len(calls)

    live, replayed = await observe_twice(lambda ctx: ctx.step("fetch", fetch))
    assert (live, replayed, calls) == (1, 1, [1])


async def test_step_that_crashed_before_its_record_runs_again():
    """
    A crash inside a step's function runs that step again.
    """
    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []

    async def fetch() -> int:
        copies.append(store.crashed_copy())
        return len(copies)

    workflow = workflow_of(lambda ctx: ctx.step("fetch", fetch))
    assert await run_to_end(workflow, store=store) == memable.Completed()
    assert await run_to_end(workflow, store=copies[0]) == memable.Completed()
    assert len(copies) == 2


async def test_step_under_a_new_key_runs_again():
    """
    A step that the code gives a new key runs, whatever is recorded under the old one.
    """
    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []
    calls: list[str] = []

    async def fetch(version: str) -> str:
        calls.append(version)
        return version

    async def body(ctx: memable.Context) -> None:
        version = f"v{len(copies) + 1}"
        calls.append(await ctx.step(f"fetch:{version}", fetch, version))
        copies.append(store.crashed_copy())

    await run_body(body, store=store)
    await run_body(body, store=copies[0])
    assert calls == ["v1", "v1", "v2", "v2"]


async def test_step_order_may_change_between_runs():
    """
    Memos are found by key: steps that ran in one order are returned in another.
    """
    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []
    calls: list[str] = []
    seen: list[list[str]] = []

    async def work(name: str) -> str:
        calls.append(name)
        return name

    async def body(ctx: memable.Context) -> None:
        names = ["c", "new", "a"] if copies else ["a", "b", "c"]
        seen.append([await ctx.step(name, work, name) for name in names])
        copies.append(store.crashed_copy())

    await run_body(body, store=store)
    await run_body(body, store=copies[0])
    assert seen == [["a", "b", "c"], ["c", "new", "a"]]
    assert calls == ["a", "b", "c", "new"]


async def test_step_outcome_is_durable_before_it_is_returned():
    """
    When a step returns, its record is in the store.
    """
    store = memable.InMemoryStore()
    kinds: list[list[str]] = []

    async def body(ctx: memable.Context) -> None:
        await ctx.step("sleep", trio.lowlevel.checkpoint)
        kinds.append(kinds_of(store))

    await run_body(body, store=store)
    assert kinds == [["instance_started", "step_completed"]]


# Values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        ("text", str),
        (1, int),
        (True, bool),
        (None, None),
        (1.5, float),
        ((1, "a"), tuple[int, str]),
        ([1, 2], list[int]),
        ({"a": [1]}, dict[str, list[int]]),
        ({1, 2}, set[int]),
        (Order(["a"]), Order),
        (b"\x00\xff", bytes),
    ],
)
async def test_step_value_is_the_same_live_and_replayed(value: object, annotation: Any):
    """
    The first run sees the value that every replay sees, of the same type.
    """

    async def fetch() -> Any:
        return value

    async def body(ctx: memable.Context) -> object:
        return await ctx.step("fetch", fetch, returns=type(None) if annotation is None else annotation)

    live, replayed = await observe_twice(body)
    assert (type(live), live) == (type(replayed), replayed) == (type(value), value)


async def test_step_value_is_not_the_object_that_the_function_returned():
    """
    The first run, too, gets the value as decoded from its record: what the function keeps of it cannot change it.
    """
    kept = Order(["a"])

    async def fetch() -> Order:
        return kept

    async def body(ctx: memable.Context) -> Order:
        order = await ctx.step("fetch", fetch)
        kept.lines.append("later")
        assert order is not kept
        return order

    live, replayed = await observe_twice(body)
    assert live == replayed == Order(["a"])


async def test_step_int_for_a_float_is_a_float_from_the_first_run_on():
    """
    An int returned where a float is annotated is that float, live as on every replay.
    """

    async def measure() -> float:
        return 1

    live, replayed = await observe_twice(lambda ctx: ctx.step("measure", measure))
    assert (type(live), type(replayed)) == (float, float)


async def test_step_memo_is_a_new_object_in_each_run():
    """
    What a body does to a returned value is not seen by the next run.
    """

    async def fetch() -> list[int]:
        return [1]

    async def body(ctx: memable.Context) -> int:
        value = await ctx.step("fetch", fetch)
        value.append(2)
        return len(value)

    assert await observe_twice(body) == (2, 2)


async def test_step_takes_keywords_through_a_partial():
    """
    A partial gives a step's function its keywords, and the annotation behind it counts.
    """

    async def fetch(name: str, *, loud: bool) -> tuple[str, bool]:
        return name, loud

    live, replayed = await observe_twice(lambda ctx: ctx.step("fetch", functools.partial(fetch, loud=True), "a"))
    assert live == replayed == ("a", True)


async def test_step_returns_overrides_the_annotation():
    """
    What ``returns`` says counts, not the function's annotation.
    """

    async def fetch() -> object:
        return (1, 2)

    live, replayed = await observe_twice(lambda ctx: ctx.step("fetch", fetch, returns=tuple[int, int]))
    assert live == replayed == (1, 2)


class Fetcher:
    async def __call__(self, name: str) -> str:
        return f"called {name}"

    async def fetch(self, name: str) -> str:
        return f"method {name}"

    @classmethod
    async def make(cls, name: str) -> str:
        return f"class {name}"

    @staticmethod
    async def plain(name: str) -> str:
        return f"static {name}"


def logged(fn: Any) -> Any:
    @functools.wraps(fn)
    def wrapper(*args: Any) -> Any:
        return fn(*args)

    return wrapper


@pytest.mark.parametrize(
    ("fn", "value"),
    [
        (Fetcher(), "called x"),
        (Fetcher().fetch, "method x"),
        (Fetcher.make, "class x"),
        (Fetcher.plain, "static x"),
        (lambda name: Fetcher().fetch(name), "method x"),
        (functools.partial(functools.partial(Fetcher.plain)), "static x"),
        (functools.partial(Fetcher()), "called x"),
        (logged(Fetcher.plain), "static x"),
        (logged(logged(Fetcher().fetch)), "method x"),
    ],
    ids=["object", "method", "classmethod", "staticmethod", "lambda", "partial", "partial object", "wrapped", "twice"],
)
async def test_step_takes_whatever_gives_an_awaitable(fn: Any, value: str):
    """
    Whatever gives an awaitable when called can be a step's function.
    """
    assert await observe_twice(lambda ctx: ctx.step("k", fn, "x")) == (value, value)


# Tasks -----------------------------------------------------------------------------------------------------------


async def test_steps_run_in_tasks_of_a_nursery(autojump_clock: trio.testing.MockClock):
    """
    Steps may run concurrently in an ordinary nursery; each one has its own memo.
    """

    async def work(seconds: int) -> int:
        await trio.sleep(seconds)
        return seconds

    async def body(ctx: memable.Context) -> tuple[dict[int, int], float]:
        found: dict[int, int] = {}
        began = trio.current_time()

        async def one(seconds: int) -> None:
            found[seconds] = await ctx.step(f"work-{seconds}", work, seconds)

        async with trio.open_nursery() as nursery:
            for seconds in (3, 1, 2):
                nursery.start_soon(one, seconds)
        return found, trio.current_time() - began

    live, replayed = await observe_twice(body)
    assert live == ({1: 1, 2: 2, 3: 3}, 3.0)
    assert replayed == ({1: 1, 2: 2, 3: 3}, 0.0)


async def test_step_function_may_be_used_under_many_keys():
    """
    One function may be the work of many steps at once: the key tells them apart.
    """
    calls: list[int] = []

    async def work(number: int) -> int:
        await trio.lowlevel.checkpoint()
        calls.append(number)
        return number

    async def body(ctx: memable.Context) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(ctx.step, f"work-{number}", work, number)

    await run_body(body)
    assert sorted(calls) == list(range(10))


async def test_step_is_a_checkpoint_when_it_runs():
    """
    A step is a checkpoint, whatever its function does.
    """

    async def nothing() -> None:
        pass

    async def body(ctx: memable.Context) -> None:
        with trio.testing.assert_checkpoints():
            await ctx.step("nothing", nothing)
        with trio.testing.assert_checkpoints():
            await ctx.step_in_thread("nothing in thread", int)

    assert await observe_twice(body) == (None, None)


async def test_step_is_a_checkpoint_when_it_fails():
    """
    A step is a checkpoint when it raises a failure, live and from its memo.
    """

    async def fail() -> None:
        raise ValueError("no")

    async def body(ctx: memable.Context) -> None:
        with trio.testing.assert_checkpoints(), pytest.raises(memable.StepFailedError, match="no"):
            await ctx.step("fail", fail)
        with trio.testing.assert_checkpoints(), pytest.raises(memable.SerializationError, match="object"):
            await ctx.step_in_thread("object", object)

    assert await observe_twice(body) == (None, None)


async def test_steps_of_two_instances_do_not_share_memos():
    """
    A key names a step within one instance only.
    """
    calls: list[str] = []

    async def work(name: str) -> str:
        calls.append(name)
        return name

    @memable.workflow
    async def named(ctx: memable.Context, name: str) -> str:
        return await ctx.step("work", work, name)

    async with memable.open_engine(memable.InMemoryStore(), workflows=[named]) as engine:
        for name in ("a", "b"):
            invocation = await engine.invoke(named, name, instance_id=name)
            assert await invocation.result() == name
    assert calls == ["a", "b"]


async def test_step_value_of_another_type_than_recorded_blocks_the_instance():
    """
    A memo is never read as another type than it was written as: the instance is Blocked at the key.
    """
    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []

    async def fetch() -> Any:
        return 1

    async def body(ctx: memable.Context) -> None:
        await ctx.step("fetch", fetch, returns=str if copies else int)
        copies.append(store.crashed_copy())

    await run_body(body, store=store)
    state = await run_body(body, store=copies[0])
    assert isinstance(state, memable.Blocked)
    assert (state.key, state.error.type) == ("fetch", "memable.TypeMismatchError")
    assert state.error.message.startswith("workflow 'w', instance 'i', key 'fetch': the code asks for builtins.str")


async def test_step_goes_on_after_the_code_was_mended():
    """
    What blocked an instance is forgotten once the code is mended: it goes on at the next open, over its memos.
    """
    store = memable.InMemoryStore()
    wrong = True
    calls: list[str] = []

    async def work(name: str) -> None:
        calls.append(name)

    async def body(ctx: memable.Context) -> None:
        await ctx.step("a", work, "a")
        await ctx.step("a" if wrong else "b", work, "b")

    assert isinstance(await run_body(body, store=store), memable.Blocked)
    wrong = False
    async with memable.open_engine(store, workflows=[workflow_of(body)]) as engine:
        assert await ending_of(await engine.get("w", INSTANCE)) == memable.Completed()
    assert calls == ["a", "b"]
