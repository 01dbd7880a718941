"""
Reads a log, from its beginning or from a checkpoint on, into what is known of every instance.

Synchronous. Changes nothing, so that readers beside a live engine use it, too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast
from zlib import crc32

import attrs

from .._compacted import CompactedScan, OldPlaces
from .._disk import Disk, DiskFile
from .._encoded import Encoded
from .._errors import StorageError, StoreCorruptedError, StoreVersionError
from .._frames import WAY_OUT, LogState, Sealed, SegmentHeader, seed_of
from .._header import DETACHED, InstanceHeader
from .._json import loads
from .._proven import ProvenLines, RunningChecksum, UsualLines
from .._records import (
    InstanceCompleted,
    InstanceRecord,
    InstanceRetired,
    InstanceStarted,
    StoreClosed,
    StoreOpened,
)
from .._scan import Entry, LogScan, record_of
from .._segments import Chain, SegmentName, segment
from .._spans import MAX_OFFSET, segment_of, span_of
from ._checkpoint import Checkpoint
from ._files import CHUNK_BYTES, LogFiles, read_header, read_places
from ._index import HeaderIndex
from ._space import Space

_STATUS = b'"status":'
_OF_STORE = frozenset((StoreOpened.kind.encode(), StoreClosed.kind.encode()))
_RETIRED = InstanceRetired.kind.encode()
_STARTED = InstanceStarted.kind.encode()
_COMPLETED = InstanceCompleted.kind.encode()
_VALUE = b',"value":'
_NOTHING = Encoded("", b"null")


@attrs.define(eq=False)
class LogReading:
    """
    What a log says.
    """

    files: LogFiles
    index: HeaderIndex
    space: Space
    header: SegmentHeader
    "The last segment's."
    scan: LogScan
    "Where the last segment ends, and in which session."
    checksum: int | None
    "The CRC-32 of the last segment's bytes up to there, if it is known."
    read_bytes: int
    "How much was read, rather than taken from a checkpoint."

    @property
    def state(self) -> LogState:
        """
        What the log has come to at its end.
        """
        return self.scan.state(self.index.last_number)


def read_log(disk: Disk, directory: Path, chain: Chain, checkpoint: Checkpoint | None) -> LogReading:
    """
    Read the log of which *chain* says where it is.

    Args:
        disk: Where it is.
        directory: The store's.
        chain: Its files.
        checkpoint: What was known earlier. It is used up: the index in it becomes the result's.

    Raises:
        StoreCorruptedError: The log is damaged.
        StoreVersionError: A newer release wrote it.
        FileNotFoundError: A file has been compacted meanwhile.
        OSError: It cannot be read.
    """
    if chain.missing is not None:
        raise missing_segments(directory, *chain.missing)
    if chain.current[-1].is_compacted:
        raise missing_segments(directory, chain.current[-1].last + 1, chain.current[-1].last + 1)
    return _LogReader(disk, directory, chain.current, checkpoint).read()


def missing_segments(directory: Path, first: int, last: int) -> StoreCorruptedError:
    """
    Return the error that says that segments are not there.
    """
    which = f"segment {first} is" if first == last else f"the segments {first} to {last} are"
    return StoreCorruptedError(
        location=str(directory / str(segment(first))),
        offset=0,
        problem=f"{which} missing, though the log went on behind: restore the store from a backup, or run `memable "
        "repair` to save what is there",
    )


class _LogReader:
    def __init__(
        self, disk: Disk, directory: Path, names: tuple[SegmentName, ...], checkpoint: Checkpoint | None
    ) -> None:
        self._disk = disk
        self._directory = directory
        self._names = names
        self._checkpoint = checkpoint
        self._space = Space() if checkpoint is None else checkpoint.space
        self._index = HeaderIndex() if checkpoint is None else checkpoint.index
        self._index.on_removed = self._note_removed
        self._orphans: dict[int, int] = {}
        "By number, the first spans of records that cannot follow those of their instances that are known."
        self._compacted_since: list[SegmentName] = []
        "Files that are newer than the checkpoint, though their lines are older."
        self._known = {file.name: file for file in self._space.files}
        self._space.files = []
        self._state: LogState | None = LogState()
        "What the log has come to, if it is known for sure."
        self._store_id = "" if checkpoint is None else checkpoint.store_id
        self._seed = 0
        self._checksum: int | None = None
        "That of the last segment's bytes as far as they are believed, if it is known."
        self._read_bytes = 0
        self._workflows: dict[str, str] = {}
        "Names of workflows: as many instances have few between them."

    def read(self) -> LogReading:
        scan: LogScan | None = None
        header: SegmentHeader | None = None
        for name, following in zip_longest(self._names, self._names[1:]):
            path = self._directory / str(name)
            file = self._disk.open_to_read(path)
            try:
                header, start = self._begin(name, file, str(path))
                scan = self._read_file((name, following), file, str(path), header, start)
                self._space.note_size(file.size() if scan is None or scan.is_sealed else scan.good_end)
            finally:
                file.close()
        assert header is not None
        assert scan is not None
        for number, span in self._index.orphans().items():
            at = bisect_right(self._names, segment_of(span), key=_first) - 1
            raise StoreCorruptedError(
                location=str(self._directory / str(self._names[at])),
                offset=0,
                problem=f"instance {number} has records that do not follow what is known of it; {WAY_OUT}",
            )
        files = LogFiles(self._disk, self._directory, self._seed, self._names)
        self._index.on_removed = self._space.note_removed
        if self._checkpoint is not None:
            self._check_end(self._checkpoint, scan, header.segment, str(files.tail_path))
            self._catch_up(self._checkpoint, files)
        return LogReading(files, self._index, self._space, header, scan, self._checksum, self._read_bytes)

    def _begin(self, name: SegmentName, file: DiskFile, location: str) -> tuple[SegmentHeader, int]:
        """Read a file's header, and check that it is the one that belongs here."""
        header, start = read_header(file, location)
        if not self._store_id:
            self._store_id = header.store_id
        self._seed = seed_of(self._store_id)
        says = header.compacted
        if file.size() > MAX_OFFSET:
            raise StorageError(
                location=location, problem=f"is longer than {MAX_OFFSET:,} bytes; files of a log are not that long"
            )
        if header.store_id != self._store_id:
            problem = "the file belongs to another store"
        elif header.segment != name.first or (says is None) == name.is_compacted:
            problem = f"the file says that it is number {header.segment}"
        elif says is not None and (says.through, says.generation) != (name.last, name.generation):
            problem = f"the file says that it stands for the segments up to {says.through}"
        else:
            known = self._known.get(name)
            self._space.add_file(name, 0)
            self._space.files[-1].dead = 0 if known is None else known.dead
            self._index.last_number = max(self._index.last_number, header.state.last_number)
            return header, start
        raise StoreCorruptedError(location=location, offset=0, problem=f"{problem}; {WAY_OUT}")

    def _read_file(
        self,
        names: tuple[SegmentName, SegmentName | None],
        file: DiskFile,
        location: str,
        header: SegmentHeader,
        start: int,
    ) -> LogScan | None:
        """
        Read a file, unless the checkpoint knows it; return the reader of an ordinary one if that was needed.

        Args:
            names: The file's name, and that of the next one.
            file: The file.
            location: What to call it in an error.
            header: What it says of itself.
            start: Where its records begin.
        """
        name, next_name = names
        checkpoint = self._checkpoint
        if checkpoint is not None and name.last < checkpoint.segment:
            self._state = None
            if name.is_compacted and name not in self._known:
                self._compacted_since.append(name)
            return None
        if header.compacted is not None:
            self._read_compacted(file, location)
            return None
        state, checksum = header.state, None
        if checkpoint is not None and name.first == checkpoint.segment:
            start, state, checksum = checkpoint.offset, checkpoint.state, checkpoint.checksum
        else:
            self._check_border(location, state)
            checksum = crc32(file.read_at(0, start))
        if next_name is not None and checksum is not None:
            following = self._intact_header(next_name)
            if following is not None and _is_as_sealed(file, start, checksum, following.before):
                assert following.before is not None
                chunks = self._proven_chunks(file, location, (start, None), (checksum, following.before.checksum))
                self._read_proven(name, chunks, location, start)
                self._state = following.state
                return None
        scan = LogScan.at(location, self._seed, start, state, is_sealed=next_name is not None)
        running = None if checksum is None else RunningChecksum(checksum, start)
        replay_batch, take = self._index.replay_batch, partial(self._take, location)
        for chunk in self._chunks(file, start, None):
            for batch in scan.feed(chunk):
                replay_batch(batch, name.first, take)
            if running is not None:
                running.add(chunk, scan.good_end)
        scan.finish()
        self._state = scan.state(0)
        self._checksum = None if running is None else running.value
        return scan

    def _intact_header(self, name: SegmentName) -> SegmentHeader | None:
        """Return a file's header, unless it is damaged or another's."""
        path = self._directory / str(name)
        file = self._disk.open_to_read(path)
        try:
            header = read_header(file, str(path))[0]
        except (StoreCorruptedError, StoreVersionError):
            # That is told when it is its turn.
            return None
        finally:
            file.close()
        return header if (header.store_id, header.segment) == (self._store_id, name.first) else None

    def _read_proven(self, name: SegmentName, chunks: Iterable[bytes], location: str, start: int) -> None:
        """Read a sealed segment of which it is known that all its bytes are as they were."""
        proven, take = ProvenLines(location, self._seed, start), partial(self._take, location)
        for chunk in chunks:
            for found in proven.feed(chunk):
                if isinstance(found, UsualLines):
                    self._index.replay_lines(found.lines, name.first, found.start, take)
                else:
                    take(found, span_of(name.first, found[5], found[6] - found[5]))
        proven.finish()

    def _read_compacted(self, file: DiskFile, location: str) -> None:
        header, places, start = read_places(file, location)
        compacted = header.compacted
        assert compacted is not None
        self._check_border(location, header.state)
        self._state = None
        stretches, end = places.stretches(), start + compacted.size
        if compacted.checksum is not None and _checksum(file, start, end, 0) == compacted.checksum:
            chunks = self._proven_chunks(file, location, (start, end), (0, compacted.checksum))
            self._read_proven_compacted(chunks, location, OldPlaces(location, stretches), start)
            return
        scan = CompactedScan(location, self._seed, compacted, stretches, start)
        for chunk in self._chunks(file, start, end):
            for entry, span in scan.feed(chunk):
                self._take(location, entry, span)
        scan.finish()

    def _read_proven_compacted(self, chunks: Iterable[bytes], location: str, places: OldPlaces, start: int) -> None:
        proven = ProvenLines(location, self._seed, start)
        for chunk in chunks:
            for found in proven.feed(chunk):
                if not isinstance(found, UsualLines):
                    self._take(location, found, places.next_span(found[6] - found[5], found[5]))
                    continue
                for number, offset, run in places.split(found):
                    take = partial(self._take_moved, location, run.start - offset)
                    self._index.replay_lines(run.lines, number, offset, take)
        proven.finish()

    def _take_moved(self, location: str, moved: int, entry: Entry, span: int) -> None:
        """Take in a record whose line begins so many bytes behind the place where it stood first."""
        line, kind, number, seq, at, start, end = entry
        self._take(location, (line, kind, number, seq, at, start + moved, end + moved), span)

    def _check_border(self, location: str, state: LogState) -> None:
        """Check that a segment begins where the one before ended."""
        before = self._state
        if before is None:
            return
        # A session may be known to be closed from the lock file alone: on a full disk it is noted there.
        is_reopened = before.closed and not state.closed
        if (before.session, before.next_batch) != (state.session, state.next_batch) or is_reopened:
            raise StoreCorruptedError(
                location=location,
                offset=0,
                problem=f"the segment begins with batch {state.next_batch} of session {state.session}, though the log "
                f"before it ends with batch {before.next_batch - 1} of session {before.session}: something of it is "
                f"missing; {WAY_OUT}",
            )

    def _chunks(self, file: DiskFile, offset: int, end: int | None) -> Iterator[bytes]:
        while chunk := file.read_at(offset, CHUNK_BYTES if end is None else min(CHUNK_BYTES, end - offset)):
            offset += len(chunk)
            self._read_bytes += len(chunk)
            yield chunk

    def _proven_chunks(
        self, file: DiskFile, location: str, between: tuple[int, int | None], checksums: tuple[int, int]
    ) -> Iterator[bytes]:
        """
        Yield once more the bytes that a checksum has proven, and check that they are the same.

        Args:
            file: The file.
            location: What to call it in an error.
            between: Where they begin and end.
            checksums: That of the file's bytes before them, as far as it counts, and that of all.
        """
        start, end = between
        checksum, proven = checksums
        for chunk in self._chunks(file, start, end):
            checksum = crc32(chunk, checksum)
            yield chunk
        if checksum != proven:
            raise StoreCorruptedError(
                location=location,
                offset=start,
                problem="what was read of it a moment ago was intact, and is not now; find out what is wrong with the "
                "disk or the memory, then open the store again",
            )

    def _replay_start(self, line: bytes, number: int, seq: int, at: float, span: int) -> bool:
        """Take in the start of an instance, unless anything about it is unusual; return whether that was done."""
        cut = line.find(_VALUE)
        if cut < 0 or seq != 1 or number <= self._index.last_number:
            return False
        tree = cast("dict[str, Any]", loads(line[line.index(b"{") : cut] + b"}"))
        workflow = tree["workflow"]
        header = InstanceHeader(
            number=number,
            workflow=self._workflows.setdefault(workflow, workflow),
            instance_id=tree["instance_id"],
            created_at=at,
            updated_at=at,
            session=tree["session"],
            parent=tree.get("parent"),
            flags=DETACHED if tree.get("detached", False) else 0,
        )
        self._index.replay_start(header, span)
        return self._index.has(number)

    def _take(self, location: str, entry: Entry, span: int) -> None:
        """Take in a record that may say more than that its instance makes progress."""
        line, kind, number, seq, at = entry[:5]
        if kind in _OF_STORE or (kind == _STARTED and self._replay_start(line, number, seq, at, span)):
            return
        if kind == _COMPLETED and _STATUS not in line:
            # What it came to is nobody's business here.
            ended = InstanceCompleted(instance=number, seq=seq, at=at, value=_NOTHING)
            if self._index.replay_next(ended, span):
                return
        if kind == _RETIRED and not self._index.has(number):
            # What a compaction has left of an instance that is gone.
            self._note_removed(number, (), span)
        record = record_of(entry, location)
        assert not isinstance(record, StoreOpened | StoreClosed)
        try:
            self._check_repeated(record)
            self._index.replay(record, span)
            newest = self._index.newest(number)
            if not isinstance(record, InstanceRetired) and (newest is None or newest[0] < record.seq):
                self._check_orphan(record)
                self._orphans.setdefault(number, span)
                self._space.note_dead(span)
        except ValueError as exc:
            raise StoreCorruptedError(location=location, offset=entry[5], problem=f"{exc}; {WAY_OUT}") from exc

    def _check_repeated(self, record: InstanceRecord) -> None:
        """Refuse a record that came before. A checkpoint may know more than it says it does, but a log may not."""
        newest = self._index.newest(record.instance)
        if self._checkpoint is None and newest is not None and record.seq <= newest[0]:
            raise ValueError(f"record {record.seq} of instance {record.instance} follows record {newest[0]}")

    def _check_orphan(self, record: InstanceRecord) -> None:
        """Refuse a record that does not belong to anything. Compaction may have dropped what it belonged to."""
        if any(name.is_compacted for name in self._names):
            return
        if isinstance(record, InstanceStarted):
            raise ValueError(f"workflow {record.workflow!r} has two instances {record.instance_id!r}")
        what = "has ended, but" if self._index.has(record.instance) else "never started, but"
        raise ValueError(f"instance {record.instance} {what} a {record.kind} record follows")

    def _note_removed(self, number: int, spans: Sequence[int], tombstone: int) -> None:
        """Take note that an instance was removed. A compaction may have left lines of it that are known as orphans."""
        first = self._orphans.pop(number, None)
        if first is not None:
            spans = (*spans, *_spans_between(first, tombstone))
        self._space.note_removed(number, spans, tombstone)

    def _check_end(self, checkpoint: Checkpoint, scan: LogScan, number: int, location: str) -> None:
        """Check that the log goes as far as the checkpoint knows it."""
        if checkpoint.newest_span >= span_of(number, scan.good_end, 1):
            raise StoreCorruptedError(
                location=location,
                offset=scan.good_end,
                problem="the checkpoint tells of records that were behind: something of the log is missing; restore "
                "the store from a backup, or delete the file 'checkpoint' to go on with what is there",
            )

    def _catch_up(self, checkpoint: Checkpoint, files: LogFiles) -> None:
        """Take note of what was compacted away since the checkpoint was written, though that speaks of it."""
        since = span_of(checkpoint.segment, checkpoint.offset, 1)
        names = self._compacted_since
        for name in names:
            deque(self._space.review_tombstones(range(name.first, name.last + 1), since), maxlen=0)
        for number in self._index.has_forgotten if names else ():
            gone = {span for span in self._index.spans(number) if _is_gone(span, names, files)}
            if gone:
                self._index.drop_spans(number, gone)
                self._space.superseded.discard_all(gone)


def _is_as_sealed(file: DiskFile, start: int, checksum: int, before: Sealed | None) -> bool:
    """
    Tell whether a sealed segment is what it was then.

    Args:
        file: The segment.
        start: Where to begin.
        checksum: That of its bytes before.
        before: What its successor says of it.
    """
    return (
        before is not None
        and file.size() == before.size
        and _checksum(file, start, before.size, checksum) == before.checksum
    )


def _checksum(file: DiskFile, start: int, end: int, checksum: int) -> int:
    """Return the checksum of a file's bytes up to *end*, given that of those before *start*."""
    while start < end and (chunk := file.read_at(start, min(CHUNK_BYTES, end - start))):
        start += len(chunk)
        checksum = crc32(chunk, checksum)
    return checksum


def _is_gone(span: int, compacted: Sequence[SegmentName], files: LogFiles) -> bool:
    """Tell whether a line was left out of one of these files, which are in order, when that was compacted."""
    at = bisect_right(compacted, segment_of(span), key=_first) - 1
    return at >= 0 and segment_of(span) <= compacted[at].last and not files.holds(compacted[at], span)


def _first(name: SegmentName) -> int:
    return name.first


def _spans_between(first: int, last: int) -> Iterator[int]:
    """Yield a span of no length in each segment in which there may be lines between two others."""
    for number in range(segment_of(first), segment_of(last)):
        yield span_of(number, 0, 1)
