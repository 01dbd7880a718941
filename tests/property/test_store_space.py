"""
Stores whose space comes back, against a model: whatever is done, and whenever the power is cut, nothing else changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import attrs
import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st

from checksums import check_checksums
from memable import FileStore, InMemoryStore, StorageError
from memable._clock import current_clock
from memable._records import InstanceRecord
from memable._store._protocol import OpenStore, Store
from memable._testing._simulated_disk import SimulatedDisk, lose_all, lose_nothing
from sample_records import completed, resumed, retired, started, step
from segmented import (
    PATH,
    SEGMENT_BYTES,
    Durability,
    Ledger,
    forgetting,
    journals,
    journals_beside,
    open_on,
    without_checkpoint,
    without_superseded,
)


@attrs.frozen
class Start:
    """Starts an instance, by a name that may be taken; then what has it is retired, if it has ended."""

    name: str
    steps: int


@attrs.frozen
class Work:
    """Appends steps to an instance, and may end it. One that has ended is resumed for that."""

    which: int
    steps: int
    ends: bool


@attrs.frozen
class Forget:
    """Resumes an instance with something to forget, or anew."""

    which: int
    paths: tuple[str, ...]


@attrs.frozen
class Retire:
    """Retires the instances that have ended, but for every so many."""

    but: int


@attrs.frozen
class Maintain:
    """Lets the upkeep go on for so many turns."""

    turns: int


Action: TypeAlias = Start | Work | Forget | Retire | Maintain

actions = st.one_of(
    st.builds(Start, st.sampled_from("abc"), st.integers(0, 9)),
    st.builds(Work, st.integers(0, 5), st.integers(0, 6), st.booleans()),
    st.builds(Work, st.integers(0, 5), st.integers(0, 6), st.just(value=True)),
    st.builds(
        Forget, st.integers(0, 5), st.lists(st.sampled_from([f"s{seq}" for seq in range(2, 9)]), max_size=4).map(tuple)
    ),
    st.builds(Retire, st.integers(1, 4)),
    st.builds(Maintain, st.integers(0, 60) | st.just(1000)),
)


async def records_of(store: OpenStore, action: Start | Work | Forget | Retire) -> list[list[InstanceRecord]]:
    """Return what an action appends, one append after the other."""
    headers = await store.headers()
    match action:
        case Start(name, steps):
            header = await store.find("w", name)
            before: list[InstanceRecord] = []
            if header is not None and header.completed_at is None:
                return []
            if header is not None:
                before = [retired(header.number, header.seq + 1)]
            number = await store.allocate_number()
            first = [*before, started(number, name=name, session=store.session)]
            return [first, *([step(number, seq)] for seq in range(2, steps + 2))]
        case Retire(but):
            ended = [header for header in headers if header.completed_at is not None]
            return [[retired(header.number, header.seq + 1)] for at, header in enumerate(ended) if (at + 1) % (but + 1)]
        case Work() | Forget():
            if not headers:
                return []
            header = headers[action.which % len(headers)]
            number, seq = header.number, header.seq
            if isinstance(action, Forget):
                return [[forgetting(number, seq + 1, *action.paths, anew=not action.paths)]]
            appends: list[list[InstanceRecord]] = []
            if header.completed_at is not None:
                seq += 1
                appends.append([resumed(number, seq)])
            for _ in range(action.steps):
                seq += 1
                appends.append([step(number, seq)])
            if action.ends:
                appends.append([completed(number, seq + 1)])
            return appends


async def maintain(store: OpenStore, turns: int) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.maintain)
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
            if turns == 1000 and trio.lowlevel.current_statistics().tasks_runnable == 0:
                break
        nursery.cancel_scope.cancel()


# Crashes -----------------------------------------------------------------------------------------------------------


@attrs.frozen
class Session:
    """A store is opened, something is done with it, and it is closed, or not."""

    durability: Durability
    is_beside: bool
    "Whether the upkeep goes on beside."
    actions: list[Action]
    cut_at: int | None
    "The number of the call of the disk in whose stead the power is cut."
    loss: int | str
    "``kill``, ``all``, ``nothing``, or a seed."
    deletes: bool
    "Whether somebody deletes the checkpoint before."


sessions = st.builds(
    Session,
    durability=st.sampled_from(["fsync", "fsync", "os"]),
    is_beside=st.booleans(),
    actions=st.lists(actions, max_size=8),
    cut_at=st.none() | st.integers(0, 400),
    loss=st.sampled_from(["kill", "all", "nothing"]) | st.integers(0, 1000),
    deletes=st.sampled_from([False, False, True]),
)


async def work(store: OpenStore, session: Session, ledger: Ledger, disk: SimulatedDisk) -> None:
    async with trio.open_nursery() as nursery:
        if session.is_beside:
            nursery.start_soon(store.maintain)
        for action in session.actions:
            if isinstance(action, Maintain):
                if session.is_beside:
                    await trio.testing.wait_all_tasks_blocked()
                else:
                    await maintain(store, action.turns)
            else:
                for records in await records_of(store, action):
                    await ledger.append(store, *records)
            if disk.cut_at is None:
                ledger.check(await journals(store))
                ledger.check(journals_beside(disk))
        nursery.cancel_scope.cancel()


def survive(disk: SimulatedDisk, loss: int | str) -> SimulatedDisk:
    match loss:
        case "kill":
            return disk.kill()
        case "all":
            return disk.power_cut(lose_all)
        case "nothing":
            return disk.power_cut(lose_nothing)
        case _:
            state = int(loss)

            def choose(count: int) -> int:
                nonlocal state
                state = (state * 1103515245 + 12345) % 2**31
                return (state >> 8) % count

            return disk.power_cut(choose)


def play(story: Sequence[Session]) -> None:
    disk, ledger = SimulatedDisk(), Ledger()
    for session in story:
        if session.deletes:
            disk = without_checkpoint(disk)
        disk.cut_at = None if session.cut_at is None else len(disk.calls) + session.cut_at
        before = ledger.acknowledged
        try:
            open_on(disk, partial(work, session=session, ledger=ledger, disk=disk), session.durability)
        except* StorageError:
            assert disk.is_off
        is_lost = session.durability == "os" and session.loss != "kill" and disk.is_off
        disk = survive(disk, session.loss)
        if PATH not in disk.directories or not any(path.suffix == ".log" for path in disk.shown):
            assert not ledger.acknowledged or is_lost
            ledger.appends.clear()
            ledger.acknowledged = 0
            disk = SimulatedDisk()
            continue
        check_checksums(disk)
        found = open_on(disk.copy(), journals, session.durability)
        count = ledger.check(found, least=before if is_lost else None)
        for other in (disk.copy(), without_checkpoint(disk)):
            assert without_superseded(journals_beside(other)) == without_superseded(found)
            assert without_superseded(open_on(other, journals)) == without_superseded(found)
        del ledger.appends[count:]
        ledger.acknowledged = count


@settings(max_examples=60)
@given(st.lists(sessions, min_size=1, max_size=4))
@example(
    # Two instances of one name, one after the other, over several segments that are compacted one by one.
    [
        Session(
            "fsync", False, [Start("a", 9), Work(0, 6, ends=True), Start("a", 9), Maintain(1000)], None, "kill", False
        ),
        Session("os", True, [Work(0, 6, ends=True), Retire(4), Start("a", 2), Maintain(1000)], None, "all", True),
        Session("fsync", True, [Work(0, 6, ends=True), Retire(1), Maintain(1000)], 200, "all", False),
    ]
)
def test_space_comes_back_and_nothing_else_changes(story: list[Session]):
    """Whatever is appended, retired, forgotten, compacted, cut short and deleted, the journals are the model's."""
    play(story)


# Memory and files --------------------------------------------------------------------------------------------------


async def answers(store: OpenStore) -> dict[str, Any]:
    """Return all that a store can be asked."""
    headers = await store.headers()
    ended = [header for header in headers if header.completed_at is not None]
    return {
        "session": (store.session, store.after_crash),
        "headers": [attrs.astuple(header, filter=lambda field, _: field.eq) for header in headers],
        "pages": [
            [header.number for header in await store.headers(after=after, limit=2, workflow="w")] for after in (0, 2, 5)
        ],
        "live": [header.number for header in await store.live()],
        "ended": [[header.number for header in await store.ended("w", until=until, limit=3)] for until in (999, 1e9)],
        "first": (await store.first_end("w"), await store.first_end("v")),
        "found": [await store.find("w", name) is not None for name in "abcd"],
        "statuses": [len(await store.headers(status=header.status)) for header in ended[:1]],
        "journals": without_superseded(await journals(store)),
    }


async def told(store: Store, story: Sequence[list[Action]]) -> list[object]:
    found: list[object] = []
    for session in story:
        async with store.open(current_clock()) as opened:
            found.append(await answers(opened))
            for action in session:
                if isinstance(action, Maintain):
                    await maintain(opened, min(action.turns, 120))
                else:
                    for records in await records_of(opened, action):
                        await opened.append(records)
                found.append(await answers(opened))
    return found


@settings(max_examples=50)
@given(st.lists(st.lists(actions, max_size=10), min_size=1, max_size=3))
def test_memory_and_files_answer_alike_whatever_is_compacted(story: list[list[Action]]):
    """Upkeep changes no answer: a store in files says what one in memory says, but for what was superseded."""

    def run(store: Store) -> list[object]:
        return trio.run(told, store, story, clock=trio.testing.MockClock(autojump_threshold=0))

    in_files = run(FileStore(PATH, segment_bytes=SEGMENT_BYTES, disk=SimulatedDisk()))
    assert in_files == run(InMemoryStore())
