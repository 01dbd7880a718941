"""
Explores crashes of a test function: the plugin of pytest calls this for tests marked ``memable_crashes``.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType
from typing import Any

import pytest

from .._engine import Engine
from ._exploring import explore_crashes
from ._report import CrashReport, Schedule


def resolve_outside(options: Mapping[str, Any], fixtures: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the options of an exploration, with fixtures in place of the names that are given for them.

    Raises:
        LookupError: The test has no such fixture.
    """
    outside: list[object] = []
    for one in options.get("outside", ()):
        if isinstance(one, str) and one not in fixtures:
            raise LookupError(f"outside= names {one!r}, which is no fixture that the test uses")
        outside.append(fixtures[one] if isinstance(one, str) else one)
    return {**options, "outside": outside}


def explore_test(
    fn: Callable[..., Awaitable[Any]],
    arguments: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    only: str | None,
    name: str,
) -> CrashReport[Any]:
    """
    Run a test function once for each place where its process could die.

    Args:
        fn: The test: an async function that takes ``memable_engine``.
        arguments: What else it is called with.
        options: Those of ``explore_crashes``.
        only: The recipe of one schedule that alone is run, with memable's log on.
        name: What pytest calls the test.

    Returns:
        What was found, which is that nothing is wrong.

    Raises:
        Exception: What the test raised in some schedule, with a note that says in which.
        BaseException: pytest's failure, with the report, if something else is wrong. Or what is no ``Exception``, such
            as pytest's for a skipped test, as the test raised it.
    """
    __tracebackhide__ = True

    async def scenario(engine: Engine) -> Any:
        try:
            return await fn(memable_engine=engine, **arguments)
        except pytest.fail.Exception as exc:
            # It is no Exception, so it would end the exploration before it is known in which schedule it happens.
            raise AssertionError(exc.msg) from exc

    with _logging_all(only is not None):
        report: CrashReport[Any] = explore_crashes(scenario, only=only, **options)
    failed = next((one for one in report.schedules if one.outcome.exc is not None), None)
    if failed is not None:
        _raise(failed, report, fn, name)
    if not report:
        recipe = report.problems[0].recipe
        pytest.fail(f"{report}\nto run one schedule: {_command(name, recipe)}", pytrace=False)
    return report


def _raise(failed: Schedule[Any], report: CrashReport[Any], fn: Callable[..., Any], name: str) -> None:
    """Raise what the test raised, as if it had been called from here."""
    __tracebackhide__ = True
    exc = failed.outcome.exc
    assert exc is not None
    if failed.recipe:
        count = sum(one.outcome == failed.outcome for one in report.schedules)
        exc.add_note(
            f"in {count} of {len(report.schedules)} schedules, first when {failed.describe()}; to run that alone: "
            f"{_command(name, failed.recipe)}"
        )
        # That one schedule raises and another one does not is a problem of its own, and told already.
        if len(report.problems) > 1:
            exc.add_note(str(report))
    raise _from_frame_of(exc, fn)


def _from_frame_of(exc: BaseException, fn: Callable[..., Any]) -> BaseException:
    """Return the exception without the lines that led to the test function."""
    code: CodeType | None = getattr(fn, "__code__", None)
    traceback = exc.__traceback__
    while traceback is not None and traceback.tb_frame.f_code is not code:
        traceback = traceback.tb_next
    return exc if traceback is None else exc.with_traceback(traceback)


def _command(name: str, recipe: str) -> str:
    return f'pytest "{name}" --memable-only "{recipe}"'


@contextmanager
def _logging_all(is_on: bool) -> Iterator[None]:
    """Let memable log all that it has to say inside the block."""
    logger = logging.getLogger("memable")
    level = logger.level
    if is_on:
        logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.setLevel(level)
