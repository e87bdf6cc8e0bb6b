"""What a kind of refiner does with the network: diffusion in steps from noise, or one pass without noise.

A process decides what the denoiser sees and how its output is read, in training (`draw`, `noised`) and in sampling (`start`, `walk`).
Networks, losses and files are the same for all kinds.

Shape letters: B batch, D latent channels, h, w latent grid, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from idgbr.config import RefinerConfig, SamplerConfig
from idgbr.errors import BadRequest
from idgbr.refiner.diffusion import Diffusion, Sampler, noise_like


@dataclass(frozen=True)
class Draw:
    """What is random about a batch of training samples.

    t: timesteps [B]. noise: [B,D,h,w]. keep: 0 where the condition is left out, else 1 [B]. from_zeros: True where the network sees zeros
    in place of a noised map and learns by the task loss [B].
    """

    t: Tensor
    noise: Tensor
    keep: Tensor
    from_zeros: Tensor


@dataclass(frozen=True)
class Estimate:
    """The clean map as one evaluation of the network sees it. x0: latent [B,D,h,w]. probabilities: [B,K,H,W], None for a latent output."""

    x0: Tensor
    probabilities: Tensor | None


class Evaluate(Protocol):
    """The network at latent z [B,D,h,w], timestep t (scalar) and noise level `bar` (abar; None: z holds no noised map)."""

    def __call__(self, z: Tensor, t: Tensor, bar: Tensor | None, *, guidance_scale: float = 1.0, as_logits: bool = False) -> Estimate: ...


class Process(Protocol):
    """The interface of the kinds of refiner.

    parameterisation: what the network's output is ("x0", "v" or "epsilon"). reads_logits: whether it is read as class logits
    (cross-entropy), else as a latent (squared error).
    """

    parameterisation: str
    reads_logits: bool

    def draw(self, seeds: Sequence[int], index: Tensor | None, z0: Tensor) -> Draw:
        """Random parts of training samples; those of a sample come from its own seed. index: images seen before each sample [B]."""

    def noised(self, z0: Tensor, draw: Draw) -> Tensor:
        """What the denoiser sees in training [B,D,h,w]."""

    def abar(self, t: Tensor) -> Tensor | None:
        """Noise level of timesteps [B] as abar [B,1,1,1]; None where z never holds a noised map."""

    def target(self, z0: Tensor, draw: Draw) -> Tensor:
        """What the network should put out, as a latent."""

    def loss_weight(self, t: Tensor) -> Tensor:
        """Weights of the loss by timestep [B]."""

    def x0(self, output: Tensor, z: Tensor, bar: Tensor) -> Tensor:
        """Network output -> clean latent."""

    def check(self, sampler: SamplerConfig) -> None:
        """Raises:
        BadRequest: sampler settings that this refiner cannot follow.
        """

    def start(self, seeds: Sequence[int], shape: tuple[int, int, int], sampler: SamplerConfig) -> Tensor:
        """Noise of all draws [S,B,D,h,w]; row b comes from seeds[b] alone."""

    def walk(self, evaluate: Evaluate, noise: Tensor, coarse: Tensor, decode: Decode, sampler: SamplerConfig) -> Tensor:
        """One draw: noise and coarse latent [B,D,h,w] -> probabilities [B,K,H,W]."""


class Decode(Protocol):
    def __call__(self, latent: Tensor) -> Tensor: ...


class OnePass:
    """One evaluation at z = 0 and the last timestep, learnt by cross-entropy."""

    parameterisation = "x0"
    reads_logits = True

    def __init__(self, config: RefinerConfig):
        self.last = config.train_timesteps - 1

    def draw(self, seeds: Sequence[int], index: Tensor | None, z0: Tensor) -> Draw:
        n, device = len(z0), z0.device
        t = torch.full((n,), self.last, device=device)
        return Draw(t, torch.zeros_like(z0), torch.ones(n, device=device), torch.ones(n, dtype=torch.bool, device=device))

    def noised(self, z0: Tensor, draw: Draw) -> Tensor:
        return torch.zeros_like(z0)

    def abar(self, t: Tensor) -> Tensor | None:
        return None

    def target(self, z0: Tensor, draw: Draw) -> Tensor:
        return z0

    def loss_weight(self, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.float32)

    def x0(self, output: Tensor, z: Tensor, bar: Tensor) -> Tensor:
        return output

    def check(self, sampler: SamplerConfig) -> None:
        pass

    def start(self, seeds: Sequence[int], shape: tuple[int, int, int], sampler: SamplerConfig) -> Tensor:
        return torch.zeros((1, len(seeds), *shape))

    def walk(self, evaluate: Evaluate, noise: Tensor, coarse: Tensor, decode: Decode, sampler: SamplerConfig) -> Tensor:
        found = evaluate(noise, torch.tensor(self.last), None).probabilities
        assert found is not None
        return found


class DiffusionProcess:
    """Denoising diffusion: forward process, parameterisation and weights of `Diffusion`, steps of `Sampler`.

    Raises:
        BadRequest: settings that contradict each other.
    """

    def __init__(self, config: RefinerConfig):
        if config.target_loss == "cross_entropy" and config.parameterisation != "x0":
            raise BadRequest(
                "cross-entropy reads the network's output as class logits",
                value=f"refiner.parameterisation={config.parameterisation}",
                allowed="refiner.parameterisation=x0",
            )
        if config.loss_weighting == "frequency" and config.target_loss == "cross_entropy":
            raise BadRequest(
                "frequency weighting is for a squared error",
                value=f"refiner.target_loss={config.target_loss}",
                allowed="refiner.target_loss=mse",
            )
        self.config = config
        self.diffusion = Diffusion(config)
        self.parameterisation = config.parameterisation
        by_default = config.parameterisation == "x0" and config.codec == "analog" and config.loss_weighting != "frequency"
        self.reads_logits = by_default if config.target_loss == "auto" else config.target_loss == "cross_entropy"

    def draw(self, seeds: Sequence[int], index: Tensor | None, z0: Tensor) -> Draw:
        config, device, n = self.config, z0.device, len(z0)
        t, noise, keep = [], [], []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed % (1 << 63))
            t.append(self.diffusion.draw_timestep(generator))
            keep.append(float(torch.rand(1, generator=generator).item() >= config.condition_dropout))
            noise.append(torch.randn(z0.shape[1:], generator=generator))
        t_B, keep_B = torch.tensor(t, device=device), torch.tensor(keep, device=device)
        from_zeros = torch.zeros(n, dtype=torch.bool, device=device)
        if config.one_step_images:
            assert index is not None
            from_zeros = index.to(device) >= config.train_images - config.one_step_images
            t_B = torch.where(from_zeros, self.diffusion.steps - 1, t_B)
        return Draw(t_B, torch.stack(noise).to(device), torch.where(from_zeros, 1.0, keep_B), from_zeros)

    def noised(self, z0: Tensor, draw: Draw) -> Tensor:
        return self.diffusion.noised(z0, draw.noise, draw.t) * (~draw.from_zeros).view(-1, 1, 1, 1)

    def abar(self, t: Tensor) -> Tensor | None:
        return self.diffusion.abar_at(t)

    def target(self, z0: Tensor, draw: Draw) -> Tensor:
        return self.diffusion.target(z0, draw.noise, draw.t)

    def loss_weight(self, t: Tensor) -> Tensor:
        return self.diffusion.loss_weight(t)

    def x0(self, output: Tensor, z: Tensor, bar: Tensor) -> Tensor:
        return self.diffusion.x0(output, z, bar)

    def check(self, sampler: SamplerConfig) -> None:
        if sampler.guidance_scale != 1 and self.config.condition_dropout == 0:
            raise BadRequest(
                "classifier-free guidance needs a refiner trained with condition dropout",
                value=f"sampler.guidance_scale={sampler.guidance_scale}, refiner.condition_dropout=0",
                hint="sampler.guidance_scale=1, or train with refiner.condition_dropout=0.1",
            )

    def start(self, seeds: Sequence[int], shape: tuple[int, int, int], sampler: SamplerConfig) -> Tensor:
        noise = noise_like(seeds, shape, sampler.samples)
        if sampler.sampler == "one_step" and self.config.one_step_images and sampler.strength == 1:
            return noise[:1] * 0  # the fast track is trained from zeros (arXiv 2409.11355): one draw
        return noise

    def walk(self, evaluate: Evaluate, noise: Tensor, coarse: Tensor, decode: Decode, sampler: SamplerConfig) -> Tensor:
        steps = Sampler(self.diffusion, sampler)
        task = sampler.sampler == "one_step" and self.config.one_step_images > 0
        z = steps.start(noise, coarse)
        probabilities = None
        for step, t in enumerate(steps.timesteps):
            seen = steps.network_input(z, step)
            found = evaluate(seen, t, steps.bar(step), guidance_scale=sampler.guidance_scale, as_logits=task)
            probabilities = found.probabilities
            z = steps.next(z, found.x0, step)
        return decode(z) if probabilities is None else probabilities


def process_of(config: RefinerConfig) -> Process:
    """The process of `config.kind`.

    Raises:
        BadRequest: refiner.kind=none, or settings that contradict each other.
    """
    if config.kind == "none":
        raise BadRequest("refiner.kind=none has no network", allowed="diffusion, one_pass")
    return OnePass(config) if config.kind == "one_pass" else DiffusionProcess(config)
