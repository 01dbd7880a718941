"""
The end of a log, where batches are appended: one at a time, each durable before the next.

Synchronous, and without a queue: it is called in a thread. After a failure it is not called again.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Sequence

import attrs

from .._disk import DiskFile, write_fully
from .._frames import frame_batch
from ._failures import is_no_room
from ._lockfile import StoreLock


@attrs.define(eq=False)
class LogTail:
    """
    Appends batches to a log.
    """

    file: DiskFile
    name: str
    "The file's name within the store."
    lock: StoreLock
    seed: int
    "What ``seed_of`` the store's id is."
    session: int
    "The session that the batches belong to."
    next_batch: int
    "Number of the next batch."
    end: int
    "How long the log is."

    def append(self, texts: Sequence[bytes], *, sync: bool = True) -> list[int]:
        """
        Write a batch of records.

        Args:
            texts: The records' JSON. At least one.
            sync: Whether to wait until it is durable.

        Returns:
            Where each record's line ends. The first begins at ``end`` as it was before.

        Raises:
            OSError: It failed; nothing more is to be appended. What was durable before still is.
        """
        self.lock.check()
        if self.file.size() != self.end:
            raise OSError(errno.ENOLCK, "the log has changed since this process last wrote to it")
        lines = frame_batch(self.seed, self.session, self.next_batch, texts)
        try:
            write_fully(self.file, self.end, b"".join(lines))
        except BaseException as exc:
            self._cut_back(disk_is_sound=is_no_room(exc))
            raise
        if sync:
            self.sync()
        ends: list[int] = []
        for line in lines:
            self.end += len(line)
            ends.append(self.end)
        self.next_batch += 1
        return ends

    def sync(self) -> None:
        """
        Make durable what was written.

        Raises:
            OSError: It failed. From now on the system may show bytes of this file that the disk does not have.
        """
        try:
            self.file.sync()
        except BaseException:
            self._mark()
            raise

    def _cut_back(self, *, disk_is_sound: bool) -> None:
        """Remove what was written of a batch, so that nothing can ever follow it."""
        try:
            self.file.truncate(self.end)
            self.file.sync()
        except OSError:
            disk_is_sound = False
        if not disk_is_sound:
            self._mark()

    def _mark(self) -> None:
        # If this fails as well, the disk is failing altogether, and the first failure is the one to be told.
        with contextlib.suppress(OSError):
            self.lock.mark(self.name)
