"""
The list of mutants of the store: that it fits the source and the tests. ``nox -s mutants`` shows which are caught.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from mutants import MUTANTS, Mutant

TESTS = Path(__file__).parent


@cache
def _functions_in(name: str) -> frozenset[str]:
    tree = ast.parse((TESTS / f"{name}.py").read_text("utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_fits_the_source(mutant: Mutant):
    """What a mutant changes stands exactly once in the source, and is Python still when it is changed."""
    text = mutant.path.read_text("utf-8")
    changed = mutant.apply(text)
    assert changed != text
    ast.parse(changed)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_names_tests_that_exist(mutant: Mutant):
    """Each mutant names at least one test that there is."""
    assert mutant.tests
    for test in mutant.tests:
        module, _, function = test.partition("::")
        assert function in _functions_in(module)


def test_mutants_have_names_of_their_own():
    """No two mutants have the same name, or make the same change."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)


def test_mutant_that_does_not_fit_is_told():
    """A mutant is made only where what it changes stands exactly once."""
    mutant = Mutant("n", "_disk.py", "old", "new", ())
    assert mutant.apply("an old one") == "an new one"
    for text in ("", "old old"):
        with pytest.raises(ValueError, match=r"n: _disk\.py has [02] times what is to be changed"):
            mutant.apply(text)
