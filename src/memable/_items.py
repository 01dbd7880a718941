"""
Goes through the items of a fan-out: names them, digests them, and compares them with those that are recorded.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import attrs

from ._errors import DuplicateKeyError, InvalidKeyError, ItemsChangedError, SerializationError
from ._journal import FanOutItems
from ._json import canonical
from ._keys import SEPARATOR, check_key
from ._run import Run

#: Digests are to tell items apart, not to resist attacks: so many hexadecimal digits.
DIGEST_DIGITS = 32


@attrs.define
class Child:
    """
    One child of a fan-out.
    """

    index: int
    "Place of its item, from 0."
    name: str
    "What it is called in paths."
    path: str
    item: Any
    digest: str
    "Of the canonical JSON of its item."


class Items:
    """
    An iterator over the children that the items of a fan-out make.

    Takes no item before it is asked for the next child.
    """

    def __init__(
        self, run: Run, path: str, items: Iterable[Any], annotation: Any, item_key: Callable[[Any], str] | None
    ) -> None:
        """
        Begin with the first item.

        Args:
            run: The run.
            path: Path of the fan-out.
            items: The user's.
            annotation: The annotated type of an item.
            item_key: Names a child by its item; by its place if left out.
        """
        self._run = run
        self._path = path
        self._items: Iterator[Any] = iter(items)
        self._annotation = annotation
        self._item_key = item_key
        self._count = 0
        self._names: set[str] = set()
        "Those given by *item_key* so far."

    def __iter__(self) -> Iterator[Child]:
        return self

    def __next__(self) -> Child:
        item = next(self._items)
        index = self._count
        name = str(index) if self._item_key is None else self._name(item)
        digest = self._digest(item)
        self._count += 1
        return Child(index, name, self._path + SEPARATOR + name, item, digest)

    def _name(self, item: Any) -> str:
        assert self._item_key is not None
        run = self._run
        # What it really gives may be anything.
        given: object = self._item_key(item)
        if inspect.iscoroutine(given):
            given.close()
            raise run.misuse(
                "item_key is an async function; give a plain one that returns the child's name", self._path
            )
        try:
            name = check_key("item key", given)
        except InvalidKeyError as error:
            error.workflow, error.instance_id = run.workflow_name, run.instance_id
            raise run.blame(error) from None
        if name in self._names:
            path = self._path + SEPARATOR + name
            raise run.blame(DuplicateKeyError(workflow=run.workflow_name, instance_id=run.instance_id, key=path))
        self._names.add(name)
        return name

    def _digest(self, item: Any) -> str:
        codec = self._run.services.codec
        try:
            try:
                encoded = codec.encode(item, self._annotation)
            except SerializationError:
                # Not annotated, or not with what it is: its own class may tell how it is written.
                encoded = codec.encode(item, type(item))
        except SerializationError as error:
            problem = f"an item of type {type(item).__name__} cannot be recorded: {error.problem}"
            raise self._run.misuse(
                f"{problem}; or give ids as items, and fetch what they stand for in steps", self._path
            ) from error
        return hashlib.sha256(canonical(encoded.data)).hexdigest()[:DIGEST_DIGITS]

    def is_other(self, child: Child, recorded: FanOutItems) -> bool:
        """
        Tell whether another item is recorded for a child.
        """
        return recorded.digests.get(child.name, child.digest) != child.digest

    def changed(self, child: Child) -> BaseException:
        """
        Return the error for a child that is recorded with another item; the run is to blame.
        """
        return self._changed(child.name, child.index, is_missing=False)

    def missing(self, recorded: FanOutItems) -> BaseException:
        """
        Return the error for recorded children that there are no items for; the run is to blame.
        """
        names = self._names if self._item_key is not None else {str(index) for index in range(self._count)}
        index, name = min((index, name) for name, index in recorded.indexes.items() if name not in names)
        return self._changed(name, index, is_missing=True)

    def _changed(self, name: str, index: int, *, is_missing: bool) -> BaseException:
        run = self._run
        return run.blame(
            ItemsChangedError(
                workflow=run.workflow_name,
                instance_id=run.instance_id,
                key=self._path,
                item_key=name,
                index=index,
                is_missing=is_missing,
            )
        )
