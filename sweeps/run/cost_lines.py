"""The part of `plan` about a stated cluster: predicted GPU-hours, wall time, disk and memory, and what to cut for a
budget.
"""

from __future__ import annotations

import dataclasses
import itertools
import shlex
import sys
from collections.abc import Iterable, Mapping
from typing import Protocol

from idgbr.config import Experiment
from idgbr.errors import BadRequest
from idgbr.stages import Job
from idgbr.store import Store
from sweeps.run import plan as planning
from sweeps.run.budget import Cut, cuts
from sweeps.run.forecast import CARDS, CPU_PX_PER_S, Forecast, GpuCluster, forecast
from sweeps.run.placement import Placement
from sweeps.study import Study


class Planned(Protocol):
    """What a forecast reads of a plan: every job by key with its experiment, and the keys to compute."""

    @property
    def jobs(self) -> Mapping[str, tuple[Job, Experiment]]: ...
    @property
    def to_do(self) -> Iterable[str]: ...


def forecast_lines(
    study: Study, made: Planned, store: Store, placement: Placement, cluster: str, budget_gpu_hours: float
) -> tuple[dict[str, object], list[str]]:
    """The forecast as JSON can hold it, and as lines for people.

    Args:
        cluster: `8xH100`. budget_gpu_hours: proposes smaller studies until one fits; 0: none.

    Raises:
        BadRequest: a budget without a cluster, or an unknown card; a search, whose trials are not known in advance.
    """
    if not cluster:
        raise BadRequest("GPU-hours depend on the card", value=f"--budget-gpu-hours {budget_gpu_hours:g}", hint="--cluster 8xH100 too")
    if study.search is not None:
        raise BadRequest("what a search will train is not known in advance", value=study.name, hint="plan it without --cluster")
    place = GpuCluster.parse(cluster)

    def of(planned: Planned) -> Forecast:
        return forecast(planned.jobs, planned.to_do, place, workers=placement.workers, sharding=placement.sharding)

    whole = of(made)
    found = dataclasses.asdict(whole) | {"total_gpu_hours": whole.total, "predicted": True}
    lines = _lines(whole)
    if budget_gpu_hours:
        tried = (
            list(cuts(study, budget_gpu_hours, lambda part: of(planning.make(part, store)).total)) if whole.total > budget_gpu_hours else []
        )
        found["proposals"] = [{"settings": cut.settings, "lost": cut.lost, "gpu_hours": cut.gpu_hours} for cut in tried]
        lines += _proposals(study.name, whole, tried, budget_gpu_hours)
    return found, lines


def _lines(whole: Forecast) -> list[str]:
    place, card = whole.cluster, CARDS[whole.cluster.card]
    parts = ", ".join(f"{stage} {hours:.1f}" for stage, hours in whole.gpu_hours.items())
    shares = ", ".join(f"{stage} {share}" for stage, share in whole.shares.items())
    needs = ", ".join(f"{stage} {gb:.0f} GB at {whole.micro_images[stage]} images a pass" for stage, gb in whole.memory_gb.items())
    cores = ", ".join(f"{stage} {speed / 1e6:.0f}" for stage, speed in CPU_PX_PER_S.items())
    lines = [
        f"predicted for {place.gpus} x {place.card}: {whole.total:.1f} GPU-hours ({parts}), {_time(whole.wall_hours)} on the clock",
        f"  from counted FLOPs and a share of {card.peak / 1e12:.0f} TFLOP/s ({shares}); on one core a job, Mpx/s: {cores}",
        f"  disk {whole.disk_gb:.1f} GB, and up to {whole.scratch_gb:.1f} GB of checkpoints while it runs",
    ]
    if needs:
        lines.append(f"  memory of a GPU, bf16: {needs}; {place.card} has {card.memory_gb:g} GB")
    return lines


def _proposals(name: str, whole: Forecast, tried: list[Cut], budget: float) -> list[str]:
    if not tried:
        verdict = "it fits" if whole.total <= budget else "there are neither seeds nor backbones to leave out"
        return [f"budget of {budget:g} GPU-hours: {verdict}"]
    lines = [f"budget of {budget:g} GPU-hours: {whole.total:.1f} are too many. Smaller studies, fewer seeds first, then fewer backbones:"]
    lines += [f"  {' '.join(cut.settings):<24}{cut.gpu_hours:>8.1f} GPU-hours   {cut.lost}" for cut in tried]
    last = tried[-1]
    if last.gpu_hours > budget:
        return [*lines, "none fits: fewer images (backbone.train_images, refiner.train_images) make every training shorter"]
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), sys.argv[2:])) if sys.argv[1:2] == ["plan"] else [name]
    return [*lines, "  " + shlex.join(["python", "-m", "sweeps", "run", *words, *last.settings])]


def _time(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
