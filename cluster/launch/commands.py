"""What the verbs of `python -m cluster` that reach a cluster do."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.launch.jobs import ENDED, ClusterJob
from cluster.launch.launchers import Launcher, Running, job_name, last_job, launcher, remember
from cluster.launch.render import PLACEHOLDER
from cluster.launch.render import render as render_files
from cluster.launch.spec import slug
from cluster.launch.spec_file import load
from idgbr.errors import BadRequest, Missing, SomeFailed, nearest
from idgbr.files import write_bytes

END_S = 60.0  # for a job's state to follow the end of its log


@dataclass(frozen=True)
class Target:
    """A cluster as the user named it. `slug` is the name its jobs are remembered under."""

    named: str
    launcher: Launcher
    slug: str


def is_address(target: str) -> bool:
    """Whether the target is the address of a dashboard, not a file."""
    return target.startswith(("http://", "https://"))


def opened(target: str, token_file: str = "", open_cluster: bool = False) -> Target:
    """Raises:
    BadRequest: Ray's own address instead of the dashboard's.
    Missing, Disagreement: no such spec; nothing answers; the token is refused.
    """
    if is_address(target):
        token = token_file or os.environ.get("RAY_AUTH_TOKEN_PATH") or None
        return Target(target, Running(target, token, open_cluster=open_cluster), slug(target.partition("://")[2]))
    if not target.endswith(".toml") and target.rpartition(":")[2].isdigit() and not Path(target).exists():
        raise BadRequest(
            "jobs are sent to the dashboard's address",
            value=target,
            allowed="a spec, or http://HOST:PORT (8265 by default, not Ray's own port)",
        )
    spec = load(target)
    return Target(target, launcher(spec), spec.slug)


def render(path: str, command: Sequence[str], out: str, only: str) -> None:
    """Write the files of a spec to a folder."""
    files = render_files(load(path), command or PLACEHOLDER)
    if only:
        if only not in files:
            raise BadRequest(f"this spec has no file {only!r}", allowed=", ".join(files), hint=nearest(only, files) or None)
        files = {only: files[only]}
    for name, text in files.items():
        if out:
            print(write_bytes(Path(out) / name, text.encode()))
        else:
            print(text if len(files) == 1 else f"# ==> {name} <==\n{text}", end="" if len(files) == 1 else "\n")


def submit(target: Target, command: Sequence[str], job: str = "", working_dir: str = "") -> str:
    """Start the command, print and remember the job's id, return it."""
    job_id = target.launcher.submit(command, job or job_name(target.slug), working_dir or None)
    follow = shlex.join(["python", "-m", "cluster", "logs", target.named, "--job", job_id, "--follow"])
    print(f"submitted {job_id}; follow it: {follow}", file=sys.stderr)
    print(job_id, flush=True)
    try:
        remember(target.slug, job_id, command)
    except Missing as error:  # the job runs all the same
        print(f"{error} From now on give --job {shlex.quote(job_id)}.", file=sys.stderr)
    return job_id


def write(text: str) -> None:
    """Write to stdout at once."""
    print(text, end="", flush=True)


def followed(target: Target, job_id: str) -> ClusterJob:
    """Print the job's output until it ends; the job as it then is."""
    target.launcher.logs(job_id, True, write)
    deadline = time.monotonic() + END_S
    while (job := target.launcher.job(job_id)).state not in ENDED and time.monotonic() < deadline:
        time.sleep(1)
    return job


def require_success(job: ClusterJob) -> None:
    """Raises:
    SomeFailed: the job failed or was stopped.
    """
    if job.state != "SUCCEEDED":
        raise SomeFailed(
            f"job {job.id} {job.state.lower()}: {job.message or 'no message'}", hint="the same command again resumes what was done"
        )


def status(target: Target, job: str, as_json: bool) -> None:
    """Print a job's state, as text or JSON."""
    found = target.launcher.job(job or last_job(target.slug))
    if as_json:
        print(json.dumps(dataclasses.asdict(found)))
    else:
        message = f"\n{found.message}" if found.message else ""
        print(f"{found.id}  {found.state}  {found.seconds:.0f} s  {found.command}{message}")


def logs(target: Target, job: str, follow: bool) -> None:
    """Print a job's output; with `follow` to its end."""
    target.launcher.logs(job or last_job(target.slug), follow, write)


def down(target: Target, job: str) -> None:
    """Stop a job; without one, the last that was submitted (Slurm) or what the cluster runs."""
    if not job and target.launcher.down_needs_job:
        job = last_job(target.slug)
    print(target.launcher.down(job or None), file=sys.stderr)
