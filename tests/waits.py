"""
Suspend points, and helpers for tests of instances that wait.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

import memable
from memable._records import InstanceRecord
from memable._store._protocol import Store
from running import INSTANCE, workflow_of
from stores import HookedStore

P = memable.SuspendPoint("p", int)
Q = memable.SuspendPoint("q", int)
R = memable.SuspendPoint("r", int)

HOUR = 3_600.0


async def settle() -> None:
    """
    Let everything happen that can happen without time going by. Unlike waiting for it, lets no clock jump.
    """
    await trio.testing.wait_all_tasks_blocked()


async def suspended(engine: memable.Engine, workflow: memable.Workflow[..., Any] | str = "w") -> memable.Suspended:
    """
    Wait until the instance waits, recorded and passivated if it is to be, and return its state.
    """
    invocation = await engine.get(workflow, INSTANCE)
    await invocation.wait()
    await settle()
    state = await invocation.state()
    assert isinstance(state, memable.Suspended), state
    return state


async def crash_when_suspended(
    body: Callable[[memable.Context], Awaitable[object]], store: memable.InMemoryStore, **settings: Any
) -> memable.InMemoryStore:
    """
    Run a body until it waits, and return what a crash then leaves of the store.
    """
    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow], **settings) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
        await suspended(engine)
        return store.crashed_copy()


def crashing_after(count: int, inner: memable.InMemoryStore, crash: Callable[[], None]) -> Store:
    """
    Return a store that calls *crash* when so many appends are durable in it.
    """
    left = count

    async def count_down(_: object) -> None:
        nonlocal left
        if left == 0:
            crash()
        left -= 1

    return HookedStore(inner, before_append=count_down)


def counting(calls: list[str]) -> Callable[[str], Awaitable[str]]:
    """
    Return a step's function that notes its calls.
    """

    async def call(name: str) -> str:
        calls.append(name)
        await trio.lowlevel.checkpoint()
        return name

    return call


def paths_of(records: list[InstanceRecord], kind: str) -> list[str]:
    """
    Return the paths of all records of one kind, oldest first.
    """
    return [record.path for record in records if record.kind == kind]  # type: ignore[attr-defined]
