"""
Keeps what a test and its fakes hold at a moment, so that a process can die then though it went on to its end.

The objects stay the same, since workflows refer to them; only what they hold is taken down and brought back.
"""

from __future__ import annotations

import copy
import enum
from collections.abc import Collection, Iterable, Mapping, MutableMapping, MutableSequence, MutableSet
from contextlib import suppress
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import attrs

from .._definition import Workflow
from .._suspend_point import SuspendPoint
from ._outside import Restorable

#: What is what it is: nothing that a workflow does changes it.
_FIXED = (type, ModuleType, FunctionType, MethodType, BuiltinFunctionType, enum.Enum, Workflow, SuspendPoint)
_MISSING: Any = object()


@attrs.frozen
class Kept:
    """
    What was held at a moment.
    """

    attributes: Mapping[str, object]
    "The attributes of the owner."
    contents: tuple[tuple[object, object], ...]
    "Objects, each with what it held."


class Keeper:
    """
    Takes down and brings back the attributes of one object, and what they and other objects hold.
    """

    def __init__(self, owner: object, *, without: Collection[str], others: Iterable[object]) -> None:
        """
        Keep an owner's attributes.

        Args:
            owner: Whose attributes.
            without: Those that are none of the user's.
            others: More objects whose contents are kept.
        """
        self._owner = owner
        self._without = frozenset(without)
        self._others = tuple(others)

    def take_down(self) -> Kept:
        """
        Return what is held now, as something that does not change any more.
        """
        attributes = {name: value for name, value in vars(self._owner).items() if name not in self._without}
        kept = {id(one): one for one in (*attributes.values(), *self._others) if is_keepable(one)}
        # Where one refers to another, to the owner, or to what is fixed, it goes on to refer to that, not to a copy.
        memo: dict[int, Any] = {**kept, id(self._owner): self._owner}
        contents: list[tuple[object, object]] = []
        for one in kept.values():
            # Whatever cannot be copied is left as it is.
            with suppress(Exception):
                contents.append((one, _content_of(one, memo)))
        return Kept(attributes, tuple(contents))

    def bring_back(self, state: Kept | None) -> None:
        """
        Hold again what was taken down; None is what is held now.
        """
        if state is None:
            return
        held = vars(self._owner)
        for name in [name for name in held if name not in self._without and name not in state.attributes]:
            del held[name]
        held.update(state.attributes)
        kept = {id(one): one for one, _ in state.contents}
        for one, content in state.contents:
            if isinstance(one, Restorable):
                one.bring_back(content)
            else:
                # What is brought back once may be brought back again.
                _fill(one, copy.deepcopy(content, {**kept, id(self._owner): self._owner}))


def is_keepable(one: object) -> bool:
    """
    Tell whether what an object holds can change, and be taken down.
    """
    if isinstance(one, _FIXED):
        return False
    known = isinstance(one, (Restorable, MutableMapping, MutableSequence, MutableSet))
    return known or hasattr(one, "__dict__") or bool(_slots_of(one))


def _content_of(one: Any, memo: dict[int, Any]) -> object:
    """Return what an object holds. What is copied refers to what *memo* has, not to copies of it."""
    if isinstance(one, Restorable):
        return one.take_down()
    if isinstance(one, MutableMapping):
        return copy.deepcopy(dict(one), memo)
    if isinstance(one, (MutableSequence, MutableSet)):
        return copy.deepcopy(list(one), memo)
    return copy.deepcopy({name: getattr(one, name) for name in _names_of(one)}, memo)


def _fill(one: Any, content: Any) -> None:
    if isinstance(one, MutableSequence):
        one[:] = content
    elif isinstance(one, MutableMapping):
        one.clear()
        one.update(content)
    elif isinstance(one, MutableSet):
        one.clear()
        one |= set(content)
    else:
        for name in _names_of(one):
            if name not in content:
                object.__delattr__(one, name)
        for name, value in content.items():
            if getattr(one, name, _MISSING) is not value:
                object.__setattr__(one, name, value)


def _names_of(one: object) -> list[str]:
    """Return the names of the attributes that an object has of its own."""
    own = [name for name in _slots_of(one) if hasattr(one, name)]
    return [*own, *getattr(one, "__dict__", ())]


def _slots_of(one: object) -> list[str]:
    found: dict[str, None] = {}
    for cls in type(one).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in {"__dict__", "__weakref__"}:
                found[name] = None
    return list(found)
