"""
A state machine of Hypothesis for a user's own workflows, rules and invariants: ``WorkflowMachine``.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from types import SimpleNamespace
from typing import Any, Generic, Literal, TypeVar, TypeVarTuple, overload

import attrs
import cattrs
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from .._context import Context
from .._definition import Workflow
from .._engine import Engine
from .._history import HistoryEntry
from .._open import DEFAULT_MAX_VALUE_BYTES, Surroundings
from .._states import WorkflowState
from .._suspend_point import SuspendPoint
from .._values._codec import Codec
from ._effects import Effects
from ._exploring import EngineOptions
from ._findings import ProblemKind
from ._keeping import Keeper, is_keepable
from ._life import Setting
from ._outside import Restorable
from ._signals import Receipt, Signal
from ._story import DEATHS, FOREVER_S, Death, DeathKind, Story
from ._strategies import clock_jumps

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")
Args = TypeVarTuple("Args")

#: Rules in one example, unless the settings say fewer: stories of more are hardly ever needed, and take their time.
MAX_STEPS = 20
#: The latest moment at which a process is to die: the life of one rule seldom has more.
MAX_MOMENT = 30
#: So many processes may be about to die: one, and one that recovers from that.
MAX_DEATHS = 2


#: A person's answer is no problem: an effect whose outcome is unknown waits for one.
_ALLOWED: tuple[ProblemKind, ...] = ("blocked",)


@attrs.frozen
class Instance(Generic[R_co]):
    """
    An instance that a rule has started. Its type says what its workflow returns.
    """

    workflow_name: str
    "Name of its workflow."
    instance_id: str
    "Its id."

    def __str__(self) -> str:
        """
        Return it as ``workflow/id``.
        """
        return f"{self.workflow_name}/{self.instance_id}"


def _jumps(machine: WorkflowMachine) -> st.SearchStrategy[float]:
    return clock_jumps(*machine.deadlines())


class WorkflowMachine(RuleBasedStateMachine):
    """
    A rule-based state machine of Hypothesis, to subclass with your own workflows, rules and invariants.

    Each call of ``start``, ``signal``, ``run`` and so on is one life of a process: an engine is opened over a simulated
    disk, does what it is told, and goes on in virtual time until no run executes. Between such calls Hypothesis lets
    processes die, be stopped, or lose their power, lets time pass, and unwinds waits. A process that is to die does
    so within the call that comes next, which is then made again, as a client would that got no answer: so your rules
    see what a client sees.

    These hold whatever your workflows do, and are checked: a step with a recorded outcome is not executed again, an
    instance that has ended keeps its outcome, what a rule was told survives, and in the end every instance has ended,
    waits, or is Blocked. So are the problems that ``explore_crashes`` knows, except those in ``allow``.

    The attributes of the machine are part of the world outside: a death undoes what came after it, in them as well.

    Attributes:
        workflows: The workflows to register. May be set in ``__init__``, for those that need ``self``.
        outside: Objects that stand for the world outside and are no attributes of the machine, as for
            ``explore_crashes``. Each example finds them as they are now.
        options: What engines are opened with.
        effects: Counts what happens outside. One of the class' own begins anew with each example, too.
        allow: Kinds of problems that are none here.
        downtime: Virtual seconds between the death of a process and the next one.
        patience: So many virtual seconds after a call, runs that still execute are stopped, and go on in the next.
        seed: In which order trio takes ready tasks.

    Example:
        >>> import memable
        >>> from hypothesis import strategies as st
        >>> from hypothesis.stateful import invariant, rule
        >>> from memable.testing import WorkflowMachine
        >>> class Orders(WorkflowMachine):
        ...     def __init__(self) -> None:
        ...         super().__init__()
        ...         @memable.workflow
        ...         async def order(ctx: memable.Context, amount: int) -> str:
        ...             return await ctx.step("charge", self.charge, ctx.step_id("charge"), amount)
        ...         self.workflows = [order]
        ...         self.order = order
        ...     async def charge(self, key: str, amount: int) -> str:
        ...         self.effects.record("charge", idempotency_key=key)
        ...         return f"paid {amount}"
        ...     @rule(amount=st.integers(1, 3))
        ...     def place(self, amount: int) -> None:
        ...         placed = self.start(self.order, amount, instance_id=f"o-{amount}")
        ...         assert self.result(placed) == f"paid {amount}"
        ...     @invariant()
        ...     def nobody_pays_twice(self) -> None:
        ...         self.effects.assert_at_most(1)
        >>> TestOrders = Orders.TestCase
    """

    workflows: Iterable[Workflow[..., Any]] = ()
    outside: Iterable[object] = ()
    options: EngineOptions = EngineOptions()
    effects: Effects
    allow: Collection[ProblemKind] = _ALLOWED
    downtime: float = 60.0
    patience: float = 3600.0
    seed: int = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        case: Any = cls.TestCase
        case.settings = settings(case.settings, stateful_step_count=min(MAX_STEPS, case.settings.stateful_step_count))

    def __init__(self) -> None:
        """
        Begin with an empty disk.
        """
        super().__init__()
        self._raised_before = sys.exception()
        self._told_story: Story | None = None
        self._count = 0
        given = getattr(type(self), "effects", None)
        self.effects = given if isinstance(given, Effects) else Effects()
        shared = [*type(self).outside, *([given] if given is not None else [])]
        self._shared = Keeper(SimpleNamespace(), without=(), others=shared)
        self._shared_before = self._shared.take_down()
        self._own_names = frozenset((*vars(self), "_own_names", "_observability_predicates", "workflows", "options"))

    # What rules do -----------------------------------------------------------------------------------------------

    @overload
    def start(
        self, workflow: Callable[[Context, *Args], Awaitable[R]], *args: *Args, instance_id: str | None = None
    ) -> Instance[R]: ...

    @overload
    def start(self, workflow: str, *args: object, instance_id: str | None = None) -> Instance[Any]: ...

    def start(
        self, workflow: Callable[..., Awaitable[Any]] | str, *args: object, instance_id: str | None = None
    ) -> Instance[Any]:
        """
        Start an instance, and let it go on until it waits or has ended.

        Args:
            workflow: One of the machine's workflows, or its name.
            *args: Its arguments, without the context.
            instance_id: Names the instance; the workflow's name and a number unless given.

        Returns:
            The instance, for the other methods; a rule may put it into a bundle.

        Raises:
            Exception: What ``Engine.invoke`` raises.
        """
        name = workflow if isinstance(workflow, str) else getattr(workflow, "name", None)
        if instance_id is None:
            self._count += 1
            # Not by the engine: what is started again after a crash must be the same instance.
            instance_id = f"{name}-{self._count}"
        story, key = self._story, instance_id
        # Its overloads are those of this method.
        given: Any = workflow

        async def action(engine: Engine) -> Instance[Any]:
            invocation = await engine.invoke(given, *args, instance_id=key)
            started = Instance[Any](invocation.workflow_name, invocation.instance_id)
            story.told.started.add(str(started))
            return started

        return story.act(action)

    def signal(
        self,
        instance: Instance[Any] | str,
        point: SuspendPoint[T],
        payload: T,
        *,
        within: str | None = None,
        early: Literal["reject", "keep"] = "reject",
    ) -> Receipt:
        """
        Send a signal, as ``Engine.signal`` does, and take no for an answer.

        Returns:
            ``"accepted"``, ``"rejected"`` or ``"superseded"``: the latter also if the process died before it could say
            that the signal was accepted.
        """
        return self.send(Signal(point, payload, early=early), instance, within=within)

    def send(self, signal: Signal[Any], instance: Instance[Any] | str, *, within: str | None = None) -> Receipt:
        """
        Send a signal that ``signals`` has made, after its time, as ``signal`` does.
        """
        story, to = self._story, self._find(instance)

        async def action(engine: Engine) -> Receipt:
            receipt = await signal.send(engine, to.workflow_name, to.instance_id, within=within)
            if receipt == "accepted" and within is None:
                story.told.signalled.add((str(to), signal.point.key))
            return receipt

        return story.act(action)

    def resume(self, instance: Instance[Any] | str, *, forget: Iterable[str] = (), anew: bool = False) -> None:
        """
        Run an instance again, as ``Engine.resume`` does.

        Raises:
            Exception: What ``Engine.resume`` raises.
        """
        story, to, forgotten = self._story, self._find(instance), tuple(forget)
        before: int | None = None

        async def action(engine: Engine) -> None:
            nonlocal before
            history = await engine.history(to.workflow_name, to.instance_id)
            count = sum(1 for entry in history if entry.kind == "resume")
            before = count if before is None else before
            # Else an earlier life has done it, and died before it could say so.
            if count == before:
                await engine.resume(to.workflow_name, to.instance_id, forget=forgotten, anew=anew)

        story.run_again(str(to))
        story.act(action, again=str(to))

    def cancel(self, instance: Instance[Any] | str, *, reason: str | None = None) -> bool:
        """
        Cancel an instance, as ``Engine.cancel`` does.

        Returns:
            Whether this call did it. Not if a process died before it could say so.
        """
        to = self._find(instance)
        return self._story.act(lambda engine: engine.cancel(to.workflow_name, to.instance_id, reason=reason))

    def delete(self, instance: Instance[Any] | str) -> None:
        """
        Remove an instance that has ended, as ``Engine.delete`` does.

        Raises:
            Exception: What ``Engine.delete`` raises.
        """
        story, to = self._story, self._find(instance)

        async def action(engine: Engine) -> None:
            # An earlier life may have done it.
            if await engine.metadata(to.workflow_name, to.instance_id) is not None:
                await engine.delete(to.workflow_name, to.instance_id)

        story.run_again(str(to), is_removed=True)
        story.act(action)

    def run(self, action: Callable[[Engine], Awaitable[T]]) -> T:
        """
        Do something else with an engine, then go on until no run executes.

        Args:
            action: An async function of the engine; called again if the process dies in it. Resume and delete with the
                machine's own methods, since what is checked depends on it.

        Returns:
            What it returned.

        Raises:
            Exception: What it raised.
        """
        return self._story.act(action)

    def run_until_idle(self) -> None:
        """
        Let a process recover what is unfinished, and go on until no run executes.
        """
        self._story.act(_do_nothing)

    # What rules see ----------------------------------------------------------------------------------------------

    def state(self, instance: Instance[Any] | str) -> WorkflowState:
        """
        Return the state of an instance after the last call.

        Raises:
            LookupError: There is none of that id.
        """
        return self._story.states[str(self._find(instance, is_known=True))]

    @property
    def instances(self) -> Mapping[str, WorkflowState]:
        """
        The states of all instances after the last call, children included, by ``workflow/id``.
        """
        return dict(self._story.states)

    def result(self, instance: Instance[R]) -> R:
        """
        Return what an instance has returned.

        Raises:
            AssertionError: It has not ended.
            WorkflowFailedError: It has failed.
            WorkflowCancelledError: It was cancelled.
        """
        to = self._find(instance)
        state = self.state(to)
        if not state.is_terminal:
            raise AssertionError(f"{to} has no result: it is {state}")

        async def action(engine: Engine) -> Any:
            return await (await engine.get(to.workflow_name, to.instance_id)).result()

        value: R = self._story.look(action)
        return value

    def history(self, instance: Instance[Any] | str) -> list[HistoryEntry]:
        """
        Return what happened to an instance, as ``Engine.history`` does.
        """
        to = self._find(instance)
        return self._story.look(lambda engine: engine.history(to.workflow_name, to.instance_id))

    def deadlines(self) -> list[float]:
        """
        Return around which times something may happen, in virtual seconds from now, for the rules that let time pass.

        Those of the instances that wait; to be overridden for others.
        """
        return self._story.deadlines()

    # Rules -------------------------------------------------------------------------------------------------------
    # None of them has a precondition: Hypothesis leaves a step out all the more easily if that changes nothing but what
    # the step does.

    @rule(moment=st.integers(0, MAX_MOMENT), how=st.sampled_from(DEATHS))
    def crash(self, moment: int, how: DeathKind = "killed") -> None:
        """
        Let the next process die at a moment of its life: before, within or after a durable write or an effect.

        Args:
            moment: Which, from 0. If its life has fewer, it goes on to its end.
            how: ``"killed"``; ``"power cut"``, so that nothing is left that was not synced; or ``"stopped"`` in order.
        """
        self._story.deaths = (*self._story.deaths, Death(moment, how))[:MAX_DEATHS]

    @rule()
    def passivate(self) -> None:
        """
        Let every wait unwind its body from now on.
        """
        self._story.passivates = True

    @rule(seconds=st.runner().flatmap(_jumps), is_down=st.booleans())
    def let_time_pass(self, seconds: float, *, is_down: bool = False) -> None:
        """
        Let time pass.

        Args:
            seconds: How much.
            is_down: Whether no process runs meanwhile.
        """
        if is_down:
            self._story.stay_down(seconds)
        else:
            self._story.act(functools.partial(_sleep, seconds))

    def teardown(self) -> None:
        """
        Let all timers pass, check that no instance is stuck, and bring the world outside back to where it began.

        Raises:
            AssertionError: One is stuck. It is named, and where it is.
        """
        try:
            # What is raised already says more.
            if sys.exception() is self._raised_before:
                self._story.finish()
        finally:
            for one, state in self._story.setting.adopted.values():
                one.bring_back(state)
            self._shared.bring_back(self._shared_before)

    # Its story ---------------------------------------------------------------------------------------------------

    @property
    def _story(self) -> Story:
        """The story, which goes on with the workflows of now."""
        workflows = tuple(self.workflows)
        if self._told_story is None:
            # Made when it is first needed, since the subclass's __init__ goes on after this class' own.
            others = tuple(self.outside)
            for one in others:
                if not is_keepable(one):
                    raise TypeError(
                        f"outside takes Effects, dicts, lists, sets and objects with attributes, whose state can be "
                        f"taken down and brought back, not {one!r}"
                    )
            options = self.options
            self._told_story = Story(
                setting=Setting(
                    scenario=_do_nothing,
                    workflows=workflows,
                    options=options,
                    surroundings=_surroundings_for(
                        options.get("converter"),
                        tuple(options.get("aliases", {}).items()),
                        options.get("max_value_bytes", DEFAULT_MAX_VALUE_BYTES),
                    ),
                    points="writes",
                    stuck_after_s=10 * FOREVER_S,
                    seed=self.seed,
                ),
                keeper=Keeper(self, without=self._own_names, others=others),
                downtime_s=self.downtime,
                patience_s=self.patience,
                allow=self.allow,
                others={id(one): one for one in (self.effects, *others) if isinstance(one, Restorable)},
            )
        self._told_story.deploy(workflows)
        return self._told_story

    def _die(self, death: Death) -> None:
        self._story.deaths = (*self._story.deaths, death)[:MAX_DEATHS]

    def _find(self, instance: Instance[R] | str, *, is_known: bool = False) -> Instance[R]:
        """Return an instance that may have been given by its id only."""
        if isinstance(instance, Instance):
            names = [str(instance)] if not is_known or str(instance) in self._story.states else []
        else:
            names = [name for name in self._story.states if name.partition("/")[2] == instance]
        if len(names) != 1:
            why = (
                f"instances of several workflows have it: {', '.join(names)}" if names else "there is no such instance"
            )
            raise LookupError(f"{instance}: {why}")
        workflow_name, _, instance_id = names[0].partition("/")
        return Instance(workflow_name, instance_id)


async def _do_nothing(engine: Engine) -> None:
    """Leave it to itself."""


async def _sleep(seconds: float, engine: Engine) -> None:
    await trio.sleep(seconds)


@functools.lru_cache(maxsize=8)
def _surroundings_for(
    converter: cattrs.Converter | None, aliases: tuple[tuple[str, type], ...], max_value_bytes: int
) -> Surroundings:
    """Return surroundings with a codec: to make one takes longer than an example."""
    return Surroundings(codec=Codec(converter=converter, aliases=dict(aliases), max_value_bytes=max_value_bytes))
