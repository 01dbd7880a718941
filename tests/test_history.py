"""
The journal for people.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

import memable
from memable._encoded import Encoded
from memable._error_info import ErrorInfo, describe_exception
from memable._errors import SuspendTimeoutError
from memable._history import EXPIRED, HistoryEntry, _Teller, history_of
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
    InstanceCancelled,
    InstanceCompleted,
    InstanceFailed,
    InstanceRecord,
    InstanceResumed,
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
from sample_histories import ERROR, history
from strategies import instance_records


def told(*kinds: Any, aliases: dict[str, type] | None = None) -> list[HistoryEntry]:
    """Return the entries behind that of the start."""
    first, *rest = history_of(history(*kinds), aliases or {})
    assert first.kind == "invoke"
    return rest


def at(unix_s: float | None) -> datetime | None:
    return None if unix_s is None else datetime.fromtimestamp(unix_s, UTC)


def entry(kind: str, key: str | None, began: float, ended: float | None, **facts: Any) -> HistoryEntry:
    return HistoryEntry(kind, key, facts.pop("attempt", None), at(began), at(ended), **facts)


def int_value() -> dict[str, Any]:
    return {"value": 1, "value_type": "builtins.int"}


def test_history_tells_every_kind_of_record():
    """
    No kind of record was forgotten.
    """
    assert set(_Teller._TELLERS) == set(INSTANCE_RECORDS)


def test_history_begins_with_the_input():
    """
    The first entry is the start of the instance, with its input as it was recorded.
    """
    assert history_of(history(), {}) == [entry("invoke", None, 100.0, 100.0, **int_value())]


def test_history_shows_values_as_data():
    """
    A value is shown as it is recorded, under the name of its type; no class is looked for.
    """
    value = Encoded("gone.Order", b'{"id": 7, "items": ["a", null]}')
    [step] = told((StepCompleted, {"value": value, "started_at": 101.0}))
    assert (step.value, step.value_type) == ({"id": 7, "items": ["a", None]}, "gone.Order")


def test_history_tells_each_attempt_at_a_step():
    """
    Failed attempts and the outcome are entries of their own, with their numbers.
    """
    assert told(
        (AttemptFailed, {"started_at": 100.5}),
        (AttemptFailed, {"started_at": 102.5, "attempt": 2}),
        (StepCompleted, {"started_at": 103.5, "attempt": 3}),
        (StepFailed, {"path": "other", "started_at": 104.5}),
    ) == [
        entry("step", "k", 100.5, 102.0, attempt=1, error=ERROR),
        entry("step", "k", 102.5, 103.0, attempt=2, error=ERROR),
        entry("step", "k", 103.5, 104.0, attempt=3, **int_value()),
        entry("step", "other", 104.5, 105.0, attempt=1, error=ERROR),
    ]


def test_history_is_in_the_order_of_beginnings():
    """
    What began first is told first, whenever it ended.
    """
    entries = told(
        (StepCompleted, {"path": "b", "started_at": 101.9}),
        (WaitStarted, {"path": "w"}),
        (StepCompleted, {"path": "a", "started_at": 101.0}),
        (SignalReceived, {"path": "w"}),
        (StepCompleted, {"path": "c", "started_at": 103.5}),
    )
    assert [one.key for one in entries] == ["a", "b", "w", "c"]


def test_history_tells_an_intent_that_has_no_outcome():
    """
    An effect of which nobody knows whether it happened has no end.
    """
    intent = (IntentRecorded, {"started_at": 101.0})
    assert told(intent) == [entry("step", "k", 101.0, None)]
    assert told(intent, (StepCompleted, {"started_at": 101.0})) == [
        entry("step", "k", 101.0, 103.0, attempt=1, **int_value())
    ]
    assert told(intent, IntentWithdrawn) == [entry("step", "k", 101.0, 103.0)]
    # A probe has failed: the question is still open.
    assert told(intent, (AttemptFailed, {"started_at": 102.5})) == [
        entry("step", "k", 101.0, None),
        entry("step", "k", 102.5, 103.0, attempt=1, error=ERROR),
    ]


def test_history_tells_waits():
    """
    A wait has one entry, with what has ended it.
    """
    assert told(WaitStarted) == [entry("suspend", "wait", 102.0, None)]
    assert told(WaitStarted, InstanceSuspended, SignalReceived) == [
        entry("suspend", "wait", 102.0, 104.0, **int_value())
    ]
    assert told(WaitStarted, WaitAbandoned) == [entry("suspend", "wait", 102.0, 103.0)]
    assert told((WaitStarted, {"expects": None}), SleepEnded) == [entry("sleep", "wait", 102.0, 103.0)]
    error = describe_exception(SuspendTimeoutError(workflow="w", instance_id="i", key="wait"))
    assert told(WaitStarted, SuspendTimedOut) == [entry("suspend", "wait", 102.0, 103.0, error=error)]
    # A backoff that the body has turned away from.
    attempt = (AttemptFailed, {"started_at": 101.0})
    assert [one.kind for one in told(attempt, (WaitAbandoned, {"path": "k"}))] == ["step"]


def test_history_tells_an_early_signal_and_its_reception():
    """
    A signal that came early is told when it came, and when it was received.
    """
    assert told(SignalKept, SignalReceived) == [
        entry("signal", "wait", 102.0, 102.0, **int_value()),
        entry("suspend", "wait", 103.0, 103.0, **int_value()),
    ]


def test_history_tells_scopes():
    """
    A scope that expired has an error.
    """
    assert told(ScopeStarted) == [entry("scope", "scope", 102.0, None)]
    assert told(ScopeStarted, ScopeEnded) == [entry("scope", "scope", 102.0, 103.0)]
    error = EXPIRED
    assert told(ScopeStarted, (ScopeEnded, {"expired": True})) == [entry("scope", "scope", 102.0, 103.0, error=error)]


def test_history_tells_children_of_fan_outs():
    """
    Children are told with what became of them, whether their beginning was recorded or not.
    """
    assert told(
        BranchStarted,
        (BranchCompleted, {"path": "f/1", "started_at": 102.5}),
        (BranchFailed, {"started_at": 103.5}),
        (BranchStarted, {"path": "f/2"}),
    ) == [
        entry("child", "f/0", 102.0, 104.0, error=ERROR),
        entry("child", "f/1", 102.5, 103.0, **int_value()),
        entry("child", "f/2", 105.0, None),
    ]


def test_history_tells_a_fan_out_that_failed():
    """
    A fan-out that failed began with its first child; the child that failed has the error, too.
    """
    fan_out_failed = (FanOutFailed, {"item_key": "1"})
    assert told(BranchStarted, (BranchStarted, {"path": "f/1"}), fan_out_failed) == [
        entry("fan_out", "f", 102.0, 104.0, error=ERROR),
        entry("child", "f/0", 102.0, None),
        entry("child", "f/1", 103.0, 104.0, error=ERROR),
    ]
    assert told(fan_out_failed) == [entry("fan_out", "f", 102.0, 102.0, error=ERROR)]


def test_history_tells_child_instances():
    """
    A call is one entry; a child that lives on its own, its start.
    """
    assert told(ChildStarted) == [entry("call", "call", 102.0, None)]
    assert told(ChildStarted, CallCompleted) == [entry("call", "call", 102.0, 103.0, **int_value())]
    assert told(ChildStarted, CallFailed) == [entry("call", "call", 102.0, 103.0, error=ERROR)]
    assert told((ChildStarted, {"detached": True})) == [entry("start", "call", 102.0, 102.0, value="child")]


def test_history_tells_compensations():
    """
    A compensation is told when it is registered, and for each attempt at running it.
    """
    assert told(
        CompensationRegistered,
        CompensationBegun,
        (AttemptFailed, {"path": "undo", "started_at": 103.5}),
        (StepCompleted, {"path": "undo", "started_at": 104.5, "attempt": 2}),
        InstanceFailed,
    ) == [
        entry("compensate", "undo", 102.0, 102.0),
        entry("compensating", None, 103.0, 103.0, error=ERROR),
        entry("compensation", "undo", 103.5, 104.0, attempt=1, error=ERROR),
        entry("compensation", "undo", 104.5, 105.0, attempt=2, **int_value()),
        entry("failed", None, 106.0, 106.0, error=ERROR),
    ]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (InstanceCompleted, entry("completed", None, 102.0, 102.0, **int_value())),
        (InstanceFailed, entry("failed", None, 102.0, 102.0, error=ERROR)),
        (
            (InstanceCancelled, {"reason": "by hand", "error": ERROR}),
            entry("cancelled", None, 102.0, 102.0, value="by hand", error=ERROR),
        ),
        ((InstanceBlocked, {"path": "k"}), entry("blocked", "k", 102.0, 102.0, error=ERROR)),
        ((CancelRequested, {"reason": "by hand"}), entry("cancel", None, 102.0, 102.0, value="by hand")),
        ((RunStarted, {"after_crash": True}), entry("run", None, 102.0, 102.0, value={"after_crash": True})),
        (
            (InstanceResumed, {"cleared": ("a",), "forgotten": ("b", "c")}),
            entry("resume", None, 102.0, 102.0, value={"cleared": ["a"], "forgotten": ["b", "c"], "anew": False}),
        ),
    ],
)
def test_history_tells_what_happened_to_the_instance(kind: Any, expected: HistoryEntry):
    """
    Endings, blocks, requests, resumes and runs are entries, with what is known of them.
    """
    assert told(kind) == [expected]


@pytest.mark.parametrize(
    "resumed", [{"anew": True}, {"forgotten": ("wait",)}, {"cleared": ("wait",)}, {"forgotten": ("other",)}]
)
def test_history_tells_what_was_forgotten_and_came_again(resumed: dict[str, Any]):
    """
    What a resume has dropped did happen; what comes after it under the same path is told apart.
    """
    waits = [
        one
        for one in told(WaitStarted, InstanceFailed, (InstanceResumed, resumed), SignalReceived)
        if one.kind == "suspend"
    ]
    if resumed == {"forgotten": ("other",)}:
        assert waits == [entry("suspend", "wait", 102.0, 105.0, **int_value())]
    else:
        assert waits == [
            entry("suspend", "wait", 102.0, None),
            entry("suspend", "wait", 105.0, 105.0, **int_value()),
        ]


def test_history_tells_why_compensations_began():
    """
    Compensations of a cancelled instance have its reason.
    """
    begun = (CompensationBegun, {"error": None, "is_cancelled": True, "reason": "by hand"})
    assert told(begun) == [entry("compensating", None, 102.0, 102.0, value="by hand")]


def test_history_forgets_which_step_was_a_compensation():
    """
    A compensation that was forgotten may come again as a step.
    """
    undone = (StepCompleted, {"path": "undo", "started_at": 104.0})
    kinds = [CompensationRegistered, InstanceFailed, (InstanceResumed, {"anew": True}), undone]
    assert [one.kind for one in told(*kinds)][-1] == "step"
    kinds[2] = (InstanceResumed, {"cleared": ("undo",)})
    assert [one.kind for one in told(*kinds)][-1] == "compensation"


def test_history_calls_errors_what_they_are_called_now():
    """
    A class that was renamed is shown by its new name.
    """
    [failed] = told(
        (StepFailed, {"started_at": 101.0, "error": ErrorInfo("old.Gone", "no")}), aliases={"old.Gone": KeyError}
    )
    assert failed.error is not None
    assert (failed.error.type, failed.error.matches(LookupError)) == ("builtins.KeyError", True)


@given(st.lists(instance_records, max_size=12))
def test_history_can_be_told_of_anything(records: list[InstanceRecord]):
    """
    Whatever is recorded has a history, in order, and never more entries than records.
    """
    entries = history_of([*history(), *records], {})
    assert len(entries) <= 2 * (len(records) + 1)
    begins = [one.started_at for one in entries if one.started_at is not None]
    assert begins == sorted(begins)


async def test_history_tells_a_fan_out_before_what_happened_in_it(autojump_clock: object):
    """
    A child begins no later than its first step, and a fan-out that failed no later than its first child.
    """

    async def work() -> None:
        await trio.sleep(1)

    async def child(ctx: memable.Context, item: int) -> None:
        await ctx.step("work", work)
        await trio.sleep(item)
        raise ValueError

    @memable.workflow
    async def wide(ctx: memable.Context) -> None:
        await ctx.step("first", work)
        await ctx.fan_out("wide", child, [1, 2])

    async with memable.open_engine(memable.InMemoryStore(), workflows=[wide]) as engine:
        await (await engine.invoke(wide, instance_id="i")).wait()
        keys = [entry.key for entry in await engine.history(wide, "i")]
    assert keys[:3] == [None, "first", "wide"]
    assert keys.index("wide/0") < keys.index("wide/0/work")
    assert keys.index("wide/1") < keys.index("wide/1/work")
