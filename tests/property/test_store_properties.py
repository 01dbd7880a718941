"""
Stores against a model: whatever is called in whatever order, and whenever the power is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs
import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st

from memable import FileStore, InMemoryStore, StorageError
from memable._clock import current_clock
from memable._records import InstanceRecord
from memable._store._protocol import OpenStore, Store
from memable._testing._simulated_disk import Choose, PowerCutError, SimulatedDisk, lose_all, lose_nothing
from sample_records import completed, resumed, retired, started, step

PATH = Path("/store")

Journals = dict[int, list[InstanceRecord]]


async def journals(store: OpenStore) -> Journals:
    return {header.number: list(await store.load(header.number)) for header in await store.headers()}


def run(fn: object, *args: object) -> object:
    return trio.run(fn, *args, clock=trio.testing.MockClock(autojump_threshold=0))  # type: ignore[arg-type]  # any


# Memory and files answer alike -------------------------------------------------------------------------------------


@attrs.frozen
class Start:
    """Starts an instance, by a name that may be taken."""

    name: str


@attrs.frozen
class Append:
    """Appends records to instances, with sequence numbers that may be wrong by some."""

    records: tuple[tuple[str, int, int], ...]
    "Kind, number of the instance, and error in its sequence number."


@attrs.frozen
class Replace:
    """Retires the instance of a name, and starts another of that name in the same append."""

    name: str


@attrs.frozen
class Reopen:
    """Closes the store and opens it again."""


_names = st.sampled_from(["a", "b", "c", "d"])
_off_by = st.integers(-1, 1) | st.just(0)
_calls = (
    st.builds(Start, _names)
    | st.builds(Replace, _names)
    | st.builds(
        Append,
        st.lists(
            st.tuples(
                st.sampled_from(["step", "completed", "resumed", "retired", "started"]), st.integers(1, 4), _off_by
            ),
            max_size=3,
        ).map(tuple),
    )
    | st.builds(Reopen)
)

_Call = Start | Replace | Append | Reopen

_MAKERS = {"step": step, "completed": completed, "resumed": resumed, "retired": retired}


def _records(call: Append, headers: dict[int, int]) -> list[InstanceRecord]:
    seqs = dict(headers)
    records: list[InstanceRecord] = []
    for kind, number, error in call.records:
        seqs[number] = seqs.get(number, 0) + 1 + error
        records.append(started(number) if kind == "started" else _MAKERS[kind](number, seqs[number]))
    return records


async def _answer(store: OpenStore, call: Start | Replace | Append) -> object:
    try:
        if isinstance(call, Start):
            number = await store.allocate_number()
            await store.append([started(number, name=call.name)])
        elif isinstance(call, Replace):
            header = await store.find("w", call.name)
            before = [] if header is None else [retired(header.number, header.seq + 1)]
            await store.append([*before, started(await store.allocate_number(), name=call.name)])
        else:
            await store.append(_records(call, {header.number: header.seq for header in await store.headers()}))
    except ValueError as exc:
        return str(exc)
    return None


async def _answers(store: Store, calls: Sequence[_Call]) -> list[object]:
    """Return all that a store answers to *calls*."""
    answers: list[object] = []
    rest = list(calls)
    while True:
        async with store.open(current_clock()) as opened:
            answers.append((opened.session, opened.after_crash))
            answers.append(await journals(opened))
            while rest and not isinstance(rest[0], Reopen):
                call = rest.pop(0)
                assert not isinstance(call, Reopen)
                answers.append(await _answer(opened, call))
                answers.append(
                    [attrs.astuple(header, filter=lambda field, _: field.eq) for header in await opened.headers()]
                )
            answers.append(await journals(opened))
        if not rest:
            return answers
        rest.pop(0)


@given(st.lists(_calls, max_size=20))
@example(
    [Start("a"), Append((("completed", 1, 0),)), Append((("step", 1, 0),)), Reopen(), Append((("resumed", 1, 0),))]
)
@example(
    # The only instance is retired: its number is not given out again, not even after a reopening.
    [
        Start("a"),
        Append((("completed", 1, 0), ("retired", 1, 0), ("resumed", 1, 0))),
        Append((("completed", 1, 0), ("retired", 1, 0))),
        Append((("resumed", 1, 0),)),
        Reopen(),
        Start("a"),
    ]
)
@example([Start("a"), Append((("completed", 1, 0),)), Replace("a"), Append((("step", 2, 0),)), Reopen()])
def test_memory_and_file_answer_alike(calls: list[_Call]):
    """Every sequence of calls and reopenings has the same answers from every store."""
    disk = SimulatedDisk()
    in_file = run(_answers, FileStore(PATH, disk=disk), calls)
    assert in_file == run(_answers, InMemoryStore(), calls)
    assert in_file == run(_answers, FileStore(PATH, "os", disk=SimulatedDisk(max_write_bytes=50)), calls)


# Power cuts --------------------------------------------------------------------------------------------------------


@attrs.define
class Model:
    """What an ideal store holds, and what may have been written without being acknowledged."""

    held: Journals = attrs.field(factory=dict)
    open_appends: list[list[InstanceRecord]] = attrs.field(factory=list)
    acknowledged_order: list[list[InstanceRecord]] = attrs.field(factory=list)

    def acknowledge(self, records: list[InstanceRecord]) -> None:
        self.open_appends.remove(records)
        self.acknowledged_order.append(records)
        for record in records:
            self.held.setdefault(record.instance, []).append(record)

    def accept(self, found: Journals) -> None:
        """Check what a recovery found, and go on from there."""
        for number, records in self.held.items():
            assert found.get(number, [])[: len(records)] == records
        all_found = [record for records in found.values() for record in records]
        for records in self.open_appends:
            present = [record in all_found for record in records]
            assert all(present) or not any(present)
        held = sum(map(len, self.held.values()))
        assert len(all_found) <= held + sum(map(len, self.open_appends))
        self.held = {number: list(records) for number, records in found.items()}
        self.open_appends.clear()


async def _append(store: OpenStore, model: Model, records: list[InstanceRecord]) -> None:
    model.open_appends.append(records)
    await store.append(records)
    model.acknowledge(records)


async def _work(store: OpenStore, model: Model, rounds: list[list[int]]) -> None:
    """Append in rounds; in each, to several instances at once, from 1 to 3 records to each."""
    model.accept(await journals(store))
    for sizes in rounds:
        async with trio.open_nursery() as nursery:
            for index, size in enumerate(sizes):
                header = await store.find("w", f"i{index + 1}")
                number = index + 1 if header is None else header.number
                base = 0 if header is None else header.seq
                while header is None and await store.allocate_number() < number:
                    pass
                records: list[InstanceRecord] = [
                    step(number, seq, b"%d" % 7 ** (seq * 31)) if seq > 1 else started(number)
                    for seq in range(base + 1, base + size + 1)
                ]
                nursery.start_soon(_append, store, model, records)


async def _session(disk: SimulatedDisk, durability: str, model: Model, rounds: list[list[int]]) -> None:
    async with FileStore(PATH, durability, disk=disk).open(current_clock()) as opened:
        await _work(opened, model, rounds)


def _was_cut(disk: SimulatedDisk, durability: str, model: Model, rounds: list[list[int]]) -> bool:
    try:
        run(_session, disk, durability, model, rounds)
    except* (StorageError, PowerCutError):
        pass
    return disk.is_off


_rounds = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3), max_size=4)
_sessions = st.lists(st.tuples(_rounds, st.integers(0, 60), st.booleans()), min_size=1, max_size=4)


def _chooser(data: st.DataObject) -> Choose:
    kind = data.draw(st.sampled_from(["all", "nothing", "any"]))
    if kind == "any":
        return lambda count: data.draw(st.integers(0, count - 1))
    return lose_all if kind == "all" else lose_nothing


@given(_sessions, st.data())
def test_what_was_acknowledged_survives_every_power_cut(
    sessions: list[tuple[list[list[int]], int, bool]], data: st.DataObject
):
    """Cut at any call, also of a recovery, again and again: all acknowledged is there, each append whole or absent."""
    disk, model = SimulatedDisk(), Model()
    for rounds, cut_at, is_kill in sessions:
        disk.cut_at = cut_at
        if _was_cut(disk, "fsync", model, rounds) or not is_kill:
            disk = disk.kill() if is_kill else disk.power_cut(_chooser(data))
        else:
            disk = disk.kill()
    run(_session, disk, "fsync", model, [[1]])
    held = model.held
    # Opening changes nothing; nor does a power cut after an orderly end.
    for _ in range(2):
        run(_session, disk, "fsync", model, [])
        assert model.held == held
        disk = disk.power_cut(lose_all)


@given(_rounds, st.integers(0, 80), st.data())
def test_os_session_keeps_a_prefix_at_every_power_cut(rounds: list[list[int]], cut_at: int, data: st.DataObject):
    """Without a sync of each batch, a power cut may lose the newest appends, but leaves no hole and no half append."""
    disk, model = SimulatedDisk(cut_at=cut_at), Model()
    _was_cut(disk, "os", model, rounds)
    appends = [*model.acknowledged_order, *model.open_appends]
    disk = disk.power_cut(_chooser(data))

    async def read() -> Journals:
        async with FileStore(PATH, "os", disk=disk).open(current_clock()) as opened:
            return await journals(opened)

    found = run(read)
    assert isinstance(found, dict)
    kept = [all(record in found.get(record.instance, ()) for record in records) for records in appends]
    some = [any(record in found.get(record.instance, ()) for record in records) for records in appends]
    assert kept == some
    # Appends of one round may be written in another order than they were made; rounds may not.
    for number, records in found.items():
        made = [record for appended in appends for record in appended if record.instance == number]
        assert records == made[: len(records)]


@given(_rounds, st.integers(0, 80))
def test_killed_process_loses_nothing_acknowledged_in_an_os_session(rounds: list[list[int]], cut_at: int):
    """Without syncs, too, what was acknowledged survives the death of the process at any call."""
    disk, model = SimulatedDisk(cut_at=cut_at), Model()
    _was_cut(disk, "os", model, rounds)
    run(_session, disk.kill(), "os", model, [])
