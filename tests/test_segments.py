"""
Tests of the names of segments, and of telling which files are the log.
"""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memable._segments import Chain, SegmentName, chain_of, parse_name, segment

_names = st.builds(
    lambda first, more, generation: SegmentName(first, first + (more if generation else 0), generation),
    st.integers(1, 9),
    st.integers(0, 6),
    st.integers(0, 3),
)


@given(_names)
def test_segment_name_reads_back(name: SegmentName):
    """What is written as a name is read as the same."""
    assert parse_name(str(name)) == name


@pytest.mark.parametrize(
    "name",
    [
        "lock",
        "checkpoint",
        "00000001.log.tmp",
        "00000001.log.torn",
        "00000001-00000002.1.log.tmp",
        "00000000.log",
        "00000002-00000001.1.log",
        "00000000-00000001.1.log",
        "00000001-00000002.0.log",
        "00000001-00000002.log",
        "00000001-00000002.01.log",
        "1.log",
        "000000001.log",
        "00000001.log\n",
        "\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0661.log",
        "x00000001.log",
        "",
    ],
)
def test_other_names_are_no_segments(name: str):
    """What is not exactly a segment's name is no business of the log."""
    assert parse_name(name) is None
    assert chain_of([name]) == Chain((), (), None)


def test_plain_segment_is_not_compacted():
    """A segment as it is first written stands for itself."""
    assert str(segment(7)) == "00000007.log"
    assert not segment(7).is_compacted
    assert SegmentName(7, 7, 1).is_compacted


@pytest.mark.parametrize(
    ("names", "current", "superseded", "missing"),
    [
        ([], [], [], None),
        (["1"], ["1"], [], None),
        (["2", "1", "3"], ["1", "2", "3"], [], None),
        # What a crash leaves of a compaction.
        (["1", "2", "1-2.1", "3"], ["1-2.1", "3"], ["1", "2"], None),
        (["2", "1-2.1", "3"], ["1-2.1", "3"], ["2"], None),
        (["1", "1-1.1", "2"], ["1-1.1", "2"], ["1"], None),
        (["1-1.1", "1-1.2", "2"], ["1-1.2", "2"], ["1-1.1"], None),
        (["1-2.2", "1-3.1", "4"], ["1-3.1", "4"], ["1-2.2"], None),
        (["1-2.1", "3", "4-5.1", "4", "5", "1-5.1", "6"], ["1-5.1", "6"], ["1-2.1", "3", "4", "4-5.1", "5"], None),
        # Gaps.
        (["2"], ["2"], [], (1, 1)),
        (["1", "3"], ["1", "3"], [], (2, 2)),
        (["1", "5-6.1", "9"], ["1", "5-6.1", "9"], [], (2, 4)),
        # No crash leaves two that overlap in part.
        (["1-3.1", "3-4.1", "5"], ["1-3.1", "3-4.1", "5"], [], (3, 3)),
        (["1-4.1", "3-5.1"], ["1-4.1", "3-5.1"], [], (3, 4)),
    ],
)
def test_chain_is_told_from_what_a_crash_left(
    names: list[str], current: list[str], superseded: list[str], missing: tuple[int, int] | None
):
    """The log is what the widest and newest files stand for; what they stand for does not count any more."""
    found = chain_of([*map(_long, names), "lock", "checkpoint", "00000001.log.tmp"])
    assert list(map(str, found.current)) == list(map(_long, current))
    assert sorted(map(str, found.superseded)) == sorted(map(_long, superseded))
    assert found.missing == missing


def _long(short: str) -> str:
    numbers, _, generation = short.partition(".")
    long = "-".join(number.zfill(8) for number in numbers.split("-"))
    return f"{long}.{generation}.log" if generation else f"{long}.log"


@given(st.lists(_names, unique=True))
def test_chain_is_what_no_other_file_stands_for(names: list[SegmentName]):
    """A file is superseded if and only if a wider one, or a newer one as wide, stands for all that it stands for."""

    def holds(other: SegmentName, name: SegmentName) -> bool:
        is_as_wide = other.first <= name.first and name.last <= other.last
        is_same = (other.first, other.last) == (name.first, name.last)
        return other != name and is_as_wide and (not is_same or other.generation > name.generation)

    found = chain_of(map(str, names))
    current = [name for name in names if not any(holds(other, name) for other in names)]
    assert list(found.current) == sorted(current)
    assert list(found.superseded) == sorted(set(names) - set(current))
    covered = [number for name in found.current for number in range(name.first, name.last + 1)]
    assert (found.missing is None) == (covered == list(range(1, len(covered) + 1)))


def test_chain_of_very_many_files_is_told_fast():
    """A directory may hold as many segments as it likes."""
    names = [str(segment(number)) for number in range(1, 50_001)]
    begun = time.perf_counter()
    assert len(chain_of(reversed(names)).current) == 50_000
    assert time.perf_counter() - begun < 5
