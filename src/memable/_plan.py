"""
What ``Engine.plan`` returns: what the present code would make of an instance's journal, in facts and in words.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal, TypeAlias

import attrs

from ._error_info import ErrorInfo, on_one_line
from ._errors import ItemsChangedError, KeyKindError, OutcomeUnknownError, TypeMismatchError, WorkflowCodeError

Outlook: TypeAlias = Literal["runs", "waits", "unknown", "passes"]
"""
What becomes of a miss: code of the user's runs, somebody or some instant is waited for, nobody knows whether the
effect happened, or memable records something and the body goes on.
"""

PlanOutcome: TypeAlias = Literal["completed", "failed", "blocked"]
"How the body ended."

#: A report names so many paths of each kind: a fan-out may have a hundred thousand.
MAX_SHOWN = 20

_TOLD: dict[Outlook, str] = {
    "runs": "runs",
    "waits": "waits",
    "unknown": "outcome unknown: blocked until engine.settle(...) answers",
    "passes": "is recorded, and the body goes on",
}


@attrs.frozen
class Miss:
    """
    Something that the body asks for and that has no memo: what a run would do next.
    """

    path: str | None
    "Its path; None for a call of the engine's, at which the plan ends."
    operation: str
    "What the body calls, such as ``step`` or ``suspend``."
    outlook: Outlook
    "What becomes of it."
    attempt: int | None = None
    "Of a step that runs, which attempt it is, from 1."
    deadline: datetime | None = None
    "When a wait ends by itself, or a failed step is tried again (UTC); None if it does not, or at once."

    def __str__(self) -> str:
        named = self.operation if self.path is None else f"{self.path!r} ({self.operation})"
        attempt = f", attempt {self.attempt}" if self.attempt is not None and self.attempt > 1 else ""
        until = "" if self.deadline is None else f" until {self.deadline.isoformat(sep=' ', timespec='seconds')}"
        return f"{named}: {_TOLD[self.outlook]}{attempt}{until}"


@attrs.frozen
class PlanMismatch:
    """
    A place where the code and the journal disagree: the instance would be Blocked there.
    """

    path: str | None
    "Where; None for the instance's input or output."
    recorded: str
    "What is recorded: a type, a kind of operation, an item."
    now: str
    "What the code asks for."
    error: ErrorInfo
    "The error that the body gets."

    def __str__(self) -> str:
        return on_one_line(self.error.message)


@attrs.frozen
class Plan:
    """
    What the present code would make of an instance's journal. Printed, it is a short report.
    """

    workflow: str
    "Name of the workflow."
    instance_id: str
    "Id of the instance."
    outcome: PlanOutcome | None
    "How the body ended; None if it stops at the misses, and so went no further."
    hits: tuple[str, ...] = ()
    "Paths that are served from memos, in the order in which they are asked for."
    misses: tuple[Miss, ...] = ()
    "What is asked for and has no memo, in that order."
    orphaned: tuple[str, ...] = ()
    "Recorded paths that the body, which came to its end, does not ask for any more."
    unreached: tuple[str, ...] = ()
    "Recorded paths that it did not come to: it may ask for them behind the misses."
    mismatches: tuple[PlanMismatch, ...] = ()
    "Where code and journal disagree."
    error: ErrorInfo | None = None
    "What else fails or blocks it: what left the body, usually."
    value: Any = None
    "What the body returned, if it did."
    assumed: tuple[str, ...] = ()
    "Paths that were served from what the caller assumes."
    is_stalled: bool = False
    "Whether the body waited for something that is no operation of its context, and was given up."

    @property
    def is_complete(self) -> bool:
        """
        Whether the body returned, with nothing left to run or to wait for.
        """
        return self.outcome == "completed"

    @property
    def problems(self) -> tuple[str, ...]:
        """
        What keeps the instance from going on as it should, a line each; empty if nothing does.

        Mismatches, what fails or blocks the body, effects whose outcome is unknown, and a body that was given up.
        """
        told = [str(mismatch) for mismatch in self.mismatches]
        if self.error is not None:
            told.append(on_one_line(str(self.error)))
        for miss in self.misses:
            if miss.outlook == "unknown" and miss.path is not None:
                unknown = OutcomeUnknownError(workflow=self.workflow, instance_id=self.instance_id, key=miss.path)
                told.append(on_one_line(str(unknown)))
        if self.is_stalled:
            told.append(
                f"workflow {self.workflow!r}, instance {self.instance_id!r}: the body waits for something that is no "
                f"operation of ctx; wait inside a step, or for a signal"
            )
        return tuple(told)

    def __str__(self) -> str:
        lines = [f"workflow {self.workflow!r}, instance {self.instance_id!r}: {self._ending()}"]
        lines += _section("blocks", self.mismatches)
        if self.error is not None:
            lines.append(f"  {'blocks' if self.outcome == 'blocked' else 'fails'}: {on_one_line(str(self.error))}")
        if self.is_stalled:
            lines.append("  given up: the body waits for something that is no operation of ctx")
        lines += _section("next", self.misses)
        lines += _section("not asked for any more", map(repr, self.orphaned))
        lines += _section("not reached", map(repr, self.unreached))
        lines += _section("assumed", map(repr, self.assumed))
        lines.append(f"  served from memos: {len(self.hits)}")
        return "\n".join(lines)

    def _ending(self) -> str:
        match self.outcome:
            case None:
                return f"stops at {len(self.misses)} of its operations"
            case "completed":
                return "comes to its end"
            case "failed":
                return "fails"
            case "blocked":
                return "is blocked"


def _section(title: str, items: Iterable[object]) -> list[str]:
    shown = [f"  {title}: {item}" for item in items]
    more = len(shown) - MAX_SHOWN
    return shown if more <= 0 else [*shown[:MAX_SHOWN], f"  {title}: and {more} more"]


def mismatch_of(error: WorkflowCodeError, info: ErrorInfo) -> PlanMismatch | None:
    """
    Return the disagreement that *error*, described by *info*, stands for; None if it stands for another mistake.
    """
    match error:
        case TypeMismatchError(key=key, expected=expected, found=found):
            return PlanMismatch(key, found, expected, info)
        case KeyKindError(key=key, recorded=recorded, requested=requested):
            return PlanMismatch(key, recorded, requested, info)
        case ItemsChangedError(key=key, item_key=item_key, is_missing=is_missing):
            return PlanMismatch(key, f"item {item_key!r}", "no such item" if is_missing else "another item", info)
        case _:
            return None
