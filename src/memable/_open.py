"""
Opens an engine: checks the settings, recovers the store, and sees to every way out of the user's block.
"""

from __future__ import annotations

import functools
import math
import os
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import attrs
import cattrs
import trio

from ._annotations import AnnotationCache
from ._clock import Clock, current_clock
from ._definition import Workflow, check_retention
from ._engine import Engine, check_timeout
from ._errors import StorageError
from ._header import InstanceHeader
from ._numbers import is_count
from ._observer import RunObserver
from ._recovering import Recovery
from ._removing import Removals
from ._retry import RetryPolicy
from ._services import Services
from ._store._protocol import OpenStore, Store
from ._store.file import FileStore
from ._supervisor import Supervisor, logger
from ._timers import Timers
from ._values._codec import Codec

#: Where records are kept if nothing else is said.
STORE_VARIABLE = "MEMABLE_STORE"
DEFAULT_STORE = "./memable-data"

DEFAULT_MAX_VALUE_BYTES = 64 * 2**20

P = ParamSpec("P")
T = TypeVar("T")


class _Uninterrupted(AbstractAsyncContextManager[T]):
    """
    Holds control-C back while a context manager is entered or left: halfway through, it could not be left any more.
    """

    def __init__(self, manager: AbstractAsyncContextManager[T]) -> None:
        self._manager = manager

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> T:
        return await self._manager.__aenter__()

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        exc_traceback: TracebackType | None,
    ) -> bool | None:
        return await self._manager.__aexit__(exc_type, exc, exc_traceback)


def _uninterrupted(
    open_it: Callable[P, AbstractAsyncContextManager[T]],
) -> Callable[P, AbstractAsyncContextManager[T]]:
    @functools.wraps(open_it)
    def opening(*args: P.args, **kwargs: P.kwargs) -> AbstractAsyncContextManager[T]:
        return _Uninterrupted(open_it(*args, **kwargs))

    return opening


@attrs.frozen
class Surroundings:
    """
    What an engine finds around it, and a test or a plan may choose.
    """

    observer: RunObserver | None = None
    "Is told what runs do."
    uniform: Callable[[], float] = attrs.field(factory=lambda: random.Random().random)  # noqa: S311 - guards nothing
    "Returns a random number, uniform in [0, 1): it spreads retries."
    randbits: Callable[[int], int] = secrets.randbits
    "Returns so many random bits: they make ids unique."
    run_in_thread: Callable[..., Awaitable[Any]] | None = None
    "Calls a function in place of a thread, if it is not to be ``trio.to_thread.run_sync``."
    codec: Codec | None = None
    "Used instead of a new one: a converter takes longer to make than a small workflow to run."
    annotations: AnnotationCache = attrs.field(factory=AnnotationCache)


@attrs.frozen
class _Settings:
    """What an engine is to be like, checked."""

    default_retry: RetryPolicy | None
    shutdown_s: float
    retention_s: float | None
    max_parked: int
    max_recoveries: int
    aliases: Mapping[str, type]
    codec: Codec
    clock: Clock
    surroundings: Surroundings


@attrs.frozen
class _Parts:
    """What an engine is made of."""

    services: Services
    supervisor: Supervisor
    removals: Removals
    recovery: Recovery
    engine: Engine


def open_engine(
    store: str | os.PathLike[str] | Store | None = None,
    *,
    workflows: Iterable[Workflow[..., Any]] = (),
    default_retry: RetryPolicy | None = None,
    resume_on_start: bool = True,
    shutdown_timeout: float = math.inf,
    retention: float | None = None,
    max_parked: int = 1000,
    max_recoveries: int = 100,
    converter: cattrs.Converter | None = None,
    aliases: Mapping[str, type] = {},
    max_value_bytes: int = DEFAULT_MAX_VALUE_BYTES,
) -> AbstractAsyncContextManager[Engine]:
    """
    Open a store, recover what is unfinished in it, and run workflows over it until the block is left.

    Left normally, it waits for the runs that do not wait themselves, up to *shutdown_timeout*; left by an exception
    or a cancellation, it cancels all runs at once. What has not ended stays Running, and goes on at the next open.

    Args:
        store: A directory, created if missing; a ``FileStore`` or an ``InMemoryStore``. Left out:
            ``$MEMABLE_STORE``, else ``./memable-data``.
        workflows: The definitions to register. Unfinished instances of others stay as they are.
        default_retry: The policy of steps that do not give one; None for no retries.
        resume_on_start: Whether unfinished instances of the registered workflows run again on entry.
        shutdown_timeout: Seconds for which leaving the block normally waits for runs.
        retention: Seconds for which ended instances are kept; None for ever. A workflow's own goes before it.
        max_parked: How many waiting runs keep their tasks. Of more, those that have waited longest are unwound, and
            run again over their memos when what they wait for has come.
        max_recoveries: An instance that was running at so many crashes in a row is Blocked.
        converter: A cattrs converter whose hooks are used for values.
        aliases: What recorded classes are called now: recorded name to class.
        max_value_bytes: A value that takes more, encoded, is refused.

    Yields:
        The engine, with all unfinished instances scheduled.

    Raises:
        StoreLockedError: Another engine has the store open.
        StorageError: The store cannot be opened, or failed while it was in use: nothing after that was acknowledged.
        BaseException: What the block raised, as itself. What a workflow raised and no workflow may handle, such as
            ``KeyboardInterrupt``; several of those together come in a group.
    """
    return open_engine_in(
        Surroundings(),
        store,
        workflows=workflows,
        default_retry=default_retry,
        resume_on_start=resume_on_start,
        shutdown_timeout=shutdown_timeout,
        retention=retention,
        max_parked=max_parked,
        max_recoveries=max_recoveries,
        converter=converter,
        aliases=aliases,
        max_value_bytes=max_value_bytes,
    )


@_uninterrupted
@asynccontextmanager
async def open_engine_in(
    surroundings: Surroundings,
    store: str | os.PathLike[str] | Store | None,
    *,
    workflows: Iterable[Workflow[..., Any]],
    default_retry: RetryPolicy | None = None,
    resume_on_start: bool = True,
    shutdown_timeout: float = math.inf,
    retention: float | None = None,
    max_parked: int = 1000,
    max_recoveries: int = 100,
    converter: cattrs.Converter | None = None,
    aliases: Mapping[str, type] = {},
    max_value_bytes: int = DEFAULT_MAX_VALUE_BYTES,
) -> AsyncIterator[Engine]:
    """
    Do what ``open_engine`` does, in surroundings of the caller's choice.
    """
    _check_numbers(max_parked=max_parked, max_recoveries=max_recoveries, max_value_bytes=max_value_bytes)
    _check_settings(default_retry, resume_on_start, converter, aliases)
    check_retention(retention)
    settings = _Settings(
        default_retry=default_retry,
        shutdown_s=check_timeout("shutdown_timeout", shutdown_timeout),
        retention_s=retention,
        max_parked=max_parked,
        max_recoveries=max_recoveries,
        aliases=aliases,
        codec=surroundings.codec or Codec(converter=converter, aliases=aliases, max_value_bytes=max_value_bytes),
        clock=current_clock(),
        surroundings=surroundings,
    )
    fatal: list[BaseException] = []
    left_by: BaseException | None = None
    try:
        async with _as_store(store).open(settings.clock) as opened, trio.open_nursery() as nursery:
            block_scope = trio.CancelScope()
            parts = _assemble(settings, opened, nursery, block_scope, fatal)
            supervisor, engine = parts.supervisor, parts.engine
            supervisor.start_own_tasks(
                parts.services.timers.run, supervisor.parking.run, parts.removals.run, opened.maintain
            )
            try:
                with block_scope:
                    for workflow in workflows:
                        engine.add_definition(workflow)
                    await _log_unregistered(opened, supervisor)
                    await parts.recovery.begin(frozenset(supervisor.definitions), resumes=resume_on_start)()
                    yield engine
                    await supervisor.drain(settings.shutdown_s)
            except BaseException as error:  # noqa: BLE001 - raised below
                # Kept as itself: the nursery would wrap it in a group. Raised below.
                left_by = error
            supervisor.is_stopping = True
            supervisor.halt()
            await supervisor.wait_empty()
            engine.close()
    except trio.Cancelled as error:
        # From opening the store; what the block raised says more than that closing it was cancelled, too.
        left_by = error if left_by is None else left_by
    except BaseException as error:  # noqa: BLE001 - raised below
        # From opening or closing the store. What it failed with first is why it cannot be closed.
        if not (isinstance(error, StorageError) and any(isinstance(one, StorageError) for one in fatal)):
            fatal.append(error)
    _raise_what_happened(fatal, left_by)


def _assemble(
    settings: _Settings,
    store: OpenStore,
    nursery: trio.Nursery,
    block_scope: trio.CancelScope,
    fatal: list[BaseException],
) -> _Parts:
    supervisor: Supervisor
    removals: Removals

    def fail(error: StorageError) -> None:
        supervisor.fail(error)

    def on_end(header: InstanceHeader) -> None:
        removals.note_end(header)

    services = Services(
        store=store,
        clock=settings.clock,
        timers=Timers(settings.clock),
        codec=settings.codec,
        annotations=settings.surroundings.annotations,
        aliases=settings.aliases,
        default_retry=settings.default_retry,
        uniform=settings.surroundings.uniform,
        randbits=settings.surroundings.randbits,
        fail=fail,
        run_in_thread=settings.surroundings.run_in_thread,
        observer=settings.surroundings.observer,
    )
    supervisor = Supervisor(services, nursery, block_scope, fatal, max_parked=settings.max_parked, on_end=on_end)
    removals = Removals(services, supervisor, settings.retention_s)
    recovery = Recovery(services, supervisor, removals, max_recoveries=settings.max_recoveries)
    engine = Engine(services, supervisor, recovery, removals, shutdown_timeout=settings.shutdown_s)
    return _Parts(services, supervisor, removals, recovery, engine)


def _raise_what_happened(fatal: list[BaseException], left_by: BaseException | None) -> None:
    """Raise what is fatal, with what left the block as its context; else what left the block; else nothing."""
    if not fatal:
        if left_by is not None:
            raise left_by
        return
    failure = fatal[0] if len(fatal) == 1 else BaseExceptionGroup("several failures stopped the engine", fatal)
    if left_by is None:
        # The Cancelled by which the engine ended the block is no context of anything.
        context = failure.__context__
        try:
            raise failure
        finally:
            failure.__context__ = context
    try:
        raise left_by
    except BaseException:  # noqa: BLE001 - another one is raised
        # Raised here, Python sets the context, and makes no circle where the one was made of the other.
        raise failure  # noqa: B904 - not its cause


def _as_store(store: str | os.PathLike[str] | Store | None) -> Store:
    if store is None:
        store = os.environ.get(STORE_VARIABLE) or DEFAULT_STORE
    if isinstance(store, (str, os.PathLike)):
        return FileStore(store)
    # A class has the methods of its objects, but is none of them.
    given: object = store
    if isinstance(given, Store) and not isinstance(given, type):
        return given
    raise TypeError(f"store must be a path, a FileStore or an InMemoryStore, not {store!r}")


def _check_numbers(*, max_parked: object, max_recoveries: object, max_value_bytes: object) -> None:
    for name, value, least in (
        ("max_parked", max_parked, 0),
        ("max_recoveries", max_recoveries, 1),
        ("max_value_bytes", max_value_bytes, 1),
    ):
        if not is_count(value, least=least):
            raise ValueError(f"{name} must be an int, at least {least}, not {value!r}")


def _check_settings(default_retry: object, resume_on_start: object, converter: object, aliases: object) -> None:
    if default_retry is not None and not isinstance(default_retry, RetryPolicy):
        raise TypeError(f"default_retry must be a memable.RetryPolicy or None, not {default_retry!r}")
    if not isinstance(resume_on_start, bool):
        raise TypeError(f"resume_on_start must be True or False, not {resume_on_start!r}")
    if converter is not None and not isinstance(converter, cattrs.Converter):
        raise TypeError(f"converter must be a cattrs.Converter or None, not {converter!r}")
    pairs = aliases.items() if isinstance(aliases, Mapping) else [(None, None)]
    if not all(isinstance(name, str) and isinstance(cls, type) for name, cls in pairs):
        raise TypeError(f"aliases must map recorded names to classes, not {aliases!r}")


async def _log_unregistered(store: OpenStore, supervisor: Supervisor) -> None:
    counts: dict[str, int] = {}
    for header in await store.live():
        if not header.status.is_terminal and header.workflow not in supervisor.definitions:
            counts[header.workflow] = counts.get(header.workflow, 0) + 1
    if counts:
        told = ", ".join(f"{name!r}: {count}" for name, count in sorted(counts.items()))
        logger.warning(
            "%s: unfinished instances of workflows that are not registered stay as they are (%s); register their "
            "workflows to continue them",
            store.location,
            told,
        )
