"""
The lines that a worker appends to a file outside its store: what it really did, whatever memable says.
"""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path

import attrs


class Kind(Enum):
    """
    What a line tells about a step.
    """

    RAN = "ran"
    "Its function was called."
    ACKNOWLEDGED = "acknowledged"
    "The workflow's body was given its outcome, whether it ran now or was recovered."


@attrs.frozen
class Effect:
    """
    One line.
    """

    kind: Kind
    key: str


@attrs.frozen
class Effects:
    """
    Appends lines to a worker's file. May be used from threads.
    """

    path: Path

    def ran(self, key: str) -> None:
        """
        Note that the step's function was called.
        """
        self._append(Effect(Kind.RAN, key))

    def acknowledged(self, key: str) -> None:
        """
        Note that the body was given the step's outcome.
        """
        self._append(Effect(Kind.ACKNOWLEDGED, key))

    def _append(self, effect: Effect) -> None:
        line = f"{effect.kind.value} {effect.key}\n".encode()
        # One write is in the system's hands as a whole, whenever this process is killed; nothing waits in a buffer.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)


@attrs.define
class EffectsReader:
    """
    Reads a worker's file while it grows.
    """

    _path: Path
    _offset: int = 0

    def read_new(self) -> list[Effect]:
        """
        Return the lines that are new since the last call.

        A last line without its end counts only once it is complete. A kill may cut it where it crosses a page; then it
        never does: the call it tells of had no effect yet, or the body was not told.
        """
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            return []
        complete = new[: new.rfind(b"\n") + 1]
        self._offset += len(complete)
        return [_parse(line) for line in complete.decode().splitlines()]


def _parse(line: str) -> Effect:
    kind, key = line.split(" ")
    return Effect(Kind(kind), key)
