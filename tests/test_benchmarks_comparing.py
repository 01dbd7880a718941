"""
The rule by which the benchmarks call one revision slower than another.
"""

from __future__ import annotations

import random
from math import inf

import pytest
from comparing import ORDER, Verdict, compare, median_bounds

ROUNDS = 8
THRESHOLD = 0.05
ERROR_RATE = 0.0005


def run_of(slowdown: float, noise: float = 0.0, seed: int = 0, rounds: int = ROUNDS) -> list[float]:
    """
    Return times as a machine of that noise would take, of a head that takes that many times its base.
    """
    luck = random.Random(seed)
    return [(slowdown if side == "head" else 1.0) * luck.lognormvariate(0.0, noise) for side in ORDER * rounds]


def verdict_of(times_s: list[float]) -> Verdict:
    return compare(times_s, THRESHOLD, ERROR_RATE).verdict


@pytest.mark.parametrize(
    ("slowdown", "expected"),
    [
        (1.0, Verdict.SAME),
        (1.04, Verdict.SAME),
        (0.97, Verdict.SAME),
        (1.06, Verdict.SLOWER),
        (2.0, Verdict.SLOWER),
        (0.94, Verdict.FASTER),
        (0.5, Verdict.FASTER),
    ],
)
def test_comparing_without_noise_goes_by_the_threshold(slowdown: float, expected: Verdict) -> None:
    """
    On a machine without noise, a head is slower or faster if it differs by more than the threshold.
    """
    assert verdict_of(run_of(slowdown)) is expected


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.2, 1.0])
def test_comparing_a_revision_with_itself_never_fails(noise: float) -> None:
    """
    However noisy the machine is, a revision isn't slower than itself.
    """
    verdicts = {verdict_of(run_of(1.0, noise, seed)) for seed in range(300)}
    assert Verdict.SLOWER not in verdicts
    assert Verdict.FASTER not in verdicts


def test_comparing_notices_a_slowdown_above_noise() -> None:
    """
    A head that takes a fifth more is noticed on a machine whose times differ by 3 %, whatever the luck.
    """
    assert {verdict_of(run_of(1.2, 0.03, seed)) for seed in range(300)} == {Verdict.SLOWER}


def test_comparing_does_not_take_noise_for_a_slowdown() -> None:
    """
    A head that takes a tenth more isn't called slower where a revision differs by more from itself.
    """
    assert Verdict.SLOWER not in {verdict_of(run_of(1.1, 0.5, seed)) for seed in range(300)}


@pytest.mark.parametrize("last", [0.2, 5.0])
def test_comparing_is_not_misled_by_a_drift(last: float) -> None:
    """
    A machine that becomes slower or faster all the while makes neither revision look slower.
    """
    times_s = run_of(1.0)
    drifted = [time_s * last ** (place / len(times_s)) for place, time_s in enumerate(times_s)]
    assert verdict_of(drifted) not in {Verdict.SLOWER, Verdict.FASTER}


def test_comparing_is_not_misled_by_an_outlier() -> None:
    """
    A pause of the machine in one measurement of the head doesn't make it slower.
    """
    times_s = run_of(1.0)
    times_s[6] = 100.0
    assert verdict_of(times_s) is Verdict.SAME


def test_comparing_says_nothing_after_too_few_rounds() -> None:
    """
    Two rounds tell nothing for sure, even of a head that takes twice as long.
    """
    found = compare(run_of(2.0, rounds=2), THRESHOLD, ERROR_RATE)
    assert (found.low, found.high) == (0.0, inf)
    assert found.verdict is Verdict.UNCLEAR


def test_comparing_tells_what_it_found() -> None:
    """
    The ratio is the median of the pairs, the noise is how much a revision differs from itself.
    """
    found = compare([1.0, 2.0, 2.2, 1.1] * ROUNDS, THRESHOLD, ERROR_RATE)
    assert found.ratio == pytest.approx(2.0)
    assert found.noise == pytest.approx(1.1)
    assert found.allowed == pytest.approx(1.1 * 1.05)


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_comparing_refuses_parts_of_rounds(count: int) -> None:
    """
    Times that aren't whole rounds are refused, for they would be taken for the other side's.
    """
    with pytest.raises(ValueError, match=f"{count} times are not whole rounds of 4"):
        compare([1.0] * count, THRESHOLD, ERROR_RATE)


@pytest.mark.parametrize(
    ("count", "error_rate", "expected"),
    [
        # One value in 2**6 is on the wrong side by chance too often, one in 2**7 is not.
        (6, 0.01, (0.0, inf)),
        (7, 0.01, (0.0, 6.0)),
        # (1 + 11) / 2**11 is below the rate, (1 + 11 + 55) / 2**11 is not.
        (11, 0.01, (1.0, 9.0)),
        (11, 0.04, (2.0, 8.0)),
    ],
)
def test_comparing_bounds_a_median_by_the_sign_test(
    count: int, error_rate: float, expected: tuple[float, float]
) -> None:
    """
    As many values may lie beyond a bound as a fair coin is likely to give.
    """
    assert median_bounds([float(value) for value in reversed(range(count))], error_rate) == expected
