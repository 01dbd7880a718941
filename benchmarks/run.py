"""
Measures memable, prints tables of figures, writes them as JSON, and exits with 1 if a goal is missed.

Figures are ratios within one run wherever they can be: machines differ, and so do the hours of one machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import compaction
import concurrent_steps
import exploring
import fan_out
import growth
import import_time
import large_values
import machine
import opening
import peers
import postgres
import replay
import sequential_steps
import short_workflows
import signalling
import store_append
import suspended
import timers
from figures import Figure, Settings, aligned, as_json, table_of

WORKLOADS: dict[str, Callable[[Settings], list[Figure]]] = {
    "sequential": sequential_steps.measure,
    "concurrent": concurrent_steps.measure,
    "short": short_workflows.measure,
    "replay": replay.measure,
    "signal": signalling.measure,
    "suspended": suspended.measure,
    "timers": timers.measure,
    "fan_out": fan_out.measure,
    "values": large_values.measure,
    "growth": growth.measure,
    "import": import_time.measure,
    "explore": exploring.measure,
    "store": store_append.measure,
    "peers": peers.measure,
    "opening": opening.measure,
    "compaction": compaction.measure,
}
#: They make a store of a million instances first, so they run with --full, or when asked for by name.
SLOW = frozenset(("opening", "compaction"))

ROUNDS = 3
FULL_ROUNDS = 7
#: Where the URL of a database is taken from if no option says it.
POSTGRES_VARIABLE = "MEMABLE_BENCH_POSTGRES"


def main() -> int:
    options = _parser().parse_args()
    facts = machine.facts(options.dir)
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    if facts["file system"] in machine.IN_MEMORY:
        print("This file system is in memory, where a sync costs nothing: give another one with --dir.")
    if machine.load() > machine.usable_cores() / 2:
        print("This machine is busy: figures of time will be too high, and those of rate too low.")
    names = options.only or [name for name in WORKLOADS if options.full or name not in SLOW]
    rounds = options.rounds or (FULL_ROUNDS if options.full else ROUNDS)
    notes: list[str] = []
    if not options.only and not options.full:
        notes.append(f"{' and '.join(sorted(SLOW))} skipped: they run with --full")
    figures: list[Figure] = []
    for name in names:
        print(f"{name} ...", file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=options.dir, prefix="memable-bench-") as directory:
            place = Path(directory).absolute()
            settings = Settings(place, rounds, options.full, options.peers, options.postgres, notes)
            figures.extend(WORKLOADS[name](settings))
    _print(figures, notes)
    if options.json is not None:
        document = {
            "machine": facts,
            "rounds": rounds,
            "full": options.full,
            "notes": notes,
            "figures": [as_json(figure) for figure in figures],
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        print(f"written to {options.json}")
    missed = [figure for figure in figures if figure.goal is not None and not figure.goal.is_met]
    print(f"goals missed: {len(missed)}" if missed else "all goals met")
    return 1 if missed else 0


def _print(figures: Sequence[Figure], notes: Sequence[str]) -> None:
    print()
    print(table_of(figures))
    print()
    if any(figure.system for figure in figures):
        print(aligned(peers.rows_of(figures)))
        print()
    for note in notes:
        print(f"- {note}")
    if notes:
        print()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure how fast memable is, as ratios to what the machine can do.")
    option: Any = parser.add_argument
    option("--full", action="store_true", help="measure all workloads in all sizes, which takes an hour")
    option(
        "--only", action="append", choices=WORKLOADS, metavar="NAME", help=f"one of {', '.join(WORKLOADS)}; repeatable"
    )
    option("--rounds", type=_count, help=f"how often each is measured (default: {ROUNDS}, with --full {FULL_ROUNDS})")
    option("--json", type=_new_file, metavar="FILE", help="write the figures to FILE, too")
    option(
        "--dir",
        type=_directory,
        default=Path(),
        help="measure on this directory's file system (default: the current one's)",
    )
    option(
        "--peers", type=Path, metavar="DIR", help="where peer_environments.py made the environments of other engines"
    )
    option(
        "--postgres",
        type=_database,
        default=os.environ.get(POSTGRES_VARIABLE),
        metavar="URL",
        help=f'a database for DBOS, or "{postgres.PRIVATE}" for a server of our own (default: ${POSTGRES_VARIABLE})',
    )
    return parser


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError("at least 1")
    return int(text)


def _directory(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no directory {text}")
    return Path(text)


def _new_file(text: str) -> Path:
    # Not found out after an hour of measuring.
    _directory(str(Path(text).parent))
    return Path(text)


def _database(text: str) -> str:
    if text != postgres.PRIVATE and "://" not in text:
        raise argparse.ArgumentTypeError(f"neither a URL nor the word {postgres.PRIVATE}")
    return text


if __name__ == "__main__":
    sys.exit(main())
