"""
What ``--json`` prints: objects, one a line. Does without rich.
"""

from __future__ import annotations

from itertools import islice
from typing import TextIO

from .._history import history_of
from .._json import JSON
from .._store._snapshot import StoreSnapshot
from ._advice import advise
from ._details import details_of
from ._escaping import json_line
from ._reading import Selection, find, iterate, load, place_of, select, telling_damage
from ._trees import details_tree, history_tree, metadata_tree


def print_listing(out: TextIO, snapshot: StoreSnapshot, selection: Selection) -> None:
    """
    Print each instance that is to be listed.
    """
    if selection.newest:
        headers = iter(select(snapshot, selection).shown)
    else:
        after = place_of(snapshot, selection.after)
        headers = islice(iterate(snapshot.index, selection, after=after), selection.limit)
    for header in headers:
        _print(out, metadata_tree(header))


def print_instance(out: TextIO, snapshot: StoreSnapshot, workflow: str, instance_id: str) -> None:
    """
    Print all that is told of one instance, as one object.
    """
    header = find(snapshot, workflow, instance_id)
    records = load(snapshot, header)
    with telling_damage(snapshot, header):
        details = details_of(header, records, snapshot.index.find)
        tree = details_tree(details, advise(details, is_closed=snapshot.is_closed))
    _print(out, tree)


def print_history(out: TextIO, snapshot: StoreSnapshot, workflow: str, instance_id: str) -> None:
    """
    Print each thing that happened to one instance.
    """
    header = find(snapshot, workflow, instance_id)
    records = load(snapshot, header)
    with telling_damage(snapshot, header):
        entries = history_of(records, {})
    for entry in entries:
        _print(out, history_tree(entry))


def _print(out: TextIO, tree: JSON) -> None:
    out.write(json_line(tree, encoding=out.encoding or "utf-8") + "\n")
