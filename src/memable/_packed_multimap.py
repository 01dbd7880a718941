"""
Keeps millions of pairs of numbers in order, in the 16 bytes that a pair needs.

A list of Python's own would take ten times as much. The pairs stand in buckets of two arrays each, one of the keys and
one of the values beside them; what changes is one bucket. Pairs are in the order of their keys, and of their values
within a key. A pair may be held more than once. A copy shares its buckets with the original, until one of them changes.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Any, Generic, Literal, TypeAlias, TypeVar

Chunks: TypeAlias = "bytes | list[array[int]] | list[array[float]]"
"Numbers of eight bytes each, as this machine holds them in memory: in one piece or in several."
Parts: TypeAlias = tuple[Chunks, Chunks]
"The keys and the values of a multimap."

K = TypeVar("K", int, float)

#: A bucket that grows beyond this is split. Larger ones take longer to insert into, smaller ones longer to find.
MAX_BUCKET = 1024
#: A bucket that shrinks below this is joined with its neighbour, if both fit into one.
MIN_BUCKET = 256
#: As many are put into each bucket at first, when all are known: so there is room to insert.
_FILL = 896


class PackedMultimap(Generic[K]):
    """
    Pairs of a key and a value, sorted. Values are integers from 0 to 2**64 - 1.

    Args:
        typecode: What the keys are, in the words of the module ``array``: ``"Q"`` for integers like the values, ``"d"``
            for floats.
    """

    def __init__(self, typecode: Literal["Q", "d"]) -> None:
        self._typecode = typecode
        self._keys: list[array[K]] = []
        "The keys of each bucket. No bucket is empty."
        self._values: list[array[int]] = []
        self._first_keys: list[K] = []
        "The first key of each bucket."
        self._first_values: list[int] = []
        self._is_shared: list[bool] = []
        "Of each bucket, whether it must be copied before it is changed."
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[K, int]]:
        for keys, values in zip(self._keys, self._values, strict=True):
            yield from zip(keys, values, strict=True)

    def insert(self, key: K, value: int) -> None:
        """
        Add a pair.
        """
        self._count += 1
        if not self._keys:
            self._put(0, array(self._typecode, (key,)), array("Q", (value,)))
            return
        index = self._bucket_of(key, value)
        if self._is_shared[index]:
            self._own(index)
        keys, values = self._keys[index], self._values[index]
        place = _place_of(keys, values, key, value)
        keys.insert(place, key)
        values.insert(place, value)
        if place == 0:
            self._first_keys[index], self._first_values[index] = key, value
        count = len(keys)
        if count > MAX_BUCKET:
            # Where pairs come in their order, the buckets behind them stay full.
            is_growing = index + 1 == len(self._keys) and place + 1 == count
            self._split(index, count - 1 if is_growing else count // 2)

    def extend(self, keys: list[K], values: list[int]) -> None:
        """
        Add pairs that are in their order. Those that belong behind all others take hardly any time.
        """
        last = (self._keys[-1][-1], self._values[-1][-1]) if self._keys else None
        start = 0
        if last is not None:
            while start < len(keys) and (keys[start], values[start]) < last:
                self.insert(keys[start], values[start])
                start += 1
        while start < len(keys):
            room = _FILL - len(self._keys[-1]) if self._keys else 0
            if room > 0:
                index = len(self._keys) - 1
                if self._is_shared[index]:
                    self._own(index)
                self._keys[index].extend(keys[start : start + room])
                self._values[index].extend(values[start : start + room])
            else:
                room = _FILL
                new_keys = array(self._typecode, keys[start : start + room])
                self._put(len(self._keys), new_keys, array("Q", values[start : start + room]))
            self._count += min(room, len(keys) - start)
            start += room

    def remove(self, key: K, value: int) -> None:
        """
        Take a pair out.

        Raises:
            KeyError: It is not there.
        """
        if not self._keys:
            raise KeyError((key, value))
        index = self._bucket_of(key, value)
        keys, values = self._keys[index], self._values[index]
        place = _place_of(keys, values, key, value)
        if place == len(keys) or keys[place] != key or values[place] != value:
            raise KeyError((key, value))
        if self._is_shared[index]:
            self._own(index)
            keys, values = self._keys[index], self._values[index]
        del keys[place], values[place]
        self._count -= 1
        if not keys:
            self._take_out(index)
            return
        if place == 0:
            self._first_keys[index], self._first_values[index] = keys[0], values[0]
        if len(keys) < MIN_BUCKET:
            self._join(index)

    def values(self, key: K) -> list[int]:
        """
        Return the values of a key, the smallest first.
        """
        index = bisect_right(self._first_keys, key) - 1
        if index < 0:
            return []
        keys = self._keys[index]
        end = bisect_right(keys, key)
        if end == 0 or keys[end - 1] != key:
            return []
        start = bisect_left(keys, key, 0, end)
        found = self._values[index][start:end].tolist()
        while start == 0 and index > 0:
            # They may begin in an earlier bucket.
            index -= 1
            start = bisect_left(self._keys[index], key)
            found = self._values[index][start:].tolist() + found
        return found

    def first(self) -> tuple[K, int] | None:
        """
        Return the first pair, or None.
        """
        return (self._first_keys[0], self._first_values[0]) if self._keys else None

    def up_to(self, key: K, limit: int) -> list[int]:
        """
        Return the values of the first pairs whose keys are not greater, *limit* of them at most, in their order.
        """
        found: list[int] = []
        for keys, values in zip(self._keys, self._values, strict=True):
            end = bisect_right(keys, key)
            found += values[: min(end, limit - len(found))]
            if end < len(keys) or len(found) >= limit:
                break
        return found

    def to_parts(self) -> tuple[list[array[K]], list[array[int]]]:
        """
        Return all keys and all values in their order, in pieces that do not change any more. Copies hardly anything.
        """
        self._is_shared = [True] * len(self._keys)
        return self._keys.copy(), self._values.copy()

    @classmethod
    def from_parts(cls, typecode: Literal["Q", "d"], keys: Chunks, values: Chunks) -> PackedMultimap[K]:
        """
        Return the pairs that ``to_parts`` gave, of a machine that holds numbers alike.
        """
        self = cls(typecode)
        all_keys = keys if isinstance(keys, bytes) else b"".join(keys)
        all_values = values if isinstance(values, bytes) else b"".join(values)
        step = 8 * _FILL
        for start in range(0, len(all_keys), step):
            bucket_keys: array[Any] = array(typecode, all_keys[start : start + step])
            self._put(len(self._keys), bucket_keys, array("Q", all_values[start : start + step]))
        self._count = len(all_keys) // 8
        return self

    def _bucket_of(self, key: K, value: int) -> int:
        """Return the last bucket that begins with the pair or one before it, else the first."""
        end = bisect_right(self._first_keys, key)
        if end and self._first_keys[end - 1] == key:
            start = bisect_left(self._first_keys, key, 0, end)
            end = bisect_right(self._first_values, value, start, end)
        return end - 1 if end else 0

    def _put(self, index: int, keys: array[K], values: array[int]) -> None:
        self._keys.insert(index, keys)
        self._values.insert(index, values)
        self._first_keys.insert(index, keys[0])
        self._first_values.insert(index, values[0])
        self._is_shared.insert(index, False)

    def _own(self, index: int) -> None:
        self._keys[index], self._values[index] = self._keys[index][:], self._values[index][:]
        self._is_shared[index] = False

    def _take_out(self, index: int) -> None:
        del self._keys[index], self._values[index], self._is_shared[index]
        del self._first_keys[index], self._first_values[index]

    def _split(self, index: int, place: int) -> None:
        """Split a bucket. Slices, since an array that is cut keeps its memory."""
        keys, values = self._keys[index], self._values[index]
        self._put(index + 1, keys[place:], values[place:])
        self._keys[index], self._values[index] = keys[:place], values[:place]

    def _join(self, index: int) -> None:
        """Join a bucket with the one behind it or the one before it, if they fit into one."""
        for left in (index, index - 1):
            if 0 <= left < len(self._keys) - 1 and len(self._keys[left]) + len(self._keys[left + 1]) <= _FILL:
                keys = self._keys[left] + self._keys[left + 1]
                values = self._values[left] + self._values[left + 1]
                self._take_out(left + 1)
                self._keys[left], self._values[left] = keys, values
                self._is_shared[left] = False
                return


def _place_of(keys: array[K], values: array[int], key: K, value: int) -> int:
    """Return where in a bucket a pair stands, or would."""
    end = bisect_right(keys, key)
    if end == 0 or keys[end - 1] != key:
        return end
    return bisect_left(values, value, bisect_left(keys, key, 0, end), end)
