"""
Counts lines, tokens and names of Python files: plain functions, which know nothing of memable.
"""

from __future__ import annotations

import io
import keyword
import os
import tokenize
from collections import Counter
from pathlib import Path

import attrs
import cattrs.preconf.json

#: So many of the most used names are in the report.
MOST_USED = 10

#: What a file may hold that is no Python, or no text: some files are there to test just that. A file may also vanish.
_UNREADABLE = (OSError, SyntaxError, ValueError, tokenize.TokenError)

#: Not part of the standard library, though below its directory.
_FOREIGN_DIRECTORIES = frozenset(("site-packages", "dist-packages"))


@attrs.frozen
class FileCounts:
    """
    What was found in one file.
    """

    lines: int = 0
    tokens: int = 0
    names: dict[str, int] = attrs.field(factory=dict[str, int])
    "How often each name is used in it, keywords aside."
    unreadable: str | None = None
    "The name of the error, where the file could not be tokenised; then nothing else is counted."


@attrs.frozen
class Report:
    """
    What was found in all files together.
    """

    files: int
    unreadable: dict[str, int]
    "How many of them could not be tokenised, by the name of the error."
    lines: int
    tokens: int
    names: int
    "How many different names there are."
    most_used: tuple[tuple[str, int], ...]
    "The names that are used most, and how often; alphabetically where that is equal."


def list_files(root: Path) -> list[str]:
    """
    Return all Python files below *root* as paths relative to it, sorted, with ``/`` between their parts.
    """
    found: list[str] = []
    for directory, subdirectories, files in os.walk(root):
        subdirectories[:] = [name for name in subdirectories if name not in _FOREIGN_DIRECTORIES]
        relative = Path(directory).relative_to(root)
        found += [(relative / name).as_posix() for name in files if name.endswith(".py")]
    return sorted(found)


def count_file(path: Path) -> FileCounts:
    """
    Read and tokenise one file.
    """
    names: Counter[str] = Counter()
    tokens = 0
    try:
        source = path.read_bytes()
        for token in tokenize.tokenize(io.BytesIO(source).readline):
            tokens += 1
            if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
                names[token.string] += 1
    except _UNREADABLE as error:
        return FileCounts(unreadable=type(error).__name__)
    return FileCounts(lines=len(source.splitlines()), tokens=tokens, names=dict(names))


@attrs.define
class Tally:
    """
    Folds the counts of files, in any order, into a report.
    """

    _files: int = 0
    _lines: int = 0
    _tokens: int = 0
    _names: Counter[str] = attrs.field(factory=Counter[str])
    _unreadable: Counter[str] = attrs.field(factory=Counter[str])

    def add(self, counts: FileCounts) -> None:
        """
        Add one file.
        """
        self._files += 1
        self._lines += counts.lines
        self._tokens += counts.tokens
        self._names.update(counts.names)
        if counts.unreadable is not None:
            self._unreadable[counts.unreadable] += 1

    def report(self) -> Report:
        """
        Return what was found in all files so far.
        """
        ranked = sorted(self._names.items(), key=lambda item: (-item[1], item[0]))
        return Report(
            files=self._files,
            unreadable=dict(sorted(self._unreadable.items())),
            lines=self._lines,
            tokens=self._tokens,
            names=len(self._names),
            most_used=tuple(ranked[:MOST_USED]),
        )


def count_straight(root: Path) -> Report:
    """
    Count all files below *root* in one go: what the pipeline's report must be equal to.
    """
    tally = Tally()
    for path in list_files(root):
        tally.add(count_file(root / path))
    return tally.report()


_converter = cattrs.preconf.json.make_converter()


def report_to_json(report: Report) -> str:
    """
    Return *report* as a text, for another process.
    """
    return _converter.dumps(report)


def report_from_json(text: str | bytes) -> Report:
    """
    Return the report that ``report_to_json`` made a text of.
    """
    return _converter.loads(text, Report)
