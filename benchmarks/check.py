"""
Compares two revisions of memable in one run, and exits with 1 if the newer one is slower beyond noise.

Both are taken out of git into a directory of their own, and run in turns, a process each time, on the workloads of
*this* checkout and on the packages that are installed here. See comparing.py for the rule that decides.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import attrs
import machine
from check_workloads import WORKLOADS
from comparing import ORDER, Comparison, Side, Verdict, compare
from figures import aligned

ROOT = Path(__file__).parent.parent
#: So many rounds give each bound of a dozen workloads two pairs to spare.
ROUNDS = 8
THRESHOLD = 0.05
#: How often a run may be wrong about any of its bounds, all workloads together.
ERROR_RATE = 0.01
#: What has no name in git: the files as they are.
WORK_TREE = "the work tree"


def main() -> int:
    options = _parser().parse_args()
    if machine.load() > machine.usable_cores() / 2:
        print("This machine is busy: what counts as noise will be large.")
    names = options.only or list(WORKLOADS)
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="memable-check-") as directory:
        parent = Path(directory).absolute()
        sources: dict[Side, Path] = {"base": parent / "base", "head": parent / "head"}
        _take_out(options.base, sources["base"])
        _take_out(options.head, sources["head"])
        times_s = _measure(sources, parent, names, options.rounds)
    comparisons = {name: compare(times_s[name], options.threshold, ERROR_RATE / len(names) / 2) for name in names}
    print()
    print(_table(comparisons))
    print()
    if options.json is not None:
        document = {
            "base": options.base,
            "head": options.head,
            "machine": machine.facts(options.dir),
            "order": ORDER,
            "times_s": times_s,
            "comparisons": {
                name: {**attrs.asdict(found), "verdict": found.verdict.value} for name, found in comparisons.items()
            },
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    slower = [name for name, found in comparisons.items() if found.verdict is Verdict.SLOWER]
    if any(not found.low for found in comparisons.values()):
        print("Too few rounds to say anything for sure.")
    print(f"{options.head} is slower than {options.base}: {', '.join(slower)}" if slower else "not slower")
    return 1 if slower else 0


def _take_out(revision: str, directory: Path) -> None:
    """
    Put the package of a revision into a directory, compiled, as an installed one is.
    """
    if revision == WORK_TREE:
        shutil.copytree(ROOT / "src", directory / "src", ignore=shutil.ignore_patterns("__pycache__"))
    else:
        git = shutil.which("git") or "git"
        command = [git, "archive", "--format=tar", revision, "src"]
        done = subprocess.run(command, check=False, capture_output=True, cwd=ROOT)
        if done.returncode != 0:
            sys.exit(f"{revision} cannot be taken out of git: {done.stderr.decode(errors='replace').strip()}")
        with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
            archive.extractall(directory, filter="data")
    compileall.compile_dir(directory, quiet=1)


def _measure(sources: Mapping[Side, Path], parent: Path, names: Sequence[str], rounds: int) -> dict[str, list[float]]:
    times_s: dict[str, list[float]] = {name: [] for name in names}
    for side in sources:
        # A first one, which does not count, shows that it runs at all, and warms up the caches of the system.
        _child(sources[side], parent, names, 0)
    for number in range(rounds):
        print(f"round {number + 1} of {rounds} ...", file=sys.stderr)
        for side in ORDER:
            for name, took_s in _child(sources[side], parent, names, number).items():
                times_s[name].append(took_s)
    return times_s


def _child(source: Path, parent: Path, names: Sequence[str], seed: int) -> dict[str, float]:
    environment = {
        **os.environ,
        # It comes before what is installed.
        "PYTHONPATH": str(source / "src"),
        # Both sides have the same luck with the places of their strings in dictionaries.
        "PYTHONHASHSEED": str(seed),
    }
    command: list[str | Path] = [sys.executable, ROOT / "benchmarks" / "check_workloads.py", source, parent, *names]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _table(comparisons: Mapping[str, Comparison]) -> str:
    header = ("workload", "head / base", "surely between", "itself / itself", "allowed", "")
    rows = [
        (
            name,
            f"{found.ratio:.3f}",
            f"{found.low:.3f} and {found.high:.3f}",
            f"{found.noise:.3f}",
            f"{found.allowed:.3f}",
            found.verdict.value,
        )
        for name, found in comparisons.items()
    ]
    return aligned([header, *rows])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compare two revisions of memable, and fail if the newer is slower.")
    option: Any = parser.add_argument
    option("base", metavar="BASE", help="the revision to compare with")
    option("head", metavar="HEAD", nargs="?", default=WORK_TREE, help=f"the revision to judge (default: {WORK_TREE})")
    option("--only", action="append", choices=WORKLOADS, metavar="NAME", help="one of the workloads; repeatable")
    option("--rounds", type=int, default=ROUNDS, help=f"how often base, head, head, base are run (default: {ROUNDS})")
    option("--threshold", type=float, default=THRESHOLD, help=f"how much slower is allowed (default: {THRESHOLD})")
    option("--json", type=Path, metavar="FILE", help="write all times to FILE, too")
    option(
        "--dir", type=Path, default=Path(), help="measure on this directory's file system (default: the current one's)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
