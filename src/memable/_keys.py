"""
What a name, a key or an instance id may be.

Decided here: the one rule for workflow names, keys, suspend points and instance ids, and how keys join into paths.
Keys hold no ``/``, so joining them with it is injective: two different places in an instance never share a path.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ._errors import InvalidKeyError

#: Room for a UUID, a URL's host and a date together; short enough that keys stay readable in a listing.
MAX_KEY_BYTES = 255

#: Nothing but the separator is printable of these, by which most keys are told from others in half the time.
_FORBIDDEN = re.compile("[/\x00-\x1f\x7f-\x9f\ud800-\udfff]")
SEPARATOR = "/"


def check_key(component: str, value: object) -> str:
    """
    Return *value* as a plain ``str`` if it may be used as a name, key or id.

    Args:
        component: What it is, for the message: ``"key"``, ``"instance id"``, ``"workflow name"``.
        value: What the user gave.

    Raises:
        InvalidKeyError: It is not a non-empty ``str`` of at most 255 bytes of UTF-8, or has a ``/``, a control
            character or a surrogate in it, or starts with ``_``. Choose another one.
    """
    if not isinstance(value, str):
        raise InvalidKeyError(component=component, value=value, problem=f"is of type {type(value).__name__}, not str")
    # A subclass of str (an enum's member, say) is recorded as the text that it holds.
    text = value if type(value) is str else str.__str__(value)
    if not text:
        problem = "is empty"
    elif text[0] == "_":
        problem = "starts with '_', which is reserved for memable"
    elif not (text.isprintable() and SEPARATOR not in text) and (found := _FORBIDDEN.search(text)) is not None:
        problem = f"has {_describe(found[0])} at position {found.start()}"
    elif len(text) > MAX_KEY_BYTES or (not text.isascii() and len(text.encode()) > MAX_KEY_BYTES):
        problem = f"is {len(text.encode())} bytes long in UTF-8, more than {MAX_KEY_BYTES}"
    else:
        return text
    raise InvalidKeyError(component=component, value=value, problem=problem)


def check_instance_id(value: object) -> str:
    """
    Return *value* as a plain ``str`` if an instance can have it as its id, children included.

    Raises:
        InvalidKeyError: No instance can: a child's id is that of its parent and its path, joined with ``/``; each part
            must be a key.
    """
    if not isinstance(value, str) or SEPARATOR not in value:
        return check_key("instance id", value)
    return SEPARATOR.join(check_key("instance id", part) for part in str.__str__(value).split(SEPARATOR))


def check_path(value: object) -> str:
    """
    Return *value* as a plain ``str`` if it can be a path within an instance.

    Raises:
        InvalidKeyError: It is not made of keys, joined with ``/``.
    """
    if not isinstance(value, str):
        return check_key("path", value)
    return SEPARATOR.join(check_key("path", part) for part in str.__str__(value).split(SEPARATOR))


def _describe(character: str) -> str:
    if character == SEPARATOR:
        return "a '/'"
    if "\ud800" <= character <= "\udfff":
        return f"a surrogate (U+{ord(character):04X})"
    return f"a control character (U+{ord(character):04X})"


def ancestors(path: str) -> Iterator[str]:
    """
    Yield the paths that contain *path*, outermost first.
    """
    at = path.find(SEPARATOR)
    while at >= 0:
        yield path[:at]
        at = path.find(SEPARATOR, at + 1)
