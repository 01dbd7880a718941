"""
One thing that a branch of a run waits for.
"""

from __future__ import annotations

from typing import Any

import attrs
import trio

from ._timers import Timer


@attrs.define(eq=False, weakref_slot=False)
class Wait:
    """
    A wait at a path: for a signal, an instant or a child instance.

    There may be thousands, so it has no event: its task sleeps in ``sleep_unless_cancelled(message_for(wait))``: to
    call it gives it up.
    """

    path: str
    since: int = 0
    "Sequence number of the record with which it began; 0 for a child instance, whose start is not kept."
    deadline: float | None = None
    "When it ends by itself, in seconds since 1970; None if it does not."
    note: str | None = None
    "What it says as the status of the instance."
    is_for_child: bool = False
    "Whether it ends when a child instance does."
    is_listed: bool = True
    "Whether it counts as waiting; a call does not while its child instance executes."
    is_overdue: bool = attrs.field(default=False, init=False)
    "Its deadline has passed before anything else ended it."
    is_entered: bool = attrs.field(default=False, init=False)
    is_pinned: bool = attrs.field(default=False, init=False)
    "Whether the task must not be unwound while it waits."
    is_branch: bool = attrs.field(default=False, init=False)
    "Whether the engine knows the task that waits."
    scopes: tuple[Any, ...] = attrs.field(default=(), init=False)
    "The durable scopes that it is in."
    task: trio.lowlevel.Task | None = attrs.field(default=None, init=False)
    "The task that sleeps until the wait ends, if one does."
    timer: Timer | None = attrs.field(default=None, init=False)
    "Goes off at the deadline, while a task sleeps."

    @trio.lowlevel.enable_ki_protection
    def wake(self) -> None:
        """
        Let the task go on, if one sleeps.
        """
        if self.task is not None:
            task, self.task = self.task, None
            trio.lowlevel.reschedule(task)

    def __call__(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        """
        Take note that the task is cancelled. For ``wait_task_rescheduled``; a method would be one more object to keep.
        """
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED
