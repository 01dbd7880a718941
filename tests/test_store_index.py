"""
What is known of every instance: headers by name and by number, whoever comes and goes.
"""

from __future__ import annotations

import random
import re
import sys
import threading
import time
from array import array
from bisect import insort

import attrs
import pytest

from memable._frames import frame_batch
from memable._record_json import encode_record
from memable._records import InstanceRecord, InstanceSuspended, SignalKept, StoreClosed, StoreOpened
from memable._scan import Entry, record_of
from memable._spans import spans_of
from memable._states import MetadataStatus
from memable._store._index import MAX_PACKED_SPANS, HeaderIndex, LogLine
from sample_records import ONE, completed, resumed, retired, started, step


def write(index: HeaderIndex, *records: InstanceRecord) -> None:
    """Queue records, and have them durable."""
    index.admit(records)
    for record in records:
        index.fold(record)


def test_index_frees_a_name_when_the_retirement_is_queued():
    """
    A name is free for a start behind a retirement that is yet to become durable, and taken again from then on.
    """
    index = HeaderIndex()
    numbers = [index.allocate_number() for _ in range(3)]
    batches = [
        [started(1, name="x")],
        [completed(1, 2)],
        [retired(1, 3), started(2, name="x")],
        [completed(2, 2), retired(2, 3)],
        [started(3, name="x")],
    ]
    for batch in batches:
        index.admit(batch)
    with pytest.raises(ValueError, match="workflow 'w' has an instance 'x' already"):
        index.admit([started(index.allocate_number(), name="x")])
    with pytest.raises(ValueError, match="instance 1 was retired, so no step_completed record can follow"):
        index.admit([step(1, 4)])
    for batch in batches:
        for record in batch:
            index.fold(record)
    found = index.find("w", "x")
    assert found is not None
    assert (found.number, [header.number for header in index.select()], numbers) == (3, [3], [1, 2, 3])


def test_index_refuses_a_name_while_its_instance_may_go_on():
    """
    An instance that has ended, but is not retired, has its name still; nothing of a refused batch is noted.
    """
    index = HeaderIndex()
    write(index, started(index.allocate_number(), name="x"), completed(1, 2))
    second = index.allocate_number()
    with pytest.raises(ValueError, match="workflow 'w' has an instance 'x' already"):
        index.admit([started(second, name="x"), retired(1, 3)])
    index.admit([retired(1, 3), started(second, name="x")])


def test_index_lists_in_the_order_of_numbers_whoever_is_gone():
    """
    What is listed are the instances that are left, in order, while and after many are retired.
    """
    index = HeaderIndex()
    for _ in range(100):
        number = index.allocate_number()
        write(index, started(number), completed(number, 2))
    left = list(range(1, 101))
    for number in [*range(1, 100, 2), *range(100, 1, -2)]:
        write(index, retired(number, 3))
        left.remove(number)
        assert [header.number for header in index.select()] == left
        assert [header.number for header in index.select(after=50)] == [one for one in left if one > 50]
    assert index.allocate_number() == 101


@pytest.mark.slow
def test_index_retires_in_linear_time():
    """
    To retire an instance costs the same, however many there are.
    """

    def retire_all(count: int) -> float:
        index = HeaderIndex()
        for _ in range(count):
            number = index.allocate_number()
            write(index, started(number), completed(number, 2))
        began = time.perf_counter()
        for number in range(1, count + 1):
            write(index, retired(number, 3))
        assert index.select() == []
        return time.perf_counter() - began

    few = min(retire_all(2_000) for _ in range(3))
    assert retire_all(40_000) < 20 * few * 5


def test_index_refuses_impossible_logs():
    """
    A log in which an instance has no start, or two instances have one name, is none that memable wrote.
    """
    index = HeaderIndex()
    index.fold(started(5, name="x"))
    with pytest.raises(ValueError, match="workflow 'w' has two instances 'x'"):
        index.fold(started(6, name="x"))
    with pytest.raises(ValueError, match="instance 7 has a step_completed record, but never started"):
        index.fold(step(7, 2))
    index.fold(completed(5, 2))
    index.fold(retired(5, 3))
    with pytest.raises(ValueError, match="instance 5 has a step_completed record, but never started"):
        index.fold(step(5, 4))
    assert (index.select(), index.allocate_number()) == ([], 6)


def test_index_lists_live_instances_in_the_order_of_numbers_whoever_has_ended():
    """
    What goes on is listed in order, in whatever order instances start and end, and takes no more room than it needs.
    """
    rng = random.Random(5)
    index, left = HeaderIndex(), list[int]()
    for _ in range(1000):
        pair = [index.allocate_number(), index.allocate_number()]
        for number in reversed(pair):
            write(index, started(number))
        left += pair
        while len(left) > 10:
            number = left.pop(rng.randrange(len(left)))
            seq = index.header(number).seq
            write(index, completed(number, seq + 1))
            if rng.random() < 0.1:
                write(index, resumed(number, seq + 2))
                insort(left, number)
    assert [header.number for header in index.live()] == left
    assert len(index._order) < 200


def test_index_gives_the_same_header_as_long_as_somebody_holds_it():
    """
    A header that was made for an ended instance goes on with it when it is resumed, and ends with it again.
    """
    index = HeaderIndex()
    write(index, started(index.allocate_number()), completed(1, 2))
    held = index.header(1)
    assert held.status is MetadataStatus.COMPLETED
    assert index.find("w", "i1") is held
    write(index, resumed(1, 3))
    assert (held.status, held.seq) == (MetadataStatus.RUNNING, 3)
    assert index.live() == [held]
    assert index.live()[0] is held
    write(index, completed(1, 4))
    assert (held.seq, index.live()) == (4, [])
    assert index.select()[0] is held


def test_index_keeps_children_as_long_as_their_parents():
    """
    An attached child that has ended is among the live ones until its parent has ended, and again if that goes on.
    """
    index = HeaderIndex()
    for _ in range(3):
        index.allocate_number()
    write(index, started(1, name="p"))
    for child in (2, 3):
        write(index, attrs.evolve(started(child), parent="w/p", detached=child == 3), completed(child, 2))
    assert [header.number for header in index.live()] == [1, 2]
    assert [header.number for header in index.ended("w", 2000.0, 9)] == [3]
    write(index, completed(1, 2))
    assert index.live() == []
    assert [header.number for header in index.ended("w", 2000.0, 9)] == [1, 2, 3]
    write(index, resumed(1, 3))
    assert [header.number for header in index.live()] == [1, 2]
    # A child may be retired while its parent goes on.
    write(index, retired(2, 3))
    assert [header.number for header in index.live()] == [1]


def test_index_packs_children_of_a_parent_whose_end_is_gone():
    """
    Compaction may leave of a parent its start and its retirement: then what was kept for it is kept no longer.
    """
    index = HeaderIndex()
    index.replay(started(1, name="p"), 1)
    index.replay(attrs.evolve(started(2), parent="w/p"), 2)
    index.replay(completed(2, 2), 3)
    assert [header.number for header in index.live()] == [1, 2]
    index.replay(retired(1, 9), 4)
    assert index.live() == []
    assert [header.number for header in index.select()] == [2]


def test_index_tells_of_spans_that_are_no_longer_needed():
    """
    When an instance is retired, whoever keeps the log is told where its records are, be it live or packed.
    """
    removed: list[tuple[int, list[int], int]] = []
    index = HeaderIndex(lambda number, spans, tombstone: removed.append((number, list(spans), tombstone)))
    index.fold(started(1), 10)
    index.fold(completed(1, 2), 11)
    index.fold(retired(1, 3), 12)
    assert removed == [(1, [10, 11], 12)]
    with pytest.raises(KeyError, match="1"):
        index.spans(1)
    with pytest.raises(KeyError, match="1"):
        index.header(1)
    index.drop_spans(1, {10})
    assert (index.has(1), index.newest(1)) == (False, None)


def test_index_refuses_what_follows_an_end():
    """
    When an instance has ended, only a resume or a retirement is durable next; what is refused changes nothing.
    """
    index = HeaderIndex()
    write(index, started(index.allocate_number()), completed(1, 2))
    with pytest.raises(ValueError, match="instance 1 has ended, but a step_completed record follows"):
        index.fold(step(1, 3))
    with pytest.raises(ValueError, match="record 2 of instance 1 follows record 2"):
        index.fold(resumed(1, 2))
    for record in (step(1, 3), started(1)):
        with pytest.raises(ValueError, match="instance 1"):
            index.admit([record])
    assert index.newest(1) == (2, True)
    index.admit([resumed(1, 3)])


def test_index_notes_records_that_cannot_follow():
    """
    In recovery, a record behind an end and a second start under one name are orphans until the retirement comes.
    """
    index = HeaderIndex()
    index.replay(started(1, name="x"), 1)
    index.replay(completed(1, 2), 2)
    index.replay(step(1, 4), 3)
    index.replay(started(2, name="x"), 4)
    index.replay(step(2, 2), 5)
    index.replay(started(2, name="x"), 6)
    assert index.orphans() == {1: 3, 2: 4}
    index.replay(retired(2, 3), 7)
    index.replay(retired(1, 5), 8)
    assert (index.orphans(), index.select(), index.last_number) == ({}, [], 2)


def test_index_snapshot_is_made_without_delay():
    """
    A snapshot of many ended instances takes as long as a copy of a dictionary of their pages; nothing changes in it.
    """
    index = HeaderIndex()
    for number in range(1, 20_001):
        index.replay(started(number), number)
        index.replay(completed(number, 2), number)
    began = time.perf_counter()
    snapshot = index.snapshot()
    assert time.perf_counter() - began < 0.1
    for number in range(1, 20_001, 3):
        index.fold(retired(number, 3))
    restored = HeaderIndex.restored(snapshot)
    assert [header.number for header in restored.ended("w", 2000.0, 10**6)] == list(range(1, 20_001))
    assert restored.find("w", "i20000") is not None


def test_index_snapshot_follows_what_was_live():
    """
    Header and spans of what was live in a snapshot stay those of the instance, though it has ended and goes on since.
    """
    index = HeaderIndex()
    index.fold(started(1), 10)
    first, second = index.snapshot(), index.snapshot()
    for seq in range(2, 8, 2):
        index.fold(completed(1, seq), 10 * seq)
        index.fold(resumed(1, seq + 1), 10 * seq + 10)
    for snapshot in (first, second):
        header = snapshot.live[1]
        assert header is index.header(1)
        assert (header.seq, list(header.spans)) == (7, [10, 20, 30, 40, 50, 60, 70])
    assert list(index.spans(1)) == [10, 20, 30, 40, 50, 60, 70]


def test_index_has_can_be_asked_while_instances_come_and_go():
    """
    That an instance exists is never denied while it passes from live to ended and back, in whatever thread one asks.
    """
    index = HeaderIndex()
    write(index, started(index.allocate_number()))
    answers: set[bool] = set()
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            answers.add(index.has(1))

    thread = threading.Thread(target=ask)
    thread.start()
    for seq in range(2, 4000, 2):
        write(index, completed(1, seq), resumed(1, seq + 1))
    is_over.set()
    thread.join()
    assert answers == {True}


def replay_lines(index: HeaderIndex, *records: InstanceRecord) -> list[int]:
    """Have an index take records as lines of a log; return their spans."""
    lines: list[LogLine] = []
    for record in records:
        line = frame_batch(1, 1, 1, [encode_record(record)])[0][:-1]
        found = re.search(rb'{"kind":"(\w+)","instance":(\d+),"seq":(\d+),"at":([^,}]+)', line)
        assert found is not None
        lines.append((line, found[1], found[2], found[3], found[4]))
    spans, end = spans_of(1, 50, [len(line[0]) for line in lines])

    def other(entry: Entry, span: int) -> None:
        record = record_of(entry, "")
        assert not isinstance(record, StoreOpened | StoreClosed)
        index.replay(record, span)

    assert index.replay_lines(lines, 1, 50, other) == end
    return list(spans)


def test_index_takes_lines_that_say_the_usual():
    """
    Of what runs, and of whole pages of what has completed, everything is known as if each record had been read.
    """
    index, expected = HeaderIndex(), HeaderIndex()
    records: list[InstanceRecord] = []
    for number in range(1, 200):
        records += [started(number), step(number, 2)]
        if number % 10:
            records.append(completed(number, 3))
    for record, span in zip(records, replay_lines(index, *records), strict=True):
        expected.replay(record, span)
    for number in (1, 64, 70, 150, 199, 200):
        assert index.has(number) == expected.has(number)
        assert index.newest(number) == expected.newest(number)
    assert index.find("w", "i77") == expected.find("w", "i77")
    assert index.number_of("w", "i190") == 190
    assert (index.live(), index.select()) == (expected.live(), expected.select())
    assert index.ended("w", 2000.0, 1000) == expected.ended("w", 2000.0, 1000)
    assert [index.spans(number) for number in range(1, 200)] == [expected.spans(number) for number in range(1, 200)]
    assert index.find("w", "i78") == expected.find("w", "i78")


def test_index_takes_lines_that_say_more():
    """
    A parent, a status message, an id with a quotation mark and a history with gaps are not overlooked in lines.
    """
    index, expected = HeaderIndex(), HeaderIndex()
    records = [
        started(1),
        attrs.evolve(started(2), parent="w/i1"),
        attrs.evolve(started(3, name="c"), parent="w/i1", detached=True),
        started(4, name='"\\'),
        started(6),
        started(5, workflow="\u00e4"),
        started(7, name="a\\b"),
        started(8),
        attrs.evolve(step(1, 2), status="on its way"),
        attrs.evolve(completed(5, 2), status="done"),
        step(6, 4),
        step(8, 5),
        completed(4, 2),
        completed(6, 5),
        completed(2, 2),
        retired(5, 3),
    ]
    for record, span in zip(records, replay_lines(index, *records), strict=True):
        expected.replay(record, span)
    assert index.has(4)
    assert (index.select(), index.live()) == (expected.select(), expected.live())
    assert [header.number for header in index.live()] == [1, 2, 3, 7, 8]
    assert index.header(1).message == "on its way"
    assert [index.spans(number) for number in (1, 2, 3, 4, 6)] == [expected.spans(number) for number in (1, 2, 3, 4, 6)]


@pytest.mark.parametrize("has_ended", [False, True])
def test_index_notes_a_second_start_under_one_name_in_lines(has_ended: bool):
    """
    Two instances of one name cannot be, whether the first one has ended or not.
    """
    index = HeaderIndex()
    first = [started(1, name="x"), step(1, 2), *([completed(1, 3)] if has_ended else [])]
    spans = replay_lines(index, *first, started(2, name="x"), step(2, 2))
    assert (index.orphans(), index.has(2)) == ({2: spans[-2]}, False)
    assert index.number_of("w", "x") == 1


def test_what_waits_keeps_its_spans_packed():
    """
    An instance that waits takes no more memory than it must, and its spans are those of its records all the same.
    """
    index = HeaderIndex()
    index.fold(started(1), 10)
    index.fold(InstanceSuspended(instance=1, seq=2, at=1.0, path="w", wake_at=None, note=None), 20)
    header = index.header(1)
    assert (type(header.spans), list(index.spans(1))) == (bytes, [10, 20])
    assert sys.getsizeof(header) <= 176
    index.fold(SignalKept(instance=1, seq=3, at=1.0, path="v", value=ONE), 30)
    assert (type(header.spans), list(index.spans(1))) == (bytes, [10, 20, 30])
    index.drop_spans(1, {20})
    assert (type(header.spans), list(index.spans(1))) == (bytes, [10, 30])
    index.fold(step(1, 4), 40)
    index.fold(step(1, 5), 50)
    assert (type(header.spans), list(index.spans(1))) == (array, [10, 30, 40, 50])
    index.fold(completed(1, 6), 60)
    assert (header.spans, list(index.spans(1))) == (b"", [10, 30, 40, 50, 60])


def test_spans_of_a_long_journal_are_not_copied_at_each_wait():
    """
    To wait again and again costs as much each time, however long the journal is.
    """
    index = HeaderIndex()
    index.fold(started(1), 1)
    for seq in range(2, MAX_PACKED_SPANS + 2):
        index.fold(step(1, seq), seq)
    header = index.header(1)
    spans = header.spans
    for seq in range(MAX_PACKED_SPANS + 2, MAX_PACKED_SPANS + 20, 3):
        index.fold(InstanceSuspended(instance=1, seq=seq, at=1.0, path="w", wake_at=None, note=None), seq)
        index.fold(SignalKept(instance=1, seq=seq + 1, at=1.0, path="v", value=ONE), seq + 1)
        assert header.spans is spans
        index.fold(step(1, seq + 2), seq + 2)
        assert header.spans is spans
    assert list(index.spans(1)) == list(range(1, header.seq + 1))
