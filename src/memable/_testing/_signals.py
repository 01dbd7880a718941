"""
A signal as a value: what somebody will send, and when.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeAlias, TypeVar

import attrs
import trio

from .._definition import Workflow
from .._engine import Engine
from .._errors import SignalRejectedError, SignalSupersededError
from .._suspend_point import SuspendPoint

T = TypeVar("T")

Receipt: TypeAlias = Literal["accepted", "rejected", "superseded"]
"""
What who sent a signal was told: it is durable; the instance does not wait there; another one was first.
"""


@attrs.frozen
class Signal(Generic[T]):
    """
    A signal that somebody sends to a suspend point, after a while.

    Example:
        >>> import memable
        >>> from memable.testing import Signal
        >>> Signal(memable.SuspendPoint("approval", bool), True, after=3600.0)
        Signal(point=memable.SuspendPoint('approval', bool), payload=True, after=3600.0, early='reject')
    """

    point: SuspendPoint[T]
    "Where the instance waits."
    payload: T
    "What the wait returns."
    after: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))
    "Virtual seconds until it is sent."
    early: Literal["reject", "keep"] = "reject"
    "What becomes of it where the instance does not wait yet, as for ``Engine.signal``."

    async def send(
        self, engine: Engine, workflow: Workflow[..., Any] | str, instance_id: str, *, within: str | None = None
    ) -> Receipt:
        """
        Wait, then send it, as a person would who takes no for an answer. A checkpoint.

        Args:
            engine: Where the instance is.
            workflow: Its workflow, or that one's name.
            instance_id: Its id.
            within: For a wait inside a fan-out, the path of the child.

        Returns:
            ``"accepted"``, ``"rejected"`` or ``"superseded"``.

        Raises:
            InstanceNotFoundError: The store has no such instance.
            TypeMismatchError: The payload is not of the point's type.
            EngineStoppedError: The engine stopped before it could be delivered.
        """
        await trio.sleep(self.after)
        name = workflow if isinstance(workflow, str) else workflow.name
        try:
            await engine.signal(name, instance_id, self.point, self.payload, within=within, early=self.early)
        except SignalRejectedError:
            return "rejected"
        except SignalSupersededError:
            return "superseded"
        return "accepted"
