"""
Reads a segment's lines, in order and in one pass, and tells a torn tail from damage.

Decided here: what may be believed. A batch is yielded when all of it has been seen to be intact and to be the next one
due. At the first line that is not, believing ends. In a segment that has a successor that is damage: it was synced
before the next one was made. In the last segment, what follows is only searched for proof that the bad bytes were once
good. In a session that syncs each batch, a batch is written only after the one before it is durable: an intact line of
a later batch is proof. In a session that leaves syncing to the system (``os``), a power cut may leave holes anywhere,
so only the line that closes the session is proof, which is written after a sync of all before it. So is any line of a
later session, in either mode. With proof it is damage, and nothing may be changed. Without, it is what a crash leaves:
a torn tail, from the beginning of the first batch that is not whole.

Lines of an earlier session, or of the batch that was due, prove nothing: they can be left-overs.

A compacted segment was whole before it had its name: whatever is wrong with it is damage.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NoReturn, TypeAlias
from zlib import crc32

import attrs

from ._errors import StoreCorruptedError, StoreVersionError
from ._frames import FORMAT_VERSION, MAX_PREFIX_BYTES, WAY_OUT, Line, LogState, find_line_start, parse_line
from ._record_json import UnknownRecordError, decode_record
from ._records import INSTANCE_RECORDS, Record, StoreClosed, StoreOpened

#: What batches may be assumed to have been: synced one by one, or whenever the system liked.
DURABILITIES = ("fsync", "os")
_CLOSING = b'{"kind":"store_closed"'
#: A line with a record of an instance, as this release writes it: what comes first of each is enough for most.
_RECORD = re.compile(
    rb"([0-9a-f]{8}) ([0-9]{1,12}\.[0-9]{1,18})\.([0-9]{1,12})([+;]) "
    rb'\{"kind":"([a-z_]+)","instance":([0-9]+),"seq":([0-9]+),"at":([-+.0-9e]+)[,}]'
)
#: The kinds of such records.
KINDS = frozenset(cls.kind.encode() for cls in INSTANCE_RECORDS)

Entry: TypeAlias = tuple[bytes, bytes, int, int, float, int, int]
"""
An intact line: all of it, its kind, the number of its instance, its sequence number, its time, and where in the file it
begins and ends. Number and sequence number are 0 for the records of the store. A plain tuple, since recovery makes one
for each line there is; whoever needs the record itself decodes it with ``record_of``.
"""


def record_of(entry: Entry, location: str) -> Record:
    """
    Return the record in a line.

    Raises:
        StoreVersionError: It is intact, but of a shape that this release does not know.
    """
    line, start = entry[0], entry[5]
    return _decode(line[line.index(b"{") :], location, start)


def entry_of(line: bytes, text: bytes, location: str, start: int, end: int) -> Entry:
    """
    Return the entry of a line that is intact.

    Args:
        line: The line, without its line break.
        text: The record's JSON in it.
        location: What to call the file in an error.
        start: Where in the file it begins.
        end: Where it ends.

    Raises:
        StoreVersionError: Its record is of a kind or shape that this release does not know.
    """
    found = _RECORD.match(line)
    if found is not None and found[5] in KINDS:
        return (line, found[5], int(found[6]), int(found[7]), float(found[8]), start, end)
    return _entry(_decode(text, location, start), line, start, end)


def _entry(record: Record, line: bytes, start: int, end: int) -> Entry:
    number, seq = (0, 0) if isinstance(record, StoreOpened | StoreClosed) else (record.instance, record.seq)
    return (line, record.kind.encode(), number, seq, record.at, start, end)


def _decode(text: bytes, location: str, start: int) -> Record:
    try:
        return decode_record(text)
    except UnknownRecordError as exc:
        raise StoreVersionError(
            location=location,
            problem=(
                f"the record at byte offset {start} is intact, but unknown to this release of memable: {exc}; "
                f"install the release that wrote it, or a newer one"
            ),
            found=FORMAT_VERSION,
            supported=FORMAT_VERSION,
        ) from exc


@attrs.define
class LogScan:
    """
    The reader of one segment: takes its bytes as they come, gives its batches.
    """

    _location: str
    "What to call the file in an error."
    _seed: int
    "What ``seed_of`` the store's id is."
    good_end: int
    "The offset behind the last whole batch, or behind the header."
    is_sealed: bool = False
    "Whether it has a successor, so that nothing in it can be torn."
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
    "Where in this segment the last whole batch begins; 0 if there is none."
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

    @classmethod
    def at(cls, location: str, seed: int, offset: int, state: LogState, *, is_sealed: bool = False) -> LogScan:
        """
        Return a reader that begins within a log.

        Args:
            location: What to call the file in an error.
            seed: What ``seed_of`` the store's id is.
            offset: Where in the file the bytes that it is given begin: at the beginning of a batch.
            state: What the log has come to there.
            is_sealed: Whether the segment has a successor.
        """
        return cls(
            location,
            seed,
            offset,
            is_sealed,
            session=state.session,
            durability=state.durability,
            closed=state.closed,
            crashed=set(state.crashed),
            next_batch=state.next_batch,
            newest_at=state.newest_at,
        )

    def state(self, last_number: int) -> LogState:
        """
        Return what the log has come to at ``good_end``.
        """
        return LogState(
            session=self.session,
            closed=self.closed,
            durability=self.durability,
            crashed=tuple(sorted(self.crashed)),
            next_batch=self.next_batch,
            newest_at=self.newest_at,
            last_number=last_number,
        )

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
        match, seed, partial, due = _RECORD.match, self._seed, self._partial, self._due()
        for line in lines:
            start = self._offset
            end = self._offset = start + len(line) + 1
            found = match(line)
            if found is not None and self._bad_from is None and not self.closed:
                # The usual line, quickly: recovery may see millions of them.
                stored, place, index, mark, kind, number, seq, at = found.groups()
                if (
                    place == due
                    and int(index) == len(partial)
                    and kind in KINDS
                    and int(stored, 16) == crc32(line[9:], seed)
                ):
                    time = float(at)
                    self.newest_at = max(self.newest_at, time)
                    partial.append((line, kind, int(number), int(seq), time, start, end))
                    if mark == b";":
                        yield self._end_batch()
                        partial, due = self._partial, self._due()
                    continue
            if (batch := self._take(line, start)) is not None:
                yield batch
            partial, due = self._partial, self._due()
        if rest:
            self._keep(rest)

    def finish(self) -> None:
        """
        Take note that no more bytes follow.

        Raises:
            StoreCorruptedError: The segment has a successor, and ends within a batch.
        """
        if self._pending:
            self._distrust(self._offset)
            self._pending.clear()
        if self.is_sealed and self._partial:
            self._refuse(self.good_end, f"the segment ends within batch {self.next_batch}, though another one follows")

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
                return self._accept(parsed, line, start)
            self._distrust(start)
        self._judge(parsed)
        return None

    def _accept(self, parsed: Line, line: bytes, start: int) -> list[Entry] | None:
        record = _decode(parsed.text, self._location, start)
        self._check_session(parsed, record, start)
        self.newest_at = max(self.newest_at, record.at)
        self._partial.append(_entry(record, line, start, self._offset))
        return self._end_batch() if parsed.is_last else None

    def _due(self) -> bytes:
        """Return the session and the batch that are due, as a line says them."""
        return b"%d.%d" % (self.session, self.next_batch)

    def _end_batch(self) -> list[Entry]:
        batch, self._partial = self._partial, []
        self.next_batch += 1
        self.last_batch_start = batch[0][5]
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
        if self.is_sealed:
            self._refuse(
                start, f"batch {self.next_batch} is damaged or missing in a segment that was complete and durable"
            )
        if self._bad_from is None:
            self._bad_from = start

    def _refuse(self, offset: int, what: str) -> NoReturn:
        raise StoreCorruptedError(location=self._location, offset=offset, problem=f"{what}; {WAY_OUT}")
