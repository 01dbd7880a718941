"""
The process that is killed: opens the store, runs the job to its end, prints the report.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import trio

from .. import Context, Workflow, open_engine, workflow
from ._counting import Report, report_to_json
from ._effects import Effects
from ._parent import exit_with_parent
from ._pipeline import count_library

WORKFLOW_NAME = "count-library"


def make_workflow(effects: Effects, *, hold: bool = False) -> Workflow[[Context, Path], Report]:
    """
    Return the job, with what it needs from its process bound to it.

    Args:
        effects: Where to note what is done.
        hold: Whether to wait for ever rather than finish: a worker that is going to be killed must not be quicker.
    """

    @workflow(name=WORKFLOW_NAME)
    async def job(ctx: Context, root: Path) -> Report:
        report = await count_library(ctx, root, effects)
        if hold:
            await trio.sleep_forever()
        return report

    return job


async def run_job(store: Path, effects: Effects, root: Path, instance_id: str, *, hold: bool) -> Report:
    """
    Start the instance, or go on with it, and return its report.
    """
    job = make_workflow(effects, hold=hold)
    async with open_engine(store, workflows=[job]) as engine:
        invocation = await engine.invoke(job, root, instance_id=instance_id)
        return await invocation.result()


def main(argv: Sequence[str] | None = None) -> None:
    """
    Run as a process of its own: the arguments are what the supervisor's command line says.
    """
    exit_with_parent()
    parser = argparse.ArgumentParser(prog="python -m memable._demo._worker")
    parser.add_argument("store", type=Path)
    parser.add_argument("effects", type=Path)
    parser.add_argument("root", type=Path)
    parser.add_argument("instance_id")
    parser.add_argument("--hold", action="store_true")
    given = parser.parse_args(argv)

    async def run() -> Report:
        return await run_job(given.store, Effects(given.effects), given.root, given.instance_id, hold=given.hold)

    sys.stdout.write(report_to_json(trio.run(run)))


if __name__ == "__main__":
    main()
