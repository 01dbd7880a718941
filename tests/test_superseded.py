"""
Tests of what compaction may leave out of a journal: without it, everything is known that was known with it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

import memable
from memable._header import InstanceHeader, header_of
from memable._journal import Journal, journal_of
from memable._records import (
    BranchCompleted,
    BranchStarted,
    CallCompleted,
    InstanceFailed,
    InstanceRecord,
    InstanceResumed,
    InstanceStarted,
    SignalReceived,
    StepCompleted,
    StepFailed,
)
from memable._superseded import superseded
from programs import Program, Suspend, World, ops_of, programs
from property.test_journal_properties import STARTED, histories
from sample_histories import VALUE, history


def known_of(records: Sequence[InstanceRecord]) -> tuple[InstanceHeader, Journal, dict[str, set[str]]]:
    """Return all that is known of an instance, and what of it lies below what: journals compare without that."""
    started, *rest = records
    assert isinstance(started, InstanceStarted)
    header, journal = header_of(started), journal_of(records)
    for record in rest:
        header.apply(record)
    known = journal.known_paths()
    below = {path: {one for one in journal._below.get(path, ()) if one in known} for path in known}
    return header, journal, {path: ones for path, ones in below.items() if ones}


def without(records: Sequence[InstanceRecord]) -> list[InstanceRecord]:
    """Return what is left of a journal."""
    dead = superseded(records)
    assert dead == sorted(set(dead))
    return [record for at, record in enumerate(records) if at not in set(dead)]


def check(records: Sequence[InstanceRecord]) -> int:
    """Check that nothing is lost, neither now nor for what follows; return how many records need not be kept."""
    left = without(records)
    assert known_of(left) == known_of(records)
    assert without(left) == left
    return len(records) - len(left)


@given(histories())
def test_nothing_is_known_less_without_superseded_records(records: list[Any]):
    """The fold of what is left is the fold of all, for any history."""
    check([STARTED, *records])


@pytest.mark.slow
@given(histories(), histories(), st.data())
def test_what_follows_means_the_same_without_superseded_records(
    records: list[Any], more: list[Any], data: st.DataObject
):
    """Whatever is recorded later, resumes included, means the same behind what is left as behind all."""
    whole = [STARTED, *records]
    count = data.draw(st.integers(1, len(whole)))
    seq = whole[-1].seq
    follows = [*whole[count:], *(attrs.evolve(record, seq=seq + record.seq) for record in more)]
    left = [*without(whole[:count]), *follows]
    try:
        known = known_of([*whole[:count], *follows])
    except ValueError:
        # Those two do not follow each other.
        return
    assert known_of(left) == known


FORGET_F = (InstanceResumed, {"forgotten": ("f",)})


@pytest.mark.parametrize(
    ("kinds", "count"),
    [
        # What was forgotten goes, however often; what nobody forgot, or was recorded later, stays.
        ([(StepCompleted, {"path": "k"}), InstanceResumed], 0),
        ([(StepCompleted, {"path": "k"}), (InstanceResumed, {"forgotten": ("k",)})], 1),
        ([(InstanceResumed, {"forgotten": ("k",)}), (StepCompleted, {"path": "k"})], 0),
        ([(StepCompleted, {"path": "kk"}), (InstanceResumed, {"forgotten": ("k",)})], 0),
        ([*[(StepCompleted, {"path": "k"}), (InstanceResumed, {"forgotten": ("k",)})] * 3], 3),
        # A status that was told stays told.
        ([(StepCompleted, {"path": "k", "status": "done"}), (InstanceResumed, {"forgotten": ("k",)})], 0),
        # Failures are small, and may tell why.
        ([(StepFailed, {"path": "k"}), (InstanceResumed, {"forgotten": ("k",)})], 0),
        # With a fan-out its children go, with a child the fan-out's own items stay known.
        ([(BranchStarted, {"path": "f/0"}), (StepCompleted, {"path": "f/0/k"}), FORGET_F], 1),
        ([(BranchStarted, {"path": "f/0"}), (BranchCompleted, {"path": "f/0"}), FORGET_F], 1),
        ([(BranchCompleted, {"path": "f/0", "digest": "d"}), FORGET_F], 1),
        ([(BranchCompleted, {"path": "f/0", "digest": "d"}), (InstanceResumed, {"forgotten": ("f/0",)})], 0),
        ([(BranchCompleted, {"path": "f/0", "digest": "d"}), (InstanceResumed, {"forgotten": ("f/0/k",)})], 0),
        ([(BranchCompleted, {"path": "f/0"}), (InstanceResumed, {"forgotten": ("f/0/k",)})], 1),
        ([(BranchCompleted, {"path": "f/0"}), (InstanceResumed, {"forgotten": ("f/1",)})], 0),
        # Anew, all goes.
        (
            [
                (StepCompleted, {"path": "k"}),
                (SignalReceived, {"path": "w"}),
                (CallCompleted, {"path": "c"}),
                (BranchCompleted, {"path": "f/0", "digest": "d"}),
                InstanceFailed,
                (InstanceResumed, {"anew": True}),
                (StepCompleted, {"path": "k"}),
            ],
            4,
        ),
    ],
)
def test_outcomes_that_were_forgotten_go(kinds: list[Any], count: int):
    """An outcome may go if nothing asks for it any more, and if it says nothing else."""
    assert check(history(*kinds)) == count


def test_very_many_forgotten_paths_are_told_fast():
    """A fan-out of many children may be forgotten child by child."""
    paths = [f"f/{index}" for index in range(20_000)]
    kinds: list[Any] = [(BranchCompleted, {"path": path, "value": VALUE}) for path in paths]
    records = history(*kinds, (InstanceResumed, {"forgotten": tuple(paths)}))
    begun = time.perf_counter()
    assert len(superseded(records)) == len(paths)
    assert time.perf_counter() - begun < 5


# Real histories ----------------------------------------------------------------------------------------------------


async def play(program: Program, resumes: Sequence[tuple[list[int], bool]]) -> list[list[InstanceRecord]]:
    """Run a program, resume it again and again with something to forget, and return the journals of all instances."""
    world = World()
    store = memable.InMemoryStore()
    async with memable.open_engine(store, workflows=world.workflows().values(), retention=None) as engine:
        await engine.invoke("w", world.number(program), instance_id="i")
        for payload, (forget, anew) in enumerate(resumes):
            await trio.sleep(200)
            await signal(engine, program, payload)
            await trio.sleep(200)
            entries = await engine.history("w", "i")
            paths = sorted({path for entry in entries if (path := entry.key) is not None})
            chosen = tuple(dict.fromkeys(paths[at % len(paths)] for at in forget)) if paths and not anew else ()
            with suppress(memable.MemableError):
                await engine.resume("w", "i", forget=chosen, anew=anew)
        await trio.sleep(200)
        with trio.CancelScope() as scope:
            scope.cancel()
            await engine.stop()
    journals: dict[int, list[InstanceRecord]] = {}
    for record in store._records:
        journals.setdefault(record.instance, []).append(record)
    return list(journals.values())


async def signal(engine: memable.Engine, program: Program, payload: int) -> None:
    """Send a signal to wherever the program waits."""
    for path, op in ops_of(program).items():
        if isinstance(op, Suspend):
            within, _, key = path.rpartition("/")
            with suppress(memable.MemableError):
                await engine.signal("w", "i", memable.SuspendPoint(key, int), payload, within=within or None)


@settings(max_examples=60)
@given(programs, st.lists(st.tuples(st.lists(st.integers(0, 30), max_size=3), st.booleans()), min_size=1, max_size=3))
def test_real_histories_are_known_as_well_without_superseded_records(
    program: Program, resumes: list[tuple[list[int], bool]]
):
    """What engines have recorded of all kinds of work folds to the same without what was forgotten."""
    for records in trio.run(play, program, resumes, clock=MockClock(autojump_threshold=0)):
        check(records)
