"""
Compaction: makes one file of several neighbouring sealed ones, with only those of their lines that are still needed.

The lines are copied as they are, so what proved them before still does. The new file is complete, durable and read back
before it has its name, and the old ones are removed only when the name is durable. So a process may die at any line
here, and lose nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from zlib import crc32

import attrs

from .._compacted import CompactedScan, PlaceMap, map_of
from .._disk import DiskFile, write_fully
from .._errors import StoreCorruptedError
from .._frames import WAY_OUT, Compacted, LogState, Sealed, SegmentHeader, Stretch, encode_header, encode_stretches
from .._records import InstanceRetired, StoreClosed, StoreOpened
from .._scan import Entry, LogScan
from .._segments import SegmentName
from .._spans import offset_of, segment_of, span_of
from ._directory import TEMPORARY_SUFFIX, rename_durably
from ._failures import is_no_room, is_shortage, storage_error
from ._files import LogFiles, read_header, read_places

#: So much is read, or written, between two steps: about a millisecond's work.
STEP_BYTES = 64 * 1024

_OF_STORE = frozenset((StoreOpened.kind.encode(), StoreClosed.kind.encode()))
_RETIRED = InstanceRetired.kind.encode()


@attrs.frozen
class Needs:
    """
    Which lines are still needed. Asked in another thread than the one in which that changes.
    """

    instance: Callable[[int], bool]
    "Whether there is an instance of that number."
    tombstone: Callable[[int], bool]
    "Whether the record that an instance was removed is needed."
    superseded: Container[int]
    "Spans of lines that are not, though there is their instance."


class UnreadableSourceError(Exception):
    """
    A file that was to be compacted cannot be read. Nothing was changed.
    """


@attrs.define(eq=False)
class Compaction:
    """
    One run of files becoming one.
    """

    files: LogFiles
    run: tuple[SegmentName, ...]
    "Neighbours, sealed."
    store_id: str
    now: float
    needs: Needs
    mark_failure: Callable[[], None]
    "Notes that what the system shows may not be on the disk."
    name: SegmentName = attrs.field(init=False)
    "The new file's."
    places: PlaceMap = attrs.field(init=False)
    "Where the lines are in it. Set once it is written."
    size: int = attrs.field(default=0, init=False)
    "How long it is."
    dropped: dict[int, set[int]] = attrs.field(factory=dict[int, set[int]], init=False)
    "Of the instances that there are, the spans of what was left out."
    _stretches: list[Stretch] = attrs.field(factory=list[Stretch], init=False)
    _sources: list[tuple[SegmentName, int, int]] = attrs.field(factory=list[tuple[SegmentName, int, int]], init=False)
    "What is to be copied: of which file, from where, and how many bytes."
    _lines: int = attrs.field(default=0, init=False)
    _checksum: int = attrs.field(default=0, init=False)
    "That of these lines."
    _durability: str | None = attrs.field(default=None, init=False)
    _state: LogState = attrs.field(factory=LogState, init=False)
    _before: Sealed | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        same = [
            name.generation for name in self.run if (name.first, name.last) == (self.run[0].first, self.run[-1].last)
        ]
        self.name = SegmentName(self.run[0].first, self.run[-1].last, max(same, default=0) + 1)

    def write(self) -> Iterator[None]:
        """
        Write the new file, in short steps. Given up between two of them, it leaves nothing behind.

        Raises:
            StoreCorruptedError: A line that was intact is not any more. Nothing was changed.
            UnreadableSourceError: The disk failed to read one of the old files.
            OSError: It failed otherwise, is full, or the system is short of something.
        """
        for name in self.run:
            yield from self._choose(name)
        temporary = self._temporary
        with contextlib.suppress(FileNotFoundError):
            self.files.disk.remove(temporary)
        file = self.files.disk.open_file(temporary, create=True)
        try:
            yield from self._write(file)
            yield from self._read_back(file, temporary)
            file.sync()
        except BaseException:
            with contextlib.suppress(OSError):
                self.files.disk.remove(temporary)
            raise
        finally:
            file.close()

    def name_it(self) -> None:
        """
        Give the new file its name: from then on it stands for the old ones.

        What says that their other lines are not needed must be durable by then.

        Raises:
            OSError: The disk failed, or is full. No other file may get its name then.
        """
        try:
            rename_durably(self.files.disk, self._temporary, self.files.path(self.name))
        except OSError as exc:
            if is_no_room(exc):
                # What it took is needed by others.
                with contextlib.suppress(OSError):
                    self.files.disk.remove(self._temporary)
            else:
                # The name may be there, and be gone after a power cut: the next open gives it anew.
                self.mark_failure()
            raise

    @property
    def _temporary(self) -> Path:
        path = self.files.path(self.name)
        return path.with_name(path.name + TEMPORARY_SUFFIX)

    # What is needed ------------------------------------------------------------------------------------------

    def _choose(self, name: SegmentName) -> Iterator[None]:
        path = self.files.path(name)
        with _reading(path):
            file = self.files.disk.open_to_read(path)
            try:
                if name.is_compacted:
                    yield from self._choose_compacted(name, file, str(path))
                else:
                    yield from self._choose_plain(name, file, str(path))
            finally:
                file.close()

    def _choose_plain(self, name: SegmentName, file: DiskFile, location: str) -> Iterator[None]:
        header, start = read_header(file, location)
        self._note_header(name, header)
        scan = LogScan.at(location, self.files.seed, start, header.state, is_sealed=True)
        while chunk := file.read_at(start, STEP_BYTES):
            start += len(chunk)
            for batch in scan.feed(chunk):
                for entry in batch:
                    begin, end = entry[5], entry[6]
                    self._take(name, entry, span_of(name.first, begin, end - begin))
            yield
        scan.finish()

    def _choose_compacted(self, name: SegmentName, file: DiskFile, location: str) -> Iterator[None]:
        header, places, start = read_places(file, location)
        assert header.compacted is not None
        self._note_header(name, header)
        scan = CompactedScan(location, self.files.seed, header.compacted, places.stretches(), start)
        end = start + header.compacted.size
        while chunk := file.read_at(start, min(STEP_BYTES, end - start)):
            start += len(chunk)
            for entry, span in scan.feed(chunk):
                self._take(name, entry, span)
            yield
        scan.finish()

    def _note_header(self, name: SegmentName, header: SegmentHeader) -> None:
        if name == self.run[0]:
            self._state, self._durability, self._before = header.state, header.durability, header.before

    def _take(self, name: SegmentName, entry: Entry, span: int) -> None:
        """Plan to copy a line, if it is needed."""
        line, kind, number, _, _, start, end = entry
        if kind in _OF_STORE:
            return
        if kind == _RETIRED:
            if not self.needs.tombstone(number):
                return
        elif not self.needs.instance(number):
            return
        elif span in self.needs.superseded:
            self.dropped.setdefault(number, set()).add(span)
            return
        self._lines += 1
        self._checksum = crc32(b"\n", crc32(line, self._checksum))
        segment, offset, length = segment_of(span), offset_of(span), end - start
        if self._stretches:
            last = self._stretches[-1]
            source = self._sources[-1]
            if (
                (last.segment, last.offset + last.length) == (segment, offset)
                and source[0] is name
                and source[1] + source[2] == start
            ):
                self._stretches[-1] = Stretch(segment, last.offset, last.length + length)
                self._sources[-1] = (name, source[1], source[2] + length)
                return
        self._stretches.append(Stretch(segment, offset, length))
        self._sources.append((name, start, length))

    # The new file --------------------------------------------------------------------------------------------

    def _write(self, file: DiskFile) -> Iterator[None]:
        header = SegmentHeader(
            store_id=self.store_id,
            segment=self.name.first,
            created_at=self.now,
            durability=self._durability,
            state=self._state,
            compacted=Compacted(
                through=self.name.last,
                generation=self.name.generation,
                lines=self._lines,
                size=sum(stretch.length for stretch in self._stretches),
                checksum=self._checksum,
            ),
            before=self._before,
        )
        parts = [encode_header(header)]
        held = len(parts[0])
        self.places = map_of(self._stretches, held)
        for chunk in self._copies():
            parts.append(chunk)
            held += len(chunk)
            if held >= STEP_BYTES:
                self._flush(file, parts)
                held = 0
                yield
        parts.append(encode_stretches(self._stretches))
        self._flush(file, parts)
        yield

    def _flush(self, file: DiskFile, parts: list[bytes]) -> None:
        chunk = b"".join(parts)
        parts.clear()
        write_fully(file, self.size, chunk)
        self.size += len(chunk)

    def _copies(self) -> Iterator[bytes]:
        opened: tuple[SegmentName, DiskFile] | None = None
        try:
            for name, start, length in self._sources:
                if opened is None or opened[0] != name:
                    if opened is not None:
                        opened[1].close()
                    with _reading(self.files.path(name)):
                        opened = name, self.files.disk.open_to_read(self.files.path(name))
                for offset in range(start, start + length, STEP_BYTES):
                    with _reading(self.files.path(name)):
                        chunk = opened[1].read_at(offset, min(STEP_BYTES, start + length - offset))
                    # What is missing of it is found when all is read back.
                    yield chunk
        finally:
            if opened is not None:
                opened[1].close()

    def _read_back(self, file: DiskFile, path: Path) -> Iterator[None]:
        """Make sure that the copy says what it should before the originals go."""
        header, places, start = read_places(file, str(path))
        assert header.compacted is not None
        scan = CompactedScan(str(path), self.files.seed, header.compacted, places.stretches(), start)
        end = start + header.compacted.size
        while chunk := file.read_at(start, min(STEP_BYTES, end - start)):
            start += len(chunk)
            for _ in scan.feed(chunk):
                pass
            yield
        scan.finish()
        if scan.checksum != self._checksum:
            raise StoreCorruptedError(
                location=str(path), offset=start, problem=f"the copy is not what was read to be copied; {WAY_OUT}"
            )


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Tell what fails in reading an old file from what fails in writing the new one."""
    try:
        yield
    except OSError as exc:
        if is_shortage(exc):
            raise
        raise UnreadableSourceError(str(storage_error(str(path), "reading", exc))) from exc
