"""
Says in words what a write to a log holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import suppress
from typing import Any, cast

from .._frames import PREFIX
from .._json import loads

_KINDS_OF_STORE = frozenset(("store_opened", "store_closed"))
_ENDS = frozenset(("instance_completed", "instance_failed", "instance_cancelled"))
#: A place is named by no more records than these.
_MOST_NAMED = 3
_LINE = re.compile(rb"[^\n]+")


def describe_write(chunk: bytes, names: MutableMapping[int, str]) -> str | None:
    """
    Return which records a write holds, or None if it holds none.

    Args:
        chunk: What is written.
        names: What instances are called, by their numbers. Those that begin in this write are added.
    """
    found = [_describe(record, names) for record in _records_in(chunk)]
    if not found:
        return None
    more = len(found) - _MOST_NAMED
    return ", ".join(found[:_MOST_NAMED]) + (f" and {more} more records" if more > 0 else "")


def find_ends(chunk: bytes, names: Mapping[int, str]) -> tuple[str, ...]:
    """
    Return the names of the instances that a write ends.
    """
    return tuple(
        names[record["instance"]]
        for record in _records_in(chunk)
        if record["kind"] in _ENDS and record["instance"] in names
    )


def _records_in(chunk: bytes) -> Iterator[dict[str, Any]]:
    for line in _LINE.findall(chunk):
        prefix = PREFIX.match(line)
        if prefix is not None:
            # Recovery writes what a torn batch has left to a file of its own.
            with suppress(ValueError):
                yield cast("dict[str, Any]", loads(line[prefix.end() :]))


def _describe(record: dict[str, Any], names: MutableMapping[int, str]) -> str:
    kind: str = record["kind"]
    if kind in _KINDS_OF_STORE:
        return kind
    number: int = record["instance"]
    if kind == "instance_started":
        names[number] = f"{record['workflow']}/{record['instance_id']}"
    path: str | None = record.get("path")
    told = kind if path is None else f"{kind} {path!r}"
    return f"{told} of {names.get(number, f'instance {number}')}"
