"""
What all runs of one engine share.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs

from ._annotations import AnnotationCache
from ._clock import Clock
from ._errors import StorageError
from ._observer import RunObserver
from ._retry import RetryPolicy
from ._store._protocol import OpenStore
from ._timers import Timers
from ._values._codec import Codec


@attrs.frozen
class Services:
    """
    What every run of an engine uses.
    """

    store: OpenStore
    clock: Clock
    timers: Timers
    codec: Codec
    annotations: AnnotationCache
    aliases: Mapping[str, type]
    default_retry: RetryPolicy | None
    uniform: Callable[[], float]
    "Returns a random number, uniform in [0, 1)."
    randbits: Callable[[int], int]
    "Returns so many random bits, as an int."
    fail: Callable[[StorageError], None]
    "Stops the engine: the store takes nothing any more."
    run_in_thread: Callable[..., Awaitable[Any]] | None = None
    "Calls a function in place of a thread, if it is not to be ``trio.to_thread.run_sync``."
    observer: RunObserver | None = None
    "Is told what runs do, in tests and plans."
