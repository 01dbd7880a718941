"""
A disk that fails under a hundred workflows at once: nobody is told that anything is durable that is not.

What the workflows do to the world outside, and what they were acknowledged, is noted outside; after the failure the
store is opened again on a disk that works, and everything has to come to its end without running twice what was
acknowledged.
"""

from __future__ import annotations

import errno
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

import full_disk_worker
import memable
from memable import StorageError
from memable._testing._simulated_disk import Fault, SimulatedDisk, lose_all

#: They try very many failures one after the other.
pytestmark = pytest.mark.slow

PATH = Path("/store")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ROOM = "make room, then open the store again"
KEYS = ("first", "second", "third")


@attrs.define(eq=False)
class FailingDisk(SimulatedDisk):
    """
    A disk that can be told to fail at its next call of some name.
    """

    armed: dict[str, Fault] = attrs.field(factory=dict)

    def call(self, name: str) -> Fault | None:
        fault = self.armed.pop(name, None)
        if fault is not None:
            self.faults[len(self.calls)] = fault
        return super().call(name)


@attrs.define(eq=False)
class Crowd:
    """
    Workflows that run in step with each other, and what they leave outside.
    """

    size: int
    before_second: Callable[[], object] = lambda: None
    "Is called when all of them are in their second step, and none has ended it."
    ran: Counter[tuple[int, str]] = attrs.field(factory=Counter)
    acknowledged: set[tuple[int, str]] = attrs.field(factory=set)
    seen: list[BaseException] = attrs.field(factory=list)
    "What their bodies saw raised, cancellations aside."
    told: list[Exception | None] = attrs.field(factory=list)
    "What came of waiting for each of them."
    all_told: trio.Event = attrs.field(factory=trio.Event)
    failure: StorageError | None = None
    "What came out of the engine's block."
    waiting: int = 0
    all_wait: trio.Event = attrs.field(factory=trio.Event)

    def workflow(self) -> memable.Workflow[[int], list[int]]:
        @memable.workflow(name="member")
        async def body(ctx: memable.Context, number: int) -> list[int]:
            try:
                return [await self._step(ctx, number, key) for key in KEYS]
            except Exception as exc:
                self.seen.append(exc)
                raise

        return body

    async def _step(self, ctx: memable.Context, number: int, key: str) -> int:
        value = await ctx.step(key, self._work, number, key)
        self.acknowledged.add((number, key))
        return value

    async def _work(self, number: int, key: str) -> int:
        self.ran[number, key] += 1
        if key == "second" and not self.all_wait.is_set():
            self.waiting += 1
            if self.waiting == self.size:
                self.before_second()
                self.all_wait.set()
            await self.all_wait.wait()
        return number

    async def live(self, disk: SimulatedDisk, durability: str = "fsync") -> None:
        """
        Start all of them, and wait for their results in tasks outside of the engine's block.
        """
        store = memable.FileStore(PATH, durability=durability, disk=disk)
        workflow = self.workflow()
        async with trio.open_nursery() as followers:
            try:
                async with memable.open_engine(store, workflows=[workflow]) as engine:
                    for number in range(self.size):
                        followers.start_soon(self._follow, engine, workflow, number)
                    await self.all_told.wait()
            except StorageError as exc:
                self.failure = exc

    async def _follow(self, engine: memable.Engine, workflow: memable.Workflow[[int], list[int]], number: int) -> None:
        try:
            invocation = await engine.invoke(workflow, number, instance_id=f"i{number}")
            assert await invocation.result() == [number] * len(KEYS)
        except Exception as exc:  # noqa: BLE001 - whoever looks at it knows what it should be
            self.told.append(exc)
        else:
            self.told.append(None)
        if len(self.told) == self.size:
            self.all_told.set()


def run(crowd: Crowd, disk: SimulatedDisk, durability: str = "fsync") -> None:
    trio.run(crowd.live, disk, durability, clock=trio.testing.MockClock(autojump_threshold=0))


def goes_on(crowd: Crowd, disk: SimulatedDisk) -> None:
    """Run them again on a disk that works: all come to their end, and nothing runs twice that was acknowledged."""
    before, acknowledged = crowd.ran.copy(), set(crowd.acknowledged)
    crowd.all_wait = trio.Event()
    crowd.all_wait.set()
    crowd.all_told = trio.Event()
    crowd.told.clear()
    crowd.failure = None
    run(crowd, disk)
    assert crowd.failure is None
    assert crowd.told == [None] * crowd.size
    assert crowd.acknowledged == {(number, key) for number in range(crowd.size) for key in KEYS}
    for name, count in crowd.ran.items():
        assert count <= before[name] + (name not in acknowledged), name


FAULTS = {
    "full": {"write": Fault(errno.ENOSPC)},
    "full in the middle": {"write": Fault(errno.ENOSPC, after_bytes=4000)},
    "over quota": {"write": Fault(errno.EDQUOT, after_bytes=1)},
    "over a limit": {"write": Fault(errno.EFBIG)},
    "full at the sync": {"sync": Fault(errno.ENOSPC)},
    "over quota at the sync": {"sync": Fault(errno.EDQUOT)},
    "failed sync": {"sync": Fault(errno.EIO)},
    "failed write": {"write": Fault(errno.EIO, after_bytes=4000)},
    "full, and cannot be cut back": {"write": Fault(errno.ENOSPC, after_bytes=4000), "truncate": Fault(errno.EIO)},
    "full, and the cut cannot be synced": {"write": Fault(errno.ENOSPC, after_bytes=4000), "sync": Fault(errno.EIO)},
    "lost lock": {"check": Fault(errno.ENOLCK)},
}
CRASHES: dict[str, Callable[[SimulatedDisk], SimulatedDisk]] = {
    "room again": lambda disk: disk,
    "process killed": SimulatedDisk.kill,
    "power cut, all lost": lambda disk: disk.power_cut(lose_all),
    "power cut, some lost": lambda disk: disk.power_cut(random.Random(0).randrange),
}


@pytest.mark.parametrize("crash", CRASHES)
@pytest.mark.parametrize("fault", FAULTS)
def test_disk_that_fails_under_a_hundred_workflows_acknowledges_none_of_them(fault: str, crash: str):
    """
    A batch with the outcomes of a hundred steps fails: nobody is told of it, one error leaves the block, all goes on.

    No body is given an outcome or a failure; whoever waits for a result is told that the engine stopped. On a disk that
    works again, after a power cut as well, every acknowledged step has its memo.
    """
    disk = FailingDisk()
    crowd = Crowd(100, lambda: disk.armed.update(FAULTS[fault]))
    run(crowd, disk)
    assert crowd.seen == []
    assert crowd.acknowledged == {(number, "first") for number in range(100)}
    assert [type(told) for told in crowd.told] == [memable.EngineStoppedError] * 100
    message = re.fullmatch(rf"{PATH}/00000001\.log: writing failed: (.*); (.*)", str(crowd.failure))
    assert message is not None
    [first, *_] = FAULTS[fault].values()
    assert message[1] == os.strerror(first.errno) or fault == "lost lock"
    assert (message[2] == ROOM) == (first.errno in NO_ROOM)
    disk.faults.clear()
    goes_on(crowd, CRASHES[crash](disk))


@pytest.mark.parametrize("durability", ["fsync", "os"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO], ids=errno.errorcode.__getitem__)
def test_disk_that_fails_at_any_call_loses_nothing_acknowledged(error: int, durability: str):
    """Whatever call fails while three workflows run, from opening to closing, nothing is lost or repeated."""
    number = 0
    has_failed = True
    # Without syncs, what was acknowledged need not survive a power cut.
    crashes = list(CRASHES.values())[: 2 if durability == "os" else None]
    while has_failed:
        for after_bytes in (0, 100):
            disk = FailingDisk(faults={number: Fault(error, after_bytes)})
            crowd = Crowd(3)
            has_failed = True
            run(crowd, disk, durability)
            assert crowd.seen == []
            if crowd.failure is None:
                has_failed = number < len(disk.calls)
            else:
                assert (ROOM in str(crowd.failure)) == (error in NO_ROOM)
            disk.faults.clear()
            goes_on(crowd, crashes[number % len(crashes)](disk))
        number += 1
    assert number > 30


# Real disks --------------------------------------------------------------------------------------------------------


@attrs.define
class Notes:
    """
    What a worker noted: steps by the numbers of their workflow and within it.
    """

    ran: Counter[str] = attrs.field(factory=Counter)
    acknowledged: set[str] = attrs.field(factory=set)
    end: str = ""


def launch(store: Path, durability: str, limit: int = 0) -> Notes:
    paths = os.pathsep.join([str(Path(full_disk_worker.__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, full_disk_worker.__file__, store, durability, str(limit)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *lines, end = done.stdout.splitlines()
    notes = Notes(end=end)
    for line in lines:
        what, _, name = line.partition(" ")
        match what:
            case "ran":
                notes.ran[name] += 1
            case "acknowledged":
                notes.acknowledged.add(name)
            case _:
                pytest.fail(line)
    return notes


def assert_goes_on(store: Path, full: Notes) -> None:
    """Everything comes to its end now that there is room, and nothing that was acknowledged runs again."""
    again = launch(store, "fsync")
    assert again.end == "done"
    assert not full.acknowledged & set(again.ran)
    assert set(again.ran.values()) == {1}
    count = full_disk_worker.WORKFLOW_COUNT * full_disk_worker.STEP_COUNT
    assert len(full.acknowledged | set(again.ran)) == len(full.acknowledged | again.acknowledged) == count


@pytest.mark.parametrize("durability", ["fsync", "os"])
def test_real_limit_on_files_acknowledges_nothing_wrongly(tmp_path: Path, durability: str):
    """A file that may not grow any more stops a hundred workflows at once; with a higher limit all goes on."""
    full = launch(tmp_path / "store", durability, limit=500_000)
    assert full.end == f"failed: {tmp_path}/store/00000001.log: writing failed: File too large; {ROOM}"
    assert len(full.acknowledged) >= 200
    assert_goes_on(tmp_path / "store", full)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with half a megabyte of room."""
    path = tmp_path / "small"
    path.mkdir()
    if not mounts("-t", "tmpfs", "-o", "size=512k", "none", path):
        pytest.skip("mounting is not permitted here")
    yield path
    subprocess.run(["umount", path], check=True)  # noqa: S607 - where it is differs


def mounts(*words: str | Path) -> bool:
    return subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0  # noqa: S607 - the same


@pytest.mark.parametrize("durability", ["fsync", "os"])
def test_real_full_disk_acknowledges_nothing_wrongly(small_disk: Path, durability: str):
    """A disk without room stops a hundred workflows at once, and again while it is full; with room all goes on."""
    store = small_disk / "store"
    full = launch(store, durability)
    log = store / "00000001.log"
    assert full.end == f"failed: {log}: writing failed: No space left on device; {ROOM}"
    assert len(full.acknowledged) >= 200
    for _ in range(3):
        # What the first one cut back leaves room for a few records.
        still_full = launch(store, durability)
        assert still_full.end.endswith(ROOM)
        assert not full.acknowledged & set(still_full.ran)
        full.acknowledged |= still_full.acknowledged
    assert mounts("-o", "remount,size=16m", small_disk)
    assert_goes_on(store, full)
