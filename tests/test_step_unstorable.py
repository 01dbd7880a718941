"""
Values that cannot be stored, of steps and of whole workflows.
"""

from __future__ import annotations

from typing import Any

import attrs
import cattrs
import pytest
import trio

import memable
from running import INSTANCE, ending_of, observe_twice, run_body, workflow_of

# Values that cannot be stored ------------------------------------------------------------------------------------


async def test_step_value_that_cannot_be_encoded_is_a_recorded_failure():
    """
    A value that cannot be stored is a permanent failure: recorded, raised as SerializationError now and on replay.
    """
    calls: list[int] = []

    async def fetch() -> Any:
        calls.append(1)
        return object()

    async def body(ctx: memable.Context) -> dict[str, Any]:
        with pytest.raises(memable.SerializationError, match="key 'fetch'") as caught:
            await ctx.step("fetch", fetch, retry=memable.RetryPolicy.fixed(5, 1.0))
        return {**vars(caught.value), "text": str(caught.value)}

    live, replayed = await observe_twice(body)
    assert live == replayed
    assert calls == [1]
    assert (live["workflow"], live["instance_id"], live["key"]) == ("w", "i", "fetch")


async def test_step_value_that_is_not_of_its_annotated_type_is_a_recorded_failure():
    """
    A value of another type than annotated is refused, never converted.
    """

    async def fetch() -> str:
        return 1  # type: ignore[return-value] # the mistake that is tested

    async def body(ctx: memable.Context) -> str:
        with pytest.raises(memable.SerializationError, match="key 'fetch'") as caught:
            await ctx.step("fetch", fetch)
        return str(caught.value)

    live, replayed = await observe_twice(body)
    assert live == replayed


async def test_step_value_that_is_too_large_is_a_recorded_failure():
    """
    A value that takes more than ``max_value_bytes`` is a permanent failure of its step.
    """
    calls: list[int] = []

    async def fetch() -> str:
        calls.append(1)
        return "x" * 1_000

    async def body(ctx: memable.Context) -> str:
        with pytest.raises(memable.SerializationError, match="key 'fetch'") as caught:
            await ctx.step("fetch", fetch)
        return str(caught.value)

    live, replayed = await observe_twice(body, max_value_bytes=100)
    assert (live, calls) == (replayed, [1])


async def test_step_annotation_that_cannot_be_stored_is_found_before_the_function_runs():
    """
    What an annotation already tells is found before the function can have an effect, and recorded.
    """
    calls: list[int] = []

    async def fetch() -> trio.Event:
        calls.append(1)
        return trio.Event()

    async def body(ctx: memable.Context) -> str:
        with pytest.raises(memable.SerializationError, match="Event") as caught:
            await ctx.step("fetch", fetch)
        return str(caught.value)

    live, replayed = await observe_twice(body)
    assert (live, calls) == (replayed, [])


async def test_step_value_failure_fails_the_instance_and_is_run_again_by_a_resume():
    """
    A SerializationError that leaves the body fails the instance; a resume clears it, as any failure.
    """
    values: list[Any] = [object(), "mended"]

    async def fetch() -> Any:
        return values.pop(0)

    store = memable.InMemoryStore()
    state = await run_body(lambda ctx: ctx.step("fetch", fetch), store=store)
    assert isinstance(state, memable.Failed)
    assert state.error.type == "memable.SerializationError"
    async with memable.open_engine(store, workflows=[workflow_of(lambda ctx: ctx.step("fetch", fetch))]) as engine:
        assert await ending_of(await engine.resume("w", INSTANCE)) == memable.Completed()
    assert values == []


async def test_step_serialization_error_of_its_own_is_an_ordinary_failure():
    """
    A SerializationError that the function itself raises is what the step failed with, not a fault of its value.
    """

    async def fail() -> None:
        raise memable.SerializationError(problem="of somebody else's value")

    async def body(ctx: memable.Context) -> str:
        with pytest.raises(memable.StepFailedError, match="somebody else") as caught:
            await ctx.step("fail", fail)
        return caught.value.error.type

    assert await observe_twice(body) == ("memable.SerializationError", "memable.SerializationError")


@attrs.define
class Point:
    x: int


def hooks(**broken: Any) -> cattrs.Converter:
    """Return a converter of the user's own, with hooks for points."""
    converter = cattrs.Converter()
    converter.register_unstructure_hook(Point, broken.get("encode", lambda point: point.x))
    converter.register_structure_hook(Point, broken.get("decode", lambda x, _: Point(x)))
    return converter


def break_down(*_: object) -> None:
    raise RuntimeError("a hook of the user's")


async def point() -> Point:
    return Point(1)


async def test_step_value_goes_through_the_users_hooks_live_as_on_a_replay():
    """
    With a converter of the user's own, too, the first run sees what is read back.
    """
    converter = hooks(decode=lambda x, _: Point(x + 10))
    live, replayed = await observe_twice(lambda ctx: ctx.step("k", point), converter=converter)
    assert live == replayed == Point(11)


@pytest.mark.parametrize("broken", ["encode", "decode"])
async def test_step_value_that_a_hook_breaks_on_is_a_recorded_failure(broken: str):
    """
    A hook of the user's that raises makes a value one that cannot be stored.
    """

    async def body(ctx: memable.Context) -> str:
        with pytest.raises(memable.SerializationError, match=r"key 'k': .*a hook of the user's") as caught:
            await ctx.step("k", point)
        return str(caught.value)

    live, replayed = await observe_twice(body, converter=hooks(**{broken: break_down}))
    assert live == replayed


async def test_output_that_cannot_be_stored_fails_the_instance_alone():
    """
    A body's value that cannot be stored makes the instance Failed; the engine and the other workflows go on.
    """

    @memable.workflow
    async def hopeless(ctx: memable.Context) -> object:
        return object()

    workflow = workflow_of(lambda ctx: ctx.step("k", point))
    async with memable.open_engine(memable.InMemoryStore(), workflows=[hopeless, workflow]) as engine:
        state = await ending_of(await engine.invoke(hopeless, instance_id=INSTANCE))
        assert isinstance(state, memable.Failed)
        assert state.error.type == "memable.SerializationError"
        assert state.error.message.startswith("workflow 'hopeless', instance 'i': ")
        assert await ending_of(await engine.invoke(workflow, instance_id=INSTANCE)) == memable.Completed()
