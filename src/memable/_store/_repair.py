"""
Repairs a store: writes a copy of all that is intact, in which nothing that has lost something runs on by itself.

Synchronous. The original is locked meanwhile, and never changed. The copy has its name only once it is complete,
durable and verified.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Generator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from zlib import crc32

import attrs

from .._disk import Disk, DiskFile, write_fully
from .._errors import StorageError, StoreVersionError
from .._faults import Fault, FaultKind, Note
from .._frames import (
    FORMAT_VERSION,
    Compacted,
    LogState,
    SegmentHeader,
    Stretch,
    encode_header,
    encode_stretches,
    frame_batch,
)
from .._record_json import UnknownRecordError, encode_record
from .._records import Record, StoreClosed, StoreOpened
from .._segments import SegmentName, parse_name, segment
from .._spans import offset_of, segment_of
from ._checkpoint import any_checkpoint
from ._directory import TEMPORARY_SUFFIX
from ._failures import storage_error
from ._files import CHUNK_BYTES
from ._held import LogFilesHeld
from ._lockfile import LOCK_NAME, StoreLock, take_lock
from ._salvaging import Casualty, Salvaging
from ._survey import Hole, Survey
from ._verify import Verdict, opened_log, verify_store

REPAIRED_SUFFIX = ".repaired"
_NOT_LOCKED = Note(
    "",
    "it is on a volume that is read-only here, so it could not be locked: make sure that nobody had it open elsewhere",
)
#: So many records are added in one batch.
_BATCH = 500


@attrs.frozen
class Repair:
    """
    What came of a repair.
    """

    location: str
    "The damaged store's directory."
    target: str | None
    "Where the copy is; None if nothing was written, since nothing is damaged."
    kept_aside: str | None
    "Where the damaged store is now, if the copy has taken its place."
    faults: tuple[Fault, ...]
    "What is wrong with the damaged store."
    notes: tuple[Note, ...]
    casualties: tuple[Casualty, ...]
    "Instances that have lost something, or may have."
    holes: tuple[Hole, ...]
    "Where in the log records are missing."
    torn: tuple[int, int, int] | None
    "Of the torn tail, which is cut off as it is when a store is opened: offset, bytes, batches."
    instance_count: int
    "How many are kept."
    record_count: int
    "How many records are kept."
    doubtful_count: int = 0
    "How many instances that had ended may have gone on, or been removed, in what is lost."

    @property
    def is_lossless(self) -> bool:
        """
        Whether nothing was lost.
        """
        return not self.casualties and all(hole.lost == () for hole in self.holes)


def repair_store(
    disk: Disk, directory: Path, now: float, target: Path | None = None, *, in_place: bool = False
) -> Repair:
    """
    Write a repaired copy of the store in *directory*, if it is damaged or *target* is given.

    Args:
        disk: Where it is.
        directory: The store's.
        now: What time it is.
        target: Where the copy is to be; beside the store if left out.
        in_place: Whether the copy is to take the store's place, which is then kept under another name.

    Raises:
        StoreLockedError: An engine has it open.
        StoreVersionError: A newer release wrote it.
        StorageError: It cannot be repaired, or the copy not be written; the message says why. The original is as it
            was.
    """
    directory = directory.absolute()
    goal = (target or directory.with_name(directory.name + REPAIRED_SUFFIX)).absolute()
    try:
        # Not to make a lock file where there is no store.
        with opened_log(disk, directory):
            has_lock_file = LOCK_NAME in disk.list_names(directory)
        lock = _take_lock(disk, directory)
    except OSError as exc:
        raise storage_error(
            str(exc.filename or directory), "locking (copy the store, and repair the copy)", exc
        ) from exc
    try:
        repairing = _Repairing(disk, directory, goal, now)
        repair = repairing.run(is_wanted=target is not None, in_place=in_place)
        return repair if lock is not None else attrs.evolve(repair, notes=(*repair.notes, _NOT_LOCKED))
    except UnknownRecordError as exc:
        raise StoreVersionError(
            location=str(directory),
            problem=f"a record is intact, but unknown to this release of memable: {exc}; repair it with the release "
            "that wrote it, or a newer one",
            found=FORMAT_VERSION,
            supported=FORMAT_VERSION,
        ) from exc
    except OSError as exc:
        doing = f"repairing, with the copy to be {goal},"
        raise storage_error(str(exc.filename or directory), doing, exc) from exc
    finally:
        if lock is not None:
            if not has_lock_file:
                # The directory is locked, too: nobody else has it meanwhile.
                with contextlib.suppress(OSError):
                    disk.remove(directory / LOCK_NAME)
            lock.let_go()


def _take_lock(disk: Disk, directory: Path) -> StoreLock | None:
    """
    Lock the store, unless nothing can be written there, a lock file included.

    Raises:
        StoreLockedError: An engine has it open.
        OSError: It cannot be locked, and could be written to.
    """
    try:
        return take_lock(disk, directory, is_store=True)
    except OSError as exc:
        if exc.errno != errno.EROFS:
            raise
    return None


@attrs.define
class _Repairing:
    disk: Disk
    directory: Path
    goal: Path
    now: float

    def run(self, *, is_wanted: bool, in_place: bool) -> Repair:
        """
        Do it.
        """
        verdict = verify_store(self.disk, self.directory)
        _check_known(verdict)
        if verdict.is_sound and not is_wanted:
            return self._result(verdict, None)
        self._check_goal()
        draft = self.goal.with_name(self.goal.name + TEMPORARY_SUFFIX)
        with opened_log(self.disk, self.directory) as (held, chain, notes):
            checkpoint = any_checkpoint(self.disk, self.directory)
            survey = Survey(held, notes, () if checkpoint is None else (checkpoint[0],))
            if not survey.store_id:
                raise StorageError(
                    location=str(self.directory),
                    problem="the store's id is lost, without which no record can be told from others: it stood in the "
                    "first line of each segment, and in the checkpoint; restore one of these from a backup",
                )
            known = (0, 0) if checkpoint is None or checkpoint[0] != survey.store_id else checkpoint[1:]
            salvaging = Salvaging(held, survey, known)
            last = max(notes.tail, chain.current[-1].last, known[0])
            count = _Copy(self.disk, draft, held, survey, salvaging, self.now, last).write()
        self._check_copy(draft, survey.store_id)
        self.disk.rename(draft, self.goal)
        self.disk.sync_directory(self.goal.parent)
        aside = self._swap() if in_place else None
        return self._result(verdict, aside, salvaging, survey.torn, count)

    def _result(
        self,
        verdict: Verdict,
        aside: Path | None,
        salvaging: Salvaging | None = None,
        torn: tuple[int, int, int] | None = None,
        count: int = 0,
    ) -> Repair:
        target = None if salvaging is None else str(self.directory if aside is not None else self.goal)
        return Repair(
            location=str(self.directory),
            target=target,
            kept_aside=None if aside is None else str(aside),
            faults=verdict.faults,
            notes=verdict.notes,
            casualties=() if salvaging is None else tuple(salvaging.casualties),
            holes=() if salvaging is None else tuple(salvaging.holes),
            torn=torn,
            instance_count=verdict.instance_count if salvaging is None else salvaging.instance_count,
            record_count=verdict.record_count if salvaging is None else count,
            doubtful_count=0 if salvaging is None else salvaging.doubtful_count,
        )

    def _check_goal(self) -> None:
        if self.goal == self.directory or self.directory in self.goal.parents:
            raise StorageError(
                location=str(self.goal), problem="the copy cannot be within the store; choose another path"
            )
        if self._exists(self.goal):
            raise StorageError(
                location=str(self.goal),
                problem="there is something already, maybe the copy of an earlier repair: move it away, or choose "
                "another path with --to",
            )

    def _exists(self, path: Path) -> bool:
        try:
            self.disk.list_names(path)
        except FileNotFoundError:
            return False
        except NotADirectoryError:
            return True
        return True

    def _check_copy(self, draft: Path, store_id: str) -> None:
        """Make sure that the copy is what it should be before it has its name."""
        verdict = verify_store(self.disk, draft)
        if not verdict.is_sound or verdict.store_id != store_id:
            told = "; ".join(map(str, verdict.faults[:3]))
            raise StorageError(
                location=str(draft),
                problem=f"the copy is not sound ({told}), so it is not used; this is a mistake in memable, or the "
                "disk fails: keep the store as it is, and report it",
            )

    def _swap(self) -> Path:
        """Let the copy take the store's place; return where the store is then."""
        stamp = datetime.fromtimestamp(self.now, UTC).strftime("%Y%m%dT%H%M%SZ")
        name = f"{self.directory.name}.damaged-{stamp}"
        aside = self.directory.with_name(name)
        number = 1
        while self._exists(aside):
            number += 1
            aside = self.directory.with_name(f"{name}-{number}")
        self.disk.rename(self.directory, aside)
        try:
            # Wherever this is cut short, both are there, under two of the three names.
            self.disk.sync_directory(aside.parent)
            self.disk.rename(self.goal, self.directory)
            self.disk.sync_directory(self.directory.parent)
        except OSError as exc:
            raise StorageError(
                location=str(self.directory),
                problem=f"the copy could not take its place ({exc}): the damaged store is {aside}, the repaired copy "
                f"is {self.goal} unless it is here; rename them yourself",
            ) from exc
        return aside


def _check_known(verdict: Verdict) -> None:
    for fault in verdict.faults:
        if fault.kind is FaultKind.UNKNOWN:
            raise StoreVersionError(
                location=f"{verdict.location}/{fault.file}",
                problem=f"at byte offset {fault.offset}: {fault.problem}; repair it with the release that wrote it, or "
                "a newer one: this one would drop what it does not know",
                found=FORMAT_VERSION,
                supported=FORMAT_VERSION,
            )


@attrs.define
class _Copy:
    """
    The copy that is being written.
    """

    disk: Disk
    directory: Path
    held: LogFilesHeld
    survey: Survey
    salvaging: Salvaging
    now: float
    last: int
    "Number of the last segment that the copy's compacted one stands for."

    def write(self) -> int:
        """
        Write it, durably; return how many records were kept.
        """
        self._make_room()
        name = SegmentName(1, self.last, 1 + max(one.generation for one in self.held.names))
        count = self._write_file(str(name), self._compacted(name))
        self._write_file(str(segment(self.last + 1)), self._tail())
        self.disk.sync_directory(self.directory)
        return count

    def _make_room(self) -> None:
        """Make the directory; or empty it, if an earlier repair was cut short there."""
        if self.disk.make_directory(self.directory):
            return
        for name in self.disk.list_names(self.directory):
            if parse_name(name) is None and name != LOCK_NAME:
                raise StorageError(
                    location=str(self.directory),
                    problem=f"there is something else already ({name}): move it away, or choose another path with --to",
                )
            self.disk.remove(self.directory / name)

    def _write_file(self, name: str, parts: Generator[bytes, None, int]) -> int:
        file = self.disk.open_file(self.directory / name, create=True)
        try:
            return _write_all(file, parts)
        finally:
            file.close()

    def _compacted(self, name: SegmentName) -> Generator[bytes, None, int]:
        count = size = checksum = 0
        stretches: list[Stretch] = []
        for found in self.salvaging.lines():
            length = len(found.entry[0]) + 1
            count += 1
            size += length
            checksum = crc32(b"\n", crc32(found.entry[0], checksum))
            _extend(stretches, found.place, length)
        survey = self.survey
        yield encode_header(
            SegmentHeader(
                store_id=survey.store_id,
                segment=name.first,
                created_at=self.now,
                durability=survey.durability,
                compacted=Compacted(
                    through=name.last, generation=name.generation, lines=count, size=size, checksum=checksum
                ),
            )
        )
        for found in self.salvaging.lines():
            yield found.entry[0] + b"\n"
        yield encode_stretches(stretches)
        return count

    def _tail(self) -> Generator[bytes, None, int]:
        """The session of this repair, in which what has lost something is blocked."""
        survey = self.survey
        at = max(self.now, survey.newest_at)
        session = survey.session + 1
        yield encode_header(
            SegmentHeader(
                store_id=survey.store_id,
                segment=self.last + 1,
                created_at=self.now,
                durability="fsync",
                state=LogState(
                    session=survey.session,
                    closed=survey.closed,
                    durability=survey.durability,
                    crashed=tuple(sorted(survey.crashed)),
                    next_batch=survey.next_batch,
                    newest_at=survey.newest_at,
                    last_number=self.salvaging.last_number,
                ),
            )
        )
        opened = StoreOpened(session=session, at=at, durability="fsync", pid=os.getpid(), host=socket.gethostname())
        blocked = self.salvaging.blocked
        batches: list[Sequence[Record]] = [[opened]]
        batches += [blocked[start : start + _BATCH] for start in range(0, len(blocked), _BATCH)]
        batches.append([StoreClosed(session=session, at=at)])
        for number, batch in enumerate(batches, survey.next_batch):
            yield b"".join(frame_batch(survey.seed, session, number, [encode_record(record) for record in batch]))
        return len(blocked)


def _write_all(file: DiskFile, parts: Generator[bytes, None, int]) -> int:
    """Write *parts*, and return what they return."""
    held: list[bytes] = []
    offset = size = 0
    count = 0

    def counted() -> Generator[bytes, None, None]:
        nonlocal count
        count = yield from parts

    for part in counted():
        held.append(part)
        size += len(part)
        if size >= CHUNK_BYTES:
            write_fully(file, offset, b"".join(held))
            offset, size = offset + size, 0
            held.clear()
    write_fully(file, offset, b"".join(held))
    file.sync()
    return count


def _extend(stretches: list[Stretch], place: int, length: int) -> None:
    number, offset = segment_of(place), offset_of(place)
    if stretches:
        last = stretches[-1]
        if (last.segment, last.offset + last.length) == (number, offset):
            stretches[-1] = last._replace(length=last.length + length)
            return
    stretches.append(Stretch(number, offset, length))
