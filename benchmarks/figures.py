"""
What a measurement found, and the table of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import log
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

import attrs


@attrs.frozen
class Settings:
    """
    What every workload is told.
    """

    directory: Path
    "An empty directory, on the file system that is measured."
    rounds: int
    "How often a workload is measured; medians are reported."
    full: bool = False
    "Whether all sizes are measured, also those that take minutes."
    peers: Path | None = None
    "Where the environments of other engines are."
    postgres: str | None = None
    "The URL of a database that others may use, or the word that asks for one of our own."
    notes: list[str] = attrs.field(factory=list)
    "What could not be measured, and why; workloads add to it."


@attrs.frozen
class Goal:
    """
    What a figure has to reach.
    """

    text: str
    "The goal, for people."
    is_met: bool


@attrs.frozen
class Figure:
    """
    One row of the table: something of memable's, and what the machine does without it.
    """

    workload: str
    value: float
    "memable's; the median of all rounds."
    unit: str
    against: str = ""
    "What it is compared with, in the same unit: a raw limit of the machine, or another engine."
    raw: float | None = None
    "The median of that."
    ratio: float | None = None
    "How many times the other it is: the median of the ratios within each round."
    goal: Goal | None = None
    note: str = ""
    system: str = ""
    "The engine that this is of, where several are measured alike; the table of those has it."


def at_most(measured: float, limit: float, unit: str) -> Goal:
    return Goal(f"at most {limit:g} {unit}", measured <= limit)


def at_least(measured: float, limit: float, unit: str) -> Goal:
    return Goal(f"at least {limit:,g} {unit}", measured >= limit)


def ratio_of(values: Sequence[float], raws: Sequence[float]) -> float:
    """
    Return the median of the ratios of two interleaved measurements, so that a drift of the machine cancels out.
    """
    return median(value / raw for value, raw in zip(values, raws, strict=True))


def exponent(sizes: Sequence[float], totals: Sequence[float]) -> float:
    """
    Return by which power of the size a total grows: 1 if it is proportional, 2 if it is quadratic.

    It is the slope of the line that fits the logarithms best.
    """
    xs, ys = [log(size) for size in sizes], [log(total) for total in totals]
    return linear_regression(xs, ys).slope


def table_of(figures: Iterable[Figure]) -> str:
    """
    Return the figures as a table in Markdown.
    """
    header = ("workload", "memable", "compared with", "which has", "ratio", "goal", "")
    return aligned([header, *(_cells(figure) for figure in figures if not figure.system)])


def aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """
    Return rows, the first of which is the header, as a table in Markdown.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows = [rows[0], tuple("-" * max(width, 3) for width in widths), *rows[1:]]
    lines = ("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line + " |" for line in lines)


def as_json(figure: Figure) -> dict[str, Any]:
    return attrs.asdict(figure)


def _cells(figure: Figure) -> tuple[str, ...]:
    verdict = "" if figure.goal is None else "met" if figure.goal.is_met else "MISSED"
    return (
        figure.workload,
        f"{number(figure.value)} {figure.unit}" + (f" ({figure.note})" if figure.note else ""),
        figure.against,
        "" if figure.raw is None else f"{number(figure.raw)} {figure.unit}",
        "" if figure.ratio is None else f"{figure.ratio:.2f}",
        "" if figure.goal is None else figure.goal.text,
        verdict,
    )


def number(value: float) -> str:
    """
    Return a number for people: as many digits as there is reason to believe.
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
