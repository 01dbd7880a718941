"""
Recipes: in which order the process of a scenario dies, and where.

The moments at which a process could die are counted from 0 in each of its lives: before, within and after each durable
write, and after each effect. A recipe names one for each life but the last: ``"7,2"`` is to die at moment 7, and to die
again at moment 2 of the process that follows; ``"7s"`` is to be stopped in order at moment 7. A ``p`` in front lets
every wait unwind the body, as if there were too many to keep.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Self

import attrs

_STEP = re.compile(r"\s*([0-9]{1,9})(s?)\s*")


@attrs.frozen
class Crash:
    """
    How one life of the process ends.
    """

    moment: int = attrs.field(validator=[attrs.validators.instance_of(int), attrs.validators.ge(0)])
    "At which of the moments of its life, from 0. One that it does not have: the life is not cut short."
    is_stop: bool = False
    "Whether it does not die, but is stopped: the engine's block is cancelled, and left in order."

    def __str__(self) -> str:
        """
        Return it as part of a recipe.
        """
        return f"{self.moment}{'s' if self.is_stop else ''}"


def _as_tuple(crashes: Iterable[Crash]) -> tuple[Crash, ...]:
    return tuple(crashes)


@attrs.frozen
class CrashPlan:
    """
    How the lives of the process end, one after the other. The last one is not cut short.
    """

    crashes: tuple[Crash, ...] = attrs.field(default=(), converter=_as_tuple)
    passivates: bool = False
    "Whether every wait unwinds the body (``max_parked=0``)."

    def __str__(self) -> str:
        """
        Return the recipe, for ``only=`` of ``explore_crashes``.
        """
        return "p" * self.passivates + ",".join(str(crash) for crash in self.crashes)

    @classmethod
    def parse(cls, recipe: str) -> Self:
        """
        Return what a recipe says.

        Raises:
            ValueError: It is not one.
        """
        lives = recipe.strip()
        passivates, lives = lives.startswith("p"), lives.removeprefix("p")
        found = [_STEP.fullmatch(part) for part in lives.split(",")] if lives else []
        if not all(found):
            raise ValueError(f'a recipe is like "7", "7,2", "7s,2" or "p", not {recipe!r}')
        return cls(tuple(Crash(int(one[1]), bool(one[2])) for one in found if one is not None), passivates)

    def followed_by(self, crash: Crash) -> CrashPlan:
        """
        Return a plan of one life more.
        """
        return attrs.evolve(self, crashes=(*self.crashes, crash))


def as_plan(given: CrashPlan | str | Iterable[Crash]) -> CrashPlan:
    """
    Return a plan, whatever form it was given in.
    """
    if isinstance(given, CrashPlan):
        return given
    return CrashPlan.parse(given) if isinstance(given, str) else CrashPlan(given)
