"""
Trees of types, and the names under which types are recorded.

Rules: what is the same type to a type checker has the same name, in every process and under every release of Python:
``Optional[int]``, ``Union[None, int]`` and ``int | None`` are all ``builtins.int | None``. Different types that can be
stored have different names; two classes of one name are told apart only by where they are.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from typing import Any, Literal

import attrs

from .._errors import SerializationError
from .._qualified_name import qualified_name
from ._leaves import LEAVES


class Kind(enum.Enum):
    """
    What sort of type a tree's root is.
    """

    ANY = enum.auto()
    NEVER = enum.auto()
    LEAF = enum.auto()
    LITERAL = enum.auto()
    ENUM = enum.auto()
    LIST = enum.auto()
    SET = enum.auto()
    FROZENSET = enum.auto()
    TUPLE = enum.auto()
    VARIADIC = enum.auto()
    DICT = enum.auto()
    UNION = enum.auto()
    CLASS = enum.auto()
    FOREIGN = enum.auto()
    ALIAS = enum.auto()
    TRUSTED = enum.auto()
    UNCHANGED = enum.auto()
    "What was recorded without annotation, read as the one type in it."
    UNKNOWN = enum.auto()
    "A class that is not at hand, only its name: no value is of it."


_HEADS = {
    Kind.LIST: "list",
    Kind.SET: "set",
    Kind.FROZENSET: "frozenset",
    Kind.TUPLE: "tuple",
    Kind.VARIADIC: "tuple",
    Kind.DICT: "dict",
}
#: What type names are put together with cannot be part of a class's name.
_CLASS_NAME = re.compile(r"[^\[\]|,'\"\ud800-\udfff\x00-\x1f\x7f]+")


@attrs.define
class AliasBody:
    """
    What an alias that contains itself stands for; known only once it has been read to its end.
    """

    alias: Any
    "The alias."
    body: TypeTree | None = None
    "The tree, with the alias itself somewhere in it."


def _identity(source: Any) -> object:
    """Return what tells the sources of trees apart."""
    if isinstance(source, AliasBody):
        return source.alias
    if isinstance(source, tuple):
        # The values of a literal: 1 and True are equal, their texts are not.
        return tuple(map(literal_text, source))
    return source if isinstance(source, type) else id(source)


@attrs.frozen(cache_hash=True)
class TypeTree:
    """
    A type, and the types in it.
    """

    kind: Kind
    "What sort of type it is."
    head: str
    "Its recorded name without the types in it: ``list``, ``app.Box``."
    source: Any = attrs.field(default=None, eq=_identity, repr=False)
    "The class or annotation itself; the values of a literal; what an alias stands for."
    args: tuple[TypeTree, ...] = ()
    "The types in it."
    name: str = attrs.field(
        init=False,
        eq=False,
        default=attrs.Factory(lambda self: _tree_name(self), takes_self=True),  # noqa: PLW0108 - it is defined below
    )
    "Its recorded name."

    @property
    def members(self) -> tuple[TypeTree, ...]:
        """
        The types that a value may be of: those of a union, or this one alone.
        """
        match self.kind:
            case Kind.UNION:
                return self.args
            case Kind.ANY:
                return JSON_MEMBERS
            case Kind.NEVER:
                return ()
            case Kind.ALIAS:
                return self.body.members
            case _:
                return (self,)

    @property
    def body(self) -> TypeTree:
        """
        What an alias that contains itself stands for.
        """
        found: TypeTree | None = self.source.body
        if found is None:
            raise unsupported(self.head, "stands for itself", "define what it is")
        return found


def _tree_name(tree: TypeTree) -> str:
    names = [arg.name for arg in tree.args]
    match tree.kind:
        case Kind.UNION:
            return " | ".join(names)
        case Kind.VARIADIC:
            return f"tuple[{names[0]}, ...]"
        case Kind.TUPLE:
            return f"tuple[{', '.join(names) or '()'}]"
        case Kind.LITERAL:
            return f"Literal[{', '.join(map(literal_text, tree.source))}]"
        case _:
            return f"{tree.head}[{', '.join(names)}]" if names else tree.head


def leaf(cls: type) -> TypeTree:
    """
    Return the tree of a type in `LEAVES`.
    """
    return TypeTree(Kind.LEAF, LEAVES[cls].name, cls)


def collection(kind: Kind, *args: TypeTree) -> TypeTree:
    """
    Return the tree of a list, tuple, set, frozenset or dict.
    """
    return TypeTree(kind, _HEADS[kind], None, args)


def literal(*values: object) -> TypeTree:
    """
    Return the tree of a Literal; the forms of its values must differ, see `union` for any others.
    """
    if values == (None,):
        return NONE
    for value in values:
        if not isinstance(value, enum.Enum) and type(value) not in (str, int, bool, bytes):
            reason = "is none that the typing rules allow"
            raise unsupported(f"Literal[{type(value).__name__}]", reason, "use str, int, bool, bytes or an enum")
    return TypeTree(Kind.LITERAL, "Literal", values)


ANY = TypeTree(Kind.ANY, "typing.Any")
NEVER = TypeTree(Kind.NEVER, "typing.Never")
NONE = leaf(type(None))
STR = leaf(str)
JSON_LIST = collection(Kind.LIST, ANY)
JSON_DICT = collection(Kind.DICT, STR, ANY)
JSON_MEMBERS = (leaf(bool), leaf(float), leaf(int), STR, JSON_DICT, JSON_LIST, NONE)
"What a value that is not annotated may be."


def union(trees: Iterable[TypeTree]) -> TypeTree:
    """
    Return the union of *trees*: flat, each member once, in an order that depends on their names only.

    Raises:
        SerializationError: Two classes in it have the same name, so what is recorded would not tell them apart.
    """
    trees = tuple(trees)
    if len(trees) == 1:
        return trees[0]
    members: dict[str, TypeTree] = {}
    literals: dict[object, dict[str, Any]] = {}
    for member in (member for tree in trees for member in tree.members):
        if member.kind is Kind.LITERAL:
            group = literals.setdefault(_literal_group(member.source[0]), {})
            group.update((literal_text(value), value) for value in member.source)
        elif members.setdefault(member.name, member) != member:
            raise unsupported(member.name, "is the name of two members of one union", "rename one of them")
    for group in literals.values():
        tree = literal(*(group[text] for text in sorted(group)))
        members[tree.name] = tree
    if not members:
        return NEVER
    ordered = sorted(members.values(), key=lambda member: (member == NONE, member.name))
    return ordered[0] if len(ordered) == 1 else TypeTree(Kind.UNION, "|", None, tuple(ordered))


def _literal_group(value: object) -> Literal["scalar"] | type:
    """Return what keeps literals apart whose forms could be mistaken for each other."""
    return "scalar" if type(value) in (str, int, bool) else type(value)


def literal_text(value: object) -> str:
    """
    Return how a value of a Literal is recorded within its type's name.
    """
    return f"{class_name(type(value))}.{value.name}" if isinstance(value, enum.Enum) else ascii(value)


def class_name(cls: Any) -> str:
    """
    Return the recorded name of a class or an alias.

    Raises:
        SerializationError: It has characters in it that would make another type's name of it.
    """
    name = qualified_name(cls)
    if not _CLASS_NAME.fullmatch(name):
        raise unsupported(repr(name), "has characters in its name that type names are made with", "rename it")
    return name


def unsupported(annotation: Any, reason: str, remedy: str) -> SerializationError:
    """
    Return the error that no value can be stored as *annotation*.
    """
    shown = qualified_name(annotation) if isinstance(annotation, type) else str(annotation)
    return SerializationError(problem=f"the type {shown} cannot be stored: it {reason}; {remedy}")
