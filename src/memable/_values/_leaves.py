"""
The shapes of types that hold no other types: numbers, texts, times, paths.

Rules: each form is one JSON scalar, but for complex numbers, for times with more to them than an ISO 8601 text can
say, and for texts that JSON would change (see `_text_forms`). Every decoder
accepts exactly what its encoder writes: it encodes what it has read and compares. Names are fixed here, because some
of these classes are called differently from one release of Python to the next.
"""

from __future__ import annotations

import binascii
import math
import pathlib
import uuid
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal, InvalidOperation
from typing import Any, cast
from zoneinfo import ZoneInfo

import msgspec

from .._json import JSON
from ._shape import Shape, UnfitError, misfit, refusal
from ._text_forms import read_text, text_form

#: From here on msgspec writes and reads base64 quicker than the standard library, far quicker in the end.
_LONG = 512

_MICROSECOND = timedelta(microseconds=1)


def _shape(
    cls: type,
    name: str,
    write: Callable[[Any], JSON],
    read: Callable[[Any], Any],
    form: tuple[type, ...] = (str,),
) -> Shape:
    """Return the shape of direct instances of *cls*; *read* sees only trees of the types in *form*."""

    def encode(value: Any) -> JSON:
        if type(value) is not cls:
            raise refusal(value, name)
        return write(value)

    def decode(tree: JSON) -> Any:
        if type(tree) not in form:
            raise misfit(tree, name)
        try:
            value = read(tree)
            if write(value) == tree:
                return value
        except (ValueError, InvalidOperation, OverflowError, KeyError, TypeError, OSError) as error:
            raise UnfitError(f"expected {name}, but what is recorded there is not: {error}") from error
        raise UnfitError(f"expected {name}, but what is recorded there is not written as one")

    return Shape(name, encode, decode, frozenset([cls]))


def _scalar(cls: type, name: str) -> Shape:
    """Return the shape of a type whose values are JSON as they are."""

    def encode(value: Any) -> JSON:
        if type(value) is not cls:
            raise refusal(value, name)
        return cast("JSON", value)

    def decode(tree: JSON) -> Any:
        if type(tree) is not cls:
            raise misfit(tree, name)
        return tree

    return Shape(name, encode, decode, frozenset([cls]), frozenset([cls]))


def _encode_text(value: Any) -> JSON:
    if type(value) is not str:
        raise refusal(value, "builtins.str")
    return value if value.isascii() else text_form(value)


_TEXT = Shape("builtins.str", _encode_text, read_text, frozenset([str]), frozenset([str]))

_NON_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def _float(*, widen: bool) -> Shape:
    """Return the shape of floats; with *widen* an int is stored as the float that equals it."""

    def encode(value: Any) -> JSON:
        if type(value) is float:
            return value if math.isfinite(value) else str(value)
        if not widen or type(value) is not int:
            raise refusal(value, "builtins.float")
        try:
            number = float(value)
        except OverflowError:
            raise UnfitError("expected builtins.float, got a builtins.int beyond the largest float") from None
        if number != value:
            raise UnfitError("expected builtins.float, got a builtins.int that no float equals")
        return number

    def decode(tree: JSON) -> float:
        if type(tree) is float:
            return tree
        if type(tree) is str and tree in _NON_FINITE:
            return _NON_FINITE[tree]
        raise misfit(tree, "builtins.float")

    return Shape("builtins.float", encode, decode, frozenset([float]), frozenset([float]), takes_others=widen)


def _write_bytes(value: bytes | bytearray) -> str:
    if len(value) >= _LONG:
        return cast("str", msgspec.to_builtins(value))
    return binascii.b2a_base64(value, newline=False).decode("ascii")


def _read_bytes(tree: str) -> bytes:
    if len(tree) >= _LONG:
        try:
            return msgspec.convert(tree, bytes)
        except ValueError:
            # The standard library says what is wrong.
            pass
    return binascii.a2b_base64(tree)


def _write_complex(value: complex) -> JSON:
    return [_FLOAT.encode(value.real), _FLOAT.encode(value.imag)]


def _read_complex(tree: list[JSON]) -> complex:
    real, imag = tree
    return complex(_FLOAT.decode(real), _FLOAT.decode(imag))


def _write_time(value: datetime | time) -> JSON:
    """
    Return ISO 8601 if it says all there is; else an object with the wall time and what else there is.

    A zone is kept by its key, without its offset of today: the wall time is what people agreed on.
    """
    zone = value.tzinfo
    if zone is None:
        more: dict[str, JSON] = {}
    elif type(zone) is timezone:
        name = zone.tzname(None)
        more = {} if name == timezone(zone.utcoffset(None)).tzname(None) else {"name": text_form(name)}
    elif type(zone) is ZoneInfo and zone.key is not None:
        more = {"zone": zone.key}
        value = value.replace(tzinfo=None)
    else:
        raise UnfitError(
            f"its tzinfo is a {type(zone).__module__}.{type(zone).__qualname__}, of which only an offset could be "
            f"kept; use datetime.timezone, or zoneinfo.ZoneInfo with a key"
        )
    if value.fold:
        more["fold"] = 1
    text = value.isoformat()
    return {"at": text, **more} if more else text


def _read_time(cls: type[datetime | time], tree: str | dict[str, Any]) -> datetime | time:
    if isinstance(tree, str):
        return cls.fromisoformat(tree)
    value = cls.fromisoformat(tree["at"])
    zone: Any = value.tzinfo
    if "zone" in tree:
        zone = ZoneInfo(tree["zone"])
    elif "name" in tree:
        zone = timezone(zone.utcoffset(None), read_text(tree["name"]))
    return value.replace(tzinfo=zone, fold=tree.get("fold", 0))


def _path(cls: type[pathlib.PurePath], name: str) -> Shape | None:
    """Return the shape of paths of a class, or None for one of another operating system."""
    try:
        concrete = type(cls())
    except NotImplementedError:
        # pathlib.UnsupportedOperation from Python 3.13 on, which derives from it.
        return None
    return _shape(
        concrete, f"pathlib.{name}", lambda value: text_form(str(value)), lambda tree: cls(read_text(tree)), (str, dict)
    )


_FLOAT = _float(widen=True)
EXACT_FLOAT = _float(widen=False)
"The shape of floats that takes no ints."

NONE = _scalar(type(None), "None")
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")

LEAVES: dict[type, Shape] = {
    str: _TEXT,
    int: _scalar(int, "builtins.int"),
    bool: _scalar(bool, "builtins.bool"),
    type(None): NONE,
    float: _FLOAT,
    bytes: _shape(bytes, "builtins.bytes", _write_bytes, _read_bytes),
    bytearray: _shape(bytearray, "builtins.bytearray", _write_bytes, lambda tree: bytearray(_read_bytes(tree))),
    complex: _shape(complex, "builtins.complex", _write_complex, _read_complex, (list,)),
    # Whether the exponent's letter is a capital depends on the context of the thread.
    Decimal: _shape(Decimal, "decimal.Decimal", lambda value: str(value).replace("e", "E"), Decimal),
    uuid.UUID: _shape(uuid.UUID, "uuid.UUID", str, uuid.UUID),
    date: _shape(date, "datetime.date", date.isoformat, date.fromisoformat),
    time: _shape(time, "datetime.time", _write_time, lambda tree: _read_time(time, tree), (str, dict)),
    datetime: _shape(datetime, "datetime.datetime", _write_time, lambda tree: _read_time(datetime, tree), (str, dict)),
    timedelta: _shape(
        timedelta,
        "datetime.timedelta",
        lambda value: value // _MICROSECOND,
        lambda tree: timedelta(microseconds=tree),
        (int,),
    ),
} | {getattr(pathlib, name): shape for name in _PATHS if (shape := _path(getattr(pathlib, name), name)) is not None}
"The shape of each type that holds no other types."
