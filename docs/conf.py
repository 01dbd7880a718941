"""
How Sphinx builds the site: from the pages in this directory and the docstrings of memable, without the network.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

project = "memable"
project_copyright = "The memable maintainers"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "diagrams",
    "outside_links",
    "public_names",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "memable"
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
# A prompt is no part of a command.
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True

# Headings --------------------------------------------------------------------------------------------------------

# A link to a heading is written as on a forge, and fails if there is none.
myst_heading_anchors = 4

# Docstrings ------------------------------------------------------------------------------------------------------

autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "exclude-members": "add_note, with_traceback",  # every exception has them
}
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = False
napoleon_custom_sections = ["Durability", "Cancellation", "Replay"]
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
python_display_short_literal_types = True
add_module_names = False

# References ------------------------------------------------------------------------------------------------------

# Every reference to a name of memable's has to lead somewhere. What is left out:
nitpicky = True
nitpick_ignore_regex = [
    # Other libraries: their documentation is not at hand without the network.
    (
        r"py:.*",
        r"(attrs|cattrs|collections|contextlib|datetime|enum|hypothesis|inspect|os|pathlib|trio|types|typing)\..*",
    ),
    # Type variables, and the parameters of signatures.
    (r"py:.*", r"(.*\.)?(Args|Item|P|R|R_co|T)(\.args|\.kwargs)?"),
    # The protocol of stores: no store but memable's own is supported so far.
    (r"py:class", r"memable\._(store\._protocol\.(Open)?Store|clock\.Clock)"),
    # What memable.testing hands out and nobody names.
    (r"py:class", r"memable\._testing\.\w+\.\w+"),
    # Annotations of variables are not evaluated.
    (r"py:class", r"Path|ProblemKind|SimulatedLock|_Inode"),
]
