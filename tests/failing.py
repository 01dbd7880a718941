"""
Work that fails, for tests of what a step makes of it.
"""

from __future__ import annotations

from collections.abc import Awaitable

import pytest
import trio

import memable


class Flaky:
    """
    A step's function that raises the exceptions given, one a call, before it returns; knows when it was called.
    """

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.called_at: list[float] = []

    async def __call__(self) -> str:
        self.called_at.append(trio.current_time())
        if self.failures:
            raise self.failures.pop(0)
        return "done"

    @property
    def calls(self) -> int:
        """
        How often it was called.
        """
        return len(self.called_at)

    @property
    def delays(self) -> list[float]:
        """
        Seconds between one call and the next.
        """
        return [round(later - sooner, 6) for sooner, later in zip(self.called_at, self.called_at[1:], strict=False)]


async def failure_of(awaitable: Awaitable[object]) -> memable.StepFailedError:
    """
    Return what a step raises, which is to fail.
    """
    with pytest.raises(memable.StepFailedError, match="the step") as caught:
        await awaitable
    return caught.value
