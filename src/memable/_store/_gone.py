"""
What is still in the log though nobody needs it: lines that say nothing any more, and records of removals.

There may be millions of either, so they are held in pages of about a thousand: who goes through all of them does so
page by page, and others may add and remove in between.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence

import attrs

#: Lines of one page began in the same 64 KiB of the log.
_SPAN_PAGE_SHIFT = 24
#: The instances of one page have the same number but for so many bits.
_NUMBER_PAGE_SHIFT = 10


@attrs.define(eq=False)
class SpanSet:
    """
    A set of spans. May be asked in any thread.
    """

    _pages: dict[int, set[int]] = attrs.field(factory=dict[int, set[int]], init=False)

    def __contains__(self, span: object) -> bool:
        page = self._pages.get(span >> _SPAN_PAGE_SHIFT) if isinstance(span, int) else None
        return page is not None and span in page

    def add(self, span: int) -> None:
        """
        Take a span in.
        """
        self._pages.setdefault(span >> _SPAN_PAGE_SHIFT, set()).add(span)

    def discard_all(self, spans: Iterable[int]) -> None:
        """
        Leave these out, if they are in.
        """
        if not self._pages:
            return
        for span in spans:
            page = self._pages.get(span >> _SPAN_PAGE_SHIFT)
            if page is not None and span in page:
                page.discard(span)
                if not page:
                    del self._pages[span >> _SPAN_PAGE_SHIFT]

    def pages(self) -> Iterator[array[int]]:
        """
        Yield all, page by page. What is taken in or left out in between may be among them, or not.
        """
        for key in list(self._pages):
            yield array("Q", self._pages.get(key, ()))


@attrs.frozen
class Tombstone:
    """
    The record of a removal, and where older lines of its instance may still be.
    """

    span: int
    segments: frozenset[int]
    "Without its own, in which they are if the instance was short-lived."


@attrs.define(eq=False)
class Tombstones:
    """
    Those that are needed, or may be, by the numbers of the removed instances. May be asked in any thread.
    """

    _pages: dict[int, dict[int, Tombstone]] = attrs.field(factory=dict[int, dict[int, Tombstone]], init=False)
    _sets: dict[frozenset[int], frozenset[int]] = attrs.field(factory=dict[frozenset[int], frozenset[int]], init=False)
    "As many have few sets of segments between them. Those that nobody has any more go with the next review."

    def get(self, number: int) -> Tombstone | None:
        """
        Return the tombstone of an instance, or None.
        """
        page = self._pages.get(number >> _NUMBER_PAGE_SHIFT)
        return None if page is None else page.get(number)

    def put(self, number: int, span: int, segments: frozenset[int]) -> None:
        """
        Take in the tombstone of an instance.
        """
        page = self._pages.setdefault(number >> _NUMBER_PAGE_SHIFT, {})
        page[number] = Tombstone(span, self._sets.setdefault(segments, segments))

    def review(self, numbers: range, since: int) -> Iterator[Sequence[int]]:
        """
        Take note that there is nothing left in some segments of what was removed. In steps; see ``Space``.

        Yields:
            After each step, the spans of those tombstones that are not needed any more, and were left out for that.
        """
        sets: dict[frozenset[int], frozenset[int]] = {}
        for key in list(self._pages):
            gone: list[int] = []
            page = self._pages[key]
            for number, tombstone in list(page.items()):
                left = tombstone.segments
                if tombstone.span < since and not left.isdisjoint(numbers):
                    left = frozenset(segment for segment in left if segment not in numbers)
                    if not left:
                        gone.append(tombstone.span)
                        del page[number]
                        continue
                kept = sets.setdefault(left, left)
                if kept is not tombstone.segments:
                    page[number] = Tombstone(tombstone.span, kept)
            if not page:
                del self._pages[key]
            yield gone
        # Without those that were only of tombstones that went. What came meanwhile has its own for once.
        self._sets = sets

    def pages(self) -> Iterator[list[tuple[int, Tombstone]]]:
        """
        Yield all, page by page. What is put in between may be among them, or not.
        """
        for key in list(self._pages):
            yield list(self._pages.get(key, {}).items())
