"""Frozen features of a pretrained timm encoder as one more condition.

The paper's condition encoder is Stable Diffusion's pretrained U-Net encoder, frozen (docs/method.md). A small refiner
that starts from random weights has no such knowledge of images; an ImageNet encoder from a local file gives it some,
for one forward pass a tile.

Shape letters: B batch, C bands, h, w latent grid (H / block, W / block).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idgbr.coarse.encoders import quiet
from idgbr.errors import BadRequest, Disagreement, Missing, nearest
from idgbr.weights import header, misfit

STRIDES_UP_TO = 16  # deeper features say what is in the scene, not where its border runs


class PretrainedFeatures(nn.Module):
    """Image (space-to-depth by `factor`) [B,C*factor^2,h,w] -> features [B,width,h,w]; only the 1x1 projections are
    trained.

    Args:
        encoder: timm name with `features_only`. weights: safetensors file with timm's keys; empty: random (a control,
            and for `load`).

    Raises:
        BadRequest: no such encoder. Missing: no such file. Disagreement: weights of another model.
    """

    def __init__(self, encoder: str, weights: str, n_bands: int, factor: int, width: int):
        super().__init__()
        self.factor, self.width = factor, width
        self.encoder = _frozen(encoder, weights, n_bands)
        channels = [info["num_chs"] for info in self.encoder.feature_info if info["reduction"] <= STRIDES_UP_TO]
        self.project = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(1, c, affine=False), nn.Conv2d(c, width, 1, bias=i == 0)) for i, c in enumerate(channels)
        )

    def train(self, mode: bool = True) -> PretrainedFeatures:
        """The encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()  # batch statistics stay those of the pretraining
        return self

    def forward(self, image_input: Tensor) -> Tensor:
        """Space-to-depth image [B, C f^2, h, w] -> sum of its projected features [B, D, h, w]."""
        size = (image_input.shape[-2], image_input.shape[-1])
        with torch.no_grad():
            features = self.encoder(F.pixel_shuffle(image_input, self.factor))[: len(self.project)]
        sized = [F.adaptive_avg_pool2d(f, size) if f.shape[-1] > size[-1] else F.interpolate(f, size, mode="bilinear") for f in features]
        return torch.stack([project(f) for project, f in zip(self.project, sized, strict=True)]).sum(0)


def _frozen(name: str, weights: str, n_bands: int) -> Any:
    import timm

    if name.partition(".")[0] not in timm.list_models():
        raise BadRequest("no such timm encoder", value=f"refiner.condition_encoder={name}", hint=nearest(name, timm.list_models()) or None)
    arguments: dict[str, Any] = {"features_only": True, "in_chans": n_bands}
    on_meta = torch.get_default_device().type == "meta"  # a look at shapes alone (`plan`)
    arguments["pretrained"] = bool(weights) and not on_meta
    if weights:
        if not Path(weights).is_file():
            raise Missing(
                "no weights of the condition encoder",
                value=f"refiner.condition_weights={weights}",
                hint="a safetensors file with timm's keys",
            )
        arguments["pretrained_cfg_overlay"] = {"file": weights}
    try:
        with quiet("timm.models._builder"):  # it reports the head, which features do not need
            encoder = timm.create_model(name, **arguments)
    except RuntimeError as error:
        raise Disagreement(f"{weights} does not fit {name}", value=str(error).splitlines()[-1].strip()) from error
    if weights and on_meta:
        shapes = {tensor: tuple(value.shape) for tensor, value in encoder.state_dict().items()}
        if why := misfit(header(Path(weights)), shapes, skip=("fc_norm", "norm", "head")):
            raise Disagreement(f"{weights} does not fit {name}", value=why)
    return encoder.eval().requires_grad_(False)
