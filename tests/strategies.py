"""
Hypothesis strategies for memable's values: one for every class of record.
"""

from __future__ import annotations

from hypothesis import strategies as st

from memable._encoded import Encoded
from memable._error_info import ErrorInfo
from memable._json import dumps
from memable._records import (
    INSTANCE_RECORDS,
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
    Record,
    RunStarted,
    ScopeEnded,
    ScopeStarted,
    SignalKept,
    SignalReceived,
    SleepEnded,
    StepCompleted,
    StepFailed,
    StepFailure,
    StoreClosed,
    StoreOpened,
    SuspendTimedOut,
    WaitAbandoned,
    WaitStarted,
)

#: Any text, lone surrogates and the log's own syntax included.
texts = st.text(st.characters(codec=None), max_size=20) | st.sampled_from(
    ['","value":', '{"kind":"', "a\nb", "\0", '\\"', '1f2e0a44 3.17.0; {"kind":"x"}']
)
paths = st.from_regex(r"[a-z]{1,8}(:v[0-9])?(/[0-9]{1,3}/[a-z]{1,3})?", fullmatch=True) | texts
numbers = st.integers(1, 2**40)
times = st.floats(0, 4e9, allow_nan=False)

json_trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
encoded = st.builds(Encoded, type=texts, data=json_trees.map(dumps))
error_infos = st.recursive(
    st.builds(ErrorInfo, type=texts, message=texts, traceback=texts, bases=st.lists(texts, max_size=3).map(tuple)),
    lambda inner: st.builds(ErrorInfo, type=texts, message=texts, leaves=st.lists(inner, max_size=3).map(tuple)),
    max_leaves=4,
)
_head = {"instance": numbers, "seq": numbers, "at": times}
_status = st.none() | texts
_tuples = st.lists(paths, max_size=3).map(tuple)
_place = {**_head, "path": paths}
_indexes = st.integers(0, 2**40)

RECORDS: dict[type[Record], st.SearchStrategy[Record]] = {
    InstanceStarted: st.builds(
        InstanceStarted,
        **_head,
        session=numbers,
        workflow=texts,
        instance_id=texts,
        input=encoded,
        parent=st.none() | texts,
        detached=st.booleans(),
    ),
    RunStarted: st.builds(RunStarted, **_head, session=numbers, after_crash=st.booleans()),
    InstanceResumed: st.builds(
        InstanceResumed, **_head, session=numbers, cleared=_tuples, forgotten=_tuples, anew=st.booleans()
    ),
    StepCompleted: st.builds(
        StepCompleted, **_head, path=paths, value=encoded, started_at=times, attempt=numbers, status=_status
    ),
    AttemptFailed: st.builds(
        AttemptFailed,
        **_head,
        path=paths,
        error=error_infos,
        next_attempt_at=times,
        started_at=times,
        attempt=numbers,
        status=_status,
    ),
    StepFailed: st.builds(
        StepFailed,
        **_head,
        path=paths,
        error=error_infos,
        started_at=times,
        attempt=numbers,
        failure=st.sampled_from(StepFailure),
        retryable=st.booleans(),
        status=_status,
    ),
    CancelRequested: st.builds(CancelRequested, **_head, reason=_status),
    InstanceBlocked: st.builds(
        InstanceBlocked,
        **_head,
        error=error_infos,
        path=st.none() | paths,
        needs_resume=st.booleans(),
        failed_paths=_tuples,
        status=_status,
    ),
    InstanceCompleted: st.builds(InstanceCompleted, **_head, value=encoded, status=_status),
    InstanceFailed: st.builds(InstanceFailed, **_head, error=error_infos, failed_paths=_tuples, status=_status),
    InstanceCancelled: st.builds(
        InstanceCancelled,
        **_head,
        reason=_status,
        error=st.none() | error_infos,
        failed_paths=_tuples,
        status=_status,
    ),
    WaitStarted: st.builds(
        WaitStarted,
        **_place,
        deadline=st.none() | times,
        expects=st.none() | texts,
        note=_status,
        status=_status,
    ),
    WaitAbandoned: st.builds(WaitAbandoned, **_place),
    SignalReceived: st.builds(SignalReceived, **_place, value=encoded, status=_status),
    SignalKept: st.builds(SignalKept, **_place, value=encoded),
    SuspendTimedOut: st.builds(SuspendTimedOut, **_place, status=_status),
    SleepEnded: st.builds(SleepEnded, **_place, status=_status),
    ScopeStarted: st.builds(ScopeStarted, **_place, deadline=st.none() | times, status=_status),
    ScopeEnded: st.builds(ScopeEnded, **_place, expired=st.booleans(), status=_status),
    IntentRecorded: st.builds(IntentRecorded, **_place, started_at=times, expects=texts, status=_status),
    IntentWithdrawn: st.builds(IntentWithdrawn, **_place),
    BranchStarted: st.builds(BranchStarted, **_place, digest=texts, index=_indexes, workflow=st.none() | texts),
    BranchCompleted: st.builds(
        BranchCompleted,
        **_place,
        value=encoded,
        index=_indexes,
        started_at=times,
        digest=st.none() | texts,
        status=_status,
    ),
    BranchFailed: st.builds(
        BranchFailed,
        **_place,
        error=error_infos,
        index=_indexes,
        started_at=times,
        digest=st.none() | texts,
        failed_paths=_tuples,
        status=_status,
    ),
    FanOutFailed: st.builds(
        FanOutFailed,
        **_place,
        error=error_infos,
        index=_indexes,
        item_key=texts,
        failed_paths=_tuples,
        status=_status,
    ),
    ChildStarted: st.builds(ChildStarted, **_place, workflow=texts, detached=st.booleans(), status=_status),
    CallCompleted: st.builds(CallCompleted, **_place, value=encoded, status=_status),
    CallFailed: st.builds(CallFailed, **_place, error=error_infos, status=_status),
    CompensationRegistered: st.builds(CompensationRegistered, **_place, status=_status),
    CompensationBegun: st.builds(
        CompensationBegun,
        **_head,
        error=st.none() | error_infos,
        failed_paths=_tuples,
        is_cancelled=st.booleans(),
        reason=_status,
        status=_status,
    ),
    InstanceSuspended: st.builds(
        InstanceSuspended,
        **_place,
        wake_at=st.none() | times,
        note=_status,
        awaits_children=st.booleans(),
        status=_status,
    ),
    InstanceRetired: st.builds(InstanceRetired, **_head),
    StoreOpened: st.builds(
        StoreOpened, session=numbers, at=times, durability=st.sampled_from(["fsync", "os"]), pid=numbers, host=texts
    ),
    StoreClosed: st.builds(StoreClosed, session=numbers, at=times),
}

records: st.SearchStrategy[Record] = st.one_of(*RECORDS.values())
instance_records: st.SearchStrategy[InstanceRecord] = st.one_of(*(RECORDS[cls] for cls in INSTANCE_RECORDS))
