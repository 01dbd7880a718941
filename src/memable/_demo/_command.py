"""
``memable demo``: runs the job under supervision, checks what came of it, and cleans up.
"""

from __future__ import annotations

import os
import random
import shutil
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import trio
from rich.console import Console

from .. import MetadataStatus, StorageError, open_engine
from ._counting import Report, list_files
from ._effects import Effects
from ._evidence import Evidence, find_problems
from ._pipeline import keys_of
from ._report import LiveDisplay, Result, print_beginning, print_result
from ._supervise import Job, ProcessFailedError, plan_kills, run_straight, run_workers
from ._worker import WORKFLOW_NAME, make_workflow

RIGHT = 0
WRONG = 1
CANNOT_START = 2
#: What a shell reports for a process that SIGINT ended.
INTERRUPTED = 130


@attrs.frozen
class Options:
    """
    What the command line says.
    """

    kills: int
    seed: int | None
    "Repeats the moments of the kills, as far as the machine does the same work in the same time."
    store: Path | None
    "The store's directory; a temporary one if left out."
    keep: bool
    "Whether the temporary directory stays."
    root: Path | None
    "What to count; the standard library if left out."


def run_demo(options: Options) -> int:
    """
    Run the demo and print what happened. Return the exit status.
    """
    console = Console(highlight=False)
    errors = Console(highlight=False, stderr=True, soft_wrap=True)
    status = INTERRUPTED
    try:
        with _work_directory(console, keep=options.keep) as directory:
            status = trio.run(_demonstrate, options, directory, console)
    except* KeyboardInterrupt:
        errors.print("memable demo: interrupted")
    except* StorageError as group:
        status = CANNOT_START
        errors.print(f"memable demo: {group.exceptions[0]}", markup=False)
    except* ProcessFailedError as group:
        status = WRONG
        errors.print(f"memable demo: {group.exceptions[0]}", markup=False)
    return status


async def _demonstrate(options: Options, directory: Path, console: Console) -> int:
    began_at = time.monotonic()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    root = (options.root or Path(sysconfig.get_path("stdlib"))).absolute()
    job = Job(
        root=root,
        store=(options.store or directory / "store").absolute(),
        directory=directory,
        instance_id=f"demo-{os.getpid()}-{time.time_ns()}",
    )
    await _check_store(job.store)
    paths = list_files(root)
    keys = keys_of(paths)
    kills = plan_kills(options.kills, len(keys), random.Random(seed))  # noqa: S311 - no secret
    print_beginning(console, files=len(paths), kills=len(kills), seed=seed)
    evidence = Evidence()
    reports: dict[str, Report] = {}

    async def count_straight() -> None:
        reports["straight"] = await run_straight(job)

    with LiveDisplay(console, len(keys)) as display:
        # At the same time: the workers keep only one core busy.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count_straight)
            report = await run_workers(job, kills, evidence, display)
            display.show_checking()
    problems = find_problems(evidence, keys, report, reports["straight"])
    print_result(console, Result(report, evidence, problems, time.monotonic() - began_at))
    return WRONG if problems else RIGHT


async def _check_store(store: Path) -> None:
    """
    Open the store once, so that one that cannot be used is told of here.

    Raises:
        StorageError: It cannot be opened, or it holds a demo that was interrupted. Use another directory.
    """
    job = make_workflow(Effects(Path(os.devnull)))
    async with open_engine(store, workflows=[job], resume_on_start=False) as engine:
        found = await engine.list_instances(WORKFLOW_NAME)
    if any(one.status is not MetadataStatus.COMPLETED for one in found):
        # It would be resumed, and its steps would be counted as those of the new one.
        raise StorageError(
            location=str(store), problem="holds a demo that was interrupted; remove it or use another one"
        )


@contextmanager
def _work_directory(console: Console, *, keep: bool) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="memable-demo-"))
    try:
        yield directory
    finally:
        if keep:
            console.print(f"kept: {directory}", markup=False, soft_wrap=True)
        else:
            shutil.rmtree(directory)
