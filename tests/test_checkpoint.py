"""
Tests of the checkpoint: with it or without it, a store holds the same.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import attrs
import pytest
import trio

from memable import StoreCorruptedError
from memable._encoded import Encoded
from memable._records import InstanceStarted
from memable._segments import segment
from memable._states import MetadataStatus
from memable._store._checkpoint import write_checkpoint
from memable._store._protocol import OpenStore
from memable._store._verify import verify_store
from memable._store.file import OpenFileStore
from memable._testing._simulated_disk import SimulatedDisk, lose_all
from sample_records import completed, resumed, retired, started, step
from segmented import (
    CHECKPOINT,
    PATH,
    Durability,
    Ledger,
    chain_on,
    forgetting,
    in_order,
    journals,
    journals_beside,
    names_on,
    newest_seq,
    open_on,
    retire,
    run_instance,
    tidy,
    without_checkpoint,
)


async def contents(store: OpenStore) -> object:
    """Return all that can be asked of a store."""
    headers = await store.headers()
    ends = {
        workflow: [header.number for header in await store.ended(workflow, until=1e12, limit=1000)]
        for workflow in ("w", "v", "child")
    }
    return {
        "headers": [attrs.asdict(header, filter=lambda field, _: field.eq) for header in headers],
        "live": [header.number for header in await store.live()],
        "ended": ends,
        "first": [await store.first_end(workflow) for workflow in ends],
        "found": [await store.find(header.workflow, header.instance_id) is header for header in headers],
        "done": [header.number for header in await store.headers(status=MetadataStatus.COMPLETED)],
        "journals": await journals(store),
    }


def assert_same(disk: SimulatedDisk, durability: Durability = "fsync") -> object:
    """Check that a store holds the same with and without its checkpoint, and return that."""
    found = open_on(in_order(disk), contents, durability)
    assert open_on(in_order(without_checkpoint(disk)), contents, durability) == found
    return found


async def family(store: OpenStore, *, ends: bool) -> None:
    """Append a parent and two attached children that have ended."""
    parent = await store.allocate_number()
    await store.append([started(parent, name=f"p{parent}", session=store.session)])
    for at in range(2):
        number = await store.allocate_number()
        child = InstanceStarted(
            instance=number,
            seq=1,
            at=1000.0,
            session=store.session,
            workflow="child",
            instance_id=f"p{parent}/{at}",
            input=Encoded("builtins.int", b"1"),
            parent=f"w/p{parent}",
        )
        await store.append([child, completed(number, 2)])
    if ends:
        await store.append([completed(parent, 2)])


async def fill(store: OpenStore) -> None:
    """Append instances in all states, and retire, resume and forget some."""
    for ends in (True, False, True):
        await family(store, ends=ends)
    numbers = [await run_instance(store, steps=3, ends=at % 3 != 0) for at in range(12)]
    await retire(store, numbers[1])
    await retire(store, numbers[2])
    await store.append([resumed(numbers[4], 6), step(numbers[4], 7)])
    await store.append([forgetting(numbers[5], 6, "s2"), step(numbers[5], 7), completed(numbers[5], 8)])
    await store.append([forgetting(numbers[7], 6, anew=True)])
    if await store.find("w", "again") is None:
        await run_instance(store, name="again")


def filled() -> SimulatedDisk:
    """A store with a checkpoint in the middle of its log."""
    disk = SimulatedDisk()

    async def main(store: OpenStore) -> None:
        await fill(store)
        await tidy(store)
        await run_instance(store)
        await retire(store, await newest_number(store))
        await run_instance(store, ends=False)

    open_on(disk, main, segment_bytes=4096)
    assert CHECKPOINT in disk.shown
    return in_order(disk)


async def newest_number(store: OpenStore) -> int:
    return (await store.headers())[-1].number


def test_store_with_a_checkpoint_holds_what_the_log_says():
    """A checkpoint says all that the log before it says, of whatever there may be."""
    assert_same(filled())


def test_checkpoint_spares_reading_what_is_before_it():
    """What a checkpoint knows is not read at all."""
    disk = filled()
    log = PATH / str(chain_on(disk).current[0])
    content = disk.content(log)
    disk.shown[log].shown[:] = content[: content.index(b"\n") + 1]
    assert len(open_on(disk.copy(), lambda store: store.headers())) > 10
    with pytest.raises(StoreCorruptedError):
        open_on(without_checkpoint(disk), journals)


def small_checkpoint() -> SimulatedDisk:
    """A store with a checkpoint that is as short as can be, yet has something of everything."""
    disk = SimulatedDisk()

    async def main(store: OpenStore) -> None:
        await run_instance(store, steps=4)
        await run_instance(store, steps=4, ends=False)
        await tidy(store)
        await run_instance(store, steps=0)

    open_on(disk, main)
    return in_order(disk)


# Every byte takes long; the few show by themselves what lines of memable see to it.
@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.slow), 97])
def test_every_damage_of_a_checkpoint_is_harmless(stride: int, caplog: pytest.LogCaptureFixture):
    """Flipped or cut at any byte, it is ignored, and the log is read; nothing is different for that."""
    disk = small_checkpoint()
    text = disk.content(CHECKPOINT)
    expected = journals_beside(disk)
    choose = random.Random(5)
    with caplog.at_level("CRITICAL", "memable"):
        for at in range(0, len(text), stride):
            for damaged in (
                text[:at],
                text[:at] + bytes([text[at] ^ 1 << choose.randrange(8)]) + text[at + 1 :],
                text[:at] + bytes(len(text) - at),
            ):
                disk.shown[CHECKPOINT].shown[:] = damaged
                assert journals_beside(disk) == expected
                if at % 97 == 0:
                    assert open_on(in_order(disk), journals) == expected
    assert disk.content(CHECKPOINT) != text


def test_checkpoint_of_another_store_is_ignored():
    """Whatever it says, it is not about this log, though that may be shorter than it says."""
    disk, other = small_checkpoint(), filled()
    expected = journals_beside(disk)
    disk.shown[CHECKPOINT].shown[:] = other.content(CHECKPOINT)
    assert journals_beside(disk) == expected
    assert open_on(disk, journals) == expected


def test_checkpoint_of_another_release_is_ignored():
    """A format that is not known is no damage."""
    disk = small_checkpoint()
    expected = journals_beside(disk)
    text = disk.content(CHECKPOINT)
    disk.shown[CHECKPOINT].shown[:] = text.replace(b"memable checkpoint 1", b"memable checkpoint 7")
    assert journals_beside(disk) == expected


@pytest.mark.parametrize("is_sealed", [True, False])
def test_checkpoint_that_says_more_than_the_log_is_damage(is_sealed: bool):
    """What it speaks of was durable: a log that is shorter has lost something, be it whole segments."""
    disk = SimulatedDisk()

    async def main(store: OpenStore) -> None:
        for _ in range(6):
            await run_instance(store, ends=False)

    open_on(disk, main)
    tail = PATH / str(chain_on(disk).current[-1])
    content = disk.content(tail)
    files = {path: bytes(inode.shown) for path, inode in disk.shown.items() if path.name != "lock"}
    if is_sealed:
        del files[tail]
    else:
        files[tail] = content[: content.rindex(b"\n", 0, -1) + 1]
    for read in (journals_beside, lambda disk: open_on(disk, journals)):
        with pytest.raises(StoreCorruptedError, match="delete the file 'checkpoint' to go on with what is there"):
            read(SimulatedDisk.holding(files))
    del files[CHECKPOINT]
    assert len(journals_beside(SimulatedDisk.holding(files))) == 6


@pytest.mark.parametrize("bit", [0, 3, 6])
def test_damage_of_what_a_checkpoint_knows_to_be_durable_is_no_torn_tail(bit: int):
    """The last batch before a checkpoint was acknowledged: it is not cut off as if a crash had left it."""
    disk = filled()
    tail = PATH / str(chain_on(disk).current[-1])
    text = bytearray(disk.content(tail))
    text[-10] ^= 1 << bit
    damaged = SimulatedDisk.holding({**{path: disk.content(path) for path in disk.shown}, tail: bytes(text)})
    last_batch = bytes(text).rindex(b"\n", 0, len(text) - 1) + 1
    with pytest.raises(StoreCorruptedError, match="were durable, as the checkpoint says") as caught:
        open_on(damaged, journals)
    assert (caught.value.location, caught.value.offset) == (str(tail), last_batch)
    (fault,) = verify_store(damaged, PATH).faults
    assert (fault.file, fault.offset) == (tail.name, last_batch)
    assert open_on(without_checkpoint(damaged), journals) == open_on(in_order(disk), journals)


def test_checkpoint_that_tells_of_later_records_than_there_are_is_damage():
    """What changed while it was written down was durable, too: also that cannot be missing."""
    disk = SimulatedDisk()

    async def main(store: OpenStore) -> int:
        assert isinstance(store, OpenFileStore)
        number = await run_instance(store, ends=False)
        draft = store._upkeep.draft()
        await store.append([step(number, 5)])
        await store.append([step(number, 6)])
        for _ in draft.encode_live():
            pass
        for _ in write_checkpoint(disk, PATH, draft):
            pass
        return draft.offset

    offset = open_on(disk, main, segment_bytes=1 << 20)
    log = PATH / str(segment(1))
    content = disk.content(log)
    for size in range(offset, content.index(b"\n", content.index(b'"seq":6')) + 1, 20):
        here = in_order(disk)
        here.shown[log].shown[size:] = b""
        with pytest.raises(StoreCorruptedError, match="the checkpoint tells of records that were behind"):
            open_on(here, journals)
        assert list(journals_beside(without_checkpoint(here))) == [1]


def test_checkpoint_may_be_deleted_while_the_store_is_open():
    """The next one is written when it is due, and nothing is lost without it."""
    disk = SimulatedDisk()
    survivors: list[SimulatedDisk] = []

    async def main(store: OpenStore) -> None:
        for _ in range(4):
            for number in [await run_instance(store) for _ in range(4)][:3]:
                await retire(store, number)
            await tidy(store)
            survivors.append(disk.copy().kill())
            assert CHECKPOINT in disk.shown
            del disk.shown[CHECKPOINT]
            disk.stored.pop(CHECKPOINT, None)
            await tidy(store)
            survivors.append(disk.copy().kill())

    open_on(disk, main)
    for survivor in (*survivors, disk):
        assert_same(survivor)


def test_older_checkpoints_are_used_or_ignored_but_never_wrong():
    """Whichever checkpoint of its own a store is left with, it holds the same: compactions since notwithstanding."""
    disk = SimulatedDisk()
    ledger = Ledger()
    kept: list[bytes] = []

    async def main(store: OpenStore) -> None:
        for turn in range(8):
            for _ in range(4):
                number = await store.allocate_number()
                await ledger.append(store, started(number, session=1))
                for seq in range(2, 5):
                    await ledger.append(store, step(number, seq))
                if number % 4 != 1:
                    await ledger.append(store, completed(number, 5))
            for number in (4 * turn + 2, 4 * turn - 1):
                if number > 0:
                    await ledger.append(store, retired(number, await newest_seq(store, number) + 1))
            if turn > 2:
                old = 4 * (turn - 3) + 1
                await ledger.append(store, forgetting(old, await newest_seq(store, old) + 1, "s2", "s3"))
            await tidy(store)
            if CHECKPOINT in disk.shown and disk.content(CHECKPOINT) not in kept:
                kept.append(disk.content(CHECKPOINT))

    open_on(disk, main)
    assert len(kept) > 4
    assert any(name.is_compacted for name in chain_on(disk).current)
    expected = ledger.check(journals_beside(without_checkpoint(disk)))
    for text in kept:
        here = in_order(disk)
        here.shown[CHECKPOINT].shown[:] = text
        assert ledger.check(journals_beside(here)) == expected
        assert ledger.check(open_on(here, journals)) == expected
        open_on(here, tidy)
        assert ledger.check(open_on(here, journals)) == expected


# Fuzzy -------------------------------------------------------------------------------------------------------------


Change = Callable[[OpenStore], Awaitable[None]]


async def more_steps(store: OpenStore) -> None:
    for header in await store.live():
        if header.completed_at is None:
            await store.append([step(header.number, header.seq + 1)])


async def end_all(store: OpenStore) -> None:
    for header in await store.live():
        if header.completed_at is None:
            await store.append([completed(header.number, header.seq + 1)])


async def retire_all(store: OpenStore) -> None:
    await end_all(store)
    for workflow in ("child", "w"):
        for header in await store.ended(workflow, until=1e12, limit=1000):
            await store.append([retired(header.number, header.seq + 1)])


async def resume_all(store: OpenStore) -> None:
    for header in await store.headers():
        if header.completed_at is not None:
            await store.append([resumed(header.number, header.seq + 1), step(header.number, header.seq + 2)])


async def forget_all(store: OpenStore) -> None:
    for header in await store.headers():
        await store.append([forgetting(header.number, header.seq + 1, "s2")])


async def replace_all(store: OpenStore) -> None:
    await end_all(store)
    for header in list(await store.ended("w", until=1e12, limit=1000)):
        name = header.instance_id
        await store.append([retired(header.number, header.seq + 1)])
        await run_instance(store, name=name, ends=header.number % 2 == 0)


CHANGES = (more_steps, end_all, retire_all, resume_all, forget_all, replace_all, fill)


@pytest.mark.slow
@pytest.mark.parametrize("second", [None, *CHANGES])
@pytest.mark.parametrize("first", CHANGES)
def test_checkpoint_may_be_written_while_everything_changes(first: Change, second: Change | None):
    """What is recorded between taking a checkpoint and writing it down is neither lost nor taken twice."""
    disk = SimulatedDisk()
    survivors: list[SimulatedDisk] = []

    async def main(store: OpenStore) -> object:
        assert isinstance(store, OpenFileStore)
        await fill(store)
        draft = store._upkeep.draft()
        await first(store)
        for _ in draft.encode_live():
            pass
        if second is not None:
            await second(store)
        for _ in write_checkpoint(disk, PATH, draft):
            pass
        survivors.append(disk.copy().kill())
        return await contents(store)

    # Too large a segment for a checkpoint to be written when it is closed.
    found = open_on(disk, main, segment_bytes=1 << 20)
    assert CHECKPOINT in disk.shown
    assert assert_same(survivors[0]) == found
    assert assert_same(disk) == found


def test_checkpoint_is_durable_in_all_that_it_says():
    """Without a sync of each batch, a checkpoint comes after a sync of all that it speaks of."""
    disk = SimulatedDisk()
    count = 1300

    survivors: list[SimulatedDisk] = []

    async def main(store: OpenStore) -> None:
        numbers = [await store.allocate_number() for _ in range(count)]
        await store.append([started(number, session=store.session) for number in numbers])
        seq = 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.maintain)
            for _ in range(200):
                seq += 1
                # Between two slices of the checkpoint.
                await store.append([step(numbers[-1], seq)])
                if CHECKPOINT in disk.shown:
                    break
            nursery.cancel_scope.cancel()
        survivors.append(disk.copy().power_cut(lose_all))

    open_on(disk, main, "os", segment_bytes=1 << 16)
    (survivor,) = survivors
    assert CHECKPOINT in survivor.shown
    without = open_on(without_checkpoint(survivor), journals, "os", segment_bytes=1 << 16)
    assert open_on(survivor, journals, "os", segment_bytes=1 << 16) == without
    assert len(without) == count


def test_small_store_needs_no_checkpoint():
    """What is read in a moment is not written down a second time."""
    disk = SimulatedDisk()
    open_on(disk, run_instance, segment_bytes=1 << 20)
    assert names_on(disk) == [str(segment(1)), "lock"]


@pytest.mark.parametrize("durability", ["fsync", "os"])
def test_checkpoint_is_written_when_all_that_it_tells_of_is_durable(durability: Durability):
    """The power may fail as soon as a checkpoint is there: what it speaks of is there, too, synced before or not."""
    disk = SimulatedDisk()
    survivors: list[SimulatedDisk] = []
    known: list[object] = []

    async def main(store: OpenStore) -> None:
        assert isinstance(store, OpenFileStore)
        for _ in range(3):
            await run_instance(store, ends=False)
        known.append(await journals(store))
        await store._upkeep.write_checkpoint()
        survivors.append(disk.copy().power_cut(lose_all))

    open_on(disk, main, durability, segment_bytes=1 << 16)
    assert CHECKPOINT in survivors[0].shown
    assert open_on(survivors[0], journals, durability, segment_bytes=1 << 16) == known[0]
