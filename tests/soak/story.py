"""
A story: sessions of engines over one disk, each of which does one thing, and is cut short or not.

Between sessions time passes. What the journals hold after each is checked record by record, against what the programs
were given and did to the world outside, and against what the store has acknowledged.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeAlias
from unittest import mock

import attrs
import trio

import memable
from memable._records import StepCompleted, StepFailed
from memable._store import _committer
from memable._testing._simulated_disk import Fault, SimulatedDisk, lose_all, lose_nothing
from programs import RETENTION_S, WORKFLOWS, Program, Step, Suspend, ops_of
from soak.checks import DIRECTORY, MANY_RECOVERIES, Model, ReexecutedError, Sent
from soak.ledger import Ledger, Name
from soak.watch import WatchedStore
from soak.weather import FAIR, Cut, Disturbance, Failure, Interrupt, Weather

#: A story that is not brought to its end by so many sessions is stuck: no program has so many waits.
MAX_ROUNDS = 30

MAX_INSTANCES = 4
CHECKPOINT = DIRECTORY / "checkpoint"
LATE_WORKFLOW = "v"
Action: TypeAlias = Callable[[memable.Engine], Awaitable[None]]
#: They are never what a crash or a failing disk may end in.
NEVER = (memable.StoreCorruptedError, memable.StoreVersionError, memable.StoreLockedError)


class InterruptedHostError(Exception):
    pass


async def send_signal(engine: memable.Engine, sent: Sent, *, early: bool) -> Sent:
    """
    Send a signal, and note what its sender is told.
    """
    within, _, key = sent.path.rpartition("/")
    point = memable.SuspendPoint(key, int)
    try:
        await engine.signal(*sent.name, point, sent.payload, within=within or None, early="keep" if early else "reject")
        sent.told = "delivered"
    except memable.SignalRejectedError:
        sent.told = "rejected"
    except memable.SignalSupersededError:
        sent.told = "superseded"
    except memable.InstanceNotFoundError:
        sent.told = "unknown"
    return sent


def has_op(ledger: Ledger, cls: type[Any]) -> bool:
    return any(isinstance(op, cls) for op in ops_of(ledger.program).values())


async def do_nothing(engine: memable.Engine) -> None:
    pass


class Story(Model):
    """
    Does things to a store, and checks after each what is kept.
    """

    def __init__(self, *, segment_bytes: int = 4_000, max_recoveries: int = MANY_RECOVERIES) -> None:
        super().__init__(segment_bytes=segment_bytes, max_recoveries=max_recoveries)
        self.deleting: set[tuple[str, str]] = set()
        "What the host has begun to delete in this session."
        self.on_cut: Callable[[str], object] | None = None
        "Is told the call of the disk in whose stead the power is cut, or the process killed, in a session."
        self.on_cut_at_rest: Callable[[], object] | None = None
        "Is called if the power goes, or the process dies, only when the engine has closed."
        self.was_disturbed = False
        "Whether the newest session was cut short by the disk, or its power."
        self.is_lying = False
        "Whether the disk lies about syncs while an engine has it."
        self.wrap: Callable[[memable.FileStore], Any] = lambda store: store
        "Puts something between the store and what watches it."

    # Sessions ------------------------------------------------------------------------------------------------

    def session(self, action: Action, weather: Weather) -> None:
        """
        Open an engine, act, let time pass, close it; then check what is kept.
        """
        self.is_sound = False
        self.weather = weather
        self.deleting.clear()
        self.now += weather.pause_s
        disk = self.disk
        if weather.drops_checkpoint and CHECKPOINT in disk.shown:
            # Whoever deletes it does so in peace.
            faults, disk.faults = disk.faults, {}
            disk.remove(CHECKPOINT)
            disk.faults = faults
        self.openings.append((self.now, weather.is_late or weather.defect is not None))
        self.prepare(disk, weather)
        max_batch_bytes = weather.max_batch_bytes or _committer.MAX_BATCH_BYTES
        with mock.patch.object(_committer, "MAX_BATCH_BYTES", max_batch_bytes):
            is_cut_short = self.run_session(action, weather)
        loss = self.end_disk(disk, weather)
        self.was_disturbed = loss is not None
        is_power_cut = loss not in (None, "kill")
        is_weak = weather.durability == "os" or (self.is_base_weak and not self.was_begun())
        if is_power_cut:
            # What a killed process had removed may be there again, or not.
            removed = [header for number, (header, _) in self.base.items() if number not in self.kept]
            self.may_vanish.update((header.workflow, header.instance_id) for header in removed)
            self.kept = self.base
        assert self.watch is not None
        self.acknowledged += sum(len(append.records) for append in self.watch.appends if append.is_acknowledged)
        if self.world.wrongs:
            raise ReexecutedError(self.world.wrongs)
        is_doubtful = is_power_cut and is_weak
        self.check(is_cut_short=is_cut_short or loss is not None, is_doubtful=is_doubtful, is_stable=loss != "kill")
        self.set_base(loss, is_weak=is_weak)
        self.is_sound = True

    def prepare(self, disk: SimulatedDisk, weather: Weather) -> None:
        disk.calls.clear()
        disk.faults.clear()
        disk.cut_at = None
        disk.max_write_bytes = weather.max_write_bytes
        disk.is_lying = self.is_lying
        disturbance = weather.disturbance
        if isinstance(disturbance, Cut | Failure) and not disturbance.is_open:
            self.expect(disk, disturbance)
        store = self.store(disk, weather.durability, weather.segment_bytes)
        self.watch = WatchedStore.of(self.wrap(store), (one for one, _ in self.kept.values()))
        disk.on_sync = self.note_sync
        world = self.world
        if weather.defect == "types":
            for ledger in self.ledgers.values():
                for path, memo in ledger.memos.items():
                    if isinstance(memo, StepCompleted) and isinstance(ops_of(ledger.program).get(path), Step):
                        world.mistyped.add(world.step_ids[(*ledger.name, path)])
        elif weather.defect == "compensations":
            world.unregistered.update(
                (*ledger.name, path) for ledger in self.ledgers.values() for path in ledger.compensations
            )

    def expect(self, disk: SimulatedDisk, disturbance: Cut | Failure) -> None:
        """
        Let it happen so many calls from now.
        """
        call = len(disk.calls) + disturbance.call
        if isinstance(disturbance, Cut):
            disk.cut_at = call
            disk.on_cut = self.on_cut
        else:
            disk.faults[call] = Fault(disturbance.errno, disturbance.after_bytes)

    def has_failed(self) -> bool:
        """
        Tell whether a call of the disk has failed.
        """
        return any(call < len(self.disk.calls) for call in self.disk.faults)

    def note_sync(self, path: Any) -> None:
        """
        Note that a file was synced. Only the newest of the log counts: what is in the older ones was synced before.
        """
        assert self.watch is not None
        newest = max((one for one in self.disk.shown if one.suffix == ".log" and len(one.name) == 12), default=None)
        if path == newest:
            self.watch.note_sync()

    def was_begun(self) -> bool:
        assert self.watch is not None
        return self.watch.is_open

    def run_session(self, action: Action, weather: Weather) -> bool:
        """
        Run the engine. Return whether it was cut short.
        """
        disk = self.disk
        try:
            self.run_virtual(lambda: self.open_engine(action, weather))
        except NEVER:
            raise
        except memable.StorageError:
            if not disk.is_off and not self.has_failed():
                raise
            return True
        except InterruptedHostError:
            return True
        finally:
            disk.on_cut = disk.on_sync = None
            disk.is_lying = False
            self.world.end_session()
        return disk.is_off

    def end_disk(self, disk: SimulatedDisk, weather: Weather) -> str | int | None:
        """
        Let the disk be as it is found after what has happened. Return what was lost, if anything happened to it.
        """
        disturbance = weather.disturbance
        if isinstance(disturbance, Cut) and not disk.is_off:
            if self.on_cut_at_rest is not None:
                self.on_cut_at_rest()
            # All is durable now: nothing may come of it.
            self.disk = self.crashed(disk, disturbance.loss)
            return None
        if not (disk.is_off or self.has_failed()):
            return None
        assert isinstance(disturbance, Cut | Failure)
        self.disk = self.crashed(disk, disturbance.loss)
        return disturbance.loss

    def crashed(self, disk: SimulatedDisk, loss: str | int) -> SimulatedDisk:
        """
        Return the disk as it is found after the process was killed, or after a power cut.
        """
        match loss:
            case "kill":
                return disk.kill()
            case "nothing":
                return disk.power_cut(lose_nothing)
            case "all":
                return disk.power_cut(lose_all)
            case seed:
                return disk.power_cut(random.Random(seed).randrange)

    def set_base(self, loss: str | int | None, *, is_weak: bool) -> None:
        """
        Find out what of what is kept cannot be lost any more.
        """
        self.is_base_weak = loss == "kill" and is_weak
        base = self.kept
        if loss == "kill":
            base = self.completed(self.read(self.disk.copy().power_cut()))
            if not is_weak:
                self.check_acknowledged(base, is_doubtful=False)
        self.gone |= set(self.base) - set(base)
        self.base = base

    async def open_engine(self, action: Action, weather: Weather) -> None:
        workflows = self.world.workflows()
        registered = [one for name, one in workflows.items() if not (weather.is_late and name == LATE_WORKFLOW)]
        disturbance = weather.disturbance
        async with memable.open_engine(
            self.watch, workflows=registered, max_parked=weather.max_parked, max_recoveries=self.max_recoveries
        ) as engine:
            if isinstance(disturbance, Cut | Failure) and disturbance.is_open:
                self.expect(self.disk, disturbance)
            with trio.move_on_after(
                disturbance.after_s if isinstance(disturbance, Interrupt) else float("inf")
            ) as scope:
                await self.act(engine, action, workflows, weather)
            if scope.cancelled_caught:
                raise InterruptedHostError
            self.expect_at_close(disturbance)

    def expect_at_close(self, disturbance: Disturbance) -> None:
        """
        Let the power go while the engine closes, if nothing has happened before.
        """
        if isinstance(disturbance, Cut) and disturbance.at_close is not None and not self.disk.is_off:
            self.expect(self.disk, attrs.evolve(disturbance, call=disturbance.at_close))

    async def act(self, engine: memable.Engine, action: Action, workflows: dict[str, Any], weather: Weather) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(action, engine)
            await trio.sleep(weather.linger_s / 2)
            if weather.is_looked_at and not (self.disk.is_off or self.is_lying):
                self.check_beside()
            engine.register(workflows[LATE_WORKFLOW])
            await trio.sleep(weather.linger_s / 2)
        await engine.wait_all()

    # What is done in a session -------------------------------------------------------------------------------

    def start(self, workflow: str, program: Program, weather: Weather) -> None:
        instance_id = f"i{len(self.invoked)}"
        given = self.world.number(program)
        self.invoked[instance_id] = workflow, given

        async def action(engine: memable.Engine) -> None:
            while True:
                try:
                    await engine.invoke(workflow, given, instance_id=instance_id)
                    break
                except memable.WorkflowNotFoundError:
                    assert weather.is_late
                    await trio.sleep(1)
            self.told.append(("started", (workflow, instance_id)))

        self.session(action, weather)

    def start_again(self, index: int, weather: Weather) -> None:
        """
        Start what was started before: nothing happens, unless it was removed.
        """
        instance_id, (workflow, given) = list(self.invoked.items())[index % len(self.invoked)]

        async def action(engine: memable.Engine) -> None:
            try:
                await engine.invoke(workflow, given, instance_id=instance_id)
            except memable.WorkflowNotFoundError:
                assert weather.is_late
            else:
                self.told.append(("started", (workflow, instance_id)))

        self.session(action, weather)

    def reopen(self, weather: Weather) -> None:
        self.session(do_nothing, weather)

    def signal(self, index: int, point: int, count: int, early: bool, weather: Weather) -> None:
        ledger = self.choose(index, Suspend)
        paths = [path for path, op in ops_of(ledger.program).items() if isinstance(op, Suspend)]
        path = paths[point % len(paths)]

        async def action(engine: memable.Engine) -> None:
            await trio.sleep(weather.action_s)
            async with trio.open_nursery() as nursery:
                for number in range(count):
                    # Two at once, and one that comes later.
                    nursery.start_soon(self.send, engine, ledger.name, path, early, number // 2)
            winners = [sent for sent in self.sent if sent.told == "delivered"]
            assert len(winners) <= 1, f"several signals won: {winners}"

        self.session(action, weather)

    def cancel(self, index: int, weather: Weather) -> None:
        name = self.choose(index).name

        async def action(engine: memable.Engine) -> None:
            await trio.sleep(weather.action_s)
            with suppress(memable.InstanceNotFoundError):
                try:
                    if await engine.cancel(*name, reason="why"):
                        self.told.append(("cancelled", name))
                except memable.WorkflowBlockedError as error:
                    # It is cancelled when somebody has resumed it, or has told what became of its effect: until then
                    # such an instance waits (section 3 of the contract), and its compensations cannot run.
                    if not error.error.type.endswith(("RecoveryLimitError", "OutcomeUnknownError")):
                        raise

        self.session(action, weather)

    def resume(self, index: int, forget: list[int], anew: bool, weather: Weather) -> None:
        ledger = self.choose(index)
        known = ledger.known_paths()
        paths = tuple(dict.fromkeys(known[one % len(known)] for one in forget)) if known else ()
        if ledger.compensations and not anew:
            # What runs again may fail before it registers them all, and then the instance stays Blocked.
            paths = ()
        self.asked = paths, anew
        if paths or anew:
            self.may_lose_children.add(ledger.name)

        async def action(engine: memable.Engine) -> None:
            await trio.sleep(weather.action_s)
            self.expect_resume(ledger)
            try:
                await engine.resume(*ledger.name, forget=paths, anew=anew)
            except memable.InstanceBusyError:
                assert paths or anew
            except memable.InstanceCompensatedError:
                assert not anew
            except memable.UnknownKeyError:
                # The parent of the instance has forgotten it, or the fan-out has failed again.
                assert weather.action_s or weather.pause_s or ledger.ending is None
            except memable.InstanceNotFoundError:
                assert WORKFLOWS[ledger.name[0]] is not None
            except memable.WorkflowNotFoundError:
                assert weather.is_late
            else:
                self.told.append(("resumed", ledger.name))

        self.session(action, weather)

    def settle(self, index: int, answer: str, weather: Weather) -> None:
        unknown = [(ledger, path) for ledger in self.ledgers.values() for path in sorted(ledger.intents)]
        ledger, path = unknown[index % len(unknown)]

        async def action(engine: memable.Engine) -> None:
            await engine.wait_all()
            with suppress(memable.SignalRejectedError, memable.InstanceNotFoundError):
                await self.answer(engine, ledger, path, answer)

        self.session(action, weather)

    def delete(self, index: int, weather: Weather) -> None:
        name = self.choose(index).name
        self.may_vanish.add(name)

        async def action(engine: memable.Engine) -> None:
            with suppress(memable.InstanceBusyError, memable.InstanceNotFoundError):
                self.deleting.add(name)
                await engine.delete(*name)
                self.told.append(("deleted", name))

        self.session(action, weather)

    def choose(self, index: int, cls: type[Any] = object) -> Ledger:
        """
        Choose an instance whose program has such an operation, one that has not ended rather than another.
        """
        found = [one for one in self.ledgers.values() if has_op(one, cls)]
        ledgers = sorted(found, key=lambda ledger: ledger.ending is not None)
        return ledgers[index % len(ledgers)]

    async def send(self, engine: memable.Engine, name: Name, path: str, early: bool, after_s: float = 0.0) -> None:
        """
        Send a signal of its own payload, and note what becomes of it.
        """
        await trio.sleep(after_s)
        self.payloads += 1
        sent = Sent(name, path, self.payloads)
        self.sent.append(sent)
        await send_signal(engine, sent, early=early)
        if sent.told == "unknown":
            assert WORKFLOWS[name[0]] is not None or "/" in name[1] or name in self.may_vanish

    async def help_all(self, engine: memable.Engine) -> None:
        """
        Send signals to all suspend points, answer what is blocked, and let time pass.
        """
        for ledger in list(self.ledgers.values()):
            if ledger.ending is None:
                await self.revive(engine, ledger)
                for path, op in ops_of(ledger.program).items():
                    if isinstance(op, Suspend) and path not in ledger.memos and path not in ledger.kept:
                        await self.send(engine, ledger.name, path, True)
                for path in sorted(ledger.intents):
                    # It may run again by itself, and ask the world.
                    with suppress(memable.SignalRejectedError):
                        await self.answer(engine, ledger, path)
        await trio.sleep(2000)

    async def answer(self, engine: memable.Engine, ledger: Ledger, path: str, kind: str = "value") -> None:
        """
        Answer a step whose outcome is unknown, as the world knows it.
        """
        effect = self.world.happened.get(self.world.step_ids[(*ledger.name, path)])
        if kind == "wrong":
            try:
                await engine.settle(*ledger.name, path, value=1)
            except memable.TypeMismatchError:
                return
            raise AssertionError("an answer of a wrong type was taken")
        if effect is not None:
            await engine.settle(*ledger.name, path, value=effect)
            self.world.seen.append((*ledger.name, path, effect))
        elif kind == "error":
            await engine.settle(*ledger.name, path, error=ConnectionError("answered"))
            self.world.seen.append((*ledger.name, path, ["failed", "answered"]))
        else:
            await engine.settle(*ledger.name, path, rerun=True)

    def expect_resume(self, ledger: Ledger) -> None:
        """
        Let steps run again that may have failed for the last time, and children that may go on without their parents.
        """
        self.revived.add(ledger.name)
        for one in self.ledgers.values():
            for path, memo in one.memos.items():
                if isinstance(memo, StepFailed):
                    self.world.failed.add(self.world.step_ids[(*one.name, path)])
        self.world.done -= self.world.failed

    async def revive(self, engine: memable.Engine, ledger: Ledger) -> None:
        """
        Resume an instance that has crashed too often.
        """
        if ledger.blocked is not None and ledger.blocked.error.type.endswith("RecoveryLimitError"):
            self.expect_resume(ledger)
            # A child may have been removed meanwhile, or cancelled: its parent goes on by itself.
            expected: list[type[Exception]] = [memable.InstanceNotFoundError]
            if "/" in ledger.name[1]:
                expected.append(memable.InstanceCompensatedError)
            if self.weather.is_late:
                expected.append(memable.WorkflowNotFoundError)
            with suppress(*expected):
                await engine.resume(*ledger.name)

    def help_all_in(self, weather: Weather) -> None:
        """
        Help all, while anything may happen.
        """
        self.session(self.help_all, weather)

    def is_over(self) -> bool:
        return all(ledger.ending is not None for ledger in self.ledgers.values())

    def finish(self) -> None:
        """
        Bring everything to its end, unless something is wrong already.
        """
        if not self.is_sound:
            return
        for _ in range(MAX_ROUNDS):
            self.session(self.help_all, FAIR)
            if self.is_over():
                break
        else:
            raise AssertionError("it does not come to its end")
        self.session(do_nothing, Weather(linger_s=2 * RETENTION_S))
        for header, _ in self.kept.values():
            assert WORKFLOWS[header.workflow] is None, f"{header} was not removed"
