"""
Reads a log's lines, in order and in one pass, and tells a torn tail from damage.

Decided here: what may be believed. A batch is yielded when all of it has been seen to be intact and to be the next one
due. At the first line that is not, believing ends; what follows is only searched for proof that the bad bytes were
once good. In a session that syncs each batch, a batch is written only after the one before it is durable: an intact
line of a later batch is proof. In a session that leaves syncing to the system (``os``), a power cut may leave holes
anywhere, so only the line that closes the session is proof, which is written after a sync of all before it. So is any
line of a later session, in either mode. With proof it is damage, and nothing may be changed. Without, it is what a
crash leaves: a torn tail, from the beginning of the first batch that is not whole.

Lines of an earlier session, or of the batch that was due, prove nothing: they can be left-overs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, NoReturn

import attrs

from ._errors import StoreCorruptedError, StoreVersionError
from ._frames import FORMAT_VERSION, MAX_PREFIX_BYTES, Line, find_line_start, parse_line
from ._record_json import UnknownRecordError, decode_record
from ._records import Record, StoreClosed, StoreOpened

#: What batches may be assumed to have been: synced one by one, or whenever the system liked.
DURABILITIES = ("fsync", "os")
_CLOSING = b'{"kind":"store_closed"'

WAY_OUT = "no crash explains this; nothing was changed: keep a copy of the store, and restore it from a backup"


class Entry(NamedTuple):
    """
    A record, and where in the file it stands. A named tuple: recovery makes one for each record there is.
    """

    record: Record
    start: int
    end: int
    "Just after its line break."


@attrs.define
class LogScan:
    """
    The reader of one log: takes its bytes as they come, gives its batches.
    """

    _location: str
    "What to call the file in an error."
    _seed: int
    "What ``seed_of`` the store's id is."
    good_end: int
    "The offset behind the last whole batch, or behind the header."
    session: int = 0
    "The newest session that the log knows of."
    durability: str = DURABILITIES[0]
    "How that session's batches were made durable."
    closed: bool = True
    "Whether that session was closed in order."
    crashed: set[int] = attrs.field(factory=set[int])
    "The sessions before that one that were not."
    next_batch: int = 0
    "Number of the batch that is due."
    newest_at: float = 0.0
    "The latest time in any record."
    last_batch_start: int = 0
    "Where the last whole batch begins; 0 if there is none."
    _offset: int = attrs.field(init=False)
    "Where the bytes that are not yet looked at begin."
    _pending: list[bytes] = attrs.field(factory=list[bytes], init=False)
    "Those bytes: a line whose end has not come yet."
    _hopeless: bool = attrs.field(default=False, init=False)
    "Whether that line is known to be bad already."
    _partial: list[Entry] = attrs.field(factory=list[Entry], init=False)
    "The beginning of the batch that is due."
    _bad_from: int | None = attrs.field(default=None, init=False)
    "Offset of the first byte that cannot be believed."
    _torn_batches: set[int] = attrs.field(factory=set[int], init=False)

    def __attrs_post_init__(self) -> None:
        self._offset = self.good_end

    @property
    def torn_batch_count(self) -> int:
        """
        How many batches the bytes behind ``good_end`` show anything of. At least 1 if there are any bytes.
        """
        is_torn = self._bad_from is not None or bool(self._partial)
        return len(self._torn_batches | {self.next_batch}) if is_torn else 0

    def feed(self, chunk: bytes) -> Iterator[list[Entry]]:
        """
        Take the log's next bytes; yield the batches that are whole with them. To be exhausted before the next call.

        Raises:
            StoreCorruptedError: The log is damaged.
            StoreVersionError: A record is of a kind that this release does not know.
        """
        if b"\n" not in chunk:
            self._keep(chunk)
            return
        *lines, rest = chunk.split(b"\n")
        if self._pending:
            lines[0] = b"".join([*self._pending, lines[0]])
            self._pending.clear()
        self._hopeless = False
        for line in lines:
            start = self._offset
            self._offset = start + len(line) + 1
            if (batch := self._take(line, start)) is not None:
                yield batch
        if rest:
            self._keep(rest)

    def finish(self) -> None:
        """
        Take note that no more bytes follow.
        """
        if self._pending:
            self._distrust(self._offset)
            self._pending.clear()

    def _keep(self, chunk: bytes) -> None:
        """Hold the beginning of a line until its end comes; but of what cannot be a line, only its last bytes."""
        held = sum(map(len, self._pending)) if len(self._pending) < MAX_PREFIX_BYTES else MAX_PREFIX_BYTES
        self._pending.append(chunk)
        if held < MAX_PREFIX_BYTES <= held + len(chunk):
            self._hopeless = find_line_start(b"".join(self._pending)[:MAX_PREFIX_BYTES], 0) != 0
        self._hopeless = self._hopeless or b"\0" in chunk
        if not self._hopeless:
            return
        self._distrust(self._offset)
        joined = b"".join(self._pending)
        start = find_line_start(joined, 1)
        cut = start if start > 0 else max(0, len(joined) - MAX_PREFIX_BYTES)
        self._pending[:] = [joined[cut:]]
        self._offset += cut
        self._hopeless = start <= 0

    def _take(self, line: bytes, start: int) -> list[Entry] | None:
        parsed = parse_line(line, self._seed)
        if parsed is None:
            self._distrust(start)
            self._search(line)
            return None
        if self._bad_from is None:
            is_new_session = parsed.session > self.session and not self._partial
            if (
                (parsed.session == self.session or is_new_session)
                and parsed.batch == self.next_batch
                and parsed.position == len(self._partial)
            ):
                return self._accept(parsed, start)
            self._distrust(start)
        self._judge(parsed)
        return None

    def _accept(self, line: Line, start: int) -> list[Entry] | None:
        try:
            record = decode_record(line.text)
        except UnknownRecordError as exc:
            raise StoreVersionError(
                location=self._location,
                problem=(
                    f"the record at byte offset {start} is intact, but unknown to this release of memable: {exc}; "
                    f"install the release that wrote it, or a newer one"
                ),
                found=FORMAT_VERSION,
                supported=FORMAT_VERSION,
            ) from exc
        self._check_session(line, record, start)
        entry = Entry(record, start, self._offset)
        self.newest_at = max(self.newest_at, record.at)
        if not line.is_last:
            self._partial.append(entry)
            return None
        batch = [*self._partial, entry]
        self._partial.clear()
        self.next_batch += 1
        self.last_batch_start = batch[0].start
        self.good_end = self._offset
        return batch

    def _check_session(self, line: Line, record: Record, start: int) -> None:
        """Follow the sessions. They are written alone in their batches, so no partial batch changes anything here."""
        if isinstance(record, StoreOpened):
            is_next = line.session == record.session == self.session + 1
            if not (is_next and line.is_last and line.position == 0 and record.durability in DURABILITIES):
                self._refuse(start, f"session {record.session} begins where session {self.session + 1} could")
            if not self.closed:
                self.crashed.add(self.session)
            self.session = record.session
            self.durability = record.durability
            self.closed = False
        elif line.session != self.session:
            self._refuse(start, f"a {record.kind} record of session {line.session}, which did not begin")
        elif self.closed:
            self._refuse(start, f"a {record.kind} record follows the end of its session")
        elif isinstance(record, StoreClosed):
            if not (line.is_last and line.position == 0):
                self._refuse(start, "the end of a session is not alone in its batch")
            self.closed = True

    def _search(self, bad_line: bytes) -> None:
        """Look for intact lines that a bad one swallowed: the line break before them may be what is damaged."""
        at = find_line_start(bad_line, 1)
        while at > 0:
            parsed = parse_line(bad_line[at:], self._seed)
            if parsed is not None:
                self._judge(parsed)
                return
            at = find_line_start(bad_line, at + 1)

    def _judge(self, line: Line) -> None:
        """Decide what an intact line behind bad bytes says of them."""
        is_later = line.session == self.session and line.batch > self.next_batch
        if line.session > self.session or (is_later and (self.durability != "os" or line.text.startswith(_CLOSING))):
            assert self._bad_from is not None
            self._refuse(
                self._bad_from,
                f"batch {self.next_batch} is damaged or missing, though batch {line.batch} was written after it",
            )
        if is_later:
            self._torn_batches.add(line.batch)

    def _distrust(self, start: int) -> None:
        if self._bad_from is None:
            self._bad_from = start

    def _refuse(self, offset: int, what: str) -> NoReturn:
        raise StoreCorruptedError(location=self._location, offset=offset, problem=f"{what}; {WAY_OUT}")
