"""Label codes: class maps <-> latents that a diffusion model can write.

Analog code: class k -> a corner of the cube {-1, 1}^n (n = ceil(log2 K); two classes are antipodal), then
space-to-depth by `block_px`. The round trip is exact. It needs no training and keeps the codes as far apart as n
channels allow (docs/method.md, "Label code"). VAE code: class k -> a colour of the cube [-1, 1]^3 -> latent mode of a
diffusers autoencoder.

Shape letters: B batch, K classes, n code channels, D latent channels, H, W pixels, h, w = H, W / factor.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idgbr.errors import BadRequest

MAX_CLASSES = 256


def corner_codes(n_classes: int) -> Tensor:
    """[K, n] of -1 and 1: the binary digits of the class index. K = 2: antipodal; K <= 8: corners of the cube.

    Raises:
        BadRequest: fewer than 2 or more than 256 classes.
    """
    _check_classes(n_classes)
    n = max(1, math.ceil(math.log2(n_classes)))
    index = torch.arange(n_classes)
    return torch.stack([(index >> j & 1) * 2.0 - 1.0 for j in range(n)], dim=1)


def colour_codes(n_classes: int) -> Tensor:
    """[K, 3] colours in [-1, 1]^3: antipodal for 2 classes, corners up to 8, then the coarsest lattice with K
    points."""
    _check_classes(n_classes)
    if n_classes == 2:
        return torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
    levels = max(2, next(m for m in range(2, 8) if m**3 >= n_classes))
    axis = torch.linspace(-1, 1, levels, device="cpu").tolist()  # also where the default device is meta
    lattice = torch.tensor(list(itertools.product(axis, repeat=3)))
    return lattice[torch.linspace(0, len(lattice) - 1, n_classes).round().long()]  # spread over the whole lattice


def _check_classes(n_classes: int) -> None:
    if not 2 <= n_classes <= MAX_CLASSES:
        raise BadRequest("a label code needs 2 to 256 classes", value=f"{n_classes=}", allowed=f"2 to {MAX_CLASSES}")


class Codec(nn.Module, ABC):
    """Interface of the label codes.

    `factor`: pixels a latent position covers along a side. `latent_channels`: D. `bound`: latents of clean maps lie in
    [-bound, bound] (None: unknown), to which a sampler may clip.
    """

    codes: Tensor
    factor: int
    latent_channels: int
    bound: float | None

    @property
    def n_classes(self) -> int:
        """Number of classes, K."""
        return self.codes.shape[0]

    def encode(self, probabilities: Tensor) -> Tensor:
        """[B,K,H,W] probabilities (one-hot for a class map) -> latent [B,D,h,w] of the expected code.

        H and W must be multiples of `factor`.
        """
        return self.to_latent(_product(probabilities, self.codes.T))

    def encode_index(self, index: Tensor) -> Tensor:
        """[B,H,W] class indices -> latent [B,D,h,w]."""
        return self.to_latent(self.codes[index.long()].movedim(-1, 1))

    @abstractmethod
    def decode(self, latent: Tensor) -> Tensor:
        """Latent [B,D,h,w] -> probabilities [B,K,H,W], by the distances of the code to the classes' codes."""

    @abstractmethod
    def logits(self, output: Tensor) -> Tensor:
        """Network output read as a code of unlimited size [B,D,h,w] -> logits [B,K,H,W], for task losses."""

    @abstractmethod
    def prior(self, coarse: Tensor, z: Tensor | None, bar: Tensor | None, as_logits: bool) -> Tensor:
        """What coarse latent and noised latent z (at abar `bar`; None: no z) say by themselves, before any image
        [B,D,h,w].

        `as_logits`: in the form `logits` reads; else as an estimate of the clean latent.
        """

    @abstractmethod
    def to_latent(self, code: Tensor) -> Tensor:
        """Code image [B,n,H,W] -> latent [B,D,h,w]."""

    @abstractmethod
    def to_pixels(self, latent: Tensor) -> Tensor:
        """Any field on the latent grid [B,D,h,w], laid out in pixels where the code has pixels of its own."""

    @abstractmethod
    def weights(self, pixels: Tensor) -> Tensor:
        """Pixel weights [B,1,H,W] -> weights of latent entries [B,D or 1,h,w]."""

    def _check(self, height: int, width: int) -> None:
        if height % self.factor or width % self.factor:
            pad = [side + -side % self.factor for side in (height, width)]
            raise BadRequest(
                "a map's sides must be multiples of the code's block",
                value=f"{height} x {width} px, block {self.factor} px",
                hint=f"pad it to {pad[0]} x {pad[1]}; Refiner.refine does so by itself",
            )


class AnalogCodec(Codec):
    """Corner codes with space-to-depth; exact round trip for up to 256 classes.

    Args:
        n_classes: K. block_px: side of the space-to-depth block. scale: amplitude of the code; below 1 every timestep
            hides more of it (Chen 2023, arXiv 2301.10972, section 2.2), which large blocks need: their pixels repeat
            each other.
    """

    def __init__(self, n_classes: int, block_px: int, scale: float = 1.0):
        super().__init__()
        self.register_buffer("codes", corner_codes(n_classes))
        self.factor = block_px
        self.scale = scale
        self.bound = scale
        self.latent_channels = self.codes.shape[1] * block_px**2

    def to_latent(self, code: Tensor) -> Tensor:
        self._check(*code.shape[-2:])
        return F.pixel_unshuffle(code, self.factor) * self.scale

    def to_pixels(self, latent: Tensor) -> Tensor:
        return F.pixel_shuffle(latent, self.factor) / self.scale

    def decode(self, latent: Tensor) -> Tensor:
        # A digit x that estimates E[c] of c in {-1, 1} says P(c) = (1 + c x) / 2 = 1 - |x - c| / 2: linear in the
        # distance to the code. Digits are taken as independent, which is exact for two classes. Where every corner is
        # a class, the argmax is the nearest code.
        x = self.to_pixels(latent.float()).clamp(-1, 1)
        p = torch.ones_like(x[:, :1]).expand(-1, self.n_classes, -1, -1)
        for j in range(self.codes.shape[1]):
            p = p * (0.5 + 0.5 * self.codes[:, j].view(1, -1, 1, 1) * x[:, j : j + 1]).clamp_min(1e-6)
        return p / p.sum(1, keepdim=True)

    def logits(self, output: Tensor) -> Tensor:
        # all codes have the same length, so the scalar product orders classes as the distance does
        return _product(self.to_pixels(output.float()), self.codes)

    def prior(self, coarse: Tensor, z: Tensor | None, bar: Tensor | None, as_logits: bool) -> Tensor:
        # Bayes' rule for a digit c of -1 or 1: half the log odds are atanh(E[c]) from the coarse map, plus sqrt(abar)
        # z / (1 - abar) from z = sqrt(abar) c + sqrt(1 - abar) eps. Both are bounded, so that an error can still be
        # corrected.
        half = torch.atanh((coarse.float() / self.scale).clamp(-0.98, 0.98))
        if z is not None and bar is not None:
            half = half + (bar.sqrt() * self.scale * z.float() / (1 - bar).clamp_min(1e-4)).clamp(-8, 8)
        return self.scale * (half if as_logits else half.tanh())

    def class_prior(self, coarse: Tensor, z: Tensor | None, bar: Tensor | None) -> Tensor:
        """`prior` as logits of the classes [B,K,H,W], from coarse probabilities [B,K,H,W]: nothing is lost for more
        than two classes."""
        # Bayes' rule: log p(k) from the coarse map plus sqrt(abar) <code of k, z> / (1 - abar) from z; bounded like
        # `prior`
        logits = coarse.float().clamp_min(1e-4).log()
        if z is not None and bar is not None:
            pixels = self.to_pixels((bar.sqrt() * self.scale**2 * z.float() / (1 - bar).clamp_min(1e-4)).clamp(-8, 8))
            logits = logits + _product(pixels, self.codes)
        return logits

    def weights(self, pixels: Tensor) -> Tensor:
        return F.pixel_unshuffle(pixels, self.factor).repeat(1, self.codes.shape[1], 1, 1)


class VaeCodec(Codec):
    """Colours through a frozen diffusers autoencoder (AutoencoderKL or AutoencoderTiny); the mode, never a random
    sample.

    Args:
        n_classes: K. vae: the autoencoder. noise: standard deviation of the colour error that decoding assumes.
    """

    def __init__(self, n_classes: int, vae: Any, noise: float = 0.3):
        super().__init__()
        self.register_buffer("codes", colour_codes(n_classes))
        self.vae = vae.requires_grad_(False).eval()
        self.factor = vae_factor(vae)
        self.latent_channels = int(vae.config.latent_channels)
        self.noise = noise
        self.bound = None

    def train(self, mode: bool = True) -> VaeCodec:
        """The autoencoder stays in evaluation mode."""
        super().train(mode)
        self.vae.eval()
        return self

    def to_latent(self, code: Tensor) -> Tensor:
        self._check(*code.shape[-2:])
        return encode_mode(self.vae, code)

    def to_pixels(self, latent: Tensor) -> Tensor:
        return latent

    def colours(self, latent: Tensor) -> Tensor:
        """Latent [B,D,h,w] -> colours [B,3,H,W]."""
        return self.vae.decode(latent.to(self.vae.dtype) / self.vae.config.scaling_factor).sample.float()

    def logits(self, output: Tensor) -> Tensor:
        x = self.colours(output)
        distance = x.square().sum(1, keepdim=True) - 2 * _product(x, self.codes) + self.codes.square().sum(1).view(1, -1, 1, 1)
        return -distance / (2 * self.noise**2)

    def prior(self, coarse: Tensor, z: Tensor | None, bar: Tensor | None, as_logits: bool) -> Tensor:
        return coarse if z is None or bar is None else bar.sqrt() * z + (1 - bar) * coarse

    def decode(self, latent: Tensor) -> Tensor:
        return self.logits(latent).softmax(1)

    def weights(self, pixels: Tensor) -> Tensor:
        return F.avg_pool2d(pixels, self.factor)


def _product(image: Tensor, matrix: Tensor) -> Tensor:
    """[B,j,H,W] and [i,j] -> [B,i,H,W] in float32 also where autocast is on: codes must not lose their distances to
    rounding."""
    # torch 2.14 knows no autocast on the meta device (benchmarks/flops.py, preflights)
    with contextlib.nullcontext() if image.is_meta else torch.autocast(image.device.type, enabled=False):
        return torch.einsum("bjhw,ij->bihw", image.float(), matrix.float())


def vae_factor(vae: Any) -> int:
    """Pixels a latent position of a diffusers autoencoder covers along a side."""
    of_encoder = hasattr(vae.config, "encoder_block_out_channels")  # AutoencoderTiny; AutoencoderKL has one list for both directions
    channels = vae.config.encoder_block_out_channels if of_encoder else vae.config.block_out_channels
    return int(2 ** (len(channels) - 1))


def encode_mode(vae: Any, image: Tensor) -> Tensor:
    """Image [B,3,H,W] in [-1, 1] -> scaled latent mode [B,D,h,w]; deterministic."""
    posterior = vae.encode(image.to(vae.dtype))
    latent = posterior.latent_dist.mode() if hasattr(posterior, "latent_dist") else posterior.latents
    return (latent * vae.config.scaling_factor).to(image.dtype)
