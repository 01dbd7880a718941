"""
Waiting for a signal: what it returns, when it times out, what is seen of it, and what a crash leaves of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import memable
from memable import MetadataStatus
from running import INSTANCE, ending_of, kinds_of, observe_twice, run_body, workflow_of
from stores import Gate, HookedStore, Place
from waits import HOUR, P, Q, counting, crash_when_suspended, settle, suspended

MAX_PARKED = pytest.mark.parametrize("max_parked", [0, 1000])


def in_seconds(deadline: datetime | None, since: datetime) -> float:
    assert deadline is not None
    return round((deadline - since).total_seconds(), 3)


async def watch(engine: memable.Engine, seen: list[memable.WorkflowState]) -> None:
    async with engine.subscribe("w", INSTANCE) as states:
        seen.extend([state async for state in states])


# Payload ---------------------------------------------------------------------------------------------------------


@MAX_PARKED
async def test_suspend_returns_the_payload(place: Place, max_parked: int, autojump_clock: MockClock):
    """
    A suspended body goes on with the payload of the signal, parked or passivated.
    """
    got: list[int] = []

    async def body(ctx: memable.Context) -> None:
        got.append(await ctx.suspend(P))

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow], max_parked=max_parked) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        await engine.signal(workflow, INSTANCE, P, 7)
        assert await ending_of(invocation) == memable.Completed()
    assert got == [7]


async def test_suspend_is_a_checkpoint_with_a_memo_and_without(autojump_clock: MockClock):
    """
    Suspending yields to the scheduler also where the payload is recorded already.
    """

    async def body(ctx: memable.Context) -> None:
        with trio.testing.assert_checkpoints():
            await ctx.suspend(P)
        with trio.testing.assert_checkpoints():
            await ctx.suspend(Q)

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow], max_parked=0) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        for point in (P, Q):
            await suspended(engine)
            await engine.signal(workflow, INSTANCE, point, 1)
        assert await ending_of(invocation) == memable.Completed()


async def test_suspend_does_not_time_out_without_a_timeout(autojump_clock: MockClock):
    """
    A wait without a timeout, or with an infinite one, lasts until there is a signal.
    """

    async def body(ctx: memable.Context) -> None:
        await ctx.suspend(P)
        await ctx.suspend(Q, timeout=float("inf"))

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        for point in (P, Q):
            state = await suspended(engine)
            assert (state.key, state.deadline) == (point.key, None)
            await trio.sleep(1_000 * 86_400)
            await engine.signal(workflow, INSTANCE, point, 1)
        assert await ending_of(invocation) == memable.Completed()


async def test_suspend_with_a_payload_of_another_type_blocks_until_the_code_is_mended(autojump_clock: MockClock):
    """
    A payload that was recorded as one type and is read as another blocks the instance, and nothing is lost.
    """
    store = memable.InMemoryStore()
    got: list[object] = []

    def waiting_at(point: memable.SuspendPoint[Any]) -> memable.Workflow[[], None]:
        async def body(ctx: memable.Context) -> None:
            got.append(await ctx.suspend(point))
            await ctx.suspend(Q)

        return workflow_of(body)

    async with memable.open_engine(store, workflows=[first := waiting_at(P)], max_parked=0) as engine:
        await engine.invoke(first, instance_id=INSTANCE)
        await suspended(engine)
        await engine.signal("w", INSTANCE, P, 1)
        await suspended(engine)
    changed = waiting_at(memable.SuspendPoint("p", str))
    async with memable.open_engine(store, workflows=[changed]) as engine:
        await engine.signal("w", INSTANCE, Q, 2)
        state = await ending_of(await engine.get("w", INSTANCE))
        assert isinstance(state, memable.Blocked)
        assert state.key == "p"
        assert state.error.matches(memable.TypeMismatchError)
    assert await run_body(waiting_at(P), store=store) == memable.Completed()
    assert got[-1] == 1


# Timeout ---------------------------------------------------------------------------------------------------------


async def timeout_of(awaitable: Awaitable[object]) -> tuple[type[BaseException], str, float]:
    """Return what a wait raises, which is to time out, and when."""
    with pytest.raises(memable.SuspendTimeoutError, match="no signal came before the timeout") as caught:
        await awaitable
    return type(caught.value), str(caught.value), trio.current_time()


@MAX_PARKED
async def test_suspend_timeout_is_memoised(max_parked: int, autojump_clock: MockClock):
    """
    A wait that timed out raises the same error on every replay, at once; it is a TimeoutError, too.
    """

    async def body(ctx: memable.Context) -> tuple[type[BaseException], str]:
        cls, text, _ = await timeout_of(ctx.suspend(P, timeout=60))
        return cls, text

    began = trio.current_time()
    live, replayed = await observe_twice(body, max_parked=max_parked)
    assert live == replayed
    assert issubclass(live[0], TimeoutError)
    assert "instance 'i', key 'p'" in live[1]
    assert trio.current_time() - began == pytest.approx(60)


@MAX_PARKED
async def test_suspend_deadline_is_kept_over_restarts(place: Place, max_parked: int, autojump_clock: MockClock):
    """
    The deadline of a wait is fixed when it is first reached: neither a crash nor changed code moves it.
    """
    ended: list[float] = []

    def waiting(timeout: float) -> memable.Workflow[[], None]:
        async def body(ctx: memable.Context) -> None:
            _, _, at = await timeout_of(ctx.suspend(P, timeout=timeout))
            ended.append(at)

        return workflow_of(body)

    began = trio.current_time()
    for timeout in (100.0, 1_000.0, 1.0):
        workflow = waiting(timeout)
        async with memable.open_engine(place.store(), workflows=[workflow], max_parked=max_parked) as engine:
            invocation = await engine.invoke(workflow, instance_id=INSTANCE)
            await suspended(engine)
            await trio.sleep(20)
            if timeout == 1.0:
                await invocation.result()
            place = place.crash()
    assert ended == [pytest.approx(began + 100)]


@MAX_PARKED
async def test_suspend_deadline_that_passed_while_down_is_due_at_once(
    place: Place, max_parked: int, autojump_clock: MockClock
):
    """
    A wait whose deadline passed while no engine ran times out as soon as one does.
    """
    ended: list[float] = []

    async def body(ctx: memable.Context) -> None:
        _, _, at = await timeout_of(ctx.suspend(P, timeout=100))
        ended.append(at)

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow], max_parked=max_parked) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        place = place.crash()
    await trio.sleep(500)
    reopened_at = trio.current_time()
    async with memable.open_engine(place.store(), workflows=[workflow], max_parked=max_parked) as engine:
        assert await ending_of(await engine.get("w", INSTANCE)) == memable.Completed()
    assert ended == [pytest.approx(reopened_at)]


async def test_suspend_timeout_of_zero_is_due_at_once(autojump_clock: MockClock):
    """
    A timeout of zero gives a signal that was kept its chance, and nothing else.
    """

    async def body(ctx: memable.Context) -> None:
        await timeout_of(ctx.suspend(P, timeout=0))

    began = trio.current_time()
    assert await run_body(body) == memable.Completed()
    assert trio.current_time() == pytest.approx(began)


@MAX_PARKED
async def test_resume_after_a_timeout_waits_once_more(max_parked: int, autojump_clock: MockClock):
    """
    An instance that failed by a timeout waits again when it is resumed, with a fresh deadline.
    """
    workflow = workflow_of(lambda ctx: ctx.suspend(P, timeout=60))
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow], max_parked=max_parked) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        for _ in range(2):
            assert isinstance(await ending_of(invocation), memable.Failed)
            await trio.sleep(1_000)
            began = trio.current_time()
            await engine.resume(workflow, INSTANCE)
        assert isinstance(await ending_of(invocation), memable.Failed)
        assert trio.current_time() - began == pytest.approx(60)
        await engine.resume(workflow, INSTANCE)
        await suspended(engine)
        await engine.signal(workflow, INSTANCE, P, 1)
        assert await ending_of(invocation) == memable.Completed()


# Misuse ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda ctx: ctx.suspend("p"), "suspend takes a memable.SuspendPoint, not 'p'"),
        (lambda ctx: ctx.suspend(P, status=3), "the status of suspend is a str, not int"),
        (lambda ctx: ctx.suspend(P, timeout=-1), "timeout is -1"),
        (lambda ctx: ctx.suspend(P, timeout=float("nan")), "timeout is nan"),
        (lambda ctx: ctx.suspend(P, timeout=True), "timeout is True"),
        (lambda ctx: ctx.suspend(P, timeout=timedelta(1)), "timeout is datetime.timedelta"),
        (lambda ctx: ctx.suspend(memable.SuspendPoint("p", lambda: None)), "SuspendPoint"),
    ],
)
async def test_suspend_misused_blocks(
    call: Callable[[memable.Context], Awaitable[object]], problem: str, autojump_clock: MockClock
):
    """
    Arguments that make no sense block the instance and say what to write.
    """
    store = memable.InMemoryStore()
    state = await run_body(call, store=store)
    assert isinstance(state, memable.Blocked)
    assert state.error.matches(memable.MisuseError)
    assert problem in state.error.message
    assert "wait_started" not in kinds_of(store)


async def test_suspend_twice_at_one_point_blocks(autojump_clock: MockClock):
    """
    A suspend point is used once in a run, as a step's key is.
    """

    async def body(ctx: memable.Context) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ctx.suspend, P)
            nursery.start_soon(ctx.suspend, P)

    state = await run_body(body)
    assert isinstance(state, memable.Blocked)
    assert state.error.matches(memable.DuplicateKeyError)


@MAX_PARKED
@pytest.mark.parametrize("is_signalled", [False, True])
async def test_suspend_point_used_as_another_kind_blocks(
    max_parked: int, is_signalled: bool, autojump_clock: MockClock
):
    """
    A key that an earlier run waited at for a signal is no step, no sleep and no scope.
    """

    async def in_scope(ctx: memable.Context) -> None:
        async with ctx.move_on_after("p", 1):
            pass

    async def body(ctx: memable.Context) -> None:
        await ctx.suspend(P)
        await ctx.suspend(Q)

    uses: list[tuple[Callable[[memable.Context], Awaitable[object]], type[Exception]]] = [
        (lambda ctx: ctx.step("p", trio.sleep, 0), memable.SuspendedStepConflictError),
        (lambda ctx: ctx.sleep("p", 0), memable.KeyKindError),
        (in_scope, memable.KeyKindError),
    ]
    for use, error in uses:
        store = memable.InMemoryStore()
        async with memable.open_engine(store, workflows=[first := workflow_of(body)], max_parked=max_parked) as engine:
            await engine.invoke(first, instance_id=INSTANCE)
            await suspended(engine)
            if is_signalled:
                await engine.signal("w", INSTANCE, P, 1)
                await suspended(engine)
        async with memable.open_engine(store, workflows=[workflow_of(use)]) as engine:
            await engine.resume("w", INSTANCE)
            state = await ending_of(await engine.get("w", INSTANCE))
        assert isinstance(state, memable.Blocked)
        assert state.error.matches(error)


# Deadlines of trio's ---------------------------------------------------------------------------------------------


@memable.workflow
async def child(ctx: memable.Context) -> None:
    await ctx.suspend(P)


WAITS: dict[str, Callable[[memable.Context], Awaitable[object]]] = {
    "suspend": lambda ctx: ctx.suspend(P),
    "sleep": lambda ctx: ctx.sleep("s", 5),
    "sleep_until": lambda ctx: ctx.sleep_until("s", datetime.now(UTC)),
    "call": lambda ctx: ctx.call("c", child),
}


@pytest.mark.parametrize("operation", WAITS)
@pytest.mark.parametrize("max_parked", [0, 1000])
async def test_wait_inside_a_plain_deadline_blocks(operation: str, max_parked: int, autojump_clock: MockClock):
    """
    A wait inside a deadline of trio's, which a restart would begin anew, blocks and names the durable form.
    """

    async def body(ctx: memable.Context) -> None:
        with trio.move_on_after(1_000):
            await WAITS[operation](ctx)

    workflow = workflow_of(body)
    async with memable.open_engine(
        memable.InMemoryStore(), workflows=[workflow, child], max_parked=max_parked
    ) as engine:
        state = await ending_of(await engine.invoke(workflow, instance_id=INSTANCE))
    assert isinstance(state, memable.Blocked)
    assert state.error.matches(memable.NonDurableDeadlineError)
    assert f"ctx.{operation} inside a deadline of trio's" in state.error.message
    assert "ctx.move_on_after(key, seconds)" in state.error.message


@pytest.mark.parametrize("operation", WAITS)
async def test_wait_inside_a_deadline_around_the_engine_works(operation: str, autojump_clock: MockClock):
    """
    A deadline of trio's around the engine, or around who invokes, is no business of a body's waits.
    """
    workflow = workflow_of(WAITS[operation])
    with trio.fail_after(500):
        async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow, child]) as engine:
            with trio.fail_after(400):
                invocation = await engine.invoke(workflow, instance_id=INSTANCE)
            assert not isinstance(await invocation.wait(), memable.Blocked)


async def test_plain_deadline_around_a_step_works(autojump_clock: MockClock):
    """
    A deadline of trio's around a step that executes is as good as anywhere; so is one that a memo is found in.
    """
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        with trio.move_on_after(10) as scope:
            await ctx.step("slow", trio.sleep, 100)
        assert scope.cancelled_caught
        with trio.fail_after(10):
            await ctx.step("fast", trio.sleep, 1)

    assert await run_body(body, store=store) == memable.Completed()


async def test_wait_inside_a_plain_deadline_beyond_which_a_memo_is_found_works(autojump_clock: MockClock):
    """
    A wait that has ended is returned wherever it stands: nothing waits any more.
    """
    is_new = False

    async def body(ctx: memable.Context) -> None:
        with trio.move_on_after(1_000 if is_new else float("inf")):
            await ctx.suspend(P)
        await ctx.suspend(Q)

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow], max_parked=0) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        await engine.signal(workflow, INSTANCE, P, 1)
        await suspended(engine)
        is_new = True
        await engine.signal(workflow, INSTANCE, Q, 1)
        assert await ending_of(invocation) == memable.Completed()


# What is seen ----------------------------------------------------------------------------------------------------


@MAX_PARKED
async def test_suspended_state_says_where_and_until_when(place: Place, max_parked: int, autojump_clock: MockClock):
    """
    The state and the metadata of a waiting instance are the same parked, passivated and after a restart.
    """

    async def body(ctx: memable.Context) -> None:
        await ctx.suspend(P, status="your move", timeout=HOUR)

    workflow = workflow_of(body)
    states: list[memable.WorkflowState] = []
    keys: list[object] = []
    async with memable.open_engine(place.store(), workflows=[workflow], max_parked=max_parked) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        states.append(await invocation.wait())
        await settle()
        states.append(await invocation.state())
        metadata = await engine.metadata("w", INSTANCE)
        assert metadata is not None
        keys.append((metadata.status, metadata.key))
        crashed = place.crash()
    for reopened in (place, crashed):
        async with memable.open_engine(reopened.store(), workflows=[workflow]) as engine:
            states.append(await engine.state("w", INSTANCE))
            metadata = await engine.metadata("w", INSTANCE)
            assert metadata is not None
            keys.append((metadata.status, metadata.key))
    (state,) = set(states)
    assert isinstance(state, memable.Suspended)
    assert (state.key, state.status, state.waits) == ("p", "your move", ("p",))
    assert in_seconds(state.deadline, metadata.created_at) == HOUR
    assert set(keys) == {(MetadataStatus.SUSPENDED, "p")}


@MAX_PARKED
async def test_suspended_status_is_the_last_message_if_the_wait_has_none(max_parked: int, autojump_clock: MockClock):
    """
    A wait without a status of its own shows what ``ctx.set_status`` said last.
    """
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        ctx.set_status("packing")
        await ctx.suspend(P)

    crashed = await crash_when_suspended(body, store, max_parked=max_parked)
    for kept in (store, crashed):
        async with memable.open_engine(kept, workflows=[workflow_of(body)]) as engine:
            assert await engine.state("w", INSTANCE) == memable.Suspended("p", "packing", None, ("p",))


@MAX_PARKED
async def test_suspended_names_the_longest_waiting_first(place: Place, max_parked: int, autojump_clock: MockClock):
    """
    Of several waits, the one that began first is named first, before and after a signal and a restart.
    """

    async def branch(ctx: memable.Context, n: int) -> None:
        await trio.sleep((n + 1) / 1000)
        await ctx.suspend(P, timeout=HOUR * (n + 1), status=f"branch {n}")
        await ctx.suspend(Q)

    workflow = workflow_of(lambda ctx: ctx.fan_out("f", branch, range(3)))
    async with memable.open_engine(place.store(), workflows=[workflow], max_parked=max_parked) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.sleep(1)
        state = await suspended(engine)
        assert state.waits == ("f/0/p", "f/1/p", "f/2/p")
        assert (state.key, state.status) == ("f/0/p", "branch 0")
        await engine.signal(workflow, INSTANCE, P, 1, within="f/0")
        await trio.sleep(1)
        seen = [await suspended(engine)]
        crashed = place.crash()
    for reopened in (place, crashed):
        async with memable.open_engine(reopened.store(), workflows=[workflow], max_parked=max_parked) as engine:
            seen.append(await suspended(engine))
            await engine.resume("w", INSTANCE)
            await trio.sleep(1)
            seen.append(await suspended(engine))
    (state,) = set(seen)
    assert state.waits == ("f/1/p", "f/2/p", "f/0/q")
    assert (state.key, state.status) == ("f/1/p", "branch 1")


@MAX_PARKED
async def test_suspended_does_not_name_what_a_kept_signal_has_ended(max_parked: int, autojump_clock: MockClock):
    """
    A point that a stored signal met as the body got there is no longer waited at, before and after a restart.
    """
    gate = Gate("wait_started")
    kept = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        await ctx.suspend(P)
        await ctx.suspend(Q)

    workflow = workflow_of(body)
    store = HookedStore(kept, before_append=gate.pass_)
    async with memable.open_engine(store, workflows=[workflow], max_parked=max_parked) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await gate.is_reached.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(engine.signal, workflow, INSTANCE, P, 1, early="keep"))
            await settle()
            gate.is_open.set()
        assert "signal_kept" in kinds_of(kept)
        assert (await suspended(engine)).waits == ("q",)
        copy = kept.crashed_copy()
    async with memable.open_engine(copy) as engine:
        assert (await suspended(engine)).waits == ("q",)


@pytest.mark.parametrize("max_parked", [0, 1, 1000])
async def test_states_stay_suspended_over_a_passivation(max_parked: int, autojump_clock: MockClock):
    """
    Who watches an instance does not notice that it is passivated, nor that it replays.
    """

    async def body(ctx: memable.Context) -> None:
        ctx.set_status("one")
        await ctx.step("a", trio.sleep, 1)
        ctx.set_status("two")
        await ctx.suspend(P)
        ctx.set_status("three")
        await ctx.sleep("s", 10)

    seen: list[memable.WorkflowState] = []
    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow], max_parked=max_parked) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, engine, seen)
            await trio.sleep(5)
            await engine.signal(workflow, INSTANCE, P, 1)
    told = [(type(state), state.message) for state in seen]
    assert [(cls, text) for cls, text in told if cls is memable.Suspended] == [
        (memable.Suspended, "two"),
        (memable.Suspended, "three"),
    ]
    messages = [text for cls, text in told if cls is memable.InProgress]
    assert messages == sorted(messages, key=["one", "two", "three"].index)
    assert told[-1] == (memable.Completed, "three")


# Branches and tasks ----------------------------------------------------------------------------------------------


@MAX_PARKED
async def test_wait_in_a_task_of_the_users_works(max_parked: int, autojump_clock: MockClock):
    """
    A wait in a task that the engine does not know gets its signal, and its run is never passivated.
    """
    runs: list[int] = []
    got: list[int] = []

    async def body(ctx: memable.Context) -> None:
        runs.append(1)

        async def wait() -> None:
            got.append(await ctx.suspend(P))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            got.append(await ctx.suspend(Q))

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow], max_parked=max_parked) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        assert set((await suspended(engine)).waits) == {"p", "q"}
        await engine.signal(workflow, INSTANCE, Q, 2)
        await settle()
        await engine.signal(workflow, INSTANCE, P, 1)
        assert await ending_of(invocation) == memable.Completed()
    assert sorted(got) == [1, 2]
    assert len(runs) == 1


async def test_wait_in_a_task_of_the_users_is_not_lost_by_a_restart(place: Place, autojump_clock: MockClock):
    """
    A run that waits in tasks of its own nursery is run again by the next open, and gets its signal then.
    """

    async def body(ctx: memable.Context) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ctx.suspend, P)
            await ctx.suspend(Q)

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow], max_parked=0) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        await engine.signal(workflow, INSTANCE, P, 1)
        await settle()
        crashed = place.crash()
    for reopened in (place, crashed):
        async with memable.open_engine(reopened.store(), workflows=[workflow], max_parked=0) as engine:
            await suspended(engine)
            await engine.signal(workflow, INSTANCE, Q, 1)
            assert await ending_of(await engine.get("w", INSTANCE)) == memable.Completed()


async def test_run_with_a_step_in_the_background_is_not_suspended(autojump_clock: MockClock):
    """
    A run whose body waits while a step executes in another task of it is not waiting, and is waited for.
    """
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ctx.step, "long", trio.sleep, 50)
            await ctx.suspend(P)

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow], max_parked=0) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await settle()
        assert await engine.state("w", INSTANCE) == memable.Started()
        await engine.wait_all()
        assert trio.current_time() == pytest.approx(50)
        assert (await suspended(engine)).key == "p"


async def test_step_in_the_background_is_run_again_after_a_crash(place: Place, autojump_clock: MockClock):
    """
    A crash while the body waits and a step executes in the background runs that step again, and keeps the wait.
    """
    calls: list[str] = []

    async def work() -> None:
        calls.append("work")
        await trio.sleep(50)

    async def body(ctx: memable.Context) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ctx.step, "long", work)
            await ctx.suspend(P)

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow], max_parked=0) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.sleep(10)
        place = place.crash()
    async with memable.open_engine(place.store(), workflows=[workflow], max_parked=0) as engine:
        await trio.sleep(10)
        assert calls == ["work"] * 2
        await engine.signal(workflow, INSTANCE, P, 1)
        assert await ending_of(await engine.get("w", INSTANCE)) == memable.Completed()


async def test_step_that_begins_beside_a_recorded_wait_is_run_again_after_a_crash(
    place: Place, autojump_clock: MockClock
):
    """
    A step that a background task begins when the instance is recorded as suspended is recovered by a crash.
    """
    calls: list[str] = []

    async def work() -> None:
        calls.append("work")
        await trio.sleep(50)

    async def body(ctx: memable.Context) -> None:
        async def later() -> None:
            await trio.sleep(5)
            await ctx.step("long", work)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(later)
            await ctx.suspend(P)

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        await trio.sleep(10)
        metadata = await engine.metadata("w", INSTANCE)
        assert metadata is not None
        assert metadata.status is MetadataStatus.RUNNING
        place = place.crash()
    assert calls == ["work"]
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await trio.sleep(10)
        assert calls == ["work"] * 2
        await engine.signal(workflow, INSTANCE, P, 1)
        assert await ending_of(await engine.get("w", INSTANCE)) == memable.Completed()


# Turning away ----------------------------------------------------------------------------------------------------


@MAX_PARKED
async def test_wait_that_the_body_cancelled_may_be_begun_again(max_parked: int, autojump_clock: MockClock):
    """
    A wait that a cancel scope of the body's ended may be begun again with its key; its deadline stays.
    """
    began = trio.current_time()

    async def body(ctx: memable.Context) -> None:
        if not ctx.replaying:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    async def wait() -> None:
                        await ctx.suspend(P, timeout=100)

                    nursery.start_soon(wait)
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
            await trio.sleep(30)
        await timeout_of(ctx.suspend(P, timeout=100))

    assert await run_body(body, max_parked=max_parked) == memable.Completed()
    assert trio.current_time() == pytest.approx(began + 100)


@MAX_PARKED
async def test_wait_that_follows_a_cancelled_one_is_recorded(place: Place, max_parked: int, autojump_clock: MockClock):
    """
    A body that turns from one wait to another without any outcome is recorded as waiting where it waits now.
    """

    async def body(ctx: memable.Context) -> None:
        if not ctx.replaying:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    async def stop() -> None:
                        await trio.sleep(5)
                        scope.cancel()

                    nursery.start_soon(stop)
                    await ctx.suspend(P)
        await ctx.sleep("s", 100)

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.sleep(20)
        state = await invocation.state()
        crashed = place.crash()
    for reopened in (place, crashed):
        async with memable.open_engine(reopened.store(), workflows=[workflow], max_parked=max_parked) as engine:
            assert await engine.state("w", INSTANCE) == state
    async with memable.open_engine(crashed.store(), workflows=[workflow], max_parked=max_parked) as engine:
        with trio.fail_after(1_000):
            await (await engine.get("w", INSTANCE)).result()
    assert isinstance(state, memable.Suspended)
    assert (state.key, state.waits) == ("s", ("s",))


@MAX_PARKED
async def test_run_with_many_waits_can_turn_away_and_still_be_woken(max_parked: int, autojump_clock: MockClock):
    """
    Among several branches, one that turns from a wait to a sooner one is woken in time, passivated or not.
    """

    async def turning(ctx: memable.Context) -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def stop() -> None:
                    await trio.sleep(5)
                    scope.cancel()

                nursery.start_soon(stop)
                await ctx.suspend(Q)
        await ctx.sleep("s", 100)

    async def branch(ctx: memable.Context, n: int) -> None:
        await (turning(ctx) if n else ctx.sleep("long", HOUR))

    workflow = workflow_of(lambda ctx: ctx.fan_out("f", branch, range(2)))
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.sleep(50)
        assert (await suspended(engine)).waits == ("f/0/long", "f/1/s")


# Leaving the block -----------------------------------------------------------------------------------------------


@MAX_PARKED
async def test_block_is_left_without_waiting_for_what_waits(place: Place, max_parked: int, autojump_clock: MockClock):
    """
    Leaving the block does not wait for runs that wait; they are Suspended at the next open, and do not run there.
    """
    runs: list[int] = []

    async def body(ctx: memable.Context) -> None:
        runs.append(1)
        await ctx.suspend(P, timeout=HOUR)

    workflow = workflow_of(body)
    began = trio.current_time()
    async with memable.open_engine(place.store(), workflows=[workflow], max_parked=max_parked) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
    assert trio.current_time() == began
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        (metadata,) = await engine.list_instances()
        assert metadata.status is MetadataStatus.SUSPENDED
        assert (await suspended(engine)).key == "p"
        await engine.signal(workflow, INSTANCE, P, 1)
    assert len(runs) == 2


async def test_wait_all_does_not_wait_for_what_waits(autojump_clock: MockClock):
    """
    ``wait_all`` returns when what does not wait has ended.
    """

    async def body(ctx: memable.Context) -> None:
        await ctx.step("a", trio.sleep, 10)
        await ctx.suspend(P)

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        await engine.wait_all()
        assert trio.current_time() == pytest.approx(10)
        assert isinstance(await invocation.state(), memable.Suspended)


@MAX_PARKED
async def test_suspended_instance_is_woken_without_resume_on_start(max_parked: int, autojump_clock: MockClock):
    """
    With ``resume_on_start=False`` what is suspended waits as ever: signals and deadlines reach it.
    """
    store = memable.InMemoryStore()
    runs: list[int] = []

    async def body(ctx: memable.Context) -> None:
        runs.append(1)
        await ctx.suspend(P)
        await ctx.sleep("s", 10)

    await crash_when_suspended(body, store)
    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow], resume_on_start=False, max_parked=max_parked) as engine:
        await settle()
        assert len(runs) == 1
        await engine.signal(workflow, INSTANCE, P, 1)
        assert (await suspended(engine)).key == "s"
    async with memable.open_engine(store, workflows=[workflow], resume_on_start=False, max_parked=max_parked) as engine:
        assert await ending_of(await engine.get("w", INSTANCE)) == memable.Completed()


async def test_statuses_are_quiet_during_a_replay(autojump_clock: MockClock):
    """
    What the body said before the wait is not announced again when a signal runs it over its memos.
    """
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        for n in range(3):
            ctx.set_status(f"step {n}")
            await ctx.step(f"s{n}", trio.sleep, 0)
        await ctx.suspend(P, status="waiting")
        ctx.set_status("on")
        await ctx.step("last", counting([]), "x")

    workflow = workflow_of(body)
    await crash_when_suspended(body, store)
    seen: list[memable.WorkflowState] = []
    async with (
        memable.open_engine(store, workflows=[workflow], max_parked=0) as engine,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(watch, engine, seen)
        await settle()
        await engine.signal(workflow, INSTANCE, P, 1)
    told = [state.message for state in seen]
    assert told[0] == "waiting"
    assert told[-1] == "on"
    assert set(told) <= {"waiting", "step 2", "on"}
