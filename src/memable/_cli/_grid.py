"""
Fits a table into the width of its reader.

What names something is never cut: where it is too wide, it goes on in the next line. What is least needed is left out,
and what is only a hint is cut. A pipe gets everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, Literal, TypeVar

import attrs
from rich.console import JustifyMethod, OverflowMethod
from rich.table import Table
from rich.text import Text

from ._console import Output

_T = TypeVar("_T")

#: Blanks between two columns.
_GAP = 2
#: What a column of each role needs at least.
_MIN_NAME_CELLS = 10
_MIN_HINT_CELLS = 16


@attrs.frozen
class Column(Generic[_T]):
    """
    A column of a table.
    """

    title: Text
    tell: Callable[[_T], Text]
    "Returns what stands in it."
    role: Literal["fixed", "name", "hint"] = "fixed"
    "Whether it stays as it is, goes on in the next line where it must, or is cut. At most the last one is a hint."
    justify: JustifyMethod = "left"
    drop: int | None = None
    "When it is left out for want of width: lower ones first, None never."


def make_table(output: Output, columns: Sequence[Column[_T]], rows: Iterable[_T]) -> Table:
    """
    Return a table of *rows* that fits the reader.
    """
    texts = [[column.tell(row) for column in columns] for row in rows]
    natural = [
        max(column.title.cell_len, *(cells[index].cell_len for cells in texts), 0)
        for index, column in enumerate(columns)
    ]
    kept = list(range(len(columns)))
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    if output.is_terminal:
        kept = _keep(columns, natural, output.width)
        natural = _shrink(columns, natural, kept, output.width)
    for index in kept:
        column = columns[index]
        overflow: OverflowMethod = "ellipsis" if column.role == "hint" else "fold"
        table.add_column(
            column.title,
            justify=column.justify,
            no_wrap=column.role != "name",
            overflow=overflow,
            width=natural[index],
        )
    for cells in texts:
        table.add_row(*(cells[index] for index in kept))
    return table


def _keep(columns: Sequence[Column[_T]], natural: Sequence[int], width: int) -> list[int]:
    """Return the indexes of the columns for which there is room."""
    kept = list(range(len(columns)))
    droppable = sorted((column.drop, index) for index, column in enumerate(columns) if column.drop is not None)
    for _, index in droppable:
        # An id that goes on in the next line is worse than a column less.
        needed = sum(min(natural[i], _MIN_HINT_CELLS) if columns[i].role == "hint" else natural[i] for i in kept)
        if needed + _GAP * (len(kept) - 1) <= width:
            break
        kept.remove(index)
    return kept


def _shrink(columns: Sequence[Column[_T]], natural: Sequence[int], kept: Sequence[int], width: int) -> list[int]:
    """Return how wide each column is to be."""
    widths = list(natural)
    excess = sum(widths[index] for index in kept) + _GAP * (len(kept) - 1) - width
    for role, least in (("hint", _MIN_HINT_CELLS), ("name", _MIN_NAME_CELLS)):
        # The widest gives first.
        for index in sorted(kept, key=lambda index: -widths[index]):
            if columns[index].role == role and excess > 0:
                given = max(0, min(excess, widths[index] - least))
                widths[index] -= given
                excess -= given
    return widths
