"""
Makes a virtual clock good company: for the system's clock, which follows it, and for threads, which it waits for.

So ``time.time()`` and ``datetime.now()`` in a workflow tell the time that memable's timers go by, and another one in
each life of a process; a key that is made from it differs as it would on a real machine. And a step that uses threads,
as ``trio.Path`` does, is not taken for one of which nothing more is to be expected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import time_machine
import trio
from trio.testing import MockClock


class Companion(trio.abc.Instrument):
    """
    Sets the system's clock, for this process only, whenever trio's has moved; holds trio's while threads work.
    """

    def __init__(self, clock: MockClock, now: Callable[[], float]) -> None:
        """
        Accompany a clock that jumps ahead when every task waits.

        Args:
            clock: Trio's.
            now: Tells its time in seconds since 1970.
        """
        self._clock = clock
        self._now = now
        self._traveller = time_machine.travel(now(), tick=False)
        self._shown: time_machine.Traveller | None = None
        self._told = now()

    def after_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - how long it was is not told by a virtual clock
        """
        Look at trio's clock: it moves only while every task waits.
        """
        now = self._now()
        if now != self._told and self._shown is not None:
            self._told = now
            self._shown.move_to(now, tick=False)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002 - whichever it was
        """
        Look at how many threads are at work: a task that waits for one is not idle.
        """
        threshold = math.inf if trio.to_thread.current_default_thread_limiter().borrowed_tokens else 0.0
        if threshold != self._clock.autojump_threshold:
            self._clock.autojump_threshold = threshold

    @contextmanager
    def travelling(self) -> Iterator[None]:
        """
        Let the system's clock be the virtual one inside the block, which trio runs in with this as an instrument.
        """
        with self._traveller as shown:
            self._shown = shown
            yield

    @contextmanager
    def beside(self) -> Iterator[None]:
        """
        Accompany the clock of the current trio run inside the block.
        """
        with self.travelling():
            trio.lowlevel.add_instrument(self)
            try:
                yield
            finally:
                trio.lowlevel.remove_instrument(self)
