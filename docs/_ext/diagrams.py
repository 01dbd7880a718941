"""
Puts the pictures into pages: by a directive, or by a comment that a forge does not show.

Both ``<!-- diagram: timeline -->`` and a block ``{diagram} timeline`` are the picture of that name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx
from sphinx.util import logging

from crash_story import crash_and_recover
from pictures import log, replay_or_keys, states, timeline
from svg import Picture, svg_of

_PICTURES: dict[str, Callable[[], Picture]] = {
    "timeline": lambda: timeline(crash_and_recover()),
    "states": states,
    "replay-or-keys": replay_or_keys,
    "log": log,
}
_COMMENT = re.compile(r"<!-- diagram: (?P<name>\S+) -->\s*")


def setup(app: Sphinx) -> dict[str, Any]:
    """
    Add what is defined here.
    """
    app.add_directive("diagram", Diagram)
    app.connect("doctree-read", _draw_comments)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


class Diagram(Directive):
    """
    A picture, by its name.
    """

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """
        Return the picture.
        """
        name: str = self.arguments[0]
        if name not in _PICTURES:
            raise self.error(f"there is no picture {name!r}, only {', '.join(_PICTURES)}")
        return [_drawn(name)]


def _drawn(name: str) -> nodes.raw:
    return nodes.raw("", svg_of(_PICTURES[name](), f"diagram-{name}"), format="html")


def _draw_comments(_app: Sphinx, tree: nodes.document) -> None:
    for node in list(tree.findall(nodes.raw)):
        comment = _COMMENT.fullmatch(node.astext())
        if comment is None:
            continue
        if comment["name"] in _PICTURES:
            node.replace_self(_drawn(comment["name"]))
        else:
            logging.getLogger(__name__).warning("there is no picture %r", comment["name"], location=node)
