"""
Folding records into journals, and refusing sequences that cannot be.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest

from memable._journal import FanOutItems, Journal, journal_of
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
from sample_histories import ENDINGS, FACTS, STARTED, VALUE, history, record


def journal(*kinds: Any) -> Journal:
    """Fold a start and what follows: classes of records, or pairs of one and what it says."""
    return journal_of(history(*kinds))


def _failed(folded: Journal) -> set[str]:
    return {path for path in folded.memos if folded.has_failed(path)}


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


@pytest.mark.parametrize("cls", [InstanceBlocked, *ENDINGS])
def test_journal_of_a_resumed_instance_is_open_again(cls: type[InstanceRecord]):
    """
    A resume overtakes endings, the cancellations carried out by them, and blocks; memos stand.
    """
    before = () if cls is InstanceBlocked else (CancelRequested,)
    folded = journal(StepCompleted, *before, cls, InstanceResumed)
    assert (folded.ending, folded.blocked, folded.cancel_requested) == (None, None, None)
    assert set(folded.memos) == {"k"}
    assert folded.generation("k") == 0


def test_journal_keeps_a_request_to_cancel_that_was_not_carried_out():
    """
    A resume does not overtake a request to cancel an instance that has not ended, unless it begins anew.
    """
    assert journal(CancelRequested, InstanceResumed).cancel_requested == record(CancelRequested)
    assert journal(CancelRequested, InstanceBlocked, InstanceResumed).cancel_requested is not None
    assert journal(CancelRequested, (InstanceResumed, {"anew": True})).cancel_requested is None


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


def test_journal_takes_every_kind_of_record():
    """
    No kind of record was forgotten.
    """
    assert set(Journal._FOLDS) == set(INSTANCE_RECORDS) == {InstanceStarted, *FACTS}


def test_journal_of_a_retired_instance_is_refused():
    """
    A retired instance has no journal.
    """
    with pytest.raises(ValueError, match="instance 7 is retired, and has no journal"):
        journal(ENDINGS[0], InstanceRetired)


# Waits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [SignalReceived, SuspendTimedOut, SleepEnded])
def test_journal_keeps_a_wait_until_it_ends(end: type[Any]):
    """
    A wait is open until it has an outcome, and nothing of it is kept beside that then.
    """
    folded = journal(SignalKept, WaitStarted)
    assert (folded.waits, folded.is_waiting_at("wait"), folded.waiting_paths()) == (
        {"wait": record(WaitStarted, 3)},
        True,
        ["wait"],
    )
    folded = journal(SignalKept, WaitStarted, WaitAbandoned, end)
    assert folded.memos == {"wait": record(end, 5)}
    assert (folded.waits, folded.kept, folded.abandoned, folded.waiting_paths()) == ({}, {}, {}, [])
    assert not folded.is_waiting_at("wait")


def test_journal_knows_a_wait_that_the_body_has_left():
    """
    No signal reaches a wait that the body has turned away from, until it comes back.
    """
    folded = journal(WaitStarted, WaitAbandoned)
    assert (folded.is_waiting_at("wait"), folded.waiting_paths(), folded.knows("wait")) == (False, [], True)
    assert journal(WaitStarted, WaitAbandoned, WaitStarted).is_waiting_at("wait")
    folded = journal(AttemptFailed, (WaitAbandoned, {"path": "k"}))
    assert folded.waiting_paths() == []
    assert journal(AttemptFailed, (WaitAbandoned, {"path": "k"}), AttemptFailed).waiting_paths() == ["k"]
    assert journal(AttemptFailed, (WaitAbandoned, {"path": "k"}), StepCompleted).abandoned == {}
    # Whether attempts of other steps are recorded, or were dropped, makes no difference.
    assert journal((WaitAbandoned, {"path": "k"}), StepCompleted).abandoned == {}


def test_journal_does_not_wait_for_a_signal_in_a_sleep():
    """
    A sleep is a wait, but not for a signal.
    """
    folded = journal((WaitStarted, {"expects": None}))
    assert (folded.is_waiting_at("wait"), folded.waiting_paths()) == (False, ["wait"])


def test_journal_lists_waits_the_longest_first():
    """
    Waits, backoffs and children come in the order in which they began.
    """
    folded = journal(
        AttemptFailed,
        WaitStarted,
        (WaitStarted, {"path": "later"}),
        (AttemptFailed, {"path": "k2"}),
        AttemptFailed,
        ChildStarted,
        (ChildStarted, {"path": "loose", "detached": True}),
    )
    assert folded.waiting_paths() == ["wait", "later", "k2", "k", "call"]
    folded.apply(record(CallCompleted, 99))
    assert folded.waiting_paths() == ["wait", "later", "k2", "k"]


def test_journal_does_not_wait_within_what_is_decided():
    """
    When a fan-out has failed, nothing waits for what its other children waited for.
    """
    before: list[Any] = [
        (WaitStarted, {"path": "f/1/wait"}),
        (AttemptFailed, {"path": "f/2/k"}),
        (BranchStarted, {"path": "f/3", "workflow": "child"}),
    ]
    assert journal(*before).waiting_paths() == ["f/1/wait", "f/2/k", "f/3"]
    folded = journal(*before, FanOutFailed)
    assert (folded.waiting_paths(), folded.is_waiting_at("f/1/wait")) == ([], False)
    cleared = journal(*before, FanOutFailed, ENDINGS[1], (InstanceResumed, {"cleared": ("f",)}))
    assert cleared.waiting_paths() == ["f/1/wait", "f/2/k", "f/3"]


STILL_SUSPENDED = (SignalKept, CancelRequested)


@pytest.mark.parametrize("cls", [cls for cls in FACTS if cls is not InstanceRetired])
def test_journal_is_suspended_until_something_happens(cls: type[InstanceRecord]):
    """
    What ends a wait, or shows that a run does something, be it to wait elsewhere, ends a suspension; the rest does not.
    """
    suspended = (InstanceSuspended, {"path": "k"})
    folded = journal(suspended, cls)
    if cls is InstanceSuspended:
        assert folded.suspended == record(InstanceSuspended, 3)
    elif cls in STILL_SUSPENDED:
        assert folded.suspended == record(InstanceSuspended, 2, path="k")
    else:
        assert folded.suspended is None


# What else is open -------------------------------------------------------------------------------------------------


def test_journal_keeps_an_intent_until_its_outcome_is_known():
    """
    An effect that may have happened is open until it has an outcome, or somebody knows that it did not happen.
    """
    assert journal(IntentRecorded).intents == {"k": record(IntentRecorded)}
    for answer in (StepCompleted, StepFailed, IntentWithdrawn):
        assert journal(IntentRecorded, answer).intents == {}
    # A probe that fails is tried again; the question stays.
    assert set(journal(IntentRecorded, AttemptFailed).intents) == {"k"}


def test_journal_keeps_scopes_and_what_became_of_them():
    """
    A scope's deadline stays known after it was left.
    """
    folded = journal(ScopeStarted, (ScopeEnded, {"expired": True}))
    assert folded.scopes == {"scope": record(ScopeStarted)}
    assert folded.memos == {"scope": record(ScopeEnded, 3, expired=True)}
    assert _failed(folded) == {"scope"}
    assert _failed(journal(ScopeStarted, ScopeEnded)) == set()


def test_journal_keeps_children():
    """
    Children are known by their paths, attached ones apart from those that live on their own.
    """
    folded = journal(
        ChildStarted,
        (ChildStarted, {"path": "loose", "detached": True}),
        (BranchStarted, {"path": "f/0", "workflow": "child"}),
        (BranchStarted, {"path": "f/10"}),
    )
    assert folded.children == {"call": "child", "f/0": "child"}
    assert folded.detached == {"loose": "child"}
    assert folded.fan_outs == {"f": FanOutItems({"0": "d0", "10": "d0"}, {"0": 0, "10": 0})}
    assert (folded.children_below("f"), folded.children_below("call"), folded.children_below("f/1")) == (
        ["f/0"],
        ["call"],
        [],
    )


def test_journal_keeps_compensations_in_the_order_of_their_registration():
    """
    Compensations run in reverse order of registration, over the whole instance.
    """
    folded = journal(
        (CompensationRegistered, {"path": "z"}), (CompensationRegistered, {"path": "f/0/a"}), CompensationBegun
    )
    assert folded.compensations == {"z": 2, "f/0/a": 3}
    assert folded.compensating == record(CompensationBegun, 4)
    again = journal(CompensationRegistered, CompensationBegun, ENDINGS[1], (InstanceResumed, {"anew": True}))
    assert (again.compensations, again.compensating) == ({}, None)


def test_journal_knows_failures_that_are_raised():
    """
    The failures that a resume may clear are those that a replay raises.
    """
    kinds: list[Any] = [StepFailed, SuspendTimedOut, (ScopeEnded, {"expired": True}), BranchFailed, CallFailed]
    assert _failed(journal(*kinds)) == {"k", "wait", "scope", "f/0", "call"}
    assert _failed(journal(FanOutFailed)) == {"f"}
    assert _failed(journal(StepCompleted, SignalReceived, ScopeEnded, BranchCompleted, CallCompleted)) == set()


@pytest.mark.parametrize(
    ("before", "path", "kind"),
    [
        ([], "k", None),
        ([StepCompleted], "k", "a step"),
        ([StepFailed], "k", "a step"),
        ([AttemptFailed], "k", "a step"),
        ([IntentRecorded], "k", "a step"),
        ([WaitStarted], "wait", "a suspend point"),
        ([SignalKept], "wait", "a suspend point"),
        ([SignalReceived], "wait", "a suspend point"),
        ([SuspendTimedOut], "wait", "a suspend point"),
        ([(WaitStarted, {"expects": None})], "wait", "a sleep"),
        ([SleepEnded], "wait", "a sleep"),
        ([ScopeStarted], "scope", "a cancel scope"),
        ([ScopeStarted, ScopeEnded], "scope", "a cancel scope"),
        ([BranchStarted], "f", "a fan-out"),
        ([BranchStarted], "f/0", "a child of a fan-out"),
        ([(BranchStarted, {"workflow": "child"})], "f/0", "a child of a fan-out"),
        ([BranchStarted], "f/1", None),
        ([BranchCompleted], "f/0", "a child of a fan-out"),
        ([BranchFailed], "f/0", "a child of a fan-out"),
        ([FanOutFailed], "f", "a fan-out"),
        ([ChildStarted], "call", "a call"),
        ([ChildStarted, CallCompleted], "call", "a call"),
        ([CallFailed], "call", "a call"),
        ([(ChildStarted, {"detached": True})], "call", "a start"),
        ([CompensationRegistered], "undo", "a compensation"),
        ([CompensationRegistered, (StepCompleted, {"path": "undo"})], "undo", "a compensation"),
    ],
)
def test_journal_tells_what_a_path_is(before: list[Any], path: str, kind: str | None):
    """
    A path is recorded as one kind of thing, from the first record of it on.
    """
    assert journal(*before).kind_of(path) == kind


# Replaying ---------------------------------------------------------------------------------------------------------


def test_journal_expects_a_run_to_get_as_far_as_the_one_before():
    """
    A run is behind an earlier one while it has not asked for all that it got to and that no other outcome contains.
    """
    folded = journal(
        StepCompleted,
        (AttemptFailed, {"path": "a"}),
        WaitStarted,
        (StepCompleted, {"path": "f/0/x"}),
        (StepCompleted, {"path": "f/1/x"}),
        BranchCompleted,
    )
    assert folded.asked_paths() == {"k", "a", "wait", "f/0", "f/1/x"}
    folded.apply(record(FanOutFailed, 99))
    assert folded.asked_paths() == {"k", "a", "wait", "f"}


# Forgetting --------------------------------------------------------------------------------------------------------


def everything_at(path: str) -> list[Any]:
    """A record of each kind that leaves something at a path, or below it."""
    return [
        (WaitStarted, {"path": f"{path}/w"}),
        (WaitStarted, {"path": f"{path}/a"}),
        (WaitAbandoned, {"path": f"{path}/a"}),
        (SignalKept, {"path": f"{path}/kept"}),
        (SignalReceived, {"path": f"{path}/s"}),
        (AttemptFailed, {"path": f"{path}/k"}),
        (StepCompleted, {"path": f"{path}/c"}),
        (ScopeStarted, {"path": f"{path}/scope"}),
        (IntentRecorded, {"path": f"{path}/i"}),
        (ChildStarted, {"path": f"{path}/call"}),
        (ChildStarted, {"path": f"{path}/loose", "detached": True}),
        (BranchStarted, {"path": f"{path}/inner/0", "digest": "x"}),
        (StepCompleted, {"path": f"{path}/inner/0/c"}),
    ]


EVERYWHERE = [
    "f/0/w", "f/0/a", "f/0/kept", "f/0/s", "f/0/k", "f/0/c", "f/0/scope", "f/0/i", "f/0/call", "f/0/loose",
    "f/0/inner", "f/0/inner/0", "f/0/inner/0/c",
]  # fmt: skip


@pytest.mark.parametrize("forgotten", ["f", "f/0"])
def test_journal_forgets_everything_of_a_child(forgotten: str):
    """
    Of a forgotten child, or of a forgotten fan-out, nothing stands: neither what it did nor which item it had.
    """
    folded = journal(
        BranchStarted,
        *everything_at("f/0"),
        (CompensationRegistered, {"path": "f/0/undo"}),
        (BranchCompleted, {"path": "f/10", "digest": "d10", "index": 10}),
        (InstanceResumed, {"forgotten": (forgotten,)}),
    )
    assert folded.known_paths() == (set() if forgotten == "f" else {"f", "f/10"})
    assert folded.compensations == {}


def test_journal_forgets_within_a_child_but_not_the_child():
    """
    Forgetting something within a child drops the outcomes that contain it, not which item the child has.
    """
    folded = journal(
        *everything_at("f/0"),
        (BranchFailed, {"digest": "d0"}),
        FanOutFailed,
        (StepCompleted, {"path": "f/1/c"}),
        (InstanceResumed, {"forgotten": ("f/0/inner/0",)}),
    )
    kept = set(EVERYWHERE) - {"f/0/inner/0", "f/0/inner/0/c"}
    assert folded.known_paths() == {"f", "f/0", "f/1/c", *kept}
    assert {"f", "f/0"}.isdisjoint(folded.memos)
    assert folded.fan_outs["f"] == FanOutItems({"0": "d0"}, {"0": 0})
    assert folded.fan_outs["f/0/inner"] == FanOutItems()
    # What comes below again is found again.
    folded.apply(record(StepCompleted, 98, path="f/0/inner/0/c"))
    folded.apply(record(InstanceResumed, 99, forgotten=("f",)))
    assert folded.known_paths() == set()


def test_journal_clears_a_failure_but_not_what_was_done_within_it():
    """
    A cleared fan-out keeps what its children did; a cleared call, its child.
    """
    folded = journal(
        BranchStarted,
        (StepCompleted, {"path": "f/0/c"}),
        FanOutFailed,
        ChildStarted,
        CallFailed,
        ScopeStarted,
        (ScopeEnded, {"expired": True}),
        WaitStarted,
        WaitAbandoned,
        (InstanceResumed, {"cleared": ("f", "call", "scope", "wait")}),
    )
    assert folded.known_paths() == {"f", "f/0", "f/0/c", "call"}
    assert set(folded.memos) == {"f/0/c"}
    assert folded.abandoned == {}


# Pruning -----------------------------------------------------------------------------------------------------------


def test_journal_prunes_what_lies_within_outcomes():
    """
    Within a branch that has an outcome nothing is kept, at once or from then on; the outcome and the item are.
    """
    records = history(BranchStarted, *everything_at("f/0"), BranchCompleted, (StepCompleted, {"path": "f/1/c"}))
    at_once = journal_of(records)
    at_once.prune()
    one_by_one = journal_of(records[:1])
    one_by_one.prune()
    for one in records[1:]:
        one_by_one.apply(one)
    for folded in (at_once, one_by_one):
        assert folded.known_paths() == {"f", "f/0", "f/0/call", "f/1/c"}
        assert set(folded.memos) == {"f/0", "f/1/c"}
        # The child has not ended: it has to be, if the instance fails, but nothing waits for it.
        assert (folded.children, folded.waiting_paths()) == ({"f/0/call": "child"}, [])
        assert folded.fan_outs == {"f": FanOutItems({"0": "d0"}, {"0": 0})}


def test_journal_prunes_branches_within_branches():
    """
    What is left of an inner fan-out goes with the branch that contains it.
    """
    folded = journal()
    folded.prune()
    seq = itertools.count(2)
    for inner in range(3):
        path = f"f/0/inner/{inner}"
        folded.apply(record(StepCompleted, next(seq), path=f"{path}/c"))
        folded.apply(record(BranchCompleted, next(seq), path=path, digest="x", index=inner))
    assert set(folded.memos) == {"f/0/inner/0", "f/0/inner/1", "f/0/inner/2"}
    folded.apply(record(BranchCompleted, next(seq), digest="d0"))
    assert folded.known_paths() == {"f", "f/0"}


def test_journal_does_not_prune_where_a_compensation_is_registered():
    """
    A branch that is run again to register its compensations finds what it has recorded.
    """
    folded = journal(
        (StepCompleted, {"path": "f/0/c"}),
        (CompensationRegistered, {"path": "f/0/inner/1/undo"}),
        (BranchCompleted, {"path": "f/0/inner/1"}),
        (StepCompleted, {"path": "f/0/inner/2/c"}),
        (BranchCompleted, {"path": "f/0/inner/2"}),
        BranchCompleted,
        (StepCompleted, {"path": "f/1/c"}),
        (BranchCompleted, {"path": "f/1"}),
    )
    folded.prune()
    assert set(folded.memos) == {"f/0", "f/0/c", "f/0/inner/1", "f/0/inner/2", "f/1"}
    assert set(folded.compensations) == {"f/0/inner/1/undo"}


def test_journal_drops_what_a_fan_out_has_served():
    """
    Once the body has its results, nothing of a fan-out's children is kept, workflows of their own included.
    """
    branches: list[Any] = [
        *everything_at("f/0"),
        (BranchCompleted, {"digest": "d0"}),
        (BranchStarted, {"path": "f/1", "workflow": "child"}),
        (BranchCompleted, {"path": "f/1", "index": 1}),
        (BranchStarted, {"path": "f/2", "workflow": "child"}),
    ]
    folded = journal(StepCompleted, *branches)
    folded.drop_served("f")
    folded.drop_served("never")
    # Children that have not ended end with the instance, though nothing waits for them.
    assert folded.children == {"f/0/call": "child", "f/2": "child"}
    assert folded.known_paths() == {"k", "f", "f/0/call", "f/2"}
    assert (folded.fan_outs, folded.waiting_paths()) == ({"f": FanOutItems()}, [])
    # A compensation may need any of them.
    folded = journal(CompensationRegistered, *branches)
    folded.drop_served("f")
    assert {"f/0", "f/1"} <= folded.known_paths()


def test_journal_drops_single_children_and_brings_them_back():
    """
    Children whose outcomes the body has got are dropped one by one, and come back from the whole journal if asked for.
    """
    records: list[Any] = [
        *everything_at("f/0"),
        (BranchCompleted, {"digest": "d0"}),
        (BranchStarted, {"path": "f/1", "workflow": "child"}),
        (BranchCompleted, {"path": "f/1", "index": 1}),
        (CompensationRegistered, {"path": "f/2/undo"}),
        (BranchCompleted, {"path": "f/2", "index": 2, "digest": "d2"}),
    ]
    folded, whole = journal(*records), journal(*records)
    for child in ("f/0", "f/1", "f/2"):
        folded.drop_child("f", child)
    # One child has not ended and ends with the instance; one may be needed to undo something.
    assert folded.known_paths() == {"f", "f/0/call", "f/2", "f/2/undo"}
    assert folded.fan_outs["f"].digests == {"2": "d2"}
    assert folded.thinned == {"f": None}
    folded.restore_children("f", whole)
    assert {path: folded.memos.get(path) for path in ("f/0", "f/1", "f/2")} == {
        path: whole.memos[path] for path in ("f/0", "f/1", "f/2")
    }
    assert folded.fan_outs["f"] == whole.fan_outs["f"]
    assert folded.thinned == {}


def test_journal_tells_what_is_decided():
    """
    What has an outcome is decided, and so is all that it contains.
    """
    folded = journal((BranchCompleted, {"digest": "d0"}), StepCompleted)
    assert [path for path in ("f", "f/0", "f/0/s", "f/1", "k", "k2") if folded.is_decided(path)] == [
        "f/0",
        "f/0/s",
        "k",
    ]


@pytest.mark.parametrize("count", [30_000])
def test_journal_of_a_large_fan_out_folds_in_linear_time(count: int):
    """
    Children in plenty, with and without compensations, cost no more each than few do.
    """

    def fold(children: int, *, compensate: bool) -> float:
        folded = journal()
        folded.prune()
        seq = itertools.count(2)
        began = time.perf_counter()
        for index in range(children):
            folded.apply(record(StepCompleted, next(seq), path=f"f/{index}/c"))
            if compensate:
                folded.apply(record(CompensationRegistered, next(seq), path=f"f/{index}/undo"))
            folded.apply(record(BranchCompleted, next(seq), path=f"f/{index}", digest="d", index=index))
        folded.prune()
        return time.perf_counter() - began

    for compensate in (False, True):
        few = min(fold(count // 10, compensate=compensate) for _ in range(3))
        assert fold(count, compensate=compensate) < 10 * few * 5


@pytest.mark.parametrize("cls", [cls for cls in FACTS if hasattr(cls, "status")])
def test_journal_takes_the_status_of_every_record_that_has_one(cls: type[InstanceRecord]):
    """
    Whatever a record tells beside it, its status message counts.
    """
    assert journal((cls, {"status": "a"})).message == "a"


def test_journal_of_a_blocked_instance_knows_until_it_goes_on():
    """
    What blocked an instance is known until it runs, suspends or ends.
    """
    for cls in (RunStarted, InstanceResumed, InstanceSuspended, *ENDINGS):
        assert journal(InstanceBlocked, cls).blocked is None
    assert journal(InstanceBlocked, SignalReceived).blocked == record(InstanceBlocked)
