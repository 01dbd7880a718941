"""
Pydantic models to their encoded form and back.
"""

from __future__ import annotations

import functools
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Generic, TypeVar
from zoneinfo import ZoneInfo

import attrs
import pytest

from memable._encoded import Encoded
from memable._errors import SerializationError, TypeMismatchError
from memable._values._codec import Codec

pydantic = pytest.importorskip("pydantic")

T = TypeVar("T")
WHEN = datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1)


class Line(pydantic.BaseModel):
    sku: str
    price: Decimal
    count: Annotated[int, pydantic.Field(gt=0)] = 1


class Cart(pydantic.BaseModel):
    lines: list[Line]
    tags: set[str] = pydantic.Field(default_factory=set, alias="labels")
    when: datetime | None = None
    _seen: int = pydantic.PrivateAttr(default=0)
    _note: str = "n"

    @functools.cached_property
    def total(self) -> Decimal:
        return sum((line.price for line in self.lines), Decimal(0))


class Loose(pydantic.BaseModel, extra="allow"):
    x: int


class Pair(pydantic.BaseModel, Generic[T]):
    left: T
    right: T | None = None


class Numbers(pydantic.RootModel[list[int]]): ...


class Branch(pydantic.BaseModel):
    children: list[Branch] = pydantic.Field(default_factory=list)


class Linked(pydantic.BaseModel):
    url: pydantic.HttpUrl
    secret: pydantic.SecretStr | None = None


class Factories(pydantic.BaseModel):
    x: int
    y: int = pydantic.Field(default_factory=lambda data: data["x"] + 1)
    z: list[int] = pydantic.Field(default_factory=list)
    w: str = "w"


@pydantic.dataclasses.dataclass
class Dated:
    x: int
    when: datetime | None = None


@attrs.define
class Holder:
    line: Line


def seen(cart: Cart) -> Cart:
    cart._seen = 7
    return cart


VALUES: dict[str, tuple[Any, Any]] = {
    "model": (Line(sku="a", price=Decimal("1.10")), Line),
    "nested": (seen(Cart(lines=[Line(sku="a", price=Decimal("1E+5"), count=2)], labels={"b"}, when=WHEN)), Cart),
    "list": ([Line(sku="a", price=Decimal(1))], list[Line]),
    "union": (Line(sku="a", price=Decimal(1)), Line | Cart),
    "in attrs": (Holder(Line(sku="a", price=Decimal(1))), Holder),
    "extra": (Loose(x=1, more=[1], and_="a"), Loose),
    "generic": (Pair[int](left=1), Pair[int]),
    "generic of models": (Pair[Line](left=Line(sku="a", price=Decimal(1))), Pair[Line]),
    "root": (Numbers([1, 2]), Numbers),
    "recursive": (Branch(children=[Branch(), Branch(children=[Branch()])]), Branch),
    "dataclass": (Dated(1, WHEN), Dated),
    "type of pydantic's": (Linked(url="https://example.org/a"), Linked),
    "without validation": (Line.model_construct(sku="a", price=Decimal(1), count=-1), Line),
}


@pytest.mark.parametrize(("value", "annotation"), VALUES.values(), ids=VALUES)
def test_model_comes_back_as_it_was(value: Any, annotation: Any) -> None:
    """
    A model is read back equal and of the same type, with the same fields set, and nothing validated anew.
    """
    codec = Codec()
    encoded = codec.encode(value, annotation)
    decoded = codec.decode(encoded, annotation)
    assert type(decoded) is type(value)
    assert repr(decoded) == repr(value)
    assert codec.encode(decoded, annotation) == encoded
    if isinstance(value, pydantic.BaseModel):
        assert decoded.model_fields_set == value.model_fields_set
        assert decoded.__pydantic_private__ == value.__pydantic_private__
        assert decoded.__pydantic_extra__ == value.__pydantic_extra__
        assert decoded == value


def test_model_keeps_what_json_of_pydantic_would_lose() -> None:
    """
    Zones, private attributes and which fields were set survive; cached properties are computed anew.
    """
    cart = seen(Cart(lines=[Line(sku="a", price=Decimal(2))], when=WHEN))
    assert cart.total == 2
    codec = Codec()
    decoded = codec.decode(codec.encode(cart, Cart), Cart)
    assert decoded.when.tzinfo is WHEN.tzinfo
    assert decoded.when.fold == 1
    assert decoded._seen == 7
    assert decoded.model_fields_set == {"lines", "when"}
    assert "total" not in vars(decoded)


def test_model_of_a_generic_class_has_a_name_of_its_own() -> None:
    """
    The classes that pydantic makes for ``Pair[int]`` are recorded as other generic classes are.
    """
    codec = Codec()
    encoded = codec.encode(Pair[int](left=1), Pair[int])
    assert encoded.type.endswith(".Pair[builtins.int]")
    with pytest.raises(TypeMismatchError, match=r"what is recorded is"):
        codec.decode(encoded, Pair[str])


class Special(Line): ...


wrong = Line(sku="a", price=Decimal(1))
wrong.count = "5"  # type: ignore[assignment]  # this is what is tested
no_private = Cart(lines=[])
object.__setattr__(no_private, "__pydantic_private__", None)

REFUSED: dict[str, tuple[Any, Any, str]] = {
    "field": (wrong, Line, r"at .count: expected builtins.int, got builtins.str"),
    "subclass": (Special(sku="a", price=Decimal(1)), Line, r"got .*\.Special"),
    "dict": ({"sku": "a", "price": Decimal(1)}, Line, r"expected .*Line, got builtins.dict"),
    "unset private attribute": (no_private, Cart, r"at ._seen: the private attribute is not set"),
    "secret": (
        Linked(url="https://example.org", secret="s"),  # noqa: S106 - no password
        Linked,
        r"at .secret: .*it gives another value",
    ),
    "unstorable": (Loose(x=1, more={1}), Loose, r"builtins.set is none of them"),
}


@pytest.mark.parametrize(("value", "annotation", "problem"), REFUSED.values(), ids=REFUSED)
def test_model_that_does_not_fit_is_refused(value: Any, annotation: Any, problem: str) -> None:
    """
    A model's fields are of their annotated types, or it is refused.
    """
    with pytest.raises(SerializationError, match=problem):
        Codec().encode(value, annotation)


def test_model_that_changed_reads_old_records() -> None:
    """
    Fields gained with defaults and fields lost don't matter; one gained without default is named.
    """
    codec = Codec()
    name = codec.encode(Factories(x=1), Factories).type
    decoded = codec.decode(Encoded(name, b'{"x":1,"gone":{"$gone.Type":1}}'), Factories)
    assert decoded == Factories(x=1)
    assert decoded.model_fields_set == {"x"}
    with pytest.raises(TypeMismatchError, match=r"the record has no field 'x', and .*Factories has no default"):
        codec.decode(Encoded(name, b"{}"), Factories)
    with pytest.raises(TypeMismatchError, match=r"at .x: expected builtins.int"):
        codec.decode(Encoded(name, b'{"x":"1"}'), Factories)
    decoded = codec.decode(Encoded(name, b'{"x":1,"$set":{"$list[builtins.str]":["x","gone"]}}'), Factories)
    assert decoded.model_fields_set == {"x"}


def test_model_that_gained_a_private_attribute_reads_old_records() -> None:
    """
    A private attribute that is not recorded has its default.
    """
    codec = Codec()
    encoded = codec.encode(Cart(lines=[]), Cart)
    old = Encoded(encoded.type, encoded.data.replace(b'"_note":"n",', b"").replace(b',"_note":"n"', b""))
    assert old != encoded
    assert codec.decode(old, Cart) == Cart(lines=[])


def test_type_of_pydantics_that_no_longer_validates_is_a_mismatch() -> None:
    """
    What pydantic refuses to read is a mismatch.
    """
    codec = Codec()
    encoded = codec.encode(Linked(url="https://example.org/a"), Linked)
    broken = Encoded(encoded.type, encoded.data.replace(b"https://example.org/a", b"nonsense"))
    with pytest.raises(TypeMismatchError, match=r"at .url: .*ValidationError"):
        codec.decode(broken, Linked)
