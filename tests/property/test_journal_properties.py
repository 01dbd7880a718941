"""
What is true of every sequence of records: header and journal agree, and memos are what a plain model says.
"""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st

from memable._encoded import Encoded
from memable._header import header_of
from memable._journal import journal_of
from memable._records import (
    INSTANCE_RECORDS,
    AttemptFailed,
    BranchCompleted,
    BranchFailed,
    BranchStarted,
    CallCompleted,
    CallFailed,
    ChildStarted,
    CompensationRegistered,
    FanOutFailed,
    InstanceResumed,
    InstanceRetired,
    InstanceStarted,
    IntentRecorded,
    IntentWithdrawn,
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
from memable._states import MetadataStatus
from strategies import RECORDS

STARTED = InstanceStarted(
    instance=1, seq=1, at=0.0, session=1, workflow="w", instance_id="i", input=Encoded("a", b"[]")
)
STEPS = ("a", "b", "f/1/k", "f/10/k", "f/2/k", "f/1/g/0/k")
WAITS = ("w", "f/1/w", "f/1/g/0/w")
#: Few paths, so that records meet: siblings, parents and children, and a name that begins like another.
PATHS: dict[type[Any], tuple[str, ...]] = {
    **dict.fromkeys((StepCompleted, StepFailed, AttemptFailed, IntentRecorded, IntentWithdrawn), STEPS),
    **dict.fromkeys((WaitStarted, SignalReceived, SignalKept, SuspendTimedOut, SleepEnded), WAITS),
    WaitAbandoned: (*STEPS, *WAITS),
    **dict.fromkeys((ScopeStarted, ScopeEnded), ("s", "f/1/s")),
    **dict.fromkeys((BranchStarted, BranchCompleted, BranchFailed), ("f/1", "f/10", "f/2", "f/1/g/0")),
    FanOutFailed: ("f", "f/1/g"),
    **dict.fromkeys((ChildStarted, CallCompleted, CallFailed), ("c", "f/1/c")),
    CompensationRegistered: ("u", "f/1/u", "f/1/g/0/u"),
}
OUTCOMES = (
    StepCompleted,
    StepFailed,
    SignalReceived,
    SuspendTimedOut,
    SleepEnded,
    ScopeEnded,
    BranchCompleted,
    BranchFailed,
    FanOutFailed,
    CallCompleted,
    CallFailed,
)
ALL_PATHS = sorted({path for some in PATHS.values() for path in some})
paths = st.sampled_from(ALL_PATHS)
_lists: dict[str, st.SearchStrategy[Any]] = {
    "cleared": st.lists(paths, max_size=3).map(tuple),
    "forgotten": st.lists(paths, max_size=3, unique=True).map(tuple),
}


@st.composite
def histories(draw: st.DrawFn, *, resumes: bool = True) -> list[Any]:
    """
    Records that one instance may have, behind its start; of one that nobody resumes, if so wanted.

    Nothing but a resume follows an end, and nothing is recorded at or within what has an outcome.
    """
    records: list[Any] = []
    known = journal_of([STARTED])
    for _ in range(draw(st.integers(0, 16))):
        never = (InstanceStarted, InstanceRetired) if resumes else (InstanceStarted, InstanceRetired, InstanceResumed)
        classes = [cls for cls in INSTANCE_RECORDS if cls not in never]
        if known.ending is not None:
            if not resumes:
                break
            classes = [InstanceResumed]
        cls = draw(st.sampled_from(classes))
        changes = {name: draw(values) for name, values in _lists.items() if name in attrs.fields_dict(cls)}
        if cls in PATHS:
            path = changes["path"] = draw(st.sampled_from(PATHS[cls]))
            if any(path == decided or path.startswith(f"{decided}/") for decided in known.memos):
                continue
        record: Any = attrs.evolve(draw(RECORDS[cls]), instance=1, seq=known.seq + 1, **changes)
        known.apply(record)
        records.append(record)
    return records


@given(records=histories())
def test_header_and_journal_agree(records: list[Any]):
    """
    What a header and a journal both know, they know alike after every record.
    """
    header = header_of(STARTED)
    for count, record in enumerate(records, 1):
        header.apply(record)
        journal = journal_of([STARTED, *records[:count]])
        assert journal.seq == header.seq
        assert journal.message == header.message
        assert (journal.ending is not None) == header.status.is_terminal
        assert (journal.cancel_requested is not None) == header.cancel_requested
        assert (journal.blocked is not None) == (header.status is MetadataStatus.BLOCKED)
        assert (journal.suspended is not None) == (header.status is MetadataStatus.SUSPENDED)
        assert (journal.compensating is not None) == header.is_compensating
        assert header.has_compensations or not journal.compensations
        assert header.has_children or not (journal.children or journal.detached)


@given(records=histories())
def test_journal_does_not_depend_on_who_folds(records: list[Any]):
    """
    Folding at once and folding one by one give the same.
    """
    one_by_one = journal_of([STARTED])
    for record in records:
        one_by_one.apply(record)
    assert one_by_one == journal_of([STARTED, *records])


@given(records=histories())
def test_memos_are_those_of_a_plain_model(records: list[Any]):
    """
    A path has the newest outcome that nobody has cleared, forgotten or begun anew since.
    """
    model: dict[str, Any] = {}
    for record in records:
        match record:
            case _ if isinstance(record, OUTCOMES):
                model[record.path] = record
            case InstanceResumed(anew=True):
                model.clear()
            case InstanceResumed():
                gone = {path for path in model if any(_touches(path, one) for one in record.forgotten)}
                model = {path: memo for path, memo in model.items() if path not in gone | set(record.cleared)}
    assert journal_of([STARTED, *records]).memos == model


def _touches(path: str, forgotten: str) -> bool:
    return path == forgotten or path.startswith(f"{forgotten}/") or forgotten.startswith(f"{path}/")


@given(records=histories())
def test_attempts_are_only_of_steps_without_an_outcome(records: list[Any]):
    """
    A step has an outcome or a newest failed attempt, never both; both are known by their path.
    """
    journal = journal_of([STARTED, *records])
    assert journal.attempts.keys().isdisjoint(journal.memos)
    assert all(isinstance(attempt, AttemptFailed) for attempt in journal.attempts.values())
    assert all(journal.knows(path) for path in (*journal.attempts, *journal.memos))


@given(records=histories(), path=paths)
def test_generations_only_grow(records: list[Any], path: str):
    """
    A generation never comes again, so that a step's id never does; what is below a path is at least as new.
    """
    journal = journal_of([STARTED])
    last = journal.generation(path)
    for record in records:
        journal.apply(record)
        assert journal.generation(path) >= last
        assert journal.generation(f"{path}/x") >= journal.generation(path)
        last = journal.generation(path)
        if isinstance(record, InstanceResumed) and (record.anew or path in record.forgotten):
            assert not journal.knows(path)


@given(records=histories())
def test_what_is_known_is_what_was_recorded(records: list[Any]):
    """
    Everything known has a kind, but for paths that no record is about; what is waited for is known and undecided.
    """
    journal = journal_of([STARTED, *records])
    known = journal.known_paths()
    assert known <= set(ALL_PATHS)
    for path in known:
        # A wait that was abandoned may be a wait of whatever kind.
        assert journal.kind_of(path) is not None or path in journal.abandoned
    assert all(journal.kind_of(path) is None for path in ALL_PATHS if path not in known)
    assert set(journal.waiting_paths()) <= known
    assert set(journal.waiting_paths()).isdisjoint(journal.memos)
    assert not any(journal.has_failed(path) for path in journal.known_paths() - journal.memos.keys())


@given(records=histories(resumes=False))
def test_pruning_at_once_and_one_by_one_agree(records: list[Any]):
    """
    It does not matter when what lies within outcomes is dropped; nothing else ever is.
    """
    whole = journal_of([STARTED, *records])
    at_once = journal_of([STARTED, *records])
    at_once.prune()
    one_by_one = journal_of([STARTED])
    one_by_one.prune()
    for record in records:
        one_by_one.apply(record)
    assert one_by_one == at_once
    branches = [path for path, memo in whole.memos.items() if isinstance(memo, BranchCompleted | BranchFailed)]
    pruned = [
        f"{branch}/" for branch in branches if not any(path.startswith(f"{branch}/") for path in whole.compensations)
    ]
    left = {path for path in whole.children if path not in whole.memos}
    kept = {path for path in whole.known_paths() if path in left or not path.startswith(tuple(pruned))}
    assert at_once.known_paths() == kept
    assert at_once.memos == {path: memo for path, memo in whole.memos.items() if path in kept}
    assert at_once.compensations == whole.compensations
