"""
The names of a log's segments, and which of the files in a directory are the log.

A segment is ``00000007.log``. A compacted one, ``00000003-00000006.2.log``, stands for the segments 3 to 6; the 2
counts its generation. It is whole before it has its name, and what it stands for is removed only after that. So a crash
can leave both, and then the compacted one counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import attrs

_NAME = re.compile(r"([0-9]{8})(?:-([0-9]{8})\.([1-9][0-9]{0,8}))?\.log")


@attrs.frozen(order=True)
class SegmentName:
    """
    What the name of a segment's file says.
    """

    first: int
    "Number of the segment, or of the first that it stands for."
    last: int
    "Number of the last segment that it stands for."
    generation: int = 0
    "Counts the compactions of the same segments; 0 if it was never compacted."

    def __str__(self) -> str:
        """
        Return the file's name.
        """
        if not self.generation:
            return f"{self.first:08d}.log"
        return f"{self.first:08d}-{self.last:08d}.{self.generation}.log"

    @property
    def is_compacted(self) -> bool:
        """
        Whether it stands for other segments.
        """
        return self.generation > 0


def segment(number: int) -> SegmentName:
    """
    Return the name of a segment as it is first written.
    """
    return SegmentName(number, number)


def parse_name(name: str) -> SegmentName | None:
    """
    Return what a file's name says if it is a segment's, else None.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    first = int(found[1])
    last = first if found[2] is None else int(found[2])
    return SegmentName(first, last, int(found[3] or 0)) if 1 <= first <= last else None


@attrs.frozen
class Chain:
    """
    Which files of a directory are its log.
    """

    current: tuple[SegmentName, ...]
    "The log, from its beginning to its end."
    superseded: tuple[SegmentName, ...]
    "What compacted segments stand for, and a crash has left."
    missing: tuple[int, int] | None
    "The first and the last number of the first gap, if there is one."


def chain_of(names: Iterable[str]) -> Chain:
    """
    Tell which of the files called *names* are the log. Other files are none of its business.
    """
    current: list[SegmentName] = []
    superseded: list[SegmentName] = []
    last = 0
    for name in sorted(filter(None, map(parse_name, names)), key=_widest_first):
        # Of those that begin no later, the one that goes furthest holds it if any does.
        (current if name.last > last else superseded).append(name)
        last = max(last, name.last)
    return Chain(tuple(current), tuple(sorted(superseded)), _first_gap(current))


def _widest_first(name: SegmentName) -> tuple[int, int, int]:
    return name.first, -name.last, -name.generation


def _first_gap(names: Sequence[SegmentName]) -> tuple[int, int] | None:
    due = 1
    for name in names:
        if name.first != due:
            # Two that overlap in part cannot be: then what is between their beginnings counts as the gap.
            return min(due, name.first), max(due, name.first) - 1
        due = name.last + 1
    return None
