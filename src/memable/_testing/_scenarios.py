"""
The scenario that a workflow has if nobody gives another: it is started, and brought to its end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import trio

from .._definition import Workflow
from .._engine import Engine
from .._errors import (
    InstanceNotFoundError,
    TypeMismatchError,
    WorkflowBlockedError,
    WorkflowCancelledError,
    WorkflowFailedError,
)
from .._states import WorkflowState

#: The id of its instance.
INSTANCE_ID = "explored"
#: What has not ended by then, in virtual seconds, waits for something that nobody brings: fifty years.
PATIENCE_S = 50 * 365 * 86400.0


def scenario_of(workflow: Workflow[..., Any], args: tuple[object, ...]) -> Callable[[Engine], Awaitable[WorkflowState]]:
    """
    Return a scenario that starts an instance, waits until it has ended, is Blocked or waits in vain, and returns that.
    """

    async def bring_to_end(engine: Engine) -> WorkflowState:
        # By its name: after an upgrade, another definition has it, which may take other arguments.
        try:
            invocation = await engine.get(workflow.name, INSTANCE_ID)
        except InstanceNotFoundError:
            invocation = await engine.invoke(workflow.name, *args, instance_id=INSTANCE_ID)
        with (
            # The last: what old code has returned need not be of the type that new code returns.
            suppress(WorkflowFailedError, WorkflowCancelledError, WorkflowBlockedError, TypeMismatchError),
            trio.move_on_after(PATIENCE_S),
        ):
            await invocation.result()
        return await invocation.state()

    return bring_to_end
