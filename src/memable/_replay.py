"""
How far a run has got in replaying: which memos of earlier runs it has not asked for, or not returned, yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ._journal import Journal
from ._sparse import NOTHING, put


class Recorded(Protocol):
    """
    A record, by its place in the journal.
    """

    @property
    def seq(self) -> int:
        """
        Its sequence number.
        """
        ...


class Replay:
    """
    What the earlier runs of an instance have left for this one.
    """

    __slots__ = ("_serving", "_unasked", "_unserved", "is_on")

    def __init__(self, journal: Journal, *, is_first: bool, is_memo_only: bool) -> None:
        """
        Begin with all that is recorded, or with nothing in a first run.

        Args:
            journal: What is recorded so far.
            is_first: Whether the instance has never run before.
            is_memo_only: Whether what lies within outcomes is asked for, too.
        """
        self.is_on: bool = not is_first
        "Whether an earlier run has been here, as far as is known."
        self._unasked: dict[str, None] = NOTHING if is_first else dict.fromkeys(journal.asked_paths())
        self._unserved: dict[str, int] = NOTHING if is_first else _unserved_paths(journal, is_memo_only)
        self._serving = 0

    @property
    def is_behind(self) -> bool:
        """
        Whether it is still on, and memos or failed attempts lie unasked: an earlier run got further.
        """
        return self.is_on and bool(self._unasked)

    def ask(self, path: str) -> None:
        """
        Take note that what is recorded at *path* was asked for.
        """
        self._unasked.pop(path, None)

    def return_(self, path: str) -> None:
        """
        Take note that what is recorded at *path* was asked for, and is told.
        """
        self._unasked.pop(path, None)
        self._unserved.pop(path, None)

    def leave_expired_scope(self, journal: Journal, prefix: str, after: int, before: float) -> None:
        """
        Take note that the outcome of an expired scope answers for what was recorded in it and has none of its own.

        It cancels at the first operation without a memo, or in what is between them, so that those behind are not
        asked for again. Arguments as of ``has_unserved``.
        """
        if not self._unasked:
            return
        begun: tuple[Mapping[str, Recorded], ...] = (journal.waits, journal.attempts, journal.intents, journal.scopes)
        for path in [path for path in self._unasked if path.startswith(prefix) and path not in journal.memos]:
            seqs = [records[path].seq for records in begun if path in records]
            seqs.append(journal.child_seqs.get(path, 0))
            if all(not seq or after < seq < before for seq in seqs) and any(seqs):
                del self._unasked[path]

    def begin_serving(self) -> None:
        """
        Take note that a memo is about to be returned.
        """
        self._serving += 1

    def end_serving(self) -> None:
        """
        Take note that it is.
        """
        self._serving -= 1

    def hold(self, path: str, seq: int) -> None:
        """
        Take note of a memo whose outcome is not told yet: that of a scope, until it is left.
        """
        self._unserved = put(self._unserved, path, seq)

    def has_unserved(self, prefix: str, after: int, before: float) -> bool:
        """
        Tell whether what earlier runs have recorded in a place was not all returned yet.

        Args:
            prefix: What the paths begin with.
            after: Only what was recorded after the record of this sequence number.
            before: Only what was recorded before the one of that.
        """
        return bool(self._serving) or any(
            path.startswith(prefix) and (not seq or after < seq < before) for path, seq in self._unserved.items()
        )


def _unserved_paths(journal: Journal, is_memo_only: bool) -> dict[str, int]:
    """Return the paths of what a replay is to return inside an expired scope, with sequence numbers where known."""
    if not journal.scopes:
        return {}
    found: dict[str, int] = {}
    for records in (journal.scopes, journal.kept, journal.memos):
        found.update((path, record.seq) for path, record in records.items())
    found.update(journal.compensations)
    found.update(dict.fromkeys(journal.detached, 0))
    if is_memo_only:
        return found
    return {path: seq for path, seq in found.items() if not journal.is_within_outcome(path)}
