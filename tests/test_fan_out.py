"""
A function run for many items: results, limits, failures, replays, and what is run again.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, assert_checkpoints

import memable
from fanning import Work, bring_to_end, explore, result_of
from memable._records import StepCompleted
from running import INSTANCE, ending_of, kinds_of, observe_twice, run_body, workflow_of
from stores import Gate, HookedStore, Place, failing_at
from waits import P, settle, suspended


async def double(ctx: memable.Context, item: int) -> int:
    await trio.lowlevel.checkpoint()
    return 2 * item


# Results ---------------------------------------------------------------------------------------------------------


async def test_fan_out_returns_results_in_the_order_of_the_items(place: Place, autojump_clock: MockClock):
    """
    Results stand in the order of the items, in whatever order the children end, live as on a replay.
    """

    async def late(ctx: memable.Context, item: int) -> int:
        await trio.sleep(10 - item)
        return item * item

    async def body(ctx: memable.Context) -> list[int]:
        results = await ctx.fan_out("fan", late, range(5))
        seen.append(results)
        if len(seen) == 1:
            raise ValueError
        return results

    seen: list[list[int]] = []
    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await bring_to_end(engine)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await (await engine.resume(workflow, INSTANCE)).result()
    assert seen == [[0, 1, 4, 9, 16]] * 2


@pytest.mark.parametrize("limit", [None, 1])
async def test_fan_out_over_nothing_returns_nothing(limit: int | None):
    """
    A fan-out over no items returns an empty list, and records nothing.
    """
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        assert await ctx.fan_out("fan", double, [], limit=limit) == []

    assert await run_body(body, store=store) == memable.Completed()
    assert kinds_of(store) == ["instance_started", "instance_completed"]


async def test_fan_out_returns_what_a_replay_returns(autojump_clock: MockClock):
    """
    The first run is given the value as decoded from the record, as every replay is.
    """

    async def pair(ctx: memable.Context, item: int) -> tuple[int, list[int]]:
        mine = (item, [item])
        originals.append(mine)
        return mine

    async def body(ctx: memable.Context) -> Any:
        results = await ctx.fan_out("fan", pair, [1, 2])
        assert all(result[1] is not original[1] for result, original in zip(results, originals, strict=False))
        return results

    originals: list[tuple[int, list[int]]] = []
    live, replayed = await observe_twice(body)
    assert live == replayed == [(1, [1]), (2, [2])]


async def test_fan_out_runs_children_at_once(autojump_clock: MockClock):
    """
    Without a limit all children run at the same time.
    """
    work = Work()

    async def child(ctx: memable.Context, item: int) -> str:
        return await ctx.step("s", work.do, str(item))

    async def body(ctx: memable.Context) -> None:
        await ctx.fan_out("fan", child, range(20))

    assert await run_body(body) == memable.Completed()
    assert work.most == 20


@pytest.mark.parametrize("limit", [1, 3, 7, 50])
async def test_fan_out_respects_its_limit_exactly(limit: int, autojump_clock: MockClock):
    """
    Never more than the limit run at once, and all places are used as long as there are items.
    """
    work = Work()

    async def child(ctx: memable.Context, item: int) -> str:
        return await work.do(str(item))

    async def body(ctx: memable.Context) -> None:
        start = trio.current_time()
        await ctx.fan_out("fan", child, range(21), limit=limit)
        assert trio.current_time() - start == -(-21 // limit)

    assert await run_body(body) == memable.Completed()
    assert work.most == min(limit, 21)


async def test_fan_out_takes_items_as_it_needs_them(autojump_clock: MockClock):
    """
    A generator of items is gone through lazily: no item is taken before there is room for its child.
    """
    taken: list[int] = []
    ended: list[int] = []

    def items() -> Iterator[int]:
        for item in range(9):
            taken.append(item)
            assert len(taken) - len(ended) <= 3
            yield item

    async def child(ctx: memable.Context, item: int) -> None:
        await trio.sleep(1 + item % 3)
        ended.append(item)

    async def body(ctx: memable.Context) -> None:
        await ctx.fan_out("fan", child, items(), limit=3)

    assert await run_body(body) == memable.Completed()
    assert sorted(ended) == list(range(9))


@pytest.mark.parametrize("items", [[3, 1], (3, 1), {3: "a", 1: "b"}, iter([3, 1]), range(3, 0, -2)])
async def test_fan_out_takes_any_iterable(items: Any):
    """
    Whatever 'for' can go through gives the items.
    """

    async def body(ctx: memable.Context) -> None:
        assert await ctx.fan_out("fan", double, items) == [6, 2]

    assert await run_body(body) == memable.Completed()


async def test_fan_out_takes_objects_that_are_indexed():
    """
    So does an object that is gone through by its indexes only.
    """

    class Indexed:
        def __getitem__(self, index: int) -> int:
            return [3, 1][index]

    async def body(ctx: memable.Context) -> None:
        assert await ctx.fan_out("fan", double, Indexed()) == [6, 2]  # type: ignore[arg-type] # not to a type checker

    assert await run_body(body) == memable.Completed()


async def test_fan_out_is_a_checkpoint(autojump_clock: MockClock):
    """
    A fan-out is a checkpoint: with children, without, on a replay and if it is refused.
    """

    async def body(ctx: memable.Context) -> None:
        for key, items in (("none", []), ("some", [1])):
            with assert_checkpoints():
                await ctx.fan_out(key, double, items)
            with assert_checkpoints():
                await ctx.fan_out_settled(f"{key}-settled", double, items)
        copies.append(store.crashed_copy())
        with assert_checkpoints(), pytest.raises(memable.DuplicateKeyError, match="some"):
            await ctx.fan_out("some", double, [])

    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []
    await run_body(body, store=store)
    await run_body(body, store=copies[0])
    assert len(copies) == 2


# Keys ------------------------------------------------------------------------------------------------------------


async def test_fan_out_keys_do_not_clash_between_children(autojump_clock: MockClock):
    """
    Children use the same keys, of all kinds, beside each other and beside the body; paths tell them apart.
    """
    work = Work()
    ids: set[str] = set()

    async def child(ctx: memable.Context, item: int) -> str:
        ids.add(ctx.step_id("s"))
        await ctx.sleep("nap", item)
        async with ctx.move_on_after("limit", 60):
            return await ctx.step("s", work.do, f"s{item}")
        raise AssertionError

    async def body(ctx: memable.Context) -> None:
        await ctx.step("s", work.do, "mine")
        await ctx.fan_out("a", child, range(3))
        await ctx.fan_out("b", child, range(3))

    store = memable.InMemoryStore()
    assert await run_body(body, store=store) == memable.Completed()
    paths = {record.path for record in store._records if isinstance(record, StepCompleted)}
    assert paths == {"s"} | {f"{fan}/{index}/s" for fan in "ab" for index in range(3)}
    assert len(ids) == 6


async def test_fan_out_child_uses_each_key_once(autojump_clock: MockClock):
    """
    Within one child a key is used once, as in a body; the error names its path, and the instance is Blocked there.
    """

    async def child(ctx: memable.Context, item: int) -> None:
        await ctx.step("s", Work().do, "x")
        await ctx.step("s", Work().do, "x")

    async def body(ctx: memable.Context) -> None:
        await ctx.fan_out("fan", child, [0])

    state = await run_body(body)
    assert isinstance(state, memable.Blocked)
    assert state.key == "fan/0/s"


@pytest.mark.parametrize("how", ["ended", "other"])
async def test_fan_out_context_belongs_to_its_child(how: str, autojump_clock: MockClock):
    """
    A child's context is of no use once its child has ended; until then its keys are that child's, whoever uses it.
    """
    contexts: list[memable.Context] = []

    async def child(ctx: memable.Context, item: int) -> None:
        contexts.append(ctx)
        await trio.sleep(5 if how == "other" else 1)

    async def body(ctx: memable.Context) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ctx.fan_out, "fan", child, [0])
            await trio.sleep(2)
            if how == "other":
                assert await contexts[0].step("s", Work().do, "x") == "X"
            else:
                with pytest.raises(memable.RunEndedError, match=r"ctx\.step did nothing"):
                    await contexts[0].step("s", Work().do, "x")

    store = memable.InMemoryStore()
    assert await run_body(body, store=store) == memable.Completed()
    paths = [record.path for record in store._records if isinstance(record, StepCompleted)]
    assert paths == (["fan/0/s"] if how == "other" else [])


@pytest.mark.parametrize("kind", ["step", "sleep", "call"])
async def test_fan_out_key_recorded_as_another_kind_is_refused(kind: str, place: Place, autojump_clock: MockClock):
    """
    A key that an earlier run has recorded as a step or a wait is a KeyKindError as a fan-out, and the other way round.
    """
    runs: list[int] = []

    async def body(ctx: memable.Context) -> None:
        runs.append(1)
        if (len(runs) == 1) is (kind == "call"):
            await ctx.fan_out("k", double, [1])
        elif kind == "sleep":
            await ctx.sleep("k", 1)
        else:
            await ctx.step("k", Work().do, "x")
        raise ValueError

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await bring_to_end(engine)
        state = await ending_of(await engine.resume(workflow, INSTANCE))
    assert isinstance(state, memable.Blocked)
    assert "KeyKindError" in state.error.type


# Structure -------------------------------------------------------------------------------------------------------


def test_fan_outs_nest():
    """
    A child may fan out itself; wherever the process dies, no recorded step or child runs again, however deep.
    """
    work = Work()

    async def leaf(ctx: memable.Context, item: tuple[int, int]) -> str:
        return await ctx.step("s", work.do, "{}-{}".format(*item))

    async def branch(ctx: memable.Context, item: int) -> list[str]:
        before = await ctx.step("before", work.do, f"before{item}")
        return [before, *await ctx.fan_out("leaves", leaf, [(item, 0), (item, 1)])]

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context) -> list[list[str]]:
        return await ctx.fan_out("branches", branch, range(2), limit=1)

    expected = [["BEFORE0", "0-0", "0-1"], ["BEFORE1", "1-0", "1-1"]]

    assert len(explore(result_of, [workflow], expected=expected)) > 25


async def test_fan_outs_run_at_once_in_a_nursery(place: Place, autojump_clock: MockClock):
    """
    Two fan-outs run at the same time in a nursery of the user's, beside steps.
    """
    work = Work()
    results: dict[str, Any] = {}

    async def child(ctx: memable.Context, item: int) -> str:
        return await ctx.step("s", work.do, str(item))

    async def body(ctx: memable.Context) -> None:
        async def fan(key: str) -> None:
            results[key] = await ctx.fan_out(key, child, range(3))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fan, "a")
            nursery.start_soon(fan, "b")
            nursery.start_soon(ctx.step, "s", work.do, "x")

    start = trio.current_time()
    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await result_of(engine)
    assert trio.current_time() - start == 1
    assert work.most == 7
    assert results == {"a": ["0", "1", "2"], "b": ["0", "1", "2"]}


@pytest.mark.parametrize("max_parked", [0, 1000])
async def test_fan_out_whose_children_all_wait_is_suspended(place: Place, max_parked: int, autojump_clock: MockClock):
    """
    An instance whose children all wait is Suspended, at the paths of all, and each is signalled by its path.
    """
    runs: list[int] = []

    async def child(ctx: memable.Context, item: int) -> int:
        await ctx.step("s", Work().do, "x")
        return await ctx.suspend(P) + item

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context) -> list[int]:
        runs.append(1)
        return await ctx.fan_out("fan", child, [10, 20, 30], limit=2)

    async with memable.open_engine(place.store(), workflows=[workflow], max_parked=max_parked) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        state = await suspended(engine)
        # Which of them got there first is up to trio.
        assert state.key == state.waits[0]
        assert set(state.waits) == {"fan/0/p", "fan/1/p"}
        await engine.signal(workflow, INSTANCE, P, 2, within="fan/1")
        state = await suspended(engine)
        assert state.waits == ("fan/0/p", "fan/2/p")
        await engine.signal(workflow, INSTANCE, P, 1, within="fan/0")
        await engine.signal(workflow, INSTANCE, P, 3, within="fan/2")
        assert await invocation.result() == [11, 22, 33]
    assert len(runs) > 1 if max_parked == 0 else runs == [1]


async def test_fan_out_in_a_nursery_that_waits_keeps_its_run(autojump_clock: MockClock):
    """
    Children that wait in a fan-out which a task of the user's has called can be signalled, too.
    """

    async def child(ctx: memable.Context, item: int) -> int:
        return await ctx.suspend(P)

    async def body(ctx: memable.Context) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ctx.fan_out, "fan", child, range(2))

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow], max_parked=0) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        await settle()
        for index in range(2):
            await engine.signal(workflow, INSTANCE, P, 1, within=f"fan/{index}")
        assert await invocation.result() is None


# Failures --------------------------------------------------------------------------------------------------------


async def test_fan_out_fails_with_its_first_failure(autojump_clock: MockClock):
    """
    The first failure cancels the rest and is raised as ChildFailedError; a replay raises the same facts.
    """
    cancelled: list[int] = []

    async def child(ctx: memable.Context, item: int) -> None:
        try:
            await trio.sleep(10 - item)
        except trio.Cancelled:
            cancelled.append(item)
            raise
        raise ConnectionError(f"no {item}")

    async def body(ctx: memable.Context) -> Any:
        with pytest.raises(memable.ChildFailedError, match=r"child '4' \(index 4\) failed with Conn") as caught:
            await ctx.fan_out("fan", child, range(5))
        error = caught.value
        assert error.matches(ConnectionError)
        assert error.matches(OSError)
        assert not error.matches(ValueError)
        assert "in child" in error.error.traceback
        notes = getattr(error, "__notes__", None)
        return error.key, error.index, error.item_key, error.error, str(error), error.__cause__, notes, error.args

    store = memable.InMemoryStore()
    live, replayed = await observe_twice(body)
    assert live == replayed
    assert live[:3] == ("fan", 4, "4")
    assert sorted(cancelled) == [0, 1, 2, 3]
    assert kinds_of(store) == []


async def test_fan_out_failure_is_recorded_before_others_are_cancelled(autojump_clock: MockClock):
    """
    Whatever the others do when they are cancelled, the first failure is recorded already and stays the outcome.
    """
    gate = Gate("fan_out_failed")
    store = memable.InMemoryStore()
    seen: list[Any] = []

    async def child(ctx: memable.Context, item: int) -> str:
        if item == 0:
            raise ConnectionError("first")
        try:
            await trio.sleep_forever()
        finally:
            seen.append(kinds_of(store)[-1])
            if item == 1:
                raise ValueError("second")
            if item == 2:
                return "swallowed"  # noqa: B012 - meant: cancellation is swallowed
            if item == 3:
                raise ExceptionGroup("third", [ValueError("third")])

    async def body(ctx: memable.Context) -> None:
        await ctx.fan_out("fan", child, range(5))

    workflow = workflow_of(body)
    hooked = HookedStore(store, before_append=gate.pass_)
    async with memable.open_engine(hooked, workflows=[workflow]) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        await gate.is_reached.wait()
        await settle()
        assert seen == []
        gate.is_open.set()
        state = await ending_of(invocation)
    assert isinstance(state, memable.Failed)
    assert state.error.type == "memable.ChildFailedError"
    assert "first" in state.error.message
    assert seen == ["fan_out_failed"] * 4
    assert kinds_of(store) == ["instance_started", "branch_started", "fan_out_failed", "instance_failed"]


async def test_fan_out_failures_at_once_record_one(autojump_clock: MockClock):
    """
    Of children that fail while the first failure is on its way to the store, nothing is recorded.
    """
    store = memable.InMemoryStore()

    async def slowly(_: object) -> None:
        await trio.sleep(1)

    async def child(ctx: memable.Context, item: int) -> None:
        raise ConnectionError(item)

    async def body(ctx: memable.Context) -> None:
        await ctx.fan_out("fan", child, range(5))

    await run_body(body, store=HookedStore(store, before_append=slowly))
    assert kinds_of(store).count("fan_out_failed") == 1


async def test_fan_out_that_has_failed_starts_no_more_children(autojump_clock: MockClock):
    """
    Once a child has failed, no other one starts, be there room or not.
    """
    started: list[int] = []

    async def slowly(_: object) -> None:
        await trio.sleep(5)

    async def child(ctx: memable.Context, item: int) -> None:
        started.append(item)
        if item == 0:
            raise ConnectionError
        await trio.sleep(1)

    async def body(ctx: memable.Context) -> None:
        await ctx.fan_out("fan", child, range(9), limit=2)

    assert isinstance(await run_body(body, store=HookedStore(before_append=slowly)), memable.Failed)
    assert sorted(started) == [0, 1]


async def test_fan_out_key_stays_used_after_a_failure(autojump_clock: MockClock):
    """
    A fan-out that failed has an outcome, so its key is used: live as on a replay.
    """

    async def child(ctx: memable.Context, item: int) -> None:
        raise ConnectionError

    async def body(ctx: memable.Context) -> str:
        with pytest.raises(memable.ChildFailedError, match="index 0"):
            await ctx.fan_out("fan", child, [0])
        copies.append(store.crashed_copy())
        with pytest.raises(memable.DuplicateKeyError, match="fan"):
            await ctx.fan_out("fan", child, [0])
        return ""

    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []
    for kept in (store, None):
        assert isinstance(await run_body(body, store=kept or copies[0]), memable.Blocked)
    assert len(copies) == 2


async def test_fan_out_resumed_runs_only_what_has_no_outcome(place: Place, autojump_clock: MockClock):
    """
    A resume clears the failure with the step's inside it: children done keep their results, steps their memos.
    """
    work = Work(broken={"2"})

    async def child(ctx: memable.Context, item: int) -> str:
        await ctx.step("before", work.do, f"before{item}")
        await ctx.sleep("nap", item)
        return await ctx.step("s", work.do, str(item))

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context) -> list[str]:
        return await ctx.fan_out("fan", child, range(5))

    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        assert isinstance(await bring_to_end(engine), memable.Failed)
        work.clear()
        work.broken.clear()
        assert await (await engine.resume(workflow, INSTANCE)).result() == ["0", "1", "2", "3", "4"]
    assert work.calls == Counter({"2": 1, "3": 1, "4": 1})


async def test_fan_out_failure_inside_nested_ones_is_cleared_to_the_bottom(place: Place, autojump_clock: MockClock):
    """
    A resume clears the failures of a nested fan-out, of the one around it, and of the step at the bottom.
    """
    work = Work(broken={"1-1"})

    async def leaf(ctx: memable.Context, item: tuple[int, int]) -> str:
        return await ctx.step("s", work.do, "{}-{}".format(*item))

    async def branch(ctx: memable.Context, item: int) -> list[str]:
        return await ctx.fan_out("in", leaf, [(item, 0), (item, 1)])

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context) -> list[list[str]]:
        return await ctx.fan_out("out", branch, range(2))

    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        state = await bring_to_end(engine)
        assert isinstance(state, memable.Failed)
        work.clear()
        work.broken.clear()
        await (await engine.resume(workflow, INSTANCE)).result()
    assert work.calls["1-1"] == 1
    assert work.calls["0-0"] + work.calls["1-0"] == 0


async def test_fan_out_value_that_cannot_be_stored_fails_its_child(autojump_clock: MockClock):
    """
    A child whose value cannot be encoded has failed with a SerializationError, live as on a replay.
    """

    async def child(ctx: memable.Context, item: int) -> Any:
        return object()

    async def wrong(ctx: memable.Context, item: int) -> int:
        return "text"  # type: ignore[return-value] # the mistake that is tested

    async def body(ctx: memable.Context) -> Any:
        errors = []
        for fn in (child, wrong):
            with pytest.raises(memable.ChildFailedError, match="SerializationError") as caught:
                await ctx.fan_out(fn.__name__, fn, [0])
            assert caught.value.matches(memable.SerializationError)
            errors.append(caught.value.error)
        return errors

    live, replayed = await observe_twice(body)
    assert live == replayed


async def test_fan_out_annotated_as_what_cannot_be_stored_runs_nothing(autojump_clock: MockClock):
    """
    An annotation by which no value can be stored fails the child before its function runs.
    """
    ran: list[int] = []

    class Opaque:
        pass

    async def child(ctx: memable.Context, item: int) -> Opaque:
        ran.append(item)
        return Opaque()

    async def body(ctx: memable.Context) -> None:
        with pytest.raises(memable.ChildFailedError, match="Opaque") as caught:
            await ctx.fan_out("fan", child, [0])
        assert caught.value.matches(memable.SerializationError)

    assert await run_body(body) == memable.Completed()
    assert ran == []


async def test_fan_out_annotated_as_what_nobody_knows_is_blocked(autojump_clock: MockClock):
    """
    An annotation that cannot be resolved is a misuse.
    """

    async def child(ctx: memable.Context, item: Nowhere) -> None: ...  # type: ignore[name-defined] # noqa: F821 - meant

    async def body(ctx: memable.Context) -> None:
        with pytest.raises(memable.MisuseError, match="'Nowhere' is not defined"):
            await ctx.fan_out("fan", child, [0])

    state = await run_body(body)
    assert isinstance(state, memable.Blocked)
    assert state.key == "fan"


async def test_fan_out_of_a_recorded_type_that_changed_is_blocked(place: Place, autojump_clock: MockClock):
    """
    A recorded result that is read as another type is a TypeMismatchError, and the instance is Blocked.
    """
    runs: list[int] = []

    async def number(ctx: memable.Context, item: int) -> int:
        return item

    async def text(ctx: memable.Context, item: int) -> str:
        return str(item)

    async def body(ctx: memable.Context) -> None:
        runs.append(1)
        if len(runs) == 1:
            await ctx.fan_out("fan", number, [0])
            raise ValueError
        await ctx.fan_out("fan", text, [0])

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await bring_to_end(engine)
        state = await ending_of(await engine.resume(workflow, INSTANCE))
    assert isinstance(state, memable.Blocked)
    assert state.key == "fan/0"


# What is no outcome ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settles", [False, True])
@pytest.mark.parametrize("wrapped", ["plain", "cause", "group", "caught"])
async def test_fan_out_lets_code_errors_through(settles: bool, wrapped: str, autojump_clock: MockClock):
    """
    A code error in a child is recorded nowhere, comes out of the fan-out, and blocks the instance.
    """
    seen: list[BaseException] = []
    store = memable.InMemoryStore()

    async def child(ctx: memable.Context, item: int) -> int:
        if item:
            await trio.sleep_forever()
        try:
            return await ctx.step("s", int)  # type: ignore[arg-type, return-value] # the mistake that is tested
        except memable.MisuseError as error:
            match wrapped:
                case "cause":
                    raise ValueError from error
                case "group":
                    raise ExceptionGroup("several", [KeyError(), error]) from None
                case "caught":
                    return await ctx.step("other", Work().do, 1)  # type: ignore[arg-type, return-value]
                case _:
                    raise

    async def body(ctx: memable.Context) -> None:
        fan_out: Any = ctx.fan_out_settled if settles else ctx.fan_out
        try:
            await fan_out("fan", child, range(3))
        except Exception as error:
            seen.append(error)
            raise

    state = await run_body(body, store=store)
    assert isinstance(state, memable.Blocked)
    assert state.error.type == "memable.MisuseError"
    assert not isinstance(seen[0], memable.ChildFailedError)
    assert kinds_of(store) == ["instance_started", "instance_blocked"]


async def test_fan_out_cancelled_records_nothing_and_can_be_begun_again(autojump_clock: MockClock):
    """
    Cancelled by a scope around it, it may be called again in the same run: children done are not run again.
    """
    work = Work()

    async def child(ctx: memable.Context, item: int) -> str:
        await ctx.step("before", work.do, f"before{item}")
        await trio.sleep(item)
        work.calls[f"end{item}"] += 1
        return str(item)

    async def body(ctx: memable.Context) -> None:
        with trio.move_on_after(2.5) as scope:
            await ctx.fan_out("fan", child, range(4))
        assert scope.cancelled_caught
        assert await ctx.fan_out("fan", child, range(4)) == ["0", "1", "2", "3"]

    assert await run_body(body) == memable.Completed()
    assert work.calls == Counter([f"{what}{item}" for what in ("before", "end") for item in range(4)])


async def test_fan_out_nested_in_a_cancelled_one_is_not_run_again(autojump_clock: MockClock):
    """
    The same holds for a nested fan-out that was done, inside a child that was not.
    """
    work = Work()

    async def leaf(ctx: memable.Context, item: int) -> str:
        work.calls[f"leaf{item}"] += 1
        return await ctx.step("s", work.do, str(item))

    async def branch(ctx: memable.Context, item: int) -> list[str]:
        results = await ctx.fan_out("in", leaf, range(2))
        await trio.sleep(5)
        return results

    async def body(ctx: memable.Context) -> None:
        with trio.move_on_after(3):
            await ctx.fan_out("out", branch, [0])
        assert await ctx.fan_out("out", branch, [0]) == [["0", "1"]]

    assert await run_body(body) == memable.Completed()
    assert work.calls == Counter(["0", "1", "leaf0", "leaf1"])


async def test_fan_out_again_over_a_store_that_fails_stops_the_engine(autojump_clock: MockClock):
    """
    A store that cannot be read when a fan-out is begun again stops the engine; nothing runs twice meanwhile.
    """
    done: list[int] = []

    async def child(ctx: memable.Context, item: int) -> None:
        done.append(item)
        await trio.sleep(item)

    async def fail(_: int) -> None:
        raise memable.StorageError(location="here", problem="gone")

    async def body(ctx: memable.Context) -> None:
        with trio.move_on_after(1):
            await ctx.fan_out("fan", child, [0, 9])
        with trio.CancelScope(shield=True):
            await ctx.fan_out("fan", child, [0, 9])

    store = HookedStore(before_load=fail)
    workflow = workflow_of(body)
    with pytest.raises(memable.StorageError, match="gone"):
        async with memable.open_engine(store, workflows=[workflow]) as engine:
            await result_of(engine)
    assert sorted(done) == [0, 9]


async def test_fan_out_passes_cancellation_on_leaf_by_leaf(autojump_clock: MockClock):
    """
    Cancelled from outside, a child's other errors come out beside the cancellation; the scope takes only its own.
    """
    store = memable.InMemoryStore()

    async def fail_late() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("late")

    async def child(ctx: memable.Context, item: int) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            if item == 1:
                nursery.start_soon(fail_late)

    async def body(ctx: memable.Context) -> None:
        with pytest.RaisesGroup(ValueError, flatten_subgroups=True), trio.move_on_after(1) as scope:
            await ctx.fan_out("fan", child, range(3))
        assert scope.cancelled_caught

    assert await run_body(body, store=store) == memable.Completed()
    assert kinds_of(store) == ["instance_started", "instance_completed"]


async def test_fan_out_cancelled_raises_one_cancellation(autojump_clock: MockClock):
    """
    However many children are cancelled, what comes out is one Cancelled, as out of any operation.
    """
    seen: list[BaseException] = []

    async def child(ctx: memable.Context, item: int) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)

    async def body(ctx: memable.Context) -> None:
        with trio.move_on_after(1):
            try:
                await ctx.fan_out("fan", child, range(3))
            except BaseException as exc:
                seen.append(exc)
                raise

    assert await run_body(body) == memable.Completed()
    assert [type(exc) for exc in seen] == [trio.Cancelled]


@pytest.mark.parametrize("item", [0, 1])
@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
async def test_fan_out_lets_an_interrupt_through(item: int, interrupt: type[BaseException], autojump_clock: MockClock):
    """
    KeyboardInterrupt in a child comes out of the engine's block, even beside another child's failure.
    """

    async def child(ctx: memable.Context, given: int) -> None:
        if given == item:
            try:
                await trio.sleep(5)
            finally:
                raise interrupt
        raise ConnectionError

    async def body(ctx: memable.Context) -> None:
        await ctx.fan_out("fan", child, range(2))

    store = memable.InMemoryStore()
    with pytest.raises(interrupt):
        await run_body(body, store=store)
    assert not any(kind.startswith("instance_f") for kind in kinds_of(store))


async def test_fan_out_lets_several_interrupts_through(autojump_clock: MockClock):
    """
    Interrupts of several children come out together.
    """

    async def child(ctx: memable.Context, item: int) -> None:
        raise (KeyboardInterrupt, SystemExit)[item]

    async def body(ctx: memable.Context) -> None:
        await ctx.fan_out("fan", child, range(2))

    with pytest.RaisesGroup(KeyboardInterrupt, SystemExit, flatten_subgroups=True):
        await run_body(body)


async def test_fan_out_error_beside_a_cancellation_of_its_own_is_its_failure(autojump_clock: MockClock):
    """
    A cancel scope inside a child is the child's own business.
    """

    async def child(ctx: memable.Context, item: int) -> str:
        with trio.move_on_after(1):
            await trio.sleep_forever()
        return "late"

    async def body(ctx: memable.Context) -> None:
        assert await ctx.fan_out("fan", child, [1]) == ["late"]

    assert await run_body(body) == memable.Completed()


@pytest.mark.parametrize("shield", [False, True])
async def test_fan_out_unwound_at_a_shutdown_goes_on_at_the_next_open(
    shield: bool, place: Place, autojump_clock: MockClock
):
    """
    Children that are unwound when the engine stops are no failures, whatever they raise; they go on later.
    """
    work = Work()
    runs: list[int] = []

    async def child(ctx: memable.Context, item: int) -> str:
        before = await ctx.step("s", work.do, str(item))
        if len(runs) == 1:
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                with trio.CancelScope(shield=shield):
                    await ctx.step("never", work.do, "never")
                raise ValueError from None
        return before

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context) -> list[str]:
        runs.append(1)
        return await ctx.fan_out("fan", child, range(3))

    async with memable.open_engine(place.store(), workflows=[workflow], shutdown_timeout=5) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        assert await result_of(engine) == ["0", "1", "2"]
    assert work.calls == Counter("012")


async def test_fan_out_over_a_store_that_fails_acknowledges_nothing(autojump_clock: MockClock):
    """
    If an outcome or the failure cannot be recorded, the body is not told of it.
    """
    told: list[object] = []

    for kind in ("branch_completed", "branch_failed", "fan_out_failed", "branch_started"):

        async def child(ctx: memable.Context, item: int, kind: str = kind) -> None:
            if kind == "branch_started":
                await ctx.step("s", Work().do, "x")
            if kind != "branch_completed":
                raise ConnectionError

        async def body(ctx: memable.Context, kind: str = kind, child: Any = child) -> None:
            fan_out: Any = ctx.fan_out_settled if kind == "branch_failed" else ctx.fan_out
            try:
                told.append(await fan_out("fan", child, [0, 1]))
            except memable.ChildFailedError as error:
                told.append(error)

        with pytest.raises(memable.StorageError, match="no space"):
            await run_body(body, store=failing_at(kind))
    assert told == []


# Misuse ----------------------------------------------------------------------------------------------------------


def _sync(ctx: memable.Context, item: int) -> int:
    return item


async def _one(ctx: memable.Context) -> None: ...


async def _three(ctx: memable.Context, item: int, other: int) -> None: ...


async def _generator(ctx: memable.Context, item: int) -> AsyncIterator[int]:
    yield item


async def _aiter() -> AsyncIterator[int]:
    yield 1


class _AsyncIterable:
    def __aiter__(self) -> AsyncIterator[int]:
        return _aiter()


@memable.workflow
async def lonely(ctx: memable.Context) -> None: ...


@pytest.mark.parametrize("operation", ["fan_out", "fan_out_settled"])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"fn": _sync}, "_sync is not an async function; write 'async def work"),
        ({"fn": 3}, "3 is not an async function"),
        ({"fn": None}, "None is not an async function"),
        ({"fn": _generator}, "_generator is not an async function"),
        ({"fn": lambda ctx, item: item}, "returned a int, which cannot be awaited"),
        ({"fn": _one}, "_one does not take two arguments; write it as 'async def _one"),
        ({"fn": _three}, "_three does not take two arguments"),
        ({"fn": lonely}, "workflow 'lonely' does not take one argument, the item"),
        ({"limit": 0}, "limit is 0; give how many children may run at once, at least 1, or None"),
        ({"limit": -1}, "limit is -1"),
        ({"limit": True}, "limit is True"),
        ({"limit": 2.0}, r"limit is 2\.0"),
        ({"limit": "2"}, "limit is '2'"),
        ({"item_key": "id"}, "item_key is 'id'; give a function"),
        ({"items": 3}, "items is a int, which 'for' cannot go through"),
        ({"items": None}, "items is a NoneType"),
        ({"items": _aiter()}, "items is a async_generator, which 'for' cannot go through; give a list"),
        ({"items": _AsyncIterable()}, "items is a _AsyncIterable"),
    ],
)
async def test_fan_out_refuses_what_cannot_work(operation: str, change: dict[str, Any], match: str):
    """
    A call that cannot work is a MisuseError that is a TypeError and says what to write; nothing runs.
    """
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        given: dict[str, Any] = {"fn": double, "items": [1], "limit": None, "item_key": None} | change
        with pytest.raises(TypeError, match=match) as caught:
            await getattr(ctx, operation)("fan", given.pop("fn"), given.pop("items"), **given)
        assert isinstance(caught.value, memable.MisuseError)

    state = await run_body(body, store=store)
    assert isinstance(state, memable.Blocked)
    assert kinds_of(store) == ["instance_started", "instance_blocked"]


async def test_fan_out_refuses_a_coroutine(autojump_clock: MockClock):
    """
    A function that was called instead of given is a misuse, and its coroutine is closed.
    """

    async def body(ctx: memable.Context) -> None:
        with pytest.raises(memable.MisuseError, match="give it without calling it"):
            await ctx.fan_out("fan", double(ctx, 1), [1])  # type: ignore[arg-type] # the mistake that is tested

    assert isinstance(await run_body(body), memable.Blocked)


async def test_fan_out_error_of_the_iterator_comes_out_as_itself(autojump_clock: MockClock):
    """
    What the user's generator or item_key raises cancels the children, and comes out of the fan-out, in no group.
    """
    started: list[int] = []

    def items(count: int) -> Iterator[int]:
        yield from range(count)
        raise LookupError("no more")

    async def child(ctx: memable.Context, item: int) -> None:
        started.append(item)
        await trio.sleep_forever()

    async def body(ctx: memable.Context) -> None:
        with pytest.raises(LookupError, match="no more"):
            await ctx.fan_out("a", child, items(0))
        with pytest.raises(LookupError, match="no more"):
            await ctx.fan_out("b", child, items(3), limit=4)
        with pytest.raises(ZeroDivisionError):
            await ctx.fan_out("c", child, [0], item_key=lambda item: str(1 // item))

    assert await run_body(body) == memable.Completed()
    # Of those that had room, some may have begun.
    assert set(started) <= {0, 1, 2}


# Forgetting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forget", "again"),
    [
        (["fan"], ["a0", "a1", "a2", "b0", "b1", "b2"]),
        (["fan/1"], ["a1", "b1"]),
        (["fan/1/b:v1"], ["b1"]),
        (["fan/1/b:v1", "fan/2"], ["b1", "a2", "b2"]),
        (["other"], ["x"]),
    ],
)
async def test_fan_out_forgotten_by_path_runs_exactly_that_again(
    forget: list[str], again: list[str], place: Place, autojump_clock: MockClock
):
    """
    Forgetting a fan-out, a child or a step in it runs that again, under new step ids, and all the rest keeps its memos.
    """
    work = Work()
    ids: dict[str, set[str]] = {}

    async def child(ctx: memable.Context, item: int) -> list[str]:
        for key in ("a:v1", "b:v1"):
            ids.setdefault(f"{key[0]}{item}", set()).add(ctx.step_id(key))
        return [await ctx.step(f"{letter}:v1", work.do, f"{letter}{item}") for letter in "ab"]

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context) -> int:
        await ctx.fan_out("fan", child, range(3))
        await ctx.step("other", work.do, "x")
        return len(await ctx.fan_out("fan2", child, range(0)))

    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await result_of(engine)
        work.clear()
        await (await engine.resume(workflow, INSTANCE, forget=forget)).result()
    assert work.calls == Counter(again)
    assert {name for name, found in ids.items() if len(found) == 2} == set(again) - {"x"}


async def test_fan_out_forgotten_after_a_failure_begins_anew(place: Place, autojump_clock: MockClock):
    """
    Forgetting a child of a fan-out that failed drops the failure with it.
    """
    work = Work(broken={"1"})

    async def child(ctx: memable.Context, item: int) -> str:
        return await ctx.step("s", work.do, str(item))

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context) -> list[str]:
        with contextlib.suppress(memable.ChildFailedError):
            return await ctx.fan_out("fan", child, range(3))
        return []

    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        assert await result_of(engine) == []
        work.broken.clear()
        assert await (await engine.resume(workflow, INSTANCE, forget=["fan/1"])).result() == ["0", "1", "2"]
    assert work.calls["1"] == 2


async def test_fan_out_unknown_paths_are_refused_with_what_is_known(place: Place, autojump_clock: MockClock):
    """
    A path that is not recorded is an UnknownKeyError that lists those which are, fan-out and children included.
    """

    async def child(ctx: memable.Context, item: int) -> None:
        await ctx.step("s", Work().do, "x")

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context) -> None:
        await ctx.fan_out("fan", child, range(2))

    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await result_of(engine)
        for path in ("fan/2", "fan/1/t", "fa", "fan/0/s/x"):
            with pytest.raises(memable.UnknownKeyError, match=path) as caught:
                await engine.resume(workflow, INSTANCE, forget=[path])
            assert set(caught.value.known) == {"fan", "fan/0", "fan/0/s", "fan/1", "fan/1/s"}


async def test_fan_out_paths_stand_in_the_history(autojump_clock: MockClock):
    """
    The history names steps, children and the fan-out by their paths.
    """

    async def child(ctx: memable.Context, item: int) -> None:
        await ctx.step("s", Work(broken={"1"}).do, str(item))

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context) -> None:
        await ctx.fan_out("fan", child, range(2), limit=1)

    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        await bring_to_end(engine)
        history = await engine.history(workflow, INSTANCE)
    told = [(entry.kind, entry.key) for entry in history if entry.key is not None]
    assert set(told) == {
        ("fan_out", "fan"),
        ("child", "fan/0"),
        ("step", "fan/0/s"),
        ("child", "fan/1"),
        ("step", "fan/1/s"),
    }


# Compensations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["fan_out", "fan_out_settled"])
def test_fan_out_children_register_their_compensations_again(operation: str):
    """
    Children done run over their memos to register what undoes them, and the body sees the recorded results meanwhile.
    """
    work = Work()
    seen: list[Any] = []

    async def child(ctx: memable.Context, item: int) -> str:
        if item != 1:
            await ctx.compensate("undo", work.do, f"undo{item}")
        return await ctx.step("s", work.do, str(item))

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context) -> None:
        results = await getattr(ctx, operation)("fan", child, range(3))
        seen.append([getattr(result, "value", result) for result in results])
        await ctx.step("last", work.do, "last")
        raise ValueError

    async def run(engine: memable.Engine) -> bool:
        return isinstance(await bring_to_end(engine), memable.Failed)

    schedules = explore(run, [workflow], expected=True, again=["children"])
    assert len(schedules) > 20
    undone = {f"w/i: fan/{item}/undo" for item in (0, 2)}
    assert all({name for name in one.executions if name.endswith("undo")} == undone for one in schedules)
    assert all(results == ["0", "1", "2"] for results in seen)


def test_fan_out_that_failed_lets_its_children_register_their_compensations():
    """
    Children of a fan-out that failed are undone, too: those done, the one that failed, and those it has cancelled.
    """
    work = Work()

    async def child(ctx: memable.Context, item: int) -> None:
        await ctx.compensate("undo", work.do, f"undo{item}")
        if item == 1:
            raise ConnectionError
        if item == 2:
            await trio.sleep_forever()

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context) -> None:
        await ctx.fan_out("fan", child, range(3))

    async def run(engine: memable.Engine) -> str:
        state = await bring_to_end(engine)
        assert isinstance(state, memable.Failed)
        return state.error.type

    schedules = explore(run, [workflow], expected="memable.ChildFailedError", again=["children"])
    assert len(schedules) > 20
    assert all(set(one.executions) == {f"w/i: fan/{item}/undo" for item in range(3)} for one in schedules)


# Scale -----------------------------------------------------------------------------------------------------------

LIMIT = 100
ALLOWANCE_BYTES = 1_500_000
"For so many children at once, and whatever their count."


@attrs.define
class Measured:
    """
    Runs a fan-out over many items, with a step in each child, over a store that keeps nothing of it.
    """

    peak_bytes: int = 0
    "How much more memory was in use than before, at most."
    results_bytes: int = 0
    seconds: float = 0.0
    "How long it took, the last time."

    async def run(self, count: int, *, traces: bool = False, replays: bool = False) -> None:
        store = memable.InMemoryStore()
        runs: list[int] = []

        async def forget(_: object) -> None:
            if not replays:
                # What a store keeps is not what a run keeps.
                for journal in store._kept.journals.values():
                    del journal[1:]

        async def get(item: int) -> int:
            return item

        async def child(ctx: memable.Context, item: int) -> int:
            return await ctx.step("s", get, item)

        @memable.workflow(name="w")
        async def workflow(ctx: memable.Context) -> None:
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            start = time.perf_counter()
            results = await ctx.fan_out("fan", child, range(count), limit=LIMIT)
            self.seconds = time.perf_counter() - start
            self.peak_bytes = tracemalloc.get_traced_memory()[1] - before
            self.results_bytes = sys.getsizeof(results) + sum(map(sys.getsizeof, results))
            assert results == list(range(count))
            runs.append(1)
            if replays and len(runs) == 1:
                raise ValueError

        if traces:
            tracemalloc.start()
        try:
            async with memable.open_engine(HookedStore(store, before_append=forget), workflows=[workflow]) as engine:
                await bring_to_end(engine)
                if replays:
                    await ending_of(await engine.resume(workflow, INSTANCE))
        finally:
            if traces:
                tracemalloc.stop()


@pytest.mark.slow
async def test_fan_out_keeps_no_more_than_its_results_in_memory():
    """
    Beside the results, the memory of a fan-out depends on its limit, not on the count of its items.
    """
    measured = Measured()
    await measured.run(2_500, traces=True)
    assert measured.peak_bytes < measured.results_bytes + ALLOWANCE_BYTES


async def test_fan_out_replayed_keeps_no_more_than_its_results_in_memory():
    """
    A replay takes no more memory than the journal that it is given, either.
    """
    measured = Measured()
    await measured.run(1_000, traces=True, replays=True)
    assert measured.peak_bytes < measured.results_bytes + ALLOWANCE_BYTES / 3


@pytest.mark.slow
@pytest.mark.parametrize("replays", [False, True])
async def test_fan_out_takes_time_in_proportion_to_its_items(replays: bool):
    """
    Eight times the items take about eight times as long, live as on a replay; far from sixty-four times.
    """
    small, large = Measured(), Measured()
    await small.run(500, replays=replays)
    await large.run(4_000, replays=replays)
    assert large.seconds < 32 * small.seconds
