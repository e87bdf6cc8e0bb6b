"""Jobs for the Slurm tests, and how they are submitted and watched: on real_slurm.Slurm, or on the stand-in of fake_slurm.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
from launch_runs import environment, fake_slurm, toml

# Four steps; interrupted in the third, it saves; started again it continues. Ray must still be there while it saves.
STEPS = """
import os, pathlib, sys, time
done = pathlib.Path(sys.argv[1])
try:
    for step in range(int(done.read_text()) if done.exists() else 0, 4):
        if step == 2 and not pathlib.Path(sys.argv[1] + ".once").exists():
            pathlib.Path(sys.argv[1] + ".once").touch()
            time.sleep(600)
        done.write_text(str(step + 1))
        print("step", step, flush=True)
except KeyboardInterrupt:
    time.sleep(2)
    if sys.argv[2:] == ["ray"]:
        import socket
        host, port = os.environ["RAY_ADDRESS"].split(":")
        socket.create_connection((host, int(port)), 5).close()
    else:
        os.kill(int((pathlib.Path(os.environ["RAY_TMPDIR"]) / "pid").read_text()), 0)
    print("interrupted, saved with Ray alive", flush=True)
    sys.exit(130)
"""

# Where Slurm alone is looked at, Ray's place is taken by a process that waits.
NO_RAY = """#!/bin/bash
case "$2" in
cluster.ray_start)
    mkdir -p "$RAY_TMPDIR/ray/session_latest/logs"
    echo started >"$RAY_TMPDIR/ray/session_latest/logs/raylet.log"
    echo $$ >"$RAY_TMPDIR/pid"
    exec sleep 600
    ;;
cluster.wait) exit 0 ;;
*) exec {python} "$@" ;;
esac
"""

# Where Ray cannot start.
NO_HEAD = """#!/bin/bash
if [ "$2" = cluster.ray_start ]; then exit 1; fi
exec {python} "$@"
"""

# Takes no notice of being asked to stop.
DEAF = "trap '' INT TERM; touch {mark}; for i in $(seq 600); do sleep 1; done"


class Site(Protocol):
    """A Slurm: where its commands run, and what the user's environment says of it."""

    folder: Path
    scratch: Path

    def at_login(self, *words: str) -> list[str]: ...
    def variables(self) -> dict[str, str]: ...


class StandIn:
    """fake_slurm.py in the place of Slurm's commands."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="f", dir="/tmp"))
        self.scratch = self.folder / "l"
        self.scratch.mkdir()
        self.named = fake_slurm(self.folder)

    def at_login(self, *words: str) -> list[str]:
        return list(words)

    def variables(self) -> dict[str, str]:
        return self.named


@dataclass
class Jobs:
    """Jobs by what they show."""

    site: Site
    work: Path
    jobs: dict[str, str] = field(default_factory=dict)
    specs: dict[str, Path] = field(default_factory=dict)
    followed: str = ""  # output of the job that was followed

    def __post_init__(self) -> None:
        (self.work / "work dir").mkdir(parents=True)
        (self.work / "steps.py").write_text(STEPS)
        for name, text in (("no-ray", NO_RAY), ("no-head", NO_HEAD)):
            (self.work / name).write_text(text.format(python=sys.executable))
            (self.work / name).chmod(0o755)

    @property
    def folder(self) -> Path:
        return self.work / "work dir" / ".cluster"

    def environment(self) -> dict[str, str]:
        return environment(self.work) | self.site.variables()

    def words(self, *words: str) -> list[str]:
        return self.site.at_login(sys.executable, "-m", "cluster", *words)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of Slurm's, on the login node."""
        return subprocess.run(
            self.site.at_login(*words), env=self.environment(), capture_output=True, text=True, timeout=300, cwd=self.work
        )

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "cluster", *words)

    def of(self, job: str, verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        return self.cli(verb, str(self.specs[job]), "--job", self.jobs[job], *words)

    def status(self, job: str) -> dict[str, Any]:
        done = self.of(job, "status", "--json")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def submit(self, job: str, command: list[str], nodes: str = "", **spec: Any) -> None:
        slurm = {"scratch": str(self.site.scratch), **({"extra": [f"--nodelist={nodes}"]} if nodes else {}), **spec.pop("slurm", {})}
        data = {
            "name": spec.pop("name", job),
            "kind": "slurm",
            "nodes": nodes.count(",") + 1,
            "cpus_per_node": 1,
            "wall_time": "0:20:00",
            "workdir": str(self.work / "work dir"),
            "store": str(self.work / "store $(touch PWNED)"),
            "python": sys.executable,
            **spec,
            "env": {"PYTHONPATH": os.environ.get("PYTHONPATH", str(Path(__file__).parents[2])), **spec.pop("env", {})},
            "slurm": slurm,
        }
        self.specs[job] = self.work / f"{job}.toml"
        self.specs[job].write_text(toml(data))
        done = self.cli("submit", str(self.specs[job]), "--", *command)
        assert done.returncode == 0, done.stderr
        self.jobs[job] = done.stdout.strip()

    def log(self, job: str) -> str:
        return (self.folder / f"{self.jobs[job]}.log").read_text()

    def run_dir(self, job: str, restart: int = 0) -> Path:
        return self.folder / self.jobs[job] / str(restart)

    def shown(self, job: str) -> str:
        return self.run("scontrol", "--oneliner", "show", "job", self.jobs[job]).stdout

    def ended(self, job: str) -> bool:
        return (self.folder / self.jobs[job] / "end").exists()

    def until(self, what: Callable[[], bool], about: str, job: str = "", seconds: float = 420) -> None:
        """Wait; fail when the time is over, or `job` has ended before."""
        deadline = time.monotonic() + seconds
        while not what():
            if time.monotonic() > deadline or (job and self.ended(job)):
                logs = "\n".join(f"{path}:\n{path.read_text(errors='replace')[-1500:]}" for path in self.folder.glob("*.log"))
                pytest.fail(f"{about}: did not happen\n{self.run('squeue').stdout}\n{logs}")
            time.sleep(0.3)

    def start_again(self, job: str) -> None:
        """A requeued job is held back for two minutes; an operator's command cuts that short."""
        self.until(lambda: "JobState=PENDING" in self.shown(job) and "Restarts=1" in self.shown(job), f"{job} is queued again")
        self.run("scontrol", "update", f"JobId={self.jobs[job]}", "StartTime=now")
