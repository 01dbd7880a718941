"""
``memable export --pytest``: a test made of what is recorded of one instance.
"""

from __future__ import annotations

import ast
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

import memable
from memable._cli._exporting import Origin, parse_origin
from memable._record_json import encode_record
from memable._testing._journals import restore_journal
from memable.cli import main

#: Two versions of the code: the second one is the first, mended.
CODE = '''
"""Workflows of a test."""

import math

import memable


async def count() -> int:
    return 3


async def fail(name: str) -> str:
    raise ConnectionError(f"no route to {name}")


async def never() -> str:
    raise AssertionError("a test executes no step")


@memable.workflow
async def healthy(ctx: memable.Context, name: str) -> int:
    return await ctx.step("count", count)


@memable.workflow
async def changed(ctx: memable.Context, name: str) -> int:
    await ctx.step("count", count)
    await ctx.sleep("nap", 3600)
    return await ctx.step("behind", never)


@memable.workflow
async def failing(ctx: memable.Context, name: str) -> str:
    return await ctx.step("dial", fail, name)


@memable.workflow
async def parent(ctx: memable.Context, name: str) -> int:
    return await ctx.call("kid", healthy, name)
'''
MENDED = CODE.replace(
    '    return await ctx.step("dial", fail, name)',
    '    try:\n        return await ctx.step("dial", fail, name)\n'
    "    except memable.StepFailedError:\n        return 'given up'",
)
BROKEN = (
    CODE.replace("async def count() -> int:", "async def count() -> str:")
    .replace("return 3", "return 'three'")
    .replace("(ctx: memable.Context, name: str) -> int", "(ctx: memable.Context, name: str) -> str")
    .replace('    await ctx.step("count", count)\n    await', '    name += await ctx.step("count", count)\n    await')
)
NAMES = ("healthy", "changed", "failing", "parent")
#: What might end a string of Python's, or fool whoever reads it.
NASTY = "'''\\\"\"\"\n\u202e{journal}"


def load(source: str) -> dict[str, Any]:
    """Return what a module with this source defines."""
    module: dict[str, Any] = {"__name__": "shop"}
    exec(compile(source, "shop.py", "exec"), module)  # noqa: S102 - a module of the test's own
    return module


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an instance of each workflow."""
    directory = tmp_path_factory.mktemp("export") / "store"
    module = load(CODE)

    async def fill() -> None:
        async with memable.open_engine(directory, workflows=[module[name] for name in NAMES]) as engine:
            for name in NAMES:
                await (await engine.invoke(module[name], NASTY, instance_id=f"{name} é")).wait()

    trio.run(fill)
    return directory


def export(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run the command, which is to succeed, and return what it prints."""
    status = main(["export", "--pytest", *words])
    told = capsys.readouterr()
    assert (status, told.err) == (0, "")
    return told.out


def run_exported(directory: Path, text: str, code: str) -> subprocess.CompletedProcess[str]:
    """Run an exported test beside the code that it imports."""
    (directory / "shop.py").write_text(code, encoding="utf-8")
    (directory / "test_exported.py").write_text(text, encoding="utf-8")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "test_exported.py"]
    return subprocess.run(words, cwd=directory, capture_output=True, text=True, check=False, timeout=100)


@pytest.mark.parametrize(("name", "asserted"), [("healthy", 2), ("changed", 1), ("parent", 2)])
def test_export_of_healthy_instance_passes(
    name: str, asserted: int, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    The test of an instance that the code copes with passes; of one that had completed, nothing may run again.
    """
    text = export(capsys, str(store), name, f"{name} é", "--import", f"shop:{name}")
    assert text.count("assert ") == asserted
    done = run_exported(tmp_path, text, CODE)
    assert (done.returncode, "1 passed" in done.stdout) == (0, True), done.stdout + done.stderr


def test_export_fails_until_code_is_mended(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    The test of an instance that has failed fails with what left its body, until the code copes with it.
    """
    text = export(capsys, str(store), "failing", "failing é", "--import", "shop:failing")
    assert "# workflow 'failing', instance 'failing é': failed at " in text
    done = run_exported(tmp_path, text, CODE)
    assert (done.returncode, "ConnectionError: no route to " in done.stdout) == (1, True), done.stdout + done.stderr
    done = run_exported(tmp_path, text, MENDED)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["healthy", "changed", "parent"])
def test_export_fails_for_code_that_would_block(
    name: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    A change of the code that disagrees with what is recorded makes the test fail, with the error of the instance.
    """
    text = export(capsys, str(store), name, f"{name} é", "--import", f"shop:{name}")
    done = run_exported(tmp_path, text, BROKEN)
    assert done.returncode == 1
    assert "the code asks for builtins.str, but what is recorded is builtins.int" in done.stdout


def test_export_is_python_whatever_the_values(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    Nothing that is recorded can end the text that it stands in, nor hide in it.
    """
    text = export(capsys, str(store), "failing", "failing é")
    assert "from your_module import your_workflow as workflow" in text
    assert "\u202e" not in text
    assigned = {
        target.id: node.value
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert ast.literal_eval(assigned["INSTANCE_ID"]) == "failing é"
    restored = restore_journal(ast.literal_eval(assigned["JOURNAL"]))
    (started, *_) = restored._records
    assert started.kind == "instance_started"

    async def read() -> list[memable.HistoryEntry]:
        async with memable.open_engine(restored) as engine:
            return await engine.history("failing", "failing é")

    assert trio.run(read)[0].value == [{"type": "builtins.str", "value": NASTY}]


def test_export_has_children(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    The instances that an instance has waited for are exported with it, and no others.
    """
    text = export(capsys, str(store), "parent/parent é")
    assert text.count('{"kind":"instance_started"') == 2
    assert '"instance_id":"parent é/kid"' in text


def test_export_writes_new_file_only(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    With a file to write to, the test is written there, unless something is there already.
    """
    path = tmp_path / "test_it.py"
    assert main(["export", str(store), "healthy", "healthy é", "--pytest", "-o", str(path)]) == 0
    assert capsys.readouterr().out == f"wrote {path}\n"
    written = path.read_text(encoding="utf-8")
    ast.parse(written)
    assert main(["export", str(store), "healthy", "healthy é", "--pytest", "-o", str(path)]) == 1
    assert "File exists" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == written


def test_export_refuses_wrong_words(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    An unknown instance is told; what cannot be imported, and a missing format, are wrong words.
    """
    assert main(["export", str(store), "healthy", "nobody", "--pytest"]) == 1
    assert "has no instance 'nobody'" in capsys.readouterr().err
    for words in (["--pytest", "--import", "shop"], ["--pytest", "--import", "shop:a b"], []):
        with pytest.raises(SystemExit, match="2"):
            main(["export", str(store), "healthy", "healthy é", *words])
        capsys.readouterr()


@pytest.mark.parametrize("text", ["", ":", "shop", "shop:", ":order", "shop:class", "a-b:c", "a..b:c", "shop:a;b"])
def test_parse_origin_refuses_what_cannot_be_imported(text: str) -> None:
    """
    Only names that Python can import are put into the file.
    """
    assert parse_origin(text) is None
    assert parse_origin("shop.orders:order") == Origin("shop.orders", "order")


# restore_journal ---------------------------------------------------------------------------------------------------


async def test_restore_journal_makes_same_store() -> None:
    """
    A store made of its own records shows the same, and an engine goes on with it.
    """

    @memable.workflow
    async def waiting(ctx: memable.Context) -> None:
        await ctx.sleep("nap", math.inf)

    store = memable.InMemoryStore()
    async with memable.open_engine(store, workflows=[waiting]) as engine:
        await (await engine.invoke(waiting, instance_id="i")).wait()
    text = "\n".join(encode_record(record).decode() for record in store._records)
    restored = restore_journal(f"\n{text}\n\n")
    assert restored._records == store._records
    async with memable.open_engine(restored, workflows=[waiting]) as engine:
        assert isinstance(await engine.state(waiting, "i"), memable.Suspended)
        assert await engine.cancel(waiting, "i")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nonsense", "line 1 of the journal: it does not begin with its kind"),
        ('\n{"kind":"store_opened"}', "line 2 of the journal: "),
        ('{"kind":"run_started","instance":1,"seq":2,"at":1,"session":1}', "line 1 .*never started"),
        ('{"kind":"instance_retired","instance":1,"seq":2,"at":1}', "is none of an instance's journal"),
    ],
)
def test_restore_journal_refuses_what_is_none(text: str, told: str) -> None:
    """
    A text that is no journal is refused, with the number of the line.
    """
    with pytest.raises(ValueError, match=told):
        restore_journal(text)
