"""
What a user's type checker makes of memable's interface: checked by mypy and pyright, never run.
"""

from __future__ import annotations

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
        async for state in engine.subscribe(named, "x"):
            match state:
                case memable.Completed(message):
                    assert_type(message, str | None)
                case memable.Failed(error):
                    assert_type(error, memable.ErrorInfo)
                case _:
                    assert_type(state.is_terminal, bool)


trio.run(host)
