"""
Leads links that leave this directory to the pages that show the same files on the site.

Pages are written for a forge as well, where ``../examples/saga.py`` is a file.
"""

from __future__ import annotations

import re
from os.path import relpath
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

#: The page that shows a file of the project, or all files of a directory.
_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "reference/changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples": "examples.md",
}
_LINK = re.compile(r"\]\((?P<target>\.\.?/[^)#\s]*)(?:#[^)\s]*)?\)")


def setup(app: Sphinx) -> dict[str, Any]:
    """
    Connect what is defined here.
    """
    app.connect("source-read", _lead_to_pages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def _lead_to_pages(app: Sphinx, name: str, content: list[str]) -> None:
    docs = Path(app.srcdir)
    page = docs / name

    def led(link: re.Match[str]) -> str:
        target = (page.parent / link["target"]).resolve()
        if target.is_relative_to(docs) or not target.is_relative_to(docs.parent):
            return link[0]
        top, *below = target.relative_to(docs.parent).parts
        if top not in _PAGES:
            return link[0]
        # The heading of a file is its name.
        anchor = "#" + "".join(below).replace(".", "") if below else ""
        return f"]({relpath(docs / _PAGES[top], page.parent)}{anchor})"

    content[0] = _LINK.sub(led, content[0])
