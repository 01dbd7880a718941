"""
What an engine does with what earlier engines left unfinished.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any, NoReturn

import pytest
import trio
from trio.testing import MockClock

import memable
from memable import MetadataStatus
from memable._clock import current_clock
from memable._encoded import Encoded
from memable._records import InstanceCompleted, InstanceRecord, InstanceStarted, InstanceSuspended
from memable._recovering import RECOVERY_BATCH
from memable._timers import Timers
from running import kinds_of, workflow_of
from stores import Gate, HookedStore, MemoryPlace, Place
from wrapped_store import WrappedStore, Wrapper


@memable.workflow
async def endless(ctx: memable.Context) -> None:
    await trio.sleep_forever()


@memable.workflow
async def quick(ctx: memable.Context) -> str:
    return "done"


def quick_as(name: str) -> memable.Workflow[..., Any]:
    """
    Return a workflow of that name that returns at once.
    """
    return memable.workflow(name=name)(quick.fn)


async def leave_running(place: Place, workflow: memable.Workflow[..., Any], *ids: str) -> None:
    """
    Leave instances of *workflow* running in a store that is closed in order.
    """
    async with memable.open_engine(place.store(), workflows=[workflow], shutdown_timeout=0) as engine:
        for instance_id in ids:
            await engine.invoke(workflow, instance_id=instance_id)
        await trio.testing.wait_all_tasks_blocked()


async def crash_in(place: Place, workflow: memable.Workflow[..., Any], **settings: Any) -> Place:
    """
    Open the store, let everything run as far as it gets, and return what a crash would leave.
    """
    async with memable.open_engine(place.store(), workflows=[workflow], shutdown_timeout=0, **settings):
        await trio.testing.wait_all_tasks_blocked()
        return place.crash()


async def metadata_in(place: Place) -> memable.WorkflowMetadata:
    """
    Return what a store holds of the instance, without touching the store.
    """
    async with memable.open_engine(place.crash().store(), resume_on_start=False) as engine:
        metadata = await engine.metadata("endless", "i")
    assert metadata is not None
    return metadata


@pytest.mark.parametrize("how", ["crash", "shutdown"])
async def test_open_runs_unfinished_instances_again(how: str, place: Place, autojump_clock: object):
    """
    Instances that were Running at a crash or a shutdown run again at the next open, over their memos.
    """
    calls: list[str] = []

    async def step(name: str) -> None:
        calls.append(name)

    async def body(ctx: memable.Context) -> None:
        replaying.append(ctx.replaying)
        await ctx.step("step", step, ctx.instance_id)
        if len(calls) < 3 or len(replaying) == 3:
            await trio.sleep_forever()

    replaying: list[bool] = []
    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow], shutdown_timeout=0) as engine:
        for instance_id in ("a", "b", "c"):
            await engine.invoke(workflow, instance_id=instance_id)
        await trio.testing.wait_all_tasks_blocked()
        crashed = place.crash()
    async with memable.open_engine((crashed if how == "crash" else place).store(), workflows=[workflow]) as engine:
        for instance_id in ("a", "b", "c"):
            assert await (await engine.get(workflow, instance_id)).result() is None
    assert calls == ["a", "b", "c"]
    assert replaying == [False] * 3 + [True] * 3


async def test_open_leaves_ended_instances_alone(place: Place, autojump_clock: object):
    """
    Completed, Failed and Cancelled instances do not run again.
    """
    runs: list[str] = []

    @memable.workflow
    async def work(ctx: memable.Context) -> None:
        runs.append(ctx.instance_id)
        if ctx.instance_id == "failed":
            raise ValueError
        if ctx.instance_id == "cancelled":
            await trio.sleep_forever()

    async with memable.open_engine(place.store(), workflows=[work]) as engine:
        for instance_id in ("completed", "failed", "cancelled"):
            await engine.invoke(work, instance_id=instance_id)
        await trio.testing.wait_all_tasks_blocked()
        await engine.cancel(work, "cancelled")
    async with memable.open_engine(place.store(), workflows=[work]) as engine:
        await engine.wait_all()
        statuses = [metadata.status.value for metadata in await engine.list_instances()]
    assert statuses == ["completed", "failed", "cancelled"]
    assert sorted(runs) == ["cancelled", "completed", "failed"]


async def test_open_with_resume_on_start_off_runs_nothing(place: Place, autojump_clock: object):
    """
    With resume_on_start=False nothing runs until somebody resumes it, registering the same workflow again included.
    """
    await leave_running(place, endless, "i")
    mended = quick_as("endless")
    async with memable.open_engine(place.store(), workflows=[mended], resume_on_start=False) as engine:
        engine.register(mended)
        await engine.wait_all()
        await trio.sleep(3600)
        assert await engine.state(mended, "i") == memable.Started()
        with pytest.raises(memable.StaleRunningError, match="recorded as running, but not running in this engine"):
            await anext(engine.subscribe(mended, "i"))
        assert await (await engine.resume(mended, "i")).result() == "done"


async def test_open_waits_in_wait_all_for_what_it_recovers(place: Place, autojump_clock: object):
    """
    wait_all includes the instances that were recovered.
    """
    await leave_running(place, endless, "a", "b")
    async with memable.open_engine(place.store(), workflows=[quick_as("endless")]) as engine:
        await engine.wait_all()
        statuses = {metadata.status for metadata in await engine.list_instances()}
        assert statuses == {MetadataStatus.COMPLETED}


async def test_open_runs_blocked_instances_again(place: Place, autojump_clock: object):
    """
    An instance that was Blocked by its code runs again at the next open, over its memos.
    """
    calls: list[int] = []

    async def step() -> None:
        calls.append(1)

    async def broken(ctx: memable.Context) -> None:
        await ctx.step("step", step)
        await ctx.step("step", step)

    async def mended(ctx: memable.Context) -> None:
        await ctx.step("step", step)

    async with memable.open_engine(place.store(), workflows=[workflow_of(broken)]) as engine:
        state = await (await engine.invoke("w", instance_id="i")).wait()
        assert isinstance(state, memable.Blocked)
    async with memable.open_engine(place.store(), workflows=[workflow_of(broken)]) as engine:
        await engine.wait_all()
        assert isinstance(await engine.state("w", "i"), memable.Blocked)
    async with memable.open_engine(place.store(), workflows=[workflow_of(mended)]) as engine:
        assert await (await engine.get("w", "i")).result() is None
        metadata = await engine.metadata("w", "i")
        assert metadata is not None
        assert (metadata.status, metadata.key, metadata.message) == (MetadataStatus.COMPLETED, None, None)
    assert calls == [1]


async def test_body_blocked_in_this_session_is_not_run_again_by_a_recovery(place: Place, autojump_clock: object):
    """
    What becomes Blocked right after its workflow was registered is not taken for something left over.
    """
    runs: list[int] = []

    async def body(ctx: memable.Context) -> None:
        runs.append(1)
        raise memable.MisuseError(problem="on purpose")

    workflow = workflow_of(body)
    gate = Gate("run_started")
    await leave_running(place, endless, "i")
    async with memable.open_engine(HookedStore(place.store(), before_append=gate.pass_)) as engine:
        # Holds up the second recovery behind the first.
        engine.register(endless)
        await gate.is_reached.wait()
        engine.register(workflow)
        gate.is_open.set()
        state = await (await engine.invoke(workflow, instance_id="b")).wait()
        assert isinstance(state, memable.Blocked)
        await engine.cancel(endless, "i")
        await engine.wait_all()
    assert runs == [1]


# Registering later -------------------------------------------------------------------------------------------------


async def test_register_schedules_what_was_recovered(place: Place, autojump_clock: object):
    """
    Instances of a workflow that is registered later run then; wait_all right after it includes them.
    """
    await leave_running(place, endless, "a", "b")
    mended = quick_as("endless")
    async with memable.open_engine(place.store()) as engine:
        await engine.wait_all()
        assert await engine.state("endless", "a") == memable.Started()
        engine.register(mended)
        await engine.wait_all()
        assert await engine.state(mended, "a") == memable.Completed()
        assert await engine.state(mended, "b") == memable.Completed()


async def test_register_right_before_leaving_runs_what_was_recovered(place: Place, autojump_clock: object):
    """
    Leaving the block right after registering a workflow waits for its recovered instances.
    """
    await leave_running(place, endless, "a")
    async with memable.open_engine(place.store()) as engine:
        engine.register(quick_as("endless"))
    async with memable.open_engine(place.store()) as engine:
        assert await engine.state("endless", "a") == memable.Completed()


@memable.workflow
async def napping(ctx: memable.Context) -> str:
    await ctx.sleep("nap", 30)
    return "rested"


@pytest.mark.parametrize("is_late", [False, True], ids=["registered at open", "registered later"])
@pytest.mark.parametrize("how", ["wait_all", "leaving the block"])
async def test_overdue_sleeper_executes_from_the_open_on(
    how: str, is_late: bool, place: Place, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
):
    """
    What is overdue when a store is opened is waited for at once, not only when a timer has told so.

    A regression: until then nobody waited for it, and a block that was left just then cancelled the run.
    """
    async with memable.open_engine(place.store(), workflows=[napping]) as engine:
        await engine.invoke(napping, instance_id="i")
    autojump_clock.jump(1_000)

    async def never_go_off(_timers: Timers) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(Timers, "run", never_go_off)
    async with memable.open_engine(place.store(), workflows=[] if is_late else [napping]) as engine:
        if is_late:
            engine.register(napping)
        if how == "wait_all":
            await engine.wait_all()
            assert await engine.state(napping, "i") == memable.Completed()
    async with memable.open_engine(place.store()) as engine:
        assert await engine.state("napping", "i") == memable.Completed()


@pytest.mark.parametrize("max_parked", [0, 1000], ids=["passivated", "parked"])
def test_sleeper_that_wakes_while_the_block_is_left_comes_to_its_end_or_sleeps_on(max_parked: int):
    """
    Whatever the moment at which a block is left, it does not cancel what has just woken.

    A regression: what woke between the last look at what executes and the end was left as running.
    """

    async def main(ticks: int) -> memable.MetadataStatus:
        store = memable.InMemoryStore()
        async with memable.open_engine(store, workflows=[napping], max_parked=max_parked) as engine:
            await engine.invoke(napping, instance_id="i")
            await trio.sleep(30)
            for _ in range(ticks):
                await trio.lowlevel.cancel_shielded_checkpoint()
        async with memable.open_engine(store) as engine:
            found = await engine.metadata("napping", "i")
            assert found is not None
            return found.status

    # Trio runs tasks in any order: several times, so that each order comes.
    left = {
        trio.run(main, ticks, clock=MockClock(autojump_threshold=0)) for ticks in range(12) for _attempt in range(8)
    }
    assert left <= {MetadataStatus.COMPLETED, MetadataStatus.SUSPENDED}


async def test_register_refuses_what_it_cannot_take(autojump_clock: object):
    """
    Something that is no workflow is a misuse; a second definition of a name a DuplicateWorkflowError; the same is fine.
    """
    async with memable.open_engine(memable.InMemoryStore(), workflows=[quick]) as engine:
        engine.register(quick)
        with pytest.raises(memable.DuplicateWorkflowError, match="'quick': another definition"):
            engine.register(quick_as("quick"))
        with pytest.raises(memable.MisuseError, match="is not a workflow"):
            engine.register(quick.fn)  # type: ignore[arg-type]
        await engine.stop()
        with pytest.raises(memable.EngineStoppedError, match=r"engine\.register"):
            engine.register(endless)


async def test_register_inside_a_body_schedules_what_was_recovered(place: Place, autojump_clock: object):
    """
    A body may register a workflow.
    """
    await leave_running(place, endless, "a")

    async def body(ctx: memable.Context) -> None:
        engine.register(quick_as("endless"))
        await (await engine.get("endless", "a")).result()

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await (await engine.invoke(workflow)).result()


@pytest.mark.parametrize("gated", [False, True])
async def test_subscribe_while_recovery_is_under_way_is_not_stale(gated: bool, place: Place, autojump_clock: object):
    """
    An instance that a registered workflow's recovery is about to run is not told as stale.
    """
    await leave_running(place, endless, "i")
    gate = Gate("run_started")
    if not gated:
        gate.is_open.set()
    seen: list[str] = []
    async with memable.open_engine(HookedStore(place.store(), before_append=gate.pass_)) as engine:
        with pytest.raises(memable.StaleRunningError, match="register its workflow"):
            await anext(engine.subscribe("endless", "i"))
        engine.register(quick_as("endless"))
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def watch() -> None:
                seen.extend([str(state) async for state in engine.subscribe("endless", "i")])

            await trio.testing.wait_all_tasks_blocked()
            gate.is_open.set()
    assert seen == ["started", "completed"]


@pytest.mark.parametrize("operation", ["cancel", "resume", "state", "invoke", "bad resume"])
async def test_operations_while_recovery_is_under_way_lose_nothing(
    operation: str, place: Place, autojump_clock: object
):
    """
    What is asked of an instance while it is being recovered happens to the run that is about to begin, or before it.
    """
    await leave_running(place, endless, "i", "j")
    runs: list[str] = []

    @memable.workflow(name="endless")
    async def mended(ctx: memable.Context) -> None:
        runs.append(ctx.instance_id)
        if ctx.instance_id == "i" and operation == "cancel":
            await trio.sleep_forever()

    for gated in ("run_started", "instance_resumed", "cancel_requested"):
        runs.clear()
        gate = Gate(gated)
        crashed = place.crash()
        async with (
            memable.open_engine(HookedStore(crashed.store(), before_append=gate.pass_)) as engine,
            trio.open_nursery() as nursery,
        ):

            async def ask() -> None:
                match operation:
                    case "cancel":
                        assert await engine.cancel(mended, "i")
                    case "resume":
                        await (await engine.resume(mended, "i")).result()
                    case "state":
                        assert not isinstance(await engine.state(mended, "i"), memable.Blocked)
                    case "invoke":
                        await (await engine.invoke(mended, instance_id="i")).result()
                    case _:
                        with pytest.raises(memable.MemableError, match=r"no record of|while the instance runs"):
                            await engine.resume(mended, "i", forget=["nothing"])

            engine.register(mended)
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            gate.is_open.set()
            await engine.wait_all()
            expected = memable.Cancelled() if operation == "cancel" else memable.Completed()
            assert await engine.state(mended, "i") == expected
            assert await engine.state(mended, "j") == memable.Completed()
        assert sorted(runs) in (["i", "j"], ["j"] if operation == "cancel" else None)


@pytest.mark.parametrize("is_refused", [False, True])
async def test_resume_while_recovery_passes_by_leaves_exactly_one_run(is_refused: bool, autojump_clock: object):
    """
    An instance that is held by a resume while recovery passes by runs once: by the resume, or else by recovery.
    """
    place = MemoryPlace()
    await leave_running(place, endless, "i")
    runs: list[int] = []

    @memable.workflow(name="endless")
    async def mended(ctx: memable.Context) -> None:
        runs.append(1)

    reached = trio.Event()
    go = trio.Event()

    async def slowly(_number: int) -> None:
        reached.set()
        await go.wait()

    hooked = HookedStore(place.store(), before_load=slowly)
    async with memable.open_engine(hooked) as engine, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def ask() -> None:
            if is_refused:
                with pytest.raises(memable.UnknownKeyError, match="no record of 'nothing'"):
                    await engine.resume(mended, "i", forget=["nothing"])
            else:
                await engine.resume(mended, "i")

        # The resume holds the instance while it reads its journal; then recovery comes by.
        engine.add_definition(mended)
        await reached.wait()
        engine._recovery.start(["endless"])
        await trio.testing.wait_all_tasks_blocked()
        go.set()
        await engine.wait_all()
        assert await engine.state(mended, "i") == memable.Completed()
    assert runs == [1]


async def test_recovery_of_many_instances_notices_what_happens_meanwhile(autojump_clock: object):
    """
    While recovery has not got to an instance yet, it is not stale to who watches it, and not run once it is cancelled.
    """
    place = MemoryPlace()
    names = [f"i{number:05}" for number in range(RECOVERY_BATCH + 5)]
    await leave_running(place, endless, *names)
    await leave_running(place, memable.workflow(name="other")(endless.fn), "other")
    gate = Gate("run_started")
    async with memable.open_engine(HookedStore(place.store(), before_append=gate.pass_)) as engine:
        engine.register(quick_as("endless"))
        await gate.is_reached.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.cancel, "endless", names[-1])
            with pytest.raises(memable.StaleRunningError, match="register its workflow"):
                await anext(engine.subscribe("other", "other"))
            assert await anext(engine.subscribe("endless", names[-2])) == memable.Started()
            await trio.testing.wait_all_tasks_blocked()
            gate.is_open.set()
        await engine.wait_all()
        statuses = [metadata.status for metadata in await engine.list_instances("endless")]
    assert statuses == [MetadataStatus.COMPLETED] * (len(names) - 1) + [MetadataStatus.CANCELLED]


@pytest.mark.parametrize("how", ["stop", "leave", "raise"])
async def test_recovery_that_is_under_way_when_the_engine_stops_loses_nothing(how: str, autojump_clock: object):
    """
    An engine may stop while it recovers: what it had not got to yet is still there at the next open.
    """
    place = MemoryPlace()
    names = [f"i{number:05}" for number in range(RECOVERY_BATCH + 5)]
    await leave_running(place, endless, *names)
    gate = Gate("run_started")
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def open_gate() -> None:
            await gate.is_reached.wait()
            await trio.testing.wait_all_tasks_blocked()
            gate.is_open.set()

        try:
            async with memable.open_engine(
                HookedStore(place.store(), before_append=gate.pass_), shutdown_timeout=0
            ) as engine:
                engine.register(quick_as("endless"))
                await gate.is_reached.wait()
                if how == "stop":
                    await engine.stop()
                if how == "raise":
                    raise LookupError
        except LookupError:
            pass
    async with memable.open_engine(place.store(), workflows=[quick_as("endless")]) as engine:
        await engine.wait_all()
        statuses = {metadata.status for metadata in await engine.list_instances()}
    assert statuses == {MetadataStatus.COMPLETED}


async def suspend_many(place: Place, count: int, ended: int = 0) -> None:
    """
    Leave *count* instances of ``endless`` suspended in a store that is closed in order, and so many that have ended.
    """
    async with place.store().open(current_clock()) as store:
        records: list[InstanceRecord] = []
        for index in range(ended + count):
            number, at, session = await store.allocate_number(), float(index), store.session
            name = f"i{index:05}"
            given = Encoded("memable.arguments", b"[]")
            records.append(
                InstanceStarted(
                    instance=number,
                    seq=1,
                    at=at,
                    session=session,
                    workflow="endless",
                    instance_id=name,
                    input=given,
                )
            )
            if index < ended:
                records.append(InstanceCompleted(instance=number, seq=2, at=at, value=Encoded("None", b"null")))
            else:
                records.append(InstanceSuspended(instance=number, seq=2, at=at, path="wait", wake_at=at + 1e12))
        await store.append(records)


async def test_recovery_of_many_suspended_instances_lets_others_run(autojump_clock: object):
    """
    However many instances are suspended, none of them holds up other tasks for long when a store is opened.
    """
    place = MemoryPlace()
    batches = 10
    await suspend_many(place, batches * RECOVERY_BATCH)
    turns = 0
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def look() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async with memable.open_engine(place.store(), workflows=[endless]) as engine:
            nursery.cancel_scope.cancel()
            assert len(engine._services.timers) == batches * RECOVERY_BATCH
    assert turns >= 2 * batches


async def test_recovery_does_not_look_at_what_has_ended(autojump_clock: object):
    """
    Opening asks the store for what goes on, and for nothing else, however many instances have ended.
    """

    class Live(Wrapper):
        async def headers(self, **_: object) -> NoReturn:
            raise AssertionError("asked for all headers")

        async def ended(self, *_: object, **__: object) -> NoReturn:
            raise AssertionError("asked for what has ended")

    place = MemoryPlace()
    await suspend_many(place, 3, ended=100)
    async with memable.open_engine(WrappedStore(Live, place.store()), workflows=[endless]) as engine:
        assert len(engine._services.timers) == 3
        engine.register(quick)
        await engine.wait_all()
    async with memable.open_engine(WrappedStore(Live, place.store())):
        pass


async def test_recovery_between_two_batches_notices_what_happens_meanwhile(autojump_clock: object):
    """
    Instances that are cancelled, signalled or resumed while recovery looks at others are recovered once, or not at all.
    """
    runs: list[str] = []

    @memable.workflow(name="endless")
    async def mended(ctx: memable.Context) -> None:
        runs.append(ctx.instance_id)

    for ticks in range(8):
        runs.clear()
        place = MemoryPlace()
        await suspend_many(place, 2 * RECOVERY_BATCH + 5)
        names = [f"i{index:05}" for index in range(2 * RECOVERY_BATCH + 5)]
        async with memable.open_engine(place.store()) as engine:
            engine.register(mended)
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            assert await engine.cancel(mended, names[-1])
            await (await engine.resume(mended, names[-2])).result()
            await (await engine.resume(mended, names[0])).result()
            await engine.wait_all()
            assert sorted(runs) == [names[0], names[-2]]
            suspended = await engine.list_instances(status=MetadataStatus.SUSPENDED)
            assert [one.instance_id for one in suspended] == names[1:-2]
            # What was cancelled has its alarm until that is due, if it had one.
            assert len(engine._services.timers) - len(suspended) in (0, 1)


@pytest.mark.parametrize("retention", [None, 0])
@pytest.mark.parametrize("is_late", [False, True])
async def test_recovery_tells_a_parent_of_the_child_that_ended_just_before_the_crash(
    is_late: bool, retention: float | None, place: Place, autojump_clock: object
):
    """
    A parent that was not told of its child's end any more goes on, however long the child has been due for removal.
    """
    point = memable.SuspendPoint("go", bool)

    @memable.workflow(name="child")
    async def child(ctx: memable.Context) -> str:
        await ctx.suspend(point)
        return "said"

    @memable.workflow(name="parent", retention=None)
    async def parent(ctx: memable.Context) -> str:
        return await ctx.call("call", child)

    crashed: list[Place] = []

    async def crash(records: Sequence[InstanceRecord]) -> None:
        # The parent is woken by a record of its own, which is written after the end of its child.
        if any(record.kind == "run_started" and record.instance == 1 for record in records) and not crashed:
            crashed.append(place.crash())

    store = HookedStore(place.store(), before_append=crash)
    async with memable.open_engine(store, workflows=[parent, child], max_parked=0) as engine:
        await (await engine.invoke(parent, instance_id="p")).wait()
        await trio.testing.wait_all_tasks_blocked()
        await engine.signal(child, "p/call", point, True)
        await trio.testing.wait_all_tasks_blocked()
    (found,) = crashed
    await trio.sleep(1000)
    registered = [child] if is_late else [parent, child]
    async with memable.open_engine(found.store(), workflows=registered, retention=retention) as engine:
        metadata = await engine.metadata(child, "p/call")
        assert metadata is not None
        assert metadata.status is MetadataStatus.COMPLETED
        if is_late:
            await trio.sleep(1000)
            engine.register(parent)
        assert await (await engine.get(parent, "p")).result() == "said"
        await trio.sleep(1)
        assert (await engine.metadata(child, "p/call") is None) == (retention == 0)


# Crashing again and again ------------------------------------------------------------------------------------------


async def test_recoveries_count_the_crashes_without_a_new_record(place: Place, autojump_clock: object):
    """
    Metadata tells at how many crashes in a row the instance was running; an orderly end of an engine is none.
    """
    await leave_running(place, endless, "i")
    assert (await metadata_in(place)).recoveries == 0
    await leave_running(place, endless)
    assert (await metadata_in(place)).recoveries == 0
    crashed = await crash_in(place, endless)
    for expected in (1, 2, 3):
        crashed = await crash_in(crashed, endless)
        assert (await metadata_in(crashed)).recoveries == expected


async def test_recoveries_begin_again_after_a_new_record(place: Place, autojump_clock: object):
    """
    A crash after a new record is the first in a row again.
    """

    async def nothing() -> None:
        pass

    @memable.workflow(name="endless")
    async def stepping(ctx: memable.Context) -> None:
        await ctx.step(f"step-{len(crashes)}", nothing)
        await trio.sleep_forever()

    crashes: list[int] = []
    await leave_running(place, endless, "i")
    crashed = await crash_in(place, endless)
    for _ in range(5):
        crashes.append(1)
        crashed = await crash_in(crashed, stepping, max_recoveries=2)
        metadata = await metadata_in(crashed)
        assert (metadata.status, metadata.recoveries) == (MetadataStatus.RUNNING, 0)


async def test_recovery_limit_blocks_the_instance_until_somebody_resumes_it(place: Place, autojump_clock: object):
    """
    Running at max_recoveries crashes in a row, an instance is Blocked; opening again does not run it, resume does.
    """
    await leave_running(place, endless, "i", "other")
    crashed = await crash_in(place, endless)
    crashed = await crash_in(crashed, endless, max_recoveries=2)
    runs: list[int] = []

    @memable.workflow(name="endless")
    async def mended(ctx: memable.Context) -> None:
        runs.append(1)

    for _ in range(2):
        async with memable.open_engine(crashed.store(), workflows=[mended], max_recoveries=2) as engine:
            await engine.wait_all()
            state = await engine.state(mended, "i")
            assert isinstance(state, memable.Blocked)
            assert state.key is None
            assert state.error.matches(memable.RecoveryLimitError)
            assert "was running at 2 crashes in a row without a new record" in state.error.message
            metadata = await engine.metadata(mended, "i")
            assert metadata is not None
            assert metadata.recoveries == 2
            assert runs == []
    async with memable.open_engine(crashed.store()) as engine:
        engine.register(mended)
        await engine.wait_all()
        assert runs == []
        await (await engine.resume(mended, "i")).result()
        metadata = await engine.metadata(mended, "i")
        assert metadata is not None
        assert (metadata.status, metadata.recoveries) == (MetadataStatus.COMPLETED, 0)
    assert runs == [1]


async def test_recovery_counts_a_crash_behind_sessions_that_did_not_run_the_instance(
    place: Place, autojump_clock: object
):
    """
    A crash that an instance was running at counts, whatever engines that did not run it have done since.
    """
    await leave_running(place, endless, "i")
    crashed = await crash_in(place, endless)
    async with memable.open_engine(crashed.store()):
        pass
    crashed = await crash_in(crashed, quick)
    crashed = await crash_in(crashed, endless)
    assert (await metadata_in(crashed)).recoveries == 1


async def test_recovery_does_not_count_a_crash_at_which_the_instance_did_not_run(place: Place, autojump_clock: object):
    """
    A crash of an engine that had not registered the workflow, or did not resume it, does not count.
    """
    await leave_running(place, endless, "i")
    crashed = place
    for settings in ({"resume_on_start": False}, {}):
        workflow = endless if settings else quick
        crashed = await crash_in(crashed, workflow, **settings)
    async with memable.open_engine(
        crashed.store(), workflows=[endless], max_recoveries=1, shutdown_timeout=0
    ) as engine:
        await trio.testing.wait_all_tasks_blocked()
        metadata = await engine.metadata(endless, "i")
        assert metadata is not None
        assert (metadata.status, metadata.recoveries) == (MetadataStatus.RUNNING, 0)


async def test_open_that_crashes_before_its_first_record_recovers_next_time(autojump_clock: object):
    """
    A crash in the middle of opening loses nothing.
    """
    store = memable.InMemoryStore()
    await leave_running(MemoryPlace(store), endless, "i")
    copies: list[memable.InMemoryStore] = []

    async def copy(_records: object) -> None:
        copies.append(store.crashed_copy())

    async with memable.open_engine(HookedStore(store, before_append=copy), workflows=[endless], shutdown_timeout=0):
        pass
    assert kinds_of(copies[0])[-1] == "instance_started"
    async with memable.open_engine(copies[0], workflows=[quick_as("endless")]) as engine:
        assert await (await engine.get("endless", "i")).result() == "done"


async def test_unregistered_instances_of_a_recovered_store_stay_as_they_are(
    place: Place, autojump_clock: object, caplog: pytest.LogCaptureFixture
):
    """
    An engine without their workflow changes nothing of unfinished instances.
    """
    await leave_running(place, endless, "i")
    async with memable.open_engine(place.store()) as engine:
        before = await engine.metadata("endless", "i")
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="memable"):
        async with memable.open_engine(place.store(), workflows=[quick]) as engine:
            await engine.wait_all()
            assert await engine.metadata("endless", "i") == before
    assert len(caplog.records) == 1


# Code that changed -------------------------------------------------------------------------------------------------


async def test_instance_whose_input_no_longer_fits_is_blocked(place: Place, autojump_clock: object):
    """
    An input that does not fit the new signature, or its types, blocks the instance; mended code finishes it.
    """

    @memable.workflow(name="work")
    async def old(ctx: memable.Context, name: str) -> str:
        await trio.sleep_forever()
        raise AssertionError

    @memable.workflow(name="work")
    async def more(ctx: memable.Context, name: str, times: int) -> str:
        return name * times

    @memable.workflow(name="work")
    async def other_type(ctx: memable.Context, number: int) -> str:
        return str(number)

    @memable.workflow(name="work")
    async def unreadable(ctx: memable.Context, name: str) -> NoSuchType:  # type: ignore[name-defined]  # noqa: F821
        return name

    @memable.workflow(name="work")
    async def mended(ctx: memable.Context, name: str, times: int = 2) -> str:
        return name * times

    async with memable.open_engine(place.store(), workflows=[old], shutdown_timeout=0) as engine:
        await engine.invoke(old, "Ada", instance_id="i")
    for broken, expected in (
        (more, r"the recorded input does not fit the signature \(name: .*give new parameters a default"),
        (other_type, "asks for builtins.int, but what is recorded is builtins.str"),
        (unreadable, "NoSuchType"),
    ):
        async with memable.open_engine(place.store(), workflows=[broken]) as engine:
            state = await (await engine.get("work", "i")).wait()
            assert isinstance(state, memable.Blocked)
            assert re.search(expected, state.error.message)
    async with memable.open_engine(place.store(), workflows=[mended]) as engine:
        assert await (await engine.get("work", "i")).result() == "AdaAda"
