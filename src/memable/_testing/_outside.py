"""
What stays when a process dies, beside its store: the state of objects that stand for the world outside.

The objects stay the same, since workflows refer to them; only what they hold is taken down and brought back.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, MutableMapping, MutableSequence, MutableSet
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Restorable(Protocol):
    """
    An object that takes its own state down.
    """

    def take_down(self) -> object:
        """
        Return what it holds, as something that does not change any more.
        """
        ...

    def bring_back(self, state: Any) -> None:
        """
        Hold again what was taken down.
        """
        ...


def check_outside(objects: Iterable[object]) -> tuple[object, ...]:
    """
    Return the objects, all of which can be taken down.

    Raises:
        TypeError: One cannot.
    """
    kept = tuple(objects)
    for one in kept:
        known = isinstance(one, (Restorable, MutableMapping, MutableSequence, MutableSet)) or hasattr(one, "__dict__")
        if not known or isinstance(one, type):
            raise TypeError(
                f"outside= takes Effects, dicts, lists, sets and objects with attributes, whose state can be taken "
                f"down and brought back, not {one!r}"
            )
    return kept


def take_down(one: object) -> object:
    """
    Return what an object holds: a deep copy, so that it does not change any more.
    """
    if isinstance(one, Restorable):
        return one.take_down()
    if isinstance(one, (MutableMapping, MutableSequence, MutableSet)):
        return copy.deepcopy(one)
    return copy.deepcopy(vars(one))


def bring_back(one: Any, state: Any) -> None:
    """
    Let an object hold again what was taken down.
    """
    if isinstance(one, Restorable):
        one.bring_back(state)
        return
    # What is brought back once may be brought back again.
    state = copy.deepcopy(state)
    if isinstance(one, MutableSequence):
        one[:] = state
        return
    target = one if isinstance(one, (MutableMapping, MutableSet)) else vars(one)
    target.clear()
    if isinstance(target, MutableSet):
        target |= state
    else:
        target.update(state)
