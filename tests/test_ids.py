"""
The ids that memable makes.
"""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memable._ids import IdMaker
from memable._keys import check_key


def test_id_is_a_uuid_of_version_7_with_its_time():
    """
    An id is a UUID of version 7 whose first 48 bits are the milliseconds since 1970.
    """
    made = uuid.UUID(IdMaker().make(1_700_000_000.123))
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == 1_700_000_000_123


def test_id_is_a_valid_key():
    """
    An id that memable makes keeps the rule for ids.
    """
    made = IdMaker().make(0)
    assert check_key("instance id", made) == made


@given(st.lists(st.floats(min_value=-1e12, max_value=1e15), min_size=2, max_size=50))
def test_ids_of_one_maker_ascend_whatever_the_clock_does(times: list[float]):
    """
    Each id is greater than the one before, also when the clock stands still, jumps or is out of any range.
    """
    maker = IdMaker()
    made = [maker.make(unix_s) for unix_s in times]
    assert made == sorted(set(made))
    assert {uuid.UUID(one).version for one in made} == {7}


def test_ids_stay_in_order_when_the_counter_runs_over():
    """
    More ids in a millisecond than its counter holds run over into the next one: still unique, still in order.
    """
    maker = IdMaker()
    made = [maker.make(1.0) for _ in range(5000)]
    assert made == sorted(set(made))
    assert uuid.UUID(made[-1]).int >> 80 == 1001


@pytest.mark.parametrize("other_s", [1.002, 2.0, 1e9])
def test_ids_of_different_makers_sort_by_time(other_s: float):
    """
    Ids of different engines sort by the millisecond in which they were made, and never collide within one.
    """
    assert IdMaker().make(1.0) < IdMaker().make(other_s)
    assert len({IdMaker().make(1.0) for _ in range(1000)}) == 1000
