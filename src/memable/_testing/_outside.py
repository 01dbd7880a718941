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


def take_all_down(objects: Iterable[object], option: str) -> tuple[tuple[object, object], ...]:
    """
    Return objects, each with what it holds.

    Args:
        objects: The objects.
        option: What they were given as.

    Raises:
        TypeError: One cannot be taken down, or what it holds cannot be copied.
    """
    kept: list[tuple[object, object]] = []
    for one in objects:
        known = isinstance(one, (Restorable, MutableMapping, MutableSequence, MutableSet)) or _has_attributes(one)
        if not known or isinstance(one, type):
            raise TypeError(
                f"{option}= takes Effects, dicts, lists, sets and objects with attributes, whose state can be taken "
                f"down and brought back, not {one!r}"
            )
        try:
            kept.append((one, take_down(one)))
        except Exception as exc:
            raise TypeError(f"{option}= cannot copy what {one!r} holds: {type(exc).__name__}: {exc}") from exc
    return tuple(kept)


def take_down(one: object) -> object:
    """
    Return what an object holds: a deep copy, so that it does not change any more.
    """
    if isinstance(one, Restorable):
        return one.take_down()
    if isinstance(one, (MutableMapping, MutableSequence, MutableSet)):
        return copy.deepcopy(one)
    return copy.deepcopy(_attributes_of(one))


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
        # Not by a slice: a deque has none.
        one.clear()
        one.extend(state)
        return
    if isinstance(one, MutableMapping):
        one.clear()
        one.update(state)
        return
    if isinstance(one, MutableSet):
        one.clear()
        one |= state
        return
    for name in _attributes_of(one).keys() - state.keys():
        object.__delattr__(one, name)
    for name, attribute in state.items():
        # A frozen object may have been given others all the same.
        object.__setattr__(one, name, attribute)


def _has_attributes(one: object) -> bool:
    return hasattr(one, "__dict__") or bool(_slots_of(one))


def _attributes_of(one: object) -> dict[str, Any]:
    """Return what an object's attributes hold, whether they are in a ``__dict__`` or in slots."""
    in_slots = {name: getattr(one, name) for name in _slots_of(one) if hasattr(one, name)}
    return {**getattr(one, "__dict__", {}), **in_slots}


def _slots_of(one: object) -> list[str]:
    found: list[str] = []
    for cls in type(one).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in {"__dict__", "__weakref__"}:
                # Python adds the name of the class to private ones.
                is_private = name.startswith("__") and not name.endswith("__")
                found.append(f"_{cls.__name__.lstrip('_')}{name}" if is_private else name)
    return found
