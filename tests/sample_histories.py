"""
Short ways to make what one instance may have recorded.
"""

from __future__ import annotations

from typing import Any

from memable._encoded import Encoded
from memable._error_info import ErrorInfo
from memable._records import (
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

VALUE = Encoded("builtins.int", b"1")
ERROR = ErrorInfo("builtins.ValueError", "no")
STARTED = InstanceStarted(
    instance=7, seq=1, at=100.0, session=3, workflow="w", instance_id="i", input=VALUE, parent="p/q"
)

#: For each kind of record what it needs beside its place.
FACTS: dict[type[InstanceRecord], dict[str, Any]] = {
    RunStarted: {"session": 4},
    InstanceResumed: {"session": 4},
    StepCompleted: {"path": "k", "value": VALUE, "started_at": 1.0},
    AttemptFailed: {"path": "k", "error": ERROR, "next_attempt_at": 9.0, "started_at": 1.0},
    StepFailed: {"path": "k", "error": ERROR, "started_at": 1.0},
    CancelRequested: {},
    InstanceBlocked: {"error": ERROR},
    InstanceCompleted: {"value": VALUE},
    InstanceFailed: {"error": ERROR},
    InstanceCancelled: {},
    WaitStarted: {"path": "wait", "expects": "builtins.int"},
    WaitAbandoned: {"path": "wait"},
    SignalReceived: {"path": "wait", "value": VALUE},
    SignalKept: {"path": "wait", "value": VALUE},
    SuspendTimedOut: {"path": "wait"},
    SleepEnded: {"path": "wait"},
    ScopeStarted: {"path": "scope", "deadline": 200.0},
    ScopeEnded: {"path": "scope"},
    IntentRecorded: {"path": "k", "started_at": 1.0},
    IntentWithdrawn: {"path": "k"},
    BranchStarted: {"path": "f/0", "digest": "d0", "index": 0},
    BranchCompleted: {"path": "f/0", "value": VALUE, "index": 0, "started_at": 1.0},
    BranchFailed: {"path": "f/0", "error": ERROR, "index": 0, "started_at": 1.0},
    FanOutFailed: {"path": "f", "error": ERROR, "index": 0, "item_key": "0"},
    ChildStarted: {"path": "call", "workflow": "child"},
    CallCompleted: {"path": "call", "value": VALUE},
    CallFailed: {"path": "call", "error": ERROR},
    CompensationRegistered: {"path": "undo"},
    CompensationBegun: {"error": ERROR},
    InstanceSuspended: {"path": "wait"},
    InstanceRetired: {},
}
ENDINGS: tuple[Any, ...] = (InstanceCompleted, InstanceFailed, InstanceCancelled)


def record(cls: type[Any], seq: int = 2, **changes: Any) -> Any:
    """Return a record of that kind."""
    return cls(**{"instance": 7, "seq": seq, "at": 100.0 + seq, **FACTS[cls], **changes})


def history(*kinds: Any) -> list[InstanceRecord]:
    """Return a start and what follows: classes of records, or pairs of one and what it says."""
    records: list[InstanceRecord] = [STARTED]
    for seq, kind in enumerate(kinds, 2):
        cls, changes = kind if isinstance(kind, tuple) else (kind, {})
        records.append(record(cls, seq, **changes))
    return records
