"""
What is known of every instance: headers by name and by number, whoever comes and goes.
"""

from __future__ import annotations

import time

import pytest

from memable._records import InstanceRecord
from memable._store._index import HeaderIndex
from sample_records import completed, retired, started, step


def write(index: HeaderIndex, *records: InstanceRecord) -> None:
    """Queue records, and have them durable."""
    index.admit(records)
    for record in records:
        index.fold(record)


def test_index_frees_a_name_when_the_retirement_is_queued():
    """
    A name is free for a start behind a retirement that is yet to become durable, and taken again from then on.
    """
    index = HeaderIndex()
    numbers = [index.allocate_number() for _ in range(3)]
    batches = [
        [started(1, name="x")],
        [completed(1, 2)],
        [retired(1, 3), started(2, name="x")],
        [completed(2, 2), retired(2, 3)],
        [started(3, name="x")],
    ]
    for batch in batches:
        index.admit(batch)
    with pytest.raises(ValueError, match="workflow 'w' has an instance 'x' already"):
        index.admit([started(index.allocate_number(), name="x")])
    with pytest.raises(ValueError, match="instance 1 was retired, so no step_completed record can follow"):
        index.admit([step(1, 4)])
    for batch in batches:
        for record in batch:
            index.fold(record)
    found = index.find("w", "x")
    assert found is not None
    assert (found.number, [header.number for header in index.after(0)], numbers) == (3, [3], [1, 2, 3])


def test_index_refuses_a_name_while_its_instance_may_go_on():
    """
    An instance that has ended, but is not retired, has its name still; nothing of a refused batch is noted.
    """
    index = HeaderIndex()
    write(index, started(index.allocate_number(), name="x"), completed(1, 2))
    second = index.allocate_number()
    with pytest.raises(ValueError, match="workflow 'w' has an instance 'x' already"):
        index.admit([started(second, name="x"), retired(1, 3)])
    index.admit([retired(1, 3), started(second, name="x")])


def test_index_lists_in_the_order_of_numbers_whoever_is_gone():
    """
    What is listed are the instances that are left, in order, while and after many are retired.
    """
    index = HeaderIndex()
    for _ in range(100):
        number = index.allocate_number()
        write(index, started(number), completed(number, 2))
    left = list(range(1, 101))
    for number in [*range(1, 100, 2), *range(100, 1, -2)]:
        write(index, retired(number, 3))
        left.remove(number)
        assert [header.number for header in index.after(0)] == left
        assert [header.number for header in index.after(50)] == [one for one in left if one > 50]
        # What is gone takes no more room than what is left.
        assert len(index._ordered) <= 2 * len(left) + 1
    assert index.allocate_number() == 101


def test_index_retires_in_linear_time():
    """
    To retire an instance costs the same, however many there are.
    """

    def retire_all(count: int) -> float:
        index = HeaderIndex()
        for _ in range(count):
            number = index.allocate_number()
            write(index, started(number), completed(number, 2))
        began = time.perf_counter()
        for number in range(1, count + 1):
            write(index, retired(number, 3))
        assert index.after(0) == []
        return time.perf_counter() - began

    few = min(retire_all(2_000) for _ in range(3))
    assert retire_all(40_000) < 20 * few * 5


def test_index_refuses_impossible_logs():
    """
    A log in which an instance has no start, or two instances have one name, is none that memable wrote.
    """
    index = HeaderIndex()
    index.fold(started(5, name="x"))
    with pytest.raises(ValueError, match="workflow 'w' has two instances 'x'"):
        index.fold(started(6, name="x"))
    with pytest.raises(ValueError, match="instance 7 has a step_completed record, but never started"):
        index.fold(step(7, 2))
    index.fold(completed(5, 2))
    index.fold(retired(5, 3))
    with pytest.raises(ValueError, match="instance 5 has a step_completed record, but never started"):
        index.fold(step(5, 4))
    assert (index.after(0), index.allocate_number()) == ([], 6)
