"""Slurm scripts really run: a stand-in sbatch and srun start head and workers on loopback, and the command to its end."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from launch_runs import fake_slurm, run_cli, toml

# A name and a word that would do harm in a shell, in sbatch's own parser, in a file name or in a log's format
NASTY = 'my job\'s "best" $(touch PWNED) `touch PWNED` %j ; #x \\'

MARK = "$(touch PWNED) 'x'"

PROGRAM = """
import json, os, subprocess, sys, time
import ray
ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level=40)
wanted = int(sys.argv[2])
@ray.remote(num_cpus=1)
def where(barrier):
    time.sleep(1.0)
    return ray.get_runtime_context().get_node_id(), os.environ["GLOO_SOCKET_IFNAME"], os.environ["IDGBR_STORE"]
rows = ray.get([where.remote(i) for i in range(wanted)])
nodes = [n for n in ray.nodes() if n["Alive"]]
json.dump({"argv": sys.argv[4:], "nodes": len(nodes), "used": len({r[0] for r in rows}), "interface": rows[0][1], "store": rows[0][2],
           "address": os.environ["RAY_ADDRESS"], "secret": open(os.environ["RAY_AUTH_TOKEN_PATH"]).read(),
           "token": oct(os.stat(os.environ["RAY_AUTH_TOKEN_PATH"]).st_mode & 0o777),
           "temp": os.environ["RAY_TMPDIR"], "auth": os.environ["RAY_AUTH_MODE"], "shell": os.environ.get("MARK")}, open(sys.argv[1], "w"))
print("did it on", len(nodes), "nodes", flush=True)
ray.shutdown()
sys.exit(subprocess.call([sys.executable, "-m", "sweeps", "run", sys.argv[3]]))
"""

STUDY = """
from sweeps.study import Axis, Study

SMALL = {
    "data": {"train_scenes": 2, "val_scenes": 2, "test_scenes": 1, "scene_px": 64},
    "backbone": {"crop_px": 64, "train_images": 16, "batch_images": 4, "warmup_images": 4},
    "coarse": {"tile_px": 64, "overlap_px": 16},
    "refiner": {"channels": (16, 32), "condition_channels": (16, 32), "guidance_width": 16, "crop_px": 32, "batch_images": 8,
                "train_images": 32},
    "sampler": {"tile_px": 64, "overlap_px": 16},
    "score": {"tile_px": 64},
}

def tiny():
    overrides = {f"{stage}.{name}": value for stage, values in SMALL.items() for name, value in values.items()}
    return Study("tiny", "synthetic", axes=(Axis("sampler.steps", (1, 2)),), overrides=overrides)
"""

INTERRUPTIBLE = """
import pathlib, sys, time
done = pathlib.Path(sys.argv[1])
try:
    for step in range(int(done.read_text()) if done.exists() else 0, 4):
        if step == 2 and not pathlib.Path(sys.argv[2]).exists():
            pathlib.Path(sys.argv[2]).touch()
            time.sleep(600)
        done.write_text(str(step + 1))
        print("step", step, flush=True)
except KeyboardInterrupt:
    print("interrupted, saved", flush=True)
    sys.exit(130)
"""


def write_spec(folder: Path, nodes: int) -> Path:
    data: dict[str, Any] = {
        "name": NASTY,
        "kind": "slurm",
        "nodes": nodes,
        "cpus_per_node": 1,
        "wall_time": "0:10:00",
        "workdir": str(folder / "work dir"),
        "store": str(folder / "store $(touch PWNED)"),
        "python": sys.executable,
        "env": {"MARK": MARK},
    }
    (folder / "work dir").mkdir(exist_ok=True)
    spec = folder / f"spec{nodes}.toml"
    spec.write_text(toml(data))
    return spec


def wait_for(what: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + 330
    while not what():
        if time.monotonic() > deadline:
            pytest.fail(
                "timed out; the log:\n" + "\n".join(p.read_text()[-1500:] for p in (folder / "work dir" / ".cluster").glob("*.log"))
            )
        time.sleep(0.2)


def processes_of(job: str) -> str:
    return subprocess.run(["pgrep", "-af", f"/r-{job}(/| |$)"], capture_output=True, text=True).stdout


@dataclass
class Ran:
    """Two jobs that shared one machine. `pair` has two nodes; `single` has one, and was interrupted near its wall time."""

    folder: Path
    home: Path
    slurm: dict[str, str]
    pair: str
    single: str
    specs: dict[str, Path]

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        return run_cli(self.home, *words, **self.slurm)

    def log(self, job: str) -> str:
        return self.cli("logs", str(self.specs[job]), "--job", job).stdout

    def slurm_file(self, job: str, name: str) -> Path:
        return Path(self.slurm["FAKE_SLURM"]) / job / name


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    folder = tmp_path_factory.mktemp("slurm")
    slurm = fake_slurm(folder)
    home = folder / "home"
    home.mkdir()
    (folder / "program.py").write_text(PROGRAM)
    (folder / "steps.py").write_text(INTERRUPTIBLE)
    (folder / "study.py").write_text(STUDY)
    commands = {
        2: [sys.executable, str(folder / "program.py"), str(folder / "out.json"), "2", f"{folder / 'study.py'}:tiny", NASTY, "$HOME"],
        1: [sys.executable, str(folder / "steps.py"), str(folder / "done"), str(folder / "once")],
    }
    jobs, specs = {}, {}
    for nodes, words in commands.items():
        spec = write_spec(folder, nodes)
        done = run_cli(home, "submit", str(spec), "--", *words, **slurm)
        assert done.returncode == 0, done.stderr
        jobs[nodes] = done.stdout.strip()
        specs[jobs[nodes]] = spec
    scenario = Ran(folder, home, slurm, jobs[2], jobs[1], specs)
    try:
        wait_for(lambda: (folder / "once").exists(), folder)
        scenario.slurm_file(scenario.single, "warn").touch()
        for job in jobs.values():
            wait_for(lambda job=job: scenario.slurm_file(job, "code").exists(), folder)
        yield scenario
    finally:
        for job in jobs.values():
            if not scenario.slurm_file(job, "code").exists():
                scenario.cli("down", str(specs[job]), "--job", job)
            shutil.rmtree(f"/tmp/r-{job}", ignore_errors=True)


pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def test_the_command_runs_on_a_head_and_a_worker_that_srun_started(ran: Ran) -> None:
    assert "did it on 2 nodes" in ran.log(ran.pair)
    result = json.loads((ran.folder / "out.json").read_text())
    assert result["nodes"] == result["used"] == 2
    assert not result["address"].startswith("127."), "gloo and Ray must not talk to loopback"
    assert result["interface"]


def test_a_small_study_runs_to_its_end_over_both_nodes(ran: Ran) -> None:
    from idgbr.store import Store
    from sweeps import tables

    store = Store(ran.folder / "store $(touch PWNED)")
    trials = tables.scan(store, "trials").to_pydict()
    assert set(trials["status"]) == {"done"}, ran.log(ran.pair)
    assert {1, 2} <= set(trials["sampler.steps"])
    assert len(store.runs("refiner")) == 1, "two settings of the sampler share one trained refiner"


def test_status_tells_the_end_by_the_accounting_once_the_job_has_left_the_queue(ran: Ran) -> None:
    for job in (ran.pair, ran.single):
        status = json.loads(ran.cli("status", str(ran.specs[job]), "--job", job, "--json").stdout)
        assert (status["id"], status["state"], status["command"]) == (job, "SUCCEEDED", NASTY)


def test_names_words_paths_and_variables_that_would_harm_a_shell_arrive_as_written(ran: Ran) -> None:
    result = json.loads((ran.folder / "out.json").read_text())
    assert result["argv"] == [NASTY, "$HOME"]
    assert result["shell"] == MARK
    assert result["store"] == str(ran.folder / "store $(touch PWNED)")
    assert json.loads(ran.slurm_file(ran.pair, "options.json").read_text())["job-name"] == NASTY
    assert not list(ran.folder.glob("**/PWNED")), "something was run as a command"


def test_two_jobs_on_one_machine_have_ports_and_folders_of_their_own(ran: Ran) -> None:
    first, second = (
        int((ran.folder / "work dir" / ".cluster" / job / "0" / "address").read_text().rpartition(":")[2]) for job in (ran.pair, ran.single)
    )
    assert abs(first - second) >= 16
    assert json.loads((ran.folder / "out.json").read_text())["temp"] == f"/tmp/r-{ran.pair}"


def test_each_job_has_a_token_only_its_owner_can_read_and_it_goes_with_the_job(ran: Ran) -> None:
    result = json.loads((ran.folder / "out.json").read_text())
    assert (result["auth"], result["token"]) == ("token", "0o600")
    assert len(result["secret"]) == 64
    assert not list((ran.folder / "work dir").glob("**/token"))
    for path in (ran.folder / "work dir" / ".cluster").glob("**/*"):
        if path.is_file():
            assert result["secret"] not in path.read_text(errors="replace"), f"{path} holds the token"


def test_a_job_near_its_wall_time_is_interrupted_queued_again_and_resumes(ran: Ran) -> None:
    log = ran.log(ran.single)
    steps = [line for line in log.splitlines() if line.startswith(("step", "interrupted", "queueing"))]
    assert steps == ["step 0", "step 1", "interrupted, saved", "queueing the job again; the same command resumes", "step 2", "step 3"], log
    assert ran.slurm_file(ran.single, "code").read_text() == "0"


def test_no_process_and_no_folder_is_left_behind(ran: Ran) -> None:
    for job in (ran.pair, ran.single):
        assert processes_of(job) == ""
        assert not Path(f"/tmp/r-{job}").exists()
