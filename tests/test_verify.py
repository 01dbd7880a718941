"""
Verifying a store: all faults are found, each where it is, and nothing that is none.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings

import memable
from damaging import DAMAGES, WORKFLOWS, Damage, copy_store, damage, kid, logs_of, make_store
from memable._disk import RealDisk
from memable._faults import FaultKind
from memable._segments import chain_of
from memable._store._lockfile import read_notes
from memable._store._reading import missing_segments, read_log
from memable._store._repair import repair_store
from memable._store._upkeep import Upkeep
from memable._store._verify import Verdict, verify_store
from showing import files_of

DISK = RealDisk()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of many segments, some compacted, which no test changes."""
    return make_store(tmp_path_factory.mktemp("verify") / "store")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "store"


def verify(store: Path) -> Verdict:
    return verify_store(DISK, store)


def refusal_of(store: Path) -> memable.StoreCorruptedError | None:
    """Return what an opener that has no checkpoint refuses the store with."""
    chain = chain_of(DISK.list_names(store))
    noted = read_notes(DISK, store).tail
    try:
        if chain.current[-1].last < noted:
            raise missing_segments(store, chain.current[-1].last + 1, noted)
        read_log(DISK, store, chain, None)
    except memable.StoreCorruptedError as refusal:
        return refusal
    return None


def assert_agrees(store: Path) -> None:
    refusal, verdict = refusal_of(store), verify(store)
    assert verdict.is_sound == (refusal is None), (refusal, verdict.faults)
    if refusal is not None:
        places = {(fault.file, fault.offset) for fault in verdict.faults}
        assert (Path(refusal.location).name, refusal.offset) in places


# Sound stores --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["fsync", "os"])
def test_verify_finds_no_fault_in_a_store_that_has_none(durability, tmp_path: Path):
    """
    A store with compacted segments and a checkpoint is sound, and reading it changes nothing.
    """
    store = make_store(tmp_path / "store", durability=durability)
    assert any("-" in path.name for path in logs_of(store))
    assert (store / "checkpoint").exists()
    before = files_of(store)
    verdict = verify(store)
    assert (verdict.faults, verdict.notes) == ((), ())
    assert verdict.is_closed
    assert verdict.session == 2
    assert verdict.log_bytes == sum(path.stat().st_size for path in logs_of(store))
    assert files_of(store) == before


def test_verify_reads_a_store_of_the_first_format():
    """
    A store that an earlier release wrote is sound.
    """
    for store in sorted((Path(__file__).parent / "data").glob("format_1*")):
        found = [store, *(path for path in store.rglob("*") if path.is_dir())]
        for directory in found:
            if list(directory.glob("*.log")):
                assert verify(directory).faults == ()


async def test_verify_beside_a_live_engine_finds_no_fault(tmp_path: Path):
    """
    Batches being written, segments being sealed and compactions under way are no faults.
    """
    store = tmp_path / "store"
    kept = memable.FileStore(store, segment_bytes=1500)
    async with (
        memable.open_engine(kept, workflows=WORKFLOWS, retention=0.0) as engine,
        trio.open_nursery() as nursery,
    ):

        async def work() -> None:
            for number in range(150):
                await (await engine.invoke(kid, number, instance_id=f"k{number}")).wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(work)
        while True:
            verdict = await trio.to_thread.run_sync(verify, store)
            assert verdict.faults == ()
    assert verify(store).is_sound


def test_verify_notes_a_torn_tail_and_what_is_left_over(store: Path, scratch: Path):
    """
    What a crash leaves is normal, and noted.
    """
    copy_store(store, scratch)
    tail = logs_of(scratch)[-1]
    size = tail.stat().st_size
    with tail.open("ab") as file:
        file.write(b"torn")
    (scratch / "00000099.log.tmp").touch()
    (scratch / "00000001.log.torn").touch()
    verdict = verify(scratch)
    assert verdict.is_sound
    notes = {note.file: note.text for note in verdict.notes}
    assert f"ends with 4 bytes, of 1 batch(es), that are not whole, from byte offset {size} on" in notes[tail.name]
    assert notes["00000099.log.tmp"].startswith("is being written")
    assert notes["00000001.log.torn"].startswith("is a torn tail")


def test_verify_notes_a_checkpoint_that_is_damaged(store: Path, scratch: Path):
    """
    A damaged checkpoint is no fault: it is not used.
    """
    copy_store(store, scratch)
    content = bytearray((scratch / "checkpoint").read_bytes())
    content[len(content) // 2] ^= 1
    (scratch / "checkpoint").write_bytes(content)
    verdict = verify(scratch)
    assert verdict.is_sound
    assert [note.file for note in verdict.notes] == ["checkpoint"]
    assert "may be deleted" in verdict.notes[0].text


def test_verify_refuses_what_is_no_store(tmp_path: Path):
    """
    A directory without a store cannot be verified.
    """
    with pytest.raises(memable.StorageError, match="there is no store"):
        verify(tmp_path)
    with pytest.raises(memable.StorageError, match="reading failed"):
        verify(tmp_path / "missing")


# Faults --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_verify_finds_a_flipped_bit_in_every_byte_of_a_sealed_segment(scratch: Path, tmp_path: Path):
    """
    Whichever byte of a sealed segment has a flipped bit, a fault is told at the line that it is in.
    """
    copy_store(make_store(tmp_path / "small", segment_bytes=1024, count=1), scratch)
    (scratch / "checkpoint").unlink(missing_ok=True)
    names = [path.name for path in logs_of(scratch)]
    plain = next(name for name in names if "-" not in name)
    compacted = next(name for name in names if "-" in name)
    for name in (plain, compacted):
        path = scratch / name
        content = path.read_bytes()
        # Each bit around one line break, and one of each other byte.
        full = content.find(b"\n", content.find(b"\n") + 1)
        for at in range(len(content)):
            for bit in range(8) if full - 40 < at < full else (at % 8,):
                changed = bytearray(content)
                changed[at] ^= 1 << bit
                path.write_bytes(changed)
                start = content.rfind(b"\n", 0, at) + 1
                if name == compacted and content[start:].startswith(content[start : start + 9] + b'{"kept"'):
                    kinds = {FaultKind.MAP}
                else:
                    kinds = {FaultKind.HEADER} if start == 0 else {FaultKind.DAMAGED}
                faults = verify(scratch).faults
                assert [(fault.file, fault.offset, fault.kind) for fault in faults if fault.offset == start] == [
                    (name, start, kind) for kind in kinds
                ], (at, bit, faults)
                if at % 50 == 0:
                    assert_agrees(scratch)
        path.write_bytes(content)


@settings(deadline=None, max_examples=60)
@given(damages=DAMAGES)
def test_verify_agrees_with_opening(damages: Sequence[Damage], store: Path, scratch: Path):
    """
    A store has a fault if and only if it is refused without its checkpoint, and one is where it is refused.
    """
    copy_store(store, scratch)
    (scratch / "checkpoint").unlink()
    damage(scratch, damages)
    if logs_of(scratch):
        assert_agrees(scratch)


def test_verify_finds_all_faults(store: Path, scratch: Path):
    """
    All faults are told, not only the first.
    """
    copy_store(store, scratch)
    logs = [path for path in logs_of(scratch) if "-" not in path.name]
    for path in (logs[1], logs[3]):
        content = path.read_bytes()
        start = content.find(b"\n", content.find(b"\n") + 1) + 1
        path.write_bytes(content[: start + 20] + b"#" + content[start + 21 :])
    logs[5].unlink()
    verdict = verify(scratch)
    found = {(fault.file, fault.kind) for fault in verdict.faults}
    assert {
        (logs[1].name, FaultKind.DAMAGED),
        (logs[3].name, FaultKind.DAMAGED),
        (logs[5].name, FaultKind.MISSING),
    } <= found


def test_verify_tells_which_record_a_flipped_bit_has_damaged(store: Path, scratch: Path):
    """
    Where one flipped bit is all, it is said whose record it was.
    """
    copy_store(store, scratch)
    path = next(path for path in logs_of(scratch) if "-" not in path.name and b'"step_completed"' in path.read_bytes())
    content = bytearray(path.read_bytes())
    at = content.index(b'"step_completed"')
    content[at + 3] ^= 4
    path.write_bytes(content)
    (fault, *_) = verify(scratch).faults
    assert "one flipped bit" in fault.problem
    assert "step_completed" in fault.problem
    assert fault.instance is not None
    assert fault.length is not None


def test_verify_finds_a_file_of_another_store(store: Path, scratch: Path, tmp_path: Path):
    """
    A segment of another store is a fault, whatever else is right with it.
    """
    copy_store(store, scratch)
    other = make_store(tmp_path / "other")
    name = next(path.name for path in logs_of(scratch) if "-" not in path.name)
    (scratch / name).write_bytes((other / name).read_bytes() if (other / name).exists() else b"")
    assert any(fault.file == name and fault.kind is FaultKind.HEADER for fault in verify(scratch).faults)
    assert_agrees(scratch)


def test_verify_finds_that_the_log_is_shorter_than_the_checkpoint_says(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
):
    """
    A log that is shorter than it was when the checkpoint was written has lost something.
    """
    # One is written at the end, however little has come since the one before it.
    monkeypatch.setattr(Upkeep, "_unread", lambda _: sys.maxsize)
    copy_store(make_store(tmp_path / "store"), scratch)
    tail = logs_of(scratch)[-1]
    content = tail.read_bytes()
    tail.write_bytes(content[: content.find(b"\n") + 1])
    (fault,) = verify(scratch).faults
    assert (fault.file, fault.offset, fault.kind) == (tail.name, content.find(b"\n") + 1, FaultKind.MISSING)
    repaired = repair_store(DISK, scratch, 0.0)
    assert repaired.target is not None
    assert not repaired.is_lossless
