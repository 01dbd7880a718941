"""
What follows a failed attempt, and what becomes of an instance whose body was left.
"""

from __future__ import annotations

from typing import Any

import pytest

import memable
from memable._decide import (
    MAX_CAUSES,
    Block,
    Cancel,
    Complete,
    Fail,
    GiveUp,
    Leave,
    RunFacts,
    TryAgain,
    decide_ending,
    decide_failure,
    fatal_leaves,
    find_code_error,
)
from memable._error_info import ErrorInfo, describe_exception
from memable._records import StepFailure
from memable._retry import RetryPolicy


class Unwound(BaseException):
    """Stands for trio's Cancelled, which a test cannot make."""


def facts(**changes: Any) -> RunFacts:
    """Return what a run knows that went from start to end without anything special."""
    known: dict[str, Any] = {
        "workflow": "w",
        "instance_id": "i",
        "failed_paths": (),
        "inner_paths": {},
        "code_error": None,
        "is_behind": False,
        "is_stopping": False,
        "is_cancelled": False,
        "cancelled_type": Unwound,
    }
    return RunFacts(**known | changes)


def failure(key: str = "k", *, instance_id: str = "i", workflow: str = "w") -> memable.StepFailedError:
    """Return what a step raises whose failure is recorded."""
    return memable.StepFailedError(
        workflow=workflow,
        instance_id=instance_id,
        key=key,
        error=ErrorInfo("builtins.OSError", "no"),
        attempts=1,
        retryable=True,
    )


def caused(exc: BaseException, cause: BaseException) -> BaseException:
    exc.__cause__ = cause
    return exc


def in_context(exc: BaseException, context: BaseException) -> BaseException:
    exc.__context__ = context
    return exc


# After an attempt ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "attempt", "timed_out", "exc", "decision"),
    [
        (None, 1, False, OSError(), GiveUp(StepFailure.ERROR, retryable=True)),
        (None, 1, True, OSError(), GiveUp(StepFailure.TIMEOUT, retryable=True)),
        (None, 1, False, memable.PermanentError(), GiveUp(StepFailure.ERROR, retryable=False)),
        (RetryPolicy.fixed(2, 5.0), 1, False, OSError(), TryAgain(5.0)),
        (RetryPolicy.fixed(2, 5.0), 2, True, OSError(), TryAgain(5.0)),
        (RetryPolicy.fixed(2, 5.0), 3, False, OSError(), GiveUp(StepFailure.EXHAUSTED, retryable=True)),
        (RetryPolicy.fixed(2, 5.0), 3, True, OSError(), GiveUp(StepFailure.EXHAUSTED_TIMEOUT, retryable=True)),
        (RetryPolicy.fixed(2, 5.0), 9, False, OSError(), GiveUp(StepFailure.EXHAUSTED, retryable=True)),
        (RetryPolicy.fixed(0, 5.0), 1, False, OSError(), GiveUp(StepFailure.EXHAUSTED, retryable=True)),
        (RetryPolicy.fixed(2, 5.0), 1, False, memable.PermanentError(), GiveUp(StepFailure.ERROR, retryable=False)),
        (RetryPolicy.fixed(2, 5.0, retry_on=KeyError), 3, False, OSError(), GiveUp(StepFailure.ERROR, retryable=False)),
        (RetryPolicy.exponential(9, 1.0), 4, False, OSError(), TryAgain(8.0)),
        (RetryPolicy.exponential(9, 1.0, jitter=0.5), 4, False, OSError(), TryAgain(6.0)),
    ],
)
def test_decision_after_a_failed_attempt(
    policy: RetryPolicy | None, attempt: int, timed_out: bool, exc: Exception, decision: TryAgain | GiveUp
):
    """
    What is worth another attempt is tried again while the budget lasts; everything else is final, and says why.
    """
    assert decide_failure(exc, timed_out=timed_out, attempt=attempt, policy=policy, uniform=0.25) == decision


def test_decision_after_a_failed_attempt_passes_on_what_the_predicate_raises():
    """
    A predicate that raises decides nothing.
    """

    def broken(exc: BaseException) -> bool:
        raise LookupError("no answer")

    policy = RetryPolicy.fixed(1, 1.0, retry_on=broken)
    with pytest.raises(LookupError, match="no answer"):
        decide_failure(OSError(), timed_out=False, attempt=1, policy=policy, uniform=0.0)


# After the body --------------------------------------------------------------------------------------------------


def test_ending_of_a_body_that_returned():
    """
    A body that returned is Completed, also when memos lie unasked.
    """
    assert decide_ending(facts(), None) == Complete()
    assert decide_ending(facts(is_behind=True), None) == Complete()


def test_ending_of_a_body_that_raised():
    """
    A body that raised is Failed with what it raised, and with the recorded failures that this drags along.
    """
    exc = in_context(ValueError("no"), caused(KeyError(), ExceptionGroup("g", [failure("a"), failure("b")])))
    ending = decide_ending(facts(failed_paths={"a", "b", "c"}), exc)
    assert ending == Fail(describe_exception(exc), ("a", "b"))


@pytest.mark.parametrize(
    "exc",
    [
        failure("other"),
        failure("k", instance_id="other"),
        failure("k", workflow="other"),
        memable.SerializationError(problem="of an input"),
        ValueError(),
    ],
)
def test_ending_does_not_take_another_failure_for_a_recorded_one(exc: Exception):
    """
    Only failures that this instance has a record of are cleared by a resume.
    """
    assert decide_ending(facts(failed_paths={"k"}), exc) == Fail(describe_exception(exc), ())


def test_ending_with_a_value_that_could_not_be_stored():
    """
    A recorded SerializationError counts like any recorded failure.
    """
    exc = memable.SerializationError(problem="no", workflow="w", instance_id="i", key="k")
    assert decide_ending(facts(failed_paths={"k"}), exc) == Fail(describe_exception(exc), ("k",))


CODE_ERROR = memable.DuplicateKeyError(workflow="w", instance_id="i", key="twice")


@pytest.mark.parametrize(
    "exc",
    [
        CODE_ERROR,
        caused(ValueError(), CODE_ERROR),
        in_context(ValueError(), CODE_ERROR),
        ExceptionGroup("g", [ValueError(), ExceptionGroup("h", [CODE_ERROR])]),
        BaseExceptionGroup("g", [Unwound(), CODE_ERROR]),
    ],
)
def test_ending_with_a_code_error_is_blocked(exc: BaseException):
    """
    A code error anywhere in what left the body blocks the instance at its key.
    """
    assert find_code_error(exc) is CODE_ERROR
    assert decide_ending(facts(), exc) == Block("twice", describe_exception(CODE_ERROR), ())


@pytest.mark.parametrize("exc", [None, ValueError("other")])
def test_ending_after_a_code_error_that_was_swallowed_is_blocked(exc: Exception | None):
    """
    The first code error of a run counts, whatever the body made of it.
    """
    assert decide_ending(facts(code_error=CODE_ERROR), exc) == Block("twice", describe_exception(CODE_ERROR), ())


def test_ending_with_a_code_error_without_a_key():
    """
    A code error that means no key blocks at none.
    """
    error = memable.WorkflowCodeError("of the user's own")
    assert decide_ending(facts(), error) == Block(None, describe_exception(error), ())


def test_ending_while_behind_is_blocked():
    """
    An exception that is no recorded failure, raised before the body got as far as an earlier run, blocks.
    """
    exc = ValueError("typo")
    assert decide_ending(facts(is_behind=True), exc) == Block(None, describe_exception(exc), ())


@pytest.mark.parametrize(
    "exc",
    [
        failure(),
        caused(ValueError(), failure()),
        caused(ValueError(), caused(KeyError(), failure())),
        caused(ValueError(), ExceptionGroup("g", [failure()])),
        ExceptionGroup("g", [failure(), ExceptionGroup("h", [caused(ValueError(), failure())])]),
        BaseExceptionGroup("g", [failure(), Unwound()]),
    ],
)
def test_ending_while_behind_by_a_recorded_failure_is_failed(exc: BaseException):
    """
    A recorded failure, or what was raised from one, is what the work said, not a mistake of new code.
    """
    assert decide_ending(facts(is_behind=True, failed_paths={"k"}), exc) == Fail(describe_exception(exc), ("k",))


@pytest.mark.parametrize(
    ("exc", "paths"),
    [
        (in_context(AttributeError(), failure()), ("k",)),
        (ExceptionGroup("g", [failure(), ValueError("typo")]), ("k",)),
        (caused(ValueError(), KeyError()), ()),
        (failure("other"), ()),
    ],
)
def test_ending_while_behind_by_a_mistake_beside_a_failure_is_blocked(exc: BaseException, paths: tuple[str, ...]):
    """
    A mistake made while a recorded failure was handled, or beside one in a group, blocks; a resume clears the failure.
    """
    assert decide_ending(facts(is_behind=True, failed_paths={"k"}), exc) == Block(None, describe_exception(exc), paths)


def test_ending_while_behind_does_not_follow_causes_for_ever():
    """
    Causes that go round in a circle, or very far down, are no recorded failure.
    """
    circle = ValueError("circle")
    circle.__cause__ = circle
    assert isinstance(decide_ending(facts(is_behind=True), circle), Block)
    deep: BaseException = failure()
    for _ in range(MAX_CAUSES + 1):
        deep = caused(ValueError(), deep)
    assert isinstance(decide_ending(facts(is_behind=True, failed_paths={"k"}), deep), Block)


@pytest.mark.parametrize("exc", [None, ValueError(), Unwound(), CODE_ERROR, failure()])
def test_ending_of_a_run_that_was_stopped_says_nothing(exc: BaseException | None):
    """
    A run that was unwound because the engine stops leaves the instance as it is, whatever its body did.
    """
    assert decide_ending(facts(is_stopping=True, code_error=CODE_ERROR), exc) == Leave()


@pytest.mark.parametrize(
    ("exc", "told"),
    [
        (None, False),
        (Unwound(), False),
        (BaseExceptionGroup("g", [Unwound(), BaseExceptionGroup("h", [Unwound()])]), False),
        (ValueError("late"), True),
        (BaseExceptionGroup("g", [Unwound(), ValueError("late")]), True),
        (CODE_ERROR, True),
    ],
)
@pytest.mark.parametrize("is_stopping", [False, True])
def test_ending_of_an_instance_that_was_cancelled(exc: BaseException | None, told: bool, is_stopping: bool):
    """
    A request to cancel wins over all else; what the body raised beside the cancellation is told.
    """
    error = describe_exception(exc) if told and exc is not None else None
    ending = decide_ending(facts(is_cancelled=True, is_stopping=is_stopping, is_behind=True), exc)
    assert ending == Cancel(error, ())


def test_ending_of_a_cancelled_instance_keeps_its_failures():
    """
    Failures that left the body of a cancelled instance are cleared by a resume, too.
    """
    ending = decide_ending(facts(is_cancelled=True, failed_paths={"k"}), failure())
    assert ending == Cancel(describe_exception(failure()), ("k",))


# Leaves ----------------------------------------------------------------------------------------------------------


def test_fatal_leaves_are_those_that_are_no_exceptions():
    """
    What is neither an Exception nor the cancellation of a task is not for a workflow to keep.
    """
    interrupt, leave = KeyboardInterrupt(), SystemExit()
    group = BaseExceptionGroup("g", [interrupt, ValueError(), BaseExceptionGroup("h", [Unwound(), leave])])
    assert fatal_leaves(group, Unwound) == [interrupt, leave]
    assert fatal_leaves(ValueError(), Unwound) == []
    assert fatal_leaves(Unwound(), Unwound) == []


def test_code_error_is_not_found_where_there_is_none():
    """
    Failures of the work are no code errors.
    """
    assert find_code_error(caused(ValueError(), failure())) is None
