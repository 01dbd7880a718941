"""
Lets the system's clock, as the user's code reads it, follow trio's virtual one.

So ``time.time()`` and ``datetime.now()`` in a workflow tell the time that memable's timers go by, and another one in
each life of a process; a key that is made from it differs as it would on a real machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import time_machine
import trio


class Follower(trio.abc.Instrument):
    """
    Sets the system's clock, for this process only, whenever trio's has moved.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        """
        Follow *now*, in seconds since 1970.
        """
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

    @contextmanager
    def following(self) -> Iterator[None]:
        """
        Follow it inside the block.
        """
        with self._traveller as shown:
            self._shown = shown
            trio.lowlevel.add_instrument(self)
            try:
                yield
            finally:
                trio.lowlevel.remove_instrument(self)
