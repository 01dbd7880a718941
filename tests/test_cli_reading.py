"""
The commands that read a store: beside whoever has it open, without changing anything, and with an error in one line.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

import kill_worker
import memable
from memable import MetadataStatus, cli
from memable._cli._details import details_of
from memable._cli._guard import guard
from memable._cli._reading import load, open_store, telling_damage
from showing import APPROVAL, WORKFLOWS, Order, files_of, make_store, order, say

COMMANDS = (("ls",), ("show", "order/o0"), ("history", "order/o0"))
every_command = pytest.mark.parametrize("command", COMMANDS, ids=[command[0] for command in COMMANDS])
every_form = pytest.mark.parametrize("form", [(), ("--json",)], ids=["table", "json"])

NOBODY = 65534


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A filled store, for all tests that do not change it."""
    return make_store(tmp_path_factory.mktemp("cli") / "store")


@pytest.fixture
def store(filled: Path, tmp_path: Path) -> Path:
    """A filled store of the test's own."""
    return shutil.copytree(filled, tmp_path / "store")


def words(command: tuple[str, ...], store: object, *more: str) -> list[str]:
    return [command[0], str(store), *command[1:], *more]


def newest_segment(store: Path) -> Path:
    return max(store.glob("*.log"))


# Beside others -------------------------------------------------------------------------------------------------------


@every_form
async def test_reading_beside_an_engine_in_this_process(
    form: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], autojump_clock: object
):
    """
    While an engine holds the lock, all commands show what it has acknowledged, and it goes on undisturbed.
    """
    path = tmp_path / "store"
    async with memable.open_engine(path, workflows=WORKFLOWS) as engine:
        invocation = await engine.invoke(order, Order("Ada", 3), instance_id="o0")
        # Under this clock, until all that can happen within that time has happened.
        await trio.sleep(4000)
        before = files_of(path)
        for command in COMMANDS:
            said = say(capsys, *words(command, path, *form))
            assert (said.status, said.err) == (0, "")
            assert "suspend" in said.out
        assert files_of(path) == before
        await engine.signal(order, "o0", APPROVAL, payload=True)
        assert await invocation.result() == 42
        assert "completed" in say(capsys, *words(("ls",), path, *form)).out


def test_reading_while_another_process_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """
    While another process writes a store, every reading of it succeeds; what was seen completed stays so.
    """
    path = tmp_path / "store"
    worker = [kill_worker.__file__, str(path), str(tmp_path / "effects"), "18", "fsync"]
    paths = os.pathsep.join([str(Path(kill_worker.__file__).parent), *sys.path])
    completed: set[tuple[str, str]] = set()
    readings = 0
    with subprocess.Popen(
        [sys.executable, "-S", *worker],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        # It writes a byte at each bit of progress: the first ones before there is a log.
        while os.read(process.stdout.fileno(), 50):
            if not list(path.glob("*.log")):
                continue
            said = say(capsys, "ls", path, "--json", "--all")
            assert (said.status, said.err) == (0, "")
            done = {(one["workflow_name"], one["instance_id"]) for one in said.objects if one["status"] == "completed"}
            assert completed <= done
            completed = done
            for one in said.objects[:2]:
                for command in ("show", "history"):
                    inner = say(capsys, command, path, one["workflow_name"], one["instance_id"])
                    assert (inner.status, inner.err) == (0, "")
            readings += 1
        _, complaints = process.communicate()
    assert process.returncode == 0, complaints.decode()
    assert readings > 3
    statuses = {one["status"] for one in say(capsys, "ls", path, "--json").objects}
    assert statuses == {"completed", "failed"}


@every_command
@every_form
def test_reading_ignores_a_torn_tail(
    command: tuple[str, ...], form: tuple[str, ...], store: Path, capsys: pytest.CaptureFixture[str]
):
    """
    A batch that is only half there, as a crash or a batch being written leaves it, changes nothing and is left alone.
    """
    whole = say(capsys, *words(command, store, "--utc", *form))
    segment = newest_segment(store)
    last = segment.read_bytes().splitlines(keepends=True)[-1]
    with segment.open("ab") as file:
        file.write(last[: len(last) // 2])
    before = files_of(store)
    torn = say(capsys, *words(command, store, "--utc", *form))
    assert (torn.status, torn.err) == (0, "")
    # How long ago something was is told anew at each reading.
    assert len(torn.out.splitlines()) == len(whole.out.splitlines())
    assert files_of(store) == before


@every_command
@every_form
def test_reading_changes_nothing(
    command: tuple[str, ...], form: tuple[str, ...], store: Path, capsys: pytest.CaptureFixture[str]
):
    """
    Reading writes no byte, makes no file, and changes no mode.
    """
    for path in (store, *store.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    before = files_of(store)
    assert say(capsys, *words(command, store, *form)).status == 0
    assert files_of(store) == before


@contextmanager
def as_nobody() -> Iterator[None]:
    """Run what is in the block as somebody who may not write, which root otherwise always may."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def read_only(filled: Path) -> Iterator[Path]:
    """A store that others may read, and nobody may write."""
    # The directories of pytest's own are closed to others.
    with tempfile.TemporaryDirectory() as directory:
        path = shutil.copytree(filled, Path(directory) / "store")
        Path(directory).chmod(0o755)
        for file in path.iterdir():
            file.chmod(0o444)
        path.chmod(0o555)
        yield path
        # So that it can be removed.
        path.chmod(0o700)


@every_command
@every_form
def test_reading_needs_no_right_to_write(
    command: tuple[str, ...], form: tuple[str, ...], read_only: Path, capsys: pytest.CaptureFixture[str]
):
    """
    A store that may only be read, and that belongs to somebody else where this can be tried, is read all the same.
    """
    expected = say(capsys, *words(command, read_only, *form))
    with as_nobody():
        said = say(capsys, *words(command, read_only, *form))
    assert (said.status, said.err) == (0, "")
    assert len(said.out.splitlines()) == len(expected.out.splitlines())


# What goes wrong -----------------------------------------------------------------------------------------------------


@every_command
@every_form
def test_reading_refuses_a_store_that_does_not_exist(
    command: tuple[str, ...], form: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """
    A store that does not exist is an error, and is not made.
    """
    said = say(capsys, *words(command, tmp_path / "none", *form))
    assert (said.status, said.out) == (1, "")
    assert said.err == f"memable {command[0]}: {tmp_path / 'none'}: there is no such store\n"
    assert list(tmp_path.iterdir()) == []


@every_command
def test_reading_refuses_what_is_no_store(command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """
    A file, an empty directory and a directory of somebody else's are no stores, and are left alone.
    """
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("precious", encoding="utf-8")
    for path in (tmp_path / "empty", tmp_path / "foreign", tmp_path / "foreign" / "thesis.txt"):
        said = say(capsys, *words(command, path))
        assert (said.status, said.out) == (1, "")
        assert said.err.startswith(f"memable {command[0]}: {path}: ")
        assert said.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "foreign", "thesis.txt"]


@every_command
@every_form
def test_reading_tells_of_damage(
    command: tuple[str, ...], form: tuple[str, ...], store: Path, capsys: pytest.CaptureFixture[str]
):
    """
    A store that is damaged is told of in the store's own words, with the file and the offset.
    """
    segment = min(store.glob("*.log"))
    data = bytearray(segment.read_bytes())
    at = data.index(b'"workflow":"order"')
    data[at + 12] ^= 1
    segment.write_bytes(data)
    said = say(capsys, *words(command, store, *form))
    assert (said.status, said.out) == (1, "")
    assert said.err.startswith(f"memable {command[0]}: {segment}: at byte offset ")
    assert said.err.count("\n") == 1


@every_command
def test_reading_tells_of_a_newer_version(command: tuple[str, ...], store: Path, capsys: pytest.CaptureFixture[str]):
    """
    A store that a newer release wrote is told of in the store's own words.
    """
    segment = newest_segment(store)
    header, _, rest = segment.read_bytes().partition(b"\n")
    version = header.partition(b'{"memable":')[2].partition(b",")[0]
    segment.write_bytes(header.replace(b'{"memable":' + version, b'{"memable":99', 1) + b"\n" + rest)
    said = say(capsys, *words(command, store))
    assert (said.status, said.out) == (1, "")
    assert said.err.startswith(f"memable {command[0]}: {store}")
    assert "newer" in said.err
    assert said.err.count("\n") == 1


def test_reading_tells_of_records_that_make_no_sense(filled: Path):
    """
    Records that are intact and cannot follow each other are told of as damage, not as a mistake of memable's.
    """
    with open_store(filled) as snapshot:
        header = snapshot.index.find("order", "o0")
        assert header is not None
        records = load(snapshot, header)
        told = pytest.raises(memable.StorageError, match=r"instance 'o0' makes no sense.*record 2 .* follows record 2")
        with told, telling_damage(snapshot, header):
            details_of(header, [*records[:2], *records[1:]], snapshot.index.find)


def test_reading_can_be_interrupted(capsys: pytest.CaptureFixture[str]):
    """
    After control-C there is a line and no traceback, and the status is that of a process that was interrupted.
    """

    def interrupt(_: argparse.Namespace) -> None:
        raise KeyboardInterrupt

    assert guard("memable ls", interrupt)(argparse.Namespace()) == 130
    assert capsys.readouterr().err == "memable ls: interrupted\n"


@pytest.mark.parametrize("command", ["show", "history"])
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (("order", "nobody"), "workflow 'order' has no instance 'nobody'"),
        (("order/nobody",), "workflow 'order' has no instance 'nobody'"),
        (("order/o0", "x"), "has no instance of a workflow 'order/o0'"),
        (("orders", "o0"), "workflows with instances: 'child', 'each', 'hostile', 'order', 'wrong'"),
        (("\x1b[2J\n", "o0"), r"'\x1b[2J\n'"),
    ],
    ids=["instance", "one-word", "both", "workflow", "hostile"],
)
def test_reading_tells_what_there_is_not(
    command: str, name: tuple[str, ...], problem: str, filled: Path, capsys: pytest.CaptureFixture[str]
):
    """
    An instance that the store does not have is told of, and of an unknown workflow, which ones there are.
    """
    said = say(capsys, command, filled, *name)
    assert (said.status, said.out) == (1, "")
    assert said.err.startswith(f"memable {command}: {filled}: ")
    assert problem in said.err
    assert said.err.count("\n") == 1
    assert said.err[:-1].isprintable()


@pytest.mark.parametrize(
    "given",
    [
        ("ls",),
        ("ls", "STORE", "--limit", "0"),
        ("ls", "STORE", "--limit", "many"),
        ("ls", "STORE", "--limit", "1", "--all"),
        ("ls", "STORE", "--status", "broken"),
        ("ls", "STORE", "--after", "order"),
        ("ls", "STORE", "--after", "9" * 5000),
        ("show", "STORE"),
        ("show", "STORE", "order"),
        ("history", "STORE", "order/"),
        ("show", "STORE", "order", "o0", "more"),
    ],
    ids=lambda given: " ".join(given)[:40],
)
def test_reading_refuses_wrong_words(given: tuple[str, ...], filled: Path, capsys: pytest.CaptureFixture[str]):
    """
    Words that make no sense end with status 2, and with what would make sense.
    """
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.main([str(filled) if word == "STORE" else word for word in given])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: memable ")


# Processes -----------------------------------------------------------------------------------------------------------


def run(*given: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "memable.cli", *given],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        **options,  # type: ignore[call-overload] - each call passes what the function takes
    )


# Starting an interpreter takes long, so that not every command is tried in every form.
two_of_them = pytest.mark.parametrize("given", [(COMMANDS[0], "--json"), (COMMANDS[2], "--utc")], ids=["json", "table"])


@two_of_them
def test_reading_is_quiet_when_its_reader_leaves(given: tuple[tuple[str, ...], str], filled: Path):
    """
    A reader that leaves early, as ``head`` does, has seen enough: no error, no traceback.
    """
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = run(*words(given[0], filled, given[1]), stdout=writer)
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_reading_tells_if_its_output_cannot_be_written(filled: Path):
    """
    Where what is read cannot be written, a line says so.
    """
    with Path("/dev/full").open("wb") as full:
        ended = run("ls", str(filled), stdout=full)
    assert ended.returncode == 1
    assert ended.stderr.startswith("memable ls: ")
    assert ended.stderr.count("\n") == 1


@two_of_them
def test_reading_needs_no_utf_8(given: tuple[tuple[str, ...], str], filled: Path):
    """
    Where only ASCII can be written, what is beyond it is escaped, and bars are drawn with it.
    """
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0"}
    ended = run(*words(given[0], filled, given[1]), stdout=subprocess.PIPE, env=environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.isascii()
    assert ("# executed" in ended.stdout) is (given[1] == "--utc")


def test_reading_json_needs_no_rich(filled: Path):
    """
    Without the extra, ``--json`` works, and a table says how to install it.
    """
    script = """if True:
        import sys
        sys.modules["rich"] = None
        from memable import cli
        for command in ("ls", "show", "history"):
            for form, status in (("--json", 0), ("--utc", 2)):
                assert cli.main([command, sys.argv[1], *["order/o0"][: command != "ls"], form]) == status
        """
    ended = subprocess.run([sys.executable, "-c", script, filled], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout
    assert ended.stderr.count("pip install 'memable[cli]'") == 3


def test_reading_knows_every_status(filled: Path, capsys: pytest.CaptureFixture[str]):
    """
    The filled store has an instance of each status but Running, so the tests see how each is told.
    """
    found = {one["status"] for one in say(capsys, "ls", filled, "--json").objects}
    assert found == {status.value for status in MetadataStatus} - {"running"}
