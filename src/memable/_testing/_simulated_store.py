"""
A store on a simulated disk: its process can be killed, its power cut, and its disk can fail.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal

import attrs

from .._clock import Clock
from .._disk import Disk
from .._store._protocol import OpenStore
from .._store.file import SEGMENT_BYTES, FileStore
from ._disk_faults import DiskCall, DiskFault, FaultPlan
from ._simulated_disk import Choose, SimulatedDisk, lose_all

#: Where the store is on the simulated disk.
DIRECTORY = Path("/store")


def store_on(disk: Disk, **options: Any) -> FileStore:
    """
    Return a store in a directory of a disk.

    Args:
        disk: Where.
        **options: What ``FileStore`` takes.
    """
    # No part of the interface for users: the real disk is all that they need.
    private: dict[str, Any] = {"disk": disk}
    return FileStore(DIRECTORY, **options, **private)


class SimulatedStore:
    """
    A store for tests, to be given to ``open_engine``: a ``FileStore`` whose disk is in memory.

    What is written to it are the same bytes as on a real disk, and it is opened by the same recovery. It takes one
    engine at a time.

    Attributes:
        disk: Its disk.

    Example:
        >>> import memable
        >>> import trio
        >>> from memable.testing import SimulatedStore
        >>> async def charge() -> str:
        ...     print("charging")
        ...     return "receipt"
        >>> @memable.workflow
        ... async def order(ctx: memable.Context) -> str:
        ...     return await ctx.step("charge", charge)
        >>> async def live(store: SimulatedStore) -> str:
        ...     async with memable.open_engine(store, workflows=[order]) as engine:
        ...         return await (await engine.invoke(order, instance_id="o-1")).result()
        >>> store = SimulatedStore()
        >>> trio.run(live, store)
        charging
        'receipt'
        >>> trio.run(live, store.power_cut())
        'receipt'
    """

    def __init__(
        self,
        disk: SimulatedDisk | None = None,
        *,
        durability: Literal["fsync", "os"] = "fsync",
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """
        Begin with what is on a disk.

        Args:
            disk: An empty one unless given.
            durability: As for a ``FileStore``.
            segment_bytes: As for a ``FileStore``.

        Raises:
            ValueError: An option is not as a ``FileStore`` takes it.
        """
        self.disk: SimulatedDisk = SimulatedDisk() if disk is None else disk
        self._options: dict[str, Any] = {"durability": durability, "segment_bytes": segment_bytes}
        self._store = store_on(self.disk, **self._options)
        self._faults = FaultPlan()

    def __repr__(self) -> str:
        """
        Return what became of it.
        """
        return f"<SimulatedStore{', dead' * self.is_dead}>"

    @property
    def is_dead(self) -> bool:
        """
        Whether its process was killed or its power cut: it takes nothing any more.
        """
        return self.disk.is_off

    def open(self, clock: Clock) -> AbstractAsyncContextManager[OpenStore]:
        """
        Lock and recover the store; close and unlock it when the block is left.

        Args:
            clock: Tells the time.

        Raises:
            StoreLockedError: Another engine has it open.
            StorageError: It is dead, or its disk fails.
        """
        return self._store.open(_InlineClock(clock))

    def crashed_copy(self) -> SimulatedStore:
        """
        Return the store as the next process would find it if this one were killed now. This one goes on.
        """
        return self._on(self.disk.copy())

    def kill(self) -> SimulatedStore:
        """
        Kill the store's process; return the store as the next process finds it: whatever was written is there.

        An engine that has this one open fails with a ``StorageError`` at its next write, or when it is closed.
        """
        found = self.crashed_copy()
        self.disk.is_off = True
        return found

    def power_cut(self, choose: Choose = lose_all, *, seed: int | None = None) -> SimulatedStore:
        """
        Cut the power; return the store as the next process finds it: what was not synced may be lost or damaged.

        An engine that has this one open fails with a ``StorageError`` at its next write, or when it is closed.

        Args:
            choose: Chooses what is lost, as ``lose_all`` and ``lose_nothing`` do.
            seed: Lets chance choose, repeatably. Goes before *choose*.
        """
        if seed is not None:
            choose = random.Random(seed).randrange  # noqa: S311 - a test must be repeatable
        found = self._on(self.disk.copy().power_cut(choose))
        self.disk.is_off = True
        return found

    def inject(
        self,
        fault: DiskFault,
        *,
        at: int = 0,
        times: int | None = 1,
        calls: Collection[DiskCall] | None = None,
    ) -> None:
        """
        Let the disk fail. The store that ``kill`` and its like return is without fault.

        Args:
            fault: How.
            at: How many of the calls that the fault concerns go well before, from now on.
            times: How many of them fail then, one after the other; None for all until ``mend`` is called.
            calls: Which calls of the disk it concerns, such as ``["rename"]``; those in ``fault.calls`` unless given.

        Raises:
            TypeError: *fault* is no ``DiskFault``.
            ValueError: A number or the name of a call is wrong, or *fault* cannot happen to that call.

        Example:
            >>> from memable.testing import DiskFault, SimulatedStore
            >>> store = SimulatedStore()
            >>> store.inject(DiskFault.FULL, at=3)
            >>> store.inject(DiskFault.FAILED_SYNC, at=10, calls=["sync_directory"])
        """
        self._faults.add(fault, at=at, times=times, calls=calls)
        self.disk.on_call = self._faults.next_fault

    def mend(self) -> None:
        """
        Let the disk work again: no fault that was injected happens any more.
        """
        self._faults.clear()

    def _on(self, disk: SimulatedDisk) -> SimulatedStore:
        return SimulatedStore(disk, **self._options)


@attrs.define
class _InlineClock:
    """
    A clock that lets the store do its work in trio's own thread: a disk in memory is quick, and nothing races.
    """

    inner: Clock

    @property
    def is_virtual(self) -> bool:
        """Always True: so says a clock under which nothing may wait in a thread."""
        return True

    def now(self) -> float:
        """Return the time."""
        return self.inner.now()

    def not_before(self, unix_s: float) -> None:
        """Let time go on from there."""
        self.inner.not_before(unix_s)
