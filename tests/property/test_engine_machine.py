"""
Whole engines against a plain model: started, crashed, resumed, cancelled and given new code, in any order.

Each rule is one session: an engine is opened over the simulated disk, does one thing, brings everything to its end and
is closed; or it is cut short, by the death of its process, by a power cut, or by an exception in the host. Workflows
are programs, which are data: lists of operations. Between sessions the machine reads the journals, and compares them
with what the model has seen from outside.
"""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from trio.testing import MockClock

import memable
from memable import MetadataStatus
from memable._clock import _virtual_origin, current_clock
from memable._header import InstanceHeader
from memable._journal import Journal, Memo, journal_of
from memable._records import AttemptFailed, InstanceCompleted, InstanceRecord, InstanceResumed, StepCompleted
from memable._testing._simulated_disk import SimulatedDisk, lose_all, lose_nothing
from running import ending_of

DIRECTORY = Path("/store")
#: So that a story has several files of the log.
SEGMENT_BYTES = 2_000

#: The same in every run, so that a failure can be found again.
ORIGIN_UNIX_S = 1_700_000_000.0
#: An engine that is not done by then, in virtual seconds, is stuck.
STUCK_AFTER_S = 1e5

MAX_INSTANCES = 6

#: Not ended: it runs again, now or when its backoff is over.
PENDING = frozenset((MetadataStatus.RUNNING, MetadataStatus.SUSPENDED))
UNFINISHED = PENDING | {MetadataStatus.BLOCKED}

#: How often each key's step is retried. The same in every program: what is recorded of attempts outlives a deployment.
RETRIES = {"a": 0, "b": 0, "c": 2, "d": 2}

Outcome: TypeAlias = tuple[str, ...]
"How a step ended: the word value or failure, and what it was."


# Programs ------------------------------------------------------------------------------------------------------


@attrs.frozen
class Step:
    key: str
    failures: int = 0
    "It fails so often before it returns; never more often than it is retried."


@attrs.frozen
class Broken:
    key: str
    "It fails for good, and the body goes on."


@attrs.frozen
class Fatal:
    key: str
    "It fails for good, and that leaves the body."


@attrs.frozen
class Together:
    ops: tuple[Step | Broken, ...]
    "Run in a nursery."


@attrs.frozen
class Status:
    message: str


@attrs.frozen
class Raise:
    """
    An exception of the body's own.
    """


Op: TypeAlias = Step | Broken | Fatal | Together | Status | Raise
Program: TypeAlias = tuple[Op, ...]

keys = st.sampled_from(sorted(RETRIES))
steps = st.builds(lambda key, failures: Step(key, min(failures, RETRIES[key])), keys, st.integers(0, 2))
ops: st.SearchStrategy[Op] = st.one_of(
    steps,
    steps,
    st.builds(Broken, keys),
    st.builds(Fatal, keys),
    st.builds(Together, st.lists(steps | st.builds(Broken, keys), min_size=2, max_size=3).map(tuple)),
    st.builds(Status, st.sampled_from(["one", "two"])),
    st.builds(Raise),
)


def without_repeats(program: list[Op]) -> Program:
    """
    Drop each use of a key but the first.
    """
    used: set[str] = set()
    kept: list[Op] = []

    def is_new(key: str) -> bool:
        is_first = key not in used
        used.add(key)
        return is_first

    for op in program:
        match op:
            case Together(inner):
                kept.append(Together(tuple(one for one in inner if is_new(one.key))))
            case Step(key) | Broken(key) | Fatal(key):
                if is_new(key):
                    kept.append(op)
            case _:
                kept.append(op)
    return tuple(kept)


programs = st.lists(ops, min_size=1, max_size=5).map(without_repeats)


# How a session ends --------------------------------------------------------------------------------------------


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


losses = st.sampled_from(["kill", "nothing", "all"]) | st.integers(0, 1000)
cuts = st.builds(Cut, st.integers(0, 70), losses)
interrupts = st.builds(Interrupt, st.integers(0, 4).map(lambda seconds: seconds + 0.5))
disturbances: st.SearchStrategy[Cut | Interrupt | None] = st.none() | cuts | interrupts


class InterruptedHostError(Exception):
    pass


# The model -----------------------------------------------------------------------------------------------------


@attrs.define
class Instance:
    """
    What is known of one instance without asking the engine how it works.
    """

    workflow: str
    instance_id: str
    given: int
    "Its input."
    status: MetadataStatus = MetadataStatus.RUNNING
    message: str | None = None
    result: list[list[str]] | None = None
    memos: dict[str, Outcome] = attrs.field(factory=dict)
    "Outcomes that were acknowledged, or seen in the journal: they are for ever, until forgotten."
    attempts: set[str] = attrs.field(factory=set)
    "Keys with failed attempts and no outcome yet."
    failing: tuple[str, ...] = ()
    "Keys of the failures that left the body."
    cancel_requested: bool = False
    resumes: int = 0
    made: dict[str, Outcome] = attrs.field(factory=dict)
    "What the last call of each step made."
    calls: dict[str, int] = attrs.field(factory=dict)
    "How often each step was called since its key was first used, forgotten or cleared."
    total_calls: dict[str, int] = attrs.field(factory=dict)
    max_calls: dict[str, int] = attrs.field(factory=dict)
    "How often each step may have been called by the end of this session, where that is not its retries and one."
    failed_attempts: dict[str, int] = attrs.field(factory=dict)
    "How many failed attempts are recorded of each step, for good."
    old_attempts: dict[str, int] = attrs.field(factory=dict)
    "How many of them do not count any more."
    step_ids: dict[str, str] = attrs.field(factory=dict)
    "Of the current generation of each key."

    def drop(self, key: str, *, forget: bool) -> None:
        """
        Let a step run again: in a new generation, or with a new budget only.
        """
        self.memos.pop(key, None)
        self.made.pop(key, None)
        self.attempts.discard(key)
        self.calls.pop(key, None)
        self.max_calls.pop(key, None)
        self.old_attempts[key] = self.failed_attempts.get(key, 0)
        if forget:
            self.step_ids.pop(key, None)

    def resume(self, forget: tuple[str, ...], *, anew: bool) -> None:
        """
        Do what resuming does before anything runs.
        """
        for key in self.failing:
            if self.memos.get(key, ("",))[0] == "failure":
                self.drop(key, forget=False)
        for key in RETRIES if anew else forget:
            self.drop(key, forget=True)
        if anew:
            self.message = None
        self.status = MetadataStatus.RUNNING
        self.failing = ()
        self.cancel_requested = False
        self.resumes += 1


@attrs.frozen
class Prediction:
    """
    How an instance ends that nothing disturbs.
    """

    status: MetadataStatus
    message: str | None
    failing: tuple[str, ...] = ()
    "Of these at least one."


def predict(instance: Instance, program: Program) -> Prediction:
    """
    Return how an instance ends that runs now.
    """
    if instance.cancel_requested:
        return Prediction(MetadataStatus.CANCELLED, instance.message)
    message = instance.message
    claimed: set[str] = set()
    is_replaying = True
    for op in program:
        if isinstance(op, Status):
            message = op.message
            continue
        if isinstance(op, Raise):
            is_behind = is_replaying and not claimed.issuperset({*instance.memos, *_pending(instance)})
            status = MetadataStatus.BLOCKED if is_behind else MetadataStatus.FAILED
            return Prediction(status, message)
        together = op.ops if isinstance(op, Together) else (op,)
        claimed.update(one.key for one in together)
        is_replaying = is_replaying and all(one.key in instance.memos for one in together)
        failing = tuple(one.key for one in together if not isinstance(one, Broken) and _fails(instance, one))
        if failing:
            return Prediction(MetadataStatus.FAILED, message, failing)
    return Prediction(MetadataStatus.COMPLETED, message)


def _pending(instance: Instance) -> set[str]:
    """Return the keys that have failed attempts on record, and no outcome."""
    attempts = instance.failed_attempts.items()
    return {key for key, count in attempts if count > instance.old_attempts.get(key, 0) and key not in instance.memos}


def _fails(instance: Instance, op: Step | Broken | Fatal) -> bool:
    memo = instance.memos.get(op.key)
    return not isinstance(op, Step) if memo is None else memo[0] == "failure"


def expected_result(instance: Instance, program: Program) -> list[list[str]]:
    """
    Return what the body returns, given that it has all its outcomes.
    """
    flat = [one for op in program for one in (op.ops if isinstance(op, Together) else (op,))]
    return [[one.key, *instance.memos[one.key]] for one in flat if isinstance(one, Step | Broken | Fatal)]


# The world: what the programs do, as seen from outside ---------------------------------------------------------


@attrs.define
class World:
    """
    Runs programs, keeps what the model knows of their instances, and notes what must not happen.
    """

    programs: dict[str, Program] = attrs.field(factory=lambda: {"v": (), "w": ()})
    instances: dict[str, Instance] = attrs.field(factory=dict)
    all_step_ids: dict[str, str] = attrs.field(factory=dict)
    "Every step id there ever was, and what it stood for."
    wrongs: list[str] = attrs.field(factory=list)

    def workflows(self) -> list[memable.Workflow[[int], list[list[str]]]]:
        return [self._workflow(name) for name in self.programs]

    def _workflow(self, name: str) -> memable.Workflow[[int], list[list[str]]]:
        @memable.workflow(name=name)
        async def body(ctx: memable.Context, given: int) -> list[list[str]]:
            return await self._perform(ctx, self.programs[name])

        return body

    async def _perform(self, ctx: memable.Context, program: Program) -> list[list[str]]:
        outcomes: list[list[str]] = []
        for op in program:
            match op:
                case Status(message):
                    ctx.set_status(message)
                case Raise():
                    raise LookupError("of the body's own")
                case Together(inner):
                    slots: list[list[str]] = [[] for _ in inner]
                    async with trio.open_nursery() as nursery:
                        for one, slot in zip(inner, slots, strict=True):
                            nursery.start_soon(self._step, ctx, one, slot)
                    outcomes += slots
                case _:
                    outcomes.append([])
                    await self._step(ctx, op, outcomes[-1])
        return outcomes

    async def _step(self, ctx: memable.Context, op: Step | Broken | Fatal, slot: list[str]) -> None:
        instance, key = self.instances[ctx.instance_id], op.key
        self._see_step_id(instance, key, ctx.step_id(key))
        retry = memable.RetryPolicy.fixed(RETRIES[key], 60) if RETRIES[key] else None
        failure: memable.StepFailedError | None = None
        outcome: Outcome
        try:
            outcome = ("value", await ctx.step(key, self._call, instance, op, retry=retry))
        except memable.StepFailedError as error:
            failure = error
            outcome = ("failure", error.error.message)
            if error.attempts != RETRIES[key] + 1:
                self._wrong(instance, key, f"failed after {error.attempts} attempts")
        self._acknowledge(instance, key, outcome)
        slot[:] = [key, *outcome]
        if failure is not None and not isinstance(op, Broken):
            raise failure

    async def _call(self, instance: Instance, op: Step | Broken | Fatal) -> str:
        key = op.key
        if key in instance.memos:
            self._wrong(instance, key, "ran again though it has an outcome")
        calls = instance.calls[key] = instance.calls.get(key, 0) + 1
        instance.total_calls[key] = instance.total_calls.get(key, 0) + 1
        if calls > instance.max_calls.get(key, RETRIES[key] + 1):
            self._wrong(instance, key, f"was called {calls} times")
        await trio.sleep(1)
        made = f"{instance.instance_id} {key} {instance.total_calls[key]}"
        if not isinstance(op, Step) or calls <= op.failures:
            instance.made[key] = ("failure", made)
            raise ConnectionError(made)
        instance.made[key] = ("value", made)
        return made

    def _acknowledge(self, instance: Instance, key: str, outcome: Outcome) -> None:
        if outcome != instance.memos.setdefault(key, instance.made.get(key, ())):
            self._wrong(instance, key, f"was {instance.memos[key]}, and then {outcome}")

    def _see_step_id(self, instance: Instance, key: str, step_id: str) -> None:
        name = f"{instance.workflow}/{instance.instance_id}/{key}"
        if key not in instance.step_ids:
            if step_id in self.all_step_ids:
                self._wrong(instance, key, f"has the step id of {self.all_step_ids[step_id]}")
            self.all_step_ids[step_id] = name
            instance.step_ids[key] = step_id
        elif instance.step_ids[key] != step_id:
            self._wrong(instance, key, "has got another step id")

    def _wrong(self, instance: Instance, key: str, what: str) -> None:
        self.wrongs.append(f"{instance.workflow}/{instance.instance_id}/{key} {what}")


# The machine ---------------------------------------------------------------------------------------------------

Kept: TypeAlias = dict[str, tuple[InstanceHeader, list[InstanceRecord]]]
Action: TypeAlias = Callable[[memable.Engine], Awaitable[None]]


async def do_nothing(engine: memable.Engine) -> None:
    pass


async def bring_to_end(engine: memable.Engine) -> None:
    for metadata in await engine.list_instances():
        await ending_of(await engine.get(metadata.workflow_name, metadata.instance_id))


def run_virtual(fn: Callable[[], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        _virtual_origin.set(ORIGIN_UNIX_S)
        with trio.fail_after(STUCK_AFTER_S):
            return await fn()

    return trio.run(main, clock=MockClock(autojump_threshold=0))


class EngineMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.disk = SimulatedDisk()
        self.world = World()
        self.cut: Cut | None = None
        self.is_brought_to_end = True
        self.started = 0
        self.told: list[str] = []
        "What the engine told the host in this session."
        self.predictions: dict[str, Prediction] = {}
        "How each instance that runs in this session is to end."

    # Sessions ------------------------------------------------------------------------------------------------

    def session(
        self, action: Action, disturbance: Cut | Interrupt | None = None, *, resume_on_start: bool = True
    ) -> bool:
        """
        Open an engine, act, bring everything to its end and close it; return whether that was cut short.

        With *resume_on_start* off, what is unfinished stays so, unless a backoff is just over.
        """
        self.told.clear()
        world, disk = self.world, self.disk
        self.predictions = {
            instance.instance_id: predict(instance, world.programs[instance.workflow])
            for instance in world.instances.values()
            if instance.status in (UNFINISHED if resume_on_start else {MetadataStatus.SUSPENDED})
        }
        if isinstance(disturbance, Cut):
            self.cut_soon(disturbance)

        async def main() -> None:
            store = memable.FileStore(DIRECTORY, disk=disk, segment_bytes=SEGMENT_BYTES)
            settings = {"workflows": world.workflows(), "resume_on_start": resume_on_start}
            async with memable.open_engine(store, **settings) as engine:
                after_s = disturbance.after_s if isinstance(disturbance, Interrupt) else math.inf
                with trio.move_on_after(after_s) as scope:
                    await action(engine)
                    if resume_on_start:
                        await bring_to_end(engine)
                if scope.cancelled_caught:
                    raise InterruptedHostError

        is_cut_short = False
        try:
            run_virtual(main)
        except memable.StorageError:
            assert disk.is_off
        except InterruptedHostError:
            is_cut_short = True
        if disk.is_off:
            is_cut_short = True
            self.disk = self.crash()
        disk.cut_at = None
        assert world.wrongs == []
        self.is_brought_to_end = resume_on_start and not is_cut_short
        return is_cut_short

    def cut_soon(self, cut: Cut) -> None:
        """
        Let it happen from now on.
        """
        self.cut = cut
        self.disk.cut_at = len(self.disk.calls) + cut.call

    def crash(self) -> SimulatedDisk:
        """
        Return the disk as it is found after what has happened.
        """
        assert self.cut is not None
        match self.cut.loss:
            case "kill":
                # The model takes what it finds for known, so the system is to have written all of it by the next cut.
                # A cut that comes before is the business of ``soak``.
                return self.disk.kill().power_cut(lose_nothing)
            case "nothing":
                return self.disk.power_cut(lose_nothing)
            case "all":
                return self.disk.power_cut(lose_all)
            case seed:
                return self.disk.power_cut(random.Random(seed).randrange)

    def kept(self) -> Kept:
        """
        Return what the store holds, as found on a copy of the disk. Opening it twice shows the same.
        """
        disk = self.disk.copy()
        kept: Kept = run_virtual(lambda: read_store(disk))
        assert run_virtual(lambda: read_store(disk)) == kept
        return kept

    def settle(self, *, is_cut_short: bool) -> None:
        """
        Compare what is kept with the model, which takes over what was not known to it yet.
        """
        kept = self.kept()
        assert set(kept) <= set(self.world.instances)
        for instance_id, instance in list(self.world.instances.items()):
            if instance_id not in kept:
                # It was not started; nobody was told that it was, and nothing of it ran.
                assert is_cut_short
                assert f"started {instance_id}" not in self.told
                assert not instance.total_calls
                del self.world.instances[instance_id]
                continue
            header, records = kept[instance_id]
            self.settle_instance(instance, header, records, is_cut_short=is_cut_short)

    def settle_instance(
        self, instance: Instance, header: InstanceHeader, records: list[InstanceRecord], *, is_cut_short: bool
    ) -> None:
        journal = journal_of(records)
        # What was acknowledged is there, and what else is there was really made.
        for key, memo in journal.memos.items():
            assert outcome_of(memo) == instance.memos.setdefault(key, instance.made.get(key, ()))
        assert set(journal.memos) == set(instance.memos)
        for key, retries in RETRIES.items():
            # A call whose outcome was not recorded was in vain; a failed attempt that was recorded is not made again.
            failed = sum(isinstance(one, AttemptFailed) and one.path == key for one in records)
            instance.failed_attempts[key] = failed
            left = retries + 1 - (failed - instance.old_attempts.get(key, 0))
            instance.max_calls[key] = instance.calls.get(key, 0) + left
        prediction = self.predictions.get(instance.instance_id)
        if prediction is None:
            assert header.status == instance.status
            assert (header.message, result_of(journal)) == (instance.message, instance.result)
            return
        if header.status is MetadataStatus.RUNNING:
            assert is_cut_short
        elif header.status is MetadataStatus.SUSPENDED:
            assert not self.is_brought_to_end
            assert journal.attempts
        else:
            assert header.status in {prediction.status, instance.status if is_cut_short else None}
        ended = journal.ending or journal.blocked
        instance.failing = () if isinstance(ended, InstanceCompleted | None) else ended.failed_paths
        if header.status is MetadataStatus.CANCELLED:
            # A body that was just failing when it was cancelled: its failures are noted.
            assert all(instance.memos[key][0] == "failure" for key in instance.failing)
        elif header.status == prediction.status:
            assert header.message in {prediction.message, instance.message if is_cut_short else prediction.message}
            assert set(instance.failing) <= set(prediction.failing)
            assert bool(instance.failing) == bool(prediction.failing)
        instance.result = result_of(journal)
        if header.status is MetadataStatus.COMPLETED:
            assert instance.result == expected_result(instance, self.world.programs[instance.workflow])
        instance.status, instance.message = header.status, header.message
        instance.attempts = set(journal.attempts)
        instance.cancel_requested = header.status in PENDING and journal.cancel_requested is not None

    def settle_undisturbed(self) -> None:
        """
        Bring everything to its end, so that the model knows all.
        """
        if any(instance.status in UNFINISHED for instance in self.world.instances.values()):
            assert not self.session(do_nothing)
            self.settle(is_cut_short=False)

    def choose(self, index: int) -> Instance:
        instances = list(self.world.instances.values())
        return instances[index % len(instances)]

    # Rules ---------------------------------------------------------------------------------------------------

    @rule(workflow=st.sampled_from(["v", "w"]), program=programs)
    def deploy(self, workflow: str, program: Program) -> None:
        """
        New code, for old instances as well.
        """
        self.world.programs[workflow] = program

    @precondition(lambda self: self.started < MAX_INSTANCES)
    @rule(workflow=st.sampled_from(["v", "w"]), program=programs, given=st.integers(0, 2), disturbance=disturbances)
    def start(self, workflow: str, program: Program, given: int, disturbance: Cut | Interrupt | None) -> None:
        """
        Deploy a program, and start an instance of it.
        """
        self.world.programs[workflow] = program
        instance = self.new_instance(workflow, given)

        async def action(engine: memable.Engine) -> None:
            await engine.invoke(workflow, given, instance_id=instance.instance_id)
            self.told.append(f"started {instance.instance_id}")

        self.settle(is_cut_short=self.session(action, disturbance))

    @precondition(lambda self: self.started < MAX_INSTANCES)
    @rule(
        workflow=st.sampled_from(["v", "w"]),
        program=programs,
        after_s=st.integers(0, 4),
        cut=st.none() | st.builds(Cut, st.integers(0, 12), losses),
    )
    def start_and_cancel(self, workflow: str, program: Program, after_s: int, cut: Cut | None) -> None:
        """
        Start an instance, and cancel it while it runs.
        """
        self.world.programs[workflow] = program
        instance = self.new_instance(workflow, 0)

        async def action(engine: memable.Engine) -> None:
            await engine.invoke(workflow, 0, instance_id=instance.instance_id)
            self.told.append(f"started {instance.instance_id}")
            await trio.sleep(after_s + 0.5)
            if cut is not None:
                self.cut_soon(cut)
            self.told.append(f"cancelled {await engine.cancel(workflow, instance.instance_id)}")

        is_cut_short = self.session(action)
        self.expect_cancelled(instance, is_cut_short=is_cut_short)
        self.settle(is_cut_short=is_cut_short)

    @precondition(lambda self: self.world.instances)
    @rule(index=st.integers(0, MAX_INSTANCES), disturbance=st.none() | cuts, resume_on_start=st.booleans())
    def cancel(self, index: int, disturbance: Cut | None, resume_on_start: bool) -> None:
        """
        Cancel an instance that was left running by a crash, or is blocked, or has ended.
        """
        instance = self.choose(index)

        async def action(engine: memable.Engine) -> None:
            done = await engine.cancel(instance.workflow, instance.instance_id)
            self.told.append(f"cancelled {done}")
            if instance.status.is_terminal:
                assert not done

        is_cut_short = self.session(action, disturbance, resume_on_start=resume_on_start)
        if not instance.status.is_terminal:
            self.expect_cancelled(instance, is_cut_short=is_cut_short)
        self.settle(is_cut_short=is_cut_short)

    @precondition(lambda self: self.world.instances)
    @rule(
        index=st.integers(0, MAX_INSTANCES),
        forget=st.lists(keys, max_size=2, unique=True).map(tuple),
        anew=st.sampled_from([False, False, True]),
        disturbance=disturbances,
    )
    def resume(self, index: int, forget: tuple[str, ...], anew: bool, disturbance: Cut | Interrupt | None) -> None:
        """
        Run an instance again that has ended or is blocked, without some of its memos.
        """
        self.settle_undisturbed()
        self.run_again(self.choose(index), forget, disturbance, anew=anew)

    @precondition(lambda self: self.world.instances)
    @rule(index=st.integers(0, MAX_INSTANCES), is_all=st.booleans(), disturbance=disturbances)
    def forget(self, index: int, is_all: bool, disturbance: Cut | Interrupt | None) -> None:
        """
        Run an instance again without the first of its memos, or without any.
        """
        self.settle_undisturbed()
        instance = self.choose(index)
        known = sorted({*instance.memos, *instance.attempts})
        self.run_again(instance, tuple(known if is_all else known[:1]), disturbance)

    @precondition(lambda self: self.world.instances)
    @rule(index=st.integers(0, MAX_INSTANCES), program=programs, disturbance=disturbances)
    def deploy_and_resume(self, index: int, program: Program, disturbance: Cut | Interrupt | None) -> None:
        """
        Run an instance again over new code.
        """
        instance = self.choose(index)
        self.world.programs[instance.workflow] = program
        self.settle_undisturbed()
        self.run_again(instance, (), disturbance)

    @precondition(lambda self: self.world.instances)
    @rule(index=st.integers(0, MAX_INSTANCES), is_same=st.booleans(), disturbance=disturbances)
    def start_again(self, index: int, is_same: bool, disturbance: Cut | Interrupt | None) -> None:
        """
        Start an instance that exists: the same input finds it, another one is refused, and neither starts anything.
        """
        instance = self.choose(index)
        given = instance.given if is_same else instance.given + 1

        async def action(engine: memable.Engine) -> None:
            try:
                invocation = await engine.invoke(instance.workflow, given, instance_id=instance.instance_id)
            except memable.InstanceConflictError:
                assert not is_same
                return
            assert is_same
            if instance.status is MetadataStatus.COMPLETED:
                assert await invocation.result() == instance.result

        self.settle(is_cut_short=self.session(action, disturbance))

    @rule(disturbance=disturbances, resume_on_start=st.booleans())
    def reopen(self, disturbance: Cut | Interrupt | None, resume_on_start: bool) -> None:
        """
        Open an engine, which continues what is unfinished if it may.
        """
        self.settle(is_cut_short=self.session(do_nothing, disturbance, resume_on_start=resume_on_start))

    # Helpers of the rules ------------------------------------------------------------------------------------

    def new_instance(self, workflow: str, given: int) -> Instance:
        instance = Instance(workflow, f"i{self.started}", given)
        self.started += 1
        self.world.instances[instance.instance_id] = instance
        return instance

    def run_again(
        self,
        instance: Instance,
        forget: tuple[str, ...],
        disturbance: Cut | Interrupt | None,
        *,
        anew: bool = False,
    ) -> None:
        """
        Resume an instance that does not run.
        """
        before = copy.deepcopy(instance)
        unresumed: list[Prediction | None] = []
        unknown = set(forget) - set(instance.memos) - instance.attempts
        is_nothing = instance.status is MetadataStatus.COMPLETED and not forget and not anew

        async def action(engine: memable.Engine) -> None:
            await bring_to_end(engine)
            if not (unknown or is_nothing):
                instance.resume(forget, anew=anew)
                unresumed.append(self.predictions.pop(instance.instance_id, None))
                self.predictions[instance.instance_id] = predict(instance, self.world.programs[instance.workflow])
            try:
                await engine.resume(instance.workflow, instance.instance_id, forget=forget, anew=anew)
            except memable.UnknownKeyError as error:
                self.told.append(f"unknown {sorted(error.keys)}")
            else:
                self.told.append("resumed")

        is_cut_short = self.session(action, disturbance)
        if not is_cut_short:
            assert self.told == [f"unknown {sorted(unknown)}" if unknown else "resumed"]
        if is_cut_short and unresumed:
            resumes = sum(isinstance(one, InstanceResumed) for one in self.kept()[instance.instance_id][1])
            assert resumes in {before.resumes, instance.resumes}
            if resumes == before.resumes:
                # It never was: nobody was told, and no step was called.
                assert "resumed" not in self.told
                assert instance.total_calls == before.total_calls
                self.world.instances[instance.instance_id] = before
                del self.predictions[instance.instance_id]
                if unresumed[0] is not None:
                    self.predictions[instance.instance_id] = unresumed[0]
        self.settle(is_cut_short=is_cut_short)

    def expect_cancelled(self, instance: Instance, *, is_cut_short: bool) -> None:
        """
        Take note of what the engine said to a request to cancel, or may have done.
        """
        if not is_cut_short and "cancelled True" not in self.told:
            # It had ended before, or somebody had asked for it before whom a crash kept from hearing of it.
            assert "cancelled False" in self.told
            if not instance.cancel_requested:
                return
        kept = self.kept().get(instance.instance_id)
        requested = kept is not None and any(record.kind == "cancel_requested" for record in kept[1])
        assert requested or "cancelled True" not in self.told
        if requested:
            instance.cancel_requested = True
            self.predictions[instance.instance_id] = predict(instance, self.world.programs[instance.workflow])


async def read_store(disk: SimulatedDisk) -> Kept:
    file_store = memable.FileStore(DIRECTORY, disk=disk, segment_bytes=SEGMENT_BYTES)
    async with file_store.open(current_clock()) as store:
        return {
            header.instance_id: (copy.copy(header), list(await store.load(header.number)))
            for header in await store.headers(limit=10 * MAX_INSTANCES)
        }


def outcome_of(memo: Memo) -> Outcome:
    if isinstance(memo, StepCompleted):
        return ("value", json.loads(memo.value.data))
    return ("failure", memo.error.message)


def result_of(journal: Journal) -> Any:
    return json.loads(journal.ending.value.data) if isinstance(journal.ending, InstanceCompleted) else None


TestEngineMachine = EngineMachine.TestCase
# Stories of more steps are hardly ever needed, and harder to read.
TestEngineMachine.settings = settings(stateful_step_count=12)
