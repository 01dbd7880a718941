"""
What a body waits for by itself: a signal at a suspend point, or an instant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from typing import Any

import trio

from ._errors import MemableError, MisuseError, NonDurableDeadlineError, SuspendTimeoutError, TypeMismatchError
from ._journal import Memo
from ._records import SignalKept, SignalReceived, SleepEnded, SuspendTimedOut, WaitAbandoned, WaitStarted
from ._run import Place, Run, is_time
from ._sparse import put
from ._step import refuse, wait_or_abandon
from ._suspend_point import SuspendPoint
from ._wait import Wait

SUSPEND_KIND = "a suspend point"
SLEEP_KIND = "a sleep"


def claim_suspend(run: Run, place: Place, point: object) -> str:
    """
    Return the path of a suspend point, now in use.
    """
    if not isinstance(point, SuspendPoint):
        raise run.misuse(
            f"suspend takes a memable.SuspendPoint, not {point!r}; make one, for example "
            f"APPROVAL = memable.SuspendPoint('approval:v1', bool)"
        )
    return run.claim("suspend", place, point.key, SUSPEND_KIND)


def recall_signal(run: Run, path: str, point: SuspendPoint[Any]) -> tuple[Any] | MemableError | None:
    """
    Return what is recorded as the end of a wait for a signal, if anything is: the payload, or what is to be raised.
    """
    memo: Memo | SignalKept | None = run.journal.memos.get(path) or run.journal.kept.get(path)
    if memo is None:
        return None
    if isinstance(memo, SuspendTimedOut):
        return SuspendTimeoutError(workflow=run.workflow_name, instance_id=run.instance_id, key=path)
    assert isinstance(memo, (SignalReceived, SignalKept))
    try:
        return (run.services.codec.decode(memo.value, point.type),)
    except TypeMismatchError as error:
        error.workflow, error.instance_id, error.key = run.workflow_name, run.instance_id, path
        raise run.blame(error) from None


async def begin_suspend(
    run: Run, place: Place, path: str, point: SuspendPoint[Any], *, status: object, timeout: object
) -> Wait:
    """
    Check the call, make its deadline durable, and return the wait.
    """
    if status is not None and not isinstance(status, str):
        raise run.misuse(f"the status of suspend is a str, not {type(status).__name__}", path)
    if timeout is not None and not is_time(timeout):
        raise run.misuse(f"timeout is {timeout!r}; give seconds, at least 0, or None for no limit", path)
    try:
        expects = run.services.codec.name_of(point.type)
    except MemableError as error:
        raise run.misuse(f"the type of {point!r}: {error}", path) from None
    refuse_plain_deadline(run, path, "suspend")
    await _proceed(run, place, "suspend", path)
    note = None if status is None else str.__str__(status)
    started = run.journal.waits.get(path)
    if started is None or path in run.journal.abandoned or (started.expects, started.note) != (expects, note):
        deadline = started.deadline if started is not None else _deadline(run, timeout)
        started = await run.record(
            "suspend", place, WaitStarted, path=path, deadline=deadline, expects=expects, note=note
        )
    return Wait(path, started.seq, started.deadline, note)


async def end_overdue(run: Run, place: Place, path: str) -> None:
    """
    Record that there was no signal in time, unless one is first: the task goes on later than its wait ends.
    """
    if path in run.deciding or path in run.journal.memos or path in run.journal.kept:
        return
    run.begin_deciding(path)
    try:
        await run.record("suspend", place, SuspendTimedOut, path=path)
    finally:
        run.end_deciding(path)


async def _proceed(run: Run, place: Place, operation: str, path: str) -> None:
    """Leave the replay. If that is cancelled where an earlier run waited, record that nobody waits there any more."""
    is_open = path in run.journal.waits and path not in run.journal.abandoned
    turns_away = is_open and run.is_in_expired_scope()
    if turns_away:
        # The scope was first: a signal that comes while its cancellation is on its way is too late.
        run.turning_away = put(run.turning_away, path, None)
    try:
        await run.proceed(operation)
    except trio.Cancelled:
        if is_open and run.leaving is None and not run.is_over and not run.is_memo_only:
            await run.record(operation, place, WaitAbandoned, path=path)
        raise
    finally:
        run.turning_away.pop(path, None)


async def perform_sleep(
    run: Run, place: Place, key: str, operation: str, deadline_of: Callable[[float], float | None]
) -> None:
    """
    Sleep until the deadline that was fixed when the sleep was first reached.

    Args:
        run: The run.
        place: Where it was called.
        key: Names the sleep.
        operation: What was called.
        deadline_of: Returns the deadline for the time it is now; raises ``MisuseError`` for senseless arguments.
    """
    path: str | None = None
    try:
        path = run.claim(operation, place, key, SLEEP_KIND)
        if path in run.journal.memos:
            await run.serve_memo()
            return
        refuse_plain_deadline(run, path, operation)
        try:
            deadline = deadline_of(run.services.clock.now())
        except MisuseError as error:
            raise run.misuse(error.problem, path) from None
        await _proceed(run, place, operation, path)
        started = run.journal.waits.get(path)
        if started is None or path in run.journal.abandoned:
            if started is not None:
                deadline = started.deadline
            started = await run.record(operation, place, WaitStarted, path=path, deadline=deadline)
        wait = Wait(path, started.seq, started.deadline)
        while not wait.is_overdue:
            await wait_or_abandon(run, place, operation, wait)
        await run.record(operation, place, SleepEnded, path=path)
        await run.deliver_cancellation()
    except BaseException as exc:
        await refuse(run, place, path, exc)
        raise


def after_seconds(seconds: object) -> Callable[[float], float | None]:
    """
    Return the function that makes a deadline of a duration.
    """

    def deadline_of(now: float) -> float | None:
        if not is_time(seconds):
            raise MisuseError(problem=f"a sleep of {seconds!r}; give seconds, at least 0")
        assert isinstance(seconds, (int, float))
        return None if seconds == math.inf else now + seconds

    return deadline_of


def at_instant(instant: object) -> Callable[[float], float | None]:
    """
    Return the function that makes a deadline of an aware datetime.
    """

    def deadline_of(_now: float) -> float:
        if not isinstance(instant, datetime) or instant.utcoffset() is None:
            raise MisuseError(
                problem=f"sleep_until takes an aware datetime, not {instant!r}; give one with a time zone, for example "
                "datetime.now(UTC) + timedelta(days=1)"
            )
        return instant.timestamp()

    return deadline_of


def refuse_plain_deadline(run: Run, path: str, operation: str) -> None:
    """
    Refuse to wait inside a deadline of trio's.

    Raises:
        NonDurableDeadlineError: There is one. Around the body there is none: its scope is shielded.
    """
    if run.leaving is not None:
        # That is told first.
        return
    deadline = trio.current_effective_deadline()
    # Minus infinity: something around is cancelled already, and says so at the next checkpoint.
    if -math.inf < deadline < math.inf:
        raise run.blame(
            NonDurableDeadlineError(
                workflow=run.workflow_name, instance_id=run.instance_id, key=path, operation=operation
            )
        )


def _deadline(run: Run, timeout: object) -> float | None:
    if timeout is None or timeout == math.inf:
        return None
    assert isinstance(timeout, (int, float))
    return run.services.clock.now() + timeout
