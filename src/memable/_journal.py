"""
Folds records into what is known: a header of every instance, and the journal of the one that runs.

Decided here: what each record changes, and which sequences of records are impossible. Given the same records in the
same order, the result is the same, whoever folds them: recovery, a live engine or a test's model. Nothing here reads
values: they stay encoded.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from ._keys import SEPARATOR
from ._records import (
    AttemptFailed,
    CancelRequested,
    InstanceBlocked,
    InstanceCancelled,
    InstanceCompleted,
    InstanceFailed,
    InstanceRecord,
    InstanceResumed,
    InstanceStarted,
    RunStarted,
    StepCompleted,
    StepFailed,
)
from ._states import MetadataStatus

#: A header keeps this much of an error's message: a million of them must fit into memory.
MAX_HEADER_ERROR_CHARS = 500

Memo = StepCompleted | StepFailed
"A recorded outcome: it is returned, or raised, in place of running the step."

Ending = InstanceCompleted | InstanceFailed | InstanceCancelled
"The record that made an instance terminal."


@attrs.define
class InstanceHeader:
    """
    What every store knows of every instance without loading its journal.
    """

    number: int
    workflow: str
    instance_id: str
    created_at: float
    updated_at: float
    session: int
    "The store's session in which its newest run began."
    parent: str | None = None
    status: MetadataStatus = MetadataStatus.RUNNING
    message: str | None = None
    "Last status message."
    error_message: str | None = None
    "What it failed, was cancelled or is blocked with, cut to a short length."
    key: str | None = None
    "The path that it is blocked at."
    completed_at: float | None = None
    recoveries: int = 0
    "Crashes in a row that it was running at, without a new record in between."
    seq: int = 1
    "Sequence number of its newest record."
    cancel_requested: bool = False
    needs_resume: bool = False
    "Blocked until somebody resumes it, opening the store again notwithstanding."

    def apply(self, record: InstanceRecord) -> None:
        """
        Take in the instance's next record.

        Raises:
            ValueError: The record cannot follow the ones before it: the store is damaged or has a second writer.
        """
        if record.seq <= self.seq:
            raise ValueError(f"record {record.seq} of instance {self.number} follows record {self.seq}")
        if self.status.is_terminal and not isinstance(record, InstanceResumed):
            raise ValueError(f"instance {self.number} has ended, but a {record.kind} record follows")
        self.seq = record.seq
        self.updated_at = record.at
        match record:
            case StepCompleted() | AttemptFailed() | StepFailed():
                self.recoveries = 0
            case RunStarted():
                self._run_again(record)
                return
            case InstanceResumed():
                self._restart(record)
                return
            case CancelRequested():
                self.cancel_requested = True
                return
            case InstanceBlocked():
                self._block(record)
            case InstanceCompleted():
                self._end(MetadataStatus.COMPLETED, record.at, None)
            case InstanceFailed():
                self._end(MetadataStatus.FAILED, record.at, str(record.error))
            case InstanceCancelled():
                self._end(MetadataStatus.CANCELLED, record.at, record.reason)
            case _:
                raise ValueError(f"instance {self.number} starts a second time")
        if record.status is not None:
            self.message = record.status

    def _run_again(self, record: RunStarted) -> None:
        if record.after_crash:
            self.recoveries += 1
        elif record.session == self.session + 1:
            # It was running when the session before ended, and that was no crash.
            self.recoveries = 0
        self.session = record.session
        self.status = MetadataStatus.RUNNING
        self.key = self.error_message = None

    def _block(self, record: InstanceBlocked) -> None:
        self.status = MetadataStatus.BLOCKED
        self.key = record.path
        self.needs_resume = record.needs_resume
        self.error_message = _cut(str(record.error))
        if not record.needs_resume:
            self.recoveries = 0

    def _restart(self, record: InstanceResumed) -> None:
        self.session = record.session
        self.status = MetadataStatus.RUNNING
        self.completed_at = self.key = self.error_message = None
        self.recoveries = 0
        self.cancel_requested = self.needs_resume = False
        if record.anew:
            self.message = None

    def _end(self, status: MetadataStatus, at: float, error_message: str | None) -> None:
        self.status = status
        self.completed_at = at
        self.key = None
        self.recoveries = 0
        self.error_message = _cut(error_message)


def header_of(started: InstanceStarted) -> InstanceHeader:
    """
    Return the header of an instance that has just started.
    """
    return InstanceHeader(
        number=started.instance,
        workflow=started.workflow,
        instance_id=started.instance_id,
        parent=started.parent,
        created_at=started.at,
        updated_at=started.at,
        session=started.session,
        seq=started.seq,
    )


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= MAX_HEADER_ERROR_CHARS else text[:MAX_HEADER_ERROR_CHARS] + " [...]"


@attrs.define
class Journal:
    """
    What one instance's records say, for the run that continues it.
    """

    started: InstanceStarted
    seq: int
    "Sequence number of the newest record."
    memos: dict[str, Memo] = attrs.field(factory=dict)
    "Recorded outcomes by path."
    attempts: dict[str, AttemptFailed] = attrs.field(factory=dict)
    "The newest failed attempt of each step that has no outcome yet, by path."
    message: str | None = None
    "The last recorded status message."
    cancel_requested: CancelRequested | None = None
    "A request to cancel that was not carried out yet."
    blocked: InstanceBlocked | None = None
    "What blocked the last run, if something did."
    ending: Ending | None = None
    "How the instance ended, if it has."
    base_generation: int = 0
    "How often the instance was begun anew."
    forgets: dict[str, int] = attrs.field(factory=dict)
    "How often each path was forgotten."

    def apply(self, record: InstanceRecord) -> None:
        """
        Take in the instance's next record.

        Raises:
            ValueError: The record cannot follow the ones before it: the store is damaged or has a second writer.
        """
        if record.instance != self.started.instance:
            raise ValueError(f"a record of instance {record.instance} in the journal of {self.started.instance}")
        if record.seq <= self.seq:
            raise ValueError(f"record {record.seq} of instance {record.instance} follows record {self.seq}")
        self.seq = record.seq
        match record:
            case StepCompleted() | StepFailed():
                self.memos[record.path] = record
                self.attempts.pop(record.path, None)
            case AttemptFailed():
                self.attempts[record.path] = record
            case RunStarted():
                self.blocked = None
                return
            case InstanceResumed():
                self._restart(record)
                return
            case CancelRequested():
                self.cancel_requested = record
                return
            case InstanceBlocked():
                self.blocked = record
            case InstanceCompleted() | InstanceFailed() | InstanceCancelled():
                self.ending = record
            case _:
                raise ValueError(f"instance {record.instance} starts a second time")
        if record.status is not None:
            self.message = record.status

    def generation(self, path: str) -> int:
        """
        Return how often what is recorded under *path* was given up on purpose.
        """
        if not self.forgets:
            return self.base_generation
        return self.base_generation + sum(self.forgets.get(part, 0) for part in _with_ancestors(path))

    def knows(self, path: str) -> bool:
        """
        Tell whether anything is recorded under *path*.
        """
        below = path + SEPARATOR
        return any(known == path or known.startswith(below) for paths in (self.memos, self.attempts) for known in paths)

    def _restart(self, record: InstanceResumed) -> None:
        self.blocked = self.ending = self.cancel_requested = None
        if record.anew:
            self.memos.clear()
            self.attempts.clear()
            self.message = None
            self.base_generation += 1
        for path in record.cleared:
            self.memos.pop(path, None)
            self.attempts.pop(path, None)
        for path in record.forgotten:
            self.forgets[path] = self.forgets.get(path, 0) + 1
            self._drop(path)

    def _drop(self, path: str) -> None:
        below = path + SEPARATOR
        containing = set(_with_ancestors(path))
        for known in [*self.memos, *self.attempts]:
            if known in containing or known.startswith(below):
                self.memos.pop(known, None)
                self.attempts.pop(known, None)


def _with_ancestors(path: str) -> list[str]:
    parts = path.split(SEPARATOR)
    return [SEPARATOR.join(parts[:count]) for count in range(1, len(parts) + 1)]


def journal_of(records: Iterable[InstanceRecord]) -> Journal:
    """
    Fold one instance's records, oldest first.

    Raises:
        ValueError: They are not one instance's journal.
    """
    iterator = iter(records)
    started = next(iterator, None)
    if not isinstance(started, InstanceStarted):
        raise ValueError(f"a journal begins with {started!r}, not with the start of an instance")
    journal = Journal(started=started, seq=started.seq)
    for record in iterator:
        journal.apply(record)
    return journal
