"""
The process that does the same work in one go, without memable, and prints the report that is expected.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ._counting import count_straight, report_to_json
from ._parent import exit_with_parent


def main() -> None:
    """
    Run as a process of its own, over the directory that is its only argument.
    """
    exit_with_parent()
    (root,) = sys.argv[1:]
    sys.stdout.write(report_to_json(count_straight(Path(root))))


if __name__ == "__main__":
    main()
