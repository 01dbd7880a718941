"""
Finds in a store what the command line names.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from .._disk import RealDisk
from .._errors import StorageError
from .._header import InstanceHeader
from .._keys import SEPARATOR
from .._records import InstanceRecord
from .._states import MetadataStatus
from .._store._index import HeaderIndex
from .._store._snapshot import StoreSnapshot, read_store

#: Headers are asked for so many at a time: those of instances that have ended are made for the asking.
_PAGE = 1000
#: So many of a store's workflows are named to somebody who has asked for another.
_MAX_NAMED = 10


class NotInStoreError(LookupError):
    """
    The store does not have what was asked for.
    """


@attrs.frozen
class Selection:
    """
    Which instances are to be listed.
    """

    workflow: str | None = None
    statuses: frozenset[MetadataStatus] = frozenset()
    "Any if empty."
    limit: int | None = None
    "At most so many; None for all."
    after: str | None = None
    "Only those created after this one, named by its number or as workflow/instance id."
    newest: bool = False
    "Whether the limit keeps the newest ones; else the oldest."

    def matches(self, header: InstanceHeader) -> bool:
        """
        Tell whether an instance is of the workflow and in one of the statuses.
        """
        return not self.statuses or header.status in self.statuses


@attrs.frozen
class Selected:
    """
    What was found.
    """

    shown: list[InstanceHeader]
    "In the order of creation."
    counts: Counter[MetadataStatus]
    "Of all that match, shown or not, and after the given one or not."


def open_store(directory: Path) -> StoreSnapshot:
    """
    Return what the store in *directory* holds now.

    Raises:
        StorageError: There is no such store, or it cannot be read.
        StoreCorruptedError: It is damaged.
        StoreVersionError: A newer release wrote it.
        OSError: The disk failed.
    """
    check_directory(directory)
    return read_store(RealDisk(), directory)


def check_directory(directory: Path) -> None:
    """
    Refuse what cannot be a store.

    Raises:
        StorageError: There is no such directory.
    """
    if not directory.is_dir():
        problem = "is no directory, so no store" if directory.exists() else "there is no such store"
        raise StorageError(location=str(directory), problem=problem)


def select(snapshot: StoreSnapshot, selection: Selection) -> Selected:
    """
    Return the instances that are to be listed, and how many match in all.
    """
    after = place_of(snapshot, selection.after)
    counts: Counter[MetadataStatus] = Counter()
    shown: deque[InstanceHeader] = deque(maxlen=selection.limit if selection.newest else None)
    for header in iterate(snapshot.index, selection):
        counts[header.status] += 1
        is_full = selection.limit is not None and not selection.newest and len(shown) >= selection.limit
        if header.number > after and not is_full:
            shown.append(header)
    return Selected(list(shown), counts)


def iterate(index: HeaderIndex, selection: Selection, *, after: int = 0) -> Iterator[InstanceHeader]:
    """
    Yield all instances that match, in the order of creation, whatever the limit.
    """
    # Of one status the index may know where to look.
    (status,) = selection.statuses if len(selection.statuses) == 1 else (None,)
    while page := index.select(after=after, limit=_PAGE, workflow=selection.workflow, status=status):
        yield from filter(selection.matches, page)
        after = page[-1].number


def place_of(snapshot: StoreSnapshot, after: str | None) -> int:
    """
    Return the number of the instance that ``--after`` names, 0 without one.

    Raises:
        NotInStoreError: There is no such instance.
    """
    if after is None:
        return 0
    if SEPARATOR not in after:
        # An instance that was removed has no name any more, but its place stays.
        return int(after)
    workflow, _, instance_id = after.partition(SEPARATOR)
    return find(snapshot, workflow, instance_id).number


def find(snapshot: StoreSnapshot, workflow: str, instance_id: str) -> InstanceHeader:
    """
    Return the header of an instance.

    Raises:
        NotInStoreError: There is none of that name.
    """
    header = snapshot.index.find(workflow, instance_id)
    if header is not None:
        return header
    problem = f"workflow {workflow!r} has no instance {instance_id!r}"
    if not snapshot.index.select(after=0, limit=1, workflow=workflow, status=None):
        names = sorted({header.workflow for header in iterate(snapshot.index, Selection())})
        more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
        known = f"{', '.join(map(repr, names[:_MAX_NAMED]))}{more}" if names else "none at all"
        problem = f"has no instance of a workflow {workflow!r}; workflows with instances: {known}"
    raise NotInStoreError(f"{snapshot.location}: {problem}")


@contextmanager
def telling_damage(snapshot: StoreSnapshot, header: InstanceHeader) -> Iterator[None]:
    """
    Tell an impossible sequence of records, or a value that is no JSON, as what it is.

    Raises:
        StorageError: The block raised ``ValueError``.
    """
    try:
        yield
    except ValueError as error:
        what = f"what is recorded of workflow {header.workflow!r}, instance {header.instance_id!r}"
        problem = f"{what} makes no sense, though each record is intact: {error}"
        raise StorageError(location=snapshot.location, problem=problem) from error


def load(snapshot: StoreSnapshot, header: InstanceHeader) -> list[InstanceRecord]:
    """
    Return all records of an instance, oldest first.

    Raises:
        StoreCorruptedError: They are damaged.
        OSError: The disk failed.
    """
    return snapshot.load(header.number)
