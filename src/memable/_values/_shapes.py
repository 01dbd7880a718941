"""
Which shape each type has: made from its tree, once.

Rules: where the recorded type's name tells the type of a part, the part's form stands alone: the items of a
``list[Decimal]`` are strings. Where it does not (in a union, in a field of a class, in an alias that contains itself)
a part is tagged with its type. So a record says of each value in it of which type it was, and a field whose annotation
has changed is read by the rules of `_recorded_types`, never reinterpreted. What the user's converter has hooks for is
the user's: what its hooks give is plain JSON, and nothing else is asked of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

import attrs

from .._json import JSON
from .._qualified_name import qualified_name
from ._class_layouts import layout_of
from ._collection_shapes import (
    dict_shape,
    enum_shape,
    list_shape,
    literal_shape,
    plain,
    record_shape,
    set_shape,
    tuple_shape,
    unchanged_shape,
)
from ._field_shapes import fields_shape
from ._leaves import EXACT_FLOAT, LEAVES
from ._pydantic_models import foreign_shape, model_layout
from ._recorded_types import narrow, parse_recorded, rename
from ._shape import MAX_NESTING, TOO_DEEP, Shape, UnfitError
from ._tagged_shapes import tagged_shape
from ._trusted_shapes import trusted_shape
from ._type_reader import TypeReader, is_pydantic_model, is_typed_dict
from ._type_trees import Kind, TypeTree
from ._user_hooks import UserHooks

Key = tuple[TypeTree, bool]

_COLLECTIONS = (Kind.LIST, Kind.SET, Kind.FROZENSET, Kind.VARIADIC, Kind.TUPLE, Kind.DICT, Kind.UNCHANGED)

#: More types than any program stores; beyond it they are made anew, which only costs time.
MAX_SHAPES = 4_096


class Shapes:
    """
    Makes and remembers shapes.
    """

    def __init__(self, hooks: UserHooks, aliases: Mapping[str, type]) -> None:
        self.reader = TypeReader(hooks.know, hooks.family)
        self._hooks = hooks
        self._names = {name: qualified_name(cls) for name, cls in aliases.items()}
        self._made: dict[Key, Shape] = {}
        self._found: dict[tuple[TypeTree, str], Shape | None] = {}
        self._making: dict[Key, list[Shape]] = {}
        self._depth = 0
        #: Whether dicts are now encoded in an order of their own, so that equal values have equal canonical forms.
        self.is_sorting = False

    def shape(self, tree: TypeTree, *, lenient: bool = True) -> Shape:
        """
        Return the shape of a type.

        Args:
            tree: The type.
            lenient: Whether an int is stored as the float that equals it, where a float is asked for.

        Raises:
            SerializationError: It holds a type that cannot be stored.
        """
        key = (tree, lenient)
        if key in self._made:
            return self._made[key]
        if key in self._making:
            return self._deferred(tree, self._making[key])
        if len(self._made) >= MAX_SHAPES:
            self._made.clear()
        done = self._making[key] = []
        try:
            done.append(self._make(tree, lenient=lenient))
        except BaseException:
            # What was made on the way may wait for what now is not made.
            self._made.clear()
            raise
        finally:
            del self._making[key]
        self._made[key] = done[0]
        return done[0]

    def find(self, recorded: str, asked: TypeTree) -> Shape | None:
        """
        Return the shape by which a value that is *recorded* as a type can be read as the *asked* one, if any can.
        """
        key = (asked, recorded)
        if key not in self._found:
            if len(self._found) >= MAX_SHAPES:
                self._found.clear()
            self._found[key] = self._find(recorded, asked)
        return self._found[key]

    def _find(self, recorded: str, asked: TypeTree) -> Shape | None:
        try:
            parsed = parse_recorded(recorded)
        except ValueError:
            return None
        # A class that goes by its recorded name today goes before one that an alias names.
        tree = narrow(parsed, asked) or narrow(rename(parsed, self._names), asked)
        return None if tree is None else self.shape(tree)

    def _make(self, tree: TypeTree, *, lenient: bool) -> Shape:  # noqa: PLR0911, PLR0912 - one for each kind
        name = tree.name
        parts = tree.args if tree.kind in _COLLECTIONS else ()
        shapes = [self.shape(part, lenient=lenient) for part in parts]
        match tree.kind:
            case Kind.ANY:
                return Shape(name, plain, plain)
            case Kind.LEAF:
                return EXACT_FLOAT if tree.source is float and not lenient else LEAVES[tree.source]
            case Kind.LITERAL | Kind.ENUM:
                return (enum_shape if tree.kind is Kind.ENUM else literal_shape)(name, tree.source)
            case Kind.LIST:
                return list_shape(name, *shapes)
            case Kind.SET | Kind.FROZENSET:
                return set_shape(set if tree.kind is Kind.SET else frozenset, name, *shapes)
            case Kind.VARIADIC:
                return tuple_shape(name, *shapes)
            case Kind.TUPLE:
                return record_shape(name, tuple(shapes))
            case Kind.DICT:
                key, value = shapes
                return dict_shape(name, key, value, lambda: self.is_sorting)
            case Kind.CLASS:
                return self._fields(tree, lenient=lenient)
            case Kind.FOREIGN:
                return foreign_shape(tree.source, name, plain)
            case Kind.TRUSTED:
                return self._trusted(tree)
            case Kind.UNCHANGED:
                return unchanged_shape(name, *shapes)
            case Kind.UNKNOWN:
                return _unknown_shape(name)
            case Kind.UNION | Kind.ALIAS | Kind.NEVER:
                return self._tagged(tree, lenient=lenient)
            case unknown:
                assert_never(unknown)

    def _tagged(self, tree: TypeTree, *, lenient: bool) -> Shape:
        """Return the shape of values of the type in a place that does not tell the type."""
        exact = [self.shape(member, lenient=False) for member in tree.members]
        wide = [self.shape(member) for member in tree.members] if lenient else exact

        def find(recorded: str) -> Shape:
            found = self.find(recorded, tree)
            if found is None:
                raise UnfitError(f"expected {tree.name}, but what is recorded there is {recorded}")
            return found

        return tagged_shape(tree.name, exact, wide, find)

    def _fields(self, tree: TypeTree, *, lenient: bool) -> Shape:
        cls: type = tree.source
        layout = model_layout(cls, self.reader) if is_pydantic_model(cls) else layout_of(cls, tree.args, self.reader)
        shapes = {field.name: self._field(field.type, lenient=lenient) for field in layout.fields}
        return fields_shape(tree.name, _instances(tree), layout, shapes)

    def _field(self, tree: TypeTree, *, lenient: bool) -> Shape:
        tagged = self._tagged(tree, lenient=lenient)
        if tree.kind is not Kind.ANY:
            return tagged
        # Its members are those of JSON, but JSON has no inf and no nan.
        return attrs.evolve(tagged, encode=lambda value: tagged.encode(plain(value)))

    def _trusted(self, tree: TypeTree) -> Shape:
        unstructure = self._hooks.unstructure_hook(tree.source)
        structure = self._hooks.structure_hook(tree.source)
        if unstructure is None or structure is None:
            own = self.shape(self.reader.read_own(tree.source))
            unstructure = unstructure or own.encode
            structure = structure or (lambda form, _: own.decode(form))
        inherited = self._hooks.are_inherited(tree.source)
        return trusted_shape(tree.name, tree.source, unstructure, structure, inherited=inherited)

    def _deferred(self, tree: TypeTree, done: list[Shape]) -> Shape:
        """Return a shape that stands for one which is still being made: that of a type within itself."""

        def encode(value: Any) -> JSON:
            return self._nested(done[0].encode, value)  # type: ignore[no-any-return]  # of the encoder's type

        def decode(form: JSON) -> Any:
            return self._nested(done[0].decode, form)

        types = frozenset([_instances(tree)] if tree.kind is Kind.CLASS else [])
        return Shape(tree.name, encode, decode, types, takes_others=not types)

    def _nested(self, convert: Any, what: Any) -> Any:
        if self._depth >= MAX_NESTING:
            raise UnfitError(f"it {TOO_DEEP}")
        self._depth += 1
        try:
            return convert(what)
        finally:
            self._depth -= 1


def _unknown_shape(name: str) -> Shape:
    """Return the shape of a class that is not at hand: it has no values."""

    def refuse(_: Any) -> Any:
        raise UnfitError(f"expected {name}, a class that this process has not met yet")

    return Shape(name, refuse, refuse, takes_others=True)


def _instances(tree: TypeTree) -> type:
    """Return the class that the values of a class with fields are direct instances of."""
    return dict if is_typed_dict(tree.source) else tree.source
