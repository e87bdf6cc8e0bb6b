"""Diffusion: against the papers' formulas, and properties of the samplers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from idgbr.config import RefinerConfig, SamplerConfig
from idgbr.errors import BadRequest
from idgbr.refiner.diffusion import Diffusion, Sampler, TimestepLaw, betas, noise_like

SCHEDULES = ("linear", "scaled_linear", "cosine", "sigmoid")


def diffusion(**settings: object) -> Diffusion:
    return Diffusion(RefinerConfig(**settings))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_hide_more_and_more_and_all_of_it_at_zero_terminal_snr(schedule: str) -> None:
    for steps, zero in itertools.product((10, 100, 1000), (False, True)):
        bar = np.cumprod(1 - betas(schedule, steps, zero))
        assert (np.diff(bar) < 0).all()
        assert bar[0] > 0.8 if steps > 10 else bar[0] > 0.5
        assert (bar[-1] == 0) if zero else (0 < bar[-1] < 0.02)


def test_schedules_are_those_of_diffusers_and_the_papers() -> None:
    from diffusers import DDIMScheduler

    for name in ("linear", "scaled_linear"):
        ends = {"linear": (1e-4, 0.02), "scaled_linear": (8.5e-4, 0.012)}[name]
        theirs = DDIMScheduler(beta_schedule=name, beta_start=ends[0], beta_end=ends[1])
        assert np.allclose(betas(name, 1000, False), theirs.betas.numpy(), rtol=1e-5)
        theirs = DDIMScheduler(beta_schedule=name, beta_start=ends[0], beta_end=ends[1], rescale_betas_zero_snr=True)
        assert np.allclose(np.cumprod(1 - betas(name, 1000, True)), theirs.alphas_cumprod.numpy(), atol=1e-5)
    theirs = DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    assert np.allclose(betas("cosine", 1000, False), theirs.betas.numpy(), rtol=1e-4)


def test_parameterisations_agree_on_x0() -> None:
    z0, noise, t = torch.randn(5, 4, 3, 3), torch.randn(5, 4, 3, 3), torch.tensor([0, 9, 50, 90, 98])
    for kind in ("x0", "v", "epsilon"):
        d = diffusion(parameterisation=kind, zero_terminal_snr=False, train_timesteps=100)
        z = d.noised(z0, noise, t)
        assert torch.allclose(d.x0(d.target(z0, noise, t), z, d.abar_at(t)), z0, atol=2e-3)


def test_timestep_laws_have_the_moments_of_the_method() -> None:
    g = torch.Generator().manual_seed(0)
    laws = {law: TimestepLaw(RefinerConfig(timestep_law=law)) for law in ("cubic", "uniform", "logit_normal")}
    cubic = np.array([laws["cubic"](g) for _ in range(20_000)])
    assert cubic.mean() == pytest.approx(750.0, abs=5)  # docs/method.md: mean of the cubic law
    assert (cubic >= 500).mean() == pytest.approx(0.794, abs=0.01)
    assert (cubic >= 900).mean() == pytest.approx(0.465, abs=0.012)
    assert (cubic == 999).mean() == pytest.approx(0.101, abs=0.008)
    assert (cubic < 100).mean() == pytest.approx(0.034, abs=0.005)
    uniform = np.array([laws["uniform"](g) for _ in range(20_000)])
    assert uniform.mean() == pytest.approx(499.5, abs=8)
    normal = np.array([laws["logit_normal"](g) for _ in range(20_000)])
    assert np.median(normal) == pytest.approx(500, abs=12)
    assert (normal < 1000 / (1 + math.e)).mean() == pytest.approx(0.1587, abs=0.01)  # one standard deviation below


def test_min_snr_weights_are_the_papers_up_to_their_mean() -> None:
    for kind, power in (
        ("x0", lambda s: np.minimum(s, 5)),
        ("epsilon", lambda s: np.minimum(s, 5) / s),
        ("v", lambda s: np.minimum(s, 5) / (s + 1)),
    ):
        d = diffusion(loss_weighting="min_snr", parameterisation=kind, zero_terminal_snr=False)
        bar = np.cumprod(1 - d.betas)
        expected = np.maximum(power(bar / (1 - bar)), 0.05)
        assert np.allclose(d.loss_weight(torch.arange(1000)).numpy(), expected / expected.mean(), rtol=1e-2)


def test_epsilon_with_zero_terminal_snr_is_one_clear_error() -> None:
    with pytest.raises(BadRequest, match="zero terminal SNR"):
        diffusion(parameterisation="epsilon", zero_terminal_snr=True)


def walk(sampler: Sampler, noise: Tensor, coarse: Tensor, x0: Tensor) -> Tensor:
    z = sampler.start(noise, coarse)
    for step in range(len(sampler.timesteps)):
        z = sampler.next(z, x0, step)
    return z


@pytest.mark.parametrize("kind", ["ddim", "dpm++", "euler", "one_step"])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("zero", [True, False])
def test_a_sampler_told_the_truth_ends_at_the_truth(kind: str, spacing: str, zero: bool) -> None:
    noise, coarse, truth = torch.randn(3, 2, 8, 4, 4)
    made = {schedule: diffusion(schedule=schedule, zero_terminal_snr=zero) for schedule in SCHEDULES}
    for schedule, steps, strength in itertools.product(SCHEDULES, (1, 2, 7, 25), (1.0, 0.4)):
        d = made[schedule]
        sampler = Sampler(d, SamplerConfig(sampler=kind, steps=steps, spacing=spacing, strength=strength))
        assert len(sampler.timesteps) == (1 if kind == "one_step" else steps)
        assert torch.allclose(walk(sampler, noise, coarse, truth), truth, atol=1e-2)


@pytest.mark.parametrize("kind", ["ddim", "dpm++", "euler"])
def test_strength_mixes_the_coarse_latents_in(kind: str) -> None:
    noise, coarse = torch.randn(2, 1, 8, 16, 16)
    d = diffusion()
    previous = -1.0
    for strength in (1.0, 0.75, 0.5, 0.25, 0.05):
        sampler = Sampler(d, SamplerConfig(sampler=kind, steps=4, strength=strength))
        seen = sampler.network_input(sampler.start(noise, coarse), 0)
        share = torch.corrcoef(torch.stack([seen.flatten(), coarse.flatten()]))[0, 1].item()
        assert share > previous
        previous = share
        bar = sampler.bar(0)
        if strength < 1:
            assert torch.allclose(seen, bar.sqrt() * coarse + (1 - bar).sqrt() * noise, atol=1e-5)
    assert previous > 0.98


def test_ddim_steps_are_those_of_diffusers_where_it_keeps_to_its_timesteps() -> None:
    from diffusers import DDIMScheduler

    d = diffusion(zero_terminal_snr=False)
    theirs = DDIMScheduler(trained_betas=d.betas, prediction_type="sample", timestep_spacing="trailing", clip_sample=False)
    theirs.set_timesteps(5)
    ours = Sampler(d, SamplerConfig(sampler="ddim", steps=5))
    assert torch.equal(ours.timesteps, theirs.timesteps)
    z = torch.randn(1, 8, 4, 4)
    for step, t in enumerate(theirs.timesteps):
        x0 = torch.tanh(3 * z)
        expected = theirs.step(x0, int(t), z).prev_sample
        z = ours.next(z, x0, step)
        assert torch.allclose(z, expected, atol=1e-5)


def test_trailing_spacing_starts_where_all_is_noise() -> None:
    d = diffusion()
    for kind, steps in itertools.product(("ddim", "dpm++"), (1, 2, 4, 25)):
        assert Sampler(d, SamplerConfig(sampler=kind, steps=steps)).timesteps[0] == 999


def test_more_steps_than_timesteps_are_refused() -> None:
    with pytest.raises(BadRequest, match="at most 50"):
        Sampler(diffusion(train_timesteps=100), SamplerConfig(steps=51, strength=0.5))


def test_noise_of_a_tile_depends_on_its_seed_alone() -> None:
    together = noise_like([5, 6, 7], (4, 8, 8), draws=2)
    assert torch.equal(noise_like([7], (4, 8, 8), draws=2)[:, 0], together[:, 2])
    assert torch.equal(noise_like([6, 5], (4, 8, 8), draws=1)[0, 1], together[0, 0])
    assert not torch.equal(together[0], together[1])
