"""
The smallest durable workflow: two steps, and a directory in which memable keeps what they returned.

Run it, and kill it (control-C, or ``kill -9``) while it makes the tea. Run it again: the water is not boiled anew.
Run it once more: everything has a record, so nothing is done at all. Remove the directory ``hello-data`` to begin anew.
"""

from __future__ import annotations

import trio

import memable

WORK_S = 0.5


async def boil_water(cups: int) -> int:
    print(f"boiling water for {cups} cups", flush=True)
    await trio.sleep(WORK_S)
    return cups


async def make_tea(kind: str, cups: int) -> str:
    print(f"making {kind}", flush=True)
    await trio.sleep(WORK_S)
    return f"{cups} cups of {kind}"


@memable.workflow
async def tea_time(ctx: memable.Context, kind: str) -> str:
    # This line runs in every run of the body; what is a step runs until it has a record.
    print("the body runs" + (" again, over what is recorded" if ctx.replaying else ""), flush=True)
    cups = await ctx.step("boil-water:v1", boil_water, 2)
    return await ctx.step("make-tea:v1", make_tea, kind, cups)


async def main() -> None:
    async with memable.open_engine("hello-data", workflows=[tea_time]) as engine:
        invocation = await engine.invoke(tea_time, "Darjeeling", instance_id="four-o-clock")
        print("here you are:", await invocation.result())


if __name__ == "__main__":
    trio.run(main)
