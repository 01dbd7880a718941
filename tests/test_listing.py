"""
What listings and metadata say of instances.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import trio

import memable
from memable import MetadataStatus
from memable._catalog import PAGE_COUNT
from memable._clock import current_clock
from memable._encoded import Encoded
from memable._header import InstanceHeader
from memable._listing import ended_state
from memable._records import InstanceCompleted, InstanceRecord, InstanceStarted, InstanceSuspended, RunStarted
from running import workflow_of
from stores import Gate, HookedStore, MemoryPlace, Place


@memable.workflow
async def work(ctx: memable.Context, ending: str = "completed") -> str:
    ctx.set_status(f"working towards {ending}")
    match ending:
        case "failed":
            raise ValueError("on purpose")
        case "blocked":
            await ctx.step("twice", nothing)
            await ctx.step("twice", nothing)
        case "running":
            await ctx.step("once", nothing)
            await trio.sleep_forever()
        case "suspended":
            await ctx.step("flaky", fail, retry=memable.RetryPolicy.fixed(1, 100))
    return ending


async def nothing() -> None:
    pass


async def fail() -> None:
    raise ValueError("flaky")


@memable.workflow
async def other(ctx: memable.Context) -> None:
    pass


ENDINGS = ["completed", "failed", "blocked", "running", "suspended"]


async def start_all(engine: memable.Engine) -> None:
    """
    Start an instance for each ending, and one that is cancelled, a second apart.
    """
    for ending in ENDINGS:
        await engine.invoke(work, ending, instance_id=ending)
        await trio.sleep(1)
    await engine.invoke(work, "running", instance_id="cancelled")
    await trio.testing.wait_all_tasks_blocked()
    await engine.cancel(work, "cancelled", reason="why")


async def test_metadata_tells_live_and_recorded_status(place: Place, autojump_clock: object):
    """
    Metadata tells status, message and key of each kind of instance, live while it runs here, else as recorded.
    """
    common = {
        "completed": ("completed", "working towards completed", None),
        "failed": ("failed", "ValueError: on purpose", None),
        "cancelled": ("cancelled", "why", None),
        "running": ("running", "working towards running", None),
    }
    async with memable.open_engine(place.store(), workflows=[work], shutdown_timeout=0) as engine:
        await start_all(engine)
        live = {one.instance_id: one for one in await engine.list_instances()}
        for instance_id, expected in common.items():
            one = live[instance_id]
            assert (one.status.value, one.message, one.key) == expected
            assert await engine.metadata(work, instance_id) == one
        assert (live["blocked"].status.value, live["blocked"].key) == ("blocked", "twice")
        assert "used the key before" in str(live["blocked"].message)
        one = live["suspended"]
        assert (one.status.value, one.message, one.key) == ("suspended", "working towards suspended", "flaky")
    async with memable.open_engine(place.store(), resume_on_start=False) as engine:
        recorded = {one.instance_id: one for one in await engine.list_instances()}
    changed = {"suspended"}
    one = recorded["suspended"]
    assert (one.status.value, one.message, one.key) == ("suspended", "working towards suspended", "flaky")
    assert {name: one for name, one in recorded.items() if name not in changed} == {
        name: one for name, one in live.items() if name not in changed
    }


async def test_metadata_tells_times_in_utc(place: Place, autojump_clock: object):
    """
    created_at, updated_at and completed_at are aware datetimes in UTC; completed_at is None until the end.
    """

    async def body(ctx: memable.Context) -> None:
        await trio.sleep(10)
        await ctx.step("step", nothing)
        await trio.sleep(10)

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        invocation = await engine.invoke(workflow, instance_id="i")
        seen = []
        for _ in range(2):
            await trio.sleep(5)
            seen.append(await engine.metadata(workflow, "i"))
            await trio.sleep(5)
        await invocation.result()
        seen.append(await engine.metadata(workflow, "i"))
    first, second, last = seen
    assert first is not None
    assert second is not None
    assert last is not None
    began = first.created_at
    assert began.tzinfo is UTC
    assert first.updated_at == began
    assert abs((datetime.now(UTC) - began).total_seconds()) < 24 * 3600
    assert (second.updated_at - began).total_seconds() == pytest.approx(10, abs=0.001)
    assert second.completed_at is None
    assert last.completed_at == last.updated_at
    assert (last.updated_at - began).total_seconds() == pytest.approx(20, abs=0.001)
    assert (last.created_at, last.workflow_name, last.instance_id, last.parent) == (began, "w", "i", None)


async def test_list_instances_is_in_the_order_of_creation(place: Place, autojump_clock: object):
    """
    Instances are listed in the order in which they were created, whatever happened to them since.
    """
    ids = [f"{number * 37 % 100:02}" for number in range(30)]
    async with memable.open_engine(place.store(), workflows=[other]) as engine:
        for instance_id in ids:
            await engine.invoke(other, instance_id=instance_id)
        await engine.wait_all()
        await (await engine.resume(other, ids[3], anew=True)).result()
        assert [one.instance_id for one in await engine.list_instances()] == ids
    async with memable.open_engine(place.store()) as engine:
        assert [one.instance_id for one in await engine.list_instances()] == ids


async def test_list_instances_filters(place: Place, autojump_clock: object):
    """
    Workflow and status narrow a listing, alone or together; a live Suspended instance is not RUNNING.
    """
    async with memable.open_engine(place.store(), workflows=[work, other], shutdown_timeout=0) as engine:
        await start_all(engine)
        await (await engine.invoke(other, instance_id="other")).result()

        async def ids(*args: Any, **settings: Any) -> list[str]:
            return [one.instance_id for one in await engine.list_instances(*args, **settings)]

        assert await ids(other) == await ids("other") == ["other"]
        assert await ids("no such workflow") == []
        assert await ids(status=MetadataStatus.COMPLETED) == ["completed", "other"]
        assert await ids(work, status=MetadataStatus.COMPLETED) == ["completed"]
        assert await ids(status=MetadataStatus.RUNNING) == ["running"]
        assert await ids(status=MetadataStatus.SUSPENDED) == ["suspended"]
        assert await ids(status=MetadataStatus.BLOCKED) == ["blocked"]
        assert await ids(status=MetadataStatus.FAILED) == ["failed"]
        assert await ids(status=MetadataStatus.CANCELLED) == ["cancelled"]


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
async def test_list_instances_gives_pages(limit: int, place: Place, autojump_clock: object):
    """
    Pages of any size, each after the last one of the page before, give every instance once, filtered or not.
    """
    async with memable.open_engine(place.store(), workflows=[work, other]) as engine:
        for number in range(15):
            await engine.invoke(other if number % 3 else work, instance_id=f"i{number}")
        await engine.wait_all()
        for workflow in (None, work):
            everything = await engine.list_instances(workflow)
            pages: list[memable.WorkflowMetadata] = []
            after = None
            while page := await engine.list_instances(workflow, limit=limit, after=after):
                assert len(page) <= limit
                pages += page
                after = page[-1]
                if len(pages) == limit:
                    # What is created meanwhile is on a later page, and nothing is told twice.
                    await engine.invoke(other, instance_id=f"late {workflow}")
            assert pages[: len(everything)] == everything
            assert len(pages) == len({one.instance_id for one in pages})
        assert await engine.list_instances(limit=0) == []


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"limit": -1}, "limit is -1; give a number of instances"),
        ({"limit": 1.5}, r"limit is 1\.5"),
        ({"limit": True}, "limit is True"),
        ({"status": "running"}, r"status is 'running'; give a memable\.MetadataStatus"),
        ({"after": "i"}, r"after is 'i'; give the last memable\.WorkflowMetadata"),
        ({"workflow": 3}, "3 is neither a workflow nor the name of one"),
    ],
)
async def test_list_instances_refuses_senseless_arguments(settings: dict[str, Any], match: str, autojump_clock: object):
    """
    An argument of list_instances that can match nothing is a misuse that says what to give.
    """
    async with memable.open_engine(memable.InMemoryStore()) as engine:
        with pytest.raises(memable.MisuseError, match=match):
            await engine.list_instances(**settings)


async def test_message_of_an_instance_outlives_its_run(place: Place, autojump_clock: object):
    """
    A status message is recorded with the next memo: an instance that does not run shows it, live ones a newer one.
    """

    async def body(ctx: memable.Context) -> None:
        ctx.set_status("first")
        await ctx.step("step", nothing)
        ctx.set_status("second")
        await trio.sleep_forever()

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow], shutdown_timeout=0) as engine:
        await engine.invoke(workflow, instance_id="i")
        await trio.testing.wait_all_tasks_blocked()
        live = await engine.metadata(workflow, "i")
        assert live is not None
        assert (live.message, await engine.state(workflow, "i")) == ("second", memable.InProgress("second"))
    async with memable.open_engine(place.store(), resume_on_start=False) as engine:
        recorded = await engine.metadata(workflow, "i")
        assert recorded is not None
        assert (recorded.message, await engine.state(workflow, "i")) == ("first", memable.InProgress("first"))


async def test_long_error_message_is_cut_in_listings_only(place: Place, autojump_clock: object):
    """
    A listing keeps the beginning of a long error message; the state has more of it.
    """

    async def body(ctx: memable.Context) -> None:
        raise ValueError("x" * 5000)

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        state = await (await engine.invoke(workflow, instance_id="i")).wait()
        metadata = await engine.metadata(workflow, "i")
    assert metadata is not None
    assert metadata.message is not None
    assert metadata.message.endswith("x [...]")
    assert len(metadata.message) < 600
    assert state.message == "x" * 5000


async def test_aliases_rename_the_recorded_class_of_an_error(place: Place, autojump_clock: object):
    """
    An error that was recorded under a class's old name is told under its new one, and matches it.
    """

    class OldError(Exception):
        pass

    class NewError(LookupError):
        pass

    async def body(ctx: memable.Context) -> None:
        raise OldError("moved")

    old_name = f"{OldError.__module__}.{OldError.__qualname__}"
    async with memable.open_engine(place.store(), workflows=[workflow_of(body)]) as engine:
        await (await engine.invoke("w", instance_id="i")).wait()
    async with memable.open_engine(place.store(), aliases={old_name: NewError}) as engine:
        state = await engine.state("w", "i")
        assert isinstance(state, memable.Failed)
        assert state.error.matches(NewError)
        assert state.error.matches(LookupError)
        assert not state.error.matches(KeyError)


def test_ended_state_refuses_a_record_that_ends_no_run():
    """
    A record that ends no run is never taken for an end.
    """
    header = InstanceHeader(number=1, workflow="w", instance_id="i", created_at=0, updated_at=0, session=1)
    with pytest.raises(AssertionError, match="run_started ends no run"):
        ended_state(header, RunStarted(instance=1, seq=2, at=0, session=1), {})


@pytest.mark.parametrize("max_parked", [0, 1000])
async def test_metadata_of_a_wait_is_the_same_parked_passivated_and_closed(
    max_parked: int, place: Place, autojump_clock: object
):
    """
    A listing shows where an instance waits and what the wait says, whether a task waits there or not.
    """
    point = memable.SuspendPoint("approval", bool)

    @memable.workflow
    async def asking(ctx: memable.Context, says: str | None) -> None:
        ctx.set_status("asking")
        await ctx.suspend(point, status=says)

    seen = []
    async with memable.open_engine(place.store(), workflows=[asking], max_parked=max_parked) as engine:
        await engine.invoke(asking, "please", instance_id="a")
        await engine.invoke(asking, None, instance_id="b")
        await engine.wait_all()
        await trio.testing.wait_all_tasks_blocked()
        seen.append([(one.status.value, one.message, one.key) for one in await engine.list_instances()])
    async with memable.open_engine(place.store()) as engine:
        seen.append([(one.status.value, one.message, one.key) for one in await engine.list_instances()])
    assert seen == [[("suspended", "please", "approval"), ("suspended", "asking", "approval")]] * 2


# Many --------------------------------------------------------------------------------------------------------------


async def fill(place: Place, count: int, *, ended_every: int = 1, workflow: str = "other") -> None:
    """
    Leave *count* instances in a store: of each *ended_every* the first is Completed, the others are suspended.
    """
    async with place.store().open(current_clock()) as store:
        records: list[InstanceRecord] = []
        for index in range(count):
            number = await store.allocate_number()
            facts = {"instance": number, "at": float(index)}
            name = f"i{index:05}"
            session = store.session
            start = InstanceStarted(
                **facts,
                seq=1,
                session=session,
                workflow=workflow,
                instance_id=name,
                input=Encoded("memable.arguments", b"[]"),
            )
            records.append(start)
            if index % ended_every == 0:
                records.append(InstanceCompleted(**facts, seq=2, value=Encoded("None", b"null")))
            else:
                records.append(InstanceSuspended(**facts, seq=2, path="wait"))
        if records:
            await store.append(records)


@pytest.mark.parametrize("count", [0, 1, PAGE_COUNT - 1, PAGE_COUNT, PAGE_COUNT + 1, 3 * PAGE_COUNT])
async def test_list_instances_of_any_length_is_complete(count: int, place: Place, autojump_clock: object):
    """
    However many there are, each instance is listed once, in order; with a limit, the first ones.
    """
    names = [f"i{index:05}" for index in range(count)]
    await fill(place, count, ended_every=2)
    async with memable.open_engine(place.store()) as engine:

        async def ids(**settings: Any) -> list[str]:
            return [one.instance_id for one in await engine.list_instances(**settings)]

        assert await ids() == await ids(workflow="other") == names
        assert await ids(status=MetadataStatus.COMPLETED) == names[::2]
        assert await ids(status=MetadataStatus.SUSPENDED) == names[1::2]
        assert await ids(status=MetadataStatus.RUNNING) == await ids(workflow="none") == []
        assert await ids(workflow="none", status=MetadataStatus.SUSPENDED) == []
        for limit in (0, 1, PAGE_COUNT - 1, PAGE_COUNT, PAGE_COUNT + 1):
            assert await ids(limit=limit) == names[:limit]
            assert await ids(limit=limit, status=MetadataStatus.COMPLETED) == names[::2][:limit]
            assert await ids(limit=limit, status=MetadataStatus.SUSPENDED) == names[1::2][:limit]
        if count > 2:
            third = (await engine.list_instances(limit=3))[-1]
            assert await ids(after=third) == names[3:]
            assert await ids(after=third, status=MetadataStatus.COMPLETED) == names[4::2]
            assert await ids(after=third, status=MetadataStatus.SUSPENDED) == names[3::2]


@pytest.mark.parametrize("status", [None, MetadataStatus.COMPLETED, MetadataStatus.SUSPENDED])
async def test_list_instances_lets_others_run(status: MetadataStatus | None, place: Place, autojump_clock: object):
    """
    While a long list is made, other tasks get their turn after each page.
    """
    pages = 6
    await fill(place, pages * PAGE_COUNT, ended_every=2)
    async with memable.open_engine(place.store()) as engine, trio.open_nursery() as nursery:
        turns: list[int] = []

        @nursery.start_soon
        async def look() -> None:
            while True:
                turns.append(1)
                await trio.lowlevel.checkpoint()

        listed = await engine.list_instances(status=status)
        nursery.cancel_scope.cancel()
        assert len(listed) == pages * PAGE_COUNT // (1 if status is None else 2)
        assert len(turns) >= len(listed) // PAGE_COUNT


@pytest.mark.slow
async def test_list_instances_shows_each_that_stays_once_whatever_the_others_do(place: Place, autojump_clock: object):
    """
    Instances begin, end, are resumed and deleted while a list is made: each that stays is listed once, in order.
    """
    count = 4 * PAGE_COUNT
    await fill(place, count, workflow="work")
    async with memable.open_engine(place.store(), workflows=[work, other]) as engine:
        names = [f"i{index:05}" for index in range(count)]
        deleted, resumed, left_alone = names[::3], names[1::3], dict.fromkeys(names[2::3])
        for status in (None, MetadataStatus.COMPLETED):
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def change() -> None:
                    while True:
                        await engine.invoke(other)
                        if deleted:
                            await engine.delete(work, deleted.pop())
                            await (await engine.resume(work, resumed.pop(), anew=True)).wait()

                for _ in range(20):
                    listed = await engine.list_instances(status=status)
                    numbers = [one.number for one in listed]
                    assert numbers == sorted(set(numbers))
                    assert [one.instance_id for one in listed if one.instance_id in left_alone] == list(left_alone)
                nursery.cancel_scope.cancel()


@pytest.mark.parametrize("max_parked", [0, 1000])
async def test_list_instances_goes_by_what_is_shown(max_parked: int, autojump_clock: object):
    """
    An instance that waits is Suspended from that moment on, though the record of it is still on its way.
    """
    point = memable.SuspendPoint("approval", bool)

    @memable.workflow
    async def asking(ctx: memable.Context) -> None:
        await ctx.suspend(point)

    gate = Gate("instance_suspended")
    store = HookedStore(before_append=gate.pass_)
    async with memable.open_engine(store, workflows=[asking], max_parked=max_parked) as engine:
        invocation = await engine.invoke(asking, instance_id="i")
        await gate.is_reached.wait()
        header = await engine._services.store.find("asking", "i")
        assert header is not None
        assert header.status is MetadataStatus.RUNNING
        for status in MetadataStatus:
            listed = [one.status for one in await engine.list_instances(status=status)]
            assert listed == ([MetadataStatus.SUSPENDED] if status is MetadataStatus.SUSPENDED else [])
        gate.is_open.set()
        await invocation.wait()
        assert len(await engine.list_instances(status=MetadataStatus.SUSPENDED)) == 1


@pytest.mark.parametrize("status", [None, MetadataStatus.SUSPENDED])
async def test_list_instances_that_outlives_the_block_is_refused(status: MetadataStatus | None, autojump_clock: object):
    """
    A list that is not complete when the block is left is EngineStoppedError.
    """
    place = MemoryPlace()
    await fill(place, 20 * PAGE_COUNT, ended_every=2)
    async with trio.open_nursery() as nursery, memable.open_engine(place.store()) as engine:

        @nursery.start_soon
        async def look() -> None:
            with pytest.raises(memable.EngineStoppedError, match=r"engine\.list_instances"):
                while True:
                    await engine.list_instances(status=status)

        for _ in range(3):
            await trio.lowlevel.checkpoint()
