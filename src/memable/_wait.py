"""
One thing that a branch of a run waits for.
"""

from __future__ import annotations

from typing import Any

import attrs
import trio


@attrs.define(eq=False)
class Wait:
    """
    A wait at a path: for a signal, an instant or a child instance.
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
    event: trio.Event = attrs.field(factory=trio.Event, init=False)
