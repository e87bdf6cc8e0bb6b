"""Conditioning guidance network: against a plain rendering with torch's own multi-head attention."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idgbr.errors import BadRequest
from idgbr.guidance import GuidanceBlock
from idgbr.refiner import Refiner


def plain_guidance(block: GuidanceBlock, feature: Tensor, condition: Tensor) -> Tensor:
    """METHOD.md 1.4 word for word, nothing cached, one window at a time, nn.MultiheadAttention."""
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


@pytest.mark.parametrize(("window", "size"), [(0, (8, 8)), (0, (6, 9)), (4, (8, 8)), (4, (6, 9)), (4, (3, 2))])
def test_cached_guidance_equals_the_plain_rendering(window: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    block = GuidanceBlock(12, 20, width=16, heads=4, attention=True, window=window, size=8).eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    feature, condition = torch.randn(3, 12, *size), torch.randn(3, 20, *size)
    with torch.no_grad():
        cached, plain = block(feature, block.prepare(condition)), plain_guidance(block, feature, condition)
    assert (cached - plain).abs().max() < 1e-5 * plain.abs().max()


def test_no_effect_at_initialisation(build: Callable[..., Refiner], batch: Callable[..., dict[str, Tensor]]) -> None:
    refiner, sample = build(), batch(2)
    condition = refiner.condition(sample["image"], sample["coarse"])
    z, t = torch.randn_like(condition.latent), torch.tensor([3, 50])
    with torch.no_grad():
        assert torch.equal(refiner.predict(z, t, condition.prepared), refiner.denoiser.decode(refiner.denoiser.encode(z, t)))


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(BadRequest, match="must be a multiple of"):
        GuidanceBlock(8, 8, width=10, heads=4, attention=True, window=4, size=8)
