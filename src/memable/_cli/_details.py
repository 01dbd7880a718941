"""
What is to be told of one instance: its records, folded and put in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeAlias, assert_never

import attrs

from .._encoded import Encoded
from .._error_info import ErrorInfo
from .._header import InstanceHeader
from .._journal import Journal, Memo, journal_of
from .._keys import SEPARATOR
from .._records import (
    BranchCompleted,
    BranchFailed,
    CallCompleted,
    CallFailed,
    FanOutFailed,
    InstanceCancelled,
    InstanceCompleted,
    InstanceFailed,
    InstanceRecord,
    ScopeEnded,
    SignalReceived,
    SleepEnded,
    StepCompleted,
    StepFailed,
    SuspendTimedOut,
)
from .._states import MetadataStatus
from .._times import utc_datetime

_KINDS: dict[type[Memo], str] = {
    StepCompleted: "step",
    StepFailed: "step",
    SignalReceived: "suspend",
    SuspendTimedOut: "suspend",
    SleepEnded: "sleep",
    ScopeEnded: "scope",
    BranchCompleted: "child",
    BranchFailed: "child",
    FanOutFailed: "fan_out",
    CallCompleted: "call",
    CallFailed: "call",
}
"What each kind of memo is the outcome of."

FindHeader: TypeAlias = Callable[[str, str], InstanceHeader | None]
"Returns the header of an instance by workflow and id."


@attrs.frozen
class Wait:
    """
    Something that the instance waits for.
    """

    kind: str
    "``suspend``, ``sleep``, ``retry`` or ``child``."
    key: str
    "Its path."
    since: datetime | None
    "When it began; None where only its place in the journal is known."
    until: datetime | None
    "When it ends by itself, if it does."
    expects: str | None = None
    "For a suspend point, the recorded name of the payload's type."
    note: str | None = None
    "What the wait says as the status."
    error: ErrorInfo | None = None
    "For a retry, what the attempt before failed with."


@attrs.frozen
class Outcome:
    """
    A memo: a recorded outcome that a run is given in place of doing the work.
    """

    kind: str
    "``step``, ``suspend``, ``sleep``, ``scope``, ``child``, ``fan_out``, ``call`` or ``compensation``."
    key: str
    "Its path."
    outcome: str
    "``completed``, ``failed``, ``timed_out``, ``ended`` or ``expired``."
    at: datetime
    "When it was recorded."
    attempt: int | None = None
    "Of a step or compensation, which attempt it was, from 1."
    value: Encoded | None = None
    "What came of it, if it has a value."
    error: ErrorInfo | None = None
    "What it failed with, if it did."


@attrs.frozen
class Child:
    """
    A child instance.
    """

    key: str
    "The path that it was started at."
    workflow: str
    instance_id: str
    is_detached: bool
    status: MetadataStatus | None
    "None if it was removed."


@attrs.frozen
class Undoing:
    """
    A compensation.
    """

    key: str
    "Its path."
    outcome: str
    "``registered``, ``completed``, ``failed``, or ``unknown`` if it had begun and must not repeat."


@attrs.frozen
class KeptSignal:
    """
    A signal that came before the instance got to its suspend point.
    """

    key: str
    "The path that it waits at."
    at: datetime
    value: Encoded


@attrs.frozen
class Details:
    """
    All that is told of one instance.
    """

    header: InstanceHeader
    input: Encoded
    waits: Sequence[Wait]
    "Longest first."
    unknown: Sequence[str]
    "Paths of effects that may have happened and must not repeat."
    kept: Sequence[KeptSignal]
    outcomes: Sequence[Outcome]
    "Oldest first."
    children: Sequence[Child]
    compensations: Sequence[Undoing]
    "In the order of their registration; they run in the reverse one."
    cancel_requested_at: datetime | None
    cancel_reason: str | None
    output: Encoded | None
    "What it returned, if it is Completed."
    error: ErrorInfo | None
    "What it failed, was cancelled or is blocked with; or, while its compensations run, what it is to fail with."


def details_of(header: InstanceHeader, records: Sequence[InstanceRecord], find: FindHeader) -> Details:
    """
    Return what is to be told of an instance.

    Args:
        header: The instance's.
        records: All of its records, oldest first.
        find: Finds its children.

    Raises:
        ValueError: The records are no journal: the store is damaged.
    """
    journal = journal_of(records)
    cancel = journal.cancel_requested
    return Details(
        header=header,
        input=journal.started.input,
        waits=[_wait_at(journal, path) for path in journal.waiting_paths()] if not header.status.is_terminal else [],
        unknown=list(journal.intents),
        kept=[KeptSignal(path, utc_datetime(kept.at), kept.value) for path, kept in journal.kept.items()],
        outcomes=[
            _outcome_of(memo, is_compensation=path in journal.compensations)
            for path, memo in sorted(journal.memos.items(), key=lambda item: item[1].seq)
        ],
        children=_children_of(journal, header, find),
        compensations=[Undoing(path, _undone(journal, path)) for path in journal.compensations],
        cancel_requested_at=None if cancel is None else utc_datetime(cancel.at),
        cancel_reason=_cancel_reason(journal),
        output=journal.ending.value if isinstance(journal.ending, InstanceCompleted) else None,
        error=_error_of(journal),
    )


def _wait_at(journal: Journal, path: str) -> Wait:
    wait, failed = journal.waits.get(path), journal.attempts.get(path)
    if wait is not None:
        until = None if wait.deadline is None else utc_datetime(wait.deadline)
        kind = "sleep" if wait.expects is None else "suspend"
        return Wait(kind, path, utc_datetime(wait.at), until, wait.expects, wait.note)
    if failed is not None:
        return Wait("retry", path, utc_datetime(failed.at), utc_datetime(failed.next_attempt_at), error=failed.error)
    return Wait("child", path, None, None)


def _outcome_of(memo: Memo, *, is_compensation: bool) -> Outcome:
    return Outcome(
        kind="compensation" if is_compensation else _KINDS[type(memo)],
        key=memo.path,
        outcome=_how(memo),
        at=utc_datetime(memo.at),
        attempt=getattr(memo, "attempt", None),
        value=getattr(memo, "value", None),
        error=getattr(memo, "error", None),
    )


def _how(memo: Memo) -> str:
    match memo:
        case StepCompleted() | SignalReceived() | BranchCompleted() | CallCompleted():
            return "completed"
        case StepFailed() | BranchFailed() | FanOutFailed() | CallFailed():
            return "failed"
        case SuspendTimedOut():
            return "timed_out"
        case ScopeEnded():
            return "expired" if memo.expired else "ended"
        case SleepEnded():
            return "ended"
        case _:
            assert_never(memo)


def _children_of(journal: Journal, header: InstanceHeader, find: FindHeader) -> list[Child]:
    children: list[Child] = []
    for is_detached, workflows in ((False, journal.children), (True, journal.detached)):
        for path, workflow in workflows.items():
            instance_id = header.instance_id + SEPARATOR + path
            found = find(workflow, instance_id)
            children.append(Child(path, workflow, instance_id, is_detached, None if found is None else found.status))
    return children


def _undone(journal: Journal, path: str) -> str:
    memo = journal.memos.get(path)
    if memo is None:
        return "unknown" if path in journal.intents else "registered"
    return "completed" if isinstance(memo, StepCompleted) else "failed"


def _cancel_reason(journal: Journal) -> str | None:
    if isinstance(journal.ending, InstanceCancelled):
        return journal.ending.reason
    return None if journal.cancel_requested is None else journal.cancel_requested.reason


def _error_of(journal: Journal) -> ErrorInfo | None:
    if isinstance(journal.ending, InstanceFailed | InstanceCancelled):
        return journal.ending.error
    if journal.blocked is not None:
        return journal.blocked.error
    return journal.compensating.error if journal.compensating is not None and journal.ending is None else None
