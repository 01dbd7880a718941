"""
Blocking steps: in a worker thread, abandoned to it when they are cancelled.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest
import trio

import memable
from memable import RetryPolicy
from running import INSTANCE, ending_of, kinds_of, observe_twice, run_body, workflow_of

#: No test waits so long, in seconds, unless it has failed.
LONG = 60.0

color: ContextVar[str] = ContextVar("color", default="none")


class Thread:
    """A function that blocks in its thread until it is released, and what is known of its calls."""

    def __init__(self) -> None:
        self.started: list[threading.Event] = [threading.Event() for _ in range(3)]
        self.released = threading.Event()
        self.calls = 0
        self.finished = threading.Semaphore(0)

    def __call__(self) -> str:
        number = self.calls
        self.calls += 1
        self.started[number].set()
        assert self.released.wait(LONG)
        self.finished.release()
        return f"call {number}"

    async def wait_started(self, number: int = 0) -> None:
        assert await trio.to_thread.run_sync(self.started[number].wait, LONG)


@pytest.fixture
def thread() -> Iterator[Thread]:
    """
    A blocking function whose threads have all ended when the test has.
    """
    thread = Thread()
    yield thread
    thread.released.set()
    for _ in range(thread.calls):
        assert thread.finished.acquire(timeout=LONG)


async def test_thread_step_runs_in_another_thread():
    """
    A blocking step runs in a worker thread, and its value is memoised like any other.
    """

    def name() -> bool:
        return threading.current_thread() is threading.main_thread()

    assert await observe_twice(lambda ctx: ctx.step_in_thread("k", name)) == (False, False)


async def test_thread_step_sees_context_variables():
    """
    A blocking step sees the context variables of the body.
    """

    async def body(ctx: memable.Context) -> str:
        color.set("green")
        return await ctx.step_in_thread("k", color.get, returns=str)

    assert await observe_twice(body) == ("green", "green")


async def test_thread_step_failure_is_recorded():
    """
    What a blocking function raises is a failure of the step.
    """

    def fail(text: str) -> None:
        raise ValueError(text)

    async def body(ctx: memable.Context) -> str:
        with pytest.raises(memable.StepFailedError, match="no") as caught:
            await ctx.step_in_thread("k", fail, "no")
        return caught.value.error.message

    assert await observe_twice(body) == ("no", "no")


async def test_thread_step_uses_the_limiter():
    """
    A limiter bounds how many blocking steps run at once.
    """
    limiter = trio.CapacityLimiter(1)
    running: list[int] = []

    def work() -> int:
        return limiter.borrowed_tokens  # type: ignore[no-any-return]

    async def body(ctx: memable.Context) -> None:
        async def one(number: int) -> None:
            running.append(await ctx.step_in_thread(f"k{number}", work, limiter=limiter))

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(one, number)

    assert await run_body(body) == memable.Completed()
    assert running == [1] * 5


async def test_thread_step_takes_a_class():
    """
    A class may be the function of a blocking step: its instances are the values.
    """
    assert await observe_twice(lambda ctx: ctx.step_in_thread("k", int, "12")) == (12, 12)


async def test_thread_step_takes_a_partial_and_a_method():
    """
    Partials and bound methods of blocking functions can be steps.
    """

    class Work:
        def join(self, left: str, *, right: str) -> str:
            return left + right

    live, replayed = await observe_twice(
        lambda ctx: ctx.step_in_thread("k", functools.partial(Work().join, right="b"), "a")
    )
    assert live == replayed == "ab"


async def test_thread_step_past_its_timeout_is_abandoned(thread: Thread):
    """
    A blocking step past its timeout fails at once; its thread goes on alone, and its result is discarded.
    """
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        with pytest.raises(memable.StepTimeoutError, match="its timeout of 0 s"):
            await ctx.step_in_thread("k", thread, timeout=0)

    assert await run_body(body, store=store) == memable.Completed()
    assert kinds_of(store) == ["instance_started", "step_failed", "instance_completed"]


async def test_thread_step_may_overlap_its_retry(thread: Thread):
    """
    An abandoned thread may still run while the next attempt does; what it returns in the end changes nothing.
    """
    values: list[str] = []

    def work() -> str:
        return "second" if thread.calls else thread()

    async def body(ctx: memable.Context) -> None:
        values.append(await ctx.step_in_thread("k", work, timeout=TIMEOUT, retry=RetryPolicy.fixed(1, 0.0)))

    clock = trio.testing.MockClock()
    # Time passes only when the test says so: the thread is surely started then.
    await drive(body, thread, clock)
    assert values == ["second"]
    assert not thread.finished.acquire(blocking=False)


TIMEOUT = 10.0


async def drive(body: Callable[[memable.Context], Any], thread: Thread, clock: trio.testing.MockClock) -> None:
    """Run *body* under *clock* in a trio run of its own, and let the timeout pass once the thread has started."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_body, body)
            await thread.wait_started()
            clock.jump(TIMEOUT)

    await trio.to_thread.run_sync(lambda: trio.run(main, clock=clock))


async def test_thread_step_that_is_cancelled_is_abandoned(thread: Thread):
    """
    A scope of the user's that is cancelled does not wait for the thread, and nothing is recorded.
    """
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ctx.step_in_thread, "k", thread)
            await thread.wait_started()
            nursery.cancel_scope.cancel()
        assert await ctx.step_in_thread("k", str, "again") == "again"

    assert await run_body(body, store=store) == memable.Completed()
    assert kinds_of(store) == ["instance_started", "step_completed", "instance_completed"]


async def test_thread_step_may_outlive_the_engine(thread: Thread):
    """
    Leaving the engine's block by a cancellation does not wait for threads; the next open runs the step again.
    """
    store = memable.InMemoryStore()
    workflow = workflow_of(lambda ctx: ctx.step_in_thread("k", thread))
    with trio.CancelScope() as scope:
        async with memable.open_engine(store, workflows=[workflow]) as engine:
            await engine.invoke(workflow, instance_id=INSTANCE)
            await thread.wait_started()
            scope.cancel()
    assert scope.cancelled_caught
    assert kinds_of(store) == ["instance_started"]
    thread.released.set()
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        assert await ending_of(await engine.get("w", INSTANCE)) == memable.Completed()
    assert thread.calls == 2


async def test_thread_step_base_exception_stops_the_engine():
    """
    A SystemExit out of a worker thread comes out of the engine's block.
    """

    def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit, match="3"):
        await run_body(lambda ctx: ctx.step_in_thread("k", leave))
