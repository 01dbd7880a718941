"""
Folds one instance's records into its journal: what is known of it, for the run that continues it.

Decided here: what each record means for the runs after it. Given the same records in the same order, the result is the
same, whoever folds them: recovery, a live engine or a test's model. Nothing here reads values: they stay encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import Any, ClassVar

import attrs

from ._keys import SEPARATOR, ancestors
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
    StepFailure,
    SuspendTimedOut,
    WaitAbandoned,
    WaitStarted,
)
from ._sparse import NOTHING, put

Memo = (
    StepCompleted
    | StepFailed
    | SignalReceived
    | SuspendTimedOut
    | SleepEnded
    | ScopeEnded
    | BranchCompleted
    | BranchFailed
    | FanOutFailed
    | CallCompleted
    | CallFailed
)
"A recorded outcome: it is returned, or raised, in place of doing the work."

FailureMemo = StepFailed | SuspendTimedOut | ScopeEnded | BranchFailed | FanOutFailed | CallFailed
"A recorded outcome that can be raised, and that a resume clears if it has left the body."

Ending = InstanceCompleted | InstanceFailed | InstanceCancelled
"The record that made an instance terminal."

_KINDS: dict[type[Any], str] = {
    StepCompleted: "a step",
    StepFailed: "a step",
    SignalReceived: "a suspend point",
    SuspendTimedOut: "a suspend point",
    SleepEnded: "a sleep",
    ScopeEnded: "a cancel scope",
    BranchCompleted: "a child of a fan-out",
    BranchFailed: "a child of a fan-out",
    FanOutFailed: "a fan-out",
    CallCompleted: "a call",
    CallFailed: "a call",
}


@attrs.define
class FanOutItems:
    """
    The items of a fan-out of which something is recorded.
    """

    digests: dict[str, str] = attrs.field(factory=dict)
    "By the children's names."
    indexes: dict[str, int] = attrs.field(factory=dict)
    "Places, by the children's names."


@attrs.define(weakref_slot=False)
class Journal:
    """
    What one instance's records say, for the run that continues it.
    """

    started: InstanceStarted
    seq: int
    "Sequence number of the newest record."
    memos: dict[str, Memo] = NOTHING
    "Recorded outcomes by path."
    attempts: dict[str, AttemptFailed] = NOTHING
    "The newest failed attempt of each step that has no outcome yet, by path."
    waits: dict[str, WaitStarted] = NOTHING
    "What was waited for and has no outcome yet, by path."
    abandoned: dict[str, None] = NOTHING
    "Those of the waits, attempts and children that the body has turned away from."
    kept: dict[str, SignalKept] = NOTHING
    "Signals that came early, by path."
    scopes: dict[str, ScopeStarted] = NOTHING
    "Cancel scopes that were entered, by path."
    cut_off: dict[str, None] = NOTHING
    "Outcomes in scopes that were cut short within expired ones: a replay may not get to them."
    intents: dict[str, IntentRecorded] = NOTHING
    "Effects that may have happened, and have no outcome yet, by path."
    unstored: dict[str, IntentRecorded] = NOTHING
    "Effects that have happened, but whose values could not be stored, by path."
    fan_outs: dict[str, FanOutItems] = NOTHING
    "What is recorded of the items of fan-outs, by the paths of those."
    children: dict[str, str] = NOTHING
    "Workflows of the attached child instances, by path."
    child_seqs: dict[str, int] = NOTHING
    "Sequence numbers of the records by which child instances were started, by path."
    detached: dict[str, str] = NOTHING
    "Workflows of the detached child instances, by path."
    compensations: dict[str, int] = NOTHING
    "Sequence numbers of the registrations, by path, in the order in which they were made."
    compensating: CompensationBegun | None = None
    "How the instance is to end once its compensations have run, if they have begun."
    suspended: InstanceSuspended | None = None
    "What it is suspended at, if it is."
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
    forgets: dict[str, int] = NOTHING
    "How often each path was forgotten."
    prunes: bool = False
    "Whether what is recorded within a branch is dropped once its outcome is recorded: no run asks for it any more."
    thinned: dict[str, None] = attrs.field(default=NOTHING, eq=False)
    "Fan-outs of whose children something was dropped that a run may ask for again."
    _below: dict[str, set[str]] = attrs.field(default=NOTHING, eq=False, repr=False)
    "For each path that contains others, those just below it."

    # Taking in -----------------------------------------------------------------------------------------------

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
        path: str | None = getattr(record, "path", None)
        if path is not None and SEPARATOR in path:
            self._note_path(path)
        self._FOLDS[type(record)](self, record)
        self.seq = record.seq
        status: str | None = getattr(record, "status", None)
        if status is not None:
            self.message = status

    def _note_path(self, path: str) -> None:
        while (cut := path.rfind(SEPARATOR)) > 0:
            containing = path[:cut]
            below = self._below.get(containing)
            if below is not None:
                below.add(path)
                return
            self._below = put(self._below, containing, {path})
            path = containing

    def _note_item(self, path: str, index: int, digest: str) -> None:
        fan_out, name = _split(path)
        items = self.fan_outs.get(fan_out)
        if items is None:
            items = FanOutItems()
            self.fan_outs = put(self.fan_outs, fan_out, items)
        items.digests[name] = digest
        items.indexes[name] = index

    def _refuse(self, record: InstanceRecord) -> None:
        what = "is retired, and has no journal" if isinstance(record, InstanceRetired) else "starts a second time"
        raise ValueError(f"instance {record.instance} {what}")

    def _run_again(self, _record: RunStarted) -> None:
        self.blocked = self.suspended = None

    def _restart(self, record: InstanceResumed) -> None:
        if self.ending is not None or record.anew:
            # One that was not carried out yet still is.
            self.cancel_requested = None
        if self.ending is not None:
            # Scopes that the end has cut short: what is tried again in them gets their full time.
            for path in [path for path in self.scopes if path not in self.memos]:
                self._cut_off(self.scopes.pop(path))
        self.blocked = self.ending = self.suspended = None
        if record.anew:
            for paths in self._by_path():
                paths.clear()
            self._below.clear()
            self.compensating = None
            self.message = None
            self.base_generation += 1
        for path in record.cleared:
            self._clear(path)
        for path in record.forgotten:
            self.forgets = put(self.forgets, path, self.forgets.get(path, 0) + 1)
            self._drop(path)

    def _cut_off(self, cut: ScopeStarted) -> None:
        """
        Take note of what a scope holds that may never be entered again, since it was in one that has expired.

        Nobody knows what was in which scope, so what was recorded beside it counts as well: to ask for it is no harm.
        """
        containing, _ = _split(cut.path)
        prefix = containing + SEPARATOR if containing else ""
        for started in self.scopes.values():
            ended = self.memos.get(started.path)
            if not (isinstance(ended, ScopeEnded) and ended.expired and started.seq < cut.seq < ended.seq):
                continue
            for path, memo in self.memos.items():
                if cut.seq < memo.seq < ended.seq and path.startswith(prefix):
                    self.cut_off = put(self.cut_off, path, None)

    def _request_cancel(self, record: CancelRequested) -> None:
        self.cancel_requested = record

    def _block(self, record: InstanceBlocked) -> None:
        self.blocked = record
        self.suspended = None

    def _end(self, record: Ending) -> None:
        self.ending = record
        self.blocked = self.suspended = None

    def _suspend(self, record: InstanceSuspended) -> None:
        self.suspended = record
        self.blocked = None

    def _take_step(self, record: StepCompleted | StepFailed) -> None:
        path = record.path
        self.memos = put(self.memos, path, record)
        self.suspended = None
        if self.attempts:
            self.attempts.pop(path, None)
        if self.abandoned:
            self.abandoned.pop(path, None)
        if self.intents:
            intent = self.intents.pop(path, None)
            if intent is not None and isinstance(record, StepFailed) and record.failure is StepFailure.SERIALIZATION:
                self.unstored = put(self.unstored, path, intent)

    def _take_attempt(self, record: AttemptFailed) -> None:
        self.attempts = put(self.attempts, record.path, record)
        self.abandoned.pop(record.path, None)
        self.suspended = None

    def _take_intent(self, record: IntentRecorded) -> None:
        self.intents = put(self.intents, record.path, record)
        self.suspended = None

    def _withdraw_intent(self, record: IntentWithdrawn) -> None:
        self.intents.pop(record.path, None)
        # What the probe tried was about the effect that did not happen.
        self.attempts.pop(record.path, None)
        self.abandoned.pop(record.path, None)
        self.suspended = None

    def _start_wait(self, record: WaitStarted) -> None:
        self.waits = put(self.waits, record.path, record)
        self.abandoned.pop(record.path, None)
        self.suspended = None

    def _abandon_wait(self, record: WaitAbandoned) -> None:
        self.abandoned = put(self.abandoned, record.path, None)
        self.suspended = None

    def _keep_signal(self, record: SignalKept) -> None:
        self.kept = put(self.kept, record.path, record)
        # If the body got there meanwhile, it does not wait there any more.
        self.waits.pop(record.path, None)
        self.abandoned.pop(record.path, None)

    def _end_wait(self, record: SignalReceived | SuspendTimedOut | SleepEnded) -> None:
        path = record.path
        self.memos = put(self.memos, path, record)
        self.waits.pop(path, None)
        self.kept.pop(path, None)
        self.abandoned.pop(path, None)
        self.suspended = None

    def _start_scope(self, record: ScopeStarted) -> None:
        self.scopes = put(self.scopes, record.path, record)
        self.suspended = None

    def _take_outcome(self, record: ScopeEnded | FanOutFailed | CallCompleted | CallFailed) -> None:
        self.memos = put(self.memos, record.path, record)
        self.suspended = None

    def _start_branch(self, record: BranchStarted) -> None:
        self._note_item(record.path, record.index, record.digest)
        self.suspended = None
        if record.workflow is not None:
            self.children = put(self.children, record.path, record.workflow)
            self.child_seqs = put(self.child_seqs, record.path, record.seq)

    def _end_branch(self, record: BranchCompleted | BranchFailed) -> None:
        self.memos = put(self.memos, record.path, record)
        self.suspended = None
        if record.digest is not None:
            self._note_item(record.path, record.index, record.digest)
        if self.prunes:
            self._prune(record.path)

    def _start_child(self, record: ChildStarted) -> None:
        if record.detached:
            self.detached = put(self.detached, record.path, record.workflow)
        else:
            self.children = put(self.children, record.path, record.workflow)
        self.child_seqs = put(self.child_seqs, record.path, record.seq)
        self.suspended = None

    def _register_compensation(self, record: CompensationRegistered) -> None:
        self.compensations = put(self.compensations, record.path, record.seq)
        self.suspended = None

    def _begin_compensation(self, record: CompensationBegun) -> None:
        self.compensating = record
        self.suspended = None

    _FOLDS: ClassVar[dict[type[InstanceRecord], Callable[[Journal, Any], None]]] = {
        InstanceStarted: _refuse,
        RunStarted: _run_again,
        InstanceResumed: _restart,
        StepCompleted: _take_step,
        AttemptFailed: _take_attempt,
        StepFailed: _take_step,
        CancelRequested: _request_cancel,
        InstanceBlocked: _block,
        InstanceCompleted: _end,
        InstanceFailed: _end,
        InstanceCancelled: _end,
        WaitStarted: _start_wait,
        WaitAbandoned: _abandon_wait,
        SignalReceived: _end_wait,
        SignalKept: _keep_signal,
        SuspendTimedOut: _end_wait,
        SleepEnded: _end_wait,
        ScopeStarted: _start_scope,
        ScopeEnded: _take_outcome,
        IntentRecorded: _take_intent,
        IntentWithdrawn: _withdraw_intent,
        BranchStarted: _start_branch,
        BranchCompleted: _end_branch,
        BranchFailed: _end_branch,
        FanOutFailed: _take_outcome,
        ChildStarted: _start_child,
        CallCompleted: _take_outcome,
        CallFailed: _take_outcome,
        CompensationRegistered: _register_compensation,
        CompensationBegun: _begin_compensation,
        InstanceSuspended: _suspend,
        InstanceRetired: _refuse,
    }
    "What each kind of record means. A test checks that none is missing."

    # Asking --------------------------------------------------------------------------------------------------

    def generation(self, path: str) -> int:
        """
        Return how often what is recorded under *path* was given up on purpose.
        """
        if not self.forgets:
            return self.base_generation
        return self.base_generation + sum(self.forgets.get(part, 0) for part in _with_ancestors(path))

    def kind_of(self, path: str) -> str | None:
        """
        Return what *path* is recorded as, in words, or None if nothing is recorded of it.
        """
        if path in self.compensations:
            return "a compensation"
        memo = self.memos.get(path)
        if memo is not None:
            return _KINDS[type(memo)]
        if not (
            self.attempts
            or self.intents
            or self.waits
            or self.kept
            or self.scopes
            or self.fan_outs
            or self.children
            or self.detached
        ):
            # The likely case, told without looking further.
            return None
        wait = self.waits.get(path)
        if wait is not None and wait.expects is None:
            return "a sleep"
        fan_out, name = _split(path)
        if fan_out in self.fan_outs and name in self.fan_outs[fan_out].digests:
            return "a child of a fan-out"
        return next((kind for paths, kind in self._open_kinds() if path in paths), None)

    def _open_kinds(self) -> tuple[tuple[Container[str], str], ...]:
        """Return the paths of what has begun and may have no outcome yet, with what each is called."""
        return (
            (self.attempts, "a step"),
            (self.intents, "a step"),
            (self.waits, "a suspend point"),
            (self.kept, "a suspend point"),
            (self.scopes, "a cancel scope"),
            (self.fan_outs, "a fan-out"),
            (self.children, "a call"),
            (self.detached, "a start"),
        )

    def is_waiting_at(self, path: str) -> bool:
        """
        Tell whether the body was last seen waiting for a signal at *path*.
        """
        wait = self.waits.get(path)
        return wait is not None and wait.expects is not None and self._is_open(path)

    def waiting_paths(self) -> list[str]:
        """
        Return the paths that the instance waits at, the longest-waiting first.
        """
        found = {path: wait.seq for path, wait in self.waits.items() if self._is_open(path)}
        found |= {path: failed.seq for path, failed in self.attempts.items() if self._is_open(path)}
        found |= {
            path: self.child_seqs.get(path, 0)
            for path in self.children
            if path not in self.memos and self._is_open(path)
        }
        return sorted(found, key=lambda path: found[path])

    def _is_open(self, path: str) -> bool:
        """Tell whether the body may still wait at *path*: it has not turned away, and nothing around it is decided."""
        return path not in self.abandoned and not self.is_within_outcome(path)

    def is_decided(self, path: str) -> bool:
        """
        Tell whether *path*, or something that contains it, has an outcome.
        """
        return path in self.memos or self.is_within_outcome(path)

    def is_within_outcome(self, path: str) -> bool:
        """
        Tell whether something that contains *path* has an outcome.
        """
        return any(containing in self.memos for containing in ancestors(path))

    def has_failed(self, path: str) -> bool:
        """
        Tell whether *path* has a recorded outcome that is raised when it is asked for.
        """
        memo = self.memos.get(path)
        return isinstance(memo, FailureMemo) and not (isinstance(memo, ScopeEnded) and not memo.expired)

    def asked_paths(self) -> set[str]:
        """
        Return the paths of what shows that a run got there: a run that does not ask for them is behind it.

        What lies within a recorded outcome is not asked for: the outcome answers for it.
        """
        asked = {*self.memos, *self.attempts, *self.intents, *self.scopes, *self.children, *self.detached}
        asked.update(self.compensations, (path for path in self.waits if path not in self.abandoned))
        asked.difference_update(self.cut_off)
        return {path for path in asked if not self.is_within_outcome(path)} if self._below else asked

    def known_paths(self) -> set[str]:
        """
        Return all paths of which anything is recorded, fan-outs and their children included.
        """
        known: set[str] = set().union(*self._by_path())
        for fan_out, items in self.fan_outs.items():
            known.update(fan_out + SEPARATOR + name for name in items.digests)
        return known

    def knows(self, path: str) -> bool:
        """
        Tell whether anything is recorded under *path*.
        """
        below = path + SEPARATOR
        return any(known == path or known.startswith(below) for known in self.known_paths())

    def children_below(self, path: str) -> list[str]:
        """
        Return the paths of the attached child instances at or below *path*.
        """
        below = path + SEPARATOR
        return [known for known in self.children if known == path or known.startswith(below)]

    # Dropping ------------------------------------------------------------------------------------------------

    def prune(self) -> None:
        """
        Drop what is recorded within branches that have an outcome, now and from now on.

        Attached child instances that have not ended stay: they are cancelled with the instance. A branch within which a
        compensation is registered keeps all: its body is needed to register it again.
        """
        self.prunes = True
        for path in [path for path, memo in self.memos.items() if isinstance(memo, (BranchCompleted, BranchFailed))]:
            self._prune(path)

    def drop_child(self, fan_out: str, child: str) -> None:
        """
        Drop what is recorded of a child whose outcome the body's fan-out has got, so that it is not kept twice.

        A child within which a compensation is registered stays, as in ``prune``, and so do attached child instances
        that have not ended. ``restore_children`` brings it back.
        """
        within = self._list_below(child)
        if self.compensations and not self.compensations.keys().isdisjoint(within):
            return
        self._take_below(child)
        self._below[fan_out].discard(child)
        self._remove_decided((*within, child))
        items = self.fan_outs[fan_out]
        name = child[len(fan_out) + 1 :]
        del items.digests[name], items.indexes[name]
        self.thinned = put(self.thinned, fan_out, None)

    def drop_served(self, fan_out: str) -> None:
        """
        Drop what is recorded of the children of a fan-out whose results the body has got, as ``drop_child`` does.
        """
        items = self.fan_outs.get(fan_out)
        if items is None or self.compensations:
            return
        self._remove_decided(self._take_below(fan_out))
        items.digests.clear()
        items.indexes.clear()
        self.thinned = put(self.thinned, fan_out, None)

    def restore_children(self, fan_out: str, full: Journal) -> None:
        """
        Take over from a journal that has all records what this one has dropped of the children of a fan-out.
        """
        items = full.fan_outs[fan_out]
        self.fan_outs = put(self.fan_outs, fan_out, items)
        for name in items.digests:
            path = fan_out + SEPARATOR + name
            memo = full.memos.get(path)
            if memo is not None:
                self._note_path(path)
                self.memos = put(self.memos, path, memo)
        self.thinned.pop(fan_out, None)

    def _prune(self, branch: str) -> None:
        within = self._list_below(branch)
        if within and self.compensations.keys().isdisjoint(within):
            self._take_below(branch)
            self._remove_decided(within)

    def _list_below(self, path: str) -> list[str]:
        """Return all paths below *path*."""
        found = [path]
        for containing in found:
            found.extend(self._below.get(containing, ()))
        return found[1:]

    def _take_below(self, path: str) -> list[str]:
        """Return all paths below *path*, and forget that they are there."""
        found = [path]
        for containing in found:
            found.extend(self._below.pop(containing, ()))
        return found[1:]

    def _remove_decided(self, gone: Iterable[str]) -> None:
        """Remove what lies within outcomes, but for children that have not ended: they end with the instance."""
        left = {path: self.children[path] for path in gone if path in self.children and path not in self.memos}
        self._remove(gone)
        for path, workflow in left.items():
            self._note_path(path)
            self.children = put(self.children, path, workflow)
            self.abandoned = put(self.abandoned, path, None)

    def _remove(self, gone: Iterable[str]) -> None:
        """Remove all that is recorded at these paths."""
        for path in gone:
            for paths in self._by_path():
                paths.pop(path, None)

    def _by_path(self) -> tuple[dict[str, Any], ...]:
        return (
            self.memos,
            self.attempts,
            self.waits,
            self.abandoned,
            self.kept,
            self.scopes,
            self.intents,
            self.unstored,
            self.fan_outs,
            self.children,
            self.child_seqs,
            self.detached,
            self.compensations,
            self.thinned,
            self.cut_off,
        )

    def _clear(self, path: str) -> None:
        """Give a recorded failure another try. What was done within it stands, and so do a call's child instances."""
        tried: tuple[dict[str, Any], ...] = (self.memos, self.attempts, self.waits, self.abandoned, self.scopes)
        for paths in tried:
            paths.pop(path, None)
        if path in self.unstored:
            # It must not happen once more: somebody has to tell its value.
            self.intents = put(self.intents, path, self.unstored.pop(path))

    def _drop(self, path: str) -> None:
        """Forget a path with all below it, and the outcomes that contain it. What else they contain stands."""
        self._remove((path, *self._take_below(path)))
        for containing in ancestors(path):
            self.memos.pop(containing, None)
        fan_out, name = _split(path)
        items = self.fan_outs.get(fan_out)
        if items is not None:
            items.digests.pop(name, None)
            items.indexes.pop(name, None)


def _split(path: str) -> tuple[str, str]:
    """Return what contains *path*, and what it is called there."""
    containing, _, name = path.rpartition(SEPARATOR)
    return containing, name


def _with_ancestors(path: str) -> list[str]:
    return [*ancestors(path), path]


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
