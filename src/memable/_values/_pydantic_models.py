"""
How pydantic models are taken apart and made anew; pydantic itself is never imported.

Rules: a model is its fields, extra and private attributes, each by its own annotation, and which of the fields were
set. It is made anew without validation, as ``model_construct`` does, so nothing is changed on the way. A type of
pydantic's own, a URL say, goes by its ``TypeAdapter``: strictly, and only where what comes back is equal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from .._annotations import EMPTY
from .._json import dumps
from ._class_layouts import Default, Field, Layout
from ._shape import Shape, UnfitError
from ._type_reader import TypeReader, field_annotations
from ._type_trees import JSON_DICT, STR, Kind, collection

#: No field's name: a record that lacks it has a model whose fields were all set.
_SET = "$set"
_EXTRA = "$extra"


def model_layout(cls: Any, reader: TypeReader) -> Layout:
    """
    Return the layout of a pydantic model.

    Raises:
        SerializationError: A field is of a type that cannot be stored.
    """
    fields: dict[str, Any] = cls.model_fields
    privates: dict[str, Any] = cls.__private_attributes__
    annotations = field_annotations(cls) if privates else {}
    layout = [Field(name, reader.read(info.annotation), _default(info)) for name, info in fields.items()]
    layout += [
        Field(name, reader.read(annotations.get(name, EMPTY)), lambda _, info=info: info.get_default())  # type: ignore[misc]  # a default binds the loop's variable
        for name, info in privates.items()
    ]
    layout.append(Field(_SET, collection(Kind.LIST, STR), may_be_absent=True))
    layout.append(Field(_EXTRA, JSON_DICT, may_be_absent=True))

    def take_apart(value: Any) -> dict[str, Any]:
        found = dict(value.__dict__)
        for name in found.keys() - fields.keys():
            # A cached property: computed anew when it is asked for.
            del found[name]
        for name in privates:
            if name not in (value.__pydantic_private__ or {}):
                raise UnfitError("the private attribute is not set").at(f".{name}")
            found[name] = value.__pydantic_private__[name]
        settable = [*fields, *(value.__pydantic_extra__ or ())]
        if value.__pydantic_fields_set__ != set(settable):
            found[_SET] = [name for name in settable if name in value.__pydantic_fields_set__]
        if value.__pydantic_extra__ is not None:
            found[_EXTRA] = value.__pydantic_extra__
        return found

    def make(values: Mapping[str, Any]) -> Any:
        instance = cls.__new__(cls)
        plain = {name: value for name, value in values.items() if name in fields}
        settable = plain.keys() | (values.get(_EXTRA) or {}).keys()
        were_set = set(values.get(_SET, settable)) & settable
        private = {name: value for name, value in values.items() if name in privates}
        object.__setattr__(instance, "__dict__", plain)
        object.__setattr__(instance, "__pydantic_fields_set__", were_set)
        object.__setattr__(instance, "__pydantic_extra__", values.get(_EXTRA))
        object.__setattr__(instance, "__pydantic_private__", private if privates else None)
        return instance

    def set_field(instance: Any, name: str, value: Any) -> None:
        state = instance.__dict__ if name in fields else instance.__pydantic_private__
        state[name] = value

    return Layout(tuple(layout), take_apart, make, set_field)


def _default(info: Any) -> Default | None:
    if info.is_required():
        return None
    if getattr(info, "default_factory_takes_validated_data", None):
        return lambda instance: info.default_factory(instance.__dict__)
    return lambda _: info.get_default(call_default_factory=True)


def foreign_shape(cls: type, name: str, check: Callable[[Any], Any]) -> Shape:
    """
    Return the shape of a type that only pydantic knows.

    Args:
        cls: The type.
        name: Its recorded name.
        check: Raises `UnfitError` for what is no plain tree.
    """
    adapter = sys.modules["pydantic"].TypeAdapter(cls)

    def encode(value: Any) -> Any:
        tree = check(adapter.dump_python(value, mode="json", warnings="error"))
        again = decode(tree)
        if type(again) is not type(value) or again != value:
            raise UnfitError(f"expected {name}, of which pydantic gives back what it was given; it gives another value")
        return tree

    def decode(tree: Any) -> Any:
        try:
            return adapter.validate_json(dumps(tree), strict=True)
        except Exception as error:
            raise UnfitError(f"expected {name}, of which pydantic says {type(error).__name__}: {error}") from error

    return Shape(name, encode, decode, takes_others=True)
