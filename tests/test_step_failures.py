"""
Steps that fail for good: what is recorded, what the body gets, and what becomes of the instance.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

import memable
from running import INSTANCE, ending_of, kinds_of, observe_twice, run_body, run_to_end, workflow_of


class RefusedError(ConnectionError):
    """An error of the user's own, with a base that is a built-in."""


class Markup(str):
    """A string of a library's own, as templating libraries have."""

    __slots__ = ()


class Templated(Exception):  # noqa: N818 - it is no error of memable's
    def __str__(self) -> str:
        return Markup("from a template")


class Unprintable(Exception):  # noqa: N818 - it is no error of memable's
    def __str__(self) -> str:
        raise RuntimeError("cannot be printed")


async def refuse() -> None:
    raise RefusedError("port 80")


async def test_step_failure_has_the_same_facts_live_and_replayed():
    """
    A failure carries the same facts in the first run and on a replay, down to the traceback's text.
    """

    async def body(ctx: memable.Context) -> dict[str, Any]:
        with pytest.raises(memable.StepFailedError, match="RefusedError: port 80") as caught:
            await ctx.step("connect", refuse)
        assert type(caught.value) is memable.StepFailedError
        return {**vars(caught.value), "text": str(caught.value), "args": caught.value.args}

    live, replayed = await observe_twice(body)
    assert live == replayed
    assert (live["workflow"], live["instance_id"], live["key"]) == ("w", "i", "connect")
    assert (live["attempts"], live["retryable"]) == (1, True)
    assert live["text"] == (
        "workflow 'w', instance 'i', key 'connect': the step failed with "
        f"{__name__}.RefusedError: port 80; mend the cause, then engine.resume(...) runs it again"
    )


async def test_step_failure_tells_what_the_attempt_raised():
    """
    ``error`` names the type, its bases and the message, and has the traceback as text.
    """

    async def body(ctx: memable.Context) -> memable.ErrorInfo:
        with pytest.raises(memable.StepFailedError, match="port 80") as caught:
            await ctx.step("connect", refuse)
        return caught.value.error

    live, replayed = await observe_twice(body)
    assert live == replayed
    assert (live.type, live.message) == (f"{__name__}.RefusedError", "port 80")
    assert live.bases == (
        "builtins.ConnectionError",
        "builtins.OSError",
        "builtins.Exception",
        "builtins.BaseException",
    )
    assert "in refuse" in live.traceback
    assert live.traceback.endswith("RefusedError: port 80\n")


async def test_step_failure_matches_by_recorded_names():
    """
    ``matches`` answers by the recorded type and its bases, the same live and on a replay.
    """

    async def body(ctx: memable.Context) -> list[bool]:
        with pytest.raises(memable.StepFailedError, match="port 80") as caught:
            await ctx.step("connect", refuse)
        return [caught.value.matches(cls) for cls in (RefusedError, ConnectionError, OSError, Exception, ValueError)]

    live, replayed = await observe_twice(body)
    assert live == replayed == [True, True, True, True, False]


async def test_step_failure_may_be_caught_and_is_not_run_again():
    """
    A body may catch a failure and go on: it is memoised like a value.
    """
    calls: list[str] = []

    async def fail() -> None:
        calls.append("fail")
        raise ValueError("no")

    async def fall_back() -> str:
        calls.append("fall back")
        return "fallen back"

    async def body(ctx: memable.Context) -> str:
        try:
            await ctx.step("fail", fail)
        except memable.StepFailedError:
            return await ctx.step("fall-back", fall_back)
        return "not reached"

    assert await observe_twice(body) == ("fallen back", "fallen back")
    assert calls == ["fail", "fall back"]


async def test_step_failure_fails_the_instance_when_it_leaves_the_body():
    """
    A failure that nobody catches leaves the instance Failed, with the step's failure as its error.
    """
    state = await run_body(lambda ctx: ctx.step("connect", refuse))
    assert isinstance(state, memable.Failed)
    assert state.error.matches(memable.StepFailedError)
    assert state.error.message.startswith("workflow 'w', instance 'i', key 'connect': the step failed with ")


async def test_step_failure_does_not_drag_the_original_exception_along():
    """
    The original exception is no cause or context of the failure: a replay does not have it, so the first run neither.
    """

    async def body(ctx: memable.Context) -> tuple[object, object]:
        with pytest.raises(memable.StepFailedError, match="port 80") as caught:
            await ctx.step("connect", refuse)
        return caught.value.__cause__, caught.value.__context__

    assert await observe_twice(body) == ((None, None), (None, None))


async def test_step_failure_is_run_again_by_a_resume():
    """
    ``resume`` clears the failure that left the body, and keeps the other memos.
    """
    calls: list[str] = []

    async def work(name: str) -> None:
        calls.append(name)
        if calls == ["a", "b"]:
            raise ValueError("not yet")

    async def body(ctx: memable.Context) -> None:
        await ctx.step("a", work, "a")
        await ctx.step("b", work, "b")

    store = memable.InMemoryStore()
    assert isinstance(await run_body(body, store=store), memable.Failed)
    async with memable.open_engine(store, workflows=[workflow_of(body)]) as engine:
        assert await ending_of(await engine.resume("w", INSTANCE)) == memable.Completed()
    assert calls == ["a", "b", "b"]


async def test_step_failure_survives_pickle_and_copies():
    """
    A failure can be pickled and copied; the copy has the same facts.
    """

    async def body(ctx: memable.Context) -> None:
        with pytest.raises(memable.StepFailedError, match="port 80") as caught:
            await ctx.step("connect", refuse)
        for twin in (pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value), copy.deepcopy(caught.value)):  # noqa: S301 - its own
            assert (type(twin), vars(twin)) == (type(caught.value), vars(caught.value))

    assert await run_body(body) == memable.Completed()


async def test_step_failure_group_is_recorded_with_its_leaves():
    """
    Of an exception group the leaves are recorded; it matches a class if all of them do.
    """

    async def fail() -> None:
        raise ExceptionGroup("both", [ConnectionError("a"), ExceptionGroup("inner", [RefusedError("b")])])

    async def body(ctx: memable.Context) -> tuple[tuple[str, ...], bool, bool, bool]:
        with pytest.raises(memable.StepFailedError, match="both") as caught:
            await ctx.step("fail", fail)
        error = caught.value
        types = tuple(leaf.type for leaf in error.error.leaves)
        return types, error.matches(ConnectionError), error.matches(RefusedError), error.matches(ExceptionGroup)

    live, replayed = await observe_twice(body)
    assert live == replayed == (("builtins.ConnectionError", f"{__name__}.RefusedError"), True, False, True)


@pytest.mark.parametrize(
    ("exc", "message"),
    [
        (Unprintable(), "<unprintable: its __str__ raised RuntimeError>"),
        (Templated(), "from a template"),
        (ValueError("\udcff is no text"), "\udcff is no text"),
        (ValueError(), ""),
        (KeyError("k"), "'k'"),
        (ValueError("x" * 10_000), "x" * 8_192 + " [...]"),
    ],
    ids=["unprintable", "str subclass", "surrogate", "empty", "KeyError", "long"],
)
async def test_step_failure_records_any_exception(exc: Exception, message: str):
    """
    Whatever an exception's message is, it is recorded as plain text of a bounded length.
    """

    async def fail() -> None:
        raise exc

    async def body(ctx: memable.Context) -> str:
        with pytest.raises(memable.StepFailedError, match="the step failed") as caught:
            await ctx.step("fail", fail)
        assert type(caught.value.error.message) is str
        return caught.value.error.message

    assert await observe_twice(body) == (message, message)


async def test_step_failure_is_found_under_its_new_name_by_an_alias():
    """
    A class that was renamed since is matched by its new name, if ``aliases`` says so.
    """
    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []
    answers: list[bool] = []

    class RejectedError(OSError):
        pass

    async def body(ctx: memable.Context) -> None:
        with pytest.raises(memable.StepFailedError, match="port 80") as caught:
            await ctx.step("connect", refuse)
        answers.append(caught.value.matches(RejectedError))
        copies.append(store.crashed_copy())

    await run_body(body, store=store)
    await run_body(body, store=copies[0], aliases={f"{__name__}.RefusedError": RejectedError})
    assert answers == [False, True]


# What is no outcome ----------------------------------------------------------------------------------------------


class Abort(BaseException):
    """Neither an Exception nor one of Python's own."""


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, Abort])
async def test_step_base_exception_stops_the_engine_unrecorded(kind: type[BaseException]):
    """
    What is no Exception is never an outcome: it comes out of the engine's block as itself, the instance stays Running.
    """
    store = memable.InMemoryStore()
    raised = kind("out")

    async def interrupt() -> None:
        if not recovered:
            raise raised

    recovered = False
    workflow = workflow_of(lambda ctx: ctx.step("interrupt", interrupt))
    with pytest.raises(kind, match="out") as caught:
        await run_to_end(workflow, store=store)
    assert caught.value is raised
    assert kinds_of(store) == ["instance_started"]
    recovered = True
    assert await run_to_end(workflow, store=store) == memable.Completed()


async def test_step_group_with_a_keyboard_interrupt_is_no_outcome():
    """
    Of a group with a KeyboardInterrupt among its leaves, that one comes out, and nothing is recorded.
    """
    store = memable.InMemoryStore()

    async def fail() -> None:
        raise BaseExceptionGroup("mixed", [ValueError("no"), ExceptionGroup("inner", [OSError()]), KeyboardInterrupt()])

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        await run_body(lambda ctx: ctx.step("fail", fail), store=store)
    assert kinds_of(store) == ["instance_started"]


async def test_step_stop_iteration_is_an_ordinary_failure():
    """
    A StopIteration out of a step's function does not end the coroutine around it: it is a failure.
    """

    def stop() -> None:
        raise StopIteration

    async def body(ctx: memable.Context) -> bool:
        with pytest.raises(memable.StepFailedError, match="StopIteration") as caught:
            await ctx.step_in_thread("stop", stop)
        return caught.value.matches(RuntimeError)

    assert await observe_twice(body) == (True, True)
