"""
A process that has a store open and does what it is told, a line at a time, so that others can be sure what it is at.

It opens the store and says ``open``. Given a call of its disk and that call's number, it says ``paused`` before it,
and goes on only when it is told to. Every order and every answer is one line.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs
import trio

from memable import FileStore, MemableError
from memable._clock import current_clock
from memable._disk import RealDisk
from memable._store._protocol import OpenStore
from memable._testing._watched_disk import Call, WatchedDisk
from sample_records import start


@attrs.frozen
class Holder:
    """
    Such a process, seen from outside.
    """

    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        return self.process.pid

    def tell(self, order: str) -> None:
        """
        Give an order, without waiting for what comes of it.
        """
        assert self.process.stdin is not None
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        """
        Wait for an answer; an empty one says that the process has ended.
        """
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def ask(self, order: str) -> str:
        """
        Give an order, and return the answer.
        """
        self.tell(order)
        return self.hear()

    def kill(self) -> None:
        """
        End the process as nothing can prevent it, and wait until it has.
        """
        self.process.kill()
        self.process.wait()


@contextmanager
def holding(path: Path, *pause: object) -> Iterator[Holder]:
    """
    Have a process open the store at *path*. It and its children are gone when the block is left.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    read_end, write_end = os.pipe()
    with subprocess.Popen(
        [sys.executable, __file__, path, str(read_end), *map(str, pause)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        pass_fds=[read_end],
    ) as process:
        try:
            yield Holder(process)
        finally:
            os.close(write_end)
            os.close(read_end)
            process.kill()


# Inside the process -------------------------------------------------------------------------------------------------


def say(answer: str) -> None:
    sys.stdout.write(answer + "\n")
    sys.stdout.flush()


@attrs.define
class Pause:
    """
    Stops the thread that works on the disk before a call: the one of that name and number.
    """

    name: str = ""
    number: int = 0
    go_on: threading.Event = attrs.field(factory=threading.Event)

    def __call__(self, call: Call) -> None:
        if (call.name, call.when) == (self.name, "before"):
            self.number -= 1
            if self.number == -1:
                say("paused")
                self.go_on.wait()


@attrs.define
class Servant:
    """
    Obeys.
    """

    pause: Pause
    nursery: trio.Nursery
    close: trio.Event = attrs.field(factory=trio.Event)
    stores: list[OpenStore] = attrs.field(factory=list[OpenStore])

    async def keep_open(self) -> None:
        try:
            async with FileStore(sys.argv[1], disk=WatchedDisk(RealDisk(), self.pause)).open(current_clock()) as store:
                self.stores.append(store)
                say("open")
                await self.close.wait()
        except MemableError as exc:
            say(f"{type(exc).__name__}: {exc}")
        else:
            say("closed")

    async def append(self) -> None:
        try:
            say(f"acknowledged {await start(self.stores[0])}")
        except MemableError as exc:
            say(f"{type(exc).__name__}: {exc}")

    async def obey(self) -> None:
        self.nursery.start_soon(self.keep_open)
        while order := (await trio.to_thread.run_sync(sys.stdin.readline)).strip():
            match order:
                case "append":
                    self.nursery.start_soon(self.append)
                case "close":
                    self.close.set()
                case "go on":
                    self.pause.go_on.set()
                case "fork":
                    self.fork()
                case "execute":
                    execute()
                case _:
                    raise ValueError(order)

    def fork(self) -> None:
        """Have a child that says what it can do with the store, and lives as long as the test."""
        if os.fork() == 0:
            try:
                say(f"child {os.getpid()}: {self.try_in_child()}; open: {open_files()}")
                # It is closed at the end of the test.
                os.read(int(sys.argv[2]), 1)
            finally:
                os._exit(0)

    def try_in_child(self) -> str:
        """Append as far as it goes without trio, which does not run in a forked child."""
        try:
            start(self.stores[0]).send(None)
        except (MemableError, StopIteration) as exc:
            return str(exc)
        return "it began"


def open_files() -> list[str]:
    """
    Return which files and directories of the store this process has open.
    """
    directory = str(Path(sys.argv[1]).resolve())
    names: list[str] = []
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            names.append(str(fd.readlink()))
    return sorted(name.removeprefix(directory) or "/" for name in names if name.startswith(directory))


def execute() -> None:
    """
    Run a program that says which files of the store it has inherited.
    """
    code = "import lock_holder; lock_holder.say(f'inherited: {lock_holder.open_files()}')"
    subprocess.run([sys.executable, "-c", code, sys.argv[1]], check=True, close_fds=False)


async def main() -> None:
    """
    Do what the command line and the standard input say.
    """
    async with trio.open_nursery() as nursery:
        pause = Pause(sys.argv[3], int(sys.argv[4])) if sys.argv[3:] else Pause()
        await Servant(pause, nursery).obey()
        # Nobody gives orders any more.
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
