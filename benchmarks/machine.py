"""
What the figures were measured on.
"""

from __future__ import annotations

import gc
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import trio

#: File systems in memory: a sync costs nothing there, and the ratios say nothing.
IN_MEMORY = frozenset(("tmpfs", "ramfs", "devtmpfs"))


def facts(directory: Path) -> dict[str, str]:
    """
    Return what may explain the figures.
    """
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": str(usable_cores()),
        "load": f"{load():.1f}",
        "file system": file_system(directory),
        "trio": trio.__version__,
        **{name: _version(name) for name in ("attrs", "cattrs", "msgspec", "memable")},
    }


def file_system(directory: Path) -> str:
    """
    Return the type of the file system that holds *directory*, where the system tells it cheaply.
    """
    device = directory.stat().st_dev
    try:
        text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown"
    for line in text.splitlines():
        mount, _, kind = line.partition(" - ")
        if mount.split()[2] == f"{os.major(device)}:{os.minor(device)}":
            return kind.split()[0]
    return "unknown"


def load() -> float:
    """
    Return how many processes wanted a core in the last minute; 0 where the system does not tell.
    """
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def resident_bytes() -> int:
    """
    Return how much memory this process takes, garbage not counted.
    """
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
