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
    Reads what a store's log has grown by since the last look, in whichever of its segments.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._segment = ""
        self._offset = 0
        self.skip()

    def skip(self) -> None:
        """
        Take no notice of what is there already.
        """
        self._grown()

    def new_batches(self) -> list[bytes]:
        """
        Return the bytes of each batch that was written meanwhile.
        """
        grown = self._grown()
        ends = [0, *(found.end() for found in _LAST_LINE.finditer(grown))]
        return [grown[start:end] for start, end in pairwise(ends)]

    def _grown(self) -> bytes:
        parts: list[bytes] = []
        for path in sorted(self._directory.glob("*.log")):
            if path.name < self._segment:
                continue
            if path.name > self._segment:
                self._segment, self._offset = path.name, 0
            with path.open("rb") as file:
                file.seek(self._offset)
                # Blocks that are there in advance are zeros.
                part = file.read().rstrip(b"\0")
            self._offset += len(part)
            parts.append(part)
        return b"".join(parts)
