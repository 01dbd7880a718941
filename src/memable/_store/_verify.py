"""
Verifies a store: reads every byte of it, and tells all that is wrong.

Synchronous. Takes no lock and changes nothing, beside a live engine or none. It reads with the same readers as an
opener does, so both judge alike; but where an opener stops, it goes on.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs

from .._compacted import PlaceMap
from .._disk import Disk
from .._errors import StorageError, StoreCorruptedError
from .._faults import Fault, FaultKind, Note
from .._frames import parse_line
from .._header import FLAG_NAMES, PROGRESS_KINDS, InstanceHeader
from .._journal import journal_of
from .._record_json import UnknownRecordError, decode_record
from .._records import InstanceRecord, InstanceRetired, InstanceStarted, StoreClosed, StoreOpened
from .._scan import record_of
from .._segments import Chain, SegmentName
from .._spans import length_of, offset_of, segment_of, span_of
from ._checkpoint import Checkpoint, any_checkpoint, examine_checkpoint
from ._directory import CHECKPOINT_NAME, TEMPORARY_SUFFIX, TORN_SUFFIX
from ._failures import storage_error
from ._files import read_places
from ._held import LogFilesHeld
from ._index import HeaderIndex
from ._lockfile import LOCK_NAME, LogNotes
from ._snapshot import find_log_beside
from ._survey import Believed, Survey

#: Files that an engine compacts are looked for again, so often.
_MAX_TRIES = 20
#: What looks like damage of the checkpoint, or a gap, may be an engine at work between two looks.
_MAX_DOUBTS = 3
#: What is said of a file that was removed while it was being read.
_MOVED = frozenset((errno.ENOENT, errno.ENOLCK))
#: Journals are read for so many bytes of records at once, or for one instance.
_GROUP_BYTES = 8 * 1024 * 1024
_PAGE = 1000
#: So many disagreements of the checkpoint are told one by one.
_MAX_DISAGREEMENTS = 10
#: What a checkpoint says of an instance, beside its spans: each flag by its own name.
_COMPARED = (*(field.name for field in attrs.fields(InstanceHeader) if field.eq and field.name != "flags"), *FLAG_NAMES)

_PROGRESS = frozenset(kind.encode() for kind in PROGRESS_KINDS)
_RETIRED = InstanceRetired.kind.encode()
_STATUS = b'"status":'


@attrs.frozen
class Verdict:
    """
    What is known of a store when all of it has been read.
    """

    location: str
    "The store's directory."
    store_id: str
    faults: tuple[Fault, ...]
    notes: tuple[Note, ...]
    file_count: int
    "How many files its log has."
    segment_count: int
    "How many segments these stand for."
    log_bytes: int
    record_count: int
    instance_count: int
    unfinished_count: int
    session: int
    "The newest session."
    is_closed: bool
    "Whether that was closed in order. It may also be going on."

    @property
    def is_sound(self) -> bool:
        """
        Whether there is no fault.
        """
        return not self.faults


def verify_store(disk: Disk, directory: Path) -> Verdict:
    """
    Read the store in *directory*, all of it.

    Raises:
        StorageError: There is none, or it cannot be read.
        StoreVersionError: A newer release wrote it.
    """
    directory = directory.absolute()
    doubts = 0
    for _ in range(_MAX_TRIES):
        try:
            with opened_log(disk, directory) as (held, chain, notes):
                try:
                    found = examine_checkpoint(disk, directory, chain)
                    fault = None
                except StoreCorruptedError as exc:
                    doubts += 1
                    if doubts < _MAX_DOUBTS:
                        continue
                    found = None, None, False
                    fault = Fault(FaultKind.MISSING, Path(exc.location).name, exc.offset, exc.problem)
                survey = Survey(held, notes, () if found[0] is None else (found[0].store_id,))
                return _Verification(
                    disk, directory, (held, chain, notes), survey, checkpoint=found, checkpoint_fault=fault
                ).verdict()
        except OSError as exc:
            if exc.errno not in _MOVED or exc.filename == str(directory):
                raise storage_error(str(exc.filename or directory), "reading", exc) from exc
    raise StorageError(
        location=str(directory), problem="its files are moved all the time; copy the store, and verify the copy"
    )


@contextmanager
def opened_log(disk: Disk, directory: Path) -> Iterator[tuple[LogFilesHeld, Chain, LogNotes]]:
    """
    Give the files of the log in *directory*, and what the lock file says.

    Raises:
        StorageError: There is no store.
        StoreCorruptedError: There was one, and all of its log is gone.
        OSError: It cannot be read.
    """
    notes, chain = find_log_beside(disk, directory)
    held = LogFilesHeld(disk, directory, chain.current)
    try:
        yield held, chain, notes
    finally:
        held.close()


class _Verification:
    def __init__(
        self,
        disk: Disk,
        directory: Path,
        log: tuple[LogFilesHeld, Chain, LogNotes],
        survey: Survey,
        *,
        checkpoint: tuple[Checkpoint | None, str | None, bool],
        checkpoint_fault: Fault | None,
    ) -> None:
        self._disk = disk
        self._directory = directory
        self._held, self._chain, self._lock = log
        self._survey = survey
        self._checkpoint, self._checkpoint_problem, _ = checkpoint
        self._checkpoint_fault = checkpoint_fault
        self._index = HeaderIndex()
        self._faults: list[Fault] = []
        self._notes: list[Note] = []
        self._maps: dict[SegmentName, PlaceMap] = {}
        self._orphans: set[int] = set()
        "Numbers of instances with records that cannot follow what is known of them."
        self._has_compacted = any(name.is_compacted for name in self._chain.current)

    def verdict(self) -> Verdict:
        for found in self._survey.walk():
            if isinstance(found, Believed):
                self._replay(found)
        for number, place in self._index.orphans().items():
            problem = f"instance {number} has records, but never started"
            self._fault(FaultKind.NO_START, place, problem, number)
        self._check_end()
        self._check_journals()
        self._note_files()
        survey, index = self._survey, self._index
        faults = [*survey.faults, *self._faults]
        if not faults:
            self._compare_checkpoint()
        instances = sum(1 for _ in self._numbers())
        return Verdict(
            location=str(self._directory),
            store_id=survey.store_id,
            faults=tuple(sorted(faults, key=lambda fault: (fault.file, fault.offset))),
            notes=tuple(self._notes),
            file_count=len(self._held.names),
            segment_count=sum(name.last - name.first + 1 for name in self._held.names),
            log_bytes=sum(self._held.sizes.values()),
            record_count=survey.record_count,
            instance_count=instances,
            unfinished_count=sum(header.completed_at is None for header in index.live()),
            session=survey.session,
            is_closed=survey.closed or (not survey.torn and self._lock.closed == (survey.session, survey.next_batch)),
        )

    def _check_end(self) -> None:
        """Check that the log goes as far as the checkpoint knows it."""
        fault, checkpoint, tail, end = (
            self._checkpoint_fault,
            self._checkpoint,
            self._held.names[-1],
            self._survey.tail_end,
        )
        if checkpoint is not None and end is not None and checkpoint.newest_span >= span_of(tail.first, end, 1):
            problem = "the checkpoint tells of records that were behind: something of the log is missing"
            fault = Fault(FaultKind.MISSING, str(tail), end, problem)
        known = {(one.file, one.offset) for one in self._survey.faults}
        if fault is not None and (fault.file, fault.offset) not in known:
            self._faults.append(fault)

    def _fault(self, kind: FaultKind, place: int, problem: str, number: int) -> None:
        name, length = self._held.name_of(place), None
        self._faults.append(Fault(kind, str(name), offset_of(place), problem, length, number))

    # Headers -------------------------------------------------------------------------------------------------

    def _replay(self, found: Believed) -> None:
        """Take in a record as an opener does, and as one that has a checkpoint."""
        line, kind, number, seq, at, _, _ = found.entry
        if not number:
            return
        place = found.place
        checkpoint = self._checkpoint
        other = None
        if checkpoint is not None and (segment_of(place), offset_of(place)) >= (
            checkpoint.segment,
            checkpoint.offset,
        ):
            other = checkpoint.index
        is_simple = kind in _PROGRESS and _STATUS not in line
        is_done = is_simple and self._index.replay_progress(number, seq, at, place)
        is_done_there = other is None or (is_simple and other.replay_progress(number, seq, at, place))
        if is_done and is_done_there:
            return
        record = record_of(found.entry, "")
        assert not isinstance(record, StoreOpened | StoreClosed)
        if not is_done:
            self._replay_one(record, place)
        if not is_done_there and other is not None:
            # The log itself says so, or they will be found to disagree.
            with contextlib.suppress(ValueError):
                other.replay(record, place)

    def _replay_one(self, record: InstanceRecord, place: int) -> None:
        number = record.instance
        newest = self._index.newest(number)
        try:
            if newest is not None and record.seq <= newest[0]:
                raise ValueError(f"record {record.seq} of instance {number} follows record {newest[0]}")
            is_known = number in self._orphans
            self._index.replay(record, place)
            newest = self._index.newest(number)
            if isinstance(record, InstanceRetired) or (newest is not None and newest[0] >= record.seq):
                self._orphans.discard(number)
                return
            self._orphans.add(number)
            if self._has_compacted or is_known:
                # It may have been removed later; or it was told already.
                return
            if isinstance(record, InstanceStarted):
                raise ValueError(f"workflow {record.workflow!r} has two instances {record.instance_id!r}")
            what = "has ended, but" if self._index.has(number) else "never started, but"
            raise ValueError(f"instance {number} {what} a {record.kind} record follows")
        except ValueError as exc:
            self._fault(FaultKind.IMPOSSIBLE, place, str(exc), number)

    # Journals ------------------------------------------------------------------------------------------------

    def _numbers(self) -> Iterator[int]:
        after = 0
        while headers := self._index.select(after=after, limit=_PAGE):
            yield from (header.number for header in headers)
            after = headers[-1].number

    def _check_journals(self) -> None:
        """Fold each instance's journal, as an engine does when it comes to it."""
        group: dict[int, Sequence[int]] = {}
        size = 0
        for number in self._numbers():
            spans = self._index.spans(number)
            group[number] = spans
            size += sum(map(length_of, spans))
            if size >= _GROUP_BYTES:
                self._fold(group)
                group, size = {}, 0
        self._fold(group)

    def _fold(self, group: dict[int, Sequence[int]]) -> None:
        owners = {place: number for number, places in group.items() for place in places}
        places = sorted(owners)
        journals: dict[int, list[InstanceRecord]] = {number: [] for number in group}
        for place, line in zip(places, self._held.read_lines(places), strict=True):
            record = self._decode(line, place, owners[place])
            if record is not None:
                journals[owners[place]].append(record)
        for number, records in journals.items():
            if len(records) < len(group[number]):
                continue
            try:
                journal_of(records)
            except ValueError as exc:
                self._fault(FaultKind.IMPOSSIBLE, group[number][0], f"its journal does not fold: {exc}", number)

    def _decode(self, line: bytes, place: int, number: int) -> InstanceRecord | None:
        parsed = parse_line(line, self._survey.seed)
        if parsed is None:
            self._fault(FaultKind.DAMAGED, place, "the record was intact a moment ago, and is not now", number)
            return None
        try:
            record = decode_record(parsed.text)
        except UnknownRecordError as exc:
            self._fault(FaultKind.UNKNOWN, place, f"intact, but unknown to this release of memable: {exc}", number)
            return None
        assert not isinstance(record, StoreOpened | StoreClosed)
        return record

    # Notes ---------------------------------------------------------------------------------------------------

    def _note(self, file: object, text: str) -> None:
        self._notes.append(Note(str(file), text))

    def _note_files(self) -> None:
        survey, tail = self._survey, self._held.names[-1]
        if survey.torn is not None:
            offset, size, batches = survey.torn
            self._note(
                tail,
                f"ends with {size} bytes, of {batches} batch(es), that are not whole, from byte offset {offset} on: an "
                "engine is just writing, or a crash left them; the next open cuts them off",
            )
            known = any_checkpoint(self._disk, self._directory) if self._checkpoint is None else None
            if known is not None and known[0] == survey.store_id and known[1:] > (tail.last, offset):
                problem = (
                    f"the log is damaged here: as the checkpoint says, it was durable to byte offset {known[2]} of "
                    f"segment {known[1]}"
                )
                self._faults.append(Fault(FaultKind.DAMAGED, str(tail), offset, problem, size))
        for name in self._chain.superseded:
            self._note(name, "is superseded by a compacted segment; the next open removes it")
        for file in self._disk.list_names(self._directory):
            if file.endswith(TEMPORARY_SUFFIX):
                self._note(file, "is being written, or was left by a crash; the next open removes it")
            elif TORN_SUFFIX in file:
                self._note(file, "is a torn tail that was cut off and kept; it is not needed")
        if self._lock.is_marked:
            self._note(LOCK_NAME, "a write or sync of the log has failed: the next open copies what is valid")
        if self._checkpoint_problem is not None:
            self._note(CHECKPOINT_NAME, f"{self._checkpoint_problem}: it is not used, and may be deleted")

    # The checkpoint ------------------------------------------------------------------------------------------

    def _compare_checkpoint(self) -> None:
        """Tell whether what the checkpoint and the log behind it say is what the whole log says."""
        checkpoint = self._checkpoint
        if checkpoint is None:
            return
        told = 0
        numbers = set(self._numbers())
        after = 0
        while headers := checkpoint.index.select(after=after, limit=_PAGE):
            for other in headers:
                numbers.discard(other.number)
                problem = self._disagreement(checkpoint.index, other)
                if problem is not None and told < _MAX_DISAGREEMENTS:
                    told += 1
                    self._note(CHECKPOINT_NAME, f"disagrees with the log about instance {other.number}: {problem}")
            after = headers[-1].number
        for number in sorted(numbers)[: max(0, _MAX_DISAGREEMENTS - told)]:
            told += 1
            self._note(CHECKPOINT_NAME, f"disagrees with the log: it does not know instance {number}")
        if told:
            self._note(
                CHECKPOINT_NAME, "is wrong, and is used at the next open: delete it, then the log is read instead"
            )

    def _disagreement(self, index: HeaderIndex, other: InstanceHeader) -> str | None:
        if not self._index.has(other.number):
            return "the log has no such instance"
        own = self._index.header(other.number)
        for name in _COMPARED:
            said, found = getattr(other, name), getattr(own, name)
            if said != found:
                return f"it says {name} = {said!r}, the log says {found!r}"
        known = [place for span in index.spans(other.number) if (place := self._place_of(span)) is not None]
        if known != list(self._index.spans(other.number)):
            return "it names other records than the log has"
        return None

    def _place_of(self, span: int) -> int | None:
        """Return where the line with that span is now; None if a compaction has left it out."""
        name = self._held.name_of(span)
        if not name.is_compacted:
            return span
        places = self._maps.get(name)
        if places is None:
            location = str(self._held.path(name))
            places = self._maps[name] = read_places(self._held.file(name), location)[1]
        try:
            position = places.position(span)
        except KeyError:
            return None
        return span_of(name.first, position, length_of(span))
