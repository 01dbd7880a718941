"""
Small workflows, crashed at every durable write and at every call of the disk, and recovered by a new engine each time.

``explore_crashes`` does most of it. Here beside it: crashes again and again, power cuts of which some is lost, and logs
that end at any byte.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

import memable
from memable._store._protocol import Store
from memable._testing._simulated_store import DIRECTORY, store_on
from memable._testing._watched_disk import Call, WatchedDisk
from memable._texts import LONG_BYTES
from memable.testing import Crash, CrashPlan, CrashReport, SimulatedDisk, SimulatedStore, explore_crashes
from running import ending_of

INSTANCE = "i"
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


@attrs.frozen(eq=False)
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
    depth: int = 1
    "How often it crashes on its way."
    again: int = 1
    "How often a step may be called again for one crash."


def sequence(world: World) -> Body:
    async def body(ctx: memable.Context) -> list[str]:
        return [await world.step(ctx, key, succeed) for key in ("a", "b", "c")]

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


RETRY = memable.RetryPolicy.exponential(2, 3600, max_delay=86400)


def backoff(world: World) -> Body:
    def fail_twice() -> None:
        if world.calls["flaky"] <= 2:
            raise ConnectionError("unreachable")

    async def body(ctx: memable.Context) -> list[str]:
        return [await world.step(ctx, "flaky", fail_twice, retry=RETRY)]

    return body


def exhausted(world: World) -> Body:
    async def body(ctx: memable.Context) -> list[str]:
        return [await world.step(ctx, "hopeless", fail, retry=memable.RetryPolicy.fixed(1, 3600))]

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
    Scenario("sequence", sequence, {"a": 1, "b": 1, "c": 1}, depth=2),
    Scenario("nursery", nursery, {"before": 1, "x": 1, "y": 1, "z": 1, "after": 1}),
    Scenario("backoff", backoff, {"flaky": 3}, depth=2),
    Scenario("exhausted", exhausted, {"hopeless": 2}),
    Scenario("caught_failure", caught_failure, {"broken": 1, "instead": 1}),
    Scenario("statuses", statuses, {"a": 1, "b": 1}, state=memable.Completed("at the end")),
    Scenario("resume", mended, {"a": 1, "broken": 2}, start_and_mend),
    # Each crash may come between the durable resume and its acknowledgement: then the host asks again. An orderly stop
    # interrupts the step in that time, besides.
    Scenario("forget", sequence, {"a": 1, "b": 2, "c": 1}, start_and_forget, again=2),
    Scenario("cancel", endless, {"a": 1, "endless": 1}, start_and_cancel, memable.Cancelled("enough"), depth=2),
]
every_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=[scenario.name for scenario in SCENARIOS])


@attrs.frozen
class Result:
    """
    What must be the same, crashes or not.
    """

    state: memable.WorkflowState
    value: object
    outcomes: dict[str | None, tuple[object, ...]]
    "What came of each step: its value, or its error and the number of the last attempt."


def workflow_of(scenario: Scenario, world: World) -> memable.Workflow[[], list[str]]:
    body = scenario.make_body(world)

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context) -> list[str]:
        return await body(ctx)

    return workflow


async def bring_to_end(scenario: Scenario, engine: memable.Engine, world: World) -> Result:
    """
    Do what the process is there for; return what came of it.
    """
    await scenario.host(engine, world)
    await engine.wait_all()
    invocation = await engine.get("w", INSTANCE)
    state = await invocation.state()
    value = await invocation.result() if isinstance(state, memable.Completed) else None
    entries = [entry for entry in await engine.history("w", INSTANCE) if entry.kind == "step"]
    return Result(state, value, {entry.key: facts_of(entry) for entry in entries})


def facts_of(attempt: memable.HistoryEntry) -> tuple[object, ...]:
    if attempt.error is None:
        return (attempt.value,)
    return (attempt.error.type, attempt.error.message, attempt.attempt)


def explore(scenario: Scenario, **options: Any) -> CrashReport[Result]:
    """
    Explore crashes of a scenario, and check in each schedule that it ends as it should, and that no step ran too often.
    """
    world = World()

    def check(result: Result) -> None:
        assert world.wrongs == []
        assert result.state == scenario.state

    report = explore_crashes(
        lambda engine: bring_to_end(scenario, engine, world),
        workflows=[workflow_of(scenario, world)],
        outside=[world],
        check=check,
        **options,
    )
    assert report, report
    assert report.is_exhaustive
    for schedule in report.schedules:
        calls = {name.removeprefix("w/i: "): count for name, count in schedule.executions.items()}
        check_calls(scenario, calls, len(schedule.plan.crashes))
    return report


def check_calls(scenario: Scenario, calls: Mapping[str, int], crashes: int) -> None:
    for key, count in scenario.calls.items():
        assert count <= calls[key] <= count + crashes * scenario.again
    assert set(calls) == set(scenario.calls)


@pytest.mark.slow
@every_scenario
def test_crash_at_every_append_changes_nothing_of_the_outcome(scenario: Scenario):
    """
    Crashed before, within or after every write, or stopped there, a workflow ends as if nothing had happened.

    So it does when it is crashed once more at every write of the recovery.
    """
    assert len(explore(scenario, depth=scenario.depth, stops=scenario.depth == 1).schedules) > 25


@pytest.mark.slow
@every_scenario
def test_power_cut_at_every_call_of_the_disk_changes_nothing_of_the_outcome(scenario: Scenario):
    """
    Killed or cut from power at every call of the disk, with all lost that may be, a workflow ends the same.
    """
    assert len(explore(scenario, points="calls", stops=False).schedules) > 80


@pytest.mark.slow
@every_scenario
@pytest.mark.parametrize("moment", [5, 8])
def test_crash_at_one_moment_again_and_again_still_ends(scenario: Scenario, moment: int):
    """
    Crashed twenty times in a row, each time after a write or two, a workflow still ends as it should.
    """
    explore(scenario, only=CrashPlan([Crash(moment)] * 20))


def test_cancel_that_was_requested_before_a_crash_is_carried_out_after_it():
    """
    Once the request to cancel is durable, the next engine carries it out, though nobody asks again.
    """
    only_waited: list[bool] = []

    async def cancel_once(engine: memable.Engine, world: World) -> None:
        await engine.invoke("w", instance_id=INSTANCE)
        if any(entry.kind == "cancel" for entry in await engine.history("w", INSTANCE)):
            only_waited.append(True)
            await ending_of(await engine.get("w", INSTANCE))
        else:
            await start_and_cancel(engine, world)

    explore(attrs.evolve(SCENARIOS[-1], host=cancel_once))
    # After it was recorded, and around the record of the end.
    assert len(only_waited) >= 4


# Over the simulated disk, by hand ----------------------------------------------------------------------------------


def run_engine(scenario: Scenario, store: Store, world: World) -> Result:
    """
    Run an engine, as a process of its own would, until all is done; return what came of it.
    """

    async def main() -> Result:
        with trio.fail_after(STUCK_AFTER_S):
            async with memable.open_engine(store, workflows=[workflow_of(scenario, world)]) as engine:
                return await bring_to_end(scenario, engine, world)

    return trio.run(main, clock=MockClock(autojump_threshold=0))


def check_after_crash(scenario: Scenario, store: Store, world: World) -> None:
    """
    Run an engine over what a crash has left, and check what comes of it.
    """
    expected = run_without_crash(scenario)
    assert run_engine(scenario, store, world) == expected
    assert world.wrongs == []
    check_calls(scenario, world.calls, 1)


@functools.cache
def run_without_crash(scenario: Scenario) -> Result:
    world = World()
    result = run_engine(scenario, memable.InMemoryStore(), world)
    assert (result.state, world.wrongs, world.calls) == (scenario.state, [], scenario.calls)
    return result


@pytest.mark.slow
@every_scenario
def test_power_cut_at_every_call_of_the_disk_that_loses_some_changes_nothing_of_the_outcome(scenario: Scenario):
    """
    With the power cut in the stead of each call of the disk, whatever of it is lost by chance, it ends the same.
    """
    for cut_at in itertools.count():
        store, world = SimulatedStore(SimulatedDisk(cut_at=cut_at)), World()
        with contextlib.suppress(memable.StorageError):
            run_engine(scenario, store, world)
        if not store.is_dead:
            break
        check_after_crash(scenario, store.power_cut(seed=cut_at), world)
    assert cut_at > 30


def test_power_cut_that_scrambles_the_lock_file_leaves_a_store_that_opens():
    """
    Who held the lock is noted without a sync, so a power cut may leave anything there: it is no reason not to open.
    """
    scenario, store, world = SCENARIOS[0], SimulatedStore(), World()
    run_engine(scenario, store, world)
    store.disk.shown[DIRECTORY / "lock"].write(0, bytes(range(131, 256)))
    check_after_crash(scenario, store, world)


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

    run_engine(scenario, store_on(WatchedDisk(disk, watch)), world)
    return list(zip(moments[::2], moments[1::2], strict=True))


@pytest.mark.slow
@every_scenario
def test_log_cut_at_the_edges_of_its_last_batch_loses_nothing_acknowledged(scenario: Scenario):
    """
    Whichever batch was the last, an engine goes on if only one byte of it is there, or only one is not.
    """
    # In its middle every other exploration cuts it, and another test at every byte.
    for before, after in batches_of(scenario):
        for cut in (len(before.log) + 1, len(after.log) - 1):
            disk = SimulatedDisk.holding({LOG: after.log[:cut]})
            check_after_crash(scenario, SimulatedStore(disk), copy.deepcopy(before.world))


# Over real files -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_log_cut_at_every_byte_of_its_last_batch_loses_nothing_acknowledged(tmp_path: Path):
    """
    Real files, cut at every byte of the last batch: the engine opens, and no step that was acknowledged runs again.
    """
    scenario = SCENARIOS[0]
    [(before, after)] = [
        (before, after) for before, after in batches_of(scenario) if b'"path":"c"' in after.log[len(before.log) :]
    ]
    for cut in range(len(before.log), len(after.log) + 1):
        directory = tmp_path / str(cut)
        directory.mkdir(0o700)
        (directory / LOG.name).write_bytes(after.log[:cut])
        world = copy.deepcopy(before.world)
        check_after_crash(scenario, memable.FileStore(directory, durability="os"), world)
        assert world.calls["c"] == (1 if cut == len(after.log) else 2)


def test_long_values_are_whole_or_absent_wherever_the_process_dies():
    """
    A batch of values that are written in parts, before, between and behind short ones, is a batch like any other.
    """

    async def value(size: int) -> str:
        return "x" * size

    @memable.workflow
    async def long(ctx: memable.Context) -> int:
        sizes: list[int] = []

        async def add(key: str, size: int) -> None:
            sizes.append(len(await ctx.step(key, value, size)))

        async with trio.open_nursery() as nursery:
            for number, size in enumerate((1, LONG_BYTES, 2, 2 * LONG_BYTES)):
                nursery.start_soon(add, f"s{number}", size)
        await add("last", LONG_BYTES - 3)
        return sum(sizes)

    async def scenario(engine: memable.Engine) -> int:
        return await (await engine.invoke(long, instance_id=INSTANCE)).result()

    def check(total: int) -> None:
        assert total == 4 * LONG_BYTES

    report = explore_crashes(scenario, workflows=[long], check=check, points="calls")
    assert report, report
    assert report.is_exhaustive
    assert len(report.schedules) > 50
