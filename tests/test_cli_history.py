"""
``memable history``: what happened to an instance, on a scale of time that long waits do not squash.
"""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

import memable
from memable._cli._history_table import print_history
from memable._cli._moments import Moments, tell_duration
from memable._cli._reading import open_store
from memable._cli._timeline import BREAK_CELLS, Span, make_scale
from showing import WORKFLOWS, make_store, say, terminal

DAY_S = 86400.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A filled store, which no test changes."""
    return make_store(tmp_path_factory.mktemp("cli") / "store")


# JSON ----------------------------------------------------------------------------------------------------------------


async def history_of(store: Path, workflow: str, instance_id: str) -> list[memable.HistoryEntry]:
    async with memable.open_engine(store, workflows=WORKFLOWS, resume_on_start=False) as engine:
        return await engine.history(workflow, instance_id)


@pytest.mark.parametrize("name", ["order/o0", "order/o2", "hostile/h", "wrong/w", "child/o0/kid"])
def test_history_json_has_the_fields_of_the_entries(
    name: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """
    With ``--json`` each entry is an object with what ``engine.history`` tells of it, times in UTC.
    """
    expected = trio.run(history_of, shutil.copytree(store, tmp_path / "copy"), *name.split("/", 1))
    found = say(capsys, "history", store, name, "--json").objects
    assert len(found) == len(expected)
    for one, entry in zip(found, expected, strict=True):
        error = one.pop("error")
        assert one == {
            "kind": entry.kind,
            "key": entry.key,
            "attempt": entry.attempt,
            "started_at": text_of(entry.started_at),
            "ended_at": text_of(entry.ended_at),
            "value": entry.value,
            "value_type": entry.value_type,
        }
        assert (error is None) is (entry.error is None)
        if entry.error is not None:
            assert (error["type"], error["message"]) == (entry.error.type, entry.error.message)
            assert error["bases"] == list(entry.error.bases)


def text_of(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="microseconds").replace("+00:00", "Z")


# Tables --------------------------------------------------------------------------------------------------------------


def rows(store: Path, capsys: pytest.CaptureFixture[str], name: str) -> list[str]:
    said = say(capsys, "history", store, name)
    assert (said.status, said.err) == (0, "")
    return said.out.splitlines()


def row_of(lines: list[str], words: str) -> str:
    (found,) = (line for line in lines if f"  {words} " in f"{line} ")
    return found


def test_history_shows_waits_retries_and_the_end(store: Path, capsys: pytest.CaptureFixture[str]):
    """
    Each thing has a row, in order, with when it began, how long it took, its bar and what came of it.
    """
    lines = rows(store, capsys, "order/o2")
    assert lines[0] == "order/o2  failed"
    assert row_of(lines, "step fetch:v1").endswith("  4")
    assert "1 h  sleep nap" in row_of(lines, "sleep nap")
    assert "░░░░" in row_of(lines, "sleep nap")
    assert row_of(lines, "suspend approval:v1").endswith("  false")
    assert "▓" in row_of(lines, "step refuse")
    assert "ValueError: sold out" in row_of(lines, "step refuse")
    kinds = ["invoke", "step", "compensate", "call", "sleep", "suspend", "step", "compensating", "compensation"]
    found = [line[line.index("  ", line.index("+")) :].split() for line in lines if line.lstrip().startswith("+")]
    told = [next(word for word in words if word.isalpha() and len(word) > 3) for words in found]
    assert [kind for kind in told if kind != "run"] == [*kinds, "failed"]
    assert "█ executed" in lines[-1]


def test_history_shows_attempts_and_what_lies_between(store: Path, capsys: pytest.CaptureFixture[str]):
    """
    A retry is a row of its own, with the backoff before it drawn, and its number told.
    """
    lines = rows(store, capsys, "hostile/h")
    second = row_of(lines, "step fail (attempt 2)")
    assert "+1 min" in second
    assert "···" in second
    assert "▓" in second


async def test_history_shows_crashes_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], autojump_clock: object
):
    """
    A run after a crash, a resume and what was forgotten are marks between the steps.
    """
    tries: list[int] = []

    async def work() -> int:
        tries.append(1)
        if len(tries) == 1:
            shutil.copytree(tmp_path / "s", tmp_path / "crashed")
        if len(tries) < 3:
            raise ValueError("not now")
        return 7

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context) -> int:
        return await ctx.step("work", work)

    async with memable.open_engine(tmp_path / "s", workflows=[workflow]) as engine:
        await (await engine.invoke(workflow, instance_id="i")).wait()
    async with memable.open_engine(tmp_path / "crashed", workflows=[workflow]) as engine:
        await (await engine.get(workflow, "i")).wait()
        assert await (await engine.resume(workflow, "i")).result() == 7
        await (await engine.resume(workflow, "i", forget=["work"])).result()
    lines = rows(tmp_path / "crashed", capsys, "w/i")
    assert "\N{MULTIPLICATION SIGN}" in row_of(lines, "crash, run")
    assert any("resume" in line and '{"cleared":["work"]}' in line for line in lines)
    assert any("resume" in line and '{"forgotten":["work"]}' in line for line in lines)
    assert "\N{MULTIPLICATION SIGN} ran again after a crash" in lines[-1]


def test_history_shows_what_has_not_ended(store: Path, capsys: pytest.CaptureFixture[str]):
    """
    A wait that goes on is drawn up to now, and marked as not ended.
    """
    lines = rows(store, capsys, "order/o0")
    waiting = row_of(lines, "suspend approval:v1")
    assert "▶" in waiting
    assert waiting.endswith("not ended")


def test_history_breaks_the_scale_at_long_waits(tmp_path: Path):
    """
    A wait that has lasted for weeks leaves room for what was executed: the scale has a break, and says how long it is.
    """

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context) -> None:
        await ctx.step("work", trio.sleep, 5)
        await ctx.suspend(memable.SuspendPoint("ask", int))

    async def start() -> None:
        async with memable.open_engine(tmp_path / "s", workflows=[workflow]) as engine:
            await (await engine.invoke(workflow, instance_id="i")).wait()
            await trio.sleep(1)

    trio.run(start, clock=trio.testing.MockClock(autojump_threshold=0))
    output, shown = terminal(140)
    with open_store(tmp_path / "s") as snapshot:
        header = snapshot.index.find("w", "i")
        assert header is not None
        now = datetime.fromtimestamp(header.updated_at + 30 * DAY_S, UTC)
        print_history(output, snapshot, ("w", "i"), Moments(now), is_full=False)
    lines = [line.rstrip() for line in shown.getvalue().splitlines()]
    (worked,) = (line for line in lines if "step work" in line)
    (waited,) = (line for line in lines if "suspend ask" in line)
    slash = "\N{BOX DRAWINGS LIGHT DIAGONAL UPPER RIGHT TO LOWER LEFT}"
    assert worked.count("█") > 40
    assert f"░{slash}{slash}▶" in waited
    assert lines[-1] == f"{slash}{slash} left out, since nothing was executed: 30 d"


def test_history_leaves_out_the_middle(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """
    Of thousands of entries the first and last ones are shown, and all of them with ``--full`` and ``--json``.
    """

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context) -> None:
        async def work() -> None:
            pass

        for number in range(1500):
            await ctx.step(f"s{number}", work)

    async def start() -> None:
        async with memable.open_engine(memable.FileStore(tmp_path / "s", durability="os"), workflows=[workflow]) as e:
            await (await e.invoke(workflow, instance_id="i")).result()

    trio.run(start)
    lines = rows(tmp_path / "s", capsys, "w/i")
    assert any("502 left out; --full shows all" in line for line in lines)
    assert (any("step s0 " in line for line in lines), any("step s700 " in line for line in lines)) == (True, False)
    assert any("completed" in line for line in lines[1:])
    assert sum("step s" in line for line in say(capsys, "history", tmp_path / "s", "w/i", "--full").lines) == 1500
    assert len(say(capsys, "history", tmp_path / "s", "w/i", "--json").objects) == 1502


@pytest.mark.parametrize("width", [40, 60, 80, 140])
@pytest.mark.parametrize("name", [("order", "o0"), ("order", "o2"), ("hostile", "h"), ("each", "e")])
def test_history_fits_a_terminal(store: Path, name: tuple[str, str], width: int):
    """
    On a terminal no line is wider than it, and every row has its name and its bar.
    """
    output, shown = terminal(width)
    with open_store(store) as snapshot:
        print_history(output, snapshot, name, Moments(datetime.now(UTC)), is_full=False)
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert any("invoke" in line and "◆" in line for line in lines)


# The scale -----------------------------------------------------------------------------------------------------------


def bars(width: int, *spans: Span) -> list[str]:
    """Draw spans: work as #, waits as a dot, breaks as a slash."""
    scale = make_scale(spans, width)
    drawn: list[str] = []
    for span in spans:
        first, last = scale.cells_of(span.start, span.end)
        mark = "#" if span.is_work else "."
        cells = [mark if first <= cell <= last else " " for cell in range(width)]
        drawn.append("".join("/" if cell in scale.break_cells else mark for cell, mark in enumerate(cells)))
    return drawn


def test_scale_is_true_to_lengths():
    """
    Where nothing is much longer than the rest, bars are as long as what they stand for, and one cell at least.
    """
    spans = (Span(0, 5, is_work=True), Span(5, 10), Span(10, 20, is_work=True), Span(20, 20))
    assert bars(20, *spans) == [
        "#####               ",
        "     .....          ",
        "          ##########",
        "                   .",
    ]
    assert make_scale(spans, 20).breaks == ()


def test_scale_breaks_at_long_waits():
    """
    Stretches in which nothing was executed are left out if they are much longer than all the rest, however many.
    """
    spans = (Span(0, 2, is_work=True), Span(2, DAY_S), Span(DAY_S, DAY_S + 4, is_work=True))
    spans += (Span(DAY_S + 4, 2 * DAY_S), Span(2 * DAY_S, 2 * DAY_S + 2, is_work=True))
    assert bars(20, *spans) == [
        "####//        //    ",
        "   .//        //    ",
        "    //########//    ",
        "    //       .//    ",
        "    //        //####",
    ]
    assert make_scale(spans, 20).breaks == (DAY_S - 2, DAY_S - 4)


def test_scale_draws_waits_and_backoffs_that_are_not_much_longer():
    """
    An exponential backoff is drawn to scale: no wait in it is much longer than all the others together.
    """
    spans = [Span(2.0**n, 2.0**n + 0.5, is_work=True) for n in range(6)]
    assert make_scale(spans, 40).breaks == ()


def test_scale_needs_no_break_where_nothing_was_executed():
    """
    Waits alone are drawn to scale: there is nothing that they could squash.
    """
    assert make_scale([Span(0, 0), Span(0, DAY_S), Span(DAY_S, DAY_S + 1)], 20).breaks == ()


def test_scale_shows_the_order_alone_where_there_are_too_many_waits():
    """
    Where more breaks would be needed than there is room for, things stand evenly in their order.
    """
    spans = [Span(n * DAY_S, n * DAY_S + 1, is_work=True) for n in range(10)]
    scale = make_scale(spans, 38)
    assert (scale.is_even, scale.breaks, scale.break_cells) == (True, (), frozenset())
    firsts = [scale.cells_of(span.start, span.end)[0] for span in spans]
    assert firsts == sorted(set(firsts))


def test_scale_of_a_moment():
    """
    Something that took no time has a cell.
    """
    assert bars(3, Span(5, 5)) == [".  "]


TIMES = st.one_of(st.integers(0, 100).map(float), st.floats(0, 1e9), st.sampled_from([0.0, 1e-9, DAY_S, 1e9]))


@given(
    times=st.lists(st.tuples(TIMES, TIMES, st.booleans()), min_size=1, max_size=20),
    width=st.integers(12, 100),
)
def test_scale_keeps_order_and_room(times: list[tuple[float, float, bool]], width: int):
    """
    Whatever happened, each bar is within the scale and begins outside of its breaks, none left of an earlier one.
    """
    spans = [Span(min(start, end), max(start, end), is_work) for start, end, is_work in times]
    scale = make_scale(spans, width)
    cells = [scale.cells_of(span.start, span.end) for span in spans]
    for first, last in cells:
        assert 0 <= first <= last < width
        assert first not in scale.break_cells
    assert len(scale.break_cells) == BREAK_CELLS * len(scale.breaks)
    assert all(0 <= cell < width for cell in scale.break_cells)
    starts = sorted((span.start, first) for span, (first, _) in zip(spans, cells, strict=True))
    assert [first for _, first in starts] == sorted(first for _, first in starts)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0, "0 s"),
        (0.00001, "<0.1 ms"),
        (0.0012, "1.2 ms"),
        (0.25, "250 ms"),
        (0.9996, "1.0 s"),
        (12.34, "12.3 s"),
        (59.97, "1 min"),
        (95, "1 min 35 s"),
        (3600, "1 h"),
        (3 * 3600 + 240, "3 h 4 min"),
        (DAY_S * 400.5, "400 d 12 h"),
    ],
)
def test_durations_are_told_in_their_units(seconds: float, told: str):
    """
    A duration is told in two or three digits, or two units.
    """
    assert tell_duration(seconds) == told
