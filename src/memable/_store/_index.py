"""
What is known of every instance without reading its journal, and which record may follow.

A record counts twice: when it is queued (``admit``), so that two writers never get the same sequence number, and when
it is durable (``fold``), so that nobody sees what may yet be lost. Used alike by every store that keeps headers in
memory.
"""

from __future__ import annotations

import enum
from bisect import bisect_right, insort
from collections.abc import Sequence

import attrs

from .._header import InstanceHeader, header_of
from .._records import (
    InstanceCancelled,
    InstanceCompleted,
    InstanceFailed,
    InstanceRecord,
    InstanceResumed,
    InstanceRetired,
    InstanceStarted,
)

_Name = tuple[str, str]
"Workflow and instance id."


class _Phase(enum.Enum):
    """What may follow an instance's newest record."""

    OPEN = enum.auto()
    "Anything but a retirement."
    ENDED = enum.auto()
    "A resume or a retirement."
    RETIRED = enum.auto()
    "Nothing."


_PHASES: dict[type[InstanceRecord], _Phase] = {
    InstanceCompleted: _Phase.ENDED,
    InstanceFailed: _Phase.ENDED,
    InstanceCancelled: _Phase.ENDED,
    InstanceRetired: _Phase.RETIRED,
}
"The phase that a record puts its instance into, if that is not OPEN."


_Newest = tuple[int, _Phase]
"Of an instance's newest record, written or queued, the sequence number and what may follow it. Made for each record."


@attrs.define
class HeaderIndex:
    """
    The headers of a store's instances, by number and by name.
    """

    last_number: int = 0
    "The greatest number given to an instance so far, whether it was used or not."
    _by_number: dict[int, InstanceHeader] = attrs.field(factory=dict[int, InstanceHeader])
    _by_name: dict[_Name, InstanceHeader] = attrs.field(factory=dict[_Name, InstanceHeader])
    _ordered: list[InstanceHeader] = attrs.field(factory=list[InstanceHeader])
    "All headers by number: instances may become durable in another order. Retired ones stay until they are many."
    _retired_count: int = 0
    "How many of those are retired."
    _queued: dict[int, _Newest] = attrs.field(factory=dict[int, _Newest])
    "The last record on its way of each instance that has any."
    _queued_names: dict[_Name, int] = attrs.field(factory=dict[_Name, int])
    "Numbers of the instances whose start is on its way, by their names: of several, the newest."

    def allocate_number(self) -> int:
        """
        Return a number that was never given out before by this object.
        """
        self.last_number += 1
        return self.last_number

    def find(self, workflow: str, instance_id: str) -> InstanceHeader | None:
        """
        Return the header of an instance, or None.
        """
        return self._by_name.get((workflow, instance_id))

    def after(self, number: int) -> list[InstanceHeader]:
        """
        Return the headers of the instances with a greater number, in ascending order.
        """
        found = self._ordered[bisect_right(self._ordered, number, key=_number) :]
        return list(filter(self._is_kept, found)) if self._retired_count else found

    def admit(self, records: Sequence[InstanceRecord]) -> None:
        """
        Take note that *records* are about to be written.

        Raises:
            ValueError: They do not follow what is written or queued. Nothing was noted.
        """
        if not records:
            raise ValueError("an append needs at least one record")
        queued: dict[int, _Newest] = {}
        names: dict[_Name, int] = {}
        for record in records:
            number = record.instance
            if type(record) is InstanceStarted:
                self._check_start(record, queued, names)
                names[record.workflow, record.instance_id] = number
            else:
                _check_next(record, queued.get(number) or self._newest(number))
            queued[number] = (record.seq, _PHASES.get(type(record), _Phase.OPEN))
        self._queued |= queued
        self._queued_names |= names

    def fold(self, record: InstanceRecord) -> None:
        """
        Take in the next durable record.

        Raises:
            ValueError: It cannot follow the ones before it.
        """
        number = record.instance
        header = self._by_number.get(number)
        if header is not None:
            header.apply(record)
            if type(record) is InstanceRetired:
                self._remove(header)
        elif isinstance(record, InstanceStarted):
            header = self._start(record)
        else:
            raise ValueError(f"instance {number} has a {record.kind} record, but never started")
        queued = self._queued.get(number)
        if queued is not None and queued[0] == header.seq:
            del self._queued[number]

    def _newest(self, number: int) -> _Newest:
        queued = self._queued.get(number)
        if queued is not None:
            return queued
        header = self._by_number.get(number)
        if header is None:
            raise ValueError(f"there is no instance {number}")
        return header.seq, _Phase.ENDED if header.status.is_terminal else _Phase.OPEN

    def _check_start(self, record: InstanceStarted, queued: dict[int, _Newest], names: dict[_Name, int]) -> None:
        """Check a start behind those of its own batch."""
        number = record.instance
        name = (record.workflow, record.instance_id)
        if number in self._by_number or number in self._queued or number in queued:
            raise ValueError(f"instance {number} starts a second time")
        if not 0 < number <= self.last_number:
            raise ValueError(f"number {number} was not allocated")
        if record.seq != 1:
            raise ValueError(f"the first record of instance {number} has sequence number {record.seq}, not 1")
        holder = names.get(name) or self._queued_names.get(name)
        if holder is None and name in self._by_name:
            holder = self._by_name[name].number
        if holder is not None and (queued.get(holder) or self._newest(holder))[1] is not _Phase.RETIRED:
            raise ValueError(f"workflow {name[0]!r} has an instance {name[1]!r} already")

    def _start(self, record: InstanceStarted) -> InstanceHeader:
        number = record.instance
        name = (record.workflow, record.instance_id)
        if name in self._by_name:
            raise ValueError(f"workflow {name[0]!r} has two instances {name[1]!r}")
        header = header_of(record)
        self._by_number[number] = self._by_name[name] = header
        insort(self._ordered, header, key=_number)
        self.last_number = max(self.last_number, number)
        if self._queued_names.get(name) == number:
            del self._queued_names[name]
        return header

    def _remove(self, header: InstanceHeader) -> None:
        del self._by_number[header.number]
        del self._by_name[header.workflow, header.instance_id]
        self._retired_count += 1
        if 2 * self._retired_count > len(self._ordered):
            self._ordered = list(filter(self._is_kept, self._ordered))
            self._retired_count = 0

    def _is_kept(self, header: InstanceHeader) -> bool:
        return self._by_number.get(header.number) is header


def _check_next(record: InstanceRecord, newest: _Newest) -> None:
    """Check that a record may follow the newest one of its instance."""
    number = record.instance
    seq, phase = newest
    if phase is _Phase.RETIRED:
        raise ValueError(f"instance {number} was retired, so no {record.kind} record can follow")
    if record.seq != seq + 1:
        raise ValueError(f"record {record.seq} of instance {number} cannot follow its record {seq}")
    if type(record) is InstanceRetired:
        if phase is _Phase.OPEN:
            raise ValueError(f"instance {number} has not ended, so it cannot be retired")
    elif phase is _Phase.ENDED and type(record) is not InstanceResumed:
        raise ValueError(f"instance {number} has ended, so no {record.kind} record can follow")


def _number(header: InstanceHeader) -> int:
    return header.number
