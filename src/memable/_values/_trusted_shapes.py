"""
The shape of types that the user's converter has hooks for.

Rules: the hooks are trusted with what they do, so long as the value is an instance of the class that was annotated,
and what stands for it is a plain tree of JSON's own types. A subclass is stored only if the hooks tell it apart, that
is: give it back as one. A failure of a hook is a value or a record that does not fit.
"""

from __future__ import annotations

from typing import Any

from .._json import JSON, dumps, loads
from .._qualified_name import qualified_name
from ._collection_shapes import plain
from ._shape import Shape, UnfitError, refusal
from ._user_hooks import Structure, Unstructure


def trusted_shape(
    name: str, annotation: Any, unstructure: Unstructure, structure: Structure, *, inherited: bool
) -> Shape:
    """
    Return the shape that two hooks of the user's make.

    Args:
        name: The recorded name of the type.
        annotation: The type.
        unstructure: Makes a plain tree of a value.
        structure: Makes a value of a plain tree.
        inherited: Whether a hook is one for a base class, which may know nothing of this one.
    """
    cls = annotation if _can_be_checked(annotation) else None

    def encode(value: Any) -> JSON:
        if cls is not None and not isinstance(value, cls):
            raise refusal(value, name)
        try:
            form = unstructure(value)
        except Exception as error:
            raise _failure(name, "unstructure", error) from error
        try:
            plain(form)
        except UnfitError as problem:
            raise UnfitError(f"the converter's hook for {name} gave what is no JSON: {problem}") from None
        if cls is not None and (inherited or type(value) is not cls):
            given_back = type(decode(loads(dumps(form))))
            if given_back is not type(value):
                raise UnfitError(
                    f"the converter's hooks for {name} give a {qualified_name(type(value))} back as a "
                    f"{qualified_name(given_back)}; tell them apart, cattrs.strategies.include_subclasses does"
                )
        return form  # type: ignore[no-any-return]  # looked through above

    def decode(form: JSON) -> Any:
        try:
            value = structure(form, annotation)
        except Exception as error:
            raise _failure(name, "structure", error) from error
        if cls is not None and not isinstance(value, cls):
            raise UnfitError(f"the converter's hook for {name} gave a {qualified_name(type(value))}")
        return value

    return Shape(name, encode, decode, frozenset([] if cls is None else [cls]), takes_others=True)


def _can_be_checked(annotation: Any) -> bool:
    if not isinstance(annotation, type):
        return False
    try:
        isinstance(None, annotation)
    except TypeError:
        # A protocol that says nothing at run time.
        return False
    return True


def _failure(name: str, direction: str, error: Exception) -> UnfitError:
    return UnfitError(f"the converter's {direction} hook for {name} raised {type(error).__name__}: {error}")
