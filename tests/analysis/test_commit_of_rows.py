"""Rows name the commit of the code, also where the code was copied without its repository, as into an image."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_without_a_repository_the_commit_is_what_the_image_was_built_with(tmp_path: Path) -> None:
    for package in ("idgbr", "cluster", "sweeps"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "naip_fields"))
    ask = [sys.executable, "-c", "from sweeps import tables; print(tables.__file__); print(repr(tables.git_commit()))"]
    for environment, commit in (({}, ""), ({"IDGBR_COMMIT": "4f1c0de"}, "4f1c0de")):
        values = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path), **environment}
        out = subprocess.run(ask, cwd=tmp_path, env=values, capture_output=True, text=True, check=True).stdout.splitlines()
        assert out == [str(tmp_path / "sweeps" / "tables.py"), repr(commit)]
