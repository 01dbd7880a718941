"""
Child instances that live on their own: started once, and not touched by what becomes of their parent.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import memable
from fanning import Work, bring_to_end, explore, result_of
from memable import MetadataStatus
from running import INSTANCE, ending_of
from stores import HookedStore, Place
from waits import P, settle

CHILD = f"{INSTANCE}/start"


class Family:
    """
    A parent that starts one child, which waits for a signal.
    """

    def __init__(self) -> None:
        self.work = Work()
        self.broken = [True]

        @memable.workflow
        async def child(ctx: memable.Context, name: str) -> str:
            await ctx.step("s", self.work.do, name)
            return name * await ctx.suspend(P)

        @memable.workflow(name="w")
        async def parent(ctx: memable.Context, ending: str) -> str:
            name = await ctx.start("start", child, "x")
            if self.broken and ending == "fails":
                raise ValueError
            if self.broken and ending == "waits":
                await trio.sleep_forever()
            return name

        self.child, self.parent = child, parent
        self.all: list[memable.Workflow[..., Any]] = [child, parent]


@pytest.fixture
def family() -> Family:
    return Family()


async def test_start_returns_the_id_of_a_child_that_goes_on(family: Family, place: Place, autojump_clock: MockClock):
    """
    A parent does not wait for what it starts; the child is found by the id, linked to its parent, and ends by itself.
    """
    async with memable.open_engine(place.store(), workflows=family.all) as engine:
        assert await result_of(engine, "w", "ends") == CHILD
        await settle()
        metadata = await engine.metadata(family.child, CHILD)
        assert metadata is not None
        assert (metadata.parent, metadata.status) == ("w/i", MetadataStatus.RUNNING)
        invocation = await engine.get(family.child, CHILD)
        await invocation.wait()
        await engine.signal(family.child, CHILD, P, 3)
        assert await invocation.result() == "xxx"
        told = [(entry.kind, entry.key) for entry in await engine.history(family.parent, INSTANCE)]
        assert ("start", "start") in told


def test_start_starts_once_whatever_crashes(family: Family):
    """
    Wherever the process dies there is one child, started as soon as its parent's record of it is durable.
    """
    family.broken.clear()

    async def is_started(engine: memable.Engine) -> bool:
        return await engine.metadata(family.child, CHILD) is not None

    async def is_noted(engine: memable.Engine) -> bool:
        if await engine.metadata(family.parent, INSTANCE) is None:
            return False
        return any(entry.kind == "start" for entry in await engine.history(family.parent, INSTANCE))

    async def run(engine: memable.Engine) -> tuple[str, int]:
        # Each is followed from the other, as the parent goes on meanwhile.
        assert await is_noted(engine) <= await is_started(engine)
        assert await is_started(engine) <= await is_noted(engine)
        assert await result_of(engine, "w", "ends") == CHILD
        invocation = await engine.get(family.child, CHILD)
        if isinstance(await invocation.wait(), memable.Suspended):
            await engine.signal(family.child, CHILD, P, 1)
        return await invocation.result(), len(await engine.list_instances())

    assert len(explore(run, family.all, expected=("x", 2))) > 20


@pytest.mark.parametrize("ending", ["fails", "waits"])
async def test_start_is_not_undone_with_its_parent(
    ending: str, family: Family, place: Place, autojump_clock: MockClock
):
    """
    A detached child goes on if its parent fails or is cancelled, and is not started again when that is resumed.
    """
    async with memable.open_engine(place.store(), workflows=family.all) as engine:
        invocation = await engine.invoke(family.parent, ending, instance_id=INSTANCE)
        await settle()
        await trio.sleep(5)
        await engine.cancel(family.parent, INSTANCE)
        assert isinstance(await ending_of(invocation), memable.Failed if ending == "fails" else memable.Cancelled)
        assert isinstance(await engine.state(family.child, CHILD), memable.Suspended)
        family.broken.clear()
        assert await (await engine.resume(family.parent, INSTANCE)).result() == CHILD
        assert len(await engine.list_instances()) == 2
    assert family.work.calls == Counter("x")


@pytest.mark.parametrize("how", ["forget", "anew"])
async def test_start_is_not_undone_when_it_is_forgotten(
    how: str, family: Family, place: Place, autojump_clock: MockClock
):
    """
    What lives on its own stays when its parent forgets it: started again, it is the same instance.
    """
    forget: dict[str, Any] = {"anew": True} if how == "anew" else {"forget": ["start"]}
    async with memable.open_engine(place.store(), workflows=family.all) as engine:
        await result_of(engine, "w", "ends")
        assert await (await engine.resume(family.parent, INSTANCE, **forget)).result() == CHILD
        assert len(await engine.list_instances()) == 2
        await engine.wait_all()
        assert isinstance(await engine.state(family.child, CHILD), memable.Suspended)
    assert family.work.calls == Counter("x")


async def test_forgotten_start_meets_a_delete_of_its_child(place: Place, autojump_clock: MockClock):
    """
    A child that is removed while its parent, who has forgotten it, looks at it again is started anew.
    """
    is_loading, is_removed = trio.Event(), trio.Event()
    numbers: list[int] = []

    @memable.workflow
    async def child(ctx: memable.Context) -> int:
        numbers.append(len(numbers))
        return numbers[-1]

    @memable.workflow(name="w")
    async def parent(ctx: memable.Context) -> str:
        return await ctx.start("start", child)

    async def hold(number: int) -> None:
        # The parent's own number is 1.
        if number == 2:
            is_loading.set()
            await is_removed.wait()

    async with memable.open_engine(place.store(), workflows=[child, parent]) as engine:
        assert await (await engine.invoke(parent, instance_id=INSTANCE)).result() == CHILD
        await engine.wait_all()
    store = HookedStore(place.store(), before_load=hold)
    async with memable.open_engine(store, workflows=[child, parent]) as engine:
        invocation = await engine.resume(parent, INSTANCE, forget=["start"])
        await is_loading.wait()
        await engine.delete(child, CHILD)
        is_removed.set()
        assert await invocation.result() == CHILD
        assert await (await engine.get(child, CHILD)).result() == 1


async def test_start_of_a_child_that_is_called_instead_is_refused(
    family: Family, place: Place, autojump_clock: MockClock
):
    """
    A child that lives on its own is not taken for one that its parent waits for.
    """
    runs: list[int] = []

    @memable.workflow(name="w")
    async def parent(ctx: memable.Context) -> str:
        runs.append(1)
        return await (ctx.start if len(runs) == 1 else ctx.call)("start", family.child, "x")

    async with memable.open_engine(place.store(), workflows=[family.child, parent]) as engine:
        await bring_to_end(engine)
        state = await ending_of(await engine.resume(parent, INSTANCE, forget=["start"]))
    assert isinstance(state, memable.Blocked)
    assert "lives on its own, for ctx.start; use a new key for ctx.call" in state.error.message


async def test_start_needs_no_registration_once_it_is_recorded(family: Family, place: Place, autojump_clock: MockClock):
    """
    A recorded start is returned, be the child's workflow registered or not.
    """
    async with memable.open_engine(place.store(), workflows=family.all) as engine:
        assert isinstance(await bring_to_end(engine, "w", "fails"), memable.Failed)
    family.broken.clear()
    async with memable.open_engine(place.store(), workflows=[family.parent]) as engine:
        assert await (await engine.resume(family.parent, INSTANCE)).result() == CHILD


async def test_start_inside_a_fan_out_has_the_childs_path(family: Family, place: Place, autojump_clock: MockClock):
    """
    Its id is its parent's and its path there.
    """

    async def each(ctx: memable.Context, item: str) -> str:
        return await ctx.start("start", family.child, item)

    @memable.workflow(name="w")
    async def parent(ctx: memable.Context) -> list[str]:
        return await ctx.fan_out("fan", each, ["a", "b"])

    async with memable.open_engine(place.store(), workflows=[family.child, parent]) as engine:
        assert await result_of(engine) == ["i/fan/0/start", "i/fan/1/start"]
        assert len(await engine.list_instances("child")) == 2
