"""
Attached child instances and their parents: cancelled together, resumed together, forgotten together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import memable
from fanning import Work, bring_to_end, explore, result_of
from memable import MetadataStatus
from memable._records import CancelRequested, InstanceRecord
from running import INSTANCE, ending_of
from stores import HookedStore, Place
from waits import P, settle, suspended


class Tree:
    """
    A parent over a workflow's fan-out, whose children each call one of their own, which waits for a signal.
    """

    def __init__(self, size: int = 3) -> None:
        self.work = Work()
        self.broken: set[str] = set()
        self.runs: Counter[str] = Counter()

        @memable.workflow
        async def leaf(ctx: memable.Context, name: str) -> str:
            self.runs[f"leaf {name}"] += 1
            await ctx.step("s", self.work.do, name)
            await ctx.suspend(P)
            return name

        @memable.workflow
        async def branch(ctx: memable.Context, item: int) -> str:
            self.runs[f"branch {item}"] += 1
            if f"branch {item}" in self.broken:
                raise ConnectionError(item)
            return await ctx.call("leaf", leaf, str(item))

        @memable.workflow(name="w")
        async def root(ctx: memable.Context) -> list[str]:
            self.runs["root"] += 1

            async def fail_late() -> None:
                await ctx.sleep("late", 20)
                if "root" in self.broken:
                    raise ConnectionError

            async with trio.open_nursery() as nursery:
                if "root" in self.broken:
                    nursery.start_soon(fail_late)
                return await ctx.fan_out("fan", branch, range(size))
            raise AssertionError

        self.leaf, self.branch, self.root = leaf, branch, root
        self.all: list[memable.Workflow[..., Any]] = [leaf, branch, root]
        self.size = size

    def leaves(self) -> list[str]:
        """Return the ids of the leaves."""
        return [f"{INSTANCE}/fan/{index}/leaf" for index in range(self.size)]

    async def signal_all(self, engine: memable.Engine) -> None:
        """Let every leaf that waits end."""
        for name in self.leaves():
            metadata = await engine.metadata(self.leaf, name)
            if metadata is not None and metadata.status is MetadataStatus.SUSPENDED:
                await engine.signal(self.leaf, name, P, 1)


@pytest.fixture
def tree() -> Tree:
    return Tree()


async def statuses(engine: memable.Engine) -> Counter[str]:
    """
    Return how many instances there are of each status, with the name of their workflow.
    """
    return Counter(f"{one.workflow_name} {one.status.value}" for one in await engine.list_instances())


# A fan-out over a workflow -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_parked", [0, 1000])
async def test_children_of_a_fan_out_are_instances(
    max_parked: int, tree: Tree, place: Place, autojump_clock: MockClock
):
    """
    Over a workflow, each child is an instance, linked to its parent, listed, and signalled by its own id.
    """
    async with memable.open_engine(place.store(), workflows=tree.all, max_parked=max_parked) as engine:
        invocation = await engine.invoke(tree.root, instance_id=INSTANCE)
        state = await suspended(engine, tree.root)
        assert sorted(state.waits) == ["fan/0", "fan/1", "fan/2"]
        branches = await engine.list_instances("branch")
        assert {one.instance_id for one in branches} == {f"i/fan/{index}" for index in range(3)}
        assert {one.parent for one in branches} == {"w/i"}
        assert {one.parent for one in await engine.list_instances("leaf")} == {f"branch/i/fan/{n}" for n in range(3)}
        await tree.signal_all(engine)
        assert await invocation.result() == ["0", "1", "2"]
        assert await (await engine.get(tree.branch, "i/fan/1")).result() == "1"
        told = [(entry.kind, entry.key) for entry in await engine.history(tree.root, INSTANCE)]
        assert told.count(("child", "fan/1")) == 1
    assert tree.work.calls == Counter("012")


@pytest.mark.parametrize("max_parked", [0, 1000])
def test_children_of_a_fan_out_survive_crashes(max_parked: int):
    """
    Wherever the process dies there is one instance for each item, and no recorded step runs again.
    """
    tree = Tree(2)

    async def run(engine: memable.Engine) -> list[str]:
        invocation = await engine.invoke(tree.root, instance_id=INSTANCE)
        for _ in range(3):
            await trio.sleep(2)
            await tree.signal_all(engine)
        result = await invocation.result()
        assert await statuses(engine) == {"w completed": 1, "branch completed": 2, "leaf completed": 2}
        return result

    assert len(explore(run, tree.all, expected=["0", "1"], max_parked=max_parked)) > 40


async def test_children_respect_the_limit(place: Place, autojump_clock: MockClock):
    """
    At most so many child instances are under way at once.
    """
    work = Work()

    @memable.workflow
    async def child(ctx: memable.Context, item: int) -> str:
        return await ctx.step("s", work.do, str(item))

    @memable.workflow(name="w")
    async def parent(ctx: memable.Context) -> list[str]:
        return await ctx.fan_out("fan", child, range(7), limit=3)

    async with memable.open_engine(place.store(), workflows=[child, parent]) as engine:
        assert len(await result_of(engine)) == 7
    assert work.most == 3


async def test_children_of_an_unregistered_workflow_are_refused(tree: Tree, autojump_clock: MockClock):
    """
    A fan-out over a workflow that is not registered is a misuse, and nothing is started.
    """
    async with memable.open_engine(memable.InMemoryStore(), workflows=[tree.root]) as engine:
        state = await bring_to_end(engine)
        assert await statuses(engine) == {"w blocked": 1}
    assert isinstance(state, memable.Blocked)
    assert "workflow 'branch' is not registered" in state.error.message


async def test_children_are_cancelled_by_the_first_failure(tree: Tree, place: Place, autojump_clock: MockClock):
    """
    The first child instance that fails cancels the others, recursively; resuming the parent brings all back.
    """
    async with memable.open_engine(place.store(), workflows=tree.all) as engine:
        tree.broken.add("branch 1")
        state = await bring_to_end(engine)
        assert isinstance(state, memable.Failed)
        assert "child '1'" in str(state.error)
        found = await statuses(engine)
        assert found["branch failed"] == 1
        assert found["branch cancelled"] == 2
        assert not [name for name in found if name.startswith("leaf") and name != "leaf cancelled"]
        tree.broken.clear()
        invocation = await engine.resume(tree.root, INSTANCE)
        await suspended(engine, tree.root)
        await tree.signal_all(engine)
        assert await invocation.result() == ["0", "1", "2"]
        assert await statuses(engine) == {"w completed": 1, "branch completed": 3, "leaf completed": 3}


def test_children_are_cancelled_by_a_failure_whatever_crashes():
    """
    Wherever the process dies or is stopped, the others are cancelled all the same, though the body goes on.
    """
    tree = Tree(2)
    tree.broken.add("branch 1")

    @memable.workflow(name="w")
    async def root(ctx: memable.Context) -> str:
        with pytest.raises(memable.ChildFailedError, match="child '1'"):
            await ctx.fan_out("fan", tree.branch, range(2))
        return "went on"

    async def run(engine: memable.Engine) -> str:
        result = await result_of(engine)
        assert not {one.status for one in await engine.list_instances()} & {
            MetadataStatus.RUNNING,
            MetadataStatus.SUSPENDED,
        }
        return result

    assert len(explore(run, [tree.leaf, tree.branch, root], expected="went on")) > 20


async def test_children_inside_a_caught_failure_stay_cancelled(tree: Tree, place: Place, autojump_clock: MockClock):
    """
    A resume brings back only those children that the parent waits for again: none behind a failure that stands.
    """

    @memable.workflow(name="w")
    async def root(ctx: memable.Context) -> str:
        with pytest.raises(memable.ChildFailedError, match="child '1'"):
            await ctx.fan_out("fan", tree.branch, range(2))
        await ctx.step("last", tree.work.do, "last")
        return "went on"

    tree.broken.add("branch 1")
    tree.work.broken.add("last")
    async with memable.open_engine(place.store(), workflows=[tree.leaf, tree.branch, root]) as engine:
        await bring_to_end(engine)
        before = await statuses(engine)
        tree.work.broken.clear()
        assert await (await engine.resume(root, INSTANCE)).result() == "went on"
        assert await statuses(engine) - before == {"w completed": 1}


async def test_calls_inside_a_fan_out_are_cancelled_by_the_first_failure(
    tree: Tree, place: Place, autojump_clock: MockClock
):
    """
    Children that are functions of the parent may have called instances: those are cancelled with them.
    """

    async def each(ctx: memable.Context, item: int) -> str:
        if item == 1:
            await ctx.sleep("nap", 5)
            if tree.broken:
                raise ConnectionError
            return "1"
        return await ctx.call("leaf", tree.leaf, str(item))

    @memable.workflow(name="w")
    async def root(ctx: memable.Context) -> list[str]:
        return await ctx.fan_out("fan", each, range(3))

    tree.broken.add("it")
    async with memable.open_engine(place.store(), workflows=[tree.leaf, root]) as engine:
        assert isinstance(await bring_to_end(engine), memable.Failed)
        assert (await statuses(engine))["leaf cancelled"] == 2
        tree.broken.clear()
        invocation = await engine.resume(root, INSTANCE)
        await settle()
        await tree.signal_all(engine)
        assert await invocation.result() == ["0", "1", "2"]


async def test_children_that_fail_are_collected_by_a_settled_fan_out(
    tree: Tree, place: Place, autojump_clock: MockClock
):
    """
    A settled fan-out over a workflow lets all instances end, and returns how each did.
    """
    seen: list[Any] = []

    @memable.workflow(name="w")
    async def root(ctx: memable.Context) -> None:
        seen.append(await ctx.fan_out_settled("fan", tree.branch, range(2)))
        if len(seen) == 1:
            raise ValueError

    tree.broken.add("branch 1")
    async with memable.open_engine(place.store(), workflows=[tree.leaf, tree.branch, root]) as engine:
        await engine.invoke(root, instance_id=INSTANCE)
        await settle()
        await trio.sleep(2)
        await tree.signal_all(engine)
        await bring_to_end(engine)
        await (await engine.resume(root, INSTANCE)).result()
    assert seen[0] == seen[1]
    assert seen[0][0] == memable.ChildSucceeded("0")
    assert seen[0][1].error.matches(ConnectionError)


# Cancelling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_parked", [0, 1000])
@pytest.mark.parametrize("when", ["running", "waiting", "closed", "crashed", "unregistered"])
async def test_cancelling_a_parent_cancels_its_children(
    when: str, max_parked: int, tree: Tree, place: Place, autojump_clock: MockClock
):
    """
    Children that run, wait, are not recovered yet or not registered are cancelled with their parent.
    """
    async with memable.open_engine(
        place.store(), workflows=tree.all, max_parked=max_parked, shutdown_timeout=0
    ) as engine:
        await engine.invoke(tree.root, instance_id=INSTANCE)
        await settle()
        if when != "running":
            await suspended(engine, tree.root)
        if when in {"running", "waiting"}:
            assert await engine.cancel(tree.root, INSTANCE, reason="enough")
            assert await statuses(engine) == {"w cancelled": 1, "branch cancelled": 3, "leaf cancelled": 3}
            return
        crashed = place.crash()
    place = crashed if when == "crashed" else place
    workflows = [] if when == "unregistered" else tree.all
    async with memable.open_engine(place.store(), workflows=workflows, max_parked=max_parked) as engine:
        assert await engine.cancel("w", INSTANCE, reason="enough")
        assert await statuses(engine) == {"w cancelled": 1, "branch cancelled": 3, "leaf cancelled": 3}
        assert await engine.state("w", INSTANCE) == memable.Cancelled("enough")
        assert await engine.state("leaf", tree.leaves()[0]) == memable.Cancelled("its parent was cancelled")


def test_cancelling_a_parent_survives_crashes():
    """
    A cancellation that is durable reaches all children, whatever the process dies at.
    """
    tree = Tree(2)

    async def run(engine: memable.Engine) -> None:
        await engine.invoke(tree.root, instance_id=INSTANCE)
        await trio.sleep(3)
        await engine.cancel(tree.root, INSTANCE)
        found = await statuses(engine)
        assert not [name for name in found if not name.endswith("cancelled")], found

    assert len(explore(run, tree.all)) > 40


async def test_cancelling_a_parent_while_the_engine_stops_leaves_no_child_behind(autojump_clock: MockClock):
    """
    A parent is not Cancelled before its children were told, be it that the engine stops in between.
    """
    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []

    async def crash(records: Sequence[InstanceRecord]) -> None:
        if any(isinstance(record, CancelRequested) and record.instance != 1 for record in records):
            copies.append(store.crashed_copy())

    @memable.workflow(name="child")
    async def child(ctx: memable.Context) -> None:
        await ctx.sleep("nap", 1000)

    @memable.workflow(name="w")
    async def parent(ctx: memable.Context) -> None:
        await ctx.call("c", child)

    workflows = [parent, child]
    async with memable.open_engine(HookedStore(store, before_append=crash), workflows=workflows) as engine:
        await engine.invoke(parent, instance_id=INSTANCE)
        await trio.testing.wait_all_tasks_blocked()
        await engine.cancel(parent, INSTANCE)
    is_loading = trio.Event()

    async def load(number: int) -> None:
        is_loading.set()
        await trio.sleep(1)

    crashed = HookedStore(copies[0], before_load=load)
    async with memable.open_engine(crashed, workflows=workflows, shutdown_timeout=0):
        await is_loading.wait()
    async with memable.open_engine(copies[0], resume_on_start=False) as engine:
        assert not (await engine.state(parent, INSTANCE)).is_terminal
    async with memable.open_engine(copies[0], workflows=workflows) as engine:
        await engine.wait_all()
        assert await engine.state(parent, INSTANCE) == memable.Cancelled()
        assert await engine.state(child, f"{INSTANCE}/c") == memable.Cancelled("its parent was cancelled")


async def test_failing_a_parent_cancels_its_children(place: Place, autojump_clock: MockClock):
    """
    A parent that fails while children run beside the failure cancels them; resuming it resumes them over their memos.
    """
    tree = Tree()
    tree.broken.add("root")
    async with memable.open_engine(place.store(), workflows=tree.all) as engine:
        state = await bring_to_end(engine)
        assert isinstance(state, memable.Failed)
        assert await statuses(engine) == {"w failed": 1, "branch cancelled": 3, "leaf cancelled": 3}
        assert await engine.state(tree.leaf, tree.leaves()[0]) == memable.Cancelled("its parent was cancelled")
        assert await engine.state(tree.branch, "i/fan/0") == memable.Cancelled("its parent failed")
        tree.broken.clear()
        invocation = await engine.resume(tree.root, INSTANCE)
        await suspended(engine, tree.root)
        await tree.signal_all(engine)
        assert await invocation.result() == ["0", "1", "2"]
    assert tree.work.calls == Counter("012")


async def test_cancelling_a_parent_leaves_what_has_ended(tree: Tree, place: Place, autojump_clock: MockClock):
    """
    Children that have ended stay as they are, and a resumed parent takes their results.
    """
    async with memable.open_engine(place.store(), workflows=tree.all) as engine:
        await engine.invoke(tree.root, instance_id=INSTANCE)
        await suspended(engine, tree.root)
        await engine.signal(tree.leaf, tree.leaves()[1], P, 1)
        await suspended(engine, tree.root)
        await engine.cancel(tree.root, INSTANCE)
        assert await statuses(engine) == {
            "w cancelled": 1,
            "branch cancelled": 2,
            "branch completed": 1,
            "leaf cancelled": 2,
            "leaf completed": 1,
        }
        runs = tree.runs["branch 1"]
        invocation = await engine.resume(tree.root, INSTANCE)
        await suspended(engine, tree.root)
        await tree.signal_all(engine)
        assert await invocation.result() == ["0", "1", "2"]
        assert tree.runs["branch 1"] == runs


async def test_cancelling_a_parent_waits_for_the_compensations_of_its_children(place: Place, autojump_clock: MockClock):
    """
    A child that has something to undo does so before its parent has ended; resumed with its parent, it begins anew.
    """
    work = Work()

    @memable.workflow
    async def grandchild(ctx: memable.Context) -> str:
        return await ctx.step("g", work.do, "grandchild")

    @memable.workflow
    async def child(ctx: memable.Context) -> int:
        await ctx.call("grandchild", grandchild)
        await ctx.compensate("undo", work.do, "undo")
        await ctx.step("do", work.do, "do")
        return await ctx.suspend(P)

    @memable.workflow(name="w")
    async def parent(ctx: memable.Context) -> int:
        return await ctx.call("call", child)

    async with memable.open_engine(place.store(), workflows=[grandchild, child, parent]) as engine:
        await engine.invoke(parent, instance_id=INSTANCE)
        await suspended(engine, parent)
        await engine.cancel(parent, INSTANCE)
        assert work.calls == Counter(["grandchild", "do", "undo"])
        invocation = await engine.resume(parent, INSTANCE)
        await suspended(engine, parent)
        await engine.signal(child, "i/call", P, 4)
        assert await invocation.result() == 4
    assert work.calls == Counter(["grandchild", "do", "undo", "grandchild", "do"])


# Resuming ----------------------------------------------------------------------------------------------------------


async def test_resuming_a_parent_leaves_children_of_unknown_workflows(
    tree: Tree, place: Place, autojump_clock: MockClock
):
    """
    A child whose workflow is not registered is not run: the parent is Blocked, and says what is missing.
    """
    tree.broken.add("branch 1")
    async with memable.open_engine(place.store(), workflows=tree.all) as engine:
        assert isinstance(await bring_to_end(engine), memable.Failed)
    tree.broken.clear()
    async with memable.open_engine(place.store(), workflows=[tree.root]) as engine:
        state = await ending_of(await engine.resume(tree.root, INSTANCE))
        assert isinstance(state, memable.Blocked)
        assert "workflow 'branch' is not registered" in state.error.message
        engine.register(tree.leaf)
        engine.register(tree.branch)
        invocation = await engine.resume(tree.root, INSTANCE)
        await suspended(engine, tree.root)
        await tree.signal_all(engine)
        assert await invocation.result() == ["0", "1", "2"]


async def test_resuming_a_parent_resumes_what_was_interrupted(tree: Tree, place: Place, autojump_clock: MockClock):
    """
    With resume_on_start=False, resuming an interrupted parent lets its interrupted children go on, too.
    """
    async with memable.open_engine(place.store(), workflows=tree.all, shutdown_timeout=0) as engine:
        await engine.invoke(tree.root, instance_id=INSTANCE)
        await settle()
    async with memable.open_engine(place.store(), workflows=tree.all, resume_on_start=False) as engine:
        assert (await statuses(engine))["w running"] == 1
        invocation = await engine.resume(tree.root, INSTANCE)
        await suspended(engine, tree.root)
        await tree.signal_all(engine)
        assert await invocation.result() == ["0", "1", "2"]


# Forgetting --------------------------------------------------------------------------------------------------------


async def test_forgetting_a_call_starts_its_child_anew(place: Place, autojump_clock: MockClock):
    """
    Forgetting a call, or running its parent anew, starts the child and its children anew, with whatever arguments.
    """
    arguments = iter("abc")
    work = Work()

    @memable.workflow
    async def inner(ctx: memable.Context, name: str) -> str:
        return await ctx.step("s", work.do, f"inner {name}")

    @memable.workflow
    async def child(ctx: memable.Context, name: str) -> str:
        await ctx.call("inner", inner, name)
        return await ctx.step("s", work.do, name)

    @memable.workflow(name="w")
    async def parent(ctx: memable.Context) -> str:
        await ctx.step("before", work.do, "before")
        return await ctx.call("call", child, next(arguments))

    async with memable.open_engine(place.store(), workflows=[inner, child, parent]) as engine:
        assert await result_of(engine) == "A"
        created = (await engine.list_instances("child"))[0].created_at
        await trio.sleep(10)
        assert await (await engine.resume(parent, INSTANCE, forget=["call"])).result() == "B"
        assert work.calls == Counter(["before", "a", "inner a", "b", "inner b"])
        assert await (await engine.resume(parent, INSTANCE, anew=True)).result() == "C"
        assert work.calls == Counter(["before", "before", "a", "inner a", "b", "inner b", "c", "inner c"])
        assert len(await engine.list_instances()) == 3
        assert (await engine.list_instances("child"))[0].created_at > created


@pytest.mark.parametrize("forget", ["fan", "fan/1"])
async def test_forgetting_a_fan_out_starts_its_children_anew(
    forget: str, tree: Tree, place: Place, autojump_clock: MockClock
):
    """
    Child instances are forgotten with the fan-out or the child that they are, running ones included.
    """
    async with memable.open_engine(place.store(), workflows=tree.all) as engine:
        await engine.invoke(tree.root, instance_id=INSTANCE)
        await suspended(engine, tree.root)
        await engine.signal(tree.leaf, tree.leaves()[0], P, 1)
        await suspended(engine, tree.root)
        invocation = await engine.resume(tree.root, INSTANCE, forget=[forget])
        await settle()
        await trio.sleep(2)
        await tree.signal_all(engine)
        assert await invocation.result() == ["0", "1", "2"]
    again = Counter("012") if forget == "fan" else Counter("1")
    assert tree.work.calls == Counter("012") + again


def test_forgetting_survives_crashes():
    """
    A child is forgotten together with its parent's record of it, or not at all.
    """
    work = Work()

    @memable.workflow
    async def child(ctx: memable.Context) -> str:
        return await ctx.step("s", work.do, "x")

    @memable.workflow(name="w")
    async def parent(ctx: memable.Context) -> str:
        return await ctx.call("call", child)

    async def run(engine: memable.Engine) -> str:
        assert await result_of(engine) == "X"
        await engine.resume(parent, INSTANCE, forget=["call"])
        result: str = await result_of(engine)
        assert await statuses(engine) == {"w completed": 1, "child completed": 1}
        return result

    assert len(explore(run, [child, parent], expected="X", again=["steps"])) > 30


async def test_children_are_kept_while_their_parent_is_not_terminal(place: Place, autojump_clock: MockClock):
    """
    Neither retention nor delete removes a child whose parent has not ended.
    """

    @memable.workflow(retention=1)
    async def child(ctx: memable.Context) -> int:
        return 1

    @memable.workflow(name="w")
    async def parent(ctx: memable.Context) -> int:
        await ctx.call("call", child)
        return await ctx.suspend(P)

    async with memable.open_engine(place.store(), workflows=[child, parent]) as engine:
        invocation = await engine.invoke(parent, instance_id=INSTANCE)
        await suspended(engine, parent)
        await trio.sleep(100)
        assert await (await engine.get(child, "i/call")).result() == 1
        with pytest.raises(memable.InstanceBusyError):
            await engine.delete(child, "i/call")
        await engine.signal(parent, INSTANCE, P, 1)
        await invocation.result()
        await trio.sleep(100)
        assert await engine.metadata(child, "i/call") is None
