"""
What a store's directory holds, and making one.
"""

from __future__ import annotations

import contextlib
import logging
import re
import uuid
from collections.abc import Callable
from pathlib import Path

from .._disk import Disk, DiskFile, write_fully
from .._errors import StorageError, StoreVersionError
from .._frames import FORMAT_VERSION, SegmentHeader, encode_header
from ._lockfile import LOCK_NAME

logger = logging.getLogger("memable")

TEMPORARY_SUFFIX = ".tmp"
_SEGMENT_NAME = re.compile(r"[0-9]{8}\.log")


def segment_name(number: int) -> str:
    """
    Return the name of the log's file of that number.
    """
    return f"{number:08d}.log"


FIRST_SEGMENT = segment_name(1)
#: What a crash can leave of a store that was just being made.
_UNFINISHED = frozenset((LOCK_NAME, FIRST_SEGMENT + TEMPORARY_SUFFIX))


def prepare_directory(disk: Disk, directory: Path) -> bool:
    """
    Make sure that *directory* holds a store, or may: make it if it is missing, refuse it if it is somebody else's.

    Returns:
        Whether it holds a store already.

    Raises:
        StorageError: There is something else in it.
        OSError: It cannot be made or read.
    """
    is_new = disk.make_directory(directory)
    is_store = has_log(disk, directory)
    if not is_new:
        try:
            disk.restrict_directory(directory)
        except PermissionError:
            # A volume that was mounted for us may belong to somebody else; the files are ours alone all the same.
            logger.warning("%s belongs to another user, who may let others list it", directory)
    if not is_store:
        # It may have been made a moment ago, by us or by an opener that died.
        with contextlib.suppress(PermissionError):
            disk.sync_directory(directory.parent)
    return is_store


def has_log(disk: Disk, directory: Path) -> bool:
    """
    Tell whether there is a log in *directory*, or nothing but what is left of making one.

    Raises:
        StorageError: There is something else in it.
        StoreVersionError: There is more than this release makes.
    """
    names = disk.list_names(directory)
    segments = [name for name in names if _SEGMENT_NAME.fullmatch(name)]
    if segments == [FIRST_SEGMENT]:
        return True
    if segments:
        raise StoreVersionError(
            location=str(directory),
            problem=f"its log has the files {', '.join(segments[:3])}, as a newer release makes them; install that",
            found=FORMAT_VERSION,
            supported=FORMAT_VERSION,
        )
    foreign = [name for name in names if name not in _UNFINISHED]
    if foreign:
        raise StorageError(
            location=str(directory),
            problem=(
                f"is no store, but holds other files ({', '.join(foreign[:3])}{', ...' if foreign[3:] else ''}); "
                f"choose a directory of its own for the store"
            ),
        )
    return False


def create_log(disk: Disk, directory: Path, now: float) -> None:
    """
    Make an empty log, whole or not at all.
    """
    header = SegmentHeader(store_id=uuid.uuid4().hex, segment=1, created_at=now)
    replace_log(disk, directory, lambda file: write_fully(file, 0, encode_header(header)))


def replace_log(disk: Disk, directory: Path, write: Callable[[DiskFile], None]) -> None:
    """
    Put a new file in the place of the log, whole or not at all: durable before it has the name, then the name itself.
    """
    path = directory / FIRST_SEGMENT
    temporary = path.with_name(FIRST_SEGMENT + TEMPORARY_SUFFIX)
    # What an opener left that died here.
    with contextlib.suppress(FileNotFoundError):
        disk.remove(temporary)
    file = disk.open_file(temporary, create=True)
    try:
        write(file)
        file.sync()
    finally:
        file.close()
    disk.rename(temporary, path)
    disk.sync_directory(directory)
