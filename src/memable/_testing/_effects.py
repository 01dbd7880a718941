"""
Counts what happens in the world outside: calls of services, mails, payments, as a test's fakes of them are told.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any, Literal, ParamSpec, Protocol, TypeVar

import attrs

from .._run import current_run, current_step
from ._outside import Restorable
from ._places import find_block, find_frame, find_place

P = ParamSpec("P")
T = TypeVar("T")


@attrs.frozen
class Effect:
    """
    Something that happened outside.
    """

    name: str
    "What."
    instance: str | None
    "Of which instance, as ``workflow/id``; None if no workflow did it."
    step: str | None
    "The path of the step that did it; None if none did."
    step_id: str | None
    "``ctx.step_id`` of that step: the same in each of its attempts, before and after a crash."
    idempotency_key: str | None
    "What the service outside was given to tell a repetition by."
    is_repetition: bool
    "Whether the service outside has seen that idempotency key before, and did nothing."
    block: Literal["except", "finally"] | None
    "If the line of code that did it stands in such a block: in which."
    place: str
    "The line of code that did it, as ``file:line, in function``."


class EffectListener(Protocol):
    """
    Is told of effects while they happen.
    """

    def on_effect(self, effects: Effects, effect: Effect) -> None:
        """
        Take note of an effect that has just happened.
        """
        ...

    def before_change(self, one: Restorable) -> None:
        """
        Take note that something of the world outside, an ``Effects`` or another, is about to hold something else.
        """
        ...


#: Who is told of the effects of the current task.
effect_listener: ContextVar[EffectListener | None] = ContextVar("memable_effect_listener", default=None)


class Effects:
    """
    Records calls of the world outside by the step that made them, so that a test can say how often each may happen.

    Let the fakes of your services call ``record``, or wrap their functions with ``wrap``. ``explore_crashes`` takes an
    ``Effects`` that is used in it for part of the world that survives the process: what it holds is what happened in
    the one schedule at hand.

    Example:
        >>> effects = Effects()
        >>> effects.record("mail sent")
        True
        >>> effects.count("mail sent")
        1
    """

    def __init__(self) -> None:
        """
        Begin with nothing recorded.
        """
        self._recorded: tuple[Effect, ...] = ()

    def record(self, name: str, *, idempotency_key: str | None = None) -> bool:
        """
        Take note that something happens outside, now.

        Args:
            name: What.
            idempotency_key: If the service outside is given one (``ctx.step_id(key)`` is made for it) and does
                nothing when it sees it again: that key.

        Returns:
            Whether it happens, which it does not if its idempotency key was recorded before.
        """
        listener = effect_listener.get()
        if listener is not None:
            listener.before_change(self)
        frame = find_frame()
        step, run = current_step.get(), current_run.get()
        owner = run if step is None else step.run
        is_repetition = idempotency_key is not None and any(
            (one.name, one.idempotency_key) == (name, idempotency_key) for one in self._recorded
        )
        effect = Effect(
            name=name,
            instance=None if owner is None else f"{owner.workflow_name}/{owner.instance_id}",
            step=None if step is None else step.path,
            step_id=None if step is None else step.run.step_id(step.path),
            idempotency_key=idempotency_key,
            is_repetition=is_repetition,
            block=find_block(frame.f_code.co_filename, frame.f_lineno),
            place=find_place(),
        )
        self._recorded = (*self._recorded, effect)
        if listener is not None:
            listener.on_effect(self, effect)
        return not is_repetition

    def wrap(self, fn: Callable[P, Awaitable[T]], name: str | None = None) -> Callable[P, Awaitable[T]]:
        """
        Return a function that records an effect, then calls *fn*.

        Args:
            fn: What to call. Its annotations stay visible, so it can be given to ``ctx.step``.
            name: What to record; the function's name unless given.
        """
        told = getattr(fn, "__name__", repr(fn)) if name is None else name

        @functools.wraps(fn)
        async def recording(*args: P.args, **kwargs: P.kwargs) -> T:
            self.record(told)
            return await fn(*args, **kwargs)

        return recording

    def __iter__(self) -> Iterator[Effect]:
        """
        Return an iterator of all that was recorded, oldest first.
        """
        return iter(self._recorded)

    def __len__(self) -> int:
        """
        Return how often something was recorded.
        """
        return len(self._recorded)

    def __repr__(self) -> str:
        """
        Return what was recorded, by name and number.
        """
        counts = Counter(one.name for one in self._recorded if not one.is_repetition)
        return f"<Effects {dict(counts)}>"

    def count(self, name: str | None = None) -> int:
        """
        Return how often something happened; repetitions that the service outside has recognised do not count.

        Args:
            name: Of this only.
        """
        return sum(1 for one in self._recorded if not one.is_repetition and name in {None, one.name})

    def by_step_id(self) -> dict[str, tuple[Effect, ...]]:
        """
        Return what steps did, by the id of the step.
        """
        found: dict[str, tuple[Effect, ...]] = {}
        for one in self._recorded:
            if one.step_id is not None:
                found[one.step_id] = (*found.get(one.step_id, ()), one)
        return found

    def assert_at_most(self, limit: int, name: str | None = None) -> None:
        """
        Check that no step has done anything more than *limit* times, however often it ran.

        Args:
            limit: How often the same effect may happen within the same step of an instance.
            name: Check this effect only.

        Raises:
            AssertionError: One has. It names the effect, its step and its instance.
        """
        counts = Counter(
            (one.name, one.instance, one.step)
            for one in self._recorded
            if not one.is_repetition and name in {None, one.name}
        )
        wrong = [
            f"{effect!r} happened {count} times, by {describe_origin(instance, step)}"
            for (effect, instance, step), count in counts.items()
            if count > limit
        ]
        if wrong:
            raise AssertionError(f"more than {limit} times: {'; '.join(wrong)}")

    def clear(self) -> None:
        """
        Forget all that was recorded.
        """
        self._recorded = ()

    def take_down(self) -> object:
        """
        Return all that was recorded.
        """
        return self._recorded

    def bring_back(self, state: Any) -> None:
        """
        Go on from what was recorded then.
        """
        self._recorded = state


def describe_origin(instance: str | None, step: str | None) -> str:
    """
    Return who did something, in words.
    """
    if instance is None:
        return "no workflow"
    return f"workflow {instance} outside a step" if step is None else f"step {step!r} of {instance}"
