"""docs/architecture.md lists every file and the signatures that other folders rely on.

`python tests/house/test_architecture.py` writes both lists again from the sources.
"""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = ("idgbr", "cluster", "sweeps")
WIDTH = 120

# What one folder offers to others: file -> names ("Class.method" for methods).
INTERFACES: dict[str, tuple[str, ...]] = {
    "idgbr/config.py": ("apply", "to_dict", "from_dict"),
    "idgbr/recipes.py": ("recipe", "experiment"),
    "idgbr/labels.py": ("ClassTable.encode", "ClassTable.colorize", "ClassTable.load"),
    "idgbr/store.py": ("Store.has", "Store.put", "Store.path", "Store.manifest"),
    "idgbr/stages.py": ("jobs", "run"),
    "idgbr/rasters/grid.py": ("opened", "require_same_grid"),
    "idgbr/rasters/read.py": ("Reader.read", "Reader.valid", "read_labels", "read_probabilities"),
    "idgbr/rasters/write.py": ("write_class_map", "write_probabilities"),
    "idgbr/rasters/tiling.py": ("windows", "hann", "tile_seed"),
    "idgbr/rasters/edges.py": ("label_edges", "distance_bands"),
    "idgbr/datasets/scan.py": ("prepare", "input_digest"),
    "idgbr/datasets/index.py": ("load", "Dataset.of", "Dataset.folds"),
    "idgbr/training/samples.py": ("TrainSamples.__init__", "sample_seed"),
    "idgbr/training/loop.py": ("train",),
    "idgbr/coarse/backbone.py": ("build", "fit", "load", "predict"),
    "idgbr/coarse/stage.py": ("write",),
    "idgbr/refiner/refiner.py": ("Refiner.build", "Refiner.load", "Refiner.save", "Refiner.refine"),
    "idgbr/refiner/network.py": ("RefinerNetwork.condition", "RefinerNetwork.predict"),
    "idgbr/refiner/process.py": ("Process.seen", "Process.target", "Process.walk"),
    "idgbr/refiner/loss.py": ("fit",),
    "idgbr/scene/strips.py": ("refine_rows", "refine_raster"),
    "idgbr/scene/geotiff.py": ("refine_scene",),
    "idgbr/scene/stage.py": ("refine_split",),
    "idgbr/scores/counts.py": ("count_rasters",),
    "idgbr/scores/tile.py": ("count_tile",),
    "idgbr/scores/read.py": ("evaluate",),
    "sweeps/study.py": ("expand",),
    "sweeps/studies.py": ("find",),
}


def definitions(path: Path) -> dict[str, ast.FunctionDef]:
    """Functions of a file by name, methods as "Class.method"."""
    found: dict[str, ast.FunctionDef] = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}": inner for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return found


def signatures() -> str:
    lines = []
    for file, names in INTERFACES.items():
        known = definitions(ROOT / file)
        lines.append(f"# {file}")
        for name in names:
            assert name in known, f"{file} has no function {name}: correct INTERFACES in {Path(__file__).name}"
            node = known[name]
            result = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
            text = f"{name}({ast.unparse(node.args)}){result}"
            lines += textwrap.wrap(text, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
        lines.append("")
    return "\n".join(lines).strip()


def files() -> dict[str, str]:
    """Every file with the first sentence of its docstring."""
    found = {}
    for package in PACKAGES:
        paths = [p for p in (ROOT / package).rglob("*.py") if p.name != "__init__.py"]
        for path in sorted(paths, key=lambda p: (len(p.relative_to(ROOT).parts), str(p))):
            first = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0].split())
            found[str(path.relative_to(ROOT))] = re.split(r"(?<=[a-z0-9)`])[.:] ", first)[0].rstrip(".:")
    return found


def parts(text: str, heading: str) -> tuple[str, str, str]:
    """The page before, inside and after the first fenced block below a heading."""
    match = re.search(rf"(^## {re.escape(heading)}$.*?^```\w*\n)(.*?)(\n```$)", text, re.MULTILINE | re.DOTALL)
    assert match, f"docs/architecture.md has no fenced block below '## {heading}'"
    return text[: match.end(1)], match[2], text[match.start(3) :]


def written() -> str:
    """The page with both lists made from the sources."""
    text, width = PAGE.read_text(), max(map(len, files())) + 2
    for heading, content in (
        ("Interfaces", signatures()),
        ("Files", "\n".join(f"{name:<{width}}{says}" for name, says in files().items())),
    ):
        before, _, after = parts(text, heading)
        text = before + content + after
    return text


def test_the_page_lists_every_file_by_its_whole_path() -> None:
    listed = [line.split()[0] for line in parts(PAGE.read_text(), "Files")[1].splitlines()]
    assert sorted(listed) == sorted(files()), "run: python tests/house/test_architecture.py"


def test_the_signatures_on_the_page_are_those_of_the_sources() -> None:
    assert parts(PAGE.read_text(), "Interfaces")[1] == signatures(), "run: python tests/house/test_architecture.py"


if __name__ == "__main__":
    PAGE.write_text(written())
