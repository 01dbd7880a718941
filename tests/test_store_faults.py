"""
The store in a directory on a disk that fails: full disks, failed syncs, cut power, damage.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import logging
import os
import random
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
import trio
import trio.testing

from memable import FileStore, StorageError, StoreCorruptedError
from memable._clock import current_clock
from memable._frames import decode_header, frame_batch, seed_of
from memable._record_json import encode_record
from memable._records import InstanceRecord
from memable._store._failures import UnsettledRenameError, is_no_room, storage_error
from memable._store._protocol import OpenStore
from memable._store._recovery import MAX_TORN_FILES
from memable._testing._simulated_disk import (
    Choose,
    Fault,
    PowerCutError,
    SimulatedDisk,
    SimulatedFile,
    lose_all,
    lose_nothing,
)
from sample_records import start, started, step

T = TypeVar("T")

PATH = Path("/store")
LOG = PATH / "00000001.log"
LOCK = PATH / "lock"
TORN = PATH / "00000001.log.torn"

Journals = dict[int, list[InstanceRecord]]


def run(disk: SimulatedDisk, fn: Callable[[OpenStore], Awaitable[T]], durability: str = "fsync") -> T:
    """Open the store on *disk* in a trio run of its own, call *fn* with it, and close it."""

    async def main() -> T:
        async with FileStore(PATH, durability=durability, disk=disk).open(current_clock()) as opened:
            return await fn(opened)

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def journals(store: OpenStore) -> Journals:
    return {header.number: list(await store.load(header.number)) for header in await store.headers()}


async def first_journal(store: OpenStore) -> list[InstanceRecord]:
    return list(await store.load(1))


async def write_three(store: OpenStore) -> None:
    """Acknowledge three batches, the last one of two records."""
    number = await start(store)
    await store.append([step(number, 2)])
    await store.append([step(number, 3), step(number, 4)])


def killed_after_three(durability: str = "fsync") -> SimulatedDisk:
    """A store whose process was killed just after its third batch."""
    disk = SimulatedDisk()

    survivors: list[SimulatedDisk] = []

    async def main(store: OpenStore) -> None:
        await write_three(store)
        survivors.append(disk.kill())

    # The process is dead, so nothing comes of closing.
    with pytest.raises(StorageError, match="the power was cut"):
        run(disk, main, durability)
    return survivors[0]


THREE = [started(1), step(1, 2), step(1, 3), step(1, 4)]


def with_log(content: bytes) -> SimulatedDisk:
    """A disk with a store of that log on it."""
    return SimulatedDisk.holding({LOG: content})


class InterruptedDisk(SimulatedDisk):
    """Somebody presses Control-C in one of its calls."""

    def __init__(self, interrupt_at: int) -> None:
        super().__init__()
        self.interrupt_at = interrupt_at

    def call(self, name: str) -> Fault | None:
        if len(self.calls) == self.interrupt_at:
            signal.raise_signal(signal.SIGINT)
        return super().call(name)


# Torn tails and damage ---------------------------------------------------------------------------------------------


def test_log_cut_at_every_byte_of_its_last_batch_opens():
    """A log that ends anywhere in its last batch opens without that batch, and loses nothing before it."""
    log = killed_after_three().content(LOG)
    last = log.index(b"\n", log.index(b'"seq":2')) + 1
    for size in range(last, len(log)):
        disk = with_log(log[:size])
        assert run(disk, journals) == {1: THREE[:2]}
        content = disk.content(LOG)
        assert content.startswith(log[:last])
        assert (TORN in disk.shown) == (size > last)
        if size > last:
            assert disk.content(TORN) == log[last:size]
        assert run(disk, journals) == {1: THREE[:2]}
        assert disk.content(LOG).startswith(content)
    assert run(with_log(log), journals) == {1: THREE}


def test_every_bit_flipped_in_the_last_batch_is_whole_or_absent():
    """The last batch is never half there, nor changed. Flips each fifth bit: the tests of the scan flip all."""
    log = killed_after_three().content(LOG)
    last = log.index(b"\n", log.index(b'"seq":2')) + 1
    for bit in range(last * 8, len(log) * 8, 5):
        flipped = bytearray(log)
        flipped[bit // 8] ^= 1 << bit % 8
        disk = with_log(bytes(flipped))
        assert run(disk, journals) == {1: THREE[:2]}


def test_every_bit_flipped_in_an_older_batch_is_refused():
    """Damage to what was durable is told with its place, and nothing at all is changed."""
    log = killed_after_three().content(LOG)
    last = log.index(b"\n", log.index(b'"seq":2')) + 1
    for bit in range(0, last * 8, 5):
        flipped = bytearray(log)
        flipped[bit // 8] ^= 1 << bit % 8
        disk = with_log(bytes(flipped))
        with pytest.raises(StoreCorruptedError, match=r"00000001\.log: at byte offset \d+: ") as caught:
            run(disk, journals)
        assert caught.value.offset <= bit // 8 + 1
        assert disk.content(LOG) == flipped
        assert TORN not in disk.shown


def test_torn_tail_is_logged_with_its_size(caplog: pytest.LogCaptureFixture):
    """What is cut off is told: file, place, size, batches, and where it is kept."""
    log = killed_after_three().content(LOG)
    run(with_log(log[:-10]), journals)
    [record] = caplog.records
    assert (record.name, record.levelno) == ("memable", logging.WARNING)
    last = log.index(b"\n", log.index(b'"seq":2')) + 1
    assert f"{LOG}: cut off a torn tail at byte offset {last}: {len(log) - 10 - last} bytes, 1 batch" in record.message
    assert f"kept in {TORN.name}" in record.message


def torn_on(disk: SimulatedDisk) -> dict[str, bytes]:
    """The torn tails that are kept, by the names of their files."""
    return {path.name: disk.content(path) for path in disk.shown if ".torn" in path.name}


@pytest.mark.parametrize("durability", ["fsync", "os"])
def test_torn_tails_are_kept_apart_and_bound_in_number(durability: str, caplog: pytest.LogCaptureFixture):
    """A torn tail never overwrites another one, nor is it kept twice; of too many, the oldest goes, and it is told."""
    disk = with_log(killed_after_three(durability).content(LOG))
    count = MAX_TORN_FILES + 2
    for number in range(count):
        disk.shown[LOG].shown += b"junk %d" % number
        run(disk, journals, durability)
        assert b"junk %d" % number in torn_on(disk).values()
    kept = {f"{TORN.name}.{number}": b"junk %d" % number for number in range(2, count)}
    assert torn_on(disk) == kept
    assert f"kept in {TORN.name}.{count - 1}" in caplog.records[-2].message
    assert f"{TORN.name}.1: removed this torn tail, the oldest: {MAX_TORN_FILES} are kept" in caplog.records[-1].message
    disk.shown[LOG].shown += b"junk 3"
    run(disk, journals, durability)
    assert f"kept in {TORN.name}.3" in caplog.records[-1].message
    assert torn_on(disk) == kept
    assert torn_on(disk.power_cut(lose_all)) == kept


@pytest.mark.parametrize("durability", ["fsync", "os"])
def test_torn_tails_are_bound_in_number_over_all_segments(durability: str):
    """However often a log is torn, and wherever, a few torn tails are kept: the newest."""
    disk = SimulatedDisk()
    tails: list[bytes] = []

    async def main() -> None:
        store = FileStore(PATH, "os" if durability == "os" else "fsync", segment_bytes=1024, disk=disk)
        async with store.open(current_clock()) as opened:
            number = await start(opened)
            await opened.append([step(number, seq) for seq in range(2, 9)])

    for number in range(MAX_TORN_FILES + 3):
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
        log = max(path for path in disk.shown if path.suffix == ".log")
        tails.append(b"junk %d" % number)
        disk.shown[log].shown += tails[-1]
    run(disk, journals, durability)
    assert len({name.partition(".")[0] for name in torn_on(disk)}) > 3
    assert sorted(torn_on(disk).values()) == sorted(tails[-MAX_TORN_FILES:])


def test_torn_tail_that_is_kept_already_is_kept_durably():
    """A process that died just when a torn tail had been kept leaves a name that a power cut may still take."""
    torn = killed_after_three("os").content(LOG)[:-10]
    tail = torn[torn.index(b"\n", torn.index(b'"seq":2')) + 1 :]
    rehearsal = with_log(torn)
    run(rehearsal, journals)
    dead = with_log(torn)
    dead.cut_at = _number_of(rehearsal, "sync_directory", _number_of(rehearsal, "rename"))
    with pytest.raises((StorageError, PowerCutError), match="the power was cut"):
        run(dead, journals)
    cut_at = 0
    is_cut = True
    while is_cut:
        disk = dead.copy().kill()
        assert (disk.content(LOG), disk.content(TORN)) == (torn, tail)
        disk.cut_at = cut_at
        with contextlib.suppress(StorageError, PowerCutError):
            run(disk, journals)
        is_cut = disk.is_off
        disk = disk.power_cut(lose_all)
        assert disk.content(LOG) == torn or disk.content(TORN) == tail
        cut_at += 1
    assert cut_at > 15


def test_torn_tail_that_cannot_be_removed_stays(caplog: pytest.LogCaptureFixture):
    """A file too many is no reason not to open."""
    disk = with_log(killed_after_three().content(LOG) + b"torn")
    for number in range(MAX_TORN_FILES):
        disk.shown[PATH / f"00000001.log.torn.{number + 1}"] = copy.deepcopy(disk.shown[LOG])
    rehearsal = disk.copy()
    run(rehearsal, journals)
    assert len(torn_on(rehearsal)) == MAX_TORN_FILES
    disk.faults[_number_of(rehearsal, "remove", _number_of(rehearsal, "sync_directory"))] = Fault(errno.EACCES)
    assert run(disk, journals) == {1: THREE}
    assert len(torn_on(disk)) == MAX_TORN_FILES + 1


def test_long_torn_tail_is_kept_whole():
    """A torn tail of any size is kept, and recognised when it is found again."""
    content = killed_after_three().content(LOG)
    tail = random.Random(1).randbytes(3_000_000)
    disk = with_log(content + tail)
    run(disk, journals)
    assert disk.content(TORN) == tail
    disk.shown[LOG].shown += tail
    run(disk, journals)
    assert [path.name for path in disk.shown if ".torn" in path.name] == [TORN.name]


def _number_of(disk: SimulatedDisk, call: str, after: int = 0) -> int:
    return disk.calls.index(call, after)


def test_torn_tail_that_cannot_be_kept_is_cut_all_the_same(caplog: pytest.LogCaptureFixture):
    """On a full disk a store opens: what is cut off was never acknowledged."""
    torn = killed_after_three().content(LOG)[:-10]
    rehearsal = with_log(torn)
    run(rehearsal, journals)
    disk = with_log(torn)
    disk.faults[_number_of(rehearsal, "create")] = Fault(errno.ENOSPC)
    assert run(disk, journals) == {1: THREE[:2]}
    assert "nothing of it could be kept ([Errno 28] No space left on device)" in caplog.records[-1].message


def test_torn_tail_that_is_kept_in_part_is_not_kept():
    """A disk that gets full while a torn tail is kept is not left with a part of it."""
    torn = killed_after_three().content(LOG)[:-10]
    rehearsal = with_log(torn)
    run(rehearsal, journals)
    disk = with_log(torn)
    disk.faults[_number_of(rehearsal, "write", _number_of(rehearsal, "create"))] = Fault(errno.ENOSPC, after_bytes=9)
    assert run(disk, journals) == {1: THREE[:2]}
    assert TORN not in disk.shown


def test_torn_tail_of_an_os_session_is_kept_before_it_is_cut():
    """Without a sync of each batch the tail may hold acknowledged records: it is not cut unless it can be kept."""
    torn = killed_after_three("os").content(LOG)[:-10]
    rehearsal = with_log(torn)
    run(rehearsal, journals)
    disk = with_log(torn)
    disk.faults[_number_of(rehearsal, "create")] = Fault(errno.ENOSPC)
    with pytest.raises(StorageError, match="opening failed: No space left on device; make room"):
        run(disk, journals)
    assert disk.content(LOG) == torn


class ShrinkingFile(SimulatedFile):
    """A file that ends while it is copied."""

    def read_at(self, offset: int, size: int) -> bytes:
        found = super().read_at(offset, size)
        return b"" if "truncate" in self.disk.calls else found


class ShrinkingDisk(SimulatedDisk):
    def open_file(self, path: Path, *, create: bool = False) -> SimulatedFile:
        return ShrinkingFile(self, super().open_file(path, create=create).inode)


def test_log_that_shrinks_while_it_is_recovered_is_refused():
    """A recovery that finds less than a moment ago stops, and does not wait for more."""
    disk = with_log(killed_after_three().content(LOG) + b"torn")
    shrinking = ShrinkingDisk(directories=disk.directories, shown=disk.shown, stored=disk.stored)
    with pytest.raises(StorageError, match="the file is shorter than it was a moment ago"):
        run(shrinking, journals)


def test_journal_that_cannot_be_is_damage():
    """Intact lines that contradict each other are refused with the place of the second."""
    log = killed_after_three().content(LOG)
    # The same step once more, as a second writer would have left it.
    seed = seed_of(decode_header(log[: log.index(b"\n") + 1], "x").store_id)
    for record, problem in (
        (step(1, 4), "record 4 of instance 1 follows record 4"),
        (step(7, 2), "never started"),
        (started(2, name="i1"), "workflow 'w' has two instances 'i1'"),
    ):
        disk = with_log(log + b"".join(frame_batch(seed, 1, 4, [encode_record(record)])))
        with pytest.raises(StoreCorruptedError, match=problem) as caught:
            run(disk, journals)
        assert caught.value.offset == len(log)


# Failing writes and syncs ------------------------------------------------------------------------------------------


class Crowd:
    """A hundred tasks that append at once, and what came of it."""

    def __init__(self, disk: SimulatedDisk, fault: dict[str, Fault]) -> None:
        self.disk = disk
        self.fault = fault
        self.acknowledged = 0
        self.errors: list[StorageError] = []

    async def __call__(self, store: OpenStore) -> None:
        await write_three(store)
        for _ in range(100):
            await store.allocate_number()
        base = len(self.disk.calls)
        # The calls of one batch: check, size, write, sync.
        for call, fault in self.fault.items():
            self.disk.faults[base + ("check", "size", "write", "sync", "truncate").index(call)] = fault
        async with trio.open_nursery() as nursery:
            for number in range(2, 102):
                nursery.start_soon(self.append, store, number)
        with pytest.raises(StorageError, match="writing failed") as caught:
            await store.append([step(1, 5)])
        self.errors.append(caught.value)
        assert await journals(store) == {1: THREE}

    async def append(self, store: OpenStore, number: int) -> None:
        try:
            await store.append([started(number), step(number, 2, b"7" * 50)])
        except StorageError as exc:
            self.errors.append(exc)
        else:
            self.acknowledged += 1


def fail(fault: dict[str, Fault]) -> SimulatedDisk:
    """Fail a batch of a hundred appends; nobody may be told that it is durable."""
    disk = SimulatedDisk()
    crowd = Crowd(disk, fault)
    run(disk, crowd)
    assert (crowd.acknowledged, len(crowd.errors), len(set(map(id, crowd.errors)))) == (0, 101, 101)
    for error in crowd.errors:
        assert isinstance(error.__cause__, OSError)
        assert error.location == str(LOG)
    assert b"store_closed" not in disk.content(LOG)
    return disk


@pytest.mark.parametrize(("call", "written"), [(2, 1), (4, 1), (6, 1), (7, 3)])
def test_what_waits_behind_a_failed_batch_is_not_written(call: int, written: int):
    """Nothing is written behind a batch whose fate is unknown, though it may have been queued long before."""
    disk = SimulatedDisk()
    errors: list[StorageError] = []
    begun = 0

    async def main(store: OpenStore) -> None:
        nonlocal begun

        async def append(number: int) -> None:
            try:
                await store.append([started(number), step(number, 2, b"7" * 3_000_000)])
            except StorageError as exc:
                errors.append(exc)

        await write_three(store)
        # Two of these make a batch, which is written in five parts: the two values, and what is around them.
        begun = len(disk.calls)
        disk.faults[begun + call] = Fault(errno.ENOSPC)
        async with trio.open_nursery() as nursery:
            for number in range(2, 8):
                await store.allocate_number()
                nursery.start_soon(append, number)

    run(disk, main)
    assert disk.calls[begun : begun + call + 1] == ["check", "size", *["write"] * 5, "sync"][: call + 1]
    assert len(errors) == 6
    assert disk.content(LOG).count(b"instance_started") == written


def is_marked(disk: SimulatedDisk) -> bool:
    return b"failed" in disk.content(LOCK)


def test_full_disk_in_a_batch_acknowledges_nothing():
    """A disk that is full in the middle of a batch fails all who wait for it; the log is cut back to what is good."""
    disk = fail({"write": Fault(errno.ENOSPC, after_bytes=300)})
    assert disk.content(LOG).endswith(b"\n")
    assert b'"instance":2' not in disk.content(LOG)
    assert not is_marked(disk)
    before = disk.shown[LOG]
    assert run(disk, journals) == {1: THREE}
    assert disk.shown[LOG] is before


def test_error_of_a_full_disk_tells_the_way_out():
    """The message says what failed, where, and what to do."""
    disk = SimulatedDisk()
    crowd = Crowd(disk, {"write": Fault(errno.ENOSPC)})
    run(disk, crowd)
    assert str(crowd.errors[0]) == (
        "/store/00000001.log: writing failed: No space left on device; make room, then open the store again"
    )


@pytest.mark.parametrize(
    "fault",
    [
        {"sync": Fault(errno.EIO)},
        {"sync": Fault(errno.ENOSPC)},
        {"write": Fault(errno.EIO)},
        {"write": Fault(errno.EIO, after_bytes=300)},
        # After a write that failed, the file is cut back: that is the call in the place of the sync.
        {"write": Fault(errno.ENOSPC), "sync": Fault(errno.EIO)},
        {"write": Fault(errno.ENOSPC), "truncate": Fault(errno.EIO)},
    ],
    ids=["sync", "full sync", "write", "short write", "cutting back", "sync of cutting back"],
)
def test_failed_sync_is_followed_by_a_copy(fault: dict[str, Fault], caplog: pytest.LogCaptureFixture):
    """After a failure of the disk itself, the next open trusts a new file only, and then loses the mark."""
    disk = fail(fault)
    assert is_marked(disk)
    before = disk.shown[LOG]
    disk = disk.kill()
    found = run(disk, journals)
    assert found[1] == THREE
    # The batch of unknown fate is there as a whole, or not at all.
    assert len(found) in {1, 101}
    assert disk.shown[LOG] is not before
    assert not is_marked(disk)
    assert "had failed, so it was copied to a new file" in caplog.text
    for choose in (lose_all, lose_nothing):
        assert run(disk.kill().power_cut(choose), journals) == found


@pytest.mark.parametrize("crash", [SimulatedDisk.kill, SimulatedDisk.power_cut])
def test_mark_of_a_failure_survives_until_the_copy_is_made(crash: Callable[[SimulatedDisk], SimulatedDisk]):
    """However often the process dies before the copy is durable, the next one copies."""
    failed = fail({"sync": Fault(errno.EIO)}).kill()
    cut_at = 0
    while True:
        disk = copy.deepcopy(failed)
        before = disk.shown[LOG]
        disk.cut_at = cut_at
        try:
            run(disk, first_journal)
        except (StorageError, PowerCutError):
            pass
        else:
            break
        disk = crash(disk)
        if crash is SimulatedDisk.kill:
            assert disk.shown[LOG] is not before or is_marked(disk)
        assert run(disk, first_journal) == THREE
        assert run(disk.kill().power_cut(lose_all), first_journal) == THREE
        cut_at += 1
    assert cut_at > 15


def test_failed_sync_that_left_no_mark_is_made_up_for():
    """A process that dies in a failing sync leaves no mark: the last batch is written once more, and then durable."""
    disk = SimulatedDisk()

    async def main(store: OpenStore) -> None:
        await write_three(store)
        base = len(disk.calls)
        disk.faults[base + 3] = Fault(errno.EIO)
        disk.cut_at = base + 4
        await store.append([step(1, 5)])

    with pytest.raises(StorageError, match="writing failed: Input/output error; find out what is wrong with the disk"):
        run(disk, main)
    disk = disk.kill()
    assert not is_marked(disk)
    assert run(disk, journals) == {1: [*THREE, step(1, 5)]}
    assert run(disk.kill().power_cut(lose_all), journals) == {1: [*THREE, step(1, 5)]}


def test_failed_sync_of_a_recovery_is_followed_by_a_copy():
    """A recovery whose sync fails does not trust the next one either: without syncs, any older batch may be lost."""
    rehearsal = killed_after_three("os")
    run(rehearsal, journals)
    disk = killed_after_three("os")
    disk.faults[_number_of(rehearsal, "sync")] = Fault(errno.EIO)
    with pytest.raises(StorageError, match="opening failed: Input/output error"):
        run(disk, journals)
    assert is_marked(disk)
    assert run(disk.kill(), journals) == {1: THREE}
    assert run(disk.kill().power_cut(lose_all), journals) == {1: THREE}


@pytest.mark.parametrize("durability", ["fsync", "os"])
def test_keyboard_interrupt_at_any_call_leaves_the_store_in_order(durability: str):
    """Control-C acts where it does no harm: what was begun is brought to its end, and the store is closed."""
    number = 0
    while True:
        disk = InterruptedDisk(interrupt_at=number)
        try:
            run(disk, write_three, durability)
        except KeyboardInterrupt:
            assert disk.locked == {}
        if number > len(disk.calls):
            break

        async def read(store: OpenStore) -> tuple[bool, Journals]:
            return store.after_crash, await journals(store)

        after_crash, found = run(disk.kill(), read)
        assert not after_crash
        assert found in ({}, *({1: THREE[:size]} for size in (1, 2, 4)))
        number += 1
    assert number > 30


def test_short_writes_are_completed():
    """A disk that takes a few bytes at a time is written to as often as it needs."""
    disk = SimulatedDisk(max_write_bytes=7)
    run(disk, write_three)
    assert run(disk.power_cut(lose_all), journals) == {1: THREE}


def test_store_that_cannot_be_closed_in_order_says_so():
    """A failure to write the end of the session comes out of the block; what was acknowledged is intact."""
    for durability in ("fsync", "os"):
        disk = SimulatedDisk()

        async def main(store: OpenStore, disk: SimulatedDisk = disk) -> None:
            await write_three(store)
            disk.faults[-1] = Fault(errno.ENOSPC)

        with pytest.raises(StorageError, match="closing the store failed: No space left on device; make room"):
            run(disk, main, durability)
        assert disk.locked == {}
        disk.faults.clear()
        assert run(disk, journals) == {1: THREE}


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EACCES])
def test_opening_that_fails_anywhere_leaves_a_store_that_opens(error: int):
    """Whatever call fails while a store is opened, it is a StorageError, the store is unlocked, and opens later."""
    for durability in ("fsync", "os"):
        number = 0
        while True:
            disk = killed_after_three(durability)
            disk.shown[LOG].write(len(disk.content(LOG)), b"torn")
            disk.faults[number] = Fault(error)
            is_opened: list[bool] = []

            async def main(store: OpenStore, is_opened: list[bool] = is_opened) -> Journals:
                is_opened.append(True)
                return await journals(store)

            problem = ""
            try:
                run(disk, main, durability)
            except StorageError as exc:
                problem = str(exc)
            assert disk.locked == {}
            assert not problem or (problem.startswith("/store") and "; " in problem)
            if is_opened and len(disk.calls) <= number:
                break
            disk.faults.clear()
            assert run(disk, journals) == {1: THREE}
            number += 1
        assert number > 8 or error == errno.EACCES


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_making_a_store_that_fails_anywhere_can_be_repeated(error: int):
    """Whatever call fails while a store is made, making it once more works."""
    number = 0
    while True:
        disk = SimulatedDisk(faults={number: Fault(error)})
        try:
            run(disk, write_three)
        except StorageError:
            assert disk.locked == {}
        if len(disk.calls) <= number:
            break
        disk.faults.clear()
        found = run(disk, journals)
        assert found in ({}, *({1: THREE[:size]} for size in (1, 2, 4)))
        number += 1
    assert number > 20


def test_directory_of_another_user_is_used(caplog: pytest.LogCaptureFixture):
    """A mounted volume may belong to somebody else, its parent be unreadable: the store works, and says so."""
    disk = SimulatedDisk(directories={Path("/"), PATH})
    rehearsal = SimulatedDisk(directories={Path("/"), PATH})
    run(rehearsal, write_three)
    disk.faults[_number_of(rehearsal, "restrict_directory")] = Fault(errno.EPERM)
    disk.faults[_number_of(rehearsal, "sync_directory")] = Fault(errno.EACCES)
    run(disk, write_three)
    assert "/store belongs to another user" in caplog.text
    assert run(disk, journals) == {1: THREE}


def test_lock_that_cannot_be_noted_or_erased_still_locks():
    """A note in the lock file that is left behind does no harm."""
    disk = SimulatedDisk()

    async def main(store: OpenStore) -> None:
        await write_three(store)
        # Closing: check, size, write, sync, then the note: size, write.
        disk.faults[len(disk.calls) + 5] = Fault(errno.EIO)

    run(disk, main)
    assert b'"pid"' in disk.content(LOCK)
    assert run(disk, journals) == {1: THREE}


def test_journal_that_cannot_be_read_is_a_storage_error():
    """A disk that fails to read fails the load, and nothing else."""
    disk = SimulatedDisk()

    async def main(store: OpenStore) -> None:
        await write_three(store)
        disk.faults[len(disk.calls)] = Fault(errno.EIO)
        with pytest.raises(StorageError, match="reading failed: Input/output error"):
            await store.load(1)
        assert await journals(store) == {1: THREE}

    run(disk, main)


FILE_IS_GONE = (
    "this file of the log is missing: restore the store from a backup, or run `memable repair` to save what is there"
)


@pytest.mark.parametrize(
    ("code", "doing", "location", "way_out"),
    [
        (errno.EIO, "reading", "00000001.log", "find out what is wrong with the disk, then open the store again"),
        (errno.ENOENT, "opening", "x", "make the directory that it is to be in, or choose another path"),
        (errno.ENOENT, "reading", "00000003-00000005.2.log", FILE_IS_GONE),
        (errno.EDQUOT, "writing", "00000001.log", "make room, then open the store again"),
        (errno.EROFS, "writing", "lock", "give this process the right to write there, or choose another path"),
    ],
)
def test_error_of_the_system_tells_the_way_out(code: int, doing: str, location: str, way_out: str):
    """Each message says what failed, where, why, and what to do about it."""
    error = storage_error(f"/store/{location}", doing, OSError(code, os.strerror(code)))
    assert str(error) == f"/store/{location}: {doing} failed: {os.strerror(code)}; {way_out}"


def test_error_that_is_none_of_the_system_is_told():
    """What nobody has thought of is told by its type, and an error without a text by what there is of it."""
    assert str(storage_error("/store", "writing", MemoryError("too long"))) == (
        "/store: writing failed: MemoryError: too long; open the store again"
    )
    assert "writing failed: no text; find out" in str(storage_error("/store", "writing", OSError("no text")))
    assert "writing failed: TimeoutError; find out" in str(storage_error("/store", "writing", TimeoutError()))


def test_only_a_full_disk_is_no_room():
    """A rename whose directory could not be synced makes the disk suspect, though it was only full."""
    assert is_no_room(OSError(errno.ENOSPC, ""))
    assert not is_no_room(UnsettledRenameError(errno.ENOSPC, ""))
    assert not is_no_room(OSError(errno.EIO, ""))
    assert not is_no_room(ValueError())


# Power cuts --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["fsync", "os"])
@pytest.mark.parametrize("seed", [None, 0, 1, 2, 3, 4, 5, 6, 7])
def test_power_cut_at_every_call_loses_nothing_acknowledged(durability: str, seed: int | None):
    """Cut at any call and lose whatever a disk may lose: what was acknowledged as durable is there, whole."""
    choose: Choose = lose_all if seed is None else random.Random(seed).randrange
    cut_at = 0
    while True:
        disk = SimulatedDisk(cut_at=cut_at)
        acknowledged = [0]

        async def main(store: OpenStore, acknowledged: list[int] = acknowledged) -> None:
            number = await start(store)
            acknowledged.append(1)
            await store.append([step(number, 2)])
            acknowledged.append(2)
            await store.append([step(number, 3), step(number, 4)])
            acknowledged.append(4)

        try:
            run(disk, main, durability)
            break
        except (StorageError, PowerCutError):
            pass
        survivor = disk.power_cut(choose)
        # Also cut the recovery short once, at a call of its own.
        survivor.cut_at = cut_at % 23
        try:
            run(survivor, journals)
        except (StorageError, PowerCutError):
            pass
        else:
            survivor.is_off = False
        survivor = survivor.power_cut(choose) if survivor.is_off else survivor.kill()
        found = run(survivor, journals)
        assert found in ({}, *({1: THREE[:size]} for size in (1, 2, 4)))
        if durability == "fsync":
            assert len(found.get(1, ())) >= acknowledged[-1]
        cut_at += 1
    assert cut_at > 30


def test_directory_is_durable_before_anything_in_it_is_acknowledged():
    """A store's new directory does not vanish in a power cut, nor if the process that made it died at once."""
    disk = SimulatedDisk()
    run(disk, write_three)
    assert run(disk.power_cut(lose_all), journals) == {1: THREE}
    disk = SimulatedDisk(cut_at=1)
    with pytest.raises((StorageError, PowerCutError), match="the power was cut"):
        run(disk, write_three)
    disk = disk.kill()
    run(disk, write_three)
    assert run(disk.power_cut(lose_all), journals) == {1: THREE}


@pytest.mark.parametrize("durability", ["fsync", "os"])
def test_killed_process_loses_nothing_acknowledged(durability: str):
    """In either durability, what was acknowledged survives the death of the process."""
    assert run(killed_after_three(durability), journals) == {1: THREE}


def test_after_crash_is_known():
    """A store that was not closed in order says so once."""
    disk = killed_after_three()

    async def read(store: OpenStore) -> tuple[int, bool]:
        return store.session, store.after_crash

    assert run(disk, read) == (2, True)
    assert run(disk, read) == (3, False)


def test_os_session_with_holes_is_cut_off_loudly(caplog: pytest.LogCaptureFixture):
    """Where the system wrote later batches and not an earlier one, all from the hole on is cut, counted and kept."""
    log = bytearray(killed_after_three("os").content(LOG))
    hole = log.index(b'"seq":2') - 20
    log[hole : hole + 30] = bytes(30)
    disk = with_log(bytes(log))
    assert run(disk, journals) == {1: THREE[:1]}
    assert "2 batch(es)" in caplog.text
    assert disk.content(TORN) in bytes(log)
    assert disk.content(TORN).endswith(log[-20:])
