"""
Group commit: everything that waits is written at once and synced once, and one batch is in flight at a time.

There is no task for it. The first to append while nothing is in flight waits for the end of trio's current round, so
that all that is ready can queue up; then a batch goes to the worker. When that is done, its waiters are woken and, if
more has queued up meanwhile, the next batch goes.

A lone append is waited for on the spot if the disk is quick and no other task has anything to do, or even done in the
event loop: see ``Patience``.
"""

from __future__ import annotations

import logging
import math
import time
import types
from bisect import bisect_right
from collections.abc import Callable, Generator, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import attrs
import outcome
import trio

from .._errors import StorageError
from .._frames import LogState
from .._record_json import encode_parts, encode_record
from .._records import InstanceRecord, StoreClosed, StoreOpened
from .._segments import segment
from .._sleeping import message_for
from .._texts import Text, size_of
from ._failures import is_no_room, storage_error
from ._index import HeaderIndex
from ._patience import WAIT_S, Manner, Patience
from ._space import Space
from ._tail import Appended, LogTail
from ._worker import InlineWorker, Worker, refuse_to_abort, run_job, wait_uncancellably

logger = logging.getLogger("memable")

#: A batch is closed at this size, so that one sync never has to wait for much; a larger record is a batch of its own.
MAX_BATCH_BYTES = 8 * 1024 * 1024
#: For more than this the event loop never waits itself: so much a quick disk takes in about a millisecond.
MAX_WAITED_BYTES = 256 * 1024


#: For a task that waits for its append. Nobody may turn away from that: its records are on their way.
#: So what it is woken with is always an ``outcome.Value``, and one of these may wake many.
_COMMITTED = message_for(refuse_to_abort)


@attrs.define(eq=False)
class Committer:
    """
    Takes records from many tasks to the end of one log.
    """

    _tail: LogTail
    _worker: Worker
    _index: HeaderIndex
    "Is asked before records are queued, and told each that is durable."
    _space: Space
    "Is told how long the log's files are."
    _sessions: LogState
    "What the log has come to, as far as it only changes with sessions."
    on_progress: Callable[[], None]
    "Called after each batch, and when nothing more will be taken."
    _opened: StoreOpened | None = attrs.field(default=None, init=False)
    "The record of the session's beginning, as long as it is not written."
    # Each in a list of its own: an object for each append would be as many more to look at for the garbage collector.
    _tasks: list[trio.lowlevel.Task] = attrs.field(factory=list[trio.lowlevel.Task], init=False)
    "Those that append what is queued, in their order. What one of them appends stays together, whole or absent."
    _counts: list[int] = attrs.field(factory=list[int], init=False)
    "How many records each of them appends."
    _sizes: list[int] = attrs.field(factory=list[int], init=False)
    "How many bytes of text those are."
    _records: list[InstanceRecord] = attrs.field(factory=list[InstanceRecord], init=False)
    "Those of what is queued, in their order."
    _texts: list[Text] = attrs.field(factory=list[Text], init=False)
    "The same as JSON."
    _is_busy: bool = attrs.field(default=False, init=False)
    "Whether a batch is in flight or about to be."
    _beginner: trio.lowlevel.Task | None = attrs.field(default=None, init=False)
    "The task that begins a batch with its own append in front, as long as it does not sleep."
    _beginner_failure: BaseException | None = attrs.field(default=None, init=False)
    "Why that append failed, if it did before the task could sleep."
    _failure: BaseException | None = attrs.field(default=None, init=False)
    _patience: Patience = attrs.field(init=False)
    _is_closing: bool = attrs.field(default=False, init=False)
    _closer: trio.lowlevel.Task | None = attrs.field(default=None, init=False)
    "The task that waits until nothing is in flight."
    is_disk_busy: bool = attrs.field(default=False, init=False)
    "Whether others write much, so that an append may take long."
    position: tuple[int, int] = attrs.field(init=False)
    "How far what was taken in goes: the last segment, and how long it is."
    checksum: int | None = attrs.field(init=False)
    "That of the last segment up to there, if it is known."
    appended_bytes: int = attrs.field(default=0, init=False)
    "How much was appended so far."
    _next_batch: int = attrs.field(init=False)
    _newest_at: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        # What is not synced is only copied to the system's memory.
        self._patience = Patience() if self._syncs else Patience(0)
        self._next_batch = self._sessions.next_batch
        self._newest_at = self._sessions.newest_at
        self.position, self.checksum = (self._tail.segment, self._tail.end), self._tail.checksum

    @property
    def state(self) -> LogState:
        """
        What the log has come to with what is durable; or written, if batches are not synced.
        """
        return attrs.evolve(
            self._sessions,
            next_batch=self._next_batch,
            newest_at=self._newest_at,
            last_number=self._index.last_number,
        )

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

    # A generator, which sleeps without one below it: thousands of tasks may wait for one sync.
    @trio.lowlevel.enable_ki_protection
    @types.coroutine
    def append(self, records: Sequence[InstanceRecord]) -> Generator[Any, Any, None]:
        """
        Make *records* durable, all or none of them. See the protocol ``OpenStore``.
        """
        if self._failure is not None:
            raise self._failed(self._failure)
        self.check_open()
        task = trio.lowlevel.current_task()
        self._enqueue(records, task)
        if self._is_busy:
            failure: BaseException | None = (yield _COMMITTED).value
        else:
            self._is_busy = True
            self._beginner = task
            began = time.perf_counter()
            yield from trio.lowlevel.cancel_shielded_checkpoint()  # noqa: ASYNC105 - how a generator awaits
            self._begin_batch(time.perf_counter() - began)
            if self._beginner is not task:
                # Done already.
                failure, self._beginner_failure = self._beginner_failure, None
            else:
                self._beginner = None
                failure = (yield _COMMITTED).value
        if failure is not None:
            if not isinstance(failure, Exception):
                # Raised by a handler of a signal, while the event loop wrote: somebody wants to end the program.
                raise failure
            raise self._failed(failure)

    def _enqueue(self, records: Sequence[InstanceRecord], task: trio.lowlevel.Task) -> None:
        if len(records) == 1:
            # The usual case.
            text = encode_parts(records[0])
            self._index.admit(records)
            self._records.append(records[0])
            self._texts.append(text)
            self._counts.append(1)
            self._sizes.append(size_of(text))
        else:
            texts = list(map(encode_parts, records))
            self._index.admit(records)
            self._records += records
            self._texts += texts
            self._counts.append(len(texts))
            self._sizes.append(sum(map(size_of, texts)))
        self._tasks.append(task)

    async def begin(self, opened: StoreOpened) -> None:
        """
        Record that a session begins. It proves to a later recovery that everything before it was durable.

        On a full disk that is done with the first append: what is there can be read all the same.

        Raises:
            StorageError: It could not be written.
        """
        self._opened = opened
        try:
            appended = await run_job(self._worker, self._begin_session)
        except OSError as exc:
            if not (is_no_room(exc) and self._tail.is_sound):
                self._failure = exc
                raise self._failed(exc) from exc
            logger.warning("%s: there is no room to write; what is there can be read only (%s)", self._location, exc)
        else:
            self._note_begun(appended)

    async def close(self, now: float) -> bool:
        """
        Bring to its end what was begun, then record that the session was closed. Nothing is taken any more.

        Does nothing else if the store failed earlier, or in a forked child. Not cancelled by anything.

        Returns:
            Whether the log itself says that it ends in order.

        Raises:
            StorageError: It could not be recorded. What was acknowledged before is intact.
        """
        self._is_closing = True
        if not self._tail.lock.is_held:
            return False
        if self._is_busy:
            self._closer = trio.lowlevel.current_task()
            await wait_uncancellably()
        if self._failure is not None or self._opened is not None or not self._tail.is_sound:
            return False
        try:
            appended = await run_job(self._worker, partial(self._close_session, now))
        except OSError as exc:
            raise storage_error(self._location, "closing the store", exc) from exc
        if appended is None:
            return False
        self._take_in(appended)
        self._sessions = attrs.evolve(self._sessions, closed=True)
        self._newest_at = max(self._newest_at, now)
        return True

    async def sync(self) -> None:
        """
        Make durable all that was appended so far.

        Raises:
            StorageError: It failed; nothing is taken any more.
        """
        if self._failure is not None:
            raise self._failed(self._failure)
        if not self._syncs:
            try:
                await run_job(self._worker, self._tail.sync)
            except OSError as exc:
                self._failure = exc
                raise self._failed(exc) from exc

    @property
    def _location(self) -> str:
        return str(self._tail.files.tail_path)

    @property
    def _syncs(self) -> bool:
        return self._tail.durability == "fsync"

    # In the worker, where nothing is changed that others see -------------------------------------------------

    def _begin_session(self) -> Appended | None:
        """Write the record that is due before any other of this session, if it is."""
        if self._opened is None:
            return None
        return self._tail.append([encode_record(self._opened)], self._tell_state)

    def _close_session(self, now: float) -> Appended | None:
        """Record the end of the session, in the log if there is room."""
        # The record says that all before it is durable.
        if not self._syncs:
            self._tail.sync()
        closed = StoreClosed(session=self._tail.session, at=now)
        try:
            return self._tail.append([encode_record(closed)], self._tell_state)
        except OSError as exc:
            if not (is_no_room(exc) and self._tail.is_sound):
                raise
            self._tail.lock.note_closed(self._tail.segment, closed.session, self._tail.next_batch)
            return None

    def _tell_state(self) -> LogState:
        return self.state

    def _append(self, texts: Sequence[Text]) -> tuple[Appended | None, Appended]:
        """Write a batch; return first what the beginning of the session took, if that was due."""
        begun = self._begin_session()
        tell_state = self._tell_state if begun is None else self._tell_state_begun
        return begun, self._tail.append(texts, tell_state, sync=self._syncs)

    def _tell_state_begun(self) -> LogState:
        """Tell what the log has come to when the session's beginning is written, but not taken in."""
        assert self._opened is not None
        return _begun(self.state, self._opened)

    # In the event loop ---------------------------------------------------------------------------------------

    def _note_begun(self, appended: Appended | None) -> None:
        """Take note that the session's beginning is in the log, if it is that that was written."""
        opened = self._opened
        if opened is not None and appended is not None:
            self._take_in(appended)
            self._sessions = _begun(self._sessions, opened)
            self._newest_at = max(self._newest_at, opened.at)
            self._opened = None

    def _take_in(self, appended: Appended) -> None:
        """Take note of a batch that is in the log."""
        if appended.sealed_size is not None:
            self._space.note_size(appended.sealed_size)
            self._space.add_file(segment(appended.segment), 0)
        self._space.note_size(appended.offset)
        self.appended_bytes += appended.size
        self.position, self.checksum = (appended.segment, appended.offset), appended.checksum
        self._next_batch = appended.next_batch

    def _begin_batch(self, round_s: float = math.inf) -> None:
        """
        Write what is queued.

        Args:
            round_s: How many seconds other tasks took that were ready, if this is called by one that waits for it.
        """
        tasks, texts, records, size = self._take_batch()
        job, done = partial(self._append, texts), partial(self._finish, tasks, records)
        is_small = len(tasks) == 1 and size <= MAX_WAITED_BYTES and not self._tail.is_full
        is_quiet = self._worker.is_idle and not self.is_disk_busy
        manner = self._patience.choose(round_s) if is_small and is_quiet else Manner.ASLEEP
        if manner is Manner.ASLEEP:
            self._worker.submit(job, done)
            return
        began = time.perf_counter()
        if manner is Manner.STANDING:
            self._worker.submit(job, done, patience_s=WAIT_S)
        else:
            InlineWorker().submit(job, done)
        self._patience.note(manner, time.perf_counter() - began)

    def _take_batch(self) -> tuple[list[trio.lowlevel.Task], list[Text], list[InstanceRecord], int]:
        """Take from the front of the queue what is written at once; return also how many bytes that is."""
        size = sum(self._sizes)
        if size <= MAX_BATCH_BYTES:
            taken = self._tasks, self._texts, self._records, size
            self._tasks, self._texts, self._records, self._counts, self._sizes = [], [], [], [], []
            return taken
        # At least one: what is larger than a batch may be is a batch of its own.
        appends = max(1, bisect_right(list(accumulate(self._sizes)), MAX_BATCH_BYTES))
        size = sum(self._sizes[:appends])
        count = sum(self._counts[:appends])
        taken = self._tasks[:appends], self._texts[:count], self._records[:count], size
        for queue, end in (
            (self._tasks, appends),
            (self._counts, appends),
            (self._sizes, appends),
            (self._texts, count),
            (self._records, count),
        ):
            del queue[:end]
        return taken

    def _finish(
        self,
        tasks: list[trio.lowlevel.Task],
        records: Sequence[InstanceRecord],
        result: tuple[Appended | None, Appended],
        error: BaseException | None,
    ) -> None:
        """Take note of how a batch ended, wake who waited for it, and begin the next."""
        if error is None:
            try:
                begun, appended = result
                self._note_begun(begun)
                self._take_in(appended)
                fold = self._index.fold
                newest_at = self._newest_at
                for record, span in zip(records, appended.spans, strict=True):
                    fold(record, span)
                    if record.at > newest_at:  # noqa: PLR1730 - a call would take longer
                        newest_at = record.at
                self._newest_at = newest_at
            except Exception as exc:  # noqa: BLE001 - whatever it is, those who wait are told
                error = exc
        if error is not None:
            self._failure = error
            # The fate of the batch is unknown, and nothing may be written behind it.
            tasks.extend(self._tasks)
            for queue in (self._tasks, self._counts, self._sizes, self._records, self._texts):
                queue.clear()
        self._wake(tasks, error)
        self.on_progress()
        if self._tasks:
            self._begin_batch()
            return
        self._is_busy = False
        if self._closer is not None:
            trio.lowlevel.reschedule(self._closer)
            self._closer = None

    def _wake(self, tasks: Sequence[trio.lowlevel.Task], failure: BaseException | None) -> None:
        """Tell the tasks of a batch how it ended."""
        beginner, reschedule, told = self._beginner, trio.lowlevel.reschedule, outcome.Value(failure)
        for task in tasks:
            if task is beginner:
                # It is just running, and will look.
                self._beginner, self._beginner_failure = None, failure
            else:
                reschedule(task, told)

    def _failed(self, failure: BaseException) -> StorageError:
        error = storage_error(self._location, "writing", failure)
        error.__cause__ = failure
        return error


def _begun(state: LogState, opened: StoreOpened) -> LogState:
    """Return what a log has come to with the record that a session begins."""
    return attrs.evolve(
        state,
        session=opened.session,
        durability=opened.durability,
        closed=False,
        newest_at=max(state.newest_at, opened.at),
    )
