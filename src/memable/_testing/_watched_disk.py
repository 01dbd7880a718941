"""
A disk around another one that tells somebody of each call, before and after it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import attrs

from .._disk import Disk, DiskFile, DiskLock


@attrs.frozen
class Call:
    """
    A call of a disk, about to happen or over.
    """

    name: str
    when: Literal["before", "after"]
    file: DiskFile | None = None
    "For a call of a file: the file itself, unwatched."
    offset: int = 0
    "For a write: where."
    chunk: bytes = b""
    "For a write: what."


Watch = Callable[[Call], None]


@attrs.define(eq=False)
class WatchedDisk:
    """
    A disk that tells of each call that changes what is on it.
    """

    inner: Disk
    watch: Watch

    def make_directory(self, path: Path) -> bool:
        """
        Make a directory.
        """
        self.watch(Call("make_directory", "before"))
        made = self.inner.make_directory(path)
        self.watch(Call("make_directory", "after"))
        return made

    def remove_directory(self, path: Path) -> None:
        """
        Remove an empty directory.
        """
        self.watch(Call("remove_directory", "before"))
        self.inner.remove_directory(path)
        self.watch(Call("remove_directory", "after"))

    def restrict_directory(self, path: Path) -> None:
        """
        Make a directory its owner's.
        """
        self.inner.restrict_directory(path)

    def list_names(self, path: Path) -> list[str]:
        """
        Return the names in a directory.
        """
        return self.inner.list_names(path)

    def open_file(self, path: Path, *, create: bool = False) -> WatchedFile:
        """
        Open a file.
        """
        self.watch(Call("open", "before"))
        file = self.inner.open_file(path, create=create)
        self.watch(Call("open", "after"))
        return WatchedFile(file, self.watch)

    def open_to_read(self, path: Path) -> DiskFile:
        """
        Open a file, unwatched.
        """
        return self.inner.open_to_read(path)

    def rename(self, source: Path, target: Path) -> None:
        """
        Rename a file.
        """
        self.watch(Call("rename", "before"))
        self.inner.rename(source, target)
        self.watch(Call("rename", "after"))

    def remove(self, path: Path) -> None:
        """
        Remove a file.
        """
        self.watch(Call("remove", "before"))
        self.inner.remove(path)
        self.watch(Call("remove", "after"))

    def sync_directory(self, path: Path) -> None:
        """
        Make what was done in a directory durable.
        """
        self.watch(Call("sync_directory", "before"))
        self.inner.sync_directory(path)
        self.watch(Call("sync_directory", "after"))

    def lock(self, path: Path) -> WatchedLock:
        """
        Lock a file.
        """
        self.watch(Call("lock", "before"))
        lock = self.inner.lock(path)
        self.watch(Call("lock", "after"))
        return WatchedLock(lock, WatchedFile(lock.file, self.watch))


@attrs.define(eq=False)
class WatchedFile:
    """
    An open file of a watched disk.
    """

    inner: DiskFile
    watch: Watch

    def size(self) -> int:
        """
        Return the length in bytes.
        """
        return self.inner.size()

    def read_at(self, offset: int, size: int) -> bytes:
        """
        Return bytes from an offset on.
        """
        return self.inner.read_at(offset, size)

    def write_at(self, offset: int, chunk: bytes) -> int:
        """
        Write at an offset.
        """
        self.watch(Call("write", "before", self.inner, offset, chunk))
        written = self.inner.write_at(offset, chunk)
        self.watch(Call("write", "after", self.inner, offset, chunk))
        return written

    def sync(self) -> None:
        """
        Make what was written durable.
        """
        self.watch(Call("sync", "before", self.inner))
        self.inner.sync()
        self.watch(Call("sync", "after", self.inner))

    def truncate(self, size: int) -> None:
        """
        Cut the file.
        """
        self.watch(Call("truncate", "before", self.inner))
        self.inner.truncate(size)
        self.watch(Call("truncate", "after", self.inner))

    def close(self) -> None:
        """
        Close the file.
        """
        self.inner.close()


@attrs.define(eq=False)
class WatchedLock:
    """
    A lock of a watched disk.
    """

    inner: DiskLock
    file: WatchedFile

    @property
    def is_held(self) -> bool:
        """
        Whether it is held.
        """
        return self.inner.is_held

    def check(self) -> None:
        """
        Make sure that it still locks.
        """
        self.inner.check()

    def release(self) -> None:
        """
        Let go of it.
        """
        self.inner.release()
