"""
Knows how much of each segment is still needed, and decides which are worth compacting.

Decided here: which lines of removed instances may go. A tombstone, the record of a removal, must stay as long as any
older line of its instance stays in another segment: without it, a scan would find an instance that has not ended.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Iterable, Iterator, Sequence

import attrs

from .._segments import SegmentName
from .._spans import length_of, segment_of
from ._gone import SpanSet, Tombstones

#: A segment is compacted when at least this part of it is not needed any more.
GARBAGE_SHARE = 0.5
#: A neighbour is compacted with it from this part on, or if it is small.
_NEIGHBOUR_SHARE = 0.25
#: Small is less than this part of a whole segment.
_SMALL_SHARE = 0.25
#: The files of one run are not longer together than so many whole segments, so that space comes back step by step.
_MAX_RUN_SEGMENTS = 8


@attrs.define(eq=False)
class FileSpace:
    """
    One file of the log, sealed or the tail.
    """

    name: SegmentName
    size: int
    "Bytes, as of the last time that it was looked at."
    dead: int = 0
    "About how many of them are not needed."

    @property
    def live(self) -> int:
        """
        About how many bytes a compaction would leave.
        """
        return max(0, self.size - self.dead)


@attrs.define(eq=False)
class Space:
    """
    The files of one log.
    """

    files: list[FileSpace] = attrs.field(factory=list[FileSpace])
    "From the beginning of the log to its end."
    tombstones: Tombstones = attrs.field(factory=Tombstones)
    superseded: SpanSet = attrs.field(factory=SpanSet)
    "Spans of lines of instances that are kept, but that say nothing any more."
    garbage: int = 0
    "About how many bytes were found to be not needed, ever. Only grows."
    recent: list[int] | None = None
    "While a compaction is under way, the spans of what is found to be not needed meanwhile."

    def add_file(self, name: SegmentName, size: int) -> None:
        """
        Take note of the log's next file.
        """
        self.files.append(FileSpace(name, size))

    def note_size(self, size: int) -> None:
        """
        Take note of the length of the last file.
        """
        self.files[-1].size = size

    def note_removed(self, number: int, spans: Sequence[int], tombstone: int) -> None:
        """
        Take note that an instance was removed: its lines are not needed.

        Args:
            number: The instance's.
            spans: Of its lines, but for the tombstone.
            tombstone: The span of that.
        """
        own = segment_of(tombstone)
        segments = set(map(segment_of, spans))
        for segment in segments:
            own_spans = (span for span in spans if segment_of(span) == segment and span not in self.superseded)
            self._note_dead(segment, sum(map(length_of, own_spans)))
        self.superseded.discard_all(spans)
        if self.recent is not None:
            self.recent.extend(spans)
        segments.discard(own)
        if segments:
            self.tombstones.put(number, tombstone, frozenset(segments))
        else:
            self.note_dead(tombstone)

    def note_superseded(self, spans: Iterable[int]) -> None:
        """
        Take note of lines that say nothing any more, though their instance is kept.
        """
        for span in spans:
            if span not in self.superseded:
                self.superseded.add(span)
                self.note_dead(span)

    def note_dead(self, span: int) -> None:
        """
        Take note of one line that is not needed.
        """
        self._note_dead(segment_of(span), length_of(span))
        if self.recent is not None:
            self.recent.append(span)

    def _note_dead(self, segment: int, length: int) -> None:
        file = self._file_of(segment)
        if file is not None:
            file.dead += length
            self.garbage += length

    def needs_tombstone(self, number: int, run: range) -> bool:
        """
        Tell whether the tombstone of an instance is needed once the segments of *run* hold nothing else of it.
        """
        tombstone = self.tombstones.get(number)
        return tombstone is not None and any(segment not in run for segment in tombstone.segments)

    def choose(self, before: int, segment_bytes: int, blocked: Container[SegmentName]) -> list[SegmentName]:
        """
        Return the neighbouring files that are most worth compacting into one; none if it is not worth it.

        Args:
            before: Only segments with smaller numbers.
            segment_bytes: What is kept of several files is not to exceed this.
            blocked: Files that are not to be touched.
        """
        for files in self._eligible(before, blocked):
            small = segment_bytes * _SMALL_SHARE
            for at, file in enumerate(files):
                merges = at + 1 < len(files) and file.live <= small and files[at + 1].live <= small
                is_worth_it = file.dead >= max(1, GARBAGE_SHARE * file.size)
                run = _extended(files, at, segment_bytes) if merges or is_worth_it else []
                # The neighbour may be too long to be joined to it: then there is nothing to gain, again and again.
                if is_worth_it or len(run) > 1:
                    return run
        return []

    def _eligible(self, before: int, blocked: Container[SegmentName]) -> Iterator[list[FileSpace]]:
        """Yield the rows of neighbours that may be compacted."""
        row: list[FileSpace] = []
        for file in self.files[:-1]:
            if file.name.last >= before:
                break
            if file.name in blocked:
                yield row
                row = []
            else:
                row.append(file)
        yield row

    def replace(self, run: Sequence[SegmentName], new: SegmentName, size: int) -> None:
        """
        Take note that *new* stands for the files of *run* now.

        Args:
            run: The files that it stands for.
            new: The new one's name.
            size: How long it is.
        """
        at = next(index for index, file in enumerate(self.files) if file.name == run[0])
        self.files[at : at + len(run)] = [FileSpace(new, size)]

    def review_tombstones(self, numbers: range, since: int) -> Iterator[None]:
        """
        Take note that there is nothing left in some segments of what was removed: tombstones may go, or are gone.

        In steps, since they can be many. What is removed between two of them has a later span.

        Args:
            numbers: The segments' numbers.
            since: Tombstones from this span on are left as they are.
        """
        for gone in self.tombstones.review(numbers, since):
            for span in gone:
                if segment_of(span) not in numbers:
                    self.note_dead(span)
            yield

    def _file_of(self, segment: int) -> FileSpace | None:
        at = bisect_right(self.files, segment, key=_first) - 1
        return self.files[at] if at >= 0 and segment <= self.files[at].name.last else None


def _first(file: FileSpace) -> int:
    return file.name.first


def _extended(files: Sequence[FileSpace], at: int, segment_bytes: int) -> list[SegmentName]:
    """Return the run around *at* whose files are worth compacting with it, and fit into one segment with it."""
    start, end, live, size = at, at + 1, files[at].live, files[at].size

    def takes(index: int) -> bool:
        file = files[index]
        is_worth_it = file.dead >= _NEIGHBOUR_SHARE * file.size or file.live <= _SMALL_SHARE * segment_bytes
        fits = live + file.live <= segment_bytes and size + file.size <= _MAX_RUN_SEGMENTS * segment_bytes
        return is_worth_it and fits

    while end < len(files) and takes(end):
        live += files[end].live
        size += files[end].size
        end += 1
    while start > 0 and takes(start - 1):
        start -= 1
        live += files[start].live
        size += files[start].size
    return [file.name for file in files[start:end]]
