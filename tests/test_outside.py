"""
What stays when a process dies: whatever objects stand for it, their state is taken down and brought back.
"""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from memable._testing._outside import bring_back, take_all_down, take_down


@attrs.define
class Ledger:
    """
    Has slots, as attrs makes them.
    """

    entries: list[str] = attrs.field(factory=list)


@attrs.define
class Bank(Ledger):
    """
    Has slots of its own beside those that it inherits.
    """

    balance: int = 0


class Private:
    """
    Has a slot of a name that Python changes.
    """

    __slots__ = ("__entries", "late")

    def __init__(self) -> None:
        self.__entries = ["opening"]

    def add(self, name: str) -> None:
        self.__entries.append(name)
        self.late = name

    def __repr__(self) -> str:
        return f"{self.__entries} {hasattr(self, 'late')}"


class Plain:
    """
    Has a dict.
    """

    def __init__(self) -> None:
        self.entries = ["opening"]


def change(one: Any) -> None:
    match one:
        case dict():
            one["more"] = [1]
        case list():
            one.append("more")
        case set():
            one.add("more")
        case Private():
            one.add("more")
        case _:
            one.entries.append("more")
            one.balance = 7


@pytest.mark.parametrize("make", [dict, list, set, Plain, Bank, Private])
def test_outside_is_brought_back_again_and_again(make: type[Any]):
    """
    What was taken down stays as it was, however often it is brought back and changed.
    """
    ((one, _),) = take_all_down([make()], "outside")
    kept = take_down(one)
    before = repr(vars(one)) if make is Plain else repr(one)
    for _ in range(2):
        change(one)
        assert (repr(vars(one)) if make is Plain else repr(one)) != before
        bring_back(one, kept)
        assert (repr(vars(one)) if make is Plain else repr(one)) == before


@pytest.mark.parametrize("one", [5, "text", object(), Bank, (1, 2)])
def test_outside_refuses_what_holds_nothing(one: object):
    """
    What cannot hold anything else later is refused.
    """
    with pytest.raises(TypeError, match="outside= takes Effects, dicts, lists, sets and objects with attributes"):
        take_all_down([one], "outside")
