"""
The files of a log, held open to be read whole, or line by line, wherever they are meanwhile.

An engine may compact and remove them: what is open can still be read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

from .._disk import Disk, DiskFile
from .._frames import MAX_PREFIX_BYTES, find_line_start
from .._segments import SegmentName
from .._spans import length_of, offset_of, segment_of
from ._files import CHUNK_BYTES

#: So many files are held open. Others are opened when they are read.
_MAX_OPEN_FILES = 512
#: Lines are read one by one with what is near them.
_WINDOW_BYTES = 64 * 1024
_RECORD_BEGINS = b' {"kind":"'


class LogFilesHeld:
    """
    The files of a log, held open.
    """

    def __init__(self, disk: Disk, directory: Path, names: Sequence[SegmentName]) -> None:
        """
        Open them.

        Raises:
            OSError: One cannot be opened; ``FileNotFoundError`` if it has been compacted meanwhile.
        """
        self._disk = disk
        self._directory = directory
        self.names = tuple(names)
        self.sizes: dict[SegmentName, int] = {}
        self._held: dict[SegmentName, DiskFile] = {}
        self._extra: tuple[SegmentName, DiskFile] | None = None
        try:
            for name in names:
                self.sizes[name] = self.file(name).size()
        except BaseException:
            self.close()
            raise

    def path(self, name: SegmentName) -> Path:
        """
        Return where a file is.
        """
        return self._directory / str(name)

    def file(self, name: SegmentName) -> DiskFile:
        """
        Return a file, open until another one is asked for.
        """
        if name in self._held:
            return self._held[name]
        if self._extra is not None:
            if self._extra[0] == name:
                return self._extra[1]
            self._extra[1].close()
            self._extra = None
        file = self._disk.open_to_read(self.path(name))
        if len(self._held) < _MAX_OPEN_FILES:
            self._held[name] = file
        else:
            self._extra = name, file
        return file

    def chunks(self, name: SegmentName, start: int, end: int) -> Iterator[bytes]:
        """
        Yield the bytes of a file from *start* to *end*.
        """
        while start < end and (chunk := self.file(name).read_at(start, min(CHUNK_BYTES, end - start))):
            start += len(chunk)
            yield chunk

    def name_of(self, place: int) -> SegmentName:
        """
        Return the file in which a line is.
        """
        return self.names[bisect_right(self.names, segment_of(place), key=_first) - 1]

    def read_lines(self, places: Sequence[int]) -> Iterator[bytes]:
        """
        Yield the lines at *places*, ascending, without their line breaks.
        """
        window, base, of = b"", 0, None
        for place in places:
            name, start = self.name_of(place), offset_of(place)
            end = start - base + length_of(place)
            if of != name or not start - base >= 0 or end > len(window):
                size = max(_WINDOW_BYTES, length_of(place))
                window, base, of = self.file(name).read_at(start, size), start, name
            cut = window.find(b"\n", start - base)
            line = window[start - base : cut if cut >= 0 else None]
            # The line break may be what is damaged.
            following = find_line_start(line, 1) if line.find(_RECORD_BEGINS, MAX_PREFIX_BYTES) >= 0 else -1
            yield line if following < 0 else line[: following - 1]

    def close(self) -> None:
        """
        Close them.
        """
        for file in self._held.values():
            file.close()
        if self._extra is not None:
            self._extra[1].close()


def _first(name: SegmentName) -> int:
    return name.first
