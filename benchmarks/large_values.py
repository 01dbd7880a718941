"""
Steps whose values are large: against encoding, writing and syncing the same bytes, and how long the event loop stalls.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from statistics import median

import msgspec
import trio
from figures import Figure, Settings, at_most, ratio_of
from limits import BareFile
from logs import LogReader

import memable

#: How many bytes a value has, and how many steps return one in a turn.
SIZES = {1024: 20, 100 * 1024: 10, 10 * 1024 * 1024: 1}
#: Few at a time, and many turns: a disk is not the same a second later.
TURNS_A_ROUND = 4
#: A small value is no dearer than any step, which is measured elsewhere against 2.0.
GOAL_RATIOS = {1024: 2.0, 100 * 1024: 1.5, 10 * 1024 * 1024: 1.5}
GOAL_STALL_MS = 50.0
#: The task that ticks looks at the clock so often.
TICK_S = 0.001
NAMES = {1024: "1 KiB", 100 * 1024: "100 KiB", 10 * 1024 * 1024: "10 MiB"}


async def text_of(size: int) -> str:
    return TEXTS[size]


async def bytes_of(size: int) -> bytes:
    return BYTES[size]


#: Made in advance: to make them is none of memable's work.
BYTES = {size: bytes(number % 251 for number in range(size)) for size in SIZES}
TEXTS = {size: ("One line of a text, as long as most.\n" * (size // 37 + 1))[:size] for size in SIZES}


@memable.workflow
async def texts(ctx: memable.Context, size: int, steps: int) -> int:
    return sum([len(await ctx.step(f"text-{number}", text_of, size)) for number in range(steps)])


@memable.workflow
async def blobs(ctx: memable.Context, size: int, steps: int) -> int:
    return sum([len(await ctx.step(f"bytes-{number}", bytes_of, size)) for number in range(steps)])


def _encode_text(size: int) -> bytes:
    return msgspec.json.encode(TEXTS[size])


def _encode_bytes(size: int) -> bytes:
    return b'"' + base64.b64encode(BYTES[size]) + b'"'


KINDS: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "str": ("texts", _encode_text),
    "bytes": ("blobs", _encode_bytes),
}


def measure(settings: Settings) -> list[Figure]:
    return [figure for kind in KINDS for size in SIZES for figure in trio.run(_measure, settings, kind, size)]


async def _measure(settings: Settings, kind: str, size: int) -> list[Figure]:
    workflow, encode = KINDS[kind]
    steps = SIZES[size]
    ours: list[float] = []
    bare: list[float] = []
    stalls: list[float] = []
    directory = settings.directory / f"{kind}-{size}"
    file = BareFile(settings.directory / f"{kind}-{size}.bare")
    async with memable.open_engine(directory, workflows=[texts, blobs]) as engine:
        log = LogReader(directory)
        await (await engine.invoke(workflow, size, 1, instance_id="warm-up")).result()
        for turn in range(settings.rounds * TURNS_A_ROUND):
            log.skip()
            # First without the task that ticks: it would take time from what is measured.
            began = time.perf_counter()
            await (await engine.invoke(workflow, size, steps, instance_id=f"turn-{turn}")).result()
            ours.append(time.perf_counter() - began)
            batches = log.new_batches()
            began = time.perf_counter()
            for batch in batches:
                # One value after the other, as they come to be: to encode them all at first takes less than half as
                # long for each, since what it works on is then still in the processor's caches.
                if len(batch) > size:
                    encode(size)
                file.append([batch])
            bare.append(time.perf_counter() - began)
            stalls.append(await _longest_stall_s(engine, workflow, size, f"stall-{turn}"))
    file.close()
    ratio = ratio_of(ours, bare)
    what = f"a step with {NAMES[size]} of {kind}"
    stall_ms = median(stalls) * 1e3
    return [
        Figure(
            what,
            median(ours) / steps * 1e3,
            "ms",
            "encode + write + fdatasync of the same bytes",
            median(bare) / steps * 1e3,
            ratio,
            at_most(ratio, GOAL_RATIOS[size], "times"),
        ),
        Figure(
            f"{what}, longest stall of the event loop",
            stall_ms,
            "ms",
            goal=at_most(stall_ms, GOAL_STALL_MS, "ms"),
            note=f"at worst {max(stalls) * 1e3:.1f}",
        ),
    ]


async def _longest_stall_s(engine: memable.Engine, workflow: str, size: int, name: str) -> float:
    """
    Run one workflow, and return the longest time for which no other task could run, beyond what it slept.
    """
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            began = time.perf_counter()
            await trio.sleep(TICK_S)
            longest = max(longest, time.perf_counter() - began - TICK_S)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        await (await engine.invoke(workflow, size, SIZES[size], instance_id=name)).result()
        nursery.cancel_scope.cancel()
    return longest
