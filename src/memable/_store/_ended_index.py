"""
Finds ended instances by number, by name, by parent and by the time of their ends, in few bytes each.
"""

from __future__ import annotations

from array import array
from zlib import crc32

import attrs

from .._ended_table import EndedTable, encoded
from .._header import InstanceHeader
from .._keys import SEPARATOR
from .._packed_multimap import PackedMultimap, Parts


@attrs.define(eq=False)
class EndedIndex:
    """
    Ended instances: their headers, the spans of their records, and what they are looked up by.
    """

    table: EndedTable = attrs.field(factory=EndedTable)
    _names: PackedMultimap[int] = attrs.field(factory=lambda: PackedMultimap[int]("Q"))
    "Numbers by checksums of names. Others may have the same checksum."
    _children: PackedMultimap[int] = attrs.field(factory=lambda: PackedMultimap[int]("Q"))
    "Numbers of attached children by checksums of their parents' names."
    _ends: dict[str, PackedMultimap[float]] = attrs.field(factory=dict[str, "PackedMultimap[float]"])
    "For each workflow, numbers by the times of their ends."

    def __contains__(self, number: int) -> bool:
        return number in self.table

    def add(self, header: InstanceHeader, spans: array[int]) -> None:
        """
        Take in an instance that has ended.
        """
        number = header.number
        self.table.add(header, spans)
        self._names.insert(_checksum(header.workflow, header.instance_id), number)
        if header.parent is not None and (parent := header.parent_name) is not None:
            self._children.insert(_checksum(*parent), number)
        ends = self._ends.get(header.workflow)
        if ends is None:
            ends = self._ends[header.workflow] = PackedMultimap[float]("d")
        assert header.completed_at is not None
        ends.insert(header.completed_at, number)

    def remove(self, header: InstanceHeader, ended_at: float) -> array[int]:
        """
        Drop an instance, and return its spans.

        Args:
            header: Its header, which may have gone on meanwhile.
            ended_at: When it had ended.

        Raises:
            KeyError: It is not there.
        """
        number = header.number
        spans = self.table.spans(number)
        self.table.remove(number)
        self._names.remove(_checksum(header.workflow, header.instance_id), number)
        if (parent := header.parent_name) is not None:
            self._children.remove(_checksum(*parent), number)
        ends = self._ends[header.workflow]
        ends.remove(ended_at, number)
        if not ends:
            del self._ends[header.workflow]
        return spans

    def number_of(self, workflow: str, instance_id: str) -> int | None:
        """
        Return the number of an instance, or None.
        """
        encoded_id = encoded(instance_id)
        for number in self._names.values(_checksum(workflow, instance_id)):
            if self.table.has_name(number, workflow, encoded_id):
                return number
        return None

    @property
    def has_children(self) -> bool:
        """
        Whether any instance is an attached child.
        """
        return bool(self._children)

    def children_of(self, workflow: str, instance_id: str) -> list[int]:
        """
        Return the numbers of the attached children of an instance.
        """
        numbers = self._children.values(_checksum(workflow, instance_id))
        return [number for number in numbers if self.table.header(number).parent_name == (workflow, instance_id)]

    def up_to(self, workflow: str, until: float, limit: int) -> list[int]:
        """
        Return the numbers of the first instances of a workflow that ended at a time or before, in that order.
        """
        ends = self._ends.get(workflow)
        return [] if ends is None else ends.up_to(until, limit)

    def first_end(self, workflow: str) -> float | None:
        """
        Return when the first instance of a workflow ended, or None.
        """
        ends = self._ends.get(workflow)
        first = None if ends is None else ends.first()
        return None if first is None else first[0]

    def to_parts(self) -> tuple[dict[int, bytes], list[str], Parts, Parts, dict[str, Parts]]:
        """
        Return copies of all that this consists of: pages and workflows of the table, names, children and ends.
        """
        return (
            self.table.pages.copy(),
            self.table.workflows.copy(),
            self._names.to_parts(),
            self._children.to_parts(),
            {workflow: ends.to_parts() for workflow, ends in self._ends.items()},
        )

    @classmethod
    def from_parts(
        cls, pages: dict[int, bytes], workflows: list[str], names: Parts, children: Parts, ends: dict[str, Parts]
    ) -> EndedIndex:
        """
        Return what ``to_parts`` was called on. The dictionary of pages belongs to the new object from then on.
        """
        return cls(
            EndedTable(pages, workflows),
            PackedMultimap[int].from_parts("Q", *names),
            PackedMultimap[int].from_parts("Q", *children),
            {workflow: PackedMultimap[float].from_parts("d", *parts) for workflow, parts in ends.items()},
        )


def _checksum(workflow: str, instance_id: str) -> int:
    return crc32(encoded(workflow + SEPARATOR + instance_id))
