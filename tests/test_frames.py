"""
The lines of a log, and its header.
"""

from __future__ import annotations

import re
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memable._errors import StoreCorruptedError, StoreVersionError
from memable._frames import (
    Line,
    SegmentHeader,
    checksum_with,
    decode_header,
    encode_header,
    find_line_start,
    frame_batch,
    parse_line,
    seed_of,
)
from memable._record_json import decode_record, encode_record
from memable._records import Record
from memable._texts import LONG_BYTES, Text, join_short, size_of
from strategies import records

STORE_ID = "0123456789abcdef" * 2
SEED = seed_of(STORE_ID)
HEADER = SegmentHeader(store_id=STORE_ID, segment=1, created_at=1.5)


@given(st.lists(records, min_size=1, max_size=5), st.integers(1, 10**9), st.integers(0, 10**15))
def test_batch_round_trips(batch: list[Record], session: int, number: int):
    """Each line of a batch says its place in the store and gives its record back."""
    lines = frame_batch(SEED, session, number, [encode_record(record) for record in batch])
    parsed = [parse_line(line.removesuffix(b"\n"), SEED) for line in lines]
    assert [line and (line.session, line.batch, line.position, line.is_last) for line in parsed] == [
        (session, number, position, position == len(batch) - 1) for position in range(len(batch))
    ]
    assert [line and decode_record(line.text) for line in parsed] == batch


#: Texts of records, short and long, whole and in parts.
sizes = st.sampled_from([1, 2, LONG_BYTES - 1, LONG_BYTES, LONG_BYTES + 1])
pieces = sizes.map(lambda size: b"7" * size)
texts_of_all_sizes = st.lists(pieces | st.lists(pieces, min_size=1, max_size=3).map(tuple), min_size=1, max_size=4)


def whole(text: Text) -> bytes:
    return text if isinstance(text, bytes) else b"".join(text)


@given(texts_of_all_sizes)
def test_lines_in_parts_are_the_same(texts: list[Text]):
    """A record whose text is in parts gives the same line as one whose text is not, with the long ones as they are."""
    lines = frame_batch(SEED, 3, 17, texts)
    assert [*map(whole, lines)] == frame_batch(SEED, 3, 17, [*map(whole, texts)])
    assert [*map(size_of, lines)] == [len(whole(line)) for line in lines]
    for text, line in zip(texts, lines, strict=True):
        assert not isinstance(text, tuple) or all(any(part is kept for kept in line) for part in text)


@given(texts_of_all_sizes)
def test_only_short_parts_are_joined(texts: list[Text]):
    """What is written of a batch are its bytes in their order; what is long is not copied, and what is short is."""
    lines = frame_batch(SEED, 3, 17, texts)
    parts = join_short(lines)
    assert b"".join(parts) == b"".join(map(whole, lines))
    long = [part for text in texts if isinstance(text, tuple) for part in text if len(part) >= LONG_BYTES]
    assert [part for part in parts if any(part is one for one in long)] == long
    assert len(parts) <= 2 * len(long) + 1


@given(texts_of_all_sizes, st.integers(0, 2**32 - 1))
def test_checksum_with_a_batch_is_that_of_all_bytes(texts: list[Text], checksum: int):
    """However long the lines are: those that are long are not gone through again."""
    lines = frame_batch(SEED, 3, 17, texts)
    parts = join_short(lines)
    assert checksum_with(checksum, lines, parts, SEED) == crc32(b"".join(parts), checksum)


def test_line_is_readable():
    """A line is text: checksum, session, batch, index, mark, record."""
    first, second = frame_batch(SEED, 3, 17, [b"{}", b"[]"])
    assert re.fullmatch(rb"[0-9a-f]{8} 3\.17\.0\+ \{\}\n", first)
    assert re.fullmatch(rb"[0-9a-f]{8} 3\.17\.1; \[\]\n", second)
    assert parse_line(second[:-1], SEED) == Line(3, 17, 1, True, b"[]")


def test_line_of_another_store_is_not_believed():
    """A line left over from another store's file never passes."""
    [line] = frame_batch(SEED, 1, 1, [b"{}"])
    assert parse_line(line[:-1], seed_of("f" * 32)) is None


def test_line_with_any_bit_flipped_is_not_believed():
    """No single flipped bit of a line goes unnoticed."""
    [line] = frame_batch(SEED, 1, 12, [b'{"kind":"x"}'])
    line = line[:-1]
    for bit in range(len(line) * 8):
        flipped = bytearray(line)
        flipped[bit // 8] ^= 1 << bit % 8
        assert parse_line(bytes(flipped), SEED) is None


def test_line_cut_anywhere_is_not_believed():
    """A part of a line never passes for it."""
    [line] = frame_batch(SEED, 1, 12, [b'{"kind":"x"}'])
    assert all(parse_line(line[:size], SEED) is None for size in range(len(line) - 1))


@pytest.mark.parametrize("junk", [b"", b"\0" * 100, b"00000000 0.0.0; ", b"zzzzzzzz 1.1.1; {}"])
def test_junk_is_no_line(junk: bytes):
    """Zeros and noise are no line."""
    assert parse_line(junk, SEED) is None


def test_line_start_is_found_in_damage_but_not_in_a_record():
    """Where a line begins is told by its shape, which no text inside a record has."""
    text = encode_record(_with_path('1f2e0a44 3.17.0; {"kind":"x"}'))
    [line] = frame_batch(SEED, 1, 1, [text])
    assert find_line_start(line, 1) == -1
    assert find_line_start(b"\xff" * 10 + line, 0) == 10


def _with_path(path: str) -> Record:
    return decode_record(
        encode_record(
            decode_record(
                b'{"kind":"instance_blocked","instance":1,"seq":2,"at":1.0,"error":{"type":"a","message":"b"}}'
            )
        ).replace(b'"message":"b"', b'"message":"' + path.replace('"', '\\"').encode() + b'"')
    )


def test_header_round_trips():
    """A log's first line gives back what it was made of."""
    assert decode_header(encode_header(HEADER), "x") == HEADER


def test_header_with_any_bit_flipped_is_damage():
    """A damaged header is told from one of a newer format."""
    line = encode_header(HEADER)[:-1]
    for bit in range(len(line) * 8):
        flipped = bytearray(line)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StoreCorruptedError, match=r"orders/1\.log: at byte offset 0: .* backup"):
            decode_header(bytes(flipped), "orders/1.log")


@pytest.mark.parametrize("line", [b"", b"\n", b"\0" * 64, b"hello\n"])
def test_header_of_another_kind_of_file_is_damage(line: bytes):
    """What does not begin like a log is no log."""
    with pytest.raises(StoreCorruptedError, match="not an intact header"):
        decode_header(line, "x")


def test_header_of_a_newer_format_says_so():
    """A newer log is named as such, with both versions, whatever else it holds."""
    line = b'9e968f03 {"memable":3,"anything":[]}\n'
    with pytest.raises(StoreVersionError, match=r"is in format 3, .* up to 2; install a newer release") as caught:
        decode_header(line, "x")
    assert (caught.value.found, caught.value.supported) == (3, 2)
