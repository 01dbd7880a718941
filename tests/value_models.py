"""
Classes whose instances the tests of values store.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
from decimal import Decimal
from typing import Annotated, Any, Final, Generic, NamedTuple, NewType, NotRequired, Required, TypedDict, TypeVar

import attrs

T = TypeVar("T")
U = TypeVar("U")
UserId = NewType("UserId", int)


class Color(enum.Enum):
    RED = "r"
    CRIMSON = "r"  # noqa: PIE796 - an alias is what is tested
    BLUE = object()


class Number(enum.IntEnum):
    ONE = 1
    TWO = 2


class Word(enum.StrEnum):
    YES = "y"


class Access(enum.Flag):
    READ = 1
    WRITE = 2
    BOTH = 3
    EXECUTE = 8


class Bits(enum.IntFlag):
    A = 1
    B = 4


class Loose(enum.Flag, boundary=enum.KEEP):
    A = 1


@attrs.define
class Item:
    sku: str
    price: Decimal
    tags: set[str] = attrs.field(factory=set)


@attrs.frozen(kw_only=True, cache_hash=True)
class Frozen:
    a: int
    b: str = "b"


@attrs.define(slots=False)
class Order:
    items: list[Item]
    note: str | None = None
    _secret: int = 3
    aliased: float = attrs.field(default=1.5, alias="other")
    computed: int = attrs.field(init=False)
    anything: Any = None

    def __attrs_post_init__(self) -> None:
        self.computed = len(self.items)

    @functools.cached_property
    def total(self) -> Decimal:
        return sum((item.price for item in self.items), Decimal(0))


@attrs.define(slots=False, cache_hash=True, frozen=True)
class Hashed:
    a: int


@attrs.define
class Shouting:
    text: str = attrs.field(converter=lambda text: text + "!", validator=attrs.validators.max_len(3))


@attrs.define
class Unannotated:
    x = attrs.field()
    y = attrs.field(default=None)


@attrs.define
class Same:
    x: int


@attrs.define
class AlsoSame:
    x: int


@attrs.define
class Sub(Same):
    y: int = 0


@attrs.define
class Animal:
    name: str


@attrs.define
class Dog(Animal):
    bark: tuple[int, ...]


@attrs.define
class Puppy(Dog):
    age_days: int


@attrs.define
class Box(Generic[T]):
    value: T


@attrs.define
class IntBox(Box[int]):
    label: str = ""


@attrs.define
class Shelf(Box[U], Generic[T, U]):
    other: T
    anything: Box = attrs.field(factory=lambda: Box(1))  # type: ignore[type-arg]  # of anything


@attrs.define
class Node:
    value: int
    children: list[Node] = attrs.field(factory=list)
    parent: Node | None = None


@attrs.define
class Left:
    right: Right | None = None


@attrs.define
class Right:
    left: Left | None = None


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.0
    z: Final[int] = 3
    parts: list[Point] = dataclasses.field(default_factory=list)
    computed: int = dataclasses.field(init=False)
    scale: dataclasses.InitVar[int] = 2

    def __post_init__(self, scale: int) -> None:
        self.computed = self.x * scale


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Slotted(Generic[T]):
    value: T
    pair: tuple[T, int]


class Place(NamedTuple):
    name: str
    rank: int = 1
    more: Any = None


Untyped = collections.namedtuple("Untyped", "a b", defaults=[2])  # noqa: PYI024 - an untyped one is what is tested


class Loud(Place):
    def shout(self) -> str:
        return self.name.upper()


class Options(TypedDict):
    name: str
    size: NotRequired[int]


class Partial(TypedDict, total=False):
    name: Required[str]
    when: UserId


class Noted(TypedDict):
    name: Annotated[NotRequired[str], "note"]
    sizes: list[int]


class BoxDict(TypedDict, Generic[T]):
    value: T


class IntBoxDict(BoxDict[int]):
    label: str


class Plain:
    """No class whose fields are known."""

    def __init__(self, x: int) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plain) and self.x == other.x

    def __hash__(self) -> int:
        return hash(self.x)


@attrs.define(slots=False)
class Top:
    x: int


@attrs.define(slots=False)
class One(Top):
    y: int


@attrs.define(slots=False)
class Two(Top):
    z: int


@attrs.define(slots=False)
class Diamond(One, Two):
    w: int


class MyInt(int): ...


class MyStr(str): ...  # noqa: SLOT000 - as users write it


class MyDict(dict[str, int]): ...
