"""
A task's sleep that takes as little memory as it can.

``trio.lowlevel.wait_task_rescheduled`` makes a coroutine with its frame, a generator, and a message to trio's scheduler
with its dict, for each task that sleeps. Thousands of tasks wait for one sync, and then the garbage collector looks at
all of that again and again. What those sleeps have in common is the message, so they share one.

The message is the one that ``wait_task_rescheduled`` gives the scheduler, got by asking it once outside of any task:
nothing private of trio's is named here.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Generator
from typing import Any, NewType

import outcome
import trio

Message = NewType("Message", object)
"What tells trio's scheduler that a task sleeps, and how it can be cancelled."


def message_for(abort: Callable[[Any], trio.lowlevel.Abort]) -> Message:
    """
    Return the message for sleeps that are cancelled by *abort*, as ``wait_task_rescheduled`` takes it.
    """
    asked = trio.lowlevel.wait_task_rescheduled(abort)  # noqa: ASYNC105 - the scheduler is not to get it yet
    try:
        return Message(asked.send(None))
    finally:
        asked.close()


@types.coroutine
def sleep_unless_cancelled(message: Message) -> Generator[Message, outcome.Outcome[Any], Any]:
    """
    Do what ``wait_task_rescheduled`` does with the *abort* of the message, without a coroutine of its own.

    Cancellation:
        Raises ``Cancelled`` if *abort* says that it succeeded. Each task needs a message of its own for that.
    """
    return (yield message).unwrap()
