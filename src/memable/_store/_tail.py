"""
The end of a log, where batches are appended: one at a time, each durable before the next.

When the last segment is full it is sealed, and the next one begins: whole before it has its name. So a segment that has
a successor is complete and durable.

Synchronous, and without a queue: it is called in a thread. After a failure it is not called again.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterable, Sequence
from zlib import crc32

import attrs

from .._disk import DiskFile, write_fully
from .._frames import LogState, Sealed, SegmentHeader, checksum_with, encode_header, frame_batch
from .._segments import segment
from .._spans import MAX_SEGMENT, span_of, spans_of
from .._texts import Text, are_whole, join_short, size_of
from ._directory import put_in_place
from ._failures import is_no_room
from ._files import LogFiles
from ._lockfile import StoreLock


@attrs.frozen
class Appended:
    """
    A batch that is in the log.
    """

    spans: tuple[int, ...]
    "Of its lines."
    size: int
    "How many bytes those have."
    segment: int
    "The last segment."
    offset: int
    "How long that is."
    next_batch: int
    "Number of the batch that is due."
    sealed_size: int | None
    "How long the segment before it has become, if that was sealed for this batch."
    checksum: int | None
    "That of the last segment's bytes up to there, if it is known."


@attrs.define(eq=False)
class LogTail:
    """
    Appends batches to a log.
    """

    files: LogFiles
    file: DiskFile
    "The last segment's."
    lock: StoreLock
    header: SegmentHeader
    "The last segment's."
    session: int
    "The session that the batches belong to."
    durability: str
    "How they are made durable; also of the segments that are begun here."
    next_batch: int
    "Number of the next batch."
    end: int
    "How long the last segment is."
    segment_bytes: int
    "A segment that has reached this length is full."
    clock: Callable[[], float]
    "Tells the time at which a segment is made."
    checksum: int | None = None
    "The CRC-32 of the last segment's bytes up to its end; None if it is not known."
    is_ended: bool = False
    "Whether the next batch begins a segment, however short this one is."
    _sealed_size: int | None = attrs.field(default=None, init=False)
    "How long the segment before this one has become, as long as nothing was appended to this one."
    is_sound: bool = attrs.field(default=True, init=False)
    "Whether the log ends where it is known to, and all of it that was synced is on the disk, for all that is known."

    @property
    def segment(self) -> int:
        """
        Number of the last segment.
        """
        return self.header.segment

    @property
    def is_full(self) -> bool:
        """
        Whether the next batch begins a segment: this one is long enough, or says something else of what is appended.
        """
        return self.is_ended or self.end >= self.segment_bytes or self.header.durability != self.durability

    def append(self, texts: Sequence[Text], tell_state: Callable[[], LogState], *, sync: bool = True) -> Appended:
        """
        Write a batch of records.

        Args:
            texts: The records' JSON. At least one.
            tell_state: Tells what the log has come to, in case that a segment begins.
            sync: Whether to wait until it is durable.

        Raises:
            OSError: It failed; nothing more is to be appended. What was durable before still is.
        """
        if not self.is_sound:
            raise OSError(errno.EIO, "an earlier write or sync failed")
        self.lock.check()
        if self.file.size() != self.end:
            raise OSError(errno.ENOLCK, "the log has changed since this process last wrote to it")
        if self.is_full:
            self._begin_segment(tell_state())
        lines = frame_batch(self.files.seed, self.session, self.next_batch, texts)
        parts, end = join_short(lines), self.end
        try:
            for part in parts:
                write_fully(self.file, end, part)
                end += len(part)
        except BaseException as exc:
            self._cut_back(disk_is_sound=is_no_room(exc))
            raise
        if sync:
            self.sync()
        size = end - self.end
        if len(lines) == 1:
            # What makes those of many quick takes longer than one.
            spans: Iterable[int] = (span_of(self.segment, self.end, size),)
        else:
            sizes = map(len, lines) if are_whole(lines) else map(size_of, lines)
            spans, _ = spans_of(self.segment, self.end, [size - 1 for size in sizes])
        self.end = end
        if self.checksum is not None:
            self.checksum = checksum_with(self.checksum, lines, parts, self.files.seed)
        self.next_batch += 1
        sealed_size, self._sealed_size = self._sealed_size, None
        return Appended(tuple(spans), size, self.segment, self.end, self.next_batch, sealed_size, self.checksum)

    def sync(self) -> None:
        """
        Make durable what was written.

        Raises:
            OSError: It failed. From now on the system may show bytes of this file that the disk does not have.
        """
        try:
            self.file.sync()
        except BaseException:
            self.mark()
            raise

    def close(self) -> None:
        """
        Close the last segment's file.
        """
        self.file.close()

    def _begin_segment(self, state: LogState) -> None:
        if self.segment >= MAX_SEGMENT:
            raise OSError(errno.EOVERFLOW, "the log has as many segments as can be numbered")
        # A segment that has a successor is taken for durable, whatever its durability.
        self.sync()
        header = SegmentHeader(
            store_id=self.header.store_id,
            segment=self.segment + 1,
            created_at=self.clock(),
            durability=self.durability,
            state=attrs.evolve(state, next_batch=self.next_batch),
            before=None if self.checksum is None else Sealed(self.end, self.checksum),
        )
        name = segment(header.segment)
        text = encode_header(header)
        try:
            put_in_place(self.files.disk, self.files.path(name), lambda file: write_fully(file, 0, text))
        except OSError as exc:
            if not is_no_room(exc):
                # It may be there, and be gone after a power cut: the next open makes it anew.
                self.mark()
            raise
        file = self.files.disk.open_file(self.files.path(name))
        self.file.close()
        self._sealed_size = self.end
        self.file, self.header, self.end, self.is_ended = file, header, len(text), False
        self.checksum = crc32(text)
        self.files.add(name)
        self.lock.note_tail(header.segment)

    def _cut_back(self, *, disk_is_sound: bool) -> None:
        """Remove what was written of a batch, so that nothing can ever follow it."""
        try:
            self.file.truncate(self.end)
            self.file.sync()
        except OSError:
            disk_is_sound = False
        if not disk_is_sound:
            self.mark()

    def mark(self) -> None:
        """
        Note that what the system shows of the log may not be on the disk.
        """
        self.is_sound = False
        # If this fails as well, the disk is failing altogether, and the first failure is the one to be told.
        with contextlib.suppress(OSError):
            self.lock.mark(self.files.tail_path.name)
