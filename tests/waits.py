"""
Suspend points, and helpers for tests of instances that wait.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

import memable
from running import INSTANCE, workflow_of

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


def counting(calls: list[str]) -> Callable[[str], Awaitable[str]]:
    """
    Return a step's function that notes its calls.
    """

    async def call(name: str) -> str:
        calls.append(name)
        await trio.lowlevel.checkpoint()
        return name

    return call
