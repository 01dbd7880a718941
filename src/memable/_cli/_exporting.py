"""
Turns what is recorded of an instance into a test for pytest. Does without rich.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator
from datetime import datetime

import attrs

from .._header import InstanceHeader
from .._journal import journal_of
from .._keys import SEPARATOR
from .._record_json import encode_record
from .._records import InstanceRecord
from .._states import MetadataStatus
from .._store._snapshot import StoreSnapshot
from .._times import utc_datetime
from ._escaping import escape_line
from ._reading import find, load, telling_damage

#: A longer name of a test function tells no more.
_MAX_NAME_CHARS = 60

_COMPLETED = """\
    # It had completed: nothing of it is to run again. Without this line, the code may do more than it did then.
    assert plan.misses == (), str(plan)
"""

_TEMPLATE = '''\
# ruff: noqa: E501
"""
What is recorded of one instance, and the present code run over it. No step is executed.

Made by ``memable export --pytest``. What the instance was given, and what came of its steps, stands below as it is.
"""

from __future__ import annotations

from datetime import datetime

import trio

import memable
from memable.testing import restore_journal
{origin}

{about}
WORKFLOW = workflow
INSTANCE_ID = {instance_id}
#: When this was exported: whether a deadline has passed does not depend on the day of the test.
AT = datetime.fromisoformat("{at}")
JOURNAL = r\'\'\'
{journal}
\'\'\'


def {name}() -> None:
    """
    The present code goes on from what is recorded.
    """

    async def make_plan() -> memable.Plan:
        # No workflow is registered: nothing of what is recorded runs.
        async with memable.open_engine(restore_journal(JOURNAL)) as engine:
            return await engine.plan(WORKFLOW, INSTANCE_ID, at=AT)

    plan = trio.run(make_plan)
    assert plan.problems == (), str(plan)
{more}'''


@attrs.frozen
class Origin:
    """
    Where a workflow is imported from.
    """

    module: str
    name: str


def parse_origin(text: str) -> Origin | None:
    """
    Return what ``MODULE:NAME`` stands for, or None if it cannot be imported.
    """
    module, _, name = text.partition(":")
    parts = (*module.split("."), name)
    is_importable = all(part.isidentifier() and not keyword.iskeyword(part) for part in parts)
    return Origin(module, name) if is_importable else None


def make_test(
    snapshot: StoreSnapshot, workflow: str, instance_id: str, origin: Origin | None, now_unix_s: float
) -> str:
    """
    Return the source of a test that plans an instance over what is recorded of it and of its attached children.

    Args:
        snapshot: The store.
        workflow: The workflow's name.
        instance_id: The instance's id.
        origin: Where the test imports the workflow from; None if somebody is to fill that in.
        now_unix_s: The time of the export.

    Raises:
        NotInStoreError: There is no such instance.
        StorageError: What is recorded of it cannot be read.
    """
    header = find(snapshot, workflow, instance_id)
    records = [record for one in _family(snapshot, header) for record in one]
    lines = [_line(record) for record in records]
    at = utc_datetime(max(now_unix_s, *(record.at for record in records)))
    return _TEMPLATE.format(
        origin=_import_of(origin),
        about=_about(header, at),
        instance_id=ascii(instance_id),
        at=at.isoformat(),
        journal="\n".join(lines),
        name=_function_name(workflow, instance_id),
        more=_COMPLETED if header.status is MetadataStatus.COMPLETED else "",
    )


def _family(snapshot: StoreSnapshot, header: InstanceHeader) -> Iterator[list[InstanceRecord]]:
    """Yield the records of an instance, then those of each attached child, and of theirs."""
    pending = [header]
    while pending:
        one = pending.pop()
        records = load(snapshot, one)
        yield records
        with telling_damage(snapshot, one):
            journal = journal_of(records)
        for path, workflow in reversed(journal.children.items()):
            child = snapshot.index.find(workflow, one.instance_id + SEPARATOR + path)
            if child is not None:
                pending.append(child)


def _line(record: InstanceRecord) -> str:
    """Return a record as JSON that can stand in a raw string of Python's, and shows all that is in it."""
    text = escape_line(encode_record(record).decode("utf-8"))
    # Outside of its strings JSON has no quotes of this kind.
    return text.replace("'''", r"\u0027\u0027\u0027")


def _import_of(origin: Origin | None) -> str:
    if origin is None:
        return (
            "from your_module import your_workflow as workflow  # say where it is: --import MODULE:NAME fills this in"
        )
    return f"from {origin.module} import {origin.name} as workflow"


def _about(header: InstanceHeader, at: datetime) -> str:
    """Return comments that say which instance it is, and where it stood."""
    what = f"workflow {header.workflow!r}, instance {header.instance_id!r}"
    lines = [f"{what}: {header.status.value} at {at.isoformat(sep=' ', timespec='seconds')}"]
    if header.error_message is not None and header.status is not MetadataStatus.SUSPENDED:
        lines.append(header.error_message)
    return "\n".join(f"# {escape_line(line)}" for line in lines)


def _function_name(workflow: str, instance_id: str) -> str:
    words = re.sub(r"[^0-9A-Za-z]+", "_", f"{workflow}_{instance_id}").strip("_").lower()
    return f"test_{words[:_MAX_NAME_CHARS].rstrip('_') or 'instance'}_goes_on"
