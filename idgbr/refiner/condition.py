"""What all denoising steps of a tile share, computed once (METHOD.md 5.2, W1 and W4).

Shape letters: B batch, K classes, H, W pixels, D latent channels, h, w latent grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from idgbr.refiner.guidance import Prepared


@dataclass(frozen=True)
class Condition:
    """All that denoising steps share.

    coarse: probabilities [B,K,H,W]. latent: their code [B,D,h,w], padded. prepared: one entry a skip and, last, the middle.
    """

    coarse: Tensor
    latent: Tensor
    prepared: tuple[Prepared, ...]

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
            )
            for i in range(n)
        ]


def _rows(tensor: Tensor | None, n: int) -> list[Any]:
    return [None] if tensor is None else list(tensor.chunk(n))


def stack(rows: Sequence[Condition]) -> Condition:
    if len(rows) == 1:
        return rows[0]
    prepared = []
    for blocks in zip(*(r.prepared for r in rows), strict=True):
        values = {f.name: [getattr(b, f.name) for b in blocks] for f in dataclasses.fields(Prepared)}
        joined: dict[str, Any] = {k: None if v[0] is None else v[0] if k == "mask" else torch.cat(v) for k, v in values.items()}
        prepared.append(Prepared(**joined))
    return Condition(torch.cat([r.coarse for r in rows]), torch.cat([r.latent for r in rows]), tuple(prepared))
