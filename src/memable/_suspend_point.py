"""
What workflow authors write for a typed wait: ``SuspendPoint``.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar, overload

from ._keys import check_key

T = TypeVar("T")


class SuspendPoint(Generic[T]):
    """
    A named, typed place where an instance waits for a signal. Made once, used by the body and by who signals.

    Attributes:
        key: Names the wait within the instance.
        type: The type of the payload, by which it is stored and checked.
    """

    __slots__ = ("key", "type")

    @overload
    def __init__(self, key: str, type: type[T]) -> None: ...

    @overload
    def __init__(self, key: str, type: Any) -> None: ...

    def __init__(self, key: str, type: Any) -> None:  # noqa: A002 - what it is called for users
        """
        Name a place.

        Args:
            key: Names the wait within the instance, as a step's key does.
            type: The type of the payload: anything that a value of a step may be annotated with.

        Raises:
            InvalidKeyError: The key breaks the rule for keys.
        """
        self.key: str = check_key("suspend point", key)
        self.type: Any = type

    def __repr__(self) -> str:
        return f"memable.SuspendPoint({self.key!r}, {getattr(self.type, '__name__', self.type)})"
