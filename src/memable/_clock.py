"""
The only module that reads time: what "now" is, and waiting until then.

Under trio's own clock, now is the system's wall clock (UTC), except that it never runs backwards behind what the
store already holds: from there it goes on by the monotonic clock. Under any other clock, such as
``trio.testing.MockClock``, now is the wall time at memable's first use in this trio run plus the trio time since.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

import attrs
import trio

logger = logging.getLogger("memable")

#: A wall clock is behind the store only if it is so by more than this, in seconds: timestamps are rounded.
TOLERANCE_S = 0.001
#: While a task waits for an instant, it looks at the clock this often, in seconds: a system clock can be set.
LONGEST_NAP_S = 60.0


class Clock(Protocol):
    """
    Tells the time to one engine and its store.
    """

    @property
    def is_virtual(self) -> bool:
        """
        Whether time passes by trio's clock alone, so that nothing may wait in a thread.
        """
        ...

    def now(self) -> float:
        """
        Return the time in seconds since 1970 (UTC). Never less than before.
        """
        ...

    def not_before(self, unix_s: float) -> None:
        """
        Let time go on from *unix_s* if it is still behind it.
        """
        ...


@attrs.define
class WallClock:
    """
    The system's clock, kept from running backwards.
    """

    _wall: Callable[[], float] = time.time
    "Tells the time of day in seconds since 1970. Somebody may set it."
    _monotonic: Callable[[], float] = time.monotonic
    "Tells seconds since some instant. Nobody sets it."
    _floor: float = attrs.field(default=0.0, init=False)
    "The latest time told so far, or known to have been recorded."
    _floor_monotonic: float = attrs.field(default=0.0, init=False)
    "When the monotonic clock said so, if the wall clock is behind the floor."
    _behind: bool = attrs.field(default=False, init=False)

    @property
    def is_virtual(self) -> bool:
        """
        Always False.
        """
        return False

    def now(self) -> float:
        """
        Return the time in seconds since 1970 (UTC). Never less than before.
        """
        wall = self._wall()
        if wall >= self._floor:
            if not self._behind:
                self._floor = wall
                return wall
            # The wall clock has caught up with where it had been; what the monotonic clock makes of it may be later.
        elif not self._behind:
            self._fall_behind(wall)
        told = self._floor + (self._monotonic() - self._floor_monotonic)
        if wall >= told:
            self._behind = False
            self._floor = wall
            return wall
        return told

    def not_before(self, unix_s: float) -> None:
        """
        Let time go on from *unix_s* if it is still behind it.
        """
        if unix_s > self.now():
            self._floor = unix_s
            self._behind = False
            self.now()

    def _fall_behind(self, wall: float) -> None:
        self._behind = True
        self._floor_monotonic = self._monotonic()
        if self._floor - wall > TOLERANCE_S:
            logger.warning(
                "the system's clock is %.3f s behind the newest time in use; going on from %.3f by the monotonic clock",
                self._floor - wall,
                self._floor,
            )


@attrs.define
class TrioClock:
    """
    Trio's current clock, whatever it is, counted from the wall time at its first use in this trio run.
    """

    _origin_unix_s: float
    "What time it is when trio's clock says 0."

    @property
    def is_virtual(self) -> bool:
        """
        Always True.
        """
        return True

    def now(self) -> float:
        """
        Return the time in seconds since 1970 (UTC). Never less than before.
        """
        return self._origin_unix_s + trio.current_time()

    def not_before(self, unix_s: float) -> None:
        """
        Let time go on from *unix_s* if it is still behind it.
        """
        self._origin_unix_s += max(0.0, unix_s - self.now())


_virtual_origin = trio.lowlevel.RunVar[float]("memable_virtual_origin")


def current_clock() -> Clock:
    """
    Return a clock for an engine in the current trio run.
    """
    clock = trio.lowlevel.current_clock()
    # trio has no public name for the class of its own clock; a class of trio's that is not one for tests is that.
    if type(clock).__module__.startswith("trio._core._run"):
        return WallClock()
    try:
        origin = _virtual_origin.get()
    except LookupError:
        origin = time.time() - trio.current_time()
        _virtual_origin.set(origin)
    return TrioClock(origin)


def begin_virtual_time(unix_s: float) -> None:
    """
    Let a virtual clock's time begin at *unix_s*, for all engines of the current trio run that are opened after this.
    """
    _virtual_origin.set(unix_s - trio.current_time())


async def sleep_until(clock: Clock, unix_s: float) -> None:
    """
    Sleep until *clock* says *unix_s*. Always a checkpoint.
    """
    while True:
        remaining = unix_s - clock.now()
        if remaining <= 0:
            await trio.lowlevel.checkpoint()
            return
        await trio.sleep(remaining if clock.is_virtual else min(remaining, LONGEST_NAP_S))
