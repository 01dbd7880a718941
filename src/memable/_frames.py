"""
Records to the lines of a log and back: each line says where it belongs, and proves that it is intact.

A log is a row of files, its segments. A segment is text. Its first line is its header. Each further line is a record::

    1f2e0a44 3.17.0+ {"kind":"step_completed","instance":12,...}
    (checksum) (session).(batch).(index)(mark) (record)

The checksum (CRC-32) covers all behind it, seeded with the store's id. The batch's number counts over the store's
whole life, the index from 0 within the batch; the mark is ``+`` if more lines of the batch follow, ``;`` on its last
line. So a line that was moved, cut, or left over from another file, store or session never passes for the one that is
due; a batch is whole if and only if its lines follow each other from index 0 to the one marked ``;``; and no length
stands anywhere whose damage could hide what follows. JSON has no raw line break, so a line is a record.

The header's line has the same shape in every future release, so that an older one can tell that it is too old. It says
what the log was when the segment began, so that each segment can be read, and checked, by itself. And it says how
long the segment before it had become, with a checksum of all its bytes: who finds these to be right need not look at
each line. So does a compacted segment of its own lines. Both may be missing.

A compacted segment stands for one or more whole ones. It holds those of their lines that are still needed, as they
were, and behind them lines that map the old places to the new ones::

    5b1c77e0 {"kept":[1,183,512,1,1400,96]}
    (checksum) (segment, offset and length of each stretch of lines that was kept, in order)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple, TypeVar, cast, overload
from zlib import crc32

import attrs

from ._crc import begin_anew
from ._errors import StoreCorruptedError, StoreVersionError
from ._json import JSON, dumps, loads
from ._texts import Text, size_of

T = TypeVar("T")

#: The format that this release writes, and the newest that it reads.
FORMAT_VERSION = 2

#: What is said of damage.
WAY_OUT = (
    "no crash explains this; nothing was changed: `memable verify` lists all faults, `memable repair` makes a copy "
    "with what is intact, or restore the store from a backup"
)

#: No prefix of a line is longer than this; what is longer need not be looked at.
MAX_PREFIX_BYTES = 64

#: What stands before a record: checksum, session, batch, index, mark.
PREFIX = re.compile(rb"([0-9a-f]{8}) ([0-9]{1,12})\.([0-9]{1,18})\.([0-9]{1,12})([+;]) ")
#: Where a line may begin inside a damaged one. In a JSON string the quotes are escaped, so no record's text matches.
_LINE_START = re.compile(PREFIX.pattern + rb'\{"kind":"')
_HEADER = re.compile(rb"([0-9a-f]{8}) (\{\"memable\":.*\})", re.DOTALL)
_KEPT = re.compile(rb"([0-9a-f]{8}) (\{\"kept\":\[[0-9,]*\]\})")
#: So many stretches are mapped in one line, so that lines stay short.
_STRETCHES_PER_LINE = 1_000


@attrs.frozen
class LogState:
    """
    What a log has come to at the border between two segments.
    """

    session: int = 0
    "The newest session that began before."
    closed: bool = True
    "Whether that session was closed in order."
    durability: str = "fsync"
    "How that session's batches were made durable."
    crashed: tuple[int, ...] = ()
    "Of the sessions before it, those that were not closed in order, and in which an unfinished instance last ran."
    next_batch: int = 0
    "Number of the batch that is due."
    newest_at: float = 0.0
    "The latest time in any record."
    last_number: int = 0
    "The greatest number that an instance was given."


@attrs.frozen
class Compacted:
    """
    What the header of a compacted segment says beside.
    """

    through: int
    "The last segment that it stands for."
    generation: int
    "Counts the compactions of the same segments, from 1."
    lines: int
    "How many records it holds."
    size: int
    "How many bytes these take, line breaks included."
    checksum: int | None = None
    "The CRC-32 of these bytes; None if an earlier release wrote them."


@attrs.frozen
class Sealed:
    """
    What a segment was when the next one began.
    """

    size: int
    "How long it was."
    checksum: int
    "The CRC-32 of all its bytes, its header's included."


@attrs.frozen
class SegmentHeader:
    """
    What the first line of a segment says.
    """

    store_id: str
    "The store's random id: 32 hexadecimal digits."
    segment: int
    "The segment's number, from 1; of a compacted one, the first that it stands for."
    created_at: float
    "When the file was made."
    durability: str | None = None
    "How its batches are made durable; None in format 1, where sessions alone say so."
    state: LogState = LogState()
    "What the log was when the segment began."
    compacted: Compacted | None = None
    "Set if it stands for other segments."
    before: Sealed | None = None
    "What the segment before it was, if that is known; that may have been compacted since."
    version: int = FORMAT_VERSION
    "The format that it is written in."


class Stretch(NamedTuple):
    """
    Neighbouring lines that a compacted segment has kept.
    """

    segment: int
    "The segment that they were written to first."
    offset: int
    "Where in it they began."
    length: int
    "How many bytes they have."


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
    Return the first line of a segment, line break included.
    """
    tree: dict[str, Any] = {
        "memable": FORMAT_VERSION,
        "store": header.store_id,
        "segment": header.segment,
        "created_at": header.created_at,
        "durability": header.durability,
        "state": attrs.asdict(header.state, value_serializer=_plain),
    }
    if header.compacted is not None:
        tree["compacted"] = attrs.asdict(header.compacted)
    if header.before is not None:
        tree["before"] = attrs.asdict(header.before)
    return _sealed(dumps(tree))


def decode_header(line: bytes, location: str) -> SegmentHeader:
    """
    Return what a segment's first line says.

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
            problem=f"its first line is not an intact header of a memable log; {WAY_OUT}",
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
    compacted, before = tree.get("compacted"), tree.get("before")
    return SegmentHeader(
        store_id=tree["store"],
        segment=tree["segment"],
        created_at=tree["created_at"],
        durability=tree.get("durability"),
        state=_structured(LogState, tree.get("state", {})),
        compacted=None if compacted is None else _structured(Compacted, compacted),
        before=None if before is None else _structured(Sealed, before),
        version=version,
    )


def encode_stretches(stretches: Sequence[Stretch]) -> bytes:
    """
    Return the lines that map old places to new ones, line breaks included.
    """
    lines: list[bytes] = []
    for start in range(0, len(stretches), _STRETCHES_PER_LINE):
        numbers: list[JSON] = []
        for stretch in stretches[start : start + _STRETCHES_PER_LINE]:
            numbers.extend(stretch)
        lines.append(_sealed(dumps({"kept": numbers})))
    return b"".join(lines)


def decode_stretches(line: bytes) -> list[Stretch] | None:
    """
    Return what one of those lines says if it is intact, else None.

    Args:
        line: The line, without its line break.
    """
    found = _KEPT.fullmatch(line)
    if found is None or int(found[1], 16) != crc32(found[2]):
        return None
    numbers = cast("dict[str, list[int]]", loads(found[2]))["kept"]
    return [Stretch(*numbers[at : at + 3]) for at in range(0, len(numbers), 3)]


def _sealed(text: bytes) -> bytes:
    return b"%08x %b\n" % (crc32(text), text)


def _plain(_owner: object, _field: object, value: Any) -> Any:
    return list(cast("tuple[int, ...]", value)) if isinstance(value, tuple) else value


def _structured(cls: type[T], tree: dict[str, Any]) -> T:
    """Return an object of what is known of *tree*: later releases may say more."""
    known = {field.name for field in attrs.fields(cast("type[Any]", cls))}
    return cls(
        **{
            name: tuple(cast("list[int]", value)) if isinstance(value, list) else value
            for name, value in tree.items()
            if name in known
        }
    )


def seed_of(store_id: str) -> int:
    """
    Return what the checksums of a store's lines begin with.
    """
    return crc32(store_id.encode())


@overload
def frame_batch(seed: int, session: int, batch: int, texts: Sequence[bytes]) -> Sequence[bytes]: ...
@overload
def frame_batch(seed: int, session: int, batch: int, texts: Sequence[Text]) -> Sequence[Text]: ...
def frame_batch(seed: int, session: int, batch: int, texts: Sequence[Text]) -> Sequence[Text]:
    """
    Return a batch of records as lines, line breaks included.

    Args:
        seed: What ``seed_of`` the store's id is.
        session: Number of the session.
        batch: Number of the batch: one more than that of the batch before.
        texts: The records' JSON, in order. At least one. What is in parts gives a line in parts.
    """
    lines: list[Text] = []
    last = len(texts) - 1
    # The same for all of them, which may be thousands.
    begin = b"%d.%d." % (session, batch)
    begun = crc32(begin, seed)
    for index, text in enumerate(texts):
        end = b"%d+ " % index if index < last else b"%d; " % index
        if isinstance(text, bytes):
            lines.append(b"".join((b"%08x " % crc32(text, crc32(end, begun)), begin, end, text, b"\n")))
        else:
            checksum = reduce(lambda before, part: crc32(part, before), text, crc32(end, begun))
            lines.append((b"%08x %b%b" % (checksum, begin, end), *text, b"\n"))
    return lines


def checksum_with(checksum: int, lines: Sequence[Text], parts: Sequence[bytes], seed: int) -> int:
    """
    Return the checksum of a segment's bytes with a batch behind them.

    Args:
        checksum: The CRC-32 of what is there already.
        lines: What ``frame_batch`` made.
        parts: The same bytes, as they are written.
        seed: What ``seed_of`` the store's id is.
    """
    if len(parts) == 1:
        return crc32(parts[0], checksum)
    for line in lines:
        if isinstance(line, bytes):
            checksum = crc32(line, checksum)
            continue
        # All but its own digits has been gone through once, which takes as long as the writing.
        begun = crc32(line[0][:9], checksum)
        checksum = crc32(b"\n", begin_anew(int(line[0][:8], 16), seed, begun, size_of(line) - 10))
    return checksum


def parse_line(line: bytes, seed: int) -> Line | None:
    """
    Return what a line says if it is intact, else None.

    Args:
        line: The line, without its line break.
        seed: What ``seed_of`` the store's id is.
    """
    found = PREFIX.match(line)
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
