"""One, two and four processes, DDP and FSDP: the same losses at the same global batch; a checkpoint of one world goes on in another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
import worlds

from idgbr.config import Runtime
from idgbr.errors import BadRequest
from idgbr.train import read_curve, train
from idgbr.world import DistributedWorld, shard_units


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
