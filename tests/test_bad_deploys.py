"""
A bad deploy never fails what is in flight, and never takes the engine down.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Coroutine, Generator
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

import memable
from running import ending_of
from stores import Place


@attrs.frozen
class Mistyped:
    total: decimal.Decimall  # type: ignore[name-defined]  # noqa: F821 - what is tested


class Stubborn(type):
    def __getattr__(cls, name: str) -> Any:
        raise ZeroDivisionError(name)


class Odd(metaclass=Stubborn):
    pass


async def one() -> int:
    return 1


async def hang() -> int:
    await trio.sleep_forever()
    return 0


Body = Callable[..., Coroutine[Any, Any, Any]]


async def _deploy(place: Place, old: Body, new: Body, *args: object) -> memable.WorkflowState:
    """Return what becomes of an instance of *old* that hangs, once *new* is deployed."""
    before = memable.workflow(name="w")(old)
    with trio.move_on_after(5):
        async with memable.open_engine(place.store(), workflows=[before]) as engine:
            await engine.invoke("w", *args, instance_id="i")
            await trio.sleep_forever()
    after = memable.workflow(name="w")(new)
    async with memable.open_engine(place.store(), workflows=[after]) as engine:
        return await (await engine.get("w", "i")).wait()


async def sound(ctx: memable.Context) -> int:
    await ctx.step("a", one)
    return await ctx.step("b", hang)


async def misspelt(ctx: memable.Context) -> int:
    await ctx.step("a", one)
    return await ctx.step("c", one, timout=3)  # type: ignore[arg-type]


async def keyword(ctx: memable.Context) -> int:
    await ctx.step("a", one)
    return await ctx.step_in_thread("c", int, x="1")  # type: ignore[arg-type]


async def unawaited(ctx: memable.Context) -> int:
    await ctx.step("a", one)
    return ctx.step("b", one)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("new", "match"),
    [
        (misspelt, "ctx.step has no option 'timout'; for a keyword argument of the function write functools.partial"),
        (keyword, "ctx.step_in_thread has no option 'x'"),
        (unawaited, r"the body returned the coroutine Context.step\(...\); an await is missing"),
    ],
    ids=["misspelt option", "keyword argument", "missing await"],
)
async def test_deploy_with_a_misuse_blocks(
    new: Body, match: str, place: Place, autojump_clock: object, caplog: pytest.LogCaptureFixture
):
    """
    A misspelt option, a keyword argument or a missing await blocks the instance, says what to write, and is logged.
    """
    state = await _deploy(place, sound, new)
    assert isinstance(state, memable.Blocked)
    assert state.error.matches(memable.MisuseError)
    with pytest.raises(AssertionError, match=match):
        raise AssertionError(state.error.message)
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("instance 'i' is blocked" in line for line in told)
    async with memable.open_engine(place.store(), workflows=[memable.workflow(name="w")(misspelt)]) as engine:
        assert await (await engine.get("w", "i")).wait() != memable.Completed()


class Stubborn:
    """
    Something to wait for that does not take it well to be given up.
    """

    def __await__(self) -> Generator[None, None, None]:
        try:
            yield
        finally:
            raise ValueError("not now")


async def begun(ctx: memable.Context) -> int:
    async def wait() -> int:
        await Stubborn()
        return 1

    await ctx.step("a", one)
    waiting = wait()
    waiting.send(None)
    return waiting  # type: ignore[return-value]


async def test_coroutine_that_raises_when_it_is_closed_fails_its_instance(place: Place, autojump_clock: object):
    """
    What the closing of a coroutine raises that the body has returned counts as raised by the body.
    """
    state = await _deploy(place, sound, begun)
    assert isinstance(state, memable.Failed)
    assert (state.error.type, state.error.message) == ("builtins.ValueError", "not now")


async def takes(ctx: memable.Context, amount: int) -> int:
    return await ctx.step("b", hang)


async def takes_mistyped(ctx: memable.Context, amount: Mistyped) -> int:
    return 1


async def takes_odd(ctx: memable.Context, amount: Odd) -> int:
    return 1


async def takes_half(ctx: memable.Context, amount: dict[int]) -> int:  # type: ignore[type-arg]
    return 1


@pytest.mark.parametrize("new", [takes_mistyped, takes_odd, takes_half])
async def test_deploy_with_an_input_annotation_that_cannot_be_read_blocks(
    new: Body, place: Place, autojump_clock: object
):
    """
    An input's annotation that cannot even be read blocks the instance, and the engine goes on.
    """
    state = await _deploy(place, takes, new, 3)
    assert isinstance(state, memable.Blocked)
    assert "workflow 'w', instance 'i': " in state.error.message


async def returns_mistyped(ctx: memable.Context) -> Mistyped:
    return Mistyped(Decimal(1))


async def returns_half(ctx: memable.Context) -> dict[int]:  # type: ignore[type-arg]
    return {}


async def takes_unknown(ctx: memable.Context, amount: Unknown) -> int:  # type: ignore[name-defined]  # noqa: F821 - tested
    return 1


async def returns_unknown(ctx: memable.Context, amount: int) -> Unknown:  # type: ignore[name-defined]  # noqa: F821 - tested
    return 1


@pytest.mark.parametrize("new", [takes_unknown, returns_unknown])
async def test_deploy_with_an_annotation_that_cannot_be_found_says_so(new: Body, place: Place, autojump_clock: object):
    """
    A name in an annotation that is not there blocks the instance, and the message says where and what to mend.
    """
    state = await _deploy(place, takes, new, 3)
    assert isinstance(state, memable.Blocked)
    assert state.error.message.startswith("workflow 'w', instance 'i': the ")
    assert "cannot be resolved (NameError: name 'Unknown' is not defined); mend it" in state.error.message


@pytest.mark.parametrize("body", [returns_mistyped, returns_half])
async def test_output_annotation_that_cannot_be_read_leaves_the_engine_alone(
    body: Body, place: Place, autojump_clock: object
):
    """
    An output's annotation that cannot be read ends its instance, not the engine nor another workflow.
    """

    @memable.workflow
    async def innocent(ctx: memable.Context) -> int:
        await trio.sleep(1)
        return await ctx.step("a", one)

    wrong = memable.workflow(name="w")(body)
    async with memable.open_engine(place.store(), workflows=[wrong, innocent]) as engine:
        invocation = await engine.invoke(wrong)
        other = await engine.invoke(innocent)
        assert isinstance(await invocation.wait(), memable.Failed | memable.Blocked)
        assert await other.result() == 1


async def test_deploy_that_fails_before_a_pending_retry_blocks(place: Place, autojump_clock: object):
    """
    A body that fails before it has come to a step with failed attempts is Blocked: an earlier run got further.
    """

    async def failing() -> int:
        raise ConnectionError

    async def patient(ctx: memable.Context) -> int:
        return await ctx.step("a", failing, retry=memable.RetryPolicy.fixed(9, 1000))

    async def broken(ctx: memable.Context) -> int:
        raise ValueError("bad deploy")

    assert isinstance(await _deploy(place, patient, broken), memable.Suspended)
    # It runs again when the next attempt is due.
    async with memable.open_engine(place.store(), workflows=[memable.workflow(name="w")(broken)]) as engine:
        state = await ending_of(await engine.get("w", "i"))
    assert isinstance(state, memable.Blocked)
    assert state.error.message == "bad deploy"


async def test_failed_step_shows_its_own_traceback_where_the_instance_failed(place: Place, autojump_clock: object):
    """
    What is recorded of a failed instance shows where its step failed, live and on a replay.
    """

    def parse(text: dict[str, int]) -> int:
        return text["missing"]

    async def step() -> int:
        return parse({})

    @memable.workflow(name="w")
    async def work(ctx: memable.Context) -> int:
        return await ctx.step("parse", step)

    for _ in range(2):
        async with memable.open_engine(place.store(), workflows=[work]) as engine:
            state = await (await engine.invoke(work, instance_id="i")).wait()
        assert isinstance(state, memable.Failed)
        assert "in parse" in state.error.traceback
        assert "KeyError: 'missing'" in state.error.traceback


async def test_forget_takes_any_iterable(place: Place, autojump_clock: object):
    """
    An iterator of keys is forgotten as a list of them is.
    """
    calls: list[int] = []

    async def count() -> int:
        calls.append(1)
        return len(calls)

    @memable.workflow(name="w")
    async def work(ctx: memable.Context) -> int:
        return await ctx.step("a", count)

    async with memable.open_engine(place.store(), workflows=[work]) as engine:
        await (await engine.invoke(work, instance_id="i")).result()
        assert await (await engine.resume(work, "i", forget=(key for key in ["a"]))).result() == 2
        with pytest.raises(memable.UnknownKeyError, match="nothing was forgotten; recorded is 'a'"):
            await engine.resume(work, "i", forget=["zz"])


async def test_context_of_another_instance_inside_a_step_is_refused(autojump_clock: object):
    """
    A step cannot use the context of another instance either, and the one whose step it is is to blame.
    """
    contexts: list[memable.Context] = []

    @memable.workflow
    async def victim(ctx: memable.Context) -> int:
        contexts.append(ctx)
        await trio.sleep(5)
        return await ctx.step("own", one)

    async def meddle() -> int:
        return await contexts[0].step("from-elsewhere", one)

    @memable.workflow
    async def meddler(ctx: memable.Context) -> int:
        await trio.sleep(1)
        return await ctx.step("meddle", meddle)

    async with memable.open_engine(memable.InMemoryStore(), workflows=[victim, meddler]) as engine:
        first = await engine.invoke(victim, instance_id="v")
        second = await engine.invoke(meddler, instance_id="m")
        state = await second.wait()
        assert isinstance(state, memable.Blocked)
        assert (state.key, state.error.type) == ("meddle", "memable.NestedStepError")
        assert await first.result() == 1


async def test_orderly_session_ends_a_row_of_crashes(place: Place, autojump_clock: object):
    """
    Only crashes in a row count: an orderly end in between, or a record, begins the count anew.
    """

    @memable.workflow(name="w")
    async def work(ctx: memable.Context) -> int:
        return await ctx.step("b", hang)

    async with memable.open_engine(place.store(), workflows=[work], shutdown_timeout=0, max_recoveries=2) as engine:
        await engine.invoke(work, instance_id="i")
        place.crash()
    for is_crash in (False, True, False, True):
        async with memable.open_engine(place.store(), workflows=[work], shutdown_timeout=0, max_recoveries=2) as engine:
            assert (await engine.list_instances())[0].status is memable.MetadataStatus.RUNNING
            if is_crash:
                place.crash()


@pytest.mark.parametrize("replace", [False, True])
async def test_log_that_is_taken_away_while_open_stops_the_engine(
    replace: bool, tmp_path: Path, autojump_clock: object
):
    """
    Nothing is acknowledged into a log that was removed or replaced.
    """

    @memable.workflow(name="w")
    async def work(ctx: memable.Context) -> int:
        await trio.sleep(1)
        return await ctx.step("a", one)

    with pytest.raises(memable.StorageError, match="removed or replaced while it was open"):
        async with memable.open_engine(tmp_path / "store", workflows=[work]) as engine:
            await engine.invoke(work, instance_id="i")
            log = tmp_path / "store" / "00000001.log"
            if replace:
                (tmp_path / "copy").write_bytes(log.read_bytes())
                os.replace(tmp_path / "copy", log)  # noqa: PTH105 - as a backup tool does
            else:
                log.unlink()
            await trio.sleep(5)


async def test_store_whose_log_is_missing_is_refused(tmp_path: Path, autojump_clock: object):
    """
    A store whose log is gone is not taken for a new one.
    """
    async with memable.open_engine(tmp_path / "store"):
        pass
    (tmp_path / "store" / "00000001.log").unlink()
    with pytest.raises(memable.StoreCorruptedError, match="the log is missing, though there was one"):
        async with memable.open_engine(tmp_path / "store"):
            pass
    (tmp_path / "store" / "lock").unlink()
    async with memable.open_engine(tmp_path / "store") as engine:
        assert await engine.list_instances() == []


async def test_store_that_was_opened_to_others_is_closed_to_them_again(tmp_path: Path, autojump_clock: object):
    """
    A store's directory and log are for their owner only, whatever was made of them since.
    """
    for _ in range(2):
        async with memable.open_engine(tmp_path / "store"):
            pass
        modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "store", tmp_path / "store" / "00000001.log")]
        assert modes == [0o700, 0o600]
        (tmp_path / "store").chmod(0o755)
        (tmp_path / "store" / "00000001.log").chmod(0o644)


@pytest.mark.parametrize(
    "settings",
    [{"converter": 3}, {"aliases": ["a"]}, {"aliases": {"a": "b"}}, {"aliases": {1: int}}, {"resume_on_start": "no"}],
)
async def test_settings_of_the_wrong_type_are_refused(settings: dict[str, Any]):
    """
    A setting of the wrong type is a TypeError that names it, before anything is opened.
    """
    with pytest.raises(TypeError, match=next(iter(settings))):
        async with memable.open_engine(memable.InMemoryStore(), **settings):
            pass


@attrs.frozen
class OldOrder:
    number: int


@attrs.frozen
class NewOrder:
    number: int
    note: str = ""


async def before_deploy(ctx: memable.Context, order: OldOrder, count: int) -> int:
    return await ctx.step("b", hang)


async def after_deploy(ctx: memable.Context, order: NewOrder, count: int | None) -> int:
    return count or 0


async def test_start_stays_idempotent_over_a_compatible_deploy(place: Place, autojump_clock: object):
    """
    The same input of a class that was renamed and has gained a field, or of a wider type, finds the instance.
    """
    old, new = memable.workflow(name="w")(before_deploy), memable.workflow(name="w")(after_deploy)
    with trio.move_on_after(5):
        async with memable.open_engine(place.store(), workflows=[old]) as engine:
            await engine.invoke(old, OldOrder(7), 3, instance_id="i")
            await trio.sleep_forever()
    aliases = {f"{OldOrder.__module__}.OldOrder": NewOrder}
    async with memable.open_engine(place.store(), workflows=[new], aliases=aliases) as engine:
        assert await (await engine.invoke(new, NewOrder(7), 3, instance_id="i")).result() == 3
        for order, count in ((NewOrder(8), 3), (NewOrder(7, "more"), 3), (NewOrder(7), None)):
            with pytest.raises(memable.InstanceConflictError, match="exists already with another input"):
                await engine.invoke(new, order, count, instance_id="i")


async def takes_map(ctx: memable.Context, amounts: dict[int, str]) -> int:
    return len(amounts)


async def test_start_does_not_depend_on_the_order_of_a_dict(place: Place, autojump_clock: object):
    """
    Two dicts with the same entries are the same input, whatever their keys are.
    """
    work = memable.workflow(name="w")(takes_map)
    async with memable.open_engine(place.store(), workflows=[work]) as engine:
        await engine.invoke(work, {1: "a", 2: "b"}, instance_id="i")
        assert await (await engine.invoke(work, {2: "b", 1: "a"}, instance_id="i")).result() == 2
