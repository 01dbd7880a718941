"""
Child instances: started with their parent's record of it, waited for, and what they ended with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import attrs
import trio

from ._definition import Workflow
from ._encoded import Encoded
from ._error_info import ErrorInfo, describe_exception, rename_error
from ._errors import (
    ChildFailedError,
    MemableError,
    MisuseError,
    SerializationError,
    TypeMismatchError,
    WorkflowCancelledError,
)
from ._journal import Journal
from ._records import (
    BranchStarted,
    CallCompleted,
    CallFailed,
    ChildStarted,
    InstanceCancelled,
    InstanceCompleted,
    InstanceFailed,
    InstanceStarted,
)
from ._run import Place, Run, child_instance_id
from ._step import refuse
from ._wait import Wait
from ._waiting import refuse_plain_deadline

CALL_KIND = "a call"
START_KIND = "a start"

ChildOutcome: TypeAlias = Encoded | ErrorInfo
"What a child instance returned, or what it failed with."


async def perform_call(run: Run, place: Place, key: str, workflow: Any, args: tuple[object, ...]) -> Any:
    """
    Return what a child instance returned, once it has.

    Raises:
        ChildFailedError: It failed, or was cancelled.
        WorkflowCodeError: The code is wrong.
        RunEndedError: The run has ended or is being unwound.
    """
    path: str | None = None
    try:
        path = run.claim("call", place, key, CALL_KIND)
        definition = _check(run, path, workflow)
        memo = run.journal.memos.get(path)
        if memo is None:
            refuse_plain_deadline(run, path, "call")
            outcome = await await_child(run, place, "call", path, definition, args)
            # Read before it counts: what cannot be read is not to be recorded.
            result = _result_of(run, path, definition, outcome)
            if isinstance(outcome, ErrorInfo):
                await run.record("call", place, CallFailed, path=path, error=outcome)
            else:
                await run.record("call", place, CallCompleted, path=path, value=outcome)
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            assert isinstance(memo, (CallCompleted, CallFailed))
            result = _result_of(run, path, definition, memo.value if isinstance(memo, CallCompleted) else memo.error)
            run.after_memo()
            await trio.lowlevel.checkpoint()
    except BaseException as exc:
        await refuse(run, place, path, exc)
        raise
    if isinstance(result, ChildFailedError):
        raise result
    return result[0]


async def perform_start(run: Run, place: Place, key: str, workflow: Any, args: tuple[object, ...]) -> str:
    """
    Start a child instance that lives on its own, once, and return its id.

    Raises:
        WorkflowCodeError: The code is wrong.
        RunEndedError: The run has ended or is being unwound.
    """
    path: str | None = None
    try:
        path = run.claim("start", place, key, START_KIND)
        definition = _check(run, path, workflow)
        if path in run.journal.detached:
            run.after_memo()
            await trio.lowlevel.checkpoint()
        else:
            await run.proceed("start")
            record: dict[str, Any] = {"path": path, "workflow": definition.name, "detached": True}
            await _start(run, place, "start", path, definition, args, ChildStarted, record)
            await trio.lowlevel.checkpoint_if_cancelled()
    except BaseException as exc:
        await refuse(run, place, path, exc)
        raise
    return child_instance_id(run, path)


async def await_child(
    run: Run,
    place: Place,
    operation: str,
    path: str,
    definition: Workflow[..., Any],
    args: tuple[object, ...],
    index: int | None = None,
    digest: str | None = None,
) -> ChildOutcome:
    """
    Start the child instance at *path*, if that was not done before, and wait for its end.

    Args:
        run: The parent's.
        place: Where it was called.
        operation: What was called.
        path: Where the child is in the parent.
        definition: The child's workflow.
        args: Its arguments.
        index: For a child of a fan-out, the place of its item.
        digest: For a child of a fan-out, the digest of its item.
    """
    await run.proceed(operation)
    recorded = run.journal.children.get(path)
    if recorded is None:
        if index is None:
            record: dict[str, Any] = {"path": path, "workflow": definition.name}
            await _start(run, place, operation, path, definition, args, ChildStarted, record)
        else:
            record = {"path": path, "workflow": definition.name, "index": index, "digest": digest}
            await _start(run, place, operation, path, definition, args, BranchStarted, record)
    elif recorded != definition.name:
        problem = f"the child was started as workflow {recorded!r}, and is now called as {definition.name!r}"
        raise run.misuse(f"{problem}; use a new key for another workflow", path)
    entry = await run.host.find_child(definition.name, child_instance_id(run, path))
    if entry is None:
        # Somebody deleted it.
        return describe_exception(
            WorkflowCancelledError(
                workflow=definition.name, instance_id=child_instance_id(run, path), reason="it was deleted"
            )
        )
    wait = Wait(path, is_for_child=True)
    while not entry.header.status.is_terminal:
        wait.is_listed = not entry.is_executing
        wake = _waker(run, wait)
        entry.watchers.add(wake)
        try:
            await run.wait(wait)
        finally:
            entry.watchers.discard(wake)
        if run.leaving is not None or run.is_over:
            await trio.lowlevel.checkpoint_if_cancelled()
            raise run.run_ended(operation)
    return _outcome_of(definition.name, child_instance_id(run, path), await run.host.load(entry))


def _waker(run: Run, wait: Wait) -> Callable[[], None]:
    return lambda: run.wake(wait)


async def _start(
    run: Run,
    place: Place,
    operation: str,
    path: str,
    definition: Workflow[..., Any],
    args: tuple[object, ...],
    cls: Any,
    facts: dict[str, Any],
) -> None:
    """Record a child instance in its parent and in its own right, whole or not at all, and let it run."""
    services = run.services
    try:
        definition.signature.bind(*args)
        annotations = services.annotations.parameter_annotations(definition.fn, True, len(args))
        given = services.codec.encode_arguments(args, annotations)
    except (MisuseError, SerializationError) as error:
        raise run.misuse(f"the arguments for workflow {definition.name!r}: {error.problem}", path) from error
    except TypeError as error:
        problem = f"the arguments for workflow {definition.name!r} do not fit its signature {definition.signature}"
        raise run.misuse(f"{problem} ({error})", path) from None
    instance_id = child_instance_id(run, path)
    existing = await run.host.find_child(definition.name, instance_id)
    if existing is not None:
        # Its parent's record of it was forgotten, and it was not: it lives on its own.
        await run.record(operation, place, cls, **facts)
        return
    started = InstanceStarted(
        instance=await services.store.allocate_number(),
        seq=1,
        at=services.clock.now(),
        session=services.store.session,
        workflow=definition.name,
        instance_id=instance_id,
        input=given,
        parent=f"{run.workflow_name}/{run.instance_id}",
        detached=bool(facts.get("detached")),
    )
    entry = run.host.expect_child(started)
    try:
        await run.record(operation, place, cls, beside=(started,), **facts)
    finally:
        await run.host.settle_child(entry, started)


def _check(run: Run, path: str, workflow: Any) -> Workflow[..., Any]:
    if not isinstance(workflow, Workflow):
        raise run.misuse(f"{workflow!r} is not a workflow; decorate its function with @memable.workflow", path)
    check_registered(run, path, workflow)
    return workflow


def check_registered(run: Run, path: str, workflow: Workflow[..., Any]) -> None:
    """
    Refuse a workflow whose instances the engine could not run.

    Raises:
        MisuseError: It is not registered, or another one of its name is.
    """
    if run.host.definitions.get(workflow.name) is not workflow:
        problem = f"workflow {workflow.name!r} is not registered with the engine"
        raise run.misuse(f"{problem}; name it in open_engine(workflows=[...]) or call engine.register(...)", path)


def _result_of(
    run: Run, path: str, definition: Workflow[..., Any], outcome: ChildOutcome
) -> tuple[Any] | ChildFailedError:
    if isinstance(outcome, ErrorInfo):
        return child_failure(run, path, rename_error(outcome, run.services.aliases))
    try:
        return (run.services.codec.decode(outcome, run.services.annotations.return_annotation(definition.fn)),)
    except (MisuseError, TypeMismatchError) as error:
        error.workflow, error.instance_id, error.key = run.workflow_name, run.instance_id, path
        raise run.blame(error) from None


def _outcome_of(workflow: str, instance_id: str, journal: Journal) -> ChildOutcome:
    match journal.ending:
        case InstanceCompleted(value=value):
            return value
        case InstanceFailed(error=error):
            return error
        case InstanceCancelled(reason=reason):
            cancelled: MemableError = WorkflowCancelledError(workflow=workflow, instance_id=instance_id, reason=reason)
            # What people read; where it was raised from tells them nothing.
            return attrs.evolve(describe_exception(cancelled), traceback="")
        case _:
            raise AssertionError(f"instance {instance_id!r} has not ended")


def child_failure(
    run: Run, path: str, info: ErrorInfo, *, index: int | None = None, item_key: str | None = None
) -> ChildFailedError:
    """
    Return the exception that a child's recorded failure stands for: the same facts live and on every replay.
    """
    error = ChildFailedError(
        workflow=run.workflow_name,
        instance_id=run.instance_id,
        key=path,
        error=info,
        index=index,
        item_key=item_key,
    )
    if info.traceback:
        # What is printed of it, and what is recorded if it leaves the body, shows where the child failed.
        error.add_note(f"The child's own traceback:\n{info.traceback}")
    return error
