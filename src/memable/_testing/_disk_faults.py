"""
The faults of disks, by name, and which calls of a disk they happen to.
"""

from __future__ import annotations

import errno
from collections.abc import Collection
from enum import Enum
from typing import Literal, TypeAlias, get_args

import attrs

from .._numbers import is_count
from ._simulated_disk import Fault

DiskCall: TypeAlias = Literal[
    "check",
    "create",
    "list_names",
    "lock",
    "make_directory",
    "open",
    "read",
    "remove",
    "remove_directory",
    "rename",
    "restrict_directory",
    "size",
    "sync",
    "sync_directory",
    "truncate",
    "write",
]
"What a store may ask of its disk. ``check`` makes sure that the lock is still held."

#: Of a short write so many bytes reach the disk: less than any record has.
_SHORT_BYTES = 20

_TAKES_ROOM: tuple[DiskCall, ...] = ("create", "make_directory", "write")
_CHANGES: tuple[DiskCall, ...] = (*_TAKES_ROOM, "remove", "remove_directory", "rename", "truncate")


class DiskFault(Enum):
    """
    What may go wrong with a disk.
    """

    FULL = "full"
    "``ENOSPC``: what takes room fails, and takes none."
    QUOTA = "quota"
    "``EDQUOT``: the same, for this user only."
    SHORT_WRITE = "short write"
    "The disk becomes full within a write: it takes a few bytes, and then ``ENOSPC``."
    IO_ERROR = "input or output error"
    "``EIO``: a write fails, and changes nothing."
    UNREADABLE = "unreadable"
    "``EIO``: a read fails."
    FAILED_SYNC = "failed sync"
    "``EIO``: a sync fails, of a file or a directory. What waited for it is shown, and never reaches the disk."
    LOST_SYNC = "lost sync"
    "A sync says that it has, and has not: the next power cut takes what was acknowledged."
    READ_ONLY = "read-only"
    "``EROFS``: the system has made the disk read-only. Whatever would change it fails."
    LOST_LOCK = "lost lock"
    "``ENOLCK``: the store's lock is lost, as when somebody has removed its file."

    @property
    def calls(self) -> frozenset[DiskCall]:
        """
        Which calls it happens to, unless others are named.
        """
        return _CALLS[self]

    @property
    def effect(self) -> Fault:
        """
        What such a call does in place of its work.
        """
        return _EFFECTS[self]


_CALLS: dict[DiskFault, frozenset[DiskCall]] = {
    DiskFault.FULL: frozenset(_TAKES_ROOM),
    DiskFault.QUOTA: frozenset(_TAKES_ROOM),
    DiskFault.SHORT_WRITE: frozenset(("write",)),
    DiskFault.IO_ERROR: frozenset(("write",)),
    DiskFault.UNREADABLE: frozenset(("read",)),
    DiskFault.FAILED_SYNC: frozenset(("sync", "sync_directory")),
    DiskFault.LOST_SYNC: frozenset(("sync", "sync_directory")),
    DiskFault.READ_ONLY: frozenset(_CHANGES),
    DiskFault.LOST_LOCK: frozenset(("check",)),
}
_EFFECTS: dict[DiskFault, Fault] = {
    DiskFault.FULL: Fault(errno.ENOSPC),
    DiskFault.QUOTA: Fault(errno.EDQUOT),
    DiskFault.SHORT_WRITE: Fault(errno.ENOSPC, after_bytes=_SHORT_BYTES),
    DiskFault.IO_ERROR: Fault(errno.EIO),
    DiskFault.UNREADABLE: Fault(errno.EIO),
    DiskFault.FAILED_SYNC: Fault(errno.EIO),
    DiskFault.LOST_SYNC: Fault(0, is_silent=True),
    DiskFault.READ_ONLY: Fault(errno.EROFS),
    DiskFault.LOST_LOCK: Fault(errno.ENOLCK),
}


@attrs.define
class _Planned:
    """A fault that is to happen."""

    fault: DiskFault
    calls: frozenset[str]
    still_to_pass: int
    "So many of those calls go well first."
    still_to_fail: int | None
    "So many of them do not then; None for all."


class FaultPlan:
    """
    Says which calls of a disk go wrong. The disk asks it at each call.
    """

    def __init__(self) -> None:
        self._planned: list[_Planned] = []

    def add(self, fault: DiskFault, *, at: int, times: int | None, calls: Collection[DiskCall] | None) -> None:
        """
        Let a fault happen.

        Args:
            fault: Which.
            at: So many of the calls that it concerns go well first.
            times: How many of them fail then; None for all.
            calls: Which calls it concerns; its own unless given.

        Raises:
            TypeError: *fault* is none.
            ValueError: *at* or *times* is no such number, *calls* has another name, or the fault cannot happen to one.
        """
        if not isinstance(fault, DiskFault):
            raise TypeError(f"fault must be a DiskFault, not {fault!r}")
        if not is_count(at, least=0):
            raise ValueError(f"at must be an int, at least 0, not {at!r}")
        if times is not None and not is_count(times, least=1):
            raise ValueError(f"times must be an int, at least 1, or None for always, not {times!r}")
        self._planned.append(_Planned(fault, _check_calls(fault, calls), at, times))

    def clear(self) -> None:
        """
        Let no more fault happen.
        """
        self._planned.clear()

    def next_fault(self, name: str) -> Fault | None:
        """
        Return what is to happen to a call of that name, which is being made; None if all goes well.
        """
        found: Fault | None = None
        for one in self._planned:
            if name not in one.calls:
                continue
            if one.still_to_pass:
                one.still_to_pass -= 1
            elif found is None and one.still_to_fail != 0:
                found = one.fault.effect
                if one.still_to_fail is not None:
                    one.still_to_fail -= 1
        return found


def _check_calls(fault: DiskFault, calls: Collection[DiskCall] | None) -> frozenset[str]:
    if calls is None:
        return fault.calls
    # A write that is short or a sync that is lost is nothing that could happen to another call.
    is_special = fault.effect.after_bytes or fault.effect.is_silent
    possible = fault.calls if is_special else frozenset(get_args(DiskCall))
    wrong = [name for name in calls if name not in possible]
    if wrong or not calls or isinstance(calls, str):
        names = ", ".join(sorted(possible))
        raise ValueError(f"calls of {fault} must be a collection of these names: {names}; not {calls!r}")
    return frozenset(calls)
