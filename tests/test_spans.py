"""
Tests of the numbers that name lines of a log.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memable._spans import (
    MAX_OFFSET,
    MAX_SEGMENT,
    SIZE_CLASSES,
    length_of,
    offset_of,
    segment_of,
    size_class,
    span_of,
    spans_of,
)

_places = st.tuples(st.integers(1, MAX_SEGMENT), st.integers(0, MAX_OFFSET))
_lengths = st.integers(1, 4096) | st.integers(1, 15 << 31)


@given(_places, _lengths)
def test_span_says_where_its_line_is(place: tuple[int, int], length: int):
    """Segment and offset are exact; the length is enough, and at most an eighth or eight bytes too much."""
    span = span_of(*place, length)
    assert (segment_of(span), offset_of(span)) == place
    assert length <= length_of(span) <= max(8, length + length // 8 + 1)
    assert 0 < span < 2**64


@given(_places, _places, _lengths, _lengths)
def test_spans_sort_like_the_log(place: tuple[int, int], other: tuple[int, int], length: int, other_length: int):
    """Of two lines, the one that was written first has the smaller span, however long they are."""
    if place != other:
        assert (span_of(*place, length) < span_of(*other, other_length)) == (place < other)


@pytest.mark.parametrize("exponent", range(31))
def test_every_size_class_is_as_long_as_it_says(exponent: int):
    """A length that a class stands for exactly is not rounded; one more goes to the next class."""
    for mantissa in range(8, 16):
        length = mantissa << exponent
        assert length_of(span_of(1, 0, length)) == length
        assert size_class(length + 1) == size_class(length) + 1


def test_short_lengths_are_looked_up():
    """The table says what the function says."""
    assert list(SIZE_CLASSES) == [size_class(length) for length in range(len(SIZE_CLASSES))]
    assert SIZE_CLASSES[1] == SIZE_CLASSES[8] == 0


@given(_places, st.lists(st.integers(0, 3000)))
def test_spans_of_lines_follow_each_other(place: tuple[int, int], sizes: list[int]):
    """
    The spans of many lines are those of each, the one behind the other, whether all of them are short or not.
    """
    segment, start = place[0], place[1] // 2
    spans, end = spans_of(segment, start, sizes)
    expected: list[int] = []
    for size in sizes:
        expected.append(span_of(segment, start, size + 1))
        start += size + 1
    assert (list(spans), end) == (expected, start)
