"""
Plain trees to JSON text and back.
"""

from __future__ import annotations

import json
import math

import pytest

from memable._errors import SerializationError
from memable._json import JSON, canonical, dumps, dumps_finite, loads


def _same(a: object, b: object) -> bool:
    """Tell whether two trees are equal and of the same types: 1, 1.0 and True differ here."""
    return repr(a) == repr(b)


@pytest.mark.parametrize(
    "tree",
    [
        None,
        True,
        -1,
        2**63,
        2**64,
        -(2**200),
        0.1,
        -0.0,
        1.0,
        1e16,
        1e22,
        5e-324,
        1.7976931348623157e308,
        "",
        "a\nb\r\t\0\x7f\u2028\U0001f600",
        [],
        {},
        [[], {}, [{}]],
        {"b": 1, "a": [None, True, 1.5, "x"]},
    ],
)
def test_json_returns_the_tree_that_was_written(tree: object) -> None:
    """
    What is written is read back equal, and of the same types.
    """
    assert _same(loads(dumps(tree)), tree)


@pytest.mark.parametrize(
    "tree",
    [
        "\ud800",
        {"\udfff": 1},
        ["a", {"b": ["\udc00x", 1, 1.5, -0.0, True, False, None, [], {}]}],
        "\ud83d",  # noqa: PT014 - no duplicate, but ruff knows no surrogates
        "\udc00\ud800",
    ],
)
def test_json_keeps_lone_surrogates(tree: object) -> None:
    """
    Text that is no valid Unicode is kept as it is.
    """
    assert _same(loads(dumps(tree)), tree)


PAIR = "\ud83d" + "\ude00"  # two code points, where U+1F600 is one


@pytest.mark.parametrize("tree", [PAIR, f"é{PAIR}x", {PAIR: 1}, ["\ud800", {"a": [f"\ud83d{PAIR}"]}, 10**5000]])
def test_exact_json_refuses_surrogate_pairs(tree: JSON) -> None:
    """
    What JSON cannot tell from one character is refused where the tree is to come back exactly.
    """
    with pytest.raises(ValueError, match=r"high surrogate just before a low one"):
        dumps_finite(tree)


def test_json_for_people_shows_surrogate_pairs_as_characters() -> None:
    """
    A message with a pair of surrogates in it is written all the same, with the character that the pair stands for.
    """
    assert loads(dumps({"message": f"\ud800 {PAIR}", PAIR: None})) == {
        "message": "\ud800 \U0001f600",
        "\U0001f600": None,
    }


@pytest.mark.parametrize("digits", [4299, 4300, 4301, 10_000, 200_000])
@pytest.mark.parametrize("sign", [1, -1])
def test_json_keeps_integers_of_any_size(digits: int, sign: int) -> None:
    """
    The interpreter's limit on the digits of integers does not matter.
    """
    number = sign * (10**digits - 7)
    assert loads(dumps({"n": [number]})) == {"n": [number]}


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("place", ["alone", "list", "dict", "slow"])
def test_json_refuses_inf_and_nan(number: float, place: str) -> None:
    """
    What is no JSON number is refused, never written as null.
    """
    with pytest.raises(SerializationError, match=r"is no JSON number"):
        dumps(
            {"alone": number, "list": [None, number], "dict": {"a": {"b": number}}, "slow": ["\ud800", number]}[place]
        )


def test_json_text_is_one_line_of_utf8() -> None:
    """
    A text never holds a raw newline, so a line of a log can hold it, and it is JSON for others as well.
    """
    for tree in ({"a\nb": "\r\n\ue000\u2028"}, {"a\nb": "\ud800\n", "n": 10**5000}):
        data = dumps(tree)
        assert b"\n" not in data
        assert b"\r" not in data
        assert isinstance(json.loads(data.decode("utf-8"), parse_int=str), dict)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"nul", b"NaN", b"Infinity", b"[1,]", b'"\n"', b"\xff", b'"\xff"', b"1e999", b'["\\ud800", NaN]'],
)
def test_json_refuses_what_is_no_json(data: bytes) -> None:
    """
    Bytes that are no JSON are a ValueError, whichever of both readers sees them.
    """
    with pytest.raises(ValueError, match=r"."):
        loads(data)


def _nested(levels: int, innermost: object) -> object:
    for _ in range(levels):
        innermost = [innermost]
    return innermost


@pytest.mark.parametrize("innermost", [1, "\ud800"])
def test_json_refuses_deep_nesting_clearly(innermost: object) -> None:
    """
    A tree nested too deeply is a clear error, neither a RecursionError nor a crash.
    """
    with pytest.raises(SerializationError, match=r"nested too deeply"):
        dumps(_nested(100_000, innermost))


@pytest.mark.parametrize("first", [b"1", b'"\\ud800"'])
def test_json_refuses_to_read_deep_nesting_clearly(first: bytes) -> None:
    """
    A text nested too deeply is a clear error, neither a RecursionError nor a crash.
    """
    with pytest.raises(ValueError, match=r"nested too deeply"):
        loads(b"[" + first + b"," + b"[" * 100_000 + b"]" * 100_001)


@pytest.mark.parametrize("extra", [1, "\ud800", 10**5000], ids=["plain", "surrogate", "long"])
def test_canonical_ignores_the_order_of_keys(extra: object) -> None:
    """
    Equal values have equal canonical texts, whatever the order of their keys and the escapes in their strings.
    """
    one = dumps({"b": {"y": 1, "x": [extra]}, "a": "é"})
    other = dumps({"a": "é", "b": {"x": [extra], "y": 1}})
    assert one != other
    assert canonical(one) == canonical(other) == canonical(canonical(one))
    assert canonical(b'{"a":"\\u00e9","b":1}') == canonical('{"b":1,"a":"é"}'.encode())


def test_canonical_tells_different_values_apart() -> None:
    """
    Values that differ have different canonical texts, those that Python calls equal included.
    """
    texts = [b"1", b"1.0", b"true", b'"1"', b"[1]", b'{"a":1}', b"null", b"0.0", b"-0.0"]
    assert len({canonical(text) for text in texts}) == len(texts)
