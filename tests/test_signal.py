"""
Signals: who gets them, which of several wins, and what becomes of one that comes too early, too late or wrong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import pytest
import trio
from trio.testing import MockClock

import memable
from memable import SignalRejectedError, SignalSupersededError
from memable._records import InstanceRecord, SignalKept, WaitStarted
from running import INSTANCE, ending_of, kinds_of, workflow_of
from stores import Gate, HookedStore, MemoryPlace, Place, failing_at
from waits import HOUR, P, Q, settle, suspended

MAX_PARKED = pytest.mark.parametrize("max_parked", [0, 1000])
EARLY = pytest.mark.parametrize("early", ["reject", "keep"])

Early = Literal["reject", "keep"]


def collecting(got: list[int], *points: memable.SuspendPoint[int], **options: Any) -> memable.Workflow[[], None]:
    """Return a workflow that waits at one point after the other, and notes the payloads."""

    async def body(ctx: memable.Context) -> None:
        for point in points:
            payload = await ctx.suspend(point, **options)
            got.append(payload)

    return workflow_of(body)


# Winning ---------------------------------------------------------------------------------------------------------


@MAX_PARKED
async def test_signal_is_durable_when_it_returns(place: Place, max_parked: int, autojump_clock: MockClock):
    """
    A crash right after a signal was acknowledged does not lose it: the next open goes on with it by itself.
    """
    got: list[int] = []
    workflow = collecting(got, P, Q)
    async with memable.open_engine(place.store(), workflows=[workflow], max_parked=max_parked) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        await engine.signal(workflow, INSTANCE, P, 7)
        place = place.crash()
    got.clear()
    async with memable.open_engine(place.store(), workflows=[workflow], max_parked=max_parked) as engine:
        assert (await suspended(engine)).key == "q"
    assert got == [7] * len(got) != []


@MAX_PARKED
async def test_state_after_a_signal_is_not_suspended_there(max_parked: int, autojump_clock: MockClock):
    """
    When a signal returns, the instance is no longer seen waiting there: not by state, metadata or a new wait.
    """
    workflow = collecting([], P, Q)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow], max_parked=max_parked) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        again = await engine.signal(workflow, INSTANCE, P, 1)
        state = await again.state()
        assert not isinstance(state, memable.Suspended) or "p" not in state.waits
        metadata = await engine.metadata("w", INSTANCE)
        assert metadata is not None
        assert metadata.key != "p"
        waited = await invocation.wait()
        assert isinstance(waited, memable.Suspended)
        assert waited.waits == ("q",)


@MAX_PARKED
async def test_second_signal_is_superseded(place: Place, max_parked: int, autojump_clock: MockClock):
    """
    Only the first signal to a point is delivered, whatever the state of the instance when the second one comes.
    """
    got: list[int] = []
    workflow = collecting(got, P, Q)

    async def send_again() -> None:
        for early in ("reject", "keep"):
            with pytest.raises(SignalSupersededError, match="key 'p': nothing was delivered: another signal"):
                await engine.signal("w", INSTANCE, P, 2, early=early)

    async with memable.open_engine(place.store(), workflows=[workflow], max_parked=max_parked) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        await engine.signal(workflow, INSTANCE, P, 1)
        await send_again()
        await suspended(engine)
        await send_again()
        await engine.signal(workflow, INSTANCE, Q, 3)
        assert await ending_of(await engine.get("w", INSTANCE)) == memable.Completed()
        await send_again()
    async with memable.open_engine(place.store()) as engine:
        await send_again()
    assert got[-2:] == [1, 3] if max_parked else got == [1, 1, 3]


async def test_signal_after_the_timeout_is_superseded(place: Place, autojump_clock: MockClock):
    """
    A signal that comes after the timeout was recorded gets told so, also when the instance has failed by it.
    """
    workflow = collecting([], P, timeout=60)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        assert isinstance(await ending_of(invocation), memable.Failed)
        with pytest.raises(SignalSupersededError, match="the timeout was first"):
            await engine.signal(workflow, INSTANCE, P, 1)


async def test_signals_at_once_have_one_winner(autojump_clock: MockClock):
    """
    Of many signals at the same time, exactly one is delivered.
    """
    got: list[int] = []
    won: list[int] = []
    workflow = collecting(got, P)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow], max_parked=0) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)

        async def send(payload: int) -> None:
            with contextlib.suppress(SignalSupersededError):
                await engine.signal(workflow, INSTANCE, P, payload)
                won.append(payload)

        async with trio.open_nursery() as nursery:
            for payload in range(20):
                nursery.start_soon(send, payload)
    assert len(won) == 1
    assert got == won


# Too early, too late, elsewhere ----------------------------------------------------------------------------------


async def test_signal_to_where_it_does_not_wait_is_rejected(place: Place, autojump_clock: MockClock):
    """
    A signal to a point that the instance has not reached is rejected, and may be sent again when it has.
    """
    got: list[int] = []
    workflow = collecting(got, P, Q)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        with pytest.raises(SignalRejectedError, match="it does not wait there; look at its state") as caught:
            await engine.signal(workflow, INSTANCE, Q, 1)
        assert (caught.value.workflow, caught.value.instance_id, caught.value.key) == ("w", INSTANCE, "q")
        await engine.signal(workflow, INSTANCE, P, 1)
        await suspended(engine)
        await engine.signal(workflow, INSTANCE, Q, 2)
    assert got == [1, 2]


@MAX_PARKED
@pytest.mark.parametrize("crashes", [False, True])
async def test_early_signal_is_kept_if_asked_for(
    place: Place, max_parked: int, crashes: bool, autojump_clock: MockClock
):
    """
    A signal that is to be kept waits for the instance, over a crash, too; a second one is superseded.
    """
    got: list[int] = []
    workflow = collecting(got, P, Q)
    async with memable.open_engine(place.store(), workflows=[workflow], max_parked=max_parked) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        await engine.signal(workflow, INSTANCE, Q, 5, early="keep")
        state = await suspended(engine)
        assert state.waits == ("p",)
        for early in ("keep", "reject"):
            with pytest.raises(SignalSupersededError, match="key 'q'"):
                await engine.signal(workflow, INSTANCE, Q, 6, early=early)
        if crashes:
            place = place.crash()
    async with memable.open_engine(place.store(), workflows=[workflow], max_parked=max_parked) as engine:
        with pytest.raises(SignalSupersededError, match="key 'q'"):
            await engine.signal(workflow, INSTANCE, Q, 6, early="keep")
        await engine.signal(workflow, INSTANCE, P, 4)
        assert await ending_of(await engine.get("w", INSTANCE)) == memable.Completed()
    assert got[-2:] == [4, 5]


async def test_kept_signal_is_the_same_on_every_replay(autojump_clock: MockClock):
    """
    A body that went on with a kept signal gets the same payload when it is run again, before any timeout.
    """
    got: list[int] = []
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        await ctx.step("a", trio.sleep, 10)
        got.append(await ctx.suspend(P, timeout=0))
        await ctx.suspend(Q)

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow], max_parked=0) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await engine.signal(workflow, INSTANCE, P, 5, early="keep")
        await suspended(engine)
    crashed = store.crashed_copy()
    async with memable.open_engine(crashed, workflows=[workflow]) as engine:
        await engine.signal(workflow, INSTANCE, Q, 1)
        assert await ending_of(await engine.get("w", INSTANCE)) == memable.Completed()
    assert got == [5, 5]


@EARLY
async def test_signal_to_a_terminal_instance_is_rejected(place: Place, early: Early, autojump_clock: MockClock):
    """
    An instance that has ended waits nowhere, and keeps nothing.
    """

    async def body(ctx: memable.Context) -> None:
        if ctx.instance_id == "failed":
            raise ValueError
        if ctx.instance_id == "cancelled":
            await ctx.suspend(P)

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        for name in ("completed", "failed", "cancelled"):
            await engine.invoke(workflow, instance_id=name)
            await engine.wait_all()
        await engine.cancel(workflow, "cancelled")
        for name in ("completed", "failed", "cancelled"):
            with pytest.raises(SignalRejectedError, match="the instance has ended"):
                await engine.signal(workflow, name, Q, 1, early=early)
        with pytest.raises(SignalRejectedError, match="the instance has ended"):
            await engine.signal(workflow, "cancelled", P, 1, early=early)
    async with memable.open_engine(place.store()) as engine:
        with pytest.raises(SignalRejectedError, match="the instance has ended"):
            await engine.signal("w", "completed", Q, 1, early=early)


@EARLY
async def test_signal_to_another_kind_of_key_is_rejected(early: Early, autojump_clock: MockClock):
    """
    A key that is recorded as a step or a sleep takes no signal, and is not harmed by one.
    """

    async def body(ctx: memable.Context) -> None:
        await ctx.step("p", trio.sleep, 0)
        await ctx.sleep("q", 100)

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        for point, kind in ((P, "a step"), (Q, "a sleep")):
            with pytest.raises(SignalRejectedError, match=f"is recorded as {kind}, not as a suspend point"):
                await engine.signal(workflow, INSTANCE, point, 1, early=early)
        assert await ending_of(invocation) == memable.Completed()


async def test_signal_to_a_wait_that_was_given_up_is_rejected(place: Place, autojump_clock: MockClock):
    """
    A wait that the body has turned away from takes no signal; one that is kept is found by a later use of the key.
    """
    got: list[int] = []

    async def body(ctx: memable.Context) -> None:
        async with ctx.move_on_after("limit", 10):
            await ctx.suspend(P)
        await ctx.suspend(Q)

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.sleep(20)
        assert (await suspended(engine)).waits == ("q",)
        with pytest.raises(SignalRejectedError, match="does not wait there"):
            await engine.signal(workflow, INSTANCE, P, 1)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        with pytest.raises(SignalRejectedError, match="does not wait there"):
            await engine.signal(workflow, INSTANCE, P, 1)
        await engine.signal(workflow, INSTANCE, Q, 1)
        assert await ending_of(await engine.get("w", INSTANCE)) == memable.Completed()
    assert got == []


# Payloads and arguments ------------------------------------------------------------------------------------------


@MAX_PARKED
async def test_payload_of_another_type_is_refused(max_parked: int, autojump_clock: MockClock):
    """
    A payload that is not of the point's type is the sender's mistake: the instance goes on waiting, unharmed.
    """
    got: list[int] = []
    store = memable.InMemoryStore()
    workflow = collecting(got, P)
    async with memable.open_engine(store, workflows=[workflow], max_parked=max_parked) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        before = await suspended(engine)
        count = len(kinds_of(store))
        for payload in ("7", None, True, 7.5, object()):
            with pytest.raises(memable.TypeMismatchError, match="key 'p'") as caught:
                await engine.signal(workflow, INSTANCE, P, payload)  # type: ignore[arg-type] # a mistake
            assert caught.value.expected == "int"
        with pytest.raises(memable.TypeMismatchError, match="key 'p'"):
            await engine.signal(workflow, INSTANCE, memable.SuspendPoint("p", str), "seven")
        assert await suspended(engine) == before
        assert len(kinds_of(store)) == count
        await engine.signal(workflow, INSTANCE, P, 7)
        assert await ending_of(invocation) == memable.Completed()
    assert got == [7]


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda engine: engine.signal("w", INSTANCE, "p", 1), "'p' is not a suspend point"),
        (lambda engine: engine.signal("w", INSTANCE, P, 1, early="later"), "early is 'later'"),
        (lambda engine: engine.signal("w", INSTANCE, P, 1, within=""), "within|path|key"),
        (lambda engine: engine.signal(7, INSTANCE, P, 1), "7 is neither a workflow nor the name of one"),
        (lambda engine: engine.signal("w", "no/such", P, 1), "no/such"),
        (lambda engine: engine.signal("w", "nobody", P, 1), "the store has no such instance"),
    ],
)
async def test_signal_refuses_senseless_arguments(
    call: Callable[[memable.Engine], Any], problem: str, autojump_clock: MockClock
):
    """
    Arguments that make no sense are the caller's mistake, and change nothing.
    """
    workflow = collecting([], P)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        before = await suspended(engine)
        with pytest.raises(memable.MemableError, match=problem):
            await call(engine)
        assert await suspended(engine) == before


# Fan-outs --------------------------------------------------------------------------------------------------------


async def wait_twice(ctx: memable.Context, n: int) -> int:
    return await ctx.suspend(P) + (await ctx.suspend(Q) if n else 0)


@MAX_PARKED
async def test_signal_within_reaches_one_child(place: Place, max_parked: int, autojump_clock: MockClock):
    """
    A wait inside a fan-out is addressed by the path of its child.
    """
    results: list[list[int]] = []

    async def body(ctx: memable.Context) -> None:
        results.append(await ctx.fan_out("f", wait_twice, range(3)))

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow], max_parked=max_parked) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        for n in (2, 0, 1):
            await engine.signal(workflow, INSTANCE, P, 10 * n, within=f"f/{n}")
            await suspended(engine)
        assert set((await suspended(engine)).waits) == {"f/1/q", "f/2/q"}
        for n in (1, 2):
            await engine.signal(workflow, INSTANCE, Q, n, within=f"f/{n}")
        assert await ending_of(invocation) == memable.Completed()
    assert results == [[0, 11, 22]]


@MAX_PARKED
@EARLY
async def test_signal_within_an_unknown_path_is_rejected(max_parked: int, early: Early, autojump_clock: MockClock):
    """
    A path of which nothing is recorded takes no signal, not even one to be kept.
    """
    workflow = workflow_of(lambda ctx: ctx.fan_out("f", wait_twice, range(2)))
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow], max_parked=max_parked) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        for within in ("f", "f/2", "g", "g/0", "f/0/x", "f/0/p"):
            with pytest.raises(SignalRejectedError, match=f"'{within}' is not known as a child of a fan-out"):
                await engine.signal(workflow, INSTANCE, P, 1, within=within, early=early)


@MAX_PARKED
async def test_signal_within_may_be_kept(max_parked: int, autojump_clock: MockClock):
    """
    A child that has begun keeps a signal for a point that it has not reached.
    """
    results: list[list[int]] = []

    async def body(ctx: memable.Context) -> None:
        results.append(await ctx.fan_out("f", wait_twice, range(2)))

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow], max_parked=max_parked) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        await engine.signal(workflow, INSTANCE, Q, 5, within="f/1", early="keep")
        for n in range(2):
            await engine.signal(workflow, INSTANCE, P, 1, within=f"f/{n}")
        assert await ending_of(invocation) == memable.Completed()
    assert results == [[1, 6]]


@MAX_PARKED
@EARLY
async def test_signal_within_a_child_that_is_done_is_superseded(
    place: Place, max_parked: int, early: Early, autojump_clock: MockClock
):
    """
    A point inside a child that has ended is past, whether the child ever waited there or not.
    """

    async def body(ctx: memable.Context) -> None:
        await ctx.fan_out("f", wait_twice, range(2))
        await ctx.suspend(P)

    async def send_again(engine: memable.Engine) -> None:
        for point in (P, Q):
            with pytest.raises(SignalSupersededError, match="key 'f/0/"):
                await engine.signal("w", INSTANCE, point, 1, within="f/0", early=early)

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow], max_parked=max_parked) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        await engine.signal(workflow, INSTANCE, P, 1, within="f/0")
        await suspended(engine)
        await send_again(engine)
        await engine.signal(workflow, INSTANCE, P, 1, within="f/1")
        await suspended(engine)
        await engine.signal(workflow, INSTANCE, Q, 1, within="f/1")
        assert (await suspended(engine)).waits == ("p",)
        await send_again(engine)
        await engine.signal(workflow, INSTANCE, P, 1)
        await ending_of(await engine.get("w", INSTANCE))
        await send_again(engine)
    async with memable.open_engine(place.store()) as engine:
        await send_again(engine)


# States of the instance ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ticks", range(12))
async def test_signal_while_a_run_is_unwound_is_delivered(place: Place, ticks: int, autojump_clock: MockClock):
    """
    A signal that comes in the middle of a passivation is delivered, and the instance runs again for it.
    """
    got: list[int] = []
    workflow = collecting(got, P)
    async with memable.open_engine(place.store(), workflows=[workflow], max_parked=0) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        await invocation.wait()
        for _ in range(ticks):
            await trio.lowlevel.checkpoint()
        await engine.signal(workflow, INSTANCE, P, 7)
        with trio.fail_after(10):
            assert await ending_of(invocation) == memable.Completed()
    assert got == [7]


@pytest.mark.parametrize("is_slow", [False, True])
async def test_signal_during_a_slow_unwinding_is_delivered(is_slow: bool, autojump_clock: MockClock):
    """
    A body that takes its time to be passivated loses no signal, and gets it when it is run again.
    """
    got: list[object] = []

    async def body(ctx: memable.Context) -> None:
        try:
            got.append(await ctx.suspend(P))
        finally:
            got.append(ctx.leaving)
            with trio.CancelScope(shield=True):
                await trio.sleep(10 * is_slow)

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow], max_parked=0) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        await invocation.wait()
        await trio.sleep(5)
        await engine.signal(workflow, INSTANCE, P, 7)
        assert not isinstance(await invocation.state(), memable.Suspended)
        with trio.fail_after(100):
            assert await ending_of(invocation) == memable.Completed()
    assert got == ["passivated", 7, None]


async def test_signal_to_a_replaying_instance_is_delivered(autojump_clock: MockClock):
    """
    A signal that comes after a crash, before the body has got back to its wait, is delivered.
    """
    got: list[int] = []
    hold = trio.Event()
    replays = False

    async def body(ctx: memable.Context) -> None:
        await ctx.step("a", trio.sleep, 0)
        if replays:
            await hold.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ctx.step, "long", trio.sleep, HOUR)
            got.append(await ctx.suspend(P))
            nursery.cancel_scope.cancel()

    workflow = workflow_of(body)
    store = memable.InMemoryStore()
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await settle()
        crashed = store.crashed_copy()
        await engine.signal(workflow, INSTANCE, P, 1)
    replays = True
    async with memable.open_engine(crashed, workflows=[workflow]) as engine:
        await settle()
        await engine.signal(workflow, INSTANCE, P, 2)
        with pytest.raises(SignalSupersededError, match="key 'p'"):
            await engine.signal(workflow, INSTANCE, P, 3)
        hold.set()
        assert await ending_of(await engine.get("w", INSTANCE)) == memable.Completed()
    assert got == [1, 2]


async def test_signal_right_after_opening_a_crashed_store_is_delivered(place: Place, autojump_clock: MockClock):
    """
    A signal as soon as the store is open again finds its point, parked, passivated or interrupted by the crash.
    """
    got: list[int] = []
    workflow = collecting(got, P)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        await invocation.wait()
        place = place.crash()
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await engine.signal(workflow, INSTANCE, P, 7)
        assert await ending_of(await engine.get("w", INSTANCE)) == memable.Completed()
    assert got == [7]


async def test_signal_to_a_blocked_instance_is_delivered(place: Place, autojump_clock: MockClock):
    """
    A signal to the point at which a Blocked instance waited is recorded, and found once the code is mended.
    """
    got: list[int] = []

    async def wrong(ctx: memable.Context) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ctx.suspend, P)
            await settle()
            await ctx.sleep("s", -1)

    workflow = workflow_of(wrong)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        blocked = await ending_of(invocation)
        assert isinstance(blocked, memable.Blocked)
        await engine.signal(workflow, INSTANCE, P, 7, early="keep")
        assert await invocation.state() == blocked
        with pytest.raises(SignalSupersededError, match="key 'p'"):
            await engine.signal(workflow, INSTANCE, P, 8)
    mended = collecting(got, P)
    async with memable.open_engine(place.store(), workflows=[mended]) as engine:
        assert await ending_of(await engine.get("w", INSTANCE)) == memable.Completed()
    assert got == [7]


async def test_signal_to_an_unregistered_instance_is_delivered(place: Place, autojump_clock: MockClock):
    """
    A signal to an instance whose workflow is not registered is recorded, and found once it is.
    """
    got: list[int] = []
    workflow = collecting(got, P)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
    async with memable.open_engine(place.store()) as engine:
        await engine.signal("w", INSTANCE, P, 7)
        assert await engine.state("w", INSTANCE) == memable.Started()
        with pytest.raises(SignalSupersededError, match="key 'p'"):
            await engine.signal("w", INSTANCE, P, 8)
        engine.register(workflow)
        await engine.wait_all()
        assert await engine.state("w", INSTANCE) == memable.Completed()
    assert got == [7]


@pytest.mark.parametrize("resume_on_start", [False, True])
async def test_signal_to_an_interrupted_instance_is_delivered(resume_on_start: bool, autojump_clock: MockClock):
    """
    A signal to an instance that was running at the crash is delivered, whether it runs again by itself or not.
    """
    got: list[int] = []

    async def body(ctx: memable.Context) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ctx.step, "long", trio.sleep, 10)
            got.append(await ctx.suspend(P))

    workflow = workflow_of(body)
    store = memable.InMemoryStore()
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await settle()
        crashed = store.crashed_copy()
        await engine.signal(workflow, INSTANCE, P, 1)
    async with memable.open_engine(crashed, workflows=[workflow], resume_on_start=resume_on_start) as engine:
        await engine.signal(workflow, INSTANCE, P, 2)
        if not resume_on_start:
            await engine.resume(workflow, INSTANCE)
        assert await ending_of(await engine.get("w", INSTANCE)) == memable.Completed()
    assert got == [1, 2]


async def test_signal_while_compensating_is_rejected(autojump_clock: MockClock):
    """
    An instance that undoes what it did waits for nobody any more.
    """
    undone = trio.Event()

    async def body(ctx: memable.Context) -> None:
        await ctx.compensate("undo", undone.wait)
        await ctx.suspend(P)
        raise ValueError

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        await engine.signal(workflow, INSTANCE, P, 1)
        await settle()
        for early in ("reject", "keep"):
            with pytest.raises(SignalRejectedError, match="undoes what it did"):
                await engine.signal(workflow, INSTANCE, Q, 1, early=early)
            with pytest.raises(SignalRejectedError, match="undoes what it did"):
                await engine.signal(workflow, INSTANCE, Q, 1, within="f/0", early=early)
        undone.set()
        assert isinstance(await ending_of(invocation), memable.Failed)


async def test_signal_after_a_request_to_cancel_is_rejected(autojump_clock: MockClock):
    """
    A signal that comes once a cancellation was asked for is not told that it won.
    """
    got: list[int] = []
    gate = Gate("cancel_requested")
    workflow = collecting(got, P)
    store = HookedStore(before_append=gate.pass_)
    async with memable.open_engine(store, workflows=[workflow]) as engine, trio.open_nursery() as nursery:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        nursery.start_soon(engine.cancel, workflow, INSTANCE)
        await gate.is_reached.wait()
        with pytest.raises(SignalRejectedError, match="is being cancelled"):
            await engine.signal(workflow, INSTANCE, P, 1)
        gate.is_open.set()
        assert isinstance(await ending_of(invocation), memable.Cancelled)
    assert got == []


@EARLY
@pytest.mark.parametrize("settles", [False, True])
@pytest.mark.parametrize("fails", [False, True])
async def test_signal_to_a_child_that_is_about_to_end_is_superseded(
    fails: bool, settles: bool, early: Early, autojump_clock: MockClock
):
    """
    While the outcome of a fan-out's child is on its way to the store, signals wait for what becomes of it.

    It was kept for a point that the body was past, and its sender was told that it would be delivered.
    """
    gate = Gate(("branch_failed" if settles else "fan_out_failed") if fails else "branch_completed")
    store = HookedStore(before_append=gate.pass_)
    told: list[str] = []

    async def child(ctx: memable.Context, item: int) -> None:
        if fails:
            raise ValueError

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context) -> None:
        fan_out = ctx.fan_out_settled if settles else ctx.fan_out
        with contextlib.suppress(memable.ChildFailedError):
            await fan_out("f", child, [0])

    async def signal(engine: memable.Engine) -> None:
        try:
            await engine.signal(workflow, INSTANCE, P, 1, within="f/0", early=early)
        except SignalSupersededError:
            told.append("superseded")
        except SignalRejectedError:
            told.append("rejected")
        else:
            told.append("kept")

    async with memable.open_engine(store, workflows=[workflow]) as engine, trio.open_nursery() as nursery:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        await gate.is_reached.wait()
        try:
            for _ in range(3):
                nursery.start_soon(signal, engine)
            await settle()
            told_early = told.copy()
        finally:
            # Else the engine could not close.
            gate.is_open.set()
        await invocation.result()
    assert (told_early, told) == ([], ["superseded"] * 3)


# The engine stops ------------------------------------------------------------------------------------------------


async def test_signal_to_a_stopped_engine_is_refused(place: Place, autojump_clock: MockClock):
    """
    A signal after the engine has stopped raises EngineStoppedError, and nothing was delivered.
    """
    workflow = collecting([], P)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        await engine.stop()
        with pytest.raises(memable.EngineStoppedError, match=r"engine\.signal on workflow 'w', instance 'i'"):
            await engine.signal(workflow, INSTANCE, P, 1)
    with pytest.raises(memable.EngineStoppedError, match="the engine has stopped"):
        await engine.signal(workflow, INSTANCE, P, 1)
    async with memable.open_engine(place.store()) as engine:
        assert (await suspended(engine)).key == "p"


async def test_signal_that_waits_when_the_engine_stops_is_refused(autojump_clock: MockClock):
    """
    A signal that waits for a run to be prepared when the engine stops raises EngineStoppedError.
    """
    gate = trio.Event()
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ctx.step, "long", trio.sleep, 10)
            await ctx.suspend(P)

    async def hold(_number: int) -> None:
        await gate.wait()

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow], shutdown_timeout=0) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await settle()
    before = kinds_of(store)
    hooked = HookedStore(store, before_load=hold)
    async with memable.open_engine(hooked, workflows=[workflow]) as engine, trio.open_nursery() as nursery:

        async def send() -> None:
            with pytest.raises(memable.EngineStoppedError, match=r"engine\.signal to instance 'i'"):
                await engine.signal(workflow, INSTANCE, P, 1)

        nursery.start_soon(send)
        await settle()
        nursery.start_soon(partial(engine.stop, timeout=0))
        await trio.sleep(1)
        gate.set()
    assert kinds_of(store) == [*before, "run_started"]


@MAX_PARKED
@EARLY
async def test_signal_within_a_child_instance_is_rejected(max_parked: int, early: Early, autojump_clock: MockClock):
    """
    A child of a fan-out that is an instance of its own gets its signals by its id, not by its parent's.
    """

    @memable.workflow
    async def child(ctx: memable.Context, n: int) -> int:
        return n + await ctx.suspend(P)

    workflow = workflow_of(lambda ctx: ctx.fan_out("f", child, range(2)))
    async with memable.open_engine(
        memable.InMemoryStore(), workflows=[workflow, child], max_parked=max_parked
    ) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        assert set((await suspended(engine)).waits) == {"f/0", "f/1"}
        with pytest.raises(SignalRejectedError, match="'f/0' is an instance of its own"):
            await engine.signal(workflow, INSTANCE, P, 1, within="f/0", early=early)
        for n in range(2):
            await engine.signal(child, f"{INSTANCE}/f/{n}", P, 1)
        assert await ending_of(invocation) == memable.Completed()


@MAX_PARKED
async def test_signal_that_cannot_be_stored_is_not_delivered(max_parked: int, autojump_clock: MockClock):
    """
    Where the store fails, the signal raises what it failed with, and the instance does not go on.
    """
    got: list[int] = []
    kept = memable.InMemoryStore()
    workflow = collecting(got, P)
    with pytest.raises(memable.StorageError, match="no space left"):
        async with memable.open_engine(
            failing_at("signal_received", kept), workflows=[workflow], max_parked=max_parked
        ) as engine:
            await engine.invoke(workflow, instance_id=INSTANCE)
            await suspended(engine)
            with pytest.raises(memable.StorageError, match="no space left"):
                await engine.signal(workflow, INSTANCE, P, 1)
            await trio.sleep_forever()
    assert got == []
    async with memable.open_engine(kept, workflows=[workflow]) as engine:
        await engine.signal(workflow, INSTANCE, P, 2)
    assert got == [2]


@MAX_PARKED
async def test_signal_is_a_checkpoint_and_may_be_cancelled(max_parked: int, autojump_clock: MockClock):
    """
    A signal yields, delivered or refused; one that is cancelled before it is written changes nothing.
    """
    workflow = collecting([], P)
    store = MemoryPlace()
    async with memable.open_engine(store.store(), workflows=[workflow], max_parked=max_parked) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        with trio.CancelScope() as scope:
            scope.cancel()
            await engine.signal(workflow, INSTANCE, P, 1)
        assert scope.cancelled_caught
        assert (await suspended(engine)).key == "p"
        with trio.testing.assert_checkpoints():
            await engine.signal(workflow, INSTANCE, P, 1)
        with trio.testing.assert_checkpoints(), pytest.raises(SignalSupersededError, match="key 'p'"):
            await engine.signal(workflow, INSTANCE, P, 1)


async def test_signal_from_inside_a_body_works(autojump_clock: MockClock):
    """
    A body may signal another instance; the signal is the engine's business, not the body's.
    """
    got: list[int] = []
    waiting = collecting(got, P)

    @memable.workflow
    async def sending(ctx: memable.Context) -> None:
        await engine.signal(waiting, INSTANCE, P, 7)

    async with memable.open_engine(memable.InMemoryStore(), workflows=[waiting, sending], max_parked=0) as engine:
        invocation = await engine.invoke(waiting, instance_id=INSTANCE)
        await suspended(engine)
        await (await engine.invoke(sending)).result()
        assert await ending_of(invocation) == memable.Completed()
    assert got == [7]


@MAX_PARKED
async def test_signal_to_a_child_instance_reaches_it(max_parked: int, autojump_clock: MockClock):
    """
    A child instance has its own id, by which it gets its signals; its parent goes on when it has ended.
    """

    @memable.workflow
    async def child(ctx: memable.Context) -> int:
        return await ctx.suspend(P)

    @memable.workflow
    async def parent(ctx: memable.Context) -> int:
        return await ctx.call("c", child) + 1

    async with memable.open_engine(memable.InMemoryStore(), workflows=[parent, child], max_parked=max_parked) as engine:
        invocation = await engine.invoke(parent, instance_id=INSTANCE)
        state = await suspended(engine, parent)
        assert state.waits == ("c",)
        await engine.signal(child, f"{INSTANCE}/c", P, 6)
        assert await invocation.result() == 7


@MAX_PARKED
async def test_run_that_begins_to_wait_while_a_signal_is_kept_is_recorded_as_suspended(
    max_parked: int, autojump_clock: MockClock
):
    """
    A signal for later that is on its way while a run begins to wait keeps it neither Running nor in memory.
    """
    memory = memable.InMemoryStore()
    runs: list[int] = []
    is_recorded = trio.Event()

    @memable.workflow(name="w")
    async def waiting(ctx: memable.Context) -> None:
        runs.append(1)
        await ctx.suspend(P)
        await ctx.suspend(Q)

    async def before_append(records: Sequence[InstanceRecord]) -> None:
        if any(isinstance(record, WaitStarted) for record in records):
            is_recorded.set()
            # The signal queues behind this.
            await trio.sleep(1)
        elif any(isinstance(record, SignalKept) for record in records):
            # Meanwhile the body goes on.
            await trio.sleep(1)

    store = HookedStore(memory, before_append=before_append)
    async with memable.open_engine(store, workflows=[waiting], max_parked=max_parked) as engine:
        invocation = await engine.invoke(waiting, instance_id=INSTANCE)
        await is_recorded.wait()
        await engine.signal(waiting, INSTANCE, Q, 5, early="keep")
        await trio.sleep(1)
        assert kinds_of(memory)[-2:] == ["signal_kept", "instance_suspended"]
        await engine.signal(waiting, INSTANCE, P, 4)
        assert await ending_of(invocation) == memable.Completed()
    assert len(runs) == (2 if max_parked == 0 else 1)
