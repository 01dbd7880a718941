"""
Walking exceptions: leaves of groups, and everything that an exception drags along.
"""

from __future__ import annotations

from memable._related import leaves_of, related_to


def test_leaves_of_a_plain_exception_is_itself():
    """
    An exception that is no group is its own only leaf.
    """
    exc = ValueError()
    assert list(leaves_of(exc)) == [exc]


def test_leaves_of_a_group_are_found_in_order_however_deep():
    """
    Leaves come in the order in which a reader meets them, from groups within groups as well.
    """
    a, b, c, d = ValueError("a"), KeyboardInterrupt("b"), OSError("c"), ValueError("d")
    group = BaseExceptionGroup("g", [a, BaseExceptionGroup("h", [b, ExceptionGroup("i", [c])]), d])
    assert list(leaves_of(group)) == [a, b, c, d]


def test_leaves_of_a_very_deep_group_are_found():
    """
    Depth is no limit: nothing here recurses.
    """
    leaf = ValueError()
    exc: Exception = leaf
    for _ in range(5_000):
        exc = ExceptionGroup("g", [exc])
    assert list(leaves_of(exc)) == [leaf]
    assert sum(1 for _ in related_to(exc)) == 5_001


def test_related_are_leaves_causes_and_contexts():
    """
    Related is what a group holds, what an exception was raised from, and what was being handled, hidden or not.
    """
    cause, context, hidden, leaf = OSError("cause"), OSError("context"), OSError("hidden"), ValueError("leaf")
    leaf.__cause__ = cause
    cause.__context__ = hidden
    cause.__suppress_context__ = True
    group = ExceptionGroup("g", [leaf])
    group.__context__ = context
    found = list(related_to(group))
    assert found[0] is group
    assert set(map(str, found[1:])) == {"cause", "context", "hidden", "leaf"}


def test_related_in_a_circle_are_found_once():
    """
    Exceptions that refer to each other in a circle are yielded once each.
    """
    a, b = ValueError("a"), ValueError("b")
    a.__context__, b.__context__ = b, a
    b.__cause__ = b
    group = ExceptionGroup("g", [a, b, a])
    a.__cause__ = group
    assert sorted(map(str, related_to(a))) == ["a", "b", "g (3 sub-exceptions)"]
