"""
What hosts call: start, resume, cancel and look at instances.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal, NoReturn, ParamSpec, TypeVar, TypeVarTuple, overload

import trio

from ._catalog import Catalog
from ._context import Context
from ._definition import Workflow
from ._encoded import Encoded
from ._entry import Entry
from ._errors import (
    DuplicateWorkflowError,
    EngineStoppedError,
    InstanceBusyError,
    InstanceConflictError,
    InstanceNotFoundError,
    MemableError,
    MisuseError,
    SerializationError,
    StorageError,
    WorkflowNotFoundError,
)
from ._history import HistoryEntry, history_of
from ._ids import IdMaker
from ._instances import Instances
from ._invocation import Invocation, StatusStream
from ._journal import Journal
from ._keys import check_instance_id, check_key, check_path
from ._numbers import is_count, is_number
from ._plan import Plan
from ._planning import Plans
from ._records import InstanceStarted
from ._recovering import Recovery
from ._removing import Removals
from ._resuming import Resumptions
from ._run import Run, current_run
from ._services import Services
from ._signalling import Answers
from ._states import MetadataStatus, WorkflowMetadata, WorkflowState
from ._supervisor import Supervisor
from ._suspend_point import SuspendPoint

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Args = TypeVarTuple("Args")

_NOTHING: Final = object()


class Engine:
    """
    Runs workflows over one store. Made by ``open_engine``; valid inside its block.

    Every method that may touch the store is a checkpoint. Each raises ``EngineStoppedError`` once the block has been
    left, and ``InstanceNotFoundError`` for an instance that the store does not have (``metadata`` aside). The call in
    which the store fails raises ``StorageError``; the engine has stopped then.
    """

    def __init__(
        self,
        services: Services,
        supervisor: Supervisor,
        recovery: Recovery,
        removals: Removals,
        *,
        shutdown_timeout: float,
    ) -> None:
        """
        Bind an engine to its parts. Made by ``open_engine`` only.
        """
        self._services = services
        self._supervisor = supervisor
        self._shutdown_timeout = shutdown_timeout
        self._recovery = recovery
        self._instances = Instances(services, supervisor)
        self._catalog = Catalog(services, supervisor, self._instances)
        self._answers = Answers(services, supervisor, self._instances)
        self._resumptions = Resumptions(services, supervisor, self._instances)
        self._removals = removals
        self._plans = Plans(services, supervisor, self._instances)
        self._ids = IdMaker(services.randbits)

    # Definitions ---------------------------------------------------------------------------------------------

    def register(self, workflow: Workflow[..., Any]) -> None:
        """
        Add a definition and schedule what is recorded as unfinished of it; ``wait_all`` waits for that, too.

        Args:
            workflow: Made by ``@memable.workflow``. The same one again does nothing.

        Raises:
            MisuseError: *workflow* was not made by ``@memable.workflow``.
            DuplicateWorkflowError: A different definition of this name is registered.
            EngineStoppedError: The engine has stopped.
        """
        self._refuse_stopped("engine.register")
        if self.add_definition(workflow):
            self._recovery.start((workflow.name,))

    def add_definition(self, workflow: Workflow[..., Any]) -> bool:
        """
        Add a definition without scheduling anything; return whether it is new.

        Raises:
            MisuseError: *workflow* was not made by ``@memable.workflow``.
            DuplicateWorkflowError: A different definition of this name is registered.
        """
        if not isinstance(workflow, Workflow):
            raise MisuseError(problem=f"{workflow!r} is not a workflow; decorate its function with @memable.workflow")
        known = self._supervisor.definitions.get(workflow.name)
        if known is None:
            self._supervisor.definitions[workflow.name] = workflow
        elif known is not workflow:
            raise DuplicateWorkflowError(workflow=workflow.name)
        return known is None

    # Starting ------------------------------------------------------------------------------------------------

    @overload
    async def invoke(
        self,
        workflow: Callable[[Context, *Args], Awaitable[R]],
        *args: *Args,
        instance_id: str | None = None,
    ) -> Invocation[R]: ...

    @overload
    async def invoke(self, workflow: str, *args: object, instance_id: str | None = None) -> Invocation[Any]: ...

    async def invoke(
        self, workflow: Callable[..., Awaitable[Any]] | str, *args: object, instance_id: str | None = None
    ) -> Invocation[Any]:
        """
        Start an instance, or find the one that was started with this id and input before. A checkpoint.

        Args:
            workflow: A registered workflow, or its name.
            *args: Its arguments, without the context.
            instance_id: Names the instance, and makes starting it idempotent: however often it is called, there is
                one instance, until retention removes it. Left out, memable makes one that is unique and sorts by time.

        Returns:
            A handle. The instance may have ended long ago.

        Raises:
            InstanceConflictError: The instance exists with another input (compared as canonical JSON).
            TypeError: The arguments do not fit the workflow's signature. Nothing is written.
            SerializationError: An argument is not of its annotated type. Nothing is written.
            InvalidKeyError: The id breaks the rule for ids.
            WorkflowNotFoundError: The workflow is not registered.
            WorkflowCodeError: Called inside a workflow's body without an id: it would start another one at each run.
            EngineStoppedError: The engine is stopping.

        Durability:
            The start is durable when it returns.

        Cancellation:
            Acts before the start is written, or after it is durable: then the instance runs all the same.
        """
        self._plans.refuse_inside("engine.invoke")
        self._refuse_anonymous(instance_id)
        # To start one is a checkpoint without it.
        await trio.lowlevel.checkpoint_if_cancelled()
        self._refuse_stopped("engine.invoke")
        definition = self._definition(workflow)
        given = self._encode_input(definition, args, instance_id)
        if instance_id is None:
            key = self._ids.make(self._services.clock.now())
        else:
            key = check_key("instance id", instance_id)
            while (found := await self._instances.find_entry(definition.name, key)) is not None:
                await trio.lowlevel.checkpoint()
                # If somebody removes it meanwhile, its id is free again.
                with contextlib.suppress(InstanceNotFoundError):
                    await self._refuse_other_input(definition, found, given)
                    return Invocation(self._instances, found)
            self._refuse_stopped("engine.invoke")
        entry = self._supervisor.new_entry(definition.name, key, None)
        await self._start(entry, given)
        await trio.lowlevel.checkpoint_if_cancelled()
        return Invocation(self._instances, entry)

    @trio.lowlevel.enable_ki_protection
    async def _start(self, entry: Entry, given: Encoded) -> None:
        """Make a new instance durable and run it. Not a checkpoint for cancellation."""
        store = self._services.store
        entry.busy = True
        try:
            started = InstanceStarted(
                instance=await store.allocate_number(),
                seq=1,
                at=self._services.clock.now(),
                session=store.session,
                workflow=entry.workflow,
                instance_id=entry.instance_id,
                input=given,
            )
            try:
                # Not by way of other functions: what waits for the disk is to be small, there may be thousands.
                await store.append((started,))
            except StorageError as error:
                self._supervisor.fail(error)
                raise
            header = await store.find(entry.workflow, entry.instance_id)
            assert header is not None
            entry.header = header
            self._supervisor.start(entry, journal=Journal(started=started, seq=started.seq), is_first=True)
        finally:
            entry.busy = False
            entry.notify()

    def _encode_input(
        self, definition: Workflow[..., Any], args: tuple[object, ...], instance_id: str | None
    ) -> Encoded:
        try:
            definition.check_arguments(args)
        except TypeError as error:
            where = f"workflow {definition.name!r}" + ("" if instance_id is None else f", instance {instance_id!r}")
            raise TypeError(f"{where}: {error}; its signature is {definition.signature}") from None
        annotations = self._services.annotations.parameter_annotations(definition.fn, True, len(args))
        try:
            return self._services.codec.encode_arguments(args, annotations)
        except SerializationError as error:
            error.workflow, error.instance_id = definition.name, instance_id
            raise

    async def _refuse_other_input(self, definition: Workflow[..., Any], entry: Entry, given: Encoded) -> None:
        recorded = (await self._instances.journal(entry)).started.input

        def annotations_for(count: int) -> Sequence[Any]:
            return self._services.annotations.parameter_annotations(definition.fn, True, count)

        if not self._services.codec.same_arguments(recorded, given, annotations_for):
            raise InstanceConflictError(workflow=entry.workflow, instance_id=entry.instance_id)

    def _refuse_anonymous(self, instance_id: str | None) -> None:
        run = self._calling_run()
        if instance_id is None and run is not None:
            problem = (
                "engine.invoke without an instance_id inside a body would start another instance at each run; give an "
                "instance_id, or use ctx.start(key, ...)"
            )
            raise run.blame(MisuseError(problem=problem, workflow=run.workflow_name, instance_id=run.instance_id))

    @overload
    async def get(self, workflow: Workflow[P, R], instance_id: str) -> Invocation[R]: ...

    @overload
    async def get(self, workflow: str, instance_id: str) -> Invocation[Any]: ...

    async def get(self, workflow: Any, instance_id: str) -> Invocation[Any]:
        """
        Return a handle on an existing instance. A checkpoint.

        Raises:
            InstanceNotFoundError: The store has no such instance.
        """
        await trio.lowlevel.checkpoint()
        return Invocation(self._instances, await self._instances.entry(_name_of(workflow), instance_id))

    # Resuming ------------------------------------------------------------------------------------------------

    @overload
    async def resume(
        self, workflow: Workflow[P, R], instance_id: str, *, forget: Iterable[str] = (), anew: bool = False
    ) -> Invocation[R]: ...

    @overload
    async def resume(
        self, workflow: str, instance_id: str, *, forget: Iterable[str] = (), anew: bool = False
    ) -> Invocation[Any]: ...

    async def resume(
        self,
        workflow: Any,
        instance_id: str,
        *,
        forget: Iterable[str] = (),
        anew: bool = False,
    ) -> Invocation[Any]:
        """
        Run a Failed, Cancelled, Blocked or interrupted instance again over its memos. A checkpoint.

        The recorded failures that left the body are cleared, and their steps get a fresh retry budget. An instance
        that executes, or is Completed with nothing to forget, is left as it is.

        Args:
            workflow: A registered workflow, or its name.
            instance_id: The instance's id.
            forget: Keys or paths whose memos are dropped first, to run those steps again, as a new generation.
            anew: Drop all memos, as a new generation.

        Returns:
            A handle; ``state`` is the new run's.

        Raises:
            UnknownKeyError: *forget* names something that is not recorded. Nothing is changed.
            InstanceBusyError: It executes, so nothing can be forgotten now.
            InstanceCompensatedError: Its compensations have begun; only ``anew=True`` runs it again.
            InstanceNotFoundError: The store has no such instance.
            WorkflowNotFoundError: The workflow is not registered.
            EngineStoppedError: The engine is stopping.

        Durability:
            The request is durable when it returns: a crash after that resumes it all the same.

        Cancellation:
            Acts before the request is written, or after it is durable.
        """
        forgotten = _paths(forget)
        await trio.lowlevel.checkpoint()
        self._refuse_halted("engine.resume", workflow, instance_id)
        definition = self._definition(workflow)
        entry = await self._instances.entry(definition.name, instance_id)
        await self._resumptions.resume(entry, forgotten, anew=anew)
        await trio.lowlevel.checkpoint_if_cancelled()
        return Invocation(self._instances, entry)

    # Answering -----------------------------------------------------------------------------------------------

    @overload
    async def signal(
        self,
        workflow: Workflow[P, R],
        instance_id: str,
        point: SuspendPoint[T],
        payload: T,
        *,
        within: str | None = None,
        early: Literal["reject", "keep"] = "reject",
    ) -> Invocation[R]: ...

    @overload
    async def signal(
        self,
        workflow: str,
        instance_id: str,
        point: SuspendPoint[T],
        payload: T,
        *,
        within: str | None = None,
        early: Literal["reject", "keep"] = "reject",
    ) -> Invocation[Any]: ...

    async def signal(
        self,
        workflow: Any,
        instance_id: str,
        point: SuspendPoint[T],
        payload: T,
        *,
        within: str | None = None,
        early: Literal["reject", "keep"] = "reject",
    ) -> Invocation[Any]:
        """
        Deliver *payload* to a suspend point at which an instance waits. A checkpoint.

        Of several signals and the timeout, exactly one wins.

        Args:
            workflow: A workflow, or its name; it need not be registered.
            instance_id: The instance's id.
            point: Where the instance waits; as the body gives it to ``ctx.suspend``.
            payload: What ``ctx.suspend`` returns. Of the point's type.
            within: For a wait inside a fan-out, the path of the child, for example ``"fetch:v1/3"``.
            early: ``"reject"`` refuses a signal to a point at which the instance does not wait; ``"keep"`` stores one
                for when it gets there.

        Returns:
            A handle on the instance.

        Raises:
            SignalRejectedError: The instance does not wait there, or has ended.
            SignalSupersededError: Another signal or the timeout was first, or one is kept already.
            TypeMismatchError: *payload* is not of the point's type. The instance is unharmed.
            InstanceNotFoundError: The store has no such instance.
            EngineStoppedError: The engine stopped before it could be delivered.

        Durability:
            The signal is durable when it returns: a crash after that does not lose it.

        Cancellation:
            Acts before the signal is written, or after it is durable.
        """
        given: object = point
        if not isinstance(given, SuspendPoint):
            raise MisuseError(problem=f"{point!r} is not a suspend point; give the memable.SuspendPoint of the body")
        if early not in ("reject", "keep"):
            raise MisuseError(problem=f"early is {early!r}; give 'reject' or 'keep'")
        path = None if within is None else check_path(within)
        # To deliver it is a checkpoint without it.
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self._refuse_halted("engine.signal", workflow, instance_id)
            entry = await self._instances.entry(_name_of(workflow), instance_id)
            await self._answers.signal(entry, point, payload, within=path, keeps=early == "keep")
        except MemableError:
            # Whoever tries again and again lets others run.
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise
        await trio.lowlevel.checkpoint_if_cancelled()
        return Invocation(self._instances, entry)

    @overload
    async def settle(
        self, workflow: Workflow[..., Any] | str, instance_id: str, key: str, *, value: object
    ) -> None: ...

    @overload
    async def settle(
        self, workflow: Workflow[..., Any] | str, instance_id: str, key: str, *, error: Exception
    ) -> None: ...

    @overload
    async def settle(
        self, workflow: Workflow[..., Any] | str, instance_id: str, key: str, *, rerun: Literal[True]
    ) -> None: ...

    async def settle(
        self,
        workflow: Workflow[..., Any] | str,
        instance_id: str,
        key: str,
        *,
        value: object = _NOTHING,
        error: Exception | None = None,
        rerun: bool = False,
    ) -> None:
        """
        Answer a step with ``once=True`` whose outcome is unknown, and let its instance go on. A checkpoint.

        Args:
            workflow: A workflow, or its name.
            instance_id: The instance's id.
            key: The step's key or path.
            value: What the effect returned: it did happen.
            error: The exception that it failed with.
            rerun: True if it did not happen: it is run.

        Raises:
            SignalRejectedError: The outcome of that step is not unknown.
            TypeMismatchError: *value* is of another type than the step's. Nothing is changed.
            MisuseError: Not exactly one of *value*, *error* and *rerun* is given.
            InstanceNotFoundError: The store has no such instance.
            EngineStoppedError: The engine is stopping.

        Durability:
            The answer is durable when it returns.

        Cancellation:
            Acts before the answer is written, or after it is durable.
        """
        answers = {
            kind: answer
            for kind, answer, is_given in (
                ("value", value, value is not _NOTHING),
                ("error", error, error is not None),
                ("rerun", rerun, rerun),
            )
            if is_given
        }
        if len(answers) != 1:
            raise MisuseError(problem="settle takes exactly one of value=..., error=... and rerun=True")
        path = check_path(key)
        await trio.lowlevel.checkpoint()
        self._refuse_halted("engine.settle", workflow, instance_id)
        entry = await self._instances.entry(_name_of(workflow), instance_id)
        ((kind, answer),) = answers.items()
        await self._answers.settle(entry, path, answer, kind=kind)
        await trio.lowlevel.checkpoint_if_cancelled()

    # Cancelling ----------------------------------------------------------------------------------------------

    async def cancel(self, workflow: Workflow[..., Any] | str, instance_id: str, *, reason: str | None = None) -> bool:
        """
        Cancel an instance, and wait until it has ended. A checkpoint.

        A running body is cancelled through its cancel scope; what it returns or raises then does not matter.

        Args:
            workflow: A workflow, or its name; it need not be registered.
            instance_id: The instance's id.
            reason: Why, for people.

        Returns:
            True if this call cancelled it; False if it had ended, or somebody else cancelled it.

        Raises:
            InstanceNotFoundError: The store has no such instance.
            WorkflowBlockedError: It cannot end by itself: a compensation is lost, say. The request stands, and is
                carried out once the code is mended.
            EngineStoppedError: The engine stopped before the instance had ended.

        Durability:
            The request is durable before anything is cancelled, and is carried out even if the process dies.

        Cancellation:
            Acts before the request is written, or while waiting for the end: it is carried out all the same.
        """
        if reason is not None:
            if not isinstance(reason, str):
                raise MisuseError(problem=f"the reason of a cancellation is a str, not {type(reason).__name__}")
            # Of a subclass of str the text that it holds is recorded.
            reason = str.__str__(reason)
        await trio.lowlevel.checkpoint()
        self._refuse_halted("engine.cancel", workflow, instance_id)
        entry = await self._instances.entry(_name_of(workflow), instance_id)
        cancelled = await self._supervisor.cancel(entry, reason, caller=self._calling_run())
        if cancelled is None:
            raise EngineStoppedError(operation=_called("engine.cancel", workflow, instance_id))
        await trio.lowlevel.checkpoint_if_cancelled()
        return cancelled

    async def delete(self, workflow: Workflow[..., Any] | str, instance_id: str) -> None:
        """
        Remove an instance that has ended, and the children that it waited for, now. A checkpoint.

        Raises:
            InstanceBusyError: It has not ended; or it is a child, and its parent has not.
            InstanceNotFoundError: The store has no such instance.
            EngineStoppedError: The engine is stopping.

        Durability:
            It is gone for good when this returns; its id may be used again.

        Cancellation:
            Acts before the removal is written, or after it is durable.
        """
        await trio.lowlevel.checkpoint()
        self._refuse_halted("engine.delete", workflow, instance_id)
        entry = await self._instances.entry(_name_of(workflow), instance_id)
        if not await self._removals.remove(entry):
            has_ended = entry.header.status.is_terminal
            raise InstanceBusyError(
                workflow=entry.workflow,
                instance_id=entry.instance_id,
                operation="deleting it",
                reason="its parent has not ended" if has_ended else "it has not ended",
            )
        await trio.lowlevel.checkpoint_if_cancelled()

    # Looking -------------------------------------------------------------------------------------------------

    async def state(self, workflow: Workflow[..., Any] | str, instance_id: str) -> WorkflowState:
        """
        Return the live state of an instance, else the recorded one. A checkpoint.
        """
        await trio.lowlevel.checkpoint()
        return await self._instances.entry_state(await self._instances.entry(_name_of(workflow), instance_id))

    async def metadata(self, workflow: Workflow[..., Any] | str, instance_id: str) -> WorkflowMetadata | None:
        """
        Return what is recorded of an instance, or None if the store has no such instance. A checkpoint.
        """
        await trio.lowlevel.checkpoint()
        self._instances.refuse_closed("engine.metadata")
        header = await self._services.store.find(_name_of(workflow), check_instance_id(instance_id))
        return None if header is None else self._catalog.metadata(header)

    async def list_instances(
        self,
        workflow: Workflow[..., Any] | str | None = None,
        *,
        status: MetadataStatus | None = None,
        limit: int | None = None,
        after: WorkflowMetadata | None = None,
    ) -> list[WorkflowMetadata]:
        """
        Return what is recorded of many instances, in the order of their creation. A checkpoint.

        Others get their turn while a long list is made, so instances change meanwhile. One that exists, and matches,
        from the call to its end is listed, once, as it is at some moment in between. One that begins, is removed, or
        changes between matching and not, may be or not.

        Args:
            workflow: Only instances of this workflow.
            status: Only instances with this status.
            limit: At most so many.
            after: The last one of the page before.

        Raises:
            MisuseError: *limit*, *status* or *after* is not what it should be.
            EngineStoppedError: The engine's block has been left, be it meanwhile.
        """
        if limit is not None and not is_count(limit):
            raise MisuseError(problem=f"limit is {limit!r}; give a number of instances, at least 0, or None for all")
        if status is not None and not isinstance(status, MetadataStatus):
            raise MisuseError(problem=f"status is {status!r}; give a memable.MetadataStatus, or None for all")
        if after is not None and not isinstance(after, WorkflowMetadata):
            raise MisuseError(problem=f"after is {after!r}; give the last memable.WorkflowMetadata of the page before")
        await trio.lowlevel.checkpoint()
        self._instances.refuse_closed("engine.list_instances")
        name = None if workflow is None else _name_of(workflow)
        number = 0 if after is None else after.number
        return await self._catalog.find(name, status, after=number, limit=limit)

    async def history(self, workflow: Workflow[..., Any] | str, instance_id: str) -> list[HistoryEntry]:
        """
        Return what has happened to an instance, for people, in the order in which it began. A checkpoint.
        """
        await trio.lowlevel.checkpoint()
        entry = await self._instances.entry(_name_of(workflow), instance_id)
        return history_of(await self._instances.records(entry), self._services.aliases)

    async def plan(
        self,
        workflow: Workflow[..., Any] | str,
        instance_id: str,
        *,
        assume: Mapping[str, object] = {},
        at: datetime | None = None,
    ) -> Plan:
        """
        Tell what the present code would do with what is recorded of an instance, without doing it. A checkpoint.

        The body runs over the memos, from the top. No step, probe or compensation is executed, no child instance
        started, nothing recorded, and the instance itself goes on undisturbed, or stays as it is. Code outside steps
        does run. One that has ended is planned as if it ran again.

        Args:
            workflow: A workflow, or the name of a registered one. One that is not registered, such as the next
                version of one that is, is planned in its place.
            instance_id: The instance's id.
            assume: Values by key or path that steps, waits and calls are to return, to see what lies behind them.
            at: As of when deadlines have passed, aware; now if left out.

        Returns:
            What is served from memos, what would run, what the code does not ask for any more, and what it disagrees
            with the journal about. ``print(plan)`` shows it.

        Raises:
            InstanceNotFoundError: The store has no such instance.
            WorkflowNotFoundError: No workflow of that name is registered.
            TypeMismatchError: A value in *assume* is not of the type that the code asks for.
            MisuseError: *assume* is no mapping of paths, or *at* no aware datetime.
            RuntimeError: Called inside a workflow's body, which a plan would run again.
            EngineStoppedError: The engine has stopped.

        Cancellation:
            Ends the plan, and leaves nothing behind.
        """
        now = _check_plan(assume, at)
        self._plans.refuse_inside("engine.plan")
        if self._calling_run() is not None:
            raise RuntimeError("engine.plan inside a workflow's body would run bodies again and again; call it outside")
        name = _name_of(workflow)
        await trio.lowlevel.checkpoint()
        self._refuse_halted("engine.plan", workflow, instance_id)
        definition = workflow if isinstance(workflow, Workflow) else self._definition(name)
        entry = await self._instances.entry(name, instance_id)
        return await self._plans.plan(entry, definition, assume, now)

    def subscribe(self, workflow: Workflow[..., Any] | str, instance_id: str) -> StatusStream:
        """
        Return the states of an instance, the current one at once and then each change: see ``StatusStream``.
        """
        return StatusStream(self._instances, _name_of(workflow), check_instance_id(instance_id))

    # Stopping ------------------------------------------------------------------------------------------------

    async def wait_all(self) -> None:
        """
        Wait until no run is executing; runs that wait do not count. A checkpoint.

        Raises:
            RuntimeError: Called inside a workflow's body, which would wait for itself.
        """
        self._plans.refuse_inside("engine.wait_all")
        if self._calling_run() is not None:
            raise RuntimeError("engine.wait_all inside a workflow's body would wait for itself; call it outside")
        await self._supervisor.wait_idle()

    async def stop(self, timeout: float | None = None) -> None:
        """
        Do early what leaving the block does. A checkpoint.

        No new instances are accepted; runs that do not wait come to their end; after *timeout* they are cancelled and
        stay Running, to be resumed at the next open. Inside a body it only begins that. May be called again.

        Args:
            timeout: Seconds; the engine's ``shutdown_timeout`` if left out.

        Raises:
            ValueError: *timeout* is negative or NaN.
        """
        self._plans.refuse_inside("engine.stop")
        timeout_s = self._shutdown_timeout if timeout is None else check_timeout("timeout", timeout)
        if self._calling_run() is not None:
            self._supervisor.start_drain(timeout_s)
            await trio.lowlevel.checkpoint()
        else:
            await self._supervisor.drain(timeout_s)

    def close(self) -> None:
        """
        Refuse everything from now on: the block has been left.
        """
        self._instances.close()

    def _calling_run(self) -> Run | None:
        """Return the run of this engine inside whose body, or a step of it, the current task was started."""
        run = current_run.get()
        return run if run is not None and run.services is self._services and run.is_calling else None

    def _refuse_stopped(self, operation: str) -> None:
        self._plans.refuse_inside(operation)
        if self._supervisor.is_stopping or self._instances.is_closed:
            self._refuse(operation)

    def _refuse_halted(self, operation: str, workflow: Callable[..., Any] | str, instance_id: str) -> None:
        """Refuse what may still be done to existing instances while the engine waits for its runs."""
        self._plans.refuse_inside(operation)
        if self._supervisor.is_halted or self._instances.is_closed:
            self._refuse(_called(operation, workflow, instance_id))

    def _refuse(self, operation: str) -> NoReturn:
        run = self._calling_run()
        if run is not None:
            # A body that cannot go on because of the shutdown is not to be Failed by it.
            run.cancel("stopping")
        raise EngineStoppedError(operation=operation)

    # Definitions and names -----------------------------------------------------------------------------------

    def _definition(self, workflow: Callable[..., Any] | str) -> Workflow[..., Any]:
        definitions = self._supervisor.definitions
        name = _name_of(workflow)
        definition = definitions.get(name)
        if definition is None or (isinstance(workflow, Workflow) and definition is not workflow):
            raise WorkflowNotFoundError(workflow=name, registered=tuple(sorted(definitions)))
        return definition


def check_timeout(name: str, seconds: object) -> float:
    """
    Return *seconds* if it may be how long something is waited for.

    Raises:
        ValueError: It is negative, NaN or no number.
    """
    if is_number(seconds) and seconds >= 0:
        with contextlib.suppress(OverflowError):
            return float(seconds)
    raise ValueError(f"{name} must be a number of seconds, at least 0, not {seconds!r}")


def _name_of(workflow: Callable[..., Any] | str) -> str:
    if isinstance(workflow, Workflow):
        return workflow.name
    if isinstance(workflow, str):
        return check_key("workflow name", workflow)
    raise MisuseError(
        problem=f"{workflow!r} is neither a workflow nor the name of one; decorate its function with @memable.workflow"
    )


def _check_plan(assume: object, at: object) -> float | None:
    """Return the time that a plan is made for, if one is given."""
    if not isinstance(assume, Mapping) or not all(isinstance(path, str) for path in assume):
        raise MisuseError(problem=f"assume is {assume!r}; give values by path, for example {{'fetch:v1': 3}}")
    if at is None:
        return None
    if not isinstance(at, datetime) or at.utcoffset() is None:
        raise MisuseError(problem=f"at is {at!r}; give an aware datetime, for example datetime.now(UTC)")
    return at.timestamp()


def _called(operation: str, workflow: Callable[..., Any] | str, instance_id: str) -> str:
    return f"{operation} on workflow {_name_of(workflow)!r}, instance {instance_id!r}"


def _paths(forget: Iterable[str]) -> tuple[str, ...]:
    # A str is made of str, too, and never what was meant.
    paths = () if isinstance(forget, str) else tuple(forget)
    if isinstance(forget, str) or not all(isinstance(path, str) for path in paths):
        raise MisuseError(problem=f"forget is {forget!r}; give a list of keys or paths, for example ['fetch:v1']")
    return tuple(dict.fromkeys(paths))
