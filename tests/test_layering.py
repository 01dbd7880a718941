"""
The order of memable's modules, read from their source.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "memable"

#: Lowest level first, and lowest module first within a level: a module imports only from those above it in this table.
LEVELS = {
    "core": (
        "_qualified_name",
        "_related",
        "_error_info",
        "_errors",
        "_numbers",
        "_keys",
        "_sparse",
        "_encoded",
        "_records",
        "_states",
        "_times",
        "_retry",
        "_json",
        "_annotations",
        "_values._shape",
        "_values._text_forms",
        "_values._leaves",
        "_values._type_trees",
        "_values._type_reader",
        "_values._plain_trees",
        "_values._class_layouts",
        "_values._pydantic_models",
        "_values._recorded_types",
        "_values._named_types",
        "_values._user_hooks",
        "_values._collection_shapes",
        "_values._tagged_shapes",
        "_values._field_shapes",
        "_values._trusted_shapes",
        "_values._shapes",
        "_values._codec",
        "_values",
        "_texts",
        "_record_json",
        "_spans",
        "_segments",
        "_crc",
        "_frames",
        "_scan",
        "_proven",
        "_compacted",
        "_salvage",
        "_faults",
        "_lost_records",
        "_header",
        "_packed_multimap",
        "_checksum_table",
        "_ended_table",
        "_superseded",
        "_journal",
        "_mending",
        "_listing",
        "_history",
        "_plan",
        "_decide",
        "_decide_signal",
        "_definition",
        "_suspend_point",
        "_step_misuse",
    ),
    "edge": (
        "_disk",
        "_clock",
        "_ids",
    ),
    "shell": (
        "_sleeping",
        "_store._protocol",
        "_store._failures",
        "_store._admission",
        "_store._ended_index",
        "_store._plain_instances",
        "_store._index",
        "_store._gone",
        "_store._space",
        "_store._lockfile",
        "_store._settling_disk",
        "_store._directory",
        "_store._files",
        "_store._checkpoint",
        "_store._reading",
        "_store._snapshot",
        "_store._recovery",
        "_store._tail",
        "_store._patience",
        "_store._worker",
        "_store._committer",
        "_store._compaction",
        "_store._upkeep",
        "_store._held",
        "_store._segment_headers",
        "_store._survey",
        "_store._verify",
        "_store._salvaging",
        "_store._repair",
        "_store.file",
        "_store.memory",
        "_store",
        "_timers",
        "_observer",
        "_services",
        "_wait",
        "_activity",
        "_ledger",
        "_replay",
        "_run",
        "_entry",
        "_step",
        "_waiting",
        "_scopes",
        "_calls",
        "_items",
        "_fan_out",
        "_compensation",
        "_context",
        "_drive",
        "_parking",
        "_supervisor",
        "_removing",
        "_recovering",
        "_instances",
        "_catalog",
        "_signalling",
        "_resuming",
        "_invocation",
        "_plan_scratch",
        "_planned_run",
        "_planning",
        "_engine",
        "_open",
    ),
    "public": (
        "__init__",
        "_demo._counting",
        "_demo._effects",
        "_demo._pipeline",
        "_demo._parent",
        "_demo._worker",
        "_demo._straight",
        "_demo._evidence",
        "_demo._supervise",
        "_demo._report",
        "_demo._command",
        "_demo",
        "_cli._escaping",
        "_cli._moments",
        "_cli._reading",
        "_cli._details",
        "_cli._advice",
        "_cli._trees",
        "_cli._json_lines",
        "_cli._exporting",
        "_cli._timeline",
        "_cli._console",
        "_cli._grid",
        "_cli._listing",
        "_cli._report",
        "_cli._history_table",
        "_cli._guard",
        "_cli._verifying",
        "_cli._repairing",
        "_cli",
        "cli",
        "_testing._simulated_disk",
        "_testing._disk_faults",
        "_testing._simulated_store",
        "_testing._watched_disk",
        "_testing._scheduling",
        "_testing._outside",
        "_testing._virtual_time",
        "_testing._crash_plan",
        "_testing._places",
        "_testing._effects",
        "_testing._faulty_steps",
        "_testing._happenings",
        "_testing._written_records",
        "_testing._watching",
        "_testing._life",
        "_testing._findings",
        "_testing._report",
        "_testing._schedules",
        "_testing._exploring",
        "_testing._scenarios",
        "_testing._laws",
        "_testing._upgrading",
        "_testing._crash_tests",
        "_testing._signals",
        "_testing._strategies",
        "_testing._keeping",
        "_testing._whereabouts",
        "_testing._story",
        "_testing._machine",
        "_testing._journals",
        "_testing",
        "testing",
        "_pytest_plugin",
    ),
}

#: The core has values in and values out: no files, clock, randomness, threads or scheduler.
FORBIDDEN_IN_CORE = {
    "asyncio",
    "logging",
    "os",
    "pathlib",
    "random",
    "socket",
    "subprocess",
    "threading",
    "time",
    "trio",
}

#: What a core module may import all the same, with the reason.
ALLOWED_IN_CORE = {
    ("_values._leaves", "pathlib"): "a path is a value: it is encoded, never opened",
}

#: Optional extras, imported where they are needed: (module, package).
ALLOWED_INSIDE_FUNCTIONS = {
    ("_planning", "trio"),  # of it trio.testing, which is slow to import
    ("cli", "_demo._command"),
    ("cli", "_cli._console"),
    ("cli", "_cli._listing"),
    ("cli", "_cli._report"),
    ("cli", "_cli._history_table"),
    # Loaded in each run of pytest, most of which have nothing to do with memable.
    ("_pytest_plugin", "trio"),
    ("_pytest_plugin", "_clock"),
    ("_pytest_plugin", "_errors"),
    ("_pytest_plugin", "_open"),
    ("_pytest_plugin", "_testing._life"),
    ("_pytest_plugin", "_testing._virtual_time"),
    ("_pytest_plugin", "_testing._crash_plan"),
    ("_pytest_plugin", "_testing._effects"),
    ("_pytest_plugin", "_testing._exploring"),
    ("_pytest_plugin", "_testing._simulated_store"),
    ("_pytest_plugin", "_testing._crash_tests"),
}

RANKS = {name: rank for rank, name in enumerate(name for level in LEVELS.values() for name in level)}


def _find_modules() -> dict[str, Path]:
    """Return the path of each module by its name within memable: ``_store`` is ``_store/__init__.py``."""
    modules: dict[str, Path] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        package = parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts
        modules[".".join(package)] = path
    return modules


MODULES = _find_modules()
every_module = pytest.mark.parametrize("module", MODULES)


def _parse(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def _at(module: str, node: ast.expr | ast.stmt, problem: str) -> str:
    return f"{MODULES[module].relative_to(SOURCE.parent)}:{node.lineno}: {problem}"


def _outside_imports(module: str) -> Iterator[tuple[ast.stmt, str]]:
    """Yield each absolute import of *module* with the name of its top-level package."""
    for node in ast.walk(_parse(module)):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module is not None
            yield node, node.module.partition(".")[0]


def _inside_imports(module: str) -> Iterator[tuple[ast.ImportFrom, str]]:
    """Yield each relative import of *module* with the name of the module that it imports from."""
    package = module.split(".") if MODULES[module].name == "__init__.py" else module.split(".")[:-1]
    package = [] if package == ["__init__"] else package
    for node in ast.walk(_parse(module)):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            parents = package[: len(package) - (node.level - 1)]
            target = [*parents, *node.module.split(".")] if node.module else parents
            for alias in node.names:
                submodule = ".".join([*target, alias.name])
                yield node, submodule if submodule in MODULES else ".".join(target) or "__init__"


def test_layering_knows_every_module() -> None:
    """
    Every module of memable has its place in the table.
    """
    unknown = sorted(MODULES.keys() - RANKS.keys())
    assert unknown == [], f"add {', '.join(unknown)} to LEVELS in {__file__}, above every module that imports from it"


def test_layering_names_no_missing_module() -> None:
    """
    Every module in the table has a file.
    """
    assert sorted(RANKS.keys() - MODULES.keys()) == []


@every_module
def test_layering_imports_lower_modules_only(module: str) -> None:
    """
    A module imports only from modules below it.
    """
    rank = RANKS.get(module, len(RANKS))
    problems = [
        _at(module, node, f"imports from {target}, which is not below {module}")
        for node, target in _inside_imports(module)
        if RANKS.get(target, len(RANKS)) >= rank
    ]
    assert problems == [], "\n".join(problems)


@every_module
def test_layering_imports_are_relative_and_by_name(module: str) -> None:
    """
    A module names what it imports, and imports from memable relatively.
    """
    problems = [
        _at(module, node, "imports from memable absolutely")
        for node, package in _outside_imports(module)
        if package == "memable"
    ]
    problems += [
        _at(module, node, "imports *")
        for node in ast.walk(_parse(module))
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    ]
    assert problems == [], "\n".join(problems)


@every_module
def test_layering_imports_are_at_the_top(module: str) -> None:
    """
    Imports stand at the top of a module, optional extras aside.
    """
    top = {node.lineno for node in _parse(module).body}
    problems = [
        _at(module, node, f"imports {name} inside a block")
        for node, name in (*_outside_imports(module), *_inside_imports(module))
        if node.lineno not in top and (module, name) not in ALLOWED_INSIDE_FUNCTIONS
    ]
    assert problems == [], "\n".join(problems)


@every_module
def test_layering_needs_no_type_checking_block(module: str) -> None:
    """
    What a module imports for its annotations it imports when it runs, too.
    """
    problems = [
        _at(module, node, "mentions TYPE_CHECKING; move what needs it, so that its imports lie below it")
        for node in ast.walk(_parse(module))
        if (isinstance(node, ast.Name) and node.id == "TYPE_CHECKING")
        or (isinstance(node, ast.Attribute) and node.attr == "TYPE_CHECKING")
    ]
    assert problems == [], "\n".join(problems)


@pytest.mark.parametrize("module", [name for name in LEVELS["core"] if name in MODULES])
def test_layering_core_is_pure(module: str) -> None:
    """
    A core module imports nothing that acts, and has no async function.
    """
    problems = [
        _at(module, node, f"imports {package}")
        for node, package in _outside_imports(module)
        if package in FORBIDDEN_IN_CORE and (module, package) not in ALLOWED_IN_CORE
    ]
    problems += [
        _at(module, node, "is an async function")
        for node in ast.walk(_parse(module))
        if isinstance(node, ast.AsyncFunctionDef)
    ]
    assert problems == [], "\n".join(problems)
