"""
Runs the blocking jobs of one open store, one after the other, and tells the event loop when each is done.

A thread of its own rather than one of trio's: it is at hand for each job, which saves a third of the time that a lone
small append takes. It lives as long as the store is open. For a job that is about to be done, the event loop may stand
still: being woken takes longer than that.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, TypeVar

import attrs
import trio

T = TypeVar("T")

Done: TypeAlias = Callable[[Any, BaseException | None], None]
"Is told a job's result, or what it raised. Called in the event loop; must not raise."

_Submitted: TypeAlias = tuple[Callable[[], object], Done]


class Worker(Protocol):
    """
    Runs jobs in the order of their submission.
    """

    @property
    def is_idle(self) -> bool:
        """
        Whether all that was submitted is done.
        """
        ...

    def submit(self, job: Callable[[], object], done: Done, *, patience_s: float = 0.0) -> None:
        """
        Have *job* run, then *done* called with its result.

        Args:
            job: What to run.
            done: Called in the event loop: before this returns, or later.
            patience_s: The event loop stands still until the job is done, but for no longer than so many seconds.
        """
        ...

    def close(self) -> None:
        """
        End, after what was submitted.
        """
        ...


@attrs.define(eq=False)
class InlineWorker:
    """
    Runs each job at once, in the event loop: under a virtual clock, time must not pass while a thread works.
    """

    _jobs: deque[_Submitted] = attrs.field(factory=deque[_Submitted], init=False)

    @property
    def is_idle(self) -> bool:
        """
        Whether all that was submitted is done.
        """
        return not self._jobs

    def submit(self, job: Callable[[], object], done: Done, *, patience_s: float = 0.0) -> None:
        """
        Run *job* and *done*, unless called by one: then after it.
        """
        del patience_s  # It takes none.
        self._jobs.append((job, done))
        if len(self._jobs) == 1:
            while self._jobs:
                _run(*self._jobs[0], call=_call)
                self._jobs.popleft()

    def close(self) -> None:
        """
        Do nothing.
        """


@attrs.define(eq=False)
class AwaitedJob:
    """
    A job for which the event loop stands still: for a while, so it may have gone on before the job is done.
    """

    job: Callable[[], object]
    done: Done
    value: object = None
    error: BaseException | None = None
    claims: list[str] = attrs.field(factory=list[str], init=False)
    "Whoever is first decides: the thread, that the loop tells of the end; the loop, that it goes on."
    finished: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    "Held until the job is done."
    is_finished: bool = attrs.field(default=False, init=False)
    "Whether it is, and the loop is to tell of it."

    def __attrs_post_init__(self) -> None:
        self.finished.acquire()

    def run(self, run_sync_soon: Callable[..., object]) -> None:
        """
        Run the job, in the thread.
        """
        _run(self.job, self._keep, call=_call)
        self.claims.append("thread")
        if self.claims[0] == "thread":
            self.is_finished = True
            self.finished.release()
        else:
            run_sync_soon(self.done, self.value, self.error)

    def wait(self, patience_s: float) -> bool:
        """
        Wait, in the event loop; return whether the job is done. If not, ``done`` will be called by itself.
        """
        return self.finished.acquire(timeout=patience_s) or self.give_up()

    def give_up(self) -> bool:
        """
        Do not wait any longer; return whether the job is done after all. May be called again.
        """
        self.claims.append("loop")
        if self.claims[0] == "loop":
            return False
        # It was finished in this very moment.
        if not self.is_finished:
            self.finished.acquire()
        return True

    def _keep(self, value: object, error: BaseException | None) -> None:
        self.value, self.error = value, error


@attrs.define(eq=False)
class ThreadWorker:
    """
    Runs jobs in a thread of its own. Made, used and closed in the event loop.
    """

    _token: trio.lowlevel.TrioToken = attrs.field(factory=trio.lowlevel.current_trio_token, init=False)
    _jobs: queue.SimpleQueue[_Submitted | AwaitedJob | None] = attrs.field(
        factory=queue.SimpleQueue["_Submitted | AwaitedJob | None"], init=False
    )
    _pending: int = attrs.field(default=0, init=False)
    "How many jobs were submitted of which the event loop has not been told that they are done."
    _thread: threading.Thread = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        # A daemon, so that a trio run that broke down with the store open does not keep the process.
        self._thread = threading.Thread(target=self._work, name="memable store", daemon=True)
        self._thread.start()

    @property
    def is_idle(self) -> bool:
        """
        Whether all that was submitted is done.
        """
        return not self._pending

    def submit(self, job: Callable[[], object], done: Done, *, patience_s: float = 0.0) -> None:
        """
        Hand *job* to the thread, and stand still for at most *patience_s* seconds until it is done.
        """
        self._pending += 1

        def note_done(value: Any, error: BaseException | None) -> None:
            self._pending -= 1
            done(value, error)

        if not patience_s:
            self._jobs.put((job, note_done))
            return
        awaited = AwaitedJob(job, note_done)
        is_done = False
        try:
            self._jobs.put(awaited)
            is_done = awaited.wait(patience_s)
        except BaseException:
            # A handler of a signal has raised. The job is on its way all the same.
            is_done = awaited.give_up()
            raise
        finally:
            if is_done:
                note_done(awaited.value, awaited.error)

    def close(self) -> None:
        """
        Let the thread end, and wait for that: it has nothing to do any more.
        """
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        run_sync_soon = self._token.run_sync_soon
        while (item := self._jobs.get()) is not None:
            try:
                if isinstance(item, AwaitedJob):
                    item.run(run_sync_soon)
                else:
                    _run(*item, call=run_sync_soon)
            except trio.RunFinishedError:
                return
            # Kept until there is another, it would keep a batch in memory.
            del item


async def run_job(worker: Worker, job: Callable[[], T]) -> T:
    """
    Return what *job* returns. Whatever is cancelled, it is waited for.
    """
    result: list[tuple[T, BaseException | None]] = []
    task: trio.lowlevel.Task | None = None

    def done(value: Any, error: BaseException | None) -> None:
        result.append((value, error))
        if task is not None:
            trio.lowlevel.reschedule(task)

    worker.submit(job, done)
    if result:
        await trio.lowlevel.cancel_shielded_checkpoint()
    else:
        task = trio.lowlevel.current_task()
        await wait_uncancellably()
    value, error = result[0]
    if error is not None:
        raise error
    return value


async def wait_uncancellably() -> None:
    """
    Wait until the current task is rescheduled, whatever is cancelled.
    """
    await trio.lowlevel.wait_task_rescheduled(refuse_to_abort)


def refuse_to_abort(_raise_cancel: object) -> trio.lowlevel.Abort:
    """
    Tell trio that what a task waits for is brought to its end, whatever is cancelled.
    """
    return trio.lowlevel.Abort.FAILED


def _run(job: Callable[[], object], done: Done, *, call: Callable[..., object]) -> None:
    try:
        value = job()
    except BaseException as exc:  # noqa: BLE001 - what it is, is for the job's owner to know
        call(done, None, exc)
    else:
        call(done, value, None)


def _call(done: Done, value: object, error: BaseException | None) -> None:
    done(value, error)
