"""
Takes apart the lines of a log that one checksum has proven to be all as they were written.

Decided here: which of them need to be looked at one by one. What a line has to prove of itself when it stands alone,
its own checksum and its place, is not asked of these: they were in order when they were written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NoReturn, TypeAlias, cast
from zlib import crc32

import attrs

from ._errors import StoreCorruptedError
from ._frames import WAY_OUT, parse_line
from ._scan import KINDS, Entry, entry_of

#: A line with a record of an instance, as this release writes it. With no way back within it, so that it is quick.
_USUAL = re.compile(
    rb'^([0-9a-f]{8} [0-9.]++[+;] \{"kind":"([a-z_]++)",'
    rb'"instance":([0-9]++),"seq":([0-9]++),"at":([-+.0-9e]++)[,}].*+)\n',
    re.MULTILINE,
)
#: Lines are taken apart so many bytes at once, about: what comes of them stays in the processor's cache.
_PIECE_BYTES = 128 * 1024

UsualLine: TypeAlias = tuple[bytes, bytes, bytes, bytes, bytes]
"""
A line without its break, and what it says, all as bytes: kind, number of its instance, sequence number, time.
"""


@attrs.frozen
class UsualLines:
    """
    Neighbouring lines with records of instances.
    """

    lines: list[UsualLine]
    "At least one."
    start: int
    "Where in the file the first one begins."


@attrs.define
class ProvenLines:
    """
    The reader of bytes that are proven: takes them as they come, gives their lines.
    """

    _location: str
    "What to call the file in an error."
    _seed: int
    "What ``seed_of`` the store's id is."
    _offset: int
    "Where the lines begin that were not given yet."
    count: int = attrs.field(default=0, init=False)
    "How many were given."
    _pending: list[bytes] = attrs.field(factory=list[bytes], init=False)
    "The beginning of a line whose end has not come yet."

    def feed(self, chunk: bytes) -> Iterator[UsualLines | Entry]:
        """
        Take the next bytes; yield the lines that are whole with them. To be exhausted before the next call.

        Raises:
            StoreCorruptedError: There is something else than lines, whatever the checksum says.
            StoreVersionError: A record is of a kind that this release does not know.
        """
        start = 0
        while start < len(chunk):
            end = chunk.rfind(b"\n", start, start + _PIECE_BYTES) + 1 or chunk.find(b"\n", start) + 1
            if not end:
                self._pending.append(chunk[start:])
                return
            self._pending.append(chunk[start:end])
            piece = b"".join(self._pending)
            self._pending.clear()
            start = end
            yield from self._take(piece)

    def finish(self) -> None:
        """
        Take note that no more bytes follow.

        Raises:
            StoreCorruptedError: They do not end with a line.
        """
        if self._pending:
            self._refuse(self._offset)

    def _take(self, piece: bytes) -> Iterator[UsualLines | Entry]:
        lines: list[UsualLine] = _USUAL.findall(piece)
        count = piece.count(b"\n")
        # As each is one line, and whole, they are all lines that there are if they are as many.
        if len(lines) < count or not KINDS.issuperset({line[1] for line in lines}):
            yield from self._take_apart(piece)
            return
        self.count += count
        yield UsualLines(lines, self._offset)
        self._offset += len(piece)

    def _take_apart(self, piece: bytes) -> Iterator[UsualLines | Entry]:
        """Take lines of which not all are usual."""
        usual: list[UsualLine] = []
        first = self._offset
        for line in piece[:-1].split(b"\n"):
            found = _USUAL.match(line + b"\n")
            self.count += 1
            if found is not None and found[2] in KINDS:
                usual.append(cast("UsualLine", found.groups()))
                self._offset += len(line) + 1
                continue
            if usual:
                yield UsualLines(usual, first)
                usual = []
            parsed = parse_line(line, self._seed)
            if parsed is None:
                self._refuse(self._offset)
            first = self._offset + len(line) + 1
            yield entry_of(line, parsed.text, self._location, self._offset, first)
            self._offset = first
        if usual:
            yield UsualLines(usual, first)

    def _refuse(self, start: int) -> NoReturn:
        raise StoreCorruptedError(
            location=self._location,
            offset=start,
            problem=f"a record is not whole in a segment that was complete and durable; {WAY_OUT}",
        )


@attrs.define
class RunningChecksum:
    """
    The checksum of a file's bytes, as far as they are believed.
    """

    value: int
    "The CRC-32 of what is believed."
    _end: int
    "Where the next bytes begin."
    _beyond: int = attrs.field(default=attrs.Factory(lambda self: self.value, takes_self=True), init=False)
    "The CRC-32 of all before that."

    def add(self, chunk: bytes, good_end: int) -> None:
        """
        Take the next bytes.

        Args:
            chunk: The bytes.
            good_end: Up to where in the file they, and those before, are believed now: within them, or as before.
        """
        cut = good_end - self._end
        if cut > 0:
            whole = memoryview(chunk)
            self.value = crc32(whole[:cut], self._beyond)
            self._beyond = crc32(whole[cut:], self.value)
        else:
            self._beyond = crc32(chunk, self._beyond)
        self._end += len(chunk)
