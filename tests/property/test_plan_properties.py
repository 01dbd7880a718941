"""
What a plan says comes next is what a recovery does next, wherever the process has died.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import attrs
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

import memable
from running import INSTANCE, workflow_of

Perform = Callable[[str], Awaitable[str]]


class _CutError(Exception):
    """Ends an engine as if its process had died."""


@attrs.frozen
class Op:
    """One thing that a body does."""

    kind: str
    key: str
    inner: tuple[Op, ...] = ()


def _keyed(ops: list[Op], prefix: str = "") -> tuple[Op, ...]:
    """Give each operation a key of its own."""
    return tuple(
        attrs.evolve(op, key=f"{prefix}{index}", inner=_keyed(list(op.inner), f"{prefix}{index}."))
        for index, op in enumerate(ops)
    )


_plain = st.sampled_from(["step", "failing", "compensate"]).map(lambda kind: Op(kind, ""))
_ops = st.recursive(
    st.lists(_plain, min_size=1, max_size=3),
    lambda inner: st.lists(
        st.one_of(
            _plain,
            st.builds(
                lambda kind, ops: Op(kind, "", tuple(ops)),
                st.sampled_from(["nursery", "fan", "scope", "limited"]),
                inner,
            ),
        ),
        min_size=1,
        max_size=3,
    ),
    max_leaves=8,
)
sequential = st.lists(_plain, min_size=1, max_size=6).map(_keyed)
structured = _ops.map(_keyed)


async def _perform_all(ctx: memable.Context, ops: tuple[Op, ...], work: Perform) -> None:
    for op in ops:
        await _perform(ctx, op, work)


async def _perform(ctx: memable.Context, op: Op, work: Perform) -> None:
    async def child(inner: memable.Context, index: int) -> None:
        await _perform(inner, op.inner[index], work)

    match op.kind:
        case "step":
            await ctx.step(op.key, work, op.key)
        case "failing":
            try:
                await ctx.step(op.key, work, f"{op.key}!")
            except memable.StepFailedError:
                await ctx.step(f"{op.key}+", work, f"{op.key}+")
        case "compensate":
            await ctx.compensate(op.key, work, op.key)
        case "nursery":
            async with trio.open_nursery() as nursery:
                for one in op.inner:
                    nursery.start_soon(_perform, ctx, one, work)
        case "scope":
            async with ctx.move_on_after(op.key, 3600):
                await _perform_all(ctx, op.inner, work)
        case _:
            limit = 1 if op.kind == "limited" else None
            await ctx.fan_out(op.key, child, range(len(op.inner)), limit=limit)


async def _crash_at(ops: tuple[Op, ...], count: int) -> memable.InMemoryStore:
    """Return a store as found after the process has died in the step that was executed after *count* others."""
    store = memable.InMemoryStore()
    executed: list[str] = []

    async def work(name: str) -> str:
        executed.append(name)
        if len(executed) > count or name == "end":
            await trio.sleep_forever()
        if name.endswith("!"):
            raise ValueError(name)
        return name

    workflow = workflow_of(lambda ctx: _perform_all(ctx, ops, work))
    await _run_until_quiet(store, workflow, starts=True)
    return store.crashed_copy()


async def _hang(recovered: list[str], name: str) -> str:
    recovered.append(name.rstrip("!"))
    await trio.sleep_forever()
    raise AssertionError("it is cut")


async def _run_until_quiet(
    store: memable.InMemoryStore, workflow: memable.Workflow[[], None], *, starts: bool = False
) -> memable.WorkflowState:
    """Run the instance until each of its steps waits for ever, or it has ended; then let the process die."""
    state: memable.WorkflowState | None = None
    try:
        async with memable.open_engine(store, workflows=[workflow]) as engine:
            if starts:
                await engine.invoke(workflow, instance_id=INSTANCE)
            await trio.testing.wait_all_tasks_blocked()
            state = await engine.state(workflow, INSTANCE)
            raise _CutError
    except _CutError:
        pass
    assert state is not None
    return state


async def _check(ops: tuple[Op, ...], count: int) -> None:
    crashed = await _crash_at(ops, count)
    planned: list[str] = []
    recovered: list[str] = []

    async def never(name: str) -> str:
        planned.append(name)
        return name

    before = crashed._records
    async with memable.open_engine(crashed.crashed_copy()) as engine:
        plan = await engine.plan(workflow_of(lambda ctx: _perform_all(ctx, ops, never)), INSTANCE)
    assert crashed._records == before
    assert planned == []
    assert plan.problems == ()
    await _run_until_quiet(crashed, workflow_of(lambda ctx: _perform_all(ctx, ops, partial(_hang, recovered))))
    # Of a child's step the path says more than its key.
    paths = [(miss.path or "").rpartition("/")[2] for miss in plan.misses if miss.outlook == "runs"]
    assert sorted(paths) == sorted(recovered)
    assert plan.is_complete == (not recovered)
    assert plan.orphaned == ()


def _compensates(ops: tuple[Op, ...]) -> bool:
    return any(op.kind == "compensate" or _compensates(op.inner) for op in ops)


async def _check_changed(ops: tuple[Op, ...], changed: tuple[Op, ...], count: int) -> None:
    # What has ended would not run again.
    crashed = await _crash_at((*ops, Op("step", "end")), count)
    planned: list[str] = []
    recovered: list[str] = []
    async with memable.open_engine(crashed.crashed_copy()) as engine:
        plan = await engine.plan(workflow_of(lambda ctx: _perform_all(ctx, changed, partial(_hang, planned))), INSTANCE)
    assert planned == []
    state = await _run_until_quiet(
        crashed, workflow_of(lambda ctx: _perform_all(ctx, changed, partial(_hang, recovered)))
    )
    match state:
        case memable.Completed():
            assert (plan.outcome, plan.problems) == ("completed", ())
        case memable.Failed(error):
            assert plan.outcome == "failed"
            assert plan.error is not None
            assert plan.error.type == error.type
        case memable.Blocked(_, error) if error.type == "memable.CompensationLostError":
            # What is registered within outcomes would take a run of its own to find.
            assert plan.outcome in ("failed", "blocked")
        case memable.Blocked(_, error):
            assert plan.outcome == "blocked"
            told = [mismatch.error for mismatch in plan.mismatches]
            told += [] if plan.error is None else [plan.error]
            assert (error.type, error.message) in [(one.type, one.message) for one in told]
        case _ if plan.outcome == "failed":
            # Its compensations run first, and hang as all steps do here.
            assert _compensates(changed)
        case _:
            assert (plan.outcome, plan.problems) == (None, ())
            paths = [(miss.path or "").rpartition("/")[2] for miss in plan.misses if miss.outlook == "runs"]
            assert sorted(paths) == sorted(recovered)


@given(structured, structured, st.integers(0, 8))
def test_plan_of_changed_code_ends_as_recovery_does(ops: tuple[Op, ...], changed: tuple[Op, ...], count: int) -> None:
    """
    Of whatever other code, the plan tells whether the instance completes, fails, is blocked, and by which error.
    """
    trio.run(_check_changed, ops, changed, count)


@given(sequential, st.integers(0, 8))
def test_plan_first_miss_is_step_that_recovery_executes_next(ops: tuple[Op, ...], count: int) -> None:
    """
    Of a body that does one thing after the other, the plan names the one step that a recovery executes next.
    """
    trio.run(_check, ops, count)


@given(structured, st.integers(0, 8))
def test_plan_misses_are_steps_that_recovery_executes_next(ops: tuple[Op, ...], count: int) -> None:
    """
    Whatever runs concurrently, the plan names those steps that a recovery executes before it records an outcome.
    """
    trio.run(_check, ops, count)
