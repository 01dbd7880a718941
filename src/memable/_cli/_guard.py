"""
Runs a command so that whatever goes wrong is one line that says so, and an exit status.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable

from .._errors import MemableError
from ._escaping import escape_line

RIGHT = 0
WRONG = 1
#: What a shell reports for a process that SIGINT ended.
INTERRUPTED = 130


def guard(
    name: str, run: Callable[[argparse.Namespace], int | None], *, failure: int = WRONG
) -> Callable[[argparse.Namespace], int]:
    """
    Return a function that does what *run* does, tells of its errors on standard error, and returns the exit status.

    Args:
        name: What the command is called in front of its errors.
        run: Prints to standard output. A reader of that who leaves early, as ``head`` does, has seen enough. May return
            an exit status of its own.
        failure: The exit status if it raises an error.
    """

    def guarded(given: argparse.Namespace) -> int:
        status = None
        try:
            _make_safe(sys.stdout)
            status = run(given)
            sys.stdout.flush()
        except BrokenPipeError:
            _abandon_output()
        except KeyboardInterrupt:
            _abandon_output()
            return _complain(name, "interrupted", INTERRUPTED)
        except MemableError as error:
            return _complain(name, str(error), failure)
        except OSError as error:
            _abandon_output()
            return _complain(name, str(error), failure)
        return RIGHT if status is None else status

    return guarded


def _complain(name: str, problem: str, status: int) -> int:
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
