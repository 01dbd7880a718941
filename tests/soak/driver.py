"""
Tells stories: each follows from its number alone.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from random import Random
from unittest import mock

import attrs
from trio._core import _run as trio_run

from programs import Suspend
from soak.checks import MANY_RECOVERIES, AcknowledgedLostError, ReexecutedError
from soak.generate import random_program, random_weather
from soak.states import phase_now, states_of
from soak.story import LATE_WORKFLOW, MAX_INSTANCES, Story, has_op
from soak.tally import Failed, Tally
from soak.threads import deterministic_threads
from soak.weather import Cut, Failure, Weather

NUMBERS = 10**12


class RunsInCirclesError(Exception):
    """
    A story did not come to its end in real time.
    """


def tell_stories(
    numbers: Iterable[int], plant: Callable[[Story], object] = lambda story: None, limit_s: int | None = None
) -> Tally:
    """
    Tell the stories of those numbers, each by itself, and return what was counted.

    Args:
        numbers: The stories.
        plant: Is given each story before it begins: to plant a defect in it.
        limit_s: So much real time a story may take. To be given in a main thread only.
    """
    tally = Tally()
    for number in numbers:
        teller = StoryTeller(number, tally)
        plant(teller.story)
        try:
            with _reproducible(number), _limited_time(limit_s):
                teller.tell()
        except Exception as error:  # noqa: BLE001 - whatever it is, the story has failed
            tally.counts["acknowledged records lost"] += error.count if isinstance(error, AcknowledgedLostError) else 0
            tally.counts["memoised steps re-executed"] += error.count if isinstance(error, ReexecutedError) else 0
            text = "".join(traceback.format_exception(error))
            tally.failed.append(Failed(number, f"{type(error).__name__}: {error}", tuple(teller.operations), text))
        teller.count()
    return tally


@contextmanager
def _reproducible(number: int) -> Iterator[None]:
    """Let nothing differ between two tellings of a story: not the order of trio's tasks, nor how long a line is."""
    state, is_sorted = trio_run._r.getstate(), trio_run._ALLOW_DETERMINISTIC_SCHEDULING
    logger = logging.getLogger("memable")
    level = logger.level
    # Each crash is worth a warning to it.
    logger.setLevel(logging.CRITICAL + 1)
    trio_run._r.seed(number)
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True
    try:
        with (
            mock.patch.object(os, "getpid", return_value=4711),
            mock.patch.object(socket, "gethostname", return_value="soak"),
            deterministic_threads(),
            mock.patch.object(uuid, "uuid4", return_value=uuid.UUID(int=number)),
        ):
            yield
    finally:
        logger.setLevel(level)
        trio_run._r.setstate(state)
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = is_sorted


@contextmanager
def _limited_time(limit_s: int | None) -> Iterator[None]:
    """Raise in here after a while of real time."""
    if limit_s is None:
        yield
        return

    def stop(_number: int, _frame: object) -> None:
        raise RunsInCirclesError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit_s)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class StoryTeller:
    """
    Makes up one story.
    """

    def __init__(self, number: int, tally: Tally) -> None:
        self.rng = Random(number)
        self.tally = tally
        self.operations: list[str] = []
        rng = self.rng
        self.durability = "os" if rng.random() < 0.25 else "fsync"
        self.story = Story(
            segment_bytes=rng.choice([2_000, 4_000, 8_000, 20_000]),
            max_recoveries=1 if rng.random() < 0.15 else MANY_RECOVERIES,
        )
        self.story.reopenings = Random(rng.randrange(NUMBERS))
        self.story.opening_cuts = Random(rng.randrange(NUMBERS))
        self.story.on_cut = self._on_cut
        self.story.on_opening_cut = self._on_opening_cut
        self.story.on_cut_at_rest = self._on_cut_at_rest
        self.operations.append(
            f"Story(segment_bytes={self.story.segment_bytes}, max_recoveries={self.story.max_recoveries})"
        )

    def tell(self) -> None:
        """
        Tell the story.
        """
        for _ in range(self.rng.randint(4, 14)):
            self._go_on()
        for _ in range(self.rng.choice([0, 0, 4, 8])):
            if self.story.is_over():
                break
            self._do("help_all_in", weather=self._weather())
        self.operations.append("finish()")
        self.story.finish()

    def count(self) -> None:
        """
        Count what the story as a whole has done.
        """
        counts, story = self.tally.counts, self.story
        counts["stories"] += 1
        counts["sessions"] += len(story.openings)
        counts["executions"] += sum(story.world.calls.values())
        counts["instances started"] += len(story.invoked)
        counts["records acknowledged"] += story.acknowledged
        counts["openings alone"] += story.openings_alone
        counts["reads beside an engine"] += story.looks

    # What happens --------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        rng, story = self.rng, self.story
        if len(story.invoked) < MAX_INSTANCES and (not story.kept or rng.random() < 0.35):
            name = rng.choice(["w", "w", LATE_WORKFLOW])
            self._do("start", name, random_program(rng), weather=self._weather())
            return
        if not story.kept:
            if story.invoked:
                self._do("start_again", rng.randrange(4), weather=self._weather())
            return
        index = rng.randrange(4)
        choice = rng.randrange(14)
        if choice < 3 and any(has_op(ledger, Suspend) for ledger in story.ledgers.values()):
            point, count = rng.randrange(6), rng.choice([1, 2, 3])
            self._do("signal", index, point, count, rng.random() < 0.5, weather=self._weather())
        elif choice < 5:
            self._do("cancel", index, weather=self._weather())
        elif choice < 8:
            forget = [rng.randrange(20) for _ in range(rng.choice([0, 0, 1, 2]))]
            self._do("resume", index, forget, rng.random() < 0.3, weather=self._weather())
        elif choice < 10 and any(ledger.intents for ledger in story.ledgers.values()):
            self._do("settle", index, rng.choice(["value", "error", "wrong"]), weather=self._weather())
        elif choice == 10:
            self._do("delete", index, weather=self._weather())
        elif choice == 11:
            self._do("start_again", index, weather=self._weather())
        elif choice == 12:
            defect = rng.choice(["types", "compensations"])
            self._do("reopen", weather=attrs.evolve(self._weather(), defect=defect))
            # While it is blocked.
            self._do("reopen", weather=attrs.evolve(self._weather(), defect=defect))
        else:
            self._do("reopen", weather=self._weather())

    def _weather(self) -> Weather:
        other = self.rng.random() < 0.1
        durability = ("fsync" if self.durability == "os" else "os") if other else self.durability
        return random_weather(self.rng, durability=durability)

    def _do(self, what: str, *args: object, weather: Weather) -> None:
        self.operations.append(f"{what}({', '.join(map(repr, (*args, weather)))})")
        getattr(self.story, what)(*args, weather)
        self._count_session(weather)

    def _count_session(self, weather: Weather) -> None:
        disturbance = weather.disturbance
        if isinstance(disturbance, Failure) and self.story.was_disturbed:
            self.tally.counts["faults"] += 1
            if disturbance.loss != "kill":
                self.tally.counts["not counted: power cuts after a fault"] += 1

    def _on_cut(self, call: str) -> None:
        disturbance = self.story.weather.disturbance
        assert isinstance(disturbance, Cut)
        watch = self.story.watch
        assert watch is not None
        what = "kills" if disturbance.loss == "kill" else "power cuts"
        self.tally.counts[what] += 1
        self.tally.counts[f"{what} {'of open engines' if watch.is_open else 'while an engine opens its store'}"] += 1
        self.tally.calls[call] += 1
        self.tally.phases[phase_now()] += 1
        self.tally.states.update(states_of(self.story))

    def _on_opening_cut(self, call: str) -> None:
        self.tally.counts["not counted: power cuts of openings alone"] += 1

    def _on_cut_at_rest(self) -> None:
        disturbance = self.story.weather.disturbance
        assert isinstance(disturbance, Cut)
        if disturbance.loss != "kill":
            self.tally.counts["not counted: power cuts after closing"] += 1
