"""One, two and four processes, DDP and FSDP: the same losses at the same global batch; a checkpoint of one world goes on in another."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
import worlds

from cluster.train import RayTraining
from idgbr import stages
from idgbr.commands.train import LocalProcesses, check_batch, check_workers
from idgbr.config import Experiment, Runtime, apply
from idgbr.errors import BadRequest, Interrupted, SomeFailed
from idgbr.store import Store
from idgbr.training.curve import read_curve
from idgbr.training.distributed import DistributedWorld, shard_units
from idgbr.training.loop import train


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("worlds")
    done = subprocess.run(
        [sys.executable, worlds.__file__, str(root)], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for norm in (True, False):
        train(
            worlds.Toy(norm),
            worlds.Samples(),
            worlds.Settings(),
            seed=2,
            out=root / f"one-{norm}",
            runtime=Runtime(device="cpu", threads=1),
        )
    worlds.run_refiner(root / "refiner-one")
    return root


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_loss_curves_agree_with_one_process_at_the_same_global_batch(ran: Path, sharding: str, size: int) -> None:
    """Six images over four ranks are 1, 2, 1, 2: uneven slices too. Batch norm over the global batch. Tolerance: float32 rounding, 1e-4."""
    one = read_curve(ran / "one-True")
    several = read_curve(ran / f"{sharding}{size}")
    assert [x["images"] for x in several] == [x["images"] for x in one]
    for name in ("loss", "twice", "grad_norm", "lr"):
        assert [x[name] for x in several] == pytest.approx([x[name] for x in one], rel=1e-4)
    a, b = load_file(ran / "one-True/model.safetensors"), load_file(ran / f"{sharding}{size}/model.safetensors")
    assert a.keys() == b.keys()
    for name in a:
        assert torch.allclose(a[name].double(), b[name].double(), atol=2e-4), name


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_micro_batches_on_several_processes_change_nothing_but_rounding(ran: Path, sharding: str, size: int) -> None:
    assert worlds.losses(ran / f"{sharding}{size}-accumulate") == pytest.approx(worlds.losses(ran / "one-False"), rel=1e-4)


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_the_refiner_too_has_one_loss_curve(ran: Path, sharding: str) -> None:
    """Every parameter takes part (DDP would wait), and blocks called one by one are gathered in time (FSDP)."""
    one, two = worlds.losses(ran / "refiner-one"), worlds.losses(ran / f"refiner-{sharding}")
    assert two == pytest.approx(one, rel=1e-3)
    a, b = load_file(ran / "refiner-one/model.safetensors"), load_file(ran / f"refiner-{sharding}/model.safetensors")
    assert a.keys() == b.keys()


def test_a_checkpoint_of_four_sharded_ranks_goes_on_with_two_and_ends_on_one(ran: Path) -> None:
    assert worlds.state(ran / "scratch")["step"] > 3
    train(worlds.Toy(), worlds.Samples(), worlds.Settings(), seed=2, out=ran / "last", scratch=ran / "scratch", runtime=Runtime(threads=1))
    one, last = read_curve(ran / "one-True"), read_curve(ran / "last")
    assert [x["images"] for x in last] == [x["images"] for x in one]
    assert [x["loss"] for x in last] == pytest.approx([x["loss"] for x in one], rel=1e-4)


SMALL = {
    "data.train_scenes": 2, "data.val_scenes": 1, "data.test_scenes": 0, "data.scene_px": 64,
    "backbone.encoder": "test_resnet", "backbone.decoder": "fpn", "backbone.crop_px": 32, "backbone.batch_images": 4,
    "backbone.train_images": 120, "backbone.warmup_images": 8, "backbone.checkpoint_images": 8, "backbone.lr": 1e-4,
    "coarse.source": "in_fold",
}  # fmt: skip


@pytest.mark.timeout(600)
def test_workers_of_this_machine_killed_stopped_and_resumed_give_the_curve_of_one_process(tmp_path: Path) -> None:
    """Two processes, sharded (FSDP) by the recipe, one killed; two with DDP by the option go on and are
    stopped; one process goes on alone and ends. No step twice.
    """
    store, experiment = Store(tmp_path / "store"), apply(Experiment(), {**SMALL, "backbone.sharding": "fsdp"})
    data, job = stages.jobs(experiment)[:2]
    stages.run(data, store, experiment)
    runtime = Runtime(device="cpu", threads=1)

    def kill(**values: Any) -> None:
        if values["images"] == 40:
            os.kill(multiprocessing.active_children()[-1].pid or 0, signal.SIGKILL)

    with pytest.raises(SomeFailed, match=r"of the 2 that train backbone .* by SIGKILL.*rank-\d\.log.*memory ran out"):
        stages.run(job, store, experiment, runtime, report=kill, fit=LocalProcesses(2))
    logs = Path(store.base) / stages.scratch_name(job)
    assert "rank 1 of 2, fsdp" in (logs / "rank-1.log").read_text()
    assert "'images': 40" in (logs / "rank-0.log").read_text()
    seen: list[int] = []

    def report(**values: Any) -> None:
        seen.append(values["images"])

    with pytest.raises(Interrupted, match="of 120 images"):
        stages.run(job, store, experiment, runtime, report=report, stop=lambda: bool(seen), fit=LocalProcesses(2, "ddp"))
    assert "rank 1 of 2, ddp" in (logs / "rank-1.log").read_text()
    assert 8 < seen[0] <= 44, "it went on from a checkpoint"
    assert not store.has(job.stage, job.key)
    stages.run(job, store, experiment, runtime)
    assert not logs.exists()
    stages.train_stage(job, store, experiment, tmp_path / "one", runtime=runtime, scratch=tmp_path / "scratch")
    one, two = read_curve(tmp_path / "one"), read_curve(store.path(job.stage, job.key))
    assert [x["images"] for x in two] == [x["images"] for x in one]
    assert [x["loss"] for x in two] == pytest.approx([x["loss"] for x in one], rel=1e-3)


@pytest.mark.parametrize("trainer", [LocalProcesses(2), RayTraining(3), RayTraining(4, min_workers=1)], ids=str)
def test_the_manifest_says_how_many_processes_a_training_took(trainer: stages.Trainer, tmp_path: Path) -> None:
    """GPU time is time on the clock times this number, whoever trains: this machine, Ray, or a sweep."""

    class Alone:
        """The training itself on one process: what is recorded is what the trainer says."""

        processes = trainer.processes

        def __call__(self, *job: Any, **how: Any) -> None:
            stages.train_stage(*job, **how)

    store, experiment = Store(tmp_path / "store"), apply(Experiment(), {**SMALL, "backbone.train_images": 8})
    data, job = stages.jobs(experiment)[:2]
    assert stages.run(data, store, experiment, fit=Alone())["processes"] == 1
    assert stages.run(job, store, experiment, Runtime(device="cpu", threads=1), fit=Alone())["processes"] == trainer.processes > 1


def test_workers_that_cannot_be_are_refused() -> None:
    for workers, sharding, kind, words in ((0, "ddp", "cpu", "at least one"), (2, "zero", "cpu", "sharding"), (99, "ddp", "cuda", "GPUs")):
        with pytest.raises(BadRequest, match=words):
            check_workers(workers, sharding, kind)
    with pytest.raises(BadRequest, match="batch_images=6, workers=7"):
        check_batch(7, 6)


def test_units_of_sharding_are_the_innermost_blocks_with_weights() -> None:
    module = worlds.Toy()
    units = shard_units(module)
    assert module.network not in units
    assert [type(u).__name__ for u in units] == ["Conv2d"] * 3 or all(u in list(module.network.modules()) for u in units)
    inside = [p for u in units for p in u.parameters()]
    assert len(inside) == len({id(p) for p in inside}), "no parameter lies in two units"


def test_unknown_sharding_and_too_many_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="unknown sharding"):
        DistributedWorld("zero")

    class Many(worlds.DistributedWorld):
        def __init__(self) -> None:
            self.rank, self.size, self.sharding, self._device = 0, 7, "ddp", None

    with pytest.raises(BadRequest, match="batch_images=6, workers=7"):
        train(worlds.Toy(), worlds.Samples(), worlds.Settings(), seed=2, out=tmp_path, world=Many())
