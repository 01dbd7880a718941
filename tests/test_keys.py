"""
What a name, a key or an instance id may be.
"""

from __future__ import annotations

import enum
import sys
from typing import Any

import pytest

import memable
from memable._keys import _FORBIDDEN, MAX_KEY_BYTES, SEPARATOR, check_key


class Color(enum.StrEnum):
    RED = "red"
    BAD = "red/b"


@pytest.mark.parametrize(
    "key",
    ["a", "fetch:v1", "a b", " ", "a_", "-", ".", "..", "é", "日本", "🦊", "a\u2028b", "\u202e", "x" * 255, "é" * 127],
)
def test_key_of_ordinary_text_is_taken(key: str):
    """
    Any text without separators, control characters and surrogates is a key, up to 255 bytes of UTF-8.
    """
    assert check_key("key", key) == key


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("", "is empty"),
        ("_a", "starts with '_', which is reserved for memable"),
        ("_", "starts with '_', which is reserved for memable"),
        ("a/b", "has a '/' at position 1"),
        ("/", "has a '/' at position 0"),
        ("a\n", r"has a control character (U+000A) at position 1"),
        ("\x00", "has a control character (U+0000) at position 0"),
        ("\x1f", "has a control character (U+001F) at position 0"),
        ("\x7f", "has a control character (U+007F) at position 0"),
        ("\x80", "has a control character (U+0080) at position 0"),
        ("\x9f", "has a control character (U+009F) at position 0"),
        ("ab\ud800", "has a surrogate (U+D800) at position 2"),
        ("\udfff" * 300, "has a surrogate (U+DFFF) at position 0"),
        ("x" * 256, "is 256 bytes long in UTF-8, more than 255"),
        ("é" * 128, "is 256 bytes long in UTF-8, more than 255"),
        ("🦊" * 64, "is 256 bytes long in UTF-8, more than 255"),
        ("x" * 10**6, "is 1000000 bytes long in UTF-8, more than 255"),
        (None, "is of type NoneType, not str"),
        (1, "is of type int, not str"),
        (b"a", "is of type bytes, not str"),
        (["a"], "is of type list, not str"),
        (Color.BAD, "has a '/' at position 3"),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_key_that_breaks_the_rule_is_refused(key: Any, problem: str):
    """
    Whatever breaks the rule is an InvalidKeyError that names the component, the value and what is wrong with it.
    """
    with pytest.raises(memable.InvalidKeyError, match="use a non-empty str") as caught:
        check_key("workflow name", key)
    error = caught.value
    assert (error.component, error.problem) == ("workflow name", problem)
    assert error.value == (key if isinstance(key, (str, int, bytes, type(None))) else repr(key))
    assert str(error).startswith("workflow name ")
    assert f" {problem}; use a non-empty str of at most 255 bytes of UTF-8 without '/'" in str(error)
    assert len(str(error)) < 600
    assert isinstance(error, ValueError)


def test_key_of_a_str_subclass_is_recorded_as_plain_text():
    """
    A member of a string enum is taken as the text that it holds.
    """
    key = check_key("key", Color.RED)
    assert (type(key), key) == (str, "red")


def test_key_limit_is_in_bytes():
    """
    The limit is the contract's: 255 bytes of UTF-8.
    """
    assert MAX_KEY_BYTES == 255


def test_key_of_a_str_subclass_that_is_refused_is_kept_as_plain_text():
    """
    The error holds the text of a refused enum member, so that it can be pickled wherever it goes.
    """
    with pytest.raises(memable.InvalidKeyError, match="key 'red/b' has a '/' at position 3") as caught:
        check_key("key", Color.BAD)
    assert type(caught.value.value) is str


def test_forbidden_characters_but_the_separator_are_not_printable():
    """
    So a key that can be printed, and has no separator in it, has none of them.
    """
    forbidden = [character for character in map(chr, range(sys.maxunicode + 1)) if _FORBIDDEN.match(character)]
    assert [character for character in forbidden if character.isprintable()] == [SEPARATOR]
