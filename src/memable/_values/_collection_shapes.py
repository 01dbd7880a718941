"""
The shapes of collections, enums, literals and unannotated values, made from the shapes of what they hold.

Rules: lists, tuples, sets and frozensets are JSON arrays; sets are in the order of their items' JSON texts, so that the
same set has the same form in every process. A dict with str keys is a JSON object in its own order, any other an array
of pairs; so is one with a str key that JSON would change. Members of enums go by name. A value without annotation is
JSON's own types and nothing else.
"""

from __future__ import annotations

import enum
import functools
import math
import operator
from collections.abc import Callable
from typing import Any, cast

from .._json import JSON, PAIR_PROBLEM, canonical, dumps_finite
from .._qualified_name import qualified_name
from ._leaves import LEAVES
from ._shape import MAX_NESTING, TOO_DEEP, Shape, UnfitError, misfit, refusal
from ._text_forms import has_surrogate_pair, read_text, text_form
from ._type_trees import STR

_PAIR = 2
_ONLY_JSON = "without annotation only JSON's own types are stored"
_PAIR_UNANNOTATED = f"the str has {PAIR_PROBLEM}; annotate it as str"


def list_shape(name: str, item: Shape) -> Shape:
    """
    Return the shape of lists.
    """
    return _array(list, name, item, lambda items: items)


def tuple_shape(name: str, item: Shape) -> Shape:
    """
    Return the shape of tuples of any length.
    """
    return _array(tuple, name, item, tuple)


def set_shape(cls: type, name: str, item: Shape) -> Shape:
    """
    Return the shape of sets or frozensets.
    """
    array = _array(cls, name, item, cls)

    def encode(value: Any) -> JSON:
        forms: Any = array.encode(value)
        return sorted(forms, key=_sort_key)

    return Shape(name, encode, array.decode, array.types)


def _sort_key(form: Any) -> bytes:
    return canonical(dumps_finite(form)) if isinstance(form, (dict, list)) else dumps_finite(form)


def _array(cls: Any, name: str, item: Shape, build: Callable[[list[Any]], Any]) -> Shape:
    encode_item, decode_item = item.encode, item.decode

    def encode(value: Any) -> JSON:
        if type(value) is not cls:
            raise refusal(value, name)
        forms: list[JSON] = []
        try:
            for part in value:
                forms.append(encode_item(part))  # noqa: PERF401 - how far it got says where it failed
        except UnfitError as problem:
            problem.at(f"[{len(forms)}]" if cls in (list, tuple) else "{...}")
            raise
        return forms

    def decode(tree: JSON) -> Any:
        if type(tree) is not list:
            raise misfit(tree, name)
        values: list[Any] = []
        try:
            for part in tree:
                values.append(decode_item(part))  # noqa: PERF401 - as above
        except UnfitError as problem:
            problem.at(f"[{len(values)}]")
            raise
        return build(values)

    return Shape(name, encode, decode, frozenset([cls]))


def record_shape(name: str, items: tuple[Shape, ...]) -> Shape:
    """
    Return the shape of tuples with a type for each place.
    """

    def encode(value: Any) -> JSON:
        if type(value) is not tuple:
            raise refusal(value, name)
        if len(value) != len(items):
            raise UnfitError(f"expected {name}, got a tuple of {len(value)}")
        forms: list[JSON] = []
        try:
            for item, part in zip(items, value, strict=True):
                forms.append(item.encode(part))
        except UnfitError as problem:
            problem.at(f"[{len(forms)}]")
            raise
        return forms

    def decode(tree: JSON) -> Any:
        if type(tree) is not list:
            raise misfit(tree, name)
        if len(tree) != len(items):
            raise UnfitError(f"expected {name}, but what is recorded there are {len(tree)} items")
        values: list[Any] = []
        try:
            for item, part in zip(items, tree, strict=True):
                values.append(item.decode(part))
        except UnfitError as problem:
            problem.at(f"[{len(values)}]")
            raise
        return tuple(values)

    return Shape(name, encode, decode, frozenset([tuple]))


def dict_shape(name: str, key: Shape, value: Shape, is_sorting: Callable[[], bool]) -> Shape:
    """
    Return the shape of dicts.

    Args:
        name: The recorded name.
        key: The shape of the keys.
        value: The shape of the values.
        is_sorting: Whether pairs are now to be in an order of their own, so that equal dicts have equal forms.
    """

    def arranged(pairs: list[list[JSON]]) -> JSON:
        return cast("JSON", sorted(pairs, key=_sort_key) if is_sorting() else pairs)

    return _object(name, value, arranged) if key.name == STR.name else _pairs(name, key, value, arranged)


def _object(name: str, value: Shape, arranged: Callable[[list[list[JSON]]], JSON]) -> Shape:
    encode_value, decode_value = value.encode, value.decode

    def encode(mapping: Any) -> JSON:
        if type(mapping) is not dict:
            raise refusal(mapping, name)
        forms: dict[str, JSON] = {}
        for key, part in mapping.items():
            if type(key) is not str:
                raise refusal(key, STR.name).at(_place(len(forms), "key"))
            try:
                forms[key] = encode_value(part)
            except UnfitError as problem:
                problem.at(f"[{key!a}]")
                raise
        if not all(map(str.isascii, forms)) and any(map(has_surrogate_pair, forms)):
            return arranged([[text_form(key), form] for key, form in forms.items()])
        return forms

    def decode(tree: JSON) -> Any:
        parts = tree if type(tree) is dict else _read_escaped(tree, name)
        values: dict[str, Any] = {}
        for key, part in parts.items():
            try:
                values[key] = decode_value(part)
            except UnfitError as problem:
                problem.at(f"[{key!a}]")
                raise
        return values

    return Shape(name, encode, decode, frozenset([dict]))


def _read_escaped(tree: JSON, name: str) -> dict[str, JSON]:
    """Return by their keys what a dict with a key that JSON would change was stored as."""
    pairs = _checked_pairs(tree, name)
    if all(type(key) is str for key, _ in pairs):
        raise misfit(tree, name)
    return {read_text(key): part for key, part in pairs}


def _checked_pairs(tree: JSON, name: str) -> list[list[JSON]]:
    if type(tree) is not list or any(type(pair) is not list or len(pair) != _PAIR for pair in tree):
        raise misfit(tree, name)
    return cast("list[list[JSON]]", tree)


def _pairs(name: str, key: Shape, value: Shape, arranged: Callable[[list[list[JSON]]], JSON]) -> Shape:
    def convert(pairs: Any, convert_key: Callable[[Any], Any], convert_value: Callable[[Any], Any]) -> list[list[Any]]:
        found: list[list[Any]] = []
        for key_part, value_part in pairs:
            what = "key"
            try:
                converted = convert_key(key_part)
                what = "value"
                found.append([converted, convert_value(value_part)])
            except UnfitError as problem:
                problem.at(_place(len(found), what))
                raise
        return found

    def encode(mapping: Any) -> JSON:
        if type(mapping) is not dict:
            raise refusal(mapping, name)
        return arranged(convert(mapping.items(), key.encode, value.encode))

    def decode(tree: JSON) -> Any:
        return dict(convert(_checked_pairs(tree, name), key.decode, value.decode))

    return Shape(name, encode, decode, frozenset([dict]))


def _place(index: int, what: str) -> str:
    return f"({what} of item {index})"


def enum_shape(name: str, cls: type[enum.Enum]) -> Shape:
    """
    Return the shape of the members of an enum; a combination of flags is the list of their names.
    """
    members = cls.__members__

    def encode(value: Any) -> JSON:
        if type(value) is not cls:
            raise refusal(value, name)
        if members.get(value.name) is value:
            return str(value.name)
        form: list[JSON] = [flag.name for flag in value] if isinstance(value, enum.Flag) else []
        if decode(form) is not value:
            raise UnfitError(f"expected {name}, got a value that is no combination of its members")
        return form

    def decode(tree: JSON) -> Any:
        if isinstance(tree, str):
            return member(tree)
        if not isinstance(tree, list) or not issubclass(cls, enum.Flag):
            raise misfit(tree, name)
        return functools.reduce(operator.or_, map(member, tree), cls(0))

    def member(each: JSON) -> Any:
        if not isinstance(each, str) or each not in members:
            raise UnfitError(f"expected {name}, but it has no member {each!a} any more")
        return members[each]

    return Shape(name, encode, decode, frozenset([cls]))


def literal_shape(name: str, values: tuple[Any, ...]) -> Shape:
    """
    Return the shape of the values of a Literal, all of them scalars of JSON, or all of one other type.
    """
    first = values[0]
    if isinstance(first, enum.Enum):
        form_of: Callable[[Any], JSON] = enum_shape(name, type(first)).encode
    elif type(first) is bytes:
        form_of = LEAVES[bytes].encode
    else:
        form_of = lambda value: text_form(value) if type(value) is str else value  # noqa: E731 - one of three
    # By type as well, because 1 and True are equal.
    forms = {(type(value), value): form_of(value) for value in values}
    back = {_scalar(form): value for (_, value), form in forms.items()}
    types = frozenset(map(type, values))

    def encode(value: Any) -> JSON:
        if type(value) not in types:
            raise refusal(value, name)
        if (type(value), value) not in forms:
            raise UnfitError(f"expected {name}, got another {type(value).__name__}")
        return forms[type(value), value]

    def decode(tree: JSON) -> Any:
        if isinstance(tree, list):
            raise misfit(tree, name)
        found = _scalar(tree)
        if found not in back:
            raise UnfitError(f"expected {name}, but what is recorded there is another value")
        return back[found]

    is_scalar = type(first) in (str, int, bool)
    return Shape(name, encode, decode, types, types if is_scalar else frozenset())


def _scalar(form: JSON) -> tuple[type, object]:
    """Return what tells the form of a scalar from all others: 1 and True are equal."""
    scalar = read_text(form) if isinstance(form, dict) else form
    return type(scalar), scalar


def unchanged_shape(name: str, asked: Shape) -> Shape:
    """
    Return the shape of plain trees that were recorded without annotation, to be read as the *asked* type.

    They are their own forms, so one that only looks like another form of the type is not read as its value.
    """

    def decode(tree: JSON) -> Any:
        value = asked.decode(tree)
        if not _is_same(value, tree):
            raise UnfitError(
                f"expected {asked.name}, but what is recorded there is plain JSON that only looks like one"
            )
        return value

    return Shape(name, asked.encode, decode, asked.types, asked.bare)


def _is_same(value: Any, tree: Any) -> bool:
    if type(value) is not type(tree):
        return False
    if isinstance(tree, dict):
        return value.keys() == tree.keys() and all(_is_same(value[key], part) for key, part in tree.items())
    if isinstance(tree, list):
        return len(value) == len(tree) and all(map(_is_same, value, tree))
    return bool(value == tree)


def plain(value: Any, depth: int = 0) -> JSON:
    """
    Return *value* if it is a plain tree of JSON's own types, as a value without annotation has to be.
    """
    cls = type(value)
    if cls is str and not value.isascii() and has_surrogate_pair(value):
        raise UnfitError(_PAIR_UNANNOTATED)
    if cls in (str, int, bool, type(None)):
        return value  # type: ignore[no-any-return]  # one of the scalars of JSON
    if cls is float and math.isfinite(value):
        return value  # type: ignore[no-any-return]  # as above
    if depth > MAX_NESTING:
        raise UnfitError(f"it {TOO_DEEP}")
    if cls is list:
        for index, part in enumerate(value):
            try:
                plain(part, depth + 1)
            except UnfitError as problem:
                problem.at(f"[{index}]")
                raise
    elif cls is dict:
        for index, (key, part) in enumerate(value.items()):
            _refuse_key(key, index)
            try:
                plain(part, depth + 1)
            except UnfitError as problem:
                problem.at(f"[{key!a}]")
                raise
    else:
        _refuse_plain(value)
    return value  # type: ignore[no-any-return]  # looked through to its ends


def _refuse_key(key: object, index: int) -> None:
    if type(key) is not str:
        raise UnfitError(f"{_ONLY_JSON}, and a key of those is a str").at(_place(index, "key"))
    if has_surrogate_pair(key):
        raise UnfitError(_PAIR_UNANNOTATED).at(_place(index, "key"))


def _refuse_plain(value: Any) -> None:
    shown = "inf or nan" if type(value) is float else qualified_name(type(value))
    raise UnfitError(f"{_ONLY_JSON}, and {shown} is none of them")
