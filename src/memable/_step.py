"""
Executes one step: attempts, timeouts, backoff, effects that must not repeat, and the record of how it ended.
"""

from __future__ import annotations

import copy
import types
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType
from typing import Any, TypeAlias, assert_never, cast

import attrs
import trio

from ._decide import TryAgain, decide_failure, find_code_error
from ._encoded import Encoded
from ._error_info import ErrorInfo, describe_exception, rename_error
from ._errors import (
    MemableError,
    MisuseError,
    NotDoneError,
    OutcomeUnknownError,
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
from ._records import (
    AttemptFailed,
    InstanceRecord,
    IntentRecorded,
    StepCompleted,
    StepFailed,
    StepFailure,
    WaitAbandoned,
)
from ._retry import INHERIT, Inherit, RetryPolicy
from ._run import Place, Run, StepInProgress, current_step
from ._sleeping import message_for
from ._step_misuse import (
    Operation,
    find_misuse,
    find_misused_arguments,
    find_misused_effect,
    find_misused_result,
    find_misused_setting,
)
from ._wait import Wait

StepRecord: TypeAlias = StepCompleted | AttemptFailed | StepFailed

STEP_KIND = "a step"


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
    once: bool = False
    "Whether its effect must not repeat."
    probe: Callable[..., Any] | None = None
    "Asks the outside world whether the effect has happened."
    is_probe: bool = False
    "Whether this is such a question."


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


@attrs.define
class _NotDone:
    """A probe said that the effect did not happen."""


_Made: TypeAlias = _Returned | _Retrying | _GaveUp | _NotDone
"What one attempt made of the step."


async def perform_step(run: Run, place: Place, key: str, step: Step) -> Any:
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
        path = run.claim(step.operation, place, key, STEP_KIND, step.fn)
        problem = find_misuse(step.operation, step.fn, step.unknown)
        if problem is not None:
            raise run.misuse(problem, path)
        memo = run.journal.memos.get(path)
        try:
            annotation = run.services.annotations.return_annotation(step.fn) if step.returns is None else step.returns
            outcome = None if memo is None else _recall(run, memo, annotation)
        except (MisuseError, TypeMismatchError) as error:
            error.workflow, error.instance_id, error.key = run.workflow_name, run.instance_id, path
            raise run.blame(error) from None
        if memo is not None:
            await run.serve_memo()
        else:
            # With a memo these do not matter: one that is computed from what is left of a time may be negative by now.
            problem = find_misused_settings(step)
            if problem is not None:
                raise run.misuse(problem, path)
            await run.proceed(step.operation, step)
            outcome = await execute_step(run, place, path, step, annotation)
            if run.open_scopes:
                await run.deliver_cancellation()
            else:
                await trio.lowlevel.checkpoint_if_cancelled()
    except BaseException as exc:
        await refuse(run, place, path, exc)
        raise
    if isinstance(outcome, _Failure):
        try:
            raise outcome.error
        finally:
            # Its traceback leads back to here: kept, it would keep all of this alive until the next collection.
            del outcome
    return outcome


async def refuse(run: Run, place: Place, path: str | None, exc: BaseException) -> None:
    """
    Clean up after an operation that left no record in this run, to be called before *exc* goes on.

    Args:
        run: The run.
        place: Where the operation was called.
        path: Its path, if it was claimed.
        exc: What it raises.
    """
    # Nothing was recorded, or the caller was cancelled before it could learn of it: the key is free again.
    if path is not None:
        run.release(place, path)
    if run.services.observer is not None and not isinstance(exc, Exception):
        run.services.observer.on_interrupted(run, path)
    if not isinstance(exc, Exception) and (code_error := find_code_error(exc)) is not None:
        # Beside Cancelled in a group, say. The scope that takes its part of the group must not hide the rest.
        run.blame(code_error)
    if isinstance(exc, (WorkflowCodeError, RunEndedError)):
        # A refusal is a checkpoint, too: a body that tries again and again can be cancelled.
        await trio.lowlevel.checkpoint()


def find_misused_settings(step: Step) -> str | None:
    """
    Return what is wrong with how a step is to be run and what to write instead, or None.
    """
    is_plain = step.timeout is None and step.limiter is None and step.probe is None
    if is_plain and step.retry is INHERIT and step.once is False:
        # The usual case, told without the cost of looking further.
        return None
    return find_misused_setting(step.timeout, step.retry, step.limiter) or find_misused_effect(
        step.once, step.probe, step.timeout
    )


def find_unfit_arguments(step: Step) -> str | None:
    """
    Return what is wrong with the arguments of a step, for its function or its probe, or None.
    """
    fns = (step.fn,) if step.probe is None else (step.fn, step.probe)
    return next((problem for fn in fns if (problem := find_misused_arguments(fn, step.args)) is not None), None)


def _recall(run: Run, memo: Memo, annotation: Any) -> Any:
    if isinstance(memo, StepFailed):
        return _Failure(_failure_of(run, memo))
    # Keys of other kinds were refused when it was claimed.
    assert isinstance(memo, StepCompleted)
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


async def execute_step(run: Run, place: Place, path: str, step: Step, annotation: Any) -> Any:
    """
    Attempt a step until it has an outcome, which is durable and in the journal when this returns it.

    Returns:
        Its value, or an object of a private class that stands for its failure.
    """
    if step.once or path in run.journal.intents:
        # Code that says nothing of it any more does not make an effect that may have happened harmless.
        return await _execute_once(run, place, path, step, annotation)
    while True:
        attempt = await _wait_for_attempt(run, place, path, step) if path in run.journal.attempts else 1
        started_at = run.services.clock.now()
        run.activity.begin_execution()
        try:
            if run.ledger.is_suspended:
                await run.record_awakening()
            made = await _attempt(run, path, step, annotation, attempt)
            records = _draft(run, place, path, step, made, attempt=attempt, started_at=started_at)
            value = made.value if isinstance(made, _Returned) else None
            # Not kept meanwhile: what waits for the disk is to be small, there may be thousands.
            del made
            if not await run.ledger.append(records):
                await run.refuse_uncommitted(step.operation)
        finally:
            run.activity.end_execution()
        record = records[-1]
        if isinstance(record, StepCompleted):
            return value
        if isinstance(record, StepFailed):
            return _Failure(_failure_of(run, record))


async def _wait_for_attempt(run: Run, place: Place, path: str, step: Step) -> int:
    """Wait until the next attempt is due, and return its number."""
    failed = run.journal.attempts.get(path)
    if failed is None:
        return 1
    # Due at once if the time passed while the process was down; the budget is not refilled either.
    await wait_or_abandon(run, place, step.operation, Wait(path, failed.seq, failed.next_attempt_at))
    await run.proceed(step.operation)
    return failed.attempt + 1


# Interrupted by control-C just before it sleeps, the task would be woken while it does something else.
@trio.lowlevel.enable_ki_protection
@types.coroutine
def wait_or_abandon(run: Run, place: Place, operation: str, wait: Wait) -> Generator[Any, Any, None]:
    """
    Wait; if the body turns away from the wait, record that, so that nobody takes the instance for waiting there.

    Raises:
        RunEndedError: The run is being unwound, and the caller is shielded from that.
    """
    try:
        # Like ``sleep_unless_cancelled``, but without a generator of its own: what waits is to be small, there may be
        # thousands.
        if run.begin_wait(wait):
            try:
                (yield message_for(wait)).unwrap()
            finally:
                run.end_wait(wait)
        else:
            yield from trio.lowlevel.checkpoint()  # noqa: ASYNC105 - how a generator awaits
    except trio.Cancelled:
        if run.leaving is None and not run.is_over and wait.path not in run.deciding and not run.is_memo_only:
            yield from run.record(operation, place, WaitAbandoned, path=wait.path)
        raise
    finally:
        # From here on the journal says whether a signal can still reach it.
        run.turning_away.pop(wait.path, None)
    if run.leaving is not None or run.is_over:
        yield from trio.lowlevel.checkpoint_if_cancelled()  # noqa: ASYNC105 - how a generator awaits
        raise run.run_ended(operation)


async def _execute_once(run: Run, place: Place, path: str, step: Step, annotation: Any) -> Any:
    """Run an effect that must not repeat, or find out what became of it."""
    if path not in run.journal.intents:
        # Before the intent: once that is recorded, a mistake costs more.
        problem = find_unfit_arguments(step)
        if problem is not None:
            raise run.misuse(problem, path)
    elif (outcome := await _probe(run, place, path, step, annotation)) is not None:
        return outcome.value if isinstance(outcome, _Returned) else outcome
    taken: tuple[_Made, StepRecord] | None = None
    run.activity.begin_execution()
    try:
        if run.ledger.is_suspended:
            await run.record_awakening()
        async with _reserve_thread(step) as reserved:
            await trio.lowlevel.checkpoint_if_cancelled()
            if run.leaving is not None:
                raise run.run_ended(step.operation)
            # From here to the record of its outcome, the effect and what is known of it must not come apart.
            with trio.CancelScope(shield=True):
                taken = await _take_effect(run, place, path, reserved, annotation)
    finally:
        run.activity.end_execution()
    assert taken is not None
    made, record = taken
    if isinstance(made, _Returned):
        return made.value
    # No policy retries an effect.
    assert isinstance(record, StepFailed)
    return _Failure(_failure_of(run, record))


@asynccontextmanager
async def _reserve_thread(step: Step) -> AsyncIterator[Step]:
    """Wait for a thread, if it needs one, while that can still be cancelled; give the step that takes it."""
    if step.operation != "step_in_thread":
        yield step
        return
    limiter = step.limiter or trio.to_thread.current_default_thread_limiter()
    borrower = object()
    await limiter.acquire_on_behalf_of(borrower)
    try:
        yield attrs.evolve(step, limiter=trio.CapacityLimiter(1))
    finally:
        limiter.release_on_behalf_of(borrower)


async def _take_effect(run: Run, place: Place, path: str, step: Step, annotation: Any) -> tuple[_Made, StepRecord]:
    """Record the intent, run the effect and record what came of it, all of it shielded by the caller."""
    started_at = run.services.clock.now()
    made: _Made | None = None
    try:
        run.services.codec.check(annotation)
    except SerializationError as error:
        made = _unencodable(error.problem)
    if made is None:
        if path not in run.journal.intents:
            expects = run.services.codec.name_of(annotation)
            await run.record(step.operation, place, IntentRecorded, path=path, started_at=started_at, expects=expects)
        made = await _attempt(run, path, step, annotation, 1)
    return made, await _record(run, place, path, step, made, attempt=1, started_at=started_at)


async def _probe(run: Run, place: Place, path: str, step: Step, annotation: Any) -> _Returned | _Failure | None:
    """
    Find out what became of an effect that was begun; return None if it did not happen.

    Raises:
        OutcomeUnknownError: Nobody can tell.
    """
    if step.probe is None:
        # Whoever settles it may need a class that only the annotation names.
        with suppress(SerializationError):
            run.services.codec.check(annotation)
        raise run.blame(OutcomeUnknownError(workflow=run.workflow_name, instance_id=run.instance_id, key=path))
    asking = attrs.evolve(step, fn=step.probe, operation="step", once=False, probe=None, is_probe=True)
    while True:
        attempt = await _wait_for_attempt(run, place, path, step)
        if path not in run.journal.intents:
            # Somebody has settled it meanwhile.
            return _settled(run, path, annotation)
        started_at = run.services.clock.now()
        run.activity.begin_execution()
        try:
            if run.ledger.is_suspended:
                await run.record_awakening()
            made = await _attempt(run, path, asking, annotation, attempt)
            if isinstance(made, _NotDone):
                return None
            if isinstance(made, _GaveUp):
                # Also an answer that cannot be stored: it is the probe that is wrong, not the effect.
                raise run.blame(
                    OutcomeUnknownError(
                        workflow=run.workflow_name, instance_id=run.instance_id, key=path, error=made.info
                    )
                )
            record = await _record(run, place, path, step, made, attempt=attempt, started_at=started_at)
        finally:
            run.activity.end_execution()
        if isinstance(made, _Returned):
            return made
        assert isinstance(record, AttemptFailed)


def _settled(run: Run, path: str, annotation: Any) -> _Returned | _Failure | None:
    """Return what somebody has told of an effect, or None if that is that it did not happen."""
    memo = run.journal.memos.get(path)
    if memo is None:
        return None
    try:
        outcome = _recall(run, memo, annotation)
    except TypeMismatchError as error:
        error.workflow, error.instance_id, error.key = run.workflow_name, run.instance_id, path
        raise run.blame(error) from None
    return _Returned(memo.value, outcome) if isinstance(memo, StepCompleted) else outcome


async def _attempt(run: Run, path: str, step: Step, annotation: Any, attempt: int) -> _Made:
    """Call the function once. What it raises and is not the step's outcome passes through."""
    codec, observer = run.services.codec, run.services.observer
    try:
        # What an annotation already tells is found before the function can have an effect.
        codec.check(annotation)
    except SerializationError as error:
        return _unencodable(error.problem)
    if observer is not None and not step.is_probe:
        observer.on_executed(run, path, attempt)
    try:
        value = await (_call(run, path, step) if step.timeout is None else _call_in_time(run, path, step, attempt))
        if observer is not None and not step.once:
            # An effect that must not repeat is never cancelled.
            observer.on_finished(run, path)
    except Exception as exc:  # noqa: BLE001 - a step may fail with anything
        return await _judge(run, path, step, exc, attempt)
    try:
        # What the first run sees is what every replay sees, so it is read back before it counts.
        encoded, value = codec.encode_and_read_back(value, annotation)
    except SerializationError as error:
        return _unencodable(error.problem)
    except TypeMismatchError as error:
        return _unencodable(f"its value cannot be read back: {error}")
    return _Returned(encoded, value)


async def _call_in_time(run: Run, path: str, step: Step, attempt: int) -> Any:
    assert step.timeout is not None
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
            (result,) = await (run.services.run_in_thread or trio.to_thread.run_sync)(
                _call_in_thread, step.fn, step.args, abandon_on_cancel=not step.once, limiter=step.limiter
            )
            problem = find_misused_result(step.operation, result)
        else:
            awaitable = step.fn(*step.args)
            # The usual case is told without a call.
            problem = None
            if type(awaitable) is not types.CoroutineType:
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
        raise run.misuse(problem, path)
    if progress.code_error is not None:
        # The function was told that the code is wrong, and went on: what it made of that is no outcome.
        raise copy.copy(progress.code_error)
    return result


def _call_in_thread(fn: Callable[..., Any], args: tuple[object, ...]) -> tuple[Any]:
    # In a tuple, since trio itself refuses what looks as if it were to be awaited, in words that do not name memable.
    return (fn(*args),)


async def _judge(run: Run, path: str, step: Step, exc: Exception, attempt: int) -> _Made:
    """Decide what follows what an attempt raised, unless it is no outcome: then it is raised again."""
    code_error = find_code_error(exc)
    if code_error is not None:
        run.blame(code_error)
        raise exc
    if isinstance(exc, TypeError) and (problem := find_misused_arguments(step.fn, step.args)) is not None:
        raise run.misuse(problem, path) from exc
    # An exception that a cancelled function makes of its cancellation is no failure of the step.
    await trio.lowlevel.checkpoint_if_cancelled()
    if run.leaving is not None and not step.once:
        raise exc
    if step.is_probe and isinstance(exc, NotDoneError):
        return _NotDone()
    timed_out = isinstance(exc, StepTimeoutError) and (exc.workflow, exc.instance_id, exc.key) == (
        run.workflow_name,
        run.instance_id,
        path,
    )
    policy = run.services.default_retry if isinstance(step.retry, Inherit) else step.retry
    if step.once:
        policy = None
    try:
        decision = decide_failure(
            exc, timed_out=timed_out, attempt=attempt, policy=policy, uniform=run.services.uniform()
        )
    except Exception as broken:
        problem = f"the retry_on predicate raised {type(broken).__name__}: {broken}; it must return True or False"
        raise run.misuse(problem, path) from broken
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


async def _record(
    run: Run, place: Place, path: str, step: Step, made: _Made, *, attempt: int, started_at: float
) -> StepRecord:
    """Make durable what an attempt made of the step."""
    records = _draft(run, place, path, step, made, attempt=attempt, started_at=started_at)
    await run.commit(step.operation, records)
    return cast("StepRecord", records[-1])


def _draft(
    run: Run, place: Place, path: str, step: Step, made: _Made, *, attempt: int, started_at: float
) -> tuple[InstanceRecord, ...]:
    """Return what is to be made durable of what an attempt made of the step. The last record is the step's own."""
    if isinstance(made, _Returned):
        # The usual case, without the cost of a call that takes any facts of any record.
        beginnings = run.draft_beginnings(step.operation, place)
        completed = StepCompleted(
            instance=run.journal.started.instance,
            seq=run.ledger.next_seq(),
            at=run.services.clock.now(),
            path=path,
            value=made.encoded,
            started_at=started_at,
            attempt=attempt,
            status=run.take_status(),
        )
        return (*beginnings, completed) if beginnings else (completed,)
    common = {"path": path, "started_at": started_at, "attempt": attempt}
    match made:
        case _Retrying(info, delay_s):
            due = run.services.clock.now() + delay_s
            return run.draft(step.operation, place, AttemptFailed, error=info, next_attempt_at=due, **common)
        case _GaveUp(info, failure, retryable):
            facts = {"error": info, "failure": failure, "retryable": retryable, **common}
            return run.draft(step.operation, place, StepFailed, **facts)
        case _NotDone():
            raise AssertionError("what did not happen is no outcome")
        case _:
            assert_never(made)
