"""
What holds for memable as a whole: importing does nothing, leaving an engine leaves nothing, errors say where.
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

import memable
from memable import MetadataStatus
from memable._store._protocol import Store
from running import run_body, run_to_end, workflow_of
from stores import HookedStore, MemoryPlace, Place, disk_full, failing_at

# Importing ---------------------------------------------------------------------------------------------------------

FOOTPRINT = """
import json, logging, os, signal, sys, threading

def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True

def footprint():
    loggers = [logging.root, *map(logging.getLogger, ("memable", "trio"))]
    return {
        "threads": [thread.name for thread in threading.enumerate()],
        "descriptors": [fd for fd in range(256) if is_open(fd)],
        "handlers": [repr(handler) for logger in loggers for handler in logger.handlers],
        "levels": [logger.level for logger in loggers],
        "signals": [repr(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "files": sorted(os.listdir()),
        "path": list(sys.path),
        "hooks": [repr(hook) for hook in (sys.excepthook, sys.unraisablehook, threading.excepthook)],
    }

before = footprint()
import memable
after = footprint()
json.dump([before, after], sys.stdout)
"""

NEW_MODULES = """
import json, sys
import attrs, cattrs, msgspec, trio
before = set(sys.modules)
import memable
json.dump(sorted(set(sys.modules) - before), sys.stdout)
"""

#: Of the standard library, what takes long to import and has nothing to do with memable. What trio, attrs, cattrs or
#: msgspec import of it is there already, and costs nothing.
HEAVY = {
    "argparse",
    "asyncio",
    "concurrent",
    "ctypes",
    "curses",
    "distutils",
    "doctest",
    "email",
    "ftplib",
    "html",
    "http",
    "lib2to3",
    "multiprocessing",
    "optparse",
    "pdb",
    "pickle",
    "pydoc",
    "smtplib",
    "sqlite3",
    "ssl",
    "tkinter",
    "tomllib",
    "unittest",
    "urllib",
    "xml",
    "xmlrpc",
    "zipfile",
}


def run_python(script: str, directory: Path) -> Any:
    """
    Run *script* in a new interpreter, in which warnings are errors, and return what it prints, which is JSON.
    """
    done = subprocess.run(
        [sys.executable, "-B", "-W", "error", "-c", script],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_import_does_nothing(tmp_path: Path):
    """
    Importing memable starts no thread, opens no file, prints nothing, and changes nothing that others can see.
    """
    before, after = run_python(FOOTPRINT, tmp_path)
    assert before["threads"] == ["MainThread"]
    assert after == before


def test_import_brings_no_package_but_the_dependencies(tmp_path: Path):
    """
    Importing memable imports no package beside its four dependencies, and not its own command or demo.
    """
    modules = run_python(NEW_MODULES, tmp_path)
    assert "memable._engine" in modules
    packages = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names
    # Where Python keeps how it was built; its name tells the platform.
    assert {package for package in packages if not package.startswith("_sysconfigdata")} == {"memable"}
    assert [module for module in modules if re.match(r"memable\.(cli|testing|ui|_demo)\b", module)] == []


def test_import_brings_nothing_heavy_of_the_standard_library(tmp_path: Path):
    """
    Importing memable imports nothing slow that its dependencies do not import anyway.
    """
    modules = run_python(NEW_MODULES, tmp_path)
    assert {module.partition(".")[0] for module in modules} & HEAVY == set()


# Leaving -----------------------------------------------------------------------------------------------------------


#: More than anything here takes, in virtual time: a block that should have been ended fails its test, and hangs not.
GRACE_S = 3600.0


@memable.workflow
async def endless(ctx: memable.Context) -> None:
    await trio.sleep_forever()


async def leave_normally(store: Store) -> None:
    async with memable.open_engine(store, workflows=[endless], shutdown_timeout=0) as engine:
        await start_endless(engine)


async def leave_idle(store: Store) -> None:
    async with memable.open_engine(store, workflows=[endless]):
        pass


async def leave_by_an_exception(store: Store) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with memable.open_engine(store, workflows=[endless]) as engine:
            await start_endless(engine)
            raise KeyError("mine")


async def leave_cancelled(store: Store) -> None:
    with trio.CancelScope() as scope:
        async with memable.open_engine(store, workflows=[endless]) as engine:
            await start_endless(engine)
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def leave_after_stop(store: Store) -> None:
    async with memable.open_engine(store, workflows=[endless]) as engine:
        await start_endless(engine)
        await engine.stop(timeout=0)


async def leave_after_a_stop_that_was_cancelled(store: Store) -> None:
    async with memable.open_engine(store, workflows=[endless], shutdown_timeout=0) as engine:
        await start_endless(engine)
        with trio.move_on_after(1):
            await engine.stop(timeout=3600)


async def leave_by_a_storage_failure(store: Store) -> None:
    async def succeed() -> None:
        pass

    async def body(ctx: memable.Context) -> None:
        await ctx.step("step", succeed)

    workflow = workflow_of(body)
    with pytest.raises(memable.StorageError, match="no space left"):
        failing = failing_at("step_completed", store)
        async with memable.open_engine(failing, workflows=[endless, workflow], shutdown_timeout=0) as engine:
            await start_endless(engine)
            await engine.invoke(workflow, instance_id="i")
            await trio.sleep(GRACE_S)


async def leave_by_a_storage_failure_at_closing(store: Store) -> None:
    def fail() -> None:
        raise disk_full()

    hooked = HookedStore(store, on_close=fail)
    with pytest.raises(memable.StorageError, match="no space left"):
        async with memable.open_engine(hooked, workflows=[endless], shutdown_timeout=0) as engine:
            await start_endless(engine)


async def leave_by_a_fatal_workflow(store: Store) -> None:
    async def body(ctx: memable.Context) -> None:
        raise SystemExit(3)

    workflow = workflow_of(body)
    with pytest.raises(SystemExit, match="3"):
        async with memable.open_engine(store, workflows=[endless, workflow], shutdown_timeout=0) as engine:
            await start_endless(engine)
            await engine.invoke(workflow, instance_id="i")
            await trio.sleep(GRACE_S)


async def leave_before_entering(store: Store) -> None:
    with pytest.raises(memable.DuplicateWorkflowError, match="workflow 'endless'"):
        async with memable.open_engine(store, workflows=[endless, memable.workflow(name="endless")(endless.fn)]):
            raise AssertionError


async def start_endless(engine: memable.Engine) -> None:
    """
    Start a run that ends by nothing but the engine's end, and see that it is a task.
    """
    before = tasks_living()
    await engine.invoke(endless)
    assert tasks_living() == before + 1


def tasks_living() -> int:
    return trio.lowlevel.current_statistics().tasks_living


@pytest.mark.parametrize(
    "leave",
    [
        leave_normally,
        leave_idle,
        leave_by_an_exception,
        leave_cancelled,
        leave_after_stop,
        leave_after_a_stop_that_was_cancelled,
        leave_by_a_storage_failure,
        leave_by_a_storage_failure_at_closing,
        leave_by_a_fatal_workflow,
        leave_before_entering,
    ],
)
async def test_leaving_leaves_no_task(leave: Callable[[Store], Awaitable[None]], place: Place, autojump_clock: object):
    """
    However the block is left, no task outlives it.
    """
    before = tasks_living()
    await leave(place.store())
    assert tasks_living() == before


# Settings, seen through the engine -----------------------------------------------------------------------------------


@attrs.frozen
class Old:
    number: int


@attrs.frozen
class New:
    number: int


ALIASES: dict[str, type] = {f"{Old.__module__}.Old": New}


async def serve_old() -> Old:
    return Old(2)


async def serve_new() -> New:
    raise AssertionError("the step has a memo")


async def test_aliases_serve_recorded_values_as_the_class_of_today(place: Place, autojump_clock: object):
    """
    An input and a step's value that were recorded under a class's old name are served as the class of today.
    """

    @memable.workflow(name="w")
    async def old(ctx: memable.Context, given: Old) -> Old:
        await ctx.step("serve", serve_old)
        await trio.sleep_forever()
        raise AssertionError

    served: list[object] = []

    @memable.workflow(name="w")
    async def new(ctx: memable.Context, given: New) -> New:
        served.extend([given, await ctx.step("serve", serve_new)])
        return New(3)

    async with memable.open_engine(place.store(), workflows=[old], shutdown_timeout=0) as engine:
        await engine.invoke(old, Old(1), instance_id="i")
        await trio.testing.wait_all_tasks_blocked()
    async with memable.open_engine(place.store(), workflows=[new]) as engine:
        with pytest.raises(memable.WorkflowBlockedError, match=r"asks for .*\.New, but what is recorded is .*\.Old"):
            await (await engine.get(new, "i")).result()
    assert served == []
    async with memable.open_engine(place.store(), workflows=[new], aliases=ALIASES) as engine:
        assert await (await engine.get(new, "i")).result() == New(3)
    assert served == [New(1), New(2)]


async def test_aliases_serve_a_recorded_output_as_the_class_of_today(place: Place, autojump_clock: object):
    """
    The output of an instance that ended under a class's old name is told as the class of today.
    """

    @memable.workflow(name="w")
    async def old(ctx: memable.Context) -> list[Old | int]:
        return [Old(1), 2]

    @memable.workflow(name="w")
    async def new(ctx: memable.Context) -> list[New | int]:
        raise AssertionError("the instance has ended")

    async with memable.open_engine(place.store(), workflows=[old]) as engine:
        assert await (await engine.invoke(old, instance_id="i")).result() == [Old(1), 2]
    async with memable.open_engine(place.store(), workflows=[new]) as engine:
        with pytest.raises(memable.TypeMismatchError, match=r"workflow 'w', instance 'i': .*\.Old"):
            await (await engine.get(new, "i")).result()
    async with memable.open_engine(place.store(), workflows=[new], aliases=ALIASES) as engine:
        assert await (await engine.get(new, "i")).result() == [New(1), 2]


async def test_log_counts_unregistered_instances_that_are_blocked(
    place: Place, autojump_clock: object, caplog: pytest.LogCaptureFixture
):
    """
    Blocked instances of workflows that are not registered are counted at opening beside those that run; ended ones not.
    """

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context, what: str) -> None:
        if what == "wait":
            await trio.sleep_forever()
        if what == "block":
            raise memable.WorkflowCodeError("not yet written")

    async with memable.open_engine(place.store(), workflows=[workflow], shutdown_timeout=0) as engine:
        for what in ("wait", "block", "block", "end"):
            await engine.invoke(workflow, what)
        await trio.testing.wait_all_tasks_blocked()
        assert len(await engine.list_instances(status=MetadataStatus.BLOCKED)) == 2
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="memable"):
        async with memable.open_engine(place.store()):
            pass
    (record,) = caplog.records
    assert "('w': 3)" in record.getMessage()


async def test_max_value_bytes_refuses_an_input_before_anything_is_written(place: Place, autojump_clock: object):
    """
    An input that takes more than ``max_value_bytes`` starts nothing; a shorter one does.
    """

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context, text: str) -> None:
        pass

    async with memable.open_engine(place.store(), workflows=[workflow], max_value_bytes=100) as engine:
        with pytest.raises(memable.SerializationError, match=r"workflow 'w'.*more than max_value_bytes, which is 100"):
            await engine.invoke(workflow, "x" * 100, instance_id="i")
        assert await engine.list_instances() == []
        await (await engine.invoke(workflow, "x" * 50, instance_id="i")).result()


async def test_max_value_bytes_fails_an_instance_by_its_output(place: Place, autojump_clock: object):
    """
    An output that takes more than ``max_value_bytes`` makes its instance Failed, now and after reopening.
    """

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context) -> str:
        return "x" * 100

    live = await run_to_end(workflow, store=place.store(), max_value_bytes=100)
    assert isinstance(live, memable.Failed)
    assert live.error.matches(memable.SerializationError)
    assert re.search(r"^workflow 'w', instance 'i': .*more than max_value_bytes, which is 100", live.error.message)
    async with memable.open_engine(place.store()) as engine:
        assert await engine.state("w", "i") == live


# Errors say where ----------------------------------------------------------------------------------------------------


async def succeed() -> int:
    return 1


async def refuse() -> None:
    raise OSError("disk on fire")


async def hang() -> None:
    await trio.sleep_forever()


async def return_an_object() -> object:
    return object()


async def as_text() -> str:
    raise AssertionError


async def use_a_context(ctx: memable.Context) -> None:
    await ctx.step("inner", succeed)


async def use_a_key_twice(ctx: memable.Context) -> None:
    await ctx.step("k", succeed)
    await ctx.step("k", succeed)


RETRY = memable.RetryPolicy.fixed(1, 1)


@pytest.mark.parametrize(
    ("operate", "expected"),
    [
        (lambda ctx: ctx.step("k", refuse), memable.StepFailedError),
        (lambda ctx: ctx.step("k", hang, timeout=1), memable.StepTimeoutError),
        (lambda ctx: ctx.step("k", refuse, retry=RETRY), memable.RetriesExhaustedError),
        (lambda ctx: ctx.step("k", hang, timeout=1, retry=RETRY), memable.RetriesExhaustedTimeoutError),
        (lambda ctx: ctx.step("k", return_an_object), memable.SerializationError),
        (lambda ctx: ctx.step("k", 3), memable.MisuseError),
        (lambda ctx: ctx.step("k", use_a_context, ctx), memable.NestedStepError),
        (use_a_key_twice, memable.DuplicateKeyError),
    ],
    ids=["failed", "timeout", "exhausted", "exhausted-timeout", "unstorable", "misuse", "nested", "duplicate"],
)
async def test_error_of_a_step_names_workflow_instance_and_key(
    operate: Callable[[memable.Context], Awaitable[object]], expected: type[Exception], autojump_clock: object
):
    """
    What a step raises into the body says in which workflow, instance and key, and so does the instance's state.
    """
    caught: list[Exception] = []

    async def body(ctx: memable.Context) -> None:
        try:
            await operate(ctx)
        except Exception as error:
            caught.append(error)
            raise

    state = await run_body(body)
    assert isinstance(state, memable.Failed | memable.Blocked)
    (error,) = caught
    assert type(error) is expected
    assert str(error).startswith("workflow 'w', instance 'i', key 'k': ")
    assert state.error.message == str(error)


async def test_error_of_a_recorded_type_names_workflow_instance_and_key(autojump_clock: object):
    """
    A value that is recorded as another type is refused with its workflow, instance and key.
    """
    store = memable.InMemoryStore()

    async def old(ctx: memable.Context) -> None:
        await ctx.step("k", succeed)
        raise memable.WorkflowCodeError("not yet written")

    async def new(ctx: memable.Context) -> None:
        await ctx.step("k", as_text)

    await run_body(old, store=store)
    async with memable.open_engine(store, workflows=[workflow_of(new)]) as engine:
        with pytest.raises(memable.WorkflowBlockedError, match=r"^workflow 'w', instance 'i', key 'k': ") as caught:
            await (await engine.get("w", "i")).result()
    assert caught.value.error.matches(memable.TypeMismatchError)
    assert caught.value.error.message.startswith("workflow 'w', instance 'i', key 'k': the code asks for ")


async def test_error_of_a_bad_key_in_a_body_shows_it(autojump_clock: object):
    """
    A key that breaks the rule is shown, and the instance that it blocks is named.
    """
    store = memable.InMemoryStore()

    async def body(ctx: memable.Context) -> None:
        await ctx.step("a/b", succeed)

    workflow = workflow_of(body)
    async with memable.open_engine(store, workflows=[workflow]) as engine:
        with pytest.raises(memable.WorkflowBlockedError, match=r"^workflow 'w', instance 'i'.*key 'a/b'") as caught:
            await (await engine.invoke(workflow, instance_id="i")).result()
    assert caught.value.error.matches(memable.InvalidKeyError)


async def test_error_of_a_context_out_of_its_run_names_workflow_and_instance(autojump_clock: object):
    """
    A context that is used after its run says whose it was, and what was called.
    """
    contexts: list[memable.Context] = []

    async def body(ctx: memable.Context) -> None:
        contexts.append(ctx)

    await run_body(body)
    with pytest.raises(memable.RunEndedError, match=r"^workflow 'w', instance 'i': ctx\.step did nothing"):
        await contexts[0].step("k", succeed)


@memable.workflow(name="w")
async def by_input(ctx: memable.Context, what: str) -> None:
    match what:
        case "wait":
            await trio.sleep_forever()
        case "fail":
            raise OSError("disk on fire")
        case _:
            raise memable.WorkflowCodeError("not yet written")


async def result_of(engine: memable.Engine, what: str) -> None:
    await (await engine.invoke(by_input, what, instance_id="i")).result()


async def result_of_cancelled(engine: memable.Engine) -> None:
    invocation = await engine.invoke(by_input, "wait", instance_id="i")
    await engine.cancel(by_input, "i", reason="enough")
    await invocation.result()


async def start_another(engine: memable.Engine) -> None:
    await engine.invoke(by_input, "wait", instance_id="i")
    await engine.invoke(by_input, "fail", instance_id="i")


async def forget_while_it_runs(engine: memable.Engine) -> None:
    await engine.invoke(by_input, "wait", instance_id="i")
    await engine.resume(by_input, "i", anew=True)


async def forget_nothing(engine: memable.Engine) -> None:
    await (await engine.invoke(by_input, "fail", instance_id="i")).wait()
    await engine.resume(by_input, "i", forget=["k"])


@pytest.mark.parametrize(
    ("provoke", "expected", "rest"),
    [
        (lambda engine: result_of(engine, "fail"), memable.WorkflowFailedError, "failed with OSError: disk on fire"),
        (lambda engine: result_of(engine, "block"), memable.WorkflowBlockedError, "not yet written"),
        (result_of_cancelled, memable.WorkflowCancelledError, "was cancelled (enough)"),
        (start_another, memable.InstanceConflictError, "another input"),
        (forget_while_it_runs, memable.InstanceBusyError, "while the instance runs"),
        (forget_nothing, memable.UnknownKeyError, "no record of 'k'"),
        (lambda engine: engine.state("w", "i"), memable.InstanceNotFoundError, "no such instance"),
        (lambda engine: engine.resume("w", "i"), memable.InstanceNotFoundError, "no such instance"),
        (lambda engine: engine.cancel("w", "i"), memable.InstanceNotFoundError, "no such instance"),
    ],
    ids=["failed", "blocked", "cancelled", "conflict", "busy", "unknown-key", "state", "resume", "cancel"],
)
async def test_error_of_an_instance_names_workflow_and_instance(
    provoke: Callable[[memable.Engine], Awaitable[object]],
    expected: type[Exception],
    rest: str,
    place: Place,
    autojump_clock: object,
):
    """
    What the engine refuses or tells of an instance says in which workflow and instance.
    """
    async with memable.open_engine(place.store(), workflows=[by_input], shutdown_timeout=0) as engine:
        with pytest.raises(expected, match=f"^workflow 'w', instance 'i'.*{re.escape(rest)}") as caught:
            await provoke(engine)
    assert type(caught.value) is expected


async def test_error_of_an_instance_that_nothing_runs_names_workflow_and_instance(autojump_clock: object):
    """
    An instance that is recorded as running while nothing runs it is named by workflow and id.
    """
    store = memable.InMemoryStore()
    async with memable.open_engine(store, workflows=[by_input], shutdown_timeout=0) as engine:
        await engine.invoke(by_input, "wait", instance_id="i")
    async with memable.open_engine(store) as engine:
        with pytest.raises(memable.StaleRunningError, match=r"^workflow 'w', instance 'i': recorded as running"):
            async with engine.subscribe("w", "i") as states:
                async for _ in states:
                    pass


async def test_error_of_a_recovery_limit_names_workflow_and_instance(autojump_clock: object):
    """
    An instance that is no longer recovered is named by workflow and id, outside and in what blocked it.
    """
    place = MemoryPlace()
    async with memable.open_engine(place.store(), workflows=[by_input], shutdown_timeout=0) as engine:
        await engine.invoke(by_input, "wait", instance_id="i")
        crashed = place.crash()
    async with memable.open_engine(crashed.store(), workflows=[by_input], max_recoveries=1) as engine:
        with pytest.raises(memable.WorkflowBlockedError, match=r"^workflow 'w', instance 'i': ") as caught:
            await (await engine.get(by_input, "i")).result()
    assert caught.value.error.matches(memable.RecoveryLimitError)
    assert caught.value.error.message.startswith("workflow 'w', instance 'i': was running at 1 crashes in a row")


async def test_error_of_a_definition_names_the_workflow(autojump_clock: object):
    """
    A workflow that is not registered, or twice, is named.
    """
    async with memable.open_engine(memable.InMemoryStore(), workflows=[by_input]) as engine:
        with pytest.raises(memable.WorkflowNotFoundError, match=r"^workflow 'other' is not registered \(.*'w'\)"):
            await engine.invoke("other")
        with pytest.raises(memable.DuplicateWorkflowError, match=r"^workflow 'w': another definition"):
            engine.register(workflow_of(use_a_key_twice))


async def test_error_of_a_stopped_engine_names_what_was_asked_of_which_instance(autojump_clock: object):
    """
    An engine that has stopped says what was asked of it, and of which instance.
    """
    async with memable.open_engine(memable.InMemoryStore(), workflows=[by_input]) as engine:
        invocation = await engine.invoke(by_input, "wait", instance_id="i")
        await engine.stop(timeout=0)
        for operation, call in (
            ("engine.resume", lambda: engine.resume("w", "i")),
            ("engine.cancel", lambda: engine.cancel("w", "i")),
            ("Invocation.wait", invocation.wait),
        ):
            with pytest.raises(memable.EngineStoppedError, match=f"^{re.escape(operation)} on .*instance 'i'"):
                await call()
