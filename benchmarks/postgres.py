"""
A PostgreSQL of our own, on loopback, with the defaults it comes with.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs
import syncs

#: What is said instead of a URL to get one.
PRIVATE = "private"
#: PostgreSQL refuses to run as root. One of these is on every system.
USERS = ("postgres", "nobody")
#: Where packages keep the programs that are not meant for everyone.
_PROGRAMS = "/usr/lib/postgresql/*/bin"
_READY = "database system is ready to accept connections"
_STOP_S = 30.0


class NoPostgresError(Exception):
    """
    There is no PostgreSQL here, or it does not start.
    """


@attrs.frozen
class Cluster:
    """
    Where a new cluster is, and who may use it.
    """

    programs: Path
    directory: Path
    user: str | None
    "Who runs it; None for whoever runs this."
    port: int
    password: str = attrs.field(repr=False)

    @property
    def url(self) -> str:
        """What a client is given."""
        return f"postgresql://bench:{self.password}@127.0.0.1:{self.port}/bench"


def make_cluster(parent: Path) -> Cluster:
    """
    Make a cluster below a directory that is ours.

    Raises:
        NoPostgresError: It cannot be made.
    """
    user = _user() if os.geteuid() == 0 else None
    directory = parent / "postgres"
    directory.mkdir(mode=0o700)
    password = secrets.token_hex(16)
    secret = directory / "password"
    secret.touch(mode=0o600)
    secret.write_text(password, encoding="ascii")
    if user is not None:
        # Enough to pass through it.
        parent.chmod(0o711)
        shutil.chown(directory, user)
        shutil.chown(secret, user)
    programs = _programs()
    cluster = Cluster(programs, directory, user, _free_port(), password)
    options = ("--username=bench", "--auth=scram-sha-256", f"--pwfile={secret}", "--encoding=UTF8")
    done = _run(cluster, [programs / "initdb", *options, "-D", directory / "cluster"])
    if done.returncode != 0:
        raise NoPostgresError(f"initdb failed: {_last_line(done.stderr)}")
    return cluster


@contextmanager
def running(cluster: Cluster, trace: Path | None = None) -> Iterator[None]:
    """
    Run the server of a cluster, its syncs written to *trace* if that is given.

    Raises:
        NoPostgresError: It does not start.
    """
    listen = ("-p", str(cluster.port), "-k", "", "-c", "listen_addresses=127.0.0.1")
    command: list[str | Path] = [cluster.programs / "postgres", "-D", cluster.directory / "cluster", *listen]
    if trace is not None:
        command = syncs.traced(command, trace)
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(),
        user=cluster.user,
        cwd=cluster.directory,
        # What stops this program from the keyboard would stop the server before it is asked to.
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        try:
            said = ""
            for said in process.stderr:
                if _READY in said:
                    break
            else:
                raise NoPostgresError(f"postgres ended: {said.strip()}")
            # What it says later must not fill the pipe.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield
        finally:
            _stop(cluster, process)


def _stop(cluster: Cluster, process: subprocess.Popen[str]) -> None:
    # strace keeps signals to itself, so the server is found by the file that it writes.
    with suppress(FileNotFoundError, ProcessLookupError, ValueError, IndexError):
        text = (cluster.directory / "cluster" / "postmaster.pid").read_text(encoding="ascii")
        os.kill(int(text.splitlines()[0]), signal.SIGINT)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _programs() -> Path:
    found = shutil.which("initdb")
    if found is not None and (Path(found).resolve().parent / "postgres").exists():
        return Path(found).resolve().parent
    # The newest comes last, as long as all have two digits.
    places = sorted(path for path in Path("/").glob(_PROGRAMS[1:]) if (path / "initdb").exists())
    if not places:
        raise NoPostgresError("PostgreSQL is not installed")
    return places[-1]


def _user() -> str:
    known = {entry.pw_name for entry in pwd.getpwall()}
    for name in USERS:
        if name in known:
            return name
    raise NoPostgresError("it does not run as root, and there is no user for it")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _run(cluster: Cluster, command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        env=_environment(),
        user=cluster.user,
        cwd=cluster.directory,
    )


def _environment() -> dict[str, str]:
    # Its messages are read.
    return {**os.environ, "LC_ALL": "C"}


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"
