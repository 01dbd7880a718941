"""
Plain trees that are their own forms, told by loops that run in C: what makes large values quick.

Rules: an answer here is only ever that a value surely is its own form, so that its shape would write the very same
text and read the very same value. What is unusual (a subclass, an int for a float, inf and nan, a surrogate, deep
nesting) is left to the shape, which knows what to do with it, or what to say of it; so are small nested values, which
shapes are quicker with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence, Sized
from functools import partial
from itertools import chain
from typing import Any, cast

import attrs

from .._json import JSON, dumps_if_easy, loads
from ._type_trees import STR, Kind, TypeTree

_JSON_SCALARS: frozenset[type] = frozenset((str, int, bool, float, type(None)))
_JSON_TYPES: frozenset[type] = _JSON_SCALARS.union((list, dict))
_SCALARS: frozenset[type] = _JSON_SCALARS.union((bytes,))
_STR = frozenset([str])
_CONTAINERS = {Kind.LIST: list, Kind.VARIADIC: tuple, Kind.DICT: dict}
_COPIES: dict[type, Callable[[Any], Any]] = {list: list.copy, dict: dict.copy, tuple: tuple}
_FLAT = 2
"The number of levels of a container of scalars."

#: With fewer scalars in a container, shapes are quicker, unless it is copied as well.
_SOME = 8
#: The same for containers of containers.
_MANY = 16
#: How deep small containers without annotation are looked into for large ones.
_SHALLOW = 2

#: Values of more levels are rare. One that contains itself has more of them than any limit.
_MAX_LEVELS = 16
#: More than are in most texts of 10 MiB. A value that contains itself has more of them than there is memory.
_MAX_PARTS = 4 * 2**20

_Parts = Callable[[], Iterable[Any]]
"Gives the parts of one level, each time that it is called."


@attrs.frozen
class PlainType:
    """
    A type of which most values are their own forms.
    """

    levels: tuple[frozenset[type], ...]
    "The classes that are allowed in each level, that of the value itself first."
    scalars: frozenset[type]
    "Those of the first level that hold nothing."
    inner: frozenset[type]
    "Those of the second level that hold nothing."


@attrs.frozen
class _Levels:
    """What was found of a container that is its own form, unless it holds inf or nan, or a surrogate."""

    copy: Callable[[Any], Any] | None
    "Copies it; None if there are several classes of containers in a level."
    floats: Sequence[_Parts]
    "The levels with floats in them."


def plain_type(tree: TypeTree) -> PlainType | None:
    """
    Return what is allowed where in the values of a type that are their own forms, or None if no values of it are.
    """
    levels: list[frozenset[type]] = []
    while (container := _CONTAINERS.get(tree.kind)) is not None:
        if container is dict and tree.args[0] != STR:
            return None
        levels.append(frozenset([container]))
        tree = tree.args[-1]
    if tree.kind is Kind.ANY:
        levels += [_JSON_TYPES] * _MAX_LEVELS
    else:
        levels.append(_scalars(tree))
    if not levels[-1]:
        return None
    return PlainType(tuple(levels), levels[0] & _SCALARS, levels[1] & _SCALARS if len(levels) > 1 else frozenset())


def _scalars(tree: TypeTree) -> frozenset[type]:
    """Return the classes of scalars that a type consists of; nothing if there is more to it."""
    if tree.kind is Kind.LEAF:
        return frozenset([tree.source]) & _SCALARS
    if tree.kind is not Kind.UNION or not all(member.kind is Kind.LEAF for member in tree.args):
        return frozenset()
    # In a union the form of bytes says that it is one.
    classes = frozenset(member.source for member in tree.args)
    return classes if classes <= _JSON_SCALARS else frozenset()


def write_plain(value: object, asked: PlainType) -> bytes | None:
    """
    Return the JSON text of *value* if it surely is its own form.
    """
    if type(value) in asked.scalars:
        return _write_scalar(value)
    if type(value) not in asked.levels[0] or len(cast("Sized", value)) < _SOME:
        return None
    try:
        if _is_flat(value, asked):
            return _write_flat(value)
        levels = _levels(value, asked) if len(cast("Sized", value)) >= _MANY else None
        return None if levels is None else _write(value, levels.floats)
    except RuntimeError:
        # A thread that still has the value changes it.
        return None


def write_and_copy_plain(value: object, asked: PlainType) -> tuple[bytes, Any] | None:
    """
    Return what `write_plain` does, and with it what is read from that. What cannot change is not copied.
    """
    if type(value) in asked.scalars:
        data, copy = _write_scalar(value), value
    elif type(value) in asked.levels[0]:
        try:
            data, copy = _write_and_copy_container(value, asked)
        except RuntimeError:
            # As above.
            return None
    else:
        return None
    return None if data is None else (data, copy)


def _write_and_copy_container(value: Any, asked: PlainType) -> tuple[bytes | None, Any]:
    if asked.inner and _is_flat(value, asked):
        # The text of the copy: whoever else has the value cannot change that.
        copy = _COPIES[type(value)](value)
        return _write_flat(copy), copy
    is_large = len(value) >= _MANY or _holds_large(value, asked)
    levels = _levels(value, asked) if is_large else None
    if levels is None:
        return None, None
    if levels.copy is None:
        if any(tuple in classes for classes in asked.levels):
            # Read back as it is, it would be a list.
            return None, None
        data = _write(value, levels.floats)
        return data, None if data is None else loads(data)
    copy = levels.copy(value)
    return _write(copy, levels.floats), copy


def is_plain(tree: JSON, asked: PlainType) -> bool:
    """
    Tell whether a *tree* that was read surely is the form of itself.
    """
    if type(tree) in asked.scalars:
        return True
    return type(tree) in asked.levels[0] and (_is_flat(tree, asked) or _levels(tree, asked) is not None)


def _write_scalar(value: Any) -> bytes | None:
    data = dumps_if_easy(value)
    # Not of inf and nan.
    return None if data == b"null" and value is not None else data


def _write_flat(value: Any) -> bytes | None:
    return _write(value, (value.values if type(value) is dict else value.__iter__,))


def _write(value: Any, floats: Sequence[_Parts]) -> bytes | None:
    data = dumps_if_easy(value)
    # Only a text with a null in it can have come from inf or nan; looking for them in each would cost more.
    if data is not None and b"null" in data and floats:
        found = (part for parts in floats for part in parts() if type(part) is float)
        return data if all(map(math.isfinite, found)) else None
    return data


def _is_flat(value: Any, asked: PlainType) -> bool:
    """Tell whether a container holds only scalars that are allowed in it."""
    if type(value) is dict:
        return asked.inner.issuperset(map(type, value.values())) and _STR.issuperset(map(type, value))
    return asked.inner.issuperset(map(type, value))


def _holds_large(value: Any, asked: PlainType) -> bool:
    """Tell whether a small container holds a large one, not too deep in it."""
    if type(value) is dict and not asked.inner:
        return _reaches_large(value, 0)
    return bool(asked.inner) and len(asked.levels) > _FLAT and _reaches_large(value, _SHALLOW)


def _reaches_large(value: Any, depth: int) -> bool:
    for part in value.values() if type(value) is dict else value:
        if type(part) in _COPIES and (len(part) >= _MANY or (depth and _reaches_large(part, depth - 1))):
            return True
    return False


def _levels(value: Any, asked: PlainType) -> _Levels | None:
    """Look through a container level by level; None if it is not known to be its own form."""
    if len(asked.levels) == _FLAT:
        return None
    copies: list[Any] = []
    floats: list[_Parts] = []
    is_uniform = True
    room = _MAX_PARTS
    groups: Sequence[tuple[type, Sequence[Any]]] = ((type(value), (value,)),)
    for allowed in asked.levels[1:]:
        for cls, group in groups:
            room -= sum(map(len, group))
            if room < 0 or (cls is dict and not _STR.issuperset(map(type, chain.from_iterable(group)))):
                return None
        copies.append(groups[0][0])
        parts = partial(_held, groups)
        types = set(map(type, parts()))
        if not types <= allowed:
            return None
        if float in types:
            floats.append(parts)
        if types <= _SCALARS:
            return _Levels(_copier(copies) if is_uniform else None, floats)
        is_uniform = is_uniform and len(types) == 1
        groups = [(cls, [part for part in parts() if type(part) is cls]) for cls in types - _SCALARS]
    return None


def _held(groups: Sequence[tuple[type, Sequence[Any]]]) -> Iterable[Any]:
    """Return what the containers of a level hold."""
    held = [chain.from_iterable(map(dict.values, group) if cls is dict else group) for cls, group in groups]
    return held[0] if len(held) == 1 else chain.from_iterable(held)


def _copier(classes: Sequence[type]) -> Callable[[Any], Any]:
    """Return what copies a value with one class of containers in each level."""
    copy = _COPIES[classes[-1]]
    for cls in reversed(classes[:-1]):
        copy = partial(_copy_dict if cls is dict else partial(_copy_sequence, cls), copy)
    return copy


def _copy_dict(copy: Callable[[Any], Any], value: dict[str, Any]) -> dict[str, Any]:
    return {key: copy(part) for key, part in value.items()}


def _copy_sequence(cls: Any, copy: Callable[[Any], Any], value: Any) -> Any:
    return cls(map(copy, value))
