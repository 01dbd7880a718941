"""
``memable history``: what happened to one instance, as bars on a common scale of time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import attrs
from rich.text import Text

from .._history import HistoryEntry, history_of
from .._json import dumps
from .._keys import SEPARATOR
from .._store._snapshot import StoreSnapshot
from ._console import Output, joined, status_text, stored
from ._escaping import cut
from ._grid import Column, make_table
from ._moments import Moments, tell_duration
from ._reading import find, load, telling_damage
from ._timeline import Scale, Span, make_scale

#: Of more entries than this, the first and the last half are shown, unless all are asked for.
MAX_ENTRIES = 1000
#: Unless all of it is asked for, what came of an entry is cut to so many characters.
OUTCOME_CHARS = 200
#: The width of the bars where no terminal gives one.
_PIPED_BAR_CELLS = 40
_MIN_BAR_CELLS = 12
#: On a narrower terminal, names need more of the width.
_WIDE_CELLS = 110

_WORK = frozenset(("step", "compensation"))
_WAITS = frozenset(("suspend", "sleep", "call"))


@attrs.frozen
class _Glyph:
    """What a cell of a bar is drawn with."""

    unicode: str
    ascii: str
    style: str
    meaning: str


_WORKED = _Glyph("█", "#", "green", "executed")
_FAILED = _Glyph("▓", "x", "red", "failed")
_WAITED = _Glyph("░", ".", "yellow", "waited")
_CONTAINED = _Glyph("─", "-", "blue", "scope or child")
_BACKED_OFF = _Glyph("·", ":", "yellow", "before another attempt")
_MOMENT = _Glyph("◆", "*", "cyan", "moment")
_CRASHED = _Glyph("\N{MULTIPLICATION SIGN}", "X", "bold red", "ran again after a crash")
_NOT_ENDED = _Glyph("▶", ">", "bold yellow", "has not ended")
_BREAK = _Glyph("\N{BOX DRAWINGS LIGHT DIAGONAL UPPER RIGHT TO LOWER LEFT}", "/", "dim", "")

_GLYPHS = (_WORKED, _FAILED, _WAITED, _CONTAINED, _BACKED_OFF, _MOMENT, _CRASHED, _NOT_ENDED)


def print_history(
    output: Output, snapshot: StoreSnapshot, name: tuple[str, str], moments: Moments, *, is_full: bool
) -> None:
    """
    Print what happened to the instance of that workflow and id.
    """
    header = find(snapshot, *name)
    records = load(snapshot, header)
    with telling_damage(snapshot, header):
        entries = history_of(records, {})
    now = None if header.status.is_terminal else max(header.updated_at, moments.now.timestamp())
    shown = entries
    rows: list[HistoryEntry | _Gap] = [*entries]
    if len(entries) > MAX_ENTRIES and not is_full:
        first, last = entries[: MAX_ENTRIES // 2], entries[-MAX_ENTRIES // 2 :]
        shown = [*first, *last]
        rows = [*first, _Gap(len(entries) - len(shown)), *last]
    chart = _Chart.of(shown, now, _bar_cells(output), has_unicode=output.has_unicode)
    columns = _columns(chart, None if is_full else OUTCOME_CHARS)
    title = [stored(SEPARATOR.join(name), "bold"), status_text(header.status)]
    began_at = shown[0].started_at
    assert began_at is not None
    output.print(joined(title), Text(f"began {moments.tell_both(began_at)}, {moments.zone}", "dim"), Text())
    output.print(make_table(output, columns, rows), Text())
    output.print(*chart.legend())


@attrs.frozen
class _Gap:
    """Stands for entries that are not shown."""

    count: int


def _bar_cells(output: Output) -> int:
    if not output.is_terminal:
        return _PIPED_BAR_CELLS
    return max(_MIN_BAR_CELLS, output.width * 2 // 5 if output.width >= _WIDE_CELLS else output.width // 4)


def _columns(chart: _Chart, chars: int | None) -> list[Column[HistoryEntry | _Gap]]:
    def column(
        title: str | Text,
        tell: Callable[[HistoryEntry], str | Text],
        *,
        role: Literal["fixed", "name", "hint"] = "fixed",
        justify: Literal["left", "right"] = "left",
        drop: int | None = None,
    ) -> Column[HistoryEntry | _Gap]:
        """Return a column that says of a gap how long it is, where things are named, and nothing elsewhere."""

        def tell_all(row: HistoryEntry | _Gap) -> Text:
            if isinstance(row, HistoryEntry):
                return joined([tell(row)])
            return Text(f"{row.count:,} left out; --full shows all" if role == "name" else "", "dim")

        return Column(joined([title]), tell_all, role, justify, drop)

    return [
        column("at", lambda entry: f"+{tell_duration(chart.start_of(entry) - chart.start)}", justify="right", drop=3),
        column("took", _duration, justify="right", drop=2),
        column("what", _what, role="name"),
        column(chart.heading(), chart.bar),
        column("outcome", lambda entry: _outcome(entry, chars), role="hint", drop=1),
    ]


def _duration(entry: HistoryEntry) -> str:
    if entry.started_at is None or entry.started_at == entry.ended_at:
        return ""
    return "..." if entry.ended_at is None else tell_duration((entry.ended_at - entry.started_at).total_seconds())


def _what(entry: HistoryEntry) -> Text:
    after_crash = entry.kind == "run" and isinstance(entry.value, dict) and entry.value.get("after_crash")
    pieces: list[str | Text] = [Text("crash, run", "bold red") if after_crash else entry.kind]
    if entry.key is not None:
        pieces.append(stored(entry.key, "bold"))
    if entry.attempt is not None and entry.attempt > 1:
        pieces.append(f"(attempt {entry.attempt})")
    return joined(pieces, " ")


def _outcome(entry: HistoryEntry, chars: int | None) -> Text:
    if entry.error is not None:
        return stored(cut(str(entry.error), chars), "red")
    if entry.ended_at is None:
        return Text("not ended", "yellow")
    if entry.kind == "run":
        return Text()
    if entry.kind == "resume" and isinstance(entry.value, dict):
        told = {name: value for name, value in entry.value.items() if value}
        return stored(cut(dumps(told).decode(), chars)) if told else Text()
    if entry.value is None and entry.value_type is None:
        return Text()
    return stored(cut(dumps(entry.value).decode("utf-8"), chars))


@attrs.frozen
class _Chart:
    """
    The bars, and what explains them.
    """

    scale: Scale
    start: float
    "When the first entry began."
    end: float
    "Where the scale ends."
    has_unicode: bool
    _failed_before: dict[tuple[str, int], float]
    "When the attempt before each attempt ended."
    _used: set[str] = attrs.field(factory=set[str])
    "Meanings of the glyphs that were drawn."

    @classmethod
    def of(cls, entries: Sequence[HistoryEntry], now: float | None, cells: int, *, has_unicode: bool) -> _Chart:
        """Return the chart of these entries, up to now if the instance has not ended."""
        times = [at.timestamp() for entry in entries for at in (entry.started_at, entry.ended_at) if at is not None]
        start, end = min(times), max(*times, *(() if now is None else (now,)), *times)
        spans = [Span(start, end), *_spans_of(entries, end)]
        failed_before = {
            (entry.key, entry.attempt + 1): entry.ended_at.timestamp()
            for entry in entries
            if entry.key is not None and entry.attempt is not None and entry.ended_at is not None
        }
        return cls(make_scale(spans, cells), start, end, has_unicode, failed_before)

    def start_of(self, entry: HistoryEntry) -> float:
        """Return when an entry began."""
        return self.start if entry.started_at is None else entry.started_at.timestamp()

    def bar(self, entry: HistoryEntry) -> Text:
        """Return the row of cells that stands for an entry."""
        cells: list[_Glyph | None] = [None] * self.scale.width
        start = self.start_of(entry)
        end = self.end if entry.ended_at is None else entry.ended_at.timestamp()
        before = self._failed_before.get((entry.key or "", entry.attempt or 0))
        if before is not None and before <= start:
            self._fill(cells, self.scale.cells_of(before, start), _BACKED_OFF)
        first, last = self.scale.cells_of(start, end)
        if entry.ended_at is None:
            # It reaches to the end of the scale, also where there is a break just before that.
            last = self.scale.cells_of(end, end)[0]
        self._fill(cells, (first, last), _glyph_of(entry))
        if entry.ended_at is None:
            self._fill(cells, (last, last), _NOT_ENDED)
        for cell in self.scale.break_cells:
            glyph = cells[cell]
            cells[cell] = _BREAK if glyph is None else attrs.evolve(_BREAK, style=glyph.style)
        return Text.assemble(*((" ", "") if glyph is None else (self._draw(glyph), glyph.style) for glyph in cells))

    def heading(self) -> Text:
        """Return what stands above the bars: how much time they span."""
        total = tell_duration(self.end - self.start)
        return Text("0" + total.rjust(self.scale.width - 1) if len(total) < self.scale.width else total)

    def legend(self) -> Iterable[Text]:
        """Return what the glyphs mean that were drawn, and what is not to scale."""
        used = [glyph for glyph in _GLYPHS if glyph.meaning in self._used]
        yield joined([Text.assemble((self._draw(glyph), glyph.style), f" {glyph.meaning}") for glyph in used])
        if self.scale.breaks:
            told = ", ".join(tell_duration(seconds) for seconds in self.scale.breaks)
            yield Text(f"{self._draw(_BREAK) * 2} left out, since nothing was executed: {told}")
        if self.scale.is_even:
            yield Text("The bars show the order only, not how long things took: too many long waits lie between them.")

    def _fill(self, cells: list[_Glyph | None], span: tuple[int, int], glyph: _Glyph) -> None:
        self._used.add(glyph.meaning)
        for cell in range(span[0], span[1] + 1):
            cells[cell] = glyph

    def _draw(self, glyph: _Glyph) -> str:
        return glyph.unicode if self.has_unicode else glyph.ascii


def _spans_of(entries: Iterable[HistoryEntry], end: float) -> Iterable[Span]:
    for entry in entries:
        if entry.started_at is not None:
            ended_at = end if entry.ended_at is None else entry.ended_at.timestamp()
            # An effect that never ended was cut short: nobody knows when.
            is_work = entry.kind in _WORK and entry.ended_at is not None
            yield Span(entry.started_at.timestamp(), ended_at, is_work)


def _glyph_of(entry: HistoryEntry) -> _Glyph:
    if entry.kind == "run" and isinstance(entry.value, dict) and entry.value.get("after_crash"):
        return _CRASHED
    if entry.kind in _WORK:
        return _WORKED if entry.error is None else _FAILED
    if entry.kind in _WAITS:
        return _WAITED
    if entry.kind in {"scope", "child", "fan_out"}:
        return _CONTAINED
    return _MOMENT
