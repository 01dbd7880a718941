"""
The shape of a value whose type is not told from the outside: a member of a union, a field of a class.

Rules: a str, int, finite float, bool or None stands for itself; anything else is an object of one key, ``$`` with the
name of its type, and its form. Among several members that take instances of a class, the first by name that stores the
value unchanged is chosen, and only then one that stores an int as a float: so ``1`` stays an int in ``int | float``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .._json import JSON
from ._shape import Shape, UnfitError, misfit, refusal

_TAG = "$"


def tagged_shape(name: str, exact: Iterable[Shape], lenient: Iterable[Shape], find: Callable[[str], Shape]) -> Shape:
    """
    Return the shape of values of any of some types.

    Args:
        name: Of the type as a whole.
        exact: The shapes of the members that store each value as it is, ordered by name.
        lenient: As the shapes in *exact*, but an int may be stored as a float.
        find: Gives the shape by which a recorded type's name is to be read; raises `UnfitError`.
    """
    exact, lenient = tuple(exact), tuple(lenient)
    attempts = {cls: _candidates(cls, exact, lenient) for shape in exact for cls in shape.types}
    by_scalar: dict[type, list[Shape]] = {}
    for shape in exact:
        for cls in shape.bare:
            by_scalar.setdefault(cls, []).append(shape)
    by_name = {f"{_TAG}{shape.name}": shape for shape in exact}

    def encode(value: Any) -> JSON:
        cls = type(value)
        problem: UnfitError | None = None
        for shape in attempts.get(cls) or _candidates(cls, exact, lenient):
            try:
                form = shape.encode(value)
            except UnfitError as failure:
                problem = problem or failure
            else:
                return form if type(form) in shape.bare else {_TAG + shape.name: form}
        if problem is not None:
            raise problem
        raise refusal(value, name)

    def decode(tree: JSON) -> Any:
        if type(tree) is dict and len(tree) == 1:
            ((tag, form),) = tree.items()
            if tag.startswith(_TAG):
                return (by_name.get(tag) or find(tag[1:])).decode(form)
        problem: UnfitError | None = None
        for shape in by_scalar.get(type(tree), ()):
            try:
                return shape.decode(tree)
            except UnfitError as failure:
                problem = problem or failure
        if problem is not None:
            raise problem
        raise misfit(tree, name)

    return Shape(name, encode, decode, frozenset(attempts), frozenset(by_scalar), takes_others=True)


def _candidates(cls: type, exact: tuple[Shape, ...], lenient: tuple[Shape, ...]) -> tuple[Shape, ...]:
    """Return which shapes to try, in this order, with a direct instance of *cls*."""
    rounds = (exact,) if exact == lenient else (exact, lenient)
    found = [shape for shapes in rounds for shape in shapes if cls in shape.types]
    return (*found, *(shape for shapes in rounds for shape in shapes if shape.takes_others and shape not in found))
