"""
Values of any types to their encoded form and back: what holds for all of them.
"""

from __future__ import annotations

import binascii
import enum
import json
import math
import operator
import pathlib
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import (
    Any,
    Generic,
    Literal,
    NamedTuple,
    NotRequired,
    Optional,
    TypedDict,
    TypeVar,
    Union,
    get_args,
    get_origin,
)
from zoneinfo import ZoneInfo

import attrs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from memable._encoded import Encoded
from memable._errors import SerializationError, TypeMismatchError
from memable._json import SURROGATE_PAIR, canonical, dumps, loads
from memable._values._codec import Codec
from memable._values._shape import UnfitError
from memable._values._type_reader import TypeReader

T = TypeVar("T")


class Color(enum.Enum):
    RED = 1
    BLUE = "b"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


@attrs.define
class Leaf:
    x: int
    y: str | None = None


@attrs.frozen
class Twin:
    x: int
    y: str | None = None


@attrs.define
class Box(Generic[T]):
    value: T
    more: list[T] = attrs.field(factory=list)


class Place(NamedTuple):
    name: str
    rank: float = 1.0


class Options(TypedDict):
    name: str
    size: NotRequired[int]


PAIR = "\ud83d" + "\ude00"  # two code points, where U+1F600 is one
#: What JSON keeps apart.
plain_texts = st.text(st.characters(codec=None), max_size=8).filter(
    lambda text: not SURROGATE_PAIR.search(text)
) | st.sampled_from(["$builtins.int", "$str", "nan", "RED", "YQ==", "1", "\ud800", "\U0001f600"])
texts = plain_texts | st.text(st.sampled_from(["a", *PAIR, "\U0001f600"]), max_size=4)
zones = st.sampled_from(
    [None, UTC, timezone(timedelta(seconds=-5)), timezone(timedelta(hours=1), "X"), ZoneInfo("Europe/Berlin")]
)
Typed = tuple[Any, "st.SearchStrategy[Any]"]

SCALARS: list[Typed] = [
    (str, texts),
    (int, st.integers() | st.integers(-3, 3)),
    (bool, st.booleans()),
    (float, st.floats()),
    (None, st.none()),
    (bytes, st.binary(max_size=5)),
    (Decimal, st.decimals()),
    (uuid.UUID, st.uuids()),
    (date, st.dates()),
    (datetime, st.datetimes(timezones=zones, allow_imaginary=True)),
    (time, st.times(timezones=zones)),
    (timedelta, st.timedeltas()),
    (pathlib.PurePosixPath, st.builds(pathlib.PurePosixPath, texts)),
    (Color, st.sampled_from(Color)),
    (Access, st.sampled_from([Access(0), Access.READ, Access.READ | Access.WRITE])),
    (Literal["a", 1, True], st.sampled_from(["a", 1, True])),
    (Literal[Color.RED, "RED"], st.sampled_from([Color.RED, "RED"])),
    (Leaf, st.builds(Leaf, st.integers(), st.none() | texts)),
    (Twin, st.builds(Twin, st.integers(), st.none() | texts)),
    (Place, st.builds(Place, texts, st.floats())),
    (Options, st.fixed_dictionaries({"name": texts}, optional={"size": st.integers()})),
    (
        Any,
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | plain_texts,
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain_texts, inner, max_size=3),
            max_leaves=5,
        ),
    ),
]
#: A signaling NaN has no hash.
HASHABLE = [
    (Decimal, st.decimals(allow_nan=False)),
    *(typed for typed in SCALARS if typed[0] not in (Any, Leaf, Options, Decimal)),
]


def _union(members: list[Typed]) -> Typed:
    return Union[tuple(annotation for annotation, _ in members)], st.one_of([values for _, values in members])  # noqa: UP007 - made of parts


def _compose(inner: st.SearchStrategy[Typed]) -> st.SearchStrategy[Typed]:
    hashable = st.sampled_from(HASHABLE)
    return st.one_of(
        inner.map(lambda t: (list[t[0]], st.lists(t[1], max_size=3))),  # type: ignore[name-defined]  # made of parts
        inner.map(lambda t: (tuple[t[0], ...], st.lists(t[1], max_size=3).map(tuple))),  # type: ignore[name-defined]  # as above
        st.lists(inner, max_size=3).map(lambda ts: (tuple[tuple(t[0] for t in ts)], st.tuples(*(t[1] for t in ts)))),  # type: ignore[misc]  # as above
        hashable.map(lambda t: (set[t[0]], st.sets(t[1], max_size=3))),  # type: ignore[name-defined]  # as above
        hashable.map(lambda t: (frozenset[t[0]], st.frozensets(t[1], max_size=3))),  # type: ignore[name-defined]  # as above
        inner.map(lambda t: (dict[str, t[0]], st.dictionaries(texts, t[1], max_size=3))),  # type: ignore[name-defined]  # as above
        st.tuples(hashable, inner).map(
            lambda kt: (dict[kt[0][0], kt[1][0]], st.dictionaries(kt[0][1], kt[1][1], max_size=3))  # type: ignore[misc]  # as above
        ),
        inner.map(lambda t: (Optional[t[0]], st.none() | t[1])),  # noqa: UP045 - made of parts
        inner.map(lambda t: (Box[t[0]], st.builds(Box, t[1], st.lists(t[1], max_size=2)))),  # type: ignore[name-defined]  # as above
        st.lists(inner, min_size=2, max_size=3).map(_union),
    )


types: st.SearchStrategy[Typed] = st.recursive(st.sampled_from(SCALARS), _compose, max_leaves=6)


def same(a: Any, b: Any) -> bool:  # noqa: PLR0911 - one for each kind of value
    """Tell whether two values are of the same types, deeply, and equal; NaN equals NaN here, and 0.0 is not -0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return len(a) == len(b) and all(map(same, a, b)) and all(map(same, a.values(), b.values()))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, (set, frozenset)):
        return sorted(map(repr, a)) == sorted(map(repr, b))
    if attrs.has(type(a)):
        return all(same(getattr(a, field.name), getattr(b, field.name)) for field in attrs.fields(type(a)))
    if isinstance(a, int):
        # Python refuses to write one of more than 4300 digits.
        return bool(a == b)
    return repr(a) == repr(b) and getattr(a, "fold", 0) == getattr(b, "fold", 0)


def widened(a: Any, b: Any) -> bool:  # noqa: PLR0911 - one for each kind of value
    """Tell whether *b* is *a* but for ints that became the floats that equal them."""
    if type(a) is int and type(b) is float:
        return a == b
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return len(a) == len(b) and all(map(widened, a, b)) and all(map(widened, a.values(), b.values()))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(widened, a, b))
    if isinstance(a, (set, frozenset)):
        return len(a) == len(b) and (a == b or same(a, b))
    if attrs.has(type(a)):
        return all(widened(getattr(a, field.name), getattr(b, field.name)) for field in attrs.fields(type(a)))
    return same(a, b)


@given(types, st.data())
def test_any_value_of_any_type_comes_back_as_it_was(typed: Typed, data: st.DataObject) -> None:
    """
    Whatever can be annotated is read back equal and of the same types, unless an int stood for a float.
    """
    annotation, values = typed
    value = data.draw(values)
    codec = Codec()
    encoded = codec.encode(value, annotation)
    assert b"\n" not in encoded.data
    decoded = codec.decode(encoded, annotation)
    assert same(decoded, value), (encoded, decoded)
    assert codec.encode(decoded, annotation) == encoded


@given(types, types, st.data())
def test_value_of_any_other_type_is_refused_or_kept(mine: Typed, other: Typed, data: st.DataObject) -> None:
    """
    A value annotated as any type at all comes back as it was, or is refused; it is never converted but int to float.
    """
    value = data.draw(other[1])
    codec = Codec()
    try:
        encoded = codec.encode(value, mine[0])
    except SerializationError:
        return
    assert widened(value, codec.decode(encoded, mine[0]))


@given(types, types, st.data())
def test_value_is_read_as_any_other_type_as_it_was_or_not_at_all(
    mine: Typed, other: Typed, data: st.DataObject
) -> None:
    """
    Reading as whatever type gives the very value that was stored, or is a mismatch.
    """
    value = data.draw(mine[1])
    codec = Codec()
    encoded = codec.encode(value, mine[0])
    for annotation in (other[0], Union[mine[0], other[0]]):  # noqa: UP007 - made of parts
        try:
            decoded = codec.decode(encoded, annotation)
        except TypeMismatchError:
            assert annotation is other[0], "a member of a union is always read"
        else:
            assert same(decoded, value), (encoded, annotation, decoded)


@given(types, types)
def test_different_types_have_different_names(one: Typed, other: Typed) -> None:
    """
    Two types have one name only if they are the same type.
    """
    reader = TypeReader(lambda _: False, lambda _: ())
    trees = reader.read(one[0]), reader.read(other[0])
    assert (trees[0].name == trees[1].name) == (trees[0] == trees[1])


@given(types, st.data())
def test_any_value_of_a_renamed_class_is_read_by_its_alias(typed: Typed, data: st.DataObject) -> None:
    """
    A record reads the same after each name in it was changed, if aliases say how.
    """
    annotation, values = typed
    codec = Codec()
    value = data.draw(values)
    encoded = codec.encode(value, annotation)
    here = __name__ if __name__ in encoded.type else Leaf.__module__
    classes = (Color, Access, Leaf, Twin, Box, Place, Options)
    aliases = {f"old.{cls.__qualname__}": cls for cls in classes}
    assume(not any(text in repr(value) for text in (here, "old.")))
    old = attrs.evolve(
        encoded,
        type=encoded.type.replace(f"{here}.", "old."),
        data=encoded.data.replace(f"{here}.".encode(), b"old."),
    )
    assert same(Codec(aliases=aliases).decode(old, annotation), value)


def _turned(value: Any) -> Any:
    """Return an equal value with its dicts the other way round."""
    if type(value) is dict:
        return {key: _turned(value[key]) for key in reversed(value)}
    return type(value)(map(_turned, value)) if type(value) in (list, tuple) else value


@given(types, types, st.data())
def test_arguments_are_the_same_in_any_order_under_any_wider_type(
    mine: Typed, other: Typed, data: st.DataObject
) -> None:
    """
    The same value is the same input, and two that have different forms without a dict in them are not.
    """
    one, two = data.draw(mine[1]), data.draw(mine[1])
    codec = Codec()
    recorded = codec.encode_arguments([one], [mine[0]])
    for now in (mine[0], Union[mine[0], other[0]]):  # noqa: UP007 - made of parts
        try:
            given_same = codec.encode_arguments([_turned(one)], [now])
        except SerializationError:
            # An int that stood for a float stands for itself in no union.
            continue
        if same(codec.decode_arguments(given_same, lambda _, now=now: [now]), (_turned(one),)):
            assert codec.same_arguments(recorded, given_same, lambda _, now=now: [now])
    given_other = codec.encode_arguments([two], [mine[0]])
    if not codec.same_arguments(recorded, given_other, lambda _: [mine[0]]):
        assert recorded != given_other
    elif "{" not in repr(one):
        assert recorded == given_other


json_trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | plain_texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(plain_texts, inner, max_size=4),
    max_leaves=15,
)


@given(json_trees)
def test_json_returns_any_tree_as_it_was(tree: Any) -> None:
    """
    Any tree of JSON's own types is read back as it was written, and is JSON for others, too.
    """
    data = dumps(tree)
    assert b"\n" not in data
    assert same(loads(data), tree)
    assert same(json.loads(data), tree)


@given(json_trees, st.floats())
def test_json_never_writes_what_is_no_number_as_null(tree: Any, number: float) -> None:
    """
    A float is written as that number, or refused.
    """
    try:
        data = dumps([tree, {"x": number}])
    except SerializationError:
        assert not math.isfinite(number)
    else:
        assert same(loads(data)[1], {"x": number})  # type: ignore[index,call-overload]  # a list


def _shuffle(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _shuffle(tree[key]) for key in reversed(tree)}
    return [_shuffle(item) for item in tree] if isinstance(tree, list) else tree


@given(json_trees, json_trees)
def test_canonical_is_the_same_for_equal_trees_only(tree: Any, other: Any) -> None:
    """
    The canonical text does not depend on the order of keys, and tells different trees apart.
    """
    text = canonical(dumps(tree))
    assert text == canonical(dumps(_shuffle(tree))) == canonical(json.dumps(_shuffle(tree), indent=1).encode())
    assert (text == canonical(dumps(other))) == same(loads(text), loads(canonical(dumps(other))))


@given(st.binary(max_size=20) | st.text(max_size=20).map(str.encode) | json_trees.map(dumps), st.sampled_from(SCALARS))
def test_any_bytes_are_read_or_refused(data: bytes, typed: Typed) -> None:
    """
    Whatever bytes a record has, reading them gives a value or a TypeMismatchError.
    """
    codec = Codec()
    name = TypeReader(lambda _: False, lambda _: ()).read(typed[0]).name
    encoded = attrs.evolve(codec.encode(None, None), type=name, data=data)
    try:
        codec.decode(encoded, typed[0])
    except TypeMismatchError as error:
        assert not isinstance(error.__cause__, RecursionError)  # noqa: PT017 - either outcome is right


class _Text(str): ...  # noqa: SLOT000 - as users write it


class _Number(int): ...


class _List(list[Any]): ...


class _Dict(dict[Any, Any]): ...


class ByParts(Codec):
    """
    Looks through each value part by part, however plain and large it is.
    """

    def _make_plan(self, annotation: Any) -> Any:
        return attrs.evolve(super()._make_plan(annotation), plain=None)

    def encode_and_read_back(self, value: object, annotation: Any) -> tuple[Encoded, Any]:
        encoded = self.encode(value, annotation)
        return encoded, self.decode(encoded, annotation)


def _many(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return a strategy of containers that are large, or hold one value at many places."""
    lists = st.lists(inner, max_size=3) | st.builds(operator.mul, st.lists(inner, min_size=1, max_size=3), counts)
    dicts = st.dictionaries(texts, inner, max_size=3) | st.builds(
        lambda parts, count: {f"{key}{number}": part for number in range(count) for key, part in parts.items()},
        st.dictionaries(texts, inner, max_size=2),
        counts,
    )
    return st.one_of(
        lists,
        dicts,
        lists.map(tuple),
        lists.map(_List),
        dicts.map(_Dict),
        st.dictionaries(texts.map(_Text) | st.integers(), inner, max_size=2),
    )


counts = st.sampled_from([1, 7, 8, 9, 15, 16, 17, 60])
strange_scalars = st.one_of(
    st.sampled_from([3_999, 4_001, 4_299, 4_301]).map(lambda digits: 10**digits),
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    texts,
    st.binary(max_size=3),
    st.sampled_from(
        [
            _Text("a"),
            _Number(1),
            bytearray(b"a"),
            "null",
            -0.0,
            1e16,
            b"",
            Decimal(1),
            Color.RED,
            2**53 + 1,
        ]
    ),
)
strange_values = st.recursive(strange_scalars, _many, max_leaves=6)
plain_types = st.recursive(
    st.sampled_from(
        [Any, object, int, float, str, bytes, bool, None, int | float, str | None, float | int | str | bool | None]
    ),
    lambda inner: st.one_of(
        inner.map(lambda each: list[each]),  # type: ignore[valid-type]  # made of parts
        inner.map(lambda each: dict[str, each]),  # type: ignore[valid-type]  # as above
        inner.map(lambda each: tuple[each, ...]),  # type: ignore[valid-type]  # as above
    ),
    max_leaves=3,
)


def _values_of(annotation: Any) -> st.SearchStrategy[Any]:
    """Return a strategy of values that may be large and are mostly of a type in `plain_types`."""
    origin = get_origin(annotation)
    if origin in (list, tuple):
        parts = st.lists(_values_of(get_args(annotation)[0]), max_size=3)
        return st.builds(operator.mul, parts, counts).map(origin)
    if origin is dict:
        keys = st.integers(0, 20).map(str)
        return st.dictionaries(keys, _values_of(get_args(annotation)[1]), max_size=20)
    return (
        strange_values if annotation in (Any, object) else strange_scalars | st.integers() | st.floats() | plain_texts
    )


def _outcome_of(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (SerializationError, TypeMismatchError) as error:
        return type(error), str(error)


def _containers(value: Any) -> list[int]:
    if not isinstance(value, (list, dict, tuple)):
        return []
    parts = value.values() if isinstance(value, dict) else value
    return [*([] if isinstance(value, tuple) else [id(value)]), *(each for part in parts for each in _containers(part))]


@given(plain_types.flatmap(lambda each: st.tuples(st.just(each), _values_of(each) | strange_values)), plain_types)
def test_any_value_is_the_same_whether_it_is_looked_through_at_once_or_by_parts(
    typed: tuple[Any, Any], other: Any
) -> None:
    """
    The quick ways for what is plain or large change no text, no value, no type within it and no error.
    """
    annotation, value = typed
    quick, slow = Codec(), ByParts()
    expected = _outcome_of(lambda: slow.encode_and_read_back(value, annotation))
    actual = _outcome_of(lambda: quick.encode_and_read_back(value, annotation))
    assert same(actual, expected), (actual, expected)
    assert same(
        _outcome_of(lambda: quick.encode(value, annotation)), _outcome_of(lambda: slow.encode(value, annotation))
    )
    if isinstance(expected[0], type):
        return
    encoded, again = actual
    found = _containers(again)
    assert len(set(found) - set(_containers(value))) == len(found)
    for read_as in (annotation, other, Union[annotation, other]):  # noqa: UP007 - made of parts
        assert same(
            _outcome_of(lambda read_as=read_as: quick.decode(encoded, read_as)),  # type: ignore[misc]  # a default binds the loop's variable
            _outcome_of(lambda read_as=read_as: slow.decode(encoded, read_as)),  # type: ignore[misc]  # as above
        )


@given(json_trees.flatmap(lambda tree: counts.map(lambda count: [tree] * count)) | json_trees, plain_types)
def test_any_record_is_read_the_same_whether_it_is_looked_through_at_once_or_by_parts(
    tree: Any, annotation: Any
) -> None:
    """
    A record of any form and any size, recorded under any name, is read as the same value or is the same mismatch.
    """
    name = Codec().name_of(annotation)
    encoded = Encoded(name, dumps(tree) + b" " * 600)
    assert same(
        _outcome_of(lambda: Codec().decode(encoded, annotation)),
        _outcome_of(lambda: ByParts().decode(encoded, annotation)),
    )


@given(st.text(st.sampled_from("AQgwYZ09+/=-_ \n\0é"), max_size=9), st.integers(0, 150))
def test_base64_is_only_read_as_it_is_written(text: str, count: int) -> None:
    """
    A text is read as the bytes of which it is the base64, or is no form of bytes.
    """
    form = "AQgw" * count + text
    try:
        value = Codec().decode(Encoded("builtins.bytes", dumps(form)), bytes)
    except TypeMismatchError:
        with pytest.raises(ValueError, match="base64"):
            _strictly(form)
    else:
        assert value == _strictly(form)


def _strictly(form: str) -> bytes:
    try:
        value = binascii.a2b_base64(form)
    except ValueError as error:
        raise ValueError(f"no base64: {error}") from error
    if binascii.b2a_base64(value, newline=False).decode() != form:
        raise ValueError("other base64")
    return value


def test_unfit_error_shows_the_way_to_the_place() -> None:
    """
    The way to what does not fit is put together from its end.
    """
    assert str(UnfitError("no").at("[1]").at(".x")) == "at .x[1]: no"
    with pytest.raises(UnfitError, match=r"^no$"):
        raise UnfitError("no")
