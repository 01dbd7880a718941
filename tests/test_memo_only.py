"""
Runs over memos only: a body runs to register its compensations again, and does nothing else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio

import memable
from crashing import never
from memable._run import MEMO_ONLY_PATIENCE_S
from running import INSTANCE, ending_of, run_body, workflow_of
from test_compensate import GO, Undo, nothing, register

Body = Callable[[memable.Context], Awaitable[object]]


async def suspended(body: Body, **settings: Any) -> memable.InMemoryStore:
    """
    Return a store that was closed in order, with an instance of *body* that waits for a signal.
    """
    store, workflow = memable.InMemoryStore(), workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow], **settings) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        state = await invocation.wait()
        while isinstance(state, memable.Suspended) and state.key not in ("go", "before"):
            await trio.sleep(1)
            state = await invocation.wait()
        assert isinstance(state, memable.Suspended)
    return store


async def cancel_in(store: memable.InMemoryStore, body: Body) -> float:
    """
    Cancel the instance; return how long that took.
    """
    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow], shutdown_timeout=0) as engine:
        began = trio.current_time()
        with trio.fail_after(10 * MEMO_ONLY_PATIENCE_S):
            assert await engine.cancel(workflow, INSTANCE)
        assert await engine.state(workflow, INSTANCE) == memable.Cancelled()
        return trio.current_time() - began


async def _enter_scope(ctx: memable.Context) -> None:
    async with ctx.move_on_after("new", 0):
        pass


OPERATIONS: dict[str, Callable[[memable.Context], Awaitable[object]]] = {
    "step": lambda ctx: ctx.step("new", never),
    "once": lambda ctx: ctx.step("new", never, once=True),
    "thread": lambda ctx: ctx.step_in_thread("new", lambda: None),
    "sleep": lambda ctx: ctx.sleep("new", 0),
    "suspend": lambda ctx: ctx.suspend(memable.SuspendPoint("new", int), timeout=0),
    "compensate": lambda ctx: ctx.compensate("new", never),
    "fan_out": lambda ctx: ctx.fan_out("new", lambda inner, item: inner.step("k", never), [1, 2]),
    "scope": _enter_scope,
    "wait": lambda ctx: ctx.suspend(GO),
}


@pytest.mark.parametrize("is_shielded", [False, True])
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_memo_only_operations_without_a_memo_do_not_return(
    operation: str, is_shielded: bool, autojump_clock: object
):
    """
    An operation without a memo waits until the body is unwound, shielded or not, and nothing of it is recorded.
    """
    undo = Undo()
    went_on: list[str] = []
    ends: list[str] = []
    is_cancelling = False

    async def body(ctx: memable.Context) -> None:
        await ctx.step("old", nothing)
        await register(ctx, undo, "a")
        if not is_cancelling:
            await ctx.suspend(GO)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def ask() -> None:
                try:
                    with trio.CancelScope(shield=is_shielded):
                        await OPERATIONS[operation](ctx)
                        went_on.append("shielded")
                    await trio.lowlevel.checkpoint()
                    went_on.append("went on")
                except trio.Cancelled:
                    ends.append("cancelled")
                    raise
                except memable.RunEndedError:
                    ends.append("ended")

            await trio.testing.wait_all_tasks_blocked()
            assert ends == []
            await register(ctx, undo, "b")

    async def before(ctx: memable.Context) -> None:
        await ctx.step("old", nothing)
        await register(ctx, undo, "a", "b")
        await ctx.suspend(GO)

    store = await suspended(before)
    is_cancelling = True
    assert await cancel_in(store, body) < 1
    assert undo.done == ["b", "a"]
    assert went_on == []
    assert ends == ["ended" if is_shielded else "cancelled"]


async def test_memo_only_operations_with_a_memo_return_it(autojump_clock: object):
    """
    Everything that is recorded is returned or raised as ever, and code that depends on it goes the same way.
    """
    undo = Undo()
    calls: list[int] = []

    async def number() -> int:
        calls.append(1)
        return 7

    async def fail() -> None:
        calls.append(1)
        raise ValueError

    async def child(ctx: memable.Context, item: int) -> int:
        await ctx.compensate("undo", undo, f"child {item}")
        return item * await ctx.step("number", number)

    async def body(ctx: memable.Context) -> None:
        value = await ctx.step("number", number)
        with pytest.raises(memable.StepFailedError, match="fail"):
            await ctx.step("fail", fail)
        await ctx.sleep("nap", 1)
        async with ctx.move_on_after("scope", 1) as scope:
            await ctx.sleep("long", 10)
        assert scope.cancelled_caught
        assert await ctx.fan_out("f", child, [1, 2], limit=1) == [7, 14]
        await ctx.compensate(f"undo {value}", undo, "last")
        await ctx.suspend(GO)

    store = await suspended(body)
    assert await cancel_in(store, body) < 1
    assert undo.done == ["last", "child 2", "child 1"]
    assert len(calls) == 4


async def test_memo_only_run_ends_as_soon_as_all_is_registered(autojump_clock: object):
    """
    Code behind the last registration does not run: the body is cancelled there, and ctx.leaving says so.
    """
    undo = Undo()
    behind: list[object] = []

    async def body(ctx: memable.Context) -> None:
        await register(ctx, undo, "a")
        if behind:
            behind.append(ctx.leaving)
            await trio.lowlevel.checkpoint()
            behind.append("went on")
        behind.append("first")
        await ctx.suspend(GO)

    store = await suspended(body)
    await cancel_in(store, body)
    assert undo.done == ["a"]
    assert behind in (["first"], ["first", "cancelled"])


async def test_memo_only_run_ends_when_no_task_can_go_on(autojump_clock: object):
    """
    Where all tasks wait at operations without a memo, or for tasks that do, the run is cancelled at once.
    """
    undo = Undo()

    async def body(ctx: memable.Context) -> None:
        await register(ctx, undo, "a")
        async with trio.open_nursery() as outer:
            outer.start_soon(ctx.suspend, GO)
            async with trio.open_nursery() as inner:
                inner.start_soon(partial(ctx.sleep, "nap", 1e6))
                inner.start_soon(partial(ctx.fan_out, "f", child, [0, 1]))

    async def child(ctx: memable.Context, item: int) -> None:
        await ctx.suspend(GO)

    async def lost(ctx: memable.Context) -> None:
        await body(ctx)
        await register(ctx, undo, "b")

    async def before(ctx: memable.Context) -> None:
        await register(ctx, undo, "a", "b")
        await ctx.suspend(memable.SuspendPoint("before", bool))

    store = await suspended(before)
    workflow = workflow_of(lost)
    async with memable.open_engine(store, workflows=[workflow], shutdown_timeout=0) as engine:
        began = trio.current_time()
        with pytest.raises(memable.WorkflowBlockedError, match="CompensationLostError"):
            await engine.cancel(workflow, INSTANCE)
        assert trio.current_time() - began < 1
    assert undo.done == ["a"]


@pytest.mark.parametrize("how", ["channel", "event", "sleep forever", "lock", "sleep"])
async def test_memo_only_run_is_given_up_when_its_tasks_wait_for_each_other(how: str, autojump_clock: object):
    """
    A task that waits in vain for one which does not go on does not keep an instance from being cancelled.
    """
    undo = Undo()

    async def body(ctx: memable.Context) -> None:
        send, receive = trio.open_memory_channel[int](0)
        event, lock = trio.Event(), trio.Lock()

        async def hold() -> None:
            async with lock:
                await ctx.suspend(GO)
                event.set()
                await send.send(1)

        await register(ctx, undo, "a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold)
            await trio.testing.wait_all_tasks_blocked()
            match how:
                case "channel":
                    await receive.receive()
                case "event":
                    await event.wait()
                case "sleep forever":
                    await trio.sleep_forever()
                case "lock":
                    await lock.acquire()
                case "sleep":
                    while not event.is_set():  # noqa: ASYNC110 - what is tested
                        await trio.sleep(5)

    # One that is lost keeps the run from ending at once.
    async def before(ctx: memable.Context) -> None:
        await register(ctx, undo, "a", "b")
        await ctx.suspend(memable.SuspendPoint("before", bool))

    store = await suspended(before)
    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow], shutdown_timeout=0) as engine:
        began = trio.current_time()
        with pytest.raises(memable.WorkflowBlockedError, match="CompensationLostError"):
            await engine.cancel(workflow, INSTANCE)
        assert trio.current_time() - began < MEMO_ONLY_PATIENCE_S + 10
    assert undo.done == ["a"]


async def test_memo_only_run_waits_for_a_body_that_sleeps_plainly(autojump_clock: object):
    """
    Time that a body takes between its memos, plain sleeps included, is given to it.
    """
    undo = Undo()

    async def body(ctx: memable.Context) -> None:
        for name in ("a", "b", "c"):
            await trio.sleep(MEMO_ONLY_PATIENCE_S - 10)
            await register(ctx, undo, name)
        await ctx.suspend(GO)

    store = await suspended(body)
    assert 3 * (MEMO_ONLY_PATIENCE_S - 10) <= await cancel_in(store, body) < 3 * MEMO_ONLY_PATIENCE_S
    assert undo.done == ["c", "b", "a"]


@pytest.mark.parametrize("how", ["swallows", "returns", "raises", "spins a little"])
async def test_memo_only_body_may_end_as_it_likes(how: str, autojump_clock: object):
    """
    What the body makes of its cancellation does not matter: the instance is Cancelled, and undone.
    """
    undo = Undo()

    async def body(ctx: memable.Context) -> int | None:
        await register(ctx, undo, "a")
        try:
            await ctx.suspend(GO)
        except trio.Cancelled:
            match how:
                case "returns":
                    return None
                case "raises":
                    raise ValueError("bad") from None
                case "spins a little":
                    for _ in range(5):
                        with trio.CancelScope() as scope:
                            scope.cancel()
                            await trio.lowlevel.checkpoint()
            if how == "raises":
                raise
            try:
                await ctx.step("instead", never)
            except trio.Cancelled:
                pass
            except memable.RunEndedError:
                pass
        return None

    store = await suspended(body)
    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        assert await engine.cancel(workflow, INSTANCE, reason="why")
        state = await engine.state(workflow, INSTANCE)
    assert isinstance(state, memable.Cancelled)
    assert state.reason == "why"
    assert undo.done == ["a"]


@pytest.mark.parametrize("how", ["open", "resume"])
@pytest.mark.parametrize("is_begun", [False, True])
async def test_code_error_in_a_memo_only_run_keeps_compensations_from_running_in_a_wrong_order(
    is_begun: bool, how: str, autojump_clock: object
):
    """
    A bad deploy that hides newer compensations runs no older one: it is Blocked, and mended code undoes all in order.
    """
    undo = Undo()
    copies: list[memable.InMemoryStore] = []
    is_mended = True

    async def undo_last(_name: str) -> None:
        if not copies:
            copies.append(store.crashed_copy())

    async def body(ctx: memable.Context) -> None:
        await register(ctx, undo, "a")
        await ctx.step("step", nothing, returns=None if is_mended else int)
        # Within a fan-out: it is not only lost, but the newest.
        await ctx.fan_out_settled("f", child, [0])
        await register(ctx, undo, "b")
        await register(ctx, undo_last if not copies else undo, "c")
        await ctx.suspend(GO)

    async def child(ctx: memable.Context, item: int) -> None:
        await register(ctx, undo, f"of child {item}")

    store = await suspended(body)
    workflow = workflow_of(body)
    if is_begun:
        async with memable.open_engine(store, workflows=[workflow]) as engine:
            await engine.cancel(workflow, INSTANCE, reason="why")
        store = copies[0]
        undo.done.clear()
    else:
        copies.append(store)
    is_mended = False
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        with pytest.raises(memable.WorkflowBlockedError, match="TypeMismatchError") as caught:
            await engine.cancel(workflow, INSTANCE, reason="why")
        assert caught.value.key == "step"
        assert undo.done == []
        is_mended = True
        if how == "resume":
            state = await ending_of(await engine.resume(workflow, INSTANCE))
    if how == "open":
        async with memable.open_engine(store, workflows=[workflow]) as engine:
            state = await ending_of(await engine.get(workflow, INSTANCE))
    assert state == memable.Cancelled("why")
    assert undo.done == ["c", "b", "of child 0", "a"]


async def test_code_error_behind_the_last_compensation_does_not_keep_them_from_running(autojump_clock: object):
    """
    What is wrong with the code behind all that is registered does not matter to an instance that is cancelled.
    """
    undo = Undo()
    is_mended = True

    async def body(ctx: memable.Context) -> None:
        await register(ctx, undo, "a", "b")
        if not is_mended:
            await ctx.step("a", never)
        await ctx.suspend(GO)

    store = await suspended(body)
    is_mended = False
    await cancel_in(store, body)
    assert undo.done == ["b", "a"]


async def test_memo_only_run_stops_with_the_engine(autojump_clock: object):
    """
    An engine that stops during a run over memos leaves the cancellation to the next one.
    """
    undo = Undo()
    runs: list[int] = []

    async def body(ctx: memable.Context) -> None:
        runs.append(1)
        if len(runs) == 2:
            await trio.sleep(20)
        await register(ctx, undo, "a")
        await ctx.suspend(GO)

    store = await suspended(body)
    workflow = workflow_of(body)
    async with (
        trio.open_nursery() as nursery,
        memable.open_engine(store, workflows=[workflow], shutdown_timeout=1) as engine,
    ):

        async def cancel() -> None:
            with pytest.raises(memable.EngineStoppedError, match=r"engine\.cancel"):
                await engine.cancel(workflow, INSTANCE, reason="why")

        nursery.start_soon(cancel)
        await trio.sleep(5)
    assert undo.done == []
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await engine.wait_all()
        assert await engine.state(workflow, INSTANCE) == memable.Cancelled("why")
    assert undo.done == ["a"]
    assert len(runs) == 3


async def test_memo_only_run_looks_running_from_outside(autojump_clock: object):
    """
    While it runs over its memos, the instance is executing, not Suspended, and takes no signal.
    """
    undo = Undo()
    runs: list[int] = []

    async def body(ctx: memable.Context) -> None:
        runs.append(1)
        if len(runs) == 1:
            await register(ctx, undo, "a")
            await ctx.suspend(GO)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ctx.suspend, GO)
            await trio.sleep(20)
            await register(ctx, undo, "a")

    store = await suspended(body)
    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine, trio.open_nursery() as nursery:
        nursery.start_soon(engine.cancel, workflow, INSTANCE)
        await trio.sleep(5)
        assert await engine.state(workflow, INSTANCE) == memable.Started()
        with pytest.raises(memable.SignalRejectedError, match="being cancelled"):
            await engine.signal(workflow, INSTANCE, GO, True)
        with pytest.raises(memable.InstanceBusyError, match="while the instance runs"):
            await engine.resume(workflow, INSTANCE, anew=True)
    assert undo.done == ["a"]


async def test_memo_only_run_replays(autojump_clock: object):
    """
    ctx.replaying is True throughout, and no status is announced anew.
    """
    undo = Undo()
    replaying: list[bool] = []

    async def body(ctx: memable.Context) -> None:
        ctx.set_status("at work")
        replaying.append(ctx.replaying)
        await register(ctx, undo, "a")
        replaying.append(ctx.replaying)
        await ctx.suspend(GO)

    store = await suspended(body)
    await cancel_in(store, body)
    assert replaying[:3] == [False, False, True]
    assert all(replaying[2:])


async def test_memo_only_run_of_a_fan_out_that_failed_registers_all_of_its_children(autojump_clock: object):
    """
    Children that were cancelled by the failure of another have registered, too: all of them are undone.
    """
    undo = Undo()
    copies: list[memable.InMemoryStore] = []
    store = memable.InMemoryStore()

    async def crash(name: str) -> None:
        copies.append(store.crashed_copy())
        await undo(name)

    async def child(ctx: memable.Context, item: int) -> None:
        await ctx.compensate("undo", crash, f"child {item}")
        if item == 1:
            await trio.testing.wait_all_tasks_blocked()
            raise ValueError("failed")
        await ctx.suspend(GO)

    async def body(ctx: memable.Context) -> None:
        await ctx.fan_out("f", child, [0, 1, 2])

    assert isinstance(await run_body(body, store=store), memable.Failed)
    assert sorted(undo.done) == ["child 0", "child 1", "child 2"]
    order, undo.done = undo.done, []
    assert isinstance(await run_body(body, store=copies[0]), memable.Failed)
    assert undo.done == order


@pytest.mark.parametrize("how", ["registers and waits", "waits", "waits for a task", "waits in a fan-out"])
async def test_memo_only_run_goes_on_behind_a_fan_out_that_failed(how: str, autojump_clock: object):
    """
    Children that wait where the failure of another cancelled them hold nothing up: what comes after is registered.
    """
    undo = Undo()
    copies: list[memable.InMemoryStore] = []
    store = memable.InMemoryStore()

    async def crash(name: str) -> None:
        copies.append(store.crashed_copy())
        await undo(name)

    async def grandchild(ctx: memable.Context, item: int) -> None:
        await ctx.compensate("undo", crash, "grandchild")
        await ctx.suspend(GO)

    async def child(ctx: memable.Context, item: int) -> None:
        if item == 0:
            if how != "waits":
                await ctx.compensate("undo", crash, "child 0")
            if how == "waits for a task":
                await trio.sleep_forever()
            if how == "waits in a fan-out":
                await ctx.fan_out("inner", grandchild, [0])
            await ctx.suspend(GO)
        if item == 1:
            await ctx.compensate("undo", crash, "child 1")
            return
        await trio.testing.wait_all_tasks_blocked()
        raise ValueError("failed")

    async def body(ctx: memable.Context) -> None:
        await ctx.compensate("first", crash, "first")
        with pytest.raises(memable.ChildFailedError):
            await ctx.fan_out("f", child, [0, 1, 2])
        await ctx.compensate("last", crash, "last")
        raise ValueError("failed")

    assert isinstance(await run_body(body, store=store), memable.Failed)
    order, undo.done = undo.done, []
    assert order[0] == "last"
    assert order[-1] == "first"
    began = trio.current_time()
    assert isinstance(await run_body(body, store=copies[0]), memable.Failed)
    assert undo.done == order
    is_patient = how == "waits for a task"
    assert (trio.current_time() - began >= MEMO_ONLY_PATIENCE_S) == is_patient
