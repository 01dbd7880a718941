"""
Sentences of the contract that no other test would miss. Those that do not hold yet are marked as expected to fail.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints

import memable
from memable._records import InstanceRecord
from running import INSTANCE, ending_of, kinds_of, workflow_of
from stores import Gate, HookedStore, Place
from waits import P, Q, R, settle, suspended

Operation = Callable[[memable.Context], Awaitable[object]]

K = memable.SuspendPoint("k", int)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


async def work() -> str:
    return "done"


def work_in_thread() -> str:
    return "done"


async def undo() -> None:
    pass


@memable.workflow
async def child(ctx: memable.Context, number: int = 0) -> int:
    return number


@memable.workflow
async def waiting_child(ctx: memable.Context) -> int:
    return await ctx.suspend(P)


@memable.workflow
async def slow_child(ctx: memable.Context) -> None:
    """Takes ten seconds to be cancelled."""
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(10)


async def each(ctx: memable.Context, item: int) -> int:
    return item


async def time_out(ctx: memable.Context) -> None:
    with suppress(memable.SuspendTimeoutError):
        await ctx.suspend(K, timeout=0.5)


async def move_on(ctx: memable.Context) -> None:
    async with ctx.move_on_after("k", 1_000):
        pass


async def fail_after(ctx: memable.Context) -> None:
    async with ctx.fail_after("k", 1_000):
        pass


#: Each operation of a context, with the key "k", the kind of its key, and of the record that ends it.
OPERATIONS: dict[str, tuple[Operation, str, str]] = {
    "step": (lambda ctx: ctx.step("k", work), "step", "step_completed"),
    "step_in_thread": (lambda ctx: ctx.step_in_thread("k", work_in_thread), "step", "step_completed"),
    "once": (lambda ctx: ctx.step("k", work, once=True), "step", "step_completed"),
    "suspend": (time_out, "suspend", "suspend_timed_out"),
    "sleep": (lambda ctx: ctx.sleep("k", 1), "sleep", "sleep_ended"),
    "sleep_until": (lambda ctx: ctx.sleep_until("k", LONG_AGO), "sleep", "sleep_ended"),
    "move_on_after": (move_on, "scope", "scope_ended"),
    "fail_after": (fail_after, "scope", "scope_started"),
    "fan_out": (lambda ctx: ctx.fan_out("k", each, [1, 2]), "fan_out", "branch_completed"),
    "fan_out_settled": (lambda ctx: ctx.fan_out_settled("k", each, [1, 2]), "fan_out", "branch_completed"),
    "fan_out_of_instances": (lambda ctx: ctx.fan_out("k", child, [1, 2]), "fan_out", "branch_completed"),
    "call": (lambda ctx: ctx.call("k", child), "call", "call_completed"),
    "start": (lambda ctx: ctx.start("k", child), "start", "child_started"),
    "compensate": (lambda ctx: ctx.compensate("k", undo), "compensation", "compensation_registered"),
}

EACH_OPERATION = pytest.mark.parametrize("name", OPERATIONS)


# House rules ---------------------------------------------------------------------------------------------------------


@EACH_OPERATION
async def test_operation_is_a_checkpoint(name: str, place: Place, autojump_clock: MockClock):
    """
    Every operation of a context is a checkpoint, in the first run and on a memo hit.
    """
    operation = OPERATIONS[name][0]
    runs: list[bool] = []

    async def body(ctx: memable.Context) -> None:
        runs.append(ctx.replaying)
        with assert_checkpoints():
            await operation(ctx)
        await ctx.suspend(P)

    await run_until_suspended(place, body)
    await run_until_suspended(place, body)
    assert runs == [False, True]


async def run_until_suspended(place: Place, body: Operation) -> None:
    """Start the instance, or resume it, and close the engine once it waits at P."""
    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow, child, waiting_child]) as engine:
        if await engine.metadata(workflow, INSTANCE) is None:
            await engine.invoke(workflow, instance_id=INSTANCE)
        else:
            await engine.resume(workflow, INSTANCE)
        async for state in engine.subscribe(workflow, INSTANCE):
            if isinstance(state, memable.Suspended) and state.key == P.key:
                return
            assert not isinstance(state, memable.Blocked), state


async def test_opening_and_closing_an_engine_are_checkpoints(place: Place, autojump_clock: MockClock):
    """
    Opening an engine is a checkpoint, and so is leaving its block.
    """
    opening = memable.open_engine(place.store())
    with assert_checkpoints():
        await opening.__aenter__()
    with assert_checkpoints():
        await opening.__aexit__(None, None, None)


@EACH_OPERATION
async def test_cancellation_is_delivered_once_the_outcome_is_recorded(name: str, autojump_clock: MockClock):
    """
    A cancellation that meets an append waits for it, and is delivered by the same operation.
    """
    operation, _, kind = OPERATIONS[name]
    gate = Gate(kind)
    caught: list[bool] = []

    async def body(ctx: memable.Context) -> None:
        with trio.CancelScope() as scope:
            host.start_soon(cancel_at_gate, gate, scope)
            await operation(ctx)
        caught.append(scope.cancelled_caught)

    workflow = workflow_of(body)
    store = memable.InMemoryStore()
    hooked = HookedStore(store, before_append=gate.pass_)
    async with trio.open_nursery() as host, memable.open_engine(hooked, workflows=[workflow, child]) as engine:
        await ending_of(await engine.invoke(workflow, instance_id=INSTANCE))
    assert kind in kinds_of(store)
    assert caught == [True]


async def cancel_at_gate(gate: Gate, scope: trio.CancelScope) -> None:
    await gate.is_reached.wait()
    scope.cancel()
    gate.is_open.set()


HostCall = Callable[[memable.Engine], Awaitable[object]]

#: What is recorded by a call of the host, what the instance is then, and the call.
HOST_CALLS: dict[str, tuple[str, str, HostCall]] = {
    "invoke": ("instance_started", "new", lambda engine: engine.invoke("w", instance_id=INSTANCE)),
    "signal": ("signal_received", "suspended", lambda engine: engine.signal("w", INSTANCE, P, 5)),
    "early signal": ("signal_kept", "suspended", lambda engine: engine.signal("w", INSTANCE, Q, 5, early="keep")),
    "resume": ("instance_resumed", "failed", lambda engine: engine.resume("w", INSTANCE)),
    "resume of a suspended": ("instance_resumed", "suspended", lambda engine: engine.resume("w", INSTANCE)),
    "delete": ("instance_retired", "failed", lambda engine: engine.delete("w", INSTANCE)),
    "cancel": ("cancel_requested", "suspended", lambda engine: engine.cancel("w", INSTANCE)),
}


@pytest.mark.parametrize(
    ("name", "max_parked"),
    [(name, max_parked) for name in HOST_CALLS for max_parked in (0, 1000)],
)
async def test_cancellation_of_a_host_is_delivered_once_its_record_is_durable(
    name: str, max_parked: int, autojump_clock: MockClock
):
    """
    A call of the host that is cancelled while it appends brings that to its end, and raises the cancellation.
    """
    kind, status, call = HOST_CALLS[name]
    gate = Gate(kind)
    is_armed = False

    async def before_append(records: Sequence[InstanceRecord]) -> None:
        if is_armed:
            await gate.pass_(records)

    async def body(ctx: memable.Context) -> None:
        if await ctx.suspend(P) == 1:
            raise ValueError("on purpose")

    workflow = workflow_of(body)
    hooked = HookedStore(before_append=before_append)
    async with memable.open_engine(hooked, workflows=[workflow], max_parked=max_parked) as engine:
        if status != "new":
            invocation = await engine.invoke(workflow, instance_id=INSTANCE)
            await suspended(engine)
            if status == "failed":
                await engine.signal(workflow, INSTANCE, P, 1)
                await ending_of(invocation)
        is_armed = True
        is_armed = True
        scope = trio.CancelScope()

        async def call_in_scope() -> None:
            with scope:
                await call(engine)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call_in_scope)
            nursery.start_soon(cancel_at_gate, gate, scope)
    assert scope.cancelled_caught


# Keys ----------------------------------------------------------------------------------------------------------------


@EACH_OPERATION
async def test_key_of_one_kind_is_used_as_no_other(name: str, autojump_clock: MockClock):
    """
    A key recorded as one kind of operation is KeyKindError as any other; used twice in a run, DuplicateKeyError.
    """
    operation, kind, _ = OPERATIONS[name]

    async def before(ctx: memable.Context) -> None:
        await operation(ctx)
        await ctx.suspend(P)

    store = memable.InMemoryStore()
    workflow = workflow_of(before)
    async with memable.open_engine(store, workflows=[workflow, child]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.sleep(5)
        assert (await suspended(engine)).key == P.key
    for other, other_kind, _ in OPERATIONS.values():

        async def twice(ctx: memable.Context, other: Operation = other) -> None:
            await operation(ctx)
            await other(ctx)

        assert await blocked_by(twice, store) == "memable.DuplicateKeyError"
        if other_kind != kind:
            is_step = (kind, other_kind) == ("suspend", "step")
            expected = "memable.SuspendedStepConflictError" if is_step else "memable.KeyKindError"
            assert await blocked_by(other, store) == expected


async def blocked_by(body: Operation, store: memable.InMemoryStore) -> str:
    """Return the name of the error by which the suspended instance is Blocked once its code is *body*."""
    workflow = workflow_of(body)
    async with memable.open_engine(store.crashed_copy(), workflows=[workflow, child]) as engine:
        state = await ending_of(await engine.resume(workflow, INSTANCE))
        assert isinstance(state, memable.Blocked), state
        return state.error.type


@EACH_OPERATION
async def test_operation_inside_a_step_and_after_the_run_is_refused(name: str, autojump_clock: MockClock):
    """
    Any operation inside a step is NestedStepError, and after its run RunEndedError; nothing is recorded.
    """
    operation = OPERATIONS[name][0]
    leaked: list[memable.Context] = []
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        leaked.append(ctx)

        async def nest() -> None:
            await operation(ctx)

        await ctx.step("outer", nest)

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow, child]) as engine:
        state = await ending_of(await engine.invoke(workflow, instance_id=INSTANCE))
        assert isinstance(state, memable.Blocked)
        assert state.error.type == "memable.NestedStepError"
        with pytest.raises(memable.RunEndedError, match="ended"):
            await operation(leaked[0])
    assert kinds_of(store) == ["instance_started", "instance_blocked"]


# Code errors and bodies that are unwound -----------------------------------------------------------------------------


@EACH_OPERATION
async def test_any_operation_without_a_memo_raises_a_code_error_again(name: str, autojump_clock: MockClock):
    """
    After a code error, every kind of operation that has no memo raises it again.
    """
    store = memable.InMemoryStore()
    raised: list[str] = []

    async def body(ctx: memable.Context) -> None:
        for operation in (lambda ctx: ctx.step("bad/key", work), OPERATIONS[name][0]):
            try:
                await operation(ctx)
            except memable.InvalidKeyError as error:
                raised.append(str(error))

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow, child]) as engine:
        assert isinstance(await ending_of(await engine.invoke(workflow, instance_id=INSTANCE)), memable.Blocked)
    assert len(raised) == 2
    assert kinds_of(store) == ["instance_started", "instance_blocked"]


async def test_fan_out_over_nothing_raises_a_code_error_again(autojump_clock: MockClock):
    """
    A fan-out over no items has no memo, so it raises a code error again.
    """
    returned: list[object] = []

    async def body(ctx: memable.Context) -> None:
        with suppress(memable.InvalidKeyError):
            await ctx.step("bad/key", work)
        returned.append(await ctx.fan_out("k", each, []))

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        await ending_of(await engine.invoke(workflow, instance_id=INSTANCE))
    assert returned == []


@EACH_OPERATION
@pytest.mark.parametrize("reason", ["passivated", "stopping", "cancelled"])
async def test_no_operation_begins_in_a_body_that_is_unwound(reason: str, name: str, autojump_clock: MockClock):
    """
    While ctx.leaving is set, an operation of any kind that has no memo does not run, though it is shielded.
    """
    store = memable.InMemoryStore()
    seen: list[object] = []

    async def body(ctx: memable.Context) -> None:
        try:
            await ctx.suspend(P)
        finally:
            if not seen:
                with trio.CancelScope(shield=True), pytest.raises(memable.RunEndedError) as caught:
                    await OPERATIONS[name][0](ctx)
                seen.extend([ctx.leaving, caught.value.leaving])

    workflow = workflow_of(body)
    max_parked = 0 if reason == "passivated" else 1
    async with memable.open_engine(store, workflows=[workflow, child], max_parked=max_parked) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        if reason == "cancelled":
            await engine.cancel(workflow, INSTANCE)
    assert seen == [reason, reason]
    assert set(kinds_of(store)) <= {
        "instance_started", "wait_started", "instance_suspended", "cancel_requested", "instance_cancelled",
    }  # fmt: skip


async def pay(ctx: memable.Context) -> None:
    await ctx.step("k", partial(trio.sleep, 1_000), once=True, returns=None)


async def scoped(ctx: memable.Context) -> None:
    async with ctx.move_on_after("k", 10_000):
        await trio.sleep(1_000)


@pytest.mark.parametrize(
    "before",
    [
        lambda ctx: ctx.step("k", work),
        lambda ctx: ctx.fan_out("k", each, [1]),
        lambda ctx: ctx.start("k", child),
        lambda ctx: ctx.compensate("k", undo),
        lambda ctx: ctx.call("k", waiting_child),
        lambda ctx: ctx.sleep("k", 1_000),
        pay,
        scoped,
    ],
    ids=["step", "fan_out", "start", "compensate", "call", "sleep", "once", "scope"],
)
async def test_bad_deploy_fails_nothing_whatever_an_earlier_run_has_recorded(
    before: Operation, autojump_clock: MockClock
):
    """
    New code that raises before it has asked for what an earlier run got to blocks the instance; mended, it goes on.
    """

    async def good(ctx: memable.Context) -> None:
        await before(ctx)
        await trio.sleep(1_000)

    async def bad(ctx: memable.Context) -> None:
        raise KeyError("bad deploy")

    store = memable.InMemoryStore()
    workflow = workflow_of(good)
    workflows = [workflow, child, waiting_child]
    async with memable.open_engine(store, workflows=workflows, shutdown_timeout=0) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await settle()
        store = store.crashed_copy()
    broken = workflow_of(bad)
    async with memable.open_engine(store, workflows=[broken, child, waiting_child]) as engine:
        state = await ending_of(await engine.resume(broken, INSTANCE))
        assert isinstance(state, memable.Blocked), state
        assert "bad deploy" in state.error.message
    async with memable.open_engine(store, workflows=workflows, shutdown_timeout=0) as engine:
        await settle()
        # An effect that was cut short is unknown then.
        assert "bad deploy" not in str(await engine.state(workflow, INSTANCE))


# Cancelling and resuming with children -------------------------------------------------------------------------------


async def test_cancel_of_a_blocked_parent_survives_its_caller(place: Place, autojump_clock: MockClock):
    """
    A request to cancel is carried out though its caller is cancelled while it waits for the children.
    """

    async def body(ctx: memable.Context) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ctx.call, "c", slow_child)
            await trio.sleep(1)
            await ctx.step("bad/key", work)

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow, slow_child]) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.sleep(2)
        assert isinstance(await invocation.state(), memable.Blocked)
        with trio.move_on_after(1) as scope:
            await engine.cancel(workflow, INSTANCE)
        assert scope.cancelled_caught
        await trio.sleep(100)
        assert await invocation.state() == memable.Cancelled()


@pytest.mark.parametrize("how", ["cancelled", "crashed"])
async def test_resume_that_forgets_a_child_is_done_or_not_begun(how: str, autojump_clock: MockClock):
    """
    A resume that is cut short while it cancels a child that it forgets leaves the parent waiting, or begins anew.
    """

    @memable.workflow(name="stubborn")
    async def stubborn(ctx: memable.Context) -> None:
        try:
            await ctx.suspend(P)
        finally:
            if ctx.leaving == "cancelled":
                with trio.CancelScope(shield=True):
                    await trio.sleep(10)

    async def body(ctx: memable.Context) -> None:
        await ctx.call("c", stubborn)

    workflow = workflow_of(body)
    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []

    async def before_append(records: Sequence[InstanceRecord]) -> None:
        if any(record.kind == "instance_resumed" for record in records):
            copies.append(store.crashed_copy())

    hooked = HookedStore(store, before_append=before_append)
    async with memable.open_engine(hooked, workflows=[workflow, stubborn]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        with trio.move_on_after(1 if how == "cancelled" else 100):
            await engine.resume(workflow, INSTANCE, forget=["c"])
        await trio.sleep(100)
        if how == "cancelled":
            assert isinstance(await engine.state(workflow, INSTANCE), memable.Suspended)
            return
    async with memable.open_engine(copies[0], workflows=[workflow, stubborn]) as engine:
        await engine.wait_all()
        assert isinstance(await engine.state(workflow, INSTANCE), memable.Suspended)


# What is waited for, and forgotten -----------------------------------------------------------------------------------


async def test_suspended_names_what_waits_longest_before_a_later_call(autojump_clock: MockClock):
    """
    Suspended.key is the longest-waiting path, also where a call was begun after it.
    """

    async def branch(ctx: memable.Context, item: int) -> None:
        await trio.sleep(item)
        if item == 0:
            await ctx.sleep("nap", 10_000)
        else:
            await ctx.call("c", waiting_child)

    async def body(ctx: memable.Context) -> None:
        await ctx.fan_out("f", branch, [0, 50])

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow, waiting_child]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await trio.sleep(100)
        assert (await suspended(engine)).waits == ("f/0/nap", "f/1/c")


async def test_forgetting_a_key_forgets_its_timer(place: Place, autojump_clock: MockClock):
    """
    A sleep, a durable scope or a backoff that is forgotten while it lasts begins anew: whole time, whole budget.
    """
    calls: list[float] = []
    expired: list[float] = []

    async def fail() -> None:
        calls.append(trio.current_time())
        raise OSError("no")

    async def body(ctx: memable.Context) -> None:
        async with ctx.move_on_after("scope", 100):
            await ctx.sleep("long", 10_000)
        expired.append(trio.current_time())
        await ctx.sleep("nap", 100)
        await ctx.step("step", fail, retry=memable.RetryPolicy.fixed(1, 100))

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        began = trio.current_time()
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        for key in ("scope", "nap", "step"):
            await trio.sleep(60)
            await engine.resume(workflow, INSTANCE, forget=[key])
            await trio.sleep(100)
        await ending_of(invocation)
    # The last of those that are noted for each: bodies run again from the top.
    assert round(expired[0] - began) == 160
    assert [round(at - began) for at in calls] == [320, 380, 480]


async def test_forgetting_a_point_forgets_its_signals(place: Place, autojump_clock: MockClock):
    """
    A signal that was kept or received for a point that is forgotten is gone: the instance waits there again.
    """
    received: list[int] = []

    async def body(ctx: memable.Context) -> None:
        received.extend([await ctx.suspend(P), await ctx.suspend(Q)])
        await ctx.suspend(R)

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        await engine.signal(workflow, INSTANCE, Q, 1, early="keep")
        await engine.resume(workflow, INSTANCE, forget=[Q.key])
        for point, payload in ((P, 2), (Q, 3)):
            assert (await suspended(engine)).waits == (point.key,)
            await engine.signal(workflow, INSTANCE, point, payload)
        assert (await suspended(engine)).waits == (R.key,)
        await engine.resume(workflow, INSTANCE, forget=[P.key])
        assert (await suspended(engine)).waits == (P.key,)
        await engine.signal(workflow, INSTANCE, P, 4)
        assert (await suspended(engine)).waits == (R.key,)
    assert received == [2, 3, 4, 3]


# Values and space ----------------------------------------------------------------------------------------------------


async def test_payload_that_is_too_large_is_a_serialization_error(autojump_clock: MockClock):
    """
    A signal's payload over max_value_bytes is SerializationError, as any other value: its type is right.
    """
    point = memable.SuspendPoint("text", str)

    async def body(ctx: memable.Context) -> None:
        await ctx.suspend(point)

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow], max_value_bytes=100) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        with pytest.raises(memable.SerializationError, match="max_value_bytes"):
            await engine.signal(workflow, INSTANCE, point, "x" * 200)


@pytest.mark.parametrize("size", [9_000_000, 64 * 2**20 - 2])
async def test_values_as_large_as_allowed_are_stored(tmp_path: Path, size: int):
    """
    A value may take all of the default ``max_value_bytes``: alone, and recorded at once with another one.
    """
    calls: list[int] = []
    lengths: list[int] = []

    async def fetch(number: int) -> str:
        calls.append(number)
        return "x" * size

    async def fetch_in_child(ctx: memable.Context, number: int) -> int:
        return len(await ctx.step("one", fetch, number))

    async def body(ctx: memable.Context) -> None:
        lengths.append(len(await ctx.step("first", fetch, 0)))
        lengths.extend(await ctx.fan_out("others", fetch_in_child, [1, 2]))
        await ctx.suspend(P)
        lengths.append(len(await ctx.step("first, again", fetch, 3)))

    workflow = workflow_of(body)
    async with memable.open_engine(tmp_path / "store", workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
    async with memable.open_engine(tmp_path / "store", workflows=[workflow]) as engine:
        await engine.signal(workflow, INSTANCE, P, 1)
        await ending_of(await engine.get(workflow, INSTANCE))
    assert lengths == [size] * 7
    assert sorted(calls) == [0, 1, 2, 3]
