"""
Values of any types to their encoded form and back: what holds for all of them.
"""

from __future__ import annotations

import enum
import json
import math
import pathlib
import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, Generic, Literal, NamedTuple, NotRequired, Optional, TypedDict, TypeVar, Union
from zoneinfo import ZoneInfo

import attrs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

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


def same(a: Any, b: Any) -> bool:
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


def test_unfit_error_shows_the_way_to_the_place() -> None:
    """
    The way to what does not fit is put together from its end.
    """
    assert str(UnfitError("no").at("[1]").at(".x")) == "at .x[1]: no"
    with pytest.raises(UnfitError, match=r"^no$"):
        raise UnfitError("no")
