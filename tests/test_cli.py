"""
The command ``memable``: the demo kills real processes, and notices every lie.
"""

from __future__ import annotations

import importlib.metadata
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

import memable
from memable import cli
from memable._demo._counting import (
    FileCounts,
    Report,
    Tally,
    count_file,
    count_straight,
    list_files,
    report_from_json,
    report_to_json,
)
from memable._demo._effects import Effect, Effects, EffectsReader, Kind
from memable._demo._evidence import Evidence, Life, find_problems
from memable._demo._pipeline import LIST_KEY, key_of, keys_of
from memable._demo._supervise import Job, ProcessFailedError, plan_kills, run_workers
from memable._demo._worker import make_workflow
from memable._keys import check_key

FILES = 40
KEYS = frozenset((LIST_KEY, "count:a.py", "count:b.py"))
REPORT = Report(files=2, unreadable={}, lines=3, tokens=20, names=2, most_used=(("x", 2), ("y", 1)))


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A directory with so many files that a worker has something to do, and one that is no Python."""
    root = tmp_path / "library"
    (root / "package").mkdir(parents=True)
    for index in range(FILES - 1):
        name = f"package/module_{index:02}.py" if index % 2 else f"module_{index:02}.py"
        (root / name).write_text(f"value_{index} = shared + {index}  # counted\n" * 500, encoding="utf-8")
    (root / "unreadable.py").write_bytes(b"# coding: no-such-encoding\n")
    return root


def _evidence(*lives: list[Effect]) -> Evidence:
    evidence = Evidence()
    for effects in lives:
        evidence.begin_life()
        for effect in effects:
            evidence.add(effect)
    return evidence


def _ran(*keys: str) -> list[Effect]:
    return [Effect(Kind.RAN, key) for key in keys]


def _acknowledged(*keys: str) -> list[Effect]:
    return [Effect(Kind.ACKNOWLEDGED, key) for key in keys]


def _honest() -> Evidence:
    return _evidence(
        [*_ran(LIST_KEY), *_acknowledged(LIST_KEY), *_ran("count:a.py", "count:b.py"), *_acknowledged("count:a.py")],
        [*_acknowledged(LIST_KEY, "count:a.py"), *_ran("count:b.py"), *_acknowledged("count:b.py")],
    )


# The command line --------------------------------------------------------------------------------------------------


def test_cli_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    """
    ``memable --version`` prints the version of the package that is installed.
    """
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main(["--version"])
    told = capsys.readouterr().out.strip()
    try:
        expected = f"memable {importlib.metadata.version('memable')}"
    except importlib.metadata.PackageNotFoundError:
        expected = "memable, used from its source without being installed"
    assert told == expected


@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("demo", "--kills", "-1"), ("demo", "--kills", "many")])
def test_cli_refuses_wrong_words(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """
    Words that make no sense end with status 2, and with what would make sense.
    """
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.main(arguments)
    assert "usage: memable" in capsys.readouterr().err


def test_cli_without_rich_says_how_to_install_it() -> None:
    """
    Without the extra, the demo says how to install it, and help works all the same.
    """
    script = "import sys; sys.modules['rich'] = None; from memable import cli; sys.exit(cli.main(sys.argv[1:]))"
    ended = subprocess.run([sys.executable, "-c", script, "demo"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "memable: this needs the package rich; install it with: pip install 'memable[cli]'\n"
    helped = subprocess.run([sys.executable, "-c", script, "--help"], capture_output=True, text=True, check=False)
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "demo" in helped.stdout


# The demo ----------------------------------------------------------------------------------------------------------


def test_demo_survives_kills(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    The demo kills its worker as often as it was asked to, and finds that all is right.
    """
    assert cli.main(["demo", "--root", str(library), "--kills", "3", "--seed", "1"]) == 0
    captured = capsys.readouterr()
    lines = {" ".join(line.split()) for line in captured.out.splitlines()}
    assert captured.err == ""
    assert sum("killed (SIGKILL)" in line for line in lines) == 3
    assert {
        f"files {FILES}",
        "of them unreadable 1 with SyntaxError",
        f"steps of the workflow {FILES + 1}",
        "again, though they were acknowledged (must be 0) 0",
        "kills survived 3",
    } <= lines
    assert max(map(len, captured.out.splitlines())) <= 80


def test_demo_keeps_what_it_is_told_to(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A store of the user's stays and serves a second demo, and ``--keep`` keeps the effects.
    """
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    arguments = ["demo", "--root", str(library), "--store", str(tmp_path / "store"), "--kills", "0"]
    assert cli.main([*arguments, "--keep"]) == 0
    (kept,) = tmp_path.glob("memable-demo-*")
    assert f"kept: {kept}\n" in capsys.readouterr().out
    assert len((kept / "effects-001.log").read_text(encoding="utf-8").splitlines()) == 2 * (FILES + 1)
    assert cli.main(arguments) == 0
    assert list(tmp_path.glob("memable-demo-*")) == [kept]


def test_demo_refuses_foreign_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    A directory of somebody else's is refused with the library's own words, and left alone.
    """
    (tmp_path / "thesis.txt").write_text("precious", encoding="utf-8")
    assert cli.main(["demo", "--store", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"memable demo: {tmp_path}: ")
    assert "thesis.txt" in captured.err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_demo_interrupted_leaves_nothing_behind(library: Path, tmp_path: Path) -> None:
    """
    On control-C the demo ends its worker and removes its files; the store given to it is refused afterwards.
    """
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    script = "import sys; from memable import cli; sys.exit(cli.main(sys.argv[1:]))"
    # It cannot come to its end before the interrupt: the workflow waits for somebody to write to this file.
    os.mkfifo(library / "gate.py")
    store = str(tmp_path / "store")
    command = [sys.executable, "-c", script, "demo", "--root", str(library), "--kills", "0", "--store", store]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert any(line.startswith("  worker") for line in process.stdout)
        # This returns when somebody reads it: the worker, or the straight computation.
        with (library / "gate.py").open("wb"):
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate()
    assert (process.returncode, errors) == (130, "memable demo: interrupted\n")
    assert list(temporary.iterdir()) == []


def test_demo_refuses_store_of_interrupted_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    A store with an unfinished demo in it is refused: its steps would be counted as those of the new one.
    """
    store = tmp_path / "store"

    async def interrupt() -> None:
        job = make_workflow(Effects(tmp_path / "effects.log"), hold=True)
        with trio.CancelScope() as scope:
            async with memable.open_engine(store, workflows=[job]) as engine:
                await engine.invoke(job, tmp_path, instance_id="demo")
                scope.cancel()
                await trio.lowlevel.checkpoint()

    trio.run(interrupt)
    assert cli.main(["demo", "--store", str(store)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (f"memable demo: {store}: holds a demo that was interrupted; remove it or use another one\n")


@pytest.mark.parametrize(
    ("process", "lie", "problem"),
    [
        pytest.param("_worker", "os._exit(3)", "worker 1 exited with status 3 by itself", id="worker that dies"),
        pytest.param("_straight", "os._exit(3)", "the straight computation exited with status 3 by itself", id="check"),
        pytest.param("_straight", "os.walk = lambda root: []", "WRONG: the report's 'files' is 40", id="report"),
        pytest.param(
            "_worker", "shutil.rmtree(sys.orig_argv[6])", "acknowledged steps ran again", id="forgotten store"
        ),
    ],
)
def test_demo_notices_lie(
    *,
    process: str,
    lie: str,
    problem: str,
    library: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    A process that dies, a report that is wrong, and a store that forgets are noticed, told, and end with status 1.
    """
    # Python runs this file in each process before anything else.
    (tmp_path / "sitecustomize.py").write_text(
        f"import os, shutil, sys\nif 'memable._demo.{process}' in sys.orig_argv:\n    {lie}\n",
        encoding="utf-8",
    )
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    )
    # The worker is killed when it has done something, but not all.
    assert 0 < plan_kills(1, FILES + 1, random.Random(1))[0].acknowledged < FILES
    assert cli.main(["demo", "--root", str(library), "--kills", "1", "--seed", "1"]) == 1
    captured = capsys.readouterr()
    assert problem in " ".join((captured.out + captured.err).split())


async def test_demo_notices_worker_that_hangs(
    library: Path, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """
    A worker that does nothing for a minute is given up.
    """
    # The workflow waits for somebody to write to this file.
    os.mkfifo(library / "gate.py")
    job = Job(root=library, store=tmp_path / "store", directory=tmp_path, instance_id="demo")
    with pytest.raises(ProcessFailedError, match=r"^worker 1 did nothing for 60 s$"):
        await run_workers(job, [], Evidence(), _Unwatched())


async def test_demo_notices_worker_that_dies(library: Path, tmp_path: Path) -> None:
    """
    A worker that ends by itself is an error, which tells what the worker said.
    """
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("precious", encoding="utf-8")
    job = Job(root=library, store=foreign, directory=tmp_path, instance_id="demo")
    with pytest.raises(ProcessFailedError, match=r"worker 1 exited with status 1 by itself\n(.|\n)*thesis\.txt"):
        await run_workers(job, [], Evidence(), _Unwatched())


class _Unwatched:
    def show_progress(self, evidence: Evidence) -> None: ...

    def show_end(self, life: Life) -> None: ...


# What the demo is told by, and what it notices ------------------------------------------------------------------------


def test_evidence_of_honest_workers_has_no_problem() -> None:
    """
    A step that ran again because its worker was killed before it was acknowledged is no problem.
    """
    evidence = _honest()
    assert find_problems(evidence, KEYS, REPORT, REPORT) == []
    assert evidence.executions == {LIST_KEY: 1, "count:a.py": 1, "count:b.py": 2}
    told = [(life.recovered, life.ran_first, life.ran_again) for life in evidence.lives]
    assert told == [(0, 3, 0), (2, 0, 1)]


def test_evidence_of_acknowledged_step_that_ran_again() -> None:
    """
    An acknowledged step that runs again is a problem, in the same worker and in a later one.
    """
    evidence = _honest()
    evidence.add(Effect(Kind.RAN, "count:a.py"))
    evidence.begin_life()
    evidence.add(Effect(Kind.RAN, "count:a.py"))
    assert find_problems(evidence, KEYS, REPORT, REPORT) == [
        "1 acknowledged steps ran again, the first of them 'count:a.py' (2 times more)"
    ]


def test_evidence_of_steps_that_are_missing_or_odd() -> None:
    """
    Steps that nobody acknowledged, that nobody ran, or that belong to no file are problems.
    """
    evidence = _evidence([*_ran(LIST_KEY), *_acknowledged(LIST_KEY), *_acknowledged("count:a.py"), *_ran("count:c.py")])
    assert find_problems(evidence, KEYS, REPORT, REPORT) == [
        "1 steps were never acknowledged, one of them 'count:b.py'",
        "1 steps were acknowledged without ever running, one of them 'count:a.py'",
        "1 steps are for no file, one of them 'count:c.py'",
    ]


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("lines", 4, "the report's 'lines' is 4, the straight computation's 3"),
        ("unreadable", {"OSError": 1}, "the report's 'unreadable' is {'OSError': 1}, the straight computation's {}"),
        (
            "most_used",
            (("y", 1), ("x", 2)),
            "the report's 'most_used' is (('y', 1), ('x', 2)), the straight computation's (('x', 2), ('y', 1))",
        ),
    ],
)
def test_evidence_of_wrong_report(name: str, value: object, problem: str) -> None:
    """
    A report that differs from the straight computation's is a problem, which names what differs.
    """
    assert find_problems(_honest(), KEYS, attrs.evolve(REPORT, **{name: value}), REPORT) == [problem]


def test_effects_are_read_as_they_come(tmp_path: Path) -> None:
    """
    A reader returns what is new; a line that a kill cut counts for nothing.
    """
    path = tmp_path / "effects.log"
    reader = EffectsReader(path)
    assert reader.read_new() == []
    effects = Effects(path)
    effects.ran("count:a.py")
    assert reader.read_new() == [Effect(Kind.RAN, "count:a.py")]
    effects.acknowledged("count:a.py")
    with path.open("ab") as file:
        file.write(b"ran count:b")
    assert reader.read_new() == [Effect(Kind.ACKNOWLEDGED, "count:a.py")]
    assert reader.read_new() == []


def test_pipeline_keys_are_valid_and_different() -> None:
    """
    Every path has a key of its own that memable accepts, however odd or long it is.
    """
    paths = ["a/b.py", "a:b.py", "a%3Ab.py", "a%2Fb.py", "_a.py", "a b.py", "a\nb.py", "\udcff.py", "é.py"]
    paths += ["d/" * 150 + "x.py", "d/" * 150 + "y.py"]
    keys = keys_of(paths)
    assert len(keys) == len(paths) + 1
    assert {check_key("key", key) for key in keys} == keys
    assert key_of("asyncio/events.py") == "count:asyncio:events.py"


def test_pipeline_kills_are_spread_over_the_job() -> None:
    """
    Each kill comes in a part of the job of its own, none in the last part, and the seed decides where.
    """
    kills = plan_kills(5, 1200, random.Random(7))
    assert [kill.acknowledged // 200 for kill in kills] == [0, 1, 2, 3, 4]
    assert kills == plan_kills(5, 1200, random.Random(7))
    assert kills != plan_kills(5, 1200, random.Random(8))


def test_counting_files(tmp_path: Path) -> None:
    """
    Lines, tokens and names are counted, keywords aside; what is no Python is told by its error's name.
    """
    (tmp_path / "good.py").write_text("def x(y):\n    return x(y)\n", encoding="utf-8")
    (tmp_path / "encoding.py").write_bytes(b"# coding: no-such-encoding\n")
    (tmp_path / "bytes.py").write_bytes(b"x = '\xff'\n")
    assert count_file(tmp_path / "good.py") == FileCounts(lines=2, tokens=17, names={"x": 2, "y": 2})
    assert count_file(tmp_path / "encoding.py") == FileCounts(unreadable="SyntaxError")
    assert count_file(tmp_path / "bytes.py").unreadable is not None
    assert count_file(tmp_path / "vanished.py") == FileCounts(unreadable="FileNotFoundError")


def test_counting_lists_the_library_alone(tmp_path: Path) -> None:
    """
    Files are listed in a fixed order, without what was installed below the library.
    """
    for name in ("b.py", "a/z.py", "a/site-packages/x.py", "site-packages/y.py", "a/notes.txt", "a.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list_files(tmp_path) == ["a.py", "a/z.py", "b.py"]


def test_counting_reports_pass_between_processes(library: Path) -> None:
    """
    A report is the same after its way through a text, and whatever the order in which files were counted.
    """
    report = count_straight(library)
    assert (report.files, report.unreadable, report.most_used[0]) == (
        FILES,
        {"SyntaxError": 1},
        ("shared", 500 * (FILES - 1)),
    )
    assert report_from_json(report_to_json(report)) == report
    tally = Tally()
    for path in reversed(list_files(library)):
        tally.add(count_file(library / path))
    assert tally.report() == report


# The main job ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_demo_over_the_standard_library(capsys: pytest.CaptureFixture[str]) -> None:
    """
    ``memable demo`` survives five kills over Python's standard library, and recovers what was done before them.
    """
    assert cli.main(["demo"]) == 0
    captured = capsys.readouterr()
    figures = {" ".join(words[:-1]): words[-1] for words in map(str.split, captured.out.splitlines()) if len(words) > 1}
    assert captured.err == ""
    assert figures["kills survived"] == "5"
    assert figures["again, though they were acknowledged (must be 0)"] == "0"
    assert int(figures["memos recovered from the store"].replace(",", "")) > 300
