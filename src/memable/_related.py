"""
Walks exceptions: the leaves of a group, and everything that an exception drags along.
"""

from __future__ import annotations

from collections.abc import Iterator


def leaves_of(exc: BaseException) -> Iterator[BaseException]:
    """
    Yield the exceptions that a group holds, however deep; of any other exception, itself.
    """
    pending = [exc]
    while pending:
        current = pending.pop()
        if isinstance(current, BaseExceptionGroup):
            pending.extend(reversed(current.exceptions))
        else:
            yield current


def related_to(exc: BaseException) -> Iterator[BaseException]:
    """
    Yield *exc*, its leaves, and the causes and contexts of all of them, each once.

    A context that ``raise ... from None`` hides from tracebacks is yielded, too: it tells what happened, not what is
    to be printed.
    """
    seen: set[int] = set()
    pending = [exc]
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        if isinstance(current, BaseExceptionGroup):
            pending.extend(reversed(current.exceptions))
        pending.extend(other for other in (current.__context__, current.__cause__) if other is not None)
