"""
JSON text of plain trees: every tree comes back exactly as it was written.

Decided here: the JSON library and what it leaves undone. msgspec writes and reads what it can, fast; what it refuses
(lone surrogates, integers of more than 4300 digits) is written by the few lines below and read by the standard
library. inf and nan are no JSON: they are refused, where msgspec alone would silently write ``null``. JSON cannot
tell a high surrogate with a low one behind it from the one character that both stand for: `dumps_finite` refuses such a
pair, and `dumps` writes the character, since what it writes of any text is for people. The text is UTF-8 without a raw
newline, so a line of a log can hold it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from decimal import Decimal
from json.encoder import encode_basestring_ascii
from typing import TypeAlias, assert_never, cast

import msgspec

from ._errors import SerializationError

JSON: TypeAlias = bool | int | float | str | list["JSON"] | dict[str, "JSON"] | None
"A plain tree: exactly these types, no subclasses, finite floats."

_encode = msgspec.json.Encoder().encode
_encode_sorted = msgspec.json.Encoder(order="sorted").encode
_decode: Callable[[bytes], JSON] = msgspec.json.Decoder().decode

SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
"Two code points that JSON would make one character of."

#: Python itself refuses integers of more than 4300 digits.
_LONG_INT_DIGITS = 4_000
PAIR_PROBLEM = "a high surrogate just before a low one, which JSON cannot tell from one character"
_TOO_DEEP = "is nested too deeply for JSON, or contains itself; flatten it, or store a reference in its place"


def dumps(tree: JSON) -> bytes:
    """
    Return the JSON text of *tree*, on one line.

    A surrogate pair in a string of it is written as the character that it stands for.

    Raises:
        SerializationError: A float in it is inf or nan, or it is nested too deeply. Store something else.
    """
    try:
        data = _encode(tree)
    except (ValueError, RecursionError):
        data = _dumps_slowly(tree, sort=False)
    # Only a text with a null in it can have come from inf or nan; looking for them in each would cost more.
    if data.find(b"null") >= 0:
        _refuse_non_finite(tree)
    return data


def dumps_finite(tree: JSON) -> bytes:
    """
    Return the JSON text of a *tree* that is known to hold neither inf nor nan: they would become ``null``.

    Raises:
        SerializationError: It is nested too deeply. Store something else.
        ValueError: A string in it has a surrogate pair in it, which would not come back. Escape it before.
    """
    try:
        return _encode(tree)
    except (ValueError, RecursionError):
        data = _dumps_slowly(tree, sort=False)
    _refuse_surrogate_pairs(tree)
    return data


def dumps_if_easy(tree: object) -> bytes | None:
    """
    Return the JSON text of a *tree* if msgspec alone can write it, else None.

    Bytes are written in base64, tuples as lists. As for `dumps_finite`, inf and nan would become ``null``.
    """
    try:
        return _encode(tree)
    except (ValueError, RecursionError):
        return None


def loads(data: bytes) -> JSON:
    """
    Return the tree that *data* is the text of.

    Raises:
        ValueError: It is no JSON, has a number beyond every float, or is nested too deeply to be read.
    """
    try:
        return _decode(data)
    except msgspec.DecodeError:
        # Either it is no JSON, or it holds what only the standard library reads.
        return _loads_slowly(data)
    except RecursionError:
        raise ValueError(f"the JSON text {_TOO_DEEP}") from None


def canonical(data: bytes) -> bytes:
    """
    Return *data* with the keys of all objects sorted: equal values have equal canonical texts.

    Raises:
        ValueError: As for `loads`.
    """
    tree = loads(data)
    try:
        return _encode_sorted(tree)
    except (ValueError, RecursionError):
        return _dumps_slowly(tree, sort=True)


def _dumps_slowly(tree: JSON, *, sort: bool) -> bytes:
    """Write what msgspec refuses: a lone surrogate, or an integer beyond the interpreter's limit on digits."""
    parts: list[str] = []
    try:
        _write(tree, parts.append, sort=sort)
    except RecursionError:
        raise SerializationError(problem=f"the value {_TOO_DEEP}") from None
    return "".join(parts).encode("ascii")


def _refuse_non_finite(tree: JSON) -> None:
    rest = [tree]
    while rest:
        found = rest.pop()
        if isinstance(found, dict):
            rest.extend(found.values())
        elif isinstance(found, list):
            rest.extend(found)
        elif isinstance(found, float) and not math.isfinite(found):
            raise SerializationError(problem=f"{found} is no JSON number; annotate it as float")


def _refuse_surrogate_pairs(tree: JSON) -> None:
    rest = [tree]
    while rest:
        found = rest.pop()
        if isinstance(found, dict):
            rest.extend(found)
            rest.extend(found.values())
        elif isinstance(found, list):
            rest.extend(found)
        elif isinstance(found, str) and SURROGATE_PAIR.search(found):
            raise ValueError(f"{found[:80]!a} has {PAIR_PROBLEM}")


def _write(tree: JSON, write: Callable[[str], object], *, sort: bool) -> None:
    """Write *tree* as msgspec does, with what it refuses escaped, or converted without a limit on digits."""
    match tree:
        case str():
            write(encode_basestring_ascii(tree))
        case bool() | None:
            write(json.dumps(tree))
        case int():
            # Decimal converts integers of any size, in less than quadratic time.
            write(str(Decimal(tree)))
        case float():
            write(_encode(tree).decode("ascii"))
        case list():
            for index, item in enumerate(tree):
                write("," if index else "[")
                _write(item, write, sort=sort)
            write("]" if tree else "[]")
        case dict():
            for index, key in enumerate(sorted(tree) if sort else tree):
                write("," if index else "{")
                write(encode_basestring_ascii(key))
                write(":")
                _write(tree[key], write, sort=sort)
            write("}" if tree else "{}")
        case unknown:
            assert_never(unknown)


def _loads_slowly(data: bytes) -> JSON:
    try:
        tree = json.loads(data.decode(), parse_int=_parse_int, parse_float=_parse_float, parse_constant=_refuse)
    except RecursionError:
        raise ValueError(f"the JSON text {_TOO_DEEP}") from None
    return cast(JSON, tree)


def _parse_int(text: str) -> int:
    return int(text) if len(text) < _LONG_INT_DIGITS else int(Decimal(text))


def _parse_float(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is no finite JSON number")
