"""
The records that one run makes.
"""

from __future__ import annotations

from typing import Any, cast

import pytest

from memable._journal import Journal
from memable._ledger import Ledger
from memable._records import AttemptFailed, InstanceSuspended, StepCompleted
from sample_histories import STARTED, history


class Watcher:
    """Counts what it is told."""

    settled = 0

    def note_change(self) -> None: ...

    def note_settled(self) -> None:
        self.settled += 1


def ledger_of(journal: Journal, watcher: Watcher) -> Ledger:
    # What is queued here is not on its way to any store.
    return Ledger(cast("Any", None), journal, journal.seq, watcher)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]], ids=["in order", "backwards", "mixed"])
def test_ledger_takes_in_what_was_queued_before(order: list[int]):
    """
    Whichever of the waiting tasks is woken first, records come into the journal in the order of their numbers.
    """
    journal = Journal(started=STARTED, seq=STARTED.seq)
    ledger = ledger_of(journal, Watcher())
    _, *records = history(AttemptFailed, AttemptFailed, StepCompleted)
    newest = [ledger.note_queued((record,)) for record in records]
    assert newest == [2, 3, 4]
    assert journal.seq == STARTED.seq
    for place, index in enumerate(order):
        ledger.end_append()
        ledger.take_in(newest[index])
        assert journal.seq == max(newest[each] for each in order[: place + 1])
        assert ledger.is_settled is (place == 2)
    assert list(journal.memos.values()) == [records[2]]
    again = history(AttemptFailed, AttemptFailed, StepCompleted, InstanceSuspended)[-1]
    ledger.take_in(ledger.note_queued((again,)))
    assert journal.suspended == again


def test_ledger_tells_when_nothing_of_a_suspended_run_is_on_its_way():
    """
    Who waits for a suspended run to be settled is told once its last record is.
    """
    watcher = Watcher()
    ledger = ledger_of(Journal(started=STARTED, seq=STARTED.seq), watcher)
    _, *records = history(AttemptFailed, InstanceSuspended)
    ledger.note_queued(records[:1])
    ledger.note_queued(records[1:])
    ledger.end_append()
    assert (ledger.is_settled, watcher.settled) == (False, 0)
    ledger.end_append()
    assert (ledger.is_settled, watcher.settled) == (True, 1)
