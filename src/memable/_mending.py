"""
Decides what is kept of an instance some of whose records are lost.

Decided here: which of the records that are left make a journal. It is better to keep too much than too little: a memo
that is kept is never run again. So where the record of a resumption is lost, the end before it goes rather than all
that was done since.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from ._header import InstanceHeader, header_of
from ._journal import journal_of
from ._records import CancelRequested, InstanceRecord, InstanceResumed, InstanceRetired, InstanceStarted


@attrs.frozen(eq=False)
class Mended:
    """
    What is left of an instance.
    """

    kept: list[int]
    "Places of the records that are kept, among those given."
    dropped: dict[int, str]
    "Places of those that are not, and why."
    header: InstanceHeader
    "What the kept ones fold to."


def mend(records: Sequence[InstanceRecord]) -> Mended | None:
    """
    Return what is to be kept of an instance that has lost something.

    Args:
        records: What is left of it, in the order of the log.

    Returns:
        What to keep; None if it cannot be kept, because its start is not among them.
    """
    first = next((at for at, record in enumerate(records) if isinstance(record, InstanceStarted)), None)
    if first is None:
        return None
    dropped = dict.fromkeys(range(first), "it stands before the start of its instance")
    kept = [first]
    header = header_of(_started(records[first]))
    for at in range(first + 1, len(records)):
        record = records[at]
        if isinstance(record, InstanceStarted | InstanceRetired) or record.seq <= header.seq:
            dropped[at] = "it cannot follow the records before it"
            continue
        if header.completed_at is not None and not isinstance(record, InstanceResumed):
            # Somebody resumed it, and that record is lost. The last one kept is the end.
            dropped[kept.pop()] = "the instance was resumed after it, and the record of that is lost"
            header = _fold(records, kept)
        header.apply(record)
        kept.append(at)
    if header.completed_at is None and header.cancel_requested:
        # An engine would carry it out, though the instance is blocked.
        for at in [at for at in kept if isinstance(records[at], CancelRequested)]:
            kept.remove(at)
            dropped[at] = "a request to cancel is not carried out where something is lost; ask for it again"
        header = _fold(records, kept)
    # What an engine will do when it comes to the instance.
    journal_of(records[at] for at in kept)
    return Mended(kept, dropped, header)


def _started(record: InstanceRecord) -> InstanceStarted:
    assert isinstance(record, InstanceStarted)
    return record


def _fold(records: Sequence[InstanceRecord], places: Sequence[int]) -> InstanceHeader:
    header = header_of(_started(records[places[0]]))
    for at in places[1:]:
        header.apply(records[at])
    return header
