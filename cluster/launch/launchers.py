"""How each kind of cluster is asked for work: Slurm's commands, kubectl, Ray's launcher, or the Jobs API of a head that runs.

Every launcher has the same four verbs. States: PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED, UNKNOWN.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from cluster.launch import kube, slurm, vm
from cluster.launch.jobs import ENDED, Cluster, Job, new_id
from cluster.launch.spec import ClusterSpec, with_program
from cluster.node import make_token
from idgbr.errors import BadRequest, Missing, SomeFailed
from idgbr.files import replacing
from idgbr.machine import expanded

Write = Callable[[str], Any]


class Launcher(Protocol):
    def submit(self, command: Sequence[str], job_id: str, working_dir: str | None) -> str: ...
    def job(self, job_id: str) -> Job: ...
    def logs(self, job_id: str, follow: bool, write: Write) -> None: ...
    def down(self, job_id: str | None) -> str: ...


def launcher(spec: ClusterSpec) -> Launcher:
    match spec.kind:
        case "slurm":
            return SlurmQueue(spec)
        case "kuberay":
            return Kubectl(spec)
        case "script":
            return Running(spec.script.address or f"http://127.0.0.1:{spec.ports.dashboard}", spec.token_path, spec)
        case _:
            return RayLauncher(spec)


def need(program: str, missing: str) -> None:
    """Raises:
    Missing: the program is not on this machine; `missing` says what to do.
    """
    if shutil.which(program) is None:
        raise Missing(f"{program} is not on this machine", hint=missing)


def tool(words: Sequence[str], *, stdin: str | None = None, missing: str, write: Write | None = None) -> str:
    """Output of another program; with `write`, line by line as it comes.

    Raises:
        Missing: the program is not on this machine.
        SomeFailed: it failed; the message holds what it said.
    """
    need(words[0], missing)
    if write is None:
        done = subprocess.run(list(words), input=stdin, capture_output=True, text=True)
        if done.returncode:
            raise SomeFailed(
                f"{words[0]} failed with exit code {done.returncode}", value=(done.stderr or done.stdout).strip()[-800:] or "no message"
            )
        return done.stdout
    with subprocess.Popen(list(words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            write(line)
    if running.returncode:
        raise SomeFailed(f"{' '.join(words[:2])} ended with exit code {running.returncode}")
    return ""


class Running:
    """A cluster whose dashboard answers."""

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

    def job(self, job_id: str) -> Job:
        return self.cluster.job(job_id)

    def logs(self, job_id: str, follow: bool, write: Write) -> None:
        for piece in self.cluster.logs(job_id, follow):
            write(piece)

    def down(self, job_id: str | None) -> str:
        stopped = [self.cluster.stop(job.id) for job in self.cluster.jobs() if job.state not in ENDED and job_id in (None, job.id)]
        return f"{len(stopped)} job(s) stopped. Ray itself stays up: `bash stop.sh` on each machine ends it"


class SlurmQueue:
    """sbatch, squeue, sacct, scancel."""

    WHERE = "log in to a node that has Slurm's commands; `python -m cluster render` works anywhere"
    STATES = {  # noqa: RUF012  # a constant table, by Slurm's words
        "PENDING": "PENDING",
        "CONFIGURING": "PENDING",
        "REQUEUED": "PENDING",
        "SUSPENDED": "PENDING",
        "RUNNING": "RUNNING",
        "COMPLETING": "RUNNING",
        "COMPLETED": "SUCCEEDED",
        "CANCELLED": "STOPPED",
        "FAILED": "FAILED",
        "TIMEOUT": "FAILED",
        "NODE_FAIL": "FAILED",
        "OUT_OF_MEMORY": "FAILED",
        "PREEMPTED": "FAILED",
        "BOOT_FAIL": "FAILED",
        "DEADLINE": "FAILED",
    }

    def __init__(self, spec: ClusterSpec):
        self.spec = spec

    def submit(self, command: Sequence[str], job_id: str, working_dir: str | None) -> str:
        """`job_id` is not used: Slurm chooses the number."""
        if working_dir is not None:
            raise BadRequest(
                "--working-dir is for clusters reached through the Jobs API", hint="workdir = ... in the spec: a folder all nodes share"
            )
        text = slurm.render(self.spec, command)
        need("sbatch", self.WHERE)
        folder = Path(self.spec.job_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Missing(
                f"cannot make the folder for jobs {folder}: {error.strerror}", hint="workdir or slurm.job_dir in the spec"
            ) from error
        number = tool(["sbatch", "--parsable"], stdin=text, missing=self.WHERE).strip().partition(";")[0]
        if not number.isdigit():
            raise SomeFailed("sbatch gave no job number", value=number)
        (folder / f"{number}.sbatch").write_text(text)
        return number

    def job(self, job_id: str) -> Job:
        words = (
            tool(["squeue", "--noheader", "--jobs", job_id, "--format", "%T|%M|%R|%j"], missing=self.WHERE).strip()
            if job_id.isdigit()
            else ""
        )
        if words:
            state, elapsed, reason, name = words.splitlines()[0].split("|", 3)
        else:  # finished jobs leave the queue, and are in the accounting only
            words = tool(
                ["sacct", "--noheader", "--allocations", "--parsable2", "--jobs", job_id, "--format", "State,Elapsed,ExitCode,JobName"],
                missing=self.WHERE,
            ).strip()
            if not words:
                raise Missing(f"Slurm knows no job {job_id}", hint="`squeue --me` lists yours")
            state, elapsed, reason, name = words.splitlines()[-1].split("|", 3)
            reason = f"exit code {reason}"
        word = state.split()[0].rstrip("+")
        return Job(job_id, self.STATES.get(word, "UNKNOWN"), name, f"{word}, {reason}", _seconds(elapsed))

    def logs(self, job_id: str, follow: bool, write: Write) -> None:
        path = Path(self.spec.job_dir) / f"{job_id}.log"
        if not path.exists() and not follow:
            raise Missing(f"job {job_id} has no log yet", value=path, hint=f"`status --job {shlex.quote(job_id)}`: it may still be waiting")
        place, ended = 0, False
        while True:
            if path.exists():
                with open(path, errors="replace") as file:
                    file.seek(place)
                    if text := file.read():
                        write(text)
                    place = file.tell()
            if not follow or ended:
                return
            ended = self.job(job_id).state in ENDED  # then once more round, for what was written meanwhile
            time.sleep(0 if ended else 2)

    def down(self, job_id: str | None) -> str:
        if job_id is None:
            raise BadRequest("which job?", hint="--job NUMBER")
        tool(["scancel", job_id], missing=self.WHERE)
        return f"job {job_id} cancelled"


def _seconds(elapsed: str) -> float:
    """Slurm's D-HH:MM:SS, HH:MM:SS or MM:SS."""
    days, _, clock = elapsed.rpartition("-")
    total = 0
    for part in clock.split(":"):
        total = total * 60 + (int(part) if part.isdigit() else 0)
    return float(total + 86400 * int(days or 0))


class Kubectl:
    """RayJobs by kubectl."""

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

    def job(self, job_id: str) -> Job:
        data = json.loads(self._kubectl("get", "rayjob", job_id, "--output", "json"))
        status = data.get("status") or {}
        state = status.get("jobStatus") or ("FAILED" if status.get("jobDeploymentStatus") == "Failed" else "PENDING")
        message = " ".join(str(status[name]) for name in ("jobDeploymentStatus", "reason", "message") if status.get(name))
        return Job(job_id, state, data["spec"].get("entrypoint", ""), message, 0.0)

    def logs(self, job_id: str, follow: bool, write: Write) -> None:
        # the pod that submits prints the job's output; its Kubernetes Job has the RayJob's name
        self._kubectl("logs", f"job/{job_id}", *(["--follow"] if follow else []), write=write)

    def down(self, job_id: str | None) -> str:
        which = [job_id] if job_id else ["--selector", f"{kube.LABEL}={self.spec.slug}"]
        return self._kubectl("delete", "rayjob,raycluster" if job_id is None else "rayjob", *which).strip() or "nothing to delete"


class RayLauncher:
    """`ray up`, then our own `submit` on the head, where the dashboard listens."""

    def __init__(self, spec: ClusterSpec):
        self.spec = spec
        self.file = state_folder() / f"{spec.slug}.yaml"

    def _ray(self, *words: str, write: Write | None = None) -> str:
        return tool(["ray", *words], missing="pip install 'ray[default]'", write=write)

    def _write(self) -> str:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.file) as temporary:
            temporary.write_text(vm.render_launcher(self.spec))
        return str(self.file)

    def _on_head(self, *words: str, write: Write | None = None) -> str:
        """Our own command line on the head; every word is quoted, since `ray exec` takes one line for a shell."""
        target = [f"http://127.0.0.1:{self.spec.ports.dashboard}", "--token-file", vm.remote_token(self.spec)]
        line = shlex.join([self.spec.python, "-m", "cluster", words[0], *target, *words[1:]])
        folder = f"cd -- {shlex.quote(self.spec.workdir)} && " if self.spec.workdir else ""
        return self._ray("exec", self._write(), f"{vm.exports(self.spec)}; {folder}{line}", write=write)

    def submit(self, command: Sequence[str], job_id: str, working_dir: str | None) -> str:
        if working_dir is not None:
            raise BadRequest(
                "--working-dir is for clusters reached through the Jobs API",
                hint="`ray dashboard cluster.yaml`, then submit to http://127.0.0.1:8265 --working-dir DIR",
            )
        make_token(self.spec.token_path)
        self._ray("up", "--yes", self._write())
        self._on_head("submit", "--job", job_id, "--", *with_program(command, self.spec.python))
        return job_id

    def job(self, job_id: str) -> Job:
        text = self._on_head("status", "--job", job_id, "--json")
        try:
            return Job(**json.loads(text[text.index("{") : text.rindex("}") + 1]))  # the launcher talks before and after
        except ValueError as error:
            raise SomeFailed("the head's answer cannot be read", value=text[-300:]) from error

    def logs(self, job_id: str, follow: bool, write: Write) -> None:
        self._on_head("logs", "--job", job_id, *(["--follow"] if follow else []), write=write)

    def down(self, job_id: str | None) -> str:
        self._ray("down", "--yes", self._write())
        return f"the machines of {self.spec.name} are down"


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
