"""
The real disk: modes, short writes, locks, forks.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memable._disk import RealDisk, RealLock, write_fully


@pytest.fixture(params=[0o000, 0o022, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_directory_is_its_owners_only(tmp_path: Path, umask: int):
    """A directory is 0700, whatever the umask."""
    disk = RealDisk()
    assert disk.make_directory(tmp_path / "new")
    assert not disk.make_directory(tmp_path / "new")
    assert mode(tmp_path / "new") == 0o700


def test_directory_of_others_can_be_restricted(tmp_path: Path):
    """An existing directory becomes 0700."""
    tmp_path.chmod(0o755)
    RealDisk().restrict_directory(tmp_path)
    assert mode(tmp_path) == 0o700


def test_file_is_its_owners_only(tmp_path: Path, umask: int):
    """A file is 0600, the lock file as well, whatever the umask."""
    disk = RealDisk()
    disk.open_file(tmp_path / "file", create=True).close()
    disk.lock(tmp_path / "lock").release()
    assert mode(tmp_path / "file") == mode(tmp_path / "lock") == 0o600


def test_file_reads_and_writes_at_offsets(tmp_path: Path):
    """What is written at an offset is read there, and the end of the file ends a read."""
    file = RealDisk().open_file(tmp_path / "file", create=True)
    assert file.write_at(0, b"hello") == 5
    assert file.write_at(3, b"p!!") == 3
    file.sync()
    assert (file.size(), file.read_at(0, 100), file.read_at(3, 2), file.read_at(6, 9)) == (6, b"help!!", b"p!", b"")
    file.truncate(4)
    assert file.read_at(0, 100) == b"help"
    file.close()
    file.close()
    with pytest.raises(OSError, match="the file is closed"):
        file.sync()


@pytest.mark.parametrize("call", ["pread", "pwrite", "fdatasync", "ftruncate", "fstat"])
def test_error_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str):
    """The system's errors about an open file name no file: here they do."""
    file = RealDisk().open_file(tmp_path / "file", create=True)

    def fail(*_args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    uses: dict[str, Callable[[], object]] = {
        "pread": lambda: file.read_at(0, 1),
        "pwrite": lambda: file.write_at(0, b"x"),
        "fdatasync": file.sync,
        "ftruncate": lambda: file.truncate(0),
        "fstat": file.size,
    }
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="Input/output error") as caught:
            uses[call]()
    assert caught.value.filename == str(tmp_path / "file")
    file.close()


def test_file_is_not_created_over_another(tmp_path: Path):
    """Creating a file never opens one that is there, nor follows a link."""
    disk = RealDisk()
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(FileExistsError, match="File exists"):
        disk.open_file(tmp_path / "file", create=True)
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        disk.open_file(tmp_path / "link")


def test_names_are_changed_and_listed(tmp_path: Path):
    """A rename replaces, a removal removes, a listing is sorted."""
    disk = RealDisk()
    for name in ("b", "a", "c"):
        (tmp_path / name).write_bytes(name.encode())
    disk.rename(tmp_path / "b", tmp_path / "a")
    disk.remove(tmp_path / "c")
    disk.sync_directory(tmp_path)
    assert disk.list_names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"b"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that cannot sync a directory")
def test_directory_that_cannot_be_synced_is_left_at_that():
    """Where the notion does not exist, syncing a directory does nothing."""
    RealDisk().sync_directory(Path("/proc/self"))


class SlowFile:
    """A file that takes few bytes at a time, and then no more."""

    def __init__(self, *takes: int) -> None:
        self.takes = list(takes)
        self.content = bytearray()

    def write_at(self, offset: int, chunk: bytes) -> int:
        taken = chunk[: self.takes.pop(0)]
        assert offset == len(self.content)
        self.content += taken
        return len(taken)


def test_short_writes_are_completed():
    """A write that took less than was given is continued where it stopped."""
    file = SlowFile(3, 1, 100)
    write_fully(file, 0, b"abcdefgh")
    assert file.content == b"abcdefgh"


def test_write_that_takes_nothing_fails():
    """A disk that takes nothing and says nothing does not hang the writer."""
    with pytest.raises(OSError, match="took no more bytes") as caught:
        write_fully(SlowFile(3, 0), 0, b"abcdefgh")
    assert caught.value.errno == errno.EIO


def test_real_short_write_is_noticed(tmp_path: Path):
    """A write that hits a limit in its middle is short first, an error next: nothing passes for written that is not."""
    code = (
        "import resource, sys; from pathlib import Path; from memable._disk import RealDisk, write_fully\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\n"
        "file = RealDisk().open_file(Path(sys.argv[1]), create=True)\n"
        "assert file.write_at(0, b'x' * 200) == 200\n"
        "try: write_fully(file, 200, b'y' * 700)\n"
        "except OSError as exc: print(exc.errno, file.size())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "f"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(errno.EFBIG), "300"]


# Locks -------------------------------------------------------------------------------------------------------------


def test_lock_excludes_this_process(tmp_path: Path):
    """A file is locked once at a time, also within a process and by another disk object."""
    lock = RealDisk().lock(tmp_path / "lock")
    assert lock.is_held
    lock.check()
    for _ in range(2):
        with pytest.raises(BlockingIOError, match="locked by this process"):
            RealDisk().lock(tmp_path / "lock")
    lock.release()
    lock.release()
    assert not lock.is_held
    with pytest.raises(OSError, match="the lock is lost"):
        lock.check()
    RealDisk().lock(tmp_path / "lock").release()


def test_lock_is_gone_when_it_is_released(tmp_path: Path):
    """A released lock is not kept by a copy of its descriptor, as a child has it that is just being forked."""
    lock = RealDisk().lock(tmp_path / "lock")
    copy = os.dup(lock.file.fd)
    lock.release()
    RealDisk().lock(tmp_path / "lock").release()
    os.close(copy)


def test_lock_excludes_this_process_under_another_name(tmp_path: Path):
    """The same directory by another path is the same lock."""
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    lock = RealDisk().lock(tmp_path / "real" / "lock")
    with pytest.raises(BlockingIOError, match="locked by this process"):
        RealDisk().lock(tmp_path / "alias" / "lock")
    lock.release()


HOLD = """
import sys, time
from pathlib import Path
from memable._disk import RealDisk
lock = RealDisk().lock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["kill", "exit"])
def test_lock_excludes_other_processes_until_they_end(tmp_path: Path, end: str):
    """A lock dies with its process, however that ends; nothing needs to be cleaned up."""
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match="temporarily unavailable"):
            RealDisk().lock(path)
        if end == "kill":
            holder.kill()
        holder.communicate()
    lock = RealDisk().lock(path)
    lock.check()
    lock.release()


@pytest.mark.parametrize("loss", ["removed", "replaced", "moved"])
def test_lock_whose_file_is_gone_is_lost(tmp_path: Path, loss: str):
    """A lock on a file that is no longer at its path locks nothing, and says so."""
    directory = tmp_path / "d"
    directory.mkdir()
    lock = RealDisk().lock(directory / "lock")
    match loss:
        case "removed":
            (directory / "lock").unlink()
        case "replaced":
            (tmp_path / "other").touch()
            (tmp_path / "other").rename(directory / "lock")
        case _:
            directory.rename(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"No such file|the lock is lost"):
        lock.check()
    lock.release()


class ReplacingDisk(RealDisk):
    """Somebody replaces the lock file between its being opened and locked, once."""

    replaced = False

    def _lock(self, path: Path, *opened: Any) -> RealLock | None:
        if not self.replaced:
            self.replaced = True
            path.unlink()
        return super()._lock(path, *opened)


def test_lock_is_on_the_file_at_the_path(tmp_path: Path):
    """A lock file that is replaced while it is being locked is locked anew."""
    lock = ReplacingDisk().lock(tmp_path / "lock")
    lock.check()
    lock.release()


def _child(lock: RealLock, disk: RealDisk, path: Path, pipe: object) -> None:
    found = [lock.is_held]
    for call in (lock.check, lock.file.size, lambda: RealDisk().lock(path)):
        try:
            call()
        except OSError as exc:
            found.append(exc.errno)
    lock.release()
    pipe.send(found)  # type: ignore[attr-defined]  # a connection, whose class multiprocessing does not export
    pipe.recv()  # type: ignore[attr-defined]  # the same


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_child_holds_no_lock(tmp_path: Path):
    """A forked child's copy of a lock is disabled, and does not keep the lock when its parent lets go."""
    path = tmp_path / "lock"
    disk = RealDisk()
    lock = disk.lock(path)
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_child, args=(lock, disk, path, there))
    child.start()
    assert here.recv() == [False, errno.ENOLCK, errno.EBADF, errno.EWOULDBLOCK]
    assert lock.is_held
    lock.check()
    with pytest.raises(BlockingIOError, match="locked by this process"):
        RealDisk().lock(path)
    lock.release()
    RealDisk().lock(path).release()
    here.send("end")
    child.join()
