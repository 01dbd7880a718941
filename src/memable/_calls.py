"""
Child instances: started with their parent's record of it, waited for, and what they ended with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import attrs
import trio

from ._definition import Workflow
from ._encoded import Encoded
from ._error_info import ErrorInfo, describe_exception, rename_error
from ._errors import (
    ChildFailedError,
    InstanceNotFoundError,
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
    InstanceRecord,
    InstanceStarted,
)
from ._run import Place, Run, child_instance_id
from ._sleeping import message_for, sleep_unless_cancelled
from ._sparse import put
from ._states import MetadataStatus
from ._step import refuse
from ._wait import Wait
from ._waiting import refuse_plain_deadline

CALL_KIND = "a call"
START_KIND = "a start"

ChildOutcome: TypeAlias = Encoded | ErrorInfo
"What a child instance returned, or what it failed with."


@attrs.frozen
class ChildCall:
    """
    One use of a path as a child instance.
    """

    operation: str
    "What was called."
    path: str
    "Where the child is in its parent."
    definition: Workflow[..., Any]
    "Its workflow."
    args: tuple[object, ...]
    index: int | None = None
    "For a child of a fan-out, the place of its item."
    digest: str | None = None
    "For a child of a fan-out, the digest of its item."
    detached: bool = False
    "Whether it lives on its own."

    def facts(self) -> tuple[type[BranchStarted | ChildStarted], dict[str, Any]]:
        """
        Return what the parent records of its start: the record's class and fields.
        """
        facts: dict[str, Any] = {"path": self.path, "workflow": self.definition.name}
        if self.index is not None:
            return BranchStarted, facts | {"index": self.index, "digest": self.digest}
        return ChildStarted, facts | {"detached": self.detached}


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
            outcome = await await_child(run, place, ChildCall("call", path, definition, args))
            # Read before it counts: what cannot be read is not to be recorded.
            result = _result_of(run, path, definition, outcome)
            if isinstance(outcome, ErrorInfo):
                await run.record("call", place, CallFailed, path=path, error=outcome)
            else:
                await run.record("call", place, CallCompleted, path=path, value=outcome)
            await run.deliver_cancellation()
        else:
            assert isinstance(memo, (CallCompleted, CallFailed))
            result = _result_of(run, path, definition, memo.value if isinstance(memo, CallCompleted) else memo.error)
            await run.serve_memo()
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
            await run.serve_memo()
        else:
            await run.proceed("start", definition)
            await _start(run, place, ChildCall("start", path, definition, args, detached=True))
            await run.deliver_cancellation()
    except BaseException as exc:
        await refuse(run, place, path, exc)
        raise
    return child_instance_id(run, path)


# Interrupted by control-C just before it sleeps, the task would be woken while it does something else.
@trio.lowlevel.enable_ki_protection
async def await_child(run: Run, place: Place, call: ChildCall) -> ChildOutcome:
    """
    Start a child instance, if that was not done before, and wait for its end.

    Args:
        run: The parent's.
        place: Where it was called.
        call: What was called.
    """
    await run.proceed(call.operation, call.definition)
    path, name = call.path, call.definition.name
    recorded = run.journal.children.get(path)
    if recorded is None:
        await _start(run, place, call)
    elif recorded != name:
        problem = f"the child was started as workflow {recorded!r}, and is now called as {name!r}"
        raise run.misuse(f"{problem}; use a new key for another workflow", path)
    instance_id = child_instance_id(run, path)
    entry = await run.host.find_child(name, instance_id)
    if entry is None:
        # It had ended, else nobody could have deleted it.
        return _cancellation(name, instance_id, "it was deleted")
    if entry.header.status is not MetadataStatus.COMPLETED:
        # It might never run, and a resume not mend its failure, and nobody would learn why.
        check_registered(run, path, call.definition)
    wait = Wait(path, run.journal.child_seqs.get(path, 0), is_for_child=True)
    while not entry.header.status.is_terminal:
        wait.is_listed = not entry.is_executing
        wake = _waker(run, wait)
        entry.watchers = put(entry.watchers, wake, None)
        try:
            if run.begin_wait(wait):
                try:
                    await sleep_unless_cancelled(message_for(wait))
                finally:
                    run.end_wait(wait)
        finally:
            entry.watchers.pop(wake, None)
        if run.leaving is not None or run.is_over:
            await trio.lowlevel.checkpoint_if_cancelled()
            raise run.run_ended(call.operation)
    return _outcome_of(name, instance_id, await run.host.load(entry))


def _waker(run: Run, wait: Wait) -> Callable[[], None]:
    return lambda: run.activity.wake(wait)


async def _start(run: Run, place: Place, call: ChildCall) -> None:
    """Record a child instance in its parent and in its own right, whole or not at all, and let it run."""
    check_registered(run, call.path, call.definition)
    given = _encode_arguments(run, call)
    instance_id = child_instance_id(run, call.path)
    existing = await run.host.find_child(call.definition.name, instance_id)
    beside: list[InstanceRecord] = []
    if existing is not None and not existing.header.detached:
        # Forgotten by this parent, or of a removed one of the same id: it has nothing to say any more.
        retirement = await run.host.retire_orphan(existing)
        if retirement is None:
            problem = f"child {instance_id!r} was forgotten, and cannot be cancelled by itself"
            raise run.misuse(f"{problem}; settle or resume it, or use another instance id", call.path)
        beside.append(retirement)
    elif existing is not None:
        # Its parent's record of it was forgotten, and it was not: it lives on its own.
        if not call.detached:
            problem = "an earlier run has started a child instance here that lives on its own, for ctx.start"
            raise run.misuse(f"{problem}; use a new key for ctx.{call.operation}", call.path)
        try:
            await _refuse_other_input(run, call, existing, given)
        except InstanceNotFoundError:
            # Somebody has removed it meanwhile: its id is free again.
            pass
        else:
            cls, facts = call.facts()
            await run.record(call.operation, place, cls, **facts)
            return
    await _record_start(run, place, call, given, beside)


# Interrupted by control-C in between, the child would be taken for one that somebody is about to start.
@trio.lowlevel.enable_ki_protection
async def _record_start(
    run: Run, place: Place, call: ChildCall, given: Encoded, beside: Sequence[InstanceRecord]
) -> None:
    services = run.services
    cls, facts = call.facts()
    started = InstanceStarted(
        instance=await services.store.allocate_number(),
        seq=1,
        at=services.clock.now(),
        session=services.store.session,
        workflow=call.definition.name,
        instance_id=child_instance_id(run, call.path),
        input=given,
        parent=f"{run.workflow_name}/{run.instance_id}",
        detached=call.detached,
    )
    entry = run.host.expect_child(started)
    try:
        await run.record(call.operation, place, cls, beside=(*beside, started), **facts)
    finally:
        await run.host.settle_child(entry, started)


async def _refuse_other_input(run: Run, call: ChildCall, existing: Any, given: Encoded) -> None:
    """
    Refuse to take an instance that exists for the one that is to be started, if its arguments are others.

    Raises:
        MisuseError: They are.
    """
    services, fn = run.services, call.definition.fn
    recorded = (await run.host.load(existing)).started.input

    def annotations_for(count: int) -> Sequence[Any]:
        return services.annotations.parameter_annotations(fn, True, count)

    if not services.codec.same_arguments(recorded, given, annotations_for):
        problem = f"instance {existing.instance_id!r} exists already, with other arguments"
        raise run.misuse(f"{problem}; let it end and engine.delete(...) it, or use a new key", call.path)


def _encode_arguments(run: Run, call: ChildCall) -> Encoded:
    services, definition, args = run.services, call.definition, call.args
    what = f"the arguments for workflow {definition.name!r}"
    try:
        definition.signature.bind(*args)
        annotations = services.annotations.parameter_annotations(definition.fn, True, len(args))
        return services.codec.encode_arguments(args, annotations)
    except (MisuseError, SerializationError) as error:
        raise run.misuse(f"{what}: {error.problem}", call.path) from error
    except TypeError as error:
        raise run.misuse(f"{what} do not fit its signature {definition.signature} ({error})", call.path) from None


def _check(run: Run, path: str, workflow: Any) -> Workflow[..., Any]:
    if not isinstance(workflow, Workflow):
        raise run.misuse(f"{workflow!r} is not a workflow; decorate its function with @memable.workflow", path)
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
            return _cancellation(workflow, instance_id, reason)
        case _:
            raise AssertionError(f"instance {instance_id!r} has not ended")


def _cancellation(workflow: str, instance_id: str, reason: str | None) -> ErrorInfo:
    cancelled = WorkflowCancelledError(workflow=workflow, instance_id=instance_id, reason=reason)
    # It was never raised, so a traceback tells nothing.
    return attrs.evolve(describe_exception(cancelled), traceback="")


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
