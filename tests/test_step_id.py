"""
``ctx.step_id``: an idempotency key for services outside.
"""

from __future__ import annotations

from typing import Any

import pytest

import memable
from running import INSTANCE, ending_of, run_body, run_to_end, workflow_of


async def fail() -> None:
    raise ValueError("no")


class Ids:
    """A workflow that fails at its second step, and the ids that its runs have seen."""

    def __init__(self) -> None:
        self.store = memable.InMemoryStore()
        self.copies: list[memable.InMemoryStore] = []
        self.seen: list[tuple[str, str]] = []

    async def body(self, ctx: memable.Context) -> None:
        self.seen.append((ctx.step_id("a"), ctx.step_id("b")))
        await ctx.step("a", self.work)
        self.copies.append(self.store.crashed_copy())
        await ctx.step("b", fail)

    async def work(self) -> None:
        pass

    async def resume(self, **options: Any) -> memable.WorkflowState:
        workflow = workflow_of(self.body)
        async with memable.open_engine(self.store, workflows=[workflow]) as engine:
            return await ending_of(await engine.resume(workflow, INSTANCE, **options))


async def test_step_id_is_a_short_text_for_any_key():
    """
    A step's id is 40 hexadecimal digits, however long the key is.
    """
    ids: list[str] = []

    async def body(ctx: memable.Context) -> None:
        ids.extend(ctx.step_id(key) for key in ("a", "x" * 255, "🦊"))

    await run_body(body)
    assert all(len(one) == 40 and int(one, 16) for one in ids)
    assert len(set(ids)) == 3


async def test_step_id_survives_crash_and_resume():
    """
    Neither a crash nor a resume changes an id, also not that of a failed step that runs again.
    """
    ids = Ids()
    await run_body(ids.body, store=ids.store)
    await run_body(ids.body, store=ids.copies[0])
    await ids.resume()
    assert len(ids.seen) == 3
    assert len(set(ids.seen)) == 1


async def test_step_id_is_new_for_what_was_forgotten():
    """
    Forgetting a key begins a new generation of that key, and of no other.
    """
    ids = Ids()
    await run_body(ids.body, store=ids.store)
    await ids.resume(forget=["a"])
    await ids.resume(forget=["a"])
    first, second, third = ids.seen
    assert len({first[0], second[0], third[0]}) == 3
    assert first[1] == second[1] == third[1]


async def test_step_id_is_new_for_an_instance_begun_anew():
    """
    Running an instance anew begins a new generation of all its keys.
    """
    ids = Ids()
    await run_body(ids.body, store=ids.store)
    await ids.resume(forget=["a"])
    await ids.resume(anew=True)
    assert len({one for pair in ids.seen for one in pair}) == 5


async def test_step_id_is_unique_to_instance_and_store():
    """
    The same key has other ids in other instances, workflows and stores.
    """
    seen: list[str] = []

    async def body(ctx: memable.Context) -> None:
        seen.append(ctx.step_id("k"))

    one = workflow_of(body)

    @memable.workflow
    async def other(ctx: memable.Context) -> None:
        await body(ctx)

    for store in (memable.InMemoryStore(), memable.InMemoryStore()):
        async with memable.open_engine(store, workflows=[one, other]) as engine:
            for workflow, instance in ((one, "i"), (one, "j"), (other, "i")):
                await (await engine.invoke(workflow, instance_id=instance)).result()
    assert len(set(seen)) == 6


async def test_step_id_may_be_asked_at_any_time():
    """
    Asking for an id is no use of the key, and possible before, after and without the step, and behind the run.
    """
    contexts: list[memable.Context] = []

    async def work(step_id: str) -> str:
        return step_id

    async def body(ctx: memable.Context) -> None:
        contexts.append(ctx)
        assert await ctx.step("k", work, ctx.step_id("k")) == ctx.step_id("k")

    assert await run_body(body) == memable.Completed()
    assert contexts[0].step_id("k") == contexts[0].step_id("k")


@pytest.mark.parametrize("key", ["", "a/b", 3])
async def test_step_id_of_an_invalid_key_is_a_code_error(key: Any):
    """
    An id for a key that breaks the rule is wrong code: the instance is Blocked though the body goes on.
    """

    @memable.workflow
    async def wrong(ctx: memable.Context) -> None:
        with pytest.raises(memable.InvalidKeyError, match=r"^key "):
            ctx.step_id(key)

    assert isinstance(await run_to_end(wrong), memable.Blocked)
