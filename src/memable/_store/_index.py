"""
What is known of every instance without reading its journal, and which record may follow.

A record counts twice: when it is queued (``admit``), so that two writers never get the same sequence number, and when
it is durable (``fold``), so that nobody sees what may yet be lost. Used alike by every store that keeps headers in
memory.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence

import attrs

from .._journal import InstanceHeader, header_of
from .._records import (
    InstanceCancelled,
    InstanceCompleted,
    InstanceFailed,
    InstanceRecord,
    InstanceResumed,
    InstanceStarted,
)

_ENDINGS = frozenset((InstanceCompleted, InstanceFailed, InstanceCancelled))


@attrs.define
class HeaderIndex:
    """
    The headers of a store's instances, by number and by name.
    """

    last_number: int = 0
    "The greatest number given to an instance so far, whether it was used or not."
    _by_number: dict[int, InstanceHeader] = attrs.field(factory=dict[int, InstanceHeader])
    _by_name: dict[tuple[str, str], InstanceHeader] = attrs.field(factory=dict[tuple[str, str], InstanceHeader])
    _numbers: list[int] = attrs.field(factory=list[int])
    "All numbers in ascending order: instances may become durable in another order than they were numbered."
    _queued: dict[int, tuple[int, bool]] = attrs.field(factory=dict[int, tuple[int, bool]])
    "For each instance with records on their way: the sequence number of the last of them, and whether it ends it."
    _queued_names: set[tuple[str, str]] = attrs.field(factory=set[tuple[str, str]])

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
        by_number = self._by_number
        return [by_number[n] for n in self._numbers[bisect_right(self._numbers, number) :]]

    def admit(self, records: Sequence[InstanceRecord]) -> None:
        """
        Take note that *records* are about to be written.

        Raises:
            ValueError: They do not follow what is written or queued. Nothing was noted.
        """
        if not records:
            raise ValueError("an append needs at least one record")
        queued: dict[int, tuple[int, bool]] = {}
        names: set[tuple[str, str]] = set()
        for record in records:
            number = record.instance
            if type(record) is InstanceStarted:
                if number in queued:
                    raise ValueError(f"instance {number} starts a second time")
                names.add(self._check_start(record, names))
                queued[number] = (1, False)
                continue
            seq, ended = queued.get(number) or self._newest(number)
            if record.seq != seq + 1:
                raise ValueError(f"record {record.seq} of instance {number} cannot follow its record {seq}")
            if type(record) is InstanceResumed:
                ended = False
            elif ended:
                raise ValueError(f"instance {number} has ended, so no {record.kind} record can follow")
            queued[number] = (record.seq, type(record) in _ENDINGS)
        self._queued.update(queued)
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
        elif isinstance(record, InstanceStarted):
            header = self._start(record)
        else:
            raise ValueError(f"instance {number} has a {record.kind} record, but never started")
        queued = self._queued.get(number)
        if queued is not None and queued[0] == header.seq:
            del self._queued[number]

    def _newest(self, number: int) -> tuple[int, bool]:
        queued = self._queued.get(number)
        if queued is not None:
            return queued
        header = self._by_number.get(number)
        if header is None:
            raise ValueError(f"there is no instance {number}")
        return header.seq, header.status.is_terminal

    def _check_start(self, record: InstanceStarted, names: set[tuple[str, str]]) -> tuple[str, str]:
        number = record.instance
        name = (record.workflow, record.instance_id)
        if number in self._by_number or number in self._queued:
            raise ValueError(f"instance {number} starts a second time")
        if not 0 < number <= self.last_number:
            raise ValueError(f"number {number} was not allocated")
        if record.seq != 1:
            raise ValueError(f"the first record of instance {number} has sequence number {record.seq}, not 1")
        if name in self._by_name or name in self._queued_names or name in names:
            raise ValueError(f"workflow {name[0]!r} has an instance {name[1]!r} already")
        return name

    def _start(self, record: InstanceStarted) -> InstanceHeader:
        number = record.instance
        name = (record.workflow, record.instance_id)
        if name in self._by_name:
            raise ValueError(f"workflow {name[0]!r} has two instances {name[1]!r}")
        header = header_of(record)
        self._by_number[number] = self._by_name[name] = header
        insort(self._numbers, number)
        self.last_number = max(self.last_number, number)
        self._queued_names.discard(name)
        return header
