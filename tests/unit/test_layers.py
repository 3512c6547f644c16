"""The rules of the house, read off the imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import whelp

ROOT = Path(whelp.__file__).parent


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def of_package(name: str) -> list[Path]:
    files = sorted((ROOT / name).rglob("*.py"))
    assert files, name
    return files


def uses(file: Path, *prefixes: str) -> set[str]:
    return {name for name in imports(file) if any(name == p or name.startswith(p + ".") for p in prefixes)}


def test_maths_knows_nothing_but_torch_and_itself() -> None:
    for file in of_package("maths"):
        ours = uses(file, "whelp")
        assert all(name.startswith(("whelp.maths", "whelp.types")) for name in ours), (file.name, ours)
        assert not uses(file, "transformers", "numpy", "scipy"), file.name


def test_stages_know_no_concrete_engine() -> None:
    for file in of_package("stages"):
        engines = uses(file, "whelp.engines")
        assert all(name.startswith("whelp.engines.base") for name in engines), (file.name, engines)


@pytest.mark.parametrize("package", ["report", "runs", "checkers", "text", "models", "engines"])
def test_lower_layers_know_no_stage(package: str) -> None:
    for file in of_package(package):
        assert not uses(file, "whelp.stages", "whelp.jobs", "whelp.pipeline"), file.name


def test_nothing_imports_the_command_line() -> None:
    for file in sorted(ROOT.rglob("*.py")):
        if file.parent.name != "cli" and file.name != "__main__.py":
            assert not uses(file, "whelp.cli"), file


def test_the_command_line_starts_without_torch() -> None:
    for file in of_package("cli"):
        tree = ast.parse(file.read_text())
        top = {a.name for node in tree.body if isinstance(node, ast.Import) for a in node.names}
        top |= {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
        heavy = {
            name
            for name in top
            if name.split(".")[0] in ("torch", "transformers")
            or name.startswith(("whelp.engines", "whelp.stages", "whelp.pipeline"))
        }
        assert not heavy, (file.name, heavy)


def test_files_stay_short() -> None:
    long = {file.name: n for file in ROOT.rglob("*.py") if (n := len(file.read_text().splitlines())) > 450}
    assert not long
