"""
What an engine keeps in memory of an instance that runs, or that somebody looks at.
"""

from __future__ import annotations

import trio

from ._journal import InstanceHeader
from ._records import InstanceRecord
from ._run import Run


class Entry:
    """
    One instance, shared by its run and all handles on it.
    """

    __slots__ = ("__weakref__", "_changed", "busy", "ending", "header", "instance_id", "run", "version", "workflow")

    def __init__(self, workflow: str, instance_id: str, header: InstanceHeader | None = None) -> None:
        """
        Begin to keep an instance in memory.

        Args:
            workflow: Name of its workflow.
            instance_id: Its id.
            header: The store's, live; None while the start is on its way to the disk.
        """
        self.workflow: str = workflow
        self.instance_id: str = instance_id
        self.header: InstanceHeader | None = header
        self.run: Run | None = None
        "The run that executes or is about to, if there is one."
        self.busy: bool = False
        "Somebody is changing the instance in a way that only one may at a time: starting or resuming it."
        self.ending: InstanceRecord | None = None
        "The record that ended the newest run, if it ended here."
        self.version: int = 0
        "Counts the changes, so that none is missed between looking and waiting."
        self._changed: trio.Event | None = None

    def notify(self) -> None:
        """
        Wake all that wait for a change.
        """
        self.version += 1
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def wait_change(self, version: int) -> None:
        """
        Wait until ``notify`` has been called since ``self.version`` was *version*. Not a checkpoint if it has.
        """
        if version != self.version:
            return
        if self._changed is None:
            self._changed = trio.Event()
        await self._changed.wait()
