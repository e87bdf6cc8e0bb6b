"""Small settings, and the guidance network rendered plainly: the reference the cached form is compared with."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idgbr.datasets import BandStats
from idgbr.labels import ClassTable, LabelClass
from idgbr.refiner.guidance import GuidanceBlock

TINY = {
    "channels": (16, 32),
    "condition_channels": (16, 32),
    "guidance_width": 16,
    "guidance_heads": 2,
    "guidance_window": 4,
    "crop_px": 32,
    "train_timesteps": 100,
    "target_loss": "mse",
    "coarse_residual": False,
}

CLASSES: dict[str, Any] = {"target_loss": "auto", "class_channels": True}


def class_table(n_classes: int) -> ClassTable:
    return ClassTable(tuple(LabelClass(f"class{i}", (i,), (i % 256, 0, 255 - i % 256)) for i in range(n_classes)))


def band_stats(n_bands: int) -> BandStats:
    return BandStats((100.0,) * n_bands, (50.0,) * n_bands, (0.0,) * n_bands, (255.0,) * n_bands)


def plain_guidance(block: GuidanceBlock, feature: Tensor, condition: Tensor) -> Tensor:
    """The equations of docs/method.md, "Guidance", one by one, nothing cached, one window at a time, nn.MultiheadAttention."""
    u = block.conv(torch.cat([feature, condition], 1))
    if not block.attention:
        return u
    width = block.to_q.out_features
    attention = nn.MultiheadAttention(width, block.heads, batch_first=True)
    attention.in_proj_weight = nn.Parameter(torch.cat([block.to_q.weight, block.to_k.weight, block.to_v.weight]))
    attention.in_proj_bias = nn.Parameter(torch.cat([block.to_q.bias, block.to_k.bias, block.to_v.bias]))
    attention.out_proj.weight, attention.out_proj.bias = block.to_out.weight, block.to_out.bias
    out = torch.zeros_like(u)
    height, columns = u.shape[-2:]
    side = block.window or max(height, columns)
    for top in range(0, height, side):
        for left in range(0, columns, side):
            part = (..., slice(top, min(height, top + side)), slice(left, min(columns, left + side)))
            small_u, small_c = u[part], condition[part]
            if block.window:
                position = block.position[..., : small_u.shape[-2], : small_u.shape[-1]]
            else:
                position = F.interpolate(block.position, small_u.shape[-2:], mode="bicubic", align_corners=False)
            q = (block.query(small_u) + position).flatten(2).transpose(1, 2)
            kv = (block.key_value(small_c) + position).flatten(2).transpose(1, 2)
            h = kv + attention(block.norm_q(q), block.norm_k(kv), block.norm_v(kv), need_weights=False)[0]
            h = h + block.mlp(block.norm_mlp(h))
            h = block.norm_out(h).transpose(1, 2).unflatten(2, small_u.shape[-2:])
            out[part] = block.proj(h) + small_u
    return out
