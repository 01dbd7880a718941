"""
What an instance can be seen to be: its states for people and code, and its metadata for listings.
"""

from __future__ import annotations

import enum
from datetime import datetime
from typing import TypeAlias

import attrs

from ._error_info import ErrorInfo


class MetadataStatus(enum.Enum):
    """
    What is recorded of where an instance is in its life.
    """

    RUNNING = "running"
    SUSPENDED = "suspended"
    BLOCKED = "blocked"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """
        Whether the instance has ended, until somebody resumes it.
        """
        return self in _TERMINAL


#: No set: it would ask for the hash of an enum's member, which is a function of Python's.
_TERMINAL = (MetadataStatus.COMPLETED, MetadataStatus.FAILED, MetadataStatus.CANCELLED)


@attrs.frozen
class Started:
    """
    The instance runs, or will; it has not said anything about its progress yet.
    """

    @property
    def is_terminal(self) -> bool:
        """
        Always False.
        """
        return False

    @property
    def message(self) -> str | None:
        """
        Always None.
        """
        return None

    def __str__(self) -> str:
        return "started"


@attrs.frozen
class InProgress:
    """
    The instance runs, and has set a status message.
    """

    message: str
    "What the body last gave to ``ctx.set_status``."

    @property
    def is_terminal(self) -> bool:
        """
        Always False.
        """
        return False

    def __str__(self) -> str:
        return f"in progress: {self.message}"


@attrs.frozen
class Suspended:
    """
    Every branch of the instance waits.
    """

    key: str
    "The path that has waited longest."
    status: str | None
    "What the wait, or ``ctx.set_status``, said."
    deadline: datetime | None
    "When that wait ends by itself (UTC), if it does."
    waits: tuple[str, ...]
    "All paths that wait, longest first."

    @property
    def is_terminal(self) -> bool:
        """
        Always False.
        """
        return False

    @property
    def message(self) -> str | None:
        """
        The status message of the wait.
        """
        return self.status

    def __str__(self) -> str:
        until = f" until {self.deadline.isoformat()}" if self.deadline is not None else ""
        more = f" and {len(self.waits) - 1} more" if len(self.waits) > 1 else ""
        said = f": {self.status}" if self.status else ""
        return f"suspended at {self.key!r}{more}{until}{said}"


@attrs.frozen
class Blocked:
    """
    The instance needs a person: its code and its journal disagree, or an outcome is unknown.
    """

    key: str | None
    "The path it is blocked at; None where no key is meant."
    error: ErrorInfo
    "What blocked it."

    @property
    def is_terminal(self) -> bool:
        """
        Always False: it goes on once the code is mended.
        """
        return False

    @property
    def message(self) -> str | None:
        """
        The message of what blocked it.
        """
        return self.error.message

    def __str__(self) -> str:
        where = f" at {self.key!r}" if self.key is not None else ""
        return f"blocked{where}: {self.error}"


@attrs.frozen
class Completed:
    """
    The body returned, and its value is recorded.
    """

    message: str | None = None
    "The last status message, if any."

    @property
    def is_terminal(self) -> bool:
        """
        Always True.
        """
        return True

    def __str__(self) -> str:
        return f"completed: {self.message}" if self.message else "completed"


@attrs.frozen
class Failed:
    """
    An exception left the body, and is recorded.
    """

    error: ErrorInfo
    "What left the body."

    @property
    def is_terminal(self) -> bool:
        """
        Always True.
        """
        return True

    @property
    def message(self) -> str | None:
        """
        The message of what left the body.
        """
        return self.error.message

    def __str__(self) -> str:
        return f"failed: {self.error}"


@attrs.frozen
class Cancelled:
    """
    The instance was cancelled by ``engine.cancel``.
    """

    reason: str | None = None
    "What the caller gave as the reason."
    error: ErrorInfo | None = None
    "What else left the body while it was being cancelled, if anything."

    @property
    def is_terminal(self) -> bool:
        """
        Always True.
        """
        return True

    @property
    def message(self) -> str | None:
        """
        The reason.
        """
        return self.reason

    def __str__(self) -> str:
        return f"cancelled: {self.reason}" if self.reason else "cancelled"


WorkflowState: TypeAlias = Started | InProgress | Suspended | Blocked | Completed | Failed | Cancelled


@attrs.frozen
class WorkflowMetadata:
    """
    What is recorded of an instance, for listings.
    """

    workflow_name: str
    "Name of its workflow."
    instance_id: str
    "Its id."
    status: MetadataStatus
    "Where it is in its life."
    message: str | None
    "Its last status message, or what it failed, was cancelled or is blocked with."
    key: str | None
    "The path it waits or is blocked at, if any."
    created_at: datetime
    "When its start became durable (UTC)."
    updated_at: datetime
    "When its newest record was made (UTC)."
    completed_at: datetime | None
    "When it ended (UTC); None while it has not."
    recoveries: int
    "How many crashes in a row it was running at, without a new record in between."
    parent: str | None
    "For a child, the path of its parent instance: ``workflow/instance id``."
    number: int = attrs.field(default=0, repr=False, eq=False)
    "Place in the order of creation."
