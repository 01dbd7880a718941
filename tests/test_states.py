"""
The states that people and code see.
"""

from __future__ import annotations

from datetime import UTC, datetime

import attrs
import pytest

import memable
from memable import ErrorInfo, MetadataStatus

ERROR = ErrorInfo(type="builtins.ValueError", message="no")
DUE = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)

STATES: list[tuple[memable.WorkflowState, bool, str | None, str]] = [
    (memable.Started(), False, None, "started"),
    (memable.InProgress("half"), False, "half", "in progress: half"),
    (memable.Suspended("k", None, None, ("k",)), False, None, "suspended at 'k'"),
    (
        memable.Suspended("k", "wait", DUE, ("k", "l", "m")),
        False,
        "wait",
        "suspended at 'k' and 2 more until 2030-01-02T03:04:05+00:00: wait",
    ),
    (memable.Blocked(None, ERROR), False, "no", "blocked: ValueError: no"),
    (memable.Blocked("k", ERROR), False, "no", "blocked at 'k': ValueError: no"),
    (memable.Completed(), True, None, "completed"),
    (memable.Completed("done"), True, "done", "completed: done"),
    (memable.Failed(ERROR), True, "no", "failed: ValueError: no"),
    (memable.Cancelled(), True, None, "cancelled"),
    (memable.Cancelled("why", ERROR), True, "why", "cancelled: why"),
]


@pytest.mark.parametrize(("state", "is_terminal", "message", "text"), STATES, ids=[text for *_, text in STATES])
def test_state_tells_itself(state: memable.WorkflowState, is_terminal: bool, message: str | None, text: str):
    """
    Each state says whether it is terminal, has a message, and reads well.
    """
    assert (state.is_terminal, state.message, str(state)) == (is_terminal, message, text)


@pytest.mark.parametrize("state", [state for state, *_ in STATES], ids=[text for *_, text in STATES])
def test_state_is_frozen_and_comparable(state: memable.WorkflowState):
    """
    States are values: they cannot be changed, and equal ones are equal and have one hash.
    """
    copy = attrs.evolve(state)
    assert copy == state
    assert hash(copy) == hash(state)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        state.message = "other"  # type: ignore[misc]


def test_states_can_be_matched():
    """
    States are taken apart by ``match``, by position in the documented order.
    """

    def describe(state: memable.WorkflowState) -> object:  # noqa: PLR0911 - one for each state
        match state:
            case memable.InProgress(message):
                return message
            case memable.Suspended(key, status, deadline, waits):
                return key, status, deadline, waits
            case memable.Blocked(key, error):
                return key, error
            case memable.Completed(message):
                return message
            case memable.Failed(error):
                return error
            case memable.Cancelled(reason, error):
                return reason, error
            case memable.Started():
                return "started"

    assert [describe(state) for state, *_ in STATES] == [
        "started",
        "half",
        ("k", None, None, ("k",)),
        ("k", "wait", DUE, ("k", "l", "m")),
        (None, ERROR),
        ("k", ERROR),
        None,
        "done",
        ERROR,
        (None, None),
        ("why", ERROR),
    ]


def test_metadata_status_names_each_place_in_life():
    """
    There are six statuses, three of them terminal.
    """
    assert [status.name for status in MetadataStatus] == [
        "RUNNING",
        "SUSPENDED",
        "BLOCKED",
        "COMPLETED",
        "FAILED",
        "CANCELLED",
    ]
    assert [status.is_terminal for status in MetadataStatus] == [False, False, False, True, True, True]
