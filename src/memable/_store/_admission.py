"""
Decides which records may be queued, while those before them are not durable yet.

A record must follow the newest one of its instance, be that written or on its way: so two writers never get the same
sequence number, and no two instances the same name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import attrs

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


# What may follow an instance's newest record. Numbers, and no enum: they are used for each record.
_OPEN = 0
"Anything but a retirement."
_ENDED = 1
"A resume or a retirement."
_RETIRED = 2
"Nothing."

_PHASES: dict[type[InstanceRecord], int] = {
    InstanceCompleted: _ENDED,
    InstanceFailed: _ENDED,
    InstanceCancelled: _ENDED,
    InstanceRetired: _RETIRED,
}
"The phase that a record puts its instance into, if that is not OPEN."


_Newest: TypeAlias = int
"""
Of an instance's newest record, written or queued, the sequence number and, in the two lowest bits, the phase.

One number: thousands of records may be on their way, and the garbage collector would look at each pair again and again.
"""
_PHASE_BITS = 2
_PHASE = 3


def _newest_of(record: InstanceRecord) -> _Newest:
    return record.seq << _PHASE_BITS | _PHASES.get(type(record), _OPEN)


class DurableInstances(Protocol):
    """
    What is durable of the instances that there are.
    """

    last_number: int
    "The greatest number given to an instance so far."

    def newest(self, number: int) -> tuple[int, bool] | None:
        """
        Return the sequence number of an instance's newest record and whether the instance has ended, or None.
        """
        ...

    def number_of(self, workflow: str, instance_id: str) -> int | None:
        """
        Return the number of an instance, or None.
        """
        ...


@attrs.define(eq=False)
class Admission:
    """
    The records that are on their way, and what may follow them.
    """

    _durable: DurableInstances
    _queued: dict[int, _Newest] = attrs.field(factory=dict[int, _Newest], init=False)
    "The last record on its way of each instance that has any."
    _queued_names: dict[_Name, int] = attrs.field(factory=dict[_Name, int], init=False)
    "Numbers of the instances whose start is on its way, by their names: of several, the newest."

    def admit(self, records: Sequence[InstanceRecord]) -> None:
        """
        Take note that *records* are about to be written.

        Raises:
            ValueError: They do not follow what is written or queued. Nothing was noted.
        """
        if not records:
            raise ValueError("an append needs at least one record")
        if len(records) == 1:
            # The usual case.
            record = records[0]
            if type(record) is InstanceStarted:
                self._check_start(record, {}, {})
                self._queued_names[record.workflow, record.instance_id] = record.instance
            else:
                _check_next(record, self._newest(record.instance))
            self._queued[record.instance] = _newest_of(record)
            return
        queued: dict[int, _Newest] = {}
        names: dict[_Name, int] = {}
        for record in records:
            number = record.instance
            if type(record) is InstanceStarted:
                self._check_start(record, queued, names)
                names[record.workflow, record.instance_id] = number
            else:
                _check_next(record, queued.get(number) or self._newest(number))
            queued[number] = _newest_of(record)
        self._queued |= queued
        self._queued_names |= names

    def has_start(self, record: InstanceStarted) -> bool:
        """
        Tell whether a start is on its way: then nobody else has its name.
        """
        return self._queued_names.get((record.workflow, record.instance_id)) == record.instance

    def settle(self, record: InstanceRecord) -> None:
        """
        Take note that a record is durable.
        """
        number = record.instance
        queued = self._queued.get(number)
        if queued is not None and queued >> _PHASE_BITS == record.seq:
            del self._queued[number]
        if type(record) is InstanceStarted:
            name = (record.workflow, record.instance_id)
            if self._queued_names.get(name) == number:
                del self._queued_names[name]

    def _newest(self, number: int) -> _Newest:
        queued = self._queued.get(number)
        if queued is not None:
            return queued
        newest = self._durable.newest(number)
        if newest is None:
            raise ValueError(f"there is no instance {number}")
        return newest[0] << _PHASE_BITS | (_ENDED if newest[1] else _OPEN)

    def _check_start(self, record: InstanceStarted, queued: dict[int, _Newest], names: dict[_Name, int]) -> None:
        """Check a start behind those of its own batch."""
        number = record.instance
        name = (record.workflow, record.instance_id)
        if number in queued or number in self._queued or self._durable.newest(number) is not None:
            raise ValueError(f"instance {number} starts a second time")
        if not 0 < number <= self._durable.last_number:
            raise ValueError(f"number {number} was not allocated")
        if record.seq != 1:
            raise ValueError(f"the first record of instance {number} has sequence number {record.seq}, not 1")
        holder = names.get(name) or self._queued_names.get(name) or self._durable.number_of(*name)
        if holder is not None and (queued.get(holder) or self._newest(holder)) & _PHASE != _RETIRED:
            raise ValueError(f"workflow {name[0]!r} has an instance {name[1]!r} already")


def _check_next(record: InstanceRecord, newest: _Newest) -> None:
    """Check that a record may follow the newest one of its instance."""
    number = record.instance
    seq, phase = newest >> _PHASE_BITS, newest & _PHASE
    if phase == _RETIRED:
        raise ValueError(f"instance {number} was retired, so no {record.kind} record can follow")
    if record.seq != seq + 1:
        raise ValueError(f"record {record.seq} of instance {number} cannot follow its record {seq}")
    if type(record) is InstanceRetired:
        if phase == _OPEN:
            raise ValueError(f"instance {number} has not ended, so it cannot be retired")
    elif phase == _ENDED and type(record) is not InstanceResumed:
        raise ValueError(f"instance {number} has ended, so no {record.kind} record can follow")
