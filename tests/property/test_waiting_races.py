"""
Races for an instance that waits: whatever the schedule, exactly one wins, the other is told so, and nothing hangs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

import memable
from running import INSTANCE, workflow_of
from stores import HookedStore
from waits import P, Q

SCHEDULES = settings(max_examples=120)

MAX_TICKS = 14
"More schedule points than lie between a request and its record, the hooks of the store aside."
LIMIT_S = 10
"When the timeouts and scopes of these tests expire."


@attrs.frozen
class Schedule:
    """
    In which order things happen.
    """

    seed: int
    "Of trio's own scheduler."
    ticks: tuple[int, int]
    "How many schedule points each contender lets pass."
    append_ticks: tuple[int, ...]
    "How many each append takes, again and again."
    max_parked: int


schedules = st.builds(
    Schedule,
    seed=st.integers(0, 2**16),
    ticks=st.tuples(st.integers(0, MAX_TICKS), st.integers(0, MAX_TICKS)),
    append_ticks=st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple),
    max_parked=st.sampled_from([0, 1000]),
)

Told = str | None
Contender = Callable[[memable.Engine], Awaitable[object]]


async def let_pass(ticks: int) -> None:
    for _ in range(ticks):
        await trio.lowlevel.checkpoint()


@attrs.define
class Race:
    """
    What came of two contenders, and of the instance.
    """

    told: list[object]
    "What each contender got: what it returned, or the class of what it raised."
    state: memable.WorkflowState
    results: list[object]
    "What each run of the body that came to its end made of it, a replay after a crash included."


def race(  # noqa: PLR0915 - what it sets up is shared by what follows
    schedule: Schedule,
    body: Callable[[memable.Context], Awaitable[object]],
    first: Contender,
    second: Contender,
    *,
    start_at: float = 5.0,
    waits_first: bool = True,
) -> Race:
    """
    Let two contenders loose on an instance, both at one time, and go on until it has come to its end.
    """
    kept = memable.InMemoryStore()
    told: list[object] = [None, None]
    results: list[object] = []
    appended = 0

    async def slowly(_records: Sequence[Any]) -> None:
        nonlocal appended
        appended += 1
        await let_pass(schedule.append_ticks[appended % len(schedule.append_ticks)])

    async def noting(ctx: memable.Context) -> None:
        result = await body(ctx)
        results.append(result)

    async def contend(engine: memable.Engine, n: int, contender: Contender) -> None:
        await let_pass(schedule.ticks[n])
        try:
            told[n] = await contender(engine)
        except memable.MemableError as error:
            told[n] = type(error)

    async def main() -> memable.WorkflowState:
        workflow = workflow_of(noting)
        store = HookedStore(kept, before_append=slowly)
        with trio.fail_after(1_000):
            async with memable.open_engine(store, workflows=[workflow], max_parked=schedule.max_parked) as engine:
                began = trio.current_time()
                invocation = await engine.invoke(workflow, instance_id=INSTANCE)
                if waits_first:
                    await trio.sleep_until(began + start_at)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(contend, engine, 0, first)
                    nursery.start_soon(contend, engine, 1, second)
                while not (await invocation.wait()).is_terminal:
                    await trio.sleep(100)
                    state = await invocation.state()
                    if isinstance(state, memable.Suspended) and state.key == "q":
                        await engine.signal(workflow, INSTANCE, Q, 0)
            copy = kept.crashed_copy()
            async with memable.open_engine(copy, workflows=[workflow]) as engine:
                recorded = await engine.state(workflow, INSTANCE)
                assert recorded == await (await engine.get(workflow, INSTANCE)).state()
                if isinstance(recorded, memable.Completed):
                    # All memos stand, so a replay sees what the last run saw.
                    await engine.resume(workflow, INSTANCE, forget=["last"])
                    await (await engine.get(workflow, INSTANCE)).result()
            return recorded

    trio._core._run._r.seed(schedule.seed)
    state = trio.run(main, clock=MockClock(autojump_threshold=0))
    return Race(told, state, results)


async def last(ctx: memable.Context, result: object) -> object:
    """Do a step that a replay can be made to do again."""
    await ctx.step("last", let_pass, 1)
    return result


def send(payload: int) -> Contender:
    async def sender(engine: memable.Engine) -> object:
        await engine.signal("w", INSTANCE, P, payload)
        return "sent"

    return sender


async def cancel(engine: memable.Engine) -> object:
    return await engine.cancel("w", INSTANCE)


async def resume(engine: memable.Engine) -> object:
    await engine.resume("w", INSTANCE)
    return "resumed"


async def suspends(ctx: memable.Context) -> object:
    return await last(ctx, await ctx.suspend(P))


async def suspends_with_timeout(ctx: memable.Context) -> object:
    try:
        result: object = await ctx.suspend(P, timeout=LIMIT_S)
    except memable.SuspendTimeoutError:
        result = "timeout"
    return await last(ctx, result)


async def suspends_in_scope(ctx: memable.Context) -> object:
    result: object = None
    async with ctx.move_on_after("limit", LIMIT_S) as scope:
        result = await ctx.suspend(P)
    return await last(ctx, "expired" if scope.cancelled_caught else result)


async def goes_on_in_scope(ctx: memable.Context) -> object:
    result: object = None
    async with ctx.move_on_after("limit", LIMIT_S):
        result = await ctx.suspend(P)
        await ctx.suspend(Q)
    return await last(ctx, result)


@given(schedules)
@SCHEDULES
def test_race_of_two_signals(schedule: Schedule):
    """
    Of two signals, one is delivered, and the other is told that it was superseded.
    """
    came = race(schedule, suspends, send(1), send(2))
    assert came.state == memable.Completed()
    assert sorted(map(str, came.told)) == sorted(["sent", str(memable.SignalSupersededError)])
    assert set(came.results) == {1 + came.told.index("sent")}


@given(schedules)
@SCHEDULES
def test_race_of_a_signal_and_the_timeout(schedule: Schedule):
    """
    A signal at the deadline is delivered, or superseded by the timeout.
    """
    came = race(schedule, suspends_with_timeout, send(1), send(2), start_at=LIMIT_S)
    assert came.state == memable.Completed()
    (result,) = set(came.results)
    if result == "timeout":
        assert came.told == [memable.SignalSupersededError] * 2
    else:
        assert came.told[result - 1] == "sent"  # type: ignore[operator] # it is a payload
        assert came.told[2 - result] is memable.SignalSupersededError  # type: ignore[operator] # the same


@given(schedules)
@SCHEDULES
def test_race_of_a_signal_and_the_expiry_of_a_scope(schedule: Schedule):
    """
    A signal at the deadline of the scope around is delivered, or refused and the scope has expired; never both.
    """
    came = race(schedule, suspends_in_scope, send(1), send(1), start_at=LIMIT_S)
    assert came.state == memable.Completed()
    (result,) = set(came.results)
    if result == "expired":
        assert set(came.told) <= {memable.SignalSupersededError, memable.SignalRejectedError}
    else:
        assert result == 1
        assert sorted(map(str, came.told)) == sorted(["sent", str(memable.SignalSupersededError)])


@given(schedules)
@SCHEDULES
def test_race_of_a_signal_and_a_scope_that_goes_on(schedule: Schedule):
    """
    A payload that was delivered inside a scope before it expired is returned there by every run.
    """
    came = race(schedule, goes_on_in_scope, send(1), send(1), start_at=LIMIT_S)
    assert came.state == memable.Completed()
    (result,) = set(came.results)
    assert ("sent" in came.told) == (result == 1)


@given(schedules)
@SCHEDULES
def test_race_of_a_signal_and_a_cancellation(schedule: Schedule):
    """
    A cancellation is carried out unless the instance has ended before; a signal after it is rejected.
    """
    came = race(schedule, suspends, send(1), cancel)
    signalled, cancelled = came.told
    if cancelled is True:
        assert isinstance(came.state, memable.Cancelled)
        assert signalled in ("sent", memable.SignalRejectedError)
    else:
        assert cancelled is False
        assert came.state == memable.Completed()
        assert signalled == "sent"
        assert set(came.results) == {1}


@given(schedules)
@SCHEDULES
def test_race_of_a_signal_and_a_passivation(schedule: Schedule):
    """
    A signal that comes while a run begins to wait and is unwound is delivered, or told that nobody waits there yet.
    """

    async def keep(engine: memable.Engine) -> object:
        await engine.signal("w", INSTANCE, P, 2, early="keep")
        return "sent"

    came = race(schedule, suspends, send(1), keep, waits_first=False)
    assert came.state == memable.Completed()
    (result,) = set(came.results)
    if result == 1:
        assert came.told == ["sent", memable.SignalSupersededError]
    else:
        assert result == 2
        assert came.told[1] == "sent"
        assert came.told[0] in (memable.SignalRejectedError, memable.SignalSupersededError)


@given(schedules)
@SCHEDULES
def test_race_of_a_cancellation_and_the_end(schedule: Schedule):
    """
    An instance that is cancelled as it ends is Cancelled if cancel says so, else Completed.
    """

    async def ends(ctx: memable.Context) -> object:
        await ctx.sleep("s", LIMIT_S)
        return await last(ctx, "end")

    came = race(schedule, ends, cancel, cancel, start_at=LIMIT_S)
    if isinstance(came.state, memable.Cancelled):
        assert sorted(map(str, came.told)) == ["False", "True"]
    else:
        assert came.state == memable.Completed()
        assert came.told == [False, False]


@given(schedules)
@SCHEDULES
def test_race_of_two_resumptions(schedule: Schedule):
    """
    An instance that is resumed twice at once waits again, and goes on with its signal once.
    """

    async def body(ctx: memable.Context) -> object:
        await ctx.suspend(Q)
        return await last(ctx, "end")

    came = race(schedule, body, resume, resume)
    assert came.state == memable.Completed()
    assert came.told == ["resumed", "resumed"]


@given(schedules)
@SCHEDULES
def test_race_of_a_signal_and_a_resumption(schedule: Schedule):
    """
    A signal to an instance that is being resumed is delivered.
    """
    came = race(schedule, suspends, send(1), resume)
    assert came.state == memable.Completed()
    assert came.told == ["sent", "resumed"]
    assert set(came.results) == {1}


@given(schedules)
@SCHEDULES
def test_race_of_a_signal_and_a_stop(schedule: Schedule):
    """
    A signal to an engine that stops is durable if it was acknowledged; otherwise nothing of it is.
    """
    kept = memable.InMemoryStore()
    told: list[str] = []
    got: list[int] = []

    async def slowly(_records: Sequence[Any]) -> None:
        await let_pass(schedule.append_ticks[0])

    async def body(ctx: memable.Context) -> None:
        got.append(await ctx.suspend(P))

    async def contend(engine: memable.Engine) -> None:
        await let_pass(schedule.ticks[0])
        try:
            await engine.signal("w", INSTANCE, P, 1)
            told.append("sent")
        except memable.EngineStoppedError:
            told.append("stopped")

    async def main() -> None:
        workflow = workflow_of(body)
        store = HookedStore(kept, before_append=slowly)
        with trio.fail_after(1_000):
            async with (
                trio.open_nursery() as nursery,
                memable.open_engine(store, workflows=[workflow], max_parked=schedule.max_parked) as engine,
            ):
                invocation = await engine.invoke(workflow, instance_id=INSTANCE)
                await invocation.wait()
                await trio.sleep(5)
                nursery.start_soon(contend, engine)
                await let_pass(schedule.ticks[1])
            async with memable.open_engine(kept, workflows=[workflow]) as engine:
                if told == ["stopped"]:
                    await engine.signal(workflow, INSTANCE, P, 2)
                await (await engine.get(workflow, INSTANCE)).result()

    trio._core._run._r.seed(schedule.seed)
    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert got[-1] == (1 if told == ["sent"] else 2)
    assert len(told) == 1
