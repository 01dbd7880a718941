"""
The checks of memable, one session each. Plain ``nox`` runs all that a change must pass.
"""

from __future__ import annotations

from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.sessions = ["lint", "typing", "tests", "property", "docs"]
# Tests run on those supported versions of Python that are installed; none is downloaded.
nox.options.error_on_missing_interpreters = False
nox.options.download_python = "never"

SUPPORTED_PYTHONS = nox.project.python_versions(nox.project.load_toml("pyproject.toml"))
#: Tests run in as many processes as there are cores, each given one test at a time: none has long ones left at the end.
TOGETHER = ("--numprocesses=auto", "--dist=load", "--maxschedchunk=1")
#: pytest's exit code if no test was chosen.
NO_TESTS = 5
#: memable with all its extras.
PACKAGE = ".[cli,pydantic,testing]"


@nox.session
def lint(session: nox.Session) -> None:
    """
    Check format and style with ruff.
    """
    session.install("--group", "lint")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


@nox.session
def typing(session: nox.Session) -> None:
    """
    Check types with mypy and pyright, and that the public interface is typed completely.
    """
    session.install(PACKAGE, "--group", "typing")
    session.run("mypy", "src", "tests/typing_api.py", "noxfile.py", "examples")
    # Without this pyright asks over the network whether there is a newer one.
    quiet = {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    session.run("pyright", env=quiet)
    session.run("pyright", "--verifytypes", "memable", "--ignoreexternal", env=quiet)


@nox.session(python=SUPPORTED_PYTHONS)
def tests(session: nox.Session) -> None:
    """
    Run the tests and measure the coverage of the quick ones, child processes included.
    """
    session.install(PACKAGE, "--group", "test")
    environment = {"COVERAGE_FILE": f".coverage.{session.python}"}
    session.run("coverage", "erase", env=environment)
    # What is ignored here has sessions of its own.
    ignored = [f"--ignore={path}" for path in ("tests/property", "tests/test_docs.py")]
    options = ["tests", *TOGETHER, *ignored, *session.posargs]
    # To measure their coverage would double the time of the slow ones. What is asked for may be of one kind only.
    codes = [0, NO_TESTS] if session.posargs else [0]
    session.run("coverage", "run", "-m", "pytest", "-m", "not slow", *options, env=environment, success_codes=codes)
    session.run("pytest", "-m", "slow", *options, success_codes=codes)
    if not session.posargs:
        session.notify("coverage")


@nox.session
def coverage(session: nox.Session) -> None:
    """
    Report what the tests covered on all versions of Python together. The session ``tests`` starts it.
    """
    session.install("--group", "coverage")
    session.run("coverage", "combine")
    session.run("coverage", "report")


@nox.session(name="property")
def property_tests(session: nox.Session) -> None:
    """
    Run the property-based tests.
    """
    session.install(PACKAGE, "--group", "test")
    session.run("pytest", "tests/property", *TOGETHER, "--hypothesis-profile=ci", *session.posargs)


@nox.session
def mutants(session: nox.Session) -> None:
    """
    Break the store in each of many ways, in a copy of the checkout, and show which test notices.
    """
    session.install(PACKAGE, "--group", "test")
    session.run("python", "tests/run_mutants.py", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """
    Cut the power of whole engines, for an hour unless told otherwise. ``-- --story N`` tells one story again.
    """
    session.install(PACKAGE, "--group", "test")
    session.run("python", "-m", "soak", *session.posargs, env={"PYTHONPATH": "tests"})


@nox.session
def docs(session: nox.Session) -> None:
    """
    Build the site without the network, and run every example, command and link of the documentation.
    """
    session.install(".[cli,pydantic,testing]", "--group", "docs", "--group", "test")
    # A warning is an error: a link that leads nowhere, a name that is not in the reference.
    session.run("sphinx-build", "-b", "html", "-n", "-W", "--keep-going", "-E", "-q", "docs", "docs/_build/html")
    session.run("pytest", "tests/test_docs.py", "tests/test_diagrams.py", *TOGETHER, *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """
    Print how fast memable is, beside what the machine can do and beside other engines, and write it to bench.json.
    """
    session.install(".[testing]")
    peers = Path(session.virtualenv.location, "peers")
    session.run("python", "benchmarks/peer_environments.py", str(peers))
    session.run("python", "benchmarks/run.py", "--peers", str(peers), "--json", "bench.json", *session.posargs)


@nox.session(name="bench-check")
def bench_check(session: nox.Session) -> None:
    """
    Compare two revisions in one run, and fail if the newer is slower beyond noise: ``-- BASE [HEAD]``.
    """
    session.install(".")
    session.run("python", "benchmarks/check.py", *session.posargs)
