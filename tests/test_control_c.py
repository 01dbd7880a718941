"""
Control-C at every moment in which it may come while memable opens or leaves what must be left as it was opened.

A signal's handler runs where the interpreter looks for it: behind a call, at the beginning of a function, and where a
loop begins again. Trio raises ``KeyboardInterrupt`` there, unless a function in the stack is protected from it.
"""

from __future__ import annotations

import dis
import gc
import itertools
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

import memable
from memable import _calls, _entry, _fan_out, _recovering, _scopes, _supervisor
from memable._testing._scheduling import seeded_scheduling

#: Behind these the interpreter looks whether a signal has come.
CHECKS = {dis.opmap[name] for name in ("CALL", "CALL_FUNCTION_EX", "RESUME", "JUMP_BACKWARD")}


async def double(number: int) -> int:
    return 2 * number


async def child(ctx: memable.Context, item: int) -> int:
    return await ctx.step("s", double, item)


@memable.workflow
async def fans_out(ctx: memable.Context) -> int:
    return sum(await ctx.fan_out("f", child, iter([1, 2, 3]), limit=2))


@memable.workflow
async def scopes(ctx: memable.Context) -> int:
    async with ctx.move_on_after("m", 2) as outer, ctx.move_on_after("n", 5):
        await ctx.sleep("z", 9)
    return 12 if outer.cancelled_caught else 0


@memable.workflow
async def doubles(ctx: memable.Context, number: int) -> int:
    return await ctx.step("s", double, number)


@memable.workflow
async def calls(ctx: memable.Context) -> int:
    await ctx.start("b", doubles, 1)
    return await ctx.call("c", doubles, 6)


@attrs.define(eq=False)
class Interrupter:
    """
    A tracing function that presses control-C the first time that it may come after so many others, in one file.
    """

    file: str
    moment: int
    seen: int = 0
    _before: dict[FrameType, int] = attrs.field(factory=dict)

    def trace(self, frame: FrameType, event: str, _arg: object) -> Any:
        if event == "call" and frame.f_code.co_filename != self.file:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            before = self._before.get(frame)
            self._before[frame] = frame.f_code.co_code[frame.f_lasti]
            if before in CHECKS:
                self.seen += 1
                if self.seen == self.moment:
                    signal.raise_signal(signal.SIGINT)
        return self.trace


async def bring_to_end(store: memable.InMemoryStore, workflow: memable.Workflow[[], int], max_parked: int) -> int:
    with trio.fail_after(86_400):
        return await _bring_to_end(store, workflow, max_parked)


async def _bring_to_end(store: memable.InMemoryStore, workflow: memable.Workflow[[], int], max_parked: int) -> int:
    async with memable.open_engine(store, workflows=[doubles], max_parked=max_parked) as engine:
        engine.register(workflow)
        result = await (await engine.invoke(workflow, instance_id="i")).result()
        await engine.wait_all()
        return result


def run(store: memable.InMemoryStore, workflow: memable.Workflow[[], int], max_parked: int) -> int:
    return trio.run(bring_to_end, store, workflow, max_parked, clock=MockClock(autojump_threshold=0))


# What was just about to be awaited is not, which is all right.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize(
    ("workflow", "module", "max_parked"),
    [
        (fans_out, _fan_out, 9),
        (scopes, _scopes, 9),
        (scopes, _scopes, 0),
        (scopes, _entry, 9),
        (scopes, _recovering, 9),
        (scopes, _supervisor, 0),
        (calls, _calls, 9),
        (calls, _supervisor, 9),
    ],
)
def test_control_c_at_any_moment_comes_out_as_itself_and_breaks_nothing(workflow: Any, module: Any, max_parked: int):
    """
    Nothing is left open, so trio has nothing to complain of; and the next run brings the instance to its end.
    """
    for moment in itertools.count(1):
        store = memable.InMemoryStore()
        interrupter = Interrupter(str(Path(module.__file__)), moment)
        others = sys.gettrace()
        with seeded_scheduling(moment):
            sys.settrace(interrupter.trace)
            try:
                run(store, workflow, max_parked)
            except KeyboardInterrupt:
                is_interrupted = True
            else:
                is_interrupted = False
            finally:
                sys.settrace(others)
        assert is_interrupted == (interrupter.seen >= moment)
        assert run(store, workflow, max_parked) == 12
        if not is_interrupted:
            break
    assert moment > 10
    # Here, where those warnings do not matter.
    gc.collect()
