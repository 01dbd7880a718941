"""
Folding records into headers, and refusing sequences that cannot be.
"""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from memable._error_info import ErrorInfo
from memable._header import FLAG_NAMES, MAX_HEADER_ERROR_CHARS, PROGRESS_KINDS, InstanceHeader, header_of
from memable._records import (
    INSTANCE_RECORDS,
    BranchStarted,
    CallCompleted,
    CancelRequested,
    ChildStarted,
    CompensationBegun,
    CompensationRegistered,
    InstanceBlocked,
    InstanceCancelled,
    InstanceCompleted,
    InstanceFailed,
    InstanceRecord,
    InstanceResumed,
    InstanceRetired,
    InstanceStarted,
    InstanceSuspended,
    IntentWithdrawn,
    RunStarted,
    SignalKept,
    SignalReceived,
    StepCompleted,
    StepFailed,
)
from memable._states import MetadataStatus
from sample_histories import ENDINGS, FACTS, STARTED, VALUE, history, record

#: What leaves a suspended instance suspended, and a running one running.
QUIET = (SignalKept, CancelRequested)
#: What puts an instance somewhere by itself.
DECISIVE = (RunStarted, InstanceResumed, InstanceBlocked, InstanceSuspended, InstanceRetired, *ENDINGS)
#: What begins or ends a wait, or shows that the run does something.
BUSY = tuple(cls for cls in FACTS if cls not in (*QUIET, *DECISIVE))
WITH_STATUS = tuple(cls for cls in FACTS if "status" in attrs.fields_dict(cls))


def header(*kinds: Any) -> InstanceHeader:
    """Fold a start and what follows: classes of records, or pairs of one and what it says."""
    started, *rest = history(*kinds)
    assert isinstance(started, InstanceStarted)
    folded = header_of(started)
    for one in rest:
        folded.apply(one)
    return folded


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
        *((cls, MetadataStatus.RUNNING) for cls in (RunStarted, InstanceResumed, *QUIET, *BUSY)),
        (InstanceSuspended, MetadataStatus.SUSPENDED),
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

    A request to cancel that was not carried out yet is not overtaken, unless the instance begins anew.
    """
    before: list[Any] = [(StepCompleted, {"status": "a"}), CancelRequested, (InstanceBlocked, {"needs_resume": True})]
    folded = header(*before, (InstanceResumed, {}))
    assert (folded.cancel_requested, folded.needs_resume, folded.message) == (True, False, "a")
    assert not header(*before, (InstanceResumed, {"anew": True})).cancel_requested
    assert not header(*before, InstanceCancelled, (InstanceResumed, {})).cancel_requested
    assert header(*before, (InstanceResumed, {"anew": True})).message is None
    assert header(InstanceFailed, InstanceResumed).completed_at is None


def test_header_counts_crashes_in_a_row():
    """
    Crashes are counted until there is a new record of the work, or somebody resumes the instance.
    """
    crash = (RunStarted, {"after_crash": True})
    assert header(crash, crash, RunStarted).recoveries == 2
    for cls in (*BUSY, *QUIET[:-1], InstanceSuspended, InstanceBlocked, *ENDINGS, InstanceResumed):
        assert header(crash, crash, cls).recoveries == 0
    assert header(crash, CancelRequested).recoveries == 1


@pytest.mark.parametrize("cls", ENDINGS)
@pytest.mark.parametrize("later", [cls for cls in FACTS if cls not in (InstanceResumed, InstanceRetired)])
def test_header_of_an_ended_instance_refuses_more(cls: type[InstanceRecord], later: type[InstanceRecord]):
    """
    Nothing follows the end of an instance but a resume or its removal; what is refused changes nothing.
    """
    folded = header(cls)
    with pytest.raises(ValueError, match=f"instance 7 has ended, but a {later.kind} record follows"):
        folded.apply(record(later, 3))
    assert folded == header(cls)
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


@pytest.mark.parametrize("cls", WITH_STATUS)
def test_header_remembers_the_last_status(cls: type[InstanceRecord]):
    """
    A header has the same status message as the journal.
    """
    assert header((cls, {"status": "a"})).message == "a"
    assert header((StepCompleted, {"status": "a", "path": "x"}), cls).message == "a"


def test_header_takes_every_kind_of_record():
    """
    No kind of record was forgotten.
    """
    assert set(InstanceHeader._FOLDS) == set(INSTANCE_RECORDS) == {InstanceStarted, *FACTS}


def test_header_of_a_suspended_instance_tells_what_it_waits_for():
    """
    While it is suspended, a header knows where, until when, and whether a child's end would wake it.
    """
    folded = header((InstanceSuspended, {"path": "f/1/wait", "wake_at": 500.0, "awaits_children": True}))
    assert (folded.key, folded.wake_at, folded.awaits_children) == ("f/1/wait", 500.0, True)


SUSPENDED = (InstanceSuspended, {"wake_at": 500.0, "awaits_children": True})


@pytest.mark.parametrize("cls", QUIET)
def test_header_stays_suspended_while_no_wait_ends(cls: type[InstanceRecord]):
    """
    What ends no wait leaves a suspended instance suspended.
    """
    folded = header(SUSPENDED, cls)
    assert folded.status is MetadataStatus.SUSPENDED
    assert (folded.key, folded.wake_at, folded.awaits_children) == ("wait", 500.0, True)


@pytest.mark.parametrize("cls", [*BUSY, RunStarted, InstanceResumed, InstanceBlocked, *ENDINGS])
def test_header_is_suspended_no_more_once_something_happens(cls: type[InstanceRecord]):
    """
    What ends a wait, or shows that a run does something, leaves nothing of the suspension.
    """
    folded = header(SUSPENDED, cls)
    assert folded.status is header(cls).status
    assert (folded.key, folded.wake_at, folded.awaits_children) == (None, None, False)


@pytest.mark.parametrize("cls", [*BUSY, *QUIET])
def test_header_of_a_blocked_instance_stays_so(cls: type[InstanceRecord]):
    """
    Signals and answers may reach a blocked instance; it is blocked until it runs.
    """
    folded = header((InstanceBlocked, {"path": "other"}), cls)
    assert (folded.status, folded.key, folded.error_message) == (MetadataStatus.BLOCKED, "other", "ValueError: no")


@pytest.mark.parametrize("cls", [StepCompleted, StepFailed, IntentWithdrawn])
def test_header_needs_no_resume_once_the_question_is_answered(cls: type[InstanceRecord]):
    """
    An answer at the path that it is blocked at lets an instance run at the next opening; one elsewhere does not.
    """
    blocked = (InstanceBlocked, {"path": "k", "needs_resume": True})
    assert header(blocked, cls).needs_resume is False
    assert header(blocked, (cls, {"path": "k/2"})).needs_resume is True
    assert header(blocked, SignalReceived).needs_resume is True


def test_header_of_a_blocked_instance_that_runs_needs_no_resume():
    """
    A blocked instance that runs all the same, to be cancelled, is not left alone at the next opening.
    """
    assert header((InstanceBlocked, {"needs_resume": True}), RunStarted).needs_resume is False


def test_header_knows_about_children_and_compensations():
    """
    A header tells whether there is anything to look for in the journal when the instance ends.
    """
    assert header(ChildStarted).has_children
    assert header((BranchStarted, {"workflow": "child"})).has_children
    assert not header(BranchStarted, CallCompleted).has_children
    folded = header(CompensationRegistered, CompensationBegun)
    assert (folded.has_compensations, folded.is_compensating) == (True, True)
    for changes, stands in (({}, True), ({"anew": True}, False)):
        folded = header(ChildStarted, CompensationRegistered, CompensationBegun, (InstanceResumed, changes))
        assert (folded.has_compensations, folded.is_compensating, folded.has_children) == (stands, stands, True)


def test_header_names_the_parent_of_an_attached_child():
    """
    A child that lives on its own has no parent that waits for it.
    """
    assert header().parent_name == ("p", "q")
    assert header_of(attrs.evolve(STARTED, parent="p/q/f/0/call")).parent_name == ("p", "q/f/0/call")
    assert header_of(attrs.evolve(STARTED, detached=True)).parent_name is None
    assert header_of(attrs.evolve(STARTED, parent=None)).parent_name is None


@pytest.mark.parametrize("cls", ENDINGS)
def test_header_of_an_ended_instance_may_be_retired(cls: type[InstanceRecord]):
    """
    Retirement follows an end.
    """
    assert header(cls, InstanceRetired).seq == 3


@pytest.mark.parametrize("before", [[], [InstanceBlocked], [InstanceSuspended], [InstanceFailed, InstanceResumed]])
def test_header_of_an_unfinished_instance_refuses_retirement(before: list[Any]):
    """
    Nothing that may go on is ever removed.
    """
    with pytest.raises(ValueError, match="instance 7 is retired, but has not ended"):
        header(*before, InstanceRetired)


@pytest.mark.parametrize("cls", INSTANCE_RECORDS)
def test_progress_of_a_running_instance_changes_only_number_and_time(cls: type[InstanceRecord]):
    """
    The kinds that recovery reads in passing, and only those, change no more in the header of one that simply runs.
    """
    if cls in {InstanceStarted, InstanceRetired}:
        assert cls.kind not in PROGRESS_KINDS
        return
    found = header((cls, {"status": None} if "status" in attrs.fields_dict(cls) else {}))
    passed = attrs.evolve(header(), seq=found.seq, updated_at=found.updated_at, recoveries=0)
    # A branch that is an instance of its own is a child.
    assert (found == passed) is (cls.kind in PROGRESS_KINDS or cls is BranchStarted)


@pytest.mark.parametrize("cls", [cls for cls in FACTS if cls.kind in PROGRESS_KINDS])
@pytest.mark.parametrize(
    "before",
    [
        [],
        [InstanceSuspended],
        [InstanceBlocked],
        [(InstanceBlocked, {"needs_resume": True})],
        [(RunStarted, {"after_crash": True})],
    ],
    ids=["running", "suspended", "blocked", "needs resume", "recovered"],
)
def test_progress_is_what_folding_makes_of_it(cls: type[InstanceRecord], before: list[Any]):
    """
    What is taken in as mere progress changes a header as folding it does, and is that of an instance that simply runs.
    """
    quick, folded = header(*before), header(*before, cls)
    newest = history(*before, cls)[-1]
    if quick.progress(newest):
        assert folded.status is MetadataStatus.RUNNING
        assert not quick.progress(newest)
    else:
        assert before
        quick.apply(newest)
    assert quick == folded


def test_each_flag_has_the_bit_that_checkpoints_say_it_has():
    """
    No two share a bit, none changes another, and they fit into a row of the table of ended instances. For ever.
    """
    names = [
        "detached",
        "awaits_children",
        "cancel_requested",
        "needs_resume",
        "has_children",
        "has_compensations",
        "is_compensating",
        "has_forgotten",
    ]
    assert list(FLAG_NAMES) == names
    for bit, name in enumerate(names):
        one = header()
        setattr(one, name, True)
        assert (one.flags, [other for other in names if getattr(one, other)]) == (1 << bit, [name])
        one.flags = 0b1111_1111
        setattr(one, name, False)
        assert [other for other in names if not getattr(one, other)] == [name]
