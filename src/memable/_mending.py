"""
Decides what is kept of an instance some of whose records are lost.

Decided here: which of the records that are left make a journal. It is better to keep too much than too little: a memo
that is kept is never run again. So where the record of a resumption is lost, the end before it goes rather than all
that was done since. And an instance that waits for a child that is lost forgets that it has started it: else it would
take the child for one that somebody has removed, fail, and undo what it has done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from ._header import InstanceHeader, header_of
from ._journal import journal_of
from ._keys import SEPARATOR
from ._records import (
    BranchStarted,
    CancelRequested,
    ChildStarted,
    InstanceRecord,
    InstanceResumed,
    InstanceRetired,
    InstanceStarted,
    WaitAbandoned,
)


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
    lost_children: list[tuple[str, str]] = attrs.field(factory=list["tuple[str, str]"])
    "Workflows and instance ids of the children that it is to start again, since they are lost."


def mend(
    records: Sequence[InstanceRecord], is_lost: Callable[[str, str], bool] = lambda _workflow, _instance_id: False
) -> Mended | None:
    """
    Return what is to be kept of an instance that has lost something.

    Args:
        records: What is left of it, in the order of the log.
        is_lost: Tells of a child, given workflow and instance id, whether it is not there.

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
    lost = _forget_lost_children(records, kept, dropped, is_lost) if header.completed_at is None else []
    if lost:
        header = _fold(records, kept)
    # What an engine will do when it comes to the instance.
    journal_of(records[at] for at in kept)
    return Mended(kept, dropped, header, lost)


def _forget_lost_children(
    records: Sequence[InstanceRecord], kept: list[int], dropped: dict[int, str], is_lost: Callable[[str, str], bool]
) -> list[tuple[str, str]]:
    """Drop what says that a child was started that is awaited and not there; return workflows and ids of those."""
    journal = journal_of(records[at] for at in kept)
    found: list[tuple[str, str]] = []
    for path, workflow in journal.children.items():
        instance_id = journal.started.instance_id + SEPARATOR + path
        if journal.is_decided(path) or not is_lost(workflow, instance_id):
            continue
        found.append((workflow, instance_id))
        for at in [at for at in kept if _is_of_child(records[at], path)]:
            kept.remove(at)
            dropped[at] = f"its child {workflow!r} {instance_id!r} is lost, or was removed; resumed, it starts it again"
    return found


def _is_of_child(record: InstanceRecord, path: str) -> bool:
    if isinstance(record, ChildStarted) and record.detached:
        return False
    return isinstance(record, ChildStarted | BranchStarted | WaitAbandoned) and record.path == path


def _started(record: InstanceRecord) -> InstanceStarted:
    assert isinstance(record, InstanceStarted)
    return record


def _fold(records: Sequence[InstanceRecord], places: Sequence[int]) -> InstanceHeader:
    header = header_of(_started(records[places[0]]))
    for at in places[1:]:
        header.apply(records[at])
    return header
