"""
``engine.plan``: what the present code would do over what is recorded, without doing it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
import trio.testing

import memable
from memable._plan import MAX_SHOWN
from memable._planning import NAP_S
from running import INSTANCE, workflow_of
from stores import Place

APPROVAL = memable.SuspendPoint("approval:v1", bool)
Body = Callable[[memable.Context], Awaitable[object]]


class _Work:
    """Steps that are counted."""

    def __init__(self) -> None:
        self.done: list[str] = []

    async def do(self, name: str) -> str:
        self.done.append(name)
        return name

    async def fail(self, name: str) -> str:
        self.done.append(name)
        raise ConnectionError(name)


@pytest.fixture
def work() -> _Work:
    return _Work()


async def record(body: Body, store: memable.InMemoryStore | None = None, **settings: Any) -> memable.InMemoryStore:
    """Run *body* until it has ended or waits, and return a store as found after the process was killed then."""
    kept = memable.InMemoryStore() if store is None else store
    workflow = workflow_of(body)
    async with memable.open_engine(kept, workflows=[workflow], **settings) as engine:
        await (await engine.invoke(workflow, instance_id=INSTANCE)).wait()
        return kept.crashed_copy()


async def plan(
    workflow: memable.Workflow[..., Any] | Body, store: memable.InMemoryStore, **options: Any
) -> memable.Plan:
    """Plan the only instance in a store with the code of *workflow*."""
    given = workflow if isinstance(workflow, memable.Workflow) else workflow_of(workflow)
    before = store._records
    async with memable.open_engine(store) as engine:
        made = await engine.plan(given, INSTANCE, **options)
        assert store._records == before
        return made


def misses(made: memable.Plan) -> list[tuple[str | None, str]]:
    """Return what a plan would do next, without its details."""
    return [(miss.path, miss.outlook) for miss in made.misses]


# Hits and misses ---------------------------------------------------------------------------------------------------


async def test_plan_tells_first_step_without_memo(work: _Work) -> None:
    """
    What has a memo is a hit, the first step that has none is the miss, and nothing is executed.
    """

    async def old(ctx: memable.Context) -> None:
        await ctx.step("a", work.do, "a")
        await ctx.step("b", work.do, "b")
        await ctx.suspend(APPROVAL)

    async def new(ctx: memable.Context) -> None:
        await ctx.step("a", work.do, "a")
        await ctx.step("b:v2", work.do, "b")
        await ctx.step("c", work.do, "c")

    store = await record(old)
    work.done.clear()
    made = await plan(new, store)
    assert made.hits == ("a",)
    assert made.misses == (memable.Miss("b:v2", "step", "runs", attempt=1),)
    assert (made.orphaned, made.unreached) == ((), ("approval:v1", "b"))
    assert (made.outcome, made.is_complete, made.problems) == (None, False, ())
    assert work.done == []


async def test_plan_of_completed_instance_is_complete(work: _Work) -> None:
    """
    An instance that has completed is planned as if it ran again: its value is told, and what nobody asks for any more.
    """

    @memable.workflow(name="w")
    async def old(ctx: memable.Context, count: int) -> int:
        await ctx.step("a", work.do, "a")
        await ctx.step("dropped", work.do, "dropped")
        return count

    @memable.workflow(name="w")
    async def new(ctx: memable.Context, count: int) -> int:
        await ctx.step("a", work.do, "a")
        return count + 1

    store = memable.InMemoryStore()
    async with memable.open_engine(store, workflows=[old]) as engine:
        assert await (await engine.invoke(old, 1, instance_id=INSTANCE)).result() == 1
        registered = await engine.plan("w", INSTANCE)
    assert (registered.value, registered.orphaned, registered.misses) == (1, (), ())
    made = await plan(new, store)
    assert (made.is_complete, made.value, made.orphaned, made.unreached) == (True, 2, ("dropped",), ())
    assert work.done == ["a", "dropped"]


async def test_plan_tells_misses_of_all_tasks(work: _Work) -> None:
    """
    Each task of a nursery goes on until it comes to something without a memo; one that comes to it later counts, too.
    """

    async def body(ctx: memable.Context) -> None:
        async def later() -> None:
            for _ in range(5):
                await trio.lowlevel.checkpoint()
            await ctx.step("later", work.do, "later")

        async def never_asks() -> None:
            await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(later)
            nursery.start_soon(never_asks)
            await ctx.step("now", work.do, "now")

    store = await record(wait_first(body))
    made = await plan(body, store)
    assert sorted(misses(made)) == [("later", "runs"), ("now", "runs")]
    assert work.done == []


def wait_first(body: Body) -> Body:
    """Return a body that waits before it does anything, so that a new instance has no memo."""

    async def waiting(ctx: memable.Context) -> None:
        await ctx.sleep("first", math.inf)
        await body(ctx)

    return waiting


async def test_plan_ends_where_tasks_wait_for_held_ones(work: _Work) -> None:
    """
    A task that waits for a lock which a held task has does not keep the plan waiting.
    """

    async def body(ctx: memable.Context) -> None:
        lock = trio.Lock()

        async def locked(name: str) -> None:
            async with lock:
                await ctx.step(name, work.do, name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(locked, "a")
            nursery.start_soon(locked, "b")

    store = await record(wait_first(body))
    begun = trio.current_time()
    made = await plan(body, store)
    assert len(made.misses) == 1
    assert not made.is_stalled
    assert trio.current_time() - begun < 2


async def test_plan_gives_up_body_that_waits_for_something_outside(autojump_clock: trio.testing.MockClock) -> None:
    """
    A body that waits for what is no operation of its context is given up after a while, and the plan says so.
    """

    async def body(ctx: memable.Context) -> None:
        await trio.sleep(3600)

    store = await record(wait_first(body))
    made = await plan(body, store)
    assert made.is_stalled
    assert (made.outcome, made.misses) == (None, ())
    assert "no operation of ctx" in made.problems[0]
    assert trio.current_time() < 60


async def test_plan_follows_body_that_sleeps_shortly(work: _Work, autojump_clock: trio.testing.MockClock) -> None:
    """
    What a body does outside steps may take a moment.
    """

    async def body(ctx: memable.Context) -> None:
        await trio.sleep(1)
        await ctx.step("behind", work.do, "behind")

    made = await plan(body, await record(wait_first(body)))
    assert misses(made) == [("behind", "runs")]
    assert not made.is_stalled


async def test_plan_goes_through_fan_out(work: _Work) -> None:
    """
    The children of a fan-out are planned like the body: those with an outcome are hits, the others stop in it.
    """

    async def child(ctx: memable.Context, item: int) -> str:
        await ctx.step("a", work.do, f"a{item}")
        if item:
            await ctx.suspend(APPROVAL)
        return await ctx.step("b", work.do, f"b{item}")

    async def body(ctx: memable.Context) -> None:
        await ctx.fan_out("fan", child, [0, 1, 2])

    made = await plan(body, await record(body))
    assert made.hits[0] == "fan/0"
    assert sorted(made.hits) == ["fan/0", "fan/1/a", "fan/2/a"]
    assert sorted(misses(made)) == [("fan/1/approval:v1", "waits"), ("fan/2/approval:v1", "waits")]
    assumed = await plan(body, await record(body), assume={"fan/1/approval:v1": True})
    assert sorted(misses(assumed)) == [("fan/1/b", "runs"), ("fan/2/approval:v1", "waits")]


async def test_plan_comes_behind_fan_out_whose_children_only_lack_their_end(work: _Work) -> None:
    """
    A child that comes to its end over memos has its outcome, recorded or not.
    """

    async def child(ctx: memable.Context, item: int) -> str:
        return await ctx.step("a", work.do, f"a{item}")

    async def old(ctx: memable.Context) -> None:
        async def longer(ctx: memable.Context, item: int) -> None:
            await child(ctx, item)
            await ctx.sleep("nap", math.inf)

        await ctx.fan_out("fan", longer, [0, 1])

    async def new(ctx: memable.Context) -> None:
        done = await ctx.fan_out("fan", child, [0, 1])
        await ctx.step(",".join(done), work.do, "behind")

    assert misses(await plan(new, await record(old))) == [("a0,a1", "runs")]


async def test_plan_serves_failure_memos(work: _Work) -> None:
    """
    A recorded failure is raised; what leaves the body is the error of the plan.
    """

    async def body(ctx: memable.Context) -> None:
        await ctx.step("broken", work.fail, "x")

    async def coping(ctx: memable.Context) -> None:
        try:
            await body(ctx)
        except memable.StepFailedError:
            await ctx.step("instead", work.do, "x")

    store = await record(body)
    made = await plan(body, store.crashed_copy())
    assert (made.outcome, made.hits, made.misses) == ("failed", ("broken",), ())
    assert made.error is not None
    assert made.error.type == "memable.StepFailedError"
    assert "ConnectionError: x" in made.problems[0]
    mended = await plan(coping, store)
    assert (mended.problems, misses(mended)) == ((), [("instead", "runs")])


async def test_plan_blocks_on_error_before_memos_of_earlier_run(work: _Work) -> None:
    """
    A mistake of the new code, before it has asked for what is recorded, blocks the instance: its error is told.
    """

    async def old(ctx: memable.Context) -> None:
        await ctx.step("a", work.do, "a")
        await ctx.sleep("nap", math.inf)

    async def new(ctx: memable.Context) -> None:
        raise ZeroDivisionError("oh")

    made = await plan(new, await record(old))
    assert (made.outcome, made.unreached, made.problems) == ("blocked", ("a", "nap"), ("ZeroDivisionError: oh",))


# Mismatches --------------------------------------------------------------------------------------------------------


async def test_plan_tells_type_mismatch(work: _Work) -> None:
    """
    A memo of another type than the code asks for is a mismatch with both types, and no hit.
    """

    async def count() -> int:
        return 3

    async def old(ctx: memable.Context) -> None:
        await ctx.step("count", count)
        await ctx.sleep("nap", math.inf)

    async def new(ctx: memable.Context) -> None:
        await ctx.step("count", work.do, "x")

    made = await plan(new, await record(old))
    (mismatch,) = made.mismatches
    assert (mismatch.path, mismatch.recorded, mismatch.now) == ("count", "builtins.int", "builtins.str")
    assert (made.outcome, made.hits, made.error) == ("blocked", (), None)
    assert made.problems == (mismatch.error.message,)
    assert "the code asks for builtins.str, but what is recorded is builtins.int" in made.problems[0]


async def test_plan_tells_what_blocks_instance(work: _Work) -> None:
    """
    Of a Blocked instance, the plan has the problem that it is blocked with; that of mended code has none.
    """

    async def count() -> int:
        return 3

    async def old(ctx: memable.Context) -> None:
        await ctx.step("count", count)
        await ctx.sleep("nap", math.inf)

    async def new(ctx: memable.Context) -> None:
        await ctx.step("count", work.do, "x")

    store = await record(old)
    workflow = workflow_of(new)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        state = await (await engine.resume(workflow, INSTANCE)).wait()
        made = await engine.plan(workflow, INSTANCE)
        mended = await engine.plan(workflow_of(old), INSTANCE)
    assert isinstance(state, memable.Blocked)
    assert made.problems == (state.error.message,)
    assert mended.problems == ()


async def test_plan_tells_mismatches_of_several_tasks(work: _Work) -> None:
    """
    Each branch goes on to its first mismatch.
    """

    async def old(ctx: memable.Context) -> None:
        await ctx.step("a", work.do, "a")
        await ctx.sleep("b", 0)
        await ctx.sleep("nap", math.inf)

    async def new(ctx: memable.Context) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ctx.sleep, "a", 1)
            nursery.start_soon(lambda: ctx.step("b", work.do, "b"))

    made = await plan(new, await record(old))
    assert {(one.path, one.recorded, one.now) for one in made.mismatches} == {
        ("a", "a step", "a sleep"),
        ("b", "a sleep", "a step"),
    }
    assert made.outcome == "blocked"


async def test_plan_tells_changed_items(work: _Work) -> None:
    """
    Other items than are recorded are a mismatch.
    """

    async def child(ctx: memable.Context, item: int) -> None:
        await ctx.step("a", work.do, "a")
        await ctx.sleep("nap", math.inf)

    async def old(ctx: memable.Context) -> None:
        await ctx.fan_out("fan", child, [1, 2])

    async def new(ctx: memable.Context) -> None:
        await ctx.fan_out("fan", child, [1, 3])

    (mismatch,) = (await plan(new, await record(old))).mismatches
    assert (mismatch.path, mismatch.recorded, mismatch.now) == ("fan", "item '1'", "another item")


async def test_plan_tells_input_that_does_not_fit(work: _Work) -> None:
    """
    An input that the new code cannot read is a mismatch without a path.
    """

    @memable.workflow(name="w")
    async def old(ctx: memable.Context, count: int) -> None: ...

    @memable.workflow(name="w")
    async def new(ctx: memable.Context, count: str) -> None: ...

    store = memable.InMemoryStore()
    async with memable.open_engine(store, workflows=[old]) as engine:
        await (await engine.invoke(old, 1, instance_id=INSTANCE)).result()
    (mismatch,) = (await plan(new, store)).mismatches
    assert (mismatch.path, mismatch.recorded, mismatch.now) == (None, "builtins.int", "builtins.str")


async def test_plan_tells_other_code_errors(work: _Work) -> None:
    """
    A misuse is the plan's error: it is told once, though later operations raise it again.
    """

    async def body(ctx: memable.Context) -> None:
        await ctx.step("a", work.do, "a")
        try:
            await ctx.step("a", work.do, "a")
        except memable.DuplicateKeyError:
            await ctx.step("b", work.do, "b")

    made = await plan(body, await record(body))
    assert made.outcome == "blocked"
    assert made.error is not None
    assert made.error.type == "memable.DuplicateKeyError"
    assert (made.hits, made.misses, len(made.problems)) == (("a",), (), 1)


# Waits, scopes, effects, compensations -----------------------------------------------------------------------------


async def test_plan_tells_waits(work: _Work) -> None:
    """
    A suspend point without a signal and a sleep that is not over wait, with their deadlines.
    """

    async def body(ctx: memable.Context) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ctx.sleep, "nap", 1000)
            await ctx.suspend(APPROVAL)

    made = await plan(body, await record(body))
    by_path = {miss.path: miss for miss in made.misses}
    assert (by_path["approval:v1"].operation, by_path["approval:v1"].outlook) == ("suspend", "waits")
    assert by_path["approval:v1"].deadline is None
    assert by_path["nap"].outlook == "waits"
    assert by_path["nap"].deadline is not None


async def test_plan_goes_behind_sleep_that_is_over(work: _Work) -> None:
    """
    A deadline that has passed since is over: what lies behind is planned, as of now or of any other moment.
    """

    async def body(ctx: memable.Context) -> None:
        await ctx.sleep("nap", 1000)
        try:
            await ctx.suspend(APPROVAL, timeout=10)
        except memable.SuspendTimeoutError:
            await ctx.step("late", work.do, "late")

    store = await record(body)
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    made = await plan(body, store.crashed_copy(), at=tomorrow)
    assert misses(made) == [("nap", "passes"), ("approval:v1", "waits")]
    assert made.misses[1].deadline is not None
    assert made.misses[1].deadline > tomorrow
    assert misses(await plan(body, store)) == [("nap", "waits")]


async def test_plan_tells_timeout_of_suspend(work: _Work) -> None:
    """
    A suspend point whose time is up times out.
    """

    async def body(ctx: memable.Context) -> None:
        try:
            await ctx.suspend(APPROVAL, timeout=10)
        except memable.SuspendTimeoutError:
            await ctx.step("late", work.do, "late")

    made = await plan(body, await record(body), at=datetime.now(UTC) + timedelta(days=1))
    assert misses(made) == [("approval:v1", "passes"), ("late", "runs")]


async def test_plan_serves_kept_signal(work: _Work) -> None:
    """
    A signal that came early is a hit.
    """

    async def body(ctx: memable.Context) -> None:
        await ctx.sleep("nap", math.inf)
        assert await ctx.suspend(APPROVAL)
        await ctx.step("behind", work.do, "behind")

    store = memable.InMemoryStore()
    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        await invocation.wait()
        await engine.signal(workflow, INSTANCE, APPROVAL, True, early="keep")
        made = await engine.plan(workflow, INSTANCE, assume={"nap": None})
    assert made.hits == ("approval:v1",)
    assert misses(made) == [("behind", "runs")]


async def test_plan_tells_expiry_of_scope(work: _Work) -> None:
    """
    A scope whose deadline has passed expires at what has no memo; one that has time left goes on.
    """

    async def body(ctx: memable.Context) -> None:
        async with ctx.move_on_after("scope", 100) as scope:
            await ctx.step("in", work.do, "in")
            await ctx.sleep("nap", math.inf)
        await ctx.step(f"behind {scope.cancelled_caught}", work.do, "behind")

    store = await record(body)
    assert misses(await plan(body, store.crashed_copy())) == [("nap", "waits")]
    late = await plan(body, store, at=datetime.now(UTC) + timedelta(days=1))
    assert late.hits == ("in",)
    assert misses(late) == [("scope", "passes"), ("behind True", "runs")]


async def test_plan_enters_new_scope_and_registers_new_compensation(work: _Work) -> None:
    """
    What memable only records is a miss that the body goes behind.
    """

    async def body(ctx: memable.Context) -> None:
        await ctx.compensate("undo", work.do, "undo")
        async with ctx.fail_after("scope", 100):
            await ctx.step("in", work.do, "in")

    made = await plan(body, await record(wait_first(body)))
    assert misses(made) == [("undo", "passes"), ("scope", "passes"), ("in", "runs")]


async def test_plan_of_compensated_instance_executes_nothing(work: _Work) -> None:
    """
    An instance whose compensations have run is planned from the top, and fails again.
    """

    async def body(ctx: memable.Context) -> None:
        await ctx.compensate("undo", work.do, "undo")
        await ctx.step("broken", work.fail, "x")

    store = await record(body)
    work.done.clear()
    made = await plan(body, store)
    assert (made.outcome, made.hits, made.misses) == ("failed", ("undo", "broken"), ())
    assert work.done == []


async def test_plan_tells_lost_compensation(work: _Work) -> None:
    """
    Code that fails and does not register a compensation any more would be Blocked.
    """

    async def old(ctx: memable.Context) -> None:
        await ctx.compensate("undo", work.do, "undo")
        with pytest.raises(memable.StepFailedError, match="broken"):
            await ctx.step("broken", work.fail, "x")
        await ctx.sleep("nap", math.inf)

    async def new(ctx: memable.Context) -> None:
        await ctx.step("broken", work.fail, "x")

    made = await plan(new, await record(old))
    assert (made.outcome, made.unreached) == ("blocked", ("nap", "undo"))
    assert made.error is not None
    assert made.error.type == "memable.CompensationLostError"


async def test_plan_tells_unknown_outcome(work: _Work) -> None:
    """
    An effect that must not repeat and may have happened is a problem, unless a probe can tell.
    """
    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []

    async def pay() -> str:
        copies.append(store.crashed_copy())
        return "paid"

    async def ask() -> str:
        raise AssertionError("a plan asks nobody")

    async def body(ctx: memable.Context) -> None:
        await ctx.step("pay", pay, once=True)

    async def probing(ctx: memable.Context) -> None:
        await ctx.step("pay", pay, once=True, probe=ask)

    await record(body, store)
    made = await plan(body, copies[0].crashed_copy())
    assert misses(made) == [("pay", "unknown")]
    assert "unknown" in made.problems[0]
    probed = await plan(probing, copies[0])
    assert (misses(probed), probed.problems) == ([("pay", "runs")], ())


async def test_plan_tells_next_attempt(work: _Work) -> None:
    """
    A step that has failed and is to be tried again is a miss with its attempt and when that is due.
    """

    async def body(ctx: memable.Context) -> None:
        await ctx.step("a", work.fail, "a", retry=memable.RetryPolicy.fixed(3, 1000))

    store = await record(body)
    (miss,) = (await plan(body, store.crashed_copy())).misses
    assert (miss.path, miss.outlook, miss.attempt) == ("a", "runs", 2)
    assert miss.deadline is not None
    (due,) = (await plan(body, store, at=datetime.now(UTC) + timedelta(days=1))).misses
    assert (due.attempt, due.deadline) == (2, None)


async def test_plan_replays_until_first_miss(work: _Work) -> None:
    """
    ``ctx.replaying`` says in a plan what it says in a recovery, ``ctx.step_id`` too.
    """
    told: list[object] = []

    async def body(ctx: memable.Context) -> None:
        told.append(ctx.replaying)
        await ctx.step("a", work.do, "a")
        told.append((ctx.replaying, ctx.step_id("a")))
        await ctx.compensate("new", work.do, "x")
        told.append(ctx.replaying)
        await ctx.sleep("nap", math.inf)

    async def old(ctx: memable.Context) -> None:
        told.append(ctx.step_id("a"))
        await ctx.step("a", work.do, "a")
        await ctx.sleep("nap", math.inf)

    await plan(body, await record(old))
    assert told == [told[0], True, (True, told[0]), False]


# Children ----------------------------------------------------------------------------------------------------------


async def test_plan_tells_children(work: _Work) -> None:
    """
    A child instance without an outcome is a miss: a new one would run, another one is waited for.
    """

    @memable.workflow(name="child")
    async def child(ctx: memable.Context, waits: bool) -> str:
        if waits:
            await ctx.sleep("nap", math.inf)
        return await ctx.step("a", work.do, "child")

    @memable.workflow(name="w")
    async def old(ctx: memable.Context) -> None:
        await ctx.call("done", child, False)
        await ctx.call("going on", child, True)

    @memable.workflow(name="w")
    async def new(ctx: memable.Context) -> None:
        await ctx.start("detached", child, True)
        async with trio.open_nursery() as nursery:
            for key in ("done", "going on", "new"):
                nursery.start_soon(ctx.call, key, child, key != "done")
            nursery.start_soon(ctx.fan_out, "fan", child, [True, False])

    store = memable.InMemoryStore()
    async with memable.open_engine(store, workflows=[old, child]) as engine:
        await (await engine.invoke(old, instance_id=INSTANCE)).wait()
        made = await engine.plan(new, INSTANCE)
        assert [one.instance_id for one in await engine.list_instances()] == [INSTANCE, "i/done", "i/going on"]
    assert made.hits == ("done",)
    assert sorted(misses(made), key=str) == [
        ("detached", "runs"),
        ("fan/0", "runs"),
        ("fan/1", "runs"),
        ("going on", "waits"),
        ("new", "runs"),
    ]
    assert work.done == ["child"]


async def test_plan_uses_outcome_of_child_that_has_ended(work: _Work) -> None:
    """
    A child that has ended while nobody could tell its parent is served, and the body goes on.
    """

    @memable.workflow(name="child")
    async def child(ctx: memable.Context) -> str:
        return await ctx.step("a", work.do, "child")

    @memable.workflow(name="w")
    async def parent(ctx: memable.Context) -> None:
        await ctx.step(await ctx.call("kid", child), work.do, "behind")

    @memable.workflow(name="w")
    async def waiting(ctx: memable.Context) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ctx.call, "kid", child)
            await ctx.sleep("nap", math.inf)

    store = memable.InMemoryStore()
    async with memable.open_engine(store, workflows=[waiting, child]) as engine:
        await (await engine.invoke(waiting, instance_id=INSTANCE)).wait()
        await engine.wait_all()
    # Without the parent's record of it: as if the process had died before that.
    for records in store._kept.journals.values():
        records[:] = [(place, one) for place, one in records if one.kind != "call_completed"]
    made = await plan(parent, store)
    assert misses(made) == [("kid", "passes"), ("child", "runs")]


async def test_plan_of_registered_code_tells_unregistered_child(work: _Work) -> None:
    """
    What the engine would refuse, the plan of its own code refuses: a child workflow that is not registered.
    """

    @memable.workflow(name="child")
    async def child(ctx: memable.Context) -> None: ...

    async def body(ctx: memable.Context) -> None:
        await ctx.step("a", work.do, "a")
        await ctx.call("kid", child)

    workflow = workflow_of(body)
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        await (await engine.invoke(workflow, instance_id=INSTANCE)).wait()
        made = await engine.plan(workflow, INSTANCE)
    assert made.outcome == "blocked"
    assert "is not registered with the engine" in made.problems[0]


# Assumptions -------------------------------------------------------------------------------------------------------


async def test_plan_shows_what_lies_behind_assumed_values(work: _Work) -> None:
    """
    A value that is assumed is served as its step would return it, though a failure is recorded.
    """

    async def body(ctx: memable.Context) -> str:
        name = await ctx.step("name", work.fail, "x")
        approved = await ctx.suspend(APPROVAL)
        return await ctx.step(f"{name} {approved}", work.do, "y")

    made = await plan(body, await record(body), assume={"name": "Ada", "approval:v1": True, "unused": 1})
    assert (made.assumed, made.hits) == (("name", "approval:v1"), ())
    assert misses(made) == [("Ada True", "runs")]
    assert work.done == ["x"]


async def test_plan_refuses_assumed_value_of_other_type(work: _Work) -> None:
    """
    A value that the step could not return is the caller's mistake.
    """

    async def body(ctx: memable.Context) -> None:
        await ctx.step("a", work.do, "a")

    store = await record(wait_first(body))
    with pytest.raises(memable.TypeMismatchError, match=r"key 'a'.* str.*builtins\.int"):
        await plan(body, store.crashed_copy(), assume={"a": 3})
    with pytest.raises(memable.MisuseError, match="give values by path"):
        await plan(body, store.crashed_copy(), assume=["a"])
    with pytest.raises(memable.MisuseError, match="aware datetime"):
        await plan(body, store.crashed_copy(), at=datetime(2026, 1, 1))  # noqa: DTZ001 - what is refused


# Manners -----------------------------------------------------------------------------------------------------------


async def test_plan_leaves_running_instance_alone(work: _Work) -> None:
    """
    An instance that runs is planned by what is durable, and goes on undisturbed: no state is announced.
    """
    begun, go_on = trio.Event(), trio.Event()

    async def slow(name: str) -> str:
        begun.set()
        await go_on.wait()
        return await work.do(name)

    async def body(ctx: memable.Context) -> None:
        ctx.set_status("beginning")
        await ctx.step("a", work.do, "a")
        await ctx.step("slow", slow, "slow")
        ctx.set_status("behind")

    workflow = workflow_of(body)
    states: list[memable.WorkflowState] = []
    async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
        invocation = await engine.invoke(workflow, instance_id=INSTANCE)
        await begun.wait()
        states.append(await invocation.state())
        first, second = [await engine.plan(workflow, INSTANCE, assume=one) for one in ({}, {"slow": "x"})]
        states.append(await invocation.state())
        go_on.set()
        await invocation.result()
    assert (misses(first), second.is_complete) == ([("slow", "runs")], True)
    assert states == [memable.InProgress("beginning")] * 2
    assert work.done == ["a", "slow"]


async def test_plan_waits_for_body_on_busy_machine(work: _Work) -> None:
    """
    A plan whose own tasks get their turn late is as good as any other.
    """

    async def body(ctx: memable.Context) -> None:
        await ctx.step("a", work.do, "a")
        await ctx.suspend(APPROVAL)

    workflow = workflow_of(body)
    async with (
        memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine,
        trio.open_nursery() as busy,
    ):
        await (await engine.invoke(workflow, instance_id=INSTANCE)).wait()

        async def be_busy() -> None:
            while True:
                await trio.lowlevel.checkpoint()
                begun = time.monotonic()
                while time.monotonic() < begun + 2 * NAP_S:
                    pass

        busy.start_soon(be_busy)
        for _ in range(5):
            made = await engine.plan(workflow, INSTANCE)
            assert (made.hits, misses(made)) == (("a",), [("approval:v1", "waits")])
        busy.cancel_scope.cancel()


async def test_plan_of_many_instances_at_once(work: _Work, place: Place) -> None:
    """
    Plans may be made side by side; the store has the same bytes afterwards.
    """

    async def body(ctx: memable.Context) -> None:
        await ctx.step("a", work.do, "a")
        await ctx.suspend(APPROVAL)

    workflow = workflow_of(body)
    made: dict[str, memable.Plan] = {}
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        for number in range(10):
            await (await engine.invoke(workflow, instance_id=str(number))).wait()
        before = [await engine.history(workflow, str(number)) for number in range(10)]

        async def make(instance_id: str) -> None:
            made[instance_id] = await engine.plan(workflow, instance_id)

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(make, str(number))
        assert [await engine.history(workflow, str(number)) for number in range(10)] == before
    assert {one.hits for one in made.values()} == {("a",)}
    assert all(misses(one) == [("approval:v1", "waits")] for one in made.values())


async def test_plan_writes_no_byte(work: _Work, tmp_path: Any) -> None:
    """
    The files of a store are the same before and after a plan.
    """

    async def body(ctx: memable.Context) -> None:
        await ctx.step("a", work.do, "a")
        await ctx.suspend(APPROVAL)

    async def new(ctx: memable.Context) -> None:
        await ctx.compensate("undo", work.do, "undo")
        await ctx.sleep("nap", 0)
        await ctx.step("a:v2", work.do, "a")

    workflow = workflow_of(body)
    async with memable.open_engine(tmp_path / "store", workflows=[workflow]) as engine:
        await (await engine.invoke(workflow, instance_id=INSTANCE)).wait()
        # What is on its way to the disk when a run begins to wait is there when this is.
        await engine.cancel(workflow, INSTANCE)
        before = {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()}
        assert misses(await engine.plan(workflow_of(new), INSTANCE))[-1] == ("a:v2", "runs")
        assert {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()} == before


async def test_plan_refuses_what_it_cannot_find(work: _Work) -> None:
    """
    Unknown instances, unregistered names and stopped engines are refused, each with its own error.
    """

    @memable.workflow
    async def known(ctx: memable.Context) -> None: ...

    async with memable.open_engine(memable.InMemoryStore(), workflows=[known]) as engine:
        with pytest.raises(memable.InstanceNotFoundError, match="no such instance"):
            await engine.plan(known, "nobody")
        with pytest.raises(memable.WorkflowNotFoundError, match="unknown"):
            await engine.plan("unknown", "nobody")
        await (await engine.invoke(known, instance_id=INSTANCE)).result()
        with trio.testing.assert_checkpoints():
            await engine.plan(known, INSTANCE)
        await engine.stop()
        with pytest.raises(memable.EngineStoppedError, match=r"engine\.plan"):
            await engine.plan(known, INSTANCE)


async def test_plan_is_refused_inside_body(work: _Work) -> None:
    """
    A body cannot plan, itself or another: its plan would plan again.
    """
    async with memable.open_engine(memable.InMemoryStore()) as engine:

        @memable.workflow
        async def selfish(ctx: memable.Context) -> None:
            with pytest.raises(RuntimeError, match="inside a workflow's body"):
                await engine.plan(selfish, INSTANCE)

        engine.register(selfish)
        await (await engine.invoke(selfish, instance_id=INSTANCE)).result()


async def test_plan_ends_at_call_of_engine(work: _Work) -> None:
    """
    A body that calls the engine does nothing by it while it is planned: the call is a miss.
    """
    async with memable.open_engine(memable.InMemoryStore()) as engine:

        @memable.workflow
        async def other(ctx: memable.Context) -> None: ...

        @memable.workflow
        async def nosy(ctx: memable.Context, call: str) -> None:
            if not ctx.replaying:
                return
            if call == "invoke":
                await engine.invoke(other, instance_id="made")
            elif call == "stop":
                await engine.stop()
            elif call == "delete":
                await engine.delete(nosy, "delete")
            else:
                await engine.wait_all()

        engine.register(nosy)
        engine.register(other)
        for call in ("invoke", "stop", "delete", "wait_all"):
            await (await engine.invoke(nosy, call, instance_id=call)).result()
            made = await engine.plan(nosy, call)
            assert made.misses == (memable.Miss(None, f"engine.{call}", "runs"),)
            assert made.problems == ()
        assert len(await engine.list_instances()) == 4


async def test_plan_is_cancelled_with_its_caller(work: _Work) -> None:
    """
    Cancelling the caller unwinds the body, with its shielded cleanup, and leaves no task behind.
    """
    left: list[object] = []

    async def waiting(ctx: memable.Context) -> None:
        try:
            await trio.sleep_forever()
        finally:
            left.append(ctx.leaving)

    workflow = workflow_of(waiting)
    store = await record(wait_first(waiting))
    async with memable.open_engine(store) as engine:
        tasks = trio.lowlevel.current_statistics().tasks_living
        with trio.move_on_after(0.05) as scope:
            await engine.plan(workflow, INSTANCE)
        assert scope.cancelled_caught
        assert left == ["stopping"]
        assert trio.lowlevel.current_statistics().tasks_living == tasks


async def test_plan_inside_deadline_of_caller_has_no_deadline_inside(work: _Work) -> None:
    """
    A deadline around the plan is none of the body's.
    """

    async def body(ctx: memable.Context) -> None:
        await ctx.sleep("nap", math.inf)

    store = await record(body)
    with trio.fail_after(600):
        assert misses(await plan(body, store)) == [("nap", "waits")]


async def test_plan_raises_what_no_workflow_may_handle(work: _Work) -> None:
    """
    ``KeyboardInterrupt`` in a planned body comes out of the plan, as itself.
    """

    async def body(ctx: memable.Context) -> None:
        raise KeyboardInterrupt

    store = await record(wait_first(body))
    with pytest.raises(KeyboardInterrupt):
        await plan(body, store)


# The report --------------------------------------------------------------------------------------------------------


def test_plan_prints_a_report() -> None:
    """
    Printed, a plan names what is next, what is not asked for any more and what blocks; long lists are cut.
    """
    error = memable.ErrorInfo("builtins.ValueError", "two\nlines")
    many = tuple(str(number) for number in range(MAX_SHOWN + 5))
    made = memable.Plan(
        workflow="order",
        instance_id="o-17",
        outcome="blocked",
        hits=("a",),
        misses=(
            memable.Miss("b", "step", "runs", attempt=2, deadline=datetime(2026, 1, 2, tzinfo=UTC)),
            memable.Miss("c", "step", "unknown"),
            memable.Miss(None, "engine.invoke", "runs"),
        ),
        unreached=many,
        mismatches=(memable.PlanMismatch("d", "builtins.int", "builtins.str", error),),
        error=error,
        assumed=("e",),
        is_stalled=True,
    )
    lines = str(made).split("\n")
    assert lines[:9] == [
        "workflow 'order', instance 'o-17': is blocked",
        r"  blocks: two\nlines",
        r"  blocks: ValueError: two\nlines",
        "  given up: the body waits for something that is no operation of ctx",
        "  next: 'b' (step): runs, attempt 2 until 2026-01-02 00:00:00+00:00",
        "  next: 'c' (step): outcome unknown: blocked until engine.settle(...) answers",
        "  next: engine.invoke: runs",
        "  not reached: '0'",
        "  not reached: '1'",
    ]
    assert lines[-3:] == ["  not reached: and 5 more", "  assumed: 'e'", "  served from memos: 1"]
    assert len(made.problems) == 4


@pytest.mark.parametrize(
    ("outcome", "told"),
    [(None, "stops at 0 of its operations"), ("completed", "comes to its end"), ("failed", "fails")],
)
def test_plan_report_tells_outcome(outcome: Any, told: str) -> None:
    """
    The first line says how far the body comes.
    """
    assert str(memable.Plan("w", "i", outcome)).split("\n")[0] == f"workflow 'w', instance 'i': {told}"
