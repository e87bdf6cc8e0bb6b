"""Imports run one way: idgbr <- cluster <- sweeps, in no circle, and nothing private crosses a file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("idgbr", "cluster", "sweeps")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imported(module: str) -> set[tuple[str, str]]:
    """(module, name) of every import of the project's own modules, also those inside functions; name is "" for `import module`."""
    found: set[tuple[str, str]] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names if alias.name in MODULES}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports by a relative path"
            if node.module in MODULES:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    found.add((inner, "") if inner in MODULES else (str(node.module), alias.name))
    return found


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(v: str) -> None:
        index[v] = low[v] = len(index)
        stack.append(v)
        for w in edges[v]:
            if w not in index:
                visit(w)
            if w in stack:
                low[v] = min(low[v], low[w])
        if low[v] == index[v]:
            component = [stack.pop()]
            while component[-1] != v:
                component.append(stack.pop())
            if len(component) > 1:
                found.append(sorted(component))

    for v in edges:
        if v not in index:
            visit(v)
    return found


def test_the_search_for_circles_finds_one() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_no_modules_import_each_other_in_a_circle() -> None:
    edges = {module: {other for other, _ in imported(module)} - {module} for module in MODULES}
    assert circles(edges) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_in_one_direction(package: str) -> None:
    allowed = PACKAGES[: PACKAGES.index(package) + 1]
    for module in MODULES:
        if module.partition(".")[0] == package:
            foreign = {other for other, _ in imported(module) if other.partition(".")[0] not in allowed}
            assert not foreign, f"{module} imports {foreign}"


def test_no_private_name_is_imported_across_files() -> None:
    private = [
        f"{module}: {other}.{name}"
        for module in MODULES
        for other, name in imported(module)
        if name.startswith("_") or other.rpartition(".")[2].startswith("_")
    ]
    assert not private


def test_no_file_is_longer_than_400_lines() -> None:
    long = {module: n for module, path in MODULES.items() if (n := len(path.read_text().splitlines())) > 400}
    assert not long
