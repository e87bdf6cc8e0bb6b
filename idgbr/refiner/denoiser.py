"""The U-Net in two halves, and the condition encoder. Both are assembled from diffusers blocks.

`Denoiser.encode(z, t)` runs the encoder and middle, `decode(features)` the decoder: guidance is added between the
two, so one encoder pass serves the guidance network and both branches of classifier-free guidance (docs/method.md).
Works on diffusers' `UNet2DModel` (small models) and `UNet2DConditionModel` (Stable Diffusion), whose cross-attention
sees one constant: the embedding of the empty prompt.

Shape letters: B batch, D latent channels, h, w latent grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from idgbr.errors import BadRequest


@dataclass(frozen=True)
class Features:
    """What the encoder hands to the decoder: skips (fine to coarse), middle, time embedding [B,E]."""

    skips: tuple[Tensor, ...]
    middle: Tensor
    time: Tensor

    def with_guidance(self, guidance: Sequence[Tensor]) -> Features:
        """skip_i + g_i and middle + g_mid (as in ControlNet)."""
        skips = tuple(s + g for s, g in zip(self.skips, guidance[:-1], strict=True))
        return Features(skips, self.middle + guidance[-1], self.time)

    def doubled(self, guidance: Sequence[Tensor]) -> Features:
        """[without guidance; with guidance] along the batch: the two branches of classifier-free guidance."""
        led = self.with_guidance(guidance)
        skips = tuple(torch.cat(pair) for pair in zip(self.skips, led.skips, strict=True))
        return Features(skips, torch.cat([self.middle, led.middle]), torch.cat([self.time, self.time]))


class Denoiser(nn.Module):
    """A diffusers U-Net that can be run as encoder and decoder apart.

    Args:
        unet: UNet2DModel or UNet2DConditionModel. prompt: [1,N,E] constant for the latter's cross-attention.
        decoder: False drops the decoder (condition encoders).
    """

    def __init__(self, unet: Any, prompt: Tensor | None = None, decoder: bool = True):
        super().__init__()
        self.time_proj, self.time_embedding, self.conv_in = unet.time_proj, unet.time_embedding, unet.conv_in
        self.down_blocks, self.mid_block = unet.down_blocks, unet.mid_block
        self.has_decoder = decoder
        if decoder:
            self.up_blocks, self.conv_norm_out, self.conv_act, self.conv_out = (
                unet.up_blocks,
                unet.conv_norm_out,
                unet.conv_act,
                unet.conv_out,
            )
        self.register_buffer("prompt", None if prompt is None else prompt.clone())  # safetensors refuses shared memory
        self.checkpointing = False

    @property
    def skip_channels(self) -> tuple[int, ...]:
        """Channels of every skip and, last, the middle."""
        channels = [self.conv_in.out_channels]
        for block in self.down_blocks:
            channels += [r.out_channels for r in block.resnets]
            if block.downsamplers is not None:
                channels.append(block.resnets[-1].out_channels)
        return (*channels, self.down_blocks[-1].resnets[-1].out_channels)

    @property
    def skip_levels(self) -> tuple[int, ...]:
        """How often the feature of every skip and, last, of the middle has been halved."""
        levels, level = [0], 0
        for block in self.down_blocks:
            levels += [level] * len(block.resnets)
            if block.downsamplers is not None:
                level += 1
                levels.append(level)
        return (*levels, level)

    @property
    def multiple(self) -> int:
        """Sides of the latent grid must be multiples of this."""
        return int(2 ** self.skip_levels[-1])

    def encode(self, z: Tensor, t: Tensor) -> Features:
        """Latent [B,D,h,w], timesteps [B] -> features of the encoder and middle."""
        time = self.time_embedding(self.time_proj(t).to(self.conv_in.weight.dtype))
        x = self.conv_in(z)
        skips: tuple[Tensor, ...] = (x,)
        for block in self.down_blocks:
            x, more = self._run(partial(block, **self._cross(block, len(z))), x, time)
            skips += tuple(more)
        return Features(skips, self._run(partial(self.mid_block, **self._cross(self.mid_block, len(z))), x, time), time)

    def decode(self, features: Features) -> Tensor:
        """Features (with or without guidance) -> prediction [B,D,h,w]."""
        x, skips = features.middle, features.skips
        for block in self.up_blocks:
            n = len(block.resnets)
            x = self._run(partial(block, **self._cross(block, len(x))), x, skips[-n:], features.time)
            skips = skips[:-n]
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))

    def _cross(self, block: nn.Module, batch: int) -> dict[str, Tensor]:
        if not getattr(block, "has_cross_attention", False):
            return {}
        return {"encoder_hidden_states": cast(Tensor, self.prompt).expand(batch, -1, -1).to(self.conv_in.weight.dtype)}

    def _run(self, block: Callable[..., Any], *args: Any) -> Any:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)


def small_unet(in_channels: int, out_channels: int, channels: Sequence[int], layers: int, where: str) -> Any:
    """A UNet2DModel of ResNet blocks with self-attention in the middle alone.

    Raises:
        BadRequest: fewer than two levels.
    """
    from diffusers import UNet2DModel

    if len(channels) < 2:
        raise BadRequest(f"{where} needs at least two levels", value=tuple(channels), hint=f"{where}=[48,96]")
    groups = next(g for g in (32, 16, 8, 4, 2, 1) if all(c % g == 0 for c in channels) and (g <= min(channels) // 4 or g == 1))
    head = next(d for d in (32, 24, 16, 8, 4, 2, 1) if channels[-1] % d == 0)
    return UNet2DModel(
        in_channels=in_channels,
        out_channels=out_channels,
        block_out_channels=tuple(channels),
        layers_per_block=layers,
        down_block_types=("DownBlock2D",) * len(channels),
        up_block_types=("UpBlock2D",) * len(channels),
        norm_num_groups=groups,
        attention_head_dim=head,
    )


class ConditionEncoder(nn.Module):
    """Image and coarse latent -> one condition feature for every skip and the middle of the denoiser; timestep fixed
    at 1.

    Trained (small models): one pass over image (space-to-depth) and coarse latent, concatenated. Frozen (Stable
    Diffusion, as in arXiv 2507.01573): one batched pass over the image latent and the coarse latent, features
    concatenated.

    Args:
        encoder: Denoiser without decoder. frozen: which of the two.
    """

    def __init__(self, encoder: Denoiser, frozen: bool, inputs: int):
        super().__init__()
        self.encoder, self.frozen, self.inputs = encoder, frozen, inputs
        if frozen:
            encoder.requires_grad_(False).eval()

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the features of every skip, and last of the middle."""
        return tuple(c * (self.inputs if self.frozen else 1) for c in self.encoder.skip_channels)

    def forward(self, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """parts: image [B,M,h,w] and/or coarse latent [B,D,h,w] -> features, last the middle."""
        if not self.frozen:
            x = torch.cat(list(parts), 1)
            features = self.encoder.encode(x, torch.ones(len(x), device=x.device))
            return (*features.skips, features.middle)
        with torch.no_grad():
            x = torch.cat(list(parts), 0)
            features = self.encoder.encode(x, torch.ones(len(x), device=x.device))
            return tuple(torch.cat(f.chunk(self.inputs), 1) for f in (*features.skips, features.middle))


def position_sizes(levels: Sequence[int], side: int) -> tuple[int, ...]:
    """Side of each feature map for a latent of `side` positions."""
    return tuple(math.ceil(side / 2**level) for level in levels)


class PixelHead(nn.Module):
    """Features, image, coarse map and z at full size [B,M,H,W] -> what is added to the logits [B,K,H,W]; nothing at
    the start.

    A denoiser on blocks of pixels places borders to the pixel only through the channels of a block; two small
    convolutions at full size do so directly (cf. SegRefiner and CascadePSP, which work at stride 1).
    """

    WIDTH = 16

    def __init__(self, channels: int, n_classes: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, self.WIDTH, 3, padding=1), nn.SiLU(), nn.Conv2d(self.WIDTH, self.WIDTH, 3, padding=1), nn.SiLU()
        )
        self.out = nn.Conv2d(self.WIDTH, n_classes, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """[B,M,H,W] -> what is added to the logits, [B,K,H,W]."""
        return self.out(self.layers(x))
