"""
The records that one run makes: numbered, on their way to the store, and taken into its journal in their order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import trio

from ._activity import RunWatcher
from ._errors import StorageError
from ._journal import Journal
from ._records import CancelRequested, InstanceRecord, InstanceSuspended, SignalKept
from ._services import Services

#: Records after which an instance is still suspended, if it was: the body has no part in them. What the body begins or
#: turns away from makes the recorded deadlines and waits untrue, and it might never be woken.
_STILL_SUSPENDED = frozenset((SignalKept, CancelRequested))


class Ledger:
    """
    What an instance records while it runs.
    """

    __slots__ = (
        "_in_flight",
        "_journal",
        "_later",
        "_next",
        "_number",
        "_seq",
        "_services",
        "_settled",
        "_watcher",
        "failure",
        "is_suspended",
    )

    def __init__(self, services: Services, journal: Journal, seq: int, watcher: RunWatcher) -> None:
        """
        Begin behind what is recorded.

        Args:
            services: The engine's.
            journal: The instance's; takes in what is durable.
            seq: Sequence number of the newest record.
            watcher: Told when nothing is on its way any more.
        """
        self.failure: StorageError | None = None
        "Why a record could not be made durable, if that is so."
        self.is_suspended: bool = False
        "Whether the newest record says that all branches wait."
        self._services = services
        self._journal = journal
        self._number = journal.started.instance
        self._seq = seq
        self._watcher = watcher
        self._next: InstanceRecord | None = None
        "The oldest record that is on its way, and not in the journal yet: mostly there is no other."
        self._later: deque[InstanceRecord] | None = None
        "The others, in their order. Made when it is needed: an empty one takes 760 bytes."
        self._in_flight = 0
        self._settled: trio.Event | None = None

    @property
    def is_settled(self) -> bool:
        """
        Whether nothing is on its way to the store.
        """
        return not self._in_flight

    def next_seq(self) -> int:
        """
        Return the sequence number for a record that is queued before the next suspension.
        """
        self._seq += 1
        return self._seq

    # Interrupted by control-C in between, it would wait for ever for something that is not on its way.
    @trio.lowlevel.enable_ki_protection
    async def append(self, records: Sequence[InstanceRecord]) -> bool:
        """
        Make records durable, those of this instance in the order of their numbers, and take those into the journal.

        Returns:
            Whether they are; if not, the engine is about to stop.

        Cancellation:
            Brought to its end, whatever is cancelled.
        """
        newest = self.note_queued(records)
        try:
            await self._services.store.append(records)
        except StorageError as error:
            # Not the body's business: the engine stops, and this run is unwound by it.
            self.failure = error
            self._services.fail(error)
            return False
        finally:
            self.end_append()
        self.take_in(newest)
        return True

    def note_queued(self, records: Sequence[InstanceRecord]) -> int:
        """
        Take note of records that are about to be queued; return the sequence number of the newest of this instance.

        To be followed by ``end_append`` and, if they are durable, ``take_in``.
        """
        self._in_flight += 1
        newest = 0
        for record in records:
            if record.instance == self._number:
                if self._next is None:
                    self._next = record
                elif self._later is None:
                    self._later = deque((record,))
                else:
                    self._later.append(record)
                newest = record.seq
                if type(record) is InstanceSuspended:
                    self.is_suspended = True
                elif self.is_suspended and type(record) not in _STILL_SUSPENDED:
                    self.is_suspended = False
        return newest

    def end_append(self) -> None:
        """
        Take note that what was queued with ``note_queued`` is not on its way any more.
        """
        self._in_flight -= 1
        if self._in_flight:
            return
        if self._settled is not None:
            self._settled.set()
        if self.is_suspended:
            self._watcher.note_settled()

    def take_in(self, newest: int) -> None:
        """
        Take the records up to the sequence number *newest*, which are durable, into the journal.
        """
        # What was queued before is durable, too, but the tasks that wait for it are woken in no promised order.
        while self._next is not None and self._next.seq <= newest:
            self._journal.apply(self._next)
            self._next = self._later.popleft() if self._later else None
        if not self._later:
            self._later = None

    async def wait_settled(self) -> None:
        """
        Wait until nothing of this run is on its way to the store, so that the next one continues behind it.
        """
        while self._in_flight:
            self._settled = trio.Event()
            await self._settled.wait()
