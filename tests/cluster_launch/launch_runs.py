"""What the tests of launching start: our own command line in a clean environment, specs as TOML, a head that runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.launch.spec import ClusterSpec

FOLDER = Path(__file__).parent
QUIET = {"OMP_NUM_THREADS": "1", "RAY_health_check_initial_delay_ms": "5000"}


def environment(home: Path, **more: str) -> dict[str, str]:
    """A clean environment for what the tests start: no Ray of the developer, no token of theirs, this Python first in PATH."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_", "IDGBR_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {
        **kept,
        **QUIET,
        "HOME": str(home),
        "PATH": path,
        "IDGBR_STATE": str(home / "state"),
        "PYTHONPATH": str(FOLDER.parents[1]),
        **more,
    }


def toml(data: dict[str, Any]) -> str:
    """TOML of a spec: JSON's texts, numbers and lists are TOML's too."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in data.items() if not isinstance(value, dict)]
    for section, values in data.items():
        if isinstance(values, dict):
            lines += [f"[{section}]", *(f"{name} = {json.dumps(value)}" for name, value in values.items())]
    return "\n".join(lines) + "\n"


def run_cli(home: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cluster", *words],
        env=environment(home, **more),
        capture_output=True,
        text=True,
        timeout=300,
        cwd=FOLDER.parents[1],
    )


@dataclass(frozen=True)
class RunningHead:
    spec: ClusterSpec
    spec_file: Path
    address: str  # of the dashboard
    gcs: str
    token_file: Path
    home: Path

    def cli(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return run_cli(self.home, *words, **more)


def fake_slurm(folder: Path) -> dict[str, str]:
    """Variables under which sbatch and its kin are the stand-ins of fake_slurm.py."""
    commands = folder / "bin"
    commands.mkdir()
    for name in ("sbatch", "srun", "squeue", "scancel", "scontrol"):
        script = commands / name
        script.write_text(f"#!{sys.executable}\n" + (FOLDER / "fake_slurm.py").read_text())
        script.chmod(0o755)
    (folder / "slurm").mkdir()
    path = os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {"PATH": path, "FAKE_SLURM": str(folder / "slurm"), "FAKE_SLURM_FIRST": str(4000 + os.getpid() % 700)}
