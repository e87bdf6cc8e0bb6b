"""The refiner that this process used last, still loaded, with the condition features of the tiles it has seen.

Sampling jobs of one refiner follow each other in one process (a sweep sees to that): weights are read once, and step
counts, samplers and strengths share what does not depend on them. Features are known by the content of the tile, so
nothing else can be mistaken for it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from idgbr.config import Runtime, SamplerConfig
from idgbr.rasters.tiling import Seed

if TYPE_CHECKING:
    from idgbr.refiner.guidance import Condition
    from idgbr.refiner.refiner import Refiner

KEEP_BYTES = 512 * 2**20  # of features, on the model's device; later tiles are computed each time


class TorchTiles:
    """The trained refiner behind the `TileRefiner` interface: numpy in, numpy out, on one device."""

    def __init__(self, refiner: Refiner, runtime: Runtime | None = None):
        from idgbr.training.distributed import device_of, use_threads

        runtime = runtime or Runtime()
        use_threads(runtime)
        self.device = device_of(runtime)
        self.bf16 = runtime.precision == "bf16"
        self.refiner = refiner.to(self.device).eval()

    def condition(self, image: NDArray[np.float32], coarse: NDArray[np.float32], valid: NDArray[np.bool_]) -> Condition:
        """Image float32 [B,C,h,w], coarse probabilities [B,K,h,w], valid [B,h,w] -> the condition of `draw`."""
        import torch

        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.refiner.condition(*(torch.from_numpy(x).to(self.device) for x in (image, coarse, valid)))

    def draw(self, condition: Condition, seeds: Sequence[Seed], sampler: SamplerConfig) -> NDArray[np.float32]:
        """One row of probabilities float32 [B,K,h,w], by one seed a tile."""
        import torch

        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            values: NDArray[np.float32] = self.refiner.draw(condition, seeds, sampler).float().cpu().numpy()
        return values


class KeptTiles(TorchTiles):
    """`TorchTiles` that remembers conditions. `encoded` counts the batches that were computed, `reused` those that
    were not."""

    def __init__(self, refiner: Refiner, runtime: Runtime):
        super().__init__(refiner, runtime)
        self.kept: dict[bytes, Condition] = {}
        self.bytes = self.encoded = self.reused = 0

    def condition(self, image: NDArray[np.float32], coarse: NDArray[np.float32], valid: NDArray[np.bool_]) -> Condition:
        """As `TorchTiles.condition`, computed once for equal arrays."""
        digest = hashlib.blake2b(digest_size=16)
        for array in (image, coarse, valid):
            digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        found = self.kept.get(digest.digest())
        if found is not None:
            self.reused += 1
            return found
        self.encoded += 1
        found = super().condition(image, coarse, valid)
        size = _bytes(found)
        if self.bytes + size <= KEEP_BYTES:
            self.kept[digest.digest()] = found
            self.bytes += size
        return found


_last: tuple[object, KeptTiles] | None = None


def tiles_of(folder: Path, runtime: Runtime | None = None) -> KeptTiles:
    """The refiner stored in a folder, loaded unless it is the one that this process used last."""
    global _last
    runtime = runtime or Runtime()
    files = [p.stat() for p in sorted(Path(folder).iterdir())]
    name = (str(folder), tuple((s.st_size, s.st_mtime_ns) for s in files), runtime)
    if _last is None or _last[0] != name:
        from idgbr.refiner.refiner import Refiner

        _last = None  # never two at once
        _last = (name, KeptTiles(Refiner.load(Path(folder)), runtime))
    return _last[1]


def forget() -> None:
    """Give the memory back, to a training for instance."""
    global _last
    _last = None


def _bytes(value: Any) -> int:
    """Of all tensors within a dataclass or tuple."""
    if dataclasses.is_dataclass(value):
        return sum(_bytes(getattr(value, f.name)) for f in dataclasses.fields(value))
    if isinstance(value, tuple):
        return sum(map(_bytes, value))
    return 0 if value is None else int(value.numel() * value.element_size())
