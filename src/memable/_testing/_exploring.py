"""
Explores crashes: runs a scenario once for each place where its process could die, and sees what comes of it.

The schedules form a tree. At its root nothing goes wrong; each moment at which that process could die is a branch, on
which the next process begins with what the dead one has left; and so on, to a given depth. The technique is that of
CHESS (Musuvathi and Qadeer, PLDI 2007) and ALICE (Pillai et al., OSDI 2014): systematic, in the order of the number of
things that go wrong, over a model of the disk.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypedDict, TypeVar, Unpack

import attrs
import cattrs
import trio

from .._definition import Workflow
from .._engine import Engine
from .._numbers import is_count
from .._open import DEFAULT_MAX_VALUE_BYTES, Surroundings
from .._retry import RetryPolicy
from .._values._codec import Codec
from ._crash_plan import Crash, CrashPlan, as_plan
from ._findings import PROBLEM_KINDS, Finding, ProblemKind, find_problems, late_steps, values_in
from ._life import BEGINS_AT_UNIX_S, Fork, Life, Moment, Outcome, Points, Setting, live
from ._outside import check_outside, take_down
from ._report import CrashReport, Problem, Schedule, describe_outcome
from ._simulated_disk import SimulatedDisk

T = TypeVar("T")

#: A scenario of which nothing more has happened by then, in virtual seconds, is stuck: a hundred years.
STUCK_AFTER_S = 100 * 365 * 86400.0


class EngineOptions(TypedDict, total=False):
    """
    What ``open_engine`` can be given, beside the store and the workflows.
    """

    default_retry: RetryPolicy | None
    shutdown_timeout: float
    retention: float | None
    max_parked: int
    max_recoveries: int
    converter: cattrs.Converter | None
    aliases: Mapping[str, type]
    max_value_bytes: int


def explore_crashes(
    scenario: Callable[[Engine], Awaitable[T]],
    *,
    workflows: Iterable[Workflow[..., Any]],
    outside: Iterable[object] = (),
    check: Callable[[T], object] | None = None,
    depth: int = 1,
    stops: bool = True,
    points: Points = "writes",
    downtime: float = 60.0,
    max_schedules: int = 10_000,
    seed: int = 0,
    only: CrashPlan | str | None = None,
    allow: Collection[ProblemKind] = (),
    **options: Unpack[EngineOptions],
) -> CrashReport[T]:
    """
    Run a scenario once for each place where its process could die, restarting it until it finishes.

    Time is virtual and the disk simulated, so that this is quick, and the same each time. A process dies before, within
    and after each durable write, and after each effect that an ``Effects`` records; the next one finds what is on the
    disk then, opens an engine, and calls *scenario* again. Once more for each write the process is not killed but
    stopped in order, its tasks being cancelled; and once all waits are passivated.

    Args:
        scenario: What the process does with its engine: an async function of it, called again after each crash. Let it
            start instances by fixed ids, so that a second call finds those that the first one has started.
        workflows: The workflows to register.
        outside: Objects that stand for the world outside: what they hold survives the process, and begins anew with
            each schedule. ``Effects`` need not be named; lists, dicts, sets and objects with attributes do.
        check: Called with what the scenario has returned, at the end of each schedule; what it raises is a problem.
        depth: How often the process may die in one schedule. The number of schedules grows with its power.
        stops: Whether the process is also stopped in order.
        points: ``"writes"``, or ``"calls"`` for each call that changes the disk, and for power cuts there.
        downtime: Virtual seconds between a death and the next process.
        max_schedules: So many schedules are tried at most.
        seed: In which order trio takes ready tasks; retries with jitter and ids made by memable depend on it, too.
        only: The recipe of one schedule, as a report prints it: only that one is run, and what memable logs in it is
            logged. In all others it is not, since crashes are meant there.
        allow: Kinds of problems that are none here.
        **options: What the engine is opened with.

    Returns:
        What was found. ``assert report`` fails if there are problems, and prints them.

    Raises:
        RuntimeError: Called inside ``trio.run``: call it from a plain function.
        BaseException: What is no ``Exception``, such as ``KeyboardInterrupt``, as the scenario raised it.

    Example:
        >>> import memable
        >>> from memable.testing import Effects, explore_crashes
        >>> effects = Effects()
        >>> async def charge() -> str:
        ...     effects.record("charge")
        ...     return "receipt"
        >>> @memable.workflow
        ... async def order(ctx: memable.Context) -> str:
        ...     return await ctx.step("charge", charge)
        >>> async def scenario(engine: memable.Engine) -> str:
        ...     return await (await engine.invoke(order, instance_id="o-1")).result()
        >>> report = explore_crashes(scenario, workflows=[order])
        >>> [problem.kind for problem in report.problems]
        ['effect-repeated']
    """
    settings = _check(scenario, workflows, points, seed, options)
    _check_numbers(depth=depth, max_schedules=max_schedules)
    _check_kinds(allow)
    start = Moment(
        disk=SimulatedDisk(),
        outside=tuple((one, take_down(one)) for one in check_outside(outside)),
        at_unix_s=BEGINS_AT_UNIX_S,
    )
    explorer = _Explorer(settings, start, float(downtime), check)
    if only is None:
        with _quiet():
            explorer.explore(depth, max_schedules, stops=stops)
    else:
        explorer.run_one(as_plan(only))
    return CrashReport(
        schedules=tuple(explorer.schedules),
        problems=_sorted(explorer, allow),
        is_exhaustive=not explorer.pending,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what recoveries tell of crashes that were meant."""
    logger = logging.getLogger("memable")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check(
    scenario: Callable[[Engine], Awaitable[Any]],
    workflows: Iterable[Workflow[..., Any]],
    points: Points,
    seed: int,
    options: EngineOptions,
) -> Setting:
    given: object = scenario
    if not callable(given):
        raise TypeError(f"scenario must be an async function of an engine, not {scenario!r}")
    if points not in {"writes", "calls"}:
        raise ValueError(f'points must be "writes" or "calls", not {points!r}')
    if trio.lowlevel.in_trio_run():
        raise RuntimeError("this runs trio itself: call it from a plain function, not from an async one")
    codec = Codec(
        converter=options.get("converter"),
        aliases=options.get("aliases", {}),
        max_value_bytes=options.get("max_value_bytes", DEFAULT_MAX_VALUE_BYTES),
    )
    return Setting(
        scenario=scenario,
        workflows=tuple(workflows),
        options=options,
        surroundings=Surroundings(codec=codec),
        points=points,
        stuck_after_s=STUCK_AFTER_S,
        seed=seed,
    )


def _check_numbers(**numbers: object) -> None:
    for name, number in numbers.items():
        if not is_count(number, least=0):
            raise ValueError(f"{name} must be an int, at least 0, not {number!r}")


def _check_kinds(allow: Collection[str]) -> None:
    unknown = [kind for kind in allow if kind not in PROBLEM_KINDS]
    if unknown or isinstance(allow, str):
        raise ValueError(f"allow takes kinds of problems ({', '.join(PROBLEM_KINDS)}), not {allow!r}")


@attrs.frozen
class _Task:
    """A schedule that is to be run: a life, and maybe one more that follows it."""

    plan: CrashPlan
    places: tuple[str, ...]
    start: Moment
    depth: int
    stop_at: int | None = None


@attrs.define
class _Explorer:
    setting: Setting
    start: Moment
    downtime_s: float
    check: Callable[[Any], object] | None
    schedules: list[Schedule[Any]] = attrs.field(factory=list)
    findings: list[list[Finding]] = attrs.field(factory=list)
    pending: deque[_Task] = attrs.field(factory=deque)
    values: dict[tuple[str, str], object] = attrs.field(factory=dict)
    "What steps returned when nothing was cancelled, by instance and path."

    def explore(self, depth: int, max_schedules: int, *, stops: bool) -> None:
        """Run schedules, those in which least goes wrong first."""
        self.pending.append(_Task(CrashPlan(), (), self.start, depth))
        self.pending.append(_Task(CrashPlan(passivates=True), (), self.start, 0))
        while self.pending and len(self.schedules) < max_schedules:
            task = self.pending.popleft()
            if task.stop_at is None:
                life = self._run(task.plan, task.places, task.start, forks=task.depth > 0)
                self.pending.extend(self._branches(task, life, stops=stops))
            else:
                self._stop_and_run(task, task.stop_at)

    def run_one(self, plan: CrashPlan) -> None:
        """Run one schedule."""
        start, places = self.start, list[str]()
        setting = self._setting_for(plan)
        for index, crash in enumerate(plan.crashes):
            entropy = str(CrashPlan(plan.crashes[:index]))
            if crash.is_stop:
                life = live(setting, start, stop_at=crash.moment, forks=False, entropy=entropy)
                place, found = life.stop_place, life.end if life.stop_place else None
            else:
                life = live(setting, start, only=crash.moment, entropy=entropy)
                place, found = next(((fork.place, fork.moment) for fork in life.forks), ("", None))
            if found is None:
                # It does not live so long: it comes to its end.
                plan = attrs.evolve(plan, crashes=plan.crashes[:index])
                break
            places.append(place)
            start = self._after(found)
        self._run(plan, tuple(places), start, forks=False)

    def _branches(self, task: _Task, life: Life, *, stops: bool) -> Iterable[_Task]:
        for fork in life.forks:
            yield self._branch(task, fork)
        for fork in life.forks if stops else ():
            if fork.is_write:
                plan, places = task.plan.followed_by(Crash(fork.number, is_stop=True)), (*task.places, fork.place)
                yield _Task(plan, places, task.start, 0, stop_at=fork.number)

    def _branch(self, task: _Task, fork: Fork) -> _Task:
        plan = task.plan.followed_by(Crash(fork.number))
        return _Task(plan, (*task.places, fork.place), self._after(fork.moment), task.depth - 1)

    def _stop_and_run(self, task: _Task, stop_at: int) -> None:
        entropy = str(attrs.evolve(task.plan, crashes=task.plan.crashes[:-1]))
        life = live(self.setting, task.start, stop_at=stop_at, forks=False, entropy=entropy)
        self._run(task.plan, task.places, self._after(life.end), forks=False)

    def _run(self, plan: CrashPlan, places: tuple[str, ...], start: Moment, *, forks: bool) -> Life:
        """Run the last life of a schedule, and find out what is wrong with the whole."""
        life = live(self._setting_for(plan), start, forks=forks, entropy=str(plan))
        schedule = Schedule[Any](plan, places, life.outcome, life.end.happenings)
        late = late_steps(schedule.happenings)
        recorded = values_in(life.journals)
        self.values = {**{key: value for key, value in recorded.items() if key not in late}, **self.values}
        findings = find_problems(schedule.happenings, life.journals, self.values)
        findings.extend(self._judge_outcome(life.outcome))
        self.schedules.append(schedule)
        self.findings.append(findings)
        return life

    def _judge_outcome(self, outcome: Outcome) -> Iterable[Finding]:
        if outcome.kind in {"stuck", "busy"}:
            yield Finding("never-finishes", None, None, outcome.kind, f"the scenario does not finish: {outcome.text}")
            return
        expected = self.schedules[0].outcome if self.schedules else outcome
        if outcome != expected and expected.kind not in {"stuck", "busy"}:
            told = f"the scenario {describe_outcome(outcome)}, and without a crash it {describe_outcome(expected)}"
            yield Finding("different-results", None, None, "", told)
        if outcome.kind == "returned" and self.check is not None:
            try:
                self.check(outcome.value)
            except Exception as exc:  # noqa: BLE001 - whatever it raises says that something is wrong
                yield Finding("check-failed", None, None, type(exc).__name__, f"{type(exc).__name__}: {exc}")

    def _setting_for(self, plan: CrashPlan) -> Setting:
        if not plan.passivates:
            return self.setting
        return attrs.evolve(self.setting, options={**self.setting.options, "max_parked": 0})

    def _after(self, moment: Moment) -> Moment:
        return attrs.evolve(moment, at_unix_s=moment.at_unix_s + self.downtime_s)


def _sorted(explorer: _Explorer, allow: Collection[str]) -> tuple[Problem, ...]:
    """Return each problem once, with the shortest schedule that shows it."""
    found: dict[tuple[object, ...], Problem] = {}
    for schedule, findings in zip(explorer.schedules, explorer.findings, strict=True):
        for name in {(one.kind, one.instance, one.key, one.subject): one for one in findings}.items():
            identity, one = name
            if one.kind in allow:
                continue
            known = found.get(identity)
            if known is not None:
                found[identity] = attrs.evolve(known, count=known.count + 1)
                continue
            found[identity] = Problem(
                one.kind, one.message, one.instance, one.key, schedule.recipe, schedule.describe()
            )
    return tuple(sorted(found.values(), key=lambda problem: PROBLEM_KINDS.index(problem.kind)))
