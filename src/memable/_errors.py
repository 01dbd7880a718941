"""
Every exception of memable: facts as attributes, the text made from them.

Rules: one base class; no exception holds an engine, a run or a user's object that cannot be pickled; each text says
what happened, to which workflow, instance and key, and what to do next. Nothing here decides anything.
"""

from __future__ import annotations

from typing import Any

import attrs

from ._error_info import ErrorInfo

#: The message about an unknown key names so many of those that are known.
_MAX_NAMED_KEYS = 10


def _restore(cls: type[MemableError], args: tuple[Any, ...], facts: dict[str, Any]) -> MemableError:
    """Rebuild an exception from a pickle or a copy without calling its constructor."""
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(facts)
    return error


class MemableError(Exception):
    """
    Base of all that memable raises.
    """

    def __init_subclass__(cls) -> None:
        # Recorded names and tracebacks say where a user imports it from, not in which file it lives.
        if cls.__module__.startswith("memable."):
            cls.__module__ = "memable"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, dict(self.__dict__))


MemableError.__module__ = "memable"


def _of(workflow: str | None, instance_id: str | None, key: str | None = None) -> str:
    """Return the subject of a message: as much of workflow, instance and key as is known."""
    parts = []
    if workflow is not None:
        parts.append(f"workflow {workflow!r}")
    if instance_id is not None:
        parts.append(f"instance {instance_id!r}")
    if key is not None:
        parts.append(f"key {key!r}")
    return ", ".join(parts)


#: Where the advice begins in the text of an error that stands for another one.
_ADVICE = "; mend the cause"


def _told(info: ErrorInfo) -> str:
    """Return what is told of an error: of several around each other the innermost that names a key, without advice."""
    while info.cause is not None and info.cause.cause is not None:
        info = info.cause
    text = str(info)
    return text if info.cause is None else text.partition(_ADVICE)[0]


def _subject(workflow: str | None, instance_id: str | None, key: str | None = None) -> str:
    text = _of(workflow, instance_id, key)
    return f"{text}: " if text else ""


#: No refused value is shown longer than this in a message.
MAX_SHOWN_CHARS = 300


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[: MAX_SHOWN_CHARS - 3]}..."


class _Shown(str):
    """The text of a value that an exception does not keep: it can be anything, a lock or an engine included."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _keepable(value: object) -> object:
    """Return a refused value itself, if it can be pickled and holds nothing else; otherwise its text."""
    if isinstance(value, str):
        return str.__str__(value)
    if value is None or type(value) in (bool, int, float, bytes):
        return value
    try:
        return _Shown(_cut(repr(value)))
    except Exception:  # noqa: BLE001 - whatever the user's code raises
        # Its __repr__ is the user's code; its failure must not hide what is wrong with the value.
        return _Shown(f"<{type(value).__name__}>")


# What step code raises -------------------------------------------------------------------------------------------


class RetryableError(MemableError):
    """
    Raised by step code: this failure may pass, try again while the retry budget lasts, whatever ``retry_on`` says.
    """


class PermanentError(MemableError):
    """
    Raised by step code: trying again is pointless. Never retried; one such leaf makes a whole group permanent.
    """


class NotDoneError(MemableError):
    """
    Raised by a probe: the effect did not happen, so it is safe to run the step.
    """


# Steps that failed -----------------------------------------------------------------------------------------------


@attrs.define(slots=False, eq=False, kw_only=True)
class StepFailedError(MemableError):
    """
    A step failed for good, and that is recorded: every replay raises the same.
    """

    workflow: str
    "Name of the workflow."
    instance_id: str
    "Id of the instance."
    key: str
    "Path of the step's key within the instance."
    error: ErrorInfo
    "What the last attempt raised."
    attempts: int
    "How many attempts were made, from 1."
    retryable: bool
    "Whether the last failure was of a kind that another attempt might have mended."

    def matches(self, *classes: type[BaseException]) -> bool:
        """
        Tell whether the last attempt raised one of *classes*: the same answer live and on every replay.
        """
        return self.error.matches(*classes)

    def _what(self) -> str:
        return "the step failed" if self.attempts == 1 else f"the step failed at attempt {self.attempts}"

    def __str__(self) -> str:
        return (
            f"{_of(self.workflow, self.instance_id, self.key)}: {self._what()} with {self.error}; mend the cause, "
            f"then engine.resume(...) runs it again"
        )


@attrs.define(slots=False, eq=False, kw_only=True)
class StepTimeoutError(StepFailedError, TimeoutError):
    """
    A step's last attempt was cancelled because it took longer than its ``timeout``.
    """

    def _what(self) -> str:
        return "the step timed out" if self.attempts == 1 else f"the step timed out at attempt {self.attempts}"


@attrs.define(slots=False, eq=False, kw_only=True)
class RetriesExhaustedError(StepFailedError):
    """
    A step failed at every attempt that its retry policy allows.
    """

    def _what(self) -> str:
        return f"the step failed at all of its {self.attempts} attempts, at last"


@attrs.define(slots=False, eq=False, kw_only=True)
class RetriesExhaustedTimeoutError(RetriesExhaustedError, StepTimeoutError):
    """
    A step failed at every attempt that its retry policy allows, and the last one timed out.
    """

    def _what(self) -> str:
        return f"the step failed at all of its {self.attempts} attempts, timing out at last"


@attrs.define(slots=False, eq=False, kw_only=True)
class SerializationError(MemableError):
    """
    A value cannot be stored as its annotated type. As the outcome of a step it is recorded: every replay raises it.
    """

    problem: str
    "What is wrong with the value, and the remedy."
    workflow: str | None = None
    "Name of the workflow, if known."
    instance_id: str | None = None
    "Id of the instance, if known."
    key: str | None = None
    "Path of the step's key; None for an input or an output."

    def __str__(self) -> str:
        return f"{_subject(self.workflow, self.instance_id, self.key)}{self.problem}"


# The code, not the work, is wrong ---------------------------------------------------------------------------------


class WorkflowCodeError(MemableError):
    """
    Base of what means that the code is wrong, not the work: the instance is Blocked until the code is mended.
    """


@attrs.define(slots=False, eq=False, kw_only=True)
class MisuseError(WorkflowCodeError, TypeError):
    """
    An operation was called in a way that cannot work, for example with a coroutine in place of a function.
    """

    problem: str
    "What is wrong with the call, and what to write."
    workflow: str | None = None
    "Name of the workflow, if known."
    instance_id: str | None = None
    "Id of the instance, if known."
    key: str | None = None
    "Path of the key that the call named, if any."

    def __str__(self) -> str:
        return f"{_subject(self.workflow, self.instance_id, self.key)}{self.problem}"


@attrs.define(slots=False, eq=False, kw_only=True)
class InvalidKeyError(WorkflowCodeError, ValueError):
    """
    A workflow name, key, suspend point or instance id breaks the rule for those.
    """

    component: str
    "What it was to be: ``key``, ``instance id``, ``workflow name``, ..."
    value: object = attrs.field(converter=_keepable)
    "What was given; the text of it, if it was neither a string nor a number."
    problem: str
    "Which part of the rule it breaks."
    workflow: str | None = None
    "Name of the workflow in whose body it was given, if it was."
    instance_id: str | None = None
    "Id of the instance in whose body it was given, if it was."

    def __str__(self) -> str:
        where = _subject(self.workflow, self.instance_id)
        return (
            f"{where}{self.component} {_cut(repr(self.value))} {self.problem}; use a non-empty str of at most 255 "
            f"bytes of UTF-8 without '/', control characters or surrogates, that does not start with '_'"
        )


@attrs.define(slots=False, eq=False, kw_only=True)
class TypeMismatchError(WorkflowCodeError, TypeError):
    """
    A recorded value was to be read as another type than it was written as, or a given one is of another type.
    """

    expected: str
    "Name of the type that the code asks for."
    found: str
    "Name of the type that is recorded, or given."
    problem: str = ""
    "More about it, if the names alone do not tell."
    workflow: str | None = None
    "Name of the workflow, if known."
    instance_id: str | None = None
    "Id of the instance, if known."
    key: str | None = None
    "Path of the key; None for an input or an output."
    is_given: bool = False
    "Whether the value is a caller's, to be delivered; else it is recorded."

    def __str__(self) -> str:
        more = f" ({self.problem})" if self.problem else ""
        if self.is_given:
            return (
                f"{_subject(self.workflow, self.instance_id, self.key)}the instance waits for {self.expected}, but "
                f"what is given is {self.found}{more}; nothing was delivered: give a value of that type"
            )
        return (
            f"{_subject(self.workflow, self.instance_id, self.key)}the code asks for {self.expected}, but what is "
            f"recorded is {self.found}{more}; restore the type, use a new key, or name a moved class in "
            f"open_engine(aliases=...)"
        )


@attrs.define(slots=False, eq=False, kw_only=True)
class DuplicateKeyError(WorkflowCodeError):
    """
    One key was used twice in one run, at once or one after the other.
    """

    workflow: str
    "Name of the workflow."
    instance_id: str
    "Id of the instance."
    key: str
    "Path of the key."

    def __str__(self) -> str:
        return (
            f"{_of(self.workflow, self.instance_id, self.key)}: this run has used the key before; give each use a "
            f"key of its own, in a loop for example f'{self.key.rpartition('/')[2]}-{{item.id}}'"
        )


@attrs.define(slots=False, eq=False, kw_only=True)
class KeyKindError(WorkflowCodeError):
    """
    A key that an earlier run recorded as one kind of operation is used as another.
    """

    workflow: str
    "Name of the workflow."
    instance_id: str
    "Id of the instance."
    key: str
    "Path of the key."
    recorded: str
    "The kind that is recorded, for example ``step``."
    requested: str
    "The kind that the code asks for."

    def __str__(self) -> str:
        return (
            f"{_of(self.workflow, self.instance_id, self.key)}: recorded as {self.recorded}, now used as "
            f"{self.requested}; use a new key for it"
        )


class SuspendedStepConflictError(KeyKindError):
    """
    A key that is recorded as a suspend point is used as a step.
    """


@attrs.define(slots=False, eq=False, kw_only=True)
class NestedStepError(WorkflowCodeError):
    """
    The context was used inside a step: a step is one unit and cannot contain others.
    """

    workflow: str
    "Name of the workflow."
    instance_id: str
    "Id of the instance."
    key: str
    "Path of the step inside which the context was used."
    operation: str
    "What was called there."

    def __str__(self) -> str:
        return (
            f"{_of(self.workflow, self.instance_id, self.key)}: ctx.{self.operation} was called inside this step; "
            f"call it from the workflow's body, before or after the step"
        )


@attrs.define(slots=False, eq=False, kw_only=True)
class ItemsChangedError(WorkflowCodeError):
    """
    A fan-out was given other items than those of which children are recorded. Nothing ran.
    """

    workflow: str
    "Name of the workflow."
    instance_id: str
    "Id of the instance."
    key: str
    "Path of the fan-out."
    item_key: str
    "What the child is called whose item is another one, or missing."
    index: int
    "Place that its item has in the record, from 0."
    is_missing: bool
    "Whether there is no such item any more; else it is another one."

    def __str__(self) -> str:
        what = "is missing" if self.is_missing else "is another one than the one that is recorded"
        return (
            f"{_of(self.workflow, self.instance_id, self.key)}: the item of child {self.item_key!r} "
            f"(index {self.index}) {what}; give the same items again (more may follow them), name children by "
            f"item_key=, make the items in a step, or use a new key"
        )


@attrs.define(slots=False, eq=False, kw_only=True)
class NonDurableDeadlineError(WorkflowCodeError):
    """
    A wait stands inside a deadline of trio's, which would begin anew at each recovery.
    """

    workflow: str
    "Name of the workflow."
    instance_id: str
    "Id of the instance."
    key: str
    "Path of the wait."
    operation: str
    "What was called."

    def __str__(self) -> str:
        remedy = "or suspend(..., timeout=...)" if self.operation == "suspend" else "around it"
        return (
            f"{_of(self.workflow, self.instance_id, self.key)}: ctx.{self.operation} inside a deadline of trio's, "
            f"which a crash or a passivation would begin anew; use 'async with ctx.move_on_after(key, seconds)' or "
            f"ctx.fail_after(key, seconds) {remedy}"
        )


@attrs.define(slots=False, eq=False, kw_only=True)
class CompensationLostError(WorkflowCodeError):
    """
    A compensation was registered, and the code does not register it any more, so nobody knows what to run.
    """

    workflow: str
    "Name of the workflow."
    instance_id: str
    "Id of the instance."
    keys: tuple[str, ...]
    "Paths of the lost compensations."

    @property
    def key(self) -> str:
        """
        Path of the first of them.
        """
        return self.keys[0]

    def __str__(self) -> str:
        keys = ", ".join(map(repr, self.keys))
        return (
            f"{_of(self.workflow, self.instance_id)}: compensations {keys} were registered, but the code does not "
            f"register them any more; let it call ctx.compensate with these keys again, then it goes on at the next "
            f"open or engine.resume(...)"
        )


@attrs.define(slots=False, eq=False, kw_only=True)
class OutcomeUnknownError(WorkflowCodeError):
    """
    A step with ``once=True`` had begun when the process died: whether its effect happened, nobody here knows.
    """

    workflow: str
    "Name of the workflow."
    instance_id: str
    "Id of the instance."
    key: str
    "Path of the step's key."
    error: ErrorInfo | None = None
    "What the probe failed with, if it was asked."

    def __str__(self) -> str:
        probed = f" (the probe failed with {self.error})" if self.error is not None else ""
        return (
            f"{_of(self.workflow, self.instance_id, self.key)}: the effect had begun when its run was cut short, and "
            f"its outcome is unknown{probed}; find out whether it happened, then engine.settle(..., value=... or "
            f"error=... or rerun=True)"
        )


# Waiting -----------------------------------------------------------------------------------------------------------


@attrs.define(slots=False, eq=False, kw_only=True)
class SuspendTimeoutError(MemableError, TimeoutError):
    """
    No signal came in time. That is recorded: every replay raises the same.
    """

    workflow: str
    "Name of the workflow."
    instance_id: str
    "Id of the instance."
    key: str
    "Path of the suspend point."

    def __str__(self) -> str:
        return (
            f"{_of(self.workflow, self.instance_id, self.key)}: no signal came before the timeout; catch this in the "
            f"workflow, or engine.resume(...) to wait once more"
        )


@attrs.define(slots=False, eq=False, kw_only=True)
class ChildFailedError(MemableError):
    """
    A child of a fan-out, or the child instance of a call, failed. That is recorded: every replay raises the same.
    """

    workflow: str
    "Name of the workflow."
    instance_id: str
    "Id of the instance."
    key: str
    "Path of the fan-out or call."
    error: ErrorInfo
    "What the child failed with."
    index: int | None = None
    "Place of the child's item, from 0; None for a call."
    item_key: str | None = None
    "What the child is called in paths; None for a call."

    def matches(self, *classes: type[BaseException]) -> bool:
        """
        Tell whether the child failed with one of *classes*: the same answer live and on every replay.
        """
        return self.error.matches(*classes)

    def __str__(self) -> str:
        which = "the child instance" if self.index is None else f"child {self.item_key!r} (index {self.index})"
        return (
            f"{_of(self.workflow, self.instance_id, self.key)}: {which} failed with {_told(self.error)}; mend the "
            f"cause, then engine.resume(...) runs it again"
        )


# Instances ---------------------------------------------------------------------------------------------------------


@attrs.define(slots=False, eq=False, kw_only=True)
class _InstanceError(MemableError):
    workflow: str
    "Name of the workflow."
    instance_id: str
    "Id of the instance."


@attrs.define(slots=False, eq=False, kw_only=True)
class InstanceNotFoundError(_InstanceError, LookupError):
    """
    The store has no such instance: it was never started, or retention has removed it.
    """

    def __str__(self) -> str:
        return (
            f"{_of(self.workflow, self.instance_id)}: the store has no such instance; check the name and the id, "
            f"or start it with engine.invoke(...)"
        )


@attrs.define(slots=False, eq=False, kw_only=True)
class InstanceConflictError(_InstanceError):
    """
    The instance exists already, started with another input.
    """

    def __str__(self) -> str:
        return (
            f"{_of(self.workflow, self.instance_id)}: exists already with another input; use another instance_id, "
            f"or engine.get(...) for the existing one"
        )


@attrs.define(slots=False, eq=False, kw_only=True)
class InstanceBusyError(_InstanceError):
    """
    This cannot be done to the instance now: it executes, has not ended, or is kept for its parent.
    """

    operation: str
    "What was asked for."
    reason: str = "the instance runs"
    "What stands in the way."

    def __str__(self) -> str:
        return (
            f"{_of(self.workflow, self.instance_id)}: {self.operation} is not possible while {self.reason}; "
            f"wait for it, or engine.cancel(...) it first"
        )


@attrs.define(slots=False, eq=False, kw_only=True)
class SignalRejectedError(_InstanceError):
    """
    The instance does not wait for this answer, so nothing was delivered.
    """

    key: str
    "Path of the suspend point or step."
    reason: str
    "Why not."

    def __str__(self) -> str:
        return f"{_of(self.workflow, self.instance_id, self.key)}: nothing was delivered: {self.reason}"


@attrs.define(slots=False, eq=False, kw_only=True)
class SignalSupersededError(_InstanceError):
    """
    Another signal, or the timeout, was first: its outcome stands, and this payload was not delivered.
    """

    key: str
    "Path of the suspend point."

    def __str__(self) -> str:
        return (
            f"{_of(self.workflow, self.instance_id, self.key)}: nothing was delivered: another signal or the timeout "
            f"was first, or a signal is kept there already; that one counts"
        )


@attrs.define(slots=False, eq=False, kw_only=True)
class InstanceCompensatedError(_InstanceError):
    """
    The instance's compensations have begun: what it did is being undone, so it cannot go on from its memos.
    """

    def __str__(self) -> str:
        return (
            f"{_of(self.workflow, self.instance_id)}: its compensations have begun, so its memos no longer hold; "
            f"engine.resume(..., anew=True) runs it from the beginning"
        )


@attrs.define(slots=False, eq=False, kw_only=True)
class UnknownKeyError(_InstanceError, LookupError):
    """
    ``forget`` names keys that the instance has no record of. Nothing was changed.
    """

    keys: tuple[str, ...]
    "The unknown keys or paths."
    known: tuple[str, ...] = ()
    "The recorded paths."

    def __str__(self) -> str:
        names = ", ".join(map(repr, self.keys))
        known = ", ".join(map(repr, self.known[:_MAX_NAMED_KEYS])) or "nothing"
        more = f" and {len(self.known) - _MAX_NAMED_KEYS} more" if len(self.known) > _MAX_NAMED_KEYS else ""
        return (
            f"{_of(self.workflow, self.instance_id)}: no record of {names}, so nothing was forgotten; "
            f"recorded is {known}{more}"
        )


@attrs.define(slots=False, eq=False, kw_only=True)
class WorkflowNotFoundError(MemableError, LookupError):
    """
    No workflow of this name is registered with the engine.
    """

    workflow: str
    "The name that was asked for."
    registered: tuple[str, ...] = ()
    "The names that are registered."

    def __str__(self) -> str:
        if self.workflow in self.registered:
            return (
                f"workflow {self.workflow!r} is not registered: another definition of this name is; give the one that "
                f"is registered, or its name"
            )
        known = ", ".join(map(repr, self.registered)) or "none"
        return (
            f"workflow {self.workflow!r} is not registered (registered: {known}); name it in "
            f"open_engine(workflows=[...]) or call engine.register(...)"
        )


@attrs.define(slots=False, eq=False, kw_only=True)
class DuplicateWorkflowError(MemableError):
    """
    Another workflow of the same name is registered already.
    """

    workflow: str
    "The name of both."

    def __str__(self) -> str:
        return (
            f"workflow {self.workflow!r}: another definition of this name is registered already; give one of them "
            f"a name of its own with @memable.workflow(name=...)"
        )


@attrs.define(slots=False, eq=False, kw_only=True)
class WorkflowFailedError(_InstanceError):
    """
    The instance ended as Failed.
    """

    error: ErrorInfo
    "What left the workflow's body."

    def matches(self, *classes: type[BaseException]) -> bool:
        """
        Tell whether what left the body was one of *classes*.
        """
        return self.error.matches(*classes)

    def __str__(self) -> str:
        return (
            f"{_of(self.workflow, self.instance_id)}: failed with {_told(self.error)}; mend the cause, then "
            f"engine.resume(...) continues it from its memos"
        )


@attrs.define(slots=False, eq=False, kw_only=True)
class WorkflowCancelledError(_InstanceError):
    """
    The instance ended as Cancelled.
    """

    reason: str | None = None
    "What the caller of ``cancel`` gave as the reason."

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        return (
            f"{_of(self.workflow, self.instance_id)}: was cancelled{why}; engine.resume(...) continues it from its "
            f"memos"
        )


@attrs.define(slots=False, eq=False, kw_only=True)
class WorkflowBlockedError(_InstanceError):
    """
    The instance needs a person: its code and its journal disagree.
    """

    key: str | None
    "Path of the key that it is blocked at; None where no key is meant."
    error: ErrorInfo
    "What blocked it."

    def __str__(self) -> str:
        if self.error.matches(RecoveryLimitError):
            remedy = "find out whether it brings the process down, then engine.resume(...) it"
        elif self.error.matches(RecordsLostError):
            # Here, that nothing is lost would be wrong.
            return f"{_of(self.workflow, self.instance_id, self.key)}: blocked by {self.error}"
        elif self.error.matches(OutcomeUnknownError):
            remedy = "find out whether the effect happened, then engine.settle(...) it"
        else:
            remedy = "mend the code, then it goes on at the next open or engine.resume(...)"
        where = _of(self.workflow, self.instance_id, self.key)
        return f"{where}: blocked by {self.error}; nothing is lost: {remedy}"


@attrs.define(slots=False, eq=False, kw_only=True)
class StaleRunningError(_InstanceError):
    """
    The instance is recorded as running, but nothing runs it here.
    """

    def __str__(self) -> str:
        return (
            f"{_of(self.workflow, self.instance_id)}: recorded as running, but not running in this engine; register "
            f"its workflow or call engine.resume(...)"
        )


@attrs.define(slots=False, eq=False, kw_only=True)
class RecoveryLimitError(_InstanceError):
    """
    The instance was running at so many crashes in a row that it is no longer run by itself.
    """

    recoveries: int
    "How many crashes in a row it was running at, without a new record in between."

    def __str__(self) -> str:
        return (
            f"{_of(self.workflow, self.instance_id)}: was running at {self.recoveries} crashes in a row without a "
            f"new record; find out whether it brings the process down, then engine.resume(...)"
        )


@attrs.define(slots=False, eq=False, kw_only=True)
class RecordsLostError(_InstanceError):
    """
    The store was damaged, and records of the instance are lost, or may be. It is no longer run by itself.
    """

    lost: str
    "What is lost, or may be."

    def __str__(self) -> str:
        return (
            f"{_of(self.workflow, self.instance_id)}: the store was damaged and repaired, and {self.lost}; what is "
            f"lost runs again: find out what it has done already, then engine.resume(...)"
        )


# The engine --------------------------------------------------------------------------------------------------------


@attrs.define(slots=False, eq=False, kw_only=True)
class EngineStoppedError(MemableError):
    """
    The engine has stopped, or is about to. Nothing was begun; what was acknowledged is kept.
    """

    operation: str
    "What was asked for."

    def __str__(self) -> str:
        return f"{self.operation}: the engine has stopped; open the store again with open_engine(...)"


@attrs.define(slots=False, eq=False, kw_only=True)
class RunEndedError(MemableError):
    """
    A context was used after its run had ended, or while its run is being unwound. Nothing was recorded.
    """

    workflow: str
    "Name of the workflow."
    instance_id: str
    "Id of the instance."
    operation: str
    "What was called."
    leaving: str | None = None
    "Why the run is being unwound, as ``ctx.leaving`` says; None if it has ended."

    def __str__(self) -> str:
        if self.leaving is None:
            why = "this run has ended; use the context only inside the workflow's body and its nurseries"
        else:
            why = f"this run is being unwound ({self.leaving}), so nothing new is begun; put effects into steps"
        return f"{_of(self.workflow, self.instance_id)}: ctx.{self.operation} did nothing: {why}"


# The store ---------------------------------------------------------------------------------------------------------


@attrs.define(slots=False, eq=False, kw_only=True)
class StorageError(MemableError):
    """
    The store cannot do its work. What was acknowledged before is intact; nothing after it was acknowledged.
    """

    location: str
    "The file or directory it happened to, or the store's name."
    problem: str
    "What happened, and what to do."

    def __str__(self) -> str:
        return f"{self.location}: {self.problem}"


@attrs.define(slots=False, eq=False, kw_only=True)
class StoreLockedError(StorageError):
    """
    Another engine has the store open.
    """

    pid: int | None = None
    "Process id of the holder, if known."
    host: str | None = None
    "Host name of the holder, if known."


@attrs.define(slots=False, eq=False, kw_only=True)
class StoreCorruptedError(StorageError):
    """
    The store is damaged in a way that no crash explains. Nothing was changed.
    """

    offset: int
    "Where the damage begins, in bytes from the start of the file."

    def __str__(self) -> str:
        return f"{self.location}: at byte offset {self.offset}: {self.problem}"


@attrs.define(slots=False, eq=False, kw_only=True)
class StoreVersionError(StorageError):
    """
    The store was written in a format that this release does not know.
    """

    found: int
    "The format version that the store says it has."
    supported: int
    "The newest format version that this release reads."
