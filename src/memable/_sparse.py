"""
Dicts that stay empty in most of the objects that have them: until something is put in, all of them are one.

An empty dict takes 64 bytes and an empty set 216, which the garbage collector looks at again and again. A run and its
journal would have thirty of them. What would be a set elsewhere is a dict without values here.
"""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class _Nothing(dict[Any, Any]):
    """A dict that refuses to be filled. Taking something out of it does nothing, as with any empty one."""

    __slots__ = ()

    def __setitem__(self, key: Any, value: Any) -> NoReturn:
        raise TypeError("this dict is everybody's; use put")

    def setdefault(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("this dict is everybody's; use put")

    def update(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("this dict is everybody's; use put")

    def __ior__(self, _other: Any) -> NoReturn:  # type: ignore[misc]
        raise TypeError("this dict is everybody's; use put")


#: What such a dict is at first.
NOTHING: dict[Any, Any] = _Nothing()


def put(entries: dict[K, V], key: K, value: V) -> dict[K, V]:
    """
    Return *entries* with one more: the same dict, unless it is ``NOTHING``.
    """
    if entries is NOTHING:
        return {key: value}
    entries[key] = value
    return entries
