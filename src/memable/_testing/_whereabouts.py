"""
Says where a workflow is that neither ends nor waits for anything that memable knows of.
"""

from __future__ import annotations

from collections.abc import Iterator

import trio

from .._run import Run, current_run, current_step
from ._places import find_task_place


def find_whereabouts(workflow_name: str, instance_id: str) -> str | None:
    """
    Return where the tasks of an instance are, in words, or None if it has none. To be called inside trio.
    """
    root = trio.lowlevel.current_root_task()
    found: dict[str, None] = {}
    for task in _below(root) if root is not None else ():
        run = _run_of(task)
        if run is None or (run.workflow_name, run.instance_id) != (workflow_name, instance_id):
            continue
        # A task that waits for those that it has started is where those are.
        if any(nursery.child_tasks for nursery in task.child_nurseries):
            continue
        found[_describe(task)] = None
    return " and ".join(found) or None


def _below(task: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    yield task
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from _below(child)


def _run_of(task: trio.lowlevel.Task) -> Run | None:
    step = task.context.get(current_step)
    return task.context.get(current_run) if step is None else step.run


def _describe(task: trio.lowlevel.Task) -> str:
    step = task.context.get(current_step)
    inside = "its body" if step is None else f"step {step.path!r}"
    place = find_task_place(task)
    return inside if place is None else f"{inside}, at {place}"
