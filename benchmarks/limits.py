"""
The raw limits of the machine: what the same work costs without memable.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import trio


class BareFile:
    """
    A file, and a loop that writes to it.

    Args:
        path: A new file.
        allocated_bytes: So many zeros are there already, and are written over. Else the file grows at its end.
    """

    def __init__(self, path: Path, allocated_bytes: int = 0) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        if allocated_bytes:
            os.write(self._fd, bytes(allocated_bytes))
            os.fsync(self._fd)
            os.lseek(self._fd, 0, os.SEEK_SET)

    def close(self) -> None:
        os.close(self._fd)

    def append(self, chunks: Sequence[bytes], *, sync: bool = True) -> float:
        """
        Write each of *chunks*, and sync after each; return the seconds that it took.
        """
        fd = self._fd
        began = time.perf_counter()
        for chunk in chunks:
            os.write(fd, chunk)
            if sync:
                os.fdatasync(fd)
        return time.perf_counter() - began

    async def append_in_thread(self, chunks: Sequence[bytes]) -> float:
        """
        Do the same from a trio task, by a thread that lives on: what is left if the event loop must not be blocked.
        """
        fd = self._fd
        task = trio.lowlevel.current_task()
        token = trio.lowlevel.current_trio_token()
        jobs: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

        def work() -> None:
            while (chunk := jobs.get()) is not None:
                os.write(fd, chunk)
                os.fdatasync(fd)
                token.run_sync_soon(trio.lowlevel.reschedule, task)

        thread = threading.Thread(target=work)
        thread.start()
        began = time.perf_counter()
        for chunk in chunks:
            jobs.put(chunk)
            await trio.lowlevel.wait_task_rescheduled(_refuse_to_abort)
        took = time.perf_counter() - began
        jobs.put(None)
        thread.join()
        return took


def trio_tasks(task_count: int, checkpoint_count: int) -> float:
    """
    Return the seconds that so many tasks take that do nothing but so many checkpoints each.
    """

    async def one() -> None:
        for _ in range(checkpoint_count):
            await trio.lowlevel.checkpoint()

    async def all_of_them() -> float:
        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(task_count):
                nursery.start_soon(one)
        return time.perf_counter() - began

    return trio.run(all_of_them)


def _refuse_to_abort(_raise_cancel: Callable[[], object]) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED
