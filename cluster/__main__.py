"""`python -m cluster VERB`: thin verbs, heavy imports inside them. Exit codes as in `idgbr/errors.py`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Fixed, Positional, Suppress, UseAppendAction, arg

from cluster.doctor.checks import LIMITS, Limits
from idgbr.verbs import leave, run_verbs

EXAMPLES = """Examples:
  python -m cluster render cluster/examples/slurm.toml -- sweeps run schedules     print the files; nothing is started
  python -m cluster submit slurm.toml -- sweeps run schedules                      run one command there; again: resumes
  python -m cluster status slurm.toml                                              the last job, or --job ID
  python -m cluster logs   slurm.toml --follow
  python -m cluster down   slurm.toml
  python -m cluster doctor slurm.toml                                              can these nodes work together?
  python -m cluster train  oam_buildings --workers 8 --gpus 1                      one training over several workers
  python -m cluster refine scenes.csv -o refined/ --model DIR                      many scenes over the nodes

Instead of a spec: the address of a running cluster's dashboard, http://HOST:PORT, with --token-file.
Exit codes: 0 done, 1 the command failed there, 2 wrong request, 3 something is missing, 4 versions or owners disagree, 130 interrupted."""

TargetName = Annotated[Positional[str], arg(metavar="SPEC|ADDRESS", help="TOML file, or http://HOST:PORT of a running cluster's dashboard")]
Command = Suppress[Fixed[tuple[str, ...]]]  # the words after `--`; `main` cuts them off before anything is parsed
JobId = Annotated[str, arg(metavar="ID", help="default: the last one submitted from here")]
Files = UseAppendAction[tuple[str, ...]]
StorePath = Annotated[str, arg(help="folder or URI of the store")]


@dataclass(frozen=True)
class Access:
    """How a cluster that is given by its address is entered."""

    token_file: Annotated[str, arg(help="of a cluster given by address; default: $RAY_AUTH_TOKEN_PATH")] = ""
    open: Annotated[bool, arg(help="accept a cluster that requires no token")] = False


def render(
    spec: Annotated[Positional[str], arg(metavar="SPEC", help="TOML file")],
    /,
    *,
    out: Annotated[str, arg(aliases=("-o",), metavar="DIR", help="write the files there instead of printing them")] = "",
    file: Annotated[str, arg(help="only this one")] = "",
    command: Command = (),
) -> None:
    """Print the files of a spec, or write them with -o. Nothing is started."""
    from cluster.launch import commands

    commands.render(spec, command, out, file)


def submit(
    target: TargetName,
    /,
    *,
    access: Access = Access(),
    job: Annotated[str, arg(metavar="ID", help="id of the job; the same id never runs twice")] = "",
    working_dir: Annotated[str, arg(metavar="DIR", help="send this folder (Jobs API); default: the package the nodes have")] = "",
    wait: Annotated[bool, arg(help="print its output and end as it ends")] = False,
    command: Command = (),
) -> None:
    """Run one command on the cluster: submit SPEC -- sweeps run STUDY."""
    from cluster.launch import commands
    from cluster.launch.spec import with_program

    with_program(command, "python")  # refuses an empty command before anything is asked of the cluster
    cluster = commands.opened(target, access.token_file, access.open)
    job_id = commands.submit(cluster, command, job, working_dir)
    if wait:
        commands.require_success(commands.followed(cluster, job_id))


def status(target: TargetName, /, *, access: Access = Access(), job: JobId = "", json: bool = False) -> None:
    """State of a job."""
    from cluster.launch import commands

    commands.status(commands.opened(target, access.token_file, access.open), job, json)


def logs(
    target: TargetName, /, *, access: Access = Access(), job: JobId = "", follow: Annotated[bool, arg(aliases=("-f",))] = False
) -> None:
    """Output of a job."""
    from cluster.launch import commands

    commands.logs(commands.opened(target, access.token_file, access.open), job, follow)


def down(target: TargetName, /, *, access: Access = Access(), job: JobId = "") -> None:
    """Stop the job, and machines that were started for it."""
    from cluster.launch import commands

    commands.down(commands.opened(target, access.token_file, access.open), job)


def doctor(
    target: Annotated[
        Positional[str],
        arg(metavar="SPEC|ADDRESS|IP:PORT|here", help="as elsewhere; or IP:PORT of Ray itself; or `here`, inside a job"),
    ],
    /,
    *,
    access: Access = Access(),
    store: Annotated[str, arg(help="default: the spec's, or $IDGBR_STORE")] = "",
    nodes: Annotated[int, arg(help="how many are expected")] = 0,
    weights: Annotated[Files, arg(metavar="FILE", help="each node must have it; may be repeated")] = (),
    folder: Annotated[Files, arg(metavar="DIR", help="another folder that needs free space; may be repeated")] = (),
    limits: Limits = LIMITS,
    json: bool = False,
) -> None:
    """Check that the nodes can work together. Each failed check says what to do."""
    from cluster.doctor import doctor as doctor_

    request = doctor_.Request(store, nodes, weights, folder, limits, json)
    doctor_.run(target, access.token_file, access.open, request)


def train(
    recipe: Positional[str],
    overrides: Annotated[Positional[tuple[str, ...]], arg(metavar="stage.field=value")] = (),
    /,
    *,
    stage: Literal["backbone", "refiner"] = "refiner",
    workers: int = 2,
    min_workers: Annotated[int, arg(help="continue with so few when nodes are lost")] = 0,
    sharding: Annotated[Literal["", "ddp", "fsdp"], arg(help="empty: what the recipe says")] = "",
    cpus: Annotated[float, arg(help="of one worker")] = 1.0,
    gpus: Annotated[float, arg(help="of one worker")] = 0.0,
    bf16: bool = False,
    max_failures: int = 3,
    one_node: Annotated[bool, arg(help="all workers on one node")] = False,
    store: StorePath = "",
) -> None:
    """Train a stage, and what it needs, over several workers. The same command resumes, with any number of workers."""
    from cluster.train import RayTraining, train_up_to
    from idgbr.store import default_root

    fit = RayTraining(workers, min_workers, sharding, cpus, gpus, max_failures, one_node=one_node)
    print(train_up_to(stage, recipe, overrides, store or default_root(), fit, bf16=bf16))


def refine(
    source: Annotated[Positional[Path], arg(metavar="LIST|DIR", help="CSV with columns scene, coarse[, out]; or a folder of scenes")],
    /,
    *,
    out: Annotated[Path, arg(aliases=("-o",), metavar="DIR")],
    model: Annotated[str, arg(metavar="KEY|DIR")],
    coarse: Annotated[Path | None, arg(metavar="DIR", help="coarse maps of the same names as the scenes of a folder")] = None,
    steps: int | None = None,
    samples: int | None = None,
    reach_px: float | None = None,
    trust: float | None = None,
    tile_px: int | None = None,
    seed: int = 0,
    confidence: bool = False,
    overwrite: bool = False,
    workers: Annotated[int, arg(help="at most; 0: as many as the cluster has room for")] = 0,
    cpus: Annotated[float, arg(help="of one worker")] = 1.0,
    gpus: Annotated[float, arg(help="of one worker")] = 0.0,
    bf16: bool = False,
    classes: Annotated[Path | None, arg(metavar="JSON", help="what the codes of the coarse maps mean")] = None,
    store: StorePath = "",
) -> None:
    """Refine many scenes over the nodes, each worker with a copy of the model. The same command continues."""
    from cluster import scenes
    from idgbr.store import default_root

    settings = {"steps": steps, "samples": samples, "reach_px": reach_px, "trust": trust, "tile_px": tile_px}
    work = scenes.Refining(model, store or default_root(), settings, seed, confidence, overwrite, workers, cpus, gpus, bf16, classes)
    scenes.refine(source, coarse, out, work)


VERBS: dict[str, Callable[..., None]] = {
    "render": render, "submit": submit, "status": status, "logs": logs, "down": down, "doctor": doctor, "train": train, "refine": refine,
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    verbs = dict(VERBS)
    if "--" in words:
        cut = words.index("--")
        words, command = words[:cut], tuple(words[cut + 1 :])
        verbs |= {name: functools.partial(VERBS[name], command=command) for name in ("render", "submit")}
    stopped = "interrupted; a job that was submitted goes on: `python -m cluster status`"
    return run_verbs(verbs, "python -m cluster", EXAMPLES, words, stopped)


if __name__ == "__main__":
    leave(main())
