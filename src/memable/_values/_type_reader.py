"""
What an annotation means, as a tree of types.

Rules: NewType, Annotated, Final, aliases and type variables are seen through; an alias that contains itself keeps its
name. Abstract collections mean the concrete ones that hold their values exactly: a ``Sequence[T]`` is a ``list[T]`` or
a ``tuple[T, ...]``. An annotation that no value can be stored by is refused here, so that this is known before
anything runs.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from .._annotations import EMPTY
from ._leaves import LEAVES
from ._type_trees import (
    ANY,
    NEVER,
    NONE,
    STR,
    AliasBody,
    Kind,
    TypeTree,
    class_name,
    collection,
    leaf,
    literal,
    union,
    unsupported,
)

_COLLECTIONS: dict[Any, tuple[Kind, ...]] = {
    list: (Kind.LIST,),
    set: (Kind.SET,),
    frozenset: (Kind.FROZENSET,),
    collections.abc.MutableSequence: (Kind.LIST,),
    collections.abc.MutableSet: (Kind.SET,),
    collections.abc.Set: (Kind.FROZENSET, Kind.SET),
    collections.abc.Sequence: (Kind.LIST, Kind.VARIADIC),
    collections.abc.Collection: (Kind.FROZENSET, Kind.LIST, Kind.SET, Kind.VARIADIC),
    collections.abc.Iterable: (Kind.FROZENSET, Kind.LIST, Kind.SET, Kind.VARIADIC),
}
"Which collections hold the values of a generic type of one parameter. A str is never meant by them."

_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_UNIONS = (typing.Union, types.UnionType)
_WRAPPERS = ("Annotated", "Final", "ClassVar", "Required", "NotRequired", "ReadOnly")
#: Instances of these hold more than fields, so a subclass cannot be made anew from its fields.
_SOLID = (int, float, complex, str, bytes, bytearray, list, dict, set, frozenset, tuple, type, BaseException)
_REMEDY = "register hooks for it with the converter given to open_engine(converter=...), or store another type"


@attrs.frozen
class TypeReader:
    """
    Reads annotations.
    """

    trusts: Callable[[Any], bool]
    "Whether the user's converter deals with the values of an annotation."
    family: Callable[[type], Sequence[type]]
    "The class and its subclasses, if the user's converter tells them apart."
    variables: Mapping[Any, TypeTree] = attrs.field(factory=dict)
    "What type variables stand for."
    opened: Mapping[Any, AliasBody] = attrs.field(factory=dict)
    "The aliases that are being read."
    only_names: bool = False
    "Whether classes matter by name only, because the user's converter deals with what they are."

    def read(self, annotation: Any) -> TypeTree:
        """
        Return what *annotation* means.

        Raises:
            SerializationError: No value can be stored by it. The text says which part, why, and what to do.
        """
        if self.trusts(annotation):
            names = attrs.evolve(self, trusts=lambda _: False, family=lambda _: (), only_names=True)
            return TypeTree(Kind.TRUSTED, names.read(annotation).name, annotation)
        return self.read_own(annotation)

    def read_own(self, annotation: Any) -> TypeTree:  # noqa: PLR0911 - one for each sort
        """
        Return what *annotation* means if the user's converter does not deal with it. Raises as `read` does.
        """
        if annotation is None:
            return NONE
        # From Python 3.11 on, Any is a class.
        if annotation is Any or annotation is EMPTY or annotation is object:
            return ANY
        if isinstance(annotation, type) and typing.get_origin(annotation) is None:
            return self._read_class(annotation)
        if annotation is typing.Never or annotation is typing.NoReturn:
            return NEVER
        if annotation is typing.LiteralString:
            return STR
        if annotation is typing.Tuple:  # noqa: UP006 - an old name that users may use
            return self._read_class(tuple)
        if isinstance(annotation, typing.TypeVar):
            return self._read_variable(annotation)
        if hasattr(annotation, "__supertype__"):
            return self.read(annotation.__supertype__)
        return self._read_special(annotation)

    def _read_special(self, annotation: Any) -> TypeTree:
        origin, args = typing.get_origin(annotation), typing.get_args(annotation)
        if _is_unpacked(annotation):
            raise unsupported(annotation, "is no type that values have", "annotate what the value is")
        if origin in _UNIONS:
            return union([self.read(arg) for arg in args])
        if origin is typing.Literal:
            return union([literal(value) for value in args])
        if hasattr(annotation, "__metadata__") or getattr(origin, "_name", None) in _WRAPPERS:
            return self.read(args[0])
        if _is_alias(annotation) or _is_alias(origin):
            return self._read_alias(annotation if origin is None else origin, args)
        if isinstance(origin, type):
            return self._read_generic(origin, args) if args or origin is tuple else self._read_class(origin)
        if isinstance(annotation, (str, typing.ForwardRef)):
            raise unsupported(annotation, "is a name that was not resolved", "make it importable where it is used")
        raise unsupported(annotation, "is no type that values have", "annotate what the value is")

    def _read_generic(self, origin: type, args: tuple[Any, ...]) -> TypeTree:
        if origin is tuple:
            return self._read_tuple(args)
        if origin in _COLLECTIONS:
            item = self.read(args[0])
            return union([collection(kind, item) for kind in _COLLECTIONS[origin]])
        if origin in _MAPPINGS:
            key, value = map(self.read, args)
            # JSON's own dicts have str keys.
            return collection(Kind.DICT, STR if key == ANY else key, value)
        return self._read_fields(origin, tuple(map(self.read, args)))

    def _read_tuple(self, args: tuple[Any, ...]) -> TypeTree:
        if args[1:] == (Ellipsis,):
            return collection(Kind.VARIADIC, self.read(args[0]))
        if any(arg is Ellipsis or _is_unpacked(arg) for arg in args):
            raise unsupported(tuple, "has fixed and variable parts", "annotate tuple[T, ...]")
        return collection(Kind.TUPLE, *map(self.read, args))

    def _read_class(self, cls: type) -> TypeTree:
        if cls in LEAVES:
            return leaf(cls)
        if cls is tuple:
            return collection(Kind.VARIADIC, ANY)
        if cls in _COLLECTIONS:
            return self._read_generic(cls, (Any,))
        if cls in _MAPPINGS:
            return self._read_generic(cls, (Any, Any))
        family = self.family(cls)
        if family:
            return union([self._read_fields(member, ()) for member in family])
        # Without parameters it has those that its variables stand for, but not here.
        unbound = attrs.evolve(self, variables={})
        return self._read_fields(cls, tuple(map(unbound.read, getattr(cls, "__parameters__", ()))))

    def _read_fields(self, cls: type, args: tuple[TypeTree, ...]) -> TypeTree:
        """Return the tree of a class whose instances are made of members or fields."""
        generic: dict[str, Any] = vars(cls).get("__pydantic_generic_metadata__") or {}
        if generic.get("origin") is not None:
            # Pydantic makes a class of its own of each Box[int].
            return TypeTree(Kind.CLASS, class_name(generic["origin"]), cls, tuple(map(self.read, generic["args"])))
        name = class_name(cls)
        if self.only_names:
            return TypeTree(Kind.TRUSTED, name, cls, args)
        if issubclass(cls, enum.Enum):
            return TypeTree(Kind.ENUM, name, cls)
        if is_named_tuple(cls) or is_typed_dict(cls):
            return TypeTree(Kind.CLASS, name, cls, args)
        bases = [base.__name__ for base in _SOLID if issubclass(cls, base)]
        if not bases and (attrs.has(cls) or dataclasses.is_dataclass(cls) or is_pydantic_model(cls)):
            return TypeTree(Kind.CLASS, name, cls, args)
        if hasattr(cls, "__get_pydantic_core_schema__") and "pydantic" in sys.modules and not args:
            return TypeTree(Kind.FOREIGN, name, cls)
        reason = f"is a {bases[0]} and more" if bases else "is no class whose fields are known, as those of attrs are"
        raise unsupported(cls, reason, _REMEDY)

    def _read_variable(self, variable: typing.TypeVar) -> TypeTree:
        if variable in self.variables:
            return self.variables[variable]
        if variable.__constraints__:
            return union([self.read(constraint) for constraint in variable.__constraints__])
        return ANY if variable.__bound__ is None else self.read(variable.__bound__)

    def _read_alias(self, alias: Any, args: tuple[Any, ...]) -> TypeTree:
        trees = tuple(map(self.read, args))
        known = self.opened.get((alias, trees))
        if known is not None:
            # It contains itself, so its name has to stand for it.
            named = types.SimpleNamespace(__module__=alias.__module__, __qualname__=alias.__name__)
            return TypeTree(Kind.ALIAS, class_name(named), known, trees)
        found = AliasBody(alias)
        variables = {**self.variables, **dict(zip(alias.__type_params__, trees, strict=False))}
        inner = attrs.evolve(self, variables=variables, opened={**self.opened, (alias, trees): found})
        found.body = inner.read(_alias_value(alias))
        return found.body


def field_annotations(cls: type) -> dict[str, Any]:
    """
    Return the annotations in the body of *cls* and of its bases, with names in strings resolved.

    Raises:
        SerializationError: A name in them cannot be found.
    """
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except NameError:
        # A class made inside a function may name itself, and one with parameters of its own names those: early
        # releases of Python 3.12 do not see to it.
        names: dict[str, Any] = {cls.__name__: cls}
    for base in cls.__mro__:
        names |= {variable.__name__: variable for variable in getattr(base, "__type_params__", ())}
    try:
        return typing.get_type_hints(cls, localns=names, include_extras=True)
    except (NameError, TypeError, SyntaxError, AttributeError) as error:
        reason = f"has an annotation that cannot be resolved ({error})"
        raise unsupported(cls, reason, "make the name importable in the class's module") from error


def field_readers(cls: type, args: tuple[TypeTree, ...], reader: TypeReader) -> dict[str, TypeReader]:
    """
    Return by which reader the annotation of each field is read: it knows the type variables of the class around it.
    """
    variables = dict(zip(getattr(cls, "__parameters__", ()), args, strict=False))
    own = attrs.evolve(reader, variables=variables)
    found = dict.fromkeys(inspect.get_annotations(cls), own)
    for base in vars(cls).get("__orig_bases__", cls.__bases__):
        origin = typing.get_origin(base) or base
        if isinstance(origin, type) and origin not in (object, typing.Generic):
            inherited = field_readers(origin, tuple(map(own.read, typing.get_args(base))), reader)
            # A TypedDict repeats the annotations of its bases; another class repeats what it overrides.
            found = {**found, **inherited} if is_typed_dict(cls) else {**inherited, **found}
    return found


def _alias_value(alias: Any) -> Any:
    """Return what an alias stands for, with names in strings resolved as in an annotation of its module."""
    names = {variable.__name__: variable for variable in alias.__type_params__}
    try:
        bearer = types.SimpleNamespace(__annotations__={"value": alias.__value__})
        module = vars(sys.modules.get(alias.__module__, types))
        return typing.get_type_hints(bearer, module, names, include_extras=True)["value"]
    except (NameError, TypeError, SyntaxError, AttributeError) as error:
        raise unsupported(alias, f"names what cannot be found ({error})", "define it in the alias's module") from error


def _is_alias(annotation: Any) -> bool:
    """Tell whether it was made by a ``type`` statement, or by the backport in typing_extensions."""
    return type(annotation).__name__ == "TypeAliasType" and hasattr(annotation, "__type_params__")


def _is_unpacked(annotation: Any) -> bool:
    """Tell whether it stands for several types: ``Unpack[tuple[int, ...]]``, or ``*tuple[int, ...]``."""
    return typing.get_origin(annotation) is typing.Unpack or getattr(annotation, "__unpacked__", False) is True


def is_named_tuple(cls: type) -> bool:
    """
    Tell whether *cls* was made by NamedTuple or namedtuple, or is a subclass of such a class.
    """
    return issubclass(cls, tuple) and hasattr(cls, "_fields") and hasattr(cls, "_make")


def is_typed_dict(cls: type) -> bool:
    """
    Tell whether *cls* is a TypedDict, of typing or of typing_extensions.
    """
    return issubclass(cls, dict) and hasattr(cls, "__required_keys__") and hasattr(cls, "__total__")


def is_pydantic_model(cls: type) -> bool:
    """
    Tell whether *cls* is a pydantic model. Never imports pydantic: without it loaded there are no models.
    """
    main = sys.modules.get("pydantic.main")
    return main is not None and issubclass(cls, main.BaseModel)
