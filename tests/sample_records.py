"""
Short ways to make the records that tests of stores write.
"""

from __future__ import annotations

from memable._encoded import Encoded
from memable._records import InstanceCompleted, InstanceResumed, InstanceRetired, InstanceStarted, StepCompleted
from memable._store._protocol import OpenStore

ONE = Encoded("builtins.int", b"1")


def started(number: int, *, name: str | None = None, workflow: str = "w", session: int = 1) -> InstanceStarted:
    return InstanceStarted(
        instance=number,
        seq=1,
        at=1000.0 + number,
        session=session,
        workflow=workflow,
        instance_id=name or f"i{number}",
        input=ONE,
    )


def step(number: int, seq: int, value: bytes = b"1") -> StepCompleted:
    return StepCompleted(
        instance=number, seq=seq, at=1000.0, path=f"s{seq}", value=Encoded("builtins.int", value), started_at=999.0
    )


def completed(number: int, seq: int) -> InstanceCompleted:
    return InstanceCompleted(instance=number, seq=seq, at=1000.0, value=ONE)


def resumed(number: int, seq: int) -> InstanceResumed:
    return InstanceResumed(instance=number, seq=seq, at=1000.0, session=1)


def retired(number: int, seq: int) -> InstanceRetired:
    return InstanceRetired(instance=number, seq=seq, at=1000.0)


async def start(store: OpenStore, *, name: str | None = None) -> int:
    """Start an instance, and return its number."""
    number = await store.allocate_number()
    await store.append([started(number, name=name, session=store.session)])
    return number
