"""
What is told of a record that is lost, or that cannot be kept.
"""

from __future__ import annotations

import attrs

from ._record_json import UnknownRecordError, decode_record
from ._records import InstanceRecord, InstanceStarted, StoreClosed, StoreOpened


@attrs.frozen
class LostRecord:
    """
    A record that is lost, and known for sure.
    """

    instance: int
    seq: int
    kind: str
    path: str | None
    name: tuple[str, str] | None
    "Workflow and instance id, if it is the start of an instance."


def lost_record(line: bytes) -> LostRecord | None:
    """
    Return what is known of a record of an instance, or None if it is one of the store.
    """
    try:
        record = decode_record(line[line.index(b"{") :])
    except (UnknownRecordError, ValueError):
        return None
    if isinstance(record, StoreOpened | StoreClosed):
        return None
    return described(record)


def described(record: InstanceRecord) -> LostRecord:
    """
    Return what is told of a record that is lost, or not kept.
    """
    name = (record.workflow, record.instance_id) if isinstance(record, InstanceStarted) else None
    return LostRecord(record.instance, record.seq, record.kind, getattr(record, "path", None), name)
