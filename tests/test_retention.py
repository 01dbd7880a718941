"""
Retention: what has ended is removed after a while; nothing else ever is.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import memable
from memable._records import InstanceRecord
from stores import Gate, HookedStore, Place, failing_at
from test_compensate import GO

DAY = 86400.0


@memable.workflow
async def quick(ctx: memable.Context) -> str:
    return "done"


@memable.workflow
async def failing(ctx: memable.Context) -> None:
    raise ValueError


@memable.workflow
async def waiting(ctx: memable.Context) -> None:
    await ctx.suspend(GO)


@memable.workflow
async def endless(ctx: memable.Context) -> None:
    await trio.sleep_forever()


def kept_for(name: str, retention: Any) -> memable.Workflow[[], str]:
    return memable.workflow(name=name, retention=retention)(quick.fn)


async def ids_in(engine: memable.Engine) -> list[str]:
    return [metadata.instance_id for metadata in await engine.list_instances()]


# When --------------------------------------------------------------------------------------------------------------


async def test_retention_removes_what_has_ended_when_it_is_over(place: Place, autojump_clock: object):
    """
    So many seconds after its end, not before, an instance is gone: Completed, Failed or Cancelled.
    """
    opened = memable.open_engine(place.store(), workflows=[quick, failing, endless], retention=100)
    async with opened as engine:
        await (await engine.invoke(quick, instance_id="completed")).wait()
        await (await engine.invoke(failing, instance_id="failed")).wait()
        await engine.invoke(endless, instance_id="cancelled")
        await engine.cancel(endless, "cancelled")
        await trio.sleep(99.9)
        assert await ids_in(engine) == ["completed", "failed", "cancelled"]
        await trio.sleep(0.2)
        assert await ids_in(engine) == []
        assert await engine.metadata(quick, "completed") is None
        for call in (engine.state, engine.history, engine.get, engine.cancel, engine.delete, engine.resume):
            with pytest.raises(memable.InstanceNotFoundError, match="'completed'"):
                await call(quick, "completed")
    async with memable.open_engine(place.store()) as engine:
        assert await ids_in(engine) == []


async def test_retention_counts_from_the_end_not_the_start(autojump_clock: object):
    """
    However long an instance took, it is kept as long after its end.
    """

    @memable.workflow
    async def slow(ctx: memable.Context) -> None:
        await ctx.sleep("nap", 1000)

    async with memable.open_engine(memable.InMemoryStore(), workflows=[slow], retention=100) as engine:
        await engine.invoke(slow, instance_id="i")
        await trio.sleep(1099)
        assert await ids_in(engine) == ["i"]
        await trio.sleep(2)
        assert await ids_in(engine) == []


async def test_retention_of_a_workflow_overrides_the_engine(autojump_clock: object):
    """
    A workflow's own retention counts, None for ever included; one that says nothing takes the engine's.
    """
    workflows = [kept_for("short", 10), kept_for("ever", None), kept_for("zero", 0), quick]
    async with memable.open_engine(memable.InMemoryStore(), workflows=workflows, retention=100) as engine:
        for workflow in workflows:
            await engine.invoke(workflow, instance_id=workflow.name)
        await engine.wait_all()
        await trio.sleep(1)
        assert await ids_in(engine) == ["short", "ever", "quick"]
        await trio.sleep(10)
        assert await ids_in(engine) == ["ever", "quick"]
        await trio.sleep(100 * DAY)
        assert await ids_in(engine) == ["ever"]


async def test_retention_is_for_ever_if_nothing_is_said(autojump_clock: object):
    """
    By default nothing is removed, and no timer keeps a virtual clock going.
    """
    async with memable.open_engine(memable.InMemoryStore(), workflows=[quick]) as engine:
        await (await engine.invoke(quick, instance_id="i")).wait()
        await trio.sleep(1000 * DAY)
        assert await ids_in(engine) == ["i"]


async def test_retention_of_zero_still_gives_the_result_to_who_waits(autojump_clock: object):
    """
    Whoever waits for the end, or watches the states, is told of it before the instance is gone.
    """
    # Which task looks first is up to trio: as often as that, each of them does.
    results: list[str] = []
    states: list[memable.WorkflowState] = []
    workflow = kept_for("zero", 0)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        for number in range(300):
            invocation = await engine.invoke(workflow, instance_id=str(number))
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def watch(invocation: memable.Invocation[str] = invocation) -> None:
                    states.extend([state async for state in invocation.states()])

                results.append(await invocation.result())
        await trio.testing.wait_all_tasks_blocked()
        assert await ids_in(engine) == []
    assert results == ["done"] * 300
    assert states.count(memable.Completed()) == 300


async def test_retention_never_touches_what_runs_or_waits(place: Place, autojump_clock: object):
    """
    Running, Suspended and Blocked instances stay, however old they are, in this engine and the next.
    """

    @memable.workflow
    async def blocked(ctx: memable.Context) -> None:
        await ctx.step("_", trio.sleep, 0)

    workflows = [waiting, endless, blocked]
    for _ in range(2):
        async with memable.open_engine(
            place.store(), workflows=workflows, retention=0, shutdown_timeout=0, max_parked=0
        ) as engine:
            for workflow in workflows:
                await engine.invoke(workflow, instance_id=workflow.name)
            await trio.sleep(1000 * DAY)
            assert sorted(await ids_in(engine)) == ["blocked", "endless", "waiting"]


# Restarts ----------------------------------------------------------------------------------------------------------


async def test_retention_goes_on_across_restarts(place: Place, autojump_clock: object):
    """
    What was not due at a shutdown is due at its time in the next engine; what became due meanwhile, at once.
    """
    async with memable.open_engine(place.store(), workflows=[quick], retention=100) as engine:
        await (await engine.invoke(quick, instance_id="early")).wait()
        await trio.sleep(60)
        await (await engine.invoke(quick, instance_id="late")).wait()
    await trio.sleep(60)
    async with memable.open_engine(place.store(), workflows=[quick], retention=100) as engine:
        await trio.sleep(1)
        assert await ids_in(engine) == ["late"]
        await trio.sleep(50)
        assert await ids_in(engine) == []


async def test_retention_of_today_counts(autojump_clock: object):
    """
    It is not recorded: a longer or a shorter one holds for what has ended before, too.
    """
    store = memable.InMemoryStore()
    async with memable.open_engine(store, workflows=[quick], retention=10) as engine:
        await (await engine.invoke(quick, instance_id="i")).wait()
    async with memable.open_engine(store, workflows=[quick], retention=1000) as engine:
        await trio.sleep(500)
        assert await ids_in(engine) == ["i"]
    async with memable.open_engine(store, workflows=[quick], retention=100) as engine:
        await trio.sleep(1)
        assert await ids_in(engine) == []


@pytest.mark.parametrize("resumes", [False, True])
async def test_retention_waits_for_the_workflow_to_be_registered(resumes: bool, autojump_clock: object):
    """
    What a workflow that is not registered says is not known: its instances stay until it is.
    """
    store = memable.InMemoryStore()
    workflow = kept_for("w", 10)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await (await engine.invoke(workflow, instance_id="i")).wait()
    async with memable.open_engine(store, retention=0, resume_on_start=resumes) as engine:
        await trio.sleep(100)
        assert await ids_in(engine) == ["i"]
        engine.register(workflow)
        await trio.sleep(1)
        assert await ids_in(engine) == []


async def test_retention_survives_a_crash_within_it(autojump_clock: object):
    """
    A crash before the removal is durable removes later; a crash behind it does not bring anything back.
    """
    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []

    async def copy(records: Any) -> None:
        if records[0].kind == "instance_retired":
            copies.append(store.crashed_copy())

    async with memable.open_engine(HookedStore(store, before_append=copy), workflows=[quick], retention=10) as engine:
        for number in range(3):
            await engine.invoke(quick, instance_id=str(number))
        await trio.sleep(20)
        copies.append(store.crashed_copy())
    for crashed, expected in zip(copies, (["0", "1", "2"], []), strict=True):
        async with memable.open_engine(crashed) as engine:
            assert await ids_in(engine) == expected


async def test_retention_that_cannot_be_recorded_is_a_storage_error(autojump_clock: object):
    """
    A store that does not take a removal stops the engine; nothing is removed.
    """
    store = memable.InMemoryStore()
    with pytest.raises(memable.StorageError, match="no space left"):
        async with memable.open_engine(
            failing_at("instance_retired", store), workflows=[quick], retention=10
        ) as engine:
            await engine.invoke(quick, instance_id="i")
            await trio.sleep(20)
    async with memable.open_engine(store) as engine:
        assert await ids_in(engine) == ["i"]


# Others meanwhile --------------------------------------------------------------------------------------------------


async def test_retention_begins_again_after_a_resume(autojump_clock: object):
    """
    An instance that was resumed meanwhile is kept as long after its new end.
    """
    fails = [True]

    @memable.workflow
    async def twice(ctx: memable.Context) -> None:
        if fails:
            fails.clear()
            raise ValueError
        await trio.sleep(80)

    async with memable.open_engine(memable.InMemoryStore(), workflows=[twice], retention=100) as engine:
        await (await engine.invoke(twice, instance_id="i")).wait()
        await trio.sleep(50)
        await engine.resume(twice, "i")
        await trio.sleep(60)
        # At its first date it runs; at its second it is young.
        assert await ids_in(engine) == ["i"]
        await trio.sleep(100)
        assert await ids_in(engine) == ["i"]
        await trio.sleep(30)
        assert await ids_in(engine) == []


async def test_retention_meets_a_resume_on_its_way(autojump_clock: object):
    """
    An instance that somebody is just resuming when it is due is left alone.
    """
    gate = Gate("instance_resumed")
    runs: list[int] = []

    @memable.workflow
    async def twice(ctx: memable.Context) -> None:
        runs.append(1)
        if len(runs) == 1:
            raise ValueError
        await trio.sleep(50)

    store = HookedStore(before_append=gate.pass_)
    async with memable.open_engine(store, workflows=[twice], retention=10) as engine, trio.open_nursery() as nursery:
        await (await engine.invoke(twice, instance_id="i")).wait()
        await trio.sleep(9)
        nursery.start_soon(engine.resume, twice, "i")
        await trio.sleep(9)
        gate.is_open.set()
        await trio.sleep(9)
        assert await engine.state(twice, "i") == memable.Started()
        await trio.sleep(60)
        assert await ids_in(engine) == []


async def test_retention_frees_the_id(autojump_clock: object):
    """
    An id is idempotent until its instance is removed; then it begins a new one, with any input.
    """
    calls: list[str] = []

    @memable.workflow
    async def work(ctx: memable.Context, text: str) -> str:
        calls.append(ctx.step_id("k"))
        return text

    async with memable.open_engine(memable.InMemoryStore(), workflows=[work], retention=10) as engine:
        old = await engine.invoke(work, "a", instance_id="i")
        assert await old.result() == "a"
        assert await (await engine.invoke(work, "a", instance_id="i")).result() == "a"
        with pytest.raises(memable.InstanceConflictError, match="another input"):
            await engine.invoke(work, "b", instance_id="i")
        await trio.sleep(11)
        assert await (await engine.invoke(work, "b", instance_id="i")).result() == "b"
        with pytest.raises(memable.InstanceNotFoundError, match="i"):
            await old.state()
        await trio.sleep(5)
        assert await ids_in(engine) == ["i"]
        await trio.sleep(6)
        assert await ids_in(engine) == []
    assert len(set(calls)) == 2


async def test_handles_on_what_was_removed_know_nothing(autojump_clock: object):
    """
    Every question to a handle on a removed instance is InstanceNotFoundError; so is a new subscription.
    """
    async with memable.open_engine(memable.InMemoryStore(), workflows=[quick], retention=10) as engine:
        invocation = await engine.invoke(quick, instance_id="i")
        await invocation.wait()
        stream = invocation.states()
        await trio.sleep(11)
        for call in (invocation.state, invocation.wait, invocation.result, stream.__anext__):
            with pytest.raises(memable.InstanceNotFoundError, match="'i'"):
                await call()
        with pytest.raises(memable.InstanceNotFoundError, match="'i'"):
            await engine.subscribe(quick, "i").__anext__()


# Children ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def family(**settings: Any) -> AsyncIterator[tuple[memable.Engine, memable.Workflow[..., Any]]]:
    """
    Open an engine in which a parent has called a child, which has ended, and waits.
    """

    @memable.workflow(name="parent")
    async def parent(ctx: memable.Context) -> None:
        await ctx.call("call", quick)
        await ctx.start("start", quick)
        await ctx.suspend(GO)

    async with memable.open_engine(memable.InMemoryStore(), workflows=[parent, quick], **settings) as engine:
        await engine.invoke(parent, instance_id="p")
        await trio.sleep(1)
        yield engine, parent


async def test_retention_keeps_children_while_their_parent_lives(autojump_clock: object):
    """
    A child that has ended is kept until its parent has, then as its own retention says; a detached one lives alone.
    """
    async with family(retention=100) as (engine, parent):
        await trio.sleep(1000)
        assert await ids_in(engine) == ["p", "p/call"]
        await engine.signal(parent, "p", GO, True)
        await trio.sleep(1)
        # Its own time was over long ago.
        assert await ids_in(engine) == ["p"]
        await trio.sleep(100)
        assert await ids_in(engine) == []


async def test_retention_of_a_child_is_not_held_up_by_others_that_are_younger(autojump_clock: object):
    """
    A child whose parent has just ended is removed at once, though others of its workflow are due later.
    """
    async with family(retention=100) as (engine, parent):
        await trio.sleep(1000)
        await engine.invoke(quick, instance_id="younger")
        await trio.sleep(1)
        await engine.signal(parent, "p", GO, True)
        await trio.sleep(1)
        assert sorted(await ids_in(engine)) == ["p", "younger"]


# Many --------------------------------------------------------------------------------------------------------------


COUNT = 20_000


@pytest.mark.slow
def test_retention_of_many_instances_at_once_is_linear_and_lets_others_run():
    """
    20,000 instances that are due at once are removed in batches; meanwhile other tasks get their turn.
    """
    took: dict[int, float] = {}

    async def main(count: int) -> None:
        store = memable.InMemoryStore()
        batches: list[int] = []

        async def note(records: list[InstanceRecord]) -> None:
            if records[0].kind == "instance_retired":
                batches.append(len(records))

        async with memable.open_engine(store, workflows=[quick]) as engine:
            for number in range(count):
                await engine.invoke(quick, instance_id=str(number))
            await engine.wait_all()
        await trio.sleep(DAY)
        turns: list[float] = []
        hooked = HookedStore(store, before_append=note)
        async with (
            memable.open_engine(hooked, workflows=[quick], retention=60) as engine,
            trio.open_nursery() as nursery,
        ):

            @nursery.start_soon
            async def look() -> None:
                while True:
                    turns.append(time.process_time())
                    await trio.lowlevel.checkpoint()

            began = time.process_time()
            while store._kept.journals:
                await trio.lowlevel.checkpoint()
            took[count] = time.process_time() - began
            nursery.cancel_scope.cancel()
            assert await engine.list_instances() == []
        assert sum(batches) == count
        assert max(batches) <= 1000
        longest = max(later - sooner for sooner, later in pairwise(turns))
        assert longest < 0.5

    for count in (COUNT // 10, COUNT):
        trio.run(main, count, clock=MockClock(autojump_threshold=0))
    # Ten times as many; the rest is for noise.
    assert took[COUNT] < 40 * took[COUNT // 10]


async def test_retention_of_many_dates_needs_no_timer_for_each(autojump_clock: object):
    """
    One timer waits for what is due first, however many dates there are.
    """
    async with memable.open_engine(memable.InMemoryStore(), workflows=[quick], retention=100) as engine:
        for number in range(50):
            await engine.invoke(quick, instance_id=str(number))
            await trio.sleep(1)
        assert len(engine._services.timers) == 1
        await trio.sleep(75.5)
        assert await ids_in(engine) == [str(number) for number in range(26, 50)]
