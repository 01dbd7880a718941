"""
Runs workflows over a store in memory, for tests of what happens inside them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import memable
from memable._store._protocol import Store

T = TypeVar("T")

INSTANCE = "i"


async def ending_of(invocation: memable.Invocation[Any]) -> memable.WorkflowState:
    """
    Wait until an instance has ended or is Blocked, and return that state.
    """
    with suppress(memable.WorkflowFailedError, memable.WorkflowCancelledError, memable.WorkflowBlockedError):
        await invocation.result()
    return await invocation.state()


async def run_to_end(
    workflow: memable.Workflow[..., Any], *args: object, store: Store | None = None, **settings: Any
) -> memable.WorkflowState:
    """
    Start the instance, or continue it if *store* holds it already, and return the state in which it ends.
    """
    kept = memable.InMemoryStore() if store is None else store
    async with memable.open_engine(kept, workflows=[workflow], **settings) as engine:
        return await ending_of(await engine.invoke(workflow, *args, instance_id=INSTANCE))


async def run_body(
    body: Callable[[memable.Context], Awaitable[object]],
    *,
    store: Store | None = None,
    **settings: Any,
) -> memable.WorkflowState:
    """
    Do what ``run_to_end`` does, for the body of a workflow that takes and returns nothing.
    """
    return await run_to_end(workflow_of(body), store=store, **settings)


def workflow_of(body: Callable[[memable.Context], Awaitable[object]]) -> memable.Workflow[[], None]:
    """
    Return a workflow, always of the same name, that awaits *body*.
    """

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context) -> None:
        await body(ctx)

    return workflow


async def observe_twice(body: Callable[[memable.Context], Awaitable[T]], **settings: Any) -> tuple[T, T]:
    """
    Return what *body* returns in the first run and, after a crash just behind it, in the second.
    """
    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []
    observed: list[T] = []

    async def observing(ctx: memable.Context) -> None:
        observed.append(await body(ctx))
        copies.append(store.crashed_copy())

    assert await run_body(observing, store=store, **settings) == memable.Completed()
    assert await run_body(observing, store=copies[0], **settings) == memable.Completed()
    live, replayed = observed
    return live, replayed


def kinds_of(store: memable.InMemoryStore) -> list[str]:
    """
    Return the kinds of all records, oldest first.
    """
    return [record.kind for record in store._records]
