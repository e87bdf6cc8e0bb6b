"""The house holds: directions of imports, light command lines, no forbidden names, a true file tree."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("idgbr", "cluster", "sweeps")
LIGHT = [
    "sweeps.analysis.stats",
    "sweeps.analysis.trials",
    "sweeps.analysis.contrasts",
    "sweeps.report.formats",
    "sweeps.report.plots",
    "sweeps.report.page",
    "sweeps.report.publish",
    "sweeps.report.commands",
    "sweeps.run.commands",  # finds the study for every verb
]


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
    return names


def test_the_method_knows_neither_ray_nor_optuna() -> None:
    for path in sorted((ROOT / "idgbr").rglob("*.py")):
        tops = {name.partition(".")[0] for name in imports_of(path)}
        assert not tops & {"ray", "optuna"}, f"{path.relative_to(ROOT)} imports {tops & {'ray', 'optuna'}}"


@pytest.mark.parametrize("module", LIGHT)
def test_reading_tables_needs_neither_torch_nor_ray(module: str) -> None:
    code = f"import sys, {module}; bad = {{'torch', 'ray'}} & set(sys.modules); assert not bad, bad"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("command", [["-m", "idgbr"], ["-m", "sweeps"], ["-m", "cluster"]])
def test_help_imports_nothing_heavy_and_shows_an_example(command: list[str]) -> None:
    code = (
        "import runpy, sys; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_module({command[1]!r}, run_name='__main__')\n"
        "except SystemExit: pass\n"
        "bad = {'torch', 'ray', 'diffusers', 'matplotlib', 'timm'} & set(sys.modules); assert not bad, bad"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "xample" in done.stdout, done.stdout
    assert time.perf_counter() - started < 60  # hang guard only; the time itself is measured in benchmarks


def test_no_file_name_says_nothing() -> None:
    empty = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "base"}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            assert path.stem not in empty, path
