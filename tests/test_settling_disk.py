"""
Tests of what one store may still do on a disk once a sync of its directory has failed.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from pathlib import Path

import pytest

from memable import StorageError
from memable._disk import Disk
from memable._store._directory import rename_durably
from memable._store._failures import UnsettledRenameError
from memable._store._protocol import OpenStore
from memable._store._settling_disk import SettlingDisk
from memable._testing._simulated_disk import Fault, PowerCutError, SimulatedDisk, lose_all, lose_nothing
from segmented import journals, open_on, retire, run_instance, tidy

PATH = Path("/store")


def made(disk: Disk, *names: str) -> None:
    for name in names:
        disk.open_file(PATH / name, create=True).close()


def test_nothing_is_named_or_believed_after_a_sync_of_the_directory_has_failed():
    """The system reports a failure once: whoever asks next would be told that all is well."""
    disk = SimulatedDisk(directories={Path("/"), PATH})
    settling = SettlingDisk(disk)
    made(settling, "a", "b")
    settling.sync_directory(PATH)
    disk.faults[len(disk.calls) + 1] = Fault(errno.EIO)
    with pytest.raises(UnsettledRenameError, match="Input/output error"):
        rename_durably(settling, PATH / "a", PATH / "A")
    for _ in range(2):
        with pytest.raises(UnsettledRenameError, match="an earlier sync of the directory failed"):
            settling.sync_directory(PATH)
        with pytest.raises(UnsettledRenameError, match="an earlier sync of the directory failed"):
            settling.rename(PATH / "b", PATH / "B")
    assert sorted(path.name for path in disk.power_cut(lose_all).shown) == ["a", "b"]


def test_thread_that_waits_for_a_sync_of_another_learns_that_it_failed():
    """Of two threads that sync at once, the kernel tells one of a failure. So only one syncs at a time."""

    class Slow(SimulatedDisk):
        def sync_directory(self, path: Path) -> None:
            is_begun.set()
            goes_on.wait(10)
            SimulatedDisk.sync_directory(self, path)

        def rename(self, source: Path, target: Path) -> None:
            SimulatedDisk.rename(self, source, target)
            if target.name == "B":
                is_named.set()

    is_begun, is_named, goes_on = threading.Event(), threading.Event(), threading.Event()
    disk = Slow(directories={Path("/"), PATH})
    settling = SettlingDisk(disk)
    made(settling, "a", "b")
    outcomes: dict[str, BaseException | None] = {}

    def sync(name: str) -> None:
        try:
            rename_durably(settling, PATH / name, PATH / name.upper())
        except OSError as error:
            outcomes[name] = error
        else:
            outcomes[name] = None

    first = threading.Thread(target=sync, args=("a",))
    first.start()
    assert is_begun.wait(10)
    second = threading.Thread(target=sync, args=("b",))
    second.start()
    # What it does next is to wait for its turn to sync.
    assert is_named.wait(10)
    disk.faults[len(disk.calls)] = Fault(errno.EIO)
    goes_on.set()
    first.join(10)
    second.join(10)
    assert {name: type(error) for name, error in outcomes.items()} == {
        "a": UnsettledRenameError,
        "b": UnsettledRenameError,
    }


def test_right_that_is_missing_is_no_failure():
    """A directory that may not be opened was not asked, so nothing is known to be wrong with it."""
    disk = SimulatedDisk(directories={Path("/"), PATH})
    settling = SettlingDisk(disk)
    disk.faults[len(disk.calls)] = Fault(errno.EACCES)
    with pytest.raises(PermissionError):
        settling.sync_directory(PATH)
    settling.sync_directory(PATH)


def test_store_that_is_made_anew_after_a_failed_sync_is_durable():
    """Whichever sync of a directory fails while a store is made, what is acknowledged at the next try stays."""
    rehearsal = SimulatedDisk()
    open_on(rehearsal, run_instance)
    tried = 0
    for number, name in enumerate(rehearsal.calls):
        if name != "sync_directory":
            continue
        disk = SimulatedDisk(faults={number: Fault(errno.EIO)})
        with pytest.raises(StorageError):
            open_on(disk, run_instance)
        again = disk.kill()
        open_on(again, run_instance)
        found = open_on(again, journals)
        assert found
        for choose in (lose_all, lose_nothing):
            assert open_on(again.copy().power_cut(choose), journals) == found
        tried += 1
    assert tried >= 2


@pytest.mark.parametrize("kills", [1, 2])
def test_failed_sync_of_the_directory_at_an_open_is_made_up_for(kills: int):
    """A process dies between a name and its sync, and an opener fails to sync: the next one does not believe it."""
    rehearsal = SimulatedDisk()
    open_on(rehearsal, fill)
    tried = 0
    for number, name in enumerate(rehearsal.calls):
        if name != "rename":
            continue
        disk = SimulatedDisk(cut_at=number + 1)
        with contextlib.suppress(StorageError, PowerCutError):
            open_on(disk, fill)
        killed = disk.kill()
        for _ in range(kills):
            opening = killed.copy()
            with contextlib.suppress(StorageError):
                open_on(opening, journals)
            at = next((at for at, call in enumerate(opening.calls) if call == "sync_directory"), None)
            if at is None:
                break
            killed.faults[at] = Fault(errno.EIO)
            with contextlib.suppress(StorageError):
                open_on(killed, journals)
            killed = killed.kill()
        found = open_on(killed, journals)
        assert open_on(killed.copy().power_cut(lose_all), journals) == found
        tried += 1
    assert tried >= 4


async def fill(store: OpenStore) -> None:
    """Begin some segments, and compact some."""
    numbers = [await run_instance(store) for _ in range(8)]
    for number in numbers[:6]:
        await retire(store, number)
    await tidy(store)
