"""
What an engine asks of a store, free of files, so that a database can stand behind the same engine.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from .._clock import Clock
from .._header import InstanceHeader
from .._records import InstanceRecord
from .._states import MetadataStatus


class OpenStore(Protocol):
    """
    A store that one engine has open for writing.
    """

    @property
    def store_id(self) -> str:
        """
        The store's random id: 32 hexadecimal digits, for its whole life.
        """
        ...

    @property
    def location(self) -> str:
        """
        What to call the store in a message: its path, or its kind.
        """
        ...

    @property
    def session(self) -> int:
        """
        Counts the openings of the store, this one included, from 1.
        """
        ...

    @property
    def after_crash(self) -> bool:
        """
        Whether the session before this one ended without the store being closed in order.
        """
        ...

    def has_crashed(self, session: int) -> bool:
        """
        Tell whether an earlier session ended without the store being closed in order.
        """
        ...

    async def allocate_number(self) -> int:
        """
        Return a number for a new instance: unique within the store, greater than all before. Not a checkpoint.
        """
        ...

    def append(self, records: Sequence[InstanceRecord]) -> Awaitable[None]:
        """
        Make *records* durable, all or none of them. To be awaited at once.

        The records are queued before the first suspension, in the order of the calls; batches of several callers
        share one write and one sync. When it returns, headers and ``load`` show them. An ``InstanceRetired`` removes
        its instance: nothing shows it any more; a start behind it may use its name again, but not its number.

        Args:
            records: What happened, oldest first. At least one. Each carries the sequence number that comes next in
                its instance's journal; an ``InstanceStarted`` carries a number from ``allocate_number``.

        Raises:
            StorageError: A write or sync failed, now or earlier: the fate of the records is unknown, and the store
                takes nothing any more. Also when the store is closed.
            ValueError: A record's sequence number is not the next one: another writer was there first. Nothing was
                queued.

        Cancellation:
            Never raises ``Cancelled``: what was begun is brought to its end, whatever is cancelled. Callers check
            before and after.
        """
        ...

    async def load(self, number: int) -> Sequence[InstanceRecord]:
        """
        Return the journal of instance *number*, oldest record first.

        Raises:
            StorageError: It cannot be read.
            KeyError: There is no such instance.

        Cancellation:
            May raise ``Cancelled``; nothing is changed by it.
        """
        ...

    async def find(self, workflow: str, instance_id: str) -> InstanceHeader | None:
        """
        Return the header of an instance, or None if there is no such instance. Not a checkpoint.

        The header is live: it changes with each durable record. Callers do not change it.
        """
        ...

    async def live(self) -> Sequence[InstanceHeader]:
        """
        Return the headers of all instances that go on, in the order of creation. Not a checkpoint.

        Those are the ones that have not ended, and the attached children that have, of parents that have not: a child
        is kept as long as its parent may need it. The sequence does not change any more; the headers in it are live.
        """
        ...

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

        The sequence does not change any more; the headers in it are live. To ask for a status that is no end costs
        as much as there are instances that go on, however many have ended.

        Args:
            after: Only instances with a greater number than this.
            limit: How many at most; None for all.
            workflow: Only instances of this workflow.
            status: Only instances with this status.
        """
        ...

    async def ended(self, workflow: str, *, until: float, limit: int) -> Sequence[InstanceHeader]:
        """
        Return the headers of the first ended instances of a workflow, the one that ended first in front. No checkpoint.

        Those that are kept for their parents, which ``live`` shows, are left out.

        Args:
            workflow: The workflow's name.
            until: Only instances that ended at this time or before.
            limit: How many at most.
        """
        ...

    async def first_end(self, workflow: str) -> float | None:
        """
        Return when the first of those ended whom ``ended`` would show; None if there is none. Not a checkpoint.
        """
        ...

    async def maintain(self) -> None:
        """
        Keep the store small and quick to open, until cancelled. Run by one task of the engine's.

        Raises:
            StorageError: A write or sync failed. The store takes nothing any more.
        """
        ...


@runtime_checkable
class Store(Protocol):
    """
    What a user gives to ``open_engine``: a place for records that can be opened, one engine at a time.
    """

    def open(self, clock: Clock) -> AbstractAsyncContextManager[OpenStore]:
        """
        Lock and recover the store; close and unlock it when the block is left.

        Args:
            clock: Tells the time. The store calls ``clock.not_before`` with the time of its newest record. If
                ``clock.is_virtual``, nothing is done in a thread.

        Raises:
            StoreLockedError: Another engine has it open.
            StorageError: It cannot be opened.

        Cancellation:
            Opening may be cancelled. Closing brings the batch in flight to its end, whatever is cancelled.
        """
        ...
