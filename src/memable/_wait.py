"""
One thing that a branch of a run waits for.
"""

from __future__ import annotations

import attrs
import trio


@attrs.define(eq=False)
class Wait:
    """
    A wait at a path: for a signal, an instant or a child instance.
    """

    path: str
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
    is_branch: bool = attrs.field(default=False, init=False)
    "Whether the engine knows the task that waits."
    event: trio.Event = attrs.field(factory=trio.Event, init=False)
