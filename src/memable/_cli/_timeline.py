"""
A common scale of time for the bars of a history, in the cells of a terminal.

A workflow that works for a second and waits for a week would show nothing but its wait. So a stretch in which nothing
was executed is left out if it is much longer than all that is not left out; a break of fixed width stands for it in
every row. Nothing begins or ends within a break, so none of the order is lost. Where there is no room for as many
breaks, things stand in their order, evenly, and the scale says so.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise

import attrs

#: So wide is a break.
BREAK_CELLS = 2
#: A stretch is left out if it is so many times as long as all that is not.
_MUCH_LONGER = 3
#: One break to so many cells at most.
_CELLS_PER_BREAK = 6


@attrs.frozen
class Span:
    """
    Something that took time, or a moment.
    """

    start: float
    end: float
    is_work: bool = False
    "Whether something was executed then; else it was waited for, or contains other spans."


@attrs.frozen
class _Run:
    """A stretch of time that is drawn to scale."""

    start: float
    end: float
    first_cell: int
    cells: int

    def place(self, at: float) -> float:
        """Return where an instant is, in cells from the first one."""
        return (at - self.start) / (self.end - self.start) * self.cells if self.end > self.start else 0.0


@attrs.frozen
class Scale:
    """
    Puts instants into cells.
    """

    width: int
    "How many cells there are."
    breaks: tuple[float, ...]
    "How long each stretch is that was left out."
    is_even: bool
    "Whether things stand in their order only, and lengths mean nothing."
    _runs: tuple[_Run, ...]
    _ranks: dict[float, float] | None = None

    @property
    def break_cells(self) -> frozenset[int]:
        """
        The cells of the breaks.
        """
        return frozenset(run.first_cell - before for run in self._runs[1:] for before in range(1, BREAK_CELLS + 1))

    def cells_of(self, start: float, end: float) -> tuple[int, int]:
        """
        Return the first and the last cell of a span that the scale was made for.

        What ends where a break does has its last cell in that break.
        """
        first_run, last_run = self._run_at(start), self._run_at(end)
        first = first_run.first_cell + min(int(first_run.place(self._rank(start))), first_run.cells - 1)
        # What ends where a cell ends does not reach into the next one.
        place = last_run.place(self._rank(end))
        last = last_run.first_cell + min(int(place) - (place == int(place)), last_run.cells - 1)
        return first, max(first, last)

    def _rank(self, at: float) -> float:
        return at if self._ranks is None else self._ranks[at]

    def _run_at(self, at: float) -> _Run:
        rank = self._rank(at)
        return self._runs[max(0, bisect_right(self._runs, rank, key=lambda run: run.start) - 1)]


def make_scale(spans: Iterable[Span], width: int) -> Scale:
    """
    Return the scale on which these spans, of which there is at least one, are to be drawn.
    """
    spans = list(spans)
    times = sorted({at for span in spans for at in (span.start, span.end)})
    segments = list(pairwise(times))
    left_out = _find_left_out(segments, spans)
    if len(left_out) > width // _CELLS_PER_BREAK:
        ranks = {at: float(rank) for rank, at in enumerate(times)}
        return Scale(width, (), True, (_Run(0.0, len(times) - 1.0, 0, width),), ranks)
    starts = [times[0], *(segments[index][1] for index in left_out)]
    ends = [*(segments[index][0] for index in left_out), times[-1]]
    cells = _share([end - start for start, end in zip(starts, ends, strict=True)], width - BREAK_CELLS * len(left_out))
    runs: list[_Run] = []
    first_cell = 0
    for start, end, count in zip(starts, ends, cells, strict=True):
        runs.append(_Run(start, end, first_cell, count))
        first_cell += count + BREAK_CELLS
    return Scale(width, tuple(segments[index][1] - segments[index][0] for index in left_out), False, tuple(runs))


def _find_left_out(segments: Sequence[tuple[float, float]], spans: Iterable[Span]) -> list[int]:
    """Return the indexes of the segments that are to be left out, in ascending order."""
    quiet = _find_quiet(segments, spans)
    lengths = [end - start for start, end in segments]
    rest = sum(lengths)
    if len(quiet) == len(segments):
        # Nothing but waits: there is nothing that they could squash.
        return []
    found: list[int] = []
    candidates: list[int] = []
    for index in sorted(quiet, key=lambda index: -lengths[index]):
        rest -= lengths[index]
        candidates.append(index)
        # Two long waits leave no room for each other, but both leave none for the rest.
        if lengths[index] >= _MUCH_LONGER * rest:
            found = list(candidates)
    return sorted(found)


def _find_quiet(segments: Sequence[tuple[float, float]], spans: Iterable[Span]) -> list[int]:
    """Return the indexes of the segments in which nothing was executed."""
    changes: dict[float, int] = {}
    for span in spans:
        if span.is_work and span.end > span.start:
            changes[span.start] = changes.get(span.start, 0) + 1
            changes[span.end] = changes.get(span.end, 0) - 1
    quiet: list[int] = []
    active = 0
    for index, (start, _) in enumerate(segments):
        active += changes.get(start, 0)
        if not active:
            quiet.append(index)
    return quiet


def _share(lengths: Sequence[float], cells: int) -> list[int]:
    """Return how many cells each length gets, at least one: *cells* in all."""
    total = sum(lengths)
    shared: list[int] = []
    # At each length, what is left is shared among those that are left, so that errors of rounding do not add up.
    for left, length in zip(range(len(lengths), 0, -1), lengths, strict=True):
        fair = round(cells * length / total) if total > 0 else 1
        given = cells if left == 1 else min(max(1, fair), cells - (left - 1))
        shared.append(given)
        cells -= given
        total -= length
    return shared
