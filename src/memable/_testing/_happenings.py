"""
What happens in a schedule: values that a watcher writes down and that findings are made of.
"""

from __future__ import annotations

from typing import TypeAlias

import attrs

from ._effects import Effect


@attrs.frozen
class LifeBegun:
    """
    A process began.
    """


@attrs.frozen
class RunBegun:
    """
    The body of an instance was called.
    """

    instance: str
    "As ``workflow/id``."
    number: int
    "Counts the runs of the instance in the schedule, from 1."


@attrs.frozen
class KeyAsked:
    """
    A body asked for a path.
    """

    instance: str
    run: int
    operation: str
    path: str
    is_recorded: bool
    "Whether an outcome was recorded for it."
    place: str
    "The line of code."
    is_unwound: bool = False
    "Whether the body was being unwound."


@attrs.frozen
class StepExecuted:
    """
    The function of a step was called.
    """

    instance: str
    path: str
    attempt: int


@attrs.frozen
class StepReturnedLate:
    """
    The function of a step returned though it was cancelled meanwhile.
    """

    instance: str
    path: str


@attrs.frozen
class Swallowed:
    """
    A body went on after its cancellation.
    """

    instance: str
    path: str | None
    "What it was in when it was cancelled."
    then: str
    "What it did next."


@attrs.frozen
class RunEnded:
    """
    The body of an instance returned, or raised.
    """

    instance: str
    run: int
    is_unwound: bool
    "Whether it was being passivated, stopped or cancelled."


@attrs.frozen
class EndRecorded:
    """
    The end of an instance became durable.
    """

    instance: str


@attrs.frozen
class EffectHappened:
    """
    Something happened outside.
    """

    effect: Effect


Happening: TypeAlias = (
    LifeBegun
    | RunBegun
    | KeyAsked
    | StepExecuted
    | StepReturnedLate
    | Swallowed
    | RunEnded
    | EndRecorded
    | EffectHappened
)
