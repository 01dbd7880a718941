"""
What tests of fan-outs and child instances share: work that is counted, and stores that are crashed at each append.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs
import trio

import memable
from memable._records import InstanceRecord
from running import INSTANCE, ending_of
from stores import HookedStore


@attrs.define(eq=False)
class Work:
    """
    What the steps of a test do: it counts them, and some of them fail.
    """

    calls: Counter[str] = attrs.field(factory=Counter)
    broken: set[str] = attrs.field(factory=set)
    "Names of those that fail."
    running: int = 0
    most: int = 0
    "How many ran at the same time."

    async def do(self, name: str) -> str:
        """
        Do something under a name. A step's function.
        """
        self.calls[name] += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await trio.sleep(1)
        finally:
            self.running -= 1
        if name in self.broken:
            raise ConnectionError(name)
        return name.upper()

    def clear(self) -> None:
        """
        Forget what was done so far.
        """
        self.calls.clear()
        self.most = 0


async def crash_everywhere(
    run: Callable[[memable.Engine], Awaitable[object]],
    workflows: Sequence[memable.Workflow[..., Any]],
    check: Callable[[list[InstanceRecord]], object] = lambda _: None,
    store: memable.InMemoryStore | None = None,
    **settings: Any,
) -> int:
    """
    Run over a store, and again from what a crash just before each append leaves of it. Returns how many crashes.

    Args:
        run: What the host does; must bring everything to its end, whatever was done before.
        workflows: To be registered.
        check: Given what is durable before each of the runs from a crash.
        store: What the first run finds; nothing if left out.
        **settings: Of the engine.
    """
    copies: list[memable.InMemoryStore] = []
    kept = memable.InMemoryStore() if store is None else store

    async def copy(_: object) -> None:
        copies.append(kept.crashed_copy())

    async with memable.open_engine(HookedStore(kept, before_append=copy), workflows=workflows, **settings) as engine:
        await run(engine)
    for crashed in copies:
        check(crashed._records)
        async with memable.open_engine(crashed, workflows=workflows, **settings) as engine:
            await run(engine)
    return len(copies)


async def bring_to_end(engine: memable.Engine, name: str = "w", *args: object) -> memable.WorkflowState:
    """
    Start the instance, or find it, and return the state in which it ends.
    """
    return await ending_of(await engine.invoke(name, *args, instance_id=INSTANCE))


async def result_of(engine: memable.Engine, name: str = "w", *args: object) -> Any:
    """
    Start the instance, or find it, and return its result.
    """
    return await (await engine.invoke(name, *args, instance_id=INSTANCE)).result()


def settled(results: Sequence[Any]) -> list[Any]:
    """
    Return plain values for the outcomes of a settled fan-out: the value, or the type and message of the error.
    """
    return [outcome.value if isinstance(outcome, memable.ChildSucceeded) else str(outcome.error) for outcome in results]
