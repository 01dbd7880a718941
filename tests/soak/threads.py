"""
Stands in for threads, so that a story with steps in threads is the same each time it is told.

A function that is given to a thread is called by the event loop a second of virtual time later, whoever waits for it by
then: what cancels a blocking step abandons it, and it comes to its end all the same, unless the process has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import trio
from outcome import Outcome, capture

from programs import STEP_S


@contextmanager
def deterministic_threads() -> Iterator[None]:
    """
    Let no thread be used in here.
    """
    with mock.patch.object(trio.to_thread, "run_sync", _run_sync):
        yield


async def _run_sync(
    fn: Callable[..., Any],
    *args: object,
    thread_name: str | None = None,
    abandon_on_cancel: bool = False,
    limiter: Any = None,
) -> Any:
    borrower = object()
    await trio.lowlevel.checkpoint_if_cancelled()
    if limiter is not None:
        await limiter.acquire_on_behalf_of(borrower)
    came: list[Outcome[Any]] = []
    is_done = trio.Event()

    async def work() -> None:
        await trio.sleep(STEP_S)
        came.append(capture(fn, *args))
        if limiter is not None:
            limiter.release_on_behalf_of(borrower)
        is_done.set()

    trio.lowlevel.spawn_system_task(work)
    with trio.CancelScope(shield=not abandon_on_cancel):
        await is_done.wait()
    return came[0].unwrap()
