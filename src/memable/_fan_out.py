"""
Runs one function for many items, each in a place of its own, and records each outcome.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeAlias, TypeVar

import attrs
import trio

from ._calls import ChildOutcome, await_child, child_failure
from ._decide import failed_paths_of, fatal_leaves, find_code_error
from ._definition import Workflow
from ._encoded import Encoded
from ._error_info import ErrorInfo, describe_exception, rename_error
from ._errors import (
    ChildFailedError,
    DuplicateKeyError,
    InvalidKeyError,
    ItemsChangedError,
    MisuseError,
    RunEndedError,
    SerializationError,
    TypeMismatchError,
)
from ._journal import FanOutItems
from ._json import canonical
from ._keys import SEPARATOR, check_key
from ._numbers import is_count
from ._records import BranchCompleted, BranchFailed, FanOutFailed
from ._related import leaves_of, related_to
from ._run import Place, Run, call_unprotected
from ._step import refuse

T = TypeVar("T")

FAN_OUT_KIND = "a fan-out"

#: Digests are to tell items apart, not to resist attacks: so many hexadecimal digits.
DIGEST_DIGITS = 32


@attrs.frozen
class ChildSucceeded(Generic[T]):
    """
    A child of ``ctx.fan_out_settled`` returned.
    """

    value: T
    "What it returned, as decoded from its record."


@attrs.frozen
class ChildFailed:
    """
    A child of ``ctx.fan_out_settled`` failed.
    """

    error: ErrorInfo
    "What it failed with."


Outcome: TypeAlias = ChildSucceeded[Any] | ChildFailed


@attrs.define
class FanOut:
    """
    One use of a key as a fan-out.
    """

    operation: str
    fn: Callable[..., Any]
    items: Iterable[Any]
    limit: int | None
    "At most so many children at once."
    item_key: Callable[[Any], str] | None
    "Names children by their items."
    settles: bool
    "Whether failures are collected; else the first one ends it."
    make_context: Callable[[Run, Place], Any]
    "Makes the context of a child."
    returns: Any = None


@attrs.define
class _Child:
    index: int
    name: str
    path: str
    item: Any
    digest: str


@attrs.define(eq=False)
class _Failure:
    """What ended the fan-out early."""

    error: BaseException


class _Members:
    """
    The children that run: how many, and who waits for a free place.
    """

    def __init__(self, run: Run, limit: float) -> None:
        self._run = run
        self._limit = limit
        self._count = 0
        self._waiting: trio.Event | None = None
        self._is_branch = False

    async def wait_room(self) -> None:
        """Wait until another child may start."""
        while self._count >= self._limit:
            await self._pause()

    async def wait_empty(self) -> None:
        """Wait until no child runs."""
        self._limit = 0 if not self._count else 1
        while self._count:
            self._limit = 1
            await self._pause()

    def add(self) -> None:
        """Count a child that is about to start."""
        self._count += 1
        self._run.add_branch()

    def remove(self) -> None:
        """Take note that the child in the current task has ended."""
        self._count -= 1
        if self._waiting is not None and self._count < self._limit:
            # Before the child is gone, lest the run look as if all of it waited.
            self._go_on()
        self._run.end_branch()

    async def _pause(self) -> None:
        waiting = self._waiting = trio.Event()
        self._is_branch = self._run.pause_branch()
        try:
            await waiting.wait()
        finally:
            if self._waiting is waiting:
                self._go_on()

    def _go_on(self) -> None:
        assert self._waiting is not None
        self._waiting.set()
        self._waiting = None
        self._run.resume_branch(self._is_branch)


async def perform_fan_out(run: Run, place: Place, key: str, fan_out: FanOut) -> list[Any]:
    """
    Return the outcomes of all children in the order of the items: values, or ``Outcome`` objects if it settles.

    Raises:
        ChildFailedError: A child failed, and the fan-out does not settle.
        WorkflowCodeError: The code is wrong.
        RunEndedError: The run has ended or is being unwound.
    """
    path: str | None = None
    try:
        path = run.claim(fan_out.operation, place, key, FAN_OUT_KIND)
        work = _FanOutWork(run, place, path, fan_out)
        outcomes = await work.perform()
        run.journal.drop_served(path)
        await trio.lowlevel.checkpoint_if_cancelled()
    except BaseException as exc:
        await refuse(run, place, path, exc)
        raise
    if isinstance(outcomes, ChildFailedError):
        raise outcomes
    return outcomes


class _FanOutWork:
    def __init__(self, run: Run, place: Place, path: str, fan_out: FanOut) -> None:
        self._run = run
        self._place = place
        self._path = path
        self._fan_out = fan_out
        self._outcomes: list[Any] = []
        self._failure: _Failure | None = None
        self._seen: set[str] = set()
        self._item_annotation: Any = None
        self._annotation: Any = None

    async def perform(self) -> list[Any] | ChildFailedError:
        """Run what has no outcome yet."""
        self._check()
        run = self._run
        run.after_memo()
        recorded = run.journal.fan_outs.get(self._path, FanOutItems())
        children = self._children()
        known = self._compare(children, recorded)
        failed = run.journal.memos.get(self._path)
        if isinstance(failed, FanOutFailed) and not run.is_memo_only:
            await trio.lowlevel.checkpoint()
            return self._failed_error(failed)
        # Only cancelled by what cancels the caller, or by the first failure.
        async with _collapsing(self) as nursery:
            members = _Members(run, math.inf if self._fan_out.limit is None else self._fan_out.limit)
            await trio.lowlevel.checkpoint()
            for child in _chain(known, children):
                memo = run.journal.memos.get(child.path)
                run.forget_asked(child.path)
                self._outcomes.append(None)
                if isinstance(memo, (BranchCompleted, BranchFailed)) and not self._is_needed_again(child):
                    self._serve(child, memo, nursery)
                    continue
                await members.wait_room()
                members.add()
                nursery.start_soon(self._run_child, child, members, nursery.cancel_scope)
            await members.wait_empty()
        if self._failure is not None:
            raise self._failure.error
        if isinstance(failed, FanOutFailed):
            return self._failed_error(failed)
        ended = run.journal.memos.get(self._path)
        return self._failed_error(ended) if isinstance(ended, FanOutFailed) else self._outcomes

    # The items -----------------------------------------------------------------------------------------------

    def _check(self) -> None:
        run = self._run
        fan_out: Any = self._fan_out
        problem = None
        if not callable(fan_out.fn):
            problem = f"{fan_out.fn!r} is not a function; give an async function that takes a context and an item"
        elif fan_out.limit is not None and not is_count(fan_out.limit, least=1):
            problem = f"limit is {fan_out.limit!r}; give how many children may run at once, at least 1, or None"
        elif fan_out.item_key is not None and not callable(fan_out.item_key):
            problem = f"item_key is {fan_out.item_key!r}; give a function from an item to the name of its child"
        elif isinstance(fan_out.items, AsyncIterator) or not isinstance(fan_out.items, Iterable):
            problem = f"items is a {type(fan_out.items).__name__}, which 'for' cannot go through; give a list, say"
        if problem is not None:
            raise run.misuse(problem, self._path)
        function = fan_out.fn.fn if isinstance(fan_out.fn, Workflow) else fan_out.fn
        try:
            annotations = run.services.annotations.parameter_annotations(function, True, 1)
            self._annotation = run.services.annotations.return_annotation(function)
        except MisuseError as error:
            raise run.misuse(error.problem, self._path) from None
        self._item_annotation = annotations[0] if annotations else Any

    def _children(self) -> Iterator[_Child]:
        for index, item in enumerate(self._fan_out.items):
            name = str(index) if self._fan_out.item_key is None else self._name(item)
            yield _Child(index, name, f"{self._path}{SEPARATOR}{name}", item, self._digest(item))

    def _name(self, item: Any) -> str:
        assert self._fan_out.item_key is not None
        run = self._run
        try:
            name = check_key("item key", self._fan_out.item_key(item))
        except InvalidKeyError as error:
            error.workflow, error.instance_id = run.workflow_name, run.instance_id
            raise run.blame(error) from None
        if name in self._seen:
            path = f"{self._path}{SEPARATOR}{name}"
            raise run.blame(DuplicateKeyError(workflow=run.workflow_name, instance_id=run.instance_id, key=path))
        self._seen.add(name)
        return name

    def _digest(self, item: Any) -> str:
        codec = self._run.services.codec
        annotation = self._item_annotation
        try:
            try:
                encoded = codec.encode(item, annotation)
            except SerializationError:
                # Not annotated, or not with what it is: its own class may tell how it is written.
                encoded = codec.encode(item, type(item))
        except SerializationError as error:
            raise self._run.misuse(f"an item of the fan-out cannot be recorded: {error.problem}", self._path) from error
        text = encoded.type.encode() + b" " + canonical(encoded.data)
        return hashlib.sha256(text).hexdigest()[:DIGEST_DIGITS]

    def _compare(self, children: Iterator[_Child], recorded: FanOutItems) -> Iterator[_Child]:
        """Return the children up to the last recorded one, after comparing all of those."""
        pending = dict(recorded.digests)
        known: list[_Child] = []
        while pending:
            child = next(children, None)
            if child is None:
                name = min(pending, key=lambda name: recorded.indexes[name])
                raise self._changed(name, recorded.indexes[name], is_missing=True)
            digest = pending.pop(child.name, None)
            if digest is not None and digest != child.digest:
                raise self._changed(child.name, child.index, is_missing=False)
            if child.path in self._run.journal.memos and not self._is_needed_again(child):
                # Only its outcome is needed any more.
                child.item = None
            known.append(child)
        return iter(known)

    def _changed(self, name: str, index: int, *, is_missing: bool) -> BaseException:
        run = self._run
        return run.blame(
            ItemsChangedError(
                workflow=run.workflow_name,
                instance_id=run.instance_id,
                key=self._path,
                item_key=name,
                index=index,
                is_missing=is_missing,
            )
        )

    # Outcomes ------------------------------------------------------------------------------------------------

    def _is_needed_again(self, child: _Child) -> bool:
        """Tell whether a child that has an outcome is to run over its memos, to register its compensations."""
        run = self._run
        below = child.path + SEPARATOR
        return run.is_memo_only and any(
            path.startswith(below) and path not in run.compensations for path in run.journal.compensations
        )

    def _serve(self, child: _Child, memo: BranchCompleted | BranchFailed, nursery: trio.Nursery) -> None:
        if isinstance(memo, BranchCompleted):
            value = self._decode(memo.value)
            self._outcomes[child.index] = ChildSucceeded(value) if self._fan_out.settles else value
        elif self._fan_out.settles:
            self._outcomes[child.index] = ChildFailed(rename_error(memo.error, self._run.services.aliases))
        elif self._failure is None:
            # It was recorded by code that collected all outcomes.
            self._failure = _Failure(self._error(child.index, child.name, memo.error))
            nursery.cancel_scope.cancel()

    def _decode(self, value: Encoded) -> Any:
        run = self._run
        try:
            return run.services.codec.decode(value, self._annotation)
        except TypeMismatchError as error:
            error.workflow, error.instance_id, error.key = run.workflow_name, run.instance_id, self._path
            raise run.blame(error) from None

    def _failed_error(self, failed: FanOutFailed) -> ChildFailedError:
        return self._error(failed.index, failed.item_key, failed.error)

    def _error(self, index: int, name: str, info: ErrorInfo) -> ChildFailedError:
        run = self._run
        return child_failure(run, self._path, rename_error(info, run.services.aliases), index=index, item_key=name)

    # Children ------------------------------------------------------------------------------------------------

    async def _run_child(self, child: _Child, members: _Members, scope: trio.CancelScope) -> None:
        run = self._run
        run.enter_branch()
        started_at = run.services.clock.now()
        place = self._place_of(child)
        try:
            if isinstance(self._fan_out.fn, Workflow):
                outcome = await await_child(
                    run,
                    self._place,
                    self._fan_out.operation,
                    child.path,
                    self._fan_out.fn,
                    (child.item,),
                    child.index,
                    child.digest,
                )
                await self._record_instance(child, place, outcome, started_at, scope)
            else:
                context = self._fan_out.make_context(run, place)
                value = await call_unprotected(self._fan_out.fn, context, child.item)
                await self._record_value(child, place, value, started_at)
        except BaseException as exc:
            await self._take_failure(child, place, exc, started_at, scope)
        finally:
            place.is_over = True
            members.remove()

    def _place_of(self, child: _Child) -> Place:
        is_recorded = child.name in self._run.journal.fan_outs.get(self._path, FanOutItems()).digests
        beginning = {"path": child.path, "digest": child.digest, "index": child.index}
        return Place(child.path + SEPARATOR, self._place, None if is_recorded else beginning)

    async def _record_value(self, child: _Child, place: Place, value: Any, started_at: float) -> None:
        run = self._run
        if child.path in run.journal.memos:
            # It only ran to register its compensations.
            return
        try:
            encoded = run.services.codec.encode(value, self._annotation)
            value = run.services.codec.decode(encoded, self._annotation)
        except SerializationError as error:
            error.workflow, error.instance_id, error.key = run.workflow_name, run.instance_id, child.path
            raise
        except TypeMismatchError as error:
            problem = f"its value cannot be read back: {error}"
            raise SerializationError(
                problem=problem, workflow=run.workflow_name, instance_id=run.instance_id, key=child.path
            ) from None
        await run.proceed(self._fan_out.operation)
        await self._record(child, place, BranchCompleted, started_at, value=encoded)
        self._outcomes[child.index] = ChildSucceeded(value) if self._fan_out.settles else value

    async def _record_instance(
        self, child: _Child, place: Place, outcome: ChildOutcome, started_at: float, scope: trio.CancelScope
    ) -> None:
        place.beginning = None
        if isinstance(outcome, ErrorInfo):
            await self._record_failure(child, place, outcome, (), started_at, scope)
            return
        value = self._decode(outcome)
        await self._record(child, place, BranchCompleted, started_at, value=outcome)
        self._outcomes[child.index] = ChildSucceeded(value) if self._fan_out.settles else value

    async def _record(self, child: _Child, place: Place, cls: Any, started_at: float, **facts: Any) -> None:
        # Its beginning, if it is not recorded yet, goes into this record.
        digest = None if place.beginning is None else child.digest
        place.beginning = None
        await self._run.record(
            self._fan_out.operation,
            self._place,
            cls,
            path=child.path,
            index=child.index,
            digest=digest,
            started_at=started_at,
            **facts,
        )

    async def _take_failure(
        self, child: _Child, place: Place, exc: BaseException, started_at: float, scope: trio.CancelScope
    ) -> None:
        run = self._run
        code_error = find_code_error(exc)
        if code_error is not None:
            run.blame(code_error)
            self._end_with(code_error if isinstance(exc, trio.Cancelled) else exc, scope)
            return
        if isinstance(exc, trio.Cancelled):
            raise exc
        if fatal_leaves(exc, trio.Cancelled):
            self._end_with(exc, scope)
            return
        if any(isinstance(leaf, trio.Cancelled) for leaf in leaves_of(exc)) or run.leaving is not None:
            raise exc
        if child.path in run.journal.memos:
            return
        if any(isinstance(one, RunEndedError) for one in related_to(exc)):
            self._end_with(exc, scope)
            return
        try:
            await run.proceed(self._fan_out.operation)
            await self._record_failure(
                child, place, describe_exception(exc), failed_paths_of(run.facts(), exc), started_at, scope, exc
            )
        except Exception as refusal:  # noqa: BLE001 - the caller of the fan-out gets it
            self._end_with(refusal, scope)

    async def _record_failure(
        self,
        child: _Child,
        place: Place,
        info: ErrorInfo,
        failed_paths: tuple[str, ...],
        started_at: float,
        scope: trio.CancelScope,
        cause: BaseException | None = None,
    ) -> None:
        run = self._run
        if self._fan_out.settles:
            await self._record(child, place, BranchFailed, started_at, error=info, failed_paths=failed_paths)
            self._outcomes[child.index] = ChildFailed(info)
            return
        if self._failure is not None:
            # Another child was first, and this one is about to be cancelled.
            return
        error = self._error(child.index, child.name, info)
        error.__cause__ = cause
        self._end_with(error, scope, cancel=False)
        if child.name not in run.journal.fan_outs.get(self._path, FanOutItems()).digests:
            # So that a replay with other items is told so.
            await run.record_beginnings(place)
        # Recorded before the others are cancelled: whatever they do then, a replay raises the same.
        await run.record(
            self._fan_out.operation,
            self._place,
            FanOutFailed,
            path=self._path,
            error=info,
            index=child.index,
            item_key=child.name,
            failed_paths=failed_paths,
        )
        scope.cancel()

    def _end_with(self, error: BaseException, scope: trio.CancelScope, *, cancel: bool = True) -> None:
        if self._failure is None:
            self._failure = _Failure(error)
        if cancel:
            scope.cancel()


def _chain(known: Iterator[_Child], rest: Iterator[_Child]) -> Iterator[_Child]:
    yield from known
    yield from rest


@asynccontextmanager
async def _collapsing(work: _FanOutWork) -> AsyncIterator[trio.Nursery]:
    """Open a nursery out of which no group comes: children keep what they raise, or are cancelled."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        if not all(isinstance(leaf, trio.Cancelled) for leaf in leaves_of(group)):
            # The caller's own code in the loop over the items, alone in its group.
            leaves = [leaf for leaf in leaves_of(group) if not isinstance(leaf, trio.Cancelled)]
            if len(leaves) == 1:
                raise leaves[0] from leaves[0].__cause__
        raise
