"""
Runs the schedules of an exploration: lives one after the other, those in which least goes wrong first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any

import attrs

from .._encoded import Encoded
from ._crash_plan import Crash, CrashPlan
from ._findings import PROBLEM_KINDS, Finding, find_problems, late_steps, values_in
from ._life import Fork, Life, Moment, Outcome, Setting, live
from ._outside import bring_back
from ._report import Problem, Schedule, describe_outcome


@attrs.frozen
class _Task:
    """A schedule that is to be run: a life, and maybe one more that follows it."""

    plan: CrashPlan
    places: tuple[str, ...]
    start: Moment
    depth: int
    stop_at: int | None = None


@attrs.define
class Explorer:
    """
    What was explored so far, and what is still to be.
    """

    settings: tuple[Setting, ...]
    "Of the first process, the second, and so on; the last one holds for all that follow."
    start: Moment
    "What the first process finds."
    downtime_s: float
    "How long nothing runs between two processes."
    check: Callable[[Any], object] | None = None
    "Called with what the scenario has returned."
    compares_results: bool = True
    "Whether all schedules are to end alike."
    schedules: list[Schedule[Any]] = attrs.field(factory=list)
    recorded: list[dict[tuple[str, str], Encoded]] = attrs.field(factory=list)
    "What steps have returned at the end of each schedule, by instance and path."
    findings: list[list[Finding]] = attrs.field(factory=list)
    "What is wrong with each schedule."
    pending: deque[_Task] = attrs.field(factory=deque)
    values: dict[tuple[str, str], Encoded] = attrs.field(factory=dict)
    "What steps returned when nothing was cancelled, by instance and path."

    def explore(self, depth: int, max_schedules: int, *, stops: bool, passivates: bool = True) -> None:
        """
        Run schedules until there are no more, or so many.
        """
        self.pending.append(_Task(CrashPlan(), (), self.start, depth))
        if passivates:
            self.pending.append(_Task(CrashPlan(passivates=True), (), self.start, 0))
        while self.pending and len(self.schedules) < max_schedules:
            task = self.pending.popleft()
            if task.stop_at is None:
                life = self._run(task.plan, task.places, task.start, forks=task.depth > 0)
                self.pending.extend(self._branches(task, life, stops=stops))
            else:
                self._stop_and_run(task, task.stop_at)

    def reset(self) -> None:
        """
        Let the world outside be what it was before.
        """
        for one, state in self.start.outside:
            bring_back(one, state)
        for one, state in self.settings[0].adopted.values():
            bring_back(one, state)

    def run_one(self, plan: CrashPlan) -> None:
        """
        Run one schedule.
        """
        start, places = self.start, list[str]()
        for index, crash in enumerate(plan.crashes):
            so_far = attrs.evolve(plan, crashes=plan.crashes[:index])
            setting, entropy = self._setting_for(so_far), str(so_far)
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
        before = attrs.evolve(task.plan, crashes=task.plan.crashes[:-1])
        life = live(self._setting_for(before), task.start, stop_at=stop_at, forks=False, entropy=str(before))
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
        self.recorded.append(recorded)
        self.findings.append(findings)
        return life

    def _judge_outcome(self, outcome: Outcome) -> Iterable[Finding]:
        if outcome.kind in {"stuck", "busy"}:
            yield Finding("never-finishes", None, None, outcome.kind, f"the scenario does not finish: {outcome.text}")
            return
        expected = self.schedules[0].outcome if self.schedules else outcome
        if self.compares_results and outcome != expected and expected.kind not in {"stuck", "busy"}:
            told = f"the scenario {describe_outcome(outcome)}, and without a crash it {describe_outcome(expected)}"
            yield Finding("different-results", None, None, "", told)
        if outcome.kind == "returned" and self.check is not None:
            try:
                self.check(outcome.value)
            except Exception as exc:  # noqa: BLE001 - whatever it raises says that something is wrong
                yield Finding("check-failed", None, None, type(exc).__name__, f"{type(exc).__name__}: {exc}")

    def _setting_for(self, plan: CrashPlan) -> Setting:
        setting = self.settings[min(len(plan.crashes), len(self.settings) - 1)]
        if not plan.passivates:
            return setting
        return attrs.evolve(setting, options={**setting.options, "max_parked": 0})

    def _after(self, moment: Moment) -> Moment:
        return attrs.evolve(moment, at_unix_s=moment.at_unix_s + self.downtime_s)


def problems_of(explorer: Explorer, allow: Collection[str]) -> tuple[Problem, ...]:
    """
    Return each problem once, the most telling first, with the shortest schedule that shows it.
    """
    found: dict[tuple[object, ...], Problem] = {}
    for schedule, findings in zip(explorer.schedules, explorer.findings, strict=True):
        for identity, one in {(one.kind, one.instance, one.key, one.subject): one for one in findings}.items():
            known = found.get(identity)
            if one.kind in allow:
                continue
            if known is not None:
                found[identity] = attrs.evolve(known, count=known.count + 1)
                continue
            told = (schedule.recipe, schedule.describe())
            found[identity] = Problem(one.kind, one.message, one.instance, one.key, *told)
    return tuple(sorted(found.values(), key=lambda problem: PROBLEM_KINDS.index(problem.kind)))
