"""
Answers from outside: signals to suspend points, and settling steps whose outcome is unknown.
"""

from __future__ import annotations

from typing import Any

import attrs
import trio

from ._decide_signal import Deliver, Keep, Mismatch, Reject, SignalDecision, Supersede, decide_signal
from ._encoded import Encoded
from ._entry import Entry
from ._error_info import describe_exception
from ._errors import (
    EngineStoppedError,
    MisuseError,
    SerializationError,
    SignalRejectedError,
    SignalSupersededError,
    TypeMismatchError,
)
from ._instances import Instances
from ._journal import Journal
from ._keys import SEPARATOR
from ._qualified_name import qualified_name
from ._records import (
    InstanceRecord,
    InstanceResumed,
    IntentWithdrawn,
    RunStarted,
    SignalKept,
    SignalReceived,
    StepCompleted,
    StepFailed,
)
from ._run import Run
from ._services import Services
from ._sparse import put
from ._states import MetadataStatus
from ._supervisor import Supervisor
from ._suspend_point import SuspendPoint


class Answers:
    """
    Delivers answers to the instances of one engine.
    """

    def __init__(self, services: Services, supervisor: Supervisor, instances: Instances) -> None:
        """
        Bind to the parts of an engine.
        """
        self._services = services
        self._supervisor = supervisor
        self._instances = instances

    # Signals -------------------------------------------------------------------------------------------------

    async def signal(
        self, entry: Entry, point: SuspendPoint[Any], payload: object, *, within: str | None, keeps: bool
    ) -> None:
        """
        Deliver a signal, or store it.

        Raises:
            SignalRejectedError: The instance does not wait there.
            SignalSupersededError: Another signal, or the timeout, was first.
            TypeMismatchError: The payload is not of the point's type, or the point is of another type.
            EngineStoppedError: The engine stopped before it could be delivered.
        """
        value = self._encode(entry, point, payload)
        path = point.key if within is None else within + SEPARATOR + point.key
        while True:
            version, run = entry.version, entry.run
            if run is None:
                self._refuse_halted(entry)
            if run is not None and run.is_closing_around(path):
                # It cannot be told yet whether anybody will ever wait there.
                await run.wait_closed_around(path)
                continue
            if not entry.busy and not _is_between(entry):
                if run is None:
                    await self._signal_at_rest(entry, path, point, value, within=within, keeps=keeps)
                else:
                    await self._signal_run(entry, run, path, point, value, within=within, keeps=keeps)
                return
            if not await self._instances.wait_entry_change(entry, version):
                raise EngineStoppedError(operation=f"engine.signal to instance {entry.instance_id!r}")

    def _refuse_halted(self, entry: Entry) -> None:
        """Refuse to change an instance without a run once the store may be closed at any moment."""
        if self._supervisor.is_halted:
            raise EngineStoppedError(operation=f"engine.signal to instance {entry.instance_id!r}")

    def _encode(self, entry: Entry, point: SuspendPoint[Any], payload: object) -> Encoded:
        try:
            return self._services.codec.encode(payload, point.type)
        except SerializationError as error:
            if self._services.codec.is_too_large(error):
                error.workflow, error.instance_id, error.key = entry.workflow, entry.instance_id, point.key
                raise
            raise TypeMismatchError(
                expected=getattr(point.type, "__name__", str(point.type)),
                found=qualified_name(type(payload)),
                problem=error.problem,
                workflow=entry.workflow,
                instance_id=entry.instance_id,
                key=point.key,
                is_given=True,
            ) from None

    @trio.lowlevel.enable_ki_protection
    async def _signal_run(
        self,
        entry: Entry,
        run: Run,
        path: str,
        point: SuspendPoint[Any],
        value: Encoded,
        *,
        within: str | None,
        keeps: bool,
    ) -> None:
        name = self._services.codec.name_of(point.type)

        def decide(journal: Journal) -> SignalDecision:
            is_cancelled = run.cancel_request is not None
            return decide_signal(
                journal,
                path,
                name,
                deciding=run.deciding | run.turning_away,
                within=within,
                keeps=keeps,
                is_cancelled=is_cancelled,
            )

        decision = decide(run.journal)
        if SEPARATOR in path and not isinstance(decision, (Deliver, Supersede)):
            # What is recorded within children that are done, a run does not keep in memory.
            full = decide(await self._instances.load(entry))
            if entry.run is not run or _is_between(entry) or run.is_closing_around(path):
                payload = self._services.codec.decode(value, point.type)
                await self.signal(entry, point, payload, within=within, keeps=keeps)
                return
            # Meanwhile the body may have got further.
            decision = full if isinstance(full, Supersede) else decide(run.journal)
        cls = self._class_for(entry, path, name, decision)
        run.begin_deciding(path)
        try:
            record = cls(
                instance=entry.header.number,
                seq=run.ledger.next_seq(),
                at=self._services.clock.now(),
                path=path,
                value=value,
            )
            if not await run.ledger.append((record,)):
                assert run.ledger.failure is not None
                raise run.ledger.failure
        finally:
            run.end_deciding(path)
        wait = run.activity.find_wait(path)
        if wait is not None:
            run.activity.wake(wait)

    @trio.lowlevel.enable_ki_protection
    async def _signal_at_rest(
        self,
        entry: Entry,
        path: str,
        point: SuspendPoint[Any],
        value: Encoded,
        *,
        within: str | None,
        keeps: bool,
    ) -> None:
        header, services = entry.header, self._services
        name = services.codec.name_of(point.type)
        entry.busy = True
        try:
            journal = await self._instances.load(entry)
            self._refuse_halted(entry)
            decision = decide_signal(journal, path, name, deciding=(), within=within, keeps=keeps)
            cls = self._class_for(entry, path, name, decision)
            at = services.clock.now()
            records: list[InstanceRecord] = [
                cls(instance=header.number, seq=header.seq + 1, at=at, path=path, value=value)
            ]
            continues = (
                isinstance(decision, Deliver)
                and header.status is MetadataStatus.SUSPENDED
                and entry.workflow in self._supervisor.definitions
            )
            if continues:
                session = services.store.session
                records.append(RunStarted(instance=header.number, seq=header.seq + 2, at=at, session=session))
            await self._instances.append(*records)
            if continues:
                for record in records:
                    journal.apply(record)
                self._supervisor.start(entry, journal=journal)
        finally:
            self._supervisor.release(entry)

    def _class_for(
        self, entry: Entry, path: str, type_name: str, decision: SignalDecision
    ) -> type[SignalReceived | SignalKept]:
        """Return the class of the record to make, or raise what the sender is to be told."""
        names = {"workflow": entry.workflow, "instance_id": entry.instance_id, "key": path}
        match decision:
            case Deliver():
                return SignalReceived
            case Keep():
                return SignalKept
            case Supersede():
                raise SignalSupersededError(**names)
            case Reject(reason):
                raise SignalRejectedError(reason=reason, **names)
            case Mismatch(expected):
                problem = "the suspend point that the instance waits at is of another type"
                raise TypeMismatchError(expected=expected, found=type_name, problem=problem, is_given=True, **names)

    # Unknown outcomes ----------------------------------------------------------------------------------------

    async def settle(self, entry: Entry, path: str, answer: Any, *, kind: str) -> None:
        """
        Answer a step whose outcome is unknown, and let its instance go on.

        Args:
            entry: The instance.
            path: The step's.
            answer: The value, or the exception.
            kind: ``value``, ``error`` or ``rerun``.

        Raises:
            SignalRejectedError: Its outcome is not unknown.
            TypeMismatchError: The value is of another type than the step's.
            EngineStoppedError: The engine stopped before.
        """
        while True:
            version, run = entry.version, entry.run
            is_unwound = run is not None and not run.has_ended and run.leaving is not None
            if not (entry.busy or _is_between(entry) or is_unwound):
                break
            if not await self._instances.wait_entry_change(entry, version):
                raise EngineStoppedError(operation=f"engine.settle on instance {entry.instance_id!r}")
        if run is None:
            await self._settle_at_rest(entry, path, answer, kind)
        else:
            await self._settle_run(entry, run, path, answer, kind)

    @trio.lowlevel.enable_ki_protection
    async def _settle_run(self, entry: Entry, run: Run, path: str, answer: Any, kind: str) -> None:
        """Answer while the run waits until it may ask the probe again."""
        if path not in run.journal.intents or run.activity.find_wait(path) is None or path in run.deciding:
            reason = "the instance runs, and does not wait to be told; wait until it is Blocked at the step"
            raise self._rejected(entry, path, reason)
        record = self._settlement(entry, run.journal, path, answer, kind)
        run.deciding = put(run.deciding, path, None)
        try:
            if not await run.ledger.append((attrs.evolve(record, seq=run.ledger.next_seq()),)):
                assert run.ledger.failure is not None
                raise run.ledger.failure
        finally:
            run.deciding.pop(path, None)
        wait = run.activity.find_wait(path)
        if wait is not None:
            run.activity.wake(wait)

    @trio.lowlevel.enable_ki_protection
    async def _settle_at_rest(self, entry: Entry, path: str, answer: Any, kind: str) -> None:
        header = entry.header
        entry.busy = True
        try:
            journal = await self._instances.load(entry)
            if header.status.is_terminal or path not in journal.intents:
                raise self._rejected(entry, path, "no effect with an unknown outcome is recorded there")
            records = [self._settlement(entry, journal, path, answer, kind)]
            continues = entry.workflow in self._supervisor.definitions
            if continues:
                records.append(
                    InstanceResumed(
                        instance=header.number,
                        seq=header.seq + 2,
                        at=self._services.clock.now(),
                        session=self._services.store.session,
                    )
                )
            await self._instances.append(*records)
            if continues:
                for record in records:
                    journal.apply(record)
                self._supervisor.start(entry, journal=journal)
        finally:
            self._supervisor.release(entry)

    def _settlement(self, entry: Entry, journal: Journal, path: str, answer: Any, kind: str) -> InstanceRecord:
        intent = journal.intents[path]
        at = self._services.clock.now()
        common: dict[str, Any] = {"instance": entry.header.number, "seq": entry.header.seq + 1, "at": at, "path": path}
        if kind == "rerun":
            return IntentWithdrawn(**common)
        common["started_at"] = intent.started_at
        if kind == "error":
            if not isinstance(answer, Exception):
                raise MisuseError(problem=f"error is {answer!r}; give the exception that the effect failed with")
            return StepFailed(error=describe_exception(answer), **common)
        return StepCompleted(value=self._encode_value(entry, path, intent.expects, answer), **common)

    def _encode_value(self, entry: Entry, path: str, expects: str, value: object) -> Encoded:
        codec = self._services.codec
        names = {"workflow": entry.workflow, "instance_id": entry.instance_id, "key": path}
        try:
            return codec.encode_as(value, expects)
        except SerializationError as error:
            if codec.is_too_large(error):
                error.workflow, error.instance_id, error.key = entry.workflow, entry.instance_id, path
                raise
            found = qualified_name(type(value))
            raise TypeMismatchError(
                expected=expects, found=found, problem=error.problem, is_given=True, **names
            ) from None

    def _rejected(self, entry: Entry, path: str, reason: str) -> SignalRejectedError:
        return SignalRejectedError(workflow=entry.workflow, instance_id=entry.instance_id, key=path, reason=reason)


def _is_between(entry: Entry) -> bool:
    """Tell whether a run is about to begin, or its end is on its way to the store."""
    run = entry.run
    return entry.is_live and (run is None or (run.has_ended and run.journal.compensating is None))
