"""
The public interface, name by name: whoever changes it sees that he does, in the diff of ``public_api.txt``.

``python tests/test_public_api.py`` writes that file anew.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import memable
import memable.testing

LISTING = Path(__file__).with_name("public_api.txt")
MODULES = (memable, memable.testing)


def describe(module: ModuleType) -> Iterator[str]:
    """
    Yield a line for each public name of a module, and for each public name of its classes.
    """
    for name in sorted(module.__all__):
        value = getattr(module, name)
        where = f"{module.__name__}.{name}"
        if inspect.isclass(value):
            bases = ", ".join(base.__qualname__ for base in value.__bases__ if base is not object)
            yield f"class {where}({bases})"
            yield from (f"    {line}" for line in sorted(members(value)))
        elif inspect.isroutine(value):
            yield f"def {where}{signature_of(value)}"
        else:
            yield f"{where}: {type(value).__qualname__}"


def members(cls: type[Any]) -> Iterator[str]:
    """
    Yield a line for each public name that a class of memable's has, its own or that of a class of memable's above it.
    """
    own = [base for base in cls.__mro__ if base.__module__.startswith("memable")]
    if "__init__" in vars(cls):
        yield f"__init__{signature_of(cls.__init__)}"
    seen: set[str] = set()
    for base in own:
        names = {**dict.fromkeys(vars(base).get("__annotations__", {})), **vars(base)}
        for name in names:
            if name.startswith("_") or name in seen:
                continue
            seen.add(name)
            value = inspect.getattr_static(base, name, None)
            if isinstance(value, (staticmethod, classmethod)):
                yield f"def {name}{signature_of(value.__func__)}"
            elif inspect.isfunction(value):
                yield f"def {name}{signature_of(value)}"
            else:
                yield name


def signature_of(value: Any) -> str:
    """
    Return a signature as it is written. What decorators hide is shown.
    """
    return re.sub(r" at 0x[0-9a-f]+>", ">", str(inspect.signature(value)))


def listing() -> str:
    """
    Return the public interface as text.
    """
    return "\n".join(line for module in MODULES for line in describe(module)) + "\n"


def test_public_api_is_what_is_listed():
    """
    The public interface is what ``public_api.txt`` lists; a change of it belongs into the changelog.
    """
    assert listing().splitlines() == LISTING.read_text(encoding="utf-8").splitlines()


def test_public_api_has_docstrings():
    """
    Every public class, function and method says what it is for.
    """
    missing: list[str] = []
    for module in MODULES:
        for name in module.__all__:
            value = getattr(module, name)
            if not (inspect.isclass(value) or inspect.isroutine(value)):
                continue
            parts = [(f"{module.__name__}.{name}", value)]
            if inspect.isclass(value) and value.__module__.startswith("memable"):
                parts += [
                    (f"{module.__name__}.{name}.{key}", part)
                    for key, part in vars(value).items()
                    if not key.startswith("_") and inspect.isfunction(part)
                ]
            missing += [where for where, part in parts if not inspect.getdoc(part)]
    assert missing == []


if __name__ == "__main__":
    LISTING.write_text(listing(), encoding="utf-8")
