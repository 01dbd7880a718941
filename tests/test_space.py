"""
Which files of a log are worth compacting.
"""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from memable._segments import SegmentName
from memable._store._space import FileSpace, Space

SEGMENT_BYTES = 2_000

#: Size and dead bytes of each file, in the order of the log.
logs = st.lists(
    st.tuples(st.integers(0, 30_000), st.floats(0, 1)).map(lambda pair: (pair[0], int(pair[0] * pair[1]))), max_size=12
)


def space_of(files: list[tuple[int, int]]) -> Space:
    return Space([FileSpace(SegmentName(number, number), *facts) for number, facts in enumerate(files, 1)])


@given(logs)
@example([(321, 0), (23_928, 23_760), (419, 0)])  # the second is worth it, and too long to be joined to the first
def test_space_is_at_rest_after_a_few_compactions(files: list[tuple[int, int]]):
    """
    Whatever the files are, compacting what is chosen comes to an end: nothing is compacted for nothing.
    """
    space = space_of(files)
    for _ in range(2 * len(files) + 1):
        run = space.choose(len(files) + 1, SEGMENT_BYTES, frozenset())
        if not run:
            return
        chosen = [file for file in space.files if file.name in run]
        assert len(chosen) > 1 or chosen[0].dead > 0
        name = SegmentName(run[0].first, run[-1].last, max(one.generation for one in run) + 1)
        space.replace(run, name, sum(file.live for file in chosen))
    raise AssertionError(f"never at rest: {space.files}")


def test_space_chooses_a_long_file_of_garbage_beside_a_small_one():
    """
    A file that is too long to be joined to its small neighbour is compacted by itself, and then joined to it.
    """
    space = space_of([(321, 0), (23_928, 23_760), (419, 0)])
    assert space.choose(3, SEGMENT_BYTES, frozenset()) == [SegmentName(2, 2)]
