"""
A process that runs a hundred workflows over a store in a directory, where room may run out.

On its standard output, which takes no room, it notes each call of a step's function, each outcome that a body was
given, and how it ended. It is started with the store's path, its durability and the greatest size that a file may have.
"""

from __future__ import annotations

import os
import resource
import sys
from typing import Any, cast

import trio

import memable

WORKFLOW_COUNT = 100
STEP_COUNT = 20
VALUE = "x" * 1000


def note(*words: object) -> None:
    # One call, so that it is there whatever happens next.
    os.write(1, " ".join(map(str, words)).encode() + b"\n")


async def work(number: int, step: int) -> str:
    note("ran", number, step)
    return VALUE


gate = trio.Event()


@memable.workflow
async def writer(ctx: memable.Context, number: int) -> int:
    # So that all of them go on together.
    await gate.wait()
    for step in range(STEP_COUNT):
        try:
            assert await ctx.step(f"step-{step}", work, number, step) == VALUE
        except Exception as exc:  # noqa: BLE001 - whatever it is, a body should not see it
            note("saw", repr(exc))
        note("acknowledged", number, step)
    return number


async def main(path: str, durability: str) -> None:
    store = memable.FileStore(path, durability=cast("Any", durability))
    try:
        async with memable.open_engine(store, workflows=[writer]) as engine:
            invocations = [
                await engine.invoke(writer, number, instance_id=str(number)) for number in range(WORKFLOW_COUNT)
            ]
            gate.set()
            for number, invocation in enumerate(invocations):
                assert await invocation.result() == number
    except memable.StorageError as exc:
        note(f"failed: {exc}")
    else:
        note("done")


if __name__ == "__main__":
    limit = int(sys.argv[3])
    if limit:
        # Python ignores the signal that comes with it.
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    trio.run(main, *sys.argv[1:3])
