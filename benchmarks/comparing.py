"""
Decides whether one revision is slower than another, from times that were taken in turns.

Both are measured in the order base, head, head, base, and again from the beginning. A time of one beside a time of the
other makes a pair: what slows the machine down for a while slows down both, and whether base or head comes first
changes from pair to pair. Two times of the same revision beside each other tell what the machine alone makes of it.

A revision is slower if two things hold. The sign test leaves no doubt that the median of the pairs' ratios is above 1;
it takes no more for granted than that pairs are independent of each other. And that median is further above 1 than the
threshold on top of what a revision typically differs from itself. Nothing here runs, or reads a clock.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from itertools import pairwise
from math import comb, inf
from statistics import median
from typing import Literal, TypeAlias

import attrs

Side: TypeAlias = Literal["base", "head"]
#: One round of measurements.
ORDER: tuple[Side, ...] = ("base", "head", "head", "base")


class Verdict(enum.Enum):
    """
    What the times say of the head.
    """

    SLOWER = "SLOWER"
    FASTER = "faster"
    SAME = "the same"
    UNCLEAR = "unclear"
    "It may be slower or faster by more than is allowed: more rounds, or a quieter machine, would tell."


@attrs.frozen
class Comparison:
    """
    What a number of pairs say.
    """

    ratio: float
    "How many times the base the head takes: the median of all pairs."
    low: float
    "The median is surely not below this; 0 if there are too few pairs to say."
    high: float
    "The median is surely not above this; infinite if there are too few pairs to say."
    noise: float
    "How many times itself a revision typically takes, from 1."
    allowed: float
    "Beyond this the head counts as slower."

    @property
    def verdict(self) -> Verdict:
        if self.low > 1 and self.ratio > self.allowed:
            return Verdict.SLOWER
        if self.high < 1 and self.ratio < 1 / self.allowed:
            return Verdict.FASTER
        if self.high <= self.allowed and self.low >= 1 / self.allowed:
            return Verdict.SAME
        return Verdict.UNCLEAR


def compare(times_s: Sequence[float], threshold: float, error_rate: float) -> Comparison:
    """
    Compare a head to its base.

    Args:
        times_s: What each measurement took, in the order in which they were made: whole rounds.
        threshold: How much slower is still allowed, 0.05 for 5 %, beside what is noise.
        error_rate: How often the bounds may be wrong.

    Raises:
        ValueError: They are not whole rounds.
    """
    if not times_s or len(times_s) % len(ORDER):
        raise ValueError(f"{len(times_s)} times are not whole rounds of {len(ORDER)}")
    sides = [*ORDER] * (len(times_s) // len(ORDER))
    # Each time is in one pair only, so that pairs are independent.
    ratios = [
        second_s / first_s if (first, second) == ("base", "head") else first_s / second_s
        for (first, first_s), (second, second_s) in list(pairwise(zip(sides, times_s, strict=True)))[::2]
    ]
    selves = [
        max(first_s / second_s, second_s / first_s)
        for (first, first_s), (second, second_s) in pairwise(zip(sides, times_s, strict=True))
        if first == second
    ]
    low, high = median_bounds(ratios, error_rate)
    noise = median(selves)
    return Comparison(median(ratios), low, high, noise, (1 + threshold) * noise)


def median_bounds(values: Sequence[float], error_rate: float) -> tuple[float, float]:
    """
    Return between what the median lies that the values are drawn around, each bound wrong no more often than that.

    The sign test: each value is below the median as a coin falls. 0 and infinity if there are too few values.
    """
    count = len(values)
    # So many values may lie on the wrong side of a bound before it is that unlikely.
    passed, chance = 0, 0.0
    while passed < count:
        chance += comb(count, passed) / 2**count
        if chance > error_rate:
            break
        passed += 1
    if passed == 0:
        return 0.0, inf
    ordered = sorted(values)
    return ordered[passed - 1], ordered[-passed]
