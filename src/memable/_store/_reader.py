"""
Finds one instance's lines in a log, and reads them back.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

import attrs

from .._disk import DiskFile
from .._errors import StoreCorruptedError
from .._frames import parse_line
from .._record_json import decode_record
from .._records import InstanceRecord, StoreClosed, StoreOpened
from .._scan import WAY_OUT

#: Lines that are this near to each other are read at once: a read costs about as much as copying so many bytes.
_MAX_GAP_BYTES = 16 * 1024
#: But not more than this at once, a longer line aside.
_MAX_READ_BYTES = 1024 * 1024


@attrs.define(eq=False)
class LineIndex:
    """
    Where each instance's lines are: 16 bytes a record.
    """

    _spans: dict[int, array[int]] = attrs.field(factory=dict[int, "array[int]"])
    "Start and end of each line, by turns."

    def add(self, number: int, start: int, end: int) -> None:
        """
        Take note of the next line of an instance.
        """
        spans = self._spans.get(number)
        if spans is None:
            self._spans[number] = array("Q", (start, end))
        else:
            spans.append(start)
            spans.append(end)

    def drop(self, number: int) -> None:
        """
        Forget the lines of an instance.
        """
        del self._spans[number]

    def spans(self, number: int) -> list[tuple[int, int]]:
        """
        Return where the lines of an instance are, oldest first.

        Raises:
            KeyError: There is no such instance.
        """
        spans = self._spans[number]
        return list(zip(spans[::2], spans[1::2], strict=True))


def read_journal(
    file: DiskFile, location: str, seed: int, number: int, spans: Sequence[tuple[int, int]]
) -> list[InstanceRecord]:
    """
    Return the records in the lines at *spans*, all of instance *number*.

    Raises:
        StoreCorruptedError: A line is not what it was when it was written or recovered.
        OSError: They cannot be read.
    """
    records: list[InstanceRecord] = []
    for group in _neighbours(spans):
        base = group[0][0]
        read = file.read_at(base, group[-1][1] - base)
        for start, end in group:
            line = parse_line(read[start - base : end - base - 1], seed)
            record = None if line is None else decode_record(line.text)
            if record is None or isinstance(record, StoreOpened | StoreClosed) or record.instance != number:
                raise StoreCorruptedError(
                    location=location,
                    offset=start,
                    problem=f"the record of instance {number} there was intact before, and is not now; {WAY_OUT}",
                )
            records.append(record)
    return records


def _neighbours(spans: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Group lines, of which there is at least one, that are near enough to be read at once."""
    group: list[tuple[int, int]] = []
    for start, end in spans:
        if group and (start - group[-1][1] > _MAX_GAP_BYTES or end - group[0][0] > _MAX_READ_BYTES):
            yield group
            group = []
        group.append((start, end))
    yield group
