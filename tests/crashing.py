"""
Explores crashes: a workflow is run, and run again from what a crash at each moment of it would leave, and so on.

A crash is a fork in time. The store is copied at some moment, together with what the world outside has seen by then,
and a new engine goes on from the copy, as the process that follows one that was killed.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import attrs
import trio
from trio.testing import MockClock

import memable
from memable._journal import Journal, journal_of
from memable._records import InstanceRecord
from running import INSTANCE, run_body
from stores import HookedStore

#: An engine that has not brought everything to its end by then, in virtual seconds, is stuck. Not beside threads: a
#: virtual clock does not wait for them.
STUCK_AFTER_S = 10 * 86400.0


@attrs.define
class World:
    """
    What stays when a process dies: what happened outside, and what the host was told and has kept.
    """

    effects: Counter[str] = attrs.field(factory=Counter)
    "How often each effect happened."
    order: list[str] = attrs.field(factory=list)
    "Names of the effects, in the order in which they happened."
    told: list[str] = attrs.field(factory=list)
    "What the host keeps in mind."
    crash: Callable[[], None] = attrs.field(default=lambda: None, repr=False)
    "Crashes here, in another future."

    def happen(self, name: str) -> None:
        """
        Let an effect happen; the process may die just before or just after it.
        """
        self.crash()
        self.effects[name] += 1
        self.order.append(name)
        self.crash()


class Host(Protocol):
    """
    Does with an engine what the process is there for.
    """

    async def __call__(self, engine: memable.Engine, world: World) -> object: ...


Build = Callable[[World], memable.Workflow[..., Any]]


def explore(
    build: Build,
    host: Host,
    check: Callable[[World, memable.InMemoryStore], object],
    *,
    depth: int = 2,
    stuck_after_s: float = STUCK_AFTER_S,
    **settings: Any,
) -> int:
    """
    Run what *build* makes, crash it at each append and each effect, up to *depth* times, and *check* each end.

    Returns:
        How many futures there were.
    """
    pending = [(memable.InMemoryStore(), World(), depth)]
    count = 0
    while pending:
        store, world, crashes_left = pending.pop()
        count += 1
        with _forking(store, world, crashes_left) as forks:
            hooked = HookedStore(store, before_append=_hook(world))
            clock = MockClock(autojump_threshold=0)
            trio.run(_run, hooked, build(world), partial(host, world=world), stuck_after_s, settings, clock=clock)
        check(world, store)
        pending.extend(forks)
    return count


@contextmanager
def _forking(
    store: memable.InMemoryStore, world: World, crashes_left: int
) -> Iterator[list[tuple[memable.InMemoryStore, World, int]]]:
    forks: list[tuple[memable.InMemoryStore, World, int]] = []

    def crash() -> None:
        if crashes_left:
            seen = World(Counter(world.effects), copy.copy(world.order), copy.copy(world.told))
            forks.append((store.crashed_copy(), seen, crashes_left - 1))

    world.crash = crash
    yield forks
    world.crash = lambda: None


def _hook(world: World) -> Callable[[Sequence[InstanceRecord]], Awaitable[None]]:
    async def before_append(_records: Sequence[InstanceRecord]) -> None:
        world.crash()

    return before_append


async def _run(
    store: HookedStore,
    workflow: memable.Workflow[..., Any],
    host: Callable[[memable.Engine], Awaitable[object]],
    stuck_after_s: float,
    settings: dict[str, Any],
) -> None:
    with trio.fail_after(stuck_after_s):
        async with memable.open_engine(store, workflows=[workflow], **settings) as engine:
            await host(engine)


def journal_in(store: memable.InMemoryStore) -> Journal:
    """
    Return the journal of the only instance.
    """
    return journal_of(store._records)


async def bring_to_end(engine: memable.Engine, world: World) -> memable.WorkflowState:
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
