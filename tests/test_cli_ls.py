"""
``memable ls``: which instances are listed, and how.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
import trio.testing

import memable
from memable._cli._listing import print_listing
from memable._cli._moments import Moments
from memable._cli._reading import Selection, open_store
from showing import HOSTILE, WORKFLOWS, Said, make_store, say, terminal

ORDER_IDS = ["o0", "o1", "o2", "o4"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A filled store, which no test changes."""
    return make_store(tmp_path_factory.mktemp("cli") / "store")


def ids(said: Said) -> list[str]:
    assert (said.status, said.err) == (0, "")
    return [one["instance_id"] for one in said.objects]


def at_width(store: Path, width: int, selection: Selection) -> list[str]:
    output, shown = terminal(width)
    with open_store(store) as snapshot:
        print_listing(output, snapshot, selection, Moments(datetime.now(UTC), is_utc=True))
    return shown.getvalue().splitlines()


async def metadata_of_all(store: Path) -> list[memable.WorkflowMetadata]:
    async with memable.open_engine(store, workflows=WORKFLOWS, resume_on_start=False) as engine:
        return await engine.list_instances()


# JSON ----------------------------------------------------------------------------------------------------------------


def test_ls_json_has_the_fields_of_the_metadata(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """
    With ``--json`` each instance is an object with what ``engine.list_instances`` tells of it, times in UTC.
    """
    expected = trio.run(metadata_of_all, shutil.copytree(store, tmp_path / "copy"))
    found = say(capsys, "ls", store, "--json").objects
    assert len(found) == len(expected)
    for one, metadata in zip(found, expected, strict=True):
        assert one == {
            "number": metadata.number,
            "workflow_name": metadata.workflow_name,
            "instance_id": metadata.instance_id,
            "status": metadata.status.value,
            "key": metadata.key,
            "message": metadata.message,
            "created_at": text_of(metadata.created_at),
            "updated_at": text_of(metadata.updated_at),
            "completed_at": text_of(metadata.completed_at),
            "recoveries": metadata.recoveries,
            "parent": metadata.parent,
        }


def text_of(at: datetime | None) -> str | None:
    if at is None:
        return None
    text = at.isoformat(timespec="microseconds").replace("+00:00", "Z")
    assert datetime.fromisoformat(text) == at
    return text


def test_ls_selects(store: Path, capsys: pytest.CaptureFixture[str]):
    """
    Instances are selected by workflow and by one or several statuses, and listed in the order of their creation.
    """
    orders = ("ls", store, "--json", "--workflow", "order")
    assert ids(say(capsys, *orders)) == ORDER_IDS
    assert ids(say(capsys, *orders, "--status", "suspended")) == ["o0"]
    assert ids(say(capsys, *orders, "--status", "failed", "--status", "completed")) == ["o1", "o2"]
    assert ids(say(capsys, *orders, "--status", "running")) == []
    assert ids(say(capsys, "ls", store, "--json", "--workflow", "none")) == []
    everything = say(capsys, "ls", store, "--json").objects
    assert [one["number"] for one in everything] == sorted(one["number"] for one in everything)


def test_ls_pages(store: Path, capsys: pytest.CaptureFixture[str]):
    """
    ``--limit`` and ``--after`` walk through a listing page by page; ``--newest`` shows its end.
    """
    orders = ("ls", store, "--json", "--workflow", "order")
    assert ids(say(capsys, *orders, "--limit", 2)) == ORDER_IDS[:2]
    assert ids(say(capsys, *orders, "--limit", 2, "--after", "order/o1")) == ORDER_IDS[2:]
    number = say(capsys, *orders).objects[1]["number"]
    assert ids(say(capsys, *orders, "--all", "--after", number)) == ORDER_IDS[2:]
    assert ids(say(capsys, *orders, "--newest", "--limit", 3)) == ORDER_IDS[1:]
    assert ids(say(capsys, *orders, "--after", 999)) == []
    refused = say(capsys, *orders, "--after", "order/o9")
    assert (refused.status, refused.out) == (1, "")
    assert "workflow 'order' has no instance 'o9'" in refused.err


def test_ls_pages_through_thousands(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """
    More instances than are read at once are all listed with ``--all``, and a hundred of them without.
    """

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context) -> None:
        pass

    async def start() -> None:
        store = memable.FileStore(tmp_path / "s", durability="os")
        async with memable.open_engine(store, workflows=[workflow]) as engine, trio.open_nursery() as nursery:
            for number in range(2100):
                nursery.start_soon(lambda number: engine.invoke(workflow, instance_id=f"i{number}"), number)

    trio.run(start)
    assert len(ids(say(capsys, "ls", tmp_path / "s", "--json", "--all"))) == 2100
    assert len(ids(say(capsys, "ls", tmp_path / "s", "--json"))) == 100
    table = say(capsys, "ls", tmp_path / "s")
    assert table.lines[-2:] == [
        "2,100 instances 2,100 completed",
        "100 of them shown, oldest first; go on with --after 100, or see --newest and --all",
    ]


# Tables --------------------------------------------------------------------------------------------------------------


def test_ls_shows_a_table(store: Path, capsys: pytest.CaptureFixture[str]):
    """
    A table tells of each instance its status as a word, what it waits or is blocked at, and how many there are of each.
    """
    said = say(capsys, "ls", store, "--utc")
    assert (said.status, said.err) == (0, "")
    assert said.lines[0] == "# status workflow id created (UTC) updated (UTC) changed key or message"
    first = next(line for line in said.lines if " o0 " in line)
    assert re.fullmatch(
        r"1 suspended order o0 \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \d{4}-\d\d-\d\d \d\d:\d\d:\d\d .* "
        r"approval:v1: needs a manager",
        first,
    )
    assert any(re.search(r"blocked wrong w .*not yet written", line) for line in said.lines)
    assert any(re.search(r"cancelled order o4 .*changed her mind", line) for line in said.lines)
    assert any(re.search(r"completed child o0/kid ", line) for line in said.lines)
    assert said.lines[-1] == "11 instances 2 suspended 1 blocked 5 completed 2 failed 1 cancelled"


@pytest.fixture
def far_east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Local time is nine hours and a half ahead of UTC."""
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "EAST-9:30")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("far_east")
def test_ls_shows_local_time_unless_told_otherwise(store: Path, capsys: pytest.CaptureFixture[str]):
    """
    Times are local and said to be, or in UTC with ``--utc``; in JSON they are always in UTC.
    """
    created_at = datetime.fromisoformat(say(capsys, "ls", store, "--json").objects[0]["created_at"])
    assert created_at.tzinfo is UTC
    local, utc = say(capsys, "ls", store, "--limit", 1), say(capsys, "ls", store, "--limit", 1, "--utc")
    assert "created (local time)" in local.lines[0]
    assert f"{created_at + timedelta(hours=9.5):%Y-%m-%d %H:%M:%S}" in local.out
    assert "created (UTC)" in utc.lines[0]
    assert f"{created_at:%Y-%m-%d %H:%M:%S}" in utc.out
    assert Moments(created_at).tell(datetime.max.replace(tzinfo=UTC)) == "9999-12-31 23:59:59 UTC"


def test_ls_tells_what_it_leaves_out(store: Path, capsys: pytest.CaptureFixture[str]):
    """
    The sums count all that match, shown or not, and a hint tells how to see the rest.
    """
    said = say(capsys, "ls", store, "--workflow", "order", "--limit", 1)
    assert said.lines[-2:] == [
        "4 instances 1 suspended 1 completed 1 failed 1 cancelled",
        "1 of them shown, oldest first; go on with --after 1, or see --newest and --all",
    ]
    newest = say(capsys, "ls", store, "--workflow", "order", "--limit", 1, "--newest")
    assert "o4" in newest.out
    assert newest.lines[-1] == "1 of them shown, the newest; --all shows all"
    rest = say(capsys, "ls", store, "--workflow", "order", "--all", "--after", "order/o2")
    assert rest.lines[-1] == "1 of them shown"
    assert say(capsys, "ls", store, "--status", "running").lines == ["0 instances"]
    assert say(capsys, "ls", store, "--status", "blocked").lines[-1] == "1 instance 1 blocked"


def test_ls_cuts_no_id_in_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """
    Where no person reads, lines are as long as they need to be, without blanks at their ends.
    """
    long_id = "x" * 255

    @memable.workflow(name="y" * 200)
    async def workflow(ctx: memable.Context) -> None:
        ctx.set_status("z" * 150)

    async def start() -> None:
        async with memable.open_engine(tmp_path / "s", workflows=[workflow]) as engine:
            await (await engine.invoke(workflow, instance_id=long_id)).result()

    trio.run(start)
    said = say(capsys, "ls", tmp_path / "s")
    (line,) = (line for line in said.out.splitlines() if "x" in line and "y" in line and "z" * 150 in line)
    assert long_id in line
    assert "y" * 200 in line
    assert [line for line in said.out.splitlines() if line != line.rstrip()] == []


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 200])
def test_ls_fits_a_terminal(store: Path, width: int):
    """
    On a terminal no line is wider than it; status and names are there at any width, the rest where there is room.
    """
    lines = at_width(store, width, Selection(workflow="order"))
    assert max(map(len, lines)) <= width
    for name in (*ORDER_IDS, "suspended", "order"):
        assert any(name in line for line in lines)
    assert ("created" in lines[0]) is (width >= 100)
    assert ("key or message" in lines[0]) is (width >= 60)


def test_ls_folds_long_ids_on_a_narrow_terminal(tmp_path: Path):
    """
    An id that is too wide for a narrow terminal goes on in the next line: it can still be read whole.
    """

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context) -> None:
        pass

    async def start() -> None:
        async with memable.open_engine(tmp_path / "s", workflows=[workflow]) as engine:
            await (await engine.invoke(workflow, instance_id="0123456789" * 5)).result()

    trio.run(start)
    lines = at_width(tmp_path / "s", 40, Selection())
    assert max(map(len, lines)) <= 40
    assert "".join(re.findall(r"[0-9]{2,}", "".join(lines[1:-2]))) == "0123456789" * 5


# Hostile text --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["table", "json"])
@pytest.mark.parametrize("command", [("ls",), ("show", "hostile/h"), ("history", "hostile/h")], ids=lambda c: c[0])
def test_stored_text_is_shown_as_data(
    command: tuple[str, ...], form: tuple[str, ...], store: Path, capsys: pytest.CaptureFixture[str]
):
    """
    What is stored moves no cursor, sets no title, is no markup and turns no direction around: it is shown, escaped.
    """
    said = say(capsys, command[0], store, *command[1:], *form)
    assert (said.status, said.err) == (0, "")
    assert all(line.isprintable() for line in said.out.split("\n"))
    assert "[bold red]x[/] :smile:" in said.out
    assert r"\u001b[2J\u001b]0;mine\u0007" in said.out
    assert r"\u202egnp\u009b31m\r\nnext" in said.out
    if form:
        assert any(HOSTILE in text for text in strings_of(said.objects))


def strings_of(tree: object) -> list[str]:
    if isinstance(tree, str):
        return [tree]
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return [text for value in values for text in strings_of(value)]


def test_moments_before_and_after_now():
    """
    How long ago something was, or how long it will be, is told in its greatest unit.
    """
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    moments = Moments(now, is_utc=True)
    told = {0.2: "now", 5: "5 s ago", 119: "1 min ago", 7200: "2 h ago", 86400 * 400: "400 d ago", -90: "in 1 min"}
    assert {seconds: moments.since(now - timedelta(seconds=seconds)) for seconds in told} == told
    assert moments.tell_both(now) == "2026-01-02 03:04:05 (now)"
