"""
Makes stored text fit to be shown: what a terminal would obey, or what would hide or reorder other text, is escaped.

Whoever can start an instance or send a signal decides what is stored. None of it may move a cursor, retitle a window,
pretend to be another line, or turn the reading direction around. Escapes are those of JSON, so that a JSON text stays
one, and stays the same.
"""

from __future__ import annotations

import re

from .._json import JSON, dumps

#: Control characters, line and paragraph separators, surrogates, and what is invisible or changes the direction.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)
_NOT_ASCII = re.compile("[^\x20-\x7e]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_BEYOND_16_BITS = 0x10000

CUT_MARK = " [...]"


def escape_line(text: str) -> str:
    """
    Return *text* on one line, with everything unsafe in it escaped.
    """
    return _UNSAFE.sub(_escape, text)


def escape_lines(text: str) -> str:
    """
    Return a *text* of several lines, such as a traceback, with everything else that is unsafe in it escaped.
    """
    return "\n".join(escape_line(line.replace("\t", "    ")) for line in text.split("\n"))


def cut(text: str, limit: int | None) -> str:
    """
    Return *text*, or its first *limit* characters and a mark if there are more.
    """
    return text if limit is None or len(text) <= limit else text[:limit] + CUT_MARK


def json_line(tree: JSON, *, encoding: str = "utf-8") -> str:
    """
    Return *tree* as JSON on one line that a terminal shows as it is and *encoding* can express.
    """
    text = _UNSAFE.sub(_escape, dumps(tree).decode("utf-8"))
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return _NOT_ASCII.sub(_escape, text)
    return text


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    if code < _BEYOND_16_BITS:
        return _SHORT.get(character) or f"\\u{code:04x}"
    high, low = divmod(code - _BEYOND_16_BITS, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
