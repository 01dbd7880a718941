"""
Tests of taking apart lines that are proven as a whole: they are given as those are that have proven themselves.
"""

from __future__ import annotations

from itertools import pairwise
from zlib import crc32

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memable._errors import StoreCorruptedError, StoreVersionError
from memable._frames import LogState, frame_batch
from memable._proven import ProvenLines, RunningChecksum, UsualLines
from memable._record_json import encode_record
from memable._records import Record, StoreClosed, StoreOpened
from memable._scan import Entry, LogScan
from sample_records import completed, resumed, retired, started, step

SEED = 77
START = 300

RECORDS: list[Record] = [
    started(1),
    started(2, name='a\\n"b"\u2028\u0085\x1c'),
    step(1, 2),
    step(2, 2, b'"%b"' % (b"x" * 300)),
    completed(1, 3),
    resumed(1, 4),
    retired(2, 9),
]
#: Intact, and not as this release writes them.
STRANGE = [
    b'{"kind":"instance_retired","seq":3,"instance":5,"at":1000.0}',
    b'{"kind":"instance_retired", "instance":5,"seq":3,"at":1000.0}',
]
UNKNOWN = b'{"kind":"instance_admired","instance":5,"seq":3,"at":1000.0}'


def text_of(batches: list[list[bytes]]) -> bytes:
    """Return the lines of a session with these batches."""
    opened = [encode_record(StoreOpened(session=1, at=1.0, durability="fsync", pid=1, host="h"))]
    closed = [encode_record(StoreClosed(session=1, at=9.0))]
    return b"".join(
        line for at, batch in enumerate([opened, *batches, closed]) for line in frame_batch(SEED, 1, at, batch)
    )


def scanned(text: bytes) -> list[Entry]:
    scan = LogScan.at("seg", SEED, START, LogState(), is_sealed=True)
    found = [entry for batch in scan.feed(text) for entry in batch]
    scan.finish()
    return found


def taken_apart(text: bytes, chunk: int) -> list[Entry]:
    proven = ProvenLines("seg", SEED, START)
    entries: list[Entry] = []
    for at in range(0, len(text), chunk):
        for found in proven.feed(text[at : at + chunk]):
            if not isinstance(found, UsualLines):
                entries.append(found)
                continue
            assert found.lines
            start = found.start
            for line, kind, number, seq, time in found.lines:
                end = start + len(line) + 1
                entries.append((line, kind, int(number), int(seq), float(time), start, end))
                start = end
    proven.finish()
    return entries


texts = st.sampled_from([*map(encode_record, RECORDS), *STRANGE])


@given(st.lists(st.lists(texts, min_size=1, max_size=9), max_size=9), st.integers(1, 2000))
# More than is taken apart at once, with strange lines in some pieces only; and a line that is longer than that.
@example([[encode_record(step(1, 2))] * 3000, STRANGE, [encode_record(step(1, 3))] * 3000], 1 << 20)
@example([[encode_record(step(1, 2, b'"%b"' % (b"x" * 400_000)))] * 3], 100_000)
def test_proven_lines_are_given_as_those_that_prove_themselves(batches: list[list[bytes]], chunk: int):
    """However the bytes come, and whatever the records are, each line is given once, in order, with its place."""
    text = text_of(batches)
    found = taken_apart(text, chunk)
    # Where a record is not as this release writes it, its line is given whole all the same.
    assert [entry[1:] for entry in found] == [entry[1:] for entry in scanned(text)]
    assert b"".join(entry[0] + b"\n" for entry in found) == text
    assert all(before[6] == after[5] for before, after in pairwise(found))


@pytest.mark.parametrize("chunk", [10, 1 << 20])
def test_unknown_record_is_told_alike(chunk: int):
    """A record of a newer release is told as one in a log whose lines are looked at, at its place."""
    text = text_of([[encode_record(step(1, 2))], [UNKNOWN], [encode_record(step(1, 3))]])
    with pytest.raises(StoreVersionError, match="is intact, but unknown") as expected:
        scanned(text)
    with pytest.raises(StoreVersionError, match="is intact, but unknown") as caught:
        taken_apart(text, chunk)
    assert str(caught.value) == str(expected.value)


@pytest.mark.parametrize("chunk", [10, 1 << 20])
def test_what_is_no_line_is_refused_whatever_is_proven(chunk: int):
    """What cannot have been written is not passed over, at its place."""
    lines = text_of([[encode_record(step(1, 2))], [encode_record(step(1, 3))]]).splitlines(keepends=True)
    offset = START + len(lines[0]) + len(lines[1])
    for bad in (b"\n", b"x\n", lines[2][1:], b"x" + lines[2], lines[2].replace(b'"kind"', b'"kin\xff"')):
        with pytest.raises(StoreCorruptedError, match=f"seg: at byte offset {offset}: a record is not whole in a"):
            taken_apart(b"".join([*lines[:2], bad, lines[3]]), chunk)
    with pytest.raises(StoreCorruptedError, match=f"seg: at byte offset {offset}: a record is not whole in a"):
        taken_apart(b"".join([*lines[:2], lines[2][:-1]]), chunk)


@pytest.mark.slow
@given(st.binary(max_size=60), st.data())
def test_running_checksum_is_that_of_what_is_believed(content: bytes, data: st.DataObject):
    """Whatever comes in one go, and however much of it is believed, the checksum is that of the bytes up to there."""
    start = data.draw(st.integers(0, len(content)))
    running = RunningChecksum(crc32(content[:start]), start)
    good_end = end = start
    while end < len(content):
        cut = data.draw(st.integers(end, len(content)))
        good_end = data.draw(st.sampled_from([good_end, *range(end + 1, cut + 1)]))
        running.add(content[end:cut], good_end)
        assert running.value == crc32(content[:good_end])
        end = cut
