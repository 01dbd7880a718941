"""
Tests of reading compacted segments: what may be believed of one, and where its lines stood before.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memable._compacted import CompactedScan, map_of, read_map
from memable._errors import StoreCorruptedError
from memable._frames import Compacted, Stretch, decode_stretches, encode_stretches, frame_batch
from memable._record_json import encode_record
from memable._scan import Entry, record_of
from memable._spans import offset_of, segment_of, span_of
from sample_records import started, step

SEED = 77
RECORDS = [started(1), step(1, 2), step(1, 3), started(2), step(2, 2), step(1, 4)]
#: Three batches.
LINES = [
    line for batch in range(3) for line in frame_batch(SEED, 1, batch, [*map(encode_record, RECORDS)][2 * batch :][:2])
]
START = 300


@st.composite
def stretches(draw: st.DrawFn) -> list[Stretch]:
    """Stretches as compaction makes them: in order, none of them adjoining the next."""
    found: list[Stretch] = []
    segment, offset = 1, 0
    for more, gap, length in draw(
        st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5000), st.integers(1, 5000)), max_size=30)
    ):
        segment, offset = (segment + more, gap) if more else (segment, offset + gap)
        found.append(Stretch(segment, offset, length))
        offset += length
    return found


@given(stretches())
def test_map_reads_back(given_stretches: list[Stretch]):
    """What is written of a map is read as the same, however long it is."""
    many = given_stretches * 50 if given_stretches else []
    decoded = [one for line in encode_stretches(many).splitlines() for one in decode_stretches(line) or [None]]
    assert decoded == many
    compacted = Compacted(9, 1, 0, sum(stretch.length for stretch in given_stretches))
    places = read_map(encode_stretches(given_stretches), "x", START, compacted)
    assert list(places.stretches()) == given_stretches
    assert len(places) == len(given_stretches)


@given(stretches(), st.lists(st.tuples(st.integers(1, 20), st.integers(0, 60_000)), max_size=30))
def test_map_knows_what_was_kept(given_stretches: list[Stretch], asked: list[tuple[int, int]]):
    """A place is known if and only if it lies in a stretch that was kept, and then it is as far into that as before."""
    places = map_of(given_stretches, START)
    edges = [
        (stretch.segment, stretch.offset + at)
        for stretch in given_stretches
        for at in (-1, 0, stretch.length - 1, stretch.length)
        if stretch.offset + at >= 0
    ]
    for segment, offset in [*asked, *edges]:
        position = START
        expected = None
        for stretch in given_stretches:
            if segment == stretch.segment and 0 <= offset - stretch.offset < stretch.length:
                expected = position + offset - stretch.offset
            position += stretch.length
        span = span_of(segment, offset, 100)
        assert places.holds(span) == (expected is not None)
        if expected is None:
            with pytest.raises(KeyError):
                places.position(span)
        else:
            assert places.position(span) == expected


@pytest.mark.parametrize("damage", [b"x", b"\r", b"\n", b"0"])
def test_damaged_map_is_told(damage: bytes):
    """A map is intact or refused, with the place of its bad line."""
    kept = [Stretch(1, 10, 20), Stretch(2, 10, 20)]
    text = encode_stretches(kept)
    compacted = Compacted(2, 1, 2, 40)
    for at in range(len(text)):
        bad = text[:at] + damage + text[at + 1 :]
        if bad != text:
            with pytest.raises(StoreCorruptedError, match=r"seg: at byte offset 340: the map of the compacted segment"):
                read_map(bad, "seg", START, compacted)
        with pytest.raises(StoreCorruptedError, match=r"seg: at byte offset 340: the map of the compacted segment"):
            read_map(text[:at], "seg", START, compacted)
    with pytest.raises(StoreCorruptedError, match="does not fit its records"):
        read_map(text, "seg", START, Compacted(2, 1, 2, 41))


def scan_of(
    lines: list[bytes], kept: list[Stretch], *, count: int | None = None, chunk: int = 1 << 20
) -> list[tuple[Entry, int]]:
    text = b"".join(lines)
    compacted = Compacted(5, 1, len(lines) if count is None else count, len(text))
    scan = CompactedScan("seg", SEED, compacted, iter(kept), START)
    found = [one for at in range(0, len(text), chunk) for one in scan.feed(text[at : at + chunk])]
    scan.finish()
    return found


def kept_of(lines: list[bytes], numbers: list[int]) -> list[Stretch]:
    """Say that each line stood by itself in the segment of that number."""
    return [Stretch(number, 100 + at, len(line)) for at, (line, number) in enumerate(zip(lines, numbers, strict=True))]


@pytest.mark.parametrize("chunk", [1, 7, 100, 1 << 20])
def test_compacted_lines_are_read_with_their_old_places(chunk: int):
    """However the bytes come, each record is given with the span that it had when it was written."""
    lines = [LINES[0], LINES[1], LINES[3], LINES[5]]
    kept = [Stretch(1, 100, len(LINES[0]) + len(LINES[1])), Stretch(2, 5, 0), Stretch(4, 9, len(LINES[3] + LINES[5]))]
    found = scan_of(lines, kept, chunk=chunk)
    assert [record_of(entry, "seg") for entry, _ in found] == [RECORDS[0], RECORDS[1], RECORDS[3], RECORDS[5]]
    assert [(segment_of(span), offset_of(span)) for _, span in found] == [
        (1, 100),
        (1, 100 + len(LINES[0])),
        (4, 9),
        (4, 9 + len(LINES[3])),
    ]
    starts = [START]
    for line in lines:
        starts.append(starts[-1] + len(line))
    assert [entry[5:] for entry, _ in found] == list(pairwise(starts))
    assert scan_of([], []) == []


@pytest.mark.parametrize(
    ("lines", "count", "offset", "match"),
    [
        ([LINES[1], LINES[0]], 2, 1, "a record of batch 0 is out of order"),
        ([LINES[0], LINES[0]], 2, 1, "a record of batch 0 is out of order"),
        ([LINES[4], LINES[1]], 2, 1, "a record of batch 0 is out of order"),
        ([LINES[0], LINES[1]], 3, 2, "has 2 whole records where it had 3"),
        ([LINES[0], LINES[1]], 1, 2, "has 2 whole records where it had 1"),
        ([LINES[0], LINES[1].replace(b"1000.0", b"1000.1")], 2, 1, "a record is damaged in a segment that was"),
        ([LINES[0], LINES[1][:-1]], 2, 1, "has 1 whole records where it had 2"),
    ],
)
def test_lines_that_are_not_as_they_were_are_told(lines: list[bytes], count: int, offset: int, match: str):
    """A compacted segment was whole: whatever is wrong with its lines is damage, and is told with its place."""
    place = START + sum(map(len, lines[:offset]))
    with pytest.raises(StoreCorruptedError, match=f"seg: at byte offset {place}: .*{match}"):
        scan_of(lines, kept_of(lines, [1] * len(lines)), count=count)


@pytest.mark.parametrize(
    ("kept", "match"),
    [
        ([Stretch(1, 0, len(LINES[0]))], "not in the map"),
        ([Stretch(1, 0, len(LINES[0])), Stretch(1, 900, len(LINES[1]) - 1)], "does not fit the map"),
        ([Stretch(1, 0, len(LINES[0])), Stretch(1, 900, len(LINES[1]) + 1)], "has 2 whole records where it had 2"),
    ],
)
def test_lines_that_do_not_fit_their_map_are_told(kept: list[Stretch], match: str):
    """Where a line stood must be known of each."""
    with pytest.raises(StoreCorruptedError, match=match):
        scan_of(LINES[:2], kept)
