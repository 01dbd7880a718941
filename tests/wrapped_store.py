"""
A store some of whose methods a test does in its own way.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import attrs

import memable
from memable._clock import Clock
from memable._store._protocol import OpenStore, Store


class Wrapper:
    """
    An open store that passes everything on. A test overrides what it wants to be different.
    """

    def __init__(self, inner: OpenStore) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@attrs.define(eq=False)
class WrappedStore:
    """
    A store that is opened as another one, and wrapped then.
    """

    wrap: Callable[[OpenStore], Any]
    inner: Store = attrs.field(factory=memable.InMemoryStore)

    def open(self, clock: Clock) -> AbstractAsyncContextManager[OpenStore]:
        return self._open(clock)

    @asynccontextmanager
    async def _open(self, clock: Clock) -> AsyncIterator[OpenStore]:
        async with self.inner.open(clock) as opened:
            yield self.wrap(opened)
