"""
Finds numbers by 32-bit checksums, about as fast as a dictionary would, in less than half of its memory.

Checksums stand in an array at the place that their upper bits say, or at the next free one behind it, and the numbers
in another one beside them. So they are nearly sorted, and cheap to sort.

Who chooses the checksums may choose them badly: what finds too many places taken is refused.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

_CHECKSUM_BITS = 32
#: The greatest number that there is room for.
MAX_NUMBER = (1 << 32) - 1

#: There are so many places at first, as a power of two.
_MIN_BITS = 10
#: There are as many times more when half of them are taken: to move all takes as long as to add a few of them.
_GROWTH_BITS = 2
#: None is further from its place. While half of the places are free, only bad checksums lead further.
_MAX_RUN = 255
#: So many places are sorted at a time.
_SLICE = 8192


class ChecksumTable:
    """
    Numbers from 1 to ``MAX_NUMBER`` by checksums from 0 to 2**32 - 1, of each at most one.
    """

    def __init__(self) -> None:
        self._count = 0
        "How many places are taken, be it by what was removed."
        self._make(_MIN_BITS)

    def add(self, checksum: int, number: int) -> bool:
        """
        Add a number; return whether there was room and none of that checksum. If not, nothing has changed.
        """
        # 0 says that a place is free.
        if not checksum or number > MAX_NUMBER:
            return False
        checksums = self._checksums
        first = place = checksum >> self._shift
        while found := checksums[place]:
            if found == checksum:
                if self._numbers[place]:
                    return False
                self._numbers[place] = number
                return True
            place += 1
        if place - first >= _MAX_RUN:
            return False
        checksums[place] = checksum
        self._numbers[place] = number
        self._count += 1
        if self._count > self._most:
            self._grow()
        return True

    def number(self, checksum: int) -> int | None:
        """
        Return the number of a checksum, or None.
        """
        return self._numbers[self._place_of(checksum)] or None

    def remove(self, checksum: int, number: int) -> bool:
        """
        Take out a number; return whether it was there.
        """
        place = self._place_of(checksum)
        if self._numbers[place] != number:
            return False
        # Searches for others must not end here, so the checksum stays.
        self._numbers[place] = 0
        return True

    def pairs(self) -> Iterator[tuple[list[int], list[int]]]:
        """
        Yield checksums, and the numbers beside them, in ascending order, thousands at a time.
        """
        start = 0
        while start < len(self._checksums):
            # Between where one should stand and where it stands no place is free: what is behind a free one is greater.
            stop = self._checksums.index(0, min(start + _SLICE, len(self._checksums) - 1)) + 1
            found = dict(zip(self._checksums[start:stop], self._numbers[start:stop], strict=True))
            checksums = sorted(checksum for checksum, number in found.items() if number)
            yield checksums, [found[checksum] for checksum in checksums]
            start = stop

    def _make(self, bits: int) -> None:
        self._bits = bits
        self._shift = _CHECKSUM_BITS - bits
        self._most = 1 << (bits - 1)
        # The last place is always free, so each search ends.
        self._checksums = array("I", (0,)) * ((1 << bits) + _MAX_RUN + 1)
        self._numbers = self._checksums[:]

    def _grow(self) -> None:
        """Make more places. Where some were taken in a row, fewer are then: nothing gets further from its place."""
        old = zip(self._checksums, self._numbers, strict=True)
        self._make(self._bits + _GROWTH_BITS)
        checksums, numbers, shift = self._checksums, self._numbers, self._shift
        self._count = 0
        for checksum, number in old:
            if number:
                place = checksum >> shift
                while checksums[place]:
                    place += 1
                checksums[place] = checksum
                numbers[place] = number
                self._count += 1

    def _place_of(self, checksum: int) -> int:
        """Return where a checksum stands, or else the place that ends the search for it."""
        checksums, place = self._checksums, checksum >> self._shift
        while (found := checksums[place]) and found != checksum:
            place += 1
        return place
