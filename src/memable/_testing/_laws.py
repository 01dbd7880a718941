"""
Laws that hold for every workflow whose keys are right, to be asserted of one's own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import closing
from typing import Any, Unpack

import attrs

from .._definition import Workflow
from .._encoded import Encoded
from .._engine import Engine
from ._exploring import EngineOptions, check_numbers, make_setting, make_start
from ._findings import describe_keys, find_differing
from ._happenings import Happening, KeyAsked, LifeBegun, StepExecuted
from ._life import Life, live, quiet
from ._scenarios import scenario_of
from ._schedules import Explorer

#: So many virtual seconds pass between two processes.
_DOWNTIME_S = 60.0
#: With each seed but the first, so many of its moments are tried.
_MOMENTS_A_SEED = 20


def assert_replays(
    workflow: Workflow[..., Any],
    *args: object,
    scenario: Callable[[Engine], Awaitable[object]] | None = None,
    workflows: Iterable[Workflow[..., Any]] = (),
    outside: Iterable[object] = (),
    **options: Unpack[EngineOptions],
) -> None:
    """
    Assert that a second run of a workflow over its memos executes no step, and asks for the same keys.

    The workflow is run to its end, under virtual time over a simulated disk. Then it is run again from what a process
    leaves that dies just before that end is recorded.

    Args:
        workflow: What to run.
        *args: What to start it with.
        scenario: What to do with the engine instead of starting the workflow and waiting for its end.
        workflows: Others that it needs: children, for instance.
        outside: Objects that stand for the world outside, as for ``explore_crashes``.
        **options: What the engine is opened with.

    Raises:
        AssertionError: A step was executed again, or the keys differ: the message names them.
        RuntimeError: Called inside ``trio.run``: call it from a plain function.

    Example:
        >>> import memable
        >>> from memable.testing import assert_replays
        >>> async def double(number: int) -> int:
        ...     return 2 * number
        >>> @memable.workflow
        ... async def quadruple(ctx: memable.Context, number: int) -> int:
        ...     return await ctx.step("again", double, await ctx.step("once", double, number))
        >>> assert_replays(quadruple, 5)
    """
    setting = make_setting(scenario or scenario_of(workflow, args), (workflow, *workflows), options)
    start = make_start(outside)
    explorer = Explorer((setting,), start, _DOWNTIME_S)
    with quiet(), closing(_Resetting(explorer)):
        first = live(setting, start)
        if first.outcome.kind != "returned":
            raise AssertionError(f"workflow {workflow.name!r} does not even run once: {first.outcome.text}")
        ends = [fork for fork in first.forks if fork.ends and fork.place.startswith("before ")]
        problems = {
            instance: problem
            for fork in ends
            for life in (live(setting, explorer.after(fork.moment), forks=False, entropy="replay"),)
            for instance in fork.ends
            if (problem := _compare(first, life, instance)) is not None
        }
    if not ends:
        raise AssertionError(f"no instance has ended: {first.outcome.value}")
    if problems:
        raise AssertionError("; ".join(f"{instance} does not replay: {told}" for instance, told in problems.items()))


@attrs.frozen
class _Resetting:
    """Lets the world outside be what it was before, when it is closed."""

    _explorer: Explorer

    def close(self) -> None:
        """Do so."""
        self._explorer.reset()


def _compare(first: Life, second: Life, instance: str) -> str | None:
    """Return how a replay differs from the run before it, or None."""
    before, after = first.end.happenings, second.end.happenings
    later = after[_last_beginning(after) :]
    again = [one.path for one in later if isinstance(one, StepExecuted) and one.instance == instance]
    if again:
        return f"it executes {describe_keys(again)} again"
    missing = [path for owner, path in find_differing(after) if owner == instance]
    new = _keys(later, instance) - _keys(before, instance)
    if not missing and not new:
        return None
    told = [f"does not ask for {describe_keys(missing)}"] if missing else []
    told += [f"asks for {describe_keys(sorted(new))} instead"] if new else []
    return f"the second run {' and '.join(told)}"


def _last_beginning(happenings: tuple[Happening, ...]) -> int:
    return max(index for index, one in enumerate(happenings) if isinstance(one, LifeBegun))


def _keys(happenings: Iterable[Happening], instance: str) -> set[str]:
    return {one.path for one in happenings if isinstance(one, KeyAsked) and one.instance == instance}


def assert_order_independent(
    workflow: Workflow[..., Any],
    *args: object,
    seeds: int = 10,
    ignore: Collection[str] = (),
    scenario: Callable[[Engine], Awaitable[object]] | None = None,
    workflows: Iterable[Workflow[..., Any]] = (),
    outside: Iterable[object] = (),
    **options: Unpack[EngineOptions],
) -> None:
    """
    Assert that the map of keys to values is the same, whatever order trio takes ready tasks in and wherever it crashes.

    Trio shuffles ready tasks on purpose. What a workflow records must not depend on it: not even a key, above all not a
    value that is kept under it.

    Args:
        workflow: What to run.
        *args: What to start it with.
        seeds: How many orders to try. With the first, the process dies at each of its moments; with each other, at a
            sample of them.
        ignore: Paths whose values may differ, since their steps read the clock or make something random.
        scenario: What to do with the engine instead of starting the workflow and waiting for its end.
        workflows: Others that it needs: children, for instance.
        outside: Objects that stand for the world outside, as for ``explore_crashes``.
        **options: What the engine is opened with.

    Raises:
        AssertionError: It is not: the message names the instance, the key, both values, and in which schedules.
        RuntimeError: Called inside ``trio.run``: call it from a plain function.

    Example:
        >>> import memable, trio
        >>> from memable.testing import assert_order_independent
        >>> async def fetch(page: int) -> str:
        ...     return f"page {page}"
        >>> @memable.workflow
        ... async def fetch_all(ctx: memable.Context) -> None:
        ...     async with trio.open_nursery() as nursery:
        ...         for page in range(3):
        ...             nursery.start_soon(ctx.step, f"fetch-{page}", fetch, page)
        >>> assert_order_independent(fetch_all)
    """
    check_numbers(seeds=seeds)
    chosen = scenario or scenario_of(workflow, args)
    given = (workflow, *workflows)
    known: Mapping[tuple[str, str], Encoded] | None = None
    known_in = ""
    start = make_start(outside)
    for seed in range(seeds):
        explorer = Explorer(
            (make_setting(chosen, given, options, seed=seed),), start, _DOWNTIME_S, compares_results=False
        )
        with quiet(), closing(_Resetting(explorer)):
            explorer.explore(1, 10_000 if seed == 0 else _MOMENTS_A_SEED, stops=False, passivates=seed == 0)
        first = explorer.schedules[0]
        if first.outcome.kind == "raised":
            raise AssertionError(f"workflow {workflow.name!r} does not even run once: {first.outcome.text}")
        for schedule, values in zip(explorer.schedules, explorer.recorded, strict=True):
            told_in = f"seed {seed}, when {schedule.describe()}"
            found = {name: value for name, value in values.items() if name[1] not in ignore}
            if known is None:
                known, known_in = found, told_in
            elif found != known:
                raise AssertionError(_describe_difference(known, known_in, found, told_in))


def _describe_difference(
    known: Mapping[tuple[str, str], Encoded], known_in: str, found: Mapping[tuple[str, str], Encoded], found_in: str
) -> str:
    name = next(name for name in (*known, *found) if known.get(name) != found.get(name))
    return (
        f"{name[0]}, key {name[1]!r}: the value depends on the order in which tasks run, or on crashes\n"
        f"    {_text_of(known.get(name))} with {known_in}\n"
        f"    {_text_of(found.get(name))} with {found_in}"
    )


def _text_of(value: Encoded | None) -> str:
    return "nothing recorded" if value is None else value.data.decode()
