"""Conditioning guidance network: one block a skip and one for the middle (docs/method.md, "Guidance").

For a scale with denoiser feature n (C channels) and condition c (M channels):
    u = conv1x1(concat(n, c));  q = 1x1(u) + position;  k = v = 1x1(c) + position
    h = v + MHA(LN q, LN k, LN v);  h = h + MLP(LN h);  g = proj(LN h) + u
Only `conv` and `proj` start at zero: no effect at first, yet every parameter learns (in the authors' code the
attention cannot). Everything that depends on c alone is computed once a tile by `prepare`: keys, values, their
residual, and c's share of `conv`.

Attention within windows of `window` positions a side keeps the cost linear in the image; 0 attends over the whole
feature map, as the paper does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idgbr.errors import BadRequest


@dataclass(frozen=True)
class Prepared:
    """What a block keeps of one condition. share [B,C,h,w]; value [B*windows,N,width]; k, v
    [B*windows,heads,N,width/heads]; mask [windows,N], False at positions that pad a window, or None."""

    share: Tensor
    value: Tensor | None = None
    k: Tensor | None = None
    v: Tensor | None = None
    mask: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """The tensors that are there."""
        return [t for t in (getattr(self, f.name) for f in fields(self)) if t is not None]


class GuidanceBlock(nn.Module):
    """Guidance of one scale.

    Args:
        channels: C of the denoiser feature. condition_channels: M. width, heads: of the attention branch.
        attention: False leaves the 1x1 convolution alone. window: side of attention windows in positions, 0: the
            whole map.
        size: side of the learned position table where window is 0 (resized to other maps).
    """

    def __init__(self, channels: int, condition_channels: int, width: int, heads: int, attention: bool, window: int, size: int):
        super().__init__()
        if width % heads:
            raise BadRequest("refiner.guidance_width must be a multiple of refiner.guidance_heads", value=f"{width=}, {heads=}")
        self.channels, self.heads, self.window, self.attention = channels, heads, window, attention
        self.conv = nn.Conv2d(channels + condition_channels, channels, 1)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        if not attention:
            return
        side = window or size
        self.position = nn.Parameter(torch.randn(1, width, side, side) * 0.02)
        self.query = nn.Conv2d(channels, width, 1, bias=False)
        self.key_value = nn.Conv2d(condition_channels, width, 1, bias=False)
        self.norm_q, self.norm_k, self.norm_v = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(4))
        self.norm_mlp, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), QuickGELU(), nn.Linear(4 * width, width))
        self.proj = nn.Conv2d(width, channels, 1, bias=False)
        nn.init.zeros_(self.proj.weight)

    def prepare(self, condition: Tensor) -> Prepared:
        """Condition feature [B,M,h,w] -> what all denoising steps share."""
        share = F.conv2d(condition, self.conv.weight[:, self.channels :], self.conv.bias)
        if not self.attention:
            return Prepared(share)
        height, width = condition.shape[-2:]
        tokens = self._windows(self.key_value(condition)) + self._position(height, width)
        return Prepared(
            share,
            tokens,
            self._heads(self.to_k(self.norm_k(tokens))),
            self._heads(self.to_v(self.norm_v(tokens))),
            self._mask(height, width, tokens),
        )

    def forward(self, feature: Tensor, prepared: Prepared) -> Tensor:
        """Denoiser feature [B,C,h,w] -> guidance [B,C,h,w]."""
        u = F.conv2d(feature, self.conv.weight[:, : self.channels]) + prepared.share
        if prepared.k is None or prepared.v is None or prepared.value is None:
            return u
        height, width = u.shape[-2:]
        q = self._heads(self.to_q(self.norm_q(self._windows(self.query(u)) + self._position(height, width))))
        mask = prepared.mask
        if mask is not None:
            mask = mask.repeat(len(u), 1)[:, None, None, :]
        mixed = F.scaled_dot_product_attention(q, prepared.k, prepared.v, attn_mask=mask)
        h = prepared.value + self.to_out(mixed.transpose(1, 2).flatten(2))
        h = h + self.mlp(self.norm_mlp(h))
        return F.conv2d(self._whole(self.norm_out(h), height, width), self.proj.weight) + u

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _grid(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Window sides and numbers of windows along each axis."""
        side_h, side_w = (min(self.window, height), min(self.window, width)) if self.window else (height, width)
        return side_h, side_w, -(-height // side_h), -(-width // side_w)

    def _position(self, height: int, width: int) -> Tensor:
        """[N,width], the same for every window."""
        side_h, side_w, _, _ = self._grid(height, width)
        table: Tensor = self.position
        if self.window:
            table = table[..., :side_h, :side_w]
        elif table.shape[-2:] != (height, width):
            table = F.interpolate(table, (height, width), mode="bicubic", align_corners=False)
        return table[0].flatten(1).t()

    def _windows(self, x: Tensor) -> Tensor:
        """[B,width,h,w] -> [B*windows,N,width]."""
        b, channels, height, width = x.shape
        side_h, side_w, rows, columns = self._grid(height, width)
        if (rows * side_h, columns * side_w) != (height, width):
            x = F.pad(x, (0, columns * side_w - width, 0, rows * side_h - height))
        x = x.reshape(b, channels, rows, side_h, columns, side_w)
        return x.permute(0, 2, 4, 3, 5, 1).reshape(b * rows * columns, side_h * side_w, channels)

    def _whole(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Inverse of `_windows`."""
        side_h, side_w, rows, columns = self._grid(height, width)
        x = tokens.reshape(-1, rows, columns, side_h, side_w, tokens.shape[-1]).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(len(x), -1, rows * side_h, columns * side_w)[..., :height, :width]

    def _mask(self, height: int, width: int, like: Tensor) -> Tensor | None:
        side_h, side_w, rows, columns = self._grid(height, width)
        if (rows * side_h, columns * side_w) == (height, width):
            return None
        return self._windows(like.new_ones(1, 1, height, width))[..., 0] > 0


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the form CLIP uses."""

    def forward(self, x: Tensor) -> Tensor:
        """x sigmoid(1.702 x), element by element."""
        return F.silu(1.702 * x) / 1.702  # one pass over x fewer than written out


class GuidanceNetwork(nn.Module):
    """A `GuidanceBlock` for every skip and the middle.

    Args:
        channels, condition_channels, attention: one entry a skip and, last, the middle. sizes: sides of the position
            tables.
    """

    def __init__(
        self,
        channels: Sequence[int],
        condition_channels: Sequence[int],
        sizes: Sequence[int],
        *,
        width: int,
        heads: int,
        attention: Sequence[bool],
        window: int,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(
            GuidanceBlock(c, m, width, heads, a, window, s)
            for c, m, a, s in zip(channels, condition_channels, attention, sizes, strict=True)
        )

    def prepare(self, conditions: Sequence[Tensor]) -> tuple[Prepared, ...]:
        """Condition features of every scale -> what each block derives from them once for all denoising steps."""
        blocks: Sequence[Any] = list(self.blocks)
        return tuple(block.prepare(c) for block, c in zip(blocks, conditions, strict=True))

    def forward(self, features: Sequence[Tensor], prepared: Sequence[Prepared]) -> tuple[Tensor, ...]:
        """Features of the denoiser of every scale -> guided features of the same shapes."""
        return tuple(block(f, p) for block, f, p in zip(self.blocks, features, prepared, strict=True))


@dataclass(frozen=True)
class Condition:
    """All that denoising steps share.

    coarse: probabilities [B,K,H,W]. latent: their code [B,D,h,w], padded. prepared: one entry a skip and, last, the
    middle. entry: image and coarse map on the latent grid [B,M,h,w], where the denoiser or a head at full size sees
    them too, or None.
    """

    coarse: Tensor
    latent: Tensor
    prepared: tuple[Prepared, ...]
    entry: Tensor | None = None

    def __len__(self) -> int:
        return len(self.coarse)

    def rows(self) -> list[Condition]:
        """One condition a tile."""
        n = len(self)
        cut = [{f.name: _rows(getattr(p, f.name), 1 if f.name == "mask" else n) for f in dataclasses.fields(p)} for p in self.prepared]
        return [
            Condition(
                self.coarse[i : i + 1],
                self.latent[i : i + 1],
                tuple(Prepared(**{k: v[i % len(v)] for k, v in fields.items()}) for fields in cut),
                None if self.entry is None else self.entry[i : i + 1],
            )
            for i in range(n)
        ]

    def take(self, rows: Tensor) -> Condition:
        """The tiles with these indices [N]."""
        n = len(self)

        def some(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.unflatten(0, (n, -1))[rows].flatten(0, 1)

        prepared = tuple(replace(p, share=p.share[rows], value=some(p.value), k=some(p.k), v=some(p.v)) for p in self.prepared)
        return Condition(self.coarse[rows], self.latent[rows], prepared, some(self.entry))


def _rows(tensor: Tensor | None, n: int) -> list[Any]:
    return [None] if tensor is None else list(tensor.chunk(n))


def stack(rows: Sequence[Condition]) -> Condition:
    """Several conditions joined along the batch. All must have the same tensors and mask."""
    if len(rows) == 1:
        return rows[0]
    prepared = []
    for blocks in zip(*(r.prepared for r in rows), strict=True):
        values = {f.name: [getattr(b, f.name) for b in blocks] for f in dataclasses.fields(Prepared)}
        joined: dict[str, Any] = {k: None if v[0] is None else v[0] if k == "mask" else torch.cat(v) for k, v in values.items()}
        prepared.append(Prepared(**joined))
    entries = [r.entry for r in rows if r.entry is not None]
    entry = torch.cat(entries) if entries else None
    return Condition(torch.cat([r.coarse for r in rows]), torch.cat([r.latent for r in rows]), tuple(prepared), entry)
