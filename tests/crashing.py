"""
What tests of crashes share: hosts that keep nothing in mind, and effects in whose middle the process dies.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

import memable
from memable._journal import Journal, journal_of
from running import INSTANCE, run_body


def journal_in(store: memable.InMemoryStore) -> Journal:
    """
    Return the journal of the only instance.
    """
    return journal_of(store._records)


async def bring_to_end(engine: memable.Engine) -> memable.WorkflowState:
    """
    Do what a host does that keeps nothing in mind: start the same again, and wait for the end or a block.
    """
    invocation = await engine.invoke("w", instance_id=INSTANCE)
    while True:
        state = await invocation.wait()
        if not isinstance(state, memable.Suspended):
            return state
        await trio.sleep(1)


async def crashed_in_effect(
    body: Callable[[memable.Context, Callable[[], Awaitable[str]]], Awaitable[object]],
) -> memable.InMemoryStore:
    """
    Return what a crash inside the effect of *body* leaves.
    """
    store = memable.InMemoryStore()
    copies: list[memable.InMemoryStore] = []

    async def effect() -> str:
        copies.append(store.crashed_copy())
        return "done"

    async def once(ctx: memable.Context) -> None:
        await body(ctx, effect)

    await run_body(once, store=store)
    return copies[0]


async def pay_once(ctx: memable.Context, effect: Callable[[], Awaitable[str]]) -> None:
    await ctx.step("pay", effect, once=True)


async def never() -> str:
    raise AssertionError("the effect ran again")
