"""
Finds the lines that are intact in bytes that are damaged.

Decided here: what a line can prove by itself. Its checksum, seeded with the store's id, says that it is one of this
store's, as it was written; its session, batch and index say where it belongs. So every intact line is found, whatever
is before it. Those that stand where they cannot belong, such as a sector that a disk has written to a wrong place, are
told by the order of their batches: of the runs of lines that contradict each other, those with most lines are believed.

A damaged line is never mended. But if one flipped bit explains it, it is known for sure which line it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache
from typing import NamedTuple
from zlib import crc32

from ._frames import MAX_PREFIX_BYTES, Line, decode_stretches, find_line_start, parse_line

Key = tuple[int, int]
"A line's place in the log: its batch, and its index in that."

#: So much of damaged bytes is kept, to tell what they were.
MAX_RAW_BYTES = 64 * 1024
#: The beginning of a line that has not ended after so many bytes is looked at: it may be none.
_MAX_UNSEEN_BYTES = 1024 * 1024
#: So many runs back, one is looked for that the next may follow: more contradictions in a row are not resolved.
_MAX_LOOK_BACK = 500
_CHECKSUM_BYTES = 8
_READABLE = re.compile(
    rb"([0-9]{1,12})\.([0-9]{1,18})\.([0-9]{1,12})[+;] \{\"kind\":\"([a-z_]{1,40})\",\"instance\":([0-9]{1,18}),"
    rb"\"seq\":([0-9]{1,18})[,}]"
)


class Intact(NamedTuple):
    """
    A line that is as it was written.
    """

    line: bytes
    "All of it, without its line break."
    parsed: Line
    start: int
    "Where in the file it begins."
    end: int
    "Where it ends, its line break included."
    has_break: bool
    "Whether that is intact, too."

    @property
    def key(self) -> Key:
        """
        Where in the log it belongs.
        """
        return self.parsed.batch, self.parsed.position


class Damaged(NamedTuple):
    """
    Bytes that are no intact line.
    """

    start: int
    "Where in the file they begin."
    end: int
    "Where they end."
    raw: bytes
    "The first of them."


class Readable(NamedTuple):
    """
    What a damaged line says, right or wrong.
    """

    batch: int
    kind: str
    instance: int
    seq: int


class Run(NamedTuple):
    """
    Lines that follow each other with nothing bad between them.
    """

    first: Key
    last: Key
    session: int
    "Of the first."
    last_session: int
    lines: int


def find_lines(chunks: Iterable[bytes], seed: int, offset: int) -> Iterator[Intact | Damaged]:
    """
    Yield what a file holds, from *offset* on, in order: neighbouring bytes that are damaged as one.

    The lines of a compacted segment's map are left out.

    Args:
        chunks: The bytes.
        seed: What ``seed_of`` the store's id is.
        offset: Where in the file they begin.
    """
    bad: Damaged | None = None
    for found in _find(chunks, seed, offset):
        if isinstance(found, Damaged):
            joined = found if bad is None else Damaged(bad.start, found.end, (bad.raw + found.raw)[:MAX_RAW_BYTES])
            if bad is not None and bad.end != found.start:
                yield bad
                joined = found
            bad = joined
            continue
        if bad is not None:
            yield bad
            bad = None
        yield found
    if bad is not None:
        yield bad


def _find(chunks: Iterable[bytes], seed: int, offset: int) -> Iterator[Intact | Damaged]:
    pending: list[bytes] = []
    held = 0
    for chunk in chunks:
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            if pending:
                line = b"".join((*pending, line))  # noqa: PLW2901 - its beginning came earlier
                pending.clear()
                held = 0
            yield from _take(line, seed, offset, has_break=True)
            offset += len(line) + 1
        pending.append(rest)
        held += len(rest)
        if held > _MAX_UNSEEN_BYTES and (b"\0" in rest or find_line_start(b"".join(pending)[:100], 0) != 0):
            # What is no line need not be held until a line break comes.
            joined = b"".join(pending)
            at = find_line_start(joined, 1)
            cut = at if at > 0 else len(joined) - MAX_PREFIX_BYTES
            yield Damaged(offset, offset + cut, joined[: min(cut, MAX_RAW_BYTES)])
            offset += cut
            pending[:] = [joined[cut:]]
            held = len(pending[0])
    if held:
        yield from _take(b"".join(pending), seed, offset, has_break=False)


def _take(line: bytes, seed: int, start: int, *, has_break: bool) -> Iterator[Intact | Damaged]:
    """Yield what is between two line breaks: mostly one line, or several if those between them are damaged."""
    if (parsed := parse_line(line, seed)) is not None:
        yield Intact(line, parsed, start, start + len(line) + has_break, has_break)
        return
    if decode_stretches(line) is not None:
        return
    at = 0
    while at >= 0:
        following = find_line_start(line, at + 1)
        is_last = following < 0
        # The byte before the next line was a line break.
        text = line[at:] if is_last else line[at : following - 1]
        end = start + (len(line) + has_break if is_last else following)
        parsed = parse_line(text, seed)
        if parsed is not None:
            yield Intact(text, parsed, start + at, end, is_last and has_break)
        else:
            raw = line[at:following] if not is_last else line[at:] + b"\n" * has_break
            yield Damaged(start + at, end, raw[:MAX_RAW_BYTES])
        at = following


def readable(raw: bytes) -> Readable | None:
    """
    Return what the first of damaged bytes seem to say, or None if they say nothing.
    """
    found = _READABLE.search(raw)
    if found is None:
        return None
    return Readable(int(found[2]), found[4].decode(), int(found[5]), int(found[6]))


# What a damaged line was ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def corrected(raw: bytes, seed: int) -> tuple[bytes, Line] | None:
    """
    Return the one line of which one flipped bit makes *raw*, without its line break, and what it says; else None.

    Args:
        raw: Damaged bytes, with the line break.
        seed: What ``seed_of`` the store's id is.
    """
    if len(raw) >= MAX_RAW_BYTES:
        return None
    for line in (raw[:-1], raw):
        # The second if it is the line break that is missing, at the end of a file.
        fixed = flipped_back(line, seed)
        if fixed is not None and b"\n" not in fixed:
            parsed = parse_line(fixed, seed)
            if parsed is not None:
                return fixed, parsed
    return None


def flipped_back(line: bytes, seed: int) -> bytes | None:
    """
    Return the line of which one flipped bit makes *line*, if there is one, else None.

    Args:
        line: A checksum, a blank, and what it covers, without a line break.
        seed: What the checksum begins with.
    """
    rest = line[_CHECKSUM_BYTES + 1 :]
    if not rest:
        return None
    computed = crc32(rest, seed)
    head = b"%08x " % computed
    if sum((a ^ b).bit_count() for a, b in zip(head, line, strict=False)) == 1:
        # The checksum itself, or the blank behind it.
        return head + rest
    try:
        difference = int(line[:_CHECKSUM_BYTES], 16) ^ computed
    except ValueError:
        return None
    at = _flipped_bit(difference, len(rest))
    if at is None:
        return None
    place, bit = at
    fixed = bytearray(line)
    fixed[_CHECKSUM_BYTES + 1 + place] ^= 1 << bit
    return bytes(fixed)


def _flipped_bit(difference: int, size: int) -> tuple[int, int] | None:
    """Return which bit of *size* bytes changes their checksum by *difference* when it is flipped."""
    table = _table()
    # What each bit of the last byte changes; each byte that follows one shifts that on.
    changes = [table[1 << bit] for bit in range(8)]
    for place in range(size - 1, -1, -1):
        if difference in changes:
            return place, changes.index(difference)
        changes = [(change >> 8) ^ table[change & 0xFF] for change in changes]
    return None


@cache
def _table() -> tuple[int, ...]:
    # The checksum is linear: what one byte adds is its own less that of a zero.
    zero = crc32(b"\0")
    return tuple(crc32(bytes((value,))) ^ zero for value in range(256))


# Which lines are believed --------------------------------------------------------------------------------------------


def choose_runs(runs: Sequence[Run]) -> set[int]:
    """
    Return the indexes of those runs that are believed: of all that may follow each other, those with most lines.
    """
    best: list[int] = []
    previous: list[int] = []
    for at, run in enumerate(runs):
        weight, before = 0, -1
        for other in range(at - 1, max(-1, at - 1 - _MAX_LOOK_BACK), -1):
            if best[other] > weight and runs[other].last < run.first and runs[other].last_session <= run.session:
                weight, before = best[other], other
        best.append(weight + run.lines)
        previous.append(before)
    chosen: set[int] = set()
    at = max(range(len(runs)), key=best.__getitem__, default=-1)
    while at >= 0:
        chosen.add(at)
        at = previous[at]
    return chosen
