"""
Tests with a store that the first release wrote: such stores open for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from decimal import Decimal
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

import format_1_workflows as first_release
import memable
from memable import FileStore
from memable._clock import _virtual_origin
from memable._disk import RealDisk
from memable._frames import decode_header
from memable._store._snapshot import read_store

KEPT = Path(__file__).parent / "data" / "format_1" / "00000001.log"
#: What a crash left of a batch.
TORN = b'0f2c77ab 2.50.0+ {"kind":"instance_started","instance":15,"seq":1,"at":17954'
#: State, and newest status or reason, of each instance as it was left.
LEFT = {
    "greet/done": ("completed", "greeted"),
    "fail/failed": ("failed", None),
    "approve/waiting": ("suspended", "for approval"),
    "approve/approved": ("completed", None),
    "nap/asleep": ("suspended", None),
    "family/family": ("suspended", None),
    "backoff/backoff": ("suspended", None),
    "greet/family/detached": ("completed", "greeted"),
    "saga/saga": ("failed", None),
    "greet/family/call": ("completed", "greeted"),
    "approve/cancelled": ("cancelled", "not needed"),
    "pay/unknown": ("running", None),
    "greet/more": ("completed", "greeted"),
}
NEWEST_AT = 1795433381.6633291


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """
    A store of the first release, as a crash left it. It had a lock file of its own, which says nothing any more.
    """
    first_release.calls.clear()
    directory = tmp_path / "store"
    directory.mkdir()
    (directory / KEPT.name).write_bytes(KEPT.read_bytes() + TORN)
    return directory


async def statuses(engine: memable.Engine) -> dict[str, tuple[str, str | None]]:
    return {
        f"{one.workflow_name}/{one.instance_id}": (one.status.name.lower(), one.message)
        for one in await engine.list_instances()
    }


def engine_on(
    directory: Path, *, resume_on_start: bool = True, segment_bytes: int = 1 << 20
) -> AbstractAsyncContextManager[memable.Engine]:
    store = FileStore(directory, segment_bytes=segment_bytes)
    return memable.open_engine(store, workflows=first_release.WORKFLOWS, resume_on_start=resume_on_start)


def run(fn: Callable[[], Awaitable[None]]) -> None:
    """Run a session that begins a minute after the crash, whatever time it is today."""

    async def main() -> None:
        _virtual_origin.set(NEWEST_AT + 60)
        await fn()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_format_1_is_as_it_was_left(directory: Path):
    """Everything is in the state in which the first release left it, and nothing runs that need not."""

    async def main() -> None:
        async with engine_on(directory, resume_on_start=False) as engine:
            found = await statuses(engine)
            assert {name: status for name, (status, _) in found.items()} == {
                name: status for name, (status, _) in LEFT.items()
            }
            for name, (_, message) in LEFT.items():
                assert message in (found[name][1], None)
            assert await (await engine.get(first_release.greet, "done")).result() == "HELLO ADA!"
            assert await (await engine.get(first_release.approve, "approved")).result() == "A-2: approved"
            assert await engine.metadata("greet", "to-delete") is None
            waiting = await engine.state("approve", "waiting")
            assert isinstance(waiting, memable.Suspended)
            assert waiting.deadline is not None
            assert waiting.deadline.timestamp() == 1803209381.663329
            failed = await engine.state("fail", "failed")
            assert isinstance(failed, memable.Failed)
            assert "no 4" in failed.error.message
            kinds = Counter(entry.kind for entry in await engine.history("family", "family"))
            assert kinds["child"] >= 2
            assert kinds["call"] == kinds["start"] == kinds["invoke"] == 1
            children = [one for one in await engine.list_instances() if one.parent is not None]
            assert sorted(one.instance_id for one in children) == ["family/call", "family/detached"]

    run(main)
    assert first_release.calls == []


@pytest.mark.parametrize("resume_on_start", [True, False])
def test_format_1_goes_on(directory: Path, resume_on_start: bool):
    """Signals, timers, settle and resume go on where the first release stopped, and no recorded step runs again."""

    async def main() -> None:
        async with engine_on(directory, resume_on_start=resume_on_start) as engine:
            order = first_release.Order("A-1", Decimal("12.50"))
            again = await engine.invoke(first_release.greet, "Ada", instance_id="done")
            assert await again.result() == "HELLO ADA!"
            if not resume_on_start:
                for name, instance_id in (("pay", "unknown"), ("nap", "asleep"), ("backoff", "backoff")):
                    await engine.resume(name, instance_id)
            # A step whose outcome is unknown.
            state = await (await engine.get("pay", "unknown")).wait()
            assert isinstance(state, memable.Blocked)
            await engine.settle("pay", "unknown", "charge:v1", value="paid")
            assert await (await engine.get("pay", "unknown")).result() == "paid"
            # A suspend point, with the value that was given to it decoded from the old log.
            await engine.signal("approve", "waiting", first_release.APPROVAL, True)
            assert await (await engine.get("approve", "waiting")).result() == f"{order.number}: approved"
            # A fan-out, one child of which waits.
            await engine.signal("family", "family", first_release.NOTE, "go", within="each/2")
            assert await (await engine.get("family", "family")).result() == ["HELLO CHILD!", "A", "B", "C"]
            # A timer, a month from then.
            assert await (await engine.get("nap", "asleep")).result() == "awake"
            # Retries that go on counting.
            with pytest.raises(memable.WorkflowFailedError):
                await (await engine.get("backoff", "backoff")).result()
            # Five retries, the first attempt recorded by the first release.
            assert first_release.calls.count("flaky") == 5
            # A resume.
            await engine.resume("fail", "failed")
            with pytest.raises(memable.WorkflowFailedError):
                await (await engine.get("fail", "failed")).result()
            await engine.delete("greet", "more")
            assert set(first_release.calls) == {"flaky", "refuse 4"}
            assert (await engine.invoke(first_release.greet, "Eve")).instance_id
            await engine.wait_all()

    run(main)
    assert [call for call in first_release.calls if call.startswith("say")] == ["say hello Eve", "say HELLO EVE!"]
    assert_continued(directory)
    first_release.calls.clear()

    async def look() -> None:
        async with engine_on(directory) as engine:
            found = await statuses(engine)
            assert Counter(status for status, _ in found.values())["completed"] == 9
            assert "greet/more" not in found

    run(look)
    assert first_release.calls == []


def assert_continued(directory: Path) -> None:
    """The first segment is as the first release left it, but for its torn tail; what came later is behind it."""
    assert (directory / "00000001.log").read_bytes() == KEPT.read_bytes()
    assert (directory / "00000001.log.torn").read_bytes() == TORN
    header = decode_header((directory / "00000002.log").read_bytes().split(b"\n")[0], "")
    assert (header.version, header.segment, header.state.session, header.state.last_number) == (2, 2, 2, 14)
    assert (header.store_id, header.state.closed) == ("1ec85da7ebc640aaa9e2227c9918dd43", False)
    assert header.state.newest_at == NEWEST_AT


def test_format_1_is_compacted(directory: Path):
    """Space of what the first release wrote comes back as well, and all else is found in its new place."""

    async def main() -> None:
        async with engine_on(directory, resume_on_start=False, segment_bytes=4096) as engine:
            for workflow, instance_id in (
                ("greet", "done"),
                ("fail", "failed"),
                ("approve", "approved"),
                ("saga", "saga"),
                ("approve", "cancelled"),
                ("greet", "more"),
            ):
                await engine.delete(workflow, instance_id)
            for at in range(20):
                invocation = await engine.invoke(first_release.greet, str(at), instance_id=f"new-{at}")
                await invocation.result()
                await engine.delete(first_release.greet, f"new-{at}")
            await trio.sleep(100)

    run(main)
    names = sorted(path.name for path in directory.glob("*.log"))
    assert names[0].startswith("00000001-")
    assert sum(path.stat().st_size for path in directory.glob("*.log")) < len(KEPT.read_bytes()) * 0.8
    first_release.calls.clear()
    for _ in range(2):

        async def look() -> None:
            async with engine_on(directory, resume_on_start=False) as engine:
                found = await statuses(engine)
                assert sorted(found) == [
                    "approve/waiting",
                    "backoff/backoff",
                    "family/family",
                    "greet/family/call",
                    "greet/family/detached",
                    "nap/asleep",
                    "pay/unknown",
                ]
                for name in found:
                    workflow, _, instance_id = name.partition("/")
                    assert await engine.history(workflow, instance_id)

        run(look)
        (directory / "checkpoint").unlink(missing_ok=True)


def test_format_1_is_read_without_opening_it(directory: Path):
    """Readers take no lock and change nothing, also of a store in an old format."""
    with read_store(RealDisk(), directory) as snapshot:
        found = {
            f"{header.workflow}/{header.instance_id}": header.status.name.lower() for header in snapshot.index.select()
        }
        assert found == {name: status for name, (status, _) in LEFT.items()}
        assert (snapshot.session, snapshot.is_closed, snapshot.newest_at) == (2, False, NEWEST_AT)
        assert snapshot.store_id == "1ec85da7ebc640aaa9e2227c9918dd43"
        assert snapshot.torn_batch_count == 1
        assert [record.seq for record in snapshot.load(3)] == list(range(1, 9))
    assert [path.name for path in directory.iterdir()] == [KEPT.name]
    assert (directory / KEPT.name).read_bytes() == KEPT.read_bytes() + TORN
