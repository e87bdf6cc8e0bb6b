"""The decision saved with a refiner: how to sample, and how far to trust the result, tuned on ground that trained
nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from idgbr.config import SamplerConfig
from idgbr.general.one_class import is_one_class
from idgbr.rasters.coarse_map import read_coarse
from idgbr.rasters.read import read_labels
from idgbr.refiner.decisions import SURES, Block, tune
from idgbr.refiner.refiner import Refiner
from idgbr.refiner.sampling import Refined
from idgbr.training.held_out import BLOCK_PX, held_out_blocks

if TYPE_CHECKING:
    from idgbr.datasets import Dataset

CONTEXT_PX = 32  # on every side of a block, seen and not scored
STEPS = 4


def default_sampler(refiner: Refiner) -> SamplerConfig:
    """Four steps, one sample (several buy nothing, docs/refiner.md); new noise in every step where training recycled guesses
    or began from zeros."""
    config = refiner.config
    renewed = config.recycle > 0 or config.first_input == "zero"
    return SamplerConfig(sampler="renoise" if renewed else "ddim", steps=STEPS)


def tuned_decision(refiner: Refiner, dataset: Dataset, coarse_dir: Path, share: float) -> SamplerConfig:
    """The sampler of `default_sampler` with the guard that is best on the blocks held out of training (see
    `decisions.tune`).

    Args:
        dataset: with training rasters and labels. coarse_dir: maps of the training rasters like those that will be refined. share: of the
            blocks, as in training.
    """
    sampler = default_sampler(refiner)
    sures = SURES if is_one_class(refiner.table) else (0.0,)
    return tune(list(_blocks(refiner, sampler, dataset, coarse_dir, share)), sures).apply(sampler)


def _blocks(refiner: Refiner, sampler: SamplerConfig, dataset: Dataset, coarse_dir: Path, share: float) -> Iterator[Block]:
    rasters = dataset.of("train")
    held_out = held_out_blocks(rasters, share)
    for raster in rasters:
        reader = raster.reader(dataset.bands)
        for top, left in held_out.get(raster.id, ()):
            row, col = max(top - CONTEXT_PX, 0), max(left - CONTEXT_PX, 0)
            height = min(top + BLOCK_PX + CONTEXT_PX, raster.height) - row
            width = min(left + BLOCK_PX + CONTEXT_PX, raster.width) - col
            image, valid = reader.read(row, col, height, width)
            coarse = read_coarse(coarse_dir, raster.id, (row, col, height, width))
            assert raster.label is not None
            target = read_labels(raster.label, dataset.table, row, col, height, width)
            refined = refiner.refine(image, coarse, valid=valid, config=sampler, return_probabilities=True)
            assert isinstance(refined, Refined)
            probabilities = np.asarray(refined.probabilities, np.float32)
            inner = (slice(top - row, top - row + BLOCK_PX), slice(left - col, left - col + BLOCK_PX))
            yield Block(probabilities[:, *inner], coarse[:, *inner], target[inner])
