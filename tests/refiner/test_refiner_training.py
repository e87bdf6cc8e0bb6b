"""What the refiner learns from, and that all of it learns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_refiner import TINY
from torch import Tensor

from idgbr.config import RefinerConfig
from idgbr.errors import BadRequest
from idgbr.refiner.loss import Numbered, RefinerTraining
from idgbr.refiner.refiner import Refiner

Build = Callable[..., Refiner]
Batch = Callable[..., dict[str, Tensor]]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"guidance_attention": False, "loss_weighting": "frequency", "parameterisation": "v"},
        {"kind": "one_pass", "loss_weighting": "boundary"},
        {"target_loss": "auto", "coarse_residual": True, "loss_weighting": "min_snr", "guidance_window": 0, "gradient_checkpointing": True},
        {"one_step_images": 6, "train_images": 8, "parameterisation": "v"},
        {"condition_encoder": "test_efficientnet"},
    ],
)
def test_every_parameter_gets_a_gradient_and_moves(build: Build, batch: Batch, settings: dict[str, object]) -> None:
    training = RefinerTraining(build(**settings)).train()
    before = {name: p.detach().clone() for name, p in training.named_parameters() if p.requires_grad}
    frozen = {name: p.detach().clone() for name, p in training.named_parameters() if not p.requires_grad}
    assert bool(frozen) == ("condition_encoder" in settings)
    touched: set[str] = set()
    optimizer = torch.optim.AdamW(training.parameters(), lr=1e-3, weight_decay=0)
    for step in range(4):
        loss, _ = training(batch(4, seed=step))
        optimizer.zero_grad()
        loss.mean().backward()
        touched |= {name for name, p in training.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        optimizer.step()
    # a bias that all keys share shifts every attention score alike, and softmax does not see it: its gradient is rounding
    free = {name for name in before if name.endswith("to_k.bias")}
    if settings.get("kind") == "one_pass":
        free.add("network.denoiser.conv_in.weight")  # sees zeros, for ever
    assert set(before) - touched - free == set()
    now = dict(training.named_parameters())
    assert {name for name, p in before.items() if torch.equal(p, now[name])} - free == set()
    assert all(torch.equal(p, now[name]) for name, p in frozen.items())


@pytest.mark.parametrize(
    "settings", [{}, {"condition_dropout": 0.5}, {"kind": "one_pass"}, {"parameterisation": "v", "loss_weighting": "min_snr"}]
)
def test_the_loss_of_a_sample_does_not_depend_on_its_batch(build: Build, batch: Batch, settings: dict[str, object]) -> None:
    training, samples = RefinerTraining(build(**settings)), batch(6)
    with torch.no_grad():
        together = training(samples)[0]
        apart = torch.cat([training({k: v[i : i + 1] for k, v in samples.items()})[0] for i in range(6)])
    assert together.shape == (6,)
    assert torch.allclose(together, apart, rtol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [{}, {"kind": "one_pass"}, {"target_loss": "cross_entropy"}, {"loss_weighting": "boundary"}, {"loss_weighting": "frequency"}],
)
def test_ignored_and_invalid_pixels_carry_no_loss(build: Build, batch: Batch, settings: dict[str, object]) -> None:
    training, samples = RefinerTraining(build(use_image=False, **settings)), batch(2)
    samples["valid"][:, :, 16:] = False
    other = {**samples, "target": samples["target"].clone()}
    other["target"][:, :, 16:] = 1 - other["target"][:, :, 16:]
    ignored = {**samples, "target": samples["target"].clone(), "valid": torch.ones_like(samples["valid"])}
    ignored["target"][:, :, 16:] = 255
    with torch.no_grad():
        a, b, c = (training(s)[0] for s in (samples, other, ignored))
        nothing = training({**samples, "target": torch.full_like(samples["target"], 255)})[0]
    assert torch.equal(a, b)
    assert torch.allclose(a, c)
    assert torch.equal(nothing, torch.zeros(2))


def test_the_plain_loss_is_the_mean_squared_error_of_the_code(build: Build, batch: Batch) -> None:
    training, samples = RefinerTraining(build()), batch(3)
    seen: dict[str, Tensor] = {}
    training.network.denoiser.conv_out.register_forward_hook(lambda m, i, o: seen.update(output=o))
    with torch.no_grad():
        loss, _ = training(samples)
    code = F.pixel_unshuffle(samples["target"].float()[:, None] * 2 - 1, 4)
    assert torch.allclose(loss, (seen["output"] - code).square().mean((1, 2, 3)), rtol=1e-5)


def test_frequency_weights_leave_white_errors_alone_and_punish_fine_ones(build: Build, batch: Batch) -> None:
    plain, weighted = (RefinerTraining(build(loss_weighting=w)) for w in ("uniform", "frequency"))
    weight = torch.ones(1, 1, 64, 64)
    zero = torch.zeros(1, 16, 16, 16)
    white = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    smooth = F.pixel_unshuffle(torch.ones(1, 1, 64, 64), 4)
    checker = F.pixel_unshuffle((torch.arange(64)[:, None] + torch.arange(64)).remainder(2)[None, None] * 2.0 - 1, 4)

    def ratio(error: Tensor) -> float:
        return (weighted._squared_error(error, zero, weight) / plain._squared_error(error, zero, weight)).item()

    assert ratio(white) == pytest.approx(1, abs=0.05)
    assert ratio(smooth) < 0.3
    assert ratio(checker) > 1.5


def test_boundary_weights_lie_along_the_target_boundary(build: Build) -> None:
    training = RefinerTraining(build(loss_weighting="boundary"))
    target = torch.zeros(1, 32, 32, dtype=torch.uint8)
    target[..., 16:] = 1
    target[:, 20:, :] = 255
    weight = training._pixel_weights(target, target != 255)[0, 0]
    assert (weight[20:] == 0).all()
    assert (weight[:16, 12:20] == 5).all()
    assert (weight[:20, :12] == 1).all()
    assert (weight[:20, 20:] == 1).all()


def test_the_fast_track_is_the_task_loss_of_one_step_from_zero(build: Build, batch: Batch) -> None:
    training, samples = RefinerTraining(build(one_step_images=2, train_images=6)), batch(6)
    with torch.no_grad():
        loss, _ = training(samples)
        network = training.network
        condition = network.condition(samples["image"], samples["coarse"])
        output, _ = network.predict(torch.zeros(6, 16, 8, 8), torch.full((6,), 99), condition)
        task = F.cross_entropy(network.codec.logits(output), samples["target"].long(), reduction="none").mean((1, 2))
    assert torch.allclose(loss[4:], task[4:], rtol=1e-5)
    assert not torch.isclose(loss[:4], task[:4]).any()


def test_settings_that_contradict_each_other_are_refused(build: Build) -> None:
    for settings in (
        {"target_loss": "cross_entropy", "parameterisation": "v"},
        {"loss_weighting": "frequency", "target_loss": "cross_entropy"},
        {"parameterisation": "epsilon"},
        {"alignment": 1.0, "teacher": "resnet18"},
        {"alignment": 1.0, "teacher": "vit_smal"},
    ):
        with pytest.raises(BadRequest):
            RefinerTraining(build(**settings))


def test_repeated_crops_get_new_noise(batch: Batch) -> None:
    calls: list[int] = []

    class Samples:
        def __getitem__(self, i: int) -> dict[str, Tensor]:
            calls.append(i)
            return {"seed": torch.tensor(1000 + i), "image": torch.full((1,), i)}

    stream = Numbered(Samples(), pool=3)
    seen = [stream[i] for i in range(9)]
    assert calls == [0, 1, 2]
    assert [int(s["index"]) for s in seen] == list(range(9))
    assert [int(s["image"]) for s in seen] == [0, 1, 2] * 3
    assert len({int(s["seed"]) for s in seen}) == 9
    assert int(Numbered(Samples(), pool=3)[7]["seed"]) == int(seen[7]["seed"])
    assert [int(Numbered(Samples())[i]["seed"]) for i in range(3)] == [1000, 1001, 1002]


@pytest.mark.parametrize("kind", ["diffusion", "one_pass"])
def test_fit_leaves_a_folder_that_loads_and_the_loss_falls(scenes, tmp_path: Path, kind: str) -> None:
    from idgbr.refiner.loss import fit

    dataset, coarse = scenes
    config = RefinerConfig(
        **{**TINY, "kind": kind, "batch_images": 8, "train_images": 400, "lr": 3e-3, "warmup_images": 40, "ema_images": 40.0}
    )
    fit(config, dataset, coarse, seed=0, out=tmp_path / "a")
    curve = [json.loads(line)["loss"] for line in (tmp_path / "a" / "curve.jsonl").read_text().splitlines()]
    assert sum(curve[-5:]) < 0.7 * sum(curve[:5])
    refiner = Refiner.load(tmp_path / "a")
    assert refiner.config == config
    fit(config, dataset, coarse, seed=0, out=tmp_path / "short", max_images=40)
    assert Refiner.load(tmp_path / "short").config.train_images == 40
