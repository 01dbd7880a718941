"""
Keeps the runs of one engine: starts, counts and stops them, and collects what none of them may keep to itself.
"""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any
from weakref import WeakValueDictionary

import trio

from ._context import Context
from ._definition import Workflow
from ._entry import Entry
from ._error_info import describe_exception
from ._errors import MisuseError, RecoveryLimitError, StorageError, TypeMismatchError
from ._journal import InstanceHeader, Journal, journal_of
from ._records import InstanceBlocked, InstanceRecord, RunStarted
from ._run import Run, call_unprotected
from ._services import Services
from ._states import MetadataStatus

logger = logging.getLogger("memable")

#: Recovered instances are recorded as running in batches of this size, so that no single record holds up the rest.
RECOVERY_BATCH = 1_000


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
        max_recoveries: int,
    ) -> None:
        """
        Begin without runs.

        Args:
            services: What runs use.
            nursery: Each run is a child of it.
            block_scope: Around the user's block: cancelled when something fatal happens.
            fatal: Collects what is to come out of the user's block.
            max_recoveries: How many crashes in a row an instance may be running at before it is Blocked.
        """
        self.services: Services = services
        self.definitions: dict[str, Workflow[Any, Any]] = {}
        self.is_stopping: bool = False
        "No new instances are accepted."
        self.is_halted: bool = False
        "All runs have been told to unwind."
        self._nursery = nursery
        self._block_scope = block_scope
        self._fatal = fatal
        self._max_recoveries = max_recoveries
        self._entries: WeakValueDictionary[tuple[str, str], Entry] = WeakValueDictionary()
        self._live: set[Entry] = set()
        self._active: set[Entry] = set()
        "The live ones that do not wait."
        self._recovering: list[Collection[str]] = []
        "For each recovery under way, the names of its workflows."
        self._pending_drains = 0
        self._changed: trio.Event | None = None
        # Runs see the context variables of whoever opened the engine, recovered or not: the caller of invoke may be
        # inside a step, or long gone.
        self._context = contextvars.copy_context()

    # Entries -------------------------------------------------------------------------------------------------

    def known_entry(self, workflow: str, instance_id: str) -> Entry | None:
        """
        Return what is kept in memory of an instance, if anything is.
        """
        return self._entries.get((workflow, instance_id))

    def new_entry(self, workflow: str, instance_id: str, header: InstanceHeader | None) -> Entry:
        """
        Begin to keep an instance in memory, for as long as somebody refers to it.
        """
        entry = Entry(workflow, instance_id, header)
        self._entries[workflow, instance_id] = entry
        return entry

    def entry_of(self, header: InstanceHeader) -> Entry:
        """
        Return what is kept in memory of a recorded instance.
        """
        known = self.known_entry(header.workflow, header.instance_id)
        return self.new_entry(header.workflow, header.instance_id, header) if known is None else known

    def is_live(self, entry: Entry) -> bool:
        """
        Whether the instance runs here, or is about to.
        """
        return entry in self._live

    # Runs ----------------------------------------------------------------------------------------------------

    def start(self, entry: Entry, *, journal: Journal | None = None, is_first: bool = False) -> None:
        """
        Start a run in a task of its own. Not once the runs have been told to unwind: it is for the next open then.

        Args:
            entry: The instance; recorded as running.
            journal: What is recorded of it; loaded if left out.
            is_first: Whether it has never run before.
        """
        if self.is_halted:
            return
        entry.ending = None
        self._live.add(entry)
        self._active.add(entry)
        self._context.run(self._nursery.start_soon, self._run, entry, journal, is_first)

    @trio.lowlevel.enable_ki_protection
    async def _run(self, entry: Entry, journal: Journal | None, is_first: bool) -> None:
        fatal: list[BaseException] = []
        run: Run | None = None
        # The engine alone decides when a run is unwound, and lets it bring to its end what was begun.
        with trio.CancelScope(shield=True):
            try:
                header = entry.header
                assert header is not None
                if journal is None:
                    journal = journal_of(await self.services.store.load(header.number))
                definition = self.definitions[entry.workflow]

                def on_change() -> None:
                    self._on_run_change(entry)

                run = Run(self.services, header, journal, is_first=is_first, on_change=on_change)
                entry.run = run
                # Whoever wants to cancel the instance may have been waiting for its run.
                entry.notify()
                if run.cancel_request is not None:
                    run.cancel("cancelled")
                if self.is_halted:
                    run.cancel("stopping")
                fatal = await run.drive(self._body(definition, run))
            except Exception as error:  # noqa: BLE001 - comes out of the user's block
                # Not the body's: the store could not be read, or memable has a bug. Neither may pass silently.
                fatal = [error]
            finally:
                entry.run = None
                entry.ending = None if run is None else run.ending
                self._live.discard(entry)
                self._active.discard(entry)
                self._notify()
                entry.notify()
        for leaf in fatal:
            self.fail(leaf)

    def _body(self, definition: Workflow[Any, Any], run: Run) -> Callable[[], Awaitable[object]]:
        annotations = self.services.annotations

        async def body() -> object:
            try:
                # Resolved here, where an annotation that cannot be makes the instance Blocked, not the engine fail.
                run.output = annotations.return_annotation(definition.fn)
                arguments = self._input(definition, run)
            except (MisuseError, TypeMismatchError) as error:
                error.workflow, error.instance_id = run.workflow_name, run.instance_id
                raise
            return await call_unprotected(definition.fn, Context(run), *arguments)

        return body

    def _input(self, definition: Workflow[Any, Any], run: Run) -> tuple[object, ...]:
        started = run.journal.started
        try:
            arguments = self.services.codec.decode_arguments(
                started.input,
                lambda count: self.services.annotations.parameter_annotations(definition.fn, True, count),
            )
            definition.signature.bind(*arguments)
        except (MisuseError, TypeMismatchError):
            # Both are TypeErrors, too, and say better what is wrong.
            raise
        except TypeError as error:
            raise MisuseError(
                problem=f"the recorded input does not fit the signature {definition.signature} ({error}); give new "
                "parameters a default, and keep the old ones",
            ) from None
        return arguments

    def _on_run_change(self, entry: Entry) -> None:
        run = entry.run
        if run is not None and run.is_waiting:
            self._active.discard(entry)
        else:
            self._active.add(entry)
        self._notify()
        entry.notify()

    # Recovery ------------------------------------------------------------------------------------------------

    def begin_recovery(self, workflows: Collection[str]) -> Callable[[], Awaitable[None]]:
        """
        Return a function that runs what is recorded as unfinished of *workflows*. ``wait_idle`` waits for it.
        """
        self._recovering.append(workflows)

        async def recover() -> None:
            try:
                # It only waits for the store; cancelled, it would leave the nursery in a group.
                with trio.CancelScope(shield=True):
                    await self._recover(workflows)
            except Exception as error:  # noqa: BLE001 - comes out of the user's block
                self.fail(error)
            finally:
                self._recovering.remove(workflows)
                self._notify()

        return recover

    def start_recovery(self, workflows: Collection[str]) -> None:
        """
        Do what ``begin_recovery`` is for, in a task of its own.
        """
        self._context.run(self._nursery.start_soon, self.begin_recovery(workflows))

    def is_recovering(self, workflow: str) -> bool:
        """
        Whether instances of *workflow* that do not run yet are about to.
        """
        return any(workflow in workflows for workflows in self._recovering)

    async def _recover(self, workflows: Collection[str]) -> None:
        unfinished = [
            header
            for header in await self.services.store.headers()
            if header.workflow in workflows and self._is_unfinished(header)
        ]
        for start in range(0, len(unfinished), RECOVERY_BATCH):
            if self.is_halted:
                return
            await self._recover_batch(unfinished[start : start + RECOVERY_BATCH])

    def _is_unfinished(self, header: InstanceHeader) -> bool:
        # What ran in this session is none of recovery's business: it runs, or has become Blocked here.
        is_left_over = header.session != self.services.store.session
        return is_left_over and header.status in _UNFINISHED and not header.needs_resume

    async def _recover_batch(self, headers: Iterable[InstanceHeader]) -> None:
        entries: list[Entry] = []
        records: list[InstanceRecord] = []
        try:
            for header in headers:
                entry = self.entry_of(header)
                while entry.busy:
                    # Somebody resumes or cancels it, which may yet come to nothing.
                    await entry.wait_change(entry.version)
                if self._is_unfinished(header):
                    entry.busy = True
                    entries.append(entry)
                    records.extend(self._recovery_records(header))
            if records:
                await self.services.store.append(records)
        finally:
            for entry in entries:
                entry.busy = False
                entry.notify()
        for entry in entries:
            assert entry.header is not None
            if entry.header.status is MetadataStatus.RUNNING:
                self.start(entry)

    def _recovery_records(self, header: InstanceHeader) -> list[InstanceRecord]:
        store = self.services.store
        at = self.services.clock.now()
        was_running = header.status is MetadataStatus.RUNNING and header.session == store.session - 1
        after_crash = store.after_crash and was_running
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
        # To carry out a cancellation, the body is not run.
        if recoveries >= self._max_recoveries and after_crash and not header.cancel_requested:
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

    # Stopping ------------------------------------------------------------------------------------------------

    def fail(self, error: BaseException) -> None:
        """
        Stop everything: *error* is to come out of the user's block.
        """
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
        for entry in self._live:
            if entry.run is not None:
                entry.run.cancel("stopping")
        for entry in list(self._entries.values()):
            entry.notify()

    async def drain(self, timeout_s: float) -> None:
        """
        Let the runs that do not wait come to their end, for so many seconds; then unwind the rest.
        """
        self.is_stopping = True
        if not self.is_halted:
            with trio.move_on_after(timeout_s):
                await self.wait_idle()
        self.halt()
        await self.wait_ended()

    def start_drain(self, timeout_s: float) -> None:
        """
        Do what ``drain`` does, in a task of its own.
        """
        self.is_stopping = True
        self._pending_drains += 1

        async def drain() -> None:
            try:
                # Runs that are unwound end it in time; cancelled, it would leave the nursery in a group.
                with trio.CancelScope(shield=True):
                    await self.drain(timeout_s)
            finally:
                self._pending_drains -= 1
                self._notify()

        self._context.run(self._nursery.start_soon, drain)

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
            while self._live or self._recovering or self._pending_drains:
                try:
                    await self._wait_changed()
                except KeyboardInterrupt as interrupt:
                    self._fatal.append(interrupt)

    async def _wait_changed(self) -> None:
        if self._changed is None:
            self._changed = trio.Event()
        await self._changed.wait()

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None


_UNFINISHED = frozenset((MetadataStatus.RUNNING, MetadataStatus.BLOCKED))
