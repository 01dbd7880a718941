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

#: What the journal calls a key that a signal may go to, and what may contain one.
POINT_KIND = "a suspend point"
BRANCH_KIND = "a child of a fan-out"


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
    Another signal, or the timeout, was first; or the body is past the point.
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
    is_cancelled: bool = False,
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
        is_cancelled: Whether a request to cancel the instance is on its way to the store.
    """
    memo = journal.memos.get(path)
    kind = journal.kind_of(path)
    is_decided = isinstance(memo, (SignalReceived, SuspendTimedOut)) or path in journal.kept or path in deciding
    # In a child of a fan-out that has ended, nobody will wait any more.
    is_past = kind in (None, POINT_KIND) and journal.is_within_outcome(path)
    if is_decided or is_past:
        return Supersede()
    reason = _why_rejected(journal, path, kind, within=within, is_cancelled=is_cancelled)
    if reason is not None:
        return Reject(reason)
    if journal.is_waiting_at(path):
        expected = journal.waits[path].expects
        return Deliver() if expected in (None, type_name) else Mismatch(expected)
    if keeps:
        return Keep()
    return Reject("it does not wait there; look at its state, or give early='keep' to store the signal until it does")


def _why_rejected(
    journal: Journal, path: str, kind: str | None, *, within: str | None, is_cancelled: bool
) -> str | None:
    """Return why nobody will ever wait at *path*, if that is so."""
    if kind not in (None, POINT_KIND):
        return f"{path!r} is recorded as {kind}, not as a suspend point"
    if journal.ending is not None:
        return "the instance has ended"
    if is_cancelled or journal.cancel_requested is not None or journal.compensating is not None:
        return "the instance is being cancelled, or undoes what it did"
    if within is not None and within in journal.children:
        return f"{within!r} is an instance of its own; give its id, which is that of its parent, '/' and {within!r}"
    if within is not None and journal.kind_of(within) != BRANCH_KIND:
        return f"{within!r} is not known as a child of a fan-out; give its path, such as 'fetch:v1/3'"
    return None
