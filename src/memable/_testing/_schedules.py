"""
Runs the schedules of an exploration: lives one after the other, those in which least goes wrong first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import attrs

from .._encoded import Encoded
from .._errors import WorkflowBlockedError, WorkflowCancelledError, WorkflowFailedError
from .._states import Cancelled, Failed
from ._crash_plan import Crash, CrashPlan
from ._findings import PROBLEM_KINDS, Finding, effects_of_steps, find_problems, late_steps, values_in
from ._happenings import EndRecorded, LifeBegun
from ._life import Fork, Life, Moment, Outcome, Setting, live, quiet
from ._outside import bring_back
from ._report import Problem, Schedule, describe_outcome

#: What a scenario may raise: it waited for an instance that did not end well.
_ENDINGS = (WorkflowFailedError, WorkflowCancelledError, WorkflowBlockedError)


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
    unsteady: set[tuple[str, str]] = attrs.field(factory=set)
    "Those of them that do not always return the same."
    effects: frozenset[tuple[str, str, str]] = frozenset()
    "What steps did in the world outside where nothing went wrong."
    expected: Outcome | None = None
    "How the scenario ended then."

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
        Let the world outside be what it was before, and what stands for memory, too.
        """
        first = self.settings[0]
        for one, state in (*self.start.outside, *first.adopted.values(), *first.memory):
            bring_back(one, state)

    def run_one(self, plan: CrashPlan) -> None:
        """
        Run one schedule.
        """
        if plan.crashes or plan.passivates:
            # What nothing goes wrong in is what this one is compared with.
            with quiet():
                self._run(CrashPlan(), (), self.start, forks=False, is_reported=False)
        start, places, stubborn = self.start, list[str](), list[Finding]()
        for index, crash in enumerate(plan.crashes):
            so_far = attrs.evolve(plan, crashes=plan.crashes[:index])
            setting, entropy = self._setting_for(so_far), str(so_far)
            if crash.is_stop:
                life = live(setting, start, stop_at=crash.moment, forks=False, entropy=entropy)
                place, found = life.stop_place, life.end if life.stop_place else None
                stubborn.extend(_find_stubborn(life))
            else:
                life = live(setting, start, only=crash.moment, entropy=entropy)
                place, found = next(((fork.place, fork.moment) for fork in life.forks), ("", None))
            if found is None:
                # It does not live so long: it comes to its end.
                plan = attrs.evolve(plan, crashes=plan.crashes[:index])
                break
            places.append(place)
            start = self.after(found)
        self._run(plan, tuple(places), start, forks=False)
        self.findings[-1].extend(stubborn)

    def _branches(self, task: _Task, life: Life, *, stops: bool) -> Iterable[_Task]:
        for fork in life.forks:
            yield self._branch(task, fork)
        for fork in life.forks if stops else ():
            if fork.is_write:
                plan, places = task.plan.followed_by(Crash(fork.number, is_stop=True)), (*task.places, fork.place)
                yield _Task(plan, places, task.start, 0, stop_at=fork.number)

    def _branch(self, task: _Task, fork: Fork) -> _Task:
        plan = task.plan.followed_by(Crash(fork.number))
        return _Task(plan, (*task.places, fork.place), self.after(fork.moment), task.depth - 1)

    def _stop_and_run(self, task: _Task, stop_at: int) -> None:
        before = attrs.evolve(task.plan, crashes=task.plan.crashes[:-1])
        life = live(self._setting_for(before), task.start, stop_at=stop_at, forks=False, entropy=str(before))
        self._run(task.plan, task.places, self.after(life.end), forks=False)
        self.findings[-1].extend(_find_stubborn(life))

    def _run(
        self, plan: CrashPlan, places: tuple[str, ...], start: Moment, *, forks: bool, is_reported: bool = True
    ) -> Life:
        """Run the last life of a schedule, and find out what is wrong with the whole."""
        life = live(self._setting_for(plan), start, forks=forks, entropy=str(plan))
        # An end that nothing follows is no news, and only looked for where somebody branches.
        happenings = life.end.happenings
        last = max(index for index, one in enumerate(happenings) if isinstance(one, LifeBegun))
        told = (*happenings[:last], *(one for one in happenings[last:] if not isinstance(one, EndRecorded)))
        schedule = Schedule[Any](plan, places, life.outcome, told)
        recorded = values_in(life.journals)
        self._learn(schedule, recorded)
        if not is_reported:
            return life
        steady = {key: value for key, value in self.values.items() if key not in self.unsteady}
        findings = find_problems(schedule.happenings, life.journals, steady, self.effects)
        findings.extend(self._judge_outcome(schedule))
        findings.extend(self._left_behind(plan, life))
        self.schedules.append(schedule)
        self.recorded.append(recorded)
        self.findings.append(findings)
        return life

    def _learn(self, schedule: Schedule[Any], recorded: Mapping[tuple[str, str], Encoded]) -> None:
        """Take note of what happens where nothing is cancelled, and first of all where nothing goes wrong."""
        if self.expected is None:
            self.expected = schedule.outcome
            self.effects = effects_of_steps(schedule.happenings)
        late = late_steps(schedule.happenings)
        for key, value in recorded.items():
            if key not in late and self.values.setdefault(key, value) != value:
                self.unsteady.add(key)

    def _left_behind(self, plan: CrashPlan, life: Life) -> Iterable[Finding]:
        """Find instances that go on and whose workflow nobody has any more."""
        known = {workflow.name for workflow in self._setting_for(plan).workflows}
        for instance, journal in life.journals.items():
            name = journal.started.workflow
            if journal.ending is None and name not in known and plan.crashes:
                told = f"{instance} goes on, and there is no workflow {name!r} any more: register it until none is left"
                yield Finding("left-behind", instance, None, "", told)

    def _judge_outcome(self, schedule: Schedule[Any]) -> Iterable[Finding]:
        outcome, expected = schedule.outcome, self.expected
        assert expected is not None
        if outcome.kind in {"stuck", "busy"}:
            yield Finding("never-finishes", None, None, outcome.kind, f"the scenario does not finish: {outcome.text}")
            return
        is_first = not schedule.plan.crashes and not schedule.plan.passivates
        is_odd = outcome.kind == "raised" and not isinstance(outcome.exc, _ENDINGS)
        if is_odd and (is_first or (not self.compares_results and not outcome.is_like(expected))):
            told = f"the scenario {describe_outcome(outcome)}"
            yield Finding("scenario-raises", None, None, outcome.text, f"{told}; see that it does what a program would")
        elif self.compares_results and not outcome.is_like(expected) and expected.kind not in {"stuck", "busy"}:
            told = f"the scenario {describe_outcome(outcome)}; without a crash it {describe_outcome(expected)}"
            yield Finding("different-results", None, None, "", told)
        elif not self.compares_results and _is_bad_end(outcome) and not _is_bad_end(expected):
            yield Finding("different-results", None, None, "", f"with the new code, it {describe_outcome(outcome)}")
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

    def after(self, moment: Moment) -> Moment:
        """
        Return what the next process finds.
        """
        return attrs.evolve(moment, at_unix_s=moment.at_unix_s + self.downtime_s)


def _find_stubborn(stopped: Life) -> Iterable[Finding]:
    """Find out whether a process that was stopped went on."""
    if stopped.outcome.kind == "busy":
        told = f"the process was cancelled, and {stopped.outcome.text}: let trio.Cancelled pass"
        yield Finding("cancellation-swallowed", None, None, stopped.outcome.text, told)


def _is_bad_end(outcome: Outcome) -> bool:
    return isinstance(outcome.exc, _ENDINGS) or isinstance(outcome.value, (Failed, Cancelled))


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
