"""
``memable ls``: a table of instances, and how many there are.
"""

from __future__ import annotations

from rich.text import Text

from .._listing import metadata_of
from .._states import MetadataStatus, WorkflowMetadata
from .._store._snapshot import StoreSnapshot
from ._console import Output, joined, status_text, stored
from ._escaping import cut
from ._grid import Column, make_table
from ._moments import Moments
from ._reading import Selected, Selection, select

#: A message is told in full by `memable show`.
_MESSAGE_CHARS = 200


def print_listing(output: Output, snapshot: StoreSnapshot, selection: Selection, moments: Moments) -> None:
    """
    Print the instances that are to be listed.
    """
    selected = select(snapshot, selection)
    if selected.shown:
        metadata = [metadata_of(header, None) for header in selected.shown]
        output.print(make_table(output, _columns(moments), metadata), Text())
    output.print(_sums(selected))
    hint = _hint(selected, selection)
    if hint:
        output.print(Text(hint, "dim"))


def _columns(moments: Moments) -> list[Column[WorkflowMetadata]]:
    return [
        Column(Text("#"), lambda found: Text(str(found.number), "dim"), justify="right", drop=3),
        Column(Text("status"), lambda found: status_text(found.status)),
        Column(Text("workflow"), lambda found: stored(found.workflow_name), role="name"),
        Column(Text("id"), lambda found: stored(found.instance_id, "bold"), role="name"),
        Column(Text(f"created ({moments.zone})"), lambda found: Text(moments.tell(found.created_at)), drop=1),
        Column(Text(f"updated ({moments.zone})"), lambda found: Text(moments.tell(found.updated_at)), drop=2),
        Column(Text("changed"), lambda found: Text(moments.since(found.updated_at)), justify="right", drop=5),
        Column(Text("key or message"), _about, role="hint", drop=4),
    ]


def _about(metadata: WorkflowMetadata) -> Text:
    pieces = [stored(metadata.key, "yellow")] if metadata.key else []
    if metadata.message:
        pieces.append(stored(cut(metadata.message, _MESSAGE_CHARS)))
    if metadata.recoveries:
        pieces.append(Text(f"({metadata.recoveries} crashes in a row)", "red"))
    return joined(pieces, ": ")


def _sums(selected: Selected) -> Text:
    total = selected.counts.total()
    pieces = [Text(f"{total:,} {'instance' if total == 1 else 'instances'}", "bold")]
    pieces += [
        joined([f"{selected.counts[status]:,}", status_text(status)], " ")
        for status in MetadataStatus
        if selected.counts[status]
    ]
    return joined(pieces)


def _hint(selected: Selected, selection: Selection) -> str:
    """Return how to see the others, if there are any."""
    missing = selected.counts.total() - len(selected.shown)
    if not missing:
        return ""
    hint = f"{len(selected.shown):,} of them shown"
    if selection.limit is None or not selected.shown:
        return hint
    if selection.newest:
        return f"{hint}, the newest; --all shows all"
    return f"{hint}, oldest first; go on with --after {selected.shown[-1].number}, or see --newest and --all"
