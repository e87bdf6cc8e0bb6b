"""`ClusterSpec`: which machines, how many, where the store is. One TOML file; the renderers are functions of it.

name = "schedules"                    # any text; file, host and Kubernetes names use its slug
kind = "slurm"                        # slurm, kuberay, script
nodes = 4                             # machines that compute
cpus_per_node = 16
gpus_per_node = 4
wall_time = "12:00:00"
store = "/lustre/project/idgbr-store" # a folder all nodes share, or a URI (s3://, gs://)

[slurm]                               # one section, named like the kind
account = "project-1"
"""

from __future__ import annotations

import hashlib
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field

from idgbr.errors import BadRequest


@dataclass(frozen=True)
class Ports:
    """Ports of the head. On Slurm every job takes a block of 16 between `low` and `high`, so that two jobs on a node
    never meet."""

    low: int = 20000
    high: int = 32000
    gcs: int = 6379
    dashboard: int = 8265
    client: int = 10001


@dataclass(frozen=True)
class Slurm:
    """Settings of [slurm]."""

    account: str = ""
    partition: str = ""
    qos: str = ""
    constraint: str = ""
    reservation: str = ""
    exclusive: bool = False
    extra: tuple[str, ...] = ()  # further options of sbatch, one `--name=value` each
    requeue: bool = True
    max_requeues: int = 20
    warn_s: int = 120  # this long before the wall time the command is stopped, with half of it to save, and the job queued again
    scratch: str = "/tmp"  # on each node; Ray's folder is SCRATCH/r-JOBID
    job_dir: str = ""  # on shared storage: token, addresses, logs. Default: WORKDIR/.cluster


@dataclass(frozen=True)
class WorkerGroup:
    """Further worker pods of another size, `[[kuberay.groups]]`."""

    name: str = ""
    nodes: int = 1
    max_nodes: int = 0  # above `nodes`: KubeRay's autoscaler may add up to this many
    cpus: int = 1
    gpus: int = 0
    memory_gb: int = 16
    node_selector: Mapping[str, str] = field(default_factory=dict)
    pod: Mapping[str, object] = field(default_factory=dict)  # in place of kuberay.pod


@dataclass(frozen=True)
class Kuberay:
    """Settings of [kuberay]."""

    image: str = ""
    namespace: str = "default"
    claim: str = ""  # PersistentVolumeClaim (ReadWriteMany) mounted at the store's path
    service_account: str = ""
    shared_memory_gb: int = 8
    head_cpus: int = 4
    head_memory_gb: int = 16
    max_nodes: int = 0  # above `nodes`: KubeRay's autoscaler may add up to this many
    gpu_resource: str = "nvidia.com/gpu"
    node_selector: Mapping[str, str] = field(default_factory=dict)
    image_pull_secret: str = ""
    backoff_limit: int = 3  # of the RayJob: the same command again on a new cluster, which resumes
    operator_namespace: str = ""  # where the KubeRay operator runs; empty: any namespace
    labels: Mapping[str, str] = field(default_factory=dict)  # of the RayJob or RayCluster and its pods
    annotations: Mapping[str, str] = field(default_factory=dict)  # likewise; Kueue's queue is a label
    pod: Mapping[str, object] = field(default_factory=dict)  # fields of a pod's spec, e.g. tolerations; not containers
    volumes: Mapping[str, str] = field(default_factory=dict)  # claim -> path where it is mounted, read only
    secret_files: Mapping[str, str] = field(default_factory=dict)  # Secret -> folder where its keys are files
    secret_env: tuple[str, ...] = ()  # Secrets whose keys become environment variables
    user: int = 10001  # that runs the containers and owns new files of the store; 0: the image's, unrestricted
    redis: str = ""  # HOST:PORT for fault tolerance of the head; empty: none
    redis_password: str = ""  # SECRET/KEY
    groups: tuple[WorkerGroup, ...] = ()


@dataclass(frozen=True)
class Script:
    """Settings of [script]."""

    head: str = ""  # address of the head as its workers see it; empty: the head finds out and prints it
    address: str = ""  # of the dashboard as seen from here; empty: http://127.0.0.1:PORT (on the head, or an ssh tunnel to it)
    scratch: str = "/tmp"


@dataclass(frozen=True)
class Doctor:
    """Least values the doctor accepts."""

    free_gb: float = 10.0
    shared_memory_gb: float = 1.0
    clock_skew_s: float = 2.0
    weights: tuple[str, ...] = ()  # files each node must have


@dataclass(frozen=True)
class ClusterSpec:
    """A cluster as its TOML file describes it, checked."""

    name: str
    kind: str
    store: str
    nodes: int = 1
    cpus_per_node: int = 1
    gpus_per_node: int = 0
    memory_gb_per_node: int = 0  # 0: not asked for
    wall_time: str = ""  # HH:MM:SS or D-HH:MM:SS
    workdir: str = ""  # folder the command runs in, on every node
    python: str = "python"
    setup: tuple[str, ...] = ()  # lines of shell run on each node before Ray starts: these, alone, are code, not values
    container: str = ""  # Slurm: Apptainer image
    network_interface: str = ""  # e.g. ib0; empty: the one that holds the node's address
    token_file: str = ""  # default: ~/.idgbr/SLUG.token
    gpus_per_trial: int = 0  # what the study will ask for; checked against a node
    env: Mapping[str, str] = field(default_factory=dict)
    ports: Ports = Ports()
    slurm: Slurm = Slurm()
    kuberay: Kuberay = Kuberay()
    script: Script = Script()
    doctor: Doctor = Doctor()

    @property
    def slug(self) -> str:
        """The name in lower case with hyphens, for names of files and jobs."""
        return slug(self.name)

    @property
    def store_is_path(self) -> bool:
        """Whether the store is a folder, not a URI."""
        return "://" not in self.store

    @property
    def job_dir(self) -> str:
        """Slurm: the folder on shared storage for tokens, addresses and logs."""
        return self.slurm.job_dir or f"{self.workdir.rstrip('/')}/.cluster"

    @property
    def token_path(self) -> str:
        """Path of the token's file."""
        return self.token_file or f"~/.idgbr/{self.slug}.token"

    @property
    def wall_seconds(self) -> int:
        """The wall time in seconds."""
        days, _, clock = self.wall_time.rpartition("-")
        hours, minutes, seconds = (int(part) for part in clock.split(":"))
        return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds


def slug(name: str) -> str:
    """`name` as a DNS label of at most 40 characters; two names that differ get two slugs (a digest is added where
    text was lost)."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if plain == name and len(plain) <= 40 and plain[0].isalpha():
        return plain
    short = hashlib.sha256(name.encode()).hexdigest()[:6]
    stem = plain[:30].strip("-")
    return f"{stem}-{short}" if stem and stem[0].isalpha() else f"c-{stem}-{short}".replace("--", "-")


def temp_dir(spec: ClusterSpec) -> str:
    """Ray's folder of a `script` cluster: short, one a name."""
    return f"{spec.script.scratch.rstrip('/')}/r-{hashlib.sha256(spec.name.encode()).hexdigest()[:8]}"


def with_program(command: typing.Sequence[str], python: str) -> list[str]:
    """The command of `submit`: `sweeps run X` is short for `python -m sweeps run X`.

    Raises:
        BadRequest: an empty command.
    """
    if not command:
        raise BadRequest("no command to run", hint="python -m cluster submit SPEC -- sweeps run STUDY")
    for word in command:
        if any(ord(c) < 32 or ord(c) == 127 for c in word):
            raise BadRequest(
                "the command holds a control character",
                value=repr(word),
                allowed="words of printable text",
                hint="put the program into a file and run that",
            )
    if command[0] in ("sweeps", "cluster", "idgbr"):
        return [python, "-m", *command]
    return list(command)


KINDS = ("slurm", "kuberay", "script")


# Ray puts its sockets at <temporary folder>/ray/session_<date>_<pid>/sockets/plasma_store; a Unix socket's path ends
# at 107 bytes, which leaves 36 for the folder (measured with Ray 2.60).
TEMP_DIR_LIMIT = 36
