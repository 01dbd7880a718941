"""
The items of a fan-out: how children are named by them, and what becomes of items that change.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

import memable
from fanning import Work
from running import INSTANCE, ending_of, kinds_of, run_body, workflow_of
from stores import Place


@attrs.frozen
class Order:
    number: int
    town: str = "Ulm"


class Colour(enum.Enum):
    RED = "red"


def by_number(order: Order) -> str:
    return f"order-{order.number}"


class Twice:
    """
    A fan-out that fails at one item in its first run, and is resumed with other items, code or names.
    """

    def __init__(self, place: Place, fails_at: object, annotation: Any = int) -> None:
        self.place = place
        self.work = Work()
        self.broken: list[object] = [fails_at]
        self.started: list[object] = []
        self.annotation = annotation

    async def run(
        self,
        first: Iterable[Any],
        second: Iterable[Any],
        *,
        keys: tuple[Callable[[Any], str] | None, Callable[[Any], str] | None] = (None, None),
        annotations: tuple[Any, Any] | None = None,
    ) -> memable.WorkflowState | list[Any]:
        """
        Return the result of the second run, or the state in which it ends. ``started`` has the second run's items.
        """
        runs = iter(zip((first, second), keys, annotations or (self.annotation,) * 2, strict=True))

        @memable.workflow(name="w")
        async def workflow(ctx: memable.Context) -> list[Any]:
            items, key, annotation = next(runs)
            self.started.clear()

            async def child(ctx: memable.Context, item: Any) -> str:
                self.started.append(item)
                await ctx.step("s", trio.sleep, 1)
                if item in self.broken:
                    raise ConnectionError(item)
                return f"{item}"

            child.__annotations__["item"] = annotation
            return await ctx.fan_out("fan", child, items, limit=1, item_key=key)

        async with memable.open_engine(self.place.store(), workflows=[workflow]) as engine:
            assert isinstance(await ending_of(await engine.invoke(workflow, instance_id=INSTANCE)), memable.Failed)
            self.broken.clear()
            invocation = await engine.resume(workflow, INSTANCE)
            state = await ending_of(invocation)
            return await invocation.result() if isinstance(state, memable.Completed) else state


# Changes ---------------------------------------------------------------------------------------------------------


async def test_items_appended_are_more_work(place: Place, autojump_clock: MockClock):
    """
    Items behind the recorded ones are more work; those with an outcome do not run again.
    """
    twice = Twice(place, 2)
    assert await twice.run([1, 2], [1, 2, 3, 4]) == ["1", "2", "3", "4"]
    assert twice.started == [2, 3, 4]


async def test_items_never_begun_may_be_others(place: Place, autojump_clock: MockClock):
    """
    Only children of which something is recorded bind their items; what comes behind them may be another or missing.
    """
    twice = Twice(place, 2)
    assert await twice.run([1, 2, 3], [1, 2]) == ["1", "2"]


@pytest.mark.parametrize(
    ("second", "name", "is_missing"),
    [
        ([1, 9], "1", False),
        ([9, 2], "0", False),
        ([2, 1], "0", False),
        ([1], "1", True),
        ([], "0", True),
        ([0, 1, 2], "0", False),
        ([True, 2], "0", False),
        (["1", 2], "0", False),
        ([1.0, 2], "0", False),
    ],
)
async def test_items_that_changed_are_refused_before_anything_runs(
    second: list[Any], name: str, is_missing: bool, place: Place, autojump_clock: MockClock
):
    """
    Another item in the place of a recorded one, or fewer, is an ItemsChangedError: nothing runs.
    """
    twice = Twice(place, 2, Any)
    state = await twice.run([1, 2], second)
    assert isinstance(state, memable.Blocked)
    assert state.error.type == "memable.ItemsChangedError"
    assert f"child '{name}' (index {name}) is {'missing' if is_missing else 'another one'}" in state.error.message
    assert state.key == "fan"
    assert twice.started == []


async def test_items_that_changed_back_go_on(place: Place, autojump_clock: MockClock):
    """
    Once the items are right again, a blocked instance goes on where it was.
    """
    work = Work(broken={"2"})
    runs = iter([[1, 2], [1, 3], [1, 2]])

    async def child(ctx: memable.Context, item: int) -> str:
        return await ctx.step("s", work.do, str(item))

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context) -> list[str]:
        return await ctx.fan_out("fan", child, next(runs), limit=1)

    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await ending_of(await engine.invoke(workflow, instance_id=INSTANCE))
        work.broken.clear()
        assert isinstance(await ending_of(await engine.resume(workflow, INSTANCE)), memable.Blocked)
        assert await (await engine.resume(workflow, INSTANCE)).result() == ["1", "2"]
    assert work.calls == Counter({"1": 1, "2": 2})


async def test_items_of_a_child_in_flight_bind_as_well(place: Place, autojump_clock: MockClock):
    """
    A child that has recorded a step, but has no outcome yet, is recorded with its item.
    """
    runs = iter([[1, 2], [1, 3]])

    async def child(ctx: memable.Context, item: int) -> None:
        await ctx.step("s", trio.sleep, 1)
        await trio.sleep_forever()

    async def body(ctx: memable.Context) -> None:
        await ctx.fan_out("fan", child, next(runs))

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow], shutdown_timeout=5) as engine:
        await engine.invoke(workflow, instance_id=INSTANCE)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        state = await ending_of(await engine.get(workflow, INSTANCE))
    assert isinstance(state, memable.Blocked)
    assert "ItemsChangedError" in state.error.type


async def test_items_are_free_once_their_fan_out_is_forgotten(place: Place, autojump_clock: MockClock):
    """
    A fan-out that is forgotten takes whatever items it is given; so does one child for its own.
    """
    runs = iter([[1, 2], [5, 2], [7, 8]])

    async def child(ctx: memable.Context, item: int) -> int:
        return item

    @memable.workflow(name="w")
    async def workflow(ctx: memable.Context) -> list[int]:
        return await ctx.fan_out("fan", child, next(runs))

    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        assert await (await engine.invoke(workflow, instance_id=INSTANCE)).result() == [1, 2]
        assert await (await engine.resume(workflow, INSTANCE, forget=["fan/0"])).result() == [5, 2]
        assert await (await engine.resume(workflow, INSTANCE, forget=["fan"])).result() == [7, 8]


async def test_items_recorded_at_a_failure_bind(place: Place, autojump_clock: MockClock):
    """
    The item of a child that failed before it recorded anything is recorded with the failure.
    """
    runs = iter([[1], [2]])

    async def child(ctx: memable.Context, item: int) -> None:
        raise ConnectionError

    async def body(ctx: memable.Context) -> None:
        await ctx.fan_out("fan", child, next(runs))

    workflow = workflow_of(body)
    async with memable.open_engine(place.store(), workflows=[workflow]) as engine:
        await ending_of(await engine.invoke(workflow, instance_id=INSTANCE))
        state = await ending_of(await engine.resume(workflow, INSTANCE))
    assert isinstance(state, memable.Blocked)


# Names -----------------------------------------------------------------------------------------------------------


async def test_item_key_names_children_by_their_items(place: Place, autojump_clock: MockClock):
    """
    With item_key, paths name the item; items may be reordered, and new ones stand anywhere.
    """
    twice = Twice(place, Order(2), Order)
    first = [Order(1), Order(2)]
    second = [Order(4), Order(2), Order(3), Order(1)]
    result = await twice.run(first, second, keys=(by_number, by_number))
    assert result == [str(order) for order in second]
    # What was begun before is continued before anything new begins.
    assert twice.started == [Order(2), Order(4), Order(3)]


async def test_item_key_stands_in_the_error(autojump_clock: MockClock):
    """
    The error of a child names it by its item, and says its place.
    """

    async def child(ctx: memable.Context, item: Order) -> None:
        if item.number == 7:
            raise ConnectionError

    async def body(ctx: memable.Context) -> None:
        with pytest.raises(memable.ChildFailedError, match=r"child 'order-7' \(index 1\)") as caught:
            await ctx.fan_out("fan", child, [Order(3), Order(7)], item_key=by_number)
        assert (caught.value.item_key, caught.value.index) == ("order-7", 1)

    assert await run_body(body) == memable.Completed()


async def test_item_key_with_another_item_is_refused(place: Place, autojump_clock: MockClock):
    """
    The same name with another item behind it is an ItemsChangedError.
    """
    twice = Twice(place, Order(2), Order)
    state = await twice.run([Order(1), Order(2)], [Order(1, "Bonn"), Order(2)], keys=(by_number, by_number))
    assert isinstance(state, memable.Blocked)
    assert "child 'order-1' (index 0) is another one" in state.error.message
    assert twice.started == []


async def test_item_key_of_a_missing_item_is_refused(place: Place, autojump_clock: MockClock):
    """
    A recorded name that no item has any more is an ItemsChangedError.
    """
    twice = Twice(place, Order(2), Order)
    state = await twice.run([Order(1), Order(2)], [Order(2)], keys=(by_number, by_number))
    assert isinstance(state, memable.Blocked)
    assert "child 'order-1' (index 0) is missing" in state.error.message
    assert twice.started == []


async def test_item_key_that_comes_or_goes_is_refused(place: Place, autojump_clock: MockClock):
    """
    Children named by place are not those named by item: adding item_key in flight is an ItemsChangedError.
    """
    state = await Twice(place, Order(1), Order).run([Order(1)], [Order(1)], keys=(None, by_number))
    assert isinstance(state, memable.Blocked)
    assert "child '0' (index 0) is missing" in state.error.message


@pytest.mark.parametrize("limit", [None, 1])
async def test_item_key_given_twice_is_refused(limit: int | None, autojump_clock: MockClock):
    """
    Two items of one name are a DuplicateKeyError with the child's path; the instance is Blocked.
    """

    async def child(ctx: memable.Context, item: int) -> None:
        await trio.sleep(1)

    async def body(ctx: memable.Context) -> None:
        with pytest.raises(memable.DuplicateKeyError, match="fan/same"):
            await ctx.fan_out("fan", child, [1, 2], limit=limit, item_key=lambda item: "same")

    state = await run_body(body)
    assert isinstance(state, memable.Blocked)
    assert state.key == "fan/same"


@pytest.mark.parametrize("name", ["", "a/b", "_a", "a\n", 3, None, "x" * 256])
async def test_item_key_that_breaks_the_rule_is_refused(name: Any, autojump_clock: MockClock):
    """
    A name that breaks the rule for keys is an InvalidKeyError; nothing of the fan-out runs.
    """
    store = memable.InMemoryStore()

    async def child(ctx: memable.Context, item: int) -> None: ...

    async def body(ctx: memable.Context) -> None:
        with pytest.raises(memable.InvalidKeyError, match="workflow 'w', instance 'i': item key"):
            await ctx.fan_out("fan", child, [1], item_key=lambda item: name)

    assert isinstance(await run_body(body, store=store), memable.Blocked)
    assert kinds_of(store) == ["instance_started", "instance_blocked"]


async def test_item_key_that_is_async_is_refused(autojump_clock: MockClock):
    """
    An async item_key is a misuse, and its coroutine is closed.
    """

    async def name(item: int) -> str:
        return "x"

    async def child(ctx: memable.Context, item: int) -> None: ...

    async def body(ctx: memable.Context) -> None:
        with pytest.raises(memable.MisuseError, match="item_key is an async function; give a plain one"):
            await ctx.fan_out("fan", child, [1], item_key=name)  # type: ignore[arg-type] # the mistake that is tested

    assert isinstance(await run_body(body), memable.Blocked)


# Comparison ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "first", "second"),
    [
        (dict[str, int], {"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (set[int], {1, 2, 3}, {3, 2, 1}),
        (float, 1, 1.0),
        (Decimal, Decimal("1.50"), Decimal("1.50")),
        (Colour, Colour.RED, Colour.RED),
        (Order, Order(1), Order(1, "Ulm")),
        (list[Order], [Order(1)], [Order(1)]),
        (Any, {"x": [None, True, 1.5]}, {"x": [None, True, 1.5]}),
    ],
)
async def test_items_are_compared_as_canonical_json_of_their_type(
    annotation: Any, first: Any, second: Any, place: Place, autojump_clock: MockClock
):
    """
    Items count as the same if the canonical JSON of their annotated type is.
    """
    assert isinstance(await Twice(place, first, annotation).run([first], [second]), list)


async def test_items_keep_counting_as_the_same_when_their_class_moves(place: Place, autojump_clock: MockClock):
    """
    Only the JSON counts: a class that was renamed, or a type that was widened, changes no item.
    """
    renamed = attrs.make_class(
        "Purchase", {"number": attrs.field(type=int), "town": attrs.field(type=str)}, frozen=True
    )
    twice = Twice(place, Order(1), Order)
    result = await twice.run([Order(1)], [renamed(1, "Ulm")], annotations=(Order, renamed))
    assert isinstance(result, list), result


async def test_items_keep_counting_as_the_same_when_their_annotation_is_widened(
    place: Place, autojump_clock: MockClock
):
    """
    An annotation that takes more than before changes no item, either.
    """
    assert isinstance(await Twice(place, 1).run([1], [1], annotations=(int, int | None)), list)


@pytest.mark.parametrize("item", [Order(1), [1, "two"], Colour.RED, Decimal(1), ("a", 1), {"a": 1}])
async def test_items_without_annotation_are_written_by_their_own_class(
    item: Any, place: Place, autojump_clock: MockClock
):
    """
    An item whose parameter is not annotated is recorded as what it is.
    """
    assert isinstance(await Twice(place, item, Any).run([item], [item]), list)


class Opaque:
    pass


@pytest.mark.parametrize("annotation", [Any, Opaque, int])
async def test_items_that_cannot_be_recorded_are_refused(annotation: Any, autojump_clock: MockClock):
    """
    An item that cannot be recorded is a misuse that names its type and what to do; no child runs.
    """
    store = memable.InMemoryStore()
    started: list[object] = []

    async def child(ctx: memable.Context, item: Any) -> None:
        started.append(item)

    child.__annotations__["item"] = annotation

    async def body(ctx: memable.Context) -> None:
        with pytest.raises(TypeError, match=r"an item of type Opaque cannot be recorded: .*; or give ids as items"):
            await ctx.fan_out("fan", child, [Opaque()])

    state = await run_body(body, store=store)
    assert isinstance(state, memable.Blocked)
    assert state.key == "fan"
    assert started == []
