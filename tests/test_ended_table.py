"""
Headers of ended instances as rows of bytes.
"""

from __future__ import annotations

import random
from array import array

import attrs
import pytest

from memable._ended_table import PLAIN, EndedTable, completed_row
from memable._header import InstanceHeader
from memable._states import MetadataStatus

ENDS = [MetadataStatus.COMPLETED, MetadataStatus.FAILED, MetadataStatus.CANCELLED]


def ended(number: int, workflow: str = "w", status: MetadataStatus = MetadataStatus.COMPLETED) -> InstanceHeader:
    return InstanceHeader(
        number=number,
        workflow=workflow,
        instance_id=f"i{number}",
        created_at=1.0,
        updated_at=2.0,
        completed_at=2.0,
        session=3,
        status=status,
        seq=4,
    )


def test_table_keeps_every_field_of_a_header():
    """
    A row says all that a header says: each field that is unlike the usual comes back.
    """
    unusual = {
        "number": 77,
        "workflow": "other",
        "instance_id": "a/b\ud800",
        "created_at": 1.5,
        "updated_at": 9.5,
        "completed_at": 8.5,
        "session": 2**40,
        "parent": "p/q\udfff",
        "status": MetadataStatus.CANCELLED,
        "message": "said",
        "error_message": "failed",
        "key": "",
        "wake_at": 0.0,
        "recoveries": 2**33,
        "seq": 2**63,
        "flags": 0b1111_1111,
    }
    assert unusual.keys() == {field.name for field in attrs.fields(InstanceHeader) if field.init}
    for name, value in unusual.items():
        header = attrs.evolve(ended(5), **{name: value})
        table = EndedTable()
        table.add(header, array("Q", (1, 2**64 - 1)))
        assert (table.header(header.number), list(table.spans(header.number))) == (header, [1, 2**64 - 1])
    table = EndedTable()
    table.add(InstanceHeader(**unusual), array("Q"))  # type: ignore[arg-type]  # any
    assert (table.header(77), list(table.spans(77)), table.seq(77)) == (InstanceHeader(**unusual), [], 2**63)  # type: ignore[arg-type]  # any


@pytest.mark.parametrize("seed", range(3))
def test_table_agrees_with_a_dictionary(seed: int):
    """
    Rows come and go in any order, and pages with them; all that is asked is answered as by a dictionary.
    """
    rng = random.Random(seed)
    table, model = EndedTable(), dict[int, tuple[InstanceHeader, list[int]]]()
    numbers = rng.sample(range(1, 401), 250)
    for number in numbers:
        header = ended(number, rng.choice("abc"), rng.choice(ENDS))
        spans = [rng.randrange(2**64) for _ in range(rng.randrange(5))]
        table.add(header, array("Q", spans))
        model[number] = (header, spans)
        if rng.random() < 0.4:
            gone = rng.choice(list(model))
            table.remove(gone)
            del model[gone]
        if rng.random() < 0.4 and model:
            changed = rng.choice(list(model))
            model[changed] = (model[changed][0], [1, 2])
            table.replace_spans(changed, array("Q", (1, 2)))
        again = EndedTable(table.pages.copy(), table.workflows.copy())
        for each in (table, again):
            assert list(each.numbers()) == sorted(model)
        for known in model:
            assert (table.header(known), list(table.spans(known))) == model[known]
            assert (table.seq(known), known in table) == (4, True)
    after = rng.randrange(400)
    for workflow in [None, *"abcd"]:
        for status in [None, *ENDS]:
            assert list(table.numbers(after=after, workflow=workflow, status=status)) == [
                number
                for number, (header, _) in sorted(model.items())
                if number > after and workflow in {None, header.workflow} and status in {None, header.status}
            ]
    for number in list(model):
        table.remove(number)
    assert (table.pages, list(table.numbers()), list(table.masks())) == ({}, [], [])


def test_table_does_not_know_what_it_does_not_hold():
    """
    A number without a row is refused, be there a page for it or not.
    """
    table = EndedTable()
    table.add(ended(64), array("Q"))
    for number in (0, 63, 65, 128, 10**9):
        assert (number in table, table.seq(number)) == (False, None)
        for ask in (table.header, table.spans, table.remove):
            with pytest.raises(KeyError, match=str(number)):
                ask(number)


@pytest.mark.parametrize(
    ("workflow", "instance_id", "expected"),
    [("w", b"i64", True), ("w", b"i6", False), ("w", b"i640", False), ("v", b"i64", False), ("w", b"", False)],
)
def test_table_compares_names_whole(workflow: str, instance_id: bytes, expected: bool):
    """
    A row has a name only if workflow and id are both the same, to their ends.
    """
    table = EndedTable()
    table.add(attrs.evolve(ended(64), message="0"), array("Q"))
    assert table.has_name(64, workflow, instance_id) is expected


def test_table_needs_few_bytes_for_a_row():
    """
    An instance with an id of 26 characters and 7 records takes at most 140 bytes, its part of a page included.
    """
    table = EndedTable()
    for number in range(6400):
        header = attrs.evolve(ended(number, "order"), instance_id="x" * 26)
        table.add(header, array("Q", range(7)))
    assert sum(map(len, table.pages.values())) <= 140 * 6400


@pytest.mark.parametrize("seed", range(3))
def test_table_takes_rows_that_were_made_without_headers(seed: int):
    """
    A row of the usual kind is the same with a header and without; a page takes many of them beside others.
    """
    rng = random.Random(seed)
    one_by_one, at_once = EndedTable(), EndedTable()
    numbers = rng.sample(range(64, 128), 40)
    for number in numbers[:10]:
        for table in (one_by_one, at_once):
            table.add(ended(number, "other", ENDS[number % 3]), array("Q", [number]))
    for some in (numbers[10:20], numbers[20:]):
        rows: dict[int, bytes] = {}
        for number in some:
            header, spans = attrs.evolve(ended(number), seq=number % 5), list(range(number % 5))
            one_by_one.add(header, array("Q", spans))
            instance_id = header.instance_id.encode()
            pack = completed_row(len(instance_id), len(spans))
            index = at_once.index_of("w")
            rows[number % 64] = pack(PLAIN, index, 3, number % 5, len(instance_id), 1.0, 2.0, instance_id, *spans)
        at_once.add_completed(1, rows)
    assert at_once.pages == one_by_one.pages
    assert list(at_once.numbers()) == sorted(numbers)
