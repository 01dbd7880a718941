"""
Opens a store's log: reads what it holds, cuts off what a crash left half-written, and makes the rest safe to append to.

Synchronous: called in a thread. Each step leaves a store that the next opener recovers alike, wherever it is cut short.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from pathlib import Path

import attrs

from .._disk import Disk, DiskFile, write_fully
from .._errors import StoreCorruptedError
from .._frames import SegmentHeader, decode_header, seed_of
from .._records import InstanceRecord, InstanceRetired, StoreClosed, StoreOpened
from .._scan import WAY_OUT, LogScan
from ._directory import FIRST_SEGMENT, create_log, has_log, replace_log
from ._index import HeaderIndex
from ._lockfile import StoreLock
from ._reader import LineIndex

logger = logging.getLogger("memable")

TORN_SUFFIX = ".torn"
#: So many torn tails are kept; a disk that tears more than that needs attention, not space.
MAX_TORN_FILES = 10

_CHUNK_BYTES = 1024 * 1024
#: The header's line is shorter than this.
_MAX_HEADER_BYTES = 4096


@attrs.frozen
class RecoveredLog:
    """
    A log that is ready to be appended to.
    """

    file: DiskFile
    header: SegmentHeader
    scan: LogScan
    "Where the log ends, and in which session."
    index: HeaderIndex
    lines: LineIndex

    def fold(self, record: InstanceRecord, start: int, end: int) -> None:
        """
        Take in the next durable record, whose line begins and ends there.

        Raises:
            ValueError: It cannot follow the ones before it.
        """
        self.index.fold(record)
        if type(record) is InstanceRetired:
            self.lines.drop(record.instance)
        else:
            self.lines.add(record.instance, start, end)


def recover_log(disk: Disk, directory: Path, lock: StoreLock, now: float) -> RecoveredLog:
    """
    Return the log in *directory*, which is made if there is none.

    Raises:
        StoreCorruptedError: It is damaged. Nothing was changed.
        StoreVersionError: A newer release wrote it. Nothing was changed.
        StorageError: The directory holds something else.
        OSError: The disk failed.
    """
    path = directory / FIRST_SEGMENT
    if not has_log(disk, directory):
        if lock.has_noted_holder():
            # A new log would make everything that was acknowledged look as if it had never been.
            raise StoreCorruptedError(
                location=str(path),
                offset=0,
                problem="the log is missing, though there was one in this directory; restore it from a backup, or "
                "remove the lock file as well to begin a new store",
            )
        create_log(disk, directory, now)
    file = disk.open_file(path)
    try:
        log = _read(file, path)
        if log.scan.torn_batch_count:
            _keep_torn_tail(disk, path, log)
        if lock.is_marked():
            file = _copy(disk, directory, log)
            log = attrs.evolve(log, file=file)
            lock.clear_mark()
        else:
            _settle(log, lock)
            disk.sync_directory(directory)
    except BaseException:
        file.close()
        raise
    return log


def _read(file: DiskFile, path: Path) -> RecoveredLog:
    first = file.read_at(0, _MAX_HEADER_BYTES)
    first = first[: first.find(b"\n") + 1]
    header = decode_header(first, str(path))
    if header.segment != 1:
        raise StoreCorruptedError(
            location=str(path), offset=0, problem=f"the file says that it is number {header.segment}; {WAY_OUT}"
        )
    scan = LogScan(str(path), seed_of(header.store_id), len(first))
    log = RecoveredLog(file, header, scan, HeaderIndex(), LineIndex())
    offset = len(first)
    while chunk := file.read_at(offset, _CHUNK_BYTES):
        offset += len(chunk)
        for batch in scan.feed(chunk):
            for record, start, end in batch:
                if isinstance(record, StoreOpened | StoreClosed):
                    continue
                try:
                    log.fold(record, start, end)
                except ValueError as exc:
                    raise StoreCorruptedError(location=str(path), offset=start, problem=f"{exc}; {WAY_OUT}") from exc
    scan.finish()
    return log


def _settle(log: RecoveredLog, lock: StoreLock) -> None:
    """Cut off the torn tail, and make durable what is believed."""
    file, scan = log.file, log.scan
    try:
        if file.size() > scan.good_end:
            file.truncate(scan.good_end)
        if not scan.closed:
            # The process may have died in a sync that failed, before it could note that. Then the system shows the
            # last batch, takes it for written, and never would write it: so it is given to it once more.
            _copy_range(file, scan.last_batch_start, scan.good_end, file)
        file.sync()
    except OSError:
        with contextlib.suppress(OSError):
            lock.mark(FIRST_SEGMENT)
        raise


def _copy(disk: Disk, directory: Path, log: RecoveredLog) -> DiskFile:
    """Put a new file in the place of one whose bytes on the disk may differ from those that the system shows."""
    replace_log(disk, directory, lambda copy: _copy_range(log.file, 0, log.scan.good_end, copy))
    log.file.close()
    logger.warning(
        "%s: a sync or write had failed, so the log was copied to a new file (%d bytes)", directory, log.scan.good_end
    )
    return disk.open_file(directory / FIRST_SEGMENT)


def _keep_torn_tail(disk: Disk, path: Path, log: RecoveredLog) -> None:
    start, size = log.scan.good_end, log.file.size()
    kept = "nothing of it could be kept"
    try:
        name = _write_torn_file(disk, path, log.file, start, size)
        if name is not None:
            disk.sync_directory(path.parent)
            kept = f"kept in {name}"
    except OSError as exc:
        # Without a sync of each batch, the tail may hold what was acknowledged: it is not cut before it is kept.
        if log.scan.durability == "os":
            raise
        kept = f"{kept} ({exc})"
    logger.warning(
        "%s: cut off a torn tail at byte offset %d: %d bytes, %d batch(es), never acknowledged as durable; %s",
        path,
        start,
        size - start,
        log.scan.torn_batch_count,
        kept,
    )


def _write_torn_file(disk: Disk, path: Path, log: DiskFile, start: int, size: int) -> str | None:
    """Return the name of the file that has the torn tail now, or None if there are too many of them already."""
    names = disk.list_names(path.parent)
    for number in range(MAX_TORN_FILES):
        target = path.with_name(f"{path.name}{TORN_SUFFIX}" + (f".{number}" if number else ""))
        is_new = target.name not in names
        file = disk.open_file(target, create=is_new)
        try:
            if is_new:
                _copy_range(log, start, size, file, shift=start)
                file.sync()
            elif not _holds(file, log, start, size):
                continue
        except OSError:
            if is_new:
                with contextlib.suppress(OSError):
                    disk.remove(target)
            raise
        finally:
            file.close()
        return target.name
    return None


def _holds(file: DiskFile, log: DiskFile, start: int, size: int) -> bool:
    if file.size() != size - start:
        return False
    offsets = range(start, size, _CHUNK_BYTES)
    return all(file.read_at(at - start, _CHUNK_BYTES) == log.read_at(at, _CHUNK_BYTES) for at in offsets)


def _copy_range(source: DiskFile, start: int, end: int, target: DiskFile, *, shift: int = 0) -> None:
    """Write the bytes from *start* to *end* to *target*, at the same offsets less *shift*."""
    while start < end:
        chunk = source.read_at(start, min(_CHUNK_BYTES, end - start))
        if not chunk:
            raise OSError(errno.EIO, "the file is shorter than it was a moment ago")
        write_fully(target, start - shift, chunk)
        start += len(chunk)
