"""
Test how a lone append is waited for: that a quick disk is used to the full, and that a slow one stalls nobody.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, NoReturn

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from memable import FileStore, StorageError
from memable._clock import current_clock
from memable._disk import RealDisk
from memable._store import _committer
from memable._store._patience import (
    BUSY_S,
    FORGIVEN_AFTER,
    MAX_SKIPPED,
    MIN_PROOF,
    MIN_SKIPPED,
    STALL_S,
    WAIT_S,
    Manner,
    Patience,
)
from memable._store._upkeep import Upkeep
from memable._store._worker import AwaitedJob, ThreadWorker
from memable._testing._watched_disk import Call, WatchedDisk
from sample_records import start

QUICK_S = WAIT_S / 4
#: Nothing here takes so long, unless it hangs.
DEADLOCK_S = 30.0


def tell(patience: Patience, *, count: int, took_s: float = QUICK_S) -> list[Manner]:
    """Do so many lone appends that take so long each, and return how each was done."""
    manners: list[Manner] = []
    for _ in range(count):
        manner = patience.choose(0.0)
        manners.append(manner)
        if manner is not Manner.ASLEEP:
            patience.note(manner, min(took_s, WAIT_S) if manner is Manner.STANDING else took_s)
    return manners


# The rules ---------------------------------------------------------------------------------------------------------


def test_quick_disk_is_proven_first():
    """The event loop syncs by itself only after a row of quick syncs."""
    manners = tell(Patience(), count=MIN_PROOF + 10)
    assert manners == [Manner.STANDING] * MIN_PROOF + [Manner.ON_THE_SPOT] * 10


def test_what_is_known_to_be_quick_needs_no_proof():
    """What is not synced is written by the event loop at once."""
    assert tell(Patience(0), count=5) == [Manner.ON_THE_SPOT] * 5


def test_busy_loop_does_not_wait():
    """Whoever has other things to do does them meanwhile."""
    patience = Patience(0)
    assert patience.choose(2 * BUSY_S) is Manner.ASLEEP
    assert patience.choose(BUSY_S / 2) is Manner.ON_THE_SPOT


def test_slow_disk_is_hardly_ever_waited_for():
    """Waits in vain become rare: a millisecond for a thousand appends in the end."""
    patience = Patience()
    manners = tell(patience, count=20_000, took_s=0.010)
    assert Manner.ON_THE_SPOT not in manners
    waits = [place for place, manner in enumerate(manners) if manner is Manner.STANDING]
    gaps = [after - before - 1 for before, after in pairwise(waits)]
    assert gaps == sorted(gaps)
    assert gaps[:3] == [MIN_SKIPPED, 2 * MIN_SKIPPED, 4 * MIN_SKIPPED]
    assert gaps[-1] == MAX_SKIPPED


def test_disk_that_is_quick_again_is_waited_for_again():
    """One that was slow for a while is used to the full once it has proven to be quick again."""
    patience = Patience()
    tell(patience, count=50, took_s=0.010)
    assert tell(patience, count=MAX_SKIPPED + 2 * MIN_PROOF)[-1] is Manner.ON_THE_SPOT


@pytest.mark.parametrize("proof", [0, MIN_PROOF])
def test_disk_that_is_not_quick_is_not_synced_on_the_spot(proof: int):
    """Syncs that take milliseconds are left to the thread, though none of them is a stall."""
    patience = Patience(proof)
    manners = tell(patience, count=MIN_PROOF + 200)
    assert manners[-1] is Manner.ON_THE_SPOT
    manners = tell(patience, count=1000, took_s=0.8 * STALL_S)
    assert manners.count(Manner.ON_THE_SPOT) < 20


@pytest.mark.slow
@given(st.integers(min_value=1, max_value=400))
def test_disk_that_hesitates_is_found_out(period: int):
    """However often a quick disk stalls, the event loop meets few of the stalls."""
    patience = Patience()
    met = 0
    for number in range(FORGIVEN_AFTER):
        manner = patience.choose(0.0)
        slow = number % period == 0
        if manner is Manner.ON_THE_SPOT:
            met += slow
            patience.note(manner, 10 * STALL_S if slow else QUICK_S)
        elif manner is Manner.STANDING:
            patience.note(manner, WAIT_S if slow else QUICK_S)
    assert met <= 2


def test_stall_is_forgiven_in_the_end():
    """One hesitation does not count for ever."""
    patience = Patience()
    tell(patience, count=MIN_PROOF)
    assert tell(patience, count=1, took_s=2 * STALL_S) == [Manner.ON_THE_SPOT]
    assert tell(patience, count=4 * MIN_PROOF + 1).count(Manner.ON_THE_SPOT) == 1
    tell(patience, count=FORGIVEN_AFTER)
    assert tell(patience, count=1, took_s=2 * STALL_S) == [Manner.ON_THE_SPOT]
    # The row is four times the one before, which was halved.
    assert tell(patience, count=8 * MIN_PROOF + 1).count(Manner.ON_THE_SPOT) == 1


# The worker --------------------------------------------------------------------------------------------------------


async def test_job_done_in_time_is_told_at_once():
    """Whoever stands still for a job has its result when he goes on."""
    worker = ThreadWorker()
    told: list[tuple[object, BaseException | None]] = []
    problem = ValueError("no")

    def fail() -> None:
        raise problem

    try:
        worker.submit(lambda: 7, lambda value, error: told.append((value, error)), patience_s=60.0)
        assert told == [(7, None)]
        worker.submit(fail, lambda value, error: told.append((value, error)), patience_s=60.0)
        assert told == [(7, None), (None, problem)]
        assert worker.is_idle
    finally:
        worker.close()


async def test_job_that_takes_long_is_not_waited_for():
    """The event loop goes on, and is told later."""
    worker = ThreadWorker()
    go_on, told = threading.Event(), trio.Event()
    try:
        worker.submit(go_on.wait, lambda value, error: told.set(), patience_s=1e-6)
        assert not told.is_set()
        assert not worker.is_idle
        go_on.set()
        with trio.fail_after(DEADLOCK_S):
            await told.wait()
        assert worker.is_idle
    finally:
        go_on.set()
        worker.close()


@pytest.mark.parametrize("is_done", [False, True])
def test_job_may_be_given_up_again_and_again(is_done: bool):
    """A handler of a signal may raise at any moment: whoever gives up once more gets the same answer."""
    told: list[str] = []
    job = AwaitedJob(lambda: 7, lambda value, error: told.append("loop"))
    if is_done:
        job.run(lambda *_: told.append("thread"))
    assert [job.give_up() for _ in range(3)] == [is_done] * 3
    if not is_done:
        job.run(lambda *_: told.append("thread"))
    assert told == ([] if is_done else ["thread"])
    assert job.value == 7


async def test_each_job_is_told_once_whoever_is_first():
    """However close thread and event loop come, each job's end is told once, in order."""
    worker = ThreadWorker()
    told: list[int] = []
    count = 2_000
    try:
        for number in range(count):

            def done(value: object, error: BaseException | None, number: int = number) -> None:
                told.append(number)

            worker.submit(lambda: None, done, patience_s=(number % 50) * 1e-6)
            # Only one is ever waited for at a time.
            while not worker.is_idle:
                await trio.lowlevel.checkpoint()
    finally:
        worker.close()
    assert told == list(range(count))


async def test_job_is_told_though_a_signal_handler_raises():
    """An exception out of a handler, while the event loop stands still, goes on; the job's end is told all the same."""

    class HandlerError(BaseException):
        pass

    def handle(*_: object) -> NoReturn:
        raise HandlerError

    worker = ThreadWorker()
    told, go_on = trio.Event(), threading.Event()

    def job() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        go_on.wait()

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with pytest.raises(HandlerError):
            worker.submit(job, lambda value, error: told.set(), patience_s=DEADLOCK_S)
        go_on.set()
        with trio.fail_after(DEADLOCK_S):
            await told.wait()
        assert worker.is_idle
    finally:
        go_on.set()
        signal.signal(signal.SIGUSR1, before)
        worker.close()


# The store ---------------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Observed:
    """A disk on which no time passes, and what is seen of its calls."""

    disk: WatchedDisk
    writers: list[int] = attrs.field(factory=list[int])
    "The threads that wrote to files."
    may_sync: threading.Event = attrs.field(factory=threading.Event)
    "Syncs wait for it."
    on_write: Callable[[], object] | None = None
    "Called before each write."


@pytest.fixture
def observed(monkeypatch: pytest.MonkeyPatch) -> Observed:
    """A real disk that is watched."""
    monkeypatch.setattr(_committer, "time", SimpleNamespace(perf_counter=lambda: 0.0))

    def watch(call: Call) -> None:
        if call.name == "write" and call.when == "before":
            observed.writers.append(threading.get_ident())
            if observed.on_write is not None:
                observed.on_write()
        elif call.name == "sync" and call.when == "before":
            observed.may_sync.wait()

    observed = Observed(WatchedDisk(RealDisk(), watch))
    observed.may_sync.set()
    return observed


@pytest.mark.parametrize(("durability", "proof"), [("fsync", MIN_PROOF), ("os", 0)])
async def test_lone_appends_are_done_by_the_event_loop(
    tmp_path: Path, observed: Observed, durability: Literal["fsync", "os"], proof: int
):
    """On a quick disk, lone appends need no thread; where something else is at work they are done there."""
    here = threading.get_ident()
    store = FileStore(tmp_path / "store", durability, disk=observed.disk)
    async with store.open(current_clock()) as opened:
        observed.writers.clear()
        for _ in range(proof + 3):
            await start(opened)
        assert [writer == here for writer in observed.writers] == [False] * proof + [True] * 3
        observed.writers.clear()
        async with trio.open_nursery() as nursery:
            # They share a batch.
            nursery.start_soon(start, opened)
            nursery.start_soon(start, opened)
        assert here not in observed.writers
        observed.writers.clear()
        await start(opened)
        assert observed.writers == [here]


async def test_first_append_of_a_segment_is_left_to_the_thread(tmp_path: Path, observed: Observed):
    """To begin a file takes several syncs: that is not done by the event loop."""
    here = threading.get_ident()
    store = FileStore(tmp_path / "store", "os", segment_bytes=1024, disk=observed.disk)
    async with store.open(current_clock()) as opened:
        observed.writers.clear()
        for _ in range(40):
            await start(opened)
        begun = len(list((tmp_path / "store").glob("*.log"))) - 1
        assert begun > 0
        assert here in observed.writers
        # The header and the first batch of each, and what is noted of it in the lock file.
        assert sum(writer != here for writer in observed.writers) == 3 * begun


async def test_exit_in_a_signal_handler_leaves_the_program(tmp_path: Path, observed: Observed):
    """What a handler raises while the event loop itself writes is no failure of the disk, and is not swallowed."""
    observed.may_sync.set()
    store = FileStore(tmp_path / "store", "os", disk=observed.disk)
    async with store.open(current_clock()) as opened:
        observed.on_write = sys.exit
        with pytest.raises(SystemExit):
            await start(opened)
        observed.on_write = None
        with pytest.raises(StorageError, match="SystemExit"):
            await start(opened)


async def test_disk_that_hangs_does_not_stall_the_event_loop(tmp_path: Path, observed: Observed):
    """While a thread waits for a disk that was quick before, all others go on."""
    store = FileStore(tmp_path / "store", disk=observed.disk)
    async with store.open(current_clock()) as opened:
        for _ in range(MIN_PROOF - 1):
            await start(opened)
        observed.may_sync.clear()
        # The event loop cannot tell that it hangs.
        rescue = threading.Timer(DEADLOCK_S, observed.may_sync.set)
        rescue.start()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(start, opened)
            await trio.testing.wait_all_tasks_blocked()
            assert not observed.may_sync.is_set()
            rescue.cancel()
            observed.may_sync.set()


async def test_append_beside_upkeep_is_left_to_the_thread(
    tmp_path: Path, observed: Observed, monkeypatch: pytest.MonkeyPatch
):
    """While a checkpoint or a compaction is written, a sync may take long: the event loop does not wait for it."""
    here = threading.get_ident()
    begun, go_on = trio.Event(), trio.Event()

    async def work(upkeep: Upkeep) -> None:
        begun.set()
        await go_on.wait()

    monkeypatch.setattr(Upkeep, "_look_after", work)
    monkeypatch.setattr(Upkeep, "_is_due", lambda upkeep: True)
    async with FileStore(tmp_path / "store", "os", disk=observed.disk).open(current_clock()) as opened:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opened.maintain)
            await start(opened)
            await begun.wait()
            observed.writers.clear()
            await start(opened)
            assert observed.writers != []
            assert here not in observed.writers
            nursery.cancel_scope.cancel()
        observed.writers.clear()
        await start(opened)
        assert observed.writers == [here]
