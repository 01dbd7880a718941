"""
Says in words what a write to a log holds.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any, cast

from .._frames import PREFIX
from .._json import loads

_KINDS_OF_STORE = frozenset(("store_opened", "store_closed"))
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
    found: list[str] = []
    for line in _LINE.findall(chunk):
        prefix = PREFIX.match(line)
        if prefix is not None:
            # Recovery writes what a torn batch has left to a file of its own.
            with suppress(ValueError):
                found.append(_describe(cast("dict[str, Any]", loads(line[prefix.end() :])), names))
    if not found:
        return None
    more = len(found) - _MOST_NAMED
    return ", ".join(found[:_MOST_NAMED]) + (f" and {more} more records" if more > 0 else "")


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
