"""
``memable show``: everything about one instance, and what can be done about it.
"""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import memable
from memable._cli._advice import advise
from memable._cli._details import Details, details_of
from memable._cli._moments import Moments
from memable._cli._reading import open_store
from memable._cli._report import Limits, Report, print_report
from memable._error_info import describe_exception
from memable._header import header_of
from memable._records import (
    AttemptFailed,
    BranchCompleted,
    BranchFailed,
    BranchStarted,
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
    InstanceSuspended,
    IntentRecorded,
    RunStarted,
    ScopeEnded,
    ScopeStarted,
    SignalKept,
    SleepEnded,
    StepCompleted,
    StepFailed,
    WaitStarted,
)
from memable._states import MetadataStatus
from sample_histories import ERROR, STARTED, VALUE, history
from showing import WORKFLOWS, make_store, say, terminal


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A filled store, which no test changes."""
    return make_store(tmp_path_factory.mktemp("cli") / "store")


def details(*kinds: Any, find: Any = lambda workflow, instance_id: None) -> Details:
    """Return what is told of an instance with such records."""
    records: list[InstanceRecord] = history(*kinds)
    header = header_of(STARTED)
    for one in records[1:]:
        header.apply(one)
    return details_of(header, records, find)


def advice(*kinds: Any, is_closed: bool = False) -> list[tuple[str, str | None]]:
    return [(piece.text, piece.python) for piece in advise(details(*kinds), is_closed=is_closed)]


def python(*kinds: Any) -> list[str | None]:
    return [code for _, code in advice(*kinds)]


# JSON ----------------------------------------------------------------------------------------------------------------


def test_show_json_tells_everything(store: Path, capsys: pytest.CaptureFixture[str]):
    """
    With ``--json`` an instance is one object: metadata, input, waits, memos, children, compensations, and what to do.
    """
    (found,) = say(capsys, "show", store, "order", "o0", "--json").objects
    (listed,) = say(capsys, "ls", store, "--json", "--limit", 1).objects
    assert {name: found[name] for name in listed} == listed
    assert found["input"]["value"] == [{"type": "showing.Order", "value": {"name": "Ada", "amount": 0}}]
    (wait,) = found["waits"]
    since, until = datetime.fromisoformat(wait.pop("since")), datetime.fromisoformat(wait.pop("until"))
    assert (until - since).days == 7
    assert wait == {
        "kind": "suspend",
        "key": "approval:v1",
        "expects": "builtins.bool",
        "note": "needs a manager",
        "error": None,
    }
    assert [(memo["kind"], memo["key"], memo["outcome"], memo["value"]) for memo in found["memos"]] == [
        ("step", "fetch:v1", "completed", 0),
        ("call", "kid", "completed", 9),
        ("sleep", "nap", "ended", None),
    ]
    assert found["children"] == [
        {
            "key": "kid",
            "workflow_name": "child",
            "instance_id": "o0/kid",
            "detached": False,
            "status": "completed",
        }
    ]
    assert found["compensations"] == [{"key": "undo-fetch", "outcome": "registered"}]
    assert (found["output"], found["error"]) == (None, None)
    signal = "await engine.signal('order', 'o0', memable.SuspendPoint('approval:v1', bool), payload)"
    assert found["next"][0] == {"text": "To end the wait at 'approval:v1':", "python": signal}


def test_show_json_tells_an_output_and_an_error(store: Path, capsys: pytest.CaptureFixture[str]):
    """
    A completed instance has an output, a failed one its error with the traceback, a cancelled one the reason.
    """
    completed, failed, cancelled, blocked = (
        say(capsys, "show", store, name, "--json").objects[0]
        for name in ("order/o1", "order/o2", "order/o4", "wrong/w")
    )
    assert completed["output"] == {"value": 42, "value_type": "builtins.int"}
    assert completed["next"] == []
    assert failed["error"]["type"] == "memable.StepFailedError"
    assert failed["error"]["cause"]["message"] == "sold out"
    assert "in refuse" in failed["error"]["traceback"]
    assert failed["compensations"] == [{"key": "undo-fetch", "outcome": "completed"}]
    assert cancelled["cancel_reason"] == "changed her mind"
    assert blocked["error"]["message"] == "not yet written"


# Reports -------------------------------------------------------------------------------------------------------------


def test_show_reports_a_suspended_instance(store: Path, capsys: pytest.CaptureFixture[str]):
    """
    A report tells what a suspended instance waits for, until when, what it has done, and how to end the wait.
    """
    said = say(capsys, "show", store, "order/o0", "--utc")
    assert (said.status, said.err) == (0, "")
    assert said.lines[0] == "order/o0 suspended"
    for expected in (
        "times are in UTC",
        "Waits",
        "Memos (3)",
        "Children",
        "call completed child/o0/kid",
        "undo-fetch registered",
        "await engine.signal('order', 'o0', memable.SuspendPoint('approval:v1', bool), payload)",
        "The store is closed: it goes on when an engine opens it that knows the workflow 'order'.",
    ):
        assert expected in said.lines
    assert any(line.startswith("suspend approval:v1 since 20") and "until 20" in line for line in said.lines)
    assert any(line.endswith("for bool: needs a manager") for line in said.lines)
    assert any(line.startswith("step fetch:v1 completed 20") and line.endswith(" 0 int") for line in said.lines)


def test_show_reports_how_an_instance_ended(store: Path, capsys: pytest.CaptureFixture[str]):
    """
    A report tells the output of what completed, and of the rest the error with its traceback, and the reason.
    """
    completed = say(capsys, "show", store, "order/o1")
    assert completed.lines[completed.lines.index("Output") + 1] == "42 int"
    assert "Next" not in completed.lines
    failed = say(capsys, "show", store, "order/o2")
    assert "Traceback (most recent call last):" in failed.lines
    assert 'raise ValueError("sold out")' in failed.lines
    assert "await engine.resume('order', 'o2', anew=True)" in failed.lines
    cancelled = say(capsys, "show", store, "order/o4")
    assert "reason changed her mind" in cancelled.lines
    assert "await engine.resume('order', 'o4', anew=True)" in cancelled.lines
    blocked = say(capsys, "show", store, "wrong/w")
    assert "Blocked by" in blocked.lines
    assert "await engine.resume('wrong', 'w')" in blocked.lines


def test_show_names_a_child_by_its_path(store: Path, capsys: pytest.CaptureFixture[str]):
    """
    A child's id has a ``/`` in it, and is found in one word and in two.
    """
    one, two = (say(capsys, "show", store, *name) for name in (("child/o0/kid",), ("child", "o0/kid")))
    assert one.lines[0] == two.lines[0] == "child/o0/kid completed"
    assert "parent order/o0" in one.lines


def test_show_cuts_unless_told_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """
    Long values and long tables are cut, and say so; with ``--full`` and with ``--json`` nothing is.
    """

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context, text: str) -> str:
        async def say_number(number: int) -> int:
            return number

        for number in range(250):
            await ctx.step(f"s{number}", say_number, number)
        return text

    async def start() -> None:
        async with memable.open_engine(memable.FileStore(tmp_path / "s", durability="os"), workflows=[workflow]) as e:
            await (await e.invoke(workflow, "x" * 1000, instance_id="i")).result()

    trio.run(start)
    cut = say(capsys, "show", tmp_path / "s", "w/i")
    assert "x" * 250 in cut.out
    assert "x" * 400 not in cut.out
    assert "[...]" in cut.out
    assert "50 older ones left out; --full shows all" in cut.lines
    assert not any(line.startswith("step s49 ") for line in cut.lines)
    full = say(capsys, "show", tmp_path / "s", "w/i", "--full")
    assert f'"{"x" * 1000}" str' in full.lines
    assert sum(line.startswith("step s") for line in full.lines) == 250
    (whole,) = say(capsys, "show", tmp_path / "s", "w/i", "--json").objects
    assert (len(whole["memos"]), whole["output"]["value"]) == (250, "x" * 1000)


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("name", [("order", "o0"), ("order", "o2"), ("wrong", "w"), ("hostile", "h"), ("each", "e")])
def test_show_fits_a_terminal(store: Path, name: tuple[str, str], width: int):
    """
    On a terminal a report is no wider than it, and loses nothing: what is too long goes on in the next line.
    """
    output, shown = terminal(width)
    with open_store(store) as snapshot:
        print_report(output, snapshot, name, Moments(datetime.now(UTC)), Limits())
    assert max(map(len, shown.getvalue().splitlines())) <= width


def test_show_reports_what_is_rare():
    """
    Signals that came early, crashes in a row, a cancellation under way and removed children have their lines, too.
    """
    found = details(
        (SignalKept, {"path": "later"}),
        (ChildStarted, {"path": "loose", "detached": True}),
        (AttemptFailed, {"path": "flaky", "next_attempt_at": 300.0}),
        (CancelRequested, {"reason": "enough"}),
        (CompensationBegun, {"is_cancelled": True, "error": None}),
        (RunStarted, {"after_crash": True}),
    )
    found.header.detached = True
    output, shown = terminal(100)
    Report(output, Moments(datetime.fromtimestamp(200, UTC), is_utc=True), Limits()).print(found, is_closed=False)
    lines = [" ".join(line.split()) for line in shown.getvalue().splitlines()]
    for expected in (
        "w/i running",
        "parent p/q (detached from it)",
        "crashes was running at 1 in a row, without a new record in between",
        "cancel asked for at 1970-01-01 00:01:45 (1 min ago)",
        "reason enough",
        "compensating its compensations run; then it ends as Failed or Cancelled",
        "later 1 int",
        "start removed child/i/loose",
    ):
        assert expected in lines
    assert any(line.startswith("retry flaky since 1970-01-01 00:01:44 until 1970-01-01 00:05:00") for line in lines)


async def test_show_signal_that_it_tells_is_the_right_one(store: Path, tmp_path: Path, autojump_clock: object):
    """
    The Python that a report tells to run does what it says.
    """
    copy = shutil.copytree(store, tmp_path / "copy")
    with open_store(copy) as snapshot:
        header = snapshot.index.find("each", "e")
        assert header is not None
        found = details_of(header, snapshot.load(header.number), snapshot.index.find)
        codes = [piece.python for piece in advise(found, is_closed=True) if piece.python is not None]
    assert {wait.key for wait in found.waits} == {"ask/0/approval:v1", "ask/1/approval:v1"}
    async with memable.open_engine(copy, workflows=WORKFLOWS) as engine:
        for code in codes:
            names = {"engine": engine, "memable": memable, "payload": "'ask/0'" in code}
            await eval(code.removeprefix("await "), names)  # noqa: S307 - running what it tells is what this is for
        assert await (await engine.get("each", "e")).result() == [True, False]


async def test_show_tells_of_effects_without_an_outcome(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], autojump_clock: object
):
    """
    A step that must not repeat and was cut short is told of, before the store is opened again and after.
    """

    async def pay() -> int:
        shutil.copytree(tmp_path / "s", tmp_path / "crashed")
        return 1

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context) -> int:
        return await ctx.step("pay", pay, once=True)

    async with memable.open_engine(tmp_path / "s", workflows=[workflow]) as engine:
        await (await engine.invoke(workflow, instance_id="i")).wait()
    before = say(capsys, "show", tmp_path / "crashed", "w/i")
    assert before.lines[before.lines.index("Begun, must not repeat, no outcome yet") + 1] == "pay"
    assert before.lines[-1] == (
        "It runs in the engine that has the store open. If that has died, it goes on at the next open."
    )
    async with memable.open_engine(tmp_path / "crashed", workflows=[workflow]) as engine:
        await (await engine.get(workflow, "i")).wait()
    after = say(capsys, "show", tmp_path / "crashed", "w/i")
    assert "Blocked at pay by" in after.lines
    assert after.lines[-1] == "await engine.settle('w', 'i', 'pay', value=...)"


# What is known -------------------------------------------------------------------------------------------------------


def test_details_of_memos():
    """
    Each memo is told with its kind and what became of it, in the order in which they were recorded.
    """
    found = details(
        StepCompleted,
        (CompensationRegistered, {"path": "undo"}),
        (StepFailed, {"path": "bad"}),
        (WaitStarted, {"path": "nap", "expects": None}),
        (SleepEnded, {"path": "nap"}),
        (ScopeStarted, {"path": "limit"}),
        (ScopeEnded, {"path": "limit", "expired": True}),
        (ScopeStarted, {"path": "room"}),
        (ScopeEnded, {"path": "room"}),
        (BranchCompleted, {"path": "f/0", "digest": "d"}),
        (BranchFailed, {"path": "f/1", "digest": "d", "index": 1}),
        (FanOutFailed, {"path": "g"}),
        (ChildStarted, {"path": "kid"}),
        (CallFailed, {"path": "kid"}),
        (StepCompleted, {"path": "undo", "attempt": 2}),
    )
    assert [(memo.kind, memo.key, memo.outcome) for memo in found.outcomes] == [
        ("step", "k", "completed"),
        ("step", "bad", "failed"),
        ("sleep", "nap", "ended"),
        ("scope", "limit", "expired"),
        ("scope", "room", "ended"),
        ("child", "f/0", "completed"),
        ("child", "f/1", "failed"),
        ("fan_out", "g", "failed"),
        ("call", "kid", "failed"),
        ("compensation", "undo", "completed"),
    ]
    assert [undoing.outcome for undoing in found.compensations] == ["completed"]


def test_details_of_waits():
    """
    Suspend points, sleeps, retries and children are told with since when and until when they are waited for.
    """
    found = details(
        (WaitStarted, {"path": "ask", "note": "please", "deadline": 500.0}),
        (WaitStarted, {"path": "nap", "expects": None, "deadline": 200.0}),
        (AttemptFailed, {"path": "flaky", "next_attempt_at": 300.0}),
        (ChildStarted, {"path": "kid"}),
        (SignalKept, {"path": "later"}),
        (InstanceSuspended, {"path": "ask"}),
    )
    assert [(wait.kind, wait.key, wait.until and wait.until.timestamp(), wait.note) for wait in found.waits] == [
        ("suspend", "ask", 500.0, "please"),
        ("sleep", "nap", 200.0, None),
        ("retry", "flaky", 300.0, None),
        ("child", "kid", None, None),
    ]
    assert [wait.error for wait in found.waits] == [None, None, ERROR, None]
    assert [(kept.key, kept.value) for kept in found.kept] == [("later", VALUE)]
    assert [(child.instance_id, child.status) for child in found.children] == [("i/kid", None)]


def test_details_of_children():
    """
    Attached and detached children are told with their status.
    """
    child = header_of(STARTED)
    found = details(
        (ChildStarted, {"path": "loose", "detached": True}),
        (BranchStarted, {"path": "f/0", "workflow": "child"}),
        find=lambda workflow, instance_id: child if instance_id == "i/f/0" else None,
    )
    assert [(one.key, one.is_detached, one.status) for one in found.children] == [
        ("f/0", False, MetadataStatus.RUNNING),
        ("loose", True, None),
    ]


def test_details_of_endings():
    """
    Output, error and reason come from how the instance ended; while its compensations run, from why they do.
    """
    assert details(InstanceCompleted).output == VALUE
    assert details(InstanceFailed).error == ERROR
    cancelled = details((CancelRequested, {"reason": "r"}), (InstanceCancelled, {"reason": "r", "error": ERROR}))
    assert (cancelled.cancel_reason, cancelled.error) == ("r", ERROR)
    asked = details((CancelRequested, {"reason": "r"}))
    assert (asked.cancel_reason, asked.cancel_requested_at is not None) == ("r", True)
    undoing = details(
        (CompensationRegistered, {"path": "a"}),
        (CompensationRegistered, {"path": "b"}),
        CompensationBegun,
        (StepFailed, {"path": "b"}),
        (IntentRecorded, {"path": "a"}),
    )
    assert undoing.error == ERROR
    assert [one.outcome for one in undoing.compensations] == ["unknown", "failed"]


# What can be done ----------------------------------------------------------------------------------------------------


def blocked(error: Exception, **changes: Any) -> tuple[type[InstanceBlocked], dict[str, Any]]:
    return InstanceBlocked, {"error": describe_exception(error), **changes}


def test_advice_for_blocked_instances():
    """
    What unblocks an instance depends on what has blocked it.
    """
    unknown = memable.OutcomeUnknownError(workflow="w", instance_id="i", key="pay")
    settle = "await engine.settle('w', 'i', 'pay', value=...)"
    assert python(IntentRecorded, blocked(unknown, path="pay", needs_resume=True)) == [settle]
    assert python((IntentRecorded, {"path": "pay"}), blocked(unknown, needs_resume=True)) == [settle]
    resume, forget = "await engine.resume('w', 'i')", "await engine.resume('w', 'i', forget=[...])"
    for error, text in (
        (memable.RecoveryLimitError(workflow="w", instance_id="i", recoveries=3), "brings the process down"),
        (memable.RecordsLostError(workflow="w", instance_id="i", lost="..."), "what it has done already"),
        (memable.WorkflowCodeError("wrong"), "Mend the code"),
        (ValueError("wrong"), "as far as an earlier run"),
        (memable.CompensationLostError(workflow="w", instance_id="i", keys=("undo",)), "register that compensation"),
    ):
        told = advice(blocked(error))
        assert [code for _, code in told] == [resume, forget]
        assert text in told[0][0]


def test_advice_for_ended_instances():
    """
    A failed or cancelled instance is resumed: anew if it has compensated, and a child by its parent.
    """
    resume = "await engine.resume('p', 'q')"
    assert python(InstanceFailed) == [resume]
    assert python(InstanceCompleted) == []
    for ending in (InstanceFailed, InstanceCancelled):
        found = details(ending)
        found.header.parent = None
        assert [piece.python for piece in advise(found, is_closed=True)] == ["await engine.resume('w', 'i')"]
        found = details(CompensationBegun, ending)
        found.header.detached = True
        code = "await engine.resume('w', 'i', anew=True)"
        assert [piece.python for piece in advise(found, is_closed=True)] == [code]


def test_advice_for_waiting_instances():
    """
    A suspend point is ended by its signal, addressed within its fan-out; what ends by itself needs nothing.
    """
    assert python((WaitStarted, {"path": "f/0/ask"}), (InstanceSuspended, {"path": "f/0/ask"})) == [
        "await engine.signal('w', 'i', memable.SuspendPoint('ask', int), payload, within='f/0')"
    ]
    nap = (WaitStarted, {"path": "nap", "expects": None}), (InstanceSuspended, {"path": "nap"})
    assert advice(*nap) == [("Nothing to do: it goes on by itself.", None)]
    assert [text for text, _ in advice(RunStarted, is_closed=True)] == [
        "The store is closed: it goes on when an engine opens it that knows the workflow 'w'."
    ]
    running = "It runs in the engine that has the store open. If that has died, it goes on at the next open."
    assert advice(RunStarted) == [(running, None)]
    call = (ChildStarted, {"path": "kid"}), (InstanceSuspended, {"path": "kid"})
    found = details(*call, find=lambda workflow, instance_id: header_of(STARTED))
    told = [piece.text for piece in advise(found, is_closed=False)]
    assert told == ["It waits for child/i/kid, which is running: see there."]
    many = [(WaitStarted, {"path": f"f/{index}/ask"}) for index in range(12)]
    told = advice(*many, (InstanceSuspended, {"path": "f/0/ask"}))
    assert (len(told), told[-1]) == (11, ("So for 2 more waits.", None))
