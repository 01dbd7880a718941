"""
Fan-outs that collect all outcomes, and switching between them and those that fail with the first.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import memable
from fanning import Work, bring_to_end, explore, result_of, settled
from memable import ChildFailed, ChildSucceeded
from running import INSTANCE, ending_of, kinds_of, observe_twice, run_body, workflow_of
from stores import Place
from waits import P, settle


async def half(ctx: memable.Context, item: int) -> int:
    await trio.sleep(item)
    if item % 2:
        raise ConnectionError(f"odd: {item}")
    return item // 2


async def test_settled_returns_how_each_child_ended(autojump_clock: MockClock):
    """
    All children come to their end; each outcome is its value or its error, in order, live as on a replay.
    """

    async def body(ctx: memable.Context) -> Any:
        outcomes = await ctx.fan_out_settled("fan", half, range(4), limit=2)
        for outcome in outcomes:
            match outcome:
                case ChildSucceeded(value):
                    assert value in {0, 1}
                case ChildFailed(error):
                    assert error.matches(ConnectionError)
        return outcomes

    live, replayed = await observe_twice(body)
    assert live == replayed
    assert settled(live) == [0, "ConnectionError: odd: 1", 1, "ConnectionError: odd: 3"]
    assert isinstance(live[1], ChildFailed)
    assert "in half" in live[1].error.traceback


async def test_settled_over_nothing_returns_nothing():
    """
    Over no items there are no outcomes.
    """

    async def body(ctx: memable.Context) -> None:
        assert await ctx.fan_out_settled("fan", half, []) == []

    assert await run_body(body) == memable.Completed()


@pytest.mark.parametrize("limit", [None, 2])
def test_settled_survives_crashes_at_each_append(limit: int | None):
    """
    Wherever the process dies or is stopped, children that ended, well or not, are not run again.
    """
    work = Work()

    async def child(ctx: memable.Context, item: int) -> int:
        await ctx.step("s", work.do, str(item))
        return await half(ctx, item)

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context) -> list[Any]:
        return settled(await ctx.fan_out_settled("fan", child, range(4), limit=limit))

    expected = [0, "ConnectionError: odd: 1", 1, "ConnectionError: odd: 3"]
    assert len(explore(result_of, [workflow], expected=expected)) > 20


async def test_settled_value_that_cannot_be_stored_is_a_failure(autojump_clock: MockClock):
    """
    A child whose value cannot be encoded has failed with a SerializationError; the others are unharmed.
    """

    async def child(ctx: memable.Context, item: int) -> Any:
        return object() if item else 1

    async def body(ctx: memable.Context) -> Any:
        good, bad = await ctx.fan_out_settled("fan", child, range(2))
        assert good == ChildSucceeded(1)
        assert isinstance(bad, ChildFailed)
        assert bad.error.matches(memable.SerializationError)
        return bad

    live, replayed = await observe_twice(body)
    assert live == replayed


async def test_settled_child_is_run_again_when_its_path_is_forgotten(place: Place, autojump_clock: MockClock):
    """
    A failure that was collected stands at a resume; forgotten by its path, the child runs again.
    """
    work = Work(broken={"1"})

    async def child(ctx: memable.Context, item: int) -> str:
        return await ctx.step("s", work.do, str(item))

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context) -> list[Any]:
        outcomes = settled(await ctx.fan_out_settled("fan", child, range(3)))
        await ctx.step("last", work.do, "last")
        return outcomes

    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        work.broken.add("last")
        assert isinstance(await bring_to_end(engine), memable.Failed)
        work.broken.clear()
        outcomes = await (await engine.resume(workflow, INSTANCE)).result()
        assert "StepFailedError" in outcomes[1]
        assert work.calls == Counter({"0": 1, "1": 1, "2": 1, "last": 2})
        assert await (await engine.resume(workflow, INSTANCE, forget=["fan/1"])).result() == ["0", "1", "2"]
    assert work.calls == Counter({"0": 1, "1": 2, "2": 1, "last": 2})


async def test_settled_lets_an_interrupt_through(autojump_clock: MockClock):
    """
    Only exceptions that a workflow may fail with are collected.
    """

    async def child(ctx: memable.Context, item: int) -> None:
        raise KeyboardInterrupt

    async def body(ctx: memable.Context) -> None:
        await ctx.fan_out_settled("fan", child, range(2))

    with pytest.RaisesGroup(KeyboardInterrupt, KeyboardInterrupt, flatten_subgroups=True):
        await run_body(body)


# Switching -------------------------------------------------------------------------------------------------------


async def test_settled_becomes_failing_at_the_first(place: Place, autojump_clock: MockClock):
    """
    Code that collected outcomes and now fails with the first one does so with what is recorded; a resume mends it.
    """
    work = Work(broken={"1"})
    runs: list[int] = []

    async def child(ctx: memable.Context, item: int) -> str:
        return await ctx.step("s", work.do, str(item))

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context) -> list[Any]:
        runs.append(1)
        if len(runs) == 1:
            await ctx.fan_out_settled("fan", child, range(3))
            raise ValueError
        return await ctx.fan_out("fan", child, range(4))

    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await bring_to_end(engine)
        state = await ending_of(await engine.resume(workflow, INSTANCE))
        assert isinstance(state, memable.Failed)
        assert "child '1' (index 1)" in state.error.message
        # Child 3 was never begun.
        assert work.calls == Counter("012")
        work.broken.clear()
        assert await (await engine.resume(workflow, INSTANCE)).result() == ["0", "1", "2", "3"]
    assert work.calls == Counter("01123")


def test_settled_that_became_failing_is_undone():
    """
    The same with something to undo: the children register it again, and it is undone whatever crashes.
    """
    work = Work(broken={"1"})
    code = ["settled"]

    async def child(ctx: memable.Context, item: int) -> str:
        await ctx.compensate("undo", work.do, f"undo{item}")
        return await ctx.step("s", work.do, str(item))

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context) -> None:
        if code == ["settled"]:
            await ctx.fan_out_settled("fan", child, range(3))
            await ctx.suspend(P)
        await ctx.fan_out("fan", child, range(3))

    async def run(engine: memable.Engine) -> bool:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        if isinstance(await invocation.wait(), memable.Suspended):
            # Once the body is unwound from its wait, the signal lets other code run over its memos.
            await settle()
            code[:] = ["failing"]
            await engine.signal(workflow, INSTANCE, P, 1)
        return isinstance(await ending_of(invocation), memable.Failed)

    allowed = ["key-differs", "different-results"]
    schedules = explore(run, [workflow], expected=True, again=["children"], max_parked=0, outside=[code], allow=allowed)
    assert len(schedules) > 20
    undone = {f"w/i: fan/{item}/undo" for item in range(3)}
    assert all({name for name in one.executions if name.endswith("undo")} == undone for one in schedules)


async def test_failing_at_the_first_becomes_settled(place: Place, autojump_clock: MockClock):
    """
    Code that failed with the first outcome and now collects them finds that one among them, and runs the rest.
    """
    work = Work(broken={"1"})
    runs: list[int] = []

    async def child(ctx: memable.Context, item: int) -> str:
        return await ctx.step("s", work.do, str(item))

    async def body(ctx: memable.Context) -> list[Any]:
        runs.append(1)
        if len(runs) == 1:
            with pytest.raises(memable.ChildFailedError, match="child '1'"):
                await ctx.fan_out("fan", child, range(3), limit=1)
            raise ValueError
        outcomes = settled(await ctx.fan_out_settled("fan", child, range(3), limit=1))
        if len(runs) == 2:
            raise ValueError
        return outcomes

    workflow = memable.workflow(name="w")(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await bring_to_end(engine)
        await ending_of(await engine.resume(workflow, INSTANCE))
        outcomes = await (await engine.resume(workflow, INSTANCE)).result()
    assert [outcomes[0], outcomes[2]] == ["0", "2"]
    assert "StepFailedError" in outcomes[1]
    assert work.calls == Counter("012")


async def test_failing_at_the_first_and_settled_agree_on_values(place: Place, autojump_clock: MockClock):
    """
    Where all went well, either takes the children of the other as they are.
    """
    runs: list[int] = []
    work = Work()

    async def child(ctx: memable.Context, item: int) -> str:
        return await work.do(str(item))

    async def body(ctx: memable.Context) -> None:
        runs.append(1)
        assert await ctx.fan_out("a" if len(runs) == 1 else "b", child, range(2)) == ["0", "1"]
        assert settled(await ctx.fan_out_settled("b" if len(runs) == 1 else "a", child, range(2))) == ["0", "1"]
        if len(runs) == 1:
            raise ValueError

    workflow = workflow_of(body)
    store = place.store()
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await bring_to_end(engine)
        assert await ending_of(await engine.resume(workflow, INSTANCE)) == memable.Completed()
    assert work.calls == Counter({"0": 2, "1": 2})
    if isinstance(store, memable.InMemoryStore):
        assert "fan_out_failed" not in kinds_of(store)
