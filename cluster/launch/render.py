"""All files of a spec: a pure function from `ClusterSpec` and a command to texts."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.launch import image, kube, scripts, slurm
from cluster.launch.spec import ClusterSpec
from cluster.launch.spec_file import check_spec

PLACEHOLDER = ("sweeps", "run", "schedules")


def render(spec: ClusterSpec, command: Sequence[str] = PLACEHOLDER) -> dict[str, str]:
    """File name -> text. Slurm and RayJob files hold the command; the others start a cluster that jobs are sent to."""
    check_spec(spec)  # one made in Python has not been through a file
    match spec.kind:
        case "slurm":
            files = {"job.sbatch": slurm.render(spec, command)}
        case "kuberay":
            files = kube.render(spec, command) | {"Dockerfile": image.dockerfile(spec)}
        case _:
            files = scripts.render(spec)
    return files
