"""
The figures of the benchmarks: what is worked out from what was measured, and the tables of it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from figures import Figure, at_least, at_most, exponent, number, ratio_of, table_of
from logs import LogReader
from peers import rows_of
from workflows import count

import memable


@pytest.mark.parametrize("power", [0.0, 1.0, 1.5, 2.0])
def test_figures_exponent_tells_how_a_total_grows(power: float) -> None:
    """
    The exponent of a curve is 1 where cost is proportional to size, and 2 where it is quadratic.
    """
    sizes = [1_000, 4_000, 16_000]
    assert exponent(sizes, [0.01 * size**power for size in sizes]) == pytest.approx(power)


def test_figures_ratio_is_that_of_turns() -> None:
    """
    A drift of the machine that both measurements share doesn't change their ratio.
    """
    assert ratio_of([2.0, 4.0, 20.0], [1.0, 2.0, 10.0]) == 2.0


@pytest.mark.parametrize(
    ("value", "expected"), [(0.1234, "0.12"), (1.236, "1.24"), (12.34, "12.3"), (123.4, "123"), (12345.6, "12,346")]
)
def test_figures_numbers_have_few_digits(value: float, expected: str) -> None:
    """
    A number shows no more digits than there is reason to believe.
    """
    assert number(value) == expected


def test_figures_table_shows_goals() -> None:
    """
    The table says of each goal whether it is met, and leaves out what belongs into the table of engines.
    """
    table = table_of(
        [
            Figure("steps", 3.0, "µs", "a sync", 2.0, 1.5, at_most(1.5, 2.0, "times")),
            Figure("rate", 10.0, "steps/s", goal=at_least(10.0, 1_000, "steps/s"), note="2 syncs"),
            Figure("steps", 5.0, "steps/s", system="another"),
        ]
    )
    assert table.splitlines() == [
        "| workload | memable                | compared with | which has | ratio | goal                   |        |",
        "| -------- | ---------------------- | ------------- | --------- | ----- | ---------------------- | ------ |",
        "| steps    | 3.00 µs                | a sync        | 2.00 µs   | 1.50  | at most 2 times        | met    |",
        "| rate     | 10.0 steps/s (2 syncs) |               |           |       | at least 1,000 steps/s | MISSED |",
    ]


def test_figures_of_engines_stand_side_by_side() -> None:
    """
    Each engine has a column, each workload a row, and what was not measured an empty cell.
    """
    figures = [
        Figure("steps", 1.0, "/s"),
        Figure("steps", 2_000.0, "/s", system="ours"),
        Figure("memory", 5.0, "KiB", system="ours"),
        Figure("steps", 300.0, "/s", system="theirs"),
    ]
    assert rows_of(figures) == [
        ("the same on each", "ours", "theirs"),
        ("steps, /s", "2,000", "300"),
        ("memory, KiB", "5.00", ""),
    ]


async def test_figures_raw_limit_has_the_bytes_of_the_log(tmp_path: Path) -> None:
    """
    What the bare loop writes are the very batches that the store wrote since the last look, blocks in advance left out.
    """
    store = tmp_path / "store"
    async with memable.open_engine(store, workflows=[count]) as engine:
        log = LogReader(store)
        await (await engine.invoke(count, 3, instance_id="one")).result()
        segment = store / "00000001.log"
        written = segment.read_bytes().rstrip(b"\0")
        batches = log.new_batches()
        assert written.endswith(b"".join(batches))
        assert [batch.count(b'"step_completed"') for batch in batches if b"step_completed" in batch] == [1, 1, 1]
        assert all(batch.endswith(b"\n") for batch in batches)
        assert log.new_batches() == []
