"""
``memable show``: everything about one instance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import attrs
from rich.table import Table
from rich.text import Text

from .._encoded import Encoded
from .._error_info import ErrorInfo
from .._listing import metadata_of
from .._states import MetadataStatus
from .._store._snapshot import StoreSnapshot
from ._advice import advise, short_type
from ._console import Output, joined, status_text, stored
from ._details import Child, Details, Outcome, Wait, details_of
from ._escaping import cut, escape_line, escape_lines
from ._moments import Moments
from ._reading import find, load, telling_damage

_T = TypeVar("_T")

#: Unless all is asked for, a value or message is cut to so many characters, and a table to so many of its newest rows.
VALUE_CHARS = 300
MAX_ROWS = 200

_OUTCOME_WORDS = {"timed_out": "timed out"}
_OUTCOME_STYLES = {"completed": "green", "failed": "red", "timed_out": "red", "expired": "red", "unknown": "magenta"}


@attrs.frozen
class Limits:
    """
    How much is shown.
    """

    chars: int | None = VALUE_CHARS
    "Of each value; None for all."
    rows: int | None = MAX_ROWS
    "Of each table; None for all."


def print_report(
    output: Output, snapshot: StoreSnapshot, name: tuple[str, str], moments: Moments, limits: Limits
) -> None:
    """
    Print all that is known of the instance of that workflow and id.
    """
    header = find(snapshot, *name)
    records = load(snapshot, header)
    with telling_damage(snapshot, header):
        details = details_of(header, records, snapshot.index.find)
    Report(output, moments, limits).print(details, is_closed=snapshot.is_closed)


@attrs.frozen
class Report:
    """
    Prints details.
    """

    output: Output
    moments: Moments
    limits: Limits

    def print(self, details: Details, *, is_closed: bool) -> None:
        """
        Print all that is known of one instance, and what can be done about it.
        """
        self._print_metadata(details)
        self._print_rows("Waits", details.waits, self._wait_row)
        self._print_rows("Begun, must not repeat, no outcome yet", details.unknown, lambda key: (stored(key, "bold"),))
        self._print_rows("Kept signals", details.kept, lambda kept: (stored(kept.key, "bold"), self._value(kept.value)))
        self._print_rows("Memos", details.outcomes, self._memo_row)
        self._print_rows("Children", details.children, self._child_row)
        self._print_rows(
            "Compensations, run from the last to the first",
            details.compensations,
            lambda undoing: (stored(undoing.key, "bold"), _outcome_text(undoing.outcome)),
        )
        if details.output is not None:
            self._print_heading("Output")
            self._print_indented(self._value(details.output))
        if details.error is not None:
            self._print_error(details)
        self._print_advice(details, is_closed=is_closed)

    # Parts ----------------------------------------------------------------------------------------------------

    def _print_metadata(self, details: Details) -> None:
        header = details.header
        found = metadata_of(header, None)
        title = joined([stored(f"{found.workflow_name}/{found.instance_id}", "bold"), status_text(found.status)])
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        if found.message is not None and details.error is None:
            table.add_row("message", stored(found.message))
        table.add_row("created", self.moments.tell_both(found.created_at))
        table.add_row("updated", self.moments.tell_both(found.updated_at))
        if found.completed_at is not None:
            table.add_row("ended", self.moments.tell_both(found.completed_at))
        if found.parent is not None:
            table.add_row("parent", stored(found.parent) + (" (detached from it)" if header.detached else ""))
        if found.recoveries:
            table.add_row("crashes", f"was running at {found.recoveries} in a row, without a new record in between")
        if details.cancel_requested_at is not None:
            table.add_row("cancel", f"asked for at {self.moments.tell_both(details.cancel_requested_at)}")
        if details.cancel_reason is not None:
            table.add_row("reason", stored(details.cancel_reason))
        if header.is_compensating and not found.status.is_terminal:
            table.add_row("compensating", "its compensations run; then it ends as Failed or Cancelled")
        table.add_row("input", self._value(details.input))
        self.output.print(title, table)
        self.output.print(Text(f"times are {'in UTC' if self.moments.is_utc else 'local'}", "dim"))

    def _print_error(self, details: Details) -> None:
        error = details.error
        assert error is not None
        blocked = details.header.status is MetadataStatus.BLOCKED
        at = f" at {escape_line(details.header.key)}" if blocked and details.header.key is not None else ""
        self._print_heading(f"Blocked{at} by" if blocked else "Error")
        self._print_indented(self._error(error))
        # What was never raised has no more to show than what was just said.
        if error.traceback and error.traceback.strip() != str(error):
            self._print_indented(Text(escape_lines(error.traceback.rstrip("\n")), "dim"))

    def _print_advice(self, details: Details, *, is_closed: bool) -> None:
        advice = advise(details, is_closed=is_closed)
        if not advice:
            return
        self._print_heading("Next")
        for piece in advice:
            self._print_indented(Text(escape_line(piece.text)))
            if piece.python is not None:
                self._print_indented(Text(f"    {escape_line(piece.python)}", "cyan"))

    # Rows -----------------------------------------------------------------------------------------------------

    def _wait_row(self, wait: Wait) -> tuple[Text, ...]:
        until = "until it ends" if wait.kind == "child" else "until somebody signals"
        if wait.until is not None:
            until = f"until {self.moments.tell_both(wait.until)}"
        since = "" if wait.since is None else f"since {self.moments.tell(wait.since)}"
        about: list[str | Text] = []
        if wait.expects is not None:
            about.append(stored(f"for {short_type(wait.expects)}"))
        if wait.note:
            about.append(stored(wait.note))
        if wait.error is not None:
            about.append(self._error(wait.error))
        return Text(wait.kind), stored(wait.key, "bold"), Text(since), Text(until), joined(about, ": ")

    def _memo_row(self, memo: Outcome) -> tuple[Text, ...]:
        attempt = f" (attempt {memo.attempt})" if memo.attempt is not None and memo.attempt > 1 else ""
        came_of_it = Text()
        if memo.value is not None:
            came_of_it = self._value(memo.value)
        elif memo.error is not None:
            came_of_it = self._error(memo.error)
        return (
            Text(memo.kind),
            stored(memo.key, "bold"),
            _outcome_text(memo.outcome) + attempt,
            Text(self.moments.tell(memo.at)),
            came_of_it,
        )

    def _child_row(self, child: Child) -> tuple[Text, ...]:
        status = Text("removed", "dim") if child.status is None else status_text(child.status)
        how = "start" if child.is_detached else "call"
        return Text(how), status, stored(f"{child.workflow}/{child.instance_id}", "bold")

    def _print_rows(self, title: str, rows: Sequence[_T], tell: Callable[[_T], tuple[Text, ...]]) -> None:
        if not rows:
            return
        self._print_heading(title if len(rows) == 1 else f"{title} ({len(rows):,})")
        shown = rows if self.limits.rows is None else rows[-self.limits.rows :]
        if len(shown) < len(rows):
            self._print_indented(Text(f"{len(rows) - len(shown):,} older ones left out; --full shows all", "dim"))
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        for row in map(tell, shown):
            if not table.columns:
                for _ in row:
                    table.add_column(overflow="fold")
            table.add_row(*row)
        self._print_indented(table)

    # Pieces ---------------------------------------------------------------------------------------------------

    def _print_heading(self, title: str) -> None:
        self.output.print(Text(), Text(title, "bold underline"))

    def _print_indented(self, piece: Text | Table) -> None:
        self.output.print(piece, indent=2)

    def _value(self, value: Encoded) -> Text:
        shown = stored(cut(value.data.decode("utf-8", "backslashreplace"), self.limits.chars))
        return shown + stored(f"  {short_type(value.type)}", "dim")

    def _error(self, error: ErrorInfo) -> Text:
        return stored(cut(str(error), self.limits.chars), "red")


def _outcome_text(outcome: str) -> Text:
    return Text(_OUTCOME_WORDS.get(outcome, outcome), _OUTCOME_STYLES.get(outcome, ""))
