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
import stat
import sys
import threading
from pathlib import Path
from typing import Protocol
from weakref import WeakSet

import attrs

DIRECTORY_MODE = 0o700
FILE_MODE = 0o600

_WRITABLE = os.O_RDWR | os.O_NOFOLLOW
_READABLE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
#: What a file system answers that has no notion of syncing a directory.
_CANNOT_SYNC_DIRECTORY = frozenset((errno.EINVAL, errno.ENOTSUP))
#: What one answers that locks files only.
_CANNOT_LOCK_DIRECTORY = frozenset((errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS))


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

    def remove_directory(self, path: Path) -> None:
        """
        Remove the directory *path*, which must be empty.
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

    def open_to_read(self, path: Path) -> DiskFile:
        """
        Open a file for reading only. Nothing of it is changed, not even its mode; a pipe is not waited for.
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
        Lock the file *path*, which is created if missing, and the directory that it is in.

        The directory is locked as well because a lock file can be removed while it is locked, and another one be made
        and locked in its place; a directory cannot, as long as anything is in it. Until the lock is released, whatever
        is done here with a path in that directory is done in the locked one, whatever has become of the path.

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
    path: Path
    "What it was opened as, for errors to tell."

    def size(self) -> int:
        """
        Return the file's length in bytes.
        """
        # What each append calls does without ``_naming``.
        try:
            found = os.fstat(self.live_fd())
        except OSError as exc:
            exc.filename = str(self.path)
            raise
        if not found.st_nlink:
            # What is appended to it would be gone with its last descriptor.
            raise OSError(errno.ENOLCK, "the file was removed or replaced while it was open")
        return found.st_size

    def read_at(self, offset: int, size: int) -> bytes:
        """
        Return *size* bytes from *offset* on, fewer only at the end of the file.
        """
        parts: list[bytes] = []
        with _naming(self.path):
            while size > 0 and (part := os.pread(self.live_fd(), size, offset)):
                parts.append(part)
                offset += len(part)
                size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write_at(self, offset: int, chunk: bytes) -> int:
        """
        Write at *offset*, and return how many bytes were written.
        """
        try:
            return os.pwrite(self.live_fd(), chunk, offset)
        except OSError as exc:
            exc.filename = str(self.path)
            raise

    def sync(self) -> None:
        """
        Return when all that was written is on the disk, not only in the drive's own memory.
        """
        try:
            if sys.platform == "darwin":  # pragma: no cover - has no tests of its own
                _sync_drive(self.live_fd())
            else:
                os.fdatasync(self.live_fd())
        except OSError as exc:
            exc.filename = str(self.path)
            raise

    def truncate(self, size: int) -> None:
        """
        Cut the file to *size* bytes.
        """
        with _naming(self.path):
            os.ftruncate(self.live_fd(), size)

    def close(self) -> None:
        """
        Close the file. Does nothing if it is closed.
        """
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def live_fd(self) -> int:
        """
        Return its descriptor. ``OSError`` if it is closed.
        """
        if self.fd < 0:
            raise OSError(errno.EBADF, "the file is closed")
        return self.fd


def _sync_drive(fd: int) -> None:
    """Return when all of a file or directory is on the disk, not only in the drive's own memory."""
    if sys.platform == "darwin":  # pragma: no cover - has no tests of its own
        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        except OSError as exc:
            # A file system that cannot do it says so; any other failure is one of the disk.
            if exc.errno not in {errno.ENOTSUP, errno.ENOTTY, errno.EINVAL}:
                raise
        else:
            return
    os.fsync(fd)


_Identity = tuple[int, int]
"Device and inode."

#: The locks that this process holds, each by the identity of its directory and by that of its file. It belongs to the
#: process because the locks do: a forked child must let go of what it inherits.
_held_locks: dict[_Identity, RealLock] = {}
#: Held while a lock is taken, and while this process forks: a child never inherits a lock that is not yet noted above,
#: which it would keep when its parent dies. Reentrant, as a handler of a signal may fork.
_taking = threading.RLock()
_fork_hooks_are_set = False


@attrs.define(eq=False)
class RealLock:
    """
    A lock on a file of the operating system, and on the directory that it is in.
    """

    file: RealFile
    _directory: RealFile
    _path: Path
    identities: tuple[_Identity, _Identity]
    "Of the directory and of the file."
    _disk: RealDisk
    is_held: bool = True
    _name: str = attrs.field(init=False)
    "The path as text."

    def __attrs_post_init__(self) -> None:
        self._name = str(self._path)

    def check(self) -> None:
        """
        Make sure that the locked file is the one at its path.
        """
        try:
            found = _identity_of(os.stat(self._name))  # noqa: PTH116 - before each write: a text takes half the time
        except (FileNotFoundError, NotADirectoryError):
            found = None
        if not self.is_held or found != self.identities[1]:
            what = "there is no file" if found is None else "another file is"
            raise OSError(errno.ENOLCK, f"the lock is lost: {what} at its path")

    def release(self) -> None:
        """
        Unlock and close the file. Does nothing if the lock is not held.
        """
        if self.is_held:
            self.is_held = False
            for identity in self.identities:
                del _held_locks[identity]
            self._disk.forget_directory(self._path.parent)
            for file in (self.file, self._directory):
                # Closing alone would leave it locked while a child that is just being forked has a copy.
                fcntl.flock(file.fd, fcntl.LOCK_UN)
                file.close()

    def disable(self) -> None:
        """
        Let go of what a forked child inherited, so that its parent alone holds the lock.
        """
        self.is_held = False
        self._disk.close_all()


def _identity_of(found: os.stat_result) -> _Identity:
    return found.st_dev, found.st_ino


def _disable_in_child() -> None:
    for lock in set(_held_locks.values()):
        lock.disable()
    _held_locks.clear()
    _taking.release()


@attrs.define(eq=False)
class RealDisk:
    """
    The operating system's files.
    """

    _files: WeakSet[RealFile] = attrs.field(factory=WeakSet[RealFile], init=False)
    "Those that are open, among others."
    _locked: dict[Path, RealFile] = attrs.field(factory=dict[Path, RealFile], init=False)
    "The directories that are locked here, by their paths."

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

    def remove_directory(self, path: Path) -> None:
        """
        Remove the directory *path*, which must be empty.
        """
        path.rmdir()

    def restrict_directory(self, path: Path) -> None:
        """
        Make an existing directory readable by its owner only.
        """
        path.chmod(DIRECTORY_MODE)

    def list_names(self, path: Path) -> list[str]:
        """
        Return the names of what is in the directory *path*, sorted.
        """
        # A descriptor is no path for `pathlib`.
        return sorted(os.listdir(self._locked[path].live_fd() if path in self._locked else path))  # noqa: PTH208

    def open_file(self, path: Path, *, create: bool = False) -> RealFile:
        """
        Open a file for reading and writing. Its descriptor is not inherited by programs that are executed.
        """
        return self._open(path, os.O_CREAT | os.O_EXCL if create else 0)

    def open_to_read(self, path: Path) -> RealFile:
        """
        Open a file for reading only. Nothing of it is changed, not even its mode; a pipe is not waited for.
        """
        name, directory_fd = self._at(path)
        with _naming(path):
            file = self._keep(os.open(name, _READABLE, dir_fd=directory_fd), path)
            try:
                _check_kind(os.fstat(file.fd))
            except BaseException:
                file.close()
                raise
        return file

    def rename(self, source: Path, target: Path) -> None:
        """
        Give a file another name, in place of what has that name.
        """
        (old, old_fd), (new, new_fd) = self._at(source), self._at(target)
        with _naming(source):
            os.replace(old, new, src_dir_fd=old_fd, dst_dir_fd=new_fd)

    def remove(self, path: Path) -> None:
        """
        Remove a file.
        """
        name, fd = self._at(path)
        with _naming(path):
            os.unlink(name, dir_fd=fd)

    def sync_directory(self, path: Path) -> None:
        """
        Return when all that was created, renamed and removed in the directory *path* is so on the disk.
        """
        directory = self._locked.get(path)
        fd = os.open(path, os.O_RDONLY) if directory is None else directory.live_fd()
        try:
            _sync_drive(fd)
        except OSError as exc:
            if exc.errno not in _CANNOT_SYNC_DIRECTORY:
                raise
        finally:
            if directory is None:
                os.close(fd)

    def lock(self, path: Path) -> RealLock:
        """
        Lock the file *path*, which is created if missing, and its directory.
        """
        _set_fork_hooks()
        with _taking:
            if path.parent in self._locked:
                raise BlockingIOError(errno.EWOULDBLOCK, "locked by this process", str(path))
            while True:
                directory = self._keep(os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY), path.parent)
                file: RealFile | None = None
                try:
                    own = _take(directory, path)
                    file = self._open(path, os.O_CREAT, directory)
                    lock = self._lock(path, directory, own, file)
                except BaseException:
                    _close_both(file, directory)
                    raise
                if lock is not None:
                    return lock
                # Somebody put another file or directory at the path meanwhile: that one is to be locked.
                _close_both(file, directory)

    def forget_directory(self, path: Path) -> None:
        """
        Take paths in that directory by their whole length again: its lock is released.
        """
        del self._locked[path]

    def close_all(self) -> None:
        """
        Close every file that was opened here.
        """
        for file in self._files:
            file.close()

    def _lock(self, path: Path, directory: RealFile, own: _Identity, file: RealFile) -> RealLock | None:
        """Return the lock, or None if what is at the path has changed. The directory, known as *own*, is locked."""
        lock = RealLock(file, directory, path, (own, _take(file, path)), self)
        try:
            lock.check()
        except OSError:
            return None
        _held_locks.update(dict.fromkeys(lock.identities, lock))
        self._locked[path.parent] = directory
        return lock

    def _open(self, path: Path, flags: int, directory: RealFile | None = None) -> RealFile:
        name, directory_fd = self._at(path) if directory is None else (path.name, directory.live_fd())
        with _naming(path):
            file = self._keep(os.open(name, _WRITABLE | flags, FILE_MODE, dir_fd=directory_fd), path)
            try:
                found = os.fstat(file.fd)
                _check_kind(found)
                # What is locked may turn out to be another program's, unless it is empty.
                is_ours = not flags & os.O_CREAT or found.st_size == 0
                if is_ours and stat.S_IMODE(found.st_mode) != FILE_MODE:
                    # Whatever the umask took away, or somebody added. Of another user's file the mode is theirs.
                    with contextlib.suppress(PermissionError):
                        os.fchmod(file.fd, FILE_MODE)
            except BaseException:
                file.close()
                raise
        return file

    def _keep(self, fd: int, path: Path) -> RealFile:
        file = RealFile(fd, path)
        self._files.add(file)
        return file

    def _at(self, path: Path) -> tuple[str, int | None]:
        """Return what to call *path*, and the descriptor of the locked directory that it is called that in, if any."""
        directory = self._locked.get(path.parent)
        return (str(path), None) if directory is None else (path.name, directory.live_fd())


def _take(file: RealFile, path: Path) -> _Identity:
    """Lock an open file or directory, for *path* to be locked; return its identity."""
    found = os.fstat(file.fd)
    identity = _identity_of(found)
    # Some systems grant a process the same lock twice.
    if identity in _held_locks:
        raise BlockingIOError(errno.EWOULDBLOCK, "locked by this process", str(path))
    try:
        fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        # Then the lock file alone excludes others.
        if not stat.S_ISDIR(found.st_mode) or exc.errno not in _CANNOT_LOCK_DIRECTORY:
            raise
    return identity


def _check_kind(found: os.stat_result) -> None:
    """Refuse a directory, a pipe or a device in the place of a file."""
    if not stat.S_ISREG(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is no ordinary file")


def _close_both(file: RealFile | None, directory: RealFile) -> None:
    if file is not None:
        file.close()
    directory.close()


class _naming:  # noqa: N801 - used like a function
    """Has an error tell the whole path, not only the name within a locked directory."""

    __slots__ = ("_path",)

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> None:
        if isinstance(exc, OSError):
            exc.filename = str(self._path)


def _set_fork_hooks() -> None:
    """Have forked children disabled, from the first lock on: nothing is set up by an import."""
    global _fork_hooks_are_set  # noqa: PLW0603 - hooks cannot be taken back, so they are set once per process
    if not _fork_hooks_are_set:
        _fork_hooks_are_set = True
        os.register_at_fork(before=_taking.acquire, after_in_parent=_taking.release, after_in_child=_disable_in_child)
