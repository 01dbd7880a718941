"""
Measures memable, prints one table of figures, and exits with 1 if a goal is missed.

Figures are ratios within one run wherever they can be: machines differ, and so do the hours of one machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import compaction
import concurrent_steps
import fan_out
import import_time
import machine
import opening
import replay
import sequential_steps
import short_workflows
import store_append
import suspended
import timers
from figures import Figure, Settings, as_json, table_of

WORKLOADS: dict[str, Callable[[Settings], list[Figure]]] = {
    "sequential": sequential_steps.measure,
    "concurrent": concurrent_steps.measure,
    "replay": replay.measure,
    "import": import_time.measure,
    "store": store_append.measure,
    "opening": opening.measure,
    "compaction": compaction.measure,
    "short": short_workflows.measure,
    "timers": timers.measure,
    "suspended": suspended.measure,
    "fan_out": fan_out.measure,
}

ROUNDS = 7
QUICK_ROUNDS = 3


def main() -> int:
    options = _parser().parse_args()
    facts = machine.facts(options.dir)
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    if facts["file system"] in machine.IN_MEMORY:
        print("This file system is in memory, where a sync costs nothing: give another one with --dir.")
    if machine.load() > machine.usable_cores() / 2:
        print("This machine is busy: figures of time will be too high, and those of rate too low.")
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    figures: list[Figure] = []
    for name in options.only or WORKLOADS:
        print(f"{name} ...", file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=options.dir, prefix="memable-bench-") as directory:
            figures.extend(WORKLOADS[name](Settings(Path(directory).absolute(), rounds)))
    print()
    print(table_of(figures))
    if options.json is not None:
        document = {"machine": facts, "rounds": rounds, "figures": [as_json(figure) for figure in figures]}
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    missed = [figure for figure in figures if figure.goal is not None and not figure.goal.is_met]
    print()
    print(f"goals missed: {len(missed)}" if missed else "all goals met")
    return 1 if missed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure how fast memable is, as ratios to what the machine can do.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE, too")
    parser.add_argument(
        "--only", action="append", choices=WORKLOADS, metavar="NAME", help=f"one of {', '.join(WORKLOADS)}; repeatable"
    )
    parser.add_argument("--quick", action="store_true", help=f"measure {QUICK_ROUNDS} rounds instead of {ROUNDS}")
    parser.add_argument(
        "--dir", type=Path, default=Path(), help="measure on this directory's file system (default: the current one's)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
