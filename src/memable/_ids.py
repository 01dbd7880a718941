"""
Makes instance ids that are unique and sort by time: UUID version 7 (RFC 9562, section 6.2, method 1).
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable

import attrs

_COUNTER_BITS = 12
_RANDOM_BITS = 62
_MAX_MS = 2**48 - 1


@attrs.define
class IdMaker:
    """
    Makes the ids of one engine. Each is greater than the one before, also when the clock stands still.
    """

    _randbits: Callable[[int], int] = secrets.randbits
    "Returns so many random bits."
    _last: int = attrs.field(default=0, init=False)
    "Milliseconds and counter of the newest id."

    def make(self, unix_s: float) -> str:
        """
        Return a new id.

        Args:
            unix_s: What time it is.
        """
        now = min(max(int(unix_s * 1000), 0), _MAX_MS) << _COUNTER_BITS
        # A full counter runs over into the milliseconds: still unique, still in order.
        self._last = max(now, self._last + 1)
        ms, counter = divmod(self._last, 1 << _COUNTER_BITS)
        value = (ms << 80) | (7 << 76) | (counter << 64) | (0b10 << 62) | self._randbits(_RANDOM_BITS)
        return str(uuid.UUID(int=value))
