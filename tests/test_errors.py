"""
Every error of memable's: its facts, its text, which built-ins it is, and that it travels.
"""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import trio

import memable
from memable import _errors
from running import run_to_end

INFO = memable.ErrorInfo("builtins.OSError", "disk on fire")
INSTANCE: dict[str, Any] = {"workflow": "w", "instance_id": "i"}
STEP: dict[str, Any] = {**INSTANCE, "key": "k", "error": INFO, "attempts": 1, "retryable": True}
HERE = "workflow 'w', instance 'i'"

#: One of each class: the error, its text, and the built-ins that it is as well.
ERRORS: list[tuple[memable.MemableError, str, tuple[type, ...]]] = [
    (memable.MemableError("as given"), "as given", ()),
    (memable.RetryableError("busy", 3), "('busy', 3)", ()),
    (memable.PermanentError(), "", ()),
    (memable.NotDoneError("no mail"), "no mail", ()),
    (
        memable.StepFailedError(**STEP),
        (
            f"{HERE}, key 'k': the step failed with OSError: disk on fire; mend the cause, then "
            "engine.resume(...) runs it "
            "again"
        ),
        (),
    ),
    (
        memable.StepTimeoutError(**STEP | {"attempts": 2}),
        (
            f"{HERE}, key 'k': the step timed out at attempt 2 with OSError: disk on fire; mend the cause, then "
            "engine.resume(...) runs it again"
        ),
        (TimeoutError, memable.StepFailedError),
    ),
    (
        memable.RetriesExhaustedError(**STEP | {"attempts": 4}),
        (
            f"{HERE}, key 'k': the step failed at all of its 4 attempts, at last with OSError: disk on fire; mend the "
            "cause, then engine.resume(...) runs it again"
        ),
        (memable.StepFailedError,),
    ),
    (
        memable.RetriesExhaustedTimeoutError(**STEP | {"attempts": 4}),
        (
            f"{HERE}, key 'k': the step failed at all of its 4 attempts, timing out at last with OSError: disk on "
            "fire; "
            "mend the cause, then engine.resume(...) runs it again"
        ),
        (TimeoutError, memable.RetriesExhaustedError, memable.StepTimeoutError),
    ),
    (
        memable.SuspendTimeoutError(**INSTANCE, key="k"),
        (
            f"{HERE}, key 'k': no signal came before the timeout; catch this in the workflow, or engine.resume(...) to "
            "wait once more"
        ),
        (TimeoutError,),
    ),
    (
        memable.ScopeTimeoutError(**INSTANCE, key="k"),
        (
            f"{HERE}, key 'k': what is inside ctx.fail_after took too long; catch this in the workflow, or "
            "engine.resume(...) to try once more"
        ),
        (TimeoutError, trio.TooSlowError),
    ),
    (
        memable.ChildFailedError(**INSTANCE, key="k", error=INFO),
        (
            f"{HERE}, key 'k': the child instance failed with OSError: disk on fire; mend the cause, then "
            "engine.resume(...) runs it again"
        ),
        (),
    ),
    (
        memable.ChildFailedError(**INSTANCE, key="k", error=INFO, index=3, item_key="three"),
        (
            f"{HERE}, key 'k': child 'three' (index 3) failed with OSError: disk on fire; mend the cause, then "
            "engine.resume(...) runs it again"
        ),
        (),
    ),
    (
        memable.ItemsChangedError(**INSTANCE, key="k", item_key="7", index=7, is_missing=True),
        (
            f"{HERE}, key 'k': the item of child '7' (index 7) is missing; give the same items again (more may follow "
            "them), name children by item_key=, make the items in a step, or use a new key"
        ),
        (memable.WorkflowCodeError,),
    ),
    (
        memable.NonDurableDeadlineError(**INSTANCE, key="k", operation="suspend"),
        (
            f"{HERE}, key 'k': ctx.suspend inside a deadline of trio's, which a crash or a passivation would begin "
            "anew; use 'async with ctx.move_on_after(key, seconds)' or ctx.fail_after(key, seconds) or suspend(..., "
            "timeout=...)"
        ),
        (memable.WorkflowCodeError,),
    ),
    (
        memable.CompensationLostError(**INSTANCE, keys=("a", "b")),
        (
            f"{HERE}: compensations 'a', 'b' were registered, but the code does not register them any more; let it "
            "call ctx.compensate with these keys again, then it goes on at the next open or engine.resume(...)"
        ),
        (memable.WorkflowCodeError,),
    ),
    (
        memable.OutcomeUnknownError(**INSTANCE, key="k", error=INFO),
        (
            f"{HERE}, key 'k': the effect had begun when its run was cut short, and its outcome is unknown (the probe "
            "failed with OSError: disk on fire); find out whether it happened, then engine.settle(..., value=... or "
            "error=... or rerun=True)"
        ),
        (memable.WorkflowCodeError,),
    ),
    (
        memable.TypeMismatchError(expected="builtins.int", found="builtins.bool", **INSTANCE, key="k", is_given=True),
        (
            f"{HERE}, key 'k': the instance waits for builtins.int, but what is given is builtins.bool; nothing was "
            "delivered: give a value of that type"
        ),
        (TypeError,),
    ),
    (
        memable.SignalRejectedError(**INSTANCE, key="k", reason="the instance has ended"),
        f"{HERE}, key 'k': nothing was delivered: the instance has ended",
        (),
    ),
    (
        memable.SignalSupersededError(**INSTANCE, key="k"),
        (
            f"{HERE}, key 'k': nothing was delivered: another signal or the timeout was first, or a signal is kept "
            "there already; that one counts"
        ),
        (),
    ),
    (
        memable.InstanceCompensatedError(**INSTANCE),
        (
            f"{HERE}: its compensations have begun, so its memos no longer hold; engine.resume(..., anew=True) runs it "
            "from the beginning"
        ),
        (),
    ),
    (memable.SerializationError(problem="cannot be stored"), "cannot be stored", ()),
    (
        memable.SerializationError(problem="cannot be stored", **INSTANCE, key="k"),
        f"{HERE}, key 'k': cannot be stored",
        (),
    ),
    (memable.WorkflowCodeError("of the user's own"), "of the user's own", ()),
    (
        memable.MisuseError(problem="write it so", workflow="w"),
        "workflow 'w': write it so",
        (TypeError, memable.WorkflowCodeError),
    ),
    (
        memable.InvalidKeyError(component="key", value="a/b", problem="has a '/' at position 1"),
        (
            "key 'a/b' has a '/' at position 1; use a non-empty str of at most 255 bytes of UTF-8 without '/', control "
            "characters or surrogates, that does not start with '_'"
        ),
        (ValueError, memable.WorkflowCodeError),
    ),
    (
        memable.TypeMismatchError(expected="builtins.str", found="builtins.int", problem="in [0]", **INSTANCE, key="k"),
        (
            f"{HERE}, key 'k': the code asks for builtins.str, but what is recorded is builtins.int (in [0]); "
            "restore the "
            "type, use a new key, or name a moved class in open_engine(aliases=...)"
        ),
        (TypeError, memable.WorkflowCodeError),
    ),
    (
        memable.DuplicateKeyError(**INSTANCE, key="fan/1/k"),
        (
            f"{HERE}, key 'fan/1/k': this run has used the key before; give each use a key of its own, in a loop for "
            "example f'k-{item.id}'"
        ),
        (memable.WorkflowCodeError,),
    ),
    (
        memable.KeyKindError(**INSTANCE, key="k", recorded="sleep", requested="step"),
        f"{HERE}, key 'k': recorded as sleep, now used as step; use a new key for it",
        (memable.WorkflowCodeError,),
    ),
    (
        memable.SuspendedStepConflictError(**INSTANCE, key="k", recorded="suspend", requested="step"),
        f"{HERE}, key 'k': recorded as suspend, now used as step; use a new key for it",
        (memable.KeyKindError,),
    ),
    (
        memable.NestedStepError(**INSTANCE, key="k", operation="step"),
        (
            f"{HERE}, key 'k': ctx.step was called inside this step; call it from the workflow's body, before or "
            "after the "
            "step"
        ),
        (memable.WorkflowCodeError,),
    ),
    (
        memable.InstanceNotFoundError(**INSTANCE),
        f"{HERE}: the store has no such instance; check the name and the id, or start it with engine.invoke(...)",
        (LookupError,),
    ),
    (
        memable.InstanceConflictError(**INSTANCE),
        f"{HERE}: exists already with another input; use another instance_id, or engine.get(...) for the existing one",
        (),
    ),
    (
        memable.InstanceBusyError(**INSTANCE, operation="forgetting"),
        f"{HERE}: forgetting is not possible while the instance runs; wait for it, or engine.cancel(...) it first",
        (),
    ),
    (
        memable.UnknownKeyError(**INSTANCE, keys=("a", "b/c")),
        f"{HERE}: no record of 'a', 'b/c', so nothing was forgotten; recorded is nothing",
        (LookupError,),
    ),
    (
        memable.WorkflowNotFoundError(workflow="w"),
        (
            "workflow 'w' is not registered (registered: none); name it in open_engine(workflows=[...]) or call "
            "engine.register(...)"
        ),
        (LookupError,),
    ),
    (
        memable.WorkflowNotFoundError(workflow="w", registered=("a", "b")),
        (
            "workflow 'w' is not registered (registered: 'a', 'b'); name it in open_engine(workflows=[...]) or call "
            "engine.register(...)"
        ),
        (LookupError,),
    ),
    (
        memable.WorkflowNotFoundError(workflow="w", registered=("w",)),
        (
            "workflow 'w' is not registered: another definition of this name is; give the one that is "
            "registered, or its "
            "name"
        ),
        (LookupError,),
    ),
    (
        memable.DuplicateWorkflowError(workflow="w"),
        (
            "workflow 'w': another definition of this name is registered already; give one of them a name of its "
            "own with "
            "@memable.workflow(name=...)"
        ),
        (),
    ),
    (
        memable.WorkflowFailedError(**INSTANCE, error=INFO),
        (
            f"{HERE}: failed with OSError: disk on fire; mend the cause, then engine.resume(...) continues it from its "
            "memos"
        ),
        (),
    ),
    (
        memable.WorkflowCancelledError(**INSTANCE),
        f"{HERE}: was cancelled; engine.resume(...) continues it from its memos",
        (),
    ),
    (
        memable.WorkflowCancelledError(**INSTANCE, reason="by hand"),
        f"{HERE}: was cancelled (by hand); engine.resume(...) continues it from its memos",
        (),
    ),
    (
        memable.WorkflowBlockedError(**INSTANCE, key="k", error=INFO),
        (
            f"{HERE}, key 'k': blocked by OSError: disk on fire; nothing is lost: mend the code, then it goes on "
            "at the "
            "next open or engine.resume(...)"
        ),
        (),
    ),
    (
        memable.WorkflowBlockedError(**INSTANCE, key=None, error=INFO),
        (
            f"{HERE}: blocked by OSError: disk on fire; nothing is lost: mend the code, then it goes on at the "
            "next open "
            "or engine.resume(...)"
        ),
        (),
    ),
    (
        memable.StaleRunningError(**INSTANCE),
        (
            f"{HERE}: recorded as running, but not running in this engine; register its workflow or call "
            "engine.resume(...)"
        ),
        (),
    ),
    (
        memable.RecoveryLimitError(**INSTANCE, recoveries=100),
        (
            f"{HERE}: was running at 100 crashes in a row without a new record; find out whether it brings the process "
            "down, then engine.resume(...)"
        ),
        (),
    ),
    (
        memable.RecordsLostError(**INSTANCE, lost="its record 7 is lost"),
        (
            f"{HERE}: the store was damaged and repaired, and its record 7 is lost; what is lost runs again: find out "
            "what it has done already, then engine.resume(...)"
        ),
        (),
    ),
    (
        memable.EngineStoppedError(operation="engine.invoke"),
        "engine.invoke: the engine has stopped; open the store again with open_engine(...)",
        (),
    ),
    (
        memable.RunEndedError(**INSTANCE, operation="step"),
        (
            f"{HERE}: ctx.step did nothing: this run has ended; use the context only inside the workflow's body "
            "and its "
            "nurseries"
        ),
        (),
    ),
    (
        memable.RunEndedError(**INSTANCE, operation="step", leaving="stopping"),
        (
            f"{HERE}: ctx.step did nothing: this run is being unwound (stopping), so nothing new is begun; put effects "
            "into steps"
        ),
        (),
    ),
    (memable.StorageError(location="data", problem="is full"), "data: is full", ()),
    (
        memable.StoreLockedError(location="data", problem="is open", pid=7, host="h"),
        "data: is open",
        (memable.StorageError,),
    ),
    (
        memable.StoreCorruptedError(location="data/1.log", problem="restore a backup", offset=8192),
        "data/1.log: at byte offset 8192: restore a backup",
        (memable.StorageError,),
    ),
    (
        memable.StoreVersionError(location="data", problem="use memable 3", found=3, supported=1),
        "data: use memable 3",
        (memable.StorageError,),
    ),
]

each_error = pytest.mark.parametrize(
    ("error", "text", "bases"), ERRORS, ids=[f"{type(row[0]).__name__}-{n}" for n, row in enumerate(ERRORS)]
)


@each_error
def test_error_text_is_made_from_its_facts(error: memable.MemableError, text: str, bases: tuple[type, ...]):
    """
    Each error's text says what happened, to which workflow, instance and key, and what to do.
    """
    assert str(error) == text


@each_error
def test_error_is_what_the_language_calls_it(error: memable.MemableError, text: str, bases: tuple[type, ...]):
    """
    All errors are MemableErrors; lookups, bad values, mismatches and timeouts are the built-in ones, too, no others.
    """
    assert isinstance(error, memable.MemableError)
    for base in bases:
        assert isinstance(error, base)
    builtin = (LookupError, ValueError, TypeError, TimeoutError, OSError)
    expected = {cls for cls in builtin if any(issubclass(base, cls) for base in bases)}
    assert {cls for cls in builtin if isinstance(error, cls)} == expected


@each_error
def test_error_survives_pickle_and_copies(error: memable.MemableError, text: str, bases: tuple[type, ...]):
    """
    A pickled, copied or deeply copied error has the same type, facts, arguments, notes and text.
    """
    noted = copy.copy(error)
    noted.add_note("seen in a test")
    for original in (error, noted):
        twins = [copy.copy(original), copy.deepcopy(original)]
        twins += [pickle.loads(pickle.dumps(original, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]  # noqa: S301 - its own
        for twin in twins:
            assert twin is not original
            assert type(twin) is type(original)
            assert vars(twin) == vars(original)
            assert (twin.args, str(twin), repr(twin)) == (original.args, str(original), repr(original))


@each_error
def test_error_prints_its_facts(error: memable.MemableError, text: str, bases: tuple[type, ...]):
    """
    The ``repr`` of an error names its class and its facts.
    """
    assert repr(error).startswith(f"{type(error).__name__}(")
    assert all(f"{name}={value!r}" in repr(error) for name, value in vars(error).items())


def _classes(base: type[memable.MemableError]) -> Iterator[type[memable.MemableError]]:
    yield base
    for cls in base.__subclasses__():
        yield from _classes(cls)


OURS = sorted(
    {cls for cls in _classes(memable.MemableError) if cls.__module__ == "memable"}, key=lambda cls: cls.__name__
)


def test_errors_are_all_tested_here():
    """
    The table above has each public error.
    """
    public = {cls for cls in OURS if not cls.__name__.startswith("_")}
    assert {type(row[0]) for row in ERRORS} == public
    assert public == {
        one for one in vars(memable).values() if inspect.isclass(one) and issubclass(one, memable.MemableError)
    }


@pytest.mark.parametrize("cls", OURS)
def test_error_says_where_to_import_it_from(cls: type[memable.MemableError]):
    """
    An error's recorded name is the one that users import it by.
    """
    assert cls.__module__ == "memable"
    assert cls.__name__.startswith("_") or getattr(memable, cls.__name__) is cls


def test_error_of_the_users_own_keeps_its_module():
    """
    A class that a user derives is named after the user's module, and travels with whatever it holds.
    """

    class Gone(memable.PermanentError):
        def __init__(self, place: str, code: int) -> None:
            super().__init__(f"{place} answered {code}")
            self.code = code

    gone = Gone("there", 410)
    twin = copy.deepcopy(gone)
    assert Gone.__module__ == __name__
    assert (type(twin), str(twin), twin.code) == (Gone, "there answered 410", 410)


@pytest.mark.parametrize("cls", sorted({type(row[0]) for row in ERRORS if attrs.has(type(row[0]))}, key=str))
def test_error_facts_are_given_by_name(cls: type[Any]):
    """
    The facts of an error are keyword arguments, so that more of them can be added.
    """
    with pytest.raises(TypeError, match="positional"):
        cls(*("fact" for _ in attrs.fields(cls)))


def test_error_matches_by_its_info():
    """
    ``matches`` of a failed step or workflow asks what is recorded of the exception.
    """
    for error in (memable.StepFailedError(**STEP), memable.WorkflowFailedError(**INSTANCE, error=INFO)):
        assert error.matches(OSError)
        assert not error.matches(KeyError)


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no text")


LOCK = threading.Lock()


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (LOCK, repr(LOCK)),
        (["x"] * 1_000, f"{repr(['x'] * 1_000)[:297]}..."),
        (Broken(), "<Broken>"),
        (("a", 1), "('a', 1)"),
    ],
    ids=["lock", "long", "broken", "tuple"],
)
def test_error_about_a_key_keeps_no_object_of_the_user(value: Any, kept: str):
    """
    What was given as a key can be anything; the error holds the text of it, and prints it as the value would be.
    """
    error = memable.InvalidKeyError(component="key", value=value, problem="is no str")
    assert error.value == kept
    assert str(error).startswith(f"key {kept} is no str; ")


@pytest.mark.parametrize("value", ["x" * 1_000, b"a", 1, 1.5, True, None])
def test_error_about_a_key_keeps_plain_values(value: Any):
    """
    A refused string or number is kept as it is, and shown shortened if it is long.
    """
    error = memable.InvalidKeyError(component="key", value=value, problem="is bad")
    assert (type(error.value), error.value) == (type(value), value)
    assert len(str(error)) < 500


async def test_error_holds_no_engine():
    """
    Nothing that an error refers to leads to the engine, the run or the context, whoever raised it and wherever.
    """
    errors: list[BaseException] = []

    async def fail() -> None:
        raise ValueError("no")

    async def catch(awaitable: Any) -> None:
        try:
            await awaitable
        except Exception as error:  # noqa: BLE001 - whatever it is
            errors.append(error.with_traceback(None))

    @memable.workflow
    async def failing(ctx: memable.Context) -> None:
        await catch(ctx.step("fail", fail))
        await catch(ctx.step_in_thread("object", object))
        await catch(ctx.step("fail", fail))
        await catch(ctx.step(ctx, fail))  # type: ignore[arg-type] # the mistake that is tested
        await catch(ctx.step("next", fail))

    await run_to_end(failing)
    assert [type(error).__name__ for error in errors] == [
        "StepFailedError",
        "SerializationError",
        "DuplicateKeyError",
        "InvalidKeyError",
        "DuplicateKeyError",
    ]
    for error in errors:
        error.__context__ = None
        assert not any(isinstance(one, (memable.Engine, memable.Context)) for one in _reachable(error))


def _reachable(root: object) -> Iterator[object]:
    seen: set[int] = set()
    pending = [root]
    while pending:
        one = pending.pop()
        if id(one) in seen or inspect.isclass(one) or inspect.ismodule(one) or inspect.isfunction(one):
            continue
        seen.add(id(one))
        yield one
        pending += gc.get_referents(one)


def test_errors_have_a_module_without_trio():
    """
    Errors are values of the core: their module imports nothing that runs.
    """
    assert not hasattr(_errors, "trio")
