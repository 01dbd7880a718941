"""
Opens a store's log: reads what it holds, cuts off what a crash left half-written, and makes the rest safe to append to.

Synchronous: called in a thread. Each step leaves a store that the next opener recovers alike, wherever it is cut short.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from functools import partial
from pathlib import Path

import attrs

from .._disk import Disk, DiskFile, write_fully
from .._errors import StoreCorruptedError
from .._segments import Chain
from ._checkpoint import any_checkpoint, read_checkpoint
from ._directory import (
    CHECKPOINT_NAME,
    TEMPORARY_SUFFIX,
    TornName,
    create_log,
    find_log,
    missing_log,
    put_in_place,
    remove_all,
    torn_files,
)
from ._files import CHUNK_BYTES
from ._lockfile import LOCK_NAME, StoreLock
from ._reading import LogReading, missing_segments, read_log

logger = logging.getLogger("memable")

#: So many torn tails are kept, of all segments, the newest; a disk that tears more needs attention, not space.
MAX_TORN_FILES = 10


@attrs.frozen
class RecoveredLog:
    """
    A log that is ready to be appended to.
    """

    file: DiskFile
    "The last segment's."
    reading: LogReading
    "What it says. The reader of the last segment knows where that ends."
    checkpoint_segment: int
    "The segment that the checkpoint begins in that was used; 0 if there was none."
    checkpoint_bytes: int
    "How long that is."
    is_closed_elsewhere: bool
    "Whether only the lock file says that the last session was closed in order: the next segment is to say so, too."


def recover_log(
    disk: Disk, directory: Path, lock: StoreLock, now: float, durability: str, *, store_id: str
) -> RecoveredLog:
    """
    Return the log in *directory*, which is made if there is none, with *store_id* for its id.

    Raises:
        StoreCorruptedError: It is damaged. Nothing was changed.
        StoreVersionError: A newer release wrote it. Nothing was changed.
        StorageError: The directory holds something else.
        OSError: The disk failed.
    """
    chain = find_log(disk, directory)
    was_there = bool(chain.current)
    if not was_there:
        if lock.has_noted_holder() or CHECKPOINT_NAME in disk.list_names(directory):
            raise missing_log(directory, (LOCK_NAME, CHECKPOINT_NAME))
        create_log(disk, directory, now, durability, store_id)
        chain = find_log(disk, directory)
    elif chain.current[-1].last < lock.noted_tail():
        raise missing_segments(directory, chain.current[-1].last + 1, lock.noted_tail())
    checkpoint = read_checkpoint(disk, directory, chain)
    used = (0, 0) if checkpoint is None else (checkpoint.segment, checkpoint.size)
    reading = read_log(disk, directory, chain, checkpoint)
    if checkpoint is None and reading.scan.torn_batch_count:
        _refuse_to_cut_what_was_durable(disk, directory, reading)
    scan = reading.scan
    # There may have been no room for the record that says so.
    is_closed_elsewhere = (
        not scan.closed and scan.torn_batch_count == 0 and lock.has_noted_closed(scan.session, scan.next_batch)
    )
    scan.closed = scan.closed or is_closed_elsewhere
    # Of a log that nothing was ever written to, the name itself may be gone after a power cut.
    is_sure = not lock.is_marked() and (bool(reading.scan.session) or not was_there)
    file = _make_writable(disk, lock, chain, reading, is_sure=is_sure)
    return RecoveredLog(file, reading, *used, is_closed_elsewhere)


def _refuse_to_cut_what_was_durable(disk: Disk, directory: Path, reading: LogReading) -> None:
    """What a checkpoint speaks of was durable, also if the checkpoint itself does not fit the log any more."""
    known = any_checkpoint(disk, directory)
    end = (reading.header.segment, reading.scan.good_end)
    if known is not None and known[0] == reading.header.store_id and known[1:] > end:
        raise StoreCorruptedError(
            location=str(reading.files.tail_path),
            offset=reading.scan.good_end,
            problem="batches behind are damaged or missing that were durable, as the checkpoint says; restore the "
            "store from a backup, run `memable repair`, or delete the file 'checkpoint' to have them cut off",
        )


def _make_writable(disk: Disk, lock: StoreLock, chain: Chain, reading: LogReading, *, is_sure: bool) -> DiskFile:
    directory, path = reading.files.directory, reading.files.tail_path
    file = disk.open_file(path)
    try:
        if reading.scan.torn_batch_count:
            _keep_torn_tail(disk, path, file, reading)
        if not is_sure:
            file = _copy(disk, path, file, reading)
            _rename_anew(disk, directory, chain)
            if lock.is_marked():
                lock.clear_mark()
        else:
            _settle(file, reading, lock)
            disk.sync_directory(directory)
        tail = reading.header.segment
        if lock.noted_tail() != tail:
            lock.note_tail(tail)
        _tidy(disk, directory, chain)
    except BaseException:
        file.close()
        raise
    return file


def _rename_anew(disk: Disk, directory: Path, chain: Chain) -> None:
    """Make sure of the names of those files for whose sake others are about to be removed."""
    for name in chain.current:
        if any(name.first <= other.first <= name.last for other in chain.superseded):
            path = directory / str(name)
            file = disk.open_to_read(path)
            try:
                put_in_place(disk, path, partial(_copy_range, file, 0, file.size()))
            finally:
                file.close()


def _tidy(disk: Disk, directory: Path, chain: Chain) -> None:
    """Remove what a crash has left. What stands for it is durable: the directory was synced."""
    temporary = [name for name in disk.list_names(directory) if name.endswith(TEMPORARY_SUFFIX)]
    remove_all(disk, [directory / name for name in (*map(str, chain.superseded), *temporary)])


def _settle(file: DiskFile, reading: LogReading, lock: StoreLock) -> None:
    """Cut off the torn tail, and make durable what is believed."""
    scan = reading.scan
    try:
        if file.size() > scan.good_end:
            file.truncate(scan.good_end)
        if not scan.closed and scan.last_batch_start:
            # The process may have died in a sync that failed, before it could note that. Then the system shows the
            # last batch, takes it for written, and never would write it: so it is given to it once more.
            _copy_range(file, scan.last_batch_start, scan.good_end, file)
        file.sync()
    except OSError:
        with contextlib.suppress(OSError):
            lock.mark(reading.files.tail_path.name)
        raise


def _copy(disk: Disk, path: Path, file: DiskFile, reading: LogReading) -> DiskFile:
    """Put a new file in the place of one whose bytes on the disk may differ from those that the system shows."""
    end = reading.scan.good_end
    put_in_place(disk, path, lambda copy: _copy_range(file, 0, end, copy))
    file.close()
    if reading.scan.session:
        logger.warning("%s: a sync or write had failed, so it was copied to a new file (%d bytes)", path, end)
    return disk.open_file(path)


def _keep_torn_tail(disk: Disk, path: Path, file: DiskFile, reading: LogReading) -> None:
    scan = reading.scan
    start, size = scan.good_end, file.size()
    try:
        kept = f"kept in {_write_torn_file(disk, path, file, start, size)}"
    except OSError as exc:
        # Without a sync of each batch, the tail may hold what was acknowledged: it is not cut before it is kept.
        if scan.durability == "os":
            raise
        kept = f"nothing of it could be kept ({exc})"
    logger.warning(
        "%s: cut off a torn tail at byte offset %d: %d bytes, %d batch(es), never acknowledged as durable; %s",
        path,
        start,
        size - start,
        scan.torn_batch_count,
        kept,
    )
    _remove_oldest_torn(disk, path.parent)


def _write_torn_file(disk: Disk, path: Path, log: DiskFile, start: int, size: int) -> str:
    """Return the name of the file that has the torn tail now: one that has it already, or a new one."""
    own = [found for found in torn_files(disk.list_names(path.parent)) if found.log == path.name]
    for found in own:
        file = disk.open_to_read(path.with_name(str(found)))
        try:
            if _holds(file, log, start, size):
                # Who put it there may have died before its name was durable.
                disk.sync_directory(path.parent)
                return str(found)
        finally:
            file.close()
    new = TornName(path.name, own[-1].number + 1 if own else 0)
    put_in_place(disk, path.with_name(str(new)), lambda copy: _copy_range(log, start, size, copy, shift=start))
    return str(new)


def _remove_oldest_torn(disk: Disk, directory: Path) -> None:
    for found in torn_files(disk.list_names(directory))[:-MAX_TORN_FILES]:
        path = directory / str(found)
        try:
            disk.remove(path)
        except OSError as exc:
            logger.warning("%s: this torn tail, the oldest, could not be removed (%s)", path, exc)
        else:
            logger.warning("%s: removed this torn tail, the oldest: %d are kept", path, MAX_TORN_FILES)


def _holds(file: DiskFile, log: DiskFile, start: int, size: int) -> bool:
    if file.size() != size - start:
        return False
    offsets = range(start, size, CHUNK_BYTES)
    return all(file.read_at(at - start, CHUNK_BYTES) == log.read_at(at, CHUNK_BYTES) for at in offsets)


def _copy_range(source: DiskFile, start: int, end: int, target: DiskFile, *, shift: int = 0) -> None:
    """Write the bytes from *start* to *end* to *target*, at the same offsets less *shift*."""
    while start < end:
        chunk = source.read_at(start, min(CHUNK_BYTES, end - start))
        if not chunk:
            raise OSError(errno.EIO, "the file is shorter than it was a moment ago")
        write_fully(target, start - shift, chunk)
        start += len(chunk)
