"""
Names of classes and functions as they are recorded: ``module.qualname``.

A class of the script that was started as ``__main__`` is recorded under the name that the same module has when it is
imported, so that ``python -m app``, ``python app.py`` and ``import app`` agree on what they read back.
"""

from __future__ import annotations

import sys


def qualified_name(obj: type | object) -> str:
    """
    Return the recorded name of a class or function, for example ``builtins.int``.

    Args:
        obj: A class or a function; of anything else, its class is named.
    """
    qualname = getattr(obj, "__qualname__", None)
    if not isinstance(qualname, str):
        obj = type(obj)
        qualname = obj.__qualname__
    return f"{_module_name(getattr(obj, '__module__', None) or 'builtins')}.{qualname}"


def _module_name(name: str) -> str:
    """Return *name*, or the importable name of the main module if it is ``__main__``."""
    if name != "__main__":
        return name
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:
        return str(spec.name)
    path = getattr(main, "__file__", None)
    if not path:
        return name
    stem = str(path).replace("\\", "/").rsplit("/", 1)[-1]
    return stem.removesuffix(".py")
