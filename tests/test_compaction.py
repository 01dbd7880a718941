"""
Tests of what an open store does beside: it gives back the space of what is not needed, and loses nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import random
from collections.abc import Awaitable, Callable, Iterator
from itertools import cycle
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from memable import FileStore, StorageError, StoreCorruptedError
from memable._clock import current_clock
from memable._records import InstanceRecord
from memable._store._protocol import OpenStore
from memable._testing._simulated_disk import Choose, Fault, SimulatedDisk, lose_all, lose_nothing
from sample_records import completed, resumed, retired, started, step
from segmented import (
    CHECKPOINT,
    PATH,
    Durability,
    Journals,
    Ledger,
    chain_on,
    forgetting,
    in_order,
    journals,
    journals_beside,
    log_text,
    names_on,
    newest_seq,
    open_on,
    retire,
    run_instance,
    tidy,
    without_checkpoint,
    without_superseded,
)


def everywhere(disk: SimulatedDisk, durability: Durability = "fsync") -> Journals:
    """Return what is found on a disk: the same beside an engine, at open, and without the checkpoint."""
    found = journals_beside(disk.copy())
    assert without_superseded(journals_beside(without_checkpoint(disk))) == without_superseded(found)
    assert without_superseded(open_on(without_checkpoint(disk), journals, durability)) == without_superseded(found)
    opened = disk.copy()
    assert without_superseded(open_on(opened, journals, durability)) == without_superseded(found)
    assert not [name for name in names_on(opened) if name.endswith(".tmp")]
    assert chain_on(opened).superseded == ()
    return found


# Space comes back --------------------------------------------------------------------------------------------------


def test_space_of_what_was_retired_comes_back():
    """Lines of removed instances go; those of all others stay as they are, and are found by everybody."""
    disk = SimulatedDisk()

    async def main(store: OpenStore) -> tuple[Journals, int]:
        numbers = [await run_instance(store) for _ in range(24)]
        for number in numbers[:20]:
            await retire(store, number)
        before, size = await journals(store), len(log_text(disk))
        await tidy(store)
        assert await journals(store) == before
        return before, size

    before, size = open_on(disk, main, segment_bytes=4096)
    assert set(before) == {21, 22, 23, 24}
    assert everywhere(disk) == before
    assert len(log_text(disk)) < size / 3
    # Tombstones of what is gone altogether went with it, but for those in the tail.
    sealed = b"".join(disk.content(PATH / str(name)) for name in chain_on(disk).current[:-1])
    assert b"instance_retired" not in sealed
    assert all(b'"instance":%d,' % number not in sealed for number in range(1, 15))


def test_nothing_is_compacted_as_long_as_all_is_needed():
    """What is alive is not copied about."""
    disk = SimulatedDisk()

    async def main(store: OpenStore) -> None:
        for _ in range(12):
            await run_instance(store)
        await tidy(store)

    open_on(disk, main)
    assert not any(name.is_compacted for name in chain_on(disk).current)


def test_many_small_files_are_merged():
    """However often things come and go, the number of files stays bounded by what is alive."""
    disk = SimulatedDisk()

    async def main(store: OpenStore) -> None:
        await run_instance(store, ends=False)
        for _ in range(30):
            for _ in range(8):
                await retire(store, await run_instance(store, steps=5))
            await run_instance(store, steps=1)
            await tidy(store)

    open_on(disk, main, segment_bytes=8192)
    found = everywhere(disk)
    assert len(found) == 31
    live = sum(len(line) for line in log_text(disk).splitlines() if b'"instance' in line)
    assert len(chain_on(disk).current) <= 3 + 4 * live / 8192


@pytest.mark.parametrize("durability", ["fsync", "os"])
def test_reopening_over_and_over_leaves_few_files(durability: Durability):
    """Sessions that begin a segment each, since their durability changes, do not fill the directory."""
    disk = SimulatedDisk()
    other: Durability = "os" if durability == "fsync" else "fsync"
    for session in range(20):
        open_on(disk, run_instance, durability if session % 2 else other, segment_bytes=16384)
        open_on(disk, tidy, durability if session % 2 else other, segment_bytes=16384)
    assert len(chain_on(disk).current) <= 6
    assert len(everywhere(disk)) == 20


def test_superseded_memos_go():
    """What was forgotten takes no space, and the journal without it is the one that is read, before and after."""
    disk = SimulatedDisk()

    async def main(store: OpenStore) -> tuple[Journals, Journals]:
        number = await store.allocate_number()
        await store.append([started(number)])
        for seq in range(2, 30):
            await store.append([step(number, seq, b'"' + b"x" * 200 + b'"')])
        await store.append([completed(number, 30), forgetting(number, 31, *(f"s{seq}" for seq in range(2, 25)))])
        before = await journals(store)
        await tidy(store)
        after = await journals(store)
        # And what follows finds its place.
        await store.append([step(number, 32), completed(number, 33)])
        await tidy(store)
        return before, after

    before, after = open_on(disk, main)
    assert after == without_superseded(before)
    assert len(after[1]) == 31 - 23
    found = everywhere(disk)
    assert found[1] == [*after[1], step(1, 32), completed(1, 33)]
    assert log_text(disk).count(b"x" * 200) == 5


def test_superseded_memos_that_went_are_not_missed_after_a_crash():
    """A checkpoint that is older than the compaction speaks of memos that are gone; nobody looks for them."""
    disk = SimulatedDisk()
    ledger = Ledger()
    survivors: list[SimulatedDisk] = []

    async def main(store: OpenStore) -> None:
        for number in (1, 2):
            await store.allocate_number()
            await ledger.append(store, started(number, session=1))
            for seq in range(2, 12):
                await ledger.append(store, step(number, seq))
        for number in (3, 4, 5):
            await store.allocate_number()
            await ledger.append(store, started(number, session=1), completed(number, 2))
        await retire_with(ledger, store, 3)
        await tidy(store)
        assert CHECKPOINT in disk.shown
        checkpoint = disk.content(CHECKPOINT)
        await ledger.append(store, forgetting(1, 12, anew=True))
        await ledger.append(store, completed(1, 13), completed(2, 12))
        await tidy(store)
        # As if that had been done without a newer checkpoint.
        survivors.append(in_order(disk))
        survivors.append(with_file(in_order(disk), CHECKPOINT, checkpoint))

    open_on(disk, main)
    for survivor in survivors:
        ledger.check(everywhere(survivor))


def with_file(disk: SimulatedDisk, path: Path, content: bytes) -> SimulatedDisk:
    return SimulatedDisk.holding({**{path: bytes(inode.shown) for path, inode in disk.shown.items()}, path: content})


async def retire_with(ledger: Ledger, store: OpenStore, number: int) -> None:
    await ledger.append(store, retired(number, await newest_seq(store, number) + 1))


# Whenever the power is cut -----------------------------------------------------------------------------------------


async def work(store: OpenStore, ledger: Ledger) -> None:
    """Do a bit of everything, upkeep included."""
    sizes = {1: 5, 2: 9, 3: 3, 4: 8, 5: 9, 6: 7, 7: 4}
    for number in sizes:
        await store.allocate_number()
        await ledger.append(store, started(number, session=store.session))
    for seq in range(2, 10):
        for number, size in sizes.items():
            if seq < size:
                await ledger.append(store, step(number, seq))
            elif seq == size:
                await ledger.append(store, step(number, seq), completed(number, seq + 1))
    for number in (1, 3, 4, 6, 7):
        await retire_with(ledger, store, number)


async def work_beside(store: OpenStore, ledger: Ledger) -> None:
    """Go on while upkeep is under way."""
    await ledger.append(store, forgetting(2, 11, "s2", "s3", "s4", "s5", "s6"))
    await retire_with(ledger, store, 5)
    number = await store.allocate_number()
    await ledger.append(store, started(number, name="i1", session=store.session))
    await ledger.append(store, step(number, 2), completed(number, 3))
    await ledger.append(store, step(2, 12), completed(2, 13))
    await retire_with(ledger, store, number)


async def upkeep(store: OpenStore, ledger: Ledger) -> None:
    """Let upkeep do what is due, go on while it is under way, and let it end."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.maintain)
        for _ in range(30):
            await trio.lowlevel.checkpoint()
        await work_beside(store, ledger)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


@attrs.frozen
class Prepared:
    """A store that is due for upkeep."""

    disk: SimulatedDisk
    ledger: Ledger
    durability: Durability

    def again(self) -> Prepared:
        return Prepared(self.disk.copy(), self.ledger.copy(), self.durability)

    def run(self, fn: Callable[[OpenStore, Ledger], Awaitable[None]] = upkeep) -> None:
        open_on(self.disk, lambda store: fn(store, self.ledger), self.durability)

    def run_until_it_fails(self) -> None:
        """Do the upkeep, whatever comes of it."""
        try:
            self.run()
        except* StorageError:
            pass


def prepared(durability: Durability) -> Prepared:
    ledger = Ledger()
    disk = SimulatedDisk()
    open_on(disk, lambda store: work(store, ledger), durability)
    return Prepared(in_order(disk), ledger, durability)


def losses(seed: int) -> Iterator[Choose | None]:
    """Ways to lose power, one after the other; None is a kill, which loses nothing."""
    return cycle([None, lose_all, random.Random(seed).randrange, lose_nothing, random.Random(seed + 1).randrange])


def survive(disk: SimulatedDisk, loss: Choose | None) -> SimulatedDisk:
    return disk.kill().copy() if loss is None else disk.power_cut(loss)


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["fsync", "os"])
def test_power_cut_or_kill_at_every_call_of_upkeep_loses_nothing(durability: Durability):
    """Sealing, checkpoints, compaction and the removal of files may end anywhere, and nothing is lost."""
    given = prepared(durability)
    whole = given.again()
    whole.run()
    assert any(name.is_compacted for name in chain_on(whole.disk).current)
    assert CHECKPOINT in whole.disk.shown
    whole.ledger.check(everywhere(whole.disk))
    loss_of = losses(1)
    for cut_at in range(len(whole.disk.calls)):
        here = given.again()
        here.disk.cut_at = cut_at
        here.run_until_it_fails()
        assert here.disk.is_off
        loss = next(loss_of)
        found = everywhere(survive(here.disk, loss), durability)
        least = given.ledger.acknowledged if durability == "os" and loss is not None else None
        here.ledger.check(found, least=least)


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["fsync", "os"])
def test_power_cut_during_the_recovery_from_a_power_cut_loses_nothing(durability: Durability):
    """What a recovery does may be cut short as well, and what the next one does, too."""
    given = prepared(durability)
    whole = given.again()
    whole.run()
    choose = random.Random(7)
    loss_of = losses(3)
    for cut_at in range(5, len(whole.disk.calls), 11):
        here = given.again()
        here.disk.cut_at = cut_at
        here.run_until_it_fails()
        for _ in range(3):
            loss = next(loss_of)
            here = Prepared(survive(here.disk, loss), here.ledger, durability)
            least = given.ledger.acknowledged if durability == "os" else None
            # What is found is what counts from now on.
            count = here.ledger.check(everywhere(here.disk, durability), least=least)
            here.ledger.acknowledged = count
            here.ledger.appends[count:] = []
            here.disk.cut_at = choose.randrange(60)
            with suppress_storage_errors():
                open_on(here.disk, tidy, durability)
        here.ledger.check(everywhere(here.disk.kill(), durability))


@contextlib.contextmanager
def suppress_storage_errors() -> Iterator[None]:
    try:
        yield
    except* StorageError:
        pass


WRITING = {"create", "write", "sync", "rename", "sync_directory", "truncate", "remove"}


# Whatever fails ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["fsync", "os"])
def test_failure_of_any_call_of_upkeep_loses_nothing(durability: Durability):
    """An engine whose disk fails stops; what was acknowledged is there for the next, however the first one went."""
    given = prepared(durability)
    whole = given.again()
    whole.run()
    loss_of = losses(2)
    for number in range(0 if durability == "fsync" else 1, len(whole.disk.calls), 2):
        here = given.again()
        here.disk.faults[number] = Fault(errno.EIO, after_bytes=number % 300)
        here.run_until_it_fails()
        loss = next(loss_of)
        found = everywhere(survive(here.disk, loss), durability)
        least = given.ledger.acknowledged if durability == "os" and loss is not None else None
        here.ledger.check(found, least=least)


@pytest.mark.parametrize("call", sorted(WRITING - {"truncate"}))
def test_failed_call_of_upkeep_stops_the_engine(call: str):
    """A disk that fails in a checkpoint or a compaction is not trusted any more."""
    disk = FailingDisk.like(prepared("fsync").disk, call)

    async def main(store: OpenStore) -> None:
        disk.is_armed = True
        try:
            await tidy(store)
        finally:
            disk.is_armed = False

    with pytest.raises(StorageError, match=r"failed: (Input/output error|an earlier write or sync failed); find out"):
        open_on(disk, main)


class FailingDisk(SimulatedDisk):
    """One kind of call fails at some time."""

    failing: str
    is_armed = False

    @classmethod
    def like(cls, disk: SimulatedDisk, failing: str) -> FailingDisk:
        other = cls(directories=disk.directories, shown=disk.shown, stored=disk.stored)
        other.failing = failing
        return other

    def call(self, name: str) -> Fault | None:
        if self.is_armed and name == self.failing:
            self.faults[len(self.calls)] = Fault(errno.EIO)
        return super().call(name)


@pytest.mark.parametrize("durability", ["fsync", "os"])
def test_full_disk_only_puts_upkeep_off(durability: Durability, caplog: pytest.LogCaptureFixture):
    """Where there is no room for a checkpoint or a compaction, the engine goes on, and it is tried again later."""
    given = prepared(durability)
    calls: list[str] = []

    async def count(store: OpenStore) -> None:
        before = len(disk.calls)
        await tidy(store)
        calls.extend(disk.calls[before:])

    disk = given.disk.copy()
    open_on(disk, count, durability)
    names = names_on(disk)
    for at in [at for at, name in enumerate(calls) if name in WRITING]:
        here = given.again()

        async def main(store: OpenStore, here: Prepared = here, at: int = at) -> bool:
            here.disk.faults[len(here.disk.calls) + at] = Fault(errno.ENOSPC)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.maintain)
                await trio.testing.wait_all_tasks_blocked()
                assert not [name for name in names_on(here.disk) if name.endswith(".tmp")]
                here.ledger.check(await journals(store))
                await here.ledger.append(store, forgetting(2, 11, "s2"))
                await trio.sleep(61)
                await trio.testing.wait_all_tasks_blocked()
                here.ledger.check(await journals(store))
                nursery.cancel_scope.cancel()
            return True

        caplog.clear()
        try:
            done = open_on(here.disk, main, durability)
        except* StorageError as group:
            # The file may have its name, or not: there is no going on from that.
            assert calls[at] in {"sync_directory", "sync"}, (at, calls[at], group)  # noqa: PT017 - only some may raise
            done = False
        here.ledger.check(everywhere(here.disk.kill(), durability))
        if done:
            assert any(name.is_compacted for name in chain_on(here.disk).current)
            assert "no room for a checkpoint or a compaction" in caplog.text or calls[at] == "remove"
    assert names


def test_damaged_segment_is_left_as_it_is(caplog: pytest.LogCaptureFixture):
    """A compaction that meets damage leaves it for somebody to mend; everything else goes on."""
    given = prepared("fsync")
    disk = given.disk
    # With a checkpoint nobody looks at it before the compaction does.
    segment = PATH / "00000002.log"

    async def main(store: OpenStore) -> Journals:
        before = await journals(store)
        content = disk.content(segment)
        disk.shown[segment].shown[len(content) - 30] ^= 1
        damaged = disk.content(segment)
        for _ in range(3):
            await tidy(store)
            number = await store.allocate_number()
            await store.append([started(number), step(number, 2), completed(number, 3)])
            await retire(store, number)
        assert disk.content(segment) == damaged
        await tidy(store)
        disk.shown[segment].shown[:] = content
        return before

    before = open_on(disk, main)
    assert "00000002.log: at byte offset" in caplog.text
    assert "not compacted any more" in caplog.text
    assert everywhere(disk) == before


def test_memo_that_cannot_be_read_is_not_superseded(caplog: pytest.LogCaptureFixture):
    """Damage in the journal of one that was forgotten does not stop the engine."""
    disk = SimulatedDisk()

    async def main(store: OpenStore) -> None:
        number = await run_instance(store, steps=12)
        first = PATH / "00000001.log"
        disk.shown[first].shown[-30] ^= 1
        await store.append([forgetting(number, 15, "s2")])
        await tidy(store)
        with pytest.raises(StoreCorruptedError, match=r"00000001\.log: at byte offset"):
            await store.load(number)
        await run_instance(store)

    open_on(disk, main)
    assert "what instance 1 had forgotten is kept" in caplog.text


# Beside all that ---------------------------------------------------------------------------------------------------


def test_upkeep_may_be_cancelled_at_any_step():
    """What is cut short leaves nothing but a temporary file, and that goes when the store is opened again."""
    given = prepared("fsync")
    names: set[tuple[str, ...]] = set()
    for turns in range(60):
        here = given.again()

        async def main(store: OpenStore, turns: int = turns, here: Prepared = here) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.maintain)
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            assert len([name for name in names_on(here.disk) if name.endswith(".tmp")]) <= 1
            here.ledger.check(await journals(store))

        open_on(here.disk, main)
        names.add(tuple(names_on(here.disk)))
        here.ledger.check(everywhere(here.disk))
    whole = given.again()
    open_on(whole.disk, tidy)
    # How far so many turns lead depends on the order in which trio runs its tasks: at random.
    assert tuple(names_on(whole.disk)) in names
    assert len(names) > 1


@pytest.mark.slow
def test_journals_are_loaded_while_they_are_compacted():
    """Whoever loads a journal gets it, whole, whatever is moved or removed meanwhile."""
    given = prepared("fsync")

    async def main(store: OpenStore) -> int:
        count = 0

        async def read(number: int) -> None:
            nonlocal count
            while True:
                try:
                    records = await store.load(number)
                except KeyError:
                    # It was retired.
                    assert number == 5
                    return
                kept = without_superseded({number: records})[number]
                assert any(
                    kept == without_superseded(given.ledger.after(appends)).get(number)
                    for appends in range(given.ledger.acknowledged + 1)
                )
                count += 1

        async with trio.open_nursery() as nursery:
            for number in (2, 5):
                nursery.start_soon(read, number)
            async with trio.open_nursery() as inner:
                inner.start_soon(store.maintain)
                for _ in range(60):
                    await trio.lowlevel.checkpoint()
                await work_beside(store, given.ledger)
                for _ in range(400):
                    await trio.lowlevel.checkpoint()
                inner.cancel_scope.cancel()
            nursery.cancel_scope.cancel()
        return count

    assert open_on(given.disk, main) > 100
    assert any(name.is_compacted for name in chain_on(given.disk).current)
    given.ledger.check(everywhere(given.disk))


@pytest.mark.slow
@pytest.mark.parametrize("with_checkpoint", [True, False])
def test_what_is_retired_during_a_compaction_never_comes_back(with_checkpoint: bool):
    """Its tombstone stays as long as the compaction has kept a line of it, whatever is compacted in what order."""
    given = prepared("fsync")
    for turns in range(0 if with_checkpoint else 2, 150, 4):
        here = given.again()

        async def main(store: OpenStore, turns: int = turns, ledger: Ledger = here.ledger) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.maintain)
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                await retire_with(ledger, store, 5)
                await ledger.append(store, forgetting(2, 11, anew=True), completed(2, 12))
                await retire_with(ledger, store, 2)
                await trio.testing.wait_all_tasks_blocked()
                # Enough of what is short-lived for the tombstones to be compacted themselves.
                for _ in range(10):
                    number = await store.allocate_number()
                    await ledger.append(store, started(number, name="i5"), completed(number, 2))
                    await retire_with(ledger, store, number)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()

        open_on(here.disk, main)
        disk = here.disk if with_checkpoint else without_checkpoint(here.disk)
        here.ledger.check(everywhere(disk))
        for _ in range(2):
            open_on(disk, tidy)
            open_on(disk, lambda store: run_instance(store, steps=5))
            if not with_checkpoint:
                disk = without_checkpoint(disk)
            found = everywhere(disk)
            assert not set(range(1, 8)) & set(found)


# Space, sessions, numbers ------------------------------------------------------------------------------------------


class MeasuredDisk(SimulatedDisk):
    """Keeps in mind how much was on it at most."""

    most = 0

    def call(self, name: str) -> Fault | None:
        fault = super().call(name)
        self.most = max(self.most, sum(len(inode.shown) for inode in self.shown.values()))
        return fault


@pytest.mark.parametrize("kept", [0, 3, 10])
def test_compaction_takes_little_space_of_its_own(kept: int):
    """Beside what there was, it takes a segment and what is alive at most, checkpoints aside."""
    disk = MeasuredDisk()
    segment_bytes = 8192

    async def main(store: OpenStore) -> tuple[int, int, int]:
        numbers = [await run_instance(store, steps=4) for _ in range(200)]
        for number in numbers:
            if number % 20 >= kept:
                await retire(store, number)
        before = disk.most = sum(len(inode.shown) for inode in disk.shown.values())
        await tidy(store)
        return before, disk.most, len(log_text(disk))

    before, most, after = open_on(disk, main, segment_bytes=segment_bytes)
    checkpoint = len(disk.content(CHECKPOINT))
    assert most <= before + segment_bytes + after + 2 * checkpoint
    # And it does not take two segments at once.
    assert most <= before + 1.2 * segment_bytes + 2 * checkpoint
    assert after < before * (kept + 6) / 20


@pytest.mark.parametrize("with_checkpoint", [True, False])
def test_crashed_sessions_are_known_after_compaction(with_checkpoint: bool):
    """Which sessions crashed is known though the records of their beginnings and ends are gone."""
    disk = SimulatedDisk()
    numbers: list[int] = []

    async def crash(store: OpenStore) -> None:
        numbers.append(await run_instance(store, ends=False))
        survivors.append(disk.kill())

    for is_crash in (True, False, True, True, False):
        survivors: list[SimulatedDisk] = []
        if is_crash:
            with suppress_storage_errors():
                open_on(disk, crash)
            (disk,) = survivors
        else:
            open_on(disk, lambda store: run_instance(store, ends=False))

    async def main(store: OpenStore) -> list[bool]:
        for number in [await run_instance(store) for _ in range(20)]:
            await retire(store, number)
        await tidy(store)
        return [store.has_crashed(session) for session in range(1, 7)]

    expected = [True, False, True, True, False, False]
    assert open_on(disk, main) == expected
    # The records of the first sessions stand between those of instances that go on.
    compacted = [name for name in chain_on(disk).current if name.is_compacted]
    assert compacted
    assert all(b"store_opened" not in disk.content(PATH / str(name)) for name in compacted)
    again = disk if with_checkpoint else without_checkpoint(disk)

    async def look(store: OpenStore) -> tuple[int, bool, list[bool]]:
        return store.session, store.after_crash, [store.has_crashed(session) for session in range(1, 7)]

    assert open_on(again, look) == (7, False, expected)
    assert open_on(again, look) == (8, False, expected)


@pytest.mark.parametrize("with_checkpoint", [True, False])
def test_numbers_are_not_used_again_after_compaction(with_checkpoint: bool):
    """Of the newest instances nothing may be left in the log; their numbers are taken all the same."""
    disk = SimulatedDisk()

    async def main(store: OpenStore) -> None:
        for number in [await run_instance(store) for _ in range(20)]:
            await retire(store, number)
        # Only sessions in the tail, and nothing of an instance anywhere.
        await tidy(store)

    open_on(disk, main, segment_bytes=2048)
    for session in range(8):
        if not with_checkpoint:
            disk = without_checkpoint(disk)
        durability: Durability = "os" if session % 2 else "fsync"
        open_on(disk, tidy, durability, segment_bytes=2048)
    assert b'"instance"' not in log_text(disk)
    if not with_checkpoint:
        disk = without_checkpoint(disk)
    assert open_on(disk, lambda store: store.allocate_number(), "os") == 21


# What must be durable first ----------------------------------------------------------------------------------------


def test_removals_are_durable_before_what_they_removed_goes():
    """Without a sync of each batch, a power cut may lose the record of a removal; then the instance is still there."""
    disk = SimulatedDisk()
    ledger = Ledger()
    survivors: list[SimulatedDisk] = []

    async def main(store: OpenStore) -> None:
        for number in range(1, 10):
            await store.allocate_number()
            await ledger.append(store, started(number, session=1))
            for seq in range(2, 7):
                await ledger.append(store, step(number, seq))
            await ledger.append(store, completed(number, 7))
        # With a checkpoint beyond, none is written before the compaction.
        await store.append([retired(9, 8)])
        await tidy(store)
        ledger.appends.append([retired(9, 8)])
        await retire_with(ledger, store, 1)
        await retire_with(ledger, store, 2)
        calls = len(disk.calls)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.maintain)
            for _ in range(150):
                if len(disk.calls) > calls and disk.calls[-1] in {"remove", "sync_directory", "rename"}:
                    calls = len(disk.calls)
                    survivors.append(disk.copy().power_cut(lose_all))
                    survivors.append(disk.copy().power_cut(lose_nothing))
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    open_on(disk, main, "os")
    assert any(name.is_compacted for survivor in survivors for name in chain_on(survivor).current)
    for survivor in survivors:
        ledger.check(everywhere(survivor, "os"), least=0)


def test_failed_sync_of_a_name_is_made_up_for():
    """The system shows a new name that the disk does not have: nothing goes for its sake before it has."""
    given = prepared("fsync")
    whole = given.again()
    open_on(whole.disk, tidy)
    tried = 0
    for at, call in enumerate(whole.disk.calls):
        if call != "sync_directory" or whole.disk.calls[at - 1] != "rename":
            continue
        files = given.again().disk
        disk = SimulatedDisk(directories=files.directories, shown=files.shown, stored=files.stored)
        disk.faults[at] = Fault(errno.EIO)
        with suppress_storage_errors():
            open_on(disk, tidy)
        killed = disk.kill()
        open_on(killed, journals)
        given.ledger.check(everywhere(killed.power_cut(lose_all)))
        tried += 1
    assert tried >= 2


@pytest.mark.parametrize("compacts_first", [1, 2, 3])
def test_lines_that_no_longer_follow_each_other_need_their_tombstone(compacts_first: int):
    """Of an instance that ended and was resumed, compaction may leave any lines: none of them brings it back."""
    disk = SimulatedDisk()

    async def spread(store: OpenStore) -> None:
        """Append one instance over many segments, in each of which another takes most of the space."""
        number = await store.allocate_number()
        await store.append([started(number)])
        fill = await run_instance(store, steps=6)
        await store.append([completed(number, 2)])
        fills = [fill, await run_instance(store, steps=6)]
        await store.append([resumed(number, 3)])
        fills.append(await run_instance(store, steps=6))
        await store.append([step(number, 4), completed(number, 5)])
        fills.append(await run_instance(store, steps=6))
        await store.append([retired(number, 6)])
        await run_instance(store, steps=8, ends=False)
        await retire(store, fills[compacts_first])

    open_on(disk, spread)
    expected = open_on(without_checkpoint(disk), journals)
    for turn in range(6):
        disk = without_checkpoint(disk)
        open_on(disk, tidy)
        assert open_on(without_checkpoint(disk), journals).keys() >= expected.keys()
        assert 1 not in everywhere(disk)
        open_on(disk, lambda store, turn=turn: run_instance(store, name=f"more{turn}", steps=6))

        async def retire_oldest(store: OpenStore) -> None:
            for header in list(await store.ended("w", until=1e9, limit=1)):
                await store.append([retired(header.number, header.seq + 1)])

        disk = without_checkpoint(disk)
        open_on(disk, retire_oldest)
        expected = {}


# Threads and a real disk -------------------------------------------------------------------------------------------


async def test_upkeep_runs_in_threads_beside_the_appends(tmp_path: Path):
    """On a real disk, with threads, while many append and load: nothing is lost, and space comes back."""
    store = FileStore(tmp_path / "store", "os", segment_bytes=8192)
    held: Journals = {}

    async def churn(opened: OpenStore, rounds: int) -> None:
        for _ in range(rounds):
            number = await opened.allocate_number()
            records: list[InstanceRecord] = [started(number), *(step(number, seq) for seq in range(2, 6))]
            for record in [*records, completed(number, 6)]:
                await opened.append([record])
            assert list(await opened.load(number)) == [*records, completed(number, 6)]
            if number % 10:
                await opened.append([retired(number, 7)])
            else:
                held[number] = [*records, completed(number, 6)]

    async with store.open(current_clock()) as opened:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opened.maintain)
            async with trio.open_nursery() as workers:
                for _ in range(8):
                    workers.start_soon(churn, opened, 40)
            with trio.fail_after(20):
                while not any(tmp_path.glob("store/*-*.log")):  # noqa: ASYNC110, ASYNC240 - the disk tells nobody
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert await journals(opened) == held
    async with store.open(current_clock()) as opened:
        assert await journals(opened) == held
    (tmp_path / "store" / "checkpoint").unlink(missing_ok=True)
    async with store.open(current_clock()) as opened:
        assert await journals(opened) == held
