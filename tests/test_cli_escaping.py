"""
Stored text as it is shown: nothing in it is obeyed, nothing of it is lost.
"""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memable._cli._escaping import cut, escape_line, escape_lines, json_line

#: What a terminal obeys, what nobody sees, and what turns text around: categories of Unicode.
UNSAFE = ("Cc", "Cs", "Zl", "Zp")
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.text(st.characters()))
def test_escape_line_leaves_nothing_to_obey(text: str):
    """
    Whatever the text, it is on one line, has no control character in it, and turns no direction around.
    """
    shown = escape_line(text)
    assert [character for character in shown if unicodedata.category(character) in UNSAFE] == []
    assert [character for character in shown if unicodedata.bidirectional(character) in BIDIRECTIONAL] == []


BIDIRECTIONAL = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("caf\xe9 \u4f60\U0001f600", "caf\xe9 \u4f60\U0001f600"),
        ("a\tb\r\n", r"a\tb\r\n"),
        ("\x1b[31m\x9b\x7f", r"\u001b[31m\u009b\u007f"),
        ("\u202e\u2066\u200b\ufeff\u2028", r"\u202e\u2066\u200b\ufeff\u2028"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\udb40\udc41"),
        ("[red]:smile:", "[red]:smile:"),
    ],
    ids=["harmless", "white space", "controls", "invisible", "surrogate", "tag", "markup"],
)
def test_escape_line_shows_what_is_unsafe(text: str, shown: str):
    """
    What is unsafe is shown as JSON would write it, and the rest as it is.
    """
    assert escape_line(text) == shown


def test_escape_lines_keeps_lines():
    """
    A traceback keeps its lines and its indentation.
    """
    assert escape_lines("a\n\tb\x1b\n  c\r") == "a\n    b\\u001b\n  c\\r"


@given(TREES, st.sampled_from(["utf-8", "ascii", "latin-1"]))
def test_json_line_is_the_same_json(tree: object, encoding: str):
    """
    The JSON that is printed is the value that is stored, on one line, in whatever can be written.
    """
    line = json_line(tree, encoding=encoding)  # type: ignore[arg-type] - a strategy's type says too little
    assert json.loads(line) == tree
    assert escape_line(line) == line
    line.encode(encoding)


def test_cut_says_that_it_cut():
    """
    What is longer than the limit is cut and marked; no limit cuts nothing.
    """
    assert (cut("abc", 3), cut("abcd", 3), cut("abcd", None)) == ("abc", "abc [...]", "abcd")
