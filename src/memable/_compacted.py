"""
Reads a compacted segment: its lines, and where each of them stood before.

Decided here: what may be believed of it. It was whole and durable before it had its name, so anything that is not as
its header and its map say is damage: a line that is not intact, out of order, too few or too many.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NoReturn
from zlib import crc32

import attrs

from ._errors import StoreCorruptedError
from ._frames import WAY_OUT, Compacted, Stretch, decode_stretches, parse_line
from ._proven import UsualLines
from ._scan import Entry, entry_of
from ._spans import MAX_OFFSET, span_of

_OFFSET_BITS = MAX_OFFSET.bit_length()


@attrs.frozen(eq=False)
class PlaceMap:
    """
    Where in a compacted segment the lines are that stood elsewhere before.
    """

    _places: array[int]
    "For each stretch, where it began: segment and offset in one number. Ascending."
    _positions: array[int]
    "For each stretch, where in the file it begins now; and where the last one ends."

    def __len__(self) -> int:
        """
        Return how many stretches there are.
        """
        return len(self._places)

    def position(self, span: int) -> int:
        """
        Return where in the file the line with that span begins.

        Raises:
            KeyError: It was not kept.
        """
        place = span >> 8
        at = bisect_right(self._places, place) - 1
        position = self._positions[at] + place - self._places[at] if at >= 0 else -1
        if not 0 <= position < self._positions[at + 1]:
            raise KeyError(span)
        return position

    def holds(self, span: int) -> bool:
        """
        Tell whether the line with that span was kept.
        """
        try:
            self.position(span)
        except KeyError:
            return False
        return True

    def stretches(self) -> Iterator[Stretch]:
        """
        Yield what was kept, in order.
        """
        for at, place in enumerate(self._places):
            yield Stretch(place >> _OFFSET_BITS, place & MAX_OFFSET, self._positions[at + 1] - self._positions[at])


def map_of(stretches: Sequence[Stretch], start: int) -> PlaceMap:
    """
    Return the map of lines that begin at *start* in a file.
    """
    places = array("Q", (stretch.segment << _OFFSET_BITS | stretch.offset for stretch in stretches))
    positions = array("Q", accumulate((stretch.length for stretch in stretches), initial=start))
    return PlaceMap(places, positions)


def read_map(text: bytes, location: str, start: int, compacted: Compacted) -> PlaceMap:
    """
    Return the map that stands at the end of a compacted segment.

    Args:
        text: The bytes behind its records.
        location: What to call the file in an error.
        start: Where its records begin.
        compacted: What its header says.

    Raises:
        StoreCorruptedError: It is damaged.
    """
    offset = start + compacted.size
    stretches: list[Stretch] = []
    for line in text.splitlines(keepends=True):
        found = decode_stretches(line[:-1]) if line.endswith(b"\n") else None
        if found is None:
            _refuse(location, offset, "the map of the compacted segment is damaged")
        stretches.extend(found)
        offset += len(line)
    if sum(stretch.length for stretch in stretches) != compacted.size:
        _refuse(location, start + compacted.size, "the map of the compacted segment does not fit its records")
    return map_of(stretches, start)


@attrs.define(eq=False)
class OldPlaces:
    """
    Where lines stood before, told one after the other.
    """

    _location: str
    _stretches: Iterator[Stretch]
    _stretch: Stretch = attrs.field(factory=lambda: Stretch(0, 0, 0), init=False)
    "The one that is due, less what was seen of it."

    @property
    def is_over(self) -> bool:
        """
        Whether no line is due that its stretch has begun with.
        """
        return not self._stretch.length

    def next_span(self, length: int, start: int) -> int:
        """
        Return the span of the next line.

        Args:
            length: How many bytes it has, line break included.
            start: Where in the file it begins now.

        Raises:
            StoreCorruptedError: The map does not know it.
        """
        segment, offset, left = self._due(start)
        if left < length:
            self._refuse_length(start)
        self._stretch = Stretch(segment, offset + length, left - length)
        return span_of(segment, offset, length)

    def split(self, found: UsualLines) -> Iterator[tuple[int, int, UsualLines]]:
        """
        Yield the next lines by neighbours, each time with the segment and the offset at which the first one stood.

        Raises:
            StoreCorruptedError: The map does not know them.
        """
        lines, start = found.lines, found.start
        begin = at = 0
        while begin < len(lines):
            segment, offset, left = self._due(start)
            length = 0
            while length < left and at < len(lines):
                length += len(lines[at][0]) + 1
                at += 1
            if length > left:
                self._refuse_length(start)
            yield segment, offset, UsualLines(lines[begin:at], start)
            self._stretch = Stretch(segment, offset + length, left - length)
            begin, start = at, start + length

    def _due(self, start: int) -> Stretch:
        while not self._stretch.length:
            following = next(self._stretches, None)
            if following is None:
                _refuse(self._location, start, "a record is not in the map of its compacted segment")
            self._stretch = following
        return self._stretch

    def _refuse_length(self, start: int) -> NoReturn:
        _refuse(self._location, start, "a record does not fit the map of its compacted segment")


@attrs.define(eq=False)
class CompactedScan:
    """
    The reader of one compacted segment: takes the bytes of its records as they come, gives them with their spans.
    """

    _location: str
    _seed: int
    _compacted: Compacted
    _stretches: Iterator[Stretch]
    _offset: int
    "Where the bytes that are not yet looked at begin."
    newest_at: float = 0.0
    "The latest time in any record."
    checksum: int = 0
    "The CRC-32 of what was fed."
    _places: OldPlaces = attrs.field(
        default=attrs.Factory(lambda self: OldPlaces(self._location, self._stretches), takes_self=True), init=False
    )
    _previous: tuple[int, int] = (-1, -1)
    "Batch and index of the line before."
    _pending: bytes = b""
    _lines: int = 0

    def feed(self, chunk: bytes) -> Iterator[tuple[Entry, int]]:
        """
        Take the next bytes; yield the records that are whole with them. To be exhausted before the next call.

        Raises:
            StoreCorruptedError: They are damaged.
            StoreVersionError: A record is of a kind that this release does not know.
        """
        self.checksum = crc32(chunk, self.checksum)
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        for line in lines:
            start = self._offset
            self._offset = start + len(line) + 1
            parsed = parse_line(line, self._seed)
            if parsed is None:
                _refuse(self._location, start, "a record is damaged in a segment that was complete and durable")
            if (parsed.batch, parsed.position) <= self._previous:
                _refuse(self._location, start, f"a record of batch {parsed.batch} is out of order")
            self._previous = parsed.batch, parsed.position
            self._lines += 1
            entry = entry_of(line, parsed.text, self._location, start, self._offset)
            self.newest_at = max(self.newest_at, entry[4])
            yield entry, self._places.next_span(len(line) + 1, start)

    def finish(self) -> None:
        """
        Take note that all records were fed.

        Raises:
            StoreCorruptedError: Something of them is missing.
        """
        if self._pending or self._lines != self._compacted.lines or not self._places.is_over:
            _refuse(
                self._location,
                self._offset,
                f"the compacted segment has {self._lines} whole records where it had {self._compacted.lines}",
            )


def _refuse(location: str, offset: int, what: str) -> NoReturn:
    raise StoreCorruptedError(location=location, offset=offset, problem=f"{what}; {WAY_OUT}")
