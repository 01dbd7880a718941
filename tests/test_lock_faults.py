"""
What becomes of a store's lock when its holder dies, stops or forks, and when somebody moves or removes files.

Real processes and real files. Nobody waits for a time: the processes tell each other where they are.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from lock_holder import Holder, holding
from memable import FileStore, StorageError, StoreCorruptedError, StoreLockedError
from memable import _disk as disk_module
from memable._clock import current_clock
from memable._disk import RealDisk
from memable._store._snapshot import read_store
from sample_records import start

LOST = "somebody moved or removed files of the store while it was open; find out who, then open it again"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


async def _numbers(path: Path) -> list[int]:
    async with FileStore(path).open(current_clock()) as store:
        return [header.number for header in await store.headers()]


def numbers(path: Path) -> list[int]:
    """Open the store; return the numbers of the instances that it knows."""
    return trio.run(_numbers, path)


def assert_locked(path: Path, holder: Holder) -> None:
    with pytest.raises(StoreLockedError, match=rf"process {holder.pid} on host .*, since .*, has it open") as caught:
        numbers(path)
    assert (caught.value.pid, caught.value.host) == (holder.pid, socket.gethostname())


@pytest.fixture
def holder(path: Path) -> Iterator[Holder]:
    """A process that has the store open, and was acknowledged one record."""
    with holding(path) as process:
        assert process.hear() == "open"
        assert process.ask("append") == "acknowledged 1"
        yield process


# Holders that die, live and stop -----------------------------------------------------------------------------------


def test_killed_holder_leaves_no_lock(path: Path, holder: Holder):
    """Nothing has to be cleaned up after a process that was killed: the next one opens at once."""
    holder.kill()
    assert "pid" in (path / "lock").read_text()
    assert numbers(path) == [1]


@pytest.mark.parametrize("call", ["open", "lock", "write", "sync", "rename", "sync_directory"])
def test_holder_killed_while_it_makes_the_store_leaves_no_lock(path: Path, call: str):
    """Wherever in the making of a store its process dies, the next one makes it, and can be sure of having it alone."""
    with holding(path, call, 0) as holder:
        assert holder.hear() == "paused"
        holder.kill()
        assert numbers(path) == []


def test_living_holder_is_named_at_once(path: Path, holder: Holder):
    """A second opener is refused with the holder's pid and host, however often it asks, and harms nobody."""
    for _ in range(3):
        assert_locked(path, holder)
    assert holder.ask("append") == "acknowledged 2"
    assert holder.ask("close") == "closed"
    assert numbers(path) == [1, 2]


def test_stopped_holder_still_holds(path: Path, holder: Holder):
    """A process that is stopped, as by Ctrl-Z, has the store all the same: it may go on at any time."""
    holder.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
    assert_locked(path, holder)
    holder.process.send_signal(signal.SIGCONT)
    assert holder.ask("append") == "acknowledged 2"


def read(path: Path) -> list[int]:
    """Read the store without its lock; return the numbers of the instances that it knows."""
    with read_store(RealDisk(), path) as snapshot:
        found = [header.number for header in snapshot.index.select(limit=100)]
        for number in found:
            assert [record.kind for record in snapshot.load(number)] == ["instance_started"]
        return found


@pytest.mark.parametrize("call", ["write", "sync"])
def test_readers_need_no_lock(path: Path, call: str):
    """Whatever the holder does, be it stopped or in the middle of a batch, readers read, and nobody notices."""
    assert numbers(path) == []
    with holding(path, call, 2) as holder:
        assert holder.hear() == "open"
        assert read(path) == []
        assert holder.ask("append") == "paused"
        assert read(path) == ([] if call == "write" else [1])
        assert holder.ask("go on") == "acknowledged 1"
        assert read(path) == [1]
        holder.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
        assert read(path) == [1]
        holder.process.send_signal(signal.SIGCONT)
        (path / "lock").unlink()
        assert read(path) == [1]
        assert not (path / "lock").exists()
        holder.kill()
        before = {found.name: found.read_bytes() for found in path.iterdir()}
        assert read(path) == [1]
        assert {found.name: found.read_bytes() for found in path.iterdir()} == before
    assert numbers(path) == [1]


def test_store_is_free_as_soon_as_it_is_closed(path: Path, holder: Holder):
    """When a holder says that it has closed the store, it is free; opening and closing in turn never collides."""
    assert holder.ask("close") == "closed"
    for count in range(20):
        assert numbers(path) == [1], count


def test_two_threads_open_a_store_in_turn(path: Path):
    """Of two trio runs in two threads, one has the store, and the other is told that this process has it."""
    outcomes: list[str] = []
    is_open, may_close = threading.Event(), threading.Event()

    async def hold() -> None:
        async with FileStore(path).open(current_clock()) as store:
            is_open.set()
            await trio.to_thread.run_sync(may_close.wait)
            await start(store)

    thread = threading.Thread(target=trio.run, args=(hold,))
    thread.start()
    is_open.wait()
    for _ in range(2):
        with pytest.raises(StoreLockedError, match="another engine of this process has it open") as caught:
            numbers(path)
        outcomes.append(str(caught.value.pid))
    may_close.set()
    thread.join()
    assert outcomes == [str(os.getpid())] * 2
    assert numbers(path) == [1]


def test_threads_that_race_for_a_store_get_it_one_by_one(path: Path):
    """However many open a store at once, each has it alone or is refused, and nothing that was acknowledged is lost."""
    acknowledged: list[int] = []
    barrier = threading.Barrier(4)

    async def add() -> None:
        async with FileStore(path).open(current_clock()) as store:
            acknowledged.append(await start(store))

    def race() -> None:
        for _ in range(5):
            barrier.wait()
            try:
                trio.run(add)
            except StoreLockedError:
                continue

    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert acknowledged
    assert numbers(path) == sorted(acknowledged) == list(range(1, len(acknowledged) + 1))


# Files that somebody removes, replaces or moves --------------------------------------------------------------------


def _remove(path: Path) -> None:
    (path / "lock").unlink()


def _replace(path: Path) -> None:
    (path / "lock").rename(path.with_name("old lock"))
    (path / "lock").write_bytes(b" " * 512)


@pytest.mark.parametrize("lose", [_remove, _replace])
def test_holder_whose_lock_file_is_gone_stops_and_nobody_else_begins(path: Path, holder: Holder, lose):
    """
    Whoever removes or replaces the lock file makes no second writer.

    The holder still has the directory, writes nothing more, and once it has ended, all that was acknowledged is found.
    """
    lose(path)
    before = (path / "00000001.log").read_bytes()
    for _ in range(2):
        with pytest.raises(StoreLockedError, match="another engine has it open; close that one first"):
            numbers(path)
    problem = "there is no file at its path" if lose is _remove else "another file is at its path"
    for _ in range(2):
        assert holder.ask("append") == (
            f"StorageError: {path}/00000001.log: writing failed: the lock is lost: {problem}; {LOST}"
        )
    assert (path / "00000001.log").read_bytes() == before
    holder.tell("close")
    assert holder.hear() == "closed"
    assert numbers(path) == [1]


@pytest.mark.parametrize("lose", [_remove, _replace])
@pytest.mark.parametrize("call", ["write", "sync"])
def test_lock_file_lost_while_a_batch_is_in_flight_makes_no_second_writer(path: Path, call: str, lose):
    """
    A holder that has looked at its lock and is about to write keeps the store, however long that takes.

    So the batch that it then acknowledges is there, and is not written over what another one has written.
    """
    assert numbers(path) == []
    # Writes: the note of the holder, the beginning of the session, the record. Syncs: of recovery, and of those two.
    with holding(path, call, 2) as holder:
        assert holder.hear() == "open"
        assert holder.ask("append") == "paused"
        lose(path)
        with pytest.raises(StoreLockedError, match="another engine has it open"):
            numbers(path)
        assert holder.ask("go on") == "acknowledged 1"
        assert holder.ask("append").startswith("StorageError")
        with pytest.raises(StoreLockedError, match="another engine has it open"):
            numbers(path)
        assert holder.ask("close") == "closed"
    assert numbers(path) == [1]


def test_moved_directory_takes_its_lock_along(path: Path, holder: Holder):
    """A directory that is moved while it is open is locked at its new place, and its holder writes nothing more."""
    moved = path.with_name("moved")
    path.rename(moved)
    assert_locked(moved, holder)
    assert LOST in holder.ask("append")
    assert_locked(moved, holder)
    assert holder.ask("close") == "closed"
    assert numbers(moved) == [1]
    assert not path.exists()


def test_directory_moved_while_a_batch_is_in_flight_takes_it_along(path: Path):
    """A batch that is on its way goes to where the directory went; the new place opens once its holder has ended."""
    assert numbers(path) == []
    moved = path.with_name("moved")
    with holding(path, "write", 2) as holder:
        assert holder.hear() == "open"
        assert holder.ask("append") == "paused"
        path.rename(moved)
        assert_locked(moved, holder)
        assert holder.ask("go on") == "acknowledged 1"
        assert LOST in holder.ask("append")
    assert numbers(moved) == [1]


def test_new_store_at_the_old_path_is_another_store(path: Path, holder: Holder):
    """A store that is made where an open one was belongs to its own opener; the other one touches neither any more."""
    moved = path.with_name("moved")
    path.rename(moved)
    with holding(path) as other:
        assert other.hear() == "open"
        assert other.ask("append") == "acknowledged 1"
        assert LOST in holder.ask("append")
        assert_locked(path, other)
        assert_locked(moved, holder)
        assert other.ask("append") == "acknowledged 2"
        assert other.ask("close") == "closed"
        assert holder.ask("close") == "closed"
    assert numbers(path) == [1, 2]
    assert numbers(moved) == [1]


def test_lock_holder_works_in_the_directory_that_it_locked(tmp_path: Path):
    """Whatever is put at the path of a locked directory, its holder neither reads, makes, renames nor removes there."""
    ours, moved = tmp_path / "ours", tmp_path / "moved"
    ours.mkdir()
    (ours / "1").write_bytes(b"ours")
    disk = RealDisk()
    lock = disk.lock(ours / "lock")
    ours.rename(moved)
    ours.mkdir()
    for name in ("1", "2", "new"):
        (ours / name).write_bytes(b"theirs")
    disk.open_file(ours / "2", create=True).close()
    file = disk.open_file(ours / "1")
    assert file.read_at(0, 9) == b"ours"
    disk.rename(ours / "1", ours / "new")
    disk.remove(ours / "2")
    disk.sync_directory(ours)
    assert disk.list_names(ours) == ["lock", "new"]
    assert sorted(found.name for found in moved.iterdir()) == ["lock", "new"]
    assert [found.read_bytes() for found in ours.iterdir()] == [b"theirs"] * 3
    with pytest.raises(FileNotFoundError, match=re.escape(str(ours / "gone"))):
        disk.open_file(ours / "gone")
    with pytest.raises(OSError, match="the lock is lost"):
        lock.check()
    file.close()
    lock.release()
    # From now on the path means what it says.
    assert disk.list_names(ours) == ["1", "2", "new"]


def test_disk_locks_one_directory_at_a_path(tmp_path: Path):
    """One disk that has a path's directory locked does not lock another one that was put there."""
    (tmp_path / "d").mkdir()
    disk = RealDisk()
    lock = disk.lock(tmp_path / "d" / "lock")
    (tmp_path / "d").rename(tmp_path / "moved")
    (tmp_path / "d").mkdir()
    with pytest.raises(BlockingIOError, match="locked by this process"):
        disk.lock(tmp_path / "d" / "lock")
    lock.release()
    disk.lock(tmp_path / "d" / "lock").release()


def test_removed_directory_stops_its_holder(path: Path, holder: Holder):
    """When all is removed there is nothing to lose: the holder stops, and the path is free for a new store."""
    shutil.rmtree(path)
    assert LOST in holder.ask("append")
    assert numbers(path) == []
    assert holder.ask("close") == "closed"
    assert numbers(path) == []


@pytest.mark.parametrize("loss", ["removed", "replaced"])
def test_log_that_was_removed_or_replaced_stops_its_holder(path: Path, holder: Holder, loss: str):
    """Nothing is acknowledged that would be gone with the last descriptor of a file that no name leads to."""
    content = (path / "00000001.log").read_bytes()
    (path / "00000001.log").unlink()
    if loss == "replaced":
        (path / "00000001.log").write_bytes(content)
    assert LOST in holder.ask("append")
    assert holder.ask("close") == "closed"
    if loss == "replaced":
        assert numbers(path) == [1]
    else:
        with pytest.raises(StoreCorruptedError, match="the log is missing"):
            numbers(path)


# Other paths to the same directory ---------------------------------------------------------------------------------


def test_store_is_one_store_by_whatever_path(path: Path, holder: Holder, tmp_path: Path):
    """A symbolic link to a store's directory, and a path through one, are the store itself."""
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "parent").symlink_to(tmp_path)
    for alias in (tmp_path / "link", tmp_path / "parent" / "store", tmp_path / "parent" / "parent" / "link"):
        assert_locked(alias, holder)
    holder.kill()
    assert numbers(tmp_path / "link") == [1]


async def test_store_is_one_store_by_whatever_path_within_a_process(path: Path, tmp_path: Path):
    """Within a process, too, device and inode say what a store is, not its path."""
    (tmp_path / "link").symlink_to(path)
    async with FileStore(path).open(current_clock()):
        with pytest.raises(StoreLockedError, match="another engine of this process has it open"):
            await _numbers(tmp_path / "link")
    async with FileStore(tmp_path / "link").open(current_clock()):
        with pytest.raises(StoreLockedError, match="another engine of this process has it open"):
            await _numbers(path)


def test_link_that_is_turned_while_the_store_is_open_stops_its_holder(tmp_path: Path, path: Path):
    """A link that leads elsewhere is a directory that was moved: nothing is written in either place."""
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    path.symlink_to(tmp_path / "first")
    with holding(path) as holder:
        assert holder.hear() == "open"
        path.unlink()
        path.symlink_to(tmp_path / "second")
        assert numbers(path) == []
        assert LOST in holder.ask("append")
        assert_locked(tmp_path / "first", holder)


@pytest.fixture
def bind(path: Path, tmp_path: Path) -> Iterator[Path]:
    """Another place where the store's directory is mounted."""
    path.mkdir()
    target = tmp_path / "bind"
    target.mkdir()
    mounting = subprocess.run(["mount", "--bind", path, target], capture_output=True, check=False)  # noqa: S607 - where it is differs
    if mounting.returncode:
        pytest.skip("mounting is not permitted here")
    yield target
    subprocess.run(["umount", target], check=True)  # noqa: S607 - where it is differs


def test_store_is_one_store_where_it_is_mounted_twice(path: Path, bind: Path):
    """A directory that is mounted a second time, as for a container, is one store."""
    with holding(path) as holder:
        assert holder.hear() == "open"
        assert_locked(bind, holder)

    async def main() -> None:
        async with FileStore(bind).open(current_clock()):
            with pytest.raises(StoreLockedError, match="another engine of this process has it open"):
                await _numbers(path)

    trio.run(main)


def test_store_whose_files_are_linked_elsewhere_is_locked_there(path: Path, holder: Holder, tmp_path: Path):
    """Files that have a second name in another directory are the same files: their lock goes with them."""
    (tmp_path / "links").mkdir()
    for file in path.iterdir():
        (tmp_path / "links" / file.name).hardlink_to(file)
    assert_locked(tmp_path / "links", holder)
    assert holder.ask("append") == "acknowledged 2"


# Forks and programs ------------------------------------------------------------------------------------------------


def test_forked_child_is_disabled_and_its_parent_goes_on(path: Path, holder: Holder):
    """A forked child may not append and has nothing of the store open; its parent holds the lock and goes on."""
    answer = holder.ask("fork")
    assert re.fullmatch(r"child \d+: .*: this is a forked child, and the store belongs to its parent; .*", answer)
    assert answer.endswith("; open: []")
    assert holder.ask("append") == "acknowledged 2"
    assert_locked(path, holder)
    assert holder.ask("close") == "closed"
    # The child still lives.
    assert numbers(path) == [1, 2]


def test_lock_dies_with_the_parent_of_a_forked_child(path: Path, holder: Holder):
    """A child that outlives its parent does not keep the store locked."""
    child = int(re.findall(r"child (\d+)", holder.ask("fork"))[0])
    holder.kill()
    os.kill(child, 0)
    assert numbers(path) == [1]


@pytest.mark.parametrize("call", ["write", "sync"])
def test_fork_in_the_middle_of_an_append_disables_the_child_only(path: Path, call: str):
    """The process forks while a thread writes a batch: the child is disabled, and the batch is acknowledged."""
    assert numbers(path) == []
    with holding(path, call, 2) as holder:
        assert holder.hear() == "open"
        assert holder.ask("append") == "paused"
        answer = holder.ask("fork")
        assert "this is a forked child" in answer
        assert answer.endswith("; open: []")
        assert holder.ask("go on") == "acknowledged 1"
        assert holder.ask("append") == "acknowledged 2"
        holder.kill()
        assert numbers(path) == [1, 2]


def test_executed_program_inherits_nothing(path: Path, holder: Holder):
    """A program that the holder runs has neither the lock nor the log."""
    assert holder.ask("execute") == "inherited: []"


def test_fork_waits_for_a_lock_that_is_being_taken(tmp_path: Path):
    """No child inherits a lock that is not noted yet, which it would keep when its parent dies."""
    answers: list[bool] = []

    class Disk(RealDisk):
        def _lock(self, path: Path, *opened: object):
            thread = threading.Thread(target=lambda: answers.append(disk_module._taking.acquire(blocking=False)))
            thread.start()
            thread.join()
            return super()._lock(path, *opened)

    Disk().lock(tmp_path / "lock").release()
    assert answers == [False]


# What may stand in the place of the lock file ----------------------------------------------------------------------


async def _make(path: Path) -> None:
    async with FileStore(path).open(current_clock()) as store:
        await start(store)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 512, b"\0" * 512, b"garbage", b'{"pid":', b" " * 100, os.urandom(100_000)],
    ids=["empty", "ones", "zeros", "text", "half a note", "short", "huge"],
)
def test_lock_file_of_whatever_content_locks(path: Path, content: bytes):
    """What stands in the lock file of a store decides nothing: it may be what a power cut left of a note."""
    trio.run(_make, path)
    (path / "lock").write_bytes(content)
    with holding(path) as holder:
        assert holder.hear() == "open"
        assert_locked(path, holder)
        assert holder.ask("append") == "acknowledged 2"
        holder.kill()
    assert numbers(path) == [1, 2]


def test_missing_lock_file_is_made(path: Path):
    """A store without its lock file, as a backup may leave it, opens, and is locked."""
    trio.run(_make, path)
    (path / "lock").unlink()
    with holding(path) as holder:
        assert holder.hear() == "open"
        assert_locked(path, holder)
        holder.kill()
    assert numbers(path) == [1]


@pytest.mark.parametrize("name", ["lock", "00000001.log"])
@pytest.mark.parametrize("kind", ["directory", "pipe", "link", "dangling link", "device"])
def test_what_is_no_file_is_refused_at_once(path: Path, name: str, kind: str, tmp_path: Path):
    """A directory, a pipe, a device or a link in the place of a file is refused, hangs nobody, and stays as it was."""
    trio.run(_make, path)
    (path / name).rename(tmp_path / "precious")
    (tmp_path / "precious").chmod(0o644)
    match kind:
        case "directory":
            (path / name).mkdir()
        case "pipe":
            os.mkfifo(path / name)
        case "link":
            (path / name).symlink_to(tmp_path / "precious")
        case "dangling link":
            (path / name).symlink_to(tmp_path / "nowhere")
        case _:
            try:
                os.mknod(path / name, 0o600 | 0o020000, os.makedev(1, 3))
            except PermissionError:
                pytest.skip("making a device is not permitted here")
    problem = "put the file itself there" if "link" in kind else "move away what is in the place of that file"
    with pytest.raises(StorageError, match=rf"{path / name}: opening failed: .*; .*{problem}"):
        numbers(path)
    assert not (tmp_path / "nowhere").exists()
    assert (tmp_path / "precious").stat().st_mode & 0o777 == 0o644
    if kind == "directory":
        (path / name).rmdir()
    else:
        (path / name).unlink()
    (tmp_path / "precious").rename(path / name)
    assert numbers(path) == [1]


def test_directory_that_cannot_be_locked_is_left_at_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a file system that locks files only, the lock file alone excludes others; any other failure is told."""
    real = fcntl.flock
    answer = errno.EBADF

    def flock(fd: int, operation: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(answer, os.strerror(answer))
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = RealDisk().lock(tmp_path / "lock")
    with pytest.raises(BlockingIOError, match="locked by this process"):
        RealDisk().lock(tmp_path / "lock")
    monkeypatch.undo()
    lock.release()
    answer = errno.EIO
    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error"):
        RealDisk().lock(tmp_path / "lock")
    monkeypatch.undo()
    RealDisk().lock(tmp_path / "lock").release()
