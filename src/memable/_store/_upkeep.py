"""
What an open store does beside: it writes checkpoints, and gives back the space of what is not needed any more.

One task, in short steps, between which the appends of the workflows come first. It may be cancelled between any two.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import attrs
import trio

from .._clock import Clock
from .._errors import StorageError, StoreCorruptedError, StoreVersionError
from .._records import InstanceRecord
from .._segments import SegmentName
from .._spans import span_of
from .._superseded import superseded
from ._checkpoint import CheckpointDraft, write_checkpoint
from ._committer import Committer
from ._compaction import Compaction, Needs, UnreadableSourceError
from ._directory import remove_all
from ._failures import is_no_room, is_shortage, storage_error
from ._files import LogFiles
from ._index import HeaderIndex
from ._space import Space
from ._tail import LogTail

logger = logging.getLogger("memable")

T = TypeVar("T")

#: A checkpoint is worth writing when the log has grown by this part of what the last one took.
_CHECKPOINT_SHARE = 0.25
#: Garbage is looked at again when there is so much more of it, as a part of a segment.
_GARBAGE_SHARE = 1 / 16
#: After a step, the task rests for so many times as long as the step took.
_REST = 1.0
#: So many entries are changed in one step, while the workflows wait.
_SLICE = 250
#: When the disk was full, or the system short of something, it is tried again after so many seconds.
_RETRY_S = 60.0


@attrs.define(eq=False)
class Upkeep:
    """
    Looks after one open store.
    """

    files: LogFiles
    index: HeaderIndex
    space: Space
    committer: Committer
    store_id: str
    segment_bytes: int
    clock: Clock
    load: Callable[[int], Awaitable[Sequence[tuple[int, InstanceRecord]]]]
    "Returns the journal of an instance, each record with its span."
    tail: LogTail
    checkpoint_segment: int = 0
    "The segment that the checkpoint begins in; 0 if there is none."
    checkpoint_bytes: int = 0
    "How long the checkpoint is."
    unread_bytes: int = 0
    "How much of the log an opener would have to read beyond it."
    _limiter: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(1), init=False)
    _work: trio.Event = attrs.field(factory=trio.Event, init=False)
    _seen_garbage: int = attrs.field(default=0, init=False)
    _seen_segment: int = attrs.field(default=0, init=False)
    _seen_bytes: int = attrs.field(default=0, init=False)
    "What the committer had appended when the checkpoint was taken."
    _to_examine: set[int] = attrs.field(factory=set[int], init=False)
    "Numbers of instances that were resumed with something to forget, and are to be looked at."
    _blocked: set[SegmentName] = attrs.field(factory=set[SegmentName], init=False)
    "Files that are damaged or cannot be read: they are left as they are."

    def __attrs_post_init__(self) -> None:
        self._seen_bytes = -self.unread_bytes
        self._to_examine |= self.index.unexamined
        if self._is_due():
            self._work.set()

    def note_progress(self) -> None:
        """
        Look whether there is something to do. Called after each batch.
        """
        if self._is_due():
            self._work.set()

    def note_forgotten(self, number: int) -> None:
        """
        Take note that an instance was resumed with something to forget.
        """
        self._to_examine.add(number)
        self._work.set()

    async def run(self) -> None:
        """
        Do what is due until cancelled.

        Raises:
            StorageError: The disk failed to take something. If it is full, or the system short of something, that is
                no failure here: it is tried again later. What cannot be read is left alone.
        """
        while True:
            await self._work.wait()
            self._work = trio.Event()
            self.committer.is_disk_busy = True
            try:
                await self._look_after()
            except OSError as exc:
                if not (is_no_room(exc) or is_shortage(exc)) or not self.tail.is_sound:
                    raise storage_error(str(self.files.directory), "compacting", exc) from exc
                what = "there is no room for" if is_no_room(exc) else "there will only be later"
                logger.warning("%s: %s a checkpoint or a compaction (%s)", self.files.directory, what, exc)
                self.committer.is_disk_busy = False
                await trio.sleep(_RETRY_S)
                self._work.set()
            finally:
                self.committer.is_disk_busy = False

    # What is due ---------------------------------------------------------------------------------------------

    def _is_due(self) -> bool:
        return (
            bool(self._to_examine)
            or self.committer.position[0] != self._seen_segment
            or self.space.garbage - self._seen_garbage >= self.segment_bytes * _GARBAGE_SHARE
            or self._needs_checkpoint()
        )

    def _needs_checkpoint(self) -> bool:
        return self._unread() >= max(self.segment_bytes, self.checkpoint_bytes * _CHECKPOINT_SHARE)

    def _unread(self) -> int:
        return self.committer.appended_bytes - self._seen_bytes

    async def _look_after(self) -> None:
        self._seen_segment = self.committer.position[0]
        self._seen_garbage = self.space.garbage
        await self._examine()
        if self._needs_checkpoint():
            await self.write_checkpoint()
        while run := self._choose(self.committer.position[0]):
            if run[-1].last >= self.checkpoint_segment:
                # What a compaction drops must not be what an opener reads beyond an older checkpoint.
                await self.write_checkpoint()
                run = self._choose(self.checkpoint_segment)
                if not run:
                    break
            await self._compact(run)

    def _choose(self, before: int) -> list[SegmentName]:
        return self.space.choose(before, self.segment_bytes, self._blocked)

    async def _examine(self) -> None:
        """Find out what of the instances in question is superseded."""
        while self._to_examine:
            number = self._to_examine.pop()
            # It comes again if the instance is resumed from here on.
            self.index.unexamined.discard(number)
            try:
                is_examined = await self._examine_one(number)
            except BaseException:
                self._to_examine.add(number)
                self._keep_unexamined(number)
                raise
            if not is_examined:
                # The next opener tries again.
                self._keep_unexamined(number)

    async def _examine_one(self, number: int) -> bool:
        """Find out what of one instance is superseded; return whether that could be done."""
        try:
            lines = await self.load(number)
        except KeyError:
            # It was removed meanwhile.
            return True
        except StorageError as exc:
            cause = exc.__cause__
            if isinstance(cause, OSError) and is_shortage(cause):
                raise cause from exc
            if not isinstance(exc, StoreCorruptedError | StoreVersionError) and not isinstance(cause, OSError):
                # The store is closed, or this is a forked child.
                raise
            logger.error("%s; what instance %d had forgotten is kept", exc, number)  # noqa: TRY400 - it says all
            return False
        await self._rest(0.0)
        places = superseded([record for _, record in lines])
        if self.index.has(number):
            self.space.note_superseded(lines[at][0] for at in places)
        return True

    def _keep_unexamined(self, number: int) -> None:
        if number in self.index.has_forgotten:
            self.index.unexamined.add(number)

    # Checkpoints ---------------------------------------------------------------------------------------------

    async def write_checkpoint(self) -> None:
        """
        Write down what is known now, for the next opener.

        Raises:
            StorageError: What is in the log could not be made durable.
            OSError: The disk failed, or is full.
        """
        draft, appended = self.draft(), self.committer.appended_bytes
        for _ in draft.encode_live():
            await self._rest(0.0)
        # Until all that it speaks of is durable, it would be a lie.
        await self.committer.sync()
        size = await self._drive(write_checkpoint(self.files.disk, self.files.directory, draft))
        self.checkpoint_segment, self.checkpoint_bytes = draft.segment, size or 0
        self._seen_bytes = appended

    def write_checkpoint_now(self) -> None:
        """
        Do the same at once, if it is worth it: the log is closed, and nobody waits for anything but this.
        """
        if self._unread() * 4 < max(self.segment_bytes, self.checkpoint_bytes):
            return
        draft = self.draft()
        for _ in draft.encode_live():
            pass
        for _ in write_checkpoint(self.files.disk, self.files.directory, draft):
            pass

    def draft(self) -> CheckpointDraft:
        """
        Return all that is known now, to be written.
        """
        segment, offset = self.committer.position
        state = self.committer.state
        sessions = {header.session for header in self.index.live()}
        return CheckpointDraft(
            store_id=self.store_id,
            segment=segment,
            offset=offset,
            checksum=self.committer.checksum,
            state=attrs.evolve(
                state,
                crashed=tuple(session for session in state.crashed if session in sessions),
                last_number=self.index.last_number,
            ),
            index=self.index.snapshot(),
            files=tuple(attrs.evolve(file) for file in self.space.files),
            space=self.space,
            unexamined=self.index.unexamined,
        )

    # Compaction ----------------------------------------------------------------------------------------------

    async def _compact(self, run: Sequence[SegmentName]) -> None:
        numbers = range(run[0].first, run[-1].last + 1)
        self.space.recent = []
        since = span_of(*self.committer.position, 1)
        compaction = Compaction(
            files=self.files,
            run=tuple(run),
            store_id=self.store_id,
            now=self.clock.now(),
            needs=Needs(
                instance=self.index.has,
                tombstone=lambda number: self.space.needs_tombstone(number, numbers),
                # Meanwhile this only shrinks, when instances are removed: then their lines go, or are known to be dead.
                superseded=self.space.superseded,
            ),
            mark_failure=self.tail.mark,
        )
        try:
            await self._drive(compaction.write())
            # Removals that are not durable yet would be forgotten at a power cut, and then the lines be missing.
            await self.committer.sync()
            await self._in_thread(compaction.name_it)
        except (StoreCorruptedError, StoreVersionError, UnreadableSourceError) as exc:
            # It harms nobody who does not read it. What is intact around it stays readable.
            logger.error("%s; these segments are not compacted any more", exc)  # noqa: TRY400 - it says all
            self._blocked.update(run)
            return
        finally:
            recent, self.space.recent = self.space.recent, None
        self.files.replace(compaction.run, compaction.name, compaction.places)
        self.space.replace(compaction.run, compaction.name, compaction.size)
        steps = self._settle(compaction, recent, numbers, since)
        try:
            with trio.CancelScope(shield=True):
                old = [self.files.path(name) for name in run]
                await self._in_thread(lambda: remove_all(self.files.disk, old))
            for _ in steps:
                await self._rest(0.0)
        finally:
            # Cut short, it is ended at once: the checkpoint that is written at the end tells of the new file only.
            deque(steps, maxlen=0)
        logger.info("%s: compacted %d file(s) into %s", self.files.directory, len(run), compaction.name)

    def _settle(self, compaction: Compaction, recent: Sequence[int], numbers: range, since: int) -> Iterator[None]:
        """
        Take note of what is gone, now that the new file stands for the old ones. In steps.

        In between, what is left out may still be spoken of: who loads a journal passes over it.
        """
        for at, (number, spans) in enumerate(compaction.dropped.items()):
            if at % _SLICE == 0:
                yield
            # As long as the instance has such a span, that is known as superseded: if it is removed, it counts once.
            if self.index.has(number):
                self.index.drop_spans(number, spans)
            self.space.superseded.discard_all(spans)
        for at, span in enumerate(recent):
            if at % _SLICE == 0:
                yield
            if compaction.places.holds(span):
                self.space.note_dead(span)
        yield from self.space.review_tombstones(numbers, since)

    # Working in steps ----------------------------------------------------------------------------------------

    async def _drive(self, steps: Iterator[T]) -> T | None:
        """Go through *steps* in a thread, with a rest after each; return what the last one gave."""
        last: T | None = None
        try:
            while True:
                begun = trio.current_time()
                is_over, last = await self._in_thread(partial(_next, steps, last))
                if is_over:
                    return last
                await self._rest(trio.current_time() - begun)
        finally:
            close = getattr(steps, "close", None)
            if close is not None:
                close()

    async def _rest(self, spent_s: float) -> None:
        if self.clock.is_virtual:
            await trio.lowlevel.checkpoint()
        else:
            await trio.sleep(spent_s * _REST)

    async def _in_thread(self, job: Callable[[], T]) -> T:
        if self.clock.is_virtual:
            await trio.lowlevel.checkpoint()
            return job()
        return await trio.to_thread.run_sync(job, limiter=self._limiter)


def _next(steps: Iterator[T], last: T | None) -> tuple[bool, T | None]:
    for step in steps:
        return False, step
    return True, last
