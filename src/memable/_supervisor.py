"""
Keeps the runs of one engine: starts, counts and stops them, and collects what none of them may keep to itself.
"""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import trio

from ._context import Context
from ._definition import Workflow
from ._drive import BodyCall
from ._entry import Entry
from ._errors import InstanceNotFoundError, MisuseError, StorageError, TypeMismatchError, WorkflowBlockedError
from ._header import InstanceHeader
from ._journal import Journal, journal_of
from ._parking import Parking
from ._records import CancelRequested, InstanceCancelled, InstanceRecord, InstanceRetired, InstanceStarted, RunStarted
from ._related import leaves_of
from ._run import Run, call_unprotected
from ._services import Services
from ._states import MetadataStatus
from ._timers import Timer

logger = logging.getLogger("memable")

#: What the task of each run is called, for people who look at tasks.
TASK_NAME = "memable._supervisor.Supervisor._run"


class Supervisor:
    """
    Owns all runs of an engine. Everything here happens in the engine's trio run.
    """

    def __init__(
        self,
        services: Services,
        nursery: trio.Nursery,
        block_scope: trio.CancelScope,
        fatal: list[BaseException],
        *,
        max_parked: int,
        on_end: Callable[[InstanceHeader], None],
    ) -> None:
        """
        Begin without runs.

        Args:
            services: What runs use.
            nursery: Each run is a child of it.
            block_scope: Around the user's block: cancelled when something fatal happens.
            fatal: Collects what is to come out of the user's block.
            max_parked: How many waiting runs keep their tasks.
            on_end: Called when an instance has become terminal.
        """
        self.services: Services = services
        self.definitions: dict[str, Workflow[Any, Any]] = {}
        self.is_stopping: bool = False
        "No new instances are accepted."
        self.is_halted: bool = False
        "All runs have been told to unwind."
        self._nursery = nursery
        # Named, lest each task make a text of its own.
        self._start_soon = partial(nursery.start_soon, name=TASK_NAME)
        self._block_scope = block_scope
        self._fatal = fatal
        self._on_end = on_end
        self._alarms: dict[int, Timer] = {}
        "Of the instances that are suspended without a run, by number."
        self._entries: dict[str, dict[str, Entry]] = {}
        "Those that are live, by workflow and instance id."
        self._others: dict[str, WeakValueDictionary[str, Entry]] = {}
        "All others that somebody refers to. A weak reference takes 96 bytes, which thousands that wait can do without."
        # Ordered, so that what is told to all is told in the same order each time.
        self._live: dict[Entry, None] = {}
        self._active: dict[Entry, None] = {}
        "The live ones that do not wait."
        self._recovering: list[Collection[str]] = []
        "For each recovery under way, the names of its workflows."
        self._pending_work = 0
        self._own_scopes: list[trio.CancelScope] = []
        self._own_tasks = 0
        self._is_serving_over = False
        self._changed: trio.Event | None = None
        # Runs see the context variables of whoever opened the engine, recovered or not: the caller of invoke may be
        # inside a step, or long gone.
        self._context = contextvars.copy_context()
        self.parking: Parking = Parking(services, max_parked)

    # Entries -------------------------------------------------------------------------------------------------

    def known_entry(self, workflow: str, instance_id: str) -> Entry | None:
        """
        Return what is kept in memory of an instance, if anything is.
        """
        entries = self._entries.get(workflow)
        if entries is None:
            return None
        return entries.get(instance_id) or self._others[workflow].get(instance_id)

    def new_entry(self, workflow: str, instance_id: str, header: InstanceHeader | None) -> Entry:
        """
        Begin to keep an instance in memory, for as long as somebody refers to it.
        """
        entry = Entry(workflow, instance_id, header, self)
        if workflow not in self._entries:
            self._entries[workflow], self._others[workflow] = {}, WeakValueDictionary()
        self._others[workflow][instance_id] = entry
        return entry

    def entry_of(self, header: InstanceHeader) -> Entry:
        """
        Return what is kept in memory of a recorded instance.
        """
        known = self.known_entry(header.workflow, header.instance_id)
        return self.new_entry(header.workflow, header.instance_id, header) if known is None else known

    def drop_entry(self, entry: Entry) -> None:
        """
        Forget an instance that the store has no more.
        """
        entry.is_removed = True
        if self.known_entry(entry.workflow, entry.instance_id) is entry:
            self._entries[entry.workflow].pop(entry.instance_id, None)
            self._others[entry.workflow].pop(entry.instance_id, None)

    # Runs ----------------------------------------------------------------------------------------------------

    def start(
        self, entry: Entry, *, journal: Journal | None = None, is_first: bool = False, is_wake: bool = False
    ) -> None:
        """
        Start a run in a task of its own. Not once the runs have been told to unwind: it is for the next open then.

        Args:
            entry: The instance; recorded as running, unless *is_wake*.
            journal: All that is recorded of it; loaded if left out.
            is_first: Whether it has never run before.
            is_wake: Whether it is recorded as suspended, so that first of all it is to be recorded as running.
        """
        if self.is_halted:
            return
        entry.ending = None
        entry.is_live = True
        entry.is_woken = False
        alarm = self._alarms.pop(entry.header.number, None)
        if alarm is not None:
            alarm.cancel()
        self._live[entry] = None
        self._entries[entry.workflow][entry.instance_id] = entry
        self._others[entry.workflow].pop(entry.instance_id, None)
        self._active[entry] = None
        self._context.run(self._start_soon, self._run, entry, journal, is_first, is_wake)

    @trio.lowlevel.enable_ki_protection
    async def _run(self, entry: Entry, journal: Journal | None, is_first: bool, is_wake: bool) -> None:
        # The engine alone decides when a run is unwound, and lets it bring to its end what was begun: all that is
        # awaited here is shielded, but by one scope after the other, with no checkpoint between them. A scope around
        # all would cost each run 750 bytes, and so would what is called by way of another function, or kept here, half
        # as much: this is there for as long as the body is.
        run = await self._begin_run(entry, journal, is_first=is_first, is_wake=is_wake)
        del journal
        while run is not None:
            call = BodyCall(run)
            try:
                with run.scope:
                    if not run.scope.cancel_called:
                        call.returned = (await call_body(run, self.definitions[run.workflow_name]),)
            except BaseException as exc:  # noqa: BLE001 - nothing of it is lost
                call.exc = exc
            run = await self._end_run(entry, call)

    async def _begin_run(self, entry: Entry, journal: Journal | None, *, is_first: bool, is_wake: bool) -> Run | None:
        """Prepare the first run of a task; return None if that failed."""
        try:
            if is_wake:
                with trio.CancelScope(shield=True):
                    await self._record_wake(entry.header)
            if journal is None:
                journal = await self._load(entry)
            return self._prepare(entry, journal, is_first=is_first, is_memo_only=False)
        except BaseException as error:  # noqa: BLE001 - comes out of the user's block
            await self._after_run(entry, (error,))
            return None

    async def _end_run(self, entry: Entry, call: BodyCall) -> Run | None:
        """See to what follows a run; return the one that is to follow it at once, if one is."""
        following: Run | None = None
        fatal: tuple[BaseException, ...] = ()
        # Not in a scope of its own: what can be cancelled of this is shielded there, and mostly there is nothing of it.
        try:
            driven = await call.conclude()
            fatal = driven.fatal
            if driven.needs_memo_only_run:
                following = self._prepare(entry, await self._load(entry), is_first=False, is_memo_only=True)
        except BaseException as error:  # noqa: BLE001 - comes out of the user's block
            # The store failed. Else it is not the body's: memable has a bug. It may not pass silently.
            fatal += (error,)
        if following is None:
            await self._after_run(entry, fatal)
        return following

    async def _load(self, entry: Entry) -> Journal:
        records: Sequence[InstanceRecord] = ()
        with trio.CancelScope(shield=True):
            records = await self.services.store.load(entry.header.number)
        return journal_of(records)

    async def _record_wake(self, header: InstanceHeader) -> None:
        store, clock = self.services.store, self.services.clock
        await store.append(
            (RunStarted(instance=header.number, seq=header.seq + 1, at=clock.now(), session=store.session),)
        )

    def _prepare(self, entry: Entry, journal: Journal, *, is_first: bool, is_memo_only: bool) -> Run:
        is_cancelled = journal.cancel_requested is not None
        is_memo_only = (
            is_memo_only or journal.compensating is not None or (is_cancelled and bool(journal.compensations))
        )
        if not is_memo_only:
            journal.prune()
        run = Run(self.services, self, entry, entry.header, journal, is_first=is_first, is_memo_only=is_memo_only)
        entry.run = run
        # Whoever wants to cancel the instance may have been waiting for its run.
        entry.note_prepared()
        if run.cancel_request is not None and not is_memo_only:
            run.cancel("cancelled")
        if self.is_halted:
            run.cancel("stopping")
        return run

    async def _after_run(self, entry: Entry, fatal: tuple[BaseException, ...]) -> None:
        """See to what follows the last run of a task. Not a checkpoint."""
        header, run = entry.header, entry.run
        parent = await self._find_parent(header)
        entry.run = None
        entry.is_live = False
        entry.ending = None if run is None else run.ending
        self._live.pop(entry, None)
        if self.known_entry(entry.workflow, entry.instance_id) is entry:
            # If it were removed, there might be another of its name already.
            del self._entries[entry.workflow][entry.instance_id]
            self._others[entry.workflow][entry.instance_id] = entry
        self.parking.update(entry)
        if header.status.is_terminal:
            self._note_end(header, parent)
        elif run is not None and run.leaving == "passivated" and not self.is_halted and not entry.busy:
            if header.status is MetadataStatus.SUSPENDED:
                if entry.is_woken:
                    self.start(entry, is_wake=True)
                else:
                    self.set_alarm(header)
            elif header.status is MetadataStatus.RUNNING:
                # A signal came while it was being unwound.
                self.start(entry)
        if not entry.is_live:
            self._active.pop(entry, None)
        # Before anybody looks: a parent counts as active as soon as its child has ended.
        entry.notify()
        self._notify()
        for leaf in fatal:
            self.fail(leaf)

    def rerun(self, entry: Entry) -> None:
        """
        Run an instance again whose run was unwound while it waited.
        """
        if entry.header.status is MetadataStatus.SUSPENDED:
            self.start(entry, is_wake=True)
        elif entry.header.status is MetadataStatus.RUNNING:
            self.start(entry)

    def release(self, entry: Entry) -> None:
        """
        Take note that nobody changes an instance any more; if something woke it meanwhile, it runs now.
        """
        entry.busy = False
        if entry.is_woken and not entry.is_live:
            entry.is_woken = False
            self.wake(entry.header)
        entry.notify()

    async def note_end(self, header: InstanceHeader) -> None:
        """
        Take note that an instance that did not run has become terminal. Not a checkpoint.
        """
        self._note_end(header, await self._find_parent(header))

    def _note_end(self, header: InstanceHeader, parent: InstanceHeader | None) -> None:
        """Take note that an instance has become terminal: a parent may wait for it, and retention begins."""
        alarm = self._alarms.pop(header.number, None)
        if alarm is not None:
            # It was cancelled while it was suspended.
            alarm.cancel()
        if parent is not None and parent.awaits_children:
            self.wake(parent)
        self._on_end(header)

    async def _find_parent(self, header: InstanceHeader) -> InstanceHeader | None:
        name = header.parent_name
        return None if name is None else await self.services.store.find(*name)

    # Waking --------------------------------------------------------------------------------------------------

    def set_alarm(self, header: InstanceHeader) -> None:
        """
        Wake an instance that is suspended without a run when the first of its deadlines has passed.
        """
        if header.wake_at is None:
            return
        known = self._alarms.pop(header.number, None)
        if known is not None:
            known.cancel()
        # The function and not the method, of which there would be one for each: there may be a million.
        self._alarms[header.number] = self.services.timers.arm(header.wake_at, Supervisor._sound_alarm, self, header)

    def _sound_alarm(self, header: InstanceHeader) -> None:
        self._alarms.pop(header.number, None)
        self.wake(header)

    def wake(self, header: InstanceHeader) -> None:
        """
        Let an instance that is recorded as suspended go on: something that it waits for may have ended.
        """
        if header.status is not MetadataStatus.SUSPENDED or header.workflow not in self.definitions:
            return
        entry = self.entry_of(header)
        if entry.busy:
            # Somebody is changing it, and looks after that.
            entry.is_woken = True
        elif not entry.is_live:
            self.start(entry, is_wake=True)
        elif entry.run is not None and entry.run.leaving == "passivated":
            entry.is_woken = True

    # Children ------------------------------------------------------------------------------------------------

    async def find_child(self, workflow: str, instance_id: str) -> Entry | None:
        """
        Return what is kept of an instance whose start is durable. Not a checkpoint.
        """
        header = await self.services.store.find(workflow, instance_id)
        return None if header is None else self.entry_of(header)

    def expect_child(self, started: InstanceStarted) -> Entry:
        """
        Keep a child instance whose start is on its way to the store. To be followed by ``settle_child``.
        """
        entry = self.new_entry(started.workflow, started.instance_id, None)
        entry.busy = True
        return entry

    async def retire_orphan(self, entry: Entry) -> InstanceRetired | None:
        """
        Return the record that removes the child of a parent that is gone, or None if it needs a person to end.

        It is cancelled first if it has not ended.

        To be queued before the next suspension of the caller.
        """
        while True:
            await self.cancel(entry, "its parent is gone", gives_up=True)
            if not entry.busy and not entry.is_live:
                break
            await entry.wait_change(entry.version)
        if not entry.header.status.is_terminal:
            return None
        self.drop_entry(entry)
        at = self.services.clock.now()
        return InstanceRetired(instance=entry.header.number, seq=entry.header.seq + 1, at=at)

    async def settle_child(self, entry: Entry, started: InstanceStarted) -> None:
        """
        Run a child instance, if its start has become durable. Not a checkpoint.
        """
        header = await self.services.store.find(entry.workflow, entry.instance_id)
        entry.busy = False
        if header is not None:
            entry.header = header
            self.start(entry, journal=Journal(started=started, seq=started.seq), is_first=True)
        entry.notify()

    async def load(self, entry: Entry) -> Journal:
        """
        Return the journal of an instance as the store has it. A store that cannot be read stops the engine.

        Raises:
            InstanceNotFoundError: Somebody has removed it meanwhile.
        """
        if entry.is_removed:
            raise InstanceNotFoundError(workflow=entry.workflow, instance_id=entry.instance_id)
        return journal_of(await self.records(entry))

    async def records(self, entry: Entry) -> Sequence[InstanceRecord]:
        """
        Return all records of an instance, oldest first. A store that cannot be read stops the engine.

        Raises:
            InstanceNotFoundError: Somebody has removed it meanwhile.
        """
        try:
            return await self.services.store.load(entry.header.number)
        except StorageError as error:
            self.fail(error)
            raise
        except KeyError:
            # Whoever removes it is about to say so.
            raise InstanceNotFoundError(workflow=entry.workflow, instance_id=entry.instance_id) from None

    async def append(self, *records: InstanceRecord) -> None:
        """
        Make records durable. A store that cannot be written stops the engine.
        """
        try:
            await self.services.store.append(records)
        except StorageError as error:
            self.fail(error)
            raise

    # Cancelling ----------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def cancel_child(self, entry: Entry, reason: str) -> None:
        """
        Cancel a child instance, and wait until it has ended, or cannot by itself.
        """
        await self.cancel(entry, reason, gives_up=True)

    async def cancel(
        self, entry: Entry, reason: str | None, *, caller: Run | None = None, gives_up: bool = False
    ) -> bool | None:
        """
        Cancel an instance, and wait until it has ended.

        Args:
            entry: The instance.
            reason: Why, for people.
            caller: The run in whose body this is called, if it is.
            gives_up: Whether not to wait for an instance that does not run here.

        Raises:
            WorkflowBlockedError: It was asked for, and the instance has become Blocked by it: a compensation is lost.

        Returns:
            Whether this call has cancelled it; None if the engine stopped before.
        """
        requested = False
        while not entry.header.status.is_terminal:
            version, run = entry.version, entry.run
            is_asked = entry.header.cancel_requested if run is None else run.is_ending or run.cancel_request is not None
            if requested and not is_asked and not entry.busy:
                # It was carried out, and somebody has resumed the instance since.
                return True
            if run is not None:
                if not is_asked:
                    requested = True
                    await self._request_cancel(entry.header, run, reason)
                if run is caller:
                    # Its end cannot be waited for inside it. Not shielded, this is as far as the caller gets.
                    await trio.lowlevel.checkpoint()
                    return requested
                if not is_asked:
                    # It may have ended meanwhile.
                    continue
            elif not entry.busy and not entry.is_live and not self.is_halted:
                if not is_asked or self._can_cancel(entry):
                    requested = True if not is_asked else requested
                    await self._begin_cancel_at_rest(entry, reason)
                    continue
                if gives_up:
                    return requested
                # Else it waits for its workflow to be registered.
                await self._raise_if_blocked(entry)
            if self.is_halted and not entry.is_live:
                return None
            await entry.wait_change(version)
        # What had begun to compensate a failure ends as Failed, asked or not.
        return requested and entry.header.status is MetadataStatus.CANCELLED

    async def _begin_cancel_at_rest(self, entry: Entry, reason: str | None) -> None:
        """Cancel an instance that does not run: here, or in a task of the engine's own if that may take its time."""
        header = entry.header
        if header.has_children and not header.has_compensations:
            # Carried out even if the caller is cancelled.
            entry.busy = True
            self.start_work(partial(self._cancel_at_rest, entry, reason))
        else:
            await self._cancel_at_rest(entry, reason)

    async def _raise_if_blocked(self, entry: Entry) -> None:
        """Say why a cancellation does not come to its end, unless somebody has just seen to that."""
        blocked = (await self.load(entry)).blocked
        if blocked is not None and blocked.seq == entry.header.seq:
            raise WorkflowBlockedError(
                workflow=entry.workflow, instance_id=entry.instance_id, key=blocked.path, error=blocked.error
            )

    def _can_cancel(self, entry: Entry) -> bool:
        """Tell whether an instance that does not run can be cancelled: its code is there, or is not needed for it."""
        header = entry.header
        is_blocked = header.status is MetadataStatus.BLOCKED and header.cancel_requested
        return not header.has_compensations or (entry.workflow in self.definitions and not is_blocked)

    @trio.lowlevel.enable_ki_protection
    async def _request_cancel(self, header: InstanceHeader, run: Run, reason: str | None) -> None:
        at = self.services.clock.now()
        request = CancelRequested(instance=header.number, seq=run.ledger.next_seq(), at=at, reason=reason)
        # Set before the record is on its way: however the body ends from here on, its record comes after this one.
        run.cancel_request = request
        if await run.ledger.append((request,)):
            run.cancel("cancelled")

    @trio.lowlevel.enable_ki_protection
    async def _cancel_at_rest(self, entry: Entry, reason: str | None) -> None:
        """Record the request; carry it out at once if nothing of the instance needs to run for it, else run it."""
        header, number = entry.header, entry.header.number
        at, session = self.services.clock.now(), self.services.store.session
        entry.busy = True
        try:
            if not self._can_cancel(entry):
                if not header.cancel_requested:
                    await self.append(CancelRequested(instance=number, seq=header.seq + 1, at=at, reason=reason))
                return
            records: list[InstanceRecord] = []
            seq = header.seq
            if not header.cancel_requested:
                records.append(CancelRequested(instance=number, seq=(seq := seq + 1), at=at, reason=reason))
            if header.has_compensations:
                records.append(RunStarted(instance=number, seq=seq + 1, at=at, session=session))
                await self.append(*records)
                self.start(entry)
                return
            if header.has_children:
                if records:
                    await self.append(*records)
                    records.clear()
                await self._cancel_children(entry)
                if self.is_halted:
                    return
            journal_reason = reason
            if not records:
                request = (await self.load(entry)).cancel_requested
                journal_reason = reason if request is None else request.reason
            ended = InstanceCancelled(instance=number, seq=header.seq + len(records) + 1, at=at, reason=journal_reason)
            await self.append(*records, ended)
            entry.ending = ended
        finally:
            entry.busy = False
            entry.notify()
            if entry.header.status.is_terminal:
                await self.note_end(entry.header)

    async def _cancel_children(self, entry: Entry) -> None:
        await self.cancel_children(await self.load(entry), entry.instance_id, "its parent was cancelled")

    async def cancel_children(self, journal: Journal, instance_id: str, reason: str) -> None:
        """
        Cancel the attached child instances that have not ended, and wait for their end. The store may fail meanwhile.
        """
        async with trio.open_nursery() as nursery:
            for path, workflow in journal.children.items():
                child = await self.find_child(workflow, f"{instance_id}/{path}")
                if child is not None and not child.header.status.is_terminal:
                    nursery.start_soon(self._cancel_quietly, child, reason)

    @trio.lowlevel.enable_ki_protection
    async def _cancel_quietly(self, child: Entry, reason: str) -> None:
        # That the store has failed is known already: the engine stops by it.
        with suppress(StorageError):
            await self.cancel_child(child, reason)

    def update(self, entry: Entry) -> None:
        """
        Take note that the run of an instance has changed.
        """
        if entry.run is not None and entry.run.is_waiting:
            self._active.pop(entry, None)
        else:
            self._active[entry] = None
        self.parking.update(entry)
        self._notify()
        entry.notify()

    # Recovery ------------------------------------------------------------------------------------------------

    def begin_recovery(self, workflows: Collection[str]) -> None:
        """
        Take note that unfinished instances of *workflows* are about to run. ``wait_idle`` waits for that.
        """
        self._recovering.append(workflows)

    @trio.lowlevel.enable_ki_protection
    def end_recovery(self, workflows: Collection[str]) -> None:
        """
        Take note that all of them run.
        """
        self._recovering.remove(workflows)
        self._notify()

    def is_recovering(self, workflow: str) -> bool:
        """
        Whether instances of *workflow* that do not run yet are about to.
        """
        return any(workflow in workflows for workflows in self._recovering)

    def start_own_tasks(self, *tasks: Callable[[], Awaitable[None]]) -> None:
        """
        Start the tasks that serve all runs. They end with ``wait_empty``.
        """

        @trio.lowlevel.enable_ki_protection
        async def serve(task: Callable[[], Awaitable[None]]) -> None:
            scope = trio.CancelScope(shield=True)
            self._own_scopes.append(scope)
            try:
                with scope:
                    if not self._is_serving_over:
                        await task()
            except Exception as error:  # noqa: BLE001 - comes out of the user's block
                self.fail(error)
            finally:
                self._own_scopes.remove(scope)
                self._own_tasks -= 1
                self._notify()

        for task in tasks:
            self._own_tasks += 1
            self.start_task(partial(serve, task))

    def _end_own_tasks(self) -> None:
        """End the tasks that serve all runs: there are none any more."""
        self._is_serving_over = True
        for scope in self._own_scopes:
            scope.cancel()

    @trio.lowlevel.enable_ki_protection
    def start_task(self, task: Callable[[], Awaitable[None]]) -> None:
        """
        Start a task of the engine's own, which ends by itself.
        """
        self._context.run(self._nursery.start_soon, task)

    # Stopping ------------------------------------------------------------------------------------------------

    def fail(self, error: BaseException) -> None:
        """
        Stop everything: *error* is to come out of the user's block.
        """
        if isinstance(error, BaseExceptionGroup):
            for leaf in leaves_of(error):
                self.fail(leaf)
            return
        if isinstance(error, StorageError) and any(isinstance(one, StorageError) for one in self._fatal):
            # Every waiting append fails of the same cause.
            return
        self._fatal.append(error)
        self.is_stopping = True
        self.halt()
        self._block_scope.cancel()

    def halt(self) -> None:
        """
        Tell all runs to unwind, and all who wait for them that they wait in vain.
        """
        self.is_halted = True
        for entry in list(self._live):
            if entry.run is not None:
                entry.run.cancel("stopping")
        for workflow, others in list(self._others.items()):
            for entry in [*self._entries[workflow].values(), *others.values()]:
                entry.notify()

    async def drain(self, timeout_s: float) -> None:
        """
        Let the runs that do not wait come to their end, for so many seconds; then unwind the rest.
        """
        self.is_stopping = True
        if not self.is_halted:
            with trio.move_on_after(timeout_s) as scope:
                while True:
                    await self.wait_idle()
                    await self.parking.flush()
                    # Looked at last, right before all are told to unwind: something may have woken meanwhile.
                    if not (self._active or self._recovering or self.parking.has_unrecorded):
                        break
            if scope.cancelled_caught:
                # What waits is found waiting at the next open, whatever else had no time.
                await self.parking.flush()
        self.halt()
        await self.wait_ended()

    # Interrupted by control-C, what it counts would be waited for for ever.
    @trio.lowlevel.enable_ki_protection
    def start_work(self, work: Callable[[], Awaitable[object]]) -> None:
        """
        Bring something to its end in a task of the engine's own, whatever becomes of the caller.
        """
        self._pending_work += 1

        @trio.lowlevel.enable_ki_protection
        async def bring_to_end() -> None:
            try:
                # It ends when the engine halts; cancelled, it would leave the nursery in a group.
                with trio.CancelScope(shield=True), suppress(StorageError):
                    await work()
            except Exception as error:  # noqa: BLE001 - comes out of the user's block
                self.fail(error)
            finally:
                self._pending_work -= 1
                self._notify()

        self.start_task(bring_to_end)

    def start_drain(self, timeout_s: float) -> None:
        """
        Do what ``drain`` does, in a task of its own.
        """
        self.is_stopping = True
        self.start_work(partial(self.drain, timeout_s))

    async def wait_idle(self) -> None:
        """
        Wait until no run is executing; those that wait do not count. A checkpoint.
        """
        await trio.lowlevel.checkpoint()
        while self._active or self._recovering:
            await self._wait_changed()

    async def wait_ended(self) -> None:
        """
        Wait until there is no run. A checkpoint.
        """
        await trio.lowlevel.checkpoint()
        while self._live or self._recovering:
            await self._wait_changed()

    async def wait_empty(self) -> None:
        """
        Wait until no task is left in the nursery, whatever is cancelled. All runs have been told to unwind.

        Control-C meanwhile is to come out of the user's block, too.
        """
        with trio.CancelScope(shield=True):
            while self._live or self._recovering or self._pending_work or self._own_tasks:
                if not (self._live or self._recovering or self._pending_work):
                    self._end_own_tasks()
                try:
                    await self._wait_changed()
                except KeyboardInterrupt as interrupt:
                    self._fatal.append(interrupt)

    async def _wait_changed(self) -> None:
        if self._changed is None:
            self._changed = trio.Event()
        await self._changed.wait()

    @trio.lowlevel.enable_ki_protection
    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None


def call_body(run: Run, definition: Workflow[Any, Any]) -> Awaitable[object]:
    """
    Set ``run.output``, and call the user's function with its context and input; may raise before it does.
    """
    try:
        # Resolved here, where an annotation that cannot be makes the instance Blocked, not the engine fail.
        run.output = run.services.annotations.return_annotation(definition.fn)
        arguments = _input(run, definition)
    except (MisuseError, TypeMismatchError) as error:
        error.workflow, error.instance_id = run.workflow_name, run.instance_id
        raise
    return call_unprotected(definition.fn, Context(run), *arguments)


def _input(run: Run, definition: Workflow[Any, Any]) -> tuple[object, ...]:
    services = run.services
    try:
        arguments = services.codec.decode_arguments(
            run.journal.started.input,
            lambda count: services.annotations.parameter_annotations(definition.fn, True, count),
        )
        definition.check_arguments(arguments)
    except (MisuseError, TypeMismatchError):
        # Both are TypeErrors, too, and say better what is wrong.
        raise
    except TypeError as error:
        raise MisuseError(
            problem=f"the recorded input does not fit the signature {definition.signature} ({error}); give new "
            "parameters a default, and keep the old ones",
        ) from None
    return arguments
