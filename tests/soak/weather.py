"""
How a session goes, whatever it is for: when it is cut short and how, how long it lasts, what code is deployed.
"""

from __future__ import annotations

import attrs


@attrs.frozen
class Cut:
    """
    At some call of the disk, the process is killed or the power is cut.
    """

    call: int
    loss: str | int
    "``kill``, ``nothing`` or ``all``, or the seed of what is lost."
    is_open: bool = False
    "Whether calls are counted from when the engine is open."
    at_close: int | None = None
    "If that has not come when the engine begins to close: at which call from then on."


@attrs.frozen
class Failure:
    """
    At some call the disk fails, and the engine stops. Then the process ends.
    """

    call: int
    errno: int
    after_bytes: int = 0
    "If the call is a write: how much of it is written before."
    loss: str | int = "kill"
    "What becomes of the disk then: nothing (``kill``), or a power cut."
    is_open: bool = False
    "Whether calls are counted from when the engine is open."


@attrs.frozen
class Interrupt:
    """
    The host raises an exception.
    """

    after_s: float


Disturbance = Cut | Failure | Interrupt | None


@attrs.frozen
class Weather:
    """
    What a session is like, whatever it is for.
    """

    linger_s: float = 0.0
    "How long the engine stays open after what it does."
    max_parked: int = 1000
    disturbance: Disturbance = None
    is_late: bool = False
    "Whether one of the workflows is registered only after a while."
    action_s: float = 0.0
    "How long it waits before it does something."
    pause_s: float = 0.0
    "How long no engine is open before."
    durability: str = "fsync"
    max_write_bytes: int | None = None
    "So much the disk takes in one write."
    defect: str | None = None
    "What is wrong with the code: ``types`` of steps differ from what is recorded, ``compensations`` are missing."

    segment_bytes: int | None = None
    "When the next file of the log is begun, if not as in the other sessions."
    max_batch_bytes: int | None = None
    "So much is synced at once, if not as much as usual."
    drops_checkpoint: bool = False
    "Whether somebody has deleted the store's checkpoint before."
    is_looked_at: bool = False
    "Whether somebody reads the store while the engine has it."

    def __repr__(self) -> str:
        fields = attrs.fields(Weather)
        shown = [f"{one.name}={value!r}" for one in fields if (value := getattr(self, one.name)) != one.default]
        return f"Weather({', '.join(shown)})"


FAIR = Weather()
