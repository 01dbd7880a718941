"""
The pictures of the documentation: that they are drawn whole, and true.
"""

from __future__ import annotations

from itertools import combinations, pairwise
from xml.etree import ElementTree as ET

import pytest

import memable
from crash_story import crash_and_recover
from pictures import log, replay_or_keys, states, timeline
from svg import FONT_SIZE, Box, Line, Picture, Text, svg_of

PICTURES = {
    "timeline": timeline(crash_and_recover()),
    "replay-or-keys": replay_or_keys(),
    "states": states(),
    "log": log(),
}
KEYS = {
    "timeline": {"download:v1", "parse:v1", "summarise:v1", "publish:v1"},
    "replay-or-keys": {"fetch:v1", "check:v1", "parse:v1", "save:v1"},
    "states": {status.name.capitalize() for status in memable.MetadataStatus},
    "log": {"00000001.log", "checkpoint: what is alive in the sealed segments"},
}
SVG = "{http://www.w3.org/2000/svg}"

each_picture = pytest.mark.parametrize("name", PICTURES)


@each_picture
def test_diagram_is_xml_that_says_what_it_shows(name: str) -> None:
    """
    A picture is well-formed XML, has a title and a description, and names what it is about.
    """
    root = ET.fromstring(svg_of(PICTURES[name], name))  # noqa: S314 - it was made here
    words = {element.text for element in root.iter(f"{SVG}text")}
    assert words >= KEYS[name]
    named = {element.get("id"): element.text for element in root if element.tag in {f"{SVG}title", f"{SVG}desc"}}
    assert list(named) == (root.get("aria-labelledby") or "").split()
    assert all(named.values())


@each_picture
def test_diagram_shows_every_text_whole(name: str) -> None:
    """
    No text of a picture leaves it, or its box, or touches another text.
    """
    picture = PICTURES[name]
    for text in picture.texts:
        assert text.left >= 0, text.words
        assert text.left + text.width <= picture.width, text.words
        assert FONT_SIZE / 2 <= text.y <= picture.height - FONT_SIZE / 2, text.words
    for box in (shape for shape in picture.shapes if isinstance(shape, Box)):
        assert [text.words for text in box.texts if text.width > box.width] == []
    assert [(one.words, two.words) for one, two in combinations(picture.texts, 2) if _touch(one, two)] == []


def _touch(one: Text, two: Text) -> bool:
    is_beside = one.left + one.width <= two.left or two.left + two.width <= one.left
    return not is_beside and abs(one.y - two.y) < FONT_SIZE


@each_picture
def test_diagram_has_no_text_on_a_line_or_an_edge(name: str) -> None:
    """
    No line of a picture, and no edge of a box, runs through a text.
    """
    picture = PICTURES[name]
    pieces = [piece for shape in picture.shapes for piece in _pieces(shape)]
    assert [text.words for text in picture.texts if any(_runs_through(piece, text) for piece in pieces)] == []


def _pieces(shape: Text | Box | Line) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    match shape:
        case Text():
            return []
        case Box(x=x, y=y, width=width, height=height):
            corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)]
            return list(pairwise(corners))
        case Line(points=points):
            return list(pairwise(points))


def _runs_through(piece: tuple[tuple[float, float], tuple[float, float]], text: Text) -> bool:
    (x_1, y_1), (x_2, y_2) = piece
    is_beside = max(x_1, x_2) <= text.left or min(x_1, x_2) >= text.left + text.width
    half = FONT_SIZE / 2
    # A slanted line counts as the rectangle around it.
    return not is_beside and not (max(y_1, y_2) <= text.y - half or min(y_1, y_2) >= text.y + half)


def test_crash_story_is_what_memable_does() -> None:
    """
    A step with a memo is not run by the second process, and one that was cut short is.
    """
    story = crash_and_recover()
    assert story.served == ["download:v1", "parse:v1"]
    assert [call.key for call in story.first_run if call.ended_s is None] == ["summarise:v1"]
    assert [call.key for call in story.second_run] == ["summarise:v1", "publish:v1"]
    assert story.memos["publish:v1"] > story.restarted_s > story.crashed_s


def test_timeline_draws_the_story() -> None:
    """
    A timeline has a box for each step of each process, and a memo for each step.
    """
    story = crash_and_recover()
    picture: Picture = timeline(story)
    boxes = [shape.lines for shape in picture.shapes if isinstance(shape, Box)]
    assert len(boxes) == len(story.keys) + len(story.first_run) + len(story.served) + len(story.second_run)
    assert ("summarise:v1", "cut short, 5 to 7 s") in boxes
    assert ("parse:v1", "memo, at 9 s") in boxes
