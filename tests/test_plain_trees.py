"""
Plain trees that are their own forms: quick, and the same as part by part.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import attrs
import cattrs
import pytest

from memable._encoded import Encoded
from memable._errors import SerializationError, TypeMismatchError
from memable._values._codec import LARGE_BYTES, Codec
from memable._values._plain_trees import PlainType, is_plain, plain_type, write_and_copy_plain, write_plain
from memable._values._type_reader import TypeReader
from value_models import Color, Item, MyDict, MyInt, MyStr, Point

MANY = 50
"Enough for a container to be looked through level by level."
PAIR = "\ud83d" + "\ude00"  # two code points, where U+1F600 is one
RECORDS = [{"id": number, "name": "abc", "share": number / 2, "note": None} for number in range(MANY)]


class MyFloat(float): ...


class MyBytes(bytes): ...


class MyList(list[Any]): ...


class ByParts(Codec):
    """
    Looks through each value part by part.
    """

    def _make_plan(self, annotation: Any) -> Any:
        return attrs.evolve(super()._make_plan(annotation), plain=None)


def read(annotation: Any) -> PlainType | None:
    return plain_type(TypeReader(lambda _: False, lambda _: ()).read(annotation))


def containers(value: Any) -> Iterator[int]:
    """Yield the identity of everything in a value that can be changed."""
    if isinstance(value, (list, dict)):
        yield id(value)
    if isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from containers(part)


QUICK: dict[str, tuple[Any, Any]] = {
    "str": ("ä", str),
    "int": (2**70, int),
    "bool": (True, bool),
    "None": (None, None),
    "float": (-0.0, float),
    "bytes": (b"\xfb\xff", bytes),
    "unannotated": (None, Any),
    "union": (1, int | str | None),
    "list": ([1] * MANY, list[int]),
    "tuple": ((1.5,) * MANY, tuple[float, ...]),
    "dict": ({str(number): number for number in range(MANY)}, dict[str, int]),
    "list of bytes": ([b"a", b""] * MANY, list[bytes]),
    "list of one dict many times": ([{"a": 1}] * MANY, list[dict[str, int]]),
    "list of dicts": (RECORDS, list[dict[str, str | int | float | None]]),
    "unannotated list of dicts": (RECORDS, Any),
    "list of unannotated dicts": (RECORDS, list[Any]),
    "dict of lists": ({str(number): [number] for number in range(MANY)}, dict[str, list[int]]),
    "lists of lists of tuples": ([[(1, 2), ()], []] * MANY, list[list[tuple[int, ...]]]),
    "dict of dicts of lists": (
        {str(number): {"a": [1], "b": []} for number in range(MANY)},
        dict[str, dict[str, list[int]]],
    ),
    "tuple of dicts of lists": (({"a": [1]},) * MANY, tuple[dict[str, list[int]], ...]),
    "lists of nothing": ([[]] * MANY, list[list[int]]),
    "lists and scalars in one": ([1, [2.5, None], {"a": [{}], "b": "x"}] * MANY, Any),
    "lists and dicts in one": ([[1], {"a": 2}] * MANY, Any),
    "large list of a small dict": ({"data": {"items": RECORDS, "count": MANY}}, Any),
    "large list in a dict of lists": ({"a": [1] * MANY, "b": []}, dict[str, list[int]]),
    "null in a text": (["null", 1.5] * MANY, list[float | str]),
}


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (("a", [0.5] * MANY), tuple),
        (("a", *range(MANY), ["x"]), tuple[Any, ...]),
        ([("a", [1])] * MANY, list[tuple[Any, ...]]),
        ({str(number): ("a", [1]) for number in range(MANY)}, dict[str, tuple[Any, ...]]),
    ],
)
def test_tuple_of_mixed_parts_is_read_back_as_one(value: Any, annotation: Any) -> None:
    """
    Where no copy can be made of a value, what JSON makes of it is not taken for it.
    """
    encoded, read_back = Codec().encode_and_read_back(value, annotation)
    assert repr(read_back) == repr(value) == repr(Codec().decode(encoded, annotation))


@pytest.mark.parametrize(("value", "annotation"), QUICK.values(), ids=QUICK)
def test_plain_value_is_its_own_form(value: Any, annotation: Any) -> None:
    """
    A scalar, or a large value of plain containers, is written as it is, and read back as a copy.
    """
    asked = read(annotation)
    assert asked is not None
    data = ByParts().encode(value, annotation).data
    assert write_plain(value, asked) in (data, None if isinstance(value, (list, dict)) and len(value) < MANY else data)
    written = write_and_copy_plain(value, asked)
    assert written is not None
    assert repr(written) == repr((data, value))
    copied = list(containers(written[1]))
    assert len({*copied, *containers(value)} - {*containers(value)}) == len(copied)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [pair for name, pair in QUICK.items() if "bytes" not in name and "tuple" not in name],
)
def test_plain_form_is_its_own_value(value: Any, annotation: Any) -> None:
    """
    Of what is its own form nothing has to be made anew when it is read.
    """
    asked = read(annotation)
    assert asked is not None
    assert is_plain(value, asked)


def _itself(count: int) -> list[Any]:
    value: list[Any] = [1] * MANY
    value[:count] = [value] * count
    return value


def _deep(value: Any, levels: int) -> Any:
    for _ in range(levels):
        value = [value]
    return value * MANY


UNUSUAL: dict[str, tuple[Any, Any]] = {
    "str subclass": (MyStr("a"), str),
    "int subclass": ([MyInt(1)] * MANY, list[int]),
    "float subclass": ([MyFloat(1)] * MANY, Any),
    "bytes subclass": ([MyBytes(b"a")] * MANY, list[bytes]),
    "list subclass": (MyList([1] * MANY), list[int]),
    "list subclass in a list": ([MyList([1])] * MANY, list[list[int]]),
    "dict subclass in a list": ([MyDict(a=1)] * MANY, list[dict[str, int]]),
    "OrderedDict": (OrderedDict.fromkeys(map(str, range(MANY))), Any),
    "str subclass as a key": ({MyStr(number): 1 for number in range(MANY)}, dict[str, int]),
    "str subclass as a key in a list": ([{MyStr("a"): 1}] * MANY, list[dict[str, int]]),
    "int as a key": (dict.fromkeys(range(MANY)), Any),
    "int as a key in a list": ([{1: 1}] * MANY, Any),
    "bool for an int": ([True] * MANY, list[int]),
    "int for a float": ([1.0, 2] * MANY, list[float]),
    "ints for lists": ([1], list[list[int]]),
    "str for a list": ("a" * MANY, list[str]),
    "inf": (math.inf, float),
    "nan in a list": ([math.nan] * MANY, list[float]),
    "nan in a tuple": ((math.nan,) * MANY, tuple[float, ...]),
    "inf beside None": ([{"a": None, "b": -math.inf}] * MANY, list[dict[str, float | None]]),
    "nan in a dict": ({str(number): math.nan for number in range(MANY)}, dict[str, float]),
    "nan without annotation": ([[1, [math.nan]]] * MANY, Any),
    "lone surrogate": ("\ud83d", str),
    "surrogates": (PAIR, str),
    "surrogates in a list": ([PAIR] * MANY, Any),
    "surrogates in a key": ([{PAIR: 1}] * MANY, list[dict[str, int]]),
    "surrogates in lists of several kinds": ([[PAIR], {}] * MANY, Any),
    "long int": ([10**5000] * MANY, list[int]),
    "tuple without annotation": ([(1,)] * MANY, Any),
    "bytes without annotation": ([b"a"] * MANY, Any),
    "bytes in a union": ([b"a"] * MANY, list[bytes | None]),
    "Decimal without annotation": ([Decimal(1)] * MANY, Any),
    "class without annotation": ([Point(1, 2)] * MANY, Any),
    "list that contains itself once": (_itself(1), Any),
    "list that contains itself many times": (_itself(MANY), Any),
    "deep list": (_deep([1], 15), Any),
}


@pytest.mark.parametrize(("value", "annotation"), UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_value_is_left_to_its_shape(value: Any, annotation: Any) -> None:
    """
    What may be no form of itself is not taken for one, and is stored or refused as a small one is.
    """
    asked = read(annotation)
    if asked is not None:
        assert write_plain(value, asked) is None
        assert write_and_copy_plain(value, asked) is None
    assert _outcome(Codec(), value, annotation) == _outcome(ByParts(), value, annotation)


def _outcome(codec: Codec, value: Any, annotation: Any) -> Any:
    try:
        encoded, again = codec.encode_and_read_back(value, annotation)
        assert encoded == codec.encode(value, annotation)
    except SerializationError as error:
        with pytest.raises(SerializationError, match="stored"):
            codec.encode(value, annotation)
        return str(error)
    decoded = codec.decode(encoded, annotation)
    # nan differs from itself, and Python refuses to write a long int.
    return encoded, [part if annotation == list[int] else repr(part) for part in (again, decoded)]


@pytest.mark.parametrize(
    "annotation",
    [
        Point,
        Decimal,
        list[Color],
        list[Item],
        list[list[int] | None],
        dict[int, int],
        dict[str, Decimal],
        set[int],
        tuple[int, str],
        int | Color,
        bytes | str,
    ],
    ids=str,
)
def test_type_whose_forms_differ_is_not_plain(annotation: Any) -> None:
    """
    A type with any values that say of which type they are, or that JSON does not have, is left to its shape.
    """
    assert read(annotation) is None


@pytest.mark.parametrize(
    "value", [[[1], [2]], [{"a": 1}], {"a": {"b": [1, None]}, "c": 1}, [[[[[1] * MANY]]]]], ids=str
)
def test_value_with_few_parts_is_left_to_its_shape(value: Any) -> None:
    """
    It is quicker part by part.
    """
    asked = read(Any)
    assert asked is not None
    assert write_plain(value, asked) is None
    assert write_and_copy_plain(value, asked) is None
    assert Codec().encode_and_read_back(value, Any) == (ByParts().encode(value, Any), value)


def test_what_the_users_hooks_are_for_is_not_plain() -> None:
    """
    A hook of the user's for a scalar is asked for each, however many there are.
    """
    converter = cattrs.Converter()
    converter.register_unstructure_hook(str, str.upper)
    converter.register_structure_hook(str, lambda form, _: form.lower())
    codec = Codec(converter=converter)
    encoded, again = codec.encode_and_read_back(["a"] * MANY, list[str])
    assert encoded.data == b'["A"' + b',"A"' * (MANY - 1) + b"]"
    assert again == codec.decode(encoded, list[str]) == ["a"] * MANY
    assert codec.encode_and_read_back("a", str) == (Encoded("builtins.str", b'"A"'), "a")


def test_value_over_the_limit_is_refused_though_it_is_plain() -> None:
    """
    How large a value may be does not depend on what it is of.
    """
    codec = Codec(max_value_bytes=99)
    for value, annotation in (([1] * MANY, list[int]), ("a" * 98, str), (b"a" * 75, bytes)):
        with pytest.raises(SerializationError, match="more than max_value_bytes, which is 99") as caught:
            codec.encode_and_read_back(value, annotation)
        assert codec.is_too_large(caught.value)
    assert codec.encode_and_read_back("a" * 97, str)[1] == "a" * 97


@pytest.mark.parametrize(
    ("name", "form", "annotation"),
    [
        ("list[builtins.float]", "[1]", list[float]),
        ("list[builtins.int]", "[true]", list[int]),
        ("list[builtins.str]", '{"a":1}', list[str]),
        ("list[dict[builtins.str, builtins.int]]", '[{"a":1},[]]', list[dict[str, int]]),
        ("dict[builtins.str, typing.Any]", "[]", Any),
        ("builtins.bytes", '"YR=="', bytes),
    ],
    ids=str,
)
def test_large_record_that_does_not_fit_is_a_mismatch(name: str, form: str, annotation: Any) -> None:
    """
    A record is looked through to its ends, however large it is.
    """
    data = form.encode() + b" " * LARGE_BYTES
    for codec in (Codec(), ByParts()):
        with pytest.raises(TypeMismatchError, match="recorded there"):
            codec.decode(Encoded(name, data), annotation)


def test_large_record_that_was_narrower_is_read() -> None:
    """
    What was recorded as another type is read by the rules for that.
    """
    encoded = Codec().encode(list(range(LARGE_BYTES)), list[int])
    for annotation in (list[int | None], list[int | str], Any):
        assert Codec().decode(encoded, annotation) == list(range(LARGE_BYTES))
    with pytest.raises(TypeMismatchError, match=r"list\[builtins.str\]"):
        Codec().decode(encoded, list[str])


@pytest.mark.parametrize(
    ("form", "problem"),
    [
        ("YWJj" * 200 + "YR==", "not written as one"),
        ("YWJj" * 200 + "YQ", "Incorrect padding"),
        ("YWJj" * 200 + "!YQ==", "not written as one"),
        ("YWJj" * 200 + "\nYQ==", "not written as one"),
        ("YWJj" * 200 + "ä", "ASCII"),
    ],
)
@pytest.mark.parametrize("cls", [bytes, bytearray])
def test_long_base64_is_read_as_strictly_as_a_short_one(cls: Any, form: str, problem: str) -> None:
    """
    Bytes are only read from the one text that they are written as.
    """
    codec = Codec()
    good = b"abc" * 200 + b"a"
    encoded = codec.encode(cls(good), cls)
    assert encoded.data == b'"' + b"YWJj" * 200 + b'YQ=="'
    assert codec.decode(encoded, cls) == cls(good)
    assert type(codec.decode(encoded, cls)) is cls
    damaged = Encoded(encoded.type, ByParts().encode(form, str).data)
    with pytest.raises(TypeMismatchError, match=problem):
        codec.decode(damaged, cls)
