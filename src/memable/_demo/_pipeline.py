"""
The job: a workflow with one step for each file of a library. This is what a user of memable writes.
"""

from __future__ import annotations

import hashlib
import os
import urllib.parse
from pathlib import Path

import trio

from .. import Context
from .._keys import MAX_KEY_BYTES
from ._counting import FileCounts, Report, Tally, count_file, list_files
from ._effects import Effects

#: Enough to keep a core busy while the outcomes of other steps are being written.
STEPS_AT_ONCE = 4

LIST_KEY = "list-files"


async def count_library(ctx: Context, root: Path, effects: Effects) -> Report:
    """
    Count lines, tokens and names of all Python files below *root*.

    Replay:
        The list of files is the outcome of a step, too: after a crash the same files are asked for, and those that
        were counted are not read again.
    """
    paths = await ctx.step_in_thread(LIST_KEY, _list_files, root, effects)
    effects.acknowledged(LIST_KEY)
    tally = Tally()
    remaining = iter(paths)

    async def count_remaining() -> None:
        for path in remaining:
            key = key_of(path)
            counts = await ctx.step_in_thread(key, _count_file, root, path, effects)
            effects.acknowledged(key)
            tally.add(counts)

    async with trio.open_nursery() as nursery:
        for _ in range(STEPS_AT_ONCE):
            nursery.start_soon(count_remaining)
    return tally.report()


def _list_files(root: Path, effects: Effects) -> list[str]:
    """List the files, and tell the outside world that it happened."""
    effects.ran(LIST_KEY)
    return list_files(root)


def _count_file(root: Path, path: str, effects: Effects) -> FileCounts:
    """Count one file, and tell the outside world that it happened."""
    effects.ran(key_of(path))
    return count_file(root / path)


def key_of(path: str) -> str:
    """
    Return the key of the step that counts the file at *path*, relative and with ``/``.

    No two paths have the same key: what a key may not hold, the ``:`` that stands for ``/``, and the ``%`` that marks
    a code are all written as codes. A path too long for a key is told by its digest.
    """
    raw = os.fsencode(path)
    key = "count:" + urllib.parse.quote(raw).replace("/", ":")
    if len(key) <= MAX_KEY_BYTES:
        return key
    return "count-long:" + hashlib.sha256(raw).hexdigest()


def keys_of(paths: list[str]) -> frozenset[str]:
    """
    Return the keys of all steps of a library with these files.
    """
    return frozenset((LIST_KEY, *map(key_of, paths)))
