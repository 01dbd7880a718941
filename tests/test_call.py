"""
Child instances that their parent waits for: started once, recorded with their parent, and what becomes of both.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints

import memable
from fanning import Work, bring_to_end, explore, result_of
from memable import MetadataStatus
from memable._records import InstanceStarted
from running import INSTANCE, ending_of, kinds_of
from stores import Gate, HookedStore, Place
from waits import P, settle, suspended

CHILD = f"{INSTANCE}/call"


class Family:
    """
    A parent that calls one child, and what they do.
    """

    def __init__(self) -> None:
        self.work = Work()
        self.runs: Counter[str] = Counter()

        @memable.workflow
        async def child(ctx: memable.Context, name: str) -> str:
            self.runs["child"] += 1
            return await ctx.step("s", self.work.do, name)

        @memable.workflow
        async def waiting(ctx: memable.Context) -> int:
            self.runs["child"] += 1
            value = await ctx.suspend(P)
            await ctx.step("s", self.work.do, "after")
            return value

        @memable.workflow(name="w")
        async def parent(ctx: memable.Context) -> str:
            self.runs["parent"] += 1
            before = await ctx.step("before", self.work.do, "before")
            return before + await ctx.call("call", child, "x")

        @memable.workflow
        async def patient(ctx: memable.Context) -> int:
            self.runs["parent"] += 1
            return 10 * await ctx.call("call", waiting)

        self.child, self.waiting, self.parent, self.patient = child, waiting, parent, patient
        self.all: list[memable.Workflow[..., Any]] = [child, waiting, parent, patient]


@pytest.fixture
def family() -> Family:
    return Family()


# Results ---------------------------------------------------------------------------------------------------------


async def test_call_returns_what_the_child_returns(family: Family, place: Place, autojump_clock: MockClock):
    """
    A call runs an instance of its own, linked to its parent: listed, gettable, with a history and a state.
    """
    async with memable.open_engine(place.store(), workflows=family.all) as engine:
        assert await result_of(engine) == "BEFOREX"
        assert await (await engine.get(family.child, CHILD)).result() == "X"
        metadata = await engine.metadata(family.child, CHILD)
        assert metadata is not None
        assert (metadata.parent, metadata.status) == ("w/i", MetadataStatus.COMPLETED)
        assert [one.instance_id for one in await engine.list_instances("child")] == [CHILD]
        assert [entry.kind for entry in await engine.history(family.child, CHILD)] == ["invoke", "step", "completed"]
        told = [(entry.kind, entry.key, entry.value) for entry in await engine.history(family.parent, INSTANCE)]
        assert ("call", "call", "X") in told


def test_call_is_run_once_whatever_crashes(family: Family):
    """
    Wherever the process dies or is stopped there is one child, and no recorded step of either runs again.
    """

    async def run(engine: memable.Engine) -> tuple[str, int]:
        return await result_of(engine), len(await engine.list_instances())

    assert len(explore(run, family.all, expected=("BEFOREX", 2))) > 20


async def test_call_is_memoised(family: Family, place: Place, autojump_clock: MockClock):
    """
    A recorded call is returned without a look at its child, and needs no registration of its workflow any more.
    """
    async with memable.open_engine(place.store(), workflows=family.all) as engine:
        await result_of(engine)
    async with memable.open_engine(place.store(), workflows=[family.parent]) as engine:
        invocation = await engine.resume(family.parent, INSTANCE, forget=["before"])
        assert await invocation.result() == "BEFOREX"
    assert family.work.calls == Counter({"before": 2, "x": 1})


async def test_call_returns_the_value_decoded_from_the_record(place: Place, autojump_clock: MockClock):
    """
    The value is the one that every replay is given, not the child's own object.
    """
    mine: list[list[int]] = []

    @memable.workflow
    async def child(ctx: memable.Context) -> list[int]:
        mine.append([1])
        return mine[0]

    @memable.workflow(name="w")
    async def parent(ctx: memable.Context) -> bool:
        result = await ctx.call("call", child)
        return result == mine[0] and result is not mine[0]

    async with memable.open_engine(place.store(), workflows=[child, parent]) as engine:
        assert await result_of(engine) is True


async def test_call_is_a_checkpoint(autojump_clock: MockClock):
    """
    A call is a checkpoint: the first time, on a replay, and if it is refused.
    """
    runs: list[int] = []

    @memable.workflow
    async def child(ctx: memable.Context) -> None: ...

    @memable.workflow(name="w")
    async def parent(ctx: memable.Context) -> None:
        runs.append(1)
        with assert_checkpoints():
            await ctx.call("call", child)
        with assert_checkpoints():
            await ctx.start("start", child)
        if len(runs) == 1:
            raise ValueError
        with assert_checkpoints(), pytest.raises(memable.DuplicateKeyError, match="call"):
            await ctx.call("call", child)

    async with memable.open_engine(memable.InMemoryStore(), workflows=[child, parent]) as engine:
        await bring_to_end(engine)
        await ending_of(await engine.resume(parent, INSTANCE))
    assert len(runs) == 2


# Failures --------------------------------------------------------------------------------------------------------


async def test_call_of_a_child_that_fails_fails(family: Family, place: Place, autojump_clock: MockClock):
    """
    The child's failure is a ChildFailedError in the parent; resuming the parent resumes the child.
    """
    seen: list[tuple[Any, ...]] = []

    @memable.workflow(name="w")
    async def parent(ctx: memable.Context) -> str:
        try:
            return await ctx.call("call", family.child, "x")
        except memable.ChildFailedError as error:
            seen.append((error.key, error.index, error.item_key, error.matches(memable.StepFailedError)))
            await ctx.step("handled", family.work.do, "handled")
            raise

    workflows = [family.child, parent]
    family.work.broken.update(("x", "handled"))
    async with memable.open_engine(place.store(), workflows=workflows) as engine:
        assert isinstance(await bring_to_end(engine), memable.Failed)
        assert isinstance(await engine.state(family.child, CHILD), memable.Failed)
    family.work.broken.clear()
    family.work.clear()
    async with memable.open_engine(place.store(), workflows=workflows) as engine:
        # What left the body was the step's failure, with the call's as its context: both are cleared.
        assert await (await engine.resume(parent, INSTANCE)).result() == "X"
        assert await engine.state(family.child, CHILD) == memable.Completed()
    assert seen == [("call", None, None, True)]
    assert family.work.calls == Counter({"x": 1})


async def test_call_failure_is_the_same_on_a_replay(family: Family, place: Place, autojump_clock: MockClock):
    """
    A body that has caught a child's failure sees it again with the same facts.
    """
    seen: list[tuple[Any, ...]] = []

    @memable.workflow(name="w")
    async def parent(ctx: memable.Context) -> None:
        with pytest.raises(
            memable.ChildFailedError,
            match=r"instance failed with memable\.StepFailedError: .* with ConnectionError: x; mend",
        ) as caught:
            await ctx.call("call", family.child, "x")
        error = caught.value
        seen.append((error.key, error.error, str(error), error.__cause__, error.__notes__))
        if len(seen) == 1:
            raise ValueError

    family.work.broken.add("x")
    async with memable.open_engine(place.store(), workflows=[family.child, parent]) as engine:
        await bring_to_end(engine)
        await (await engine.resume(parent, INSTANCE)).result()
    assert len(seen) == 2
    assert seen[0] == seen[1]


async def test_call_of_a_child_that_is_cancelled_fails(family: Family, place: Place, autojump_clock: MockClock):
    """
    A child that somebody cancels is a ChildFailedError in the parent, with the reason.
    """
    async with memable.open_engine(place.store(), workflows=family.all) as engine:
        invocation = await engine.invoke(family.patient, instance_id=INSTANCE)
        await settle()
        assert await engine.cancel(family.waiting, CHILD, reason="not today")
        state = await ending_of(invocation)
        assert isinstance(state, memable.Failed)
        assert "ChildFailedError" in state.error.type
        assert "not today" in state.error.message
        assert await engine.state(family.waiting, CHILD) == memable.Cancelled("not today")


async def test_call_of_a_child_that_was_deleted_says_so(family: Family, place: Place, autojump_clock: MockClock):
    """
    A parent that is resumed after its failed child was deleted is told so; with the call forgotten, it starts it anew.
    """
    family.work.broken.add("x")
    async with memable.open_engine(place.store(), workflows=family.all) as engine:
        assert isinstance(await bring_to_end(engine), memable.Failed)
        await engine.delete(family.child, CHILD)
        state = await ending_of(await engine.resume(family.parent, INSTANCE))
        assert isinstance(state, memable.Failed)
        assert "it was deleted" in state.error.message
        family.work.broken.clear()
        assert await (await engine.resume(family.parent, INSTANCE, forget=["call"])).result() == "BEFOREX"


async def test_call_of_a_blocked_child_waits_for_it(place: Place, autojump_clock: MockClock):
    """
    While its child is Blocked, the parent is Suspended; both go on once the child is mended.
    """
    broken = [True]
    work = Work()

    @memable.workflow
    async def child(ctx: memable.Context) -> int:
        await ctx.step("s", work.do, "x")
        if broken:
            await ctx.step("s", work.do, "x")
        return 1

    @memable.workflow(name="w")
    async def parent(ctx: memable.Context) -> int:
        return await ctx.call("call", child)

    async with memable.open_engine(place.store(), workflows=[child, parent]) as engine:
        invocation = await engine.invoke(parent, instance_id=INSTANCE)
        state = await suspended(engine)
        assert (state.key, state.waits) == ("call", ("call",))
        assert isinstance(await engine.state(child, CHILD), memable.Blocked)
        broken.clear()
        await engine.resume(child, CHILD)
        assert await invocation.result() == 1
    assert work.calls == Counter("x")


async def test_call_of_a_child_that_returns_another_type_blocks_the_parent(place: Place, autojump_clock: MockClock):
    """
    A recorded result that is read as another type is a TypeMismatchError in the parent, and nothing is recorded there.
    """
    store = place.store()

    @memable.workflow(name="child")
    async def text(ctx: memable.Context) -> str:
        return "x"

    @memable.workflow(name="child")
    async def number(ctx: memable.Context) -> int:
        return 1

    definitions = [text]

    @memable.workflow(name="w")
    async def parent(ctx: memable.Context) -> Any:
        try:
            return await ctx.call("call", definitions[0])
        finally:
            if len(definitions) == 1:
                raise ValueError

    definitions[0] = text
    async with memable.open_engine(store, workflows=[text, parent]) as engine:
        await bring_to_end(engine)
    definitions[:] = [number, number]
    async with memable.open_engine(store, workflows=[number, parent]) as engine:
        state = await ending_of(await engine.resume(parent, INSTANCE))
    assert isinstance(state, memable.Blocked)
    assert (state.key, state.error.type) == ("call", "memable.TypeMismatchError")


# Misuse ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["call", "start"])
async def test_call_refuses_what_cannot_work(operation: str, family: Family, autojump_clock: MockClock):
    """
    What is no workflow, is not registered, or arguments that do not fit are misuses: nothing is started.
    """

    @memable.workflow(name="child")
    async def other(ctx: memable.Context, name: str) -> None: ...

    async def plain(ctx: memable.Context) -> None: ...

    given: list[tuple[tuple[Any, ...], str]] = [
        ((plain,), "plain.* is not a workflow; decorate its function with @memable.workflow"),
        (("child",), "'child' is not a workflow"),
        ((other, "x"), "workflow 'child' is not registered with the engine; name it in open_engine"),
        ((family.child,), "the arguments for workflow 'child' do not fit its signature"),
        ((family.child, "x", "y"), "do not fit its signature"),
        ((family.child, 3), "the arguments for workflow 'child': argument 1: "),
    ]
    for args, match in given:
        store = memable.InMemoryStore()

        @memable.workflow(name="w")
        async def parent(ctx: memable.Context, args: Any = args, match: str = match) -> None:
            with pytest.raises(TypeError, match=match):
                await getattr(ctx, operation)("call", *args)

        async with memable.open_engine(store, workflows=[family.child, parent]) as engine:
            state = await bring_to_end(engine)
        assert isinstance(state, memable.Blocked)
        assert state.key == "call"
        assert kinds_of(store) == ["instance_started", "instance_blocked"]


@pytest.mark.parametrize("operation", ["call", "start"])
async def test_call_refuses_keywords(operation: str, family: Family, autojump_clock: MockClock):
    """
    Arguments by keyword are a misuse.
    """

    @memable.workflow(name="w")
    async def parent(ctx: memable.Context) -> None:
        with pytest.raises(memable.MisuseError, match="positional, but 'name' is given by keyword"):
            await getattr(ctx, operation)("call", family.child, name="x")

    async with memable.open_engine(memable.InMemoryStore(), workflows=[family.child, parent]) as engine:
        assert isinstance(await bring_to_end(engine), memable.Blocked)


async def test_call_of_another_workflow_under_the_same_key_is_refused(
    family: Family, place: Place, autojump_clock: MockClock
):
    """
    A key under which a child runs is not taken for a child of another workflow.
    """
    runs: list[int] = []

    @memable.workflow(name="w")
    async def parent(ctx: memable.Context) -> Any:
        runs.append(1)
        if len(runs) == 1:
            return await ctx.call("call", family.waiting)
        return await ctx.call("call", family.child, "x")

    async with memable.open_engine(place.store(), workflows=[*family.all[:2], parent]) as engine:
        await engine.invoke(parent, instance_id=INSTANCE)
        await suspended(engine)
        state = await ending_of(await engine.resume(parent, INSTANCE))
    assert isinstance(state, memable.Blocked)
    assert "the child was started as workflow 'waiting', and is now called as 'child'" in state.error.message


@pytest.mark.parametrize("first", ["call", "start", "step"])
async def test_call_and_start_are_kinds_of_their_own(first: str, family: Family, autojump_clock: MockClock):
    """
    A key recorded as a call, a start or a step is not taken for another of these.
    """
    for second in {"call", "start", "step"} - {first}:
        runs: list[int] = []

        @memable.workflow(name="w")
        async def parent(ctx: memable.Context, second: str = second, runs: list[int] = runs) -> None:
            operation = second if runs else first
            runs.append(1)
            if operation == "step":
                await ctx.step("k", family.work.do, "x")
            else:
                await getattr(ctx, operation)("k", family.child, "x")
            raise ValueError

        async with memable.open_engine(memable.InMemoryStore(), workflows=[family.child, parent]) as engine:
            await bring_to_end(engine)
            state = await ending_of(await engine.resume(parent, INSTANCE))
        assert isinstance(state, memable.Blocked)
        assert "KeyKindError" in state.error.type


async def test_call_inside_a_deadline_of_trios_is_refused(family: Family, autojump_clock: MockClock):
    """
    A call that would wait inside a deadline of trio's is a NonDurableDeadlineError; so is a fan-out over a workflow.
    """

    async def lonely(ctx: memable.Context, operation: str) -> None:
        with trio.move_on_after(60):
            if operation == "call":
                await ctx.call("k", family.child, "x")
            else:
                await ctx.fan_out("k", family.child, ["x"])

    for operation in ("call", "fan_out"):
        parent = memable.workflow(name="w")(lonely)
        async with memable.open_engine(memable.InMemoryStore(), workflows=[family.child, parent]) as engine:
            state = await bring_to_end(engine, "w", operation)
            assert len(await engine.list_instances()) == 1
        assert isinstance(state, memable.Blocked)
        assert "NonDurableDeadlineError" in state.error.type
        assert f"ctx.{operation} inside a deadline" in state.error.message


# Structure -------------------------------------------------------------------------------------------------------


async def test_calls_run_at_once_in_a_nursery(family: Family, place: Place, autojump_clock: MockClock):
    """
    Calls may be made from tasks of a nursery of the user's.
    """

    @memable.workflow(name="w")
    async def parent(ctx: memable.Context) -> None:
        async with trio.open_nursery() as nursery:
            for index in range(3):
                nursery.start_soon(ctx.call, f"call{index}", family.child, str(index))

    async with memable.open_engine(place.store(), workflows=[family.child, parent]) as engine:
        await result_of(engine)
    assert family.work.most == 3


async def test_call_left_by_a_scope_is_found_again(family: Family, place: Place, autojump_clock: MockClock):
    """
    A call that a durable scope cancels leaves its child running; called again, it attaches to that child.
    """

    @memable.workflow
    async def slow(ctx: memable.Context) -> int:
        family.runs["slow"] += 1
        await ctx.sleep("nap", 100)
        return 7

    @memable.workflow(name="w")
    async def parent(ctx: memable.Context) -> int:
        async with ctx.move_on_after("patience", 10) as scope:
            await ctx.call("call", slow)
        assert scope.cancelled_caught
        assert await engine.state(slow, CHILD) != memable.Completed()
        return await ctx.call("call", slow)

    async with memable.open_engine(place.store(), workflows=[slow, parent]) as engine:
        assert await result_of(engine) == 7
        assert len(await engine.list_instances()) == 2
    assert family.runs["slow"] == 1


async def test_call_inside_a_fan_out_has_the_childs_path(family: Family, place: Place, autojump_clock: MockClock):
    """
    The id of a child instance is its parent's, and its path there.
    """

    async def each(ctx: memable.Context, item: str) -> str:
        return await ctx.call("call", family.child, item)

    @memable.workflow(name="w")
    async def parent(ctx: memable.Context) -> list[str]:
        return await ctx.fan_out("fan", each, ["a", "b"])

    async with memable.open_engine(place.store(), workflows=[family.child, parent]) as engine:
        assert await result_of(engine) == ["A", "B"]
        assert {one.instance_id for one in await engine.list_instances("child")} == {"i/fan/0/call", "i/fan/1/call"}
        assert await (await engine.get(family.child, "i/fan/1/call")).result() == "B"


async def test_calls_go_down_fifty_levels(place: Place, autojump_clock: MockClock):
    """
    A workflow may call itself; ids of children are as long as their paths.
    """

    @memable.workflow(name="w")
    async def down(ctx: memable.Context, level: int) -> int:
        if level == 50:
            return await ctx.suspend(P)
        return 1 + await ctx.call("call", down, level + 1)

    async with memable.open_engine(place.store(), workflows=[down], max_parked=0) as engine:
        invocation = await engine.invoke(down, 0, instance_id=INSTANCE)
        await invocation.wait()
        await settle()
        bottom = INSTANCE + "/call" * 50
        await engine.signal(down, bottom, P, 5)
        assert await invocation.result() == 55


async def test_calls_of_a_thousand_children_at_once(autojump_clock: MockClock):
    """
    A thousand children run at the same time, and wait together.
    """

    @memable.workflow
    async def child(ctx: memable.Context, index: int) -> int:
        await ctx.sleep("nap", 10)
        return index

    @memable.workflow(name="w")
    async def parent(ctx: memable.Context) -> int:
        return sum(await ctx.fan_out("fan", child, range(1000)))

    async with memable.open_engine(memable.InMemoryStore(), workflows=[child, parent]) as engine:
        invocation = await engine.invoke(parent, instance_id=INSTANCE)
        await settle()
        state = await invocation.state()
        assert isinstance(state, memable.Suspended)
        assert len(state.waits) == 1000
        assert await invocation.result() == 499500
    assert trio.current_time() < 11


# Waiting ---------------------------------------------------------------------------------------------------------


async def test_call_is_a_wait_only_while_its_child_waits(family: Family, place: Place, autojump_clock: MockClock):
    """
    A parent is Suspended at its call while its child waits, and runs while its child runs.
    """
    async with memable.open_engine(place.store(), workflows=family.all) as engine:
        invocation = await engine.invoke(family.patient, instance_id=INSTANCE)
        await settle()
        state = await invocation.state()
        assert isinstance(state, memable.Suspended)
        assert (state.key, state.deadline, state.waits) == ("call", None, ("call",))
        await engine.signal(family.waiting, CHILD, P, 3)
        await settle()
        assert await invocation.state() == memable.Started()
        assert await invocation.result() == 30
    assert family.runs == Counter({"child": 1, "parent": 1})


@pytest.mark.parametrize("max_parked", [0, 1])
async def test_call_of_passivated_instances_goes_on(
    family: Family, max_parked: int, place: Place, autojump_clock: MockClock
):
    """
    Parent and child are both passivated, and both go on when the child is signalled.
    """
    async with memable.open_engine(place.store(), workflows=family.all, max_parked=max_parked) as engine:
        invocation = await engine.invoke(family.patient, instance_id=INSTANCE)
        await suspended(engine, family.patient)
        await engine.signal(family.waiting, CHILD, P, 3)
        assert await invocation.result() == 30
    assert family.work.calls == Counter({"after": 1})


@pytest.mark.parametrize("max_parked", [0, 1000])
def test_call_survives_a_crash_at_each_append(max_parked: int):
    """
    The child's end reaches its parent, also if the process dies before the parent has recorded it.
    """
    family = Family()

    async def run(engine: memable.Engine) -> int:
        invocation = await engine.invoke(family.patient, instance_id=INSTANCE)
        await invocation.wait()
        await settle()
        child = await engine.metadata(family.waiting, CHILD)
        if child is not None and child.status is MetadataStatus.SUSPENDED:
            await engine.signal(family.waiting, CHILD, P, 3)
        return await invocation.result()

    assert len(explore(run, family.all, expected=30, max_parked=max_parked)) > 20


async def test_call_whose_child_ends_while_its_parent_is_unwound(
    family: Family, place: Place, autojump_clock: MockClock
):
    """
    A child that ends just as its parent is being passivated is not missed.
    """
    store = HookedStore(place.store())
    parked: list[str] = []

    @memable.workflow(name="w")
    async def parent(ctx: memable.Context) -> int:
        family.runs["parent"] += 1
        try:
            return await ctx.call("call", family.waiting)
        except trio.Cancelled:
            parked.append(str(ctx.leaving))
            with trio.CancelScope(shield=True):
                # The child ends meanwhile.
                await engine.signal(family.waiting, CHILD, P, 3)
                await trio.sleep(10)
            raise

    async with memable.open_engine(store, workflows=[family.waiting, parent], max_parked=0) as engine:
        assert await result_of(engine) == 3
    assert parked == ["passivated"]
    assert family.runs["parent"] == 2


async def test_call_does_not_miss_an_end_that_is_on_its_way(family: Family, place: Place, autojump_clock: MockClock):
    """
    A parent that gets to its call while the child's end is being written waits for it.
    """
    gate = Gate("instance_completed")

    @memable.workflow(name="w")
    async def parent(ctx: memable.Context) -> str:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ctx.call, "call", family.child, "x")
                await gate.is_reached.wait()
                scope.cancel()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def open_gate() -> None:
                await trio.sleep(1)
                gate.is_open.set()

            return await ctx.call("call", family.child, "x")

    store = HookedStore(place.store(), before_append=gate.pass_)
    async with memable.open_engine(store, workflows=[family.child, parent]) as engine:
        assert await result_of(engine) == "X"


async def test_call_starts_parent_and_child_in_one_batch(family: Family, autojump_clock: MockClock):
    """
    The parent's record of its child and the child's own first record are durable together.
    """
    batches: list[list[str]] = []

    async def note(records: Any) -> None:
        batches.append([record.kind for record in records])

    store = HookedStore(before_append=note)
    async with memable.open_engine(store, workflows=family.all) as engine:
        await result_of(engine)
    assert ["child_started", "instance_started"] in batches


async def test_call_leaves_the_engine_in_order(family: Family, place: Place, autojump_clock: MockClock):
    """
    A block that is left while a child waits for a signal closes at once, and both go on at the next open.
    """
    async with memable.open_engine(place.store(), workflows=family.all) as engine:
        await engine.invoke(family.patient, instance_id=INSTANCE)
    async with memable.open_engine(place.store(), workflows=family.all) as engine:
        await settle()
        await engine.wait_all()
        await engine.signal(family.waiting, CHILD, P, 1)
        assert await (await engine.get(family.patient, INSTANCE)).result() == 10


async def test_call_of_a_child_whose_workflow_is_registered_later(
    family: Family, place: Place, autojump_clock: MockClock
):
    """
    A parent that waits for a child whose workflow is not registered yet goes on once it is.
    """
    async with memable.open_engine(place.store(), workflows=family.all, shutdown_timeout=0) as engine:
        await engine.invoke(family.patient, instance_id=INSTANCE)
        await suspended(engine, family.patient)
    async with memable.open_engine(place.store(), workflows=[family.patient]) as engine:
        await engine.signal(family.waiting, CHILD, P, 1)
        invocation = await engine.get(family.patient, INSTANCE)
        assert not (await invocation.state()).is_terminal
        engine.register(family.waiting)
        assert await invocation.result() == 10


async def test_call_of_a_running_child_of_an_unregistered_workflow_is_blocked(
    family: Family, place: Place, autojump_clock: MockClock
):
    """
    A parent that runs again while its child cannot is Blocked, and goes on when that is mended.
    """
    async with memable.open_engine(place.store(), workflows=family.all, shutdown_timeout=0) as engine:
        await engine.invoke(family.parent, instance_id=INSTANCE)
        await trio.sleep(1.5)
    async with memable.open_engine(place.store(), workflows=[family.parent]) as engine:
        state = await ending_of(await engine.get(family.parent, INSTANCE))
        assert isinstance(state, memable.Blocked)
        assert "workflow 'child' is not registered" in state.error.message
    async with memable.open_engine(place.store(), workflows=family.all) as engine:
        assert await (await engine.get(family.parent, INSTANCE)).result() == "BEFOREX"


async def test_call_records_nothing_of_a_child_that_exists_already(family: Family, autojump_clock: MockClock):
    """
    However often its parent runs, a child is started once.
    """
    store = memable.InMemoryStore()
    async with memable.open_engine(store, workflows=family.all, max_parked=0) as engine:
        invocation = await engine.invoke(family.patient, instance_id=INSTANCE)
        for _ in range(3):
            await suspended(engine, family.patient)
            await engine.resume(family.patient, INSTANCE)
        await suspended(engine, family.patient)
        await engine.signal(family.waiting, CHILD, P, 1)
        await invocation.result()
    assert sum(isinstance(record, InstanceStarted) for record in store._records) == 2
    assert family.runs["parent"] > 3


async def test_call_does_not_adopt_the_child_of_a_removed_parent(place: Place, autojump_clock: object):
    """
    A parent that has the id of one that retention removed starts children of its own, kept ones notwithstanding.
    """
    ran: list[int] = []

    async def run_once(number: int) -> int:
        ran.append(number)
        return number

    @memable.workflow
    async def keeper(ctx: memable.Context, number: int) -> int:
        return await ctx.step("run", run_once, number)

    @memable.workflow(retention=10)
    async def passing(ctx: memable.Context, number: int) -> int:
        return await ctx.call("keep", keeper, number)

    async with memable.open_engine(place.store(), workflows=[keeper, passing]) as engine:
        for number in (1, 2):
            assert await (await engine.invoke(passing, number, instance_id="p")).result() == number
            await trio.sleep(60)
            assert await engine.metadata(passing, "p") is None
            assert await (await engine.get(keeper, "p/keep")).result() == number
    assert ran == [1, 2]
