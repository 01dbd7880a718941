"""
Durable cancel scopes: a deadline that survives restarts, and whether it expired, decided once.
"""

from __future__ import annotations

import math
from datetime import datetime
from types import TracebackType
from typing import Literal, NoReturn, Self

import attrs
import trio

from ._decide import is_recorded_failure
from ._errors import MemableError
from ._records import ScopeEnded, ScopeStarted
from ._run import OpenScope, Place, Run, durable_scopes, is_time
from ._sparse import put
from ._step import refuse
from ._timers import Timer
from ._times import utc_datetime

SCOPE_KIND = "a cancel scope"

#: A scope that had expired when it was entered again cancels at the first operation without a memo. What is in it but
#: does not ask the context for anything is given so many seconds, while there are memos that may yet be asked for, and
#: anew with each one that is.
GRACE_S = 1.0


@attrs.define(slots=False, eq=False, kw_only=True)
class ScopeTimeoutError(MemableError, trio.TooSlowError, TimeoutError):
    """
    What is inside ``ctx.fail_after`` took too long. That is recorded: every replay raises the same.

    Here and not beside the other errors, which know nothing of trio.
    """

    workflow: str
    "Name of the workflow."
    instance_id: str
    "Id of the instance."
    key: str
    "Path of the scope."

    def __str__(self) -> str:
        return (
            f"workflow {self.workflow!r}, instance {self.instance_id!r}, key {self.key!r}: what is inside "
            f"ctx.fail_after took too long; catch this in the workflow, or engine.resume(...) to try once more"
        )


class DurableScope:
    """
    What ``async with ctx.move_on_after(...) as scope`` and ``ctx.fail_after(...)`` give.
    """

    def __init__(
        self, run: Run, place: Place, operation: Literal["move_on_after", "fail_after"], key: str, seconds: object
    ) -> None:
        """
        Prepare a scope. Made by a context only.
        """
        self._run = run
        self._place = place
        self._operation = operation
        self._key = key
        self._seconds = seconds
        self._path: str | None = None
        self._deadline: float | None = None
        self._decided: bool | None = None
        "Whether it expired, if that is recorded."
        self._is_due = False
        self._window: tuple[int, float] = (0, math.inf)
        "What was recorded inside has sequence numbers between these."
        self._over = trio.Event()
        "Set when it has cancelled what is inside, or was left."
        self._is_held = False
        "Whether it cancels as soon as what is on its way to the store is decided."
        self._is_left = False
        self._scope = trio.CancelScope()
        self._timer: Timer | None = None
        self._outer: tuple[OpenScope, ...] = ()

    @property
    def run(self) -> Run:
        """
        The run whose body it is in.
        """
        return self._run

    @property
    def cancelled_caught(self) -> bool:
        """
        Whether the scope expired and cancelled what was in it: the same on every replay. False until it is left.
        """
        return self._is_left and (self._scope.cancelled_caught if self._decided is None else self._decided)

    @property
    def deadline_at(self) -> datetime | None:
        """
        When the scope expires (UTC); None if it does not, or was not entered yet.
        """
        return None if self._deadline is None else utc_datetime(self._deadline)

    @property
    def deadline(self) -> float | None:
        """
        When it expires, in seconds since 1970, if that is still to come.
        """
        return None if self._is_due or self._decided is not None else self._deadline

    @property
    def is_expired(self) -> bool:
        """
        Whether its deadline has passed, or it is recorded as expired.
        """
        if self._is_due or self._decided is not None or self._deadline is None:
            return self._is_due
        return self._deadline <= self._run.services.clock.now()

    def __enter__(self) -> NoReturn:
        raise self._run.misuse(f"write 'async with ctx.{self._operation}(...)': entering a durable scope records it")

    def __exit__(self, *_: object) -> None:
        """
        Never called: a durable scope cannot be entered so.
        """

    # Interrupted by control-C halfway through, it could not be left any more.
    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Self:
        run, place = self._run, self._place
        path: str | None = None
        try:
            if self._path is not None:
                raise run.misuse("a scope is entered a second time; call ctx.move_on_after or ctx.fail_after again")
            path = run.claim(self._operation, place, self._key, SCOPE_KIND)
            memo = run.journal.memos.get(path)
            started = run.journal.scopes.get(path)
            if memo is None and started is None:
                if not is_time(self._seconds):
                    raise run.misuse(f"a scope of {self._seconds!r}; give seconds, at least 0", path)
                await run.proceed(self._operation)
                started = await run.record(
                    self._operation, place, ScopeStarted, path=path, deadline=self._new_deadline()
                )
                await run.deliver_cancellation()
            else:
                if memo is not None:
                    # Scopes around it let it come to its end.
                    run.replay.hold(path, memo.seq)
                await run.serve_memo()
        except BaseException as exc:
            if path is not None:
                run.replay.return_(path)
            await refuse(run, place, path, exc)
            raise
        self._path = path
        self._deadline = None if started is None else started.deadline
        self._decided = memo.expired if isinstance(memo, ScopeEnded) else None
        self._window = (0 if started is None else started.seq, math.inf if memo is None else memo.seq)
        self._enter()
        return self

    def _new_deadline(self) -> float | None:
        assert isinstance(self._seconds, (int, float))
        return None if self._seconds == math.inf else self._run.services.clock.now() + self._seconds

    def _enter(self) -> None:
        assert self._path is not None
        self._scope.__enter__()
        self._outer = durable_scopes.get()
        durable_scopes.set((*self._outer, self))
        self._run.open_scopes = put(self._run.open_scopes, self._path, self)
        if self._decided:
            self._expire()
        elif self._decided is None and self._deadline is not None:
            if self._deadline <= self._run.services.clock.now():
                self._expire()
            else:
                self._timer = self._run.services.timers.arm(self._deadline, self._expire)

    def _expire(self) -> None:
        self._is_due = True
        run = self._run
        if self._has_unserved():
            # What is recorded inside is still to be returned.
            self._cancel_after(run.last_progress_at + GRACE_S - run.services.clock.now())
        else:
            self._cancel()

    def _has_unserved(self) -> bool:
        return self._run.replay.has_unserved(self._place.prefix, *self._window)

    def _cancel_after(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        services = self._run.services
        fire = self._cancel if seconds else self._look_again
        self._timer = services.timers.arm(services.clock.now() + seconds, fire)

    def _look_again(self) -> None:
        if self._has_unserved():
            self._cancel_after(GRACE_S)
        else:
            self._cancel()

    def _cancel(self) -> None:
        if self._run.deciding:
            # A signal or a timeout was first: it ends its wait, and what comes after that is cancelled.
            self._is_held = True
        else:
            self._end()

    def _end(self) -> None:
        self._over.set()
        self._run.turn_away(self)
        self._scope.cancel()

    def on_decided(self) -> None:
        """
        Take note that no outcome of a wait is on its way to the store any more.
        """
        if self._is_held:
            self._is_held = False
            # Not at once: the wait that it ends is to return first.
            self._cancel_after(0.0)

    def on_progress(self) -> None:
        """
        Take note that the run has asked for a memo: there may be no more to wait for.
        """
        if self._is_due:
            # Not at once: the memo just asked for is still returned.
            self._cancel_after(GRACE_S if self._has_unserved() else 0.0)

    async def cancel_if_due(self) -> None:
        """
        Cancel what is inside, now that an operation without a memo is about to begin there.

        Not before what is recorded inside, and asked for in other tasks, was returned.
        """
        if not self.is_expired:
            return
        if not self._is_due:
            self._expire()
        if self._has_unserved():
            await self._over.wait()
        else:
            self._end()

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        exc_traceback: TracebackType | None,
    ) -> bool:
        assert self._path is not None
        if self._timer is not None:
            self._timer.cancel()
        durable_scopes.set(self._outer)
        self._run.open_scopes.pop(self._path, None)
        self._run.replay.return_(self._path)
        if self._decided:
            self._run.replay.leave_expired_scope(self._run.journal, self._place.prefix, *self._window)
        self._is_left = True
        self._over.set()
        suppressed = bool(self._scope.__exit__(exc_type, exc, exc_traceback))
        if self._decided and isinstance(exc, Exception) and is_recorded_failure(self._run.facts(exc), exc):
            # What failed while it was being cancelled: the first run got the cancellation in place of the failure.
            suppressed = True
        if exc is not None and not suppressed:
            # Nothing is decided: the run is unwound, or an error passes through. The use has left no outcome.
            self._run.release(self._place, self._path)
            await trio.lowlevel.cancel_shielded_checkpoint()
            return False
        try:
            await self._decide(self._path)
        except BaseException as refusal:
            await refuse(self._run, self._place, self._path, refusal)
            raise
        if self.cancelled_caught and self._operation == "fail_after":
            raise self.timeout_error()
        return suppressed

    async def _decide(self, path: str) -> None:
        run = self._run
        if self._decided is not None:
            await run.serve_memo()
            return
        await run.proceed(self._operation)
        expired = self._scope.cancelled_caught
        await run.record(self._operation, self._place, ScopeEnded, path=path, expired=expired)
        self._decided = expired
        await run.deliver_cancellation()

    def timeout_error(self) -> ScopeTimeoutError:
        """
        Return what ``fail_after`` raises.
        """
        assert self._path is not None
        return ScopeTimeoutError(workflow=self._run.workflow_name, instance_id=self._run.instance_id, key=self._path)
