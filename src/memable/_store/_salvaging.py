"""
Decides what of a damaged log is kept, and what is told of the rest.

Decided here: which instances may have lost something. One has, for sure, if a sequence number is missing: unless it was
resumed later with something to forget, and there is no hole in the log where it is missing; then a compaction has left
it out. It may have, if it has not ended and there is a hole behind its newest record: what came next may have been in
there. A hole of which it is known what was in it concerns nobody else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import attrs

from .._error_info import describe_exception
from .._errors import RecordsLostError, StoreCorruptedError
from .._frames import parse_line
from .._header import PROGRESS_KINDS, InstanceHeader
from .._lost_records import LostRecord, described
from .._mending import Mended, mend
from .._record_json import decode_record
from .._records import (
    InstanceBlocked,
    InstanceRecord,
    InstanceResumed,
    InstanceRetired,
    InstanceStarted,
    StoreClosed,
    StoreOpened,
)
from .._scan import record_of
from ._held import LogFilesHeld
from ._index import HeaderIndex
from ._survey import Believed, Hole, Survey

_PROGRESS = frozenset(kind.encode() for kind in PROGRESS_KINDS)
_RETIRED = InstanceRetired.kind.encode()
_STARTED = InstanceStarted.kind.encode()
_STATUS = b'"status":'
#: So many records are named in an error.
_MAX_NAMED = 5


@attrs.frozen
class Casualty:
    """
    An instance that has lost something, or may have.
    """

    number: int | None
    "Its number; None if it is known only from what its parent has recorded."
    name: tuple[str, str] | None
    "Workflow and instance id; None if they are lost, too."
    fate: str
    "``blocked``, ``ended`` (and stays so) or ``dropped``."
    missing: tuple[tuple[int, int], ...] = ()
    "The first and the last sequence numbers that are lost for sure."
    lost: tuple[LostRecord, ...] = ()
    "Those of the lost records of which it is known what they were."
    dropped: tuple[tuple[LostRecord, str], ...] = ()
    "Records that were intact and cannot be kept, and why."
    reason: str = ""
    "What else is to be said."

    def __str__(self) -> str:
        who = f"instance {self.number}" if self.name is None else f"{self.name[0]!r} {self.name[1]!r}"
        return f"{who}: {self.told}"

    @property
    def told(self) -> str:
        """
        What is lost, in words.
        """
        parts = [self.reason] if self.reason else []
        if self.lost:
            names = [_named(record) for record in self.lost[:_MAX_NAMED]]
            more = len(self.lost) - len(names)
            parts.append(f"lost: {', '.join(names)}{f' and {more} more' if more else ''}")
        known = {record.seq for record in self.lost}
        ranges = [one for one in self.missing if not known.issuperset(range(one[0], one[1] + 1))]
        if ranges:
            told = ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in ranges[:_MAX_NAMED])
            parts.append(f"its records {told}{', ...' if len(ranges) > _MAX_NAMED else ''} are lost")
        if self.dropped:
            told = ", ".join(f"{_named(record)} ({why})" for record, why in self.dropped[:_MAX_NAMED])
            parts.append(f"not kept: {told}{', ...' if len(self.dropped) > _MAX_NAMED else ''}")
        return "; ".join(parts)


def _explains_gaps(record: InstanceRecord) -> bool:
    """Tell whether it is no wonder that records before this one are missing."""
    if isinstance(record, InstanceResumed):
        return record.anew or bool(record.forgotten)
    return isinstance(record, InstanceBlocked) and record.error.matches(RecordsLostError)


def _named(record: LostRecord) -> str:
    path = "" if record.path is None else f" of {record.path!r}"
    return f"{record.kind}{path} (record {record.seq})"


@attrs.define
class _Startless:
    count: int = 0
    first_seq: int = 0
    last_seq: int = 0


class Salvaging:
    """
    What is to be kept of one log.
    """

    def __init__(self, held: LogFilesHeld, survey: Survey, durable_end: tuple[int, int] | None) -> None:
        """
        Read it all, and decide.

        Args:
            held: Its files. Nobody writes to them meanwhile.
            survey: Reads them.
            durable_end: Up to where, segment and offset, the log is known to have been durable.
        """
        self._held = held
        self._survey = survey
        self._index = HeaderIndex()
        self._holes = 0
        "How many there are of which it is not known what they held."
        self._seen: dict[int, int] = {}
        "How many of those were before the newest record of an instance. 0 if it is not here."
        self._missing: dict[int, list[tuple[int, int]]] = {}
        self._suspected: dict[int, list[tuple[int, int]]] = {}
        "What is missing where there is no hole."
        self._lost: dict[int, list[LostRecord]] = {}
        self._refused: dict[int, list[int]] = {}
        "Places of records that could not follow those before them."
        self._newest: dict[int, int] = {}
        "Of such instances, the newest sequence number seen."
        self._startless: dict[int, _Startless] = {}
        self._replaced: list[InstanceHeader] = []
        self._left_out: set[int] = set()
        "Places of lines that are not kept, though their instances are."
        self._blocked: dict[int, InstanceBlocked] = {}
        self._lost_children: dict[tuple[str, str], tuple[str, str]] = {}
        "Of children that are lost, and awaited: their names, and the parents'."
        self.doubtful_count = 0
        "How many instances that had ended may have gone on, or been removed, in what is lost."
        self.casualties: list[Casualty] = []
        self.holes: list[Hole] = []
        for found in survey.walk():
            if isinstance(found, Hole):
                self._take_hole(found)
            else:
                self._take(found)
        tail = held.names[-1]
        if durable_end is not None and survey.tail_end is not None and durable_end > (tail.last, survey.tail_end):
            self._take_hole(Hole(str(tail), survey.tail_end, 0, None))
        self._decide()

    @property
    def last_number(self) -> int:
        """
        The greatest number that an instance may have had.
        """
        # A record of a start has more bytes than that.
        known = (self._index.last_number, self._survey.last_number, *self._lost, *self._startless)
        return max(known) + (self._survey.lost_bytes // 64 if self._holes else 0)

    @property
    def blocked(self) -> list[InstanceBlocked]:
        """
        The records to be added.
        """
        return [self._blocked[number] for number in sorted(self._blocked)]

    @property
    def instance_count(self) -> int:
        """
        How many instances are kept.
        """
        return sum(1 for _ in self._headers())

    def lines(self) -> Iterator[Believed]:
        """
        Yield the lines that are kept, in order. Reads the log again.
        """
        for found in self._survey.walk():
            if isinstance(found, Believed):
                _, kind, number, *_ = found.entry
                if number and kind != _RETIRED and self._index.has(number) and found.place not in self._left_out:
                    yield found

    # Reading -------------------------------------------------------------------------------------------------

    def _take_hole(self, hole: Hole) -> None:
        self.holes.append(hole)
        if hole.lost is None:
            self._holes += 1
            return
        for record in hole.lost:
            self._lost.setdefault(record.instance, []).append(record)

    def _take(self, found: Believed) -> None:
        line, kind, number, seq, at, _, _ = found.entry
        if not number:
            return
        if kind != _STARTED:
            self._note_gap(number, seq)
        if self._holes:
            self._seen[number] = self._holes
        if kind in _PROGRESS and _STATUS not in line and self._index.replay_progress(number, seq, at, found.place):
            return
        record = record_of(found.entry, "")
        assert not isinstance(record, StoreOpened | StoreClosed)
        if isinstance(record, InstanceRetired):
            self._forget(number)
            self._index.replay(record, found.place)
            return
        if _explains_gaps(record):
            self._suspected.pop(number, None)
        self._replay(record, found.place)

    def _note_gap(self, number: int, seq: int) -> None:
        newest = self._index.newest(number)
        before = self._newest.get(number, 0 if newest is None else newest[0])
        if before and seq > before + 1:
            is_certain = self._holes > self._seen.get(number, 0)
            (self._missing if is_certain else self._suspected).setdefault(number, []).append((before + 1, seq - 1))
        if number in self._refused:
            self._newest[number] = max(before, seq)

    def _replay(self, record: InstanceRecord, place: int) -> None:
        number = record.instance
        newest = self._index.newest(number)
        if isinstance(record, InstanceStarted) and newest is None:
            other = self._index.find(record.workflow, record.instance_id)
            if other is not None:
                # Only one that was removed leaves its name to another.
                self._replaced.append(other)
                self._forget(other.number)
                self._index.replay(InstanceRetired(instance=other.number, seq=other.seq + 1, at=record.at), place)
            self._startless.pop(number, None)
        elif newest is None:
            one = self._startless.setdefault(number, _Startless(0, record.seq))
            one.count, one.last_seq = one.count + 1, record.seq
            return
        try:
            if newest is not None and record.seq <= newest[0]:
                raise ValueError("it follows a newer one")
            self._index.replay(record, place)
            newest = self._index.newest(number)
            if newest is None or newest[0] < record.seq:
                raise ValueError("it follows the end")
        except ValueError:
            self._refused.setdefault(number, []).append(place)
            self._newest[number] = max(record.seq, 0 if newest is None else newest[0])

    def _forget(self, number: int) -> None:
        for of in (
            self._seen,
            self._missing,
            self._suspected,
            self._lost,
            self._refused,
            self._newest,
            self._startless,
        ):
            of.pop(number, None)

    # Deciding ------------------------------------------------------------------------------------------------

    def _headers(self) -> Iterator[InstanceHeader]:
        after = 0
        while headers := self._index.select(after=after, limit=1000):
            yield from headers
            after = headers[-1].number

    def _decide(self) -> None:
        for number, ranges in self._suspected.items():
            known = {record.seq for record in self._lost.get(number, ())}
            if not all(known.issuperset(range(first, last + 1)) for first, last in ranges):
                self._missing.setdefault(number, []).extend(ranges)
        for header in self._replaced:
            name = header.workflow, header.instance_id
            reason = "its removal is lost, and its name has another instance now"
            self.casualties.append(Casualty(header.number, name, "dropped", reason=reason))
        for number, one in sorted(self._startless.items()):
            reason = f"its start is lost, so that its {one.count} intact record(s) cannot be kept"
            self.casualties.append(self._casualty(number, self._lost_name(number), "dropped", reason))
        for number in sorted(self._lost):
            if not self._index.has(number) and number not in self._startless:
                reason = "nothing of it is left"
                self.casualties.append(self._casualty(number, self._lost_name(number), "dropped", reason))
        unfinished = [header.number for header in self._index.live() if header.completed_at is None]
        troubled = {*self._missing, *self._lost, *self._refused}
        troubled.update(number for number in unfinished if self._seen.get(number, 0) < self._holes)
        for number in sorted(troubled):
            if self._index.has(number):
                self._mend(number)
        if self._holes or self.casualties:
            for number in unfinished:
                if number not in self._blocked and self._index.has(number):
                    self._check_relatives(self._index.header(number))
        self._name_lost_children()
        if self._holes:
            self.doubtful_count = sum(
                header.completed_at is not None and self._seen.get(header.number, 0) < self._holes
                for header in self._headers()
            )
        # Those without a number at the end.
        self.casualties.sort(key=lambda casualty: (casualty.number is None, casualty.number or 0))

    def _lost_name(self, number: int) -> tuple[str, str] | None:
        """Return workflow and instance id of an instance whose start is lost, if that start is known."""
        return next((record.name for record in self._lost.get(number, ()) if record.name is not None), None)

    def _name_lost_children(self) -> None:
        told = {casualty.name for casualty in self.casualties if casualty.fate == "dropped"}
        nameless = [one.number for one in self.casualties if one.fate == "dropped" and one.name is None]
        lost = {name: parent for name, parent in self._lost_children.items() if name not in told}
        for name, parent in lost.items():
            reason = f"it is lost, or was removed; its parent {parent[0]!r} {parent[1]!r} had started it"
            if len(nameless) == len(lost) == 1:
                # Most likely; but there may be others of which nothing at all is left.
                reason += f"; it may be instance {nameless[0]}"
            self.casualties.append(Casualty(None, name, "dropped", reason=reason))

    def _casualty(
        self,
        number: int,
        name: tuple[str, str] | None,
        fate: str,
        reason: str = "",
        dropped: Sequence[tuple[LostRecord, str]] = (),
    ) -> Casualty:
        return Casualty(
            number,
            name,
            fate,
            tuple(self._missing.get(number, ())),
            tuple(self._lost.get(number, ())),
            tuple(dropped),
            reason,
        )

    def _load(self, number: int) -> tuple[list[int], list[InstanceRecord]]:
        places = sorted({*self._index.spans(number), *self._refused.get(number, ())})
        records: list[InstanceRecord] = []
        for place, line in zip(places, self._held.read_lines(places), strict=True):
            parsed = parse_line(line, self._survey.seed)
            if parsed is None:
                raise StoreCorruptedError(
                    location=str(self._held.path(self._held.name_of(place))),
                    offset=0,
                    problem="a record was intact a moment ago, and is not now; find out what is wrong with the disk",
                )
            record = decode_record(parsed.text)
            assert not isinstance(record, StoreOpened | StoreClosed)
            records.append(record)
        return places, records

    def _mended(self, number: int) -> tuple[Mended, Callable[[], list[tuple[LostRecord, str]]]]:
        """Return what is to be kept of an instance, and what drops the rest and returns what is told of it."""
        places, records = self._load(number)
        mended = mend(records, lambda workflow, instance_id: self._index.find(workflow, instance_id) is None)
        assert mended is not None
        return mended, partial(self._drop, places, records, mended)

    def _drop(
        self, places: Sequence[int], records: Sequence[InstanceRecord], mended: Mended
    ) -> list[tuple[LostRecord, str]]:
        self._left_out.update(places[at] for at in mended.dropped)
        parent = mended.header.workflow, mended.header.instance_id
        self._lost_children.update(dict.fromkeys(mended.lost_children, parent))
        return [(described(records[at]), why) for at, why in sorted(mended.dropped.items())]

    def _mend(self, number: int) -> None:
        mended, drop = self._mended(number)
        header, dropped = mended.header, drop()
        name = header.workflow, header.instance_id
        if header.completed_at is not None:
            self.casualties.append(self._casualty(number, name, "ended", "", dropped))
            return
        reason = ""
        if self._seen.get(number, 0) < self._holes:
            reason = f"what was recorded of it after its record {header.seq} may be lost"
        elif number not in self._missing and number not in self._lost and not dropped:
            return
        self._block(self._casualty(number, name, "blocked", reason, dropped), header)

    def _block(self, casualty: Casualty, header: InstanceHeader) -> None:
        self.casualties.append(casualty)
        error = RecordsLostError(workflow=header.workflow, instance_id=header.instance_id, lost=casualty.told)
        known = (header.seq, *(record.seq for record in casualty.lost), *(last for _, last in casualty.missing))
        self._blocked[header.number] = InstanceBlocked(
            instance=header.number,
            seq=max(known) + 1,
            at=max(header.updated_at, self._survey.newest_at),
            error=attrs.evolve(describe_exception(error), traceback=""),
            needs_resume=True,
        )

    def _check_relatives(self, header: InstanceHeader) -> None:
        """Block an instance that waits for a child that is lost, or whose parent is: they would not know."""
        parent = header.parent_name
        is_orphan = parent is not None and self._index.find(*parent) is None
        if not is_orphan and not header.has_children:
            return
        name = header.workflow, header.instance_id
        mended, drop = self._mended(header.number)
        if not is_orphan and not mended.lost_children:
            return
        reason = ""
        if is_orphan:
            assert parent is not None
            reason = f"its parent {parent[0]!r} {parent[1]!r} is lost, or was removed"
        self._block(self._casualty(header.number, name, "blocked", reason, drop()), mended.header)
