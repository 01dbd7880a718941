"""
What a user's type checker makes of memable's interface: checked by mypy and pyright, never run.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, assert_type

import trio

import memable


async def add(left: int, right: int = 0) -> int:
    return left + right


def read(path: str) -> bytes:
    return path.encode()


@memable.workflow
async def plain(ctx: memable.Context, name: str, times: int = 1) -> float:
    assert_type(await ctx.step("add:v1", add, 1, 2), int)
    assert_type(await ctx.step("add:v2", add, 1), int)
    assert_type(await ctx.step_in_thread("read:v1", read, name), bytes)
    await ctx.step("add:v3", add, "1")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - meant
    await ctx.step_in_thread("read:v2", read)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - meant
    assert_type(await ctx.step("add:v4", add, 1, retry=None, timeout=3), int)
    assert_type(ctx.replaying, bool)
    return 1.0 * times


@memable.workflow(name="renamed", retention=60)
async def named(ctx: memable.Context) -> list[str]:
    return [ctx.instance_id]


APPROVAL = memable.SuspendPoint("approval:v1", bool)


async def length(ctx: memable.Context, item: str) -> int:
    return len(item)


async def undo(order: int, reason: str = "") -> None: ...


@memable.workflow
async def waiting(ctx: memable.Context) -> bool:
    assert_type(await ctx.suspend(APPROVAL, status="waiting", timeout=60), bool)
    async with ctx.move_on_after("limit", 60) as scope:
        await ctx.sleep("nap", 1.5)
        await ctx.sleep_until("until", datetime.now(UTC))
    assert_type(scope.cancelled_caught, bool)
    async with ctx.fail_after("hard-limit", 60):
        await ctx.suspend("approval")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - meant
    return True


@memable.workflow
async def structured(ctx: memable.Context, names: tuple[str, ...]) -> int:
    assert_type(await ctx.fan_out("lengths:v1", length, names), list[int])
    assert_type(await ctx.fan_out("lengths:v2", length, iter(names), limit=3, item_key=str.lower), list[int])
    assert_type(await ctx.fan_out("children:v1", plain, names), list[float])
    await ctx.fan_out("lengths:v3", length, [1])  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - meant
    await ctx.fan_out("lengths:v4", add, [1])  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - meant
    outcomes = await ctx.fan_out_settled("lengths:v5", length, names)
    assert_type(outcomes, list[memable.ChildSucceeded[int] | memable.ChildFailed])
    for outcome in outcomes:
        match outcome:
            case memable.ChildSucceeded(value):
                assert_type(value, int)
            case memable.ChildFailed(error):
                assert_type(error, memable.ErrorInfo)
                assert_type(error.matches(ConnectionError, OSError), bool)
    assert_type(await ctx.call("call:v1", plain, "Ada", 2), float)
    assert_type(await ctx.call("call:v2", plain, "Ada"), float)
    assert_type(await ctx.call("call:v3", named), list[str])
    await ctx.call("call:v4", plain, 1)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - meant
    await ctx.call("call:v5", named, 1)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue] - meant
    assert_type(await ctx.start("start:v1", plain, "Ada", 2), str)
    await ctx.start("start:v2", plain, 1)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - meant
    await ctx.compensate("undo:v1", undo, 1, "late", timeout=60, retry=None)
    await ctx.compensate("undo:v2", undo, "1")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - meant
    try:
        await ctx.call("call:v6", waiting)
    except memable.ChildFailedError as failure:
        assert_type(failure.error, memable.ErrorInfo)
        assert_type(failure.index, int | None)
    return len(names)


async def host() -> None:
    async with memable.open_engine("data", workflows=[plain, named]) as engine:
        assert_type(engine, memable.Engine)
        invocation = await engine.invoke(plain, "Ada", 2, instance_id="ada")
        assert_type(invocation, memable.Invocation[float])
        assert_type(await invocation.result(), float)
        assert_type(await (await engine.invoke(plain, "Ada")).result(), float)
        assert_type(await (await engine.invoke(named)).result(), list[str])
        assert_type(await (await engine.invoke("renamed", 1)).result(), Any)
        await engine.invoke(named, 1)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType, reportCallIssue] - meant
        assert_type(await (await engine.get(plain, "ada")).result(), float)
        assert_type(await (await engine.resume(plain, "ada", forget=["add:v1"])).result(), float)
        assert_type(await engine.state("renamed", "x"), memable.WorkflowState)
        assert_type(await engine.signal(waiting, "x", APPROVAL, True), memable.Invocation[bool])
        assert_type(
            await engine.signal("waiting", "x", APPROVAL, True, within="fan/1", early="keep"), memable.Invocation[Any]
        )
        await engine.signal(waiting, "x", APPROVAL, "yes")  # type: ignore[misc] # pyright: ignore[reportArgumentType, reportCallIssue] - meant
        assert_type(await (await engine.invoke(structured, ("a",))).result(), int)
        async for state in engine.subscribe(named, "x"):
            match state:
                case memable.Completed(message):
                    assert_type(message, str | None)
                case memable.Failed(error):
                    assert_type(error, memable.ErrorInfo)
                case _:
                    assert_type(state.is_terminal, bool)


trio.run(host)
