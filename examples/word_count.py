"""
Fan-out: the words of all Python files in a folder, four files at a time.

    python examples/word_count.py [FOLDER]      # a big one is more interesting: the standard library, if left out

Kill it in the middle, and run it again: files that were counted are not read again. A file that is no UTF-8 text does
not stop the others, and is named at the end. ``--again`` forgets what is recorded, and counts anew. Remove the
directory ``word-count-data`` to begin anew.
"""

from __future__ import annotations

import hashlib
import os
import sys
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

import memable

STANDARD_LIBRARY = Path(os.__file__).parent


@dataclass(frozen=True)
class Report:
    """
    What was found.
    """

    files: int
    words: int
    failures: dict[Path, str]


def list_files(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*.py") if path.is_file())


def count_words(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").split())


def key_of(path: Path) -> str:
    """
    Return the name of a file's child: a key has no ``/`` in it, and does not start with ``_``, as many files do.
    """
    return "file:" + urllib.parse.quote(os.fsencode(path), safe="")


@memable.workflow
async def count_folder(ctx: memable.Context, folder: Path) -> Report:
    # The list is the outcome of a step, so that each run works on the same files.
    paths = await ctx.step_in_thread("list:v1", list_files, folder)

    async def count(ctx: memable.Context, path: Path) -> int:
        # The child's own context: keys in it do not clash with those of other children.
        return await ctx.step_in_thread("count:v1", count_words, folder / path)

    outcomes = await ctx.fan_out_settled("count", count, paths, limit=4, item_key=key_of)
    words = 0
    failures: dict[Path, str] = {}
    for path, outcome in zip(paths, outcomes, strict=True):
        match outcome:
            case memable.ChildSucceeded(count_of_file):
                words += count_of_file
            case memable.ChildFailed(error):
                failures[path] = error.message
    return Report(len(paths), words, failures)


async def main(words: Sequence[str] = ()) -> None:
    folders = [word for word in words if word != "--again"]
    folder = Path(await trio.Path(folders[0] if folders else STANDARD_LIBRARY).resolve())
    instance_id = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    async with memable.open_engine("word-count-data", workflows=[count_folder]) as engine:
        invocation = await engine.invoke(count_folder, folder, instance_id=instance_id)
        if "--again" in words:
            await invocation.result()
            invocation = await engine.resume(count_folder, instance_id, forget=["list:v1", "count"])
        report = await invocation.result()
    print(f"{report.words:,} words in {report.files:,} files below {folder}")
    for path, problem in report.failures.items():
        print(f"not counted: {path}: {problem}")


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
