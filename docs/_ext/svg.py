"""
Pictures made of boxes, texts and lines, and what they are as SVG.

Texts and lines have the colour of the text around the picture, boxes are filled with translucent colours of middle
brightness: so it reads well on a light and on a dark page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from math import hypot
from typing import Literal, TypeAlias

import attrs

FONT_SIZE = 13.0
SMALL_FONT_SIZE = 11.5
LINE_HEIGHT = 17.0
#: No letter is wider, on an average of a few, as a fraction of the font's size: of any font that may be there.
_LETTER_WIDTH = 0.6
_ARROW_LENGTH, _ARROW_WIDTH = 9.0, 7.0

Point: TypeAlias = tuple[float, float]
Kind: TypeAlias = Literal["plain", "good", "kept", "bad", "wait"]
"What a shape stands for: nothing particular, what runs or went well, what is recorded, what went wrong, what waits."

_STYLE = """
.memable-diagram { display: block; width: 100%; max-width: 760px; height: auto; margin: 1.5em auto; }
.memable-diagram text { font: 13px system-ui, sans-serif; fill: currentColor; stroke: none; }
.memable-diagram text.small { font-size: 11.5px; }
.memable-diagram text.mono { font-family: ui-monospace, monospace; font-size: 12.5px; }
.memable-diagram text.bold { font-weight: 600; }
.memable-diagram rect { stroke-width: 1.5; fill-opacity: 0.16; stroke: #808080; fill: #808080; }
.memable-diagram polyline { stroke-width: 1.5; stroke: #808080; }
.memable-diagram polygon { stroke: none; fill: #808080; }
.memable-diagram .good { stroke: #2a9d62; fill: #2a9d62; }
.memable-diagram .kept { stroke: #3f83d9; fill: #3f83d9; }
.memable-diagram .bad { stroke: #d9483b; fill: #d9483b; }
.memable-diagram .wait { stroke: #c58a12; fill: #c58a12; }
.memable-diagram polyline.open { fill: none; }
.memable-diagram .dashed { stroke-dasharray: 5 4; }
"""


@attrs.frozen
class Text:
    """
    One line of text.
    """

    x: float
    y: float
    "The middle of its height."
    words: str
    anchor: Literal["start", "middle", "end"] = "start"
    is_small: bool = False
    is_mono: bool = False
    is_bold: bool = False

    @property
    def width(self) -> float:
        """At most so wide."""
        return len(self.words) * _LETTER_WIDTH * (SMALL_FONT_SIZE if self.is_small else FONT_SIZE)

    @property
    def left(self) -> float:
        """Where it begins, at the least."""
        return self.x - self.width * {"start": 0.0, "middle": 0.5, "end": 1.0}[self.anchor]


@attrs.frozen
class Box:
    """
    A rectangle, with lines of text in its middle: the first as it would be typed, the others small.
    """

    x: float
    y: float
    width: float
    height: float
    lines: Sequence[str] = ()
    kind: Kind = "plain"
    is_dashed: bool = False
    is_mono: bool = True
    "Whether the first line is a name in code."

    @property
    def texts(self) -> list[Text]:
        """The lines in it, in their places."""
        middle, top = self.x + self.width / 2, self.y + self.height / 2 - (len(self.lines) - 1) * LINE_HEIGHT / 2
        return [
            Text(
                middle,
                top + number * LINE_HEIGHT,
                line,
                "middle",
                is_small=number > 0,
                is_mono=number == 0 and self.is_mono,
            )
            for number, line in enumerate(self.lines)
        ]


@attrs.frozen
class Line:
    """
    A line through points, with an arrow at its end.
    """

    points: Sequence[Point]
    kind: Kind = "plain"
    is_dashed: bool = False
    has_arrow: bool = True


Shape: TypeAlias = Text | Box | Line


@attrs.frozen
class Picture:
    """
    Shapes on a page, with what they show for those who do not see them.
    """

    title: str
    description: str
    width: float
    height: float
    shapes: Sequence[Shape]

    @property
    def texts(self) -> list[Text]:
        """All texts, those in boxes included."""
        return [text for shape in self.shapes for text in _texts_of(shape)]


def _texts_of(shape: Shape) -> list[Text]:
    match shape:
        case Text():
            return [shape]
        case Box():
            return shape.texts
        case Line():
            return []


def svg_of(picture: Picture, name: str) -> str:
    """
    Return a picture as an SVG element.

    Args:
        picture: What is drawn.
        name: Tells it from the other pictures of a page.
    """
    title, description = f"{name}-title", f"{name}-description"
    size = f'viewBox="0 0 {picture.width:g} {picture.height:g}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="memable-diagram" role="img" {size}',
        f'aria-labelledby="{title} {description}">',
        f'<title id="{title}">{escape(picture.title)}</title>',
        f'<desc id="{description}">{escape(picture.description)}</desc>',
        f"<style>{_STYLE}</style>",
        *(part for shape in picture.shapes for part in _parts_of(shape)),
        "</svg>",
    ]
    return "\n".join(parts)


def _parts_of(shape: Shape) -> Iterator[str]:
    match shape:
        case Text():
            classes = [name for name, has in _text_classes(shape) if has]
            yield (
                f'<text x="{shape.x:g}" y="{shape.y:g}" text-anchor="{shape.anchor}" dominant-baseline="central"'
                f' class="{" ".join(classes)}">{escape(shape.words)}</text>'
            )
        case Box():
            yield (
                f'<rect x="{shape.x:g}" y="{shape.y:g}" width="{shape.width:g}" height="{shape.height:g}" rx="5"'
                f' class="{_look(shape)}"/>'
            )
            for text in shape.texts:
                yield from _parts_of(text)
        case Line():
            points = " ".join(f"{x:g},{y:g}" for x, y in shape.points)
            yield f'<polyline points="{points}" class="open {_look(shape)}"/>'
            if shape.has_arrow:
                yield f'<polygon points="{_arrow(*shape.points[-2:])}" class="{shape.kind}"/>'


def _text_classes(text: Text) -> list[tuple[str, bool]]:
    return [("small", text.is_small), ("mono", text.is_mono), ("bold", text.is_bold)]


def _look(shape: Box | Line) -> str:
    return f"{shape.kind} dashed" if shape.is_dashed else shape.kind


def _arrow(start: Point, end: Point) -> str:
    """Return the corners of the head of an arrow."""
    length = hypot(end[0] - start[0], end[1] - start[1])
    along = ((end[0] - start[0]) / length, (end[1] - start[1]) / length)
    foot = (end[0] - along[0] * _ARROW_LENGTH, end[1] - along[1] * _ARROW_LENGTH)
    side = (-along[1] * _ARROW_WIDTH / 2, along[0] * _ARROW_WIDTH / 2)
    corners = (end, (foot[0] + side[0], foot[1] + side[1]), (foot[0] - side[0], foot[1] - side[1]))
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
