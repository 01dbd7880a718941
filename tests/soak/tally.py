"""
The account of a soak: what was done, what was reached when the power went, and what was found wrong.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs

from soak.states import PHASES, STATES

CALLS = (
    "check",
    "create",
    "list_names",
    "lock",
    "make_directory",
    "open",
    "read",
    "remove",
    "rename",
    "restrict_directory",
    "size",
    "sync",
    "sync_directory",
    "truncate",
    "write",
)
"Kinds of calls of the disk. Each of them must be hit by a long soak."


_CUTS = ("power cuts", "power cuts of open engines", "power cuts while an engine opens its store")
"What cuts a session short: those behind its end, and of a store that is only looked at, are counted by themselves."


@attrs.frozen
class Failed:
    """
    A story that went wrong.
    """

    number: int
    problem: str
    operations: tuple[str, ...]
    traceback: str


@attrs.define
class Tally:
    """
    Counts of one or more stories. Two of them can be added.
    """

    counts: Counter[str] = attrs.field(factory=Counter)
    "``stories``, ``sessions``, ``power cuts``, ..."
    states: Counter[str] = attrs.field(factory=Counter)
    "How many power cuts and kills of engines fell on each state."
    phases: Counter[str] = attrs.field(factory=Counter)
    "How many fell on what the store was doing."
    calls: Counter[str] = attrs.field(factory=Counter)
    "How many fell on each kind of call of the disk."
    failed: list[Failed] = attrs.field(factory=list)

    def add(self, other: Tally) -> None:
        """
        Take in the counts of other stories.
        """
        for mine, others in zip(self._counters(), other._counters(), strict=True):
            mine.update(others)
        self.failed.extend(other.failed)

    def _counters(self) -> tuple[Counter[str], ...]:
        return self.counts, self.states, self.phases, self.calls

    def missing(self) -> list[str]:
        """
        Return what was planned and never reached.
        """
        return [
            *(f"state {one!r}" for one in STATES if not self.states[one]),
            *(f"phase {one!r}" for one in PHASES if not self.phases[one]),
            *(f"call {one!r}" for one in CALLS if not self.calls[one]),
        ]

    def progress(self, seconds: float) -> str:
        """
        Return one line that tells how far it is.
        """
        count = self.counts
        return (
            f"{seconds / 60:5.1f} min: {count['stories']:,} stories, {count['power cuts']:,} power cuts "
            f"({count['power cuts'] / seconds:,.0f}/s), {count['kills']:,} kills, {count['faults']:,} faults, "
            f"{count['records acknowledged']:,} records acknowledged, {len(self.failed)} failed"
        )

    def summary(self, seconds: float) -> str:
        """
        Return all that was counted, for people.
        """
        rows = [*self.totals().items(), ("power cuts a second", round(self.counts["power cuts"] / seconds, 1))]
        parts = [_table("Totals", rows)]
        for title, planned, counter in (
            ("Cuts by state", STATES, self.states),
            ("Cuts by what the store did", PHASES, self.phases),
            ("Cuts by call of the disk", CALLS, self.calls),
        ):
            names = [*planned, *sorted(set(counter) - set(planned))]
            parts.append(_table(title, [(name, counter[name]) for name in names]))
        return "\n\n".join(parts)

    def totals(self) -> dict[str, int]:
        """
        Return the counts, those of what must not happen included.
        """
        first = ("stories", "sessions", *_CUTS, "kills", "faults", "openings alone", "records acknowledged")
        last = ("acknowledged records lost", "memoised steps re-executed")
        rest = sorted(set(self.counts) - {*first, *last})
        totals = {name: self.counts[name] for name in (*first, *rest, *last)}
        return totals | {"stories failed": len(self.failed)}

    def as_json(self, seconds: float, seed: int) -> dict[str, Any]:
        """
        Return all of it, for programs.
        """
        return {
            "seed": seed,
            "seconds": round(seconds, 1),
            "totals": self.totals(),
            "states": dict(self.states),
            "phases": dict(self.phases),
            "calls": dict(self.calls),
            "missing": self.missing(),
            "failed": [attrs.asdict(one) for one in self.failed],
        }


def _table(title: str, rows: list[tuple[str, Any]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"  {name:<{width}}  {count:>12,}" for name, count in rows)])
