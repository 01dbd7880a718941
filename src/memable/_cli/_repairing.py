"""
``memable repair``: where the repaired copy is, and what was lost. Does without rich.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

from .._json import JSON
from .._lost_records import LostRecord
from .._store._repair import Repair
from .._store._salvaging import Casualty
from ._escaping import escape_line, json_line
from ._verifying import counted, fault_tree, note_tree


def print_repair(out: TextIO, repair: Repair) -> None:
    """
    Print what came of a repair for a person.
    """
    out.writelines(escape_line(line) + "\n" for line in _lines(repair))


def print_repair_json(out: TextIO, repair: Repair) -> None:
    """
    Print it as one object.
    """
    tree: dict[str, JSON] = {
        "store": repair.location,
        "repaired": repair.target,
        "damaged": repair.kept_aside,
        "is_lossless": repair.is_lossless,
        "instances": repair.instance_count,
        "records": repair.record_count,
        "faults": [fault_tree(fault) for fault in repair.faults],
        "notes": [note_tree(note) for note in repair.notes],
        "torn": None if repair.torn is None else dict(zip(("offset", "bytes", "batches"), repair.torn, strict=True)),
        "holes": [
            {
                "file": hole.file,
                "offset": hole.offset,
                "length": hole.length,
                "lost": None if hole.lost is None else [_record_tree(record) for record in hole.lost],
            }
            for hole in repair.holes
        ],
        "casualties": [_casualty_tree(casualty) for casualty in repair.casualties],
        "doubtful": repair.doubtful_count,
        "warnings": list(_warnings(repair)),
    }
    out.write(json_line(tree, encoding=out.encoding or "utf-8") + "\n")


def _lines(repair: Repair) -> Iterator[str]:
    if repair.target is None:
        yield f"{repair.location}: nothing is damaged, so nothing was written"
        return
    for fault in repair.faults:
        yield f"fault: {fault}"
    for note in repair.notes:
        yield f"note: {note}"
    for hole in repair.holes:
        if hole.lost is None:
            yield f"lost: {hole.file}: at byte offset {hole.offset}: any number of records ({hole.length:,} bytes)"
        else:
            known = f"{counted(len(hole.lost), 'record')} of instances, known"
            yield f"lost: {hole.file}: at byte offset {hole.offset}: {known}"
    if repair.torn is not None:
        offset, size, batches = repair.torn
        what = f"{counted(size, 'byte')} of {counted(batches, 'batch', 'batches')} from byte offset {offset} on"
        yield f"torn tail: {what}: cut off, as at open"
    for casualty in repair.casualties:
        yield f"{casualty.fate}: {casualty}"
    instances, records = counted(repair.instance_count, "instance"), counted(repair.record_count, "record")
    yield f"{repair.target}: in the copy: {instances}, {records}"
    if repair.kept_aside is not None:
        yield f"{repair.kept_aside}: the damaged store; remove it when you do not need it any more"
    else:
        yield "the original is as it was; rename the two to use the copy, or open the copy where it is"
    if repair.is_lossless:
        yield "nothing was lost"
        return
    blocked = sum(casualty.fate == "blocked" for casualty in repair.casualties)
    if blocked:
        are = "instance is" if blocked == 1 else "instances are"
        yield (
            f"{blocked:,} {are} blocked, since something is lost or may be: see `memable show`, find out what each has "
            "done already, then engine.resume(...) it"
        )
    yield from (f"warning: {text}" for text in _warnings(repair))


def _warnings(repair: Repair) -> Iterator[str]:
    """Yield what cannot be told of one instance, where it is not known what was lost."""
    if all(hole.lost is not None for hole in repair.holes):
        return
    yield "instances that were started in what is lost, and recorded nothing elsewhere, cannot be named"
    if repair.doubtful_count:
        count = counted(repair.doubtful_count, "instance")
        yield (
            f"{count} that had ended may have gone on, or been removed, in what is lost: nothing tells, so the last "
            "known end of each is kept"
        )


def _casualty_tree(casualty: Casualty) -> dict[str, JSON]:
    workflow, instance_id = casualty.name or (None, None)
    return {
        "number": casualty.number,
        "workflow_name": workflow,
        "instance_id": instance_id,
        "fate": casualty.fate,
        "reason": casualty.told,
        "missing": [[first, last] for first, last in casualty.missing],
        "lost": [_record_tree(record) for record in casualty.lost],
        "dropped": [{**_record_tree(record), "reason": why} for record, why in casualty.dropped],
    }


def _record_tree(record: LostRecord) -> dict[str, JSON]:
    return {"number": record.instance, "seq": record.seq, "kind": record.kind, "key": record.path}
