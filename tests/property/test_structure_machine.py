"""
Whole engines through workflows that use everything, over a disk that loses power: stories that Hypothesis makes up.

What is done in a story and what must hold then is in ``soak.story`` and ``soak.checks``. The soak tells many more such
stories, and faster; a story of Hypothesis's is shrunk to the shortest one that fails.
"""

from __future__ import annotations

import errno
from typing import Any, TypeAlias

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from trio.testing import MockClock

import memable
from memable._clock import _virtual_origin
from programs import Program, Suspend, World, ops_of, programs, without_raises
from soak.checks import ORIGIN_UNIX_S, Sent
from soak.story import LATE_WORKFLOW, MAX_INSTANCES, Story, has_op, send_signal
from soak.weather import Cut, Failure, Interrupt, Weather

STEPS = 10

losses = st.sampled_from(["kill", "nothing", "all"]) | st.integers(0, 1000)
disturbances = st.one_of(
    st.none(),
    st.builds(Cut, st.integers(0, 70), losses),
    st.builds(Cut, st.integers(0, 70), losses, st.booleans(), st.integers(0, 8)),
    st.builds(Failure, st.integers(0, 70), st.sampled_from([errno.EIO, errno.ENOSPC]), st.integers(0, 600), losses),
    st.builds(Interrupt, st.sampled_from([0.5, 1.5, 4.5, 12.5])),
)
weathers = st.builds(
    Weather,
    linger_s=st.sampled_from([0.0, 2.0, 20.0, 200.0]),
    max_parked=st.sampled_from([1000, 0, 1]),
    disturbance=disturbances,
    is_late=st.sampled_from([False, False, False, True]),
    action_s=st.sampled_from([0.0, 0.5, 1.5, 5.0, 50.0]),
    pause_s=st.sampled_from([0.0, 10.0, 1000.0]),
    durability=st.sampled_from(["fsync", "fsync", "fsync", "os"]),
    segment_bytes=st.sampled_from([None, None, None, 1_024, 50_000]),
    max_batch_bytes=st.sampled_from([None, None, None, 1, 300, 1_000]),
    drops_checkpoint=st.sampled_from([False, False, False, True]),
    is_looked_at=st.sampled_from([False, False, False, True]),
)


class StructureMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.story = Story(segment_bytes=4_000)

    @precondition(lambda self: len(self.story.invoked) < MAX_INSTANCES)
    @rule(workflow=st.sampled_from(["w", "w", LATE_WORKFLOW]), program=programs, weather=weathers)
    def start(self, workflow: str, program: Program, weather: Weather) -> None:
        self.story.start(workflow, program, weather)

    @precondition(lambda self: self.story.invoked)
    @rule(index=st.integers(0, 3), weather=weathers)
    def start_again(self, index: int, weather: Weather) -> None:
        self.story.start_again(index, weather)

    @precondition(lambda self: self.story.kept)
    @rule(weather=weathers)
    def reopen(self, weather: Weather) -> None:
        self.story.reopen(weather)

    @precondition(lambda self: any(has_op(ledger, Suspend) for ledger in self.story.ledgers.values()))
    @rule(
        index=st.integers(0, 3),
        point=st.integers(0, 5),
        count=st.sampled_from([1, 2, 3]),
        early=st.booleans(),
        weather=weathers,
    )
    def signal(self, index: int, point: int, count: int, early: bool, weather: Weather) -> None:
        self.story.signal(index, point, count, early, weather)

    @precondition(lambda self: self.story.kept)
    @rule(index=st.integers(0, 3), weather=weathers)
    def cancel(self, index: int, weather: Weather) -> None:
        self.story.cancel(index, weather)

    @precondition(lambda self: self.story.kept)
    @rule(
        index=st.integers(0, 3),
        forget=st.lists(st.integers(0, 20), max_size=2),
        anew=st.sampled_from([False, False, True]),
        weather=weathers,
    )
    def resume(self, index: int, forget: list[int], anew: bool, weather: Weather) -> None:
        self.story.resume(index, forget, anew, weather)

    @precondition(lambda self: any(ledger.intents for ledger in self.story.ledgers.values()))
    @rule(index=st.integers(0, 3), answer=st.sampled_from(["value", "error", "wrong"]), weather=weathers)
    def settle(self, index: int, answer: str, weather: Weather) -> None:
        self.story.settle(index, answer, weather)

    @precondition(lambda self: self.story.kept)
    @rule(index=st.integers(0, 3), weather=weathers)
    def delete(self, index: int, weather: Weather) -> None:
        self.story.delete(index, weather)

    def teardown(self) -> None:
        self.story.finish()


# Parking -------------------------------------------------------------------------------------------------------

Timed: TypeAlias = list[tuple[int, int, int]]
"Signals: seconds after the one before, which instance, and which of its suspend points."


async def play(stories: list[Program], signals: Timed, max_parked: int) -> dict[str, Any]:
    """
    Start instances, send signals, and return all that can be seen of it from outside.
    """
    world = World(is_spread=True)
    workflows = world.workflows()
    seen: dict[str, Any] = {}
    store = memable.InMemoryStore()
    _virtual_origin.set(ORIGIN_UNIX_S)
    async with memable.open_engine(store, workflows=workflows.values(), max_parked=max_parked) as engine:
        for index, program in enumerate(stories):
            await engine.invoke("w", world.number(program), instance_id=f"i{index}")
        for payload, (after_s, index, point) in enumerate(signals):
            await trio.sleep(after_s + 0.0625)
            paths = [path for path, op in ops_of(stories[index % len(stories)]).items() if isinstance(op, Suspend)]
            if paths:
                name = "w", f"i{index % len(stories)}"
                sent = await send_signal(engine, Sent(name, paths[point % len(paths)], payload), early=payload % 2 == 0)
                seen[f"signal {payload}"] = sent.told
        await trio.sleep(400)
        for one in await engine.list_instances():
            state = await engine.state(one.workflow_name, one.instance_id)
            error = getattr(state, "error", None)
            seen[f"{one.workflow_name}/{one.instance_id}"] = [
                type(state).__name__,
                None if error is None else error.type,
            ]
            if isinstance(state, memable.Completed):
                invocation = await engine.get(one.workflow_name, one.instance_id)
                seen[f"{one.workflow_name}/{one.instance_id}"].append(await invocation.result())
    assert world.wrongs == []
    return seen | dict(world.called)


@given(
    stories=st.lists(programs.map(without_raises), min_size=1, max_size=3),
    signals=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 2), st.integers(0, 3)), max_size=5),
)
def test_how_many_runs_are_parked_changes_nothing(stories: list[Program], signals: Timed) -> None:
    seen = [
        trio.run(play, stories, signals, max_parked, clock=MockClock(autojump_threshold=0))
        for max_parked in (1000, 1, 0)
    ]
    assert seen[0] == seen[1] == seen[2]


TestStructureMachine = StructureMachine.TestCase
TestStructureMachine.settings = settings(stateful_step_count=STEPS)
