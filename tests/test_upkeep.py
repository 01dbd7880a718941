"""
Tests that upkeep holds nobody up for long, keeps nothing for ever, and goes on where it can.
"""

from __future__ import annotations

import errno
import threading
import weakref
from collections import deque
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from memable import FileStore, StorageError
from memable._clock import current_clock
from memable._segments import SegmentName, segment
from memable._spans import MAX_SEGMENT, segment_of, span_of
from memable._store import _tail, _upkeep
from memable._store._checkpoint import read_checkpoint
from memable._store._committer import Committer
from memable._store._index import HeaderIndex
from memable._store._protocol import OpenStore
from memable._store._reading import LogReading, read_log
from memable._store._space import Space
from memable._store._tail import Appended
from memable._store.file import OpenFileStore
from memable._testing._simulated_disk import Fault, SimulatedDisk, SimulatedFile
from sample_records import completed, resumed, started, step
from segmented import (
    CHECKPOINT,
    PATH,
    FullDisk,
    Ledger,
    chain_on,
    forgetting,
    in_order,
    journals,
    log_text,
    names_on,
    open_on,
    retire,
    run_instance,
    tidy,
    without_checkpoint,
    without_superseded,
)

# What is kept ------------------------------------------------------------------------------------------------------


def space_of(count: int, size: int = 1000) -> Space:
    """Return the space of so many segments of the same size."""
    space = Space()
    for number in range(1, count + 1):
        space.add_file(segment(number), size)
    return space


def finish(space: Space, numbers: range) -> None:
    deque(space.review_tombstones(numbers, span_of(MAX_SEGMENT, 0, 1)), maxlen=0)


def test_sets_of_segments_go_with_their_tombstones():
    """Where lines of what was removed may be is forgotten when there are none any more."""
    space = space_of(9)
    for number in (1, 2, 5000):
        space.note_removed(number, [span_of(3, 10, 90), span_of(7, 10, 90)], span_of(9, 100 * number, 90))
    ones = [space.tombstones.get(number) for number in (1, 2, 5000)]
    assert all(one is not None and one.segments is ones[0].segments for one in ones if ones[0] is not None)
    assert ones[0] is not None
    sets = [weakref.ref(ones[0].segments)]
    finish(space, range(1, 5))
    left = space.tombstones.get(2)
    assert left is not None
    assert left.segments == {7}
    sets.append(weakref.ref(left.segments))
    del ones, left
    assert sets[0]() is None
    finish(space, range(5, 9))
    assert space.tombstones.get(2) is None
    assert sets[1]() is None
    # The tombstones are not needed any more, either.
    assert space.files[-1].dead >= 3 * 90


def test_space_comes_back_step_by_step():
    """One compaction does not read more than some segments' worth of files, but at least one file."""
    space = space_of(40)
    for file in space.files:
        file.dead = file.size
    run = space.choose(100, 1000, set())
    assert run == [segment(number) for number in range(1, 9)]
    space.replace(run, SegmentName(1, 8, 1), 50)
    assert 1 < len(space.choose(100, 1000, set())) <= 9
    space.files[0].size = space.files[0].dead = 20_000
    assert space.choose(100, 1000, set()) == [SegmentName(1, 8, 1)]


def test_many_tiny_files_are_merged_at_once():
    """However many files there are, what counts is how long they are."""
    space = space_of(101, size=10)
    assert len(space.choose(200, 1000, set())) == 100


# What cannot be read -----------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class _FileWithBadSector(SimulatedFile):
    def read_at(self, offset: int, size: int) -> bytes:
        if offset > 0:
            raise OSError(errno.EIO, "Input/output error")
        return SimulatedFile.read_at(self, offset, size)


@attrs.define(eq=False)
class BadSectorDisk(SimulatedDisk):
    """Of one file, only the beginning can be read."""

    bad: str = ""

    @classmethod
    def like(cls, disk: SimulatedDisk, bad: str) -> BadSectorDisk:
        files = in_order(disk)
        return cls(directories=files.directories, shown=files.shown, stored=files.stored, bad=bad)

    def open_file(self, path: Path, *, create: bool = False) -> SimulatedFile:
        file = SimulatedDisk.open_file(self, path, create=create)
        return _FileWithBadSector(self, file.inode) if path.name == self.bad and not create else file


@pytest.mark.parametrize("bad", ["00000001.log", "00000003.log"])
def test_segment_that_cannot_be_read_is_not_compacted(bad: str, caplog: pytest.LogCaptureFixture):
    """One bad sector in an old segment stops nothing else, and is told once."""
    disk = SimulatedDisk()

    async def main(store: OpenStore) -> None:
        numbers = [await run_instance(store) for _ in range(30)]
        await tidy(store)
        for number in numbers[:15]:
            await retire(store, number)

    open_on(disk, main)
    assert bad in names_on(disk)
    damaged = BadSectorDisk.like(disk, bad)

    async def go_on(store: OpenStore) -> None:
        for _ in range(3):
            await tidy(store)
            for number in [await run_instance(store) for _ in range(8)]:
                await retire(store, number)

    open_on(damaged, go_on)
    assert caplog.text.count("Input/output error") == 1
    assert f"{bad}: reading failed: Input/output error" in caplog.text
    assert "not compacted any more" in caplog.text
    assert bad in names_on(damaged)
    assert any(name.is_compacted for name in chain_on(damaged).current)
    assert len(open_on(in_order(damaged), journals)) == 15


def test_instance_that_cannot_be_read_keeps_what_it_had_forgotten(caplog: pytest.LogCaptureFixture):
    """One bad sector in the journal of one that was resumed stops nothing; later it is tried again."""
    disk = SimulatedDisk()

    async def main(store: OpenStore) -> None:
        number = await store.allocate_number()
        await store.append([started(number)])
        for seq in range(2, 8):
            await store.append([step(number, seq, b'"' + b"x" * 200 + b'"')])
        await store.append([forgetting(number, 8, *(f"s{seq}" for seq in range(2, 8))), completed(number, 9)])
        await run_instance(store, steps=30)

    open_on(disk, main)
    damaged = BadSectorDisk.like(disk, "00000001.log")
    # At open, all is read.
    damaged.bad = ""

    async def look(store: OpenStore) -> None:
        damaged.bad = "00000001.log"
        await tidy(store)
        await run_instance(store, steps=30)
        await tidy(store)
        damaged.bad = ""

    open_on(damaged, look)
    assert "what instance 1 had forgotten is kept" in caplog.text
    assert CHECKPOINT in damaged.shown
    assert log_text(damaged).count(b"x" * 200) == 6
    open_on(damaged, tidy)
    assert log_text(damaged).count(b"x" * 200) < 3


# What the system is short of ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN])
def test_shortage_only_puts_upkeep_off(code: int, caplog: pytest.LogCaptureFixture):
    """A process that has too many files open, say, goes on, and upkeep is done when it has fewer."""
    given = SimulatedDisk()

    async def main(store: OpenStore) -> None:
        numbers = [await run_instance(store) for _ in range(20)]
        await store.append([forgetting(20, 6, "s2", "s3"), completed(20, 7)])
        for number in numbers[:15]:
            await retire(store, number)

    open_on(given, main)
    whole = given.copy()
    calls: list[str] = []

    async def count(store: OpenStore) -> None:
        before = len(whole.calls)
        await tidy(store)
        calls.extend(whole.calls[before:])

    open_on(whole, count)
    for at in [at for at, name in enumerate(calls) if name in {"open", "create"}]:
        disk = given.copy()

        async def look(store: OpenStore, disk: SimulatedDisk = disk, at: int = at) -> None:
            disk.faults[len(disk.calls) + at] = Fault(code)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.maintain)
                await trio.testing.wait_all_tasks_blocked()
                assert not [name for name in names_on(disk) if name.endswith(".tmp")]
                await trio.sleep(61)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()

        caplog.clear()
        open_on(disk, look)
        assert "a checkpoint or a compaction" in caplog.text
        assert names_on(disk) == names_on(whole)
        assert open_on(disk, journals) == open_on(whole.copy(), journals)


# In steps ----------------------------------------------------------------------------------------------------------


async def resume_and_end(store: OpenStore, ledger: Ledger) -> None:
    """Append instances over many segments, of which some are removed and others have forgotten something."""
    for number in range(1, 9):
        await store.allocate_number()
        await ledger.append(store, started(number, session=store.session))
    for seq in range(2, 8):
        for number in range(1, 9):
            await ledger.append(store, step(number, seq))
    for number in range(1, 9):
        await ledger.append(store, completed(number, 8))
        if number % 2:
            await ledger.append(
                store, forgetting(number, 9, *(f"s{seq}" for seq in range(2, 8))), completed(number, 10)
            )
    for number in (2, 4, 6):
        await retire(store, number)
        ledger.appends.append([])
    ledger.acknowledged = len(ledger.appends)


def unsettled(reading: LogReading | _upkeep.Upkeep) -> list[int]:
    """Return the compacted segments of which somebody knows more than there is in them."""
    names = reading.files.names
    compacted = {number for name in names if name.is_compacted for number in range(name.first, name.last + 1)}
    found = {segment_of(span) for page in reading.space.superseded.pages() for span in page}
    for page in reading.space.tombstones.pages():
        for _, tombstone in page:
            found |= tombstone.segments
    for number in reading.index.has_forgotten:
        for span in reading.index.spans(number):
            name = next(name for name in names if name.first <= segment_of(span) <= name.last)
            if name.is_compacted and not reading.files.holds(name, span):
                found.add(segment_of(span))
    return sorted(found & compacted)


@pytest.mark.slow
@pytest.mark.parametrize("is_beside", [True, False])
def test_workflows_go_on_while_a_compaction_is_taken_in(is_beside: bool, monkeypatch: pytest.MonkeyPatch):
    """What is removed, resumed or loaded between two steps is as it should be; so it is if no more steps follow."""
    monkeypatch.setattr(_upkeep, "_SLICE", 1)
    given = SimulatedDisk()
    open_on(given, lambda store: resume_and_end(store, Ledger()))
    for turns in range(80):
        disk = given.copy()

        async def main(store: OpenStore, turns: int = turns) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.maintain)
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                before = await journals(store)
                assert set(without_superseded(before)[3]) >= {completed(3, 10)}
                if is_beside:
                    await retire(store, 5)
                    await store.append([resumed(3, 11), step(3, 12), completed(3, 13)])
                    await trio.testing.wait_all_tasks_blocked()
                    assert len(await store.load(3)) >= 3
                nursery.cancel_scope.cancel()
            if not is_beside:
                assert isinstance(store, OpenFileStore)
                assert not unsettled(store._upkeep)

        open_on(disk, main)
        if not is_beside:
            chain = chain_on(disk)
            assert not unsettled(read_log(disk, PATH, chain, read_checkpoint(disk, PATH, chain)))
        found = without_superseded(open_on(disk.copy(), journals))
        assert found == without_superseded(open_on(without_checkpoint(disk), journals))
        assert set(found) == ({1, 3, 7, 8} if is_beside else {1, 3, 5, 7, 8})
    assert any(name.is_compacted for name in chain_on(disk).current)


def test_what_is_many_is_gone_through_in_steps():
    """A million tombstones hold nobody up: neither their review nor a checkpoint of them."""
    space = space_of(9)
    for number in range(5000):
        space.note_removed(number, [span_of(3, 10, 90)], span_of(9, 100 * number, 90))
        space.note_superseded([span_of(4, 100 * number, 90)])
    assert max(map(len, space.tombstones.pages())) < 2000
    assert max(map(len, space.superseded.pages())) < 2000
    assert sum(map(len, space.superseded.pages())) == 5000
    steps = space.review_tombstones(range(1, 5), span_of(9, 100 * 4999, 1))
    next(steps)
    # It may be removed in between, and then is newer.
    space.note_removed(5000, [span_of(3, 10, 90)], span_of(9, 500_000, 90))
    assert 3 <= sum(1 for _ in steps) < 10
    assert [number for page in space.tombstones.pages() for number, _ in page] == [4999, 5000]


# At open -----------------------------------------------------------------------------------------------------------


def test_open_reads_no_journals_again():
    """What was forgotten is found out once, not by each opener."""
    disk = SimulatedDisk()

    async def main(store: OpenStore) -> None:
        for _ in range(100):
            number = await run_instance(store, steps=2, ends=False)
            await store.append([forgetting(number, 4, "s2"), step(number, 5), completed(number, 6)])
        await tidy(store)

    open_on(disk, main, segment_bytes=16384)
    assert CHECKPOINT in disk.shown

    async def look(store: OpenStore) -> int:
        before = disk.calls.count("read")
        await tidy(store)
        return disk.calls.count("read") - before

    open_on(disk, look, segment_bytes=16384)
    assert open_on(disk, look, segment_bytes=16384) == 0

    async def forget_again(store: OpenStore) -> None:
        await store.append([forgetting(7, 7, "s5"), completed(7, 8)])

    open_on(disk, forget_again, segment_bytes=16384)
    assert 0 < open_on(disk, look, segment_bytes=16384) < 10


# Limits, failures, threads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1023, 1024**3 + 1, 1 << 40, True, 4096.0])
def test_segment_bytes_is_within_its_limits(size: int):
    """What is too short or too long for a file of the log is refused before there is one."""
    with pytest.raises(ValueError, match=r"segment_bytes must be an int from 1024 to 1073741824 \(1 GiB\), not"):
        FileStore("store", segment_bytes=size)
    assert FileStore("store", segment_bytes=1024**3).segment_bytes == 1024**3


def test_log_that_has_all_segments_takes_nothing_more(monkeypatch: pytest.MonkeyPatch):
    """The error tells the way out, and what is there can still be read."""
    disk = SimulatedDisk()
    monkeypatch.setattr(_tail, "MAX_SEGMENT", 3)

    async def main(store: OpenStore) -> None:
        with pytest.raises(
            StorageError, match=r"writing failed: the log has as many segments .*; begin a new store in"
        ):
            for _ in range(50):
                await run_instance(store)

    open_on(disk, main)
    assert names_on(disk) == ["00000001.log", "00000002.log", "00000003.log", "lock"]
    with pytest.raises(StorageError, match="begin a new store"):
        open_on(disk.copy(), journals)
    monkeypatch.undo()
    assert len(open_on(disk, journals)) > 3


def test_whatever_fails_in_taking_in_a_batch_is_told(monkeypatch: pytest.MonkeyPatch):
    """Nobody waits for ever, whatever it was."""
    disk = SimulatedDisk()

    async def main(store: OpenStore) -> None:
        monkeypatch.setattr(HeaderIndex, "fold", lambda *_: 1 // 0)
        number = await store.allocate_number()
        with trio.fail_after(1), pytest.raises(StorageError, match="writing failed: ZeroDivisionError"):
            await store.append([started(number)])
        monkeypatch.undo()

    open_on(disk, main)


def test_session_that_begins_with_its_first_append_seals_in_order():
    """When the disk was full at open, the session's beginning may be what fills a segment."""
    for filled in range(400, 1000, 20):
        disk = SimulatedDisk()
        killed: list[FullDisk] = []

        async def fill(
            store: OpenStore, disk: SimulatedDisk = disk, filled: int = filled, killed: list[FullDisk] = killed
        ) -> None:
            number = await store.allocate_number()
            await store.append([started(number)])
            while len(disk.content(PATH / "00000001.log")) < filled:
                await store.append([step(number, (await store.headers())[0].seq + 1)])
            killed.append(FullDisk.like(disk))

        open_on(disk, fill)
        (disk,) = killed
        disk.is_full = True

        async def go_on(store: OpenStore, disk: FullDisk = disk) -> None:
            disk.is_full = False
            await run_instance(store, ends=False)

        open_on(disk, go_on)
        assert open_on(disk.copy(), journals) == open_on(without_checkpoint(disk), journals)
        assert open_on(disk, run_instance) == 3


def test_batches_are_taken_in_by_the_event_loop(monkeypatch: pytest.MonkeyPatch):
    """What others read meanwhile does not change under them in another thread."""
    disk = FullDisk()
    threads: set[int] = set()
    take_in = Committer._take_in

    def watched(committer: Committer, appended: Appended) -> None:
        threads.add(threading.get_ident())
        take_in(committer, appended)

    async def main() -> None:
        for is_full in (False, True):
            disk.is_full = is_full
            async with FileStore(PATH, segment_bytes=1024, disk=disk).open(current_clock()) as store:
                disk.is_full = False
                await run_instance(store)

    monkeypatch.setattr(Committer, "_take_in", watched)
    trio.run(main)
    assert threads == {threading.get_ident()}
    assert len(open_on(disk, journals)) == 2
