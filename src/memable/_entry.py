"""
What an engine keeps in memory of an instance that runs, or that somebody looks at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from ._header import InstanceHeader
from ._records import InstanceRecord
from ._run import Run
from ._sleeping import message_for, sleep_unless_cancelled
from ._sparse import NOTHING, put


class Host(Protocol):
    """
    Who keeps the runs of all entries.
    """

    def update(self, entry: Entry) -> None:
        """
        Take note that the run of an instance has changed.
        """
        ...


class Entry:
    """
    One instance, shared by its run and all handles on it.
    """

    __slots__ = (
        "__weakref__",
        "_header",
        "_host",
        "_sleepers",
        "busy",
        "ending",
        "instance_id",
        "is_live",
        "is_removed",
        "is_woken",
        "run",
        "version",
        "watchers",
        "workflow",
    )

    def __init__(
        self, workflow: str, instance_id: str, header: InstanceHeader | None = None, host: Host | None = None
    ) -> None:
        """
        Begin to keep an instance in memory.

        Args:
            workflow: Name of its workflow.
            instance_id: Its id.
            header: The store's, live; None while the start is on its way to the disk.
            host: Keeps its run, if it ever has one.
        """
        self.workflow: str = workflow
        self.instance_id: str = instance_id
        self.run: Run | None = None
        "The run that executes or is about to, if there is one."
        self.is_live: bool = False
        "Whether it runs here, or is about to."
        self.is_removed: bool = False
        "The store has no such instance any more."
        self.is_woken: bool = False
        "Something that it waits for has ended while its run is being unwound: it is to run again."
        self.busy: bool = False
        "Somebody is changing the instance in a way that only one may at a time: starting or resuming it."
        self.ending: InstanceRecord | None = None
        "The record that ended the newest run, if it ended here."
        self.version: int = 0
        "Counts the changes, so that none is missed between looking and waiting."
        self.watchers: dict[Callable[[], None], None] = NOTHING
        "Called at each change."
        self._header = header
        self._host = host
        self._sleepers: dict[Sleeper, None] = NOTHING
        "Those that wait for a change, in the order in which they came."

    @property
    def is_started(self) -> bool:
        """
        Whether its start is durable.
        """
        return self._header is not None

    @property
    def header(self) -> InstanceHeader:
        """
        The store's header of it, live. Its start is durable.
        """
        assert self._header is not None
        return self._header

    @header.setter
    def header(self, header: InstanceHeader) -> None:
        self._header = header

    @property
    def is_executing(self) -> bool:
        """
        Whether it runs here, and does not wait.
        """
        return self.is_live and (self.run is None or not self.run.is_suspended)

    @trio.lowlevel.enable_ki_protection
    def note_change(self) -> None:
        """
        Take note that the run has changed.
        """
        # Without one, a task of somebody else's has noticed only now that the run is over.
        if self.run is not None and self._host is not None:
            self._host.update(self)

    @trio.lowlevel.enable_ki_protection
    def note_settled(self) -> None:
        """
        Take note that nothing of the waiting run is on its way to the store any more.
        """
        if self.run is not None and self.run.may_be_passivated:
            # It could not be while something was on its way.
            self.note_change()

    # Interrupted by control-C halfway through, the others would not be woken any more.
    @trio.lowlevel.enable_ki_protection
    def notify(self) -> None:
        """
        Wake all that wait for a change.
        """
        self.version += 1
        for watcher in list(self.watchers):
            watcher()
        if self._sleepers:
            sleepers, self._sleepers = self._sleepers, NOTHING
            for sleeper in sleepers:
                trio.lowlevel.reschedule(sleeper.task)

    @trio.lowlevel.enable_ki_protection
    def note_prepared(self) -> None:
        """
        Wake all that wait for a change but those that only wait for an end: a run is about to begin.
        """
        self.version += 1
        for watcher in list(self.watchers):
            watcher()
        for sleeper in [one for one in self._sleepers if not one.is_for_end]:
            del self._sleepers[sleeper]
            trio.lowlevel.reschedule(sleeper.task)

    # Interrupted by control-C just before it sleeps, the caller would be woken while it does something else.
    @trio.lowlevel.enable_ki_protection
    async def wait_change(self, version: int) -> None:
        """
        Wait until ``notify`` has been called since ``self.version`` was *version*. Not a checkpoint if it has.
        """
        if version == self.version:
            await sleep_unless_cancelled(message_for(self.add_sleeper().abort))

    def add_sleeper(self, *, is_for_end: bool = False) -> Sleeper:
        """
        Have the next ``notify`` wake the current task, which is to sleep at once.

        Args:
            is_for_end: Whether it waits for a run to end or to rest, so that the beginning of one is nothing to it.
        """
        sleeper = Sleeper(self, trio.lowlevel.current_task(), is_for_end=is_for_end)
        self._sleepers = put(self._sleepers, sleeper, None)
        return sleeper

    def remove_sleeper(self, sleeper: Sleeper) -> None:
        """
        Do not wake a task that ``add_sleeper`` was told of: something else has.
        """
        del self._sleepers[sleeper]


class Sleeper:
    """
    A task that waits for the next change of an instance.

    Not an ``Event``: with all that it needs, one takes three times as much, and there may be thousands.
    """

    __slots__ = ("_entry", "is_for_end", "task")

    def __init__(self, entry: Entry, task: trio.lowlevel.Task, *, is_for_end: bool) -> None:
        """
        Prepare for the sleep of *task*.
        """
        self._entry = entry
        self.task: trio.lowlevel.Task = task
        self.is_for_end: bool = is_for_end

    def abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        """
        Give up waiting, since the task is cancelled. For ``wait_task_rescheduled``.
        """
        self._entry.remove_sleeper(self)
        return trio.lowlevel.Abort.SUCCEEDED
