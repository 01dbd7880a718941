"""
What the effects of all workers together prove: how often steps ran, and whether any ran that must not.

Decided here, from lines alone: a step that was acknowledged and ran after that breaks the promise.
"""

from __future__ import annotations

from collections import Counter
from typing import assert_never

import attrs

from ._counting import Report
from ._effects import Effect, Kind


@attrs.define
class Life:
    """
    What one worker did, from its start to its end.
    """

    number: int
    "Counts the workers, from 1."
    recovered: int = 0
    "So many steps were acknowledged without running: their memos came from the store."
    ran_first: int = 0
    "So many steps ran that no worker ran before."
    ran_again: int = 0
    "So many steps ran that an earlier worker ran before."
    was_killed: bool = False
    "Whether the demo killed it, rather than that it came to an end."
    _ran: set[str] = attrs.field(factory=set[str])

    def knows(self, key: str) -> bool:
        """
        Return whether the step ran in this life.
        """
        return key in self._ran

    def note_run(self, key: str, *, again: bool) -> None:
        """
        Add a call of the step's function.
        """
        self._ran.add(key)
        if again:
            self.ran_again += 1
        else:
            self.ran_first += 1


@attrs.define
class Evidence:
    """
    Folds effects, in the order in which they happened.
    """

    lives: list[Life] = attrs.field(factory=list[Life])
    executions: Counter[str] = attrs.field(factory=Counter[str])
    "How often each step ran."
    acknowledged: set[str] = attrs.field(factory=set[str])
    broken: Counter[str] = attrs.field(factory=Counter[str])
    "How often each step ran after it had been acknowledged."

    def begin_life(self) -> Life:
        """
        Begin with the next worker; the one before is dead.
        """
        life = Life(len(self.lives) + 1)
        self.lives.append(life)
        return life

    def add(self, effect: Effect) -> None:
        """
        Add what the present worker did.
        """
        life, key = self.lives[-1], effect.key
        match effect.kind:
            case Kind.RAN:
                life.note_run(key, again=key in self.executions)
                self.executions[key] += 1
                if key in self.acknowledged:
                    self.broken[key] += 1
            case Kind.ACKNOWLEDGED:
                if not life.knows(key):
                    life.recovered += 1
                self.acknowledged.add(key)
            case _:
                assert_never(effect.kind)

    @property
    def kills(self) -> int:
        """
        How many workers were killed.
        """
        return sum(life.was_killed for life in self.lives)

    @property
    def recovered(self) -> int:
        """
        How many memos came from the store, in all lives together.
        """
        return sum(life.recovered for life in self.lives)


def find_problems(evidence: Evidence, keys: frozenset[str], report: Report, expected: Report) -> list[str]:
    """
    Return what is wrong with a job that has ended, in sentences; nothing if all is right.

    Args:
        evidence: What its workers did.
        keys: The keys of all its steps.
        report: What it returned.
        expected: What the straight computation returned.
    """
    problems: list[str] = []
    if evidence.broken:
        key, count = next(iter(evidence.broken.items()))
        problems.append(
            f"{len(evidence.broken)} acknowledged steps ran again, the first of them {key!r} ({count} times more)"
        )
    for what, odd in (
        ("were never acknowledged", keys - evidence.acknowledged),
        ("were acknowledged without ever running", evidence.acknowledged - set(evidence.executions)),
        ("are for no file", (evidence.acknowledged | set(evidence.executions)) - keys),
    ):
        if odd:
            problems.append(f"{len(odd)} steps {what}, one of them {min(odd)!r}")
    found, straight = attrs.asdict(report, recurse=False), attrs.asdict(expected, recurse=False)
    problems += [
        f"the report's {name!r} is {value!r}, the straight computation's {straight[name]!r}"
        for name, value in found.items()
        if value != straight[name]
    ]
    return problems
