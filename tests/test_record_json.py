"""
Records to their JSON text and back.
"""

from __future__ import annotations

import json

import attrs
import pytest
from cattrs import Converter
from hypothesis import given

from memable._encoded import Encoded
from memable._record_json import UnknownRecordError, decode_record, encode_parts, encode_record
from memable._records import INSTANCE_RECORDS, STORE_RECORDS, CancelRequested, Record, StepCompleted
from memable._texts import LONG_BYTES
from strategies import RECORDS, records

STEP = StepCompleted(
    instance=12, seq=3, at=1.5, path="fetch:v1", value=Encoded("builtins.str", b'"Ada"'), started_at=1.25
)
STEP_JSON = (
    b'{"kind":"step_completed","instance":12,"seq":3,"at":1.5,"path":"fetch:v1","started_at":1.25,'
    b'"type":"builtins.str","value":"Ada"}'
)


def test_every_record_class_has_a_strategy():
    """The tests of this file cover every class of record."""
    assert set(RECORDS) == {*INSTANCE_RECORDS, *STORE_RECORDS}


@given(records)
def test_record_round_trips(record: Record):
    """Every record is decoded as it was encoded, on one line."""
    text = encode_record(record)
    assert b"\n" not in text
    assert decode_record(text) == record


@given(records)
def test_record_is_json_as_cattrs_has_it(record: Record):
    """A line is plain JSON: what cattrs makes of the record, without defaults, its value in place of the text of it."""
    tree = json.loads(encode_record(record))
    expected = Converter(omit_if_default=True, unstruct_collection_overrides={tuple: list}).unstructure(record)
    for name in ("value", "input"):
        encoded = getattr(record, name, None)
        if isinstance(encoded, Encoded):
            del expected[name]
            expected |= {"type": encoded.type, "value": json.loads(encoded.data)}
    assert tree == {"kind": record.kind, **json.loads(json.dumps(expected))}


def test_record_text_begins_with_kind_and_ends_with_value():
    """The text of a record is what the log's format says."""
    assert encode_record(STEP) == STEP_JSON


def test_value_bytes_are_kept_as_they_are():
    """A value's text is neither parsed nor changed, not even its spacing."""
    record = attrs.evolve(STEP, value=Encoded("x", b'{"b" : [1.0, 2e3],"a":"}"}'))
    assert decode_record(encode_record(record)) == record


def test_value_marker_in_text_fields_does_not_confuse():
    """Text that looks like the format's own syntax is text."""
    record = attrs.evolve(
        STEP, path='x,"value":1', status='","value":2}', value=Encoded(',"value":', b'",\\"value\\":"')
    )
    assert decode_record(encode_record(record)) == record


@pytest.mark.parametrize("size", [LONG_BYTES - 1, LONG_BYTES])
def test_long_value_is_a_part_that_is_not_copied(size: int):
    """The text of a record is in parts if its value is long; joined they are that text."""
    record = attrs.evolve(STEP, value=Encoded("x", b"7" * size))
    text = encode_parts(record)
    if isinstance(text, bytes):
        assert size < LONG_BYTES
    else:
        assert text[1] is record.value.data
    assert encode_record(record) == (text if isinstance(text, bytes) else b"".join(text))
    assert decode_record(encode_record(record)) == record


@pytest.mark.parametrize("data", [b"", b"1\n2", b"\0", b"7" * LONG_BYTES + b"\n"])
def test_value_of_several_lines_is_refused(data: bytes):
    """What is not on one line never gets into a log."""
    with pytest.raises(ValueError, match="not JSON text on one line"):
        encode_record(attrs.evolve(STEP, value=Encoded("x", data)))


def test_unknown_fields_are_ignored():
    """A later release may add fields, also ones of a nested shape."""
    text = STEP_JSON.replace(b',"type":', b',"later":{"type":[1]},"type":')
    assert decode_record(text) == STEP
    assert decode_record(b'{"kind":"cancel_requested","instance":1,"seq":2,"at":3.0,"later":1}') == CancelRequested(
        instance=1, seq=2, at=3.0
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "does not begin with its kind"),
        (b'{"instance":1,"kind":"store_closed"}', "does not begin with its kind"),
        (b'{"kind":"teleported","instance":1}', "its kind is 'teleported'"),
        (b'{"kind":"store_closed","at":1.0}', "no store_closed record"),
        (b'{"kind":"store_closed","session":1,"at":1.0', "no store_closed record"),
        (b'{"kind":"step_completed","instance":1}', "no step_completed record"),
        (STEP_JSON.replace(b'"type":"builtins.str",', b""), "no step_completed record"),
        (b'{"kind":"step_failed","failure":"boredom"}', "no step_failed record"),
    ],
)
def test_text_of_no_known_record_is_refused(text: bytes, problem: str):
    """Text that this release does not understand is not half-understood."""
    with pytest.raises(UnknownRecordError, match=problem):
        decode_record(text)
