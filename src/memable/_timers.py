"""
The heap of deadlines and the one task that waits for the nearest.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any, TypeVarTuple

import attrs
import trio

from ._clock import LONGEST_NAP_S, Clock

#: So many timers are fired in a row before other tasks get their turn: a million may be due after a long night.
BURST_COUNT = 256

#: One in so many may be cancelled; then they are taken out, all at once, so that each costs but a few steps. What is
#: unwound while it sleeps leaves one behind, so that a larger share would cost each instance 150 bytes.
DEAD_SHARE = 4

Args = TypeVarTuple("Args")


@attrs.define(eq=False, weakref_slot=False)
class Timer:
    """
    One armed deadline.
    """

    fire: Callable[..., None] | None
    "What to call, for ``Timers`` alone; None once it was called, or is not to be."
    args: tuple[Any, ...]
    "With what."
    _timers: Timers
    "What is told when it is cancelled."

    def cancel(self) -> None:
        """
        Do not fire. Does nothing after it has fired or was cancelled.
        """
        if self.fire is not None:
            self.fire = None
            self.args = ()
            self._timers.note_cancelled(self)


@attrs.define(eq=False)
class Timers:
    """
    All deadlines of an engine, and the task that waits for the nearest of them.
    """

    _clock: Clock
    _heap: list[tuple[float, int, Timer]] = attrs.field(factory=list[tuple[float, int, Timer]], init=False)
    "By deadline, then by the order of arming. Cancelled ones stay in until they are many, or come to the top."
    _dead_count: int = attrs.field(default=0, init=False)
    "How many of those were cancelled."
    _armed_count: int = attrs.field(default=0, init=False)
    "How many were ever armed."
    _changed: trio.Event = attrs.field(factory=trio.Event, init=False)
    "Set when the nearest deadline is another one than the task waits for."

    def __len__(self) -> int:
        """
        Return how many timers are armed.
        """
        return len(self._heap) - self._dead_count

    def arm(self, at_unix_s: float, fire: Callable[[*Args], None], *args: *Args) -> Timer:
        """
        Have *fire* called once the clock says *at_unix_s*; soon, but not before this returns, if it says so already.

        Args:
            at_unix_s: When, in seconds since 1970 (UTC).
            fire: Called in the task of ``run``. It must not raise: what it raises leaves ``run``.
            *args: What it is given.
        """
        timer = Timer(fire, args, self)
        self._armed_count += 1
        heappush(self._heap, (at_unix_s, self._armed_count, timer))
        if self._heap[0][2] is timer:
            self._changed.set()
        return timer

    async def run(self) -> None:
        """
        Fire timers when they are due, in the order of their deadlines, then of their arming. Never returns.

        While a timer is armed, the clock is looked at every ``LONGEST_NAP_S`` seconds, as it may be set, and as a
        machine may sleep. A virtual clock cannot be set: no tick of ours may hinder it from jumping.

        Cancellation:
            Timers stay armed; another call goes on with them.
        """
        while True:
            await self._fire_due()
            self._changed = trio.Event()
            with trio.move_on_after(self._nap_s()):
                await self._changed.wait()

    async def _fire_due(self) -> None:
        count = 0
        while self._heap:
            at_unix_s, _, timer = self._heap[0]
            fire = timer.fire
            if fire is not None and at_unix_s > self._clock.now():
                return
            heappop(self._heap)
            if fire is None:
                self._dead_count -= 1
                continue
            args = timer.args
            timer.fire = None
            timer.args = ()
            fire(*args)
            count += 1
            if count % BURST_COUNT == 0:
                await trio.lowlevel.checkpoint()

    def _nap_s(self) -> float:
        """Return how long to wait for the nearest deadline: ``_fire_due`` has left it at the top."""
        if not self._heap:
            return float("inf")
        remaining = max(0.0, self._heap[0][0] - self._clock.now())
        return remaining if self._clock.is_virtual else min(remaining, LONGEST_NAP_S)

    def note_cancelled(self, timer: Timer) -> None:
        """
        Take note that a timer is not to fire. For ``Timer`` alone.
        """
        self._dead_count += 1
        if self._heap[0][2] is timer:
            # Otherwise a virtual clock would jump to a deadline that nobody waits for.
            self._changed.set()
        if DEAD_SHARE * self._dead_count > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].fire is not None]
            heapify(self._heap)
            self._dead_count = 0
