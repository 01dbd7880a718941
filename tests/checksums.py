"""
Whole-file checksums of a log on a simulated disk: taken away, set right, and compared with what is there.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, cast
from zlib import crc32

import attrs

from memable._frames import SegmentHeader, decode_header
from memable._json import dumps, loads
from memable._segments import SegmentName
from memable._store._reading import LogReading, read_log
from memable._testing._simulated_disk import SimulatedDisk
from segmented import PATH, chain_on, in_order, without_checkpoint


def path_to(name: SegmentName) -> Path:
    """
    Return where a file of the log is.
    """
    return PATH / str(name)


def header_on(disk: SimulatedDisk, name: SegmentName) -> SegmentHeader:
    """
    Return what a file says of itself.
    """
    return decode_header(disk.content(path_to(name)).partition(b"\n")[0], str(name))


def change_header(disk: SimulatedDisk, name: SegmentName, changes: dict[str, str]) -> None:
    """
    Write texts in a file's header in the place of others, with its checksum.
    """
    line, _, rest = disk.content(path_to(name)).partition(b"\n")
    text = line[9:].decode()
    for old, new in changes.items():
        text = text.replace(old, new)
    disk.shown[path_to(name)].shown[:] = b"%08x %b\n" % (crc32(text.encode()), text.encode()) + rest


def without_checksums(disk: SimulatedDisk) -> SimulatedDisk:
    """
    Return a copy of a disk, without a checkpoint, on which the files have the checksums under names that nobody knows.

    So they are as long as they were.
    """
    copy = in_order(without_checkpoint(disk))
    for name in chain_on(copy).current:
        change_header(copy, name, {'"before"': '"afterw"'})
        if name.is_compacted:
            compacted = dumps(cast("dict[str, Any]", loads(header_text(copy, name)))["compacted"]).decode()
            change_header(copy, name, {compacted: compacted.replace('"checksum"', '"checkmus"')})
    return copy


def header_text(disk: SimulatedDisk, name: SegmentName) -> bytes:
    """
    Return the JSON of a file's header.
    """
    return disk.content(path_to(name)).partition(b"\n")[0][9:]


def with_right_checksums(disk: SimulatedDisk) -> SimulatedDisk:
    """
    Return a copy of a disk on which the checksums of the files are those of their bytes, whatever these are.
    """
    copy = in_order(without_checkpoint(disk))
    names = chain_on(copy).current
    for name in names:
        header = header_on(copy, name)
        changes: dict[str, str] = {}
        if header.compacted is not None:
            content = copy.content(path_to(name))
            start = content.index(b"\n") + 1
            found = crc32(content[start : start + header.compacted.size])
            changes[f'"checksum":{header.compacted.checksum}'] = f'"checksum":{found}'
        at = names.index(name)
        if header.before is not None and at:
            content = copy.content(path_to(names[at - 1]))
            old = f'"size":{header.before.size},"checksum":{header.before.checksum}'
            changes[old] = f'"size":{len(content)},"checksum":{crc32(content)}'
        change_header(copy, name, changes)
    return copy


def read(disk: SimulatedDisk) -> LogReading:
    """
    Read all of the log on a disk.
    """
    return read_log(disk, PATH, chain_on(disk), None)


def told_by(reading: LogReading) -> dict[str, object]:
    """
    Return all that a reading says, but for checksums.
    """
    index, space = reading.index, reading.space
    headers = index.select()
    return {
        "headers": [attrs.astuple(header, filter=lambda field, _: field.eq) for header in headers],
        "spans": [list(index.spans(header.number)) for header in headers],
        "live": [header.number for header in index.live()],
        "found": [index.number_of(header.workflow, header.instance_id) for header in headers],
        "ended": [header.number for header in index.ended("w", 1e18, 10_000)],
        "index": (index.last_number, index.has_forgotten, index.unexamined, index.orphans()),
        "files": [attrs.astuple(file) for file in space.files],
        "tombstones": sorted(
            (number, one.span, sorted(one.segments)) for page in space.tombstones.pages() for number, one in page
        ),
        "superseded": sorted(span for page in space.superseded.pages() for span in page),
        "state": reading.state,
        "end": (reading.scan.good_end, reading.scan.torn_batch_count, reading.scan.last_batch_start),
        "read": reading.read_bytes,
    }


def check_checksums(disk: SimulatedDisk) -> int:
    """
    Check that all checksums on a disk are right, and that its log says the same without them; return how many.
    """
    names = chain_on(disk).current
    count = 0
    for name, following in pairwise(names):
        before = header_on(disk, following).before
        if before is not None and not name.is_compacted:
            content = disk.content(path_to(name))
            assert (before.size, before.checksum) == (len(content), crc32(content))
            count += 1
    for name in names:
        compacted = header_on(disk, name).compacted
        if compacted is not None and compacted.checksum is not None:
            content = disk.content(path_to(name))
            start = content.index(b"\n") + 1
            assert compacted.checksum == crc32(content[start : start + compacted.size])
            count += 1
    if not names or names[-1].is_compacted:
        return count
    reading = read(disk)
    assert reading.checksum == crc32(disk.content(path_to(names[-1]))[: reading.scan.good_end])
    assert told_by(reading) == told_by(read(without_checksums(disk)))
    return count
