"""What docs/clusters.md says of Slurm, with Ray, on a real Slurm of two nodes; test_slurm_ends.py has more on how jobs end.

Two jobs; the tests look at what they left.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
import real_slurm
from slurm_jobs import Jobs

# A name and a word that would do harm in a shell, in sbatch's own parser, in a file name or in a log's format
NASTY = 'my job\'s "best" $(touch PWNED) `touch PWNED` %j ; #x \\'
MARK = "$(touch PWNED) 'x'"
REASON = real_slurm.missing()
pytestmark = [pytest.mark.ray, pytest.mark.timeout(900), pytest.mark.skipif(bool(REASON), reason=REASON)]

PROGRAM = """
import json, os, subprocess, sys, time
import ray
ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level=40)
@ray.remote(num_cpus=1)
def where(barrier):
    time.sleep(1.0)
    return ray.get_runtime_context().get_node_id(), os.environ["GLOO_SOCKET_IFNAME"], os.environ["IDGBR_STORE"]
rows = ray.get([where.remote(i) for i in range(2)])
alive = sum(n["Alive"] for n in ray.nodes())
json.dump({"argv": sys.argv[3:], "nodes": alive, "used": len({r[0] for r in rows}), "interface": rows[0][1], "store": rows[0][2],
           "address": os.environ["RAY_ADDRESS"], "secret": open(os.environ["RAY_AUTH_TOKEN_PATH"]).read(),
           "token": oct(os.stat(os.environ["RAY_AUTH_TOKEN_PATH"]).st_mode & 0o777),
           "temp": os.environ["RAY_TMPDIR"], "auth": os.environ["RAY_AUTH_MODE"], "shell": os.environ.get("MARK")}, open(sys.argv[1], "w"))
print("did it on", alive, "nodes", flush=True)
ray.shutdown()
sys.exit(subprocess.call([sys.executable, "-m", "sweeps", "run", sys.argv[2]]))
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


@pytest.fixture(scope="module")
def ran() -> Iterator[Jobs]:
    slurm = real_slurm.Slurm(2)
    jobs = Jobs(slurm, slurm.folder / "shared")
    work = jobs.work
    for name, text in (("program.py", PROGRAM), ("study.py", STUDY)):
        (work / name).write_text(text)
    try:
        slurm.start()
        program = [sys.executable, str(work / "program.py"), str(work / "out.json"), f"{work / 'study.py'}:tiny", NASTY, "$HOME"]
        jobs.submit("pair", program, "n1,n2", name=NASTY, env={"MARK": MARK})
        follow = subprocess.Popen(
            jobs.words("logs", str(jobs.specs["pair"]), "--job", jobs.jobs["pair"], "--follow"),
            env=jobs.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=work,
        )  # fmt: skip
        jobs.until(lambda: (work / "out.json").exists(), "the two nodes work", "pair")
        steps = [sys.executable, str(work / "steps.py"), str(work / "neighbour"), "ray"]
        jobs.submit("neighbour", steps, "n1", gpus_per_node=1)
        jobs.until(lambda: (work / "neighbour.once").exists(), "its neighbour works", "neighbour")
        assert jobs.of("neighbour", "down").returncode == 0
        jobs.until(lambda: jobs.ended("pair"), "the job ends")
        jobs.followed, _ = follow.communicate(timeout=120)
        assert follow.returncode == 0, "S2: a follower ends well without accounting"
        yield jobs
    finally:
        slurm.stop()


def result(ran: Jobs) -> dict[str, object]:
    return dict(json.loads((ran.work / "out.json").read_text()))


def test_the_command_runs_on_both_nodes_of_its_job_and_is_followed_to_its_end(ran: Jobs) -> None:
    assert "did it on 2 nodes" in ran.followed
    found = result(ran)
    assert found["nodes"] == found["used"] == 2
    assert not str(found["address"]).startswith("127."), "gloo and Ray must not use loopback"
    assert found["interface"] == "eth0"
    status = ran.status("pair")
    assert (status["state"], status["command"], status["exit_code"]) == ("SUCCEEDED", NASTY, 0)


def test_a_small_study_runs_to_its_end_over_both_nodes(ran: Jobs) -> None:
    from idgbr.store import Store
    from sweeps import tables

    store = Store(ran.work / "store $(touch PWNED)")
    trials = tables.scan(store, "trials").to_pydict()
    assert set(trials["status"]) == {"done"}, ran.log("pair")
    assert {1, 2} <= set(trials["sampler.steps"])
    assert len(store.runs("refiner")) == 1, "two settings of the sampler share one trained refiner"


def test_names_words_paths_and_variables_that_would_harm_a_shell_arrive_as_written(ran: Jobs) -> None:
    found = result(ran)
    assert found["argv"] == [NASTY, "$HOME"]
    assert found["shell"] == MARK
    assert found["store"] == str(ran.work / "store $(touch PWNED)")
    assert not list(ran.work.glob("**/PWNED")), "something was run as a command"


def test_two_jobs_on_one_node_have_ports_and_folders_of_their_own(ran: Jobs) -> None:
    first, second = (int((ran.run_dir(job) / "address").read_text().rpartition(":")[2]) for job in ("pair", "neighbour"))
    assert abs(first - second) >= 16
    assert result(ran)["temp"] == f"{ran.site.scratch}/r-{ran.jobs['pair']}"


def test_each_job_has_a_token_only_its_owner_can_read_and_it_goes_with_the_job(ran: Jobs) -> None:
    found = result(ran)
    assert (found["auth"], found["token"]) == ("token", "0o600")
    secret = str(found["secret"])
    assert len(secret) == 64
    assert not list(ran.folder.glob("**/token"))
    for path in (*ran.folder.glob("**/*"), *ran.site.folder.glob("*.log"), *ran.site.folder.glob("state/**/*")):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), f"{path} holds the token"


def test_down_lets_the_command_save_while_ray_still_answers(ran: Jobs) -> None:
    assert "interrupted, saved with Ray alive" in ran.log("neighbour")
    assert ran.status("neighbour")["state"] == "STOPPED"


def test_no_process_and_no_folder_is_left_and_rays_logs_are_kept(ran: Jobs) -> None:
    """S1."""
    for job, nodes in (("pair", ("n1", "n2")), ("neighbour", ("n1",))):
        for n, name in enumerate(nodes):
            assert (ran.run_dir(job) / f"ray-logs-{'worker' if n else 'head'}-{name}").is_dir()
            assert not (ran.site.folder / f"local-{name}" / f"r-{ran.jobs[job]}").exists()
        assert not subprocess.run(["pgrep", "-f", f"/r-{ran.jobs[job]}(/| |$)"], capture_output=True, text=True).stdout
