"""
Programs that use everything: what workflows of the property tests do, as data, and what becomes of the world outside.

A program is a tuple of operations, and the keys follow from their places. ``World`` runs programs and keeps count of
what they do to the world outside, by ``step_id``. ``Walk`` says what a body returns, given what is recorded.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import attrs
import trio
from hypothesis import strategies as st

import memable
from memable._records import (
    BranchCompleted,
    BranchFailed,
    CallCompleted,
    CallFailed,
    FanOutFailed,
    ScopeEnded,
    SignalKept,
    SignalReceived,
    StepCompleted,
    StepFailed,
    SuspendTimedOut,
)

STEP_S = 1.0
BACKOFF_S = 10.0
RETENTION_S = 500.0
#: Instances of the second are removed when they have ended for a while.
WORKFLOWS = {"w": None, "v": RETENTION_S}


# Programs ------------------------------------------------------------------------------------------------------


class _Op:
    """
    Shown without what is as usual.
    """

    def __repr__(self) -> str:
        shown = [
            f"{field.name}={value!r}" if field.default is not attrs.NOTHING else repr(value)
            for field in attrs.fields(type(self))
            if (value := getattr(self, field.name)) != field.default
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


@attrs.frozen(repr=False)
class Step(_Op):
    failures: int = 0
    "It fails so often before it returns."
    retries: int = 0
    caught: bool = False
    "Whether the body goes on if it fails for good."
    in_thread: bool = False
    "Whether it runs in a thread. Then it has no retries."


@attrs.frozen(repr=False)
class Once(_Op):
    """
    An effect that must not repeat.
    """

    fails: bool = False
    probe: str | None = None
    "``asks`` the world, or is ``shy``: does so only if it is asked a second time."
    caught: bool = False


@attrs.frozen(repr=False)
class Suspend(_Op):
    timeout: float | None = None
    caught: bool = False


@attrs.frozen(repr=False)
class Sleep(_Op):
    seconds: float


@attrs.frozen(repr=False)
class Scope(_Op):
    seconds: float
    ops: Program
    fails: bool = False
    "Whether it is ``fail_after``."
    caught: bool = False


@attrs.frozen(repr=False)
class Together(_Op):
    """
    Done in the tasks of a nursery of the body's own, which the engine does not know.
    """

    ops: tuple[Step | Sleep | Suspend, ...]
    "None of them fails the body, or waits for ever."


@attrs.frozen(repr=False)
class FanOut(_Op):
    children: tuple[Program, ...]
    settles: bool = False
    limit: int | None = None
    workflow: str | None = None
    "If given, each child is an instance of its own."
    caught: bool = False


@attrs.frozen(repr=False)
class Call(_Op):
    workflow: str
    program: Program
    caught: bool = False


@attrs.frozen(repr=False)
class Start(_Op):
    workflow: str
    program: Program


@attrs.frozen(repr=False)
class Compensate(_Op):
    fails: bool = False
    once: bool = False
    "Whether it must not repeat."
    probe: str | None = None
    "As for ``Once``."


@attrs.frozen(repr=False)
class Raise(_Op):
    """
    An exception of the body's own.
    """


Op: TypeAlias = Step | Once | Suspend | Sleep | Scope | Together | FanOut | Call | Start | Compensate | Raise
Program: TypeAlias = tuple[Op, ...]

_LETTERS = {
    Step: "s",
    Once: "o",
    Suspend: "w",
    Sleep: "z",
    Scope: "m",
    Together: "t",
    FanOut: "f",
    Call: "c",
    Start: "d",
    Compensate: "u",
    Raise: "r",
}


def keyed(program: Program, base: str = "") -> Iterator[tuple[str, str, Op]]:
    """
    Yield the operations of a program with their keys, and with what the keys of those inside begin with.
    """
    for index, op in enumerate(program):
        yield f"{_LETTERS[type(op)]}{base}{index}", f"{base}{index}.", op


def branches_of(program: Program, prefix: str = "", base: str = "") -> dict[str, Program]:
    """
    Return the programs of the body and of its inline children, by what the paths in them begin with.
    """
    found: dict[str, Program] = {} if base else {prefix: program}
    for key, inner, op in keyed(program, base):
        if isinstance(op, Scope):
            found |= branches_of(op.ops, prefix, inner)
        elif isinstance(op, FanOut) and op.workflow is None:
            for index, child in enumerate(op.children):
                found |= branches_of(child, f"{prefix}{key}/{index}/")
    return found


def ops_of(program: Program, prefix: str = "", base: str = "") -> dict[str, Op]:
    """
    Return all operations of an instance by their paths.
    """
    found: dict[str, Op] = {}
    for key, inner, op in keyed(program, base):
        found[prefix + key] = op
        if isinstance(op, Scope | Together):
            found |= ops_of(op.ops, prefix, inner)
        elif isinstance(op, FanOut) and op.workflow is None:
            for index, child in enumerate(op.children):
                found |= ops_of(child, f"{prefix}{key}/{index}/")
    return found


# Strategies ----------------------------------------------------------------------------------------------------

_flags = st.booleans()
_workflows = st.sampled_from(sorted(WORKFLOWS))

_leaves: st.SearchStrategy[Op] = st.one_of(
    st.builds(Step),
    st.builds(Step, failures=st.integers(0, 3), retries=st.sampled_from([0, 2]), caught=_flags),
    st.builds(Suspend, st.sampled_from([None, 5.0, 50.0]), _flags),
    st.builds(Suspend, st.sampled_from([None, 5.0, 50.0]), st.just(True)),
    st.builds(Sleep, st.sampled_from([3.0, 30.0])),
    st.builds(Compensate, _flags),
    st.builds(Compensate, fails=_flags, once=st.just(True), probe=st.sampled_from([None, "asks", "shy"])),
    st.builds(Once, fails=_flags, probe=st.sampled_from([None, "asks", "shy"]), caught=_flags),
    st.sampled_from([Raise(), Step(), Step(), Suspend(), Compensate()]),
)


def _nested(inner: st.SearchStrategy[Op]) -> st.SearchStrategy[Op]:
    inners = st.lists(inner, min_size=1, max_size=2).map(tuple)
    return st.one_of(
        st.builds(Scope, st.sampled_from([0.5, 4.0, 40.0]), inners, _flags, _flags),
        st.builds(
            FanOut,
            st.lists(inners, min_size=1, max_size=3).map(tuple),
            settles=_flags,
            limit=st.sampled_from([None, 1, 2]),
            workflow=st.none() | _workflows,
            caught=_flags,
        ),
        st.builds(Call, _workflows, inners, _flags),
        st.builds(Start, _workflows, inners),
    )


_unfailing: st.SearchStrategy[Step | Sleep | Suspend] = st.one_of(
    st.builds(Step, failures=st.integers(0, 3), retries=st.sampled_from([0, 2]), caught=st.just(True)),
    st.builds(Sleep, st.sampled_from([3.0, 30.0])),
    st.builds(Suspend, st.sampled_from([5.0, 50.0]), st.just(True)),
)
_together = st.builds(Together, st.lists(_unfailing, min_size=2, max_size=2).map(tuple))
_leaves |= _together
_once_nested = _nested(_leaves)
ops: st.SearchStrategy[Op] = _leaves | _once_nested | _nested(_leaves | _once_nested)
programs: st.SearchStrategy[Program] = st.builds(
    lambda first, middle, last: (*first, *middle, *last),
    st.sampled_from([(), (), (Compensate(),), (Compensate(fails=True), Compensate())]),
    st.lists(ops, min_size=1, max_size=3),
    st.sampled_from([(), (), (), (Raise(),)]),
)


def without_raises(program: Program) -> Program:
    """
    Let steps fail instead, which takes time.
    """
    return tuple(_without_raises(op) for op in program)


def _without_raises(op: Op) -> Op:
    match op:
        case Raise():
            return Step(failures=9)
        case Scope():
            return attrs.evolve(op, ops=without_raises(op.ops))
        case FanOut():
            return attrs.evolve(op, children=tuple(map(without_raises, op.children)))
        case Call() | Start():
            return attrs.evolve(op, program=without_raises(op.program))
        case _:
            return op


# What is recorded ----------------------------------------------------------------------------------------------

Memos: TypeAlias = Mapping[str, Any]
"Records of outcomes by path."


class Incomplete(Exception):  # noqa: N818 - no error: there is more to do
    """
    Something has no outcome yet.
    """


class Fails(Exception):  # noqa: N818 - no error: the body fails
    """
    A failure leaves the body, or the child.
    """


@attrs.frozen
class Walk:
    """
    What a body does, given what is recorded.
    """

    instance_id: str
    memos: Memos
    compensations: Mapping[str, int]
    started: Mapping[str, Any]

    def result(self, program: Program, prefix: str = "", base: str = "") -> list[Any]:
        return [self._outcome(op, prefix, key, inner) for key, inner, op in keyed(program, base)]

    def _outcome(self, op: Op, prefix: str, key: str, inner: str) -> Any:
        path = prefix + key
        memo = self.memos.get(path)
        match op:
            case Raise():
                raise Fails(path)
            case Compensate():
                return self._done(path in self.compensations, path, "registered")
            case Start():
                return self._done(path in self.started, path, f"{self.instance_id}/{path}")
            case Scope():
                return self._scope(op, memo, prefix, path, inner)
            case Together():
                return self.result(op.ops, prefix, inner)
            case FanOut():
                return self._fan_out(op, memo, path)
            case _ if memo is None:
                raise Incomplete(path)
            case _:
                return self._memo(op, memo, path)

    def _done(self, is_done: bool, path: str, outcome: str) -> str:
        if not is_done:
            raise Incomplete(path)
        return outcome

    def _memo(self, op: Any, memo: Any, path: str) -> Any:
        match memo:
            case StepCompleted() | CallCompleted():
                return json.loads(memo.value.data)
            case SignalReceived() | SignalKept():
                return ["signal", json.loads(memo.value.data)]
            case StepFailed():
                return self._failure(op, path, ["failed", memo.error.message])
            case SuspendTimedOut() | CallFailed():
                return self._failure(op, path, ["failed"])
            case _:
                return "slept"

    def _failure(self, op: Any, path: str, outcome: Any) -> Any:
        if not op.caught:
            raise Fails(path)
        return outcome

    def _scope(self, op: Scope, memo: ScopeEnded | None, prefix: str, path: str, inner: str) -> Any:
        if memo is not None and memo.expired:
            return self._failure(op, path, "expired") if op.fails else "expired"
        result = self.result(op.ops, prefix, inner)
        if memo is None:
            raise Incomplete(path)
        return ["inside", result]

    def _fan_out(self, op: FanOut, memo: FanOutFailed | None, path: str) -> Any:
        if memo is not None:
            return self._failure(op, path, ["failed", memo.index])
        found: list[Any] = []
        for index in range(len(op.children)):
            child = self.memos.get(f"{path}/{index}")
            if isinstance(child, BranchCompleted):
                found.append(json.loads(child.value.data))
            elif isinstance(child, BranchFailed) and op.settles:
                found.append(["failed"])
            else:
                raise Incomplete(f"{path}/{index}")
        return found


# The world -----------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class ThreadCall:
    """
    A step in a thread.
    """

    step_id: str
    name: str
    is_handed: bool = False
    "Whether it was given to a thread."
    is_over: bool = False
    "Whether the body has its outcome, or does not wait for it any more."

    # What trio asks of a limiter: so the event loop knows when a thread is about to begin.

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        await trio.lowlevel.checkpoint()
        self.is_handed = True

    def release_on_behalf_of(self, borrower: object) -> None:
        pass


@attrs.define
class World:
    """
    Runs programs, counts what they do, and notes what must not happen.
    """

    programs: list[Program] = attrs.field(factory=list)
    "By number, which is the input of their instances."
    calls: dict[str, int] = attrs.field(factory=dict)
    "How often each step was called, by step id."
    session_calls: dict[str, int] = attrs.field(factory=dict)
    "How often in this session."
    happened: dict[str, str] = attrs.field(factory=dict)
    "Effects that have happened, with what they made, by step id."
    probes: dict[str, int] = attrs.field(factory=dict)
    done: set[str] = attrs.field(factory=set)
    "Step ids with an outcome that is known to be recorded."
    failed: set[str] = attrs.field(factory=set)
    "Step ids of steps that failed for good at least once: somebody may resume them."
    step_ids: dict[tuple[str, str, str], str] = attrs.field(factory=dict)
    "The newest by workflow, instance id and path."
    owners: dict[str, tuple[int, int]] = attrs.field(factory=dict)
    "The number of the instance that each of them is of, and the generation of its path."
    seen: list[tuple[str, str, str, Any]] = attrs.field(factory=list)
    "What bodies were given in this session: workflow, instance id, path, and outcome."
    wrongs: list[str] = attrs.field(factory=list)
    called: dict[str, int] = attrs.field(factory=dict)
    "How often each step was called, by name."
    executing: list[tuple[str, str]] = attrs.field(factory=list)
    "What executes now: its kind, and its name."
    live: Counter[tuple[str, str]] = attrs.field(factory=Counter)
    "How many bodies of each instance are in memory now."
    mistyped: set[str] = attrs.field(factory=set)
    "Step ids that the code of this session gives another type than what is recorded."
    unregistered: set[tuple[str, str, str]] = attrs.field(factory=set)
    "Compensations that the code of this session does not register, by workflow, instance id and path."
    in_threads: list[ThreadCall] = attrs.field(factory=list)
    "Steps of this session that may be in a thread."
    is_spread: bool = False
    "Whether no two things take equally long, so that nothing depends on the order of tasks."

    def spread(self, seconds: float, name: str) -> float:
        """
        Return how long something takes.
        """
        return seconds + zlib.crc32(name.encode()) % 9973 / 50_000 if self.is_spread else seconds

    def number(self, program: Program) -> int:
        """
        Return the number of a program.
        """
        if program not in self.programs:
            self.programs.append(program)
        return self.programs.index(program)

    def workflows(self) -> dict[str, memable.Workflow[[int], Any]]:
        """
        Return the workflows of a session, by name.
        """
        workflows: dict[str, memable.Workflow[[int], Any]] = {}
        for name, retention in WORKFLOWS.items():

            async def body(ctx: memable.Context, given: int) -> Any:
                instance = ctx.workflow_name, ctx.instance_id
                self.live[instance] += 1
                try:
                    return await _Body(self, ctx, "", workflows).perform(self.programs[given])
                finally:
                    self.live[instance] -= 1

            workflows[name] = memable.workflow(name=name, retention=retention)(body)
        return workflows

    async def call(self, step_id: str, name: str, failures: int) -> str:
        """
        Be a step: fail so often, then return.
        """
        calls = self._count(step_id, name)
        with self._executes("step", name):
            await trio.sleep(self.spread(STEP_S, name))
        if calls <= failures:
            raise ConnectionError(f"{name} {calls}")
        return f"{name} {calls}"

    async def effect(self, step_id: str, name: str, fails: bool, probe: str | None) -> str:
        """
        Be an effect, which happens half-way.
        """
        calls = self._count(step_id, name)
        if step_id in self.happened:
            self.wrongs.append(f"{name} happened twice")
        try:
            with self._executes("effect", name):
                await trio.sleep(self.spread(STEP_S / 2, name))
                if not fails:
                    self.happened[step_id] = f"{name} {calls}"
                await trio.sleep(STEP_S / 2)
        except trio.Cancelled:
            self.wrongs.append(f"{name} was cancelled half-way")
            raise
        if fails:
            raise ConnectionError(f"{name} {calls}")
        return self.happened[step_id]

    async def probe(self, step_id: str, name: str, fails: bool, probe: str | None) -> str:
        """
        Tell whether an effect has happened.
        """
        self.probes[step_id] = self.probes.get(step_id, 0) + 1
        with self._executes("probe", name):
            await trio.sleep(STEP_S)
        if probe == "shy" and self.probes[step_id] == 1:
            raise ConnectionError("not now")
        if step_id not in self.happened:
            raise memable.NotDoneError
        return self.happened[step_id]

    def call_in_thread(self, call: ThreadCall, failures: int) -> str:
        """
        Be a step in a thread.
        """
        calls = self._count(call.step_id, call.name)
        if calls <= failures:
            raise ConnectionError(f"{call.name} {calls}")
        return f"{call.name} {calls}"

    def begin_in_thread(self, step_id: str, name: str) -> ThreadCall:
        """
        Return what a step in a thread goes by.
        """
        call = ThreadCall(step_id, name)
        self.in_threads.append(call)
        return call

    def end_session(self) -> None:
        """
        Forget what the process had in memory.
        """
        self.in_threads.clear()
        self.executing.clear()
        self.live.clear()
        self.mistyped.clear()
        self.unregistered.clear()

    @contextmanager
    def _executes(self, kind: str, name: str) -> Iterator[None]:
        what = kind, name
        self.executing.append(what)
        try:
            yield
        finally:
            if what in self.executing:
                self.executing.remove(what)

    def _count(self, step_id: str, name: str) -> int:
        if step_id in self.done:
            self.wrongs.append(f"{name} was called though it has an outcome")
        self.called[name] = self.called.get(name, 0) + 1
        self.session_calls[step_id] = self.session_calls.get(step_id, 0) + 1
        self.calls[step_id] = self.calls.get(step_id, 0) + 1
        return self.calls[step_id]


@attrs.define
class _Body:
    world: World
    ctx: memable.Context
    prefix: str
    workflows: Mapping[str, memable.Workflow[[int], Any]]

    async def perform(self, program: Program, base: str = "") -> list[Any]:
        return [await self._perform(op, key, inner) for key, inner, op in keyed(program, base)]

    def _see(self, key: str, outcome: Any) -> Any:
        self.world.seen.append((self.ctx.workflow_name, self.ctx.instance_id, self.prefix + key, outcome))
        return outcome

    def _step_id(self, key: str) -> tuple[str, str]:
        ctx, path = self.ctx, self.prefix + key
        step_id = ctx.step_id(key)
        self.world.step_ids[ctx.workflow_name, ctx.instance_id, path] = step_id
        journal = ctx._run.journal
        self.world.owners[step_id] = (journal.started.instance, journal.generation(path))
        return step_id, f"{ctx.workflow_name}/{ctx.instance_id}:{path}"

    def _seconds(self, seconds: Any, key: str) -> Any:
        return None if seconds is None else self.world.spread(seconds, f"{self.ctx.instance_id}:{self.prefix}{key}")

    async def _perform(self, op: Op, key: str, inner: str) -> Any:
        try:
            return await self._do(op, key, inner)
        except memable.StepFailedError as error:
            if error.key != self.prefix + key:
                raise
            outcome = self._see(key, ["failed", error.error.message])
            step_id = self._step_id(key)[0]
            self.world.done.add(step_id)
            self.world.failed.add(step_id)
            if not getattr(op, "caught", False):
                raise
            return outcome
        except memable.ChildFailedError as error:
            if error.key != self.prefix + key or not getattr(op, "caught", False):
                raise
            return ["failed"] if error.index is None else ["failed", error.index]
        except (memable.SuspendTimeoutError, memable.ScopeTimeoutError) as error:
            if error.key != self.prefix + key or not getattr(op, "caught", False):
                raise
            return ["failed"] if isinstance(error, memable.SuspendTimeoutError) else "expired"

    async def _do(self, op: Op, key: str, inner: str) -> Any:
        match op:
            case Step() | Once() | Compensate():
                return await self._work(op, key)
            case Suspend() | Sleep():
                return await self._wait(op, key)
            case Raise():
                raise LookupError("of the body's own")
            case Scope():
                return await self._scope(op, key, inner)
            case Together():
                return await self._together(op, inner)
            case FanOut():
                return await self._fan_out(op, key)
            case Call() | Start():
                enter: Any = self.ctx.call if isinstance(op, Call) else self.ctx.start
                return await enter(key, self.workflows[op.workflow], self.world.number(op.program))

    async def _work(self, op: Step | Once | Compensate, key: str) -> Any:
        ctx, world = self.ctx, self.world
        step_id, name = self._step_id(key)
        if isinstance(op, Compensate):
            if (ctx.workflow_name, ctx.instance_id, self.prefix + key) in world.unregistered:
                return "registered"
            if op.once:
                asks = world.probe if op.probe else None
                arguments = (step_id, name, op.fails, op.probe)
                await ctx.compensate(key, world.effect, *arguments, once=True, probe=asks)
            else:
                await ctx.compensate(key, world.call, step_id, name, 1000 if op.fails else 0, retry=None)
            return "registered"
        if isinstance(op, Step) and op.in_thread:
            value = await self._work_in_thread(op, key, step_id, name)
        elif isinstance(op, Step):
            returns: Any = int if step_id in world.mistyped else str
            retry = memable.RetryPolicy.fixed(op.retries, BACKOFF_S) if op.retries else None
            value = await ctx.step(key, world.call, step_id, name, op.failures, retry=retry, returns=returns)
        else:
            asks = world.probe if op.probe else None
            value = await ctx.step(key, world.effect, step_id, name, op.fails, op.probe, once=True, probe=asks)
        world.done.add(step_id)
        return self._see(key, value)

    async def _work_in_thread(self, op: Step, key: str, step_id: str, name: str) -> str:
        world = self.world
        call = world.begin_in_thread(step_id, name)
        limiter: Any = call
        try:
            return await self.ctx.step_in_thread(
                key, world.call_in_thread, call, op.failures, retry=None, limiter=limiter
            )
        finally:
            call.is_over = True

    async def _wait(self, op: Suspend | Sleep, key: str) -> Any:
        if isinstance(op, Sleep):
            await self.ctx.sleep(key, self._seconds(op.seconds, key))
            return "slept"
        point = memable.SuspendPoint(key, int)
        return self._see(key, ["signal", await self.ctx.suspend(point, timeout=self._seconds(op.timeout, key))])

    async def _scope(self, op: Scope, key: str, inner: str) -> Any:
        enter = self.ctx.fail_after if op.fails else self.ctx.move_on_after
        result: list[Any] = []
        async with enter(key, self._seconds(op.seconds, key)) as scope:
            result = await self.perform(op.ops, inner)
        return "expired" if scope.cancelled_caught else ["inside", result]

    async def _together(self, op: Together, inner: str) -> list[Any]:
        outcomes: dict[str, Any] = {}

        async def perform(key: str, inner_op: Op) -> None:
            outcomes[key] = await self._perform(inner_op, key, "")

        async with trio.open_nursery() as nursery:
            for key, _, inner_op in keyed(op.ops, inner):
                nursery.start_soon(perform, key, inner_op)
        return [outcomes[key] for key, _, _ in keyed(op.ops, inner)]

    async def _fan_out(self, op: FanOut, key: str) -> Any:
        ctx = self.ctx
        fan_out: Any = ctx.fan_out_settled if op.settles else ctx.fan_out
        if op.workflow is not None:
            numbers = [self.world.number(child) for child in op.children]
            outcomes = await fan_out(key, self.workflows[op.workflow], numbers, limit=op.limit)
        else:

            async def child(child_ctx: memable.Context, index: int) -> Any:
                body = _Body(self.world, child_ctx, f"{self.prefix}{key}/{index}/", self.workflows)
                return await body.perform(op.children[index])

            outcomes = await fan_out(key, child, range(len(op.children)), limit=op.limit)
        if not op.settles:
            return outcomes
        return [one.value if isinstance(one, memable.ChildSucceeded) else ["failed"] for one in outcomes]
