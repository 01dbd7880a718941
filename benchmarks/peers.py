"""
The same workloads on memable and on the engines that a user would pick instead, each in its default durability.

Each runs in a process of its own, those of others in environments of their own (see peer_environments.py). All write to
one file system, and take turns.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TypeAlias

import attrs
import postgres
import syncs
from figures import Figure, Settings, at_least, number, ratio_of
from limits import BareFile

HERE = Path(__file__).parent
#: What a process is asked for: a workload, how many workflows, how many steps each.
Job: TypeAlias = tuple[str, int, int]
#: What is made on first use is not what is measured.
WARM_UP: Job = ("at_once", 1, 20)
LARGE: Job = ("at_once", 1_000, 50)

#: An engine that hangs is given up after this, in seconds: the slowest take a minute.
LONGEST_S = 900.0
#: A round of all engines takes a minute or two, so there is one for so many of other workloads.
ROUNDS_EACH = 3
STEPS = 10
SHORT_STEPS = 5
COUNTED_STEPS = 200
COUNTED_WORKFLOWS = 20

#: What the disk does just before an engine is measured: it explains why an engine was slow for once.
BARE = "a bare write + fdatasync just before"
BARE_BYTES = 200
BARE_COUNT = 500

SEQUENTIAL = "sequential steps"
AT_ONCE = f"workflows of {STEPS} steps at once"
SHORT_AT_ONCE = f"{SHORT_STEPS}-step workflows at once"
SHORT_IN_TURN = f"{SHORT_STEPS}-step workflows in turn"
REPLAY = "replay"
PARKED = "parked"
LARGE_AT_ONCE = "1,000 x 50 steps at once"


@attrs.frozen
class Sizes:
    """
    How much an engine is given: enough to measure, little enough to wait for.
    """

    sequential: int
    at_once: int
    short: int
    in_turn: int
    replayed: int
    parked: int


FAST = Sizes(sequential=1_000, at_once=200, short=500, in_turn=100, replayed=1_000, parked=1_000)
SLOW = Sizes(sequential=200, at_once=80, short=60, in_turn=30, replayed=200, parked=200)
SLOW_FULL = Sizes(sequential=1_000, at_once=200, short=200, in_turn=100, replayed=1_000, parked=1_000)


@attrs.frozen
class System:
    """
    An engine, and how it is run.
    """

    name: str
    program: Path
    python: Path
    sizes: Sizes
    goal_times: float = 1.0
    "How many times its steps a second memable's have to be, when many workflows run at once."
    place: str | None = None
    "The database that it uses; None for a new file each time."


def measure(settings: Settings) -> list[Figure]:
    systems = [System("memable", HERE / "peer_memable.py", Path(sys.executable), FAST)]
    systems += _installed(settings)
    with _postgres(settings, systems) as cluster:
        if cluster is not None:
            with postgres.running(cluster):
                found = _rounds(settings, systems)
        else:
            found = _rounds(settings, systems)
        systems = [system for system in systems if system.name in found]
        counted = _count_syncs(settings, systems, cluster)
    figures = []
    for name, rows in found.items():
        medians = {key: median(row[key] for row in rows) for key in rows[0]}
        figures += [
            Figure(workload, value, unit, system=name)
            for (workload, unit), value in (medians | counted.get(name, {})).items()
        ]
    return [*_goals(systems, found), *figures]


# The systems ----------------------------------------------------------------------------------------------------------


def _installed(settings: Settings) -> list[System]:
    slow = SLOW_FULL if settings.full else SLOW
    systems = []
    if (python := _interpreter(settings, "dbos")) is not None:
        name = f"DBOS {_version(python, 'dbos')}"
        systems.append(System(f"{name} (SQLite)", HERE / "peer_dbos.py", python, slow, 100.0))
        if settings.postgres is not None:
            place = "" if settings.postgres == postgres.PRIVATE else settings.postgres
            systems.append(System(f"{name} (PostgreSQL)", HERE / "peer_dbos.py", python, slow, 100.0, place))
        else:
            settings.notes.append("DBOS with PostgreSQL skipped: --postgres was not given")
    if (python := _interpreter(settings, "dura")) is not None:
        systems.append(System(f"dura {_version(python, 'dura')}", HERE / "peer_dura.py", python, FAST, 12.0))
    return systems


def _interpreter(settings: Settings, peer: str) -> Path | None:
    if settings.peers is None:
        settings.notes.append(f"{peer} skipped: --peers was not given")
        return None
    python = settings.peers / peer / "bin" / "python"
    if python.exists():
        return python
    why = settings.peers / f"{peer}.why"
    reason = why.read_text(encoding="utf-8").strip() if why.exists() else f"{python} does not exist"
    settings.notes.append(f"{peer} skipped: {reason}")
    return None


def _version(python: Path, package: str) -> str:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([python, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


@contextmanager
def _postgres(settings: Settings, systems: list[System]) -> Iterator[postgres.Cluster | None]:
    """
    Make the cluster that a system is without, or take that system out.
    """
    without = next((system for system in systems if system.place == ""), None)
    if without is None:
        yield None
        return
    with tempfile.TemporaryDirectory(dir=settings.directory) as directory:
        place = systems.index(without)
        try:
            # Other users have to pass through it.
            settings.directory.chmod(0o711)
            cluster = postgres.make_cluster(Path(directory))
            with postgres.running(cluster):
                pass
        except postgres.NoPostgresError as error:
            settings.notes.append(f"{without.name} skipped: {error}")
            del systems[place]
            yield None
        else:
            systems[place] = attrs.evolve(without, place=cluster.url)
            yield cluster


# Running them ---------------------------------------------------------------------------------------------------------


@attrs.frozen
class _Runner:
    """Runs systems in processes, each with files of its own."""

    directory: Path
    numbers: Iterator[int] = attrs.field(factory=itertools.count)

    def new_place(self) -> Path:
        return self.directory / f"place-{next(self.numbers)}"

    def run(
        self,
        system: System,
        place: Path,
        jobs: Sequence[Job],
        trace: Path | None = None,
        **variables: str,
    ) -> list[dict[str, float]]:
        command: list[str | Path] = [system.python, system.program, system.place or place, json.dumps(jobs)]
        if trace is not None:
            command = syncs.traced(command, trace)
        # Whoever shares a database must not take up what another run left behind.
        environment = {**os.environ, "BENCH_RUN": str(place), **variables}
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=environment, timeout=LONGEST_S
        )
        found: list[dict[str, float]] = json.loads(done.stdout or "[]")
        return found


_Row: TypeAlias = dict[tuple[str, str], float]


def _rounds(settings: Settings, systems: Sequence[System]) -> dict[str, list[_Row]]:
    runner = _Runner(settings.directory)
    found: dict[str, list[_Row]] = {system.name: [] for system in systems}
    for _ in range(max(1, settings.rounds // ROUNDS_EACH)):
        for system in systems:
            if system.name not in found:
                continue
            try:
                found[system.name].append(_round(runner, system))
            except subprocess.SubprocessError as error:
                if system.name == "memable":
                    raise
                # What it said stands above the tables; the others are measured all the same.
                settings.notes.append(f"{system.name} skipped: {_told(error)}")
                del found[system.name]
    return found


def _told(error: subprocess.SubprocessError) -> str:
    # Its text has the whole command, and in that the password of a database.
    if isinstance(error, subprocess.CalledProcessError):
        return f"its process ended with {error.returncode}"
    return "its process did not end"


def _round(runner: _Runner, system: System) -> _Row:
    sizes = system.sizes
    jobs: dict[str, Job] = {
        SEQUENTIAL: ("at_once", 1, sizes.sequential),
        AT_ONCE: ("at_once", sizes.at_once, STEPS),
        SHORT_AT_ONCE: ("at_once", sizes.short, SHORT_STEPS),
        SHORT_IN_TURN: ("in_turn", sizes.in_turn, SHORT_STEPS),
    }
    if system.name == "memable":
        jobs[LARGE_AT_ONCE] = LARGE
    bare_s = _bare_sync_s(runner.new_place())
    _, *results = runner.run(system, runner.new_place(), [WARM_UP, *jobs.values()])
    row: _Row = {(BARE, "µs"): bare_s * 1e6}
    for (column, (_, workflows, steps)), result in zip(jobs.items(), results, strict=True):
        is_short = column in {SHORT_AT_ONCE, SHORT_IN_TURN}
        many, unit = (workflows, "workflows/s") if is_short else (workflows * steps, "steps/s")
        row[column, unit] = many / result["seconds"]
    place = runner.new_place()
    runner.run(system, place, [("crash", 1, sizes.replayed)])
    (replayed,) = runner.run(system, place, [("replay", 1, sizes.replayed)], REPLAYING="1")
    row[REPLAY, "µs a step"] = replayed["seconds"] / sizes.replayed * 1e6
    (parked,) = runner.run(system, runner.new_place(), [("park", sizes.parked, 0)])
    row[PARKED, "KiB each"] = parked["bytes_each"] / 1024
    return row


def _bare_sync_s(path: Path) -> float:
    file = BareFile(path)
    took = file.append([b"x" * BARE_BYTES] * BARE_COUNT)
    file.close()
    return took / BARE_COUNT


# Their syncs ----------------------------------------------------------------------------------------------------------


def _count_syncs(settings: Settings, systems: Sequence[System], cluster: postgres.Cluster | None) -> Mapping[str, _Row]:
    if (reason := syncs.why_not()) is not None:
        settings.notes.append(f"syncs not counted: {reason}")
        return {}
    runner = _Runner(settings.directory / "syncs")
    runner.directory.mkdir()
    counted: dict[str, _Row] = {}
    for system in systems:
        try:
            if system.place is None:
                counted[system.name] = _syncs_of(runner, system)
            elif cluster is not None:
                trace = cluster.directory / "trace"
                with postgres.running(cluster, trace):
                    counted[system.name] = _syncs_of(runner, system, trace)
            else:
                settings.notes.append(f"syncs of {system.name} not counted: its server is not ours")
        except syncs.OpenedSyncedError as error:
            settings.notes.append(f"syncs of {system.name} not counted: each write is one: {error}")
        except subprocess.SubprocessError as error:
            settings.notes.append(f"syncs of {system.name} not counted: {_told(error)}")
    return counted


def _syncs_of(runner: _Runner, system: System, server_trace: Path | None = None) -> _Row:
    def count(*jobs: Job) -> int:
        place = runner.new_place()
        if server_trace is None:
            own = place.with_name(f"{place.name}.trace")
            runner.run(system, place, jobs, own)
            return syncs.count_syncs(own.read_text(encoding="utf-8", errors="replace"))
        before = len(server_trace.read_bytes())
        runner.run(system, place, jobs)
        return syncs.count_syncs(server_trace.read_bytes()[before:].decode(errors="replace"))

    # A first one makes tables, or a log.
    count(WARM_UP)
    # What starting and stopping takes is taken off.
    start = count(WARM_UP)
    alone = count(WARM_UP, ("at_once", 1, COUNTED_STEPS)) - start
    together = count(WARM_UP, ("at_once", COUNTED_WORKFLOWS, STEPS)) - start
    return {
        ("syncs, one workflow", "a step"): alone / COUNTED_STEPS,
        (f"syncs, {COUNTED_WORKFLOWS} workflows", "a step"): together / COUNTED_WORKFLOWS / STEPS,
    }


# What memable has to reach --------------------------------------------------------------------------------------------


def _goals(systems: Sequence[System], found: Mapping[str, Sequence[_Row]]) -> Iterator[Figure]:
    for system in systems[1:]:
        pairs = [(SEQUENTIAL, SEQUENTIAL, 1.0), (LARGE_AT_ONCE, AT_ONCE, system.goal_times)]
        for workload, their_workload, times in pairs:
            ours = [row[workload, "steps/s"] for row in found["memable"]]
            theirs = [row[their_workload, "steps/s"] for row in found[system.name]]
            ratio = ratio_of(ours, theirs)
            yield Figure(
                workload,
                median(ours),
                "steps/s",
                system.name if workload == their_workload else f"{system.name}, {their_workload}",
                median(theirs),
                ratio,
                at_least(ratio, times, "times"),
            )


def rows_of(figures: Sequence[Figure]) -> list[tuple[str, ...]]:
    """
    Return what was measured of all systems as the rows of a table, and the systems as its columns.
    """
    mine = [figure for figure in figures if figure.system]
    workloads = list(dict.fromkeys((figure.workload, figure.unit) for figure in mine))
    names = list(dict.fromkeys(figure.system for figure in mine))
    values = {(figure.workload, figure.unit, figure.system): figure.value for figure in mine}
    header = ("the same on each", *names)
    rows = [
        (f"{workload}, {unit}", *(_cell(values.get((workload, unit, name))) for name in names))
        for workload, unit in workloads
    ]
    return [header, *rows]


def _cell(value: float | None) -> str:
    return "" if value is None else number(value)
