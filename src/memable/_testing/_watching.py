"""
Writes down what the runs of an engine do, in the order in which it happens.
"""

from __future__ import annotations

import sys

import trio

from .._observer import ObservedRun
from .._related import leaves_of
from ._happenings import (
    Happening,
    KeyAsked,
    RunBegun,
    RunEnded,
    StepExecuted,
    StepReturnedLate,
    Swallowed,
)
from ._places import find_place


class Watcher:
    """
    The observer of one life of a process.
    """

    def __init__(self, earlier: tuple[Happening, ...]) -> None:
        """
        Go on behind what happened earlier.
        """
        self.happenings: list[Happening] = list(earlier)
        self._counts: dict[str, int] = {}
        for one in earlier:
            if isinstance(one, RunBegun):
                self._counts[one.instance] = one.number
        self._numbers: dict[ObservedRun, int] = {}
        self._interrupted: dict[tuple[ObservedRun, trio.lowlevel.Task], str | None] = {}

    def on_run(self, run: ObservedRun) -> None:
        """
        Take note that the body of an instance is about to be called.
        """
        instance = _name(run)
        number = self._counts.get(instance, 0) + 1
        self._counts[instance] = self._numbers[run] = number
        self.happenings.append(RunBegun(instance, number))

    def on_asked(self, run: ObservedRun, operation: str, path: str, *, is_recorded: bool) -> None:
        """
        Take note that the body asks for a path.
        """
        place = find_place()
        self.happenings.append(
            KeyAsked(
                _name(run),
                self._numbers.get(run, 0),
                operation,
                path,
                is_recorded,
                place,
                is_unwound=run.leaving is not None,
            )
        )
        if run.leaving is not None:
            who = (run, trio.lowlevel.current_task())
            if who in self._interrupted and not _is_handling_cancellation():
                cancelled_in = self._interrupted.pop(who)
                self.happenings.append(Swallowed(_name(run), cancelled_in, f"asked for {path!r} at {place}"))

    def on_executed(self, run: ObservedRun, path: str, attempt: int) -> None:
        """
        Take note that the function of a step is about to be called.
        """
        self.happenings.append(StepExecuted(_name(run), path, attempt))

    def on_finished(self, run: ObservedRun, path: str) -> None:
        """
        Take note that the function of a step has returned.
        """
        if run.leaving is not None:
            self.happenings.append(StepReturnedLate(_name(run), path))

    def on_interrupted(self, run: ObservedRun, path: str | None) -> None:
        """
        Take note that an operation raises what is no ``Exception``.
        """
        if run.leaving is not None:
            self._interrupted[run, trio.lowlevel.current_task()] = path

    def on_left(self, run: ObservedRun, exc: BaseException | None, *, has_returned: bool) -> None:
        """
        Take note that the body has returned, raised, or was cancelled.
        """
        self.happenings.append(RunEnded(_name(run), self._numbers.get(run, 0), run.leaving is not None))
        who = (run, trio.lowlevel.current_task())
        was_interrupted = who in self._interrupted
        path = self._interrupted.pop(who, None)
        # A cancellation that one of its tasks was told of, the body itself maybe not: somebody has swallowed it.
        has_gone_on = has_returned and (was_interrupted or any(one is run for one, _ in self._interrupted))
        has_turned = was_interrupted and exc is not None and not _has_cancelled(exc)
        if has_gone_on or has_turned:
            then = "returned" if exc is None else f"raised {type(exc).__name__}"
            self.happenings.append(Swallowed(_name(run), path, then))


def _name(run: ObservedRun) -> str:
    return f"{run.workflow_name}/{run.instance_id}"


def _is_handling_cancellation() -> bool:
    """Tell whether the current task is in an ``except`` or ``finally`` block that a cancellation has led to."""
    exc = sys.exception()
    return exc is not None and _has_cancelled(exc)


def _has_cancelled(exc: BaseException) -> bool:
    return any(isinstance(leaf, trio.Cancelled) for leaf in leaves_of(exc))
