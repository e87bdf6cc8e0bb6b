"""How each kind of cluster is given work: Slurm's commands, kubectl, or the Jobs API of a head that runs.

Every launcher has the same four verbs. States: PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED, UNKNOWN.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cluster.launch import kube
from cluster.launch.jobs import ENDED, Cluster, ClusterJob, new_id
from cluster.launch.programs import Write, tool
from cluster.launch.slurm_queue import SlurmQueue
from cluster.launch.spec import ClusterSpec, with_program
from idgbr.errors import BadRequest, Missing
from idgbr.machine import expanded


class Launcher(Protocol):
    """Starts, watches and ends jobs on one kind of cluster. `down_needs_job`: `down` ends one job, never all."""

    down_needs_job: bool

    def submit(self, command: Sequence[str], job_id: str, working_dir: str | None) -> str:
        """Start a command; returns the job's id."""

    def job(self, job_id: str) -> ClusterJob:
        """State of a job."""

    def logs(self, job_id: str, follow: bool, write: Write) -> None:
        """Output of a job so far, or followed to its end."""

    def down(self, job_id: str | None) -> str:
        """Stop a job, or all."""


def launcher(spec: ClusterSpec) -> Launcher:
    """The launcher for the spec's kind."""
    match spec.kind:
        case "slurm":
            return SlurmQueue(spec)
        case "kuberay":
            return Kubectl(spec)
        case _:
            return Running(spec.script.address or f"http://127.0.0.1:{spec.ports.dashboard}", spec.token_path, spec)


class Running:
    """A cluster whose dashboard answers."""

    down_needs_job = False

    def __init__(self, address: str, token_file: str | Path | None, spec: ClusterSpec | None = None, *, open_cluster: bool = False):
        self.spec = spec
        self.cluster = Cluster(address, token_file, open_cluster=open_cluster)

    def submit(self, command: Sequence[str], job_id: str, working_dir: str | None) -> str:
        words, env = with_program(command, "python"), {}
        if self.spec:
            words = with_program(command, self.spec.python)
            env = {"IDGBR_STORE": self.spec.store, **self.spec.env}
            if self.spec.workdir and working_dir is None:
                words = ["env", "-C", self.spec.workdir, *words]
        return self.cluster.submit(words, job_id=job_id, working_dir=working_dir, env=env)

    def job(self, job_id: str) -> ClusterJob:
        return self.cluster.job(job_id)

    def logs(self, job_id: str, follow: bool, write: Write) -> None:
        for piece in self.cluster.logs(job_id, follow):
            write(piece)

    def down(self, job_id: str | None) -> str:
        stopped = [self.cluster.stop(job.id) for job in self.cluster.jobs() if job.state not in ENDED and job_id in (None, job.id)]
        return f"{len(stopped)} job(s) stopped. Ray itself stays up: `bash stop.sh` on each machine ends it"


class Kubectl:
    """RayJobs by kubectl."""

    down_needs_job = False

    WHERE = "install kubectl and choose the cluster (kubectl config use-context); `python -m cluster render` works anywhere"

    def __init__(self, spec: ClusterSpec):
        self.spec = spec

    def _kubectl(self, *words: str, stdin: str | None = None, write: Write | None = None) -> str:
        return tool(["kubectl", "--namespace", self.spec.kuberay.namespace, *words], stdin=stdin, missing=self.WHERE, write=write)

    def submit(self, command: Sequence[str], job_id: str, working_dir: str | None) -> str:
        if working_dir is not None:
            raise BadRequest(
                "--working-dir is for clusters reached through the Jobs API", hint="build the image anew: `render` prints the Dockerfile"
            )
        job = kube.ray_job(self.spec, command)
        job["metadata"]["name"] = job_id
        self._kubectl("apply", "--filename", "-", stdin=kube.dump([kube.network_policy(self.spec), job], "submitted by python -m cluster"))
        return job_id

    def job(self, job_id: str) -> ClusterJob:
        data = json.loads(self._kubectl("get", "rayjob", job_id, "--output", "json"))
        status = data.get("status") or {}
        state = status.get("jobStatus") or ("FAILED" if status.get("jobDeploymentStatus") == "Failed" else "PENDING")
        message = " ".join(str(status[name]) for name in ("jobDeploymentStatus", "reason", "message") if status.get(name))
        return ClusterJob(job_id, state, data["spec"].get("entrypoint", ""), message, 0.0)

    def logs(self, job_id: str, follow: bool, write: Write) -> None:
        # the pod that submits prints the job's output; its Kubernetes Job has the RayJob's name
        self._kubectl("logs", f"job/{job_id}", *(["--follow"] if follow else []), write=write)

    def down(self, job_id: str | None) -> str:
        which = [job_id] if job_id else ["--selector", f"{kube.LABEL}={self.spec.slug}"]
        return self._kubectl("delete", "rayjob,raycluster" if job_id is None else "rayjob", *which).strip() or "nothing to delete"


# ---- what was submitted from here ----------------------------------------------------------------------------------------


def state_folder() -> Path:
    """Where this machine remembers what it submitted: $IDGBR_STATE, or ~/.idgbr/clusters. No secrets in it."""
    return expanded(os.environ.get("IDGBR_STATE") or "~/.idgbr/clusters")


def remember(slug: str, job_id: str, command: Sequence[str]) -> None:
    """Raises:
    Missing: the folder cannot be written.
    """
    folder = state_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{slug}.jobs.jsonl", "a") as file:  # one short line, appended whole
            file.write(json.dumps({"job": job_id, "command": list(command), "time": time.strftime("%Y-%m-%dT%H:%M:%S")}) + "\n")
    except OSError as error:
        raise Missing(f"cannot note the job in {folder}: {error.strerror}", hint="IDGBR_STATE with a folder you may write to") from error


def last_job(slug: str) -> str:
    """Raises:
    Missing: nothing was submitted from this machine, or its notes cannot be read.
    """
    path = state_folder() / f"{slug}.jobs.jsonl"
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        lines = []
    except OSError as error:
        raise Missing(f"cannot read {path}: {error.strerror}", hint="--job ID") from error
    if not lines:
        raise Missing("nothing was submitted to this cluster from this machine", hint="--job ID")
    try:
        return str(json.loads(lines[-1])["job"])
    except (ValueError, KeyError, TypeError) as error:
        raise Missing(f"the last line of {path} cannot be read", value=lines[-1][:80], hint="--job ID") from error


def job_name(slug: str) -> str:
    """An id for a new job: short enough for a RayJob (47 characters)."""
    return new_id(slug[:28].rstrip("-"))
