"""
What a run tells somebody who looks on: which keys it asks for, what it executes, how it takes being cancelled.

Nothing looks on in production. ``Engine.plan`` and the explorations of ``memable.testing`` do.
"""

from __future__ import annotations

from typing import Literal, Protocol


class ObservedRun(Protocol):
    """
    The run that something is told of. Each is an object of its own.
    """

    @property
    def workflow_name(self) -> str:
        """
        Name of the workflow.
        """
        ...

    @property
    def instance_id(self) -> str:
        """
        Id of the instance.
        """
        ...

    @property
    def leaving(self) -> Literal["passivated", "stopping", "cancelled"] | None:
        """
        Why the body is being unwound, if it is.
        """
        ...


class RunObserver(Protocol):
    """
    Is told what runs do, at once and in the task that does it. None of its methods may raise or wait.
    """

    def on_run(self, run: ObservedRun) -> None:
        """
        Take note that the body of an instance is about to be called.
        """
        ...

    def on_asked(self, run: ObservedRun, operation: str, path: str, *, is_recorded: bool) -> None:
        """
        Take note that the body asks for a path.

        Args:
            run: Whose body it is.
            operation: What the body called, such as ``step``.
            path: What it asked for.
            is_recorded: Whether an outcome is recorded for it.
        """
        ...

    def on_executed(self, run: ObservedRun, path: str, attempt: int) -> None:
        """
        Take note that the function of a step is about to be called.
        """
        ...

    def on_finished(self, run: ObservedRun, path: str) -> None:
        """
        Take note that the function of a step has returned. ``run.leaving`` says whether the run was being unwound.
        """
        ...

    def on_interrupted(self, run: ObservedRun, path: str | None) -> None:
        """
        Take note that an operation raises what is no ``Exception``, usually ``trio.Cancelled``.
        """
        ...

    def on_left(self, run: ObservedRun, exc: BaseException | None, *, has_returned: bool) -> None:
        """
        Take note that the body has returned or raised *exc*, or else was cancelled. ``run.leaving`` says why it was.
        """
        ...
