"""
Decides what becomes of a signal: a pure function of the journal and what is on its way to it.

Rules:
- What is decided stays decided: a point that has an outcome, or is about to, takes no other.
- A signal is delivered to a point that the body was last seen waiting at, whether a task waits there now or not.
- One that comes too early is kept only if its sender says so.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeAlias

import attrs

from ._journal import Journal
from ._records import SignalReceived, SuspendTimedOut


@attrs.frozen
class Deliver:
    """
    The signal ends the wait.
    """


@attrs.frozen
class Keep:
    """
    The signal is stored for when the instance gets there.
    """


@attrs.frozen
class Supersede:
    """
    Another signal, or the timeout, was first.
    """


@attrs.frozen
class Reject:
    """
    The instance does not wait there.
    """

    reason: str


@attrs.frozen
class Mismatch:
    """
    The wait is for another type.
    """

    expected: str


SignalDecision: TypeAlias = Deliver | Keep | Supersede | Reject | Mismatch


def decide_signal(
    journal: Journal,
    path: str,
    type_name: str,
    *,
    deciding: Collection[str],
    within: str | None,
    keeps: bool,
) -> SignalDecision:
    """
    Decide what becomes of a signal.

    Args:
        journal: The instance's.
        path: Where the signal is to go.
        type_name: Name of the type of its payload.
        deciding: Paths of waits whose outcome is on its way to the store.
        within: The path of the fan-out child that is addressed, if one is.
        keeps: Whether a signal that comes early is to be stored.
    """
    memo = journal.memos.get(path)
    if isinstance(memo, (SignalReceived, SuspendTimedOut)) or path in journal.kept or path in deciding:
        return Supersede()
    kind = journal.kind_of(path)
    if kind not in (None, "a suspend point"):
        return Reject(f"{path!r} is recorded as {kind}, not as a suspend point")
    if journal.ending is not None:
        return Reject("the instance has ended")
    if journal.cancel_requested is not None or journal.compensating is not None:
        return Reject("the instance is being cancelled, or undoes what it did")
    if journal.is_waiting_at(path):
        expected = journal.waits[path].expects
        return Deliver() if expected in (None, type_name) else Mismatch(expected)
    if within is not None and not journal.knows(within):
        return Reject(f"nothing is recorded of {within!r}; give the path of a fan-out's child, such as 'fetch:v1/3'")
    if keeps:
        return Keep()
    return Reject("it does not wait there; look at its state, or give early='keep' to store the signal until it does")
