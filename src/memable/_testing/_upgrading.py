"""
Explores a deploy: old code runs to each moment at which its process could end, and new code takes over.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any, TypeVar, Unpack

import attrs

from .._definition import Workflow
from .._engine import Engine
from ._crash_plan import CrashPlan
from ._exploring import (
    EngineOptions,
    check_downtime,
    check_kinds,
    check_numbers,
    make_setting,
    make_start,
    run_only,
)
from ._findings import ProblemKind
from ._happenings import Happening, KeyAsked, LifeBegun, StepExecuted
from ._life import quiet
from ._report import Report, Schedule, describe_report, describe_results
from ._scenarios import scenario_of
from ._schedules import Explorer, problems_of

T = TypeVar("T")


@attrs.frozen
class UpgradeReport(Report[T]):
    """
    What came of letting new code take over from old code wherever that could have ended: a ``Report`` that knows more.

    In each schedule the first process runs the old code, and what follows the
    new; in the first one the old code comes to its end.
    """

    @property
    def served(self) -> frozenset[tuple[str, str]]:
        """
        Instance and path of what the old code has recorded and the new code was served.
        """
        return frozenset(
            (one.instance, one.path)
            for schedule in self.schedules
            for one in _after_takeover(schedule.happenings)
            if isinstance(one, KeyAsked) and one.is_recorded
        )

    @property
    def executed(self) -> frozenset[tuple[str, str]]:
        """
        Instance and path of the steps that the new code has executed in one schedule or another.
        """
        return frozenset(
            (one.instance, one.path)
            for schedule in self.schedules
            for one in _after_takeover(schedule.happenings)
            if isinstance(one, StepExecuted)
        )

    @property
    def added(self) -> frozenset[tuple[str, str]]:
        """
        Instance and path of what only the new code asks for.
        """
        return _asked(self.schedules, by_new=True) - _asked(self.schedules, by_new=False)

    @property
    def orphaned(self) -> frozenset[tuple[str, str]]:
        """
        Instance and path of what only the old code asks for: what is recorded there is kept, and never used again.
        """
        return _asked(self.schedules, by_new=False) - _asked(self.schedules, by_new=True)

    def __str__(self) -> str:
        """
        Return the report as text.
        """
        lines = [describe_report(self.schedules, self.problems, is_exhaustive=self.is_exhaustive)]
        lines.append("results:")
        lines += describe_results(self.results)
        for told, names in (
            ("served from what the old code has recorded", self.served),
            ("asked for by the new code only", self.added),
            ("asked for by the old code only", self.orphaned),
        ):
            if names:
                lines.append(f"{told}:")
                lines += [f"  {instance}: {path}" for instance, path in sorted(names)]
        return "\n".join(lines)


def explore_upgrade(
    old: Workflow[..., Any] | Iterable[Workflow[..., Any]],
    new: Workflow[..., Any] | Iterable[Workflow[..., Any]],
    *args: object,
    scenario: Callable[[Engine], Awaitable[Any]] | None = None,
    outside: Iterable[object] = (),
    check: Callable[[Any], object] | None = None,
    stops: bool = True,
    downtime: float = 60.0,
    max_schedules: int = 10_000,
    seed: int = 0,
    only: CrashPlan | str | None = None,
    allow: Collection[ProblemKind] = (),
    **options: Unpack[EngineOptions],
) -> UpgradeReport[Any]:
    """
    Let old code run to each moment at which its process could end, and new code of the same name take over.

    Each key that both ask for is served to the new code, if the old code has recorded it; each that only the new code
    asks for runs once; a value whose type has changed leaves the instance Blocked, which is a problem that names the
    key, the old type and the new one.

    Args:
        old: The workflow as it is now, or all workflows.
        new: The workflow as it is to be, or all of them. Of the same names.
        *args: What to start it with.
        scenario: What to do with the engine instead of starting the (first) workflow and waiting for its end. It runs
            with the old code and with the new: let it name workflows by their names.
        outside: Objects that stand for the world outside, as for ``explore_crashes``.
        check: Called with what the scenario has returned, at the end of each schedule; what it raises is a problem.
        stops: Whether the old process is also stopped in order, as in most deploys.
        downtime: Virtual seconds between the processes.
        max_schedules: So many schedules are tried at most.
        seed: In which order trio takes ready tasks.
        only: The recipe of one schedule: only that one is run.
        allow: Kinds of problems that are none here.
        **options: What the engine is opened with, for instance ``aliases=``.

    Returns:
        What was found. ``assert report`` fails if there are problems.

    Raises:
        ValueError: *old* and *new* have no workflow of the same name.
        RuntimeError: Called inside ``trio.run``: call it from a plain function.

    Example:
        >>> import memable
        >>> from memable.testing import explore_upgrade
        >>> async def fetch() -> str:
        ...     return "page"
        >>> async def count(page: str) -> int:
        ...     return len(page)
        >>> @memable.workflow(name="words")
        ... async def old(ctx: memable.Context) -> str:
        ...     return await ctx.step("fetch", fetch)
        >>> @memable.workflow(name="words")
        ... async def new(ctx: memable.Context) -> int:
        ...     return await ctx.step("count", count, await ctx.step("fetch", fetch))
        >>> report = explore_upgrade(old, new)
        >>> sorted(path for _, path in report.added)
        ['count']
    """
    before, after = _as_workflows(old), _as_workflows(new)
    common = [one for one in before if one.name in {other.name for other in after}]
    if not common:
        raise ValueError(
            f"old and new have no workflow of the same name ({', '.join(one.name for one in (*before, *after))}); "
            f"give both @memable.workflow(name=...) with the name that is recorded"
        )
    check_numbers(least=1, max_schedules=max_schedules)
    check_kinds(allow)
    setting = make_setting(scenario or scenario_of(common[0], args), before, options, seed=seed)
    explorer = Explorer(
        (setting, attrs.evolve(setting, workflows=after)),
        make_start(outside),
        check_downtime(downtime),
        check,
        compares_results=False,
    )
    try:
        if only is None:
            with quiet():
                explorer.explore(1, max_schedules, stops=stops, passivates=False)
        else:
            run_only(explorer, only)
    finally:
        explorer.reset()
    # The new code is free to ask for other keys.
    return UpgradeReport(
        schedules=tuple(explorer.schedules),
        problems=problems_of(explorer, {*allow, "key-differs"}),
        is_exhaustive=not explorer.pending,
    )


def _as_workflows(given: Workflow[..., Any] | Iterable[Workflow[..., Any]]) -> tuple[Workflow[..., Any], ...]:
    return (given,) if isinstance(given, Workflow) else tuple(given)


def _takeover(happenings: tuple[Happening, ...]) -> int:
    """Return where the second life begins; behind the end if there is none."""
    beginnings = [index for index, one in enumerate(happenings) if isinstance(one, LifeBegun)]
    return beginnings[1] if len(beginnings) > 1 else len(happenings)


def _after_takeover(happenings: tuple[Happening, ...]) -> tuple[Happening, ...]:
    return happenings[_takeover(happenings) :]


def _asked(schedules: Iterable[Schedule[Any]], *, by_new: bool) -> frozenset[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for schedule in schedules:
        takeover = _takeover(schedule.happenings)
        part = schedule.happenings[takeover:] if by_new else schedule.happenings[:takeover]
        found.update((one.instance, one.path) for one in part if isinstance(one, KeyAsked))
    return frozenset(found)
