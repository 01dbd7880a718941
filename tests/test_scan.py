"""
The scan of a log: what is believed, what is a torn tail, what is damage.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memable._encoded import Encoded
from memable._errors import StoreCorruptedError, StoreVersionError
from memable._frames import frame_batch, seed_of
from memable._record_json import encode_record
from memable._records import Record, StepCompleted, StoreClosed, StoreOpened
from memable._scan import Entry, LogScan, record_of

SEED = seed_of("a" * 32)
START = 100
"Where the records begin: behind a header."


def opened(session: int, durability: str = "fsync") -> Record:
    return StoreOpened(session=session, at=float(session), durability=durability, pid=1, host="h")


def closed(session: int) -> Record:
    return StoreClosed(session=session, at=session + 0.5)


def step(seq: int, value: bytes = b"1") -> Record:
    return StepCompleted(instance=1, seq=seq, at=1.0, path=f"p{seq}", value=Encoded("i", value), started_at=1.0)


def batch(session: int, number: int, *records: Record) -> bytes:
    return b"".join(frame_batch(SEED, session, number, [encode_record(record) for record in records]))


def records_of(batches: list[list[Entry]]) -> list[list[Record]]:
    return [[record_of(entry, "x.log") for entry in found] for found in batches]


def scan(log: bytes, chunk_size: int = 1 << 20) -> tuple[LogScan, list[list[Entry]]]:
    reader = LogScan("x.log", SEED, START)
    batches: list[list[Entry]] = []
    for at in range(0, len(log), chunk_size):
        batches.extend(reader.feed(log[at : at + chunk_size]))
    reader.finish()
    return reader, batches


SESSION = [batch(1, 0, opened(1)), batch(1, 1, step(1), step(2)), batch(1, 2, step(3)), batch(1, 3, step(4), step(5))]
"Batches of a session that syncs each of them and was not closed."
ENDS = [START + end for end in itertools.accumulate(map(len, SESSION))]
OS_SESSION = [
    batch(1, 0, opened(1, "os")),
    batch(1, 1, step(1), step(2)),
    batch(1, 2, step(3)),
    batch(1, 3, step(4)),
]
CLOSING = batch(1, 4, closed(1))
NEXT_SESSION = batch(2, 4, opened(2))


def spoiled(part: bytes) -> bytes:
    return part[:20] + b"?" + part[21:]


@pytest.mark.parametrize("chunk_size", [1, 7, 64, 1000])
def test_scan_gives_all_batches_however_the_bytes_come(chunk_size: int):
    """A whole log is read whole, and its end is known."""
    reader, batches = scan(b"".join(SESSION), chunk_size)
    assert records_of(batches) == [
        [opened(1)],
        [step(1), step(2)],
        [step(3)],
        [step(4), step(5)],
    ]
    assert [found[-1][6] for found in batches] == ENDS
    assert (reader.good_end, reader.next_batch, reader.session, reader.closed) == (ENDS[-1], 4, 1, False)
    assert (reader.torn_batch_count, reader.last_batch_start, reader.newest_at) == (0, ENDS[-2], 1.0)


def test_scan_follows_sessions():
    """Sessions follow each other, closed or not; the newest one counts."""
    log = batch(1, 0, opened(1)) + batch(1, 1, closed(1)) + batch(2, 2, opened(2, "os")) + batch(3, 3, opened(3))
    reader, batches = scan(log)
    assert len(batches) == 4
    assert (reader.session, reader.durability, reader.closed, reader.newest_at) == (3, "fsync", False, 3.0)
    reader, _ = scan(log + batch(3, 4, closed(3)))
    assert reader.closed


@pytest.mark.parametrize("session", [SESSION, OS_SESSION], ids=["fsync", "os"])
def test_log_cut_at_every_byte_is_torn(session: list[bytes]):
    """A log that ends anywhere is its whole batches and a torn tail."""
    log = b"".join(session)
    ends = list(itertools.accumulate(map(len, session), initial=0))
    for size in range(len(log)):
        reader, batches = scan(log[:size])
        good = max(end for end in ends if end <= size)
        assert reader.good_end == START + good
        assert len(batches) == ends.index(good)
        assert reader.torn_batch_count == (size > good)


def test_every_flipped_bit_before_the_last_batch_is_damage():
    """One wrong bit anywhere in what was once durable is found, and no batch from there on is believed."""
    log = b"".join(SESSION)
    for bit in range((ENDS[-2] - START) * 8):
        flipped = bytearray(log)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StoreCorruptedError, match=r"x\.log: at byte offset \d+: .* damaged or missing") as caught:
            scan(bytes(flipped))
        assert START + bit // 8 - 250 < caught.value.offset <= START + bit // 8 + 1


@pytest.mark.parametrize("session", [SESSION, OS_SESSION], ids=["fsync", "os"])
def test_every_flipped_bit_in_the_last_batch_is_a_torn_tail(session: list[bytes]):
    """The last batch is whole or absent, never changed."""
    log = b"".join(session)
    for bit in range((len(log) - len(session[-1])) * 8, len(log) * 8):
        flipped = bytearray(log)
        flipped[bit // 8] ^= 1 << bit % 8
        reader, batches = scan(bytes(flipped))
        assert len(batches) == 3
        assert reader.good_end == START + len(log) - len(session[-1])
        assert reader.torn_batch_count == 1


@pytest.mark.parametrize(
    "damage",
    [
        [0, 2, 3],  # a batch is missing
        [0, 2, 1, 3],  # two changed places
        [1, 2, 3],  # the beginning of the session is missing
    ],
)
def test_missing_or_moved_batch_is_damage(damage: list[int]):
    """Intact lines are not enough: they must be the ones that are due."""
    with pytest.raises(StoreCorruptedError, match="damaged or missing"):
        scan(b"".join(SESSION[index] for index in damage))


def test_missing_line_within_an_older_batch_is_damage():
    """A batch of which a line is missing is no batch."""
    first, _, last = batch(1, 1, step(1), step(2), step(3)).splitlines(keepends=True)
    with pytest.raises(StoreCorruptedError, match="damaged or missing"):
        scan(SESSION[0] + first + last + batch(1, 2, step(4)))
    reader, batches = scan(SESSION[0] + first + last)
    assert (len(batches), reader.good_end) == (1, ENDS[0])


@pytest.mark.parametrize("tail", [b"\0" * 5000, b"\xff" * 5000, b"\n" * 50, b"\0\n\0\n", b"00000000 1.4.0; {}\n"])
def test_zeros_and_noise_at_the_end_are_a_torn_tail(tail: bytes):
    """Whatever a crash leaves behind the last whole batch is cut off."""
    for chunk_size in (11, 1 << 20):
        reader, batches = scan(b"".join(SESSION) + tail, chunk_size)
        assert (len(batches), reader.good_end, reader.torn_batch_count) == (4, ENDS[-1], 1)


@pytest.mark.parametrize(
    "junk", [b"\0" * 700, b"\xff" * 700, b'1f2e0a44 1.4.0; {"kind":"' + b"\0" * 700, b'?1f2e0a44 1.4.0; {"kind":"']
)
def test_line_swallowed_by_damage_is_still_proof(junk: bytes):
    """A later batch is found even if the line break before it is damaged, however the bytes come."""
    log = SESSION[0] + junk + SESSION[2]
    for chunk_size in (1, 50, 300, 1 << 20):
        with pytest.raises(StoreCorruptedError, match="batch 1 is damaged or missing, though batch 2") as caught:
            scan(log, chunk_size)
        assert caught.value.offset == ENDS[0]


def test_long_junk_is_not_held_in_memory():
    """What cannot be a line is let go of while it is read."""
    reader = LogScan("x", SEED, START)
    for size in [1, 7, *[10_000] * 100]:
        assert list(reader.feed(b"\xff" * size)) == []
        assert sum(map(len, reader._pending)) <= 20_000
    reader.finish()
    assert (reader.good_end, reader.torn_batch_count) == (START, 1)


def test_left_over_lines_prove_nothing():
    """Intact lines of an earlier batch, an earlier session or the batch that was due are what a cut may uncover."""
    log = batch(1, 0, opened(1)) + batch(2, 1, opened(2))
    for left_over in (batch(1, 7, step(1)), batch(2, 1, opened(2)), batch(1, 0, opened(1))):
        reader, batches = scan(log + left_over)
        assert (len(batches), reader.good_end) == (2, START + len(log))
    reader, batches = scan(log + b"?\n" + batch(2, 2, step(1)))
    assert (len(batches), reader.torn_batch_count) == (2, 1)


def test_holes_in_an_os_session_are_a_torn_tail():
    """Without a sync of each batch, what follows a hole proves nothing: all from there on is cut off, and counted."""
    zero, first, second, third = OS_SESSION
    reader, batches = scan(zero + spoiled(first) + second + third)
    assert (len(batches), reader.good_end, reader.torn_batch_count) == (1, START + len(zero), 3)
    reader, batches = scan(zero + first + third)
    assert (len(batches), reader.torn_batch_count) == (2, 2)


@pytest.mark.parametrize("proof", [CLOSING, NEXT_SESSION], ids=["closed", "next session"])
def test_hole_before_a_sync_of_an_os_session_is_damage(proof: bytes):
    """What was written after a sync of everything proves that everything was once good."""
    zero, first, second, third = OS_SESSION
    with pytest.raises(StoreCorruptedError, match="batch 1 is damaged") as caught:
        scan(zero + spoiled(first) + second + third + proof)
    assert caught.value.offset == START + len(zero)


@pytest.mark.parametrize(
    ("log", "problem"),
    [
        (batch(1, 0, step(1)), "of session 1, which did not begin"),
        (batch(2, 0, opened(2)), "session 2 begins where session 1 could"),
        (batch(1, 0, opened(2)), "session 2 begins where session 1 could"),
        (batch(1, 0, opened(1), step(1)), "session 1 begins where session 1 could"),
        (batch(1, 0, opened(1)) + batch(1, 1, opened(1)), "session 1 begins where session 2 could"),
        (batch(1, 0, opened(1)) + batch(1, 1, closed(1)) + batch(1, 2, step(1)), "follows the end of its session"),
        (batch(1, 0, opened(1)) + batch(1, 1, closed(1), step(1)), "is not alone in its batch"),
        (batch(1, 0, opened(1, "maybe")), "session 1 begins"),
    ],
)
def test_impossible_sessions_are_damage(log: bytes, problem: str):
    """Intact lines in an order that no store writes are refused."""
    with pytest.raises(StoreCorruptedError, match=problem):
        scan(log)


def test_record_of_a_newer_release_says_so():
    """An intact record of an unknown kind is no damage: a newer release wrote it."""
    log = SESSION[0] + b"".join(frame_batch(SEED, 1, 1, [b'{"kind":"teleported"}']))
    with pytest.raises(StoreVersionError, match="'teleported'; install the release that wrote it"):
        scan(log)


@given(st.lists(st.integers(1, 3), max_size=6), st.integers(1, 200), st.data())
def test_any_damage_leaves_a_prefix_or_is_refused(sizes: list[int], chunk_size: int, data: st.DataObject):
    """Whatever is done to a log's bytes, what is believed is a prefix of what was written."""
    written = [[opened(1)]]
    seqs = itertools.count(1)
    written += [[step(next(seqs)) for _ in range(size)] for size in sizes]
    log = bytearray(b"".join(batch(1, number, *records) for number, records in enumerate(written)))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(log)))
        new = data.draw(st.binary(max_size=60))
        log[at : at + data.draw(st.integers(0, 600))] = new
    try:
        _, batches = scan(bytes(log), chunk_size)
    except StoreCorruptedError:
        return
    assert records_of(batches) == written[: len(batches)]
