"""
Tests of reading single lines out of the files of a log.
"""

from __future__ import annotations

from typing import cast

from memable._store._protocol import OpenStore
from memable._store.file import OpenFileStore
from memable._testing._simulated_disk import SimulatedDisk
from sample_records import started, step
from segmented import forgetting, open_on, retire, run_instance, tidy


def test_lines_that_were_left_out_do_not_shift_the_others():
    """Whoever asks for a journal by older spans gets what is left of it, each record with the span of its own line."""

    async def main(store: OpenStore) -> None:
        files = cast(OpenFileStore, store)._files
        number = await store.allocate_number()
        await store.append([started(number)])
        for seq in range(2, 12):
            await store.append([step(number, seq, b'"' + b"x" * 300 + b'"')])
        spans = cast(OpenFileStore, store)._index.spans(number)
        before = dict(files.read_lines(number, spans))
        await store.append([forgetting(number, 12, *(f"s{seq}" for seq in range(2, 10)))])
        for _ in range(4):
            await retire(store, await run_instance(store, steps=5))
        await tidy(store)
        after = files.read_lines(number, spans)
        assert 0 < len(after) < len(before)
        assert all(before[span] == record for span, record in after)
        assert list(files.read_journal(number, spans)) == [record for _, record in after]

    open_on(SimulatedDisk(), main)
