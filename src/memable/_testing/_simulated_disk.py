"""
A disk in memory that can fail, and that loses at a power cut what a real one may lose.

Its model. Each file has what is on the disk and what the system shows; writes and cuts between two syncs wait in order.
At a power cut any number of them, from the first on, have reached the disk; each sector (512 bytes) of a write that had
not been synced is as written, as before, zeroed or scrambled. Bytes that a write did not touch, or overwrote with the
same, keep their value. Creations, renames and removals wait in their directory until that is synced; at a power cut any
number of them, from the first on, have happened; a directory that is lost takes with it what is in it. A sync that
fails has dropped what waited, of a file or of a directory: the system goes on showing it, and never writes it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

SECTOR_BYTES = 512

Choose = Callable[[int], int]
"Given n, chooses a number from 0 to n - 1. 0 is always the greatest loss, n - 1 none."


def lose_all(count: int) -> int:
    """
    Choose the greatest loss: nothing that was not synced has reached the disk.
    """
    return 0


def lose_nothing(count: int) -> int:
    """
    Choose no loss: all that was written has reached the disk.
    """
    return count - 1


class PowerCutError(OSError):
    """
    The power was cut, or the process killed, before or in this call.
    """

    def __init__(self) -> None:
        super().__init__(errno.EIO, "the power was cut")


@attrs.define(eq=False)
class _Inode:
    """What a file is, under whatever name."""

    stored: bytes = b""
    "What is on the disk."
    shown: bytearray = attrs.field(factory=bytearray)
    "What the system shows."
    waiting: list[tuple[int, bytes | None]] = attrs.field(factory=list)
    "What was done since the last sync: an offset with bytes written there, or with None: cut there."

    def write(self, offset: int, chunk: bytes) -> None:
        self.waiting.append((offset, chunk))
        _put(self.shown, offset, chunk)

    def truncate(self, size: int) -> None:
        self.waiting.append((size, None))
        del self.shown[size:]
        self.shown.extend(bytes(size - len(self.shown)))

    def sync(self) -> None:
        stored = bytearray(self.stored)
        for offset, chunk in self.waiting:
            _redo(stored, offset, chunk)
        self.stored = bytes(stored)
        self.waiting.clear()

    def copy(self) -> _Inode:
        return _Inode(self.stored, bytearray(self.shown), list(self.waiting))

    def after_power_cut(self, choose: Choose) -> _Inode:
        stored = bytearray(self.stored)
        for offset, chunk in self.waiting[: choose(len(self.waiting) + 1)]:
            before = bytes(stored)
            _redo(stored, offset, chunk)
            # Four in five writes are whole: with more damage hardly a longer log would survive.
            if chunk is not None and choose(5) == 0:
                _damage(stored, before, offset, offset + len(chunk), choose)
        return _Inode(bytes(stored), bytearray(stored))


def _put(content: bytearray, offset: int, chunk: bytes) -> None:
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(chunk)] = chunk


def _redo(content: bytearray, offset: int, chunk: bytes | None) -> None:
    if chunk is None:
        del content[offset:]
        content.extend(bytes(offset - len(content)))
    else:
        _put(content, offset, chunk)


def _damage(content: bytearray, before: bytes, start: int, end: int, choose: Choose) -> None:
    for sector in range(start // SECTOR_BYTES, (end - 1) // SECTOR_BYTES + 1):
        low, high = max(start, sector * SECTOR_BYTES), min(end, (sector + 1) * SECTOR_BYTES)
        old = before[low:high].ljust(high - low, b"\0")
        if content[low:high] == old:
            continue
        match choose(4):
            case 0:
                content[low:high] = old
            case 1:
                content[low:high] = bytes(high - low)
            case 2:
                content[low:high] = bytes((7 * at + 131) % 256 for at in range(low, high))
            case _:
                pass


@attrs.frozen
class Fault:
    """
    What a call does instead of its work.
    """

    errno: int
    "The error that it fails with."
    after_bytes: int = 0
    "For a write: how many bytes are written before it fails. Then the call returns, and the next one fails."
    is_silent: bool = False
    "For a sync: whether it does nothing, and says that it has."


@attrs.define(eq=False)
class SimulatedDisk:
    """
    The disk. An object of this class is one span of power: after a cut it raises, and another one goes on.
    """

    faults: dict[int, Fault] = attrs.field(factory=dict)
    "By the number of the call, from 0, or with -1 for each write from now on."
    cut_at: int | None = None
    "The number of the call in whose stead the power is cut."
    max_write_bytes: int | None = None
    "A write takes no more than this at once."
    calls: list[str] = attrs.field(factory=list)
    "What was called so far."
    directories: set[Path] = attrs.field(factory=lambda: {Path("/")})
    "What directories the system shows."
    new_directories: set[Path] = attrs.field(factory=set)
    "Those that are lost at a power cut, with all that is in them, until their parent is synced."
    forgotten_directories: set[Path] = attrs.field(factory=set)
    "Of those, the ones whose parent could not be synced: no later sync helps them."
    shown: dict[Path, _Inode] = attrs.field(factory=dict)
    "What the system shows under each path."
    stored: dict[Path, _Inode] = attrs.field(factory=dict)
    "What is under each path on the disk."
    waiting: list[tuple[Path, str, Path, _Inode | None]] = attrs.field(factory=list)
    "Directory, what was done in it, under which name, and with which file, since it was synced."
    locked: dict[Path, SimulatedLock] = attrs.field(factory=dict)
    is_off: bool = False
    is_lying: bool = False
    "Whether a sync of a file does nothing, and says that it has."
    on_cut: Callable[[str], object] | None = None
    "Is told the call in whose stead the power is cut, while all still stands as it is."
    on_sync: Callable[[Path], object] | None = None
    "Is told the path of each file that was synced."
    on_call: Callable[[str], Fault | None] | None = None
    "Is told each call that no other fault is meant for, and chooses one."

    # What happens to a disk ----------------------------------------------------------------------------------------

    def power_cut(self, choose: Choose = lose_all) -> SimulatedDisk:
        """
        Cut the power; return the disk as it is found after.
        """
        self.is_off = True
        kept = dict(self.stored)
        for directory in {entry[0] for entry in self.waiting}:
            changes = [entry for entry in self.waiting if entry[0] == directory]
            _apply(kept, changes[: choose(len(changes) + 1)])
        lost = {path for path in sorted(self.new_directories) if choose(2) == 0}
        survivors = {path: inode.after_power_cut(choose) for path, inode in kept.items() if path.parent not in lost}
        return SimulatedDisk(directories=self.directories - lost, shown=dict(survivors), stored=survivors)

    def kill(self) -> SimulatedDisk:
        """
        Kill the process; return the disk as the next process finds it: the system lost nothing.
        """
        self.is_off = True
        return SimulatedDisk(
            directories=self.directories,
            new_directories=self.new_directories,
            forgotten_directories=self.forgotten_directories,
            shown=self.shown,
            stored=self.stored,
            waiting=self.waiting,
        )

    def copy(self) -> SimulatedDisk:
        """
        Return another disk that is like this one, and counts its calls from 0.
        """
        copies: dict[_Inode | None, _Inode | None] = {None: None}

        def copied(inode: _Inode | None) -> Any:
            if inode not in copies:
                assert inode is not None
                copies[inode] = inode.copy()
            return copies[inode]

        return SimulatedDisk(
            directories=set(self.directories),
            new_directories=set(self.new_directories),
            forgotten_directories=set(self.forgotten_directories),
            shown={path: copied(inode) for path, inode in self.shown.items()},
            stored={path: copied(inode) for path, inode in self.stored.items()},
            waiting=[(directory, what, path, copied(inode)) for directory, what, path, inode in self.waiting],
        )

    @classmethod
    def holding(cls, files: dict[Path, bytes]) -> SimulatedDisk:
        """
        Return a disk with these files on it, durable.
        """
        stored = {path: _Inode(content, bytearray(content)) for path, content in files.items()}
        return cls(directories={Path("/"), *(path.parent for path in files)}, shown=dict(stored), stored=stored)

    def content(self, path: Path) -> bytes:
        """
        Return what the system shows of a file.
        """
        return bytes(self.shown[path].shown)

    def path_of(self, file: SimulatedFile) -> Path:
        """
        Return the path under which the system shows an open file.

        Raises:
            KeyError: It was removed.
        """
        for path, inode in self.shown.items():
            if inode is file.inode:
                return path
        raise KeyError("the file was removed")

    # The interface of a disk ---------------------------------------------------------------------------------------

    def make_directory(self, path: Path) -> bool:
        """
        Make a directory. Returns False if there is one.
        """
        self.call("make_directory")
        if path in self.directories or path in self.shown:
            return False
        if path.parent not in self.directories:
            raise FileNotFoundError(errno.ENOENT, "no such directory", str(path))
        self.directories.add(path)
        self.new_directories.add(path)
        return True

    def restrict_directory(self, path: Path) -> None:  # noqa: ARG002 - it has one user
        """
        Do nothing: there are no other users.
        """
        self.call("restrict_directory")

    def list_names(self, path: Path) -> list[str]:
        """
        Return the names of the files in a directory, sorted.
        """
        self.call("list_names")
        if path not in self.directories:
            raise NotADirectoryError(errno.ENOTDIR, "not a directory", str(path))
        # By their texts: paths are slow to take apart.
        start = f"{path}/"
        return sorted(
            name
            for found in self.shown
            if (text := str(found)).startswith(start) and "/" not in (name := text[len(start) :])
        )

    def open_file(self, path: Path, *, create: bool = False) -> SimulatedFile:
        """
        Open a file, or make a new one.
        """
        self.call("create" if create else "open")
        if create:
            if path in self.shown:
                raise FileExistsError(errno.EEXIST, "file exists", str(path))
            self.change("link", path, _Inode())
        if path not in self.shown:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return SimulatedFile(self, self.shown[path])

    def open_to_read(self, path: Path) -> SimulatedFile:
        """
        Open a file.
        """
        return self.open_file(path)

    def rename(self, source: Path, target: Path) -> None:
        """
        Rename a file; replaces what has that name.
        """
        self.call("rename")
        # One change: a rename happens as a whole.
        self.waiting.append((source.parent, f"rename {source.name}", target, self.shown[source]))
        self.shown[target] = self.shown.pop(source)

    def remove(self, path: Path) -> None:
        """
        Remove a file.
        """
        self.call("remove")
        if path not in self.shown:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        self.change("unlink", path, None)

    def remove_directory(self, path: Path) -> None:
        """
        Remove an empty directory.
        """
        self.call("remove_directory")
        if any(found.parent == path for found in self.shown):
            raise OSError(errno.ENOTEMPTY, "directory not empty", str(path))
        self.directories.discard(path)
        self.new_directories.discard(path)
        self.forgotten_directories.discard(path)

    def sync_directory(self, path: Path) -> None:
        """
        Make what was created, renamed and removed in a directory durable.
        """
        try:
            fault = self.call("sync_directory")
        except PowerCutError:
            raise
        except OSError:
            # The system goes on showing what it has failed to write, and never writes it.
            self.waiting[:] = [entry for entry in self.waiting if entry[0] != path]
            self.forgotten_directories |= {made for made in self.new_directories if made.parent == path}
            raise
        if fault is not None:
            return
        synced = {made for made in self.new_directories if made.parent == path}
        self.new_directories -= synced - self.forgotten_directories
        _apply(self.stored, [entry for entry in self.waiting if entry[0] == path])
        self.waiting[:] = [entry for entry in self.waiting if entry[0] != path]

    def lock(self, path: Path) -> SimulatedLock:
        """
        Lock a file, which is made if it is missing.
        """
        self.call("lock")
        if path in self.locked:
            raise BlockingIOError(errno.EWOULDBLOCK, "locked", str(path))
        if path not in self.shown:
            self.change("link", path, _Inode())
        lock = SimulatedLock(self, path, self.shown[path])
        self.locked[path] = lock
        return lock

    # What its files and locks need ---------------------------------------------------------------------------------

    def change(self, what: str, path: Path, inode: _Inode | None) -> None:
        """
        Do something in a directory that waits for its sync.
        """
        self.waiting.append((path.parent, what, path, inode))
        if inode is None:
            del self.shown[path]
        else:
            self.shown[path] = inode

    def call(self, name: str) -> Fault | None:
        """
        Count a call. Raises if it fails; returns a fault that lets it do part of its work.
        """
        if self.is_off:
            raise PowerCutError
        number = len(self.calls)
        self.calls.append(name)
        if number == self.cut_at:
            if self.on_cut is not None:
                self.on_cut(name)
            self.is_off = True
            raise PowerCutError
        fault = self.faults.get(number) or (self.faults.get(-1) if name == "write" else None)
        if fault is None and self.on_call is not None:
            fault = self.on_call(name)
        if fault is None or fault.is_silent or (name == "write" and fault.after_bytes) or name == "sync":
            return fault
        raise OSError(fault.errno, os.strerror(fault.errno))


def _apply(names: dict[Path, _Inode], changes: list[tuple[Path, str, Path, _Inode | None]]) -> None:
    for directory, what, path, inode in changes:
        if what.startswith("rename "):
            names.pop(directory / what.removeprefix("rename "), None)
        if inode is None:
            names.pop(path, None)
        else:
            names[path] = inode


@attrs.define(eq=False)
class SimulatedFile:
    """
    An open file of a simulated disk.
    """

    disk: SimulatedDisk
    inode: _Inode
    is_open: bool = True
    fails_next: int | None = None
    "The error of the next write, after a short one."

    def size(self) -> int:
        """
        Return the length in bytes.
        """
        self._call("size")
        return len(self.inode.shown)

    def read_at(self, offset: int, size: int) -> bytes:
        """
        Return bytes from an offset on, fewer only at the end.
        """
        self._call("read")
        return bytes(self.inode.shown[offset : offset + size])

    def write_at(self, offset: int, chunk: bytes) -> int:
        """
        Write at an offset; return how many bytes of it.
        """
        fault = self._call("write")
        if self.fails_next is not None:
            raise OSError(self.fails_next, os.strerror(self.fails_next))
        if fault is not None:
            self.fails_next = fault.errno
            chunk = chunk[: fault.after_bytes]
        chunk = chunk[: self.disk.max_write_bytes]
        self.inode.write(offset, bytes(chunk))
        return len(chunk)

    def sync(self) -> None:
        """
        Make what was written durable.
        """
        fault = self._call("sync")
        if fault is not None and not fault.is_silent:
            self.inode.waiting.clear()
            raise OSError(fault.errno, os.strerror(fault.errno))
        if fault is None and not self.disk.is_lying:
            self.inode.sync()
        if self.disk.on_sync is not None:
            for path, inode in self.disk.shown.items():
                if inode is self.inode:
                    self.disk.on_sync(path)

    def truncate(self, size: int) -> None:
        """
        Cut the file to so many bytes.
        """
        self._call("truncate")
        self.inode.truncate(size)

    def close(self) -> None:
        """
        Close the file.
        """
        self.is_open = False

    def _call(self, name: str) -> Fault | None:
        if not self.is_open:
            raise OSError(errno.EBADF, "the file is closed")
        return self.disk.call(name)


@attrs.define(eq=False)
class SimulatedLock:
    """
    A lock on a file of a simulated disk. It lasts until it is released or the disk goes on elsewhere.
    """

    disk: SimulatedDisk
    path: Path
    inode: _Inode
    is_held: bool = True
    file: SimulatedFile = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.file = SimulatedFile(self.disk, self.inode)

    def check(self) -> None:
        """
        Make sure that the lock still locks the file at its path.
        """
        self.disk.call("check")
        if self.disk.shown.get(self.path) is not self.inode:
            raise OSError(errno.ENOLCK, "the lock is lost")

    def release(self) -> None:
        """
        Unlock the file.
        """
        if self.is_held:
            self.is_held = False
            self.file.close()
            self.disk.locked.pop(self.path, None)
