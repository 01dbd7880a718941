"""
What engines were doing when the power went: names of states, for the account of what was reached.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from memable import MetadataStatus
from memable._header import InstanceHeader
from memable._records import InstanceBlocked, InstanceResumed, InstanceRetired, SignalKept
from programs import Program, Scope, keyed
from soak.story import Story

_WAITS = {"w": "signal", "z": "sleep", "s": "backoff", "u": "backoff"}
"What is waited for, by the letter that a key begins with. Anything else waits for children."
_WAITED_FOR = ("signal", "sleep", "backoff", "children", "in a scope")
_CAUSES = {
    "TypeMismatchError": "type mismatch",
    "CompensationLostError": "lost compensation",
    "OutcomeUnknownError": "unknown outcome",
    "RecoveryLimitError": "recovery limit",
}

STATES = (
    "running: step",
    "running: step in a fan-out",
    "running: step in a child",
    "running: step in a thread",
    "running: effect",
    "running: probe",
    "running: compensation",
    *(f"{how}: {what}" for how in ("parked", "passivated") for what in _WAITED_FOR),
    *(f"blocked: {cause}" for cause in _CAUSES.values()),
    "compensating",
    "cancelling",
    "completed",
    "failed",
    "cancelled",
    "being removed by retention",
    "being deleted",
    "resumed",
    "resumed with forget",
    "resumed anew",
    "signal kept",
    "durability fsync",
    "durability os",
)
"Each of them must be reached by some power cut of a long soak."

PHASES = (
    "recovery",
    "append",
    "load",
    "close",
    "seal",
    "checkpoint",
    "compaction",
)
"What the store was doing."

_FUNCTIONS = {
    "end_session": "close",
    "release": "close",
    "_lock_and_recover": "recovery",
    "begin_session": "recovery",
    "_begin_segment": "seal",
}
_MODULES = {
    "_compaction": "compaction",
    "_upkeep": "compaction",
    "_checkpoint": "checkpoint",
    "_recovery": "recovery",
    "_tail": "append",
    "_reader": "load",
    "_files": "load",
}


def phase_now() -> str:
    """
    Tell what the store is doing, by who calls the disk.
    """
    found = list(dict.fromkeys(_phases(inspect.currentframe())))
    for phase in ("recovery", "checkpoint", "compaction", "seal", "close", "append", "load"):
        if phase in found:
            return phase
    return "other"


def _phases(frame: FrameType | None) -> Iterator[str]:
    while frame is not None:
        code = frame.f_code
        if "memable" in code.co_filename:
            phase = _FUNCTIONS.get(code.co_name) or _MODULES.get(Path(code.co_filename).stem)
            if phase is not None:
                yield phase
        frame = frame.f_back


def states_of(story: Story) -> set[str]:
    """
    Return the states that the instances of a story are in now, in the middle of a session.
    """
    assert story.watch is not None
    found = {f"durability {story.weather.durability}", *_running(story), *_in_flight(story)}
    for number, header in story.watch.headers.items():
        found.update(_of_header(story, number, header))
    return found


def _running(story: Story) -> Iterator[str]:
    world = story.world
    for kind, name in world.executing:
        _, _, instance_and_path = name.partition("/")
        instance_id, _, path = instance_and_path.partition(":")
        key = path.rpartition("/")[2]
        yield "running: compensation" if key.startswith("u") else f"running: {kind}"
        if kind == "step" and "/" in path:
            yield "running: step in a fan-out"
        if kind == "step" and "/" in instance_id:
            yield "running: step in a child"
    if any(call.is_handed and not call.is_over for call in world.in_threads):
        yield "running: step in a thread"


def _in_flight(story: Story) -> Iterator[str]:
    assert story.watch is not None
    for record in story.watch.in_flight():
        if isinstance(record, InstanceRetired):
            yield "being deleted" if story.deleting else "being removed by retention"
        elif isinstance(record, SignalKept):
            yield "signal kept"
    for append in story.watch.appends:
        for record in append.records:
            if isinstance(record, InstanceResumed):
                yield "resumed anew" if record.anew else "resumed with forget" if record.forgotten else "resumed"


def _of_header(story: Story, number: int, header: InstanceHeader) -> Iterator[str]:
    if header.status.is_terminal:
        yield header.status.name.lower()
        return
    if header.is_compensating:
        yield "compensating"
    if header.cancel_requested:
        yield "cancelling"
    if header.status is MetadataStatus.SUSPENDED and header.key:
        yield from _waits(story, header, header.key)
    if header.status is MetadataStatus.BLOCKED:
        yield f"blocked: {_cause(story, number)}"
    ledger = story.ledgers.get(number)
    if ledger is not None and ledger.kept:
        yield "signal kept"


def _waits(story: Story, header: InstanceHeader, path: str) -> Iterator[str]:
    how = "parked" if story.world.live[header.workflow, header.instance_id] else "passivated"
    yield f"{how}: {_WAITS.get(path.rpartition('/')[2][0], 'children')}"
    invoked = story.invoked.get(header.instance_id)
    if invoked is not None and path in _in_scopes(story.world.programs[invoked[1]]):
        yield f"{how}: in a scope"


def _cause(story: Story, number: int) -> str:
    assert story.watch is not None
    ledger = story.ledgers.get(number)
    blocked = ledger.blocked if ledger is not None else None
    for append in story.watch.appends:
        for record in append.records:
            if isinstance(record, InstanceBlocked) and record.instance == number:
                blocked = record
    return "?" if blocked is None else _CAUSES.get(blocked.error.type.rpartition(".")[2], blocked.error.type)


def _in_scopes(program: Program, base: str = "", *, is_inside: bool = False) -> Iterator[str]:
    """Yield the keys of a body that are inside a scope of its own."""
    for key, inner, op in keyed(program, base):
        if is_inside:
            yield key
        if isinstance(op, Scope):
            yield from _in_scopes(op.ops, inner, is_inside=True)
