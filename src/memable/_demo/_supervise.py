"""
Runs the job in workers: kills them as planned, starts the next, and gathers what they did.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import attrs
import trio

from ._counting import Report, report_from_json
from ._effects import EffectsReader
from ._evidence import Evidence, Life

#: So often a worker's progress is read. It also bounds how late a kill may come.
POLL_S = 0.02

#: A kill comes up to so much later than its progress, to strike anywhere within a step.
MAX_DELAY_S = 0.25

#: A worker that does nothing for so long does not come back. The slowest single step takes far less than a second.
STALL_S = 60.0

#: So much of what a dead process wrote to its standard error is told.
MAX_ERROR_CHARACTERS = 2000


@attrs.frozen
class Kill:
    """
    When to kill a worker.
    """

    acknowledged: int
    "When so many steps of the job are acknowledged,"
    delay_s: float
    "and so many seconds have passed since."


def plan_kills(kills: int, steps: int, rng: random.Random) -> list[Kill]:
    """
    Return *kills* random moments, spread over a job of so many steps: each in a part of its own, and none in the last.
    """
    part = steps / (kills + 1)
    return [Kill(int(part * (index + rng.random())), rng.uniform(0, MAX_DELAY_S)) for index in range(kills)]


@attrs.frozen
class Job:
    """
    What is to be run, and where.
    """

    root: Path
    "The directory whose files are counted."
    store: Path
    directory: Path
    "For the files of this run: effects, reports, messages of processes."
    instance_id: str


class ProcessFailedError(Exception):
    """
    A process ended by itself, and not well.
    """


class Watcher(Protocol):
    """
    Is shown how the job gets on.
    """

    def show_progress(self, evidence: Evidence) -> None:
        """
        Show what is known of all workers up to now.
        """
        ...

    def show_end(self, life: Life) -> None:
        """
        Show how a worker ended.
        """
        ...


async def run_workers(job: Job, kills: Sequence[Kill], evidence: Evidence, watcher: Watcher) -> Report:
    """
    Run the job to its end in one worker after the other, and return its report.

    Args:
        job: What to run.
        kills: When to kill each worker but the last.
        evidence: To be filled with what the workers do.
        watcher: Is shown the progress.

    Raises:
        ProcessFailedError: A worker ended by itself, and not well, or hangs.
    """
    for kill in (*kills, None):
        await _live(job, kill, evidence, watcher)
    return await _read_report(job.directory / "report.json")


async def run_straight(job: Job) -> Report:
    """
    Return the report of the straight computation, which runs in a process of its own.

    Raises:
        ProcessFailedError: It ended by itself, and not well.
    """
    output = job.directory / "straight.json"
    async with _open_process(job, "_straight", [str(job.root)], output) as process:
        await process.wait()
    await _check_exit(job, "the straight computation", process)
    return await _read_report(output)


async def _live(job: Job, kill: Kill | None, evidence: Evidence, watcher: Watcher) -> None:
    life = evidence.begin_life()
    effects = job.directory / f"effects-{life.number:03}.log"
    reader = EffectsReader(effects)
    arguments = [str(job.store), str(effects), str(job.root), job.instance_id, *(["--hold"] if kill else [])]
    kill_at: float | None = None
    stalled_at = trio.current_time() + STALL_S
    async with _open_process(job, "_worker", arguments, job.directory / "report.json") as process:
        while process.returncode is None:
            with trio.move_on_after(POLL_S):
                await process.wait()
            if _gather(reader, evidence, watcher):
                stalled_at = trio.current_time() + STALL_S
            elif trio.current_time() >= stalled_at:
                raise ProcessFailedError(f"worker {life.number} did nothing for {STALL_S:g} s")
            if kill is not None and kill_at is None and len(evidence.acknowledged) >= kill.acknowledged:
                kill_at = trio.current_time() + kill.delay_s
            if kill_at is not None and trio.current_time() >= kill_at:
                process.kill()
                await process.wait()
                life.was_killed = process.returncode == -signal.SIGKILL
    # What it did between the last look and its death.
    _gather(reader, evidence, watcher)
    if not life.was_killed:
        await _check_exit(job, f"worker {life.number}", process)
    watcher.show_end(life)


def _gather(reader: EffectsReader, evidence: Evidence, watcher: Watcher) -> bool:
    """Read what the worker did since the last time; return whether it did anything."""
    effects = reader.read_new()
    for effect in effects:
        evidence.add(effect)
    watcher.show_progress(evidence)
    return bool(effects)


@asynccontextmanager
async def _open_process(job: Job, module: str, arguments: list[str], output: Path) -> AsyncIterator[trio.Process]:
    """Run a module of this package; it is dead when the block is left."""
    # Warnings about the files that are read are none of ours. Nor is what lies in the working directory.
    python = [sys.executable, "-P", "-W", "ignore"]
    errors = _errors_of(job)
    with output.open("wb") as stdout, errors.open("ab") as stderr:
        process = await trio.lowlevel.open_process(
            [*python, "-m", f"{__package__}.{module}", *arguments],
            # It notices the end of its input, so it does not outlive this process, however that one dies.
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            # A Ctrl-C in the terminal is for this process alone, which then sees to the others.
            process_group=0,
        )
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            assert process.stdin is not None
            await process.stdin.aclose()


async def _check_exit(job: Job, who: str, process: trio.Process) -> None:
    status = process.returncode
    assert status is not None
    if status == 0:
        return
    how = f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
    said = await trio.Path(_errors_of(job)).read_text(encoding="utf-8", errors="replace")
    raise ProcessFailedError(f"{who} {how} by itself{os.linesep}{said[-MAX_ERROR_CHARACTERS:]}".rstrip())


def _errors_of(job: Job) -> Path:
    return job.directory / "errors.log"


async def _read_report(path: Path) -> Report:
    return report_from_json(await trio.Path(path).read_text(encoding="utf-8"))
