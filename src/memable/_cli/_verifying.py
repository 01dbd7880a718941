"""
``memable verify``: what is wrong with a store, and what else is worth knowing. Does without rich.
"""

from __future__ import annotations

from typing import TextIO

from .._faults import Fault, Note
from .._json import JSON
from .._store._verify import Verdict
from ._escaping import escape_line, json_line


def print_verdict(out: TextIO, verdict: Verdict) -> None:
    """
    Print a verdict for a person: each fault on a line, then the sums.
    """
    _print_lines(out, "fault", verdict.faults)
    _print_lines(out, "note", verdict.notes)
    _print(
        out,
        f"{verdict.location}: {counted(verdict.instance_count, 'instance')}, {verdict.unfinished_count:,} of them not "
        f"ended; {counted(verdict.record_count, 'record')} in {counted(verdict.file_count, 'file')} of "
        f"{counted(verdict.log_bytes, 'byte')}, for {counted(verdict.segment_count, 'segment')}; "
        f"session {verdict.session}{'' if verdict.is_closed else ', not closed'}",
    )
    if verdict.is_sound:
        _print(out, "sound: no fault was found")
    else:
        _print(out, f"{counted(len(verdict.faults), 'fault')}: `memable repair` saves what is intact, into a copy")


def print_verdict_json(out: TextIO, verdict: Verdict) -> None:
    """
    Print a verdict as one object.
    """
    out.write(json_line(verdict_tree(verdict), encoding=out.encoding or "utf-8") + "\n")


def verdict_tree(verdict: Verdict) -> dict[str, JSON]:
    """
    Return a verdict as an object of JSON.
    """
    return {
        "store": verdict.location,
        "store_id": verdict.store_id,
        "is_sound": verdict.is_sound,
        "files": verdict.file_count,
        "segments": verdict.segment_count,
        "log_bytes": verdict.log_bytes,
        "records": verdict.record_count,
        "instances": verdict.instance_count,
        "unfinished": verdict.unfinished_count,
        "session": verdict.session,
        "is_closed": verdict.is_closed,
        "faults": [fault_tree(fault) for fault in verdict.faults],
        "notes": [note_tree(note) for note in verdict.notes],
    }


def fault_tree(fault: Fault) -> dict[str, JSON]:
    """
    Return a fault as an object of JSON.
    """
    return {
        "kind": fault.kind.value,
        "file": fault.file,
        "offset": fault.offset,
        "length": fault.length,
        "instance": fault.instance,
        "problem": fault.problem,
    }


def note_tree(note: Note) -> dict[str, JSON]:
    """
    Return a note as an object of JSON.
    """
    return {"file": note.file or None, "text": note.text}


def _print_lines(out: TextIO, word: str, lines: tuple[Fault, ...] | tuple[Note, ...]) -> None:
    for line in lines:
        _print(out, f"{word}: {line}")


def _print(out: TextIO, text: str) -> None:
    out.write(escape_line(text) + "\n")


def counted(number: int, what: str, many: str | None = None) -> str:
    """
    Return how many there are of what.
    """
    return f"{number:,} {what if number == 1 else many or what + 's'}"
