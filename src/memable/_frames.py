"""
Records to the lines of a log and back: each line says where it belongs, and proves that it is intact.

A log's file is text. Its first line is the segment's header. Each further line is a record::

    1f2e0a44 3.17.0+ {"kind":"step_completed","instance":12,...}
    (checksum) (session).(batch).(index)(mark) (record)

The checksum (CRC-32) covers all behind it, seeded with the store's id. The batch's number counts over the store's
whole life, the index from 0 within the batch; the mark is ``+`` if more lines of the batch follow, ``;`` on its last
line. So a line that was moved, cut, or left over from another file, store or session never passes for the one that is
due; a batch is whole if and only if its lines follow each other from index 0 to the one marked ``;``; and no length
stands anywhere whose damage could hide what follows. JSON has no raw line break, so a line is a record.

The header's line has the same shape in every future release, so that an older one can tell that it is too old.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, cast
from zlib import crc32

import attrs

from ._errors import StoreCorruptedError, StoreVersionError
from ._json import dumps, loads

#: The format that this release writes, and the newest that it reads.
FORMAT_VERSION = 1

#: No prefix of a line is longer than this; what is longer need not be looked at.
MAX_PREFIX_BYTES = 64

_PREFIX = re.compile(rb"([0-9a-f]{8}) ([0-9]{1,12})\.([0-9]{1,18})\.([0-9]{1,12})([+;]) ")
#: Where a line may begin inside a damaged one. In a JSON string the quotes are escaped, so no record's text matches.
_LINE_START = re.compile(_PREFIX.pattern + rb'\{"kind":"')
_HEADER = re.compile(rb"([0-9a-f]{8}) (\{\"memable\":.*\})", re.DOTALL)


@attrs.frozen
class SegmentHeader:
    """
    What the first line of a log's file says.
    """

    store_id: str
    "The store's random id: 32 hexadecimal digits."
    segment: int
    "The file's number, from 1."
    created_at: float
    "When the file was made."


class Line(NamedTuple):
    """
    One intact line of a log, without its line break. A named tuple: recovery makes one for each line there is.
    """

    session: int
    batch: int
    position: int
    "Its index in the batch, from 0."
    is_last: bool
    "Whether it is the last line of its batch."
    text: bytes
    "The record's JSON."


def encode_header(header: SegmentHeader) -> bytes:
    """
    Return the first line of a log's file, line break included.
    """
    text = dumps(
        {
            "memable": FORMAT_VERSION,
            "store": header.store_id,
            "segment": header.segment,
            "created_at": header.created_at,
        }
    )
    return b"%08x %b\n" % (crc32(text), text)


def decode_header(line: bytes, location: str) -> SegmentHeader:
    """
    Return what a file's first line says.

    Args:
        line: The line, with or without its line break.
        location: What to call the file in an error.

    Raises:
        StoreVersionError: The file is of a newer format. Use a newer release of memable.
        StoreCorruptedError: No intact header.
    """
    found = _HEADER.fullmatch(line.removesuffix(b"\n"))
    if found is None or int(found[1], 16) != crc32(found[2]):
        raise StoreCorruptedError(
            location=location,
            offset=0,
            problem="its first line is not an intact header of a memable log; restore the file from a backup",
        )
    tree = cast("dict[str, Any]", loads(found[2]))
    version: int = tree["memable"]
    if version > FORMAT_VERSION:
        raise StoreVersionError(
            location=location,
            problem=(
                f"is in format {version}, and this release of memable reads formats up to {FORMAT_VERSION}; "
                f"install a newer release"
            ),
            found=version,
            supported=FORMAT_VERSION,
        )
    return SegmentHeader(store_id=tree["store"], segment=tree["segment"], created_at=tree["created_at"])


def seed_of(store_id: str) -> int:
    """
    Return what the checksums of a store's lines begin with.
    """
    return crc32(store_id.encode())


def frame_batch(seed: int, session: int, batch: int, texts: Sequence[bytes]) -> list[bytes]:
    """
    Return a batch of records as lines, line breaks included.

    Args:
        seed: What ``seed_of`` the store's id is.
        session: Number of the session.
        batch: Number of the batch: one more than that of the batch before.
        texts: The records' JSON, in order. At least one.
    """
    lines: list[bytes] = []
    last = len(texts) - 1
    for index, text in enumerate(texts):
        rest = b"%d.%d.%d%b %b" % (session, batch, index, b"+" if index < last else b";", text)
        lines.append(b"%08x %b\n" % (crc32(rest, seed), rest))
    return lines


def parse_line(line: bytes, seed: int) -> Line | None:
    """
    Return what a line says if it is intact, else None.

    Args:
        line: The line, without its line break.
        seed: What ``seed_of`` the store's id is.
    """
    found = _PREFIX.match(line)
    if found is None:
        return None
    stored, session, batch, index, mark = found.groups()
    if int(stored, 16) != crc32(line[9:], seed):
        return None
    return Line(int(session), int(batch), int(index), mark == b";", line[found.end() :])


def find_line_start(data: bytes, start: int) -> int:
    """
    Return where, at or after *start*, a record's line may begin within *data*, or -1.
    """
    found = _LINE_START.search(data, start)
    return -1 if found is None else found.start()
