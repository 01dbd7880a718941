"""
Cancelling instances: durable first, carried out whatever happens, and reported to exactly one caller.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

import memable
from memable import MetadataStatus
from running import kinds_of, workflow_of
from stores import Gate, HookedStore, Place, failing_at

MAX_TICKS = 20
"More schedule points than any one call has."


@memable.workflow
async def endless(ctx: memable.Context) -> None:
    await trio.sleep_forever()


async def test_cancel_ends_a_running_instance(place: Place, autojump_clock: object):
    """
    A running body is cancelled through its cancel scope, and the instance is Cancelled when cancel returns.
    """
    seen: list[object] = []

    async def body(ctx: memable.Context) -> None:
        try:
            await trio.sleep_forever()
        finally:
            seen.append(ctx.leaving)
            with trio.CancelScope(shield=True), pytest.raises(memable.RunEndedError, match="cancelled"):
                await ctx.step("late", trio.sleep, 0)

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        invocation = await engine.invoke(workflow, instance_id="i")
        await trio.testing.wait_all_tasks_blocked()
        assert await engine.cancel(workflow, "i", reason="no longer needed") is True
        assert await invocation.state() == memable.Cancelled("no longer needed")
        with pytest.raises(memable.WorkflowCancelledError, match=r"was cancelled \(no longer needed\)") as caught:
            await invocation.result()
        assert caught.value.reason == "no longer needed"
    assert seen == ["cancelled"]
    async with memable.open_engine(place.store()) as engine:
        assert await engine.state("w", "i") == memable.Cancelled("no longer needed")


async def test_cancel_right_after_invoke_cancels(place: Place, autojump_clock: object):
    """
    An instance that has hardly been started can be cancelled.
    """
    async with memable.open_engine(place.store(), workflows=[endless]) as engine:
        for _ in range(20):
            invocation = await engine.invoke(endless)
            assert await engine.cancel(endless, invocation.instance_id)


@pytest.mark.parametrize("load_ticks", range(6))
async def test_cancel_of_a_run_that_has_not_read_its_journal_yet_cancels(load_ticks: int, autojump_clock: object):
    """
    An instance whose run is about to begin, at opening or after a resume, can be cancelled at once.
    """

    async def slowly(_number: int) -> None:
        for _ in range(load_ticks):
            await trio.lowlevel.checkpoint()

    store = memable.InMemoryStore()
    hooked = HookedStore(store, before_load=slowly)
    async with memable.open_engine(store, workflows=[endless], shutdown_timeout=0) as engine:
        await engine.invoke(endless, instance_id="i")
    async with memable.open_engine(hooked, workflows=[endless]) as engine:
        with trio.fail_after(1):
            assert await engine.cancel(endless, "i")
        await engine.resume(endless, "i")
        with trio.fail_after(1):
            assert await engine.cancel(endless, "i")


@pytest.mark.parametrize("how", ["returns", "raises", "fails", "blocks", "groups"])
async def test_cancel_does_not_care_how_the_body_ends(how: str, place: Place, autojump_clock: object):
    """
    What a cancelled body returns or raises does not matter: the instance is Cancelled; an error is told beside it.
    """

    async def bad() -> None:
        raise ValueError("bad")

    async def body(ctx: memable.Context) -> None:
        try:
            with trio.CancelScope() as scope:
                try:
                    await trio.sleep_forever()
                finally:
                    if how == "returns":
                        scope.cancel()
        except trio.Cancelled:
            match how:
                case "raises":
                    raise ValueError("bad") from None
                case "fails":
                    with trio.CancelScope(shield=True):
                        await ctx.step("bad", bad)
                case "blocks":
                    raise memable.MisuseError(problem="bad") from None
                case "groups":
                    raise ExceptionGroup("bad", [ValueError("bad")]) from None

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id="i")
        await trio.testing.wait_all_tasks_blocked()
        assert await engine.cancel(workflow, "i")
        state = await engine.state(workflow, "i")
        assert isinstance(state, memable.Cancelled)
        assert (state.error is None) == (how == "returns")


async def test_cancel_waits_for_a_body_that_takes_its_time(autojump_clock: object):
    """
    Cancel returns once the instance has ended, however long the body takes to unwind.
    """

    async def body(ctx: memable.Context) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(10)

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id="i")
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        assert await engine.cancel(workflow, "i")
        assert trio.current_time() == pytest.approx(began + 10)


async def test_cancel_ends_an_instance_in_backoff(place: Place, autojump_clock: object):
    """
    An instance that waits for its next attempt is cancelled without it.
    """
    calls: list[int] = []

    async def flaky() -> None:
        calls.append(1)
        raise ValueError

    async def body(ctx: memable.Context) -> None:
        await ctx.step("flaky", flaky, retry=memable.RetryPolicy.fixed(3, 100))

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await (await engine.invoke(workflow, instance_id="i")).wait()
        assert await engine.cancel(workflow, "i")
        assert await engine.state(workflow, "i") == memable.Cancelled()
    assert calls == [1]


@pytest.mark.parametrize("ending", ["completed", "failed", "cancelled"])
async def test_cancel_of_a_terminal_instance_changes_nothing(ending: str, place: Place, autojump_clock: object):
    """
    Cancel returns False on an instance that has ended, in this engine or a later one.
    """

    async def body(ctx: memable.Context) -> None:
        match ending:
            case "failed":
                raise ValueError
            case "cancelled":
                await trio.sleep_forever()

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        invocation = await engine.invoke(workflow, instance_id="i")
        if ending == "cancelled":
            assert await engine.cancel(workflow, "i", reason="first")
        before = await invocation.wait()
        assert await engine.cancel(workflow, "i", reason="second") is False
        assert await invocation.state() == before
    async with memable.open_engine(place.store()) as engine:
        assert await engine.cancel("w", "i") is False
        assert await engine.state("w", "i") == before


async def test_cancel_of_a_blocked_instance_ends_it(place: Place, autojump_clock: object):
    """
    A Blocked instance is Cancelled without being run.
    """
    runs: list[int] = []

    async def body(ctx: memable.Context) -> None:
        runs.append(1)
        raise memable.MisuseError(problem="on purpose")

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        invocation = await engine.invoke(workflow, instance_id="i")
        assert isinstance(await invocation.wait(), memable.Blocked)
        assert await engine.cancel(workflow, "i", reason="given up")
        assert await invocation.wait() == memable.Cancelled("given up")
    assert runs == [1]


async def test_cancel_of_an_instance_whose_workflow_is_not_registered_ends_it(place: Place, autojump_clock: object):
    """
    An instance whose workflow is not registered can be cancelled by its name; it does not run at the next open.
    """
    async with memable.open_engine(place.store(), workflows=[endless], shutdown_timeout=0) as engine:
        await engine.invoke(endless, instance_id="i")
    async with memable.open_engine(place.store()) as engine:
        assert await engine.cancel("endless", "i", reason="gone")
        assert await engine.state("endless", "i") == memable.Cancelled("gone")
    async with memable.open_engine(place.store(), workflows=[endless]) as engine:
        assert await engine.state(endless, "i") == memable.Cancelled("gone")


async def test_cancel_refuses_what_is_unknown_or_invalid(autojump_clock: object):
    """
    An unknown instance, an invalid id or name and a reason that is no text each have their error.
    """
    async with memable.open_engine(memable.InMemoryStore(), workflows=[endless]) as engine:
        with pytest.raises(memable.InstanceNotFoundError, match="'nobody': the store has no such instance"):
            await engine.cancel(endless, "nobody")
        with pytest.raises(memable.InvalidKeyError, match="instance id"):
            await engine.cancel(endless, "_i")
        with pytest.raises(memable.InvalidKeyError, match="workflow name"):
            await engine.cancel("", "i")
        with pytest.raises(memable.MisuseError, match="reason of a cancellation is a str, not int"):
            await engine.cancel(endless, "i", reason=3)  # type: ignore[arg-type]
        with pytest.raises(memable.MisuseError, match="neither a workflow nor the name of one"):
            await engine.cancel(3, "i")  # type: ignore[arg-type]
        await engine.stop()
        with pytest.raises(memable.EngineStoppedError, match=r"engine\.cancel"):
            await engine.cancel(endless, "i")


# Durable -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["open", "register"])
async def test_cancel_that_was_requested_before_a_crash_is_carried_out(when: str, place: Place, autojump_clock: object):
    """
    A request that was durable at a crash is carried out at the next open, or once the workflow is registered.
    """
    runs: list[Place] = []

    async def body(ctx: memable.Context) -> None:
        try:
            await trio.sleep_forever()
        finally:
            runs.append(place.crash())

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id="i")
        await trio.testing.wait_all_tasks_blocked()
        await engine.cancel(workflow, "i", reason="before the crash")
    (crashed,) = runs
    if when == "register":
        async with memable.open_engine(crashed.store()) as engine:
            assert await engine.state("w", "i") == memable.Started()
    async with memable.open_engine(crashed.store(), workflows=[workflow] if when == "open" else []) as engine:
        if when == "register":
            engine.register(workflow)
        await engine.wait_all()
        assert await engine.state(workflow, "i") == memable.Cancelled("before the crash")
    assert len(runs) == 1


async def test_cancel_requested_before_a_crash_is_carried_out_at_the_recovery_limit(autojump_clock: object):
    """
    The recovery limit does not keep a requested cancellation from being carried out: the body is not run for it.
    """
    runs: list[memable.InMemoryStore] = []
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        try:
            await trio.sleep_forever()
        finally:
            runs.append(store.crashed_copy())

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id="i")
        await trio.testing.wait_all_tasks_blocked()
        await engine.cancel(workflow, "i")
    async with memable.open_engine(runs[0], workflows=[workflow], max_recoveries=1) as engine:
        await engine.wait_all()
        assert await engine.state(workflow, "i") == memable.Cancelled()
    assert len(runs) == 1


async def test_cancel_is_carried_out_when_its_caller_is_cancelled(place: Place, autojump_clock: object):
    """
    A caller that is cancelled while the body unwinds does not take the cancellation back.
    """

    async def body(ctx: memable.Context) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(10)

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        invocation = await engine.invoke(workflow, instance_id="i")
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(1) as scope:
            await engine.cancel(workflow, "i")
        assert scope.cancelled_caught
        assert await invocation.wait() == memable.Cancelled()


@pytest.mark.parametrize("at_rest", [False, True])
def test_cancel_cancelled_at_any_point_cancels_wholly_or_not_at_all(at_rest: bool):
    """
    Cancelled at any of its schedule points, cancel leaves the instance going on, or Cancelled in the end.
    """

    async def main(ticks: int) -> bool:
        store = memable.InMemoryStore()

        @memable.workflow
        async def work(ctx: memable.Context) -> None:
            if at_rest:
                raise memable.MisuseError(problem="on purpose")
            await trio.sleep(1)

        async def slowly(_records: object) -> None:
            await trio.lowlevel.checkpoint()

        async with memable.open_engine(HookedStore(store, before_append=slowly), workflows=[work]) as engine:
            await engine.invoke(work, instance_id="i")
            await trio.testing.wait_all_tasks_blocked()
            returned = False
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    @nursery.start_soon
                    async def interrupt() -> None:
                        for _ in range(ticks):
                            await trio.lowlevel.cancel_shielded_checkpoint()
                        scope.cancel()

                    if ticks < 0:
                        scope.cancel()
                    returned = await engine.cancel(work, "i")
                    nursery.cancel_scope.cancel()
            await engine.wait_all()
            state = await engine.state(work, "i")
            if "cancel_requested" in kinds_of(store):
                assert state == memable.Cancelled()
            else:
                assert isinstance(state, memable.Blocked if at_rest else memable.Completed)
                assert not returned
        return scope.cancelled_caught

    # Trio runs ready tasks in no promised order. The first is cancelled before it begins.
    for ticks in range(-1, MAX_TICKS):
        was_cancelled = {trio.run(main, ticks, clock=MockClock(autojump_threshold=0)) for _ in range(5)}
        assert True not in was_cancelled if ticks == MAX_TICKS - 1 else ticks >= 0 or was_cancelled == {True}


# Races -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["running", "blocked", "unregistered"])
async def test_cancels_at_once_are_told_apart(kind: str, place: Place, autojump_clock: object):
    """
    Of several cancels at once exactly one returns True, and its reason is the one that is recorded.
    """

    async def body(ctx: memable.Context) -> None:
        if kind == "blocked":
            raise memable.MisuseError(problem="on purpose")
        await trio.sleep_forever()

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow], shutdown_timeout=0) as engine:
        await engine.invoke(workflow, instance_id="i")
        await trio.testing.wait_all_tasks_blocked()
    answers: dict[str, bool] = {}
    gate = Gate("cancel_requested")
    async with (
        memable.open_engine(
            HookedStore(place.store(), before_append=gate.pass_), workflows=[] if kind == "unregistered" else [workflow]
        ) as engine,
        trio.open_nursery() as nursery,
    ):
        await trio.testing.wait_all_tasks_blocked()

        async def cancel(reason: str) -> None:
            answers[reason] = await engine.cancel("w", "i", reason=reason)

        for number in range(4):
            nursery.start_soon(cancel, f"reason {number}")
        await trio.testing.wait_all_tasks_blocked()
        assert answers == {}
        gate.is_open.set()
        await trio.testing.wait_all_tasks_blocked()
        (winner,) = (reason for reason, won in answers.items() if won)
        assert len(answers) == 4
        assert await engine.state("w", "i") == memable.Cancelled(winner)


async def test_cancel_against_completion_loses_when_that_is_on_its_way(place: Place, autojump_clock: object):
    """
    A body whose end is on its way to the disk is Completed; a cancel at that moment returns False.
    """
    gate = Gate("instance_completed")
    answers: list[bool] = []

    async def body(ctx: memable.Context) -> None:
        pass

    workflow = workflow_of(body)
    store = HookedStore(place.store(), before_append=gate.pass_)
    async with memable.open_engine(store, workflows=[workflow]) as engine, trio.open_nursery() as nursery:
        invocation = await engine.invoke(workflow, instance_id="i")
        await gate.is_reached.wait()

        @nursery.start_soon
        async def cancel() -> None:
            answers.append(await engine.cancel(workflow, "i"))

        await trio.testing.wait_all_tasks_blocked()
        assert answers == []
        gate.is_open.set()
        assert await invocation.wait() == memable.Completed()
    assert answers == [False]


async def test_cancel_against_completion_wins_when_it_was_first(place: Place, autojump_clock: object):
    """
    A body that returns while the request to cancel it is on its way to the disk is Cancelled.
    """
    gate = Gate("cancel_requested")
    go = trio.Event()
    answers: list[bool] = []

    async def body(ctx: memable.Context) -> None:
        await go.wait()

    workflow = workflow_of(body)
    store = HookedStore(place.store(), before_append=gate.pass_)
    async with memable.open_engine(store, workflows=[workflow]) as engine, trio.open_nursery() as nursery:
        invocation = await engine.invoke(workflow, instance_id="i")

        @nursery.start_soon
        async def cancel() -> None:
            answers.append(await engine.cancel(workflow, "i"))

        await gate.is_reached.wait()
        go.set()
        await trio.testing.wait_all_tasks_blocked()
        gate.is_open.set()
        assert await invocation.wait() == memable.Cancelled()
    assert answers == [True]


async def test_cancel_while_the_instance_becomes_blocked_cancels_it_then(place: Place, autojump_clock: object):
    """
    A cancel that meets an instance on its way to Blocked cancels it once it is.
    """
    gate = Gate("instance_blocked")
    answers: list[bool] = []

    async def body(ctx: memable.Context) -> None:
        raise memable.MisuseError(problem="on purpose")

    workflow = workflow_of(body)
    store = HookedStore(place.store(), before_append=gate.pass_)
    async with memable.open_engine(store, workflows=[workflow]) as engine, trio.open_nursery() as nursery:
        await engine.invoke(workflow, instance_id="i")
        await gate.is_reached.wait()

        @nursery.start_soon
        async def cancel() -> None:
            answers.append(await engine.cancel(workflow, "i"))

        await trio.testing.wait_all_tasks_blocked()
        gate.is_open.set()
    assert answers == [True]
    async with memable.open_engine(place.store()) as engine:
        assert await engine.state("w", "i") == memable.Cancelled()


async def test_cancel_while_a_resume_is_in_flight_cancels_the_new_run(place: Place, autojump_clock: object):
    """
    A cancel that meets a resume in flight cancels the run that it begins.
    """
    gate = Gate("instance_resumed")
    runs: list[int] = []

    async def body(ctx: memable.Context) -> None:
        runs.append(1)
        if len(runs) == 1:
            raise ValueError
        await trio.sleep_forever()

    workflow = workflow_of(body)
    store = HookedStore(place.store(), before_append=gate.pass_)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        await (await engine.invoke(workflow, instance_id="i")).wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.resume, workflow, "i")
            await gate.is_reached.wait()

            @nursery.start_soon
            async def cancel() -> None:
                assert await engine.cancel(workflow, "i")

            await trio.testing.wait_all_tasks_blocked()
            gate.is_open.set()
        assert await engine.state(workflow, "i") == memable.Cancelled()


async def test_cancel_that_waits_when_the_engine_stops_is_told_so(place: Place, autojump_clock: object):
    """
    A cancel that still waits when the run has gone without an end raises EngineStoppedError; its request stands.
    """

    async def body(ctx: memable.Context) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(10)
            raise KeyboardInterrupt

    workflow = workflow_of(body)
    told: list[str] = []
    with pytest.raises(BaseExceptionGroup, match="nursery") as caught:
        async with trio.open_nursery() as nursery:

            async def cancel() -> None:
                try:
                    with trio.CancelScope(shield=True):
                        await engine.cancel(workflow, "i")
                except memable.EngineStoppedError as error:
                    told.append(str(error))

            async with memable.open_engine(place.store(), workflows=[workflow], shutdown_timeout=1) as engine:
                await engine.invoke(workflow, instance_id="i")
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(cancel)
                await trio.testing.wait_all_tasks_blocked()
    assert [type(leaf) for leaf in caught.value.exceptions] == [KeyboardInterrupt]
    where = f"workflow {workflow.name!r}, instance 'i'"
    assert told == [f"engine.cancel on {where}: the engine has stopped; open the store again with open_engine(...)"]
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await engine.wait_all()
        assert await engine.state(workflow, "i") == memable.Cancelled()


async def test_cancel_that_was_begun_before_a_shutdown_is_carried_out_by_it(place: Place, autojump_clock: object):
    """
    An instance that unwinds because of a cancel when the block is left is Cancelled, not left Running.
    """

    async def body(ctx: memable.Context) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(10)

    workflow = workflow_of(body)
    async with trio.open_nursery() as nursery:
        with pytest.raises(LookupError, match="the block"):
            async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
                await engine.invoke(workflow, instance_id="i")
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(engine.cancel, workflow, "i")
                await trio.testing.wait_all_tasks_blocked()
                raise LookupError("the block")
    async with memable.open_engine(place.store(), resume_on_start=False) as engine:
        assert await engine.state("w", "i") == memable.Cancelled()


async def test_cancel_that_cannot_be_recorded_cancels_nothing(place: Place, autojump_clock: object):
    """
    A request that the store does not take is a StorageError, and the instance stays Running.
    """
    with pytest.raises(memable.StorageError, match="no space left"):
        async with memable.open_engine(failing_at("cancel_requested", place.store()), workflows=[endless]) as engine:
            await engine.invoke(endless, instance_id="i")
            await trio.testing.wait_all_tasks_blocked()
            await engine.cancel(endless, "i")
    async with memable.open_engine(place.store(), resume_on_start=False) as engine:
        metadata = await engine.metadata(endless, "i")
        assert metadata is not None
        assert metadata.status is MetadataStatus.RUNNING


# From inside -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["body", "step", "shielded", "shielded step"])
async def test_cancel_of_itself_cancels_the_instance(where: str, place: Place, autojump_clock: object):
    """
    A body or a step may cancel its own instance, even where it is shielded from cancellation.
    """
    went_on: list[str] = []

    async def cancel() -> None:
        if "shielded" in where:
            with trio.CancelScope(shield=True):
                assert await engine.cancel(workflow, "i", reason="myself")
                went_on.append("shielded")
            await trio.lowlevel.checkpoint()
        else:
            await engine.cancel(workflow, "i", reason="myself")
        went_on.append("not cancelled")

    async def body(ctx: memable.Context) -> None:
        if "step" in where:
            await ctx.step("cancel", cancel)
        else:
            await cancel()

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        assert await (await engine.invoke(workflow, instance_id="i")).wait() == memable.Cancelled("myself")
    assert went_on == (["shielded"] if "shielded" in where else [])


async def test_cancel_of_another_instance_from_a_body_works(place: Place, autojump_clock: object):
    """
    A body may cancel another instance and wait for its end.
    """

    async def body(ctx: memable.Context) -> None:
        assert await engine.cancel(endless, "other")

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow, endless]) as engine:
        other = await engine.invoke(endless, instance_id="other")
        assert await (await engine.invoke(workflow)).result() is None
        assert await other.state() == memable.Cancelled()


async def test_cancel_is_a_checkpoint(autojump_clock: object):
    """
    Cancel is a checkpoint, also on an instance that has ended or does not run.
    """
    async with memable.open_engine(memable.InMemoryStore(), workflows=[endless]) as engine:
        await engine.invoke(endless, instance_id="i")
        for _ in range(2):
            with trio.testing.assert_checkpoints():
                await engine.cancel(endless, "i")


async def test_waiters_of_a_cancelled_instance_are_all_told(place: Place, autojump_clock: object):
    """
    Everybody who waits for an instance, by whatever handle, learns that it was cancelled.
    """
    told: list[object] = []
    async with memable.open_engine(place.store(), workflows=[endless]) as engine, trio.open_nursery() as nursery:

        async def wait(call: Any) -> None:
            try:
                told.append(await call())
            except memable.WorkflowCancelledError as error:
                told.append(error.reason)

        invocation = await engine.invoke(endless, instance_id="i")
        for call in (invocation.wait, invocation.result, (await engine.get(endless, "i")).result):
            nursery.start_soon(wait, call)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(partial(engine.cancel, endless, "i", reason="why"))
    assert sorted(map(str, told)) == ["cancelled: why", "why", "why"]


async def test_cancel_that_cannot_come_to_its_end_says_why(place: Place, autojump_clock: object):
    """
    A cancel of an instance that is Blocked by it raises WorkflowBlockedError; it is carried out once that is mended.
    """
    point = memable.SuspendPoint("point", bool)
    undone: list[str] = []

    async def undo() -> None:
        undone.append("undone")

    async def registering(ctx: memable.Context) -> None:
        await ctx.compensate("undo", undo)
        await ctx.suspend(point)

    async def forgetful(ctx: memable.Context) -> None:
        await ctx.suspend(point)

    async with memable.open_engine(place.store(), workflows=[workflow_of(registering)]) as engine:
        await (await engine.invoke("w", instance_id="i")).wait()
    async with memable.open_engine(place.store(), workflows=[workflow_of(forgetful)]) as engine:
        for _ in range(2):
            with pytest.raises(memable.WorkflowBlockedError, match="'undo' were registered"):
                await engine.cancel("w", "i", reason="enough")
    async with memable.open_engine(place.store(), workflows=[workflow_of(registering)]) as engine:
        await engine.wait_all()
        assert await engine.state("w", "i") == memable.Cancelled("enough")
    assert undone == ["undone"]


@pytest.mark.parametrize("max_parked", [0, 1000])
async def test_cancel_beside_a_signal_and_a_resume_always_returns(max_parked: int, autojump_clock: object):
    """
    However a cancel, a signal and a resume of one instance interleave, each of them comes to its end.
    """
    point = memable.SuspendPoint("point", int)

    async def body(ctx: memable.Context) -> None:
        await ctx.suspend(point)

    workflow = workflow_of(body)

    async def race(before_cancel: int, before_resume: int) -> None:
        async with (
            memable.open_engine(memable.InMemoryStore(), workflows=[workflow], max_parked=max_parked) as engine,
            trio.open_nursery() as nursery,
        ):
            await engine.invoke(workflow, instance_id="i")
            await engine.wait_all()

            @nursery.start_soon
            async def signal_and_resume() -> None:
                with suppress(memable.SignalRejectedError):
                    await engine.signal(workflow, "i", point, 1)
                    for _ in range(before_resume):
                        await trio.lowlevel.checkpoint()
                    await engine.resume(workflow, "i")

            for _ in range(before_cancel):
                await trio.lowlevel.checkpoint()
            assert await engine.cancel(workflow, "i") in (True, False)

    for before_cancel in range(8):
        for before_resume in range(8):
            await race(before_cancel, before_resume)


@pytest.mark.parametrize("what", ["suspend", "sleep", "call"])
async def test_wait_that_begins_while_the_body_is_unwound_ends(what: str, autojump_clock: MockClock):
    """
    A shielded task that gets to its wait only when all waits have been ended does not wait for ever.
    """
    ends: list[type[BaseException]] = []

    async def child(ctx: memable.Context) -> None:
        await trio.sleep_forever()

    called = memable.workflow(name="called")(child)

    async def body(ctx: memable.Context) -> None:
        with trio.CancelScope(shield=True):
            try:
                match what:
                    case "suspend":
                        await ctx.suspend(memable.SuspendPoint("p", str))
                    case "sleep":
                        await ctx.sleep("s", 1e6)
                    case _:
                        await ctx.call("c", called)
            except BaseException as exc:
                ends.append(type(exc))
                raise

    workflow = workflow_of(body)
    # The record with which the wait begins is on its way when the engine's block is left.
    gate = Gate("child_started" if what == "call" else "wait_started")
    store = HookedStore(memable.InMemoryStore(), before_append=gate.pass_)

    async def open_gate() -> None:
        await trio.testing.wait_all_tasks_blocked()
        gate.is_open.set()

    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            with pytest.raises(ZeroDivisionError):
                async with memable.open_engine(store, workflows=[workflow, called]) as engine:
                    await engine.invoke(workflow, instance_id="i")
                    await gate.is_reached.wait()
                    nursery.start_soon(open_gate)
                    raise ZeroDivisionError
    assert ends == [memable.RunEndedError]
