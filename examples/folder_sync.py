"""
Two folders are kept the same: a pipeline that looks, plans and acts, and can be killed at any moment.

    python examples/folder_sync.py LEFT RIGHT      # made with a few files in them, if left out

What was added, changed or deleted on one side since the last round is copied or deleted on the other. What both sides
changed, each in its way, is a conflict: it is reported, and both files stay as they are. Change something, and run it
again. Kill it in the middle, and run it again: it finishes that round. Remove the directory ``folder-sync-data`` to
begin anew; the next round then only adds, as nobody knows what was there before.

Each round is an instance. Its result, what both sides had at its end, is the input of the next one. Names and contents
are kept the same, modes and times are not.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import trio

import memable

#: What is being written has such a name, and takes its own when it is complete.
UNFINISHED = ".folder-sync-"

Snapshot: TypeAlias = dict[str, str]
"Digest of each file's content, by its path relative to the folder."


@dataclass(frozen=True)
class Action:
    """
    A file to copy or to delete, if it still is what it was when the plan was made.
    """

    path: str
    kind: Literal["copy", "delete"]
    source: Path
    "The folder whose file, or whose lack of one, is the newer state."
    target: Path
    "The folder that is changed."
    digest: str | None
    "Of the file in the source; None if there is none."
    replaces: str | None
    "Digest of the file in the target; None if there is none."


@dataclass(frozen=True)
class Round:
    """
    What a round came to.
    """

    same: Snapshot
    "What both folders had at its end, and of conflicts what they had last: by this the next round tells what changed."
    conflicts: tuple[str, ...]
    "Files that differ on both sides, and were left alone."
    copied: int
    deleted: int


# Looking --------------------------------------------------------------------------------------------------------------


def take_snapshot(folder: Path) -> Snapshot:
    """
    Return what is in *folder*: regular files only, and nothing behind a symbolic link.
    """
    found: Snapshot = {}
    # A folder that cannot be read is not an empty one: everything in it would be deleted on the other side.
    for directory, _, names in os.walk(folder, onerror=_raise):
        for name in names:
            path = Path(directory, name)
            digest = None if name.startswith(UNFINISHED) else digest_of(path)
            if digest is not None:
                found[str(path.relative_to(folder))] = digest
    return found


def _raise(error: OSError) -> None:
    raise error


def digest_of(path: Path) -> str | None:
    """
    Return a digest of a regular file; None if there is none.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return None
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return None


# Planning -------------------------------------------------------------------------------------------------------------


def make_plan(
    left: Path, right: Path, before: Snapshot, in_left: Snapshot, in_right: Snapshot
) -> tuple[list[Action], set[str]]:
    """
    Return what is to be done, and the conflicts. Nothing but values in and values out.
    """
    actions: dict[str, Action] = {}
    conflicts: set[str] = set()
    for path in sorted(in_left.keys() | in_right.keys()):
        old, one, other = before.get(path), in_left.get(path), in_right.get(path)
        if one == other:
            continue
        if other == old:
            actions[path] = Action(path, "delete" if one is None else "copy", left, right, one, other)
        elif one == old:
            actions[path] = Action(path, "delete" if other is None else "copy", right, left, other, one)
        else:
            conflicts.add(path)
    remaining = {path for path in in_left.keys() | in_right.keys() if not _is_deleted(actions.get(path))}
    for path in remaining:
        for parent in map(str, Path(path).parents):
            # A file on one side, and a folder of the same name on the other.
            if parent in remaining:
                conflicts |= {path, parent}
    return [action for path, action in actions.items() if path not in conflicts], conflicts


def _is_deleted(action: Action | None) -> bool:
    return action is not None and action.kind == "delete"


# Acting ---------------------------------------------------------------------------------------------------------------


async def carry_out(action: Action, token: str) -> bool:
    """
    Copy or delete; return False if somebody has changed a file meanwhile, which is then left alone.
    """
    # Not ctx.step_in_thread: the thread of a step that is cancelled there goes on, and could meet its successor.
    return await trio.to_thread.run_sync(_carry_out, action, token)


def _carry_out(action: Action, token: str) -> bool:
    source, target = action.source / action.path, action.target / action.path
    if target.parent.resolve() != action.target / Path(action.path).parent:
        # There is a symbolic link on the way, and who knows where to.
        return False
    found = digest_of(target)
    if found == action.digest and (found is not None or not os.path.lexists(target)):
        # A crash came between the effect and its record.
        return True
    if found != action.replaces:
        return False
    if action.kind == "copy":
        return _copy(source, target, action, token)
    target.unlink()
    _sync_directory(target.parent)
    _remove_empty_parents(target, action.target)
    return True


def _copy(source: Path, target: Path, action: Action, token: str) -> bool:
    try:
        content = source.read_bytes()
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileNotFoundError, FileExistsError, NotADirectoryError):
        return False
    if hashlib.sha256(content).hexdigest() != action.digest or (action.replaces is None and os.path.lexists(target)):
        return False
    # The token is the same after a crash, so that what the crash left is written over.
    unfinished = target.with_name(UNFINISHED + token)
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(target)
    _sync_directory(target.parent)
    return True


def _remove_empty_parents(path: Path, folder: Path) -> None:
    """Remove what a deleted file leaves behind, so that a file may take the name of its folder."""
    for parent in path.parents:
        if parent == folder:
            return
        try:
            parent.rmdir()
        except OSError:
            return


def _sync_directory(directory: Path) -> None:
    """Make a new or a missing name durable: the record that says so will be."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# The workflow ---------------------------------------------------------------------------------------------------------


def key_of(action: Action) -> str:
    """
    Return the name of an action's child: readable as far as a key may be long, and unique.
    """
    path = os.fsencode(action.path)
    return f"{urllib.parse.quote(path, safe='')[-150:]}:{hashlib.sha256(path).hexdigest()[:16]}".lstrip("_")


async def act(ctx: memable.Context, action: Action) -> bool:
    return await ctx.step("carry-out:v1", carry_out, action, ctx.step_id("carry-out:v1"))


@memable.workflow
async def synchronise(ctx: memable.Context, left: Path, right: Path, before: Snapshot) -> Round:
    in_left = await ctx.step_in_thread("look-left:v1", take_snapshot, left)
    in_right = await ctx.step_in_thread("look-right:v1", take_snapshot, right)
    actions, conflicts = make_plan(left, right, before, in_left, in_right)

    # A file may take the place of a folder, so all that is deleted is deleted first.
    deletions = [action for action in actions if action.kind == "delete"]
    copies = [action for action in actions if action.kind == "copy"]
    deleted = await ctx.fan_out("delete", act, deletions, limit=4, item_key=key_of)
    copied = await ctx.fan_out("copy", act, copies, limit=4, item_key=key_of)

    same = {path: digest for path, digest in in_left.items() if in_right.get(path) == digest}
    for action, is_done in zip(deletions + copies, deleted + copied, strict=True):
        if not is_done:
            conflicts.add(action.path)
        elif action.digest is not None:
            same[action.path] = action.digest
    # What is in conflict is told apart by what was the same at last, until somebody has settled it.
    same |= {path: before[path] for path in conflicts if path in before}
    return Round(same, tuple(sorted(conflicts)), sum(copied), sum(deleted))


async def run_round(engine: memable.Engine, left: Path, right: Path) -> Round:
    """
    Finish the last round if it was cut short; else run the next one.

    ``resume`` continues a round that failed or was cancelled, and is a handle on one that runs already.
    """
    prefix = hashlib.sha256(os.fsencode(left) + b"\0" + os.fsencode(right)).hexdigest()[:16] + "-round-"
    rounds = [one for one in await engine.list_instances(synchronise) if one.instance_id.startswith(prefix)]
    before: Snapshot = {}
    number = 1
    if rounds:
        last = rounds[-1]
        # One that failed, as the disk was full, say, goes on where it stopped; one that is complete stays as it is.
        result = await (await engine.resume(synchronise, last.instance_id)).result()
        if last.status is not memable.MetadataStatus.COMPLETED:
            return result
        before = result.same
        number = int(last.instance_id.removeprefix(prefix)) + 1
    invocation = await engine.invoke(synchronise, left, right, before, instance_id=f"{prefix}{number}")
    # The new round has all that is needed of the ones before.
    for old in rounds:
        await engine.delete(synchronise, old.instance_id)
    return await invocation.result()


async def make_example(left: trio.Path, right: trio.Path) -> None:
    for folder, names in ((left, ("poems/spring.txt", "tea.txt")), (right, ("letter.txt",))):
        await (folder / "poems").mkdir(parents=True, exist_ok=True)
        for name in names:
            await (folder / name).write_text(f"this is {name}, first found in {folder.name}\n")


async def main(words: Sequence[str] = ()) -> None:
    left, right = (trio.Path(word) for word in (words or ("sync-left", "sync-right")))
    if not words and not await left.exists():
        await make_example(left, right)
    folders = Path(await left.resolve(strict=True)), Path(await right.resolve(strict=True))
    async with memable.open_engine("folder-sync-data", workflows=[synchronise]) as engine:
        done = await run_round(engine, *folders)
    same = done.same.keys() - set(done.conflicts)
    print(f"{done.copied} copied, {done.deleted} deleted, {len(same)} files are the same on both sides")
    for path in done.conflicts:
        print("conflict, both sides left alone:", path)


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
