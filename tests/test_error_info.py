"""
What is recorded of an exception, and how it is recognised later.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import attrs
import pytest

import memable
from memable._error_info import (
    MAX_LEAVES,
    MAX_MESSAGE_CHARS,
    MAX_TRACEBACK_CHARS,
    describe_exception,
    rename_error,
)


class RefusedError(ConnectionError):
    pass


class RejectedError(OSError):
    pass


def raised(exc: BaseException) -> BaseException:
    """Return *exc* with a traceback."""
    try:
        secret = str("hunter")[::-1]  # noqa: F841, UP018 - a local variable
        raise exc
    except BaseException as caught:  # noqa: BLE001 - whatever it is
        return caught


def test_info_has_type_message_traceback_and_bases():
    """
    Type and bases are recorded by qualified name, nearest first, and the traceback as text.
    """
    info = describe_exception(raised(RefusedError("port 80")))
    assert (info.type, info.message) == (f"{__name__}.RefusedError", "port 80")
    assert info.bases == (
        "builtins.ConnectionError",
        "builtins.OSError",
        "builtins.Exception",
        "builtins.BaseException",
    )
    assert info.leaves == ()
    assert info.traceback.startswith("Traceback (most recent call last):\n")
    assert "in raised" in info.traceback
    assert info.traceback.endswith("RefusedError: port 80\n")


def test_info_has_no_local_variables():
    """
    Local variables are not recorded: they hold secrets.
    """
    info = describe_exception(raised(RefusedError("port 80")))
    assert "retnuh" not in info.traceback


def test_info_tells_causes_and_contexts():
    """
    The traceback's text includes what the exception was raised from.
    """
    exc = RefusedError("outer")
    exc.__cause__ = KeyError("inner")
    assert "KeyError: 'inner'" in describe_exception(exc).traceback


def test_info_is_a_frozen_value():
    """
    An ErrorInfo is equal by value, cannot be changed, and can be pickled and copied.
    """
    info = describe_exception(ExceptionGroup("g", [raised(RefusedError("a"))]))
    assert pickle.loads(pickle.dumps(info)) == copy.deepcopy(info) == copy.copy(info) == info  # noqa: S301 - its own
    assert hash(copy.deepcopy(info)) == hash(info)
    with pytest.raises(attrs.exceptions.FrozenInstanceError, match=r"can.t set attribute"):
        info.message = "other"  # type: ignore[misc] # the mistake that is tested


@pytest.mark.parametrize(
    ("exc", "text"),
    [
        (ValueError("no"), "ValueError: no"),
        (ValueError(), "ValueError"),
        (RefusedError("no"), f"{__name__}.RefusedError: no"),
        (ExceptionGroup("g", [KeyError("a")]), "ExceptionGroup: g (1 sub-exception) [KeyError: 'a']"),
        (
            ExceptionGroup("g", [ValueError(n) for n in range(5)]),
            "ExceptionGroup: g (5 sub-exceptions) [ValueError: 0; ValueError: 1; ValueError: 2; and 2 more]",
        ),
    ],
)
def test_info_prints_short(exc: BaseException, text: str):
    """
    As text it is the type and the message; of a group, also its first leaves.
    """
    assert str(describe_exception(exc)) == text


def test_info_does_not_print_the_traceback():
    """
    The ``repr`` is short enough for a message: type and message only.
    """
    info = describe_exception(raised(ValueError("no")))
    assert repr(info) == "ErrorInfo(type='builtins.ValueError', message='no')"


# Limits ----------------------------------------------------------------------------------------------------------


def test_info_of_a_long_message_is_cut():
    """
    A message is recorded up to its limit, and says that it was cut.
    """
    assert describe_exception(ValueError("x" * MAX_MESSAGE_CHARS)).message == "x" * MAX_MESSAGE_CHARS
    assert describe_exception(ValueError("x" * 10**6)).message == "x" * MAX_MESSAGE_CHARS + " [...]"


def test_info_of_a_long_traceback_loses_its_middle():
    """
    A traceback keeps its two ends up to its limit, and says how much was left out.
    """
    info = describe_exception(raised(ValueError("y" * 10**6)))
    assert len(info.traceback) < MAX_TRACEBACK_CHARS + 100
    assert info.traceback.startswith("Traceback")
    assert "characters left out ...]" in info.traceback
    assert info.traceback.endswith("yyy\n")


def test_info_of_a_large_group_has_its_first_leaves():
    """
    Of a group with very many leaves the first ones are recorded.
    """
    info = describe_exception(ExceptionGroup("g", [ValueError(n) for n in range(MAX_LEAVES + 5)]))
    assert [leaf.message for leaf in info.leaves] == [str(n) for n in range(MAX_LEAVES)]


def test_info_of_a_very_deep_group_is_recorded():
    """
    Groups within groups are described to any depth.
    """
    exc: Exception = ValueError("deep")
    for _ in range(5_000):
        exc = ExceptionGroup("g", [exc])
    info = describe_exception(exc)
    assert [leaf.message for leaf in info.leaves] == ["deep"]


def test_info_of_leaves_has_no_tracebacks():
    """
    The group's own traceback tells those of its leaves; they are not recorded twice.
    """
    (leaf,) = describe_exception(ExceptionGroup("g", [raised(RefusedError("a"))])).leaves
    assert (leaf.type, leaf.message, leaf.traceback, leaf.leaves) == (f"{__name__}.RefusedError", "a", "", ())
    assert leaf.bases[0] == "builtins.ConnectionError"


class Unprintable(Exception):  # noqa: N818 - it is no error of memable's
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Recursive(Exception):  # noqa: N818 - it is no error of memable's
    def __str__(self) -> str:
        return str(self)


class Unformattable(Exception):  # noqa: N818 - it is no error of memable's
    @property
    def __cause__(self) -> BaseException | None:
        raise RuntimeError("no cause")


class Unnotable(Exception):  # noqa: N818 - it is no error of memable's
    @property
    def __notes__(self) -> list[str]:
        raise RuntimeError("no notes")


def test_info_of_an_exception_that_cannot_be_printed():
    """
    An exception whose text cannot be had is recorded with a note in its place.
    """
    info = describe_exception(Unprintable())
    assert info.message == "<unprintable: its __str__ raised RuntimeError>"
    assert "Unprintable" in info.traceback
    assert describe_exception(Recursive()).message == "<unprintable: its __str__ raised RecursionError>"
    assert describe_exception(ExceptionGroup("g", [Unprintable()])).leaves[0].message.startswith("<unprintable")


def test_info_of_an_exception_that_cannot_be_formatted():
    """
    An exception whose traceback cannot be had is recorded without it.
    """
    info = describe_exception(Unformattable("odd"))
    assert (info.message, info.traceback) == ("odd", "<no traceback: formatting it raised RuntimeError>")


def test_info_of_an_exception_whose_notes_cannot_be_had():
    """
    An exception with broken notes is recorded, and its traceback says what they raised.
    """
    info = describe_exception(Unnotable("odd"))
    assert info.message == "odd"
    # From Python 3.13 on, formatting gets along without the notes.
    assert "RuntimeError" in info.traceback


def test_info_does_not_swallow_an_interrupt():
    """
    A KeyboardInterrupt while an exception is being described is no fault of that exception.
    """

    class Interrupted(Exception):  # noqa: N818 - it is no error of memable's
        def __str__(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        describe_exception(Interrupted())


# Matching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exc", "classes", "answer"),
    [
        (RefusedError(), (RefusedError,), True),
        (RefusedError(), (OSError,), True),
        (RefusedError(), (KeyError, BaseException), True),
        (RefusedError(), (KeyError, RejectedError), False),
        (RefusedError(), (), False),
        (RefusedError(), (object,), False),
        (ConnectionError(), (RefusedError,), False),
        (ExceptionGroup("g", [RefusedError(), ConnectionError()]), (ConnectionError,), True),
        (ExceptionGroup("g", [RefusedError(), KeyError()]), (ConnectionError,), False),
        (ExceptionGroup("g", [RefusedError(), KeyError()]), (ConnectionError, KeyError), True),
        (ExceptionGroup("g", [RefusedError(), ExceptionGroup("h", [RefusedError()])]), (RefusedError,), True),
        (ExceptionGroup("g", [RefusedError()]), (ExceptionGroup,), True),
        (ExceptionGroup("g", [RefusedError()]), (BaseExceptionGroup,), True),
        (ExceptionGroup("g", [RefusedError()]), (), False),
        (memable.PermanentError(), (memable.MemableError,), True),
    ],
)
def test_info_matches_classes(exc: BaseException, classes: tuple[type[BaseException], ...], answer: bool):
    """
    It matches a class as ``except`` would have caught it; a group also if each of its leaves matches.
    """
    assert describe_exception(exc).matches(*classes) is answer


@pytest.mark.parametrize("wrong", [(OSError, KeyError), "OSError", OSError(), None])
def test_info_matches_classes_only(wrong: Any):
    """
    A tuple, a name or an instance in place of a class is refused, rather than never matched.
    """
    with pytest.raises(TypeError, match="matches takes exception classes, one by one, not "):
        describe_exception(OSError()).matches(wrong)


# Renamed classes -------------------------------------------------------------------------------------------------


def test_rename_without_aliases_changes_nothing():
    """
    Without aliases an error is what is recorded.
    """
    info = describe_exception(RefusedError("a"))
    assert rename_error(info, {}) is info
    assert rename_error(info, {"some.Other": RejectedError}) == info


def test_rename_puts_the_new_class_and_its_bases_in_place():
    """
    A recorded name with an alias becomes the new class, with the bases that this one has now.
    """
    info = rename_error(describe_exception(RefusedError("a")), {f"{__name__}.RefusedError": RejectedError})
    assert (info.type, info.message) == (f"{__name__}.RejectedError", "a")
    assert info.matches(RejectedError)
    assert info.matches(OSError)
    assert info.matches(ConnectionError), "what it was recorded as being it still is"
    assert not info.matches(RefusedError)
    assert len(set(info.bases)) == len(info.bases)


def test_rename_of_a_base_leaves_the_type():
    """
    An alias for a base class lets the error match the new base.
    """
    info = rename_error(describe_exception(RefusedError("a")), {"builtins.ConnectionError": RejectedError})
    assert info.type == f"{__name__}.RefusedError"
    assert info.matches(RejectedError)
    assert not info.matches(ConnectionError)


def test_rename_reaches_the_leaves():
    """
    Aliases apply to what is recorded of a group's leaves as well.
    """
    info = describe_exception(ExceptionGroup("g", [RefusedError("a")]))
    assert rename_error(info, {f"{__name__}.RefusedError": RejectedError}).matches(RejectedError)


def test_info_of_a_failed_step_matches_what_the_step_failed_with():
    """
    An error that stands for another one matches that one, too, however often it is wrapped, and after a renaming.
    """
    step = memable.StepFailedError(
        workflow="w",
        instance_id="i",
        key="k",
        error=describe_exception(ConnectionResetError("gone")),
        attempts=1,
        retryable=True,
    )
    child = memable.ChildFailedError(workflow="w", instance_id="i", key="c", error=describe_exception(step))
    for exc in (step, child, ExceptionGroup("both", [child, ConnectionAbortedError()])):
        info = describe_exception(exc)
        assert info.matches(ConnectionError)
        assert not info.matches(KeyError)
    info = rename_error(describe_exception(child), {"builtins.ConnectionResetError": GoneError})
    assert info.matches(GoneError)
    assert info.matches(memable.StepFailedError)


class GoneError(Exception):
    """What a connection's reset is called now."""
