"""
The only module that touches files: a small synchronous interface, and the real disk behind it.

Nothing is decided here. An ``OSError`` passes through; the store knows what it means. The simulated disk of the tests
has the same interface.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
from pathlib import Path
from typing import Protocol

import attrs

DIRECTORY_MODE = 0o700
FILE_MODE = 0o600

_WRITABLE = os.O_RDWR | os.O_NOFOLLOW
#: What a file system answers that has no notion of syncing a directory.
_CANNOT_SYNC_DIRECTORY = frozenset((errno.EINVAL, errno.ENOTSUP))


class DiskFile(Protocol):
    """
    An open file.
    """

    def size(self) -> int:
        """
        Return the file's length in bytes.
        """
        ...

    def read_at(self, offset: int, size: int) -> bytes:
        """
        Return *size* bytes from *offset* on, fewer only at the end of the file.
        """
        ...

    def write_at(self, offset: int, chunk: bytes) -> int:
        """
        Write at *offset*, and return how many bytes were written: it may be fewer than given. See ``write_fully``.
        """
        ...

    def sync(self) -> None:
        """
        Return when all that was written is on the disk.
        """
        ...

    def truncate(self, size: int) -> None:
        """
        Cut the file to *size* bytes.
        """
        ...

    def close(self) -> None:
        """
        Close the file. Does nothing if it is closed.
        """
        ...


class DiskLock(Protocol):
    """
    A lock that is held until it is released or its process dies.
    """

    @property
    def file(self) -> DiskFile:
        """
        The locked file.
        """
        ...

    @property
    def is_held(self) -> bool:
        """
        Whether it was neither released nor left behind by a fork. Looks at no file.
        """
        ...

    def check(self) -> None:
        """
        Make sure that the lock still locks: that the locked file is the one at its path.

        Raises:
            OSError: It does not.
        """
        ...

    def release(self) -> None:
        """
        Unlock and close the file, which stays where it is. Does nothing if the lock is not held.
        """
        ...


class Disk(Protocol):
    """
    What a file store needs of a disk.
    """

    def make_directory(self, path: Path) -> bool:
        """
        Make the directory *path*, readable by its owner only. Returns False if there is one already.
        """
        ...

    def restrict_directory(self, path: Path) -> None:
        """
        Make an existing directory readable by its owner only.
        """
        ...

    def list_names(self, path: Path) -> list[str]:
        """
        Return the names of what is in the directory *path*, sorted.
        """
        ...

    def open_file(self, path: Path, *, create: bool = False) -> DiskFile:
        """
        Open a file for reading and writing.

        Args:
            path: Where it is.
            create: Whether to make it, readable by its owner only. ``FileExistsError`` if there is one.
        """
        ...

    def rename(self, source: Path, target: Path) -> None:
        """
        Give a file another name, in place of what has that name.
        """
        ...

    def remove(self, path: Path) -> None:
        """
        Remove a file.
        """
        ...

    def sync_directory(self, path: Path) -> None:
        """
        Return when all that was created, renamed and removed in the directory *path* is so on the disk.
        """
        ...

    def lock(self, path: Path) -> DiskLock:
        """
        Lock the file *path*, which is created if missing.

        Raises:
            BlockingIOError: Somebody else holds it, in this process or another.
        """
        ...


def write_fully(file: DiskFile, offset: int, chunk: bytes) -> None:
    """
    Write all of *chunk* at *offset*: a disk may take less at a time, without saying why.
    """
    while written := file.write_at(offset, chunk):
        if written == len(chunk):
            return
        offset += written
        chunk = chunk[written:]
    if chunk:
        raise OSError(errno.EIO, "the disk took no more bytes, and gave no reason")


@attrs.define(eq=False)
class RealFile:
    """
    An open file of the operating system.
    """

    fd: int
    "Its descriptor, or -1 once it is closed."

    def size(self) -> int:
        """
        Return the file's length in bytes.
        """
        found = os.fstat(self._live())
        if not found.st_nlink:
            # What is appended to it would be gone with its last descriptor.
            raise OSError(errno.ENOLCK, "the file was removed or replaced while it was open")
        return found.st_size

    def read_at(self, offset: int, size: int) -> bytes:
        """
        Return *size* bytes from *offset* on, fewer only at the end of the file.
        """
        parts: list[bytes] = []
        while size > 0 and (part := os.pread(self._live(), size, offset)):
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write_at(self, offset: int, chunk: bytes) -> int:
        """
        Write at *offset*, and return how many bytes were written.
        """
        return os.pwrite(self._live(), chunk, offset)

    def sync(self) -> None:
        """
        Return when all that was written is on the disk, not only in the drive's own memory.
        """
        if sys.platform == "darwin":  # pragma: no cover - has no tests of its own
            try:
                fcntl.fcntl(self._live(), fcntl.F_FULLFSYNC)
            except OSError as exc:
                # A file system that cannot do it says so; any other failure is one of the disk.
                if exc.errno not in {errno.ENOTSUP, errno.ENOTTY, errno.EINVAL}:
                    raise
                os.fsync(self._live())
        else:
            os.fdatasync(self._live())

    def truncate(self, size: int) -> None:
        """
        Cut the file to *size* bytes.
        """
        os.ftruncate(self._live(), size)

    def close(self) -> None:
        """
        Close the file. Does nothing if it is closed.
        """
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def _live(self) -> int:
        if self.fd < 0:
            raise OSError(errno.EBADF, "the file is closed")
        return self.fd


#: The locks that this process holds, by device and inode of the locked file. It belongs to the process because the
#: locks do: some systems grant a process the same lock twice, and a forked child must let go of what it inherits.
_held_locks: dict[tuple[int, int], RealLock] = {}
_fork_hook_is_set = False


@attrs.define(eq=False)
class RealLock:
    """
    A lock on a file of the operating system.
    """

    file: RealFile
    _path: Path
    _identity: tuple[int, int]
    _disk: RealDisk
    is_held: bool = True

    def check(self) -> None:
        """
        Make sure that the locked file is the one at its path.
        """
        found = self._path.stat()
        if not self.is_held or (found.st_dev, found.st_ino) != self._identity:
            raise OSError(errno.ENOLCK, "the lock is lost: another file is at its path")

    def release(self) -> None:
        """
        Unlock and close the file. Does nothing if the lock is not held.
        """
        if self.is_held:
            self.is_held = False
            del _held_locks[self._identity]
            # Closing alone would leave it locked while a child that is just being forked has a copy.
            fcntl.flock(self.file.fd, fcntl.LOCK_UN)
            self.file.close()

    def disable(self) -> None:
        """
        Let go of what a forked child inherited, so that its parent alone holds the lock.
        """
        self.is_held = False
        self._disk.close_all()


def _disable_in_child() -> None:
    for lock in list(_held_locks.values()):
        lock.disable()
    _held_locks.clear()


@attrs.define(eq=False)
class RealDisk:
    """
    The operating system's files.
    """

    _files: list[RealFile] = attrs.field(factory=list[RealFile], init=False)

    def make_directory(self, path: Path) -> bool:
        """
        Make the directory *path*, readable by its owner only. Returns False if there is one already.
        """
        try:
            path.mkdir(DIRECTORY_MODE)
        except FileExistsError:
            return False
        # Whatever the umask took away.
        path.chmod(DIRECTORY_MODE)
        return True

    def restrict_directory(self, path: Path) -> None:
        """
        Make an existing directory readable by its owner only.
        """
        path.chmod(DIRECTORY_MODE)

    def list_names(self, path: Path) -> list[str]:
        """
        Return the names of what is in the directory *path*, sorted.
        """
        return sorted(entry.name for entry in path.iterdir())

    def open_file(self, path: Path, *, create: bool = False) -> RealFile:
        """
        Open a file for reading and writing. Its descriptor is not inherited by programs that are executed.
        """
        if not create:
            # Whatever somebody added since it was made. Of another user's file the mode is theirs to choose.
            with contextlib.suppress(PermissionError):
                path.chmod(FILE_MODE)
        return self._open(path, os.O_CREAT | os.O_EXCL if create else 0)

    def rename(self, source: Path, target: Path) -> None:
        """
        Give a file another name, in place of what has that name.
        """
        source.replace(target)

    def remove(self, path: Path) -> None:
        """
        Remove a file.
        """
        path.unlink()

    def sync_directory(self, path: Path) -> None:
        """
        Return when all that was created, renamed and removed in the directory *path* is so on the disk.
        """
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        except OSError as exc:
            if exc.errno not in _CANNOT_SYNC_DIRECTORY:
                raise
        finally:
            os.close(fd)

    def lock(self, path: Path) -> RealLock:
        """
        Lock the file *path*, which is created if missing.
        """
        _set_fork_hook()
        while True:
            file = self._open(path, os.O_CREAT)
            try:
                lock = self._lock(path, file)
            except BaseException:
                file.close()
                raise
            if lock is not None:
                return lock
            # Somebody put another file at the path meanwhile: that one is to be locked.
            file.close()

    def close_all(self) -> None:
        """
        Close every file that was opened here.
        """
        for file in self._files:
            file.close()
        self._files.clear()

    def _lock(self, path: Path, file: RealFile) -> RealLock | None:
        found = os.fstat(file.fd)
        identity = (found.st_dev, found.st_ino)
        if identity in _held_locks:
            raise BlockingIOError(errno.EWOULDBLOCK, "locked by this process", str(path))
        fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock = RealLock(file, path, identity, self)
        try:
            lock.check()
        except OSError:
            return None
        _held_locks[identity] = lock
        return lock

    def _open(self, path: Path, flags: int) -> RealFile:
        fd = os.open(path, _WRITABLE | flags, FILE_MODE)
        file = RealFile(fd)
        try:
            if flags & os.O_CREAT and os.fstat(fd).st_size == 0:
                # Whatever the umask took away.
                os.fchmod(fd, FILE_MODE)
        except BaseException:
            file.close()
            raise
        self._files.append(file)
        return file


def _set_fork_hook() -> None:
    """Have forked children disabled, from the first lock on: nothing is set up by an import."""
    global _fork_hook_is_set  # noqa: PLW0603 - a hook cannot be taken back, so it is set once per process
    if not _fork_hook_is_set:
        os.register_at_fork(after_in_child=_disable_in_child)
        _fork_hook_is_set = True
