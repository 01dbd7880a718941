"""
Compensations: steps that run, in reverse order of registration, if the instance ends as Failed or Cancelled.
"""

from __future__ import annotations

from typing import Any

import attrs
import trio

from ._decide import fatal_leaves, find_code_error
from ._errors import CompensationLostError, MisuseError, OutcomeUnknownError, SerializationError, WorkflowCodeError
from ._records import CompensationRegistered
from ._run import Place, Run
from ._sparse import put
from ._step import Step, execute_step, find_misused_settings, find_unfit_arguments, refuse
from ._step_misuse import find_misuse

COMPENSATION_KIND = "a compensation"


@attrs.define
class _Registered:
    step: Step
    annotation: Any


async def perform_compensate(run: Run, place: Place, key: str, step: Step) -> None:
    """
    Register a step to run if the instance ends as Failed or Cancelled.

    Raises:
        WorkflowCodeError: The code is wrong.
        RunEndedError: The run has ended or is being unwound.
    """
    path: str | None = None
    try:
        path = run.claim("compensate", place, key, COMPENSATION_KIND, step.fn)
        problem = find_misuse("step", step.fn, step.unknown) or find_misused_settings(step)
        if problem is None:
            # Once it is to run, it is too late to tell the author.
            problem = find_unfit_arguments(step)
        if problem is not None:
            raise run.misuse(problem.replace("ctx.step(", "ctx.compensate("), path)
        try:
            annotation = run.services.annotations.return_annotation(step.fn)
            run.services.codec.check(annotation)
        except (MisuseError, SerializationError) as error:
            raise run.misuse(error.problem, path) from None
        registered = _Registered(step, annotation)
        if path in run.journal.compensations:
            run.compensations = put(run.compensations, path, registered)
            run.check_memo_only()
            await run.serve_memo()
        else:
            await run.proceed("compensate")
            await run.record("compensate", place, CompensationRegistered, path=path)
            run.compensations = put(run.compensations, path, registered)
            await run.deliver_cancellation()
    except BaseException as exc:
        await refuse(run, place, path, exc)
        raise


def lost_compensations(run: Run) -> tuple[str, ...]:
    """
    Return the paths of compensations that are still to run, and that this run has not registered.
    """
    return tuple(
        path for path in run.journal.compensations if path not in run.compensations and path not in run.journal.memos
    )


async def run_compensations(run: Run) -> tuple[WorkflowCodeError | None, list[BaseException]]:
    """
    Run what is registered and has no outcome yet, the newest first.

    Returns:
        What blocks the instance, if something does: a compensation was lost, or its code is wrong, or its outcome is
        unknown. And what no workflow may keep to itself.

    Cancellation:
        By ``run.cancel`` only; then ``run.leaving`` is set.
    """
    blocked: WorkflowCodeError | None = None
    lost = lost_compensations(run)
    if lost:
        blocked = CompensationLostError(workflow=run.workflow_name, instance_id=run.instance_id, keys=lost)
    newest_first = sorted(run.journal.compensations.items(), key=lambda item: -item[1])
    run.begin_compensations()
    try:
        with run.scope:
            for path, _ in newest_first:
                registered = run.compensations.get(path)
                if registered is None or path in run.journal.memos:
                    continue
                try:
                    # Its failure is recorded, and no reason not to run the others.
                    await execute_step(run, Place(), path, registered.step, registered.annotation)
                except Exception as error:
                    # A code error, maybe hidden in what its function made of it.
                    code_error = find_code_error(error)
                    if code_error is None:
                        raise
                    if isinstance(code_error, OutcomeUnknownError):
                        # What is older is undone later: not before somebody has told what became of this one.
                        return code_error, []
                    blocked = blocked or code_error
    except BaseException as exc:  # noqa: BLE001 - sorted by the caller
        return blocked, [*fatal_leaves(exc, trio.Cancelled)] or [exc]
    return blocked, []
