r"""
The form of a str: itself, but for one that JSON would change.

Rules: JSON writes a character beyond 16 bits as a high surrogate and a low one, and so cannot tell it from a str that
holds these two code points. A str in which one stands just before the other is an object of one key, ``$str``, with
its pieces, cut within each such pair: ``{"$str": ["a\ud83d", "\ude00b"]}``. Every other str is itself.
"""

from __future__ import annotations

import re
from typing import Any

from .._json import JSON, SURROGATE_PAIR
from ._shape import misfit

_TAG = "$str"
_WITHIN_PAIR = re.compile("(?<=[\ud800-\udbff])(?=[\udc00-\udfff])")


def has_surrogate_pair(text: str) -> bool:
    """
    Tell whether JSON would make one character of two that are in *text*.
    """
    if text.isascii():
        return False
    try:
        # Far faster than to search, and nearly no text has a surrogate in it.
        text.encode()
    except UnicodeEncodeError:
        return SURROGATE_PAIR.search(text) is not None
    return False


def text_form(text: str) -> JSON:
    """
    Return the form of *text*.
    """
    return {_TAG: list(_WITHIN_PAIR.split(text))} if has_surrogate_pair(text) else text


def read_text(form: Any) -> str:
    """
    Return the str that `text_form` made *form* of.

    Raises:
        UnfitError: It is no form of a str.
    """
    if type(form) is str:
        return form
    pieces = form.get(_TAG) if type(form) is dict else None
    if type(pieces) is list and all(type(piece) is str for piece in pieces):
        text = "".join(pieces)
        if text_form(text) == form:
            return text
    raise misfit(form, "builtins.str")
