"""
What workflow authors call inside a body.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Never, TypeVar, TypeVarTuple

import trio

from ._errors import InvalidKeyError, MisuseError
from ._keys import check_key
from ._retry import INHERIT, Inherit, RetryPolicy
from ._run import Leaving, Run
from ._step import Step, perform_step

T = TypeVar("T")
Args = TypeVarTuple("Args")


class Context:
    """
    What a workflow's body is given as its first argument: durable operations, named by keys.

    Valid until the body is left. It may be used in any task of the body, nurseries included, but not inside a step.
    """

    __slots__ = ("_prefix", "_run")

    def __init__(self, run: Run, prefix: str = "") -> None:
        """
        Bind a context to a run. Made by the engine only.
        """
        self._run = run
        self._prefix = prefix

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
            return self._run.step_id(self._prefix + check_key("key", key))
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
            raise self._run.blame(
                MisuseError(problem=problem, workflow=self.workflow_name, instance_id=self.instance_id)
            )
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
        step = Step("step", async_fn, args, timeout, retry, returns, None, unknown)
        result: T = await perform_step(self._run, self._prefix, key, step)
        return result

    async def step_in_thread(
        self,
        key: str,
        sync_fn: Callable[[*Args], T],
        *args: *Args,
        timeout: float | None = None,
        retry: RetryPolicy | Inherit | None = INHERIT,
        returns: Any = None,
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
        step = Step("step_in_thread", sync_fn, args, timeout, retry, returns, limiter, unknown)
        result: T = await perform_step(self._run, self._prefix, key, step)
        return result
