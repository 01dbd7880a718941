"""
Drives one run: calls the body, decides how it ended, sees to children and compensations, and records the end.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any, assert_never

import attrs
import trio

from ._compensation import lost_compensations, run_compensations
from ._decide import Block, Cancel, Complete, Ending, Fail, Leave, decide_ending, fatal_leaves, find_code_error
from ._error_info import ErrorInfo, describe_exception, on_one_line
from ._errors import OutcomeUnknownError, RunEndedError, SerializationError, WorkflowCodeError
from ._records import (
    CompensationBegun,
    InstanceBlocked,
    InstanceCancelled,
    InstanceCompleted,
    InstanceFailed,
    InstanceRecord,
)
from ._related import related_to
from ._run import MEMO_ONLY_PATIENCE_S, Run
from ._step_misuse import find_misused_call

logger = logging.getLogger("memable")


@attrs.frozen
class Driven:
    """
    What came of driving a run.
    """

    fatal: tuple[BaseException, ...] = ()
    "What left the body and is nobody's to handle, such as ``KeyboardInterrupt``; usually nothing."
    needs_memo_only_run: bool = False
    "The body is to run once more, over its memos only, to register its compensations."


class BodyCall:
    """
    The call of a run's body, and how it ended. There is one for each run.
    """

    __slots__ = ("_patience", "exc", "returned", "run")

    def __init__(self, run: Run) -> None:
        """
        Take the current task for the one of the body, which is about to be called.
        """
        self.run: Run = run
        self.returned: tuple[object] | None = None
        "What the body has returned, if it has."
        self.exc: BaseException | None = None
        "What it has raised, if it has."
        run.begin_body()
        if run.services.observer is not None:
            run.services.observer.on_run(run)
        self._patience = _Patience(run) if run.is_memo_only else None

    async def conclude(self) -> Driven:
        """
        Record how the run ended. Nothing of it is on its way to the store after that.

        Cancellation:
            Brought to its end, whatever is cancelled.
        """
        run, value = self.run, None if self.returned is None else self.returned[0]
        # Its traceback leads back to here: kept, it would keep all of the run alive until the next collection.
        exc, self.exc = self.exc, None
        try:
            if inspect.iscoroutine(value):
                value.close()
                run.misuse(f"the body returned the coroutine {value.__qualname__}(...); an await is missing")
        except BaseException as error:  # noqa: BLE001 - nothing of it is lost
            exc = error
        run.end_body()
        if run.services.observer is not None:
            run.services.observer.on_left(run, exc, has_returned=self.returned is not None)
        if self._patience is not None:
            self._patience.end()
        # Sorted leaf by leaf: what is fatal is given to the engine, the rest is the instance's outcome.
        fatal = [] if exc is None else fatal_leaves(exc, trio.Cancelled)
        if fatal:
            driven = Driven(tuple(fatal))
        else:
            driven = await _end(run, exc, returned=self.returned is not None, value=value)
        if not run.ledger.is_settled:
            with trio.CancelScope(shield=True):
                await run.ledger.wait_settled()
        return driven


class _Patience:
    """
    Gives up a run that only registers compensations if it asks for nothing any more.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._arm()

    def _arm(self) -> None:
        timers = self._run.services.timers
        self._timer = timers.arm(self._run.last_progress_at + MEMO_ONLY_PATIENCE_S, self._look)

    def _look(self) -> None:
        if self._run.last_progress_at + MEMO_ONLY_PATIENCE_S <= self._run.services.clock.now():
            self._run.lose_patience()
        if self._run.leaving is None:
            self._arm()

    def end(self) -> None:
        """Give nothing up any more."""
        self._timer.cancel()


async def _end(run: Run, exc: BaseException | None, *, returned: bool, value: object) -> Driven:
    cause = run.journal.compensating
    hiding = _find_hiding_error(run, exc)
    if cause is None:
        ending = decide_run(run, exc, value)
        if isinstance(ending, Leave) and returned:
            logger.warning(
                "workflow %r, instance %r: the body swallowed the cancellation by which it was to be %s; what it "
                "returned is ignored, and it runs again",
                run.workflow_name,
                run.instance_id,
                "unwound for a shutdown" if run.leaving == "stopping" else "passivated",
            )
        if isinstance(ending, (Fail, Cancel)):
            run.is_ending = True
            if run.journal.children:
                await _cancel_children(run, ending)
            # A run that was being cancelled before does not look stopped, and some children may not have been told.
            if run.leaving == "stopping" or (run.journal.children and run.host.is_halted):
                return Driven()
            if run.journal.compensations and hiding is None:
                cause = await _begin_compensations(run, ending)
                if cause is None:
                    return Driven()
        if cause is None:
            record = _ending_record(run, ending) if hiding is None else _blocked_by(run, hiding)
            await _record_ending(run, record)
            return Driven()
    elif run.leaving in ("stopping", "passivated"):
        return Driven()
    if hiding is not None:
        await _record_ending(run, _blocked_by(run, hiding))
        return Driven()
    needs_memo_only_run = bool(lost_compensations(run)) and not run.is_memo_only
    return Driven(needs_memo_only_run=True) if needs_memo_only_run else await _compensate(run, cause)


def _find_hiding_error(run: Run, exc: BaseException | None) -> WorkflowCodeError | None:
    """
    Return the code error that has kept a run over memos only from registering all compensations, if one has.

    None of them runs then: those that are hidden are to run before older ones, once the code is mended.
    """
    if not run.is_memo_only or not lost_compensations(run):
        return None
    return run.code_error or (None if exc is None else find_code_error(exc))


def decide_run(run: Run, exc: BaseException | None, value: object) -> Ending:
    """
    Decide what follows what the body has returned or raised, and encode the one.
    """
    problem = find_misused_call(exc)
    if problem is not None and run.leaving is None:
        run.misuse(problem)
    ending = decide_ending(run.facts(exc), exc)
    if not isinstance(ending, Complete):
        return ending
    try:
        return Complete(run.services.codec.encode(value, run.output))
    except SerializationError as error:
        error.workflow, error.instance_id = run.workflow_name, run.instance_id
        return Fail(describe_exception(error), ())


async def _cancel_children(run: Run, ending: Fail | Cancel) -> None:
    """Cancel the attached child instances that have not ended, and wait for their end."""
    reason = f"its parent {'was cancelled' if isinstance(ending, Cancel) else 'failed'}"
    with trio.CancelScope(shield=True):
        await run.host.cancel_children(run.journal, run.instance_id, reason)


async def _begin_compensations(run: Run, ending: Fail | Cancel) -> CompensationBegun | None:
    """Record that compensations begin; return None if the store failed."""
    request = run.cancel_request
    begun = CompensationBegun(
        instance=run.journal.started.instance,
        seq=run.ledger.next_seq(),
        at=run.services.clock.now(),
        error=ending.error,
        failed_paths=ending.failed_paths,
        is_cancelled=isinstance(ending, Cancel),
        reason=None if request is None or not isinstance(ending, Cancel) else request.reason,
        status=run.take_status(),
    )
    return begun if await run.ledger.append((begun,)) else None


async def _compensate(run: Run, cause: CompensationBegun) -> Driven:
    blocked, raised = await run_compensations(run)
    fatal = [leaf for exc in raised for leaf in fatal_leaves(exc, trio.Cancelled)]
    if fatal:
        return Driven(tuple(fatal))
    if run.leaving is not None or run.scope.cancel_called:
        return Driven()
    unexpected = [exc for exc in raised if not any(isinstance(one, RunEndedError) for one in related_to(exc))]
    if raised and not unexpected:
        # The store failed.
        return Driven()
    if unexpected:
        return Driven(tuple(unexpected))
    common = _common(run)
    record: InstanceRecord
    if blocked is not None:
        record = _blocked_by(run, blocked)
    elif cause.is_cancelled:
        record = InstanceCancelled(
            seq=run.ledger.next_seq(), reason=cause.reason, error=cause.error, failed_paths=cause.failed_paths, **common
        )
    else:
        assert cause.error is not None
        record = InstanceFailed(seq=run.ledger.next_seq(), error=cause.error, failed_paths=cause.failed_paths, **common)
    await _record_ending(run, record)
    return Driven()


async def _record_ending(run: Run, record: InstanceRecord | None) -> None:
    if record is None:
        return
    run.is_ending = True
    if not await run.ledger.append((record,)):
        return
    run.ending = record
    if isinstance(record, (InstanceFailed, InstanceBlocked)):
        # A recovered instance may have nobody who asks for its result.
        became = "failed" if isinstance(record, InstanceFailed) else "is blocked"
        told = on_one_line(str(record.error))
        logger.warning("workflow %r, instance %r %s: %s", run.workflow_name, run.instance_id, became, told)


def _common(run: Run) -> dict[str, Any]:
    return {
        "instance": run.journal.started.instance,
        "at": run.services.clock.now(),
        "status": run.take_status(),
    }


def _blocked_by(run: Run, error: WorkflowCodeError) -> InstanceBlocked:
    return _blocked_record(run, getattr(error, "key", None), error, describe_exception(error), ())


def _blocked_record(
    run: Run, path: str | None, cause: BaseException | None, error: ErrorInfo, failed_paths: tuple[str, ...]
) -> InstanceBlocked:
    # Without a probe, nobody but a person can tell.
    needs_resume = isinstance(cause, OutcomeUnknownError) and cause.error is None
    return InstanceBlocked(
        seq=run.ledger.next_seq(),
        path=path,
        error=error,
        failed_paths=failed_paths,
        needs_resume=needs_resume,
        **_common(run),
    )


def _ending_record(run: Run, ending: Ending) -> InstanceRecord | None:
    match ending:
        case Leave():
            return None
        case Complete(encoded):
            assert encoded is not None
            return InstanceCompleted(seq=run.ledger.next_seq(), value=encoded, **_common(run))
        case Fail(error, failed_paths):
            return InstanceFailed(seq=run.ledger.next_seq(), error=error, failed_paths=failed_paths, **_common(run))
        case Block(path, error, failed_paths, cause):
            return _blocked_record(run, path, cause, error, failed_paths)
        case Cancel(error, failed_paths):
            assert run.cancel_request is not None
            return InstanceCancelled(
                seq=run.ledger.next_seq(),
                reason=run.cancel_request.reason,
                error=error,
                failed_paths=failed_paths,
                **_common(run),
            )
        case _:
            assert_never(ending)
