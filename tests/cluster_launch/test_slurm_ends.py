"""How a job ends: interrupted before its wall time, stopped, deaf to signals, cancelled, failed. On real Slurm, and on the stand-in.

Ray's place is taken by a process that waits, so that this is quick and also runs on machines without Slurm; test_slurm.py has Ray.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import real_slurm
from slurm_jobs import DEAF, Jobs, StandIn

pytestmark = pytest.mark.timeout(600)

# Works until it is stopped or its node is lost.
BEAT = """
import pathlib, sys, time
while True:
    pathlib.Path(sys.argv[1]).write_text("x")
    time.sleep(0.2)
"""


@pytest.fixture(scope="module", params=["stand-in", "slurm"])
def ran(request: pytest.FixtureRequest) -> Iterator[Jobs]:
    """All jobs at once: the wall time of a minute is the longest of them."""
    real = request.param == "slurm"
    if real and (why := real_slurm.missing()):
        pytest.skip(why)
    site = real_slurm.Slurm(4) if real else StandIn()
    jobs = Jobs(site, site.folder / "shared")
    no_ray = {"python": str(jobs.work / "no-ray")}
    first = {**no_ray, "nodes": "n1" if real else ""}
    steps = [sys.executable, str(jobs.work / "steps.py")]
    try:
        if isinstance(site, real_slurm.Slurm):
            site.start()
            (jobs.work / "beat.py").write_text(BEAT)
            for job, nodes in (("lost", "n4"), ("outlasts", "n2,n3")):
                jobs.submit(job, [sys.executable, str(jobs.work / "beat.py"), str(jobs.work / job)], nodes, **no_ray)
        minute = "0:01:00" if real else "0:00:30"  # Slurm knows no shorter wall time
        jobs.submit("deaf", ["bash", "-c", DEAF.format(mark=jobs.work / "deaf")], wall_time=minute, slurm={"warn_s": 20}, **first)
        jobs.submit("warned", [*steps, str(jobs.work / "warned")], **first)
        jobs.submit("stopped", [*steps, str(jobs.work / "stopped")], **first)
        jobs.submit("cancelled", [*steps, str(jobs.work / "cancelled")], **first)
        stale = jobs.folder / "4294967" / "0" / "token"  # of a job that a lost node ended
        stale.parent.mkdir(parents=True)
        stale.touch()
        jobs.submit("failed", ["bash", "-c", "exit 7"], **first)
        jobs.submit("broken", ["true"], **{**first, "python": str(jobs.work / "no-head")})
        for job in ("warned", "stopped", "cancelled"):
            jobs.until(lambda job=job: (jobs.work / f"{job}.once").exists(), f"{job} works", job)  # type: ignore[misc]
        jobs.run("scancel", "--batch", "--signal=USR1", jobs.jobs["warned"])  # as Slurm does near the wall time
        assert jobs.of("stopped", "down").returncode == 0
        jobs.run("scancel", jobs.jobs["cancelled"])
        jobs.start_again("warned")
        for job in ("warned", "failed", "broken", "cancelled"):
            jobs.until(lambda job=job: jobs.ended(job), f"{job} ends")  # type: ignore[misc]
        jobs.until(lambda: "Restarts=1" in jobs.shown("deaf"), "the deaf job is queued again", "deaf")
        if isinstance(site, real_slurm.Slurm):
            lose_nodes(site, jobs)
        yield jobs
    finally:
        for number in jobs.jobs.values():
            jobs.run("scancel", number)
        if isinstance(site, real_slurm.Slurm):
            site.stop()
        else:
            deadline = time.monotonic() + 60
            while any(not (site.folder / "slurm" / n / "over").exists() for n in jobs.jobs.values()) and time.monotonic() < deadline:
                time.sleep(0.2)
            shutil.rmtree(site.folder, ignore_errors=True)


def lose_nodes(slurm: real_slurm.Slurm, jobs: Jobs) -> None:
    """The only node of the job `lost`, the second one of `outlasts`. At the end, and neither starts again: slurmctld 22.05 crashes when a
    job that was queued again for a lost node makes a step. To the script it is the start that the job `warned` makes.
    """
    for job, node in (("lost", "n4"), ("outlasts", "n3")):
        jobs.until((jobs.work / job).exists, f"{job} works", job)
        slurm.lose(node)
    jobs.until(lambda: "down" in jobs.run("sinfo", "--noheader", "--nodes=n3", "--format=%T").stdout, "Slurm notices the lost worker")
    noticed = time.time()
    jobs.until(lambda: (jobs.work / "outlasts").stat().st_mtime > noticed, "the job goes on without its worker", "outlasts")
    assert jobs.of("outlasts", "down").returncode == 0
    jobs.until(lambda: jobs.ended("outlasts"), "it stops")
    jobs.until(lambda: "Restarts=1" in jobs.shown("lost"), "the job whose only node is lost is queued again")


def test_a_job_near_its_wall_time_saves_is_queued_again_and_resumes(ran: Jobs) -> None:
    told = [line for line in ran.log("warned").splitlines() if line.startswith(("step", "interrupted", "queueing"))]
    again = "queueing the job again; the same command resumes"
    assert told == ["step 0", "step 1", "interrupted, saved with Ray alive", again, "step 2", "step 3"], ran.log("warned")
    assert ran.status("warned")["state"] == "SUCCEEDED"


def test_a_job_that_does_not_stop_in_time_is_queued_again_all_the_same(ran: Jobs) -> None:
    """S3: half of the warning is for saving, then the command is killed."""
    assert (ran.work / "deaf").exists()
    assert "JobState=PENDING" in ran.shown("deaf")
    assert ran.status("deaf")["state"] == "PENDING"
    assert "queueing the job again" in ran.log("deaf")


def test_down_lets_the_command_save_before_ray_ends(ran: Jobs) -> None:
    """S4: the command is in a process group of its own, and is ended first."""
    assert "interrupted, saved with Ray alive" in ran.log("stopped")
    status = ran.status("stopped")
    assert (status["state"], status["exit_code"]) == ("STOPPED", 143)


def test_a_job_whose_ray_does_not_start_says_so_and_its_end_is_known(ran: Jobs) -> None:
    assert "the Ray head has ended" in ran.log("broken")
    status = ran.status("broken")
    assert (status["state"], status["exit_code"]) == ("FAILED", 3)


def test_a_lost_worker_does_not_end_the_job(ran: Jobs) -> None:
    if not isinstance(ran.site, real_slurm.Slurm):
        pytest.skip("the stand-in has one node")
    assert ran.status("outlasts")["state"] == "STOPPED", "it worked until it was stopped"


def test_a_job_whose_head_is_lost_is_queued_again(ran: Jobs) -> None:
    if not isinstance(ran.site, real_slurm.Slurm):
        pytest.skip("the stand-in has one node")
    assert ran.status("lost")["state"] == "PENDING"


def test_scancel_ends_the_command_too(ran: Jobs) -> None:
    left = subprocess.run(["pgrep", "-af", f"steps.py {ran.work}/(cancelled|stopped)"], capture_output=True, text=True).stdout
    assert not left
    assert ran.status("cancelled")["state"] == "STOPPED"


def test_the_end_of_a_job_is_known_without_accounting_and_when_the_queue_has_forgotten_it(ran: Jobs) -> None:
    """S2: squeue fails for jobs it does not know, and sacct may not be there."""
    ran.until(lambda: "Invalid job id" in ran.run("squeue", "--jobs", ran.jobs["failed"]).stderr, "Slurm forgets the job")
    status = ran.status("failed")
    assert (status["state"], status["exit_code"], status["message"]) == ("FAILED", 7, "exit code 7")
    followed = ran.of("failed", "logs", "--follow")
    assert followed.returncode == 0, followed.stderr
    absent = ran.cli("status", str(ran.specs["failed"]), "--job", "999999")
    assert absent.returncode == 3
    assert "Slurm knows no job 999999" in absent.stderr


def test_every_end_keeps_rays_logs_and_leaves_no_folder_and_no_token(ran: Jobs) -> None:
    """S1 and S6: srun answers TERM by killing its step at once, before the node's script can clean up."""
    for job in ("warned", "stopped", "failed"):
        assert (ran.run_dir(job) / f"ray-logs-head-{host(ran, job)}" / "raylet.log").read_text() == "started\n", job
    folder = ran.site.folder / "local-n1" if isinstance(ran.site, real_slurm.Slurm) else ran.site.scratch
    ended = {f"r-{ran.jobs[job]}" for job in ("warned", "stopped", "failed")}
    assert not ended & {path.name for path in folder.iterdir()}
    waits = ran.jobs.get("lost", "")  # its next start removes what its lost node has left
    left = [path for path in ran.folder.glob("*/*/token") if path.parent.parent.name != waits]
    assert not left, "also that of an earlier job that a lost node ended"


def host(ran: Jobs, job: str) -> str:
    return "n1" if isinstance(ran.site, real_slurm.Slurm) else os.uname().nodename.partition(".")[0]


def test_slurms_silence_is_reported_in_time_and_a_follower_outlasts_it(ran: Jobs) -> None:
    """S7: the controller hangs for some seconds."""
    if not isinstance(ran.site, real_slurm.Slurm):
        pytest.skip("the stand-in has no controller")
    program = "import sys, cluster.launch.slurm_queue as q; q.TOOL_S = 2.0; from cluster.__main__ import main; sys.exit(main(sys.argv[1:]))"
    words = [str(ran.specs["deaf"]), "--job", ran.jobs["deaf"]]
    with ran.site.silent():
        asked = ran.run(sys.executable, "-c", program, "status", *words)
        assert asked.returncode == 3
        assert "squeue did not answer within 2 s" in asked.stderr
        follower = subprocess.Popen(
            ran.site.at_login(sys.executable, "-c", program, "logs", *words, "--follow"),
            env=ran.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ran.work,
        )  # fmt: skip
        time.sleep(6)
    ran.run("scancel", ran.jobs["deaf"])
    _, told = follower.communicate(timeout=120)
    assert follower.returncode == 0, told
    assert "Slurm does not answer, still following" in told
