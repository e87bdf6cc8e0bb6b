"""Sampling: from a condition to draws of the refined map, and to what a user asked for.

Shape letters: B batch, K classes, H, W pixels, D latent channels, h, w latent grid, S samples.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idgbr.config import SamplerConfig, section_from_dict
from idgbr.errors import BadRequest
from idgbr.interfaces import Json
from idgbr.rasters.edges import changeable
from idgbr.rasters.tiling import Ground, Seed
from idgbr.refiner.decisions import decide
from idgbr.refiner.diffusion import TileNoise
from idgbr.refiner.guidance import Condition
from idgbr.refiner.network import RefinerNetwork
from idgbr.refiner.process import Estimate

OF_SCENES = ("split", "tile_px", "overlap_px", "batch_tiles")  # settings that say how scenes are cut, which one call does not do

A = TypeVar("A")


@dataclass(frozen=True)
class Refined(Generic[A]):
    """A refined map with its uncertainty, in the kind (numpy or torch) and with the batch axis of the image given.

    index: class map uint8 [(B,)H,W]. probabilities: mean over samples [(B,)K,H,W]. agreement: share of samples that
    voted for the most frequent class [(B,)H,W]. entropy: of the mean probabilities, in units of log K, 0..1
    [(B,)H,W].
    """

    index: A
    probabilities: A
    agreement: A
    entropy: A


@torch.no_grad()
def draw(network: RefinerNetwork, condition: Condition, seeds: Sequence[Seed], config: SamplerConfig) -> Tensor:
    """All draws [S,B,K,H,W]; noise of tile b comes from seeds[b] alone; of the ground, where that is a `Ground`
    or `config.shared_noise`. Strength 0 and trust 0 return the coarse
    probabilities as one draw.

    Raises:
        BadRequest: settings that this refiner cannot follow, or another number of seeds than of tiles.
    """
    if len(seeds) != len(condition):
        raise BadRequest("one seed a tile", value=f"{len(seeds)} seeds, {len(condition)} tiles")
    network.process.check(config)
    if config.keeps_coarse:
        return condition.coarse[None]
    if network.device.type == "cpu" and len(condition) > 1:  # tile by tile, see `RefinerNetwork.condition`
        rows = [_draw(network, row, [seed], config) for row, seed in zip(condition.rows(), seeds, strict=True)]
        return torch.cat(rows, 1)
    return _draw(network, condition, seeds, config)


def _draw(network: RefinerNetwork, condition: Condition, seeds: Sequence[Seed], config: SamplerConfig) -> Tensor:
    height, width = condition.coarse.shape[-2:]
    latent = condition.latent

    def evaluate(z: Tensor, t: Tensor, bar: Tensor | None, *, guidance_scale: float = 1.0, as_logits: bool = False) -> Estimate:
        t_B = t.to(network.device).expand(len(z))
        return network.estimate(z, t_B, bar, condition, guidance_scale=guidance_scale, as_logits=as_logits)

    process = network.process
    n = process.draws(config)
    if config.shared_noise:
        seeds = [seed if isinstance(seed, Ground) else Ground(seed, 0, 0) for seed in seeds]
    noise = TileNoise(seeds, tuple(latent.shape[1:]), n, network.codec.factor)  # type: ignore[arg-type]
    draws = []
    for s in range(n):
        walked = process.walk(evaluate, lambda step, s=s: noise(s, step).to(network.device), latent, network.codec.decode, config)  # type: ignore[misc]
        draws.append(walked[..., :height, :width])
    return torch.stack(draws)


def sampler_of(config: SamplerConfig, settings: Json) -> SamplerConfig:
    """`config` with keyword settings of one call.

    Raises:
        BadRequest: no such setting, one that only whole scenes have, or a value out of range.
    """
    if unknown := set(settings) - {f.name for f in dataclasses.fields(SamplerConfig)}:
        section_from_dict(SamplerConfig, dict.fromkeys(unknown))  # raises, naming the nearest setting
    if foreign := [name for name in OF_SCENES if name in settings]:
        raise BadRequest(
            "refine runs images of any size in one piece; it cuts no tiles and knows no split",
            value=", ".join(f"{name}={settings[name]!r}" for name in foreign),
            allowed=", ".join(f.name for f in dataclasses.fields(SamplerConfig) if f.name not in OF_SCENES),
            hint="large scenes in tiles: `idgbr refine SCENE COARSE -o OUT --tile-px 128`",
        )
    return dataclasses.replace(config, **settings)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode within the block, and the mode it had before after it, also when an error leaves the block."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def decided(draws: Tensor, coarse: Tensor, valid: Tensor | None, config: SamplerConfig) -> Refined[Tensor]:
    """What follows from all draws [S,B,K,H,W] where pixels may change; elsewhere the coarse probabilities [B,K,H,W]
    stay.

    valid: [B,H,W] bool, False where the image has no data; None: it has data everywhere.
    """
    n_classes = coarse.shape[1]
    kept = torch.zeros(coarse.shape[0], *coarse.shape[2:], dtype=torch.bool) if valid is None else ~valid.cpu()
    if config.reach_px or config.keep_confidence:
        for b, guess in enumerate(coarse.cpu().numpy()):
            open_HW = changeable(guess.argmax(0).astype(np.uint8), guess.max(0), config.reach_px, config.keep_confidence)
            kept[b] |= ~torch.from_numpy(open_HW)
    coarse, kept = coarse.to(draws.device), kept.to(draws.device)[:, None]
    if config.decision == "mean" and config.trust == 1 and not config.sure:
        found = draws.mean(0)
    else:
        found = torch.from_numpy(decide(draws.cpu().numpy(), coarse.cpu().numpy(), config.decision, config.trust, config.sure))
        found = found.to(draws.device)
    probabilities = torch.where(kept, coarse, found)
    draws = torch.where(kept, coarse, draws)
    votes = F.one_hot(draws.argmax(2), n_classes).float().mean(0)
    entropy = -(probabilities * probabilities.clamp_min(1e-12).log()).sum(1) / np.log(n_classes)
    return Refined(probabilities.argmax(1).to(torch.uint8), probabilities, votes.amax(-1), entropy)
