"""
Group commit: everything that waits is written at once and synced once, and one batch is in flight at a time.

There is no task for it. The first to append while nothing is in flight waits for the end of trio's current round, so
that all that is ready can queue up; then a batch goes to the worker. When that is done, its waiters are woken and, if
more has queued up meanwhile, the next batch goes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import attrs
import trio

from .._errors import StorageError
from .._record_json import encode_record
from .._records import InstanceRecord
from ._failures import storage_error
from ._tail import LogTail
from ._worker import Worker, run_job, wait_uncancellably

#: A batch is closed at this size, so that one sync never has to wait for much; a larger record is a batch of its own.
MAX_BATCH_BYTES = 8 * 1024 * 1024


@attrs.define(eq=False)
class _Append:
    """One call of ``append``: its records stay together, whole or absent."""

    records: Sequence[InstanceRecord]
    texts: list[bytes]
    task: trio.lowlevel.Task | None = None
    "The task to wake, once it waits."
    is_done: bool = False
    failure: BaseException | None = None
    "Why its fate is unknown, if it is."


@attrs.define(eq=False)
class Committer:
    """
    Takes records from many tasks to the end of one log.
    """

    _tail: LogTail
    _worker: Worker
    _location: str
    "The log, in messages."
    _sync: bool
    "Whether each batch is synced."
    _admit: Callable[[Sequence[InstanceRecord]], None]
    "Is asked before records are queued; raises ValueError if they cannot follow."
    _fold: Callable[[InstanceRecord, int, int], None]
    "Is told each durable record, and where its line begins and ends."
    _queue: deque[_Append] = attrs.field(factory=deque[_Append], init=False)
    _is_busy: bool = attrs.field(default=False, init=False)
    "Whether a batch is in flight or about to be."
    _failure: BaseException | None = attrs.field(default=None, init=False)
    _is_closing: bool = attrs.field(default=False, init=False)
    _closer: trio.lowlevel.Task | None = attrs.field(default=None, init=False)
    "The task that waits until nothing is in flight."

    def check_open(self) -> None:
        """
        Raise if the store may not be used here: it is closed, or this is a forked child.
        """
        if self._is_closing:
            raise StorageError(location=self._location, problem="the store is closed; open it again")
        if not self._tail.lock.is_held:
            raise StorageError(
                location=self._location,
                problem="this is a forked child, and the store belongs to its parent; open another store here",
            )

    @trio.lowlevel.enable_ki_protection
    async def append(self, records: Sequence[InstanceRecord]) -> None:
        """
        Make *records* durable, all or none of them. See the protocol ``OpenStore``.
        """
        if self._failure is not None:
            raise self._failed(self._failure)
        self.check_open()
        append = _Append(tuple(records), [encode_record(record) for record in records])
        self._admit(records)
        self._queue.append(append)
        if not self._is_busy:
            self._is_busy = True
            await trio.lowlevel.cancel_shielded_checkpoint()
            self._begin_batch()
        if not append.is_done:
            append.task = trio.lowlevel.current_task()
            await wait_uncancellably()
        if append.failure is not None:
            raise self._failed(append.failure)

    async def close(self, closing: bytes) -> None:
        """
        Bring to its end what was begun, then write the record that closes the session. Nothing is taken any more.

        Does nothing else if the store failed earlier, or in a forked child. Not cancelled by anything.

        Args:
            closing: The record's JSON.

        Raises:
            StorageError: The closing record could not be written. What was acknowledged before is intact.
        """
        self._is_closing = True
        if not self._tail.lock.is_held:
            return
        if self._is_busy:
            self._closer = trio.lowlevel.current_task()
            await wait_uncancellably()
        if self._failure is None:
            try:
                await run_job(self._worker, partial(self._close_session, closing))
            except OSError as exc:
                raise storage_error(self._location, "closing the store", exc) from exc

    def _close_session(self, closing: bytes) -> None:
        # The record says that all before it is durable.
        if not self._sync:
            self._tail.sync()
        self._tail.append([closing])

    def _begin_batch(self) -> None:
        batch: list[_Append] = []
        size = 0
        while self._queue and (not batch or size + _size(self._queue[0]) <= MAX_BATCH_BYTES):
            size += _size(self._queue[0])
            batch.append(self._queue.popleft())
        texts = [text for append in batch for text in append.texts]
        start = self._tail.end
        self._worker.submit(partial(self._tail.append, texts, sync=self._sync), partial(self._finish, batch, start))

    def _finish(self, batch: list[_Append], start: int, ends: list[int], error: BaseException | None) -> None:
        """Take note of how a batch ended, wake who waited for it, and begin the next."""
        if error is None:
            try:
                offsets = iter(ends)
                for append in batch:
                    for record in append.records:
                        end = next(offsets)
                        self._fold(record, start, end)
                        start = end
            except ValueError as exc:
                error = exc
        if error is not None:
            self._failure = error
            # The fate of the batch is unknown, and nothing may be written behind it.
            batch.extend(self._queue)
            self._queue.clear()
        for append in batch:
            append.is_done = True
            append.failure = error
            if append.task is not None:
                trio.lowlevel.reschedule(append.task)
        if self._queue:
            self._begin_batch()
            return
        self._is_busy = False
        if self._closer is not None:
            trio.lowlevel.reschedule(self._closer)
            self._closer = None

    def _failed(self, failure: BaseException) -> StorageError:
        error = storage_error(self._location, "writing", failure)
        error.__cause__ = failure
        return error


def _size(append: _Append) -> int:
    return sum(map(len, append.texts))
