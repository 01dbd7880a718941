"""
Folds records into what every store knows of every instance without loading its journal.

Decided here: what each record changes in a header, and which sequences of records are impossible. Given the same
records in the same order, the result is the same, whoever folds them. Nothing here reads values.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable
from typing import Any, ClassVar, Final

import attrs

from ._keys import SEPARATOR
from ._records import (
    AttemptFailed,
    BranchCompleted,
    BranchFailed,
    BranchStarted,
    CallCompleted,
    CallFailed,
    CancelRequested,
    ChildStarted,
    CompensationBegun,
    CompensationRegistered,
    FanOutFailed,
    InstanceBlocked,
    InstanceCancelled,
    InstanceCompleted,
    InstanceFailed,
    InstanceRecord,
    InstanceResumed,
    InstanceRetired,
    InstanceStarted,
    InstanceSuspended,
    IntentRecorded,
    IntentWithdrawn,
    RunStarted,
    ScopeEnded,
    ScopeStarted,
    SignalKept,
    SignalReceived,
    SleepEnded,
    StepCompleted,
    StepFailed,
    SuspendTimedOut,
    WaitAbandoned,
    WaitStarted,
)
from ._states import MetadataStatus

#: The flag of a child that lives on its own.
DETACHED = 1 << 0
_NEEDS_RESUME = 1 << 3
#: Looked up for each record, where a member of a class would take ten times as long.
_RUNNING = MetadataStatus.RUNNING

#: A header keeps this much of an error's message: a million of them must fit into memory.
MAX_HEADER_ERROR_CHARS = 500


class Flag:
    """
    One bit of a header's ``flags``, as an attribute that is a bool.
    """

    __slots__ = ("mask",)

    def __init__(self, mask: int) -> None:
        """
        Stand for the bit that is set in *mask*.
        """
        self.mask: Final = mask

    def __get__(self, header: InstanceHeader, _owner: type[InstanceHeader]) -> bool:
        """
        Tell whether it is set.
        """
        return bool(header.flags & self.mask)

    def __set__(self, header: InstanceHeader, value: bool) -> None:
        """
        Set it, or do not.
        """
        header.flags = header.flags | self.mask if value else header.flags & ~self.mask


class _Flags:
    """
    What a header says in one bit each. Apart from it, since they are no fields of its own.
    """

    __slots__ = ()

    detached: Flag = Flag(DETACHED)
    "Whether a child lives on its own."
    awaits_children: Flag = Flag(1 << 1)
    "Whether it is suspended until a child instance ends, among others."
    cancel_requested: Flag = Flag(1 << 2)
    needs_resume: Flag = Flag(_NEEDS_RESUME)
    "Blocked until somebody resumes it, opening the store again notwithstanding."
    has_children: Flag = Flag(1 << 4)
    "Whether it has ever started a child instance."
    has_compensations: Flag = Flag(1 << 5)
    "Whether a compensation is registered."
    is_compensating: Flag = Flag(1 << 6)
    "Whether its compensations have begun."
    has_forgotten: Flag = Flag(1 << 7)
    "Whether somebody ever resumed it with something to forget, or anew: then records of it may be superseded."


#: The names of those attributes.
FLAG_NAMES = tuple(name for name, flag in vars(_Flags).items() if isinstance(flag, Flag))


@attrs.define
class InstanceHeader(_Flags):
    """
    What every store knows of every instance without loading its journal.

    There may be a million that wait, so it is as small as it can be.
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
    "What it failed, was cancelled or is blocked with, or what its wait says, cut to a short length."
    key: str | None = None
    "The path that it waits or is blocked at."
    wake_at: float | None = None
    "While it is suspended, when the first of its waits or scopes ends by itself."
    completed_at: float | None = None
    recoveries: int = 0
    "Crashes in a row that it was running at, without a new record in between."
    seq: int = 1
    "Sequence number of its newest record."
    flags: int = 0
    "Its bits."
    spans: array[int] | bytes = attrs.field(default=b"", init=False, eq=False, repr=False)
    "Where its records are, if it is live and there is a log. Whoever keeps the header says how."

    @property
    def is_plainly_running(self) -> bool:
        """
        Whether a record of one of the ``PROGRESS_KINDS`` changes no more than its number, its time and its message.
        """
        return self.status is MetadataStatus.RUNNING and not self.flags & _NEEDS_RESUME

    @property
    def parent_name(self) -> tuple[str, str] | None:
        """
        Workflow and instance id of the instance that it is an attached child of, if it is one.
        """
        if self.parent is None or self.detached:
            return None
        workflow, _, instance_id = self.parent.partition(SEPARATOR)
        return workflow, instance_id

    def apply(self, record: InstanceRecord) -> None:
        """
        Take in the instance's next record.

        Raises:
            ValueError: The record cannot follow the ones before it: the store is damaged or has a second writer.
        """
        if record.seq <= self.seq:
            raise ValueError(f"record {record.seq} of instance {self.number} follows record {self.seq}")
        # What has ended knows when. To ask the status would cost as much as all the rest.
        if self.completed_at is not None or isinstance(record, InstanceRetired):
            self._check_order(record)
        self._FOLDS[type(record)](self, record)
        self.seq = record.seq
        self.updated_at = record.at
        status: str | None = getattr(record, "status", None)
        if status is not None:
            self.message = status

    def progress(self, record: InstanceRecord) -> bool:
        """
        Take in a record of one of the ``PROGRESS_KINDS`` if the instance simply runs; return whether it does.

        It is the same as ``apply``, and quicker.
        """
        if self.status is not _RUNNING or self.flags & _NEEDS_RESUME or record.seq <= self.seq:
            return False
        self.recoveries = 0
        self.seq = record.seq
        self.updated_at = record.at
        status: str | None = getattr(record, "status", None)
        if status is not None:
            self.message = status
        return True

    def complete(self, seq: int, at: float) -> None:
        """
        Take in that the instance, which has not ended, has completed, as its next record says.

        Args:
            seq: That record's place in the instance's journal.
            at: When it was made.
        """
        self._end(MetadataStatus.COMPLETED, at, None)
        self.seq = seq
        self.updated_at = at

    def _check_order(self, record: InstanceRecord) -> None:
        """Refuse what cannot follow an end, and a retirement that does not follow one."""
        if self.completed_at is None:
            raise ValueError(f"instance {self.number} is retired, but has not ended")
        if not isinstance(record, InstanceResumed | InstanceRetired):
            raise ValueError(f"instance {self.number} has ended, but a {record.kind} record follows")

    def _start(self, record: InstanceStarted) -> None:
        raise ValueError(f"instance {record.instance} starts a second time")

    def _retire(self, _record: InstanceRetired) -> None:
        """Whoever keeps headers drops this one."""

    def _note(self, _record: InstanceRecord) -> None:
        """A record that ends no wait: what is suspended stays so."""
        self.recoveries = 0

    def _progress(self, _record: InstanceRecord) -> None:
        """A record that shows that a run does something, be it to wait. What is blocked stays so until it runs."""
        self.recoveries = 0
        if self.status is MetadataStatus.SUSPENDED:
            self.status = MetadataStatus.RUNNING
            self.key = self.wake_at = self.error_message = None
            self.awaits_children = False

    def _take_outcome(self, record: StepCompleted | StepFailed) -> None:
        self._progress(record)
        if self.needs_resume:
            self._answer(record.path)

    def _withdraw_intent(self, record: IntentWithdrawn) -> None:
        self._progress(record)
        self._answer(record.path)

    def _answer(self, path: str) -> None:
        """Somebody has answered the question that the instance was blocked with, if it was asked at *path*."""
        if self.key == path:
            self.needs_resume = False

    def _start_child(self, record: ChildStarted | BranchStarted) -> None:
        self._progress(record)
        if record.workflow is not None:
            self.has_children = True

    def _register_compensation(self, record: CompensationRegistered) -> None:
        self._progress(record)
        self.has_compensations = True

    def _begin_compensation(self, record: CompensationBegun) -> None:
        self._progress(record)
        self.is_compensating = True

    def _request_cancel(self, _record: CancelRequested) -> None:
        self.cancel_requested = True
        # Whatever it was blocked with: somebody wants it to be cancelled now.
        self.needs_resume = False

    def _suspend(self, record: InstanceSuspended) -> None:
        self.recoveries = 0
        self.status = MetadataStatus.SUSPENDED
        # There are few different keys, and maybe a million instances.
        self.key = sys.intern(record.path)
        self.wake_at = record.wake_at
        self.awaits_children = record.awaits_children
        self.error_message = None if record.note is None else sys.intern(_cut(record.note) or "")

    def _run_again(self, record: RunStarted) -> None:
        if record.after_crash:
            self.recoveries += 1
        elif record.session != self.session:
            # It was running when an earlier session ended, and that was no crash.
            self.recoveries = 0
        self.session = record.session
        self.status = MetadataStatus.RUNNING
        self.key = self.error_message = self.wake_at = None
        self.needs_resume = self.awaits_children = False

    def _block(self, record: InstanceBlocked) -> None:
        self.status = MetadataStatus.BLOCKED
        self.key = record.path
        self.wake_at = None
        self.awaits_children = False
        self.needs_resume = record.needs_resume
        self.error_message = _cut(str(record.error))
        if not record.needs_resume:
            self.recoveries = 0

    def _restart(self, record: InstanceResumed) -> None:
        self.session = record.session
        self.status = MetadataStatus.RUNNING
        if self.completed_at is not None or record.anew:
            # One that was not carried out yet still is.
            self.cancel_requested = False
        self.completed_at = self.key = self.error_message = self.wake_at = None
        self.recoveries = 0
        self.needs_resume = self.awaits_children = False
        if record.anew or record.forgotten:
            self.has_forgotten = True
        if record.anew:
            self.message = None
            self.has_compensations = self.is_compensating = False

    def _complete(self, record: InstanceCompleted) -> None:
        self.complete(record.seq, record.at)

    def _fail(self, record: InstanceFailed) -> None:
        self._end(MetadataStatus.FAILED, record.at, str(record.error))

    def _cancel(self, record: InstanceCancelled) -> None:
        self._end(MetadataStatus.CANCELLED, record.at, record.reason)

    def _end(self, status: MetadataStatus, at: float, error_message: str | None) -> None:
        self.status = status
        self.completed_at = at
        self.key = self.wake_at = None
        self.awaits_children = False
        self.recoveries = 0
        self.error_message = _cut(error_message)

    _FOLDS: ClassVar[dict[type[InstanceRecord], Callable[[InstanceHeader, Any], None]]] = {
        InstanceStarted: _start,
        RunStarted: _run_again,
        InstanceResumed: _restart,
        StepCompleted: _take_outcome,
        AttemptFailed: _progress,
        StepFailed: _take_outcome,
        CancelRequested: _request_cancel,
        InstanceBlocked: _block,
        InstanceCompleted: _complete,
        InstanceFailed: _fail,
        InstanceCancelled: _cancel,
        WaitStarted: _progress,
        WaitAbandoned: _progress,
        SignalReceived: _progress,
        SignalKept: _note,
        SuspendTimedOut: _progress,
        SleepEnded: _progress,
        ScopeStarted: _progress,
        ScopeEnded: _progress,
        IntentRecorded: _progress,
        IntentWithdrawn: _withdraw_intent,
        BranchStarted: _start_child,
        BranchCompleted: _progress,
        BranchFailed: _progress,
        FanOutFailed: _progress,
        ChildStarted: _start_child,
        CallCompleted: _progress,
        CallFailed: _progress,
        CompensationRegistered: _register_compensation,
        CompensationBegun: _begin_compensation,
        InstanceSuspended: _suspend,
        InstanceRetired: _retire,
    }
    "What each kind of record changes. A test checks that none is missing."


def header_of(started: InstanceStarted) -> InstanceHeader:
    """
    Return the header of an instance that has just started.
    """
    return InstanceHeader(
        number=started.instance,
        workflow=sys.intern(started.workflow),
        instance_id=started.instance_id,
        parent=started.parent,
        flags=DETACHED if started.detached else 0,
        created_at=started.at,
        updated_at=started.at,
        session=started.session,
        seq=started.seq,
    )


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= MAX_HEADER_ERROR_CHARS else text[:MAX_HEADER_ERROR_CHARS] + " [...]"


#: Kinds of records of which a header needs no more than number and time, as long as its instance simply runs. A test
#: checks that they are those.
PROGRESS_KINDS = frozenset(
    cls.kind
    for cls in (
        StepCompleted,
        AttemptFailed,
        StepFailed,
        WaitStarted,
        WaitAbandoned,
        SignalReceived,
        SignalKept,
        SuspendTimedOut,
        SleepEnded,
        ScopeStarted,
        ScopeEnded,
        IntentRecorded,
        IntentWithdrawn,
        BranchCompleted,
        BranchFailed,
        FanOutFailed,
        CallCompleted,
        CallFailed,
    )
)
