"""
Deleting: what has ended can be removed now.
"""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

import memable
from running import kinds_of
from stores import Gate, HookedStore, Place, failing_at
from test_compensate import GO


@memable.workflow
async def quick(ctx: memable.Context, text: str = "done") -> str:
    return text


@memable.workflow
async def waiting(ctx: memable.Context) -> None:
    await ctx.suspend(GO)


@memable.workflow
async def endless(ctx: memable.Context) -> None:
    await trio.sleep_forever()


@pytest.mark.parametrize("kind", ["completed", "failed", "cancelled"])
@pytest.mark.parametrize("is_registered", [False, True])
async def test_delete_removes_what_has_ended(kind: str, is_registered: bool, place: Place, autojump_clock: object):
    """
    A terminal instance is gone when delete returns, in this engine and the next; its workflow need not be registered.
    """

    @memable.workflow(name="w")
    async def work(ctx: memable.Context) -> None:
        match kind:
            case "failed":
                raise ValueError
            case "cancelled":
                await trio.sleep_forever()

    async with memable.open_engine(place.store(), workflows=[work]) as engine:
        invocation = await engine.invoke(work, instance_id="i")
        await trio.testing.wait_all_tasks_blocked()
        if kind == "cancelled":
            await engine.cancel(work, "i")
        await invocation.wait()
    async with memable.open_engine(place.store(), workflows=[work] if is_registered else []) as engine:
        invocation = await engine.get("w", "i")
        await engine.delete("w", "i")
        assert await engine.list_instances() == []
        assert await engine.metadata("w", "i") is None
        with pytest.raises(memable.InstanceNotFoundError, match="'i'"):
            await invocation.state()
        with pytest.raises(memable.InstanceNotFoundError, match="'i'"):
            await engine.delete("w", "i")
    async with memable.open_engine(place.store(), workflows=[work]) as engine:
        assert await engine.list_instances() == []


@pytest.mark.parametrize("kind", ["running", "parked", "passivated", "blocked", "interrupted", "unregistered"])
async def test_delete_refuses_what_has_not_ended(kind: str, place: Place, autojump_clock: object):
    """
    An instance that is not terminal is InstanceBusyError, whether it runs here or not, and unharmed.
    """

    @memable.workflow(name="w")
    async def work(ctx: memable.Context) -> None:
        match kind:
            case "parked" | "passivated":
                await ctx.suspend(GO)
            case "blocked":
                await ctx.step("_", trio.sleep, 0)
            case _:
                await trio.sleep_forever()

    max_parked = 0 if kind == "passivated" else 1000
    async with memable.open_engine(
        place.store(), workflows=[work], max_parked=max_parked, shutdown_timeout=0
    ) as engine:
        await engine.invoke(work, instance_id="i")
        await trio.testing.wait_all_tasks_blocked()
        if kind not in ("interrupted", "unregistered"):
            before = await engine.state(work, "i")
            with pytest.raises(memable.InstanceBusyError, match="deleting it"):
                await engine.delete(work, "i")
            assert await engine.state(work, "i") == before
    if kind in ("interrupted", "unregistered"):
        workflows = [work] if kind == "interrupted" else []
        async with memable.open_engine(place.store(), workflows=workflows, resume_on_start=False) as engine:
            with pytest.raises(memable.InstanceBusyError, match="deleting it"):
                await engine.delete("w", "i")
            assert [metadata.instance_id for metadata in await engine.list_instances()] == ["i"]


async def test_delete_refuses_what_is_unknown(autojump_clock: object):
    """
    An unknown instance and a stopped engine have their errors.
    """
    async with memable.open_engine(memable.InMemoryStore(), workflows=[quick]) as engine:
        with pytest.raises(memable.InstanceNotFoundError, match="'nobody'"):
            await engine.delete(quick, "nobody")
        await engine.stop()
        with pytest.raises(memable.EngineStoppedError, match=r"engine\.delete"):
            await engine.delete(quick, "nobody")


async def test_delete_frees_the_id(autojump_clock: object):
    """
    The id of a deleted instance may be used again at once, with another input; nothing is left of the first.
    """
    async with memable.open_engine(memable.InMemoryStore(), workflows=[quick]) as engine:
        for text in ("a", "b", "c"):
            assert await (await engine.invoke(quick, text, instance_id="i")).result() == text
            await engine.delete(quick, "i")
        assert await engine.list_instances() == []


async def test_delete_right_after_the_result_works(autojump_clock: object):
    """
    Whoever has got the result can delete the instance at once.
    """
    async with memable.open_engine(memable.InMemoryStore(), workflows=[quick]) as engine:
        for number in range(50):
            await (await engine.invoke(quick, instance_id=str(number))).result()
            await engine.delete(quick, str(number))
        assert await engine.list_instances() == []


async def test_delete_is_a_checkpoint_and_cancelled_before_it_removes_nothing(autojump_clock: object):
    """
    Cancelled before the removal is written, delete changes nothing.
    """
    async with memable.open_engine(memable.InMemoryStore(), workflows=[quick]) as engine:
        await (await engine.invoke(quick, instance_id="i")).result()
        with trio.CancelScope() as scope:
            scope.cancel()
            await engine.delete(quick, "i")
        assert await engine.state(quick, "i") == memable.Completed()
        with trio.testing.assert_checkpoints():
            await engine.delete(quick, "i")


def test_delete_cancelled_at_any_point_removes_wholly_or_not_at_all():
    """
    Cancelled at any of its schedule points, delete leaves the instance as it was, or removes it with its children.
    """
    seen: set[int] = set()

    @memable.workflow
    async def parent(ctx: memable.Context) -> None:
        await ctx.call("call", quick)

    async def slowly(_records: object) -> None:
        await trio.lowlevel.checkpoint()

    async def main(ticks: int) -> None:
        store = HookedStore(before_append=slowly)
        async with memable.open_engine(store, workflows=[parent, quick]) as engine:
            await (await engine.invoke(parent, instance_id="p")).result()
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    @nursery.start_soon
                    async def interrupt() -> None:
                        for _ in range(ticks):
                            await trio.lowlevel.cancel_shielded_checkpoint()
                        scope.cancel()

                    await engine.delete(parent, "p")
            left = len(await engine.list_instances())
            assert left in (0, 2)
            seen.add(left)
            # Nothing is held up by it.
            if left:
                await engine.delete(parent, "p")
                assert await engine.list_instances() == []

    for ticks in range(15):
        trio.run(main, ticks, clock=MockClock(autojump_threshold=0))
    assert seen == {0, 2}


async def test_deletes_at_once_remove_once(autojump_clock: object):
    """
    Of several deletes at once one removes the instance; for the others it is not found.
    """
    store = memable.InMemoryStore()
    told: list[str] = []
    async with memable.open_engine(store, workflows=[quick]) as engine:
        await (await engine.invoke(quick, instance_id="i")).result()

        async def delete() -> None:
            try:
                await engine.delete(quick, "i")
                told.append("removed")
            except memable.InstanceNotFoundError:
                told.append("not found")

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(delete)
    assert sorted(told) == ["not found"] * 3 + ["removed"]


async def test_calls_that_meet_a_delete_on_its_way_do_not_find_the_instance(autojump_clock: object):
    """
    What waits for a removal to become durable is told that there is no such instance; an invoke begins a new one.
    """
    gate = Gate("instance_retired")
    told: list[str] = []
    store = HookedStore(before_append=gate.pass_)
    async with memable.open_engine(store, workflows=[quick]) as engine:
        invocation = await engine.invoke(quick, "a", instance_id="i")
        await invocation.result()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.delete, quick, "i")
            await gate.is_reached.wait()

            async def ask(name: str) -> None:
                calls = {
                    "state": lambda: engine.state(quick, "i"),
                    "resume": lambda: engine.resume(quick, "i", forget=["k"]),
                    "cancel": lambda: engine.cancel(quick, "i"),
                    "signal": lambda: engine.signal(quick, "i", GO, True),
                    "settle": lambda: engine.settle(quick, "i", "k", value=1),
                    "history": lambda: engine.history(quick, "i"),
                    "get": lambda: engine.get(quick, "i"),
                    "delete": lambda: engine.delete(quick, "i"),
                }
                with pytest.raises(memable.InstanceNotFoundError, match="'i'"):
                    await calls[name]()
                told.append(name)

            names = ("state", "resume", "cancel", "signal", "settle", "history", "get", "delete")
            for name in names:
                nursery.start_soon(ask, name)
            await trio.testing.wait_all_tasks_blocked()
            gate.is_open.set()
            await trio.testing.wait_all_tasks_blocked()
        assert sorted(told) == sorted(names)
        assert await (await engine.invoke(quick, "b", instance_id="i")).result() == "b"


@pytest.mark.parametrize("name", ["state", "history", "invoke", "result"])
async def test_delete_that_overtakes_a_call_comes_wholly_before_it(name: str, place: Place, autojump_clock: object):
    """
    A call that has found an instance and is about to read it does not find it; an invoke begins a new one.
    """
    is_loading, is_removed = trio.Event(), trio.Event()
    told: list[object] = []

    async def hold(_number: int) -> None:
        is_loading.set()
        await is_removed.wait()

    async with memable.open_engine(place.store(), workflows=[quick]) as engine:
        await (await engine.invoke(quick, "a", instance_id="i")).result()
    async with memable.open_engine(HookedStore(place.store(), before_load=hold), workflows=[quick]) as engine:

        async def call() -> object:
            if name == "invoke":
                return await (await engine.invoke(quick, "b", instance_id="i")).result()
            if name == "result":
                return await (await engine.get(quick, "i")).result()
            return await (engine.state if name == "state" else engine.history)(quick, "i")

        async def ask() -> None:
            try:
                told.append(await call())
            except memable.MemableError as error:
                told.append(type(error))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await is_loading.wait()
            await engine.delete(quick, "i")
            is_removed.set()
    assert told == ["b" if name == "invoke" else memable.InstanceNotFoundError]


async def test_delete_that_cannot_be_recorded_is_a_storage_error(autojump_clock: object):
    """
    A store that does not take the removal stops the engine, and the instance is there in the next.
    """
    store = memable.InMemoryStore()
    with pytest.raises(memable.StorageError, match="no space left"):
        async with memable.open_engine(failing_at("instance_retired", store), workflows=[quick]) as engine:
            await (await engine.invoke(quick, instance_id="i")).result()
            await engine.delete(quick, "i")
    async with memable.open_engine(store) as engine:
        assert await engine.state(quick, "i") == memable.Completed()


# Children ----------------------------------------------------------------------------------------------------------


@memable.workflow
async def inner(ctx: memable.Context) -> None:
    await ctx.call("quick", quick)


@memable.workflow
async def outer(ctx: memable.Context, waits: bool) -> None:
    await ctx.call("inner", inner)
    await ctx.start("alone", quick)
    if waits:
        await ctx.suspend(GO)


async def test_delete_removes_children_that_were_waited_for(place: Place, autojump_clock: object):
    """
    The children that it waited for go with it, and theirs; detached ones live alone.
    """
    async with memable.open_engine(place.store(), workflows=[outer, inner, quick]) as engine:
        await (await engine.invoke(outer, False, instance_id="p")).result()
        await engine.wait_all()
        await engine.delete(outer, "p")
        assert [metadata.instance_id for metadata in await engine.list_instances()] == ["p/alone"]
        await engine.delete(quick, "p/alone")
    async with memable.open_engine(place.store()) as engine:
        assert await engine.list_instances() == []


async def test_delete_keeps_children_while_their_parent_lives(autojump_clock: object):
    """
    A child that has ended is InstanceBusyError as long as its parent is not terminal.
    """
    async with memable.open_engine(memable.InMemoryStore(), workflows=[outer, inner, quick]) as engine:
        await (await engine.invoke(outer, True, instance_id="p")).wait()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(memable.InstanceBusyError, match="deleting it"):
            await engine.delete(inner, "p/inner")
        await engine.delete(quick, "p/alone")
        await engine.signal(outer, "p", GO, True)
        await (await engine.get(outer, "p")).result()
        await engine.delete(inner, "p/inner")
        assert [metadata.instance_id for metadata in await engine.list_instances()] == ["p"]


async def test_delete_leaves_a_child_that_somebody_has_resumed(autojump_clock: object):
    """
    A child that runs again on its own behalf is not removed beneath it.
    """

    @memable.workflow
    async def child(ctx: memable.Context) -> None:
        if not is_mended:
            raise ValueError
        await trio.sleep(100)

    @memable.workflow
    async def parent(ctx: memable.Context) -> None:
        await ctx.call("call", child)

    is_mended = False
    async with memable.open_engine(memable.InMemoryStore(), workflows=[parent, child]) as engine:
        assert isinstance(await (await engine.invoke(parent, instance_id="p")).wait(), memable.Failed)
        is_mended = True
        again = await engine.resume(child, "p/call")
        await engine.delete(parent, "p")
        assert await engine.state(child, "p/call") == memable.Started()
        assert await again.result() is None


async def test_delete_meets_a_resume_of_a_child_on_its_way(autojump_clock: object):
    """
    A child that is just being resumed when its parent is deleted stays, whoever is first.
    """
    for _ in range(10):
        gate = Gate("instance_resumed")
        rounds: list[int] = []

        @memable.workflow
        async def child(ctx: memable.Context, rounds: list[int] = rounds) -> None:
            rounds.append(1)
            raise ValueError

        @memable.workflow
        async def parent(ctx: memable.Context, child: memable.Workflow[[], None] = child) -> None:  # type: ignore[assignment]
            for name in ("a", "b"):
                with pytest.raises(memable.ChildFailedError, match="ValueError"):
                    await ctx.call(name, child)

        inner_store = memable.InMemoryStore()
        store = HookedStore(inner_store, before_append=gate.pass_)
        async with memable.open_engine(store, workflows=[parent, child]) as engine, trio.open_nursery() as nursery:
            await (await engine.invoke(parent, instance_id="p")).wait()
            nursery.start_soon(engine.resume, child, "p/b")
            await gate.is_reached.wait()
            nursery.start_soon(engine.delete, parent, "p")
            await trio.testing.wait_all_tasks_blocked()
            gate.is_open.set()
            await engine.wait_all()
            await trio.testing.wait_all_tasks_blocked()
            assert [metadata.instance_id for metadata in await engine.list_instances()] == ["p/b"]
        assert kinds_of(inner_store)[-1] == "instance_failed"
