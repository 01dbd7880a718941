"""
The objects that ``--json`` prints. Their fields are documented: they may gain some, and never lose one.

Instants are texts in ISO 8601, always in UTC, to the microsecond.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import cast

from .._encoded import Encoded
from .._error_info import ErrorInfo
from .._header import InstanceHeader
from .._history import HistoryEntry
from .._json import JSON, loads
from .._listing import metadata_of
from ._advice import Advice
from ._details import Details
from ._moments import iso


def metadata_tree(header: InstanceHeader) -> dict[str, JSON]:
    """
    Return the fields of an instance's ``WorkflowMetadata``.
    """
    found = metadata_of(header, None)
    return {
        "number": found.number,
        "workflow_name": found.workflow_name,
        "instance_id": found.instance_id,
        "status": found.status.value,
        "key": found.key,
        "message": found.message,
        "created_at": iso(found.created_at),
        "updated_at": iso(found.updated_at),
        "completed_at": _instant(found.completed_at),
        "recoveries": found.recoveries,
        "parent": found.parent,
    }


def history_tree(entry: HistoryEntry) -> dict[str, JSON]:
    """
    Return the fields of a ``HistoryEntry``.
    """
    return {
        "kind": entry.kind,
        "key": entry.key,
        "attempt": entry.attempt,
        "started_at": _instant(entry.started_at),
        "ended_at": _instant(entry.ended_at),
        "value": entry.value,
        "value_type": entry.value_type,
        "error": _error_tree(entry.error),
    }


def details_tree(details: Details, advice: Sequence[Advice]) -> dict[str, JSON]:
    """
    Return all that is told of one instance.

    Raises:
        ValueError: What is recorded of a value is no JSON: the store is damaged.
    """
    return {
        **metadata_tree(details.header),
        "detached": details.header.detached,
        "input": _value_tree(details.input),
        "output": _value_tree(details.output),
        "error": _error_tree(details.error),
        "cancel_requested_at": _instant(details.cancel_requested_at),
        "cancel_reason": details.cancel_reason,
        "waits": [
            {
                "kind": wait.kind,
                "key": wait.key,
                "since": _instant(wait.since),
                "until": _instant(wait.until),
                "expects": wait.expects,
                "note": wait.note,
                "error": _error_tree(wait.error),
            }
            for wait in details.waits
        ],
        "unknown_outcomes": list(details.unknown),
        "kept_signals": [{"key": kept.key, "at": iso(kept.at), **_value_fields(kept.value)} for kept in details.kept],
        "memos": [
            {
                "kind": memo.kind,
                "key": memo.key,
                "outcome": memo.outcome,
                "at": iso(memo.at),
                "attempt": memo.attempt,
                **_value_fields(memo.value),
                "error": _error_tree(memo.error),
            }
            for memo in details.outcomes
        ],
        "children": [
            {
                "key": child.key,
                "workflow_name": child.workflow,
                "instance_id": child.instance_id,
                "detached": child.is_detached,
                "status": None if child.status is None else child.status.value,
            }
            for child in details.children
        ],
        "compensations": [{"key": undoing.key, "outcome": undoing.outcome} for undoing in details.compensations],
        "next": [{"text": piece.text, "python": piece.python} for piece in advice],
    }


def _instant(at: datetime | None) -> str | None:
    return None if at is None else iso(at)


def _value_tree(value: Encoded | None) -> JSON:
    return None if value is None else cast(JSON, _value_fields(value))


def _value_fields(value: Encoded | None) -> dict[str, JSON]:
    if value is None:
        return {"value": None, "value_type": None}
    return {"value": loads(value.data), "value_type": value.type}


def _error_tree(error: ErrorInfo | None) -> JSON:
    if error is None:
        return None
    return {
        "type": error.type,
        "message": error.message,
        "traceback": error.traceback,
        "bases": list(error.bases),
        "leaves": [_error_tree(leaf) for leaf in error.leaves],
        "cause": _error_tree(error.cause),
    }
