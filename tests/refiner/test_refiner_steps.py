"""Recycled guesses, cascades, class channels and the other settings of the second design; noise: test_refiner_noise.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_refiner import CLASSES, TINY
from torch import Tensor

from idgbr.config import RefinerConfig, SamplerConfig
from idgbr.errors import BadRequest
from idgbr.refiner.diffusion import Diffusion
from idgbr.refiner.loss import RefinerTraining, edge_difference
from idgbr.refiner.refiner import Refiner

Build = Callable[..., Refiner]
Batch = Callable[..., dict[str, Tensor]]
Stir = Callable[[Refiner], Refiner]

ALL: dict[str, Any] = {
    **CLASSES,
    "input_condition": True,
    "pixel_channels": 4,
    "recycle": 1.0,
    "timestep_law": "grid",
    "grid_steps": 4,
    "last_share": 0.3,
    "amplitude": 0.3,
    "edge_loss": 0.1,
}
ARMS: list[dict[str, Any]] = [
    ALL,
    {**ALL, "first_input": "zero", "warm_start": 0.5, "train_images": 64, "recycle_hard": True},
    {**ALL, "kind": "cascade"},
    {**CLASSES, "kind": "cascade", "coarse_residual": True},
    {**CLASSES, "kind": "one_pass", "pixel_channels": 4, "input_condition": True, "loss_weighting": "boundary"},
    {**CLASSES, "use_image": False, "input_condition": True, "pixel_channels": 4},
    {**CLASSES, "use_coarse": False, "coarse_residual": True},
    {"target_loss": "auto", "recycle": 0.5},
    {"recycle": 1.0, "target_loss": "mse"},
]


def name(settings: dict[str, Any]) -> str:
    return "-".join(f"{k}={v}" for k, v in settings.items())[:60]


# ---- lossless for any number of classes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["one_pass", "cascade", "diffusion"])
@pytest.mark.parametrize("n_classes", [2, 3, 5, 9])
def test_with_class_channels_an_untrained_residual_network_returns_any_mixture_of_classes(
    build: Build, batch: Batch, kind: str, n_classes: int
) -> None:
    refiner, sample = build(n_classes=n_classes, kind=kind, coarse_residual=True, **CLASSES), batch(1, n_classes=n_classes)
    with torch.no_grad():
        refiner.denoiser.conv_out.weight.zero_()
        refiner.denoiser.conv_out.bias.zero_()
    refined = refiner.refine(sample["image"], sample["coarse"], steps=1, return_probabilities=True)
    assert torch.allclose(refined.probabilities, sample["coarse"], atol=1e-4)
    assert torch.equal(refined.index.long(), sample["coarse"].argmax(1))


def test_as_codes_mixtures_of_five_classes_are_lost(build: Build, batch: Batch) -> None:
    """What class channels are for: the expected code of a mixture is that of other mixtures too."""
    codec, coarse = build(n_classes=5).codec, batch(1, n_classes=5)["coarse"]
    assert (codec.decode(codec.encode(coarse)).argmax(1) != coarse.argmax(1)).float().mean() > 0.1


def test_the_condition_of_class_channels_holds_every_probability(build: Build, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    refiner, sample = build(n_classes=5, input_condition=True, **CLASSES), batch(2, n_classes=5)
    entry = refiner.condition(sample["image"], sample["coarse"]).entry
    assert entry is not None
    pixels = F.pixel_shuffle(entry, 4)
    assert torch.allclose((pixels[:, 3:] + 1) / 2, sample["coarse"], atol=1e-6)
    assert torch.allclose(pixels[:, :3] * 50 + 100, sample["image"], atol=1e-3)


def test_the_class_prior_is_bayes_rule_for_every_pixel(build: Build) -> None:
    """Against the posterior of classes given their code in Gaussian noise."""
    codec = build(n_classes=4, **CLASSES).codec
    g = torch.Generator().manual_seed(0)
    coarse, bar = torch.rand(1, 4, 8, 8, generator=g).softmax(1), torch.tensor(0.3)
    z = torch.randn(1, codec.latent_channels, 2, 2, generator=g)
    seen = F.pixel_shuffle(z, 4)
    square = (seen[:, None] - bar.sqrt() * codec.codes.view(1, 4, 2, 1, 1)).square().sum(2)
    posterior = (coarse.log() - square / (2 * (1 - bar))).softmax(1)
    assert torch.allclose(codec.class_prior(coarse, z, bar).softmax(1), posterior, atol=1e-5)


# ---- recycling ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["diffusion", "cascade"])
def test_a_guess_that_is_the_truth_gives_the_loss_of_the_truth(
    build: Build, batch: Batch, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Recycled z differ from those of the truth by the guess alone."""
    settings = {**CLASSES, "kind": kind, "recycle": 1.0, "timestep_law": "uniform"}
    training, samples = RefinerTraining(build(**settings)), batch(6)
    truth = training.network.codec.encode_index(samples["target"])
    draw = training.network.process.draw(samples["seed"].tolist(), samples["index"], truth)
    assert draw.recycled.any()
    real = training._guessed
    with torch.no_grad():
        loss, _ = training(samples)
        monkeypatch.setattr(training, "_guessed", lambda condition, draw, z0: z0)
        expected, _ = training(samples)
    assert not torch.equal(loss, expected)  # the guess of a new network is not the truth
    monkeypatch.setattr(training, "_guessed", real)
    monkeypatch.setattr(training.network, "estimate", lambda z, t, bar, condition, **k: type("E", (), {"x0": truth[draw.recycled]})())
    with torch.no_grad():
        again, _ = training(samples)
    assert torch.equal(again, expected)


def test_recycled_samples_see_their_own_first_guess_in_new_noise(build: Build, batch: Batch, stir: Stir) -> None:
    training, samples = RefinerTraining(stir(build(**{**ALL, "edge_loss": 0.0}))), batch(8)
    network = training.network
    seen: list[tuple[Tensor, Tensor]] = []
    predict = network.predict
    network.predict = lambda z, t, *a, **k: seen.append((z, t)) or predict(z, t, *a, **k)  # type: ignore[method-assign]
    with torch.no_grad():
        training(samples)
        truth = network.codec.encode_index(samples["target"])
        draw = network.process.draw(samples["seed"].tolist(), samples["index"], truth)
        condition = network.condition(samples["image"], samples["coarse"])
        first = network.estimate(draw.first, torch.full((8,), 99), torch.zeros(8, 1, 1, 1), condition)
    bar = Diffusion(network.config).abar_at(draw.t)
    expected = torch.where(draw.recycled.view(-1, 1, 1, 1), first.x0, truth) * bar.sqrt() + draw.noise * (1 - bar).sqrt()
    assert 0 < draw.recycled.sum() < 8
    assert torch.equal(draw.recycled, draw.t != 99)
    assert not torch.equal(draw.noise[draw.recycled], draw.first[draw.recycled])
    assert torch.equal(draw.noise[~draw.recycled], draw.first[~draw.recycled])
    z, t = seen[1]  # after the guesses
    assert torch.equal(t, draw.t)
    assert torch.allclose(z, expected, atol=1e-4)


def test_no_gradient_flows_through_the_guess(build: Build, batch: Batch) -> None:
    training, samples = RefinerTraining(build(**{**CLASSES, "recycle": 1.0})).train(), batch(3)
    depths: list[bool] = []
    estimate = training.network.estimate
    training.network.estimate = lambda *a, **k: depths.append(torch.is_grad_enabled()) or estimate(*a, **k)  # type: ignore[method-assign]
    training(samples)[0].sum().backward()
    assert depths == [False]


def test_hard_guesses_are_codes_of_classes(build: Build, batch: Batch, stir: Stir) -> None:
    refiner, sample = stir(build(n_classes=5, **CLASSES, recycle_hard=True)), batch(1, n_classes=5)
    with torch.no_grad():
        found = refiner.estimate(
            torch.randn(1, 48, 8, 8), torch.tensor([50]), torch.tensor(0.5), refiner.condition(sample["image"], sample["coarse"])
        )
    assert found.probabilities is not None
    assert torch.equal(found.x0, refiner.codec.encode_index(found.probabilities.argmax(1)))


def test_the_warm_start_trains_one_pass_and_nothing_else_then_recycling(build: Build, batch: Batch) -> None:
    """While it lasts the loss is that of one_pass with the same weights; a global batch is in it as a whole."""
    settings = {**CLASSES, "recycle": 1.0, "first_input": "zero", "warm_start": 0.5, "train_images": 64, "batch_images": 16}
    warm, plain = RefinerTraining(build(**settings)), RefinerTraining(build(**CLASSES, kind="one_pass"))
    samples = batch(4)
    with torch.no_grad():
        for first, same in ((0, True), (28, True), (32, False), (60, False)):
            samples["index"] = torch.arange(4) + first
            draw = warm.network.process.draw(samples["seed"].tolist(), samples["index"], torch.zeros(4, 16, 8, 8))
            assert draw.guesses != same
            assert bool((draw.t == 99).all()) == same
            assert torch.equal(warm(samples)[0], plain(samples)[0]) == same
    sizes = [warm.network.process.draw([1], torch.tensor([i]), torch.zeros(1, 16, 8, 8)).guesses for i in range(64)]
    assert sizes == [False] * 32 + [True] * 32


# ---- cascade ---------------------------------------------------------------------------------------------------------------------


def test_a_cascade_draws_nothing_and_its_first_step_is_one_pass(build: Build, batch: Batch, stir: Stir) -> None:
    cascade, plain, sample = stir(build(**CLASSES, kind="cascade")), stir(build(**CLASSES, kind="one_pass")), batch(2)
    condition = cascade.condition(sample["image"], sample["coarse"])
    several = [cascade.draw(condition, seeds, SamplerConfig(steps=4, samples=3)) for seeds in ([1, 2], [8, 9])]
    assert torch.equal(*several)
    assert len(several[0]) == 1
    first = cascade.draw(condition, [0, 0], SamplerConfig(steps=1))
    assert torch.equal(first, plain.draw(plain.condition(sample["image"], sample["coarse"]), [0, 0], SamplerConfig()))
    assert not torch.equal(first, several[0])


def test_the_second_step_of_a_cascade_is_what_its_training_sees(build: Build, batch: Batch, stir: Stir) -> None:
    training, samples = RefinerTraining(stir(build(**CLASSES, kind="cascade", timestep_law="grid", grid_steps=2))), batch(8)
    network = training.network
    z0 = network.codec.encode_index(samples["target"])
    draw = network.process.draw(samples["seed"].tolist(), samples["index"], z0)
    assert set(draw.t.tolist()) == {49, 99}
    with torch.no_grad():
        loss, _ = training(samples)
        condition = network.condition(samples["image"], samples["coarse"])
        ends = {steps: network.draw(condition, [0] * 8, SamplerConfig(steps=steps))[0] for steps in (1, 2)}
    for i in range(8):
        p = ends[2 if draw.recycled[i] else 1][i]
        assert loss[i].item() == pytest.approx(F.nll_loss(p.log()[None], samples["target"][i].long()[None]).item(), rel=1e-3)


@pytest.mark.parametrize("settings", [{**CLASSES, "kind": "cascade"}, CLASSES, {"parameterisation": "v"}], ids=name)
def test_the_mean_over_the_last_steps(build: Build, batch: Batch, stir: Stir, settings: dict[str, Any]) -> None:
    refiner, sample = stir(build(**settings)), batch(1)
    steps: list[Any] = []
    estimate = refiner.estimate
    refiner.estimate = lambda *a, **k: steps.append(estimate(*a, **k)) or steps[-1]  # type: ignore[method-assign]
    condition = refiner.condition(sample["image"], sample["coarse"])
    found = refiner.draw(condition, [1], SamplerConfig(steps=4, average_steps=3))[0]
    p = [refiner.codec.decode(e.x0) if e.probabilities is None else e.probabilities for e in steps]
    assert torch.allclose(found, torch.stack(p[1:]).mean(0), atol=1e-5)
    last = refiner.draw(condition, [1], SamplerConfig(steps=4))[0]
    assert torch.allclose(last, p[3], atol=1e-5)


# ---- the whole ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", ARMS, ids=name)
def test_every_parameter_learns(build: Build, batch: Batch, settings: dict[str, Any]) -> None:
    training = RefinerTraining(build(n_classes=3, **settings)).train()
    before = {n: p.detach().clone() for n, p in training.named_parameters()}
    optimizer = torch.optim.AdamW(training.parameters(), lr=1e-3, weight_decay=0)
    for step in range(4):
        samples = batch(4, n_classes=3, seed=step)
        loss, _ = training({**samples, "index": samples["index"] + 16 * step})
        assert torch.isfinite(loss).all()
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    now = dict(training.named_parameters())
    free = {n for n in before if n.endswith("to_k.bias")}
    if settings.get("kind") == "one_pass" and not settings.get("input_condition"):
        free.add("network.denoiser.conv_in.weight")
    assert {n for n, p in before.items() if torch.equal(p, now[n])} - free == set()


@pytest.mark.parametrize("settings", ARMS, ids=name)
def test_a_tile_and_a_sample_are_the_same_in_any_batch(build: Build, batch: Batch, stir: Stir, settings: dict[str, Any]) -> None:
    refiner, sample = stir(build(n_classes=3, **settings)), batch(4, n_classes=3)
    config = SamplerConfig(steps=3, samples=2, sampler="renoise", average_steps=2)
    image, coarse, seeds, order = sample["image"], sample["coarse"], [3, 1, 4, 1], [2, 0, 3, 1]
    together = refiner.sample(refiner.condition(image, coarse), seeds, config)
    shuffled = refiner.sample(refiner.condition(image[order], coarse[order]), [seeds[i] for i in order], config)
    assert torch.equal(shuffled, together[order])
    alone = refiner.sample(refiner.condition(image[2:3], coarse[2:3]), [4], config)
    assert torch.equal(alone[0], together[2])
    training = RefinerTraining(refiner)
    with torch.no_grad():
        losses = training(sample)[0]
        apart = torch.cat([training({k: v[i : i + 1] for k, v in sample.items()})[0] for i in range(4)])
    assert torch.allclose(losses, apart, rtol=1e-3)


@pytest.mark.parametrize("settings", ARMS, ids=name)
def test_saved_and_loaded_it_refines_to_the_same_bits(
    build: Build, batch: Batch, stir: Stir, tmp_path: Path, settings: dict[str, Any]
) -> None:
    refiner, sample = stir(build(n_classes=3, **settings)), batch(1, n_classes=3)
    refiner.save(tmp_path)
    loaded = Refiner.load(tmp_path)
    assert loaded.config == refiner.config
    cut = sample["image"][..., :27, :30], sample["coarse"][..., :27, :30]
    a, b = (r.refine(*cut, sampler="renoise", steps=2, return_probabilities=True).probabilities for r in (refiner, loaded))
    assert torch.equal(a, b)
    assert a.shape == (1, 3, 27, 30)


def test_the_edge_loss_is_zero_for_the_truth_and_counts_known_pixels() -> None:
    labels = torch.zeros(2, 16, 16, dtype=torch.long)
    labels[:, :, 8:] = 1
    truth = F.one_hot(labels, 2).movedim(-1, 1).float()
    assert torch.equal(edge_difference(truth, labels), torch.zeros(2))
    moved = truth.roll(1, -1)
    moved[..., 0] = truth[..., 0]
    one = edge_difference(moved, labels)
    assert (one > 0).all()
    ignored = labels.clone()
    ignored[0, :, 5:12] = 255
    assert edge_difference(moved, ignored)[0] == 0
    assert edge_difference(moved, ignored)[1] == one[1]
    # a column of ones gives 0.5 on either side of it in the horizontal gradient and nothing in the vertical one
    assert one[1].item() == pytest.approx(0.5 / 14, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"class_channels": True, "target_loss": "mse"}, "must learn by cross-entropy"),
        ({"class_channels": True, "parameterisation": "v", "target_loss": "auto"}, "must learn by cross-entropy"),
        ({"pixel_channels": 8}, "adds to class logits"),
        ({**CLASSES, "input_condition": True, "condition_dropout": 0.1}, "sees the condition elsewhere"),
        ({"recycle": 0.5, "parameterisation": "v"}, "no noise leads back"),
        ({"warm_start": 0.5}, "sampling must start from zeros"),
        ({"first_input": "zero", "parameterisation": "v"}, "only x0"),
        ({"edge_loss": 1.0, "target_loss": "mse"}, "which a latent output has not"),
    ],
)
def test_combinations_without_sense_are_refused_with_a_reason(build: Build, settings: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        RefinerTraining(build(**settings))


@pytest.mark.parametrize("kind", ["diffusion", "cascade"])
def test_an_interrupted_training_goes_on_to_the_same_bits(scenes, tmp_path: Path, kind: str) -> None:
    from idgbr.errors import IdgbrError
    from idgbr.refiner.loss import fit

    dataset, coarse = scenes
    settings = {**TINY, **ALL, "kind": kind, "warm_start": 0.5, "first_input": "zero", "batch_images": 8, "train_images": 160}
    config = RefinerConfig(**{**settings, "warmup_images": 16, "ema_images": 40.0})
    fit(config, dataset, coarse, seed=0, out=tmp_path / "whole")
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == 13  # in the second half, where guesses are recycled

    with pytest.raises(IdgbrError):
        fit(config, dataset, coarse, seed=0, out=tmp_path / "part", scratch=tmp_path / "scratch", stop=stop)
    fit(config, dataset, coarse, seed=0, out=tmp_path / "part", scratch=tmp_path / "scratch")
    a, b = (Refiner.load(tmp_path / name).state_dict() for name in ("whole", "part"))
    assert all(torch.equal(a[n], b[n]) for n in a)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "part" / "curve.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all()
