"""
Text on its way to a log, in parts where it is long: so that what is long is written from where it is, and not copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, TypeGuard

Text: TypeAlias = bytes | tuple[bytes, ...]
"The text of a record, or a line: as it is or, if it is long, in parts of which at least one is."

#: A part of so many bytes is not copied. Of shorter ones a copy takes less time than to write it by itself.
LONG_BYTES = 32 * 1024


def size_of(text: Text) -> int:
    """
    Return how many bytes a text has.
    """
    return len(text) if isinstance(text, bytes) else sum(map(len, text))


def are_whole(texts: Sequence[Text]) -> TypeGuard[Sequence[bytes]]:
    """
    Tell whether none of some texts is in parts.
    """
    return {*map(type, texts)} == {bytes}


def join_short(texts: Sequence[Text]) -> list[bytes]:
    """
    Return the same bytes in as few parts as can be without copying what is long.
    """
    if are_whole(texts):
        return [b"".join(texts)]
    joined: list[bytes] = []
    short: list[bytes] = []
    for text in texts:
        if isinstance(text, bytes):
            short.append(text)
            continue
        for part in text:
            if len(part) < LONG_BYTES:
                short.append(part)
                continue
            if short:
                joined.append(b"".join(short))
                short = []
            joined.append(part)
    if short:
        joined.append(b"".join(short))
    return joined
