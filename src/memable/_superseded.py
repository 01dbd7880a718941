"""
Tells which records of a journal say nothing any more, because somebody has had them forgotten.

Decided here: what compaction may leave out of an instance that is kept. Only outcomes, since those are what takes
space: without them, the journal folds to the same, and so does the header.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    is_anew = False
    for at in range(len(records) - 1, -1, -1):
        record = records[at]
        if isinstance(record, InstanceResumed):
            is_anew = is_anew or record.anew
            forgotten.update(record.forgotten)
        elif (
            isinstance(record, _Outcome)
            and getattr(record, "status", None) is None
            and (is_anew or any(_is_dropped(record.path, path) for path in forgotten))
        ):
            found.append(at)
    found.reverse()
    return found


def _is_dropped(path: str, forgotten: str) -> bool:
    """Tell whether forgetting a path drops an outcome: of that path, of what is below it, and of what contains it."""
    return path == forgotten or path.startswith(forgotten + SEPARATOR) or forgotten.startswith(path + SEPARATOR)
