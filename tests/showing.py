"""
A store with instances in many states, and short ways to run the commands that read it.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, TextIO, cast

import attrs
import pytest
import trio
import trio.testing
from rich.console import Console

import memable
from memable import cli
from memable._cli._console import Output

APPROVAL = memable.SuspendPoint("approval:v1", bool)

#: Moves the cursor, sets a terminal's title, looks like markup, turns the direction around, and ends the line.
HOSTILE = "\x1b[2J\x1b]0;mine\x07 [bold red]x[/] :smile: \u202egnp\x9b31m\r\nnext"


@attrs.frozen
class Order:
    name: str
    amount: int


async def square(number: int) -> int:
    return number * number


async def say_hostile() -> str:
    return HOSTILE


async def fail_hostile() -> None:
    raise ConnectionError(HOSTILE)


async def refuse() -> None:
    raise ValueError("sold out")


async def undo() -> None:
    pass


@memable.workflow(name="child")
async def child(ctx: memable.Context, number: int) -> int:
    return await ctx.step("square", square, number)


@memable.workflow(name="order")
async def order(ctx: memable.Context, given: Order) -> int:
    ctx.set_status("collecting")
    await ctx.step("fetch:v1", square, given.amount)
    await ctx.compensate("undo-fetch", undo)
    await ctx.call("kid", child, 3)
    await ctx.sleep("nap", 3600)
    if not await ctx.suspend(APPROVAL, status="needs a manager", timeout=7 * 86400):
        await ctx.step("refuse", refuse)
    return 42


@memable.workflow(name="wrong")
async def wrong(ctx: memable.Context) -> None:
    await ctx.step("first", square, 2)
    raise memable.WorkflowCodeError("not yet written")


@memable.workflow(name="hostile")
async def hostile(ctx: memable.Context, text: str) -> None:
    ctx.set_status(HOSTILE)
    await ctx.step("say", say_hostile)
    await ctx.step("fail", fail_hostile, retry=memable.RetryPolicy.fixed(1, 60))


@memable.workflow(name="each")
async def each(ctx: memable.Context) -> list[bool]:
    async def ask(ctx: memable.Context, item: int) -> bool:
        return await ctx.suspend(APPROVAL)

    return await ctx.fan_out("ask", ask, range(2))


WORKFLOWS = (child, order, wrong, hostile, each)


async def fill(store: Path) -> None:
    """
    Start an instance of each kind, and close the store again.
    """
    async with memable.open_engine(store, workflows=WORKFLOWS) as engine:
        for number, answer in enumerate((None, True, False)):
            waiting = await engine.invoke(order, Order("Ada", number), instance_id=f"o{number}")
            await trio.sleep(4000)
            if answer is not None:
                await engine.signal(order, f"o{number}", APPROVAL, answer)
                await waiting.wait()
        await (await engine.invoke(wrong, instance_id="w")).wait()
        await (await engine.invoke(hostile, HOSTILE, instance_id="h")).wait()
        await trio.sleep(100)
        await (await engine.invoke(each, instance_id="e")).wait()
        await engine.invoke(order, Order("Eve", 4), instance_id="o4")
        await trio.sleep(100)
        await engine.cancel(order, "o4", reason="changed her mind")


def make_store(directory: Path) -> Path:
    """
    Return a store in that directory, filled.
    """
    trio.run(fill, directory, clock=trio.testing.MockClock(autojump_threshold=0))
    return directory


@attrs.frozen
class Said:
    """
    What a command said.
    """

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Its lines, with one blank where there are several."""
        return [" ".join(line.split()) for line in self.out.splitlines()]

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The objects that it printed with ``--json``."""
        return [json.loads(line) for line in self.out.splitlines()]


def say(capsys: pytest.CaptureFixture[str], *words: object) -> Said:
    """
    Run a command in this process.
    """
    status = cli.main([str(word) for word in words])
    captured = capsys.readouterr()
    return Said(status, captured.out, captured.err)


def terminal(width: int) -> tuple[Output, io.StringIO]:
    """
    Return a terminal of that width, and what it will have shown, without colours.
    """
    shown = io.StringIO()
    console = Console(file=shown, width=width, force_terminal=True, color_system=None, markup=False, highlight=False)
    return Output(console, True, cast(TextIO, shown)), shown


def files_of(store: Path) -> dict[str, tuple[bytes, int, int]]:
    """
    Return everything about the files of a store that a reader could have changed.
    """
    found = {path.name: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_mode) for path in store.iterdir()}
    return {**found, ".": (b"", store.stat().st_mtime_ns, store.stat().st_mode)}
