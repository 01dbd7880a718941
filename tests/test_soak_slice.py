"""
A short slice of the soak: whole engines over a disk that loses power, and that the soak notices what is wrong.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from memable._records import InstanceRecord, StepCompleted
from memable._store._protocol import OpenStore
from soak.driver import tell_stories
from soak.story import Story
from soak.tally import Tally
from wrapped_store import WrappedStore, Wrapper

#: They try very many failures one after the other.
pytestmark = pytest.mark.slow

#: The same ones in each run: they take some ten seconds.
STORIES = range(1, 71)


def test_slice_of_the_soak_finds_nothing_wrong() -> None:
    """
    Stories of engines that lose power, are killed and meet failing disks end as they must.
    """
    tally = tell_stories(STORIES)
    assert [(one.number, one.problem) for one in tally.failed] == []
    assert tally.counts["stories"] == len(STORIES)
    assert tally.counts["power cuts"] >= 5 * len(STORIES)
    assert tally.counts["kills"] >= len(STORIES) / 2
    assert tally.counts["faults"] >= len(STORIES) / 2
    assert tally.totals()["acknowledged records lost"] == 0
    assert tally.totals()["memoised steps re-executed"] == 0


def test_story_is_reproducible() -> None:
    """
    A story follows from its number, whatever was told before, and in whichever process: it is the same one.
    """
    numbers = range(232, 238)
    first, again = tell_stories(numbers), Tally()
    for number in reversed(numbers):
        again.add(tell_stories([number]))
    assert first.states["running: step in a thread"] > 0
    assert first.counts == again.counts
    assert (first.states, first.phases, first.calls) == (again.states, again.phases, again.calls)


def test_story_that_the_command_tells_is_the_same() -> None:
    """
    What ``--story`` tells is what was told among others.
    """
    command = [sys.executable, "-m", "soak", "--story", "218"]
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    told = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True)
    assert told.stdout == tell_stories([218]).summary(1.0) + "\n"


# What must be caught -----------------------------------------------------------------------------------------------


class ForgetfulStore(Wrapper):
    """
    Does not show the outcomes of steps to a run that begins again.
    """

    async def load(self, number: int) -> Sequence[InstanceRecord]:
        return [record for record in await self.inner.load(number) if not isinstance(record, StepCompleted)]


def lie_about_syncs(story: Story) -> None:
    story.is_lying = True


def acknowledge_early(story: Story) -> None:
    story.wrap = lambda store: attrs.evolve(store, durability="os")


def wrapping(wrap: Callable[[OpenStore], Any]) -> Callable[[Story], None]:
    def plant(story: Story) -> None:
        story.wrap = lambda store: WrappedStore(wrap, store)

    return plant


@pytest.mark.parametrize(
    ("plant", "problems"),
    [
        pytest.param(lie_about_syncs, ("AcknowledgedLostError",), id="disk-that-lies-about-syncs"),
        pytest.param(acknowledge_early, ("AcknowledgedLostError",), id="store-that-acknowledges-early"),
        pytest.param(wrapping(ForgetfulStore), ("ReexecutedError",), id="store-that-forgets-memos"),
    ],
)
def test_soak_catches_a_planted_defect(plant: Callable[[Story], None], problems: tuple[str, ...]) -> None:
    """
    A soak that could not fail would prove nothing: it names what a lying disk or store has broken.
    """
    tally = tell_stories(STORIES[:30], plant)
    found = {one.problem.partition(":")[0] for one in tally.failed}
    assert found.issuperset(problems)
    counted = "acknowledged records lost" if "AcknowledgedLostError" in problems else "memoised steps re-executed"
    assert tally.totals()[counted] > 0
