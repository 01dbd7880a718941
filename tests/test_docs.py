"""
The documentation does what it says: its examples run, its commands exist, its links lead somewhere.

A block of Python runs as a script of its own would, in an empty directory. A comment above a block says otherwise:

- ``<!-- test: continue -->`` continues the block before.
- ``<!-- test: file NAME -->`` saves the block under that name, in a directory that the page has for all its files.
- ``<!-- test: run -->``, above a ``console`` block, runs its commands in that directory, in one shell, and compares
  what they print as ``console_blocks.py`` says. A command that fails has to show something.
- ``<!-- test: skip REASON -->`` leaves the block out.
"""

from __future__ import annotations

import re
import shutil
import sys
import types
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import attrs
import pytest
from markdown_it import MarkdownIt

import memable
from console_blocks import are_alike, commands_of, run_commands
from memable import cli, testing

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted({*ROOT.glob("*.md"), *DOCS.rglob("*.md")} - {*(DOCS / "_build").rglob("*.md")})
# A decision's page shows what was weighed, also what was not chosen.
MANUAL = [page for page in PAGES if page == ROOT / "README.md" or page.parent not in {ROOT, DOCS / "decisions"}]

#: The languages of blocks. What Python and shell do is tested; the others are shown only, so they are few.
LANGUAGES = {"python", "console", "sh", "text", "json", "toml"}
_IS_DIRECTIVE_OF_SPHINX = re.compile(r"\{[\w:-]+\}")

_COMMENT = re.compile(r"<!-- test: (?P<directive>.*?) -->\s*")
_KNOWN = re.compile(r"|continue|run|file [\w.-]+|skip \S.*")
_COMMAND = re.compile(r"(?:^|&&|\|\||[;|])\s*memable\s+(?P<name>[a-z][a-z-]*)", re.MULTILINE)
_LINK = re.compile(r"\]\((?!https?:|mailto:)(?P<target>[^)#\s]*)(?:#(?P<anchor>[^)\s]*))?\)")
_TEST = re.compile(r"`(?P<file>tests/[\w/]+\.py)::(?P<name>\w+)`")
_DOCUMENTED = re.compile(r"^\.\. (?:auto(?:class|data|exception|function)|type):: memable\.(\w+)", re.MULTILINE)


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

    @property
    def file(self) -> str | None:
        """The name under which it is saved."""
        return self.directive.removeprefix("file ") if self.directive.startswith("file ") else None


def _blocks(page: Path) -> Iterator[Block]:
    directive = ""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "fence":
            assert token.map is not None
            language = token.info.strip().partition(" ")[0]
            yield Block(page, token.map[0] + 2, language, token.content, directive)
        comment = _COMMENT.fullmatch(token.content) if token.type == "html_block" else None
        directive = comment["directive"] if comment else ""


def _examples(page: Path) -> Iterator[list[Block]]:
    """Return the blocks of each example: one of Python and those that continue it, or all about the page's files."""
    of_files: list[Block] = []
    current = of_files
    examples: list[list[Block]] = []
    for block in _blocks(page):
        if block.directive == "run" or block.file:
            current = of_files
        elif block.language == "python" and block.directive != "continue":
            current = []
            examples.append(current)
        elif block.directive != "continue":
            continue
        current.append(block)
    return (example for example in (of_files, *examples) if example)


def _commands() -> dict[str, str]:
    """Return each of memable's commands that a block of shell names, by the first place that does."""
    commands: dict[str, str] = {}
    for block in (block for page in MANUAL for block in _blocks(page)):
        if block.language in {"console", "sh"}:
            for match in _COMMAND.finditer(re.sub(r"^\$ ", "", block.code, flags=re.MULTILINE)):
                commands.setdefault(match["name"], block.place)
    return commands


def _each_page(pages: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages])


_EVERY_EXAMPLE = [pytest.param(blocks, id=blocks[0].place) for page in MANUAL for blocks in _examples(page)]


@pytest.mark.parametrize("example", _EVERY_EXAMPLE)
def test_docs_example_runs(example: list[Block], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Every example in the documentation runs without an error, and prints what it shows.
    """
    if example[0].directive.startswith("skip"):
        pytest.skip(example[0].directive)
    _run_example(example, tmp_path, monkeypatch)


def _run_example(example: list[Block], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "example"
    directory.mkdir()
    script = types.ModuleType("__main__")
    script.__file__ = str(directory / "example.py")
    monkeypatch.setitem(sys.modules, "__main__", script)
    monkeypatch.chdir(directory)
    monkeypatch.syspath_prepend(directory)
    monkeypatch.delenv("MEMABLE_STORE", raising=False)
    try:
        for block in example:
            if block.file:
                _forget_modules(directory)
                # A file that is saved again within the same second would not be noticed.
                shutil.rmtree("__pycache__", ignore_errors=True)
                Path(block.file).write_text(block.code, encoding="utf-8")
            elif block.directive == "run":
                _run_console(block, directory, tmp_path / "programs")
            else:
                # Blank lines in front make tracebacks name the page's own lines.
                code = compile("\n" * (block.line - 1) + block.code, block.page, "exec", dont_inherit=True)
                exec(code, script.__dict__)  # noqa: S102 - running the documentation is what this test is for
    finally:
        _forget_modules(directory)


def _run_console(block: Block, directory: Path, programs: Path) -> None:
    shown = commands_of(block.code)
    for expected, actual in zip(shown, run_commands([c.line for c in shown], directory, programs), strict=True):
        printed = "\n".join(actual.output)
        assert are_alike(expected.output, actual.output), f"{block.place}: $ {actual.line} prints:\n{printed}"
        failed_silently = actual.status != 0 and not expected.output
        assert not failed_silently, f"{block.place}: $ {actual.line} fails with status {actual.status}"


def _forget_modules(directory: Path) -> None:
    """Let what was imported from there be imported anew, or not at all."""
    for name, module in list(sys.modules.items()):
        if name != "__main__" and str(getattr(module, "__file__", None)).startswith(str(directory)):
            del sys.modules[name]


@_each_page(PAGES)
def test_docs_blocks_are_of_a_known_kind(page: Path) -> None:
    """
    Every block of the documentation is of a language, and tested in a way, that is known here.
    """
    for block in _blocks(page):
        is_known = block.language in LANGUAGES or _IS_DIRECTIVE_OF_SPHINX.fullmatch(block.language)
        assert is_known, f"{block.place}: a block is of one of {sorted(LANGUAGES)}, not {block.language!r}"
        assert _KNOWN.fullmatch(block.directive), f"{block.place}: 'test: {block.directive}' is not known"
        is_runnable = block.directive != "run" or block.language == "console"
        assert is_runnable, f"{block.place}: only a console block is run"
        is_continuable = block.directive != "continue" or block.language == "python"
        assert is_continuable, f"{block.place}: only a block of Python continues another"


@pytest.mark.parametrize("name", [pytest.param(name, id=f"{place}:{name}") for name, place in _commands().items()])
def test_docs_command_exists(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Every command of memable's that the documentation names exists.
    """
    monkeypatch.setattr(sys, "argv", ["memable", name, "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main()


@_each_page(PAGES)
def test_docs_links_lead_somewhere(page: Path) -> None:
    """
    Every relative link in the documentation leads to a file, a directory or a heading.
    """
    dead = []
    for match in _LINK.finditer(page.read_text(encoding="utf-8")):
        target = page.parent / match["target"] if match["target"] else page
        if not target.exists() or (match["anchor"] is not None and match["anchor"] not in _anchors(target)):
            dead.append(match[0])
    assert dead == []


def _anchors(page: Path) -> set[str]:
    """Return what a forge, and the site, call the headings of a page."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    headings = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def test_docs_reference_has_every_public_name_once() -> None:
    """
    Every public name of memable is on exactly one page of the reference.
    """
    documented = Counter(
        name for page in (DOCS / "reference").glob("*.md") for name in _DOCUMENTED.findall(page.read_text("utf-8"))
    )
    assert documented == Counter(memable.__all__)


def test_docs_reference_has_every_name_for_tests_once() -> None:
    """
    Every public name of memable.testing is on exactly one page of the reference, which takes them all from there.
    """
    pages = [page.name for page in DOCS.rglob("*.md") if ".. automodule:: memable.testing\n" in page.read_text("utf-8")]
    assert pages == ["testing.md"]
    assert sorted(set(testing.__all__)) == sorted(testing.__all__)
    assert all(hasattr(testing, name) for name in testing.__all__)


def test_docs_reference_has_every_example() -> None:
    """
    Every example is on the page of examples.
    """
    page = (DOCS / "examples.md").read_text("utf-8")
    shown = re.findall(r"^## (\S+)\n\n```\{literalinclude\} \.\./examples/\1\n", page, re.MULTILINE)
    assert shown == sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@_each_page(PAGES)
def test_docs_tests_exist(page: Path) -> None:
    """
    Every test that the documentation names as its proof exists.
    """
    named = [(match["file"], match["name"]) for match in _TEST.finditer(page.read_text(encoding="utf-8"))]
    missing = [
        f"{file}::{name}" for file, name in named if f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8")
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("shown", "printed", "alike"),
    [
        (["done"], ["done"], True),
        (["done"], [], False),
        ([], ["done"], False),
        (["a  b", ""], ["a b"], True),
        (["7 steps"], ["8 steps"], False),
        (["took 0.3 s"], ["took 12.07 s"], True),
        (["2026-11-23 18:02:06 invoke"], ["2031-01-01 00:00:00.5 invoke"], True),
        (["Killed"], ["bash: line 1: 4711 Killed  python x.py"], True),
        (["id ...: done"], ["id 0123: done"], True),
        (["first", "...", "last"], ["first", "x", "y", "last"], True),
        (["first", "..."], ["second"], False),
    ],
)
def test_docs_output_is_compared_loosely(shown: list[str], printed: list[str], *, alike: bool) -> None:
    """
    What a page shows may differ from what is printed in what no two runs have in common, and in nothing else.
    """
    assert are_alike(shown, printed) == alike


def test_docs_commands_run_in_one_shell(tmp_path: Path) -> None:
    """
    The commands of a block see each other's variables, and each has its own output and status.
    """
    block = "$ name=Ada\n$ echo Hello, \\\n> $name\nHello, Ada\n$ false\n"
    shown = commands_of(block)
    ran = run_commands([command.line for command in shown], tmp_path, tmp_path / "programs")
    assert [command.status for command in ran] == [0, 0, 1]
    assert [are_alike(one.output, other.output) for one, other in zip(shown, ran, strict=True)] == [True, True, True]


def test_docs_files_of_a_page_are_run_and_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    What a page saves as a file can be run and imported by later blocks of that page, and be replaced.
    """
    page = tmp_path / "page.md"
    page.write_text(
        """
<!-- test: file hello.py -->
```python
name = "Ada"
```

```python
assert __import__("os").listdir() == []
```

<!-- test: file hello.py -->
```python
name = "Bob"
print(name)
```

<!-- test: run -->
```console
$ python hello.py
Bob
```

<!-- test: continue -->
```python
import hello

assert hello.name == "Bob"
```
""",
        encoding="utf-8",
    )
    examples = list(_examples(page))
    assert [len(example) for example in examples] == [4, 1]
    for number, example in enumerate(examples):
        (tmp_path / str(number)).mkdir()
        _run_example(example, tmp_path / str(number), monkeypatch)
    assert "hello" not in sys.modules
