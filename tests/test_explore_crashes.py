"""
``explore_crashes``: which schedules there are, and what is said of them.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

import memable
from memable.testing import CrashPlan, CrashReport, Effects, Schedule, explore_crashes

APPROVAL = memable.SuspendPoint("approval", bool)


async def one() -> int:
    return 1


async def add(a: int, b: int) -> int:
    return a + b


@memable.workflow
async def pair(ctx: memable.Context) -> int:
    return await ctx.step("b", add, await ctx.step("a", one), 1)


def result_of(workflow: memable.Workflow[[], Any]) -> Callable[[memable.Engine], Awaitable[Any]]:
    async def scenario(engine: memable.Engine) -> Any:
        return await (await engine.invoke(workflow, instance_id="i")).result()

    return scenario


def explore(workflow: memable.Workflow[[], Any], **options: Any) -> CrashReport[Any]:
    return explore_crashes(result_of(workflow), workflows=[workflow], **options)


def recipes(schedules: tuple[Schedule[Any], ...]) -> list[str]:
    return [schedule.recipe for schedule in schedules]


def test_explore_dies_before_within_and_after_each_write():
    """
    There is a schedule for each death before, within and after each durable write, and one for each orderly stop.
    """
    report = explore(pair)
    places = [schedule.places[0] for schedule in report.schedules if schedule.places]
    for record in ("instance_started of pair/i", "step_completed 'a' of pair/i", "instance_completed of pair/i"):
        assert f"within the write of {record}" in places
        assert f"after the write of {record}" in places
    # Nothing differs between the end of one write and the beginning of the next but what happens outside.
    assert "before the write of store_opened" in places
    stops = [schedule.describe() for schedule in report.schedules if "s" in schedule.recipe]
    assert "the process is stopped after the write of step_completed 'a' of pair/i" in stops
    assert report
    assert report.is_exhaustive
    assert [result.outcome.value for result in report.results] == [2]


def test_explore_is_deterministic():
    """
    Two explorations of the same scenario are the same, to the last happening.
    """
    effects = Effects()

    async def shuffle(number: int) -> float:
        effects.record(f"shuffled {number}")
        await trio.sleep(number % 3)
        return number

    @memable.workflow
    async def concurrent(ctx: memable.Context) -> list[float]:
        found: list[float] = []

        async def run(number: int) -> None:
            found.append(await ctx.step(f"s{number}", shuffle, number))

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(run, number)
        return sorted(found)

    first, second = explore(concurrent), explore(concurrent)
    assert recipes(first.schedules) == recipes(second.schedules)
    assert [one.happenings for one in first.schedules] == [one.happenings for one in second.schedules]
    assert first.problems == second.problems


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_explore_goes_to_a_depth(depth: int):
    """
    With a depth of n, the process dies up to n times in one schedule.
    """
    report = explore(pair, depth=depth, stops=False)
    assert max(len(schedule.plan.crashes) for schedule in report.schedules) == depth
    assert report


def test_explore_replays_each_recipe():
    """
    Each schedule can be run again by its recipe: the same happens in the same places.
    """
    effects = Effects()

    async def charge() -> str:
        effects.record("charge")
        return "receipt"

    @memable.workflow
    async def order(ctx: memable.Context) -> str:
        await ctx.sleep("wait", 5)
        return await ctx.step("charge", charge)

    report = explore(order, depth=2)
    chosen = random.Random(5).sample(report.schedules, 40)
    for schedule in chosen:
        (again,) = explore(order, only=schedule.recipe).schedules
        assert (again.recipe, again.places, again.outcome) == (schedule.recipe, schedule.places, schedule.outcome)
        assert again.happenings == schedule.happenings


def test_explore_runs_a_plan_longer_than_the_life():
    """
    A recipe that names a moment which a life does not have lets that life come to its end.
    """
    (schedule,) = explore(pair, only=CrashPlan.parse("999,0")).schedules
    assert schedule.recipe == ""
    assert schedule.outcome.value == 2


def test_explore_brings_the_outside_back():
    """
    What stands for the world outside survives a crash as it was then, and begins anew with each schedule.
    """
    ledger: list[str] = ["opening"]
    seen: list[tuple[str, ...]] = []

    class Bank:
        def __init__(self) -> None:
            self.balances = {"a": 10}

    bank = Bank()

    async def pay() -> int:
        ledger.append("pay")
        bank.balances["a"] -= 1
        return bank.balances["a"]

    @memable.workflow
    async def paying(ctx: memable.Context) -> int:
        return await ctx.step("pay", pay)

    def look(_result: int) -> None:
        seen.append(tuple(ledger))
        assert bank.balances["a"] == 11 - len(ledger)

    report = explore(paying, outside=[ledger, bank], check=look, allow=["different-results"])
    assert report, report
    # Killed after the payment, and before it was recorded: it happens again, and no more than that.
    assert set(seen) == {("opening", "pay"), ("opening", "pay", "pay")}
    assert ledger == ["opening"]
    assert bank.balances == {"a": 10}


def test_explore_reports_what_a_check_raises():
    """
    What the caller's check raises is a problem, with the recipe of the schedule.
    """
    effects = Effects()

    async def charge() -> str:
        effects.record("charge")
        return "receipt"

    @memable.workflow
    async def order(ctx: memable.Context) -> str:
        return await ctx.step("charge", charge)

    report = explore(order, check=lambda _: effects.assert_at_most(1), allow=["effect-repeated"])
    (problem,) = report.problems
    assert problem.kind == "check-failed"
    assert "'charge' happened 2 times, by step 'charge' of order/i" in problem.message
    again = explore(order, check=lambda _: effects.assert_at_most(1), only=problem.recipe, allow=["effect-repeated"])
    assert [one.kind for one in again.problems] == ["check-failed"]


def test_explore_reports_what_is_blocked():
    """
    An effect whose outcome a crash leaves unknown is a problem: somebody has to settle it.
    """

    @memable.workflow
    async def paying(ctx: memable.Context) -> int:
        return await ctx.step("pay", one, once=True)

    report = explore(paying)
    assert {one.kind for one in report.problems} == {"blocked", "different-results"}
    problem = report.problems[0]
    assert (problem.instance, problem.key) == ("paying/i", "pay")
    assert "unknown" in problem.message
    assert report.executions == {"paying/i: pay": 1}


def test_explore_reports_scenarios_that_do_not_finish():
    """
    A scenario of which nothing more happens is told from one that takes its time, by what waits.
    """

    @memable.workflow
    async def waiting(ctx: memable.Context) -> bool:
        await ctx.sleep("long", 30 * 86400)
        return await ctx.suspend(APPROVAL)

    report = explore(waiting)
    assert {one.kind for one in report.problems} == {"never-finishes"}
    assert "waiting/i is suspended at 'approval'" in report.problems[0].message
    assert len(report.unfinished) == len(report.schedules)


def test_explore_reports_scenarios_that_are_busy_for_ever():
    """
    A scenario that spins is given up.
    """

    async def scenario(engine: memable.Engine) -> None:
        while True:
            await trio.lowlevel.checkpoint()

    report = explore_crashes(scenario, workflows=[pair], depth=0)
    assert {one.kind for one in report.problems} == {"never-finishes"}
    assert "it goes on and on in test_explore_crashes.py" in report.problems[0].message


def test_explore_reports_scenarios_that_raise():
    """
    A scenario that does not even work without a crash proves nothing.
    """

    async def wrong(engine: memable.Engine) -> None:
        await engine.get("nobody", "i")

    report = explore_crashes(wrong, workflows=[pair])
    assert [one.kind for one in report.problems] == ["scenario-raises"]
    assert "nobody" in report.problems[0].message
    unregistered = explore_crashes(result_of(pair), workflows=[])
    assert [one.kind for one in unregistered.problems] == ["scenario-raises"]


def test_explore_takes_the_failure_of_a_workflow_for_a_result():
    """
    A workflow that fails, or is cancelled, may be what a scenario is about.
    """

    @memable.workflow
    async def failing(ctx: memable.Context) -> None:
        await ctx.step("a", one)
        raise ValueError("no")

    report = explore(failing)
    assert report, report
    assert [result.outcome.kind for result in report.results] == ["raised"]


def test_explore_finds_lost_effects_of_cancelled_steps():
    """
    A step that swallows its cancellation and does less than otherwise is found, though it returns the same.
    """
    effects = Effects()

    async def send() -> None:
        try:
            await trio.sleep(5)
            effects.record("sent", idempotency_key="k")
        except BaseException:  # noqa: BLE001, S110 - the bug
            pass

    @memable.workflow
    async def sending(ctx: memable.Context) -> None:
        await ctx.step("send", send)

    (problem,) = explore(sending).problems
    assert (problem.kind, problem.key) == ("cancellation-swallowed", "send")
    (again,) = explore(sending, only=problem.recipe).problems
    assert again.message == problem.message


def test_explore_lets_a_step_do_several_things():
    """
    One execution may do the same for several items, each with its key; a resume may do it once more.
    """
    effects = Effects()

    async def send_all(key: str) -> int:
        for name in "abc":
            effects.record("mail", idempotency_key=f"{key}/{name}")
        return 3

    @memable.workflow
    async def mailing(ctx: memable.Context) -> int:
        return await ctx.step("mails", send_all, ctx.step_id("mails"))

    async def scenario(engine: memable.Engine) -> int:
        await (await engine.invoke(mailing, instance_id="i")).result()
        return await (await engine.resume(mailing, "i", forget=["mails"])).result()

    report = explore_crashes(scenario, workflows=[mailing])
    assert report, report


def test_explore_lets_a_host_resume():
    """
    What a resume clears is not asked for again, and need not be.
    """
    world = {"is_up": False}

    async def connect() -> str:
        if not world["is_up"]:
            raise ConnectionError("down")
        return "connected"

    @memable.workflow
    async def alerting(ctx: memable.Context) -> str:
        try:
            return await ctx.step("connect", connect)
        except memable.StepFailedError:
            await ctx.step("alert", one)
            raise

    async def scenario(engine: memable.Engine) -> str:
        invocation = await engine.invoke(alerting, instance_id="i")
        with contextlib.suppress(memable.WorkflowFailedError):
            return await invocation.result()
        world["is_up"] = True
        return await (await engine.resume(alerting, "i")).result()

    report = explore_crashes(scenario, workflows=[alerting], outside=[world])
    assert report, report


def test_explore_lets_memory_die_with_the_process():
    """
    What is named as memory begins anew in each process: a step that needs what another one left there is found.
    """
    cache: dict[str, str] = {}

    async def login() -> None:
        cache["page"] = "t"

    async def fetch() -> str:
        return cache["page"]

    @memable.workflow
    async def careless(ctx: memable.Context) -> str:
        await ctx.step("login", login)
        return await ctx.step("fetch", fetch)

    assert explore(careless, outside=[cache])
    report = explore(careless, memory=[cache])
    assert "different-results" in {one.kind for one in report.problems}
    assert cache == {}


def test_explore_finds_keys_from_the_date():
    """
    A key with the date in it is found: the first restart crosses a midnight.
    """

    @memable.workflow
    async def daily(ctx: memable.Context) -> int:
        return await ctx.step(f"fetch-{dt.datetime.now(dt.UTC).date()}", one)

    assert "key-differs" in {problem.kind for problem in explore(daily).problems}


def test_explore_compares_what_knows_nothing_of_equality():
    """
    NaN, and objects without an equality of their own, are compared by what they look like.
    """

    class Plain:
        pass

    async def scenario(engine: memable.Engine) -> tuple[float, object]:
        return float("nan"), Plain()

    report = explore_crashes(scenario, workflows=[pair])
    assert report, report


def test_explore_names_the_line_behind_start_soon():
    """
    Where trio calls ``ctx.step``, the line of the nursery's owner is named.
    """
    numbers = iter(range(1000))

    @memable.workflow
    async def counting(ctx: memable.Context) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ctx.step, f"a-{next(numbers)}", one)

    report = explore(counting)
    problem = next(problem for problem in report.problems if problem.kind == "key-differs")
    assert "in counting" in problem.message


def test_explore_resets_the_outside_after_control_c():
    """
    Whatever ends an exploration, the world outside is what it was.
    """
    inbox: list[str] = []

    async def scenario(engine: memable.Engine) -> None:
        inbox.append("mail")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        explore_crashes(scenario, workflows=[pair], outside=[inbox])
    assert inbox == []


def test_explore_lets_the_scenario_signal():
    """
    A scenario is a host: it may signal, and is called again after each crash.
    """

    @memable.workflow
    async def approving(ctx: memable.Context) -> bool:
        return await ctx.suspend(APPROVAL, timeout=3600)

    async def scenario(engine: memable.Engine) -> bool:
        invocation = await engine.invoke(approving, instance_id="i")
        await invocation.wait()
        with trio.move_on_after(1):
            # Delivered before the crash, maybe.
            with contextlib.suppress(memable.SignalSupersededError):
                await engine.signal(approving, "i", APPROVAL, payload=True)
        return await invocation.result()

    report = explore_crashes(scenario, workflows=[approving])
    assert report, report
    assert [one.outcome.value for one in report.results] == [True]


def test_explore_covers_threads_retries_and_children():
    """
    Steps in threads run in place, retries and children as ever, all of them in virtual time.
    """
    effects = Effects()

    def in_thread() -> int:
        effects.record("thread", idempotency_key="t")
        return 1

    @memable.workflow
    async def child(ctx: memable.Context, number: int) -> int:
        return await ctx.step("one", one) + number

    @memable.workflow
    async def parent(ctx: memable.Context) -> int:
        numbers = await ctx.fan_out("children", child, [1, 2])
        return sum(numbers) + await ctx.step_in_thread("thread", in_thread) + await ctx.call("last", child, 1)

    report = explore_crashes(result_of(parent), workflows=[parent, child])
    assert report, report
    assert [one.outcome.value for one in report.results] == [8]


def test_explore_every_call_of_the_disk():
    """
    ``points="calls"`` dies at each call that changes the disk, and cuts the power there.
    """
    report = explore(pair, points="calls", stops=False)
    assert report, report
    assert len(report.schedules) > 60
    assert any("the disk's rename" in place for schedule in report.schedules for place in schedule.places)
    assert any("with the power cut" in place for schedule in report.schedules for place in schedule.places)


def test_explore_stops_at_max_schedules():
    """
    An exploration that is cut short says so.
    """
    report = explore(pair, max_schedules=7)
    assert len(report.schedules) == 7
    assert not report.is_exhaustive
    assert "there are more" in str(report)


def test_explore_gives_time_of_day_that_follows_virtual_time():
    """
    A workflow that reads the system's clock in a step reads the virtual one, in each life a later time.
    """

    async def now() -> dt.datetime:
        return dt.datetime.now(dt.UTC)

    @memable.workflow
    async def dated(ctx: memable.Context) -> float:
        begun = await ctx.step("begin", now)
        await ctx.sleep("month", 30 * 86400)
        ended = await ctx.step("end", now)
        return (ended - begun).total_seconds()

    report = explore(dated, allow=["different-results"])
    assert report.schedules[0].outcome.value == 30 * 86400
    assert all(30 * 86400 <= one.outcome.value <= 30 * 86400 + 60 for one in report.results)


async def test_explore_refuses_to_run_inside_trio():
    """
    Inside ``trio.run`` it says where to call it from.
    """
    with pytest.raises(RuntimeError, match="call it from a plain function"):
        explore(pair)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"depth": -1}, ValueError, "depth must be an int"),
        ({"depth": True}, ValueError, "depth must be an int"),
        ({"max_schedules": 0}, ValueError, "max_schedules must be an int"),
        ({"downtime": -1.0}, ValueError, "downtime must be a number"),
        ({"downtime": float("nan")}, ValueError, "downtime must be a number"),
        ({"only": "999"}, ValueError, "there is no schedule"),
        ({"max_schedules": 1.5}, ValueError, "max_schedules must be an int"),
        ({"points": "bytes"}, ValueError, "points must be"),
        ({"allow": ["typo"]}, ValueError, "allow takes kinds of problems"),
        ({"allow": "blocked"}, ValueError, "allow takes kinds of problems"),
        ({"only": "7;2"}, ValueError, "a recipe is like"),
        ({"outside": [5]}, TypeError, "outside= takes"),
        ({"max_parkd": 5}, TypeError, "max_parkd"),
    ],
)
def test_explore_refuses_wrong_options(options: dict[str, Any], error: type[Exception], match: str):
    """
    What is no option, or no value of one, is refused before anything runs.
    """
    with pytest.raises(error, match=match):
        explore(pair, **options)


def test_explore_lets_control_c_pass():
    """
    ``KeyboardInterrupt`` is nobody's outcome.
    """

    async def scenario(engine: memable.Engine) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        explore_crashes(scenario, workflows=[pair])


@pytest.mark.parametrize("recipe", ["", "7", "7,2", "7s,2", "p", "p3,4s"])
def test_crash_plan_is_its_recipe(recipe: str):
    """
    A plan that is read from a recipe prints as that recipe.
    """
    assert str(CrashPlan.parse(recipe)) == recipe


@pytest.mark.parametrize("recipe", ["x", "7,,2", "-1", "7 2", "s", "7ss", ","])
def test_crash_plan_refuses_other_texts(recipe: str):
    """
    What is no recipe is refused.
    """
    with pytest.raises(ValueError, match="a recipe is like"):
        CrashPlan.parse(recipe)
