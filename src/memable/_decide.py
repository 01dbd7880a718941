"""
Decides what happens next: after an attempt at a step, and after a workflow's body was left.

Rules:
- A failure that is worth another attempt is tried again while the budget lasts; everything else is final.
- Code errors are no outcomes: the instance is Blocked, never Failed.
- What the journal says before the body got as far as an earlier run did is not overruled by an error of new code.
- A run that was unwound for another reason says nothing about its instance.
Times and random numbers arrive as arguments; nothing here is recorded or raised.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeAlias

import attrs

from ._encoded import Encoded
from ._error_info import ErrorInfo, describe_exception
from ._errors import (
    MemableError,
    WorkflowCodeError,
)
from ._records import StepFailure
from ._related import leaves_of, related_to
from ._retry import RetryPolicy, is_retryable

#: A recorded failure is looked for so far down: causes may go round in a circle.
MAX_CAUSES = 100


@attrs.frozen
class TryAgain:
    """
    The step is to be attempted again.
    """

    delay_s: float
    "After this many seconds."


@attrs.frozen
class GiveUp:
    """
    The step has failed for good.
    """

    failure: StepFailure
    "Why it is for good."
    retryable: bool
    "Whether the last failure was of a kind that another attempt might have mended."


def decide_failure(
    exc: BaseException, *, timed_out: bool, attempt: int, policy: RetryPolicy | None, uniform: float
) -> TryAgain | GiveUp:
    """
    Decide what follows a failed attempt.

    Args:
        exc: What it failed with; a ``StepTimeoutError`` for one that took too long.
        timed_out: Whether it did take too long: a function may also raise the error of another step.
        attempt: Which attempt it was, from 1.
        policy: The step's policy, if it has one.
        uniform: A random number, uniform in [0, 1).

    Raises:
        Exception: Whatever the user's ``retry_on`` predicate raises.
    """
    retryable = is_retryable(policy, exc)
    if policy is None or not retryable:
        return GiveUp(StepFailure.TIMEOUT if timed_out else StepFailure.ERROR, retryable)
    if policy.has_retry(attempt):
        return TryAgain(policy.delay_before_retry(attempt - 1, uniform))
    return GiveUp(StepFailure.EXHAUSTED_TIMEOUT if timed_out else StepFailure.EXHAUSTED, retryable)


@attrs.frozen
class RunFacts:
    """
    What a run knows of itself when its body has been left.
    """

    workflow: str
    instance_id: str
    failed_paths: Collection[str]
    "Paths that have a recorded failure."
    inner_paths: Mapping[str, tuple[str, ...]]
    "For failures that contain others, the paths of those."
    code_error: WorkflowCodeError | None
    "The first code error that was raised in this run."
    is_behind: bool
    "Whether the run was still replaying, and memos or failed attempts lie unasked: an earlier run got further."
    is_stopping: bool
    "Whether the body was unwound because the engine stops, or to save memory."
    is_cancelled: bool
    "Whether somebody asked for the instance to be cancelled."
    cancelled_type: type[BaseException]
    "The class of the exceptions that unwind a cancelled task."


@attrs.frozen
class Complete:
    """
    The instance is Completed with the value that the body returned.
    """

    value: Encoded | None = None
    "It, encoded, once that is known to be possible."


@attrs.frozen
class Fail:
    """
    The instance is Failed.
    """

    error: ErrorInfo
    failed_paths: tuple[str, ...]


@attrs.frozen
class Block:
    """
    The instance is Blocked.
    """

    path: str | None
    error: ErrorInfo
    failed_paths: tuple[str, ...]
    cause: BaseException | None = attrs.field(default=None, eq=False, repr=False)
    "What blocks it."


@attrs.frozen
class Cancel:
    """
    The instance is Cancelled.
    """

    error: ErrorInfo | None
    failed_paths: tuple[str, ...]


@attrs.frozen
class Leave:
    """
    The instance stays as it is recorded, to be run again.
    """


Ending: TypeAlias = Complete | Fail | Block | Cancel | Leave


def fatal_leaves(exc: BaseException, cancelled_type: type[BaseException]) -> list[BaseException]:
    """
    Return the leaves that no workflow may keep to itself: ``KeyboardInterrupt``, ``SystemExit`` and their like.
    """
    return [leaf for leaf in leaves_of(exc) if not isinstance(leaf, (Exception, cancelled_type))]


def decide_ending(facts: RunFacts, exc: BaseException | None) -> Ending:
    """
    Decide what becomes of an instance whose body was left.

    Args:
        facts: What the run knows.
        exc: What left the body; None if it returned. Has no fatal leaves.
    """
    failed_paths = () if exc is None else failed_paths_of(facts, exc)
    if facts.is_cancelled:
        told = [] if exc is None else [leaf for leaf in leaves_of(exc) if not isinstance(leaf, facts.cancelled_type)]
        return Cancel(describe_exception(exc) if exc is not None and told else None, failed_paths)
    if facts.is_stopping:
        return Leave()
    code_error = facts.code_error or (None if exc is None else find_code_error(exc))
    if code_error is not None:
        return Block(getattr(code_error, "key", None), describe_exception(code_error), failed_paths, code_error)
    if exc is None:
        return Complete()
    if facts.is_behind and not is_recorded_failure(facts, exc):
        return Block(None, describe_exception(exc), failed_paths, exc)
    return Fail(describe_exception(exc), failed_paths)


def find_code_error(exc: BaseException) -> WorkflowCodeError | None:
    """
    Return the first code error among the leaves, causes and contexts of *exc*, if there is one.
    """
    return next((one for one in related_to(exc) if isinstance(one, WorkflowCodeError)), None)


def is_recorded_failure(facts: RunFacts, exc: BaseException, depth: int = 0) -> bool:
    """
    Tell whether *exc* is a recorded failure, was raised ``from`` one, or is a group of nothing else.

    An exception that has one as its mere context does not count: it may be the mistake of whoever handled the failure.
    """
    if depth > MAX_CAUSES:
        return False
    if isinstance(exc, BaseExceptionGroup):
        return all(
            isinstance(one, facts.cancelled_type) or is_recorded_failure(facts, one, depth + 1)
            for one in exc.exceptions
        )
    if _failed_path(facts, exc) is not None:
        return True
    return exc.__cause__ is not None and is_recorded_failure(facts, exc.__cause__, depth + 1)


def failed_paths_of(facts: RunFacts, exc: BaseException) -> tuple[str, ...]:
    """Return the paths of this instance's recorded failures that *exc* drags along."""
    found = [path for one in related_to(exc) if (path := _failed_path(facts, one)) is not None]
    # A replay raises a child's failure without what caused it; that is recorded beside it.
    return tuple(dict.fromkeys(inner for path in found for inner in (path, *facts.inner_paths.get(path, ()))))


def _failed_path(facts: RunFacts, exc: BaseException) -> str | None:
    """Return the path of this instance's recorded failure that *exc* stands for, if it does."""
    # Every error of memable's that stands for what is recorded says where.
    if not isinstance(exc, MemableError) or isinstance(exc, WorkflowCodeError):
        return None
    key: object = getattr(exc, "key", None)
    where = (getattr(exc, "workflow", None), getattr(exc, "instance_id", None))
    is_here = where == (facts.workflow, facts.instance_id)
    return key if is_here and isinstance(key, str) and key in facts.failed_paths else None
