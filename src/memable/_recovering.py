"""
Continues what an earlier engine left unfinished: runs it again, or arms the timers of what is suspended.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence

import trio

from ._entry import Entry
from ._error_info import describe_exception
from ._errors import RecoveryLimitError
from ._header import InstanceHeader
from ._records import InstanceBlocked, InstanceRecord, RunStarted
from ._removing import Removals
from ._services import Services
from ._states import MetadataStatus
from ._supervisor import Supervisor

#: Instances are looked at, and recorded as running, in batches of this size, so that none holds up the rest for long.
RECOVERY_BATCH = 1_000

_UNFINISHED = frozenset((MetadataStatus.RUNNING, MetadataStatus.BLOCKED))


class Recovery:
    """
    Recovers the instances of one engine's store, workflow by workflow.
    """

    def __init__(self, services: Services, supervisor: Supervisor, removals: Removals, *, max_recoveries: int) -> None:
        """
        Bind to an engine.

        Args:
            services: The engine's.
            supervisor: Runs what is recovered.
            removals: Removes what has ended, after a while.
            max_recoveries: How many crashes in a row an instance may be running at before it is Blocked.
        """
        self._services = services
        self._supervisor = supervisor
        self._removals = removals
        self._max_recoveries = max_recoveries

    def begin(self, workflows: Collection[str], *, resumes: bool = True) -> Callable[[], Awaitable[None]]:
        """
        Return a function that recovers what is unfinished of *workflows*. ``wait_idle`` waits for it.

        Args:
            workflows: Their names; they are registered.
            resumes: Whether what was running or Blocked runs again; what is suspended is recovered in any case.
        """
        self._supervisor.begin_recovery(workflows)

        @trio.lowlevel.enable_ki_protection
        async def recover() -> None:
            try:
                # It only waits for the store; cancelled, it would leave the nursery in a group.
                with trio.CancelScope(shield=True):
                    await self._recover(workflows, resumes)
            except Exception as error:  # noqa: BLE001 - comes out of the user's block
                self._supervisor.fail(error)
            finally:
                self._supervisor.end_recovery(workflows)

        return recover

    # Interrupted by control-C in between, it would be waited for for ever.
    @trio.lowlevel.enable_ki_protection
    def start(self, workflows: Collection[str]) -> None:
        """
        Recover in a task of its own.
        """
        self._supervisor.start_task(self.begin(workflows))

    async def _recover(self, workflows: Collection[str], resumes: bool) -> None:
        await self._removals.watch(workflows)
        headers = await self._services.store.live()
        bereaved = await self._bereaved(headers)
        unfinished: list[InstanceHeader] = []
        for batch in _batches(headers):
            for header in batch:
                if header.workflow not in workflows:
                    continue
                if header.status is MetadataStatus.SUSPENDED and not header.cancel_requested:
                    self._recover_suspended(header, bereaved)
                elif resumes and self._is_unfinished(header):
                    unfinished.append(header)
            await trio.lowlevel.cancel_shielded_checkpoint()
        for batch in _batches(unfinished):
            if self._supervisor.is_halted:
                return
            await self._recover_batch(batch)

    async def _bereaved(self, headers: Sequence[InstanceHeader]) -> Collection[tuple[str, str]]:
        """
        Return the names of those that have lost a child: the process may have died before they were told.

        Who ends from here on tells its parent itself.
        """
        bereaved: set[tuple[str, str]] = set()
        for batch in _batches(headers):
            for header in batch:
                # Most are no children: to make a name of its parent's costs more than to see that.
                name = header.parent_name if header.parent is not None and header.status.is_terminal else None
                if name is not None:
                    bereaved.add(name)
            await trio.lowlevel.cancel_shielded_checkpoint()
        return bereaved

    def _recover_suspended(self, header: InstanceHeader, bereaved: Collection[tuple[str, str]]) -> None:
        is_overdue = header.wake_at is not None and header.wake_at <= self._services.clock.now()
        # Not left to a timer: from here on somebody who waits until nothing executes has to wait for it.
        if is_overdue or (header.awaits_children and (header.workflow, header.instance_id) in bereaved):
            self._supervisor.wake(header)
            return
        entry = self._supervisor.known_entry(header.workflow, header.instance_id)
        if entry is None or not entry.is_live:
            self._supervisor.set_alarm(header)

    def _is_unfinished(self, header: InstanceHeader) -> bool:
        # What ran in this session is none of recovery's business: it runs, or has become Blocked here.
        is_left_over = header.session != self._services.store.session
        is_due = header.status in _UNFINISHED or (header.cancel_requested and not header.status.is_terminal)
        return is_left_over and is_due and not header.needs_resume

    async def _recover_batch(self, headers: Iterable[InstanceHeader]) -> None:
        entries: list[Entry] = []
        records: list[InstanceRecord] = []
        try:
            for header in headers:
                entry = self._supervisor.entry_of(header)
                while entry.busy:
                    # Somebody resumes or cancels it, which may yet come to nothing.
                    await entry.wait_change(entry.version)
                if self._is_unfinished(header) and not entry.is_live:
                    entry.busy = True
                    entries.append(entry)
                    records.extend(self._recovery_records(header))
            if records:
                await self._services.store.append(records)
        finally:
            for entry in entries:
                entry.busy = False
                entry.notify()
        for entry in entries:
            if entry.header.status is MetadataStatus.RUNNING:
                self._supervisor.start(entry)

    def _recovery_records(self, header: InstanceHeader) -> list[InstanceRecord]:
        store = self._services.store
        at = self._services.clock.now()
        # Sessions since then may not have run it: they say nothing of it.
        after_crash = header.status is MetadataStatus.RUNNING and store.has_crashed(header.session)
        records: list[InstanceRecord] = [
            RunStarted(
                instance=header.number,
                seq=header.seq + 1,
                at=at,
                session=store.session,
                after_crash=after_crash,
            )
        ]
        recoveries = header.recoveries + after_crash
        # To carry out a cancellation without compensations, the body is not run.
        runs_body = not header.cancel_requested or header.has_compensations
        if recoveries >= self._max_recoveries and after_crash and runs_body:
            error = RecoveryLimitError(workflow=header.workflow, instance_id=header.instance_id, recoveries=recoveries)
            records.append(
                InstanceBlocked(
                    instance=header.number,
                    seq=header.seq + 2,
                    at=at,
                    error=describe_exception(error),
                    needs_resume=True,
                )
            )
        return records


def _batches(headers: Sequence[InstanceHeader]) -> Iterator[Sequence[InstanceHeader]]:
    for start in range(0, len(headers), RECOVERY_BATCH):
        yield headers[start : start + RECOVERY_BATCH]
