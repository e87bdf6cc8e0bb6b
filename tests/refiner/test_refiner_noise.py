"""Noise of the second design: amplitude, the law of timesteps, renewed noise, a first step from zeros."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from small_refiner import CLASSES
from torch import Tensor

from idgbr.config import RefinerConfig, SamplerConfig
from idgbr.errors import BadRequest
from idgbr.rasters.tiling import Ground
from idgbr.refiner.diffusion import Diffusion, TileNoise, TimestepLaw, betas, ground_noise, noise_like, scaled, trailing
from idgbr.refiner.refiner import Refiner

Build = Callable[..., Refiner]
Batch = Callable[..., dict[str, Tensor]]
Stir = Callable[[Refiner], Refiner]


def test_amplitude_is_that_of_the_code_in_a_z_of_unit_variance() -> None:
    for schedule, s in (("cosine", 0.1), ("linear", 0.3), ("sigmoid", 2.0)):
        plain = np.cumprod(1 - betas(schedule, 1000, True))
        bar = np.cumprod(1 - scaled(betas(schedule, 1000, True), s))
        spread = np.sqrt(plain * s**2 + 1 - plain)
        assert np.allclose(np.sqrt(bar), np.sqrt(plain) * s / spread, atol=1e-6)
        assert np.allclose(np.sqrt(1 - bar), np.sqrt(1 - plain) / spread, atol=1e-6)
        assert bar[-1] == 0
    assert torch.equal(Diffusion(RefinerConfig()).abar, Diffusion(RefinerConfig(amplitude=1.0)).abar)


def test_the_amplitude_scales_nothing_but_z(build: Build, batch: Batch) -> None:
    plain, small = build(**CLASSES), build(**CLASSES, amplitude=0.1)
    sample = batch(1)
    conditions = [r.condition(sample["image"], sample["coarse"]) for r in (plain, small)]
    assert torch.equal(conditions[0].latent, conditions[1].latent)
    assert all(torch.equal(a.share, b.share) for a, b in zip(*(c.prepared for c in conditions), strict=True))
    assert torch.equal(*(r.logits(torch.ones(1, 2, 4, 4)) for r in (plain, small)))


def test_the_grid_law_draws_the_timesteps_of_samplers_with_1_2_4_and_8_steps() -> None:
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(timestep_spacing="trailing")
    for steps in (1, 2, 3, 4, 7, 8, 25):
        theirs.set_timesteps(steps)
        assert torch.equal(trailing(1000, steps), theirs.timesteps)
    law = TimestepLaw(RefinerConfig(timestep_law="grid", last_share=0.5))
    g = torch.Generator().manual_seed(0)
    drawn = np.array([law(g) for _ in range(4000)])
    assert set(drawn) == set(trailing(1000, 8).tolist())
    assert set(trailing(1000, 4).tolist()) <= set(drawn)
    assert (drawn == 999).mean() == pytest.approx(0.5, abs=0.03)
    even = np.array([TimestepLaw(RefinerConfig(timestep_law="grid"))(g) for _ in range(4000)])
    assert (even == 999).mean() == pytest.approx(1 / 8, abs=0.02)


def test_renewed_noise_with_one_step_is_ddim_with_one_step_and_differs_with_more(build: Build, batch: Batch, stir: Stir) -> None:
    refiner, sample = stir(build(**CLASSES)), batch(2)
    condition = refiner.condition(sample["image"], sample["coarse"])

    def run(sampler: str, steps: int, seed: int = 0) -> Tensor:
        return refiner.draw(condition, [seed, seed + 1], SamplerConfig(sampler=sampler, steps=steps, samples=2))

    assert torch.equal(run("renoise", 1), run("ddim", 1))
    assert not torch.equal(run("renoise", 2), run("ddim", 2))
    assert torch.equal(run("renoise", 3), run("renoise", 3))
    assert not torch.equal(run("renoise", 3)[0], run("renoise", 3)[1])
    assert not torch.equal(run("renoise", 3), run("renoise", 3, seed=5))


def test_renewed_noise_is_new_in_every_step_and_tells_nothing_of_the_old(build: Build, batch: Batch, stir: Stir) -> None:
    refiner, sample = stir(build(**CLASSES)), batch(1)
    seen: list[Tensor] = []
    guesses: list[Tensor] = []
    evaluate, diffusion = refiner.estimate, Diffusion(refiner.config)

    def record(z: Tensor, t: Tensor, bar: Tensor, condition: Any, **settings: Any) -> Any:
        found = evaluate(z, t, bar, condition, **settings)
        seen.append((z - bar.sqrt() * guesses[-1]) / (1 - bar).sqrt() if guesses else z)
        guesses.append(found.x0)
        return found

    refiner.estimate = record  # type: ignore[method-assign]
    refiner.draw(refiner.condition(sample["image"], sample["coarse"]), [3], SamplerConfig(sampler="renoise", steps=4))
    noise = torch.stack([n.flatten() for n in seen])
    assert len(noise) == 4
    assert torch.allclose(noise.std(1), torch.ones(4), atol=0.1)
    assert (torch.corrcoef(noise) - torch.eye(4)).abs().max() < 0.15
    assert diffusion.steps == 100


def test_a_first_step_from_zeros_is_refused_by_samplers_that_carry_noise_on(build: Build, batch: Batch) -> None:
    refiner, sample = build(**CLASSES, first_input="zero"), batch(1)
    for sampler in ("ddim", "dpm++", "euler"):
        with pytest.raises(BadRequest, match="no noise to carry on"):
            refiner.refine(sample["image"], sample["coarse"], sampler=sampler)
    one = refiner.refine(sample["image"], sample["coarse"], steps=1, samples=4, return_probabilities=True)
    again = refiner.refine(sample["image"], sample["coarse"], steps=1, seeds=9, return_probabilities=True)
    assert torch.equal(one.probabilities, again.probabilities)  # there is nothing random in it


# ---- noise of the ground, attention by level -----------------------------------------------------------------------------------


def test_tiles_that_overlap_share_the_noise_of_their_ground() -> None:
    shape, cell = (3, 40, 50), 4
    one = ground_noise(Ground(7, 0, 0), shape, cell, draw=1, step=2)
    other = ground_noise(Ground(7, 4 * 24, 4 * 17), shape, cell, draw=1, step=2)
    assert torch.equal(one[:, 24:, 17:], other[:, :16, :33])
    assert torch.equal(ground_noise(Ground(7, 4 * 24 + 3, 4 * 17 + 2), shape, cell, draw=1, step=2), other)
    whole = ground_noise(Ground(7, 0, 0), (3, 200, 200), cell)
    assert abs(float(whole.mean())) < 0.02
    assert float(whole.std()) == pytest.approx(1, abs=0.02)
    for different in (Ground(8, 0, 0), Ground(7, 400, 0), Ground(7, 0, 400)):
        pair = torch.stack([whole.flatten(), ground_noise(different, (3, 200, 200), cell).flatten()])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.02
    for draw, step in ((1, 0), (0, 1)):
        assert not torch.isclose(whole, ground_noise(Ground(7, 0, 0), (3, 200, 200), cell, draw, step)).any(0).any(0).all()


def test_shared_noise_is_a_setting_and_tiles_with_their_own_keep_it(build: Build, batch: Batch, stir: Stir) -> None:
    refiner, sample = stir(build(**CLASSES)), batch(2)
    condition = refiner.condition(sample["image"], sample["coarse"])
    own, shared = (SamplerConfig(sampler="renoise", steps=3, samples=2, shared_noise=s) for s in (False, True))
    drawn = refiner.draw(condition, [Ground(5, 0, 0), Ground(5, 64, 128)], shared)
    assert torch.equal(drawn[:, :1], refiner.draw(condition.rows()[0], [Ground(5, 0, 0)], shared))  # whatever the batch
    assert torch.equal(drawn[:, :1], refiner.draw(condition.rows()[0], [5], shared))
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn, refiner.draw(condition, [5, 6], own))
    shape = (refiner.codec.latent_channels, 8, 8)
    noise = TileNoise([5, 6], shape, 2)
    assert torch.equal(noise(1, 0), noise_like([5, 6], shape, 2)[1])


def test_attention_can_be_left_out_at_the_finest_levels(build: Build, batch: Batch) -> None:
    everywhere, coarser, nowhere = (build(**CLASSES, block_px=2, attention_from_px=px) for px in (0, 4, 64))
    levels = coarser.denoiser.skip_levels
    assert [b.attention for b in everywhere.guidance.blocks] == [True] * len(levels)
    assert [b.attention for b in coarser.guidance.blocks] == [level > 0 for level in levels]
    assert not any(b.attention for b in nowhere.guidance.blocks)
    sizes = [sum(p.numel() for p in r.guidance.parameters()) for r in (everywhere, coarser, nowhere)]
    assert sizes[0] > sizes[1] > sizes[2]
    sample = batch(1)
    assert coarser.refine(sample["image"][0], sample["coarse"][0], steps=2).shape == sample["image"].shape[2:]
