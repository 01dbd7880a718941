"""
Makes a store of journals that were exported as text.
"""

from __future__ import annotations

from collections.abc import Iterator

from .._record_json import UnknownRecordError, decode_record
from .._records import INSTANCE_RECORDS, InstanceRecord, InstanceRetired
from .._store._index import HeaderIndex
from .._store.memory import InMemoryStore, store_of


def restore_journal(text: str) -> InMemoryStore:
    """
    Return a store that holds the instances whose records *text* lists.

    Args:
        text: Records as JSON, one a line, as ``memable export --pytest`` writes them: each instance's in their order.
            Empty lines do not count.

    Raises:
        ValueError: A line is no record of an instance, or cannot follow the ones before it.
    """
    index = HeaderIndex()
    records: list[InstanceRecord] = []
    for number, record in _records_of(text):
        try:
            index.fold(record)
        except (ValueError, LookupError) as error:
            raise ValueError(f"line {number} of the journal: {error}") from error
        records.append(record)
    return store_of(records)


def _records_of(text: str) -> Iterator[tuple[int, InstanceRecord]]:
    """Yield each record with the number of its line."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = decode_record(line.strip().encode("utf-8"))
        except UnknownRecordError as error:
            raise ValueError(f"line {number} of the journal: {error}") from error
        if not isinstance(record, INSTANCE_RECORDS) or isinstance(record, InstanceRetired):
            raise ValueError(f"line {number} of the journal: a {record.kind} record is none of an instance's journal")
        yield number, record
