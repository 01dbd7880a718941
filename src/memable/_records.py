"""
The records that a log holds: one frozen class for each thing that can happen, and their tagged union.

Decided here: which facts are durable. A record says what happened, never what to do about it. Times are seconds since
1970 (UTC); paths are keys joined with ``/``; values stay encoded. A field that is added later has a default, so that
logs of earlier releases stay readable; a kind is never given another meaning.
"""

from __future__ import annotations

import enum
from typing import ClassVar, TypeAlias

import attrs

from ._encoded import Encoded
from ._error_info import ErrorInfo


class StepFailure(enum.Enum):
    """
    Why a step failed for good: decides which exception a replay raises.
    """

    ERROR = "error"
    TIMEOUT = "timeout"
    EXHAUSTED = "exhausted"
    EXHAUSTED_TIMEOUT = "exhausted_timeout"
    SERIALIZATION = "serialization"


@attrs.frozen(kw_only=True, weakref_slot=False)
class InstanceStarted:
    """
    An instance exists. Gives it the short number that its other records carry.
    """

    kind: ClassVar[str] = "instance_started"

    instance: int
    "Its number, unique within the store and in the order of creation."
    seq: int
    "Always 1: the first record of the instance."
    at: float
    "When the record was made."
    session: int
    "The store's session in which it starts to run."
    workflow: str
    "Name of its workflow."
    instance_id: str
    "Its id."
    input: Encoded
    "Its arguments."
    parent: str | None = None
    "For a child: ``workflow/instance id`` of its parent."
    detached: bool = False
    "Whether a child lives on its own: it is not cancelled with its parent, nor kept for it."


@attrs.frozen(kw_only=True, weakref_slot=False)
class RunStarted:
    """
    A recovered instance begins another run, in another session than the run before.
    """

    kind: ClassVar[str] = "run_started"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When the record was made."
    session: int
    "The store's session in which it runs."
    after_crash: bool = False
    "Whether the instance was running when the session before ended without closing its store."


@attrs.frozen(kw_only=True, weakref_slot=False)
class InstanceResumed:
    """
    Somebody asked for another run of an instance that had ended, was blocked or was interrupted.
    """

    kind: ClassVar[str] = "instance_resumed"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When the record was made."
    session: int
    "The store's session in which it runs."
    cleared: tuple[str, ...] = ()
    "Paths whose recorded failure is dropped, for another try within the same generation."
    forgotten: tuple[str, ...] = ()
    "Paths whose records are dropped; what runs next under them is a new generation."
    anew: bool = False
    "Whether all records of outcomes are dropped, as a new generation."


@attrs.frozen(kw_only=True, weakref_slot=False)
class StepCompleted:
    """
    A step's function returned, and this is its value.
    """

    kind: ClassVar[str] = "step_completed"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When the function had returned."
    path: str
    "The step's path."
    value: Encoded
    "What the function returned."
    started_at: float
    "When the last attempt began."
    attempt: int = 1
    "Which attempt it was, from 1."
    status: str | None = None
    "The status message, if it was set anew since the instance's last record that has one."


@attrs.frozen(kw_only=True, weakref_slot=False)
class AttemptFailed:
    """
    One attempt at a step failed, and another one is to be made.
    """

    kind: ClassVar[str] = "attempt_failed"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When the attempt had failed."
    path: str
    "The step's path."
    error: ErrorInfo
    "What it failed with."
    next_attempt_at: float
    "When the next attempt is due."
    started_at: float
    "When the attempt began."
    attempt: int = 1
    "Which attempt it was, from 1."
    status: str | None = None
    "The status message, if it was set anew since the instance's last record that has one."


@attrs.frozen(kw_only=True, weakref_slot=False)
class StepFailed:
    """
    A step failed for good.
    """

    kind: ClassVar[str] = "step_failed"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When the last attempt had failed."
    path: str
    "The step's path."
    error: ErrorInfo
    "What the last attempt failed with."
    started_at: float
    "When the last attempt began."
    attempt: int = 1
    "How many attempts were made."
    failure: StepFailure = StepFailure.ERROR
    "Why it is for good."
    retryable: bool = False
    "Whether the last failure was of a kind that another attempt might have mended."
    status: str | None = None
    "The status message, if it was set anew since the instance's last record that has one."


@attrs.frozen(kw_only=True, weakref_slot=False)
class CancelRequested:
    """
    Somebody asked for the instance to be cancelled.
    """

    kind: ClassVar[str] = "cancel_requested"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When the record was made."
    reason: str | None = None
    "Why, in the caller's words."


@attrs.frozen(kw_only=True, weakref_slot=False)
class InstanceBlocked:
    """
    The instance needs a person: nothing of it runs until somebody mends the cause.
    """

    kind: ClassVar[str] = "instance_blocked"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When the record was made."
    error: ErrorInfo
    "What blocked it."
    path: str | None = None
    "The path that it is blocked at, if one is meant."
    needs_resume: bool = False
    "Whether it stays blocked when the store is opened again, until somebody resumes it."
    failed_paths: tuple[str, ...] = ()
    "Paths of the recorded failures found in what left the body: a resume clears them."
    status: str | None = None
    "The status message, if it was set anew since the instance's last record that has one."


@attrs.frozen(kw_only=True, weakref_slot=False)
class InstanceCompleted:
    """
    The body returned, and this is its value.
    """

    kind: ClassVar[str] = "instance_completed"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When the body had returned."
    value: Encoded
    "What it returned."
    status: str | None = None
    "The status message, if it was set anew since the instance's last record that has one."


@attrs.frozen(kw_only=True, weakref_slot=False)
class InstanceFailed:
    """
    An exception left the body.
    """

    kind: ClassVar[str] = "instance_failed"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When it had left the body."
    error: ErrorInfo
    "What left the body."
    failed_paths: tuple[str, ...] = ()
    "Paths of the recorded failures found in it: a resume clears them."
    status: str | None = None
    "The status message, if it was set anew since the instance's last record that has one."


@attrs.frozen(kw_only=True, weakref_slot=False)
class InstanceCancelled:
    """
    A request to cancel was carried out.
    """

    kind: ClassVar[str] = "instance_cancelled"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When it was."
    reason: str | None = None
    "Why, in the words of the caller of ``cancel``."
    error: ErrorInfo | None = None
    "What else left the body while it was being cancelled, if anything."
    failed_paths: tuple[str, ...] = ()
    "Paths of the recorded failures found in it: a resume clears them."
    status: str | None = None
    "The status message, if it was set anew since the instance's last record that has one."


@attrs.frozen(kw_only=True, weakref_slot=False)
class WaitStarted:
    """
    A suspend point or a sleep was reached for the first time: its deadline is fixed from now on.
    """

    kind: ClassVar[str] = "wait_started"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When the record was made."
    path: str
    "Its path."
    deadline: float | None = None
    "When it ends by itself, in seconds since 1970; None if it does not."
    expects: str | None = None
    "Name of the type that a signal to it must have; None for a sleep."
    note: str | None = None
    "What is to be shown as the status while it waits."
    status: str | None = None
    "The status message, if it was set anew since the instance's last record that has one."


@attrs.frozen(kw_only=True, weakref_slot=False)
class WaitAbandoned:
    """
    A wait was cancelled by the body itself, which goes on elsewhere: no signal can reach it there any more.
    """

    kind: ClassVar[str] = "wait_abandoned"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When the record was made."
    path: str
    "Its path."


@attrs.frozen(kw_only=True, weakref_slot=False)
class SignalReceived:
    """
    A signal has ended a wait: this is its payload.
    """

    kind: ClassVar[str] = "signal_received"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When the record was made."
    path: str
    "Its path."
    value: Encoded
    "The payload."
    status: str | None = None
    "The status message, if it was set anew since the instance's last record that has one."


@attrs.frozen(kw_only=True, weakref_slot=False)
class SignalKept:
    """
    A signal came before the instance got to its suspend point, and waits for it there.
    """

    kind: ClassVar[str] = "signal_kept"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When the record was made."
    path: str
    "Its path."
    value: Encoded
    "The payload."


@attrs.frozen(kw_only=True, weakref_slot=False)
class SuspendTimedOut:
    """
    The deadline of a suspend point passed before there was a signal.
    """

    kind: ClassVar[str] = "suspend_timed_out"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When the record was made."
    path: str
    "Its path."
    status: str | None = None
    "The status message, if it was set anew since the instance's last record that has one."


@attrs.frozen(kw_only=True, weakref_slot=False)
class SleepEnded:
    """
    The deadline of a sleep has passed.
    """

    kind: ClassVar[str] = "sleep_ended"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When the record was made."
    path: str
    "Its path."
    status: str | None = None
    "The status message, if it was set anew since the instance's last record that has one."


@attrs.frozen(kw_only=True, weakref_slot=False)
class ScopeStarted:
    """
    A durable cancel scope was entered for the first time: its deadline is fixed from now on.
    """

    kind: ClassVar[str] = "scope_started"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When the record was made."
    path: str
    "Its path."
    deadline: float | None = None
    "When it expires, in seconds since 1970; None if it does not."
    status: str | None = None
    "The status message, if it was set anew since the instance's last record that has one."


@attrs.frozen(kw_only=True, weakref_slot=False)
class ScopeEnded:
    """
    A durable cancel scope was left, and whether it had expired is decided.
    """

    kind: ClassVar[str] = "scope_ended"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When the record was made."
    path: str
    "Its path."
    expired: bool = False
    "Whether it has cancelled what was in it."
    status: str | None = None
    "The status message, if it was set anew since the instance's last record that has one."


@attrs.frozen(kw_only=True, weakref_slot=False)
class IntentRecorded:
    """
    An effect that must not repeat is about to begin: from now on it may have happened.
    """

    kind: ClassVar[str] = "intent_recorded"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When the record was made."
    path: str
    "Its path."
    started_at: float
    "When it is about to begin."
    expects: str = "typing.Any"
    "Name of the type of its value."
    status: str | None = None
    "The status message, if it was set anew since the instance's last record that has one."


@attrs.frozen(kw_only=True, weakref_slot=False)
class IntentWithdrawn:
    """
    Somebody knows that an effect did not happen: it is to be run.
    """

    kind: ClassVar[str] = "intent_withdrawn"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When the record was made."
    path: str
    "Its path."


@attrs.frozen(kw_only=True, weakref_slot=False)
class BranchStarted:
    """
    A child of a fan-out has begun to record.
    """

    kind: ClassVar[str] = "branch_started"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When the record was made."
    path: str
    "Its path."
    digest: str
    "Digest of the canonical JSON of its item."
    index: int
    "Place of its item, from 0."
    workflow: str | None = None
    "Name of its workflow, if it is an instance of its own."


@attrs.frozen(kw_only=True, weakref_slot=False)
class BranchCompleted:
    """
    A child of a fan-out returned, and this is its value.
    """

    kind: ClassVar[str] = "branch_completed"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When the record was made."
    path: str
    "Its path."
    value: Encoded
    "What it returned."
    index: int
    "Place of its item, from 0."
    started_at: float
    "When it began in this run."
    digest: str | None = None
    "Digest of its item, if there is no record of its beginning."
    status: str | None = None
    "The status message, if it was set anew since the instance's last record that has one."


@attrs.frozen(kw_only=True, weakref_slot=False)
class BranchFailed:
    """
    A child of a fan-out that collects all outcomes failed.
    """

    kind: ClassVar[str] = "branch_failed"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When the record was made."
    path: str
    "Its path."
    error: ErrorInfo
    "What it failed with."
    index: int
    "Place of its item, from 0."
    started_at: float
    "When it began in this run."
    digest: str | None = None
    "Digest of its item, if there is no record of its beginning."
    failed_paths: tuple[str, ...] = ()
    "Paths of the recorded failures found in it: a resume clears them."
    status: str | None = None
    "The status message, if it was set anew since the instance's last record that has one."


@attrs.frozen(kw_only=True, weakref_slot=False)
class FanOutFailed:
    """
    A child of a fan-out failed, and with it the fan-out.
    """

    kind: ClassVar[str] = "fan_out_failed"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When the record was made."
    path: str
    "Its path."
    error: ErrorInfo
    "What it failed with."
    index: int
    "Place of the child's item, from 0."
    item_key: str
    "What the child is called in paths."
    failed_paths: tuple[str, ...] = ()
    "Paths of the recorded failures found in it: a resume clears them."
    status: str | None = None
    "The status message, if it was set anew since the instance's last record that has one."


@attrs.frozen(kw_only=True, weakref_slot=False)
class ChildStarted:
    """
    A child instance was started, in the same batch as its own first record.
    """

    kind: ClassVar[str] = "child_started"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When the record was made."
    path: str
    "Its path."
    workflow: str
    "Name of its workflow."
    detached: bool = False
    "Whether it lives on its own: nobody waits for it, and it is not cancelled with its parent."
    status: str | None = None
    "The status message, if it was set anew since the instance's last record that has one."


@attrs.frozen(kw_only=True, weakref_slot=False)
class CallCompleted:
    """
    The child instance of a call returned, and this is its value.
    """

    kind: ClassVar[str] = "call_completed"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When the record was made."
    path: str
    "Its path."
    value: Encoded
    "What it returned."
    status: str | None = None
    "The status message, if it was set anew since the instance's last record that has one."


@attrs.frozen(kw_only=True, weakref_slot=False)
class CallFailed:
    """
    The child instance of a call failed or was cancelled.
    """

    kind: ClassVar[str] = "call_failed"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When the record was made."
    path: str
    "Its path."
    error: ErrorInfo
    "What it failed with."
    status: str | None = None
    "The status message, if it was set anew since the instance's last record that has one."


@attrs.frozen(kw_only=True, weakref_slot=False)
class CompensationRegistered:
    """
    A step is to run if the instance ends as Failed or Cancelled.
    """

    kind: ClassVar[str] = "compensation_registered"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When the record was made."
    path: str
    "Its path."
    status: str | None = None
    "The status message, if it was set anew since the instance's last record that has one."


@attrs.frozen(kw_only=True, weakref_slot=False)
class CompensationBegun:
    """
    The instance is to end as Failed or Cancelled, and its compensations run first.
    """

    kind: ClassVar[str] = "compensation_begun"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When the record was made."
    error: ErrorInfo | None = None
    "What left the body, if anything did."
    failed_paths: tuple[str, ...] = ()
    "Paths of the recorded failures found in it."
    is_cancelled: bool = False
    "Whether it ends as Cancelled; else as Failed."
    reason: str | None = None
    "Why it was cancelled, in the words of the caller."
    status: str | None = None
    "The status message, if it was set anew since the instance's last record that has one."


@attrs.frozen(kw_only=True, weakref_slot=False)
class InstanceSuspended:
    """
    All branches of the instance wait: it needs no task until one of the waits ends.
    """

    kind: ClassVar[str] = "instance_suspended"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When the record was made."
    path: str
    "The path that has waited longest."
    wake_at: float | None = None
    "The earliest deadline among its waits and scopes, in seconds since 1970."
    note: str | None = None
    "What the longest wait says as the status."
    awaits_children: bool = False
    "Whether the end of a child instance ends one of its waits."
    status: str | None = None
    "The status message, if it was set anew since the instance's last record that has one."


@attrs.frozen(kw_only=True, weakref_slot=False)
class InstanceRetired:
    """
    The instance is removed: retention is over, or somebody deleted it. No record of it counts from now on.
    """

    kind: ClassVar[str] = "instance_retired"

    instance: int
    "Number of the instance."
    seq: int
    "Its place in the instance's journal."
    at: float
    "When the record was made."


InstanceRecord: TypeAlias = (
    InstanceStarted
    | RunStarted
    | InstanceResumed
    | StepCompleted
    | AttemptFailed
    | StepFailed
    | CancelRequested
    | InstanceBlocked
    | InstanceCompleted
    | InstanceFailed
    | InstanceCancelled
    | WaitStarted
    | WaitAbandoned
    | SignalReceived
    | SignalKept
    | SuspendTimedOut
    | SleepEnded
    | ScopeStarted
    | ScopeEnded
    | IntentRecorded
    | IntentWithdrawn
    | BranchStarted
    | BranchCompleted
    | BranchFailed
    | FanOutFailed
    | ChildStarted
    | CallCompleted
    | CallFailed
    | CompensationRegistered
    | CompensationBegun
    | InstanceSuspended
    | InstanceRetired
)
"What happened to an instance."


@attrs.frozen(kw_only=True, weakref_slot=False)
class StoreOpened:
    """
    An engine opened the store for writing, and everything before this record was durable by then.
    """

    kind: ClassVar[str] = "store_opened"

    session: int
    "Counts the openings, from 1."
    at: float
    "When it was."
    durability: str
    "``fsync`` or ``os``: what the batches of this session may be assumed to have been."
    pid: int
    "Process id of the opener."
    host: str
    "Host name of the opener."


@attrs.frozen(kw_only=True, weakref_slot=False)
class StoreClosed:
    """
    The engine closed the store in order, and everything before this record was durable by then.
    """

    kind: ClassVar[str] = "store_closed"

    session: int
    "The session that ended."
    at: float
    "When it was."


StoreRecord: TypeAlias = StoreOpened | StoreClosed
"What happened to the store as a whole."

Record: TypeAlias = InstanceRecord | StoreRecord
"Any line of a log behind the segment's header."

INSTANCE_RECORDS: tuple[type[InstanceRecord], ...] = (
    InstanceStarted,
    RunStarted,
    InstanceResumed,
    StepCompleted,
    AttemptFailed,
    StepFailed,
    CancelRequested,
    InstanceBlocked,
    InstanceCompleted,
    InstanceFailed,
    InstanceCancelled,
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
    BranchStarted,
    BranchCompleted,
    BranchFailed,
    FanOutFailed,
    ChildStarted,
    CallCompleted,
    CallFailed,
    CompensationRegistered,
    CompensationBegun,
    InstanceSuspended,
    InstanceRetired,
)
STORE_RECORDS: tuple[type[StoreRecord], ...] = (StoreOpened, StoreClosed)
