"""
Tests of reading a store beside a live engine: nobody is disturbed, and nothing is seen that was not.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from memable import StorageError, StoreCorruptedError
from memable._disk import RealDisk
from memable._records import InstanceRecord
from memable._store._protocol import OpenStore
from memable._store._snapshot import StoreSnapshot, read_store
from memable._testing._simulated_disk import Fault, SimulatedDisk, SimulatedFile
from sample_records import completed, retired, started, step
from segmented import (
    CHECKPOINT,
    LOCK,
    PATH,
    Journals,
    Ledger,
    chain_on,
    forgetting,
    in_order,
    journals_beside,
    newest_seq,
    open_on,
    retire,
    run_instance,
    tidy,
    without_checkpoint,
    without_superseded,
)


@attrs.frozen
class Moment:
    """What was there just before a call of the engine's disk."""

    files: dict[Path, bytes]
    ledger: Ledger


@attrs.define(eq=False)
class FilmedDisk(SimulatedDisk):
    """A disk that keeps what was on it at each call."""

    ledger: Ledger = attrs.field(factory=Ledger)
    moments: list[Moment] = attrs.field(factory=list)

    def call(self, name: str) -> Fault | None:
        files = {path: bytes(inode.shown) for path, inode in self.shown.items()}
        if not self.moments or self.moments[-1].files != files:
            self.moments.append(Moment(files, self.ledger.copy()))
        return SimulatedDisk.call(self, name)


@attrs.define(eq=False)
class Film:
    """A disk, to be read only, on which an engine goes on at each call."""

    moments: list[Moment]
    now: int
    speed: int
    "So many moments pass at each call."
    until: int
    "Then it stops."

    def _pass(self) -> Moment:
        self.now = min(self.now + self.speed, max(self.until, self.now))
        return self.moments[self.now]

    def list_names(self, path: Path) -> list[str]:
        return sorted(found.name for found in self._pass().files if found.parent == path)

    def open_to_read(self, path: Path) -> FilmedFile:
        files = self._pass().files
        if path not in files:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return FilmedFile(self, path, files[path])

    def content(self, file: FilmedFile) -> bytes:
        """A file that was removed or replaced is still what it was for those who have it open."""
        latest = self._pass().files.get(file.path, b"")
        if latest.startswith(file.opened):
            file.opened = latest
        return file.opened


@attrs.define(eq=False)
class FilmedFile:
    film: Film
    path: Path
    opened: bytes

    def size(self) -> int:
        return len(self.film.content(self))

    def read_at(self, offset: int, size: int) -> bytes:
        return self.film.content(self)[offset : offset + size]

    def close(self) -> None:
        pass


def filmed() -> FilmedDisk:
    """An engine's store that is appended to, sealed, checkpointed and compacted."""
    disk = FilmedDisk()
    ledger = disk.ledger

    async def main(store: OpenStore) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.maintain)
            for _ in range(14):
                number = await store.allocate_number()
                await ledger.append(store, started(number, session=1))
                for seq in (2, 4):
                    await ledger.append(store, step(number, seq), step(number, seq + 1))
                await ledger.append(store, completed(number, 6))
                if number % 5 == 0:
                    await ledger.append(store, forgetting(number, 7, "s2", "s3"), completed(number, 8))
                if number > 2 and number % 4:
                    await ledger.append(store, retired(number - 2, await newest_seq(store, number - 2) + 1))
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    open_on(disk, main)
    return disk


@pytest.fixture(scope="module")
def film() -> FilmedDisk:
    disk = filmed()
    assert any(name.is_compacted for name in chain_on(disk).current)
    assert CHECKPOINT in disk.shown
    return disk


def check(snapshot: StoreSnapshot, disk: Film, begun: int, moments: list[Moment]) -> None:
    """Check that a snapshot shows one state of the store, which it had while it was read."""
    first, last = moments[begun].ledger, moments[disk.now].ledger
    seqs = {header.number: header.seq for header in snapshot.index.select()}
    counts = [
        count
        for count in range(first.acknowledged, len(last.appends) + 1)
        if {number: records[-1].seq for number, records in last.after(count).items()} == seqs
    ]
    assert counts, (begun, disk.now)
    expected = last.after(counts[0])
    for number in seqs:
        try:
            found = {number: snapshot.load(number)}
        except KeyError:
            # It was removed meanwhile.
            assert number not in moments[disk.now].ledger.after(len(moments[disk.now].ledger.appends))
            continue
        told = without_superseded(found)[number]
        later = moments[disk.now].ledger
        states = [expected, *(later.after(count) for count in range(counts[0], len(later.appends) + 1))]
        assert any(told == without_superseded(state).get(number) for state in states), (begun, disk.now, number)


def test_reader_sees_one_state_at_any_moment(film: FilmedDisk):
    """Whenever it looks, a reader finds what was acknowledged before, and no part of a batch."""
    for begun in range(film_start(film), len(film.moments)):
        disk = Film(film.moments, begun, 0, begun)
        with read_store(disk, PATH) as snapshot:  # type: ignore[arg-type]  # all that a reader needs
            check(snapshot, disk, begun, film.moments)


@pytest.mark.parametrize("speed", [1, 2, 5, 23])
@pytest.mark.parametrize("lasting", [7, 40, 10_000])
def test_reader_sees_one_state_while_the_engine_goes_on(film: FilmedDisk, speed: int, lasting: int):
    """However fast an engine appends, seals, checkpoints and compacts, whoever reads beside it is never misled."""
    for begun in range(film_start(film), len(film.moments), 3 if lasting == 7 else 5):
        disk = Film(film.moments, begun, speed, begun + min(lasting, len(film.moments) - 1 - begun))
        with read_store(disk, PATH) as snapshot:  # type: ignore[arg-type]  # all that a reader needs
            check(snapshot, disk, begun, film.moments)


def film_start(film: FilmedDisk) -> int:
    """Return the first moment at which there is a store."""
    return next(at for at, moment in enumerate(film.moments) if PATH / "00000001.log" in moment.files)


def test_snapshot_tells_what_the_store_is():
    """A snapshot says whose it is, and how its newest session ended; nothing is changed by it."""
    disk = SimulatedDisk()
    open_on(disk, run_instance)
    before = {path: bytes(inode.shown) for path, inode in disk.shown.items()}
    calls = len(disk.calls)
    with read_store(disk, PATH) as snapshot:
        assert snapshot.location == "/store"
        assert len(snapshot.store_id) == 32
        assert (snapshot.session, snapshot.is_closed, snapshot.torn_batch_count) == (1, True, 0)
        assert snapshot.newest_at > 1000
        assert [record.seq for record in snapshot.load(1)] == [1, 2, 3, 4, 5]
        with pytest.raises(KeyError):
            snapshot.load(2)
    assert {path: bytes(inode.shown) for path, inode in disk.shown.items()} == before
    assert not {"write", "create", "rename", "remove", "truncate", "sync", "lock"} & set(disk.calls[calls:])


def test_unclosed_store_is_read_with_what_is_whole():
    """A crash leaves a session open and a batch torn: a reader tells both, and believes neither."""
    disk = SimulatedDisk()
    survivors: list[SimulatedDisk] = []

    async def main(store: OpenStore) -> None:
        await run_instance(store, ends=False)
        survivors.append(disk.copy().kill())

    open_on(disk, main)
    (survivor,) = survivors
    log = PATH / "00000001.log"
    survivor.shown[log].shown[:] = survivor.content(log)[:-9]
    with read_store(survivor, PATH) as snapshot:
        assert (snapshot.session, snapshot.is_closed, snapshot.torn_batch_count) == (1, False, 1)
        assert [record.seq for record in snapshot.load(1)] == [1, 2, 3]


def test_what_is_no_store_is_told(tmp_path: Path):
    """A directory without a log, or none at all, is an error that says so."""
    with pytest.raises(StorageError, match="there is no store; give the directory"):
        read_store(RealDisk(), tmp_path)
    with pytest.raises(StorageError, match="reading failed"):
        read_store(RealDisk(), tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="reading failed: Not a directory"):
        read_store(RealDisk(), tmp_path / "file")


def test_damage_that_stays_is_told():
    """What is damaged at each look is no engine's doing."""
    disk = SimulatedDisk()
    open_on(disk, run_instance)
    disk = without_checkpoint(in_order(disk))
    del disk.shown[LOCK]
    found = journals_beside(disk)
    log = PATH / "00000001.log"
    with read_store(disk, PATH) as snapshot:
        disk.shown[log].shown[-300] ^= 1
        with pytest.raises(StoreCorruptedError, match=r"00000001\.log: at byte offset"):
            snapshot.load(1)
    # Lock file, directory twice, checkpoint; then the log itself.
    disk.faults[len(disk.calls) + 4] = Fault(errno.EIO)
    with pytest.raises(StorageError, match="reading failed: Input/output error"):
        read_store(disk, PATH)
    assert _count(found) == 5


def with_many_segments() -> SimulatedDisk:
    """A store that was closed in order, of several segments."""
    disk = SimulatedDisk()

    async def main(store: OpenStore) -> None:
        for _ in range(12):
            await run_instance(store)

    open_on(disk, main)
    disk = without_checkpoint(in_order(disk))
    assert len(chain_on(disk).current) > 4
    return disk


@pytest.mark.parametrize("count", [1, 2])
def test_missing_last_segments_are_told(count: int):
    """A reader is not content with the beginning of a log: the lock file says how far it goes."""
    disk = with_many_segments()
    names = chain_on(disk).current
    last = names[-1].last
    with read_store(disk, PATH) as snapshot:
        for name in names[-count:]:
            del disk.shown[PATH / str(name)]
        which = f"{last:08d}.log: .*segment {last} is" if count == 1 else f"the segments {last - 1} to {last} are"
        for read in (lambda: read_store(disk, PATH), lambda: snapshot.load(12)):
            with pytest.raises(StoreCorruptedError, match=f"{which} missing, though the log went on behind"):
                read()
    with pytest.raises(StoreCorruptedError, match=f"{which} missing"):
        open_on(disk, run_instance)


def test_lock_file_that_cannot_be_read_says_nothing():
    """Reading takes no lock, and needs none."""
    disk = with_many_segments()
    found = journals_beside(disk)
    disk.faults[len(disk.calls)] = Fault(errno.EACCES)
    assert journals_beside(disk) == found


def test_missing_log_is_told():
    """Where there was a store, a reader says that its log is missing, not that there is none."""
    disk = with_many_segments()
    for name in chain_on(disk).current:
        del disk.shown[PATH / str(name)]
    assert LOCK in disk.shown
    with pytest.raises(StoreCorruptedError, match="the log is missing, though there was one"):
        read_store(disk, PATH)
    del disk.shown[LOCK]
    with pytest.raises(StorageError, match="there is no store"):
        read_store(disk, PATH)
    disk.shown[CHECKPOINT] = SimulatedDisk.holding({CHECKPOINT: b""}).shown[CHECKPOINT]
    with pytest.raises(StoreCorruptedError, match="the log is missing, though there was one"):
        read_store(disk, PATH)


def test_snapshot_of_what_was_changed_since():
    """An instance that goes on after the snapshot is shown as it was; one that was removed since is gone."""
    disk = SimulatedDisk()

    async def main(store: OpenStore) -> None:
        for _ in range(14):
            await run_instance(store)
        goes_on = await run_instance(store, ends=False)
        with read_store(disk, PATH) as snapshot:
            await store.append([step(goes_on, 5)])
            for number in range(1, 14):
                await retire(store, number)
            await tidy(store)
            assert any(name.is_compacted for name in chain_on(disk).current)
            assert [record.seq for record in snapshot.load(goes_on)] == [1, 2, 3, 4]
            for number in range(1, 14):
                with pytest.raises(KeyError):
                    snapshot.load(number)
            assert len(snapshot.load(14)) == 5

    open_on(disk, main)


def test_removed_file_is_named():
    """A file that is still not there after many looks was not compacted: it is told which."""
    disk = with_many_segments()

    class Lost(SimulatedDisk):
        def open_to_read(self, path: Path) -> SimulatedFile:
            if path.name == "00000002.log":
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
            return SimulatedDisk.open_to_read(self, path)

    lost = Lost(directories=disk.directories, shown=disk.shown, stored=disk.stored)
    with pytest.raises(StorageError, match=r"/00000002\.log: reading failed: .*; this file of the log is missing"):
        read_store(lost, PATH)


def _count(found: Journals) -> int:
    records: Iterator[InstanceRecord] = (record for journal in found.values() for record in journal)
    return sum(1 for _ in records)
