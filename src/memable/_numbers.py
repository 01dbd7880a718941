"""
What counts as a number when a user gives one.
"""

from __future__ import annotations

from typing import TypeGuard


def is_number(value: object) -> TypeGuard[float]:
    """
    Tell whether *value* is an ``int`` or a ``float``; a ``bool`` is not meant where a number is asked for.
    """
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_count(value: object, *, least: int = 0) -> TypeGuard[int]:
    """
    Tell whether *value* is an ``int``, and at least *least*.
    """
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
