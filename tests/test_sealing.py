"""
Tests of logs of several segments: beginning one, what a crash leaves of that, and telling damage in any of them.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import pytest

from checksums import (
    change_header,
    check_checksums,
    header_on,
    path_to,
    read,
    told_by,
    with_right_checksums,
    without_checksums,
)
from memable import FileStore, StorageError, StoreCorruptedError
from memable._clock import current_clock
from memable._disk import RealDisk
from memable._faults import FaultKind
from memable._frames import decode_header
from memable._records import InstanceRecord
from memable._segments import segment
from memable._store._protocol import OpenStore
from memable._store._repair import repair_store
from memable._store._snapshot import read_store
from memable._store._verify import verify_store
from memable._testing._simulated_disk import Fault, SimulatedDisk, SimulatedFile, lose_all, lose_nothing
from sample_records import completed, started, step
from segmented import (
    LOCK,
    PATH,
    SEGMENT_BYTES,
    Durability,
    FullDisk,
    Journals,
    Ledger,
    chain_on,
    in_order,
    journals,
    journals_beside,
    log_text,
    names_on,
    open_on,
    retire,
    run_instance,
    tidy,
    without_checkpoint,
)

BOTH = pytest.mark.parametrize("durability", ["fsync", "os"])


def path_of(number: int) -> Path:
    return PATH / str(segment(number))


@contextmanager
def suppress_storage_errors() -> Iterator[None]:
    try:
        yield
    except* StorageError:
        pass


async def write(store: OpenStore, ledger: Ledger) -> None:
    """Append what takes about three segments."""
    for number in (1, 2):
        await store.allocate_number()
        await ledger.append(store, started(number, session=store.session))
    for seq in range(2, 10):
        await ledger.append(store, step(1, seq), step(2, seq))


def written(durability: Durability = "fsync") -> tuple[SimulatedDisk, Ledger]:
    disk, ledger = SimulatedDisk(), Ledger()
    open_on(disk, lambda store: write(store, ledger), durability)
    return disk, ledger


def kept(durability: Durability = "fsync") -> tuple[SimulatedDisk, Ledger]:
    """Do the same, and return a disk on which all is durable, without a checkpoint: so all of it is read."""
    disk, ledger = written(durability)
    return in_order(without_checkpoint(disk)), ledger


# Sealing -----------------------------------------------------------------------------------------------------------


@BOTH
def test_full_segment_is_sealed_and_the_next_one_begun(durability: Durability):
    """Each segment but the last is about as long as it is to be, and synced; its header says where the log stood."""
    disk = SimulatedDisk()
    synced: list[str] = []
    disk.on_sync = lambda path: synced.append(path.name)
    ledger = Ledger()
    open_on(disk, lambda store: write(store, ledger), durability)
    names = [str(name) for name in chain_on(disk).current]
    assert names == [str(segment(number)) for number in range(1, len(names) + 1)]
    assert len(names) >= 3
    for name in names[:-1]:
        assert SEGMENT_BYTES <= len(disk.content(PATH / name)) < SEGMENT_BYTES + 400
        assert name in synced
    headers = [decode_header(disk.content(PATH / name).split(b"\n")[0], name) for name in names]
    assert [header.durability for header in headers] == [durability] * len(names)
    assert [header.state.session for header in headers] == [0] + [1] * (len(names) - 1)
    assert headers[1].state.last_number == 2
    assert len({header.store_id for header in headers}) == 1
    batches = [header.state.next_batch for header in headers]
    assert batches == sorted(set(batches))
    assert open_on(disk, journals, durability) == ledger.after(10)
    assert journals_beside(disk) == ledger.after(10)


def test_other_durability_begins_a_segment():
    """What a segment's header says of its durability holds for all that is in it."""
    disk = SimulatedDisk()
    for session, durability in enumerate(["fsync", "os", "os", "fsync"]):
        open_on(disk, lambda store: run_instance(store, steps=0), durability, segment_bytes=65536)
        assert len(chain_on(disk).current) == [1, 2, 2, 3][session]
    headers = [decode_header(disk.content(path_of(n)).split(b"\n")[0], "") for n in (1, 2, 3)]
    assert [header.durability for header in headers] == ["fsync", "os", "fsync"]
    assert sorted(open_on(disk, journals)) == [1, 2, 3, 4]


@pytest.mark.slow
@BOTH
def test_power_cut_or_kill_at_every_call_loses_nothing(durability: Durability):
    """Wherever writing and sealing is cut short, what was acknowledged is there, and nothing torn is believed."""
    disk, ledger = written(durability)
    calls = len(disk.calls)
    loss_of = cycle([None, lose_all, random.Random(1).randrange, lose_nothing, random.Random(2).randrange])
    for cut_at in range(calls):
        here, ledger = SimulatedDisk(cut_at=cut_at), Ledger()
        with suppress_storage_errors():
            open_on(here, lambda store, ledger=ledger: write(store, ledger), durability)
        for loss in {next(loss_of), None}:
            survivor = here.copy().kill() if loss is None else here.copy().power_cut(loss)
            least = least_after_power_cut(here, ledger) if durability == "os" and loss is not None else None
            found = open_on(survivor.copy(), journals, durability)
            ledger.check(found, least=least)
            # Nor does it go by what happens to who opens it then.
            second = survivor.copy()
            second.cut_at = cut_at % 37
            with suppress_storage_errors():
                open_on(second, journals, durability)
            least = least_after_power_cut(here, ledger) if durability == "os" else None
            ledger.check(open_on(second.power_cut(lose_all), journals, durability), least=least)
            if cut_at % 3 == 0:
                check_seals_after(survivor, durability)


def check_seals_after(disk: SimulatedDisk, durability: Durability) -> None:
    """Check that what is recovered is sealed with its checksum, whether a checkpoint is used or not."""
    for here in (disk.copy(), without_checkpoint(disk)):
        before = chain_on(here).current
        # Without another reading in between.
        open_on(here, lambda store: run_instance(store, steps=9), durability)
        assert len(chain_on(here).current) > len(before)
        assert check_checksums(here) == len(chain_on(here).current) - 1


def least_after_power_cut(disk: SimulatedDisk, ledger: Ledger) -> int:
    """Return how many appends are durable at least: those in segments that have a successor on the disk."""
    numbers = [int(path.name[:8]) for path in disk.stored if path.name.endswith(".log")]
    sealed = b"".join(disk.content(path_of(number)) for number in range(1, max(numbers, default=1)))
    return sum(b'"seq":%d,' % records[-1].seq in sealed and _holds(sealed, records) for records in ledger.appends)


def _holds(text: bytes, records: list[InstanceRecord]) -> bool:
    return all(b'"instance":%d,"seq":%d,' % (record.instance, record.seq) in text for record in records)


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_failure_of_any_call_acknowledges_nothing_wrongly(durability: Durability, code: int):
    """Whatever call fails while a segment is sealed or begun, the engine stops, and the next one finds all."""
    disk, _ = written(durability)
    loss_of = cycle([None, lose_all, random.Random(1).randrange])
    for number in range(5, len(disk.calls), 1 if durability == "fsync" else 2):
        here, ledger = SimulatedDisk(faults={number: Fault(code, after_bytes=number % 250)}), Ledger()
        with suppress_storage_errors():
            open_on(here, lambda store, ledger=ledger: write(store, ledger), durability)
        loss = next(loss_of)
        survivor = here.kill() if loss is None else here.power_cut(loss)
        least = 0 if durability == "os" and loss is not None else None
        found = open_on(survivor, journals, durability)
        ledger.check(found, least=least)
        # What was copied or not, a power cut brings nothing else to light.
        assert open_on(survivor.power_cut(lose_all), journals, durability) == found
        assert not [name for name in names_on(survivor) if name.endswith(".tmp")]
        if number % 3 == 0:
            check_seals_after(survivor, durability)


@BOTH
def test_failed_sync_at_sealing_is_marked_and_the_segment_copied(durability: Durability):
    """The system goes on showing what the disk has dropped: so it is written anew before anything is believed."""
    disk, _ = written(durability)
    tried = 0
    for number, name in enumerate(disk.calls):
        if name not in ("sync", "sync_directory") or number < 12:
            continue
        here, ledger = SimulatedDisk(faults={number: Fault(errno.EIO)}), Ledger()
        with suppress_storage_errors():
            open_on(here, lambda store, ledger=ledger: write(store, ledger), durability)
        if b"failed" not in here.content(LOCK):
            continue
        tried += 1
        killed = here.kill()
        found = open_on(killed, journals, durability)
        ledger.check(found)
        assert b"failed" not in killed.content(LOCK)
        assert open_on(killed.power_cut(lose_all), journals, durability) == found
    assert tried >= (10 if durability == "fsync" else 4)


@BOTH
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_failed_sync_of_the_name_of_a_new_segment_is_made_up_for(durability: Durability, code: int):
    """The system shows a segment that the disk does not have: it is made anew before anything is appended to it."""
    disk, _ = written(durability)
    tried = 0
    for number, name in enumerate(disk.calls):
        if name != "sync_directory" or disk.calls[number - 1] != "rename" or number < 15:
            continue
        here, ledger = SimulatedDisk(faults={number: Fault(code)}), Ledger()
        with suppress_storage_errors():
            open_on(here, lambda store, ledger=ledger: write(store, ledger), durability)
        killed = here.kill()

        async def more(store: OpenStore, ledger: Ledger = ledger) -> None:
            ledger.appends[ledger.check(await journals(store)) :] = []
            seqs = {header.number: header.seq for header in await store.headers()}
            await ledger.append(store, step(1, seqs[1] + 1))

        open_on(killed, more, durability)
        ledger.check(open_on(killed.power_cut(lose_all), journals, durability))
        tried += 1
    assert tried >= 2


async def look(store: OpenStore) -> tuple[int, bool, list[bool]]:
    return store.session, store.after_crash, [store.has_crashed(session) for session in range(1, 5)]


@pytest.mark.parametrize("segment_bytes", [SEGMENT_BYTES, 65536])
@pytest.mark.parametrize("steps", range(1, 9))
def test_closing_on_a_full_disk_is_remembered(segment_bytes: int, steps: int):
    """Where only the lock file says that a session was closed, all who come later know it as well."""
    disk = FullDisk()

    async def main(store: OpenStore) -> None:
        await run_instance(store, steps=steps)
        disk.is_full = True

    open_on(disk, main, segment_bytes=segment_bytes)
    assert b"store_closed" not in log_text(disk)
    # Read-only for now; then there is room again.
    assert open_on(disk, look, segment_bytes=segment_bytes) == (2, False, [False] * 4)
    disk.is_full = False
    assert open_on(disk, look, segment_bytes=segment_bytes) == (2, False, [False] * 4)
    assert open_on(disk, look, segment_bytes=segment_bytes) == (3, False, [False] * 4)
    check_checksums(disk)
    here = without_checkpoint(disk)
    assert open_on(here, look, segment_bytes=segment_bytes) == (4, False, [False] * 4)
    assert sorted(journals_beside(disk)) == [1]


@pytest.mark.parametrize("durability", ["fsync", "os"])
def test_session_that_begins_with_the_first_append_after_a_full_disk(durability: Durability):
    """A session whose beginning had no room is written with the first append, and either may begin a segment."""
    whole, ledger = SimulatedDisk(), Ledger()
    open_on(whole, lambda store: write(store, ledger), segment_bytes=65536)
    end = len(log_text(whole))
    for segment_bytes in range(end - 100, end + 400, 35):
        disk, again = FullDisk.like(whole), ledger.copy()
        disk.is_full = True

        async def main(store: OpenStore, disk: FullDisk = disk, again: Ledger = again) -> Journals:
            disk.is_full = False
            for seq in (10, 11, 12, 13):
                await again.append(store, step(1, seq))
            for number in [await run_instance(store, steps=9) for _ in range(12)]:
                await retire(store, number)
            await again.append(store, completed(1, 14))
            await tidy(store)
            return await journals(store)

        assert open_on(disk, main, durability, segment_bytes=segment_bytes) == again.after(99)
        assert check_checksums(disk) == len(chain_on(disk).current) - 1
        assert open_on(without_checkpoint(disk), journals, durability, segment_bytes=segment_bytes) == again.after(99)
        assert open_on(disk, journals, durability, segment_bytes=segment_bytes) == again.after(99)


@pytest.mark.slow
def test_segment_that_could_be_begun_but_not_written_to_is_known():
    """There may be room for the header of a segment, and for nothing behind it; later there is."""
    whole, ledger = SimulatedDisk(), Ledger()
    open_on(whole, lambda store: write(store, ledger))
    count = len(whole.calls)
    for at in range(count):
        disk, again = in_order(whole), ledger.copy()
        # Only what is behind the opening can fail so.
        disk.faults[at] = Fault(errno.ENOSPC, after_bytes=7)

        async def main(store: OpenStore, again: Ledger = again) -> Journals:
            for seq in (10, 11, 12, 13):
                await again.append(store, step(1, seq))
            for number in [await run_instance(store, steps=9) for _ in range(12)]:
                await retire(store, number)
            await again.append(store, completed(1, 14))
            await tidy(store)
            return await journals(store)

        found = None
        with suppress_storage_errors():
            # In the other durability the beginning of the session begins a segment.
            found = open_on(disk, main, "os")
        if at > 80 and found is not None:
            break
        if found is not None:
            assert found == again.after(99)
        survivor = disk.kill()
        for found in (journals_beside(without_checkpoint(survivor)), open_on(survivor, journals, "os")):
            again.check({number: records for number, records in found.items() if number <= 2})


# Damage ------------------------------------------------------------------------------------------------------------


def small() -> dict[str, SimulatedDisk]:
    """Return small stores of three segments, the middle one plain or compacted."""
    plain = SimulatedDisk()

    async def main(store: OpenStore) -> None:
        # Of this one, and no other, something is kept in the first segment.
        await run_instance(store, steps=0, ends=False)
        first = await run_instance(store, steps=4)
        await run_instance(store, steps=4)
        await retire(store, first)
        await run_instance(store, steps=2, ends=False)

    open_on(plain, main)
    compacted = plain.copy()
    open_on(compacted, tidy)
    assert any(
        name.is_compacted and b'"kind"' in compacted.content(path_to(name)) for name in chain_on(compacted).current
    )
    return {"plain": in_order(without_checkpoint(plain)), "compacted": in_order(without_checkpoint(compacted))}


@pytest.mark.parametrize("kind", ["plain", "compacted"])
def test_bytes_that_change_after_they_were_proven_are_told(kind: str, monkeypatch: pytest.MonkeyPatch):
    """What is taken for proven are the bytes that were proven, not those of another reading of the file."""
    disk = small()[kind]
    name = next(name for name in chain_on(disk).current[:-1] if name.is_compacted == (kind == "compacted"))
    inode = disk.shown[path_to(name)]
    right = bytes(inode.shown)
    at = right.index(b'"instance":', right.index(b'"kind":')) + len(b'"instance":')
    seen = 0
    read_at = SimulatedFile.read_at

    def flaky(file: SimulatedFile, offset: int, size: int) -> bytes:
        nonlocal seen
        chunk = read_at(file, offset, size)
        if file.inode is inode and offset <= at < offset + len(chunk) and offset:
            seen += 1
            if seen == 2:
                # An honest device, bad memory, or a second reading of a failing sector.
                return chunk[: at - offset] + b"9" + chunk[at - offset + 1 :]
        return chunk

    monkeypatch.setattr(SimulatedFile, "read_at", flaky)
    with pytest.raises(StoreCorruptedError):
        read(disk)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "compacted"])
def test_every_bit_flipped_in_a_sealed_segment_is_told(kind: str):
    """Damage to what was sealed is never believed, and never taken for torn; it is told where it is, or before."""
    disk = small()[kind]
    name = next(name for name in chain_on(disk).current[:-1] if name.is_compacted == (kind == "compacted"))
    path = PATH / str(name)
    content = disk.content(path)
    line_starts = [0, *(at + 1 for at, byte in enumerate(content) if byte == 10)]
    slow = without_checksums(disk)
    header_end = content.index(b"\n") + 1
    for bit in range(len(content) * 8):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        here = disk.copy()
        here.shown[path].shown[:] = flipped
        before = {path: bytes(inode.shown) for path, inode in here.shown.items()}
        with pytest.raises((StoreCorruptedError, StorageError)) as caught:
            read_store(here, PATH)
        error = caught.value
        assert isinstance(error, StoreCorruptedError) or "format" in str(error), bit
        if isinstance(error, StoreCorruptedError):
            line = max(start for start in line_starts if start <= bit // 8)
            assert (error.location, error.offset <= max(line, bit // 8)) == (str(path), True), bit
        if bit // 8 >= header_end:
            # Without checksums of whole files, too, and it is told in the same words.
            there = slow.copy()
            there.shown[path].shown[bit // 8] ^= 1 << bit % 8
            with pytest.raises(StoreCorruptedError) as caught_there:
                read_store(there, PATH)
            assert str(caught_there.value) == str(error), bit
        if bit % 101 == 0:
            with pytest.raises(StoreCorruptedError):
                open_on(here, journals)
            assert {path: bytes(here.shown[path].shown) for path in before if path != LOCK} == {
                path: content for path, content in before.items() if path != LOCK
            }


@pytest.mark.parametrize("kind", ["plain", "compacted"])
@BOTH
def test_sealed_segment_cut_at_any_byte_is_damage(kind: str, durability: Durability):
    """What has a successor was complete, whatever the durability; a shorter one lost something."""
    disk = small()[kind]
    if durability == "os":
        disk, _ = kept("os")
    path = PATH / str(chain_on(disk).current[0])
    content = disk.content(path)
    for size in range(0, len(content), 3):
        here = disk.copy()
        here.shown[path].shown[:] = content[:size]
        # Cut between two batches, it is whole by itself; the next one tells.
        with pytest.raises(StoreCorruptedError, match=f"{path.name}|begins with batch"):
            read_store(here, PATH)


def test_tail_cut_at_any_byte_is_torn():
    """A log may end anywhere in its last segment's last batch; that is no damage, and nothing else is lost."""
    disk, ledger = kept("os")
    tail = PATH / str(chain_on(disk).current[-1])
    content = disk.content(tail)
    header_end = content.index(b"\n") + 1
    seen: set[int] = set()
    for size in range(header_end, len(content) + 1):
        here = in_order(disk)
        here.shown[tail].shown[size:] = b""
        found = journals_beside(here)
        count = ledger.check(found, least=0)
        seen.add(count)
        if size % 7 == 0:
            assert open_on(here, journals, "os") == found
    assert max(seen) == len(ledger.appends)
    assert min(seen) >= least_after_power_cut(disk, ledger)


@BOTH
def test_missing_and_misplaced_segments_are_told(durability: Durability):
    """A segment that is gone, in another's place, or another store's, is damage that names the file."""
    disk, ledger = kept(durability)
    other, _ = kept(durability)
    last = len(chain_on(disk).current)

    def refused(change: Callable[[dict[Path, bytes]], object], match: str, *, with_lock: bool = True) -> None:
        files = {path: bytes(inode.shown) for path, inode in disk.shown.items() if with_lock or path != LOCK}
        change(files)
        for found_by in (journals_beside, lambda disk: open_on(disk, journals, durability)):
            if match.startswith("lock: ") and found_by is journals_beside:
                continue
            with pytest.raises(StoreCorruptedError, match=match.removeprefix("lock: ")):
                found_by(SimulatedDisk.holding(files))

    def swap(files: dict[Path, bytes]) -> None:
        files[path_of(1)], files[path_of(2)] = files[path_of(2)], files[path_of(1)]

    refused(lambda files: files.pop(path_of(1)), "00000001.log: at byte offset 0: segment 1 is missing")
    refused(lambda files: files.pop(path_of(2)), "00000002.log: at byte offset 0: segment 2 is missing")
    # Only the lock file knows of the last one.
    refused(lambda files: files.pop(path_of(last)), f"lock: 0000000{last}.log: at byte offset 0: segment {last} is")
    refused(swap, "00000001.log: at byte offset 0: the file says that it is number 2")
    refused(lambda files: files.update({path_of(2): other.content(path_of(2))}), "00000002.log.*another store")
    refused(lambda files: files.update({path_of(1): other.content(path_of(1))}), "00000002.log.*another store")
    refused(lambda files: files.update({path_of(2): b""}), "00000002.log: at byte offset 0")
    # One that was written later than the one behind it begins elsewhere.
    assert ledger.check(journals_beside(disk)) == len(ledger.appends)


@BOTH
def test_lines_moved_between_segments_are_told(durability: Durability):
    """Intact lines in another place than their own are damage."""
    disk, _ = kept(durability)
    first, second = disk.content(path_of(1)), disk.content(path_of(2))
    lines = first.splitlines(keepends=True)
    for moved in (b"".join(lines[:-1]), first + second.splitlines(keepends=True)[1], b"".join([*lines, lines[-1]])):
        here = disk.copy()
        here.shown[path_of(1)].shown[:] = moved
        with pytest.raises(StoreCorruptedError, match=r"0000000[12]\.log"):
            open_on(here, journals, durability)


# Checksums of whole files -----------------------------------------------------------------------------------------


@BOTH
def test_every_sealed_segment_has_its_checksum(durability: Durability):
    """The next segment says what each was as a whole, also if it was opened in between, or a checkpoint was used."""
    disk, ledger = SimulatedDisk(), Ledger()
    open_on(disk, lambda store: write(store, ledger), durability)
    for session in range(6):
        if session % 2:
            disk = without_checkpoint(disk)
        open_on(disk, lambda store: run_instance(store, steps=9), durability, segment_bytes=2500 + session)
    names = chain_on(disk).current
    assert len(names) >= 5
    assert check_checksums(disk) == len(names) - 1
    assert verify_store(disk, PATH).is_sound


@BOTH
def test_torn_tail_does_not_count_in_the_checksum(durability: Durability):
    """What was cut off a segment when it was recovered is nothing of what it was when it was sealed."""
    disk = SimulatedDisk()
    open_on(disk, lambda store: run_instance(store, steps=3), durability, segment_bytes=65536)
    disk = in_order(without_checkpoint(disk))
    content = disk.content(path_of(1))
    for size in range(len(content) - 300, len(content), 5):
        here = in_order(disk)
        here.shown[path_of(1)].shown[size:] = b""
        check_seals_after(here, durability)


def test_compaction_keeps_the_checksum_of_the_file_before():
    """A compacted segment has a checksum of its own lines, and says what the plain one before it was."""
    disk = SimulatedDisk()

    async def main(store: OpenStore) -> None:
        for _ in range(4):
            await run_instance(store, steps=4, ends=False)
        for number in [await run_instance(store, steps=8) for _ in range(3)]:
            await retire(store, number)
        await tidy(store)

    open_on(disk, main)
    names = chain_on(disk).current
    at = next(at for at, name in enumerate(names) if name.is_compacted)
    assert at
    assert not names[at - 1].is_compacted
    assert header_on(disk, names[at]).before is not None
    assert check_checksums(disk) == len(names) - 1


@pytest.mark.parametrize("kind", ["plain", "compacted"])
def test_lines_of_a_proven_segment_are_not_proven_again(kind: str):
    """Only if the checksum of all is not right, or not there, each line has to prove itself."""
    disk_before = small()[kind]
    disk = disk_before.copy()
    name = next(name for name in chain_on(disk).current[:-1] if name.is_compacted == (kind == "compacted"))
    content = disk.content(path_to(name))
    at = content.index(b'"value":1}', content.index(b'"kind":')) + 8
    disk.shown[path_to(name)].shown[at : at + 1] = b"2"
    with pytest.raises(StoreCorruptedError, match=f"{name}: at byte offset"):
        read(disk)
    assert not verify_store(disk, PATH).is_sound
    right = with_right_checksums(disk)
    found, expected = told_by(read(right)), told_by(read(disk_before))
    # The checksums may have more digits, or fewer.
    assert [found[what] for what in ("headers", "state")] == [expected[what] for what in ("headers", "state")]
    # But who verifies looks at each.
    (fault,) = [fault for fault in verify_store(right, PATH).faults if fault.file == str(name)]
    assert fault.offset == content.rindex(b"\n", 0, at) + 1
    with pytest.raises(StoreCorruptedError, match=f"{name}: at byte offset"):
        read(without_checksums(right))


@pytest.mark.parametrize(("kind", "what"), [("plain", "size"), ("plain", "checksum"), ("compacted", "checksum")])
def test_wrong_checksum_of_intact_lines_locks_nobody_out(kind: str, what: str, tmp_path: Path):
    """If each line proves itself, the store opens as ever; who verifies is told that the whole is not what it was."""
    disk = small()[kind]
    expected = told_by(read(disk))
    names = chain_on(disk).current
    # Nothing is said of the file whose header is changed here.
    at = max(at for at, name in enumerate(names[:-1]) if name.is_compacted == (kind == "compacted"))
    says = header_on(disk, names[at + 1]).before if kind == "plain" else header_on(disk, names[at]).compacted
    assert says is not None
    value = getattr(says, what)
    change_header(disk, names[at + (kind == "plain")], {f'"{what}":{value}': f'"{what}":{value ^ 1}'})
    assert told_by(read(disk)) == expected
    (fault,) = verify_store(disk, PATH).faults
    assert (fault.file, fault.offset, fault.kind) == (str(names[at]), 0, FaultKind.CHECKSUM)
    assert "all records in it are intact, and yet it is not, as a whole, what it was" in fault.problem
    store = tmp_path / "store"
    store.mkdir()
    for path in disk.shown:
        (store / path.name).write_bytes(disk.content(path))
    repaired = repair_store(RealDisk(), store, 1e9)
    assert (repaired.is_lossless, repaired.casualties, repaired.faults) == (True, (), (fault,))
    assert verify_store(RealDisk(), Path(repaired.target or "")).is_sound
    assert sorted(open_on(disk, journals)) == [1, 3, 4]


# A real disk -------------------------------------------------------------------------------------------------------


@BOTH
async def test_segments_on_a_real_disk(tmp_path: Path, durability: Durability):
    """What is spread over many real files is found again, whoever asks."""
    store = FileStore(tmp_path / "store", durability, segment_bytes=SEGMENT_BYTES)
    ledger = Ledger()
    async with store.open(current_clock()) as opened:
        await write(opened, ledger)
        found = await journals(opened)
    assert found == ledger.after(10)
    assert len(list((tmp_path / "store").glob("*.log"))) >= 3
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (tmp_path / "store").iterdir())
    async with store.open(current_clock()) as opened:
        assert await journals(opened) == found
        await opened.append([completed(1, 10)])
