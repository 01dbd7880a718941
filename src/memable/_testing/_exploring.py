"""
Explores crashes: runs a scenario once for each place where its process could die, and sees what comes of it.

The schedules form a tree. At its root nothing goes wrong; each moment at which that process could die is a branch, on
which the next process begins with what the dead one has left; and so on, to a given depth. The technique is that of
CHESS (Musuvathi and Qadeer, PLDI 2007) and ALICE (Pillai et al., OSDI 2014): systematic, in the order of the number of
things that go wrong, over a model of the disk.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any, TypedDict, TypeVar, Unpack

import attrs
import cattrs
import trio

from .._definition import Workflow
from .._engine import Engine
from .._numbers import is_count, is_number
from .._open import DEFAULT_MAX_VALUE_BYTES, Surroundings
from .._retry import RetryPolicy
from .._values._codec import Codec
from ._crash_plan import CrashPlan, as_plan
from ._findings import PROBLEM_KINDS, ProblemKind
from ._life import BEGINS_AT_UNIX_S, Moment, Points, Setting, quiet
from ._outside import take_all_down
from ._report import CrashReport
from ._schedules import Explorer, problems_of
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
    memory: Iterable[object] = (),
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
        memory: Objects that die with the process, such as the caches of a module: each process begins with what they
            hold now.
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
    setting = make_setting(scenario, workflows, options, points=points, seed=seed)
    check_numbers(depth=depth)
    check_numbers(least=1, max_schedules=max_schedules)
    check_kinds(allow)
    setting = attrs.evolve(setting, memory=take_all_down(memory, "memory"))
    explorer = Explorer((setting,), make_start(outside), check_downtime(downtime), check)
    try:
        if only is None:
            with quiet():
                explorer.explore(depth, max_schedules, stops=stops)
        else:
            run_only(explorer, only)
    finally:
        explorer.reset()
    return CrashReport(
        schedules=tuple(explorer.schedules),
        problems=problems_of(explorer, allow),
        is_exhaustive=not explorer.pending,
    )


def make_start(outside: Iterable[object]) -> Moment:
    """
    Return what the first process of a scenario finds: an empty disk, and the world outside as it is.
    """
    return Moment(
        disk=SimulatedDisk(),
        outside=take_all_down(outside, "outside"),
        at_unix_s=BEGINS_AT_UNIX_S,
    )


def make_setting(
    scenario: Callable[[Engine], Awaitable[Any]],
    workflows: Iterable[Workflow[..., Any]],
    options: EngineOptions,
    *,
    points: Points = "writes",
    seed: int = 0,
) -> Setting:
    """
    Return what the lives of an exploration share, checked.
    """
    unknown = options.keys() - EngineOptions.__annotations__.keys()
    if unknown:
        raise TypeError(
            f"there is no option {', '.join(sorted(unknown))}; those of an engine are "
            f"{', '.join(EngineOptions.__annotations__)}"
        )
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


def check_numbers(least: int = 0, **numbers: object) -> None:
    """
    Refuse what is not a count.
    """
    for name, number in numbers.items():
        if not is_count(number, least=least):
            raise ValueError(f"{name} must be an int, at least {least}, not {number!r}")


def check_downtime(downtime: object) -> float:
    """
    Return a number of seconds that may pass, or refuse it.
    """
    if not is_number(downtime) or not 0 <= downtime < math.inf:
        raise ValueError(f"downtime must be a number of seconds, at least 0, not {downtime!r}")
    return float(downtime)


def run_only(explorer: Explorer, only: CrashPlan | str) -> None:
    """
    Run one schedule.

    Raises:
        ValueError: It is a recipe of another scenario, or of other options: there is no such moment.
    """
    plan = as_plan(only)
    explorer.run_one(plan)
    if isinstance(only, str) and explorer.schedules[-1].plan != plan:
        raise ValueError(
            f"there is no schedule {only!r}: the process comes to its end before; give the scenario and the options "
            f"(points=, seed=, downtime=...) that the recipe was found with"
        )


def check_kinds(allow: Collection[str]) -> None:
    """
    Refuse what is no kind of problem.
    """
    unknown = [kind for kind in allow if kind not in PROBLEM_KINDS]
    if unknown or isinstance(allow, str):
        raise ValueError(f"allow takes kinds of problems ({', '.join(PROBLEM_KINDS)}), not {allow!r}")
