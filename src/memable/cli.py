"""
The command ``memable``: its words, and which module does what they say. With the extra ``cli``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ._cli import _exporting, _json_lines, _repairing, _verifying
from ._cli._guard import INTERRUPTED, Told, complain, guard, have_streams
from ._cli._moments import Moments
from ._cli._reading import Selection, check_directory, open_store
from ._disk import RealDisk
from ._keys import SEPARATOR
from ._states import MetadataStatus
from ._store._repair import repair_store
from ._store._verify import verify_store

#: The exit status of a command that could not begin.
USAGE_ERROR = 2

#: More would not show more.
MAX_KILLS = 1000

#: No store has more instances than can be counted with so many.
MAX_NUMBER_DIGITS = 18

#: So many instances are listed unless somebody asks for more: enough for a screen or two.
DEFAULT_LIMIT = 100

_READING_EPILOG = (
    "exit status: 0 if all is right, 1 if there is no such store or instance or it cannot be read, 2 for wrong words"
)


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command line.

    Args:
        argv: Its words after ``memable``; those that this process was started with if left out.

    Returns:
        The exit status: 0 if all is right, 1 if something is wrong, 2 if the command could not begin, 130 if somebody
        has interrupted it.

    Raises:
        SystemExit: The words are wrong, or ask for help or the version, which is printed.
    """
    have_streams()
    try:
        given = _parser().parse_args(argv)
        status: int = given.run(given)
    except KeyboardInterrupt:
        return complain("memable", "interrupted", INTERRUPTED)
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
    _describe_ls(commands.add_parser("ls", help="list the instances in a store"))
    _describe_show(commands.add_parser("show", help="show everything about one instance"))
    _describe_history(commands.add_parser("history", help="show what happened to one instance, on a scale of time"))
    _describe_export(commands.add_parser("export", help="make a test of one instance"))
    _describe_verify(commands.add_parser("verify", help="read all of a store, and tell what is damaged"))
    _describe_repair(commands.add_parser("repair", help="save what is intact of a damaged store into a copy"))
    _describe_demo(commands.add_parser("demo", help="show a workflow that survives kill -9"))
    return parser


def _version() -> str:
    try:
        return f"memable {version('memable')}"
    except PackageNotFoundError:
        return "memable, used from its source without being installed"


# Reading a store ---------------------------------------------------------------------------------------------------


def _describe_reading(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], Told | None]) -> None:
    """Add what all commands have that read a store."""
    parser.epilog = _READING_EPILOG
    parser.add_argument("store", type=Path, metavar="STORE", help="the store's directory")
    parser.add_argument("--json", action="store_true", help="print objects of JSON, one a line")
    parser.add_argument("--utc", action="store_true", help="show times in UTC rather than local time; JSON always does")
    parser.set_defaults(run=guard(parser.prog, run))


def _describe_ls(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "List the instances in a store, in the order of their creation. Reads beside a running engine, and changes "
        "nothing."
    )
    _describe_reading(parser, _run_ls)
    parser.add_argument("--workflow", metavar="NAME", help="only those of this workflow")
    parser.add_argument(
        "--status",
        action="append",
        choices=[status.value for status in MetadataStatus],
        default=[],
        help="only those in this status; may be given several times",
    )
    parser.add_argument(
        "--after",
        type=_place,
        metavar="INSTANCE",
        help="only those created after this one: its number (#), or WORKFLOW/INSTANCE_ID",
    )
    parser.add_argument("--newest", action="store_true", help="show the newest ones rather than the oldest")
    limits = parser.add_mutually_exclusive_group()
    limits.add_argument(
        "--limit",
        type=_limit,
        default=DEFAULT_LIMIT,
        metavar="N",
        help=f"show at most so many (default: {DEFAULT_LIMIT})",
    )
    limits.add_argument("--all", action="store_const", const=None, dest="limit", help="show all")


def _describe_show(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Show everything about one instance: where it stands, what can be done about it, what it was given and what "
        "came of it. Reads beside a running engine, and changes nothing."
    )
    _describe_reading(parser, _run_show)
    _describe_instance(parser)
    parser.add_argument("--full", action="store_true", help="cut no value and leave nothing out")


def _describe_history(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Show what happened to one instance, attempt by attempt, on a scale of time. Reads beside a running engine, "
        "and changes nothing."
    )
    _describe_reading(parser, _run_history)
    _describe_instance(parser)
    parser.add_argument("--full", action="store_true", help="cut no value and leave nothing out")


def _describe_instance(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workflow", metavar="WORKFLOW", help="the workflow's name; or WORKFLOW/INSTANCE_ID in one word")
    parser.add_argument("instance_id", metavar="INSTANCE_ID", nargs="?", help="the instance's id")
    parser.set_defaults(refuse=parser.error)


def _place(text: str) -> str:
    is_number = text.isascii() and text.isdigit() and len(text) <= MAX_NUMBER_DIGITS
    if SEPARATOR not in text and not is_number:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is neither a number nor WORKFLOW/INSTANCE_ID")
    return text


def _limit(text: str) -> int:
    return _whole(text, 1, 10**MAX_NUMBER_DIGITS)


def _whole(text: str, least: int, most: int) -> int:
    is_number = text.isascii() and text.isdigit() and len(text) <= MAX_NUMBER_DIGITS
    if not is_number or not least <= int(text) <= most:
        limits = f"from {least} to {most}" if most <= MAX_KILLS else f"of at least {least}"
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a whole number {limits}")
    return int(text)


def _run_ls(given: argparse.Namespace) -> None:
    selection = Selection(
        workflow=given.workflow,
        statuses=frozenset(map(MetadataStatus, given.status)),
        limit=given.limit,
        after=given.after,
        newest=given.newest,
    )
    with open_store(given.store) as snapshot:
        if given.json:
            _json_lines.print_listing(sys.stdout, snapshot, selection)
            return
        from ._cli import _console, _listing  # noqa: PLC0415 - an optional extra

        _listing.print_listing(_console.open_output(sys.stdout), snapshot, selection, _moments(given))


def _run_show(given: argparse.Namespace) -> None:
    workflow, instance_id = _named_instance(given)
    with open_store(given.store) as snapshot:
        if given.json:
            _json_lines.print_instance(sys.stdout, snapshot, workflow, instance_id)
            return
        from ._cli import _console, _report  # noqa: PLC0415 - an optional extra

        limits = _report.Limits(None, None) if given.full else _report.Limits()
        output = _console.open_output(sys.stdout)
        _report.print_report(output, snapshot, (workflow, instance_id), _moments(given), limits)


def _run_history(given: argparse.Namespace) -> None:
    workflow, instance_id = _named_instance(given)
    with open_store(given.store) as snapshot:
        if given.json:
            _json_lines.print_history(sys.stdout, snapshot, workflow, instance_id)
            return
        from ._cli import _console, _history_table  # noqa: PLC0415 - an optional extra

        output = _console.open_output(sys.stdout)
        _history_table.print_history(output, snapshot, (workflow, instance_id), _moments(given), is_full=given.full)


def _named_instance(given: argparse.Namespace) -> tuple[str, str]:
    """Return workflow and instance id. A workflow's name has no separator, an id of a child has."""
    if given.instance_id is not None:
        return given.workflow, given.instance_id
    workflow, _, instance_id = given.workflow.partition(SEPARATOR)
    if not instance_id:
        given.refuse(f"which instance of {workflow!r}? Give its id, too")
    return workflow, instance_id


def _moments(given: argparse.Namespace) -> Moments:
    return Moments(datetime.fromtimestamp(time.time(), UTC), is_utc=given.utc)


# Exporting an instance ---------------------------------------------------------------------------------------------


def _describe_export(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make a test of what is recorded of one instance and of the child instances that it waited for: a file for "
        "pytest that runs the present code over it, without executing a step, and fails as long as that is blocked or "
        "fails. Reads beside a running engine, and changes nothing. Whatever the instance was given, and whatever came "
        "of its steps, stands in the file as it is, secrets included: look before you commit it."
    )
    parser.epilog = _READING_EPILOG
    parser.add_argument("store", type=Path, metavar="STORE", help="the store's directory")
    _describe_instance(parser)
    parser.add_argument("--pytest", action="store_true", required=True, help="as a test for pytest")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="write it there; FILE must not exist (default: print it)"
    )
    parser.add_argument(
        "--import",
        type=_importable,
        dest="origin",
        metavar="MODULE:NAME",
        help="where the workflow is, for the file's import (default: to be filled in)",
    )
    parser.set_defaults(run=guard(parser.prog, _run_export))


def _importable(text: str) -> _exporting.Origin:
    origin = _exporting.parse_origin(text)
    if origin is None:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not MODULE:NAME, as in 'shop.orders:order'")
    return origin


def _run_export(given: argparse.Namespace) -> Told:
    workflow, instance_id = _named_instance(given)
    with open_store(given.store) as snapshot:
        text = _exporting.make_test(snapshot, workflow, instance_id, given.origin, time.time())
    if given.output is None:
        return Told(0, lambda out: print(text, end="", file=out))
    with given.output.open("x", encoding="utf-8") as file:
        file.write(text)
    return Told(0, lambda out: print(f"wrote {given.output}", file=out))


# Verifying and repairing a store -----------------------------------------------------------------------------------


def _describe_verify(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Read every byte of a store, and tell all that is damaged, with file and byte offset. Reads beside a running "
        "engine, and changes nothing."
    )
    parser.epilog = "exit status: 0 if it is sound, 1 if it has faults, 2 if there is no store or it cannot be read"
    parser.add_argument("store", type=Path, metavar="STORE", help="the store's directory")
    parser.add_argument("--json", action="store_true", help="print one object of JSON")
    parser.set_defaults(run=guard(parser.prog, _run_verify, failure=USAGE_ERROR))


def _describe_repair(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write a copy of a damaged store with all that is intact, and tell what is lost. No engine may have it open. "
        "Instances of which something is lost, or may be, are blocked in the copy: nothing of them runs before "
        "somebody resumes them. The damaged store is never changed."
    )
    parser.epilog = "exit status: 0 if nothing was lost, 1 if something was, 2 if it could not be repaired"
    parser.add_argument("store", type=Path, metavar="STORE", help="the store's directory")
    places = parser.add_mutually_exclusive_group()
    places.add_argument(
        "--to",
        type=Path,
        metavar="DIR",
        help="write the copy there, damaged or not (default: STORE.repaired, if damaged)",
    )
    places.add_argument(
        "--in-place",
        action="store_true",
        help="let the copy take the store's place; the damaged one is kept as STORE.damaged-TIME",
    )
    parser.add_argument("--json", action="store_true", help="print one object of JSON")
    parser.set_defaults(run=guard(parser.prog, _run_repair, failure=USAGE_ERROR))


def _run_verify(given: argparse.Namespace) -> Told:
    check_directory(given.store)
    verdict = verify_store(RealDisk(), given.store)
    tell = _verifying.print_verdict_json if given.json else _verifying.print_verdict
    return Told(0 if verdict.is_sound else 1, lambda out: tell(out, verdict))


def _run_repair(given: argparse.Namespace) -> Told:
    check_directory(given.store)
    # It is the directory itself that gets another name, not a link to it.
    directory = given.store.resolve() if given.in_place else given.store
    repair = repair_store(RealDisk(), directory, time.time(), given.to, in_place=given.in_place)
    tell = _repairing.print_repair_json if given.json else _repairing.print_repair
    return Told(0 if repair.is_lossless else 1, lambda out: tell(out, repair))


# The demo ----------------------------------------------------------------------------------------------------------


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
    return _whole(text, 0, MAX_KILLS)


def _run_demo(given: argparse.Namespace) -> int:
    # Needs rich, which is no dependency of memable's core.
    from ._demo._command import Options, run_demo  # noqa: PLC0415 - an optional extra

    return run_demo(Options(kills=given.kills, seed=given.seed, store=given.store, keep=given.keep, root=given.root))


if __name__ == "__main__":
    sys.exit(main())
