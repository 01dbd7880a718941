"""
Decides how a lone append is waited for: asleep, standing still, or by doing it on the spot.

While a disk is quick, a sync takes less time than two threads take to wake each other. So the event loop does better to
stand still until the thread is done, and better still to write and sync by itself. A slow disk must not stall it,
though:

- It stands still for at most a millisecond, then all goes on as usual. After a wait that was in vain the next ones are
  not tried, twice as many each time.
- It syncs by itself only after a row of syncs that took less than that, and as long as their mean does. When one takes
  five milliseconds (as long as any thread may keep the interpreter from the others) the row has to be four times as
  long the next time: a disk that hesitates now and then is soon found out.
- If other tasks are busy, it does neither.
"""

from __future__ import annotations

from enum import Enum

import attrs

#: The event loop stands still for so many seconds at most. A disk that takes longer on average is not quick.
WAIT_S = 0.001
#: An append that the event loop does by itself and that takes so many seconds is one that it should not have done.
STALL_S = 0.005
#: If other tasks had so many seconds' work in the round before, they have something better to do than to wait.
BUSY_S = 0.0001
#: So many appends are not waited for after a wait in vain, at first, and at most.
MIN_SKIPPED = 8
MAX_SKIPPED = 1024
#: So many appends in a row must have been quick, at first, and at most.
MIN_PROOF = 64
MAX_PROOF = 65_536
#: After so many quick ones in a row, half as many are asked for the next time.
FORGIVEN_AFTER = 16_384
#: The weight of the newest append in their mean.
_WEIGHT = 1 / 16


class Manner(Enum):
    """
    How an append is waited for.
    """

    ASLEEP = "asleep"
    "A thread does it, and wakes the event loop."
    STANDING = "standing"
    "A thread does it, and the event loop stands still meanwhile, for ``WAIT_S`` at most."
    ON_THE_SPOT = "on the spot"
    "The event loop does it."


@attrs.define
class Patience:
    """
    What is known of how long a disk takes.
    """

    _proof: int = MIN_PROOF
    "So many appends in a row must be quick until the event loop does the next; 0 if that is taken for granted."
    _quick: int = attrs.field(default=0, init=False)
    "So many were, up to now."
    _mean_s: float = attrs.field(default=0.0, init=False)
    _skipped: int = attrs.field(default=0, init=False)
    "So many of the next are not waited for."
    _penalty: int = attrs.field(default=MIN_SKIPPED, init=False)
    "How many it will be the next time."

    def choose(self, round_s: float) -> Manner:
        """
        Return how to do the next append.

        Args:
            round_s: How many seconds it took until all other tasks that were ready had had their turn.
        """
        if round_s > BUSY_S:
            return Manner.ASLEEP
        if self._skipped:
            self._skipped -= 1
            return Manner.ASLEEP
        return Manner.STANDING if self._quick < self._proof else Manner.ON_THE_SPOT

    def note(self, manner: Manner, took_s: float) -> None:
        """
        Take note of how many seconds an append took, or how long it was waited for in vain.

        Args:
            manner: How it was done: not asleep.
            took_s: The seconds.
        """
        self._mean_s += (took_s - self._mean_s) * _WEIGHT
        if manner is Manner.ON_THE_SPOT and took_s >= STALL_S:
            self._proof = min(4 * max(self._proof, MIN_PROOF), MAX_PROOF)
            self._quick = 0
        elif manner is Manner.STANDING and took_s >= WAIT_S:
            self._skipped = self._penalty
            self._penalty = min(2 * self._penalty, MAX_SKIPPED)
            self._quick = 0
        elif self._mean_s >= WAIT_S:
            self._proof = max(self._proof, MIN_PROOF)
            self._quick = 0
        else:
            self._quick += 1
            self._penalty = MIN_SKIPPED
            if self._quick % FORGIVEN_AFTER == 0 and self._proof > MIN_PROOF:
                self._proof //= 2
