"""
Writes the log of a store with very many instances, as engines would have, in a fraction of the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

from memable._encoded import Encoded
from memable._frames import LogState, Sealed, SegmentHeader, encode_header, frame_batch, seed_of
from memable._record_json import encode_record
from memable._records import (
    InstanceCompleted,
    InstanceRecord,
    InstanceStarted,
    InstanceSuspended,
    Record,
    StepCompleted,
    StoreClosed,
    StoreOpened,
    WaitStarted,
)
from memable._segments import segment

SEGMENT_BYTES = 16 * 1024 * 1024
STEPS = 5
#: So many instances ran at a time: their records are in one batch.
AT_ONCE = 1_000

_STORE_ID = "0123456789abcdef" * 2
_BEGAN_AT = 1_763_896_205.123456


def write_store(directory: Path, finished: int, live: int) -> None:
    """
    Make a store in *directory* with so many finished instances of the workflow "order", and so many live ones.

    Each had five steps. Those that live are spread among the others, and wait for a signal.
    """
    directory.mkdir()
    every = (finished + live) // live
    writer = _Writer(directory)
    writer.append([StoreOpened(session=1, at=_BEGAN_AT, durability="fsync", pid=1, host="localhost")])
    for first in range(1, finished + live + 1, AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, finished + live + 1))
        lives = [list(_journal(number, waits=number % every == 0)) for number in numbers]
        for place in range(max(map(len, lives))):
            writer.append([journal[place] for journal in lives if place < len(journal)])
    writer.append([StoreClosed(session=1, at=_BEGAN_AT + 1e6)])
    writer.close()


def instance_id_of(number: int) -> str:
    """
    Return the id of an instance: as long as those that memable makes.
    """
    return f"01JDABCDEFGHJKMNPQRS{number:06d}"


def _journal(number: int, *, waits: bool) -> Iterator[InstanceRecord]:
    at = _BEGAN_AT + number * 1e-3
    yield InstanceStarted(
        instance=number,
        seq=1,
        at=at,
        session=1,
        workflow="order",
        instance_id=instance_id_of(number),
        input=Encoded("memable.arguments", b'[{"type":"builtins.int","value":%d}]' % number),
    )
    for step in range(1, STEPS + 1):
        value = Encoded("builtins.int", b"%d" % number)
        yield StepCompleted(
            instance=number, seq=step + 1, at=at + step, path=f"step-{step}:v1", value=value, started_at=at
        )
    if waits:
        yield WaitStarted(instance=number, seq=STEPS + 2, at=at + 6, path="approval:v1", expects="builtins.bool")
        yield InstanceSuspended(instance=number, seq=STEPS + 3, at=at + 6, path="approval:v1")
    else:
        done = Encoded("builtins.str", b'"order %d is done"' % number)
        yield InstanceCompleted(instance=number, seq=STEPS + 2, at=at + 6, value=done)


class _Writer:
    """Appends batches as a store's tail does, without waiting for the disk."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: BinaryIO | None = None
        self._segment = self._size = self._checksum = self._batch = self._last_number = 0
        self._newest_at = 0.0

    def append(self, records: list[InstanceRecord] | list[Record]) -> None:
        if self._file is None or self._size >= SEGMENT_BYTES:
            self._begin_segment()
        lines = frame_batch(seed_of(_STORE_ID), 1, self._batch, [encode_record(record) for record in records])
        self._write(b"".join(lines))
        self._batch += 1
        for record in records:
            self._newest_at = max(self._newest_at, record.at)
            if isinstance(record, InstanceStarted):
                self._last_number = max(self._last_number, record.instance)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _begin_segment(self) -> None:
        self.close()
        before = Sealed(self._size, self._checksum) if self._segment else None
        self._segment += 1
        self._size = self._checksum = 0
        self._file = (self._directory / str(segment(self._segment))).open("wb")
        state = (
            LogState()
            if self._segment == 1
            else LogState(
                session=1,
                closed=False,
                next_batch=self._batch,
                newest_at=self._newest_at,
                last_number=self._last_number,
            )
        )
        self._write(
            encode_header(
                SegmentHeader(
                    store_id=_STORE_ID,
                    segment=self._segment,
                    created_at=_BEGAN_AT,
                    durability="fsync",
                    state=state,
                    before=before,
                )
            )
        )

    def _write(self, chunk: bytes) -> None:
        assert self._file is not None
        self._file.write(chunk)
        self._size += len(chunk)
        self._checksum = crc32(chunk, self._checksum)
