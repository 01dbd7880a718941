"""
Passivation: the same results, memos and effects whether runs that wait keep their tasks, lose them, or all is lost.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

import memable
from memable import RetryPolicy
from memable._clock import _virtual_origin
from memable._journal import journal_of
from memable._records import InstanceStarted, StepCompleted
from running import INSTANCE, ending_of, kinds_of, workflow_of
from stores import HookedStore, Place
from waits import HOUR, P, Q, R, counting, settle, suspended

FLAKY = ("flaky", "undo-c")
"Steps that are done more than once."

# Scenarios -------------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class World:
    """
    What is outside the workflows: the calls of their steps.
    """

    calls: list[tuple[str, str]] = attrs.field(factory=list)

    async def act(self, instance_id: str, name: str) -> str:
        self.calls.append((instance_id, name))
        await trio.lowlevel.checkpoint()
        return name.upper()

    async def fail_twice(self, instance_id: str, name: str) -> str:
        await self.act(instance_id, name)
        if self.calls.count((instance_id, name)) < 3:
            raise ConnectionError
        return name

    async def fail(self, instance_id: str, name: str) -> str:
        await self.act(instance_id, name)
        raise ValueError(name)


world = World()


async def act(ctx: memable.Context, name: str) -> str:
    """Do a step that is noted."""
    return await ctx.step(name, world.act, ctx.instance_id, name)


async def suspends(ctx: memable.Context) -> list[object]:
    return [await act(ctx, "a"), await ctx.suspend(P), await act(ctx, "b"), await ctx.suspend(Q), await act(ctx, "c")]


async def sleeps(ctx: memable.Context) -> list[object]:
    await ctx.sleep("s", 2)
    a = await act(ctx, "a")
    await ctx.sleep("t", 3)
    return [a]


async def times_out(ctx: memable.Context) -> list[object]:
    try:
        await ctx.suspend(R, timeout=3)
    except memable.SuspendTimeoutError:
        return [await act(ctx, "late"), await ctx.suspend(P)]
    return []


async def moves_on(ctx: memable.Context) -> list[object]:
    async with ctx.move_on_after("limit", 4) as scope:
        await act(ctx, "a")
        await ctx.suspend(P)
        await act(ctx, "b")
        await ctx.suspend(R)
        await act(ctx, "never")
    return [scope.cancelled_caught, await act(ctx, "c"), await ctx.suspend(Q)]


async def fails_after(ctx: memable.Context) -> list[object]:
    try:
        async with ctx.fail_after("limit", 3):
            await ctx.sleep("s", 2)
            await ctx.suspend(R)
    except TimeoutError:
        return [await act(ctx, "late"), await ctx.suspend(Q)]
    return []


async def nests_scopes(ctx: memable.Context) -> list[object]:
    got: list[object] = []
    async with ctx.move_on_after("outer", 5) as outer:
        for n in range(4):
            async with ctx.move_on_after(f"inner{n}", 2) as inner:
                got.append(await act(ctx, f"a{n}"))
                await ctx.suspend(memable.SuspendPoint(f"never{n}", int))
            got.append(inner.cancelled_caught)
    return [*got, outer.cancelled_caught, await ctx.suspend(Q)]


async def backs_off(ctx: memable.Context) -> list[object]:
    policy = RetryPolicy.fixed(5, 1.5)
    return [
        await ctx.step("flaky", world.fail_twice, ctx.instance_id, "flaky", retry=policy),
        await ctx.suspend(P),
        await act(ctx, "a"),
    ]


async def wait_in_branch(ctx: memable.Context, n: int) -> list[object]:
    before = await act(ctx, f"a{n}")
    if n % 2:
        await ctx.sleep("s", n)
    return [before, await ctx.suspend(P), await act(ctx, f"b{n}")]


async def fans_out(ctx: memable.Context) -> list[object]:
    return [await ctx.fan_out("f", wait_in_branch, range(4)), await act(ctx, "end")]


async def fans_out_few_at_a_time(ctx: memable.Context) -> list[object]:
    return [await ctx.fan_out("f", wait_in_branch, range(4), limit=2), await ctx.suspend(Q)]


async def fail_in_branch(ctx: memable.Context, n: int) -> str:
    if n == 1:
        await ctx.sleep("s", 1)
        await ctx.step("bad", world.fail, ctx.instance_id, "bad")
    await ctx.suspend(P)
    return await act(ctx, f"a{n}")


async def settles(ctx: memable.Context) -> list[object]:
    outcomes = await ctx.fan_out_settled("f", fail_in_branch, range(3))
    return [type(outcome).__name__ for outcome in outcomes]


async def fails_in_a_fan_out(ctx: memable.Context) -> list[object]:
    async def branch(child: memable.Context, n: int) -> None:
        if n == 1:
            await child.sleep("s", 2)
            await child.step("bad", world.fail, child.instance_id, "bad")
        await child.suspend(R)

    try:
        await ctx.fan_out("f", branch, range(3))
    except memable.ChildFailedError as error:
        return [error.index, await ctx.suspend(P)]
    return []


@memable.workflow
async def waiting_child(ctx: memable.Context, n: int) -> int:
    await act(ctx, f"child{n}")
    payload = await ctx.suspend(P)
    await ctx.sleep("s", 1)
    return payload + n


async def calls(ctx: memable.Context) -> list[object]:
    return [await act(ctx, "a"), await ctx.call("c", waiting_child, 3), await act(ctx, "b")]


async def calls_many(ctx: memable.Context) -> list[object]:
    return [await ctx.fan_out("f", waiting_child, [1, 2]), await ctx.call("c", waiting_child, 3), await act(ctx, "b")]


async def starts(ctx: memable.Context) -> list[object]:
    return [await ctx.start("d", waiting_child, 1), await ctx.suspend(P), await act(ctx, "a")]


async def compensates(ctx: memable.Context) -> list[object]:
    await ctx.compensate("undo-a", world.act, ctx.instance_id, "undo-a")
    await act(ctx, "a")
    async with ctx.move_on_after("limit", 2):
        await ctx.compensate("undo-b", world.act, ctx.instance_id, "undo-b")
        await ctx.suspend(R)
    await ctx.suspend(P)
    await ctx.compensate("undo-c", world.fail_twice, ctx.instance_id, "undo-c", retry=RetryPolicy.fixed(5, 1.0))
    await ctx.step("bad", world.fail, ctx.instance_id, "bad")
    return []


async def shares_a_nursery(ctx: memable.Context) -> list[object]:
    got: list[object] = []

    async def task() -> None:
        got.append(await ctx.suspend(Q))
        got.append(await act(ctx, "t"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(task)
        await ctx.sleep("s", 2)
        await act(ctx, "a")
    return [*got, await ctx.suspend(P)]


SCENARIOS: dict[str, Callable[[memable.Context], Any]] = {
    scenario.__name__: scenario
    for scenario in (
        suspends,
        sleeps,
        times_out,
        moves_on,
        fails_after,
        nests_scopes,
        backs_off,
        fans_out,
        fans_out_few_at_a_time,
        settles,
        fails_in_a_fan_out,
        calls,
        calls_many,
        starts,
        compensates,
        shares_a_nursery,
    )
}


def definition_of(scenario: Callable[[memable.Context], Any]) -> memable.Workflow[[], Any]:
    @memable.workflow(name="w")
    async def main(ctx: memable.Context) -> Any:
        return await scenario(ctx)

    return main


def answers() -> Sequence[tuple[str, str, memable.SuspendPoint[int], str | None]]:
    """Return all that the scenarios may ever wait for, but for what is to time out."""
    return [
        *(("w", INSTANCE, point, None) for point in (P, Q)),
        *(("w", INSTANCE, P, f"f/{n}") for n in range(4)),
        *(("waiting_child", f"{INSTANCE}/{path}", P, None) for path in ("c", "d", "f/0", "f/1")),
    ]


@attrs.frozen
class Outcome:
    """
    What is left of a scenario.
    """

    result: object
    memos: dict[str, dict[str, object]]


def memos_of(store: memable.InMemoryStore) -> dict[str, dict[str, object]]:
    """Return all recorded outcomes by instance and path, without times and attempts."""
    records: dict[int, list[Any]] = {}
    for record in store._records:
        records.setdefault(record.instance, []).append(record)
    found: dict[str, dict[str, object]] = {}
    for mine in records.values():
        started = mine[0]
        assert isinstance(started, InstanceStarted)
        memos = journal_of(mine).memos
        found[started.instance_id] = {
            path: (memo.kind, getattr(memo, "value", getattr(memo, "expired", None))) for path, memo in memos.items()
        }
    return found


async def play(
    definition: memable.Workflow[[], Any], kept: memable.InMemoryStore, store: Any, max_parked: int
) -> Outcome:
    """Run a scenario to its end, answering whatever waits, once a second."""
    async with memable.open_engine(store, workflows=[definition, waiting_child], max_parked=max_parked) as engine:
        invocation = await engine.invoke(definition, instance_id=INSTANCE)
        with trio.fail_after(60):
            while not all(metadata.status.is_terminal for metadata in await engine.list_instances()):
                await trio.sleep(1)
                assert not isinstance(await invocation.state(), memable.Blocked), await invocation.state()
                for workflow, instance_id, point, within in answers():
                    with contextlib.suppress(
                        memable.SignalRejectedError, memable.SignalSupersededError, memable.InstanceNotFoundError
                    ):
                        await engine.signal(workflow, instance_id, point, 7, within=within)
        try:
            result: object = await invocation.result()
        except memable.WorkflowFailedError as error:
            result = error.error.type
    return Outcome(result, memos_of(kept))


def steps_done(store: memable.InMemoryStore) -> set[tuple[str, str]]:
    """Return the steps that are recorded as done, by instance and the name by which the world knows them."""
    names = {record.instance: record.instance_id for record in store._records if isinstance(record, InstanceStarted)}
    return {
        (names[record.instance], record.path.rpartition("/")[2])
        for record in store._records
        if isinstance(record, StepCompleted)
    }


async def play_from(definition: memable.Workflow[[], Any], store: memable.InMemoryStore, max_parked: int) -> Outcome:
    """Go on from a store, and check that no step that is done is done again."""
    world.calls.clear()
    done = steps_done(store)
    outcome = await play(definition, store, store, max_parked)
    again = done.intersection(world.calls)
    assert not again, again
    return outcome


def at_its_own_time(fn: Callable[..., Awaitable[Outcome]], *args: object) -> Outcome:
    """
    Call an async function with a virtual clock that begins long ago, so that a store goes on at its newest record.
    """

    async def main() -> Outcome:
        _virtual_origin.set(1e9)
        return await fn(*args)

    return trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_comes_to_the_same_end(name: str):
    """
    A workflow has the same result and memos, and does each step once, parked, passivated and crashed anywhere.
    """
    definition = definition_of(SCENARIOS[name])
    world.calls.clear()
    first = memable.InMemoryStore()
    expected = at_its_own_time(play, definition, first, first, 1000)
    once = Counter(call for call in world.calls if call[1] not in FLAKY)
    assert set(once.values()) <= {1}
    for max_parked in (0, 1, 1000):
        kept = memable.InMemoryStore()
        copies: list[memable.InMemoryStore] = []

        async def copy(_records: object, kept: memable.InMemoryStore = kept, copies: Any = copies) -> None:
            copies.append(kept.crashed_copy())

        world.calls.clear()
        outcome = at_its_own_time(play, definition, kept, HookedStore(kept, before_append=copy), max_parked)
        assert outcome == expected
        assert Counter(call for call in world.calls if call[1] not in FLAKY) == once
        # The first copy is of nothing.
        for crashed in copies[1:]:
            assert at_its_own_time(play_from, definition, crashed, max_parked) == expected


# Passivating -----------------------------------------------------------------------------------------------------


def tracked(alive: dict[str, int], runs: Counter[str]) -> memable.Workflow[[], None]:
    """Return a workflow that waits, and counts its runs and the bodies that are in memory."""

    async def body(ctx: memable.Context) -> None:
        runs[ctx.instance_id] += 1
        alive[ctx.instance_id] = alive.get(ctx.instance_id, 0) + 1
        try:
            await ctx.suspend(P)
            await ctx.suspend(Q)
        finally:
            alive[ctx.instance_id] -= 1

    return workflow_of(body)


async def test_longest_waiting_are_passivated_beyond_the_limit(place: Place, autojump_clock: MockClock):
    """
    Up to ``max_parked`` waiting runs keep their tasks; beyond that, those that have waited longest lose them.
    """
    alive: dict[str, int] = {}
    workflow = tracked(alive, Counter())
    async with memable.open_engine(place.store(), workflows=[workflow], max_parked=3) as engine:
        for n in range(8):
            await engine.invoke(workflow, instance_id=f"i{n}")
            await settle()
            assert [name for name, count in alive.items() if count] == [f"i{k}" for k in range(max(0, n - 2), n + 1)]
        await engine.signal(workflow, "i0", P, 1)
        await engine.signal(workflow, "i5", P, 1)
        await settle()
        assert {name for name, count in alive.items() if count} == {"i0", "i5", "i7"}
        states = [await engine.state(workflow, f"i{n}") for n in range(8)]
        assert [state.key for state in states if isinstance(state, memable.Suspended)] == list("qppppqpp")


async def test_parked_run_goes_on_in_place(autojump_clock: MockClock):
    """
    A run that keeps its tasks is continued by a signal without running its body again.
    """
    runs: Counter[str] = Counter()
    workflow = tracked({}, runs)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow], max_parked=1) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        for point in (P, Q):
            await suspended(engine)
            await engine.signal(workflow, INSTANCE, point, 1)
        assert await ending_of(invocation) == memable.Completed()
    assert runs == {INSTANCE: 1}


async def test_each_wait_passivates_without_parking(autojump_clock: MockClock):
    """
    With ``max_parked=0`` the body runs once more for each wait: signals, sleeps, backoffs, scopes and calls alike.
    """
    runs: list[object] = []
    leaving: list[object] = []
    world.calls.clear()

    async def body(ctx: memable.Context) -> None:
        runs.append(ctx.replaying)
        try:
            await ctx.suspend(P)
            await ctx.sleep("s", 1)
            await ctx.step("k", world.fail_twice, "i", "flaky", retry=RetryPolicy.fixed(2, 1.0))
            async with ctx.move_on_after("limit", 1):
                await ctx.suspend(R)
            await ctx.call("c", waiting_child, 1)
        finally:
            leaving.append(ctx.leaving)

    workflow = workflow_of(body)
    async with memable.open_engine(
        memable.InMemoryStore(), workflows=[workflow, waiting_child], max_parked=0
    ) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        await engine.signal(workflow, INSTANCE, P, 1)
        await trio.sleep(20)
        await engine.signal(waiting_child, f"{INSTANCE}/c", P, 1)
        assert await ending_of(invocation) == memable.Completed()
    assert leaving == ["passivated"] * 6 + [None]
    assert runs == [False] + [True] * 6


@pytest.mark.parametrize("how", ["returns", "raises", "goes on"])
async def test_body_that_swallows_a_passivation_does_no_harm(
    how: str, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
):
    """
    What a body makes of being passivated is ignored, and logged; it is run again, and gets its signal.
    """
    got: list[int] = []
    calls: list[str] = []
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        try:
            got.append(await ctx.suspend(P))
        except trio.Cancelled:
            if how == "raises":
                raise ValueError from None
            if how == "goes on":
                with trio.CancelScope(shield=True), pytest.raises(memable.RunEndedError, match="passivated"):
                    await ctx.step("wrong", counting(calls), "wrong")

    workflow = workflow_of(body)
    with caplog.at_level(logging.WARNING, "memable"):
        async with memable.open_engine(store, workflows=[workflow], max_parked=0) as engine:
            invocation = await engine.invoke(workflow, instance_id=INSTANCE)
            assert (await suspended(engine)).key == "p"
            await engine.signal(workflow, INSTANCE, P, 7)
            assert await ending_of(invocation) == memable.Completed()
    assert (got, calls) == ([7], [])
    assert ("swallowed the cancellation" in caplog.text) == (how != "raises")
    assert "instance_failed" not in kinds_of(store)


@pytest.mark.parametrize("max_parked", [0, 1000])
async def test_body_that_swallows_a_shutdown_does_no_harm(
    max_parked: int, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
):
    """
    A body that swallows the cancellation of a shutdown is found waiting at the next open.
    """
    left: list[object] = []
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        try:
            await ctx.suspend(P)
        except trio.Cancelled:
            left.append(ctx.leaving)

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow], max_parked=max_parked) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
    assert left == ["stopping" if max_parked else "passivated"]
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        assert (await suspended(engine)).key == "p"
        await engine.signal(workflow, INSTANCE, P, 1)
        assert await ending_of(await engine.get("w", INSTANCE)) == memable.Completed()
    assert "swallowed the cancellation" in caplog.text


@pytest.mark.parametrize("max_parked", [0, 1000])
async def test_shielded_wait_ends_when_the_run_is_unwound(max_parked: int, autojump_clock: MockClock):
    """
    A wait that is shielded from cancellation does not hold up a passivation, a shutdown or a cancellation.
    """
    errors: list[object] = []

    async def body(ctx: memable.Context) -> None:
        with trio.CancelScope(shield=True):
            try:
                await ctx.suspend(P)
            except memable.RunEndedError as error:
                errors.append(error.leaving)
                with pytest.raises(memable.RunEndedError, match="did nothing"):
                    await ctx.sleep("s", HOUR)
                raise

    workflow = workflow_of(body)
    store = memable.InMemoryStore()
    with trio.fail_after(10):
        async with memable.open_engine(store, workflows=[workflow], max_parked=max_parked) as engine:
            await engine.invoke(workflow, instance_id=INSTANCE)
            await suspended(engine)
        async with memable.open_engine(store, workflows=[workflow], max_parked=1000) as engine:
            await engine.resume(workflow, INSTANCE)
            await suspended(engine)
            assert await engine.cancel(workflow, INSTANCE)
    assert errors == ["stopping" if max_parked else "passivated", "cancelled"]


async def test_run_that_could_not_be_passivated_is_later(autojump_clock: MockClock):
    """
    A run that is to be passivated while a signal for later is on its way to the store is passivated after that.
    """
    alive: dict[str, int] = {}
    workflow = tracked(alive, Counter())
    hold = trio.Event()

    async def pause(records: Sequence[Any]) -> None:
        if records[0].kind == "signal_kept":
            await hold.wait()

    async with memable.open_engine(HookedStore(before_append=pause), workflows=[workflow], max_parked=1) as engine:
        async with trio.open_nursery() as nursery:
            await engine.invoke(workflow, instance_id="i0")
            await settle()
            nursery.start_soon(partial(engine.signal, workflow, "i0", Q, 1, early="keep"))
            await settle()
            nursery.start_soon(partial(engine.invoke, workflow, instance_id="i1"))
            await settle()
            hold.set()
        await settle()
        assert sum(alive.values()) == 1


async def test_passivated_instance_can_be_cancelled_resumed_and_watched(autojump_clock: MockClock):
    """
    An instance without a task is as good as one with: resume runs it to its wait again, cancel ends it.
    """
    runs: Counter[str] = Counter()
    workflow = tracked({}, runs)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow], max_parked=0) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        before = await suspended(engine)
        await engine.resume(workflow, INSTANCE)
        assert await suspended(engine) == before
        assert runs[INSTANCE] == 2
        assert await engine.cancel(workflow, INSTANCE)
        assert isinstance(await invocation.state(), memable.Cancelled)
