"""
What is recorded of an exception: facts as text, enough to recognise it years later, never the object itself.

Decided here: which facts are kept, how long each may get, and when a recorded exception matches a class. Nothing here
imports a recorded class by its name: values read from a store are data.
"""

from __future__ import annotations

import builtins
import traceback
from collections.abc import Mapping
from itertools import islice

import attrs

from ._qualified_name import qualified_name
from ._related import leaves_of

#: A message longer than this is cut: some libraries put whole responses into it.
MAX_MESSAGE_CHARS = 8_192
#: A traceback longer than this loses its middle: a deep recursion is recognised by its two ends.
MAX_TRACEBACK_CHARS = 32_768
#: A group with more leaves than this records the first ones only.
MAX_LEAVES = 100
#: The text of a group names so many of its leaves.
MAX_SHOWN_LEAVES = 3


@attrs.frozen
class ErrorInfo:
    """
    The recorded facts of an exception. The same object's facts are seen live and on every replay.
    """

    type: str
    "Qualified name of its class, for example ``builtins.ConnectionError``."
    message: str
    "What ``str(exception)`` said."
    traceback: str = attrs.field(default="", repr=False)
    "The formatted traceback, causes and contexts included, without local variables."
    bases: tuple[str, ...] = attrs.field(default=(), repr=False)
    "Qualified names of its base classes, nearest first, without ``object``."
    leaves: tuple[ErrorInfo, ...] = attrs.field(default=(), repr=False)
    "For an exception group, what is recorded of its leaves."
    cause: ErrorInfo | None = attrs.field(default=None, repr=False)
    "For an error of memable's that stands for another one, such as ``StepFailedError``, that one."

    def matches(self, *classes: builtins.type[BaseException]) -> bool:
        """
        Tell whether the recorded exception was an instance of one of *classes*.

        Compares qualified names, so the answer is the same live and on a replay, whatever was renamed since (see
        ``aliases`` of ``open_engine``). A group also matches if each of its leaves does, and an error that stands for
        another one, such as ``StepFailedError``, if that one does.

        Raises:
            TypeError: One of *classes* is no class; a tuple of classes, for example.
        """
        for cls in classes:
            if not isinstance(cls, builtins.type):
                raise TypeError(f"matches takes exception classes, one by one, not {cls!r}")
        names = {qualified_name(cls) for cls in classes}
        if not names.isdisjoint((self.type, *self.bases)):
            return True
        if self.cause is not None and self.cause.matches(*classes):
            return True
        return bool(self.leaves) and all(leaf.matches(*classes) for leaf in self.leaves)

    def __str__(self) -> str:
        short = self.type.removeprefix("builtins.")
        text = f"{short}: {self.message}" if self.message else short
        if not self.leaves:
            return text
        # A group's own message tells nothing: "Exceptions from Trio nursery (1 sub-exception)".
        more = len(self.leaves) - MAX_SHOWN_LEAVES
        told = "; ".join(str(leaf) for leaf in self.leaves[:MAX_SHOWN_LEAVES])
        return f"{text} [{told}{f'; and {more} more' if more > 0 else ''}]"


def describe_exception(exc: BaseException) -> ErrorInfo:
    """
    Return what is to be recorded of *exc*.

    Never raises: an exception whose ``__str__`` fails is recorded with a note in place of its message.
    """
    leaves = islice(leaves_of(exc), MAX_LEAVES) if isinstance(exc, BaseExceptionGroup) else ()
    return ErrorInfo(
        type=qualified_name(type(exc)),
        message=_message(exc),
        traceback=_traceback(exc),
        bases=tuple(qualified_name(base) for base in type(exc).__mro__[1:] if base is not object),
        leaves=tuple(
            ErrorInfo(
                type=qualified_name(type(leaf)),
                message=_message(leaf),
                bases=tuple(qualified_name(base) for base in type(leaf).__mro__[1:] if base is not object),
                cause=_stood_for(leaf),
            )
            for leaf in leaves
        ),
        cause=_stood_for(exc),
    )


def _stood_for(exc: BaseException) -> ErrorInfo | None:
    """Return what an error of memable's stands for; its traceback is in the text of that one already."""
    info = getattr(exc, "error", None)
    return attrs.evolve(info, traceback="") if isinstance(info, ErrorInfo) else None


def rename_error(info: ErrorInfo, aliases: Mapping[str, type]) -> ErrorInfo:
    """
    Return *info* with the recorded names in *aliases* replaced by what their classes are called now.
    """
    if not aliases:
        return info
    names: dict[str, None] = {}
    for name in (info.type, *info.bases):
        alias = aliases.get(name)
        if alias is None:
            names[name] = None
        else:
            names.update((qualified_name(base), None) for base in alias.__mro__ if base is not object)
    renamed_type, *bases = names
    return attrs.evolve(
        info,
        type=renamed_type,
        bases=tuple(bases),
        leaves=tuple(rename_error(leaf, aliases) for leaf in info.leaves),
        cause=None if info.cause is None else rename_error(info.cause, aliases),
    )


def _message(exc: BaseException) -> str:
    try:
        # What __str__ gives may be of a subclass of str, as templating libraries have; its text is recorded.
        text = str.__str__(str(exc))
    except Exception as failure:  # noqa: BLE001 - the user's code
        # The user's __str__ is the user's code; its failure must not hide the error that is being recorded.
        text = f"<unprintable: its __str__ raised {type(failure).__name__}>"
    return text if len(text) <= MAX_MESSAGE_CHARS else text[:MAX_MESSAGE_CHARS] + " [...]"


def _traceback(exc: BaseException) -> str:
    try:
        text = "".join(traceback.format_exception(exc))
    except Exception as failure:  # noqa: BLE001 - the user's code
        # As above: broken __str__, __notes__ or __cause__ of a user's exception.
        return f"<no traceback: formatting it raised {type(failure).__name__}>"
    if len(text) <= MAX_TRACEBACK_CHARS:
        return text
    half = MAX_TRACEBACK_CHARS // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"


def on_one_line(text: str) -> str:
    """
    Return *text* with line breaks and other characters that cannot be printed escaped: a log line, and no more.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
