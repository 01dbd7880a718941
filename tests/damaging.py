"""
Stores of several segments, made by real engines, and what may happen to their files.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import trio
import trio.testing
from hypothesis import strategies as st

import memable
from memable._disk import RealDisk
from memable._records import InstanceRecord
from memable._store._snapshot import read_store

ASK = memable.SuspendPoint("ask:v1", int)

#: Instance id and key of each step that has run, in order.
ran: list[tuple[str, str]] = []


async def mark(instance_id: str, key: str, size: int) -> str:
    ran.append((instance_id, key))
    return "x" * size


@memable.workflow(name="kid")
async def kid(ctx: memable.Context, number: int) -> int:
    await ctx.step("k", mark, ctx.instance_id, "k", 20)
    return number


@memable.workflow(name="work")
async def work(ctx: memable.Context, number: int) -> int:
    for index in range(3):
        await ctx.step(f"s{index}", mark, ctx.instance_id, f"s{index}", 30)
    await ctx.step("pay", mark, ctx.instance_id, "pay", 5, once=True)
    if number % 3 == 0:
        await ctx.call("kid", kid, number)
    if number % 2:
        await ctx.suspend(ASK)
        await ctx.step("after", mark, ctx.instance_id, "after", 5)
    return number


@memable.workflow(name="brief", retention=10)
async def brief(ctx: memable.Context, number: int) -> int:
    await ctx.step("s", mark, ctx.instance_id, "s", 200)
    return number


WORKFLOWS = (kid, work, brief)


async def fill(store: memable.FileStore, count: int) -> None:
    """
    Run many instances, in two sessions. Some end, some of those are removed, some wait.
    """
    for session in range(2):
        async with memable.open_engine(store, workflows=WORKFLOWS) as engine:
            for number in range(session * count, session * count + count):
                for copy in range(2):
                    await engine.invoke(brief, number, instance_id=f"b{number}-{copy}")
                await engine.invoke(work, number, instance_id=f"w{number}")
                await trio.sleep(1)
            for number in range(session * count + 1, session * count + count, 4):
                await engine.signal(work, f"w{number}", ASK, 7)
            await trio.sleep(1 if session else 30)


def make_store(
    directory: Path, *, segment_bytes: int = 2000, count: int = 4, durability: Literal["fsync", "os"] = "fsync"
) -> Path:
    """
    Return a store in that directory, filled and closed.
    """
    store = memable.FileStore(directory, durability, segment_bytes=segment_bytes)
    trio.run(fill, store, count, clock=trio.testing.MockClock(autojump_threshold=0))
    return directory


def copy_store(store: Path, to: Path) -> Path:
    """
    Return a copy of a store, in place of what was there.
    """
    for left in (to, to.with_name(f"{to.name}.repaired"), to.with_name(f"{to.name}.repaired.tmp")):
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(store, to)
    return to


def logs_of(store: Path) -> list[Path]:
    """
    Return the files of a store's log, in order.
    """
    return sorted(store.glob("*.log"))


def journals_of(store: Path) -> dict[int, tuple[bool, list[InstanceRecord]]]:
    """
    Return, by number, whether each instance has ended, and its journal.
    """
    with read_store(RealDisk(), store) as snapshot:
        return {
            header.number: (header.completed_at is not None, snapshot.load(header.number))
            for header in snapshot.index.select()
        }


def lines_of(store: Path) -> set[bytes]:
    """
    Return all lines of a store's log.
    """
    return {line for path in logs_of(store) for line in path.read_bytes().split(b"\n")}


Damage: TypeAlias = tuple[str, int, int]
"What happens, to which file, and where in it. Both numbers are taken as shares, of a million."

SHARE = 1_000_000
SECTOR = 512

#: What a disk does to files.
DAMAGES = st.lists(
    st.tuples(
        st.sampled_from(("flip", "zero", "cut", "remove", "header")),
        st.integers(0, SHARE - 1),
        st.integers(0, SHARE - 1),
    ),
    min_size=1,
    max_size=3,
)


def damage(store: Path, damages: Sequence[Damage], *, only: Sequence[str] | None = None) -> None:
    """
    Damage the log of a store.
    """
    logs = [path for path in logs_of(store) if only is None or path.name in only]
    for what, which, where in damages:
        path = logs[which * len(logs) // SHARE]
        if not path.exists():
            continue
        content = bytearray(path.read_bytes())
        size = content.find(b"\n") + 1 if what == "header" else len(content)
        at = where * size // SHARE
        if what == "remove":
            path.unlink()
            continue
        if what == "cut":
            del content[at:]
        elif what == "zero":
            start = at - at % SECTOR
            content[start : start + SECTOR] = bytes(len(content[start : start + SECTOR]))
        elif size:
            content[at] ^= 1 << where % 8
        path.write_bytes(content)
