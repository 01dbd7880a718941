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


@attrs.frozen(kw_only=True)
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


@attrs.frozen(kw_only=True)
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


@attrs.frozen(kw_only=True)
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


@attrs.frozen(kw_only=True)
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


@attrs.frozen(kw_only=True)
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


@attrs.frozen(kw_only=True)
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


@attrs.frozen(kw_only=True)
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


@attrs.frozen(kw_only=True)
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


@attrs.frozen(kw_only=True)
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


@attrs.frozen(kw_only=True)
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


@attrs.frozen(kw_only=True)
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
)
"What happened to an instance."


@attrs.frozen(kw_only=True)
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


@attrs.frozen(kw_only=True)
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
)
STORE_RECORDS: tuple[type[StoreRecord], ...] = (StoreOpened, StoreClosed)
