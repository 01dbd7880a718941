"""
Makes each mutant of the store in a copy of the checkout, and shows which test notices it.

Prints a table, and fails if a mutant survives. Give names of mutants, or parts of them, to try only those.
"""

# ruff: noqa: T201 - a command prints

from __future__ import annotations

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs

from mutants import MUTANTS, ROOT, Mutant

#: A test that a mutant makes hang has not noticed it: it must fail.
TIMEOUT_S = 300

_COPIED = ("src", "tests", "pyproject.toml")
_FAILED = re.compile(r"^(?:FAILED|ERROR) tests/(\S+?)\.py(?:::(.*?))?(?: - |$)", re.MULTILINE)


@attrs.frozen
class Verdict:
    """
    What the tests say of a mutant.
    """

    mutant: Mutant
    is_caught: bool
    how: str
    "The test that failed, or why none did."


@attrs.frozen
class Checkout:
    """
    A copy of the checkout, to be changed.
    """

    path: Path

    @classmethod
    def make(cls, path: Path) -> Checkout:
        """
        Copy what the tests need.
        """
        path.mkdir()
        for name in _COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, path / name, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
            else:
                shutil.copy(source, path / name)
        return cls(path)

    def test(self, tests: Iterable[str], *options: str) -> tuple[int | None, str]:
        """
        Run tests here; return pytest's exit code, or None if it took too long, and what it wrote.
        """
        ids = [f"tests/{name.replace('::', '.py::', 1)}" for name in tests]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", *options, *ids],
                cwd=self.path,
                # Bytecode is told from its source by size and second only.
                env={**os.environ, "PYTHONPATH": str(self.path / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return None, ""
        return done.returncode, done.stdout + done.stderr

    def judge(self, mutant: Mutant) -> Verdict:
        """
        Make a mutant, test it, and undo it.
        """
        path = self.path / "src" / "memable" / mutant.file
        try:
            text = path.read_text("utf-8")
            path.write_text(mutant.apply(text), "utf-8")
        except (OSError, ValueError) as exc:
            return Verdict(mutant, False, str(exc))
        try:
            code, output = self.test(mutant.tests, "-x", "--tb=no")
        finally:
            path.write_text(text, "utf-8")
        failed = _FAILED.search(output)
        if code == 1 and failed is not None and failed[2]:
            return Verdict(mutant, True, f"{failed[1]}::{failed[2]}")
        if code is None:
            return Verdict(mutant, False, f"its tests hang for more than {TIMEOUT_S} s")
        return Verdict(mutant, False, "all its tests pass" if code == 0 else f"pytest could not run: {output[-300:]}")


def chosen(names: Sequence[str]) -> list[Mutant]:
    """
    Return the mutants whose names contain one of *names*, or all.
    """
    return [mutant for mutant in MUTANTS if not names or any(name in mutant.name for name in names)]


def judge_all(mutants: Sequence[Mutant], directory: Path, jobs: int) -> list[Verdict]:
    """
    Judge mutants, several at once, each in a copy of the checkout that no other one is in.
    """
    free: queue.SimpleQueue[Checkout] = queue.SimpleQueue()
    for number in range(jobs):
        free.put(Checkout.make(directory / str(number)))

    def judge(mutant: Mutant) -> Verdict:
        checkout = free.get()
        try:
            verdict = checkout.judge(mutant)
        finally:
            free.put(checkout)
        print(f"{'caught' if verdict.is_caught else 'SURVIVED':8} {mutant.name}", flush=True)
        return verdict

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(judge, mutants))


def print_table(verdicts: Sequence[Verdict]) -> None:
    """
    Print which test noticed which mutant.
    """
    width = max(len(verdict.mutant.name) for verdict in verdicts)
    print(f"\n{'mutant':{width}}  caught by\n{'-' * width}  {'-' * 60}")
    for verdict in verdicts:
        print(f"{verdict.mutant.name:{width}}  {'' if verdict.is_caught else 'NOBODY: '}{verdict.how}")
    caught = sum(verdict.is_caught for verdict in verdicts)
    print(f"\n{caught} of {len(verdicts)} mutants caught")


def main() -> int:
    """
    Do what the command line says; return the exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="a mutant's name, or a part of it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="so many at once")
    options = parser.parse_args()
    mutants = chosen(options.names)
    if not mutants:
        parser.error("there is no mutant of that name")
    with tempfile.TemporaryDirectory() as name:
        begun = time.monotonic()
        whole = Checkout.make(Path(name) / "whole")
        code, output = whole.test(sorted({test for mutant in mutants for test in mutant.tests}))
        if code != 0:
            print(output, "\nThe tests must pass before the store is broken.", sep="\n")
            return 1
        verdicts = judge_all(mutants, Path(name), max(1, options.jobs))
        print_table(verdicts)
        print(f"in {time.monotonic() - begun:.0f} s")
    return not all(verdict.is_caught for verdict in verdicts)


if __name__ == "__main__":
    sys.exit(main())
