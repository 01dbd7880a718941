"""
``WorkflowMachine``: it passes what is right, finds what is wrong, and tells it in few rules.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
import trio
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, invariant, rule, run_state_machine_as_test

import memable
from memable.testing import Effects, Instance, Signal, WorkflowMachine, signals

APPROVAL = memable.SuspendPoint("approval", bool)

mails = Effects()


class Orders(WorkflowMachine):
    """
    Orders that are right: each is paid once, whatever happens.
    """

    orders = Bundle("orders")

    def __init__(self) -> None:
        super().__init__()
        self.paid: dict[str, int] = {}
        self.expected: dict[str, int] = {}

        @memable.workflow
        async def order(ctx: memable.Context, amount: int) -> str:
            await ctx.step("reserve", self.reserve)
            try:
                approved = await ctx.suspend(APPROVAL, timeout=3600)
            except memable.SuspendTimeoutError:
                return "too late"
            if not approved:
                return "refused"
            return await ctx.step("charge", self.charge, ctx.step_id("charge"), amount)

        self.order = order
        self.workflows = [order]

    async def reserve(self) -> None:
        await trio.sleep(5)

    async def charge(self, key: str, amount: int) -> str:
        self.effects.record("charge", idempotency_key=key)
        self.paid[key] = amount
        return f"paid {amount}"

    @rule(target=orders, amount=st.integers(1, 3))
    def place(self, amount: int) -> Instance[str]:
        placed = self.start(self.order, amount)
        self.expected[str(placed)] = amount
        return placed

    @rule(placed=orders, signal=signals(APPROVAL))
    def approve(self, placed: Instance[str], signal: Signal[bool]) -> None:
        self.send(signal, placed)

    @rule(placed=orders)
    def cancel_it(self, placed: Instance[str]) -> None:
        self.cancel(placed)

    @rule(placed=orders)
    def look(self, placed: Instance[str]) -> None:
        assert self.history(placed)[0].kind == "invoke"
        if isinstance(self.state(placed), memable.Completed):
            assert self.result(placed) in {"too late", "refused", f"paid {self.expected[str(placed)]}"}

    @invariant()
    def each_is_paid_once(self) -> None:
        self.effects.assert_at_most(1)
        assert len(self.paid) <= len(self.expected)


TestOrders = Orders.TestCase


class Charging(WorkflowMachine):
    """
    A step that is not idempotent: the plan is to find it by the list that a fake keeps.
    """

    allow = ("effect-repeated",)

    def __init__(self) -> None:
        super().__init__()
        self.charged: list[str] = []

        @memable.workflow
        async def order(ctx: memable.Context) -> str:
            return await ctx.step("charge", self.charge, ctx.instance_id)

        self.order = order
        self.workflows = [order]

    async def charge(self, instance_id: str) -> str:
        self.charged.append(instance_id)
        self.effects.record("charge")
        return "receipt"

    @rule()
    def place(self) -> None:
        self.start(self.order)

    @invariant()
    def charged_once(self) -> None:
        assert len(self.charged) == len(set(self.charged)), "charged twice"


class Clocked(WorkflowMachine):
    """
    A key that is made from the clock.
    """

    def __init__(self) -> None:
        super().__init__()

        @memable.workflow
        async def hourly(ctx: memable.Context) -> int:
            await ctx.step("begin", self.fetch)
            return await ctx.step(f"fetch-{time.time():.0f}", self.fetch)

        self.hourly = hourly
        self.workflows = [hourly]

    async def fetch(self) -> int:
        return 3

    @rule()
    def begin(self) -> None:
        self.start(self.hourly)


class Hanging(WorkflowMachine):
    """
    A workflow that hangs after a signal.
    """

    orders = Bundle("orders")

    def __init__(self) -> None:
        super().__init__()

        @memable.workflow
        async def order(ctx: memable.Context) -> str:
            if await ctx.suspend(APPROVAL):
                return "done"
            await trio.Event().wait()
            return "never"

        self.order = order
        self.workflows = [order]

    @rule(target=orders)
    def place(self) -> Instance[str]:
        return self.start(self.order)

    @rule(placed=orders, signal=signals(APPROVAL))
    def approve(self, placed: Instance[str], signal: Signal[bool]) -> None:
        self.send(signal, placed)


class HangingLess(Hanging):
    """
    The same, as a subclass of a subclass.
    """

    @rule(placed=Hanging.orders)
    def cancel_it(self, placed: Instance[str]) -> None:
        self.cancel(placed)


def find(machine: type[WorkflowMachine]) -> tuple[str, list[str]]:
    """Return what is wrong with a machine's workflows, and the rules that show it."""
    # Which lines only failing examples run is of no interest here, and slow to find out.
    phases = (Phase.generate, Phase.shrink)
    given = settings(machine.TestCase.settings, database=None, derandomize=True, phases=phases, max_examples=300)
    with pytest.raises(AssertionError) as found:
        run_state_machine_as_test(machine, settings=given)
    notes = "\n".join(found.value.__notes__).splitlines()
    kept = [line for line in notes if line.startswith(("state.", "orders_", "# "))]
    return str(found.value), [line for line in kept if "teardown" not in line and "charged_once" not in line]


def test_machine_finds_step_that_is_not_idempotent() -> None:
    """
    A step whose effect happens twice breaks the user's invariant, after a crash and a start.
    """
    problem, rules = find(Charging)
    assert "charged twice" in problem
    assert len(rules) <= 4
    assert rules[-1] == "state.place()"
    assert "the effect 'charge'" in "\n".join(rules) or "step_completed 'charge'" in "\n".join(rules)


def test_machine_finds_key_from_the_clock() -> None:
    """
    A key that is made from the clock is found without an invariant of the user's, and named.
    """
    problem, rules = find(Clocked)
    assert problem.startswith("key-differs: run 1 of hourly/hourly-1 asked for 'fetch-17672")
    assert len(rules) <= 4
    assert rules[-1] == "state.begin()"


@pytest.mark.parametrize("machine", [Hanging, HangingLess])
def test_machine_finds_workflow_that_hangs(machine: type[WorkflowMachine]) -> None:
    """
    An instance that neither ends nor waits is named in the end, and the line of code where it is.
    """
    problem, rules = find(machine)
    assert problem.startswith("order/order-1 is stuck")
    assert f"in its body, at {__file__.rpartition('/')[2]}:" in problem
    assert "orders_0 = state.place()" in rules
    assert rules[-1].startswith("state.approve(")
    assert len(rules) <= 4


# One call after the other, as a failing example is copied into a test -----------------------------------------------


def test_machine_crash_happens_in_the_next_call() -> None:
    """
    A process that is to die does so in the call that comes next, which is made again; its caller gets the answer.
    """
    story = Orders()
    story.crash(moment=0)
    story.crash(moment=7, how="power cut")
    placed = story.start(story.order, 2)
    assert isinstance(story.state(placed), memable.Suspended)
    story.crash(moment=4)
    assert story.signal(placed, APPROVAL, payload=True) in {"accepted", "superseded"}
    assert story.result(placed) == "paid 2"
    assert story.paid.keys() == {one.idempotency_key for one in story.effects}
    story.teardown()


@pytest.mark.parametrize(("how", "expected"), [("killed", {1, 2}), ("power cut", {1, 2}), ("stopped", {1})])
def test_machine_undoes_what_comes_after_a_death(how: Any, expected: set[int]) -> None:
    """
    Whatever the moment of a death, what the world outside holds is what was done before it and after it.
    """
    counts = set()
    for moment in range(31):
        story = Charging()
        story.crash(moment=moment, how=how)
        story.place()
        assert story.charged == [one.instance and one.instance.rpartition("/")[2] for one in story.effects]
        counts.add(len(story.charged))
        story.teardown()
    assert counts == expected


def test_machine_time_passes_with_and_without_a_process() -> None:
    """
    A deadline that passes while no process runs is due at the next one; just before it, it is not.
    """
    story = Orders()
    early, late = story.start(story.order, 1), story.start(story.order, 2)
    (first, _) = story.deadlines()
    story.let_time_pass(first - 0.001)
    assert isinstance(story.state(early), memable.Suspended)
    story.let_time_pass(0.001, is_down=True)
    story.run_until_idle()
    assert story.result(early) == "too late"
    story.let_time_pass(86400)
    assert story.result(late) == "too late"
    story.teardown()


def test_machine_passivates() -> None:
    """
    With waits passivated, the same comes out.
    """
    story = Orders()
    story.passivate()
    placed = story.start(story.order, 1)
    assert story.signal(placed, APPROVAL, payload=True) == "accepted"
    assert story.signal(placed, APPROVAL, payload=False) != "accepted"
    assert story.result(placed) == "paid 1"
    assert isinstance(story.state("order-1"), memable.Completed)
    story.teardown()


def test_machine_resumes_forgets_and_deletes() -> None:
    """
    What is resumed may end otherwise, run a forgotten step again, and be removed.
    """
    story = Orders()
    placed = story.start(story.order, 1)
    story.signal(placed, APPROVAL, payload=True)
    story.crash(moment=8)
    story.resume(placed, forget=["charge"])
    assert story.result(placed) == "paid 1"
    assert len({one.step_id for one in story.effects}) == 2
    story.crash(moment=5)
    story.delete(placed)
    assert story.instances == {}
    story.teardown()


def test_machine_result_of_unfinished_instance_is_refused() -> None:
    """
    An instance that has not ended has no result.
    """
    story = Orders()
    placed = story.start(story.order, 1)
    with pytest.raises(AssertionError, match="order/order-1 has no result: it is suspended at 'approval'"):
        story.result(placed)
    story.teardown()


def test_machine_raises_what_the_engine_raises() -> None:
    """
    A call that the engine refuses raises that to the rule, and the story goes on.
    """
    story = Orders()
    story.start(story.order, 1, instance_id="o")
    with pytest.raises(memable.InstanceConflictError, match="another input"):
        story.start(story.order, 2, instance_id="o")
    with pytest.raises(LookupError, match="there is no such instance"):
        story.state("p")
    assert story.cancel("o")
    with pytest.raises(memable.WorkflowCancelledError, match="cancelled"):
        story.result(Instance[str]("order", "o"))
    story.teardown()


def test_machine_runs_any_action_again() -> None:
    """
    What a rule does with the engine itself is done again when the process dies in it.
    """
    story = Orders()
    seen: list[float] = []

    async def action(engine: memable.Engine) -> int:
        seen.append(time.time())
        await engine.invoke(story.order, 1, instance_id="o")
        return len(await engine.list_instances())

    story.crash(moment=4)
    assert story.run(action) == 1
    first, second = seen
    assert second >= first + story.downtime
    story.teardown()


# What is checked after each call --------------------------------------------------------------------------------------


def test_machine_notices_a_step_that_is_executed_again() -> None:
    """
    A step whose outcome is recorded must not be executed: if it is, it is named.
    """
    story = Orders()
    placed = story.start(story.order, 1)
    story.signal(placed, APPROVAL, payload=True)
    # The machine's own resume would have told it that this is meant.
    with pytest.raises(AssertionError, match="step 'charge' of order/order-1 is executed though its outcome is recor"):
        story.run(lambda engine: engine.resume("order", "order-1", forget=["charge"]))


def test_machine_notices_what_is_lost() -> None:
    """
    What a rule was told must be there: a start, a signal, an end.
    """
    story = Orders()
    placed, other = story.start(story.order, 1), story.start(story.order, 2)
    story.cancel(other)
    told = story._story.told
    told.started.add("order/gone")
    told.signalled.add((str(placed), "approval"))
    told.ended[str(other)] = memable.Completed()
    with pytest.raises(AssertionError, match="lost") as found:
        story.run_until_idle()
    assert str(found.value).splitlines() == [
        "order/gone is lost, though its start was acknowledged",
        "order/order-2 had ended (completed), and now it is cancelled",
        "a signal to 'approval' of order/order-1 is lost, though it was acknowledged",
    ]


class Shared(WorkflowMachine):
    """
    What is outside is a module's, and so is a counter of effects that nobody has named.
    """

    sent: list[str] = []  # noqa: RUF012 - that of all examples
    outside = (sent,)

    def __init__(self) -> None:
        super().__init__()

        @memable.workflow
        async def news(ctx: memable.Context) -> None:
            await ctx.step("send", self.send_it)

        self.news = news
        self.workflows = [news]

    async def send_it(self) -> None:
        mails.record("mail", idempotency_key="news")
        self.sent.append("news")


def test_machine_brings_the_world_back_for_the_next_example() -> None:
    """
    Each example finds the world outside as the first one did.
    """
    for _ in range(2):
        story = Shared()
        assert (story.sent, len(mails)) == ([], 0)
        story.crash(moment=7)
        story.start(story.news)
        assert len(story.sent) == len(mails) >= 1
        story.teardown()
    assert (Shared.sent, len(mails)) == ([], 0)


class Strange(WorkflowMachine):
    """
    What is outside is nothing whose state could be kept.
    """

    outside = (3,)


def test_machine_refuses_what_it_cannot_keep() -> None:
    """
    A part of the world outside whose state cannot be taken down is refused.
    """
    story = Strange()
    with pytest.raises(TypeError, match="outside takes Effects, dicts, lists, sets and objects"):
        story.run_until_idle()
