"""
Finds the line of the user's code that something happens at.
"""

from __future__ import annotations

import ast
import functools
import linecache
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Literal

import trio

#: Files that are none of the user's.
_OWN = str(Path(__file__).parent.parent) + os.sep
_OTHERS = (_OWN, str(Path(trio.__file__).parent) + os.sep, "<")


def find_frame() -> FrameType:
    """
    Return the frame that has called memable, or the outermost one if memable was called by nobody else.
    """
    frame = sys._getframe(1)  # noqa: SLF001 - the way to it that costs least
    while frame.f_code.co_filename.startswith(_OWN) and frame.f_back is not None:
        frame = frame.f_back
    return frame


def find_place() -> str:
    """
    Return the line of the user's code that is being executed, as ``file:line, in function``.

    Where trio itself has called memable, as after ``nursery.start_soon(ctx.step, ...)``, it is the line at which the
    task that has started this one waits.
    """
    frame = find_frame()
    if is_the_users(frame):
        return describe_place(frame)
    try:
        task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
    except RuntimeError:
        task = None
    while task is not None and task.parent_nursery is not None:
        task = task.parent_nursery.parent_task
        place = find_task_place(task)
        if place is not None:
            return place
    return describe_place(frame)


def find_task_place(task: trio.lowlevel.Task) -> str | None:
    """
    Return the innermost line of the user's code at which a task is that does not run, or None.
    """
    frames = [frame for frame, _ in task.iter_await_frames()]
    return next((describe_place(frame) for frame in reversed(frames) if is_the_users(frame)), None)


def is_the_users(frame: FrameType) -> bool:
    """
    Tell whether a frame is of code that is neither memable's nor trio's.
    """
    return not frame.f_code.co_filename.startswith(_OTHERS)


def describe_place(frame: FrameType) -> str:
    """
    Return a line of code as ``file:line, in function``.
    """
    # Not by way of a Path, which takes as long as all the rest of what is noted of a key.
    return f"{frame.f_code.co_filename.rpartition(os.sep)[2]}:{frame.f_lineno}, in {frame.f_code.co_name}"


@functools.lru_cache(maxsize=256)
def find_block(filename: str, line: int) -> Literal["except", "finally"] | None:
    """
    Tell whether a line of code stands in an ``except`` or ``finally`` block, as far as its source is there to read.
    """
    try:
        tree = ast.parse("".join(linecache.getlines(filename)))
    except SyntaxError:
        return None
    found: Literal["except", "finally"] | None = None
    for node in ast.walk(tree):
        if isinstance(node, (ast.Try, ast.TryStar)):
            # Walked from the outside in: the innermost block is the one that counts.
            if _stands_in(node.finalbody, line):
                found = "finally"
            elif any(_stands_in(handler.body, line) for handler in node.handlers):
                found = "except"
    return found


def _stands_in(block: Sequence[ast.stmt], line: int) -> bool:
    return any(one.lineno <= line <= (one.end_lineno or one.lineno) for one in block)
