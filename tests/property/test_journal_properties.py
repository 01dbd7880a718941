"""
What is true of every sequence of records: header and journal agree, and memos are what a plain model says.
"""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st

from memable._encoded import Encoded
from memable._journal import header_of, journal_of
from memable._records import (
    INSTANCE_RECORDS,
    AttemptFailed,
    InstanceBlocked,
    InstanceResumed,
    InstanceStarted,
    StepCompleted,
    StepFailed,
)
from strategies import RECORDS

STARTED = InstanceStarted(
    instance=1, seq=1, at=0.0, session=1, workflow="w", instance_id="i", input=Encoded("a", b"[]")
)
#: Few paths, so that records meet: siblings, parents and children, and a name that begins like another.
paths = st.sampled_from(["a", "b", "f", "f/1", "f/1/k", "f/10", "f/10/k", "f/2/k"])
_with_paths: dict[str, st.SearchStrategy[Any]] = {
    "path": paths,
    "cleared": st.lists(paths, max_size=3).map(tuple),
    "forgotten": st.lists(paths, max_size=3, unique=True).map(tuple),
}


@st.composite
def histories(draw: st.DrawFn) -> list[Any]:
    """
    Records that one instance may have, behind its start.

    Nothing but a resume follows an end, and no step is attempted again that has an outcome.
    """
    records: list[Any] = []
    known = journal_of([STARTED])
    for _ in range(draw(st.integers(0, 12))):
        has_ended = known.ending is not None
        classes = [InstanceResumed] if has_ended else [cls for cls in INSTANCE_RECORDS if cls is not InstanceStarted]
        record: Any = draw(RECORDS[draw(st.sampled_from(classes))])
        fields = attrs.fields_dict(type(record))
        changes = {name: draw(values) for name, values in _with_paths.items() if name in fields}
        record = attrs.evolve(record, instance=1, seq=known.seq + 1, **changes)
        if getattr(record, "path", None) in known.memos and not isinstance(record, InstanceBlocked):
            continue
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
            case StepCompleted() | StepFailed():
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
