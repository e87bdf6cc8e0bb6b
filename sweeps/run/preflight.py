"""Every network that a plan would train is built once without memory or data, before anything is launched."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

from idgbr.config import Experiment, Runtime
from idgbr.errors import BadRequest, Disagreement, IdgbrError, Missing
from idgbr.preflight import check_backbone, check_refiner, gpu_runtime
from idgbr.settings import network_shape
from idgbr.store import Store
from sweeps.run.placement import Placement
from sweeps.run.plan import Impossible, StudyPlan

Shape = tuple[str, Hashable, int]  # stage, settings that shape its network, number of bands
Reason = tuple[str, int]  # why, and the exit code of the error


def preflight(plan: StudyPlan, store: Store | None = None) -> list[Impossible]:
    """Build every distinct model that is still to train, on torch's meta device: no memory, no time, no data.

    The number of classes does not decide whether a network can be built, so data that are not synthetic count as 2
    classes.
    """
    wanted = set(plan.to_do)
    checked: dict[Shape, Reason | None] = {}
    users: dict[Shape, list[str]] = defaultdict(list)
    names: dict[Shape, str] = {}
    for trial in plan.open:
        e = trial.experiment
        n_bands, n_classes = len(e.data.bands), e.data.n_classes if e.data.source == "synthetic" else 2
        for job in trial.jobs:
            if job.key not in wanted or not job.trains or (job.stage == "backbone" and job.name != "full"):
                continue
            is_backbone = job.stage == "backbone"
            shape = (*network_shape(e.backbone), e.coarse.tile_px) if is_backbone else network_shape(e.refiner)
            key = (job.stage, shape, n_bands)
            users[key].append(trial.id)
            if key in checked:
                continue
            if is_backbone:
                names[key] = f"backbone.encoder={e.backbone.encoder} backbone.decoder={e.backbone.decoder}"
                checked[key] = _error_of(functools.partial(check_backbone, e, n_bands, n_classes))
            else:
                names[key] = "refiner of '" + trial.label + "'"
                checked[key] = _error_of(functools.partial(check_refiner, e, n_bands, n_classes))
    alike: dict[Reason, list[Shape]] = defaultdict(list)  # the models of a reason
    for shape_of_model, why in checked.items():
        if why is not None:
            alike[why].append(shape_of_model)
    return [
        {
            "model": names[keys[0]] + (f" and {len(keys) - 1} more" if len(keys) > 1 else ""),
            "reason": reason,
            "exit_code": exit_code,
            "trials": list(dict.fromkeys(trial for each in keys for trial in users[each])),
        }
        for (reason, exit_code), keys in alike.items()
    ]


def refuse_impossible(plan: StudyPlan, found: list[Impossible]) -> None:
    """Raises:
    BadRequest: names every model that cannot be built; nothing was launched. Missing, Disagreement: the same, where
        files are the only reason.
    """
    if not found:
        return
    trials = len({t for i in found for t in i["trials"]})
    listed = " ".join(f"[{n + 1}] {i['model']} ({len(i['trials'])} trials): {i['reason']}" for n, i in enumerate(found))
    what = f"study {plan.study.name}: {trials} of {len(plan.open)} trials cannot be built. Nothing was launched. {listed}"
    codes = {i["exit_code"] for i in found}
    for kind in (Missing, Disagreement):
        if codes == {kind.exit_code}:
            raise kind(what)  # the reason says what to try
    raise BadRequest(what, hint="drop these values from the axes, or add a constraint that leaves them out")


def too_large_for(experiment: Experiment, stage: str, gpu_gb: float, runtime: Runtime, *, workers: int = 1, sharding: str = "") -> str:
    """Why a training does not fit GPUs of this memory (GB); empty where it does."""
    from idgbr.costs import plan_memory
    from idgbr.datasets.extent import n_classes

    settings = getattr(experiment, stage)
    precision = gpu_runtime(settings, runtime, cores=1).precision
    shards = sharding or settings.sharding
    try:
        plan_memory(experiment, stage, n_classes(experiment.data), gpu_gb, workers=workers, sharding=shards, precision=precision)
    except BadRequest as error:
        return str(error)
    return ""


def refuse_small_gpus(plan: StudyPlan, cards_gb: Sequence[float], placement: Placement) -> None:
    """Before anything starts: every training fits at least one kind of GPU of the cluster.

    Workers on smaller ones give it back.

    Args:
        cards_gb: memory of the GPUs; empty: not known, and each worker finds out for itself.

    Raises:
        BadRequest: one fits none of them.
    """
    if not cards_gb:
        return
    share = placement.gpus if placement.gpus < 1 else 1.0
    runtime = Runtime(precision=placement.precision)
    checked: set[Hashable] = set()
    for key in plan.to_do:
        job, experiment = plan.jobs[key]
        shape = (job.stage, getattr(experiment, job.stage)) if job.trains else None
        if shape is None or shape in checked:
            continue
        checked.add(shape)
        why = too_large_for(experiment, job.stage, max(cards_gb) * share, runtime, workers=placement.workers, sharding=placement.sharding)
        if why:
            raise BadRequest(f"study {plan.study.name} does not fit the GPUs of this cluster. Nothing was launched. {why}")


def _error_of(build: Callable[[], object]) -> Reason | None:
    try:
        build()
    except Exception as error:  # whatever a library raises while building is the reason
        code = error.exit_code if isinstance(error, IdgbrError) else BadRequest.exit_code
        return " ".join(str(error).split()) or type(error).__name__, code
    return None
