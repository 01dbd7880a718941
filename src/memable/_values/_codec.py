"""
A user's value to its encoded form and back, by its annotated type.

Rules: a value that is not of its annotated type is refused, never converted; only an int is stored as the float that
equals it, where a float is asked for. What was encoded is decoded as an equal value of exactly the same type, or not
at all. Each value carries the name of its annotated type; a value without annotation carries that of the JSON type it
is of (``builtins.int``, ``list[typing.Any]``), so that it can still be read once the function is annotated, if it is
plain JSON that fits. What is recorded is read by the rules of `_recorded_types`. Values are data: nothing is imported,
called or unpickled because a record names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import attrs
import cattrs

from .._encoded import Encoded
from .._errors import SerializationError, TypeMismatchError
from .._json import JSON, canonical, dumps_finite, loads
from ._named_types import named_types
from ._plain_trees import PlainType, is_plain, plain_type, write_and_copy_plain, write_plain
from ._recorded_types import parse_recorded
from ._shape import TOO_DEEP, Shape, UnfitError
from ._shapes import Shapes
from ._type_trees import ANY, JSON_MEMBERS, TypeTree
from ._user_hooks import UserHooks

ARGUMENTS = "memable.arguments"
"The recorded type of what `Codec.encode_arguments` gives."

#: More annotations than a program has; it may make new ones all the time, with ``returns=list[int]`` at each call.
MAX_PLANS = 4_096

#: Of a shorter text, shapes make the value as quickly.
LARGE_BYTES = 512

_NO_ALIASES: Mapping[str, type] = MappingProxyType({})


class _TooLargeError(SerializationError):
    """
    A value is of its type, but too large to be stored.
    """


@attrs.frozen(eq=False)
class _Plan:
    """What is known of an annotation."""

    tree: TypeTree
    shape: Shape
    plain: PlainType | None


class Codec:
    """
    Encodes and decodes values by their annotations. Used from one thread.
    """

    def __init__(
        self,
        *,
        converter: cattrs.Converter | None = None,
        aliases: Mapping[str, type] = _NO_ALIASES,
        max_value_bytes: int = 64 * 2**20,
    ) -> None:
        """
        Make a codec.

        Args:
            converter: The user's own; copied as it is now. Hooks registered with it for a type win.
            aliases: Today's classes by the names that they were recorded under.
            max_value_bytes: How large a value may be, as JSON text.
        """
        hooks = UserHooks(converter)
        self._shapes = Shapes(hooks, aliases)
        self._aliases = dict(aliases)
        self._plans: dict[Any, _Plan] = {}
        self._max_value_bytes = max_value_bytes
        self._json_names = {cls: tree.name for tree in JSON_MEMBERS for cls in self._shapes.shape(tree).types}
        hooks.adopt(
            lambda annotation: self._plan(annotation).shape.encode,
            lambda annotation: self._plan(annotation).shape.decode,
        )

    def check(self, annotation: Any) -> None:
        """
        Refuse an annotation by which no value can be stored.

        Raises:
            SerializationError: No value can; the text says which part of it, why, and what to do.
        """
        self._plan(annotation)

    def is_too_large(self, error: SerializationError) -> bool:
        """
        Tell whether a value was refused for its size alone.
        """
        return isinstance(error, _TooLargeError)

    def name_of(self, annotation: Any) -> str:
        """
        Return the name that values of an annotation are recorded under, those of ``Any`` aside.

        Raises:
            SerializationError: No value can be stored by it.
        """
        return self._plan(annotation).shape.name

    def encode(self, value: object, annotation: Any) -> Encoded:
        """
        Encode *value*, which is to be of the annotated type.

        Args:
            value: What a step returned, say.
            annotation: ``inspect.Signature.empty`` or ``Any``: JSON's own types only.

        Raises:
            SerializationError: It is not of the annotated type, or cannot be stored; the text says where and why.
        """
        plan = self._plan(annotation)
        data = None if plan.plain is None else write_plain(value, plan.plain)
        return self._encoded(value, plan, _text(self._encode(value, plan)) if data is None else data)

    def encode_and_read_back(self, value: object, annotation: Any) -> tuple[Encoded, Any]:
        """
        Encode *value*, and return with it what `decode` gives back.

        It is the same as one after the other, and quicker: what cannot change is given back itself, plain containers
        as copies.

        Raises:
            SerializationError: As for `encode`.
            TypeMismatchError: It cannot be read back.
        """
        plan = self._plan(annotation)
        written = None if plan.plain is None else write_and_copy_plain(value, plan.plain)
        if written is not None:
            data, copy = written
            return self._encoded(value, plan, data), copy
        encoded = self._encoded(value, plan, _text(self._encode(value, plan)))
        tree = self._tree(encoded, plan.tree.name)
        # Of what is stored without annotation, the form is the value.
        return encoded, tree if plan.tree is ANY else self._decode(encoded.type, tree, plan)

    def decode(self, encoded: Encoded, annotation: Any) -> Any:
        """
        Return a new value, equal to the one that was encoded.

        Raises:
            TypeMismatchError: It was recorded as a type that cannot be read as the annotated one.
        """
        plan = self._plan_to_read(encoded.type, annotation)
        tree = self._tree(encoded, plan.tree.name)
        plain = plan.plain
        if plain is not None and (type(tree) in plain.scalars or len(encoded.data) >= LARGE_BYTES):
            name = self._json_names[type(tree)] if plan.tree is ANY else plan.shape.name
            if encoded.type == name and is_plain(tree, plain):
                return tree
        return self._decode(encoded.type, tree, plan)

    def encode_as(self, value: object, name: str) -> Encoded:
        """
        Encode *value* as the type of a recorded *name*, without knowing the annotation that it stands for.

        Classes are found among those of the value itself, and those that this codec has met before.

        Raises:
            SerializationError: It is not of that type, or cannot be stored; the text says where and why.
        """
        if name == ANY.name:
            return self.encode(value, Any)
        known = [plan.tree for plan in self._plans.values()]
        named = named_types(value, self._shapes.reader, known, self._aliases)
        try:
            tree = named.tree(parse_recorded(name))
        except ValueError as error:
            raise SerializationError(problem=f"a value cannot be stored: {error}") from error
        plan = _Plan(tree, self._shapes.shape(tree), None)
        data = _text(self._encode(value, plan))
        self._check_size(data, tree.name)
        return Encoded(tree.name, data)

    def encode_arguments(self, values: Sequence[object], annotations: Sequence[Any]) -> Encoded:
        """
        Encode arguments together, each with the name of its type.

        Raises:
            SerializationError: One of them is not of its annotated type, or cannot be stored.
        """
        data = self._arguments_text(values, annotations)
        self._check_size(data, ARGUMENTS)
        return Encoded(ARGUMENTS, data)

    def _arguments_text(self, values: Sequence[object], annotations: Sequence[Any]) -> bytes:
        items: list[JSON] = []
        for index, (value, annotation) in enumerate(zip(values, annotations, strict=True)):
            try:
                plan = self._plan(annotation)
                tree = self._encode(value, plan)
            except SerializationError as error:
                raise SerializationError(problem=f"argument {index + 1}: {error.problem}") from error
            name = self._json_names[type(value)] if plan.tree is ANY else plan.shape.name
            items.append({"type": name, "value": tree})
        return _text(items)

    def _encoded(self, value: object, plan: _Plan, data: bytes) -> Encoded:
        name = self._json_names[type(value)] if plan.tree is ANY else plan.shape.name
        self._check_size(data, name)
        return Encoded(name, data)

    def decode_arguments(self, encoded: Encoded, annotations_for: Callable[[int], Sequence[Any]]) -> tuple[Any, ...]:
        """
        Return new arguments, equal to those that were encoded; the caller's parameters may have defaults for more.

        Args:
            encoded: What `encode_arguments` gave.
            annotations_for: Given how many arguments are recorded, returns as many annotations.

        Raises:
            TypeMismatchError: One was recorded as a type that cannot be read as the annotated one, or there are more
                of them than annotations.
        """
        items: Any = self._tree(encoded, ARGUMENTS)
        if encoded.type != ARGUMENTS:
            raise TypeMismatchError(expected=ARGUMENTS, found=encoded.type)
        annotations = annotations_for(len(items))
        if len(annotations) < len(items):
            expected, found = f"{len(annotations)} arguments", f"{len(items)} arguments"
            raise TypeMismatchError(expected=expected, found=found)
        values = []
        for index, (item, annotation) in enumerate(zip(items, annotations, strict=False)):
            try:
                plan = self._plan_to_read(item["type"], annotation)
                values.append(self._decode(item["type"], item["value"], plan))
            except TypeMismatchError as error:
                place = f"argument {index + 1}"
                error.problem = f"{place}: {error.problem}" if error.problem else place
                raise
        return tuple(values)

    def same_arguments(
        self, recorded: Encoded, given: Encoded, annotations_for: Callable[[int], Sequence[Any]]
    ) -> bool:
        """
        Tell whether arguments are those that were recorded, maybe under the types of earlier code.

        The order of dicts and sets does not matter. What cannot be read by today's annotations is different.

        Args:
            recorded: What `encode_arguments` gave, now or before the code changed.
            given: What `encode_arguments` gave by the annotations of today.
            annotations_for: As for `decode_arguments`.
        """
        if recorded == given:
            return True
        try:
            if recorded.type == given.type and canonical(recorded.data) == canonical(given.data):
                return True
            return self._comparable(recorded, annotations_for) == self._comparable(given, annotations_for)
        except (TypeMismatchError, SerializationError, ValueError):
            return False

    def _comparable(self, encoded: Encoded, annotations_for: Callable[[int], Sequence[Any]]) -> bytes:
        """Return a text that equal arguments share, whatever they were recorded as and in whatever order."""
        values = self.decode_arguments(encoded, annotations_for)
        annotations = annotations_for(len(values))[: len(values)]
        self._shapes.is_sorting = True
        try:
            return canonical(self._arguments_text(values, annotations))
        finally:
            self._shapes.is_sorting = False

    def _plan(self, annotation: Any) -> _Plan:
        try:
            return self._plans[annotation]
        except KeyError:
            plan = self._make_plan(annotation)
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            self._plans[annotation] = plan
            return plan
        except TypeError:
            # It has no hash: Annotated[int, []], for one.
            return self._make_plan(annotation)

    def _make_plan(self, annotation: Any) -> _Plan:
        try:
            tree = self._shapes.reader.read(annotation)
            return _Plan(tree, self._shapes.shape(tree), plain_type(tree))
        except RecursionError:
            raise SerializationError(problem=f"the annotation {TOO_DEEP}") from None
        except SerializationError:
            raise
        except Exception as error:
            # What an annotation is made of is code of the user's, and of libraries that know no better.
            problem = (
                f"the annotation {_shown(annotation)} cannot be read ({type(error).__name__}: {error}); mend it, or "
                f"annotate with a type that can be stored"
            )
            raise SerializationError(problem=problem) from error

    def _plan_to_read(self, recorded: str, annotation: Any) -> _Plan:
        try:
            return self._plans[annotation]
        except (KeyError, TypeError):
            pass
        try:
            return self._plan(annotation)
        except SerializationError as error:
            raise TypeMismatchError(expected=_shown(annotation), found=recorded, problem=error.problem) from error

    def _encode(self, value: Any, plan: _Plan) -> JSON:
        try:
            return plan.shape.encode(value)
        except UnfitError as problem:
            text = str(problem)
        except RecursionError:
            text = f"it {TOO_DEEP}"
        except Exception as error:
            # A property, a descriptor or another piece of the user's class.
            text = f"reading it raised {type(error).__name__}: {error}"
            raise SerializationError(problem=_refusal(plan, text)) from error
        raise SerializationError(problem=_refusal(plan, text))

    def _check_size(self, data: bytes, name: str) -> None:
        if len(data) > self._max_value_bytes:
            raise _TooLargeError(
                problem=(
                    f"the value of type {name} is {len(data)} bytes long when encoded, more than max_value_bytes, "
                    f"which is {self._max_value_bytes}; store a reference to it, or raise the limit"
                )
            )

    def _tree(self, encoded: Encoded, expected: str) -> JSON:
        try:
            return loads(encoded.data)
        except ValueError as error:
            raise TypeMismatchError(expected=expected, found=encoded.type, problem=str(error)) from error

    def _decode(self, recorded: str, tree: JSON, plan: _Plan) -> Any:
        shape: Shape | None = plan.shape
        if recorded != plan.shape.name:
            shape = self._shapes.find(recorded, plan.tree)
        expected = plan.tree.name
        if shape is None:
            raise TypeMismatchError(expected=expected, found=recorded)
        try:
            return shape.decode(tree)
        except UnfitError as problem:
            raise TypeMismatchError(expected=expected, found=recorded, problem=str(problem)) from problem
        except RecursionError:
            raise TypeMismatchError(expected=expected, found=recorded, problem=f"it {TOO_DEEP}") from None
        except Exception as error:
            # A default, a hash or an __eq__ of the user's classes.
            text = f"making it raised {type(error).__name__}: {error}"
            raise TypeMismatchError(expected=expected, found=recorded, problem=text) from error


def _text(tree: JSON) -> bytes:
    try:
        return dumps_finite(tree)
    except ValueError as error:
        # A key of a TypedDict, or the name of an enum's member: any other text has a form that keeps it.
        raise SerializationError(problem=f"a value cannot be stored: {error}; rename it") from error


def _shown(annotation: Any) -> str:
    try:
        return str(annotation)
    except RecursionError:
        return "a type nested too deeply"
    except Exception as error:  # noqa: BLE001 - the user's metaclass
        return f"<a type whose text raised {type(error).__name__}>"


def _refusal(plan: _Plan, text: str) -> str:
    if plan.tree is ANY:
        return f"a value cannot be stored: {text}; annotate the function with the value's type, or pass returns="
    return f"a value cannot be stored as {plan.tree.name}: {text}; return what the annotation says, or change it"
