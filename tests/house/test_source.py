"""What can be read off the source: nothing is taken from the environment at import, and public names of the method have docstrings."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE_OF_ENVIRONMENT = {"environ", "getenv", "home", "expanduser", "cwd", "getcwd", "gethostname"}


def sources(*packages: str) -> list[tuple[str, ast.Module]]:
    return [
        (str(path.relative_to(ROOT)), ast.parse(path.read_text()))
        for package in packages
        for path in sorted((ROOT / package).rglob("*.py"))
    ]


def run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below `node` that an import evaluates: not the bodies of functions, but their defaults and decorators."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            arguments = child.args
            decorators = [] if isinstance(child, ast.Lambda) else child.decorator_list
            for part in (*arguments.defaults, *(d for d in arguments.kw_defaults if d is not None), *decorators):
                yield part
                yield from run_at_import(part)
        elif not is_main_guard(child):
            yield child
            yield from run_at_import(child)


def is_main_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def environment_read(tree: ast.Module) -> list[int]:
    names = [
        (node.attr if isinstance(node, ast.Attribute) else node.id, node.lineno)
        for node in run_at_import(tree)
        if isinstance(node, ast.Attribute | ast.Name)
    ]
    return [line for name, line in names if name in SOURCE_OF_ENVIRONMENT]


def test_the_environment_is_not_read_at_import() -> None:
    """A setting read at import cannot be changed by the program that imports, and a test cannot see it changed."""
    assert environment_read(ast.parse("import os\nX = os.environ.get('X', '')\n")) == [2]
    assert environment_read(ast.parse("def f(x=os.getenv('X')): ...\n@g(Path.home())\ndef h(): os.environ\n")) == [1, 2]
    found = [f"{path}:{line}" for path, tree in sources("idgbr", "cluster", "sweeps") for line in environment_read(tree)]
    assert not found


def classes_of(trees: Iterable[ast.Module]) -> dict[str, ast.ClassDef]:
    return {node.name: node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def is_inherited(method: str, owner: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> bool:
    """Whether a class that `owner` extends documents the method: `help` shows that text."""
    bases = [classes[base.id] for base in owner.bases if isinstance(base, ast.Name) and base.id in classes]
    return any(
        any(isinstance(inner, ast.FunctionDef) and inner.name == method and ast.get_docstring(inner) for inner in base.body)
        or is_inherited(method, base, classes)
        for base in bases
    )


def public_without_docstring(tree: ast.Module, classes: dict[str, ast.ClassDef]) -> list[str]:
    found = [] if ast.get_docstring(tree) else ["module"]
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            found.append(f"{node.lineno} {node.name}")
        for inner in node.body if isinstance(node, ast.ClassDef) else ():
            if not isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) or inner.name.startswith("_"):
                continue
            if not ast.get_docstring(inner) and not is_inherited(inner.name, node, classes):
                found.append(f"{inner.lineno} {node.name}.{inner.name}")
    return found


def test_public_names_of_the_method_have_docstrings() -> None:
    trees = sources("idgbr")
    classes = classes_of(tree for _, tree in trees)
    missing = [f"{path}:{name}" for path, tree in trees for name in public_without_docstring(tree, classes)]
    assert not missing, "\n".join(missing)
