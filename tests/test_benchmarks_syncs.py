"""
How the benchmarks count an engine's syncs in what strace wrote.
"""

from __future__ import annotations

import pytest
from syncs import OpenedSyncedError, count_syncs

TRACE = """\
101   openat(AT_FDCWD, "/data/fsync(3)", O_RDWR|O_CREAT|O_CLOEXEC, 0600) = 3
101   fdatasync(3)                      = 0
102   fsync(4 <unfinished ...>
101   pwritev2(3, [{iov_base=""..., iov_len=200}], 1, 0, 0) = 200
102   <... fsync resumed>)              = 0
101   pwritev2(3, [{iov_base=""..., iov_len=200}], 1, 200, RWF_DSYNC) = 200
101   msync(0x7f0000000000, 4096, MS_SYNC) = 0
101   sync_file_range(3, 0, 0, SYNC_FILE_RANGE_WRITE) = 0
fdatasync(5)                            = -1 EIO (Input/output error)
"""


def test_syncs_are_counted_once_each() -> None:
    """
    Every call that makes something durable counts once, also one that another process interrupted.
    """
    assert count_syncs(TRACE) == 6


def test_syncs_of_nothing_are_none() -> None:
    """
    A program that never syncs has no syncs.
    """
    assert count_syncs("") == 0


@pytest.mark.parametrize("flag", ["O_SYNC", "O_DSYNC"])
def test_syncs_hidden_in_writes_are_no_count(flag: str) -> None:
    """
    A file whose every write is a sync makes counting pointless, and that is said.
    """
    trace = f'101   openat(AT_FDCWD, "/data/wal", O_RDWR|{flag}|O_CLOEXEC) = 3\n'
    with pytest.raises(OpenedSyncedError, match=flag):
        count_syncs(TRACE + trace)
