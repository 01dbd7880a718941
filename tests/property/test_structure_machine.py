"""
Whole engines through workflows that use everything, over a disk that loses power.

Waits, scopes, fan-outs, children, compensations, effects that must not repeat. Each rule is one session: an engine is
opened, does one thing, lets some time pass and is closed; or it is cut short, by the death of its process, by a power
cut, or by an exception in the host. Between sessions time passes, too. What the journals hold is then checked record by
record, and against what the programs were given and did to the world outside. At the end of each story everything is
brought to its end: signals are sent, answers given, time passes.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import attrs
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from trio.testing import MockClock

import memable
from memable import MetadataStatus
from memable._clock import _virtual_origin, current_clock
from memable._header import InstanceHeader
from memable._records import (
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
    InstanceStarted,
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
from programs import (
    RETENTION_S,
    WORKFLOWS,
    Compensate,
    Fails,
    Incomplete,
    Once,
    Op,
    Program,
    Suspend,
    Walk,
    World,
    branches_of,
    ops_of,
    programs,
    without_raises,
)
from simulated_disk import SimulatedDisk, lose_all, lose_nothing

DIRECTORY = Path("/store")
LOG = DIRECTORY / "00000001.log"

#: The same in every run, so that a failure can be found again.
ORIGIN_UNIX_S = 1_700_000_000.0
#: A session that is not done by then, in virtual seconds, is stuck.
STUCK_AFTER_S = 1e5
#: A story that is not brought to its end by so many sessions is stuck: no program has so many waits.
MAX_ROUNDS = 30
#: How much later than its deadline something may happen: a scope that is found expired gives its body a second.
LATE_S = 2.5

MAX_INSTANCES = 4
STEPS = 10

LATE_WORKFLOW = "v"
REST = frozenset((MetadataStatus.SUSPENDED, MetadataStatus.BLOCKED))
Name: TypeAlias = tuple[str, str]
"Workflow and instance id."


# How a session goes --------------------------------------------------------------------------------------------


@attrs.frozen
class Cut:
    """
    At some call of the disk, the process is killed or the power is cut.
    """

    call: int
    loss: str | int
    "``kill``, ``nothing`` or ``all``, or the seed of what is lost."


@attrs.frozen
class Interrupt:
    """
    The host raises an exception.
    """

    after_s: float


@attrs.frozen
class Weather:
    """
    What a session is like, whatever it is for.
    """

    linger_s: float = 0.0
    "How long the engine stays open after what it does."
    max_parked: int = 1000
    disturbance: Cut | Interrupt | None = None
    is_late: bool = False
    "Whether one of the workflows is registered only after a while."
    action_s: float = 0.0
    "How long it waits before it does something."
    pause_s: float = 0.0
    "How long no engine is open before."

    def __repr__(self) -> str:
        fields = attrs.fields(Weather)
        shown = [f"{one.name}={value!r}" for one in fields if (value := getattr(self, one.name)) != one.default]
        return f"Weather({', '.join(shown)})"


losses = st.sampled_from(["kill", "nothing", "all"]) | st.integers(0, 1000)
disturbances = st.one_of(
    st.none(),
    st.builds(Cut, st.integers(0, 70), losses),
    st.builds(Interrupt, st.sampled_from([0.5, 1.5, 4.5, 12.5])),
)
weathers = st.builds(
    Weather,
    linger_s=st.sampled_from([0.0, 2.0, 20.0, 200.0]),
    max_parked=st.sampled_from([1000, 0, 1]),
    disturbance=disturbances,
    is_late=st.sampled_from([False, False, False, True]),
    action_s=st.sampled_from([0.0, 0.5, 1.5, 5.0, 50.0]),
    pause_s=st.sampled_from([0.0, 10.0, 1000.0]),
)
FAIR = Weather()


class InterruptedHostError(Exception):
    pass


# What the records of one instance say --------------------------------------------------------------------------


def is_within(path: str, outer: str) -> bool:
    return path == outer or path.startswith(outer + "/")


def is_once(op: Op) -> bool:
    return isinstance(op, Once) or (isinstance(op, Compensate) and op.once)


@attrs.define
class Ledger:
    """
    Takes in an instance's records one by one, and refuses what the contract excludes.
    """

    name: Name
    program: Program
    openings: list[tuple[float, bool]]
    "When engines were opened, and whether that was with a workflow registered late."
    memos: dict[str, Any] = attrs.field(factory=dict)
    waits: dict[str, WaitStarted] = attrs.field(factory=dict)
    fresh_waits: set[str] = attrs.field(factory=set)
    "Those that nothing has interrupted: they must end in time."
    kept: dict[str, SignalKept] = attrs.field(factory=dict)
    scopes: dict[str, ScopeStarted] = attrs.field(factory=dict)
    attempts: dict[str, AttemptFailed] = attrs.field(factory=dict)
    intents: set[str] = attrs.field(factory=set)
    children: dict[str, str] = attrs.field(factory=dict)
    detached: dict[str, str] = attrs.field(factory=dict)
    compensations: dict[str, int] = attrs.field(factory=dict)
    begun: CompensationBegun | None = None
    cancel: CancelRequested | None = None
    blocked: InstanceBlocked | None = None
    ending: Any = None
    resumes: int = 0

    def take(self, record: InstanceRecord) -> None:
        """
        Take in the next record.
        """
        if self.ending is not None:
            assert isinstance(record, InstanceResumed), "something is recorded after the end"
        take = self._TAKES.get(type(record))
        if take is not None:
            take(self, record)

    def _take_intent(self, record: IntentRecorded) -> None:
        self._new(record.path)
        assert record.path not in self.intents
        assert (record.path in self.compensations) == (self.begun is not None), "an effect at a wrong time"
        self.intents.add(record.path)

    def _withdraw_intent(self, record: IntentWithdrawn) -> None:
        self.intents.remove(record.path)

    def _start_wait(self, record: WaitStarted) -> None:
        self._new(record.path)
        known = self.waits.get(record.path)
        assert known is None or known.deadline == record.deadline, "a deadline has moved"
        if known is None:
            self.fresh_waits.add(record.path)
        self.waits[record.path] = record

    def _abandon_wait(self, record: WaitAbandoned) -> None:
        self.fresh_waits.discard(record.path)

    def _take_signal(self, record: SignalReceived) -> None:
        assert record.path in self.waits, "a signal was received where nothing waits"
        assert record.path not in self.kept
        self._outcome(record)

    def _keep_signal(self, record: SignalKept) -> None:
        self._new(record.path)
        assert record.path not in self.kept
        self.kept[record.path] = record

    def _end_wait(self, record: SuspendTimedOut | SleepEnded) -> None:
        assert record.path not in self.kept, "a signal that was kept has lost"
        self._due(record, self.waits[record.path].deadline)
        if record.path in self.fresh_waits:
            self._in_time(record, self.waits[record.path])
        self._outcome(record)

    def _start_scope(self, record: ScopeStarted) -> None:
        assert record.path not in self.scopes, "a deadline has moved"
        self._new(record.path)
        self.scopes[record.path] = record

    def _end_scope(self, record: ScopeEnded) -> None:
        if record.expired:
            self._due(record, self.scopes[record.path].deadline)
        self._outcome(record)

    def _start_branch(self, record: BranchStarted) -> None:
        self._new(record.path)
        if record.workflow is not None:
            assert record.path not in self.children
            self.children[record.path] = record.workflow

    def _complete_branch(self, record: BranchCompleted) -> None:
        branch = branches_of(self.program).get(record.path + "/")
        if branch is not None:
            assert json.loads(record.value.data) == self.walk().result(branch, record.path + "/")
        self._outcome(record)

    def _end_call(self, record: CallCompleted | CallFailed) -> None:
        assert record.path in self.children
        self._outcome(record)

    def _start_child(self, record: ChildStarted) -> None:
        self._new(record.path)
        started = self.detached if record.detached else self.children
        assert record.path not in started, "a child was started twice"
        started[record.path] = record.workflow

    def _register(self, record: CompensationRegistered) -> None:
        self._new(record.path)
        assert self.begun is None
        assert record.path not in self.compensations
        self.compensations[record.path] = record.seq

    def _begin_compensations(self, record: CompensationBegun) -> None:
        assert self.begun is None
        assert self.compensations
        self.begun = record

    def _request_cancel(self, record: CancelRequested) -> None:
        self.cancel = record

    def _block(self, record: InstanceBlocked) -> None:
        self.blocked = record
        self.fresh_waits.clear()

    def _run_again(self, _record: RunStarted) -> None:
        self.blocked = None

    def known_paths(self) -> list[str]:
        """
        Return all paths that something is recorded of.
        """
        known: set[str] = set()
        for paths in (self.memos, self.waits, self.scopes, self.attempts, self.children, self.intents):
            known.update(paths)
        return sorted(known)

    def walk(self) -> Walk:
        return Walk(self.name[1], {**self.memos, **self.kept}, self.compensations, self.detached)

    def _new(self, path: str) -> None:
        """Check that nothing answers for *path* yet."""
        assert path not in self.memos, "something begins again that has an outcome"
        is_after = path in self.compensations
        assert is_after or not self._done_around(path), "something goes on in a branch that has an outcome"

    def _done_around(self, path: str) -> bool:
        return any(
            isinstance(memo, (BranchCompleted, BranchFailed)) and path != outer and is_within(path, outer)
            for outer, memo in self.memos.items()
        )

    def _outcome(self, record: Any) -> None:
        self._new(record.path)
        self.memos[record.path] = record
        self.blocked = None

    def _step(self, record: StepCompleted | StepFailed | AttemptFailed) -> None:
        path = record.path
        op = ops_of(self.program)[path]
        is_effect = is_once(op)
        if path in self.compensations:
            assert self.begun is not None, "a compensation has run too early"
            later = [one for one, seq in self.compensations.items() if seq > self.compensations[path]]
            # One whose outcome is unknown blocks the instance, once the others have run.
            done = self.memos.keys() | self.intents
            assert all(one in done for one in later), "compensations have run in a wrong order"
        else:
            assert self.begun is None
        if not is_effect:
            before = self.attempts.get(path)
            assert record.attempt == (1 if before is None else before.attempt + 1)
            if before is not None:
                assert record.started_at >= before.next_attempt_at, "an attempt was made too early"
        if isinstance(record, AttemptFailed):
            self._new(path)
            self.attempts[path] = record
            return
        if is_effect:
            assert path in self.intents, "an effect has an outcome, and there was no intent"
        self.attempts.pop(path, None)
        self.intents.discard(path)
        self._outcome(record)

    def _due(self, record: Any, deadline: float | None) -> None:
        assert deadline is not None
        assert record.at >= deadline - 1e-3, f"{deadline - record.at} s too early"

    def _in_time(self, record: Any, wait: WaitStarted) -> None:
        assert wait.deadline is not None
        opened, is_late = max(one for one in self.openings if one[0] <= record.at)
        if not is_late:
            late_s = record.at - max(wait.deadline, opened)
            assert late_s <= LATE_S, f"{late_s} s too late"

    def _resume(self, record: InstanceResumed) -> None:
        for path in record.cleared:
            memo = self.memos[path]
            assert not isinstance(memo, (StepCompleted, SignalReceived, SleepEnded, BranchCompleted, CallCompleted))
            for paths in (self.memos, self.attempts, self.waits, self.scopes):
                paths.pop(path, None)
        everything: Any = (
            self.memos,
            self.waits,
            self.kept,
            self.scopes,
            self.attempts,
            self.children,
            self.detached,
            self.compensations,
        )
        if record.anew:
            for paths in (*everything, self.intents):
                paths.clear()
            self.begun = None
        for forgotten in record.forgotten:
            for paths in everything:
                for path in [path for path in paths if is_within(path, forgotten)]:
                    del paths[path]
            for path in [path for path in self.memos if is_within(forgotten, path)]:
                del self.memos[path]
            self.intents = {path for path in self.intents if not is_within(path, forgotten)}
        if self.ending is not None:
            # What failed within a scope left it undecided: it gets its full time once more.
            self.scopes = {path: scope for path, scope in self.scopes.items() if path in self.memos}
        self.fresh_waits.clear()
        if self.ending is not None or record.anew:
            self.cancel = None
        self.ending = self.blocked = None
        self.resumes += 1

    def _end(self, record: InstanceCompleted | InstanceFailed | InstanceCancelled) -> None:
        self.ending = record
        if isinstance(record, InstanceCompleted):
            assert self.begun is None
            assert self.cancel is None
            assert json.loads(record.value.data) == self.walk().result(self.program), "a wrong result"
            return
        assert set(self.compensations) <= set(self.memos), "a compensation has not run"
        assert (self.begun is not None) == bool(self.compensations)
        if self.begun is not None:
            assert self.begun.error == record.error, "another cause"
            assert self.begun.is_cancelled == isinstance(record, InstanceCancelled)
        if isinstance(record, InstanceCancelled):
            assert self.cancel is not None
            return
        try:
            result = self.walk().result(self.program)
        except Fails:
            return
        raise AssertionError(f"it failed with {record.error}, and was to return {result}")

    _TAKES: ClassVar[dict[type[Any], Callable[[Any, Any], None]]] = {
        StepCompleted: _step,
        StepFailed: _step,
        AttemptFailed: _step,
        IntentRecorded: _take_intent,
        IntentWithdrawn: _withdraw_intent,
        WaitStarted: _start_wait,
        WaitAbandoned: _abandon_wait,
        SignalReceived: _take_signal,
        SignalKept: _keep_signal,
        SuspendTimedOut: _end_wait,
        SleepEnded: _end_wait,
        ScopeStarted: _start_scope,
        ScopeEnded: _end_scope,
        BranchStarted: _start_branch,
        BranchCompleted: _complete_branch,
        BranchFailed: _outcome,
        FanOutFailed: _outcome,
        ChildStarted: _start_child,
        CallCompleted: _end_call,
        CallFailed: _end_call,
        CompensationRegistered: _register,
        CompensationBegun: _begin_compensations,
        CancelRequested: _request_cancel,
        InstanceBlocked: _block,
        RunStarted: _run_again,
        InstanceResumed: _resume,
        InstanceCompleted: _end,
        InstanceFailed: _end,
        InstanceCancelled: _end,
    }


# The machine ---------------------------------------------------------------------------------------------------

Kept: TypeAlias = dict[int, tuple[InstanceHeader, list[InstanceRecord]]]
Action: TypeAlias = Callable[[memable.Engine], Awaitable[None]]


async def send_signal(engine: memable.Engine, sent: Sent, *, early: bool) -> Sent:
    """
    Send a signal, and note what its sender is told.
    """
    within, _, key = sent.path.rpartition("/")
    point = memable.SuspendPoint(key, int)
    try:
        await engine.signal(*sent.name, point, sent.payload, within=within or None, early="keep" if early else "reject")
        sent.told = "delivered"
    except memable.SignalRejectedError:
        sent.told = "rejected"
    except memable.SignalSupersededError:
        sent.told = "superseded"
    except memable.InstanceNotFoundError:
        sent.told = "unknown"
    return sent


def has_op(ledger: Ledger, cls: type[Any]) -> bool:
    return any(isinstance(op, cls) for op in ops_of(ledger.program).values())


@attrs.define
class Sent:
    """
    A signal, and what its sender was told.
    """

    name: Name
    path: str
    payload: int
    told: str | None = None


async def do_nothing(engine: memable.Engine) -> None:
    pass


class StructureMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.disk = SimulatedDisk()
        self.world = World()
        self.now = ORIGIN_UNIX_S
        self.cut: Cut | None = None
        self.is_sound = True
        self.kept: Kept = {}
        "What was found after the last session."
        self.base: Kept = {}
        "What of it cannot be lost: a killed process may leave behind what no power cut leaves."
        self.checked_at = self.now
        self.ledgers: dict[int, Ledger] = {}
        self.openings: list[tuple[float, bool]] = []
        self.invoked: dict[str, tuple[str, int]] = {}
        "Workflows and inputs of the instances that were started by the host, by id."
        self.told: list[tuple[str, Name]] = []
        "What the host was told to have been done, and to which instance."
        self.asked: tuple[tuple[str, ...], bool] = ((), False)
        "What is to be forgotten, and whether the instance is to run anew."
        self.may_vanish: set[Name] = set()
        "Instances that somebody has tried to delete."
        self.may_lose_children: set[Name] = set()
        "Instances that somebody has tried to let forget something."
        self.revived: set[Name] = set()
        "Instances that somebody has resumed, their parents notwithstanding."
        self.gone: set[int] = set()
        self.sent: list[Sent] = []
        self.payloads = 0

    # Sessions ------------------------------------------------------------------------------------------------

    def session(self, action: Action, weather: Weather) -> None:
        """
        Open an engine, act, let time pass, close it; then check what is kept.
        """
        self.is_sound = False
        self.now += weather.pause_s
        disk, world = self.disk, self.world
        self.openings.append((self.now, weather.is_late))
        if isinstance(weather.disturbance, Cut):
            self.cut = weather.disturbance
            disk.cut_at = len(disk.calls) + weather.disturbance.call
        is_cut_short = False
        try:
            self.run_virtual(lambda: self.open_engine(action, weather))
        except memable.StorageError:
            assert disk.is_off
        except InterruptedHostError:
            is_cut_short = True
        if disk.is_off:
            is_cut_short = True
            self.disk = self.crash()
            if isinstance(weather.disturbance, Cut) and weather.disturbance.loss != "kill":
                # What a killed process had removed may be there again, or not.
                removed = [header for number, (header, _) in self.base.items() if number not in self.kept]
                self.may_vanish.update((header.workflow, header.instance_id) for header in removed)
                self.kept = self.base
        disk.cut_at = None
        assert world.wrongs == []
        self.check(is_cut_short=is_cut_short)
        was_killed = disk.is_off and self.cut is not None and self.cut.loss == "kill"
        base = self.read(copy.deepcopy(self.disk).power_cut()) if was_killed else self.kept
        self.gone |= set(self.base) - set(base)
        self.base = base
        self.is_sound = True

    async def open_engine(self, action: Action, weather: Weather) -> None:
        workflows = self.world.workflows()
        store = memable.FileStore(DIRECTORY, disk=self.disk)
        registered = [one for name, one in workflows.items() if not (weather.is_late and name == LATE_WORKFLOW)]
        disturbance = weather.disturbance
        async with memable.open_engine(store, workflows=registered, max_parked=weather.max_parked) as engine:
            with trio.move_on_after(
                disturbance.after_s if isinstance(disturbance, Interrupt) else float("inf")
            ) as scope:
                await self.act(engine, action, workflows, weather)
            if scope.cancelled_caught:
                raise InterruptedHostError

    async def act(self, engine: memable.Engine, action: Action, workflows: dict[str, Any], weather: Weather) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(action, engine)
            await trio.sleep(weather.linger_s / 2)
            engine.register(workflows[LATE_WORKFLOW])
            await trio.sleep(weather.linger_s / 2)
        await engine.wait_all()

    def run_virtual(self, fn: Callable[[], Awaitable[Any]]) -> Any:
        """
        Run in virtual time, which goes on from where it was.
        """

        async def main() -> Any:
            _virtual_origin.set(self.now)
            try:
                with trio.fail_after(STUCK_AFTER_S):
                    return await fn()
            finally:
                self.now += trio.current_time()

        return trio.run(main, clock=MockClock(autojump_threshold=0))

    def crash(self) -> SimulatedDisk:
        """
        Return the disk as it is found after what has happened.
        """
        assert self.cut is not None
        match self.cut.loss:
            case "kill":
                return self.disk.kill()
            case "nothing":
                return self.disk.power_cut(lose_nothing)
            case "all":
                return self.disk.power_cut(lose_all)
            case seed:
                return self.disk.power_cut(random.Random(seed).randrange)

    # Checks --------------------------------------------------------------------------------------------------

    def read(self, disk: SimulatedDisk) -> Kept:
        """
        Return what the store on a copy of the disk holds. Opening it twice shows the same.
        """

        async def read_twice() -> Kept:
            kept = await read_store(disk)
            assert await read_store(disk) == kept
            return kept

        now = self.now
        kept: Kept = self.run_virtual(read_twice)
        self.now = now
        return kept

    def check(self, *, is_cut_short: bool) -> None:
        """
        Check what is kept.
        """
        kept = self.read(copy.deepcopy(self.disk))
        self.check_vanished(kept)
        self.ledgers = {number: self.fold(*found) for number, found in kept.items()}
        by_name = {(header.workflow, header.instance_id): number for number, (header, _) in kept.items()}
        assert len(by_name) == len(kept), "two instances of one id"
        self.check_told(kept, by_name)
        self.check_seen(kept, by_name)
        self.check_calls(kept)
        self.check_signals(kept, by_name)
        for number, (header, _) in kept.items():
            self.check_family(header, self.ledgers[number], by_name, kept)
            if not is_cut_short:
                self.check_rest(header, self.ledgers[number], by_name, kept)
        self.kept, self.checked_at = kept, self.now
        self.world.seen.clear()
        self.world.session_calls.clear()
        self.sent.clear()
        self.told.clear()
        self.may_vanish.clear()
        self.may_lose_children.clear()

    def check_told(self, kept: Kept, by_name: dict[Name, int]) -> None:
        for what, name in self.told:
            number = by_name.get(name)
            if what == "deleted":
                # Its id may be in use again.
                assert number not in self.kept, f"{name} was deleted"
                continue
            if number is None:
                assert WORKFLOWS[name[0]] is not None or name in self.may_vanish, f"{name} was {what}, and is gone"
                continue
            if what == "cancelled":
                assert isinstance(self.ledgers[number].ending, InstanceCancelled), f"{name} was cancelled"
            if what == "resumed" and self.asked != ((), False):
                old = len(self.kept[number][1]) if number in self.kept else 0
                resumes = [one for one in kept[number][1][old:] if isinstance(one, InstanceResumed)]
                assert self.asked in [(one.forgotten, one.anew) for one in resumes], f"{name} was resumed"

    def check_vanished(self, kept: Kept) -> None:
        for number, (header, records) in self.kept.items():
            if number in kept:
                assert kept[number][1][: len(records)] == records, "what was recorded has changed"
                continue
            name = header.workflow, header.instance_id
            retention_s = WORKFLOWS[header.workflow]
            ended_at = self.checked_at if header.completed_at is None else header.completed_at
            is_over = retention_s is not None and ended_at + retention_s <= self.now
            assert is_over or name in self.may_vanish or self.is_family_gone(header, kept), f"{name} has vanished"
        assert self.gone.isdisjoint(kept), "what was gone is there again"

    def is_family_gone(self, header: InstanceHeader, kept: Kept) -> bool:
        """
        Tell whether an instance may be gone because a parent of it is, has forgotten it, or was started once more.
        """
        while header.parent_name is not None:
            if header.parent_name in self.may_vanish | self.may_lose_children:
                return True
            if WORKFLOWS[header.parent_name[0]] is not None:
                # Its retention may have been over, and it may have been started once more, and ended again.
                return True
            if any(
                number > header.number and (one.workflow, one.instance_id) == header.parent_name
                for number, (one, _) in kept.items()
            ):
                return True
            parents = [one for one, _ in self.kept.values() if (one.workflow, one.instance_id) == header.parent_name]
            if not parents:
                return False
            (header,) = parents
        return False

    def fold(self, header: InstanceHeader, records: list[InstanceRecord]) -> Ledger:
        first = records[0]
        assert isinstance(first, InstanceStarted)
        given = json.loads(first.input.data)[0]["value"]
        ledger = Ledger((header.workflow, header.instance_id), self.world.programs[given], self.openings)
        for record in records[1:]:
            try:
                ledger.take(record)
            except (AssertionError, Incomplete, Fails, KeyError) as error:
                error.add_note(f"at {record}")
                error.add_note(f"of {ledger.name}: {ledger.program}")
                for one in records:
                    error.add_note(f"  {brief(one)}")
                raise
        return ledger

    def check_seen(self, kept: Kept, by_name: dict[Name, int]) -> None:
        """
        What a body was given is recorded.
        """
        for workflow, instance_id, path, outcome in self.world.seen:
            number = by_name.get((workflow, instance_id))
            if any(instance_id.startswith(parent_id + "/") for _, parent_id in self.may_lose_children):
                # It may have been forgotten since.
                continue
            if number is None:
                assert (workflow, instance_id) in self.may_vanish or self.was_or_may_be_gone((workflow, instance_id))
                continue
            records = kept[number][1]
            recorded = [outcome_of(one) for one in records if getattr(one, "path", None) == path]
            assert outcome in recorded, (
                f"{workflow}/{instance_id}:{path} was given {outcome}; {[brief(one) for one in records]}"
            )

    def was_or_may_be_gone(self, name: Name) -> bool:
        # A child that is forgotten runs before it is known here.
        return "/" in name[1] or WORKFLOWS[name[0]] is not None

    def check_calls(self, kept: Kept) -> None:
        """
        At most one call of a step in a session was in vain; what has an outcome is not called again.
        """
        world = self.world
        world.done.clear()
        for number, (header, records) in kept.items():
            old = len(self.kept[number][1]) if number in self.kept else 0
            ledger = self.ledgers[number]
            name = header.workflow, header.instance_id
            new = records[old:]
            resumes = sum(isinstance(one, InstanceResumed) for one in new)
            for path, op in ops_of(ledger.program).items():
                step_id = world.step_ids.get((*name, path))
                if step_id is None:
                    continue
                if path in ledger.memos:
                    world.done.add(step_id)
                if is_once(op):
                    continue
                recorded = sum(
                    isinstance(one, StepCompleted | StepFailed | AttemptFailed) and one.path == path for one in new
                )
                calls = world.session_calls.get(step_id, 0)
                assert calls <= recorded + 1 + resumes, f"{name}:{path} was called {calls} times, {recorded} recorded"
                if path in ledger.compensations and calls:
                    assert ledger.begun is not None, f"{name}:{path} compensated for nothing"

    def check_signals(self, kept: Kept, by_name: dict[Name, int]) -> None:
        """
        What was acknowledged is there, once; what was refused is nowhere.
        """
        for sent in self.sent:
            number = by_name.get(sent.name)
            if number is None:
                continue
            found = [
                one.path
                for one in kept[number][1]
                if isinstance(one, SignalReceived | SignalKept) and json.loads(one.value.data) == sent.payload
            ]
            if sent.told == "delivered":
                assert found == [sent.path], f"{sent}: {found}"
            elif sent.told is not None:
                assert not found, f"{sent}: {found}"
            else:
                assert len(found) <= 1

    def check_family(self, header: InstanceHeader, ledger: Ledger, by_name: dict[Name, int], kept: Kept) -> None:
        """
        Children of what has failed or was cancelled do not go on.
        """
        if not isinstance(ledger.ending, InstanceFailed | InstanceCancelled):
            return
        for path, workflow in ledger.children.items():
            number = by_name.get((workflow, f"{header.instance_id}/{path}"))
            if number is not None and self.ledgers[number].name not in self.revived:
                child = kept[number][0]
                assert child.status.is_terminal or child.cancel_requested, f"{child} was left running"

    def check_rest(self, header: InstanceHeader, ledger: Ledger, by_name: dict[Name, int], kept: Kept) -> None:
        """
        After a session that nothing cut short, nothing runs, nothing is overdue, and what is blocked has a reason.
        """
        name = ledger.name
        assert header.status.is_terminal or header.status in REST, f"{name} is left {header.status}"
        if header.status is MetadataStatus.BLOCKED:
            assert ledger.blocked is not None
            reason = ledger.blocked.error
            assert self.is_reason(ledger, reason.type, reason.message), f"{name} is blocked by {reason}"
        if header.status is MetadataStatus.SUSPENDED:
            assert header.wake_at is None or header.wake_at >= self.now - LATE_S, f"{name} is overdue"
            if header.key in ledger.children:
                child = by_name.get((ledger.children[header.key], f"{header.instance_id}/{header.key}"))
                assert child is not None
                assert not kept[child][0].status.is_terminal, f"{name} waits for {header.key}, which has ended"

    def is_reason(self, ledger: Ledger, error_type: str, message: str) -> bool:
        if error_type.endswith("OutcomeUnknownError"):
            return bool(ledger.intents)
        return error_type.endswith("MisuseError") and "is not registered" in message and self.openings[-1][1]

    # Rules ---------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.invoked) < MAX_INSTANCES)
    @rule(workflow=st.sampled_from(["w", "w", LATE_WORKFLOW]), program=programs, weather=weathers)
    def start(self, workflow: str, program: Program, weather: Weather) -> None:
        instance_id = f"i{len(self.invoked)}"
        given = self.world.number(program)
        self.invoked[instance_id] = workflow, given

        async def action(engine: memable.Engine) -> None:
            while True:
                try:
                    await engine.invoke(workflow, given, instance_id=instance_id)
                    break
                except memable.WorkflowNotFoundError:
                    assert weather.is_late
                    await trio.sleep(1)
            self.told.append(("started", (workflow, instance_id)))

        self.session(action, weather)

    @precondition(lambda self: self.invoked)
    @rule(index=st.integers(0, 3), weather=weathers)
    def start_again(self, index: int, weather: Weather) -> None:
        """
        Start what was started before: nothing happens, unless it was removed.
        """
        instance_id, (workflow, given) = list(self.invoked.items())[index % len(self.invoked)]

        async def action(engine: memable.Engine) -> None:
            try:
                await engine.invoke(workflow, given, instance_id=instance_id)
            except memable.WorkflowNotFoundError:
                assert weather.is_late
            else:
                self.told.append(("started", (workflow, instance_id)))

        self.session(action, weather)

    @precondition(lambda self: self.kept)
    @rule(weather=weathers)
    def reopen(self, weather: Weather) -> None:
        self.session(do_nothing, weather)

    @precondition(lambda self: any(has_op(ledger, Suspend) for ledger in self.ledgers.values()))
    @rule(
        index=st.integers(0, 3),
        point=st.integers(0, 5),
        count=st.sampled_from([1, 2, 3]),
        early=st.booleans(),
        weather=weathers,
    )
    def signal(self, index: int, point: int, count: int, early: bool, weather: Weather) -> None:
        ledger = self.choose(index, Suspend)
        paths = [path for path, op in ops_of(ledger.program).items() if isinstance(op, Suspend)]
        path = paths[point % len(paths)]

        async def action(engine: memable.Engine) -> None:
            await trio.sleep(weather.action_s)
            async with trio.open_nursery() as nursery:
                for number in range(count):
                    # Two at once, and one that comes later.
                    nursery.start_soon(self.send, engine, ledger.name, path, early, number // 2)
            winners = [sent for sent in self.sent if sent.told == "delivered"]
            assert len(winners) <= 1, f"several signals won: {winners}"

        self.session(action, weather)

    @precondition(lambda self: self.kept)
    @rule(index=st.integers(0, 3), weather=weathers)
    def cancel(self, index: int, weather: Weather) -> None:
        name = self.choose(index).name

        async def action(engine: memable.Engine) -> None:
            await trio.sleep(weather.action_s)
            with suppress(memable.InstanceNotFoundError):
                if await engine.cancel(*name, reason="why"):
                    self.told.append(("cancelled", name))

        self.session(action, weather)

    @precondition(lambda self: self.kept)
    @rule(
        index=st.integers(0, 3),
        forget=st.lists(st.integers(0, 20), max_size=2),
        anew=st.sampled_from([False, False, True]),
        weather=weathers,
    )
    def resume(self, index: int, forget: list[int], anew: bool, weather: Weather) -> None:
        ledger = self.choose(index)
        known = ledger.known_paths()
        paths = tuple(dict.fromkeys(known[one % len(known)] for one in forget)) if known else ()
        if ledger.compensations and not anew:
            # What runs again may fail before it registers them all, and then the instance stays Blocked.
            paths = ()
        self.asked = paths, anew
        if paths or anew:
            self.may_lose_children.add(ledger.name)

        async def action(engine: memable.Engine) -> None:
            await trio.sleep(weather.action_s)
            self.expect_resume(ledger)
            try:
                await engine.resume(*ledger.name, forget=paths, anew=anew)
            except memable.InstanceBusyError:
                assert paths or anew
            except memable.InstanceCompensatedError:
                assert not anew
            except memable.UnknownKeyError:
                # The parent of the instance has forgotten it, or the fan-out has failed again.
                assert weather.action_s or weather.pause_s or ledger.ending is None
            except memable.InstanceNotFoundError:
                assert WORKFLOWS[ledger.name[0]] is not None
            except memable.WorkflowNotFoundError:
                assert weather.is_late
            else:
                self.told.append(("resumed", ledger.name))

        self.session(action, weather)

    @precondition(lambda self: any(ledger.intents for ledger in self.ledgers.values()))
    @rule(index=st.integers(0, 3), answer=st.sampled_from(["value", "error", "wrong"]), weather=weathers)
    def settle(self, index: int, answer: str, weather: Weather) -> None:
        unknown = [(ledger, path) for ledger in self.ledgers.values() for path in sorted(ledger.intents)]
        ledger, path = unknown[index % len(unknown)]

        async def action(engine: memable.Engine) -> None:
            await engine.wait_all()
            with suppress(memable.SignalRejectedError, memable.InstanceNotFoundError):
                await self.answer(engine, ledger, path, answer)

        self.session(action, weather)

    @precondition(lambda self: self.kept)
    @rule(index=st.integers(0, 3), weather=weathers)
    def delete(self, index: int, weather: Weather) -> None:
        name = self.choose(index).name
        self.may_vanish.add(name)

        async def action(engine: memable.Engine) -> None:
            with suppress(memable.InstanceBusyError, memable.InstanceNotFoundError):
                await engine.delete(*name)
                self.told.append(("deleted", name))

        self.session(action, weather)

    # Helpers of the rules ------------------------------------------------------------------------------------

    def choose(self, index: int, cls: type[Any] = object) -> Ledger:
        """
        Choose an instance whose program has such an operation, one that has not ended rather than another.
        """
        found = [one for one in self.ledgers.values() if has_op(one, cls)]
        ledgers = sorted(found, key=lambda ledger: ledger.ending is not None)
        return ledgers[index % len(ledgers)]

    async def send(self, engine: memable.Engine, name: Name, path: str, early: bool, after_s: float = 0.0) -> None:
        """
        Send a signal of its own payload, and note what becomes of it.
        """
        await trio.sleep(after_s)
        self.payloads += 1
        sent = Sent(name, path, self.payloads)
        self.sent.append(sent)
        await send_signal(engine, sent, early=early)
        if sent.told == "unknown":
            assert WORKFLOWS[name[0]] is not None or "/" in name[1] or name in self.may_vanish

    async def help_all(self, engine: memable.Engine) -> None:
        """
        Send signals to all suspend points, answer what is blocked, and let time pass.
        """
        for ledger in list(self.ledgers.values()):
            if ledger.ending is None:
                for path, op in ops_of(ledger.program).items():
                    if isinstance(op, Suspend) and path not in ledger.memos and path not in ledger.kept:
                        await self.send(engine, ledger.name, path, True)
                for path in sorted(ledger.intents):
                    # It may run again by itself, and ask the world.
                    with suppress(memable.SignalRejectedError):
                        await self.answer(engine, ledger, path)
        await trio.sleep(2000)

    async def answer(self, engine: memable.Engine, ledger: Ledger, path: str, kind: str = "value") -> None:
        """
        Answer a step whose outcome is unknown, as the world knows it.
        """
        effect = self.world.happened.get(self.world.step_ids[(*ledger.name, path)])
        if kind == "wrong":
            try:
                await engine.settle(*ledger.name, path, value=1)
            except memable.TypeMismatchError:
                return
            raise AssertionError("an answer of a wrong type was taken")
        if effect is not None:
            await engine.settle(*ledger.name, path, value=effect)
            self.world.seen.append((*ledger.name, path, effect))
        elif kind == "error":
            await engine.settle(*ledger.name, path, error=ConnectionError("answered"))
            self.world.seen.append((*ledger.name, path, ["failed", "answered"]))
        else:
            await engine.settle(*ledger.name, path, rerun=True)

    def expect_resume(self, ledger: Ledger) -> None:
        """
        Let steps run again that may have failed for the last time, and children that may go on without their parents.
        """
        self.revived.add(ledger.name)
        for one in self.ledgers.values():
            for path, memo in one.memos.items():
                if isinstance(memo, StepFailed):
                    self.world.done.discard(self.world.step_ids[(*one.name, path)])

    def teardown(self) -> None:
        """
        Bring everything to its end, unless something is wrong already.
        """
        if not self.is_sound:
            return
        for _ in range(MAX_ROUNDS):
            self.session(self.help_all, FAIR)
            if all(ledger.ending is not None for ledger in self.ledgers.values()):
                break
        else:
            raise AssertionError("it does not come to its end")
        self.session(do_nothing, Weather(linger_s=2 * RETENTION_S))
        for header, _ in self.kept.values():
            assert WORKFLOWS[header.workflow] is None, f"{header} was not removed"


async def read_store(disk: SimulatedDisk) -> Kept:
    async with memable.FileStore(DIRECTORY, disk=disk).open(current_clock()) as store:
        return {
            header.number: (copy.copy(header), list(await store.load(header.number)))
            for header in await store.headers()
        }


def outcome_of(record: InstanceRecord) -> Any:
    match record:
        case StepCompleted():
            return json.loads(record.value.data)
        case StepFailed():
            return ["failed", record.error.message]
        case SignalReceived() | SignalKept():
            return ["signal", json.loads(record.value.data)]
        case _:
            return None


def brief(record: InstanceRecord) -> str:
    """
    Return a record in short.
    """
    what = type(record).__name__
    at = record.at - ORIGIN_UNIX_S
    path = getattr(record, "path", None)
    rest = [
        f"{field}={value - ORIGIN_UNIX_S:g}"
        if field in ("deadline", "wake_at", "next_attempt_at")
        else f"{field}={value}"
        for field in ("deadline", "wake_at", "next_attempt_at", "attempt", "expired", "cleared", "forgotten", "anew")
        if (value := getattr(record, field, None)) not in (None, (), False)
    ]
    return f"{at:g} {what} {path or ''} {' '.join(rest)}"


# Parking -------------------------------------------------------------------------------------------------------

Timed: TypeAlias = list[tuple[int, int, int]]
"Signals: seconds after the one before, which instance, and which of its suspend points."


async def play(stories: list[Program], signals: Timed, max_parked: int) -> dict[str, Any]:
    """
    Start instances, send signals, and return all that can be seen of it from outside.
    """
    world = World(is_spread=True)
    workflows = world.workflows()
    seen: dict[str, Any] = {}
    store = memable.InMemoryStore()
    _virtual_origin.set(ORIGIN_UNIX_S)
    async with memable.open_engine(store, workflows=workflows.values(), max_parked=max_parked) as engine:
        for index, program in enumerate(stories):
            await engine.invoke("w", world.number(program), instance_id=f"i{index}")
        for payload, (after_s, index, point) in enumerate(signals):
            await trio.sleep(after_s + 0.0625)
            paths = [path for path, op in ops_of(stories[index % len(stories)]).items() if isinstance(op, Suspend)]
            if paths:
                name = "w", f"i{index % len(stories)}"
                sent = await send_signal(engine, Sent(name, paths[point % len(paths)], payload), early=payload % 2 == 0)
                seen[f"signal {payload}"] = sent.told
        await trio.sleep(400)
        for one in await engine.list_instances():
            state = await engine.state(one.workflow_name, one.instance_id)
            error = getattr(state, "error", None)
            seen[f"{one.workflow_name}/{one.instance_id}"] = [
                type(state).__name__,
                None if error is None else error.type,
            ]
            if isinstance(state, memable.Completed):
                invocation = await engine.get(one.workflow_name, one.instance_id)
                seen[f"{one.workflow_name}/{one.instance_id}"].append(await invocation.result())
    assert world.wrongs == []
    return seen | dict(world.called)


@given(
    stories=st.lists(programs.map(without_raises), min_size=1, max_size=3),
    signals=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 2), st.integers(0, 3)), max_size=5),
)
def test_how_many_runs_are_parked_changes_nothing(stories: list[Program], signals: Timed) -> None:
    seen = [
        trio.run(play, stories, signals, max_parked, clock=MockClock(autojump_threshold=0))
        for max_parked in (1000, 1, 0)
    ]
    assert seen[0] == seen[1] == seen[2]


TestStructureMachine = StructureMachine.TestCase
TestStructureMachine.settings = settings(stateful_step_count=STEPS)
