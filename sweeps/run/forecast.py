"""What a study will cost on a stated cluster, before anything has run: GPU-hours, wall time and disk, from counted
FLOPs.

Predicted, not measured: FLOPs of every network (`idgbr/costs.py`) over the card's peak and a share of it, which is
measured where it could be, else assumed. Once jobs of a stage have run, `plan` also prints their measured time.
"""

from __future__ import annotations

import heapq
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from idgbr import costs
from idgbr.config import DataConfig, Experiment
from idgbr.datasets.extent import area_px, n_classes
from idgbr.errors import BadRequest, nearest
from idgbr.stages import SIMULATED, STAGES, Job

HOUR = 3600.0
Jobs = Mapping[str, tuple[Job, Experiment]]


@dataclass(frozen=True)
class Card:
    """Dense bf16 FLOP/s of the maker's data sheet, and memory."""

    peak: float
    memory_gb: float


CARDS = {
    "H200": Card(989e12, 141),
    "H100": Card(989e12, 80),
    "A100": Card(312e12, 80),
    "A100-40GB": Card(312e12, 40),
    "L40S": Card(362e12, 48),
    "RTX4090": Card(165e12, 24),
}


@dataclass(frozen=True)
class Share:
    """Of the card's dense bf16 peak that a network reaches, and whether it was measured (docs/performance.md) or is
    assumed.
    """

    value: float
    is_measured: bool = False

    def __str__(self) -> str:
        return f"{self.value:.0%} {'measured' if self.is_measured else 'assumed'}"


# Measured by `benchmarks/gpu.py` on one H100 with the default small refiner, 2 million parameters, 128 px, bf16: too
# little work for it
TINY_CHANNELS = 128
TINY = {"refiner": Share(0.010, True), "refined": Share(0.011, True)}
# At Stable Diffusion 1.5's size sampling was measured (4 images of 512 px, bf16, not compiled); training is assumed between
# that and the 28 % of an A100 that docs/scaling.md quotes
SHARES = {"backbone": Share(0.08), "small": Share(0.05), "stable_diffusion": Share(0.15)}
STABLE_DIFFUSION_REFINED = Share(0.086, True)
GPU_STAGES = ("backbone", "coarse", "refiner", "refined")
CPU_PX_PER_S = {"data": 20e6, "counts": 5e6}  # of one core: opening every file once; all default scores (benchmarks/scores.py, 6 classes)
FIXED_S = 20.0  # of a job: process, data set, first batches
DEFLATED = {"coarse": 0.25, "refined": 0.1}  # bytes on disk / bytes of the map, with smooth probabilities and large patches


@dataclass(frozen=True)
class GpuCluster:
    """`gpus` cards of one kind."""

    gpus: int
    card: str

    @classmethod
    def parse(cls, text: str) -> GpuCluster:
        """`8xH100`, or `H100` for one.

        Raises:
            BadRequest: another spelling, or a card that is not listed.
        """
        match = re.fullmatch(r"(?:(\d+)\s*[xX*]\s*)?([A-Za-z0-9-]+)", text.strip())
        name = next((name for name in CARDS if match and name.lower() == match[2].lower()), None)
        if match is None or name is None or match[1] == "0":
            near = nearest(match[2].upper(), CARDS) if match else None
            raise BadRequest(
                "unknown cluster", value=text, allowed=f"COUNTxCARD, CARD one of {', '.join(CARDS)}", hint=f"8x{near or 'H100'}"
            )
        return cls(int(match[1] or 1), name)


@dataclass(frozen=True)
class Forecast:
    """Predicted for a plan on a cluster.

    Attributes:
        gpu_hours: by stage, of the stages that use a GPU. wall_hours: with every GPU of the cluster at work as soon
            as a job may start.
        disk_gb: what the store grows by. scratch_gb: resume checkpoints while all GPUs train.
        memory_gb: of one GPU, by training stage, at its fullest. micro_images: of one forward pass, with which that
            is so.
        shares: of the card's peak, by stage.
    """

    cluster: GpuCluster
    gpu_hours: Mapping[str, float]
    wall_hours: float
    disk_gb: float
    scratch_gb: float
    memory_gb: Mapping[str, float]
    micro_images: Mapping[str, int]
    shares: Mapping[str, Share]

    @property
    def total(self) -> float:
        """GPU-hours of all stages."""
        return sum(self.gpu_hours.values())


def forecast(jobs: Jobs, to_do: Iterable[str], cluster: GpuCluster, *, workers: int = 1, sharding: str = "") -> Forecast:
    """What the jobs `to_do` will cost; `jobs` has every job of the study by key, parents before children.

    Args:
        sharding: ddp or fsdp; empty: what the recipe says.

    Raises:
        BadRequest: a network that cannot be built, or that does not fit the card.
        Missing, Disagreement: data or files that a network needs.
    """
    left = set(to_do)
    wanted = [key for key in jobs if key in left]
    seconds: dict[str, float] = {}
    gpu_hours: dict[str, float] = defaultdict(float)
    memory: dict[str, float] = defaultdict(float)
    at_once_images: dict[str, int] = {}
    card = CARDS[cluster.card]
    shares: dict[str, Share] = {}
    disk, states = 0.0, [0.0]
    for key in wanted:
        job, experiment = jobs[key]
        spent = seconds_of(job, experiment, cluster)
        gpus = min(workers, cluster.gpus) if job.trains else 1
        seconds[key] = spent / gpus
        if job.stage in GPU_STAGES:
            gpu_hours[job.stage] += spent / HOUR
            shares[job.stage] = share_of(job.stage, experiment)
        disk += bytes_of(job, experiment)
        if job.trains:
            cost = _cost(experiment, job.stage)
            section = getattr(experiment, job.stage)
            shards = sharding or section.sharding
            precision = "bf16"  # as studies that are sized for GPUs train
            images = costs.plan_memory(
                experiment, job.stage, n_classes(experiment.data), card.memory_gb, workers=gpus, sharding=shards, precision=precision
            )
            memory[job.stage] = max(memory[job.stage], cost.memory_bytes(images, workers=gpus, sharding=shards) / costs.GB)
            at_once_images[job.stage] = min(images, at_once_images.get(job.stage, images))
            states.append(4.0 * (2 * cost.parameters + 2 * cost.trained))
    at_once = max(1, cluster.gpus // max(1, workers))
    wall = _wall(jobs, wanted, seconds, at_once)
    return Forecast(
        cluster,
        {stage: gpu_hours[stage] for stage in STAGES if gpu_hours[stage]},
        wall / HOUR,
        disk / costs.GB,
        at_once * max(states) / costs.GB,
        dict(memory),
        at_once_images,
        shares,
    )


def seconds_of(job: Job, experiment: Experiment, cluster: GpuCluster) -> float:
    """GPU-seconds of a job (of a CPU core where the stage uses no GPU)."""
    e = experiment
    if job.stage in CPU_PX_PER_S:
        split = None if job.stage == "data" else e.sampler.split
        return FIXED_S + area_px(_data(job, e), split) / CPU_PX_PER_S[job.stage]
    speed = CARDS[cluster.card].peak * share_of(job.stage, e).value
    if job.trains:
        return FIXED_S + getattr(e, job.stage).train_images * _cost(e, job.stage).train_flop / speed
    if job.stage == "coarse":
        if e.coarse.source == "external" or job.name == SIMULATED:
            return FIXED_S
        windows = area_px(_data(job, e)) / (e.coarse.tile_px - e.coarse.overlap_px) ** 2
        return FIXED_S + windows * _scaled(_cost(e, "backbone").run_flop, e.coarse.tile_px, e.backbone.crop_px) / speed
    if e.refiner.kind == "none":
        return FIXED_S
    return FIXED_S + area_px(e.data.shown, e.sampler.split) * costs.refining_flop_px(e, n_classes(e.data)) / speed


def share_of(stage: str, experiment: Experiment) -> Share:
    """Share of the card's peak that a stage's network reaches."""
    if stage in ("backbone", "coarse"):
        return SHARES["backbone"]
    if not experiment.refiner.base and max(experiment.refiner.channels) < TINY_CHANNELS:
        return TINY[stage]
    if experiment.refiner.base:
        return STABLE_DIFFUSION_REFINED if stage == "refined" else SHARES["stable_diffusion"]
    return SHARES["small"]


def bytes_of(job: Job, experiment: Experiment) -> float:
    """What a job leaves in the store."""
    e = experiment
    if job.trains:
        return 4.0 * _cost(e, job.stage).parameters
    if job.stage == "coarse":
        return DEFLATED["coarse"] * area_px(_data(job, e)) * n_classes(e.data)
    if job.stage == "refined":
        return DEFLATED["refined"] * area_px(e.data.shown, e.sampler.split)
    return 1e6


def _data(job: Job, e: Experiment) -> DataConfig:
    """The data set whose images the job reads."""
    return e.data.shown if job.name == job.stage else e.data.trained


def _scaled(flop: float, side_px: int, counted_px: int) -> float:
    return flop * (side_px / counted_px) ** 2


def _cost(experiment: Experiment, stage: str) -> costs.NetworkCost:
    return costs.of_stage(experiment, stage, n_classes(experiment.data))


def _wall(jobs: Jobs, wanted: Sequence[str], seconds: Mapping[str, float], at_once: int) -> float:
    """Seconds until the last job ends: each starts as soon as its parents are done and a place is free, longest way
    to the end first.
    """
    todo = set(wanted)
    parents = {key: [p for p in jobs[key][0].parents.values() if p in todo] for key in wanted}
    children: dict[str, list[str]] = defaultdict(list)
    for key, needed in parents.items():
        for parent in needed:
            children[parent].append(key)
    rest: dict[str, float] = {}
    for key in reversed(wanted):  # parents stand before children
        rest[key] = seconds[key] + max((rest[child] for child in children[key]), default=0.0)
    missing = {key: len(needed) for key, needed in parents.items()}
    ready = [(-rest[key], key) for key in wanted if not missing[key]]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < at_once:
            _, key = heapq.heappop(ready)
            heapq.heappush(running, (now + seconds[key], key))
        now, key = heapq.heappop(running)
        for child in children[key]:
            missing[child] -= 1
            if not missing[child]:
                heapq.heappush(ready, (-rest[child], child))
    return now
