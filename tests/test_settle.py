"""
Settling: a person answers for an effect whose outcome is unknown.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import Any, Generic, Literal, NamedTuple, TypedDict, TypeVar
from uuid import UUID

import attrs
import pytest
import trio

import memable
from crashing import crashed_in_effect, never, pay_once
from memable._values._codec import Codec
from running import INSTANCE, ending_of, kinds_of, workflow_of
from stores import Gate, HookedStore, failing_at

T = TypeVar("T")


@attrs.frozen
class Receipt:
    number: int
    lines: list[str] = attrs.field(factory=list)


@dataclass
class Refund:
    amount: Decimal
    of: Receipt | None = None
    tags: set[str] = field(default_factory=set)


@attrs.frozen
class Box(Generic[T]):
    content: T


@attrs.define
class Tree:
    left: Tree | None = None


class Point(NamedTuple):
    x: int
    y: float


class Movie(TypedDict):
    title: str


class Color(enum.Enum):
    RED = 1
    BLUE = 2


async def blocked_at(annotation: Any, body: Callable[..., Awaitable[object]] = pay_once) -> memable.InMemoryStore:
    """
    Return a store with an instance whose effect, of that type, was cut short.
    """
    return await crashed_in_effect(lambda ctx, effect: ctx.step("pay", effect, once=True, returns=annotation))


def returning(annotation: Any, told: list[object], **options: Any) -> memable.Workflow[[], None]:
    """
    Return a workflow with one effect of that type, which must not run; its value is told.
    """

    async def body(ctx: memable.Context) -> None:
        told.append(await ctx.step("pay", never, once=True, returns=annotation, **options))

    return workflow_of(body)


# Answers -----------------------------------------------------------------------------------------------------------


async def test_settle_with_a_value_lets_the_instance_go_on(autojump_clock: object):
    """
    The value is the step's, now and on replay; it is durable when settle returns, and the instance runs.
    """
    store, told = await blocked_at(str), []
    workflow = returning(str, told)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        invocation = await engine.get(workflow, INSTANCE)
        assert isinstance(await ending_of(invocation), memable.Blocked)
        await engine.settle(workflow, INSTANCE, "pay", value="paid")
        assert "step_completed" in kinds_of(store)
        assert not isinstance(await invocation.state(), memable.Blocked)
        assert await ending_of(invocation) == memable.Completed()
    assert told == ["paid"]


async def test_settle_with_an_error_makes_the_step_fail(autojump_clock: object):
    """
    The exception is what the step failed with: StepFailedError with its facts, which a body may catch.
    """
    store = await blocked_at(str)
    told: list[memable.StepFailedError] = []

    async def body(ctx: memable.Context) -> None:
        try:
            await ctx.step("pay", never, once=True)
        except memable.StepFailedError as error:
            told.append(error)

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        invocation = await engine.get(workflow, INSTANCE)
        await ending_of(invocation)
        await engine.settle(workflow, INSTANCE, "pay", error=ConnectionError("declined"))
        assert await ending_of(invocation) == memable.Completed()
    (error,) = told
    assert error.matches(ConnectionError)
    assert (error.error.message, error.attempts) == ("declined", 1)


async def test_settle_with_rerun_runs_the_effect_under_a_new_intent(autojump_clock: object):
    """
    rerun=True says that it did not happen: it runs, once, and may become unknown again.
    """
    store = await blocked_at(str)
    copies: list[memable.InMemoryStore] = []

    async def effect() -> str:
        copies.append(store.crashed_copy())
        return "done"

    workflow = workflow_of(partial(pay_once, effect=effect))
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        invocation = await engine.get(workflow, INSTANCE)
        await ending_of(invocation)
        await engine.settle(workflow, INSTANCE, "pay", rerun=True)
        assert await ending_of(invocation) == memable.Completed()
    (crashed,) = copies
    assert kinds_of(crashed).count("intent_recorded") == 2
    async with memable.open_engine(crashed, workflows=[workflow]) as engine:
        assert isinstance(await ending_of(await engine.get(workflow, INSTANCE)), memable.Blocked)
    assert len(copies) == 1


async def test_settle_with_rerun_gives_the_probe_its_budget_back(autojump_clock: object):
    """
    What the probe tried before is nothing to the effect that runs after rerun=True.
    """
    store = await blocked_at(str)
    copies: list[memable.InMemoryStore] = []
    asked: list[int] = []

    async def effect() -> str:
        copies.append(store.crashed_copy())
        return "done"

    async def probe() -> str:
        asked.append(1)
        raise ConnectionError

    async def body(ctx: memable.Context) -> None:
        await ctx.step("pay", effect, once=True, probe=probe, retry=memable.RetryPolicy.fixed(2, 1))

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await ending_of(await engine.get(workflow, INSTANCE))
        assert len(asked) == 3
        await engine.settle(workflow, INSTANCE, "pay", rerun=True)
        await ending_of(await engine.get(workflow, INSTANCE))
    async with memable.open_engine(copies[0], workflows=[workflow]) as engine:
        await ending_of(await engine.get(workflow, INSTANCE))
    assert len(asked) == 6


async def test_settle_takes_exactly_one_answer(autojump_clock: object):
    """
    No answer, two of them, or an error that is none, is a misuse; None is a value.
    """
    store, told = await blocked_at(type(None)), []
    workflow = returning(type(None), told)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await ending_of(await engine.get(workflow, INSTANCE))
        wrong: list[dict[str, Any]] = [
            {},
            {"rerun": False},
            {"value": None, "rerun": True},
            {"value": 1, "error": ValueError()},
        ]
        for answers in wrong:
            with pytest.raises(memable.MisuseError, match="exactly one"):
                await engine.settle(workflow, INSTANCE, "pay", **answers)
        for error in ("text", ValueError, KeyboardInterrupt()):
            with pytest.raises(memable.MisuseError, match="give the exception"):
                await engine.settle(workflow, INSTANCE, "pay", error=error)  # type: ignore[call-overload]
        assert kinds_of(store)[-1] == "instance_blocked"
        await engine.settle(workflow, INSTANCE, "pay", value=None)
        assert await ending_of(await engine.get(workflow, INSTANCE)) == memable.Completed()
    assert told == [None]


async def test_settle_is_a_checkpoint(autojump_clock: object):
    """
    Settle is a checkpoint when it succeeds and when it is refused; cancelled before, it changes nothing.
    """
    store, told = await blocked_at(str), []
    workflow = returning(str, told)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await ending_of(await engine.get(workflow, INSTANCE))
        with trio.CancelScope() as scope:
            scope.cancel()
            await engine.settle(workflow, INSTANCE, "pay", value="paid")
        assert kinds_of(store)[-1] == "instance_blocked"
        with trio.testing.assert_checkpoints(), pytest.raises(memable.SignalRejectedError, match="other"):
            await engine.settle(workflow, INSTANCE, "other", value="paid")
        with trio.testing.assert_checkpoints():
            await engine.settle(workflow, INSTANCE, "pay", value="paid")


# Refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["completed", "failed", "cancelled"])
async def test_settle_of_an_ended_instance_is_rejected(kind: str, autojump_clock: object):
    """
    What has ended takes no answer, be an intent left of it or not.
    """
    store, told = await blocked_at(str), []
    workflow = returning(str, told)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await ending_of(await engine.get(workflow, INSTANCE))
        match kind:
            case "completed":
                await engine.settle(workflow, INSTANCE, "pay", value="paid")
            case "failed":
                await engine.settle(workflow, INSTANCE, "pay", error=ValueError())
            case "cancelled":
                await engine.cancel(workflow, INSTANCE)
        await ending_of(await engine.get(workflow, INSTANCE))
        with pytest.raises(memable.SignalRejectedError, match="unknown outcome"):
            await engine.settle(workflow, INSTANCE, "pay", value="again")
        with pytest.raises(memable.InstanceNotFoundError, match="nobody"):
            await engine.settle(workflow, "nobody", "pay", value="paid")
        with pytest.raises(memable.InvalidKeyError, match="path"):
            await engine.settle(workflow, INSTANCE, "", value="paid")
        await engine.stop()
        with pytest.raises(memable.EngineStoppedError, match=r"engine\.settle"):
            await engine.settle(workflow, INSTANCE, "pay", value="paid")


async def test_settle_of_a_step_that_is_known_is_rejected(autojump_clock: object):
    """
    A step with a memo, a failed attempt, or nothing recorded of it, has no unknown outcome.
    """
    store = memable.InMemoryStore()

    async def fail() -> None:
        raise ValueError

    async def fine() -> None:
        pass

    async def body(ctx: memable.Context) -> None:
        await ctx.step("fine", fine, once=True)
        await ctx.step("flaky", fail, retry=memable.RetryPolicy.fixed(1, 1e6))

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow], max_parked=0) as engine:
        await (await engine.invoke(workflow, instance_id=INSTANCE)).wait()
        await trio.testing.wait_all_tasks_blocked()
        for key in ("fine", "flaky", "none"):
            with pytest.raises(memable.SignalRejectedError, match=key):
                await engine.settle(workflow, INSTANCE, key, value=None)


@pytest.mark.parametrize("where", ["effect", "probe", "elsewhere"])
async def test_settle_of_a_running_instance_is_rejected(where: str, autojump_clock: object):
    """
    While the instance runs, its effect included, nobody needs to answer.
    """
    store = memable.InMemoryStore() if where == "effect" else await blocked_at(str)

    async def wait() -> str:
        await trio.sleep(10)
        return "done"

    async def body(ctx: memable.Context) -> None:
        if where == "elsewhere":
            await trio.sleep(10)
        await ctx.step("pay", wait, once=True, probe=wait)

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.sleep(5)
        with pytest.raises(memable.SignalRejectedError, match="the instance runs"):
            await engine.settle(workflow, INSTANCE, "pay", value="done")
        assert await ending_of(invocation) == memable.Completed()


async def test_settle_while_the_instance_becomes_blocked_waits_for_that(autojump_clock: object):
    """
    An answer that meets the instance on its way to Blocked is taken once it is.
    """
    store, told = await blocked_at(str), []
    workflow = returning(str, told)
    gate = Gate("instance_blocked")
    async with (
        memable.open_engine(HookedStore(store, before_append=gate.pass_), workflows=[workflow]) as engine,
        trio.open_nursery() as nursery,
    ):
        await gate.is_reached.wait()
        nursery.start_soon(partial(engine.settle, workflow, INSTANCE, "pay", value="paid"))
        await trio.testing.wait_all_tasks_blocked()
        gate.is_open.set()
        await trio.testing.wait_all_tasks_blocked()
    assert told == ["paid"]


async def test_settles_at_once_are_told_apart(autojump_clock: object):
    """
    Of several answers at once exactly one is taken; the others are rejected.
    """
    store, told = await blocked_at(str), []
    workflow = returning(str, told)
    answers: list[str] = []
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await ending_of(await engine.get(workflow, INSTANCE))

        async def settle(value: str) -> None:
            try:
                await engine.settle(workflow, INSTANCE, "pay", value=value)
            except memable.SignalRejectedError:
                return
            answers.append(value)

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(settle, f"answer {number}")
        await ending_of(await engine.get(workflow, INSTANCE))
    assert told == answers
    assert len(answers) == 1


@pytest.mark.parametrize("max_parked", [0, 1000])
@pytest.mark.parametrize("answer", [{"value": "paid"}, {"error": ValueError("declined")}, {"rerun": True}])
async def test_settle_while_the_probe_is_to_be_asked_again(
    answer: dict[str, Any], max_parked: int, autojump_clock: object
):
    """
    In a probe's backoff the outcome is unknown: an answer ends the wait, whether the run is in memory or not.
    """
    store, told = await blocked_at(str), []
    asked: list[int] = []

    async def effect() -> str:
        assert "rerun" in answer
        return "ran"

    async def probe() -> str:
        asked.append(1)
        raise ConnectionError

    async def body(ctx: memable.Context) -> None:
        retry = memable.RetryPolicy.fixed(math.inf, 1000)
        try:
            told.append(await ctx.step("pay", effect, once=True, probe=probe, retry=retry))
        except memable.StepFailedError as error:
            told.append(error.error.message)

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow], max_parked=max_parked) as engine:
        invocation = await engine.get(workflow, INSTANCE)
        assert isinstance(await invocation.wait(), memable.Suspended)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(memable.TypeMismatchError, match="int"):
            await engine.settle(workflow, INSTANCE, "pay", value=3)
        with pytest.raises(memable.SignalRejectedError, match="other"):
            await engine.settle(workflow, INSTANCE, "other", value=3)
        began = trio.current_time()
        await engine.settle(workflow, INSTANCE, "pay", **answer)
        crashed = store.crashed_copy()
        assert await ending_of(invocation) == memable.Completed()
    async with memable.open_engine(crashed, workflows=[workflow]) as engine:
        assert await ending_of(await engine.get(workflow, INSTANCE)) == memable.Completed()
    assert trio.current_time() - began < 1000
    assert told == [{"value": "paid", "error": "declined", "rerun": "ran"}[next(iter(answer))]] * 2
    assert asked == [1]


async def test_settles_at_once_in_a_backoff_are_told_apart(autojump_clock: object):
    """
    While one answer is on its way, another is rejected; so is one while the backoff belongs to no effect.
    """
    store = await blocked_at(str)
    gate = Gate("step_completed")

    async def probe() -> str:
        raise ConnectionError

    async def body(ctx: memable.Context) -> None:
        retry = memable.RetryPolicy.fixed(1, 1000)
        assert await ctx.step("pay", never, once=True, probe=probe, retry=retry) == "first"
        await ctx.step("flaky", probe, retry=retry)

    workflow = workflow_of(body)
    hooked = HookedStore(store, before_append=gate.pass_)
    async with memable.open_engine(hooked, workflows=[workflow], shutdown_timeout=0) as engine:
        invocation = await engine.get(workflow, INSTANCE)
        await invocation.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(engine.settle, workflow, INSTANCE, "pay", value="first"))
            await gate.is_reached.wait()
            with pytest.raises(memable.SignalRejectedError, match="pay"):
                await engine.settle(workflow, INSTANCE, "pay", value="second")
            gate.is_open.set()
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(await invocation.state(), memable.Suspended)
        with pytest.raises(memable.SignalRejectedError, match="flaky"):
            await engine.settle(workflow, INSTANCE, "flaky", value="x")


async def test_settle_in_the_backoff_of_a_compensations_probe(autojump_clock: object):
    """
    A compensation whose probe cannot tell is answered in its backoff, too, and the others go on.
    """
    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []
    ran: list[str] = []

    async def undo(name: str) -> None:
        ran.append(name)
        copies.append(store.crashed_copy())

    async def probe(name: str) -> None:
        raise ConnectionError

    async def body(ctx: memable.Context) -> None:
        retry = memable.RetryPolicy.fixed(math.inf, 1000)
        for name in ("a", "b"):
            await ctx.compensate(name, undo, name, once=True, probe=probe, retry=retry)
        raise ValueError("first cause")

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await ending_of(await engine.invoke(workflow, instance_id=INSTANCE))
    async with memable.open_engine(copies[0], workflows=[workflow]) as engine:
        invocation = await engine.get(workflow, INSTANCE)
        assert isinstance(await invocation.wait(), memable.Suspended)
        await engine.settle(workflow, INSTANCE, "b", value=None)
        assert isinstance(await ending_of(invocation), memable.Failed)
    assert ran == ["b", "a", "a"]


async def test_settle_with_a_value_that_the_code_reads_differently_now_blocks(autojump_clock: object):
    """
    The answer is of the recorded type; code that asks for another by now is wrong, and mended code goes on.
    """
    store, told = await blocked_at(str), []

    async def probe() -> int:
        raise ConnectionError

    changed = returning(int, told, probe=probe, retry=memable.RetryPolicy.fixed(1, 1000))
    async with memable.open_engine(store, workflows=[changed]) as engine:
        invocation = await engine.get(changed, INSTANCE)
        assert isinstance(await invocation.wait(), memable.Suspended)
        await engine.settle(changed, INSTANCE, "pay", value="text")
        state = await ending_of(invocation)
    assert isinstance(state, memable.Blocked)
    assert state.error.type == "memable.TypeMismatchError"
    workflow = returning(str, told)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        assert await ending_of(await engine.get(workflow, INSTANCE)) == memable.Completed()
    assert told == ["text"]


# Crashes, restarts, registration -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["step_completed", "step_failed", "intent_withdrawn"])
async def test_settle_that_cannot_be_recorded_changes_nothing(kind: str, autojump_clock: object):
    """
    An answer that the store does not take is a StorageError; the next engine finds the instance as it was.
    """
    store, told = await blocked_at(str), []
    workflow = returning(str, told)
    answers: dict[str, dict[str, Any]] = {
        "step_completed": {"value": "paid"},
        "step_failed": {"error": ValueError()},
        "intent_withdrawn": {"rerun": True},
    }
    with pytest.raises(memable.StorageError, match="no space left"):
        async with memable.open_engine(failing_at(kind, store), workflows=[workflow]) as engine:
            await ending_of(await engine.get(workflow, INSTANCE))
            await engine.settle(workflow, INSTANCE, "pay", **answers[kind])
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        assert isinstance(await engine.state(workflow, INSTANCE), memable.Blocked)


async def test_settle_survives_a_crash_right_after_it(autojump_clock: object):
    """
    An answer is durable when settle returns: the next engine goes on from it.
    """
    store, told = await blocked_at(str), []
    workflow = returning(str, told)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await ending_of(await engine.get(workflow, INSTANCE))
        await engine.settle(workflow, INSTANCE, "pay", value="paid")
        crashed = store.crashed_copy()
    told.clear()
    async with memable.open_engine(crashed, workflows=[workflow]) as engine:
        assert await ending_of(await engine.get(workflow, INSTANCE)) == memable.Completed()
    assert told == ["paid"]


@pytest.mark.parametrize("answer", [{"value": "paid"}, {"rerun": True}])
async def test_settle_of_an_instance_whose_workflow_is_not_registered(answer: dict[str, Any], autojump_clock: object):
    """
    An answer needs no code: the instance goes on once its workflow is registered, in this engine or the next.
    """
    for registers in (True, False):
        store, told = await blocked_at(str), []
        calls: list[str] = []

        async def effect(calls: list[str] = calls) -> str:
            calls.append("ran")
            return "ran"

        async def body(ctx: memable.Context, effect: Any = effect, told: list[object] = told) -> None:
            told.append(await ctx.step("pay", effect, once=True))

        workflow = workflow_of(body)
        async with memable.open_engine(store, workflows=[workflow]) as engine:
            await ending_of(await engine.get(workflow, INSTANCE))
        async with memable.open_engine(store) as engine:
            await engine.settle("w", INSTANCE, "pay", **answer)
            assert told == []
            if registers:
                engine.register(workflow)
                await engine.wait_all()
        async with memable.open_engine(store, workflows=[workflow]) as engine:
            assert await ending_of(await engine.get(workflow, INSTANCE)) == memable.Completed()
        assert told == ["paid" if "value" in answer else "ran"]


async def test_settle_of_an_interrupted_instance_lets_it_go_on(autojump_clock: object):
    """
    With resume_on_start=False, what was cut short in an effect may be answered before it has run into it again.
    """
    store, told = await blocked_at(str), []
    workflow = returning(str, told)
    async with memable.open_engine(store, workflows=[workflow], resume_on_start=False) as engine:
        await engine.settle(workflow, INSTANCE, "pay", value="paid")
        assert await ending_of(await engine.get(workflow, INSTANCE)) == memable.Completed()
    assert told == ["paid"]


async def test_settle_goes_by_path_inside_a_fan_out(autojump_clock: object):
    """
    Effects in children are answered one by one, by their paths.
    """
    told: list[object] = []

    async def first(ctx: memable.Context, effect: Any) -> None:
        async def child(inner: memable.Context, item: int) -> str:
            return await inner.step("pay", effect, once=True)

        await ctx.fan_out("f", child, [0, 1])

    async def child(ctx: memable.Context, item: int) -> str:
        return await ctx.step("pay", never, once=True)

    async def body(ctx: memable.Context) -> None:
        told.extend(await ctx.fan_out("f", child, [0, 1]))

    store = await crashed_in_effect(first)
    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        invocation = await engine.get(workflow, INSTANCE)
        rounds = 0
        while isinstance(state := await ending_of(invocation), memable.Blocked):
            assert state.key is not None
            rounds += 1
            assert rounds <= 2
            await engine.settle(workflow, INSTANCE, state.key, value=state.key)
        assert state == memable.Completed()
    assert set(told) <= {"f/0/pay", "f/1/pay", "done"}


async def test_settle_ends_a_question_about_a_compensation(autojump_clock: object):
    """
    A compensation with once=True whose outcome is unknown blocks the instance; settled, the older ones run.
    """
    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []
    ran: list[str] = []

    async def undo(name: str) -> None:
        ran.append(name)
        copies.append(store.crashed_copy())

    async def body(ctx: memable.Context) -> None:
        for name in ("a", "b"):
            await ctx.compensate(name, undo, name, once=True)
        raise ValueError("first cause")

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await ending_of(await engine.invoke(workflow, instance_id=INSTANCE))
    assert ran == ["b", "a"]
    async with memable.open_engine(copies[0], workflows=[workflow]) as engine:
        state = await ending_of(await engine.get(workflow, INSTANCE))
        assert isinstance(state, memable.Blocked)
        assert state.key == "b"
        # The order is kept.
        assert ran == ["b", "a"]
        await engine.settle(workflow, INSTANCE, "b", value=None)
        state = await ending_of(await engine.get(workflow, INSTANCE))
        assert isinstance(state, memable.Failed)
        assert state.error.message == "first cause"
    assert ran == ["b", "a", "a"]


# Types -------------------------------------------------------------------------------------------------------------

FITTING: list[tuple[Any, Any]] = [
    (int, 3),
    (str, "x\ud83d\ude00"),
    (bool, True),
    (float, 1.5),
    (float, 3),
    (float, float("inf")),
    (bytes, b"\x00"),
    (None, None),
    (Decimal, Decimal("1.50")),
    (UUID, UUID(int=3)),
    (int | None, 3),
    (int | None, None),
    (int | str | list[int], [1]),
    (list[int], []),
    (list[int], [1, 2]),
    (list[list[str]], [["a"], []]),
    (dict[str, int], {"a": 1}),
    (dict[int, str], {1: "a"}),
    (dict[str, list[int | None]], {"a": [1, None]}),
    (set[int], {1, 2}),
    (frozenset[str], frozenset("ab")),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], (1, 2, 3)),
    (tuple[()], ()),
    (list, [1, "a", None]),
    (dict, {"a": [1]}),
    (Any, {"a": [1, None, True]}),
    (Any, 3),
    (Literal["a", "b"], "b"),
    (Literal[1, "a"] | None, None),
    (Literal[Color.RED], Color.RED),
    (Literal[Color.RED, "x"], "x"),
    (Color, Color.BLUE),
    (Receipt, Receipt(3, ["a"])),
    (Receipt | Refund, Receipt(3)),
    (Receipt | None, None),
    (list[Receipt], []),
    (list[Receipt | Refund], [Refund(Decimal(1))]),
    (dict[str, Receipt], {"a": Receipt(1)}),
    (tuple[Receipt, Refund], (Receipt(1), Refund(Decimal(1), Receipt(2), {"t"}))),
    (Box[int], Box(3)),
    (Box[Receipt], Box(Receipt(3))),
    (list[Box[list[Color]]], [Box([Color.RED])]),
    (Tree, Tree(Tree())),
    (Point, Point(1, 2.0)),
    (Point | tuple[int, float], (1, 2.0)),
]

UNFIT: list[tuple[Any, Any]] = [
    (int, True),
    (int, "3"),
    (int, None),
    (bool, 1),
    (str, b"x"),
    (float, "1"),
    (int | None, "x"),
    (list[int], [True]),
    (list[int], (1,)),
    (list[Receipt], [Refund(Decimal(1))]),
    (dict[str, int], {1: 1}),
    (tuple[int, str], (1,)),
    (tuple[int, ...], [1]),
    (Any, (1, 2)),
    (Any, Receipt(1)),
    (list, [{1}]),
    (Literal["a", "b"], "c"),
    (Literal[1], True),
    (Literal[Color.RED], Color.BLUE),
    (Receipt, Refund(Decimal(1))),
    (Receipt, {"number": 3}),
    (Receipt, Receipt("3")),  # type: ignore[arg-type]
    (Box[int], Box("x")),
    (Color, 1),
]


@pytest.mark.parametrize("is_met", [False, True])
@pytest.mark.parametrize(("annotation", "value"), FITTING)
def test_encode_as_takes_each_value_of_the_recorded_type(annotation: Any, value: Any, is_met: bool):
    """
    A value of the type that a name stands for is encoded as by the annotation itself, of which only the name is known.
    """
    expected = Codec().encode(value, annotation)
    codec = Codec()
    if is_met:
        codec.check(annotation)
    encoded = codec.encode_as(value, codec.name_of(annotation) if is_met else Codec().name_of(annotation))
    assert encoded == expected
    assert Codec().decode(encoded, annotation) == value


@pytest.mark.parametrize("is_met", [False, True])
@pytest.mark.parametrize(("annotation", "value"), UNFIT)
def test_encode_as_refuses_a_value_of_another_type(annotation: Any, value: Any, is_met: bool):
    """
    A value of another type is refused, never converted.
    """
    codec = Codec()
    name = (codec if is_met else Codec()).name_of(annotation)
    with pytest.raises(memable.SerializationError, match="cannot be stored"):
        codec.encode_as(value, name)


@pytest.mark.parametrize("name", ["", "list[", "os.system", "list[os.system]", "[", "no.such.Class[builtins.int]"])
def test_encode_as_imports_nothing(name: str):
    """
    A name that no class at hand has, or that is no type's name at all, takes no value.
    """
    for value in (None, 3, Receipt(3), [Receipt(3)]):
        with pytest.raises(memable.SerializationError, match="cannot be stored"):
            Codec().encode_as(value, name)


def test_encode_as_finds_a_typed_dict_that_was_met_before():
    """
    A TypedDict leaves no trace in its values: it is taken once the code that names it has run in this process.
    """
    codec = Codec()
    name = Codec().name_of(list[Movie])
    with pytest.raises(memable.SerializationError, match="a class that this process has not met yet"):
        codec.encode_as([{"title": "M"}], name)
    codec.check(dict[str, Movie])
    assert codec.encode_as([{"title": "M"}], name) == Codec().encode([{"title": "M"}], list[Movie])


def test_encode_as_follows_an_alias():
    """
    A class that has moved is taken for its recorded name, and recorded under today's.
    """
    codec = Codec(aliases={"old.Receipt": Receipt})
    encoded = codec.encode_as([Receipt(3)], "list[old.Receipt]")
    assert encoded == Codec().encode([Receipt(3)], list[Receipt])
    assert codec.encode_as([], "list[old.Receipt]").type == Codec().name_of(list[Receipt])


def test_encode_as_keeps_to_the_size_limit():
    """
    A value that is too large is refused as any other.
    """
    with pytest.raises(memable.SerializationError, match="max_value_bytes"):
        Codec(max_value_bytes=10).encode_as("x" * 20, "builtins.str")


async def test_settle_refuses_a_value_of_another_type(autojump_clock: object):
    """
    A value of another type than the step's is TypeMismatchError for the caller, and the instance unharmed.
    """
    store, told = await blocked_at(Receipt), []
    workflow = returning(Receipt, told)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await ending_of(await engine.get(workflow, INSTANCE))
        for value in (3, {"number": 3}, None):
            with pytest.raises(memable.TypeMismatchError, match="Receipt") as caught:
                await engine.settle(workflow, INSTANCE, "pay", value=value)
            assert (caught.value.key, caught.value.instance_id) == ("pay", INSTANCE)
        assert kinds_of(store)[-1] == "instance_blocked"
        await engine.settle(workflow, INSTANCE, "pay", value=Receipt(7))
        assert await ending_of(await engine.get(workflow, INSTANCE)) == memable.Completed()
    assert told == [Receipt(7)]


async def test_settle_takes_a_typed_dict_after_the_body_has_asked_for_it(autojump_clock: object):
    """
    A body that has run into the unknown outcome has named its type: values of it can be settled.
    """
    store, told = await blocked_at(Movie), []
    workflow = returning(Movie, told)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await ending_of(await engine.get(workflow, INSTANCE))
        await engine.settle(workflow, INSTANCE, "pay", value={"title": "M"})
        assert await ending_of(await engine.get(workflow, INSTANCE)) == memable.Completed()
    assert told == [{"title": "M"}]
