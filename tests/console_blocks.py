"""
Runs what a ``console`` block of the documentation shows, and compares what is printed with what it says.

Compared loosely, line by line: gaps have any width and blank lines do not count; an instant, a time, a number with a
fraction and the id of a process are any other; ``...`` stands for anything, as a line of its own for any lines. A line
that is shown may be a part of the line that is printed, but no printed line may be missing.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import attrs

#: Seconds after which the commands of a block hang.
PATIENCE_S = 100.0

#: What differs from run to run.
_VARYING = re.compile(r"\d{4}-\d\d-\d\d(?:[T ][\d:.]+)?|\d\d?:\d\d[\d:.]*|\d+\.\d+|(?<=pid )\d+|(?<=process )\d+")
_ANYTHING = re.compile(r"\[?(?:\.\.\.|…)\]?")
#: Stands behind what a command prints, with its exit status.
_MARK = "=== exit status "


@attrs.define
class Command:
    """
    A command, with the lines that it prints.
    """

    line: str
    output: list[str] = attrs.field(factory=list[str])
    status: int = 0


def commands_of(code: str) -> list[Command]:
    """
    Return the commands that a block shows, each with what it is said to print.
    """
    commands: list[Command] = []
    for line in code.splitlines():
        if line.startswith("$ "):
            commands.append(Command(line[2:]))
        elif commands and commands[-1].line.endswith("\\"):
            commands[-1].line += "\n" + line.removeprefix("> ")
        elif commands:
            commands[-1].output.append(line)
        else:
            problem = f"a console block begins with a command ('$ ...'), not with {line!r}"
            raise ValueError(problem)
    return commands


def run_commands(lines: Sequence[str], directory: Path, programs: Path) -> list[Command]:
    """
    Run commands in one shell and return what each printed, on either of its outputs.

    Args:
        lines: The commands.
        directory: Where they are run.
        programs: Where ``python`` and ``memable`` are put.
    """
    _put_programs(programs)
    script = "".join(f"{line}\nstatus=$?; echo; echo '{_MARK}'$status\n" for line in lines)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "100"}
    environment.pop("MEMABLE_STORE", None)
    with subprocess.Popen(
        [shutil.which("bash") or "bash", "-c", script],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    ) as shell:
        try:
            printed, _ = shell.communicate(timeout=PATIENCE_S)
        finally:
            # What was left in the background ends with the block, also if that hangs.
            _kill_group(shell.pid)
    *parts, _rest = re.split(rf"{_MARK}(\d+)\n", printed)
    outputs, statuses = parts[::2], parts[1::2]
    return [
        Command(line, output.splitlines(), int(status))
        for line, output, status in zip(lines, outputs, statuses, strict=True)
    ]


def _put_programs(directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    for name, arguments in {"python": "", "python3": "", "memable": " -m memable.cli"}.items():
        program = directory / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n', encoding="utf-8")
        program.chmod(0o755)


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def are_alike(shown: Sequence[str], printed: Sequence[str]) -> bool:
    """
    Tell whether a page shows what a command has printed.
    """
    return _are_alike(_without_gaps(shown), _without_gaps(printed))


def _without_gaps(lines: Sequence[str]) -> list[str]:
    squeezed = (" ".join(line.split()) for line in lines)
    return [line for line in squeezed if line]


def _are_alike(shown: Sequence[str], printed: Sequence[str]) -> bool:
    if not shown:
        return not printed
    if _ANYTHING.fullmatch(shown[0]):
        return any(_are_alike(shown[1:], printed[start:]) for start in range(len(printed) + 1))
    return bool(printed) and bool(_pattern(shown[0]).search(printed[0])) and _are_alike(shown[1:], printed[1:])


def _pattern(shown: str) -> re.Pattern[str]:
    """Return what finds a line that is shown."""
    pieces = (_VARYING.split(piece) for piece in _ANYTHING.split(shown))
    return re.compile(".*".join(r"[\dT:. -]+".join(re.escape(text) for text in texts) for texts in pieces))
