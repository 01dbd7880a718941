"""
Starting instances: once for each id, durable when it returns, whatever is cancelled or under way.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

import memable
from running import kinds_of, workflow_of
from stores import Gate, HookedStore, Place, failing_at

MAX_TICKS = 20
"More schedule points than any one call has."


@memable.workflow
async def greet(ctx: memable.Context, name: str, times: int = 1) -> str:
    await trio.sleep(1)
    return " ".join([f"hello {name}"] * times)


@memable.workflow
async def take(ctx: memable.Context, value: Any) -> None:
    pass


@memable.workflow
async def endless(ctx: memable.Context) -> None:
    await trio.sleep_forever()


@memable.workflow
async def failing(ctx: memable.Context) -> None:
    raise ValueError("on purpose")


@attrs.frozen
class Point:
    x: int
    y: int


async def test_invoke_returns_a_handle_on_what_it_started(place: Place, autojump_clock: object):
    """
    Invoke returns at once with a handle that names the instance and gives its result.
    """
    async with memable.open_engine(place.store(), workflows=[greet]) as engine:
        began = trio.current_time()
        invocation = await engine.invoke(greet, "Ada", 2, instance_id="i")
        assert trio.current_time() == began
        assert (invocation.workflow_name, invocation.instance_id) == ("greet", "i")
        assert await invocation.result() == "hello Ada hello Ada"


async def test_invoke_takes_the_name_of_a_registered_workflow(place: Place, autojump_clock: object):
    """
    A registered workflow may be given by its name.
    """
    async with memable.open_engine(place.store(), workflows=[greet]) as engine:
        assert await (await engine.invoke("greet", "Ada")).result() == "hello Ada"


async def test_invoke_is_durable_when_it_returns(place: Place, autojump_clock: object):
    """
    A crash right after invoke has returned loses nothing: the instance runs at the next open.
    """
    async with memable.open_engine(place.store(), workflows=[greet], shutdown_timeout=0) as engine:
        await engine.invoke(greet, "Ada", instance_id="i")
        crashed = place.crash()
    async with memable.open_engine(crashed.store(), workflows=[greet]) as engine:
        assert await (await engine.get(greet, "i")).result() == "hello Ada"


async def test_invoke_is_a_checkpoint(autojump_clock: object):
    """
    Invoke is a checkpoint, for a new instance and for one that exists.
    """
    async with memable.open_engine(memable.InMemoryStore(), workflows=[take]) as engine:
        for _ in range(2):
            with trio.testing.assert_checkpoints():
                await engine.invoke(take, 1, instance_id="i")


# Starting again ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["running", "completed", "failed", "cancelled", "blocked", "stale"])
async def test_invoke_again_returns_the_existing_instance(ending: str, place: Place, autojump_clock: object):
    """
    Starting an id again with the same input returns a handle on it, whatever its state, and starts nothing.
    """
    runs: list[int] = []

    @memable.workflow
    async def work(ctx: memable.Context, kind: str) -> str:
        runs.append(1)
        match kind:
            case "failed":
                raise ValueError("on purpose")
            case "blocked":
                raise memable.MisuseError(problem="on purpose")
            case "completed":
                return kind
        await trio.sleep_forever()
        raise AssertionError

    async with memable.open_engine(place.store(), workflows=[work], shutdown_timeout=0) as engine:
        await engine.invoke(work, ending, instance_id="i")
        await trio.testing.wait_all_tasks_blocked()
        if ending == "cancelled":
            await engine.cancel(work, "i")
        expected = await engine.state(work, "i")
        again = await engine.invoke(work, ending, instance_id="i")
        assert await again.state() == expected
        assert runs == [1]
    is_terminal = ending in {"completed", "failed", "cancelled"}
    async with memable.open_engine(
        place.store(), workflows=[work], shutdown_timeout=0, resume_on_start=is_terminal
    ) as engine:
        again = await engine.invoke(work, ending, instance_id="i")
        assert await again.state() == expected
        with pytest.raises(memable.InstanceConflictError, match="exists already with another input"):
            await engine.invoke(work, "other", instance_id="i")
        assert runs == [1]
        assert len(await engine.list_instances()) == 1


async def test_invoke_compares_inputs_as_canonical_json(place: Place, autojump_clock: object):
    """
    Inputs are the same if their canonical JSON is: the order of a dict's keys does not matter, a value does.
    """
    async with memable.open_engine(place.store(), workflows=[take]) as engine:
        await engine.invoke(take, {"a": 1, "b": [1, 2]}, instance_id="i")
        await engine.invoke(take, {"b": [1, 2], "a": 1}, instance_id="i")
        for other in ({"a": 1}, {"a": 1, "b": [2, 1]}, {"a": True, "b": [1, 2]}, {"a": "1", "b": [1, 2]}, None):
            with pytest.raises(memable.InstanceConflictError, match="use another instance_id"):
                await engine.invoke(take, other, instance_id="i")


async def test_invoke_tells_left_out_arguments_from_given_ones(place: Place, autojump_clock: object):
    """
    An instance that was started with a default left out is another input than one with it given.
    """
    async with memable.open_engine(place.store(), workflows=[greet]) as engine:
        await engine.invoke(greet, "Ada", instance_id="i")
        with pytest.raises(memable.InstanceConflictError, match="another input"):
            await engine.invoke(greet, "Ada", 1, instance_id="i")


async def test_invoke_keeps_ids_of_different_workflows_apart(place: Place, autojump_clock: object):
    """
    An instance is identified by workflow and id: two workflows may use one id.
    """
    async with memable.open_engine(place.store(), workflows=[greet, take]) as engine:
        first = await engine.invoke(greet, "Ada", instance_id="i")
        second = await engine.invoke(take, "Ada", instance_id="i")
        assert (await first.result(), await second.result()) == ("hello Ada", None)


# Races -------------------------------------------------------------------------------------------------------------


async def test_invokes_of_one_id_at_once_start_one_instance(place: Place, autojump_clock: object):
    """
    However many tasks start one id at the same time with the same input, there is one instance, and all get it.
    """
    gate = Gate("instance_started")
    store = HookedStore(place.store(), before_append=gate.pass_)
    results: list[str] = []
    async with memable.open_engine(store, workflows=[greet]) as engine, trio.open_nursery() as nursery:

        async def start() -> None:
            results.append(await (await engine.invoke(greet, "Ada", instance_id="i")).result())

        for _ in range(5):
            nursery.start_soon(start)
        await trio.testing.wait_all_tasks_blocked()
        gate.is_open.set()
    assert results == ["hello Ada"] * 5
    async with memable.open_engine(place.store()) as engine:
        assert len(await engine.list_instances()) == 1


async def test_invokes_of_one_id_at_once_with_other_input_conflict(place: Place, autojump_clock: object):
    """
    Of two tasks that start one id at the same time with different input, one starts it and one gets the conflict.
    """
    gate = Gate("instance_started")
    store = HookedStore(place.store(), before_append=gate.pass_)
    outcomes: list[str] = []
    async with memable.open_engine(store, workflows=[greet]) as engine, trio.open_nursery() as nursery:

        async def start(name: str) -> None:
            try:
                outcomes.append(await (await engine.invoke(greet, name, instance_id="i")).result())
            except memable.InstanceConflictError:
                outcomes.append("conflict")

        nursery.start_soon(start, "Ada")
        nursery.start_soon(start, "Bob")
        await trio.testing.wait_all_tasks_blocked()
        assert outcomes == []
        gate.is_open.set()
    assert outcomes[0] == "conflict"
    assert outcomes[1] in {"hello Ada", "hello Bob"}


async def test_operations_on_an_instance_whose_start_is_in_flight_wait_for_it(autojump_clock: object):
    """
    What is asked of an instance while its start is on its way to the disk is answered once it is durable.
    """
    gate = Gate("instance_started")
    answers: dict[str, object] = {}
    async with (
        memable.open_engine(HookedStore(before_append=gate.pass_), workflows=[greet]) as engine,
        trio.open_nursery() as nursery,
    ):

        async def ask(name: str, call: Callable[[], Any]) -> None:
            answers[name] = await call()

        nursery.start_soon(partial(engine.invoke, greet, "Ada", instance_id="i"))
        await gate.is_reached.wait()
        assert await engine.metadata(greet, "i") is None
        assert await engine.list_instances() == []
        nursery.start_soon(ask, "state", partial(engine.state, greet, "i"))
        nursery.start_soon(ask, "get", partial(engine.get, greet, "i"))
        nursery.start_soon(ask, "resume", partial(engine.resume, greet, "i"))
        nursery.start_soon(ask, "stream", engine.subscribe(greet, "i").__anext__)
        await trio.testing.wait_all_tasks_blocked()
        assert answers == {}
        gate.is_open.set()
        await trio.testing.wait_all_tasks_blocked(0.5)
        assert answers.keys() == {"state", "get", "resume", "stream"}
        assert answers["state"] == answers["stream"] == memable.Started()


async def test_invoke_of_an_id_whose_start_fails_fails_too(autojump_clock: object):
    """
    A task that waits for another's start of the same id learns that the engine stopped, when that start fails.
    """
    gate = Gate("instance_started")
    outcomes: list[str] = []

    async def fail_late(records: Any) -> None:
        await gate.pass_(records)
        raise memable.StorageError(location="the test's store", problem="no space left")

    with pytest.raises(memable.StorageError, match="no space left"):
        async with (
            memable.open_engine(HookedStore(before_append=fail_late), workflows=[greet]) as engine,
            trio.open_nursery() as nursery,
        ):

            async def start() -> None:
                try:
                    with trio.CancelScope(shield=True):
                        await engine.invoke(greet, "Ada", instance_id="i")
                except memable.MemableError as error:
                    outcomes.append(type(error).__name__)

            for _ in range(3):
                nursery.start_soon(start)
            await trio.testing.wait_all_tasks_blocked()
            gate.is_open.set()
    assert sorted(outcomes) == ["EngineStoppedError", "EngineStoppedError", "StorageError"]


@pytest.mark.parametrize("how", ["stop", "leave", "fail"])
async def test_invoke_in_flight_when_the_engine_stops_is_durable(how: str, place: Place, autojump_clock: object):
    """
    A start that is in flight when the engine stops is acknowledged and runs at the next open at the latest.
    """
    gate = Gate("instance_started")
    started: list[str] = []

    async def start() -> None:
        invocation = await engine.invoke(greet, "Ada", instance_id="i")
        started.append(invocation.instance_id)
        try:
            await invocation.result()
        except memable.EngineStoppedError:
            started.append("stopped")

    async with trio.open_nursery() as nursery:
        try:
            async with memable.open_engine(
                HookedStore(place.store(), before_append=gate.pass_), workflows=[greet], shutdown_timeout=0
            ) as engine:
                nursery.start_soon(start)
                await gate.is_reached.wait()
                if how == "stop":
                    await engine.stop()
                gate.is_open.set()
                if how == "fail":
                    raise LookupError
        except LookupError:
            pass
    assert started == ["i", "stopped"]
    async with memable.open_engine(place.store(), workflows=[greet]) as engine:
        assert await (await engine.get(greet, "i")).result() == "hello Ada"


async def test_looking_for_an_instance_whose_start_is_in_flight_when_the_engine_stops_says_so(autojump_clock: object):
    """
    Whoever waits for a start to become durable when the engine stops gets an EngineStoppedError.
    """
    gate = Gate("instance_started")
    hooked = HookedStore(before_append=gate.pass_)
    async with trio.open_nursery() as nursery, memable.open_engine(hooked, workflows=[greet]) as engine:
        nursery.start_soon(partial(engine.invoke, greet, "Ada", instance_id="i"))
        await gate.is_reached.wait()

        @nursery.start_soon
        async def look() -> None:
            with pytest.raises(memable.EngineStoppedError, match="looking for instance 'i': the engine has stopped"):
                await engine.get(greet, "i")

        await trio.testing.wait_all_tasks_blocked()
        await engine.stop()
        await trio.testing.wait_all_tasks_blocked()
        gate.is_open.set()


def test_invoke_cancelled_at_any_point_starts_an_instance_wholly_or_not_at_all():
    """
    Cancelled at any of its schedule points, invoke leaves no instance, or one that runs to its end; never half of one.
    """

    async def main(ticks: int, instance_id: str | None) -> bool:
        store = memable.InMemoryStore()

        async def slowly(_records: object) -> None:
            await trio.lowlevel.checkpoint()

        async with memable.open_engine(HookedStore(store, before_append=slowly), workflows=[greet]) as engine:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    @nursery.start_soon
                    async def cancel() -> None:
                        for _ in range(ticks):
                            await trio.lowlevel.cancel_shielded_checkpoint()
                        scope.cancel()

                    if ticks < 0:
                        scope.cancel()
                    await engine.invoke(greet, "Ada", instance_id=instance_id)
                    nursery.cancel_scope.cancel()
            recorded = kinds_of(store)
            assert recorded[:1] in ([], ["instance_started"])
            await engine.wait_all()
            if instance_id is not None:
                # Starting it again is the same whether it was started or not.
                invocation = await engine.invoke(greet, "Ada", instance_id=instance_id)
                assert await invocation.result() == "hello Ada"
            states = [metadata.status for metadata in await engine.list_instances()]
            assert states in ([], [memable.MetadataStatus.COMPLETED])
            assert len(states) == (1 if recorded or instance_id else 0)
        assert kinds_of(store) in ([], ["instance_started", "instance_completed"])
        return scope.cancelled_caught

    for instance_id in ("i", None):
        # Trio runs ready tasks in no promised order. The first is cancelled before it begins.
        for ticks in range(-1, MAX_TICKS):
            was_cancelled = {
                trio.run(main, ticks, instance_id, clock=MockClock(autojump_threshold=0)) for _ in range(5)
            }
            assert True not in was_cancelled if ticks == MAX_TICKS - 1 else ticks >= 0 or was_cancelled == {True}


# Refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ((), r"workflow 'greet', instance 'i': missing a required argument: 'name'; its signature is \(name: "),
        (
            ("Ada", 1, "more"),
            r"workflow 'greet', instance 'i': too many positional arguments; its signature is \(name: ",
        ),
    ],
)
async def test_invoke_refuses_arguments_that_do_not_fit(
    args: tuple[Any, ...], match: str, place: Place, autojump_clock: object
):
    """
    Arguments that do not fit the signature are a TypeError, and nothing is written.
    """
    async with memable.open_engine(place.store(), workflows=[greet]) as engine:
        with pytest.raises(TypeError, match=match):
            await engine.invoke(greet, *args, instance_id="i")
        assert await engine.metadata(greet, "i") is None


@pytest.mark.parametrize(
    ("workflow", "args", "match"),
    [
        (greet, (3,), "'greet'.*builtins.str"),
        (greet, ("Ada", "2"), "'greet'.*builtins.int"),
        (take, (Point(1, 2),), "'take'.*Point"),
    ],
)
async def test_invoke_refuses_arguments_of_another_type(
    workflow: memable.Workflow[..., Any], args: tuple[Any, ...], match: str, place: Place, autojump_clock: object
):
    """
    An argument that is not of its annotated type is a SerializationError, and nothing is written.
    """
    async with memable.open_engine(place.store(), workflows=[greet, take]) as engine:
        with pytest.raises(memable.SerializationError, match=match):
            await engine.invoke(workflow, *args, instance_id="i")
        assert await engine.metadata(workflow, "i") is None


@pytest.mark.parametrize("instance_id", ["", "_x", "a/b", "a\nb", "x" * 256, "\ud800", 3, b"i"])
async def test_invoke_refuses_an_invalid_id(instance_id: Any, autojump_clock: object):
    """
    An id that breaks the rule for ids is an InvalidKeyError that shows it.
    """
    async with memable.open_engine(memable.InMemoryStore(), workflows=[take]) as engine:
        with pytest.raises(memable.InvalidKeyError, match="instance id") as caught:
            await engine.invoke(take, 1, instance_id=instance_id)
        assert (caught.value.component, caught.value.value) == ("instance id", instance_id)
        assert await engine.list_instances() == []


async def test_invoke_refuses_a_workflow_that_is_not_registered(autojump_clock: object):
    """
    A workflow that is not registered, its like of the same name included, is a WorkflowNotFoundError.
    """
    like = memable.workflow(name="greet")(endless.fn)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[greet]) as engine:
        for unknown in (endless, "endless"):
            with pytest.raises(memable.WorkflowNotFoundError, match=r"registered: 'greet'.*engine\.register"):
                await engine.invoke(unknown)
        with pytest.raises(memable.WorkflowNotFoundError, match="another definition of this name"):
            await engine.invoke(like)


@pytest.mark.parametrize("workflow", [greet.fn, None, 3, len])
async def test_invoke_refuses_what_is_no_workflow(workflow: Any, autojump_clock: object):
    """
    A plain function or anything else that is no workflow is a misuse that names the decorator.
    """
    async with memable.open_engine(memable.InMemoryStore(), workflows=[greet]) as engine:
        with pytest.raises(memable.MisuseError, match=r"decorate its function with @memable\.workflow"):
            await engine.invoke(workflow)


async def test_invoke_refuses_an_invalid_workflow_name(autojump_clock: object):
    """
    A name that no workflow can have is an InvalidKeyError.
    """
    async with memable.open_engine(memable.InMemoryStore()) as engine:
        with pytest.raises(memable.InvalidKeyError, match="workflow name"):
            await engine.invoke("a/b")


async def test_invoke_is_refused_after_stop(autojump_clock: object):
    """
    Once the engine has been told to stop, invoke is an EngineStoppedError, for existing instances, too.
    """
    async with memable.open_engine(memable.InMemoryStore(), workflows=[take]) as engine:
        await engine.invoke(take, 1, instance_id="i")
        await engine.stop()
        for instance_id in (None, "i", "new"):
            with pytest.raises(memable.EngineStoppedError, match=r"engine\.invoke: the engine has stopped"):
                await engine.invoke(take, 1, instance_id=instance_id)


# From inside a body ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["body", "step", "nursery", "swallowed"])
async def test_invoke_inside_a_body_needs_an_id(where: str, autojump_clock: object):
    """
    Invoke without an id inside a body is a code error that names ctx.start: the instance is Blocked.
    """

    async def start() -> None:
        await engine.invoke(take, 1)

    async def body(ctx: memable.Context) -> None:
        match where:
            case "body":
                await start()
            case "step":
                await ctx.step("start", start)
            case "nursery":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(start)
            case _:
                with contextlib.suppress(Exception):
                    await start()

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow, take]) as engine:
        state = await (await engine.invoke(workflow, instance_id="i")).wait()
        assert isinstance(state, memable.Blocked)
        assert "ctx.start" in state.error.message
        assert [metadata.workflow_name for metadata in await engine.list_instances()] == ["w"]


async def test_invoke_inside_a_body_with_an_id_starts_one_instance(place: Place, autojump_clock: object):
    """
    Invoke with an id works inside a body and a step; a second run of the body finds the same instances.
    """

    async def start() -> str:
        return await (await engine.invoke(greet, "step", instance_id="from-step")).result()

    async def body(ctx: memable.Context) -> None:
        await engine.invoke(greet, "body", instance_id="from-body")
        await ctx.step("start", start)
        if not crashed:
            crashed.append(place.crash())

    crashed: list[Place] = []
    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow, greet]) as engine:
        await (await engine.invoke(workflow, instance_id="i")).result()
    async with memable.open_engine(crashed[0].store(), workflows=[workflow, greet]) as engine:
        await (await engine.get(workflow, "i")).result()
        ids = [metadata.instance_id for metadata in await engine.list_instances()]
        assert ids == ["i", "from-body", "from-step"]


async def test_invoke_from_a_task_that_outlives_its_body_needs_no_id(autojump_clock: object):
    """
    A task that a body started in somebody else's nursery is no longer inside the body once that has ended.
    """
    done: list[str] = []

    async def later() -> None:
        await trio.sleep(10)
        done.append(await (await engine.invoke(greet, "later")).result())
        await engine.wait_all()
        await engine.stop()
        done.append("stopped")

    async def body(ctx: memable.Context) -> None:
        nursery.start_soon(later)

    workflow = workflow_of(body)
    store = memable.InMemoryStore()
    async with memable.open_engine(store, workflows=[workflow, greet]) as engine, trio.open_nursery() as nursery:
        await (await engine.invoke(workflow)).result()
    assert done == ["hello later", "stopped"]


async def test_body_that_asks_a_stopping_engine_for_something_new_runs_again(place: Place, autojump_clock: object):
    """
    A body that meets an EngineStoppedError because its engine stops is not Failed by it: it goes on at the next open.
    """
    asked: list[int] = []

    async def body(ctx: memable.Context) -> None:
        await trio.sleep(5)
        asked.append(1)
        await engine.invoke(take, 1, instance_id="other")

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow, take]) as engine:
        await (await engine.invoke(take, 1, instance_id="done")).result()
        await engine.invoke(workflow, instance_id="i")
    async with memable.open_engine(place.store(), workflows=[workflow, take]) as engine:
        assert await (await engine.get(workflow, "i")).result() is None
    assert asked == [1, 1]


async def test_body_that_waits_for_another_instance_when_the_engine_stops_runs_again(
    place: Place, autojump_clock: object
):
    """
    A body that waits for another instance's result is not Failed when the engine stops meanwhile.
    """

    async def body(ctx: memable.Context) -> None:
        await (await engine.invoke(greet, "other", instance_id="other")).result()

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow, greet], shutdown_timeout=0) as engine:
        await engine.invoke(workflow, instance_id="i")
        await trio.testing.wait_all_tasks_blocked()
    async with memable.open_engine(place.store(), workflows=[workflow, greet]) as engine:
        assert await (await engine.get(workflow, "i")).result() is None


# What a run sees of its surroundings -------------------------------------------------------------------------------


async def test_runs_see_the_context_variables_of_the_opener(place: Place, autojump_clock: object):
    """
    A run sees the context variables as they were when the engine was opened, started by invoke or recovered.
    """
    variable = contextvars.ContextVar("variable", default="default")
    seen: list[str] = []

    async def body(ctx: memable.Context) -> None:
        seen.append(variable.get())
        variable.set("the body's")

    workflow = workflow_of(body)
    variable.set("opener's")
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        variable.set("caller's")
        await (await engine.invoke(workflow, instance_id="i")).result()
        await (await engine.resume(workflow, "i", anew=True)).result()
        assert variable.get() == "caller's"
    assert seen == ["opener's", "opener's"]


async def test_runs_are_not_cancelled_with_their_caller(autojump_clock: object):
    """
    An instance goes on when the scope in which it was invoked is cancelled or has passed its deadline.
    """
    async with memable.open_engine(memable.InMemoryStore(), workflows=[greet]) as engine:
        with trio.move_on_after(0.5) as scope:
            invocation = await engine.invoke(greet, "Ada")
            await trio.sleep_forever()
        assert scope.cancelled_caught
        assert await invocation.result() == "hello Ada"


async def test_ids_that_memable_makes_are_unique_and_sort_by_time(place: Place, autojump_clock: object):
    """
    Ids made by memable are unique and sort by time, over several engines, too.
    """
    made: list[str] = []
    for _ in range(3):
        async with memable.open_engine(place.store(), workflows=[take]) as engine:
            made += [(await engine.invoke(take, 1)).instance_id for _ in range(20)]
            listed = [metadata.instance_id for metadata in await engine.list_instances()]
        await trio.sleep(0.01)
    assert made == sorted(set(made)) == listed


async def test_workflow_that_raises_takes_nothing_else_down(place: Place, autojump_clock: object):
    """
    A workflow that raises is Failed; other instances and the block go on.
    """
    async with memable.open_engine(place.store(), workflows=[failing, greet]) as engine:
        other = await engine.invoke(greet, "Ada")
        assert isinstance(await (await engine.invoke(failing)).wait(), memable.Failed)
        assert await other.result() == "hello Ada"


async def test_invoke_in_a_failing_store_raises_what_the_store_raised(autojump_clock: object):
    """
    Invoke raises the StorageError of its record, and there is no such instance.
    """
    with pytest.raises(memable.StorageError, match="no space left"):
        async with memable.open_engine(failing_at("instance_started"), workflows=[take]) as engine:
            with pytest.raises(memable.StorageError, match="no space left"):
                await engine.invoke(take, 1, instance_id="i")
            assert await engine.metadata(take, "i") is None
