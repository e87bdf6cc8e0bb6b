"""The written model of scaling: limits that need no machine, and published throughput."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("scaling", Path(__file__).parents[2] / "benchmarks" / "scaling.py")
assert SPEC is not None
assert SPEC.loader is not None
scaling = importlib.util.module_from_spec(SPEC)
sys.modules["scaling"] = scaling
SPEC.loader.exec_module(scaling)


@pytest.mark.parametrize(("gpus", "images_per_s"), [(16, 585), (32, 1195), (64, 2340), (128, 4590)])
def test_the_model_meets_published_throughput_within_five_percent(gpus: int, images_per_s: float) -> None:
    """MosaicML's Stable Diffusion 2 U-Net at 512 px with latents made in advance, A100, global batch 2048; calibrated on 8 GPUs alone."""
    predicted = 2048 / scaling.step_seconds(scaling.SD2, scaling.A100_IB, gpus, 2048 / gpus)[2]
    assert predicted == pytest.approx(images_per_s, rel=0.05)


def test_one_gpu_talks_to_nobody_and_more_images_hide_more() -> None:
    assert scaling.bytes_step(scaling.REFINER, 1) == 0
    for machine in (scaling.H100_IB, scaling.H100_100G):
        found = [scaling.efficiency(scaling.REFINER, machine, 64, images) for images in (1, 4, 16, 64)]
        assert found == sorted(found)
        assert 0 < found[0] < found[-1] <= 1
        assert scaling.efficiency(scaling.REFINER, machine, 1, 8) == 1


def test_sharding_divides_the_states_and_nothing_else() -> None:
    whole, parts = scaling.memory_gb(scaling.REFINER, 8, "ddp"), scaling.memory_gb(scaling.REFINER, 8, "fsdp")
    frozen = 2 * scaling.REFINER.frozen_parameters / 1e9
    assert whole - frozen == pytest.approx(8 * (parts - frozen))
