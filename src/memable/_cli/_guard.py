"""
Runs a command so that whatever goes wrong is one line that says so, and an exit status.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import attrs

from .._errors import MemableError
from ._escaping import escape_line
from ._reading import NotInStoreError

RIGHT = 0
WRONG = 1
#: What a shell reports for a process that SIGINT ended.
INTERRUPTED = 130


@attrs.frozen
class Told:
    """
    What a command has found out and is about to print. Its exit status stands, whether somebody reads that or not.
    """

    status: int
    tell: Callable[[TextIO], None]
    "Prints it."


def guard(
    name: str, run: Callable[[argparse.Namespace], Told | None], *, failure: int = WRONG
) -> Callable[[argparse.Namespace], int]:
    """
    Return a function that does what *run* does, tells of its errors on standard error, and returns the exit status.

    Args:
        name: What the command is called in front of its errors.
        run: Prints to standard output. A reader of that who leaves early, as ``head`` does, has seen enough. May return
            what is to be printed then, with an exit status of its own.
        failure: The exit status if it raises an error.
    """

    def guarded(given: argparse.Namespace) -> int:
        status = RIGHT
        try:
            _make_safe(sys.stdout)
            told = run(given)
            if told is not None:
                status = told.status
                told.tell(sys.stdout)
            sys.stdout.flush()
        except BrokenPipeError:
            _abandon_output()
        except KeyboardInterrupt:
            _abandon_output()
            return complain(name, "interrupted", INTERRUPTED)
        except (MemableError, NotInStoreError) as error:
            return complain(name, str(error), failure)
        except OSError as error:
            _abandon_output()
            return complain(name, str(error), failure)
        return status

    return guarded


def have_streams() -> None:
    """
    Put nowhere in place of standard streams that were closed when this process began: what they get is not wanted.

    Also, no file of a store is to get the number of one of them.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - as long as the process


def complain(name: str, problem: str, status: int) -> int:
    """
    Print a line on standard error, and return *status*.
    """
    _make_safe(sys.stderr)
    sys.stderr.write(f"{name}: {escape_line(problem)}\n")
    return status


def _make_safe(stream: object) -> None:
    """Have characters escaped that the stream's encoding lacks: that is no reason to fail."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


def _abandon_output() -> None:
    """Keep the interpreter, when it ends, from trying once more to write what could not be written."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        # It is no file of the operating system's.
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
