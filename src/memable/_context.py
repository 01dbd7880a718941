"""
What workflow authors call inside a body.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from typing import Any, Concatenate, Never, ParamSpec, TypeVar, TypeVarTuple, cast

import trio

from ._calls import perform_call, perform_start
from ._compensation import perform_compensate
from ._errors import InvalidKeyError, MemableError
from ._fan_out import ChildFailed, ChildSucceeded, FanOut, perform_fan_out
from ._keys import check_key
from ._retry import INHERIT, Inherit, RetryPolicy
from ._run import Leaving, Place, Run
from ._scopes import DurableScope
from ._step import Step, perform_step, refuse, wait_or_abandon
from ._suspend_point import SuspendPoint
from ._waiting import after_seconds, at_instant, begin_suspend, claim_suspend, end_overdue, perform_sleep, recall_signal

T = TypeVar("T")
Item = TypeVar("Item")
P = ParamSpec("P")
Args = TypeVarTuple("Args")


class Context:
    """
    What a workflow's body is given as its first argument: durable operations, named by keys.

    Valid until the body is left. It may be used in any task of the body, nurseries included, but not inside a step.
    """

    __slots__ = ("_place", "_run")

    def __init__(self, run: Run, place: Place | None = None) -> None:
        """
        Bind a context to a run, or to one child of a fan-out in it. Made by the engine only.
        """
        self._run = run
        self._place = run.place if place is None else place

    def __repr__(self) -> str:
        return f"<memable.Context of workflow {self.workflow_name!r}, instance {self.instance_id!r}>"

    @property
    def workflow_name(self) -> str:
        """
        Name of the workflow.
        """
        return self._run.workflow_name

    @property
    def instance_id(self) -> str:
        """
        Id of the instance.
        """
        return self._run.instance_id

    @property
    def replaying(self) -> bool:
        """
        False in an instance's first run, else True until the first operation that has no memo.
        """
        return self._run.replaying

    @property
    def leaving(self) -> Leaving | None:
        """
        Why the body is being unwound: ``"passivated"``, ``"stopping"`` or ``"cancelled"``; None while it is not.

        Meanwhile an operation that has no memo does not run, shielded or not.
        """
        return self._run.leaving

    def step_id(self, key: str) -> str:
        """
        Return a stable string, unique to this instance, *key* and generation, as an idempotency key for services.

        A crash, a retry or a resume does not change it; forgetting the key, or running the instance anew, does.

        Raises:
            InvalidKeyError: The key breaks the rule for keys.
        """
        try:
            return self._run.step_id(self._place.prefix + check_key("key", key))
        except InvalidKeyError as error:
            error.workflow, error.instance_id = self.workflow_name, self.instance_id
            raise self._run.blame(error) from None

    def set_status(self, message: str) -> None:
        """
        Show *message* as the state of the instance: ``InProgress(message)``.

        Durability:
            Recorded with the next memo.

        Replay:
            Not announced again while replaying.

        Raises:
            MisuseError: *message* is not a ``str``.
            NestedStepError: Called inside a step.
            RunEndedError: The run has ended.
        """
        given: object = message
        if not isinstance(given, str):
            problem = f"set_status takes a str, not {type(given).__name__}"
            raise self._run.misuse(problem)
        # Of a subclass of str the text that it holds is recorded.
        self._run.set_status(str.__str__(message))

    async def step(
        self,
        key: str,
        async_fn: Callable[[*Args], Awaitable[T]],
        *args: *Args,
        timeout: float | None = None,
        retry: RetryPolicy | Inherit | None = INHERIT,
        returns: Any = None,
        once: bool = False,
        probe: Callable[[*Args], Awaitable[T]] | None = None,
        **unknown: Never,
    ) -> T:
        """
        Return the recorded value of *key*, or run ``async_fn(*args)``, record its outcome and return it.

        Args:
            key: Names the step within the instance; used once in a run.
            async_fn: The work. Its return annotation says how the value is stored.
            *args: Its arguments; use ``functools.partial`` for keywords.
            timeout: Seconds that each attempt may take, by a cancel scope around it; None for no limit.
            retry: The policy for failures; None for none; left out, the engine's default.
            returns: The type of the value, where the function is not annotated with it.
            once: Whether the effect must not repeat: an intent is made durable before the function starts, and a crash
                after that never runs it again by itself.
            probe: With *once*, asks the outside world what became of the effect if a crash cut it short: it is given
                the same arguments, and returns the value, or raises ``NotDoneError`` if it did not happen. Without
                one the instance is Blocked until ``engine.settle``.
            **unknown: Nothing; refused as a misuse, so that a misspelt option does not fail the instance.

        Returns:
            The value as decoded from its record, also in the first run.

        Raises:
            StepFailedError: It failed for good; as ``StepTimeoutError`` or ``RetriesExhaustedError`` where it is that.
                The failure is recorded: every replay raises it with the same facts.
            SerializationError: The value cannot be stored; recorded like a failure.
            WorkflowCodeError: The code is wrong, for example a key is used twice. Nothing is recorded.
            RunEndedError: The run has ended, or is being unwound and the caller is shielded. Nothing is recorded.

        Durability:
            The outcome is durable before it is returned or raised. A crash before that runs the step again; a crash
            after it does not.

        Cancellation:
            A cancelled function records nothing, and the key may be used again. Once its outcome is being recorded,
            that is brought to its end, and then ``Cancelled`` is raised.
        """
        step = Step("step", async_fn, args, timeout, retry, returns, None, unknown, once, probe)
        result: T = await perform_step(self._run, self._place, key, step)
        return result

    async def step_in_thread(
        self,
        key: str,
        sync_fn: Callable[[*Args], T],
        *args: *Args,
        timeout: float | None = None,
        retry: RetryPolicy | Inherit | None = INHERIT,
        returns: Any = None,
        once: bool = False,
        probe: Callable[[*Args], Awaitable[T]] | None = None,
        limiter: trio.CapacityLimiter | None = None,
        **unknown: Never,
    ) -> T:
        """
        Do what ``step`` does for a blocking function, in a worker thread.

        Args:
            key: Names the step within the instance; used once in a run.
            sync_fn: The work. Its return annotation says how the value is stored.
            *args: Its arguments; use ``functools.partial`` for keywords.
            timeout: Seconds that each attempt may take; None for no limit.
            retry: The policy for failures; None for none; left out, the engine's default.
            returns: The type of the value, where the function is not annotated with it.
            once: As for ``step``; the thread is then waited for, whatever is cancelled.
            probe: As for ``step``; an async function here, too.
            limiter: Bounds how many threads run at once; trio's default limiter if left out.
            **unknown: Nothing; refused as a misuse.

        Returns:
            The value as decoded from its record, also in the first run.

        Raises:
            StepFailedError: As for ``step``.
            SerializationError: As for ``step``.
            WorkflowCodeError: As for ``step``.
            RunEndedError: As for ``step``.

        Durability:
            As for ``step``.

        Cancellation:
            A function that is cancelled or past its timeout is abandoned to its thread, and its result is discarded.
            The thread may overlap a retry and outlive the engine; hand ``ctx.step_id(key)`` to services to fence it.
        """
        step = Step("step_in_thread", sync_fn, args, timeout, retry, returns, limiter, unknown, once, probe)
        result: T = await perform_step(self._run, self._place, key, step)
        return result

    # Waiting -------------------------------------------------------------------------------------------------

    async def suspend(self, point: SuspendPoint[T], *, status: str | None = None, timeout: float | None = None) -> T:
        """
        Wait for a signal, for as long as it takes, restarts included. A checkpoint.

        Args:
            point: Where: names the wait within the instance, and says the type of the payload.
            status: Shown as the status of the instance while it waits.
            timeout: Seconds from when the wait was first reached; None for no limit.

        Returns:
            The payload that was given to ``engine.signal``.

        Raises:
            SuspendTimeoutError: There was no signal in time; recorded, so every replay raises it.
            WorkflowCodeError: The code is wrong, for example a key is used twice. Nothing is recorded.
            RunEndedError: The run has ended, or is being unwound and the caller is shielded.

        Durability:
            The deadline is durable before it waits; signal or timeout is decided once, and durable before it returns.

        Cancellation:
            A wait that is cancelled may be begun again with the same key; its deadline stays.
        """
        # Not in a function of its own: thousands may wait, and it would take 300 bytes of each.
        run, place = self._run, self._place
        path: str | None = None
        try:
            path = claim_suspend(run, place, point)
            # A signal may have come before this run got here.
            await run.wait_decided(path)
            outcome = recall_signal(run, path, point)
            if outcome is not None:
                await run.serve_memo()
            else:
                wait = await begin_suspend(run, place, path, point, status=status, timeout=timeout)
                while path not in run.journal.memos and path not in run.journal.kept:
                    await wait_or_abandon(run, place, "suspend", wait)
                    if wait.is_overdue:
                        await end_overdue(run, place, path)
                outcome = recall_signal(run, path, point)
                run.replay.return_(path)
                await run.deliver_cancellation()
        except BaseException as exc:
            await refuse(run, place, path, exc)
            raise
        assert outcome is not None
        if isinstance(outcome, MemableError):
            raise outcome
        payload: T = outcome[0]
        return payload

    async def sleep(self, key: str, seconds: float) -> None:
        """
        Sleep until *seconds* have passed since the sleep was first reached, restarts included. A checkpoint.

        Args:
            key: Names the sleep within the instance.
            seconds: How long; at least 0.

        Raises:
            WorkflowCodeError: The code is wrong. Nothing is recorded.
            RunEndedError: The run has ended, or is being unwound and the caller is shielded.

        Durability:
            The deadline is durable before it sleeps. One that passed while the process was down is due at once.
        """
        await perform_sleep(self._run, self._place, key, "sleep", after_seconds(seconds))

    async def sleep_until(self, key: str, instant: datetime) -> None:
        """
        Sleep until *instant*, as it was given when the sleep was first reached. A checkpoint.

        Args:
            key: Names the sleep within the instance.
            instant: An aware datetime.

        Raises:
            WorkflowCodeError: The code is wrong. Nothing is recorded.
            RunEndedError: The run has ended, or is being unwound and the caller is shielded.

        Durability:
            As for ``sleep``.
        """
        await perform_sleep(self._run, self._place, key, "sleep_until", at_instant(instant))

    def move_on_after(self, key: str, seconds: float) -> DurableScope:
        """
        Return a durable cancel scope: ``async with ctx.move_on_after("limit", 3600) as scope``.

        Its deadline is fixed when it is first entered. Past it, what is inside is cancelled, and the body goes on
        behind it; ``scope.cancelled_caught`` says whether that happened.

        Args:
            key: Names the scope within the instance.
            seconds: How long, at least 0.

        Replay:
            Whether the scope expired is decided once. Memos inside an expired scope are still returned; the first
            operation without one is cancelled.
        """
        return DurableScope(self._run, self._place, "move_on_after", key, seconds)

    def fail_after(self, key: str, seconds: float) -> DurableScope:
        """
        Return a durable cancel scope that raises ``ScopeTimeoutError`` when it is left after it has expired.

        Args:
            key: Names the scope within the instance.
            seconds: How long, at least 0.

        Replay:
            As for ``move_on_after``.
        """
        return DurableScope(self._run, self._place, "fail_after", key, seconds)

    # Structure -----------------------------------------------------------------------------------------------

    async def fan_out(
        self,
        key: str,
        fn: Callable[[Context, Item], Awaitable[T]],
        items: Iterable[Item],
        *,
        limit: int | None = None,
        item_key: Callable[[Item], str] | None = None,
    ) -> list[T]:
        """
        Run ``fn(child_ctx, item)`` for each item, and return the results in the order of the items. A checkpoint.

        Args:
            key: Names the fan-out within the instance.
            fn: An async function; keys in it do not clash between children. Or a workflow: then each child is an
                instance of its own, linked to this one.
            items: Any iterable. Gone through again at each replay, so it must give the same items again; more may
                follow.
            limit: At most so many children run at once; None for no limit.
            item_key: Names each child by its item; by its place if left out.

        Raises:
            ChildFailedError: A child failed; the others were cancelled. Recorded: every replay raises the same.
            ItemsChangedError: The items are not those of which children are recorded. Nothing ran.
            WorkflowCodeError: The code is wrong.
            RunEndedError: The run has ended, or is being unwound and the caller is shielded.

        Durability:
            Each child's outcome is durable when it ends. Children that have one do not run again.

        Cancellation:
            Cancels the children; those that have ended stay so.
        """
        fan_out = FanOut("fan_out", fn, items, limit, item_key, settles=False, make_context=Context)
        return await perform_fan_out(self._run, self._place, key, fan_out)

    async def fan_out_settled(
        self,
        key: str,
        fn: Callable[[Context, Item], Awaitable[T]],
        items: Iterable[Item],
        *,
        limit: int | None = None,
        item_key: Callable[[Item], str] | None = None,
    ) -> list[ChildSucceeded[T] | ChildFailed]:
        """
        Do what ``fan_out`` does, but let all children come to their end, and return how each did. A checkpoint.

        Args:
            key: Names the fan-out within the instance.
            fn: As for ``fan_out``.
            items: As for ``fan_out``.
            limit: At most so many children run at once; None for no limit.
            item_key: Names each child by its item; by its place if left out.

        Raises:
            ItemsChangedError: The items are not those of which children are recorded. Nothing ran.
            WorkflowCodeError: The code is wrong.
            RunEndedError: The run has ended, or is being unwound and the caller is shielded.

        Durability:
            As for ``fan_out``.
        """
        fan_out = FanOut("fan_out_settled", fn, items, limit, item_key, settles=True, make_context=Context)
        return await perform_fan_out(self._run, self._place, key, fan_out)

    async def call(
        self, key: str, workflow: Callable[Concatenate[Context, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """
        Run a child instance of *workflow*, and return what it returned. A checkpoint.

        Args:
            key: Names the call; the child's id is this instance's id, ``/``, and the path of the key.
            workflow: A registered workflow.
            *args: Its arguments.
            **kwargs: None: arguments of a workflow are positional.

        Raises:
            ChildFailedError: The child failed or was cancelled. Recorded: every replay raises the same.
            WorkflowCodeError: The code is wrong, for example the workflow is not registered.
            RunEndedError: The run has ended, or is being unwound and the caller is shielded.

        Durability:
            The child's start is durable in the same batch as this instance's record of it.

        Cancellation:
            The child goes on, unless this instance is cancelled or fails.
        """
        if kwargs:
            problem = f"arguments of a workflow are positional, but {', '.join(map(repr, kwargs))} is given by keyword"
            raise self._run.misuse(problem)
        return cast(T, await perform_call(self._run, self._place, key, workflow, args))

    async def start(
        self,
        key: str,
        workflow: Callable[Concatenate[Context, P], Awaitable[object]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> str:
        """
        Start an instance of *workflow* that lives on its own, once, and return its id. A checkpoint.

        Args:
            key: Names the start; the id is this instance's id, ``/``, and the path of the key.
            workflow: A registered workflow.
            *args: Its arguments.
            **kwargs: None: arguments of a workflow are positional.

        Raises:
            WorkflowCodeError: The code is wrong, for example the workflow is not registered.
            RunEndedError: The run has ended, or is being unwound and the caller is shielded.

        Durability:
            The start is durable when this returns.
        """
        if kwargs:
            problem = f"arguments of a workflow are positional, but {', '.join(map(repr, kwargs))} is given by keyword"
            raise self._run.misuse(problem)
        return await perform_start(self._run, self._place, key, workflow, args)

    async def compensate(
        self,
        key: str,
        async_fn: Callable[[*Args], Awaitable[object]],
        *args: *Args,
        timeout: float | None = None,
        retry: RetryPolicy | Inherit | None = INHERIT,
        once: bool = False,
        probe: Callable[[*Args], Awaitable[object]] | None = None,
        **unknown: Never,
    ) -> None:
        """
        Register a step to run if the instance ends as Failed or Cancelled. A checkpoint.

        What is registered runs in reverse order over the whole instance, each as a step. One that fails for good is
        recorded, and the others still run. Nothing of it runs when the engine merely stops.

        Args:
            key: Names the compensation within the instance.
            async_fn: What undoes an effect.
            *args: Its arguments; use ``functools.partial`` for keywords.
            timeout: As for ``step``.
            retry: As for ``step``.
            once: As for ``step``.
            probe: As for ``step``.
            **unknown: Nothing; refused as a misuse.

        Raises:
            WorkflowCodeError: The code is wrong.
            RunEndedError: The run has ended, or is being unwound and the caller is shielded.

        Durability:
            The registration is durable when this returns.

        Replay:
            The code must register it again: if it does not when it is to run, the instance is Blocked.
        """
        step = Step("step", async_fn, args, timeout, retry, None, None, unknown, once, probe)
        await perform_compensate(self._run, self._place, key, step)
