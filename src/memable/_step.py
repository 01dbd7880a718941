"""
Executes one step: attempts, timeouts, backoff, and the record of how it ended.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias, assert_never

import attrs
import trio

from ._decide import TryAgain, decide_failure, find_code_error
from ._encoded import Encoded
from ._error_info import ErrorInfo, describe_exception, rename_error
from ._errors import (
    MemableError,
    MisuseError,
    RetriesExhaustedError,
    RetriesExhaustedTimeoutError,
    RunEndedError,
    SerializationError,
    StepFailedError,
    StepTimeoutError,
    TypeMismatchError,
    WorkflowCodeError,
)
from ._journal import Memo
from ._records import AttemptFailed, StepCompleted, StepFailed, StepFailure
from ._retry import Inherit, RetryPolicy
from ._run import Run, StepInProgress, StepRecord, current_step
from ._step_misuse import Operation, find_misuse, find_misused_arguments, find_misused_result, find_misused_setting


@attrs.define
class Step:
    """
    One use of a key as a step.
    """

    operation: Operation
    fn: Callable[..., Any]
    args: tuple[object, ...]
    timeout: float | None
    "Seconds for each attempt."
    retry: RetryPolicy | Inherit | None
    returns: Any
    "The annotation given in the call; None if it is the function's own."
    limiter: trio.CapacityLimiter | None = None
    unknown: Mapping[str, object] = MappingProxyType({})
    "Options that there are not."


@attrs.define
class _Failure:
    """An outcome that is to be raised; told apart from any value that a step may return."""

    error: MemableError


@attrs.define
class _Returned:
    encoded: Encoded
    value: Any


@attrs.define
class _Retrying:
    info: ErrorInfo
    delay_s: float


@attrs.define
class _GaveUp:
    info: ErrorInfo
    failure: StepFailure
    retryable: bool


_Made: TypeAlias = _Returned | _Retrying | _GaveUp
"What one attempt made of the step."


async def perform_step(run: Run, prefix: str, key: str, step: Step) -> Any:
    """
    Return the step's recorded value, or run it and record its outcome.

    Raises:
        StepFailedError: It failed for good, now or in an earlier run.
        SerializationError: Its value cannot be stored; recorded like a failure.
        WorkflowCodeError: The code is wrong; nothing is recorded.
        RunEndedError: The run has ended or is being unwound; nothing is recorded.
    """
    path: str | None = None
    try:
        path = run.claim(step.operation, prefix, key, step.fn)
        outcome = await _recall_or_execute(run, path, step)
    except BaseException as exc:
        # Nothing was recorded, or the caller was cancelled before it could learn of it: the key is free again.
        if path is not None:
            run.release(path)
        if not isinstance(exc, Exception) and (code_error := find_code_error(exc)) is not None:
            # Beside Cancelled in a group, say. The scope that takes its part of the group must not hide the rest.
            run.blame(code_error)
        if isinstance(exc, (WorkflowCodeError, RunEndedError)):
            # A refusal is a checkpoint, too: a body that tries again and again can be cancelled.
            await trio.lowlevel.checkpoint()
        raise
    if isinstance(outcome, _Failure):
        raise outcome.error
    return outcome


async def _recall_or_execute(run: Run, path: str, step: Step) -> Any:
    problem = find_misuse(step.operation, step.fn, step.unknown)
    if problem is not None:
        raise _misuse(run, path, problem)
    try:
        annotation = run.services.annotations.return_annotation(step.fn) if step.returns is None else step.returns
        memo = run.journal.memos.get(path)
        outcome = None if memo is None else _recall(run, memo, annotation)
    except (MisuseError, TypeMismatchError) as error:
        error.workflow, error.instance_id, error.key = run.workflow_name, run.instance_id, path
        raise run.blame(error) from None
    if memo is not None:
        await trio.lowlevel.checkpoint()
        return outcome
    # With a memo these do not matter: one that is computed from what is left of a time may be negative by now.
    problem = find_misused_setting(step.timeout, step.retry, step.limiter)
    if problem is not None:
        raise _misuse(run, path, problem)
    await run.proceed(step.operation)
    outcome = await _execute(run, path, step, annotation)
    await trio.lowlevel.checkpoint_if_cancelled()
    return outcome


def _recall(run: Run, memo: Memo, annotation: Any) -> Any:
    if isinstance(memo, StepFailed):
        return _Failure(_failure_of(run, memo))
    return run.services.codec.decode(memo.value, annotation)


def _failure_of(run: Run, memo: StepFailed) -> MemableError:
    """Return the exception that a recorded failure stands for: the same facts live and on every replay."""
    info = rename_error(memo.error, run.services.aliases)
    if memo.failure is StepFailure.SERIALIZATION:
        return SerializationError(
            problem=info.message, workflow=run.workflow_name, instance_id=run.instance_id, key=memo.path
        )
    error = _FAILURES[memo.failure](
        workflow=run.workflow_name,
        instance_id=run.instance_id,
        key=memo.path,
        error=info,
        attempts=memo.attempt,
        retryable=memo.retryable,
    )
    if info.traceback:
        # What is printed of it, and what is recorded if it leaves the body, shows where the step failed.
        error.add_note(f"The step's own traceback:\n{info.traceback}")
    return error


_FAILURES: dict[StepFailure, type[StepFailedError]] = {
    StepFailure.ERROR: StepFailedError,
    StepFailure.TIMEOUT: StepTimeoutError,
    StepFailure.EXHAUSTED: RetriesExhaustedError,
    StepFailure.EXHAUSTED_TIMEOUT: RetriesExhaustedTimeoutError,
}


async def _execute(run: Run, path: str, step: Step, annotation: Any) -> Any:
    """Attempt the step until it has an outcome, which is durable and in the journal when this returns it."""
    while True:
        failed = run.journal.attempts.get(path)
        if failed is not None:
            # Due at once if the time passed while the process was down; the budget is not refilled either.
            await run.wait_until(path, failed.next_attempt_at)
            await run.proceed(step.operation)
        attempt = 1 if failed is None else failed.attempt + 1
        started_at = run.services.clock.now()
        run.begin_execution()
        try:
            made = await _attempt(run, path, step, annotation, attempt)
            record = _record_of(run, path, made, attempt, started_at)
            await run.record_step(step.operation, record)
        finally:
            run.end_execution()
        if isinstance(made, _Returned):
            return made.value
        if isinstance(record, StepFailed):
            return _Failure(_failure_of(run, record))


async def _attempt(run: Run, path: str, step: Step, annotation: Any, attempt: int) -> _Made:
    """Call the function once. What it raises and is not the step's outcome passes through."""
    codec = run.services.codec
    try:
        # What an annotation already tells is found before the function can have an effect.
        codec.check(annotation)
    except SerializationError as error:
        return _unencodable(error.problem)
    try:
        value = await _call_in_time(run, path, step, attempt)
    except Exception as exc:  # noqa: BLE001 - a step may fail with anything
        return await _judge(run, path, step, exc, attempt)
    try:
        encoded = codec.encode(value, annotation)
        # What the first run sees is what every replay sees, so it is read back before it counts.
        value = codec.decode(encoded, annotation)
    except SerializationError as error:
        return _unencodable(error.problem)
    except TypeMismatchError as error:
        return _unencodable(f"its value cannot be read back: {error}")
    return _Returned(encoded, value)


async def _call_in_time(run: Run, path: str, step: Step, attempt: int) -> Any:
    if step.timeout is None:
        return await _call(run, path, step)
    with trio.CancelScope(deadline=trio.current_time() + step.timeout):
        return await _call(run, path, step)
    raise StepTimeoutError(
        workflow=run.workflow_name,
        instance_id=run.instance_id,
        key=path,
        error=describe_exception(TimeoutError(f"took longer than its timeout of {step.timeout:g} s")),
        attempts=attempt,
        retryable=True,
    )


async def _call(run: Run, path: str, step: Step) -> Any:
    progress = StepInProgress(run, path)
    token = current_step.set(progress)
    result: Any = None
    try:
        if step.operation == "step_in_thread":
            # Abandoned on cancellation: nobody can stop a thread, and the body need not wait for it.
            (result,) = await trio.to_thread.run_sync(
                _call_in_thread, step.fn, step.args, abandon_on_cancel=True, limiter=step.limiter
            )
            problem = find_misused_result(step.operation, result)
        else:
            awaitable = step.fn(*step.args)
            problem = find_misused_result(step.operation, awaitable)
            if problem is None:
                result = await awaitable
    except Exception:
        # Whatever the function made of being told that the code is wrong: that it was told so is what counts.
        if progress.code_error is None:
            raise
        problem = None
    finally:
        current_step.reset(token)
    if problem is not None:
        raise _misuse(run, path, problem)
    if progress.code_error is not None:
        # The function was told that the code is wrong, and went on: what it made of that is no outcome.
        raise copy.copy(progress.code_error)
    return result


def _call_in_thread(fn: Callable[..., Any], args: tuple[object, ...]) -> tuple[Any]:
    # In a tuple, since trio itself refuses what looks as if it were to be awaited, in words that do not name memable.
    return (fn(*args),)


async def _judge(run: Run, path: str, step: Step, exc: Exception, attempt: int) -> _Retrying | _GaveUp:
    """Decide what follows what an attempt raised, unless it is no outcome: then it is raised again."""
    code_error = find_code_error(exc)
    if code_error is not None:
        run.blame(code_error)
        raise exc
    if isinstance(exc, TypeError) and (problem := find_misused_arguments(step.fn, step.args)) is not None:
        raise _misuse(run, path, problem) from exc
    # An exception that a cancelled function makes of its cancellation is no failure of the step.
    await trio.lowlevel.checkpoint_if_cancelled()
    if run.leaving is not None:
        raise exc
    timed_out = isinstance(exc, StepTimeoutError) and (exc.workflow, exc.instance_id, exc.key) == (
        run.workflow_name,
        run.instance_id,
        path,
    )
    policy = run.services.default_retry if isinstance(step.retry, Inherit) else step.retry
    try:
        decision = decide_failure(
            exc, timed_out=timed_out, attempt=attempt, policy=policy, uniform=run.services.uniform()
        )
    except Exception as broken:
        problem = f"the retry_on predicate raised {type(broken).__name__}: {broken}; it must return True or False"
        raise _misuse(run, path, problem) from broken
    info = exc.error if timed_out and isinstance(exc, StepTimeoutError) else describe_exception(exc)
    if isinstance(decision, TryAgain):
        return _Retrying(info, decision.delay_s)
    return _GaveUp(info, decision.failure, decision.retryable)


def _unencodable(problem: str) -> _GaveUp:
    info = ErrorInfo(
        type="memable.SerializationError",
        message=problem,
        bases=("memable.MemableError", "builtins.Exception", "builtins.BaseException"),
    )
    return _GaveUp(info, StepFailure.SERIALIZATION, retryable=False)


def _record_of(run: Run, path: str, made: _Made, attempt: int, started_at: float) -> StepRecord:
    """Return the record of what an attempt made. It is queued before the next suspension."""
    common: dict[str, Any] = {
        "instance": run.journal.started.instance,
        "seq": run.next_seq(),
        "at": run.services.clock.now(),
        "path": path,
        "started_at": started_at,
        "attempt": attempt,
        "status": run.take_status(),
    }
    match made:
        case _Returned(encoded, _):
            return StepCompleted(value=encoded, **common)
        case _Retrying(info, delay_s):
            return AttemptFailed(error=info, next_attempt_at=common["at"] + delay_s, **common)
        case _GaveUp(info, failure, retryable):
            return StepFailed(error=info, failure=failure, retryable=retryable, **common)
        case _:
            assert_never(made)


def _misuse(run: Run, path: str, problem: str) -> WorkflowCodeError:
    return run.blame(MisuseError(problem=problem, workflow=run.workflow_name, instance_id=run.instance_id, key=path))
