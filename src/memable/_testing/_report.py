"""
What an exploration of crashes has found, as values and as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

import attrs

from ._crash_plan import CrashPlan
from ._findings import ProblemKind, count_executions, find_differing
from ._happenings import Happening, StepExecuted
from ._life import Outcome

T = TypeVar("T")

#: Of a value so many characters are printed.
_LONGEST_VALUE = 300
#: So many problems are printed; there may be as many as schedules.
_MOST_PRINTED = 10


@attrs.frozen
class Schedule(Generic[T]):
    """
    One way in which a scenario went.
    """

    plan: CrashPlan
    "Where the process died."
    places: tuple[str, ...]
    "The same in words, one for each death."
    outcome: Outcome
    "How the last process ended."
    happenings: tuple[Happening, ...] = attrs.field(repr=False)
    "What happened, in all of them."

    @property
    def recipe(self) -> str:
        """
        What to give to ``explore_crashes(only=...)`` for this schedule.
        """
        return str(self.plan)

    @property
    def is_finished(self) -> bool:
        """
        Whether the scenario returned or raised.
        """
        return self.outcome.kind in {"returned", "raised"}

    @property
    def executions(self) -> dict[str, int]:
        """
        How often each step's function was called, by ``workflow/instance: path``.
        """
        return count_executions(self.happenings)

    def describe(self) -> str:
        """
        Return where the process died, in words.
        """
        if self.plan.passivates:
            return "every wait unwinds the body (max_parked=0)"
        if not self.places:
            return "nothing goes wrong"
        return ", then ".join(
            f"the process {'is stopped' if crash.is_stop else 'dies'} {place}"
            for crash, place in zip(self.plan.crashes, self.places, strict=True)
        )


@attrs.frozen
class Problem:
    """
    Something that is wrong with a workflow, and how to see it happen.
    """

    kind: ProblemKind
    message: str
    "What happened and what to do, naming who is to blame."
    instance: str | None
    "Of which instance, as ``workflow/id``."
    key: str | None
    "At which path."
    recipe: str
    "The shortest schedule in which it happens, for ``explore_crashes(only=...)``."
    schedule: str
    "That schedule in words."
    count: int = 1
    "In how many schedules it happens."

    def __str__(self) -> str:
        """
        Return all of it as text.
        """
        often = "" if self.count == 1 else f" (and in {self.count - 1} more)"
        replay = f': only="{self.recipe}"' if self.recipe else ""
        return f"{self.kind}: {self.message}\n    when {self.schedule}{replay}{often}"


@attrs.frozen
class Result:
    """
    A way in which scenarios ended.
    """

    outcome: Outcome
    count: int
    "In how many schedules."
    recipe: str
    "The shortest of them."


@attrs.frozen
class Report(Generic[T]):
    """
    What came of running a scenario in many ways.

    True in a condition if nothing is wrong, so that a test can say ``assert report``; printed, it says what is wrong,
    who is to blame, and how to see it happen again.
    """

    schedules: tuple[Schedule[T], ...] = attrs.field(repr=False)
    "All ways in which it went; in the first one no process dies."
    problems: tuple[Problem, ...]
    "What is wrong, the most telling first; each once, with the shortest schedule that shows it."
    is_exhaustive: bool
    "Whether all schedules were tried; if not, there are more than ``max_schedules``."

    def __bool__(self) -> bool:
        """
        Return whether nothing is wrong.
        """
        return not self.problems

    @property
    def results(self) -> tuple[Result, ...]:
        """
        How the scenario ended, over all schedules; that of the first one comes first.
        """
        return results_of(self.schedules)


@attrs.frozen
class CrashReport(Report[T]):
    """
    What came of running a scenario once for each place where its process could die: a ``Report`` that knows more.
    """

    @property
    def unfinished(self) -> tuple[Schedule[T], ...]:
        """
        The schedules in which the scenario neither returned nor raised.
        """
        return tuple(schedule for schedule in self.schedules if not schedule.is_finished)

    @property
    def executions(self) -> dict[str, int]:
        """
        How often each step's function was called in one schedule at most, by ``workflow/instance: path``.
        """
        most: dict[str, int] = {}
        for schedule in self.schedules:
            for name, count in schedule.executions.items():
                most[name] = max(count, most.get(name, 0))
        return most

    @property
    def differing_keys(self) -> dict[str, frozenset[str]]:
        """
        By instance, the keys that one run asked for and the one that finished the instance did not.
        """
        return _collect(found for schedule in self.schedules for found in find_differing(schedule.happenings))

    @property
    def unneeded(self) -> dict[str, frozenset[str]]:
        """
        By instance, the steps that ran although the run that finished the instance had no use for their outcomes.
        """
        executed = {
            (one.instance, one.path)
            for schedule in self.schedules
            for one in schedule.happenings
            if isinstance(one, StepExecuted)
        }
        return _collect(
            found for schedule in self.schedules for found in find_differing(schedule.happenings) if found in executed
        )

    def __str__(self) -> str:
        """
        Return the report as text.
        """
        lines = [describe_report(self.schedules, self.problems, is_exhaustive=self.is_exhaustive)]
        lines.append("results:")
        lines += describe_results(self.results)
        repeated = {name: often for name, often in self.executions.items() if often > 1}
        if repeated:
            lines.append("executed more than once in one schedule, at most:")
            lines += [f"  {often:>5} x {name}" for name, often in sorted(repeated.items())]
        return "\n".join(lines)


def results_of(schedules: Iterable[Schedule[Any]]) -> tuple[Result, ...]:
    """
    Return how scenarios ended, the first one first.
    """
    found: list[Result] = []
    for schedule in schedules:
        for index, known in enumerate(found):
            if known.outcome.is_like(schedule.outcome):
                found[index] = attrs.evolve(known, count=known.count + 1)
                break
        else:
            found.append(Result(schedule.outcome, 1, schedule.recipe))
    return tuple(found)


def describe_results(results: Sequence[Result]) -> list[str]:
    """
    Return a line for each result, if they are not too many.
    """
    lines = [f"  {one.count:>5} x {describe_outcome(one.outcome)}" for one in results[:_MOST_PRINTED]]
    more = len(results) - _MOST_PRINTED
    return lines if more <= 0 else [*lines, f"  ... and {more} others"]


def describe_report(schedules: Sequence[object], problems: Sequence[Problem], *, is_exhaustive: bool) -> str:
    """
    Return how many schedules there were and what is wrong, as text.
    """
    more = "" if is_exhaustive else " (there are more: raise max_schedules)"
    told = "no problems" if not problems else f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    lines = [f"{len(schedules)} schedule{'s' if len(schedules) != 1 else ''}{more}, {told}"]
    lines += [f"{number}. {problem}" for number, problem in enumerate(problems[:_MOST_PRINTED], 1)]
    if len(problems) > _MOST_PRINTED:
        lines.append(f"... and {len(problems) - _MOST_PRINTED} more")
    return "\n".join(lines)


def describe_outcome(outcome: Outcome) -> str:
    """
    Return how a process ended, in words.
    """
    match outcome.kind:
        case "returned":
            return f"returned {_shown(outcome.value)}"
        case "raised":
            return f"raised {outcome.text}"
        case "stopped":
            return "stopped"
        case _:
            return f"{outcome.kind}: {outcome.text}"


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception as exc:  # noqa: BLE001 - a report is printed whatever the value is
        text = f"a {type(value).__name__} whose repr raises {type(exc).__name__}"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _collect(pairs: Iterable[tuple[str, str]]) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for instance, path in pairs:
        found.setdefault(instance, set()).add(path)
    return {instance: frozenset(paths) for instance, paths in found.items()}
