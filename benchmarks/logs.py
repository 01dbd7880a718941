"""
Looks at the log that a file store wrote.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

#: The end of the last line of a batch.
_LAST_LINE = re.compile(rb"^[0-9a-f]{8} [0-9.]+; [^\n]*\n", re.MULTILINE)


class LogReader:
    """
    Reads what a store's log has grown by since the last look.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._offset = 0
        self.skip()

    def skip(self) -> None:
        """
        Take no notice of what is there already.
        """
        self._offset = self._path().stat().st_size

    def new_batches(self) -> list[bytes]:
        """
        Return the bytes of each batch that was written meanwhile.
        """
        with self._path().open("rb") as file:
            file.seek(self._offset)
            grown = file.read()
        self._offset += len(grown)
        ends = [0, *(found.end() for found in _LAST_LINE.finditer(grown))]
        return [grown[start:end] for start, end in pairwise(ends)]

    def _path(self) -> Path:
        return max(self._directory.glob("*.log"))
