"""
Dicts that stay empty in most of the objects that have them.
"""

from __future__ import annotations

import pytest

from memable._sparse import NOTHING, put


def test_put_fills_another_dict_than_nothing():
    """
    What is put into nothing makes a dict, and what is put into that goes there.
    """
    first = put(NOTHING, "a", 1)
    assert put(first, "b", 2) is first
    assert (first, NOTHING) == ({"a": 1, "b": 2}, {})


def test_nothing_cannot_be_filled():
    """
    The dict that all share refuses to be filled in any other way; to take something out of it does nothing.
    """
    with pytest.raises(TypeError, match="everybody's; use put"):
        NOTHING["a"] = 1
    with pytest.raises(TypeError, match="everybody's; use put"):
        NOTHING.setdefault("a", 1)
    with pytest.raises(TypeError, match="everybody's; use put"):
        NOTHING.update(a=1)
    with pytest.raises(TypeError, match="everybody's; use put"):
        nothing = NOTHING
        nothing |= {"a": 1}
    assert NOTHING.pop("a", None) is None
    NOTHING.clear()
    assert NOTHING == {}
