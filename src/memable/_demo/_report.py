"""
Shows the demo on a terminal, or as plain lines where there is none.
"""

from __future__ import annotations

import platform
from types import TracebackType
from typing import Self

import attrs
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ._counting import Report
from ._evidence import Evidence, Life

_COLUMNS = "{:>8}{:>12}{:>12}{:>12}   {}"


@attrs.frozen
class Result:
    """
    How a demo ended.
    """

    report: Report
    evidence: Evidence
    problems: list[str]
    elapsed_s: float


class LiveDisplay:
    """
    Shows one line for each worker that ended, and a progress bar below them if there is a terminal.
    """

    def __init__(self, console: Console, steps: int) -> None:
        """
        Bind to a console, for a job of so many steps.
        """
        self._console = console
        self._steps = steps
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} steps"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._bar: TaskID = self._progress.add_task("worker 1", total=steps)

    def __enter__(self) -> Self:
        self._line("worker", "recovered", "ran again", "ran first", "end", style="bold")
        self._progress.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show_progress(self, evidence: Evidence) -> None:
        """
        Move the bar to what is acknowledged.
        """
        life = evidence.lives[-1]
        description = f"worker {life.number}: {life.recovered:,} recovered, {life.ran_again:,} again"
        self._progress.update(self._bar, completed=len(evidence.acknowledged), description=description)

    def show_end(self, life: Life) -> None:
        """
        Print the line of a worker.
        """
        end, style = ("killed (SIGKILL)", "yellow") if life.was_killed else ("finished", "")
        self._line(life.number, f"{life.recovered:,}", f"{life.ran_again:,}", f"{life.ran_first:,}", end, style=style)

    def show_checking(self) -> None:
        """
        Show that the straight computation is waited for.
        """
        self._progress.update(self._bar, description="checking against a straight computation")

    def _line(self, *columns: object, style: str) -> None:
        self._console.print(Text(_COLUMNS.format(*columns), style))


def print_beginning(console: Console, *, files: int, kills: int, seed: int) -> None:
    """
    Print what is going to happen.
    """
    console.print(
        f"A workflow tokenises the {files:,} Python files of this library, one step each.\n"
        f"Its process is killed {_times(kills)} at random moments (--seed {seed}).\n"
    )


def print_result(console: Console, result: Result) -> None:
    """
    Print the report, what it took to get it, and whether all is right.
    """
    console.print()
    console.print(_table_of_report(result.report))
    console.print()
    console.print(_table_of_evidence(result))
    console.print()
    for problem in result.problems:
        console.print(Text(f"WRONG: {problem}", "bold red"))
    if not result.problems:
        console.print(Text("All is right: the report is the same as that of a straight computation.", "bold green"))


def _table_of_report(report: Report) -> Table:
    table = _table(f"Python {platform.python_version()}, as the workflow counted it")
    table.add_row("files", f"{report.files:,}")
    errors = ", ".join(f"{count} with {name}" for name, count in report.unreadable.items())
    table.add_row("of them unreadable", errors or "0")
    table.add_row("lines", f"{report.lines:,}")
    table.add_row("tokens", f"{report.tokens:,}")
    table.add_row("different names", f"{report.names:,}")
    table.add_row("most used names", ", ".join(f"{name} ({count:,})" for name, count in report.most_used))
    return table


def _table_of_evidence(result: Result) -> Table:
    evidence = result.evidence
    executions = evidence.executions.total()
    broken = evidence.broken.total()
    table = _table("What it took")
    table.columns[1].justify = "right"
    for name, figure in (
        ("steps of the workflow", len(evidence.executions)),
        ("steps that ran, in all", executions),
        ("  again, as a kill came before they were acknowledged", executions - len(evidence.executions) - broken),
        ("  again, though they were acknowledged (must be 0)", broken),
        ("memos recovered from the store", evidence.recovered),
        ("kills survived", evidence.kills),
    ):
        table.add_row(name, f"{figure:,}")
    table.add_row("seconds", f"{result.elapsed_s:.1f}")
    return table


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column()
    return table


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"
