"""
Test lines that are intact, though not in the shape in which this release writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

from checksums import path_to
from memable._disk import RealDisk
from memable._frames import decode_header, seed_of
from memable._records import InstanceRecord
from memable._store._protocol import OpenStore
from memable._store._repair import repair_store
from memable._store._verify import verify_store
from segmented import (
    SimulatedDisk,
    chain_on,
    in_order,
    journals,
    open_on,
    retire,
    run_instance,
    tidy,
    without_checkpoint,
    without_superseded,
)


def strange_store() -> SimulatedDisk:
    """Return a disk with a store in which the fields of one record stand in another order."""
    disk = SimulatedDisk()

    async def main(store: OpenStore) -> None:
        await run_instance(store, steps=2, ends=False)
        for number in [await run_instance(store, steps=8) for _ in range(3)]:
            await retire(store, number)

    open_on(disk, main, segment_bytes=100_000)
    disk = in_order(without_checkpoint(disk))
    (name,) = chain_on(disk).current
    lines = disk.content(path_to(name)).split(b"\n")
    seed = seed_of(decode_header(lines[0], "").store_id)
    at = next(index for index, line in enumerate(lines) if b'"instance":1,"seq":2' in line)
    rest = lines[at][9:].replace(b'"instance":1,"seq":2', b'"seq":2,"instance":1')
    lines[at] = b"%08x " % crc32(rest, seed) + rest
    disk.shown[path_to(name)].shown[:] = b"\n".join(lines)
    return in_order(disk)


def test_segment_with_a_strange_line_is_compacted():
    """A line that is intact is copied as it is, whatever it looks like."""
    disk = strange_store()
    before = open_on(disk.copy(), journals)

    async def main(store: OpenStore) -> dict[int, Sequence[InstanceRecord]]:
        await run_instance(store, steps=8)
        await tidy(store)
        return await journals(store)

    after = open_on(disk, main)
    assert without_superseded(before)[1] == without_superseded(after)[1]
    assert any(name.is_compacted for name in chain_on(disk).current)


def test_store_with_a_strange_line_is_repaired(tmp_path: Path):
    """So it is copied by a repair."""
    disk = strange_store()
    store = tmp_path / "store"
    store.mkdir()
    for path in disk.shown:
        (store / path.name).write_bytes(disk.content(path))
    assert verify_store(RealDisk(), store).is_sound
    assert repair_store(RealDisk(), store, 1e9, tmp_path / "copy").is_lossless
