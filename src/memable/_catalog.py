"""
Tells the metadata of instances: of one, or of many in the order of their creation.
"""

from __future__ import annotations

from bisect import bisect_right

import trio

from ._header import InstanceHeader
from ._instances import Instances
from ._listing import metadata_of
from ._services import Services
from ._states import MetadataStatus, WorkflowMetadata
from ._supervisor import Supervisor

#: So many instances are looked at before other tasks get their turn.
PAGE_COUNT = 500


class Catalog:
    """
    What one engine's store holds, and what of it runs here, for lists.
    """

    def __init__(self, services: Services, supervisor: Supervisor, instances: Instances) -> None:
        """
        Bind to the parts of an engine.
        """
        self._services = services
        self._supervisor = supervisor
        self._instances = instances

    def metadata(self, header: InstanceHeader) -> WorkflowMetadata:
        """
        Return what is recorded of an instance, and what its run says if it runs here.
        """
        entry = self._supervisor.known_entry(header.workflow, header.instance_id)
        run = None if entry is None else entry.run
        return metadata_of(header, None if run is None or header.status.is_terminal else run.state())

    async def find(
        self, workflow: str | None, status: MetadataStatus | None, *, after: int, limit: int | None
    ) -> list[WorkflowMetadata]:
        """
        Return the first instances that match, in the order of their creation. A checkpoint after each page.

        Args:
            workflow: Only instances of this workflow.
            status: Only instances that are shown with this status.
            after: Only instances with a greater number than this.
            limit: At most so many.

        Raises:
            EngineStoppedError: The engine's block was left meanwhile.
        """
        if status is None or status.is_terminal:
            return await self._find_recorded(workflow, status, after, limit)
        return await self._find_unfinished(workflow, status, after, limit)

    async def _find_recorded(
        self, workflow: str | None, status: MetadataStatus | None, after: int, limit: int | None
    ) -> list[WorkflowMetadata]:
        """Find what the store can choose by itself: an end is shown as it is recorded."""
        found: list[WorkflowMetadata] = []
        while limit is None or len(found) < limit:
            count = PAGE_COUNT if limit is None else min(PAGE_COUNT, limit - len(found))
            headers = await self._services.store.headers(after=after, limit=count, workflow=workflow, status=status)
            found += map(self.metadata, headers)
            if len(headers) < count:
                break
            after = headers[-1].number
            await self._let_others_run()
        return found

    async def _find_unfinished(
        self, workflow: str | None, status: MetadataStatus, after: int, limit: int | None
    ) -> list[WorkflowMetadata]:
        """Find what only a run may know: it is recorded some time after it has begun to wait that it does."""
        found: list[WorkflowMetadata] = []
        headers = await self._services.store.live()
        first = bisect_right(headers, after, key=_number)
        for start in range(first, len(headers), PAGE_COUNT):
            for header in headers[start : start + PAGE_COUNT]:
                if limit is not None and len(found) >= limit:
                    return found
                if not header.status.is_terminal and (workflow is None or header.workflow == workflow):
                    metadata = self.metadata(header)
                    if metadata.status is status:
                        found.append(metadata)
            await self._let_others_run()
        return found

    async def _let_others_run(self) -> None:
        await trio.lowlevel.checkpoint()
        self._instances.refuse_closed("engine.list_instances")


def _number(header: InstanceHeader) -> int:
    return header.number
