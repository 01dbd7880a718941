"""
The lock file: who has the store open, and whether a log in it may differ from what the system shows of it.

Its length is fixed and its text is overwritten in place, so that both can be noted on a full disk.
"""

from __future__ import annotations

import contextlib
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

import attrs

from .._disk import Disk, DiskLock, write_fully
from .._errors import StorageError, StoreLockedError
from .._json import dumps, loads

LOCK_NAME = "lock"

_HOLDER_BYTES = 384
_MARK_BYTES = 128
_SIZE = _HOLDER_BYTES + _MARK_BYTES
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
        file = self._lock.file
        note = dumps(
            {
                "pid": os.getpid(),
                "host": socket.gethostname()[:_MAX_HOST_CHARS],
                "since": datetime.fromtimestamp(now, UTC).isoformat(),
            }
        )
        has_room = file.size() >= _SIZE
        write_fully(file, 0, _padded(note, _HOLDER_BYTES))
        if not has_room:
            # Overwriting needs no room on the disk only once these bytes have theirs.
            write_fully(file, _HOLDER_BYTES, _padded(b"", _MARK_BYTES))
            file.sync()

    def has_noted_holder(self) -> bool:
        """
        Whether anybody was noted here before, which is only done once there is a log, and that is durable.
        """
        return self._lock.file.size() >= _SIZE

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


def _padded(text: bytes, size: int) -> bytes:
    return text[: size - 1].ljust(size - 1) + b"\n"


def _locked_error(disk: Disk, directory: Path, path: Path) -> StoreLockedError:
    pid: int | None = None
    host: str | None = None
    holder = "another engine"
    try:
        file = disk.open_file(path)
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
