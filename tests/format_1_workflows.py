"""
The workflows of the store in format 1, which must open for ever.
"""

from __future__ import annotations

from decimal import Decimal

import attrs
import trio

import memable

APPROVAL = memable.SuspendPoint("approval:v1", bool)
NOTE = memable.SuspendPoint("note:v1", str)


@attrs.frozen
class Order:
    """
    What is ordered.
    """

    number: str
    price: Decimal
    items: tuple[str, ...] = ()


calls: list[str] = []
"The steps that have run here."


async def say(greeting: str) -> str:
    calls.append(f"say {greeting}")
    return greeting.upper()


async def count(number: int) -> int:
    calls.append(f"count {number}")
    return number + 1


async def refuse(number: int) -> int:
    calls.append(f"refuse {number}")
    raise memable.PermanentError(f"no {number}")


async def flaky() -> int:
    calls.append("flaky")
    raise ConnectionError("not reachable")


async def charge(amount: int) -> str:
    calls.append(f"charge {amount}")
    await trio.sleep_forever()
    return "paid"


async def undo(what: str) -> None:
    calls.append(f"undo {what}")


@memable.workflow
async def greet(ctx: memable.Context, name: str) -> str:
    greeting = await ctx.step("say:v1", say, f"hello {name}")
    ctx.set_status("greeted")
    return await ctx.step("say-more:v1", say, greeting + "!")


@memable.workflow
async def fail(ctx: memable.Context, number: int) -> int:
    counted = await ctx.step("count:v1", count, number)
    return await ctx.step("refuse:v1", refuse, counted)


@memable.workflow
async def approve(ctx: memable.Context, order: Order) -> str:
    await ctx.step("say:v1", say, order.number)
    approved = await ctx.suspend(APPROVAL, status="for approval", timeout=90 * 86400)
    return f"{order.number}: {'approved' if approved else 'refused'}"


@memable.workflow
async def nap(ctx: memable.Context, seconds: float) -> str:
    async with ctx.move_on_after("limit", 3 * seconds):
        await ctx.sleep("nap", seconds)
    return "awake"


@memable.workflow
async def family(ctx: memable.Context, names: list[str]) -> list[str]:
    async def one(child: memable.Context, name: str) -> str:
        said = await child.step("say:v1", say, name)
        if name == "c":
            await child.suspend(NOTE)
        return said

    await ctx.start("detached", greet, "detached")
    greeting = await ctx.call("call", greet, "child")
    return [greeting, *await ctx.fan_out("each", one, names)]


@memable.workflow
async def backoff(ctx: memable.Context) -> int:
    return await ctx.step("flaky:v1", flaky, retry=memable.RetryPolicy.fixed(5, 3600.0))


@memable.workflow
async def saga(ctx: memable.Context) -> int:
    await ctx.compensate("undo:v1", undo, "everything")
    return await ctx.step("refuse:v1", refuse, 7)


@memable.workflow
async def pay(ctx: memable.Context, amount: int) -> str:
    await ctx.step("count:v1", count, amount)
    return await ctx.step("charge:v1", charge, amount, once=True)


WORKFLOWS = [greet, fail, approve, nap, family, backoff, saga, pay]
