"""
The names under which classes and functions are recorded.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import types
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from memable._qualified_name import qualified_name


class Outer:
    class Inner:
        pass

    def method(self) -> None:
        pass


@pytest.mark.parametrize(
    ("obj", "name"),
    [
        (int, "builtins.int"),
        (ConnectionError, "builtins.ConnectionError"),
        (type(None), "builtins.NoneType"),
        (Outer, f"{__name__}.Outer"),
        (Outer.Inner, f"{__name__}.Outer.Inner"),
        (Outer.method, f"{__name__}.Outer.method"),
        (Fraction.from_float, "fractions.Fraction.from_float"),
        (len, "builtins.len"),
        (Outer(), f"{__name__}.Outer"),
        (functools.partial(len), "functools.partial"),
        (3, "builtins.int"),
    ],
)
def test_qualified_name_is_module_and_qualname(obj: Any, name: str):
    """
    A class or function is recorded as ``module.qualname``; anything else by its class.
    """
    assert qualified_name(obj) == name


def test_qualified_name_without_a_module():
    """
    A class that does not know its module counts as a built-in.
    """
    lost = type("Lost", (), {})
    lost.__module__ = None  # type: ignore[assignment] # as some C extensions have it
    assert qualified_name(lost) == "builtins.Lost"


def test_qualified_name_of_what_claims_a_qualname():
    """
    An attribute that is no text is no name.
    """
    odd = types.SimpleNamespace(__qualname__=3)
    assert qualified_name(odd) == "types.SimpleNamespace"


SCRIPT = """
from memable._qualified_name import qualified_name
class C: pass
print(qualified_name(C))
"""


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["app.py"], "app.C"),
        (["-m", "app"], "app.C"),
        (["-m", "package"], "package.__main__.C"),
        (["-c", SCRIPT], "__main__.C"),
        (["script"], "script.C"),
    ],
)
def test_qualified_name_of_the_main_module_is_its_real_one(arguments: list[str], name: str, tmp_path: Path):
    """
    A class of the script that was started is recorded under the name by which it is imported, where it has one.
    """
    (tmp_path / "package").mkdir()
    for place in ("app.py", "package/__main__.py", "script"):
        (tmp_path / place).write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == [name]


def test_qualified_name_of_a_main_module_on_another_system(monkeypatch: pytest.MonkeyPatch):
    """
    A main module's name is told from its path with either kind of slash; without a path it stays what it is.
    """
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    cls = type("C", (), {"__module__": "__main__"})
    assert qualified_name(cls) == "__main__.C"
    main.__file__ = "C:\\work\\app.py"
    assert qualified_name(cls) == "app.C"
    monkeypatch.delitem(sys.modules, "__main__")
    assert qualified_name(cls) == "__main__.C"
