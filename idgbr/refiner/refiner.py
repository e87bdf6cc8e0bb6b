"""The refiner: image + coarse map -> refined map.

    refiner = Refiner.load(folder)
    refined = refiner.refine(image, coarse)          # numpy or torch, any size, index map or probabilities

A label map is written as a latent by a denoising diffusion process whose decoder is led by a conditioning guidance
network (Wang et al., arXiv 2507.01573). The networks are in `network.py`, what is done with them in `process.py` and
`sampling.py`.

Shape letters: B batch, C bands, K classes, H, W pixels, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from idgbr.config import RefinerConfig, SamplerConfig
from idgbr.errors import Missing
from idgbr.general.one_class import shipped
from idgbr.general.refiner import GeneralRefiner
from idgbr.labels import ClassTable
from idgbr.rasters.tiling import Seed
from idgbr.refiner import sampling, saved
from idgbr.refiner.decisions import refuse_confidence, without_confidence
from idgbr.refiner.guidance import Condition
from idgbr.refiner.inputs import Array, ArrayLike, is_probabilities, read_coarse, read_image
from idgbr.refiner.network import RefinerNetwork
from idgbr.refiner.sampling import Refined
from idgbr.refiner.stable_diffusion import Parts

if TYPE_CHECKING:
    from idgbr.datasets import BandStats

__all__ = ["Refined", "Refiner"]


class Refiner(RefinerNetwork):
    """A refiner as users hold it. Build with `Refiner.build`, or read a saved one with `Refiner.load`."""

    @classmethod
    def build(cls, config: RefinerConfig, n_bands: int, table: ClassTable, stats: BandStats) -> Refiner:
        """A new refiner with random weights, or from `config.base` / `config.vae` (local diffusers folders).

        Args:
            n_bands: C of the images. table: the K classes. stats: of the training rasters, one entry a band.

        Raises:
            BadRequest: settings that contradict each other. Missing: no such folder or no weights in it.
        """
        return cls(config, n_bands, table, stats, Parts.read(config))

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> Refiner:
        """Read a refiner that `save` or `fit` wrote, in eval mode.

        Raises:
            Missing: no such folder, no config or no weights in it.
            Disagreement: a config of another version, or weights that do not fit it.
        """
        return saved.read(cls, Path(folder)).to(device).eval()

    @classmethod
    def general(cls, folder: str | Path | None = None, device: str | torch.device = "cpu") -> GeneralRefiner:
        """The refiner that is installed with idgbr: one class against the rest, for maps of any classes.

        Args:
            folder: another one of its kind, as `idgbr adapt` makes it.

        Raises:
            Missing: this installation has none, or no such folder. Disagreement: a refiner of other classes.
        """
        place = Path(folder) if folder is not None else shipped()
        if place is None:
            raise Missing("this installation has no general refiner", hint="docs/models.md says how one is trained")
        return GeneralRefiner(cls.load(place, device))

    def save(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors; each appears whole or not at all."""
        saved.write(self, Path(folder))

    def sample(self, condition: Condition, seeds: Sequence[Seed], config: SamplerConfig) -> Tensor:
        """Probabilities [B,K,H,W], mean over `config.samples` draws; noise of tile b comes from seeds[b] alone."""
        return self.draw(condition, seeds, config).mean(0)

    def draw(self, condition: Condition, seeds: Sequence[Seed], config: SamplerConfig) -> Tensor:
        """All draws [S,B,K,H,W]. Strength 0 returns the coarse probabilities; one_pass refiners have one draw.

        Raises:
            BadRequest: settings that this refiner cannot follow, or another number of seeds than of tiles.
        """
        return sampling.draw(self, condition, seeds, config)

    def refine(
        self,
        image: ArrayLike,
        coarse: ArrayLike,
        *,
        valid: ArrayLike | None = None,
        seeds: int | Sequence[int] = 0,
        config: SamplerConfig | None = None,
        return_probabilities: bool = False,
        **settings: object,
    ) -> Array | Refined[Array]:
        """Refine a coarse map.

        Args:
            image: raw digital numbers [C,H,W] or [B,C,H,W], numpy or torch, any dtype.
            coarse: class indices [H,W] / [B,H,W], or probabilities [K,H,W] / [B,K,H,W].
            valid: bool [H,W] / [B,H,W], False where the image has no data: those pixels are not read and keep the
                coarse class.
            seeds: one integer, or one an image.
            config: of the sampler; None: the decision saved with the refiner (without what needs probabilities, for
                class indices), or the defaults where none was tuned. settings: single ones in its place, e.g.
                steps=8, samples=4, reach_px=6, strength=0.5.
            return_probabilities: a `Refined` (class map, probabilities, agreement, entropy) in place of the class map.

        Returns:
            class map uint8 [H,W] / [B,H,W], numpy or torch as the image was.

        Raises:
            Disagreement: sizes, bands or classes differ, or a value is not finite. BadRequest: a wrong setting.
        """
        is_map = not is_probabilities(coarse)
        base = config or self.decision or SamplerConfig()
        sampler = sampling.sampler_of(without_confidence(base) if is_map and config is None else base, settings)
        if is_map:
            refuse_confidence(sampler)
        image_BCHW, valid_BHW, back = read_image(image, self.n_bands, valid)
        coarse_BKHW = read_coarse(coarse, self.table, tuple(image_BCHW.shape))
        seeds = [seeds] * len(image_BCHW) if isinstance(seeds, int) else list(seeds)
        with sampling.evaluating(self):
            draws = self.draw(self.condition(image_BCHW, coarse_BKHW, valid_BHW), seeds, sampler)
        refined = sampling.decided(draws, coarse_BKHW, valid_BHW, sampler)
        if not return_probabilities:
            return back(refined.index)
        return Refined(*(back(x) for x in (refined.index, refined.probabilities, refined.agreement, refined.entropy)))
