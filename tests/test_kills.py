"""
Real processes, killed with SIGKILL: what was acknowledged never runs again, and everything finishes.

Moments are random but not timed: a worker tells of each bit of progress, and is killed after a random number of them,
or kills itself at a random call of its disk. The seed of a failure is printed, and can be given again in a variable.
"""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import attrs
import pytest
import trio

import kill_worker
import memable
from kill_worker import SHAPES, Effects, SelfKill, instance_id_of, make_workflows, shape_of
from memable._clock import current_clock
from memable._records import InstanceRecord

SEED_VARIABLE = "MEMABLE_KILL_SEED"

OUTSIDE_KILLS = 50
INSIDE_KILLS = 25
#: So many instances more are started at each launch, so that there is always work to be killed in.
NEW_PER_LAUNCH = 3
#: A worker that has ended before its kill does not count; more launches than this mean that hardly any is killed.
LAUNCHES_PER_KILL = 3


@contextmanager
def random_moments() -> Iterator[random.Random]:
    seed = os.environ.get(SEED_VARIABLE) or str(random.randrange(10**9))
    try:
        yield random.Random(seed)
    except BaseException as exc:
        exc.add_note(f"to choose the same moments again: {SEED_VARIABLE}={seed}")
        raise


@attrs.define
class Siege:
    """
    A store, the effects of its workers, and how they were killed.
    """

    directory: Path
    rng: random.Random
    kills: int = 0
    launches: int = 0

    @property
    def store(self) -> Path:
        return self.directory / "store"

    @property
    def effects(self) -> Path:
        return self.directory / "effects"

    @property
    def instance_count(self) -> int:
        return self.launches * NEW_PER_LAUNCH

    def kill_from_outside(self) -> None:
        """
        Launch a worker and kill it after some progress: often while it opens the store, else while it runs.
        """
        progress = self.rng.choice((0, self.rng.randrange(20), self.rng.randrange(100), self.rng.randrange(100)))
        with self._launch() as worker:
            assert worker.stdout is not None
            while progress > 0 and (seen := os.read(worker.stdout.fileno(), progress)):
                progress -= len(seen)
            worker.kill()
            self._count(worker)

    def kill_from_inside(self, when: Literal["before", "within", "after"]) -> None:
        """
        Launch a worker that kills itself at some call of its disk.
        """
        with self._launch(SelfKill(self.rng.randrange(40), when)) as worker:
            self._count(worker)

    def finish(self) -> None:
        """
        Let a worker bring everything to its end.
        """
        with self._launch() as worker:
            _, complaints = worker.communicate()
            assert worker.returncode == 0, complaints.decode()

    @contextmanager
    def _launch(self, kill: SelfKill | None = None) -> Iterator[subprocess.Popen[bytes]]:
        self.launches += 1
        durability = self.rng.choice(("fsync", "fsync", "os"))
        numbers = () if kill is None else (str(kill.call), kill.when)
        command = [kill_worker.__file__, self.store, self.effects, str(self.instance_count), durability, *numbers]
        # What this process can import, the worker can; without `site` it is up sooner.
        paths = os.pathsep.join([str(Path(kill_worker.__file__).parent), *sys.path])
        with subprocess.Popen(
            [sys.executable, "-S", *command],
            env={**os.environ, "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as worker:
            yield worker

    def _count(self, worker: subprocess.Popen[bytes]) -> None:
        _, complaints = worker.communicate()
        # A worker that ended before its kill brought everything to its end.
        assert worker.returncode in {0, -9}, complaints.decode()
        self.kills += worker.returncode == -9
        assert self.launches <= LAUNCHES_PER_KILL * (self.kills + 10)

    # What is left ----------------------------------------------------------------------------------------------

    def assert_nothing_ran_after_it_was_acknowledged(self) -> None:
        acknowledged: set[str] = set()
        runs: Counter[str] = Counter()
        for line in self.effects.read_text("utf-8").splitlines():
            what, name = line.split(" ", 1)
            if what == "acknowledged":
                acknowledged.add(name)
            else:
                assert what == "ran"
                assert name not in acknowledged
                runs[name] += 1
        needed: dict[str, int] = {}
        once: set[str] = set()
        unacknowledged: set[str] = set()
        for number in range(self.instance_count):
            shape = SHAPES[shape_of(number)]
            needed |= {name_of(number, key): count for key, count in shape.calls.items()}
            once |= {name_of(number, key) for key in shape.once}
            unacknowledged |= {name_of(number, key) for key in shape.unacknowledged}
        assert acknowledged | unacknowledged == set(needed) == set(runs)
        # A kill may lose the attempt that it interrupts, no others.
        for name, count in runs.items():
            assert needed[name] <= count <= needed[name] + (0 if name in once else self.kills)

    async def assert_all_finished(self) -> None:
        workflows = make_workflows(Effects(str(self.effects)))
        before = self.effects.read_bytes()
        async with memable.open_engine(self.store, workflows=workflows.values()) as engine:
            for number in range(self.instance_count):
                shape = shape_of(number)
                invocation = await engine.get(workflows[shape], instance_id_of(number))
                assert (await invocation.state()).is_terminal
                if shape == "saga":
                    with pytest.raises(memable.WorkflowFailedError, match="undo it"):
                        await invocation.result()
                else:
                    assert await invocation.result() == SHAPES[shape].expected(number)
            parents = [metadata for metadata in await engine.list_instances() if metadata.parent is None]
            assert len(parents) == self.instance_count
        assert self.effects.read_bytes() == before

    async def records(self) -> dict[str, Sequence[InstanceRecord]]:
        async with memable.FileStore(self.store).open(current_clock()) as store:
            return {header.instance_id: await store.load(header.number) for header in await store.headers()}


def name_of(number: int, key: str) -> str:
    """
    Return what the effects of a step are noted under.
    """
    return instance_id_of(number) + (key if key.startswith("/") else f" {key}")


def assert_survived(siege: Siege, caplog: pytest.LogCaptureFixture) -> None:
    siege.finish()
    siege.assert_nothing_ran_after_it_was_acknowledged()
    with caplog.at_level(logging.INFO, logger="memable"):
        caplog.clear()
        records = trio.run(siege.records)
        trio.run(siege.assert_all_finished)
        assert trio.run(siege.records) == records
        # Nothing torn, nothing left behind; what upkeep says is as it should be.
        assert [message for message in caplog.messages if ": compacted " not in message] == []


@pytest.mark.slow
def test_killed_workers_never_repeat_what_was_acknowledged_and_finish_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """
    Workers are killed at fifty random moments: no acknowledged step ran again, and every instance has its right result.
    """
    with random_moments() as rng:
        siege = Siege(tmp_path, rng)
        while siege.kills < OUTSIDE_KILLS:
            siege.kill_from_outside()
        assert_survived(siege, caplog)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "within", "after"])
def test_worker_killed_in_a_call_of_its_disk_loses_nothing_acknowledged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, when: Literal["before", "within", "after"]
):
    """
    Workers die exactly before, within or after a write or sync: no acknowledged step ran again, and all finish.
    """
    with random_moments() as rng:
        siege = Siege(tmp_path, rng)
        while siege.kills < INSIDE_KILLS // 3:
            siege.kill_from_inside(when)
        assert_survived(siege, caplog)
