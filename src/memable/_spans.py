"""
Where a line of the log stands, as one number: the segment and the byte at which it was first written, and its length.

A span names its line for ever: compaction moves lines, but not their spans. It takes 64 bits, so that a store can keep
millions of them: 22 for the segment, 34 for the offset (16 GiB) and 8 for a size class. Spans sort like the log.

The length is kept as a floating-point number is: five bits of exponent and three of mantissa, rounded up, so a span
promises at most an eighth too much.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from operator import add

MAX_SEGMENT = (1 << 22) - 1
MAX_OFFSET = (1 << 34) - 1

_OFFSET_SHIFT = 8
_SEGMENT_SHIFT = 42
#: Shorter lines than this are given as this long.
_MIN_LENGTH = 8


def span_of(segment: int, offset: int, length: int) -> int:
    """
    Return the span of a line.

    Args:
        segment: Number of the segment that it was first written to, from 1 to ``MAX_SEGMENT``.
        offset: Where in that it began, up to ``MAX_OFFSET``.
        length: How many bytes it has, line break included.
    """
    return segment << _SEGMENT_SHIFT | offset << _OFFSET_SHIFT | size_class(length)


def size_class(length: int) -> int:
    """
    Return the part of a span that says how long its line is.
    """
    exponent = max(0, (length - 1).bit_length() - 4)
    mantissa = max(_MIN_LENGTH, -(-length >> exponent))
    return (exponent << 3) + mantissa - _MIN_LENGTH


#: The same for short lines, which most are, to be looked up.
SIZE_CLASSES = tuple(map(size_class, range(2048)))
#: By how much the offset in a span is greater behind such a line.
_STEPS = tuple(length << _OFFSET_SHIFT for length in range(len(SIZE_CLASSES)))


def spans_of(segment: int, offset: int, sizes: Sequence[int]) -> tuple[Iterable[int], int]:
    """
    Return the spans of lines that stand one behind the other, and where the last of them ends.

    Args:
        segment: As for ``span_of``.
        offset: Where the first of them begins.
        sizes: How many bytes each has, without its line break.
    """
    lengths = [size + 1 for size in sizes]
    steps: Iterable[int] = (length << _OFFSET_SHIFT for length in lengths)
    classes = map(size_class, lengths)
    if max(lengths, default=0) < len(SIZE_CLASSES):
        # Most are short, and there may be millions of them.
        steps, classes = map(_STEPS.__getitem__, lengths), map(SIZE_CLASSES.__getitem__, lengths)
    return map(add, accumulate(steps, initial=span_of(segment, offset, 1)), classes), offset + sum(lengths)


def segment_of(span: int) -> int:
    """
    Return the number of the segment that a line was first written to.
    """
    return span >> _SEGMENT_SHIFT


def offset_of(span: int) -> int:
    """
    Return where in its segment a line began when it was first written.
    """
    return span >> _OFFSET_SHIFT & MAX_OFFSET


def length_of(span: int) -> int:
    """
    Return how long a line is at most: at least as long as it is, and at most an eighth longer, or eight bytes.
    """
    return _LENGTHS[span & 255]


_LENGTHS = tuple(_MIN_LENGTH + (size & 7) << (size >> 3) for size in range(256))
