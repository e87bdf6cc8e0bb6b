"""Conditioning guidance network: against a plain rendering with torch's own multi-head attention."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_refiner import plain_guidance
from torch import Tensor, nn

from idgbr.errors import BadRequest
from idgbr.refiner.guidance import GuidanceBlock
from idgbr.refiner.refiner import Refiner


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
        assert torch.equal(refiner.predict(z, t, condition)[0], refiner.denoiser.decode(refiner.denoiser.encode(z, t)))


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(BadRequest, match="must be a multiple of"):
        GuidanceBlock(8, 8, width=10, heads=4, attention=True, window=4, size=8)
