"""
The shape of classes with fields: a JSON object by field names, each value tagged with its type.

Rules: the types of fields are not part of the recorded type's name, so each says its own. A field that the record lacks
gets its default, one that the class lacks is dropped; what does not fit is never converted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._json import JSON
from ._class_layouts import Layout
from ._shape import Shape, UnfitError, misfit, refusal


def fields_shape(name: str, cls: type, layout: Layout, shapes: Mapping[str, Shape]) -> Shape:
    """
    Return the shape of the instances of a class.

    Args:
        name: The recorded name.
        cls: What instances are direct instances of; ``dict`` for a TypedDict.
        layout: The fields.
        shapes: The tagged shape of each field, by its name.
    """
    encoders = {field: shape.encode for field, shape in shapes.items()}
    decoders = {field: shape.decode for field, shape in shapes.items()}
    needed = frozenset(field.name for field in layout.fields if not field.may_be_absent)
    take_apart, make = layout.take_apart, layout.make

    def encode(value: Any) -> JSON:
        if type(value) is not cls:
            raise refusal(value, name)
        parts = take_apart(value)
        if not needed <= parts.keys():
            raise UnfitError(f"expected {name}, got one without {min(needed - parts.keys())!a}")
        forms: dict[str, JSON] = {}
        for field, part in parts.items():
            try:
                forms[field] = encoders[field](part)
            except UnfitError as problem:
                problem.at(f".{field}")
                raise
        return forms

    def decode(tree: JSON) -> Any:
        if type(tree) is not dict:
            raise misfit(tree, name)
        parts: dict[str, Any] = {}
        for field, form in tree.items():
            decoder = decoders.get(field)
            if decoder is not None:
                try:
                    parts[field] = decoder(form)
                except UnfitError as problem:
                    problem.at(f".{field}")
                    raise
        missing = needed - parts.keys()
        return _make_with_defaults(name, layout, parts, missing) if missing else make(parts)

    return Shape(name, encode, decode, frozenset([cls]))


def _make_with_defaults(name: str, layout: Layout, parts: dict[str, Any], missing: frozenset[str]) -> Any:
    absent = [(field.name, field.default) for field in layout.fields if field.name in missing]
    for field, default in absent:
        if default is None:
            raise UnfitError(f"the record has no field {field!a}, and {name} has no default for it")
    instance = layout.make(parts)
    for field, default in absent:
        if layout.set_field is not None and default is not None:
            layout.set_field(instance, field, default(instance))
    return instance
