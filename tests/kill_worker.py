"""
A process that runs workflows over a store in a directory, made to be killed at any moment.

It starts instances under the ids that it is told, brings them and all older ones to their end, and exits. Whatever its
steps do to the world outside, it notes in a file of effects. On its standard output it writes a byte at each bit of
progress, so that whoever kills it can choose a moment without looking at a clock.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import attrs
import trio

import memable
from memable._disk import RealDisk
from memable._testing._watched_disk import Call, WatchedDisk

#: A worker that is stuck ends itself after so many seconds; one that is not takes a small fraction of that.
GIVE_UP_AFTER_S = 120

#: Nobody signals there.
NEVER = memable.SuspendPoint("never", int)

Body = Callable[[memable.Context, int], Awaitable[list[int]]]


@attrs.frozen
class SelfKill:
    """
    The process kills itself with SIGKILL at a call of its disk that changes something.
    """

    call: int
    "Which one, from 0."
    when: Literal["before", "within", "after"]


@attrs.frozen
class Orders:
    """
    What a worker is to do.
    """

    store: str
    effects: str
    "The file of effects."
    count: int
    "So many instances are to be started, with the numbers from 0."
    durability: Literal["fsync", "os"] = "fsync"
    kill: SelfKill | None = None


def notify() -> None:
    """
    Tell whoever listens that there is progress.
    """
    os.write(1, b".")


class Effects:
    """
    The world outside: each line stays, whatever happens to the process that wrote it.
    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._runs = Counter(line.removeprefix("ran ") for line in Path(path).read_text("utf-8").splitlines())

    def ran(self, instance_id: str, key: str) -> int:
        """
        Note that a step's function was called; return how often it was, in all processes so far.
        """
        name = f"{instance_id} {key}"
        self._write(f"ran {name}\n")
        self._runs[name] += 1
        return self._runs[name]

    def has_run(self, instance_id: str, key: str) -> bool:
        """
        Tell whether a step's function was ever called.
        """
        return self._runs[f"{instance_id} {key}"] > 0

    def acknowledged(self, instance_id: str, key: str) -> None:
        """
        Note that a body was given a step's outcome.
        """
        self._write(f"acknowledged {instance_id} {key}\n")

    def _write(self, line: str) -> None:
        os.write(self._fd, line.encode())
        notify()


@attrs.frozen
class Steps:
    """
    Runs the steps of one instance, each with its effect outside.
    """

    ctx: memable.Context
    effects: Effects
    workflows: dict[str, memable.Workflow[[int], list[int]]]

    async def value_once(self, key: str, value: int) -> int:
        """
        Run a step whose effect must not repeat; the world outside knows whether it has happened.
        """
        step = self.ctx.step(key, self._return, key, value, once=True, probe=self._ask)
        return await self._acknowledged(key, step)

    async def _ask(self, key: str, value: int) -> int:
        if not self.effects.has_run(self.ctx.instance_id, key):
            raise memable.NotDoneError(key)
        return value

    async def value(self, key: str, value: int) -> int:
        return await self._acknowledged(key, self.ctx.step(key, self._return, key, value))

    async def value_in_thread(self, key: str, value: int) -> int:
        return await self._acknowledged(key, self.ctx.step_in_thread(key, self._return_in_thread, key, value))

    async def value_at_third_try(self, key: str, value: int) -> int:
        retry = memable.RetryPolicy.fixed(5, 0.001)
        return await self._acknowledged(key, self.ctx.step(key, self._fail_twice, key, value, retry=retry))

    async def attempts_in_vain(self, key: str, retries: int) -> int:
        """
        Run a step that always fails; return how many attempts its failure says it was given.
        """
        retry = memable.RetryPolicy.exponential(retries, 0.001)
        try:
            await self.ctx.step(key, self._fail, key, retry=retry)
        except memable.RetriesExhaustedError as failure:
            self.effects.acknowledged(self.ctx.instance_id, key)
            return failure.attempts
        raise AssertionError(key)

    async def _acknowledged(self, key: str, outcome: Awaitable[int]) -> int:
        value = await outcome
        self.effects.acknowledged(self.ctx.instance_id, key)
        return value

    async def _return(self, key: str, value: int) -> int:
        self.effects.ran(self.ctx.instance_id, key)
        await trio.lowlevel.checkpoint()
        return value

    def _return_in_thread(self, key: str, value: int) -> int:
        self.effects.ran(self.ctx.instance_id, key)
        return value

    async def _fail_twice(self, key: str, value: int) -> int:
        if self.effects.ran(self.ctx.instance_id, key) < 3:
            raise ConnectionError(key)
        return value

    async def _fail(self, key: str) -> int:
        self.effects.ran(self.ctx.instance_id, key)
        raise ConnectionError(key)


async def run_sequence(steps: Steps, number: int) -> list[int]:
    values = [number]
    for index in range(4):
        steps.ctx.set_status(f"at {index}")
        values.append(await steps.value(f"add-{index}", values[-1] + 1))
    return values


async def run_together(steps: Steps, number: int) -> list[int]:
    values = [0] * 4

    async def fill(index: int) -> None:
        values[index] = await steps.value(f"branch-{index}", number * index)
        values[index] += await steps.value(f"branch-{index}-more", index)

    async with trio.open_nursery() as nursery:
        for index in range(4):
            nursery.start_soon(fill, index)
    return values


async def run_retries(steps: Steps, number: int) -> list[int]:
    return [await steps.value_at_third_try("flaky", number), await steps.value("after", number + 1)]


async def run_failures(steps: Steps, number: int) -> list[int]:
    attempts = [await steps.attempts_in_vain("at-once", 0), await steps.attempts_in_vain("in-the-end", 2)]
    return [*attempts, await steps.value("instead", number)]


async def run_threads(steps: Steps, number: int) -> list[int]:
    return [await steps.value_in_thread("one", number), await steps.value_in_thread("two", number * 2)]


async def run_waits(steps: Steps, number: int) -> list[int]:
    async def visit(ctx: memable.Context, item: int) -> int:
        await ctx.sleep("nap", 0.002)
        return await attrs.evolve(steps, ctx=ctx).value(f"visit-{item}", number + item)

    await steps.ctx.sleep("nap", 0.001)
    values = await steps.ctx.fan_out("visits", visit, range(3), limit=2)
    async with steps.ctx.move_on_after("limit", 0.001) as scope:
        await steps.ctx.suspend(NEVER)
    return [*values, int(scope.cancelled_caught)]


async def run_effects(steps: Steps, number: int) -> list[int]:
    return [await steps.value_once("pay", number), await steps.value("between", 1), await steps.value_once("mail", 2)]


async def run_family(steps: Steps, number: int) -> list[int]:
    return await steps.ctx.call("child", steps.workflows["sequence"], number)


async def run_saga(steps: Steps, number: int) -> list[int]:
    async def undo(key: str) -> None:
        await steps._return(key, 0)

    await steps.ctx.compensate("undo-first", undo, "undo-first")
    await steps.ctx.compensate("undo-second", undo, "undo-second")
    await steps.value("first", number)
    raise ValueError("undo it")


@attrs.frozen
class Shape:
    """
    A kind of workflow, and what is known of all its instances.
    """

    run: Callable[[Steps, int], Awaitable[list[int]]]
    expected: Callable[[int], list[int]]
    "What an instance of that number returns."
    calls: dict[str, int]
    "How often each step's function is called if nothing is killed. What begins with a slash is a child's."
    once: frozenset[str] = frozenset()
    "The steps whose effects never repeat."
    unacknowledged: frozenset[str] = frozenset()
    "The steps whose outcomes no body is given: compensations."


SHAPES = {
    "sequence": Shape(
        run_sequence, lambda n: [n, n + 1, n + 2, n + 3, n + 4], {f"add-{index}": 1 for index in range(4)}
    ),
    "together": Shape(
        run_together,
        lambda n: [index * n + index for index in range(4)],
        {f"branch-{index}{more}": 1 for index in range(4) for more in ("", "-more")},
    ),
    "retries": Shape(run_retries, lambda n: [n, n + 1], {"flaky": 3, "after": 1}),
    "failures": Shape(run_failures, lambda n: [1, 3, n], {"at-once": 1, "in-the-end": 3, "instead": 1}),
    "waits": Shape(run_waits, lambda n: [n, n + 1, n + 2, 1], {f"visit-{item}": 1 for item in range(3)}),
    "effects": Shape(
        run_effects, lambda n: [n, 1, 2], {"pay": 1, "between": 1, "mail": 1}, once=frozenset({"pay", "mail"})
    ),
    "family": Shape(
        run_family, lambda n: [n, n + 1, n + 2, n + 3, n + 4], {f"/child add-{index}": 1 for index in range(4)}
    ),
    "saga": Shape(
        run_saga,
        lambda _: [],
        {"first": 1, "undo-first": 1, "undo-second": 1},
        unacknowledged=frozenset({"undo-first", "undo-second"}),
    ),
    "threads": Shape(run_threads, lambda n: [n, 2 * n], {"one": 1, "two": 1}),
}


def make_workflows(effects: Effects) -> dict[str, memable.Workflow[[int], list[int]]]:
    """
    Return a workflow of each shape, by its name.
    """

    def make(name: str, shape: Shape) -> memable.Workflow[[int], list[int]]:
        @memable.workflow(name=name)
        async def body(ctx: memable.Context, number: int) -> list[int]:
            return await shape.run(Steps(ctx, effects, workflows), number)

        return body

    workflows = {name: make(name, shape) for name, shape in SHAPES.items()}
    return workflows


def shape_of(number: int) -> str:
    """
    Return the name of the workflow that the instance of that number is one of.
    """
    return list(SHAPES)[number % len(SHAPES)]


def instance_id_of(number: int) -> str:
    """
    Return the id of the instance of that number.
    """
    return f"i{number}"


async def work(orders: Orders) -> None:
    """
    Start what is to be started, and wait until all is done.
    """
    workflows = make_workflows(Effects(orders.effects))
    store = memable.FileStore(
        orders.store, durability=orders.durability, disk=WatchedDisk(RealDisk(), partial(_on_call, orders.kill, []))
    )
    # Some keep what waits in memory, others unwind it.
    max_parked = 1000 if orders.count % 2 else 0
    async with memable.open_engine(store, workflows=workflows.values(), max_parked=max_parked) as engine:
        await start_all(engine, workflows, orders.count)
        await finish_all(engine, workflows, orders.count)


async def start_all(engine: memable.Engine, workflows: dict[str, Any], count: int) -> None:
    """
    Start what is not started yet, all at once.
    """
    async with trio.open_nursery() as nursery:
        notify()
        for number in range(count):
            invoke = partial(engine.invoke, instance_id=instance_id_of(number))
            nursery.start_soon(cast("Callable[..., Awaitable[Any]]", invoke), workflows[shape_of(number)], number)


async def finish_all(engine: memable.Engine, workflows: dict[str, Any], count: int) -> None:
    """
    Wait for the end of each: leaving the engine would not wait for those that wait themselves.
    """
    for number in range(count):
        invocation = await engine.get(workflows[shape_of(number)], instance_id_of(number))
        with suppress(memable.WorkflowFailedError):
            await invocation.result()
        notify()


def _on_call(kill: SelfKill | None, calls: list[str], call: Call) -> None:
    notify()
    if call.when == "before":
        calls.append(call.name)
    if kill is None or len(calls) - 1 != kill.call:
        return
    if kill.when == "within" and call.name == "write" and call.when == "before":
        assert call.file is not None
        call.file.write_at(call.offset, call.chunk[: len(call.chunk) // 2])
        _die()
    if call.when == kill.when or (kill.when == "within" and call.when == "after"):
        _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """
    Do what the command line says.
    """
    signal.alarm(GIVE_UP_AFTER_S)
    notify()
    store, effects, count, durability, *rest = sys.argv[1:]
    kill = SelfKill(int(rest[0]), cast("Any", rest[1])) if rest else None
    trio.run(work, Orders(store, effects, int(count), cast("Any", durability), kill))


if __name__ == "__main__":
    main()
