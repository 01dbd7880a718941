"""
Running instances again: what is cleared, what is forgotten, and what happens when it is asked at a bad moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import memable
from memable import MetadataStatus
from memable._records import InstanceCancelled, InstanceRecord
from running import ending_of, kinds_of, workflow_of
from stores import Gate, HookedStore, Place, disk_full

MAX_TICKS = 20
"More schedule points than any one call has."


class World:
    """
    What steps do outside, and what the code around them does: the mending of bugs between two runs.
    """

    def __init__(self) -> None:
        self.broken = True
        self.calls: list[str] = []
        self.ids: list[str] = []

    async def good(self, key: str) -> str:
        self.calls.append(key)
        return key

    async def flaky(self, key: str) -> str:
        self.calls.append(key)
        if self.broken:
            raise ValueError(key)
        return key


async def test_resume_runs_a_failed_instance_over_its_memos(place: Place, autojump_clock: object):
    """
    A Failed instance is run again: what is memoised stands, the failure that left the body is tried again.
    """
    world = World()

    async def body(ctx: memable.Context) -> None:
        await ctx.step("good", world.good, "good")
        await ctx.step("bad", world.flaky, "bad")

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        assert isinstance(await (await engine.invoke(workflow, instance_id="i")).wait(), memable.Failed)
        world.broken = False
        invocation = await engine.resume(workflow, "i")
        assert await invocation.state() == memable.Started()
        assert await invocation.result() is None
    assert world.calls == ["good", "bad", "bad"]


@pytest.mark.parametrize("how", ["cause", "context", "group", "deep"])
async def test_resume_clears_the_failures_that_left_the_body(how: str, place: Place, autojump_clock: object):
    """
    Failures among the causes, contexts and group leaves of what left the body are cleared; others stand.
    """
    world = World()

    async def body(ctx: memable.Context) -> None:
        with pytest.raises(memable.StepFailedError, match="caught"):
            await ctx.step("caught", world.flaky, "caught")
        try:
            await ctx.step("bad", world.flaky, "bad")
        except memable.StepFailedError as error:
            match how:
                case "cause":
                    raise RuntimeError("wrapped") from error
                case "context":
                    raise RuntimeError("wrapped")  # noqa: B904
                case "group":
                    raise ExceptionGroup("wrapped", [KeyError(), error]) from None
                case _:
                    try:
                        raise ExceptionGroup("inner", [error]) from None
                    except ExceptionGroup as group:
                        raise RuntimeError("wrapped") from group

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        assert isinstance(await (await engine.invoke(workflow, instance_id="i")).wait(), memable.Failed)
        world.broken = False
        await (await engine.resume(workflow, "i")).result()
    assert world.calls == ["caught", "bad", "bad"]


async def test_resume_gives_a_fresh_retry_budget(place: Place, autojump_clock: object):
    """
    A step whose failure is cleared has all its attempts again, within the same generation.
    """
    world = World()
    policy = memable.RetryPolicy.fixed(2, 1)

    async def body(ctx: memable.Context) -> None:
        world.ids.append(ctx.step_id("bad"))
        await ctx.step("bad", world.flaky, "bad", retry=policy)

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        for runs in (1, 2):
            call = engine.invoke(workflow, instance_id="i") if runs == 1 else engine.resume(workflow, "i")
            state = await ending_of(await call)
            assert isinstance(state, memable.Failed)
            assert "RetriesExhaustedError" in state.error.type
            assert len(world.calls) == 3 * runs
    assert world.ids[0] == world.ids[1]


async def test_resume_of_an_interrupted_instance_keeps_its_attempts(place: Place, autojump_clock: object):
    """
    Resuming an instance that was interrupted in a backoff does not refill the budget of that step.
    """
    world = World()
    policy = memable.RetryPolicy.fixed(1, 100)

    async def body(ctx: memable.Context) -> None:
        await ctx.step("bad", world.flaky, "bad", retry=policy)

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await (await engine.invoke(workflow, instance_id="i")).wait()
    async with memable.open_engine(place.store(), workflows=[workflow], resume_on_start=False) as engine:
        assert isinstance(await ending_of(await engine.resume(workflow, "i")), memable.Failed)
    assert world.calls == ["bad", "bad"]


async def test_resume_runs_a_cancelled_instance(place: Place, autojump_clock: object):
    """
    A Cancelled instance is run again over its memos.
    """
    world = World()

    async def body(ctx: memable.Context) -> None:
        await ctx.step("good", world.good, "good")
        if world.broken:
            await trio.sleep_forever()

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id="i")
        await trio.testing.wait_all_tasks_blocked()
        assert await engine.cancel(workflow, "i", reason="why")
        world.broken = False
        assert await (await engine.resume(workflow, "i")).result() is None
        metadata = await engine.metadata(workflow, "i")
        assert metadata is not None
        assert (metadata.status, metadata.message) == (MetadataStatus.COMPLETED, None)
    assert world.calls == ["good"]


async def test_resume_runs_a_blocked_instance(place: Place, autojump_clock: object):
    """
    A Blocked instance goes on over its memos once its code is mended.
    """
    world = World()

    async def body(ctx: memable.Context) -> None:
        await ctx.step("good", world.good, "good")
        if world.broken:
            await ctx.step("good", world.good, "again")

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        state = await (await engine.invoke(workflow, instance_id="i")).wait()
        assert isinstance(state, memable.Blocked)
        assert state.key == "good"
        world.broken = False
        assert await (await engine.resume(workflow, "i")).result() is None
    assert world.calls == ["good"]


async def test_resume_of_a_completed_instance_runs_nothing(place: Place, autojump_clock: object):
    """
    A Completed instance with nothing to forget is left as it is.
    """
    runs: list[int] = []

    @memable.workflow
    async def work(ctx: memable.Context) -> int:
        runs.append(1)
        return len(runs)

    async with memable.open_engine(place.store(), workflows=[work]) as engine:
        assert await (await engine.invoke(work, instance_id="i")).result() == 1
        invocation = await engine.resume(work, "i")
        assert await invocation.state() == memable.Completed()
        assert await invocation.result() == 1
    assert runs == [1]


async def test_resume_of_an_executing_instance_is_a_handle_on_that_run(place: Place, autojump_clock: object):
    """
    An executing instance goes on undisturbed, and the handle is one on its run.
    """
    runs: list[int] = []

    @memable.workflow
    async def work(ctx: memable.Context) -> int:
        runs.append(1)
        await trio.sleep(1)
        return len(runs)

    async with memable.open_engine(place.store(), workflows=[work]) as engine:
        await engine.invoke(work, instance_id="i")
        assert await (await engine.resume(work, "i")).result() == 1


@pytest.mark.parametrize("settings", [{"forget": ["good"]}, {"anew": True}])
async def test_resume_refuses_to_forget_under_an_executing_instance(
    settings: dict[str, Any], place: Place, autojump_clock: object
):
    """
    Forgetting what an executing instance is built on is an InstanceBusyError, and changes nothing.
    """
    world = World()

    async def body(ctx: memable.Context) -> None:
        await ctx.step("good", world.good, "good")
        await trio.sleep(1)

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        invocation = await engine.invoke(workflow, instance_id="i")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(memable.InstanceBusyError, match="not possible while the instance runs"):
            await engine.resume(workflow, "i", **settings)
        await invocation.result()
    assert world.calls == ["good"]


async def test_resume_of_a_suspended_instance_leaves_it_suspended(place: Place, autojump_clock: object):
    """
    An instance in a backoff is still in it after a resume, and due when it was.
    """
    world = World()

    async def body(ctx: memable.Context) -> None:
        await ctx.step("bad", world.flaky, "bad", retry=memable.RetryPolicy.fixed(5, 100))

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        before = await (await engine.invoke(workflow, instance_id="i")).wait()
        assert isinstance(before, memable.Suspended)
        await trio.sleep(50)
        assert await (await engine.resume(workflow, "i")).wait() == before


# Forgetting --------------------------------------------------------------------------------------------------------


async def test_resume_forgets_the_named_keys_of_a_completed_instance(place: Place, autojump_clock: object):
    """
    Keys that are forgotten run again, as a new generation; all others keep their memos.
    """
    world = World()

    async def body(ctx: memable.Context) -> None:
        for key in ("a", "b", "c"):
            world.ids.append(ctx.step_id(key))
            await ctx.step(key, world.good, key)

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await (await engine.invoke(workflow, instance_id="i")).result()
        await (await engine.resume(workflow, "i", forget=["b", "b"])).result()
    assert world.calls == ["a", "b", "c", "b"]
    first, second = world.ids[:3], world.ids[3:]
    assert [old == new for old, new in zip(first, second, strict=True)] == [True, False, True]


async def test_resume_anew_forgets_everything(place: Place, autojump_clock: object):
    """
    Anew drops all memos and the status message: everything runs again, as a new generation.
    """
    world = World()

    async def body(ctx: memable.Context) -> None:
        seen.append((ctx.replaying, await engine.state(workflow, "i")))
        world.ids.append(ctx.step_id("a"))
        ctx.set_status("working")
        await ctx.step("a", world.good, "a")

    seen: list[tuple[bool, memable.WorkflowState]] = []
    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await (await engine.invoke(workflow, instance_id="i")).result()
        await (await engine.resume(workflow, "i", anew=True)).result()
    assert world.calls == ["a", "a"]
    assert world.ids[0] != world.ids[1]
    assert [state for _, state in seen] == [memable.Started(), memable.Started()]


async def test_resume_refuses_to_forget_an_unknown_key(place: Place, autojump_clock: object):
    """
    One unknown key among those to forget is an UnknownKeyError that names it, and nothing is changed.
    """
    world = World()

    async def body(ctx: memable.Context) -> None:
        await ctx.step("a", world.good, "a")

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        invocation = await engine.invoke(workflow, instance_id="i")
        await invocation.result()
        before = await engine.metadata(workflow, "i")
        with pytest.raises(memable.UnknownKeyError, match="no record of 'b', 'c/1', so nothing") as caught:
            await engine.resume(workflow, "i", forget=["a", "b", "c/1"])
        assert caught.value.keys == ("b", "c/1")
        assert await engine.metadata(workflow, "i") == before
        assert await invocation.state() == memable.Completed()
        # Nobody is left in its way.
        await (await engine.resume(workflow, "i", forget=("a",))).result()
    assert world.calls == ["a", "a"]


@pytest.mark.parametrize("forget", ["fetch:v1", [1], [None]])
async def test_resume_refuses_what_is_no_collection_of_keys(forget: Any, autojump_clock: object):
    """
    A single str is not taken for a collection of keys of one letter.
    """
    async with memable.open_engine(memable.InMemoryStore()) as engine:
        with pytest.raises(memable.MisuseError, match="give a list of keys or paths"):
            await engine.resume("w", "i", forget=forget)


# Refused -----------------------------------------------------------------------------------------------------------


async def test_resume_refuses_what_is_unknown(autojump_clock: object):
    """
    An unknown instance, an unregistered workflow and an invalid id each have their error.
    """

    @memable.workflow
    async def work(ctx: memable.Context) -> None:
        pass

    async with memable.open_engine(memable.InMemoryStore(), workflows=[work]) as engine:
        with pytest.raises(memable.InstanceNotFoundError, match="'nobody': the store has no such instance"):
            await engine.resume(work, "nobody")
        with pytest.raises(memable.WorkflowNotFoundError, match="'other' is not registered"):
            await engine.resume("other", "i")
        with pytest.raises(memable.InvalidKeyError, match="instance id"):
            await engine.resume(work, "")
        await engine.stop()
        with pytest.raises(memable.EngineStoppedError, match=r"engine\.resume"):
            await engine.resume(work, "i")


# Races -------------------------------------------------------------------------------------------------------------


async def test_resumes_of_one_instance_at_once_start_one_run(place: Place, autojump_clock: object):
    """
    However many tasks resume an instance at the same time, it runs once, and all get that run's result.
    """
    runs: list[int] = []

    @memable.workflow
    async def work(ctx: memable.Context) -> int:
        runs.append(1)
        if len(runs) == 1:
            raise ValueError
        await trio.sleep(1)
        return len(runs)

    gate = Gate("instance_resumed")
    results: list[int] = []
    store = HookedStore(place.store(), before_append=gate.pass_)
    async with memable.open_engine(store, workflows=[work]) as engine, trio.open_nursery() as nursery:
        await (await engine.invoke(work, instance_id="i")).wait()

        async def resume() -> None:
            results.append(await (await engine.resume(work, "i")).result())

        for _ in range(4):
            nursery.start_soon(resume)
        await trio.testing.wait_all_tasks_blocked()
        gate.is_open.set()
    assert results == [2, 2, 2, 2]


async def test_resume_with_forget_behind_another_resume_is_busy(place: Place, autojump_clock: object):
    """
    A resume that forgets waits for one that is in flight, and then finds the instance executing.
    """
    world = World()

    async def body(ctx: memable.Context) -> None:
        await ctx.step("a", world.good, "a")
        if len(world.calls) == 1 and world.broken:
            world.broken = False
            raise ValueError
        await trio.sleep(1)

    gate = Gate("instance_resumed")
    outcomes: list[str] = []
    workflow = workflow_of(body)
    store = HookedStore(place.store(), before_append=gate.pass_)
    async with memable.open_engine(store, workflows=[workflow]) as engine, trio.open_nursery() as nursery:
        await (await engine.invoke(workflow, instance_id="i")).wait()

        @nursery.start_soon
        async def resume() -> None:
            await (await engine.resume(workflow, "i")).result()
            outcomes.append("resumed")

        await gate.is_reached.wait()

        @nursery.start_soon
        async def forget() -> None:
            with pytest.raises(memable.InstanceBusyError, match="while the instance runs"):
                await engine.resume(workflow, "i", forget=["a"])
            outcomes.append("busy")

        await trio.testing.wait_all_tasks_blocked()
        assert outcomes == []
        gate.is_open.set()
    assert outcomes == ["busy", "resumed"]


async def test_resume_while_the_instance_is_being_cancelled_does_not_stop_that(place: Place, autojump_clock: object):
    """
    A resume of an instance that unwinds because it was cancelled is a handle on that run: it ends as Cancelled.
    """

    async def body(ctx: memable.Context) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine, trio.open_nursery() as nursery:
        await engine.invoke(workflow, instance_id="i")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(engine.cancel, workflow, "i")
        await trio.testing.wait_all_tasks_blocked()
        assert await (await engine.resume(workflow, "i")).wait() == memable.Cancelled()


async def test_resume_is_durable_when_it_returns(place: Place, autojump_clock: object):
    """
    A crash right after resume has returned resumes the instance at the next open.
    """
    runs: list[int] = []

    @memable.workflow
    async def work(ctx: memable.Context) -> None:
        runs.append(1)
        if len(runs) == 1:
            raise ValueError
        await trio.sleep(1)

    async with memable.open_engine(place.store(), workflows=[work], shutdown_timeout=0) as engine:
        await (await engine.invoke(work, instance_id="i")).wait()
        await engine.resume(work, "i")
        crashed = place.crash()
    async with memable.open_engine(crashed.store(), workflows=[work]) as engine:
        assert await (await engine.get(work, "i")).result() is None


async def test_resume_is_a_checkpoint(autojump_clock: object):
    """
    Resume is a checkpoint whether it runs something or not.
    """

    @memable.workflow
    async def work(ctx: memable.Context) -> None:
        pass

    async with memable.open_engine(memable.InMemoryStore(), workflows=[work]) as engine:
        await (await engine.invoke(work, instance_id="i")).result()
        for anew in (False, True):
            with trio.testing.assert_checkpoints():
                await engine.resume(work, "i", anew=anew)


def test_resume_cancelled_at_any_point_resumes_wholly_or_not_at_all():
    """
    Cancelled at any of its schedule points, resume leaves the instance Failed as it was, or running to its end.
    """

    async def main(ticks: int) -> bool:
        store = memable.InMemoryStore()
        runs: list[int] = []

        @memable.workflow
        async def work(ctx: memable.Context) -> int:
            runs.append(1)
            if len(runs) == 1:
                raise ValueError
            return len(runs)

        async def slowly(_: object) -> None:
            await trio.lowlevel.checkpoint()

        hooked = HookedStore(store, before_append=slowly, before_load=slowly)
        async with memable.open_engine(hooked, workflows=[work]) as engine:
            await (await engine.invoke(work, instance_id="i")).wait()
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    @nursery.start_soon
                    async def cancel() -> None:
                        for _ in range(ticks):
                            await trio.lowlevel.cancel_shielded_checkpoint()
                        scope.cancel()

                    if ticks < 0:
                        scope.cancel()
                    await engine.resume(work, "i")
                    nursery.cancel_scope.cancel()
            await engine.wait_all()
            resumed = "instance_resumed" in kinds_of(store)
            state = await engine.state(work, "i")
            assert state == memable.Completed() if resumed else isinstance(state, memable.Failed)
            # Nobody is left in its way.
            assert await (await engine.resume(work, "i")).result() == 2
        return scope.cancelled_caught

    # Trio runs ready tasks in no promised order. The first is cancelled before it begins.
    for ticks in range(-1, MAX_TICKS):
        was_cancelled = {trio.run(main, ticks, clock=MockClock(autojump_threshold=0)) for _ in range(5)}
        assert True not in was_cancelled if ticks == MAX_TICKS - 1 else ticks >= 0 or was_cancelled == {True}


async def test_resuming_what_is_being_cancelled_leaves_its_cancelled_children_alone(autojump_clock: MockClock):
    """
    A parent whose process died when its child was cancelled, and it itself not yet, is only unwound when it is resumed.
    """
    ran: list[str] = []
    kept = memable.InMemoryStore()

    @memable.workflow
    async def child(ctx: memable.Context) -> None:
        ran.append("child")
        await ctx.sleep("nap", 1_000_000)

    @memable.workflow
    async def parent(ctx: memable.Context) -> None:
        await ctx.call("child", child)

    async def fail_at_the_parents_end(records: Sequence[InstanceRecord]) -> None:
        if any(isinstance(record, InstanceCancelled) and record.instance == 1 for record in records):
            raise disk_full()

    workflows = [parent, child]
    with pytest.raises(memable.StorageError):
        async with memable.open_engine(
            HookedStore(kept, before_append=fail_at_the_parents_end), workflows=workflows
        ) as engine:
            await engine.invoke(parent, instance_id="i")
            await trio.sleep(1)
            await engine.cancel(parent, "i")
    ran.clear()
    async with memable.open_engine(kept, workflows=workflows, resume_on_start=False) as engine:
        assert isinstance(await engine.state(child, "i/child"), memable.Cancelled)
        invocation = await engine.resume(parent, "i")
        assert isinstance(await invocation.wait(), memable.Cancelled)
        assert isinstance(await engine.state(child, "i/child"), memable.Cancelled)
    assert ran == []
