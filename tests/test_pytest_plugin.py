"""
The plugin for pytest, as runs of pytest on small test files see it.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from textwrap import dedent

import pytest

from memable import _pytest_plugin, testing

# An installed memable brings its plugin along, and pytest takes none twice.
PLUGIN = () if entry_points(group="pytest11", name="memable") else ("-p", _pytest_plugin.__name__)
TRIO_MODE = ("-o", "trio_mode=true")

WORKFLOWS = """
import time

import pytest
import trio

import memable

async def fetch(page):
    return page.upper()

@memable.workflow
async def crawl(ctx, page):
    return await ctx.step("fetch", fetch, page)

@memable.workflow
async def nap(ctx):
    await ctx.sleep("nap", 3600)
    return time.time()

async def result(engine, workflow, *args):
    return await (await engine.invoke(workflow, *args, instance_id="i")).result()
"""


def run(pytester: pytest.Pytester, tests: str, *args: str) -> pytest.RunResult:
    """Run pytest, strictly, on a file with workflows and these tests."""
    pytester.makepyfile(test_it=WORKFLOWS + tests)
    return pytester.runpytest_inprocess(*PLUGIN, "-p", "no:cacheprovider", "--strict-markers", "-W", "error", *args)


# Fixtures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [(), TRIO_MODE], ids=["marked", "trio_mode"])
def test_memable_engine_runs_the_workflows_of_the_marker(pytester: pytest.Pytester, args: tuple[str, ...]):
    """
    ``memable_engine`` is an engine with the workflows and options of the marker ``memable``, or none.
    """
    tests = """
    @pytest.mark.memable(workflows=[crawl], max_value_bytes=50)
    {mark}
    async def test_marked(memable_engine):
        assert await result(memable_engine, crawl, "a") == "A"
        with pytest.raises(memable.SerializationError):
            await memable_engine.invoke(crawl, "long" * 50)

    {mark}
    async def test_registered(memable_engine):
        with pytest.raises(memable.WorkflowNotFoundError):
            await memable_engine.invoke(crawl, "a")
        memable_engine.register(crawl)
        assert await result(memable_engine, crawl, "a") == "A"

    @pytest.mark.memable(workflows=[crawl])
    class TestClass:
        @pytest.mark.parametrize("page", ["a", "b"])
        {mark}
        async def test_method(self, memable_engine, page):
            assert await memable_engine.list_instances() == []
            assert await result(memable_engine, crawl, page) == page.upper()
    """
    mark = "" if args else "@pytest.mark.trio"
    run(pytester, dedent(tests.format(mark=mark)), *args).assert_outcomes(passed=4)


def test_memable_store_is_that_of_the_engine_and_can_be_killed(pytester: pytest.Pytester):
    """
    A test may kill the store of its engine, and go on with what is left; a store that fails fails the test.
    """
    found = run(
        pytester,
        """
from memable.testing import DiskFault, SimulatedStore

@pytest.mark.memable(workflows=[crawl])
async def test_killed(memable_engine, memable_store):
    await result(memable_engine, crawl, "a")
    async with memable.open_engine(memable_store.kill(), workflows=[crawl]) as engine:
        assert await result(engine, crawl, "a") == "A"

@pytest.mark.memable(workflows=[crawl])
async def test_killed_and_used(memable_engine, memable_store):
    memable_store.kill()
    await result(memable_engine, crawl, "a")

@pytest.mark.memable(workflows=[crawl])
async def test_failing(memable_engine, memable_store):
    memable_store.inject(DiskFault.IO_ERROR, times=None)

def test_alone(memable_store):
    assert isinstance(memable_store, SimulatedStore)
""",
        *TRIO_MODE,
    )
    found.assert_outcomes(passed=2, failed=2)
    found.stdout.fnmatch_lines(["*StorageError*the power was cut*", "*StorageError*Input/output error*"])


def test_memable_engine_cancels_what_runs_at_the_end_of_the_test(pytester: pytest.Pytester):
    """
    A test ends though a step of its workflow hangs; with a ``shutdown_timeout`` it is waited for.
    """
    run(
        pytester,
        """
done = []

@memable.workflow
async def work(ctx):
    async def work_on():
        await trio.sleep(10)
        done.append(True)
    await ctx.step("work", work_on)

@pytest.mark.memable(workflows=[work])
async def test_cancelled(memable_engine, virtual_clock):
    await memable_engine.invoke(work)

@pytest.mark.memable(workflows=[work], shutdown_timeout=20)
async def test_waited_for(memable_engine, virtual_clock):
    assert done == []
    await memable_engine.invoke(work)

def test_was_waited_for():
    assert done == [True]
""",
        *TRIO_MODE,
    ).assert_outcomes(passed=3)


def test_virtual_clock_is_the_clock_of_the_test(pytester: pytest.Pytester):
    """
    With ``virtual_clock`` timers end at once, and with an engine the system's clock follows, from the same time on.
    """
    run(
        pytester,
        """
from datetime import UTC, datetime

@pytest.mark.memable(workflows=[nap])
async def test_with_engine(memable_engine, virtual_clock):
    began_at = datetime(2025, 12, 31, 23, 59, 30, tzinfo=UTC).timestamp()
    assert time.time() == began_at
    assert await result(memable_engine, nap) == began_at + 3600
    assert trio.current_time() == virtual_clock.current_time() == 3600

async def test_alone(virtual_clock):
    await trio.sleep(3600)
    assert trio.current_time() == 3600

def test_in_a_sync_test(virtual_clock):
    assert time.time() > datetime(2026, 1, 2, tzinfo=UTC).timestamp()
    trio.run(trio.sleep, 3600, clock=virtual_clock)
""",
        *TRIO_MODE,
    ).assert_outcomes(passed=3)


def test_effects_are_new_in_each_test(pytester: pytest.Pytester):
    """
    ``effects`` is an ``Effects`` of the test's own.
    """
    run(
        pytester,
        """
@pytest.mark.parametrize("number", [1, 2])
def test_effects(effects, number):
    effects.record("mail")
    assert effects.count("mail") == 1
""",
    ).assert_outcomes(passed=2)


@pytest.mark.parametrize("args", [("-p", "no:trio"), ()], ids=["absent", "unmarked"])
def test_memable_engine_without_pytest_trio_says_so(pytester: pytest.Pytester, args: tuple[str, ...]):
    """
    Where pytest-trio does not run the test, ``memable_engine`` says that it should, and how.
    """
    found = run(pytester, "async def test_engine(memable_engine): pass", *args)
    found.assert_outcomes(errors=1)
    found.stdout.fnmatch_lines(["*memable_engine is for async tests that pytest-trio runs; install pytest-trio*"])


@pytest.mark.parametrize(
    ("marker", "told"),
    [
        ("memable(workflow=[crawl])", "there is no option workflow; there are aliases, *, workflows"),
        ("memable([crawl])", "options are given by name; there are aliases, *, workflows"),
    ],
)
def test_memable_marker_refuses_what_it_does_not_know(pytester: pytest.Pytester, marker: str, told: str):
    """
    An option that an engine does not have is refused by name, with those that there are.
    """
    found = run(pytester, f"@pytest.mark.{marker}\nasync def test_engine(memable_engine): pass", *TRIO_MODE)
    assert found.ret == pytest.ExitCode.TESTS_FAILED
    found.stdout.fnmatch_lines([f"*@pytest.mark.memable: {told}*"])


def test_memable_marker_without_the_engine_is_refused(pytester: pytest.Pytester):
    """
    The marker ``memable`` on a test that takes no engine is a mistake.
    """
    found = run(pytester, "@pytest.mark.memable(workflows=[crawl])\ndef test_nothing(): pass")
    found.assert_outcomes(errors=1)
    found.stdout.fnmatch_lines(["*the marker memable is for tests that take memable_engine*"])


# Explorations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [(), TRIO_MODE, ("-p", "no:trio"), ("-p", "no:trio", "-p", "no:anyio")],
    ids=["trio", "trio_mode", "no_trio", "alone"],
)
def test_crash_test_is_run_once_for_each_crash(pytester: pytest.Pytester, args: tuple[str, ...]):
    """
    A test marked ``memable_crashes`` is a scenario, whoever runs the async tests: a function, a method, parametrised.
    """
    run(
        pytester,
        """
counts = {}

@pytest.fixture
def page():
    return "a"

@pytest.mark.memable_crashes(workflows=[crawl])
async def test_function(memable_engine, page, effects, request):
    counts["function"] = counts.get("function", 0) + 1
    effects.record("asked")
    assert await result(memable_engine, crawl, page) == "A"
    return "same"

@pytest.mark.memable_crashes(workflows=[crawl])
class TestClass:
    @pytest.mark.parametrize("given", ["b", "c"])
    async def test_method(self, memable_engine, given):
        counts[given] = counts.get(given, 0) + 1
        assert await result(memable_engine, crawl, given) == given.upper()

    @pytest.mark.memable_crashes(stops=False)
    async def test_overriding(self, memable_engine):
        counts["fewer"] = counts.get("fewer", 0) + 1
        assert await result(memable_engine, crawl, "d") == "D"

def test_counts():
    assert counts["function"] > 10
    assert counts["b"] == counts["c"] > 10
    assert 5 < counts["fewer"] < counts["b"]
""",
        *args,
    ).assert_outcomes(passed=5)


def test_crash_test_may_be_marked_for_pytest_trio(pytester: pytest.Pytester):
    """
    A test may carry pytest-trio's marker, too, as all tests of a module may do.
    """
    run(
        pytester,
        """
pytestmark = [pytest.mark.trio, pytest.mark.memable(workflows=[crawl], max_parked=5)]

@pytest.mark.memable_crashes(stops=False)
async def test_explored(memable_engine):
    assert await result(memable_engine, crawl, "a") == "A"

async def test_plain(memable_engine):
    assert await result(memable_engine, crawl, "a") == "A"
""",
    ).assert_outcomes(passed=2)


def test_crash_test_fails_by_an_assertion_in_one_schedule(pytester: pytest.Pytester):
    """
    An assertion that fails in some schedule fails the test, with its own lines and the command for that schedule.
    """
    tests = """
@pytest.mark.memable_crashes(workflows=[crawl])
async def test_impatient(memable_engine, effects):
    effects.record("asked")
    assert await result(memable_engine, crawl, "a") == "A"
    assert effects.count("asked") == 1
"""
    found = run(pytester, tests)
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(
        [
            ">       assert effects.count(*",
            "E       AssertionError: assert 2 == 1",
            "E       in * of * schedules, first when the process dies after the effect 'asked'; to run that alone: *",
        ]
    )
    found.stdout.no_fnmatch_line("*_life.py*")
    again = run(pytester, tests, "--memable-only", "8")
    again.assert_outcomes(failed=1)
    again.stdout.fnmatch_lines(["E       in 1 of 1 schedules, first when the process dies within*", "*Captured log*"])
    run(pytester, tests, "--memable-only", "0").assert_outcomes(passed=1)


def test_crash_test_fails_by_an_assertion_without_any_crash(pytester: pytest.Pytester):
    """
    What fails without a crash is raised as in any test, and so is a failure of pytest's own.
    """
    found = run(
        pytester,
        """
@pytest.mark.memable_crashes(workflows=[crawl])
async def test_wrong(memable_engine):
    assert await result(memable_engine, crawl, "a") == "B"

@pytest.mark.memable_crashes(workflows=[crawl])
async def test_did_not_raise(memable_engine):
    with pytest.raises(ValueError, match="never"):
        await result(memable_engine, crawl, "a")
""",
    )
    found.assert_outcomes(failed=2)
    found.stdout.fnmatch_lines(["E*AssertionError: assert 'A' == 'B'", "*DID NOT RAISE*"])
    found.stdout.no_fnmatch_line("*memable-only*")


def test_crash_test_fails_by_a_problem_of_its_workflow(pytester: pytest.Pytester):
    """
    A problem that the exploration finds fails the test, with the report; it may be allowed.
    """
    tests = """
from memable.testing import Effects

mails = Effects()

async def send():
    mails.record("mail")

@memable.workflow
async def careless(ctx):
    await ctx.step("send", send)

@pytest.mark.memable_crashes(workflows=[careless])
async def test_careless(memable_engine):
    await result(memable_engine, careless)

@pytest.mark.memable_crashes(workflows=[careless], allow=["effect-repeated"])
async def test_allowed(memable_engine):
    await result(memable_engine, careless)
    assert mails.count() <= 2

@pytest.mark.memable_crashes(workflows=[careless])
async def test_counted(memable_engine):
    await result(memable_engine, careless)
    assert mails.count() == 1
"""
    found = run(pytester, tests)
    found.assert_outcomes(passed=1, failed=2)
    found.stdout.fnmatch_lines(
        ["* schedules, 1 problem", "1. effect-repeated: *'mail'*", 'to run one schedule: pytest "test_it.py::*" --mem*']
    )
    found.stdout.fnmatch_lines(
        ["E       AssertionError: assert 2 == 1", "E*schedules, 2 problems", "E*1. effect-repeated: *"]
    )


def test_crash_test_keeps_the_world_outside_that_it_names(pytester: pytest.Pytester):
    """
    ``outside=`` takes names of fixtures: what they hold survives a crash, and begins anew with each schedule.
    """
    tests = """
@pytest.fixture
def inbox():
    return []

@pytest.mark.memable_crashes(workflows=[crawl], {outside})
async def test_inbox(memable_engine, inbox):
    inbox.append("asked")
    await result(memable_engine, crawl, "a")
    # The process dies once in a schedule, so it asks twice at most.
    assert len(inbox) <= 2
"""
    run(pytester, tests.format(outside='outside=["inbox"]')).assert_outcomes(passed=1)
    run(pytester, tests.format(outside="")).assert_outcomes(failed=1)
    found = run(pytester, tests.format(outside='outside=["outbox"]'))
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(["*outside= names 'outbox', which is no fixture that the test uses"])


def test_crash_test_may_be_skipped_and_expected_to_fail(pytester: pytest.Pytester):
    """
    Skips and expected failures are what they are in other tests.
    """
    run(
        pytester,
        """
@pytest.mark.memable_crashes(workflows=[crawl])
async def test_skipped(memable_engine):
    pytest.skip("not today")

@pytest.mark.xfail(strict=True, raises=AssertionError)
@pytest.mark.memable_crashes(workflows=[crawl])
async def test_expected(memable_engine):
    assert await result(memable_engine, crawl, "a") == "B"
""",
    ).assert_outcomes(skipped=1, xfailed=1)


def test_crash_test_shows_its_report_when_asked(pytester: pytest.Pytester):
    """
    With pytest's ``-rP`` the report of a test that passed is printed.
    """
    found = run(
        pytester,
        """
@pytest.mark.memable_crashes(workflows=[crawl], max_schedules=3)
async def test_few(memable_engine):
    await result(memable_engine, crawl, "a")
""",
        "-rP",
    )
    found.assert_outcomes(passed=1)
    found.stdout.fnmatch_lines(["3 schedules (there are more: raise max_schedules), no problems"])


@pytest.mark.parametrize(
    ("test", "told"),
    [
        ("def test_it(memable_engine): pass", "a test marked memable_crashes must be an async function"),
        ("async def test_it(): pass", "a test marked memable_crashes must take memable_engine"),
        (
            "async def test_it(memable_engine, memable_store): pass",
            "a test marked memable_crashes cannot use memable_store: each schedule has a store of its own",
        ),
        (
            "async def test_it(memable_engine, virtual_clock): pass",
            "a test marked memable_crashes cannot use virtual_clock: time is virtual in each schedule anyway",
        ),
        (
            (
                "from hypothesis import given, strategies as st\n@given(st.integers())\n"
                "@MARK\nasync def test_it(memable_engine, number): pass"
            ),
            "a test of Hypothesis cannot be marked memable_crashes; call memable.testing.explore_crashes in it",
        ),
        (
            "class TestIt(__import__('unittest').TestCase):\n    @MARK\n    async def test_it(self): pass",
            "a test marked memable_crashes must take memable_engine",
        ),
        (
            (
                "@pytest.fixture\ndef names(memable_engine): return memable_engine.list_instances\n\n"
                "@MARK\nasync def test_it(memable_engine, names): pass"
            ),
            "*no fixture can use memable_engine in a test marked memable_crashes*",
        ),
        (
            (
                "@pytest.fixture\nasync def page(): return 'a'\n\n"
                "@MARK\n@pytest.mark.trio\nasync def test_it(memable_engine, page): pass"
            ),
            "a test marked memable_crashes cannot use the async fixture page: it is run in many processes",
        ),
    ],
    ids=["sync", "no_engine", "store", "clock", "hypothesis", "unittest", "fixture", "async_fixture"],
)
def test_crash_test_refuses_what_it_cannot_explore(pytester: pytest.Pytester, test: str, told: str):
    """
    A test that is no scenario fails before it runs, and says what it should be.
    """
    mark = "pytest.mark.memable_crashes(workflows=[crawl])"
    found = run(pytester, test.replace("MARK", mark) if "MARK" in test else f"@{mark}\n{test}")
    assert found.ret == pytest.ExitCode.TESTS_FAILED
    found.stdout.fnmatch_lines([f"*{told}*"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("", "say which workflows the engine is to have: @pytest.mark.memable_crashes(workflows=*...*)"),
        ("workflows=[crawl], dept=2", "@pytest.mark.memable_crashes: there is no option dept; there are aliases, *"),
        ("workflows=[crawl], only='3'", "@pytest.mark.memable_crashes: there is no option only; there are aliases, *"),
        ("[crawl]", "@pytest.mark.memable_crashes: options are given by name; there are aliases, *"),
        ("workflows=[crawl], depth=-1", "*depth must be an int, at least 0, not -1"),
    ],
)
def test_crash_test_refuses_wrong_options(pytester: pytest.Pytester, options: str, told: str):
    """
    Options of the marker that ``explore_crashes`` does not take are refused, with those that it does.
    """
    test = f"@pytest.mark.memable_crashes({options})\nasync def test_it(memable_engine): pass"
    found = run(pytester, test)
    assert found.ret == pytest.ExitCode.TESTS_FAILED
    found.stdout.fnmatch_lines([f"*{told}"])
    if "there are" in told:
        text = str(found.stdout)
        assert [name for name in testing.EngineOptions.__annotations__ if f" {name}," not in text] == []


CRASH_TEST = """
@pytest.mark.memable_crashes(workflows=[crawl])
async def test_explored(memable_engine):
    assert await result(memable_engine, crawl, "a") == "A"
"""


def test_memable_only_refuses_what_is_no_recipe(pytester: pytest.Pytester):
    """
    A recipe that is none ends pytest before any test.
    """
    found = run(pytester, CRASH_TEST, "--memable-only", "seven")
    assert found.ret == pytest.ExitCode.USAGE_ERROR
    found.stderr.fnmatch_lines(["ERROR: --memable-only: a recipe is like *, not 'seven'"])


def test_crash_test_is_collected_without_being_run(pytester: pytest.Pytester):
    """
    Collecting and listing the markers says what there is.
    """
    found = run(pytester, CRASH_TEST, "--collect-only", "-q")
    found.stdout.fnmatch_lines(["test_it.py::test_explored"])
    pytester.runpytest_inprocess(*PLUGIN, "--markers").stdout.fnmatch_lines(
        ["@pytest.mark.memable(workflows, *", "@pytest.mark.memable_crashes(workflows, *"]
    )


def test_plugin_leaves_other_tests_alone(pytester: pytest.Pytester):
    """
    What is no function, such as a doctest, is none of the plugin's business.
    """
    test = """
def double(number):
    '''
    >>> double(1)
    2
    '''
    return 2 * number

def test_double():
    assert double(2) == 4
"""
    run(pytester, test, "--doctest-modules").assert_outcomes(passed=2)


def test_crash_test_runs_in_several_processes(pytester: pytest.Pytester):
    """
    pytest-xdist hands the option on, and the marker works in its processes.
    """
    found = run(pytester, CRASH_TEST, "-n", "1", "--memable-only", "3", "-rP")
    found.assert_outcomes(passed=1)
    found.stdout.fnmatch_lines(["1 schedule, no problems"])


def test_plugin_says_what_to_install(pytester: pytest.Pytester):
    """
    Where a package of the extra is not installed, the test says which one it needs.
    """
    pytester.makeconftest("import sys; sys.modules['time_machine'] = None")
    pytester.makepyfile(test_it=WORKFLOWS + CRASH_TEST)
    # In a process of its own, in which nothing has imported it before.
    found = pytester.runpytest_subprocess(*PLUGIN, "-p", "no:cacheprovider")
    found.assert_outcomes(errors=1)
    found.stdout.fnmatch_lines(["*memable's plugin for pytest needs time_machine for this; install memable?testing?"])


def test_plugin_imports_nothing_of_the_extra_until_a_test_asks():
    """
    Loading the plugin imports pytest and memable, and nothing of ``memable.testing``.
    """
    script = (
        "import sys, pytest, memable; before = set(sys.modules); import memable._pytest_plugin; "
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["memable._pytest_plugin"]
