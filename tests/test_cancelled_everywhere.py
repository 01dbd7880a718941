"""
Cancellation at each checkpoint of each public operation, one after the other: nothing lost, nothing half-made.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

import attrs
import pytest
import trio

import memable
from memable._journal import journal_of
from running import ending_of
from stores import DirectoryPlace, MemoryPlace, Place

#: No operation has as many checkpoints as this; one that never comes to its end would be found by it.
MANY = 200

CANCELLED = object()

APPROVAL = memable.SuspendPoint("approval", bool)
EARLY = memable.SuspendPoint("early", str)


@attrs.define(eq=False)
class CancelAt(trio.abc.Instrument):
    """
    Cancels a scope when a task has yielded so many times since the scope was entered.
    """

    task: trio.lowlevel.Task
    scope: trio.CancelScope
    count: int
    seen: int = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.seen += 1
            if self.seen == self.count:
                self.scope.cancel()


async def cancel_at(count: int, operation: Callable[[], Awaitable[object]], ended: list[bool]) -> object:
    """
    Cancel *operation* when it has yielded *count* times; note whether it ended before, and return what it returned.
    """
    with trio.CancelScope() as scope:
        instrument = CancelAt(trio.lowlevel.current_task(), scope, count)
        trio.lowlevel.add_instrument(instrument)
        try:
            return await operation()
        finally:
            trio.lowlevel.remove_instrument(instrument)
            ended.append(instrument.seen < count)
    return CANCELLED


def empty_place(place: Place, number: int) -> Place:
    """
    Return another place of the same kind, for a store of its own.
    """
    return (
        DirectoryPlace(place.directory.with_name(f"s{number}")) if isinstance(place, DirectoryPlace) else MemoryPlace()
    )


@attrs.define
class World:
    """
    What is counted outside.
    """

    effects: dict[str, int] = attrs.field(factory=dict)
    uses: int = 0
    "How often the operation was begun again: keys inside it are then new ones."

    async def act(self, name: str) -> str:
        self.effects[name] = self.effects.get(name, 0) + 1
        await trio.sleep(1)
        return name

    def act_in_thread(self, name: str) -> str:
        self.effects[name] = self.effects.get(name, 0) + 1
        return name


@memable.workflow
async def child(ctx: memable.Context, number: int) -> int:
    await ctx.sleep("nap", 1)
    return number


# In a body ---------------------------------------------------------------------------------------------------------


async def do_step(ctx: memable.Context, world: World) -> object:
    return await ctx.step("op", world.act, "a")


async def do_step_with_retry(ctx: memable.Context, world: World) -> object:
    async def flaky() -> str:
        if world.effects.get("flaky", 0) == 0:
            await world.act("flaky")
            raise OSError
        return await world.act("flaky")

    return await ctx.step("op", flaky, retry=memable.RetryPolicy.fixed(3, 5))


async def do_once(ctx: memable.Context, world: World) -> object:
    return await ctx.step("op", world.act, "once", once=True)


async def do_suspend(ctx: memable.Context, world: World) -> object:
    return await ctx.suspend(APPROVAL)


async def do_suspend_with_timeout(ctx: memable.Context, world: World) -> object:
    try:
        return await ctx.suspend(memable.SuspendPoint("never", int), timeout=3)
    except memable.SuspendTimeoutError:
        return "timeout"


async def do_sleep(ctx: memable.Context, world: World) -> object:
    return await ctx.sleep("op", 3)


async def do_sleep_until(ctx: memable.Context, world: World) -> object:
    return await ctx.sleep_until("op", datetime(2100, 1, 1, tzinfo=UTC))


async def do_move_on_after(ctx: memable.Context, world: World) -> object:
    async with ctx.move_on_after("op", 3) as scope:
        await ctx.step(f"inside-{world.uses}", world.act, "a")
    return scope.cancelled_caught


async def do_expire(ctx: memable.Context, world: World) -> object:
    try:
        async with ctx.fail_after("op", 2):
            await ctx.step(f"inside-{world.uses}", world.act, "a")
            await trio.sleep_forever()
    except memable.ScopeTimeoutError:
        return "expired"
    return "not reached"


async def do_fan_out(ctx: memable.Context, world: World) -> object:
    async def one(inner: memable.Context, item: str) -> str:
        return await inner.step("inside", world.act, item)

    return await ctx.fan_out("op", one, ["a", "b", "c"], limit=2)


async def do_fan_out_settled(ctx: memable.Context, world: World) -> object:
    async def one(inner: memable.Context, item: str) -> str:
        if item == "b":
            raise OSError("no b")
        return await inner.step("inside", world.act, item)

    outcomes = await ctx.fan_out_settled("op", one, ["a", "b"])
    return [type(outcome).__name__ for outcome in outcomes]


async def do_fan_out_of_instances(ctx: memable.Context, world: World) -> object:
    return await ctx.fan_out("op", child, [1, 2, 3], limit=2)


async def do_call(ctx: memable.Context, world: World) -> object:
    return await ctx.call("op", child, 7)


async def do_start(ctx: memable.Context, world: World) -> object:
    return await ctx.start("op", child, 7)


async def do_compensate(ctx: memable.Context, world: World) -> object:
    return await ctx.compensate("op", world.act, "undo")


async def do_failing_step(ctx: memable.Context, world: World) -> object:
    async def fail() -> None:
        await world.act("fail")
        raise ValueError("on purpose")

    try:
        await ctx.step("op", fail)
    except memable.StepFailedError as error:
        return error.error.message
    return "not reached"


IN_BODIES: list[tuple[Callable[[memable.Context, World], Awaitable[object]], object]] = [
    (do_step, "a"),
    (do_step_with_retry, "flaky"),
    (do_once, "once"),
    (do_suspend, True),
    (do_suspend_with_timeout, "timeout"),
    (do_sleep, None),
    (do_sleep_until, None),
    (do_move_on_after, False),
    (do_expire, "expired"),
    (do_fan_out, ["a", "b", "c"]),
    (do_fan_out_settled, ["ChildSucceeded", "ChildFailed"]),
    (do_fan_out_of_instances, [1, 2, 3]),
    (do_call, 7),
    (do_start, "i/op"),
    (do_compensate, None),
    (do_failing_step, "on purpose"),
]


def cancelled_body(
    operation: Callable[[memable.Context, World], Awaitable[object]],
    expected: object,
    world: World,
    count: int,
    ended: list[bool],
) -> memable.Workflow[[], None]:
    """
    Return a workflow that is cancelled in the midst of *operation*, and uses it again.
    """

    @memable.workflow
    async def body(ctx: memable.Context) -> None:
        # Only the run that gets here first is cancelled: those after it show what was lost.
        value: object = CANCELLED
        if not world.uses:
            value = await cancel_at(count, lambda: operation(ctx, world), ended)
        if value is CANCELLED:
            world.uses += 1
            value = await operation(ctx, world)
        assert value == expected

    return body


@pytest.mark.parametrize("max_parked", [0, 1000])
@pytest.mark.parametrize(("operation", "expected"), IN_BODIES)
async def test_operation_of_a_context_is_cancelled_at_each_checkpoint(
    operation: Callable[[memable.Context, World], Awaitable[object]],
    expected: object,
    max_parked: int,
    place: Place,
    autojump_clock: object,
):
    """
    Wherever an operation of a context is cancelled, using its key again gives what it would have given.
    """
    for count in range(1, MANY):
        world = World()
        ended: list[bool] = []

        body = cancelled_body(operation, expected, world, count, ended)
        before = trio.lowlevel.current_statistics().tasks_living
        here = empty_place(place, count)
        settings: dict[str, Any] = {"workflows": [body, child], "max_parked": max_parked}
        async with memable.open_engine(here.store(), **settings) as engine, trio.open_nursery() as nursery:
            invocation = await engine.invoke(body, instance_id="i")
            nursery.start_soon(approve, engine, body)
            assert await ending_of(invocation) == memable.Completed(), count
            await engine.wait_all()
            nursery.cancel_scope.cancel()
        assert trio.lowlevel.current_statistics().tasks_living == before
        assert world.effects.get("once", 0) <= 1
        async with here.store().open(_clock()) as store:
            for header in await store.headers():
                journal = journal_of(await store.load(header.number))
                assert header.detached or journal.ending is not None
        if ended[0]:
            assert count > 1
            return
    raise AssertionError(f"{operation.__name__} has no end")


def _clock() -> Any:
    return memable._clock.current_clock()


async def approve(engine: memable.Engine, workflow: Any) -> None:
    """
    Answer once the instance waits.
    """
    async for state in engine.subscribe(workflow, "i"):
        if isinstance(state, memable.Suspended) and state.key == APPROVAL.key:
            await trio.sleep(1)
            try:
                await engine.signal(workflow, "i", APPROVAL, True)
            except (memable.SignalRejectedError, memable.SignalSupersededError):
                continue
            return


# By the host -------------------------------------------------------------------------------------------------------


@memable.workflow
async def patient(ctx: memable.Context) -> str:
    if await ctx.suspend(APPROVAL):
        raise ValueError("refused")
    return await ctx.suspend(EARLY)


@memable.workflow
async def effect(ctx: memable.Context) -> str:
    return await ctx.step("pay", _pay, once=True)


async def _pay() -> str:
    raise KeyboardInterrupt


async def use_invoke(engine: memable.Engine) -> None:
    await engine.invoke(patient, instance_id="i")


async def use_signal(engine: memable.Engine) -> None:
    try:
        await engine.signal(patient, "i", APPROVAL, False)
    except memable.SignalSupersededError:
        # It was delivered when this was cancelled.
        assert isinstance(await (await engine.get(patient, "i")).wait(), memable.Suspended)


async def use_early_signal(engine: memable.Engine) -> None:
    try:
        await engine.signal(patient, "i", EARLY, "early", early="keep")
    except memable.SignalSupersededError:
        await engine.signal(patient, "i", APPROVAL, False)
        assert await (await engine.get(patient, "i")).result() == "early"


async def use_cancel(engine: memable.Engine) -> None:
    await engine.cancel(patient, "i", reason="why")
    assert await engine.state(patient, "i") == memable.Cancelled("why")


async def use_resume(engine: memable.Engine) -> None:
    invocation = await engine.resume(patient, "failed", forget=["approval"])
    assert isinstance(await invocation.wait(), memable.Suspended)


async def use_resume_of_a_suspended(engine: memable.Engine) -> None:
    assert isinstance(await (await engine.resume(patient, "i")).wait(), memable.Suspended)


async def use_delete(engine: memable.Engine) -> None:
    with suppress(memable.InstanceNotFoundError):
        await engine.delete(patient, "failed")
    assert await engine.metadata(patient, "failed") is None


async def use_settle(engine: memable.Engine) -> None:
    with suppress(memable.SignalRejectedError):
        await engine.settle(effect, "e", "pay", value="paid")
    assert await (await engine.get(effect, "e")).result() == "paid"


async def use_reading(engine: memable.Engine) -> None:
    assert await engine.metadata(patient, "i") is not None
    assert len(await engine.list_instances()) == 3
    assert len(await engine.history(patient, "failed")) > 1
    assert isinstance(await engine.state(patient, "i"), memable.Suspended)
    async for _ in engine.subscribe(patient, "failed"):
        pass
    await engine.wait_all()


async def use_stop(engine: memable.Engine) -> None:
    await engine.stop()


HOST_CALLS = [
    use_invoke,
    use_signal,
    use_early_signal,
    use_cancel,
    use_resume,
    use_resume_of_a_suspended,
    use_delete,
    use_settle,
    use_reading,
    use_stop,
]


async def prepare(place: Place) -> None:
    """
    Leave a suspended instance, a failed one, and one whose effect was cut short.
    """
    async with memable.open_engine(place.store(), workflows=[patient]) as engine:
        await engine.invoke(patient, instance_id="i")
        await engine.invoke(patient, instance_id="failed")
        await engine.wait_all()
        await engine.signal(patient, "failed", APPROVAL, True)
        await engine.wait_all()
    with pytest.raises(KeyboardInterrupt):
        async with memable.open_engine(place.store(), workflows=[effect]) as engine:
            await engine.invoke(effect, instance_id="e")
            await engine.wait_all()
            await trio.sleep(1)


@pytest.mark.slow
@pytest.mark.parametrize("max_parked", [0, 1000])
@pytest.mark.parametrize("call", HOST_CALLS)
async def test_call_of_a_host_is_cancelled_at_each_checkpoint(
    call: Callable[[memable.Engine], Awaitable[None]], max_parked: int, place: Place, autojump_clock: object
):
    """
    Wherever a call of the host is cancelled, it is done or not begun: calling again ends in the same.
    """
    settings: dict[str, Any] = {"workflows": [patient, effect], "max_parked": max_parked}
    for count in range(1, MANY):
        before = trio.lowlevel.current_statistics().tasks_living
        here = empty_place(place, count)
        await prepare(here)
        ended: list[bool] = []
        async with memable.open_engine(here.store(), **settings) as engine:
            assert isinstance(await (await engine.get(patient, "i")).wait(), memable.Suspended)
            await cancel_at(count, partial(call, engine), ended)
            if not ended[0]:
                await call(engine)
        assert trio.lowlevel.current_statistics().tasks_living == before
        # What is recorded opens again, and comes to rest.
        async with memable.open_engine(here.store(), **settings) as engine:
            await engine.wait_all()
            for metadata in await engine.list_instances():
                assert metadata.status is not memable.MetadataStatus.RUNNING
        if ended[0]:
            assert count > 1
            return
    raise AssertionError(f"{call.__name__} has no end")
