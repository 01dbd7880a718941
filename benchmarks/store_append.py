"""
The file store without an engine: how much of a step is the log's.
"""

from __future__ import annotations

import time
from statistics import median

import trio
from figures import Figure, Settings, ratio_of
from limits import BareFile
from logs import LogReader

from memable import FileStore
from memable._clock import current_clock
from memable._encoded import Encoded
from memable._records import InstanceStarted, StepCompleted
from memable._store._protocol import OpenStore

IN_TURN = 1_000
TASKS = 1_000
APPENDS = 20


def measure(settings: Settings) -> list[Figure]:
    return trio.run(_measure, settings)


async def _measure(settings: Settings) -> list[Figure]:
    in_turn: list[float] = []
    bare: list[float] = []
    at_once: list[float] = []
    directory = settings.directory / "store"
    file = BareFile(settings.directory / "store.bare")
    async with FileStore(directory).open(current_clock()) as store:
        log = LogReader(directory)
        for _ in range(settings.rounds):
            log.skip()
            in_turn.append(await _time_instance(store, IN_TURN))
            bare.append(file.append(log.new_batches()))
            at_once.append(await _time_instances(store))
    file.close()
    return [
        Figure(
            "store alone, appends in turn",
            median(in_turn) / IN_TURN * 1e6,
            "µs a record",
            "write + fdatasync of the same bytes",
            median(bare) / IN_TURN * 1e6,
            ratio_of(in_turn, bare),
        ),
        Figure(
            f"store alone, {TASKS:,} x {APPENDS} appends at once",
            median(at_once) / TASKS / APPENDS * 1e6,
            "µs a record",
            note=f"{TASKS * APPENDS / median(at_once):,.0f}/s",
        ),
    ]


async def _time_instances(store: OpenStore) -> float:
    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(TASKS):
            nursery.start_soon(_time_instance, store, APPENDS)
    return time.perf_counter() - began


async def _time_instance(store: OpenStore, appends: int) -> float:
    """
    Append the records of one instance, one by one; return the seconds that it took.
    """
    number = await store.allocate_number()
    now = time.time()
    started = InstanceStarted(
        instance=number,
        seq=1,
        at=now,
        session=store.session,
        workflow="count",
        instance_id=str(number),
        input=Encoded("memable.arguments", b"[]"),
    )
    await store.append((started,))
    value = Encoded("builtins.int", b"1")
    began = time.perf_counter()
    for seq in range(2, appends + 2):
        record = StepCompleted(instance=number, seq=seq, at=now, path=f"step-{seq}", value=value, started_at=now)
        await store.append((record,))
    return time.perf_counter() - began
