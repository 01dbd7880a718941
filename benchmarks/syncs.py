"""
How often a program really asks the disk to make something durable: its system calls, counted by ``strace``.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

#: Every call of Linux that waits until something is on the disk. ``open`` and ``pwritev2`` are asked to by a flag.
_CALLS = ("fsync", "fdatasync", "sync_file_range", "msync", "sync", "syncfs", "pwritev2", "open", "openat", "openat2")
#: A call as ``strace -f`` tells it: the process, the name, the arguments. What is resumed was counted when it began.
_SYNC = re.compile(
    r"^(?:\d+ +)?(?:(?:fsync|fdatasync|sync_file_range|msync|sync|syncfs)\(|pwritev2\(.*\bRWF_D?SYNC\b)", re.MULTILINE
)
_OPENED_SYNCED = re.compile(r"^(?:\d+ +)?open(?:at2?)?\(.*\bO_D?SYNC\b", re.MULTILINE)


class OpenedSyncedError(Exception):
    """
    A file was opened so that each write to it is a sync: those aren't told from other writes here.
    """


def count_syncs(trace: str) -> int:
    """
    Return how many syncs there are in what ``strace -f`` wrote.

    Raises:
        OpenedSyncedError: There may be more, which cannot be counted.
    """
    if (opened := _OPENED_SYNCED.search(trace)) is not None:
        raise OpenedSyncedError(opened[0])
    return len(_SYNC.findall(trace))


def why_not() -> str | None:
    """
    Return why syncs cannot be counted here, or None if they can.
    """
    if sys.platform != "linux":
        return "strace is there on Linux only"
    strace = shutil.which("strace")
    if strace is None:
        return "strace is not installed"
    # In a container it may be forbidden to trace anything.
    done = subprocess.run(
        [strace, "-f", "-o", "/dev/null", sys.executable, "-c", ""], check=False, capture_output=True, text=True
    )
    return None if done.returncode == 0 else f"strace failed: {done.stderr.strip()}"


def traced(command: Sequence[str | Path], output: Path) -> list[str | Path]:
    """
    Return the command that runs another one, and writes its syncs to a file.
    """
    return ["strace", "-f", "-qq", "-s", "0", "-o", output, "-e", f"trace={','.join(_CALLS)}", "--", *command]
