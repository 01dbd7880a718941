"""
What the tasks of a run do, as far as the engine knows them: which branches wait, and what for.

No clock, no records: whoever waits has the run see to those.
"""

from __future__ import annotations

from typing import Protocol

import trio

from ._sparse import NOTHING, put
from ._wait import Wait


class RunWatcher(Protocol):
    """
    Who is told what becomes of a run. One object for all of it: a method for each would be one more to keep.
    """

    def note_change(self) -> None:
        """
        Take note that the run's state, as seen from outside, may have changed.
        """
        ...

    def note_settled(self) -> None:
        """
        Take note that nothing of the waiting run is on its way to the store any more.
        """
        ...


class Activity:
    """
    Counts the branches of one run that do not wait, the steps that execute, and keeps what is waited for.
    """

    __slots__ = ("_body", "_branches", "_busy", "_executing", "_foreign", "_listed", "_wait", "_waits", "_watcher")

    def __init__(self, watcher: RunWatcher) -> None:
        """
        Begin with one branch, the body, whose task is about to start.

        Args:
            watcher: Told when the run may have begun or ceased to wait.
        """
        self._watcher = watcher
        self._busy = 1
        "Branches that do not wait."
        self._executing = 0
        "Steps, in whatever task."
        self._foreign = 0
        "Tasks that wait and must not be unwound: most are no branches, and what else goes on is unknown."
        self._body: trio.lowlevel.Task | None = None
        "The branch that most runs have no other than."
        self._branches: dict[trio.lowlevel.Task, None] = NOTHING
        "The others."
        self._wait: Wait | None = None
        "The one that most waiting runs have no other than. It may not count as waiting, or be over already."
        self._waits: dict[str, Wait] = NOTHING
        "The others, by path."
        self._listed = 0
        "How many count as waiting."

    @property
    def is_waiting(self) -> bool:
        """
        Whether every branch waits and no step executes.
        """
        return not self._busy and not self._executing and bool(self._listed)

    @property
    def waits(self) -> list[Wait]:
        """
        What is waited for.
        """
        return [wait for wait in self._all_waits() if wait.is_entered]

    def find_wait(self, path: str) -> Wait | None:
        """
        Return what is waited for at *path*, if anything is.
        """
        wait = self._wait if self._wait is not None and self._wait.path == path else self._waits.get(path)
        return wait if wait is not None and wait.is_entered else None

    @property
    def has_cancelled_wait(self) -> bool:
        """
        Whether a branch counts as waiting whose task is being cancelled: it is about to go on.
        """
        return any(wait.is_entered and wait.task is None for wait in self._all_waits())

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
        if self._listed:
            self._watcher.note_change()

    def end_execution(self) -> None:
        """
        Count a step as no longer executing.
        """
        self._executing -= 1
        if self._listed:
            self._watcher.note_change()

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
        task = trio.lowlevel.current_task()
        if self._body is None:
            self._body = task
        else:
            self._branches = put(self._branches, task, None)

    def leave_branch(self) -> None:
        """
        Take the current task for none any more, though its branch still counts.
        """
        task = trio.lowlevel.current_task()
        if task is self._body:
            self._body = None
        else:
            self._branches.pop(task, None)

    def end_branch(self) -> None:
        """
        Take note that the branch that is the current task has ended.
        """
        self.leave_branch()
        self._busy -= 1
        self._watcher.note_change()

    def pause_branch(self) -> bool:
        """
        Take note that the current task does nothing but wait; return whether it is a branch.
        """
        task = trio.lowlevel.current_task()
        is_branch = task is self._body or task in self._branches
        if is_branch:
            self._busy -= 1
        else:
            self._foreign += 1
        self._watcher.note_change()
        return is_branch

    def resume_branch(self, is_branch: bool) -> None:
        """
        Take note that a task which did nothing but wait goes on.
        """
        if is_branch:
            self._busy += 1
        else:
            self._foreign -= 1
        self._watcher.note_change()

    # Waits ---------------------------------------------------------------------------------------------------

    def begin_wait(self, wait: Wait) -> None:
        """
        Take note that the current task is about to sleep until ``wake`` or ``wake_all`` ends the wait.

        To be followed by ``end_wait``.
        """
        if self._wait is None:
            self._wait = wait
        else:
            self._waits = put(self._waits, wait.path, wait)
        if wait.is_listed:
            wait.is_entered = True
            self._listed += 1
            self._foreign += wait.is_pinned
            wait.is_branch = self.pause_branch()
        wait.task = trio.lowlevel.current_task()

    def end_wait(self, wait: Wait) -> None:
        """
        Take note that the task of a wait goes on.
        """
        wait.task = None
        if wait is self._wait:
            self._wait = None
        elif self._waits.get(wait.path) is wait:
            del self._waits[wait.path]
        self._leave(wait)

    def wake(self, wait: Wait) -> None:
        """
        End a wait. The branch counts as active at once, though its task goes on later.
        """
        self._leave(wait)
        wait.wake()

    def wake_all(self) -> None:
        """
        End all waits: the run is unwound, or over. Those whose tasks are not shielded are cancelled already.
        """
        for wait in self._all_waits():
            wait.wake()

    def waits_within(self, scope: object) -> list[str]:
        """
        Return the paths of the waits inside a durable scope.
        """
        return [wait.path for wait in self._all_waits() if scope in wait.scopes]

    def _all_waits(self) -> list[Wait]:
        first = [] if self._wait is None else [self._wait]
        return [*first, *self._waits.values()]

    def _leave(self, wait: Wait) -> None:
        if wait.is_entered:
            wait.is_entered = False
            self._listed -= 1
            self._foreign -= wait.is_pinned
            self.resume_branch(wait.is_branch)
