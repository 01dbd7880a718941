"""
Stores of many small segments on a simulated disk, and their upkeep step by step.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal, TypeVar

import attrs
import trio
import trio.testing

from memable import FileStore
from memable._clock import current_clock
from memable._records import InstanceRecord, InstanceResumed, InstanceRetired
from memable._segments import Chain, chain_of
from memable._store._protocol import OpenStore
from memable._store._snapshot import read_store
from memable._superseded import superseded
from memable._testing._simulated_disk import SimulatedDisk, SimulatedFile
from sample_records import completed, retired, started, step

T = TypeVar("T")

PATH = Path("/store")
CHECKPOINT = PATH / "checkpoint"
LOCK = PATH / "lock"
#: As short as a segment may be.
SEGMENT_BYTES = 1024

Durability = Literal["fsync", "os"]
Journals = dict[int, list[InstanceRecord]]


def open_on(
    disk: SimulatedDisk,
    fn: Callable[[OpenStore], Awaitable[T]],
    durability: Durability = "fsync",
    *,
    segment_bytes: int = SEGMENT_BYTES,
) -> T:
    """
    Open the store on *disk* in a trio run of its own, call *fn* with it, and close it.
    """

    async def main() -> T:
        store = FileStore(PATH, durability, segment_bytes=segment_bytes, disk=disk)
        async with store.open(current_clock()) as opened:
            return await fn(opened)

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def tidy(store: OpenStore) -> None:
    """
    Let a store do all the upkeep that is due.
    """
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.maintain)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    except ExceptionGroup as group:
        (error,) = group.exceptions
        raise error from None


async def journals(store: OpenStore) -> Journals:
    """
    Return the journals of all instances.
    """
    return {header.number: list(await store.load(header.number)) for header in await store.headers()}


def journals_beside(disk: SimulatedDisk) -> Journals:
    """
    Return what somebody reads who does not open the store.
    """
    with read_store(disk, PATH) as snapshot:
        return {header.number: snapshot.load(header.number) for header in snapshot.index.select()}


def without_superseded(found: Journals) -> Journals:
    """
    Return journals without what compaction may leave out of them.
    """
    left: Journals = {}
    for number, records in found.items():
        dead = set(superseded(records))
        left[number] = [record for at, record in enumerate(records) if at not in dead]
    return left


def chain_on(disk: SimulatedDisk) -> Chain:
    """
    Tell which files on a disk are the log.
    """
    return chain_of(names_on(disk))


def names_on(disk: SimulatedDisk) -> list[str]:
    """
    Return the names of the files in the store.
    """
    return sorted(path.name for path in disk.shown)


def log_text(disk: SimulatedDisk) -> bytes:
    """
    Return all that is in the log.
    """
    return b"".join(disk.content(PATH / str(name)) for name in chain_on(disk).current)


def without_checkpoint(disk: SimulatedDisk) -> SimulatedDisk:
    """
    Return a copy of a disk on which somebody has deleted the checkpoint.
    """
    copy = disk.copy()
    copy.shown.pop(CHECKPOINT, None)
    copy.stored.pop(CHECKPOINT, None)
    return copy


def in_order(disk: SimulatedDisk) -> SimulatedDisk:
    """
    Return a copy of a disk, with all that is on it durable.
    """
    return SimulatedDisk.holding({path: bytes(inode.shown) for path, inode in disk.shown.items()})


# What is written ---------------------------------------------------------------------------------------------------


async def run_instance(store: OpenStore, *, name: str | None = None, steps: int = 3, ends: bool = True) -> int:
    """
    Append an instance with its steps, a batch each, and return its number.
    """
    number = await store.allocate_number()
    await store.append([started(number, name=name, session=store.session)])
    for seq in range(2, steps + 2):
        await store.append([step(number, seq)])
    if ends:
        await store.append([completed(number, steps + 2)])
    return number


async def retire(store: OpenStore, number: int) -> None:
    """
    Remove an instance that has ended.
    """
    await store.append([retired(number, await newest_seq(store, number) + 1)])


async def newest_seq(store: OpenStore, number: int) -> int:
    """
    Return the sequence number of an instance's newest record.
    """
    return next(header.seq for header in await store.headers(after=number - 1, limit=1))


def forgetting(number: int, seq: int, *paths: str, anew: bool = False) -> InstanceResumed:
    """
    Return a record that an instance is resumed with something to forget.
    """
    return InstanceResumed(instance=number, seq=seq, at=1000.0, session=1, forgotten=paths, anew=anew)


# What must be found ------------------------------------------------------------------------------------------------


@attrs.define
class Ledger:
    """
    What was appended, one append after the other, and how much of it was acknowledged.
    """

    appends: list[list[InstanceRecord]] = attrs.field(factory=list)
    acknowledged: int = 0

    async def append(self, store: OpenStore, *records: InstanceRecord) -> None:
        """
        Append records, and take note of it.
        """
        self.appends.append(list(records))
        await store.append(records)
        self.acknowledged = len(self.appends)

    def after(self, count: int) -> Journals:
        """
        Return the journals that so many appends make.
        """
        found: Journals = {}
        for records in self.appends[:count]:
            for record in records:
                if isinstance(record, InstanceRetired):
                    del found[record.instance]
                else:
                    found.setdefault(record.instance, []).append(record)
        return found

    def check(self, found: Journals, *, least: int | None = None) -> int:
        """
        Check that *found* is all that was acknowledged, and perhaps what was on its way; return how much that is.

        Args:
            found: Journals. What compaction may leave out of them may be missing.
            least: So many appends must be there; all that were acknowledged if not given.
        """
        told = without_superseded(found)
        for count in range(len(self.appends), (self.acknowledged if least is None else least) - 1, -1):
            if without_superseded(self.after(count)) == told:
                return count
        assert told == without_superseded(self.after(self.acknowledged))
        raise AssertionError("unreachable")

    def copy(self) -> Ledger:
        """
        Return another one that says the same.
        """
        return Ledger(self.appends.copy(), self.acknowledged)


# A full disk -------------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class FullDisk(SimulatedDisk):
    """
    A disk on which files may be overwritten, but do not grow, as long as it is full.
    """

    is_full: bool = False

    @classmethod
    def like(cls, disk: SimulatedDisk) -> FullDisk:
        """
        Return a disk that holds what another one holds.
        """
        files = in_order(disk)
        return cls(directories=files.directories, shown=files.shown, stored=files.stored)

    def open_file(self, path: Path, *, create: bool = False) -> SimulatedFile:
        file = SimulatedDisk.open_file(self, path, create=create)
        return _FileOnFullDisk(self, file.inode)


@attrs.define(eq=False)
class _FileOnFullDisk(SimulatedFile):
    def write_at(self, offset: int, chunk: bytes) -> int:
        assert isinstance(self.disk, FullDisk)
        if self.disk.is_full and offset + len(chunk) > len(self.inode.shown):
            raise OSError(errno.ENOSPC, "No space left on device")
        return SimulatedFile.write_at(self, offset, chunk)
