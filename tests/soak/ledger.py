"""
What the records of one instance must say: takes them in one by one, and refuses what the contract excludes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

import attrs

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
from programs import Compensate, Fails, Once, Op, Program, Walk, branches_of, ops_of

#: How much later than its deadline something may happen: a scope that is found expired gives its body a second.
LATE_S = 2.5

Name: TypeAlias = tuple[str, str]
"Workflow and instance id."


def is_within(path: str, outer: str) -> bool:
    return path == outer or path.startswith(outer + "/")


def is_once(op: Op) -> bool:
    return isinstance(op, Once) or (isinstance(op, Compensate) and op.once)


@attrs.define
class Ledger:
    """
    Takes in an instance's records one by one, and refuses what the contract excludes.
    """

    name: Name
    program: Program
    openings: list[tuple[float, bool]]
    "When engines were opened, and whether that was with a workflow registered late."
    memos: dict[str, Any] = attrs.field(factory=dict)
    waits: dict[str, WaitStarted] = attrs.field(factory=dict)
    fresh_waits: set[str] = attrs.field(factory=set)
    "Those that nothing has interrupted: they must end in time."
    kept: dict[str, SignalKept] = attrs.field(factory=dict)
    scopes: dict[str, ScopeStarted] = attrs.field(factory=dict)
    attempts: dict[str, AttemptFailed] = attrs.field(factory=dict)
    intents: set[str] = attrs.field(factory=set)
    children: dict[str, str] = attrs.field(factory=dict)
    detached: dict[str, str] = attrs.field(factory=dict)
    compensations: dict[str, int] = attrs.field(factory=dict)
    begun: CompensationBegun | None = None
    cancel: CancelRequested | None = None
    blocked: InstanceBlocked | None = None
    ending: Any = None
    resumes: int = 0

    def take(self, record: InstanceRecord) -> None:
        """
        Take in the next record.
        """
        if self.ending is not None:
            assert isinstance(record, InstanceResumed), "something is recorded after the end"
        take = self._TAKES.get(type(record))
        if take is not None:
            take(self, record)

    def _take_intent(self, record: IntentRecorded) -> None:
        self._new(record.path)
        assert record.path not in self.intents
        assert (record.path in self.compensations) == (self.begun is not None), "an effect at a wrong time"
        self.intents.add(record.path)

    def _withdraw_intent(self, record: IntentWithdrawn) -> None:
        self.intents.remove(record.path)

    def _start_wait(self, record: WaitStarted) -> None:
        self._new(record.path)
        known = self.waits.get(record.path)
        assert known is None or known.deadline == record.deadline, "a deadline has moved"
        if known is None:
            self.fresh_waits.add(record.path)
        self.waits[record.path] = record

    def _abandon_wait(self, record: WaitAbandoned) -> None:
        self.fresh_waits.discard(record.path)

    def _take_signal(self, record: SignalReceived) -> None:
        assert record.path in self.waits, "a signal was received where nothing waits"
        assert record.path not in self.kept
        self._outcome(record)

    def _keep_signal(self, record: SignalKept) -> None:
        self._new(record.path)
        assert record.path not in self.kept
        self.kept[record.path] = record

    def _end_wait(self, record: SuspendTimedOut | SleepEnded) -> None:
        assert record.path not in self.kept, "a signal that was kept has lost"
        self._due(record, self.waits[record.path].deadline)
        if record.path in self.fresh_waits:
            self._in_time(record, self.waits[record.path])
        self._outcome(record)

    def _start_scope(self, record: ScopeStarted) -> None:
        assert record.path not in self.scopes, "a deadline has moved"
        self._new(record.path)
        self.scopes[record.path] = record

    def _end_scope(self, record: ScopeEnded) -> None:
        if record.expired:
            self._due(record, self.scopes[record.path].deadline)
        self._outcome(record)

    def _start_branch(self, record: BranchStarted) -> None:
        self._new(record.path)
        if record.workflow is not None:
            assert record.path not in self.children
            self.children[record.path] = record.workflow

    def _complete_branch(self, record: BranchCompleted) -> None:
        branch = branches_of(self.program).get(record.path + "/")
        if branch is not None:
            assert json.loads(record.value.data) == self.walk().result(branch, record.path + "/")
        self._outcome(record)

    def _end_call(self, record: CallCompleted | CallFailed) -> None:
        assert record.path in self.children
        self._outcome(record)

    def _start_child(self, record: ChildStarted) -> None:
        self._new(record.path)
        started = self.detached if record.detached else self.children
        assert record.path not in started, "a child was started twice"
        started[record.path] = record.workflow

    def _register(self, record: CompensationRegistered) -> None:
        self._new(record.path)
        assert self.begun is None
        assert record.path not in self.compensations
        self.compensations[record.path] = record.seq

    def _begin_compensations(self, record: CompensationBegun) -> None:
        assert self.begun is None
        assert self.compensations
        self.begun = record

    def _request_cancel(self, record: CancelRequested) -> None:
        self.cancel = record

    def _block(self, record: InstanceBlocked) -> None:
        self.blocked = record
        self.fresh_waits.clear()

    def _run_again(self, _record: RunStarted) -> None:
        self.blocked = None

    def known_paths(self) -> list[str]:
        """
        Return all paths that something is recorded of.
        """
        known: set[str] = set()
        for paths in (self.memos, self.waits, self.scopes, self.attempts, self.children, self.intents):
            known.update(paths)
        return sorted(known)

    def walk(self) -> Walk:
        return Walk(self.name[1], {**self.memos, **self.kept}, self.compensations, self.detached)

    def _new(self, path: str) -> None:
        """Check that nothing answers for *path* yet."""
        assert path not in self.memos, "something begins again that has an outcome"
        is_after = path in self.compensations
        assert is_after or not self._done_around(path), "something goes on in a branch that has an outcome"

    def _done_around(self, path: str) -> bool:
        return any(
            isinstance(memo, (BranchCompleted, BranchFailed)) and path != outer and is_within(path, outer)
            for outer, memo in self.memos.items()
        )

    def _outcome(self, record: Any) -> None:
        self._new(record.path)
        self.memos[record.path] = record

    def _step(self, record: StepCompleted | StepFailed | AttemptFailed) -> None:
        path = record.path
        op = ops_of(self.program)[path]
        is_effect = is_once(op)
        if path in self.compensations:
            assert self.begun is not None, "a compensation has run too early"
            later = [one for one, seq in self.compensations.items() if seq > self.compensations[path]]
            # One whose outcome is unknown blocks the instance, once the others have run.
            done = self.memos.keys() | self.intents
            assert all(one in done for one in later), "compensations have run in a wrong order"
        else:
            # Somebody may tell what became of an effect at any time (section 5 of the contract).
            assert self.begun is None or (is_effect and path in self.intents)
        if not is_effect:
            before = self.attempts.get(path)
            assert record.attempt == (1 if before is None else before.attempt + 1)
            if before is not None:
                assert record.started_at >= before.next_attempt_at, "an attempt was made too early"
        if isinstance(record, AttemptFailed):
            self._new(path)
            self.attempts[path] = record
            return
        if is_effect:
            assert path in self.intents, "an effect has an outcome, and there was no intent"
        self.attempts.pop(path, None)
        self.intents.discard(path)
        self._outcome(record)

    def _due(self, record: Any, deadline: float | None) -> None:
        assert deadline is not None
        assert record.at >= deadline - 1e-3, f"{deadline - record.at} s too early"

    def _in_time(self, record: Any, wait: WaitStarted) -> None:
        assert wait.deadline is not None
        opened, is_late = max(one for one in self.openings if one[0] <= record.at)
        if not is_late:
            late_s = record.at - max(wait.deadline, opened)
            assert late_s <= LATE_S, f"{late_s} s too late"

    def _resume(self, record: InstanceResumed) -> None:
        for path in record.cleared:
            memo = self.memos[path]
            assert not isinstance(memo, (StepCompleted, SignalReceived, SleepEnded, BranchCompleted, CallCompleted))
            for paths in (self.memos, self.attempts, self.waits, self.scopes):
                paths.pop(path, None)
        everything: Any = (
            self.memos,
            self.waits,
            self.kept,
            self.scopes,
            self.attempts,
            self.children,
            self.detached,
            self.compensations,
        )
        if record.anew:
            for paths in (*everything, self.intents):
                paths.clear()
            self.begun = None
        for forgotten in record.forgotten:
            for paths in everything:
                for path in [path for path in paths if is_within(path, forgotten)]:
                    del paths[path]
            for path in [path for path in self.memos if is_within(forgotten, path)]:
                del self.memos[path]
            self.intents = {path for path in self.intents if not is_within(path, forgotten)}
        if self.ending is not None:
            # What failed within a scope left it undecided: it gets its full time once more.
            self.scopes = {path: scope for path, scope in self.scopes.items() if path in self.memos}
        self.fresh_waits.clear()
        if self.ending is not None or record.anew:
            self.cancel = None
        self.ending = self.blocked = None
        self.resumes += 1

    def _end(self, record: InstanceCompleted | InstanceFailed | InstanceCancelled) -> None:
        self.ending = record
        if isinstance(record, InstanceCompleted):
            assert self.begun is None
            assert self.cancel is None
            assert json.loads(record.value.data) == self.walk().result(self.program), "a wrong result"
            return
        assert set(self.compensations) <= set(self.memos), "a compensation has not run"
        assert (self.begun is not None) == bool(self.compensations)
        if self.begun is not None:
            assert self.begun.error == record.error, "another cause"
            assert self.begun.is_cancelled == isinstance(record, InstanceCancelled)
        if isinstance(record, InstanceCancelled):
            assert self.cancel is not None
            return
        try:
            result = self.walk().result(self.program)
        except Fails:
            return
        raise AssertionError(f"it failed with {record.error}, and was to return {result}")

    _TAKES: ClassVar[dict[type[Any], Callable[[Any, Any], None]]] = {
        StepCompleted: _step,
        StepFailed: _step,
        AttemptFailed: _step,
        IntentRecorded: _take_intent,
        IntentWithdrawn: _withdraw_intent,
        WaitStarted: _start_wait,
        WaitAbandoned: _abandon_wait,
        SignalReceived: _take_signal,
        SignalKept: _keep_signal,
        SuspendTimedOut: _end_wait,
        SleepEnded: _end_wait,
        ScopeStarted: _start_scope,
        ScopeEnded: _end_scope,
        BranchStarted: _start_branch,
        BranchCompleted: _complete_branch,
        BranchFailed: _outcome,
        FanOutFailed: _outcome,
        ChildStarted: _start_child,
        CallCompleted: _end_call,
        CallFailed: _end_call,
        CompensationRegistered: _register,
        CompensationBegun: _begin_compensations,
        CancelRequested: _request_cancel,
        InstanceBlocked: _block,
        RunStarted: _run_again,
        InstanceResumed: _resume,
        InstanceCompleted: _end,
        InstanceFailed: _end,
        InstanceCancelled: _end,
    }
