"""
Values to their encoded form and back.
"""

# ruff: noqa: DTZ001, DTZ901, PYI061 - times without a zone and None in a Literal are values to be stored
from __future__ import annotations

import collections
import collections.abc
import inspect
import json
import math
import pathlib
import re
import socket
import subprocess
import sys
import typing
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, Never, NewType, Optional, TypeVar, Union
from zoneinfo import ZoneInfo

import attrs
import cattrs
import cattrs.preconf.json
import cattrs.preconf.msgspec
import cattrs.strategies
import pytest
import typing_extensions

import value_models as models
from memable._encoded import Encoded
from memable._errors import SerializationError, TypeMismatchError
from memable._json import canonical
from memable._values._codec import Codec
from value_models import (
    Access,
    AlsoSame,
    Animal,
    Bits,
    Box,
    BoxDict,
    Color,
    Dog,
    Frozen,
    Hashed,
    IntBox,
    IntBoxDict,
    Item,
    Left,
    Loud,
    MyDict,
    MyInt,
    MyStr,
    Node,
    Number,
    Options,
    Order,
    Partial,
    Place,
    Plain,
    Point,
    Puppy,
    Right,
    Same,
    Shelf,
    Shouting,
    Slotted,
    Sub,
    Untyped,
    UserId,
    Word,
)

EMPTY = inspect.Signature.empty
BERLIN = ZoneInfo("Europe/Berlin")
NAME = models.__name__
PAIR = "\ud83d" + "\ude00"  # two code points, where U+1F600 is one
CHARACTER = "\U0001f600"
Json = typing_extensions.TypeAliasType("Json", "int | str | list[Json] | dict[str, Json] | None")
Pair = TypeVar("Pair")
Twice = typing_extensions.TypeAliasType("Twice", tuple[Pair, Pair], type_params=(Pair,))
Tree = typing_extensions.TypeAliasType("Tree", "Pair | list[Tree[Pair]]", type_params=(Pair,))


def same(a: Any, b: Any) -> bool:  # noqa: PLR0911 - one for each kind of value
    """Tell whether two values are of the same types, deeply, and equal; NaN equals NaN here, and 0.0 is not -0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return len(a) == len(b) and all(
            same(x, y) and same(v, w) for (x, v), (y, w) in zip(a.items(), b.items(), strict=True)
        )
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, (set, frozenset)):
        return a == b and sorted(map(repr, a)) == sorted(map(repr, b))
    if attrs.has(type(a)):
        return all(same(getattr(a, field.name), getattr(b, field.name)) for field in attrs.fields(type(a)))
    if isinstance(a, int):
        # Too long to be printed, some of them.
        return bool(a == b)
    if isinstance(a, datetime):
        return repr(a) == repr(b) and a.fold == b.fold
    return repr(a) == repr(b)


def there_and_back(value: Any, annotation: Any, codec: Codec | None = None) -> Encoded:
    """Check that *value* comes back as it was, in a new process as well, and return its encoded form."""
    codec = codec or Codec()
    encoded = codec.encode(value, annotation)
    json.loads(encoded.data.decode("utf-8"), parse_int=str)
    assert b"\n" not in encoded.data
    decoded = codec.decode(encoded, annotation)
    assert same(decoded, value), (decoded, value)
    assert codec.encode(decoded, annotation) == encoded
    return encoded


order = Order([Item("a", Decimal("1.10"), {"x", "y"}), Item("b", Decimal("NaN"))], note="\ud800", secret=7)
order.computed = 99

ROUND_TRIPS: dict[str, tuple[Any, Any]] = {
    "str": ("a\0b\n\U0001f600é", str),
    "str with a lone surrogate": ("\ud800x\udfff", str),
    "str with a surrogate pair": (f"a{PAIR}b{PAIR}\ud800{PAIR}{CHARACTER}", str),
    "surrogate pair in a union": ([PAIR, 1, CHARACTER], list[str | int]),
    "surrogate pair in a field": (Box([PAIR]), Box[list[str]]),
    "surrogate pair in a field of str": (Box(PAIR), Box[str]),
    "surrogate pair in an alias": ([PAIR, {PAIR: [None]}], Json),
    "surrogate pair in a set": ({PAIR, CHARACTER, "x"}, set[str]),
    "surrogate pair in a Literal": (PAIR, Literal["\ud83d\ude00", "\U0001f600", 1]),
    "surrogate pair in a union of a Literal": ([PAIR, b"a"], list[Literal["\ud83d\ude00"] | bytes]),
    "surrogate pair in a path": (pathlib.PurePosixPath(f"a/{PAIR}"), pathlib.PurePosixPath),
    "surrogate pair in the name of a zone": (
        datetime(2024, 1, 2, tzinfo=timezone(timedelta(hours=1), PAIR)),
        datetime,
    ),
    "surrogate pairs as keys": ({"a": [0], PAIR: [1], CHARACTER: [2], "\ud83d": [3]}, dict[str, list[int]]),
    "surrogate pairs as keys of anything": ({PAIR: 1, CHARACTER: {"a": None}}, dict[str, Any]),
    "surrogate pairs as keys of pairs": ({PAIR: 1, CHARACTER: 2, 3: 4}, dict[str | int, int]),
    "int": (-5, int),
    "int over 64 bit": (2**64, int),
    "int of 10,000 digits": (-(10**10_000), int),
    "bool": (False, bool),
    "None": (None, None),
    "NoneType": (None, type(None)),
    "float": (0.1, float),
    "float that is whole": (1e22, float),
    "float -0.0": (-0.0, float),
    "float inf": (math.inf, float),
    "float -inf": (-math.inf, float),
    "float nan": (math.nan, float),
    "complex": (complex(-0.0, math.inf), complex),
    "bytes": (bytes(range(256)), bytes),
    "no bytes": (b"", bytes),
    "bytearray": (bytearray(b"\xff"), bytearray),
    "Decimal": (Decimal("1.10"), Decimal),
    "Decimal with an exponent": (Decimal("-0E+5"), Decimal),
    "Decimal NaN": (Decimal("-NaN12"), Decimal),
    "Decimal sNaN": (Decimal("sNaN"), Decimal),
    "Decimal Infinity": (Decimal("-Infinity"), Decimal),
    "UUID": (uuid.UUID(int=5), uuid.UUID),
    "date": (date.max, date),
    "datetime, naive": (datetime(2024, 1, 2, 3, 4, 5, 6), datetime),
    "datetime, naive, with fold": (datetime(2024, 1, 2, fold=1), datetime),
    "datetime in UTC": (datetime(2024, 1, 2, tzinfo=UTC), datetime),
    "datetime with an odd offset": (
        datetime(2024, 1, 2, tzinfo=timezone(-timedelta(hours=1, seconds=2, microseconds=3))),
        datetime,
    ),
    "datetime with a named offset": (datetime(2024, 1, 2, tzinfo=timezone(timedelta(hours=2), "CEST")), datetime),
    "datetime in a zone": (datetime(2024, 7, 2, tzinfo=BERLIN), datetime),
    "datetime in a zone, with fold": (datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=1), datetime),
    "datetime max": (datetime.max, datetime),
    "time": (time(1, 2, 3, 4), time),
    "time in a zone": (time(1, tzinfo=BERLIN, fold=1), time),
    "time with an offset": (time(1, tzinfo=timezone(timedelta(minutes=5))), time),
    "timedelta": (timedelta(days=-1, microseconds=1), timedelta),
    "timedelta max": (timedelta.max, timedelta),
    "timedelta min": (timedelta.min, timedelta),
    "Path": (pathlib.Path("a/\udcff"), pathlib.Path),
    "PurePath": (pathlib.PurePath(), pathlib.PurePath),
    "PurePosixPath": (pathlib.PurePosixPath("//a/.."), pathlib.PurePosixPath),
    "PureWindowsPath": (pathlib.PureWindowsPath("c:/x"), pathlib.PureWindowsPath),
    "list": ([1, 2], list[int]),
    "list of an old name": ([1, 2], typing.List[int]),  # noqa: UP006 - as users write it
    "list, bare": ([1, "a", [None]], list),
    "list, bare, of an old name": ([1], typing.List),  # noqa: UP006 - as users write it
    "tuple": ((1, "a"), tuple[int, str]),
    "tuple, variadic": ((1, 2, 3), tuple[int, ...]),
    "tuple, empty": ((), tuple[()]),
    "tuple, variadic and empty": ((), tuple[int, ...]),
    "tuple, bare": ((1, "a"), tuple),
    "tuple, bare, of an old name": ((1, "a"), typing.Tuple),  # noqa: UP006 - as users write it
    "set": ({1, 2, 3}, set[int]),
    "set of tuples": ({(1, "b"), (1, "a")}, set[tuple[int, str]]),
    "set of nan": ({math.nan, 1.0}, set[float]),
    "frozenset": (frozenset({"b", "a"}), frozenset[str]),
    "set, bare": ({1, "a", None}, set),
    "dict": ({"b": 1, "a": 2}, dict[str, int]),
    "dict, bare": ({"b": [1], "$a": {}}, dict),
    "dict of ints": ({2: "b", 1: "a"}, dict[int, str]),
    "dict of tuples": ({(1, None): {"a": 1.5}}, dict[tuple[int, str | None], dict[str, float]]),
    "dict of surrogates": ({"\ud800": 1}, dict[str, int]),
    "dict of Any": ({"a": 1}, dict[Any, Any]),
    "Sequence as list": ([1], collections.abc.Sequence[int]),
    "Sequence as tuple": ((1,), typing.Sequence[int]),
    "Mapping": ({"a": 1}, collections.abc.Mapping[str, int]),
    "MutableMapping": ({1: 1}, collections.abc.MutableMapping[int, int]),
    "Set": (frozenset({1}), collections.abc.Set[int]),
    "Iterable": ({1}, collections.abc.Iterable[int]),
    "MutableSequence": ([1], collections.abc.MutableSequence[int]),
    "enum": (Color.BLUE, Color),
    "enum by its alias": (Color.CRIMSON, Color),
    "IntEnum": (Number.TWO, Number),
    "StrEnum": (Word.YES, Word),
    "Flag": (Access.READ, Access),
    "Flag, combined": (Access.READ | Access.EXECUTE, Access),
    "Flag, combined with a name": (Access.READ | Access.WRITE, Access),
    "Flag, none": (Access(0), Access),
    "IntFlag": (Bits.A | Bits.B, Bits),
    "Literal str": ("a", Literal["a", "b"]),
    "Literal mixture 1": (1, Literal[1, "1", True, None]),
    "Literal mixture '1'": ("1", Literal[1, "1", True, None]),
    "Literal mixture True": (True, Literal[1, "1", True, None]),
    "Literal mixture None": (None, Literal[1, "1", True, None]),
    "Literal enum": (Color.RED, Literal[Color.RED, "RED", b"RED"]),
    "Literal like an enum": ("RED", Literal[Color.RED, "RED", b"RED"]),
    "Literal bytes": (b"RED", Literal[Color.RED, "RED", b"RED"]),
    "Literal with syntax": ("],'\"|\n\ud800", Literal["],'\"|\n\ud800", "x"]),
    "Optional": (5, Optional[int]),  # noqa: UP045 - as users write it
    "Optional None": (None, Optional[int]),  # noqa: UP045 - as users write it
    "Union": ("a", Union[int, str]),  # noqa: UP007 - as users write it
    "int in int | str": (1, int | str),
    "str in int | str": ("1", int | str),
    "int in float | int": (1, float | int),
    "float in float | int": (1.0, float | int),
    "nan in float | str": (math.nan, float | str),
    "'nan' in float | str": ("nan", float | str),
    "bool in int | bool": (True, int | bool),
    "int in int | bool": (1, int | bool),
    "Literal in a union": (1, Literal[1] | str),
    "list in list | dict": ([1], list[int] | dict[str, int]),
    "dict in list | dict": ({"$x": 1}, list[int] | dict[str, int]),
    "ints in list | list": ([1], list[float] | list[int]),
    "floats in list | list": ([1.0], list[float] | list[int]),
    "strs in list | list": (["a"], list[int] | list[str]),
    "nested ints in dicts": ({"a": [1]}, dict[str, list[float]] | dict[str, list[int]]),
    "dict in dict | dict": ({1: "a"}, dict[str, int] | dict[int, str]),
    "one of two alike": (AlsoSame(1), Same | AlsoSame),
    "subclass in a union": (Sub(1, 2), Same | Sub),
    "bytes in bytes | str": (b"a", bytes | str),
    "str in bytes | str": ("YQ==", bytes | str),
    "date in datetime | date": (date(2024, 1, 1), datetime | date),
    "datetime in datetime | date": (datetime(2024, 1, 1), datetime | date),
    "TypedDict in a union": ({"name": "a"}, Options | dict[str, int]),
    "dict beside a TypedDict": ({"name": 1}, Options | dict[str, int]),
    "tuple in tuple | list": ((1,), tuple[int, ...] | list[int]),
    "nested union": ([{"a": (1, None)}, "b"], list[dict[str, tuple[int | str, date | None]] | str] | None),
    "Any in a union": ([1, {"a": None}], Any | date),
    "date beside Any": (date(2024, 1, 1), Any | date),
    "float beside Any": (math.inf, Any | float),
    "attrs": (order, Order),
    "attrs, unannotated": (models.Unannotated([1], "a"), models.Unannotated),
    "attrs, frozen": (Frozen(a=1), Frozen),
    "attrs, generic": (Box(Item("a", Decimal(1))), Box[Item]),
    "attrs, generic, bare": (Box([1, {"a": None}]), Box),
    "attrs, generic, inherited": (IntBox(1, "a"), IntBox),
    "attrs, generic twice": (Shelf("a", 1.5), Shelf[float, str]),
    "attrs, generic, nested": (Box(Box(1)), Box[Box[int]]),
    "attrs, recursive": (Node(1, [Node(2, [Node(3)])], Node(0)), Node),
    "attrs, recursive through another": (Left(Right(Left())), Left),
    "attrs, not idempotent": (Shouting("a"), Shouting),
    "dataclass": (Point(1, 2.0, parts=[Point(3)]), Point),
    "dataclass, slots": (Slotted(value="a", pair=("b", 1)), Slotted[str]),
    "NamedTuple": (Place("a", 2, [1]), Place),
    "NamedTuple, subclass": (Loud("a"), Loud),
    "namedtuple": (Untyped(1, ["x"]), Untyped),
    "TypedDict": ({"size": 1, "name": "a"}, Options),
    "TypedDict without": ({"name": "a"}, Options),
    "TypedDict, not total": ({"name": "a"}, Partial),
    "TypedDict, annotated": ({"sizes": [1]}, models.Noted),
    "TypedDict, generic": ({"value": (1,)}, BoxDict[tuple[int]]),
    "TypedDict, inherited": ({"value": 1, "label": "a"}, IntBoxDict),
    "NewType": (UserId(1), UserId),
    "Annotated": (1, Annotated[int, "note"]),
    "Annotated without a hash": (1, Annotated[int, []]),
    "LiteralString": ("a", typing.LiteralString),
    "alias, recursive": ([1, {"a": ["b", None]}], Json),
    "alias, recursive, in a list": ([[1], {"a": []}], list[Json]),
    "alias, generic": ((1, 2), Twice[int]),
    "alias, generic and recursive": ([1, [2, [3]]], Tree[int]),
    "TypeVar with constraints": ("a", typing.AnyStr),
    "finite float in a field without annotation": (Box(1.5), Box),
    "TypeVar": ([1, {"a": None}], Pair),
    "Any": ({"a": [1, 1.5, None, True, "x"]}, Any),
    "object": ([1], object),
    "unannotated": ("x", EMPTY),
    "unannotated int of 10,000 digits": ([10**10_000], EMPTY),
}


@pytest.mark.parametrize(("value", "annotation"), ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_value_comes_back_as_it_was(value: Any, annotation: Any) -> None:
    """
    What was stored is read back equal and of exactly the same types, all the way down.
    """
    there_and_back(value, annotation)


def test_decoded_value_is_a_new_one() -> None:
    """
    A value that was read shares nothing with the one that was stored.
    """
    codec, value = Codec(), {"a": [Item("x", Decimal(1))]}
    encoded = codec.encode(value, dict[str, list[Item]])
    decoded = codec.decode(encoded, dict[str, list[Item]])
    assert decoded == value
    assert decoded is not value
    assert decoded["a"][0] is not value["a"][0]
    assert decoded["a"][0].tags is not codec.decode(encoded, dict[str, list[Item]])["a"][0].tags


def test_decoded_instance_runs_no_code_of_its_class() -> None:
    """
    Converters, validators and post-init hooks ran when the value was made; they don't run again on reading it.
    """
    value = Shouting("a")
    object.__setattr__(value, "text", "far too long")
    assert there_and_back(value, Shouting).data == b'{"text":"far too long"}'


def test_decoded_instance_hashes_as_the_stored_one() -> None:
    """
    A class that caches its hash works after reading.
    """
    codec = Codec()
    for value in (Hashed(1), Frozen(a=1)):
        hash(value)
        assert hash(codec.decode(codec.encode(value, type(value)), type(value))) == hash(value)


def test_decoded_instance_computes_cached_properties_anew() -> None:
    """
    A cached property is no field: it is not stored, and no reason to refuse the value.
    """
    value = Order([Item("a", Decimal(2))])
    assert value.total == 2
    codec = Codec()
    decoded = codec.decode(codec.encode(value, Order), Order)
    assert "total" not in vars(decoded)
    assert decoded.total == 2


NAMES: dict[str, tuple[Any, str]] = {
    "str": (str, "builtins.str"),
    "None": (None, "None"),
    "Optional": (Optional[int], "builtins.int | None"),  # noqa: UP045 - as users write it
    "Union": (Union[None, int], "builtins.int | None"),  # noqa: UP007 - as users write it
    "bar": (int | None, "builtins.int | None"),
    "order": (str | None | int, "builtins.int | builtins.str | None"),
    "nested": (Union[int, Union[str, None]], "builtins.int | builtins.str | None"),  # noqa: UP007 - as users write it
    "list": (list[int], "list[builtins.int]"),
    "tuple": (tuple[int, str], "tuple[builtins.int, builtins.str]"),
    "variadic": (tuple[int, ...], "tuple[builtins.int, ...]"),
    "empty": (tuple[()], "tuple[()]"),
    "dict": (dict[str, Any], "dict[builtins.str, typing.Any]"),
    "bare": (dict, "dict[builtins.str, typing.Any]"),
    "Path": (pathlib.Path, "pathlib.Path"),
    "class": (Item, f"{NAME}.Item"),
    "generic": (Box[int | None], f"{NAME}.Box[builtins.int | None]"),
    "generic, bare": (Box, f"{NAME}.Box[typing.Any]"),
    "Literal": (Literal["b", "a", 1], "Literal['a', 'b', 1]"),
    "enum": (Literal[Color.RED], f"Literal[{NAME}.Color.RED]"),
    "NewType": (UserId, "builtins.int"),
    "Sequence": (collections.abc.Sequence[int], "list[builtins.int] | tuple[builtins.int, ...]"),
    "alias": (Twice[int], "tuple[builtins.int, builtins.int]"),
}


@pytest.mark.parametrize(("annotation", "name"), NAMES.values(), ids=NAMES)
def test_type_name_is_stable(annotation: Any, name: str) -> None:
    """
    A type is recorded under one name, however the annotation is written.
    """
    codec = Codec()
    with pytest.raises(SerializationError, match=re.escape(f" as {name}: ")):
        codec.encode(object(), annotation)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (None, "None"),
        (True, "builtins.bool"),
        (1, "builtins.int"),
        (1.5, "builtins.float"),
        ("", "builtins.str"),
        ([], "list[typing.Any]"),
        ({}, "dict[builtins.str, typing.Any]"),
    ],
)
def test_unannotated_value_is_recorded_as_what_it_is(value: Any, name: str) -> None:
    """
    A value without annotation carries the name of its JSON type.
    """
    assert there_and_back(value, EMPTY).type == name


def test_set_is_written_in_the_same_order_by_every_process() -> None:
    """
    The order of a set's items does not depend on the hash seed.
    """
    code = (
        "from memable._values._codec import Codec\n"
        "print(Codec().encode({'a', 'b', 'c', 'd', None, ('x', 'y')}, set[str | None | tuple[str, str]]).data)"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": path},
        ).stdout
        for seed in "123"
        for path in [":".join(sys.path)]
    }
    assert len(outputs) == 1
    assert b"x" in outputs.pop()


# Refused, never converted -----------------------------------------------------------------------------------------

bad_item = Item("a", Decimal(1))
bad_item.price = "1"  # type: ignore[assignment]  # this is what is tested
unset = Order([])
del unset.computed
named = Loud("a")
named.extra = 1  # type: ignore[attr-defined]  # this is what is tested
extended = Order([])
extended.extra = 1  # type: ignore[attr-defined]  # this is what is tested
cycle: list[Any] = []
cycle.append(cycle)
ring = Node(1)
ring.children.append(ring)
deep: Any = []
for _ in range(5_000):
    deep = [deep]


@attrs.define(slots=False)
class Broken:
    x: int = 1


exploding = Broken()
Broken.x = property(lambda _: 1 // 0)  # type: ignore[assignment,misc]  # this is what is tested


class Subtle(datetime): ...


class MyZone(ZoneInfo): ...


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "str for int": ("5", int, "expected builtins.int, got builtins.str"),
    "bool for int": (True, int, "expected builtins.int, got builtins.bool"),
    "int for bool": (1, bool, "expected builtins.bool, got builtins.int"),
    "int for str": (1, str, "expected builtins.str, got builtins.int"),
    "float for int": (1.0, int, "expected builtins.int, got builtins.float"),
    "None for int": (None, int, "expected builtins.int, got builtins.NoneType"),
    "int for None": (1, None, "expected None, got builtins.int"),
    "bool for float": (True, float, "expected builtins.float, got builtins.bool"),
    "int no float equals": (2**53 + 1, float, "that no float equals"),
    "int beyond floats": (10**400, float, "beyond the largest float"),
    "str for bytes": ("a", bytes, "expected builtins.bytes, got builtins.str"),
    "list for tuple": ([1], tuple[int, ...], r"expected tuple\[builtins.int, ...\], got builtins.list"),
    "tuple for list": ((1,), list[int], "got builtins.tuple"),
    "set for frozenset": ({1}, frozenset[int], "got builtins.set"),
    "list for set": ([1], set[int], "got builtins.list"),
    "wrong arity": ((1,), tuple[int, int], "got a tuple of 1"),
    "wrong item": ((1, "a"), tuple[int, int], r"at \[1\]: expected builtins.int"),
    "list for fixed tuple": ([1, 2], tuple[int, int], "got builtins.list"),
    "str for enum": ("r", Color, "got builtins.str"),
    "int for IntEnum": (1, Number, "got builtins.int"),
    "IntEnum for int": (Number.ONE, int, r"got .*\.Number"),
    "StrEnum for str": (Word.YES, str, r"got .*\.Word"),
    "unnamed bits": (models.Loose(6), models.Loose, "no combination of its members"),
    "not in Literal": ("c", Literal["a", "b"], "got another str"),
    "True for Literal[1]": (True, Literal[1], "got builtins.bool"),
    "1 for Literal[True]": (1, Literal[True], "got builtins.int"),
    "enum for Literal str": (Word.YES, Literal["y"], r"got .*Word"),
    "missing key": ({}, Options, "got one without 'name'"),
    "unknown key": ({"name": "a", "color": 1}, Options, "'color' is no key of Options"),
    "wrong value of a key": ({"name": 1}, Options, "at .name: expected builtins.str"),
    "wrong field": ([Item("a", Decimal(1)), bad_item], list[Item], r"at \[1\].price: expected decimal.Decimal, got b"),
    "deep inside": ({"a": {"b": ["x", 2]}}, dict[str, dict[str, list[str]]], r"at \['a'\]\['b'\]\[1\]: expected"),
    "wrong key": ({"a": 1, 1: 1}, dict[str, int], r"at \(key of item 1\): expected builtins.str, got builtins.int"),
    "wrong key of pairs": ({"a": 1}, dict[int, int], r"at \(key of item 0\): expected builtins.int"),
    "wrong value of pairs": ({1: "a"}, dict[int, int], r"at \(value of item 0\): expected builtins.int"),
    "list for dict": ([], dict[str, int], "got builtins.list"),
    "list for dict of pairs": ([], dict[int, int], "got builtins.list"),
    "in a set": ({1}, set[str], r"at \{...\}: expected builtins.str"),
    "wrong element of NamedTuple": (Place("a", "b"), Place, "at .rank: expected builtins.int"),  # type: ignore[arg-type]  # what is tested
    "tuple for NamedTuple": (("a", 1), Place, "got builtins.tuple"),
    "subclass of NamedTuple": (Loud("a"), Place, r"got .*\.Loud"),
    "subclass": (Sub(1), Same, r"got .*\.Sub"),
    "another class": (AlsoSame(1), Same, r"got .*\.AlsoSame"),
    "subclass of int": (MyInt(1), int, r"got .*\.MyInt"),
    "subclass of str": (MyStr("a"), str, r"got .*\.MyStr"),
    "subclass of dict": (MyDict(a=1), dict[str, int], r"got .*\.MyDict"),
    "OrderedDict": (collections.OrderedDict(a=1), dict[str, int], "got collections.OrderedDict"),
    "defaultdict": (collections.defaultdict(int), dict[str, int], "got collections.defaultdict"),
    "datetime for date": (datetime(2024, 1, 1), date, "got datetime.datetime"),
    "date for datetime": (date(2024, 1, 1), datetime, "got datetime.date"),
    "subclass of datetime": (Subtle(2024, 1, 1), datetime, "got .*Subtle"),
    "foreign tzinfo": (datetime(2024, 1, 1, tzinfo=MyZone("UTC")), datetime, "use datetime.timezone, or zoneinfo"),
    "str for Path": ("a", pathlib.Path, "got builtins.str"),
    "PosixPath for PurePath": (pathlib.Path("a"), pathlib.PurePath, "expected pathlib.PurePath, got"),
    "str for Sequence[str]": ("abc", collections.abc.Sequence[str], "got builtins.str"),
    "no member": (1.5, int | str, r"expected builtins.int \| builtins.str, got builtins.float"),
    "no member, deeply": ([1.5], list[int] | list[str], r"at \[0\]: expected builtins.int, got builtins.float"),
    "nothing": (1, Never, "expected typing.Never, got builtins.int"),
    "unset field": (unset, Order, "at .computed: the field is not set"),
    "more than fields": (extended, Order, "it holds 'extra' beside its fields"),
    "NamedTuple with more": (named, Loud, "it holds more than its fields"),
    "property that raises": (exploding, Broken, "reading it raised ZeroDivisionError"),
    "cycle": (cycle, Any, "nested more than 128 levels deep, or contains itself"),
    "cycle of instances": (ring, Node, "nested more than 128 levels deep, or contains itself"),
    "deep nesting": (deep, Any, "nested more than 128 levels deep"),
    "deep nesting of an alias": (deep, Json, "nested more than 128 levels deep"),
    "tuple without annotation": ((1,), Any, "JSON's own types are stored, and builtins.tuple is none"),
    "inf without annotation": (math.inf, EMPTY, "inf or nan is none"),
    "nan in an unannotated list": ([1, math.nan], list, r"at \[1\]: .*inf or nan is none"),
    "int key without annotation": ({1: 2}, Any, r"a key of those is a str"),
    "set deep without annotation": ({"a": [{1}]}, object, r"at \['a'\]\[0\]: .*builtins.set is none of them"),
    "int subclass without annotation": (MyInt(1), Any, r"MyInt is none of them"),
    "surrogate pair without annotation": (PAIR, EMPTY, "a high surrogate just before a low one"),
    "surrogate pair in an unannotated list": ([1, {"a": PAIR}], list, r"at \[1\]\['a'\]: .*annotate it as str"),
    "surrogate pair as an unannotated key": ({"a": {PAIR: 1}}, Any, r"at \['a'\]\(key of item 0\): .*high surr"),
    "inf in a field without annotation": (Box(math.inf), Box, "at .value: .*inf or nan is none of them"),
}


@pytest.mark.parametrize(("value", "annotation", "problem"), REFUSED.values(), ids=REFUSED)
def test_value_of_another_type_is_refused(value: Any, annotation: Any, problem: str) -> None:
    """
    A value that is not of its annotated type is refused, with the place, both types and the remedy.
    """
    with pytest.raises(SerializationError, match=problem) as caught:
        Codec().encode(value, annotation)
    remedy = "annotate the function" if annotation in (Any, EMPTY, object) else "return what the annotation says"
    assert remedy in str(caught.value)


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, float, 1.0),
        (1, float | str, 1.0),
        ([1, 2.5], list[float], [1.0, 2.5]),
        ({"a": [1]}, dict[str, list[float]] | dict[str, list[str]], {"a": [1.0]}),
        (Box(1), Box[float], Box(1.0)),
        (2**60, float, float(2**60)),
    ],
    ids=map(str, range(6)),
)
def test_int_for_a_float_is_stored_as_that_float(value: Any, annotation: Any, expected: Any) -> None:
    """
    Only an int for a float is converted: to the float that equals it.
    """
    codec = Codec()
    assert same(codec.decode(codec.encode(value, annotation), annotation), expected)


P = typing.ParamSpec("P")
Ts = typing.TypeVarTuple("Ts")


@attrs.define
class HasLock:
    lock: socket.socket


@attrs.define
class HasUnknown:
    x: Missing  # type: ignore[name-defined]  # noqa: F821 - this is what is tested


@attrs.define
class Failure(Exception):  # noqa: N818 - a value, by its look
    x: int


@attrs.define
class FieldsAndItems(dict):  # type: ignore[type-arg]  # this is what is tested
    x: int


Strange = attrs.make_class("Str[ange", {"x": attrs.field(type=int)})
LocalSame = attrs.make_class("Same", {"y": attrs.field(type=int)})
LocalSame.__module__, LocalSame.__qualname__ = Same.__module__, Same.__qualname__
DEEP: Any = int
for _ in range(3_000):
    DEEP = list[DEEP]
Endless = typing_extensions.TypeAliasType("Endless", "Endless | int")
Undefined = typing_extensions.TypeAliasType("Undefined", "list[Missing]")  # noqa: F821 - this is what is tested

UNSUPPORTED: dict[str, tuple[Any, str]] = {
    "socket": (socket.socket, "the type socket.socket cannot be stored: it is no class whose fields are known.*regis"),
    "deep": (dict[str, list[socket.socket | None]], "the type socket.socket cannot be stored"),
    "field": (HasLock, "the type socket.socket cannot be stored"),
    "plain class": (Plain, "Plain cannot be stored.*converter"),
    "name": ("Foo", "Foo cannot be stored: it is a name that was not resolved"),
    "forward reference": (list["Foo"], "name that was not resolved"),  # type: ignore[name-defined]  # noqa: F821 - this is what is tested
    "unknown name in a class": (HasUnknown, "HasUnknown cannot be stored.*'Missing' is not defined.*importable"),
    "object": (5, "is no type that values have"),
    "callable": (Callable[[int], int], "is no type that values have"),
    "type": (type, "builtins.type cannot be stored: it is a type and more"),
    "type of": (type[int], "it is a type and more"),
    "subclass of int": (MyInt, "it is a int and more"),
    "OrderedDict": (collections.OrderedDict[str, int], "it is a dict and more"),
    "exception": (Failure, "it is a BaseException and more"),
    "fields and items": (FieldsAndItems, "it is a dict and more"),
    "float literal": (Literal[1.5], "none that the typing rules allow"),
    "mixed tuple": (tuple[int, typing.Unpack[tuple[str, ...]]], "fixed and variable parts"),  # noqa: UP044 - as users write it
    "unpacked tuple": (tuple[int, *tuple[str, ...], int], "fixed and variable parts"),
    "unpacked in a list": (list[(*tuple[int, ...],)], "is no type that values have"),  # type: ignore[valid-type]  # what is tested
    "name with a bracket": (Strange, "characters in its name"),
    "two of one name": (Same | LocalSame, "the name of two members of one union"),
    "deep annotation": (DEEP, r"nested more than 128 levels deep"),
    "alias of itself": (Endless, "it stands for itself"),
    "alias of the unknown": (Undefined, "cannot be stored.*'Missing' is not defined"),
}


@pytest.mark.parametrize(("annotation", "problem"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_unsupported_annotation_is_found_before_anything_runs(annotation: Any, problem: str) -> None:
    """
    An annotation that no value can be stored by is refused by itself, with the part of it that is to blame.
    """
    codec = Codec()
    with pytest.raises(SerializationError, match=problem):
        codec.check(annotation)
    with pytest.raises(SerializationError, match=problem):
        codec.encode(None, annotation)
    with pytest.raises(TypeMismatchError, match=r"what is recorded is None"):
        codec.decode(Encoded("None", b"null"), annotation)


def test_check_accepts_what_can_be_stored() -> None:
    """
    An annotation by which some value can be stored passes.
    """
    codec = Codec()
    for _, annotation in ROUND_TRIPS.values():
        codec.check(annotation)
    codec.check(Never)
    codec.check(typing.NoReturn)
    codec.check(Union[tuple([Never, typing.NoReturn])])  # noqa: C409, UP007 - spelled out, ruff would mend it


def test_value_over_the_limit_is_refused_with_both_sizes() -> None:
    """
    A value whose text is too long is refused, and the message names both sizes.
    """
    codec = Codec(max_value_bytes=10)
    assert codec.encode("a" * 8, str).data == b'"aaaaaaaa"'
    with pytest.raises(
        SerializationError, match=r"is 11 bytes long when encoded, more than max_value_bytes, which is 10"
    ):
        codec.encode("a" * 9, str)
    with pytest.raises(SerializationError, match=r"type memable.arguments is .* bytes long"):
        codec.encode_arguments([1], [int])


# Reading as another type ------------------------------------------------------------------------------------------

READABLE: dict[str, tuple[Any, Any, Any]] = {
    "member of a union": (1, int, int | None),
    "narrower union": (1, int | None, str | int | None),
    "None": (None, None, int | None),
    "list of a wider type": ([1], list[int], list[int | None]),
    "list in a union": ([date.min], list[date], list[date | str] | None),
    "union of lists": ([1], list[int] | list[str], list[int | str]),
    "tuple": ((1, "a"), tuple[int, str], tuple[int | None, str | None]),
    "variadic tuple": ((1,), tuple[int, ...], tuple[int | str, ...]),
    "empty tuple": ((), tuple[()], tuple[()] | None),
    "dict": ({"a": [b"x"]}, dict[str, list[bytes]], dict[str, list[bytes | None] | None]),
    "dict of wider keys": ({"a": 1}, dict[str, int], dict[str | int, int]),
    "set": ({1}, set[int], set[int | None]),
    "list as Sequence": ([1], list[int], collections.abc.Sequence[int]),
    "generic class": (Box(1), Box[int], Box[int | None]),
    "wider Literal": ("a", Literal["a"], Literal["a", "b"]),
    "Literal as str": ("a", Literal["a", "b"], str),
    "Literal of some as union": (1, Literal[1, "a"], int | str),
    "Literal as Any": ("a", Literal["a", "b"], Any),
    "Literal of an enum as that": (Color.RED, Literal[Color.RED], Color),
    "Literal of bytes as bytes": (b"a", Literal[b"a"], bytes),
    "Any as int": (1, Any, int),
    "Any as union": ("x", Any, int | str),
    "Any as a list of ints": ([1, 2], Any, list[int]),
    "Any as a list of scalars": ([1, "a", None], Any, list[int | str | None]),
    "Any as a list of dicts": ([{"a": 1}], Any, list[dict[str, int]]),
    "Any as a list of Literals": (["a"], Any, list[Literal["a"]]),
    "Any as a list of lists": ([[1]], Any, list[list[int]]),
    "Any as a dict of lists": ({"a": [1.5]}, Any, dict[str, list[float]]),
    "bare list as list of ints": ([1], list, list[int]),
    "int as Any": (1, int, Any),
    "float inf as Any": (math.inf, float, Any),
    "list of ints as Any": ([1], list[int], Any),
    "dict as Any": ({"a": [1]}, dict[str, list[int]], Any),
    "list of ints as bare list": ([1], list[int], list),
    "union as Any": (None, int | None, Any),
    "Any as object": ([1], Any, object),
    "recursive alias": ([1], list[int], Json),
    "generic alias": ([1, [2]], Tree[int], Tree[int] | None),
}


@pytest.mark.parametrize(("value", "written", "read"), READABLE.values(), ids=READABLE)
def test_wider_type_reads_what_a_narrower_one_wrote(value: Any, written: Any, read: Any) -> None:
    """
    A recorded value is read as a type that allows every value of the recorded one.
    """
    codec = Codec()
    assert same(codec.decode(codec.encode(value, written), read), value)


MISMATCHES: dict[str, tuple[Any, Any, Any]] = {
    "int as str": (1, int, str),
    "int as bool": (1, int, bool),
    "bool as int": (True, bool, int),
    "int as float": (1, int, float),
    "str as bytes": ("YQ==", str, bytes),
    "str as datetime": ("2024-01-01", str, date),
    "date as datetime": (date(2024, 1, 1), date, datetime),
    "list of ints as of strs": ([1], list[int], list[str]),
    "no ints as strs": ([], list[int], list[str]),
    "tuple as list": ((1,), tuple[int, ...], list[int]),
    "list as tuple": ([1], list[int], tuple[int, ...]),
    "fixed tuple as variadic": ((1,), tuple[int], tuple[int, ...]),
    "variadic tuple as fixed": ((1,), tuple[int, ...], tuple[int]),
    "other arity": ((1,), tuple[int], tuple[int, int]),
    "set as frozenset": ({1}, set[int], frozenset[int]),
    "wider union": (1, int | None, int),
    "other union": (1, int | None, int | str),
    "class as its twin": (Same(1), Same, AlsoSame),
    "class as its base": (Sub(1), Sub, Same),
    "class as dict": (Same(1), Same, dict[str, int]),
    "dict as class": ({"x": 1}, dict[str, int], Same),
    "TypedDict as dict": ({"name": "a"}, Options, dict[str, str]),
    "generic class of another type": (Box(1), Box[int], Box[str]),
    "class as Any": (Same(1), Same, Any),
    "date as Any": (date.min, date, Any),
    "dates as Any": ([date.min], list[date], Any),
    "tuple as Any": ((1,), tuple[int, ...], Any),
    "Any as class": ({"x": 1}, Any, Same),
    "Any as a list of dates": (["2024-01-01"], Any, list[date]),
    "Any as a list of others": (["a"], Any, list[int]),
    "Any as a list of optional lists": ([[1]], Any, list[list[int] | None]),
    "Any as a dict of ints": ({"1": 1}, Any, dict[int, int]),
    "Literal no longer there": ("a", Literal["a", "b"], Literal["a"]),
    "Literal as another type": ("a", Literal["a"], int),
    "Literal of an enum as another": (Color.RED, Literal[Color.RED], Number),
    "str as Literal": ("a", str, Literal["a"]),
    "enum as its value": (Number.ONE, Number, int),
    "alias of another type": ([1, [2]], Tree[int], Tree[str]),
    "anything as nothing": (1, int, Never),
}


@pytest.mark.parametrize(("value", "written", "read"), MISMATCHES.values(), ids=MISMATCHES)
def test_value_is_never_read_as_another_type(value: Any, written: Any, read: Any) -> None:
    """
    Reading as a type that does not allow the recorded one is a mismatch, also where the JSON would fit.
    """
    codec = Codec()
    encoded = codec.encode(value, written)
    with pytest.raises(TypeMismatchError, match=r"the code asks for .* but what is recorded is") as caught:
        codec.decode(encoded, read)
    assert caught.value.found == encoded.type
    assert caught.value.expected != encoded.type


DAMAGED: dict[str, tuple[str, bytes, Any]] = {
    "no JSON": ("builtins.int", b"{", int),
    "int as str": ("builtins.int", b'"5"', int),
    "true as int": ("builtins.int", b"true", int),
    "int as float": ("builtins.float", b"5", float),
    "int as bytes": ("builtins.bytes", b"5", bytes),
    "unknown float": ("builtins.float", b'"infinity"', float),
    "no name": ("", b"5", int),
    "no type name": ("list[", b"5", int),
    "too many brackets": ("list[builtins.int]]", b"[]", list[int]),
    "wrong brackets": ("list[,]", b"[]", list[int]),
    "no separator": ("list[builtins.int'a']", b"[]", list[int]),
    "open string": ("Literal['a", b"[]", list[int]),
    "deep type name": ("list[" * 5_000 + "]" * 5_000, b"[]", list[int]),
    "no base64": ("builtins.bytes", b'"!"', bytes),
    "odd base64": ("builtins.bytes", b'"YR=="', bytes),
    "no Decimal": ("decimal.Decimal", b'"abc"', Decimal),
    "untidy Decimal": ("decimal.Decimal", b'" 1_0 "', Decimal),
    "no UUID": ("uuid.UUID", b'"x"', uuid.UUID),
    "no date": ("datetime.date", b'"2024-13-01"', date),
    "other ISO": ("datetime.date", b'"20240101"', date),
    "unknown zone": ("datetime.datetime", b'{"at":"2024-01-01T00:00:00","zone":"No/Where"}', datetime),
    "hostile zone": ("datetime.datetime", b'{"at":"2024-01-01T00:00:00","zone":"../../etc/passwd"}', datetime),
    "no time": ("datetime.datetime", b'{"zone":"UTC"}', datetime),
    "name without offset": ("datetime.time", b'{"at":"00:00:00","name":"X"}', time),
    "timedelta too large": ("datetime.timedelta", b"99999999999999999999999", timedelta),
    "list for int": ("builtins.int", b"[]", int),
    "no list": ("list[builtins.int]", b"{}", list[int]),
    "wrong item": ("list[builtins.int]", b'[1,"2"]', list[int]),
    "no tuple": ("tuple[builtins.int]", b"{}", tuple[int]),
    "wrong arity": ("tuple[builtins.int]", b"[1,2]", tuple[int]),
    "wrong part": ("tuple[builtins.int]", b'["1"]', tuple[int]),
    "no dict": ("dict[builtins.str, builtins.int]", b"[]", dict[str, int]),
    "wrong value": ("dict[builtins.str, builtins.int]", b'{"a":"1"}', dict[str, int]),
    "no pairs": ("dict[builtins.int, builtins.int]", b"[1]", dict[int, int]),
    "wrong pair": ("dict[builtins.int, builtins.int]", b'[["1",1]]', dict[int, int]),
    "unhashable key": (
        f"dict[{NAME}.Item, builtins.int]",
        b'[[{"sku":"a","price":{"$decimal.Decimal":"1"},"tags":{"$set[builtins.str]":[]}},1]]',
        dict[Item, int],
    ),
    "no member": (f"{NAME}.Color", b'"GREEN"', Color),
    "list for a member": (f"{NAME}.Color", b'["RED"]', Color),
    "no flag": (f"{NAME}.Access", b"[1]", Access),
    "no Literal": ("Literal['a']", b'"b"', Literal["a"]),
    "list for a Literal": ("Literal['a']", b"[]", Literal["a"]),
    "unknown tag": ("builtins.int | builtins.str", b'{"$os.system":"x"}', int | str),
    "no tag": ("builtins.int | builtins.str", b'{"a":"x"}', int | str),
    "two tags": ("builtins.int | builtins.str", b'{"$builtins.int":1,"$builtins.str":"x"}', int | str),
    "float for a union": ("builtins.int | builtins.str", b"1.5", int | str),
    "scalar for a Literal": ("Literal['a', 'b'] | None", b'"c"', Literal["a", "b"] | None),
    "no object": (f"{NAME}.Same", b"[]", Same),
    "wrong field": (f"{NAME}.Same", b'{"x":"1"}', Same),
    "no key": (f"{NAME}.Options", b"{}", Options),
    "too deep": (
        f"{NAME}.Node",
        b'{"value":1,"parent":null,"children":{"$list[value_models.Node]":[' * 200 + b"]}}" * 200,
        Node,
    ),
    "too deep for JSON": ("list[typing.Any]", b"[" * 10_000 + b"]" * 10_000, Any),
    "nested plain": ("list[typing.Any]", b"[" * 500 + b"]" * 500, Any),
}


@pytest.mark.parametrize(("name", "data", "annotation"), DAMAGED.values(), ids=DAMAGED)
def test_record_that_does_not_fit_is_a_mismatch(name: str, data: bytes, annotation: Any) -> None:
    """
    A record that no value was encoded to is a mismatch, never converted and nothing else.
    """
    with pytest.raises(TypeMismatchError, match=r"what is recorded is"):
        Codec().decode(Encoded(name, data), annotation)


# Classes that change ----------------------------------------------------------------------------------------------


def version(name: str, **fields: Any) -> Any:
    """Return an attrs class: one version of a class that changes."""
    for annotation, field in fields.values():
        field.type = annotation
    made = attrs.make_class(name, {key: field for key, (_, field) in fields.items()})
    made.__module__ = "app"
    return made


def required() -> Any:
    return attrs.field()


def evolve(before: Any, after: Any, *args: Any, aliases: dict[str, type] | None = None) -> Any:
    return Codec(aliases=aliases or {}).decode(Codec().encode(before(*args), before), after)


def test_class_that_gained_a_field_with_a_default_reads_old_records() -> None:
    """
    Defaults fill in what a record does not have, through the field's converter, as ``__init__`` does.
    """
    before = version("A", x=(int, required()))
    after = version(
        "A",
        x=(int, required()),
        y=(str, attrs.field(default="d")),
        z=(list[int], attrs.field(factory=list)),
        w=(int, attrs.field(default=attrs.Factory(lambda self: self.x + 1, takes_self=True))),
        c=(int, attrs.field(default="7", converter=int)),
        f=(
            str,
            attrs.field(
                default=1,
                converter=attrs.Converter(lambda v, me, f: f"{v}{me.x}{f.name}", takes_self=True, takes_field=True),
            ),
        ),
    )
    assert evolve(before, after, 1) == after(1)
    assert evolve(before, after, 1).f == "11f"


def test_dataclass_that_gained_fields_with_defaults_reads_old_records() -> None:
    """
    Defaults of dataclasses and named tuples fill in what a record does not have.
    """
    codec = Codec()
    one = codec.encode(Point(1), Point)
    tree = json.loads(one.data)
    for name in ("y", "parts"):
        del tree[name]
    assert codec.decode(Encoded(one.type, json.dumps(tree).encode()), Point) == Point(1)
    assert codec.decode(Encoded(f"{NAME}.Place", b'{"name":"a"}'), Place) == Place("a")
    assert codec.decode(Encoded(f"{NAME}.Untyped", b'{"a":1}'), Untyped) == Untyped(1)
    with pytest.raises(TypeMismatchError, match=r"the record has no field 'name', and .*Place has no default for it"):
        codec.decode(Encoded(f"{NAME}.Place", b"{}"), Place)


def test_class_that_lost_a_field_reads_old_records() -> None:
    """
    What a record has of a field that is gone is dropped.
    """
    before = version("A", x=(int, required()), y=(str, required()))
    after = version("A", x=(int, required()))
    assert evolve(before, after, 1, "a") == after(1)


def test_class_that_gained_a_field_without_default_is_a_mismatch() -> None:
    """
    A field that has no value in the record and no default is named.
    """
    before, after = version("A", x=(int, required())), version("A", x=(int, required()), y=(str, required()))
    with pytest.raises(TypeMismatchError, match=r"the record has no field 'y', and app.A has no default for it"):
        evolve(before, after, 1)


@pytest.mark.parametrize(
    ("was", "value", "now"),
    [
        (int, 5, str),
        (str, "5", int),
        (bool, True, int),
        (int, 1, float),
        (str, "2024-01-01", date),
        (str, "a", pathlib.Path),
        (list[int], [1], tuple[int, ...]),
        (list[int], [], set[int]),
        (date, date.min, datetime),
        (Same, Same(1), AlsoSame),
        (int | None, None, int),
        (float, math.inf, str),
        (dict[str, int], {"x": 1}, Same),
        (Any, [1], list[str]),
    ],
    ids=map(str, range(14)),
)
def test_field_of_another_type_is_a_mismatch(was: Any, value: Any, now: Any) -> None:
    """
    A field whose type changed is never converted, and the message names it.
    """
    before, after = version("A", x=(was, required())), version("A", x=(now, required()))
    with pytest.raises(TypeMismatchError, match=r"at .x"):
        evolve(before, after, value)


@pytest.mark.parametrize(
    ("was", "value", "now"),
    [
        (int, 5, int | None),
        (int, 5, int | str),
        (date, date.min, date | str),
        (date, date.min, datetime | date | None),
        (list[int], [1], list[int | None]),
        (Same, Same(1), Same | AlsoSame),
        (int | None, 5, int),
        (Any, 5, int),
        (Any, [1], list[int]),
        (list[int], [1], Any),
        (Literal["a"], "a", str),
        (str, "a", Literal["a", "b"]),
        (float, math.inf, float | str),
    ],
    ids=map(str, range(13)),
)
def test_field_whose_new_type_allows_the_value_is_read(was: Any, value: Any, now: Any) -> None:
    """
    A field that may be more than it was reads what it was.
    """
    before, after = version("A", x=(was, required())), version("A", x=(now, required()))
    assert same(evolve(before, after, value).x, value)


def test_default_that_fails_is_a_mismatch() -> None:
    """
    What a user's default raises is said, and is not let through as it is.
    """
    before = version("A", x=(int, required()))
    after = version("A", x=(int, required()), y=(int, attrs.field(factory=lambda: 1 // 0)))
    with pytest.raises(TypeMismatchError, match=r"making it raised ZeroDivisionError"):
        evolve(before, after, 1)


def _recurse(*_: object) -> int:
    raise RecursionError


def test_recursion_in_the_users_classes_is_refused() -> None:
    """
    A property or a default that never ends is an error about the value, not a RecursionError.
    """

    @attrs.define(slots=False)
    class Endless:
        x: int = 1

    value = Endless()
    Endless.x = property(_recurse)  # type: ignore[assignment]  # this is what is tested
    with pytest.raises(SerializationError, match=r"nested more than 128 levels deep"):
        Codec().encode(value, Endless)
    before = version("A", x=(int, required()))
    after = version("A", x=(int, required()), y=(int, attrs.field(factory=_recurse)))
    with pytest.raises(TypeMismatchError, match=r"nested more than 128 levels deep"):
        evolve(before, after, 1)


def test_alias_reads_a_class_that_was_renamed() -> None:
    """
    A record of a class that moved is read by its alias: alone, within other types, in unions, fields and literals.
    """
    old, new = version("Old", x=(int, required())), version("New", x=(int, required()))
    writer, reader = Codec(), Codec(aliases={"app.Old": new, f"{NAME}.Number": Color2, f"{NAME}.Box": NewBox})
    for value, written, read, expected in [
        (old(1), old, new, new(1)),
        ([old(1)], list[old], list[new], [new(1)]),
        (
            {"a": (old(1), None)},
            dict[str, tuple[old | None, None]],
            dict[str, tuple[new | None, None]],
            {"a": (new(1), None)},
        ),
        (old(1), old | int, new | int, new(1)),
        (old(1), old, new | int, new(1)),
        ([old(1), 5], list[old | int], list[new | int], [new(1), 5]),
        (Box(old(1)), Box[old], NewBox[new], NewBox(new(1))),
        (Box(old(1)), Box[old | None], NewBox[new | None], NewBox(new(1))),
        (Number.ONE, Number, Color2, Color2.ONE),
        (Number.ONE, Literal[Number.ONE], Literal[Color2.ONE], Color2.ONE),
        ([Number.ONE], list[Literal[Number.ONE] | int], list[Color2 | int], [Color2.ONE]),
    ]:
        encoded = writer.encode(value, written)
        assert reader.decode(encoded, read) == expected
        with pytest.raises(TypeMismatchError, match=r"what is recorded is"):
            Codec().decode(encoded, read)


import enum  # noqa: E402 - used by what follows only


class Color2(enum.Enum):
    ONE = 1


@attrs.define
class NewBox(Generic[Pair]):
    value: Pair


def test_alias_does_not_hide_a_class_of_its_name() -> None:
    """
    A class that exists under the aliased name is still read as itself.
    """
    codec = Codec(aliases={f"{NAME}.Same": AlsoSame})
    encoded = codec.encode([Same(1)], list[Same])
    assert codec.decode(encoded, list[Same]) == [Same(1)]
    assert codec.decode(encoded, list[Same] | None) == [Same(1)]
    assert codec.decode(encoded, list[AlsoSame]) == [AlsoSame(1)]


def test_local_classes_of_one_name_are_read_as_each_other() -> None:
    """
    Two classes made by two calls of one function have one name, and either reads what the other wrote.
    """

    def make() -> Any:
        @attrs.define
        class Local:
            x: int
            inner: Local | None = None

        return Local

    one, other = make(), make()
    codec = Codec()
    encoded = codec.encode(one(1, one(2)), one)
    assert codec.decode(encoded, other) == other(1, other(2))
    assert encoded.type.endswith("make.<locals>.Local")


# Arguments --------------------------------------------------------------------------------------------------------


def test_arguments_come_back_as_they_were() -> None:
    """
    Arguments are stored together, each with its type.
    """
    codec = Codec()
    values = (1, "a", Item("x", Decimal(1)), [None])
    annotations = (int | None, str, Item, EMPTY)
    encoded = codec.encode_arguments(values, annotations)
    assert encoded.type == "memable.arguments"
    assert json.loads(encoded.data)[1] == {"type": "builtins.str", "value": "a"}
    assert same(codec.decode_arguments(encoded, lambda count: annotations[:count]), values)


def test_arguments_may_be_fewer_than_parameters() -> None:
    """
    A parameter that was added has no recorded argument; one too many recorded is a mismatch.
    """
    codec = Codec()
    encoded = codec.encode_arguments([1], [int])
    assert codec.decode_arguments(encoded, lambda _: [int, str]) == (1,)
    with pytest.raises(TypeMismatchError, match=r"the code asks for 0 arguments, but what is recorded is 1 arguments"):
        codec.decode_arguments(encoded, lambda _: [])


def test_argument_that_does_not_fit_is_named() -> None:
    """
    Messages about arguments say which one is meant.
    """
    codec = Codec()
    with pytest.raises(SerializationError, match=r"argument 2: .*expected builtins.int, got builtins.str"):
        codec.encode_arguments([1, "a"], [int, int])
    with pytest.raises(TypeMismatchError, match=r"asks for builtins.str, .* is builtins.int \(argument 1\)"):
        codec.decode_arguments(codec.encode_arguments([1], [int]), lambda _: [str])
    with pytest.raises(TypeMismatchError, match=r"\(argument 1: expected builtins.int"):
        codec.decode_arguments(Encoded("memable.arguments", b'[{"type":"builtins.int","value":"a"}]'), lambda _: [int])
    with pytest.raises(TypeMismatchError, match=r"is recorded is builtins.int"):
        codec.decode_arguments(codec.encode(1, int), lambda _: [int])


def test_equal_arguments_have_equal_canonical_texts() -> None:
    """
    Whether an instance was started with the same input does not depend on the order of dicts and sets.
    """
    codec = Codec()
    one = codec.encode_arguments([{"a": 1, "b": 2}, {"x", "y"}], [dict[str, int], set[str]])
    other = codec.encode_arguments([{"b": 2, "a": 1}, {"y", "x"}], [dict[str, int], set[str]])
    assert one.data != other.data
    assert canonical(one.data) == canonical(other.data)


def test_surrogate_pairs_are_told_from_the_character() -> None:
    """
    Two code points that JSON would make one of are stored apart, and nothing else is stored otherwise than before.
    """
    codec = Codec()
    assert codec.encode(f"a{PAIR}b", str).data == b'{"$str":["a\\ud83d","\\ude00b"]}'
    assert codec.encode({PAIR: 1, "a": 2}, dict[str, int]).data == b'[[{"$str":["\\ud83d","\\ude00"]},1],["a",2]]'
    assert codec.encode("\ude00\ud83d", str).data == b'"\\ude00\\ud83d"'
    assert codec.encode(CHARACTER, str).data == f'"{CHARACTER}"'.encode()
    assert codec.decode(codec.encode([PAIR], list[str]), EMPTY) == [PAIR]


def test_surrogate_pair_in_a_name_is_refused() -> None:
    """
    A key of a TypedDict or a member of an enum that JSON would change is refused: it is to be renamed.
    """
    codec = Codec()
    strange: Any = typing.TypedDict("strange", {"\ud83d\ude00": int})  # type: ignore[misc]  # no identifier
    for encode in (codec.encode, lambda value, annotation: codec.encode_arguments([value], [annotation])):
        with pytest.raises(SerializationError, match=r"a high surrogate just before a low one.*; rename it"):
            encode({PAIR: 1}, strange)


@pytest.mark.parametrize(
    ("value", "asked"),
    [
        ([{"$str": ["\ud83d", "\ude00"]}], list[str]),
        ([[[{"$str": ["\ud83d", "\ude00"]}, 1]]], list[dict[str, int]]),
        ([{"$builtins.int": 1}], list[int | None]),
        (["nan"], list[float]),
        ({"a": {"b": "inf"}}, dict[str, dict[str, float]]),
    ],
)
def test_unannotated_value_that_looks_like_a_form_is_not_read_as_another(value: Any, asked: Any) -> None:
    """
    What was recorded without annotation is read as what it was, or not at all.
    """
    codec = Codec()
    with pytest.raises(TypeMismatchError):
        codec.decode(there_and_back(value, EMPTY, codec), asked)


# Arguments that are the same --------------------------------------------------------------------------------------


def same_arguments(
    recorded: Any,
    was: Any,
    given: Any,
    now: Any,
    *,
    aliases: dict[str, type] | None = None,
    converter: cattrs.Converter | None = None,
) -> bool:
    codec = Codec(aliases=aliases or {}, converter=converter)
    before = codec.encode_arguments([recorded], [was])
    return codec.same_arguments(before, codec.encode_arguments([given], [now]), lambda count: [now] * count)


KEYED_BY_INT = {1: {2: "a", 3: "b"}, 4: {}}
KEYED_BY_INT_TOO = {4: {}, 1: {3: "b", 2: "a"}}

SAME_INPUT: dict[str, tuple[Any, Any, Any, Any]] = {
    "same": (1, int, 1, int),
    "order of str keys": ({"a": 1, "b": {"x": 1, "y": 2}}, Any, {"b": {"y": 2, "x": 1}, "a": 1}, Any),
    "order of int keys": (KEYED_BY_INT, dict[int, dict[int, str]], KEYED_BY_INT_TOO, dict[int, dict[int, str]]),
    "order of int keys in a field": (
        Box([KEYED_BY_INT]),
        Box[list[dict[int, dict[int, str]]]],
        Box([KEYED_BY_INT_TOO]),
        Box[list[dict[int, dict[int, str]]]],
    ),
    "order of keys with surrogate pairs": (
        {PAIR: 1, CHARACTER: 2},
        dict[str, int],
        {CHARACTER: 2, PAIR: 1},
        dict[str, int],
    ),
    "wider type": (1, int, 1, int | None),
    "wider type of items": ({1: 1, 2: 2}, dict[int, int], {2: 2, 1: 1}, dict[int, int | None]),
    "annotated since": ([1, 2], EMPTY, [1, 2], list[int]),
    "no longer annotated": ([1, 2], list[int], [1, 2], EMPTY),
    "Literal before": ("a", Literal["a", "b"], "a", str),
    "nan": (math.nan, float, math.nan, float),
}

OTHER_INPUT: dict[str, tuple[Any, Any, Any, Any]] = {
    "value": (1, int, 2, int),
    "value under a wider type": (1, int, 2, int | None),
    "int and bool": (1, int | bool, True, int | bool),
    "0.0 and -0.0": (0.0, float, -0.0, float),
    "order of a list": ([1, 2], list[int], [2, 1], list[int]),
    "order of a list of pairs": ([[1, 2], [3, 4]], list[list[int]], [[3, 4], [1, 2]], list[list[int]]),
    "surrogate pair": (PAIR, str, CHARACTER, str),
    "value of an int key": ({1: 2, 3: 4}, dict[int, int], {3: 2, 1: 4}, dict[int, int]),
    "type that no longer fits": ("1", str, 1, int),
    "narrower type": (1, int | None, 1, int),
}


@pytest.mark.parametrize(("recorded", "was", "given", "now"), SAME_INPUT.values(), ids=SAME_INPUT)
def test_same_arguments_are_recognised(recorded: Any, was: Any, given: Any, now: Any) -> None:
    """
    The same input is the same in whatever order its dicts are, and after a compatible change of the annotations.
    """
    assert same_arguments(recorded, was, given, now)


@pytest.mark.parametrize(("recorded", "was", "given", "now"), OTHER_INPUT.values(), ids=OTHER_INPUT)
def test_other_arguments_are_told_apart(recorded: Any, was: Any, given: Any, now: Any) -> None:
    """
    Another input is another, also where Python calls both equal; so is one that cannot be read any more.
    """
    assert not same_arguments(recorded, was, given, now)


def test_same_arguments_follow_their_classes() -> None:
    """
    An instance is the same input after its class was renamed, gained a field with a default, or lost one.
    """
    old = version("Old", x=(int, required()))
    new = version("New", x=(int, required()), y=(int, attrs.field(default=5)))
    aliases = {f"{old.__module__}.{old.__qualname__}": new}
    assert same_arguments(old(1), old, new(1), new, aliases=aliases)
    assert same_arguments([old(1)], list[old], [new(1, 5)], list[new | None], aliases=aliases)
    assert not same_arguments(old(1), old, new(1, 6), new, aliases=aliases)
    assert not same_arguments(old(1), old, new(1), new)
    more, less = version("Kept", x=(int, required()), y=(int, required())), version("Kept", x=(int, required()))
    assert same_arguments(more(1, 2), more, less(1), less)
    assert not same_arguments(less(1), less, more(1, 2), more)


def test_same_arguments_see_into_the_forms_of_hooks() -> None:
    """
    Dicts that a hook of the user's stores by memable's forms may be in any order, too.
    """
    converter = cattrs.Converter()
    converter.register_unstructure_hook_factory(
        lambda cls: cls is Plain, lambda _, own: lambda plain: own.unstructure(plain.x, dict[int, int])
    )

    def structure(form: Any, _: Any) -> Plain:
        plain = Plain.__new__(Plain)
        plain.x = {key: value for key, value in form}  # type: ignore[assignment]  # noqa: C416 - pairs
        return plain

    converter.register_structure_hook(Plain, structure)

    def make(x: Any) -> Plain:
        return structure(x.items(), None)

    assert same_arguments(make({1: 2, 3: 4}), Plain, make({3: 4, 1: 2}), Plain, converter=converter)
    assert not same_arguments(make({1: 2, 3: 4}), Plain, make({3: 2, 1: 4}), Plain, converter=converter)


def test_number_of_arguments_tells_inputs_apart() -> None:
    """
    An input with more or fewer arguments is another one; so is what is no input at all.
    """
    codec = Codec()
    one, two = codec.encode_arguments([1], [int]), codec.encode_arguments([1, 2], [int, int])
    annotations = (int, int)
    assert codec.same_arguments(two, codec.encode_arguments([1, 2], annotations), lambda count: annotations[:count])
    assert not codec.same_arguments(one, two, lambda count: annotations[:count])
    assert not codec.same_arguments(two, one, lambda count: annotations[:count])
    for damaged in (codec.encode(1, int), Encoded(one.type, b"["), Encoded(one.type, b'[{"type":"x","value":1}]')):
        assert not codec.same_arguments(damaged, one, lambda count: annotations[:count])


def test_same_arguments_may_be_over_the_limit() -> None:
    """
    The limit on size is one for what is written, not for what is compared.
    """
    big = Codec().encode_arguments(["a" * 50], [str])
    given = Codec().encode_arguments(["a" * 50], [str | None])
    assert Codec(max_value_bytes=10).same_arguments(big, given, lambda _: [str | None])


# The user's converter ---------------------------------------------------------------------------------------------


def plain_converter() -> cattrs.Converter:
    converter = cattrs.Converter()
    converter.register_unstructure_hook(Plain, lambda value: {"plain": value.x})
    converter.register_structure_hook(Plain, lambda form, _: Plain(form["plain"]))
    return converter


class OtherPlain(Plain): ...


def test_hooks_of_the_user_win() -> None:
    """
    A type that the user registered hooks for is stored by them, alone and within other types.
    """
    codec = Codec(converter=plain_converter())
    assert codec.encode(Plain(1), Plain) == Encoded(f"{NAME}.Plain", b'{"plain":1}')
    for value, annotation in [
        (Plain(1), Plain),
        ([Plain(1)], list[Plain]),
        (Plain(1), Plain | None),
        ({"a": Plain(1)}, dict[str, Plain | int]),
    ]:
        assert codec.decode(codec.encode(value, annotation), annotation) == value
    boxed = Box(Plain(1))
    assert codec.encode(boxed, Box[Plain]).data == b'{"value":{"$value_models.Plain":{"plain":1}}}'
    assert codec.decode(codec.encode(boxed, Box[Plain]), Box[Plain]) == boxed
    with pytest.raises(SerializationError, match=r"expected .*Plain, got builtins.int"):
        codec.encode(1, Plain)
    with pytest.raises(SerializationError, match=r"give a .*OtherPlain back as a .*Plain; tell them apart"):
        codec.encode(OtherPlain(1), Plain)


def test_subclass_that_the_users_hooks_give_back_is_stored() -> None:
    """
    Hooks that keep a subclass apart may store it in place of its base, also when the annotation was widened since.
    """
    converter = cattrs.Converter()
    converter.register_unstructure_hook(Plain, lambda value: [type(value).__name__, value.x])
    converter.register_structure_hook(
        Plain, lambda form, _: {"Plain": Plain, "OtherPlain": OtherPlain}[form[0]](form[1])
    )
    codec = Codec(converter=converter)
    for value in (Plain(1), OtherPlain(1)):
        decoded = codec.decode(codec.encode([value], list[Plain]), list[Plain | None])
        assert type(decoded[0]) is type(value)
    assert codec.decode(codec.encode(OtherPlain(1), OtherPlain), OtherPlain) == OtherPlain(1)


def test_subclass_that_was_not_included_is_refused() -> None:
    """
    Only those subclasses stand for their base that the user included.
    """
    converter = cattrs.Converter()
    cattrs.strategies.include_subclasses(Animal, converter, subclasses=(Dog,))
    codec = Codec(converter=converter)
    assert there_and_back(Dog("d", ()), Animal, codec).type == f"{NAME}.Animal | {NAME}.Dog"
    with pytest.raises(SerializationError, match=r"got .*Puppy"):
        codec.encode(Puppy("p", (), 3), Animal)


def test_subclasses_that_meet_again_are_told_apart() -> None:
    """
    A class that is reached by two ways is one member of the family.
    """
    converter = cattrs.Converter()
    cattrs.strategies.include_subclasses(models.Top, converter)
    value = models.Diamond(1, 2, 3, 4)
    encoded = there_and_back(value, models.Top, Codec(converter=converter))
    assert encoded.type.count("Diamond") == 1


def test_hooks_of_the_user_win_over_memables_own_shapes() -> None:
    """
    Hooks may change how a type is stored that memable could store as well.
    """
    converter = cattrs.Converter()
    converter.register_unstructure_hook(Same, lambda value: [value.x])
    converter.register_structure_hook(Same, lambda form, _: Same(*form))
    converter.register_unstructure_hook(int, lambda value: f"<{value}>")
    converter.register_structure_hook(int, lambda form, _: int(form[1:-1]))
    codec = Codec(converter=converter)
    assert there_and_back(Same(1), Same, codec).data == b"[1]"
    assert there_and_back([1], list[int], codec).data == b'["<1>"]'
    assert there_and_back([True], list[bool], codec).data == b"[true]"
    with pytest.raises(SerializationError, match=r"the converter's hook for .*Sub gave a .*Same"):
        codec.encode(Sub(1, 2), Sub | None)


def test_hook_of_one_direction_is_completed_by_memables_own() -> None:
    """
    Where the user registered a hook for one direction only, memable's shape is the other.
    """
    converter = cattrs.Converter()
    converter.register_structure_hook(Same, lambda form, _: Same(form["x"] + 0))
    codec = Codec(converter=converter)
    assert there_and_back(Same(1), Same, codec).data == b'{"x":1}'
    other = cattrs.Converter()
    other.register_unstructure_hook(Same, lambda value: {"x": value.x, "more": 1})
    assert there_and_back(Same(1), Same, Codec(converter=other)).data == b'{"x":1,"more":1}'
    other.register_unstructure_hook(Plain, lambda value: {"x": value.x})
    with pytest.raises(SerializationError, match=r"Plain cannot be stored"):
        Codec(converter=other).check(Plain)


def test_hooks_for_other_than_classes_win() -> None:
    """
    Hooks for a NewType, a union, an alias or by a predicate are found.
    """
    name = NewType("name", str)
    converter = cattrs.Converter()
    converter.register_unstructure_hook(name, lambda value: {"name": value})
    converter.register_structure_hook(name, lambda form, _: form["name"])
    converter.register_unstructure_hook(Plain | Same, lambda value: [type(value).__name__, value.x])
    converter.register_structure_hook(Plain | Same, lambda form, _: {"Plain": Plain, "Same": Same}[form[0]](form[1]))
    converter.register_unstructure_hook_func(lambda each: each is AlsoSame, lambda value: value.x)
    converter.register_structure_hook_func(lambda each: each.nonsense or each is AlsoSame, lambda form, cls: cls(form))
    converter.register_structure_hook_func(lambda each: each is AlsoSame, lambda form, cls: cls(form))
    codec = Codec(converter=converter)
    assert there_and_back("a", name, codec).data == b'{"name":"a"}'
    assert there_and_back("a", str, codec).data == b'"a"'
    encoded = there_and_back([Same(1)], list[Plain | Same], codec)
    assert encoded == Encoded("list[value_models.Plain | value_models.Same]", b'[["Same",1]]')
    assert there_and_back(AlsoSame(1), AlsoSame, codec).data == b"1"


def test_hook_factory_builds_on_memables_shapes() -> None:
    """
    A factory that takes a converter is given one that stores nested types as exactly as memable does.
    """
    converter = cattrs.Converter()

    @converter.register_unstructure_hook_factory(lambda each: each is Item)
    def unstructure(cls: Any, conv: cattrs.Converter) -> Any:
        return cattrs.gen.make_dict_unstructure_fn(cls, conv, price=cattrs.override(rename="cost"))

    @converter.register_structure_hook_factory(lambda each: each is Item)
    def structure(cls: Any, conv: cattrs.Converter) -> Any:
        return cattrs.gen.make_dict_structure_fn(cls, conv, price=cattrs.override(rename="cost"))

    codec = Codec(converter=converter)
    encoded = there_and_back(Item("a", Decimal("1.0"), {"x"}), Item, codec)
    assert encoded.data == b'{"sku":"a","cost":"1.0","tags":["x"]}'
    item = Item("a", "1", set())  # type: ignore[arg-type]  # this is what is tested
    with pytest.raises(
        SerializationError, match=r"unstructure hook for .*Item raised UnfitError: expected decimal.Decimal"
    ):
        codec.encode(item, Item)


def test_class_methods_of_the_users_strategy_win() -> None:
    """
    A strategy that hands over to methods of the class is the user's choice.
    """

    @attrs.define
    class Own:
        x: int

        def save(self) -> Any:
            return {"saved": self.x}

        @classmethod
        def load(cls, form: Any) -> Own:
            return cls(form["saved"])

    converter = cattrs.Converter()
    cattrs.strategies.use_class_methods(converter, "load", "save")
    assert there_and_back(Own(1), Own, Codec(converter=converter)).data == b'{"saved":1}'


@pytest.mark.parametrize("strategy", [None, cattrs.strategies.configure_tagged_union])
def test_subclasses_that_the_converter_tells_apart_are_stored(strategy: Any) -> None:
    """
    With ``include_subclasses`` a subclass may stand for its base, and comes back as itself.
    """
    converter = cattrs.preconf.json.make_converter()
    cattrs.strategies.include_subclasses(Animal, converter, union_strategy=strategy)
    codec = Codec(converter=converter)
    dog, puppy = Dog("d", (1,)), Puppy("p", (), 3)
    assert there_and_back(dog, Animal, codec).type == f"{NAME}.Animal | {NAME}.Dog | {NAME}.Puppy"
    assert there_and_back(puppy, Dog, codec).type == f"{NAME}.Dog | {NAME}.Puppy"
    there_and_back([Box(puppy), Box(dog), Box(Animal("a"))], list[Box[Animal]], codec)
    assert codec.decode(Codec().encode(Animal("a"), Animal), Animal) == Animal("a")
    assert codec.decode(codec.encode(puppy, Dog), Animal) == puppy
    with pytest.raises(SerializationError, match=r"got .*Animal"):
        codec.encode(Animal("a"), Dog)
    with pytest.raises(SerializationError, match=r"at .bark: expected tuple"):
        codec.encode(Dog("d", 1), Animal)  # type: ignore[arg-type]  # this is what is tested


@pytest.mark.parametrize(
    "make",
    [
        cattrs.Converter,
        cattrs.preconf.json.make_converter,
        cattrs.preconf.msgspec.make_converter,
        lambda: cattrs.Converter(detailed_validation=False, forbid_extra_keys=True, omit_if_default=True),
        lambda: cattrs.Converter(prefer_attrib_converters=True, use_alias=True),
    ],
    ids=["plain", "json", "msgspec", "options", "converters"],
)
def test_converters_own_hooks_and_options_change_nothing(make: Callable[[], cattrs.Converter]) -> None:
    """
    What cattrs brings along is not the user's: values are stored as exactly as without the converter.
    """
    codec, own = Codec(converter=make()), Codec()
    for value, annotation in ROUND_TRIPS.values():
        assert there_and_back(value, annotation, codec) == own.encode(value, annotation)


def test_converter_of_the_user_is_not_changed() -> None:
    """
    The user's converter converts as before, and what is registered later is not seen.
    """
    converter = plain_converter()
    codec = Codec(converter=converter)
    codec.encode(Plain(1), Plain)
    assert converter.unstructure((1, {2})) == [1, {2}]
    assert converter.structure("5", int) == 5
    converter.register_unstructure_hook(Plain, lambda value: 1)
    assert codec.encode(Plain(2), Plain).data == b'{"plain":2}'


def test_hook_that_fails_or_gives_no_json_is_refused() -> None:
    """
    What goes wrong in a hook is said, chained, and is never let through as it is.
    """
    converter = cattrs.Converter()
    converter.register_unstructure_hook(Plain, lambda value: value.y)
    converter.register_structure_hook(Plain, lambda form, _: 1 // form)
    converter.register_unstructure_hook(Same, lambda value: (value.x,))
    codec = Codec(converter=converter)
    with pytest.raises(
        SerializationError, match=r"at .value: the converter's unstructure hook for .*Plain raised Attr"
    ):
        codec.encode(Box(Plain(1)), Box[Plain])
    with pytest.raises(SerializationError, match=r"hook for .*Same gave what is no JSON: .*builtins.tuple is none"):
        codec.encode(Same(1), Same)
    with pytest.raises(TypeMismatchError, match=r"structure hook for .*Plain raised ZeroDivisionError"):
        codec.decode(Encoded(f"{NAME}.Plain", b"0"), Plain)
    with pytest.raises(TypeMismatchError, match=r"hook for .*Plain gave a builtins.int"):
        codec.decode(Encoded(f"{NAME}.Plain", b"1"), Plain)


class Speaks(typing.Protocol):
    def speak(self) -> str: ...


def test_hooks_for_a_protocol_are_used_without_a_check() -> None:
    """
    A protocol says nothing at run time, so its hooks alone decide.
    """
    converter = cattrs.Converter()
    converter.register_unstructure_hook_func(lambda each: each is Speaks, str)
    converter.register_structure_hook_func(lambda each: each is Speaks, lambda form, _: form)
    codec = Codec(converter=converter)
    assert codec.decode(codec.encode(5, Speaks), Speaks) == "5"


# Process and memory -----------------------------------------------------------------------------------------------


def test_codec_never_imports_what_a_record_names() -> None:
    """
    A module that a recorded type's name mentions is not imported.
    """
    sys.modules.pop("antigravity", None)
    with pytest.raises(TypeMismatchError, match=r"antigravity"):
        Codec().decode(Encoded("antigravity.Thing", b"{}"), Any)
    with pytest.raises(TypeMismatchError, match=r"antigravity"):
        Codec().decode(Encoded("builtins.int | None", b'{"$antigravity.Thing":{}}'), int | None)
    assert "antigravity" not in sys.modules


def test_codec_does_not_load_pydantic() -> None:
    """
    Storing values without pydantic's models does not import pydantic.
    """
    code = (
        "import sys, attrs\nfrom memable._values._codec import Codec\n"
        "A = attrs.make_class('A', {'x': attrs.field(type=int)})\n"
        "Codec().encode(A(1), A)\nassert not [name for name in sys.modules if name.startswith('pydantic')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_class_of_the_main_module_goes_by_its_real_name(tmp_path: pathlib.Path) -> None:
    """
    A class of the script that was started is recorded as it is when the script is imported.
    """
    script = tmp_path / "my app.py"
    script.write_text(
        "import attrs\nfrom memable._values._codec import Codec\n@attrs.define\nclass A:\n    x: int\n"
        "print(Codec().encode([A(1)], list[A]).type)\n"
        "assert Codec().decode(Codec().encode([A(1)], list[A]), list[A | None]) == [A(1)]"
    )
    path = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, script], check=True, capture_output=True, env=path)
    assert done.stdout.decode().strip() == "list[my app.A]"


def test_codec_forgets_annotations_that_are_made_anew_each_time() -> None:
    """
    Neither annotations nor recorded names pile up without limit.
    """
    codec = Codec()
    deferred = codec.encode(Node(1, [Node(2)]), Node)
    for index in range(5_000):
        literal = Literal[index]  # type: ignore[valid-type]  # this is what is tested
        codec.decode(codec.encode(index, literal), literal)
        codec.decode(codec.encode(index, literal), int)
    assert len(codec._plans) <= 4_096
    assert len(codec._shapes._made) <= 4_096
    assert len(codec._shapes._found) <= 4_096
    assert codec.decode(deferred, Node) == Node(1, [Node(2)])


def test_shapes_that_failed_leave_nothing_half_made() -> None:
    """
    A class that could not be stored does not spoil those that were looked at on the way.
    """

    @attrs.define
    class Good:
        parent: Bad | None = None

    @attrs.define
    class Bad:
        good: Good
        worse: socket.socket

    codec = Codec()
    for fields in (Good, Bad, Good):
        with pytest.raises(SerializationError, match=r"cannot be (stored|resolved)"):
            codec.check(fields)
    codec.check(Node)


if sys.version_info >= (3, 12):
    # Only later releases of Python can read it.
    SCOPE: dict[str, Any] = {}
    exec(  # noqa: S102 - a constant
        "type Json = None | int | list[Json] | dict[str, Json]\ntype Twice[T] = tuple[T, T]\n"
        "import attrs\n@attrs.define\nclass Box[T]:\n    value: T\n    more: list[Box[T]] = attrs.Factory(list)\n",
        SCOPE,
    )

    def test_type_statements_are_read() -> None:
        """
        Aliases and classes of the newer syntax are stored as those of the older.
        """
        box = SCOPE["Box"]
        there_and_back([1, {"a": [None]}], SCOPE["Json"])
        there_and_back((1, 2), SCOPE["Twice"][int])
        there_and_back(box(1, [box(2)]), box[int])
