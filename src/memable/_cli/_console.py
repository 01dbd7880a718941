"""
Where tables go: a terminal of some width and colour, or a pipe that gets every character.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

import attrs
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .._states import MetadataStatus
from ._escaping import escape_line

#: Wider than any line: nothing is cut or wrapped for a reader that is no person.
_UNLIMITED = 1_000_000
#: Colours beside the words, never in place of them.
STATUS_STYLES = {
    MetadataStatus.RUNNING: "cyan",
    MetadataStatus.SUSPENDED: "yellow",
    MetadataStatus.BLOCKED: "bold magenta",
    MetadataStatus.COMPLETED: "green",
    MetadataStatus.FAILED: "bold red",
    MetadataStatus.CANCELLED: "bright_black",
}


class _Pipe(Console):
    """A console whose reader may leave: whoever prints is to know."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


@attrs.frozen
class Output:
    """
    A console, and what is known of its reader.
    """

    console: Console
    is_terminal: bool
    "Whether lines have to fit, since a person reads them."
    _out: TextIO

    @property
    def width(self) -> int:
        """
        How many cells a line has.
        """
        return self.console.width

    @property
    def has_unicode(self) -> bool:
        """
        Whether more can be shown than ASCII.
        """
        return not self.console.options.ascii_only

    def print(self, *pieces: Text | Table, indent: int = 0) -> None:
        """
        Print each piece on lines of its own, *indent* cells from the left.
        """
        for piece in pieces:
            padded = Padding(piece, (0, 0, 0, indent), expand=False) if indent else piece
            if self.is_terminal:
                self.console.print(padded)
                continue
            # Whoever takes lines apart has no use for the blanks that fill up the last column.
            with self.console.capture() as captured:
                self.console.print(padded)
            self._out.writelines(f"{line.rstrip()}\n" for line in captured.get().split("\n")[:-1])


def open_output(out: TextIO) -> Output:
    """
    Return what prints to *out*.
    """
    is_terminal = out.isatty()
    console = _Pipe(
        file=out,
        width=None if is_terminal else _UNLIMITED,
        # Stored text is never markup, and no smiley is made of it.
        markup=False,
        emoji=False,
        highlight=False,
    )
    return Output(console, is_terminal, out)


def stored(text: str, style: str = "") -> Text:
    """
    Return stored text as it may be shown: on one line, every character as itself or escaped.
    """
    return Text(escape_line(text), style)


def status_text(status: MetadataStatus) -> Text:
    """
    Return a status as a coloured word.
    """
    return Text(status.value, STATUS_STYLES[status])


def joined(pieces: Sequence[str | Text], separator: str = "  ") -> Text:
    """
    Return *pieces* on one line.
    """
    return Text(separator).join(Text(piece) if isinstance(piece, str) else piece for piece in pieces)
