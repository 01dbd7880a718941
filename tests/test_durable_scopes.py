"""
Durable cancel scopes: when they expire, what they cancel, and that every replay sees the same.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import memable
from failing import Flaky
from memable import RetryPolicy
from running import INSTANCE, ending_of, kinds_of, observe_twice, run_body, workflow_of
from stores import Place
from waits import HOUR, P, Q, R, counting, settle, suspended

MAX_PARKED = pytest.mark.parametrize("max_parked", [0, 1000])

Body = Callable[[memable.Context], Awaitable[object]]


async def run_with_replays(body: Body, *, max_parked: int, times: int = 2) -> list[list[object]]:
    """
    Run a body that ends by suspending at R, replay it over and over, and return what it noted each time.
    """
    noted: list[list[object]] = []
    store = memable.InMemoryStore()

    async def noting(ctx: memable.Context) -> None:
        notes: list[object] = []
        notes.append(await body(ctx))
        noted.append(notes)
        await ctx.suspend(R)

    workflow = workflow_of(noting)
    async with memable.open_engine(store, workflows=[workflow], max_parked=max_parked) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        async for state in engine.subscribe(workflow, INSTANCE):
            assert not isinstance(state, memable.Blocked), state
            if isinstance(state, memable.Suspended) and state.waits == ("r",):
                break
        await settle()
        for _ in range(times):
            await trio.sleep(HOUR)
            await engine.resume(workflow, INSTANCE)
            await trio.sleep(HOUR)
            assert (await suspended(engine)).waits == ("r",)
        await engine.signal(workflow, INSTANCE, R, 1)
        assert await ending_of(invocation) == memable.Completed()
    return noted


async def sleep_plainly(ctx: memable.Context) -> None:
    await trio.sleep(100)


async def sleep_for_ever(ctx: memable.Context) -> None:
    await trio.sleep_forever()


# Expiry ----------------------------------------------------------------------------------------------------------


@MAX_PARKED
@pytest.mark.parametrize(
    "inside",
    [
        lambda ctx: ctx.suspend(P),
        lambda ctx: ctx.sleep("s", 100),
        lambda ctx: ctx.step("k", trio.sleep, 100),
        lambda ctx: ctx.step("k", Flaky(*[OSError()] * 9), retry=RetryPolicy.fixed(9, 6.0)),
        sleep_plainly,
        sleep_for_ever,
        lambda ctx: ctx.fan_out("f", lambda child, n: child.suspend(P), [0, 1]),
    ],
    ids=["suspend", "sleep", "step", "backoff", "plain sleep", "for ever", "fan-out"],
)
async def test_scope_that_expires_cancels_what_is_inside(inside: Body, max_parked: int, autojump_clock: MockClock):
    """
    Past its deadline, a scope cancels whatever is in it, says so, and every replay goes on behind it.
    """
    began = trio.current_time()
    ended: list[float] = []

    async def body(ctx: memable.Context) -> object:
        async with ctx.move_on_after("limit", 10) as scope:
            assert not scope.cancelled_caught
            await inside(ctx)
        ended.append(trio.current_time() - began)
        return scope.cancelled_caught

    noted = await run_with_replays(body, max_parked=max_parked)
    assert len(noted) >= 3
    assert {note for notes in noted for note in notes} == {True}
    assert ended[0] == pytest.approx(10)


@MAX_PARKED
async def test_scope_that_is_left_in_time_never_expires(max_parked: int, autojump_clock: MockClock):
    """
    A scope that was left in time stays so: a replay long after its deadline goes through it as the first run did.
    """
    calls: list[str] = []
    call = counting(calls)

    async def body(ctx: memable.Context) -> object:
        async with ctx.fail_after("limit", 10) as scope:
            await ctx.step("a", call, "a")
            await ctx.sleep("s", 5)
            await trio.sleep(0.1)
            await ctx.step("b", call, "b")
            await trio.sleep(0.1)
        return scope.cancelled_caught

    noted = await run_with_replays(body, max_parked=max_parked)
    assert {note for notes in noted for note in notes} == {False}
    assert calls == ["a", "b"]


@MAX_PARKED
async def test_fail_after_raises(max_parked: int, autojump_clock: MockClock):
    """
    ``fail_after`` raises an error that is trio's and Python's, too, the same on every replay.
    """

    async def body(ctx: memable.Context) -> object:
        with pytest.raises(memable.ScopeTimeoutError, match="took") as caught:
            async with ctx.fail_after("limit", 10):
                await ctx.suspend(P)
        assert isinstance(caught.value, trio.TooSlowError)
        assert isinstance(caught.value, TimeoutError)
        assert (caught.value.workflow, caught.value.instance_id, caught.value.key) == ("w", INSTANCE, "limit")
        return str(caught.value)

    noted = await run_with_replays(body, max_parked=max_parked)
    assert len({note for notes in noted for note in notes}) == 1


@MAX_PARKED
async def test_resume_after_an_expired_scope_gets_a_fresh_deadline(
    place: Place, max_parked: int, autojump_clock: MockClock
):
    """
    An instance that failed by ``fail_after`` has the whole time again when it is resumed.
    """

    async def body(ctx: memable.Context) -> None:
        async with ctx.fail_after("limit", 10):
            await ctx.suspend(P)

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow], max_parked=max_parked) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        for _ in range(2):
            assert isinstance(await ending_of(invocation), memable.Failed)
            await trio.sleep(1_000)
            began = trio.current_time()
            await engine.resume(workflow, INSTANCE)
        assert isinstance(await ending_of(invocation), memable.Failed)
        assert trio.current_time() - began == pytest.approx(10)
        await engine.resume(workflow, INSTANCE)
        await suspended(engine)
        await engine.signal(workflow, INSTANCE, P, 1)
        assert await ending_of(invocation) == memable.Completed()


@MAX_PARKED
async def test_scope_deadline_is_kept_over_restarts(place: Place, max_parked: int, autojump_clock: MockClock):
    """
    The deadline of a scope is fixed when it is first entered: neither a crash nor changed code moves it.
    """
    ended: list[float] = []
    shown: list[object] = []

    def limited(seconds: float) -> memable.Workflow[[], None]:
        async def body(ctx: memable.Context) -> None:
            async with ctx.move_on_after("limit", seconds) as scope:
                shown.append(scope.deadline_at)
                await ctx.suspend(P)
            ended.append(trio.current_time())

        return workflow_of(body)

    began = trio.current_time()
    for seconds in (100.0, 5_000.0, 1.0):
        workflow = limited(seconds)
        async with memable.open_engine(place.store(), workflows=[workflow], max_parked=max_parked) as engine:
            invocation = await engine.invoke(workflow, instance_id=INSTANCE)
            await suspended(engine)
            await trio.sleep(20)
            if seconds == 1.0:
                await invocation.result()
            place = place.crash()
    assert ended == [pytest.approx(began + 100)]
    assert len(set(shown)) == 1


@MAX_PARKED
async def test_scope_that_expired_while_down_expires_at_once(place: Place, max_parked: int, autojump_clock: MockClock):
    """
    A scope whose deadline passed while no engine ran ends the wait inside it as soon as one does.
    """

    async def body(ctx: memable.Context) -> None:
        async with ctx.fail_after("limit", 100):
            await ctx.suspend(P)

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow], max_parked=max_parked) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        place = place.crash()
    await trio.sleep(500)
    began = trio.current_time()
    async with memable.open_engine(place.store(), workflows=[workflow], max_parked=max_parked) as engine:
        assert isinstance(await ending_of(await engine.get("w", INSTANCE)), memable.Failed)
    assert trio.current_time() == pytest.approx(began)


@MAX_PARKED
@pytest.mark.parametrize("seconds", [math.inf, 1e300])
async def test_scope_without_end_never_expires(seconds: float, max_parked: int, autojump_clock: MockClock):
    """
    An infinite scope cancels nothing.
    """

    async def body(ctx: memable.Context) -> object:
        async with ctx.fail_after("limit", seconds) as scope:
            await ctx.sleep("s", 1_000 * 86_400)
        return scope.cancelled_caught

    noted = await run_with_replays(body, max_parked=max_parked, times=1)
    assert {note for notes in noted for note in notes} == {False}


@MAX_PARKED
async def test_scope_of_no_time_expires_at_once(max_parked: int, autojump_clock: MockClock):
    """
    A scope of zero seconds cancels the first operation inside.
    """
    calls: list[str] = []

    async def body(ctx: memable.Context) -> object:
        async with ctx.move_on_after("limit", 0) as scope:
            await ctx.step("a", counting(calls), "a")
        return scope.cancelled_caught

    noted = await run_with_replays(body, max_parked=max_parked)
    assert {note for notes in noted for note in notes} == {True}
    assert calls == []


# Replays ---------------------------------------------------------------------------------------------------------


@MAX_PARKED
@pytest.mark.parametrize("last", ["suspend", "plain"])
async def test_memos_inside_an_expired_scope_are_returned(last: str, max_parked: int, autojump_clock: MockClock):
    """
    What was recorded inside a scope before it expired is returned by every replay, each time; the rest is cancelled.
    """
    calls: list[str] = []
    call = counting(calls)

    async def body(ctx: memable.Context) -> object:
        got: list[object] = []
        async with ctx.move_on_after("limit", 100) as scope:
            for n in range(5):
                got.append(await ctx.step(f"s{n}", call, f"{n}"))
                await trio.lowlevel.checkpoint()
            await ctx.sleep("nap", 5)
            got.append("slept")
            with pytest.raises(memable.SuspendTimeoutError, match="no signal"):
                await ctx.suspend(Q, timeout=5)
            async with trio.open_nursery() as nursery:
                for n in range(5):
                    nursery.start_soon(ctx.step, f"t{n}", call, f"t{n}")
            got.append("stepped")
            await (ctx.suspend(P) if last == "suspend" else sleep_for_ever(ctx))
            got.append("never")
        got.append(scope.cancelled_caught)
        got.append(await ctx.step("after", call, "after"))
        return tuple(got)

    noted = await run_with_replays(body, max_parked=max_parked, times=5)
    assert len(noted) >= 6
    assert {note for notes in noted for note in notes} == {("0", "1", "2", "3", "4", "slept", "stepped", True, "after")}
    assert sorted(calls) == sorted({*calls})


async def test_failure_inside_an_expired_scope_is_raised_as_in_the_first_run(autojump_clock: MockClock):
    """
    A recorded failure that left a scope before its deadline leaves it on a replay after its deadline, too.
    """

    async def bad() -> None:
        raise ValueError("bad")

    async def body(ctx: memable.Context) -> object:
        try:
            async with ctx.fail_after("limit", 10):
                await ctx.step("bad", bad)
        except memable.StepFailedError:
            return "failed"
        except memable.ScopeTimeoutError:
            return "expired"

    for _ in range(10):
        noted = await run_with_replays(body, max_parked=0)
        assert {note for notes in noted for note in notes} == {"failed"}


async def test_slow_code_between_memos_inside_an_expired_scope_is_let_through(autojump_clock: MockClock):
    """
    Code between memos may take its time in a replay, too: an expired scope waits for the next memo a while.
    """

    async def body(ctx: memable.Context) -> object:
        done = 0
        async with ctx.move_on_after("limit", 30) as scope:
            for n in range(10):
                await trio.sleep(0.5)
                await ctx.step(f"s{n}", trio.sleep, 0)
                done += 1
            await ctx.suspend(P)
        return done, scope.cancelled_caught

    noted = await run_with_replays(body, max_parked=0)
    assert {note for notes in noted for note in notes} == {(10, True)}


async def test_scope_expires_in_time_though_memos_are_never_asked_for(autojump_clock: MockClock):
    """
    A scope in which something waits expires at its deadline, also in a run that leaves memos unasked.
    """
    is_old = True
    ended: list[float] = []

    async def body(ctx: memable.Context) -> None:
        if is_old:
            await ctx.step("removed", trio.sleep, 0)
        async with ctx.move_on_after("limit", 100):
            await ctx.suspend(P)
        ended.append(trio.current_time())

    store = memable.InMemoryStore()
    began = trio.current_time()
    async with memable.open_engine(store, workflows=[workflow := workflow_of(body)]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
    is_old = False
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await engine.resume(workflow, INSTANCE)
        assert await ending_of(await engine.get("w", INSTANCE)) == memable.Completed()
    assert ended == [pytest.approx(began + 100, abs=0.05)]


@MAX_PARKED
async def test_compensation_inside_an_expired_scope_is_registered_again(max_parked: int, autojump_clock: MockClock):
    """
    What was registered inside a scope before it expired is registered again by a replay, and runs if it has to.
    """
    calls: list[str] = []

    async def body(ctx: memable.Context) -> None:
        async with ctx.move_on_after("limit", 10):
            await ctx.compensate("undo", counting(calls), "undo")
            await ctx.suspend(P)
        await ctx.suspend(Q)
        raise ValueError

    workflow = workflow_of(body)
    store = memable.InMemoryStore()
    async with memable.open_engine(store, workflows=[workflow], max_parked=max_parked) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.sleep(100)
    async with memable.open_engine(store, workflows=[workflow], max_parked=max_parked) as engine:
        await engine.signal(workflow, INSTANCE, Q, 1)
        assert isinstance(await ending_of(await engine.get(workflow, INSTANCE)), memable.Failed)
    assert calls == ["undo"]


@MAX_PARKED
async def test_kept_signal_inside_an_expired_scope_is_returned(max_parked: int, autojump_clock: MockClock):
    """
    A stored signal that was used inside a scope before it expired is returned by every replay, as a memo is.
    """

    async def body(ctx: memable.Context) -> object:
        got: list[object] = []
        async with ctx.move_on_after("limit", 20):
            await ctx.sleep("s", 5)
            got.append(await ctx.suspend(P))
            await trio.sleep_forever()
        await ctx.suspend(Q)
        return got

    noted: list[object] = []

    async def noting(ctx: memable.Context) -> None:
        noted.append(await body(ctx))

    workflow = workflow_of(noting)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow], max_parked=max_parked) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        await engine.signal(workflow, INSTANCE, P, 7, early="keep")
        await trio.sleep(100)
        for _ in range(3):
            await engine.resume(workflow, INSTANCE)
            await trio.sleep(100)
            assert (await suspended(engine)).waits == ("q",)
        await engine.signal(workflow, INSTANCE, Q, 7)
        assert await ending_of(invocation) == memable.Completed()
    assert noted == [[7]]


@MAX_PARKED
async def test_new_code_inside_an_expired_scope_is_cancelled(max_parked: int, autojump_clock: MockClock):
    """
    A step that was added inside a scope that has expired does not run.
    """
    calls: list[str] = []
    is_new = False

    async def body(ctx: memable.Context) -> object:
        async with ctx.move_on_after("limit", 10) as scope:
            if is_new:
                await ctx.step("new", counting(calls), "new")
            await ctx.suspend(P)
        await ctx.suspend(Q)
        return scope.cancelled_caught

    store = memable.InMemoryStore()
    async with memable.open_engine(store, workflows=[workflow := workflow_of(body)], max_parked=max_parked) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.sleep(20)
        assert (await suspended(engine)).waits == ("q",)
    is_new = True
    async with memable.open_engine(store, workflows=[workflow], max_parked=max_parked) as engine:
        await engine.signal(workflow, INSTANCE, Q, 1)
        assert await ending_of(await engine.get("w", INSTANCE)) == memable.Completed()
    assert calls == []


# Shapes ----------------------------------------------------------------------------------------------------------


@MAX_PARKED
@pytest.mark.parametrize(("outer_s", "inner_s"), [(10, 20), (20, 10), (10, 10)])
async def test_nested_scopes_each_expire_at_their_time(
    outer_s: float, inner_s: float, max_parked: int, autojump_clock: MockClock
):
    """
    Of two nested scopes the nearer deadline decides; a replay after both takes the same way out.
    """

    async def body(ctx: memable.Context) -> object:
        after = "nothing"
        async with ctx.move_on_after("outer", outer_s) as outer:
            async with ctx.move_on_after("inner", inner_s) as inner:
                await ctx.suspend(P)
            after = "inner"
            await ctx.suspend(Q)
            after = "all"
        return outer.cancelled_caught, inner.cancelled_caught, after

    noted = await run_with_replays(body, max_parked=max_parked)
    told = {note for notes in noted for note in notes}
    assert len(told) == 1
    if outer_s < inner_s:
        assert told == {(True, False, "nothing")}
    if outer_s > inner_s:
        assert told == {(True, True, "inner")}


@MAX_PARKED
async def test_scope_around_a_nursery_cancels_all_of_it(max_parked: int, autojump_clock: MockClock):
    """
    A scope around a nursery cancels what its tasks do, and returns what they had recorded.
    """
    calls: list[str] = []

    async def body(ctx: memable.Context) -> object:
        got: list[str] = []

        async def task(n: int) -> None:
            await ctx.sleep(f"nap{n}", n * 4)
            got.append(await ctx.step(f"s{n}", counting(calls), f"{n}"))

        async with ctx.move_on_after("limit", 10) as scope, trio.open_nursery() as nursery:
            for n in range(5):
                nursery.start_soon(task, n)
        return scope.cancelled_caught, tuple(sorted(got))

    noted = await run_with_replays(body, max_parked=max_parked)
    assert {note for notes in noted for note in notes} == {(True, ("0", "1", "2"))}
    assert sorted(calls) == ["0", "1", "2"]


@MAX_PARKED
async def test_scopes_in_branches_expire_each_by_itself(max_parked: int, autojump_clock: MockClock):
    """
    A scope in a child of a fan-out cancels that child's wait only; it has a key of its own in each.
    """

    async def branch(ctx: memable.Context, n: int) -> bool:
        async with ctx.move_on_after("limit", 10 * (n + 1)) as scope:
            await ctx.sleep("s", 25)
        return scope.cancelled_caught

    async def body(ctx: memable.Context) -> object:
        return tuple(await ctx.fan_out("f", branch, range(4)))

    noted = await run_with_replays(body, max_parked=max_parked)
    assert {note for notes in noted for note in notes} == {(True, True, False, False)}


@MAX_PARKED
async def test_scope_ends_the_wait_for_a_child_instance(max_parked: int, autojump_clock: MockClock):
    """
    A scope around a call ends the parent's wait; the child goes on.
    """

    @memable.workflow
    async def child(ctx: memable.Context) -> None:
        await ctx.suspend(P)

    @memable.workflow(name="w")
    async def parent(ctx: memable.Context) -> bool:
        async with ctx.move_on_after("limit", 10) as scope:
            await ctx.call("c", child)
        await ctx.suspend(Q)
        return scope.cancelled_caught

    async with memable.open_engine(memable.InMemoryStore(), workflows=[parent, child], max_parked=max_parked) as engine:
        invocation = await engine.invoke(parent, instance_id=INSTANCE)
        await trio.sleep(20)
        assert (await suspended(engine)).key == "q"
        await engine.signal(child, f"{INSTANCE}/c", P, 1)
        assert await (await engine.get(child, f"{INSTANCE}/c")).result() is None
        await engine.signal(parent, INSTANCE, Q, 1)
        assert await invocation.result() is True


async def test_step_that_ends_at_the_deadline_is_recorded(autojump_clock: MockClock):
    """
    A step whose outcome is on its way to the store when the scope expires is recorded, and not run again.
    """
    calls: list[str] = []

    async def body(ctx: memable.Context) -> object:
        async with ctx.move_on_after("limit", 10) as scope:
            await ctx.step("a", trio.sleep, 10)
            calls.append("behind")
        return scope.cancelled_caught

    noted = await run_with_replays(body, max_parked=0)
    assert len({note for notes in noted for note in notes}) == 1


# Suspended -------------------------------------------------------------------------------------------------------


async def test_passivated_wait_is_woken_by_the_scope_around_it(autojump_clock: MockClock):
    """
    A wait without a deadline of its own is shown so, and is ended by the scope around it all the same.
    """
    runs: list[int] = []

    async def body(ctx: memable.Context) -> None:
        runs.append(1)
        async with ctx.move_on_after("limit", HOUR):
            await ctx.suspend(P)

    began = trio.current_time()
    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow], max_parked=0) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        state = await suspended(engine)
        assert (state.waits, state.deadline) == (("p",), None)
        assert await ending_of(invocation) == memable.Completed()
    assert len(runs) == 2
    assert trio.current_time() == pytest.approx(began + HOUR)


@MAX_PARKED
async def test_signal_inside_a_scope_comes_in_time(max_parked: int, autojump_clock: MockClock):
    """
    A signal before the deadline is returned inside the scope, which does not expire then or later.
    """
    got: list[int] = []

    async def body(ctx: memable.Context) -> object:
        async with ctx.fail_after("limit", 100) as scope:
            got.append(await ctx.suspend(P))
        await ctx.suspend(Q)
        return scope.cancelled_caught

    async with memable.open_engine(
        memable.InMemoryStore(), workflows=[workflow := workflow_of(body)], max_parked=max_parked
    ) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        await trio.sleep(50)
        await engine.signal(workflow, INSTANCE, P, 7)
        await suspended(engine)
        await trio.sleep(500)
        await engine.signal(workflow, INSTANCE, Q, 7)
        assert await ending_of(invocation) == memable.Completed()
    assert set(got) == {7}


# Errors ----------------------------------------------------------------------------------------------------------


async def enter(scope: memable.DurableScope) -> None:
    async with scope:
        pass


async def enter_twice(ctx: memable.Context) -> None:
    scope = ctx.move_on_after("limit", 1)
    await enter(scope)
    await enter(scope)


async def enter_inside_a_step(ctx: memable.Context) -> None:
    await ctx.step("k", enter, ctx.move_on_after("limit", 1))


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda ctx: enter(ctx.move_on_after("limit", -1)), "a scope of -1; give seconds, at least 0"),
        (lambda ctx: enter(ctx.fail_after("limit", math.nan)), "a scope of nan"),
        (lambda ctx: enter(ctx.fail_after("limit", timedelta(1))), "a scope of datetime.timedelta"),
        (lambda ctx: enter(ctx.fail_after("no/key", 1)), "without '/'"),
        (enter_twice, "entered a second time"),
        (enter_inside_a_step, "inside this step"),
    ],
)
async def test_scope_misused_blocks(call: Body, problem: str, autojump_clock: MockClock):
    """
    Arguments that make no sense block the instance and say what to write.
    """
    state = await run_body(call)
    assert isinstance(state, memable.Blocked)
    assert state.error.matches(memable.WorkflowCodeError)
    assert problem in state.error.message


async def test_exception_passes_through_a_scope(autojump_clock: MockClock):
    """
    What is raised inside a scope comes out of it as itself, and the scope can be entered again by the next run.
    """
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        async with ctx.fail_after("limit", 10):
            raise ZeroDivisionError

    state = await run_body(body, store=store)
    assert isinstance(state, memable.Failed)
    assert state.error.matches(ZeroDivisionError)


async def test_scope_is_a_checkpoint(autojump_clock: MockClock):
    """
    Entering and leaving a scope yield, in the first run and on a replay.
    """

    async def body(ctx: memable.Context) -> object:
        scope = ctx.move_on_after("limit", 10)
        with trio.testing.assert_checkpoints():
            await scope.__aenter__()
        with trio.testing.assert_checkpoints():
            await scope.__aexit__(None, None, None)
        return scope.cancelled_caught

    noted = await run_with_replays(body, max_parked=0)
    assert {note for notes in noted for note in notes} == {False}


@MAX_PARKED
async def test_scope_is_decided_once(max_parked: int, autojump_clock: MockClock):
    """
    Whatever the number of runs, a scope is recorded as entered once and as left once.
    """
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        async with ctx.move_on_after("limit", 10):
            await ctx.suspend(P)
        await ctx.sleep("s", 10)
        await ctx.sleep("t", 10)

    assert await run_body(body, store=store, max_parked=max_parked) == memable.Completed()
    kinds = kinds_of(store)
    assert (kinds.count("scope_started"), kinds.count("scope_ended")) == (1, 1)


async def test_scope_being_passivated_is_not_decided(place: Place, autojump_clock: MockClock):
    """
    A scope that is left because the run is unwound is not decided by that.
    """
    left: list[Any] = []

    async def body(ctx: memable.Context) -> None:
        async with ctx.move_on_after("limit", 100) as scope:
            try:
                await ctx.suspend(P)
            finally:
                left.append(ctx.leaving)
        left.append(scope.cancelled_caught)

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow], max_parked=0) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        await engine.signal(workflow, INSTANCE, P, 1)
        assert await ending_of(invocation) == memable.Completed()
    assert left == ["passivated", None, False]


async def test_outcome_that_is_recorded_in_an_expired_scope_counts(autojump_clock: MockClock):
    """
    What a step came to while its scope expired is what the body gets, in the first run as on every replay.
    """

    async def ends_late(failure: str | None) -> int:
        with trio.CancelScope(shield=True):
            await trio.sleep(2)
        if failure is not None:
            raise ConnectionError(failure)
        return 1

    async def body(ctx: memable.Context) -> list[object]:
        seen: list[object] = []
        for key, failure in (("returns", None), ("fails", "gone")):
            try:
                async with ctx.move_on_after(f"limit-{key}", 1) as scope:
                    seen.append(await ctx.step(key, ends_late, failure, once=True))
                seen.append(scope.cancelled_caught)
            except memable.StepFailedError as error:
                seen.append(error.error.message)
        return seen

    assert await observe_twice(body) == ([1, False, "gone"],) * 2


async def test_resume_of_a_failure_inside_a_scope_gets_a_fresh_deadline(place: Place, autojump_clock: MockClock):
    """
    What failed inside a scope and is tried again, long after the scope's deadline, gets the scope's full time.
    """
    failures = [ValueError()]

    async def work() -> str:
        await trio.sleep(5)
        if failures:
            raise failures.pop()
        return "done"

    async def body(ctx: memable.Context) -> str:
        async with ctx.fail_after("limit", 10):
            return await ctx.step("work", work)

    workflow = memable.workflow(name="w")(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        assert isinstance(await (await engine.invoke(workflow, instance_id="i")).wait(), memable.Failed)
    await trio.sleep(HOUR)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        assert await (await engine.resume(workflow, "i")).result() == "done"


@pytest.mark.parametrize("what", ["children of a fan-out", "wait", "backoff", "call"])
async def test_what_an_expired_scope_has_left_without_an_outcome_is_not_asked_for(what: str, autojump_clock: MockClock):
    """
    A replay that does not get to it again is not behind: what fails behind the scope fails the instance.
    """
    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []

    async def child(ctx: memable.Context, item: int) -> None:
        await ctx.suspend(Q)

    waiting = memable.workflow(name="child")(child)

    async def fail() -> None:
        raise ConnectionError

    async def body(ctx: memable.Context) -> None:
        async with ctx.move_on_after("limit", 5):
            match what:
                case "children of a fan-out":
                    await ctx.fan_out("f", waiting, [0, 1], limit=1)
                case "wait":
                    # A replay is cancelled here.
                    await trio.sleep(1)
                    await ctx.suspend(P)
                case "backoff":
                    await trio.sleep(1)
                    await ctx.step("step", fail, retry=RetryPolicy.fixed(3, HOUR))
                case _:
                    await trio.sleep(1)
                    await ctx.call("call", waiting, 0)
        copies.append(store.crashed_copy())
        raise LookupError("of the body's own")

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow, waiting]) as engine:
        assert isinstance(await ending_of(await engine.invoke(workflow, instance_id=INSTANCE)), memable.Failed)
    async with memable.open_engine(copies[0], workflows=[workflow, waiting]) as engine:
        assert isinstance(await ending_of(await engine.get(workflow, INSTANCE)), memable.Failed)


async def test_effect_of_unknown_outcome_in_an_expired_scope_is_not_asked_for(autojump_clock: MockClock):
    """
    A crash cut the effect short, and the scope had expired by the next run: replays of that are not behind either.
    """
    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []

    async def effect() -> None:
        copies.append(store.crashed_copy())

    async def body(ctx: memable.Context) -> None:
        async with ctx.move_on_after("limit", 5):
            # Later runs are cancelled here.
            await trio.sleep(1)
            await ctx.step("effect", effect, once=True)
        copies.append(store.crashed_copy())
        raise LookupError("of the body's own")

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await ending_of(await engine.invoke(workflow, instance_id=INSTANCE))
    await trio.sleep(HOUR)
    # First as it was while the effect was on its way, then as that run was behind the scope.
    for _ in range(2):
        store = copies[0] if len(copies) == 2 else copies[2]
        async with memable.open_engine(store, workflows=[workflow]) as engine:
            assert isinstance(await ending_of(await engine.get(workflow, INSTANCE)), memable.Failed)


async def test_resume_does_not_ask_for_what_an_expired_scope_has_cut_off(place: Place, autojump_clock: MockClock):
    """
    A scope that was cut short within an expired one is not entered again: what it holds does not make a replay behind.
    """

    async def body(ctx: memable.Context) -> None:
        async with ctx.move_on_after("outer", 5), ctx.move_on_after("inner", HOUR):
            await ctx.step("step", work)
            await trio.sleep_forever()
        raise LookupError("of the body's own")

    async def work() -> None:
        await trio.sleep(1)

    workflow = workflow_of(body)
    for times in range(2):
        async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
            for _ in range(2):
                if times:
                    await engine.resume(workflow, INSTANCE)
                    invocation = await engine.get(workflow, INSTANCE)
                else:
                    invocation = await engine.invoke(workflow, instance_id=INSTANCE)
                assert isinstance(await ending_of(invocation), memable.Failed)
