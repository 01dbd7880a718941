"""
A store in a directory: an append-only log that survives the death of its process, and power loss.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import attrs
import trio

from .._clock import Clock
from .._disk import Disk, RealDisk
from .._errors import StoreCorruptedError
from .._header import InstanceHeader
from .._numbers import is_count
from .._records import InstanceRecord, InstanceResumed, StoreOpened
from .._states import MetadataStatus
from ._committer import Committer
from ._directory import prepare_directory
from ._failures import is_no_room, storage_error
from ._lockfile import StoreLock, take_lock
from ._protocol import OpenStore
from ._recovery import RecoveredLog, recover_log
from ._settling_disk import SettlingDisk
from ._tail import LogTail
from ._upkeep import Upkeep
from ._worker import InlineWorker, ThreadWorker, Worker, run_job

T = TypeVar("T")

#: A log's files are about so long.
SEGMENT_BYTES = 16 * 1024 * 1024
#: Shorter ones would hold little more than their headers.
MIN_SEGMENT_BYTES = 1024
#: Longer ones would leave too little of what a place in the log can be for the batch that is the last in one.
MAX_SEGMENT_BYTES = 1024**3
#: So many journals are read at once: more would only wait for the same disk.
MAX_READERS = 4


def _check_segment_bytes(_instance: object, _attribute: object, value: object) -> None:
    if not is_count(value, least=MIN_SEGMENT_BYTES) or value > MAX_SEGMENT_BYTES:
        raise ValueError(
            f"segment_bytes must be an int from {MIN_SEGMENT_BYTES} to {MAX_SEGMENT_BYTES} (1 GiB), not {value!r}"
        )


def _random_id() -> str:
    return uuid.uuid4().hex


def _check_durability(_instance: object, _attribute: object, value: object) -> None:
    if value not in {"fsync", "os"}:
        raise ValueError(f'durability must be "fsync" or "os", not {value!r}')


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
    durability: Literal["fsync", "os"] = attrs.field(default="fsync", validator=_check_durability)
    "Whether each batch of records is synced before it is acknowledged."
    segment_bytes: int = attrs.field(default=SEGMENT_BYTES, kw_only=True, validator=_check_segment_bytes)
    "At so many bytes, from 1 KiB to 1 GiB, the log's next file is begun. Space is given back file by file."
    _disk: Disk | None = attrs.field(default=None, kw_only=True, repr=False)
    _new_id: Callable[[], str] = attrs.field(default=_random_id, kw_only=True, repr=False, eq=False, alias="_new_id")
    "Makes the id of a store that is made."

    def open(self, clock: Clock) -> AbstractAsyncContextManager[OpenStore]:
        """
        Lock and recover the store; close and unlock it when the block is left.

        Args:
            clock: Tells the time. It goes on from the store's newest record. If it is virtual, all is done in the event
                loop, else reads and writes are done in threads. Only a lone, small append to a disk that has proven
                quick is waited for on the spot.

        Raises:
            StoreLockedError: Another engine has it open. Close that one first.
            StoreCorruptedError: It is damaged in a way that no crash explains. Nothing was changed.
            StoreVersionError: A newer release wrote it. Nothing was changed.
            StorageError: It cannot be made, read or written; the message tells the way out.

        Cancellation:
            Opening ends at once if it is cancelled before it begins. The reading and recovery of the log is not cut
            short: only when that is done does a cancelled opening record that the store is closed, and unlock it.
            Closing brings the batch in flight to its end, whatever is cancelled.
        """
        # The working directory may change while the store is open.
        return _opened(attrs.evolve(self, path=self.path.absolute()), clock)


@asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def _opened(given: FileStore, clock: Clock) -> AsyncGenerator[OpenStore]:
    await trio.lowlevel.checkpoint()
    worker: Worker = InlineWorker() if clock.is_virtual else ThreadWorker()
    try:
        lock, log = await _run(worker, given.path, "opening", partial(_lock_and_recover, given, clock.now()))
        try:
            clock.not_before(log.reading.scan.newest_at)
            store = OpenFileStore(given, clock, worker, lock, log)
            try:
                await store.begin_session(clock.now())
                try:
                    await trio.lowlevel.checkpoint_if_cancelled()
                    yield store
                finally:
                    await store.end_session(clock.now())
            finally:
                store.close_file()
        finally:
            lock.release()
    finally:
        worker.close()


def _lock_and_recover(given: FileStore, now: float) -> tuple[StoreLock, RecoveredLog]:
    directory = given.path
    disk = SettlingDisk(given._disk or RealDisk())  # noqa: SLF001 - this module's own
    is_store = prepare_directory(disk, directory)
    lock = take_lock(disk, directory, is_store=is_store)
    try:
        disk.guard = lock
        # That somebody was noted says that the log is durable, name and all.
        is_known = is_store and lock.has_noted_holder()
        if is_known:
            lock.note_holder(now)
        log = recover_log(disk, directory, lock, now, given.durability, store_id=given._new_id())  # noqa: SLF001 - this module's own
        if not is_known:
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

    def __init__(self, given: FileStore, clock: Clock, worker: Worker, lock: StoreLock, log: RecoveredLog) -> None:
        durability, segment_bytes = given.durability, given.segment_bytes
        reading = log.reading
        scan, header = reading.scan, reading.header
        self._directory = reading.files.directory
        self._durability = durability
        self._worker = worker
        self._files = reading.files
        self._index = reading.index
        self._store_id = header.store_id
        self._session = scan.session + 1
        self._after_crash = not scan.closed
        self._crashed = frozenset((*scan.crashed, scan.session) if self._after_crash else scan.crashed)
        self._read_limiter = trio.CapacityLimiter(MAX_READERS)
        self._tail = LogTail(
            files=self._files,
            file=log.file,
            lock=lock,
            header=header,
            session=self._session,
            durability=durability,
            next_batch=scan.next_batch,
            end=scan.good_end,
            checksum=reading.checksum,
            segment_bytes=segment_bytes,
            clock=clock.now,
            is_ended=log.is_closed_elsewhere,
        )
        # Of the others nobody will ever ask: who runs or waits here ran in one of these.
        sessions = {found.session for found in self._index.live()}
        state = attrs.evolve(reading.state, crashed=tuple(sorted(self._crashed & sessions)))
        self._committer = Committer(self._tail, worker, self._index, reading.space, state, self._note_progress)
        self._upkeep = Upkeep(
            files=self._files,
            index=self._index,
            space=reading.space,
            committer=self._committer,
            store_id=self._store_id,
            segment_bytes=segment_bytes,
            clock=clock,
            load=self._load_lines,
            tail=self._tail,
            checkpoint_segment=log.checkpoint_segment,
            checkpoint_bytes=log.checkpoint_bytes,
            unread_bytes=reading.read_bytes,
        )

    def _note_progress(self) -> None:
        self._upkeep.note_progress()

    @property
    def store_id(self) -> str:
        """
        The store's random id: 32 hexadecimal digits, for its whole life.
        """
        return self._store_id

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
        await self._committer.begin(
            StoreOpened(
                session=self._session, at=now, durability=self._durability, pid=os.getpid(), host=socket.gethostname()
            )
        )

    async def end_session(self, now: float) -> None:
        """
        Bring to its end what was begun, and record that the store was closed in order. Takes nothing from then on.
        """
        if await self._committer.close(now):
            try:
                await run_job(self._worker, self._upkeep.write_checkpoint_now)
            except OSError as exc:
                if not is_no_room(exc):
                    raise storage_error(str(self._directory), "closing the store", exc) from exc

    def close_file(self) -> None:
        """
        Close what is open of the log.
        """
        self._tail.close()

    async def allocate_number(self) -> int:
        """
        Return a number for a new instance. Not a checkpoint.
        """
        return self._index.allocate_number()

    def append(self, records: Sequence[InstanceRecord]) -> Awaitable[None]:
        """
        Make *records* durable, all or none of them.
        """
        for record in records:
            if type(record) is InstanceResumed and (record.anew or record.forgotten):
                return self._append_forgetting(records)
        # No coroutine of its own: there may be thousands that wait.
        return self._committer.append(records)

    async def _append_forgetting(self, records: Sequence[InstanceRecord]) -> None:
        await self._committer.append(records)
        for record in records:
            if type(record) is InstanceResumed and (record.anew or record.forgotten):
                self._upkeep.note_forgotten(record.instance)

    async def load(self, number: int) -> Sequence[InstanceRecord]:
        """
        Return the journal of instance *number*, oldest record first.
        """
        return [record for _, record in await self._load_lines(number)]

    async def _load_lines(self, number: int) -> Sequence[tuple[int, InstanceRecord]]:
        self._committer.check_open()
        while True:
            spans = self._index.spans(number)
            try:
                lines = await self._read(number, spans)
                # Of one that was removed meanwhile, any lines may be gone.
                if len(lines) == len(spans) or self._index.has(number):
                    return lines
            except StoreCorruptedError:
                # Something of it may have been compacted away meanwhile, since it was forgotten or removed.
                if self._index.has(number) and self._index.spans(number)[: len(spans)] == spans:
                    raise

    async def _read(self, number: int, spans: Sequence[int]) -> Sequence[tuple[int, InstanceRecord]]:
        read = partial(self._files.read_lines, number, spans)
        try:
            if isinstance(self._worker, InlineWorker):
                await trio.lowlevel.checkpoint()
                return read()
            return await trio.to_thread.run_sync(read, limiter=self._read_limiter)
        except OSError as exc:
            raise storage_error(str(exc.filename or self._directory), "reading", exc) from exc

    async def maintain(self) -> None:
        """
        Write checkpoints, and give back the space of what is not needed any more, until cancelled.
        """
        await self._upkeep.run()

    async def find(self, workflow: str, instance_id: str) -> InstanceHeader | None:
        """
        Return the header of an instance, or None if there is no such instance. Not a checkpoint.
        """
        return self._index.find(workflow, instance_id)

    async def live(self) -> Sequence[InstanceHeader]:
        """
        Return the headers of all instances that go on, in the order of creation. Not a checkpoint.
        """
        return self._index.live()

    async def headers(
        self,
        *,
        after: int = 0,
        limit: int | None = None,
        workflow: str | None = None,
        status: MetadataStatus | None = None,
    ) -> Sequence[InstanceHeader]:
        """
        Return the headers of the first instances that match, in the order of creation. Not a checkpoint.
        """
        return self._index.select(after=after, limit=limit, workflow=workflow, status=status)

    async def ended(self, workflow: str, *, until: float, limit: int) -> Sequence[InstanceHeader]:
        """
        Return the headers of the first ended instances of a workflow, the one that ended first in front. No checkpoint.
        """
        return self._index.ended(workflow, until, limit)

    async def first_end(self, workflow: str) -> float | None:
        """
        Return when the first of those ended whom ``ended`` would show; None if there is none. Not a checkpoint.
        """
        return self._index.first_end(workflow)
