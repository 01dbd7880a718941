"""
Runs the present code over an instance's memos with effects off, to tell what a run of it would do next.

The body runs over a copy of the journal, and what memable itself decides is recorded there, so that one sees what lies
behind it: that a scope is entered, that a sleep is over. Steps, waits and child instances hold the task that asks for
them. Once no task of the body goes on, it is unwound, and what it has asked for is told.
"""

from __future__ import annotations

import contextvars
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import attrs
import trio

from ._decide import fatal_leaves
from ._definition import Workflow
from ._entry import Entry
from ._error_info import describe_exception
from ._instances import Instances
from ._journal import journal_of
from ._plan import Plan, PlanMismatch, mismatch_of
from ._plan_scratch import ClockOf, PlanCodec, PlanHost, Scratch
from ._planned_run import PlannedRun
from ._run import current_run
from ._services import Services
from ._states import MetadataStatus
from ._store._protocol import OpenStore
from ._supervisor import Supervisor
from ._timers import Timers

#: A body that has asked for nothing for so many seconds is given up: a task of it waits for something outside, which
#: may never come. Without effects there is little else for it to do.
PATIENCE_S = 5.0

#: While a task of the body waits for something outside, it is looked at again after so many seconds.
NAP_S = 0.01


class Plans:
    """
    Plans instances of one engine.
    """

    def __init__(self, services: Services, supervisor: Supervisor, instances: Instances) -> None:
        """
        Bind to the parts of an engine.
        """
        self._services = services
        self._supervisor = supervisor
        self._instances = instances
        # Bodies see the context variables of whoever opened the engine, as their runs do.
        self._context = contextvars.copy_context()

    def refuse_inside(self, operation: str) -> None:
        """
        Refuse a call of the engine's inside a body that is only planned: what it does is no part of the body.

        Raises:
            EngineStoppedError: It is inside one.
        """
        run = current_run.get()
        # Its services are its own, but for what stops the engine.
        if isinstance(run, PlannedRun) and run.services.fail is self._services.fail and run.is_calling:
            raise run.refuse_call(operation)

    async def plan(
        self,
        entry: Entry,
        definition: Workflow[..., Any],
        assume: Mapping[str, object],
        at_unix_s: float | None,
    ) -> Plan:
        """
        Run the body of *definition* over the memos of an instance, and tell how far it gets.

        Raises:
            TypeMismatchError: An assumed value is not of the type that the code asks for.
            EngineStoppedError: The engine's block has been left meanwhile.
            BaseException: What the body raised and no workflow may handle, such as ``KeyboardInterrupt``.
        """
        run = await self._prepare(entry, definition, assume, at_unix_s)
        left_by: BaseException | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run.services.timers.run)
            self._context.run(partial(nursery.start_soon, name="memable.Engine.plan"), run.execute, definition)
            try:
                await _attend(run)
            except BaseException as error:  # noqa: BLE001 - raised below
                # The nursery would put it into a group.
                left_by = error
            run.cancel("stopping")
            with trio.CancelScope(shield=True):
                await run.stopped.wait()
            nursery.cancel_scope.cancel()
        if left_by is not None:
            raise left_by
        self._instances.refuse_closed("engine.plan")
        return _conclude(run)

    async def _prepare(
        self, entry: Entry, definition: Workflow[..., Any], assume: Mapping[str, object], at_unix_s: float | None
    ) -> PlannedRun:
        services = self._services
        records = await self._instances.records(entry)
        journal = journal_of(records)
        # Whatever has ended it, it is to run again from the top.
        journal.ending = journal.compensating = journal.blocked = None
        journal.suspended = journal.cancel_requested = None
        journal.prune()
        registered = self._supervisor.definitions.get(definition.name)
        clock = services.clock
        if at_unix_s is not None:
            clock = ClockOf(clock, at_unix_s - clock.now())
        scratch = Scratch(services.store, entry.header.number, records)
        planned = attrs.evolve(
            services,
            store=cast("OpenStore", scratch),
            clock=clock,
            timers=Timers(clock),
            codec=PlanCodec(services.codec),
            observer=None,
        )
        host = PlanHost(self._instances, services.store, dict(self._supervisor.definitions))
        header = attrs.evolve(entry.header, status=MetadataStatus.RUNNING, seq=journal.seq)
        return PlannedRun(planned, host, header, journal, assume, adopts=registered is not definition)


async def _attend(run: PlannedRun) -> None:
    """Wait until the body has been left or does not go on, for as long as there is patience."""
    # It takes as long to import as memable, and only plans need it.
    from trio.testing import wait_all_tasks_blocked  # noqa: PLC0415 - see above

    while not run.stopped.is_set():
        is_quiet = False
        # Where others are always busy, that may never be.
        with trio.move_on_after(NAP_S):
            await wait_all_tasks_blocked()
            is_quiet = True
        if run.stopped.is_set() or not run.goes_on(is_quiet=is_quiet):
            return
        if trio.current_time() - run.progressed_at >= PATIENCE_S:
            run.is_stalled = True
            return
        if is_quiet:
            with trio.move_on_after(NAP_S):
                await run.wait_stirred()


def _conclude(run: PlannedRun) -> Plan:
    """Tell what came of a run that has been left."""
    codec = run.services.codec
    assert isinstance(codec, PlanCodec)
    exc, run.raised = run.raised, None
    if exc is not None:
        fatal = [exc] if run.is_broken else fatal_leaves(exc, trio.Cancelled)
        if fatal:
            raise fatal[0] if len(fatal) == 1 else BaseExceptionGroup("several failures of a planned body", fatal)
    if codec.unfit is not None:
        codec.unfit.workflow, codec.unfit.instance_id = run.workflow_name, run.instance_id
        raise codec.unfit
    outcome, error = run.outcome, run.error
    mismatches: list[PlanMismatch] = []
    for code_error in run.code_errors:
        info = describe_exception(code_error)
        mismatch = mismatch_of(code_error, info)
        if mismatch is not None:
            mismatches.append(mismatch)
        else:
            error = error or info
    if run.code_errors:
        outcome = "blocked"
    unasked = run.unasked
    return Plan(
        workflow=run.workflow_name,
        instance_id=run.instance_id,
        outcome=outcome,
        hits=run.hits,
        misses=run.misses,
        orphaned=unasked if outcome == "completed" else (),
        unreached=() if outcome == "completed" else unasked,
        mismatches=tuple(mismatches),
        error=error,
        value=run.value,
        assumed=tuple(run.assumed),
        is_stalled=run.is_stalled,
    )
