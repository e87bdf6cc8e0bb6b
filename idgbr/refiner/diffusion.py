"""Diffusion: noise schedule, parameterisation, timestep law, loss weighting, sampler; five independent choices.

Forward process: z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps (DDPM, arXiv 2006.11239, eq. 4). The network's output
is read as epsilon, v = sqrt(abar) eps - sqrt(1 - abar) z_0 (arXiv 2202.00512), or x0. diffusers' schedulers take the
steps; they always get x0.

Shape letters: B batch, D latent channels, h, w latent grid, T training timesteps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from idgbr.config import RefinerConfig, SamplerConfig
from idgbr.errors import BadRequest
from idgbr.rasters.tiling import Ground, Seed

GROUND_CELLS = 32  # side in latent positions of the blocks of ground that are drawn at once
MIN_SNR_GAMMA = 5.0  # arXiv 2303.09556
WEIGHT_FLOOR = 0.05  # of min-SNR weights: at zero terminal SNR the weight would be 0 exactly where trailing samplers start


def betas(schedule: str, steps: int, zero_terminal_snr: bool) -> np.ndarray:
    """Noise schedule as betas [T], float64, each in (0, 0.999], or 1 at the end with zero terminal SNR.

    linear: DDPM, 1e-4..0.02 for T = 1000. scaled_linear: Stable Diffusion, 8.5e-4..0.012 in square roots. cosine:
    arXiv 2102.09672 eq. 17. sigmoid: arXiv 2301.10972 algorithm 1 (start -3, end 3, tau 1).
    """
    shorter = 1000 / steps  # fewer steps, larger betas: the same noise at the end
    if schedule == "linear":
        values = np.linspace(1e-4 * shorter, 0.02 * shorter, steps)
    elif schedule == "scaled_linear":
        values = np.linspace(math.sqrt(8.5e-4 * shorter), math.sqrt(0.012 * shorter), steps) ** 2
    else:
        u = np.arange(steps + 1) / steps
        if schedule == "cosine":
            bar = np.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        else:
            s = 1 / (1 + np.exp(-(u * 6 - 3)))
            bar = (s[-1] - s) / (s[-1] - s[0])
        values = 1 - bar[1:] / bar[:-1]
    values = np.clip(values, 1e-8, 0.999)
    if not zero_terminal_snr:
        return values
    # arXiv 2305.08891 algorithm 1: shift sqrt(abar) to 0 at T, scale it back to its value at the first step
    root = np.sqrt(np.cumprod(1 - values))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    bar = root**2
    return 1 - np.concatenate([bar[:1], bar[1:] / bar[:-1]])


def scaled(values: np.ndarray, amplitude: float) -> np.ndarray:
    """Betas [T] of the process whose clean latents are `amplitude` times as large, and whose z are brought back to
    unit variance.

    z / sqrt(abar s^2 + 1 - abar) with z = sqrt(abar) s c + sqrt(1 - abar) eps (arXiv 2301.10972, section 2.3) is the
    variance-preserving process of c with abar' = abar s^2 / (abar s^2 + 1 - abar): the signal-to-noise ratio of every
    timestep times s^2.
    """
    bar = np.cumprod(1 - values)
    signal = bar * amplitude**2
    bar = signal / (signal + 1 - bar)
    return 1 - np.concatenate([bar[:1], bar[1:] / bar[:-1]])


def trailing(timesteps: int, steps: int) -> Tensor:
    """The `steps` timesteps of a sampler with trailing spacing, from T - 1 down (arXiv 2305.08891, table 2)."""
    return torch.from_numpy(np.round(np.arange(timesteps, 0, -timesteps / steps)).astype(np.int64))[:steps] - 1


class TimestepLaw:
    """Draws training timesteps in 0 .. T-1 by the config's law."""

    def __init__(self, config: RefinerConfig):
        self.law, self.steps, self.last_share = config.timestep_law, config.train_timesteps, config.last_share
        grid = trailing(self.steps, config.grid_steps) if self.law == "grid" else torch.zeros(0)
        # where T-1 has its own share, the law is for the rest
        self.grid = grid[1:] if self.last_share and len(grid) > 1 else grid

    def __call__(self, generator: torch.Generator) -> int:
        if self.last_share and torch.rand(1, generator=generator).item() < self.last_share:
            return self.steps - 1
        if self.law == "grid":
            return int(self.grid[int(torch.randint(len(self.grid), (1,), generator=generator))])
        if self.law == "logit_normal":  # arXiv 2403.03206, mean 0, scale 1
            u = torch.sigmoid(torch.randn(1, generator=generator)).item()
            return min(self.steps - 1, int(self.steps * u))
        u = torch.randint(self.steps, (1,), generator=generator).item()
        if self.law == "cubic":  # docs/method.md, "Training objective": t = min(T-1, floor(T (1 - (u/T)^3)))
            return min(self.steps - 1, int(self.steps * (1 - (u / self.steps) ** 3)))
        return int(u)


class Diffusion:
    """Forward process, conversions between parameterisations, and training weights, on the CPU in float32 tables.

    Raises:
        BadRequest: epsilon with zero terminal SNR (at the last timestep x0 cannot be recovered from epsilon).
    """

    def __init__(self, config: RefinerConfig):
        if config.parameterisation == "epsilon" and config.zero_terminal_snr:
            raise BadRequest(
                "epsilon cannot be learnt at zero terminal SNR: the last timestep holds no signal to recover x0 from",
                value="refiner.parameterisation=epsilon, refiner.zero_terminal_snr=true",
                allowed="x0 or v with zero terminal SNR",
                hint="refiner.zero_terminal_snr=false or refiner.parameterisation=v",
            )
        self.config = config
        self.steps = config.train_timesteps
        self.betas = betas(config.schedule, self.steps, config.zero_terminal_snr)
        if config.amplitude != 1:
            self.betas = scaled(self.betas, config.amplitude)
        self.abar = torch.tensor(np.cumprod(1 - self.betas).clip(0, 1), dtype=torch.float32)
        snr = self.abar / (1 - self.abar).clamp_min(1e-12)
        kept = snr.clamp_max(MIN_SNR_GAMMA)
        weight = {"x0": kept, "epsilon": kept / snr.clamp_min(1e-12), "v": kept / (snr + 1)}[config.parameterisation]
        self.min_snr = weight.clamp_min(WEIGHT_FLOOR) / weight.clamp_min(WEIGHT_FLOOR).mean()

    def abar_at(self, t: Tensor) -> Tensor:
        """Timesteps [B] -> abar [B,1,1,1] on t's device."""
        return self.abar.to(t.device)[t.long()].view(-1, 1, 1, 1)

    def noised(self, z0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """sqrt(abar_t) z0 + sqrt(1 - abar_t) noise: the forward process at steps t [B] (Ho et al. 2020, eq. 4)."""
        bar = self.abar_at(t)
        return bar.sqrt() * z0 + (1 - bar).sqrt() * noise

    def target(self, z0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should put out."""
        kind = self.config.parameterisation
        if kind == "x0":
            return z0
        bar = self.abar_at(t)
        return noise if kind == "epsilon" else bar.sqrt() * noise - (1 - bar).sqrt() * z0

    def x0(self, output: Tensor, z: Tensor, bar: Tensor) -> Tensor:
        """Network output at noise level abar (`bar`, broadcast) -> x0."""
        kind = self.config.parameterisation
        if kind == "x0":
            return output
        if kind == "epsilon":
            return (z - (1 - bar).sqrt() * output) / bar.sqrt()
        return bar.sqrt() * z - (1 - bar).sqrt() * output

    def loss_weight(self, t: Tensor) -> Tensor:
        """[B] weights by timestep; mean 1 over all timesteps."""
        if self.config.loss_weighting != "min_snr":
            return torch.ones_like(t, dtype=torch.float32)
        return self.min_snr.to(t.device)[t.long()]


class Sampler:
    """One walk from noise (or the noised coarse latents) to x0 through a diffusers scheduler.

    `strength` below 1 walks over the first `strength` share of the schedule in all `steps`: the start is
    z = sqrt(abar) coarse + sqrt(1 - abar) noise at that point, so the coarse map is really mixed in.

    Attributes:
        timesteps: [steps], from noisy to clean.

    Raises:
        BadRequest: more steps than timesteps.
    """

    def __init__(self, diffusion: Diffusion, config: SamplerConfig):
        self.diffusion = diffusion
        self.kind = config.sampler
        self.renews = self.kind == "renoise"
        length = max(1, round(diffusion.steps * config.strength))
        if config.steps > length:
            raise BadRequest(
                "more denoising steps than timesteps",
                value=f"sampler.steps={config.steps}",
                allowed=f"at most {length}",
                hint="fewer steps, a larger sampler.strength, or a longer refiner.train_timesteps",
            )
        self.whole = length == diffusion.steps
        self.length = length
        self.scheduler: Any = None
        if self.kind == "one_step":
            self.timesteps = torch.tensor([length - 1])
            return
        self.scheduler = _scheduler(self.kind, diffusion.betas[:length], config.spacing)
        self.scheduler.set_timesteps(config.steps)
        self.timesteps = self.scheduler.timesteps

    def start(self, noise: Tensor, coarse: Tensor) -> Tensor:
        """Latent at the first timestep; noise and coarse latent [B,D,h,w]."""
        if self.whole:
            z = noise
        else:
            bar = self._bar(self.timesteps[0])
            z = bar.sqrt() * coarse + (1 - bar).sqrt() * noise
        return z / self._scale(0)

    def network_input(self, z: Tensor, step: int) -> Tensor:
        """Variance-preserving latent that the network sees (Euler walks in another scale)."""
        return z * self._scale(step)

    def bar(self, step: int) -> Tensor:
        """abar at a step, scalar."""
        if self.kind == "euler":
            return 1 / (self.scheduler.sigmas[step] ** 2 + 1)
        return self._bar(self.timesteps[step])

    def next(self, z: Tensor, x0: Tensor, step: int, fresh: Tensor | None = None) -> Tensor:
        """Latent at the following timestep; `fresh`: new noise, for the sampler that renews it."""
        if self.scheduler is None:
            return x0
        if self.kind in ("ddim", "renoise"):
            # arXiv 2010.02502 eq. 12, eta 0. diffusers takes `t - T // steps` for the next timestep, which misses its
            # own list (and ends short of the clean latent) where `steps` does not divide T
            bar, last = self.bar(step), step + 1 == len(self.timesteps)
            after = torch.ones(()) if last else self.bar(step + 1)
            noise = fresh if self.renews and fresh is not None else (z - bar.sqrt() * x0) / (1 - bar).sqrt()
            return after.sqrt() * x0 + (1 - after).sqrt() * noise
        return self.scheduler.step(x0, self.timesteps[step], z).prev_sample

    def _bar(self, t: Tensor) -> Tensor:
        return self.diffusion.abar[t.long()]

    def _scale(self, step: int) -> Tensor:
        if self.kind != "euler":
            return torch.ones(())
        return (self.scheduler.sigmas[step] ** 2 + 1) ** -0.5


def _scheduler(kind: str, values: np.ndarray, spacing: str) -> Any:
    import diffusers

    common: dict[str, Any] = {
        "num_train_timesteps": len(values),
        "trained_betas": values.astype(np.float32),
        "prediction_type": "sample",
        "timestep_spacing": spacing,
        "steps_offset": 1 if spacing == "leading" and len(values) > 1 else 0,
    }
    if kind in ("ddim", "renoise"):  # the timesteps alone
        return diffusers.DDIMScheduler(clip_sample=False, **common)
    # these two divide by sqrt(abar): diffusers' own guard puts 2^-24 in place of 0 at the last timestep
    guard = bool(values[-1] > 0.9999)
    if kind == "dpm++":
        return diffusers.DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", rescale_betas_zero_snr=guard, **common)
    euler: Any = diffusers.EulerDiscreteScheduler(rescale_betas_zero_snr=guard, **common)
    euler.is_scale_input_called = True  # `network_input` does it
    return euler


def noise_like(seeds: Sequence[int], shape: tuple[int, int, int], draws: int = 1) -> Tensor:
    """[draws,B,D,h,w] float32 on the CPU: every row comes from its own seed, so it never depends on the batch it is
    in."""
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(int(seed) % (1 << 63))
        rows.append(torch.randn((draws, *shape), generator=generator))
    return torch.stack(rows, 1)


def ground_noise(ground: Ground, shape: tuple[int, int, int], cell_px: int, draw: int = 0, step: int = 0) -> Tensor:
    """[D,h,w] float32 on the CPU: normal noise of the plane of a raster, where the tile lies. Tiles of one raster that
    overlap have the same values on the same ground, if their corners lie on cells; else to the nearest cell above and
    to the left.

    Args:
        shape: [D,h,w]. cell_px: pixels a side of a latent position.
    """
    depth, height, width = shape
    top, left = ground.row // cell_px, ground.col // cell_px
    out = torch.empty(shape)
    for i in range(top // GROUND_CELLS, (top + height - 1) // GROUND_CELLS + 1):
        for j in range(left // GROUND_CELLS, (left + width - 1) // GROUND_CELLS + 1):
            mixed = np.random.SeedSequence([int(ground.seed) % (1 << 63), draw, step, i, j]).generate_state(1, np.uint64)[0]
            generator = torch.Generator().manual_seed(int(mixed >> np.uint64(1)))
            block = torch.randn((depth, GROUND_CELLS, GROUND_CELLS), generator=generator)
            (a0, a1), (b0, b1) = ((k * GROUND_CELLS, (k + 1) * GROUND_CELLS) for k in (i, j))
            rows, cols = slice(max(a0, top), min(a1, top + height)), slice(max(b0, left), min(b1, left + width))
            inside = block[:, rows.start - a0 : rows.stop - a0, cols.start - b0 : cols.stop - b0]
            out[:, rows.start - top : rows.stop - top, cols.start - left : cols.stop - left] = inside
    return out


class TileNoise:
    """Noise of all draws and steps of a batch of tiles; that of a tile comes from its own seed, or from the ground it
    lies on.

    Args:
        seeds: one a tile. shape: [D,h,w]. draws: S. cell_px: pixels a side of a latent position.
    """

    def __init__(self, seeds: Sequence[Seed], shape: tuple[int, int, int], draws: int, cell_px: int = 1):
        self.seeds, self.shape, self.cell_px = seeds, shape, cell_px
        own = [seed for seed in seeds if not isinstance(seed, Ground)]
        self.first = noise_like(own, shape, draws) if len(own) == len(seeds) else None

    def __call__(self, draw: int, step: int) -> Tensor:
        """[B,D,h,w] on the CPU: the start for step 0, new noise for the later ones."""
        if self.first is not None and step == 0:
            return self.first[draw]
        rows = []
        for seed in self.seeds:
            if isinstance(seed, Ground):
                rows.append(ground_noise(seed, self.shape, self.cell_px, draw, step))
                continue
            mixed = np.random.SeedSequence([int(seed) % (1 << 63), draw, step]).generate_state(1, np.uint64)[0]
            rows.append(noise_like([int(mixed >> np.uint64(1))], self.shape)[0, 0])
        return torch.stack(rows)
