"""
Turns what is recorded of an instance into what people see: its state and its metadata.
"""

from __future__ import annotations

from collections.abc import Mapping

from ._error_info import ErrorInfo, rename_error
from ._header import InstanceHeader
from ._journal import Journal
from ._records import InstanceBlocked, InstanceCancelled, InstanceCompleted, InstanceFailed, InstanceRecord
from ._states import (
    Blocked,
    Cancelled,
    Completed,
    Failed,
    InProgress,
    MetadataStatus,
    Started,
    Suspended,
    WorkflowMetadata,
    WorkflowState,
)
from ._times import utc_datetime


def unfinished_state(header: InstanceHeader) -> WorkflowState:
    """
    Return the state of an instance that is recorded as running.
    """
    return Started() if header.message is None else InProgress(header.message)


def suspended_state(header: InstanceHeader, journal: Journal) -> Suspended:
    """
    Return the state of an instance that is recorded as suspended.
    """
    suspended = journal.suspended
    assert suspended is not None
    wait, failed = journal.waits.get(suspended.path), journal.attempts.get(suspended.path)
    deadline = wait.deadline if wait is not None else None if failed is None else failed.next_attempt_at
    return Suspended(
        suspended.path,
        suspended.note or header.message,
        None if deadline is None else utc_datetime(deadline),
        tuple(journal.waiting_paths()),
    )


def ended_state(header: InstanceHeader, ending: InstanceRecord, aliases: Mapping[str, type]) -> WorkflowState:
    """
    Return the state that the record *ending* has put an instance into.

    Args:
        header: The instance's.
        ending: The newest record of it that ended a run.
        aliases: What recorded classes are called now.
    """

    def renamed(error: ErrorInfo) -> ErrorInfo:
        return rename_error(error, aliases)

    match ending:
        case InstanceCompleted():
            return Completed(header.message)
        case InstanceFailed(error=error):
            return Failed(renamed(error))
        case InstanceCancelled(reason=reason, error=error):
            return Cancelled(reason, None if error is None else renamed(error))
        case InstanceBlocked(path=path, error=error):
            return Blocked(path, renamed(error))
        case _:
            raise AssertionError(f"{ending.kind} ends no run")


def metadata_of(header: InstanceHeader, live: WorkflowState | None) -> WorkflowMetadata:
    """
    Return what a listing says of an instance.

    Args:
        header: What is recorded of it.
        live: The state of its run, if it runs here.
    """
    status, message, key = header.status, header.error_message or header.message, header.key
    if isinstance(live, Suspended):
        status, message, key = MetadataStatus.SUSPENDED, live.status, live.key
    elif live is not None:
        message = live.message
    return WorkflowMetadata(
        workflow_name=header.workflow,
        instance_id=header.instance_id,
        status=status,
        message=message,
        key=key,
        created_at=utc_datetime(header.created_at),
        updated_at=utc_datetime(header.updated_at),
        completed_at=None if header.completed_at is None else utc_datetime(header.completed_at),
        recoveries=header.recoveries,
        parent=header.parent,
        number=header.number,
    )
