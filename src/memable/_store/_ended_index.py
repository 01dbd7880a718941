"""
Finds ended instances by number, by name, by parent and by the time of their ends, in few bytes each.
"""

from __future__ import annotations

from array import array
from zlib import crc32

import attrs

from .._checksum_table import ChecksumTable
from .._ended_table import EndedTable, encoded
from .._header import InstanceHeader
from .._keys import SEPARATOR
from .._packed_multimap import PackedMultimap, Parts

_Ends = tuple["array[float]", "array[int]"]
"Times, and numbers beside them."
#: So many ends are sorted at a time: few of them belong before those that were sorted earlier.
_MAX_LATE_ENDS = 65_536


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
    _late_names: ChecksumTable | None = attrs.field(default=None, init=False)
    "Names that are in no order yet. Also those of instances that have not ended."
    _late_ends: dict[str, _Ends] = attrs.field(factory=dict[str, "_Ends"], init=False)
    "For each workflow, ends that are in no order yet: times, and numbers beside them."

    def __contains__(self, number: int) -> bool:
        return number in self.table

    def add(self, header: InstanceHeader, spans: array[int]) -> None:
        """
        Take in an instance that has ended.
        """
        number = header.number
        self.table.add(header, spans)
        self._add_name(_checksum(header.workflow, header.instance_id), number)
        if header.parent is not None and (parent := header.parent_name) is not None:
            self._children.insert(_checksum(*parent), number)
        assert header.completed_at is not None
        if self._late_names is None:
            self._ends_of(header.workflow).insert(header.completed_at, number)
        else:
            times, numbers = self.late_ends(header.workflow)
            times.append(header.completed_at)
            numbers.append(number)

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
        checksum = _checksum(header.workflow, header.instance_id)
        if self._late_names is None or not self._late_names.remove(checksum, number):
            self._names.remove(checksum, number)
        if (parent := header.parent_name) is not None:
            self._children.remove(_checksum(*parent), number)
        self._sort_ends()
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
        checksum = _checksum(workflow, instance_id)
        numbers = self._names.values(checksum)
        if self._late_names is not None and (late := self._late_names.number(checksum)) is not None:
            numbers.append(late)
        for number in numbers:
            if number in self.table and self.table.has_name(number, workflow, encoded_id):
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

    # Many at a time ------------------------------------------------------------------------------------------

    def reserve(self, checksum: int, number: int) -> bool:
        """
        Note the name of an instance that is going to end, unless there may be one of that name or a child of it.

        Args:
            checksum: That of the id in the form of ``encoded``, beginning with what ``crc_of`` the workflow is.
            number: The instance's number.

        Returns:
            Whether that was done. If so, it is to be followed by ``add_plain`` or ``release``.
        """
        if self._late_names is None:
            self._late_names = ChecksumTable()
        if (self._names and self._names.values(checksum)) or (self._children and self._children.values(checksum)):
            return False
        return self._late_names.add(checksum, number)

    def release(self, workflow: str, instance_id: str, number: int) -> None:
        """
        Take back ``reserve``.
        """
        assert self._late_names is not None
        self._late_names.remove(_checksum(workflow, instance_id), number)

    def reserved(self, workflow: str, instance_id: str) -> int | None:
        """
        Return the number of the instance that has reserved this name or another one, or None.
        """
        return None if self._late_names is None else self._late_names.number(_checksum(workflow, instance_id))

    def late_ends(self, workflow: str) -> _Ends:
        """
        Return where the ends of instances go that ``add_plain`` adds.
        """
        return self._late_ends.setdefault(workflow, (array("d"), array("Q")))

    def add_plain(self, place: int, rows: dict[int, bytes]) -> None:
        """
        Take in instances that have completed and are no children, from one page of the table.

        Their names are reserved, and their ends among ``late_ends``.

        Args:
            place: As for the table.
            rows: As for the table.
        """
        self.table.add_completed(place, rows)
        if sum(len(times) for times, _ in self._late_ends.values()) >= _MAX_LATE_ENDS:
            self._sort_ends()

    def sort(self) -> None:
        """
        Put in order what is in no order yet. No name may be reserved but those of instances that have ended.
        """
        self._sort_ends()
        self._late_ends.clear()
        if self._late_names is not None:
            for checksums, numbers in self._late_names.pairs():
                self._names.extend(checksums, numbers)
            self._late_names = None

    def _add_name(self, checksum: int, number: int) -> None:
        if self._late_names is None or not self._late_names.add(checksum, number):
            self._names.insert(checksum, number)

    def _ends_of(self, workflow: str) -> PackedMultimap[float]:
        ends = self._ends.get(workflow)
        if ends is None:
            ends = self._ends[workflow] = PackedMultimap[float]("d")
        return ends

    def _sort_ends(self) -> None:
        for workflow, (times, numbers) in self._late_ends.items():
            if times:
                pairs = sorted(zip(times, numbers, strict=True))
                self._ends_of(workflow).extend([at for at, _ in pairs], [number for _, number in pairs])
                del times[:], numbers[:]

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


def crc_of(workflow: str) -> int:
    """
    Return what the checksums of the names of a workflow's instances begin with.
    """
    return crc32(encoded(workflow + SEPARATOR))


def _checksum(workflow: str, instance_id: str) -> int:
    return crc32(encoded(workflow + SEPARATOR + instance_id))
