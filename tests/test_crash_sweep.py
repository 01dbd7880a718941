"""
Small workflows, crashed at every append and at every call of the disk, and recovered by a new engine each time.

A crash is a fork in time. The store is copied at some moment, together with what the world outside has seen by then,
and a new engine goes on from the copy, as the process that follows one that was killed.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

import memable
from memable._clock import Clock, current_clock
from memable._journal import Memo, journal_of
from memable._records import InstanceRecord, StepCompleted
from memable._store._protocol import OpenStore, Store
from memable._testing._simulated_disk import Choose, SimulatedDisk, lose_all, lose_nothing
from running import ending_of, kinds_of
from memable._testing._watched_disk import Call, WatchedDisk

INSTANCE = "i"
DIRECTORY = Path("/store")
LOG = DIRECTORY / "00000001.log"

#: An engine that has not brought everything to its end by then, in virtual seconds, is stuck.
STUCK_AFTER_S = 10 * 86400.0


@attrs.define
class World:
    """
    What stays when a process dies: the effects of steps, and what the host was told and has kept.
    """

    calls: Counter[str] = attrs.field(factory=Counter)
    "How often each step's function was called."
    acknowledged: dict[str, object] = attrs.field(factory=dict)
    "What each step's outcome was, as told to the body."
    told: list[str] = attrs.field(factory=list)
    "What the engine told the host."
    crashes: int = 0
    wrongs: list[str] = attrs.field(factory=list)
    "Promises that were broken."

    def called(self, key: str) -> None:
        self.calls[key] += 1
        if key in self.acknowledged:
            self.wrongs.append(f"{key} ran again after it was acknowledged")

    async def step(
        self,
        ctx: memable.Context,
        key: str,
        act: Callable[[], object],
        *,
        is_caught: bool = True,
        retry: memable.RetryPolicy | None = None,
    ) -> str:
        """
        Run a step that does what *act* does and returns its key; return that, or its failure in words if it is caught.
        """

        async def fn() -> str:
            self.called(key)
            await trio.sleep(1)
            act()
            return key

        outcome: str
        try:
            outcome = await ctx.step(key, fn, retry=retry)
        except memable.StepFailedError as failure:
            if not is_caught:
                raise
            outcome = f"{type(failure).__name__} after {failure.attempts}: {failure.error.message}"
        if self.acknowledged.setdefault(key, outcome) != outcome:
            self.wrongs.append(f"{key} was {self.acknowledged[key]!r}, and then {outcome!r}")
        return outcome


def succeed() -> None:
    pass


def fail() -> None:
    raise ConnectionError("unreachable")


Body = Callable[[memable.Context], Awaitable[list[str]]]
Host = Callable[[memable.Engine, World], Awaitable[None]]


async def start(engine: memable.Engine, world: World) -> None:
    """
    What a host does that keeps nothing in mind: it starts the same again, and waits for the end.
    """
    await ending_of(await engine.invoke("w", instance_id=INSTANCE))


@attrs.frozen
class Scenario:
    """
    A workflow, and the host that runs it.
    """

    name: str
    make_body: Callable[[World], Body]
    calls: dict[str, int]
    "How often each step's function is called if nothing crashes."
    host: Host = start
    state: memable.WorkflowState = memable.Completed()  # noqa: RUF009 - it is frozen
    "How it ends."


def sequence(world: World) -> Body:
    async def body(ctx: memable.Context) -> list[str]:
        return [await world.step(ctx, key, succeed) for key in ("a", "b", "c", "d")]

    return body


def nursery(world: World) -> Body:
    async def body(ctx: memable.Context) -> list[str]:
        outcomes = {"before": await world.step(ctx, "before", succeed)}

        async def run(key: str) -> None:
            outcomes[key] = await world.step(ctx, key, succeed)

        async with trio.open_nursery() as branches:
            for key in ("x", "y", "z"):
                branches.start_soon(run, key)
        outcomes["after"] = await world.step(ctx, "after", succeed)
        return [outcomes[key] for key in ("before", "x", "y", "z", "after")]

    return body


def backoff(world: World) -> Body:
    retry = memable.RetryPolicy.exponential(3, 3600, max_delay=86400)

    def fail_twice() -> None:
        if world.calls["flaky"] <= 2:
            raise ConnectionError("unreachable")

    async def body(ctx: memable.Context) -> list[str]:
        return [
            await world.step(ctx, "flaky", fail_twice, retry=retry),
            await world.step(ctx, "hopeless", fail, retry=retry),
        ]

    return body


def caught_failure(world: World) -> Body:
    async def body(ctx: memable.Context) -> list[str]:
        outcome = await world.step(ctx, "broken", fail)
        return [outcome, await world.step(ctx, "instead" if "unreachable" in outcome else "then", succeed)]

    return body


def statuses(world: World) -> Body:
    async def body(ctx: memable.Context) -> list[str]:
        outcomes: list[str] = []
        for key in ("a", "b"):
            ctx.set_status(f"at {key}")
            outcomes.append(await world.step(ctx, key, succeed))
        ctx.set_status("at the end")
        return outcomes

    return body


async def start_and_forget(engine: memable.Engine, world: World) -> None:
    await start(engine, world)
    if "resumed" not in world.told:
        # From here on the step may run again, whether the host is told of it or not.
        world.acknowledged.pop("b", None)
        await engine.resume("w", INSTANCE, forget=["b"])
        world.told.append("resumed")
    await ending_of(await engine.get("w", INSTANCE))


def mended(world: World) -> Body:
    def fail_until_mended() -> None:
        if "mended" not in world.told:
            fail()

    async def body(ctx: memable.Context) -> list[str]:
        before = await world.step(ctx, "a", succeed)
        return [before, await world.step(ctx, "broken", fail_until_mended, is_caught=False)]

    return body


async def start_and_mend(engine: memable.Engine, world: World) -> None:
    await start(engine, world)
    if isinstance(await engine.state("w", INSTANCE), memable.Failed):
        world.told.append("mended")
        await ending_of(await engine.resume("w", INSTANCE))


def endless(world: World) -> Body:
    async def wait() -> None:
        world.called("endless")
        await trio.sleep_forever()

    async def body(ctx: memable.Context) -> list[str]:
        await world.step(ctx, "a", succeed)
        try:
            await ctx.step("endless", wait)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
        raise AssertionError

    return body


async def start_and_cancel(engine: memable.Engine, world: World) -> None:
    await engine.invoke("w", instance_id=INSTANCE)
    await trio.sleep(60)
    if await engine.cancel("w", INSTANCE, reason="enough"):
        world.told.append("cancelled")


SCENARIOS = [
    Scenario("sequence", sequence, {"a": 1, "b": 1, "c": 1, "d": 1}),
    Scenario("nursery", nursery, {"before": 1, "x": 1, "y": 1, "z": 1, "after": 1}),
    Scenario("backoff", backoff, {"flaky": 3, "hopeless": 4}),
    Scenario("caught_failure", caught_failure, {"broken": 1, "instead": 1}),
    Scenario("statuses", statuses, {"a": 1, "b": 1}, state=memable.Completed("at the end")),
    Scenario("resume", mended, {"a": 1, "broken": 2}, start_and_mend),
    # Each crash may come between the durable resume and its acknowledgement: then the host asks again.
    Scenario("forget", sequence, {"a": 1, "b": 2, "c": 1, "d": 1}, start_and_forget),
    Scenario("cancel", endless, {"a": 1, "endless": 1}, start_and_cancel, memable.Cancelled("enough")),
]
every_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=[scenario.name for scenario in SCENARIOS])


@attrs.frozen
class Result:
    """
    What must be the same, crashes or not.
    """

    state: memable.WorkflowState
    value: object
    memos: dict[str, tuple[object, ...]]


@attrs.define
class CrashingStore:
    """
    A store that is copied before each append, and after it: when it is done, and nobody was told.
    """

    inner: memable.InMemoryStore
    world: World
    forks: list[tuple[memable.InMemoryStore, World]] = attrs.field(factory=list)

    def open(self, clock: Clock) -> AbstractAsyncContextManager[OpenStore]:
        return self._open(clock)

    @asynccontextmanager
    async def _open(self, clock: Clock) -> AsyncIterator[OpenStore]:
        async with self.inner.open(clock) as opened:
            yield _CrashingOpenStore(self, opened)

    def fork(self) -> None:
        world = copy.deepcopy(self.world)
        world.crashes += 1
        self.forks.append((self.inner.crashed_copy(), world))


@attrs.frozen
class _CrashingOpenStore:
    store: CrashingStore
    opened: OpenStore

    def __getattr__(self, name: str) -> Any:
        return getattr(self.opened, name)

    async def append(self, records: Sequence[InstanceRecord]) -> None:
        self.store.fork()
        await self.opened.append(records)
        self.store.fork()


def run_engine(scenario: Scenario, store: Store, world: World) -> Result:
    """
    Run an engine, as a process of its own would, until all is done; return what came of it.
    """

    async def main() -> Result:
        body = scenario.make_body(world)

        @memable.workflow(name="w")
        async def workflow(ctx: memable.Context) -> list[str]:
            return await body(ctx)

        with trio.fail_after(STUCK_AFTER_S):
            async with memable.open_engine(store, workflows=[workflow]) as engine:
                await scenario.host(engine, world)
                await engine.wait_all()
                invocation = await engine.get("w", INSTANCE)
                state = await invocation.state()
                value = await invocation.result() if isinstance(state, memable.Completed) else None
            async with store.open(current_clock()) as opened:
                header = await opened.find("w", INSTANCE)
                assert header is not None
                journal = journal_of(await opened.load(header.number))
        return Result(state, value, {path: facts_of(memo) for path, memo in journal.memos.items()})

    return trio.run(main, clock=MockClock(autojump_threshold=0))


def facts_of(memo: Memo) -> tuple[object, ...]:
    if isinstance(memo, StepCompleted):
        return ("completed", memo.value)
    return ("failed", memo.failure, memo.attempt, memo.error.type, memo.error.message)


def check(scenario: Scenario, world: World, result: Result, expected: Result) -> None:
    assert world.wrongs == []
    assert result == expected
    assert result.state == scenario.state
    for key, count in scenario.calls.items():
        assert count <= world.calls[key] <= count + world.crashes
    assert set(world.calls) == set(scenario.calls)


def run_without_crash(scenario: Scenario) -> Result:
    world = World()
    result = run_engine(scenario, memable.InMemoryStore(), world)
    check(scenario, world, result, result)
    assert world.calls == scenario.calls
    return result


# In memory -----------------------------------------------------------------------------------------------------


def explore(scenario: Scenario, store: memable.InMemoryStore, world: World, expected: Result, depth: int) -> int:
    """
    Run to the end, then run again from each crash on the way, so many crashes deep; return the number of runs.
    """
    crashing = CrashingStore(store, world)
    check(scenario, world, run_engine(scenario, crashing, world), expected)
    if depth == 0:
        return 1
    return 1 + sum(explore(scenario, copied, forked, expected, depth - 1) for copied, forked in crashing.forks)


@every_scenario
def test_crash_at_every_append_changes_nothing_of_the_outcome(scenario: Scenario):
    """
    Crashed at every append and once more at every append of the recovery, a workflow ends as if nothing had happened.
    """
    expected = run_without_crash(scenario)
    assert explore(scenario, memable.InMemoryStore(), World(), expected, depth=2) > 50


@every_scenario
def test_crash_at_every_append_again_and_again_still_ends(scenario: Scenario):
    """
    Crashed twenty times in a row, each time after an append or two, a workflow still ends as it should.
    """
    expected = run_without_crash(scenario)
    for fork in (1, 2, 3):
        store, world = memable.InMemoryStore(), World()
        for _ in range(20):
            crashing = CrashingStore(store, world)
            run_engine(scenario, crashing, world)
            if len(crashing.forks) <= fork:
                break
            store, world = crashing.forks[fork]
        check(scenario, world, run_engine(scenario, store, world), expected)


async def only_wait(engine: memable.Engine, world: World) -> None:
    await ending_of(await engine.get("w", INSTANCE))


def test_cancel_that_was_requested_before_a_crash_is_carried_out_after_it():
    """
    Once the request to cancel is durable, the next engine carries it out, though nobody asks again.
    """
    scenario = SCENARIOS[-1]
    expected = run_without_crash(scenario)
    crashing = CrashingStore(memable.InMemoryStore(), World())
    run_engine(scenario, crashing, crashing.world)
    requested = [fork for fork in crashing.forks if "cancel_requested" in kinds_of(fork[0])]
    # After it was recorded, before and after the record of the end.
    assert len(requested) == 3
    for store, world in requested:
        check(scenario, world, run_engine(attrs.evolve(scenario, host=only_wait), store, world), expected)


# Over the simulated disk ---------------------------------------------------------------------------------------


def choose_by(seed: int) -> Choose:
    rng = random.Random(seed)
    return rng.randrange


@every_scenario
@pytest.mark.parametrize("choose", [lose_all, lose_nothing, None], ids=["lose_all", "lose_nothing", "lose_some"])
def test_power_cut_at_every_call_of_the_disk_changes_nothing_of_the_outcome(scenario: Scenario, choose: Choose | None):
    """
    With the power cut in the stead of each call of the disk, whatever is lost that may be, a workflow ends the same.
    """
    expected = run_without_crash(scenario)
    cut_at = 0
    while (disk := SimulatedDisk(directories={Path("/")}, cut_at=cut_at)) is not None:
        world = World()
        try:
            run_engine(scenario, file_store(disk), world)
        except memable.StorageError:
            assert disk.is_off
        if not disk.is_off:
            break
        world.crashes += 1
        after = disk.power_cut(choose or choose_by(cut_at))
        check(scenario, world, run_engine(scenario, file_store(after), world), expected)
        cut_at += 1
    assert cut_at > 30


def file_store(disk: Any) -> memable.FileStore:
    return memable.FileStore(DIRECTORY, disk=disk)


def test_power_cut_that_scrambles_the_lock_file_leaves_a_store_that_opens():
    """
    Who held the lock is noted without a sync, so a power cut may leave anything there: it is no reason not to open.
    """
    scenario = SCENARIOS[0]
    expected = run_without_crash(scenario)
    disk, world = SimulatedDisk(), World()
    run_engine(scenario, file_store(disk), world)
    disk.shown[DIRECTORY / "lock"].write(0, bytes(range(131, 256)))
    check(scenario, world, run_engine(scenario, file_store(disk), world), expected)


@attrs.frozen
class Moment:
    """
    What a log held at some time, and the world then.
    """

    log: bytes
    world: World


def batches_of(scenario: Scenario) -> list[tuple[Moment, Moment]]:
    """
    Return, for each batch of records of a run without a crash, the moments before and after it was written.
    """
    disk, world = SimulatedDisk(), World()
    moments: list[Moment] = []

    def watch(call: Call) -> None:
        if call.name == "write" and b' {"kind":"' in call.chunk:
            moments.append(Moment(disk.content(LOG), copy.deepcopy(world)))

    run_engine(scenario, file_store(WatchedDisk(disk, watch)), world)
    return list(zip(moments[::2], moments[1::2], strict=True))


@every_scenario
def test_log_cut_within_its_last_batch_loses_nothing_acknowledged(scenario: Scenario):
    """
    Whichever batch was the last, and wherever in it the log ends, an engine goes on and brings all to the right end.
    """
    expected = run_without_crash(scenario)
    for before, after in batches_of(scenario):
        size, end = len(before.log), len(after.log)
        # Another test cuts at every byte.
        for cut in (size, size + 1, (size + end) // 2, end - 1, end):
            world = copy.deepcopy(before.world)
            world.crashes += 1
            disk = SimulatedDisk()
            disk.directories.add(DIRECTORY)
            put(disk, after.log[:cut])
            check(scenario, world, run_engine(scenario, file_store(disk), world), expected)


def put(disk: SimulatedDisk, log: bytes) -> None:
    file = disk.open_file(LOG, create=True)
    file.write_at(0, log)
    file.sync()
    disk.sync_directory(DIRECTORY)


# Over real files -----------------------------------------------------------------------------------------------


def test_log_cut_at_every_byte_of_its_last_batch_loses_nothing_acknowledged(tmp_path: Path):
    """
    Real files, cut at every byte of the last batch: the engine opens, and no step that was acknowledged runs again.
    """
    scenario = SCENARIOS[0]
    expected = run_without_crash(scenario)
    [(before, after)] = [
        (before, after) for before, after in batches_of(scenario) if b'"path":"d"' in after.log[len(before.log) :]
    ]
    for cut in range(len(before.log), len(after.log) + 1):
        directory = tmp_path / str(cut)
        directory.mkdir(0o700)
        (directory / LOG.name).write_bytes(after.log[:cut])
        world = copy.deepcopy(before.world)
        world.crashes += 1
        check(scenario, world, run_engine(scenario, memable.FileStore(directory), world), expected)
        assert world.calls["d"] == (1 if cut == len(after.log) else 2)
