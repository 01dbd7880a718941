"""
Retention against everything that may come in between, with a store that offers what is due in front, removable or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

import memable
from memable import _removing
from memable._header import InstanceHeader
from memable._store._protocol import OpenStore
from running import kinds_of
from stores import Gate, HookedStore, Place
from test_compensate import GO
from wrapped_store import WrappedStore, Wrapper

DAY = 86400.0


@memable.workflow
async def quick(ctx: memable.Context) -> str:
    return "done"


@memable.workflow
async def failing(ctx: memable.Context) -> None:
    raise ValueError


async def ids_in(engine: memable.Engine) -> list[str]:
    return [metadata.instance_id for metadata in await engine.list_instances()]


class Offering(Wrapper):
    """
    An open store that offers every ended instance, kept for its parent or not, and counts how often it is asked.
    """

    def __init__(self, inner: OpenStore, calls: Counter[str]) -> None:
        super().__init__(inner)
        self.calls = calls

    async def ended(self, workflow: str, *, until: float, limit: int) -> Sequence[InstanceHeader]:
        self.calls["ended"] += 1
        return await self._ended(workflow, until, limit)

    async def _ended(self, workflow: str, until: float, limit: int) -> Sequence[InstanceHeader]:
        ends = [
            (header.completed_at, header.number, header)
            for header in await self.inner.headers(workflow=workflow)
            if header.completed_at is not None and header.completed_at <= until
        ]
        return [header for _, _, header in sorted(ends)][:limit]

    async def first_end(self, workflow: str) -> float | None:
        self.calls["first_end"] += 1
        found = await self._ended(workflow, float("inf"), 1)
        return found[0].completed_at if found else None


def offering(calls: Counter[str], store: Any = None) -> WrappedStore:
    """
    Return a store that offers what is kept for parents, too.
    """
    return WrappedStore(lambda opened: Offering(opened, calls), memable.InMemoryStore() if store is None else store)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Remove two instances in a batch.
    """
    monkeypatch.setattr(_removing, "MAX_BATCH", 2)
    monkeypatch.setattr(_removing, "AT_ONCE", 2)


# What it costs -----------------------------------------------------------------------------------------------------


async def test_retention_asks_nothing_of_what_is_not_due(autojump_clock: object):
    """
    However many have ended, opening asks once for each workflow when the first of them did, and for none of them.
    """
    store = memable.InMemoryStore()
    async with memable.open_engine(store, workflows=[quick]) as engine:
        for number in range(100):
            await engine.invoke(quick, instance_id=str(number))
    calls: Counter[str] = Counter()
    opened = memable.open_engine(offering(calls, store), workflows=[quick, failing], retention=365 * DAY)
    async with opened as engine:
        await trio.sleep(364 * DAY)
        assert calls == {"first_end": 2}
        assert len(engine._services.timers) == 1
        await trio.sleep(2 * DAY)
        assert await ids_in(engine) == []


async def test_retention_for_ever_costs_nothing(autojump_clock: object):
    """
    Without a retention, or with one that no date can hold, the store is never asked who has ended.
    """
    for retention in (None, float("inf"), 1e300):
        calls: Counter[str] = Counter()
        async with memable.open_engine(offering(calls), workflows=[quick], retention=retention) as engine:
            await (await engine.invoke(quick, instance_id="i")).result()
            await trio.sleep(1000 * 365 * DAY)
            assert await ids_in(engine) == ["i"]
            assert calls == {}
            assert len(engine._services.timers) == 0


@pytest.mark.parametrize("retention", [0, 0.1, 1 / 3, 1e-9, 12345.678, 7e8 + 0.7])
async def test_retention_comes_to_an_end_whatever_is_rounded(retention: float, autojump_clock: object):
    """
    Of dates that cannot be told exactly none is too early, none is missed, and none is asked for again and again.
    """
    calls: Counter[str] = Counter()
    async with memable.open_engine(offering(calls), workflows=[quick], retention=retention) as engine:
        for number in range(50):
            await (await engine.invoke(quick, instance_id=str(number))).result()
            await trio.sleep(0.1 + number / 7)
            if retention > 1000:
                assert len(await ids_in(engine)) == number + 1
        await trio.sleep(retention + 0.01)
        assert await ids_in(engine) == []
    assert calls["ended"] <= 4 * 50


@pytest.mark.slow
async def test_retention_of_ten_thousand_at_once_lets_work_through(place: Place, autojump_clock: object):
    """
    While ten thousand are removed, a workflow's steps get through in between, and each is removed once.
    """
    count = 10_000
    turns: list[int] = []

    @memable.workflow
    async def working(ctx: memable.Context) -> None:
        for number in range(5):
            await ctx.step(f"step-{number}", trio.lowlevel.checkpoint)
            turns.append(len(removed))

    removed: list[int] = []

    async def note(records: Sequence[Any]) -> None:
        batch = [record.instance for record in records if record.kind == "instance_retired"]
        assert len(batch) <= _removing.AT_ONCE
        removed.extend(batch)

    async with memable.open_engine(place.store(), workflows=[quick], retention=DAY) as engine:
        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(engine.invoke, quick)
                if number % 1000 == 0:
                    await trio.lowlevel.checkpoint()
        await engine.wait_all()
    await trio.sleep(2 * DAY)
    store = HookedStore(place.store(), before_append=note)
    async with memable.open_engine(store, workflows=[quick, working], retention=DAY) as engine:
        await (await engine.invoke(working, instance_id="w")).result()
        assert turns[0] < count
        await trio.sleep(1)
        assert await ids_in(engine) == ["w"]
    assert len(removed) == len(set(removed)) == count


# Clocks ------------------------------------------------------------------------------------------------------------


async def test_retention_after_a_jump_of_the_clock_removes_all_that_is_due(place: Place, autojump_clock: MockClock):
    """
    A clock that jumps over many dates has all of those removed at once, and none whose date is still to come.
    """
    async with memable.open_engine(place.store(), workflows=[quick], retention=DAY) as engine:
        for number in range(10):
            await engine.invoke(quick, instance_id=str(number))
            await trio.sleep(3600)
        autojump_clock.jump(DAY - 5 * 3600)
        await trio.sleep(1)
        assert await ids_in(engine) == [str(number) for number in range(6, 10)]
        autojump_clock.jump(365 * DAY)
        await trio.sleep(1)
        assert await ids_in(engine) == []


def test_retention_goes_on_from_the_newest_record_where_the_clock_is_behind(place: Place):
    """
    A clock that is behind the store's newest record removes nothing early, and what was due then, at once.
    """

    async def fill() -> None:
        async with memable.open_engine(place.store(), workflows=[quick]) as engine:
            await engine.invoke(quick, instance_id="old")
            await trio.sleep(100 * DAY)
            await engine.invoke(quick, instance_id="new")

    async def look() -> None:
        async with memable.open_engine(place.store(), workflows=[quick], retention=50 * DAY) as engine:
            await trio.sleep(1)
            assert await ids_in(engine) == ["new"]
            await trio.sleep(49 * DAY)
            assert await ids_in(engine) == ["new"]
            await trio.sleep(2 * DAY)
            assert await ids_in(engine) == []

    trio.run(fill, clock=MockClock(autojump_threshold=0))
    trio.run(look, clock=MockClock(autojump_threshold=0))


# Others at the same time -------------------------------------------------------------------------------------------


def test_resume_at_any_moment_around_a_removal_finds_it_or_not():
    """
    An instance that is resumed when it is due runs again and is kept as long again, or is gone: nothing in between.
    """
    seen: set[bool] = set()

    async def main(ticks: int) -> None:
        runs: list[int] = []
        name = f"w{ticks}"

        @memable.workflow(name=name)
        async def twice(ctx: memable.Context) -> None:
            runs.append(1)
            if len(runs) == 1:
                raise ValueError

        store = memable.InMemoryStore()
        async with memable.open_engine(store, workflows=[twice], retention=10) as engine:
            await (await engine.invoke(twice, instance_id="i")).wait()
            await trio.sleep(10 if ticks else 9.999)
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            try:
                await (await engine.resume(twice, "i")).result()
            except memable.InstanceNotFoundError:
                seen.add(False)
                assert runs == [1]
                assert await ids_in(engine) == []
            else:
                seen.add(True)
                assert runs == [1, 1]
                await trio.sleep(9.9)
                assert await ids_in(engine) == ["i"]
                await trio.sleep(0.2)
                assert await ids_in(engine) == []
        assert kinds_of(store) == []

    # The first is too early for a removal, the last too late for a resume; trio chooses who is first in between.
    for ticks in range(15):
        trio.run(main, ticks, clock=MockClock(autojump_threshold=0))
    assert seen == {False, True}


@pytest.mark.parametrize("is_deleted_first", [False, True])
async def test_delete_and_retention_at_once_remove_once(is_deleted_first: bool, autojump_clock: object):
    """
    Whoever is first removes the instance; the other finds that it is gone, and the store is told once.
    """
    gate = Gate("instance_retired")
    retired: list[int] = []

    async def pass_(records: Sequence[Any]) -> None:
        retired.extend(record.instance for record in records if record.kind == "instance_retired")
        await gate.pass_(records)

    store = HookedStore(before_append=pass_)
    async with memable.open_engine(store, workflows=[quick], retention=10) as engine, trio.open_nursery() as nursery:
        await (await engine.invoke(quick, instance_id="i")).result()
        if is_deleted_first:
            await trio.sleep(9)
            nursery.start_soon(engine.delete, quick, "i")
        await gate.is_reached.wait()
        if not is_deleted_first:

            @nursery.start_soon
            async def delete() -> None:
                with pytest.raises(memable.InstanceNotFoundError, match="'i'"):
                    await engine.delete(quick, "i")

        await trio.sleep(20)
        gate.is_open.set()
        await trio.sleep(20)
        assert await ids_in(engine) == []
    assert retired == [1]


@attrs.define(eq=False)
class Held:
    """
    Holds up whoever loads a journal, from a moment on, until it is opened. Give ``pass_`` as the hook.
    """

    begins: bool = False
    is_open: trio.Event = attrs.field(factory=trio.Event)

    async def pass_(self, _number: int) -> None:
        if self.begins:
            await self.is_open.wait()


async def test_busy_instance_in_front_does_not_hold_up_those_behind_it(small_batches: None, autojump_clock: object):
    """
    While somebody looks after the ones that ended first, the others are removed when they are due, and those then.
    """
    held = Held()
    calls: Counter[str] = Counter()
    store = offering(calls, HookedStore(before_load=held.pass_))
    names = [str(number) for number in range(12)]
    async with memable.open_engine(store, workflows=[failing], retention=100) as engine:
        for name in names:
            await (await engine.invoke(failing, instance_id=name)).wait()
            await trio.sleep(1)
        held.begins = True
        async with trio.open_nursery() as nursery:
            for name in names[:5]:
                nursery.start_soon(engine.resume, failing, name)
            await trio.sleep(92.5)
            assert await ids_in(engine) == names
            # Those from 5 on become due one after the other; at each look two batches in front are busy.
            for first in range(6, 12):
                await trio.sleep(3 if first == 6 else 1)
                assert set(await ids_in(engine)) <= {*names[:5], *names[first:]}
            await trio.sleep(3)
            assert await ids_in(engine) == names[:5]
            calls.clear()
            await trio.sleep(100)
            assert calls["ended"] < 5 * 100
            held.is_open.set()
        await trio.sleep(99)
        assert await ids_in(engine) == names[:5]
        await trio.sleep(2)
        assert await ids_in(engine) == []


# Children ----------------------------------------------------------------------------------------------------------


def family(child_retention: float | None = 100) -> tuple[memable.Workflow[..., Any], memable.Workflow[..., Any]]:
    """
    Return a parent that calls five children and fails, or waits once somebody has resumed it, and the children.
    """
    runs: list[int] = []

    @memable.workflow(name="child", retention=child_retention)
    async def child(ctx: memable.Context) -> None:
        pass

    @memable.workflow(name="parent", retention=None)
    async def parent(ctx: memable.Context) -> None:
        runs.append(1)
        for number in range(5):
            await ctx.call(f"c{number}", child)
        if len(runs) == 1:
            raise ValueError
        await ctx.suspend(GO)

    return parent, child


@pytest.mark.parametrize("offers", [False, True])
@pytest.mark.parametrize("max_parked", [0, 1000])
async def test_children_of_a_parent_that_was_resumed_are_kept_until_it_ends(
    offers: bool, max_parked: int, small_batches: None, place: Place, autojump_clock: object
):
    """
    Ended children stay once their parent goes on, hold up nobody, cost next to nothing, and go when it ends.
    """
    parent, child = family()
    calls: Counter[str] = Counter()
    store = offering(calls, place.store()) if offers else place.store()
    children = [f"p/c{number}" for number in range(5)]
    async with memable.open_engine(store, workflows=[parent, child], max_parked=max_parked) as engine:
        assert isinstance(await (await engine.invoke(parent, instance_id="p")).wait(), memable.Failed)
        await trio.sleep(90)
        await (await engine.resume(parent, "p")).wait()
        for number in range(4):
            await engine.invoke(child, instance_id=f"young-{number}")
        await trio.sleep(99)
        assert await ids_in(engine) == ["p", *children, *(f"young-{number}" for number in range(4))]
        # Each batch of those that stay lets the next look rest for a second.
        await trio.sleep(4)
        assert await ids_in(engine) == ["p", *children]
        calls.clear()
        await trio.sleep(365 * DAY)
        assert sum(calls.values()) == 0
        assert await ids_in(engine) == ["p", *children]
        await engine.signal(parent, "p", GO, True)
        await (await engine.get(parent, "p")).result()
        await trio.sleep(0.1)
        assert await ids_in(engine) == ["p"]


@pytest.mark.parametrize("offers", [False, True])
async def test_children_of_a_parent_that_was_resumed_are_kept_by_the_next_engine(
    offers: bool, place: Place, autojump_clock: object
):
    """
    A parent that waits keeps its ended children in an engine that finds both so, registered or not.
    """
    parent, child = family()
    children = [f"p/c{number}" for number in range(5)]
    async with memable.open_engine(place.store(), workflows=[parent, child]) as engine:
        await (await engine.invoke(parent, instance_id="p")).wait()
        await trio.sleep(90)
        await (await engine.resume(parent, "p")).wait()
    await trio.sleep(90)
    for registered in ([child], [parent, child]):
        store = offering(Counter(), place.store()) if offers else place.store()
        async with memable.open_engine(store, workflows=registered) as engine:
            await trio.sleep(DAY)
            assert await ids_in(engine) == ["p", *children]
    async with memable.open_engine(place.store(), workflows=[child]) as engine:
        # One that is not registered can be cancelled all the same.
        await engine.cancel("parent", "p")
        await trio.sleep(1)
        assert await ids_in(engine) == ["p"]


async def test_children_that_stay_are_asked_past_now_and_then_only(small_batches: None, autojump_clock: object):
    """
    Where a store offers many that stay, each look at what is due costs by them: looks are rare then, and miss nobody.
    """
    parent, child = family()
    calls: Counter[str] = Counter()
    async with memable.open_engine(offering(calls), workflows=[parent, child]) as engine:
        await (await engine.invoke(parent, instance_id="p")).wait()
        await (await engine.resume(parent, "p")).wait()
        for number in range(200):
            await engine.invoke(child, instance_id=f"young-{number}")
            await trio.sleep(0.1)
        await trio.sleep(79)
        assert len(await ids_in(engine)) == 206
        calls.clear()
        # They are due ten times a second; of the five that stay there are two batches.
        await trio.sleep(24)
        assert len(await ids_in(engine)) == 6
        assert calls["ended"] < 15 * 15


async def test_children_are_not_removed_while_their_parent_is_being_resumed(autojump_clock: object):
    """
    From the moment in which somebody begins to resume a parent, its ended children stay.
    """
    gate = Gate("instance_resumed")
    parent, child = family()
    store = offering(Counter(), HookedStore(before_append=gate.pass_))
    opened = memable.open_engine(store, workflows=[parent, child])
    async with opened as engine, trio.open_nursery() as nursery:
        await (await engine.invoke(parent, instance_id="p")).wait()
        await trio.sleep(99)
        nursery.start_soon(engine.resume, parent, "p")
        await gate.is_reached.wait()
        await trio.sleep(10)
        assert len(await ids_in(engine)) == 6
        gate.is_open.set()
        await trio.sleep(1000)
        assert len(await ids_in(engine)) == 6


async def test_children_whose_parents_resume_comes_to_nothing_go_all_the_same(autojump_clock: object):
    """
    A parent that somebody wanted to resume and did not is no reason to keep its children.
    """
    held = Held()
    parent, child = family()
    store = HookedStore(before_load=held.pass_)
    opened = memable.open_engine(store, workflows=[parent, child])
    async with opened as engine, trio.open_nursery() as nursery:
        await (await engine.invoke(parent, instance_id="p")).wait()
        await trio.sleep(99)
        held.begins = True

        @nursery.start_soon
        async def resume() -> None:
            with pytest.raises(memable.UnknownKeyError, match="nothing"):
                await engine.resume(parent, "p", forget=["nothing"])

        await trio.sleep(10)
        assert len(await ids_in(engine)) == 6
        held.is_open.set()
        await trio.sleep(1.1)
        assert await ids_in(engine) == ["p"]


# Stopping ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["leave", "stop", "raise"])
async def test_engine_that_stops_ends_the_batch_and_leaves_the_rest(
    how: str, small_batches: None, place: Place, autojump_clock: object
):
    """
    An engine that stops in the middle of many removals does not wait for all of them: the next one goes on.
    """
    gate = Gate("instance_retired")
    async with memable.open_engine(place.store(), workflows=[quick]) as engine:
        for number in range(10):
            await engine.invoke(quick, instance_id=str(number))
    await trio.sleep(100)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def open_gate() -> None:
            await gate.is_reached.wait()
            await trio.testing.wait_all_tasks_blocked()
            gate.is_open.set()

        store = HookedStore(place.store(), before_append=gate.pass_)
        try:
            async with memable.open_engine(store, workflows=[quick], retention=10) as engine:
                await gate.is_reached.wait()
                if how == "stop":
                    await engine.stop()
                if how == "raise":
                    raise LookupError
        except LookupError:
            pass
    async with memable.open_engine(place.crash().store()) as engine:
        assert await ids_in(engine) == [str(number) for number in range(2, 10)]
    async with memable.open_engine(place.store(), workflows=[quick], retention=10) as engine:
        await trio.sleep(1)
        assert await ids_in(engine) == []


@pytest.mark.parametrize("method", ["ended", "first_end"])
async def test_store_that_cannot_tell_who_has_ended_stops_the_engine(method: str, autojump_clock: object):
    """
    A StorageError at looking for what is due comes out of the block, as itself.
    """

    async def fail(*_: object, **__: object) -> Any:
        raise memable.StorageError(location="the test's store", problem="cannot be read")

    class Failing(Wrapper):
        pass

    setattr(Failing, method, fail)
    with pytest.raises(memable.StorageError, match="cannot be read"):
        async with memable.open_engine(WrappedStore(Failing), workflows=[quick], retention=10) as engine:
            await engine.invoke(quick)
            await trio.sleep_forever()
