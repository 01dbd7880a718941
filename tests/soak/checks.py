"""
What must hold of a store after each session, whatever happened in it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import trio
from trio.testing import MockClock

import memable
from memable import MetadataStatus
from memable._clock import _virtual_origin, current_clock
from memable._header import InstanceHeader
from memable._journal import journal_of
from memable._records import (
    AttemptFailed,
    BranchCompleted,
    CallCompleted,
    InstanceCancelled,
    InstanceCompleted,
    InstanceFailed,
    InstanceRecord,
    InstanceResumed,
    InstanceRetired,
    InstanceStarted,
    SignalKept,
    SignalReceived,
    StepCompleted,
    StepFailed,
)
from memable._store._snapshot import read_store
from memable._testing._simulated_disk import SimulatedDisk
from programs import WORKFLOWS, Fails, Incomplete, World, ops_of
from soak.ledger import LATE_S, Ledger, Name, is_once, is_within
from soak.watch import WatchedStore
from soak.weather import FAIR

DIRECTORY = Path("/store")
#: The same in every run, so that a failure can be found again.
ORIGIN_UNIX_S = 1_700_000_000.0
#: A session that is not done by then, in virtual seconds, is stuck.
STUCK_AFTER_S = 1e5
#: So many crashes in a row are more than any story has.
MANY_RECOVERIES = 100
#: More instances than any story has.
ALL = 1_000_000

REST = frozenset((MetadataStatus.SUSPENDED, MetadataStatus.BLOCKED))
Kept: TypeAlias = dict[int, tuple[InstanceHeader, list[InstanceRecord]]]


class AcknowledgedLostError(AssertionError):
    """
    Records that were acknowledged are not in the store.
    """

    def __init__(self, records: list[InstanceRecord]) -> None:
        super().__init__(f"{len(records)} acknowledged record(s) lost: {', '.join(map(brief, records[:5]))}")
        self.count = len(records)


class ReexecutedError(AssertionError):
    """
    Steps were called that have a memo, or effects happened twice.
    """

    def __init__(self, wrongs: list[str]) -> None:
        super().__init__("; ".join(wrongs))
        self.count = len(wrongs)


@attrs.define
class Sent:
    """
    A signal, and what its sender was told.
    """

    name: Name
    path: str
    payload: int
    told: str | None = None


class Model:
    """
    What is known of a store from outside, and what therefore must be found in it.
    """

    def __init__(self, *, segment_bytes: int = 4_000, max_recoveries: int = MANY_RECOVERIES) -> None:  # noqa: PLR0915 - fields
        self.segment_bytes = segment_bytes
        self.max_recoveries = max_recoveries
        self.disk = SimulatedDisk()
        self.world = World()
        self.now = ORIGIN_UNIX_S
        self.weather = FAIR
        "That of the newest session."
        self.watch: WatchedStore | None = None
        "What the newest session's store was asked for."
        self.is_sound = True
        self.kept: Kept = {}
        "What was found after the last session."
        self.base: Kept = {}
        "What of it cannot be lost: a killed process may leave behind what no power cut leaves."
        self.is_base_weak = False
        "Whether what a killed process left behind was acknowledged, and not synced, as it had asked for."
        self.checked_at = self.now
        self.ledgers: dict[int, Ledger] = {}
        self.openings: list[tuple[float, bool]] = []
        "When engines were opened, and whether one workflow was registered late or the code was wrong."
        self.invoked: dict[str, tuple[str, int]] = {}
        "Workflows and inputs of the instances that were started by the host, by id."
        self.told: list[tuple[str, Name]] = []
        "What the host was told to have been done, and to which instance."
        self.asked: tuple[tuple[str, ...], bool] = ((), False)
        "What is to be forgotten, and whether the instance is to run anew."
        self.may_vanish: set[Name] = set()
        "Instances that somebody has tried to delete."
        self.may_lose_children: set[Name] = set()
        "Instances that somebody has tried to let forget something."
        self.revived: set[Name] = set()
        "Instances that somebody has resumed, their parents notwithstanding."
        self.orphans: set[str] = set()
        "Ids of children whose parents do not know them any more: they go when their names are needed."
        self.gone: set[int] = set()
        self.sent: list[Sent] = []
        self.payloads = 0
        self.acknowledged = 0
        "How many records were acknowledged in all sessions."
        self.looks = 0
        "How often the store was read while an engine had it."
        self.reopenings = random.Random(0)
        self.openings_alone = 0
        "How often the store was opened just to look at it."
        self.opening_cuts: random.Random | None = None
        "If given, chooses at which calls of such openings the power goes as well."
        self.on_opening_cut: Callable[[str], object] | None = None

    # Reading -------------------------------------------------------------------------------------------------

    def store(
        self, disk: SimulatedDisk, durability: Any = "fsync", segment_bytes: int | None = None
    ) -> memable.FileStore:
        """
        Return the store on *disk*.
        """
        segment_bytes = self.segment_bytes if segment_bytes is None else segment_bytes
        return memable.FileStore(DIRECTORY, durability=durability, disk=disk, segment_bytes=segment_bytes)

    def run_virtual(self, fn: Callable[[], Awaitable[Any]]) -> Any:
        """
        Run in virtual time, which goes on from where it was.
        """

        async def main() -> Any:
            _virtual_origin.set(self.now)
            try:
                with trio.fail_after(STUCK_AFTER_S):
                    return await fn()
            finally:
                self.now += trio.current_time()

        return trio.run(main, clock=MockClock(autojump_threshold=0))

    def read(self, disk: SimulatedDisk) -> Kept:
        """
        Return what the store on a copy of the disk holds. Reading it before shows the same, and opening it once more.
        """
        looked = self.look(disk)
        now = self.now
        kept: Kept = self.run_virtual(lambda: self.read_once(disk))
        self.openings_alone += 1
        assert looked == kept, "reading it without opening it shows something else"
        if self.reopenings.random() < REOPENINGS:
            again = self.run_virtual(lambda: self.read_once(disk))
            self.openings_alone += 1
            assert again == kept, "opening it twice shows something else"
        self.now = now
        return kept

    async def read_once(self, disk: SimulatedDisk) -> Kept:
        async with self.store(disk).open(current_clock()) as store:
            return {
                header.number: (copy_of(header), list(await store.load(header.number)))
                for header in await store.headers(limit=ALL)
            }

    def look(self, disk: SimulatedDisk) -> Kept:
        """
        Return what can be read there without opening the store, and without its lock.
        """
        calls = len(disk.calls)
        changes = "create", "remove", "rename", "sync", "sync_directory", "truncate", "write", "lock", "make_directory"
        try:
            with read_store(disk, DIRECTORY) as snapshot:
                headers = snapshot.index.select(limit=ALL)
                return {header.number: (copy_of(header), snapshot.load(header.number)) for header in headers}
        except memable.StoreCorruptedError:
            raise
        except memable.StorageError:
            # There is no store yet. If there should be one, what it held will be missed.
            return {}
        finally:
            assert not set(changes).intersection(disk.calls[calls:]), "reading has changed something"

    def check_beside(self) -> None:
        """
        What is read beside an engine has everything that it has acknowledged.
        """
        self.looks += 1
        self.check_acknowledged(self.completed(self.look(self.disk.copy())), is_doubtful=False)

    def check_opening(self, kept: Kept, choose: random.Random) -> None:
        """
        An opening that power cuts end, each wherever it comes, changes nothing either.
        """
        disk = self.disk.copy()
        now = self.now
        for _ in range(choose.randrange(1, 4)):
            disk.cut_at = choose.randrange(choose.choice([15, 40]))
            disk.on_cut = self.on_opening_cut
            try:
                self.run_virtual(partial(self.read_once, disk))
            except memable.StorageError as error:
                if not disk.is_off or isinstance(error, memable.StoreCorruptedError):
                    raise
            self.now = now
            self.openings_alone += 1
            was_cut = disk.is_off
            disk = disk.power_cut(choose.randrange)
            if not was_cut:
                break
        assert self.read(disk) == kept, "an opening that was cut short has changed something"

    # Checks --------------------------------------------------------------------------------------------------

    def check(self, *, is_cut_short: bool, is_doubtful: bool = False, is_stable: bool = True) -> None:
        """
        Check what is kept.

        Args:
            is_cut_short: Whether things may have been left running.
            is_doubtful: Whether acknowledged records may have been lost, since nobody asked for a sync of each batch.
            is_stable: Whether what the system shows is on the disk.
        """
        found = self.read(self.disk.copy())
        if self.opening_cuts is not None and is_stable and self.opening_cuts.random() < OPENING_CUTS:
            self.check_opening(found, self.opening_cuts)
        kept = self.completed(found)
        self.check_acknowledged(kept, is_doubtful=is_doubtful)
        self.check_vanished(kept)
        self.ledgers = {number: self.fold(*found) for number, found in kept.items()}
        by_name = {(header.workflow, header.instance_id): number for number, (header, _) in kept.items()}
        assert len(by_name) == len(kept), "two instances of one id"
        if is_doubtful:
            self.forget_lost(kept)
        else:
            self.check_told(kept, by_name)
            self.check_seen(kept, by_name)
            self.check_signals(kept, by_name)
        self.check_calls(kept, is_doubtful=is_doubtful)
        for number, (header, _) in kept.items():
            self.check_family(header, self.ledgers[number], by_name, kept)
            if not is_cut_short:
                self.check_rest(header, self.ledgers[number], by_name, kept)
        self.orphans = set(self.find_orphans(kept, by_name))
        self.kept, self.checked_at = kept, self.now
        self.world.seen.clear()
        self.world.session_calls.clear()
        self.sent.clear()
        self.told.clear()
        self.may_vanish.clear()
        self.may_lose_children.clear()

    def completed(self, found: Kept) -> Kept:
        """
        Return what was found, together with the records that somebody has had forgotten, and that need not be kept.
        """
        assert self.watch is not None
        forgetting = {number for number, (_, records) in found.items() if any(map(forgets, records))}
        known = [one for append in self.watch.appends for one in append.records if one.instance in forgetting]
        known += [one for number in forgetting & self.kept.keys() for one in self.kept[number][1]]
        kept = dict(found)
        for number in forgetting:
            header, records = found[number]
            by_seq = {one.seq: one for one in known if one.instance == number and is_superseded(one, records)}
            by_seq.update((one.seq, one) for one in records)
            kept[number] = header, [one for _, one in sorted(by_seq.items())]
        return kept

    def check_acknowledged(self, kept: Kept, *, is_doubtful: bool) -> None:
        """
        What was acknowledged is there; what belongs together is there as a whole or not at all.
        """
        assert self.watch is not None
        appends = self.watch.appends
        required = appends[: self.watch.durable_count] if is_doubtful else appends
        retired = {one.instance for append in appends for one in append.records if isinstance(one, InstanceRetired)}
        found = {(number, one.seq): one for number, (_, records) in kept.items() for one in records}

        def is_kept(record: InstanceRecord) -> bool:
            if isinstance(record, InstanceRetired):
                return record.instance not in kept
            if record.instance in retired and record.instance not in kept:
                return True
            return found.get((record.instance, record.seq)) == record

        def is_there(record: InstanceRecord) -> bool:
            return is_kept(record) if record.instance in kept or record.instance in retired else False

        lost = [one for append in required if append.is_acknowledged for one in append.records if not is_there(one)]
        if lost:
            raise AcknowledgedLostError(lost)
        is_prefix_over = False
        for append in appends:
            # A record of an instance that may be retired says nothing: it is gone with it.
            there = {is_there(one) for one in append.records if one.instance not in retired}
            assert len(there) <= 1, f"torn apart: {append}"
            assert not (is_prefix_over and True in there), f"kept, and something before it is not: {append}"
            is_prefix_over |= False in there

    def forget_lost(self, kept: Kept) -> None:
        """
        Forget what the world knows of effects whose intents are lost: they may happen once more.
        """
        world = self.world
        known: set[str] = set()
        for number, (_, records) in kept.items():
            ledger, journal = self.ledgers[number], journal_of(records)
            for path in (*ledger.intents, *ledger.memos):
                step_id = world.step_ids.get((*ledger.name, path))
                # Else the intent is that of an older instance of its name, or of an older generation, which is back.
                if step_id is not None and world.owners[step_id] == (number, journal.generation(path)):
                    known.add(step_id)
        world.happened = {one: made for one, made in world.happened.items() if one in known}

    def check_told(self, kept: Kept, by_name: dict[Name, int]) -> None:
        for what, name in self.told:
            number = by_name.get(name)
            if what == "deleted":
                # Its id may be in use again.
                assert number not in self.kept, f"{name} was deleted"
                continue
            if what == "cancelled" and self.was_cancelled_and_retired(name, number):
                continue
            if number is None:
                assert WORKFLOWS[name[0]] is not None or name in self.may_vanish, f"{name} was {what}, and is gone"
                continue
            if what == "cancelled":
                assert isinstance(self.ledgers[number].ending, InstanceCancelled), f"{name} was cancelled"
            if what == "resumed" and self.asked != ((), False):
                old = len(self.kept[number][1]) if number in self.kept else 0
                resumes = [one for one in kept[number][1][old:] if isinstance(one, InstanceResumed)]
                assert self.asked in [(one.forgotten, one.anew) for one in resumes], f"{name} was resumed"

    def was_cancelled_and_retired(self, name: Name, number: int | None) -> bool:
        """
        Tell whether an instance was cancelled in this session and then removed, or another has taken its place.

        So it is with what is below a parent that was resumed, and has forgotten it (section 4 of the contract): its id
        is in use again as soon as the parent gets there once more.
        """
        if number in self.kept or not self.is_orphan(name[1]):
            return False
        assert self.watch is not None
        old = {one.number for one, _ in self.kept.values() if (one.workflow, one.instance_id) == name}
        new = [record for append in self.watch.appends if append.is_acknowledged for record in append.records]
        cancelled = {record.instance for record in new if isinstance(record, InstanceCancelled)}
        retired = {record.instance for record in new if isinstance(record, InstanceRetired)}
        return bool(old & cancelled & retired)

    def check_vanished(self, kept: Kept) -> None:
        for number, (header, records) in self.kept.items():
            if number in kept:
                assert kept[number][1][: len(records)] == records, "what was recorded has changed"
                continue
            name = header.workflow, header.instance_id
            retention_s = WORKFLOWS[header.workflow]
            ended_at = self.checked_at if header.completed_at is None else header.completed_at
            is_over = retention_s is not None and ended_at + retention_s <= self.now
            # A session whose end was lost may have removed it, and the parent know another one by that name by now.
            was_removed = name in self.may_vanish
            assert was_removed or not self.is_kept_by_parent(header, kept), f"{name} has vanished, its parent goes on"
            assert is_over or name in self.may_vanish or self.is_family_gone(header, kept), f"{name} has vanished"
        assert self.gone.isdisjoint(kept), "what was gone is there again"

    def is_kept_by_parent(self, header: InstanceHeader, kept: Kept) -> bool:
        """
        Tell whether a child must be kept: that is so for as long as its parent is not terminal, and knows it.
        """
        if header.parent_name is None or header.parent_name in self.may_lose_children:
            return False
        for number, (parent, records) in self.kept.items():
            if (parent.workflow, parent.instance_id) != header.parent_name or number not in kept:
                continue
            new = kept[number][1][len(records) :]
            path = header.instance_id.removeprefix(parent.instance_id + "/")
            return (
                not parent.status.is_terminal
                and not any(isinstance(one, InstanceCompleted | InstanceFailed | InstanceCancelled) for one in new)
                and path in self.ledgers[number].children
            )
        return False

    def is_family_gone(self, header: InstanceHeader, kept: Kept) -> bool:
        """
        Tell whether an instance may be gone because a parent of it is, has forgotten it, or was started once more.
        """
        while header.parent_name is not None:
            if self.is_orphan(header.instance_id):
                return True
            if header.parent_name in self.may_vanish | self.may_lose_children:
                return True
            if WORKFLOWS[header.parent_name[0]] is not None:
                # Its retention may have been over, and it may have been started once more, and ended again.
                return True
            if any(
                number > header.number and (one.workflow, one.instance_id) == header.parent_name
                for number, (one, _) in kept.items()
            ):
                return True
            parents = [one for one, _ in self.kept.values() if (one.workflow, one.instance_id) == header.parent_name]
            if not parents:
                return False
            (header,) = parents
        return False

    def find_orphans(self, kept: Kept, by_name: dict[Name, int]) -> Iterator[str]:
        for header, _ in kept.values():
            if header.parent_name is not None:
                parent = by_name.get(header.parent_name)
                path = header.instance_id.removeprefix(header.parent_name[1] + "/")
                if parent is None or path not in self.ledgers[parent].children:
                    yield header.instance_id

    def is_orphan(self, instance_id: str) -> bool:
        return any(is_within(instance_id, orphan) for orphan in self.orphans)

    def fold(self, header: InstanceHeader, records: list[InstanceRecord]) -> Ledger:
        first = records[0]
        assert isinstance(first, InstanceStarted)
        given = json.loads(first.input.data)[0]["value"]
        ledger = Ledger((header.workflow, header.instance_id), self.world.programs[given], self.openings)
        for record in records[1:]:
            try:
                ledger.take(record)
            except (AssertionError, Incomplete, Fails, KeyError) as error:
                error.add_note(f"at {record}")
                error.add_note(f"of {ledger.name}: {ledger.program}")
                for one in records:
                    error.add_note(f"  {brief(one)}")
                raise
        return ledger

    def check_seen(self, kept: Kept, by_name: dict[Name, int]) -> None:
        """
        What a body was given is recorded.
        """
        for workflow, instance_id, path, outcome in self.world.seen:
            number = by_name.get((workflow, instance_id))
            parents = (parent_id for _, parent_id in self.may_lose_children)
            if self.is_orphan(instance_id) or any(instance_id.startswith(parent_id + "/") for parent_id in parents):
                # It may have been forgotten since.
                continue
            if number is None:
                assert (workflow, instance_id) in self.may_vanish or self.was_or_may_be_gone((workflow, instance_id))
                continue
            records = kept[number][1]
            recorded = [outcome_of(one) for one in records if getattr(one, "path", None) == path]
            assert outcome in recorded, (
                f"{workflow}/{instance_id}:{path} was given {outcome}; {[brief(one) for one in records]}"
            )

    def was_or_may_be_gone(self, name: Name) -> bool:
        # A child that is forgotten runs before it is known here.
        return "/" in name[1] or WORKFLOWS[name[0]] is not None

    def check_calls(self, kept: Kept, *, is_doubtful: bool) -> None:
        """
        At most one call of a step in a session was in vain; what has an outcome is not called again.

        Where it is doubtful what of the session was lost, that is only noted for the next one.
        """
        world = self.world
        world.done.clear()
        for number, (header, records) in kept.items():
            old = len(self.kept[number][1]) if number in self.kept else 0
            ledger = self.ledgers[number]
            name = header.workflow, header.instance_id
            new = records[old:]
            resumes = sum(isinstance(one, InstanceResumed) for one in new)
            journal = journal_of(records)
            for path, op in ops_of(ledger.program).items():
                step_id = world.step_ids.get((*name, path))
                if step_id is None or world.owners[step_id] != (number, journal.generation(path)):
                    # What is known is of another of its name: of one that is gone while this one has not got there, or
                    # of one that a power cut took, while it brought this older one back.
                    continue
                if path in ledger.memos:
                    world.done.add(step_id)
                if is_once(op) or is_doubtful:
                    continue
                recorded = sum(
                    isinstance(one, StepCompleted | StepFailed | AttemptFailed) and one.path == path for one in new
                )
                calls = world.session_calls.get(step_id, 0)
                assert calls <= recorded + 1 + resumes, f"{name}:{path} was called {calls} times, {recorded} recorded"
                if path in ledger.compensations and calls:
                    assert ledger.begun is not None, f"{name}:{path} compensated for nothing"

    def check_signals(self, kept: Kept, by_name: dict[Name, int]) -> None:
        """
        What was acknowledged is there, once; what was refused is nowhere.
        """
        for sent in self.sent:
            number = by_name.get(sent.name)
            if number is None or self.is_orphan(sent.name[1]):
                continue
            found = [
                one.path
                for one in kept[number][1]
                if isinstance(one, SignalReceived | SignalKept) and json.loads(one.value.data) == sent.payload
            ]
            if sent.told == "delivered":
                assert found == [sent.path], f"{sent}: {found}"
            elif sent.told is not None:
                assert not found, f"{sent}: {found}"
            else:
                assert len(found) <= 1

    def check_family(self, header: InstanceHeader, ledger: Ledger, by_name: dict[Name, int], kept: Kept) -> None:
        """
        Children of what has failed or was cancelled do not go on.
        """
        if not isinstance(ledger.ending, InstanceFailed | InstanceCancelled):
            return
        for path, workflow in ledger.children.items():
            number = by_name.get((workflow, f"{header.instance_id}/{path}"))
            if number is not None and self.ledgers[number].name not in self.revived:
                child = kept[number][0]
                assert child.status.is_terminal or child.cancel_requested, f"{child} was left running"

    def check_rest(self, header: InstanceHeader, ledger: Ledger, by_name: dict[Name, int], kept: Kept) -> None:
        """
        After a session that nothing cut short, nothing runs, nothing is overdue, and what is blocked has a reason.
        """
        name = ledger.name
        assert header.status.is_terminal or header.status in REST, f"{name} is left {header.status}"
        if header.status is MetadataStatus.BLOCKED:
            assert ledger.blocked is not None
            reason = ledger.blocked.error
            assert self.is_reason(ledger, reason.type, reason.message), f"{name} is blocked by {reason}"
        if header.status is MetadataStatus.SUSPENDED:
            assert header.wake_at is None or header.wake_at >= self.now - LATE_S, f"{name} is overdue"
            if header.key in ledger.children:
                child = by_name.get((ledger.children[header.key], f"{header.instance_id}/{header.key}"))
                assert child is not None
                assert not kept[child][0].status.is_terminal, f"{name} waits for {header.key}, which has ended"

    def is_reason(self, ledger: Ledger, error_type: str, message: str) -> bool:
        if error_type.endswith("OutcomeUnknownError"):
            return bool(ledger.intents)
        if self.weather.defect is not None and error_type.endswith(DEFECT_ERRORS[self.weather.defect]):
            return True
        if error_type.endswith("RecoveryLimitError"):
            return self.max_recoveries < MANY_RECOVERIES
        return error_type.endswith("MisuseError") and "is not registered" in message and self.openings[-1][1]


#: What wrong code is blocked with. With other outcomes in its hands, it may also fail where it did not before: such an
#: exception is no recorded failure, and memos lie unasked, so that blocks it, too.
DEFECT_ERRORS = {
    "types": ("TypeMismatchError", "builtins.LookupError"),
    "compensations": ("CompensationLostError", "builtins.LookupError"),
}
#: How often an opening alone is cut short as well.
OPENING_CUTS = 0.2
#: How often the store is opened a second time to be compared with what the first has shown.
REOPENINGS = 0.25


def copy_of(header: InstanceHeader) -> InstanceHeader:
    return attrs.evolve(header)


def forgets(record: InstanceRecord) -> bool:
    return isinstance(record, InstanceResumed) and bool(record.anew or record.forgotten)


def is_superseded(record: InstanceRecord, records: list[InstanceRecord]) -> bool:
    """
    Tell whether an outcome was forgotten by a later one of those records, so that it need not be kept any longer.
    """
    if not isinstance(record, StepCompleted | SignalReceived | BranchCompleted | CallCompleted):
        return False
    return any(
        isinstance(later, InstanceResumed)
        and later.seq > record.seq
        and (later.anew or any(is_within(record.path, one) or is_within(one, record.path) for one in later.forgotten))
        for later in records
    )


def outcome_of(record: InstanceRecord) -> Any:
    match record:
        case StepCompleted():
            return json.loads(record.value.data)
        case StepFailed():
            return ["failed", record.error.message]
        case SignalReceived() | SignalKept():
            return ["signal", json.loads(record.value.data)]
        case _:
            return None


def brief(record: InstanceRecord) -> str:
    """
    Return a record in short.
    """
    what = type(record).__name__
    at = record.at - ORIGIN_UNIX_S
    path = getattr(record, "path", None)
    rest = [
        f"{field}={value - ORIGIN_UNIX_S:g}"
        if field in ("deadline", "wake_at", "next_attempt_at")
        else f"{field}={value}"
        for field in ("deadline", "wake_at", "next_attempt_at", "attempt", "expired", "cleared", "forgotten", "anew")
        if (value := getattr(record, field, None)) not in (None, (), False)
    ]
    return f"{at:g} {what} {path or ''} {' '.join(rest)}"
