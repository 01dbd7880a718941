"""
Records to their JSON text and back.

Decided here: what a record looks like in a log. It is one JSON object on one line. Its first field is ``kind``, the tag
of the union; fields that have their default are left out; fields that this release does not know are ignored. A
value is written as it is, without looking into it: as ``type`` and, last of all, ``value``. So encoding does not encode
it again, and decoding cuts it out again without parsing it. That needs ``,"value":`` to occur nowhere before it: no
other field of a record, nor of what is nested in it, may be called ``value``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from operator import attrgetter
from typing import Any, cast

import attrs
from cattrs import Converter
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from ._encoded import Encoded
from ._json import dumps, loads
from ._records import INSTANCE_RECORDS, STORE_RECORDS, Record
from ._texts import LONG_BYTES, Text

_KIND = b'{"kind":"'
_VALUE = b',"value":'
_NEWLINE = ord("\n")


class UnknownRecordError(ValueError):
    """
    A line is intact, but not a record of a kind or shape that this release knows: a newer one wrote it.
    """


def encode_record(record: Record) -> bytes:
    """
    Return *record* as JSON: UTF-8, on one line, without a line break at its end.

    Raises:
        ValueError: The record's value is not JSON text on one line.
    """
    text = encode_parts(record)
    return text if isinstance(text, bytes) else b"".join(text)


def encode_parts(record: Record) -> Text:
    """
    Return what `encode_record` does, in parts if the record's value is long: that is one, and is not copied.

    Raises:
        ValueError: As for `encode_record`.
    """
    return _encoder(record.kind)(record)


def decode_record(text: bytes) -> Record:
    """
    Return the record that ``encode_record`` made *text* of.

    Raises:
        UnknownRecordError: No record of a known kind and shape.
    """
    if not text.startswith(_KIND):
        raise UnknownRecordError("it does not begin with its kind")
    kind = text[len(_KIND) : text.find(b'"', len(_KIND))].decode(errors="replace")
    return _decoder(kind)(text)


@functools.cache
def _converter() -> Converter:
    # dumps takes plain trees: lists, no tuples.
    return Converter(detailed_validation=False, omit_if_default=True, unstruct_collection_overrides={tuple: list})


@functools.cache
def _classes() -> dict[str, type[Record]]:
    classes: tuple[type[Record], ...] = (*INSTANCE_RECORDS, *STORE_RECORDS)
    for cls in classes:
        attrs.resolve_types(cls)
    return {cls.kind: cls for cls in classes}


def _value_field(cls: type[Record]) -> str | None:
    """Return the name of the field that holds a value, if the class has one."""
    return next((field.name for field in attrs.fields(cls) if field.type is Encoded), None)


@functools.cache
def _encoder(kind: str) -> Callable[[Any], Text]:
    cls = _classes()[kind]
    field = _value_field(cls)
    overrides: dict[str, Any] = {} if field is None else {field: override(omit=True)}
    head_of = make_dict_unstructure_fn(cls, _converter(), _cattrs_omit_if_default=True, **overrides)

    def encode_plain(record: Any) -> bytes:
        return dumps({"kind": kind, **head_of(record)})

    if field is None:
        return encode_plain
    begin = _KIND + kind.encode() + b'",'
    value_of: Callable[[Any], Encoded] = attrgetter(field)

    def encode_with_value(record: Any) -> Text:
        value = value_of(record)
        data = value.data
        # Looked for as numbers, which is quicker by far.
        if not data or _NEWLINE in data or 0 in data:
            raise ValueError(f"the value of a {kind} record is not JSON text on one line: {data[:80]!r}")
        head = head_of(record)
        head["type"] = value.type
        if len(data) >= LONG_BYTES:
            return b"".join((begin, dumps(head)[1:-1], _VALUE)), data, b"}"
        return b"".join((begin, dumps(head)[1:-1], _VALUE, data, b"}"))

    return encode_with_value


@functools.cache
def _decoder(kind: str) -> Callable[[bytes], Record]:
    cls = _classes().get(kind)
    if cls is None:
        raise UnknownRecordError(f"its kind is {kind[:80]!r}")
    field = _value_field(cls)
    # What is nested in a record is structured; its value is put in as it is.
    overrides: dict[str, Any] = {} if field is None else {field: override(struct_hook=lambda value, _: value)}
    build = make_dict_structure_fn(cls, _converter(), _cattrs_detailed_validation=False, **overrides)

    def decode(text: bytes) -> Record:
        try:
            if field is None:
                return build(_object(text), cls)
            cut = text.index(_VALUE)
            tree = _object(text[:cut] + b"}")
            tree[field] = Encoded(tree["type"], text[cut + len(_VALUE) : -1])
            return build(tree, cls)
        except (ValueError, LookupError, TypeError, AttributeError) as exc:
            raise UnknownRecordError(
                f"it is no {kind} record as this release knows it ({type(exc).__name__}: {exc})"
            ) from exc

    return decode


def _object(text: bytes) -> dict[str, Any]:
    return cast("dict[str, Any]", loads(text))
