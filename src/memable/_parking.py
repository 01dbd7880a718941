"""
Runs that wait: records that they do, and unwinds the longest-waiting when too many keep their tasks.
"""

from __future__ import annotations

from itertools import islice

import trio

from ._entry import Entry
from ._errors import StorageError
from ._records import InstanceRecord
from ._run import Run
from ._services import Services

#: So many suspensions are recorded in one batch, so that no single append holds up the rest.
MAX_BATCH = 1_000


class Parking:
    """
    The waiting runs of one engine, in the order in which they began to wait.
    """

    def __init__(self, services: Services, max_parked: int) -> None:
        """
        Begin without runs.

        Args:
            services: The engine's.
            max_parked: How many waiting runs keep their tasks.
        """
        self._services = services
        self._max_parked = max_parked
        self._parked: dict[Entry, None] = {}
        self._unrecorded: dict[Entry, None] = {}
        self._work: trio.Event = trio.Event()
        self._lock = trio.Lock()

    @property
    def has_unrecorded(self) -> bool:
        """
        Whether a run waits, and that is not recorded yet.
        """
        return bool(self._unrecorded)

    def update(self, entry: Entry) -> None:
        """
        Take note of whether the run of an instance waits.
        """
        run = entry.run
        if run is None or not run.is_waiting:
            self._parked.pop(entry, None)
            self._unrecorded.pop(entry, None)
            return
        self._parked.setdefault(entry)
        if len(self._parked) > self._max_parked:
            self._work.set()
        if run.needs_suspension_record:
            self._unrecorded.setdefault(entry)
            self._work.set()

    async def run(self) -> None:
        """
        Record and passivate until cancelled. The one task for it.
        """
        while True:
            await self._work.wait()
            self._work = trio.Event()
            await self.flush()

    async def flush(self) -> None:
        """
        Record all suspensions that are not recorded yet, and passivate what is too much. A checkpoint.
        """
        async with self._lock:
            # More may be about to wait.
            await trio.lowlevel.checkpoint()
            while self._unrecorded:
                if not await self._record_some():
                    return
            self._passivate_some()

    async def _record_some(self) -> bool:
        runs: list[Run] = []
        records: list[InstanceRecord] = []
        newest: list[int] = []
        while self._unrecorded and len(records) < MAX_BATCH:
            entry = next(iter(self._unrecorded))
            del self._unrecorded[entry]
            run = entry.run
            # Who is cancelled is about to go on. If the process died before, nothing would wake the instance for it.
            if run is not None and run.needs_suspension_record and not run.activity.has_cancelled_wait:
                suspension = run.suspension()
                newest.append(run.ledger.note_queued(suspension))
                runs.append(run)
                records.extend(suspension)
        if not records:
            return True
        try:
            await self._services.store.append(records)
        except StorageError as error:
            self._services.fail(error)
            return False
        finally:
            for run in runs:
                run.ledger.end_append()
        for run, seq in zip(runs, newest, strict=True):
            run.ledger.take_in(seq)
        return True

    def _passivate_some(self) -> None:
        excess = len(self._parked) - self._max_parked
        if excess <= 0:
            return
        runs = (entry.run for entry in self._parked)
        # Chosen before any is unwound: that changes what is parked.
        for run in list(islice((run for run in runs if run is not None and run.may_be_passivated), excess)):
            run.cancel("passivated")
