"""
What the store does that shows only where it is left out: the rest of what catches the mutants of ``mutants.py``.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import accumulate, pairwise
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

import test_scan
from memable import FileStore, StorageError, StoreCorruptedError
from memable._clock import current_clock
from memable._disk import RealDisk
from memable._frames import frame_batch
from memable._record_json import encode_record
from memable._records import InstanceRecord, InstanceRetired
from memable._store._protocol import OpenStore
from memable._store.file import MIN_SEGMENT_BYTES
from memable._testing._simulated_disk import Choose, Fault, PowerCutError, SimulatedDisk, lose_all
from memable._testing._watched_disk import Call, WatchedDisk
from sample_records import completed, retired, start, started, step
from test_store_faults import LOCK, LOG, PATH, THREE, TORN, journals, killed_after_three, run, with_log, write_three

#: They try very many failures one after the other.
pytestmark = pytest.mark.slow


@attrs.define(eq=False)
class Barrier:
    """
    Stops the store's thread before a call of its disk, the first that *matches*, and lets it fail if it is told to.
    """

    matches: Callable[[Call], bool]
    is_reached: trio.Event = attrs.field(factory=trio.Event)
    may_go_on: threading.Event = attrs.field(factory=threading.Event)
    failure: OSError | None = None
    chunks: list[bytes] = attrs.field(factory=list[bytes])
    "What was written of steps, from then on."
    token: trio.lowlevel.TrioToken = attrs.field(factory=trio.lowlevel.current_trio_token)

    def store(self, path: Path) -> FileStore:
        return FileStore(path, disk=WatchedDisk(RealDisk(), self._watch))

    def _watch(self, call: Call) -> None:
        if call.when == "before" and b'"kind":"step' in call.chunk:
            self.chunks.append(call.chunk)
        if call.when == "before" and not self.may_go_on.is_set() and self.matches(call):
            self.token.run_sync_soon(self.is_reached.set)
            self.may_go_on.wait()
            if self.failure is not None:
                raise self.failure


def _is_step(call: Call) -> bool:
    return call.name == "write" and b'"kind":"step' in call.chunk


@pytest.mark.parametrize("fails", [False, True])
async def test_one_batch_is_in_flight_at_a_time(tmp_path: Path, fails: bool):
    """While a batch is written, whatever else is appended waits: for the next one, or for the failure of this one."""
    barrier = Barrier(_is_step, failure=OSError(errno.EIO, "failed") if fails else None)
    outcomes: list[str] = []

    async def append(store: OpenStore, number: int) -> None:
        try:
            await store.append([step(number, 2)])
        except StorageError:
            outcomes.append("failed")
        else:
            outcomes.append("acknowledged")

    async with barrier.store(tmp_path / "store").open(current_clock()) as store:
        numbers = [await start(store) for _ in range(3)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(append, store, numbers[0])
            await barrier.is_reached.wait()
            for number in numbers[1:]:
                nursery.start_soon(append, store, number)
                await trio.testing.wait_all_tasks_blocked()
            before = list(outcomes)
            barrier.may_go_on.set()
    assert before == []
    assert outcomes == ["failed" if fails else "acknowledged"] * 3
    assert [chunk.count(b"\n") for chunk in barrier.chunks] == ([1] if fails else [1, 2])


async def test_append_returns_when_its_batch_is_durable(tmp_path: Path):
    """As long as a batch is not written and synced, nobody is told of it."""
    chunks: list[bytes] = []

    def is_sync_of_a_step(call: Call) -> bool:
        chunks.append(call.chunk)
        return call.name == "sync" and b'"kind":"step' in b"".join(chunks)

    barrier = Barrier(is_sync_of_a_step)
    acknowledged: list[int] = []

    async def append(store: OpenStore, number: int) -> None:
        await store.append([step(number, 2)])
        acknowledged.append(number)

    async with barrier.store(tmp_path / "store").open(current_clock()) as store:
        numbers = [await start(store) for _ in range(3)]
        async with trio.open_nursery() as nursery:
            for number in numbers:
                nursery.start_soon(append, store, number)
            await barrier.is_reached.wait()
            await trio.testing.wait_all_tasks_blocked()
            before = list(acknowledged)
            barrier.may_go_on.set()
    assert before == []
    assert sorted(acknowledged) == numbers


async def test_store_whose_last_batch_fails_is_not_closed_in_order(tmp_path: Path):
    """A batch that is in flight when the block is left, and fails then, is not followed by the end of the session."""
    barrier = Barrier(_is_step, failure=OSError(errno.ENOSPC, "full"))
    failures: list[StorageError] = []

    async def append(store: OpenStore, number: int) -> None:
        try:
            await store.append([step(number, 2)])
        except StorageError as exc:
            failures.append(exc)

    async with trio.open_nursery() as nursery, barrier.store(tmp_path / "store").open(current_clock()) as store:
        number = await start(store)
        nursery.start_soon(append, store, number)
        await barrier.is_reached.wait()

        async def let_it_fail() -> None:
            await trio.testing.wait_all_tasks_blocked()
            barrier.may_go_on.set()

        nursery.start_soon(let_it_fail)
    assert len(failures) == 1
    assert b"store_closed" not in (tmp_path / "store" / "00000001.log").read_bytes()
    async with FileStore(tmp_path / "store").open(current_clock()) as store:
        assert store.after_crash
        assert await store.load(number) == [started(number)]


@pytest.mark.parametrize("seed", range(30))
def test_closing_in_order_makes_all_durable(seed: int):
    """The end of a session is written when all before it is durable: a power cut leaves no hole in front of it."""
    choose = random.Random(seed).randrange

    async def write_many(store: OpenStore) -> None:
        number = await start(store)
        for seq in range(2, 12):
            await store.append([step(number, seq)])

    rehearsal = SimulatedDisk()
    run(rehearsal, write_many, "os")
    last_sync = len(rehearsal.calls) - 1 - rehearsal.calls[::-1].index("sync")
    disk = SimulatedDisk(cut_at=last_sync)
    with pytest.raises((StorageError, PowerCutError), match="the power was cut"):
        run(disk, write_many, "os")
    found = run(disk.power_cut(choose), journals)
    records = [started(1), *(step(1, seq) for seq in range(2, 12))]
    assert found == {1: records}


def test_torn_tail_is_kept_durably_before_it_is_cut():
    """Wherever a recovery is cut short, a torn tail that may have been acknowledged is in the log, or in its copy."""
    torn = killed_after_three("os").content(LOG)[:-10]
    tail = torn[torn.index(b"\n", torn.index(b'"seq":2')) + 1 :]
    cut_at = 0
    is_cut = True
    while is_cut:
        disk = with_log(torn)
        disk.cut_at = cut_at
        with suppress(StorageError, PowerCutError):
            run(disk, journals)
        is_cut = disk.is_off
        disk = disk.power_cut(lose_all)
        assert disk.content(LOG) == torn or disk.content(TORN) == tail
        cut_at += 1
    assert cut_at > 15


def test_failure_can_be_marked_on_a_full_disk():
    """From the first opening on, what is noted in the lock file has its place on the disk already."""
    disk = SimulatedDisk()

    async def look(store: OpenStore) -> None:
        await write_three(store)
        assert len(disk.shown[LOCK].stored) == len(disk.content(LOCK)) >= 512

    run(disk, look)
    assert run(disk, journals) == {1: THREE}


@pytest.mark.skipif(sys.platform == "darwin", reason="a sync is another call there")
def test_sync_of_a_file_reaches_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """To sync a file is to ask the system for it, once."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    file = RealDisk().open_file(tmp_path / "file", create=True)
    file.sync()
    assert synced == [file.fd]
    file.close()


@pytest.mark.parametrize("is_locked", [False, True])
def test_sync_of_a_directory_reaches_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_locked: bool):
    """To sync a directory is to ask the system for it, once, whether it is locked or not."""
    synced: list[tuple[bool, int]] = []

    def fsync(fd: int) -> None:
        found = os.fstat(fd)
        synced.append((stat.S_ISDIR(found.st_mode), found.st_ino))

    disk = RealDisk()
    lock = disk.lock(tmp_path / "lock") if is_locked else None
    monkeypatch.setattr(os, "fsync", fsync)
    disk.sync_directory(tmp_path)
    assert synced == [(True, tmp_path.stat().st_ino)]
    if lock is not None:
        lock.release()


@pytest.mark.parametrize("seed", range(30))
def test_recovery_is_durable_before_a_session_begins(seed: int):
    """
    The beginning of a session proves that all before it was durable, so it is not written before that is so.

    A sync failed, and the process died before it could note that: what the next one believes, it writes once more.
    """
    failed = _failed_sync_without_a_mark()
    rehearsal = failed.copy()
    run(rehearsal, nothing)
    # The syncs: of the note, of recovery, of the beginning, of the end.
    syncs = [number for number, call in enumerate(rehearsal.calls) if call == "sync"]
    choose = random.Random(seed).randrange
    for cut_at in syncs:
        disk = failed.copy()
        disk.cut_at = cut_at
        with suppress(StorageError, PowerCutError):
            run(disk, nothing)
        assert run(disk.power_cut(choose), journals) in ({1: THREE}, {1: [*THREE, step(1, 5)]})


async def nothing(store: OpenStore) -> None:
    pass


def _failed_sync_without_a_mark() -> SimulatedDisk:
    disk = SimulatedDisk()

    async def main(store: OpenStore) -> None:
        await write_three(store)
        before = len(disk.calls)
        await store.append([step(1, 5)])
        syncs.append(before + disk.calls[before:].index("sync"))

    syncs: list[int] = []
    run(disk, main)
    disk = SimulatedDisk(faults={syncs[0]: Fault(errno.EIO)}, cut_at=syncs[0] + 1)
    with pytest.raises((StorageError, PowerCutError), match=r"Input/output error|the power was cut"):
        run(disk, main)
    return disk.kill()


def test_batch_of_unusual_lines_is_whole_or_absent():
    """Lines whose fields stand in another order, as another release may write them, are a batch only together."""
    texts = [
        encode_record(step(1, seq)).replace(b'"instance":1,"seq":%d' % seq, b'"seq":%d,"instance":1' % seq)
        for seq in (2, 3)
    ]
    first, last = frame_batch(test_scan.SEED, 1, 1, texts)
    reader, batches = test_scan.scan(test_scan.SESSION[0] + first + last)
    assert ([len(batch) for batch in batches], reader.torn_batch_count) == ([1, 2], 0)
    reader, batches = test_scan.scan(test_scan.SESSION[0] + first)
    assert ([len(batch) for batch in batches], reader.torn_batch_count) == ([1], 1)


def test_line_that_an_earlier_session_left_over_is_no_damage():
    """A line of the batch that is due, but of another session, is what a cut uncovered."""
    log = test_scan.batch(1, 0, test_scan.opened(1)) + test_scan.batch(2, 1, test_scan.opened(2))
    reader, batches = test_scan.scan(log + test_scan.batch(1, 2, test_scan.step(1)))
    assert (len(batches), reader.good_end, reader.torn_batch_count) == (2, test_scan.START + len(log), 1)


@pytest.mark.parametrize("zeros", [1, 8, 511, 512, 5000])
def test_what_stands_behind_zeros_is_not_believed(zeros: int):
    """Zeros are no empty space: behind them nothing is due, be it ever so intact."""
    first, second, *_ = test_scan.SESSION
    for hole in (b"\0" * zeros, b"\0" * zeros + b"\n"):
        reader, batches = test_scan.scan(first + hole + second)
        assert (len(batches), reader.good_end, reader.torn_batch_count) == (1, test_scan.ENDS[0], 1)


# Segments, checkpoints and compaction ------------------------------------------------------------------------------


@attrs.define(eq=False)
class Life:
    """
    A store that goes through several segments, while what is removed is compacted away; and what was acknowledged.
    """

    disk: SimulatedDisk
    durability: str = "fsync"
    states: list[dict[int, list[InstanceRecord]]] = attrs.field(factory=lambda: [{}])
    "What there was after each batch, also of the one in flight."
    acknowledged: int = 0
    "How many batches were."

    def live(self) -> None:
        with suppress(StorageError, PowerCutError):
            trio.run(self._main, clock=trio.testing.MockClock(autojump_threshold=0))

    async def _main(self) -> None:
        store = FileStore(PATH, durability=self.durability, segment_bytes=MIN_SEGMENT_BYTES, disk=self.disk)
        try:
            async with store.open(current_clock()) as opened, trio.open_nursery() as nursery:
                nursery.start_soon(opened.maintain)
                # The second one keeps the first segment as it is, so what is said of the first one later is needed.
                first, second = await opened.allocate_number(), await opened.allocate_number()
                await self._append(opened, started(first), started(second), step(second, 2, b"7" * 500))
                for _ in range(8):
                    number = await opened.allocate_number()
                    is_kept = number % 3 == 0
                    await self._append(opened, started(number))
                    await self._append(opened, step(number, 2), step(number, 3, b"7" * (10 if is_kept else 300)))
                    if not is_kept:
                        await self._append(opened, completed(number, 4))
                        await self._append(opened, retired(number, 5))
                    if number == 4:
                        await self._append(opened, completed(first, 2), retired(first, 3))
                    if number == 10:
                        # It is in what was compacted already, and known to the checkpoint.
                        await self._append(opened, completed(3, 4), retired(3, 5))
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        except* (StorageError, PowerCutError) as errors:
            raise errors.exceptions[0] from None

    async def _append(self, opened: OpenStore, *records: InstanceRecord) -> None:
        state = dict(self.states[-1])
        for record in records:
            state[record.instance] = [*state.get(record.instance, ()), record]
            if isinstance(record, InstanceRetired):
                del state[record.instance]
        self.states.append(state)
        await opened.append(records)
        self.acknowledged += 1


CUTS: dict[str, Choose] = {"all lost": lose_all, **{f"seed {seed}": random.Random(seed).randrange for seed in range(2)}}


@pytest.mark.parametrize("choose", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("durability", ["fsync", "os"])
def test_power_cut_at_any_call_while_segments_come_and_go(durability: str, choose: Choose):
    """Wherever the power is cut, in sealing, compacting and opening, what was acknowledged is there, and no more."""
    rehearsal = Life(SimulatedDisk(), durability)
    rehearsal.live()
    assert any("-" in path.name for path in rehearsal.disk.shown)
    assert len([path for path in rehearsal.disk.shown if path.suffix == ".log"]) > 2
    for cut_at in range(len(rehearsal.disk.calls)):
        life = Life(SimulatedDisk(cut_at=cut_at), durability)
        life.live()
        disk = life.disk.power_cut(choose)
        disk.cut_at = cut_at % 41
        with suppress(StorageError, PowerCutError):
            run(disk, nothing, durability)
        disk = disk.power_cut(choose) if disk.is_off else disk.kill()
        found = run(disk, journals)
        least = life.acknowledged if durability == "fsync" else 0
        assert found in life.states[least : life.acknowledged + 2]
        # What one opener finds, the next one finds.
        assert run(disk.kill().power_cut(lose_all), journals) == found


@pytest.mark.parametrize("durability", ["fsync", "os"])
def test_kill_at_any_call_while_segments_come_and_go(durability: str):
    """Wherever the process is killed, what was acknowledged is there, in either durability."""
    cut_at = 0
    is_cut = True
    while is_cut:
        life = Life(SimulatedDisk(cut_at=cut_at), durability)
        life.live()
        is_cut = life.disk.is_off
        assert run(life.disk.kill(), journals) in life.states[life.acknowledged : life.acknowledged + 2]
        cut_at += 1
    assert cut_at > 100


@pytest.mark.parametrize("durability", ["fsync", "os"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.__getitem__)
def test_failure_at_any_call_while_segments_come_and_go(error: int, durability: str):
    """Whatever call fails, what was acknowledged is there at the next open, and after a power cut as well if synced."""
    number = 0
    fails = True
    while fails:
        life = Life(SimulatedDisk(faults={number: Fault(error)}), durability)
        life.live()
        fails = number < len(life.disk.calls)
        life.disk.faults.clear()
        disk = life.disk.kill()
        if durability == "fsync" and number % 2:
            disk = disk.power_cut(lose_all)
        found = run(disk, journals)
        assert found in life.states[life.acknowledged : life.acknowledged + 2]
        assert run(disk.kill().power_cut(lose_all), journals) == found
        number += 1
    assert number > 100


def test_names_are_durable_before_anything_else_happens():
    """After a file was given its name, the next thing is to make that durable, before anything is removed."""
    for durability in ("fsync", "os"):
        life = Life(SimulatedDisk(), durability)
        life.live()
        followers = {after for call, after in pairwise(life.disk.calls) if call == "rename"}
        assert followers == {"sync_directory"}


def grown(durability: str = "os") -> dict[Path, bytes]:
    """Return the files of a store that has several segments, and was closed in order."""
    life = Life(SimulatedDisk(), durability)
    life.live()
    return {path: life.disk.content(path) for path in life.disk.shown}


def segments_of(files: dict[Path, bytes]) -> list[Path]:
    return sorted(path for path in files if path.suffix == ".log")


def test_segment_that_is_missing_is_damage():
    """A log of which a segment is missing is refused: the first, the last, or one in between."""
    files = grown()
    segments = segments_of(files)
    assert len(segments) > 3
    for missing in segments:
        left = {path: content for path, content in files.items() if path not in {missing, PATH / "checkpoint"}}
        with pytest.raises(StoreCorruptedError, match="missing"):
            run(SimulatedDisk.holding(left), journals)


def test_last_segment_that_is_missing_is_damage():
    """Which segment is the last one is known without it, be the one before it whole."""
    disk = SimulatedDisk()

    async def main() -> None:
        async with FileStore(PATH, segment_bytes=MIN_SEGMENT_BYTES, disk=disk).open(current_clock()) as store:
            number = await start(store)
            for seq in range(2, 30):
                await store.append([step(number, seq)])

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    files = {path: disk.content(path) for path in disk.shown if path.name != "checkpoint"}
    del files[segments_of(files)[-1]]
    with pytest.raises(StoreCorruptedError, match="missing"):
        run(SimulatedDisk.holding(files), journals)


def test_damage_in_a_segment_that_has_a_successor_is_no_torn_tail():
    """What has a successor was durable, in either durability: any flipped bit of it is damage."""
    for durability in ("fsync", "os"):
        files = grown(durability)
        del files[PATH / "checkpoint"]
        for path in segments_of(files)[:-1]:
            for at in range(0, len(files[path]), 29):
                content = bytearray(files[path])
                content[at] ^= 4
                with pytest.raises(StoreCorruptedError, match=r"at byte offset \d+") as caught:
                    run(SimulatedDisk.holding({**files, path: bytes(content)}), journals)
                assert caught.value.location == str(path)


def test_segment_that_ends_within_itself_is_damage():
    """A segment that has a successor and is shorter than it was is damage: it is named, or the one behind the gap."""
    files = grown("fsync")
    del files[PATH / "checkpoint"]
    for path, successor in pairwise(segments_of(files)):
        lines = files[path].splitlines(keepends=True)
        ends = list(accumulate(map(len, lines)))
        for size in sorted({*range(0, len(files[path]) - 1, 31), *ends[:-1]}):
            with pytest.raises(StoreCorruptedError, match=r"at byte offset \d+") as caught:
                run(SimulatedDisk.holding({**files, path: files[path][:size]}), journals)
            # A compacted segment says how much is in it.
            is_end_of_batch = size in ends and (size == ends[0] or lines[ends.index(size)].split()[1].endswith(b";"))
            is_told_by_the_next = is_end_of_batch and "-" not in path.name
            assert caught.value.location == str(successor if is_told_by_the_next else path)


def test_damaged_checkpoint_changes_nothing():
    """A checkpoint is a cache: without it, or with something wrong in it, the store is the same."""
    life = Life(SimulatedDisk(), "os")
    life.live()
    expected = life.states[-1]
    files = {path: life.disk.content(path) for path in life.disk.shown}
    assert run(SimulatedDisk.holding(files), journals) == expected
    checkpoint = files.pop(PATH / "checkpoint")
    assert run(SimulatedDisk.holding(files), journals) == expected
    # All of the line that says what the rest is.
    for at in (*range(0, len(checkpoint), 7), *range(checkpoint.index(b'{"store"'), len(checkpoint))):
        content = bytearray(checkpoint)
        content[at] ^= 1
        assert run(SimulatedDisk.holding({**files, PATH / "checkpoint": bytes(content)}), journals) == expected


@pytest.mark.parametrize("size", range(1, 400, 20))
def test_session_that_begins_late_begins_where_it_does(size: int):
    """A session whose beginning had no room on the disk begins with its first append, be it where a segment ends."""

    async def fill(store: OpenStore) -> None:
        number = await start(store)
        await store.append([step(number, 2, b"7" * size)])

    async def go_on(store: OpenStore) -> None:
        await store.append([step(1, 3)])
        await store.append([step(1, 4)])

    async def live(fn: Callable[[OpenStore], Awaitable[None]], disk: SimulatedDisk) -> None:
        async with FileStore(PATH, segment_bytes=MIN_SEGMENT_BYTES, disk=disk).open(current_clock()) as store:
            await fn(store)

    disk = SimulatedDisk()
    trio.run(live, fill, disk, clock=trio.testing.MockClock(autojump_threshold=0))
    rehearsal = disk.copy()
    trio.run(live, nothing, rehearsal, clock=trio.testing.MockClock(autojump_threshold=0))
    # The first write notes who holds the lock.
    _, number, *_ = [number for number, call in enumerate(rehearsal.calls) if call == "write"]
    disk = disk.copy()
    disk.faults[number] = Fault(errno.ENOSPC)
    trio.run(live, go_on, disk, clock=trio.testing.MockClock(autojump_threshold=0))
    files = {path: disk.content(path) for path in disk.shown if path.name != "checkpoint"}
    assert [record.seq for record in run(SimulatedDisk.holding(files), journals)[1]] == [1, 2, 3, 4]


@pytest.mark.parametrize("durability", ["fsync", "os"])
def test_session_that_ends_without_room_is_closed_all_the_same(durability: str):
    """The end of a session that the log had no room for is no damage to those who find it noted elsewhere."""
    disk = SimulatedDisk()

    async def live(store: OpenStore) -> None:
        await write_three(store)
        bases.append(len(disk.calls))

    bases: list[int] = []
    run(disk, live, durability)
    number = bases[0] + disk.calls[bases[0] :].index("write")
    disk = SimulatedDisk(faults={number: Fault(errno.ENOSPC)})
    run(disk, live, durability)
    # The next one makes its batches durable in another way, so it begins a segment.
    run(disk, nothing, "os" if durability == "fsync" else "fsync")
    files = {path: disk.content(path) for path in disk.shown if path.name != "checkpoint"}
    assert run(SimulatedDisk.holding(files), journals) == {1: THREE}
