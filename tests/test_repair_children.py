"""
Repairing a store in which an instance waits for a child that is lost: resumed, it starts the child again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import memable
from memable._cli._repairing import print_repair, print_repair_json
from memable._disk import RealDisk
from memable._store._repair import Repair, repair_store
from memable._store._verify import verify_store
from showing import say

NOW = 2_000_000_000.0
GO = memable.SuspendPoint("go:v1", bool)

#: What has run, in order.
ran: list[str] = []


async def mark(what: str) -> None:
    ran.append(what)


@memable.workflow(name="kid")
async def kid(ctx: memable.Context, number: int) -> int:
    await ctx.step("k", mark, f"kid {number}")
    await ctx.suspend(GO)
    return number


@memable.workflow(name="caller")
async def caller(ctx: memable.Context) -> int:
    await ctx.compensate("undo", mark, "undo")
    await ctx.step("first", mark, "first")
    return await ctx.call("kid", kid, 1)


@memable.workflow(name="fanner")
async def fanner(ctx: memable.Context) -> list[int]:
    await ctx.compensate("undo", mark, "undo")
    await ctx.step("first", mark, "first")
    return await ctx.fan_out("kids", kid, [1, 2])


WORKFLOWS = (kid, caller, fanner)


async def run(
    store: Path, workflow: memable.Workflow[[memable.Context], Any], *, resumes: bool, signals: Sequence[str]
) -> None:
    async with memable.open_engine(store, workflows=WORKFLOWS) as engine:
        if not resumes:
            await engine.invoke(workflow, instance_id="p")
            ended = await engine.invoke(kid, 98, instance_id="ended")
            await ended.wait()
            await engine.signal(kid, "ended", GO, True)
            await ended.result()
            await (await engine.invoke(kid, 99, instance_id="other")).wait()
        else:
            await trio.sleep(1)
            assert ran == []
            for metadata in await engine.list_instances(status=memable.MetadataStatus.BLOCKED):
                await engine.resume(metadata.workflow_name, metadata.instance_id)
        await trio.sleep(1)
        for instance_id in signals:
            await engine.signal(kid, instance_id, GO, True)
        if signals:
            await (await engine.get(workflow, "p")).result()


def damage_start(store: Path, instance_id: str, *, bits: int) -> None:
    """Damage the record of the start of a child: by one flipped bit, which explains it, or beyond recognition."""
    (path,) = store.glob("*.log")
    content = bytearray(path.read_bytes())
    start = content.rindex(b"\n", 0, content.index(b'"instance_id":"%b"' % instance_id.encode())) + 1
    for at in range(bits):
        content[start + 20 + at * 3] ^= 1
    path.write_bytes(content)


def lines_of(repair: Repair) -> list[str]:
    out = io.StringIO()
    print_repair(out, repair)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("bits", [1, 9])
@pytest.mark.parametrize(("workflow", "child"), [(caller, "p/kid"), (fanner, "p/kids/0")])
def test_repair_without_a_child_has_its_parent_start_it_again(
    workflow: memable.Workflow[[memable.Context], Any], child: str, bits: int, tmp_path: Path
):
    """
    An instance that waits for a child that is lost is blocked; resumed, it undoes nothing, and starts the child again.
    """
    store = tmp_path / "store"
    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(lambda: run(store, workflow, resumes=False, signals=()), clock=clock)
    damage_start(store, child, bits=bits)
    repair = repair_store(RealDisk(), store, NOW)
    fates = {casualty.name: casualty for casualty in repair.casualties}
    assert fates[workflow.name, "p"].fate == "blocked"
    assert "resumed, it starts it again" in fates[workflow.name, "p"].told
    assert fates["kid", child].fate == "dropped"
    ran.clear()
    children = [child] if workflow is caller else ["p/kids/0", "p/kids/1"]
    copy = tmp_path / "store.repaired"
    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(lambda: run(copy, workflow, resumes=True, signals=children), clock=clock)
    assert ran == ["kid 1"]
    assert verify_store(RealDisk(), copy).is_sound


@pytest.mark.parametrize(("bits", "count"), [(1, 0), (9, 1)])
def test_repair_warns_of_instances_that_had_ended(bits: int, count: int, tmp_path: Path):
    """
    Where it is not known what was lost, an instance that had ended may have gone on: that is said, with their number.
    """
    store = tmp_path / "store"
    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(lambda: run(store, caller, resumes=False, signals=()), clock=clock)
    damage_start(store, "other", bits=bits)
    repair = repair_store(RealDisk(), store, NOW)
    assert repair.doubtful_count == count
    dropped = [casualty for casualty in repair.casualties if casualty.fate == "dropped"]
    assert [casualty.name for casualty in dropped] == [None if count else ("kid", "other")]
    out = io.StringIO()
    print_repair_json(out, repair)
    tree = json.loads(out.getvalue())
    assert tree["doubtful"] == count
    warned = [line for line in lines_of(repair) if line.startswith("warning: 1 instance that had ended may have gone")]
    assert len(warned) == count
    assert [f"warning: {text}" for text in tree["warnings"]][1:] == warned


def test_show_tells_what_was_lost_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """
    What an instance is blocked by is printed once, though it was never raised and has no traceback.
    """
    store = tmp_path / "store"
    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(lambda: run(store, caller, resumes=False, signals=()), clock=clock)
    damage_start(store, "p/kid", bits=9)
    repair_store(RealDisk(), store, NOW)
    assert say(capsys, "show", tmp_path / "store.repaired", "caller/p").out.count("damaged and repaired") == 1


@memable.workflow(name="forger")
async def forger(ctx: memable.Context) -> None:
    raise ValueError("one\nWARNING  memable: two\x1b[2J")


async def test_text_of_an_error_forges_no_line_of_a_log(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """
    What a workflow failed with is one line of the log, whatever is in it.
    """
    async with memable.open_engine(tmp_path / "store", workflows=[forger]) as engine:
        await (await engine.invoke(forger, instance_id="f")).wait()
    (message,) = [message for message in caplog.messages if "failed" in message]
    assert message.isprintable()
    assert r"one\nWARNING" in message
