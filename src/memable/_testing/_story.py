"""
Tells one story of workflows: lives of a process, one after the other, over the same disk.

Each thing that is done is done in a life of its own, which opens an engine and goes on until no run executes any more.
If that process is to die, it dies at a moment of that life, and what was to be done is done again by the next one, as
a client would that got no answer. After each life, what memable has promised is held against what is there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias, TypeVar

import attrs
import trio
from hypothesis import currently_in_test_context, note

from .._definition import Workflow
from .._engine import Engine
from .._journal import Journal
from .._records import StepCompleted, StepFailed
from .._states import Blocked, Suspended, WorkflowState
from ._findings import find_problems
from ._happenings import EffectHappened, Happening, KeyAsked, LifeBegun, StepExecuted
from ._keeping import Keeper
from ._life import BEGINS_AT_UNIX_S, Life, Moment, Setting, journals_on, live, quiet
from ._outside import Restorable, bring_back
from ._simulated_disk import SimulatedDisk, lose_all
from ._whereabouts import find_whereabouts

T = TypeVar("T")

#: What executes for so long, in virtual seconds, never ends: a hundred years.
FOREVER_S = 100 * 365 * 86400.0
#: At the end of a story the timers of all instances pass; of those that set new ones for ever, so many.
_MOST_TIMERS = 200

DeathKind: TypeAlias = Literal["killed", "power cut", "stopped"]
"How a process dies."

DEATHS: tuple[DeathKind, ...] = ("killed", "power cut", "stopped")

Action = Callable[[Engine], Awaitable[T]]


@attrs.frozen
class Death:
    """
    How a process is to end before its time.
    """

    moment: int
    "At which moment of its life, counted from 0. One that it does not have: it goes on to its end."
    kind: DeathKind

    def describe(self, place: str) -> str:
        """
        Return what happens, in words.
        """
        match self.kind:
            case "killed":
                return f"the process dies {place}"
            case "stopped":
                return f"the process is stopped {place}"
            case "power cut":
                return f"the power is cut {place}"


@attrs.define
class Told:
    """
    What the clients of an engine were told. It holds whatever dies after.
    """

    started: set[str] = attrs.field(factory=set)
    "Instances that were started, as ``workflow/id``."
    signalled: set[tuple[str, str]] = attrs.field(factory=set)
    "Instances, and the suspend points of theirs that took a signal."
    ended: dict[str, WorkflowState] = attrs.field(factory=dict)
    "How instances have ended."

    def take_down(self) -> Told:
        """
        Return a copy.
        """
        return Told(set(self.started), set(self.signalled), dict(self.ended))

    def bring_back(self, state: Told) -> None:
        """
        Know what was known then.
        """
        again = state.take_down()
        self.started, self.signalled, self.ended = again.started, again.signalled, again.ended

    def forget(self, instance: str, *, is_removed: bool) -> None:
        """
        Do not hold what was told of an instance against what comes: it runs again, or is removed.
        """
        self.ended.pop(instance, None)
        self.signalled = {one for one in self.signalled if one[0] != instance}
        if is_removed:
            self.started.discard(instance)


@attrs.frozen
class _Done:
    """How a life ended that nothing cut short."""

    value: Any
    error: Exception | None
    states: Mapping[str, WorkflowState]
    stuck: tuple[str, ...] = ()


@attrs.define(eq=False)
class Story:
    """
    The story so far.
    """

    setting: Setting
    keeper: Keeper
    downtime_s: float
    patience_s: float
    allow: Collection[str]
    others: dict[int, Restorable] = attrs.field(factory=dict)
    "Parts of the world outside that take their own state down, by identity."
    told: Told = attrs.field(factory=Told)
    deaths: tuple[Death, ...] = ()
    "How the next processes die."
    passivates: bool = False
    moment: Moment = attrs.field(factory=lambda: Moment(SimulatedDisk(), (), BEGINS_AT_UNIX_S))
    "What the next process finds."
    journals: Mapping[str, Journal] = attrs.field(factory=dict)
    states: Mapping[str, WorkflowState] = attrs.field(factory=dict)
    _lives: int = 0

    # What is done ------------------------------------------------------------------------------------------------

    def act(self, action: Action[T], *, again: str | None = None) -> T:
        """
        Do something, in as many lives as it takes.

        Args:
            action: What; called again in each life.
            again: An instance of which steps may be executed again: it is resumed.

        Raises:
            AssertionError: A promise was broken, or a problem found.
            Exception: What *action* has raised.
        """
        value: T = self._live(self._patiently(action), again)
        return value

    def finish(self) -> None:
        """
        Let all timers pass, and see that every instance has ended, waits, or is Blocked.

        Raises:
            AssertionError: One is stuck, or what ``act`` raises.
        """
        self.deaths = ()
        if self.states:
            self._live(self._to_the_end(), None)

    def look(self, action: Action[T]) -> T:
        """
        Do something that is no part of the story: nothing runs in it, and nothing of it stays.
        """
        kept, start = self.keeper.take_down(), self._begin()
        try:
            life = self._one_life(action, start, resume_on_start=False)
        finally:
            self.keeper.bring_back(kept)
            for one, state in start.outside[1:]:
                bring_back(one, state)
        if life.outcome.exc is not None:
            raise life.outcome.exc
        value: T = life.outcome.value
        return value

    def stay_down(self, seconds: float) -> None:
        """
        Let time pass without any process.
        """
        self.moment = attrs.evolve(self.moment, at_unix_s=self.moment.at_unix_s + seconds)

    def deploy(self, workflows: tuple[Workflow[..., Any], ...]) -> None:
        """
        Let the next processes have these workflows.
        """
        if self.setting.workflows != workflows:
            # Other code asks for other keys.
            self.moment = attrs.evolve(self.moment, happenings=())
            self.setting = attrs.evolve(self.setting, workflows=workflows)

    def run_again(self, instance: str, *, is_removed: bool = False) -> None:
        """
        Take note that an instance is about to be resumed or removed.
        """
        self.told.forget(instance, is_removed=is_removed)
        # What it asked for and did so far says nothing of what it does now.
        left = tuple(one for one in self.moment.happenings if not _is_of(_instance_of(one), instance))
        self.moment = attrs.evolve(self.moment, happenings=left)

    def deadlines(self) -> list[float]:
        """
        Return in how many seconds instances are due that wait, soonest first.
        """
        now = datetime.fromtimestamp(self.moment.at_unix_s, UTC)
        due = [one.deadline for one in self.states.values() if isinstance(one, Suspended) and one.deadline is not None]
        return sorted(max(0.0, (deadline - now).total_seconds()) for deadline in due)

    # Lives -------------------------------------------------------------------------------------------------------

    def _live(self, scenario: Action[_Done], again: str | None) -> Any:
        deaths, self.deaths = self.deaths, ()
        start = self._begin()
        for death in deaths:
            self._lives += 1
            life = self._one_life(scenario, start, death=death)
            found = _found_after(life, death)
            if found is None:
                return self._conclude(start, life, again)
            fork, place = found
            _note(death.describe(place))
            self._check_executed(start, fork.happenings, again)
            start = attrs.evolve(fork, at_unix_s=fork.at_unix_s + self.downtime_s)
            self.journals = journals_on(start.disk)
        self._lives += 1
        return self._conclude(start, self._one_life(scenario, start), again)

    def _begin(self) -> Moment:
        """Return what the next process finds. What is held outside is what is held now."""
        for one, _ in self.setting.adopted.values():
            self.others[id(one)] = one
        outside: list[tuple[object, object]] = [(self.keeper, None), (self.told, self.told.take_down())]
        outside += [(one, one.take_down()) for one in self.others.values()]
        return attrs.evolve(self.moment, outside=tuple(outside))

    def _one_life(
        self, scenario: Action[Any], start: Moment, *, death: Death | None = None, resume_on_start: bool = True
    ) -> Life:
        # A run that executes when the process has lived long enough is stopped.
        options = {"shutdown_timeout": 0.0, **self.setting.options, "resume_on_start": resume_on_start}
        if self.passivates:
            options["max_parked"] = 0
        setting = attrs.evolve(self.setting, scenario=scenario, options=options)
        is_stopped = death is not None and death.kind == "stopped"
        with quiet():
            return live(
                setting,
                start,
                only=death.moment if death is not None else None,
                stop_at=death.moment if death is not None and is_stopped else None,
                forks=death is not None and not is_stopped,
                entropy=str(self._lives),
            )

    def _patiently(self, action: Action[Any]) -> Action[_Done]:
        """Return what does something, then waits until no run executes, but not for ever."""

        async def scenario(engine: Engine) -> _Done:
            value, error = None, None
            try:
                value = await action(engine)
            except Exception as exc:  # noqa: BLE001 - raised once the life is over
                error = exc
            await _wait_idle(engine, self.patience_s)
            return _Done(value, error, await self._states_of(engine))

        return scenario

    def _to_the_end(self) -> Action[_Done]:
        """Return what lets all timers pass."""

        async def scenario(engine: Engine) -> _Done:
            for _ in range(_MOST_TIMERS):
                if not await _wait_idle(engine, FOREVER_S):
                    break
                due_s = trio.lowlevel.current_statistics().seconds_to_next_deadline
                if due_s > FOREVER_S:
                    break
                await trio.sleep(due_s)
            states = await self._states_of(engine)
            return _Done(None, None, states, tuple(self._stuck(states)))

        return scenario

    async def _states_of(self, engine: Engine) -> dict[str, WorkflowState]:
        states: dict[str, WorkflowState] = {}
        for found in await engine.list_instances():
            name = f"{found.workflow_name}/{found.instance_id}"
            states[name] = await engine.state(found.workflow_name, found.instance_id)
            if states[name].is_terminal:
                self.told.ended.setdefault(name, states[name])
        return states

    def _stuck(self, states: Mapping[str, WorkflowState]) -> Iterator[str]:
        registered = {workflow.name for workflow in self.setting.workflows}
        for name, state in states.items():
            workflow_name, _, instance_id = name.partition("/")
            if state.is_terminal or isinstance(state, (Suspended, Blocked)) or workflow_name not in registered:
                continue
            place = find_whereabouts(workflow_name, instance_id)
            where = "" if place is None else f"; it is in {place}"
            yield f"{name} is stuck: it neither ends nor waits for anything that memable knows of ({state}){where}"

    # What must hold ----------------------------------------------------------------------------------------------

    def _conclude(self, start: Moment, life: Life, again: str | None) -> Any:
        outcome = life.outcome
        if outcome.exc is not None:
            raise outcome.exc
        if outcome.kind != "returned":
            raise AssertionError(f"the process does not come to its end: {outcome.text}")
        done: _Done = outcome.value
        before, self.moment, self.states = self.journals, life.end, done.states
        self._check_executed(start, life.end.happenings, again)
        self.journals = life.journals
        wrong = [*self._broken_promises(before), *done.stuck]
        problems = find_problems(life.end.happenings, life.journals, {})
        wrong += [f"{one.kind}: {one.message}" for one in problems if one.kind not in self.allow]
        if wrong:
            raise AssertionError("\n".join(wrong)) from done.error
        if done.error is not None:
            raise done.error
        return done.value

    def _check_executed(self, start: Moment, happenings: tuple[Happening, ...], again: str | None) -> None:
        """Check that a life has executed no step whose outcome was recorded."""
        recorded = {
            (name, path)
            for name, journal in self.journals.items()
            if again is None or not _is_of(name, again)
            for path, memo in journal.memos.items()
            if isinstance(memo, (StepCompleted, StepFailed))
        }
        for one in happenings[len(start.happenings) :]:
            if isinstance(one, KeyAsked) and one.operation == "step" and one.is_recorded:
                recorded.add((one.instance, one.path))
            elif isinstance(one, StepExecuted) and (one.instance, one.path) in recorded:
                raise AssertionError(f"step {one.path!r} of {one.instance} is executed though its outcome is recorded")

    def _broken_promises(self, before: Mapping[str, Journal]) -> Iterator[str]:
        for name in sorted(self.told.started - self.states.keys()):
            if not self._may_be_removed(name):
                yield f"{name} is lost, though its start was acknowledged"
        for name, state in self.told.ended.items():
            now = self.states.get(name, state)
            if now != state:
                yield f"{name} had ended ({state}), and now it is {now}"
            elif name in before and name in self.journals:
                ending = before[name].ending
                if ending is not None and ending != self.journals[name].ending:
                    yield f"{name} had ended, and now it has another outcome"
        for name, path in sorted(self.told.signalled):
            journal = self.journals.get(name)
            if journal is not None and journal.ending is None and path not in {*journal.memos, *journal.kept}:
                yield f"a signal to {path!r} of {name} is lost, though it was acknowledged"

    def _may_be_removed(self, name: str) -> bool:
        definition = {one.name: one for one in self.setting.workflows}.get(name.partition("/")[0])
        limits = (self.setting.options.get("retention"), None if definition is None else definition.retention)
        return name in self.told.ended and any(isinstance(limit, (int, float)) for limit in limits)


async def _wait_idle(engine: Engine, patience_s: float) -> bool:
    """Wait until no run executes; return False if that takes too long."""
    with trio.move_on_after(patience_s) as scope:
        await engine.wait_all()
    return not scope.cancelled_caught


def _found_after(life: Life, death: Death) -> tuple[Moment, str] | None:
    """Return what is found after a death, and where it happened; None if the process came to its end before."""
    if death.kind == "stopped":
        return (life.end, life.stop_place) if life.stop_place else None
    if not life.forks:
        return None
    fork = life.forks[0]
    if death.kind == "killed":
        return fork.moment, fork.place
    return attrs.evolve(fork.moment, disk=fork.moment.disk.power_cut(lose_all)), fork.place


def _instance_of(happening: Happening) -> str | None:
    if isinstance(happening, EffectHappened):
        return happening.effect.instance
    return None if isinstance(happening, LifeBegun) else happening.instance


def _is_of(name: str | None, instance: str) -> bool:
    """Tell whether it is an instance, or a child of it."""
    return name is not None and (name == instance or f"/{instance.partition('/')[2]}/" in name)


def _note(text: str) -> None:
    """Print something with a failing example."""
    if currently_in_test_context():
        note(f"# {text}")
