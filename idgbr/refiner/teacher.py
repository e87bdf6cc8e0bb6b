"""Representation alignment with a frozen timm ViT (docs/method.md, "Alignment").

Student: the middle feature with guidance, which is not zero at the start (in the authors' code it is), through a
three-layer SiLU MLP. Teacher: patch tokens of the image. Loss: 1 - mean cosine. The teacher is no part of the saved
refiner.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idgbr.config import RefinerConfig
from idgbr.errors import BadRequest, Disagreement, Missing, nearest
from idgbr.weights import header, misfit

if TYPE_CHECKING:
    from idgbr.datasets import BandStats

PROJECTOR_WIDTH = 2  # hidden channels of the MLP, in units of the student's


class Aligner(nn.Module):
    """forward(middle feature [B,M,h,w], batch) -> loss [B]. Tokens are read from the batch where they were
    precomputed.

    Args:
        config: teacher (timm name), teacher_weights (safetensors file). channels: M. stats: band statistics of the
            images.

    Raises:
        BadRequest: no such timm model, or not a ViT. Missing: no such weights file. Disagreement: weights of another
            model.
    """

    def __init__(self, config: RefinerConfig, channels: int, stats: BandStats):
        super().__init__()
        self.teacher = _Frozen(load_teacher(config.teacher, config.teacher_weights))
        hidden = PROJECTOR_WIDTH * channels
        self.projector = nn.Sequential(
            nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, self.teacher.width)
        )
        self.low: Tensor
        self.high: Tensor
        for name in ("low", "high"):
            self.register_buffer(name, torch.tensor(getattr(stats, name), dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    @torch.no_grad()
    def tokens(self, image: Tensor) -> Tensor:
        """Raw image [B,C,H,W] -> teacher tokens [B,E,rows,columns]."""
        x = ((image - self.low) / (self.high - self.low).clamp_min(1e-6)).clamp(0, 1)
        x = x[:, :3] if x.shape[1] >= 3 else x[:, :1].expand(-1, 3, -1, -1)
        return self.teacher(x)

    def forward(self, middle: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Middle features [B,C,h,w] -> 1 - mean cosine similarity to the teacher's tokens, [B] (REPA, arXiv
        2410.06940)."""
        wanted = batch["tokens"] if "tokens" in batch else self.tokens(batch["image"])
        student = self.projector(middle.flatten(2).transpose(1, 2).float()).transpose(1, 2).unflatten(2, middle.shape[-2:])
        student = F.interpolate(student, wanted.shape[-2:], mode="bilinear", align_corners=False)
        return 1 - F.cosine_similarity(student, wanted.float(), dim=1).mean((1, 2))


class _Frozen:
    """Holds the teacher outside the module tree, so that it is neither trained, averaged, wrapped by DDP, nor
    saved."""

    def __init__(self, vit: Any):
        self.vit = vit.eval().requires_grad_(False)
        self.width = int(vit.num_features)
        settings = vit.pretrained_cfg
        self.mean, self.std = (torch.tensor(settings.get(k, d)).view(1, 3, 1, 1) for k, d in (("mean", (0.5,) * 3), ("std", (0.5,) * 3)))

    def __call__(self, image: Tensor) -> Tensor:
        self.vit.to(image.device)
        height, width = self.vit.patch_embed.img_size
        x = F.interpolate(image, (height, width), mode="bicubic", align_corners=False)
        x = (x - self.mean.to(x)) / self.std.to(x)
        tokens = self.vit.forward_features(x)[:, self.vit.num_prefix_tokens :]
        return tokens.transpose(1, 2).unflatten(2, self.vit.patch_embed.grid_size)


def load_teacher(name: str, weights: str) -> Any:
    """A timm ViT by name with local weights (random where none are named: a control, and what tests use)."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    if name not in timm.list_models() and name.partition(".")[0] not in timm.list_models():
        raise BadRequest(
            "refiner.alignment needs a frozen ViT",
            value=f"refiner.teacher={name!r}",
            allowed="a timm VisionTransformer",
            hint=nearest(name, timm.list_models("*vit*")) or "refiner.teacher=vit_small_patch14_dinov2",
        )
    vit = timm.create_model(name, pretrained=False, num_classes=0)
    if not isinstance(vit, VisionTransformer):
        raise BadRequest("the teacher is not a plain ViT", value=f"refiner.teacher={name}", allowed="a timm VisionTransformer")
    if weights:
        from safetensors.torch import load_file

        if not Path(weights).is_file():
            raise Missing(
                "no weights of the teacher", value=f"refiner.teacher_weights={weights}", hint="a safetensors file with timm's keys"
            )
        if torch.get_default_device().type == "meta":  # a look at shapes alone (`plan`)
            shapes = {k: tuple(v.shape) for k, v in vit.state_dict().items()}
            if why := misfit(header(Path(weights)), shapes, skip=("head.", "fc_norm.")):
                raise Disagreement(f"{weights} holds no weights for {name}", value=why)
            return vit
        state = {k: v for k, v in load_file(weights).items() if not k.startswith(("head.", "fc_norm."))}
        left = vit.load_state_dict(state, strict=False)
        if left.missing_keys:
            raise Disagreement(f"{weights} holds no weights for {name}", value=f"missing: {', '.join(left.missing_keys[:3])} ...")
    return vit
