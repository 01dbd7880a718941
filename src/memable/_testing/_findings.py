"""
Finds out what is wrong with a schedule from what happened in it.

Rules:
- Which keys a body asks for depends on its input and its memos only. So whatever a run asks for, the run that brings
  the instance to its end asks for, too, except what lies within the outcome of a fan-out or a scope.
- What happens in the world outside happens in a step, and twice only if the service there can tell.
- Who is cancelled lets that happen.
Values in, values out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import attrs

from .._encoded import Encoded
from .._journal import Journal
from .._records import StepCompleted
from ._effects import Effect
from ._happenings import (
    EffectHappened,
    EndRecorded,
    Happening,
    KeyAsked,
    LifeBegun,
    RunBegun,
    RunEnded,
    StepExecuted,
    StepReturnedLate,
    Swallowed,
)

ProblemKind = Literal[
    "scenario-raises",
    "left-behind",
    "different-results",
    "never-finishes",
    "blocked",
    "check-failed",
    "key-differs",
    "effect-outside-step",
    "effect-repeated",
    "cancellation-swallowed",
]
"""
What may be wrong:

- ``scenario-raises``: the scenario raised without any crash, or after an upgrade, something else than that a workflow
  failed, was cancelled or is blocked.
- ``left-behind``: an instance goes on whose workflow the new code does not have.
- ``different-results``: the scenario returned or raised something else than without a crash.
- ``never-finishes``: it neither returned nor raised.
- ``blocked``: an instance was Blocked at the end.
- ``check-failed``: your ``check`` raised.
- ``key-differs``: a run asked for a key for which the one that finished the instance did not ask any more.
- ``effect-outside-step``: a body did something in the world outside, rather than a step of it.
- ``effect-repeated``: a step did the same more than once, and without an idempotency key.
- ``cancellation-swallowed``: a body or a step went on, or returned something else, because it was cancelled.
"""

PROBLEM_KINDS: tuple[ProblemKind, ...] = (
    "scenario-raises",
    "left-behind",
    "effect-outside-step",
    "effect-repeated",
    "key-differs",
    "blocked",
    "cancellation-swallowed",
    "check-failed",
    "never-finishes",
    "different-results",
)
"All of them, the most telling first: what comes later is often only what follows from those before."

#: Operations whose outcomes stand for what was asked for inside them.
_CONTAINING = frozenset(("fan_out", "fan_out_settled", "call"))
#: Of many keys, so many are named.
_MOST_NAMED = 5
_TRACE_LINE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)')
#: A number of so many digits in a key may be a time in seconds or parts of them; so may a date.
_LIKE_A_TIME = re.compile(r"(?<!\d)(\d{10}|\d{13}|\d{16}|\d{19})(?!\d)|\d{4}-\d\d-\d\d|\d{1,2}:\d\d:\d\d")
_LIKE_RANDOM = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-|[0-9a-f]{16,}|0\.\d{8,}")


@attrs.frozen
class Finding:
    """
    Something that is wrong in one schedule.
    """

    kind: ProblemKind
    instance: str | None
    key: str | None
    subject: str
    "What, with kind, instance and key, makes it the same finding in another schedule."
    message: str


def count_executions(happenings: Iterable[Happening]) -> dict[str, int]:
    """
    Return how often each step's function was called, by ``workflow/instance: path``.
    """
    return Counter(f"{one.instance}: {one.path}" for one in happenings if isinstance(one, StepExecuted))


def find_differing(happenings: Sequence[Happening]) -> Iterator[tuple[str, str]]:
    """
    Yield instance and path of what a run asked for and the run that finished the instance did not.
    """
    for instance, finished in _finished_runs(happenings).items():
        asked = _asked(happenings, instance)
        last = {one.path for one in asked if one.run == finished}
        yield from ((instance, path) for path in _missing(asked, last, finished))


def find_problems(
    happenings: Sequence[Happening],
    journals: Mapping[str, Journal],
    values: Mapping[tuple[str, str], Encoded],
    expected: Collection[tuple[str, str, str]] = (),
) -> list[Finding]:
    """
    Return what is wrong with one schedule.

    Args:
        happenings: What happened in it.
        journals: What is recorded at its end, by instance.
        values: What steps returned where nothing was cancelled, encoded, by instance and path: of those that always
            return the same.
        expected: What ``effects_of_steps`` says where nothing goes wrong.
    """
    return [
        *_effects_outside(happenings),
        *_effects_repeated(happenings),
        *_keys_differing(happenings),
        *_blocked(happenings, journals),
        *_swallowed(happenings, journals, values, expected),
    ]


def values_in(journals: Mapping[str, Journal]) -> dict[tuple[str, str], Encoded]:
    """
    Return what steps returned, encoded, by instance and path.
    """
    return {
        (instance, path): memo.value
        for instance, journal in journals.items()
        for path, memo in journal.memos.items()
        if isinstance(memo, StepCompleted)
    }


def describe_keys(paths: Sequence[str]) -> str:
    """
    Return keys as text, the first few of them by name.
    """
    more = len(paths) - _MOST_NAMED
    told = ", ".join(repr(path) for path in paths[:_MOST_NAMED])
    return told + (f" and {more} more" if more > 0 else "")


def late_steps(happenings: Iterable[Happening]) -> dict[tuple[str, str], None]:
    """
    Return instance and path of the steps that returned though they had been cancelled.
    """
    return dict.fromkeys((one.instance, one.path) for one in happenings if isinstance(one, StepReturnedLate))


def effects_of_steps(happenings: Iterable[Happening]) -> frozenset[tuple[str, str, str]]:
    """
    Return what steps did in the world outside, by instance, path and what it is.
    """
    return frozenset(
        (one.effect.instance, one.effect.step, one.effect.name)
        for one in happenings
        if isinstance(one, EffectHappened) and one.effect.instance is not None and one.effect.step is not None
    )


# Effects ---------------------------------------------------------------------------------------------------------


def _effects(happenings: Iterable[Happening]) -> list[Effect]:
    return [one.effect for one in happenings if isinstance(one, EffectHappened)]


def _effects_outside(happenings: Iterable[Happening]) -> Iterator[Finding]:
    found: dict[tuple[str, str, str], list[Effect]] = {}
    for effect in _effects(happenings):
        if effect.instance is not None and effect.step is None:
            found.setdefault((effect.instance, effect.name, effect.place), []).append(effect)
    for (instance, name, place), effects in found.items():
        block = effects[0].block
        where = "" if block is None else f" (in {'an except' if block == 'except' else 'a finally'} block)"
        yield Finding(
            "effect-outside-step",
            instance,
            None,
            f"{name} {place}",
            f"{name!r} happens outside a step of workflow {instance}, at {place}{where}: it happens in each run of the "
            f"body; move it into a step" + (", or into ctx.compensate if it undoes something" if where else ""),
        )


def _effects_repeated(happenings: Iterable[Happening]) -> Iterator[Finding]:
    executions: Counter[tuple[str, str]] = Counter()
    # What each execution of a step did, by what and in which generation.
    done: dict[tuple[str, str, str, str | None], dict[int, list[Effect]]] = {}
    for one in happenings:
        if isinstance(one, StepExecuted):
            executions[one.instance, one.path] += 1
        elif isinstance(one, EffectHappened):
            effect = one.effect
            if effect.instance is not None and effect.step is not None:
                subject = (effect.instance, effect.step, effect.name, effect.step_id)
                number = executions[effect.instance, effect.step]
                done.setdefault(subject, {}).setdefault(number, []).append(effect)
    for (instance, step, name, _), by_execution in done.items():
        effects = [effect for group in by_execution.values() for effect in group if not effect.is_repetition]
        if _is_repeated(by_execution.values()):
            yield Finding(
                "effect-repeated",
                instance,
                step,
                name,
                f"step {step!r} of {instance} lets {name!r} happen {len(effects)} times, at {effects[-1].place}, in "
                f"{len(by_execution)} executions: a step that fails is tried again, and so is one whose process dies "
                f"before its outcome is recorded; give the service an idempotency key "
                f"(ctx.step_id({step.rpartition('/')[2]!r})), or use once=True with a probe",
            )


def _is_repeated(executions: Collection[Sequence[Effect]]) -> bool:
    """
    Tell whether an execution of a step did again what another one had done.

    In one execution it may do the same for several things, and the next one for those that are left. But together they
    do not know more things than one of them alone.
    """
    unkeyed = sum(any(effect.idempotency_key is None for effect in group) for group in executions)
    keys = [{effect.idempotency_key for effect in group} - {None} for group in executions]
    return unkeyed > 1 or len(set[str | None]().union(*keys)) > max(map(len, keys))


# Keys ------------------------------------------------------------------------------------------------------------


def _finished_runs(happenings: Iterable[Happening]) -> dict[str, int]:
    """Return the number of the run that brought each instance to its end, where one did."""
    return {one.instance: one.run for one in happenings if isinstance(one, RunEnded) and not one.is_unwound}


def _asked(happenings: Iterable[Happening], instance: str) -> list[KeyAsked]:
    """Return what was asked for since the instance was last at an end: a resume forgets what failed, or is told to."""
    asked: list[KeyAsked] = []
    borders = [0]
    ended: int | None = None
    for one in happenings:
        match one:
            case LifeBegun():
                # Had its end been recorded, nothing would have run again by itself.
                ended = None
            case RunEnded(instance=name, run=run, is_unwound=False) if name == instance:
                ended = run
            case EndRecorded(instance=name) | RunBegun(instance=name) if name == instance and ended is not None:
                borders.append(ended)
                ended = None
            case KeyAsked(instance=name) if name == instance:
                asked.append(one)
            case _:
                pass
    last = max((one.run for one in asked), default=0)
    began = max((border for border in borders if border < last), default=0)
    return [one for one in asked if one.run > began]


def _missing(asked: Sequence[KeyAsked], last: Collection[str], finished: int) -> list[str]:
    """Return what was asked for before, and not in the run that finished the instance."""
    containing = {one.path for one in asked if one.run == finished and one.operation in _CONTAINING and one.is_recorded}
    found: dict[str, None] = {}
    for one in asked:
        if (
            one.run < finished
            and one.path not in last
            and not one.is_unwound
            and not _answers(one.path, last, containing)
        ):
            found[one.path] = None
    return list(found)


def _answers(path: str, last: Collection[str], containing: Collection[str]) -> bool:
    """Tell whether a recorded outcome answers for what was asked for inside it."""
    parts = path.split("/")
    for length in range(1, len(parts)):
        outer = "/".join(parts[:length])
        if outer in containing:
            return True
        if outer in last and length + 1 < len(parts):
            # A child of a fan-out: it has an outcome of its own, unless it runs again. A fan-out in it may have one.
            child = "/".join(parts[: length + 1]) + "/"
            if not any(one.startswith(child) for one in last):
                return True
    return False


def _keys_differing(happenings: Sequence[Happening]) -> Iterator[Finding]:
    for instance, finished in _finished_runs(happenings).items():
        asked = _asked(happenings, instance)
        last = {one.path: one for one in asked if one.run == finished}
        before = {one.path for one in asked if one.run < finished}
        new = [path for path in last if path not in before]
        for path in _missing(asked, last, finished):
            first = next(one for one in asked if one.path == path)
            instead = next((other for other in new if last[other].place == first.place), None)
            told = f"; at the same place run {finished} asked for {instead!r}" if instead is not None else ""
            yield Finding(
                "key-differs",
                instance,
                path,
                f"{first.place}",
                f"run {first.run} of {instance} asked for {path!r}, at {first.place}, and run {finished}, which "
                f"finished it, did not{told}: a key must depend on the input and on memos only"
                + _suspect(path, instead),
            )


def _suspect(path: str, instead: str | None) -> str:
    """Return what a key may have been made from, in words."""
    if instead is None:
        return ""
    if _LIKE_RANDOM.search(path):
        return ", and this one looks as if it were made from a random number; make that in a step"
    if _LIKE_A_TIME.search(path):
        return ", and this one looks as if it were made from the clock; read that in a step"
    return ""


# Ends ------------------------------------------------------------------------------------------------------------


def _blocked(happenings: Sequence[Happening], journals: Mapping[str, Journal]) -> Iterator[Finding]:
    for instance, journal in journals.items():
        if journal.blocked is None or journal.ending is not None:
            continue
        error = journal.blocked.error
        asked = [one.place for one in _asked(happenings, instance) if one.path == journal.blocked.path]
        places = list(dict.fromkeys([*asked[:1], *_user_lines(error.traceback)[-1:]]))
        where = f", at {' and at '.join(places)}" if places else ""
        yield Finding(
            "blocked",
            instance,
            journal.blocked.path,
            error.type,
            f"{instance} is Blocked{where}: {error.message}",
        )


def _user_lines(traceback: str) -> list[str]:
    return [
        f"{found['file'].rpartition('/')[2]}:{found['line']}, in {found['function']}"
        for found in _TRACE_LINE.finditer(traceback)
        if "/memable/" not in found["file"] and "/trio/" not in found["file"]
    ]


def _swallowed(
    happenings: Sequence[Happening],
    journals: Mapping[str, Journal],
    values: Mapping[tuple[str, str], Encoded],
    effects: Collection[tuple[str, str, str]],
) -> Iterator[Finding]:
    for one in happenings:
        if isinstance(one, Swallowed):
            within = "" if one.path is None else f" that it got in {one.path!r}"
            yield Finding(
                "cancellation-swallowed",
                one.instance,
                one.path,
                "",
                f"the body of {one.instance} swallowed the cancellation{within}, and {one.then}: let trio.Cancelled "
                f"pass (catch Exception, not BaseException, and no bare except)",
            )
    recorded = values_in(journals)
    for instance, path in late_steps(happenings):
        expected, found = values.get((instance, path)), recorded.get((instance, path))
        if expected is not None and found is not None and expected != found:
            yield Finding(
                "cancellation-swallowed",
                instance,
                path,
                "step",
                f"step {path!r} of {instance} swallowed its cancellation and returned something else than it does "
                f"otherwise, which is recorded now: let trio.Cancelled pass (catch Exception, not BaseException, and "
                f"no bare except)",
            )
    late, done = late_steps(happenings), effects_of_steps(happenings)
    for instance, path, name in sorted(effects):
        if (instance, path) in late and (instance, path) in recorded and (instance, path, name) not in done:
            yield Finding(
                "cancellation-swallowed",
                instance,
                path,
                name,
                f"step {path!r} of {instance} swallowed its cancellation and returned without {name!r}, and is "
                f"recorded as done: let trio.Cancelled pass (catch Exception, not BaseException, and no bare except)",
            )
