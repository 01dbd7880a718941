"""
A store on a simulated disk that is killed, loses its power, or fails.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
import trio
from trio.testing import MockClock

import memable
from memable import StorageError, StoreLockedError
from memable._testing._simulated_store import DIRECTORY
from memable.testing import DiskCall, DiskFault, SimulatedStore, lose_nothing

T = TypeVar("T")

LOG = DIRECTORY / "00000001.log"


async def fetch(page: str) -> str:
    return page.upper()


@memable.workflow
async def crawl(ctx: memable.Context, pages: list[str]) -> str:
    return "".join([await ctx.step(page, fetch, page) for page in pages])


def run(fn: Callable[[], Awaitable[T]]) -> T:
    return trio.run(fn, clock=MockClock(autojump_threshold=0))


def crawl_in(store: SimulatedStore, instance_id: str = "c-1") -> str:
    """Run an instance to its end, in a process of its own."""

    async def main() -> str:
        async with memable.open_engine(store, workflows=[crawl]) as engine:
            return await (await engine.invoke(crawl, ["a", "b"], instance_id=instance_id)).result()

    return run(main)


def instances_in(store: SimulatedStore) -> list[str]:
    async def main() -> list[str]:
        async with memable.open_engine(store, workflows=[crawl]) as engine:
            return [found.instance_id for found in await engine.list_instances()]

    return run(main)


def dies_in_block(end: Callable[[SimulatedStore], SimulatedStore]) -> tuple[SimulatedStore, SimulatedStore]:
    """Return a store whose process has ended so after an instance had, and what is found then."""
    store = SimulatedStore()
    found: list[SimulatedStore] = []

    async def main() -> None:
        async with memable.open_engine(store, workflows=[crawl]) as engine:
            await (await engine.invoke(crawl, ["a"], instance_id="c-1")).result()
            found.append(end(store))

    with pytest.raises(StorageError, match="the power was cut"):
        run(main)
    return store, found[0]


@pytest.mark.parametrize(
    "end",
    [
        SimulatedStore.kill,
        SimulatedStore.power_cut,
        pytest.param(lambda store: store.power_cut(lose_nothing), id="lose_nothing"),
        pytest.param(lambda store: store.power_cut(seed=7), id="seed"),
    ],
)
def test_simulated_store_keeps_what_was_acknowledged(end: Callable[[SimulatedStore], SimulatedStore]):
    """
    The next process finds what was acknowledged before the process was killed or the power cut.
    """
    store, found = dies_in_block(end)
    assert repr(store) == "<SimulatedStore, dead>"
    assert repr(found) == "<SimulatedStore>"
    assert instances_in(found) == ["c-1"]


def test_simulated_store_is_opened_again_in_order():
    """
    A store that was closed in order is opened again, as a directory would be.
    """
    store = SimulatedStore(segment_bytes=1024, durability="os")
    assert crawl_in(store) == "AB"
    assert crawl_in(store, "c-2") == "AB"
    assert sorted(instances_in(store)) == ["c-1", "c-2"]


def test_simulated_store_is_opened_by_one_engine_at_a_time():
    """
    While an engine has the store open, another one is refused.
    """
    store = SimulatedStore()

    async def main() -> None:
        async with memable.open_engine(store, workflows=[crawl]):
            with pytest.raises(StoreLockedError, match="open"):
                async with memable.open_engine(store):
                    pass

    run(main)
    assert instances_in(store) == []


def test_simulated_store_takes_nothing_when_it_is_dead():
    """
    A store that was killed is not opened any more, and killing it again finds what was there when it died.
    """
    store, found = dies_in_block(SimulatedStore.kill)
    assert store.is_dead
    with pytest.raises(StorageError, match="the power was cut"):
        instances_in(store)
    crawl_in(found, "c-2")
    assert instances_in(store.kill()) == ["c-1"]
    assert instances_in(store.power_cut()) == ["c-1"]


def test_simulated_store_is_copied_while_it_goes_on():
    """
    A copy holds what a crash would leave now, and neither knows what the other one does then.
    """
    store = SimulatedStore()
    copies: list[SimulatedStore] = []

    async def main() -> None:
        async with memable.open_engine(store, workflows=[crawl]) as engine:
            copies.append(store.crashed_copy())
            await (await engine.invoke(crawl, ["a"], instance_id="c-1")).result()
            copies.append(store.crashed_copy())

    run(main)
    crawl_in(copies[0], "other")
    assert [instances_in(one) for one in (*copies, store)] == [["other"], ["c-1"], ["c-1"]]


def test_simulated_store_works_under_the_real_clock():
    """
    Under trio's own clock, too, nothing of it is done in a thread.
    """
    store = SimulatedStore()

    async def main() -> str:
        async with memable.open_engine(store, workflows=[crawl]) as engine:
            return await (await engine.invoke(crawl, ["a"])).result()

    limits: list[int] = []

    async def counted() -> str:
        result = await main()
        limits.append(trio.to_thread.current_default_thread_limiter().borrowed_tokens)
        return result

    assert trio.run(counted) == "A"
    assert limits == [0]


def test_power_cut_by_seed_is_repeatable():
    """
    The same seed lets the power cut take the same.
    """
    store = SimulatedStore(durability="os")
    copies: list[SimulatedStore] = []

    async def main() -> None:
        async with memable.open_engine(store, workflows=[crawl]) as engine:
            for number in range(5):
                await (await engine.invoke(crawl, ["a"], instance_id=f"c-{number}")).result()
            copies.append(store.crashed_copy())

    run(main)
    contents = [
        bytes(found.disk.content(LOG)) if LOG in found.disk.shown else None
        for seed in (*range(20), *range(20))
        for found in [copies[0].crashed_copy().power_cut(seed=seed)]
    ]
    assert contents[:20] == contents[20:]
    assert len(set(contents)) > 1


# Faults ------------------------------------------------------------------------------------------------------------


def fail_with(fault: DiskFault, **how: Any) -> tuple[SimulatedStore, StorageError]:
    """Let a fault happen while an engine runs; return the store and what the engine raised."""
    store = SimulatedStore()

    async def main() -> None:
        async with memable.open_engine(store, workflows=[crawl]) as engine:
            await (await engine.invoke(crawl, ["a"], instance_id="before")).result()
            store.inject(fault, **how)
            await (await engine.invoke(crawl, ["a", "b"], instance_id="after")).result()

    with pytest.raises(StorageError, match="/store") as caught:
        run(main)
    return store, caught.value


def errno_behind(exc: BaseException | None) -> int | None:
    """Return the number of the system's error that led to *exc*."""
    while exc is not None and not isinstance(exc, OSError):
        exc = exc.__cause__ or exc.__context__
    while exc is not None and (not isinstance(exc, OSError) or exc.errno is None):
        exc = exc.__cause__ or exc.__context__
    return None if exc is None else exc.errno


@pytest.mark.parametrize(
    ("fault", "number"),
    [
        (DiskFault.FULL, errno.ENOSPC),
        (DiskFault.QUOTA, errno.EDQUOT),
        (DiskFault.SHORT_WRITE, errno.ENOSPC),
        (DiskFault.IO_ERROR, errno.EIO),
        (DiskFault.FAILED_SYNC, errno.EIO),
        (DiskFault.READ_ONLY, errno.EROFS),
        (DiskFault.LOST_LOCK, errno.ENOLCK),
    ],
)
def test_disk_fault_stops_the_engine_and_loses_nothing_acknowledged(fault: DiskFault, number: int):
    """
    Each fault of a write or a sync ends the engine with the system's error; what was acknowledged is there afterwards.
    """
    store, error = fail_with(fault, times=None)
    assert errno_behind(error) == number
    assert "before" in instances_in(store.power_cut())
    assert "before" in instances_in(store.kill())


def test_disk_fault_happens_at_the_call_that_is_named():
    """
    A fault lets so many calls pass, happens so often, and not again.
    """
    store = SimulatedStore()
    store.inject(DiskFault.IO_ERROR, at=1, times=2, calls=["list_names", "rename"])
    disk = store.disk
    disk.list_names(DIRECTORY.parent)
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output error"):
            disk.list_names(DIRECTORY.parent)
    disk.list_names(DIRECTORY.parent)


def test_disk_faults_happen_one_after_the_other():
    """
    Of several faults of the same call, the one that was injected first goes before; each counts all calls.
    """
    store = SimulatedStore()
    store.inject(DiskFault.FULL, at=1)
    store.inject(DiskFault.IO_ERROR, at=2)
    file = store.disk.open_file(DIRECTORY.parent / "file", create=True)
    # Making the file was the first call that FULL concerns.
    with pytest.raises(OSError, match="No space"):
        file.write_at(0, b"abc")
    file.write_at(0, b"abc")
    with pytest.raises(OSError, match="Input/output"):
        file.write_at(0, b"abc")
    file.write_at(0, b"abc")


def test_disk_fault_ends_when_the_disk_is_mended():
    """
    A full disk stays full until it is mended; then the store takes instances again.
    """
    store, _ = fail_with(DiskFault.FULL, times=None)
    with pytest.raises(StorageError, match="No space left"):
        crawl_in(store, "later")
    store.mend()
    assert crawl_in(store, "later") == "AB"


def test_disk_fault_unreadable_keeps_the_store_from_opening():
    """
    A log that cannot be read is no empty log: the store does not open, and opens when it can be read.
    """
    store = SimulatedStore()
    crawl_in(store)
    store.inject(DiskFault.UNREADABLE, times=None)
    with pytest.raises(StorageError, match="Input/output error"):
        instances_in(store)
    store.mend()
    assert instances_in(store) == ["c-1"]


def test_disk_fault_lost_sync_lets_a_power_cut_take_what_was_acknowledged():
    """
    After syncs that were lost, a death of the process takes nothing, and a power cut what was acknowledged.
    """
    store = SimulatedStore()
    store.inject(DiskFault.LOST_SYNC, times=None)
    crawl_in(store)
    assert instances_in(store.crashed_copy()) == ["c-1"]
    assert instances_in(store.power_cut()) == []


@pytest.mark.parametrize(
    ("how", "error", "match"),
    [
        ({"fault": "full"}, TypeError, "fault must be a DiskFault, not 'full'"),
        ({"fault": DiskFault.FULL, "at": -1}, ValueError, "at must be an int, at least 0, not -1"),
        ({"fault": DiskFault.FULL, "times": 0}, ValueError, "times must be an int, at least 1, or None"),
        ({"fault": DiskFault.FULL, "calls": ["fsync"]}, ValueError, "these names: check, create,"),
        ({"fault": DiskFault.FULL, "calls": []}, ValueError, "a collection of these names"),
        ({"fault": DiskFault.FULL, "calls": "write"}, ValueError, "a collection of these names"),
        ({"fault": DiskFault.LOST_SYNC, "calls": ["write"]}, ValueError, "these names: sync, sync_directory;"),
    ],
)
def test_disk_fault_refuses_what_makes_no_sense(how: dict[str, Any], error: type[Exception], match: str):
    """
    A fault, a number or a name of a call that there is not is refused at once.
    """
    with pytest.raises(error, match=match):
        SimulatedStore().inject(**how)


@pytest.mark.parametrize("fault", DiskFault)
def test_disk_fault_says_what_it_does(fault: DiskFault):
    """
    Each fault says which calls it happens to, and happens to each of them.
    """
    for name in fault.calls:
        store = SimulatedStore()
        chosen: list[DiskCall] = [name]
        store.inject(fault, calls=chosen)
        assert store.disk.on_call is not None
        assert store.disk.on_call(name) == fault.effect
        assert store.disk.on_call(name) is None
