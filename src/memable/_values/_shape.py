"""
A shape: how values of one type become plain trees and come back.

Rules: encoding refuses what is not of the type, decoding refuses what is not of the form; neither converts. What does
not fit raises `UnfitError`, which collects the way to the place on its way up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from .._json import JSON
from .._qualified_name import qualified_name

#: Deeper nesting would meet the interpreter's recursion limit sooner or later, depending on who calls.
MAX_NESTING = 128

TOO_DEEP = f"is nested more than {MAX_NESTING} levels deep, or contains itself; flatten it"


class UnfitError(Exception):
    """
    A value is not of its type, or a recorded form is not of the type that it is read as.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self._way: list[str] = []

    def at(self, place: str) -> UnfitError:
        """
        Add the *place* of what does not fit within what holds it, and return this exception to be raised again.
        """
        self._way.append(place)
        return self

    def __str__(self) -> str:
        way = "".join(reversed(self._way))
        return f"at {way}: {self.problem}" if way else self.problem


@attrs.frozen(eq=False)
class Shape:
    """
    Encodes and decodes the values of one type.
    """

    name: str
    "The type's recorded name."
    encode: Callable[[Any], JSON]
    "A value of the type to its form. Raises `UnfitError`."
    decode: Callable[[JSON], Any]
    "A form to a new, equal value. Raises `UnfitError`."
    types: frozenset[type] = frozenset()
    "The classes whose direct instances it may encode: for choosing among the members of a union."
    bare: frozenset[type] = frozenset()
    "The JSON scalars that stand for themselves where the type is not known from the outside."
    takes_others: bool = False
    "Whether it may also encode instances of classes not in ``types``."


def refusal(value: object, expected: str) -> UnfitError:
    """
    Return the error that *value* is not of the type named *expected*.
    """
    return UnfitError(f"expected {expected}, got {qualified_name(type(value))}")


def misfit(tree: object, expected: str) -> UnfitError:
    """
    Return the error that what is recorded is no form of the type named *expected*.
    """
    return UnfitError(f"expected {expected}, but what is recorded there is {_JSON_NAMES[type(tree)]}")


_JSON_NAMES: dict[type, str] = {
    type(None): "null",
    bool: "a JSON boolean",
    int: "a JSON integer",
    float: "a JSON float",
    str: "a JSON string",
    list: "a JSON array",
    dict: "a JSON object",
}
"What messages call the parts of a tree."
