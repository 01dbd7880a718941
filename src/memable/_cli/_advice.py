"""
What somebody can do about an instance now, as lines of Python.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from .._error_info import ErrorInfo
from .._errors import (
    CompensationLostError,
    OutcomeUnknownError,
    RecordsLostError,
    RecoveryLimitError,
    WorkflowCodeError,
)
from .._keys import SEPARATOR
from .._states import MetadataStatus
from ._details import Details, Wait

#: A fan-out may wait in thousands of places at once; the same line for each teaches nothing.
_MAX_SHOWN = 10


@attrs.frozen
class Advice:
    """
    One thing that can be done, or that will happen by itself.
    """

    text: str
    "What it is for."
    python: str | None = None
    "What to run inside ``async with memable.open_engine(...) as engine``, if anything is."


def advise(details: Details, *, is_closed: bool) -> list[Advice]:
    """
    Return what can be done next, most obvious first.

    Args:
        details: What is known of the instance.
        is_closed: Whether no engine has the store open.
    """
    return list(_advise(details, is_closed))


def _advise(details: Details, is_closed: bool) -> Iterator[Advice]:
    header = details.header
    match header.status:
        case MetadataStatus.COMPLETED:
            return
        case MetadataStatus.FAILED | MetadataStatus.CANCELLED:
            yield _resume_ended(details)
        case MetadataStatus.BLOCKED:
            yield from _unblock(details)
        case MetadataStatus.SUSPENDED:
            yield from _end_waits(details)
        case MetadataStatus.RUNNING:
            if not is_closed:
                yield Advice(
                    "It runs in the engine that has the store open. If that has died, it goes on at the next open."
                )
    if is_closed and not header.status.is_terminal and not header.needs_resume:
        yield Advice(
            f"The store is closed: it goes on when an engine opens it that knows the workflow {header.workflow!r}."
        )


def _resume_ended(details: Details) -> Advice:
    if details.header.parent_name is not None:
        parent, parent_id = details.header.parent_name
        return Advice("Its parent waits for it: resume that.", _call("resume", parent, parent_id))
    if details.header.is_compensating:
        text = "To run it again from the beginning, since its compensations have run:"
        return Advice(text, _call("resume", details.header.workflow, details.header.instance_id, "anew=True"))
    if details.header.status is MetadataStatus.CANCELLED:
        return Advice("To run it again over its memos:", _resume(details))
    return Advice("Mend the cause; then, to run what failed again:", _resume(details))


def _unblock(details: Details) -> Iterator[Advice]:
    error = details.error or ErrorInfo("", "")
    if error.matches(OutcomeUnknownError):
        keys = [details.header.key] if details.header.key is not None else details.unknown
        for key in keys:
            yield Advice(
                "Find out whether the effect happened; then tell what it returned, or error=..., or rerun=True:",
                _call("settle", details.header.workflow, details.header.instance_id, repr(key), "value=..."),
            )
    elif error.matches(RecordsLostError):
        yield Advice("Find out what it has done already: what is lost runs again; then:", _resume(details))
    elif error.matches(RecoveryLimitError):
        yield Advice("Find out whether it brings the process down; then:", _resume(details))
    elif error.matches(CompensationLostError):
        yield Advice("Let the code register that compensation again; then open the store, or:", _resume(details))
    elif error.matches(WorkflowCodeError):
        yield Advice("Mend the code; it goes on when the store is opened again, or at:", _resume(details))
    else:
        text = "It failed before it had come as far as an earlier run. Mend the cause; then open the store again, or:"
        yield Advice(text, _resume(details))
    if not error.matches(OutcomeUnknownError):
        yield Advice("Where the records are what is wrong, forget those:", _resume(details, "forget=[...]"))


def _end_waits(details: Details) -> Iterator[Advice]:
    points = [wait for wait in details.waits if wait.kind == "suspend"]
    for wait in points[:_MAX_SHOWN]:
        yield Advice(f"To end the wait at {wait.key!r}:", _signal(details, wait))
    if len(points) > _MAX_SHOWN:
        yield Advice(f"So for {len(points) - _MAX_SHOWN} more waits.")
    children = [child for child in details.children if child.status is not None and not child.status.is_terminal]
    waited_for = {wait.key for wait in details.waits if wait.kind == "child"}
    for child in [child for child in children if child.key in waited_for][:_MAX_SHOWN]:
        assert child.status is not None
        name = SEPARATOR.join((child.workflow, child.instance_id))
        yield Advice(f"It waits for {name}, which is {child.status.value}: see there.")
    if details.waits and not points and not waited_for:
        yield Advice("Nothing to do: it goes on by itself.")


def _signal(details: Details, wait: Wait) -> str:
    within, _, point = wait.key.rpartition(SEPARATOR)
    arguments = [f"memable.SuspendPoint({point!r}, {short_type(wait.expects or '')})", "payload"]
    if within:
        arguments.append(f"within={within!r}")
    return _call("signal", details.header.workflow, details.header.instance_id, *arguments)


def _resume(details: Details, *arguments: str) -> str:
    return _call("resume", details.header.workflow, details.header.instance_id, *arguments)


def _call(name: str, workflow: str, instance_id: str, *arguments: str) -> str:
    return f"await engine.{name}({', '.join((repr(workflow), repr(instance_id), *arguments))})"


def short_type(name: str) -> str:
    """
    Return the recorded name of a type as one writes it.
    """
    return name.replace("builtins.", "").replace("NoneType", "None")
