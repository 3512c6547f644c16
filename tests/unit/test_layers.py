"""The rules of the house, read off the imports."""

from __future__ import annotations

import ast
import re
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


FOR_ALL = ("types", "errors", "config", "progress", "__version__")


def layers() -> dict[str, list[str]]:
    """The table of ARCHITECTURE.md: what each package may import of whelp."""
    text = (ROOT.parents[1] / "ARCHITECTURE.md").read_text()
    rows = re.findall(r"^\| `(\w+)/` \|.*\| ([^|]*) \|$", text, re.M)
    return {package: re.findall(r"`([\w.]+)`", allowed) for package, allowed in rows}


def test_the_table_names_every_package_but_the_top_and_the_data() -> None:
    packages = {folder.name for folder in ROOT.iterdir() if (folder / "__init__.py").is_file()}
    assert packages - set(layers()) == {"cli", "data", "recipes"} & packages


@pytest.mark.parametrize("package", layers())
def test_a_package_imports_what_the_table_allows(package: str) -> None:
    allowed = tuple(f"whelp.{name}" for name in (package, *FOR_ALL, *layers()[package]))
    for file in of_package(package):
        ours = uses(file, "whelp") - {"whelp"}
        other = {name for name in ours if not any(name == a or name.startswith(f"{a}.") for a in allowed)}
        assert not other, file.name


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
