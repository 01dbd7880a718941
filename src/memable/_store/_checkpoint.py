"""
The checkpoint: what was known of every instance at some place of the log, so that opening need not read what is before.

A cache: it may be deleted at any time, and whatever is wrong with it, the log is read instead. It is written only when
all that it speaks of is durable. So a log that is shorter than its checkpoint says has lost something, and that is
damage.

The file begins with its magic line; then come the parts, raw; then a line of JSON that says what they are, with a
checksum for each; and at the very end where that line is. It has a name only once it is whole.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import sys
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast
from zlib import crc32

import attrs

from .._disk import Disk, DiskFile, write_fully
from .._errors import StoreCorruptedError
from .._frames import LogState
from .._header import InstanceHeader
from .._json import JSON, dumps, loads
from .._packed_multimap import Chunks
from .._segments import Chain, parse_name, segment
from .._spans import offset_of, segment_of
from .._states import MetadataStatus
from ._directory import CHECKPOINT_NAME, TEMPORARY_SUFFIX
from ._files import CHUNK_BYTES, read_header
from ._index import HeaderIndex, IndexSnapshot, keep_spans
from ._space import FileSpace, Space

logger = logging.getLogger("memable")

_MAGIC = b"memable checkpoint 2\n"
_END_BYTES = 17
#: So many bytes of the log before the checkpoint's place are compared: they hold the end of a batch.
_PROOF_BYTES = 4096
#: So many live instances are encoded at once.
_LIVE_SLICE = 500
#: So many numbers are taken out of an array at once.
_ARRAY_SLICE = 128 * 1024


@attrs.frozen(eq=False)
class Checkpoint:
    """
    What a checkpoint says.
    """

    store_id: str
    segment: int
    "The segment that the log has to be read from."
    offset: int
    "Where in it."
    checksum: int | None
    "The CRC-32 of that segment's bytes before, if it is known. They were not read again."
    state: LogState
    "What the log had come to there."
    index: HeaderIndex
    space: Space
    size: int
    "How long the checkpoint itself is."
    newest_span: int
    "The greatest span of what was live."


@attrs.frozen(eq=False)
class CheckpointDraft:
    """
    What is to be written as a checkpoint: a place in the log, and all that was known there.
    """

    store_id: str
    segment: int
    offset: int
    checksum: int | None
    "The CRC-32 of the segment's bytes before, if it is known."
    state: LogState
    index: IndexSnapshot
    files: tuple[FileSpace, ...]
    space: Space
    "Goes on changing, too: whatever is found there later comes from records that an opener reads beyond the place."
    unexamined: set[int]
    "So does this one. Numbers of instances of which nobody has found out yet what they forgot."
    live: list[bytes] = attrs.field(factory=list[bytes], init=False)
    "The live instances, encoded."
    arrays: dict[str, array[int]] = attrs.field(factory=dict[str, "array[int]"], init=False)
    "What there is a number of numbers of, by the name of its part."

    def encode_live(self) -> Iterator[None]:
        """
        Encode what goes on changing, in steps. To be called where records are folded: each is taken as it is by then.
        """
        spans = self.arrays["live_spans"] = array("Q")
        instances = list(self.index.live.values())
        for start in range(0, len(instances), _LIVE_SLICE):
            self.live.extend(_encode_live(instances[start : start + _LIVE_SLICE], spans))
            yield
        superseded = self.arrays["superseded"] = array("Q")
        for page in self.space.superseded.pages():
            superseded.extend(page)
            yield
        yield from self._encode_tombstones()
        # Last: what is live may have been resumed up to now, and then nobody sees that it was.
        self.arrays["unexamined"] = array("Q", self.unexamined)
        self.arrays["has_forgotten"] = array("Q", self.index.has_forgotten)

    def _encode_tombstones(self) -> Iterator[None]:
        tombstones = self.arrays["tombstones"] = array("Q")
        segments = self.arrays["tombstone_segments"] = array("Q")
        places: dict[frozenset[int], int] = {}
        for page in self.space.tombstones.pages():
            for number, tombstone in page:
                place = places.get(tombstone.segments)
                if place is None:
                    place = places[tombstone.segments] = len(segments)
                    segments.append(len(tombstone.segments))
                    segments.extend(tombstone.segments)
                tombstones.extend((number, tombstone.span, place))
            yield


def write_checkpoint(disk: Disk, directory: Path, draft: CheckpointDraft) -> Iterator[int]:
    """
    Write a checkpoint in steps, between which the caller may do something else; yield how long it has become.

    Args:
        disk: Where the store is.
        directory: The store's.
        draft: What is to be written; its live instances are encoded.

    Raises:
        OSError: It failed. An older checkpoint is still there.
    """
    path = directory / CHECKPOINT_NAME
    temporary = path.with_name(CHECKPOINT_NAME + TEMPORARY_SUFFIX)
    proof = _proof(disk, directory, draft.segment, draft.offset)
    with contextlib.suppress(FileNotFoundError):
        disk.remove(temporary)
    file = disk.open_file(temporary, create=True)
    try:
        offset = len(_MAGIC)
        write_fully(file, 0, _MAGIC)
        parts: list[JSON] = []
        for name, pieces in _parts(draft):
            size = checksum = 0
            for piece in _pieces(pieces):
                write_fully(file, offset + size, piece)
                size += len(piece)
                checksum = crc32(piece, checksum)
                yield offset + size
            parts.append([name, size, checksum])
            offset += size
        write_fully(file, offset, _footer(draft, parts, proof) + b"%016d\n" % offset)
        yield offset
        file.sync()
    except BaseException:
        with contextlib.suppress(OSError):
            disk.remove(temporary)
        raise
    finally:
        file.close()
    disk.rename(temporary, path)
    disk.sync_directory(directory)


def read_checkpoint(disk: Disk, directory: Path, chain: Chain) -> Checkpoint | None:
    """
    Return the checkpoint of a log, or None if there is none that can be used.

    Raises:
        StoreCorruptedError: It is intact, and says that the log was longer than it is.
    """
    path = directory / CHECKPOINT_NAME
    found, problem, is_strange = examine_checkpoint(disk, directory, chain)
    if problem is not None:
        log = logger.warning if is_strange else logger.info
        log("%s: %s, so the whole log is read", path, problem)
    return found


def examine_checkpoint(disk: Disk, directory: Path, chain: Chain) -> tuple[Checkpoint | None, str | None, bool]:
    """
    Return the checkpoint of a log if it can be used; else why not, if there is one, and whether that is strange.

    Raises:
        StoreCorruptedError: It is intact, and says that the log was longer than it is.
    """
    path = directory / CHECKPOINT_NAME
    try:
        file = disk.open_to_read(path)
    except FileNotFoundError:
        return None, None, False
    except OSError as exc:
        return None, f"cannot be read ({exc})", True
    try:
        found = _read(file)
        if found is not None and _is_of(found, disk, directory, chain):
            return found, None, False
    except OSError as exc:
        if exc.errno == errno.ENOENT:
            raise
        return None, f"cannot be read ({exc})", True
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as exc:
        return None, f"is damaged ({type(exc).__name__}: {exc})", True
    finally:
        file.close()
    return None, "does not belong to the log as it is", False


def any_checkpoint(disk: Disk, directory: Path) -> tuple[str, int, int] | None:
    """
    Return what an intact checkpoint says, whether it fits the log or not.

    Returns:
        The store's id, and a segment and an offset in it up to which the log went at least; None if there is none.
    """
    try:
        file = disk.open_to_read(directory / CHECKPOINT_NAME)
    except OSError:
        return None
    try:
        found = _read(file)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError):
        return None
    finally:
        file.close()
    if found is None:
        return None
    newest = found.newest_span
    end = max((found.segment, found.offset), (segment_of(newest), offset_of(newest) + 1))
    return found.store_id, *end


def _is_of(checkpoint: _Found, disk: Disk, directory: Path, chain: Chain) -> bool:
    """Tell whether a checkpoint is one of this log, and no older than its compactions."""
    if checkpoint.store_id != _store_id(disk, directory / str(chain.current[-1])):
        return False
    name = segment(checkpoint.segment)
    if any(other.is_compacted and other.last >= checkpoint.segment for other in chain.current):
        return False
    location = str(directory / str(name))
    is_there = name in chain.current
    if not is_there and chain.current[-1].last >= checkpoint.segment:
        return False
    size = 0
    if is_there:
        file = disk.open_to_read(directory / str(name))
        try:
            size = file.size()
            store_id = read_header(file, location)[0].store_id
        finally:
            file.close()
        if store_id != checkpoint.store_id:
            return False
    if size < checkpoint.offset:
        raise StoreCorruptedError(
            location=location,
            offset=size,
            problem=f"the checkpoint says that it was at least {checkpoint.offset} bytes long: something of the log is "
            "missing; restore the store from a backup, or delete the file 'checkpoint' to go on with what is there",
        )
    return checkpoint.proof == _proof(disk, directory, checkpoint.segment, checkpoint.offset)


def _store_id(disk: Disk, path: Path) -> str:
    file = disk.open_to_read(path)
    try:
        return read_header(file, str(path))[0].store_id
    finally:
        file.close()


def _proof(disk: Disk, directory: Path, number: int, offset: int) -> int:
    file = disk.open_to_read(directory / str(segment(number)))
    try:
        start = max(0, offset - _PROOF_BYTES)
        return crc32(file.read_at(start, offset - start))
    finally:
        file.close()


# Writing -------------------------------------------------------------------------------------------------------------


def _parts(draft: CheckpointDraft) -> Iterator[tuple[str, Iterable[bytes]]]:
    index = draft.index
    directory = array("Q")
    for number, page in index.pages.items():
        directory.extend((number, len(page)))
    yield "page_directory", (directory.tobytes(),)
    yield "pages", index.pages.values()
    for name, (keys, values) in (("names", index.names), ("children", index.children)):
        yield f"{name}_keys", _chunks(keys)
        yield f"{name}_values", _chunks(values)
    for at, (keys, values) in enumerate(index.ends.values()):
        yield f"ends_{at}_keys", _chunks(keys)
        yield f"ends_{at}_values", _chunks(values)
    yield "live", draft.live
    for name, numbers in draft.arrays.items():
        yield name, (numbers[at : at + _ARRAY_SLICE].tobytes() for at in range(0, len(numbers), _ARRAY_SLICE))


def _chunks(given: Chunks) -> Iterable[bytes]:
    return (given,) if isinstance(given, bytes) else (chunk.tobytes() for chunk in given)


def _footer(draft: CheckpointDraft, parts: list[JSON], proof: int) -> bytes:
    index = draft.index
    tree: dict[str, JSON] = {
        "store": draft.store_id,
        "segment": draft.segment,
        "offset": draft.offset,
        "checksum": draft.checksum,
        "proof": proof,
        "fields": list[JSON](_FIELDS),
        "byteorder": sys.byteorder,
        "state": {**attrs.asdict(draft.state), "crashed": list(draft.state.crashed)},
        "last_number": index.last_number,
        "workflows": list[JSON](index.workflows),
        "ends": list[JSON](index.ends),
        "files": [[str(file.name), file.size, file.dead] for file in draft.files],
        "parts": parts,
    }
    text = dumps(tree)
    return b"%08x %b\n" % (crc32(text), text)


_FIELDS = tuple(field.name for field in attrs.fields(InstanceHeader) if field.init)


def _encode_live(instances: Iterable[InstanceHeader], spans: array[int]) -> Iterator[bytes]:
    for header in instances:
        own = array("Q", header.spans)
        values: list[JSON] = [getattr(header, name) for name in _FIELDS]
        values[_STATUS_AT] = header.status.value
        values.append(len(own))
        spans.extend(own)
        yield dumps(values) + b"\n"


_STATUS_AT = _FIELDS.index("status")


def _pieces(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Join what is small and cut what is large, so that each piece is about one step's work."""
    joined: list[bytes] = []
    size = 0
    for part in parts:
        for start in range(0, len(part), CHUNK_BYTES):
            piece = part[start : start + CHUNK_BYTES]
            joined.append(piece)
            size += len(piece)
            if size >= CHUNK_BYTES:
                yield b"".join(joined)
                joined.clear()
                size = 0
    if joined:
        yield b"".join(joined)


# Reading -------------------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class _Found(Checkpoint):
    proof: int = 0
    "A checksum of the log just before its place."


def _read(file: DiskFile) -> _Found | None:
    size = file.size()
    end = file.read_at(max(0, size - _END_BYTES), _END_BYTES)
    if file.read_at(0, len(_MAGIC)) != _MAGIC or size < _END_BYTES + len(_MAGIC):
        # Another release's.
        return None
    footer_at = int(end)
    stored, _, text = file.read_at(footer_at, size - _END_BYTES - footer_at).rstrip(b"\n").partition(b" ")
    if int(stored, 16) != crc32(text):
        raise ValueError("its last line is not intact")
    tree = cast("dict[str, Any]", loads(text))
    if (tree["fields"], tree["byteorder"]) != (list(_FIELDS), sys.byteorder):
        # Another release's, or another machine's.
        return None
    parts: dict[str, bytes] = {}
    offset = len(_MAGIC)
    for name, length, checksum in tree["parts"]:
        part = parts[name] = file.read_at(offset, length)
        offset += length
        if crc32(part) != checksum:
            raise ValueError(f"its part {name!r} is not intact")
    state = dict(tree["state"])
    state["crashed"] = tuple(state["crashed"])
    newest_span = max(array("Q", parts["live_spans"]), default=0)
    return _Found(
        store_id=tree["store"],
        segment=tree["segment"],
        offset=tree["offset"],
        # An earlier release did not write it.
        checksum=tree.get("checksum"),
        state=LogState(**state),
        index=_index(tree, parts),
        space=_space(tree, parts),
        size=size,
        newest_span=newest_span,
        proof=tree["proof"],
    )


def _index(tree: dict[str, Any], parts: dict[str, bytes]) -> HeaderIndex:
    pages: dict[int, bytes] = {}
    directory = array("Q", parts.pop("page_directory"))
    blob = parts.pop("pages")
    offset = 0
    for number, length in zip(directory[::2], directory[1::2], strict=True):
        pages[number] = blob[offset : offset + length]
        offset += length
    del blob

    def pair(name: str) -> tuple[bytes, bytes]:
        return parts.pop(f"{name}_keys"), parts.pop(f"{name}_values")

    spans = array("Q", parts.pop("live_spans"))
    return HeaderIndex.restored(
        IndexSnapshot(
            last_number=tree["last_number"],
            pages=pages,
            workflows=tree["workflows"],
            names=pair("names"),
            children=pair("children"),
            ends={workflow: pair(f"ends_{at}") for at, workflow in enumerate(tree["ends"])},
            has_forgotten=set(array("Q", parts.pop("has_forgotten"))),
            unexamined=set(array("Q", parts.pop("unexamined"))),
            live=dict(_decode_live(parts.pop("live"), spans)),
        )
    )


def _decode_live(text: bytes, spans: array[int]) -> Iterator[tuple[int, InstanceHeader]]:
    offset = 0
    interned: dict[str, str] = {}
    for line in text.splitlines():
        values = cast("list[Any]", loads(line))
        count: int = values.pop()
        values[_STATUS_AT] = MetadataStatus(values[_STATUS_AT])
        header = InstanceHeader(*values)
        # As many instances have few workflows between them.
        header.workflow = interned.setdefault(header.workflow, header.workflow)
        keep_spans(header, spans[offset : offset + count])
        yield header.number, header
        offset += count


def _space(tree: dict[str, Any], parts: dict[str, bytes]) -> Space:
    space = Space()
    for text, size, dead in tree["files"]:
        name = parse_name(text)
        if name is not None:
            space.files.append(FileSpace(name, size, dead))
    tombstones = array("Q", parts.pop("tombstones"))
    segments = array("Q", parts.pop("tombstone_segments"))
    for number, span, place in zip(tombstones[::3], tombstones[1::3], tombstones[2::3], strict=True):
        # Most have the same few sets, which are made once.
        space.tombstones.put(number, span, frozenset(segments[place + 1 : place + 1 + segments[place]]))
    for span in array("Q", parts.pop("superseded")):
        space.superseded.add(span)
    return space
