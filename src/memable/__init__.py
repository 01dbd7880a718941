"""
memable: durable execution for trio, as a library.

A workflow is a trio async function; each ``await ctx.step(key, fn, ...)`` in it is memoised under its key in an
append-only log. After a crash the body runs again, and what has a memo is not run again.

The modules, lowest level first: ``_errors``, ``_keys``, ``_records``, ``_retry``, ``_values``, ``_frames``,
``_journal`` and ``_decide`` are a core of pure functions and values; ``_disk`` and ``_clock`` touch the world;
``_store``, ``_run``, ``_step``, ``_context``, ``_supervisor``, ``_engine`` and ``_open`` are the trio shell around
them.
"""

from ._context import Context
from ._definition import Workflow, workflow
from ._engine import Engine
from ._error_info import ErrorInfo
from ._errors import (
    ChildFailedError,
    CompensationLostError,
    DuplicateKeyError,
    DuplicateWorkflowError,
    EngineStoppedError,
    InstanceBusyError,
    InstanceCompensatedError,
    InstanceConflictError,
    InstanceNotFoundError,
    InvalidKeyError,
    ItemsChangedError,
    KeyKindError,
    MemableError,
    MisuseError,
    NestedStepError,
    NonDurableDeadlineError,
    NotDoneError,
    OutcomeUnknownError,
    PermanentError,
    RecordsLostError,
    RecoveryLimitError,
    RetriesExhaustedError,
    RetriesExhaustedTimeoutError,
    RetryableError,
    RunEndedError,
    SerializationError,
    SignalRejectedError,
    SignalSupersededError,
    StaleRunningError,
    StepFailedError,
    StepTimeoutError,
    StorageError,
    StoreCorruptedError,
    StoreLockedError,
    StoreVersionError,
    SuspendedStepConflictError,
    SuspendTimeoutError,
    TypeMismatchError,
    UnknownKeyError,
    WorkflowBlockedError,
    WorkflowCancelledError,
    WorkflowCodeError,
    WorkflowFailedError,
    WorkflowNotFoundError,
)
from ._fan_out import ChildFailed, ChildSucceeded
from ._history import HistoryEntry
from ._invocation import Invocation, StatusStream
from ._open import open_engine
from ._plan import Miss, Outlook, Plan, PlanMismatch, PlanOutcome
from ._retry import INHERIT, RetryPolicy
from ._scopes import DurableScope, ScopeTimeoutError
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
from ._store.file import FileStore
from ._store.memory import InMemoryStore
from ._suspend_point import SuspendPoint

__all__ = [
    "INHERIT",
    "Blocked",
    "Cancelled",
    "ChildFailed",
    "ChildFailedError",
    "ChildSucceeded",
    "CompensationLostError",
    "Completed",
    "Context",
    "DuplicateKeyError",
    "DuplicateWorkflowError",
    "DurableScope",
    "Engine",
    "EngineStoppedError",
    "ErrorInfo",
    "Failed",
    "FileStore",
    "HistoryEntry",
    "InMemoryStore",
    "InProgress",
    "InstanceBusyError",
    "InstanceCompensatedError",
    "InstanceConflictError",
    "InstanceNotFoundError",
    "InvalidKeyError",
    "Invocation",
    "ItemsChangedError",
    "KeyKindError",
    "MemableError",
    "MetadataStatus",
    "Miss",
    "MisuseError",
    "NestedStepError",
    "NonDurableDeadlineError",
    "NotDoneError",
    "OutcomeUnknownError",
    "Outlook",
    "PermanentError",
    "Plan",
    "PlanMismatch",
    "PlanOutcome",
    "RecordsLostError",
    "RecoveryLimitError",
    "RetriesExhaustedError",
    "RetriesExhaustedTimeoutError",
    "RetryPolicy",
    "RetryableError",
    "RunEndedError",
    "ScopeTimeoutError",
    "SerializationError",
    "SignalRejectedError",
    "SignalSupersededError",
    "StaleRunningError",
    "Started",
    "StatusStream",
    "StepFailedError",
    "StepTimeoutError",
    "StorageError",
    "StoreCorruptedError",
    "StoreLockedError",
    "StoreVersionError",
    "SuspendPoint",
    "SuspendTimeoutError",
    "Suspended",
    "SuspendedStepConflictError",
    "TypeMismatchError",
    "UnknownKeyError",
    "Workflow",
    "WorkflowBlockedError",
    "WorkflowCancelledError",
    "WorkflowCodeError",
    "WorkflowFailedError",
    "WorkflowMetadata",
    "WorkflowNotFoundError",
    "WorkflowState",
    "open_engine",
    "workflow",
]
