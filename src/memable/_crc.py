"""
The CRC-32 of data that has been checked before, from another beginning, without going through it again.

A CRC is linear: two that were begun differently, over the same data, differ by what that data makes of the difference
of their beginnings, and that depends on nothing but the data's length. So zeros of that length do as well; and what
they make of a number is a matrix of bits, whose square is that of twice as many zeros. That is how zlib's
``crc32_combine`` works, which Python does not offer.
"""

from __future__ import annotations

import functools
from zlib import crc32

#: So many zeros are gone through as they are: it takes no longer than a multiplication.
_BLOCK = 4096
_ZEROS = bytes(_BLOCK)


def begin_anew(checksum: int, start: int, new_start: int, length: int) -> int:
    """
    Return what *checksum* would be, had it been begun with another number.

    Args:
        checksum: ``crc32(data, start)``.
        start: What it was begun with.
        new_start: What it is to be begun with.
        length: How many bytes *data* has.

    Returns:
        ``crc32(data, new_start)``, in a time that grows with the logarithm of *length*.
    """
    difference = start ^ new_start
    blocks, rest = divmod(length, _BLOCK)
    power = 0
    while blocks:
        if blocks & 1:
            difference = _times(_zeros(power), difference)
        blocks >>= 1
        power += 1
    zeros = _ZEROS[:rest]
    return checksum ^ crc32(zeros, difference) ^ crc32(zeros)


@functools.cache
def _zeros(power: int) -> tuple[int, ...]:
    """Return what two to the *power* blocks of zeros make of each bit."""
    if not power:
        nothing = crc32(_ZEROS)
        return tuple(crc32(_ZEROS, 1 << bit) ^ nothing for bit in range(32))
    half = _zeros(power - 1)
    return tuple(_times(half, column) for column in half)


def _times(matrix: tuple[int, ...], bits: int) -> int:
    found = 0
    for column in matrix:
        if bits & 1:
            found ^= column
        bits >>= 1
    return found
