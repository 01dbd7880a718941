"""
What a measurement found, and the table of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
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
    "What it is compared with: a raw limit of the machine, in the same unit."
    raw: float | None = None
    "The median of the raw limit."
    ratio: float | None = None
    "How many times the raw limit it takes: the median of the ratios within each round."
    goal: Goal | None = None
    note: str = ""


def at_most(measured: float, limit: float, unit: str) -> Goal:
    return Goal(f"at most {limit:g} {unit}", measured <= limit)


def at_least(measured: float, limit: float, unit: str) -> Goal:
    return Goal(f"at least {limit:,g} {unit}", measured >= limit)


def ratio_of(values: Sequence[float], raws: Sequence[float]) -> float:
    """
    Return the median of the ratios of two interleaved measurements, so that a drift of the machine cancels out.
    """
    return median(value / raw for value, raw in zip(values, raws, strict=True))


def table_of(figures: Iterable[Figure]) -> str:
    """
    Return the figures as a table in Markdown.
    """
    rows: list[tuple[str, ...]] = [("workload", "memable", "compared with", "which takes", "ratio", "goal", "")]
    rows.extend(_cells(figure) for figure in figures)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, tuple("-" * width for width in widths))
    lines = ("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line + " |" for line in lines)


def as_json(figure: Figure) -> dict[str, Any]:
    return attrs.asdict(figure)


def _cells(figure: Figure) -> tuple[str, ...]:
    verdict = "" if figure.goal is None else "met" if figure.goal.is_met else "MISSED"
    return (
        figure.workload,
        f"{_number(figure.value)} {figure.unit}" + (f" ({figure.note})" if figure.note else ""),
        figure.against,
        "" if figure.raw is None else f"{_number(figure.raw)} {figure.unit}",
        "" if figure.ratio is None else f"{figure.ratio:.2f}",
        "" if figure.goal is None else figure.goal.text,
        verdict,
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
