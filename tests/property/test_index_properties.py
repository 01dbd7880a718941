"""
The index of a store against a model: a dictionary of all headers, each folded from the records of its instance.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator
from itertools import accumulate, takewhile
from random import Random
from typing import Any

import attrs
from hypothesis import example, given
from hypothesis import strategies as st

from memable._error_info import ErrorInfo
from memable._frames import frame_batch
from memable._header import PROGRESS_KINDS, InstanceHeader, header_of
from memable._packed_multimap import Parts
from memable._record_json import encode_record
from memable._records import (
    INSTANCE_RECORDS,
    CancelRequested,
    ChildStarted,
    InstanceBlocked,
    InstanceCancelled,
    InstanceCompleted,
    InstanceFailed,
    InstanceRecord,
    InstanceResumed,
    InstanceRetired,
    InstanceStarted,
    InstanceSuspended,
    RunStarted,
)
from memable._scan import Entry, record_of
from memable._spans import offset_of, segment_of, span_of
from memable._states import MetadataStatus
from memable._store._index import HeaderIndex, IndexSnapshot, LogLine, keep_spans
from sample_records import ONE, step
from strategies import RECORDS, texts

NAMES = [(workflow, instance_id) for workflow in ("v", "w") for instance_id in ("a", "b", "\ud800")]
PARENTS = [None, None, None, "w/a", "v/b", "w/\ud800"]
ERROR = ErrorInfo(type="builtins.ValueError", message="x" * 600, traceback="")

Place = dict[str, Any]
"Number, sequence number and time of a record."

OPEN_RECORDS: list[Callable[[Place], InstanceRecord]] = [
    lambda place: step(place["instance"], place["seq"]),
    lambda place: attrs.evolve(step(place["instance"], place["seq"]), status="on its way"),
    lambda place: InstanceSuspended(**place, path="wait", wake_at=5.0, awaits_children=True, note="for it"),
    lambda place: InstanceBlocked(**place, path="s", error=ERROR, needs_resume=True),
    lambda place: RunStarted(**place, session=2, after_crash=True),
    lambda place: CancelRequested(**place, reason=None),
    lambda place: ChildStarted(**place, path="c", workflow="w"),
    lambda place: InstanceResumed(**place, session=3, forgotten=("s",)),
    lambda place: InstanceResumed(**place, session=3, anew=True),
]
ENDS: list[Callable[[Place], InstanceRecord]] = [
    lambda place: InstanceCompleted(**place, value=ONE),
    lambda place: InstanceCompleted(**place, value=ONE, status="done"),
    lambda place: InstanceFailed(**place, error=ERROR),
    lambda place: InstanceCancelled(**place, reason="no need"),
]
AFTER_ENDS: list[Callable[[Place], InstanceRecord]] = [
    lambda place: InstanceResumed(**place, session=4),
    lambda place: InstanceResumed(**place, session=4, forgotten=("s",)),
    lambda place: InstanceRetired(**place),
    lambda place: InstanceRetired(**place),
]

Line = tuple[InstanceRecord, int]
"A record, and its span."


class Model:
    """
    What is to be known, held in the simplest way.
    """

    def __init__(self) -> None:
        self.headers: dict[int, InstanceHeader] = {}
        self.spans: dict[int, list[int]] = {}

    def fold(self, record: InstanceRecord, span: int) -> None:
        number = record.instance
        if isinstance(record, InstanceStarted):
            self.headers[number] = header_of(record)
        else:
            self.headers[number].apply(record)
        self.spans.setdefault(number, []).append(span)
        if isinstance(record, InstanceRetired):
            del self.headers[number], self.spans[number]

    def find(self, workflow: str, instance_id: str) -> InstanceHeader | None:
        for header in self.headers.values():
            if (header.workflow, header.instance_id) == (workflow, instance_id):
                return header
        return None

    def is_live(self, header: InstanceHeader) -> bool:
        name = header.parent_name
        parent = None if name is None else self.find(*name)
        is_kept = parent is not None and not parent.status.is_terminal
        return is_kept or not header.status.is_terminal

    def ended(self, workflow: str) -> list[InstanceHeader]:
        found = [each for each in self.headers.values() if each.workflow == workflow and not self.is_live(each)]
        return sorted(found, key=lambda header: (header.completed_at, header.number))


def joined(parts: Parts) -> tuple[bytes, bytes]:
    """Return the parts of a multimap as they come back from a file."""
    return b"".join(parts[0]), b"".join(parts[1])


class Capture:
    """
    A snapshot on its way to a file: what was live is read bit by bit, while the index goes on.
    """

    def __init__(self, snapshot: IndexSnapshot, at: int) -> None:
        self.snapshot = snapshot
        self.at = at
        "How many lines the log had."
        self.left = sorted(snapshot.live)
        self.read: dict[int, InstanceHeader] = {}

    def go_on(self, count: int) -> None:
        for number in self.left[:count]:
            header = self.snapshot.live[number]
            self.read[number] = attrs.evolve(header)
            keep_spans(self.read[number], array("Q", header.spans))
        del self.left[:count]

    def read_back(self) -> IndexSnapshot:
        self.go_on(len(self.left))

        return attrs.evolve(
            self.snapshot,
            pages=self.snapshot.pages.copy(),
            names=joined(self.snapshot.names),
            children=joined(self.snapshot.children),
            ends={workflow: joined(parts) for workflow, parts in self.snapshot.ends.items()},
            has_forgotten=self.snapshot.has_forgotten.copy(),
            live=self.read,
        )


class Run:
    """
    An index and its model, driven by numbers that Hypothesis chooses.
    """

    def __init__(self) -> None:
        self.index = HeaderIndex(self.note_removal)
        self.model = Model()
        self.log: list[Line] = []
        self.end = 100
        "Where in its file the log ends."
        self.held: dict[int, InstanceHeader] = {}
        self.captures: list[Capture] = []
        self.removed: list[tuple[int, list[int], int]] = []

    def note_removal(self, number: int, spans: array[int], tombstone: int) -> None:
        self.removed.append((number, list(spans), tombstone))

    def do(self, what: int, which: int) -> None:
        headers = list(self.model.headers.values())
        header = headers[which % len(headers)] if headers else None
        if what < 4 or header is None:
            self.start(which)
        elif what < 16:
            self.go_on(header, which)
        elif what < 19:
            self.held[header.number] = self.index.header(header.number)
        elif what < 21:
            self.held.pop(which % (self.index.last_number + 1), None)
        elif what < 23:
            self.captures.append(Capture(self.index.snapshot(), len(self.log)))
        elif self.captures:
            self.captures[which % len(self.captures)].go_on(1 + which % 3)

    def start(self, which: int) -> None:
        workflow, instance_id = NAMES[which % len(NAMES)]
        if self.model.find(workflow, instance_id) is not None:
            return
        number = self.index.allocate_number()
        if which % 5 == 0:
            number = self.index.allocate_number()
        parent = PARENTS[which % len(PARENTS)]
        self.write(
            InstanceStarted(
                instance=number,
                seq=1,
                at=float(which % 7),
                session=1,
                workflow=workflow,
                instance_id=instance_id,
                input=ONE,
                parent=parent,
                detached=which % 11 == 0 and parent is not None,
            )
        )

    def go_on(self, header: InstanceHeader, which: int) -> None:
        place: Place = {"instance": header.number, "seq": header.seq + 1, "at": float(which % 7)}
        choices = AFTER_ENDS if header.status.is_terminal else ENDS if which % 3 else OPEN_RECORDS
        self.write(choices[which // 3 % len(choices)](place))

    def run_plainly(self, count: int, rng: Random) -> None:
        """Have so many instances start, make progress and complete, beside each other."""
        going = [(self.index.allocate_number(), 1) for _ in range(count)]
        while going:
            at = rng.randrange(min(len(going), 80))
            number, seq = going.pop(at)
            place: Place = {"instance": number, "seq": seq, "at": float(rng.randrange(7))}
            if seq == 1:
                name = f"{number}" if rng.random() < 0.9 else f'"{number}\\'
                workflow = rng.choice(("v", "w", 'w"w', "ä"))
                self.write(InstanceStarted(**place, session=seq, workflow=workflow, instance_id=name, input=ONE))
            elif rng.random() < 0.4:
                self.write(ENDS[rng.choice((0, 0, 0, 0, 1, 2))](place))
                continue
            else:
                self.write(OPEN_RECORDS[rng.choice((0,) * 20 + (1, 2, 4))](place))
            going.insert(at, (number, seq + 1))

    def write(self, record: InstanceRecord) -> None:
        line = line_of(record)[0]
        span = span_of(1, self.end, len(line) + 1)
        self.end += len(line) + 1
        self.index.admit([record])
        self.index.fold(record, span)
        if isinstance(record, InstanceRetired):
            spans = self.model.spans[record.instance]
            assert self.removed.pop() == (record.instance, spans, span)
            self.held.pop(record.instance, None)
        self.model.fold(record, span)
        self.log.append((record, span))

    def check(self) -> None:
        check(self.index, self.model)
        for number, header in self.held.items():
            assert self.index.header(number) is header
            assert self.index.find(header.workflow, header.instance_id) is header
            assert self.index.select(after=number - 1, limit=1)[0] is header
        assert self.removed == []


def check(index: HeaderIndex, model: Model) -> None:
    """Compare all that an index answers."""
    everything = sorted(model.headers.values(), key=lambda header: header.number)
    assert index.live() == [header for header in everything if model.is_live(header)]
    assert index.select() == everything
    assert index.has_forgotten == {header.number for header in everything if header.has_forgotten}
    for number in range(index.last_number + 2):
        assert index.has(number) == (number in model.headers)
    for header in everything:
        assert index.header(header.number) == header
        assert list(index.spans(header.number)) == model.spans[header.number]
        assert index.newest(header.number) == (header.seq, header.status.is_terminal)
        assert index.find(header.workflow, header.instance_id) == header
    for name in NAMES:
        assert index.find(*name) == model.find(*name)
    after = everything[len(everything) // 3].number if everything else 0
    for workflow in ("v", "w", "x", None):
        for status in (*MetadataStatus, None):
            assert (
                index.select(after=after, limit=2, workflow=workflow, status=status)
                == [
                    header
                    for header in everything
                    if header.number > after and workflow in {None, header.workflow} and status in {None, header.status}
                ][:2]
            )
    for workflow in ("v", "w", "x"):
        ended = model.ended(workflow)
        assert index.first_end(workflow) == (ended[0].completed_at if ended else None)
        assert index.ended(workflow, float("inf"), 10_000) == ended
        assert index.ended(workflow, 3.0, 2) == [each for each in ended if (each.completed_at or 0) <= 3.0][:2]


def line_of(record: InstanceRecord) -> LogLine:
    """Return what recovery sees of a record's line."""
    line = frame_batch(1, 1, 1, [encode_record(record)])[0][:-1]
    found = re.search(rb'{"kind":"(\w+)","instance":(\d+),"seq":(\d+),"at":([^,}]+)', line)
    assert found is not None
    return line, *found.groups()


def replay_lines(index: HeaderIndex, log: list[Line]) -> None:
    """Replay records that stand one behind the other as recovery does where it need not look at each line."""
    records = {span: record for record, span in log}

    def other(entry: Entry, span: int) -> None:
        record = records[span]
        assert record == record_of(entry, "")
        assert (entry[1], entry[2], entry[3], entry[4]) == (*line_of(record)[1:2], *attrs.astuple(record)[:3])
        assert (entry[5], entry[6]) == (offset_of(span), offset_of(span) + len(line_of(record)[0]) + 1)
        index.replay(record, span)

    lines = [line_of(record) for record, _ in log]
    start = offset_of(log[0][1])
    end = index.replay_lines(lines, segment_of(log[0][1]), start, other)
    assert end == start + sum(len(line[0]) + 1 for line in lines)


def replay_log(index: HeaderIndex, log: list[Line], rng: Random) -> Iterator[Line]:
    """Replay a log in some of the ways there are; yield the line that is the last one so far, now and then."""
    while log:
        count = rng.choice((1, 2, 5, 30, 200))
        # Some lines may be missing.
        ends = accumulate((len(line_of(record)[0]) + 1 for record, _ in log), initial=offset_of(log[0][1]))
        fitting = sum(1 for _ in takewhile(lambda pair: offset_of(pair[0][1]) == pair[1], zip(log, ends, strict=False)))
        some, log = log[: min(count, fitting)], log[min(count, fitting) :]
        if rng.random() < 0.8:
            replay_lines(index, some)
        else:
            for record, span in some:
                replay(index, record, span)
        yield some[-1]


def replay(index: HeaderIndex, record: InstanceRecord, span: int) -> None:
    """Replay a record as recovery does: by the short way, if it is one of those, and only then by the long one."""
    is_progress = record.kind in PROGRESS_KINDS and getattr(record, "status", None) is None
    if not (is_progress and index.replay_progress(record.instance, record.seq, record.at, span)):
        index.replay(record, span)


_randoms = st.integers(0, 2**32).map(Random)
"Not those of Hypothesis: it would choose each of thousands of numbers."
_operations = st.lists(st.tuples(st.integers(0, 25), st.integers(0, 2**16)), max_size=60)


def run_of(operations: list[tuple[int, int]], rng: Random | None = None) -> Run:
    run = Run()
    for what, which in operations:
        run.do(what, which)
        if rng is not None and rng.random() < 0.05:
            run.run_plainly(rng.choice((1, 5, 70)), rng)
    return run


@given(_operations)
def test_index_agrees_with_a_dictionary(operations: list[tuple[int, int]]):
    """
    Whatever starts, ends, is resumed or retired, whoever holds headers, the index answers as a dictionary would.
    """
    run = Run()
    for what, which in operations:
        run.do(what, which)
        run.check()


@given(_operations)
def test_index_is_the_same_after_a_replay(operations: list[tuple[int, int]]):
    """
    To replay the whole log gives what folding each of its records gave.
    """
    run = run_of(operations)
    again = HeaderIndex()
    for record, span in run.log:
        replay(again, record, span)
    assert again.orphans() == {}
    again.last_number = run.index.last_number
    check(again, run.model)


@given(_operations, _randoms)
def test_index_answers_while_it_takes_lines(operations: list[tuple[int, int]], rng: Random):
    """
    Whatever way in the lines of a log take, and whatever is asked between them, the answer is that of a dictionary.
    """
    run = run_of(operations, rng)
    index, model = HeaderIndex(run.note_removal), Model()
    left = iter(run.log)
    for last in replay_log(index, run.log, rng):
        for record, span in left:
            model.fold(record, span)
            if isinstance(record, InstanceRetired):
                assert run.removed.pop(0)[::2] == (record.instance, span)
            if (record, span) == last:
                break
        ask(index, model, rng)
    check(index, model)
    assert (index.orphans(), run.removed) == ({}, [])


def ask(index: HeaderIndex, model: Model, rng: Random) -> None:
    """Ask for a few things."""
    numbers = rng.sample(range(index.last_number + 2), min(index.last_number, 3))
    for number in numbers:
        header = model.headers.get(number)
        assert index.has(number) == (header is not None)
        what = rng.randrange(8)
        if header is None:
            assert index.newest(number) is None
        elif what == 0:
            assert index.newest(number) == (header.seq, header.status.is_terminal)
        elif what == 1:
            assert index.header(number) == header
        elif what == 2:
            assert index.find(header.workflow, header.instance_id) == header
        elif what == 3:
            assert index.number_of(header.workflow, header.instance_id) == number
        elif what == 4:
            assert list(index.spans(number)) == model.spans[number]
    assert index.last_number == max(index.last_number, *model.headers, 0, 0)
    if rng.random() < 0.01:
        check(index, model)
    if rng.random() < 0.02:
        assert index.orphans() == {}


@given(_operations, _randoms)
def test_index_takes_lines_as_it_takes_records(operations: list[tuple[int, int]], rng: Random):
    """
    Lines give what their records give one by one, orphans included, whatever is missing among them.
    """
    run = run_of(operations, rng)
    log = [line for line in run.log if rng.random() < 0.95]
    expected, index = (HeaderIndex(run.note_removal) for _ in range(2))
    for record, span in log:
        expected.replay(record, span)
    removed = run.removed.copy()
    run.removed.clear()
    for _ in replay_log(index, log, rng):
        pass
    assert index.select() == expected.select()
    assert index.live() == expected.live()
    assert index.orphans() == expected.orphans()
    assert index.last_number == expected.last_number
    assert run.removed == removed
    for header in expected.select():
        assert index.spans(header.number) == expected.spans(header.number)
        assert index.find(header.workflow, header.instance_id) == header
    for workflow in ("v", "w", 'w"w', "ä"):
        assert index.ended(workflow, 9.0, 10**9) == expected.ended(workflow, 9.0, 10**9)
    snapshots = [each.snapshot() for each in (index, expected)]
    assert snapshots[0].has_forgotten == snapshots[1].has_forgotten
    assert [*map(joined, (snapshots[0].names, snapshots[0].children))] == [
        *map(joined, (snapshots[1].names, snapshots[1].children))
    ]


@given(_operations, _randoms, st.integers(0, 2**16), st.integers(0, 200))
def test_index_comes_back_from_a_snapshot(operations: list[tuple[int, int]], rng: Random, which: int, overlap: int):
    """
    A snapshot whose live part was read at any time later, and the log from there or from before, give what there is.
    """
    run = run_of(operations, rng)
    run.captures.append(Capture(run.index.snapshot(), len(run.log)))
    capture = run.captures[which % len(run.captures)]
    restored = HeaderIndex.restored(capture.read_back())
    for _ in replay_log(restored, run.log[max(0, capture.at - overlap) :], rng):
        pass
    assert restored.orphans() == {}
    assert restored.last_number == run.index.last_number
    check(restored, run.model)
    # It is as good as the original: whatever comes next is taken alike.
    for number, header in list(run.model.headers.items()):
        if not header.status.is_terminal:
            record = ENDS[which % len(ENDS)]({"instance": number, "seq": header.seq + 1, "at": 3.0})
            restored.admit([record])
            restored.fold(record, 99)
            run.model.fold(record, 99)
    check(restored, run.model)


@given(_operations, st.randoms(use_true_random=False))
def test_index_does_not_miss_what_compaction_dropped(operations: list[tuple[int, int]], rng: Any):
    """
    Of instances that are retired, any records may be missing from the log as long as their retirements are there.
    """
    run = run_of(operations)
    retired = {record.instance for record, _ in run.log if isinstance(record, InstanceRetired)}
    again = HeaderIndex()
    for record, span in run.log:
        if record.instance not in retired or isinstance(record, InstanceRetired) or rng.random() < 0.5:
            replay(again, record, span)
    assert again.orphans() == {}
    again.last_number = run.index.last_number
    check(again, run.model)


@given(_operations, st.integers(0, 2**16))
def test_index_tells_of_records_without_a_start(operations: list[tuple[int, int]], which: int):
    """
    An instance whose start is missing is reported with the first span of what is left of it.
    """
    run = run_of(operations)
    victims = [number for number, spans in run.model.spans.items() if len(spans) > 1]
    if not victims:
        return
    victim = victims[which % len(victims)]
    again = HeaderIndex()
    for record, span in run.log:
        if not (record.instance == victim and isinstance(record, InstanceStarted)):
            replay(again, record, span)
    assert again.orphans() == {victim: run.model.spans[victim][1]}


@given(_operations, st.sets(st.integers(0, 80)))
def test_index_forgets_spans(operations: list[tuple[int, int]], places: set[int]):
    """
    Spans that are no longer in the log are dropped, be their instance live or packed.
    """
    run = run_of(operations)
    dead = {span for place, (_, span) in enumerate(run.log) if place in places}
    for number in range(run.index.last_number + 2):
        run.index.drop_spans(number, dead)
    for number, spans in run.model.spans.items():
        spans[:] = [span for span in spans if span not in dead]
        assert list(run.index.spans(number)) == spans
    run.check()


_short = [cls for cls in INSTANCE_RECORDS if cls.kind in PROGRESS_KINDS]


@given(
    st.one_of([RECORDS[cls] for cls in _short]),
    st.sampled_from(range(len(OPEN_RECORDS))),
    st.integers(0, 3),
)
def test_index_takes_progress_the_short_way(record: Any, before: int, recoveries: int):
    """
    The short way for a record of progress leaves a header as the long way does, or leaves it alone.
    """
    record = attrs.evolve(record, instance=1, seq=3, **({"status": None} if hasattr(record, "status") else {}))
    start = InstanceStarted(instance=1, seq=1, at=0.0, session=1, workflow="w", instance_id="a", input=ONE)
    first = OPEN_RECORDS[before]({"instance": 1, "seq": 2, "at": 1.0})
    index, expected = HeaderIndex(), header_of(start)
    index.replay(start, 1)
    index.replay(first, 2)
    index.header(1).recoveries = recoveries
    expected.apply(first)
    expected.recoveries = recoveries
    if index.replay_progress(1, 3, record.at, 3):
        expected.apply(record)
        assert list(index.spans(1)) == [1, 2, 3]
    else:
        assert expected.status is not MetadataStatus.RUNNING
    assert index.header(1) == expected


@given(
    st.builds(
        InstanceHeader,
        number=st.integers(1, 2**40),
        workflow=texts,
        instance_id=texts,
        created_at=st.floats(allow_nan=False),
        updated_at=st.floats(allow_nan=False),
        completed_at=st.floats(allow_nan=False),
        session=st.integers(0, 2**40),
        seq=st.integers(0, 2**40),
        recoveries=st.integers(0, 2**40),
        parent=st.none() | texts,
        message=st.none() | texts,
        error_message=st.none() | texts,
        key=st.none() | texts,
        wake_at=st.none() | st.floats(allow_nan=False),
        status=st.sampled_from([each for each in MetadataStatus if each.is_terminal]),
        flags=st.integers(0, 255),
    ),
    st.lists(st.integers(0, 2**64 - 1)),
)
@example(InstanceHeader(1, "w", "i", 0.0, 1.0, 1, status=MetadataStatus.FAILED, completed_at=1.0), [])
def test_index_packs_any_header(header: InstanceHeader, spans: list[int]):
    """
    Whatever a header of an ended instance says comes back as it was, with its spans.
    """
    snapshot = HeaderIndex().snapshot()
    live = snapshot.live[header.number] = attrs.evolve(header)
    keep_spans(live, array("Q", spans))
    index = HeaderIndex.restored(snapshot)
    assert index.ended(header.workflow, float("inf"), 1) == [header]
    assert index.live() == []
    assert list(index.spans(header.number)) == spans
    assert index.find(header.workflow, header.instance_id) == header
