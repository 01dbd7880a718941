"""
Repairing a store: what is intact comes through, and what has lost something does not run on by itself.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import pytest
import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st

import memable
from damaging import (
    ASK,
    DAMAGES,
    WORKFLOWS,
    Damage,
    copy_store,
    damage,
    journals_of,
    lines_of,
    logs_of,
    make_store,
    ran,
    work,
)
from memable._disk import RealDisk
from memable._frames import frame_batch
from memable._mending import mend
from memable._record_json import encode_record
from memable._records import CancelRequested, InstanceBlocked, InstanceRecord, InstanceStarted, StepCompleted
from memable._salvage import Damaged, Intact, Run, choose_runs, corrected, find_lines
from memable._store._repair import Repair, repair_store
from memable._store._verify import verify_store
from sample_records import completed, resumed, started, step
from showing import files_of

DISK = RealDisk()
NOW = 2_000_000_000.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of many segments, some compacted, which no test changes."""
    return make_store(tmp_path_factory.mktemp("repair") / "store")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "store"


def repaired(store: Path) -> Path:
    return store.with_name(f"{store.name}.repaired")


def flip(path: Path, text: bytes, *, which: int = 0) -> None:
    """Flip a bit of a record that holds *text*."""
    content = bytearray(path.read_bytes())
    at = -1
    for _ in range(which + 1):
        at = content.index(text, at + 1)
    content[at + 2] ^= 1
    path.write_bytes(content)


def log_with(store: Path, text: bytes) -> Path:
    return next(path for path in logs_of(store) if text in path.read_bytes())


def is_lost_note(record: InstanceRecord) -> bool:
    return isinstance(record, InstanceBlocked) and record.error.matches(memable.RecordsLostError)


async def open_all(store: Path, *, resumes: bool = False) -> None:
    """Open a store, let everything run, and resume what is blocked if that is wanted."""
    async with memable.open_engine(memable.FileStore(store, segment_bytes=2000), workflows=WORKFLOWS) as engine:
        await trio.sleep(0.5)
        if resumes:
            for metadata in await engine.list_instances(status=memable.MetadataStatus.BLOCKED):
                await engine.resume(metadata.workflow_name, metadata.instance_id)
            await trio.sleep(0.5)


def run(store: Path, *, resumes: bool = False) -> None:
    trio.run(lambda: open_all(store, resumes=resumes), clock=trio.testing.MockClock(autojump_threshold=0))


def is_end_lost_unseen(original: Path, damaged: Path) -> bool:
    """Tell whether the end of the log is cut in a way that a crash may have done as well."""
    tail = damaged / logs_of(original)[-1].name
    if not tail.exists():
        return not (damaged / "lock").exists()
    return tail.read_bytes() != logs_of(original)[-1].read_bytes()


def assert_nothing_invented(original: Path, damaged: Path, repair: Repair) -> None:
    """What came through was there before; what is whole came through; and the rest is told, and does not run."""
    is_cut = is_end_lost_unseen(original, damaged)
    before, after = journals_of(original), journals_of(repaired(damaged))
    whole_lines = {line[line.find(b"{") :]: line for line in lines_of(original)}
    left = lines_of(damaged)
    told = {casualty.number: casualty.fate for casualty in repair.casualties}
    for number, (_, records) in before.items():
        texts = [encode_record(record) for record in records]
        is_intact = all(whole_lines[text] in left for text in texts)
        if number not in after:
            assert not is_intact or is_cut
            assert number in told or is_cut or any(hole.lost is None for hole in repair.holes)
            continue
        has_ended, kept = after[number]
        notes = [record for record in kept if is_lost_note(record)]
        rest = [encode_record(record) for record in kept if not is_lost_note(record)]
        assert rest == [text for text in texts if text in rest]
        if is_cut:
            continue
        assert rest == texts or not is_intact
        if rest != texts:
            assert has_ended or notes
        if rest != texts or notes:
            assert told[number] == ("blocked" if notes else "ended")


@pytest.mark.slow
@settings(deadline=None)
@given(damages=DAMAGES, has_checkpoint=st.booleans(), has_lock=st.booleans())
# A file behind a compacted one is empty: nothing is left to tell what was in it.
@example(damages=[("cut", 71429, 0)], has_checkpoint=False, has_lock=False)
def test_repair_keeps_what_is_intact(
    damages: Sequence[Damage], has_checkpoint: bool, has_lock: bool, store: Path, scratch: Path
):
    """
    Whatever is damaged, the copy is sound and opens, with nothing invented and all that is whole.

    No step with a memo runs again, not even when somebody resumes what was blocked.
    """
    copy_store(store, scratch)
    if not has_checkpoint:
        (scratch / "checkpoint").unlink()
    if not has_lock:
        (scratch / "lock").unlink()
    damage(scratch, damages)
    if not logs_of(scratch):
        return
    repair = repair_store(DISK, scratch, NOW, repaired(scratch))
    assert verify_store(DISK, repaired(scratch)).is_sound
    assert_nothing_invented(store, scratch, repair)
    memos = memos_of(repaired(scratch))
    ran.clear()
    run(repaired(scratch))
    after = journals_of(repaired(scratch))
    for casualty in repair.casualties:
        if casualty.fate == "blocked":
            assert is_lost_note(after[casualty.number][1][-1])
    run(repaired(scratch), resumes=True)
    assert not memos & set(ran)
    assert verify_store(DISK, repaired(scratch)).is_sound


def memos_of(store: Path) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for _, records in journals_of(store).values():
        (first, *rest) = records
        assert isinstance(first, InstanceStarted)
        found |= {(first.instance_id, record.path) for record in rest if isinstance(record, StepCompleted)}
    return found


def test_repair_does_nothing_where_nothing_is_damaged(store: Path, scratch: Path):
    """
    A sound store needs no copy, unless one is asked for, which then is complete.
    """
    copy_store(store, scratch)
    before = files_of(scratch)
    repair = repair_store(DISK, scratch, NOW)
    assert (repair.target, repair.is_lossless) == (None, True)
    assert not repaired(scratch).exists()
    assert files_of(scratch) == before
    repair = repair_store(DISK, scratch, NOW, repaired(scratch))
    assert repair.is_lossless
    assert files_of(scratch) == before
    assert journals_of(repaired(scratch)) == journals_of(store)
    assert [path.name.count("-") for path in logs_of(repaired(scratch))] == [1, 0]


def test_repair_of_one_record_concerns_one_instance(store: Path, scratch: Path):
    """
    Where one flipped bit tells which record is lost, only its instance is blocked, and the record is told.
    """
    copy_store(store, scratch)
    waiting = next(
        number for number, (has_ended, records) in journals_of(store).items() if not has_ended and len(records) > 4
    )
    text = b'"step_completed","instance":%d,' % waiting
    flip(log_with(scratch, text), text)
    repair = repair_store(DISK, scratch, NOW)
    (casualty,) = repair.casualties
    assert (casualty.number, casualty.fate) == (waiting, "blocked")
    assert [record.kind for record in casualty.lost] == ["step_completed"]
    assert "lost: step_completed of 's0'" in str(casualty)
    (_, records) = journals_of(repaired(scratch))[waiting]
    assert is_lost_note(records[-1])
    assert verify_store(DISK, repaired(scratch)).is_sound


async def test_repair_blocks_until_somebody_resumes(store: Path, scratch: Path, autojump_clock: object):
    """
    What has lost a memo waits for ``resume``, tells what is lost, and then runs what is lost again.
    """
    copy_store(store, scratch)
    waiting = next(
        number for number, (has_ended, records) in journals_of(store).items() if not has_ended and len(records) > 4
    )
    text = b'"step_completed","instance":%d,' % waiting
    flip(log_with(scratch, text), text)
    repair = repair_store(DISK, scratch, NOW)
    assert repair.casualties[0].name is not None
    instance_id = repair.casualties[0].name[1]
    ran.clear()
    async with memable.open_engine(repaired(scratch), workflows=WORKFLOWS) as engine:
        state = await engine.state(work, instance_id)
        assert isinstance(state, memable.Blocked)
        assert state.key is None
        assert "step_completed of 's0'" in str(state.error)
        await trio.sleep(10)
        assert (instance_id, "s0") not in ran
        await engine.resume(work, instance_id)
        await trio.sleep(10)
        assert [key for of, key in ran if of == instance_id] == ["s0"]
        await engine.signal(work, instance_id, ASK, 1)
        number = int(instance_id.removeprefix("w"))
        assert await (await engine.invoke(work, number, instance_id=instance_id)).result() == number


def test_repair_blocks_all_that_has_not_ended_where_the_end_is_lost(store: Path, scratch: Path):
    """
    Where the last segment is missing, whatever had not ended may have gone on in it.
    """
    copy_store(store, scratch)
    (scratch / "checkpoint").unlink()
    logs_of(scratch)[-1].unlink()
    repair = repair_store(DISK, scratch, NOW)
    after = journals_of(repaired(scratch))
    unfinished = [number for number, (has_ended, _) in after.items() if not has_ended]
    assert unfinished
    assert [casualty.number for casualty in repair.casualties if casualty.fate == "blocked"] == unfinished
    assert all("may be lost" in str(casualty) for casualty in repair.casualties if casualty.fate == "blocked")


async def test_repair_never_gives_a_number_again(store: Path, scratch: Path, autojump_clock: object):
    """
    New instances of the copy have greater numbers than any that may be lost.
    """
    copy_store(store, scratch)
    greatest = max(journals_of(store))
    logs_of(scratch)[-1].unlink()
    repair_store(DISK, scratch, NOW)
    async with memable.open_engine(repaired(scratch), workflows=WORKFLOWS) as engine:
        await engine.invoke(work, 1, instance_id="new")
        (*_, metadata) = await engine.list_instances()
        assert metadata.instance_id == "new"
        assert metadata.number > greatest


def test_repair_drops_an_instance_without_its_start(store: Path, scratch: Path):
    """
    Without its start nothing of an instance can be kept; that is told, with its name if it is known.
    """
    copy_store(store, scratch)
    number = max(journals_of(store))
    text = b'"instance_started","instance":%d,' % number
    flip(log_with(scratch, text), text)
    repair = repair_store(DISK, scratch, NOW)
    (casualty,) = [casualty for casualty in repair.casualties if casualty.number == number]
    assert casualty.fate == "dropped"
    assert number not in journals_of(repaired(scratch))


def test_repair_needs_the_lock(store: Path, scratch: Path):
    """
    A store that an engine has open is not repaired.
    """

    async def try_it() -> None:
        async with memable.open_engine(scratch, workflows=WORKFLOWS):
            with pytest.raises(memable.StoreLockedError, match="another engine of this process has it open"):
                repair_store(RealDisk(), scratch, NOW, repaired(scratch))

    copy_store(store, scratch)
    trio.run(try_it)
    assert not repaired(scratch).exists()


def test_repair_overwrites_nothing(store: Path, scratch: Path):
    """
    What is where the copy is to be stays there.
    """
    copy_store(store, scratch)
    repaired(scratch).mkdir()
    with pytest.raises(memable.StorageError, match="there is something already"):
        repair_store(DISK, scratch, NOW, repaired(scratch))
    with pytest.raises(memable.StorageError, match="cannot be within the store"):
        repair_store(DISK, scratch, NOW, scratch / "copy")
    with pytest.raises(memable.StorageError, match="there is no store"):
        repair_store(DISK, repaired(scratch), NOW)
    assert list(repaired(scratch).iterdir()) == []


def test_repair_refuses_what_it_does_not_know(store: Path, scratch: Path):
    """
    A record of a newer release is not damage: nothing is dropped because this one does not know it.
    """
    copy_store(store, scratch)
    seed = crc32(verify_store(DISK, scratch).store_id.encode())
    path = next(path for path in logs_of(scratch) if "-" not in path.name and b'"step_completed"' in path.read_bytes())
    lines = path.read_bytes().split(b"\n")
    at = next(at for at, line in enumerate(lines) if b'"step_completed"' in line)
    rest = lines[at].replace(b'"step_completed"', b'"step_delighted"')[9:]
    lines[at] = b"%08x %b" % (crc32(rest, seed), rest)
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(memable.StoreVersionError, match="repair it with the release that wrote it"):
        repair_store(DISK, scratch, NOW)


# In place ------------------------------------------------------------------------------------------------------------


class DyingDisk(RealDisk):
    """
    A disk whose process dies at one of its calls that change something.
    """

    calls_left = 1_000_000

    def _count(self) -> None:
        DyingDisk.calls_left -= 1
        if DyingDisk.calls_left < 0:
            raise KeyboardInterrupt

    def make_directory(self, path: Path) -> bool:
        self._count()
        return super().make_directory(path)

    def rename(self, source: Path, target: Path) -> None:
        self._count()
        super().rename(source, target)

    def remove(self, path: Path) -> None:
        self._count()
        super().remove(path)

    def sync_directory(self, path: Path) -> None:
        self._count()
        super().sync_directory(path)


def test_repair_in_place_keeps_the_damaged_store(store: Path, tmp_path: Path):
    """
    The copy takes the store's place, and the damaged store is kept, as it was, under another name.
    """
    place = tmp_path / "store"
    copy_store(store, place)
    damage(place, [("zero", 500_000, 500_000)], only=[logs_of(place)[3].name])
    before = files_of(place)
    repair = repair_store(DISK, place, NOW, in_place=True)
    aside = place.with_name("store.damaged-20330518T033320Z")
    assert (repair.target, repair.kept_aside) == (str(place), str(aside))
    assert files_of(aside) == before
    assert verify_store(DISK, place).is_sound
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", aside.name]


def test_repair_in_place_may_be_killed_anywhere(store: Path, tmp_path: Path):
    """
    Wherever a repair in place is killed, the damaged store is there, and so is the copy if it has its name.
    """
    calls = 0
    while True:
        root = tmp_path / f"{calls}"
        root.mkdir()
        place = root / "store"
        copy_store(store, place)
        damage(place, [("zero", 500_000, 500_000)], only=[logs_of(place)[3].name])
        before = {path.name: path.read_bytes() for path in place.iterdir()}
        DyingDisk.calls_left = calls
        disk = DyingDisk()
        try:
            repair_store(disk, place, NOW, in_place=True)
        except KeyboardInterrupt:
            disk.close_all()
        else:
            break
        calls += 1
        found = {path.name: path for path in root.iterdir()}
        is_original = [
            name for name, path in found.items() if {one.name: one.read_bytes() for one in path.iterdir()} == before
        ]
        assert len(is_original) == 1
        for name, path in found.items():
            if name not in is_original and not name.endswith(".tmp"):
                assert verify_store(DISK, path).is_sound
        if "store" in is_original:
            # It can simply be begun again, as long as there is no complete copy.
            if repaired(place).exists():
                shutil.rmtree(repaired(place))
            assert repair_store(DISK, place, NOW, in_place=True).target == str(place)
    assert calls > 5


# The parts -----------------------------------------------------------------------------------------------------------

SEED = crc32(b"store")


def test_corrected_finds_each_flipped_bit():
    """
    Whichever bit of a line is flipped, the line that it was is found, unless it is the line break.
    """
    (line,) = frame_batch(SEED, 1, 2, [encode_record(step(1, 2))])
    for at in range(len(line) - 1):
        for bit in range(8):
            raw = bytearray(line)
            raw[at] ^= 1 << bit
            found = corrected(bytes(raw), SEED)
            assert found is not None
            assert found[0] + b"\n" == line
    assert corrected(b"\0" * 100 + b"\n", SEED) is None
    assert corrected(b"short\n", SEED) is None


@given(chunk_bytes=st.integers(1, 200), at=st.integers(0, 400))
def test_find_lines_finds_all_that_is_intact(chunk_bytes: int, at: int):
    """
    However the bytes come, all lines but the damaged one are found, and the rest is what is damaged.
    """
    lines = frame_batch(SEED, 1, 2, [encode_record(step(1, seq)) for seq in range(2, 7)])
    content = bytearray(b"".join(lines))
    at %= len(content)
    content[at] ^= 1
    chunks = [bytes(content[start : start + chunk_bytes]) for start in range(0, len(content), chunk_bytes)]
    found = list(find_lines(chunks, SEED, 0))
    intact = [one.line + b"\n" for one in found if isinstance(one, Intact)]
    assert intact == [line for index, line in enumerate(lines) if line in intact]
    assert len(intact) >= len(lines) - 1
    assert sum(one.end - one.start for one in found) == len(content)
    for one in found:
        if isinstance(one, Damaged):
            assert one.start <= at < one.end


def test_find_lines_holds_little_of_what_is_no_line():
    """
    Noise without a line break is given away as it comes.
    """
    (line,) = frame_batch(SEED, 1, 2, [encode_record(step(1, 2))])
    noise = b"\0" * (1024 * 1024)
    found = list(find_lines([noise, noise, noise, b"\n" + line], SEED, 0))
    assert [type(one) for one in found] == [Damaged, Intact]
    assert (found[0].start, found[0].end) == (0, 3 * len(noise) + 1)


def test_choose_runs_believes_the_most_lines():
    """
    A few lines that stand where they cannot belong do not make the many wrong.
    """
    runs = [
        Run((0, 0), (19, 0), 1, 1, 20),
        Run((50, 0), (51, 0), 1, 1, 2),
        Run((22, 0), (200, 0), 1, 2, 178),
        Run((3, 0), (4, 0), 1, 1, 2),
        Run((201, 0), (210, 0), 2, 2, 10),
    ]
    assert choose_runs(runs) == {0, 2, 4}
    assert choose_runs([]) == set()


def test_mend_prefers_memos_to_an_end():
    """
    Where the record of a resumption is lost, the end before it goes, and all memos stay.
    """
    records = [started(1), step(1, 2), completed(1, 3), step(1, 5)]
    mended = mend(records)
    assert mended is not None
    assert mended.kept == [0, 1, 3]
    assert list(mended.dropped) == [2]
    assert mended.header.completed_at is None
    mended = mend([started(1), completed(1, 2), resumed(1, 3), step(1, 4), step(1, 4)])
    assert mended is not None
    assert mended.kept == [0, 1, 2, 3]
    assert mend([step(1, 2)]) is None


def test_mend_drops_a_request_to_cancel():
    """
    A request to cancel would be carried out though the instance is blocked, so it is dropped, and told.
    """
    mended = mend([started(1), CancelRequested(instance=1, seq=2, at=1.0), step(1, 4)])
    assert mended is not None
    assert mended.kept == [0, 2]
    assert not mended.header.cancel_requested
