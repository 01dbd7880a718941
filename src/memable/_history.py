"""
The journal for people: what happened to an instance, one entry for each thing, in the order in which they began.

Decided here: which records make up one thing, and what it is called. A beginning and an end that are recorded apart
become one entry; where no end is recorded, the entry has none. Nothing is left out because it was dropped later:
what a resume has forgotten did happen. Values are shown as the data that is recorded, and never made into objects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar

import attrs

from ._encoded import Encoded
from ._error_info import ErrorInfo, describe_exception, rename_error
from ._errors import SuspendTimeoutError
from ._json import loads
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
from ._times import utc_datetime

#: What is told of a cancel scope that expired, whether its body was to fail of it or to move on.
EXPIRED = ErrorInfo(
    type="memable.ScopeTimeoutError",
    message="the scope expired",
    bases=("memable.MemableError", "builtins.TimeoutError"),
)


@attrs.frozen
class HistoryEntry:
    """
    One thing that happened to an instance.

    Its kind is one of these; more may be added.

    - ``invoke``: the instance was started; the value is its input.
    - ``run``: it runs again after its store was closed or its process died; the value tells ``after_crash``.
    - ``resume``: somebody resumed it; the value has the paths that were ``cleared`` and ``forgotten``, and ``anew``.
    - ``step``: an attempt at a step. One of an effect that must not repeat has no end while its outcome is unknown,
      and an end without value and error once somebody said that it did not happen.
    - ``suspend``, ``sleep``: a wait, with the payload or the timeout that ended it, or neither if the body left it.
    - ``signal``: a signal came early, and was kept.
    - ``scope``: a durable cancel scope; it has an error if it expired.
    - ``child``: a child of a fan-out. One that has begun and recorded nothing yet is not told.
    - ``fan_out``: a fan-out that failed.
    - ``call``: a child instance that the body waited for.
    - ``start``: a child instance that lives on its own; the value is the name of its workflow.
    - ``compensate``: a compensation was registered.
    - ``compensating``: the compensations began, with the error that they are for; if they are for a cancellation, the
      value is its reason.
    - ``compensation``: an attempt at running one.
    - ``cancel``: somebody asked for it to be cancelled; the value is the reason.
    - ``blocked``: it needs a person.
    - ``completed``, ``failed``, ``cancelled``: how it ended; the value of ``cancelled`` is the reason.
    """

    kind: str
    "What it was."
    key: str | None
    "Its path, if it has one."
    attempt: int | None
    "Which attempt it was, from 1; only of a step or compensation."
    started_at: datetime | None
    "When it began (UTC)."
    ended_at: datetime | None
    "When it ended (UTC); None while no end is recorded."
    value: Any = None
    "What came of it, as plain JSON data."
    value_type: str | None = None
    "The recorded name of the value's type; None if there is no value of the user's."
    error: ErrorInfo | None = None
    "What it failed with."


def history_of(records: Sequence[InstanceRecord], aliases: Mapping[str, type]) -> list[HistoryEntry]:
    """
    Return what happened to an instance, in the order in which it began.

    Args:
        records: All records of the instance, oldest first.
        aliases: What recorded classes of errors are called now.
    """
    teller = _Teller(aliases)
    for record in records:
        teller.tell(record)
    _begin_with_what_they_contain(teller.things)
    return [_entry_of(thing) for thing in sorted(teller.things, key=_order)]


def _begin_with_what_they_contain(things: Sequence[_Thing]) -> None:
    """Let a child of a fan-out begin no later than its first step: it is recorded with what that came to."""
    containing = {thing.key: thing for thing in things if thing.kind in ("child", "fan_out")}
    for thing in things:
        path = thing.key or ""
        while SEPARATOR in path:
            path = path.rpartition(SEPARATOR)[0]
            outer = containing.get(path)
            if outer is not None:
                outer.began_at = min(outer.began_at, thing.began_at)


@attrs.define(eq=False)
class _Thing:
    """An entry that may still change."""

    kind: str
    key: str | None
    began_at: float
    ended_at: float | None = None
    attempt: int | None = None
    value: Any = None
    value_type: str | None = None
    error: ErrorInfo | None = None


def _order(thing: _Thing) -> tuple[float, bool, int]:
    """Where several begin at once, tell what contains others before those; else what is recorded first is."""
    depth = (thing.key or "").count(SEPARATOR)
    is_container = thing.kind in ("child", "fan_out")
    return thing.began_at, depth > 0 and not is_container, depth if is_container else 0


def _entry_of(thing: _Thing) -> HistoryEntry:
    return HistoryEntry(
        kind=thing.kind,
        key=thing.key,
        attempt=thing.attempt,
        started_at=utc_datetime(thing.began_at),
        ended_at=None if thing.ended_at is None else utc_datetime(thing.ended_at),
        value=thing.value,
        value_type=thing.value_type,
        error=thing.error,
    )


@attrs.define(eq=False)
class _Teller:
    aliases: Mapping[str, type]
    things: list[_Thing] = attrs.field(factory=list[_Thing])
    "In the order of their first records."
    _workflow: str = ""
    _instance_id: str = ""
    _open: dict[str, _Thing] = attrs.field(factory=dict[str, _Thing])
    "What has begun and may yet end, by path."
    _fan_outs: dict[str, float] = attrs.field(factory=dict[str, float])
    "When the first child of each fan-out began."
    _compensations: set[str] = attrs.field(factory=set[str])

    def tell(self, record: InstanceRecord) -> None:
        self._TELLERS[type(record)](self, record)

    # Things that begin, and end -------------------------------------------------------------------------------

    def _happen(self, kind: str, record: InstanceRecord, *, value: Any = None, error: ErrorInfo | None = None) -> None:
        """Something began and ended at once."""
        path: str | None = getattr(record, "path", None)
        thing = _Thing(kind, path, record.at, record.at)
        self.things.append(thing)
        self._settle(thing, value, error)

    def _begin(self, kind: str, path: str, at: float) -> _Thing:
        thing = self._open[path] = _Thing(kind, path, at)
        self.things.append(thing)
        return thing

    def _end(
        self,
        kind: str,
        path: str,
        at: float,
        *,
        began_at: float | None = None,
        value: Any = None,
        error: ErrorInfo | None = None,
    ) -> _Thing:
        """Something ended that has begun, at *began_at* if its beginning is not recorded."""
        thing = self._open.get(path) or self._begin(kind, path, at if began_at is None else began_at)
        del self._open[path]
        thing.ended_at = at
        self._settle(thing, value, error)
        return thing

    def _settle(self, thing: _Thing, value: Any, error: ErrorInfo | None) -> None:
        thing.error = None if error is None else rename_error(error, self.aliases)
        if isinstance(value, Encoded):
            thing.value = loads(value.data)
            thing.value_type = value.type
        else:
            thing.value = value

    # Records --------------------------------------------------------------------------------------------------

    def _started(self, record: InstanceStarted) -> None:
        self._workflow, self._instance_id = record.workflow, record.instance_id
        self._happen("invoke", record, value=record.input)

    def _run_again(self, record: RunStarted) -> None:
        self._happen("run", record, value={"after_crash": record.after_crash})

    def _resumed(self, record: InstanceResumed) -> None:
        facts = {"cleared": list(record.cleared), "forgotten": list(record.forgotten), "anew": record.anew}
        self._happen("resume", record, value=facts)
        # What comes next under these paths is something else than what had begun there.
        below = tuple(path + SEPARATOR for path in record.forgotten)
        for path in (*self._open, *self._compensations):
            if record.anew or path in record.forgotten or path.startswith(below):
                self._open.pop(path, None)
                self._compensations.discard(path)
        for path in record.cleared:
            self._open.pop(path, None)

    def _attempted(self, record: AttemptFailed) -> None:
        # The question whether an effect has happened stays open if a probe fails.
        thing = _Thing(self._step_kind(record.path), record.path, record.started_at, record.at, record.attempt)
        self.things.append(thing)
        self._settle(thing, None, record.error)

    def _step_ended(self, record: StepCompleted | StepFailed) -> None:
        kind = self._step_kind(record.path)
        if isinstance(record, StepCompleted):
            thing = self._end(kind, record.path, record.at, began_at=record.started_at, value=record.value)
        else:
            thing = self._end(kind, record.path, record.at, began_at=record.started_at, error=record.error)
        thing.attempt = record.attempt

    def _step_kind(self, path: str) -> str:
        return "compensation" if path in self._compensations else "step"

    def _intended(self, record: IntentRecorded) -> None:
        self._begin(self._step_kind(record.path), record.path, record.started_at)

    def _left(self, record: IntentWithdrawn | WaitAbandoned) -> None:
        """An end without an outcome; of a backoff that was abandoned nothing is open."""
        thing = self._open.pop(record.path, None)
        if thing is not None:
            thing.ended_at = record.at

    def _waited(self, record: WaitStarted) -> None:
        self._begin("sleep" if record.expects is None else "suspend", record.path, record.at)

    def _signalled(self, record: SignalReceived) -> None:
        self._end("suspend", record.path, record.at, value=record.value)

    def _timed_out(self, record: SuspendTimedOut) -> None:
        error = SuspendTimeoutError(workflow=self._workflow, instance_id=self._instance_id, key=record.path)
        self._end("suspend", record.path, record.at, error=describe_exception(error))

    def _slept(self, record: SleepEnded) -> None:
        self._end("sleep", record.path, record.at)

    def _kept(self, record: SignalKept) -> None:
        self._happen("signal", record, value=record.value)

    def _entered(self, record: ScopeStarted) -> None:
        self._begin("scope", record.path, record.at)

    def _exited(self, record: ScopeEnded) -> None:
        self._end("scope", record.path, record.at, error=EXPIRED if record.expired else None)

    def _branched(self, record: BranchStarted) -> None:
        self._note_child(record.path, record.at)
        self._begin("child", record.path, record.at)

    def _branch_ended(self, record: BranchCompleted | BranchFailed) -> None:
        self._note_child(record.path, record.started_at)
        if isinstance(record, BranchCompleted):
            self._end("child", record.path, record.at, began_at=record.started_at, value=record.value)
        else:
            self._end("child", record.path, record.at, began_at=record.started_at, error=record.error)

    def _note_child(self, path: str, began_at: float) -> None:
        fan_out = path.rpartition(SEPARATOR)[0]
        self._fan_outs[fan_out] = min(began_at, self._fan_outs.get(fan_out, began_at))

    def _fan_out_failed(self, record: FanOutFailed) -> None:
        child = record.path + SEPARATOR + record.item_key
        if child in self._open:
            self._end("child", child, record.at, error=record.error)
        self._end("fan_out", record.path, record.at, began_at=self._fan_outs.get(record.path), error=record.error)

    def _child_started(self, record: ChildStarted) -> None:
        if record.detached:
            self._happen("start", record, value=record.workflow)
        else:
            self._begin("call", record.path, record.at)

    def _call_returned(self, record: CallCompleted) -> None:
        self._end("call", record.path, record.at, value=record.value)

    def _call_failed(self, record: CallFailed) -> None:
        self._end("call", record.path, record.at, error=record.error)

    def _registered(self, record: CompensationRegistered) -> None:
        self._compensations.add(record.path)
        self._happen("compensate", record)

    def _compensating(self, record: CompensationBegun) -> None:
        self._happen("compensating", record, value=record.reason, error=record.error)

    def _cancel_requested(self, record: CancelRequested) -> None:
        self._happen("cancel", record, value=record.reason)

    def _blocked(self, record: InstanceBlocked) -> None:
        self._happen("blocked", record, error=record.error)

    def _completed(self, record: InstanceCompleted) -> None:
        self._happen("completed", record, value=record.value)

    def _failed(self, record: InstanceFailed) -> None:
        self._happen("failed", record, error=record.error)

    def _cancelled(self, record: InstanceCancelled) -> None:
        self._happen("cancelled", record, value=record.reason, error=record.error)

    def _pass(self, _record: InstanceSuspended | InstanceRetired) -> None:
        """The waits tell that it is suspended, and nobody can ask for the history of what is retired."""

    _TELLERS: ClassVar[dict[type[InstanceRecord], Callable[[_Teller, Any], None]]] = {
        InstanceStarted: _started,
        RunStarted: _run_again,
        InstanceResumed: _resumed,
        StepCompleted: _step_ended,
        AttemptFailed: _attempted,
        StepFailed: _step_ended,
        CancelRequested: _cancel_requested,
        InstanceBlocked: _blocked,
        InstanceCompleted: _completed,
        InstanceFailed: _failed,
        InstanceCancelled: _cancelled,
        WaitStarted: _waited,
        WaitAbandoned: _left,
        SignalReceived: _signalled,
        SignalKept: _kept,
        SuspendTimedOut: _timed_out,
        SleepEnded: _slept,
        ScopeStarted: _entered,
        ScopeEnded: _exited,
        IntentRecorded: _intended,
        IntentWithdrawn: _left,
        BranchStarted: _branched,
        BranchCompleted: _branch_ended,
        BranchFailed: _branch_ended,
        FanOutFailed: _fan_out_failed,
        ChildStarted: _child_started,
        CallCompleted: _call_returned,
        CallFailed: _call_failed,
        CompensationRegistered: _registered,
        CompensationBegun: _compensating,
        InstanceSuspended: _pass,
        InstanceRetired: _pass,
    }
    "What each kind of record tells. A test checks that none is missing."
