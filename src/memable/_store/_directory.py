"""
What a store's directory holds, and making one.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import attrs

from .._disk import Disk, DiskFile, write_fully
from .._errors import StorageError, StoreCorruptedError
from .._frames import LogState, SegmentHeader, encode_header
from .._segments import Chain, chain_of, parse_name, segment
from ._failures import UnsettledRenameError, is_no_room
from ._lockfile import LOCK_NAME

logger = logging.getLogger("memable")

TEMPORARY_SUFFIX = ".tmp"
_FIRST_SEGMENT = str(segment(1))
CHECKPOINT_NAME = "checkpoint"
TORN_SUFFIX = ".torn"
_TORN = re.compile(r"([0-9]{8}\.log)" + re.escape(TORN_SUFFIX) + r"(?:\.([1-9][0-9]{0,8}))?")
#: What may be left of a store that was just being made, or whose log is missing.
_OWN = frozenset((LOCK_NAME, _FIRST_SEGMENT + TEMPORARY_SUFFIX, CHECKPOINT_NAME))


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
    is_store = bool(find_log(disk, directory).current)
    if not is_new:
        try:
            disk.restrict_directory(directory)
        except PermissionError:
            # A volume that was mounted for us may belong to somebody else; the files are ours alone all the same.
            logger.warning("%s belongs to another user, who may let others list it", directory)
    if not is_store:
        # It may have been made a moment ago, by us or by an opener that died.
        try:
            disk.sync_directory(directory.parent)
        except PermissionError:
            pass
        except OSError:
            # It may be gone after a power cut, and nobody would ever know: the next opener makes it anew.
            with contextlib.suppress(OSError):
                disk.remove_directory(directory)
            raise
    return is_store


def find_log(disk: Disk, directory: Path) -> Chain:
    """
    Return where the log in *directory* is. It is empty if there is nothing but what is left of making one.

    Raises:
        StoreCorruptedError: There was a log.
        StorageError: There is something else in the directory.
        OSError: It cannot be read.
    """
    names = disk.list_names(directory)
    chain = chain_of(names)
    if not chain.current:
        left = left_of_a_log(names)
        if left:
            raise missing_log(directory, left)
        foreign = [name for name in names if name not in _OWN]
        if foreign:
            raise StorageError(
                location=str(directory),
                problem=(
                    f"is no store, but holds other files ({', '.join(foreign[:3])}{', ...' if foreign[3:] else ''}); "
                    f"choose a directory of its own for the store"
                ),
            )
    return chain


def left_of_a_log(names: Iterable[str]) -> list[str]:
    """
    Return those of the files called *names* that only a store leaves that had a log. See ``find_log``.
    """
    return [name for name in names if _TORN.fullmatch(name) or (name not in _OWN and _is_temporary(name))]


def missing_log(directory: Path, left: Sequence[str]) -> StoreCorruptedError:
    """
    Return the error that says that a store's log is not there.

    Args:
        directory: The store's.
        left: Names of what tells that there was one.
    """
    # A new log would make everything that was acknowledged look as if it had never been.
    files = ("the file " if len(left) == 1 else "the files ") + " and ".join(map(repr, left))
    return StoreCorruptedError(
        location=str(directory / _FIRST_SEGMENT),
        offset=0,
        problem="the log is missing, though there was one in this directory; restore it from a backup, or remove "
        f"{files} as well to begin a new store",
    )


def _is_temporary(name: str) -> bool:
    target = name.removesuffix(TEMPORARY_SUFFIX)
    return target != name and (target == CHECKPOINT_NAME or parse_name(target) is not None)


@attrs.frozen(order=True)
class TornName:
    """
    What the name of a file says that has a torn tail, which was cut off.
    """

    log: str
    "Name of the segment that it was cut off."
    number: int
    "Counts those of the same segment."

    def __str__(self) -> str:
        """
        Return the file's name.
        """
        return f"{self.log}{TORN_SUFFIX}" + (f".{self.number}" if self.number else "")


def torn_files(names: Iterable[str]) -> list[TornName]:
    """
    Return those of the files called *names* that have torn tails, the oldest in front.
    """
    return sorted(TornName(found[1], int(found[2] or 0)) for found in map(_TORN.fullmatch, names) if found)


def create_log(disk: Disk, directory: Path, now: float, durability: str, store_id: str) -> None:
    """
    Make an empty log, whole or not at all.
    """
    header = SegmentHeader(store_id=store_id, segment=1, created_at=now, durability=durability, state=LogState())
    put_in_place(disk, directory / _FIRST_SEGMENT, lambda file: write_fully(file, 0, encode_header(header)))


def put_in_place(disk: Disk, path: Path, write: Callable[[DiskFile], None]) -> None:
    """
    Give a new file the name *path*, whole or not at all: durable before it has the name, then the name itself.

    Raises:
        OSError: It failed. What was at *path* is still there, unless the directory could not be synced: then either is.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    # What an opener left that died here.
    with contextlib.suppress(FileNotFoundError):
        disk.remove(temporary)
    file = disk.open_file(temporary, create=True)
    try:
        write(file)
        file.sync()
    except OSError as exc:
        if is_no_room(exc):
            # What it took is needed by others.
            with contextlib.suppress(OSError):
                disk.remove(temporary)
        raise
    finally:
        file.close()
    rename_durably(disk, temporary, path)


def rename_durably(disk: Disk, source: Path, target: Path) -> None:
    """
    Give a file another name in the same directory, in place of what has that name.

    Raises:
        UnsettledRenameError: The directory could not be synced: *target* may have changed, or may yet.
        OSError: It failed.
    """
    disk.rename(source, target)
    try:
        disk.sync_directory(target.parent)
    except OSError as exc:
        raise UnsettledRenameError(exc.errno, exc.strerror, exc.filename) from exc


def remove_all(disk: Disk, paths: Iterable[Path]) -> None:
    """
    Remove files of one directory that are not needed any more, and that may be gone already.
    """
    parents: set[Path] = set()
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            disk.remove(path)
            parents.add(path.parent)
    for parent in parents:
        disk.sync_directory(parent)
