"""
Reads what the files of a log say of themselves, some of which may be damaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .._errors import StoreCorruptedError
from .._faults import Fault, FaultKind
from .._frames import WAY_OUT, SegmentHeader, decode_header, seed_of
from .._salvage import Intact, find_lines, flipped_back
from .._segments import SegmentName
from ._files import CHUNK_BYTES, read_header
from ._held import LogFilesHeld


class SegmentHeaders:
    """
    The headers of one log.
    """

    def __init__(self, held: LogFilesHeld, store_ids: Sequence[str] = ()) -> None:
        """
        Read them.

        Args:
            held: The files.
            store_ids: What the store's id may be, if no header tells.

        Raises:
            StoreVersionError: A newer release wrote one.
            OSError: One cannot be read.
        """
        self._held = held
        self.headers: dict[SegmentName, SegmentHeader | None] = {}
        "None if it is not what it should be, and does not tell what it was."
        self.starts: dict[SegmentName, int] = {}
        "Where the records begin, if that is known."
        self.faults: list[Fault] = []
        for name in held.names:
            self._read_header(name)
        self.store_id = self._find_store_id(store_ids)
        "Empty if it is lost."
        self._check_ids()

    def _read_header(self, name: SegmentName) -> None:
        location = str(self._held.path(name))
        try:
            header, start = read_header(self._held.file(name), location)
        except StoreCorruptedError as exc:
            self.faults.append(fault_of(FaultKind.HEADER, name, exc))
            found = self._corrected_header(name, location)
            if found is None:
                self.headers[name] = None
                return
            header, start = found
        says = header.compacted
        problem = None
        if header.segment != name.first or (says is None) == name.is_compacted:
            problem = f"the file says that it is number {header.segment}"
        elif says is not None and (says.through, says.generation) != (name.last, name.generation):
            problem = f"the file says that it stands for the segments up to {says.through}"
        if problem is not None:
            self.faults.append(Fault(FaultKind.HEADER, str(name), 0, problem))
        # Where it is not what its name says, it may be somebody else's altogether, but its lines tell.
        self.headers[name], self.starts[name] = header if problem is None else None, start

    def _corrected_header(self, name: SegmentName, location: str) -> tuple[SegmentHeader, int] | None:
        """Return what a header said that one flipped bit has damaged. Then nothing behind it is in doubt."""
        line, line_break, _ = self._held.file(name).read_at(0, CHUNK_BYTES).partition(b"\n")
        text = flipped_back(line, 0)
        try:
            return (decode_header(text, location), len(line) + 1) if text is not None and line_break else None
        except StoreCorruptedError:
            return None

    def _find_store_id(self, others: Sequence[str]) -> str:
        """Return the id that most of the files have; if none tells, one with which lines of theirs are intact."""
        counts: dict[str, int] = {}
        for header in self.headers.values():
            if header is not None:
                counts[header.store_id] = counts.get(header.store_id, 0) + 1
        if counts:
            return max(counts, key=counts.__getitem__)
        for store_id in (*others, *self._guessed_ids()):
            seed = seed_of(store_id)
            for name in self.headers:
                chunks = self._held.chunks(name, 0, CHUNK_BYTES)
                if any(isinstance(found, Intact) for found in find_lines(chunks, seed, 0)):
                    return store_id
        return next(iter(others), "")

    def _guessed_ids(self) -> Iterator[str]:
        """Yield what the damaged headers may have said: as they are, or with one character of the id changed."""
        for name in self.headers:
            text = self._held.file(name).read_at(0, CHUNK_BYTES).partition(b"\n")[0]
            at = text.find(b'"store":"')
            if at < 0:
                continue
            found = text[at + 9 : at + 41].decode("latin-1")
            yield found
            for place in range(len(found)):
                for digit in "0123456789abcdef":
                    yield found[:place] + digit + found[place + 1 :]

    def _check_ids(self) -> None:
        for name, header in self.headers.items():
            if header is not None and header.store_id != self.store_id:
                problem = "the file belongs to another store"
                self.faults.append(Fault(FaultKind.HEADER, str(name), 0, problem))
                self.headers[name] = None


def fault_of(kind: FaultKind, name: SegmentName, exc: StoreCorruptedError) -> Fault:
    """
    Return what an opener refuses a file for.
    """
    problem = exc.problem.removesuffix(f"; {WAY_OUT}")
    return Fault(kind, str(name), exc.offset, problem)
