"""
Shows memable under its public names: as users import it, not as its files are cut.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import sys
from typing import Any, get_args

import attrs
from docutils.nodes import Element, Text, document
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import find_pending_xref_condition

import memable

#: Users make objects of these classes themselves. How one of another class is made is of no use to them.
_MADE_BY_USERS = frozenset(("FileStore", "InMemoryStore", "RetryPolicy", "SuspendPoint"))
#: Public names of what has another one where it is written.
_PUBLIC_NAMES = {"memable._retry.Inherit": "memable.INHERIT"}
#: A union stands in a signature as its members.
_STATES = re.compile(
    r" \| ".join(rf"~?{re.escape(cls.__module__)}\.{cls.__name__}" for cls in get_args(memable.WorkflowState))
)
#: How the default of a field stands in the constructor that attrs writes.
_DEFAULT = re.compile(r"attr_dict\['(\w+)'\]\.default")
#: The parameter that refuses options that do not exist. Its description is one line.
_CATCHER = "**unknown"
#: How signatures are written for those who read them.
_PLAINER = [
    (re.compile(rf", {re.escape(_CATCHER)}: [~\w.]+"), ""),
    # A specification of parameters, which Sphinx writes in ways that are no Python.
    (re.compile(r"(?<!\*)(\*\w+): ~typing\.~(\w+)"), r"\1: \2.args"),
    (re.compile(r"(\*\*\w+): ~typing\.~(\w+)"), r"\1: \2.kwargs"),
    (re.compile(r"\[\[(~typing\.Concatenate\[[^\]]*)\]\]"), r"[\1]"),
    (re.compile(r"\[\[~?(?:[\w.]+\.)?P\]"), "[P"),
    (re.compile(r"~P\b"), "P"),
]

_BEFORE_NAPOLEON, _AFTER_NAPOLEON = 400, 600


def setup(app: Sphinx) -> dict[str, Any]:
    """
    Connect what is defined here.
    """
    plain = _PlainAttributes()
    app.connect("builder-inited", _tell_where_errors_are_written)
    app.connect("autodoc-process-docstring", plain.keep, priority=_BEFORE_NAPOLEON)
    app.connect("autodoc-process-docstring", plain.restore, priority=_AFTER_NAPOLEON)
    app.connect("autodoc-process-docstring", _drop_catcher, priority=_BEFORE_NAPOLEON)
    app.connect("autodoc-process-bases", _show_public_bases)
    app.connect("autodoc-process-signature", _simplify_signature)
    app.connect("doctree-read", _unlink_builtins)
    app.connect("doctree-read", _unpack_with_star)
    app.connect("missing-reference", _resolve_by_public_name)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


class _PlainAttributes:
    """
    Keeps what is said of an attribute as it is: napoleon takes all before a colon for a type.
    """

    def __init__(self) -> None:
        self._kept: list[str] = []

    def keep(self, _app: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
        self._kept = list(lines)

    def restore(self, _app: Sphinx, what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
        if what in {"attribute", "data", "property"} and not any(line.endswith(":") for line in self._kept):
            lines[:] = self._kept


def _tell_where_errors_are_written(_app: Sphinx) -> None:
    """Undo that errors claim to be from ``memable`` itself: what is said of their fields stands where they are."""
    for name, module in list(sys.modules.items()):
        if name.startswith("memable._"):
            for node in ast.parse(inspect.getsource(module)).body:
                if isinstance(node, ast.ClassDef):
                    getattr(module, node.name).__module__ = name


def _show_public_bases(_app: Sphinx, _name: str, _object: type, _options: object, bases: list[type]) -> None:
    """Name those bases that a user can name."""
    for index, base in enumerate(bases):
        if isinstance(base, type):
            bases[index] = next(cls for cls in base.__mro__ if not cls.__name__.startswith("_"))


def _simplify_signature(
    _app: Sphinx, what: str, name: str, documented: Any, _options: object, arguments: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """Hide how objects that users do not make are made, and what only catches misspelt options."""
    if not arguments:
        return None
    public_name = name.removeprefix("memable.")
    if what in {"class", "exception"} and public_name in memable.__all__ and public_name not in _MADE_BY_USERS:
        return "", ""
    if attrs.has(documented):
        arguments = _DEFAULT.sub(lambda m: repr(getattr(attrs.fields(documented), m[1]).default), arguments)
    for pattern, plain in _PLAINER:
        arguments = pattern.sub(plain, arguments)
    return arguments, returns and _STATES.sub("memable.WorkflowState", returns)


def _drop_catcher(_app: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    start = next((number for number, line in enumerate(lines) if line.lstrip().startswith(_CATCHER + ":")), None)
    if start is not None:
        del lines[start]


def _unlink_builtins(_app: Sphinx, tree: document) -> None:
    """Keep ``type``, in an annotation, from being taken for a field of that name."""
    for node in list(tree.findall(pending_xref)):
        if node.get("refdomain") == "py" and hasattr(builtins, node["reftarget"]):
            short = find_pending_xref_condition(node, "resolved")
            node.replace_self(node.children if short is None else short.children)


def _unpack_with_star(_app: Sphinx, tree: document) -> None:
    """Write ``Unpack[Args]`` as ``*Args``."""
    for node in list(tree.findall(pending_xref)):
        if node.get("reftarget") == "typing.Unpack" and node.parent is not None:
            opening, _unpacked, closing = node.parent[node.parent.index(node) + 1 :][:3]
            node.parent.remove(closing)
            node.parent.remove(opening)
            node.replace_self(Text("*"))


def _resolve_by_public_name(
    app: Sphinx, _environment: BuildEnvironment, node: pending_xref, content: Element
) -> Element | None:
    """Let ``memable._engine.Engine`` lead to ``memable.Engine``."""
    target: str = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target.startswith("memable._"):
        return None
    name = target.rpartition(".")[2]
    domain = app.env.domains.python_domain
    for public in (_PUBLIC_NAMES.get(target, f"memable.{name}"), f"memable.testing.{name}"):
        if public in domain.objects:
            # An alias is documented as data, and mentioned as if it were a class.
            return domain.resolve_xref(app.env, node["refdoc"], app.builder, "obj", public, node, content)
    return None
