"""
The documentation does what it says: its examples run, its commands exist, its links lead somewhere.

A block of Python runs as a script of its own would, in an empty directory. A comment on the line above says otherwise:
``<!-- test: continue -->`` continues the block before, ``<!-- test: skip REASON -->`` leaves the block out.
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from memable import cli

ROOT = Path(__file__).parent.parent
# A decision's page shows what was weighed, also what was not chosen.
MANUAL = sorted({ROOT / "README.md", *(ROOT / "docs").rglob("*.md")} - {*(ROOT / "docs" / "decisions").rglob("*.md")})
PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")})

_BLOCK = re.compile(
    r"^(?:<!-- test: (?P<directive>[^\n]*) -->\n+)?```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
_COMMAND = re.compile(r"(?:^|&&|\|\||[;|])\s*memable\s+(?P<name>[a-z][a-z-]*)", re.MULTILINE)
_LINK = re.compile(r"\]\((?!https?:|mailto:|#)(?P<target>[^)#\s]+)")
_TEST = re.compile(r"`(?P<file>tests/[\w/]+\.py)::(?P<name>\w+)`")


@attrs.frozen
class Block:
    """
    A fenced block of a page.
    """

    page: Path
    line: int
    "The line of the page on which its code starts, from 1."
    language: str
    code: str
    directive: str
    "What the comment above it says, or nothing."

    @property
    def place(self) -> str:
        """The page and the line, as an editor takes it."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def _blocks() -> Iterator[Block]:
    for page in MANUAL:
        text = page.read_text(encoding="utf-8")
        for match in _BLOCK.finditer(text):
            line = text.count("\n", 0, match.start("code")) + 1
            yield Block(page, line, match["language"], match["code"], match["directive"] or "")


def _examples() -> list[list[Block]]:
    """Return all blocks of Python, each with those that continue it."""
    examples: list[list[Block]] = []
    for block in _blocks():
        if block.language != "python":
            continue
        if block.directive == "continue":
            assert examples, f"{block.place}: there is no block to continue"
            assert examples[-1][0].page == block.page, f"{block.place}: the block to continue is on another page"
            examples[-1].append(block)
        else:
            known = re.fullmatch(r"(skip \S.*)?", block.directive)
            assert known, f"{block.place}: 'test: {block.directive}' is neither 'continue' nor 'skip' with a reason"
            examples.append([block])
    return examples


def _commands() -> dict[str, str]:
    """Return each of memable's commands that a block of shell names, by the first place that does."""
    commands: dict[str, str] = {}
    for block in _blocks():
        if block.language in {"console", "sh"}:
            for match in _COMMAND.finditer(re.sub(r"^\$ ", "", block.code, flags=re.MULTILINE)):
                commands.setdefault(match["name"], block.place)
    return commands


@pytest.mark.parametrize("example", [pytest.param(example, id=example[0].place) for example in _examples()])
def test_docs_example_runs(example: list[Block], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Every example in the documentation runs without an error.
    """
    if example[0].directive:
        pytest.skip(example[0].directive)
    script = types.ModuleType("__main__")
    script.__file__ = str(tmp_path / "example.py")
    monkeypatch.setitem(sys.modules, "__main__", script)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEMABLE_STORE", raising=False)
    for block in example:
        # Blank lines in front make tracebacks name the page's own lines.
        code = compile("\n" * (block.line - 1) + block.code, block.page, "exec", dont_inherit=True)
        exec(code, script.__dict__)  # noqa: S102 - running the documentation is what this test is for


@pytest.mark.parametrize("name", [pytest.param(name, id=f"{place}:{name}") for name, place in _commands().items()])
def test_docs_command_exists(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Every command of memable's that the documentation names exists.
    """
    monkeypatch.setattr(sys, "argv", ["memable", name, "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main()


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_docs_links_lead_to_files(page: Path) -> None:
    """
    Every relative link in the documentation leads to a file or a directory.
    """
    targets = [match["target"] for match in _LINK.finditer(page.read_text(encoding="utf-8"))]
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_docs_tests_exist(page: Path) -> None:
    """
    Every test that the documentation names as its proof exists.
    """
    named = [(match["file"], match["name"]) for match in _TEST.finditer(page.read_text(encoding="utf-8"))]
    missing = [
        f"{file}::{name}" for file, name in named if f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8")
    ]
    assert missing == []
