"""
Folding records into headers and journals, and refusing sequences that cannot be.
"""

from __future__ import annotations

from typing import Any

import pytest

from memable._encoded import Encoded
from memable._error_info import ErrorInfo
from memable._journal import (
    MAX_HEADER_ERROR_CHARS,
    InstanceHeader,
    Journal,
    header_of,
    journal_of,
)
from memable._records import (
    AttemptFailed,
    CancelRequested,
    InstanceBlocked,
    InstanceCancelled,
    InstanceCompleted,
    InstanceFailed,
    InstanceRecord,
    InstanceResumed,
    InstanceStarted,
    RunStarted,
    StepCompleted,
    StepFailed,
)
from memable._states import MetadataStatus

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
}
ENDINGS = (InstanceCompleted, InstanceFailed, InstanceCancelled)


def record(cls: type[Any], seq: int = 2, **changes: Any) -> Any:
    return cls(**{"instance": 7, "seq": seq, "at": 100.0 + seq, **FACTS[cls], **changes})


def journal(*kinds: Any) -> Journal:
    """Fold a start and what follows: classes of records, or pairs of one and what it says."""
    records: list[InstanceRecord] = [STARTED]
    for seq, kind in enumerate(kinds, 2):
        cls, changes = kind if isinstance(kind, tuple) else (kind, {})
        records.append(record(cls, seq, **changes))
    return journal_of(records)


def header(*kinds: Any) -> InstanceHeader:
    """Fold the same into a header."""
    folded = header_of(STARTED)
    for seq, kind in enumerate(kinds, 2):
        cls, changes = kind if isinstance(kind, tuple) else (kind, {})
        folded.apply(record(cls, seq, **changes))
    return folded


# Journals --------------------------------------------------------------------------------------------------------


def test_journal_begins_with_a_start():
    """
    A journal begins with the start of its instance, and knows nothing else then.
    """
    folded = journal_of([STARTED])
    assert folded == Journal(started=STARTED, seq=1)
    assert not folded.knows("k")


@pytest.mark.parametrize("records", [[], [record(RunStarted)]])
def test_journal_without_a_start_is_refused(records: list[InstanceRecord]):
    """
    Records that do not begin with a start are no journal.
    """
    with pytest.raises(ValueError, match=r"a journal begins with .*, not with the start of an instance"):
        journal_of(records)


def test_journal_with_two_starts_is_refused():
    """
    An instance starts once.
    """
    again = InstanceStarted(instance=7, seq=2, at=101.0, session=3, workflow="w", instance_id="i", input=VALUE)
    with pytest.raises(ValueError, match="instance 7 starts a second time"):
        journal_of([STARTED, again])


def test_journal_of_two_instances_is_refused():
    """
    A journal holds the records of one instance.
    """
    with pytest.raises(ValueError, match="a record of instance 8 in the journal of 7"):
        journal_of([STARTED, record(StepCompleted, instance=8)])


@pytest.mark.parametrize("seq", [0, 1, 2])
def test_journal_with_records_out_of_order_is_refused(seq: int):
    """
    Sequence numbers only grow: anything else has a second writer.
    """
    with pytest.raises(ValueError, match=f"record {seq} of instance 7 follows record 2"):
        journal_of([STARTED, record(StepCompleted, 2), record(StepFailed, seq, path="other")])


def test_journal_keeps_outcomes_by_path():
    """
    Outcomes are found by their paths, values and failures alike.
    """
    folded = journal(StepCompleted, (StepFailed, {"path": "f/1/k"}))
    assert folded.memos == {"k": record(StepCompleted, 2), "f/1/k": record(StepFailed, 3, path="f/1/k")}
    assert folded.seq == 3


@pytest.mark.parametrize("outcome", [StepCompleted, StepFailed])
def test_journal_keeps_the_newest_attempt_until_there_is_an_outcome(outcome: type[InstanceRecord]):
    """
    Of failed attempts the newest counts, and none once the step has an outcome.
    """
    failed: list[Any] = [(AttemptFailed, {"attempt": 1}), (AttemptFailed, {"attempt": 2})]
    assert journal(*failed).attempts["k"].attempt == 2
    assert journal(*failed).memos == {}
    assert journal(*failed, outcome).attempts == {}


@pytest.mark.parametrize("path", ["k", "f", "f/1"])
def test_journal_knows_paths_with_records_at_or_below_them(path: str):
    """
    A path is known if something is recorded there or below, an attempt included.
    """
    folded = journal((StepCompleted, {"path": "f/1/a"}), AttemptFailed)
    assert folded.knows(path)
    assert not folded.knows("f/2")
    assert not folded.knows("f/1/a/b")
    assert not folded.knows("f/1/")


@pytest.mark.parametrize("cls", [StepCompleted, AttemptFailed, StepFailed, InstanceBlocked, *ENDINGS])
def test_journal_remembers_the_last_status(cls: type[InstanceRecord]):
    """
    The newest status message counts; a record without one leaves it.
    """
    assert journal((cls, {"status": "a"})).message == "a"
    assert journal((StepCompleted, {"status": "a", "path": "x"}), (cls, {"status": "b"})).message == "b"
    assert journal((StepCompleted, {"status": "a", "path": "x"}), cls).message == "a"


def test_journal_remembers_what_is_open():
    """
    A request to cancel, what blocks the instance and how it ended are known until they are overtaken.
    """
    assert journal(CancelRequested).cancel_requested == record(CancelRequested)
    assert journal(InstanceBlocked).blocked == record(InstanceBlocked)
    assert journal(InstanceBlocked, RunStarted).blocked is None
    assert journal(CancelRequested, RunStarted).cancel_requested == record(CancelRequested)
    assert [journal(cls).ending for cls in ENDINGS] == [record(cls) for cls in ENDINGS]


@pytest.mark.parametrize("cls", [InstanceBlocked, CancelRequested, *ENDINGS])
def test_journal_of_a_resumed_instance_is_open_again(cls: type[InstanceRecord]):
    """
    A resume overtakes endings, blocks and requests to cancel; memos stand.
    """
    folded = journal(StepCompleted, cls, InstanceResumed)
    assert (folded.ending, folded.blocked, folded.cancel_requested) == (None, None, None)
    assert set(folded.memos) == {"k"}
    assert folded.generation("k") == 0


def test_journal_clears_failures_within_their_generation():
    """
    A cleared path has neither outcome nor attempts, and the generation stays.
    """
    folded = journal(
        StepFailed,
        (AttemptFailed, {"path": "a"}),
        (StepCompleted, {"path": "c"}),
        (InstanceResumed, {"cleared": ("k", "a", "unknown")}),
    )
    assert (set(folded.memos), folded.attempts, folded.generation("k")) == ({"c"}, {}, 0)


def test_journal_forgets_a_path_with_what_is_below_and_what_contains_it():
    """
    A forgotten path goes with everything below it and every outcome that contains it; siblings stay.
    """
    paths = ["f", "f/1", "f/1/a", "f/1/b", "f/10/a", "f/2/a", "g"]
    completed: list[Any] = [(StepCompleted, {"path": path}) for path in paths]
    attempt = (AttemptFailed, {"path": "f/1/c"})
    folded = journal(*completed, attempt, (InstanceResumed, {"forgotten": ("f/1",)}))
    assert set(folded.memos) == {"f/10/a", "f/2/a", "g"}
    assert folded.attempts == {}
    folded = journal(*completed, attempt, (InstanceResumed, {"forgotten": ("f/1/a",)}))
    assert set(folded.memos) == {"f/1/b", "f/10/a", "f/2/a", "g"}
    assert set(folded.attempts) == {"f/1/c"}


def test_journal_counts_generations_of_paths():
    """
    Forgetting a path begins a new generation of it and of all below; beginning anew, of everything.
    """
    folded = journal(
        (InstanceResumed, {"forgotten": ("f",)}),
        (InstanceResumed, {"forgotten": ("f/1", "f")}),
    )
    assert [folded.generation(path) for path in ("f", "f/1", "f/1/a", "f/2", "g", "ff")] == [2, 3, 3, 2, 0, 0]
    folded.apply(record(InstanceResumed, 4, anew=True))
    assert [folded.generation(path) for path in ("f", "f/1", "g")] == [3, 4, 1]


def test_journal_begun_anew_has_no_memos():
    """
    An instance begun anew has no outcomes, attempts or status.
    """
    folded = journal(
        (StepCompleted, {"status": "a"}), (AttemptFailed, {"path": "a"}), (InstanceResumed, {"anew": True})
    )
    assert (folded.memos, folded.attempts, folded.message, folded.base_generation) == ({}, {}, None, 1)
    assert folded.generation("k") == 1


# Headers ---------------------------------------------------------------------------------------------------------


def test_header_of_a_start():
    """
    A header knows from the start who the instance is.
    """
    assert header_of(STARTED) == InstanceHeader(
        number=7,
        workflow="w",
        instance_id="i",
        created_at=100.0,
        updated_at=100.0,
        session=3,
        parent="p/q",
        status=MetadataStatus.RUNNING,
    )


@pytest.mark.parametrize(
    ("cls", "status"),
    [
        (RunStarted, MetadataStatus.RUNNING),
        (InstanceResumed, MetadataStatus.RUNNING),
        (StepCompleted, MetadataStatus.RUNNING),
        (AttemptFailed, MetadataStatus.RUNNING),
        (StepFailed, MetadataStatus.RUNNING),
        (CancelRequested, MetadataStatus.RUNNING),
        (InstanceBlocked, MetadataStatus.BLOCKED),
        (InstanceCompleted, MetadataStatus.COMPLETED),
        (InstanceFailed, MetadataStatus.FAILED),
        (InstanceCancelled, MetadataStatus.CANCELLED),
    ],
)
def test_header_status_follows_each_record(cls: type[InstanceRecord], status: MetadataStatus):
    """
    Each kind of record puts the instance where it says; the header tells when.
    """
    folded = header(cls)
    assert (folded.status, folded.updated_at, folded.seq) == (status, 102.0, 2)
    assert folded.completed_at == (102.0 if status.is_terminal else None)
    assert folded.session == (4 if cls in (RunStarted, InstanceResumed) else 3)
    assert folded.cancel_requested is (cls is CancelRequested)


def test_header_tells_what_it_failed_with():
    """
    A header has the error in short, and the path that it is blocked at.
    """
    assert header(InstanceFailed).error_message == "ValueError: no"
    assert header((InstanceCancelled, {"reason": "by hand"})).error_message == "by hand"
    blocked = header((InstanceBlocked, {"path": "k", "needs_resume": True}))
    assert (blocked.error_message, blocked.key, blocked.needs_resume) == ("ValueError: no", "k", True)
    long = ErrorInfo("builtins.ValueError", "x" * 10_000)
    assert header((InstanceBlocked, {"error": long})).error_message == str(long)[:MAX_HEADER_ERROR_CHARS] + " [...]"
    assert header(InstanceCompleted).error_message is None


@pytest.mark.parametrize("cls", [RunStarted, InstanceResumed])
def test_header_of_a_new_run_is_running(cls: type[InstanceRecord]):
    """
    What blocked the instance is gone once it runs again.
    """
    folded = header((InstanceBlocked, {"path": "k"}), cls)
    assert (folded.status, folded.key, folded.error_message) == (MetadataStatus.RUNNING, None, None)


def test_header_of_a_resumed_instance_is_open_again():
    """
    A resume overtakes everything that had ended or held up the instance; beginning anew, its status message, too.
    """
    before: list[Any] = [(StepCompleted, {"status": "a"}), CancelRequested, (InstanceBlocked, {"needs_resume": True})]
    folded = header(*before, (InstanceResumed, {}))
    assert (folded.cancel_requested, folded.needs_resume, folded.message) == (False, False, "a")
    assert header(*before, (InstanceResumed, {"anew": True})).message is None
    assert header(InstanceFailed, InstanceResumed).completed_at is None


def test_header_counts_crashes_in_a_row():
    """
    Crashes are counted until there is a new record of the work, or somebody resumes the instance.
    """
    crash = (RunStarted, {"after_crash": True})
    assert header(crash, crash, RunStarted).recoveries == 2
    for cls in (StepCompleted, AttemptFailed, StepFailed, *ENDINGS, InstanceResumed):
        assert header(crash, crash, cls).recoveries == 0
    assert header(crash, CancelRequested).recoveries == 1


@pytest.mark.parametrize("cls", ENDINGS)
@pytest.mark.parametrize("later", [cls for cls in FACTS if cls is not InstanceResumed])
def test_header_of_an_ended_instance_refuses_more(cls: type[InstanceRecord], later: type[InstanceRecord]):
    """
    Nothing follows the end of an instance but a resume.
    """
    folded = header(cls)
    with pytest.raises(ValueError, match=f"instance 7 has ended, but a {later.kind} record follows"):
        folded.apply(record(later, 3))
    folded.apply(record(InstanceResumed, 3))


def test_header_refuses_records_out_of_order():
    """
    Sequence numbers only grow, and an instance starts once.
    """
    with pytest.raises(ValueError, match="record 2 of instance 7 follows record 2"):
        header(RunStarted).apply(record(StepCompleted, 2))
    again = InstanceStarted(instance=7, seq=2, at=101.0, session=3, workflow="w", instance_id="i", input=VALUE)
    with pytest.raises(ValueError, match="instance 7 starts a second time"):
        header_of(STARTED).apply(again)


@pytest.mark.parametrize("cls", [StepCompleted, AttemptFailed, StepFailed, InstanceBlocked, *ENDINGS])
def test_header_remembers_the_last_status(cls: type[InstanceRecord]):
    """
    A header has the same status message as the journal.
    """
    assert header((cls, {"status": "a"})).message == "a"
    assert header((StepCompleted, {"status": "a", "path": "x"}), cls).message == "a"
