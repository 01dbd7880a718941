"""
What the tasks of a run do, as far as the engine knows them: which branches wait, and what for.

No clock, no records: whoever waits has the run see to those.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from ._wait import Wait


class Activity:
    """
    Counts the branches of one run that do not wait, the steps that execute, and keeps what is waited for.
    """

    __slots__ = ("_branches", "_busy", "_executing", "_foreign", "_on_change", "_watched", "waits")

    def __init__(self, on_change: Callable[[], None]) -> None:
        """
        Begin with one branch, the body, whose task is about to start.

        Args:
            on_change: Called when the run may have begun or ceased to wait.
        """
        self.waits: dict[str, Wait] = {}
        "What is waited for, by path."
        self._on_change = on_change
        self._busy = 1
        "Branches that do not wait."
        self._executing = 0
        "Steps, in whatever task."
        self._foreign = 0
        "Tasks that wait and must not be unwound: most are no branches, and what else goes on is unknown."
        self._branches: set[trio.lowlevel.Task] = set()
        self._watched: set[Wait] = set()
        "All waits, those that do not count as waiting included."

    @property
    def is_waiting(self) -> bool:
        """
        Whether every branch waits and no step executes.
        """
        return not self._busy and not self._executing and bool(self.waits)

    @property
    def has_busy_branch(self) -> bool:
        """
        Whether a branch does not wait.
        """
        return bool(self._busy)

    @property
    def has_foreign_wait(self) -> bool:
        """
        Whether a task waits that must not be unwound: the engine does not know it, or its scopes forbid it.
        """
        return bool(self._foreign)

    # Steps ---------------------------------------------------------------------------------------------------

    def begin_execution(self) -> None:
        """
        Count a step as executing.
        """
        self._executing += 1
        if self.waits:
            self._on_change()

    def end_execution(self) -> None:
        """
        Count a step as no longer executing.
        """
        self._executing -= 1
        if self.waits:
            self._on_change()

    # Branches ------------------------------------------------------------------------------------------------

    def add_branch(self) -> None:
        """
        Count a branch whose task is about to start.
        """
        self._busy += 1

    def enter_branch(self) -> None:
        """
        Take the current task for a branch that was counted before.
        """
        self._branches.add(trio.lowlevel.current_task())

    def leave_branch(self) -> None:
        """
        Take the current task for none any more, though its branch still counts.
        """
        self._branches.discard(trio.lowlevel.current_task())

    def end_branch(self) -> None:
        """
        Take note that the branch that is the current task has ended.
        """
        self.leave_branch()
        self._busy -= 1
        self._on_change()

    def pause_branch(self) -> bool:
        """
        Take note that the current task does nothing but wait; return whether it is a branch.
        """
        is_branch = trio.lowlevel.current_task() in self._branches
        if is_branch:
            self._busy -= 1
        else:
            self._foreign += 1
        self._on_change()
        return is_branch

    def resume_branch(self, is_branch: bool) -> None:
        """
        Take note that a task which did nothing but wait goes on.
        """
        if is_branch:
            self._busy += 1
        else:
            self._foreign -= 1
        self._on_change()

    # Waits ---------------------------------------------------------------------------------------------------

    async def wait(self, wait: Wait) -> None:
        """
        Wait until ``wake`` or ``wake_all`` ends the wait. A checkpoint.
        """
        wait.event = trio.Event()
        if wait.is_listed:
            wait.is_entered = True
            self.waits[wait.path] = wait
            self._foreign += wait.is_pinned
            wait.is_branch = self.pause_branch()
        self._watched.add(wait)
        try:
            await wait.event.wait()
        finally:
            self._watched.discard(wait)
            self._leave(wait)

    def wake(self, wait: Wait) -> None:
        """
        End a wait. The branch counts as active at once, though its task goes on later.
        """
        self._leave(wait)
        wait.event.set()

    def wake_all(self) -> None:
        """
        End all waits: the run is unwound, or over. Those whose tasks are not shielded are cancelled already.
        """
        for wait in list(self._watched):
            wait.event.set()

    def waits_within(self, scope: object) -> list[str]:
        """
        Return the paths of the waits inside a durable scope.
        """
        return [wait.path for wait in self._watched if scope in wait.scopes]

    def _leave(self, wait: Wait) -> None:
        if wait.is_entered:
            wait.is_entered = False
            del self.waits[wait.path]
            self._foreign -= wait.is_pinned
            self.resume_branch(wait.is_branch)
