"""
Lets one process of a scenario live: from a moment at which it begins to its end, with a look at each moment on the way.

A process never really dies here. At each moment at which it could, what would be left of it is put aside (a copy of the
disk, and of the world outside), and it goes on: the process that follows its death begins from there. So nothing of a
dead process runs, no ``finally`` block, no destructor, as with SIGKILL.
"""

from __future__ import annotations

import copy
import functools
import logging
import random
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import attrs
import trio
from trio.testing import MockClock

from .._clock import begin_virtual_time
from .._definition import Workflow
from .._engine import Engine
from .._errors import StorageError
from .._journal import Journal, journal_of
from .._open import Surroundings, open_engine_in
from .._states import Cancelled, Completed, Failed
from .._store._snapshot import read_store
from ._effects import Effect, Effects, effect_listener
from ._faulty_steps import FaultyStep
from ._happenings import EffectHappened, EndRecorded, Happening, LifeBegun
from ._outside import Restorable, bring_back, take_down
from ._places import find_task_place
from ._scheduling import seeded_scheduling
from ._simulated_disk import SimulatedDisk, SimulatedFile, lose_all
from ._simulated_store import DIRECTORY, store_on
from ._virtual_time import Companion
from ._watched_disk import Call, WatchedDisk
from ._watching import Watcher
from ._written_records import describe_write, find_ends

#: When every scenario begins: half a minute before 2026 (UTC), so that the first restart crosses a day, and a year.
BEGINS_AT_UNIX_S = 1_767_225_570.0
#: The id of every simulated store, so that ``ctx.step_id`` is the same each time.
STORE_ID = "5e" * 16
#: No process comes to it: nothing is put aside.
NO_MOMENT = -1
#: A process that has let so many turns of its tasks pass is busy for ever.
MOST_TURNS = 100_000
#: So many turns it has to unwind once it is stopped.
GRACE_TURNS = 10_000

Scenario = Callable[[Engine], Awaitable[Any]]
"What the process does with its engine."

Points = Literal["writes", "calls"]
"At what the process may die: durable writes of records, or every call of the disk that changes it."

_CHANGING = frozenset(
    ("make_directory", "open", "sync", "truncate", "rename", "remove", "remove_directory", "sync_directory")
)


@attrs.frozen
class Moment:
    """
    What a process finds when it begins.
    """

    disk: SimulatedDisk
    "Its disk. To be copied before use."
    outside: tuple[tuple[object, object], ...]
    "Objects of the world outside, each with its state."
    at_unix_s: float
    "What time it is."
    happenings: tuple[Happening, ...] = ()
    "What has happened before, in this schedule."
    names: Mapping[int, str] = attrs.field(factory=dict)
    "What instances are called, by their numbers."


@attrs.frozen
class Fork:
    """
    A moment at which a process could die, and what the next one finds then.
    """

    number: int
    "Counts the moments of the process, from 0."
    place: str
    "In words."
    moment: Moment
    is_write: bool
    "Whether a write has just become durable."
    ends: tuple[str, ...] = ()
    "Instances whose end is what is being written."


@attrs.frozen
class Outcome:
    """
    How a process ended.
    """

    kind: Literal["returned", "raised", "stuck", "busy", "stopped"]
    value: Any = attrs.field(default=None, eq=False)
    "What the scenario returned."
    exc: BaseException | None = attrs.field(default=None, eq=False)
    "What left the engine's block."
    text: str = ""
    "What it raised, or where it is stuck."

    def is_like(self, other: Outcome) -> bool:
        """
        Tell whether two outcomes are the same, as far as their values can be compared.
        """
        return self == other and _are_alike(self.value, other.value)


@attrs.frozen
class Life:
    """
    What came of letting a process live.
    """

    outcome: Outcome
    forks: tuple[Fork, ...]
    "The moments at which it could have died, as far as something else follows from each."
    end: Moment
    "What the next process would find after its end."
    stop_place: str = ""
    "If it was stopped: when."

    @functools.cached_property
    def journals(self) -> Mapping[str, Journal]:
        """
        What the store holds at its end, by instance.
        """
        return journals_on(self.end.disk)


@attrs.frozen
class Setting:
    """
    What all lives of an exploration share.
    """

    scenario: Scenario
    workflows: tuple[Workflow[..., Any], ...]
    options: Mapping[str, Any]
    "Of the engine."
    surroundings: Surroundings
    points: Points
    stuck_after_s: float
    seed: int
    memory: tuple[tuple[object, object], ...] = ()
    "What every process begins with anew, each object with its state."
    adopted: dict[int, tuple[Restorable, object]] = attrs.field(factory=dict)
    "Parts of the world outside that were not named, but announced themselves; and what they held before that."


def _do_nothing() -> None:
    pass


@attrs.define
class _Watch:
    """The disk and the effects of one life: where it could have died."""

    setting: Setting
    watcher: Watcher
    disk: SimulatedDisk
    outside: list[object]
    names: dict[int, str]
    only: int | None
    stop_at: int | None
    now: Callable[[], float]
    forks: list[Fork] = attrs.field(factory=list)
    count: int = 0
    stop: Callable[[], None] = _do_nothing
    stop_place: str = ""
    place: str = ""
    "What is being written, if it is of interest."
    version: int = 0
    "Counts effects and writes."
    forked: tuple[int, float] | None = None
    "What was put aside last: of which version, and when."

    @property
    def is_needed(self) -> bool:
        """Whether anything is to be done at any moment."""
        return self.only != NO_MOMENT or self.stop_at is not None

    def on_call(self, call: Call) -> None:
        """Look at a call of the disk."""
        if call.name == "write" and call.when == "before":
            place = describe_write(call.chunk, self.names)
            if place is None and self.setting.points == "writes":
                return
            place = self.place = f"the write of {place or f'{len(call.chunk)} bytes'}"
            self._pass(f"before {place}", ends=find_ends(call.chunk, self.names))
            assert isinstance(call.file, SimulatedFile)
            path = self.disk.path_of(call.file)
            self._pass(f"within {place}", lambda disk: _tear(disk, path, call))
        elif call.name == "write":
            if self.place:
                self.version += 1
                self.watcher.happenings += [EndRecorded(one) for one in find_ends(call.chunk, self.names)]
                self._pass(f"after {self.place}", is_write=True)
            self.place = ""
        elif self.setting.points == "calls" and call.name in _CHANGING:
            self.version += 1
            self._pass(f"{call.when} the disk's {call.name}")
            self._pass(f"{call.when} the disk's {call.name}, with the power cut", lambda disk: disk.power_cut(lose_all))

    def before_change(self, one: Restorable) -> None:
        """Look at something of the world outside that is about to change."""
        self.version += 1
        if not any(known is one for known in self.outside):
            # It did not change before, in any schedule: so it held the same at each earlier moment.
            self.setting.adopted[id(one)] = (one, one.take_down())
            self.outside.append(one)

    def on_effect(self, effects: Effects, effect: Effect) -> None:  # noqa: ARG002 - all of them are looked at alike
        """Look at an effect that has happened."""
        self.watcher.happenings.append(EffectHappened(effect))
        self.version += 1
        self._pass(f"after the effect {effect.name!r}")

    def _pass(
        self,
        place: str,
        change: Callable[[SimulatedDisk], SimulatedDisk] | None = None,
        *,
        is_write: bool = False,
        ends: tuple[str, ...] = (),
    ) -> None:
        """Take note of a moment at which the process could die; put aside what it would leave."""
        number = self.count
        self.count += 1
        if number == self.stop_at:
            self.stop_place = place
            self.stop()
        if self.only is not None:
            if number != self.only:
                return
        elif change is None:
            state = (self.version, self.now())
            # What follows is the same, unless something has changed that only its owner knows of.
            if (
                state == self.forked
                and not is_write
                and not ends
                and all(isinstance(one, (Effects, FaultyStep)) for one in self.outside)
            ):
                return
            self.forked = state
        disk = self.disk.copy()
        disk = disk.kill() if change is None else change(disk)
        self.forks.append(Fork(number, place, self.moment(disk), is_write, ends))

    def moment(self, disk: SimulatedDisk) -> Moment:
        """Return what a process would find that began now."""
        outside = tuple((one, take_down(one)) for one in self.outside)
        return Moment(disk, outside, self.now(), tuple(self.watcher.happenings), dict(self.names))


def live(
    setting: Setting,
    start: Moment,
    *,
    only: int | None = None,
    stop_at: int | None = None,
    forks: bool = True,
    entropy: str = "",
) -> Life:
    """
    Let a process live.

    Args:
        setting: What it is to do.
        start: What it finds.
        only: Put aside what is left at this moment only.
        stop_at: Stop it in order at this moment.
        forks: Whether to put anything aside.
        entropy: What the random numbers of this life are made from, beside the seed.
    """
    disk = start.disk.copy()
    named = {id(one) for one, _ in start.outside}
    outside = [*start.outside, *(found for key, found in setting.adopted.items() if key not in named)]
    for one, state in (*outside, *setting.memory):
        bring_back(one, state)
    watcher = Watcher((*start.happenings, LifeBegun()))
    clock = MockClock(autojump_threshold=0)
    # Trio's clock, too, tells another time in each life.
    clock.jump(start.at_unix_s - BEGINS_AT_UNIX_S)
    watch = _Watch(
        setting=setting,
        watcher=watcher,
        disk=disk,
        outside=[one for one, _ in outside],
        names=dict(start.names),
        only=only if forks else NO_MOMENT,
        stop_at=stop_at,
        now=lambda: BEGINS_AT_UNIX_S + clock.current_time(),
    )
    # Seeded by a text, so that no two lives make the same ids.
    source = random.Random(f"{setting.seed}/{entropy}")  # noqa: S311 - a schedule must be repeatable
    surroundings = attrs.evolve(
        setting.surroundings,
        observer=watcher,
        uniform=source.random,
        randbits=source.getrandbits,
        run_in_thread=run_inline,
    )
    companion, overseer = Companion(clock, watch.now), _Overseer(setting.stuck_after_s)
    with seeded_scheduling(setting.seed), companion.travelling():
        outcome = trio.run(
            _live, setting, surroundings, watch, overseer, clock=clock, instruments=[companion, overseer]
        )
    end = watch.moment(disk.kill())
    return Life(outcome, tuple(watch.forks), end, watch.stop_place)


#: Where an object is in memory.
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def _are_alike(one: Any, other: Any) -> bool:
    """Tell whether two values are equal, or look so: NaN does, and objects that know nothing of equality."""
    # Arrays, for instance, compare item by item.
    with suppress(Exception):
        if one is other or bool(one == other):
            return True
    try:
        return _ADDRESS.sub("", repr(one)) == _ADDRESS.sub("", repr(other))
    except Exception:  # noqa: BLE001 - what cannot be shown differs from everything
        return False


def _copied(value: Any) -> Any:
    """Return a copy, if one can be made: the scenario may return what stands for the world outside."""
    try:
        return copy.deepcopy(value)
    except Exception:  # noqa: BLE001 - an engine's handle, for instance
        return value


class _Overseer(trio.abc.Instrument):
    """
    Sees to it that a process comes to its end.
    """

    def __init__(self, stuck_after_s: float) -> None:
        self.scope = trio.CancelScope()
        self.engine: Engine | None = None
        self.outcome: Outcome | None = None
        self._stuck_after_s = stuck_after_s
        self._turns = 0
        self._is_stopped = False

    def stop(self) -> None:
        """Stop the process in order."""
        self._is_stopped = True
        self._turns = max(self._turns, MOST_TURNS - GRACE_TURNS)
        self.scope.cancel()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count a turn of a task's."""
        self._turns += 1
        if self._turns == MOST_TURNS:
            where = find_task_place(task) or task.name
            self.outcome = Outcome("busy", text=f"it does not end: it goes on and on in {where}")
            self.scope.cancel()

    async def watch(self) -> None:
        """Give the process up if nothing happens any more."""
        await trio.sleep(self._stuck_after_s)
        self.outcome = Outcome("stuck", text=await _describe_unfinished(self.engine))
        self.scope.cancel()

    def conclude(self) -> Outcome:
        """Return how it ended."""
        if self.outcome is None or (self._is_stopped and self.outcome.kind != "busy"):
            return Outcome("stopped")
        return self.outcome


async def _describe_unfinished(engine: Engine | None) -> str:
    if engine is None:
        return "opening the engine"
    told: list[str] = []
    for found in await engine.list_instances():
        state = await engine.state(found.workflow_name, found.instance_id)
        if not isinstance(state, (Completed, Failed, Cancelled)):
            told.append(f"{found.workflow_name}/{found.instance_id} is {state}")
    return "; ".join(told) or "every instance has ended, and the scenario has not"


@contextmanager
def quiet() -> Iterator[None]:
    """
    Keep to itself what recoveries tell of crashes that were meant.
    """
    logger = logging.getLogger("memable")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


async def run_inline(
    fn: Callable[..., Any],
    *args: object,
    abandon_on_cancel: bool = False,
    limiter: trio.CapacityLimiter | None = None,
) -> Any:
    """
    Call a function as if in a thread: here and now, since a virtual clock does not wait for threads.
    """
    await trio.lowlevel.checkpoint()
    if limiter is None:
        return fn(*args)
    async with limiter:
        return fn(*args)


async def _live(setting: Setting, surroundings: Surroundings, watch: _Watch, overseer: _Overseer) -> Outcome:
    begin_virtual_time(watch.now())
    effect_listener.set(watch)
    disk = WatchedDisk(watch.disk, watch.on_call) if watch.is_needed else watch.disk
    store = store_on(disk, _new_id=lambda: STORE_ID)
    watch.stop = overseer.stop
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(overseer.watch)
            with overseer.scope:
                async with open_engine_in(
                    surroundings, store, workflows=setting.workflows, **setting.options
                ) as engine:
                    overseer.engine = engine
                    overseer.outcome = Outcome("returned", _copied(await setting.scenario(engine)))
            nursery.cancel_scope.cancel()
    except BaseException as exc:  # noqa: BLE001 - what it means is for the caller to say
        overseer.outcome = _raised(exc)
    return overseer.conclude()


def _raised(exc: BaseException) -> Outcome:
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    if not isinstance(exc, Exception):
        raise exc
    return Outcome("raised", None, exc, f"{type(exc).__name__}: {exc}")


def _tear(disk: SimulatedDisk, path: Path, call: Call) -> SimulatedDisk:
    """Return what a process leaves that dies when half of a write has reached the disk."""
    torn = disk.kill()
    torn.shown[path].write(call.offset, call.chunk[: len(call.chunk) // 2])
    return torn


def journals_on(disk: SimulatedDisk) -> dict[str, Journal]:
    """Return what a store holds, by instance."""
    try:
        with read_store(disk, DIRECTORY) as snapshot:
            return {
                f"{header.workflow}/{header.instance_id}": journal_of(snapshot.load(header.number))
                for header in snapshot.index.select()
            }
    except StorageError:
        return {}
