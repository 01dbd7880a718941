"""
The hooks that a user registered with a cattrs converter, told from those that cattrs brings along.

Rules: the user's converter is copied, never changed, and what is registered later is not seen. A hook that the user
registered for a type wins over memable's own shape, in its direction. What cattrs registers by itself, also through
its preconfigured converters and its union strategies, does not: memable's shapes are exact where those convert.
Subclasses of ``include_subclasses`` are told apart by memable's own union. Which hooks are whose is not public in
cattrs; the attributes read here are pinned by tests.
"""

# ruff: noqa: SLF001 - cattrs says nowhere else whose a hook is
from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import cattrs

from ._leaves import LEAVES

Unstructure = Callable[[Any], Any]
Structure = Callable[[Any, Any], Any]

_SUBCLASSES = "cattrs.strategies._subclasses"
_CLASS_METHODS = "cattrs.strategies._class_methods"
_BROUGHT_ALONG = ("cattrs.preconf", "cattrs.fns", "cattrs.strategies._unions", _SUBCLASSES, "msgspec")
"Where the hooks are written that preconfigured converters and the strategies for unions register."


@attrs.frozen
class _Registered:
    """What was registered with a predicate."""

    predicate: Callable[[Any], bool]
    hook: Callable[..., Any]
    is_factory: bool
    wants_converter: bool

    def applies(self, annotation: Any) -> bool:
        try:
            return bool(self.predicate(annotation))
        except Exception:  # noqa: BLE001 - the user's code may raise anything
            # As in cattrs: a predicate that fails at what it was not written for says no.
            return False

    def made_for(self, annotation: Any, converter: cattrs.Converter) -> Any:
        if not self.is_factory:
            return self.hook
        return self.hook(annotation, converter) if self.wants_converter else self.hook(annotation)

    @property
    def is_users(self) -> bool:
        made_in = _module(self.hook)
        if made_in.startswith(_BROUGHT_ALONG) or _module(self.predicate) == _SUBCLASSES:
            return False
        # Chosen by one of cattrs' predicates, cattrs' own hook says nothing that a shape does not say.
        by_cattrs = made_in.startswith("cattrs.") and _module(self.predicate).startswith("cattrs.")
        return not by_cattrs or made_in == _CLASS_METHODS


class _Direction:
    """The user's hooks of one direction."""

    def __init__(self, dispatch: Any, pristine: Any, skip: int, unions: dict[Any, Any]) -> None:
        self._single = dispatch._single_dispatch
        defaults = pristine._single_dispatch.registry
        self._classes = {
            cls
            for cls, hook in self._single.registry.items()
            if cls is not object and defaults.get(cls) != hook and not _module(hook).startswith(_BROUGHT_ALONG)
        }
        self.brought_along = [cls for cls in self._single.registry if cls is not object and cls not in self._classes]
        pairs = dispatch._function_dispatch._handler_pairs
        registered = [_Registered(*pair) for pair in pairs[: len(pairs) - skip]]
        self._registered = [each for each in registered if each.is_users]
        self._families = [each for each in registered if _module(each.predicate) == _SUBCLASSES]
        self._unions = {union: hook for union, hook in unions.items() if not _module(hook).startswith("cattrs.")}

    def find(self, annotation: Any, converter: cattrs.Converter) -> Any:
        """Return the user's hook for *annotation*, or None."""
        if isinstance(annotation, type):
            cls = self._class_for(annotation)
            if cls is not None:
                return self._single.registry[cls]
        for union, hook in self._unions.items():
            if union == annotation:
                return hook
        for registered in self._registered:
            if registered.applies(annotation):
                return registered.made_for(annotation, converter)
        return None

    def knows(self, annotation: Any) -> bool:
        if isinstance(annotation, type) and self._class_for(annotation) is not None:
            return True
        return any(union == annotation for union in self._unions) or any(
            registered.applies(annotation) for registered in self._registered
        )

    def inherits(self, annotation: Any) -> bool:
        return isinstance(annotation, type) and self._class_for(annotation) not in (None, annotation)

    def has_family(self, cls: type) -> bool:
        return any(registered.applies(cls) for registered in self._families)

    def _class_for(self, cls: type) -> type | None:
        """Return the class with a hook of the user's by which *cls* goes: itself, or a base."""
        if cls in LEAVES:
            # A hook for int is none for bool, and one for date none for datetime.
            return cls if cls in self._classes else None
        return next((base for base in cls.__mro__ if base in self._classes), None)


class UserHooks:
    """
    Knows for which annotations the user registered hooks.
    """

    def __init__(self, converter: cattrs.Converter | None) -> None:
        pristine = cattrs.Converter()
        #: The copy that memable's hooks may be registered with.
        self.converter = pristine.copy() if converter is None else converter.copy()
        copy: Any = self.converter
        unions = {} if converter is None else dict(converter._union_struct_registry)
        # The copy's own hooks come last in its list; those copied from the user's come before.
        self._unstructure = _Direction(copy._unstructure_func, pristine._unstructure_func, copy._unstruct_copy_skip, {})
        self._structure = _Direction(copy._structure_func, pristine._structure_func, copy._struct_copy_skip, unions)

    def know(self, annotation: Any) -> bool:
        """
        Tell whether the user registered a hook for *annotation*, in either direction.
        """
        return self._unstructure.knows(annotation) or self._structure.knows(annotation)

    def are_inherited(self, annotation: Any) -> bool:
        """
        Tell whether a hook for *annotation* was registered for a base class of it.
        """
        return self._unstructure.inherits(annotation) or self._structure.inherits(annotation)

    def unstructure_hook(self, annotation: Any) -> Unstructure | None:
        """
        Return the user's hook that makes a plain tree of a value, if there is one.
        """
        hook: Unstructure | None = self._unstructure.find(annotation, self.converter)
        return hook

    def structure_hook(self, annotation: Any) -> Structure | None:
        """
        Return the user's hook that makes a value of a plain tree, if there is one.
        """
        hook: Structure | None = self._structure.find(annotation, self.converter)
        return hook

    def adopt(self, encoder: Callable[[Any], Unstructure], decoder: Callable[[Any], Callable[[Any], Any]]) -> None:
        """
        Register hooks with the copy for all that the user has none for, so that the user's hooks may build on them.

        Args:
            encoder: Gives what makes a plain tree of a type's values.
            decoder: Gives what makes a value of a type of a plain tree.
        """

        def structure(form: Any, annotation: Any) -> Any:
            return decoder(annotation)(form)

        copy = self.converter
        copy.register_unstructure_hook_factory(lambda each: not self._unstructure.knows(each), encoder)
        copy.register_structure_hook_factory(lambda each: not self._structure.knows(each), lambda _: structure)
        # Those that cattrs itself looks for by class, before any predicate is asked.
        for cls in self._unstructure.brought_along:
            copy.register_unstructure_hook(cls, lambda value: encoder(type(value))(value))
        for cls in self._structure.brought_along:
            copy.register_structure_hook(cls, structure)

    def family(self, cls: type) -> list[type]:
        """
        Return *cls* and the subclasses of it that the user included with ``include_subclasses``, or nothing.
        """
        return list(self._included(cls)) if self._unstructure.has_family(cls) else []

    def _included(self, cls: type) -> Iterator[type]:
        rest, seen = [cls], {cls}
        while rest:
            found = rest.pop()
            if self._unstructure.has_family(found):
                yield found
            subclasses: list[type] = found.__subclasses__()
            unseen = [each for each in subclasses if each not in seen]
            rest.extend(unseen)
            seen.update(unseen)


def _module(fn: Any) -> str:
    """Return where a hook or a predicate was written."""
    return getattr(fn.func if isinstance(fn, functools.partial) else fn, "__module__", None) or ""
