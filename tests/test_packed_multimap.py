"""
Pairs of numbers, sorted, many of them.
"""

from __future__ import annotations

import random
from bisect import insort

import pytest

from memable._packed_multimap import MAX_BUCKET, PackedMultimap

COUNT = 4 * MAX_BUCKET


def filled(pairs: list[tuple[int, int]]) -> PackedMultimap[int]:
    found = PackedMultimap[int]("Q")
    for key, value in pairs:
        found.insert(key, value)
    return found


def test_multimap_is_empty_at_first():
    """
    Of nothing there is no first pair, and nothing can be removed.
    """
    empty = PackedMultimap[int]("Q")
    assert (len(empty), list(empty), empty.first(), empty.values(1), empty.up_to(9, 9)) == (0, [], None, [], [])
    with pytest.raises(KeyError, match=r"\(1, 2\)"):
        empty.remove(1, 2)
    assert empty.to_parts() == ([], [])


@pytest.mark.parametrize("distinct", [1, 3, 500, 2**40])
@pytest.mark.parametrize("seed", range(3))
def test_multimap_agrees_with_a_sorted_list(distinct: int, seed: int):
    """
    Whatever is inserted and removed, with many values of a key or few, it holds what a sorted list of pairs would.
    """
    rng = random.Random(seed)
    found, model = PackedMultimap[int]("Q"), list[tuple[int, int]]()

    def check() -> None:
        assert list(found) == model
        assert len(found) == len(model)
        assert found.first() == (model[0] if model else None)
        for key in [rng.choice(model)[0] if model else 0, rng.randrange(distinct), -1]:
            assert found.values(key) == [value for each, value in model if each == key]
            limit = rng.randrange(2 * COUNT)
            assert found.up_to(key, limit) == [value for each, value in model if each <= key][:limit]

    while len(model) < COUNT:
        pair = (rng.randrange(distinct), rng.randrange(2**64))
        found.insert(*pair)
        insort(model, pair)
        if rng.random() < 0.3:
            found.remove(*model.pop(rng.randrange(len(model))))
        if len(model) % 1000 == 0:
            check()
    check()
    while model:
        found.remove(*model.pop(rng.randrange(len(model))))
        if len(model) % 500 == 0:
            check()


def test_multimap_holds_a_pair_as_often_as_it_was_inserted():
    """
    Equal pairs are counted, and taken out one by one, through several buckets of them.
    """
    found = filled([(1, 1)] * COUNT)
    assert found.values(1) == [1] * COUNT
    for left in reversed(range(COUNT)):
        found.remove(1, 1)
        assert len(found) == left
    with pytest.raises(KeyError, match=r"\(1, 1\)"):
        found.remove(1, 1)


@pytest.mark.parametrize("pair", [(5, 1), (6, 0), (4, 5), (7, 5), (0, 0)])
def test_multimap_refuses_to_remove_what_is_not_there(pair: tuple[int, int]):
    """
    A pair is removed only if key and value are those.
    """
    found = filled([(5, 0), (5, 2), (6, 5)])
    with pytest.raises(KeyError):
        found.remove(*pair)
    assert list(found) == [(5, 0), (5, 2), (6, 5)]


def test_multimap_fills_its_buckets_when_pairs_come_in_order():
    """
    Pairs that come in their order take no more room than they need.
    """
    found = PackedMultimap[float]("d")
    for number in range(10 * MAX_BUCKET):
        found.insert(float(number), number)
    assert len(found._keys) <= 11


def test_multimap_joins_buckets_that_shrink():
    """
    When most pairs are gone, so are most buckets.
    """
    pairs = [(number, number) for number in range(20 * MAX_BUCKET)]
    found = filled(pairs)
    for pair in pairs[::20]:
        pairs.remove(pair)
    kept = filled(pairs)
    for pair in pairs:
        if pair[0] % 10:
            kept.remove(*pair)
    assert len(kept._keys) <= 6
    assert list(kept) == [pair for pair in pairs if pair[0] % 10 == 0]
    assert len(found) == 20 * MAX_BUCKET


@pytest.mark.parametrize("count", [0, 1, 895, 896, 897, COUNT])
def test_multimap_comes_back_from_its_parts(count: int):
    """
    What was made of the parts of another holds the same, joined to bytes or as they are, and can be changed.
    """
    pairs = [(key // 3, key) for key in range(count)]
    keys, values = filled(pairs).to_parts()
    whole = PackedMultimap[int].from_parts("Q", b"".join(keys), b"".join(values))
    again = PackedMultimap[int].from_parts("Q", keys, values)
    assert (list(whole), list(again), len(whole)) == (pairs, pairs, count)
    whole.insert(0, 0)
    assert list(whole) == [(0, 0), *pairs]


def test_multimap_parts_do_not_change():
    """
    Parts hold what there was when they were taken, whatever is inserted, removed, split or joined after that.
    """
    rng = random.Random(7)
    pairs = sorted((rng.randrange(100), number) for number in range(COUNT))
    found = filled(pairs)
    first = found.to_parts()
    for pair in pairs[::2]:
        found.remove(*pair)
    second = found.to_parts()
    for number in range(COUNT):
        found.insert(50, COUNT + number)
    for pair in list(found)[100:]:
        found.remove(*pair)
    assert list(PackedMultimap[int].from_parts("Q", *first)) == pairs
    assert list(PackedMultimap[int].from_parts("Q", *second)) == pairs[1::2]


@pytest.mark.parametrize("seed", range(5))
def test_multimap_takes_many_pairs_at_once(seed: int):
    """
    Pairs that come many at a time, in their order, are as good as those that come one by one.
    """
    rng = random.Random(seed)
    found, pairs = PackedMultimap[int]("Q"), list[tuple[int, int]]()
    found.extend([], [])
    for number in range(6):
        some = sorted((rng.randrange(1000) + 900 * number, rng.randrange(9)) for _ in range(rng.choice((1, 50, COUNT))))
        parts = found.to_parts()
        found.extend([key for key, _ in some], [value for _, value in some])
        assert list(PackedMultimap[int].from_parts("Q", *parts)) == pairs
        pairs = sorted(pairs + some)
        assert (list(found), len(found)) == (pairs, len(pairs))
    for pair in rng.sample(pairs, len(pairs) // 2):
        found.remove(*pair)
        pairs.remove(pair)
    assert list(found) == pairs
