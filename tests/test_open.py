"""
Opening an engine, and every way out of its block.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import signal
import sys
import traceback
import weakref
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import memable
from memable import MetadataStatus
from memable._ledger import Ledger
from memable._records import InstanceRecord
from memable._run import Run
from memable._store._protocol import Store
from memable._wait import Wait
from running import kinds_of, workflow_of
from stores import HookedStore, Place, disk_full, failing_at
from wrapped_store import WrappedStore, Wrapper

GRACE_S = 3600.0


class UserBaseError(BaseException):
    """
    One of the few exceptions that are no ``Exception``.
    """


@memable.workflow
async def endless(ctx: memable.Context) -> None:
    await trio.sleep_forever()


@memable.workflow
async def quick(ctx: memable.Context, name: str = "") -> str:
    return f"hello {name}"


@memable.workflow
async def sleepy(ctx: memable.Context, seconds: float) -> str:
    await trio.sleep(seconds)
    return "slept"


def run(main: Callable[[], Awaitable[object]]) -> None:
    """
    Run *main* as trio's main task, where control-C is delivered, under virtual time.
    """
    trio.run(main, clock=MockClock(autojump_threshold=0))


def press_control_c() -> None:
    signal.raise_signal(signal.SIGINT)


async def status_in(
    store: Store, instance_id: str = "i", workflow: memable.Workflow[..., Any] | str = "w"
) -> MetadataStatus:
    """
    Return what a store holds of an instance.
    """
    async with memable.open_engine(store, resume_on_start=False) as engine:
        metadata = await engine.metadata(workflow, instance_id)
    assert metadata is not None
    return metadata.status


# Settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"store": 3}, TypeError, "store must be a path, a FileStore or an InMemoryStore, not 3"),
        ({"store": memable.InMemoryStore}, TypeError, "store must be a path, a FileStore or an InMemoryStore, not <cl"),
        ({"default_retry": 3}, TypeError, "default_retry must be a memable.RetryPolicy or None, not 3"),
        ({"shutdown_timeout": -1}, ValueError, "shutdown_timeout must be a number of seconds, at least 0, not -1"),
        ({"shutdown_timeout": math.nan}, ValueError, "shutdown_timeout must be .* not nan"),
        ({"shutdown_timeout": "3"}, ValueError, "shutdown_timeout must be .* not '3'"),
        ({"shutdown_timeout": None}, ValueError, "shutdown_timeout must be .* not None"),
        ({"shutdown_timeout": True}, ValueError, "shutdown_timeout must be .* not True"),
        ({"retention": -1}, ValueError, "retention must be a number of seconds, at least 0"),
        ({"retention": math.nan}, ValueError, "retention must be a number of seconds, at least 0"),
        ({"max_parked": -1}, ValueError, "max_parked must be an int, at least 0, not -1"),
        ({"max_parked": 1.5}, ValueError, "max_parked must be an int, at least 0, not 1.5"),
        ({"max_parked": True}, ValueError, "max_parked must be an int, at least 0, not True"),
        ({"max_recoveries": 0}, ValueError, "max_recoveries must be an int, at least 1, not 0"),
        ({"max_value_bytes": 0}, ValueError, "max_value_bytes must be an int, at least 1, not 0"),
        ({"workflows": [len]}, memable.MisuseError, "decorate its function with @memable.workflow"),
        ({"workflows": "quick"}, memable.MisuseError, "'q' is not a workflow"),
        ({"workflows": quick}, TypeError, "not iterable"),
    ],
)
async def test_open_engine_refuses_a_senseless_setting_as_itself(
    settings: dict[str, Any], error: type[Exception], match: str, autojump_clock: object
):
    """
    A setting that makes no sense is an error that names it, never in a group.
    """
    settings = {"store": memable.InMemoryStore(), **settings}
    with pytest.raises(error, match=match):
        async with memable.open_engine(**settings):
            pytest.fail("the block was entered")


async def test_open_engine_refused_leaves_the_store_free(place: Place, autojump_clock: object):
    """
    A store can be opened after an attempt to open it with senseless settings.
    """
    with pytest.raises(memable.MisuseError, match="not a workflow"):
        async with memable.open_engine(place.store(), workflows=[len]):  # type: ignore[list-item]
            pass
    async with memable.open_engine(place.store(), workflows=[quick]) as engine:
        assert await (await engine.invoke(quick)).result() == "hello "


@pytest.mark.parametrize("shutdown_timeout", [0, 1.5, math.inf])
async def test_open_engine_takes_shutdown_timeouts_from_0_to_infinity(shutdown_timeout: float, autojump_clock: object):
    """
    Any number of seconds from 0 on is a shutdown timeout.
    """
    async with memable.open_engine(memable.InMemoryStore(), shutdown_timeout=shutdown_timeout):
        pass


async def test_open_engine_takes_the_same_workflow_twice(autojump_clock: object):
    """
    Naming one definition twice is no conflict.
    """
    async with memable.open_engine(memable.InMemoryStore(), workflows=[quick, quick]) as engine:
        assert await (await engine.invoke(quick)).result() == "hello "


async def test_open_engine_refuses_two_workflows_of_one_name(autojump_clock: object):
    """
    Two different definitions of one name are a DuplicateWorkflowError.
    """
    other = memable.workflow(name="quick")(endless.fn)
    with pytest.raises(memable.DuplicateWorkflowError, match="'quick': another definition"):
        async with memable.open_engine(memable.InMemoryStore(), workflows=[quick, other]):
            pytest.fail("the block was entered")


async def test_open_engine_refuses_a_store_that_is_open(place: Place, autojump_clock: object):
    """
    A second engine over an open store is a StoreLockedError; the first one is not disturbed.
    """
    async with memable.open_engine(place.store(), workflows=[quick]) as engine:
        with pytest.raises(memable.StoreLockedError, match="has it open"):
            async with memable.open_engine(place.store()):
                pytest.fail("the block was entered")
        assert await (await engine.invoke(quick)).result() == "hello "


async def test_open_engine_opens_a_store_again_once_its_engine_has_closed(place: Place, autojump_clock: object):
    """
    A store may be opened again and again; what it holds is there each time.
    """
    for _ in range(3):
        async with memable.open_engine(place.store(), workflows=[quick]) as engine:
            assert await (await engine.invoke(quick, "Ada", instance_id="i")).result() == "hello Ada"
            assert len(await engine.list_instances()) == 1


@pytest.mark.parametrize("kind", ["path", "text", "variable", "default"])
async def test_open_engine_makes_the_directory_it_is_told(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
):
    """
    The store is the given path, else what MEMABLE_STORE says, else ./memable-data.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEMABLE_STORE", raising=False)
    expected = tmp_path / "chosen"
    given: dict[str, Any] = {}
    match kind:
        case "path":
            monkeypatch.setenv("MEMABLE_STORE", str(tmp_path / "not-this"))
            given = {"store": expected}
        case "text":
            given = {"store": str(expected)}
        case "variable":
            monkeypatch.setenv("MEMABLE_STORE", str(expected))
        case _:
            monkeypatch.setenv("MEMABLE_STORE", "")
            expected = tmp_path / "memable-data"
    async with memable.open_engine(**given, workflows=[quick]) as engine:
        await engine.invoke(quick)
    assert os.listdir(tmp_path) == [expected.name]  # noqa: PTH208 - names are what is compared


async def test_open_engine_that_is_cancelled_leaves_the_store_free(place: Place, autojump_clock: object):
    """
    Cancelling the opening of an engine opens nothing and locks nothing.
    """
    with trio.CancelScope() as scope:
        scope.cancel()
        async with memable.open_engine(place.store()):
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    async with memable.open_engine(place.store()):
        pass


async def test_open_engine_gives_steps_its_default_retry(autojump_clock: object):
    """
    The policy given to open_engine is that of each step that gives none.
    """
    calls: list[str] = []

    async def flaky(name: str) -> None:
        calls.append(name)
        raise ValueError(name)

    async def body(ctx: memable.Context) -> None:
        for key, options in (("inherits", {}), ("none", {"retry": None})):
            with pytest.raises(memable.StepFailedError, match=key):
                await ctx.step(key, flaky, key, **options)

    policy = memable.RetryPolicy.fixed(2, 1)
    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow], default_retry=policy) as engine:
        await (await engine.invoke(workflow)).result()
    assert calls == ["inherits", "inherits", "inherits", "none"]


# Leaving normally --------------------------------------------------------------------------------------------------


async def test_leaving_waits_for_executing_runs(place: Place, autojump_clock: object):
    """
    Leaving the block normally waits for runs, without a limit by default.
    """
    async with memable.open_engine(place.store(), workflows=[sleepy]) as engine:
        await engine.invoke(sleepy, 30 * 86400.0, instance_id="i")
    assert await status_in(place.store(), workflow=sleepy) is MetadataStatus.COMPLETED


async def test_leaving_waits_for_runs_that_runs_start(place: Place, autojump_clock: object):
    """
    Leaving the block waits for an instance that another one started before.
    """

    async def body(ctx: memable.Context) -> None:
        await engine.invoke(sleepy, 5.0, instance_id="inner")

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow, sleepy]) as engine:
        await engine.invoke(workflow, instance_id="i")
        await engine.wait_all()
    assert await status_in(place.store(), "inner", sleepy) is MetadataStatus.COMPLETED


async def test_leaving_cancels_runs_after_the_shutdown_timeout(place: Place, autojump_clock: object):
    """
    Past shutdown_timeout the runs are cancelled and stay Running; the next open runs them again.
    """
    ended: list[float] = []
    began = trio.current_time()

    async def body(ctx: memable.Context) -> None:
        try:
            await trio.sleep(100)
        finally:
            ended.append(trio.current_time() - began)

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow], shutdown_timeout=7) as engine:
        await engine.invoke(workflow, instance_id="i")
    assert ended == [pytest.approx(7)]
    assert await status_in(place.store()) is MetadataStatus.RUNNING
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        assert await (await engine.get(workflow, "i")).result() is None


async def test_leaving_does_not_wait_for_runs_in_backoff(place: Place, autojump_clock: object):
    """
    A run that waits for its next attempt is not waited for; it is Suspended, its attempt due when it was.
    """
    calls: list[float] = []

    async def flaky() -> None:
        calls.append(trio.current_time())
        if len(calls) == 1:
            raise ValueError

    async def body(ctx: memable.Context) -> None:
        await ctx.step("flaky", flaky, retry=memable.RetryPolicy.fixed(1, GRACE_S))

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        assert isinstance(await (await engine.invoke(workflow, instance_id="i")).wait(), memable.Suspended)
        await trio.sleep(GRACE_S / 2)
    assert trio.current_time() == pytest.approx(calls[0] + GRACE_S / 2)
    assert await status_in(place.store()) is MetadataStatus.SUSPENDED
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await (await engine.get(workflow, "i")).result()
    assert calls == [calls[0], pytest.approx(calls[0] + GRACE_S)]


async def test_leaving_waits_for_a_step_beside_a_backoff(place: Place, autojump_clock: object):
    """
    A run with a step executing in any of its tasks is waited for, though its body is in a backoff.
    """
    done: list[str] = []

    async def slow() -> None:
        await trio.sleep(10)
        done.append("slow")

    async def flaky() -> None:
        raise ValueError

    async def body(ctx: memable.Context) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ctx.step, "slow", slow)
            await ctx.step("flaky", flaky, retry=memable.RetryPolicy.fixed(1, GRACE_S))

    workflow = workflow_of(body)
    began = trio.current_time()
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await engine.invoke(workflow, instance_id="i")
    assert done == ["slow"]
    assert trio.current_time() == pytest.approx(began + 10)


async def test_leaving_refuses_what_other_tasks_begin_meanwhile(autojump_clock: object):
    """
    While the block is being left, no new instances and workflows are accepted.
    """
    async with trio.open_nursery() as nursery:

        async def latecomer() -> None:
            await trio.sleep(1)
            with pytest.raises(memable.EngineStoppedError, match="the engine has stopped"):
                await engine.invoke(quick)
            with pytest.raises(memable.EngineStoppedError, match=r"engine\.register"):
                engine.register(endless)
            assert await engine.state(sleepy, "i") == memable.Started()

        async with memable.open_engine(memable.InMemoryStore(), workflows=[quick, sleepy]) as engine:
            await engine.invoke(sleepy, 5.0, instance_id="i")
            nursery.start_soon(latecomer)


async def test_leaving_can_be_helped_by_cancelling_what_it_waits_for(autojump_clock: object):
    """
    While the block is being left, existing instances can still be cancelled and resumed: its exit waits for them.
    """
    async with trio.open_nursery() as nursery:
        told: list[object] = []

        async def latecomer() -> None:
            await trio.sleep(1)
            told.append(await (await engine.resume(quick, "q", anew=True)).result())
            told.append(await engine.cancel(endless, "i"))

        async def body(ctx: memable.Context) -> None:
            await trio.sleep(2)
            told.append(await engine.cancel(endless, "j", reason="from a body"))

        canceller = workflow_of(body)
        store = memable.InMemoryStore()
        async with memable.open_engine(store, workflows=[quick, endless, canceller]) as engine:
            await (await engine.invoke(quick, instance_id="q")).result()
            for name in ("i", "j"):
                await engine.invoke(endless, instance_id=name)
            await engine.invoke(canceller)
            nursery.start_soon(latecomer)
    assert told == ["hello ", True, True]


async def test_leaving_waits_for_a_run_that_shields_itself(autojump_clock: object):
    """
    A run that is cancelled in a shielded scope is waited for: no task outlives the block.
    """
    left: list[str] = []

    async def body(ctx: memable.Context) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(10)
        left.append("body")

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow], shutdown_timeout=1) as engine:
        await engine.invoke(workflow)
    assert left == ["body"]


async def test_body_that_swallows_a_shutdown_runs_again(
    place: Place, autojump_clock: object, caplog: pytest.LogCaptureFixture
):
    """
    What a body returns after swallowing the cancellation of a shutdown is ignored, and logged.
    """
    runs: list[str | None] = []

    async def body(ctx: memable.Context) -> None:
        if not runs:
            with trio.CancelScope() as scope:
                try:
                    await trio.sleep_forever()
                finally:
                    scope.cancel()
                    runs.append(ctx.leaving)
                    with trio.CancelScope(shield=True), pytest.raises(memable.RunEndedError, match="stopping"):
                        await ctx.step("late", trio.sleep, 0)

    async def swallow(ctx: memable.Context) -> None:
        with contextlib.suppress(trio.Cancelled):
            await body(ctx)

    workflow = workflow_of(swallow)
    async with memable.open_engine(place.store(), workflows=[workflow], shutdown_timeout=0) as engine:
        await engine.invoke(workflow, instance_id="i")
        await trio.testing.wait_all_tasks_blocked()
    assert runs == ["stopping"]
    assert "swallowed the cancellation by which it was to be unwound for a shutdown" in caplog.text
    assert await status_in(place.store()) is MetadataStatus.RUNNING
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await (await engine.get(workflow, "i")).result()


async def test_body_that_fails_in_a_shutdown_runs_again(place: Place, autojump_clock: object):
    """
    What a body raises while it is unwound by a shutdown does not fail its instance.
    """
    runs: list[int] = []

    async def body(ctx: memable.Context) -> None:
        runs.append(1)
        if len(runs) == 1:
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("unwinding went wrong")

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow], shutdown_timeout=0) as engine:
        await engine.invoke(workflow, instance_id="i")
        await trio.testing.wait_all_tasks_blocked()
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        assert await (await engine.get(workflow, "i")).result() is None


# Leaving by an exception -------------------------------------------------------------------------------------------

RAISED = [
    ValueError("v"),
    RuntimeError("r"),
    StopIteration("s"),
    StopAsyncIteration("a"),
    GeneratorExit("g"),
    KeyboardInterrupt("k"),
    SystemExit(3),
    UserBaseError("u"),
    ExceptionGroup("group", [ValueError(1)]),
    ExceptionGroup("group", [ExceptionGroup("inner", [ValueError(1)]), TypeError(2)]),
    BaseExceptionGroup("group", [KeyboardInterrupt(), ValueError(1)]),
    memable.StorageError(location="mine", problem="not the engine's"),
    memable.EngineStoppedError(operation="mine"),
]


@pytest.mark.parametrize("raised", RAISED, ids=repr)
async def test_exception_of_the_block_comes_out_as_itself(raised: BaseException, place: Place, autojump_clock: object):
    """
    What the block raises comes out of it: the same object, with its traceback, cause and context as they were.
    """
    raised.__cause__ = cause = OSError("cause")
    raised.__context__ = context = LookupError("context")
    raised.__traceback__ = None
    with pytest.raises(type(raised)) as caught:
        async with memable.open_engine(place.store(), workflows=[endless]) as engine:
            await engine.invoke(endless, instance_id="i")
            raise raised
    assert caught.value is raised
    assert raised.__cause__ is cause
    assert raised.__context__ is context
    frames = [frame.name for frame in traceback.extract_tb(raised.__traceback__)]
    assert frames == ["test_exception_of_the_block_comes_out_as_itself"]
    assert await status_in(place.store(), workflow=endless) is MetadataStatus.RUNNING


async def test_exception_of_the_block_cancels_runs_at_once(autojump_clock: object):
    """
    Leaving the block by an exception cancels executing runs without waiting for them.
    """
    seen: list[str | None] = []

    async def body(ctx: memable.Context) -> None:
        try:
            await trio.sleep(100)
        finally:
            seen.append(ctx.leaving)

    workflow = workflow_of(body)
    began = trio.current_time()
    with pytest.raises(ValueError, match="the block"):
        async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
            await engine.invoke(workflow)
            await trio.testing.wait_all_tasks_blocked()
            raise ValueError("the block")
    assert seen == ["stopping"]
    assert trio.current_time() == began


async def test_exception_of_the_block_beside_a_failing_workflow_comes_out_alone(autojump_clock: object):
    """
    A workflow that raises has no part in what comes out of the block.
    """

    async def body(ctx: memable.Context) -> None:
        raise LookupError("the workflow")

    workflow = workflow_of(body)
    with pytest.raises(ValueError, match="the block") as caught:
        async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
            await (await engine.invoke(workflow)).wait()
            raise ValueError("the block")
    assert caught.value.__context__ is None


async def test_outer_cancellation_cancels_runs_and_leaves_them_running(place: Place, autojump_clock: object):
    """
    A cancel scope around the block ends it at its deadline; the runs stay Running.
    """
    began = trio.current_time()
    with trio.move_on_after(5) as scope:
        async with memable.open_engine(place.store(), workflows=[endless]) as engine:
            await engine.invoke(endless, instance_id="i")
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert trio.current_time() == pytest.approx(began + 5)
    assert await status_in(place.store(), workflow=endless) is MetadataStatus.RUNNING


async def test_outer_cancellation_ends_the_wait_for_runs(place: Place, autojump_clock: object):
    """
    A cancel scope around the block also ends leaving it, at once.
    """
    began = trio.current_time()
    with trio.move_on_after(5) as scope:
        async with memable.open_engine(place.store(), workflows=[endless]) as engine:
            await engine.invoke(endless, instance_id="i")
    assert scope.cancelled_caught
    assert trio.current_time() == pytest.approx(began + 5)
    assert await status_in(place.store(), workflow=endless) is MetadataStatus.RUNNING


async def test_outer_cancellation_leaves_the_blocks_own_exception_alone(autojump_clock: object):
    """
    What the block raises while it is being cancelled comes out as itself.
    """
    with trio.move_on_after(5) as scope, pytest.raises(ValueError, match="unwinding"):
        async with memable.open_engine(memable.InMemoryStore(), workflows=[endless]) as engine:
            await engine.invoke(endless)
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("unwinding")
    assert not scope.cancelled_caught


async def test_outer_cancellation_in_a_group_keeps_the_rest_of_the_group(autojump_clock: object):
    """
    Cancelled beside another exception in the block's group: the scope takes its own, the other one comes out.
    """
    with pytest.raises(ExceptionGroup, match="mine") as caught:
        with trio.move_on_after(5):
            async with memable.open_engine(memable.InMemoryStore(), workflows=[endless]) as engine:
                await engine.invoke(endless)
                try:
                    await trio.sleep_forever()
                except trio.Cancelled as cancelled:
                    raise BaseExceptionGroup("mine", [cancelled, ValueError("mine")]) from None
    assert [type(leaf) for leaf in caught.value.exceptions] == [ValueError]


async def test_outer_cancellation_while_a_stop_is_under_way_leaves_the_blocks_exception_alone(autojump_clock: object):
    """
    A stop that was begun inside a body has no part in what comes out of a block that is cancelled meanwhile.
    """

    async def body(ctx: memable.Context) -> None:
        await engine.stop()
        await trio.sleep_forever()

    workflow = workflow_of(body)
    came_out: list[Exception] = []
    with trio.CancelScope() as scope:
        try:
            async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
                await engine.invoke(workflow)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
                with trio.CancelScope(shield=True):
                    await trio.testing.wait_all_tasks_blocked()
                raise ValueError("the block")
        except ValueError as error:
            came_out.append(error)
    assert [repr(error) for error in came_out] == ["ValueError('the block')"]


async def test_engine_in_a_nursery_that_fails_adds_nothing_to_its_group(place: Place, autojump_clock: object):
    """
    An engine beside a failing task is cancelled by it, and only that task's exception comes out of the nursery.
    """

    async def host() -> None:
        async with memable.open_engine(place.store(), workflows=[endless]) as engine:
            await engine.invoke(endless, instance_id="i")
            await trio.sleep_forever()

    async def fail() -> None:
        await trio.sleep(1)
        raise LookupError("beside")

    with pytest.raises(ExceptionGroup, match="nursery") as caught:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host)
            nursery.start_soon(fail)
    assert [repr(leaf) for leaf in caught.value.exceptions] == ["LookupError('beside')"]
    assert await status_in(place.store(), workflow=endless) is MetadataStatus.RUNNING


async def test_engines_may_be_nested(autojump_clock: object):
    """
    Engines over different stores work inside each other, one in a workflow's body included.
    """

    async def body(ctx: memable.Context) -> None:
        async with memable.open_engine(memable.InMemoryStore(), workflows=[quick]) as inner:
            # For the inner engine this is no body of its own.
            assert await (await inner.invoke(quick, "inner")).result() == "hello inner"
            await inner.wait_all()
            await inner.stop()

    workflow = workflow_of(body)
    async with (
        memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as outer,
        memable.open_engine(memable.InMemoryStore(), workflows=[quick]) as other,
    ):
        assert await (await outer.invoke(workflow)).result() is None
        assert await (await other.invoke(quick)).result() == "hello "


# What nobody may keep to himself -----------------------------------------------------------------------------------

FATAL = [KeyboardInterrupt("k"), SystemExit(3), GeneratorExit("g"), UserBaseError("u")]


@pytest.mark.parametrize("where", ["body", "step", "nursery", "group", "backoff", "unwinding"])
@pytest.mark.parametrize("raised", FATAL, ids=lambda raised: type(raised).__name__)
async def test_fatal_exception_of_a_workflow_comes_out_of_the_block_as_itself(  # noqa: PLR0915 - one for each place
    raised: BaseException, where: str, place: Place, autojump_clock: object
):
    """
    KeyboardInterrupt and its like come out of the block as themselves, and leave all instances Running.
    """
    raised.__context__ = raised.__cause__ = None

    async def step() -> None:
        raise raised

    async def nested() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(step)

    async def flaky() -> None:
        raise ValueError

    async def body(ctx: memable.Context) -> None:
        match where:
            case "body":
                raise raised
            case "step":
                await ctx.step("step", step)
            case "nursery":
                await ctx.step("step", nested)
            case "group":
                raise BaseExceptionGroup("mixed", [ValueError("dropped"), BaseExceptionGroup("inner", [raised])])
            case "backoff":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(partial(ctx.step, "flaky", flaky, retry=memable.RetryPolicy.fixed(1, 10)))
                    await trio.sleep(5)
                    raise raised
            case _:
                try:
                    await trio.sleep_forever()
                finally:
                    raise raised

    workflow = workflow_of(body)
    with pytest.raises(type(raised)) as caught:
        async with memable.open_engine(place.store(), workflows=[workflow, endless], shutdown_timeout=1) as engine:
            await engine.invoke(endless, instance_id="other")
            await engine.invoke(workflow, instance_id="i")
            if where != "unwinding":
                await trio.sleep_forever()
            await trio.testing.wait_all_tasks_blocked()
    assert caught.value is raised
    if where in {"body", "step", "nursery"}:
        assert raised.__context__ is None
    assert await status_in(place.store()) is MetadataStatus.RUNNING
    assert await status_in(place.store(), "other", endless) is MetadataStatus.RUNNING


async def test_fatal_exception_of_a_workflow_stops_the_block_and_other_runs(autojump_clock: object):
    """
    KeyboardInterrupt in one workflow cancels the block and the other runs, and nothing is waited for.
    """
    seen: list[str | None] = []
    began = trio.current_time()

    async def interrupted(ctx: memable.Context) -> None:
        await trio.sleep(3)
        raise KeyboardInterrupt

    @memable.workflow
    async def other(ctx: memable.Context) -> None:
        try:
            await trio.sleep_forever()
        finally:
            seen.append(ctx.leaving)

    workflow = workflow_of(interrupted)
    with pytest.raises(KeyboardInterrupt):
        async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow, other]) as engine:
            await engine.invoke(other)
            await engine.invoke(workflow)
            await trio.sleep_forever()
    assert seen == ["stopping"]
    assert trio.current_time() == pytest.approx(began + 3)


async def test_fatal_exceptions_of_several_workflows_come_in_a_group(autojump_clock: object):
    """
    Several fatal exceptions together come out as one group that holds each of them.
    """
    both = trio.Event()

    async def body(ctx: memable.Context, number: int) -> None:
        await both.wait()
        raise KeyboardInterrupt(number)

    workflow = memable.workflow(name="w")(body)
    with pytest.raises(BaseExceptionGroup, match="several failures stopped the engine") as caught:
        async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
            for number in range(3):
                await engine.invoke(workflow, number)
            await trio.testing.wait_all_tasks_blocked()
            both.set()
            await trio.sleep_forever()
    assert sorted(leaf.args for leaf in caught.value.exceptions) == [(0,), (1,), (2,)]


async def test_fatal_exceptions_of_one_body_come_in_a_group(autojump_clock: object):
    """
    Two fatal leaves in the group that leaves one body come out as a group of the two.
    """

    async def body(ctx: memable.Context) -> None:
        raise BaseExceptionGroup("mixed", [SystemExit(1), ValueError(), KeyboardInterrupt()])

    workflow = workflow_of(body)
    with pytest.raises(BaseExceptionGroup, match="several failures") as caught:
        async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
            await engine.invoke(workflow)
    assert [type(leaf) for leaf in caught.value.exceptions] == [SystemExit, KeyboardInterrupt]


async def test_fatal_exception_has_the_blocks_exception_as_its_context(autojump_clock: object):
    """
    KeyboardInterrupt from a run that is unwound has as its context what the block raised.
    """
    interrupt = KeyboardInterrupt()
    raised = ValueError("the block")

    async def body(ctx: memable.Context) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            raise interrupt from None

    workflow = workflow_of(body)
    with pytest.raises(KeyboardInterrupt) as caught:
        async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
            await engine.invoke(workflow)
            await trio.testing.wait_all_tasks_blocked()
            raise raised
    assert caught.value is interrupt
    assert interrupt.__context__ is raised


async def test_fatal_exception_does_not_drag_the_cancellation_of_the_block_along(autojump_clock: object):
    """
    The Cancelled by which the engine ended the block is no context of what comes out.
    """

    async def body(ctx: memable.Context) -> None:
        raise KeyboardInterrupt

    workflow = workflow_of(body)
    with pytest.raises(KeyboardInterrupt) as caught:
        async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
            await engine.invoke(workflow)
            await trio.sleep_forever()
    assert caught.value.__context__ is None


async def test_fatal_exception_at_opening_is_raised_before_the_block(autojump_clock: object):
    """
    A recovered instance that raises KeyboardInterrupt ends an engine whose block has hardly begun.
    """
    store = memable.InMemoryStore()
    async with memable.open_engine(store, workflows=[endless], shutdown_timeout=0) as engine:
        await engine.invoke(endless, instance_id="i")

    @memable.workflow(name="endless")
    async def interrupting(ctx: memable.Context) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        async with memable.open_engine(store, workflows=[interrupting]):
            await trio.sleep_forever()
    assert await status_in(store, workflow=endless) is MetadataStatus.RUNNING


# Storage failures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["instance_started", "step_completed", "attempt_failed", "step_failed"])
async def test_storage_failure_comes_out_of_the_block_as_itself(kind: str, place: Place, autojump_clock: object):
    """
    A store that cannot write ends the block with its StorageError; nothing of it is acknowledged or kept.
    """
    acknowledged: list[str] = []

    async def work(fails: bool) -> int:
        if fails:
            raise ValueError
        return 1

    async def body(ctx: memable.Context) -> None:
        if kind == "step_completed":
            await ctx.step("step", work, False)
        else:
            policy = memable.RetryPolicy.fixed(1, 1) if kind == "attempt_failed" else None
            try:
                await ctx.step("step", work, True, retry=policy)
            except memable.StepFailedError:
                acknowledged.append("failure")
        acknowledged.append("step")

    workflow = workflow_of(body)
    with pytest.raises(memable.StorageError, match="no space left") as caught:
        async with memable.open_engine(failing_at(kind, place.store()), workflows=[workflow]) as engine:
            await engine.invoke(workflow, instance_id="i")
            acknowledged.append("start")
            await trio.sleep_forever()
    assert type(caught.value) is memable.StorageError
    assert acknowledged == ([] if kind == "instance_started" else ["start"])
    async with memable.open_engine(place.store(), workflows=[workflow], resume_on_start=False) as engine:
        found = [metadata.status for metadata in await engine.list_instances()]
    assert found == ([] if kind == "instance_started" else [MetadataStatus.RUNNING])


async def test_storage_failure_keeps_what_was_acknowledged_before(place: Place, autojump_clock: object):
    """
    Steps that were acknowledged before a storage failure are not run again after it.
    """
    calls: list[int] = []

    async def work(number: int) -> int:
        calls.append(number)
        return number

    async def body(ctx: memable.Context) -> None:
        for number in range(4):
            await ctx.step(f"step-{number}", work, number)

    async def fail_third(records: Sequence[InstanceRecord]) -> None:
        if any(getattr(record, "path", None) == "step-2" for record in records):
            raise disk_full()

    workflow = workflow_of(body)
    with pytest.raises(memable.StorageError, match="no space left"):
        async with memable.open_engine(
            HookedStore(place.store(), before_append=fail_third), workflows=[workflow]
        ) as engine:
            await engine.invoke(workflow, instance_id="i")
            await trio.sleep_forever()
    assert calls == [0, 1, 2]
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await (await engine.get(workflow, "i")).result()
    assert calls == [0, 1, 2, 2, 3]


async def test_storage_failure_comes_out_once_though_all_runs_meet_it(autojump_clock: object):
    """
    A store that failed for many runs at once still comes out as a single StorageError.
    """
    ready = trio.Event()

    async def step() -> None:
        await ready.wait()

    async def body(ctx: memable.Context) -> None:
        await ctx.step("step", step)

    workflow = workflow_of(body)
    with pytest.raises(memable.StorageError, match="no space left"):
        async with memable.open_engine(failing_at("step_completed"), workflows=[workflow]) as engine:
            for _ in range(5):
                await engine.invoke(workflow)
            await trio.testing.wait_all_tasks_blocked()
            ready.set()
            await trio.sleep_forever()


async def test_storage_failure_that_a_caller_meets_is_the_one_that_comes_out(autojump_clock: object):
    """
    The StorageError that left the block is not made its own context, which would make a circle of it.
    """
    with pytest.raises(memable.StorageError, match="no space left") as caught:
        async with memable.open_engine(failing_at("instance_started"), workflows=[quick]) as engine:
            await engine.invoke(quick)
    assert caught.value.__context__ is not caught.value
    assert "no space left" in "".join(traceback.format_exception(caught.value))


async def test_storage_failure_that_the_block_swallows_comes_out_all_the_same(autojump_clock: object):
    """
    A block that catches a StorageError and goes on ends with it.
    """
    with pytest.raises(memable.StorageError, match="no space left"):
        async with memable.open_engine(failing_at("instance_started"), workflows=[quick]) as engine:
            with pytest.raises(memable.StorageError, match="no space left"):
                await engine.invoke(quick)


@pytest.mark.parametrize("how", ["from", "during", "group"])
async def test_storage_failure_that_the_block_wraps_comes_out_without_a_circle(how: str, autojump_clock: object):
    """
    A block that makes another exception of a StorageError ends with the StorageError; the chain of contexts ends.
    """
    with pytest.raises(memable.StorageError, match="no space left") as caught:
        # The exit stack walks the chain of contexts.
        async with contextlib.AsyncExitStack() as stack:
            engine = await stack.enter_async_context(
                memable.open_engine(failing_at("instance_started"), workflows=[quick])
            )
            stack.callback(list)
            try:
                await engine.invoke(quick)
            except memable.StorageError as error:
                match how:
                    case "from":
                        raise ValueError("wrapped") from error
                    case "during":
                        raise ValueError("wrapped")  # noqa: B904
                    case _:
                        raise ExceptionGroup("wrapped", [error, ValueError("beside")]) from None
    chain = [caught.value]
    while chain[-1].__context__ is not None:
        chain.append(chain[-1].__context__)
        assert len(chain) < 10
    assert "wrapped" in str(chain[1])


async def test_storage_failure_has_the_blocks_exception_as_its_context(autojump_clock: object):
    """
    A storage failure while runs are unwound has as its context what the block raised.
    """
    raised = ValueError("the block")

    async def step() -> int:
        # Too late to be cancelled: the outcome is on its way.
        with trio.CancelScope(shield=True):
            await trio.sleep(1)
        return 1

    async def body(ctx: memable.Context) -> None:
        await ctx.step("step", step)

    workflow = workflow_of(body)
    with pytest.raises(memable.StorageError, match="no space left") as caught:
        async with memable.open_engine(failing_at("step_completed"), workflows=[workflow]) as engine:
            await engine.invoke(workflow)
            await trio.testing.wait_all_tasks_blocked()
            raise raised
    assert caught.value.__context__ is raised


async def test_storage_failure_beside_an_interrupt_comes_in_a_group(autojump_clock: object):
    """
    A StorageError and a KeyboardInterrupt from inside together come out in a group.
    """

    async def interrupting(ctx: memable.Context) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise KeyboardInterrupt

    workflow = workflow_of(interrupting)
    with pytest.raises(BaseExceptionGroup, match="several failures stopped the engine") as caught:
        async with memable.open_engine(failing_at("instance_completed"), workflows=[workflow, quick]) as engine:
            await engine.invoke(workflow)
            await trio.testing.wait_all_tasks_blocked()
            await engine.invoke(quick)
            await trio.sleep_forever()
    assert {type(leaf) for leaf in caught.value.exceptions} == {memable.StorageError, KeyboardInterrupt}


async def test_storage_failure_in_recovery_comes_out_of_the_block(autojump_clock: object):
    """
    A store that fails while instances are recovered ends the engine, and its instances are still there.
    """
    store = memable.InMemoryStore()
    async with memable.open_engine(store, workflows=[endless], shutdown_timeout=0) as engine:
        await engine.invoke(endless, instance_id="i")
    with pytest.raises(memable.StorageError, match="no space left"):
        async with memable.open_engine(failing_at("run_started", store), workflows=[endless]):
            await trio.sleep_forever()
    with pytest.raises(memable.StorageError, match="no space left"):
        async with memable.open_engine(failing_at("run_started", store)) as engine:
            engine.register(endless)
            await trio.sleep_forever()
    assert await status_in(store, workflow=endless) is MetadataStatus.RUNNING


@pytest.mark.parametrize("reader", ["run", "state", "resume", "invoke"])
async def test_storage_failure_in_reading_comes_out_of_the_block(reader: str, autojump_clock: object):
    """
    A journal that cannot be read ends the engine, whoever wanted to read it.
    """
    store = memable.InMemoryStore()
    async with memable.open_engine(store, workflows=[endless, quick], shutdown_timeout=0) as engine:
        await (await engine.invoke(quick, instance_id="done")).result()
        await engine.invoke(endless, instance_id="i")

    async def fail(_number: int) -> None:
        raise disk_full()

    hooked = HookedStore(store, before_load=fail)
    with pytest.raises(memable.StorageError, match="no space left"):
        async with memable.open_engine(hooked, workflows=[endless, quick], resume_on_start=reader == "run") as engine:
            match reader:
                case "run":
                    await trio.sleep_forever()
                case "state":
                    await engine.state(quick, "done")
                case "resume":
                    await engine.resume(endless, "i")
                case _:
                    await engine.invoke(quick, instance_id="done")
    assert await status_in(store, workflow=endless) is MetadataStatus.RUNNING


@pytest.mark.parametrize("block_raises", [False, True])
async def test_storage_failure_at_closing_comes_out_of_the_block(block_raises: bool, autojump_clock: object):
    """
    A store that cannot be closed in order says so, with what the block raised as the context.
    """

    def fail() -> None:
        raise disk_full()

    raised = ValueError("the block")
    with pytest.raises(memable.StorageError, match="no space left") as caught:
        async with memable.open_engine(HookedStore(on_close=fail)):
            if block_raises:
                raise raised
    assert caught.value.__context__ is (raised if block_raises else None)


async def test_storage_failure_is_told_by_its_first_cause(autojump_clock: object):
    """
    A store that failed and then cannot be closed, either, is told by what it failed of first.
    """

    def fail() -> None:
        raise memable.StorageError(location="the test's store", problem="cannot be closed")

    store = failing_at("instance_started")
    store.on_close = fail
    with pytest.raises(memable.StorageError, match="no space left"):
        async with memable.open_engine(store, workflows=[quick]) as engine:
            await engine.invoke(quick)


async def test_store_that_breaks_in_closing_does_not_hide_what_stopped_the_engine(autojump_clock: object):
    """
    Whatever a store raises when it is closed, a KeyboardInterrupt from inside comes out beside it.
    """

    def fail() -> None:
        raise OSError("broken store")

    async def body(ctx: memable.Context) -> None:
        raise KeyboardInterrupt

    workflow = workflow_of(body)
    with pytest.raises(BaseExceptionGroup, match="several failures") as caught:
        async with memable.open_engine(HookedStore(on_close=fail), workflows=[workflow]) as engine:
            await engine.invoke(workflow)
    assert [type(leaf) for leaf in caught.value.exceptions] == [KeyboardInterrupt, OSError]


async def test_bug_in_a_store_comes_out_of_the_block_as_itself(autojump_clock: object):
    """
    An exception that no store should raise is not kept by the engine, and not wrapped.
    """
    store = memable.InMemoryStore()
    async with memable.open_engine(store, workflows=[endless], shutdown_timeout=0) as engine:
        await engine.invoke(endless, instance_id="i")

    async def fail(_records: object) -> None:
        raise ZeroDivisionError("bug")

    with pytest.raises(ZeroDivisionError, match="bug"):
        async with memable.open_engine(HookedStore(store, before_append=fail)) as engine:
            engine.register(endless)
            await trio.sleep_forever()
    with pytest.raises(ZeroDivisionError, match="bug"):
        async with memable.open_engine(HookedStore(store, before_load=fail), workflows=[endless]):
            await trio.sleep_forever()


# The store's own work ----------------------------------------------------------------------------------------------


def maintained_by(maintain: Callable[[], Awaitable[None]], store: Store | None = None) -> WrappedStore:
    """
    Return a store that does *maintain* for its maintenance.
    """

    class Maintained(Wrapper):
        async def maintain(self) -> None:
            await maintain()

    return WrappedStore(Maintained, memable.InMemoryStore() if store is None else store)


async def test_maintenance_goes_on_for_as_long_as_runs_do(place: Place, autojump_clock: object):
    """
    The store's maintenance runs from the opening until no run is left, then it is cancelled, before the store closes.
    """
    told: list[str] = []

    async def maintain() -> None:
        told.append("begun")
        try:
            while True:
                await trio.sleep(10)
                told.append("tick")
        finally:
            told.append("cancelled")

    store = maintained_by(maintain, HookedStore(place.store(), on_close=lambda: told.append("closed")))
    async with memable.open_engine(store, workflows=[sleepy]) as engine:
        await engine.invoke(sleepy, 35.0)
        began = trio.current_time()
        await trio.testing.wait_all_tasks_blocked()
        assert told == ["begun"]
    assert trio.current_time() == began + 35
    assert told == ["begun", "tick", "tick", "tick", "cancelled", "closed"]


async def test_maintenance_may_end_by_itself(place: Place, autojump_clock: object):
    """
    A store that has nothing to maintain says so by returning.
    """
    async with memable.open_engine(maintained_by(trio.lowlevel.checkpoint, place.store()), workflows=[quick]) as engine:
        await trio.sleep(10)
        assert await (await engine.invoke(quick, "you")).result() == "hello you"


@pytest.mark.parametrize("delay", [0, 10])
async def test_storage_failure_in_maintenance_comes_out_of_the_block(
    delay: float, place: Place, autojump_clock: object
):
    """
    A StorageError of the store's maintenance stops the engine and comes out once; runs stay Running.
    """

    async def maintain() -> None:
        await trio.sleep(delay)
        raise disk_full()

    with pytest.raises(memable.StorageError, match="no space left"):
        async with memable.open_engine(maintained_by(maintain, place.store()), workflows=[endless]) as engine:
            if delay:
                await engine.invoke(endless, instance_id="i")
            await trio.sleep_forever()
    if delay:
        assert await status_in(place.store(), workflow=endless) is MetadataStatus.RUNNING


async def test_storage_failure_that_runs_and_maintenance_meet_comes_out_once(autojump_clock: object):
    """
    A store that fails in an append, in its maintenance and at closing has failed once.
    """
    failed = trio.Event()

    async def fail(_records: object) -> None:
        failed.set()
        raise disk_full()

    def fail_again() -> None:
        raise memable.StorageError(location="the test's store", problem="cannot be closed")

    async def maintain() -> None:
        await failed.wait()
        raise memable.StorageError(location="the test's store", problem="failed before")

    store = maintained_by(maintain, HookedStore(before_append=fail, on_close=fail_again))
    with pytest.raises(memable.StorageError):
        async with memable.open_engine(store, workflows=[quick]) as engine:
            await engine.invoke(quick)


async def test_bug_in_maintenance_comes_out_of_the_block_as_itself(autojump_clock: object):
    """
    An exception that no maintenance should raise stops the engine, and is not wrapped.
    """

    async def maintain() -> None:
        raise ZeroDivisionError("bug")

    with pytest.raises(ZeroDivisionError, match="bug"):
        async with memable.open_engine(maintained_by(maintain)):
            await trio.sleep_forever()


@pytest.mark.parametrize("how", ["leave", "stop", "raise", "cancel"])
async def test_maintenance_does_not_delay_a_shutdown(how: str, autojump_clock: object):
    """
    However the block is left, maintenance that would take for ever is cancelled at once.
    """
    raised = ValueError("the block")
    began = trio.current_time()
    with trio.CancelScope() as scope, contextlib.suppress(ValueError):
        async with memable.open_engine(maintained_by(trio.sleep_forever), workflows=[endless]) as engine:
            await engine.invoke(endless)
            if how in ("leave", "stop"):
                await engine.stop(timeout=0)
            if how == "raise":
                raise raised
            if how == "cancel":
                scope.cancel()
                await trio.lowlevel.checkpoint()
    assert trio.current_time() == began


async def test_log_of_unregistered_workflows_leaves_out_children_that_have_ended(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
):
    """
    Children that are kept for a parent that has not ended are not unfinished themselves.
    """
    point = memable.SuspendPoint("go", bool)

    async def body(ctx: memable.Context) -> None:
        await ctx.call("call", quick)
        await ctx.suspend(point)

    store, workflow = memable.InMemoryStore(), workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow, quick]) as engine:
        await (await engine.invoke(workflow)).wait()
    with caplog.at_level(logging.WARNING, logger="memable"):
        async with memable.open_engine(store):
            pass
    (record,) = caplog.records
    assert "'w': 1)" in record.getMessage()
    assert "quick" not in record.getMessage()


# Control-C ---------------------------------------------------------------------------------------------------------


def test_control_c_in_the_block_comes_out_as_itself():
    """
    Control-C while the block computes comes out of the block, and instances stay Running.
    """
    store = memable.InMemoryStore()

    async def main() -> None:
        async with memable.open_engine(store, workflows=[endless]) as engine:
            await engine.invoke(endless, instance_id="i")
            press_control_c()
            pytest.fail("not interrupted")

    with pytest.raises(KeyboardInterrupt):
        run(main)
    assert trio.run(status_in, store, "i", endless) is MetadataStatus.RUNNING


@pytest.mark.parametrize("where", ["body", "step"])
def test_control_c_in_a_workflow_comes_out_as_itself(where: str):
    """
    Control-C while a body or a step computes comes out of the block, and the instance stays Running.
    """
    store = memable.InMemoryStore()

    async def step() -> None:
        press_control_c()
        pytest.fail("not interrupted")

    async def body(ctx: memable.Context) -> None:
        if where == "step":
            await ctx.step("step", step)
        await step()

    workflow = workflow_of(body)

    async def main() -> None:
        async with memable.open_engine(store, workflows=[workflow]) as engine:
            await engine.invoke(workflow, instance_id="i")
            await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        run(main)
    assert kinds_of(store) == ["instance_started"]


@pytest.mark.parametrize("where", ["block", "leaving", "unwinding"])
def test_control_c_while_nothing_computes_comes_out_as_itself(where: str):
    """
    Control-C while the block sleeps, is being left or waits for runs that unwind comes out, never in a group.
    """
    store = memable.InMemoryStore()
    left: list[str] = []

    async def body(ctx: memable.Context) -> None:
        if where == "unwinding":
            with trio.CancelScope(shield=True):
                await trio.sleep(20)
        else:
            await trio.sleep(20)
        left.append("body")

    async def main() -> None:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            @trio.lowlevel.enable_ki_protection
            async def presser() -> None:
                await trio.sleep(10)
                press_control_c()

            async with memable.open_engine(
                store, workflows=[workflow], shutdown_timeout=1 if where == "unwinding" else math.inf
            ) as engine:
                await engine.invoke(workflow, instance_id="i")
                if where == "block":
                    await trio.sleep_forever()

    workflow = workflow_of(body)
    # The group is that of the nursery around the engine.
    with pytest.raises(BaseExceptionGroup, match="nursery") as caught:
        run(main)
    assert [type(leaf) for leaf in caught.value.exceptions] == [KeyboardInterrupt]
    assert left == (["body"] if where == "unwinding" else [])
    assert kinds_of(store) == ["instance_started"]


@pytest.mark.parametrize("how", ["suspend", "sleep", "call"])
def test_control_c_just_before_a_body_sleeps_leaves_nobody_to_be_woken(how: str, monkeypatch: pytest.MonkeyPatch):
    """
    Control-C at the moment at which a branch is about to wait comes out of the block; the branch does not go astray.

    A regression: it was woken while it unwound, and trio broke down.
    """
    original = Run.begin_wait

    def begin_wait(self: Run, wait: Wait) -> bool:
        is_waiting = original(self, wait)
        press_control_c()
        return is_waiting

    monkeypatch.setattr(Run, "begin_wait", begin_wait)
    point = memable.SuspendPoint("p", int)

    @memable.workflow
    async def child(ctx: memable.Context) -> None:
        await trio.sleep_forever()

    async def body(ctx: memable.Context) -> None:
        if how == "suspend":
            await ctx.suspend(point)
        elif how == "sleep":
            await ctx.sleep("s", 10)
        else:
            await ctx.call("c", child)

    workflow = workflow_of(body)

    async def main() -> None:
        async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow, child]) as engine:
            await engine.invoke(workflow, instance_id="i")
            await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        run(main)


def test_control_c_while_runs_unwind_has_the_blocks_exception_as_its_context():
    """
    Control-C while runs unwind after the block has failed comes out with the block's exception as its context.
    """

    async def body(ctx: memable.Context) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(1)
            press_control_c_protected()
            await trio.sleep(1)

    @trio.lowlevel.enable_ki_protection
    def press_control_c_protected() -> None:
        press_control_c()

    workflow = workflow_of(body)
    raised = ValueError("the block")

    async def main() -> None:
        async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
            await engine.invoke(workflow, instance_id="i")
            await trio.testing.wait_all_tasks_blocked()
            raise raised

    with pytest.raises(KeyboardInterrupt) as caught:
        run(main)
    assert caught.value.__context__ is raised


@pytest.mark.parametrize("kind", ["instance_started", "instance_resumed", "cancel_requested"])
def test_control_c_while_memable_records_something_does_not_leave_it_half_done(kind: str):
    """
    Control-C in the middle of invoke, resume or cancel is raised once what was begun is done.
    """
    store = memable.InMemoryStore()
    pressed: list[str] = []

    async def press(records: Sequence[InstanceRecord]) -> None:
        if records[0].kind == kind:
            pressed.append(kind)
            press_control_c()

    async def failing(ctx: memable.Context) -> None:
        if not pressed:
            raise ValueError
        await trio.sleep(1)

    workflow = workflow_of(failing)

    async def main() -> None:
        hooked = HookedStore(store, before_append=press)
        async with memable.open_engine(hooked, workflows=[workflow, sleepy]) as engine:
            match kind:
                case "instance_started":
                    call: Any = partial(engine.invoke, sleepy, 1.0, instance_id="i")
                case "instance_resumed":
                    await (await engine.invoke(workflow, instance_id="i")).wait()
                    call = partial(engine.resume, workflow, "i")
                case _:
                    await engine.invoke(sleepy, 100.0, instance_id="i")
                    call = partial(engine.cancel, sleepy, "i")
            with pytest.raises(KeyboardInterrupt):
                await call()
                await trio.lowlevel.checkpoint()
            assert pressed == [kind]
            name = "w" if kind == "instance_resumed" else "sleepy"
            expected = memable.Cancelled() if kind == "cancel_requested" else memable.Completed()
            assert await (await engine.get(name, "i")).wait() == expected

    run(main)


@pytest.mark.slow
def test_control_c_pressed_anywhere_while_the_engine_opens_or_closes_stops_it_in_order():
    """
    Wherever control-C strikes while an engine is opened and left, it comes out as itself and the store is free again.
    """

    async def main(strike_at: int) -> bool:
        store = memable.InMemoryStore()
        seen = 0

        def watch(frame: Any, event: str, arg: object) -> Any:
            nonlocal seen
            if event == "line" and frame.f_code.co_filename in {contextlib.__file__, memable._open.__file__}:
                seen += 1
                if seen == strike_at:
                    press_control_c()
            return watch

        struck = False
        tracing = sys.gettrace()
        try:
            sys.settrace(watch)
            async with memable.open_engine(store, workflows=[quick]) as engine:
                sys.settrace(tracing)
                await engine.invoke(quick)
                sys.settrace(watch)
            sys.settrace(tracing)
            await trio.lowlevel.checkpoint()
        except KeyboardInterrupt:
            struck = True
        finally:
            sys.settrace(tracing)
        async with memable.open_engine(store):
            pass
        return struck

    strikes = 0
    while trio.run(main, strikes + 1, clock=MockClock(autojump_threshold=0)):
        strikes += 1
    assert strikes > 50


# After the block ---------------------------------------------------------------------------------------------------


async def test_engine_refuses_everything_after_its_block(place: Place, autojump_clock: object):
    """
    Each use of an engine or handle after the block is an EngineStoppedError; stop and wait_all have nothing to do.
    """
    async with memable.open_engine(place.store(), workflows=[quick]) as engine:
        invocation = await engine.invoke(quick, instance_id="i")
        stream = invocation.states()
        await invocation.result()
    for call in (
        partial(engine.invoke, quick),
        partial(engine.invoke, quick, instance_id="i"),
        partial(engine.get, quick, "i"),
        partial(engine.resume, quick, "i"),
        partial(engine.cancel, quick, "i"),
        partial(engine.state, quick, "i"),
        partial(engine.metadata, quick, "i"),
        engine.list_instances,
        engine.subscribe(quick, "i").__anext__,
        stream.__anext__,
        invocation.wait,
        invocation.result,
        invocation.state,
    ):
        with pytest.raises(memable.EngineStoppedError, match=r"open the store again with open_engine"):
            await call()
    with pytest.raises(memable.EngineStoppedError, match=r"engine\.register"):
        engine.register(endless)
    await engine.stop()
    await engine.wait_all()


async def test_engine_is_garbage_soon_after_its_block(autojump_clock: object):
    """
    Nothing global keeps an engine, its runs or what came out of its block.
    """

    async def body(ctx: memable.Context) -> None:
        raise KeyboardInterrupt

    workflow = workflow_of(body)
    with pytest.raises(KeyboardInterrupt):
        async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
            await engine.invoke(workflow)
    engine_was = weakref.ref(engine)
    del engine
    gc.collect()
    assert engine_was() is None


async def test_log_names_unregistered_workflows_once_with_their_count(
    place: Place, autojump_clock: object, caplog: pytest.LogCaptureFixture
):
    """
    Instances of workflows that are not registered are logged at opening: once, with their count.
    """
    async with memable.open_engine(place.store(), workflows=[endless, sleepy, quick], shutdown_timeout=0) as engine:
        for _ in range(3):
            await engine.invoke(endless)
        await engine.invoke(sleepy, 1.0)
        await (await engine.invoke(quick)).result()
    with caplog.at_level(logging.WARNING, logger="memable"):
        async with memable.open_engine(place.store()):
            pass
        (record,) = caplog.records
        assert "'endless': 3, 'sleepy': 1" in record.getMessage()
        assert "quick" not in record.getMessage()
        caplog.clear()
        async with memable.open_engine(place.store(), workflows=[endless, sleepy], resume_on_start=False):
            pass
        assert caplog.records == []


def test_control_c_while_a_record_is_queued_does_not_keep_the_engine(monkeypatch: pytest.MonkeyPatch):
    """
    A regression: the run took the record for one on its way for ever, and the block was never left.
    """
    original = Ledger.note_queued
    settled: list[bool] = []

    def note_queued(self: Ledger, records: Sequence[InstanceRecord]) -> int:
        newest = original(self, records)
        if records[-1].kind == "step_completed":
            press_control_c()
        return newest

    monkeypatch.setattr(Ledger, "note_queued", note_queued)

    @memable.workflow(name="w")
    async def body(ctx: memable.Context) -> None:
        try:
            await ctx.step("a", sleepy_step)
        finally:
            ledger = ctx._run.ledger
            settled.append(ledger.is_settled)
            if not ledger.is_settled:
                # Else this test would not end either.
                ledger.end_append()

    async def sleepy_step() -> None:
        await trio.sleep(1)

    async def main() -> None:
        async with memable.open_engine(memable.InMemoryStore(), workflows=[body]) as engine:
            await (await engine.invoke(body, instance_id="i")).result()

    with pytest.raises(KeyboardInterrupt):
        run(main)
    assert settled == [True]
