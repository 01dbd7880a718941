"""
The files that a log consists of, and reading single lines out of them.

Used by several threads at once. Files are opened for each reading: a sealed one may be compacted meanwhile, and is then
found again under its new name.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from .._compacted import PlaceMap, read_map
from .._disk import Disk, DiskFile
from .._errors import StoreCorruptedError, StoreVersionError
from .._frames import FORMAT_VERSION, WAY_OUT, SegmentHeader, decode_header, parse_line
from .._record_json import UnknownRecordError, decode_record
from .._records import InstanceRecord, StoreClosed, StoreOpened
from .._segments import SegmentName
from .._spans import length_of, offset_of, segment_of

#: Lines that are this near to each other are read at once: a read costs about as much as copying so many bytes.
_MAX_GAP_BYTES = 16 * 1024
#: But not more than this at once, a longer line aside.
_MAX_READ_BYTES = 1024 * 1024
#: What is read at once of a file that is read whole.
CHUNK_BYTES = 1024 * 1024
#: A file that is gone was compacted. So often in a row only if somebody removes files.
_MAX_TRIES = 10


@attrs.define(eq=False)
class LogFiles:
    """
    The log of one store.
    """

    disk: Disk
    directory: Path
    seed: int
    "What ``seed_of`` the store's id is."
    names: tuple[SegmentName, ...]
    "The files, from the beginning of the log to its end. Replaced as a whole."
    _maps: dict[SegmentName, PlaceMap] = attrs.field(factory=dict[SegmentName, PlaceMap], init=False)
    _changing: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    "One thread begins segments while another replaces them."

    @property
    def tail_path(self) -> Path:
        """
        Where the last segment is.
        """
        return self.path(self.names[-1])

    def path(self, name: SegmentName) -> Path:
        """
        Return where a segment is.
        """
        return self.directory / str(name)

    def add(self, name: SegmentName) -> None:
        """
        Take note of a new last segment.
        """
        with self._changing:
            self.names = (*self.names, name)

    def replace(self, run: Sequence[SegmentName], new: SegmentName, places: PlaceMap) -> None:
        """
        Take note that *new* stands for the files of *run*, which may be removed now.
        """
        self._maps[new] = places
        with self._changing:
            at = self.names.index(run[0])
            self.names = (*self.names[:at], new, *self.names[at + len(run) :])
        for name in run:
            self._maps.pop(name, None)

    def holds(self, name: SegmentName, span: int) -> bool:
        """
        Tell whether a compacted segment has the line with that span.

        Raises:
            StoreCorruptedError: It is damaged.
            OSError: It cannot be read.
        """
        places = self._maps.get(name)
        if places is None:
            file = self.disk.open_to_read(self.path(name))
            try:
                places = self._places(name, file)
            finally:
                file.close()
        return places.holds(span)

    def read_journal(self, number: int, spans: Sequence[int]) -> list[InstanceRecord]:
        """
        Return the records in the lines with these spans, all of instance *number*. See ``read_lines``.
        """
        return [record for _, record in self.read_lines(number, spans)]

    def read_lines(self, number: int, spans: Sequence[int]) -> list[tuple[int, InstanceRecord]]:
        """
        Return the records in the lines with these spans, all of instance *number*, each with its span.

        Lines that a compaction has left out, since they were superseded, are left out here, too.

        Raises:
            StoreCorruptedError: A line is not what it was when it was written or recovered.
            StoreVersionError: One is of a shape that this release does not know.
            OSError: They cannot be read.
        """
        lines: list[tuple[int, InstanceRecord]] = []
        at = 0
        tries = 0
        while at < len(spans):
            name = self._name_of(segment_of(spans[at]))
            end = at + 1
            while end < len(spans) and segment_of(spans[end]) <= name.last:
                end += 1
            try:
                found = self._read_from(name, number, spans[at:end])
            except FileNotFoundError:
                tries += 1
                if tries > _MAX_TRIES or name in self.names:
                    raise
                continue
            lines.extend(found)
            at = end
        return lines

    def _name_of(self, segment: int) -> SegmentName:
        names = self.names
        return names[bisect_right(names, segment, key=_first) - 1]

    def _read_from(self, name: SegmentName, number: int, spans: Sequence[int]) -> list[tuple[int, InstanceRecord]]:
        path = self.path(name)
        file = self.disk.open_to_read(path)
        try:
            places = self._places(name, file) if name.is_compacted else None
            lines: list[tuple[int, int]] = []
            kept: list[int] = []
            for span in spans:
                try:
                    start = offset_of(span) if places is None else places.position(span)
                except KeyError:
                    # It was superseded, and a compaction has left it out since the span was noted.
                    continue
                lines.append((start, start + length_of(span)))
                kept.append(span)
            records = (record for group in _neighbours(lines) for record in self._read_group(file, path, number, group))
            return list(zip(kept, records, strict=True))
        finally:
            file.close()

    def _read_group(
        self, file: DiskFile, path: Path, number: int, group: Sequence[tuple[int, int]]
    ) -> Iterator[InstanceRecord]:
        base = group[0][0]
        read = file.read_at(base, group[-1][1] - base)
        for start, _ in group:
            end = read.find(b"\n", start - base)
            line = None if end < 0 else parse_line(read[start - base : end], self.seed)
            try:
                record = None if line is None else decode_record(line.text)
            except UnknownRecordError as exc:
                raise StoreVersionError(
                    location=str(path),
                    problem=f"the record at byte offset {start} is unknown to this release of memable: {exc}; "
                    "install the release that wrote it, or a newer one",
                    found=FORMAT_VERSION,
                    supported=FORMAT_VERSION,
                ) from exc
            if record is None or isinstance(record, StoreOpened | StoreClosed) or record.instance != number:
                raise _not_intact(str(path), start, number)
            yield record

    def _places(self, name: SegmentName, file: DiskFile) -> PlaceMap:
        places = self._maps.get(name)
        if places is None:
            places = self._maps[name] = read_places(file, str(self.path(name)))[1]
        return places


def read_header(file: DiskFile, location: str) -> tuple[SegmentHeader, int]:
    """
    Return what a segment's first line says, and where that line ends.

    Raises:
        StoreCorruptedError: It is damaged.
        StoreVersionError: A newer release wrote it.
    """
    first = b""
    while b"\n" not in first and (more := file.read_at(len(first), _HEADER_CHUNK)):
        first += more
        if len(first) > _MAX_HEADER_BYTES:
            break
    first = first[: first.find(b"\n") + 1]
    return decode_header(first, location), len(first)


#: A header is mostly shorter than this, however many crashed sessions it tells of.
_HEADER_CHUNK = 4096
_MAX_HEADER_BYTES = 4 * 1024 * 1024


def read_places(file: DiskFile, location: str) -> tuple[SegmentHeader, PlaceMap, int]:
    """
    Return the header of a compacted segment, its map, and where its records begin.

    Raises:
        StoreCorruptedError: They are damaged.
        StoreVersionError: A newer release wrote it.
    """
    header, start = read_header(file, location)
    if header.compacted is None:
        raise StoreCorruptedError(
            location=location, offset=0, problem=f"the file does not say what it stands for; {WAY_OUT}"
        )
    offset = start + header.compacted.size
    parts: list[bytes] = []
    while part := file.read_at(offset, CHUNK_BYTES):
        parts.append(part)
        offset += len(part)
    return header, read_map(b"".join(parts), location, start, header.compacted), start


def _not_intact(location: str, start: int, number: int) -> StoreCorruptedError:
    return StoreCorruptedError(
        location=location,
        offset=start,
        problem=f"the record of instance {number} there was intact before, and is not now; {WAY_OUT}",
    )


def _neighbours(lines: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Group lines that are near enough to be read at once."""
    group: list[tuple[int, int]] = []
    for start, end in lines:
        if group and (start - group[-1][1] > _MAX_GAP_BYTES or end - group[0][0] > _MAX_READ_BYTES):
            yield group
            group = []
        group.append((start, end))
    if group:
        yield group


def _first(name: SegmentName) -> int:
    return name.first
