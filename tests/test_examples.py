"""
The examples do what they say: each runs as a script of its own, and survives a crash at each of its records.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import agent
import approval
import attrs
import folder_sync
import httpx
import pytest
import reminder
import saga
import trio
import trio.testing
import word_count
from hypothesis import example, given, settings
from hypothesis import strategies as st

import memable
from fanning import explore
from memable._records import InstanceRecord
from stores import HookedStore, disk_full

EXAMPLES = Path(__file__).parent.parent / "examples"

#: No example has more records than this; a sweep that comes so far does not end.
MAX_RECORDS = 200


# Running them ---------------------------------------------------------------------------------------------------------


@contextmanager
def launch(name: str, *words: str | Path, cwd: Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """
    Start an example as a user does, in an empty directory.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MEMABLE_", "OPENAI_"))}
    with subprocess.Popen(
        [sys.executable, EXAMPLES / f"{name}.py", *words],
        cwd=cwd,
        env=environment | variables,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run_example(name: str, *words: str | Path, cwd: Path, answers: str = "", **variables: str) -> list[str]:
    """
    Run an example to its end, and return the lines that it prints.
    """
    with launch(name, *words, cwd=cwd, **variables) as process:
        out, complaints = process.communicate(answers)
        assert process.returncode == 0, complaints
    return out.splitlines()


def kill_at(name: str, *words: str | Path, cwd: Path, line: str) -> None:
    """
    Run an example until it prints *line*, and kill it there.
    """
    with launch(name, *words, cwd=cwd) as process:
        assert process.stdout is not None
        assert line in map(str.rstrip, process.stdout)


Host = Callable[[memable.Engine], Awaitable[Any]]


async def crash_everywhere(
    workflow: memable.Workflow[..., Any],
    host: Host,
    check: Callable[[memable.InMemoryStore], Awaitable[None]],
    begin: Callable[[], Awaitable[memable.InMemoryStore]],
) -> None:
    """
    Run *host* over what *begin* returns until its first append, and *check* what is left; and so for each append.

    For what ``explore_crashes`` does not do: to open an engine that resumes nothing, and to take down a folder in
    which several threads are writing.
    """
    for number in range(1, MAX_RECORDS):
        left, has_crashed = await crash_at(number, workflow, host, await begin())
        await check(left)
        if not has_crashed:
            assert number > 1
            return
    raise AssertionError("it never came to its end")


async def crash_at(
    number: int, workflow: memable.Workflow[..., Any], host: Host, inner: memable.InMemoryStore
) -> tuple[memable.InMemoryStore, bool]:
    """
    Run *host* until append *number*, which is lost, and return what is left, and whether it came so far.
    """
    appends = itertools.count(1)

    async def fail(records: Sequence[InstanceRecord]) -> None:
        if next(appends) >= number:
            raise disk_full()

    try:
        async with memable.open_engine(HookedStore(inner, before_append=fail), workflows=[workflow]) as engine:
            await host(engine)
    except memable.StorageError:
        return inner.crashed_copy(), True
    return inner.crashed_copy(), False


Tree = Mapping[str, str]


def _write(folder: Path, tree: Tree) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    for name, content in tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def _read(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@attrs.frozen
class Folder:
    """
    A folder as a part of the world outside, which an exploration of crashes takes down and brings back.
    """

    path: Path

    def take_down(self) -> Tree:
        return _read(self.path)

    def bring_back(self, state: Tree) -> None:
        _write(self.path, state)


def _clear(directory: Path) -> None:
    for path in directory.glob("*"):
        path.unlink()


# hello ----------------------------------------------------------------------------------------------------------------


def test_hello_killed_between_its_steps_does_the_first_one_once(tmp_path: Path):
    """
    What was done before the kill is not done again, and a third run does nothing at all.
    """
    kill_at("hello", cwd=tmp_path, line="making Darjeeling")
    again = run_example("hello", cwd=tmp_path)
    assert again == [
        "the body runs again, over what is recorded",
        "making Darjeeling",
        "here you are: 2 cups of Darjeeling",
    ]
    assert run_example("hello", cwd=tmp_path) == ["here you are: 2 cups of Darjeeling"]


# approval -------------------------------------------------------------------------------------------------------------

EXPENSE = approval.Expense("Ada", "tea", Decimal(3))


def test_approval_waits_for_another_process(tmp_path: Path):
    """
    One process hands in, the next one decides, and a third one is too late.
    """
    waiting = run_example("approval", cwd=tmp_path)
    assert waiting[0].startswith("suspended at 'decision:v1' until ")
    assert waiting[1].startswith("decide with")
    approved = run_example("approval", "approve", cwd=tmp_path)
    assert approved[-1].startswith("approved by Charles, receipt ")
    late = run_example("approval", "refuse", cwd=tmp_path)
    assert late[1].startswith("too late: ")
    assert late[-1] == approved[-1]


async def test_approval_times_out_while_no_process_runs(autojump_clock: trio.testing.MockClock):
    """
    After three days, whoever opens the store next finds that nobody decided; before, the wait goes on.
    """
    store = memable.InMemoryStore()
    for days, waits in ((0, True), (2, True), (2, False)):
        await trio.sleep(days * 86_400)
        async with memable.open_engine(store, workflows=[approval.reimburse]) as engine:
            invocation = await engine.invoke(approval.reimburse, EXPENSE, instance_id="e")
            await trio.testing.wait_all_tasks_blocked()
            assert isinstance(await invocation.wait(), memable.Suspended) == waits
        store = store.crashed_copy()
    async with memable.open_engine(store, workflows=[approval.reimburse]) as engine:
        invocation = await engine.get(approval.reimburse, "e")
        assert await invocation.result() == "refused, as nobody decided in three days"


def test_approval_decided_survives_a_crash_at_each_record(capsys: pytest.CaptureFixture[str]):
    """
    A decision that was acknowledged is never lost, and one that was not can be given again.
    """
    decision = approval.Decision(approved=True, by="Charles")
    acknowledged: list[bool] = []

    async def host(engine: memable.Engine) -> str:
        invocation = await engine.invoke(approval.reimburse, EXPENSE, instance_id="e")
        if isinstance(await invocation.wait(), memable.Suspended):
            assert not acknowledged
            await engine.signal(approval.reimburse, "e", approval.DECISION, decision)
            acknowledged.append(True)
        receipt = await invocation.result()
        return receipt.rpartition(" ")[0]

    explore(host, [approval.reimburse], expected="approved by Charles, receipt", outside=[acknowledged])
    assert "paying 3 to Ada" in capsys.readouterr().out


# reminder -------------------------------------------------------------------------------------------------------------


def test_reminder_runs_as_a_script(tmp_path: Path):
    """
    It sends all its mails, and a second run sends none.
    """
    mails = run_example("reminder", "0.2", cwd=tmp_path)
    assert [line.removeprefix("to Ada: ") for line in mails] == [
        "welcome",
        "half of your trial is over",
        "your trial is over",
        "your data is removed",
        "closed",
    ]
    assert run_example("reminder", "0.2", cwd=tmp_path) == ["closed"]


async def test_reminder_passes_thirty_days_at_once(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
):
    """
    Each mail goes out in time; one that is overdue when the engine is opened again goes out at once; none twice.
    """
    mails: list[tuple[str, float]] = []
    begin = trio.current_time()

    async def send(customer: str, text: str) -> None:
        mails.append((text, round((trio.current_time() - begin) / 86_400, 3)))

    monkeypatch.setattr(reminder, "send_mail", send)
    store = memable.InMemoryStore()
    trial = reminder.Trial("Ada", datetime.now(UTC), timedelta(days=30))
    async with memable.open_engine(store, workflows=[reminder.accompany]) as engine:
        await engine.invoke(reminder.accompany, trial, instance_id="ada")
        await trio.sleep(20 * 86_400)
        store = store.crashed_copy()
    # No process runs from day 20 to day 31, and the grace period of three days begins then.
    await trio.sleep(11 * 86_400)
    async with memable.open_engine(store, workflows=[reminder.accompany]) as engine:
        await trio.sleep(86_400)
        store = store.crashed_copy()
    async with memable.open_engine(store, workflows=[reminder.accompany]) as engine:
        assert await (await engine.get(reminder.accompany, "ada")).result() == "closed"
    assert mails == [
        ("welcome", 0),
        ("half of your trial is over", 15),
        ("your trial is over", 31),
        ("your data is removed", 34),
    ]


# word_count -----------------------------------------------------------------------------------------------------------


def _write_words(folder: Path) -> None:
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "a.py").write_text("one two three")
    (folder / "deep" / "b c.py").write_text("four five")
    (folder / "deep" / "er" / "ä.py").write_text("six")
    (folder / "deep" / "latin.py").write_bytes("sieben für".encode("latin-1"))
    (folder / "notes.txt").write_text("not counted")


def test_word_count_counts_a_folder(tmp_path: Path):
    """
    It counts what it can, names what it cannot, keeps what it has counted, and counts anew when it is asked to.
    """
    folder = tmp_path / "words"
    folder.mkdir()
    _write_words(folder)
    first = run_example("word_count", folder, cwd=tmp_path)
    assert first[0].startswith("6 words in 5 files")
    assert first[1].startswith("not counted: deep/latin.py: ")
    assert "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xfc" in first[1]
    (folder / "a.py").write_text("one")
    (folder / "deep" / "latin.py").write_text("acht")
    assert run_example("word_count", folder, cwd=tmp_path) == first
    assert run_example("word_count", folder, "--again", cwd=tmp_path) == [f"5 words in 5 files below {folder}"]


def test_word_count_crashed_at_each_record_reads_no_file_again(tmp_path: Path):
    """
    Wherever it is stopped, the report is right, and a file is read again only if its count was not recorded.
    """
    _write_words(tmp_path)

    async def host(engine: memable.Engine) -> tuple[object, ...]:
        report = await (await engine.invoke(word_count.count_folder, tmp_path, instance_id="i")).result()
        return report.files, report.words, list(report.failures)

    expected = (5, 6, [Path("deep/latin.py")])
    schedules = explore(host, [word_count.count_folder], expected=expected)
    paths = word_count.list_files(tmp_path)
    steps = {"list:v1", *(f"count/{word_count.key_of(path)}/count:v1" for path in paths)}
    assert all(set(one.executions) == {f"count_folder/i: {step}" for step in steps} for one in schedules)


# saga -----------------------------------------------------------------------------------------------------------------


def _bookings(agency: Path) -> int:
    return len(list(agency.iterdir()))


def test_saga_undoes_what_it_booked(tmp_path: Path):
    """
    No bookings are left of the trip that cannot be made; all three of the other.
    """
    venice = run_example("saga", cwd=tmp_path)
    assert venice[:5] == [
        "booked a flight in Venice",
        "booked a hotel in Venice",
        "no car in Venice to cancel",
        "cancelled the hotel in Venice",
        "cancelled the flight in Venice",
    ]
    assert venice[6:] == [f"undone: cancel-{what}:v1 done" for what in ("car", "hotel", "flight")]
    assert _bookings(tmp_path / "saga-agency") == 0
    assert run_example("saga", "Lisbon", cwd=tmp_path)[-1].startswith("have a nice trip: ")
    assert _bookings(tmp_path / "saga-agency") == 3


def test_saga_killed_between_two_bookings_undoes_both(tmp_path: Path):
    """
    A process that is killed when it has booked twice leaves it to the next one to find that there is no car.
    """
    kill_at("saga", cwd=tmp_path, line="booked a hotel in Venice")
    again = run_example("saga", cwd=tmp_path)
    assert again[-3:] == [f"undone: cancel-{what}:v1 done" for what in ("car", "hotel", "flight")]
    assert _bookings(tmp_path / "saga-agency") == 0


@pytest.mark.parametrize(("city", "bookings"), [("Venice", 0), ("Lisbon", 3)])
def test_saga_crashed_at_each_record_books_all_or_nothing(tmp_path: Path, city: str, bookings: int):
    """
    Wherever it is stopped, there are all three bookings in the end, or none.
    """

    async def host(engine: memable.Engine) -> tuple[str, int]:
        state = await (await engine.invoke(saga.book_trip, saga.Trip(city, tmp_path), instance_id="i")).wait()
        return type(state).__name__, _bookings(tmp_path)

    expected = ("Completed" if bookings else "Failed", bookings)
    explore(host, [saga.book_trip], expected=expected, outside=[Folder(tmp_path)])


async def test_saga_cancelled_after_a_crash_at_each_record_leaves_nothing(tmp_path: Path):
    """
    Wherever it is stopped, cancelling it then undoes what was booked, recorded or not.
    """
    trip = saga.Trip("Lisbon", tmp_path)

    async def host(engine: memable.Engine) -> None:
        await (await engine.invoke(saga.book_trip, trip, instance_id="i")).wait()

    async def begin() -> memable.InMemoryStore:
        _clear(tmp_path)
        return memable.InMemoryStore()

    async def check(left: memable.InMemoryStore) -> None:
        async with memable.open_engine(left, workflows=[saga.book_trip], resume_on_start=False) as engine:
            known = await engine.metadata(saga.book_trip, "i")
            is_complete = known is not None and known.status is memable.MetadataStatus.COMPLETED
            if known is not None:
                assert await engine.cancel(saga.book_trip, "i", reason="ill") is not is_complete
        assert _bookings(tmp_path) == (3 if is_complete else 0)

    await crash_everywhere(saga.book_trip, host, check, begin)


# agent ----------------------------------------------------------------------------------------------------------------


def _turn_of(body: bytes) -> int:
    return sum(message["role"] == "assistant" for message in json.loads(body)["messages"])


@attrs.define
class StubModel:
    """
    A server with an endpoint as models have it, on this machine.
    """

    asked: list[int] = attrs.field(factory=list)
    "The turns that it was asked for."
    on_turn: Callable[[int], object] = lambda turn: None
    base_url: str = ""

    @contextmanager
    def serving(self) -> Iterator[StubModel]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/chat/completions"
                assert self.headers["Authorization"] == "Bearer sesame"
                turn = _turn_of(body)
                stub.asked.append(turn)
                stub.on_turn(turn)
                response = agent.play_model(httpx.Request("POST", stub.base_url, content=body))
                self.send_response(response.status_code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(response.content)))
                self.end_headers()
                # Whoever asked may be gone.
                try:
                    self.wfile.write(response.content)
                except OSError:
                    self.close_connection = True

            def log_message(self, *args: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            self.base_url = f"http://127.0.0.1:{server.server_port}/v1"
            thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()

    @property
    def variables(self) -> dict[str, str]:
        return {"OPENAI_BASE_URL": self.base_url, "OPENAI_API_KEY": "sesame", "OPENAI_MODEL": "stub"}


def _mails(outbox: Path) -> list[str]:
    return [path.read_text() for path in outbox.glob("*")]


ADA_MAIL = "To: ada@example.org\n\nThe engine is ready.\n"


def test_agent_works_without_a_network(tmp_path: Path):
    """
    Without an endpoint it plays its own model; refused, it sends nothing.
    """
    lines = run_example("agent", cwd=tmp_path, answers="n\n")
    assert lines[-1] == "Done. The last tool said: the person whom you work for does not want this to be sent"
    assert _mails(tmp_path / "agent-outbox") == []


@pytest.mark.parametrize("turn", [0, 1, 2])
def test_agent_killed_while_it_asks_the_model_repeats_that_turn_only(tmp_path: Path, turn: int):
    """
    Killed at any of its requests, it asks for no other turn again, sends one mail, and comes to its answer.
    """
    victims = SimpleQueue[subprocess.Popen[str]]()
    with StubModel(on_turn=lambda asked: victims.get().kill() if asked == turn else None).serving() as stub:
        with launch("agent", cwd=tmp_path, **stub.variables) as process:
            victims.put(process)
            process.communicate("y\n")
            assert process.returncode == -9
        stub.on_turn = lambda asked: None
        lines = run_example("agent", cwd=tmp_path, answers="y\n", **stub.variables)
        assert lines[-1] == "Done. The last tool said: sent to ada@example.org"
        assert Counter(stub.asked) == Counter({0: 1, 1: 1, 2: 1}) + Counter([turn])
        assert _mails(tmp_path / "agent-outbox") == [ADA_MAIL]
        assert run_example("agent", cwd=tmp_path, **stub.variables) == lines[-1:]
        assert len(stub.asked) == 4


async def _say_yes(question: str) -> bool:
    return True


def test_agent_crashed_at_each_record_repeats_no_recorded_turn(tmp_path: Path):
    """
    Wherever it is stopped, turns that were recorded are not asked for again, and exactly one mail goes out.
    """
    client = httpx.AsyncClient(base_url="http://model", transport=httpx.MockTransport(agent.play_model))
    workflow = agent.make_agent(client, "stub", tmp_path)

    async def host(engine: memable.Engine) -> tuple[str, list[str]]:
        return await agent.run_task(engine, workflow, "write to Ada", _say_yes), _mails(tmp_path)

    expected = ("Done. The last tool said: sent to ada@example.org", [ADA_MAIL])
    for schedule in explore(host, [workflow], expected=expected, outside=[Folder(tmp_path)]):
        calls = {name.rpartition(" ")[2]: count for name, count in schedule.executions.items()}
        assert calls.keys() == {"ask-0", "ask-1", "ask-2", "look-up-0-call-1", "send-1-call-2"}
        assert calls["send-1-call-2"] == 1


async def test_agent_waits_for_a_model_that_is_overloaded(tmp_path: Path, autojump_clock: trio.testing.MockClock):
    """
    An overload, a broken connection and an answer that is none are tried again; a refusal is not.
    """
    answers: list[httpx.Response | Exception] = [
        httpx.Response(503),
        httpx.ConnectError("no route"),
        httpx.Response(429),
        httpx.Response(200, json={"choices": []}),
    ]

    def model(request: httpx.Request) -> httpx.Response:
        if not answers:
            return agent.play_model(request)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with httpx.AsyncClient(base_url="http://model", transport=httpx.MockTransport(model)) as client:
        workflow = agent.make_agent(client, "stub", tmp_path / "outbox")
        async with memable.open_engine(memable.InMemoryStore(), workflows=[workflow]) as engine:
            answer = await agent.run_task(engine, workflow, "write to Ada", _say_yes)
            assert answer == "Done. The last tool said: sent to ada@example.org"
            answers.append(httpx.Response(401, text="who are you?"))
            with pytest.raises(memable.WorkflowFailedError, match="the request was refused: 401 who are you"):
                await agent.run_task(engine, workflow, "another task", _say_yes)


# folder_sync ----------------------------------------------------------------------------------------------------------


@attrs.frozen
class Folders:
    """
    Two folders, what both had when they were synchronised last, and what they have now.
    """

    root: Path
    before: Tree
    left_tree: Tree
    right_tree: Tree

    @property
    def left(self) -> Path:
        return self.root / "left"

    @property
    def right(self) -> Path:
        return self.root / "right"

    async def begin(self) -> memable.InMemoryStore:
        """
        Synchronise what was there before, then make the changes; return the store.
        """
        for folder, tree in ((self.left, self.before), (self.right, {})):
            folder.mkdir(exist_ok=True)
            _write(folder, tree)
        store = memable.InMemoryStore()
        async with memable.open_engine(store, workflows=[folder_sync.synchronise]) as engine:
            await self.synchronise(engine)
        assert _read(self.right) == self.before
        _write(self.left, self.left_tree)
        _write(self.right, self.right_tree)
        return store

    async def synchronise(self, engine: memable.Engine) -> folder_sync.Round:
        return await folder_sync.run_round(engine, self.left, self.right)

    async def finish(self, store: memable.InMemoryStore) -> None:
        """
        Run over what a crash left, and check what the folders are then.
        """
        async with memable.open_engine(store, workflows=[folder_sync.synchronise]) as engine:
            done = await self.synchronise(engine)
        self.check(done)
        async with memable.open_engine(store, workflows=[folder_sync.synchronise]) as engine:
            assert (await engine.list_instances())[-1].status is memable.MetadataStatus.COMPLETED
            # Nothing is left to do, unless somebody settles the conflicts.
            again = await self.synchronise(engine)
        assert (again.copied, again.deleted) == (0, 0)
        assert (again.same, again.conflicts) == (done.same, done.conflicts)
        self.check(again)

    def check(self, done: folder_sync.Round) -> None:
        left, right = _read(self.left), _read(self.right)
        changed_apart = set()
        for path in {*self.before, *self.left_tree, *self.right_tree}:
            old, one, other = self.before.get(path), self.left_tree.get(path), self.right_tree.get(path)
            if path in done.conflicts:
                # Left alone.
                assert (left.get(path), right.get(path)) == (one, other)
            else:
                expected = other if one == old else one
                assert (left.get(path), right.get(path)) == (expected, expected)
            if old not in {one, other} and one != other:
                changed_apart.add(path)
        assert changed_apart <= set(done.conflicts)
        # Beside those there are conflicts only where a file has the name of a folder.
        remaining = left.keys() | right.keys()
        for path in set(done.conflicts) - changed_apart:
            assert any(other.startswith(f"{path}/") or path.startswith(f"{other}/") for other in remaining), path
        assert done.same.keys() - set(done.conflicts) == {path for path in left if left[path] == right.get(path)}


TREES = [
    pytest.param({}, {}, {}, id="nothing"),
    pytest.param({}, {"a": "1", "d/b": "2"}, {"c": "3"}, id="added"),
    pytest.param({"a": "1", "b": "1"}, {"a": "2", "b": "1"}, {"a": "1", "b": "2"}, id="changed"),
    pytest.param({"d/e/a": "1", "b": "1"}, {"b": "1"}, {"d/e/a": "1"}, id="deleted"),
    pytest.param({"a": "1", "b": "1"}, {"a": "2"}, {"a": "3", "b": "2"}, id="conflicts"),
    pytest.param({"a": "1"}, {"a/b": "1"}, {"a": "1", "c": "1"}, id="folder-in-place-of-a-file"),
    pytest.param({"a/b": "1"}, {"a": "1"}, {"a/b": "1"}, id="file-in-place-of-a-folder"),
    pytest.param({"a": "1"}, {"a/b": "1"}, {"a": "2"}, id="file-against-folder"),
    pytest.param({}, {"_x": "1", ".y": "1", "ä ö": "1", "long/" + "x" * 200: "1"}, {}, id="names"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "left", "right"), TREES)
async def test_folder_sync_crashed_at_each_record_agrees(tmp_path: Path, before: Tree, left: Tree, right: Tree):
    """
    Wherever a round is stopped, the next run finishes it: both folders agree but for the conflicts that it names.
    """
    folders = Folders(tmp_path, before, left, right)
    await crash_everywhere(folder_sync.synchronise, folders.synchronise, folders.finish, folders.begin)


def _is_tree(tree: Tree) -> bool:
    return not any(other.startswith(f"{path}/") for path in tree for other in tree)


trees = st.dictionaries(
    st.sampled_from(["a", "b", "a/b", "a/b/c", "d/e", "d/f"]), st.sampled_from("12"), max_size=4
).filter(_is_tree)


@settings(max_examples=40)
@given(trees, trees, trees, st.integers(1, 30))
@example({}, {"a": "1"}, {"a/b": "1"}, 30)
def test_folder_sync_agrees_whatever_was_changed(before: Tree, left: Tree, right: Tree, number: int):
    """
    Whatever was changed on both sides, and wherever the round was stopped, both folders agree in the end.
    """

    async def run(root: Path) -> None:
        folders = Folders(root, before, left, right)
        store = await folders.begin()
        crashed, _ = await crash_at(number, folder_sync.synchronise, folders.synchronise, store)
        await folders.finish(crashed)

    with tempfile.TemporaryDirectory() as directory:
        trio.run(run, Path(directory).resolve())


async def test_folder_sync_leaves_alone_what_changes_meanwhile(tmp_path: Path):
    """
    A file that somebody changes between the plan and its execution is a conflict of this round, and nothing is lost.
    """
    folders = Folders(tmp_path, {"a": "1", "b": "1"}, {"a": "2"}, {"a": "1", "b": "1"})
    store = await folders.begin()
    planned = itertools.count(1)

    async def interfere(records: Sequence[InstanceRecord]) -> None:
        if any(record.kind == "step_completed" for record in records) and next(planned) == 2:
            _write(folders.right, {"a": "theirs", "b": "theirs"})

    async with memable.open_engine(
        HookedStore(store, before_append=interfere), workflows=[folder_sync.synchronise]
    ) as engine:
        done = await folders.synchronise(engine)
    assert done.conflicts == ("a", "b")
    assert _read(folders.right) == {"a": "theirs", "b": "theirs"}
    assert _read(folders.left) == {"a": "2"}


async def test_folder_sync_does_not_follow_symbolic_links(tmp_path: Path):
    """
    What a symbolic link leads to is neither read nor written.
    """
    folders = Folders(tmp_path, {}, {"link/x": "1", "file": "1"}, {})
    store = await folders.begin()
    outside = tmp_path / "outside"
    outside.mkdir()
    (folders.right / "link").symlink_to(outside)
    (folders.right / "file").symlink_to(outside / "file")
    async with memable.open_engine(store, workflows=[folder_sync.synchronise]) as engine:
        done = await folders.synchronise(engine)
    assert done.conflicts == ("file", "link/x")
    assert list(outside.glob("*")) == []
    assert _read(folders.left) == {"link/x": "1", "file": "1"}


async def test_folder_sync_takes_a_missing_folder_for_no_empty_one(tmp_path: Path):
    """
    A folder that is gone, as a disk is not mounted, say, fails the round, and deletes nothing; then it goes on.
    """
    folders = Folders(tmp_path, {"a": "1"}, {"a": "1"}, {"a": "1", "b": "1"})
    store = await folders.begin()
    folders.right.rename(tmp_path / "away")
    async with memable.open_engine(store, workflows=[folder_sync.synchronise]) as engine:
        with pytest.raises(memable.WorkflowFailedError, match="FileNotFoundError"):
            await folders.synchronise(engine)
    assert _read(folders.left) == {"a": "1"}
    (tmp_path / "away").rename(folders.right)
    await folders.finish(store)


def test_folder_sync_runs_as_a_script(tmp_path: Path):
    """
    It makes two folders, brings them together, follows changes, and reports a conflict.
    """
    assert run_example("folder_sync", cwd=tmp_path) == [
        "3 copied, 0 deleted, 3 files are the same on both sides",
    ]
    left, right = tmp_path / "sync-left", tmp_path / "sync-right"
    assert _read(left) == _read(right)
    (left / "poems" / "spring.txt").unlink()
    (left / "tea.txt").write_text("mine")
    (right / "tea.txt").write_text("yours")
    assert run_example("folder_sync", left, right, cwd=tmp_path) == [
        "0 copied, 1 deleted, 1 files are the same on both sides",
        "conflict, both sides left alone: tea.txt",
    ]
    assert not (right / "poems").exists()
