"""
What an operating system's error means for a store, and the way out of it.
"""

from __future__ import annotations

import errno
from pathlib import Path

from .._errors import StorageError
from .._segments import parse_name

_NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
#: What passes when others give something back, and leaves the disk above suspicion: the call was not even made.
_SHORTAGE = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN))
_DENIED = frozenset((errno.EACCES, errno.EPERM, errno.EROFS))

_WAYS_OUT = {
    **dict.fromkeys(_NO_ROOM, "make room, then open the store again"),
    **dict.fromkeys(_DENIED, "give this process the right to write there, or choose another path"),
    **dict.fromkeys(
        (errno.EMFILE, errno.ENFILE),
        "close files that are not needed, or raise the limit (see `ulimit -n`), then open the store again",
    ),
    **dict.fromkeys(
        (errno.ENOMEM, errno.EAGAIN),
        "give this process more memory, or let fewer things run beside it, then open the store again",
    ),
    errno.EOVERFLOW: "begin a new store in another directory; what is in this one can still be read",
    errno.ENOENT: "make the directory that it is to be in, or choose another path",
    errno.ENOTDIR: "choose the path of a directory, or one where there is nothing yet",
    errno.ELOOP: "a store holds no symbolic links: put the file itself there",
    errno.EISDIR: "move away what is in the place of that file, then open the store again",
    errno.ENOLCK: "somebody moved or removed files of the store while it was open; find out who, then open it again",
}
_FILE_IS_GONE = (
    "this file of the log is missing: restore the store from a backup, or run `memable repair` to save what is there"
)
_OTHERWISE = "find out what is wrong with the disk, then open the store again"


class UnsettledRenameError(OSError):
    """
    A file was given a name, and the directory could not be synced: a power cut may bring back what was before.
    """


def is_no_room(exc: BaseException) -> bool:
    """
    Tell whether *exc* says that the disk, a quota or a limit is full, which does not make the disk suspect.
    """
    return isinstance(exc, OSError) and exc.errno in _NO_ROOM and not isinstance(exc, UnsettledRenameError)


def is_shortage(exc: BaseException) -> bool:
    """
    Tell whether *exc* says that the system is short of something else than room, which does not make the disk suspect.
    """
    return isinstance(exc, OSError) and exc.errno in _SHORTAGE and not isinstance(exc, UnsettledRenameError)


def storage_error(location: str, doing: str, exc: BaseException) -> StorageError:
    """
    Return the error to raise for *exc*, from it.

    Args:
        location: The file or directory.
        doing: What failed, for example ``"writing"``.
        exc: What the system raised.
    """
    if isinstance(exc, OSError):
        what = exc.strerror or str(exc) or type(exc).__name__
        way_out = _WAYS_OUT.get(exc.errno or 0, _OTHERWISE)
        if exc.errno == errno.ENOENT and parse_name(Path(location).name) is not None:
            way_out = _FILE_IS_GONE
        if doing == "reading" and exc.errno in _DENIED:
            way_out = "give this process the right to read there"
    else:
        what = f"{type(exc).__name__}: {exc}"
        way_out = "open the store again"
    return StorageError(location=location, problem=f"{doing} failed: {what}; {way_out}")
