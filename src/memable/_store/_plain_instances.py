"""
Holds instances of which recovery has seen nothing but the usual, in no more than it takes to go on.

The usual is that an instance starts, is no child, makes progress and completes, one record after the other. Most that
ever ran are of that kind. Until somebody asks, or something else is seen, each is a list of what its lines say, as
bytes. Then it becomes what all others are: live, with a header, or packed, a whole page of the table at a time.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping
from typing import Any, Protocol, cast
from zlib import crc32

import attrs

from .._ended_table import PAGE_BITS, PLAIN, completed_row
from .._header import InstanceHeader
from .._json import loads
from ._ended_index import EndedIndex, crc_of

PlainInstance = list[Any]
"""
In this order: the time of its newest record, its origin, its number, its id, the time of its start, and the span of
each of its records. Times and id as the lines have them. A list, since recovery makes one for each instance that there
is, and goes on with it for each line.
"""
NEWEST_AT = 0
_ORIGIN, _NUMBER, _ID, _CREATED_AT, _SPANS = range(1, 6)

#: One with more records is no longer held here: few have as many.
_MAX_RECORDS = 250
#: What the sequence number of the next record is, by the length of the list; nothing is equal to the last one.
NEXT_SEQS = (*(b"%d" % (length - _SPANS + 1) for length in range(_SPANS + _MAX_RECORDS)), None)

_SLOT_MASK = (1 << PAGE_BITS) - 1
#: A page of the table is written when all of its instances have ended, or else when so many wait for that.
_MAX_OPEN_PAGES = 128
#: There are few sessions and workflows, but nothing promises it.
_MAX_ORIGINS = 1024

#: What stands before the number and before the time in the record of a start, beside those themselves.
_HEAD_SIZE = len(b'{"kind":"instance_started","instance":') + len(b',"seq":1,"at":')
_ORIGIN_TEXT = re.compile(rb',"session":([0-9]{1,18}),"workflow":"([^"\\]*)')
_ID_FOLLOWS = b'","instance_id":"'
_TYPE_FOLLOWS = b'","type":"'


@attrs.define(eq=False)
class _Origin:
    """What the starts of many instances have in common."""

    session: int
    workflow: str
    index: int
    "What the table refers to the workflow by."
    crc: int
    "What ``crc_of`` the workflow is."
    live: Mapping[str, InstanceHeader]
    "The instances of that workflow that live, by their ids."
    times: array[float]
    "Where the times of its instances' ends go."
    numbers: array[int]
    "Where their numbers go."


class Index(Protocol):
    """
    What holds all instances that are not plain.
    """

    last_number: int
    "The greatest number given to an instance so far."

    def is_new(self, number: int) -> bool:
        """
        Tell whether there is neither an instance nor an orphan of that number.
        """
        ...

    def live_ids(self, workflow: str) -> Mapping[str, InstanceHeader]:
        """
        Return the instances of a workflow that live, by their ids: an object that changes with them.
        """
        ...

    def begin(self, header: InstanceHeader, spans: array[int]) -> None:
        """
        Take in an instance that has not ended.
        """
        ...

    def note_present(self, place: int, mask: int) -> None:
        """
        Take note that instances exist: those of a mask of 64 numbers, which are *place* times 64 and following.
        """
        ...


@attrs.define(eq=False)
class PlainInstances:
    """
    Instances that have started and made progress, and those that have completed since.
    """

    _index: Index
    _ended: EndedIndex
    running: dict[bytes, PlainInstance] = attrs.field(factory=dict[bytes, PlainInstance], init=False)
    "Those that have not ended, by their numbers as lines have them."
    _pages: dict[int, dict[int, PlainInstance]] = attrs.field(factory=dict[int, "dict[int, PlainInstance]"], init=False)
    "Those that have completed: by their numbers, divided by 64, and the rest of that."
    _origins: dict[bytes, _Origin] = attrs.field(factory=dict[bytes, _Origin], init=False)
    "By the text that says them."

    def has(self, number: int) -> bool:
        """
        Tell whether an instance is here.
        """
        return b"%d" % number in self.running or (number & _SLOT_MASK) in self._pages.get(number >> PAGE_BITS, ())

    def start(self, line: bytes, digits: bytes, at: bytes, span: int) -> bool:
        """
        Take in an instance that has just started, if nothing about that is unusual; return whether it was done.

        Args:
            line: The line that says so.
            digits: What it says of the instance's number.
            at: What it says of the time.
            span: Its span.
        """
        number = int(digits)
        index = self._index
        if number <= index.last_number and not index.is_new(number):
            return False
        origin_at = line.index(b"{") + _HEAD_SIZE + len(digits) + len(at)
        origin_end = line.find(_ID_FOLLOWS, origin_at)
        origin = self._origins.get(line[origin_at:origin_end]) or self._add_origin(line[origin_at:origin_end])
        id_end = line.find(b'"', origin_end + len(_ID_FOLLOWS))
        # Unless its value follows, it says more: of a parent, for example.
        if origin is None or not line.startswith(_TYPE_FOLLOWS, id_end):
            return False
        instance_id = line[origin_end + len(_ID_FOLLOWS) : id_end]
        if b"\\" in instance_id or (origin.live and instance_id.decode() in origin.live):
            return False
        # Another way to write the same number would be another key.
        if digits.startswith(b"0") or not self._ended.reserve(crc32(instance_id, origin.crc), number):
            return False
        self.running[digits] = [at, origin, number, instance_id, at, span]
        index.last_number = max(index.last_number, number)
        return True

    def complete(self, digits: bytes, at: bytes, span: int) -> None:
        """
        Take note that an instance has completed: one of ``running``, whose next record that is.
        """
        plain = self.running.pop(digits)
        plain[NEWEST_AT] = at
        plain.append(span)
        number: int = plain[_NUMBER]
        place = number >> PAGE_BITS
        page = self._pages.get(place)
        if page is None:
            page = self._pages[place] = {}
            if len(self._pages) > _MAX_OPEN_PAGES:
                self._close(next(iter(self._pages)))
        page[number & _SLOT_MASK] = plain
        if len(page) > _SLOT_MASK:
            self._close(place)

    def settle(self, number: int) -> None:
        """
        Have an instance elsewhere that is here, if one is.
        """
        plain = self.running.pop(b"%d" % number, None)
        if plain is not None:
            self._begin(plain)
        elif (number & _SLOT_MASK) in self._pages.get(number >> PAGE_BITS, ()):
            self._close(number >> PAGE_BITS)

    def settle_name(self, workflow: str, instance_id: str) -> None:
        """
        Have an instance of that name elsewhere, if one is here.
        """
        number = self._ended.reserved(workflow, instance_id)
        if number is not None:
            self.settle(number)

    def settle_all(self) -> None:
        """
        Have all instances elsewhere.
        """
        for place in list(self._pages):
            self._close(place)
        while self.running:
            self._begin(self.running.pop(next(iter(self.running))))
        self._origins.clear()
        self._ended.sort()

    def _add_origin(self, text: bytes) -> _Origin | None:
        found = _ORIGIN_TEXT.fullmatch(text)
        if found is None:
            return None
        workflow = found[2].decode()
        if len(self._origins) >= _MAX_ORIGINS:
            self._origins.clear()
        origin = self._origins[text] = _Origin(
            int(found[1]),
            workflow,
            self._ended.table.index_of(workflow),
            crc_of(workflow),
            self._index.live_ids(workflow),
            *self._ended.late_ends(workflow),
        )
        return origin

    def _begin(self, plain: PlainInstance) -> None:
        """Have one live that has not ended."""
        newest_at, origin, number, instance_id, created_at, *spans = plain
        name: str = instance_id.decode()
        self._ended.release(origin.workflow, name, number)
        header = InstanceHeader(
            number=number,
            workflow=origin.workflow,
            instance_id=name,
            created_at=float(created_at),
            updated_at=float(newest_at),
            session=origin.session,
            seq=len(spans),
        )
        self._index.begin(header, array("Q", spans))

    def _close(self, place: int) -> None:
        """Pack those that have completed and share a page."""
        page = self._pages.pop(place)
        # To convert a number in JSON takes a tenth of what it takes on its own.
        begun, ended = (
            cast("list[float]", loads(b"[%b]" % b",".join([plain[field] for plain in page.values()])))
            for field in (_CREATED_AT, NEWEST_AT)
        )
        rows: dict[int, bytes] = {}
        mask = 0
        for (slot, plain), created_at, completed_at in zip(page.items(), begun, ended, strict=True):
            _, origin, number, instance_id, _, *spans = plain
            size, count = len(instance_id), len(spans)
            rows[slot] = completed_row(size, count)(
                PLAIN,
                origin.index,
                origin.session,
                count,
                size,
                created_at,
                completed_at,
                instance_id,
                *spans,
            )
            origin.times.append(completed_at)
            origin.numbers.append(number)
            mask |= 1 << slot
        self._ended.add_plain(place, rows)
        self._index.note_present(place, mask)
