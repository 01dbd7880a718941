"""
The command ``memable``, with the extra ``cli``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

#: The exit status of a command that could not begin.
USAGE_ERROR = 2

#: More would not show more.
MAX_KILLS = 1000


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command line.

    Args:
        argv: Its words after ``memable``; those that this process was started with if left out.

    Returns:
        The exit status: 0 if all is right, 1 if something is wrong, 2 if the command could not begin.

    Raises:
        SystemExit: The words are wrong, or ask for help or the version, which is printed.
    """
    given = _parser().parse_args(argv)
    try:
        status: int = given.run(given)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "rich":
            raise
        print("memable: this needs the package rich; install it with: pip install 'memable[cli]'", file=sys.stderr)
        return USAGE_ERROR
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="memable", description="Durable execution for trio.")
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _describe_demo(commands.add_parser("demo", help="show a workflow that survives kill -9"))
    return parser


def _version() -> str:
    try:
        return f"memable {version('memable')}"
    except PackageNotFoundError:
        return "memable, used from its source without being installed"


def _describe_demo(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Tokenise Python's standard library in a workflow, one step a file, in a process that is killed with SIGKILL "
        "at random moments and started again. At the end the result is checked against a straight computation, and no "
        "step that was acknowledged may have run twice. Takes about half a minute."
    )
    parser.epilog = "exit status: 0 if all is right, 1 if anything is wrong, 2 if it could not begin"
    parser.add_argument("--kills", type=_kills, default=5, metavar="N", help="how often to kill it (default: 5)")
    parser.add_argument("--seed", type=int, metavar="S", help="choose the moments of an earlier demo again")
    parser.add_argument("--store", type=Path, metavar="DIR", help="keep the store in DIR (default: temporary)")
    parser.add_argument("--keep", action="store_true", help="do not remove the temporary directory")
    # For tests: count another directory than the standard library.
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.set_defaults(run=_run_demo)


def _kills(text: str) -> int:
    number = int(text)
    if not 0 <= number <= MAX_KILLS:
        raise argparse.ArgumentTypeError(f"{number} is not from 0 to {MAX_KILLS}")
    return number


def _run_demo(given: argparse.Namespace) -> int:
    # Needs rich, which is no dependency of memable's core.
    from ._demo._command import Options, run_demo  # noqa: PLC0415 - an optional extra

    return run_demo(Options(kills=given.kills, seed=given.seed, store=given.store, keep=given.keep, root=given.root))


if __name__ == "__main__":
    sys.exit(main())
