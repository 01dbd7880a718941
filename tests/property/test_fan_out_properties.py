"""
Fan-outs of every shape, crashed at random moments: results, and what runs again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import attrs
import trio
from hypothesis import example, given
from hypothesis import strategies as st
from trio.testing import MockClock

import memable
from memable._records import InstanceRecord, StepCompleted
from running import INSTANCE, ending_of
from stores import HookedStore


@attrs.frozen
class Leaf:
    """
    A child that does one step, after a while.
    """

    delay_s: int
    is_broken: bool
    "Whether it fails until somebody mends it."
    waits: bool
    "Whether it then waits a little, durably."


@attrs.frozen
class Fan:
    """
    A child that fans out.
    """

    children: tuple[Leaf | Fan, ...]
    limit: int | None
    settles: bool
    is_named: bool
    "Whether its children are named by item_key."


Node: TypeAlias = Leaf | Fan

LEAVES = st.builds(
    Leaf,
    delay_s=st.integers(0, 3),
    # Few, so that most trees get somewhere.
    is_broken=st.sampled_from([False, False, False, True]),
    waits=st.booleans(),
)


def _fans(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Fan]:
    return st.builds(
        Fan,
        children=st.lists(inner, max_size=4).map(tuple),
        limit=st.sampled_from([None, 1, 2, 3]),
        settles=st.booleans(),
        is_named=st.booleans(),
    )


TREES = _fans(st.recursive(LEAVES, _fans, max_leaves=6))


class World:
    """
    What is outside: what was done, and whether it works.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.is_broken = True
        self.running: Counter[str] = Counter()

    async def do(self, name: str, leaf: Leaf) -> str:
        """
        Do one thing. A step's function.
        """
        self.calls[name] += 1
        await trio.sleep(leaf.delay_s)
        if leaf.is_broken and self.is_broken:
            raise ConnectionError(name)
        return name


def _body(world: World, tree: Fan) -> memable.Workflow[..., Any]:
    async def visit(ctx: memable.Context, path: str, node: Node) -> Any:
        if isinstance(node, Leaf):
            result = await ctx.step("s", world.do, f"{path}/s", node)
            if node.waits:
                await ctx.sleep("nap", 1)
            return result

        async def child(ctx: memable.Context, item: int) -> Any:
            world.running[path] += 1
            assert node.limit is None or world.running[path] <= node.limit
            try:
                name = f"n{item}" if node.is_named else str(item)
                return await visit(ctx, f"{path}/f/{name}".removeprefix("/"), node.children[item])
            finally:
                world.running[path] -= 1

        key = (lambda item: f"n{item}") if node.is_named else None
        items = range(len(node.children))
        if not node.settles:
            return await ctx.fan_out("f", child, items, limit=node.limit, item_key=key)
        outcomes = await ctx.fan_out_settled("f", child, items, limit=node.limit, item_key=key)
        return [
            {"value": outcome.value} if isinstance(outcome, memable.ChildSucceeded) else {"failed": str(outcome.error)}
            for outcome in outcomes
        ]

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context) -> Any:
        world.running.clear()
        return await visit(ctx, "", tree)

    return workflow


def _has_broken(node: Node) -> bool:
    return node.is_broken if isinstance(node, Leaf) else any(map(_has_broken, node.children))


def check_result(node: Node, path: str, result: Any) -> None:
    """
    Check what a node gave: all values in order, and failures only where something was broken.
    """
    if isinstance(node, Leaf):
        assert result == f"{path}/s"
        return
    assert len(result) == len(node.children)
    for index, (child, outcome) in enumerate(zip(node.children, result, strict=True)):
        inner = f"{path}/f/{f'n{index}' if node.is_named else index}".removeprefix("/")
        if not node.settles:
            check_result(child, inner, outcome)
        elif "failed" in outcome:
            assert _has_broken(child)
        else:
            check_result(child, inner, outcome["value"])


def _done(store: memable.InMemoryStore) -> set[str]:
    return {record.path for record in store._records if isinstance(record, StepCompleted)}


@given(
    tree=TREES,
    crashes=st.lists(st.integers(0, 12), max_size=3),
    max_parked=st.sampled_from([0, 1000]),
)
@example(
    # A failure that is recorded while the others are still at work.
    tree=Fan((Leaf(0, True, False), Leaf(3, False, True), Leaf(1, True, True)), None, False, True),
    crashes=[2, 1],
    max_parked=0,
)
@example(
    # A fan-out that is done, within a child that is not.
    tree=Fan((Fan((Leaf(0, False, False),), 1, False, False), Leaf(2, False, True)), 2, True, False),
    crashes=[3, 0],
    max_parked=1000,
)
def test_fan_outs_of_any_shape_survive_crashes(tree: Fan, crashes: list[int], max_parked: int):
    """
    Whatever it is made of and wherever it crashes: no acknowledged step runs again, and the results are the same.
    """
    store = memable.InMemoryStore()
    world = World()
    # The last run is not crashed; it is mended and resumed if it fails.
    for crash_after in [*crashes, None]:
        acknowledged = _done(store)
        world.calls.clear()
        store = _run(store, world, tree, crash_after, max_parked)
        assert not world.calls.keys() & acknowledged
    assert _done(store) >= {path for path, leaf in _leaves(tree, "") if not leaf.is_broken and not _in_settled(tree)}


def _in_settled(node: Node) -> bool:
    return isinstance(node, Fan) and (node.settles or any(map(_in_settled, node.children)))


def _leaves(node: Node, path: str) -> list[tuple[str, Leaf]]:
    if isinstance(node, Leaf):
        return [(f"{path}/s", node)]
    return [
        found
        for index, child in enumerate(node.children)
        for found in _leaves(child, f"{path}/f/{f'n{index}' if node.is_named else index}".removeprefix("/"))
    ]


def _run(
    store: memable.InMemoryStore, world: World, tree: Fan, crash_after: int | None, max_parked: int
) -> memable.InMemoryStore:
    """Run to the end, or until so many appends have begun; return what is found in the store then."""
    left: list[memable.InMemoryStore] = []
    hook = _crashing(store, crash_after, left)

    async def main() -> None:
        workflow = _body(world, tree)
        hooked = HookedStore(store, before_append=hook)
        async with memable.open_engine(
            hooked, workflows=[workflow], max_parked=max_parked, shutdown_timeout=0
        ) as engine:
            await _bring_to_end(engine, world, tree, workflow)

    world.is_broken = True
    trio.run(main, clock=MockClock(autojump_threshold=0))
    return left[0] if left else store


def _crashing(
    store: memable.InMemoryStore, crash_after: int | None, left: list[memable.InMemoryStore]
) -> Callable[[Sequence[InstanceRecord]], Awaitable[None]]:
    count = 0

    async def hook(_: Sequence[InstanceRecord]) -> None:
        nonlocal count
        if count == crash_after:
            left.append(store.crashed_copy())
        count += 1

    return hook


async def _bring_to_end(engine: memable.Engine, world: World, tree: Fan, workflow: memable.Workflow[..., Any]) -> None:
    invocation = await engine.invoke(workflow, instance_id=INSTANCE)
    # Steps that failed beside the first failure have memos of their own, and each resume clears what came out.
    for _ in range(1 + sum(leaf.is_broken for _, leaf in _leaves(tree, ""))):
        if not isinstance(await ending_of(invocation), memable.Failed):
            break
        assert _has_broken(tree)
        world.is_broken = False
        invocation = await engine.resume(workflow, INSTANCE)
    check_result(tree, "", await invocation.result())
