"""
What is known of every instance without reading its journal, and where in the log its records are.

An instance is *live* here if it has not ended, or is the attached child of a parent that has not: it has a header of
its own, with the spans of its records. All others are *packed* into a few bytes each, and their headers are made when
somebody asks for them. Whoever holds a header need not care: as long as he holds it, the instance has no other.

A record counts twice: when it is queued (``admit``), so that two writers never get the same sequence number, and when
it is durable (``fold``), so that nobody sees what may yet be lost. Recovery has ways of its own (``replay``): what it
reads may be older than the snapshot that it began with, and compaction may have left gaps.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import merge
from itertools import islice
from operator import itemgetter
from weakref import WeakSet, WeakValueDictionary

import attrs

from .._ended_table import PAGE_BITS
from .._header import PROGRESS_KINDS, InstanceHeader, header_of
from .._packed_multimap import Parts
from .._records import InstanceCompleted, InstanceRecord, InstanceResumed, InstanceRetired, InstanceStarted
from .._scan import Entry
from .._spans import SIZE_CLASSES, offset_of, size_class, span_of, spans_of
from .._states import MetadataStatus
from ._admission import Admission
from ._ended_index import EndedIndex
from ._plain_instances import NEWEST_AT, NEXT_SEQS, PlainInstances

_Name = tuple[str, str]
"Workflow and instance id."
OnRemoved = Callable[[int, "array[int]", int], None]
"Told the number of an instance that was retired, the spans of its records, and that of its retirement."
LogLine = tuple[bytes, bytes, bytes, bytes, bytes]
"""
A line with a record of an instance, without its break, and as it says them: kind, number, sequence number and time.
"""

_SUSPENDED = MetadataStatus.SUSPENDED
#: Kinds of records of which only number, sequence number and time matter, as long as nothing is unusual.
_PROGRESS = frozenset(kind.encode() for kind in PROGRESS_KINDS)
_STARTED = InstanceStarted.kind.encode()
_COMPLETED = InstanceCompleted.kind.encode()
_STATUS_TEXT = b'"status":'
_SHORT = len(SIZE_CLASSES)
_SLOT_MASK = (1 << PAGE_BITS) - 1
#: The list of live numbers is cleaned up when more than these, and more than half, are no longer live.
_MIN_STALE = 64
#: Of an instance with more records than these, the spans stay an array while it waits: to copy them at each wait would
#: cost it more with each.
MAX_PACKED_SPANS = 64


def _spans_of(header: InstanceHeader) -> array[int]:
    """Return the spans of a live instance's records in their order: its array, if it has one."""
    spans = header.spans
    return array("Q", spans) if isinstance(spans, bytes) else spans


def keep_spans(header: InstanceHeader, spans: array[int]) -> None:
    """
    Put the spans of its records into the header of a live instance. The array belongs to it from then on.
    """
    # What waits may be one of a million, and mostly gets no record for long: the bytes alone are half as large.
    is_packed = header.status is _SUSPENDED and len(spans) <= MAX_PACKED_SPANS
    header.spans = spans.tobytes() if is_packed else spans


def _add_span(header: InstanceHeader, span: int) -> None:
    spans = _spans_of(header)
    spans.append(span)
    keep_spans(header, spans)


@attrs.define(eq=False)
class IndexSnapshot:
    """
    All that an index consists of, to be kept elsewhere.

    Everything but ``live`` is as it was when the snapshot was made. The headers and spans of what was live go on
    changing, together, as long as the snapshot exists: whoever reads them later reads what is later. Spans may be among
    them that were dropped since.
    """

    last_number: int
    "The greatest number given to an instance."
    pages: dict[int, bytes]
    "Those of an ``EndedTable``."
    workflows: list[str]
    "The names of workflows that its rows refer to."
    names: Parts
    "Numbers of packed instances by checksums of their names."
    children: Parts
    "Numbers of packed attached children by checksums of their parents' names."
    ends: dict[str, Parts]
    "Numbers of packed instances by the times of their ends, for each workflow."
    has_forgotten: set[int]
    "Numbers of instances that were resumed with something to forget."
    unexamined: set[int]
    "Those of which nobody has found out yet what they forgot."
    live: dict[int, InstanceHeader]
    "The headers of what was live, by number, with their spans."


def _ignore_removal(_number: int, _spans: array[int], _tombstone: int) -> None:
    """Whoever keeps no log need not know."""


@attrs.define(eq=False)
class HeaderIndex:
    """
    The headers of a store's instances, by number and by name, and the spans of their records.
    """

    on_removed: OnRemoved = _ignore_removal
    last_number: int = attrs.field(default=0, init=False)
    "The greatest number given to an instance so far, whether it was used or not."
    has_forgotten: set[int] = attrs.field(factory=set[int], init=False)
    "Numbers of the instances that were ever resumed with something to forget, or anew."
    unexamined: set[int] = attrs.field(factory=set[int], init=False)
    "Those of them that were resumed since somebody has last found out what they forgot, and left them out here."
    _live: dict[int, InstanceHeader] = attrs.field(factory=dict[int, InstanceHeader], init=False)
    _live_ids: dict[str, dict[str, InstanceHeader]] = attrs.field(
        factory=dict[str, "dict[str, InstanceHeader]"], init=False
    )
    "The headers of live instances by workflow and id. A workflow stays here: there are few."
    _order: list[int] = attrs.field(factory=list[int], init=False)
    "Numbers of live instances in ascending order: they may become durable in another. Also some that no longer live."
    _stale_count: int = attrs.field(default=0, init=False)
    "How many of those are no longer live."
    _kept: dict[_Name, set[int]] = attrs.field(factory=dict[_Name, set[int]], init=False)
    "Numbers of the live instances that have ended, by the names of the parents that they are kept for."
    _ended: EndedIndex = attrs.field(factory=EndedIndex, init=False)
    _handles: WeakValueDictionary[int, InstanceHeader] = attrs.field(
        factory=WeakValueDictionary[int, InstanceHeader], init=False
    )
    "The headers of packed instances that somebody may hold."
    _present: dict[int, int] = attrs.field(factory=dict[int, int], init=False)
    "For every 64 numbers, a mask of those that exist."
    _orphans: dict[int, int] = attrs.field(factory=dict[int, int], init=False)
    "By number, the first spans of records that cannot follow what recovery knows of their instances."
    _snapshots: WeakSet[IndexSnapshot] = attrs.field(factory=WeakSet[IndexSnapshot], init=False)
    "Those that somebody may still read."
    _plain: PlainInstances | None = attrs.field(default=None, init=False)
    "During recovery, those that are neither live nor packed yet."
    _admission: Admission = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._admission = Admission(self)

    # Asking --------------------------------------------------------------------------------------------------

    def allocate_number(self) -> int:
        """
        Return a number that was never given out before by this object.
        """
        self.last_number += 1
        return self.last_number

    def has(self, number: int) -> bool:
        """
        Tell whether there is an instance of that number. May be called in any thread.
        """
        if self._present.get(number >> PAGE_BITS, 0) >> (number & _SLOT_MASK) & 1:
            return True
        return self._plain is not None and self._plain.has(number)

    def number_of(self, workflow: str, instance_id: str) -> int | None:
        """
        Return the number of an instance, or None.
        """
        header = self._find_live(workflow, instance_id)
        return self._ended.number_of(workflow, instance_id) if header is None else header.number

    def newest(self, number: int) -> tuple[int, bool] | None:
        """
        Return the sequence number of an instance's newest record and whether the instance has ended, or None.
        """
        if self._plain is not None:
            self._plain.settle(number)
        live = self._live.get(number)
        if live is not None:
            return live.seq, live.completed_at is not None
        seq = self._ended.table.seq(number)
        return None if seq is None else (seq, True)

    def find(self, workflow: str, instance_id: str) -> InstanceHeader | None:
        """
        Return the header of an instance, or None.
        """
        header = self._find_live(workflow, instance_id)
        if header is not None:
            return header
        number = self._ended.number_of(workflow, instance_id)
        return None if number is None else self.header(number)

    def header(self, number: int) -> InstanceHeader:
        """
        Return the header of an instance: the same object as long as somebody holds it.

        Raises:
            KeyError: There is no such instance.
        """
        if self._plain is not None:
            self._plain.settle(number)
        live = self._live.get(number)
        if live is not None:
            return live
        header = self._handles.get(number)
        if header is None:
            header = self._ended.table.header(number)
            self._handles[number] = header
        return header

    def live(self) -> list[InstanceHeader]:
        """
        Return the headers of those that have not ended, and of the ended attached children of those, in order.
        """
        self._end_replay()
        return [self._live[number] for number in self._live_numbers(0)]

    def select(
        self,
        *,
        after: int = 0,
        limit: int | None = None,
        workflow: str | None = None,
        status: MetadataStatus | None = None,
    ) -> list[InstanceHeader]:
        """
        Return the headers of the first instances that match, in the order of their numbers.
        """
        self._end_replay()
        numbers = self._live_numbers(after)
        if workflow is not None:
            numbers = (number for number in numbers if self._live[number].workflow == workflow)
        if status is not None:
            numbers = (number for number in numbers if self._live[number].status is status)
        if status is None or status.is_terminal:
            numbers = merge(numbers, self._ended.table.numbers(after=after, workflow=workflow, status=status))
        return [self.header(number) for number in islice(numbers, limit)]

    def ended(self, workflow: str, until: float, limit: int) -> list[InstanceHeader]:
        """
        Return the headers of the first packed instances of a workflow that ended at a time or before, in that order.
        """
        self._end_replay()
        return [self.header(number) for number in self._ended.up_to(workflow, until, limit)]

    def first_end(self, workflow: str) -> float | None:
        """
        Return when the first of those ended, or None.
        """
        self._end_replay()
        return self._ended.first_end(workflow)

    def spans(self, number: int) -> array[int]:
        """
        Return the spans of an instance's records in their order, as an array of the caller's own.

        Raises:
            KeyError: There is no such instance.
        """
        if self._plain is not None:
            self._plain.settle(number)
        live = self._live.get(number)
        return self._ended.table.spans(number) if live is None else array("Q", _spans_of(live))

    def drop_spans(self, number: int, dead: set[int]) -> None:
        """
        Take note that some of an instance's records are no longer in the log, if there is such an instance.
        """
        if self._plain is not None:
            self._plain.settle(number)
        live = self._live.get(number)
        if live is not None:
            keep_spans(live, array("Q", (span for span in _spans_of(live) if span not in dead)))
        elif number in self._ended:
            left = (span for span in self._ended.table.spans(number) if span not in dead)
            self._ended.table.replace_spans(number, array("Q", left))

    def _find_live(self, workflow: str, instance_id: str) -> InstanceHeader | None:
        if self._plain is not None:
            self._plain.settle_name(workflow, instance_id)
        ids = self._live_ids.get(workflow)
        return None if ids is None else ids.get(instance_id)

    def _live_numbers(self, after: int) -> Iterator[int]:
        return filter(self._live.__contains__, self._order[bisect_right(self._order, after) :])

    # Writing -------------------------------------------------------------------------------------------------

    def admit(self, records: Sequence[InstanceRecord]) -> None:
        """
        Take note that *records* are about to be written.

        Raises:
            ValueError: They do not follow what is written or queued. Nothing was noted.
        """
        if self._plain is not None:
            self._end_replay()
        self._admission.admit(records)

    def fold(self, record: InstanceRecord, span: int = 0) -> None:
        """
        Take in the next durable record.

        Args:
            record: The record.
            span: That of its line; 0 if there is no log.

        Raises:
            ValueError: It cannot follow the ones before it.
        """
        if self._plain is not None:
            self._end_replay()
        number = record.instance
        live = self._live.get(number)
        if live is not None and record.kind in PROGRESS_KINDS and live.progress(record):
            if span:
                # As long as it runs, this is an array.
                spans = live.spans
                if isinstance(spans, array):
                    spans.append(span)
                else:
                    _add_span(live, span)
        elif live is not None or number in self._ended:
            self._apply(record, span, is_replay=False)
        elif isinstance(record, InstanceStarted):
            name = (record.workflow, record.instance_id)
            if not self._admission.has_start(record) and self.number_of(*name) is not None:
                raise ValueError(f"workflow {name[0]!r} has two instances {name[1]!r}")
            self._start(header_of(record), array("Q", (span,) if span else ()))
        else:
            raise ValueError(f"instance {number} has a {record.kind} record, but never started")
        self._admission.settle(record)

    def _apply(self, record: InstanceRecord, span: int, *, is_replay: bool) -> None:
        """Take in a record of an instance that exists."""
        live = self._live.get(record.instance)
        header = self.header(record.instance) if live is None else live
        ended_at = header.completed_at
        header.apply(record)
        if type(record) is InstanceRetired:
            self._remove(header, ended_at, span)
            return
        if type(record) is InstanceResumed:
            self._reopen(header, ended_at)
        if span:
            _add_span(header, span)
        if header.completed_at is not None:
            self._end(header, is_replay=is_replay)

    def _start(self, header: InstanceHeader, spans: array[int]) -> None:
        number = header.number
        self._present[number >> PAGE_BITS] = self._present.get(number >> PAGE_BITS, 0) | 1 << (number & _SLOT_MASK)
        self.last_number = max(self.last_number, number)
        self._add_live(header, spans)
        self._adopt(header)

    def _end(self, header: InstanceHeader, *, is_replay: bool) -> None:
        """Pack what has ended, unless it is kept for its parent, and what was kept for it."""
        parent = None if header.parent is None else header.parent_name
        if parent is not None and self._is_open(parent):
            self._kept.setdefault(parent, set()).add(header.number)
        else:
            self._pack(header.number, is_replay=is_replay)
        if self._kept:
            for child in self._kept.pop((header.workflow, header.instance_id), ()):
                self._pack(child, is_replay=is_replay)

    def _reopen(self, header: InstanceHeader, ended_at: float | None) -> None:
        """Have an instance live that was resumed, and that had ended then, if it had ended."""
        if header.has_forgotten:
            self.has_forgotten.add(header.number)
            self.unexamined.add(header.number)
        if header.number in self._live:
            self._stop_keeping(header)
        else:
            assert ended_at is not None
            self._unpack(header, ended_at)
        self._adopt(header)

    def _remove(self, header: InstanceHeader, ended_at: float | None, tombstone: int) -> None:
        """Drop what was retired."""
        number = header.number
        live = self._live.get(number)
        if live is not None:
            spans = array("Q", _spans_of(header))
            self._drop_live(header)
            self._stop_keeping(header)
            # Only recovery meets a parent that is retired while it has not ended.
            for child in self._kept.pop((header.workflow, header.instance_id), ()):
                self._pack(child, is_replay=False)
        else:
            assert ended_at is not None
            spans = self._ended.remove(header, ended_at)
            self._handles.pop(number, None)
        left = self._present[number >> PAGE_BITS] & ~(1 << (number & _SLOT_MASK))
        if left:
            self._present[number >> PAGE_BITS] = left
        else:
            del self._present[number >> PAGE_BITS]
        self.has_forgotten.discard(number)
        self.unexamined.discard(number)
        self.on_removed(number, spans, tombstone)

    # Live and packed -----------------------------------------------------------------------------------------

    def _is_open(self, name: _Name) -> bool:
        header = self._find_live(*name)
        return header is not None and header.completed_at is None

    def _add_live(self, header: InstanceHeader, spans: array[int]) -> None:
        number = header.number
        keep_spans(header, spans)
        self._live[number] = header
        ids = self._live_ids.get(header.workflow)
        if ids is None:
            ids = self._live_ids[header.workflow] = {}
        ids[header.instance_id] = header
        order = self._order
        if not order or number > order[-1]:
            order.append(number)
            return
        place = bisect_left(order, number)
        if order[place] == number:
            self._stale_count -= 1
        else:
            order.insert(place, number)

    def _drop_live(self, header: InstanceHeader) -> None:
        del self._live[header.number]
        del self._live_ids[header.workflow][header.instance_id]
        self._stale_count += 1
        if self._stale_count > _MIN_STALE and 2 * self._stale_count > len(self._order):
            self._order = list(filter(self._live.__contains__, self._order))
            self._stale_count = 0

    def _pack(self, number: int, *, is_replay: bool) -> None:
        header = self._live[number]
        self._ended.add(header, _spans_of(header))
        self._drop_live(header)
        if not self._snapshots:
            # Whoever holds it has no use for them.
            header.spans = b""
        if not is_replay:
            # Somebody may hold it. During recovery nobody does.
            self._handles[number] = header

    def _unpack(self, header: InstanceHeader, ended_at: float) -> None:
        """Have an instance live again that had ended. Of its row, only the spans are still true."""
        number = header.number
        spans = self._ended.remove(header, ended_at)
        self._handles.pop(number, None)
        self._add_live(header, spans)

    def _adopt(self, parent: InstanceHeader) -> None:
        """Keep the ended children of an instance that has begun, or goes on."""
        if not self._ended.has_children:
            return
        name = (parent.workflow, parent.instance_id)
        for number in self._ended.children_of(*name):
            header = self.header(number)
            assert header.completed_at is not None
            self._unpack(header, header.completed_at)
            self._kept.setdefault(name, set()).add(number)

    def _stop_keeping(self, header: InstanceHeader) -> None:
        parent = header.parent_name
        if parent is not None and (kept := self._kept.get(parent)) is not None:
            kept.discard(header.number)
            if not kept:
                del self._kept[parent]

    # Plain instances -----------------------------------------------------------------------------------------

    def is_new(self, number: int) -> bool:
        """
        Tell whether there is neither an instance nor an orphan of that number.
        """
        return number > self.last_number or not (self.has(number) or number in self._orphans)

    def live_ids(self, workflow: str) -> Mapping[str, InstanceHeader]:
        """
        Return the headers of a workflow's live instances by their ids: an object that changes with them.
        """
        return self._live_ids.setdefault(workflow, {})

    def begin(self, header: InstanceHeader, spans: array[int]) -> None:
        """
        Take in an instance that has not ended, and the spans of its records.
        """
        self._start(header, spans)

    def note_present(self, place: int, mask: int) -> None:
        """
        Take note that instances exist: those of a mask of 64 numbers, which are *place* times 64 and following.
        """
        self._present[place] = self._present.get(place, 0) | mask

    def _end_replay(self) -> None:
        """Have all instances live or packed: somebody asks for more than one, or recovery is over."""
        if self._plain is not None:
            plain, self._plain = self._plain, None
            plain.settle_all()

    # Recovery ------------------------------------------------------------------------------------------------

    def replay(self, record: InstanceRecord, span: int) -> None:
        """
        Take in the next record that recovery reads. Nobody may hold a header yet.

        What is known already is skipped. Compaction may have dropped any records of an instance that was retired later:
        so one that cannot follow what is known of its instance is noted as an orphan, until the retirement comes. So is
        the start of an instance whose name another has. That one must have been retired, too, before what is known
        became known.
        """
        number = record.instance
        if type(record) is InstanceRetired:
            self._replay_retirement(record, span)
        elif type(record) is InstanceStarted:
            self.replay_start(header_of(record), span)
        elif (newest := self.newest(number)) is None:
            self._add_orphan(number, span)
        elif record.seq > newest[0]:
            if newest[1] and type(record) is not InstanceResumed:
                self._add_orphan(number, span)
            else:
                self._apply(record, span, is_replay=True)

    def replay_start(self, header: InstanceHeader, span: int) -> None:
        """
        Do what ``replay`` does for a start, given the header of an instance that has just started.
        """
        number = header.number
        if self.has(number):
            return
        if number in self._orphans or self.number_of(header.workflow, header.instance_id) is not None:
            self._add_orphan(number, span)
        else:
            self._start(header, array("Q", (span,)))

    def replay_next(self, record: InstanceRecord, span: int) -> bool:
        """
        Do what ``replay`` does for a record that follows what is known of a live instance; return whether it does.
        """
        if self._plain is not None:
            self._plain.settle(record.instance)
        live = self._live.get(record.instance)
        if live is None or live.completed_at is not None or record.seq <= live.seq:
            return False
        self._apply(record, span, is_replay=True)
        return True

    def replay_progress(self, number: int, seq: int, at: float, span: int) -> bool:
        """
        Do what ``replay`` does for a record that says no more than that its instance makes progress.

        Args:
            number: The instance's number.
            seq: The record's place in the instance's journal.
            at: When it was made.
            span: That of its line.

        Returns:
            Whether it was done. If not, more than that may change: ``replay`` needs the record itself.
        """
        if self._plain is not None:
            self._plain.settle(number)
        header = self._live.get(number)
        if header is None or not header.is_plainly_running or seq <= header.seq:
            return False
        header.recoveries = 0
        header.seq = seq
        header.updated_at = at
        _add_span(header, span)
        return True

    def replay_batch(self, batch: Iterable[Entry], segment: int, other: Callable[[Entry, int], None]) -> None:
        """
        Do what ``replay`` does for records that say no more than that their instances make progress.

        Recovery may see millions of them, so they are looked at no closer than that takes.

        Args:
            batch: Lines of the log.
            segment: The segment that they were first written to.
            other: Called for each line in which there may be more, with its span.
        """
        live_of = self._live.get
        base = span_of(segment, 0, 1)
        for entry in batch:
            line, kind, number, seq, at, start, end = entry
            length = end - start
            span = base | start << 8 | (SIZE_CLASSES[length] if length < _SHORT else size_class(length))
            header = live_of(number) if kind in _PROGRESS and _STATUS_TEXT not in line else None
            if header is not None and seq > header.seq and header.is_plainly_running:
                header.recoveries = 0
                header.seq = seq
                header.updated_at = at
                _add_span(header, span)
                continue
            other(entry, span)

    def replay_lines(
        self, lines: Sequence[LogLine], segment: int, start: int, other: Callable[[Entry, int], None]
    ) -> int:
        """
        Do what ``replay`` does for lines that say only what is usual of their instances.

        Recovery may see millions of them, so they are looked at no closer than that takes.

        Args:
            lines: Lines that stand one behind the other.
            segment: The segment that they were first written to.
            start: Where in it the first of them begins.
            other: Called for each line in which there may be more, with its span.

        Returns:
            Where the last of them ends.
        """
        plain = self._plain = self._plain or PlainInstances(self, self._ended)
        running = plain.running
        texts = list(map(itemgetter(0), lines))
        # To look into all of them at once takes a fifth of the time.
        has_status = _STATUS_TEXT in b"\n".join(texts)
        spans, end = spans_of(segment, start, list(map(len, texts)))
        for (line, kind, digits, seq, at), span in zip(lines, spans, strict=True):
            if not (has_status and _STATUS_TEXT in line):
                if kind in _PROGRESS:
                    if (known := running.get(digits)) is not None and seq == NEXT_SEQS[len(known)]:
                        known.append(span)
                        known[NEWEST_AT] = at
                        continue
                elif kind == _COMPLETED:
                    if (known := running.get(digits)) is not None and seq == NEXT_SEQS[len(known)]:
                        plain.complete(digits, at, span)
                        continue
                elif kind == _STARTED and seq == b"1" and plain.start(line, digits, at, span):
                    continue
                if self._replay_live(kind, int(digits), int(seq), float(at), span):
                    continue
            offset = offset_of(span)
            other((line, kind, int(digits), int(seq), float(at), offset, offset + len(line) + 1), span)
            # Somebody may have asked for all instances.
            self._plain = plain
        return end

    def _replay_live(self, kind: bytes, number: int, seq: int, at: float, span: int) -> bool:
        """Take in a line without a status message, if it is the next one of a live instance that says the usual."""
        header = self._live.get(number)
        if header is None or seq <= header.seq:
            return False
        if kind in _PROGRESS and header.is_plainly_running:
            header.recoveries = 0
            header.seq = seq
            header.updated_at = at
            _add_span(header, span)
            return True
        if kind == _COMPLETED and header.completed_at is None:
            header.complete(seq, at)
            _add_span(header, span)
            self._end(header, is_replay=True)
            return True
        return False

    def orphans(self) -> dict[int, int]:
        """
        Return, by number, the first spans of records that cannot follow those of their instances before them.

        Mostly there are none before them. In a log that is whole, nothing is left of these at its end.
        """
        self._end_replay()
        return self._orphans.copy()

    def _add_orphan(self, number: int, span: int) -> None:
        self.last_number = max(self.last_number, number)
        self._orphans.setdefault(number, span)

    def _replay_retirement(self, record: InstanceRetired, span: int) -> None:
        """Whatever is known of the instance may be older than its end, or newer than this."""
        number = record.instance
        self.last_number = max(self.last_number, number)
        self._orphans.pop(number, None)
        if self.has(number):
            header = self.header(number)
            self._remove(header, header.completed_at, span)

    # Snapshots -----------------------------------------------------------------------------------------------

    def snapshot(self) -> IndexSnapshot:
        """
        Return all that is known, to be kept elsewhere. Takes milliseconds for a million instances.
        """
        self._end_replay()
        pages, workflows, names, children, ends = self._ended.to_parts()
        snapshot = IndexSnapshot(
            last_number=self.last_number,
            pages=pages,
            workflows=workflows,
            names=names,
            children=children,
            ends=ends,
            has_forgotten=self.has_forgotten.copy(),
            unexamined=self.unexamined.copy(),
            live=self._live.copy(),
        )
        self._snapshots.add(snapshot)
        return snapshot

    @classmethod
    def restored(cls, snapshot: IndexSnapshot, on_removed: OnRemoved = _ignore_removal) -> HeaderIndex:
        """
        Return an index that knows what a snapshot says.

        What was live then may have been read later than the rest, and one instance later than another: what has ended
        is packed, unless it is kept for its parent. To be followed by ``replay`` of all records since the snapshot was
        made.

        Args:
            snapshot: A snapshot that was read back: its parts belong to the index from then on.
            on_removed: Told of each instance that is retired.
        """
        self = cls(on_removed)
        self.last_number = snapshot.last_number
        self.has_forgotten = snapshot.has_forgotten
        self.unexamined = snapshot.unexamined
        self._ended = EndedIndex.from_parts(
            snapshot.pages, snapshot.workflows, snapshot.names, snapshot.children, snapshot.ends
        )
        present = self._present = dict(self._ended.table.masks())
        live = {number: live for number, live in sorted(snapshot.live.items()) if not self.has(number)}
        self._live = live
        self._order = list(live)
        for number, header in live.items():
            self._live_ids.setdefault(header.workflow, {})[header.instance_id] = header
            place = number >> PAGE_BITS
            present[place] = present.get(place, 0) | 1 << (number & _SLOT_MASK)
        self.has_forgotten |= {number for number, header in live.items() if header.has_forgotten}
        for header in list(live.values()):
            if header.completed_at is not None:
                self._end(header, is_replay=True)
            else:
                self._adopt(header)
        return self
