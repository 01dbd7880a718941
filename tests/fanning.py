"""
What tests of fan-outs and child instances share: work that is counted, and explorations of crashes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Literal, TypeAlias

import attrs
import trio

import memable
from memable._testing._happenings import Happening, KeyAsked, LifeBegun, StepExecuted
from memable.testing import ProblemKind, Schedule, explore_crashes
from running import INSTANCE, ending_of

Again: TypeAlias = Literal["steps", "children"]


@attrs.define(eq=False)
class Work:
    """
    What the steps of a test do: it counts them, and some of them fail.
    """

    calls: Counter[str] = attrs.field(factory=Counter)
    broken: set[str] = attrs.field(factory=set)
    "Names of those that fail."
    running: int = 0
    most: int = 0
    "How many ran at the same time."

    async def do(self, name: str) -> str:
        """
        Do something under a name. A step's function.
        """
        self.calls[name] += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await trio.sleep(1)
        finally:
            self.running -= 1
        if name in self.broken:
            raise ConnectionError(name)
        return name.upper()

    def clear(self) -> None:
        """
        Forget what was done so far.
        """
        self.calls.clear()
        self.most = 0


@attrs.frozen
class Seen:
    """
    What a process came to, and what it found when it began.
    """

    result: Any
    recorded: frozenset[tuple[str, str]]
    "Steps, compensations and children of fan-outs that had an outcome, each with its instance."


def explore(
    run: Callable[[memable.Engine], Awaitable[object]],
    workflows: Sequence[memable.Workflow[..., Any]],
    *,
    expected: object = None,
    again: Collection[Again] = (),
    **options: Any,
) -> tuple[Schedule[Seen], ...]:
    """
    Explore crashes: each time *run* returns what is expected, and nothing that has an outcome runs again.

    Args:
        run: What the host does; must bring everything to its end, whatever was done before.
        workflows: To be registered.
        expected: What it returns, always.
        again: What runs again on purpose: steps that are forgotten, children that register their compensations again.
        **options: Of the exploration, and of the engine.

    Returns:
        All schedules.
    """

    async def scenario(engine: memable.Engine) -> Seen:
        recorded = await find_recorded(engine)
        return Seen(await run(engine), recorded)

    # What a process finds differs, and the rest is compared below.
    allowed: list[ProblemKind] = ["different-results"]
    given = {"allow": allowed, "stops": False, **options}
    report = explore_crashes(scenario, workflows=workflows, **given)
    assert report, report
    assert report.is_exhaustive
    for schedule in report.schedules:
        seen = schedule.outcome.value
        assert isinstance(seen, Seen), (schedule.describe(), schedule.outcome.text)
        assert seen.result == expected, schedule.describe()
        repeated = {kind: found for kind, found in find_repeated(schedule).items() if found and kind not in again}
        assert not repeated, (schedule.describe(), repeated)
    return report.schedules


async def find_recorded(engine: memable.Engine) -> frozenset[tuple[str, str]]:
    """
    Return what has an outcome, by instance and path, in workflows that retry nothing.
    """
    found = {
        (f"{one.workflow_name}/{one.instance_id}", entry.key)
        for one in await engine.list_instances()
        for entry in await engine.history(one.workflow_name, one.instance_id)
        if entry.key is not None and entry.kind in {"step", "compensation", "child"} and entry.ended_at is not None
    }
    return frozenset(found)


def find_repeated(schedule: Schedule[Seen]) -> dict[Again, list[Happening]]:
    """
    Return what the last process did again: calls of a step's function, and keys that were asked for inside a child.
    """
    recorded = schedule.outcome.value.recorded
    begins = max(index for index, one in enumerate(schedule.happenings) if isinstance(one, LifeBegun))
    found: dict[Again, list[Happening]] = {"steps": [], "children": []}
    for one in schedule.happenings[begins:]:
        match one:
            case StepExecuted(instance=instance, path=path) if (instance, path) in recorded:
                found["steps"].append(one)
            case KeyAsked(instance=instance, path=path):
                parts = path.split("/")
                if any((instance, "/".join(parts[:count])) in recorded for count in range(1, len(parts))):
                    found["children"].append(one)
    return found


async def bring_to_end(engine: memable.Engine, name: str = "w", *args: object) -> memable.WorkflowState:
    """
    Start the instance, or find it, and return the state in which it ends.
    """
    return await ending_of(await engine.invoke(name, *args, instance_id=INSTANCE))


async def result_of(engine: memable.Engine, name: str = "w", *args: object) -> Any:
    """
    Start the instance, or find it, and return its result.
    """
    return await (await engine.invoke(name, *args, instance_id=INSTANCE)).result()


def settled(results: Sequence[Any]) -> list[Any]:
    """
    Return plain values for the outcomes of a settled fan-out: the value, or the type and message of the error.
    """
    return [outcome.value if isinstance(outcome, memable.ChildSucceeded) else str(outcome.error) for outcome in results]
