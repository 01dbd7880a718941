"""
What is wrong with a store, as facts.

Decided here: what is a fault, and what only worth a note. A fault is what no crash explains, and what an engine refuses
when it opens the store, or when it comes to the instance in question. A note is what is normal, or harms nobody.
"""

from __future__ import annotations

import enum

import attrs


class FaultKind(enum.Enum):
    """
    What kind of thing is wrong.
    """

    DAMAGED = "damaged"
    "Bytes that are not what was written."
    MISSING = "missing"
    "Segments or batches that are not there."
    MISPLACED = "misplaced"
    "A line that is intact, and stands where it does not belong."
    HEADER = "header"
    "A segment does not say, or not rightly, what it is."
    MAP = "map"
    "A compacted segment does not say where its lines were before."
    CHECKSUM = "checksum"
    "A file whose lines are all intact, but which is not, as a whole, what it was. An engine opens it all the same."
    IMPOSSIBLE = "impossible"
    "A record that cannot follow those of its instance before it."
    NO_START = "no_start"
    "An instance has records, but not the one that it starts with."
    UNKNOWN = "unknown"
    "A record that is intact, and that this release does not know."


@attrs.frozen
class Fault:
    """
    One thing that is wrong.
    """

    kind: FaultKind
    file: str
    "Name of the file within the store."
    offset: int
    "Where in it, in bytes."
    problem: str
    "What it is."
    length: int | None = None
    "How many bytes it concerns, if that is known."
    instance: int | None = None
    "Number of the instance that it concerns, if that is known."

    def __str__(self) -> str:
        length = "" if self.length is None else f" ({self.length} bytes)"
        return f"{self.file}: at byte offset {self.offset}{length}: {self.problem}"


@attrs.frozen
class Note:
    """
    One thing that is worth knowing, and no fault.
    """

    file: str
    "Name of the file within the store; empty if it concerns the whole store."
    text: str

    def __str__(self) -> str:
        return f"{self.file}: {self.text}" if self.file else self.text
