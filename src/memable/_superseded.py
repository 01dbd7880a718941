"""
Tells which records of a journal say nothing any more, because somebody has had them forgotten.

Decided here: what compaction may leave out of an instance that is kept. Only outcomes, since those are what takes
space: without them, the journal folds to the same, and so does the header.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ._keys import SEPARATOR
from ._records import (
    BranchCompleted,
    CallCompleted,
    InstanceRecord,
    InstanceResumed,
    SignalReceived,
    StepCompleted,
)

_Outcome = StepCompleted | SignalReceived | BranchCompleted | CallCompleted


def superseded(records: Sequence[InstanceRecord]) -> list[int]:
    """
    Return the places in *records*, the whole journal of an instance, of those that may be left out.

    What a record says beside its outcome, such as a status message, keeps it.
    """
    found: list[int] = []
    forgotten: set[str] = set()
    containing: set[str] = set()
    "What contains something that was forgotten."
    is_anew = False
    for at in range(len(records) - 1, -1, -1):
        record = records[at]
        if isinstance(record, InstanceResumed):
            is_anew = is_anew or record.anew
            forgotten.update(record.forgotten)
            for path in record.forgotten:
                containing.update(_ancestors(path))
        elif (
            isinstance(record, _Outcome)
            and getattr(record, "status", None) is None
            and (is_anew or _is_dropped(record, forgotten, containing))
        ):
            found.append(at)
    found.reverse()
    return found


def _is_dropped(record: _Outcome, forgotten: set[str], containing: set[str]) -> bool:
    """Tell whether an outcome was dropped: with what contains it, by its own path, or with something in it."""
    if any(path in forgotten for path in _ancestors(record.path)):
        return True
    if isinstance(record, BranchCompleted) and record.digest is not None:
        # It is all that tells of its item, which stays known as long as the fan-out does.
        return False
    return record.path in forgotten or (isinstance(record, BranchCompleted) and record.path in containing)


def _ancestors(path: str) -> Iterator[str]:
    """Yield the paths that contain *path*."""
    at = path.find(SEPARATOR)
    while at >= 0:
        yield path[:at]
        at = path.find(SEPARATOR, at + 1)
