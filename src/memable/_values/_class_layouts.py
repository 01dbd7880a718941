"""
How instances of classes with fields are taken apart and made anew.

Rules: attrs classes, dataclasses, named tuples and TypedDicts are their fields, those with ``init=False`` included,
by their names in the class. An instance is made anew as a pickle or a copy makes it: the fields are set to what was
recorded, and no ``__init__``, converter, validator or ``__post_init__`` runs, so that nothing is changed on the way.
What an instance holds beside its fields would be lost, so it is refused. A field that the record lacks gets its
default; without one the record does not fit. What the record has of fields that are gone is dropped.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from .._annotations import EMPTY
from ._shape import UnfitError
from ._type_reader import (
    TypeReader,
    field_annotations,
    field_readers,
    is_named_tuple,
    is_typed_dict,
)
from ._type_trees import TypeTree

Default = Callable[[Any], Any]

#: A class; attrs tells type checkers that it is a function.
_FACTORY: Any = attrs.Factory

#: Set by attrs and by typing on instances; says nothing about the value.
_INCIDENTAL = {"_attrs_cached_hash", "__orig_class__"}


@attrs.frozen
class Field:
    """
    A field of a class.
    """

    name: str
    "Its name in the class."
    type: TypeTree
    "Its type."
    default: Default | None = None
    "Gives its value for a record without it, from the instance as far as that is made; None if there is none."
    may_be_absent: bool = False
    "Whether an instance need not have it."


@attrs.frozen
class Layout:
    """
    The fields of a class, and how to get at them.
    """

    fields: tuple[Field, ...]
    "In the order of the class."
    take_apart: Callable[[Any], Mapping[str, Any]]
    "An instance to its fields. Raises `UnfitError`."
    make: Callable[[Mapping[str, Any]], Any]
    "What is recorded of the fields to an instance, without the fields that have to take their defaults."
    set_field: Callable[[Any, str, Any], None] | None = None
    "Sets a field of an instance; None if `make` fills in defaults itself."


def layout_of(cls: type, args: tuple[TypeTree, ...], reader: TypeReader) -> Layout:
    """
    Return the layout of a class that `TypeReader` takes for one with fields.

    Raises:
        SerializationError: A field is of a type that cannot be stored.
    """
    annotations = field_annotations(cls)
    readers = field_readers(cls, args, reader)

    def read(name: str, fallback: Any = EMPTY) -> TypeTree:
        annotation = annotations.get(name, EMPTY if fallback is None else fallback)
        return readers.get(name, reader).read(annotation)

    if is_typed_dict(cls):
        return _typed_dict(cls, annotations, read)
    if is_named_tuple(cls):
        return _named_tuple(cls, read)
    if attrs.has(cls):
        return _instance(cls, [_attrs_field(field, read) for field in attrs.fields(cls)])
    return _instance(cls, [_dataclass_field(field, read) for field in dataclasses.fields(cls)])


def _attrs_field(field: attrs.Attribute[Any], read: Callable[..., TypeTree]) -> Field:
    return Field(field.name, read(field.name, field.type), _attrs_default(field))


def _attrs_default(field: attrs.Attribute[Any]) -> Default | None:
    default: Any = field.default
    if default is attrs.NOTHING:
        return None

    def make(instance: Any) -> Any:
        value = default
        if isinstance(default, _FACTORY):
            value = default.factory(instance) if default.takes_self else default.factory()
        convert: Any = field.converter
        if isinstance(convert, attrs.Converter):
            convert_fully: Any = convert
            return convert_fully(value, instance, field)
        return value if convert is None else convert(value)

    return make


def _dataclass_field(field: dataclasses.Field[Any], read: Callable[..., TypeTree]) -> Field:
    default: Default | None = None
    if field.default is not dataclasses.MISSING:
        value = field.default
        default = lambda _: value  # noqa: E731 - one of three ways to fill the name
    elif field.default_factory is not dataclasses.MISSING:
        factory = field.default_factory
        default = lambda _: factory()  # noqa: E731 - as above
    return Field(field.name, read(field.name, field.type), default)


def _instance(cls: Any, fields: list[Field]) -> Layout:
    names = tuple(field.name for field in fields)
    cached = {name for name in dir(cls) if isinstance(vars_of(cls, name), functools.cached_property)}
    allowed = frozenset(names) | _INCIDENTAL | cached
    has_cached_hash = "_attrs_cached_hash" in getattr(getattr(cls.__hash__, "__code__", None), "co_names", ())

    def take_apart(value: Any) -> dict[str, Any]:
        found = {}
        for name in names:
            try:
                found[name] = getattr(value, name)
            except AttributeError as error:
                raise UnfitError("the field is not set").at(f".{name}") from error
        state = getattr(value, "__dict__", None)
        if state and not state.keys() <= allowed:
            extra = min(state.keys() - allowed)
            raise UnfitError(f"it holds {extra!r} beside its fields, which would be lost; make it a field")
        return found

    def make(values: Mapping[str, Any]) -> Any:
        instance = object.__new__(cls)
        for name, value in values.items():
            object.__setattr__(instance, name, value)
        if has_cached_hash:
            object.__setattr__(instance, "_attrs_cached_hash", None)
        return instance

    return Layout(tuple(fields), take_apart, make, object.__setattr__)


def vars_of(cls: type, name: str) -> Any:
    """
    Return what a class or a base of it has under *name*, without calling a descriptor.
    """
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)


def _named_tuple(cls: Any, read: Callable[..., TypeTree]) -> Layout:
    names: tuple[str, ...] = cls._fields
    defaults: dict[str, Any] = cls._field_defaults

    def take_apart(value: Any) -> dict[str, Any]:
        if getattr(value, "__dict__", None):
            raise UnfitError("it holds more than its fields, which would be lost; make it an attrs class")
        return dict(zip(names, value, strict=True))

    def make(values: Mapping[str, Any]) -> Any:
        return tuple.__new__(cls, [values[name] if name in values else defaults[name] for name in names])

    fields = [Field(name, read(name), (lambda _: None) if name in defaults else None) for name in names]
    return Layout(tuple(fields), take_apart, make)


def _typed_dict(cls: Any, annotations: dict[str, Any], read: Callable[..., TypeTree]) -> Layout:
    required = cls.__required_keys__
    fields = [
        Field(name, read(name), may_be_absent=not _is_required(annotation, otherwise=name in required))
        for name, annotation in annotations.items()
    ]

    def take_apart(value: dict[str, Any]) -> dict[str, Any]:
        extra = [name for name in value if name not in annotations]
        if extra:
            raise UnfitError(f"{extra[0]!r} is no key of {cls.__qualname__}")
        return value

    return Layout(tuple(fields), take_apart, dict)


def _is_required(annotation: Any, *, otherwise: bool) -> bool:
    """Tell whether a key is required; with string annotations Python itself overlooks NotRequired."""
    while (origin := typing.get_origin(annotation)) is not None:
        name = getattr(origin, "_name", None)
        if name in ("Required", "NotRequired"):
            return bool(name == "Required")
        if name != "ReadOnly" and not hasattr(annotation, "__metadata__"):
            return otherwise
        annotation = typing.get_args(annotation)[0]
    return otherwise
