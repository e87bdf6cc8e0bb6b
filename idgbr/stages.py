"""The six stages: how their keys chain, and what each runs.

    data -> backbone (full, and one a fold) -> coarse -> refiner -> refined -> counts

A key holds everything that changes the bytes and nothing else: settings that the stage really reads (a one-pass
refiner reads no noise schedule), contents of files and not their paths, and the replicate seed from the stage that
`Experiment.reseed` names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from idgbr.config import Experiment, Runtime, about_setting, is_read, to_dict
from idgbr.errors import Interrupted
from idgbr.files import content_digest
from idgbr.interfaces import Json, Report, Stop, until_stopped
from idgbr.settings import Section, digest, identity
from idgbr.store import Store

if TYPE_CHECKING:
    from idgbr.training.loop import World

POOL = "pool_"  # begins the names of the jobs that make the training maps of `coarse.pool`
TRAINING = "training"  # name of the data, and of the coarse maps, that are only trained on: scenes elsewhere are scored
SIMULATED = "simulated"  # coarse.source, and name of the job that makes such training maps
PARTLY_SIMULATED = (SIMULATED, "mixed", "thirds")  # values of coarse.source
TUNING = "tuning"  # name of the job that maps the training rasters for the decision of a refiner of such training maps
SIMULATION = ("source", "iou", "iou_high", "modes")  # settings of `coarse` that simulated maps depend on
STAGES = ("data", "backbone", "coarse", "refiner", "refined", "counts")

# Raised by hand when a stage comes to mean something else; the git commit is recorded, not hashed.
VERSIONS = {"data": 1, "backbone": 1, "coarse": 1, "refiner": 1, "refined": 1, "counts": 1}


@dataclass(frozen=True)
class Job:
    """One unit of work: finished exactly when (stage, key) is in the store.

    `name` tells fold backbones apart ("full", "fold0", ...); `parents` maps names to keys; `trains` says whether it
    trains a network.
    """

    stage: str
    key: str
    name: str
    config: Json
    parents: dict[str, str]
    seed: int | None
    trains: bool = False


class Trainer(Protocol):
    """Trains one stage over `processes` processes; `train_stage` is one process without this."""

    @property
    def processes(self) -> int:
        """Number of processes that train together."""
        ...

    def __call__(
        self,
        job: Job,
        store: Store,
        experiment: Experiment,
        out: Path,
        *,
        runtime: Runtime | None = None,
        report: Report | None = None,
        stop: Stop | None = None,
    ) -> None: ...


def jobs(experiment: Experiment) -> tuple[Job, ...]:
    """Every job the experiment needs, in order of dependence; the last one is its counts.

    Raises:
        Missing: a file that is named is not there. Disagreement: a training image stands in `data.elsewhere`.
    """
    e = experiment
    data = data_job(e)
    own = _coarse_jobs(e, data)
    coarse = own[-1]
    made = [data, *own]
    shown = [data, coarse]  # what is refined and scored
    if e.data.elsewhere:
        shown = _elsewhere_jobs(e, coarse)
        made = [dataclasses.replace(data, name=TRAINING), *own[:-1], *shown]
    refiner_key: dict[str, str] = {}
    if e.refiner.kind != "none":
        trained_on = coarse
        if e.coarse.pool:
            pool = _coarse_jobs(e, data, POOL)
            trained_on = pool[-1]
            made += [job for job in pool if job.key not in {j.key for j in made}]
        elif e.coarse.source == SIMULATED:
            # Made from the targets alone: such maps wait for no backbone and serve the refiner of any.
            settings = {name: value for name, value in _settings(e, "coarse").items() if name in SIMULATION}
            trained_on = _job("coarse", SIMULATED, settings, {"data": data.key}, coarse.seed)
            made.append(trained_on)
        elif e.data.elsewhere:
            made.append(dataclasses.replace(coarse, name=TRAINING))
        refiner_parents = {"data": data.key, "coarse": trained_on.key}
        if e.refiner.held_out and e.coarse.source in PARTLY_SIMULATED:
            # Much of a simulated outline is the target's own: no refiner beats that, and the decision would change nothing.
            source = "in_fold" if e.coarse.source == SIMULATED else "out_of_fold"
            settings = _settings(dataclasses.replace(e, coarse=dataclasses.replace(e.coarse, source=source)), "coarse")
            made.append(_job("coarse", TUNING, settings, coarse.parents, coarse.seed))
            refiner_parents["tuning"] = made[-1].key
        made.append(_job("refiner", "refiner", _settings(e, "refiner"), refiner_parents, e.seed, trains=True))
        refiner_key = {"refiner": made[-1].key}
    parents = {"data": shown[0].key, "coarse": shown[1].key}
    refined = _job(
        "refined",
        "refined",
        _settings(e, "sampler") | {"kind": e.refiner.kind} | ({"uncertainty": True} if e.score.uncertainty else {}),
        parents | refiner_key,
        e.seed if e.refiner.kind == "diffusion" else None,
    )
    made.append(refined)
    counted = _settings(e, "score") | ({"levels": 4} if e.score.uncertainty else {})  # since these counts have level sets
    made.append(_job("counts", "counts", counted, parents | {"refined": refined.key}, None))
    return tuple(made)


def _elsewhere_jobs(e: Experiment, coarse: Job) -> list[Job]:
    """Data and coarse maps of `data.elsewhere`: by the network of all training scenes, or another model's.

    Raises:
        Disagreement: a training image is among them.
    """
    from idgbr.datasets.elsewhere import require_apart

    require_apart(e.data)
    e = _as_shown(e)
    data = data_job(e)
    full = {name: key for name, key in coarse.parents.items() if name == "full"}
    return [data, _job("coarse", "coarse", _settings(e, "coarse"), {"data": data.key, **full}, coarse.seed)]


def _as_shown(e: Experiment) -> Experiment:
    """The experiment whose data set is the one that is refined and scored."""
    if not e.data.elsewhere:
        return e
    source = e.coarse.source if e.coarse.source == "external" else "in_fold"  # nothing here was trained on
    return dataclasses.replace(e, data=e.data.shown, coarse=dataclasses.replace(e.coarse, source=source, pool=()))


def _coarse_jobs(e: Experiment, data: Job, prefix: str = "") -> list[Job]:
    """The backbones of a set of coarse maps, then the maps: of the experiment's own backbone, or (`POOL`) of the pool's
    networks.
    """
    made: list[Job] = []
    backbones: dict[str, str] = {}
    seed = e.seed if e.reseed == "backbone" else 0
    if e.coarse.source != "external":
        names = ["full"]
        if is_read(e, about_setting("coarse.folds").read_when):
            names += [f"fold{i}" for i in range(e.coarse.folds)]
        for name in names:
            part = {"part": name} | ({"folds": e.coarse.folds} if name != "full" else {})
            settings = _settings(_as_trained(e, prefix + name), "backbone")
            job = _job("backbone", prefix + name, settings | part, {"data": data.key}, seed, trains=True)
            backbones[name] = job.key
            made.append(job)
    made.append(_job("coarse", prefix + "coarse", _settings(e, "coarse"), {"data": data.key, **backbones}, seed))
    return made


def _as_trained(experiment: Experiment, name: str) -> Experiment:
    """The experiment with the backbone that the job of this name trains: fold n of the pool is its n-th network, in
    turn; "full" the first.
    """
    if not name.startswith(POOL):
        return experiment
    fold = name.removeprefix(POOL).removeprefix("fold")
    pool = experiment.coarse.pool
    network = pool[int(fold) % len(pool)] if fold != "full" else pool[0]
    return dataclasses.replace(experiment, backbone=experiment.pool_backbone(network))


def data_job(experiment: Experiment) -> Job:
    """The job that indexes the data that are trained on; it needs no file of any later stage."""
    from idgbr import datasets

    trained = dataclasses.replace(experiment, data=experiment.data.trained)
    inputs = {"inputs": datasets.input_digest(trained.data)}
    return _job("data", "data", _settings(trained, "data") | inputs, {}, None)


def run(
    job: Job,
    store: Store,
    experiment: Experiment,
    runtime: Runtime | None = None,
    report: Report | None = None,
    stop: Stop | None = None,
    fit: Trainer | None = None,
) -> Json:
    """Make sure the job's artefact is in the store (its parents must be) and return its manifest; does nothing when
    it is there.

    Args:
        report: called with keyword arguments while it works (stage, done, total, and figures of the stage).
        stop: asked between steps; True ends the job with `Interrupted`, its checkpoint or its finished rasters kept.
        fit: takes over the training stages, e.g. `cluster.train.RayTraining`.

    Raises:
        IdgbrError: whatever the stage finds wrong; nothing half-written is left.
    """
    found = store.manifest(job.stage, job.key)
    if found is not None:
        return found
    runtime = runtime or Runtime()
    if runtime.threads:
        import torch

        torch.set_num_threads(runtime.threads)

    def write(out: Path) -> None:
        if job.trains:
            (fit or train_stage)(job, store, experiment, out, runtime=runtime, report=report, stop=stop)
        else:
            with _kept_rasters(job, store, out):
                _run_plain(job, store, experiment, out, runtime, report, stop)

    record = {
        "version": VERSIONS[job.stage],
        "name": job.name,
        "settings": job.config,
        "parents": job.parents,
        "seed": job.seed,
        "experiment": to_dict(experiment),
        # a training that several processes share costs its time on the clock on each of them
        "processes": fit.processes if job.trains and fit is not None else 1,
    }
    manifest = store.put(job.stage, job.key, write, record)
    if job.trains:
        store.delete(scratch_name(job))
        if not store.is_local:
            shutil.rmtree(store.cache / scratch_name(job), ignore_errors=True)
    return manifest


@contextlib.contextmanager
def _kept_rasters(job: Job, store: Store, out: Path) -> Iterator[None]:
    """Files of the rasters that an interrupted job had finished, in `out` again; kept when this one is interrupted.

    Of stages that write one file a raster. What is in `out` when a stage is interrupted is whole.
    """
    if job.stage not in ("coarse", "refined"):
        yield
        return
    name = scratch_name(job)
    is_begun = bool(store.infos(name))
    if is_begun:
        store.fetch(name, out)
    try:
        yield
    except Interrupted:
        if not store.is_local:
            store.upload(out, name)
        else:  # in one step: what lies there is whole whenever this process ends
            store.delete(name)
            kept = Path(f"{store.base}/{name}")
            kept.parent.mkdir(parents=True, exist_ok=True)
            out.rename(kept)
        raise
    if is_begun:
        store.delete(name)


def scratch_name(job: Job) -> str:
    """Where resume checkpoints of a training, or finished rasters of another stage, live, below the store's root;
    deleted when it is done.
    """
    return f"scratch/{job.stage}/{job.key}"


def train_stage(
    job: Job,
    store: Store,
    experiment: Experiment,
    out: Path,
    *,
    world: World | None = None,
    runtime: Runtime | None = None,
    report: Report | None = None,
    stop: Stop | None = None,
    scratch: Path | None = None,
) -> None:
    """One training on this process; `world` says which share of every batch is this process's (none: all of it)."""
    from idgbr import datasets
    from idgbr.coarse import backbone
    from idgbr.preflight import training_runtime
    from idgbr.refiner import loss
    from idgbr.scene import tiles as kept_refiner
    from idgbr.training.loop import World
    from idgbr.training.mirror import CheckpointMirror

    kept_refiner.forget()
    experiment = _as_trained(experiment, job.name)
    world, runtime = world or World(), runtime or Runtime()
    dataset = datasets.load(store.path("data", job.parents["data"]), experiment.data)
    runtime = training_runtime(experiment, job.stage, dataset.table.n_classes, runtime, world)
    if scratch is None:
        scratch = Path(store.base if store.is_local else store.cache) / scratch_name(job)
        if not store.is_local:
            world.mirror = CheckpointMirror(store, scratch_name(job))
    common: Json = {
        "seed": job.seed or 0,
        "out": out,
        "scratch": scratch,
        "world": world,
        "runtime": runtime,
        "report": report,
        "stop": stop,
    }
    if job.stage == "backbone":
        rasters = dataset.of("train")
        part = job.name.removeprefix(POOL)
        if part != "full":
            held_out = dataset.folds(experiment.coarse.folds)[int(part.removeprefix("fold"))]
            rasters = tuple(r for r in rasters if r.id not in held_out)
        backbone.fit(experiment.backbone, dataset, rasters, **common)
    else:
        tuning_dir = store.path("coarse", job.parents["tuning"]) if "tuning" in job.parents else None
        loss.fit(experiment.refiner, dataset, store.path("coarse", job.parents["coarse"]), tuning_dir=tuning_dir, **common)


def _run_plain(
    job: Job, store: Store, experiment: Experiment, out: Path, runtime: Runtime, report: Report | None, stop: Stop | None
) -> None:
    from idgbr import datasets

    report = report if stop is None else until_stopped(report, stop, job.stage)
    if job.name == job.stage:
        experiment = _as_shown(experiment)
    if job.stage == "data":
        datasets.prepare(experiment.data, out, report)
        return
    dataset = datasets.load(store.path("data", job.parents["data"]), experiment.data)
    if job.stage == "coarse":
        from idgbr.coarse import stage as coarse

        backbones = {name: store.path("backbone", key) for name, key in job.parents.items() if name != "data"}
        settings = dataclasses.replace(experiment.coarse, source=job.config["source"])
        coarse.write(settings, dataset, backbones, seed=job.seed or 0, out=out, runtime=runtime, report=report, stop=stop)
        return
    coarse_dir = store.path("coarse", job.parents["coarse"])
    if job.stage == "refined":
        from idgbr.scene import stage as scene

        refiner_dir = store.path("refiner", job.parents["refiner"]) if "refiner" in job.parents else None
        scene.refine_split(
            experiment.sampler,
            refiner_dir,
            dataset,
            coarse_dir,
            experiment.sampler.split,
            seed=job.seed or 0,
            out=out,
            uncertainty=experiment.score.uncertainty,
            runtime=runtime,
            report=report,
            stop=stop,
        )
    else:
        from idgbr import scores

        refined_dir = store.path("refined", job.parents["refined"])
        scores.count_rasters(experiment.score, dataset, experiment.sampler.split, refined_dir, coarse_dir, out, report=report)


# ---- keys ---------------------------------------------------------------------------------------------------------------


def _job(stage: str, name: str, config: Json, parents: dict[str, str], seed: int | None, trains: bool = False) -> Job:
    key = digest({"stage": stage, "version": VERSIONS[stage], "config": config, "parents": parents, "seed": seed})
    return Job(stage, key, name, config, parents, seed, trains)


def _settings(experiment: Experiment, name: str) -> Json:
    """The settings of a section that decide the bytes, paths replaced by what they hold."""
    section: Section = getattr(experiment, name)
    values: Json = {}
    for field, value in identity(section, paths=True).items():
        a = about_setting(f"{name}.{field}")
        if not a.in_key or not is_read(experiment, a.read_when):
            continue
        if a.path and value:
            value = content_digest(value, f"{name}.{field}")
        values[field] = list(value) if isinstance(value, tuple) else value
    return values
