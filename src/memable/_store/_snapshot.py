"""
Reads a store without its lock, beside a live engine or none. Changes nothing.

A batch that an engine is just writing looks like a torn tail, and is not believed yet. Files that an engine compacts
meanwhile are looked for again.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self, TypeVar

import attrs

from .._disk import Disk
from .._errors import StorageError, StoreCorruptedError
from .._records import InstanceRecord
from .._segments import Chain, chain_of
from ._checkpoint import read_checkpoint
from ._directory import CHECKPOINT_NAME, left_of_a_log, missing_log
from ._failures import storage_error
from ._files import LogFiles
from ._index import HeaderIndex
from ._lockfile import LOCK_NAME, LogNotes, read_notes
from ._reading import LogReading, missing_segments, read_log

T = TypeVar("T")

#: An engine compacts much less often than that while a log is read.
_MAX_TRIES = 20
#: What looks damaged so often in a row is.
_MAX_DAMAGED_TRIES = 2
#: What is said of a file that was removed while it was being read.
_MOVED = frozenset((errno.ENOENT, errno.ENOLCK))


@attrs.define(eq=False)
class StoreSnapshot:
    """
    What a store held when it was read.
    """

    _disk: Disk
    _directory: Path
    _reading: LogReading

    @property
    def location(self) -> str:
        """
        The store's directory.
        """
        return str(self._directory)

    @property
    def store_id(self) -> str:
        """
        The store's random id: 32 hexadecimal digits.
        """
        return self._reading.header.store_id

    @property
    def index(self) -> HeaderIndex:
        """
        The headers of its instances.
        """
        return self._reading.index

    @property
    def newest_at(self) -> float:
        """
        The latest time in any record.
        """
        return self._reading.scan.newest_at

    @property
    def session(self) -> int:
        """
        The newest session.
        """
        return self._reading.scan.session

    @property
    def is_closed(self) -> bool:
        """
        Whether that session was closed in order. It may also be going on.
        """
        return self._reading.scan.closed

    @property
    def torn_batch_count(self) -> int:
        """
        How many batches at the end are not whole: being written, or left so by a crash.
        """
        return self._reading.scan.torn_batch_count

    def __enter__(self) -> Self:
        """
        Return this snapshot.
        """
        return self

    def __exit__(self, *_exc_info: object) -> None:
        """
        Let go of what is open.
        """
        self.close()

    def close(self) -> None:
        """
        Let go of what is open: nothing, at present. Files are opened for each reading.
        """

    def load(self, number: int) -> list[InstanceRecord]:
        """
        Return the journal of an instance, oldest record first.

        Raises:
            KeyError: There is no such instance, or none any more.
            StorageError: It cannot be read.
        """
        spans = self.index.spans(number)
        try:
            records = _patiently(self._directory, lambda: self._read(number, spans))
        except StoreCorruptedError:
            # It may have been removed, or something of it forgotten, and that compacted away since.
            now = read_store(self._disk, self._directory)
            if now.index.has(number) and now.index.spans(number)[: len(spans)] == spans:
                raise
            return now.load(number)
        if len(records) < len(spans) and not read_store(self._disk, self._directory).index.has(number):
            # Of one that was removed, any lines may be gone.
            raise KeyError(number)
        return records

    def _read(self, number: int, spans: Sequence[int]) -> list[InstanceRecord]:
        chain = _chain(self._disk, self._directory)
        return LogFiles(self._disk, self._directory, self._reading.files.seed, chain.current).read_journal(
            number, spans
        )


def read_store(disk: Disk, directory: Path) -> StoreSnapshot:
    """
    Read the store in *directory*.

    Raises:
        StorageError: There is none, or it cannot be read.
        StoreCorruptedError: It is damaged, or its log or a part of that is missing.
        StoreVersionError: A newer release wrote it.
    """
    directory = directory.absolute()

    def read() -> LogReading:
        chain = _chain(disk, directory)
        return read_log(disk, directory, chain, read_checkpoint(disk, directory, chain))

    return StoreSnapshot(disk, directory, _patiently(directory, read))


def find_log_beside(disk: Disk, directory: Path) -> tuple[LogNotes, Chain]:
    """
    Return what the lock file of a store says, and where its log is, without the lock.

    Raises:
        StorageError: There is no store.
        StoreCorruptedError: There was one, and all of its log is gone.
        OSError: The directory cannot be read.
    """
    # Before the directory: what is noted has been there by then.
    notes = LogNotes()
    with contextlib.suppress(OSError):
        notes = read_notes(disk, directory)
    names = disk.list_names(directory)
    while (again := disk.list_names(directory)) != names:
        # A list that is made while files are renamed may lack some.
        names = again
    chain = chain_of(names)
    if not chain.current:
        left = left_of_a_log(names)
        if left or notes.has_holder or CHECKPOINT_NAME in names:
            raise missing_log(directory, left or (LOCK_NAME, CHECKPOINT_NAME))
        raise StorageError(
            location=str(directory), problem="there is no store; give the directory that the engine was opened with"
        )
    return notes, chain


def _chain(disk: Disk, directory: Path) -> Chain:
    notes, chain = find_log_beside(disk, directory)
    if chain.current[-1].last < notes.tail:
        raise missing_segments(directory, chain.current[-1].last + 1, notes.tail)
    return chain


def _patiently(directory: Path, read: Callable[[], T]) -> T:
    """Try again what failed because files were compacted meanwhile."""
    for tries in range(_MAX_TRIES):
        try:
            return read()
        except StoreCorruptedError:
            # Between two looks at the directory, files may have been compacted, or a segment begun.
            if tries >= _MAX_DAMAGED_TRIES:
                raise
        except OSError as exc:
            if exc.errno not in _MOVED or tries == _MAX_TRIES - 1 or exc.filename == str(directory):
                raise storage_error(str(exc.filename or directory), "reading", exc) from exc
    raise AssertionError("unreachable")
