"""
Keeps the headers of millions of ended instances as rows of bytes, each with the places of its records.

A header is an object of several hundred bytes, and hardly anybody asks for that of an instance that has ended. A row
says the same in about 120: numbers, texts, and eight bytes for the span of each record. Rows stand in pages of 64
consecutive instance numbers. A page never changes, it is replaced: so a copy of the dictionary is a copy of the table,
and a page may be read while another takes its place.

A page begins with three masks, which say which of its numbers completed, failed or were cancelled. Behind them stand
the ends of its rows, from 0, and then the rows, in the order of their numbers. All integers have this machine's order
of bytes.
"""

from __future__ import annotations

import functools
import sys
from array import array
from bisect import bisect_right, insort
from collections.abc import Callable, Iterator
from itertools import accumulate
from struct import Struct

from ._header import InstanceHeader
from ._states import MetadataStatus

#: So many numbers share a page, as a power of two.
PAGE_BITS = 6
_SLOT_MASK = (1 << PAGE_BITS) - 1

_MASKS = Struct("=QQQ")
_ENDS_AT = _MASKS.size
_END = Struct("=I")
_BOUNDS = Struct("=II")

_STATUSES = (MetadataStatus.COMPLETED, MetadataStatus.FAILED, MetadataStatus.CANCELLED)
_COMPLETED, _FAILED, _CANCELLED = range(3)
_STATUS_CODES = {status: code for code, status in enumerate(_STATUSES)}
_STATUS_BITS = 3
#: The flags of a row that says only that its instance has completed.
PLAIN = _COMPLETED

#: The header's own flags begin behind the status.
_FLAGS_SHIFT = 2
_FLAGS_BITS = 0xFF << _FLAGS_SHIFT
_HAS_REST = 1 << 10
"Whether the fields that most rows have no use for follow."
_HAS_PARENT = 1 << 11
_HAS_MESSAGE = 1 << 12
_HAS_ERROR = 1 << 13
_HAS_KEY = 1 << 14
_HAS_WAKE = 1 << 15

#: Flags, index of the workflow, session, seq, size of the id in bytes, created_at and completed_at.
_ROW = Struct("=HIQQIdd")
#: Sizes of parent, message, error_message and key in bytes, recoveries, updated_at and wake_at.
_REST = Struct("=IIIIQdd")
_FLAGS_AND_WORKFLOW = Struct("=HI")
_SEQ = Struct("=Q")
_SEQ_AT = 14


class EndedTable:
    """
    Headers and spans of ended instances, by number.

    Args:
        pages: What the ``pages`` of another table were.
        workflows: What its ``workflows`` were.
    """

    def __init__(self, pages: dict[int, bytes] | None = None, workflows: list[str] | None = None) -> None:
        self.pages: dict[int, bytes] = {} if pages is None else pages
        "Each page by the numbers on it, divided by 64."
        self.workflows: list[str] = [] if workflows is None else [sys.intern(name) for name in workflows]
        "Names of workflows. Rows refer to them by index, so none ever goes."
        self._indexes = {name: index for index, name in enumerate(self.workflows)}
        self._order = sorted(self.pages)

    def __contains__(self, number: int) -> bool:
        page = self.pages.get(number >> PAGE_BITS)
        return page is not None and bool(_mask_of(page) >> (number & _SLOT_MASK) & 1)

    def add(self, header: InstanceHeader, spans: array[int]) -> None:
        """
        Take in a header that has ended, and the spans of its records. There is none of its number yet.
        """
        number = header.number
        self._put(number, self._pack(header, spans), _STATUS_CODES[header.status])

    def add_completed(self, place: int, rows: dict[int, bytes]) -> None:
        """
        Take in rows of ``completed_row`` on one page at a time. There are none of their numbers yet.

        Args:
            place: The numbers on the page, divided by 64.
            rows: Each row by the rest of that division.
        """
        page = self.pages.get(place)
        masks = [0, 0, 0]
        if page is None:
            insort(self._order, place)
        else:
            masks[:] = _MASKS.unpack_from(page)
            rows = rows | _rows_of(page)
        slots = sorted(rows)
        bodies = [rows[slot] for slot in slots]
        masks[_COMPLETED] = sum(1 << slot for slot in slots) & ~(masks[_FAILED] | masks[_CANCELLED])
        ends = array("I", accumulate(map(len, bodies), initial=0))
        self.pages[place] = b"".join((_MASKS.pack(*masks), ends, *bodies))

    def index_of(self, workflow: str) -> int:
        """
        Return what rows refer to a workflow by.
        """
        index = self._indexes.get(workflow)
        if index is None:
            index = self._indexes[workflow] = len(self.workflows)
            self.workflows.append(workflow)
        return index

    def remove(self, number: int) -> None:
        """
        Drop a row.

        Raises:
            KeyError: There is none.
        """
        page, index = self._place_of(number)
        masks = _MASKS.unpack_from(page)
        left = ~(1 << (number & _SLOT_MASK))
        if not (masks[0] | masks[1] | masks[2]) & left:
            del self.pages[number >> PAGE_BITS]
            del self._order[bisect_right(self._order, number >> PAGE_BITS) - 1]
            return
        ends, body = _split(page)
        start, end = ends[index : index + 2]
        ends[index + 1 :] = array("I", [each - (end - start) for each in ends[index + 2 :]])
        new_masks = _MASKS.pack(*(mask & left for mask in masks))
        self.pages[number >> PAGE_BITS] = b"".join((new_masks, ends, body[:start], body[end:]))

    def header(self, number: int) -> InstanceHeader:
        """
        Return the header of an instance, as a new object.

        Raises:
            KeyError: There is none.
        """
        return self._unpack(number, self._row(number))

    def spans(self, number: int) -> array[int]:
        """
        Return the spans of an instance's records, as a new array.

        Raises:
            KeyError: There is none.
        """
        row = self._row(number)
        return array("Q", row[_spans_at(row) :])

    def replace_spans(self, number: int, spans: array[int]) -> None:
        """
        Say where else an instance's records are.

        Raises:
            KeyError: There is none.
        """
        row = self._row(number)
        code = _FLAGS_AND_WORKFLOW.unpack_from(row)[0] & _STATUS_BITS
        self.remove(number)
        self._put(number, row[: _spans_at(row)] + spans.tobytes(), code)

    def seq(self, number: int) -> int | None:
        """
        Return the sequence number of an instance's newest record, or None if it has no row.
        """
        if number not in self:
            return None
        found: int = _SEQ.unpack_from(self._row(number), _SEQ_AT)[0]
        return found

    def has_name(self, number: int, workflow: str, instance_id: bytes) -> bool:
        """
        Tell whether the row of that number, which exists, is of that workflow and that id (in the form of ``encoded``).
        """
        row = self._row(number)
        _, index, _, _, size, _, _ = _ROW.unpack_from(row)
        if self._indexes.get(workflow) != index or size != len(instance_id):
            return False
        return row.startswith(instance_id, _texts_at(row))

    def numbers(
        self, *, after: int = 0, workflow: str | None = None, status: MetadataStatus | None = None
    ) -> Iterator[int]:
        """
        Yield the numbers of the rows that match, in ascending order. Not to be gone on with after a change.
        """
        if workflow is not None and workflow not in self._indexes:
            return
        index = None if workflow is None else self._indexes[workflow]
        first = after + 1
        for place in self._order[max(0, bisect_right(self._order, first >> PAGE_BITS) - 1) :]:
            page = self.pages[place]
            masks = _MASKS.unpack_from(page)
            mask = masks[0] | masks[1] | masks[2] if status is None else masks[_STATUS_CODES[status]]
            number = place << PAGE_BITS
            if number < first:
                mask &= -1 << (first - number)
            while mask > 0:
                bit = mask & -mask
                found = number + bit.bit_length() - 1
                if index is None or _FLAGS_AND_WORKFLOW.unpack_from(self._row(found))[1] == index:
                    yield found
                mask ^= bit

    def masks(self) -> Iterator[tuple[int, int]]:
        """
        Yield each page's place with a mask of the numbers that have rows on it.
        """
        for place, page in self.pages.items():
            yield place, _mask_of(page)

    def _pack(self, header: InstanceHeader, spans: array[int]) -> bytes:
        workflow = self.index_of(header.workflow)
        assert header.completed_at is not None
        flags = _flags_of(header)
        instance_id = encoded(header.instance_id)
        if flags & _HAS_REST:
            rest, texts = _pack_rest(header)
        else:
            rest = texts = b""
        fixed = _ROW.pack(
            flags,
            workflow,
            header.session,
            header.seq,
            len(instance_id),
            header.created_at,
            header.completed_at,
        )
        return b"".join((fixed, rest, instance_id, texts, spans))

    def _unpack(self, number: int, row: bytes) -> InstanceHeader:
        flags, workflow, session, seq, size, created_at, completed_at = _ROW.unpack_from(row)
        start = _texts_at(row)
        header = InstanceHeader(
            number=number,
            workflow=self.workflows[workflow],
            instance_id=_decoded(row[start : start + size]),
            created_at=created_at,
            updated_at=completed_at,
            session=session,
            status=_STATUSES[flags & _STATUS_BITS],
            completed_at=completed_at,
            seq=seq,
            flags=(flags & _FLAGS_BITS) >> _FLAGS_SHIFT,
        )
        if flags & _HAS_REST:
            _unpack_rest(header, flags, row, start + size)
        return header

    def _row(self, number: int) -> bytes:
        page, index = self._place_of(number)
        start, end = _BOUNDS.unpack_from(page, _ENDS_AT + index * _END.size)
        body = _ENDS_AT + _END.size * (_mask_of(page).bit_count() + 1)
        return page[body + start : body + end]

    def _place_of(self, number: int) -> tuple[bytes, int]:
        """Return the page of a number, and how many rows stand before its row."""
        page = self.pages.get(number >> PAGE_BITS)
        bit = 1 << (number & _SLOT_MASK)
        mask = 0 if page is None else _mask_of(page)
        if page is None or not mask & bit:
            raise KeyError(number)
        return page, (mask & (bit - 1)).bit_count()

    def _put(self, number: int, row: bytes, code: int) -> None:
        place, bit = number >> PAGE_BITS, 1 << (number & _SLOT_MASK)
        page = self.pages.get(place)
        if page is None:
            page = _MASKS.pack(0, 0, 0) + _END.pack(0)
            insort(self._order, place)
        completed, failed, cancelled = _MASKS.unpack_from(page)
        mask = completed | failed | cancelled
        assert not mask & bit, f"instance {number} has a row already"
        masks = _MASKS.pack(
            completed | bit if code == _COMPLETED else completed,
            failed | bit if code == _FAILED else failed,
            cancelled | bit if code == _CANCELLED else cancelled,
        )
        if bit > mask:
            # Instances end in about the order of their numbers.
            body_at = _ENDS_AT + _END.size * (mask.bit_count() + 1)
            end = _END.pack(len(page) - body_at + len(row))
            self.pages[place] = b"".join((masks, page[_ENDS_AT:body_at], end, page[body_at:], row))
            return
        index = (mask & (bit - 1)).bit_count()
        ends, body = _split(page)
        start = ends[index]
        ends[index + 1 :] = array("I", [each + len(row) for each in ends[index:]])
        self.pages[place] = b"".join((masks, ends, body[:start], row, body[start:]))


@functools.lru_cache(maxsize=1024)
def completed_row(id_size: int, count: int) -> Callable[..., bytes]:
    """
    Return what packs the row of an instance of which nothing is unusual, without a header.

    Its arguments are: ``PLAIN``, the index of the workflow, session, seq, *id_size*, created_at, completed_at, the id
    in the form of ``encoded``, and *count* spans.
    """
    return Struct(f"{_ROW.format}{id_size}s{count}Q").pack


def encoded(text: str) -> bytes:
    """
    Return a text in UTF-8. Texts may hold halves of surrogate pairs, which UTF-8 has no form for.
    """
    return text.encode("utf-8", "surrogatepass")


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "surrogatepass")


def _mask_of(page: bytes) -> int:
    completed, failed, cancelled = _MASKS.unpack_from(page)
    found: int = completed | failed | cancelled
    return found


def _split(page: bytes) -> tuple[array[int], bytes]:
    """Return the ends of a page's rows, and the rows."""
    body_at = _ENDS_AT + _END.size * (_mask_of(page).bit_count() + 1)
    return array("I", page[_ENDS_AT:body_at]), page[body_at:]


def _rows_of(page: bytes) -> dict[int, bytes]:
    """Return the rows of a page by their places among its 64 numbers."""
    ends, body = _split(page)
    slots = [slot for slot in range(1 << PAGE_BITS) if _mask_of(page) >> slot & 1]
    return {slot: body[start:end] for slot, start, end in zip(slots, ends, ends[1:], strict=False)}


def _texts_at(row: bytes) -> int:
    flags = _FLAGS_AND_WORKFLOW.unpack_from(row)[0]
    return _ROW.size + _REST.size if flags & _HAS_REST else _ROW.size


def _spans_at(row: bytes) -> int:
    flags, _, _, _, size, _, _ = _ROW.unpack_from(row)
    found: int = _ROW.size + size
    if flags & _HAS_REST:
        found += _REST.size + sum(_REST.unpack_from(row, _ROW.size)[:4])
    return found


def _flags_of(header: InstanceHeader) -> int:
    return _STATUS_CODES[header.status] | header.flags << _FLAGS_SHIFT | _rest_flags_of(header)


def _rest_flags_of(header: InstanceHeader) -> int:
    flags = 0
    if header.parent is not None:
        flags |= _HAS_PARENT
    if header.message is not None:
        flags |= _HAS_MESSAGE
    if header.error_message is not None:
        flags |= _HAS_ERROR
    if header.key is not None:
        flags |= _HAS_KEY
    if header.wake_at is not None:
        flags |= _HAS_WAKE
    if flags or header.recoveries or header.updated_at != header.completed_at:
        flags |= _HAS_REST
    return flags


def _pack_rest(header: InstanceHeader) -> tuple[bytes, bytes]:
    """Return the second part of a row, and the texts behind the id."""
    texts = [encoded(text or "") for text in (header.parent, header.message, header.error_message, header.key)]
    rest = _REST.pack(*map(len, texts), header.recoveries, header.updated_at, header.wake_at or 0.0)
    return rest, b"".join(texts)


def _unpack_rest(header: InstanceHeader, flags: int, row: bytes, start: int) -> None:
    *sizes, recoveries, updated_at, wake_at = _REST.unpack_from(row, _ROW.size)
    texts: list[str] = []
    for size in sizes:
        texts.append(_decoded(row[start : start + size]))
        start += size
    if flags & _HAS_PARENT:
        header.parent = texts[0]
    if flags & _HAS_MESSAGE:
        header.message = texts[1]
    if flags & _HAS_ERROR:
        header.error_message = texts[2]
    if flags & _HAS_KEY:
        header.key = texts[3]
    if flags & _HAS_WAKE:
        header.wake_at = wake_at
    header.recoveries = recoveries
    header.updated_at = updated_at
