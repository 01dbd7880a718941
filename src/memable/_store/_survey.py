"""
Reads a log that may be damaged: all of its lines that can be believed, in order, and where others may be missing.

Synchronous. Changes nothing. What is not damaged is read as an opener reads it, so both judge alike; where that gives
up, the intact lines behind are looked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast
from zlib import crc32

import attrs

from .._compacted import CompactedScan
from .._errors import StoreCorruptedError, StoreVersionError
from .._faults import Fault, FaultKind
from .._frames import LogState, Sealed, SegmentHeader, parse_line, seed_of
from .._lost_records import LostRecord, lost_record
from .._records import StoreClosed, StoreOpened
from .._salvage import Damaged, Intact, Key, Run, choose_runs, corrected, find_lines, readable
from .._scan import Entry, LogScan, entry_of, record_of
from .._segments import SegmentName, segment
from .._spans import span_of
from ._files import read_places
from ._held import LogFilesHeld
from ._lockfile import LogNotes
from ._segment_headers import SegmentHeaders, fault_of


class Believed(NamedTuple):
    """
    A line that can be believed. A named tuple: there may be millions.
    """

    entry: Entry
    place: int
    "Where it is, as a span of the file that it is in now, whose number is the first that the file stands for."


@attrs.frozen
class Hole:
    """
    A place in the log where lines are missing that were once there.
    """

    file: str
    offset: int
    length: int
    "How many bytes of the file are affected. Missing files are not counted."
    lost: tuple[LostRecord, ...] | None
    "What was there; None if that is not known."


class _Bad(NamedTuple):
    """
    Something that is not believed, and has not been judged.
    """

    file: str
    start: int
    end: int
    raw: bytes
    "Its first bytes; empty if they are known to be no line that is missing elsewhere."


@attrs.define
class _Tail:
    """
    What was found at the end of a log, and may be torn.
    """

    start: int
    "Where looking began."
    end: int = attrs.field(default=attrs.Factory(lambda self: self.start, takes_self=True), init=False)
    "Where what was released ends."
    held: list[_Bad | tuple[Intact, Entry]] = attrs.field(factory=list["_Bad | tuple[Intact, Entry]"], init=False)
    "What was not."

    def last_line(self) -> int:
        """
        Return the place of the last line that is held; -1 if none is.
        """
        return max((at for at, one in enumerate(self.held) if not isinstance(one, _Bad)), default=-1)

    def begins_batch(self, found: Intact) -> bool:
        """
        Tell whether a line is of another batch than the ones that are held.
        """
        last = self.last_line()
        if last < 0:
            return False
        held = cast("tuple[Intact, Entry]", self.held[last])[0]
        return held.parsed.batch != found.parsed.batch


class Survey:
    """
    One reading of a log. ``walk`` may be called several times: while nothing moves, it gives the same.
    """

    def __init__(self, held: LogFilesHeld, notes: LogNotes, store_ids: Sequence[str] = ()) -> None:
        """
        Read the headers.

        Args:
            held: The files.
            notes: What the lock file says.
            store_ids: What the store's id may be, if no header tells.

        Raises:
            StoreVersionError: A newer release wrote it.
        """
        self._held = held
        self._notes = notes
        self.faults: list[Fault] = []
        "Of the last walk."
        known = SegmentHeaders(held, store_ids)
        self.headers, self._starts, self._header_faults = known.headers, known.starts, known.faults
        self.store_id = known.store_id
        self.seed = seed_of(self.store_id)
        self._reset()

    # Walking -------------------------------------------------------------------------------------------------

    def _reset(self) -> None:
        self.faults = list(self._header_faults)
        self._fault_places = {(fault.file, fault.offset): at for at, fault in enumerate(self.faults)}
        self._refused = set(self._fault_places)
        "Where an opener gives up."
        self.record_count = 0
        self.session, self.closed, self.durability = 0, True, "fsync"
        self.crashed: set[int] = set()
        self.newest_at = 0.0
        self.last_number = 0
        self.next_batch = 0
        self.torn: tuple[int, int, int] | None = None
        "Of the torn tail: where it begins, how many bytes, how many batches."
        self.tail_end: int | None = None
        "Where the last segment ends, without that."
        self.lost_bytes = 0
        "How many bytes are damaged."
        self._due: Key | None = (0, 0)
        "The line that is due, if that is known."
        self._state: LogState | None = LogState()
        "What the log has come to, if it is known for sure."
        self._last: tuple[int, Key] = (0, (-1, -1))
        "Session and place of the last line that was believed."
        self._bad: list[_Bad] = []
        self._is_only_header = False
        "Whether the file that was damaged last has nothing but a header that is damaged."

    def walk(self) -> Iterator[Believed | Hole]:
        """
        Yield what there is, in order.

        Raises:
            OSError: It cannot be read.
        """
        self._reset()
        due = 1
        for name in self._held.names:
            if name.first != due:
                first, last = min(due, name.first), max(due, name.first) - 1
                self._miss_segments(first, last)
                self._state = None
            due = name.last + 1
            yield from self._walk_file(name)
        yield from self._end(due)

    def _end(self, due: int) -> Iterator[Hole]:
        last = self._held.names[-1]
        noted = self._notes.tail
        if last.is_compacted or last.last < noted:
            self._miss_segments(due, max(due, noted))
        if self._bad:
            yield self._hole(None)

    def _miss_segments(self, first: int, last: int) -> None:
        which = f"segment {first} is" if first == last else f"the segments {first} to {last} are"
        name = str(segment(first))
        self._add(Fault(FaultKind.MISSING, name, 0, f"{which} missing, though the log went on behind"))
        self._bad.append(_Bad(name, 0, 0, b""))
        sizes = self._held.sizes.values()
        self.lost_bytes += (last - first + 1) * max(*sizes, 0, 16 * 1024 * 1024)

    def _walk_file(self, name: SegmentName) -> Iterator[Believed | Hole]:
        header, size = self.headers[name], self._held.sizes[name]
        if header is None:
            self._state = None
            if name.is_compacted:
                self._due = None
            if self._due is None:
                # How much there was is not known.
                self._bad.append(_Bad(str(name), 0, 0, b""))
            # Of a file of another store no line is intact: it is as if it were not there.
            yield from self._salvage(name, self._starts.get(name, 0), size)
            return
        self._note_state(header.state)
        yield from self._cross_border(name, header.state)
        if name.is_compacted:
            yield from self._walk_compacted(name, header)
        else:
            yield from self._walk_plain(name, header)

    def _note_state(self, state: LogState) -> None:
        self.newest_at = max(self.newest_at, state.newest_at)
        self.last_number = max(self.last_number, state.last_number)

    def _cross_border(self, name: SegmentName, state: LogState) -> Iterator[Hole]:
        before, due = self._state, (state.next_batch, 0)
        if before is not None:
            # A session may be known to be closed from the lock file alone: on a full disk it is noted there.
            is_reopened = before.closed and not state.closed
            if (before.session, before.next_batch) != (state.session, state.next_batch) or is_reopened:
                problem = (
                    f"the segment begins with batch {state.next_batch} of session {state.session}, though the log "
                    f"before it ends with batch {before.next_batch - 1} of session {before.session}"
                )
                self._add(Fault(FaultKind.MISSING, str(name), 0, problem))
        elif self._due is not None and self._due != due and not self._bad:
            problem = f"the log before it ends within or before batch {self._due[0]}, this begins with {due[0]}"
            self._add(Fault(FaultKind.MISSING, str(name), 0, problem))
        is_whole = self._due is not None and self._due >= due
        if not is_whole and (self._due is not None or self._bad):
            if not self._bad:
                self._bad.append(_Bad(str(name), 0, 0, b""))
            yield self._hole(due)
        self._bad.clear()
        self._due = due
        self.session, self.closed, self.durability = state.session, state.closed, state.durability
        self.crashed = set(state.crashed)
        self.next_batch = max(self.next_batch, state.next_batch)

    def _walk_plain(self, name: SegmentName, header: SegmentHeader) -> Iterator[Believed | Hole]:
        location, size, start = str(self._held.path(name)), self._held.sizes[name], self._starts[name]
        is_sealed = name != self._held.names[-1]
        scan = LogScan.at(location, self.seed, start, header.state, is_sealed=is_sealed)
        checksum = crc32(self._held.file(name).read_at(0, start))
        is_whole = False
        try:
            for chunk in self._held.chunks(name, start, size):
                checksum = crc32(chunk, checksum)
                for batch in scan.feed(chunk):
                    yield from self._believe_batch(name, batch)
            scan.finish()
            is_whole = True
        except StoreCorruptedError as exc:
            self._refused.add((str(name), exc.offset))
            self._add(fault_of(FaultKind.DAMAGED, name, exc))
        except StoreVersionError:
            # Which one it is, is found below.
            pass
        self.session, self.closed, self.durability = scan.session, scan.closed, scan.durability
        self.crashed, self.next_batch = set(scan.crashed), max(self.next_batch, scan.next_batch)
        self._due = (scan.next_batch, 0)
        self._last = (scan.session, max(self._last[1], (scan.next_batch - 1, 1 << 60)))
        if is_whole:
            self._state = scan.state(0)
            if is_sealed:
                self._check_seal(name, self._state, Sealed(size, checksum))
            else:
                self.tail_end = scan.good_end
                if scan.torn_batch_count:
                    self.torn = (scan.good_end, size - scan.good_end, scan.torn_batch_count)
            return
        self._state = None
        yield from self._salvage(name, scan.good_end, size)

    def _check_seal(self, name: SegmentName, state: LogState, found: Sealed) -> None:
        """Check that a segment whose lines are all intact is, as a whole, what the next file says that it was."""
        following = self.headers[self._held.names[self._held.names.index(name) + 1]]
        if following is None or following.segment != name.last + 1 or following.before in {None, found}:
            return
        if (state.session, state.next_batch) == (following.state.session, following.state.next_batch):
            # Otherwise batches are missing at its end, which is told.
            self._refute(name, found.size)

    def _refute(self, name: SegmentName, size: int) -> None:
        problem = (
            "all records in it are intact, and yet it is not, as a whole, what it was when it was complete: its length "
            "or its checksum differs from what was noted then"
        )
        self._add(Fault(FaultKind.CHECKSUM, str(name), 0, problem, size))

    def _believe_batch(self, name: SegmentName, batch: Sequence[Entry]) -> Iterator[Believed]:
        first = name.first
        for entry in batch:
            self.record_count += 1
            self._note(entry)
            yield Believed(entry, span_of(first, entry[5], entry[6] - entry[5]))

    def _note(self, entry: Entry) -> None:
        self.newest_at = max(self.newest_at, entry[4])
        self.last_number = max(self.last_number, entry[2])

    def _walk_compacted(self, name: SegmentName, header: SegmentHeader) -> Iterator[Believed | Hole]:
        location, start = str(self._held.path(name)), self._starts[name]
        compacted = header.compacted
        assert compacted is not None
        end = min(start + compacted.size, self._held.sizes[name])
        self._state = self._due = None
        try:
            places = read_places(self._held.file(name), location)[1]
        except StoreCorruptedError as exc:
            self._add(fault_of(FaultKind.MAP, name, exc))
            yield from self._salvage(name, start, end)
            if end < start + compacted.size:
                self._bad.append(_Bad(str(name), end, end, b""))
            return
        scan = CompactedScan(location, self.seed, compacted, places.stretches(), start)
        good_end = start
        last: Entry | None = None
        is_whole = False
        try:
            for chunk in self._held.chunks(name, start, end):
                for entry, _ in scan.feed(chunk):
                    yield from self._believe_batch(name, (entry,))
                    last = entry
            scan.finish()
            is_whole = True
        except StoreCorruptedError as exc:
            self._refused.add((str(name), exc.offset))
            self._add(fault_of(FaultKind.DAMAGED, name, exc))
        except StoreVersionError:
            # Which one it is, is found below.
            pass
        if last is not None:
            parsed = parse_line(last[0], self.seed)
            assert parsed is not None
            good_end = last[6]
            self._last = (parsed.session, (parsed.batch, parsed.position))
        if is_whole:
            if compacted.checksum not in {None, scan.checksum}:
                self._refute(name, self._held.sizes[name])
            return
        if good_end >= end:
            # All that is there is intact, but it was more.
            self._bad.append(_Bad(str(name), end, end, b""))
        yield from self._salvage(name, good_end, end)

    # What is damaged -----------------------------------------------------------------------------------------

    def _salvage(self, name: SegmentName, start: int, end: int) -> Iterator[Believed | Hole]:
        """Yield what can be believed of a file from *start* on."""
        chosen = self._chosen(name, start, end)
        is_tail = name == self._held.names[-1] and not name.is_compacted
        tail = _Tail(start)
        for found, run in self._runs(name, start, end):
            known = len(self._bad)
            entry = None
            if isinstance(found, Damaged):
                self._damage(name, found)
            elif run not in chosen:
                self._misplace(name, found)
            else:
                entry = self._entry(name, found)
            if is_tail:
                # Whether it is torn is known when more has come.
                tail.held.extend(self._bad[known:])
                del self._bad[known:]
                if entry is not None:
                    assert isinstance(found, Intact)
                    if tail.begins_batch(found):
                        yield from self._release(name, tail)
                    tail.held.append((found, entry))
                    if found.parsed.is_last:
                        yield from self._release(name, tail)
            elif entry is not None:
                assert isinstance(found, Intact)
                yield from self._believe(name, found, entry)
        if is_tail:
            yield from self._cut(name, tail, end)

    def _release(self, name: SegmentName, tail: _Tail) -> Iterator[Believed | Hole]:
        """Yield what is not torn, since it is whole, or something follows."""
        last = tail.last_line()
        for one in tail.held[: last + 1]:
            if isinstance(one, _Bad):
                self._bad.append(one)
            else:
                yield from self._believe(name, *one)
                tail.end = one[0].end
        del tail.held[: last + 1]

    def _cut(self, name: SegmentName, tail: _Tail, end: int) -> Iterator[Hole]:
        """Take what is behind the last whole batch for torn, as an opener does if there is no proof."""
        first = next((at for at, one in enumerate(tail.held) if not isinstance(one, _Bad)), None)
        torn_from = tail.end
        if first is not None:
            # A batch that is not whole, and yet proves that what is before it was.
            found = cast("tuple[Intact, Entry]", tail.held[first])[0]
            self._bad.extend(one for one in tail.held[:first] if isinstance(one, _Bad))
            torn_from = found.start
            if self._bad and self._due != found.key:
                yield self._hole(found.key)
            self._bad.clear()
        self.tail_end = torn_from
        self.faults = [
            fault
            for fault in self.faults
            if fault.file != str(name) or fault.offset < torn_from or (fault.file, fault.offset) in self._refused
        ]
        self._fault_places = {(fault.file, fault.offset): at for at, fault in enumerate(self.faults)}
        if torn_from < end:
            self.torn = (torn_from, end - torn_from, 1)
        if self.headers[name] is None and torn_from == tail.start and not self._is_only_header:
            # It had its header before it had its name. Whether it had records is not known.
            self._bad.append(_Bad(str(name), 0, end, b""))

    def _runs(self, name: SegmentName, start: int, end: int) -> Iterator[tuple[Intact | Damaged, int]]:
        """Yield what there is, with the number of the run that a line belongs to: -1 if it cannot belong here."""
        low, high = self._bounds(name)
        number = -1
        is_open = False
        session_before, due = 0, (-1, -1)
        for found in find_lines(self._held.chunks(name, start, end), self.seed, start):
            if isinstance(found, Damaged):
                is_open = False
                yield found, -1
                continue
            session, key = found.parsed.session, found.key
            if not (low[0] <= session <= high[0] and low[1] < key < high[1]):
                is_open = False
                yield found, -1
                continue
            is_next = key >= due if name.is_compacted else key == due
            if not (is_open and is_next and session >= session_before):
                number += 1
            is_open = True
            session_before, due = session, _following(found)
            yield found, number

    def _chosen(self, name: SegmentName, start: int, end: int) -> set[int]:
        runs: list[Run] = []
        for found, number in self._runs(name, start, end):
            if number < 0 or isinstance(found, Damaged):
                continue
            session = found.parsed.session
            if number == len(runs):
                runs.append(Run(found.key, found.key, session, session, 1))
            else:
                runs[-1] = runs[-1]._replace(last=found.key, last_session=session, lines=runs[-1].lines + 1)
        return choose_runs(runs)

    def _bounds(self, name: SegmentName) -> tuple[tuple[int, Key], tuple[int, Key]]:
        """Return between which sessions, and which lines, those of a file must be."""
        header = self.headers[name]
        low = self._last
        if header is not None:
            low = max(low[0], header.state.session), max(low[1], (header.state.next_batch - 1, 1 << 60))
        later = self._held.names[self._held.names.index(name) + 1 :]
        for other in later:
            known = self.headers[other]
            if known is not None:
                return low, (known.state.session, (known.state.next_batch, -1))
        return low, (1 << 60, (1 << 60, 0))

    def _entry(self, name: SegmentName, found: Intact) -> Entry | None:
        location = str(self._held.path(name))
        try:
            entry = entry_of(found.line, found.parsed.text, location, found.start, found.end)
            record_of(entry, location)
        except StoreVersionError:
            problem = f"a record of batch {found.parsed.batch} is intact, but unknown to this release of memable"
            self._add(Fault(FaultKind.UNKNOWN, str(name), found.start, problem, found.end - found.start))
            if not name.is_compacted:
                self._due = _following(found)
            return None
        if not found.has_break and found.end < self._held.sizes[name]:
            problem = f"the line break of a record of batch {found.parsed.batch} is damaged"
            self._add(Fault(FaultKind.DAMAGED, str(name), found.start, problem, found.end - found.start))
        return entry

    def _believe(self, name: SegmentName, found: Intact, entry: Entry) -> Iterator[Believed | Hole]:
        due = self._due
        if due is not None and due != found.key:
            if not self._bad:
                problem = f"batch {due[0]} is damaged or missing, before batch {found.parsed.batch}"
                self._add(Fault(FaultKind.MISSING, str(name), found.start, problem))
                self._bad.append(_Bad(str(name), found.start, found.start, b""))
            yield self._hole(found.key)
        elif due is None and self._bad:
            yield self._hole(found.key)
        self._bad.clear()
        self._last = found.parsed.session, found.key
        if not name.is_compacted:
            self._due = _following(found)
        self.next_batch = max(self.next_batch, found.parsed.batch + 1)
        self._follow_session(entry)
        yield from self._believe_batch(name, (entry,))

    def _follow_session(self, entry: Entry) -> None:
        if entry[2]:
            return
        record = record_of(entry, "")
        if isinstance(record, StoreOpened):
            if not self.closed:
                self.crashed.add(self.session)
            self.session, self.durability, self.closed = record.session, record.durability, False
        elif isinstance(record, StoreClosed):
            self.closed = True

    def _damage(self, name: SegmentName, found: Damaged) -> None:
        self.lost_bytes += found.end - found.start
        if found.start == 0 and _is_header(found.raw):
            # Told already, and it is no record.
            self._is_only_header = found.end == self._held.sizes[name]
            return
        size = found.end - found.start
        self._add(Fault(FaultKind.DAMAGED, str(name), found.start, self._told(found), size, self._instance(found)))
        self._bad.append(_Bad(str(name), found.start, found.end, found.raw))

    def _told(self, found: Damaged) -> str:
        was = corrected(found.raw, self.seed)
        if was is not None:
            lost = lost_record(was[0])
            whose = "the store" if lost is None else f"instance {lost.instance}"
            kind = "" if lost is None else f", {lost.kind} {lost.seq}"
            return f"a record of batch {was[1].batch} is damaged by one flipped bit: it was one of {whose}{kind}"
        says = readable(found.raw)
        if says is not None:
            return (
                f"not intact; it reads like batch {says.batch}: {says.kind} {says.seq} of instance {says.instance}, "
                f"if that is right"
            )
        return "not intact" if found.raw.strip(b"\0") else "zeros where records were"

    def _instance(self, found: Damaged) -> int | None:
        was = corrected(found.raw, self.seed)
        lost = None if was is None else lost_record(was[0])
        return None if lost is None else lost.instance

    def _misplace(self, name: SegmentName, found: Intact) -> None:
        problem = (
            f"a record of batch {found.parsed.batch} of session {found.parsed.session} is intact, but stands where it "
            "cannot belong"
        )
        self._add(Fault(FaultKind.MISPLACED, str(name), found.start, problem, found.end - found.start))
        self._bad.append(_Bad(str(name), found.start, found.end, b""))

    def _add(self, fault: Fault) -> None:
        """Note a fault; if an opener's judgement of the same place is noted already, add what is known of it."""
        at = self._fault_places.get((fault.file, fault.offset))
        if at is None:
            self._fault_places[fault.file, fault.offset] = len(self.faults)
            self.faults.append(fault)
            return
        known = self.faults[at]
        if known.length is None and known.problem != fault.problem:
            self.faults[at] = attrs.evolve(fault, kind=known.kind, problem=f"{known.problem}: {fault.problem}")

    def _hole(self, end: Key | None) -> Hole:
        """Return the hole that what is bad has made, up to the line *end*."""
        bad, self._bad = self._bad, []
        lost = None if end is None else self._lost(bad, end)
        length = sum(one.end - one.start for one in bad)
        return Hole(bad[0].file, bad[0].start, length, lost)

    def _lost(self, bad: Sequence[_Bad], end: Key) -> tuple[LostRecord, ...] | None:
        """Return what is lost, if it is known for sure that it is all."""
        due, found = self._due, list[LostRecord]()
        for one in bad:
            was = corrected(one.raw, self.seed) if one.raw and one.end - one.start == len(one.raw) else None
            if was is None:
                return None
            line, parsed = was
            key = (parsed.batch, parsed.position)
            if (key != due) if due is not None else (len(bad) > 1 or not self._last[1] < key < end):
                return None
            if due is not None:
                due = (parsed.batch + 1, 0) if parsed.is_last else (parsed.batch, parsed.position + 1)
            lost = lost_record(line)
            if lost is not None:
                found.append(lost)
        return tuple(found) if due in {None, end} else None


def _following(found: Intact) -> Key:
    """Return the place of the line that is due behind another."""
    batch, position = found.key
    return (batch + 1, 0) if found.parsed.is_last else (batch, position + 1)


def _is_header(raw: bytes) -> bool:
    """Tell whether damaged bytes at the beginning of a file are no more than its header."""
    return b"\n" not in raw[:-1] and b"\0" not in raw and raw.endswith(b"\n") and b'{"kind":' not in raw
