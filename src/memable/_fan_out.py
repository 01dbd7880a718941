"""
Runs one function for many items, each in a place of its own, and records each outcome.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeAlias, TypeVar

import attrs
import trio

from ._calls import ChildCall, await_child, child_failure
from ._decide import failed_paths_of, fatal_leaves, find_code_error
from ._definition import Workflow
from ._encoded import Encoded
from ._error_info import ErrorInfo, describe_exception, rename_error
from ._errors import ChildFailedError, MisuseError, RunEndedError, SerializationError, TypeMismatchError
from ._items import Child, Items
from ._journal import FanOutItems
from ._keys import SEPARATOR
from ._numbers import is_count
from ._records import BranchCompleted, BranchFailed, FanOutFailed
from ._related import leaves_of, related_to
from ._run import Place, Run, child_instance_id
from ._step import refuse
from ._step_misuse import find_misuse
from ._waiting import refuse_plain_deadline

T = TypeVar("T")

FAN_OUT_KIND = "a fan-out"

#: Going through recorded children, other tasks get a turn after so many.
CHILDREN_PER_TURN = 200


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


class _Members:
    """
    The children that run: how many, and who waits for a free place.
    """

    def __init__(self, run: Run, limit: float) -> None:
        self._run = run
        self._limit = limit
        self._count = 0
        self._waiting: trio.Event | None = None
        self._task: trio.lowlevel.Task | None = None
        self._is_branch = False

    async def wait_room(self) -> None:
        """Wait until another child may start."""
        while self._count >= self._limit:
            await self._pause()

    async def wait_empty(self) -> None:
        """Wait until no child runs. None is started after that."""
        self._limit = 1
        await self.wait_room()

    def add(self) -> None:
        """Count a child that is about to start."""
        self._count += 1
        self._run.activity.add_branch()

    def remove(self) -> None:
        """Take note that the child in the current task has ended."""
        self._count -= 1
        if self._waiting is not None and self._count < self._limit:
            # Before the child is gone, lest the run look as if all of it waited.
            self._go_on()
        self._run.activity.end_branch()

    async def _pause(self) -> None:
        waiting = self._waiting = trio.Event()
        self._task = trio.lowlevel.current_task()
        self._is_branch = self._run.begin_pause()
        try:
            await waiting.wait()
        finally:
            if self._waiting is waiting:
                self._go_on()

    def _go_on(self) -> None:
        assert self._waiting is not None
        self._waiting.set()
        self._waiting = None
        assert self._task is not None
        self._run.end_pause(self._task, self._is_branch)


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
        outcomes = await _FanOutWork(run, place, path, fan_out).perform()
        run.journal.drop_served(path)
        await run.deliver_cancellation()
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
        self._item_annotation, self._annotation = self._check()
        self._outcomes: list[Any] = []
        self._failed: ChildFailedError | None = None
        "What it failed with, once that is on its way to the store."
        self._unrecorded: list[BaseException] = []
        "What ends it and is no outcome."
        self._needed_again: set[str] = set()
        "Names of children that have an outcome, and are to register their compensations again."
        self._scope = trio.CancelScope()
        "Around the children; replaced by that of their nursery."

    def _check(self) -> tuple[Any, Any]:
        """
        Refuse what cannot work before anything of it runs.

        Returns:
            The annotated types of an item and of what a child returns.
        """
        run, fan_out = self._run, self._fan_out
        problem = _find_problem(fan_out)
        if problem is not None:
            raise run.misuse(problem, self._path)
        function = fan_out.fn.fn if isinstance(fan_out.fn, Workflow) else fan_out.fn
        annotations = run.services.annotations
        try:
            of_item = annotations.parameter_annotations(function, True, 1)
            return (of_item[0] if of_item else Any), annotations.return_annotation(function)
        except MisuseError as error:
            raise run.misuse(error.problem, self._path) from None

    async def perform(self) -> list[Any] | ChildFailedError:
        """Run what has no outcome yet."""
        run, fan_out = self._run, self._fan_out
        await run.restore_children(self._path)
        self._needed_again = self._find_needed_again()
        items = Items(run, self._path, fan_out.items, self._item_annotation, fan_out.item_key)
        failed = run.journal.memos.get(self._path)
        pending = await self._compare(items, failed if isinstance(failed, FanOutFailed) else None)
        if isinstance(failed, FanOutFailed) and not fan_out.settles:
            self._failed = self._error(failed.index, failed.item_key, failed.error)
        if not pending and self._failed is None and self._path not in run.journal.fan_outs:
            run.refuse_late(fan_out.operation)
        if self._failed is None:
            await self._run_children(pending, items)
        elif run.is_memo_only:
            await self._run_children([child for child in pending if child.name in self._needed_again], iter(()))
        if self._unrecorded:
            raise _most_urgent(self._unrecorded)
        if self._failed is None:
            return self._outcomes
        await self._cancel_instances()
        return self._failed

    # What is recorded ----------------------------------------------------------------------------------------

    async def _compare(self, items: Items, failed: FanOutFailed | None) -> list[Child]:
        """
        Compare the items up to the last recorded one, and take the recorded outcomes.

        Returns:
            Those of the children gone through that are to run: first those that have begun before.
        """
        run = self._run
        recorded = run.journal.fan_outs.get(self._path, FanOutItems())
        again: list[Child] = []
        begun: list[Child] = []
        new: list[Child] = []
        broken: tuple[Child, BranchFailed] | None = None
        count, left = 0, len(recorded.digests)
        while left:
            child = next(items, None)
            if child is None:
                raise items.missing(recorded)
            if items.is_other(child, recorded):
                raise items.changed(child)
            is_recorded = child.name in recorded.digests
            left -= is_recorded
            self._outcomes.append(None)
            memo = run.journal.memos.get(child.path)
            if memo is None and self._fan_out.settles and failed is not None and child.name == failed.item_key:
                # It was recorded by code that ended with the first failure.
                self._outcomes[child.index] = ChildFailed(rename_error(failed.error, run.services.aliases))
            elif isinstance(memo, (BranchCompleted, BranchFailed)):
                if isinstance(memo, BranchFailed) and broken is None:
                    broken = child, memo
                self._take_memo(child, memo)
                if child.name in self._needed_again:
                    again.append(child)
            else:
                (begun if is_recorded else new).append(child)
            count += 1
            if not count % CHILDREN_PER_TURN:
                await trio.lowlevel.checkpoint()
        await run.serve_memo()
        if broken is not None and failed is None and not self._fan_out.settles:
            await self._fail_with(*broken)
        # First those that come to their end: others may wait for ever, and be as many as may run at once.
        return [*again, *begun, *new]

    def _take_memo(self, child: Child, memo: BranchCompleted | BranchFailed) -> None:
        run = self._run
        run.replay.return_(child.path)
        if isinstance(memo, BranchCompleted):
            self._succeed(child, self._decode(child, memo.value))
        elif self._fan_out.settles:
            self._outcomes[child.index] = ChildFailed(rename_error(memo.error, run.services.aliases))
        if child.name not in self._needed_again:
            run.journal.drop_child(self._path, child.path)

    async def _fail_with(self, child: Child, memo: BranchFailed) -> None:
        """Fail with a failure that was recorded by code that collected all outcomes."""
        if self._run.is_memo_only:
            self._failed = self._error(child.index, child.name, memo.error)
            return
        await self._run.proceed(self._fan_out.operation)
        await self._record_first_failure(child, memo.error, (child.path, *memo.failed_paths))

    def _decode(self, child: Child, value: Encoded) -> Any:
        run = self._run
        try:
            return run.services.codec.decode(value, self._annotation)
        except TypeMismatchError as error:
            error.workflow, error.instance_id, error.key = run.workflow_name, run.instance_id, child.path
            raise run.blame(error) from None

    def _find_needed_again(self) -> set[str]:
        """Return the names of children within which compensations wait for being registered again."""
        run = self._run
        if not run.is_memo_only:
            return set()
        below = self._path + SEPARATOR
        lost = run.journal.compensations.keys() - run.compensations.keys()
        return {path[len(below) :].partition(SEPARATOR)[0] for path in lost if path.startswith(below)}

    def _succeed(self, child: Child, value: Any) -> None:
        self._outcomes[child.index] = ChildSucceeded(value) if self._fan_out.settles else value

    def _error(self, index: int, name: str, info: ErrorInfo) -> ChildFailedError:
        run = self._run
        return child_failure(run, self._path, rename_error(info, run.services.aliases), index=index, item_key=name)

    # Children ------------------------------------------------------------------------------------------------

    # Interrupted by control-C where the nursery is left, before that is awaited, it would never be left.
    @trio.lowlevel.enable_ki_protection
    async def _run_children(self, pending: list[Child], items: Iterator[Child]) -> None:
        limit = self._fan_out.limit
        members = _Members(self._run, math.inf if limit is None else limit)
        async with _open_nursery(self._run) as nursery:
            self._scope = nursery.cancel_scope
            try:
                # Dropped as they start: their items may be large.
                pending.reverse()
                while pending and not self._has_ended():
                    await members.wait_room()
                    self._start(pending.pop(), members, nursery)
                while not self._has_ended():
                    # Before the next item is taken: there are to be no more of them than children.
                    await members.wait_room()
                    child = _next_child(items)
                    if child is None:
                        break
                    self._outcomes.append(None)
                    self._start(child, members, nursery)
            except Exception as exc:  # noqa: BLE001 - raised again behind the nursery
                # What the user's iterator or item_key raises is not to come out of here in a group.
                self._give_up(exc)
            if self._failed is not None and self._run.is_memo_only:
                self._run.leave_behind(nursery)
            await members.wait_empty()

    def _has_ended(self) -> bool:
        return bool(self._unrecorded) or (self._failed is not None and not self._run.is_memo_only)

    def _start(self, child: Child, members: _Members, nursery: trio.Nursery) -> None:
        if not self._has_ended():
            members.add()
            nursery.start_soon(self._run_child, child, members)

    @trio.lowlevel.enable_ki_protection
    async def _run_child(self, child: Child, members: _Members) -> None:
        run = self._run
        run.activity.enter_branch()
        started_at = run.services.clock.now()
        place = self._place_of(child)
        try:
            if isinstance(self._fan_out.fn, Workflow):
                await self._run_instance(child, place, started_at)
            else:
                # What the annotation already tells is found before the function can have an effect.
                run.services.codec.check(self._annotation)
                value = await _call(run, self._fan_out, place, child)
                await self._record_value(child, place, value, started_at)
        except BaseException as exc:  # noqa: BLE001 - sorted leaf by leaf
            await self._take_exception(child, place, exc, started_at)
        finally:
            place.is_over = True
            members.remove()
            run.check_memo_only(is_at_end=True)

    def _place_of(self, child: Child) -> Place:
        recorded = self._run.journal.fan_outs.get(self._path)
        is_recorded = recorded is not None and child.name in recorded.digests
        beginning = {"path": child.path, "digest": child.digest, "index": child.index}
        return Place(child.path + SEPARATOR, self._place, None if is_recorded else beginning)

    def _is_decided(self, child: Child) -> bool:
        """Tell whether a child that runs has an outcome already: it only registers its compensations."""
        return child.path in self._run.journal.memos

    async def _record_value(self, child: Child, place: Place, value: Any, started_at: float) -> None:
        run = self._run
        if self._is_decided(child):
            return
        try:
            encoded, value = run.services.codec.encode_and_read_back(value, self._annotation)
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
        self._succeed(child, value)
        run.journal.drop_child(self._path, child.path)

    async def _run_instance(self, child: Child, place: Place, started_at: float) -> None:
        run, fan_out = self._run, self._fan_out
        assert isinstance(fan_out.fn, Workflow)
        if self._is_decided(child):
            return
        refuse_plain_deadline(run, child.path, fan_out.operation)
        call = ChildCall(fan_out.operation, child.path, fan_out.fn, (child.item,), child.index, child.digest)
        outcome = await await_child(run, self._place, call)
        # Recorded with the start of the instance.
        place.beginning = None
        if isinstance(outcome, ErrorInfo):
            await self._record_failure(child, place, outcome, (), started_at)
            return
        value = self._decode(child, outcome)
        await self._record(child, place, BranchCompleted, started_at, value=outcome)
        self._succeed(child, value)
        run.journal.drop_child(self._path, child.path)

    async def _record(self, child: Child, place: Place, cls: Any, started_at: float, **facts: Any) -> None:
        # Its beginning, if it is not recorded yet, goes into this record.
        digest = None if place.beginning is None else child.digest
        place.beginning = None
        await self._close(cls, child.path, index=child.index, digest=digest, started_at=started_at, **facts)

    async def _close(self, cls: Any, path: str, **facts: Any) -> None:
        """Record the outcome of the fan-out or of a child: nothing goes on within *path* any more."""
        self._run.begin_closing(path)
        try:
            await self._run.record(self._fan_out.operation, self._place, cls, path=path, **facts)
        finally:
            self._run.end_closing(path)

    # Failures ------------------------------------------------------------------------------------------------

    async def _take_exception(self, child: Child, place: Place, exc: BaseException, started_at: float) -> None:
        """Decide what becomes of what a child has raised. Raises nothing but cancellations, and what comes with one."""
        run = self._run
        cancelled, rest = _split_cancelled(exc)
        code_error = find_code_error(exc)
        if code_error is not None:
            run.blame(code_error)
            self._give_up(code_error if rest is None else rest)
        elif rest is not None and fatal_leaves(rest, trio.Cancelled):
            self._give_up(rest)
        elif cancelled is not None:
            # Cancelled from outside, or because another child has failed: that one's failure is the outcome then.
            raise exc if self._failed is None and not self._unrecorded else cancelled
        elif run.leaving is not None or any(isinstance(one, RunEndedError) for one in related_to(exc)):
            self._give_up(exc)
        elif not self._is_decided(child):
            try:
                await run.proceed(self._fan_out.operation)
                failed_paths = failed_paths_of(run.facts(exc), exc)
                await self._record_failure(child, place, describe_exception(exc), failed_paths, started_at)
            except Exception as refusal:  # noqa: BLE001 - the caller of the fan-out gets it
                self._give_up(refusal)

    def _give_up(self, exc: BaseException) -> None:
        """End the fan-out with what is no outcome."""
        self._unrecorded.append(exc)
        self._scope.cancel()

    async def _record_failure(
        self, child: Child, place: Place, info: ErrorInfo, failed_paths: tuple[str, ...], started_at: float
    ) -> None:
        if self._fan_out.settles:
            await self._record(child, place, BranchFailed, started_at, error=info, failed_paths=failed_paths)
            self._outcomes[child.index] = ChildFailed(rename_error(info, self._run.services.aliases))
            self._run.journal.drop_child(self._path, child.path)
        elif self._failed is None:
            # Set at once: what fails while the record is on its way was not the first.
            self._failed = self._error(child.index, child.name, info)
            # So that a replay with other items is told so.
            await self._run.record_beginnings(place)
            await self._record_first_failure(child, info, failed_paths)

    async def _record_first_failure(self, child: Child, info: ErrorInfo, failed_paths: tuple[str, ...]) -> None:
        # Recorded before the others are cancelled: whatever they do then, a replay raises the same.
        self._failed = self._error(child.index, child.name, info)
        await self._close(
            FanOutFailed,
            self._path,
            error=info,
            index=child.index,
            item_key=child.name,
            failed_paths=failed_paths,
        )
        self._scope.cancel()

    async def _cancel_instances(self) -> None:
        """Cancel the child instances of the other children, now or if a crash came before: nobody waits for them."""
        run = self._run
        if run.is_memo_only or not run.journal.children:
            return
        async with trio.open_nursery() as nursery:
            for path in run.journal.children_below(self._path):
                child = await run.host.find_child(run.journal.children[path], child_instance_id(run, path))
                if child is not None and not child.header.status.is_terminal:
                    nursery.start_soon(run.host.cancel_child, child, "another child of its fan-out failed")


def _find_problem(fan_out: FanOut) -> str | None:
    """Return what is wrong with the arguments of a fan-out and what to write instead, or None."""
    # What a caller gives may be anything.
    items: Any = fan_out.items
    item_key: Any = fan_out.item_key
    problem = _find_wrong_function(fan_out.fn)
    if problem is not None:
        return problem
    if fan_out.limit is not None and not is_count(fan_out.limit, least=1):
        problem = f"limit is {fan_out.limit!r}; give how many children may run at once, at least 1, or None"
    elif item_key is not None and not callable(item_key):
        problem = f"item_key is {item_key!r}; give a function from an item to the name of its child"
    elif isinstance(items, AsyncIterator) or not _is_iterable(items):
        problem = f"items is a {type(items).__name__}, which 'for' cannot go through; give a list, say"
    return problem


def _find_wrong_function(fn: Any) -> str | None:
    if isinstance(fn, Workflow):
        if _takes(fn.signature, 1):
            return None
        return f"workflow {fn.name!r} does not take one argument, the item: its signature is {fn.signature}"
    name = getattr(fn, "__name__", repr(fn))
    if find_misuse("step", fn) is not None:
        return (
            f"{name} is not an async function; write 'async def work(ctx, item)' and give it without calling it, with "
            f"blocking work in ctx.step_in_thread"
        )
    if not _takes(_signature_of(fn), 2):
        return f"{name} does not take two arguments; write it as 'async def {name}(ctx, item)'"
    return None


def _signature_of(fn: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(fn, follow_wrapped=False)
    except (TypeError, ValueError):
        # Some functions written in C do not tell.
        return None


def _takes(signature: inspect.Signature | None, count: int) -> bool:
    if signature is None:
        return True
    try:
        signature.bind(*(None,) * count)
    except TypeError:
        return False
    return True


def _is_iterable(items: object) -> bool:
    # As iter() has it, without beginning to go through them.
    return isinstance(items, Iterable) or hasattr(type(items), "__getitem__")


@trio.lowlevel.disable_ki_protection
async def _call(run: Run, fan_out: FanOut, place: Place, child: Child) -> Any:
    """Call the user's function so that control-C can interrupt it, unlike memable's own code around it."""
    awaitable = fan_out.fn(fan_out.make_context(run, place), child.item)
    if not isinstance(awaitable, Awaitable):
        given = type(awaitable).__name__
        problem = f"the function of the fan-out returned a {given}, which cannot be awaited; write it as 'async def'"
        raise run.misuse(problem, child.path)
    return await awaitable


def _split_cancelled(exc: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """Return what of an exception is cancellation, and what is not."""
    if isinstance(exc, BaseExceptionGroup):
        return exc.split(trio.Cancelled)
    return (exc, None) if isinstance(exc, trio.Cancelled) else (None, exc)


def _most_urgent(raised: list[BaseException]) -> BaseException:
    """Return what is to come out of a fan-out: first what no workflow may keep to itself, then what blames the code."""
    fatal = [exc for exc in raised if fatal_leaves(exc, trio.Cancelled)]
    if fatal:
        return fatal[0] if len(fatal) == 1 else BaseExceptionGroup("several children of a fan-out", fatal)
    return next((exc for exc in raised if find_code_error(exc) is not None), raised[0])


@trio.lowlevel.disable_ki_protection
def _next_child(items: Iterator[Child]) -> Child | None:
    """Take the next item: code of the user's, which control-C may interrupt."""
    return next(items, None)


@asynccontextmanager
async def _open_nursery(run: Run) -> AsyncIterator[trio.Nursery]:
    """Open a nursery out of which mere cancellation comes as one exception, as out of any other operation."""
    nursery: trio.Nursery | None = None
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        leaves = list(leaves_of(group))
        if all(isinstance(leaf, trio.Cancelled) for leaf in leaves):
            raise leaves[0] from None
        raise
    finally:
        if nursery is not None:
            run.end_children(nursery)
