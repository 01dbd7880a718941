"""
A disk whose names are believed only as long as no sync of their directory has failed.

The system reports a failed sync once, to whoever asks first, and forgets what it had failed to write: another sync, of
another thread or a moment later, then succeeds, and means nothing. So only one is under way at a time, and after one
that failed no name is given and no sync is asked for any more.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from pathlib import Path

import attrs

from .._disk import Disk, DiskFile, DiskLock
from ._failures import UnsettledRenameError
from ._lockfile import StoreLock


@attrs.define(eq=False)
class SettlingDisk:
    """
    What one open store uses of a disk. Used by several threads.
    """

    _disk: Disk
    guard: StoreLock | None = None
    "Once it is held: what a failure is noted in."
    _mutex: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _has_failed: bool = attrs.field(default=False, init=False)

    def sync_directory(self, path: Path) -> None:
        """
        Return when all that was created, renamed and removed in the directory *path* is so on the disk.

        Raises:
            UnsettledRenameError: It failed, now or earlier.
        """
        with self._mutex:
            self._refuse_after_failure(path)
            try:
                self._disk.sync_directory(path)
            except PermissionError:
                # It was not even asked.
                raise
            except OSError as exc:
                self._has_failed = True
                self._note_failure()
                raise UnsettledRenameError(exc.errno, exc.strerror, str(path)) from exc

    def rename(self, source: Path, target: Path) -> None:
        """
        Give a file another name, in place of what has that name.
        """
        self._refuse_after_failure(target.parent)
        self._disk.rename(source, target)

    def _refuse_after_failure(self, path: Path) -> None:
        if self._has_failed:
            raise UnsettledRenameError(errno.EIO, "an earlier sync of the directory failed", str(path))

    def _note_failure(self) -> None:
        # A store that nobody was noted in holds nothing yet, and its next opener makes its names anew in any case.
        with contextlib.suppress(OSError):
            if self.guard is not None and self.guard.has_noted_holder():
                self.guard.mark("the directory")

    # The rest is the disk's ------------------------------------------------------------------------------------------

    def make_directory(self, path: Path) -> bool:
        """
        Make the directory *path*, readable by its owner only. Returns False if there is one already.
        """
        return self._disk.make_directory(path)

    def remove_directory(self, path: Path) -> None:
        """
        Remove the directory *path*, which must be empty.
        """
        self._disk.remove_directory(path)

    def restrict_directory(self, path: Path) -> None:
        """
        Make an existing directory readable by its owner only.
        """
        self._disk.restrict_directory(path)

    def list_names(self, path: Path) -> list[str]:
        """
        Return the names of what is in the directory *path*, sorted.
        """
        return self._disk.list_names(path)

    def open_file(self, path: Path, *, create: bool = False) -> DiskFile:
        """
        Open a file for reading and writing.
        """
        return self._disk.open_file(path, create=create)

    def open_to_read(self, path: Path) -> DiskFile:
        """
        Open a file for reading only.
        """
        return self._disk.open_to_read(path)

    def remove(self, path: Path) -> None:
        """
        Remove a file.
        """
        self._disk.remove(path)

    def lock(self, path: Path) -> DiskLock:
        """
        Lock the file *path*, which is created if missing.
        """
        return self._disk.lock(path)
