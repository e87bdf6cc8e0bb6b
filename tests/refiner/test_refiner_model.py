"""The refiner as a user meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_refiner import plain_guidance
from torch import Tensor

from idgbr.config import SamplerConfig
from idgbr.errors import BadRequest, Disagreement, Missing
from idgbr.rasters.edges import changeable
from idgbr.refiner.guidance import Condition
from idgbr.refiner.refiner import Refined, Refiner

Build = Callable[..., Refiner]
Batch = Callable[..., dict[str, Tensor]]
Stir = Callable[[Refiner], Refiner]


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("attention", [True, False])
def test_the_cached_sampler_equals_the_plain_one(build: Build, batch: Batch, stir: Stir, attention: bool, scale: float) -> None:
    refiner, sample = stir(build(guidance_attention=attention, condition_dropout=0.1)), batch(2)
    condition = refiner.condition(sample["image"], sample["coarse"])
    z, t = torch.randn_like(condition.latent), torch.tensor([80, 80])
    with torch.no_grad():
        cached, _ = refiner.predict(z, t, condition, guidance_scale=scale)
        conditions = refiner.condition_encoder([refiner.image_input(sample["image"]), refiner.codec.encode(sample["coarse"])])

        def run(led: bool) -> Tensor:  # the whole network once, nothing shared
            features = refiner.denoiser.encode(z, t)
            blocks = zip(refiner.guidance.blocks, (*features.skips, features.middle), conditions, strict=True)
            return refiner.denoiser.decode(features.with_guidance([plain_guidance(*b) * led for b in blocks]))

        plain = run(False) + scale * (run(True) - run(False))
    assert (cached - plain).abs().max() < 1e-5 * max(1, plain.abs().max())


@pytest.mark.parametrize("kind", ["diffusion", "one_pass"])
def test_a_tile_is_the_same_in_any_batch_and_order(build: Build, batch: Batch, stir: Stir, kind: str) -> None:
    refiner, sample = stir(build(kind=kind)), batch(5)
    image, coarse, seeds = sample["image"], sample["coarse"], [3, 1, 4, 1, 5]
    config = SamplerConfig(steps=3, samples=2)
    together = refiner.sample(refiner.condition(image, coarse), seeds, config)
    order = [4, 2, 0, 1, 3]
    shuffled = refiner.sample(refiner.condition(image[order], coarse[order]), [seeds[i] for i in order], config)
    assert torch.equal(shuffled, together[order])
    for i in range(5):
        assert torch.equal(refiner.sample(refiner.condition(image[i : i + 1], coarse[i : i + 1]), [seeds[i]], config)[0], together[i])


def test_step_counts_share_one_condition(build: Build, batch: Batch, stir: Stir, monkeypatch: pytest.MonkeyPatch) -> None:
    refiner, sample = stir(build()), batch(2)
    condition = refiner.condition(sample["image"], sample["coarse"])
    monkeypatch.setattr(refiner.condition_encoder, "forward", lambda *_: pytest.fail("the condition encoder ran again"))
    shares = [refiner.sample(condition, [0, 1], SamplerConfig(steps=n, sampler=s)) for n in (1, 2, 4) for s in ("ddim", "dpm++", "euler")]
    assert all(torch.isfinite(p).all() and torch.allclose(p.sum(1), torch.ones(()), atol=1e-5) for p in shares)


def test_saved_and_loaded_it_refines_to_the_same_bits(build: Build, batch: Batch, stir: Stir, tmp_path: Path) -> None:
    refiner, sample = stir(build(n_classes=5, n_bands=4)), batch(1, n_classes=5, n_bands=4)
    refiner.save(tmp_path / "refiner")
    loaded = Refiner.load(tmp_path / "refiner")
    assert loaded.table == refiner.table
    assert not loaded.training
    a, b = (r.refine(sample["image"], sample["coarse"], return_probabilities=True).probabilities for r in (refiner, loaded))
    assert torch.equal(a, b)
    assert sorted(p.name for p in (tmp_path / "refiner").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("size", [(32, 32), (33, 50), (5, 3), (1, 1)])
def test_any_size_and_kind_of_input_comes_back_as_it_came(build: Build, stir: Stir, size: tuple[int, int]) -> None:
    refiner = stir(build(n_classes=3))
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (3, *size)).astype(np.uint8)
    index = rng.integers(0, 3, size).astype(np.uint8)
    one = refiner.refine(image, index, steps=2)
    assert isinstance(one, np.ndarray)
    assert one.dtype == np.uint8
    assert one.shape == size
    probabilities = np.eye(3, dtype=np.float32)[index].transpose(2, 0, 1)
    assert np.array_equal(refiner.refine(image, probabilities, steps=2), one)
    batch = refiner.refine(torch.from_numpy(image)[None].expand(2, -1, -1, -1), torch.from_numpy(index)[None].expand(2, -1, -1), steps=2)
    assert isinstance(batch, Tensor)
    assert np.array_equal(batch[1].numpy(), one)


def test_uncertainty_counts_the_votes(build: Build, batch: Batch, stir: Stir) -> None:
    refiner, sample = stir(build()), batch(2)
    refined = refiner.refine(sample["image"], sample["coarse"], samples=5, steps=1, return_probabilities=True)
    assert isinstance(refined, Refined)
    draws = refiner.draw(refiner.condition(sample["image"], sample["coarse"]), [0, 0], SamplerConfig(samples=5, steps=1))
    votes = (draws.argmax(2) == 1).float().mean(0)
    assert torch.allclose(refined.agreement, torch.maximum(votes, 1 - votes))
    p = draws.mean(0)
    assert torch.allclose(refined.entropy, -(p * p.log2()).sum(1), atol=1e-5)


@pytest.mark.parametrize("setting", ["strength", "trust"])
def test_strength_or_trust_zero_returns_the_input(build: Build, batch: Batch, stir: Stir, setting: str) -> None:
    refiner, sample = stir(build()), batch(2)
    refined = refiner.refine(sample["image"], sample["coarse"], return_probabilities=True, **{setting: 0})
    assert torch.allclose(refined.probabilities, sample["coarse"], atol=1e-7)
    assert torch.equal(refined.index, sample["coarse"].argmax(1).to(torch.uint8))
    index = sample["target"]
    assert torch.equal(refiner.refine(sample["image"], index, **{setting: 0}), index)


def test_pixels_out_of_reach_or_sure_keep_the_coarse_class(build: Build, batch: Batch, stir: Stir) -> None:
    refiner, sample = stir(build()), batch(1, side=48)
    index = torch.zeros(1, 48, 48, dtype=torch.uint8)
    index[..., 20:] = 1
    refined = refiner.refine(sample["image"], index, reach_px=6)
    changed = (refined != index).nonzero()[:, 2]
    assert len(changed)  # the network is random: it does change things
    assert changed.min() >= 19 - 6
    assert changed.max() <= 20 + 6
    empty = torch.zeros_like(index)
    assert torch.equal(refiner.refine(sample["image"], empty, reach_px=6), empty)  # no boundary: nothing in reach, and no error
    sure = torch.nn.functional.one_hot(index.long(), 2).movedim(-1, 1) * 0.9 + 0.05
    assert torch.equal(refiner.refine(sample["image"], sure, keep_confidence=0.9), index)
    with pytest.raises(BadRequest, match="says nothing about confidence"):
        refiner.refine(sample["image"], index, keep_confidence=0.9)


def test_reach_is_the_distance_to_the_nearest_boundary_pixel() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.random((2, 40, 40))
    coarse[:, :25] = [[[0.9]], [[0.1]]]
    index = coarse.argmax(0)
    edge = [
        (r, c)
        for r in range(40)
        for c in range(40)
        if any(0 <= r + a < 40 and 0 <= c + b < 40 and index[r, c] != index[r + a, c + b] for a, b in ((0, 1), (1, 0), (0, -1), (-1, 0)))
    ]
    rows, columns = np.mgrid[:40, :40]
    far = np.min([np.hypot(rows - r, columns - c) for r, c in edge], axis=0) > 4
    assert np.array_equal(changeable(index.astype(np.uint8), None, 4, 0), ~far)
    assert np.array_equal(changeable(index.astype(np.uint8), coarse.max(0), 4, 0.8), ~far & (coarse.max(0) <= 0.8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((4, 32, 32))}, r"bands .*\[3,H,W\]"),
        ({"image": np.full((3, 32, 32), np.nan)}, "3072 of 3072 are NaN"),
        ({"coarse": np.zeros((32, 31), np.uint8)}, "differ in size"),
        ({"coarse": np.full((32, 32), 2)}, "0 class0; 1 class1"),
        ({"coarse": np.full((32, 32), 255, np.uint8)}, "a class that the table lacks"),
        ({"coarse": np.zeros((3, 32, 32), np.float32)}, "one layer a class"),
        ({"coarse": np.zeros((2, 32, 32), np.float32)}, "sum to 1"),
        ({"coarse": np.full((2, 32, 32), np.inf, np.float32)}, "not finite"),
        ({"coarse": np.zeros((2, 32, 32), np.uint8)}, "one map an image"),
        ({"image": np.zeros((3, 32, 32), object)}, "must hold numbers"),
    ],
)
def test_bad_input_is_one_clear_error(build: Build, change: dict[str, np.ndarray], message: str) -> None:
    given = {"image": np.zeros((3, 32, 32), np.uint8), "coarse": np.zeros((32, 32), np.uint8)} | change
    with pytest.raises(Disagreement, match=message):
        build().refine(given["image"], given["coarse"])


def test_bad_settings_are_one_clear_error(build: Build) -> None:
    refiner, image, coarse = build(), np.zeros((3, 32, 32), np.uint8), np.zeros((32, 32), np.uint8)
    with pytest.raises(BadRequest, match="did you mean 'steps'"):
        refiner.refine(image, coarse, step=3)
    with pytest.raises(BadRequest, match="dpm"):
        refiner.refine(image, coarse, sampler="dpm")
    with pytest.raises(BadRequest, match="condition dropout"):
        refiner.refine(image, coarse, guidance_scale=3.0)
    with pytest.raises(BadRequest, match="one seed a tile"):
        refiner.refine(image, coarse, seeds=[1, 2])
    for setting in ("tile_px", "overlap_px", "batch_tiles", "split"):
        with pytest.raises(BadRequest, match=f"{setting}=.*Allowed: sampler, steps"):
            refiner.refine(image, coarse, **{setting: "val" if setting == "split" else 8})
    for wrong in (
        {"use_image": False, "use_coarse": False},
        {"kind": "none"},
        {"channels": (16,), "condition_channels": (16,)},
        {"condition_channels": (16, 32, 48)},
        {"codec": "vae"},
    ):
        with pytest.raises(BadRequest):
            build(**wrong)


@pytest.mark.parametrize("training", [True, False])
def test_an_error_leaves_the_mode_as_it_was(build: Build, training: bool) -> None:
    refiner = build().train(training)
    with pytest.raises(BadRequest, match="condition dropout"):
        refiner.refine(np.zeros((3, 32, 32), np.uint8), np.zeros((32, 32), np.uint8), guidance_scale=3.0)
    assert refiner.training == training
    assert refiner.guidance.training == training


def test_pixels_without_data_keep_the_coarse_class_and_are_not_read(build: Build, batch: Batch, stir: Stir) -> None:
    refiner, sample = stir(build()), batch(2)
    image, coarse, valid = sample["image"], sample["coarse"], torch.ones(2, 32, 32, dtype=torch.bool)
    valid[0, :, 20:] = False
    refined = refiner.refine(image, coarse, valid=valid, steps=2, return_probabilities=True)
    assert torch.allclose(refined.probabilities[0, :, :, 20:], coarse[0, :, :, 20:], atol=1e-7)
    changed = image.clone()
    changed[0, :, :, 20:] = torch.nan
    again = refiner.refine(changed, coarse, valid=valid, steps=2, return_probabilities=True)
    assert torch.equal(again.probabilities, refined.probabilities)
    plain = refiner.refine(image, coarse, steps=2, return_probabilities=True)
    assert torch.equal(plain.probabilities[1], refined.probabilities[1])
    assert not torch.equal(plain.probabilities[0, :, :, :20], refined.probabilities[0, :, :, :20])
    one = refiner.refine(image[0].numpy(), coarse[0].numpy(), valid=valid[0].numpy(), steps=2)
    assert np.array_equal(one, refined.index[0].numpy())
    for wrong in (valid[:1], valid.float(), valid[..., 1:]):
        with pytest.raises(Disagreement, match="valid mask must be boolean"):
            refiner.refine(image, coarse, valid=wrong)


def test_a_folder_that_is_no_refiner_is_one_clear_error(build: Build, tmp_path: Path) -> None:
    with pytest.raises(Missing, match="no refiner config"):
        Refiner.load(tmp_path)
    refiner = build()
    refiner.save(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(Missing, match="no refiner weights"):
        Refiner.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights)
    record = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**record, "version": 99}))
    with pytest.raises(Disagreement, match="another version"):
        Refiner.load(tmp_path)
    wider = record | {"refiner": record["refiner"] | {"guidance_width": 32}}
    (tmp_path / "config.json").write_text(json.dumps(wider))
    with pytest.raises(Disagreement, match="do not fit"):
        Refiner.load(tmp_path)


@pytest.mark.parametrize(("image", "coarse"), [(True, False), (False, True)])
def test_what_is_not_a_condition_has_no_influence(build: Build, batch: Batch, stir: Stir, image: bool, coarse: bool) -> None:
    refiner, one, other = stir(build(use_image=image, use_coarse=coarse)), batch(1), batch(1, seed=1)
    same = refiner.refine(one["image"], one["coarse"], return_probabilities=True).probabilities
    changed = refiner.refine(
        one["image"] if image else other["image"], one["coarse"] if coarse else other["coarse"], return_probabilities=True
    )
    assert torch.equal(changed.probabilities, same)
    changed = refiner.refine(
        other["image"] if image else one["image"], other["coarse"] if coarse else one["coarse"], return_probabilities=True
    )
    assert not torch.equal(changed.probabilities, same)


@pytest.mark.parametrize("settings", [{"kind": "one_pass"}, {"target_loss": "auto"}, {"target_loss": "mse"}, {"parameterisation": "v"}])
def test_without_evidence_of_its_own_the_network_returns_the_coarse_map(build: Build, batch: Batch, settings: dict[str, object]) -> None:
    refiner, sample = build(coarse_residual=True, **settings), batch(1)
    with torch.no_grad():
        refiner.denoiser.conv_out.weight.zero_()
        refiner.denoiser.conv_out.bias.zero_()
    refined = refiner.refine(sample["image"], sample["coarse"], steps=1, return_probabilities=True)
    assert torch.allclose(refined.probabilities, sample["coarse"], atol=1e-4)


def test_the_prior_is_bayes_rule_for_every_pixel(build: Build) -> None:
    refiner = build(coarse_residual=True, target_loss="auto")
    codec, p = refiner.codec, torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    z = torch.randn(1, 16, 2, 2, generator=torch.Generator().manual_seed(1))
    bar = torch.tensor(0.4)
    coarse = torch.cat([1 - p, p], 1)
    prior = refiner.prior(Condition(coarse, codec.encode(coarse), ()), z, bar)
    seen = torch.nn.functional.pixel_shuffle(z, 4)
    density = [torch.exp(-((seen - c * bar.sqrt()) ** 2) / (2 * (1 - bar))) for c in (-1, 1)]
    posterior = p * density[1] / (p * density[1] + (1 - p) * density[0])
    assert torch.allclose(codec.logits(prior).softmax(1)[:, 1:], posterior, atol=1e-5)
