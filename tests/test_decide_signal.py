"""
What becomes of a signal, by what the journal says.
"""

from __future__ import annotations

from typing import Any

import pytest

from memable._decide_signal import Deliver, Keep, Mismatch, Reject, Supersede, decide_signal
from memable._encoded import Encoded
from memable._error_info import ErrorInfo
from memable._journal import Journal, journal_of
from memable._records import (
    BranchCompleted,
    BranchStarted,
    CancelRequested,
    CompensationBegun,
    InstanceCompleted,
    InstanceRecord,
    InstanceStarted,
    SignalKept,
    SignalReceived,
    SleepEnded,
    StepCompleted,
    SuspendTimedOut,
    WaitAbandoned,
    WaitStarted,
)

VALUE = Encoded("int", 7)
ERROR = ErrorInfo(type="builtins.ValueError", message="bad")


def journal(*facts: tuple[type[InstanceRecord], dict[str, Any]]) -> Journal:
    """Return the journal with these records behind the start."""
    records: list[InstanceRecord] = [
        InstanceStarted(instance=1, seq=1, at=0.0, session=1, workflow="w", instance_id="i", input=Encoded("args", []))
    ]
    records.extend(cls(instance=1, seq=seq, at=0.0, **fields) for seq, (cls, fields) in enumerate(facts, start=2))
    return journal_of(records)


WAITING = (WaitStarted, {"path": "p", "expects": "int"})
CHILD = (BranchStarted, {"path": "f/0", "digest": "d", "index": 0})
CHILD_WAITING = (WaitStarted, {"path": "f/0/p", "expects": "int"})
CHILD_DONE = (BranchCompleted, {"path": "f/0", "index": 0, "value": VALUE, "started_at": 0.0})
STEP = (StepCompleted, {"path": "p", "value": VALUE, "started_at": 0.0})


def decide(known: Journal, path: str = "p", *, type_name: str = "int", **options: Any) -> object:
    """Return the decision, without the reason of a rejection."""
    given = {"deciding": (), "within": None, "keeps": False} | options
    decision = decide_signal(known, path, type_name, **given)
    return Reject if isinstance(decision, Reject) else decision


@pytest.mark.parametrize("keeps", [False, True])
def test_signal_to_where_the_body_waits_is_delivered(keeps: bool):
    """
    A point that the body was last seen waiting at gets the signal.
    """
    assert decide(journal(WAITING), keeps=keeps) == Deliver()
    assert decide(journal(CHILD, CHILD_WAITING), "f/0/p", within="f/0", keeps=keeps) == Deliver()


def test_signal_of_another_type_is_a_mismatch():
    """
    A wait for another type tells which, and takes nothing.
    """
    assert decide(journal(WAITING), type_name="str") == Mismatch("int")


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("outcome", [(SignalReceived, {"path": "p", "value": VALUE}), (SuspendTimedOut, {"path": "p"})])
def test_signal_to_a_point_with_an_outcome_is_superseded(outcome: Any, keeps: bool, ended: bool):
    """
    What is decided stays decided, whatever the state of the instance.
    """
    end = [(InstanceCompleted, {"value": VALUE})] if ended else []
    assert decide(journal(WAITING, outcome, *end), keeps=keeps) == Supersede()


@pytest.mark.parametrize("keeps", [False, True])
def test_signal_to_a_point_that_is_being_decided_is_superseded(keeps: bool):
    """
    An outcome on its way to the store counts.
    """
    assert decide(journal(WAITING), deciding={"p"}, keeps=keeps) == Supersede()


@pytest.mark.parametrize("keeps", [False, True])
def test_second_kept_signal_is_superseded(keeps: bool):
    """
    One signal is kept for a point, not more.
    """
    kept = journal((SignalKept, {"path": "p", "value": VALUE}))
    assert decide(kept, keeps=keeps) == Supersede()


@pytest.mark.parametrize("within_known", [False, True])
def test_signal_that_comes_early_is_kept_only_if_asked_for(within_known: bool):
    """
    A point that nobody has reached rejects a signal, unless its sender wants it kept.
    """
    known, path, within = (journal(CHILD), "f/0/p", "f/0") if within_known else (journal(), "p", None)
    assert decide(known, path, within=within) is Reject
    assert decide(known, path, within=within, keeps=True) == Keep()


def test_signal_to_a_wait_that_was_abandoned_comes_early():
    """
    A body that turned away does not wait; it may come back.
    """
    abandoned = journal(WAITING, (WaitAbandoned, {"path": "p"}))
    assert decide(abandoned) is Reject
    assert decide(abandoned, keeps=True) == Keep()


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("path", ["f/0/p", "f/0/q", "f/0/g/1/p"])
def test_signal_within_what_is_done_is_superseded(path: str, keeps: bool):
    """
    Nobody waits any more inside a child that has an outcome.
    """
    within = path.rpartition("/")[0]
    assert decide(journal(CHILD, CHILD_WAITING, CHILD_DONE), path, within=within, keeps=keeps) == Supersede()


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize(
    ("facts", "path", "within"),
    [
        ([STEP], "p", None),
        ([(WaitStarted, {"path": "p"})], "p", None),
        ([(WaitStarted, {"path": "p"}), (SleepEnded, {"path": "p"})], "p", None),
        ([], "f/0/p", "f/0"),
        ([CHILD], "f/1/p", "f/1"),
        ([CHILD], "f/p", "f"),
        ([CHILD, CHILD_WAITING], "f/0/p/q", "f/0/p"),
        ([(BranchStarted, {"path": "f/0", "digest": "d", "index": 0, "workflow": "c"})], "f/0/p", "f/0"),
        ([(InstanceCompleted, {"value": VALUE})], "p", None),
        ([WAITING, (InstanceCompleted, {"value": VALUE})], "p", None),
        ([WAITING, (CancelRequested, {"reason": None})], "p", None),
        ([(CompensationBegun, {"error": ERROR})], "p", None),
    ],
)
def test_signal_to_what_will_never_wait_is_rejected(facts: list[Any], path: str, within: str | None, keeps: bool):
    """
    Other kinds of keys, unknown children, ended and cancelled instances take nothing and keep nothing.
    """
    assert decide(journal(*facts), path, within=within, keeps=keeps) is Reject


@pytest.mark.parametrize("keeps", [False, True])
def test_signal_behind_a_request_to_cancel_is_rejected(keeps: bool):
    """
    A request to cancel that is on its way to the store counts.
    """
    assert decide(journal(WAITING), keeps=keeps, is_cancelled=True) is Reject
