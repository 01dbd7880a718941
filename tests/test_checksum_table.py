"""
Numbers by checksums, in arrays.
"""

from __future__ import annotations

import random

import pytest

from memable._checksum_table import MAX_NUMBER, ChecksumTable


def pairs_of(table: ChecksumTable) -> list[tuple[int, int]]:
    """Return all pairs, in the order in which the table gives them."""
    return [pair for checksums, numbers in table.pairs() for pair in zip(checksums, numbers, strict=True)]


@pytest.mark.parametrize("spread", [1, 1 << 12, 1 << 20])
@pytest.mark.parametrize("seed", range(3))
def test_table_agrees_with_a_dictionary(spread: int, seed: int):
    """
    Whatever is added and removed, the table answers as a dictionary would, and gives its pairs in their order.
    """
    rng = random.Random(seed)
    table, model = ChecksumTable(), dict[int, int]()
    known = [rng.randrange((1 << 32) // spread) * spread for _ in range(3000)]
    for number in range(1, 12_000):
        checksum = rng.choice(known) if rng.random() < 0.5 else rng.randrange((1 << 32) // spread) * spread
        if rng.random() < 0.3:
            assert table.remove(checksum, model.get(checksum, number)) == (checksum in model)
            model.pop(checksum, None)
        elif table.add(checksum, number):
            assert checksum not in model
            model[checksum] = number
        else:
            assert checksum in model or checksum == 0
        assert table.number(checksum) == model.get(checksum)
    assert pairs_of(table) == sorted(model.items())


def test_table_holds_one_number_of_a_checksum():
    """
    A second number of a checksum is refused, until the first one is removed; so is what there is no room for.
    """
    table = ChecksumTable()
    assert [table.add(7, 1), table.add(7, 2), table.number(7), table.number(8)] == [True, False, 1, None]
    assert [table.remove(7, 2), table.remove(7, 1), table.remove(7, 1), table.number(7)] == [False, True, False, None]
    assert [table.add(7, MAX_NUMBER + 1), table.add(8, MAX_NUMBER + 1), table.add(0, 1)] == [False, False, False]
    assert [table.add(7, MAX_NUMBER), table.add(2**32 - 1, 3)] == [True, True]
    assert pairs_of(table) == [(7, MAX_NUMBER), (2**32 - 1, 3)]


@pytest.mark.parametrize("first", [1, 5 << 20, 2**32 - 3000])
def test_table_refuses_checksums_that_were_chosen_badly(first: int):
    """
    Checksums that all belong to one place are refused before a search for them takes long.
    """
    table = ChecksumTable()
    taken = [checksum for checksum in range(first, first + 3000) if table.add(checksum, 1)]
    assert 200 < len(taken) < 300
    assert pairs_of(table) == [(checksum, 1) for checksum in taken]
