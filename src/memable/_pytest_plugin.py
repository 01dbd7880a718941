"""
The plugin for pytest: fixtures that give a test an engine, a store and virtual time; a marker that explores crashes.

It is loaded in each run of pytest where memable is installed, so it imports nothing but pytest until a test asks for
more.

Example::

    @pytest.mark.memable_crashes(workflows=[order])
    async def test_order_charges_once(memable_engine, effects):
        invocation = await memable_engine.invoke(order, instance_id="o-1")
        assert await invocation.result() == "receipt"
        effects.assert_at_most(1)
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import pytest

_ENGINE = "memable_engine"
_CRASHES = "memable_crashes"
_MARKERS = (
    (
        "memable(workflows, **options): what the engine of the fixture memable_engine is opened with, and that of a "
        "test marked memable_crashes."
    ),
    (
        "memable_crashes(workflows, depth=1, **options): run the test, an async function that takes memable_engine, "
        "once for each place where its process could die. Options are those of memable.testing.explore_crashes; "
        "outside= takes names of the test's fixtures, too."
    ),
)
_INSTEAD = {
    "memable_store": "each schedule has a store of its own",
    "virtual_clock": "time is virtual in each schedule anyway",
}
_scenario_key = pytest.StashKey[Callable[..., Any]]()


# Hooks -------------------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """
    Add the option that runs one schedule.
    """
    parser.getgroup("memable", "memable").addoption(
        "--memable-only",
        metavar="RECIPE",
        default=None,
        help="of each test marked memable_crashes run one schedule only, with memable's log on; a report prints the "
        'recipe, such as "7,2"',
    )


def pytest_configure(config: pytest.Config) -> None:
    """
    Make the markers known, and check the option.
    """
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)
    recipe: str | None = config.getoption("--memable-only")
    if recipe is not None:
        with _needing_extra():
            from ._testing._crash_plan import CrashPlan  # noqa: PLC0415 - only where a test asks for it
        try:
            CrashPlan.parse(recipe)
        except ValueError as exc:
            raise pytest.UsageError(f"--memable-only: {exc}") from None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """
    Refuse a wrong use before any fixture is made.
    """
    if not isinstance(item, pytest.Function):
        return
    if item.get_closest_marker(_CRASHES) is not None:
        _check_crash_test(item)
        # What runs async tests may wrap the function later.
        item.stash.setdefault(_scenario_key, item.obj)
    elif _ENGINE in item.fixturenames:
        if item.get_closest_marker("trio") is None:
            _refuse(
                f"{_ENGINE} is for async tests that pytest-trio runs; install pytest-trio and mark the test with "
                "@pytest.mark.trio, or set trio_mode = true for all tests"
            )
    elif item.get_closest_marker("memable") is not None:
        _refuse(f"the marker memable is for tests that take {_ENGINE}; take it, or remove the marker")


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> object:
    """
    Let a test that explores crashes wait for its engine: each schedule has another one.
    """
    is_ours = fixturedef.argname == _ENGINE and fixturedef.func.__module__ == __name__
    if not is_ours or request.node.get_closest_marker(_CRASHES) is None:
        return None
    later = _Later()
    # It has no parameters that it could be cached by.
    fixturedef.cached_result = (later, None, None)
    return later


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """
    Run a test that explores crashes.
    """
    __tracebackhide__ = True
    scenario = pyfuncitem.stash.get(_scenario_key, None)
    if scenario is None:
        return None
    with _needing_extra():
        from ._testing._crash_tests import explore_test, resolve_outside  # noqa: PLC0415 - only where a test asks
    options = {**_options_of(pyfuncitem, "memable"), **_options_of(pyfuncitem, _CRASHES)}
    try:
        options = resolve_outside(options, pyfuncitem.funcargs)
    except LookupError as exc:
        _refuse(f"{_CRASHES}: {exc.args[0]}")
    report = explore_test(
        scenario,
        _arguments_of(pyfuncitem, scenario),
        options,
        only=pyfuncitem.config.getoption("--memable-only"),
        name=pyfuncitem.nodeid,
    )
    pyfuncitem.add_report_section("call", "memable", str(report))
    return True


# Fixtures ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def memable_store() -> Any:
    """
    An empty ``memable.testing.SimulatedStore``.
    """
    with _needing_extra():
        from ._testing._simulated_store import SimulatedStore  # noqa: PLC0415 - only where a test asks for it
    return SimulatedStore()


@pytest.fixture
def effects() -> Any:
    """
    A ``memable.testing.Effects`` with nothing recorded.
    """
    from ._testing._effects import Effects  # noqa: PLC0415 - only where a test asks for it

    return Effects()


@pytest.fixture
def virtual_clock() -> Any:
    """
    A clock of trio's that jumps ahead whenever all tasks wait; pytest-trio runs the test by it.

    In a test that takes ``memable_engine``, too, the system's clock follows it, from half a minute before 2026 (UTC).
    """
    from trio.testing import MockClock  # noqa: PLC0415 - only where a test asks for it

    return MockClock(autojump_threshold=0)


@pytest.fixture
async def memable_engine(request: pytest.FixtureRequest, memable_store: Any) -> AsyncIterator[Any]:
    """
    A ``memable.Engine`` over the store of the fixture ``memable_store``, open as long as the test runs.

    Its workflows and options are those of the marker ``memable``; more workflows can be registered with
    ``memable_engine.register(workflow)``. What still runs at the end of the test is cancelled, unless the marker gives
    another ``shutdown_timeout``. A test may kill the store: then it is no mistake that the engine cannot close it.
    """
    from ._errors import StorageError  # noqa: PLC0415 - only where a test asks for it
    from ._open import open_engine  # noqa: PLC0415 - the same

    options = {"shutdown_timeout": 0.0, **_options_of(request.node, "memable")}
    has_ended = False
    clock = request.getfixturevalue("virtual_clock") if "virtual_clock" in request.fixturenames else None
    with _accompany(clock):
        try:
            async with open_engine(memable_store, **options) as engine:
                yield engine
                has_ended = True
        except StorageError:
            if not (has_ended and memable_store.is_dead):
                raise


@contextmanager
def _accompany(clock: Any) -> Iterator[None]:
    """Let the system's clock follow trio's virtual one inside the block, if there is one."""
    if clock is None:
        yield
        return
    import trio  # noqa: PLC0415 - only where a test asks for it

    with _needing_extra():
        from ._testing._life import BEGINS_AT_UNIX_S  # noqa: PLC0415 - the same
        from ._testing._virtual_time import Companion  # noqa: PLC0415 - the same
    from ._clock import begin_virtual_time  # noqa: PLC0415 - the same

    begin_virtual_time(BEGINS_AT_UNIX_S)
    began_at = trio.current_time()
    with Companion(clock, lambda: BEGINS_AT_UNIX_S + trio.current_time() - began_at).beside():
        yield


# What they have in common ------------------------------------------------------------------------------------------


class _Later:
    """
    Stands for the engine of a test that explores crashes, until there is one.
    """

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"no fixture can use {_ENGINE} in a test marked {_CRASHES}: each schedule has an engine of its own, which "
            "only the test itself is given"
        )


def _check_crash_test(item: pytest.Function) -> None:
    """Refuse a test whose crashes cannot be explored."""
    if getattr(item.obj, "is_hypothesis_test", False):
        _refuse(f"a test of Hypothesis cannot be marked {_CRASHES}; call memable.testing.explore_crashes in it")
    if not inspect.iscoroutinefunction(item.obj):
        _refuse(f"a test marked {_CRASHES} must be an async function: it is what the process does with its engine")
    parameters = inspect.signature(item.obj).parameters
    if _ENGINE not in parameters:
        _refuse(f"a test marked {_CRASHES} must take {_ENGINE}: it is what the process does with its engine")
    for name, reason in _INSTEAD.items():
        if name in parameters:
            _refuse(f"a test marked {_CRASHES} cannot use {name}: {reason}")
    options = {**_options_of(item, "memable"), **_options_of(item, _CRASHES)}
    if "workflows" not in options:
        _refuse(f"say which workflows the engine is to have: @pytest.mark.{_CRASHES}(workflows=[...])")


def _options_of(node: Any, marker: str) -> dict[str, Any]:
    """Return the options of a marker, those nearest to the test before those of its class and module."""
    possible = _crash_options() if marker == _CRASHES else _engine_options()
    options: dict[str, Any] = {}
    for mark in reversed(list(node.iter_markers(marker))):
        unknown = ", ".join(sorted(mark.kwargs.keys() - possible))
        if mark.args or unknown:
            problem = f"there is no option {unknown}" if unknown else "options are given by name"
            _refuse(f"@pytest.mark.{marker}: {problem}; there are {', '.join(sorted(possible))}")
        options.update(mark.kwargs)
    return options


def _engine_options() -> set[str]:
    from ._open import open_engine  # noqa: PLC0415 - only where a test asks for it

    return set(inspect.signature(open_engine).parameters) - {"store"}


def _crash_options() -> set[str]:
    with _needing_extra():
        from ._testing._exploring import EngineOptions, explore_crashes  # noqa: PLC0415 - only where a test asks for it
    parameters = set(inspect.signature(explore_crashes).parameters) - {"scenario", "only", "options"}
    return parameters | set(EngineOptions.__annotations__)


def _arguments_of(item: pytest.Function, scenario: Callable[..., Any]) -> dict[str, Any]:
    """Return what a test is called with in each schedule, beside its engine."""
    arguments = {
        name: item.funcargs[name]
        for name in inspect.signature(scenario).parameters
        if name != _ENGINE and name in item.funcargs
    }
    for name, value in arguments.items():
        # pytest-trio makes the values of async fixtures when it runs a test, which it does not here.
        if type(value).__module__.startswith("pytest_trio"):
            _refuse(f"a test marked {_CRASHES} cannot use the async fixture {name}: it is run in many processes")
    return arguments


@contextmanager
def _needing_extra() -> Iterator[None]:
    """Say what to install where something is missing."""
    try:
        yield
    except ModuleNotFoundError as exc:
        _refuse(f"memable's plugin for pytest needs {exc.name} for this; install memable[testing]")


def _refuse(problem: str) -> NoReturn:
    """Let the test fail, without a traceback: it says nothing about what the test does."""
    pytest.fail(problem, pytrace=False)
