"""
A store in a directory: an append-only log that survives the death of its process, and power loss.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import attrs
import trio

from .._clock import Clock
from .._disk import Disk, RealDisk
from .._frames import seed_of
from .._header import InstanceHeader
from .._record_json import encode_record
from .._records import InstanceRecord, StoreClosed, StoreOpened
from ._committer import Committer
from ._directory import FIRST_SEGMENT, prepare_directory
from ._failures import storage_error
from ._lockfile import StoreLock, take_lock
from ._protocol import OpenStore
from ._reader import read_journal
from ._recovery import RecoveredLog, recover_log
from ._tail import LogTail
from ._worker import InlineWorker, ThreadWorker, Worker, run_job

T = TypeVar("T")

#: So many journals are read at once: more would only wait for the same disk.
MAX_READERS = 4


@attrs.frozen
class FileStore:
    """
    Keeps records in a directory of its own, which is made if it is missing; its parent must exist.

    Opened by one engine at a time, on a local file system. Two copies of one store must not be used both.

    Durability:
        With ``durability="fsync"``, an operation that returned survives power loss. With ``"os"`` it survives the death
        of the process; a power cut loses at most what the system had not written yet.
    """

    path: Path = attrs.field(converter=Path)
    "The directory."
    durability: Literal["fsync", "os"] = attrs.field(default="fsync", validator=attrs.validators.in_(("fsync", "os")))
    "Whether each batch of records is synced before it is acknowledged."
    _disk: Disk | None = attrs.field(default=None, kw_only=True, repr=False)

    def open(self, clock: Clock) -> AbstractAsyncContextManager[OpenStore]:
        """
        Lock and recover the store; close and unlock it when the block is left.

        Args:
            clock: Tells the time. It goes on from the store's newest record. If it is virtual, all is done in the event
                loop, else reads and writes are done in threads.

        Raises:
            StoreLockedError: Another engine has it open. Close that one first.
            StoreCorruptedError: It is damaged in a way that no crash explains. Nothing was changed.
            StoreVersionError: A newer release wrote it. Nothing was changed.
            StorageError: It cannot be made, read or written; the message tells the way out.

        Cancellation:
            Opening may be cancelled. Closing brings the batch in flight to its end, whatever is cancelled.
        """
        # The working directory may change while the store is open.
        return _opened(self.path.absolute(), self.durability, self._disk or RealDisk(), clock)


@asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def _opened(
    directory: Path, durability: Literal["fsync", "os"], disk: Disk, clock: Clock
) -> AsyncGenerator[OpenStore]:
    await trio.lowlevel.checkpoint()
    worker: Worker = InlineWorker() if clock.is_virtual else ThreadWorker()
    try:
        lock, log = await _run(worker, directory, "opening", partial(_lock_and_recover, disk, directory, clock.now()))
        try:
            clock.not_before(log.scan.newest_at)
            store = OpenFileStore(directory, durability, worker, lock, log)
            await store.begin_session(clock.now())
            try:
                await trio.lowlevel.checkpoint_if_cancelled()
                yield store
            finally:
                await store.end_session(clock.now())
        finally:
            log.file.close()
            lock.release()
    finally:
        worker.close()


def _lock_and_recover(disk: Disk, directory: Path, now: float) -> tuple[StoreLock, RecoveredLog]:
    is_store = prepare_directory(disk, directory)
    lock = take_lock(disk, directory, is_store=is_store)
    try:
        if is_store:
            lock.note_holder(now)
        log = recover_log(disk, directory, lock, now)
        if not is_store:
            # Not sooner: what a power cut leaves of the note could be taken for another program's lock file.
            lock.note_holder(now)
        return lock, log
    except BaseException:
        lock.release()
        raise


async def _run(worker: Worker, location: Path, doing: str, job: Callable[[], T]) -> T:
    try:
        return await run_job(worker, job)
    except OSError as exc:
        raise storage_error(str(exc.filename or location), doing, exc) from exc


class OpenFileStore:
    """
    A store in a directory that one engine has open. See the protocol ``OpenStore``.
    """

    def __init__(
        self, directory: Path, durability: Literal["fsync", "os"], worker: Worker, lock: StoreLock, log: RecoveredLog
    ) -> None:
        self._directory = directory
        self._durability = durability
        self._worker = worker
        self._log = log
        self._log_path = directory / FIRST_SEGMENT
        self._seed = seed_of(log.header.store_id)
        self._session = log.scan.session + 1
        self._after_crash = not log.scan.closed
        self._crashed = frozenset((*log.scan.crashed, log.scan.session) if self._after_crash else log.scan.crashed)
        self._read_limiter = trio.CapacityLimiter(MAX_READERS)
        self._tail = LogTail(
            file=log.file,
            name=FIRST_SEGMENT,
            lock=lock,
            seed=self._seed,
            session=self._session,
            next_batch=log.scan.next_batch,
            end=log.scan.good_end,
        )
        self._committer = Committer(
            self._tail, worker, str(self._log_path), durability == "fsync", log.index.admit, log.fold
        )

    @property
    def store_id(self) -> str:
        """
        The store's random id: 32 hexadecimal digits, for its whole life.
        """
        return self._log.header.store_id

    @property
    def location(self) -> str:
        """
        The store's directory.
        """
        return str(self._directory)

    @property
    def session(self) -> int:
        """
        Counts the openings of the store, this one included, from 1.
        """
        return self._session

    @property
    def after_crash(self) -> bool:
        """
        Whether the session before this one ended without the store being closed in order.
        """
        return self._after_crash

    def has_crashed(self, session: int) -> bool:
        """
        Tell whether an earlier session ended without the store being closed in order.
        """
        return session in self._crashed

    async def begin_session(self, now: float) -> None:
        """
        Record that the store is open. It proves to a later recovery that everything before it was durable.
        """
        opened = StoreOpened(
            session=self._session, at=now, durability=self._durability, pid=os.getpid(), host=socket.gethostname()
        )
        job = partial(self._tail.append, [encode_record(opened)])
        await _run(self._worker, self._log_path, "writing", job)

    async def end_session(self, now: float) -> None:
        """
        Bring to its end what was begun, and record that the store was closed in order. Takes nothing from then on.
        """
        await self._committer.close(encode_record(StoreClosed(session=self._session, at=now)))

    async def allocate_number(self) -> int:
        """
        Return a number for a new instance. Not a checkpoint.
        """
        return self._log.index.allocate_number()

    async def append(self, records: Sequence[InstanceRecord]) -> None:
        """
        Make *records* durable, all or none of them.
        """
        await self._committer.append(records)

    async def load(self, number: int) -> Sequence[InstanceRecord]:
        """
        Return the journal of instance *number*, oldest record first.
        """
        self._committer.check_open()
        spans = self._log.lines.spans(number)
        read = partial(read_journal, self._log.file, str(self._log_path), self._seed, number, spans)
        try:
            if isinstance(self._worker, InlineWorker):
                await trio.lowlevel.checkpoint()
                return read()
            return await trio.to_thread.run_sync(read, limiter=self._read_limiter)
        except OSError as exc:
            raise storage_error(str(self._log_path), "reading", exc) from exc

    async def find(self, workflow: str, instance_id: str) -> InstanceHeader | None:
        """
        Return the header of an instance, or None if there is no such instance. Not a checkpoint.
        """
        return self._log.index.find(workflow, instance_id)

    async def headers(self, *, after: int = 0) -> Sequence[InstanceHeader]:
        """
        Return the headers of all instances with a number greater than *after*, in the order of creation.
        """
        return self._log.index.after(after)
