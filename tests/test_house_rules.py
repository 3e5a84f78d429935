"""Rules that hold over the whole repository."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("dami_merge/**/*.py"), *ROOT.glob("plugins/*/*dami*/**/*.py")])
TESTS = sorted([*ROOT.glob("tests/**/test_*.py"), *ROOT.glob("plugins/*/tests/**/test_*.py")])


def imported(path: Path) -> set[str]:
    """The top-level packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_are_small_and_keep_to_their_side(path: Path) -> None:
    """No module is over 400 lines; only the adapter imports mergekit; the light half imports nothing heavy."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    packages = imported(path)
    assert ("mergekit" in packages) == (path.name == "mergekit_adapter.py")
    if "plugins" in path.parts and "vllm-dami" not in path.parts:
        assert not packages & {"torch", "transformers", "dami_merge"}


@pytest.mark.parametrize("path", TESTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_test_says_what_it_shows(path: Path) -> None:
    """Each test function has a docstring of at least one sentence."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            text = ast.get_docstring(node) or ""
            assert text.rstrip().endswith("."), f"{node.name} in line {node.lineno}"


def _public_names() -> dict[str, list[str]]:
    """Where each module and each public class of the distributions is defined."""
    found: dict[str, list[str]] = {}
    for path in SOURCES:
        if path.stem.startswith("__"):
            continue
        found.setdefault(f"module {path.stem}", []).append(str(path))
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(f"class {node.name}", []).append(str(path))
    return found


def test_a_name_has_one_meaning() -> None:
    """No module file name and no public class name is used twice across the distributions."""
    assert {name: places for name, places in _public_names().items() if len(places) > 1} == {}


def test_mutation_testing_names_modules_and_tests_that_are_there() -> None:
    """A module or test file that is renamed is renamed in tests/mutants/rooms.toml too."""
    rooms = tomllib.loads((ROOT / "tests" / "mutants" / "rooms.toml").read_text(encoding="utf-8"))
    packages = {"dami_router": ROOT / "plugins" / "dami-router", "dami_merge": ROOT}
    for room in rooms.values():
        for module in room["modules"]:
            assert (packages[module.split("/")[0]] / module).is_file(), module
        for test in room["tests"]:
            assert (ROOT / test).is_file(), test
