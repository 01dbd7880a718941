"""
Recorded type names, put together again where nobody knows the annotation.

They are made from what JSON and Python bring along, and from the classes at hand, which are those of the value itself
and those that were stored before.

Rules: a class goes by its recorded name, and nothing is imported by one. A class that is not at hand stands for itself:
no value is of it, but the types around it keep their form. So each value of the recorded type has its shape.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from .._errors import SerializationError
from ._leaves import LEAVES
from ._recorded_types import RecordedType, parse_recorded
from ._type_reader import TypeReader
from ._type_trees import ANY, NEVER, Kind, TypeTree, collection, leaf, literal, union

_COLLECTIONS = {"list": Kind.LIST, "set": Kind.SET, "frozenset": Kind.FROZENSET, "dict": Kind.DICT}
_PLAIN = {ANY.name: ANY, NEVER.name: NEVER} | {tree.name: tree for tree in map(leaf, LEAVES)}
_ELLIPSIS = RecordedType("...")
_EMPTY = RecordedType("()")


@attrs.frozen
class NamedTypes:
    """
    The classes at hand, by their recorded names.
    """

    _exact: Mapping[RecordedType, TypeTree]
    "By the whole name."
    _heads: Mapping[str, TypeTree]
    "By the name before the brackets."

    def tree(self, recorded: RecordedType) -> TypeTree:
        """
        Return the type of a recorded name.
        """
        if recorded.head == "|":
            return union(map(self.tree, recorded.args))
        if recorded.head == "Literal":
            return self._literal(recorded)
        if recorded.head == "tuple":
            return self._tuple(recorded.args)
        args = tuple(map(self.tree, recorded.args))
        if recorded.head in _COLLECTIONS:
            return collection(_COLLECTIONS[recorded.head], *args)
        found = _PLAIN.get(recorded.head) or self._exact.get(recorded)
        if found is not None:
            return found
        found = self._heads.get(recorded.head)
        return _unknown(recorded) if found is None else attrs.evolve(found, args=args)

    def _tuple(self, args: tuple[RecordedType, ...]) -> TypeTree:
        if args[1:] == (_ELLIPSIS,):
            return collection(Kind.VARIADIC, self.tree(args[0]))
        return collection(Kind.TUPLE, *(self.tree(arg) for arg in args if arg != _EMPTY))

    def _literal(self, recorded: RecordedType) -> TypeTree:
        values = [self._literal_value(arg.head) for arg in recorded.args]
        # Its values are all of one enum, or of none.
        return _unknown(recorded) if None in values else literal(*values)

    def _literal_value(self, text: str) -> object | None:
        enum_name, _, member = text.rpartition(".")
        enum = self._heads.get(enum_name)
        if enum is not None and enum.kind is Kind.ENUM:
            members: dict[str, object] = enum.source.__members__
            return members.get(member)
        try:
            value: object = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return None
        return value


def _unknown(recorded: RecordedType) -> TypeTree:
    return TypeTree(Kind.UNKNOWN, _text(recorded))


def _text(recorded: RecordedType) -> str:
    args = list(map(_text, recorded.args))
    if recorded.head == "|":
        return " | ".join(args)
    return f"{recorded.head}[{', '.join(args)}]" if args else recorded.head


def named_types(
    value: object, reader: TypeReader, known: Iterable[TypeTree], aliases: Mapping[str, type]
) -> NamedTypes:
    """
    Return the types that the classes at hand make.

    Args:
        value: What is to be encoded: its classes go before all others.
        reader: Reads them.
        known: Types that were stored before in this process.
        aliases: Today's classes by the names that they were recorded under.
    """
    exact: dict[RecordedType, TypeTree] = {}
    heads: dict[str, TypeTree] = {}
    own = [tree for cls in _classes_in(value) for tree in _read(reader, cls)]
    for tree in (*own, *_with_parts(known)):
        exact.setdefault(parse_recorded(tree.name), tree)
        heads.setdefault(tree.head, tree)
    for name, cls in aliases.items():
        for tree in _read(reader, cls):
            heads.setdefault(name, tree)
    return NamedTypes(exact, heads)


def _read(reader: TypeReader, cls: type) -> tuple[TypeTree, ...]:
    try:
        return reader.read(cls).members
    except SerializationError:
        # No value of it can be stored, by whatever name.
        return ()


def _with_parts(trees: Iterable[TypeTree]) -> Iterator[TypeTree]:
    pending = list(trees)
    while pending:
        tree = pending.pop()
        if tree.kind in (Kind.CLASS, Kind.ENUM, Kind.FOREIGN, Kind.TRUSTED, Kind.ALIAS):
            yield tree
        pending.extend(tree.args)


def _classes_in(value: object) -> Iterator[type]:
    """Yield the classes of *value* and of all that it holds, each once, those of the outer ones first."""
    seen: set[int] = set()
    classes: set[type] = set()
    pending: list[Any] = [value]
    while pending:
        each = pending.pop()
        cls = type(each)
        if id(each) in seen or cls in LEAVES:
            continue
        # The value holds all of them, so no number is given to another one meanwhile.
        seen.add(id(each))
        if cls not in classes:
            classes.add(cls)
            yield cls
        pending.extend(_parts(each, cls))


def _parts(value: Any, cls: Any) -> Iterable[object]:
    if isinstance(value, dict):
        return (*value.keys(), *value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return value
    names: list[str] = []
    if attrs.has(cls):
        names = [field.name for field in attrs.fields(cls)]
    elif dataclasses.is_dataclass(cls):
        names = [field.name for field in dataclasses.fields(cls)]
    held = getattr(value, "__dict__", {})
    return (*held.values(), *(getattr(value, name, None) for name in names if name not in held))
