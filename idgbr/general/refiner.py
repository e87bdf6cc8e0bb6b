"""The general refiner in memory: `Refiner.general().refine(image, coarse)` for maps of any classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from idgbr.config import SamplerConfig
from idgbr.errors import Disagreement
from idgbr.general.one_class import OneAgainstRest, is_one_class
from idgbr.general.scale import moments
from idgbr.labels import ClassTable, LabelClass
from idgbr.rasters.tiling import Seed
from idgbr.refiner.decisions import refuse_confidence, without_confidence
from idgbr.refiner.guidance import Condition
from idgbr.refiner.inputs import Array, ArrayLike, is_probabilities, read_coarse, read_image
from idgbr.refiner.network import RefinerNetwork
from idgbr.refiner.sampling import Refined, decided, draw, evaluating, sampler_of


class GeneralRefiner:
    """A refiner of one class against the rest, for maps of any classes.

    Args:
        network: with the classes "rest" and "class".

    Raises:
        Disagreement: a refiner of other classes.
    """

    def __init__(self, network: RefinerNetwork):
        if not is_one_class(network.table):
            raise Disagreement(
                "a general refiner knows one class against the rest",
                value=", ".join(network.table.names),
                hint="Refiner.load(FOLDER).refine(image, coarse) for a refiner of these classes",
            )
        self.network = network

    def condition(self, image: NDArray[np.float32], coarse: NDArray[np.float32], valid: NDArray[np.bool_]) -> Condition:
        """Scaled image [B,3,H,W], coarse probabilities [B,2,H,W], valid [B,H,W] -> condition of `draw`."""
        return self.network.condition(*(torch.from_numpy(np.ascontiguousarray(x)) for x in (image, coarse, valid)))

    def draw(self, condition: Condition, seeds: Sequence[Seed], sampler: SamplerConfig) -> NDArray[np.float32]:
        """All draws [S,B,2,H,W] of the network."""
        return draw(self.network, condition, seeds, sampler).float().cpu().numpy()

    def refine(
        self,
        image: ArrayLike,
        coarse: ArrayLike,
        *,
        valid: ArrayLike | None = None,
        seed: int = 0,
        config: SamplerConfig | None = None,
        return_probabilities: bool = False,
        **settings: Any,
    ) -> Array | Refined[Array]:
        """Refine a coarse map of any classes. The bands are scaled by their mean and standard deviation over the image:
        hand in a whole scene, or a large part of one.

        Args:
            image: raw digital numbers of three bands [3,H,W], numpy or torch, any dtype.
            coarse: class indices [H,W], or probabilities [K,H,W].
            valid: bool [H,W], False where the image has no data: these pixels keep the coarse class.
            config, settings: of the sampler, as for `Refiner.refine`; none: the decision saved with the network.

        Returns:
            class map uint8 [H,W], or a `Refined`; numpy or torch as the image was.

        Raises:
            Disagreement: sizes or bands differ, a value is not finite. BadRequest: a wrong setting.
        """
        is_map = not is_probabilities(coarse)
        base = config or self.network.decision or SamplerConfig()
        sampler = sampler_of(without_confidence(base) if is_map and config is None else base, settings)
        if is_map:
            refuse_confidence(sampler)
        image_BCHW, valid_BHW, back = read_image(image, 3, valid)
        if len(image_BCHW) != 1:
            raise Disagreement("the general refiner takes one image a call", value=f"image {tuple(image_BCHW.shape)}", allowed="[3,H,W]")
        array = np.asarray(coarse)
        n_classes = max(2, int(array.max()) + 1) if is_map else array.shape[-3]
        table = ClassTable(tuple(LabelClass(f"class {k}", (k,), (k, k, k)) for k in range(n_classes)))
        coarse_BKHW = read_coarse(coarse, table, tuple(image_BCHW.shape))
        pixels, guess = image_BCHW.cpu().numpy(), coarse_BKHW.cpu().numpy()
        known = np.ones(pixels.shape[-2:], bool) if valid_BHW is None else valid_BHW[0].cpu().numpy()
        classes = OneAgainstRest(self, *moments(pixels[0], known))
        with evaluating(self.network):
            draws = torch.from_numpy(classes.draw(classes.condition(pixels, guess, known[None]), [seed], sampler))
        refined = decided(draws, coarse_BKHW.cpu(), valid_BHW, sampler)
        if not return_probabilities:
            return back(refined.index)
        return Refined(*(back(x) for x in (refined.index, refined.probabilities, refined.agreement, refined.entropy)))
