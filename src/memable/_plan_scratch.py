"""
What a planned run takes for its engine: nothing that it does there is ever seen outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import trio

from ._clock import Clock
from ._definition import Workflow
from ._encoded import Encoded
from ._entry import Entry
from ._errors import (
    SerializationError,
    TypeMismatchError,
)
from ._header import header_of
from ._instances import Instances
from ._journal import Journal
from ._qualified_name import qualified_name
from ._records import (
    InstanceRecord,
    InstanceRetired,
    InstanceStarted,
)
from ._replay import Replay
from ._store._protocol import OpenStore
from ._values._codec import Codec


@attrs.frozen(weakref_slot=False)
class Assumed(Encoded):
    """
    A value that the caller of the plan assumes.
    """

    path: str
    value: object


class PlanCodec(Codec):
    """
    The engine's codec, which also reads what is assumed.
    """

    def __init__(self, codec: Codec) -> None:
        # What it knows of annotations is shared: it takes longer to find out than most bodies to run.
        self.__dict__.update(vars(codec))
        self.unfit: TypeMismatchError | None = None
        "The first assumed value that is of another type than the code asks for."

    def decode(self, encoded: Encoded, annotation: Any) -> Any:
        """
        Return a new value, equal to the one that was encoded or is assumed.
        """
        if not isinstance(encoded, Assumed):
            return super().decode(encoded, annotation)
        try:
            return self.encode_and_read_back(encoded.value, annotation)[1]
        except SerializationError as error:
            mismatch = TypeMismatchError(
                expected=getattr(annotation, "__name__", str(annotation)),
                found=qualified_name(type(encoded.value)),
                problem=f"assume[{encoded.path!r}]: {error.problem}",
                key=encoded.path,
                is_given=True,
            )
            self.unfit = self.unfit or mismatch
            raise mismatch from None


class PlanReplay(Replay):
    """
    Tells which memos are returned.
    """

    __slots__ = ("_note",)

    def __init__(self, journal: Journal, note: Callable[[str], None]) -> None:
        super().__init__(journal, is_first=False, is_memo_only=False)
        self._note = note

    @property
    def unasked(self) -> tuple[str, ...]:
        """
        What is recorded and was not asked for yet.
        """
        return tuple(sorted(self._unasked))

    def return_(self, path: str) -> None:
        """
        Take note that what is recorded at *path* was asked for, and is told.
        """
        self._note(path)
        super().return_(path)


class Scratch:
    """
    What a plan records, on top of a journal that it does not change. As much of a store as a run uses.
    """

    def __init__(self, store: OpenStore, number: int, records: Sequence[InstanceRecord]) -> None:
        self._store = store
        self._number = number
        self._records = list(records)
        self._last_number = number
        self.store_id: str = store.store_id
        self.session: int = store.session

    async def allocate_number(self) -> int:
        """Return a number for a child instance, which nobody but this plan gets to see."""
        self._last_number += 1
        return self._last_number

    async def append(self, records: Sequence[InstanceRecord]) -> None:
        """Keep what the planned run records."""
        # A child's own records are told apart by its start, which follows its parent's.
        self._records.extend(
            record
            for record in records
            if record.instance == self._number and not isinstance(record, InstanceStarted | InstanceRetired)
        )
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def load(self, _number: int) -> Sequence[InstanceRecord]:
        """Return the journal with what was added."""
        await trio.lowlevel.checkpoint()
        return self._records


class PlanHost:
    """
    What a planned run asks for child instances: those of the store, as they are, and those that it would start.
    """

    is_halted = False

    def __init__(self, instances: Instances, store: OpenStore, definitions: dict[str, Workflow[Any, Any]]) -> None:
        self._instances = instances
        self._store = store
        self._started: dict[tuple[str, str], Entry] = {}
        self._new: set[str] = set()
        self.definitions: dict[str, Workflow[Any, Any]] = definitions

    def is_new(self, instance_id: str) -> bool:
        """Tell whether the plan would start a child instance."""
        return instance_id in self._new

    async def find_child(self, workflow: str, instance_id: str) -> Entry | None:
        """Return a child instance that exists, or would by now."""
        started = self._started.get((workflow, instance_id))
        if started is not None:
            return started
        self._instances.refuse_closed("engine.plan")
        header = await self._store.find(workflow, instance_id)
        # Not the engine's own entry: nobody is told of who watches it.
        return None if header is None else Entry(workflow, instance_id, header)

    async def load(self, entry: Entry) -> Journal:
        """Return the journal of a child instance."""
        return await self._instances.load(entry)

    def expect_child(self, started: InstanceStarted) -> Entry:
        """Keep a child instance that would be started."""
        entry = Entry(started.workflow, started.instance_id, header_of(started))
        self._started[started.workflow, started.instance_id] = entry
        self._new.add(started.instance_id)
        return entry

    async def settle_child(self, entry: Entry, started: InstanceStarted) -> None:
        """Do not run it."""

    async def retire_orphan(self, entry: Entry) -> InstanceRetired:
        """Return the record that would remove a child that was forgotten."""
        header = entry.header
        return InstanceRetired(instance=header.number, seq=header.seq + 1, at=header.updated_at)

    async def cancel_child(self, entry: Entry, reason: str) -> None:
        """Do not cancel it."""


class NoWatcher:
    """
    Whom a planned run tells of its states: nobody.
    """

    def note_change(self) -> None:
        """Announce nothing."""

    def note_settled(self) -> None:
        """Announce nothing."""


@attrs.frozen
class ClockOf:
    """
    Another time of day than the engine's, which passes as its does.
    """

    _clock: Clock
    _ahead_s: float

    @property
    def is_virtual(self) -> bool:
        """
        Whether time passes by trio's clock alone.
        """
        return self._clock.is_virtual

    def now(self) -> float:
        """
        Return the time in seconds since 1970 (UTC).
        """
        return self._clock.now() + self._ahead_s

    def not_before(self, unix_s: float) -> None:
        """
        Never called: the plan's store holds nothing of its own.
        """
