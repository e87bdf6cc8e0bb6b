"""What a kind of refiner does with the network. Diffusion in steps from noise, a cascade of steps without noise, or
one pass.

A process decides what the denoiser sees and how its output is read, in training (`draw`, `first`, `seen`) and in
sampling (`walk`). Networks, losses and files are the same for all kinds, so that they can be compared.

Shape letters: B batch, D latent channels, h, w latent grid.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from idgbr.config import RefinerConfig, SamplerConfig
from idgbr.errors import BadRequest
from idgbr.refiner.diffusion import Diffusion, Sampler, TimestepLaw, trailing


@dataclass(frozen=True)
class Draw:
    """What is random about a batch of training samples.

    t: timesteps [B]. noise: in z [B,D,h,w]. keep: 0 where the condition is left out, else 1 [B]. from_zeros: the
    network sees zeros in place of a noised map [B]. task: a latent output is trained by the task loss too [B].
    recycled: z is made from the network's own first guess in place of the truth [B]. first: z of the step that makes
    it [B,D,h,w]. guesses: whether guesses are made at all; the same for every part of a global batch, as sharded
    networks need it.
    """

    t: Tensor
    noise: Tensor
    keep: Tensor
    from_zeros: Tensor
    task: Tensor
    recycled: Tensor
    first: Tensor
    guesses: bool


@dataclass(frozen=True)
class Estimate:
    """The clean map as one evaluation of the network sees it. x0: latent [B,D,h,w]. probabilities: [B,K,H,W], None
    for a latent output."""

    x0: Tensor
    probabilities: Tensor | None


class Evaluate(Protocol):
    """The network at latent z [B,D,h,w], timestep t (scalar) and noise level `bar` (abar; None: z holds no noised
    map)."""

    def __call__(self, z: Tensor, t: Tensor, bar: Tensor | None, *, guidance_scale: float = 1.0, as_logits: bool = False) -> Estimate: ...


Noise = Callable[[int], Tensor]  # of a step -> [B,D,h,w]
Decode = Callable[[Tensor], Tensor]  # latent -> probabilities


class Process(Protocol):
    """The interface of the kinds of refiner.

    parameterisation: what the network's output is ("x0", "v" or "epsilon"). reads_logits: whether it is read as class
    logits (cross-entropy), else as a latent (squared error). last: the timestep at which sampling starts.
    """

    parameterisation: str
    reads_logits: bool
    last: int

    def draw(self, seeds: Sequence[int], index: Tensor | None, z0: Tensor) -> Draw:
        """Random parts of training samples; those of a sample come from its own seed. index: images seen before each
        sample [B]."""

    def seen(self, source: Tensor, draw: Draw) -> Tensor:
        """What the denoiser sees in training, made from clean latents (of the truth or a guess) [B,D,h,w]."""

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

    def draws(self, sampler: SamplerConfig) -> int:
        """How many different samples there are."""

    def walk(self, evaluate: Evaluate, noise: Noise, coarse: Tensor, decode: Decode, sampler: SamplerConfig) -> Tensor:
        """One draw: coarse latent [B,D,h,w] -> probabilities [B,K,H,W]."""


class _WithoutNoise(Process):
    """What one pass and the cascade share: logits, no noise, one draw."""

    parameterisation = "x0"
    reads_logits = True

    def __init__(self, config: RefinerConfig):
        self.last = config.train_timesteps - 1

    def seen(self, source: Tensor, draw: Draw) -> Tensor:
        return source * (~draw.from_zeros).view(-1, 1, 1, 1)

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

    def draws(self, sampler: SamplerConfig) -> int:
        return 1

    def _plain(self, t: Tensor, z0: Tensor, guesses: bool) -> Draw:
        nothing, recycled = torch.zeros_like(z0), t != self.last
        none = torch.zeros(len(z0), dtype=torch.bool, device=z0.device)
        return Draw(t, nothing, torch.ones(len(z0), device=z0.device), ~recycled, none, recycled, nothing, guesses)


class OnePass(_WithoutNoise):
    """One evaluation at z = 0 and the last timestep, learnt by cross-entropy."""

    def draw(self, seeds: Sequence[int], index: Tensor | None, z0: Tensor) -> Draw:
        return self._plain(torch.full((len(z0),), self.last, device=z0.device), z0, False)

    def walk(self, evaluate: Evaluate, noise: Noise, coarse: Tensor, decode: Decode, sampler: SamplerConfig) -> Tensor:
        found = evaluate(torch.zeros_like(coarse), torch.tensor(self.last), None).probabilities
        assert found is not None
        return found


class Cascade(_WithoutNoise):
    """Steps without noise: the first sees zeros, every later one the guess before it. Learnt by cross-entropy on the
    first guess and zeros.

    The control that separates the gain of several steps from the gain of noise.
    """

    def __init__(self, config: RefinerConfig):
        super().__init__(config)
        self.config = config
        self.law = TimestepLaw(config)

    def draw(self, seeds: Sequence[int], index: Tensor | None, z0: Tensor) -> Draw:
        t = torch.tensor([self.law(torch.Generator().manual_seed(seed % (1 << 63))) for seed in seeds], device=z0.device)
        warm = in_warm_start(self.config, index, t)
        return self._plain(torch.where(warm, self.last, t), z0, not bool(warm.all()))

    def walk(self, evaluate: Evaluate, noise: Noise, coarse: Tensor, decode: Decode, sampler: SamplerConfig) -> Tensor:
        z, kept = torch.zeros_like(coarse), _Last(sampler.average_steps)
        for t in trailing(self.last + 1, sampler.steps):
            found = evaluate(z, t, None)
            assert found.probabilities is not None
            kept.add(found.probabilities)
            z = found.x0
        return kept.mean()


class DiffusionProcess(Process):
    """Denoising diffusion: forward process, parameterisation and weights of `Diffusion`, steps of `Sampler`.

    Raises:
        BadRequest: settings that contradict each other.
    """

    def __init__(self, config: RefinerConfig):
        _check(config)
        self.config = config
        self.diffusion = Diffusion(config)
        self.law = TimestepLaw(config)
        self.last = self.diffusion.steps - 1
        self.parameterisation = config.parameterisation
        by_default = config.parameterisation == "x0" and config.codec == "analog" and config.loss_weighting != "frequency"
        self.reads_logits = by_default if config.target_loss == "auto" else config.target_loss == "cross_entropy"

    def draw(self, seeds: Sequence[int], index: Tensor | None, z0: Tensor) -> Draw:
        config, device, n = self.config, z0.device, len(z0)
        t, keep, first, recycled, second = [], [], [], [], []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed % (1 << 63))
            t.append(self.law(generator))
            keep.append(float(torch.rand(1, generator=generator).item() >= config.condition_dropout))
            first.append(torch.randn(z0.shape[1:], generator=generator))
            if config.recycle:
                recycled.append(torch.rand(1, generator=generator).item() < config.recycle)
                second.append(torch.randn(z0.shape[1:], generator=generator))
        t_B, keep_B = torch.tensor(t, device=device), torch.tensor(keep, device=device)
        none = torch.zeros(n, dtype=torch.bool, device=device)
        warm, task = in_warm_start(config, index, t_B), none
        if config.one_step_images:
            assert index is not None
            task = index.to(device) >= config.train_images - config.one_step_images
        t_B = torch.where(warm | task, self.last, t_B)
        from_zeros = warm | task | (t_B == self.last if config.first_input == "zero" else none)
        first_B = torch.stack(first).to(device)
        if not config.recycle:
            return Draw(t_B, first_B, torch.where(task, 1.0, keep_B), from_zeros, task, none, first_B, False)
        recycled_B = torch.tensor(recycled, device=device) & (t_B != self.last)
        noise = torch.where(recycled_B.view(-1, 1, 1, 1), torch.stack(second).to(device), first_B)
        first_B = torch.zeros_like(first_B) if config.first_input == "zero" else first_B
        return Draw(t_B, noise, torch.where(task, 1.0, keep_B), from_zeros, task, recycled_B, first_B, not bool(warm.all()))

    def seen(self, source: Tensor, draw: Draw) -> Tensor:
        return self.diffusion.noised(source, draw.noise, draw.t) * (~draw.from_zeros).view(-1, 1, 1, 1)

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
        if self.config.first_input == "zero" and sampler.sampler in ("ddim", "dpm++", "euler") and sampler.steps > 1:
            raise BadRequest(
                "a refiner whose first step sees zeros has no noise to carry on from step to step",
                value=f"sampler.sampler={sampler.sampler}, refiner.first_input=zero",
                allowed="sampler.sampler=renoise or one_step",
            )

    def draws(self, sampler: SamplerConfig) -> int:
        return 1 if self._from_zeros(sampler) and (sampler.sampler == "one_step" or sampler.steps == 1) else sampler.samples

    def _from_zeros(self, sampler: SamplerConfig) -> bool:
        """Whether the first step sees zeros. The fast track is trained so (arXiv 2409.11355)."""
        fast_track = sampler.sampler == "one_step" and self.config.one_step_images > 0
        return sampler.strength == 1 and (fast_track or self.config.first_input == "zero")

    def walk(self, evaluate: Evaluate, noise: Noise, coarse: Tensor, decode: Decode, sampler: SamplerConfig) -> Tensor:
        steps = Sampler(self.diffusion, sampler)
        task = sampler.sampler == "one_step" and self.config.one_step_images > 0
        z, kept = steps.start(noise(0), coarse), _Last(sampler.average_steps)
        if self._from_zeros(sampler):
            z = torch.zeros_like(z)
        for step, t in enumerate(steps.timesteps):
            seen = steps.network_input(z, step)
            found = evaluate(seen, t, steps.bar(step), guidance_scale=sampler.guidance_scale, as_logits=task)
            last = step + 1 == len(steps.timesteps)
            z = steps.next(z, found.x0, step, None if last or not steps.renews else noise(step + 1))
            if found.probabilities is not None:
                kept.add(found.probabilities)
            elif last or sampler.average_steps > 1:
                kept.add(decode(z if last else found.x0))
        return kept.mean()


class _Last:
    """Mean of the last n tensors."""

    def __init__(self, n: int):
        self.kept: deque[Tensor] = deque(maxlen=n)

    def add(self, tensor: Tensor) -> None:
        self.kept.append(tensor)

    def mean(self) -> Tensor:
        return self.kept[0] if len(self.kept) == 1 else torch.stack(list(self.kept)).mean(0)


def in_warm_start(config: RefinerConfig, index: Tensor | None, like: Tensor) -> Tensor:
    """Which samples [B] belong to the warm start. A whole global batch does or does not."""
    if not config.warm_start:
        return torch.zeros_like(like, dtype=torch.bool)
    assert index is not None
    start = index.to(like.device) // config.batch_images * config.batch_images
    return start < config.warm_start * config.train_images


def _check(config: RefinerConfig) -> None:
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
    if config.recycle and config.parameterisation != "x0":
        raise BadRequest(
            "from the network's own guess no noise leads back to the truth: only x0 can be learnt from a recycled z",
            value=f"refiner.recycle={config.recycle}, refiner.parameterisation={config.parameterisation}",
            allowed="refiner.parameterisation=x0",
        )
    if config.warm_start and config.first_input != "zero":
        raise BadRequest(
            "a warm start trains the first step from zeros, so sampling must start from zeros",
            value=f"refiner.warm_start={config.warm_start}, refiner.first_input={config.first_input}",
            allowed="refiner.first_input=zero",
        )
    if config.first_input == "zero" and config.parameterisation != "x0":
        raise BadRequest(
            "from zeros only x0 can be learnt",
            value=f"refiner.first_input=zero, refiner.parameterisation={config.parameterisation}",
            allowed="refiner.parameterisation=x0",
        )


def process_of(config: RefinerConfig) -> Process:
    """The process of `config.kind`.

    Raises:
        BadRequest: refiner.kind=none, or settings that contradict each other.
    """
    if config.kind == "none":
        raise BadRequest("refiner.kind=none has no network", allowed="diffusion, cascade, one_pass")
    if config.kind == "one_pass":
        return OnePass(config)
    return Cascade(config) if config.kind == "cascade" else DiffusionProcess(config)
