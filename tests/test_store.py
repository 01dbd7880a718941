"""
What every store does, and what a store in a directory does beside it.
"""

# ruff: noqa: ASYNC220, ASYNC222, ASYNC240 - while these tests look at files and processes, nothing else has to run

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import socket
import stat
import subprocess
import sys
import threading
import weakref
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from memable import FileStore, InMemoryStore, StorageError, StoreCorruptedError, StoreLockedError, StoreVersionError
from memable._clock import current_clock
from memable._disk import RealDisk
from memable._records import InstanceRecord
from memable._states import MetadataStatus
from memable._store import _committer
from memable._store._index import HeaderIndex
from memable._store._protocol import OpenStore, Store
from memable._store._snapshot import read_store
from memable._store._verify import verify_store
from memable._store._worker import ThreadWorker
from sample_records import completed, resumed, retired, start, started, step

KINDS = ["memory", "file", "file in the event loop"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def clock(kind: str) -> object:
    """Under a virtual clock, a file store does all in the event loop."""
    return trio.testing.MockClock(autojump_threshold=0) if kind == "file in the event loop" else None


@pytest.fixture
def store(kind: str, clock: object, tmp_path: Path) -> Store:
    return InMemoryStore() if kind == "memory" else FileStore(tmp_path / "store")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


async def append(opened: OpenStore, records: Sequence[InstanceRecord]) -> None:
    """Append in a task of its own: a store promises no more than something to await."""
    await opened.append(records)


# Every store -------------------------------------------------------------------------------------------------------


async def test_store_gives_back_what_was_appended(store: Store):
    """Records come back as they were, by instance, in order; headers show them."""
    async with store.open(current_clock()) as opened:
        first, second = await start(opened), await start(opened)
        await opened.append([step(first, 2), step(second, 2), step(first, 3)])
        await opened.append([completed(second, 3)])
        assert await opened.load(first) == [started(first), step(first, 2), step(first, 3)]
        assert await opened.load(second) == [started(second), step(second, 2), completed(second, 3)]
        header = await opened.find("w", f"i{second}")
        assert header is not None
        assert (header.number, header.seq, header.status) == (second, 3, MetadataStatus.COMPLETED)
        assert await opened.find("w", "nobody") is None
        with pytest.raises(KeyError, match="99"):
            await opened.load(99)


async def test_store_remembers_over_openings(store: Store):
    """What was acknowledged is there at the next opening; sessions and numbers go on."""
    async with store.open(current_clock()) as opened:
        identity = opened.store_id
        first = await start(opened)
        await opened.append([step(first, 2)])
        assert (opened.session, opened.after_crash) == (1, False)
    for session in (2, 3):
        async with store.open(current_clock()) as opened:
            assert (opened.session, opened.after_crash, opened.store_id) == (session, False, identity)
            assert await opened.load(first) == [started(first), step(first, 2)]
            [header] = await opened.headers()
            assert (header.number, header.instance_id, header.seq) == (first, f"i{first}", 2)
            assert await opened.allocate_number() == first + 1
    assert len(identity) == 32
    int(identity, 16)


async def test_store_lists_headers_by_number(store: Store):
    """Headers come in the order of creation, whatever the order of becoming durable."""
    async with store.open(current_clock()) as opened:
        numbers = [await opened.allocate_number() for _ in range(4)]
        for index in (2, 0, 3, 1):
            await opened.append([started(numbers[index])])
        assert [header.number for header in await opened.headers()] == numbers
        assert [header.number for header in await opened.headers(after=numbers[1])] == numbers[2:]
        assert list(await opened.headers(after=numbers[3])) == []


async def test_store_forgets_a_retired_instance(store: Store):
    """Of a retired instance nothing shows any more, now and after reopening; its number is not given out again."""
    async with store.open(current_clock()) as opened:
        first, second, third = [await start(opened) for _ in range(3)]
        await opened.append([step(second, 2), completed(second, 3)])
        await opened.append([retired(second, 4)])
        for records in ([step(second, 5)], [resumed(second, 5)], [retired(second, 5)]):
            with pytest.raises(ValueError, match=f"there is no instance {second}"):
                await opened.append(records)
        await opened.append([completed(third, 2), retired(third, 3)])
    for _ in range(2):
        async with store.open(current_clock()) as opened:
            assert [header.number for header in await opened.headers()] == [first]
            assert await opened.load(first) == [started(first)]
            for number in (second, third):
                assert await opened.find("w", f"i{number}") is None
                with pytest.raises(KeyError, match=str(number)):
                    await opened.load(number)
            assert await opened.allocate_number() > third


async def test_store_refuses_to_retire_what_has_not_ended(store: Store):
    """Only an instance that has ended can be retired, and nothing follows that."""
    async with store.open(current_clock()) as opened:
        number = await start(opened)
        with pytest.raises(ValueError, match=f"instance {number} has not ended, so it cannot be retired"):
            await opened.append([retired(number, 2)])
        with pytest.raises(ValueError, match=f"instance {number} has not ended, so it cannot be retired"):
            await opened.append([completed(number, 2), resumed(number, 3), retired(number, 4)])
        with pytest.raises(ValueError, match=f"instance {number} was retired, so no instance_resumed record can"):
            await opened.append([completed(number, 2), retired(number, 3), resumed(number, 4)])
        assert await opened.load(number) == [started(number)]


@pytest.mark.parametrize("batches", ["one", "several", "in turn"])
async def test_name_of_a_retired_instance_is_free_at_once(store: Store, batches: str):
    """A start may be queued right behind the retirement of the instance that had its name."""
    async with store.open(current_clock()) as opened:
        first = await start(opened, name="x")
        second, third = await opened.allocate_number(), await opened.allocate_number()
        records = [
            completed(first, 2),
            retired(first, 3),
            started(second, name="x"),
            completed(second, 2),
            retired(second, 3),
            started(third, name="x"),
            step(third, 2),
        ]
        if batches == "one":
            await opened.append(records)
        elif batches == "in turn":
            for record in records:
                await opened.append([record])
        else:
            async with trio.open_nursery() as nursery:
                for record in records:
                    # Trio starts tasks in no promised order; what follows is queued once this waits.
                    nursery.start_soon(append, opened, [record])
                    await trio.testing.wait_all_tasks_blocked(0)
        fourth = await opened.allocate_number()
        with pytest.raises(ValueError, match="workflow 'w' has an instance 'x' already"):
            await opened.append([started(fourth, name="x")])
    async with store.open(current_clock()) as opened:
        header = await opened.find("w", "x")
        assert header is not None
        assert header.number == third
        assert await opened.load(third) == [started(third, name="x"), step(third, 2)]


async def test_store_shares_batches_among_tasks(store: Store):
    """Many tasks append at once; each finds its own records, in its own order."""

    async def work(opened: OpenStore) -> None:
        number = await start(opened)
        for seq in range(2, 12):
            await opened.append([step(number, seq)])
            header = await opened.find("w", f"i{number}")
            assert header is not None
            assert header.seq == seq
        assert [record.seq for record in await opened.load(number)] == list(range(1, 12))

    async with store.open(current_clock()) as opened, trio.open_nursery() as nursery:
        for _ in range(30):
            nursery.start_soon(work, opened)
    async with store.open(current_clock()) as opened:
        assert [header.seq for header in await opened.headers()] == [11] * 30


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        ([], "at least one record"),
        ([step(1, 2)], "record 2 of instance 1 cannot follow its record 2"),
        ([step(1, 4)], "record 4 of instance 1 cannot follow its record 2"),
        ([step(1, 3), step(1, 3)], "record 3 of instance 1 cannot follow its record 3"),
        ([step(9, 2)], "there is no instance 9"),
        ([started(1)], "instance 1 starts a second time"),
        ([started(4, name="x")], "number 4 was not allocated"),
        ([attrs.evolve(started(3), seq=2)], "first record of instance 3 has sequence number 2, not 1"),
        ([started(3, name="x"), started(3, name="y")], "instance 3 starts a second time"),
        ([started(3, name="i1")], "workflow 'w' has an instance 'i1' already"),
        ([step(3, 2)], "there is no instance 3"),
        ([step(2, 3)], "instance 2 has ended, so no step_completed record can follow"),
        ([step(1, 3), completed(1, 4), step(1, 5)], "instance 1 has ended"),
    ],
)
async def test_store_refuses_records_that_cannot_follow(store: Store, records: list, problem: str):
    """A record out of order is a second writer: it is refused, nothing is written, and the store goes on."""
    async with store.open(current_clock()) as opened:
        await start(opened)
        await start(opened)
        await opened.append([step(1, 2), completed(2, 2)])
        await opened.allocate_number()
        with pytest.raises(ValueError, match=problem):
            await opened.append(records)
        await opened.append([step(1, 3), resumed(2, 3), step(2, 4), started(3)])
        assert [header.seq for header in await opened.headers()] == [3, 4, 1]


async def test_store_decides_between_two_writers_at_once(store: Store):
    """Of two appends of one sequence number exactly one is taken, also while the first is not yet durable."""
    outcomes: list[str] = []

    async def write(opened: OpenStore, records: Callable[[], list]) -> None:
        try:
            await opened.append(records())
        except ValueError:
            outcomes.append("refused")
        else:
            outcomes.append("taken")

    async with store.open(current_clock()) as opened:
        number = await start(opened)
        for records in (
            lambda: [step(number, 2), completed(number, 3)],
            lambda: [started(number + 1, name="same")],
        ):
            outcomes.clear()
            await opened.allocate_number()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write, opened, records)
                nursery.start_soon(write, opened, records)
            assert sorted(outcomes) == ["refused", "taken"]
        for seq in (3, 4):
            with pytest.raises(ValueError, match=r"cannot follow|has ended"):
                await opened.append([step(number, seq)])


async def test_append_lets_others_run_and_load_is_a_checkpoint(store: Store):
    """Both let other tasks run, a load may be cancelled; asking for a header or a number does neither."""
    task = trio.lowlevel.current_task()
    async with store.open(current_clock()) as opened:
        with trio.testing.assert_no_checkpoints():
            number = await opened.allocate_number()
        scheduled = task._schedule_points
        await opened.append([started(number)])
        assert task._schedule_points > scheduled
        with trio.testing.assert_checkpoints():
            await opened.load(number)
        with trio.testing.assert_no_checkpoints():
            await opened.find("w", "x")


async def test_append_in_a_cancelled_scope_is_completed(store: Store):
    """An append is whole whatever is cancelled, before it or during it, and leaves the cancellation to others."""
    async with store.open(current_clock()) as opened:
        number = await start(opened)
        with trio.CancelScope() as scope:
            scope.cancel()
            await opened.append([step(number, 2)])
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(start, opened)
            reached_load = True
            await opened.load(number)
        assert reached_load
        assert scope.cancelled_caught
        assert [header.seq for header in await opened.headers()] == [2, 1, 1, 1, 1, 1]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(append, opened, [step(number, 3)])
            nursery.start_soon(append, opened, [step(number + 1, 2)])
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    async with store.open(current_clock()) as opened:
        sizes = [len(await opened.load(header.number)) for header in await opened.headers()]
        # A task that was cancelled before it began has appended nothing; one that began, all.
        assert sizes[0] in {2, 3}
        assert sizes[1] in {1, 2}


async def test_closing_waits_for_what_was_begun(store: Store):
    """Appends that are on their way when the block is left are durable, even if it is left by a cancellation."""
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with store.open(current_clock()) as opened:
                number = await start(opened)
                nursery.start_soon(append, opened, [step(number, 2)])
                await trio.lowlevel.checkpoint()
                scope.cancel()
                await trio.lowlevel.checkpoint()
    async with store.open(current_clock()) as opened:
        assert not opened.after_crash
        assert len(await opened.load(number)) == 2


async def test_opening_can_be_cancelled(store: Store):
    """A cancelled opening leaves the store closed and as it was."""
    with trio.CancelScope() as scope:
        scope.cancel()
        async with store.open(current_clock()):
            pytest.fail("it was cancelled")
    assert scope.cancelled_caught
    async with store.open(current_clock()) as opened:
        assert not opened.after_crash


async def test_store_is_opened_once_at_a_time(store: Store):
    """A second opener is told at once who has it; afterwards the store opens again."""
    async with store.open(current_clock()) as opened:
        await start(opened)
        with pytest.raises(StoreLockedError, match="another engine of this process has it open") as caught:
            async with store.open(current_clock()):
                pytest.fail("it is locked")
        assert (caught.value.pid, caught.value.host) == (os.getpid(), socket.gethostname())
        await start(opened)
    async with store.open(current_clock()) as opened:
        assert len(await opened.headers()) == 2


async def test_closed_store_takes_nothing(store: Store):
    """After the block the open store says that it is closed."""
    async with store.open(current_clock()) as opened:
        number = await start(opened)
    with pytest.raises(StorageError, match="closed; open it again"):
        await opened.append([step(number, 2)])
    with pytest.raises(StorageError, match="closed; open it again"):
        await opened.load(number)


async def test_store_lets_no_time_go_backwards(store: Store):
    """An engine's clock goes on from the newest record."""
    async with store.open(current_clock()) as opened:
        number = await opened.allocate_number()
        future = current_clock().now() + 5000
        await opened.append([attrs.evolve(started(number), at=future)])
    clock = current_clock()
    async with store.open(clock):
        assert clock.now() >= future


async def test_value_that_cannot_be_written_is_refused(path: Path):
    """A value that is not one line of JSON is the caller's mistake, and harms nobody else."""
    async with FileStore(path).open(current_clock()) as opened:
        number = await start(opened)
        with pytest.raises(ValueError, match="not JSON text on one line"):
            await opened.append([step(number, 2, b"1\n2")])
        await opened.append([step(number, 2)])


async def test_memory_store_can_be_copied_as_if_killed():
    """A copy holds what was durable, and knows whether the store was open."""
    store = InMemoryStore()
    async with store.open(current_clock()) as opened:
        number = await start(opened)
        copy = store.crashed_copy()
        await opened.append([step(number, 2)])
    async with copy.open(current_clock()) as opened:
        assert (opened.session, opened.after_crash) == (2, True)
        assert await opened.load(number) == [started(number)]
    async with store.crashed_copy().open(current_clock()) as opened:
        assert (opened.session, opened.after_crash) == (2, False)


async def test_memory_store_keeps_nothing_of_a_retired_instance():
    """What is retired is freed; the rest stays in order, also in a copy."""
    store = InMemoryStore()
    async with store.open(current_clock()) as opened:
        first, second = await start(opened), await start(opened)
        await opened.append([step(second, 2), step(first, 2), completed(second, 3), completed(first, 3)])
        copy = store.crashed_copy()
        await opened.append([retired(second, 4)])
        rest = [started(first), step(first, 2), completed(first, 3)]
        assert store._records == store.crashed_copy()._records == rest
        await opened.append([retired(first, 4)])
        assert (store._records, store._kept.journals) == ([], {})
    assert len(copy._records) == 6


async def test_memory_store_has_a_name():
    """A store in memory can be named in a message."""
    async with InMemoryStore().open(current_clock()) as opened:
        assert opened.location == "InMemoryStore()"


# A store in a directory --------------------------------------------------------------------------------------------


async def test_file_store_is_a_private_readable_directory(path: Path):
    """The directory is its owner's only, and its log is text: a header, then a record a line."""
    async with FileStore(path).open(current_clock()) as opened:
        assert opened.location == str(path)
        await opened.append([started(await opened.allocate_number(), name="Zoë")])
    assert sorted(found.name for found in path.iterdir()) == ["00000001.log", "lock"]
    modes = [stat.S_IMODE(found.stat().st_mode) for found in (path, path / "00000001.log", path / "lock")]
    assert modes == [0o700, 0o600, 0o600]
    lines = (path / "00000001.log").read_text().splitlines()
    trees = [json.loads(line[line.index("{") :]) for line in lines]
    assert [tree.get("kind") for tree in trees] == [None, "store_opened", "instance_started", "store_closed"]
    assert (trees[0]["memable"], trees[1]["pid"], trees[2]["instance_id"]) == (2, os.getpid(), "Zoë")
    assert trees[0]["store"] == opened.store_id


async def test_lock_file_says_who_holds_it(path: Path):
    """The lock file names pid, host and time while the store is open, nobody afterwards, and keeps its size."""
    async with FileStore(path).open(current_clock()):
        text = (path / "lock").read_text()
        note = json.loads(text.splitlines()[0])
        assert (note["pid"], note["host"], len(text)) == (os.getpid(), socket.gethostname(), 640)
        assert note["since"].endswith("+00:00")
    left = (path / "lock").read_text().split()
    assert (int(left[0], 16), json.loads(left[1])) == (zlib.crc32(left[1].encode()), {"tail": 1})
    assert (path / "lock").stat().st_size == 640


async def test_file_store_survives_a_change_of_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A relative path means what it meant when the store was opened."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    async with FileStore("store").open(current_clock()) as opened:
        monkeypatch.chdir(tmp_path / "elsewhere")
        number = await start(opened)
        assert await opened.load(number) == [started(number)]
    assert (tmp_path / "store" / "00000001.log").exists()


@pytest.mark.parametrize("durability", ["fsync", "os"])
async def test_file_store_keeps_records_in_either_durability(path: Path, durability: str):
    """A store may be opened with one durability now and another one later."""
    async with FileStore(path, durability=durability).open(current_clock()) as opened:
        number = await start(opened)
        await opened.append([step(number, 2)])
    async with FileStore(path).open(current_clock()) as opened:
        assert not opened.after_crash
        assert len(await opened.load(number)) == 2
    assert f'"durability":"{durability}"' in (path / "00000001.log").read_text()


def test_file_store_refuses_an_unknown_durability(path: Path):
    """A durability that does not exist is refused before anything is opened."""
    with pytest.raises(ValueError, match="durability"):
        FileStore(path, durability="maybe")


async def test_batches_are_bound_in_size(path: Path, monkeypatch: pytest.MonkeyPatch):
    """What waits is written in several batches if it is much; a larger record is a batch of its own."""
    monkeypatch.setattr(_committer, "MAX_BATCH_BYTES", 1000)
    async with FileStore(path).open(current_clock()) as opened:
        async with trio.open_nursery() as nursery:
            for number in range(1, 9):
                await opened.allocate_number()
                value = b"7" * (5000 if number == 4 else 300)
                nursery.start_soon(append, opened, [started(number), step(number, 2, value)])
        assert [header.seq for header in await opened.headers()] == [2] * 8
    sizes: dict[bytes, int] = {}
    for line in (path / "00000001.log").read_bytes().splitlines()[1:]:
        batch = line.split()[1].split(b".")[1]
        sizes[batch] = sizes.get(batch, 0) + len(line)
    assert len([size for size in sizes.values() if size > 5000]) == 1
    assert all(size < 1200 or size > 5000 for size in sizes.values())
    assert len(sizes) > 6


@pytest.mark.parametrize(
    ("sizes", "batches"),
    [
        pytest.param([5000], [1], id="alone"),
        pytest.param([5000, 300], [1, 1], id="with a small one"),
        pytest.param([5000, 5000], [1, 1], id="two"),
        pytest.param([700, 700, 700], [1, 1, 1], id="none that is larger"),
        pytest.param([300, 300, 300, 300, 300], [1, 2, 2], id="as many as fit"),
    ],
)
async def test_append_larger_than_a_batch_may_be_is_a_batch_of_its_own(
    path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int], batches: list[int]
):
    """Whatever else is in the queue, and if there is nothing else: nobody waits for ever."""
    async with FileStore(path).open(current_clock()) as opened:
        numbers = [await start(opened) for _ in sizes]
        begin = len((path / "00000001.log").read_bytes().splitlines())
        monkeypatch.setattr(_committer, "MAX_BATCH_BYTES", 1200)
        async with trio.open_nursery() as nursery:
            for number, size in zip(numbers, sizes, strict=True):
                nursery.start_soon(append, opened, [step(number, 2, b"7" * size)])
        assert [header.seq for header in await opened.headers()] == [2] * len(sizes)
    found = [line.split()[1].split(b".")[1] for line in (path / "00000001.log").read_bytes().splitlines()[begin:-1]]
    # Which of them is first is trio's choice.
    assert sorted(found.count(batch) for batch in set(found)) == batches


async def test_long_journal_loads_in_pieces(path: Path):
    """A journal spread over the log comes back whole: near lines are read together, far ones apart."""
    async with FileStore(path).open(current_clock()) as opened:
        first, second = await start(opened), await start(opened)
        for seq in range(2, 30):
            await opened.append([step(first, seq), step(second, seq, b"7" * (50_000 if seq % 3 else 200_000))])
        assert [record.seq for record in await opened.load(first)] == list(range(1, 30))
        assert [record.seq for record in await opened.load(second)] == list(range(1, 30))


# What is in the way ------------------------------------------------------------------------------------------------


async def refused(path: Path, error: type[StorageError], problem: str) -> StorageError:
    with pytest.raises(error, match=problem) as caught:
        async with FileStore(path).open(current_clock()):
            pytest.fail("it opened")
    return caught.value


async def test_path_that_is_a_file_is_refused(path: Path):
    """A store is no file."""
    path.write_text("precious")
    await refused(path, StorageError, "Not a directory; choose the path of a directory")
    await refused(path / "below", StorageError, "Not a directory; choose the path of a directory")
    assert path.read_text() == "precious"


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "000001.log", "000001.log.torn", "notes.tmp"])
async def test_foreign_directory_is_refused(path: Path, name: str):
    """A directory with something else in it is left alone."""
    path.mkdir()
    (path / name).write_text("precious")
    await refused(path, StorageError, f"is no store, but holds other files .{name}.; choose a directory of its own")
    assert [found.name for found in path.iterdir()] == [name]


@pytest.mark.parametrize("left", ["00000001.log.torn", "00000003.log.torn.2", "00000002.log.tmp", "checkpoint.tmp"])
async def test_what_is_left_of_a_store_is_refused(path: Path, left: str):
    """Where only a store that was written to leaves a file, the log is missing: no new one is made."""
    path.mkdir()
    (path / left).write_text("precious")
    await refused(path, StoreCorruptedError, f"the log is missing, though .*, or remove .*{left}.* to begin")
    with pytest.raises(StoreCorruptedError, match="the log is missing, though there was one"):
        read_store(RealDisk(), path)
    with pytest.raises(StoreCorruptedError, match="the log is missing, though there was one"):
        verify_store(RealDisk(), path)
    assert [found.name for found in path.iterdir()] == [left]


async def test_file_of_the_log_that_is_removed_under_an_open_store_is_named(path: Path):
    """Whoever reads what is gone is told which file that was, and what can be done; all else goes on."""
    async with FileStore(path, segment_bytes=1024).open(current_clock()) as opened:
        numbers = [await start(opened) for _ in range(12)]
        (path / "00000001.log").unlink()
        with pytest.raises(StorageError) as caught:
            await opened.load(numbers[0])
        assert str(caught.value) == (
            f"{path}/00000001.log: reading failed: No such file or directory; this file of the log is missing: restore "
            "the store from a backup, or run `memable repair` to save what is there"
        )
        assert await opened.load(numbers[-1])
        assert await start(opened) == 13


async def test_file_that_cannot_be_read_is_named(path: Path, monkeypatch: pytest.MonkeyPatch):
    """An error of the disk tells which file it was in, whether the store is open, opened or read."""

    def fail(*_args: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    problem = r"/00000001\.log: {} failed: Input/output error; find out what is wrong with the disk"
    async with FileStore(path).open(current_clock()) as opened:
        number = await start(opened)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", fail)
            with pytest.raises(StorageError, match=problem.format("reading")):
                await opened.load(number)
            with pytest.raises(StorageError, match=problem.format("reading")):
                read_store(RealDisk(), path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", fail)
        await refused(path, StorageError, "/lock: opening failed: Input/output error")


async def test_foreign_lock_file_is_refused(path: Path):
    """A file that happens to be called lock is not overwritten."""
    path.mkdir()
    (path / "lock").write_text("precious")
    await refused(path, StorageError, "lock: is no lock file of memable's")
    assert (path / "lock").read_text() == "precious"


async def test_missing_parent_is_refused(path: Path):
    """Only the store's own directory is made: a mistyped path makes no tree of directories."""
    await refused(path / "deeper", StorageError, "No such file or directory; make the directory that it is to be in")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a directory that nobody may write to, root included")
async def test_unwritable_place_is_refused():
    """Where nothing can be written, the error says so and names the way out."""
    await refused(Path("/proc/self/memable"), StorageError, "/proc/self/memable: opening failed: .*; .*")


@pytest.mark.parametrize("left", [[], ["lock"], ["00000001.log.tmp"], ["lock", "00000001.log.tmp"]])
async def test_store_whose_making_was_cut_short_is_made(path: Path, left: list[str]):
    """An empty directory, and what a crash leaves of a store in the making, become a store, private."""
    path.mkdir(mode=0o755)
    for name in left:
        (path / name).write_bytes(b"")
    async with FileStore(path).open(current_clock()) as opened:
        assert (opened.session, opened.after_crash) == (1, False)
    assert sorted(found.name for found in path.iterdir()) == ["00000001.log", "lock"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


async def test_newer_log_is_refused(path: Path):
    """A log of a newer format is named as such, before anything else is judged, and left as it is."""
    path.mkdir()
    (path / "00000001.log").write_bytes(_header(b'{"memable":3,"anything":[]}') + b"whatever\n")
    await refused(path, StoreVersionError, r"00000001.log: is in format 3, .* install a newer release")
    assert (path / "00000001.log").stat().st_size == 46


@pytest.mark.parametrize("missing", ["00000001.log", "00000002.log"])
async def test_missing_segment_is_damage(path: Path, missing: str):
    """A log that lacks a file is refused, whichever it is, and the file is named."""
    async with FileStore(path, segment_bytes=1024).open(current_clock()) as opened:
        for _ in range(20):
            await start(opened)
    assert len(list(path.glob("*.log"))) > 2
    (path / missing).unlink()
    (path / "checkpoint").unlink(missing_ok=True)
    await refused(
        path, StoreCorruptedError, f"{missing}: at byte offset 0: segment . is missing, though the log went on"
    )


async def test_missing_last_segment_is_damage(path: Path):
    """That the last file is missing is known from the lock file, and from the checkpoint if that is gone."""
    async with FileStore(path, segment_bytes=1024).open(current_clock()) as opened:
        for _ in range(20):
            await start(opened)
    last = max(path.glob("*.log"))
    last.unlink()
    await refused(path, StoreCorruptedError, f"{last.name}: at byte offset 0: segment [0-9]+ is missing")
    (path / "lock").unlink()
    await refused(path, StoreCorruptedError, f"{last.name}: at byte offset 0: the checkpoint says that it was at least")


async def test_log_of_another_number_is_damage(path: Path):
    """A file that was renamed is not read as what it is not."""
    path.mkdir()
    (path / "00000001.log").write_bytes(_header(b'{"memable":1,"store":"x","segment":7,"created_at":1.0}'))
    await refused(path, StoreCorruptedError, "says that it is number 7")


def _header(text: bytes) -> bytes:
    return b"%08x %b\n" % (zlib.crc32(text), text)


async def test_damaged_log_is_refused_and_left_alone(path: Path):
    """A flipped bit in an older batch is told with its place, and nothing of the log is changed."""
    async with FileStore(path).open(current_clock()) as opened:
        number = await start(opened)
        await opened.append([step(number, 2)])
    log = path / "00000001.log"
    damaged = bytearray(log.read_bytes())
    at = damaged.index(b"instance_started")
    damaged[at] ^= 4
    log.write_bytes(damaged)
    error = await refused(path, StoreCorruptedError, r"at byte offset \d+: batch 1 is damaged .* from a backup")
    assert isinstance(error, StoreCorruptedError)
    assert (error.location, error.offset) == (str(log), damaged.rindex(b"\n", 0, at) + 1)
    assert log.read_bytes() == damaged


async def test_damage_found_by_a_load_is_told(path: Path):
    """What was damaged since it was written is not returned."""
    async with FileStore(path).open(current_clock()) as opened:
        number, other = await start(opened), await start(opened)
        log = path / "00000001.log"
        damaged = bytearray(log.read_bytes())
        at = damaged.index(b"instance_started")
        damaged[at] ^= 4
        log.write_bytes(damaged)
        with pytest.raises(StoreCorruptedError, match="instance 1 there was intact before, and is not now") as caught:
            await opened.load(number)
        assert caught.value.offset == damaged.rindex(b"\n", 0, at) + 1
        assert await opened.load(other) == [started(other)]


def test_trio_run_that_breaks_down_leaves_no_thread_behind():
    """A job that ends after its trio run has ended ends the thread, and disturbs nobody."""
    go_on = threading.Event()

    async def main() -> ThreadWorker:
        worker = ThreadWorker()
        worker.submit(go_on.wait, lambda value, error: None)
        return worker

    worker = trio.run(main)
    go_on.set()
    worker._thread.join()


async def test_thread_of_a_store_keeps_nothing_of_a_batch_that_is_done():
    """Between two batches, nothing of the one before is kept: not the tasks that waited for it, nor their instances."""

    class Job:
        def __call__(self) -> None: ...

    job, is_gone, is_done = Job(), threading.Event(), trio.Event()
    weakref.finalize(job, is_gone.set)
    worker = ThreadWorker()
    worker.submit(job, lambda value, error: is_done.set())
    del job
    await is_done.wait()
    assert await trio.to_thread.run_sync(is_gone.wait, 30)
    worker.close()


async def test_record_that_slipped_through_stops_the_store(path: Path, monkeypatch: pytest.MonkeyPatch):
    """If a record that cannot follow got as far as the log, the store stops before it is told to anybody."""
    async with FileStore(path).open(current_clock()) as opened:
        number = await start(opened)
        monkeypatch.setattr(HeaderIndex, "admit", lambda index, records: None)
        with pytest.raises(StorageError, match=r"writing failed: ValueError: record 1 of .* open the store again"):
            await opened.append([started(number)])
    await refused(path, StoreCorruptedError, "record 1 of instance 1 follows record 1")


# Second openers ----------------------------------------------------------------------------------------------------

HOLD = """
import sys, trio
from memable import FileStore
from memable._clock import current_clock
from sample_records import start
async def main():
    async with FileStore(sys.argv[1]).open(current_clock()) as opened:
        await start(opened)
        print("held", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
trio.run(main)
"""


@pytest.mark.parametrize("end", ["kill", "close"])
async def test_store_open_in_another_process_is_locked(path: Path, end: str):
    """The holder in another process is named; once it has ended, however, the store opens."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        error = await refused(path, StoreLockedError, rf"process {holder.pid} on host .*, since .*, has it open; close")
        assert isinstance(error, StoreLockedError)
        assert (error.pid, error.host) == (holder.pid, socket.gethostname())
        if end == "kill":
            holder.kill()
        holder.communicate()
    async with FileStore(path).open(current_clock()) as opened:
        assert opened.after_crash == (end == "kill")
        assert await opened.load(1) == [started(1)]


def test_holder_that_cannot_be_read_is_locked_all_the_same(path: Path):
    """Without a readable note in the lock file, the lock still holds."""

    async def main() -> None:
        async with FileStore(path).open(current_clock()):
            (path / "lock").write_bytes(b"\xff" * 512)
            error = await refused(path, StoreLockedError, "another engine has it open")
            assert isinstance(error, StoreLockedError)
            assert (error.pid, error.host) == (None, None)
            (path / "lock").write_bytes(b"{}".ljust(512))
            await refused(path, StoreLockedError, "another engine has it open")

    trio.run(main)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_forked_child_writes_nothing(path: Path):
    """In a forked child the open store is disabled, and closing it does nothing to its parent's."""
    async with FileStore(path).open(current_clock()) as opened:
        number = await start(opened)
        here, there = multiprocessing.Pipe()
        pid = os.fork()
        if pid == 0:
            answer = "nothing"
            try:
                for call in (opened.append([step(number, 2)]), opened.load(number)):
                    try:
                        call.send(None)
                    except StorageError as exc:
                        answer = str(exc)
                closing = opened.end_session(1.0)  # type: ignore[attr-defined]  # a file store's
                try:
                    closing.send(None)
                except StopIteration:
                    there.send(answer)
            finally:
                os._exit(0)
        assert "this is a forked child" in here.recv()
        os.waitpid(pid, 0)
        await opened.append([step(number, 2)])
    async with FileStore(path).open(current_clock()) as opened:
        assert not opened.after_crash
        assert len(await opened.load(number)) == 2


@pytest.mark.parametrize("loss", ["lock removed", "directory moved", "log grown"])
async def test_store_that_lost_its_files_stops(path: Path, loss: str):
    """Whoever no longer has the lock, or the log to itself, writes nothing more."""
    with pytest.raises(StorageError, match=r"find out who, then open it again|make the directory"):
        async with FileStore(path).open(current_clock()) as opened:
            number = await start(opened)
            match loss:
                case "lock removed":
                    (path / "lock").unlink()
                case "directory moved":
                    path.rename(path.with_name("moved"))
                case _:
                    with (path / "00000001.log").open("ab") as log:
                        log.write(b"intruder\n")
            await opened.append([step(number, 2)])
    [log_path] = path.parent.glob("*/00000001.log")
    assert b"step_completed" not in log_path.read_bytes()
    assert b"store_closed" not in log_path.read_bytes()
