"""
The lock file: who has the store open, whether its log may differ from what the system shows of it, and how far it goes.

Its length is fixed and its text is overwritten in place, so that both can be noted on a full disk.

With the lock file its directory is locked, so no second opener gets in when somebody removes, replaces or links the
lock file, or moves the directory; and whoever holds the lock goes on working in the directory that it locked, until it
looks at its lock, before the next batch, and stops. One thing is not excluded: that the log's files are moved or linked
into another directory while they are open, without the lock file, and a store is opened there.
"""

from __future__ import annotations

import contextlib
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from zlib import crc32

import attrs

from .._disk import Disk, DiskFile, DiskLock, write_fully
from .._errors import StorageError, StoreLockedError
from .._json import JSON, dumps, loads

LOCK_NAME = "lock"

_HOLDER_BYTES = 384
_MARK_BYTES = 128
_LOG_BYTES = 128
_LOG_OFFSET = _HOLDER_BYTES + _MARK_BYTES
_SIZE = _LOG_OFFSET + _LOG_BYTES
#: A host's name is at most 253 characters long; a longer one, or one in need of escapes, is cut to fit.
_MAX_HOST_CHARS = 253
_BEGINNING = b'{"pid":'


@attrs.define(eq=False)
class StoreLock:
    """
    The lock that a store's opener holds.
    """

    _lock: DiskLock

    @property
    def is_held(self) -> bool:
        """
        Whether it was neither released nor left behind by a fork. Looks at no file.
        """
        return self._lock.is_held

    def check(self) -> None:
        """
        Make sure that nobody took the lock file away. ``OSError`` if somebody did.
        """
        self._lock.check()

    def note_holder(self, now: float) -> None:
        """
        Note that this process holds the lock. Only where there is a store: see ``take_lock``.
        """
        note = dumps(
            {
                "pid": os.getpid(),
                "host": socket.gethostname()[:_MAX_HOST_CHARS],
                "since": datetime.fromtimestamp(now, UTC).isoformat(),
            }
        )
        self._make_room()
        write_fully(self._lock.file, 0, _padded(note, _HOLDER_BYTES))

    def has_noted_holder(self) -> bool:
        """
        Whether anybody was noted here before, which is only done once there is a log, and that is durable.
        """
        return self._lock.file.size() >= _LOG_OFFSET

    def is_marked(self) -> bool:
        """
        Whether a sync or write of the log failed, and the log was not copied since.
        """
        return bool(self._lock.file.read_at(_HOLDER_BYTES, _MARK_BYTES).strip(b" \n\0"))

    def mark(self, log_name: str) -> None:
        """
        Note that what the system shows of a log may not be on the disk.

        The note is not synced: it need not last longer than what the system shows, which a power cut ends as well.
        """
        write_fully(self._lock.file, _HOLDER_BYTES, _padded(b'{"failed":%b}' % dumps(log_name), _MARK_BYTES))

    def clear_mark(self) -> None:
        """
        Note that the log was copied, and the copy is durable.
        """
        write_fully(self._lock.file, _HOLDER_BYTES, _padded(b"", _MARK_BYTES))

    def note_tail(self, segment: int) -> None:
        """
        Note which segment is the last one, once it is durable: if it is missing later, that is known.

        The note is not synced: an older one says less, but nothing wrong.
        """
        self._note_log({"tail": segment})

    def note_closed(self, segment: int, session: int, next_batch: int) -> None:
        """
        Note durably that a session was closed in order, for which the log had no room.
        """
        self._note_log({"tail": segment, "closed": session, "batch": next_batch})
        self._lock.file.sync()

    def noted_tail(self) -> int:
        """
        Return the number of the last segment, as noted; 0 if it is not known.
        """
        tail = self._noted_log().get("tail")
        return tail if isinstance(tail, int) else 0

    def has_noted_closed(self, session: int, next_batch: int) -> bool:
        """
        Whether it is noted that a session was closed in order, and nothing was written after.
        """
        noted = self._noted_log()
        return (noted.get("closed"), noted.get("batch")) == (session, next_batch)

    def notes(self) -> LogNotes:
        """
        Return all that is noted of the log.
        """
        noted = self._noted_log()
        session, batch = noted.get("closed"), noted.get("batch")
        return LogNotes(
            tail=self.noted_tail(),
            is_marked=self.is_marked(),
            has_holder=self.has_noted_holder(),
            closed=(session, batch) if isinstance(session, int) and isinstance(batch, int) else None,
        )

    def _make_room(self) -> None:
        """Give all notes their place on the disk: only then does it need no room to overwrite them."""
        file = self._lock.file
        if file.size() < _SIZE:
            known = file.read_at(0, _SIZE)
            notes = (known[:_HOLDER_BYTES], known[_HOLDER_BYTES:_LOG_OFFSET], known[_LOG_OFFSET:])
            sizes = (_HOLDER_BYTES, _MARK_BYTES, _LOG_BYTES)
            parts = [_padded(note.strip(b" \n\0"), size) for note, size in zip(notes, sizes, strict=True)]
            write_fully(file, 0, b"".join(parts))
            file.sync()

    def _note_log(self, note: dict[str, JSON]) -> None:
        self._make_room()
        text = dumps(note)
        write_fully(self._lock.file, _LOG_OFFSET, _padded(b"%08x %b" % (crc32(text), text), _LOG_BYTES))

    def _noted_log(self) -> dict[str, JSON]:
        """Return what was noted last. A power cut can leave anything of it."""
        stored, _, text = self._lock.file.read_at(_LOG_OFFSET, _LOG_BYTES).strip(b" \n\0").partition(b" ")
        if stored != b"%08x" % crc32(text):
            return {}
        note = loads(text)
        return note if isinstance(note, dict) else {}

    def let_go(self) -> None:
        """
        Let others open the store, and change nothing.
        """
        self._lock.release()

    def release(self) -> None:
        """
        Let others open the store.
        """
        if self._lock.is_held:
            # A stale note does no harm. Where none was made, none may be left: see take_lock.
            with contextlib.suppress(OSError):
                if self._lock.file.size():
                    write_fully(self._lock.file, 0, _padded(b"", _HOLDER_BYTES))
            self._lock.release()


def take_lock(disk: Disk, directory: Path, *, is_store: bool) -> StoreLock:
    """
    Lock the store in *directory*.

    Args:
        disk: Where it is.
        directory: Its path.
        is_store: Whether there is a store for sure. Then the lock file is one of memable's, whatever a power cut left
            in it.

    Raises:
        StoreLockedError: Another engine has the store open.
        StorageError: The lock file is not one of memable's.
        OSError: It cannot be locked.
    """
    path = directory / LOCK_NAME
    try:
        lock = disk.lock(path)
    except BlockingIOError as exc:
        raise _locked_error(disk, directory, path) from exc
    try:
        text = lock.file.read_at(0, _SIZE)
        if not is_store and text.strip(b" \n\0") and not text.startswith((_BEGINNING, b" ")):
            raise StorageError(
                location=str(path), problem="is no lock file of memable's; choose a directory of its own for the store"
            )
    except BaseException:
        lock.release()
        raise
    return StoreLock(lock)


@attrs.frozen
class LogNotes:
    """
    What a lock file says of the log.
    """

    tail: int = 0
    "Number of the last segment; 0 if it is not known."
    is_marked: bool = False
    "Whether a sync or write of the log failed, and the log was not copied since."
    has_holder: bool = False
    "Whether anybody was noted, which is only done once there is a log."
    closed: tuple[int, int] | None = None
    "A session that was closed in order and for which the log had no room, and the batch that was due then."


@attrs.frozen
class _NotLocked:
    """
    Stands for the lock where the file is only read.
    """

    file: DiskFile
    is_held: bool = False

    def check(self) -> None:
        """
        Do nothing.
        """

    def release(self) -> None:
        """
        Do nothing.
        """


def read_notes(disk: Disk, directory: Path) -> LogNotes:
    """
    Return what the lock file says, without locking it. It may say nothing, or be missing.

    Raises:
        OSError: It cannot be read.
    """
    try:
        file = disk.open_to_read(directory / LOCK_NAME)
    except FileNotFoundError:
        return LogNotes()
    try:
        return StoreLock(_NotLocked(file)).notes()
    finally:
        file.close()


def _padded(text: bytes, size: int) -> bytes:
    return text[: size - 1].ljust(size - 1) + b"\n"


def _locked_error(disk: Disk, directory: Path, path: Path) -> StoreLockedError:
    pid: int | None = None
    host: str | None = None
    holder = "another engine"
    try:
        file = disk.open_to_read(path)
        try:
            match loads(file.read_at(0, _HOLDER_BYTES)):
                case {"pid": int() as pid, "host": str() as host, "since": str() as since}:
                    holder = f"process {pid} on host {host!r}, since {since},"
                case _:
                    pass
        finally:
            file.close()
    except (OSError, ValueError):
        # Who it is, is a help; that it is locked is known without it.
        pass
    if pid == os.getpid() and host == socket.gethostname():
        holder = "another engine of this process"
    return StoreLockedError(
        location=str(directory), problem=f"{holder} has it open; close that one first", pid=pid, host=host
    )
