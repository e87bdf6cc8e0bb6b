"""Counted costs against a real training step, memory against cards, and the published table of costs."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from idgbr import costs
from idgbr.config import Experiment, RefinerConfig, SamplerConfig
from idgbr.costs import GB, NetworkCost, fitting, images_at_once
from idgbr.paper_recipes import RECIPES, paper_experiment, papers_own
from idgbr.refiner.loss import RefinerTraining
from idgbr.refiner.refiner import Refiner

REPO = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("paper_costs", REPO / "benchmarks" / "paper_costs.py")
assert _spec is not None
assert _spec.loader is not None
table: Any = importlib.util.module_from_spec(_spec)
sys.modules["paper_costs"] = table
_spec.loader.exec_module(table)

SMALL = RefinerConfig(channels=(16, 32), condition_channels=(16, 32), guidance_width=16, crop_px=64, target_loss="mse", boundary_share=0.0)
# torch's counter does not know the attention kernel of the CPU
PLAIN = dataclasses.replace(SMALL, guidance_attention=False)


def test_what_is_counted_on_the_meta_device_is_what_a_real_step_does_and_keeps() -> None:
    """FLOPs by torch's counter and bytes by autograd's hooks, both of a step on the CPU in fp32."""
    from torch.utils.flop_counter import FlopCounterMode

    counted = costs.of_refiner(PLAIN, 3, 2, "fp32")
    training = RefinerTraining(Refiner.build(PLAIN, 3, *costs._any_data(3, 2))).train()
    own = {p.untyped_storage()._cdata for p in training.parameters()}
    n = 2
    batch = {
        "image": 255 * torch.rand(n, 3, 64, 64), "coarse": torch.rand(n, 2, 64, 64).softmax(1),
        "target": torch.randint(0, 2, (n, 64, 64)).to(torch.uint8), "valid": torch.ones(n, 64, 64, dtype=torch.bool),
        "seed": torch.arange(n), "index": torch.arange(n),
    }  # fmt: skip
    held: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            held[storage._cdata] = storage
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss, _ = training(batch)
            kept = sum(storage.nbytes() for storage in held.values()) / n
        loss.sum().backward()
    assert counted.train_flop == pytest.approx(counter.get_total_flops() / n, rel=0.05)
    assert counted.kept_bytes == pytest.approx(kept, rel=0.1)
    assert counted.parameters == sum(p.numel() for p in training.parameters())


def test_refining_costs_what_is_counted_on_a_real_tile() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    small = dataclasses.replace(PLAIN, target_loss="auto", class_channels=True, pixel_channels=4)
    image, coarse, valid = 255 * torch.rand(1, 3, 64, 64), torch.rand(1, 2, 64, 64).softmax(1), torch.ones(1, 64, 64, dtype=torch.bool)
    for kind, given in (("one_pass", {}), ("cascade", {"steps": 3}), ("diffusion", {"steps": 2, "samples": 2})):
        config = dataclasses.replace(small, kind=kind)
        sampler = SamplerConfig(tile_px=64, overlap_px=0, **given)  # type: ignore[arg-type]
        refiner = Refiner.build(config, 3, *costs._any_data(3, 2)).eval()
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            refiner.draw(refiner.condition(image, coarse, valid), [0], sampler)
        experiment = Experiment(refiner=config, sampler=sampler)
        assert 64 * 64 * costs.refining_flop_px(experiment, 2) == pytest.approx(counter.get_total_flops(), rel=0.02), kind
        wider = dataclasses.replace(experiment, sampler=dataclasses.replace(sampler, tile_px=64, overlap_px=32))
        assert costs.refining_flop_px(wider, 2) == pytest.approx(4 * costs.refining_flop_px(experiment, 2))
    assert costs.refining_flop_px(dataclasses.replace(experiment, refiner=dataclasses.replace(small, kind="none")), 2) == 0


def test_memory_is_states_and_what_an_image_keeps() -> None:
    cost = NetworkCost(1e12, 1e11, 0.0, parameters=1000, trained=800, apart=50, kept_bytes=1e9, precision="bf16")
    states, images, workers = 4 * (2 * 1000 + 3 * 800), 3, 8
    reserved = costs.RESERVED_GB * GB
    assert cost.memory_bytes(images) == pytest.approx(costs.FRAGMENTS * (states + 4 * 50 + images * 1e9) + reserved)
    assert cost.memory_bytes(images, workers=workers, sharding="ddp") == cost.memory_bytes(images)
    sharded = cost.memory_bytes(images, workers=workers, sharding="fsdp")
    assert cost.memory_bytes(images) - sharded == pytest.approx(costs.FRAGMENTS * states * 7 / 8)


# Stable Diffusion 1.5 as `potsdam_sd15` trains it, counted at 512 px with 6 classes by benchmarks/paper_costs.py
LARGE = NetworkCost(
    7463e9, 5316e9, 1020e9, parameters=1_410_000_000, trained=977_000_000, apart=87_000_000, kept_bytes=2.673e9, precision="bf16"
)
PIECES = {16: (None, None, 2), 24: (None, None, 1), 40: (8, 1, 1), 80: (2, 1, 1)}  # on one GPU; on 8; on 8 with FSDP


@pytest.mark.parametrize("card_gb", costs.CARDS_GB)
def test_the_global_batch_of_the_large_refiner_fits_every_card_that_can_hold_it(card_gb: int) -> None:
    ways = ((1, "ddp"), (8, "ddp"), (8, "fsdp"))
    found = tuple(fitting(LARGE, 32, card_gb, workers=n, sharding=sharding) for n, sharding in ways)
    assert found == PIECES[card_gb]
    for (n, sharding), pieces in zip(ways, found, strict=True):
        if pieces:
            assert LARGE.memory_bytes(images_at_once(32, n, pieces), workers=n, sharding=sharding) <= card_gb * GB
        if pieces and pieces > 1:
            assert LARGE.memory_bytes(images_at_once(32, n, pieces - 1), workers=n, sharding=sharding) > card_gb * GB


# ---- the table ----------------------------------------------------------------------------------------------------------------


def rows() -> dict[str, list[float]]:
    lines = (REPO / "docs" / "paper-costs.md").read_text().splitlines()
    cells = {line.split("|")[1].strip(" `"): line.split("|")[2:-1] for line in lines if line.startswith("| `")}
    return {name: [float(re.sub(r"[ ,GB]", "", cell)) for cell in found] for name, found in cells.items()}


def test_every_recipe_says_what_it_costs_and_that_it_is_predicted() -> None:
    found = rows()
    assert list(found) == list(RECIPES)
    text = (REPO / "docs" / "paper-costs.md").read_text()
    assert text.startswith(table.head())
    assert "Predicted, not measured" in table.head()
    for name, (backbone, refiner, backbone_images, refiner_images, hours, on_8, _, _, on_8_images, on_1_images) in found.items():
        experiment = RECIPES[name]()
        images = {"backbone": experiment.backbone.train_images * (1 + experiment.coarse.folds), "refiner": experiment.refiner.train_images}
        assert (backbone_images, refiner_images) == (images["backbone"], images["refiner"])
        expected = table.hours_of(images, {"backbone": backbone, "refiner": refiner}, bool(experiment.refiner.base))
        assert hours == pytest.approx(expected, abs=0.06)
        assert on_8 == pytest.approx(hours / 8, abs=0.06)
        assert on_8_images == 4
        assert on_1_images == (16 if experiment.refiner.base else 32), "one 80 GB card holds every recipe at its global batch"


def test_the_table_is_counted_again() -> None:
    cost = costs.of_backbone(paper_experiment("potsdam").backbone, 3, 6)
    assert rows()["potsdam"][0] == pytest.approx(cost.train_flop / 1e12, abs=6e-4)


def test_the_papers_own_configuration_is_one_point_of_the_large_studies() -> None:
    from idgbr.config import apply
    from sweeps.studies import find

    for name, law in (("potsdam", "cubic"), ("chn6_cug", "uniform")):
        assert papers_own(name) in find(f"paper_{name}_sd15").points
        found = apply(paper_experiment(name, "sd15"), papers_own(name))
        refiner, sampler = found.refiner, found.sampler
        assert (refiner.parameterisation, refiner.schedule, refiner.zero_terminal_snr) == ("epsilon", "scaled_linear", False)
        assert (refiner.codec, refiner.timestep_law, refiner.alignment) == ("vae", law, 0.5)
        assert (sampler.sampler, sampler.steps, sampler.spacing, sampler.guidance_scale) == ("ddim", 25, "leading", 3.0)
        assert not refiner.input_condition, "guidance enters the decoder alone"
        assert refiner.train_images == 80_000 * refiner.batch_images
    assert papers_own("potsdam") not in find("paper_potsdam").points
